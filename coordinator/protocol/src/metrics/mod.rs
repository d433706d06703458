//! Counts and sums of an evaluation, for each task that a model can learn.
//!
//! Devices send only counts and sums, so that the figures of a fleet are computed over the examples of all devices together,
//! never as means of means. Derived figures are functions; each returns `None` if it is not defined.
//!
//! | task | type | figures |
//! |---|---|---|
//! | a class for each text | [`Classification`] | accuracy, F1 of each class, macro-F1, confusion matrix |
//! | a label for each token | [`Tokens`] | token accuracy, F1 of each type of span, micro-F1 over spans |
//! | a number for each text | [`Regression`] | mean squared error, Pearson's r |
//! | the next token | [`Language`] | mean loss, perplexity |
//!
//! Laws: [`TaskMetrics::merge`] of two evaluations equals one evaluation of all their examples; it is commutative and
//! associative ([`TaskMetrics::Unknown`] changes nothing). Counts merge exactly. Sums of `f64` depend on the order of
//! merging in their last bits, so a caller that needs the same bits again must merge in a fixed order.

mod classification;
mod language;
mod regression;
mod tokens;

pub use classification::{Cell, ClassCounts, Classification, MAX_CELLS, MAX_CLASSES};
pub use language::Language;
pub use regression::Regression;
pub use tokens::{MAX_SPAN_TYPES, SpanCounts, Tokens};

use serde::{Deserialize, Serialize};

/// Largest count in a message. Even the largest metrics fit into a message with this limit. Merged counts may be larger.
pub const MAX_REPORTED_COUNT: u64 = (1 << 28) - 1;

/// Counts and sums of an evaluation. The variant is the model's task.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
pub enum TaskMetrics {
    /// The device speaks a version of the protocol that has no metrics.
    #[default]
    Unknown,
    /// A class for each text.
    Classification(Classification),
    /// A label for each token.
    Tokens(Tokens),
    /// A number for each text.
    Regression(Regression),
    /// The next token.
    Language(Language),
}

/// Two evaluations that cannot be merged. Both stay as they were.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Mismatch {
    /// The evaluations belong to different tasks.
    #[error("merging metrics of {theirs} into metrics of {ours}")]
    Task {
        /// Task of the metrics that the others were merged into.
        ours: &'static str,
        /// Task of the metrics to add.
        theirs: &'static str,
    },
    /// The models have different numbers of classes.
    #[error("merging metrics of {theirs} classes into metrics of {ours} classes")]
    Classes {
        /// Number of classes of the metrics that the others were merged into.
        ours: usize,
        /// Number of classes of the metrics to add.
        theirs: usize,
    },
    /// A count would exceed `u64`, or there would be too many types of span.
    #[error("merging metrics: the result is too large")]
    TooLarge,
}

impl TaskMetrics {
    /// Adds another evaluation of the same model.
    ///
    /// # Errors
    /// [`Mismatch`] if the tasks or classes differ, or a count overflows; `self` is then unchanged.
    pub fn merge(&mut self, other: &Self) -> Result<(), Mismatch> {
        match (&mut *self, other) {
            (_, Self::Unknown) => Ok(()),
            (Self::Unknown, _) => {
                self.clone_from(other);
                Ok(())
            }
            (Self::Classification(ours), Self::Classification(theirs)) => ours.merge(theirs),
            (Self::Tokens(ours), Self::Tokens(theirs)) => ours.merge(theirs),
            (Self::Regression(ours), Self::Regression(theirs)) => ours.merge(theirs),
            (Self::Language(ours), Self::Language(theirs)) => ours.merge(theirs),
            (ours @ (Self::Classification(_) | Self::Tokens(_) | Self::Regression(_) | Self::Language(_)), theirs) => {
                Err(Mismatch::Task { ours: ours.task(), theirs: theirs.task() })
            }
        }
    }

    /// Returns the task in words, for the operator.
    #[must_use]
    pub const fn task(&self) -> &'static str {
        match self {
            Self::Unknown => "an unknown task",
            Self::Classification(_) => "classification",
            Self::Tokens(_) => "token classification",
            Self::Regression(_) => "regression",
            Self::Language(_) => "language modelling",
        }
    }

    /// Returns the name of the first field that cannot come from an evaluation of `examples` examples.
    pub(crate) fn check(&self, examples: u64) -> Result<(), &'static str> {
        match self {
            Self::Unknown => Ok(()),
            Self::Classification(counts) => counts.check(examples),
            Self::Tokens(counts) => counts.check(),
            Self::Regression(sums) => sums.check(),
            Self::Language(sums) => sums.check(),
        }
    }
}

/// Returns the sum of two counts.
fn add(ours: u64, theirs: u64) -> Result<u64, Mismatch> {
    ours.checked_add(theirs).ok_or(Mismatch::TooLarge)
}

/// Returns `part / whole`; `None` if `whole` is 0.
#[expect(clippy::cast_precision_loss, reason = "counts of examples are far below 2^53")]
fn ratio(part: u64, whole: u64) -> Option<f64> {
    (whole > 0).then(|| part as f64 / whole as f64)
}

/// Returns F1 = 2·correct / (truth + predicted); `None` if both are 0.
fn f1(truth: u64, predicted: u64, correct: u64) -> Option<f64> {
    ratio(correct.saturating_mul(2), truth.saturating_add(predicted))
}

#[cfg(test)]
mod tests;
