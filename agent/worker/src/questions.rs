//! Answers of a model to texts without labels.
//!
//! A text is tokenised as [`crate::corpus`] tokenises examples, so an answer is the one that an evaluation counts.

use crate::corpus::{CorpusError, Entry, sequence, tokenizer};
use skiff_data::{Passage, Place, Question, Words};
use skiff_models::Pack;
use skiff_models::task::Task;
use skiff_trainer::batch::Truth;
use skiff_trainer::evaluation::{best, cross_entropy};
use skiff_trainer::{Batch, Sequence, Target, Trainer};
use std::borrow::Cow;
use tokenizers::Tokenizer;

/// A text, or words, for the model.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Asked {
    /// A text or a pair.
    Whole(Question),
    /// Words to label.
    Words(Words),
    /// A text to predict.
    Passage(Passage),
}

/// The model's answer.
#[derive(Clone, PartialEq, Debug)]
pub enum Answer {
    /// The probability of each label, and the number of the most probable one.
    Class {
        /// Probabilities in the order of the pack's labels.
        probabilities: Vec<f64>,
        /// Number of the label with the largest score.
        best: usize,
    },
    /// The predicted numbers.
    Numbers(Vec<f32>),
    /// Label and probability for each word; `None` for a word without tokens, which was cut.
    Words(Vec<Option<(usize, f64)>>),
    /// Fit of a text to a language model.
    Perplexity {
        /// Number of tokens that were predicted.
        tokens: u64,
        /// exp(mean −ln p(token)); `None` without tokens, or if it is not finite.
        perplexity: Option<f64>,
    },
}

impl Asked {
    /// Returns the text on its own.
    #[must_use]
    pub fn text(&self) -> Cow<'_, str> {
        match self {
            Self::Whole(Question { text, pair: None }) => text.into(),
            Self::Whole(Question { text, pair: Some(pair) }) => format!("{text} / {pair}").into(),
            Self::Words(Words { words }) => words.join(" ").into(),
            Self::Passage(Passage { prompt, text }) => format!("{prompt}{text}").into(),
        }
    }

    /// Returns the words; none for a text.
    #[must_use]
    pub fn words(&self) -> &[String] {
        match self {
            Self::Words(Words { words }) => words,
            Self::Whole(_) | Self::Passage(_) => &[],
        }
    }

    fn entry(&self) -> Entry {
        match self.clone() {
            Self::Whole(Question { text, pair }) => Entry::Whole { text, pair, target: Target::None },
            Self::Words(Words { words }) => Entry::Words { words, labels: Vec::new() },
            Self::Passage(passage) => Entry::Passage(passage),
        }
    }
}

impl From<Question> for Asked {
    fn from(question: Question) -> Self {
        Self::Whole(question)
    }
}

impl From<Words> for Asked {
    fn from(words: Words) -> Self {
        Self::Words(words)
    }
}

impl From<Passage> for Asked {
    fn from(passage: Passage) -> Self {
        Self::Passage(passage)
    }
}

/// A pack that answers.
pub struct Desk {
    trainer: Trainer,
    tokenizer: Tokenizer,
    task: Task,
    segments: usize,
    /// Number of the token that ends a language model's texts.
    end: Option<u32>,
}

/// A tokenised text.
struct Laid {
    sequence: Sequence,
    /// First token of each word; `None` for a word without tokens.
    words: Vec<Option<usize>>,
    was_cut: bool,
}

impl Desk {
    /// Opens the pack's tokenizer, which cuts texts at `max_tokens` tokens, to answer with the weights of `trainer`.
    ///
    /// # Errors
    /// A tokenizer that cannot be read.
    pub fn open(pack: &Pack, trainer: Trainer, max_tokens: usize) -> Result<Self, CorpusError> {
        let manifest = pack.manifest();
        let end = manifest.end_token.as_ref().map(|token| token.id);
        let (task, segments) = (manifest.layout.task, manifest.layout.segments);
        Ok(Self { trainer, tokenizer: tokenizer(pack, max_tokens)?, task, segments, end })
    }

    /// Returns the answer to each text of a batch, with true if the text was cut.
    ///
    /// # Errors
    /// A text that the tokenizer refuses, a graph that fails.
    pub fn answer(&mut self, asked: &[(Place, Asked)]) -> anyhow::Result<Vec<(Answer, bool)>> {
        let laid = asked.iter().map(|(place, asked)| self.lay(place, asked)).collect::<Result<Vec<_>, _>>()?;
        let sequences: Vec<Sequence> = laid.iter().map(|laid| laid.sequence.clone()).collect();
        let batch = Batch::new(&sequences, self.trainer.form())?;
        let answers = match self.task {
            Task::SequenceClassification => self.rows(&batch, &mut |scores| {
                let probabilities = softmax(scores);
                Answer::Class { probabilities, best: best(scores) }
            })?,
            Task::Regression => self.rows(&batch, &mut |scores| Answer::Numbers(scores.to_vec()))?,
            Task::TokenClassification => {
                let found = self.rows(&batch, &mut |scores| (best(scores), softmax(scores)[best(scores)]))?;
                let of_words = |(laid, last): (&Laid, &usize)| {
                    let first = last + 1 - laid.sequence.ids.len();
                    let word = |token: &Option<usize>| token.and_then(|token| found.get(first + token).copied());
                    Answer::Words(laid.words.iter().map(word).collect())
                };
                laid.iter().zip(&batch.ends).map(of_words).collect()
            }
            Task::CausalLm => self.perplexities(&batch)?,
        };
        Ok(answers.into_iter().zip(laid.iter().map(|laid| laid.was_cut)).collect())
    }

    fn lay(&self, place: &Place, asked: &Asked) -> Result<Laid, CorpusError> {
        let (sequence, encoding) = sequence(&self.tokenizer, self.segments, self.end, asked.entry(), place)?;
        let mut words = vec![None; asked.words().len()];
        for (token, word) in encoding.get_word_ids().iter().enumerate() {
            if let Some(first) = word.and_then(|word| words.get_mut(word as usize)) {
                first.get_or_insert(token);
            }
        }
        Ok(Laid { sequence, words, was_cut: !encoding.get_overflowing().is_empty() })
    }

    /// Returns a value for each row of scores.
    fn rows<T>(&mut self, batch: &Batch, value: &mut dyn FnMut(&[f32]) -> T) -> anyhow::Result<Vec<T>> {
        let mut values = Vec::with_capacity(batch.truths.len());
        self.trainer.score(batch, &mut |_, scores| values.push(value(scores)))?;
        Ok(values)
    }

    fn perplexities(&mut self, batch: &Batch) -> anyhow::Result<Vec<Answer>> {
        let mut sums = vec![(0_u64, 0.0_f64); batch.examples];
        self.trainer.score(batch, &mut |row, scores| {
            let example = batch.ends.partition_point(|&end| end < row);
            if let (Some(Truth::Class(token)), Some((tokens, loss))) = (batch.truths.get(row), sums.get_mut(example)) {
                *tokens += 1;
                *loss += cross_entropy(scores, *token);
            }
        })?;
        let answer = |(tokens, loss): (u64, f64)| {
            let perplexity =
                (tokens > 0).then(|| (loss / tokens as f64).exp()).filter(|perplexity| perplexity.is_finite());
            Answer::Perplexity { tokens, perplexity }
        };
        Ok(sums.into_iter().map(answer).collect())
    }
}

/// Returns exp(score) / Σ exp(score), in f64 and shifted by the largest score so that it cannot overflow.
fn softmax(scores: &[f32]) -> Vec<f64> {
    let largest = scores.get(best(scores)).copied().map_or(0.0, f64::from);
    let shifted: Vec<f64> = scores.iter().map(|&score| (f64::from(score) - largest).exp()).collect();
    let sum: f64 = shifted.iter().sum();
    shifted.into_iter().map(|value| value / sum).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn probabilities_add_up_to_one_and_do_not_overflow() {
        for (scores, first) in [([0.0, 0.0], 0.5), ([1e4, 0.0], 1.0), ([0.0, 3_f32.ln()], 0.25)] {
            let found = softmax(&scores);
            assert!((found[0] - first).abs() < 1e-6 && (found.iter().sum::<f64>() - 1.0).abs() < 1e-12, "{found:?}");
        }
    }
}
