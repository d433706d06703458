//! Gains: the improvement of a model by a device's training.
//!
//! A device measures on a few of its own examples (a [`Probe`]), and reports the mean loss and the number of correct answers. A
//! gain is therefore computed from measures that make sense on few examples:
//!
//! | main measure of the task | gain under `gain = "measure"` |
//! |---|---|
//! | accuracy | rise of the share of correct examples |
//! | span F1 | rise of the share of correct tokens: few examples hold too few spans for an F1 |
//! | Pearson's r | fall of the mean squared error, as a share of it: a correlation of few examples tells little |
//! | perplexity | fall of the perplexity, as a share of it |

use serde::{Deserialize, Serialize};
use skiff_api::measures::Measure;
use skiff_protocol::messages::Probe;

/// Limit on the rise of a loss, in nats, above which `exp` might become infinite.
const MAX_RISE: f64 = 50.0;

/// The operator's choice of what counts as a gain.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Gain {
    /// Fall of the mean loss in nats. It is more reliable on few examples than other measures.
    #[default]
    Loss,
    /// Improvement of the main measure of the task. Its older name is `accuracy`.
    #[serde(alias = "accuracy")]
    Measure,
}

/// The quantity in which a run counts gains.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum GainUnit {
    /// Fall of the mean loss, in nats.
    Loss,
    /// Rise of the share of correct examples or tokens.
    Accuracy,
    /// Fall of the mean squared error, as a share of the error before.
    SquaredError,
    /// Fall of the perplexity, as a share of the perplexity before.
    Perplexity,
}

impl Gain {
    /// Returns the unit of gains for a task with this main measure.
    #[must_use]
    pub const fn unit(self, measure: Measure) -> GainUnit {
        match (self, measure) {
            (Self::Loss, _) => GainUnit::Loss,
            (Self::Measure, Measure::Accuracy | Measure::SpanF1) => GainUnit::Accuracy,
            (Self::Measure, Measure::PearsonR) => GainUnit::SquaredError,
            (Self::Measure, Measure::Perplexity) => GainUnit::Perplexity,
        }
    }
}

impl GainUnit {
    /// Computes the gain from a device's measurements before and after its training. It is finite.
    #[must_use]
    pub fn gain(self, probe: &Probe) -> f64 {
        let (before, after) = (f64::from(probe.loss_before), f64::from(probe.loss_after));
        match self {
            Self::Loss => before - after,
            Self::Accuracy => {
                (f64::from(probe.correct_after) - f64::from(probe.correct_before)) / f64::from(probe.examples.max(1))
            }
            // The loss of a regression is its mean squared error.
            Self::SquaredError if before > 0.0 => (before - after) / before,
            Self::SquaredError => 0.0,
            Self::Perplexity => 1.0 - (after - before).min(MAX_RISE).exp(),
        }
    }

    /// Writes a gain with its unit, for example `0.0312 nats of loss`.
    #[must_use]
    pub fn describe(self, gain: f64) -> String {
        match self {
            Self::Loss => format!("{gain:.4} nats of loss"),
            Self::Accuracy => format!("{:.2} percentage points of accuracy", 100.0 * gain),
            Self::SquaredError => format!("{:.2} % of the squared error", 100.0 * gain),
            Self::Perplexity => format!("{:.2} % of the perplexity", 100.0 * gain),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests fail by panicking")]
    use super::*;

    const MEASURES: [Measure; 4] = [Measure::Accuracy, Measure::SpanF1, Measure::PearsonR, Measure::Perplexity];

    fn probe(losses: (f32, f32), correct: (u32, u32)) -> Probe {
        Probe {
            examples: 10,
            loss_before: losses.0,
            loss_after: losses.1,
            correct_before: correct.0,
            correct_after: correct.1,
        }
    }

    #[test]
    fn a_better_model_gains_under_the_measure_of_every_task_and_a_worse_one_loses() {
        for measure in MEASURES {
            // A regression has no correct answers.
            let correct = if measure == Measure::PearsonR { (0, 0) } else { (4, 7) };
            let unit = Gain::Measure.unit(measure);
            let better = unit.gain(&probe((1.0, 0.5), correct));
            let worse = unit.gain(&probe((0.5, 1.0), (correct.1, correct.0)));
            assert!(better > 0.25 && better < 1.0 && worse < -0.25, "{measure:?}: {better} {worse}");
        }
        assert!((Gain::Measure.unit(Measure::PearsonR).gain(&probe((2.0, 0.5), (0, 0))) - 0.75).abs() < 1e-9);
        let perplexity = Gain::Measure.unit(Measure::Perplexity).gain(&probe((2.0, 1.0), (0, 0)));
        assert!((perplexity - (1.0 - (-1.0f64).exp())).abs() < 1e-9);
    }

    #[test]
    fn gains_are_finite_whatever_a_device_measures() {
        let extremes = [0.0, f32::MIN_POSITIVE, 1e30, f32::MAX];
        for unit in MEASURES.map(|measure| Gain::Measure.unit(measure)) {
            for before in extremes {
                for after in extremes {
                    let gain = unit.gain(&Probe { examples: 0, ..probe((before, after), (0, 0)) });
                    assert!(gain.is_finite(), "{unit:?}: {gain} from {before} to {after}");
                }
            }
        }
    }

    #[test]
    fn the_old_name_of_the_measure_is_still_read() {
        let read = |text: &str| serde_json::from_str::<Gain>(text).unwrap();
        assert_eq!(
            [read("\"measure\""), read("\"accuracy\""), read("\"loss\"")],
            [Gain::Measure, Gain::Measure, Gain::Loss]
        );
        assert_eq!(serde_json::to_string(&Gain::Measure).unwrap(), "\"measure\"");
    }
}
