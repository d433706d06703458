//! Everything that a configurator knows when it chooses.

use super::arms::Arm;
use super::choice::Choice;
use super::learned::Learned;
use super::limits::{Facts, Limits};
use super::safety::Safety;
use super::settings::Settings;

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
