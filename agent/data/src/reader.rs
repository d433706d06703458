//! Reads labelled text, one record at a time.
//!
//! | extension | form |
//! |---|---|
//! | `.csv` | a header that names a label and a text column, or no header and `class,title,description` as AG News has it |
//! | `.tsv` | a header that names a label and a text column; quotes are text, as in SST-2 |
//! | `.jsonl` | one object on each line with `label` and `text`, as in HWU64; other keys are ignored |
//!
//! UTF-8, with or without a byte order mark; lines end in LF or CRLF; blank lines are skipped. A record holds at most
//! [`MAX_RECORD_BYTES`]. Where there are `title` and `description`, the text is `title. description`.

use crate::delimited::{Delimited, Form};
use crate::error::{DataError, Place};
use crate::example::Example;
use crate::json_lines::JsonLines;
use std::fs::File;
use std::io::Read;
use std::path::Path;

/// The longest record that is read; a longer one is an error, so memory stays bounded whatever the file holds.
pub const MAX_RECORD_BYTES: usize = 1 << 20;

/// Reads all examples of a file.
///
/// # Errors
/// The first thing that is wrong with the file; also where it holds no examples.
pub fn read(path: &Path) -> Result<Vec<Example>, DataError> {
    open(path)?.collect()
}

/// Opens a file to read its examples one by one.
///
/// # Errors
/// [`DataError::Open`] and [`DataError::UnsupportedFormat`]; what is wrong with the content, the iterator says.
pub fn open(path: &Path) -> Result<Reader, DataError> {
    let format = Format::of(path).ok_or_else(|| DataError::UnsupportedFormat { path: path.to_owned() })?;
    let file = File::open(path).map_err(|source| DataError::Open { path: path.to_owned(), source })?;
    Ok(Reader::new(path, format, Box::new(file)))
}

/// How records are written.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Format {
    /// Commas, with quotes.
    Csv,
    /// Tabs, without quotes.
    Tsv,
    /// An object on each line.
    JsonLines,
}

impl Format {
    /// By the file's extension, in capitals or not.
    #[must_use]
    pub fn of(path: &Path) -> Option<Self> {
        match path.extension()?.to_str()?.to_ascii_lowercase().as_str() {
            "csv" => Some(Self::Csv),
            "tsv" => Some(Self::Tsv),
            "jsonl" => Some(Self::JsonLines),
            _ => None,
        }
    }
}

/// The examples of a file, in its order. Ends after the first error, and says [`DataError::Empty`] where there were none.
pub struct Reader {
    place: Place,
    records: Records,
    state: State,
}

enum Records {
    Delimited(Box<Delimited>),
    JsonLines(JsonLines),
}

#[derive(Clone, Copy)]
enum State {
    NothingYet,
    Reading,
    Ended,
}

impl Reader {
    /// Reads `source`; errors call it `path`.
    #[must_use]
    pub fn new(path: &Path, format: Format, source: Box<dyn Read + Send>) -> Self {
        let records = match format {
            Format::Csv => Records::Delimited(Box::new(Delimited::new(Form::Csv, source))),
            Format::Tsv => Records::Delimited(Box::new(Delimited::new(Form::Tsv, source))),
            Format::JsonLines => Records::JsonLines(JsonLines::new(source)),
        };
        Self { place: Place { path: path.to_owned(), line: 1, column: 0 }, records, state: State::NothingYet }
    }

    fn next_example(&mut self) -> Result<Option<Example>, DataError> {
        match &mut self.records {
            Records::Delimited(records) => records.next_example(&mut self.place),
            Records::JsonLines(records) => records.next_example(&mut self.place),
        }
    }
}

impl Iterator for Reader {
    type Item = Result<Example, DataError>;

    fn next(&mut self) -> Option<Self::Item> {
        let nothing_yet = match self.state {
            State::NothingYet => true,
            State::Reading => false,
            State::Ended => return None,
        };
        let item = match self.next_example() {
            Ok(None) if nothing_yet => Some(Err(DataError::Empty { path: self.place.path.clone() })),
            other => other.transpose(),
        };
        self.state = if matches!(item, Some(Ok(_))) { State::Reading } else { State::Ended };
        item
    }
}

impl std::iter::FusedIterator for Reader {}

/// `bytes` as the text of a field: UTF-8 without NUL.
pub(crate) fn field_text<'a>(bytes: &'a [u8], place: &Place) -> Result<&'a str, DataError> {
    let text = std::str::from_utf8(bytes).map_err(|source| DataError::Encoding { place: place.clone(), source })?;
    if text.contains('\0') { Err(DataError::Nul { place: place.clone() }) } else { Ok(text) }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may panic")]
    use super::*;
    use proptest::prelude::*;
    use std::io::Cursor;

    fn parse(format: Format, bytes: &[u8]) -> Result<Vec<Example>, DataError> {
        Reader::new(Path::new("file"), format, Box::new(Cursor::new(bytes.to_vec()))).collect()
    }

    fn error(format: Format, bytes: &[u8]) -> (String, DataError) {
        let error = parse(format, bytes).unwrap_err();
        (error.to_string(), error)
    }

    fn example(label: &str, text: &str) -> Example {
        Example { label: label.to_owned(), text: text.to_owned() }
    }

    const ALL: [Format; 3] = [Format::Csv, Format::Tsv, Format::JsonLines];

    #[test]
    fn ag_news_joins_title_and_description() {
        let rows = b"\"3\",\"Up\",\"Shares, \"\"up\"\"\"\n\"4\",\"T\",\"two\nlines\"\n";
        let expected = [example("3", "Up. Shares, \"up\""), example("4", "T. two\nlines")];
        assert_eq!(parse(Format::Csv, rows).unwrap(), expected);
        let headed = [b"Class Index,Title,Description\n".as_slice(), rows].concat();
        assert_eq!(parse(Format::Csv, &headed).unwrap(), expected);
    }

    #[test]
    fn a_header_may_name_the_columns_in_any_order_and_case() {
        let rows = b"id,Text,note,LABEL\n1,\"hello, you\",,greet\n";
        assert_eq!(parse(Format::Csv, rows).unwrap(), [example("greet", "hello, you")]);
    }

    #[test]
    fn quotes_are_text_in_tsv() {
        let rows = b"sentence\tlabel\nsay \"hi\t1\n\"quoted\" \t0\n";
        assert_eq!(parse(Format::Tsv, rows).unwrap(), [example("1", "say \"hi"), example("0", "\"quoted\" ")]);
    }

    #[test]
    fn json_lines_ignore_other_keys_and_take_numbers_as_labels() {
        let rows =
            b"{\"id\": [1, {}], \"label\": \"a\", \"text\": \"\\u00e9t\\u00e9\"}\n\n{\"text\": \"x\", \"label\": -2}";
        assert_eq!(parse(Format::JsonLines, rows).unwrap(), [example("a", "été"), example("-2", "x")]);
    }

    #[test]
    fn byte_order_marks_crlf_blank_lines_and_a_missing_last_line_end_change_nothing() {
        let expected = [example("1", "a b"), example("2", "c")];
        let tsv = "\u{feff}sentence\tlabel\r\n\r\na b\t1\r\nc\t2";
        assert_eq!(parse(Format::Tsv, tsv.as_bytes()).unwrap(), expected);
        let csv = "\u{feff}\"text\",\"label\"\r\n\n\"a b\",\"1\"\r\n\r\n\"c\",\"2\"";
        assert_eq!(parse(Format::Csv, csv.as_bytes()).unwrap(), expected);
        let json = "\u{feff}{\"text\":\"a b\",\"label\":\"1\"}\r\n \r\n{\"text\":\"c\",\"label\":\"2\"}";
        assert_eq!(parse(Format::JsonLines, json.as_bytes()).unwrap(), expected);
    }

    #[test]
    fn an_error_names_file_line_and_column() {
        let (message, _) = error(Format::Csv, b"label,text\r\na,\"b\r\nc\"\r\n\r\n ,d\r\n");
        assert_eq!(message, "file, line 5, column 1: the label is missing: give the record one, or delete it");
        let (message, _) = error(Format::Tsv, b"sentence\tlabel\nfine\t1\n \t0\n");
        assert_eq!(message, "file, line 3, column 1: the text is missing: give the record one, or delete it");
        let (message, _) = error(Format::JsonLines, b"\n{\"text\": \"a\"}\n");
        assert!(message.starts_with("file, line 2, column 1: the label is missing"), "{message}");
        let (message, error) = error(Format::JsonLines, b"{\"text\": \"a\", label: 1}");
        assert!(message.starts_with("file, line 1, column 15: not a JSON object"), "{message}");
        assert!(matches!(error, DataError::Json { .. }));
    }

    #[test]
    fn the_wrong_number_of_fields_is_refused() {
        let (message, _) = error(Format::Csv, b"1,a,b\n2,a,b,c\n");
        assert!(message.starts_with("file, line 2, column 4: found 4 fields, expected 3"), "{message}");
        let (message, _) = error(Format::Tsv, b"sentence\tlabel\nno label here\n");
        assert!(message.starts_with("file, line 2, column 2: found 1 fields, expected 2"), "{message}");
    }

    #[test]
    fn columns_without_a_meaning_are_refused() {
        for (format, rows) in [
            (Format::Csv, b"id,body\n1,a\n".as_slice()),
            (Format::Csv, b"label,body\n1,a\n"),
            (Format::Csv, b"a,b,c\n1,a,b\n"),
            (Format::Tsv, b"no header\t1\n"),
        ] {
            let (message, error) = error(format, rows);
            assert!(matches!(error, DataError::UnknownColumns { .. }), "{message}");
            assert!(message.starts_with("file, line 1: found the columns"), "{message}");
        }
    }

    #[test]
    fn a_pair_of_sentences_is_refused() {
        let (message, error) =
            error(Format::Tsv, "\u{feff}Quality\t#1 ID\t#2 ID\t#1 String\t#2 String\n1\t1\t2\ta\tb\n".as_bytes());
        assert!(matches!(error, DataError::SentencePair { .. }), "{message}");
        assert!(message.contains("[\"#1 String\", \"#2 String\"]"), "{message}");
    }

    #[test]
    fn bytes_that_are_not_text_are_refused() {
        for (format, rows) in
            [(Format::Csv, b"label,text\n1,caf\xe9\n".as_slice()), (Format::Tsv, b"label\ttext\n1\tcaf\xe9\n")]
        {
            let (message, error) = error(format, rows);
            assert!(matches!(error, DataError::Encoding { .. }), "{message}");
            assert!(message.starts_with("file, line 2, column 2: not UTF-8"), "{message}");
        }
        let (message, failed) = error(Format::JsonLines, b"{\"label\": 1, \"text\": \"caf\xe9\"}\n");
        assert!(matches!(failed, DataError::Encoding { .. }), "{message}");
        assert!(message.starts_with("file, line 1, column 26: not UTF-8"), "{message}");
        for (format, rows) in [
            (Format::Csv, b"label,text\n1,a\0b\n".as_slice()),
            (Format::Tsv, b"label\ttext\n1\ta\0b\n"),
            (Format::JsonLines, b"{\"label\": 1, \"text\": \"a\\u0000b\"}\n"),
        ] {
            let (message, error) = error(format, rows);
            assert!(matches!(error, DataError::Nul { .. }), "{message}");
        }
    }

    #[test]
    fn an_unclosed_quote_is_refused_at_the_record_that_opens_it() {
        for rows in [b"1,a,b\n2,a,\"b\n3,a,b\n".as_slice(), b"1,a,b\n2,a,\"b", b"1,a,b\n2,a,\"\n"] {
            let (message, error) = error(Format::Csv, rows);
            assert!(matches!(error, DataError::UnclosedQuote { .. }), "{message}");
            assert!(message.starts_with("file, line 2:"), "{message}");
        }
        assert_eq!(parse(Format::Csv, b"1,a,\"b\n\n\"").unwrap(), [example("1", "a. b\n\n")]);
    }

    #[test]
    fn a_record_longer_than_the_limit_is_refused_and_never_held() {
        for (format, start) in [
            (Format::Csv, "label,text\n1,fine\n2,\"".to_owned()),
            (Format::Csv, "label,text\n1,fine\n2,".to_owned()),
            (Format::Tsv, "label\ttext\n1\tfine\n2\t".to_owned()),
            (Format::JsonLines, "{\"label\":1,\"text\":\"fine\"}\n\n{\"text\":\"".to_owned()),
        ] {
            let endless = Box::new(Cursor::new(start.into_bytes()).chain(std::io::repeat(b'x')));
            let mut reader = Reader::new(Path::new("file"), format, endless);
            reader.next().unwrap().unwrap();
            let error = reader.next().unwrap().unwrap_err();
            assert!(matches!(&error, DataError::RecordTooLong { place, .. } if place.line == 3), "{error}");
            assert!(reader.next().is_none());
        }
    }

    #[test]
    fn a_record_of_the_limit_is_read() {
        let text = "x".repeat(MAX_RECORD_BYTES - 3);
        for (format, record) in [(Format::Csv, format!("1,{text}\n")), (Format::Tsv, format!("1\t{text}\n"))] {
            let header = if format == Format::Csv { "label,text\n" } else { "label\ttext\n" };
            let rows = [header, &record, &record, &record].concat();
            assert_eq!(parse(format, rows.as_bytes()).unwrap().len(), 3);
        }
    }

    #[test]
    fn values_of_the_wrong_type_are_refused() {
        for (rows, key) in [
            ("{\"label\": [1], \"text\": \"a\"}", "\"label\" is an array"),
            ("{\"label\": 1.5, \"text\": \"a\"}", "\"label\" is a fraction"),
            ("{\"label\": 1, \"text\": 7}", "\"text\" is a number"),
        ] {
            let (message, error) = error(Format::JsonLines, rows.as_bytes());
            assert!(matches!(error, DataError::WrongType { .. }) && message.contains(key), "{message}");
        }
    }

    #[test]
    fn lines_that_are_not_one_object_are_refused() {
        let deep = format!("{{\"x\":{}", "[".repeat(100_000));
        for row in [
            "[]",
            "{\"label\": 1, \"text\": \"a\"} {}",
            "{\"label\": 1, \"text\": \"a",
            "nul",
            "{\"text\":\"a\",\"text\":\"b\"}",
            &deep,
        ] {
            let (message, error) = error(Format::JsonLines, row.as_bytes());
            assert!(matches!(error, DataError::Json { .. }), "{message}");
        }
    }

    #[test]
    fn a_file_without_examples_is_empty() {
        for (format, rows) in [
            (Format::Csv, ""),
            (Format::Csv, "\u{feff}\r\n"),
            (Format::Csv, "label,text\n"),
            (Format::Tsv, ""),
            (Format::Tsv, "sentence\tlabel"),
            (Format::JsonLines, ""),
            (Format::JsonLines, "\u{feff}"),
            (Format::JsonLines, "\n \n"),
        ] {
            let (message, error) = error(format, rows.as_bytes());
            assert!(matches!(error, DataError::Empty { .. }), "{format:?} {rows:?}: {message}");
        }
    }

    #[test]
    fn a_file_that_is_away_or_of_another_kind_is_refused_by_name() {
        let message = read(Path::new("no/such.csv")).unwrap_err().to_string();
        assert!(message.starts_with("opening no/such.csv"), "{message}");
        let message = read(Path::new("mrpc/test.txt")).unwrap_err().to_string();
        assert_eq!(message, "mrpc/test.txt is of no supported format: use a .csv, .tsv or .jsonl file");
    }

    #[test]
    fn a_source_that_fails_is_an_error_with_its_cause() {
        struct Failing;
        impl Read for Failing {
            fn read(&mut self, _: &mut [u8]) -> std::io::Result<usize> {
                Err(std::io::Error::other("disk on fire"))
            }
        }
        for format in ALL {
            let error = Reader::new(Path::new("file"), format, Box::new(Failing)).next().unwrap().unwrap_err();
            let cause = std::error::Error::source(&error).unwrap().to_string();
            assert!(matches!(error, DataError::Read { .. }) && cause == "disk on fire", "{error}: {cause}");
        }
    }

    fn examples() -> impl Strategy<Value = Vec<Example>> {
        let example =
            ("[a-z0-9é\"]{1,5}", "[ -~é\u{1f600}]{0,20}[a-z\"]").prop_map(|(label, text)| Example { text, label });
        proptest::collection::vec(example, 1..12)
    }

    proptest! {
        #[test]
        fn csv_reads_what_was_written(examples in examples()) {
            let mut writer = csv::Writer::from_writer(Vec::new());
            writer.write_record(["label", "text"]).unwrap();
            for example in &examples {
                writer.write_record([&example.label, &example.text]).unwrap();
            }
            prop_assert_eq!(parse(Format::Csv, &writer.into_inner().unwrap()).unwrap(), examples);
        }

        #[test]
        fn tsv_reads_what_was_written(examples in examples()) {
            let rows: String = examples.iter().map(|example| format!("{}\t{}\n", example.text, example.label)).collect();
            prop_assert_eq!(parse(Format::Tsv, format!("sentence\tlabel\n{rows}").as_bytes()).unwrap(), examples);
        }

        #[test]
        fn json_lines_read_what_was_written(examples in examples()) {
            let rows: String = examples
                .iter()
                .map(|example| format!("{}\n", serde_json::json!({"label": example.label, "text": example.text})))
                .collect();
            prop_assert_eq!(parse(Format::JsonLines, rows.as_bytes()).unwrap(), examples);
        }

        #[test]
        fn any_bytes_are_read_or_refused(start in 0_usize..4, bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let start: &[u8] = [b"".as_slice(), b"label,text\n", b"sentence\tlabel\n", b"{\"label\":1,\"text\":"][start];
            for format in ALL {
                let _ = parse(format, &[start, &bytes].concat());
            }
        }

        #[test]
        fn a_truncated_file_gives_a_start_of_its_examples(examples in examples(), cut in 0.0..1.0) {
            let rows: String = examples
                .iter()
                .map(|example| format!("{}\n", serde_json::json!({"label": example.label, "text": example.text})))
                .collect();
            let bytes = &rows.as_bytes()[..(rows.len() as f64 * cut) as usize];
            let reader = Reader::new(Path::new("file"), Format::JsonLines, Box::new(Cursor::new(bytes.to_vec())));
            let whole: Vec<Example> = reader.filter_map(Result::ok).collect();
            prop_assert_eq!(&examples[..whole.len()], whole.as_slice());
        }
    }
}
