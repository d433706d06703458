//! Tensors of a checkpoint that a pack leaves out, each with the reason. A trained tensor without a known reason is an error.

use crate::architectures::Model;
use crate::checkpoint::Checkpoint;
use crate::task::Task;
use std::collections::BTreeSet;

/// A tensor of the checkpoint that the pack leaves out.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Ignored {
    /// Name of the tensor in the checkpoint.
    pub name: String,
    /// Reason for leaving it out.
    pub reason: &'static str,
}

/// Facts about a build that decide which tensors may be left out.
pub(super) struct Leftovers<'a> {
    pub(super) checkpoint: &'a Checkpoint,
    pub(super) model: &'a Model,
    pub(super) task: Task,
    /// The head's last layer, if new rows or the adapter's rows replace its rows in the checkpoint, and the reason.
    pub(super) replaced: Option<(&'static str, &'static str)>,
}

const POSITIONS: &str = "counted or computed, not trained";
const WHOLE_NUMBERS: &str = "a buffer of whole numbers, not trained";
const MASKED_WORDS: &str = "head for masked words, from pretraining";
const NEXT_WORD: &str = "head for the next word, which this task does not have";
const OTHER_HEAD: &str = "head for another task";
const NO_POOLER: &str = "pooler, which the head of this task does not read";
/// Reason for an `lm_head` that equals the word table.
const TIED: &str = "equal to the word table, to which config.json ties it";
const NO_DISTANCES: &str = "for attention by distance, which config.json turns off (relative_attention)";
const NO_POSITIONS: &str = "for absolute positions, which config.json turns off (position_biased_input)";

impl Leftovers<'_> {
    /// Returns the tensors that are not in `used`, or the names of trained ones without a known reason.
    pub(super) fn ignored(&self, used: &BTreeSet<&str>) -> Result<Vec<Ignored>, Vec<String>> {
        let (mut ignored, mut unknown) = (Vec::new(), Vec::new());
        for name in self.checkpoint.names().filter(|name| !used.contains(name)) {
            match self.reason(name) {
                Some(reason) => ignored.push(Ignored { name: name.to_owned(), reason }),
                None => unknown.push(name.to_owned()),
            }
        }
        if unknown.is_empty() { Ok(ignored) } else { Err(unknown) }
    }

    fn reason(&self, name: &str) -> Option<&'static str> {
        let bare = name.strip_prefix(self.model.base()).unwrap_or(name);
        let begins = |starts: &[&str]| starts.iter().any(|start| bare.starts_with(start));
        let replaced =
            self.replaced.filter(|(layer, _)| name.strip_prefix(layer).is_some_and(|rest| rest.starts_with('.')));
        if let Some((_, reason)) = replaced {
            return Some(reason);
        }
        if bare.ends_with("position_ids") || bare.ends_with("rotary_emb.inv_freq") {
            return Some(POSITIONS);
        }
        if !self.checkpoint.is_trained(name) {
            return Some(WHOLE_NUMBERS);
        }
        if begins(&["classifier.", "score.", "qa_outputs."]) {
            return Some(OTHER_HEAD);
        }
        match self.model {
            Model::Decoder(_) if bare == "lm_head.weight" => {
                Some(if self.task == Task::CausalLm { TIED } else { NEXT_WORD })
            }
            Model::Decoder(_) => None,
            Model::Bert(_) | Model::Deberta(_)
                if begins(&["cls.", "lm_head.", "lm_predictions.", "mask_predictions."]) =>
            {
                Some(MASKED_WORDS)
            }
            Model::Bert(_) | Model::Deberta(_) if begins(&["pooler."]) => Some(NO_POOLER),
            Model::Deberta(deberta) => {
                let distances =
                    begins(&["encoder.rel_embeddings.", "encoder.LayerNorm."]) && deberta.relative.is_none();
                let positions = begins(&["embeddings.position_embeddings."]) && !deberta.absolute;
                distances.then_some(NO_DISTANCES).or(positions.then_some(NO_POSITIONS))
            }
            Model::Bert(_) => None,
        }
    }
}
