//! Records of files that are read for a model's answers: the kinds of [`crate::example`] without labels.
//!
//! A label that a file has is ignored, so that a labelled file can be asked about as well.

use crate::advice::Needs;
use crate::error::DataError;
use crate::example::{JSON_LINES, Record, one_or_two};
use crate::format::Format;
use crate::names::{self, Named};
use crate::row::Row;

/// A text, or a pair of texts, to which the model gives a label or numbers.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Question {
    /// Never blank; kept as it stands in the file, spaces included.
    pub text: String,
    /// The second text of a pair, under the same rules.
    pub pair: Option<String>,
}

/// Words to which the model gives a label each.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Words {
    /// At least one; none is blank.
    pub words: Vec<String>,
}

impl Record for Question {
    const FORMATS: &'static [(&'static str, Format)] =
        &[("txt", Format::Lines), ("csv", Format::Csv), ("tsv", Format::Tsv), JSON_LINES[0], JSON_LINES[1]];
    const COLUMNS: &'static str = names::UNLABELLED;
    const NEEDS: Needs = Needs::Text;

    fn fits(named: &Named<'_>) -> bool {
        names::texts(named).is_some()
    }

    fn of_row(row: &mut Row<'_>) -> Result<Self, DataError> {
        let (text, pair) = one_or_two(row, Self::COLUMNS, Self::NEEDS)?;
        Ok(Self { text, pair })
    }
}

impl Record for Words {
    const FORMATS: &'static [(&'static str, Format)] =
        &[("txt", Format::Lines), JSON_LINES[0], JSON_LINES[1], ("conll", Format::Conll)];
    const COLUMNS: &'static str = names::UNLABELLED_WORDS;
    const NEEDS: Needs = Needs::Text;

    fn fits(_: &Named<'_>) -> bool {
        false
    }

    fn of_row(row: &mut Row<'_>) -> Result<Self, DataError> {
        let words = match names::words(&row.named()) {
            Some(words) => row.words(words)?,
            None => {
                let text = names::single_text(&row.named());
                let text = text.ok_or_else(|| row.missing_text(Self::COLUMNS, Self::NEEDS))?;
                row.single(&text)?.split_whitespace().map(str::to_owned).collect()
            }
        };
        if words.is_empty() {
            return Err(DataError::MissingWords { place: row.place().clone() });
        }
        Ok(Self { words })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failing test may panic")]
    use super::*;
    use crate::{Columns, Reader};
    use std::io::Cursor;
    use std::path::Path;

    fn parse<R: Record>(format: Format, text: &str) -> Result<Vec<R>, DataError> {
        let source = Box::new(Cursor::new(text.as_bytes().to_vec()));
        Reader::new(Path::new("file"), format, &Columns::default(), source).collect()
    }

    fn question(text: &str, pair: Option<&str>) -> Question {
        Question { text: text.to_owned(), pair: pair.map(str::to_owned) }
    }

    #[test]
    fn texts_are_read_from_plain_lines_and_from_every_format_with_or_without_labels() {
        let both = [question("a b", None), question("c", None)];
        for (format, text) in [
            (Format::Lines, "a b\n\r\n\nc"),
            (Format::Csv, "text\na b\nc\n"),
            (Format::Csv, "label,text\nx,a b\n,c\n"),
            (Format::Tsv, "sentence\tid\na b\t1\nc\t2\n"),
            (Format::JsonLines, "{\"text\": \"a b\"}\n{\"text\": \"c\", \"label\": null}\n"),
        ] {
            assert_eq!(parse::<Question>(format, text).unwrap(), both, "{text}");
        }
        let pair = parse::<Question>(Format::JsonLines, r#"{"premise": "a", "hypothesis": "b"}"#).unwrap();
        assert_eq!(pair, [question("a", Some("b"))]);
        let ag_news = parse::<Question>(Format::Csv, "\"3\",\"Up\",\"Shares\"\n").unwrap();
        assert_eq!(ag_news, [question("Up. Shares", None)]);
    }

    #[test]
    fn words_are_read_from_lines_arrays_and_sentences() {
        let expected = [Words { words: vec!["Ada".to_owned(), "wrote".to_owned()] }];
        for (format, text) in [
            (Format::Lines, " Ada  wrote \n"),
            (Format::JsonLines, "{\"tokens\": [\"Ada\", \"wrote\"]}\n"),
            (Format::JsonLines, "{\"text\": \"Ada wrote\"}\n"),
            (Format::Conll, "Ada B-PER\nwrote O\n\n"),
        ] {
            assert_eq!(parse::<Words>(format, text).unwrap(), expected, "{text}");
        }
        assert!(matches!(parse::<Words>(Format::JsonLines, "{\"tokens\": []}"), Err(DataError::MissingWords { .. })));
    }

    #[test]
    fn a_file_without_a_text_is_told_the_columns_that_one_can_have() {
        let error = parse::<Question>(Format::Csv, "id,tweet\n1,a\n").unwrap_err().to_string();
        assert!(error.contains("one column for the text") && error.ends_with("--text-column \"tweet\""), "{error}");
        assert!(!error.contains("label"), "{error}");
        assert!(matches!(parse::<Question>(Format::Lines, "\n"), Err(DataError::Empty { .. })));
    }
}
