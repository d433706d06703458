//! Counts of an evaluation, and the sums behind the measures of the task.

use crate::batch::Truth;
use skiff_models::spans::SpanLabels;
use skiff_models::task::Task;
use skiff_protocol::metrics::{Classification, Language, Regression, SpanCounts, TaskMetrics, Tokens};
use std::time::Duration;

/// Size of an evaluation.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct EvaluatePlan {
    /// Maximum number of examples. If there are more, a sample of this size is evaluated.
    pub examples: usize,
    /// Number of examples in one batch.
    pub batch: usize,
}

/// Result of an evaluation.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct EvaluateSummary {
    /// Number of evaluated examples.
    pub examples: u64,
    /// Number of counted rows: examples with a target or, for a task on tokens, tokens with a target.
    pub counted: u64,
    /// Number of rows with the largest score at the right class; 0 if the scores are numbers.
    pub correct: u64,
    /// Sum of the loss over the counted rows: cross-entropy in nats or, for numbers, the mean squared error over `C`.
    pub loss_sum: f64,
    /// Counts and sums for the measures of the task.
    pub metrics: TaskMetrics,
    /// Wall time.
    pub elapsed: Duration,
}

impl EvaluateSummary {
    /// Returns an empty summary. Models with more classes than the protocol can count have no metrics.
    #[must_use]
    pub fn new(task: Task, classes: usize) -> Self {
        let metrics = match task {
            Task::SequenceClassification => {
                Classification::new(classes).map_or(TaskMetrics::Unknown, TaskMetrics::Classification)
            }
            Task::Regression => TaskMetrics::Regression(Regression::default()),
            Task::TokenClassification => TaskMetrics::Tokens(Tokens::default()),
            Task::CausalLm => TaskMetrics::Language(Language::default()),
        };
        Self { metrics, ..Self::default() }
    }

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

    /// Adds a row of scores and its expected result.
    pub(super) fn add(&mut self, truth: &Truth, scores: &[f32]) {
        match truth {
            Truth::None => return,
            Truth::Class(class) => self.add_class(*class, scores),
            Truth::Numbers(numbers) => {
                let mut squares = 0.0;
                for (&score, &number) in scores.iter().zip(numbers) {
                    let (score, number) = (f64::from(score), f64::from(number));
                    squares += (score - number).powi(2);
                    if let TaskMetrics::Regression(sums) = &mut self.metrics {
                        sums.count(score, number);
                    }
                }
                self.loss_sum += squares / numbers.len().max(1) as f64;
            }
        }
        self.counted += 1;
    }

    fn add_class(&mut self, class: usize, scores: &[f32]) {
        let predicted = best(scores);
        let loss = cross_entropy(scores, class);
        self.correct += u64::from(predicted == class);
        self.loss_sum += loss;
        match &mut self.metrics {
            TaskMetrics::Classification(counts) => counts.count(class, predicted),
            TaskMetrics::Tokens(counts) => counts.count_token(predicted == class),
            TaskMetrics::Language(sums) => sums.count(1, loss),
            TaskMetrics::Unknown | TaskMetrics::Regression(_) => {}
        }
    }
}

/// Labels of the tokens of one text; tokens without a label are left out. Their spans are counted when the text is complete.
///
/// A span is right if its type, its first and its last token agree, as in `seqeval`'s default mode.
#[derive(Default)]
pub(super) struct Tagged {
    truth: Vec<usize>,
    predicted: Vec<usize>,
}

impl Tagged {
    /// Adds the next token, if it has a label.
    pub(super) fn add(&mut self, truth: &Truth, scores: &[f32]) {
        if let Truth::Class(class) = truth {
            self.truth.push(*class);
            self.predicted.push(best(scores));
        }
    }

    /// Adds the text's spans to `metrics`, and begins the next text. Types that the protocol cannot count leave `metrics`
    /// without spans of these types.
    pub(super) fn count(&mut self, labels: &SpanLabels, metrics: &mut TaskMetrics) {
        if let TaskMetrics::Tokens(tokens) = metrics {
            let (truth, predicted) = (labels.spans(&self.truth), labels.spans(&self.predicted));
            for (kind, name) in labels.types().iter().enumerate() {
                let counts = SpanCounts {
                    name: name.clone(),
                    truth: truth.iter().filter(|span| span.kind == kind).count() as u64,
                    predicted: predicted.iter().filter(|span| span.kind == kind).count() as u64,
                    correct: truth.iter().filter(|span| span.kind == kind && predicted.contains(span)).count() as u64,
                };
                if counts.truth + counts.predicted > 0 {
                    // Overflow is impossible here, and the number of types was checked with the labels.
                    let _ = tokens.add_spans(&counts);
                }
            }
        }
        *self = Self::default();
    }
}

/// Returns the labels that form spans; `None` if they form none, or if the protocol cannot count their types.
pub(super) fn span_labels(task: Task, names: &[String]) -> Option<SpanLabels> {
    let labels = (task == Task::TokenClassification).then(|| SpanLabels::read(names)).flatten()?;
    Tokens::can_count(labels.types()).then_some(labels)
}

/// Returns the index of the largest score, or the lowest such index if several are equal.
#[must_use]
pub fn best(scores: &[f32]) -> usize {
    (0..scores.len()).reduce(|best, at| if scores[at] > scores[best] { at } else { best }).unwrap_or(0)
}

/// Returns `log sum exp(scores) - scores[class]`, in nats and f64, shifted by the largest score so that it cannot overflow;
/// infinite if the model has no such class.
#[must_use]
pub fn cross_entropy(scores: &[f32], class: usize) -> f64 {
    let Some(&score) = scores.get(class) else { return f64::INFINITY };
    let largest = f64::from(scores[best(scores)]);
    let sum = scores.iter().map(|&score| (f64::from(score) - largest).exp()).sum::<f64>();
    sum.ln() + largest - f64::from(score)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests fail by panicking")]
    use super::*;

    /// Returns scores of `classes` classes, with `class` as the best.
    fn scores(classes: usize, class: usize) -> Vec<f32> {
        (0..classes).map(|at| if at == class { 2.0 } else { 0.0 }).collect()
    }

    fn close(found: Option<f64>, expected: f64) {
        assert!(found.is_some_and(|found| (found - expected).abs() < 1e-12), "{found:?}, expected {expected}");
    }

    #[test]
    fn cross_entropy_is_exact_for_known_scores_and_does_not_overflow() {
        assert!((cross_entropy(&[0.0, 0.0], 1) - std::f64::consts::LN_2).abs() < 1e-12);
        assert!((cross_entropy(&[1e4, 0.0], 1) - 1e4).abs() < 1e-9);
    }

    #[test]
    fn rows_without_a_truth_do_not_count() {
        let mut summary = EvaluateSummary::new(Task::CausalLm, 2);
        summary.add(&Truth::Class(1), &[0.0, 1.0]);
        summary.add(&Truth::None, &[0.0, 1.0]);
        summary.add(&Truth::Class(0), &[0.0, 1.0]);
        assert_eq!((summary.counted, summary.correct), (2, 1));
        assert!((summary.accuracy() - 0.5).abs() < 1e-12);
        let TaskMetrics::Language(sums) = summary.metrics else { panic!("{:?}", summary.metrics) };
        assert_eq!(sums.tokens, 2);
        close(sums.perplexity(), (summary.loss_sum / 2.0).exp());
    }

    #[test]
    fn numbers_are_judged_by_their_squared_error_and_their_correlation() {
        let mut summary = EvaluateSummary::new(Task::Regression, 1);
        for (score, number) in [(1.0, 2.0), (2.0, 4.0), (3.0, 3.0), (5.0, 7.0)] {
            summary.add(&Truth::Numbers(vec![number]), &[score]);
        }
        assert_eq!((summary.counted, summary.correct), (4, 0));
        let TaskMetrics::Regression(sums) = summary.metrics else { panic!("{:?}", summary.metrics) };
        // sklearn.metrics.mean_squared_error([2, 4, 3, 7], [1, 2, 3, 5]) of scikit-learn 1.9.1
        close(sums.mse(), 2.25);
        // scipy.stats.pearsonr([1, 2, 3, 5], [2, 4, 3, 7])[0] of SciPy 1.17.1
        close(sums.pearson_r(), 0.903_507_902_905_251_4);
    }

    #[test]
    fn every_number_of_an_example_is_a_pair() {
        let mut summary = EvaluateSummary::new(Task::Regression, 2);
        summary.add(&Truth::Numbers(vec![1.0, 2.0]), &[1.0, 4.0]);
        let TaskMetrics::Regression(sums) = &summary.metrics else { panic!("{:?}", summary.metrics) };
        assert_eq!((sums.pairs, summary.counted), (2, 1));
        close(sums.mse(), summary.mean_loss());
    }

    #[test]
    fn classes_are_judged_as_scikit_learn_does() {
        let mut summary = EvaluateSummary::new(Task::SequenceClassification, 4);
        let (truth, predicted) = ([0, 0, 0, 1, 1, 2, 2, 2, 2, 3], [0, 1, 0, 1, 2, 2, 2, 0, 2, 1]);
        for (truth, predicted) in truth.into_iter().zip(predicted) {
            summary.add(&Truth::Class(truth), &scores(4, predicted));
        }
        let TaskMetrics::Classification(counts) = &summary.metrics else { panic!("{:?}", summary.metrics) };
        // f1_score(truth, predicted, average="macro"), the same with average=None, accuracy_score, confusion_matrix of
        // scikit-learn 1.9.1
        close(counts.macro_f1(), 0.454_166_666_666_666_66);
        let by_class: Vec<f64> = counts.classes().iter().map(|class| class.f1().unwrap()).collect();
        [2.0 / 3.0, 0.4, 0.75, 0.0].into_iter().zip(by_class).for_each(|(expected, f1)| close(Some(f1), expected));
        close(counts.accuracy(), 0.6);
        let cells: Vec<(u16, u16, u64)> =
            counts.confusion().unwrap().iter().map(|cell| (cell.truth, cell.predicted, cell.count)).collect();
        assert_eq!(cells, [(0, 0, 2), (0, 1, 1), (1, 1, 1), (1, 2, 1), (2, 0, 1), (2, 2, 3), (3, 1, 1)]);
    }

    #[test]
    fn spans_are_judged_as_seqeval_does() {
        let names = ["O", "B-PER", "I-PER", "B-LOC", "I-LOC", "E-LOC", "S-PER"].map(str::to_owned);
        let labels = span_labels(Task::TokenClassification, &names).unwrap();
        let truth = [
            [5, 0, 6, 4, 0, 4, 1, 3, 2, 4, 2, 4],
            [1, 4, 2, 0, 2, 3, 2, 2, 6, 0, 6, 2],
            [2, 0, 4, 4, 1, 0, 1, 0, 4, 3, 3, 6],
            [5, 0, 6, 0, 3, 0, 0, 4, 5, 3, 6, 6],
        ];
        let predicted = [
            [5, 0, 6, 6, 0, 4, 1, 4, 6, 4, 2, 4],
            [1, 4, 2, 3, 2, 3, 3, 2, 6, 0, 6, 2],
            [2, 0, 4, 4, 3, 0, 1, 3, 4, 3, 0, 6],
            [5, 0, 6, 0, 3, 1, 0, 4, 5, 3, 6, 6],
        ];
        let mut summary = EvaluateSummary::new(Task::TokenClassification, 7);
        let mut tagged = Tagged::default();
        for (truth, predicted) in truth.into_iter().zip(predicted) {
            for (truth, predicted) in truth.into_iter().zip(predicted) {
                // The later pieces of a word have no label; they neither count nor split a span.
                for truth in [Truth::Class(truth), Truth::None] {
                    summary.add(&truth, &scores(7, predicted));
                    tagged.add(&truth, &scores(7, predicted));
                }
            }
            tagged.count(&labels, &mut summary.metrics);
        }
        let TaskMetrics::Tokens(tokens) = &summary.metrics else { panic!("{:?}", summary.metrics) };
        // f1_score and classification_report of seqeval 1.2.2 over the texts above.
        close(tokens.span_f1(), 0.828_571_428_571_428_6);
        let by_type: Vec<(&str, u64)> = tokens.spans().iter().map(|span| (span.name.as_str(), span.truth)).collect();
        assert_eq!(by_type, [("LOC", 16), ("PER", 18)]);
        close(tokens.spans()[0].f1(), 0.787_878_787_878_788);
        close(tokens.spans()[1].f1(), 0.864_864_864_864_864_9);
        assert_eq!((tokens.tokens, summary.counted), (48, 48));
    }
}
