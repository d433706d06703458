//! One labelled text, and the order of labels.

use std::cmp::Ordering;
use std::collections::BTreeSet;

/// A text and what it is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Example {
    /// Never blank; kept as it stands in the file, spaces included.
    pub text: String,
    /// Never blank; without surrounding spaces.
    pub label: String,
}

/// The distinct labels of `examples` in natural order: runs of digits compare as numbers, so `10` follows `9`.
///
/// The place of a label here is its class number, so every device that sees the same labels numbers them alike.
#[must_use]
pub fn labels(examples: &[Example]) -> Vec<String> {
    let distinct: BTreeSet<&str> = examples.iter().map(|example| example.label.as_str()).collect();
    let mut labels: Vec<String> = distinct.into_iter().map(str::to_owned).collect();
    labels.sort_by(|a, b| natural_order(a, b));
    labels
}

/// Compares run by run; texts that differ only in leading zeros fall back to the order of their bytes.
fn natural_order(a: &str, b: &str) -> Ordering {
    let (mut left, mut right) = (a, b);
    while let (Some((x, rest_x)), Some((y, rest_y))) = (first_run(left), first_run(right)) {
        let order = match (is_number(x), is_number(y)) {
            (true, true) => number_order(x, y),
            _ => x.cmp(y),
        };
        if order.is_ne() {
            return order;
        }
        (left, right) = (rest_x, rest_y);
    }
    left.len().cmp(&right.len()).then_with(|| a.cmp(b))
}

/// The longest start of `text` that is all digits or all other characters, and the rest.
fn first_run(text: &str) -> Option<(&str, &str)> {
    let digits = text.chars().next()?.is_ascii_digit();
    let end = text.find(|c: char| c.is_ascii_digit() != digits).unwrap_or(text.len());
    Some(text.split_at(end))
}

fn is_number(run: &str) -> bool {
    run.starts_with(|c: char| c.is_ascii_digit())
}

/// Numbers of any length: without leading zeros, the longer is the greater.
fn number_order(a: &str, b: &str) -> Ordering {
    let (a, b) = (a.trim_start_matches('0'), b.trim_start_matches('0'));
    a.len().cmp(&b.len()).then_with(|| a.cmp(b))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn labelled(label: &str) -> Example {
        Example { text: "text".to_owned(), label: label.to_owned() }
    }

    #[test]
    fn labels_are_distinct_and_in_natural_order() {
        let examples: Vec<Example> = ["10", "2", "b", "a10", "a9", "2", "02", ""].map(labelled).into();
        assert_eq!(labels(&examples), ["", "02", "2", "10", "a9", "a10", "b"]);
    }

    #[test]
    fn no_examples_have_no_labels() {
        assert!(labels(&[]).is_empty());
    }

    proptest! {
        #[test]
        fn natural_order_is_a_total_order(a in "[a-b0-2]{0,6}", b in "[a-b0-2]{0,6}", c in "[a-b0-2]{0,6}") {
            prop_assert_eq!(natural_order(&a, &b), natural_order(&b, &a).reverse());
            prop_assert_eq!(natural_order(&a, &b).is_eq(), a == b);
            if natural_order(&a, &b).is_le() && natural_order(&b, &c).is_le() {
                prop_assert!(natural_order(&a, &c).is_le());
            }
        }

        #[test]
        fn labels_do_not_depend_on_the_order_of_examples(mut names in proptest::collection::vec("[a-c0-9]{1,3}", 0..20)) {
            let forward: Vec<Example> = names.iter().map(|name| labelled(name)).collect();
            names.reverse();
            let backward: Vec<Example> = names.iter().map(|name| labelled(name)).collect();
            prop_assert_eq!(labels(&forward), labels(&backward));
        }
    }
}
