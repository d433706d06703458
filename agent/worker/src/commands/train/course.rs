//! Evaluations during a training: they find the best weights, and end a training that does not improve any more.
//!
//! The state survives `kill -9` in two files next to a checkpoint: `CHECKPOINT.best` has the best weights, and
//! `CHECKPOINT.evaluations` all evaluations. The weights are written first. If a kill comes between the two, the resumed
//! training reaches the same evaluation again and writes the same weights.

use super::super::figures::Found;
use anyhow::Context as _;
use serde::{Deserialize, Serialize};
use skiff_base::files::{Access, replace};
use skiff_models::task::Task;
use skiff_models::tensors::{self, NamedTensors, Schema};
use skiff_trainer::EvaluateSummary;
use std::ffi::OsString;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

/// An evaluation after a step.
#[derive(Clone, Serialize, Deserialize)]
pub(super) struct Evaluation {
    /// Number of the step.
    pub(super) step: u32,
    /// Mean loss over everything that is counted.
    pub(super) loss: f64,
    /// The figure that decides: accuracy, F1 over spans, or the negative of mean squared error or loss. Larger is better.
    pub(super) score: f64,
    /// Digest of the weights, if they were the best so far.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    best: Option<String>,
    /// All figures.
    #[serde(flatten)]
    pub(super) found: Found,
}

impl Evaluation {
    /// Returns the line that a terminal shows.
    pub(super) fn line(&self, task: Task) -> String {
        let figure = self
            .found
            .figure(deciding(task))
            .map_or_else(String::new, |value| format!(", {} {value:.4}", deciding(task)));
        let best = if self.best.is_some() { ", the best so far" } else { "" };
        format!("after step {}: loss {:.4}{figure}{best}\n", self.step, self.loss)
    }
}

/// The evaluations of a training.
pub(super) struct Course {
    patience: Option<u32>,
    task: Task,
    checkpoint: Option<PathBuf>,
    evaluations: Vec<Evaluation>,
    best: Option<NamedTensors>,
}

impl Course {
    /// Begins without evaluations. `patience` is the number of evaluations in a row without a better one that ends the training.
    pub(super) fn new(task: Task, patience: Option<u32>, checkpoint: Option<&Path>) -> Self {
        let checkpoint = checkpoint.map(Path::to_owned);
        Self { patience, task, checkpoint, evaluations: Vec::new(), best: None }
    }

    /// Takes up the evaluations up to the step `done`, which an earlier process made.
    ///
    /// # Errors
    /// A file beside the checkpoint cannot be read or is damaged.
    pub(super) fn resume(&mut self, done: u32, schema: &Schema) -> anyhow::Result<()> {
        let Some(checkpoint) = &self.checkpoint else { return Ok(()) };
        let Some(bytes) = read(&beside(checkpoint, "evaluations"))? else { return Ok(()) };
        let mut known: Vec<Evaluation> = serde_json::from_slice(&bytes)
            .with_context(|| format!("reading {}", beside(checkpoint, "evaluations").display()))?;
        known.retain(|evaluation| evaluation.step <= done);
        let digest = best(&known).and_then(|best| best.best.clone());
        if let Some(bytes) = read(&beside(checkpoint, "best"))?
            && digest == Some(blake3::hash(&bytes).to_hex().to_string())
        {
            self.best = Some(schema.read(&bytes).context("reading the best weights beside the checkpoint")?);
        }
        self.evaluations = known;
        Ok(())
    }

    /// Adds an evaluation of `weights`. Returns true if the training should end.
    ///
    /// # Errors
    /// A file beside the checkpoint cannot be written.
    pub(super) fn add(
        &mut self,
        step: u32,
        summary: &EvaluateSummary,
        found: Found,
        weights: &NamedTensors,
    ) -> anyhow::Result<bool> {
        let score = score(self.task, summary, &found);
        let is_best = best(&self.evaluations).is_none_or(|best| score > best.score);
        let bytes = is_best.then(|| tensors::write(weights)).transpose()?;
        let digest = bytes.as_deref().map(|bytes| blake3::hash(bytes).to_hex().to_string());
        self.evaluations.push(Evaluation { step, loss: summary.mean_loss(), score, best: digest, found });
        if let Some(checkpoint) = &self.checkpoint {
            let write = |name: &str, bytes: &[u8]| {
                let path = beside(checkpoint, name);
                replace(&path, bytes, Access::Shared).with_context(|| format!("writing {}", path.display()))
            };
            bytes.as_deref().map_or(Ok(()), |bytes| write("best", bytes))?;
            write("evaluations", &serde_json::to_vec(&self.evaluations)?)?;
        }
        if is_best {
            self.best = Some(weights.clone());
        }
        Ok(self.is_over())
    }

    /// Returns true if the training should end, because it has not improved for long enough.
    pub(super) fn is_over(&self) -> bool {
        let worse = self.evaluations.iter().rev().take_while(|evaluation| evaluation.best.is_none()).count();
        self.patience.is_some_and(|patience| worse >= patience as usize)
    }

    /// Returns the best evaluation and its weights; `None` if there was none.
    pub(super) fn take_best(&mut self) -> Option<(Evaluation, NamedTensors)> {
        Some((best(&self.evaluations)?.clone(), self.best.take()?))
    }

    /// Returns the newest evaluation.
    pub(super) fn newest(&self) -> Option<&Evaluation> {
        self.evaluations.last()
    }

    /// Returns all evaluations, oldest first.
    pub(super) fn into_evaluations(self) -> Vec<Evaluation> {
        self.evaluations
    }
}

/// Returns the earliest of the best evaluations.
fn best(evaluations: &[Evaluation]) -> Option<&Evaluation> {
    evaluations.iter().rev().find(|evaluation| evaluation.best.is_some())
}

/// Returns the figure that decides; larger is better. A figure that is not a number counts as the worst.
fn score(task: Task, summary: &EvaluateSummary, found: &Found) -> f64 {
    let figure = match task {
        Task::SequenceClassification => found.figure("accuracy"),
        Task::TokenClassification => found.figure("span F1").or_else(|| found.figure("accuracy")),
        Task::Regression => found.figure("RMSE").map(|rmse| -rmse),
        Task::CausalLm => None,
    };
    let score = figure.unwrap_or_else(|| -summary.mean_loss());
    if score.is_nan() { f64::NEG_INFINITY } else { score }
}

/// Returns the name of the figure that decides.
pub(super) const fn deciding(task: Task) -> &'static str {
    match task {
        Task::SequenceClassification => "accuracy",
        Task::TokenClassification => "span F1",
        Task::Regression => "RMSE",
        Task::CausalLm => "loss",
    }
}

fn beside(checkpoint: &Path, name: &str) -> PathBuf {
    let mut path = OsString::from(checkpoint);
    path.push(".");
    path.push(name);
    path.into()
}

fn read(path: &Path) -> anyhow::Result<Option<Vec<u8>>> {
    match std::fs::read(path) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).with_context(|| format!("reading {}", path.display())),
    }
}
