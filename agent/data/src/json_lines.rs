//! JSON Lines: one object on each line.

use crate::error::{DataError, Place};
use crate::example::Example;
use crate::reader::{MAX_RECORD_BYTES, field_text};
use serde::Deserialize;
use serde_json::Value;
use std::io::{BufRead, BufReader, Read};

pub(crate) struct JsonLines {
    lines: BufReader<Box<dyn Read + Send>>,
    line: Vec<u8>,
    read: u64,
}

#[derive(Deserialize)]
struct Row {
    label: Option<Value>,
    text: Option<Value>,
}

impl JsonLines {
    pub(crate) fn new(source: Box<dyn Read + Send>) -> Self {
        Self { lines: BufReader::new(source), line: Vec::new(), read: 0 }
    }

    /// The next example, and in `place` where it is; `None` at the end.
    pub(crate) fn next_example(&mut self, place: &mut Place) -> Result<Option<Example>, DataError> {
        while self.next_line(place)? {
            let text = line_text(&self.line, place)?;
            if !text.trim().is_empty() {
                return parse(text, place).map(Some);
            }
        }
        Ok(None)
    }

    fn next_line(&mut self, place: &mut Place) -> Result<bool, DataError> {
        self.line.clear();
        (place.line, place.column) = (self.read + 1, 1);
        let limit = MAX_RECORD_BYTES as u64 + 1;
        let length = (&mut self.lines)
            .take(limit)
            .read_until(b'\n', &mut self.line)
            .map_err(|source| DataError::Read { place: place.clone(), source })?;
        if length > MAX_RECORD_BYTES {
            return Err(DataError::RecordTooLong { place: place.clone(), limit_bytes: MAX_RECORD_BYTES });
        }
        if self.read == 0 && self.line.starts_with(b"\xef\xbb\xbf") {
            self.line.drain(..3);
        }
        self.read += 1;
        Ok(length > 0)
    }
}

fn line_text<'a>(line: &'a [u8], place: &mut Place) -> Result<&'a str, DataError> {
    std::str::from_utf8(line).map_err(|source| {
        place.column = source.valid_up_to() + 1;
        DataError::Encoding { place: place.clone(), source }
    })
}

fn parse(line: &str, place: &mut Place) -> Result<Example, DataError> {
    let row: Row = object(line).map_err(|source| {
        place.column = source.column();
        DataError::Json { place: place.clone(), source }
    })?;
    let wrong_type = |key, expected, found| DataError::WrongType { place: place.clone(), key, expected, found };
    let label = match row.label {
        Some(Value::String(label)) => label,
        Some(Value::Number(label)) if label.is_i64() || label.is_u64() => label.to_string(),
        Some(Value::Number(_)) => return Err(wrong_type("label", "a string or a whole number", "a fraction")),
        Some(other) => return Err(wrong_type("label", "a string or a whole number", type_name(&other))),
        None => return Err(DataError::MissingLabel { place: place.clone() }),
    };
    let text = match row.text {
        Some(Value::String(text)) => text,
        Some(other) => return Err(wrong_type("text", "a string", type_name(&other))),
        None => return Err(DataError::MissingText { place: place.clone() }),
    };
    example(&label, text, place)
}

/// A derived `Deserialize` would also take an array for a struct.
fn object(line: &str) -> Result<Row, serde_json::Error> {
    if line.trim_start().starts_with('{') {
        serde_json::from_str(line)
    } else {
        serde_json::from_str::<serde_json::Map<String, Value>>(line).map(|_| Row { label: None, text: None })
    }
}

fn example(label: &str, text: String, place: &Place) -> Result<Example, DataError> {
    let label = field_text(label.as_bytes(), place)?.trim();
    field_text(text.as_bytes(), place)?;
    if label.is_empty() {
        return Err(DataError::MissingLabel { place: place.clone() });
    }
    if text.trim().is_empty() {
        return Err(DataError::MissingText { place: place.clone() });
    }
    Ok(Example { label: label.to_owned(), text })
}

fn type_name(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a truth value",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "an array",
        Value::Object(_) => "an object",
    }
}
