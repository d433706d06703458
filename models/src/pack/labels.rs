//! The labels of a pack, and the rows of the checkpoint's head that belong to them.
//!
//! A row of a tuned head belongs to the class that `config.json` names. If the labels come in another order, their rows move with
//! them. Placeholder names (`LABEL_0`), or no names at all, leave the rows in their order. Anything else needs a new head.

use crate::design::MAX_LABELS;
use crate::task::Task;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

/// The requested labels, and the facts that decide about them.
pub(super) struct Question<'a> {
    /// Names in the order of the scores; `None` for the checkpoint's own.
    pub(super) asked: Option<&'a [String]>,
    /// The task, which is not language modelling.
    pub(super) task: Task,
    /// The checkpoint's `config.json`.
    pub(super) config: &'a Value,
    /// Name of the head's last layer, for messages.
    pub(super) layer: &'a str,
    /// Number of rows of that layer in the checkpoint or the adapter, if one of them has it.
    pub(super) rows: Option<usize>,
    /// Whether to draw a new head even if the checkpoint has one.
    pub(super) new_head: bool,
}

/// The labels of a pack, and the source of the head's last layer.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Classes {
    /// Names in the order of the scores.
    pub names: Vec<String>,
    /// Source of the rows that score them.
    pub rows: HeadRows,
}

/// Source of the rows of a head's last layer.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum HeadRows {
    /// Neither the checkpoint nor an adapter has a head, so the rows are drawn.
    Drawn,
    /// The user requested a new head. The rows are drawn, and rows of the checkpoint are left out.
    New {
        /// Number of rows that are left out.
        left_out: usize,
    },
    /// Row `order[c]` becomes the row of label `c`.
    Kept {
        /// Index of the row of each label.
        order: Vec<usize>,
        /// Reason for this order.
        by: Matching,
    },
}

/// Reason for the order of a head's rows.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Matching {
    /// The labels are the names in `config.json`.
    Names,
    /// The labels differ from the names in `config.json` only by case or spaces. The value holds the pairs of label and name that
    /// differ.
    Nearly(Vec<(String, String)>),
    /// The labels are the numbers of the rows.
    Numbers,
    /// `config.json` has no names, or only placeholders.
    Placeholders,
}

/// Maximum number of labels that a message shows.
const SHOWN: usize = 8;

impl Question<'_> {
    /// Determines the labels and their rows, or returns the reason why that is impossible.
    pub(super) fn answer(&self) -> Result<Classes, String> {
        if let Some(problem) = self.asked.and_then(|asked| problem(asked, self.task)) {
            return Err(problem);
        }
        let kept = self.rows.filter(|_| !self.new_head);
        let classes = match (self.asked, kept) {
            (Some(asked), None) => Classes { names: asked.to_vec(), rows: self.drawn() },
            (Some(asked), Some(rows)) => self.matched(asked, rows)?,
            (None, None) => {
                let names = own_names(self.config)?.unwrap_or_else(|| placeholders(self.usual_count()));
                Classes { names, rows: self.drawn() }
            }
            (None, Some(rows)) => {
                self.refuse_classes_as_numbers(rows)?;
                let own = self.names_of_rows(rows)?;
                let by = if own.is_some() { Matching::Names } else { Matching::Placeholders };
                let names = own.unwrap_or_else(|| placeholders(rows));
                Classes { names, rows: HeadRows::Kept { order: (0..rows).collect(), by } }
            }
        };
        problem(&classes.names, self.task).map_or(Ok(classes), Err)
    }

    /// Refuses to interpret the scores of several classes as numbers, unless the checkpoint says that they are numbers.
    fn refuse_classes_as_numbers(&self, rows: usize) -> Result<(), String> {
        let says_so = self.config.get("problem_type").and_then(Value::as_str) == Some("regression");
        if self.task != Task::Regression || rows == 1 || says_so {
            return Ok(());
        }
        Err(format!(
            "{} of the checkpoint has {rows} rows, and config.json does not say that they predict numbers (problem_type); give \
             --labels {rows} if they do, or --labels 1 --new-head for a new layer",
            self.layer
        ))
    }

    fn drawn(&self) -> HeadRows {
        self.rows.map_or(HeadRows::Drawn, |left_out| HeadRows::New { left_out })
    }

    /// Returns the number of labels if neither names nor rows determine it. transformers does not write the names of two classes.
    fn usual_count(&self) -> usize {
        let written =
            self.config.get("num_labels").and_then(Value::as_u64).and_then(|count| usize::try_from(count).ok());
        let usual = if self.task == Task::Regression { 1 } else { 2 };
        written.filter(|&count| count <= MAX_LABELS).unwrap_or(usual)
    }

    /// Returns the checkpoint's names of its `rows` rows.
    fn names_of_rows(&self, rows: usize) -> Result<Option<Vec<String>>, String> {
        match own_names(self.config)? {
            Some(names) if names.len() != rows => Err(format!(
                "config.json names {} classes, but {} has {rows} rows; correct id2label, or give --labels and --new-head for a \
                 new classifier",
                names.len(),
                self.layer
            )),
            names => Ok(names),
        }
    }

    /// Finds the row of each requested label.
    fn matched(&self, asked: &[String], rows: usize) -> Result<Classes, String> {
        if asked.len() != rows {
            return Err(format!(
                "{} labels are asked for, but {} of the checkpoint has {rows} rows; give {rows} labels, or --new-head for a new \
                 classifier in place of the tuned one",
                asked.len(),
                self.layer
            ));
        }
        let own = self.names_of_rows(rows)?;
        let (order, by) = match_rows(asked, own.as_deref()).map_err(|differences| {
            format!(
                "the labels differ from the classes that config.json names ({differences}), so the rows of {} cannot be given to \
                 them; use the names in config.json, correct its id2label, or give --new-head for a new classifier",
                self.layer
            )
        })?;
        Ok(Classes { names: asked.to_vec(), rows: HeadRows::Kept { order, by } })
    }
}

/// Returns the row of each label, or a text about the labels that have no row. `own` are the names of the rows.
fn match_rows(asked: &[String], own: Option<&[String]>) -> Result<(Vec<usize>, Matching), String> {
    let own = own.unwrap_or_default();
    let row = |label: &String| own.iter().position(|name| name == label);
    let exact: Vec<Option<usize>> = asked.iter().map(row).collect();
    if let Some(order) = exact.iter().copied().collect::<Option<Vec<usize>>>() {
        return Ok((order, Matching::Names));
    }
    if let Some(order) = numbers(asked) {
        return Ok((order, Matching::Numbers));
    }
    if own.iter().enumerate().all(|(row, name)| is_placeholder(name, row)) {
        return Ok(((0..asked.len()).collect(), Matching::Placeholders));
    }
    nearly(asked, own, &exact).ok_or_else(|| differences(asked, own))
}

/// Matches the labels that equal no name, ignoring case and spaces.
fn nearly(asked: &[String], own: &[String], exact: &[Option<usize>]) -> Option<(Vec<usize>, Matching)> {
    let taken: BTreeSet<usize> = exact.iter().flatten().copied().collect();
    let mut free: BTreeMap<String, usize> = BTreeMap::new();
    for (row, name) in own.iter().enumerate().filter(|(row, _)| !taken.contains(row)) {
        // Two names that are the same without case and spaces cannot be told apart.
        if free.insert(plain(name), row).is_some() {
            return None;
        }
    }
    let mut pairs = Vec::new();
    let mut order = Vec::with_capacity(asked.len());
    for (label, exact) in asked.iter().zip(exact) {
        order.push(match exact {
            Some(row) => *row,
            None => {
                let row = free.remove(&plain(label))?;
                pairs.push((label.clone(), own[row].clone()));
                row
            }
        });
    }
    Some((order, Matching::Nearly(pairs)))
}

/// Returns a name in lower case without spaces.
fn plain(name: &str) -> String {
    name.to_lowercase().split_whitespace().collect()
}

/// Returns the numbers in the labels, such as `0` or `LABEL_0`, if each number from 0 occurs once.
fn numbers(labels: &[String]) -> Option<Vec<usize>> {
    let numbers: Vec<usize> = labels.iter().map(|label| number(label)).collect::<Option<_>>()?;
    let distinct: BTreeSet<usize> = numbers.iter().copied().collect();
    (distinct.len() == labels.len() && distinct.last() < Some(&labels.len())).then_some(numbers)
}

/// Returns the number in a name such as `2`, `LABEL_2` or `class 2`.
fn number(name: &str) -> Option<usize> {
    let digits = numbered(name).unwrap_or(name);
    digits.bytes().all(|byte| byte.is_ascii_digit()).then(|| digits.parse().ok())?
}

/// Returns the rest of a name after `label` or `class`.
fn numbered(name: &str) -> Option<&str> {
    let rest = ["label", "class"].into_iter().find_map(|word| {
        let (start, rest) = name.split_at_checked(word.len())?;
        start.eq_ignore_ascii_case(word).then_some(rest)
    })?;
    Some(rest.trim_start_matches(['_', '-', ' ']))
}

/// Returns true if the name of row `row` is a placeholder: `LABEL_` with a number, or the row's own number.
fn is_placeholder(name: &str, row: usize) -> bool {
    number(name).is_some_and(|number| numbered(name).is_some() || number == row)
}

fn placeholders(count: usize) -> Vec<String> {
    (0..count).map(|row| format!("LABEL_{row}")).collect()
}

fn differences(asked: &[String], own: &[String]) -> String {
    let only = |these: &[String], those: &[String]| {
        let mut only = these.iter().filter(|name| !those.contains(name));
        let shown: Vec<String> = only.by_ref().take(SHOWN).map(|name| format!("{name:?}")).collect();
        let more = only.count();
        if more == 0 { shown.join(", ") } else { format!("{} and {more} more", shown.join(", ")) }
    };
    format!("only in the labels: {}; only in config.json: {}", only(asked, own), only(own, asked))
}

/// Returns the names of the classes in `config.json`, in the order of the rows: from `id2label`, or from `label2id` if the first
/// has none or only placeholders.
fn own_names(config: &Value) -> Result<Option<Vec<String>>, String> {
    let (by_number, by_name) = (id2label(config)?, label2id(config)?);
    let says_nothing = |names: &[String]| {
        names.iter().enumerate().all(|(row, name)| numbered(name).is_some() && is_placeholder(name, row))
    };
    match (by_number, by_name) {
        (Some(names), Some(others)) if names != others => match (says_nothing(&names), says_nothing(&others)) {
            (_, true) => Ok(Some(names)),
            (true, false) if names.len() == others.len() => Ok(Some(others)),
            _ => Err(contradiction(&names, &others)),
        },
        (names, others) => Ok(names.or(others)),
    }
}

fn contradiction(names: &[String], others: &[String]) -> String {
    let row = (0..names.len().max(others.len())).find(|&row| names.get(row) != others.get(row)).unwrap_or_default();
    let said = |names: &[String]| names.get(row).map_or_else(|| "nothing".to_owned(), |name| format!("{name:?}"));
    format!(
        "id2label and label2id in config.json contradict each other: number {row} is {} in id2label and {} in label2id; correct \
         one of them",
        said(names),
        said(others)
    )
}

fn id2label(config: &Value) -> Result<Option<Vec<String>>, String> {
    let Some(entries) = object(config, "id2label")? else { return Ok(None) };
    let mut names = BTreeMap::new();
    for (key, value) in entries {
        let name = value.as_str().map(str::to_owned).or_else(|| value.as_i64().map(|name| name.to_string()));
        let (Ok(number), Some(name)) = (key.parse::<usize>(), name) else {
            return Err(format!("id2label in config.json: {key:?}: {value} is not a number with a name"));
        };
        if let Some((other, _)) = names.iter().find(|(_, known)| **known == name) {
            return Err(format!("id2label in config.json has the name {name:?} twice, for {other} and {number}"));
        }
        names.insert(number, name);
    }
    in_order("id2label", names).map(Some)
}

fn label2id(config: &Value) -> Result<Option<Vec<String>>, String> {
    let Some(entries) = object(config, "label2id")? else { return Ok(None) };
    let mut names: BTreeMap<usize, String> = BTreeMap::new();
    for (name, value) in entries {
        let number = value.as_u64().and_then(|number| usize::try_from(number).ok());
        let Some(number) = number.or_else(|| value.as_str()?.parse().ok()) else {
            return Err(format!("label2id in config.json: {name:?}: {value} is not a name with a number"));
        };
        if let Some(other) = names.insert(number, name.clone()) {
            return Err(format!("label2id in config.json has the number {number} twice, for {other:?} and {name:?}"));
        }
    }
    in_order("label2id", names).map(Some)
}

/// Returns the object at `key`; `None` if it is missing or empty.
fn object<'a>(config: &'a Value, key: &str) -> Result<Option<&'a serde_json::Map<String, Value>>, String> {
    match config.get(key) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::Object(entries)) => Ok(Some(entries).filter(|entries| !entries.is_empty())),
        Some(other) => Err(format!("{key} in config.json is {other}, expected an object")),
    }
}

fn in_order(key: &str, names: BTreeMap<usize, String>) -> Result<Vec<String>, String> {
    match names.keys().enumerate().find(|(row, number)| row != *number) {
        Some((row, _)) => Err(format!("{key} in config.json has no name for the number {row}, though for higher ones")),
        None => Ok(names.into_values().collect()),
    }
}

/// Returns what is wrong with a task's labels, if anything.
fn problem(labels: &[String], task: Task) -> Option<String> {
    let fewest = if task == Task::Regression { 1 } else { 2 };
    names_problem(labels).or_else(|| match labels.len() {
        few if few < fewest => Some(format!("{task} needs at least {fewest} labels, {few} given")),
        many if many > MAX_LABELS => Some(format!("{many} labels are more than {MAX_LABELS}")),
        _ => None,
    })
}

/// Returns the fault in the names of classes, if there is one. The names appear in tables, reports and messages.
pub(super) fn names_problem(labels: &[String]) -> Option<String> {
    const MAX_BYTES: usize = 256;
    let mut sorted: Vec<&String> = labels.iter().collect();
    sorted.sort();
    if let Some(pair) = sorted.windows(2).find(|pair| pair[0] == pair[1]) {
        return Some(format!("label {:?} is given twice", pair[0]));
    }
    labels.iter().zip(1..).find_map(|(label, number): (_, usize)| match label.len() {
        0 => Some(format!("label {number} has no name")),
        1..=MAX_BYTES if !label.chars().any(char::is_control) => None,
        1..=MAX_BYTES => Some(format!("label {number} ({label:?}) has control characters")),
        long => Some(format!("label {number} has {long} bytes, expected at most {MAX_BYTES}")),
    })
}

impl fmt::Display for Classes {
    /// Says where the head's last layer comes from.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.rows {
            HeadRows::Drawn => write!(f, "new classifier for {} labels; the checkpoint has none", self.names.len()),
            HeadRows::New { left_out } => {
                write!(f, "new classifier for {} labels (--new-head); ", self.names.len())?;
                write!(f, "the tuned one with {left_out} rows is left out")
            }
            HeadRows::Kept { order, by } => self.fmt_kept(f, order, by),
        }
    }
}

impl Classes {
    fn fmt_kept(&self, f: &mut fmt::Formatter<'_>, order: &[usize], by: &Matching) -> fmt::Result {
        let moved: Vec<String> = order
            .iter()
            .zip(&self.names)
            .enumerate()
            .filter(|(at, (row, _))| at != *row)
            .map(|(at, (row, name))| format!("{name:?} from row {row} to {at}"))
            .collect();
        let shown = moved.iter().take(SHOWN).cloned().collect::<Vec<_>>().join(", ");
        let more = moved.len().saturating_sub(SHOWN);
        let more = if more == 0 { String::new() } else { format!(" and {more} more") };
        match by {
            Matching::Names | Matching::Nearly(_) => {
                write!(f, "tuned classifier, rows matched by name with config.json")?
            }
            Matching::Numbers => write!(f, "tuned classifier, rows matched by the numbers in the labels")?,
            Matching::Placeholders => {
                write!(f, "tuned classifier, rows in their order, since config.json names no classes")?;
            }
        }
        if moved.is_empty() {
            write!(f, "; none moved")?
        } else {
            write!(f, "; moved: {shown}{more}")?
        }
        if let Matching::Nearly(pairs) = by {
            let pairs: Vec<String> =
                pairs.iter().take(SHOWN).map(|(label, name)| format!("{label:?} is {name:?}")).collect();
            write!(f, "; differing only by case or spaces: {}", pairs.join(", "))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failing test may panic")]
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    fn names(names: &[&str]) -> Vec<String> {
        names.iter().map(|&name| name.to_owned()).collect()
    }

    fn answer(asked: Option<&[&str]>, config: &Value, rows: Option<usize>, new_head: bool) -> Result<Classes, String> {
        let asked = asked.map(names);
        let task = Task::SequenceClassification;
        Question { asked: asked.as_deref(), task, config, layer: "classifier.weight", rows, new_head }.answer()
    }

    /// Returns the order and its reason, of labels for a head with a row for each.
    fn order(asked: &[&str], config: &Value) -> Result<(Vec<usize>, Matching), String> {
        match answer(Some(asked), config, Some(asked.len()), false)?.rows {
            HeadRows::Kept { order, by } => Ok((order, by)),
            other @ (HeadRows::Drawn | HeadRows::New { .. }) => panic!("{other:?}"),
        }
    }

    fn weather() -> Value {
        json!({"id2label": {"0": "sun", "1": "rain", "2": "Light Snow"}, "label2id": {"sun": 0, "rain": 1, "Light Snow": 2}})
    }

    #[test]
    fn names_in_another_order_take_their_rows_along() {
        let found = order(&["Light Snow", "sun", "rain"], &weather()).unwrap();
        assert_eq!(found, (vec![2, 0, 1], Matching::Names));
        let said = answer(Some(&["rain", "sun", "Light Snow"]), &weather(), Some(3), false).unwrap().to_string();
        assert!(said.contains("\"rain\" from row 1 to 0, \"sun\" from row 0 to 1"), "{said}");
    }

    #[test]
    fn names_that_differ_by_case_or_spaces_are_matched_and_said() {
        let (found, by) = order(&["rain", "SUN", " light  snow"], &weather()).unwrap();
        assert_eq!(found, [1, 0, 2]);
        let Matching::Nearly(pairs) = by else { panic!("{by:?}") };
        assert_eq!(pairs, [("SUN".to_owned(), "sun".to_owned()), (" light  snow".to_owned(), "Light Snow".to_owned())]);
        // An equal name wins over one that is nearly equal.
        let both = json!({"id2label": {"0": "Us", "1": "US"}});
        assert_eq!(order(&["US", "us"], &both).unwrap().0, [1, 0]);
        let alike = json!({"id2label": {"0": "Us", "1": "US", "2": "it"}});
        assert!(order(&["us", "u s", "it"], &alike).unwrap_err().contains("--new-head"));
    }

    #[test]
    fn other_names_and_other_counts_need_a_new_head() {
        let message = order(&["sun", "rain", "fog"], &weather()).unwrap_err();
        assert!(message.contains("labels: \"fog\"; only in config.json: \"Light Snow\""), "{message}");
        assert!(message.contains("--new-head"), "{message}");
        for asked in [&["sun", "rain"][..], &["sun", "rain", "Light Snow", "fog"]] {
            let message = answer(Some(asked), &weather(), Some(3), false).unwrap_err();
            assert!(message.contains("classifier.weight of the checkpoint has 3 rows"), "{message}");
            let classes = answer(Some(asked), &weather(), Some(3), true).unwrap();
            assert_eq!((classes.names, classes.rows), (names(asked), HeadRows::New { left_out: 3 }));
        }
    }

    #[test]
    fn placeholders_and_missing_names_leave_the_rows_in_their_order() {
        for config in [
            json!({}),
            json!({"id2label": null}),
            json!({"id2label": {"0": "LABEL_0", "1": "LABEL_1"}, "label2id": {"LABEL_0": 0, "LABEL_1": 1}}),
            json!({"id2label": {"0": "label 0", "1": "label 1"}}),
            json!({"id2label": {"0": "0", "1": "1"}}),
            json!({"id2label": {"0": 0, "1": 1}}),
        ] {
            let kept = order(&["pos", "neg"], &config).unwrap();
            assert_eq!(kept, (vec![0, 1], Matching::Placeholders), "{config}");
        }
    }

    #[test]
    fn labels_that_are_numbers_are_numbers_of_rows() {
        assert_eq!(order(&["0", "1", "2"], &weather()).unwrap(), (vec![0, 1, 2], Matching::Numbers));
        assert_eq!(order(&["2", "0", "1"], &json!({})).unwrap(), (vec![2, 0, 1], Matching::Numbers));
        assert_eq!(order(&["LABEL_1", "LABEL_0"], &json!({})).unwrap().0, [1, 0]);
        // Names come first, even if they are numbers.
        let swapped = json!({"id2label": {"0": "1", "1": "0"}});
        assert_eq!(order(&["0", "1"], &swapped).unwrap(), (vec![1, 0], Matching::Names));
        assert!(order(&["1", "2", "3"], &weather()).unwrap_err().contains("only in the labels: \"1\""));
    }

    #[test]
    fn a_checkpoint_without_names_has_two_labels_or_as_many_as_rows() {
        let found = |rows| answer(None, &json!({}), rows, false).unwrap().names;
        assert_eq!(found(None), ["LABEL_0", "LABEL_1"]);
        assert_eq!(answer(None, &json!({"num_labels": 3}), None, false).unwrap().names.len(), 3);
        assert_eq!(found(Some(3)), ["LABEL_0", "LABEL_1", "LABEL_2"]);
        assert_eq!(answer(None, &weather(), Some(3), false).unwrap().names, ["sun", "rain", "Light Snow"]);
        let message = answer(None, &weather(), Some(2), false).unwrap_err();
        assert!(message.contains("names 3 classes, but classifier.weight has 2 rows"), "{message}");
    }

    #[test]
    fn one_number_is_predicted_unless_the_head_has_more() {
        let found = |rows, config: &Value| {
            let (asked, layer, task) = (None, "classifier.weight", Task::Regression);
            let classes = Question { asked, task, config, layer, rows, new_head: false }.answer();
            classes.map(|classes| classes.names.len())
        };
        assert_eq!([found(None, &json!({})), found(Some(1), &json!({}))], [Ok(1), Ok(1)]);
        assert_eq!(found(Some(3), &json!({"problem_type": "regression"})), Ok(3));
        assert!(found(Some(3), &json!({})).unwrap_err().contains("--labels 3"));
    }

    #[test]
    fn names_that_contradict_each_other_or_come_twice_are_refused_by_name() {
        let refusal = |config: Value| order(&["sun", "rain"], &config).unwrap_err();
        let message = refusal(json!({"id2label": {"0": "sun", "1": "rain"}, "label2id": {"sun": 1, "rain": 0}}));
        assert!(message.contains("number 0 is \"sun\" in id2label and \"rain\" in label2id"), "{message}");
        let message = refusal(json!({"id2label": {"0": "sun", "1": "rain"}, "label2id": {"sun": 0, "fog": 1}}));
        assert!(message.contains("\"rain\" in id2label and \"fog\" in label2id"), "{message}");
        let message = refusal(json!({"id2label": {"0": "sun", "1": "sun"}}));
        assert!(message.contains("has the name \"sun\" twice, for 0 and 1"), "{message}");
        let message = refusal(json!({"label2id": {"sun": 1, "rain": 1}}));
        assert!(message.contains("the number 1 twice") && message.contains("\"rain\""), "{message}");
        let message = refusal(json!({"id2label": {"0": "sun", "2": "rain"}}));
        assert!(message.contains("no name for the number 1"), "{message}");
        assert!(refusal(json!({"id2label": ["sun", "rain"]})).contains("expected an object"));
        assert!(refusal(json!({"id2label": {"a": "sun"}})).contains("\"a\""));
    }

    #[test]
    fn placeholders_beside_real_names_do_not_contradict_them() {
        let real = json!({"0": "sun", "1": "rain"});
        let usual = json!({"LABEL_0": 0, "LABEL_1": 1});
        let by_number = order(&["rain", "sun"], &json!({"id2label": real, "label2id": usual})).unwrap();
        let by_name = json!({"id2label": {"0": "LABEL_0", "1": "LABEL_1"}, "label2id": {"sun": "0", "rain": "1"}});
        assert_eq!((by_number.0, order(&["rain", "sun"], &by_name).unwrap().0), (vec![1, 0], vec![1, 0]));
    }

    proptest! {
        #[test]
        fn every_label_gets_the_row_of_its_name(own in proptest::collection::btree_set("[a-z]{2,6}", 2..9), seed: u64) {
            let own: Vec<String> = own.into_iter().filter(|name| name != "label" && name != "class").collect();
            prop_assume!(own.len() > 1);
            let mut asked = own.clone();
            skiff_base::random::Random::new(seed).shuffle(&mut asked);
            let numbered: serde_json::Map<String, Value> =
                own.iter().enumerate().map(|(row, name)| (row.to_string(), json!(name))).collect();
            let asked: Vec<&str> = asked.iter().map(String::as_str).collect();
            let (order, _) = order(&asked, &json!({ "id2label": numbered })).unwrap();
            for (label, row) in asked.iter().zip(order) {
                prop_assert_eq!(*label, own[row].as_str());
            }
        }
    }
}
