//! Figures of an evaluation, as `train` and `evaluate` print them.

use serde::{Deserialize, Serialize};
use skiff_models::task::Task;
use skiff_protocol::metrics::{ClassCounts, SpanCounts, TaskMetrics};
use skiff_screen::table::{Column, Table};
use skiff_trainer::EvaluateSummary;
use std::collections::BTreeMap;

/// Figures of the evaluation; figures that do not apply to the task are absent.
#[derive(Clone, Serialize, Deserialize, Default)]
#[serde(default)]
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

    /// Returns a figure over all examples by its name.
    pub(super) fn figure(&self, name: &str) -> Option<f64> {
        self.whole().find(|(known, _)| *known == name).map(|(_, value)| value)
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

    /// Returns a table with a line for each part, and their averages as scikit-learn's `classification_report` defines them: a
    /// measure that is not defined counts as 0. Empty without parts.
    pub(super) fn table(parts: &[Self], width: Option<usize>) -> String {
        if parts.is_empty() {
            return String::new();
        }
        let mut table = Table::new([
            Column::text("label"),
            Column::number("examples"),
            Column::number("predicted").rank(1),
            Column::number("precision"),
            Column::number("recall"),
            Column::number("F1"),
        ]);
        let shown = |value: Option<f64>| value.map_or("-".to_owned(), |value| format!("{value:.4}"));
        for part in parts {
            let [precision, recall, f1] = [part.precision, part.recall, part.f1].map(shown);
            let Self { name, truth, predicted, .. } = part;
            table.add([name.clone(), truth.to_string(), predicted.to_string(), precision, recall, f1]);
        }
        let (truth, predicted) =
            (parts.iter().map(|part| part.truth).sum::<u64>(), parts.iter().map(|part| part.predicted).sum::<u64>());
        let by_label = |_: &Self| 1.0 / parts.len() as f64;
        let by_example = |part: &Self| part.truth as f64 / truth.max(1) as f64;
        let mean = |weight: &dyn Fn(&Self) -> f64, measure: fn(&Self) -> Option<f64>| {
            let sum: f64 = parts.iter().map(|part| weight(part) * measure(part).unwrap_or(0.0)).sum();
            format!("{sum:.4}")
        };
        let mut add_mean = |name: &str, weight: &dyn Fn(&Self) -> f64| {
            let precision = mean(weight, |part| part.precision);
            let (recall, f1) = (mean(weight, |part| part.recall), mean(weight, |part| part.f1));
            table.add([name.to_owned(), truth.to_string(), predicted.to_string(), precision, recall, f1]);
        };
        add_mean("mean over labels", &by_label);
        add_mean("mean over examples", &by_example);
        table.text(width)
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
        // precision_recall_fscore_support and classification_report of scikit-learn 1.9.1 give these numbers; its 0 for "door" has
        // no prediction.
        assert_eq!(
            Part::table(&parts, None),
            "label               examples  predicted  precision  recall      F1\n\
             warm                       3          3     0.6667  0.6667  0.6667\n\
             light                      1          2     0.5000  1.0000  0.6667\n\
             door                       1          0          -  0.0000  0.0000\n\
             mean over labels           5          5     0.3889  0.5556  0.4444\n\
             mean over examples         5          5     0.5000  0.6000  0.5333\n"
        );
        assert_eq!(Part::table(&[], None), "");
    }
}
