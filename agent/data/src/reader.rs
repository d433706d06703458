//! Reads examples of one kind, one record at a time.
//!
//! | extension | record |
//! |---|---|
//! | `.csv` | fields between commas, with quotes; a header, or `class,title,description` without a header, as in AG News |
//! | `.tsv` | fields between tabs, with a header; quotes are text, as in SST-2 and MRPC |
//! | `.jsonl`, `.json` | an object on each line; keys without a meaning are ignored |
//! | `.conll` | a word on each line with its label last, a blank line after each sentence |
//! | `.txt` | whatever is usual for that kind: a [`Passage`](crate::Passage) on each line, as `.conll` for [`Tagged`](crate::Tagged), as `.tsv` for the others |
//!
//! | kind | columns or keys |
//! |---|---|
//! | [`Example`](crate::Example), [`Rated`](crate::Rated) | a label (`label`, `class`, `class index`, `category`, `intent`, `quality`, `score`) and a text (`text`, `sentence`, `utterance`, `content`, `review`, or `title` and `description`, which become one text with [`SEPARATOR`](crate::SEPARATOR) between them) or a pair (`text` and `text_pair`, `text1` and `text2`, `sentence1` and `sentence2`, `question1` and `question2`, `question` and `sentence`, `premise` and `hypothesis`, `#1 String` and `#2 String`) |
//! | [`Tagged`](crate::Tagged) | arrays of equal length: `tokens` or `words`, and `labels`, `ner_tags` or `tags` |
//! | [`Passage`](crate::Passage) | a text as above, or `prompt` and `completion` |
//!
//! [`Columns`] names other columns, and the columns of a file without a header.
//!
//! Files are UTF-8, with or without a byte order mark. An error about another encoding names the probable one. Lines end in LF or
//! CRLF; blank lines are skipped. Upper and lower case are equal in names. A record is at most
//! [`MAX_RECORD_BYTES`](crate::format::MAX_RECORD_BYTES) long.

use crate::columns::Columns;
use crate::delimited::{Delimited, Form};
use crate::encoding::Guess;
use crate::error::{DataError, Place};
use crate::example::Record;
use crate::format::Format;
use crate::json_lines::JsonLines;
use crate::lines::{Conll, PlainText};
use crate::start;
use std::fs::File;
use std::io::Read;
use std::marker::PhantomData;
use std::ops::Range;
use std::path::Path;

/// Reads all examples of a file.
///
/// # Errors
/// The first fault of the file, or a file without examples.
pub fn read<R: Record>(path: &Path) -> Result<Vec<R>, DataError> {
    open(path, &Columns::default())?.collect()
}

/// Opens a file to read its examples one by one. `columns` names columns that do not have a usual name.
///
/// # Errors
/// A file that cannot be opened, is of an unsupported format, or begins like something else. Faults in the contents come from the
/// iterator.
pub fn open<R: Record>(path: &Path, columns: &Columns) -> Result<Reader<R>, DataError> {
    let (format, file) = open_file::<R>(path)?;
    Ok(Reader::new(path, format, columns, Box::new(file)))
}

pub(crate) fn open_file<R: Record>(path: &Path) -> Result<(Format, File), DataError> {
    let extension = path.extension().and_then(|extension| extension.to_str()).unwrap_or_default();
    let known = R::FORMATS.iter().find(|(known, _)| extension.eq_ignore_ascii_case(known));
    let (_, format) = known.ok_or_else(|| unsupported::<R>(path))?;
    let file = File::open(path).map_err(|source| DataError::Open { path: path.to_owned(), source })?;
    start::check(path, &file, *format)?;
    Ok((*format, file))
}

fn unsupported<R: Record>(path: &Path) -> DataError {
    let extensions: Vec<String> = R::FORMATS.iter().map(|(extension, _)| format!(".{extension}")).collect();
    DataError::UnsupportedFormat { path: path.to_owned(), supported: extensions.join(", ") }
}

/// Iterator over the examples of a file, in order. It ends after the first error; without examples, the error is
/// [`DataError::Empty`].
pub struct Reader<R> {
    place: Place,
    columns: Columns,
    records: Records,
    state: State,
    kind: PhantomData<R>,
}

enum Records {
    Delimited(Box<Delimited>),
    JsonLines(JsonLines),
    Conll(Conll),
    Lines(PlainText),
}

#[derive(Clone, Copy)]
enum State {
    NothingYet,
    Reading,
    Ended,
}

impl<R: Record> Reader<R> {
    /// Reads `source`; errors name it `path`.
    #[must_use]
    pub fn new(path: &Path, format: Format, columns: &Columns, source: Box<dyn Read + Send>) -> Self {
        Self::resumed(path, format, &[], columns, source)
    }

    /// Reads `source`, which begins after the header. `header` has the header's names, if the format has any.
    pub(crate) fn resumed(
        path: &Path,
        format: Format,
        header: &[String],
        columns: &Columns,
        source: Box<dyn Read + Send>,
    ) -> Self {
        let records = match format {
            Format::Csv => Records::Delimited(Box::new(Delimited::new(Form::Csv, header.into(), source))),
            Format::Tsv => Records::Delimited(Box::new(Delimited::new(Form::Tsv, header.into(), source))),
            Format::JsonLines => Records::JsonLines(JsonLines::new(source)),
            Format::Conll => Records::Conll(Conll::new(source)),
            Format::Lines => Records::Lines(PlainText::new(source)),
        };
        let place = Place { path: path.to_owned(), line: 1, column: 0 };
        Self { place, columns: columns.clone(), records, state: State::NothingYet, kind: PhantomData }
    }

    /// Returns the place where the last example begins.
    #[must_use]
    pub fn place(&self) -> &Place {
        &self.place
    }

    /// Returns the byte range of the last example in the source.
    #[must_use]
    pub fn span(&self) -> Range<u64> {
        match &self.records {
            Records::Delimited(records) => records.span(),
            Records::JsonLines(records) => records.span(),
            Records::Conll(records) => records.span(),
            Records::Lines(records) => records.span(),
        }
    }

    /// Returns the names of the columns. There are none before the first example, or if the format has no header.
    pub(crate) fn header(&self) -> &[String] {
        match &self.records {
            Records::Delimited(records) => records.names(),
            Records::JsonLines(_) | Records::Conll(_) | Records::Lines(_) => &[],
        }
    }

    fn next_example(&mut self) -> Result<Option<R>, DataError> {
        let (place, columns) = (&mut self.place, &self.columns);
        let found = match &mut self.records {
            Records::Delimited(records) => records.advance::<R>(place, columns),
            Records::JsonLines(records) => records.advance(place, columns),
            Records::Conll(records) => records.advance(place),
            Records::Lines(records) => records.advance(place),
        };
        if !found? {
            return Ok(None);
        }
        let mut row = match &mut self.records {
            Records::Delimited(records) => records.row(place, columns),
            Records::JsonLines(records) => records.row(place, columns),
            Records::Conll(records) => records.row(place),
            Records::Lines(records) => records.row(place),
        };
        R::of_row(&mut row).map(Some)
    }
}

impl<R: Record> Iterator for Reader<R> {
    type Item = Result<R, DataError>;

    fn next(&mut self) -> Option<Self::Item> {
        let nothing_yet = match self.state {
            State::NothingYet => true,
            State::Reading => false,
            State::Ended => return None,
        };
        let item = match self.next_example() {
            Ok(None) if nothing_yet => Some(Err(DataError::Empty { path: self.place.path.clone() })),
            Err(DataError::Encoding { place, guess: None, source }) => {
                Some(Err(DataError::Encoding { guess: Guess::from_file(&place.path), place, source }))
            }
            other => other.transpose(),
        };
        self.state = if matches!(item, Some(Ok(_))) { State::Reading } else { State::Ended };
        item
    }
}

impl<R: Record> std::iter::FusedIterator for Reader<R> {}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may panic")]
    use super::*;
    use crate::example::{Example, Passage, Rated, Tagged};
    use crate::format::MAX_RECORD_BYTES;
    use proptest::prelude::*;
    use std::io::Cursor;

    fn parse_as<R: Record>(format: Format, bytes: &[u8]) -> Result<Vec<R>, DataError> {
        Reader::new(Path::new("file"), format, &Columns::default(), Box::new(Cursor::new(bytes.to_vec()))).collect()
    }

    fn parse(format: Format, bytes: &[u8]) -> Result<Vec<Example>, DataError> {
        parse_as(format, bytes)
    }

    fn error_as<R: Record + std::fmt::Debug>(format: Format, bytes: &[u8]) -> (String, DataError) {
        let error = parse_as::<R>(format, bytes).unwrap_err();
        (error.to_string(), error)
    }

    fn error(format: Format, bytes: &[u8]) -> (String, DataError) {
        error_as::<Example>(format, bytes)
    }

    fn example(label: &str, text: &str) -> Example {
        Example { label: label.to_owned(), text: text.to_owned(), pair: None }
    }

    fn pair(label: &str, first: &str, second: &str) -> Example {
        Example { pair: Some(second.to_owned()), ..example(label, first) }
    }

    fn tagged(words: &[&str], labels: &[&str]) -> Tagged {
        let owned = |texts: &[&str]| texts.iter().copied().map(str::to_owned).collect();
        Tagged { words: owned(words), labels: owned(labels) }
    }

    fn passage(prompt: &str, text: &str) -> Passage {
        Passage { prompt: prompt.to_owned(), text: text.to_owned() }
    }

    const ALL: [Format; 5] = [Format::Csv, Format::Tsv, Format::JsonLines, Format::Conll, Format::Lines];

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
        let (message, _) = error(Format::JsonLines, b"\n{\"text\": \"a\", \"label\": null}\n");
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
    fn keys_without_a_meaning_are_shown_with_those_that_have_one() {
        for (row, found, option) in [
            (r#"{"text": "a", "labels": "x"}"#, r#"["text", "labels"]"#, "--label-column \"labels\""),
            (r#"{"text": "a", "sentiment": "x"}"#, r#"["text", "sentiment"]"#, "--label-column \"sentiment\""),
            (r#"{"tweet": "a", "label": "x"}"#, r#"["label", "tweet"]"#, "--text-column \"tweet\""),
            (
                r#"{"headline": "a", "topic": "x"}"#,
                r#"["headline", "topic"]"#,
                "--label-column \"topic\" --text-column \"headline\"",
            ),
        ] {
            let (message, error) = error(Format::JsonLines, format!("{row}\n").as_bytes());
            assert!(matches!(error, DataError::UnknownColumns { .. }), "{message}");
            let start =
                format!("file, line 1, column 1: found the keys {found}; name one column for the label (label, class");
            assert!(message.starts_with(&start) && message.ends_with(option), "{message}");
        }
        let row = br#"{"instruction": "add", "input": "", "output": "2"}"#;
        let (message, _) = error_as::<Passage>(Format::JsonLines, row);
        assert!(message.ends_with("--prompt-column instruction --text-column output"), "{message}");
        let many: String = (0..50).map(|key| format!("\"key{key}\": 0, ")).collect();
        let (message, _) = error(Format::JsonLines, format!("{{{many}\"x\": 1}}").as_bytes());
        assert!(message.contains("key19") && !message.contains("key20"), "{message}");
    }

    #[test]
    fn arrays_and_objects_over_several_lines_are_told_the_command() {
        let (message, _) = error(Format::JsonLines, b"[{\"text\": \"a\", \"label\": 1}]");
        assert!(message.contains("jq -c '.[]'"), "{message}");
        let (message, _) = error(Format::JsonLines, b"{\n  \"text\": \"a\",\n  \"label\": 1\n}\n");
        assert!(message.contains("jq -c ."), "{message}");
    }

    #[test]
    fn other_separators_quotes_and_double_columns_are_named() {
        for (format, rows, says) in [
            (Format::Csv, "label;text\nx;a\n", "between semicolons, and commas are expected"),
            (Format::Csv, "label\ttext\nx\ta\n", "between tabs, and commas are expected"),
            (Format::Tsv, "label,text\nx,a\n", "between commas, and tabs are expected"),
            (Format::Tsv, "\"label\"\t\"text\"\n\"x\"\t\"a\"\n", "the names stand in quotes"),
            (Format::Tsv, "label\ttext\n\"x\"\t\"a\"\n", "file, line 2: every field stands in double quotes"),
            (Format::Csv, "label,text,Text\nx,a,b\n", "file, line 1, column 3: two columns are named \"Text\""),
            (Format::Tsv, "label\ttext\nx\t\"a\tb\"\n", "a field may hold no tab"),
            (Format::Csv, "label,text\nx,a,b\n", "found 3 fields, expected 2 as in the first line: put fields"),
        ] {
            let (message, _) = error(format, rows.as_bytes());
            assert!(message.contains(says), "{rows}: {message}");
        }
        let unused = b"id,id,label,text\n1,2,x,a\n";
        assert_eq!(parse(Format::Csv, unused).unwrap(), [example("x", "a")]);
    }

    fn named(text: &[&str], label: Option<&str>, header: &[&str]) -> Columns {
        let owned = |names: &[&str]| names.iter().copied().map(str::to_owned).collect();
        Columns { text: owned(text), label: label.map(str::to_owned), header: owned(header), ..Columns::default() }
    }

    fn parse_named<R: Record>(format: Format, columns: &Columns, rows: &str) -> Result<Vec<R>, DataError> {
        Reader::new(Path::new("file"), format, columns, Box::new(Cursor::new(rows.as_bytes().to_vec()))).collect()
    }

    #[test]
    fn named_columns_take_the_place_of_the_usual_ones() {
        let columns = named(&["Tweet"], Some("sentiment"), &[]);
        let csv = "label,text,tweet,Sentiment\n1,a,b,c\n";
        assert_eq!(parse_named::<Example>(Format::Csv, &columns, csv).unwrap(), [example("c", "b")]);
        let json = r#"{"text": "a", "label": 1, "tweet": "b", "sentiment": "c"}"#;
        assert_eq!(parse_named::<Example>(Format::JsonLines, &columns, json).unwrap(), [example("c", "b")]);
        let joined = named(&["subject", "body", "footer"], None, &[]);
        let csv = "body,footer,label,subject\nb,c,x,a\n";
        assert_eq!(parse_named::<Example>(Format::Csv, &joined, csv).unwrap(), [example("x", "a. b. c")]);
        let halves = Columns { pair: Some("answer".to_owned()), ..named(&["question"], None, &[]) };
        let csv = "question,answer,label\na,b,x\n";
        assert_eq!(parse_named::<Example>(Format::Csv, &halves, csv).unwrap(), [pair("x", "a", "b")]);
        let answers = Columns { prompt: Some("instruction".to_owned()), ..named(&["output"], None, &[]) };
        let json = r#"{"instruction": "1+1", "output": "2", "text": "no"}"#;
        assert_eq!(parse_named::<Passage>(Format::JsonLines, &answers, json).unwrap(), [passage("1+1", "2")]);
        let words = named(&["form"], Some("upos"), &[]);
        let json = r#"{"form": ["a"], "upos": ["x"], "tags": ["y"]}"#;
        assert_eq!(parse_named::<Tagged>(Format::JsonLines, &words, json).unwrap(), [tagged(&["a"], &["x"])]);
    }

    #[test]
    fn a_named_column_that_is_missing_is_refused_with_those_that_are_there() {
        let columns = named(&["tweet"], None, &[]);
        let error = parse_named::<Example>(Format::Csv, &columns, "label,text\nx,a\n").unwrap_err().to_string();
        assert_eq!(error, "file, line 1: there is no column \"tweet\": found [\"label\", \"text\"]; name one of these");
        let row = r#"{"label": "x", "text": "a"}"#;
        let error = parse_named::<Example>(Format::JsonLines, &columns, row).unwrap_err().to_string();
        assert!(error.starts_with("file, line 1, column 1: there is no key \"tweet\""), "{error}");
    }

    #[test]
    fn a_file_without_a_header_is_read_by_the_names_that_are_given() {
        let columns = named(&[], None, &["label", "text"]);
        let expected = [example("x", "a"), example("2", "b")];
        assert_eq!(parse_named::<Example>(Format::Csv, &columns, "x,a\n2,b\n").unwrap(), expected);
        assert_eq!(parse_named::<Example>(Format::Tsv, &columns, "x\ta\n2\tb").unwrap(), expected);
        let three = named(&[], None, &["id", "text", "label"]);
        assert_eq!(parse_named::<Example>(Format::Csv, &three, "7,a,x\n").unwrap(), [example("x", "a")]);
        let error = parse_named::<Example>(Format::Csv, &columns, "Label, text\nx,a\n").unwrap_err().to_string();
        assert_eq!(error, "file, line 1: the first line is a header already: leave out --columns");
        let error = parse_named::<Example>(Format::Csv, &columns, "x,a,b\n").unwrap_err().to_string();
        assert!(error.starts_with("file, line 1, column 3: found 3 fields, expected 2"), "{error}");
    }

    #[test]
    fn a_pair_of_texts_is_read_under_its_usual_names() {
        let mrpc = "\u{feff}Quality\t#1 ID\t#2 ID\t#1 String\t#2 String\n1\t7\t8\ta \"b\tc\n".as_bytes();
        assert_eq!(parse(Format::Tsv, mrpc).unwrap(), [pair("1", "a \"b", "c")]);
        for (first, second) in [
            ("text", "text_pair"),
            ("text1", "text2"),
            ("sentence1", "sentence2"),
            ("question1", "question2"),
            ("question", "sentence"),
            ("premise", "hypothesis"),
        ] {
            let csv = format!("{second},label,{first}\nb,1,a\n");
            assert_eq!(parse(Format::Csv, csv.as_bytes()).unwrap(), [pair("1", "a", "b")]);
            let json = format!("{{\"{second}\":\"b\",\"{first}\":\"a\",\"label\":1}}");
            assert_eq!(parse(Format::JsonLines, json.as_bytes()).unwrap(), [pair("1", "a", "b")]);
        }
    }

    #[test]
    fn half_a_pair_is_no_pair_and_a_blank_half_is_refused() {
        let row = b"{\"sentence\": \"a\", \"sentence2\": \"b\", \"label\": 1}";
        assert_eq!(parse(Format::JsonLines, row).unwrap(), [example("1", "a")]);
        let row = b"{\"text\": \"a\", \"text_pair\": null, \"label\": 1}";
        assert_eq!(parse(Format::JsonLines, row).unwrap(), [example("1", "a")]);
        let (message, _) = error(Format::Csv, b"label,premise,hypothesis\n1,a,b\n1,a, \n");
        assert!(message.starts_with("file, line 3, column 3: the text is missing"), "{message}");
        let (message, error) = error(Format::Csv, b"label,premise\n1,a\n");
        assert!(matches!(error, DataError::UnknownColumns { .. }) && message.contains("premise and hyp"), "{message}");
    }

    #[test]
    fn numbers_are_read_from_json_and_from_text() {
        let numbers = |format, bytes| -> Vec<Vec<f32>> {
            let rated: Vec<Rated> = parse_as(format, bytes).unwrap();
            rated.into_iter().map(|rated| rated.numbers).collect()
        };
        let csv = b"score,text,text_pair\n-2.5,a,b\n 1e2 ,a,b\n\"[1, 0.5]\",a,b\n";
        assert_eq!(numbers(Format::Csv, csv), [vec![-2.5], vec![100.0], vec![1.0, 0.5]]);
        let json =
            b"{\"label\":3,\"text\":\"a\"}\n{\"label\":[0.25,1],\"text\":\"a\"}\n{\"label\":\"7\",\"text\":\"a\"}";
        assert_eq!(numbers(Format::JsonLines, json), [vec![3.0], vec![0.25, 1.0], vec![7.0]]);
    }

    #[test]
    fn what_is_no_finite_number_is_refused_where_it_stands() {
        for label in ["great", "1,5", "NaN", "inf", "1e39", "[1, \"\"]", "[1", "[[1]]", "true", "null", "{}"] {
            let (message, error) = error_as::<Rated>(Format::Tsv, format!("text\tlabel\na\t{label}").as_bytes());
            assert!(matches!(error, DataError::NotANumber { .. }), "{label}: {message}");
            assert!(message.starts_with("file, line 2, column 2: \"label\" is "), "{message}");
        }
        for label in ["", " ", "[]"] {
            let (message, error) = error_as::<Rated>(Format::Tsv, format!("text\tlabel\na\t{label}").as_bytes());
            assert!(matches!(error, DataError::MissingLabel { .. }), "{label}: {message}");
        }
        let (message, _) = error_as::<Rated>(Format::JsonLines, b"{\"text\": \"a\", \"label\": true}");
        assert!(message.contains("\"label\" is \"true\", expected a finite number"), "{message}");
        let long = "x".repeat(1000);
        let (message, _) = error_as::<Rated>(Format::Tsv, format!("text\tlabel\na\t{long}").as_bytes());
        assert!(message.len() < 200, "{message}");
    }

    #[test]
    fn words_are_read_with_a_label_each() {
        let rows = b"{\"tokens\": [\"In\", \"Oslo\"], \"ner_tags\": [0, \" B-LOC \"]}\n{\"words\":[\"a\"],\"tags\":[\"x\"],\"pos\":1}";
        let expected = [tagged(&["In", "Oslo"], &["0", "B-LOC"]), tagged(&["a"], &["x"])];
        assert_eq!(parse_as::<Tagged>(Format::JsonLines, rows).unwrap(), expected);
    }

    #[test]
    fn conll_takes_the_first_field_and_the_last() {
        let rows =
            "\u{feff}-DOCSTART- -X- -X- O\r\n\r\nIn IN B-PP O\r\nOslo NNP B-NP B-LOC\r\n \t\r\n\r\n#\tO\r\nend\tO";
        let expected = [tagged(&["In", "Oslo"], &["O", "B-LOC"]), tagged(&["#", "end"], &["O", "O"])];
        assert_eq!(parse_as::<Tagged>(Format::Conll, rows.as_bytes()).unwrap(), expected);
        let (message, error) = error_as::<Tagged>(Format::Conll, b"a O\n\nb O\nOslo \n");
        assert!(matches!(error, DataError::MissingLabel { .. }), "{message}");
        assert!(message.starts_with("file, line 4, column 5: the label is missing"), "{message}");
    }

    #[test]
    fn a_sentence_is_placed_at_its_first_line_and_bounded() {
        let file = b"\n-DOCSTART- O\n\na O\nb O\n\n\nc O\n".to_vec();
        let mut reader =
            Reader::<Tagged>::new(Path::new("file"), Format::Conll, &Columns::default(), Box::new(Cursor::new(file)));
        reader.next().unwrap().unwrap();
        assert_eq!(reader.place().line, 4);
        reader.next().unwrap().unwrap();
        assert_eq!(reader.place().line, 8);
        let endless = "a O\n".repeat(MAX_RECORD_BYTES / 4 + 1);
        let (message, error) = error_as::<Tagged>(Format::Conll, format!("b O\n\n{endless}").as_bytes());
        assert!(matches!(error, DataError::RecordTooLong { place, .. } if place.line == 3), "{message}");
    }

    #[test]
    fn words_without_a_label_each_are_refused() {
        for (row, start) in [
            ("{\"tokens\":[\"a\",\"b\"],\"labels\":[\"x\"]}", "2 words have 1 labels"),
            ("{\"tokens\":[\"a\"]}", "found the keys [\"tokens\"]; name in a .jsonl file"),
            ("{\"text\":\"a\",\"label\":\"x\"}", "found the keys [\"text\", \"label\"]"),
            ("{\"tokens\":[],\"labels\":[]}", "no words with a label each"),
            ("{\"tokens\":[\"a\",\" \"],\"labels\":[1,2]}", "a word is blank"),
            ("{\"tokens\":[\"a\"],\"labels\":[\" \"]}", "the label is missing"),
            ("{\"tokens\":\"a\",\"labels\":[1]}", "\"tokens\" is a string, expected an array of strings"),
            ("{\"tokens\":[1],\"labels\":[1]}", "\"tokens\" is a number"),
            ("{\"tokens\":[\"a\"],\"tags\":[0.5]}", "\"tags\" is a fraction"),
            ("{\"tokens\":[\"a\\u0000\"],\"tags\":[1]}", "holds a NUL character"),
        ] {
            let (message, _) = error_as::<Tagged>(Format::JsonLines, format!("\n{row}").as_bytes());
            assert!(message.starts_with(&format!("file, line 2, column 1: {start}")), "{row}: {message}");
        }
        let (message, _) = error_as::<Tagged>(Format::Csv, b"tokens,labels\na,x\n");
        assert!(message.contains("a .jsonl file (or use .conll"), "{message}");
    }

    #[test]
    fn texts_need_no_label() {
        let lines = "\u{feff}one  \r\n\r\n  two\nthree";
        let expected = [passage("", "one  "), passage("", "  two"), passage("", "three")];
        assert_eq!(parse_as::<Passage>(Format::Lines, lines.as_bytes()).unwrap(), expected);
        let json = b"{\"text\": \"a\\nb\", \"label\": 3}\n{\"prompt\": \"2+2=\", \"completion\": \"4\"}\n{\"prompt\":\"\",\"completion\":\"x\"}";
        let expected = [passage("", "a\nb"), passage("2+2=", "4"), passage("", "x")];
        assert_eq!(parse_as::<Passage>(Format::JsonLines, json).unwrap(), expected);
        assert_eq!(parse_as::<Passage>(Format::Csv, b"text\na\n").unwrap(), [passage("", "a")]);
        assert_eq!(parse_as::<Passage>(Format::Csv, b"2,a,b\n").unwrap(), [passage("", "a. b")]);
        let tsv = b"completion\tprompt\nb\ta\n \ta\n";
        let (message, _) = error_as::<Passage>(Format::Tsv, tsv);
        assert_eq!(message, "file, line 3, column 1: the text is missing: give the record one, or delete it");
        let (message, _) = error_as::<Passage>(Format::Csv, b"premise,hypothesis\na,b\n");
        assert!(message.contains("prompt and completion"), "{message}");
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
            let mut reader = Reader::<Example>::new(Path::new("file"), format, &Columns::default(), endless);
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
        let message = read::<Example>(Path::new("no/such.csv")).unwrap_err().to_string();
        assert!(message.starts_with("opening no/such.csv"), "{message}");
        let supported = |message: String| message.split_once("use a file that ends in ").unwrap().1.to_owned();
        let message = read::<Example>(Path::new("a/b.xlsx")).unwrap_err().to_string();
        assert!(message.starts_with("a/b.xlsx has an unsupported format"), "{message}");
        assert_eq!(supported(message), ".csv, .tsv, .jsonl, .json, .txt");
        let message = read::<Tagged>(Path::new("a.csv")).unwrap_err().to_string();
        assert_eq!(supported(message), ".jsonl, .json, .conll, .txt");
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
            let mut reader = Reader::<Example>::new(Path::new("file"), format, &Columns::default(), Box::new(Failing));
            let error = reader.next().unwrap().unwrap_err();
            let cause = std::error::Error::source(&error).unwrap().to_string();
            assert!(matches!(error, DataError::Read { .. }) && cause == "disk on fire", "{error}: {cause}");
        }
    }

    fn examples() -> impl Strategy<Value = Vec<Example>> {
        let example =
            ("[a-z0-9é\"]{1,5}", "[ -~é\u{1f600}]{0,20}[a-z\"]").prop_map(|(label, text)| example(&label, &text));
        proptest::collection::vec(example, 1..12)
    }

    fn sentences() -> impl Strategy<Value = Vec<Tagged>> {
        let words = proptest::collection::vec(("[a-z0-9é\"#]{1,5}", "[A-Z-]{1,5}"), 1..6);
        let sentence = words.prop_map(|words| {
            let (words, labels) = words.into_iter().unzip();
            Tagged { words, labels }
        });
        proptest::collection::vec(sentence, 1..6)
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
            // A first record that is quoted throughout is refused with a way out: see `DataError::QuotedFields`.
            let quoted = |text: &str| text.len() > 1 && text.starts_with('"') && text.ends_with('"');
            prop_assume!(!(quoted(&examples[0].text) && quoted(&examples[0].label)));
            let rows: String = examples.iter().map(|example| format!("{}\t{}\n", example.text, example.label)).collect();
            prop_assert_eq!(parse(Format::Tsv, format!("sentence\tlabel\n{rows}").as_bytes()).unwrap(), examples);
        }

        #[test]
        fn json_lines_read_what_was_written(mut examples in examples(), pairs in any::<bool>()) {
            examples.iter_mut().filter(|_| pairs).for_each(|example| example.pair = Some(example.text.clone()));
            let rows: String =
                examples.iter().map(|example| format!("{}\n", serde_json::to_string(example).unwrap())).collect();
            prop_assert_eq!(parse(Format::JsonLines, rows.as_bytes()).unwrap(), examples);
        }

        #[test]
        fn sentences_are_read_as_they_were_written(sentences in sentences()) {
            let json: String = sentences
                .iter()
                .map(|Tagged { words, labels }| format!("{}\n", serde_json::json!({"tokens": words, "labels": labels})))
                .collect();
            prop_assert_eq!(&parse_as::<Tagged>(Format::JsonLines, json.as_bytes()).unwrap(), &sentences);
            let line = |(word, label): (&String, &String)| format!("{word}\t{label}\n");
            let lines = |Tagged { words, labels }: &Tagged| words.iter().zip(labels).map(line).collect::<String>() + "\n";
            let conll: String = sentences.iter().map(lines).collect();
            prop_assert_eq!(parse_as::<Tagged>(Format::Conll, conll.as_bytes()).unwrap(), sentences);
        }

        #[test]
        fn lines_are_read_as_they_were_written(examples in examples()) {
            let passages: Vec<Passage> = examples.iter().map(|example| passage("", &example.text)).collect();
            let lines: String = passages.iter().map(|passage| format!("{}\n", passage.text)).collect();
            prop_assert_eq!(parse_as::<Passage>(Format::Lines, lines.as_bytes()).unwrap(), passages);
        }

        #[test]
        fn any_finite_number_is_read_as_it_was_written(number in any::<f32>().prop_filter("finite", |number| number.is_finite())) {
            let csv = format!("label,text\n{number},a\n");
            prop_assert_eq!(&parse_as::<Rated>(Format::Csv, csv.as_bytes()).unwrap()[0].numbers, &[number]);
            let json = serde_json::json!({"label": [number, number], "text": "a"}).to_string();
            prop_assert_eq!(&parse_as::<Rated>(Format::JsonLines, json.as_bytes()).unwrap()[0].numbers, &[number; 2]);
        }

        #[test]
        fn any_bytes_are_read_or_refused(start in 0_usize..7, bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let start: &[u8] = [
                b"".as_slice(),
                b"label,text\n",
                b"sentence\tlabel\n",
                b"{\"label\":1,\"text\":",
                b"{\"tokens\":[\"a\"],\"labels\":[",
                b"{\"prompt\":\"a\",\"completion\":",
                b"label\tpremise\thypothesis\n",
            ][start];
            let bytes = [start, &bytes].concat();
            for format in ALL {
                let _ = parse_as::<Example>(format, &bytes);
                let _ = parse_as::<Rated>(format, &bytes);
                let _ = parse_as::<Tagged>(format, &bytes);
                let _ = parse_as::<Passage>(format, &bytes);
            }
        }

        #[test]
        fn a_truncated_file_gives_a_start_of_its_examples(examples in examples(), cut in 0.0..1.0) {
            let rows: String = examples
                .iter()
                .map(|example| format!("{}\n", serde_json::json!({"label": example.label, "text": example.text})))
                .collect();
            let bytes = &rows.as_bytes()[..(rows.len() as f64 * cut) as usize];
            let reader = Reader::new(Path::new("file"), Format::JsonLines, &Columns::default(), Box::new(Cursor::new(bytes.to_vec())));
            let whole: Vec<Example> = reader.filter_map(Result::ok).collect();
            prop_assert_eq!(&examples[..whole.len()], whole.as_slice());
        }
    }
}
