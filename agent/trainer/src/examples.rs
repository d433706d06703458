//! Examples for training: tokens with their targets, supplied by the caller.

use skiff_models::layout::Layout;
use skiff_models::pack::Manifest;
use skiff_models::task::Task;
use std::error::Error;

/// One example's tokens.
#[derive(Clone, PartialEq, Debug)]
pub struct Sequence {
    /// Vocabulary indices, at least one.
    pub ids: Vec<u32>,
    /// Segment of each token.
    pub types: Vec<u32>,
    /// The target.
    pub target: Target,
}

/// The expected result for an example.
#[derive(Clone, PartialEq, Debug)]
pub enum Target {
    /// No target: the example counts in no loss.
    None,
    /// The class of the example.
    Class(usize),
    /// The `C` numbers of the example.
    Numbers(Vec<f32>),
    /// Class of each token that has one.
    Tokens(Vec<Option<usize>>),
    /// Vocabulary index of each token, if the previous token has to predict it. The list is not shifted, like the `labels` of
    /// `transformers`; the first entry is never used.
    Next(Vec<Option<u32>>),
}

/// Examples for training and evaluation. While a step runs, a thread fetches the examples of the next steps.
pub trait Examples: Sync {
    /// Returns the number of examples.
    fn len(&self) -> usize;

    /// Returns true if there are no examples.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Returns the tokens of example `at`, which is below [`Examples::len`].
    ///
    /// # Errors
    /// An example that cannot be read; the error names it.
    fn encode(&self, at: usize) -> Result<Sequence, Box<dyn Error + Send + Sync>>;

    /// Returns a number that is larger for longer examples, without reading the example. Evaluations sort examples by it, because
    /// neighbours of similar length need less padding inside attention.
    fn length_hint(&self, at: usize) -> usize;

    /// Returns the class of an example without reading it, so that a sample can keep the share of each class; `None` without
    /// classes.
    fn class_hint(&self, _at: usize) -> Option<u32> {
        None
    }
}

/// Returns two short examples of unequal length that fit the pack, to check that its graphs run. Every call returns the same
/// examples; their tokens have no meaning.
#[must_use]
pub fn tiny(manifest: &Manifest) -> Vec<Sequence> {
    of_lengths(&manifest.layout, &[5, 3])
}

/// Returns examples of these lengths, cut to the limit of `layout`, with every kind of target that the task knows.
pub(crate) fn of_lengths(layout: &Layout, lengths: &[usize]) -> Vec<Sequence> {
    let (classes, vocabulary) = (layout.classes.max(1), layout.vocabulary.max(1));
    let sequence = |(at, &length): (usize, &usize)| {
        let length = length.min(layout.max_tokens).max(1);
        let ids: Vec<u32> = (0..length).map(|token| ((3 + 11 * at + 7 * token) % vocabulary) as u32).collect();
        let last_segment = u32::from(layout.segments > 1);
        let types = (0..length).map(|token| if 2 * token < length { 0 } else { last_segment }).collect();
        let target = match layout.task {
            Task::SequenceClassification => Target::Class(at % classes),
            Task::Regression => Target::Numbers((0..classes).map(|c| (at + c) as f32 - 0.5).collect()),
            Task::TokenClassification => {
                Target::Tokens((0..length).map(|token| (token % 3 != 1).then_some((at + token) % classes)).collect())
            }
            Task::CausalLm => {
                Target::Next(ids.iter().enumerate().map(|(token, &id)| (token % 4 != 2).then_some(id)).collect())
            }
        };
        Sequence { ids, types, target }
    };
    lengths.iter().enumerate().map(sequence).collect()
}
