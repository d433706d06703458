//! Figures of an evaluation, as `train` and `evaluate` print them.

use serde::Serialize;
use skiff_models::task::Task;
use skiff_protocol::metrics::{ClassCounts, SpanCounts, TaskMetrics};
use skiff_trainer::EvaluateSummary;
use std::collections::BTreeMap;
use std::fmt::Write as _;

/// Figures of the evaluation; figures that do not apply to the task are absent.
#[derive(Serialize, Default)]
pub(super) struct Found {
    /// Share of correct examples or, for a task on tokens, of correct tokens.
    accuracy: Option<f64>,
    macro_f1: Option<f64>,
    /// F1 of each class by its label; a class that is neither in the examples nor predicted has none.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    class_f1: BTreeMap<String, Option<f64>>,
    /// Micro-averaged F1 over spans.
    span_f1: Option<f64>,
    /// F1 of each type of span.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    span_type_f1: BTreeMap<String, Option<f64>>,
    perplexity: Option<f64>,
    mse: Option<f64>,
    rmse: Option<f64>,
    /// Pearson's r.
    correlation: Option<f64>,
}

impl Found {
    /// Returns the figures of an evaluation of a model with these labels.
    pub(super) fn of(task: Task, labels: &[String], summary: &EvaluateSummary) -> Self {
        let accuracy = (task != Task::Regression).then(|| summary.accuracy());
        let found = Self { accuracy, ..Self::default() };
        match &summary.metrics {
            TaskMetrics::Unknown => found,
            TaskMetrics::Classification(counts) => {
                let by_class = labels.iter().cloned().zip(counts.classes().iter().map(ClassCounts::f1));
                Self { macro_f1: counts.macro_f1(), class_f1: by_class.collect(), ..found }
            }
            TaskMetrics::Tokens(tokens) => {
                let by_type = tokens.spans().iter().map(|span| (span.name.clone(), span.f1()));
                Self { span_f1: tokens.span_f1(), span_type_f1: by_type.collect(), ..found }
            }
            TaskMetrics::Regression(sums) => {
                let mse = sums.mse();
                Self { mse, rmse: mse.map(f64::sqrt), correlation: sums.pearson_r(), ..found }
            }
            TaskMetrics::Language(sums) => Self { perplexity: sums.perplexity(), ..found },
        }
    }

    /// Returns the name and value of each figure.
    pub(super) fn lines(&self) -> impl Iterator<Item = (String, f64)> {
        let parts = self.class_f1.iter().chain(&self.span_type_f1);
        let parts = parts.filter_map(|(name, f1)| Some((format!("F1 of {name}"), (*f1)?)));
        self.whole().map(|(name, value)| (name.to_owned(), value)).chain(parts)
    }

    /// Returns the name and value of each figure over all examples.
    pub(super) fn whole(&self) -> impl Iterator<Item = (&'static str, f64)> {
        let named = [
            ("accuracy", self.accuracy),
            ("macro-F1", self.macro_f1),
            ("span F1", self.span_f1),
            ("perplexity", self.perplexity),
            ("RMSE", self.rmse),
            ("correlation", self.correlation),
        ];
        named.into_iter().filter_map(|(name, value)| Some((name, value?)))
    }
}

/// Counts and measures of one class, or of one type of span.
#[derive(Serialize)]
pub(super) struct Part {
    /// The label, or the type's name.
    name: String,
    /// Number in the examples.
    truth: u64,
    /// Number that the model found.
    predicted: u64,
    /// Number that the model found and that are in the examples.
    correct: u64,
    /// Share of the spans that the model found that are right.
    precision: Option<f64>,
    /// Share of the spans in the examples that the model found.
    recall: Option<f64>,
    f1: Option<f64>,
}

impl Part {
    /// Returns the classes or types of span that are in the examples or were predicted, in the order of the labels.
    pub(super) fn all_of(labels: &[String], metrics: &TaskMetrics) -> Vec<Self> {
        let parts: Vec<Self> = match metrics {
            TaskMetrics::Classification(counts) => {
                let of_class = |(label, counts): (&String, &ClassCounts)| {
                    let ClassCounts { truth, predicted, correct } = *counts;
                    Self::new(label, truth, predicted, correct, counts.f1())
                };
                labels.iter().zip(counts.classes()).map(of_class).collect()
            }
            TaskMetrics::Tokens(tokens) => {
                let of_type = |counts: &SpanCounts| {
                    Self::new(&counts.name, counts.truth, counts.predicted, counts.correct, counts.f1())
                };
                tokens.spans().iter().map(of_type).collect()
            }
            TaskMetrics::Unknown | TaskMetrics::Regression(_) | TaskMetrics::Language(_) => Vec::new(),
        };
        parts.into_iter().filter(|part| part.truth + part.predicted > 0).collect()
    }

    fn new(name: &str, truth: u64, predicted: u64, correct: u64, f1: Option<f64>) -> Self {
        let share = |whole: u64| (whole > 0).then(|| correct as f64 / whole as f64);
        Self { name: name.to_owned(), truth, predicted, correct, precision: share(predicted), recall: share(truth), f1 }
    }

    /// Returns a table with a line for each part; empty without parts.
    pub(super) fn table(parts: &[Self]) -> String {
        let mut table = String::new();
        if parts.is_empty() {
            return table;
        }
        let longest = parts.iter().map(|part| part.name.chars().count()).max().unwrap_or(0).max("LABEL".len());
        let shown = |value: Option<f64>| value.map_or("-".to_owned(), |value| format!("{value:.4}"));
        let _ = writeln!(
            table,
            "{:<longest$}  {:>8}  {:>9}  {:>9}  {:>6}  {:>6}",
            "LABEL", "EXAMPLES", "PREDICTED", "PRECISION", "RECALL", "F1"
        );
        for part in parts {
            let [precision, recall, f1] = [part.precision, part.recall, part.f1].map(shown);
            let Self { name, truth, predicted, .. } = part;
            let _ =
                writeln!(table, "{name:<longest$}  {truth:>8}  {predicted:>9}  {precision:>9}  {recall:>6}  {f1:>6}");
        }
        table
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failing test may panic")]
    use super::*;
    use skiff_protocol::metrics::Classification;

    #[test]
    fn the_table_has_a_line_for_each_class_that_occurs() {
        let labels = ["warm", "light", "sound", "door"].map(str::to_owned);
        let mut counts = Classification::new(4).unwrap();
        [(0, 0), (0, 0), (0, 1), (1, 1), (3, 0)]
            .into_iter()
            .for_each(|(truth, predicted)| counts.count(truth, predicted));
        let parts = Part::all_of(&labels, &TaskMetrics::Classification(counts));
        // precision_recall_fscore_support of scikit-learn 1.9.1 gives these numbers; its 0 for "door" has no prediction.
        assert_eq!(
            Part::table(&parts),
            "LABEL  EXAMPLES  PREDICTED  PRECISION  RECALL      F1\n\
             warm          3          3     0.6667  0.6667  0.6667\n\
             light         1          2     0.5000  1.0000  0.6667\n\
             door          1          0          -  0.0000  0.0000\n"
        );
        assert_eq!(Part::table(&[]), "");
    }
}
