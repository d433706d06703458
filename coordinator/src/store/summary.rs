//! A summary of each run, so that listing runs is a query instead of a replay.
//!
//! The store folds every record into it in the transaction that adds the record: [`Summary::add`] is the only place that
//! computes it, live and in a migration, and `skiff store check` compares it with a fold over the whole journal. It is kept
//! as JSON; a new field needs a default but no migration.
//!
//! The metric for the best round is the main measure of the model's task, such as accuracy or perplexity. The first of several
//! equal rounds is the best.

use super::convert::measured;
use super::journal::{Entry, Record, Start};
use crate::run::measures;
use crate::run::{Evaluation, ModelTask, is_failure};
use serde::{Deserialize, Serialize};
use skiff_api::details::Kept;
use skiff_api::measures::{Figures, Measure};
use skiff_protocol::Digest;
use std::collections::BTreeMap;

/// Current activity of a run, or its end.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Stage {
    /// Waits for devices.
    #[default]
    Gathering,
    /// Devices train.
    Training,
    /// Updates are being merged.
    Merging,
    /// Devices evaluate the weights.
    Evaluating,
    /// All rounds are closed.
    Completed,
    /// An operator or a fault stopped the run; see [`Summary::reason`].
    Stopped,
}

/// A run in a few numbers.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Summary {
    /// Name that the operator gave the run.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Present activity of the run, or its end.
    pub stage: Stage,
    /// Number of rounds that the run should have.
    pub rounds: u32,
    /// Present or last round, from 1; 0 in the evaluation before the first.
    pub round: u32,
    /// Number of closed rounds, merged or skipped.
    pub closed: u32,
    /// Number of merged rounds.
    pub merged: u32,
    /// Time of the first record, in milliseconds since 1970.
    pub started_ms: u64,
    /// Time of the last record, in milliseconds since 1970.
    pub last_ms: u64,
    /// Accuracy of the initial weights.
    pub accuracy_before: Option<f64>,
    /// Last accuracy found.
    pub accuracy: Option<f64>,
    /// Accuracy found by the evaluation after the last round.
    pub accuracy_after: Option<f64>,
    /// Main measure of the task.
    pub measure: Measure,
    /// Figures of the initial weights.
    pub metrics_before: Option<Figures>,
    /// Last figures found.
    pub metrics: Option<Figures>,
    /// Figures found by the evaluation after the last round.
    pub metrics_after: Option<Figures>,
    /// Weights that the run started from, 64 hexadecimal digits.
    pub initial: Option<String>,
    /// Weights of the last merged round.
    pub last: Option<Kept>,
    /// Evaluated weights with the best value of the main measure.
    pub best: Option<Kept>,
    /// Reason why the run stopped early.
    pub reason: Option<String>,
}

impl Summary {
    /// Returns the summary of a whole run.
    #[must_use]
    pub fn of_entries<'a>(entries: impl IntoIterator<Item = &'a Entry>) -> Self {
        let mut summary = Self::default();
        entries.into_iter().for_each(|entry| summary.add(entry));
        summary
    }

    /// Adds the next record.
    pub fn add(&mut self, entry: &Entry) {
        self.last_ms = entry.at_ms;
        match &entry.record {
            Record::RunStarted(start) => self.start(start, entry.at_ms),
            Record::NamedRunStarted { start, name } => {
                self.start(start, entry.at_ms);
                self.name = Some(name.clone());
            }
            Record::TrainingStarted { .. } => {
                self.round = self.closed + 1;
                self.stage = Stage::Training;
            }
            Record::Collected => self.stage = Stage::Merging,
            Record::Merged { weights, .. } => {
                self.closed += 1;
                self.merged += 1;
                self.last =
                    Some(Kept { round: self.closed, weights: weights.to_string(), accuracy: None, metrics: None });
                self.stage = Stage::Gathering;
            }
            Record::Skipped { .. } => {
                self.closed += 1;
                self.gather_again();
            }
            Record::EvaluationStarted { .. } => self.stage = Stage::Evaluating,
            Record::Evaluated { devices, examples, correct, loss_sum } => {
                let (devices, examples, correct, loss_sum) = (*devices, *examples, *correct, *loss_sum);
                self.evaluated(&Evaluation { devices, examples, correct, loss_sum, ..Evaluation::default() });
                self.gather_again();
            }
            Record::Measured { evaluation, metrics, .. } => {
                // A record that cannot be read stops the run when it is opened; its counts are not used here.
                self.evaluated(&measured(evaluation, metrics, BTreeMap::new()).unwrap_or_default());
                self.gather_again();
            }
            Record::RunEnded { stopped } => {
                self.stage = if stopped.is_some() { Stage::Stopped } else { Stage::Completed };
                self.reason.clone_from(stopped);
            }
            Record::Resumed | Record::UpdateStored { .. } | Record::DeviceOut { .. } | Record::PolicySet(_) => {}
        }
    }

    /// Ends the run because of a fault in what is stored.
    pub fn stop(&mut self, reason: &str) {
        self.stage = Stage::Stopped;
        self.reason = Some(reason.to_owned());
    }

    /// Returns true if the run has ended without a merged update, although nobody stopped it.
    #[must_use]
    pub fn has_failed(&self) -> bool {
        self.is_ended() && is_failure(self.merged, self.reason.as_deref())
    }

    /// Returns true if nothing more will happen in the run.
    #[must_use]
    pub fn is_ended(&self) -> bool {
        matches!(self.stage, Stage::Completed | Stage::Stopped)
    }

    /// Returns the JSON text that is stored.
    #[must_use]
    pub fn to_json(&self) -> String {
        serde_json::to_string(self).expect("a summary is plain values with text keys")
    }

    /// Reads what [`Summary::to_json`] wrote. Damaged text gives an empty summary: it can be computed again.
    #[must_use]
    pub fn from_json(text: &str) -> Self {
        serde_json::from_str(text).unwrap_or_default()
    }

    /// Returns the weights that stay until the run is deleted.
    #[must_use]
    pub fn kept(&self) -> Vec<Digest> {
        self.last.iter().chain(&self.best).filter_map(|kept| Digest::parse(&kept.weights)).collect()
    }

    fn start(&mut self, start: &Start, at_ms: u64) {
        self.started_ms = at_ms;
        self.rounds = rounds(&start.settings);
        self.initial = Some(start.weights.to_string());
        let task = start.task.clone().and_then(|task| ModelTask::try_from(task).ok());
        self.measure = task.as_ref().map(measures::of_task).unwrap_or_default();
        self.stage = Stage::Gathering;
    }

    fn gather_again(&mut self) {
        self.round = (self.closed + 1).min(self.rounds);
        self.stage = Stage::Gathering;
    }

    fn evaluated(&mut self, evaluation: &Evaluation) {
        let (accuracy, metrics) = (evaluation.accuracy(), measures::figures(evaluation));
        self.accuracy = accuracy.or(self.accuracy);
        self.metrics = metrics.or(self.metrics);
        if self.closed == 0 {
            (self.accuracy_before, self.metrics_before) = (accuracy, metrics);
        }
        if self.closed == self.rounds {
            (self.accuracy_after, self.metrics_after) = (accuracy, metrics);
        }
        let measure = self.measure;
        let Some(last) = self.last.as_mut() else { return };
        last.accuracy = accuracy.or(last.accuracy);
        last.metrics = metrics.or(last.metrics);
        let figure = |metrics: Option<&Figures>| metrics.and_then(|metrics| measure.figure(metrics));
        let best = figure(self.best.as_ref().and_then(|best| best.metrics.as_ref()));
        let is_best = |found| best.is_none_or(|best| measure.is_better(found, best));
        if figure(metrics.as_ref()).is_some_and(is_best) {
            self.best = Some(last.clone());
        }
    }
}

/// Returns the number of rounds in a run's settings; 0 if they cannot be read.
fn rounds(settings: &str) -> u32 {
    let settings: Result<serde_json::Value, _> = serde_json::from_str(settings);
    let rounds = settings.ok().and_then(|settings| settings.get("rounds")?.as_u64());
    rounds.and_then(|rounds| rounds.try_into().ok()).unwrap_or(0)
}
