#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
use super::*;
use crate::testing;
use proptest::collection::vec;
use proptest::prelude::{ProptestConfig, any, prop_assert, prop_assert_eq, proptest};

/// Largest relative difference between two ways of adding the same numbers, and of figures computed from them.
const CLOSE: f64 = 1e-9;

fn close(a: Option<f64>, b: Option<f64>) -> bool {
    match (a, b) {
        (Some(a), Some(b)) => (a - b).abs() <= CLOSE * a.abs().max(b.abs()).max(1.0),
        (None, None) => true,
        (Some(_), None) | (None, Some(_)) => false,
    }
}

fn classified(classes: usize, pairs: &[(usize, usize)]) -> Classification {
    let mut counts = Classification::new(classes).unwrap();
    pairs.iter().for_each(|&(truth, predicted)| counts.count(truth, predicted));
    counts
}

fn regressed(pairs: &[(f64, f64)]) -> Regression {
    let mut sums = Regression::default();
    pairs.iter().for_each(|&(predicted, truth)| sums.count(predicted, truth));
    sums
}

fn span(name: &str, truth: u64, predicted: u64, correct: u64) -> SpanCounts {
    SpanCounts { name: name.to_owned(), truth, predicted, correct }
}

fn spans(counts: &[SpanCounts]) -> Tokens {
    let mut tokens = Tokens::default();
    counts.iter().for_each(|counts| tokens.add_spans(counts).unwrap());
    tokens
}

fn merged(a: &TaskMetrics, b: &TaskMetrics) -> Result<TaskMetrics, Mismatch> {
    let mut sum = a.clone();
    sum.merge(b).map(|()| sum)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn merged_classifications_equal_one_over_all_examples(
        a in vec((0..5_usize, 0..5_usize), 0..60),
        b in vec((0..5_usize, 0..5_usize), 0..60),
        c in vec((0..5_usize, 0..5_usize), 0..60),
    ) {
        let [ours, theirs, third] = [&a, &b, &c].map(|pairs| TaskMetrics::Classification(classified(5, pairs)));
        let whole = TaskMetrics::Classification(classified(5, &[a, b, c].concat()));
        let ours_first = merged(&merged(&ours, &theirs).unwrap(), &third).unwrap();
        let theirs_first = merged(&ours, &merged(&third, &theirs).unwrap()).unwrap();
        prop_assert_eq!(&ours_first, &whole);
        prop_assert_eq!(&theirs_first, &whole);
    }

    #[test]
    fn figures_of_a_classification_are_those_of_its_examples(
        pairs in vec((0..4_usize, 0..4_usize), 1..80),
    ) {
        let counts = classified(6, &pairs);
        let (n, hits) = (pairs.len() as f64, pairs.iter().filter(|(truth, predicted)| truth == predicted).count() as f64);
        prop_assert!(close(counts.accuracy(), Some(hits / n)));
        // F1 from precision and recall, over the classes that occur.
        let mut scores = Vec::new();
        for class in 0..6 {
            let truth = pairs.iter().filter(|pair| pair.0 == class).count() as f64;
            let predicted = pairs.iter().filter(|pair| pair.1 == class).count() as f64;
            let correct = pairs.iter().filter(|pair| **pair == (class, class)).count() as f64;
            if truth + predicted > 0.0 {
                let (precision, recall) = (correct / predicted, correct / truth);
                scores.push(if correct > 0.0 { 2.0 * precision * recall / (precision + recall) } else { 0.0 });
            }
        }
        prop_assert!(close(counts.macro_f1(), Some(scores.iter().sum::<f64>() / scores.len() as f64)));
        prop_assert_eq!(counts.confusion().unwrap().iter().map(|cell| cell.count).sum::<u64>(), pairs.len() as u64);
        prop_assert_eq!(TaskMetrics::Classification(counts).check(pairs.len() as u64), Ok(()));
    }

    #[test]
    fn merged_regressions_equal_one_over_all_examples(
        a in vec((-5_f64..5.0, -5_f64..5.0), 0..60),
        b in vec((-5_f64..5.0, -5_f64..5.0), 0..60),
    ) {
        let whole = regressed(&[a.clone(), b.clone()].concat());
        let (mut ours, mut theirs) = (regressed(&a), regressed(&b));
        let before = ours;
        ours.merge(&theirs).unwrap();
        theirs.merge(&before).unwrap();
        prop_assert_eq!(ours, theirs);
        prop_assert_eq!(ours.pairs, whole.pairs);
        prop_assert!(close(ours.mse(), whole.mse()));
        prop_assert!(close(ours.pearson_r(), whole.pearson_r()), "{ours:?} {whole:?}");
    }

    #[test]
    fn figures_of_a_regression_are_those_of_centred_examples(pairs in vec((-5_f64..5.0, -5_f64..5.0), 2..60)) {
        let n = pairs.len() as f64;
        let (mean_x, mean_y) =
            (pairs.iter().map(|pair| pair.0).sum::<f64>() / n, pairs.iter().map(|pair| pair.1).sum::<f64>() / n);
        let sum = |term: &dyn Fn(f64, f64) -> f64| pairs.iter().map(|&(x, y)| term(x - mean_x, y - mean_y)).sum::<f64>();
        let r = sum(&|x, y| x * y) / (sum(&|x, _| x * x) * sum(&|_, y| y * y)).sqrt();
        let sums = regressed(&pairs);
        prop_assert!((sums.pearson_r().unwrap() - r).abs() < 1e-6);
        prop_assert!(close(sums.mse(), Some(pairs.iter().map(|(x, y)| (x - y).powi(2)).sum::<f64>() / n)));
    }

    #[test]
    fn merging_is_commutative_and_unknown_changes_nothing(a in testing::metrics(), b in testing::metrics()) {
        prop_assert_eq!(merged(&a, &b).ok(), merged(&b, &a).ok());
        prop_assert_eq!(merged(&a, &TaskMetrics::Unknown), Ok(a.clone()));
        prop_assert_eq!(merged(&TaskMetrics::Unknown, &a), Ok(a));
    }

    #[test]
    fn merging_spans_is_associative(counts in vec(("[A-C]{1,2}", any::<[u16; 3]>()), 0..30), cut in any::<[u8; 2]>()) {
        let all: Vec<_> =
            counts.into_iter().map(|(name, n)| span(&name, n[0].into(), n[1].into(), n[2].into())).collect();
        let mut cuts = cut.map(|at| usize::from(at) % (all.len() + 1));
        cuts.sort_unstable();
        let [a, b, c] =
            [&all[..cuts[0]], &all[cuts[0]..cuts[1]], &all[cuts[1]..]].map(|part| TaskMetrics::Tokens(spans(part)));
        let whole = TaskMetrics::Tokens(spans(&all));
        prop_assert_eq!(merged(&merged(&a, &b).unwrap(), &c), Ok(whole.clone()));
        prop_assert_eq!(merged(&a, &merged(&b, &c).unwrap()), Ok(whole));
    }
}

#[test]
fn a_class_that_does_not_occur_does_not_count_in_macro_f1() {
    // scikit-learn: f1_score([0, 0, 1, 1], [0, 1, 1, 3], average="macro") = (2/3 + 1/2 + 0) / 3 = 0.38889.
    let counts = classified(4, &[(0, 0), (0, 1), (1, 1), (1, 3)]);
    let f1: Vec<_> = counts.classes().iter().map(ClassCounts::f1).collect();
    assert!(close(f1[0], Some(2.0 / 3.0)) && close(f1[1], Some(0.5)));
    assert_eq!(f1[2..], [None, Some(0.0)], "class 2 does not occur, class 3 is only predicted");
    assert!(close(counts.macro_f1(), Some((2.0 / 3.0 + 0.5) / 3.0)));
}

#[test]
fn figures_without_examples_are_none() {
    let counts = Classification::new(3).unwrap();
    assert_eq!((counts.accuracy(), counts.macro_f1(), counts.examples()), (None, None, 0));
    assert_eq!((Tokens::default().accuracy(), Tokens::default().span_f1()), (None, None));
    assert_eq!((Regression::default().mse(), Regression::default().pearson_r()), (None, None));
    assert_eq!((Language::default().mean_loss(), Language::default().perplexity()), (None, None));
    assert_eq!(Classification::new(0), None);
    assert_eq!(Classification::new(MAX_CLASSES + 1), None);
}

#[test]
fn spans_are_averaged_over_all_of_them() {
    let tokens = spans(&[span("PER", 4, 2, 2), span("LOC", 10, 12, 6), span("PER", 0, 2, 0)]);
    assert_eq!(tokens.spans(), [span("LOC", 10, 12, 6), span("PER", 4, 4, 2)]);
    assert_eq!(tokens.spans()[1].f1(), Some(0.5));
    assert!(close(tokens.span_f1(), Some(2.0 * 8.0 / 30.0)));
    let mut tokens = tokens;
    [true, true, false].into_iter().for_each(|is_correct| tokens.count_token(is_correct));
    assert!(close(tokens.accuracy(), Some(2.0 / 3.0)));
}

#[test]
fn pearsons_r_needs_numbers_that_differ() {
    assert!(close(regressed(&[(1.0, 2.0), (2.0, 4.0), (3.0, 6.0)]).pearson_r(), Some(1.0)));
    assert!(close(regressed(&[(1.0, 6.0), (2.0, 4.0), (3.0, 2.0)]).pearson_r(), Some(-1.0)));
    assert_eq!(regressed(&[(1.0, 2.0)]).pearson_r(), None, "one example");
    assert_eq!(regressed(&[(0.1, 2.0), (0.1, 3.0), (0.1, 4.0)]).pearson_r(), None, "a constant model");
    let diverged = regressed(&[(f64::NAN, 2.0), (1.0, 3.0)]);
    assert_eq!((diverged.pearson_r(), diverged.mse()), (None, None));
    let overflown = regressed(&[(1e200, 2.0), (1.0, 3.0)]);
    assert_eq!((overflown.pearson_r(), overflown.mse()), (None, None));
}

#[test]
fn perplexity_is_the_exponential_of_the_mean_loss() {
    let mut sums = Language::default();
    sums.count(3, 3.0 * 8_f64.ln());
    assert!(close(sums.perplexity(), Some(8.0)));
    assert_eq!(Language { tokens: 1, loss_sum: 1e6 }.perplexity(), None, "it overflows");
    assert_eq!(Language { tokens: 1, loss_sum: f64::NAN }.perplexity(), None);
}

#[test]
fn what_does_not_fit_is_refused_and_changes_nothing() {
    let mut counts = TaskMetrics::Classification(classified(3, &[(1, 2)]));
    let before = counts.clone();
    let other = TaskMetrics::Classification(classified(4, &[(1, 2)]));
    assert_eq!(counts.merge(&other), Err(Mismatch::Classes { ours: 3, theirs: 4 }));
    let other = TaskMetrics::Language(Language::default());
    let mismatch = counts.merge(&other).unwrap_err();
    assert_eq!(mismatch.to_string(), "merging metrics of language modelling into metrics of classification");
    assert_eq!(counts, before);

    let mut tokens = TaskMetrics::Tokens(spans(&[span("A", 1, 1, 1), span("B", u64::MAX, 0, 0)]));
    let before = tokens.clone();
    let other = TaskMetrics::Tokens(spans(&[span("A", 1, 1, 1), span("B", 1, 0, 0)]));
    assert_eq!(tokens.merge(&other), Err(Mismatch::TooLarge));
    assert_eq!(tokens, before);
}

#[test]
fn a_confusion_matrix_that_is_too_large_is_left_out_in_any_order() {
    let classes = 200;
    let pairs: Vec<_> = (0..=MAX_CELLS).map(|at| (at / classes, at % classes)).collect();
    let (first, rest) = pairs.split_at(MAX_CELLS / 2);
    let whole = classified(classes, &pairs);
    assert_eq!(whole.confusion(), None);
    assert_eq!(classified(classes, &pairs[..MAX_CELLS]).confusion().map(<[Cell]>::len), Some(MAX_CELLS));
    let [first, rest] = [first, rest].map(|part| TaskMetrics::Classification(classified(classes, part)));
    assert_eq!(merged(&first, &rest), Ok(TaskMetrics::Classification(whole.clone())));
    assert_eq!(merged(&rest, &first), Ok(TaskMetrics::Classification(whole)));
}

#[test]
fn counts_that_contradict_each_other_are_refused() {
    let good = classified(3, &[(0, 0), (0, 1), (1, 1)]);
    let read = |bytes: Vec<u8>| postcard::from_bytes::<TaskMetrics>(&bytes).unwrap();
    let changed = |from: &[u8], to: &[u8]| {
        let bytes = postcard::to_stdvec(&TaskMetrics::Classification(good.clone())).unwrap();
        let at = bytes.windows(from.len()).position(|window| window == from).unwrap();
        read([&bytes[..at], to, &bytes[at + from.len()..]].concat()).check(3)
    };
    assert_eq!(changed(&[3, 2, 1, 1], &[3, 2, 1, 1]), Ok(()));
    assert_eq!(changed(&[3, 2, 1, 1], &[3, 2, 1, 2]), Err("metrics.classes"), "more correct than predicted");
    assert_eq!(changed(&[3, 2, 1, 1], &[3, 1, 1, 1]), Err("metrics.classes"), "fewer examples than predictions");
    assert_eq!(changed(&[3, 2, 1, 1, 1, 2, 1], &[3, 2, 1, 0, 1, 2, 1]), Err("metrics.confusion"));
    assert_eq!(TaskMetrics::Classification(good).check(2), Err("metrics.classes"), "more than were evaluated");
    let regression = TaskMetrics::Regression(Regression { pairs: MAX_REPORTED_COUNT + 1, ..Regression::default() });
    assert_eq!(regression.check(3), Err("metrics.pairs"));
    let mut tokens = spans(&[]);
    tokens.correct_tokens = 2;
    let tokens = TaskMetrics::Tokens(tokens);
    assert_eq!(tokens.check(1), Err("metrics.tokens"));
    assert_eq!(TaskMetrics::Tokens(spans(&[span("", 1, 1, 1)])).check(1), Err("metrics.spans"));
    assert_eq!(TaskMetrics::Tokens(spans(&[span("A", 1, 1, 2)])).check(1), Err("metrics.spans"));
}
