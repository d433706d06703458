//! The choice for one device.

use super::rates::DropoutRates;
use serde::{Deserialize, Serialize};

/// One device's rates for one round, and the reason for them.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Choice {
    /// Dropout rate of each layer.
    pub rates: DropoutRates,
    /// Largest number of layers that run in any step.
    pub most_active: u32,
    /// The bandit's arm; `None` if no arm was chosen.
    pub arm: Option<u32>,
    /// Class of devices that share what is learned from this choice.
    pub class: String,
    /// True if the arm was chosen in order to learn about it.
    pub explores: bool,
    /// Number of examples on which the device measures its gain; 0 for no measurement.
    pub probe_examples: u32,
    /// Reason in words, for the journal and the operator.
    pub reason: String,
}
