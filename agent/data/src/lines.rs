//! Bounded lines of UTF-8, and the two formats that consist of lines: texts, and CoNLL's sentences.

use crate::columns::Columns;
use crate::error::{DataError, Place};
use crate::format::{BYTE_ORDER_MARK, MAX_RECORD_BYTES};
use crate::names::Named;
use crate::row::{Cells, Row};
use serde_json::Value;
use std::io::{BufRead, BufReader, Read};
use std::ops::Range;

/// Word that marks the start of a document in CoNLL's files.
const DOCUMENT: &str = "-DOCSTART-";

/// The columns of a format that has no names for them.
static NO_COLUMNS: Columns =
    Columns { text: Vec::new(), pair: None, prompt: None, label: None, header: Vec::new(), separator: None };

/// The lines of a file, one at a time.
pub(crate) struct Lines {
    source: BufReader<Box<dyn Read + Send>>,
    line: Vec<u8>,
    read: u64,
    /// Byte range of the line in the source.
    bytes: Range<u64>,
}

impl Lines {
    pub(crate) fn new(source: Box<dyn Read + Send>) -> Self {
        Self { source: BufReader::new(source), line: Vec::new(), read: 0, bytes: 0..0 }
    }

    /// Returns the next line with its line end and sets `place` to its position; `None` at the end.
    pub(crate) fn next(&mut self, place: &mut Place) -> Result<Option<&str>, DataError> {
        self.line.clear();
        (place.line, place.column) = (self.read + 1, 1);
        let limit = MAX_RECORD_BYTES as u64 + 1;
        let length = (&mut self.source)
            .take(limit)
            .read_until(b'\n', &mut self.line)
            .map_err(|source| DataError::Read { place: place.clone(), source })?;
        if length > MAX_RECORD_BYTES {
            return Err(DataError::RecordTooLong { place: place.clone(), limit_bytes: MAX_RECORD_BYTES });
        }
        self.bytes = self.bytes.end..self.bytes.end + length as u64;
        if self.read == 0 && self.line.starts_with(BYTE_ORDER_MARK) {
            self.line.drain(..BYTE_ORDER_MARK.len());
            self.bytes.start += BYTE_ORDER_MARK.len() as u64;
        }
        self.read += 1;
        if length == 0 {
            return Ok(None);
        }
        let text = std::str::from_utf8(&self.line).map_err(|source| {
            place.column = source.valid_up_to() + 1;
            DataError::Encoding { place: place.clone(), guess: None, source: Some(source) }
        })?;
        Ok(Some(text))
    }

    /// Returns the byte range of the last line in the source.
    pub(crate) fn span(&self) -> Range<u64> {
        self.bytes.clone()
    }
}

/// A text on each line.
pub(crate) struct PlainText {
    lines: Lines,
    names: [String; 1],
    values: [Value; 1],
}

impl PlainText {
    pub(crate) fn new(source: Box<dyn Read + Send>) -> Self {
        Self { lines: Lines::new(source), names: ["text".to_owned()], values: [Value::Null] }
    }

    /// Moves to the next line that is not blank. Returns false at the end.
    pub(crate) fn advance(&mut self, place: &mut Place) -> Result<bool, DataError> {
        while let Some(line) = self.lines.next(place)? {
            if !line.trim().is_empty() {
                let line = line.strip_suffix('\n').unwrap_or(line);
                self.values = [line.strip_suffix('\r').unwrap_or(line).into()];
                return Ok(true);
            }
        }
        Ok(false)
    }

    pub(crate) fn span(&self) -> Range<u64> {
        self.lines.span()
    }

    pub(crate) fn row<'a>(&'a mut self, place: &'a Place) -> Row<'a> {
        Row::new(place, Named { names: &self.names, columns: &NO_COLUMNS }, Cells::Values(&mut self.values))
    }
}

/// A word on each line with its label last, and a blank line between sentences.
pub(crate) struct Conll {
    lines: Lines,
    names: [String; 2],
    values: [Value; 2],
    bytes: Range<u64>,
}

impl Conll {
    pub(crate) fn new(source: Box<dyn Read + Send>) -> Self {
        let names = ["tokens".to_owned(), "labels".to_owned()];
        Self { lines: Lines::new(source), names, values: [Value::Null, Value::Null], bytes: 0..0 }
    }

    /// Moves to the next sentence. Returns false at the end.
    pub(crate) fn advance(&mut self, place: &mut Place) -> Result<bool, DataError> {
        let (mut words, mut labels) = (Vec::new(), Vec::new());
        let (mut start, mut span, mut bytes) = (place.clone(), 0..0, 0);
        while let Some(line) = self.lines.next(place)? {
            let mut fields = line.split_ascii_whitespace();
            let Some(word) = fields.next().filter(|&word| word != DOCUMENT) else {
                if words.is_empty() { continue } else { break }
            };
            let Some(label) = fields.next_back() else {
                place.column = line.trim_end().len() + 1;
                return Err(DataError::MissingLabel { place: place.clone() });
            };
            if words.is_empty() {
                start = place.clone();
            }
            bytes += line.len();
            if bytes > MAX_RECORD_BYTES {
                return Err(DataError::RecordTooLong { place: start, limit_bytes: MAX_RECORD_BYTES });
            }
            words.push(Value::from(word));
            labels.push(Value::from(label));
            let line = self.lines.span();
            span = if words.len() == 1 { line } else { span.start..line.end };
        }
        let found = !words.is_empty();
        *place = Place { column: 0, ..start };
        self.values = [words.into(), labels.into()];
        self.bytes = span;
        Ok(found)
    }

    pub(crate) fn span(&self) -> Range<u64> {
        self.bytes.clone()
    }

    pub(crate) fn row<'a>(&'a mut self, place: &'a Place) -> Row<'a> {
        Row::new(place, Named { names: &self.names, columns: &NO_COLUMNS }, Cells::Values(&mut self.values))
    }
}
