//! Choosing each device's dropout rates: fixed by the operator, or by a bandit that learns which configuration pays.
//!
//! An [`Arm`] is a mean rate, its shape over depth and its schedule over rounds. What an arm is worth on a device is what a
//! round with it gained, by the device's own measurement of the model before and after its training, per second of the
//! device's round (DropPEFT, arXiv:2503.10217, "online configurator"). Devices of one class share what they learn, and each
//! keeps its own correction; older rounds than a window are forgotten, as rewards shrink while training converges.
//!
//! In this order, for each device of a round:
//! 1. **Limits** ([`limits`]): memory, deadline, heat and battery bound the active layers. Arms outside are not looked at;
//!    where none is inside, the device gets the least dropout that is. A device without room for one layer is left out.
//! 2. **Policy** ([`policy`]): one of the arms inside.
//! 3. **Safety**: nobody explores after a divergence, a lost evaluation or a round with unstable links, nor does a device
//!    whose last orders came to nothing; and of those who would, only a share may ([`Bandit::explorers`]). Who may not gets
//!    the best known arm or, where none is known, the least dropout.
//!
//! Everything is a function of the seed and of what was told, so a journal replays to the same state.

pub mod arms;
mod learned;
pub mod limits;
pub mod policy;

#[cfg(test)]
mod tests;

pub use arms::{Arm, MAX_MEAN_RATE, MAX_RATE, Moment, Schedule, Shape, expected_active};
pub use limits::{Care, Facts, Limits, Load, Pace, Unfit};
pub use policy::Policy;

use learned::{Estimate, Expectation, Learned};
use policy::{Proposal, Question, best};
use serde::{Deserialize, Serialize};
use skiff_protocol::DeviceId;
use std::collections::BTreeMap;

/// The most arms that a bandit may have.
pub const MAX_ARMS: usize = 64;
/// So many orders in a row that came to nothing keep a device from exploring.
const FAILURES: u8 = 2;
/// A loss that is so many times the best one is a divergence.
const DIVERGED: f64 = 1.5;

/// Where rates come from.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Rates {
    /// The same arm for every device, within its limits.
    Fixed {
        /// Mean rate over the layers that may be dropped, 0 to [`MAX_MEAN_RATE`].
        mean: f32,
        /// How it is spread over depth.
        #[serde(default)]
        shape: Shape,
        /// How it changes over rounds.
        #[serde(default)]
        schedule: Schedule,
    },
    /// Chosen for each device and round.
    Bandit(Bandit),
}

/// A bandit's settings. Its arms are all combinations of means, shapes and schedules.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Bandit {
    /// Mean rates to choose from (default 0, 0.2, 0.35, 0.5).
    pub means: Vec<f32>,
    /// Shapes to choose from (default decreasing: docs/decisions/2026-11-27-lower-layers-first.md).
    pub shapes: Vec<Shape>,
    /// Schedules to choose from (default constant).
    pub schedules: Vec<Schedule>,
    /// How to choose (default epsilon-greedy).
    pub policy: Policy,
    /// Epsilon-greedy's probability of exploring, 0 to 1 (default 0.2).
    pub epsilon: f32,
    /// Epsilon-greedy compares so many arms at a time, 1 to [`MAX_ARMS`] (default 6).
    pub candidates: u32,
    /// Rewards of so many rounds count, 2 to 1000 (default 12).
    pub window: u32,
    /// The share of a round's devices that may explore, 0 to 1 (default 0.5).
    pub explorers: f32,
    /// What a round gained is measured by (default loss).
    pub gain: Gain,
    /// The examples that a device measures it on, before and after its training, 1 to 4096 (default 32).
    pub probe_examples: u32,
    /// The share of devices that measure it although they do not explore, 0 to 1 (default 0.3): measuring takes time, and what is
    /// known to be best needs less of it.
    pub measured: f32,
}

/// What a gain is measured by.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Gain {
    /// The fall of the mean loss: of few examples, it says more than the accuracy.
    #[default]
    Loss,
    /// The rise of the accuracy.
    Accuracy,
}

impl Default for Bandit {
    fn default() -> Self {
        Self {
            means: vec![0.0, 0.2, 0.35, 0.5],
            shapes: vec![Shape::Decreasing],
            schedules: vec![Schedule::Constant],
            policy: Policy::EpsilonGreedy,
            epsilon: 0.2,
            candidates: 6,
            window: 12,
            explorers: 0.5,
            gain: Gain::Loss,
            probe_examples: 32,
            measured: 0.3,
        }
    }
}

impl Default for Rates {
    fn default() -> Self {
        Self::Fixed { mean: 0.0, shape: Shape::Uniform, schedule: Schedule::Constant }
    }
}

impl Rates {
    /// Says what is wrong with the numbers.
    ///
    /// # Errors
    /// The first one out of range, by name, with the range.
    pub fn check(&self) -> Result<(), String> {
        let mean_fits = |mean: &f32| (0.0..=MAX_MEAN_RATE).contains(mean);
        let bandit = match self {
            Self::Fixed { mean, .. } if !mean_fits(mean) => {
                return Err(format!("rates.fixed.mean is {mean}, expected 0 to {MAX_MEAN_RATE}"));
            }
            Self::Fixed { .. } => return Ok(()),
            Self::Bandit(bandit) => bandit,
        };
        let Bandit { means, epsilon, candidates, window, explorers, probe_examples, measured, .. } = bandit;
        if let Some(mean) = means.iter().find(|mean| !mean_fits(mean)) {
            return Err(format!("rates.bandit.means has {mean}, expected 0 to {MAX_MEAN_RATE}"));
        }
        let arms = means.len() * bandit.shapes.len() * bandit.schedules.len();
        if !(1..=MAX_ARMS).contains(&arms) {
            return Err(format!(
                "rates.bandit: {arms} combinations of means, shapes and schedules, expected 1 to {MAX_ARMS}"
            ));
        }
        let share = |name: &str, share: f32| {
            let fits = (0.0..=1.0).contains(&share);
            if fits { Ok(()) } else { Err(format!("rates.bandit.{name} is {share}, expected 0 to 1")) }
        };
        share("epsilon", *epsilon)?;
        share("explorers", *explorers)?;
        share("measured", *measured)?;
        let whole = |name: &str, value: u32, least: u32, most: u32| {
            let fits = (least..=most).contains(&value);
            if fits { Ok(()) } else { Err(format!("rates.bandit.{name} is {value}, expected {least} to {most}")) }
        };
        whole("candidates", *candidates, 1, MAX_ARMS as u32)?;
        whole("window", *window, 2, 1000)?;
        whole("probe_examples", *probe_examples, 1, 4096)
    }

    /// The arms, in a fixed order. A mean of 0 is one arm: it has no shape and no schedule.
    #[must_use]
    pub fn arms(&self) -> Vec<Arm> {
        let mut arms = self.combinations();
        let nothing = |arm: &Arm| arm.mean <= 0.0;
        if let Some(first) = arms.iter().position(nothing) {
            let mut at = 0;
            arms.retain(|arm| {
                at += 1;
                at == first + 1 || !nothing(arm)
            });
        }
        arms
    }

    fn combinations(&self) -> Vec<Arm> {
        match self {
            Self::Fixed { mean, shape, schedule } => vec![Arm { mean: *mean, shape: *shape, schedule: *schedule }],
            Self::Bandit(Bandit { means, shapes, schedules, .. }) => {
                let of_mean = |&mean: &f32| {
                    let of_shape =
                        move |&shape: &Shape| schedules.iter().map(move |&schedule| Arm { mean, shape, schedule });
                    shapes.iter().flat_map(of_shape)
                };
                means.iter().flat_map(of_mean).collect()
            }
        }
    }

    /// Examples on which a device measures what its training gained in `round`; 0: it does not. Who explores always does.
    #[must_use]
    pub fn probe_examples(&self, seed: u64, round: u32, device: &DeviceId, choice: &Choice) -> u32 {
        match self {
            Self::Bandit(bandit) if choice.arm.is_some() => {
                let is_drawn = || draw(seed, "measure", round, device.as_str()) < f64::from(bandit.measured);
                if choice.explores || is_drawn() { bandit.probe_examples } else { 0 }
            }
            Self::Bandit(_) | Self::Fixed { .. } => 0,
        }
    }
}

/// One device's rates for one round, and why.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Choice {
    /// Rate of each layer.
    pub rates: Vec<f32>,
    /// So many layers run in any step at the most.
    pub most_active: u32,
    /// The bandit's arm; `None` where no arm was chosen.
    pub arm: Option<u32>,
    /// The class whose experience it adds to.
    pub class: String,
    /// Whether it was chosen to learn.
    pub explores: bool,
    /// For the journal and the operator.
    pub reason: String,
}

/// Chooses, and learns from rewards.
#[derive(Clone, PartialEq, Debug)]
pub struct Configurator {
    rates: Rates,
    arms: Vec<Arm>,
    seed: u64,
    layers: usize,
    rounds: u32,
    protected: Vec<u32>,
    learned: Learned,
    /// Orders in a row that came to nothing; devices without any are not in it.
    failures: BTreeMap<DeviceId, u8>,
    best_loss: Option<f64>,
    /// Why nobody explores: what the last evaluation and the last round told.
    diverged: Option<String>,
    unstable: Option<String>,
}

impl Configurator {
    /// A configurator for a run of `rounds` rounds that has seen nothing. `protected` layers always get rate 0.
    #[must_use]
    pub fn new(rates: Rates, seed: u64, layers: usize, rounds: u32, mut protected: Vec<u32>) -> Self {
        protected.sort_unstable();
        protected.dedup();
        let arms = rates.arms();
        let window = if let Rates::Bandit(bandit) = &rates { bandit.window } else { 1 };
        let learned = Learned::new(arms.len(), window);
        Self {
            rates,
            arms,
            seed,
            layers,
            rounds,
            protected,
            learned,
            failures: BTreeMap::new(),
            best_loss: None,
            diverged: None,
            unstable: None,
        }
    }

    /// What a device can bear.
    ///
    /// # Errors
    /// A device that cannot train.
    pub fn limits(&self, facts: &Facts, load: &Load) -> Result<Limits, Unfit> {
        Limits::of(facts, load, self.layers as u32, self.protected.len() as u32)
    }

    /// The choices for the devices of `round`, each with what is known of it and what it can bear.
    #[must_use]
    pub fn choose(&self, round: u32, devices: &BTreeMap<DeviceId, (Facts, Limits)>) -> BTreeMap<DeviceId, Choice> {
        let at = Moment { round, rounds: self.rounds };
        let spread: Vec<Vec<f32>> = self.arms.iter().map(|arm| arm.rates(at, self.layers, &self.protected)).collect();
        let classes: BTreeMap<&str, (Expectation, Vec<usize>)> = devices
            .values()
            .map(|(facts, _)| facts.class.as_str())
            .collect::<std::collections::BTreeSet<_>>()
            .into_iter()
            .map(|class| (class, (self.learned.expectation(class), self.compared(class))))
            .collect();
        let drawn: Vec<(&DeviceId, &Facts, &Limits, Drawn)> = devices
            .iter()
            .map(|(device, (facts, limits))| {
                let (expected, compared) = &classes[facts.class.as_str()];
                (device, facts, limits, self.draw(device, round, limits, expected, compared, &spread))
            })
            .collect();
        let explorers = self.explorers(round, &drawn);
        let chosen = |(device, facts, limits, drawn): (&DeviceId, &Facts, &Limits, Drawn)| {
            let choice = self.settle(device, facts, limits, drawn, &explorers, &spread);
            (device.clone(), choice)
        };
        drawn.into_iter().map(chosen).collect()
    }

    /// Tells what an arm brought in `round`: a gain over a round that took the device `seconds`.
    pub fn reward(&mut self, device: &DeviceId, choice: &Choice, round: u32, gain: f64, seconds: f64) {
        if let (Rates::Bandit(_), Some(arm)) = (&self.rates, choice.arm) {
            self.learned.add(device, &choice.class, arm as usize, round, gain / seconds.max(1e-3));
        }
    }

    /// What `probe` says was gained, by the measure that was set.
    #[must_use]
    pub fn gain(&self, probe: &skiff_protocol::messages::Probe) -> f64 {
        let gain = if let Rates::Bandit(bandit) = &self.rates { bandit.gain } else { Gain::Loss };
        match gain {
            Gain::Loss => f64::from(probe.loss_before) - f64::from(probe.loss_after),
            Gain::Accuracy => {
                (f64::from(probe.correct_after) - f64::from(probe.correct_before)) / f64::from(probe.examples.max(1))
            }
        }
    }

    /// Tells the mean loss that an evaluation found; `None`: it was ordered, and nobody reported.
    pub fn evaluated(&mut self, loss: Option<f64>) {
        self.diverged = match (loss, self.best_loss) {
            (None, _) => Some("the last evaluation was lost".to_owned()),
            (Some(loss), _) if !loss.is_finite() => Some("the loss is not finite".to_owned()),
            (Some(loss), Some(best)) if loss > DIVERGED * best => {
                Some(format!("the loss rose to {loss:.3}, it was {best:.3}"))
            }
            (Some(_), _) => None,
        };
        if let Some(loss) = loss.filter(|loss| loss.is_finite()) {
            self.best_loss = Some(self.best_loss.map_or(loss, |best| best.min(loss)));
        }
    }

    /// Tells how a round of training ended: who delivered, whose order came to nothing, and how many updates were wanted.
    pub fn round_closed<'a>(
        &mut self,
        round: u32,
        delivered: impl Iterator<Item = &'a DeviceId>,
        failed: impl Iterator<Item = &'a DeviceId>,
        wanted: usize,
    ) {
        let mut updates = 0;
        for device in delivered {
            updates += 1;
            self.failures.remove(device);
        }
        for device in failed {
            let failures = self.failures.entry(device.clone()).or_default();
            *failures = failures.saturating_add(1);
        }
        let is_unstable = 3 * updates < 2 * wanted;
        self.unstable = is_unstable.then(|| format!("round {round} brought {updates} of {wanted} updates"));
        if let Rates::Bandit(bandit) = &self.rates
            && round.is_multiple_of((bandit.window / 2).max(1))
        {
            self.learned.refresh(round, bandit.candidates as usize, self.seed);
        }
    }

    /// The arms that a class compares at the moment.
    fn compared(&self, class: &str) -> Vec<usize> {
        match &self.rates {
            Rates::Bandit(bandit) if bandit.policy == Policy::EpsilonGreedy => {
                self.learned.candidates(class, bandit.candidates as usize, self.seed)
            }
            Rates::Bandit(_) | Rates::Fixed { .. } => (0..self.arms.len()).collect(),
        }
    }

    fn draw(
        &self,
        device: &DeviceId,
        round: u32,
        limits: &Limits,
        expected: &Expectation,
        compared: &[usize],
        spread: &[Vec<f32>],
    ) -> Drawn {
        let allowed = |arm: &usize| limits.allow(&spread[*arm]);
        let with_estimate = |arm: usize| (arm, self.learned.estimate(device, expected, arm));
        let mut arms: Vec<(usize, Estimate)> = compared.iter().copied().filter(allowed).map(with_estimate).collect();
        if arms.is_empty() {
            // No candidate is within the limits; some other arm may be.
            arms = (0..self.arms.len()).filter(allowed).map(with_estimate).collect();
        }
        if arms.is_empty() {
            return Drawn { proposal: None, fallback: None };
        }
        let known: Vec<(usize, Estimate)> =
            arms.iter().copied().filter(|(_, estimate)| estimate.rewards > 0.0).collect();
        let fallback = if known.is_empty() {
            let least = best(&arms, |(arm, _)| expected_active(&spread[*arm]));
            (least, Estimate::default())
        } else {
            let arm = best(&known, |(_, estimate)| estimate.mean);
            known.iter().copied().find(|(known, _)| *known == arm).unwrap_or((arm, Estimate::default()))
        };
        let proposal = match &self.rates {
            Rates::Fixed { .. } => Proposal { arm: 0, explores: false, reason: "" },
            Rates::Bandit(Bandit { policy, epsilon, window, .. }) => policy.propose(&Question {
                seed: self.seed,
                round,
                device,
                epsilon: *epsilon,
                window: *window,
                arms: &arms,
                deviation: expected.deviation,
            }),
        };
        let estimate = self.learned.estimate(device, expected, proposal.arm);
        Drawn { proposal: Some((proposal, estimate)), fallback: Some(fallback) }
    }

    /// Who of those that would explore may.
    fn explorers<'a>(
        &self,
        round: u32,
        drawn: &[(&'a DeviceId, &Facts, &Limits, Drawn)],
    ) -> Result<std::collections::BTreeSet<&'a DeviceId>, &str> {
        if let Some(reason) = self.diverged.as_deref().or(self.unstable.as_deref()) {
            return Err(reason);
        }
        let share = if let Rates::Bandit(bandit) = &self.rates { bandit.explorers } else { 0.0 };
        let most = (f64::from(share) * drawn.len() as f64).ceil() as usize;
        let wants = |drawn: &Drawn| drawn.proposal.as_ref().is_some_and(|(proposal, _)| proposal.explores);
        let is_reliable = |device: &DeviceId| self.failures.get(device).is_none_or(|&failures| failures < FAILURES);
        let mut willing: Vec<(u64, &DeviceId)> = drawn
            .iter()
            .filter(|(device, _, _, drawn)| wants(drawn) && is_reliable(device))
            .map(|(device, ..)| (draw(self.seed, "budget", round, device.as_str()).to_bits(), *device))
            .collect();
        willing.sort_unstable();
        Ok(willing.into_iter().take(most).map(|(_, device)| device).collect())
    }

    fn settle(
        &self,
        device: &DeviceId,
        facts: &Facts,
        limits: &Limits,
        drawn: Drawn,
        explorers: &Result<std::collections::BTreeSet<&DeviceId>, &str>,
        spread: &[Vec<f32>],
    ) -> Choice {
        let class = facts.class.clone();
        let most_active = limits.most_active;
        let within = |reason: String| if limits.why.is_empty() { reason } else { format!("{reason}; {}", limits.why) };
        let (Some((proposal, estimate)), Some((fallback, known))) = (drawn.proposal, drawn.fallback) else {
            let rates = limits.boundary(self.layers, &self.protected);
            let reason = within("the least dropout within its limits, as no configuration is".to_owned());
            return Choice { rates, most_active, arm: None, class, explores: false, reason };
        };
        if let Rates::Fixed { .. } = self.rates {
            let reason = within(format!("fixed: {}", self.arms[0]));
            return Choice { rates: spread[0].clone(), most_active, arm: None, class, explores: false, reason };
        }
        let told = |arm: usize, why: &str, estimate: Estimate| {
            let worth = match estimate.rewards > 0.0 {
                true => format!(", {:.3e} a second by {:.0} of its class", estimate.mean, estimate.rewards),
                false => String::new(),
            };
            format!("{}: {why}{worth}", self.arms[arm])
        };
        let (arm, explores, reason) = match explorers {
            _ if !proposal.explores => (proposal.arm, false, told(proposal.arm, proposal.reason, estimate)),
            Ok(explorers) if explorers.contains(device) => {
                (proposal.arm, true, told(proposal.arm, proposal.reason, estimate))
            }
            Ok(_) if self.failures.get(device).is_some_and(|&failures| failures >= FAILURES) => {
                let failures = self.failures.get(device).copied().unwrap_or(0);
                let why = format!("does not explore, as its last {failures} orders came to nothing");
                (fallback, false, told(fallback, &why, known))
            }
            Ok(_) => (fallback, false, told(fallback, "does not explore, as enough others do", known)),
            Err(why) => (fallback, false, told(fallback, &format!("nobody explores, as {why}"), known)),
        };
        Choice {
            rates: spread[arm].clone(),
            most_active,
            arm: Some(arm as u32),
            class,
            explores,
            reason: within(reason),
        }
    }
}

/// What a device would get, and what it gets where it must not explore; neither where no arm is within its limits.
struct Drawn {
    proposal: Option<(Proposal, Estimate)>,
    fallback: Option<(usize, Estimate)>,
}

/// A number in 0..1 that depends on nothing but its arguments.
#[must_use]
pub fn draw(seed: u64, purpose: &str, round: u32, of: &str) -> f64 {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&seed.to_le_bytes()).update(&round.to_le_bytes());
    hasher.update(purpose.as_bytes()).update(&[0]).update(of.as_bytes());
    let mut bytes = [0; 8];
    hasher.finalize_xof().fill(&mut bytes);
    (u64::from_le_bytes(bytes) >> 11) as f64 / (1u64 << 53) as f64
}
