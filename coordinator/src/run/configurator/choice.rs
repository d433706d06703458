//! The choice for one device, and what a configurator knows when it chooses.

use super::arms::Arm;
use super::learned::Learned;
use super::limits::{Facts, Limits};
use super::rates::DropoutRates;
use super::safety::Safety;
use super::settings::Settings;
use serde::{Deserialize, Serialize};

/// One device's rates for one round, and why.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Choice {
    /// Dropout rate of each layer.
    pub rates: DropoutRates,
    /// Largest number of layers that run in any step.
    pub most_active: u32,
    /// The bandit's arm; `None` if no arm was chosen.
    pub arm: Option<u32>,
    /// Class of devices whose experience grows with it.
    pub class: String,
    /// True if it was chosen to learn about the arm.
    pub explores: bool,
    /// Number of examples on which the device measures its gain; 0: it does not measure.
    pub probe_examples: u32,
    /// Reason in words, for the journal and the operator.
    pub reason: String,
}

/// Settings of a configurator, and what it has learned.
#[derive(Clone, PartialEq, Debug)]
pub(super) struct Knowledge {
    pub(super) settings: Settings,
    pub(super) arms: Vec<Arm>,
    pub(super) learned: Learned,
    pub(super) safety: Safety,
}

impl Knowledge {
    /// Returns the choice for a device whose limits no arm fits.
    pub(super) fn least_dropout(&self, facts: &Facts, limits: &Limits) -> Choice {
        Choice {
            rates: limits.boundary(self.settings.layers, &self.settings.protected),
            most_active: limits.most_active,
            arm: None,
            class: facts.class.clone(),
            explores: false,
            probe_examples: 0,
            reason: limits.append_to("least dropout within its limits, because no configuration fits them".to_owned()),
        }
    }
}
