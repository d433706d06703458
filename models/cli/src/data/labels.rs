//! The labels of a file of examples.

use super::{Table, extension, read};
use anyhow::{Context, bail, ensure};
use serde_json::Value;
use skiff_data::{Columns, LABEL_NAMES, Tagged, WORD_LABEL_NAMES, in_natural_order};
use skiff_models::task::Task;
use skiff_screen::output::note;
use std::collections::BTreeSet;
use std::path::Path;

/// Maximum number of labels that are shown.
const SHOWN: usize = 12;

/// Returns the labels in the file at `path` in natural order, and prints them on standard error. `column` names the label's
/// column if it has no usual name.
pub(crate) fn labels(path: &Path, column: Option<&str>, task: Task) -> anyhow::Result<Vec<String>> {
    let usual: &[&str] = match task {
        Task::SequenceClassification => &LABEL_NAMES,
        Task::TokenClassification => &WORD_LABEL_NAMES,
        Task::Regression | Task::CausalLm => bail!("--labels-from: the task {task} has no labels; leave it out"),
    };
    let columns = Columns { label: column.map(str::to_owned), ..Columns::default() };
    let found = if extension(path) == "conll" {
        let sentences: Vec<Tagged> = skiff_data::open(path, &columns)?.collect::<Result<_, _>>()?;
        sentences.into_iter().flat_map(|sentence| sentence.labels).collect()
    } else {
        of_table(&read(path, &super::FormArguments::default(), &columns)?, column, usual)
            .with_context(|| format!("taking the labels from {}", path.display()))?
    };
    let labels = in_natural_order(found.into_iter().collect());
    ensure!(!labels.is_empty(), "{} holds no labels", path.display());
    let more = labels.len().saturating_sub(SHOWN);
    let rest = if more > 0 { format!(" and {more} more") } else { String::new() };
    let shown = labels[..labels.len() - more].join(", ");
    note(&format!("{} labels in {}: {shown}{rest}", labels.len(), path.display()));
    Ok(labels)
}

fn of_table(table: &Table, column: Option<&str>, usual: &[&str]) -> anyhow::Result<BTreeSet<String>> {
    let place = |wanted: &str| table.names.iter().position(|name| name.eq_ignore_ascii_case(wanted));
    let found = match column {
        Some(name) => place(name),
        None => usual.iter().find_map(|name| place(name)),
    };
    let at = found.with_context(|| {
        let names = table.names.join(", ");
        match column {
            Some(name) => format!("there is no column {name:?}; there are {names}"),
            None => format!("none of the columns {names} is called {}; name one with --label-column", usual.join(", ")),
        }
    })?;
    let mut labels = BTreeSet::new();
    for (number, row) in table.rows.iter().enumerate() {
        let values =
            if let Value::Array(values) = &row[at] { values.as_slice() } else { std::slice::from_ref(&row[at]) };
        for value in values {
            let label = match value {
                Value::String(text) => text.trim().to_owned(),
                Value::Number(number) if number.is_i64() || number.is_u64() => number.to_string(),
                Value::Null => String::new(),
                Value::Bool(_) | Value::Number(_) | Value::Array(_) | Value::Object(_) => {
                    bail!("record {}: {:?} is {value}, expected a text or a whole number", number + 1, table.names[at])
                }
            };
            ensure!(
                !label.is_empty(),
                "record {}: {:?} is blank: give it a label, or delete the record",
                number + 1,
                table.names[at]
            );
            labels.insert(label);
        }
    }
    Ok(labels)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failing test may panic")]
    use super::*;

    fn found(name: &str, contents: &str, column: Option<&str>, task: Task) -> anyhow::Result<Vec<String>> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(name);
        std::fs::write(&path, contents).unwrap();
        labels(&path, column, task)
    }

    #[test]
    fn labels_are_those_of_the_data_in_natural_order() {
        let classes = Task::SequenceClassification;
        assert_eq!(found("a.csv", "label,text\n10,a\n9,b\n10,c\n", None, classes).unwrap(), ["9", "10"]);
        assert_eq!(found("a.csv", "text;mood\na;sad\nb; glad \n", Some("Mood"), classes).unwrap(), ["glad", "sad"]);
        let words = r#"{"tokens": ["a", "b"], "ner_tags": ["O", "B-X"]}"#;
        assert_eq!(found("a.jsonl", words, None, Task::TokenClassification).unwrap(), ["B-X", "O"]);
        assert_eq!(found("a.conll", "a O\nb B-X\n\nc O\n", None, Task::TokenClassification).unwrap(), ["B-X", "O"]);
    }

    #[test]
    fn what_is_no_label_is_named() {
        let classes = Task::SequenceClassification;
        let said = |result: anyhow::Result<Vec<String>>| format!("{:#}", result.unwrap_err());
        assert!(said(found("a.csv", "text,mood\na,sad\n", None, classes)).contains("--label-column"));
        assert!(said(found("a.csv", "label,text\n ,a\n", None, classes)).contains("record 1: \"label\" is blank"));
        assert!(said(found("a.csv", "label,text\nx,a\n", Some("mood"), classes)).contains("there are label, text"));
        assert!(said(found("a.csv", "label,text\n1,a\n", None, Task::Regression)).contains("has no labels"));
    }
}
