//! Inventory of a device for training.

use serde::{Deserialize, Serialize};
use skiff_protocol::Digest;
use skiff_protocol::messages::StepMemory;

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
