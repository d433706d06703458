//! Finds the arms that each device of a round may get: the arms within its limits, with their expected gain and time.

use super::knowledge::Knowledge;
use super::learned::Expectation;
use super::limits::{Facts, Limits, Pace};
use super::policy::Policy;
use super::rates::DropoutRates;
use super::settings::Bandit;
use super::tempo::{Offer, Prospect, Run, Tempo};
use skiff_protocol::DeviceId;
use std::collections::BTreeMap;

/// Options of one device in a round.
pub(super) struct Options<'a> {
    pub(super) device: &'a DeviceId,
    pub(super) facts: &'a Facts,
    pub(super) limits: &'a Limits,
    /// The arms within its limits; may be empty.
    pub(super) prospects: Vec<Prospect>,
    /// The run with the least dropout that the limits allow, for a device without any arm.
    least_dropout: Run,
    /// Seconds that measuring its gain takes.
    pub(super) probe_seconds: f64,
}

impl Options<'_> {
    /// Lists the possible runs of the device.
    pub(super) fn runs(&self) -> Vec<Run> {
        if self.prospects.is_empty() {
            return vec![self.least_dropout];
        }
        self.prospects.iter().map(|prospect| prospect.run).collect()
    }

    /// Rates every prospect in a round with that tempo.
    pub(super) fn offers(&self, tempo: Tempo) -> Vec<Offer> {
        self.prospects.iter().map(|&prospect| tempo.offer(prospect, self.probe_seconds)).collect()
    }
}

/// Finds the options of every device of one round.
pub(super) struct Finder<'a> {
    known: &'a Knowledge,
    bandit: &'a Bandit,
    /// Rates of each arm in this round.
    arm_rates: &'a [DropoutRates],
    /// Average number of layers that run, for each arm.
    active_layers: Vec<f64>,
    typical_gain: f64,
    classes: BTreeMap<&'a str, ClassView>,
}

/// Expectations of a class of devices, and the arms that it compares.
struct ClassView {
    expectation: Expectation,
    compared: Vec<usize>,
}

impl ClassView {
    fn of(class: &str, known: &Knowledge, bandit: &Bandit) -> Self {
        let compared = match bandit.policy {
            Policy::EpsilonGreedy => known.learned.candidates(class, bandit.candidates as usize, known.settings.seed),
            Policy::Ucb | Policy::Thompson => (0..known.arms.len()).collect(),
        };
        Self { expectation: known.learned.expectation(class), compared }
    }
}

impl<'a> Finder<'a> {
    /// Prepares a finder for `devices`: looks up once what each of their classes expects.
    pub(super) fn new(
        known: &'a Knowledge,
        bandit: &'a Bandit,
        arm_rates: &'a [DropoutRates],
        devices: &'a BTreeMap<DeviceId, (Facts, Limits)>,
    ) -> Self {
        let mut classes = BTreeMap::new();
        for (facts, _) in devices.values() {
            let class = facts.class.as_str();
            classes.entry(class).or_insert_with(|| ClassView::of(class, known, bandit));
        }
        Self {
            known,
            bandit,
            arm_rates,
            active_layers: arm_rates.iter().map(DropoutRates::expected_active).collect(),
            typical_gain: known.learned.typical_gain(),
            classes,
        }
    }

    /// Finds a device's options.
    pub(super) fn options(&self, device: &'a DeviceId, facts: &'a Facts, limits: &'a Limits) -> Options<'a> {
        let arms = self.allowed_arms(facts, limits).into_iter();
        Options {
            device,
            facts,
            limits,
            prospects: arms.map(|arm| self.prospect(device, facts, limits, arm)).collect(),
            least_dropout: Run { gain: self.typical_gain, seconds: self.seconds(facts, limits.mean_active) },
            probe_seconds: self.probe_seconds(facts),
        }
    }

    /// Lists the arms within the limits: only the arms that the class compares or, if none of these is within the limits, all
    /// arms.
    fn allowed_arms(&self, facts: &Facts, limits: &Limits) -> Vec<usize> {
        let is_allowed = |arm: &usize| limits.allow(&self.arm_rates[*arm]);
        let compared = &self.classes[facts.class.as_str()].compared;
        let allowed: Vec<usize> = compared.iter().copied().filter(is_allowed).collect();
        if allowed.is_empty() { (0..self.arm_rates.len()).filter(is_allowed).collect() } else { allowed }
    }

    /// Returns the prospect of an arm on a device. Until its class has measurements, the gain is assumed to grow with the active
    /// layers.
    fn prospect(&self, device: &DeviceId, facts: &Facts, limits: &Limits, arm: usize) -> Prospect {
        let expectation = &self.classes[facts.class.as_str()].expectation;
        let estimate = self.known.learned.estimate(device, expectation, arm);
        let active_layers = self.active_layers[arm];
        let gain = match expectation.is_empty() {
            true => self.typical_gain * active_layers / self.known.settings.layers as f64,
            false => estimate.gain,
        };
        let seconds = self.seconds(facts, active_layers.min(limits.most_active.into()));
        Prospect {
            arm,
            run: Run { gain, seconds },
            deviation: expectation.deviation,
            measurements: estimate.measurements,
            tried: estimate.tried,
            active_layers,
        }
    }

    /// Returns the duration of a round on the device, in seconds; 0 if its pace is unknown.
    fn seconds(&self, facts: &Facts, active_layers: f64) -> f64 {
        facts.pace.and_then(|pace| pace.seconds(self.known.settings.steps, active_layers)).unwrap_or(0.0)
    }

    /// Returns the seconds that measuring the gain takes: each example is evaluated twice, at about a third of the cost of a
    /// training step with all layers.
    fn probe_seconds(&self, facts: &Facts) -> f64 {
        let settings = &self.known.settings;
        let steps = 2.0 / 3.0 * f64::from(self.bandit.probe_examples) / f64::from(settings.batch.max(1));
        let step_only = facts.pace.map(|pace| Pace { other_ms: 0.0, ..pace });
        step_only.and_then(|pace| pace.seconds(1, settings.layers as f64)).unwrap_or(0.0) * steps
    }
}
