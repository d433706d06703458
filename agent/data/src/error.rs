//! Faults of a data file: their places, and the remedies.

use std::fmt;
use std::io;
use std::path::PathBuf;

/// A place in a data file, as an editor counts: from 1.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Place {
    /// The file.
    pub path: PathBuf,
    /// Number of the line in which the record begins.
    pub line: u64,
    /// Number of the field in CSV and TSV, of the byte in the line elsewhere; 0 for the whole record.
    pub column: usize,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}, line {}", self.path.display(), self.line)?;
        if self.column == 0 { Ok(()) } else { write!(f, ", column {}", self.column) }
    }
}

/// A reason for which a data file or a data set's folder could not be read.
#[derive(Debug, thiserror::Error)]
pub enum DataError {
    /// The file is missing, or may not be read.
    #[error("opening {}: check that the file exists and may be read", path.display())]
    Open {
        /// The file.
        path: PathBuf,
        /// The system's error.
        #[source]
        source: io::Error,
    },
    /// The system failed in the middle of the file.
    #[error("reading {place}")]
    Read {
        /// The place in the file.
        place: Place,
        /// The system's error.
        #[source]
        source: io::Error,
    },
    /// There is no reader for the file's extension.
    #[error("{} is of no supported format: use a file that ends in {supported}", path.display())]
    UnsupportedFormat {
        /// The file.
        path: PathBuf,
        /// The supported extensions.
        supported: String,
    },
    /// The file has no examples.
    #[error("{} holds no examples: is it the right file, and was it written completely?", path.display())]
    Empty {
        /// The file.
        path: PathBuf,
    },
    /// The header names no column for the text or the label.
    #[error("{place}: found the columns {found:?}; name {wanted}")]
    UnknownColumns {
        /// The header.
        place: Place,
        /// The names of the columns.
        found: Vec<String>,
        /// The allowed names.
        wanted: &'static str,
    },
    /// A record of another width than the header, or than the first record.
    #[error("{place}: found {found} fields, expected {expected}: quote fields that hold the separator")]
    FieldCount {
        /// The record.
        place: Place,
        /// Number of fields of the header or the first record.
        expected: usize,
        /// Number of fields of this record.
        found: usize,
    },
    /// A quote that nothing closes, so that the rest of the file would be one field.
    #[error("{place}: a quote is opened and never closed: close it, or double the quotes inside a quoted field")]
    UnclosedQuote {
        /// The record.
        place: Place,
    },
    /// No label, or a blank one.
    #[error("{place}: the label is missing: give the record one, or delete it")]
    MissingLabel {
        /// The record.
        place: Place,
    },
    /// No text, or a blank one.
    #[error("{place}: the text is missing: give the record one, or delete it")]
    MissingText {
        /// The record.
        place: Place,
    },
    /// A record without words, or without labels for them.
    #[error("{place}: no words with a label each: write them such as {WORDS_LINE}")]
    MissingWords {
        /// The record.
        place: Place,
    },
    /// A word of spaces only.
    #[error("{place}: a word is blank: delete it and its label")]
    BlankWord {
        /// The record.
        place: Place,
    },
    /// The numbers of words and labels differ.
    #[error("{place}: {words} words have {labels} labels: give every word one")]
    UnevenLabels {
        /// The record.
        place: Place,
        /// Number of words.
        words: usize,
        /// Number of labels.
        labels: usize,
    },
    /// A label that should be a number.
    #[error("{place}: {key:?} is {found:?}, expected a finite number such as 3.5, or an array such as [1, 0.5]")]
    NotANumber {
        /// The record.
        place: Place,
        /// Name of the field.
        key: String,
        /// Start of its contents.
        found: String,
    },
    /// A field of a JSON type that is not allowed.
    #[error("{place}: {key:?} is {found}, expected {expected}")]
    WrongType {
        /// The record.
        place: Place,
        /// Name of the field.
        key: String,
        /// The allowed types.
        expected: &'static str,
        /// Its type.
        found: &'static str,
    },
    /// A line that is not one JSON object.
    #[error("{place}: not a JSON object: write one object on each line, such as {EXAMPLE_LINE}")]
    Json {
        /// The place where the parser stopped.
        place: Place,
        /// The parser's error.
        #[source]
        source: serde_json::Error,
    },
    /// Bytes that are not UTF-8.
    #[error("{place}: not UTF-8: convert the file, for example with iconv -t UTF-8")]
    Encoding {
        /// The field.
        place: Place,
        /// The decoder's error, which names the byte.
        #[source]
        source: std::str::Utf8Error,
    },
    /// A NUL character, which text does not hold.
    #[error("{place}: holds a NUL character: is it a text file, in UTF-8?")]
    Nul {
        /// The field.
        place: Place,
    },
    /// A record longer than any text for a transformer.
    #[error("{place}: the record is longer than {limit_bytes} bytes: shorten it, or close its quote")]
    RecordTooLong {
        /// The record.
        place: Place,
        /// The limit in bytes.
        limit_bytes: usize,
    },
    /// The file has changed since it was opened.
    #[error(
        "{place}: the file changed since it was opened; start again, and replace a file as a whole, by renaming a new one"
    )]
    Changed {
        /// The record that changed.
        place: Place,
    },
    /// A folder without a part of the data set.
    #[error("{} holds no {part} part: looked for {looked_for:?}", folder.display())]
    MissingPart {
        /// The folder.
        folder: PathBuf,
        /// `training` or `test`.
        part: &'static str,
        /// The names, in the order of preference.
        looked_for: Vec<String>,
    },
}

const EXAMPLE_LINE: &str = r#"{"label": "greeting", "text": "good morning"}"#;

const WORDS_LINE: &str = r#"{"tokens": ["Oslo", "is", "cold"], "labels": ["B-LOC", "O", "O"]}"#;
