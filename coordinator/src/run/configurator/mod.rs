//! Choosing each device's dropout rates: fixed by the operator, or by a bandit that learns which configuration pays.
//!
//! An [`Arm`] is a mean rate, its shape over depth and its schedule over rounds. What an arm is worth on a device is what a
//! round with it gained, by the device's own measurement of the model before and after its training, per second (DropPEFT,
//! arXiv:2503.10217, "online configurator"): of the round, as everybody in it waits for the slowest ([`tempo`]). All
//! devices share what they learn, a class and each device keep their own corrections; older rounds than a window are forgotten, as
//! rewards shrink while training converges. How long an arm takes is not learned but follows from the device's pace.
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
mod tempo;

#[cfg(test)]
mod tests;

pub use arms::{Arm, MAX_MEAN_RATE, MAX_RATE, Moment, Schedule, Shape, expected_active};
pub use limits::{Care, Facts, Limits, Load, Pace, Unfit};
pub use policy::Policy;

use crate::run::RunSettings;
use crate::run::draw::draw;
use learned::{Expectation, Learned};
use policy::{Offer, Proposal, Question, best, favourite, is_among};
use serde::{Deserialize, Serialize};
use skiff_protocol::DeviceId;
use std::collections::{BTreeMap, BTreeSet};
use tempo::{Run, Tempo};

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
    /// Epsilon-greedy's share of rounds in which devices explore, 0 to 1 (default 0.2).
    pub epsilon: f32,
    /// Epsilon-greedy compares so many arms at a time, 1 to [`MAX_ARMS`] (default 6).
    pub candidates: u32,
    /// Rewards of so many rounds count, 2 to 1000 (default 20).
    pub window: u32,
    /// The share of a round's devices that may explore, 0 to 1 (default 0.5).
    pub explorers: f32,
    /// What a round gained is measured by (default loss).
    pub gain: Gain,
    /// The examples that a device measures it on, before and after its training, 1 to 4096 (default 32).
    pub probe_examples: u32,
    /// The share of devices that measure it although they do not explore, 0 to 1 (default 0.5): of those that have the time while
    /// others still train; where nobody has, in that share of rounds everybody.
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
            window: 20,
            explorers: 0.5,
            gain: Gain::Loss,
            probe_examples: 32,
            measured: 0.5,
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
    /// It measures what it gains on so many examples; 0: it does not.
    pub probe_examples: u32,
    /// For the journal and the operator.
    pub reason: String,
}

/// What a round with an arm is expected to gain.
#[derive(Clone, Copy, PartialEq, Debug, Serialize)]
pub struct Expected {
    /// Which arm.
    #[serde(flatten)]
    pub arm: Arm,
    /// By the run's measure; `None` where nobody measured it lately.
    pub gain: Option<f64>,
    /// So many measurements of the last rounds, of all devices, are behind it.
    pub measurements: u32,
}

/// Chooses, and learns from rewards.
#[derive(Clone, PartialEq, Debug)]
pub struct Configurator {
    rates: Rates,
    arms: Vec<Arm>,
    seed: u64,
    layers: usize,
    rounds: u32,
    steps: u32,
    batch: u32,
    asynchronous: bool,
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
    /// A configurator that has seen nothing, for a run with those settings on a model of `layers` layers.
    #[must_use]
    pub fn new(settings: &RunSettings, layers: usize) -> Self {
        let RunSettings { seed, rounds, steps, batch, asynchronous, .. } = *settings;
        let (rates, mut protected) = (settings.rates.clone(), settings.protected.clone());
        protected.sort_unstable();
        protected.dedup();
        let arms = rates.arms();
        let window = if let Rates::Bandit(bandit) = &rates { bandit.window } else { 1 };
        let whole = Moment { round: rounds, rounds };
        let active = |arm: &Arm| {
            let constant = Arm { schedule: Schedule::Constant, ..*arm };
            expected_active(&constant.rates(whole, layers, &protected))
        };
        let learned = Learned::new(arms.iter().map(active).collect(), window);
        Self {
            rates,
            arms,
            seed,
            layers,
            rounds,
            steps,
            batch,
            asynchronous,
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
        let Rates::Bandit(bandit) = &self.rates else {
            let fixed = |(device, (facts, limits)): (&DeviceId, &(Facts, Limits))| {
                let reason = || format!("fixed: {}", self.arms[0]);
                let settled = limits.allow(&spread[0]).then(|| Settled { arm: 0, explores: false, reason: reason() });
                (device.clone(), self.choice(facts, limits, settled, 0, &spread))
            };
            return devices.iter().map(fixed).collect();
        };
        let typical = self.learned.typical_gain();
        let known = self.known(bandit, devices, &spread, typical);
        let runs: Vec<Vec<Run>> = known.iter().map(|known| known.runs.clone()).collect();
        let mut tempo = if self.asynchronous { Tempo::own() } else { Tempo::of_round(&runs, typical) };
        let propose = |known: &Known<'_>| {
            let arms = known.offers(tempo);
            let Bandit { policy, epsilon, window, .. } = *bandit;
            let question = Question { seed: self.seed, round, device: known.device, epsilon, window, arms: &arms };
            (!arms.is_empty()).then(|| policy.propose(&question))
        };
        let proposals: Vec<Option<Proposal>> = known.iter().map(propose).collect();
        let explorers = self.explorers(round, bandit, &known, &proposals);
        for (known, proposal) in known.iter().zip(&proposals) {
            if explorers.as_ref().is_ok_and(|explorers| explorers.contains(known.device)) {
                // The others use the time that an explorer takes.
                tempo = tempo.with(proposal.as_ref().and_then(|proposal| known.run(proposal.arm)));
            }
        }
        let settle = |(known, proposal): (&Known<'_>, Option<Proposal>)| {
            proposal.map(|proposal| self.settle(known, proposal, &explorers, tempo))
        };
        let settled: Vec<Option<Settled>> = known.iter().zip(proposals).map(settle).collect();
        let probes = self.probes(round, bandit, &known, &settled, tempo);
        let choice = |((known, settled), probe): ((&Known<'_>, Option<Settled>), u32)| {
            (known.device.clone(), self.choice(known.facts, known.limits, settled, probe, &spread))
        };
        known.iter().zip(settled).zip(probes).map(choice).collect()
    }

    /// The examples on which each device measures its gain: explorers, and of the others a share of those who have the time; where
    /// nobody has, everybody in a share of rounds, as they hold each other up only once then.
    fn probes(
        &self,
        round: u32,
        bandit: &Bandit,
        known: &[Known<'_>],
        settled: &[Option<Settled>],
        tempo: Tempo,
    ) -> Vec<u32> {
        let has_time = |(known, settled): (&Known<'_>, &Option<Settled>)| {
            let run = settled.as_ref().and_then(|settled| known.run(settled.arm));
            run.is_some_and(|run| tempo.spares(run, known.probe))
        };
        let has_time: Vec<bool> = known.iter().zip(settled).map(has_time).collect();
        let in_all = !has_time.contains(&true) && is_among(bandit.measured, None, self.seed, round);
        let measures = |((known, settled), has_time): ((&Known<'_>, &Option<Settled>), bool)| {
            let Some(Settled { explores, .. }) = settled else { return 0 };
            let is_drawn = draw(self.seed, "measure", round, known.device.as_str()) < f64::from(bandit.measured);
            if *explores || in_all || (has_time && is_drawn) { bandit.probe_examples } else { 0 }
        };
        known.iter().zip(settled).zip(has_time).map(measures).collect()
    }

    /// Tells what an arm brought in `round`, which took `seconds`.
    pub fn reward(&mut self, device: &DeviceId, choice: &Choice, round: u32, gain: f64, seconds: f64) {
        if let (Rates::Bandit(_), Some(arm)) = (&self.rates, choice.arm) {
            self.learned.add(device, &choice.class, arm as usize, round, gain, seconds);
        }
    }

    /// What is expected of every arm on a device of that class, by what is known now; empty where rates are fixed.
    #[must_use]
    pub fn expected(&self, device: &DeviceId, class: &str) -> Vec<Expected> {
        if matches!(self.rates, Rates::Fixed { .. }) {
            return Vec::new();
        }
        let expected = self.learned.expectation(class);
        let of = |(arm, named): (usize, &Arm)| {
            let estimate = self.learned.estimate(device, &expected, arm);
            let gain = (estimate.rewards > 0.0).then_some(estimate.gain);
            Expected { arm: *named, gain, measurements: estimate.rewards as u32 }
        };
        self.arms.iter().enumerate().map(of).collect()
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

    /// What is known of each device: its arms within its limits, with their gains and their time.
    fn known<'a>(
        &self,
        bandit: &Bandit,
        devices: &'a BTreeMap<DeviceId, (Facts, Limits)>,
        spread: &[Vec<f32>],
        typical: f64,
    ) -> Vec<Known<'a>> {
        let active: Vec<f64> = spread.iter().map(|rates| expected_active(rates)).collect();
        // An example is evaluated twice, each time in about a third of what training on it takes.
        let probed = 2.0 / 3.0 * f64::from(bandit.probe_examples) / f64::from(self.batch.max(1));
        let names: BTreeSet<&str> = devices.values().map(|(facts, _)| facts.class.as_str()).collect();
        let expected = |class| (class, (self.learned.expectation(class), self.compared(class)));
        let classes: BTreeMap<&str, (Expectation, Vec<usize>)> = names.into_iter().map(expected).collect();
        let known = |(device, (facts, limits)): (&'a DeviceId, &'a (Facts, Limits))| {
            let (expected, compared) = &classes[facts.class.as_str()];
            let allowed = |arm: &usize| limits.allow(&spread[*arm]);
            let mut allowed_arms: Vec<usize> = compared.iter().copied().filter(allowed).collect();
            if allowed_arms.is_empty() {
                // No candidate is within the limits; some other arm may be.
                allowed_arms = (0..self.arms.len()).filter(allowed).collect();
            }
            let seconds = |active| facts.pace.and_then(|pace| pace.seconds(self.steps, active)).unwrap_or(0.0);
            let is_new = expected.arms.iter().all(|arm| arm.rewards <= 0.0);
            let of_layers = |arm: usize| typical * active[arm] / self.layers as f64;
            let (arms, runs): (Vec<Offer>, Vec<Run>) = allowed_arms
                .into_iter()
                .map(|arm| {
                    let estimate = self.learned.estimate(device, expected, arm);
                    let gain = if is_new { of_layers(arm) } else { estimate.gain };
                    let (rewards, tried, deviation) = (estimate.rewards, estimate.tried, expected.deviation);
                    let seconds = seconds(active[arm].min(limits.most_active.into()));
                    let active = active[arm];
                    let offer =
                        Offer { arm, rewards, tried, worth: gain, deviation, active, seconds: 0.0, is_spare: true };
                    (offer, Run { gain, seconds })
                })
                .unzip();
            let runs =
                if arms.is_empty() { vec![Run { gain: typical, seconds: seconds(limits.mean_active) }] } else { runs };
            let whole = facts.pace.map(|pace| Pace { other_ms: 0.0, ..pace });
            let whole = whole.and_then(|pace| pace.seconds(1, self.layers as f64)).unwrap_or(0.0);
            Known { device, facts, limits, arms, runs, probe: whole * probed }
        };
        devices.iter().map(known).collect()
    }

    /// Who of those that would explore may.
    fn explorers<'a>(
        &self,
        round: u32,
        bandit: &Bandit,
        known: &[Known<'a>],
        proposals: &[Option<Proposal>],
    ) -> Result<BTreeSet<&'a DeviceId>, &str> {
        if let Some(reason) = self.diverged.as_deref().or(self.unstable.as_deref()) {
            return Err(reason);
        }
        let most = (f64::from(bandit.explorers) * known.len() as f64).ceil() as usize;
        let is_reliable = |device: &DeviceId| self.failures.get(device).is_none_or(|&failures| failures < FAILURES);
        let mut willing: Vec<(u64, &'a DeviceId)> = known
            .iter()
            .zip(proposals)
            .filter(|(known, proposal)| {
                proposal.as_ref().is_some_and(|proposal| proposal.explores) && is_reliable(known.device)
            })
            .map(|(known, _)| (draw(self.seed, "budget", round, known.device.as_str()).to_bits(), known.device))
            .collect();
        willing.sort_unstable();
        Ok(willing.into_iter().take(most).map(|(_, device)| device).collect())
    }

    /// The arm that a device gets in a round that takes `seconds` without it, whether it explores, and why.
    fn settle(
        &self,
        known: &Known<'_>,
        proposal: Proposal,
        explorers: &Result<BTreeSet<&DeviceId>, &str>,
        tempo: Tempo,
    ) -> Settled {
        let told = |arm: usize, why: &str| {
            let offer = known.arms.iter().find(|offer| offer.arm == arm && offer.rewards > 0.0);
            let gain = offer.map(|offer| format!("gain {:.4} by {:.0} measurements", offer.worth, offer.rewards));
            let facts: Vec<String> = tempo.told().into_iter().chain(gain).collect();
            let facts = if facts.is_empty() { String::new() } else { format!(" ({})", facts.join(", ")) };
            format!("{}: {why}{facts}", self.arms[arm])
        };
        if proposal.explores && explorers.as_ref().is_ok_and(|explorers| explorers.contains(known.device)) {
            let Proposal { arm, reason, .. } = proposal;
            return Settled { arm, explores: true, reason: told(arm, reason) };
        }
        let offers = known.offers(tempo);
        let tried: Vec<Offer> = offers.iter().copied().filter(|offer| offer.rewards > 0.0).collect();
        let arm = match tried.is_empty() {
            true => best(&offers, |offer| offer.active),
            false => favourite(&tried),
        };
        let why = match explorers {
            _ if !proposal.explores => proposal.reason.to_owned(),
            Err(why) => format!("nobody explores, as {why}"),
            Ok(_) => match self.failures.get(known.device) {
                Some(failures) if *failures >= FAILURES => {
                    format!("does not explore, as its last {failures} orders came to nothing")
                }
                Some(_) | None => "does not explore, as enough others do".to_owned(),
            },
        };
        Settled { arm, explores: false, reason: told(arm, &why) }
    }

    /// A choice of an arm; the least dropout where there is none within the limits.
    fn choice(
        &self,
        facts: &Facts,
        limits: &Limits,
        settled: Option<Settled>,
        probe_examples: u32,
        spread: &[Vec<f32>],
    ) -> Choice {
        let (class, most_active) = (facts.class.clone(), limits.most_active);
        let within = |reason: String| if limits.why.is_empty() { reason } else { format!("{reason}; {}", limits.why) };
        let Some(Settled { arm, explores, reason }) = settled else {
            let rates = limits.boundary(self.layers, &self.protected);
            let reason = within("the least dropout within its limits, as no configuration is".to_owned());
            return Choice { rates, most_active, arm: None, class, explores: false, probe_examples: 0, reason };
        };
        let is_learned = matches!(self.rates, Rates::Bandit(_));
        let rates = spread[arm].clone();
        Choice {
            rates,
            most_active,
            arm: is_learned.then_some(arm as u32),
            class,
            explores,
            probe_examples,
            reason: within(reason),
        }
    }
}

/// The arm that a device gets, whether it explores, and why.
struct Settled {
    arm: usize,
    explores: bool,
    reason: String,
}

/// A device of a round, with the arms that it may have; none where its limits allow none.
struct Known<'a> {
    device: &'a DeviceId,
    facts: &'a Facts,
    limits: &'a Limits,
    /// Worth their gain alone.
    arms: Vec<Offer>,
    /// Of each arm; without arms, of the least dropout.
    runs: Vec<Run>,
    /// Seconds that measuring takes.
    probe: f64,
}

impl Known<'_> {
    fn run(&self, arm: usize) -> Option<Run> {
        self.arms.iter().zip(&self.runs).find(|(offer, _)| offer.arm == arm).map(|(_, &run)| run)
    }

    /// The arms by what they are worth to the round.
    fn offers(&self, tempo: Tempo) -> Vec<Offer> {
        self.arms.iter().zip(&self.runs).map(|(&offer, &run)| tempo.offer(offer, run, self.probe)).collect()
    }
}
