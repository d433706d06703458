//! Faults of a data file, where they are, and how to repair them.

use crate::encoding::Guess;
use skiff_base::foreign::Foreign;
use std::fmt;
use std::io;
use std::path::PathBuf;

/// A place in a data file, counted from 1 as editors do.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Place {
    /// The file.
    pub path: PathBuf,
    /// Number of the line in which the record begins.
    pub line: u64,
    /// Number of the field in CSV and TSV, or of the byte in the line in other formats; 0 for the whole record.
    pub column: usize,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}, line {}", self.path.display(), self.line)?;
        if self.column == 0 { Ok(()) } else { write!(f, ", column {}", self.column) }
    }
}

/// A reason why a data file or a data set's folder could not be read.
#[derive(Debug, thiserror::Error)]
pub enum DataError {
    /// The file is missing or cannot be read.
    #[error("opening {}: check that the file exists and may be read", path.display())]
    Open {
        /// The file.
        path: PathBuf,
        /// The system's error.
        #[source]
        source: io::Error,
    },
    /// The system failed to read the middle of the file.
    #[error("reading {place}")]
    Read {
        /// The place in the file.
        place: Place,
        /// The system's error.
        #[source]
        source: io::Error,
    },
    /// There is no reader for the file's extension.
    #[error("{} has an unsupported format: use a file that ends in {supported}", path.display())]
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
    /// Another kind of file was found in place of the data file.
    #[error("{} is not a file of examples", path.display())]
    Foreign {
        /// The file.
        path: PathBuf,
        /// The kind of file, and the remedy.
        source: Foreign,
    },
    /// A folder was given instead of a file.
    #[error("{} is a folder: name the file inside", path.display())]
    Folder {
        /// The folder.
        path: PathBuf,
    },
    /// The lines end in CR alone.
    #[error(
        "{}: the lines end in CR alone, as old Mac programs write them: convert it with `tr '\\r' '\\n' < FILE > NEW`",
        path.display()
    )]
    LoneCarriageReturns {
        /// The file.
        path: PathBuf,
    },
    /// The header or a record names no column for the text or the label.
    #[error("{place}: found the {what} {found:?}; name {wanted}{advice}")]
    UnknownColumns {
        /// The header or the record.
        place: Place,
        /// The word `columns` or `keys`.
        what: &'static str,
        /// The names that were found.
        found: Vec<String>,
        /// The allowed names.
        wanted: &'static str,
        /// The end of the message, which suggests names that the user may have meant.
        advice: String,
    },
    /// A column that a setting names is missing.
    #[error("{place}: there is no {what} {name:?}: found {found:?}; name one of these")]
    NoSuchColumn {
        /// The header or the record.
        place: Place,
        /// The word `column` or `key`.
        what: &'static str,
        /// The name in the setting.
        name: String,
        /// The names that were found.
        found: Vec<String>,
    },
    /// Two columns have the same name.
    #[error("{place}: two columns are named {name:?}: delete one, or give it another name")]
    DuplicateColumn {
        /// The second of the two columns.
        place: Place,
        /// The name.
        name: String,
    },
    /// A file that should have no header has one.
    #[error("{place}: the first line is a header already: leave out --columns")]
    HeaderTwice {
        /// The header.
        place: Place,
    },
    /// Fields are in quotes, in a format without quotes.
    #[error(
        "{place}: every field stands in double quotes, which are text in a .tsv file: leave them out, or convert it with \
         `skiff-pack data FILE NEW.jsonl`"
    )]
    QuotedFields {
        /// The record.
        place: Place,
    },
    /// A record has more or fewer fields than the header or the first record.
    #[error("{place}: found {found} fields, expected {expected} as in the first line: {advice}")]
    FieldCount {
        /// The record.
        place: Place,
        /// Number of fields of the header or the first record.
        expected: usize,
        /// Number of fields of this record.
        found: usize,
        /// The remedy.
        advice: &'static str,
    },
    /// A quote is never closed, so that the rest of the file would be one field.
    #[error("{place}: a quote is opened and never closed: close it, or double the quotes inside a quoted field")]
    UnclosedQuote {
        /// The record.
        place: Place,
    },
    /// The label is missing or blank.
    #[error("{place}: the label is missing: give the record one, or delete it")]
    MissingLabel {
        /// The record.
        place: Place,
    },
    /// The text is missing or blank.
    #[error("{place}: the text is missing: give the record one, or delete it")]
    MissingText {
        /// The record.
        place: Place,
    },
    /// A record has no words, or no labels for them.
    #[error("{place}: no words with a label each: write them such as {WORDS_LINE}")]
    MissingWords {
        /// The record.
        place: Place,
    },
    /// A word consists of spaces only.
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
    /// A label is not a number, although it should be one.
    #[error("{place}: {key:?} is {found:?}, expected a finite number such as 3.5, or an array such as [1, 0.5]")]
    NotANumber {
        /// The record.
        place: Place,
        /// Name of the field.
        key: String,
        /// Start of the field's contents.
        found: String,
    },
    /// The JSON type of a field is not allowed.
    #[error("{place}: {key:?} is {found}, expected {expected}")]
    WrongType {
        /// The record.
        place: Place,
        /// Name of the field.
        key: String,
        /// The allowed types.
        expected: &'static str,
        /// The type of the field.
        found: &'static str,
    },
    /// A line is not a single JSON object.
    #[error("{place}: not a JSON object: write one object on each line, such as {EXAMPLE_LINE}{advice}")]
    Json {
        /// The place where the parser stopped.
        place: Place,
        /// The end of the message: a command that repairs the line, if the kind of fault is known.
        advice: &'static str,
        /// The parser's error.
        #[source]
        source: serde_json::Error,
    },
    /// The bytes are not UTF-8.
    #[error("{place}: not UTF-8{}", conversion(*guess))]
    Encoding {
        /// The field.
        place: Place,
        /// The encoding that the file probably has.
        guess: Option<Guess>,
        /// The decoder's error, which names the byte; `None` if the start of the file reveals its encoding.
        #[source]
        source: Option<std::str::Utf8Error>,
    },
    /// A field contains a NUL character, which text never does.
    #[error(
        "{place}: holds a NUL character: make sure that it is a text file, and delete them with `tr -d '\\0' < FILE > NEW`"
    )]
    Nul {
        /// The field.
        place: Place,
    },
    /// A record is longer than any text that a transformer can take.
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
    /// A folder lacks one part of the data set.
    #[error("{} holds no {part} part: looked for {looked_for:?}", folder.display())]
    MissingPart {
        /// The folder.
        folder: PathBuf,
        /// The part: `training` or `test`.
        part: &'static str,
        /// The names, in the order of preference.
        looked_for: Vec<String>,
    },
}

/// Returns the end of a sentence that names the encoding and the command that converts the file.
fn conversion(guess: Option<Guess>) -> String {
    match guess {
        Some(guess) => format!(
            ", but probably {guess}; convert it with `skiff-pack data FILE NEW.jsonl`, or with iconv -f {} -t UTF-8",
            guess.name()
        ),
        None => "; convert it with `skiff-pack data FILE NEW.jsonl`, which also guesses the encoding".to_owned(),
    }
}

const EXAMPLE_LINE: &str = r#"{"label": "greeting", "text": "good morning"}"#;

const WORDS_LINE: &str = r#"{"tokens": ["Oslo", "is", "cold"], "labels": ["B-LOC", "O", "O"]}"#;
