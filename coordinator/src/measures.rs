//! Figures of an evaluation: the main measure of each task, and the figures that follow from counts and sums.

use crate::run::{Entry, Evaluation, ModelTask, Record};
use serde::{Deserialize, Serialize};
use skiff_models::spans::SpanLabels;
use skiff_models::task::Task;
use skiff_protocol::metrics::{TaskMetrics, Tokens};
use std::collections::BTreeMap;

/// The main measure of a task. Tables show it, and it decides which round is the best.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Measure {
    /// Share of correct examples or tokens. Higher is better.
    #[default]
    Accuracy,
    /// Micro-averaged F1 over spans of tokens. Higher is better.
    SpanF1,
    /// Pearson's correlation between predicted and true numbers. Higher is better.
    PearsonR,
    /// `exp` of the mean loss per token. Lower is better.
    Perplexity,
}

/// Named figures of an evaluation. Figures of other tasks and undefined figures are absent.
#[derive(Clone, Copy, PartialEq, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Figures {
    /// Number of evaluated examples, or of tokens for tasks on tokens.
    pub examples: u64,
    /// Number of those examples whose devices report counts for the task's measures. Devices with protocol version 2 report
    /// only the number of correct examples and the loss.
    pub measured: u64,
    /// Share of `examples` that are correct.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub accuracy: Option<f64>,
    /// Unweighted mean of the F1 of all classes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub macro_f1: Option<f64>,
    /// Micro-averaged F1 over spans.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub span_f1: Option<f64>,
    /// Mean squared error.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mse: Option<f64>,
    /// Pearson's correlation.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pearson_r: Option<f64>,
    /// Perplexity.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub perplexity: Option<f64>,
}

/// Figures of an evaluation for each class or type of span, by name.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Parts {
    /// F1 of each class or type of span that occurs in the examples or in the predictions.
    pub f1: BTreeMap<String, f64>,
    /// Non-zero entries of the confusion matrix: true class, predicted class, number of examples.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub confusion: Option<Vec<(String, String, u64)>>,
}

impl Measure {
    /// Returns the main measure of a task. Labels of tokens that form no spans are judged by accuracy.
    #[must_use]
    pub fn of_task(ModelTask { task, labels }: &ModelTask) -> Self {
        match task {
            Task::SequenceClassification => Self::Accuracy,
            Task::TokenClassification => {
                let spans = SpanLabels::read(labels).filter(|labels| Tokens::can_count(labels.types()));
                if spans.is_some() { Self::SpanF1 } else { Self::Accuracy }
            }
            Task::Regression => Self::PearsonR,
            Task::CausalLm => Self::Perplexity,
        }
    }

    /// Returns the main measure for the counts in `metrics`, for a run that does not know its task.
    #[must_use]
    pub fn of_metrics(metrics: &TaskMetrics) -> Self {
        match metrics {
            TaskMetrics::Tokens(tokens) if !tokens.spans().is_empty() => Self::SpanF1,
            TaskMetrics::Unknown | TaskMetrics::Classification(_) | TaskMetrics::Tokens(_) => Self::Accuracy,
            TaskMetrics::Regression(_) => Self::PearsonR,
            TaskMetrics::Language(_) => Self::Perplexity,
        }
    }

    /// Returns the name, for tables.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Accuracy => "accuracy",
            Self::SpanF1 => "span F1",
            Self::PearsonR => "Pearson r",
            Self::Perplexity => "perplexity",
        }
    }

    /// Returns the figure that this measure names.
    #[must_use]
    pub const fn figure(self, figures: &Figures) -> Option<f64> {
        match self {
            Self::Accuracy => figures.accuracy,
            Self::SpanF1 => figures.span_f1,
            Self::PearsonR => figures.pearson_r,
            Self::Perplexity => figures.perplexity,
        }
    }

    /// Returns true if `found` is better than `known`.
    #[must_use]
    pub fn is_better(self, found: f64, known: f64) -> bool {
        match self {
            Self::Accuracy | Self::SpanF1 | Self::PearsonR => found > known,
            Self::Perplexity => found < known,
        }
    }
}

impl Figures {
    /// Returns the figures of an evaluation; `None` if nothing was evaluated.
    #[must_use]
    pub fn of(evaluation: &Evaluation) -> Option<Self> {
        let Evaluation { examples, ref metrics, .. } = *evaluation;
        let figures = Self { examples, accuracy: evaluation.accuracy(), ..Self::default() };
        let figures = match metrics {
            TaskMetrics::Unknown => figures,
            TaskMetrics::Classification(counts) => {
                Self { measured: counts.examples(), macro_f1: counts.macro_f1(), ..figures }
            }
            TaskMetrics::Tokens(tokens) => Self { measured: tokens.tokens, span_f1: tokens.span_f1(), ..figures },
            TaskMetrics::Regression(sums) => {
                Self { measured: sums.pairs, mse: sums.mse(), pearson_r: sums.pearson_r(), ..figures }
            }
            TaskMetrics::Language(sums) => Self { measured: sums.tokens, perplexity: sums.perplexity(), ..figures },
        };
        (examples > 0).then_some(figures)
    }
}

impl Parts {
    /// Returns the parts of a run's last evaluation from its journal; `None` if nothing was evaluated yet.
    #[must_use]
    pub fn of_run(entries: &[Entry]) -> Option<Self> {
        let labels = entries.iter().find_map(|entry| {
            if let Record::RunStarted(start) = &entry.record {
                start.task.as_ref().map(|task| &task.labels)
            } else {
                None
            }
        });
        let counted = |entry: &Entry| {
            if let Record::Evaluated(evaluation) = &entry.record { Some(evaluation.clone()) } else { None }
        };
        let last = entries.iter().rev().filter_map(counted).find(|evaluation| evaluation.examples > 0)?;
        Some(Self::of(&last.metrics, labels.map_or(&[], Vec::as_slice)))
    }

    /// Returns the parts of an evaluation of a model with these labels. A class without a label is named by its number.
    #[must_use]
    pub fn of(metrics: &TaskMetrics, labels: &[String]) -> Self {
        let name = |class: usize| labels.get(class).cloned().unwrap_or_else(|| class.to_string());
        match metrics {
            TaskMetrics::Classification(counts) => {
                let f1 =
                    counts.classes().iter().enumerate().filter_map(|(class, counts)| Some((name(class), counts.f1()?)));
                let named = |cells: &[skiff_protocol::metrics::Cell]| {
                    cells
                        .iter()
                        .map(|cell| (name(cell.truth.into()), name(cell.predicted.into()), cell.count))
                        .collect()
                };
                Self { f1: f1.collect(), confusion: counts.confusion().map(named) }
            }
            TaskMetrics::Tokens(tokens) => {
                let f1 = tokens.spans().iter().filter_map(|span| Some((span.name.clone(), span.f1()?)));
                Self { f1: f1.collect(), confusion: None }
            }
            TaskMetrics::Unknown | TaskMetrics::Regression(_) | TaskMetrics::Language(_) => Self::default(),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests fail by panicking")]
    use super::*;
    use skiff_protocol::metrics::{Classification, Language};

    fn names(names: &[&str]) -> Vec<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    #[test]
    fn each_task_has_its_measure() {
        let measure = |task, labels: &[&str]| Measure::of_task(&ModelTask { task, labels: names(labels) });
        assert_eq!(measure(Task::SequenceClassification, &["no", "yes"]), Measure::Accuracy);
        assert_eq!(measure(Task::TokenClassification, &["O", "B-PER", "I-PER"]), Measure::SpanF1);
        assert_eq!(measure(Task::TokenClassification, &["noun", "verb"]), Measure::Accuracy);
        assert_eq!(measure(Task::Regression, &["score"]), Measure::PearsonR);
        assert_eq!(measure(Task::CausalLm, &[]), Measure::Perplexity);
        assert!(Measure::SpanF1.is_better(0.9, 0.8) && Measure::Perplexity.is_better(8.0, 9.0));
    }

    #[test]
    fn figures_of_other_tasks_are_absent() {
        let metrics = TaskMetrics::Language(Language { tokens: 4, loss_sum: 0.0 });
        let evaluation = Evaluation { devices: 1, examples: 4, correct: 1, metrics, ..Evaluation::default() };
        let figures = serde_json::to_value(Figures::of(&evaluation).unwrap()).unwrap();
        assert_eq!(figures, serde_json::json!({ "examples": 4, "measured": 4, "accuracy": 0.25, "perplexity": 1.0 }));
        assert_eq!(Figures::of(&Evaluation::default()), None);
    }

    #[test]
    fn the_parts_of_a_run_are_those_of_its_last_evaluation_that_counted_anything() {
        let entry = |evaluation| Entry { at_ms: 1, record: Record::Evaluated(evaluation) };
        let counted = |class| {
            let mut counts = Classification::new(2).unwrap();
            counts.count(class, class);
            let metrics = TaskMetrics::Classification(counts);
            entry(Evaluation { devices: 1, examples: 1, correct: 1, metrics, ..Evaluation::default() })
        };
        let parts = Parts::of_run(&[counted(0), counted(1), entry(Evaluation::default())]).unwrap();
        assert_eq!(parts.confusion.unwrap(), [("1".to_owned(), "1".to_owned(), 1)], "without labels, by number");
        assert_eq!(Parts::of_run(&[entry(Evaluation::default())]), None);
    }

    #[test]
    fn classes_are_named_by_their_labels() {
        let mut counts = Classification::new(3).unwrap();
        [(0, 0), (0, 1)].into_iter().for_each(|(truth, predicted)| counts.count(truth, predicted));
        let parts = Parts::of(&TaskMetrics::Classification(counts), &names(&["no", "yes", "maybe"]));
        assert_eq!(
            serde_json::to_value(parts).unwrap(),
            serde_json::json!({
                "f1": { "no": 2.0 / 3.0, "yes": 0.0 }, "confusion": [["no", "no", 1], ["no", "yes", 1]],
            })
        );
    }
}
