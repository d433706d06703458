//! Settings of a run.

use crate::merge::Merging;
use crate::run::configurator::{self, Care, Load, Rates};
use serde::{Deserialize, Serialize};
use skiff_api::measures::Measure;
use skiff_api::policy::{Group, Policy, Sharing};

/// Largest number of rounds of a run.
pub const MAX_ROUNDS: u32 = 10_000;
/// Largest number of devices in a round.
pub const MAX_DEVICES: u32 = 10_000;

/// Settings of a run: table `[run]` of `coordinator.toml`. Unknown keys are refused.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RunSettings {
    /// Weights to start from: `RUN`, `RUN@best`, `RUN@last` or `RUN@ROUND` of an earlier run with the same pack (default: the
    /// pack's). In a journal this is the full name of the run, with the round.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub from: Option<String>,
    /// Number of training rounds (default 10).
    pub rounds: u32,
    /// Number of updates after which a round closes (default 4).
    pub devices: u32,
    /// Number of spare devices that train on top of `devices`, so that a round need not wait for the slowest (default 0).
    pub over_selection: u32,
    /// Minimum number of updates of a round; a round with fewer is skipped (default 2).
    pub quorum: u32,
    /// Asynchronous rounds with a buffer (FedBuff, Nguyen et al., arXiv:2106.06639, algorithm 1; default false).
    ///
    /// A round closes when `devices` updates have arrived. The other devices keep training, and their updates count in a later
    /// round. At any time `devices + over_selection` devices train. An update whose weights are `τ` merges old counts with the
    /// factor `1/sqrt(1 + τ)`.
    pub asynchronous: bool,
    /// Maximum number of merges that an asynchronous device may be behind, 0 to 1000 (default 20). A device that is further
    /// behind is stopped.
    pub max_staleness: u32,
    /// Number of optimizer steps of each device in a round (default 20).
    pub steps: u32,
    /// Number of examples in a step (default 8).
    pub batch: u32,
    /// Maximum number of tokens of a text (default 128). Longer texts are cut.
    pub max_tokens: u32,
    /// Learning rate of AdamW (default 1e-3).
    pub learning_rate: f32,
    /// Seed for masks, batches, selection and exploration (default 1).
    pub seed: u64,
    /// Source of the dropout rates (default: fixed, mean 0).
    pub rates: Rates,
    /// Layers that are never dropped (default none).
    pub protected: Vec<u32>,
    /// Thresholds of temperature and battery beyond which a device gets less work.
    pub care: Care,
    /// Factor of FedProx's proximal term, 0 to 1000 (default 0, which turns the term off).
    pub proximal: f32,
    /// Way in which updates become new weights.
    pub merge: Merging,
    /// Layers that devices share (default `all`).
    pub sharing: Sharing,
    /// Groups of devices with their own sharing and LoRA rank (default none).
    pub groups: Vec<Group>,
    /// Number of test examples, over all devices, in the evaluation after a round; 0: no evaluation (default 400). A device that
    /// has more examples than it should evaluate draws a sample. The sample is the same in each round and keeps the share of each
    /// label.
    pub evaluate_examples: u64,
    /// Number of test examples, over all devices, in the evaluations before the first round and at the end; 0 for no evaluation
    /// (default 1000).
    pub final_examples: u64,
    /// Number of examples in a batch of an evaluation (default 8).
    pub evaluate_batch: u32,
    /// Number of rounds skipped in a row after which the run stops (default 10).
    pub max_skipped: u32,
    /// Maximum time to wait for `devices` devices, in milliseconds (default 60,000). After that, the round starts with the
    /// devices that are online.
    pub gather_ms: u64,
    /// Maximum time that a round waits for updates, in milliseconds (default 600,000).
    pub train_ms: u64,
    /// Maximum time that an evaluation waits for reports, in milliseconds (default 300,000).
    pub evaluate_ms: u64,
    /// Maximum time that a round waits for an offline device to come back, in milliseconds (default 5,000).
    pub grace_ms: u64,
}

impl Default for RunSettings {
    fn default() -> Self {
        Self {
            from: None,
            rounds: 10,
            devices: 4,
            over_selection: 0,
            quorum: 2,
            asynchronous: false,
            max_staleness: 20,
            steps: 20,
            batch: 8,
            max_tokens: 128,
            learning_rate: 1e-3,
            seed: 1,
            rates: Rates::default(),
            protected: Vec::new(),
            care: Care::default(),
            proximal: 0.0,
            merge: Merging::default(),
            sharing: Sharing::All,
            groups: Vec::new(),
            evaluate_examples: 400,
            final_examples: 1000,
            evaluate_batch: 8,
            max_skipped: 10,
            gather_ms: 60_000,
            train_ms: 600_000,
            evaluate_ms: 300_000,
            grace_ms: 5_000,
        }
    }
}

/// A setting that is out of range.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("run settings: {0}")]
pub struct BadSettings(pub String);

impl RunSettings {
    /// Checks every number, for a model of `layers` layers.
    ///
    /// # Errors
    /// The first setting that is out of range, with its name and the range.
    pub fn check(&self, layers: u32) -> Result<(), BadSettings> {
        within("rounds", self.rounds.into(), 1, MAX_ROUNDS.into())?;
        within("devices", self.devices.into(), 1, MAX_DEVICES.into())?;
        within("over_selection", self.over_selection.into(), 0, (MAX_DEVICES - self.devices).into())?;
        within("quorum", self.quorum.into(), 1, self.devices.into())?;
        within("max_staleness", self.max_staleness.into(), 0, 1000)?;
        within("steps", self.steps.into(), 1, 1_000_000)?;
        within("max_skipped", self.max_skipped.into(), 1, MAX_ROUNDS.into())?;
        within("batch", self.batch.into(), 1, 4096)?;
        within("max_tokens", self.max_tokens.into(), 2, 65_536)?;
        within("evaluate_batch", self.evaluate_batch.into(), 1, 4096)?;
        within("evaluate_examples", self.evaluate_examples, 0, 1 << 40)?;
        within("final_examples", self.final_examples, 0, 1 << 40)?;
        let day = 24 * 60 * 60 * 1000;
        within("gather_ms", self.gather_ms, 1, day)?;
        within("train_ms", self.train_ms, 1, day)?;
        within("evaluate_ms", self.evaluate_ms, 1, day)?;
        within("grace_ms", self.grace_ms, 0, day)?;
        if !(self.learning_rate > 0.0 && self.learning_rate <= 1.0) {
            return Err(BadSettings(format!("learning_rate is {}, expected above 0, at most 1", self.learning_rate)));
        }
        if let Some(layer) = self.protected.iter().find(|&&layer| layer >= layers) {
            return Err(BadSettings(format!("protected: there is no layer {layer}, the model has {layers}")));
        }
        if !(0.0..=1000.0).contains(&self.proximal) {
            return Err(BadSettings(format!("proximal is {}, expected 0 to 1000", self.proximal)));
        }
        self.rates.check().map_err(BadSettings)?;
        self.merge.check().map_err(BadSettings)?;
        self.policy().check(layers).map_err(BadSettings)
    }

    /// Returns which layers each device shares.
    #[must_use]
    pub fn policy(&self) -> Policy {
        Policy { sharing: self.sharing.clone(), groups: self.groups.clone() }
    }

    /// Returns what the configurator needs to know, for a model of `layers` layers whose task has this main measure.
    #[must_use]
    pub fn configurator(&self, layers: u32, measure: Measure) -> configurator::Settings {
        configurator::Settings {
            rates: self.rates.clone(),
            protected: self.protected.clone(),
            layers: layers as usize,
            seed: self.seed,
            rounds: self.rounds,
            steps: self.steps,
            batch: self.batch,
            asynchronous: self.asynchronous,
            measure,
        }
    }

    /// Returns the work that a round of training asks of a device.
    #[must_use]
    pub fn load(&self) -> Load {
        let tokens = u64::from(self.max_tokens);
        Load { tokens, steps: self.steps, deadline_ms: self.train_ms, care: self.care }
    }

    /// Returns the number of examples of the evaluation after `round`, over all devices; round 0 is before the first.
    #[must_use]
    pub fn examples_after(&self, round: u32) -> u64 {
        if round == 0 || round == self.rounds { self.final_examples } else { self.evaluate_examples }
    }
}

fn within(name: &str, value: u64, least: u64, most: u64) -> Result<(), BadSettings> {
    if (least..=most).contains(&value) {
        return Ok(());
    }
    Err(BadSettings(format!("{name} is {value}, expected {least} to {most}")))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests fail by panicking")]
    use super::*;

    #[test]
    fn defaults_are_settings_a_run_can_have() {
        assert_eq!(RunSettings::default().check(6), Ok(()));
    }

    #[test]
    fn each_bad_setting_is_named() {
        let refused = |toml: &str| toml::from_str::<RunSettings>(toml).unwrap().check(6).unwrap_err().to_string();
        for (toml, name) in [
            ("rounds = 0", "rounds"),
            ("quorum = 5", "quorum is 5, expected 1 to 4"),
            ("batch = 0", "batch"),
            ("learning_rate = 0.0", "learning_rate"),
            ("learning_rate = nan", "learning_rate"),
            ("protected = [6]", "protected: there is no layer 6"),
            ("sharing = { least_important = 7 }", "sharing"),
            ("rates = { fixed = { mean = 2.0 } }", "rates.fixed.mean"),
            ("train_ms = 0", "train_ms"),
            ("proximal = nan", "proximal"),
            ("max_staleness = 1001", "max_staleness is 1001, expected 0 to 1000"),
            ("merge = { far_out = 0.1 }", "merge.far_out"),
            ("groups = [{ name = 'a' }]", "every device"),
        ] {
            let message = refused(toml);
            assert!(message.contains(name), "{toml}: {message}");
        }
        let unknown = toml::from_str::<RunSettings>("round = 3").unwrap_err().to_string();
        assert!(unknown.contains("unknown field `round`"), "{unknown}");
    }
}
