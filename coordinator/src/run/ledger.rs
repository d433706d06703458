//! State of a run, built from the facts of its journal. Live decisions and a replay change it only through [`Ledger::apply`].

mod queries;

use super::evaluation::Evaluation;
use super::record::{Assignment, Entry, Merged, Record, Start};
use super::round::{ClosedRound, EvaluatedRound, Ordered, StoredUpdate, Totals, Training};
use crate::run::configurator::{Configurator, Pace};
use crate::run::measures;
use skiff_api::measures::{Figures, Measure};
use skiff_api::policy::Policy;
use skiff_protocol::messages::TrainReport;
use skiff_protocol::{DeviceId, Digest};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

/// Durable state of a run.
#[derive(Clone, PartialEq, Debug)]
pub struct Ledger {
    /// Facts about the run at its start.
    pub start: Start,
    /// Start time in milliseconds.
    pub started_ms: u64,
    /// Time of the last record, in milliseconds.
    pub last_ms: u64,
    /// Current round; 0 before the first.
    pub round: u32,
    /// Current phase.
    pub phase: Phase,
    /// Time when the phase began or was resumed, in milliseconds.
    pub phase_ms: u64,
    /// Epoch of the last order. Orders have even epochs; the odd epoch that follows belongs to the stop of the order.
    pub epoch: u64,
    /// Digest of the global weights.
    pub weights: Digest,
    /// Digest of the server optimizer's moments, if the optimizer has any.
    pub moments: Option<Digest>,
    /// Policy of the layers that devices share, from the next order on.
    pub policy: Policy,
    /// Component that chooses rates, from the gains measured so far.
    pub configurator: Configurator,
    /// Devices of the last order.
    pub selected: BTreeSet<DeviceId>,
    /// Orders that stay open when an asynchronous round closes and the next one begins, and the updates that arrive in the
    /// meantime.
    pub carried: Training,
    /// Number of merges so far.
    pub version: u32,
    /// All closed rounds.
    pub closed: Vec<Arc<ClosedRound>>,
    /// Work of each device in the run.
    pub totals: BTreeMap<DeviceId, Totals>,
    /// Last reason why each device did not deliver.
    pub failures: BTreeMap<DeviceId, String>,
    /// Last measured pace of a device of each class. Devices without a class are left out.
    pub paces: BTreeMap<String, Pace>,
    /// Accuracy of the initial weights.
    pub accuracy_before: Option<f64>,
    /// Last measured accuracy.
    pub accuracy: Option<f64>,
    /// Accuracy at the end of the run.
    pub accuracy_after: Option<f64>,
    /// Figures of the initial weights.
    pub figures_before: Option<Figures>,
    /// Newest figures of an evaluation.
    pub figures: Option<Figures>,
    /// Figures at the end of the run.
    pub figures_after: Option<Figures>,
    /// Newest evaluation with at least one counted example.
    pub last_evaluation: Option<Evaluation>,
    /// Distances of the last stored updates from the weights they started from, oldest first.
    distances: VecDeque<f64>,
}

/// Phase of a run.
#[derive(Clone, PartialEq, Debug)]
pub enum Phase {
    /// The run waits for devices, to evaluate or to train.
    Gather(Purpose),
    /// Devices train.
    Train(Training),
    /// The updates are being merged.
    Merge(Training),
    /// Devices evaluate. The value holds the number of examples of each device.
    Evaluate(BTreeMap<DeviceId, u64>),
    /// Every round is closed; the run ends.
    Done,
    /// The run ended. The value holds the reason if the run was stopped.
    Ended(Option<String>),
}

/// Purpose of gathering devices.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Purpose {
    /// A round of training.
    Train,
    /// An evaluation.
    Evaluate,
}

/// Number of updates whose distances are remembered.
const DISTANCES: usize = 64;

/// A journal whose records do not follow from one another.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "the journal's record {at} ({record}) does not fit the records before it; the state folder was altered or mixed up"
)]
pub struct OutOfPlace {
    /// Position of the record in the run, from 0.
    pub at: usize,
    /// The record, in words.
    pub record: String,
}

impl Ledger {
    /// Returns the state after a run's first record.
    #[must_use]
    pub fn new(start: Start, now_ms: u64) -> Self {
        let settings = &start.settings;
        let measure = start.task.as_ref().map_or_else(Measure::default, measures::of_task);
        let configurator = Configurator::new(settings.configurator(start.layers, measure));
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
            carried: Training::default(),
            version: 0,
            closed: Vec::new(),
            totals: BTreeMap::new(),
            failures: BTreeMap::new(),
            paces: BTreeMap::new(),
            accuracy_before: None,
            accuracy: None,
            accuracy_after: None,
            figures_before: None,
            figures: None,
            figures_after: None,
            last_evaluation: None,
            distances: VecDeque::new(),
            start,
        };
        ledger.evaluate_or_go_on();
        ledger
    }

    /// Returns the state after a whole journal.
    ///
    /// # Errors
    /// A first record that does not start a run, or a record that is out of place.
    pub fn replay(entries: &[Entry]) -> Result<Self, OutOfPlace> {
        Self::retold(entries, &mut |_, _| {})
    }

    /// Replays a journal, and shows every record after the first to `watch`, with the state after it.
    ///
    /// # Errors
    /// Same as [`Ledger::replay`].
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

    /// Adds a fact. Returns `false` and changes nothing if it does not fit the phase.
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
                let (round, weights, version, ordered_ms) = (self.round, self.weights, self.version, entry.at_ms);
                let ordered = |(device, assignment): (&DeviceId, &Assignment)| {
                    let assignment = assignment.clone();
                    let order = Ordered { epoch: *epoch, round, weights, version, ordered_ms, assignment };
                    (device.clone(), order)
                };
                let mut training = Training { started_ms: entry.at_ms, ..std::mem::take(&mut self.carried) };
                training.assignments.extend(assignments.iter().map(ordered));
                self.selected = training.assignments.keys().cloned().collect();
                self.enter(Phase::Train(training));
            }
            Record::UpdateStored { device, update, report, distance } => {
                self.keep_update(device, *update, report, *distance, entry.at_ms);
            }
            Record::DeviceOut { device, reason } => {
                if let Some(training) = self.training_of(device) {
                    training.out.insert(device.clone(), reason.clone());
                }
                self.failures.insert(device.clone(), reason.clone());
            }
            Record::Collected => {
                if let Phase::Train(mut training) = std::mem::replace(&mut self.phase, Phase::Done) {
                    if self.start.settings.asynchronous {
                        self.carried = training.part_pending();
                    }
                    self.enter(Phase::Merge(training));
                }
            }
            Record::Merged(Merged { weights, moments }) => {
                self.weights = *weights;
                self.moments = *moments;
                self.version += 1;
                self.close_round(None);
            }
            Record::Skipped { reason } => self.close_round(Some(reason)),
            Record::EvaluationStarted { epoch, examples } => {
                self.epoch = *epoch;
                self.selected = examples.keys().cloned().collect();
                self.enter(Phase::Evaluate(examples.clone()));
            }
            Record::Evaluated(evaluation) => self.evaluated(evaluation),
            Record::RunEnded { stopped } => {
                self.carried = Training::default();
                self.enter(Phase::Ended(stopped.clone()));
            }
            Record::PolicySet(policy) => self.policy = policy.clone(),
        }
        true
    }

    fn fits(&self, record: &Record) -> bool {
        match (record, &self.phase) {
            (Record::Resumed | Record::PolicySet(_), phase) => !matches!(phase, Phase::Ended(_)),
            (Record::TrainingStarted { epoch, assignments }, Phase::Gather(Purpose::Train)) => {
                let layers = self.start.layers as usize;
                *epoch > self.epoch && assignments.values().all(|order| order.choice.rates.len() == layers)
            }
            (Record::EvaluationStarted { epoch, .. }, Phase::Gather(Purpose::Evaluate)) => *epoch > self.epoch,
            (Record::UpdateStored { device, .. } | Record::DeviceOut { device, .. }, phase) => {
                let in_round = matches!(phase, Phase::Train(training) if training.is_pending(device));
                in_round || self.carried.is_pending(device)
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
                | Record::Collected
                | Record::Merged(_),
                _,
            ) => false,
        }
    }

    /// Returns the training that waits for an update of the device.
    fn training_of(&mut self, device: &DeviceId) -> Option<&mut Training> {
        match &mut self.phase {
            Phase::Train(training) if training.is_pending(device) => Some(training),
            Phase::Gather(_)
            | Phase::Train(_)
            | Phase::Merge(_)
            | Phase::Evaluate(_)
            | Phase::Done
            | Phase::Ended(_) => Some(&mut self.carried).filter(|carried| carried.is_pending(device)),
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

    fn keep_update(&mut self, device: &DeviceId, update: Digest, report: &TrainReport, distance: f64, stored_ms: u64) {
        let Some(training) = self.training_of(device) else { return };
        let Some(ordered) = training.assignments.get(device) else { return };
        let (took_ms, class) = (stored_ms - ordered.ordered_ms, ordered.assignment.choice.class.clone());
        training.updates.insert(device.clone(), StoredUpdate { update, report: report.clone(), stored_ms });
        self.distances.push_back(distance);
        if self.distances.len() > DISTANCES {
            self.distances.pop_front();
        }
        let totals = self.totals.entry(device.clone()).or_default();
        totals.updates += 1;
        totals.steps += u64::from(report.steps);
        totals.active_layers += f64::from(report.mean_active_layers) * f64::from(report.steps);
        totals.peak_rss_bytes = totals.peak_rss_bytes.max(report.peak_rss_bytes);
        // With a probe, the time beside training includes measuring, which other rounds do not need.
        let other_ms = match (&report.probe, totals.pace) {
            (None, _) => took_ms.saturating_sub(report.train_ms) as f64,
            (Some(_), known) => known.map_or(0.0, |pace| pace.other_ms),
        };
        let (step_ms, active_layers) = (report.step_ms.into(), report.mean_active_layers.into());
        let pace = Pace { step_ms, active_layers, other_ms };
        totals.pace = Some(pace);
        if !class.is_empty() {
            self.paces.insert(class, pace);
        }
    }

    /// Passes the measured gains of a round to the configurator, with the time that each took. That is the time of the whole
    /// round, in which all devices wait for the slowest, or the device's own time in asynchronous rounds.
    fn reward(&mut self, training: &Training) {
        for (device, stored) in &training.updates {
            if let (Some(probe), Some(ordered)) = (&stored.report.probe, training.assignments.get(device)) {
                let took_ms = match self.start.settings.asynchronous {
                    true => stored.stored_ms - ordered.ordered_ms,
                    false => self.last_ms - training.started_ms,
                };
                let gain = self.configurator.gain(probe);
                let choice = &ordered.assignment.choice;
                self.configurator.reward(device, choice, self.round, gain, took_ms as f64 / 1000.0);
            }
        }
    }

    fn close_round(&mut self, skipped: Option<&String>) {
        let training = match std::mem::replace(&mut self.phase, Phase::Done) {
            Phase::Train(training) | Phase::Merge(training) => Some(training),
            Phase::Gather(_) | Phase::Evaluate(_) | Phase::Done | Phase::Ended(_) => None,
        };
        if let Some(training) = &training {
            self.reward(training);
            let wanted = training.assignments.len().min(self.start.settings.devices as usize);
            let all_in = training.updates.len() >= wanted;
            // If enough updates arrived, devices that still train have not failed: they are only slower than the round.
            let failed = training
                .assignments
                .keys()
                .filter(|device| training.out.contains_key(*device) || (!all_in && training.is_pending(device)));
            self.configurator.round_closed(self.round, training.updates.keys(), failed, wanted);
        }
        let summary = training.map_or_else(ClosedRound::default, |training| training.summary(self.last_ms));
        let (round, skipped_for, ended_ms) = (self.round, skipped.cloned(), self.last_ms);
        self.closed.push(Arc::new(ClosedRound { round, skipped: skipped_for, ended_ms, ..summary }));
        // A skipped round changed no weights: only the last one is evaluated, as the end of the run.
        if skipped.is_none() || self.round == self.start.settings.rounds {
            self.evaluate_or_go_on();
        } else {
            self.next_round();
        }
    }

    fn evaluated(&mut self, evaluation: &Evaluation) {
        let (accuracy, figures) = (evaluation.accuracy(), measures::figures(evaluation));
        if figures.is_some() {
            self.last_evaluation = Some(evaluation.clone());
        }
        self.configurator.evaluated(evaluation.loss());
        self.accuracy = accuracy.or(self.accuracy);
        self.figures = figures.or(self.figures);
        if self.round == 0 {
            self.accuracy_before = accuracy;
            self.figures_before = figures;
        } else if let Some(closed) = self.closed.last_mut() {
            let closed = Arc::make_mut(closed);
            closed.ended_ms = self.last_ms;
            closed.evaluated = Some(EvaluatedRound {
                accuracy,
                figures,
                loss: evaluation.loss(),
                examples: evaluation.examples,
                left_out: evaluation.left_out.clone(),
                took_ms: self.last_ms - self.phase_ms,
            });
        }
        if self.round == self.start.settings.rounds {
            self.accuracy_after = accuracy;
            self.figures_after = figures;
        }
        self.next_round();
    }
}
