//! Reads a table or JSON of any usual form: detects compression, encoding, separators and quotes.

use super::table::{Table, from_objects};
use super::{extension, parquet};
use anyhow::{Context, bail, ensure};
use flate2::read::MultiGzDecoder;
use serde_json::Value;
use skiff_base::foreign::{Foreign, START_BYTES};
use skiff_data::encoding::Guess;
use std::io::Read;
use std::path::Path;

/// Maximum size of a file after unpacking, in bytes.
const MAX_BYTES: u64 = 4 << 30;

/// Format of a file, for parts that should not be guessed.
#[derive(Clone, Default, Debug)]
pub(crate) struct Form {
    /// Name of the encoding.
    pub(crate) encoding: Option<String>,
    /// Separator of a table's fields.
    pub(crate) separator: Option<u8>,
    /// Names of all columns of a table without a header.
    pub(crate) header: Vec<String>,
}

/// Reads the file at `path`. Adds a sentence to `notes` for each guess.
pub(super) fn read(path: &Path, form: &Form, notes: &mut Vec<String>) -> anyhow::Result<Table> {
    ensure!(!path.is_dir(), "it is a folder: name the file inside");
    let mut bytes = std::fs::read(path)?;
    let mut name = path.to_owned();
    if bytes.starts_with(&[0x1f, 0x8b]) {
        bytes = unpacked(&bytes)?;
        if extension(&name) == "gz" {
            name.set_extension("");
        }
    }
    if bytes.starts_with(b"PAR1") {
        return parquet::read(bytes);
    }
    let ending = extension(&name);
    if let Some(foreign) =
        Foreign::recognise(&bytes[..bytes.len().min(START_BYTES)]).filter(|_| form.encoding.is_none())
    {
        // UTF-16 without a mark may begin like zeros.
        ensure!(Guess::wide(&bytes).is_some(), foreign);
    }
    let text = text(bytes, form.encoding.as_deref(), notes)?;
    match text.trim_start().as_bytes().first() {
        Some(b'{' | b'[') if !matches!(ending.as_str(), "csv" | "tsv") => json(&text, notes),
        _ => delimited(&text, &ending, form, notes),
    }
}

fn unpacked(bytes: &[u8]) -> anyhow::Result<Vec<u8>> {
    let mut unpacked = Vec::new();
    let read = MultiGzDecoder::new(bytes).take(MAX_BYTES + 1).read_to_end(&mut unpacked);
    read.context("unpacking it: it is cut off or damaged; download it again")?;
    ensure!(unpacked.len() as u64 <= MAX_BYTES, "it has more than {MAX_BYTES} bytes after unpacking: split it");
    Ok(unpacked)
}

/// Returns the text of a file in its encoding, with LF for lone CR.
fn text(bytes: Vec<u8>, encoding: Option<&str>, notes: &mut Vec<String>) -> anyhow::Result<String> {
    let text = match encoding {
        Some(name) => {
            let known = Guess::named(name).with_context(|| format!("--encoding {name}: not a known encoding"))?;
            known
                .decode(&bytes)
                .with_context(|| format!("the bytes are not {name}: leave out --encoding to have it guessed"))?
        }
        None => match String::from_utf8(bytes) {
            Ok(text) if !text.contains('\0') => text,
            Ok(text) => guessed(text.as_bytes(), notes)?,
            Err(error) => guessed(error.as_bytes(), notes)?,
        },
    };
    let text = text.strip_prefix('\u{feff}').map(str::to_owned).unwrap_or(text);
    ensure!(!text.contains('\0'), "it holds NUL characters: make sure that it is a text file");
    if text.contains('\r') && !text.contains('\n') {
        notes.push("the lines end in CR alone; taken as line ends".to_owned());
        return Ok(text.replace('\r', "\n"));
    }
    Ok(text)
}

fn guessed(bytes: &[u8], notes: &mut Vec<String>) -> anyhow::Result<String> {
    let guess = Guess::from_text(bytes).context("it is not UTF-8; name its encoding with --encoding")?;
    let text = guess.decode(bytes);
    let text =
        text.with_context(|| format!("it is neither UTF-8 nor valid {guess}; name its encoding with --encoding"))?;
    notes.push(format!("not UTF-8; read as {guess}, guessed from its bytes (--encoding names another)"));
    Ok(text)
}

/// Reads objects one after the other, an array of objects, or an object that holds one such array.
fn json(text: &str, notes: &mut Vec<String>) -> anyhow::Result<Table> {
    let values = serde_json::Deserializer::from_str(text).into_iter::<Value>();
    let mut values = values.collect::<Result<Vec<_>, _>>().context("it is not JSON")?;
    if let [Value::Array(_)] = values.as_slice()
        && let Some(Value::Array(inside)) = values.pop()
    {
        values = inside;
    } else if let [Value::Object(only)] = values.as_slice() {
        let arrays: Vec<_> = only.iter().filter(|(_, value)| is_table(value)).collect();
        if let [(name, Value::Array(inside))] = arrays.as_slice() {
            notes.push(format!("took the records in {name:?}"));
            values = inside.clone();
        }
    }
    let mut objects = Vec::with_capacity(values.len());
    for (at, value) in values.into_iter().enumerate() {
        let Value::Object(object) = value else {
            bail!("record {} is not a JSON object: write each as {{\"label\": ..., \"text\": ...}}", at + 1);
        };
        objects.push(object);
    }
    Ok(from_objects(objects))
}

fn is_table(value: &Value) -> bool {
    value.as_array().is_some_and(|records| !records.is_empty() && records.iter().all(Value::is_object))
}

/// Reads fields between separators.
fn delimited(text: &str, ending: &str, form: &Form, notes: &mut Vec<String>) -> anyhow::Result<Table> {
    let first = text.lines().find(|line| !line.trim().is_empty()).unwrap_or_default();
    let own = if ending == "tsv" { b'\t' } else { b',' };
    let separator = form.separator.unwrap_or_else(|| guess_separator(first, own));
    if form.separator.is_none() && separator != own {
        notes.push(format!("the fields stand between {:?} (--separator names another)", char::from(separator)));
    }
    let quoted_fields = || {
        first
            .split(char::from(separator))
            .all(|field| field.len() > 1 && field.starts_with('"') && field.ends_with('"'))
    };
    let quotes = separator != b'\t' || ending == "csv" || quoted_fields();
    if quotes && ending == "tsv" {
        notes.push("quotes around fields are left out".to_owned());
    }
    let mut reader = csv::ReaderBuilder::new()
        .has_headers(false)
        .flexible(true)
        .delimiter(separator)
        .quoting(quotes)
        .from_reader(text.as_bytes());
    let mut names = form.header.clone();
    let mut rows = Vec::new();
    for record in reader.records() {
        let record = record.context("the table is malformed")?;
        if names.is_empty() {
            names = record.iter().map(|name| name.trim().to_owned()).collect();
            if is_data(&record) {
                notes.push("no header; the columns are taken as class index, title, description".to_owned());
                names = ["class index", "title", "description"].map(str::to_owned).into();
            } else {
                continue;
            }
        }
        let (line, found, expected) = (record.position().map_or(0, csv::Position::line), record.len(), names.len());
        ensure!(
            found == expected,
            "line {line}: found {found} fields between {:?}, expected {expected} as in the first line: put fields that hold it in double \
             quotes, or give --separator",
            char::from(separator)
        );
        rows.push(record.iter().map(Value::from).collect());
    }
    Ok(Table { names, rows })
}

/// Returns true for a record of AG News, which has no header.
fn is_data(record: &csv::StringRecord) -> bool {
    record.len() == 3
        && record.get(0).is_some_and(|class| !class.is_empty() && class.bytes().all(|byte| byte.is_ascii_digit()))
}

/// Returns the separator that occurs most often outside quotes in the first line; `own` if none occurs.
fn guess_separator(line: &str, own: u8) -> u8 {
    let outside: String = line.split('"').step_by(2).collect();
    let count = |separator: u8| outside.bytes().filter(|&byte| byte == separator).count();
    let others = [own, b',', b';', b'\t', b'|'];
    // The last of equals wins, so the usual one is last.
    others.into_iter().rev().max_by_key(|&separator| count(separator)).unwrap_or(own)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failing test may panic")]
    use super::*;
    use serde_json::json;
    use std::io::Write;

    fn read_as(name: &str, contents: &[u8], form: &Form) -> anyhow::Result<(Table, Vec<String>)> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(name);
        std::fs::write(&path, contents).unwrap();
        let mut notes = Vec::new();
        Ok((read(&path, form, &mut notes)?, notes))
    }

    fn expected() -> Table {
        let rows = vec![vec![json!("pos"), json!("良い天気です")], vec![json!("neg"), json!("とても悪い")]];
        Table { names: vec!["label".to_owned(), "text".to_owned()], rows }
    }

    #[test]
    fn every_form_gives_the_same_table_and_says_what_was_guessed() {
        let csv = "label,text\r\npos,良い天気です\r\nneg,とても悪い\r\n";
        let wide: Vec<u8> = csv.encode_utf16().flat_map(u16::to_le_bytes).collect();
        let japanese = encoding_rs::SHIFT_JIS.encode(csv).0.into_owned();
        let mut packed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
        packed.write_all(&japanese).unwrap();
        let packed = packed.finish().unwrap();
        let json = r#"[{"label": "pos", "text": "良い天気です"}, {"label": "neg", "text": "とても悪い"}]"#;
        let lines = json.trim_matches(['[', ']']).replace("}, ", "}\n");
        for (name, contents, note) in [
            ("a.csv", csv.as_bytes(), ""),
            ("a.csv", format!("\u{feff}{csv}").as_bytes(), ""),
            ("a.csv", &wide, "UTF-16LE"),
            ("a.csv", &japanese, "CP932"),
            ("a.csv.gz", &packed, "CP932"),
            ("a.csv", csv.replace(',', ";").as_bytes(), "';'"),
            ("a.csv", csv.replace("\r\n", "\r").as_bytes(), "CR alone"),
            ("a.tsv", csv.replace(',', "\t").as_bytes(), ""),
            ("a.tsv", "\"label\"\t\"text\"\n\"pos\"\t\"良い天気です\"\n\"neg\"\t\"とても悪い\"\n".as_bytes(), "quotes"),
            ("a.json", json.as_bytes(), ""),
            ("a.jsonl", json.as_bytes(), ""),
            ("a.json", lines.as_bytes(), ""),
            ("a.json", format!("{{\"data\": {json}, \"version\": 1}}").as_bytes(), "\"data\""),
        ] {
            let (table, notes) = read_as(name, contents, &Form::default()).unwrap();
            assert_eq!(table, expected(), "{name}");
            assert_eq!(
                (notes.len(), notes.iter().any(|found| found.contains(note))),
                (usize::from(!note.is_empty()), !note.is_empty()),
                "{notes:?}"
            );
        }
    }

    #[test]
    fn named_forms_go_before_guesses() {
        let form = Form {
            encoding: Some("latin1".to_owned()),
            separator: Some(b'|'),
            header: vec!["label".to_owned(), "text".to_owned()],
        };
        let (table, notes) = read_as("a.csv", b"x|caf\xe9, two\n", &form).unwrap();
        assert_eq!((table.rows, notes), (vec![vec![json!("x"), json!("café, two")]], Vec::new()));
        let form = Form { encoding: Some("klingon".to_owned()), ..Form::default() };
        assert!(read_as("a.csv", b"a,b\n", &form).unwrap_err().to_string().contains("not a known encoding"));
    }

    #[test]
    fn what_cannot_be_read_is_named() {
        for (name, contents, says) in [
            ("a.csv", b"label,text\n1,a\n2,a,b\n".as_slice(), "line 3: found 3 fields"),
            ("a.csv.gz", b"\x1f\x8b\x08\0\0\0\0\0", "cut off or damaged"),
            ("a.parquet", b"PAR1 and no more", "Parquet"),
            ("a.csv", b"version https://git-lfs.github.com/spec/v1\nsize 3\n", "git lfs pull"),
            ("a.json", b"[1, 2]", "record 1 is not a JSON object"),
            ("a.json", b"{\"a\": ", "not JSON"),
        ] {
            let error = read_as(name, contents, &Form::default()).unwrap_err();
            assert!(format!("{error:#}").contains(says), "{name}: {error:#}");
        }
    }
}
