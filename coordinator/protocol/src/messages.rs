//! Types of the messages between a device and the coordinator.
//!
//! A device sends [`Birth`], [`Gone`], [`Telemetry`] and [`Answer`]. The coordinator sends [`Command`], [`Presence`] and
//! [`Announcement`]. Both send [`crate::transfer::TransferMessage`]. The types belong to the newest version of the protocol;
//! [`crate::v2`] holds the older layouts.
//!
//! **Delivery.** In MQTT it is the broker that acknowledges a message, not the receiver. The coordinator therefore repeats a
//! command until the device answers, and a device answers a repeated command again from its stored state. Every command carries
//! an *epoch*, which grows with each new decision of a run. A larger epoch supersedes the device's work, an equal one is a
//! repetition, and a smaller one is late and ignored. Epochs restart in every run. If a command's run started before the newest
//! run that the device obeyed, the command is late, whatever its epoch.

use crate::limits;
use crate::metrics::TaskMetrics;
use crate::version::VersionRange;
use serde::{Deserialize, Serialize};
use std::fmt;

/// A blake3 digest: the name of a blob, a pack or a schema.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Digest(pub [u8; 32]);

impl Digest {
    /// Returns the digest of `bytes`.
    #[must_use]
    pub fn of(bytes: &[u8]) -> Self {
        Self(*blake3::hash(bytes).as_bytes())
    }

    /// Reads the 64 hexadecimal digits that `Display` writes.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        blake3::Hash::from_hex(text).ok().map(|hash| Self(*hash.as_bytes()))
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0[..6].iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// Identity of one run of federated training. The coordinator's shell draws it when the run starts.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub struct RunId(pub u64);

impl fmt::Display for RunId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

/// Identity of one life of a process. Each start draws a new one.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub struct BootId(pub u64);

/// Announces a device with its properties and abilities (retained).
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Birth {
    /// Life of the agent that sends this.
    pub boot: BootId,
    /// Version of the agent, `major.minor.patch`; at most 64 bytes.
    pub agent_version: String,
    /// Digest of the pack's manifest. The coordinator uses only devices with the same pack as its own.
    pub pack: Digest,
    /// Number of examples to train on.
    pub train_examples: u64,
    /// Number of examples to evaluate on.
    pub test_examples: u64,
    /// Hardware and system.
    pub machine: Machine,
    /// Class, site and labels that the owner set.
    pub place: Place,
    /// Memory that training is predicted to need.
    pub memory: StepMemory,
    /// Versions of the protocol that the agent speaks; the version of this message is one of them.
    pub speaks: VersionRange,
}

/// Description of a device by its owner. Rules of the coordinator select devices by it.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Place {
    /// Kind of device, for example `jetson-nx`. Devices of one class are assumed to be alike. May be empty; at most 64 bytes.
    pub class: String,
    /// Name of the device's location. May be empty; at most 64 bytes.
    pub region: String,
    /// Further labels: at most 16, each of at most 64 bytes.
    #[serde(deserialize_with = "limits::at_most::<{ limits::LABELS }, _, _>")]
    pub labels: Vec<String>,
}

/// Length of the texts for which [`StepMemory`] is predicted, in tokens.
pub const REFERENCE_TOKENS: u64 = 128;

/// Predicted memory of a training step in its leanest way, with texts of [`REFERENCE_TOKENS`], and the device's limit.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct StepMemory {
    /// Limit on the memory of training, in bytes; 0 if there is none.
    pub limit_bytes: u64,
    /// Memory that the process always needs, in bytes.
    pub process_bytes: u64,
    /// Memory of a step without its layers, in bytes.
    pub step_bytes: u64,
    /// Memory that each active layer adds, in bytes.
    pub layer_bytes: u64,
}

/// Hardware and operating system of a device.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Machine {
    /// Architecture of the processor, for example `x86_64` or `aarch64`; at most 64 bytes.
    pub arch: String,
    /// Name and version of the operating system; at most 200 bytes.
    pub os: String,
    /// Number of logical processors.
    pub cores: u32,
    /// Physical memory in bytes.
    pub memory_bytes: u64,
}

/// Announces that the device left, in order or by its last will (retained, on the birth's topic).
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Gone {
    /// Life that ended. The coordinator ignores a `Gone` of any other life than the current one.
    pub boot: BootId,
    /// True if the agent stopped in order, false for a last will.
    pub clean: bool,
}

/// Activity of an agent.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum AgentState {
    /// Connected, no work.
    Idle,
    /// Waiting for weights.
    Fetching,
    /// Running training steps.
    Training,
    /// Evaluating.
    Evaluating,
    /// Sending its update.
    Uploading,
}

/// Sample of a device's resources (QoS 0; gaps in `sequence` show losses).
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Telemetry {
    /// Life of the agent that sends this.
    pub boot: BootId,
    /// Number of the sample in this life, from 0.
    pub sequence: u64,
    /// Time since the agent started, in milliseconds.
    pub uptime_ms: u64,
    /// Current activity.
    pub state: AgentState,
    /// CPU use of the whole machine, 0 to 100.
    pub cpu_percent: f32,
    /// CPU use of the agent's process, 100 for one core.
    pub agent_cpu_percent: f32,
    /// Physical memory in bytes.
    pub memory_bytes: u64,
    /// Memory available without swapping, in bytes.
    pub memory_available_bytes: u64,
    /// Load average over a minute.
    pub load_1m: f32,
    /// Name (at most 64 bytes) and degrees Celsius of each temperature sensor; at most 16.
    #[serde(deserialize_with = "limits::at_most::<{ limits::SENSORS }, _, _>")]
    pub temperatures: Vec<(String, f32)>,
    /// Battery, if there is one.
    pub battery: Option<Battery>,
    /// Resident memory of the agent, in bytes.
    pub agent_rss_bytes: u64,
    /// Largest resident memory of the agent so far, in bytes.
    pub agent_peak_rss_bytes: u64,
    /// Progress of the current training, if any.
    pub work: Option<WorkSample>,
}

/// State of a battery.
#[derive(Clone, Copy, PartialEq, Debug, Serialize, Deserialize)]
pub struct Battery {
    /// Remaining charge in percent, 0 to 100.
    pub percent: f32,
    /// False while the battery discharges.
    pub charging: bool,
}

/// Progress of a training.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct WorkSample {
    /// The run.
    pub run: RunId,
    /// Round of the run.
    pub round: u32,
    /// Number of steps done in this round.
    pub step: u32,
    /// Number of steps ordered for this round.
    pub steps: u32,
    /// Time of the last step in milliseconds.
    pub step_ms: f32,
    /// Tokens of text per second over the last step.
    pub tokens_per_second: f32,
    /// Number of active layers in the last step.
    pub active_layers: u32,
    /// Loss of the last step.
    pub loss: f32,
}

/// An order of the coordinator.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Command {
    /// The run.
    pub run: RunId,
    /// Start of the run by the coordinator's clock. It orders runs, as `epoch` orders the decisions of one run.
    pub started_ms: u64,
    /// Round of the run, from 1; 0 for the evaluation before the first round.
    pub round: u32,
    /// Number that orders decisions within a run; see the module's docs.
    pub epoch: u64,
    /// Action to take.
    pub order: Order,
}

/// Action that a command asks for.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub enum Order {
    /// Train and hand in an update.
    Train(TrainOrder),
    /// Evaluate and report.
    Evaluate(EvaluateOrder),
    /// Stop the work for this run; the answer is [`Outcome::Stopped`].
    Stop,
}

/// One device's training order for a round.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct TrainOrder {
    /// Digest of the global weights to start from (a safetensors blob of every trainable tensor).
    pub weights: Digest,
    /// Digest of the schema of the trainable tensors.
    pub schema: Digest,
    /// Seed of the run. Masks and batches are drawn from (seed, device, round, step).
    pub seed: u64,
    /// Dropout rate of each layer, 0 to 1: the probability that a batch skips it; 1 to 512 layers.
    #[serde(deserialize_with = "limits::at_most::<{ limits::LAYERS }, _, _>")]
    pub rates: Vec<f32>,
    /// Largest number of layers that run in a step; at least 1.
    pub most_active: u32,
    /// Number of optimizer steps; at least 1.
    pub steps: u32,
    /// Number of examples in a step, 1 to 4096.
    pub batch: u32,
    /// Largest number of tokens in a text, 2 to 65,536. Longer texts are cut.
    pub max_tokens: u32,
    /// Learning rate of AdamW; finite, above 0.
    pub learning_rate: f32,
    /// Factor µ of FedProx (Li et al., arXiv:1812.06127): µ · (weights − starting weights) is added to each gradient.
    /// Finite, 0 or more.
    pub proximal: f32,
    /// Rank of LoRA on this device. 0, or a rank above the pack's, means the pack's rank.
    pub rank: u32,
    /// Number of examples on which the device measures the model with all layers, before and after training; 0 for none.
    pub probe_examples: u32,
    /// Choice of the layers that go into the update.
    pub sharing: SharingPlan,
    /// Time in milliseconds after which the device gives up; at least 1.
    pub deadline_ms: u64,
}

/// Choice of the layers that a device shares; it keeps the others for itself. The head is always shared.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum SharingPlan {
    /// Every layer.
    All,
    /// The `k` least important layers on the device; layers that never ran come last. This is our interpretation of DropPEFT's
    /// abstract.
    LeastImportant {
        /// Number of layers.
        k: u32,
    },
    /// The `k` most important layers on the device; layers that never ran come last.
    MostImportant {
        /// Number of layers.
        k: u32,
    },
    /// The layers that the coordinator names.
    Fixed {
        /// Numbers of the layers, ascending, without repetition, each below the length of `rates`.
        #[serde(deserialize_with = "limits::at_most::<{ limits::LAYERS }, _, _>")]
        layers: Vec<u32>,
    },
}

/// One device's order for an evaluation. All layers are active.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct EvaluateOrder {
    /// Digest of the global weights to evaluate. The device replaces the layers that it does not share by its personal ones.
    pub weights: Digest,
    /// Digest of the schema of the trainable tensors.
    pub schema: Digest,
    /// Largest number of test examples to use. A device with more of them draws a sample, the same each time.
    pub examples: u64,
    /// Number of examples in a batch, 1 to 4096.
    pub batch: u32,
    /// Largest number of tokens in a text, 2 to 65,536. Longer texts are cut.
    pub max_tokens: u32,
    /// Time in milliseconds after which the device gives up; at least 1.
    pub deadline_ms: u64,
}

/// Answer of a device to a command. The device repeats it whenever the coordinator repeats the command.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Answer {
    /// Life of the agent that sends this.
    pub boot: BootId,
    /// The command's run.
    pub run: RunId,
    /// The command's round.
    pub round: u32,
    /// The command's epoch.
    pub epoch: u64,
    /// Outcome of the command.
    pub outcome: Outcome,
}

/// Outcome of a command. A finished training is answered by an offer of its update instead; see
/// [`crate::transfer::Purpose::Update`].
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub enum Outcome {
    /// The device works on the command.
    Accepted {
        /// True if the device has the weights; false if it waits for their offer.
        has_weights: bool,
    },
    /// The device did not and will not follow the command.
    Refused {
        /// Cause for the operator; at most 200 bytes.
        reason: String,
    },
    /// The device evaluated.
    Evaluated(EvaluationReport),
    /// The device stopped as ordered.
    Stopped,
}

/// Returns `text` as the reason of a refusal. A longer text is cut between characters, to at most 200 bytes.
#[must_use]
pub fn short_reason(text: &str) -> String {
    text[..text.floor_char_boundary(limits::TEXT_BYTES)].to_owned()
}

/// Report of a device on its training in a round.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct TrainReport {
    /// Number of distinct examples trained on: steps x batch, at most as many as the device has. It is the weight in FedAvg.
    pub examples: u64,
    /// Number of text tokens trained on.
    pub tokens: u64,
    /// Number of optimizer steps done.
    pub steps: u32,
    /// Mean loss over the steps; not finite if training diverged.
    pub mean_loss: f32,
    /// Layers in the update, ascending; at most 512.
    #[serde(deserialize_with = "limits::at_most::<{ limits::LAYERS }, _, _>")]
    pub shared_layers: Vec<u32>,
    /// Mean norm of each layer's gradient before clipping, over the batches in which the layer was active. It is a mean rather
    /// than a sum, so that a layer's dropout rate does not bias it. 0 if the layer never ran. Finite, not negative; at most 512.
    #[serde(deserialize_with = "limits::at_most::<{ limits::LAYERS }, _, _>")]
    pub importance: Vec<f32>,
    /// Mean number of active layers over the steps.
    pub mean_active_layers: f32,
    /// Wall time of the training in milliseconds.
    pub train_ms: u64,
    /// Median wall time of a step in milliseconds.
    pub step_ms: f32,
    /// Largest resident memory of the agent so far, in bytes.
    pub peak_rss_bytes: u64,
    /// Measured gain of the training, if the order asked for it.
    pub probe: Option<Probe>,
}

/// Quality of the model, with all layers active, on some of the device's examples before and after its training. The device uses
/// its test examples if it has any, otherwise its training examples.
#[derive(Clone, Copy, PartialEq, Debug, Serialize, Deserialize)]
pub struct Probe {
    /// Number of examples.
    pub examples: u32,
    /// Mean loss before the training, in nats; finite.
    pub loss_before: f32,
    /// Mean loss after the training, in nats; finite.
    pub loss_after: f32,
    /// Number of correct labels before the training; at most `examples`.
    pub correct_before: u32,
    /// Number of correct labels after the training; at most `examples`.
    pub correct_after: u32,
}

/// Result of an evaluation on a device's test examples.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct EvaluationReport {
    /// Number of evaluated examples, or of evaluated tokens if the task labels or predicts tokens.
    pub examples: u64,
    /// Number of correct labels; 0 if the task has numbers instead of labels.
    pub correct: u64,
    /// Sum of the examples' cross-entropies in nats, or of their squared errors; not finite if the model diverged.
    pub loss_sum: f64,
    /// Wall time in milliseconds.
    pub evaluate_ms: u64,
    /// Largest resident memory of the agent so far, in bytes.
    pub peak_rss_bytes: u64,
    /// Counts and sums for the measures of the task.
    pub metrics: TaskMetrics,
}

/// Announces whether the coordinator is connected (retained, for all devices).
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Presence {
    /// Life of the coordinator. Devices repeat their birth when it changes.
    pub boot: BootId,
    /// True if the coordinator is running; false in its last will.
    pub online: bool,
}

/// Announces the versions of the protocol that the coordinator speaks (retained, for all devices).
///
/// Its layout and the version in its header (3) never change, so that every agent from version 3 on can read it. It is
/// published before the [`Presence`] of the same life. An older agent does not know its topic and ignores it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Announcement {
    /// Life of the coordinator to which this announcement applies. It is not valid for any other life.
    pub boot: BootId,
    /// Versions that the coordinator speaks.
    pub speaks: VersionRange,
}
