//! Counts of a token classification: a label for each token, and the spans that labels form.

use super::{MAX_REPORTED_COUNT, Mismatch, add, f1, ratio};
use crate::limits::{NAME_BYTES, at_most};
use serde::{Deserialize, Serialize};

/// Largest number of types of span that are counted.
pub const MAX_SPAN_TYPES: usize = 256;

/// Counts of tokens, and of spans by their type.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Tokens {
    /// Number of tokens that have a label.
    pub tokens: u64,
    /// Number of tokens whose label the model predicted; at most `tokens`.
    pub correct_tokens: u64,
    /// Counts by type, ascending by name; at most [`MAX_SPAN_TYPES`].
    #[serde(deserialize_with = "at_most::<MAX_SPAN_TYPES, _, _>")]
    spans: Vec<SpanCounts>,
}

/// Counts of the spans of one type. A predicted span is correct if its type, its first and its last token are correct.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct SpanCounts {
    /// Name of the type: the label without its prefix `B-` or `I-`; 1 to 64 bytes.
    pub name: String,
    /// Number of spans in the examples.
    pub truth: u64,
    /// Number of spans that the model predicted.
    pub predicted: u64,
    /// Number of predicted spans that are in the examples.
    pub correct: u64,
}

impl SpanCounts {
    /// Returns F1 = 2·correct / (truth + predicted); `None` if the type is neither in the examples nor predicted.
    #[must_use]
    pub fn f1(&self) -> Option<f64> {
        f1(self.truth, self.predicted, self.correct)
    }
}

impl Tokens {
    /// Returns true if spans of these types can be counted: there are few enough types, and their names are short enough.
    #[must_use]
    pub fn can_count(types: &[String]) -> bool {
        types.len() <= MAX_SPAN_TYPES && types.iter().all(|name| (1..=NAME_BYTES).contains(&name.len()))
    }

    /// Counts one token.
    pub fn count_token(&mut self, is_correct: bool) {
        self.tokens += 1;
        self.correct_tokens += u64::from(is_correct);
    }

    /// Adds the counts of one type of span.
    ///
    /// # Errors
    /// [`Mismatch::TooLarge`] if there would be more than [`MAX_SPAN_TYPES`] types, or a count overflows.
    pub fn add_spans(&mut self, counts: &SpanCounts) -> Result<(), Mismatch> {
        match self.spans.binary_search_by(|known| known.name.cmp(&counts.name)) {
            Ok(at) => {
                let known = &mut self.spans[at];
                let sums = (
                    add(known.truth, counts.truth)?,
                    add(known.predicted, counts.predicted)?,
                    add(known.correct, counts.correct)?,
                );
                (known.truth, known.predicted, known.correct) = sums;
            }
            Err(_) if self.spans.len() == MAX_SPAN_TYPES => return Err(Mismatch::TooLarge),
            Err(at) => self.spans.insert(at, counts.clone()),
        }
        Ok(())
    }

    /// Returns the counts of spans, ascending by the type's name.
    #[must_use]
    pub fn spans(&self) -> &[SpanCounts] {
        &self.spans
    }

    /// Returns token accuracy = `correct_tokens / tokens`; `None` without tokens.
    #[must_use]
    pub fn accuracy(&self) -> Option<f64> {
        ratio(self.correct_tokens, self.tokens)
    }

    /// Returns micro-averaged F1 over spans = 2·Σ correct / (Σ truth + Σ predicted), sums over all types.
    ///
    /// Source: `seqeval`'s `f1_score(average="micro")`, the measure of CoNLL-2003 (Tjong Kim Sang and De Meulder, 2003). `None`
    /// if there are no spans, neither in the examples nor predicted; `seqeval` returns 0 in this case.
    #[must_use]
    pub fn span_f1(&self) -> Option<f64> {
        let sum = |count: fn(&SpanCounts) -> u64| self.spans.iter().map(count).fold(0, u64::saturating_add);
        f1(sum(|span| span.truth), sum(|span| span.predicted), sum(|span| span.correct))
    }

    pub(super) fn merge(&mut self, other: &Self) -> Result<(), Mismatch> {
        let mut merged = Self {
            tokens: add(self.tokens, other.tokens)?,
            correct_tokens: add(self.correct_tokens, other.correct_tokens)?,
            spans: self.spans.clone(),
        };
        other.spans.iter().try_for_each(|counts| merged.add_spans(counts))?;
        *self = merged;
        Ok(())
    }

    pub(super) fn check(&self) -> Result<(), &'static str> {
        if self.tokens > MAX_REPORTED_COUNT || self.correct_tokens > self.tokens {
            return Err("metrics.tokens");
        }
        let plausible = |span: &SpanCounts| {
            (1..=NAME_BYTES).contains(&span.name.len())
                && span.truth.max(span.predicted) <= MAX_REPORTED_COUNT
                && span.correct <= span.truth.min(span.predicted)
        };
        let in_order = self.spans.len() <= MAX_SPAN_TYPES && self.spans.is_sorted_by(|a, b| a.name < b.name);
        if in_order && self.spans.iter().all(plausible) { Ok(()) } else { Err("metrics.spans") }
    }
}
