//! Sums for a language model, which predicts the next token of a text.

use super::{MAX_REPORTED_COUNT, Mismatch, add};
use serde::{Deserialize, Serialize};

/// Sums over predicted tokens.
#[derive(Clone, Copy, PartialEq, Debug, Default, Serialize, Deserialize)]
pub struct Language {
    /// Number of tokens that were predicted.
    pub tokens: u64,
    /// Σ −ln p(token), in nats; not finite if the model diverged.
    pub loss_sum: f64,
}

impl Language {
    /// Counts tokens whose losses add up to `loss_sum`, in nats.
    pub fn count(&mut self, tokens: u64, loss_sum: f64) {
        self.tokens += tokens;
        self.loss_sum += loss_sum;
    }

    /// Returns the mean loss of a token in nats; `None` without tokens, or if the sum is not finite.
    #[must_use]
    #[expect(clippy::cast_precision_loss, reason = "counts of tokens are far below 2^53")]
    pub fn mean_loss(&self) -> Option<f64> {
        (self.tokens > 0 && self.loss_sum.is_finite()).then(|| self.loss_sum / self.tokens as f64)
    }

    /// Returns perplexity = exp(loss_sum / tokens).
    ///
    /// Source: Jelinek et al. 1977; as in Hugging Face's "Perplexity of fixed-length models", with natural logarithms.
    /// `None` without tokens, or if the result is not finite.
    #[must_use]
    pub fn perplexity(&self) -> Option<f64> {
        self.mean_loss().map(f64::exp).filter(|perplexity| perplexity.is_finite())
    }

    pub(super) fn merge(&mut self, other: &Self) -> Result<(), Mismatch> {
        self.tokens = add(self.tokens, other.tokens)?;
        self.loss_sum += other.loss_sum;
        Ok(())
    }

    pub(super) fn check(&self) -> Result<(), &'static str> {
        if self.tokens <= MAX_REPORTED_COUNT { Ok(()) } else { Err("metrics.tokens") }
    }
}
