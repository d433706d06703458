//! Inventory of a device for training, and findings that keep it from training.

use serde::{Deserialize, Serialize};
use skiff_protocol::Digest;
use skiff_protocol::messages::StepMemory;
use std::fmt;

/// The device's pack and examples, as the worker found them when the agent started.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Inventory {
    /// Digest of the pack.
    pub pack: Digest,
    /// Digest of the names and shapes of the pack's trainable tensors.
    pub schema: Digest,
    /// Number of the model's transformer layers.
    pub layers: usize,
    /// Number of examples to train on.
    pub train_examples: u64,
    /// Number of examples to evaluate on.
    pub test_examples: u64,
    /// Memory of the smallest steps.
    pub memory: StepMemory,
}

/// The result of a check by `skiff-agent doctor`.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Finding {
    /// Everything is in order.
    Fine(String),
    /// The agent runs, but the operator may want to know about this.
    Doubtful(String),
    /// The agent cannot take part; the text says what to do.
    Broken(String),
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (verdict, text) = match self {
            Self::Fine(text) => ("ok  ", text),
            Self::Doubtful(text) => ("warn", text),
            Self::Broken(text) => ("FAIL", text),
        };
        write!(f, "{verdict}  {text}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_finding_is_one_line_with_its_verdict() {
        assert_eq!(Finding::Fine("x".into()).to_string(), "ok    x");
        assert_eq!(Finding::Broken("x".into()).to_string(), "FAIL  x");
    }
}
