//! Figures of an evaluation, and the main measure of each task.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// The main measure of a task. Tables show it, and it decides which round is the best.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Measure {
    /// Share of correct examples or tokens. Higher is better.
    #[default]
    Accuracy,
    /// Micro-averaged F1 over spans of tokens. Higher is better.
    SpanF1,
    /// Pearson's correlation between predicted and true numbers. Higher is better.
    PearsonR,
    /// `exp` of the mean loss per token. Lower is better.
    Perplexity,
}

/// Named figures of an evaluation. Figures of other tasks and undefined figures are absent.
#[derive(Clone, Copy, PartialEq, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Figures {
    /// Number of evaluated examples, or of tokens for tasks on tokens.
    pub examples: u64,
    /// Number of those examples for which the devices also report the counts behind the task's measures. Devices with protocol
    /// version 2 report only the number of correct examples and the loss.
    pub measured: u64,
    /// Share of `examples` that are correct.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub accuracy: Option<f64>,
    /// Unweighted mean of the F1 of all classes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub macro_f1: Option<f64>,
    /// Micro-averaged F1 over spans.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub span_f1: Option<f64>,
    /// Mean squared error.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mse: Option<f64>,
    /// Pearson's correlation.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pearson_r: Option<f64>,
    /// Perplexity.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub perplexity: Option<f64>,
}

/// Figures of an evaluation for each class or type of span, by name.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Parts {
    /// F1 of each class or type of span that occurs in the examples or in the predictions.
    pub f1: BTreeMap<String, f64>,
    /// Non-zero entries of the confusion matrix: true class, predicted class, number of examples.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub confusion: Option<Vec<(String, String, u64)>>,
}

impl Measure {
    /// Returns the name, for tables.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Accuracy => "accuracy",
            Self::SpanF1 => "span F1",
            Self::PearsonR => "Pearson r",
            Self::Perplexity => "perplexity",
        }
    }

    /// Returns the figure that this measure names.
    #[must_use]
    pub const fn figure(self, figures: &Figures) -> Option<f64> {
        match self {
            Self::Accuracy => figures.accuracy,
            Self::SpanF1 => figures.span_f1,
            Self::PearsonR => figures.pearson_r,
            Self::Perplexity => figures.perplexity,
        }
    }

    /// Returns true if `found` is better than `known`.
    #[must_use]
    pub fn is_better(self, found: f64, known: f64) -> bool {
        match self {
            Self::Accuracy | Self::SpanF1 | Self::PearsonR => found > known,
            Self::Perplexity => found < known,
        }
    }
}
