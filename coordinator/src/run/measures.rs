//! Computes the figures of an evaluation, and the main measure of each task, from counts and sums.

use super::evaluation::{Evaluation, ModelTask};
use super::record::{Entry, Record};
use skiff_api::measures::{Figures, Measure, Parts};
use skiff_models::spans::SpanLabels;
use skiff_models::task::Task;
use skiff_protocol::metrics::{TaskMetrics, Tokens};

/// Returns the main measure of a task. If the labels of tokens form no spans, the measure is accuracy.
#[must_use]
pub fn of_task(ModelTask { task, labels }: &ModelTask) -> Measure {
    match task {
        Task::SequenceClassification => Measure::Accuracy,
        Task::TokenClassification => {
            let spans = SpanLabels::read(labels).filter(|labels| Tokens::can_count(labels.types()));
            if spans.is_some() { Measure::SpanF1 } else { Measure::Accuracy }
        }
        Task::Regression => Measure::PearsonR,
        Task::CausalLm => Measure::Perplexity,
    }
}

/// Returns the main measure for the counts in `metrics`, for a run that does not know its task.
#[must_use]
pub fn of_metrics(metrics: &TaskMetrics) -> Measure {
    match metrics {
        TaskMetrics::Tokens(tokens) if !tokens.spans().is_empty() => Measure::SpanF1,
        TaskMetrics::Unknown | TaskMetrics::Classification(_) | TaskMetrics::Tokens(_) => Measure::Accuracy,
        TaskMetrics::Regression(_) => Measure::PearsonR,
        TaskMetrics::Language(_) => Measure::Perplexity,
    }
}

/// Returns the figures of an evaluation; `None` if nothing was evaluated.
#[must_use]
pub fn figures(evaluation: &Evaluation) -> Option<Figures> {
    let Evaluation { examples, ref metrics, .. } = *evaluation;
    let figures = Figures { examples, accuracy: evaluation.accuracy(), ..Figures::default() };
    let figures = match metrics {
        TaskMetrics::Unknown => figures,
        TaskMetrics::Classification(counts) => {
            Figures { measured: counts.examples(), macro_f1: counts.macro_f1(), ..figures }
        }
        TaskMetrics::Tokens(tokens) => Figures { measured: tokens.tokens, span_f1: tokens.span_f1(), ..figures },
        TaskMetrics::Regression(sums) => {
            Figures { measured: sums.pairs, mse: sums.mse(), pearson_r: sums.pearson_r(), ..figures }
        }
        TaskMetrics::Language(sums) => Figures { measured: sums.tokens, perplexity: sums.perplexity(), ..figures },
    };
    (examples > 0).then_some(figures)
}

/// Returns the parts of a run's last evaluation from its journal; `None` if nothing was evaluated yet.
#[must_use]
pub fn parts_of_run(entries: &[Entry]) -> Option<Parts> {
    let labels = entries.iter().find_map(|entry| {
        if let Record::RunStarted(start) = &entry.record { start.task.as_ref().map(|task| &task.labels) } else { None }
    });
    let counted = |entry: &Entry| {
        if let Record::Evaluated(evaluation) = &entry.record { Some(evaluation.clone()) } else { None }
    };
    let last = entries.iter().rev().filter_map(counted).find(|evaluation| evaluation.examples > 0)?;
    Some(parts(&last.metrics, labels.map_or(&[], Vec::as_slice)))
}

/// Returns the parts of an evaluation of a model with these labels. A class without a label is named by its number.
#[must_use]
pub fn parts(metrics: &TaskMetrics, labels: &[String]) -> Parts {
    let name = |class: usize| labels.get(class).cloned().unwrap_or_else(|| class.to_string());
    match metrics {
        TaskMetrics::Classification(counts) => {
            let f1 =
                counts.classes().iter().enumerate().filter_map(|(class, counts)| Some((name(class), counts.f1()?)));
            let named = |cells: &[skiff_protocol::metrics::Cell]| {
                cells.iter().map(|cell| (name(cell.truth.into()), name(cell.predicted.into()), cell.count)).collect()
            };
            Parts { f1: f1.collect(), confusion: counts.confusion().map(named) }
        }
        TaskMetrics::Tokens(tokens) => {
            let f1 = tokens.spans().iter().filter_map(|span| Some((span.name.clone(), span.f1()?)));
            Parts { f1: f1.collect(), confusion: None }
        }
        TaskMetrics::Unknown | TaskMetrics::Regression(_) | TaskMetrics::Language(_) => Parts::default(),
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
        let measure = |task, labels: &[&str]| of_task(&ModelTask { task, labels: names(labels) });
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
        let figures = serde_json::to_value(super::figures(&evaluation).unwrap()).unwrap();
        assert_eq!(figures, serde_json::json!({ "examples": 4, "measured": 4, "accuracy": 0.25, "perplexity": 1.0 }));
        assert_eq!(super::figures(&Evaluation::default()), None);
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
        let parts = parts_of_run(&[counted(0), counted(1), entry(Evaluation::default())]).unwrap();
        assert_eq!(parts.confusion.unwrap(), [("1".to_owned(), "1".to_owned(), 1)], "without labels, by number");
        assert_eq!(parts_of_run(&[entry(Evaluation::default())]), None);
    }

    #[test]
    fn classes_are_named_by_their_labels() {
        let mut counts = Classification::new(3).unwrap();
        [(0, 0), (0, 1)].into_iter().for_each(|(truth, predicted)| counts.count(truth, predicted));
        let parts = super::parts(&TaskMetrics::Classification(counts), &names(&["no", "yes", "maybe"]));
        assert_eq!(
            serde_json::to_value(parts).unwrap(),
            serde_json::json!({
                "f1": { "no": 2.0 / 3.0, "yes": 0.0 }, "confusion": [["no", "no", 1], ["no", "yes", 1]],
            })
        );
    }
}
