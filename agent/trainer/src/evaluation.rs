//! The counts of an evaluation, and the task's measures that are computed from them.

use crate::batch::Truth;
use std::time::Duration;

/// The size of an evaluation.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct EvaluatePlan {
    /// At most this many examples, from the first.
    pub examples: usize,
    /// Examples at a time.
    pub batch: usize,
}

/// Results of an evaluation.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct EvaluateSummary {
    /// Examples evaluated.
    pub examples: u64,
    /// Number that counted: examples with a target or, for a task on tokens, tokens with one.
    pub counted: u64,
    /// Rows whose largest score was the right one; 0 if the scores are numbers.
    pub correct: u64,
    /// Sum over what counted: of the cross-entropy in nats or, of numbers, of the squared error, a mean over `C`.
    pub loss_sum: f64,
    /// Scores and the numbers that they should have been; empty if the scores are of classes.
    pub agreement: Agreement,
    /// Wall time.
    pub elapsed: Duration,
}

/// Joint statistics of two numbers, updated with each pair (Welford's recurrence, Technometrics 4(3), 1962, p. 419, for two
/// variables).
#[derive(Clone, Copy, PartialEq, Debug, Default)]
pub struct Agreement {
    pairs: f64,
    means: [f64; 2],
    squares: [f64; 2],
    products: f64,
}

impl EvaluateSummary {
    /// Returns the share of the counted rows that were right.
    #[must_use]
    pub fn accuracy(&self) -> f64 {
        self.correct as f64 / self.counted.max(1) as f64
    }

    /// Returns the mean loss of the examples or tokens that counted.
    #[must_use]
    pub fn mean_loss(&self) -> f64 {
        self.loss_sum / self.counted.max(1) as f64
    }

    /// Returns `exp` of the mean cross-entropy.
    #[must_use]
    pub fn perplexity(&self) -> f64 {
        self.mean_loss().exp()
    }

    /// Returns the square root of the mean squared error.
    #[must_use]
    pub fn rmse(&self) -> f64 {
        self.mean_loss().sqrt()
    }

    /// Adds a row of scores and what it should have been.
    pub(super) fn add(&mut self, truth: &Truth, scores: &[f32]) {
        match truth {
            Truth::None => return,
            Truth::Class(class) => {
                self.correct += u64::from(best(scores) == *class);
                self.loss_sum += cross_entropy(scores, *class);
            }
            Truth::Numbers(numbers) => {
                let mut squares = 0.0;
                for (&score, &number) in scores.iter().zip(numbers) {
                    let (score, number) = (f64::from(score), f64::from(number));
                    squares += (score - number).powi(2);
                    self.agreement.add(score, number);
                }
                self.loss_sum += squares / numbers.len().max(1) as f64;
            }
        }
        self.counted += 1;
    }
}

impl Agreement {
    /// Returns Pearson's coefficient of all pairs; `None` if one side never changed.
    #[must_use]
    pub fn correlation(&self) -> Option<f64> {
        let scale = (self.squares[0] * self.squares[1]).sqrt();
        (scale > 0.0).then(|| self.products / scale)
    }

    fn add(&mut self, score: f64, number: f64) {
        self.pairs += 1.0;
        let before = [score - self.means[0], number - self.means[1]];
        self.means = [self.means[0] + before[0] / self.pairs, self.means[1] + before[1] / self.pairs];
        let after = [score - self.means[0], number - self.means[1]];
        self.squares = [self.squares[0] + before[0] * after[0], self.squares[1] + before[1] * after[1]];
        self.products += before[0] * after[1];
    }
}

/// Returns the largest score's place; the lower of equals.
fn best(scores: &[f32]) -> usize {
    (0..scores.len()).reduce(|best, at| if scores[at] > scores[best] { at } else { best }).unwrap_or(0)
}

/// Returns `log sum exp(scores) - scores[class]`, in nats and f64, shifted by the largest score so that it cannot overflow;
/// infinite if the model has no such class.
fn cross_entropy(scores: &[f32], class: usize) -> f64 {
    let Some(&score) = scores.get(class) else { return f64::INFINITY };
    let largest = f64::from(scores[best(scores)]);
    let sum = scores.iter().map(|&score| (f64::from(score) - largest).exp()).sum::<f64>();
    sum.ln() + largest - f64::from(score)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cross_entropy_is_exact_for_known_scores_and_does_not_overflow() {
        assert!((cross_entropy(&[0.0, 0.0], 1) - std::f64::consts::LN_2).abs() < 1e-12);
        assert!((cross_entropy(&[1e4, 0.0], 1) - 1e4).abs() < 1e-9);
    }

    #[test]
    fn rows_without_a_truth_do_not_count() {
        let mut summary = EvaluateSummary::default();
        summary.add(&Truth::Class(1), &[0.0, 1.0]);
        summary.add(&Truth::None, &[0.0, 1.0]);
        summary.add(&Truth::Class(0), &[0.0, 1.0]);
        assert_eq!((summary.counted, summary.correct), (2, 1));
        assert!((summary.accuracy() - 0.5).abs() < 1e-12);
        assert!((summary.perplexity() - (summary.loss_sum / 2.0).exp()).abs() < 1e-12);
    }

    #[test]
    fn numbers_are_judged_by_their_squared_error_and_their_correlation() {
        let mut summary = EvaluateSummary::default();
        for (score, number) in [(1.0, 2.0), (2.0, 4.0), (3.0, 3.0), (5.0, 7.0)] {
            summary.add(&Truth::Numbers(vec![number]), &[score]);
        }
        assert_eq!((summary.counted, summary.correct), (4, 0));
        assert!((summary.rmse() - (9f64 / 4.0).sqrt()).abs() < 1e-12);
        // numpy.corrcoef([1, 2, 3, 5], [2, 4, 3, 7])[0, 1]
        assert!((summary.agreement.correlation().unwrap_or_default() - 0.903_507_902_905_251_3).abs() < 1e-12);
        assert_eq!(Agreement::default().correlation(), None);
    }
}
