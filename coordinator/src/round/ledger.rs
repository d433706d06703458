//! What the journal's facts add up to. Live decisions and a replay both change it through [`Ledger::apply`] alone.

use super::record::{Entry, Evaluation, Record, Start};
use crate::configurator::{Choice, Configurator};
use crate::progress::RoundProgress;
use skiff_protocol::messages::TrainReport;
use skiff_protocol::{DeviceId, Digest};
use std::collections::{BTreeMap, BTreeSet};

/// The durable state of a run.
#[derive(Clone, PartialEq, Debug)]
pub struct Ledger {
    /// What the run is about.
    pub start: Start,
    /// When it started.
    pub started_ms: u64,
    /// When it ended, or the last thing happened.
    pub last_ms: u64,
    /// The present round; 0 before the first.
    pub round: u32,
    /// What it is doing.
    pub phase: Phase,
    /// When the phase began, or was resumed.
    pub phase_ms: u64,
    /// The last order's epoch. Orders have even epochs; the one after an order's is for stopping it.
    pub epoch: u64,
    /// The global weights.
    pub weights: Digest,
    /// Chooses rates; knows the rewards so far.
    pub configurator: Configurator,
    /// The devices of the last order.
    pub selected: BTreeSet<DeviceId>,
    /// Every closed round.
    pub closed: Vec<RoundProgress>,
    /// What each device did in the run.
    pub totals: BTreeMap<DeviceId, Totals>,
    /// Accuracy of the initial weights.
    pub accuracy_before: Option<f64>,
    /// The last accuracy found.
    pub accuracy: Option<f64>,
    /// Accuracy found by the evaluation that ended the run.
    pub accuracy_after: Option<f64>,
    /// Arms whose reward the next evaluation tells.
    unrewarded: Vec<Pulled>,
    /// The last evaluation, where anything was evaluated.
    measured: Option<Measured>,
}

/// What a run is doing.
#[derive(Clone, PartialEq, Debug)]
pub enum Phase {
    /// Waits for devices, to evaluate or to train.
    Gather(Purpose),
    /// Devices train.
    Train(Training),
    /// The updates are being merged.
    Merge(Training),
    /// Devices evaluate: so many examples each.
    Evaluate(BTreeMap<DeviceId, u64>),
    /// Every round is closed; the run ends.
    Done,
    /// The run ended; stopped, and why, or completed.
    Ended(Option<String>),
}

/// What devices are gathered for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Purpose {
    /// A round of training.
    Train,
    /// An evaluation.
    Evaluate,
}

/// A round of training as far as it has come.
#[derive(Clone, PartialEq, Debug)]
pub struct Training {
    /// When it was ordered.
    pub started_ms: u64,
    /// What each device is to do.
    pub choices: BTreeMap<DeviceId, Choice>,
    /// What was delivered.
    pub updates: BTreeMap<DeviceId, StoredUpdate>,
    /// Who will not deliver, and why.
    pub out: BTreeMap<DeviceId, String>,
}

/// An update that is stored.
#[derive(Clone, PartialEq, Debug)]
pub struct StoredUpdate {
    /// The blob.
    pub update: Digest,
    /// What the device says of it.
    pub report: TrainReport,
    /// When it was stored.
    pub stored_ms: u64,
}

/// What a device did in a run.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Totals {
    /// Updates stored.
    pub updates: u32,
    /// Steps trained.
    pub steps: u64,
    /// Active layers, summed over the steps.
    pub active_layers: f64,
    /// Largest resident memory reported with an update, in bytes.
    pub peak_rss_bytes: u64,
}

impl Totals {
    /// Active layers, mean over the steps.
    #[must_use]
    pub fn mean_active_layers(&self) -> Option<f32> {
        (self.steps > 0).then(|| (self.active_layers / self.steps as f64) as f32)
    }
}

#[derive(Clone, PartialEq, Debug)]
struct Pulled {
    device: DeviceId,
    arm: u32,
    seconds: f64,
}

/// An accuracy may be compared with another one where so large a share of the examples is in both.
const COMPARABLE_SHARE: f64 = 0.9;

/// An evaluation, and what was ordered for it.
#[derive(Clone, PartialEq, Debug)]
struct Measured {
    accuracy: f64,
    examples: u64,
    ordered: BTreeMap<DeviceId, u64>,
}

impl Measured {
    fn of(evaluation: &Evaluation, ordered: BTreeMap<DeviceId, u64>) -> Option<Self> {
        evaluation.accuracy().map(|accuracy| Self { accuracy, examples: evaluation.examples, ordered })
    }

    /// True where both rest on the same examples, but for a tenth. The first and the last evaluation of a run may be of
    /// more examples than the others, and devices come and go: the difference in accuracy would be that of the examples.
    ///
    /// A device evaluates the first of its examples, so of two orders it has the smaller one in common. Who did not
    /// report is not known: every missing example is taken for one that would have been common.
    fn is_comparable(&self, other: &Self) -> bool {
        let missing = |of: &Self| of.ordered.values().sum::<u64>().saturating_sub(of.examples);
        let common = |(device, examples): (&DeviceId, &u64)| other.ordered.get(device).map_or(0, |o| *examples.min(o));
        let common: u64 = self.ordered.iter().map(common).sum();
        let common = common.saturating_sub(missing(self) + missing(other));
        common as f64 >= COMPARABLE_SHARE * self.examples.max(other.examples) as f64
    }
}

/// A journal whose records do not follow from one another.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "the journal's record {at} ({record}) does not fit what comes before it; the state folder was altered or mixed up"
)]
pub struct OutOfPlace {
    /// Its position in the run, from 0.
    pub at: usize,
    /// The record, in words.
    pub record: String,
}

impl Ledger {
    /// The state after a run's first record.
    #[must_use]
    pub fn new(start: Start, now_ms: u64) -> Self {
        let settings = &start.settings;
        let configurator =
            Configurator::new(settings.rates.clone(), settings.seed, start.layers as usize, settings.protected.clone());
        let mut ledger = Self {
            started_ms: now_ms,
            last_ms: now_ms,
            round: 0,
            phase: Phase::Gather(Purpose::Evaluate),
            phase_ms: now_ms,
            epoch: 0,
            weights: start.weights,
            configurator,
            selected: BTreeSet::new(),
            closed: Vec::new(),
            totals: BTreeMap::new(),
            accuracy_before: None,
            accuracy: None,
            accuracy_after: None,
            unrewarded: Vec::new(),
            measured: None,
            start,
        };
        ledger.evaluate_or_go_on();
        ledger
    }

    /// The state after a whole journal.
    ///
    /// # Errors
    /// A first record that starts no run, or a record out of place.
    pub fn replay(entries: &[Entry]) -> Result<Self, OutOfPlace> {
        let out_of_place = |at: usize| {
            let record = entries.get(at).map_or_else(|| "missing".to_owned(), |entry| format!("{:?}", entry.record));
            OutOfPlace { at, record: record.chars().take(200).collect() }
        };
        let Some(Entry { at_ms, record: Record::RunStarted(start) }) = entries.first() else {
            return Err(out_of_place(0));
        };
        let mut ledger = Self::new(start.clone(), *at_ms);
        for (at, entry) in entries.iter().enumerate().skip(1) {
            if !ledger.apply(entry) {
                return Err(out_of_place(at));
            }
        }
        Ok(ledger)
    }

    /// Adds a fact; `false`, and nothing changed, where it does not fit the phase.
    #[must_use]
    pub fn apply(&mut self, entry: &Entry) -> bool {
        if entry.at_ms < self.last_ms || !self.fits(&entry.record) {
            return false;
        }
        self.last_ms = entry.at_ms;
        match &entry.record {
            Record::RunStarted(_) => {}
            Record::Resumed => self.phase_ms = entry.at_ms,
            Record::TrainingStarted { epoch, choices } => {
                self.epoch = *epoch;
                self.selected = choices.keys().cloned().collect();
                self.enter(Phase::Train(Training {
                    started_ms: entry.at_ms,
                    choices: choices.clone(),
                    updates: BTreeMap::new(),
                    out: BTreeMap::new(),
                }));
            }
            Record::UpdateStored { device, update, report } => self.keep_update(device, *update, report, entry.at_ms),
            Record::DeviceOut { device, reason } => {
                if let Phase::Train(training) = &mut self.phase {
                    training.out.insert(device.clone(), reason.clone());
                }
            }
            Record::Collected => {
                if let Phase::Train(training) = std::mem::replace(&mut self.phase, Phase::Done) {
                    self.enter(Phase::Merge(training));
                }
            }
            Record::Merged { weights } => {
                self.weights = *weights;
                self.close_round(None);
            }
            Record::Skipped { reason } => self.close_round(Some(reason)),
            Record::EvaluationStarted { epoch, examples } => {
                self.epoch = *epoch;
                self.selected = examples.keys().cloned().collect();
                self.enter(Phase::Evaluate(examples.clone()));
            }
            Record::Evaluated(evaluation) => self.evaluated(evaluation),
            Record::RunEnded { stopped } => self.enter(Phase::Ended(stopped.clone())),
        }
        true
    }

    /// When the phase stops waiting; `None` where it waits for nobody.
    #[must_use]
    pub fn deadline_ms(&self) -> Option<u64> {
        let settings = &self.start.settings;
        match &self.phase {
            Phase::Gather(_) => Some(self.phase_ms + settings.gather_ms),
            Phase::Train(_) => Some(self.phase_ms + settings.train_ms),
            Phase::Evaluate(_) => Some(self.phase_ms + settings.evaluate_ms),
            Phase::Merge(_) | Phase::Done | Phase::Ended(_) => None,
        }
    }

    /// True where nothing more will happen.
    #[must_use]
    pub fn is_ended(&self) -> bool {
        matches!(self.phase, Phase::Ended(_))
    }

    fn fits(&self, record: &Record) -> bool {
        match (record, &self.phase) {
            (Record::Resumed, phase) => !matches!(phase, Phase::Ended(_)),
            (Record::TrainingStarted { epoch, .. }, Phase::Gather(Purpose::Train))
            | (Record::EvaluationStarted { epoch, .. }, Phase::Gather(Purpose::Evaluate)) => *epoch > self.epoch,
            (Record::UpdateStored { device, .. } | Record::DeviceOut { device, .. }, Phase::Train(training)) => {
                training.is_pending(device)
            }
            (Record::Collected, Phase::Train(training)) => !training.updates.is_empty(),
            (Record::Merged { .. }, Phase::Merge(_)) => true,
            (Record::Skipped { .. }, phase) => {
                matches!(phase, Phase::Gather(Purpose::Train) | Phase::Train(_) | Phase::Merge(_))
            }
            (Record::Evaluated(_), phase) => matches!(phase, Phase::Gather(Purpose::Evaluate) | Phase::Evaluate(_)),
            (Record::RunEnded { stopped }, phase) => match phase {
                Phase::Ended(_) => false,
                Phase::Done => true,
                Phase::Gather(_) | Phase::Train(_) | Phase::Merge(_) | Phase::Evaluate(_) => stopped.is_some(),
            },
            (
                Record::RunStarted(_)
                | Record::TrainingStarted { .. }
                | Record::EvaluationStarted { .. }
                | Record::UpdateStored { .. }
                | Record::DeviceOut { .. }
                | Record::Collected
                | Record::Merged { .. },
                _,
            ) => false,
        }
    }

    fn enter(&mut self, phase: Phase) {
        self.phase = phase;
        self.phase_ms = self.last_ms;
    }

    fn evaluate_or_go_on(&mut self) {
        if self.start.settings.examples_after(self.round) > 0 {
            self.enter(Phase::Gather(Purpose::Evaluate));
        } else {
            self.next_round();
        }
    }

    fn next_round(&mut self) {
        if self.round == self.start.settings.rounds {
            self.enter(Phase::Done);
        } else {
            self.round += 1;
            self.enter(Phase::Gather(Purpose::Train));
        }
    }

    fn keep_update(&mut self, device: &DeviceId, update: Digest, report: &TrainReport, stored_ms: u64) {
        if let Phase::Train(training) = &mut self.phase {
            let stored = StoredUpdate { update, report: report.clone(), stored_ms };
            training.updates.insert(device.clone(), stored);
            let totals = self.totals.entry(device.clone()).or_default();
            totals.updates += 1;
            totals.steps += u64::from(report.steps);
            totals.active_layers += f64::from(report.mean_active_layers) * f64::from(report.steps);
            totals.peak_rss_bytes = totals.peak_rss_bytes.max(report.peak_rss_bytes);
        }
    }

    fn close_round(&mut self, skipped: Option<&String>) {
        let training = match std::mem::replace(&mut self.phase, Phase::Done) {
            Phase::Train(training) | Phase::Merge(training) => Some(training),
            Phase::Gather(_) | Phase::Evaluate(_) | Phase::Done | Phase::Ended(_) => None,
        };
        if let (Some(training), None) = (&training, skipped) {
            self.unrewarded = training.pulled();
        }
        let summary = training.map_or_else(Training::nothing, |training| training.summary(self.last_ms));
        self.closed.push(RoundProgress { round: self.round, skipped: skipped.cloned(), ..summary });
        // A skipped round changed no weights: only the last one is evaluated, as the end of the run.
        if skipped.is_none() || self.round == self.start.settings.rounds {
            self.evaluate_or_go_on();
        } else {
            self.next_round();
        }
    }

    fn evaluated(&mut self, evaluation: &Evaluation) {
        let accuracy = evaluation.accuracy();
        let ordered = match std::mem::replace(&mut self.phase, Phase::Done) {
            Phase::Evaluate(examples) => examples,
            Phase::Gather(_) | Phase::Train(_) | Phase::Merge(_) | Phase::Done | Phase::Ended(_) => BTreeMap::new(),
        };
        let before = std::mem::replace(&mut self.measured, Measured::of(evaluation, ordered));
        let pulled = std::mem::take(&mut self.unrewarded);
        if let (Some(before), Some(after)) = (&before, &self.measured)
            && before.is_comparable(after)
        {
            for Pulled { device, arm, seconds } in &pulled {
                self.configurator.reward(device, *arm, after.accuracy - before.accuracy, *seconds);
            }
        }
        self.accuracy = accuracy.or(self.accuracy);
        if self.round == 0 {
            self.accuracy_before = accuracy;
        } else if let Some(closed) = self.closed.last_mut() {
            closed.accuracy = accuracy;
            closed.loss = evaluation.loss();
            closed.evaluated_examples = evaluation.examples;
            closed.evaluate_ms = self.last_ms - self.phase_ms;
        }
        if self.round == self.start.settings.rounds {
            self.accuracy_after = accuracy;
        }
        self.next_round();
    }
}

impl Training {
    /// True while the device's update is to be waited for.
    #[must_use]
    pub fn is_pending(&self, device: &DeviceId) -> bool {
        self.choices.contains_key(device) && !self.updates.contains_key(device) && !self.out.contains_key(device)
    }

    /// The devices whose update is to be waited for.
    pub fn pending(&self) -> impl Iterator<Item = &DeviceId> {
        self.choices.keys().filter(|device| self.is_pending(device))
    }

    fn pulled(&self) -> Vec<Pulled> {
        let pulled = |(device, stored): (&DeviceId, &StoredUpdate)| {
            let arm = self.choices.get(device)?.arm?;
            let seconds = (stored.stored_ms - self.started_ms) as f64 / 1000.0;
            Some(Pulled { device: device.clone(), arm, seconds })
        };
        self.updates.iter().filter_map(pulled).collect()
    }

    fn nothing() -> RoundProgress {
        Self { started_ms: 0, choices: BTreeMap::new(), updates: BTreeMap::new(), out: BTreeMap::new() }.summary(0)
    }

    fn summary(&self, closed_ms: u64) -> RoundProgress {
        let reports = || self.updates.values().map(|stored| &stored.report);
        let rates: Vec<f64> = self.choices.values().flat_map(|choice| &choice.rates).map(|&rate| rate.into()).collect();
        RoundProgress {
            round: 0,
            skipped: None,
            selected: self.choices.len() as u32,
            updates: self.updates.len() as u32,
            accuracy: None,
            loss: None,
            evaluated_examples: 0,
            train_loss: mean(reports().map(|report| report.mean_loss.into())),
            mean_rate: mean(rates.into_iter()).unwrap_or(0.0) as f32,
            mean_active_layers: mean(reports().map(|report| report.mean_active_layers.into())).unwrap_or(0.0) as f32,
            step_ms: mean(reports().map(|report| report.step_ms.into())).unwrap_or(0.0) as f32,
            train_ms: closed_ms - self.started_ms,
            evaluate_ms: 0,
            longest_training_ms: reports().map(|report| report.train_ms).max().unwrap_or(0),
            bytes_up: 0,
            bytes_down: 0,
        }
    }
}

fn mean(values: impl Iterator<Item = f64>) -> Option<f64> {
    let (count, sum) = values.fold((0u32, 0.0), |(count, sum), value| (count + 1, sum + value));
    (count > 0).then(|| sum / f64::from(count))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests fail by panicking")]
    use super::*;

    fn measured(ordered: &[(&str, u64)], examples: u64) -> Measured {
        let evaluation = Evaluation { devices: 1, examples, correct: 1, loss_sum: 0.0 };
        let ordered = ordered.iter().map(|(device, examples)| (device.parse().unwrap(), *examples)).collect();
        Measured::of(&evaluation, ordered).unwrap()
    }

    #[test]
    fn accuracies_are_compared_over_the_same_examples_only() {
        let usual = measured(&[("a", 200), ("b", 200)], 400);
        for (other, comparable, why) in [
            (usual.clone(), true, "the same"),
            (measured(&[("a", 500), ("b", 500)], 1000), false, "the larger one at a run's ends"),
            (measured(&[("a", 200), ("c", 200)], 400), false, "another device"),
            (measured(&[("a", 400)], 400), false, "one device for both"),
            (measured(&[("a", 190), ("b", 190), ("c", 20)], 400), true, "nearly the same"),
            (measured(&[("a", 200), ("b", 200)], 200), false, "one did not report"),
        ] {
            assert_eq!((usual.is_comparable(&other), other.is_comparable(&usual)), (comparable, comparable), "{why}");
        }
    }

    #[test]
    fn nothing_evaluated_is_nothing_to_compare_with() {
        assert_eq!(Measured::of(&Evaluation::default(), BTreeMap::new()), None);
    }
}
