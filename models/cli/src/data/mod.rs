//! `skiff-pack data`: converts a table or JSON in any usual format to a file that the agent reads. It prints everything that it
//! guessed.

mod labels;
mod parquet;
mod source;
mod table;

pub(crate) use labels::labels;
use source::Form;
use table::Table;

use anyhow::{Context, bail, ensure};
use serde_json::{Map, Value, json};
use skiff_base::files::{Access, replace};
use skiff_data::Columns;
use skiff_screen::output::note;
use std::io::Write;
use std::path::{Path, PathBuf};

#[derive(clap::Args)]
#[command(
    after_help = "Reads CSV and TSV with any separator and any encoding, JSON Lines, JSON arrays, and Parquet (.parquet); also compressed\n\
    with gzip (.csv.gz, .jsonl.gz). Writes JSON Lines (.jsonl) or CSV (.csv) in UTF-8.\n\n\
    Without column options every column is written under its own name. With them, only the named columns are written, under the names that\n\
    the agent knows: text, text_pair, prompt and completion, label, tokens and labels.\n\n\
    Examples:\n  skiff-pack data spam.csv spam.jsonl --label-column v1 --text-column v2\n\
    \x20 skiff-pack data train-00000-of-00001.parquet train.jsonl\n\
    \x20 skiff-pack data umfrage.csv rows.csv --encoding latin1 --separator ';'"
)]
pub(crate) struct Arguments {
    /// File to read.
    #[arg(value_name = "FILE")]
    from: PathBuf,
    /// File to write: .jsonl or .csv; an existing file is replaced.
    #[arg(value_name = "NEW")]
    to: PathBuf,
    #[command(flatten)]
    form: FormArguments,
    #[command(flatten)]
    columns: Columns,
    /// Print one JSON object: file, records and columns.
    #[arg(long)]
    json: bool,
}

/// Format of a file, for parts that should not be guessed.
#[derive(Clone, Default, clap::Args)]
pub(crate) struct FormArguments {
    /// Encoding of the file, for example cp932, latin1, koi8-r or utf-16le [default: UTF-8, or guessed from the bytes].
    #[arg(long, value_name = "NAME")]
    encoding: Option<String>,
    /// Separator of a table's fields: one character, or tab [default: guessed from the first line].
    #[arg(long, value_name = "CHARACTER", value_parser = separator)]
    separator: Option<u8>,
}

pub(crate) fn run(arguments: &Arguments) -> anyhow::Result<()> {
    let Arguments { from, to, form, columns, json } = arguments;
    let lines = match extension(to).as_str() {
        "jsonl" => true,
        "csv" => false,
        _ => bail!("{}: the new file ends in .jsonl or .csv", to.display()),
    };
    let same = from.canonicalize().ok().zip(to.canonicalize().ok()).is_some_and(|(from, to)| from == to);
    ensure!(!same, "{}: write to another file, so that the first one is kept", to.display());
    let table = read(from, form, columns)?;
    let table = if columns.named().next().is_some() { chosen(&table, columns, from)? } else { table };
    ensure!(!table.rows.is_empty(), "{} holds no records", from.display());
    let bytes = if lines { json_lines(&table)? } else { csv(&table)? };
    replace(to, &bytes, Access::Shared).with_context(|| format!("writing {}", to.display()))?;
    let (count, names) = (table.rows.len(), &table.names);
    let mut out = skiff_screen::output::stdout();
    match json {
        true => writeln!(out, "{}", json!({ "file": to, "records": count, "columns": names }))?,
        false => writeln!(out, "wrote {count} records with {} to {}", names.join(", "), to.display())?,
    }
    Ok(())
}

/// Reads a file, and prints the guesses on standard error.
pub(crate) fn read(path: &Path, form: &FormArguments, columns: &Columns) -> anyhow::Result<Table> {
    let FormArguments { encoding, separator } = form.clone();
    let form = Form { encoding, separator, header: columns.header.clone() };
    let mut notes = Vec::new();
    let table = source::read(path, &form, &mut notes);
    for guess in notes {
        note(&format!("{}: {guess}", path.display()));
    }
    table.with_context(|| format!("reading {}", path.display()))
}

/// Returns the columns that the user named, under the names that the agent knows.
fn chosen(table: &Table, columns: &Columns, path: &Path) -> anyhow::Result<Table> {
    let place = |name: &str| {
        let found = table.names.iter().position(|known| known.eq_ignore_ascii_case(name));
        found.with_context(|| format!("{} has no column {name:?}; it has {}", path.display(), table.names.join(", ")))
    };
    let texts = columns.text.iter().map(|name| place(name)).collect::<anyhow::Result<Vec<_>>>()?;
    let single = |name: &Option<String>| name.as_deref().map(place).transpose();
    let (pair, prompt, label) = (single(&columns.pair)?, single(&columns.prompt)?, single(&columns.label)?);
    let words = texts.first().is_some_and(|&at| table.rows.iter().any(|row| row[at].is_array()));
    let text_name = if words {
        "tokens"
    } else if prompt.is_some() {
        "completion"
    } else {
        "text"
    };
    let label_name = if words { "labels" } else { "label" };
    let mut names = Vec::new();
    let single = [(label, label_name), (prompt, "prompt")];
    names.extend(single.iter().filter(|(at, _)| at.is_some()).map(|(_, name)| (*name).to_owned()));
    if !texts.is_empty() {
        names.push(text_name.to_owned());
    }
    names.extend(pair.map(|_| "text_pair".to_owned()));
    let row = |row: &Vec<Value>| {
        let mut values: Vec<Value> = [label, prompt].into_iter().flatten().map(|at| row[at].clone()).collect();
        match texts.as_slice() {
            [] => {}
            [at] => values.push(row[*at].clone()),
            several => {
                values.push(several.iter().map(|&at| plain(&row[at])).collect::<Vec<_>>().join(". ").into());
            }
        }
        values.extend(pair.map(|at| row[at].clone()));
        values
    };
    Ok(Table { rows: table.rows.iter().map(row).collect(), names })
}

fn json_lines(table: &Table) -> anyhow::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    for row in &table.rows {
        let named = table.names.iter().cloned().zip(row.iter().cloned());
        let object: Map<String, Value> = named.filter(|(_, value)| !value.is_null()).collect();
        serde_json::to_writer(&mut bytes, &object)?;
        bytes.push(b'\n');
    }
    Ok(bytes)
}

fn csv(table: &Table) -> anyhow::Result<Vec<u8>> {
    let mut writer = csv::Writer::from_writer(Vec::new());
    writer.write_record(&table.names)?;
    for row in &table.rows {
        writer.write_record(row.iter().map(plain))?;
    }
    writer.into_inner().context("writing the table")
}

/// Returns a value as the text of a table's field.
fn plain(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::String(text) => text.clone(),
        Value::Bool(_) | Value::Number(_) | Value::Array(_) | Value::Object(_) => value.to_string(),
    }
}

/// Returns the file's ending in small letters.
fn extension(path: &Path) -> String {
    path.extension().map(|extension| extension.to_string_lossy().to_ascii_lowercase()).unwrap_or_default()
}

fn separator(text: &str) -> Result<u8, String> {
    match text {
        "tab" | "\\t" => Ok(b'\t'),
        _ => match text.as_bytes() {
            [byte] if byte.is_ascii() && !matches!(byte, b'"' | b'\n' | b'\r') => Ok(*byte),
            _ => Err("expected one character such as ; or |, or tab".to_owned()),
        },
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failing test may panic")]
    use super::*;
    use skiff_data::{Example, read as read_examples};

    fn convert(name: &str, contents: &[u8], columns: &Columns) -> anyhow::Result<Vec<Example>> {
        let folder = tempfile::tempdir().unwrap();
        let (from, to) = (folder.path().join(name), folder.path().join("new.jsonl"));
        std::fs::write(&from, contents).unwrap();
        let form = FormArguments::default();
        run(&Arguments {
            from: from.clone(),
            to: to.clone(),
            form: form.clone(),
            columns: columns.clone(),
            json: false,
        })?;
        let table = folder.path().join("new.csv");
        run(&Arguments { from, to: table.clone(), form, columns: columns.clone(), json: false })?;
        let examples: Vec<Example> = read_examples(&to)?;
        assert_eq!(read_examples::<Example>(&table)?, examples);
        Ok(examples)
    }

    #[test]
    fn what_was_converted_is_read() {
        let columns = Columns {
            text: vec!["v2".to_owned(), "more".to_owned()],
            label: Some("V1".to_owned()),
            ..Columns::default()
        };
        let table = "id;v1;v2;more\r\n1;ham;caf\u{e9} \u{a3}5;\"so; good\"\r\n2;spam;\"a\nb\";c\r\n";
        let bytes: Vec<u8> = table.chars().map(|letter| letter as u8).collect();
        let examples = convert("spam.csv", &bytes, &columns).unwrap();
        assert_eq!((examples[0].label.as_str(), examples[0].text.as_str()), ("ham", "café £5. so; good"));
        assert_eq!((examples[1].label.as_str(), examples[1].text.as_str()), ("spam", "a\nb. c"));
    }

    #[test]
    fn without_column_options_every_column_stays() {
        let examples = convert(
            "a.json",
            br#"[{"text": "a", "label": 1, "id": null}, {"text": "b", "label": 0}]"#,
            &Columns::default(),
        );
        assert_eq!(examples.unwrap().iter().map(|example| example.label.as_str()).collect::<Vec<_>>(), ["1", "0"]);
    }

    #[test]
    fn a_missing_column_and_a_wrong_ending_are_named() {
        let columns = Columns { label: Some("mood".to_owned()), ..Columns::default() };
        let error = convert("a.csv", b"label,text\n1,a\n", &columns).unwrap_err();
        assert!(error.to_string().ends_with("has no column \"mood\"; it has label, text"), "{error}");
        let (from, to) = (PathBuf::from("a.csv"), PathBuf::from("b.xlsx"));
        let arguments = Arguments { from, to, form: FormArguments::default(), columns: Columns::default(), json: true };
        assert!(run(&arguments).unwrap_err().to_string().contains(".jsonl or .csv"));
    }
}
