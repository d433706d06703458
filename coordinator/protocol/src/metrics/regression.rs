//! Sums of a regression: one or more numbers for each text.

use super::{MAX_REPORTED_COUNT, Mismatch, add};
use serde::{Deserialize, Serialize};

/// Sums over pairs of numbers, x being the model's number and y the example's; a model of `C` numbers gives `C` pairs for each
/// example. The sums may have any value if the model diverged.
#[derive(Clone, Copy, PartialEq, Debug, Default, Serialize, Deserialize)]
pub struct Regression {
    /// Number of pairs.
    pub pairs: u64,
    /// Σ x.
    pub sum_x: f64,
    /// Σ y.
    pub sum_y: f64,
    /// Σ x².
    pub sum_xx: f64,
    /// Σ y².
    pub sum_yy: f64,
    /// Σ x·y.
    pub sum_xy: f64,
    /// Σ (x − y)².
    pub squared_error: f64,
}

impl Regression {
    /// Counts one pair: the model's number `predicted`, and the example's number `truth`.
    pub fn count(&mut self, predicted: f64, truth: f64) {
        self.pairs += 1;
        self.sum_x += predicted;
        self.sum_y += truth;
        self.sum_xx += predicted * predicted;
        self.sum_yy += truth * truth;
        self.sum_xy += predicted * truth;
        self.squared_error += (predicted - truth) * (predicted - truth);
    }

    /// Returns the mean squared error = Σ (x − y)² / n, in the square of the examples' unit, n being the number of pairs.
    ///
    /// `None` without pairs, or if the sum is not finite.
    #[must_use]
    pub fn mse(&self) -> Option<f64> {
        self.n().map(|n| self.squared_error / n).filter(|mse| mse.is_finite())
    }

    /// Returns Pearson's r = (n·Σxy − Σx·Σy) / √((n·Σx² − (Σx)²)·(n·Σy² − (Σy)²)), from -1 to 1.
    ///
    /// Source: the definition, as `scipy.stats.pearsonr` computes it from centred values. `None` with fewer than two
    /// examples, if all x or all y are the same, or if a sum is not finite.
    ///
    /// # Numerics
    /// Sums of squares cancel: values with mean m and standard deviation s lose about 2·log₁₀(m/s) of the 16 digits of an `f64`.
    /// Scores of usual tasks (0 to 5, deviation about 1) keep more than 13. A variance that rounding alone can cause (below 10⁻¹²
    /// of the sum of squares) counts as 0.
    #[must_use]
    pub fn pearson_r(&self) -> Option<f64> {
        let n = self.n().filter(|_| self.pairs >= 2)?;
        let variance_x = variance(n, self.sum_x, self.sum_xx)?;
        let variance_y = variance(n, self.sum_y, self.sum_yy)?;
        let covariance = n * self.sum_xy - self.sum_x * self.sum_y;
        // Roots before the product, which could overflow or vanish.
        let r = covariance / variance_x.sqrt() / variance_y.sqrt();
        r.is_finite().then(|| r.clamp(-1.0, 1.0))
    }

    #[expect(clippy::cast_precision_loss, reason = "counts of examples are far below 2^53")]
    fn n(&self) -> Option<f64> {
        (self.pairs > 0).then_some(self.pairs as f64)
    }

    pub(super) fn merge(&mut self, other: &Self) -> Result<(), Mismatch> {
        self.pairs = add(self.pairs, other.pairs)?;
        self.sum_x += other.sum_x;
        self.sum_y += other.sum_y;
        self.sum_xx += other.sum_xx;
        self.sum_yy += other.sum_yy;
        self.sum_xy += other.sum_xy;
        self.squared_error += other.squared_error;
        Ok(())
    }

    pub(super) fn check(&self) -> Result<(), &'static str> {
        if self.pairs <= MAX_REPORTED_COUNT { Ok(()) } else { Err("metrics.pairs") }
    }
}

/// Returns n²·variance; `None` if it is so small that it may be a rounding error.
fn variance(n: f64, sum: f64, squares: f64) -> Option<f64> {
    let variance = n * squares - sum * sum;
    (variance > 1e-12 * n * squares).then_some(variance)
}
