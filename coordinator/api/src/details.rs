//! A whole run, as the journal records it: rounds, weights, and the work of each device.

use crate::measures::{Figures, Parts};
use crate::progress::{DeviceProgress, RunProgress};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use skiff_protocol::DeviceId;

/// Everything that the journal knows about a run.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct RunDetails {
    /// The run, with all closed rounds.
    #[serde(flatten)]
    pub run: RunProgress,
    /// Time at which the run started, in milliseconds since 1970.
    pub started_ms: u64,
    /// Digest of the pack that the run trains; `None` if the run's records are damaged.
    pub pack: Option<String>,
    /// Evaluated weights with the best measure, which the coordinator keeps.
    pub best: Option<Kept>,
    /// Weights of the last merged round, which the coordinator keeps.
    pub last: Option<Kept>,
    /// The devices that took part, by name.
    pub devices: Vec<Contribution>,
    /// Parts of the last evaluation: F1 by label and the confusion matrix.
    pub parts: Option<Parts>,
    /// Settings of the run, in the form of table `[run]` of the configuration; `None` if the run's records are damaged.
    pub settings: Option<Map<String, Value>>,
    /// Damage of the journal because of which the run was stopped.
    pub damage: Option<String>,
}

/// A device of the fleet: its state, and the properties that its last birth named.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct DeviceDetails {
    /// State of the device.
    #[serde(flatten)]
    pub state: DeviceProgress,
    /// Time of the last change of presence, in milliseconds since 1970.
    pub since_ms: u64,
    /// Properties of the device; `None` if only its farewell is known.
    pub properties: Option<Properties>,
}

/// Properties of a device, as its agent reported them.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Properties {
    /// Version of the agent.
    pub agent_version: String,
    /// Digest of the device's pack.
    pub pack: String,
    /// Number of examples to train on.
    pub train_examples: u64,
    /// Number of examples to evaluate on.
    pub test_examples: u64,
    /// Architecture of the processor.
    pub arch: String,
    /// Operating system.
    pub os: String,
    /// Number of processor cores.
    pub cores: u32,
    /// Memory of the machine in bytes.
    pub memory_bytes: u64,
    /// Class that the owner set; may be empty.
    pub class: String,
    /// Region that the owner set; may be empty.
    pub region: String,
    /// Labels that the owner set.
    pub labels: Vec<String>,
    /// Newest version of the protocol that the device and this coordinator speak.
    pub protocol: u32,
}

/// The work of a device in a run.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct Contribution {
    /// The device.
    pub device: DeviceId,
    /// Number of merged or stored updates.
    pub updates: u32,
    /// Number of steps.
    pub steps: u64,
    /// Mean number of active layers over the device's steps.
    pub mean_active_layers: Option<f32>,
    /// Largest resident memory that the device reported, in bytes.
    pub peak_rss_bytes: u64,
    /// Number of orders that the device refused or failed to deliver.
    pub failures: u32,
    /// Reason of the last failure.
    pub last_failure: Option<String>,
}

impl Contribution {
    /// Returns the contribution of a device that has done nothing yet.
    #[must_use]
    pub fn of(device: DeviceId) -> Self {
        Self {
            device,
            updates: 0,
            steps: 0,
            mean_active_layers: None,
            peak_rss_bytes: 0,
            failures: 0,
            last_failure: None,
        }
    }
}

/// Merged weights that stay until the run is deleted.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Kept {
    /// Round that made the weights, from 1.
    pub round: u32,
    /// Name of the weights' blob, 64 hexadecimal digits.
    pub weights: String,
    /// Accuracy of these weights, if they were evaluated.
    pub accuracy: Option<f64>,
    /// Figures of these weights, if they were evaluated.
    #[serde(default)]
    pub metrics: Option<Figures>,
}
