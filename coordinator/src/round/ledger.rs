//! What the journal's facts add up to. Live decisions and a replay both change it through [`Ledger::apply`] alone.

use super::record::{Assignment, Entry, Evaluation, Merged, Record, Start};
use crate::configurator::{Configurator, Pace};
use crate::progress::RoundProgress;
use crate::sharing::Policy;
use skiff_protocol::messages::TrainReport;
use skiff_protocol::{DeviceId, Digest};
use std::collections::{BTreeMap, BTreeSet, VecDeque};

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
    /// The server optimizer's moments, where it has any.
    pub moments: Option<Digest>,
    /// Who shares what, from the next order on.
    pub policy: Policy,
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
    /// How far the last stored updates were from the weights they started from, oldest first.
    distances: VecDeque<f64>,
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
    pub assignments: BTreeMap<DeviceId, Assignment>,
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
    /// How fast it was in its last update.
    pub pace: Option<Pace>,
}

impl Totals {
    /// Active layers, mean over the steps.
    #[must_use]
    pub fn mean_active_layers(&self) -> Option<f32> {
        (self.steps > 0).then(|| (self.active_layers / self.steps as f64) as f32)
    }
}

/// The distances of so many updates are remembered.
const DISTANCES: usize = 64;

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
        let configurator = Configurator::new(
            settings.rates.clone(),
            settings.seed,
            start.layers as usize,
            settings.rounds,
            settings.protected.clone(),
        );
        let mut ledger = Self {
            started_ms: now_ms,
            last_ms: now_ms,
            round: 0,
            phase: Phase::Gather(Purpose::Evaluate),
            phase_ms: now_ms,
            epoch: 0,
            weights: start.weights,
            moments: None,
            policy: settings.policy(),
            configurator,
            selected: BTreeSet::new(),
            closed: Vec::new(),
            totals: BTreeMap::new(),
            accuracy_before: None,
            accuracy: None,
            accuracy_after: None,
            distances: VecDeque::new(),
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
        Self::retold(entries, &mut |_, _| {})
    }

    /// The same, which shows `watch` every record after the first and the state that it left.
    ///
    /// # Errors
    /// As [`Ledger::replay`].
    pub fn retold(entries: &[Entry], watch: &mut dyn FnMut(&Self, &Entry)) -> Result<Self, OutOfPlace> {
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
            watch(&ledger, entry);
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
            Record::TrainingStarted { epoch, assignments } => {
                self.epoch = *epoch;
                self.selected = assignments.keys().cloned().collect();
                self.enter(Phase::Train(Training {
                    started_ms: entry.at_ms,
                    assignments: assignments.clone(),
                    updates: BTreeMap::new(),
                    out: BTreeMap::new(),
                }));
            }
            Record::UpdateStored { device, update, report, distance } => {
                self.keep_update(device, *update, report, *distance, entry.at_ms);
            }
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
            Record::Merged(Merged { weights, moments }) => {
                self.weights = *weights;
                self.moments = *moments;
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
            Record::PolicySet(policy) => self.policy = policy.clone(),
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
            (Record::Resumed | Record::PolicySet(_), phase) => !matches!(phase, Phase::Ended(_)),
            (Record::TrainingStarted { epoch, .. }, Phase::Gather(Purpose::Train))
            | (Record::EvaluationStarted { epoch, .. }, Phase::Gather(Purpose::Evaluate)) => *epoch > self.epoch,
            (Record::UpdateStored { device, .. } | Record::DeviceOut { device, .. }, Phase::Train(training)) => {
                training.is_pending(device)
            }
            (Record::Collected, Phase::Train(training)) => !training.updates.is_empty(),
            (Record::Merged(_), Phase::Merge(_)) => true,
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
                | Record::Merged(_),
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

    /// The distance above which an update is refused as far out; `None` while too few are known.
    #[must_use]
    pub fn most_distance(&self) -> Option<f64> {
        let factor = f64::from(self.start.settings.merge.far_out);
        let mut known: Vec<f64> = self.distances.iter().copied().collect();
        known.sort_by(f64::total_cmp);
        let median = known.get(known.len() / 2).copied().filter(|&median| median > 0.0);
        median.filter(|_| factor > 0.0 && known.len() >= DISTANCES / 8).map(|median| factor * median)
    }

    fn keep_update(&mut self, device: &DeviceId, update: Digest, report: &TrainReport, distance: f64, stored_ms: u64) {
        if let Phase::Train(training) = &mut self.phase {
            self.distances.push_back(distance);
            if self.distances.len() > DISTANCES {
                self.distances.pop_front();
            }
            if let (Some(probe), Some(assigned)) = (&report.probe, training.assignments.get(device)) {
                let seconds = (stored_ms - training.started_ms) as f64 / 1000.0;
                let gain = self.configurator.gain(probe);
                self.configurator.reward(device, &assigned.choice, self.round, gain, seconds);
            }
            let stored = StoredUpdate { update, report: report.clone(), stored_ms };
            training.updates.insert(device.clone(), stored);
            let totals = self.totals.entry(device.clone()).or_default();
            totals.updates += 1;
            totals.steps += u64::from(report.steps);
            totals.active_layers += f64::from(report.mean_active_layers) * f64::from(report.steps);
            totals.peak_rss_bytes = totals.peak_rss_bytes.max(report.peak_rss_bytes);
            totals.pace =
                Some(Pace { step_ms: report.step_ms.into(), active_layers: report.mean_active_layers.into() });
        }
    }

    fn close_round(&mut self, skipped: Option<&String>) {
        let training = match std::mem::replace(&mut self.phase, Phase::Done) {
            Phase::Train(training) | Phase::Merge(training) => Some(training),
            Phase::Gather(_) | Phase::Evaluate(_) | Phase::Done | Phase::Ended(_) => None,
        };
        if let Some(training) = &training {
            let wanted = training.assignments.len().min(self.start.settings.devices as usize);
            let all_in = training.updates.len() >= wanted;
            // Where enough came, those who were still training are only slower than the round.
            let failed = training
                .assignments
                .keys()
                .filter(|device| training.out.contains_key(*device) || (!all_in && training.is_pending(device)));
            self.configurator.round_closed(self.round, training.updates.keys(), failed, wanted);
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
        self.configurator.evaluated(evaluation.loss());
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
        self.assignments.contains_key(device) && !self.updates.contains_key(device) && !self.out.contains_key(device)
    }

    /// The devices whose update is to be waited for.
    pub fn pending(&self) -> impl Iterator<Item = &DeviceId> {
        self.assignments.keys().filter(|device| self.is_pending(device))
    }

    fn nothing() -> RoundProgress {
        Self { started_ms: 0, assignments: BTreeMap::new(), updates: BTreeMap::new(), out: BTreeMap::new() }.summary(0)
    }

    fn summary(&self, closed_ms: u64) -> RoundProgress {
        let reports = || self.updates.values().map(|stored| &stored.report);
        let all_rates = self.assignments.values().flat_map(|assigned| &assigned.choice.rates);
        let rates: Vec<f64> = all_rates.map(|&rate| rate.into()).collect();
        RoundProgress {
            round: 0,
            skipped: None,
            selected: self.assignments.len() as u32,
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
