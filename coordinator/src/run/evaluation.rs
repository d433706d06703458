//! An evaluation of the global weights: checks the reports of devices and adds them up.
//!
//! Counts and sums are added in the order of the devices' names. Sums of `f64` therefore do not depend on the order of arrival.

use serde::{Deserialize, Serialize};
use skiff_models::task::Task;
use skiff_protocol::DeviceId;
use skiff_protocol::messages::EvaluationReport;
use skiff_protocol::metrics::TaskMetrics;
use std::collections::BTreeMap;

/// The task of a model, from the pack's manifest.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ModelTask {
    /// The task.
    pub task: Task,
    /// Names of the classes or numbers. A language model has none.
    pub labels: Vec<String>,
}

/// Results of an evaluation, summed over devices.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
pub struct Evaluation {
    /// Number of devices that reported.
    pub devices: u32,
    /// Number of evaluated examples, or of evaluated tokens for a task on tokens.
    pub examples: u64,
    /// Number of examples or tokens whose predicted label was right.
    pub correct: u64,
    /// Sum of the cross-entropies in nats, or of the squared errors.
    pub loss_sum: f64,
    /// Counts and sums for the measures of the task, from devices that report them.
    pub metrics: TaskMetrics,
    /// Devices whose report was left out, or that did not evaluate, with the reason.
    pub left_out: BTreeMap<DeviceId, String>,
}

impl Evaluation {
    /// Returns the share of right labels; `None` if nothing was evaluated, or if the task predicts numbers instead of labels.
    #[must_use]
    pub fn accuracy(&self) -> Option<f64> {
        let has_labels = !matches!(self.metrics, TaskMetrics::Regression(_));
        (self.examples > 0 && has_labels).then(|| self.correct as f64 / self.examples as f64)
    }

    /// Returns the mean loss per example; `None` if nothing was evaluated.
    #[must_use]
    pub fn loss(&self) -> Option<f64> {
        (self.examples > 0).then(|| self.loss_sum / self.examples as f64)
    }

    /// Adds the devices' reports up. Leaves out a report that cannot be added to the earlier ones.
    pub(super) fn sum(reports: &BTreeMap<DeviceId, Result<EvaluationReport, String>>) -> Self {
        let mut sum = Self::default();
        for (device, report) in reports {
            let added = match report {
                Ok(report) => sum.add(report),
                Err(reason) => Err(reason.clone()),
            };
            if let Err(reason) = added {
                sum.left_out.insert(device.clone(), reason);
            }
        }
        sum
    }

    fn add(&mut self, report: &EvaluationReport) -> Result<(), String> {
        self.metrics.merge(&report.metrics).map_err(|mismatch| mismatch.to_string())?;
        self.devices += 1;
        self.examples = self.examples.saturating_add(report.examples);
        self.correct = self.correct.saturating_add(report.correct);
        self.loss_sum += report.loss_sum;
        Ok(())
    }
}

/// Checks a device's report on `ordered` examples of at most `max_tokens` tokens.
///
/// # Errors
/// The fault of the report, as a text for the operator.
pub(super) fn check(
    report: &EvaluationReport,
    ordered: u64,
    max_tokens: u32,
    task: Option<&ModelTask>,
) -> Result<(), String> {
    let EvaluationReport { examples, correct, loss_sum, ref metrics, .. } = *report;
    let counts_tokens = match task {
        Some(known) => known.task.is_per_token(),
        None => matches!(metrics, TaskMetrics::Tokens(_) | TaskMetrics::Language(_)),
    };
    let (most, what) =
        if counts_tokens { (ordered.saturating_mul(max_tokens.into()), "tokens") } else { (ordered, "examples") };
    if examples > most {
        return Err(format!("it reports {examples} {what}, at most {most} were ordered"));
    }
    if correct > examples {
        return Err(format!("it reports {correct} right ones of {examples} {what}"));
    }
    if !loss_sum.is_finite() {
        return Err("the loss that it reports is not finite".to_owned());
    }
    if let Some(known) = task {
        fits_task(metrics, known)?;
    }
    let numbers = task.map_or(1, |known| known.labels.len() as u64);
    adds_up(metrics, examples, correct, task.is_some().then_some(numbers))
}

fn fits_task(metrics: &TaskMetrics, ModelTask { task, labels }: &ModelTask) -> Result<(), String> {
    let fits = match metrics {
        TaskMetrics::Unknown => true,
        TaskMetrics::Classification(counts) => {
            let found = counts.classes().len();
            if *task == Task::SequenceClassification && found != labels.len() {
                return Err(format!("it reports on {found} classes, the model has {}", labels.len()));
            }
            *task == Task::SequenceClassification
        }
        TaskMetrics::Tokens(_) => *task == Task::TokenClassification,
        TaskMetrics::Regression(_) => *task == Task::Regression,
        TaskMetrics::Language(_) => *task == Task::CausalLm,
    };
    if fits { Ok(()) } else { Err(format!("it reports on {}, the model's task is {task}", metrics.task())) }
}

/// Checks that the metrics add up for `examples` examples. `numbers` is the number of values that a regression predicts for each
/// example, if known.
fn adds_up(metrics: &TaskMetrics, examples: u64, correct: u64, numbers: Option<u64>) -> Result<(), String> {
    let (adds_up, is_finite) = match metrics {
        TaskMetrics::Unknown => (true, true),
        TaskMetrics::Classification(counts) => {
            let right: u64 = counts.classes().iter().fold(0, |sum, class| sum.saturating_add(class.correct));
            (counts.examples() == examples && right == correct, true)
        }
        TaskMetrics::Tokens(counts) => (counts.tokens == examples && counts.correct_tokens == correct, true),
        TaskMetrics::Regression(sums) => {
            let all = [sums.sum_x, sums.sum_y, sums.sum_xx, sums.sum_yy, sums.sum_xy, sums.squared_error];
            let adds_up = numbers.is_none_or(|numbers| sums.pairs == examples.saturating_mul(numbers));
            (adds_up, all.iter().all(|sum| sum.is_finite()))
        }
        TaskMetrics::Language(sums) => (sums.tokens == examples, sums.loss_sum.is_finite()),
    };
    match (adds_up, is_finite) {
        (true, true) => Ok(()),
        (false, _) => Err(format!("its counts do not add up to the {examples} that it reports")),
        (true, false) => Err("the sums that it reports are not finite".to_owned()),
    }
}

#[cfg(test)]
pub(crate) mod tests {
    #![allow(clippy::unwrap_used, reason = "tests fail by panicking")]
    use super::*;
    use crate::run::measures;
    use proptest::prelude::*;
    use skiff_protocol::metrics::{Classification, Language, Regression, SpanCounts, Tokens};

    fn task(task: Task, labels: usize) -> ModelTask {
        ModelTask { task, labels: (0..labels).map(|label| format!("class {label}")).collect() }
    }

    fn reported(examples: u64, correct: u64, metrics: TaskMetrics) -> EvaluationReport {
        EvaluationReport { examples, correct, loss_sum: 1.5, evaluate_ms: 1, peak_rss_bytes: 1, metrics }
    }

    fn classified(classes: usize, pairs: &[(usize, usize)]) -> EvaluationReport {
        let mut counts = Classification::new(classes).unwrap();
        pairs.iter().for_each(|&(truth, predicted)| counts.count(truth, predicted));
        let correct = pairs.iter().filter(|(truth, predicted)| truth == predicted).count() as u64;
        reported(pairs.len() as u64, correct, TaskMetrics::Classification(counts))
    }

    fn regressed(pairs: &[(f64, f64)]) -> EvaluationReport {
        let mut sums = Regression::default();
        pairs.iter().for_each(|&(predicted, truth)| sums.count(predicted, truth));
        reported(pairs.len() as u64, 0, TaskMetrics::Regression(sums))
    }

    /// Returns metrics of each task.
    pub(crate) fn of_each_task() -> Vec<TaskMetrics> {
        let mut tokens = Tokens::default();
        tokens.count_token(true);
        tokens.add_spans(&SpanCounts { name: "PER".to_owned(), truth: 2, predicted: 1, correct: 1 }).unwrap();
        vec![
            TaskMetrics::Unknown,
            classified(3, &[(0, 0), (0, 2), (2, 1)]).metrics,
            TaskMetrics::Tokens(tokens),
            regressed(&[(0.1, 0.2), (3.0, 2.0)]).metrics,
            TaskMetrics::Language(Language { tokens: 3, loss_sum: 4.5 }),
        ]
    }

    fn refusal(report: &EvaluationReport, ordered: u64, task: &ModelTask) -> String {
        check(report, ordered, 10, Some(task)).unwrap_err()
    }

    #[test]
    fn reports_that_cannot_be_are_refused_with_the_reason() {
        let two = task(Task::SequenceClassification, 2);
        let good = classified(2, &[(0, 0), (0, 1)]);
        assert_eq!(check(&good, 2, 10, Some(&two)), Ok(()));
        assert_eq!(check(&good, 2, 10, None), Ok(()), "a run from before tasks were recorded");
        assert_eq!(refusal(&good, 1, &two), "it reports 2 examples, at most 1 were ordered");
        let three = task(Task::SequenceClassification, 3);
        assert_eq!(refusal(&good, 2, &three), "it reports on 2 classes, the model has 3");
        let numbers = task(Task::Regression, 2);
        assert_eq!(refusal(&good, 2, &numbers), "it reports on classification, the model's task is regression");
        let more = EvaluationReport { correct: 2, ..good.clone() };
        assert_eq!(refusal(&more, 2, &two), "its counts do not add up to the 2 that it reports");
        let diverged = EvaluationReport { loss_sum: f64::NAN, ..good.clone() };
        assert_eq!(refusal(&diverged, 2, &two), "the loss that it reports is not finite");
        let beyond = EvaluationReport { correct: 3, ..good };
        assert_eq!(refusal(&beyond, 2, &two), "it reports 3 right ones of 2 examples");
        let mut pairs = regressed(&[(1.0, f64::INFINITY)]);
        assert_eq!(refusal(&pairs, 1, &task(Task::Regression, 1)), "the sums that it reports are not finite");
        pairs.metrics = regressed(&[(1.0, 2.0), (1.0, 3.0)]).metrics;
        assert_eq!(check(&pairs, 1, 10, Some(&numbers)), Ok(()), "two numbers for one example");
    }

    #[test]
    fn tasks_of_tokens_report_as_many_tokens_as_the_texts_may_have() {
        let language = task(Task::CausalLm, 0);
        let report = |tokens| reported(tokens, 3, TaskMetrics::Language(Language { tokens, loss_sum: 2.0 }));
        assert_eq!(check(&report(20), 2, 10, Some(&language)), Ok(()));
        assert_eq!(refusal(&report(21), 2, &language), "it reports 21 tokens, at most 20 were ordered");
        let old = reported(20, 3, TaskMetrics::Unknown);
        assert_eq!(check(&old, 2, 10, Some(&language)), Ok(()), "a device of protocol version 2");
    }

    #[test]
    fn a_report_that_cannot_be_added_is_left_out() {
        let reports = BTreeMap::from([
            ("a".parse().unwrap(), Ok(classified(2, &[(0, 0)]))),
            ("b".parse().unwrap(), Ok(classified(3, &[(0, 1)]))),
            ("c".parse().unwrap(), Err("no examples".to_owned())),
            ("d".parse().unwrap(), Ok(reported(3, 1, TaskMetrics::Unknown))),
        ]);
        let sum = Evaluation::sum(&reports);
        assert_eq!((sum.devices, sum.examples, sum.correct), (2, 4, 2));
        let why: Vec<(&str, &str)> = sum.left_out.iter().map(|(name, why)| (name.as_str(), why.as_str())).collect();
        assert_eq!(why, [("b", "merging metrics of 3 classes into metrics of 2 classes"), ("c", "no examples")]);
        let figures = measures::figures(&sum).unwrap();
        assert_eq!((figures.examples, figures.measured, figures.accuracy), (4, 1, Some(0.5)));
    }

    proptest! {
        #[test]
        fn a_sum_over_any_split_of_the_examples_equals_the_whole(
            pairs in prop::collection::vec((0_usize..4, 0_usize..4), 1..40),
            cuts in prop::collection::vec(0_usize..5, 40),
        ) {
            let part = |device: usize| {
                let mine = pairs.iter().zip(&cuts).filter(|(_, cut)| **cut == device).map(|(pair, _)| *pair);
                (format!("d{device}").parse().unwrap(), Ok(classified(4, &mine.collect::<Vec<_>>())))
            };
            let sum = Evaluation::sum(&(0..5).map(part).collect());
            let whole = classified(4, &pairs);
            prop_assert_eq!(&sum.metrics, &whole.metrics);
            prop_assert_eq!((sum.examples, sum.correct), (whole.examples, whole.correct));
            prop_assert!(sum.left_out.is_empty());
        }

        #[test]
        fn a_sum_does_not_depend_on_the_order_of_arrival(
            parts in prop::collection::vec(prop::collection::vec((-5_f64..5.0, -5_f64..5.0), 0..6), 1..6),
        ) {
            let named = |at: usize| (format!("d{at}").parse::<DeviceId>().unwrap(), Ok(regressed(&parts[at])));
            let forth: BTreeMap<_, _> = (0..parts.len()).map(named).collect();
            let back: BTreeMap<_, _> = (0..parts.len()).rev().map(named).collect();
            prop_assert_eq!(Evaluation::sum(&forth), Evaluation::sum(&back));
        }
    }
}
