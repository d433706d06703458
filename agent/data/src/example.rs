//! The kinds of examples in files, one for each kind of task.
//!
//! Each kind takes its fields from a [`Row`] and checks them there, so that every example is complete.

use crate::advice::Needs;
use crate::error::DataError;
use crate::format::Format;
use crate::names::{self, Named, Texts};
use crate::row::Row;
use serde::Serialize;
use std::cmp::Ordering;
use std::collections::BTreeSet;

/// A text, or a pair of texts, with a label.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Example {
    /// Never blank; kept as it stands in the file, spaces included.
    pub text: String,
    /// The second text of a pair, under the same rules.
    #[serde(rename = "text_pair", skip_serializing_if = "Option::is_none")]
    pub pair: Option<String>,
    /// Never blank; without surrounding spaces.
    pub label: String,
}

/// A text, or a pair of texts, with the numbers to predict.
#[derive(Clone, PartialEq, Debug)]
pub struct Rated {
    /// Never blank; kept as it stands in the file, spaces included.
    pub text: String,
    /// The second text of a pair, likewise.
    pub pair: Option<String>,
    /// Finite, at least one.
    pub numbers: Vec<f32>,
}

/// Words with a label each.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Tagged {
    /// At least one; none is blank.
    pub words: Vec<String>,
    /// One for each word; never blank, without surrounding spaces.
    pub labels: Vec<String>,
}

/// A text whose words are to be predicted.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Passage {
    /// The given text before it; may be empty.
    pub prompt: String,
    /// Never blank; kept as it stands in the file, spaces included.
    pub text: String,
}

/// A kind of example.
pub trait Record: Sized {
    /// The extensions of files that can hold examples of this kind, with their formats.
    const FORMATS: &'static [(&'static str, Format)];
    /// The allowed names of columns, for error messages.
    const COLUMNS: &'static str;

    /// The fields that an example of this kind needs.
    const NEEDS: Needs;

    /// Returns true if columns with these names hold all fields of an example.
    #[must_use]
    fn fits(named: &Named<'_>) -> bool;

    /// Takes the example from a record.
    ///
    /// # Errors
    /// A field that is missing, blank, or of another type.
    fn of_row(row: &mut Row<'_>) -> Result<Self, DataError>;
}

const TEXT_FILES: &[(&str, Format)] =
    &[("csv", Format::Csv), ("tsv", Format::Tsv), JSON_LINES[0], JSON_LINES[1], ("txt", Format::Tsv)];
pub(crate) const JSON_LINES: [(&str, Format); 2] = [("jsonl", Format::JsonLines), ("json", Format::JsonLines)];

impl Record for Example {
    const FORMATS: &'static [(&'static str, Format)] = TEXT_FILES;
    const COLUMNS: &'static str = names::LABELLED;

    const NEEDS: Needs = Needs::TextAndLabel;

    fn fits(named: &Named<'_>) -> bool {
        names::label(named).is_some() && names::texts(named).is_some()
    }

    fn of_row(row: &mut Row<'_>) -> Result<Self, DataError> {
        let label = names::label(&row.named()).ok_or_else(|| row.missing_label(Self::COLUMNS))?;
        let label = row.label(label)?;
        let (text, pair) = one_or_two(row, Self::COLUMNS, Self::NEEDS)?;
        Ok(Self { text, pair, label })
    }
}

impl Record for Rated {
    const FORMATS: &'static [(&'static str, Format)] = TEXT_FILES;
    const COLUMNS: &'static str = names::LABELLED;

    const NEEDS: Needs = Needs::TextAndLabel;

    fn fits(named: &Named<'_>) -> bool {
        Example::fits(named)
    }

    fn of_row(row: &mut Row<'_>) -> Result<Self, DataError> {
        let label = names::label(&row.named()).ok_or_else(|| row.missing_label(Self::COLUMNS))?;
        let numbers = row.numbers(label)?;
        let (text, pair) = one_or_two(row, Self::COLUMNS, Self::NEEDS)?;
        Ok(Self { text, pair, numbers })
    }
}

impl Record for Tagged {
    const FORMATS: &'static [(&'static str, Format)] =
        &[JSON_LINES[0], JSON_LINES[1], ("conll", Format::Conll), ("txt", Format::Conll)];
    const COLUMNS: &'static str = names::WORDS_AND_LABELS;
    const NEEDS: Needs = Needs::Words;

    fn fits(_: &Named<'_>) -> bool {
        false
    }

    fn of_row(row: &mut Row<'_>) -> Result<Self, DataError> {
        let (words, labels) = names::tagged(&row.named()).ok_or_else(|| row.missing_words(Self::COLUMNS))?;
        let (words, labels) = (row.words(words)?, row.labels(labels)?);
        match (words.len(), labels.len()) {
            (0, 0) => Err(DataError::MissingWords { place: row.place().clone() }),
            (words, labels) if words != labels => Err(row.uneven(words, labels)),
            _ => Ok(Self { words, labels }),
        }
    }
}

impl Record for Passage {
    const FORMATS: &'static [(&'static str, Format)] =
        &[("txt", Format::Lines), ("csv", Format::Csv), ("tsv", Format::Tsv), JSON_LINES[0], JSON_LINES[1]];
    const COLUMNS: &'static str = names::PLAIN;

    const NEEDS: Needs = Needs::Text;

    fn fits(named: &Named<'_>) -> bool {
        names::completion(named).is_some() || names::single_text(named).is_some()
    }

    fn of_row(row: &mut Row<'_>) -> Result<Self, DataError> {
        if let Some((prompt, completion)) = names::completion(&row.named()) {
            return Ok(Self { prompt: row.any_text(prompt)?, text: row.text(completion)? });
        }
        let text = names::single_text(&row.named()).ok_or_else(|| row.missing_text(Self::COLUMNS, Self::NEEDS))?;
        Ok(Self { prompt: String::new(), text: row.single(&text)? })
    }
}

/// Takes a text or a pair. The error of a record without them says that it `needs` the columns `wanted`.
pub(crate) fn one_or_two(
    row: &mut Row<'_>,
    wanted: &'static str,
    needs: Needs,
) -> Result<(String, Option<String>), DataError> {
    match names::texts(&row.named()).ok_or_else(|| row.missing_text(wanted, needs))? {
        Texts::Pair(first, second) => Ok((row.text(first)?, Some(row.text(second)?))),
        Texts::Single(text) => Ok((row.single(&text)?, None)),
    }
}

/// Returns the distinct labels of `examples` in natural order: runs of digits compare as numbers, so `10` follows `9`.
///
/// A label's place in the list is its class number, so devices with the same labels number them alike.
#[must_use]
pub fn labels(examples: &[Example]) -> Vec<String> {
    let distinct: BTreeSet<&str> = examples.iter().map(|example| example.label.as_str()).collect();
    in_natural_order(distinct.into_iter().map(str::to_owned).collect())
}

/// Sorts labels in natural order; see [`labels`].
#[must_use]
pub fn in_natural_order(mut labels: Vec<String>) -> Vec<String> {
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

/// Splits `text` after its first run of digits or of other characters.
fn first_run(text: &str) -> Option<(&str, &str)> {
    let digits = text.chars().next()?.is_ascii_digit();
    let end = text.find(|c: char| c.is_ascii_digit() != digits).unwrap_or(text.len());
    Some(text.split_at(end))
}

fn is_number(run: &str) -> bool {
    run.starts_with(|c: char| c.is_ascii_digit())
}

/// Compares numbers of any length. Without leading zeros, the longer number is the greater.
fn number_order(a: &str, b: &str) -> Ordering {
    let (a, b) = (a.trim_start_matches('0'), b.trim_start_matches('0'));
    a.len().cmp(&b.len()).then_with(|| a.cmp(b))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn labelled(label: &str) -> Example {
        Example { text: "text".to_owned(), pair: None, label: label.to_owned() }
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
