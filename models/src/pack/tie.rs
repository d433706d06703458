//! The two tables of a language model: the word table, and the table that scores the next token.

use crate::architectures::Model;
use crate::architectures::decoder::{NEXT_TABLE, WORD_TABLE};
use crate::checkpoint::{Checkpoint, CheckpointError};
use crate::task::Task;

/// Source of the table that scores the next token, and of the word table.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Tie {
    /// The tables are as `config.json` says.
    AsConfigured,
    /// `config.json` ties both, but the checkpoint has both with different values. Each is used, as in transformers 5.
    Differs,
    /// `config.json` ties both, and the checkpoint has only the table that scores the next token. It serves as both, as in
    /// transformers 5.
    HeadAlone,
}

impl Tie {
    /// Compares a tied language model with its checkpoint, and unties it if the values differ.
    ///
    /// Reference: `PreTrainedModel.tie_weights` of transformers 5.23.
    pub(super) fn settle(model: &mut Model, task: Task, checkpoint: &mut Checkpoint) -> Result<Self, CheckpointError> {
        let base = model.base();
        let is_there = |name| checkpoint.find(name, base).is_some();
        if task != Task::CausalLm || !model.is_tied() || !is_there(NEXT_TABLE) {
            return Ok(Self::AsConfigured);
        }
        if !is_there(WORD_TABLE) {
            checkpoint.substitute(WORD_TABLE, NEXT_TABLE);
            return Ok(Self::HeadAlone);
        }
        if checkpoint.are_equal(WORD_TABLE, NEXT_TABLE, base)? {
            return Ok(Self::AsConfigured);
        }
        model.untie();
        Ok(Self::Differs)
    }
}
