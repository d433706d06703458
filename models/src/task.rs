//! The tasks that a model is tuned for.

use serde::{Deserialize, Serialize};
use std::fmt;

/// A task, which determines the head's result, its loss, and the targets of a batch.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Task {
    /// One class for a text or a pair of texts. Loss: mean cross-entropy over the examples.
    SequenceClassification,
    /// `C` numbers for a text or a pair. Loss: mean of the squared errors over examples and numbers.
    Regression,
    /// One class for each token. Loss: mean cross-entropy over the tokens that have a label.
    TokenClassification,
    /// The next token. Loss: mean cross-entropy over the tokens whose successor counts.
    CausalLm,
}

impl Task {
    /// Every task.
    pub const ALL: [Self; 4] =
        [Self::SequenceClassification, Self::Regression, Self::TokenClassification, Self::CausalLm];

    /// Returns the task's name in files and on the command line.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::SequenceClassification => "sequence-classification",
            Self::Regression => "regression",
            Self::TokenClassification => "token-classification",
            Self::CausalLm => "causal-lm",
        }
    }

    /// Returns true if the head computes scores for every token instead of every example.
    #[must_use]
    pub const fn is_per_token(self) -> bool {
        matches!(self, Self::TokenClassification | Self::CausalLm)
    }
}

impl fmt::Display for Task {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
