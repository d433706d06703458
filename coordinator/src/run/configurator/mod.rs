//! Chooses each device's dropout rates: fixed by the operator, or by a bandit that learns which configuration pays off.
//!
//! A configuration, an [`Arm`] of the bandit, is a mean dropout rate, its shape over depth and its schedule over rounds. More
//! dropout makes a round faster and teaches less. The worth of an arm is the gain of the whole round per second, because every
//! device waits for the slowest. The idea comes from DropPEFT (arXiv:2503.10217, "online configurator"), as we interpret its
//! abstract; candidates, policy and constants are ours and can be configured ([`Bandit`]).
//!
//! One decision covers all devices of a round:
//!
//! ```text
//!   facts of each device: memory, pace, heat, battery       measured gains of earlier rounds
//!                     │                                             │
//!                     ▼                                             ▼
//!  limits      how many layers may run  ─────►  options: the arms within the limits,
//!                     │                         each with its expected gain and time
//!                     │ none fits                          │
//!                     ▼                                    ▼
//!              the least dropout that          time: the duration of the round that gives
//!              its limits allow                the highest gain of all devices per second
//!                                                          │
//!                                                          ▼
//!                                              policy: proposes the best arm of each device,
//!                                              or another arm to learn about it
//!                                                          │
//!                                                          ▼
//!                                              safety: who may explore in this round?
//!                                                   │ may              │ may not
//!                                                   ▼                  ▼
//!  choice                                      the proposed arm   the best known arm
//!                                                   └───── rates ──────┘
//! ```
//! - **Limits** ([`limits`]): memory, deadline, heat and battery bound the active layers. Arms outside of the limits are not
//!   considered. A device without room for one layer is left out of the round.
//! - **Time** ([`tempo`]): the duration of an arm is not learned but computed from the device's pace.
//! - **Policy** ([`policy`]): epsilon-greedy, UCB or Thompson sampling. Untried arms come first.
//! - **Safety** ([`safety`]): no device explores after a divergence, a lost evaluation or a round with unstable links. A device
//!   whose last orders failed does not explore either. A share of the other devices may explore ([`Bandit::explorers`]).
//! - **Choice** ([`decision`]): the rates, and whether the device measures its gain. Explorers measure it, and some of the devices
//!   that finish early.
//!
//! **Learning** ([`learned`]). A device measures the model on some of its own examples before and after its training; the
//! difference is the gain. All devices share what they learn; each class and each device keeps its own correction. Measurements
//! older than a window of rounds are forgotten, because gains shrink while training converges.
//!
//! Everything is a function of the seed and of the journal's facts, so a replay gives the same choices.

pub mod arms;
mod choice;
mod decision;
mod gain;
mod knowledge;
mod learned;
pub mod limits;
mod options;
pub mod policy;
mod rates;
mod safety;
mod settings;
mod tempo;

#[cfg(test)]
mod tests;

pub use arms::{Arm, MAX_MEAN_RATE, MAX_RATE, Moment, Schedule, Shape};
pub use choice::Choice;
pub use gain::{Gain, GainUnit};
pub use limits::{Care, Facts, Limits, Load, Pace, Unfit};
pub use policy::Policy;
pub use rates::{BadRate, DropoutRates};
pub use settings::{Bandit, MAX_ARMS, Rates, Settings};

use decision::Decision;
use knowledge::Knowledge;
use learned::Learned;
use safety::Safety;
use serde::Serialize;
use skiff_protocol::DeviceId;
use skiff_protocol::messages::Probe;
use std::collections::BTreeMap;

/// Expected gain of a round with one arm.
#[derive(Clone, Copy, PartialEq, Debug, Serialize)]
pub struct Expected {
    /// The arm.
    #[serde(flatten)]
    pub arm: Arm,
    /// Expected gain, by the run's measure; `None` if no device measured it recently.
    pub gain: Option<f64>,
    /// Number of recent measurements behind the expected gain, over all devices.
    pub measurements: u32,
}

/// Chooses rates, and learns from the gains that devices measure.
#[derive(Clone, PartialEq, Debug)]
pub struct Configurator(Knowledge);

impl Configurator {
    /// Creates a configurator without measurements.
    #[must_use]
    pub fn new(mut settings: Settings) -> Self {
        settings.protected.sort_unstable();
        settings.protected.dedup();
        let arms = settings.rates.arms();
        let window = if let Rates::Bandit(bandit) = &settings.rates { bandit.window } else { 1 };
        let last_round = Moment { round: settings.rounds, rounds: settings.rounds };
        let active_layers = |arm: &Arm| {
            let constant = Arm { schedule: Schedule::Constant, ..*arm };
            constant.rates(last_round, settings.layers, &settings.protected).expected_active()
        };
        let learned = Learned::new(arms.iter().map(active_layers).collect(), window);
        Self(Knowledge { settings, arms, learned, safety: Safety::default() })
    }

    /// Returns how many layers may be active on a device.
    ///
    /// # Errors
    /// A device that cannot train.
    pub fn limits(&self, facts: &Facts, load: &Load) -> Result<Limits, Unfit> {
        Limits::of(facts, load, self.0.settings.layers as u32, self.0.settings.protected.len() as u32)
    }

    /// Chooses the rates of the devices of `round`, from the facts and limits of each.
    #[must_use]
    pub fn choose(&self, round: u32, devices: &BTreeMap<DeviceId, (Facts, Limits)>) -> BTreeMap<DeviceId, Choice> {
        let at = Moment { round, rounds: self.0.settings.rounds };
        let rates_of = |arm: &Arm| arm.rates(at, self.0.settings.layers, &self.0.settings.protected);
        let arm_rates: Vec<DropoutRates> = self.0.arms.iter().map(rates_of).collect();
        match &self.0.settings.rates {
            Rates::Bandit(bandit) => Decision { known: &self.0, bandit, round, arm_rates: &arm_rates }.choose(devices),
            Rates::Fixed { .. } => devices
                .iter()
                .map(|(device, (facts, limits))| (device.clone(), self.fixed(facts, limits, &arm_rates[0])))
                .collect(),
        }
    }

    /// Learns from the gain that a device measured in `round`, which took `seconds`.
    pub fn reward(&mut self, device: &DeviceId, choice: &Choice, round: u32, gain: f64, seconds: f64) {
        if let (Rates::Bandit(_), Some(arm)) = (&self.0.settings.rates, choice.arm) {
            self.0.learned.add(device, &choice.class, arm as usize, round, gain, seconds);
        }
    }

    /// Records the mean loss of an evaluation; `None` if no device reported.
    pub fn evaluated(&mut self, loss: Option<f64>) {
        self.0.safety.evaluated(loss);
    }

    /// Records the end of a round of training: the devices that delivered, the devices whose order failed, and the wanted number
    /// of updates.
    pub fn round_closed<'a>(
        &mut self,
        round: u32,
        delivered: impl Iterator<Item = &'a DeviceId>,
        failed: impl Iterator<Item = &'a DeviceId>,
        wanted: usize,
    ) {
        self.0.safety.round_closed(round, delivered, failed, wanted);
        if let Rates::Bandit(bandit) = &self.0.settings.rates
            && round.is_multiple_of((bandit.window / 2).max(1))
        {
            self.0.learned.refresh(round, bandit.candidates as usize, self.0.settings.seed);
        }
    }

    /// Lists the expected gain of every arm on a device of that class. The list is empty if rates are fixed.
    #[must_use]
    pub fn expected(&self, device: &DeviceId, class: &str) -> Vec<Expected> {
        if matches!(self.0.settings.rates, Rates::Fixed { .. }) {
            return Vec::new();
        }
        let expectation = self.0.learned.expectation(class);
        let expected = |(at, arm): (usize, &Arm)| {
            let estimate = self.0.learned.estimate(device, &expectation, at);
            let gain = (estimate.measurements > 0.0).then_some(estimate.gain);
            Expected { arm: *arm, gain, measurements: estimate.measurements as u32 }
        };
        self.0.arms.iter().enumerate().map(expected).collect()
    }

    /// Returns the unit of the run's gains.
    #[must_use]
    pub fn gain_unit(&self) -> GainUnit {
        self.0.settings.rates.gain().unit(self.0.settings.measure)
    }

    /// Computes the gain that a device measured.
    #[must_use]
    pub fn gain(&self, probe: &Probe) -> f64 {
        self.gain_unit().gain(probe)
    }

    /// Returns the choice for fixed rates, which change only if the limits require it.
    fn fixed(&self, facts: &Facts, limits: &Limits, rates: &DropoutRates) -> Choice {
        if !limits.allow(rates) {
            return self.0.least_dropout(facts, limits);
        }
        Choice {
            rates: rates.clone(),
            most_active: limits.most_active,
            arm: None,
            class: facts.class.clone(),
            explores: false,
            probe_examples: 0,
            reason: limits.append_to(format!("fixed: {}", self.0.arms[0])),
        }
    }
}
