//! Records of fields between commas (with quotes) or tabs (without).

use crate::error::{DataError, LABEL_COLUMNS, Place, TEXT_COLUMNS};
use crate::example::Example;
use crate::reader::{MAX_RECORD_BYTES, field_text};
use csv::{ByteRecord, ReaderBuilder, Terminator};
use std::io::{self, Read};

const BUFFER_BYTES: usize = 16 * 1024;

/// What stands in for the end of a file: the first line end closes a last line without one, and only an unclosed quote
/// makes a record reach the second.
const END: &[u8] = b"\n\n";

#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Form {
    Csv,
    Tsv,
}

pub(crate) struct Delimited {
    form: Form,
    records: csv::Reader<Rationed>,
    record: ByteRecord,
    columns: Option<Columns>,
}

/// Where the fields of an example are.
struct Columns {
    count: usize,
    label: usize,
    text: TextColumns,
}

#[derive(Clone, Copy)]
enum TextColumns {
    One(usize),
    TitleAndDescription(usize, usize),
}

impl Delimited {
    pub(crate) fn new(form: Form, source: Box<dyn Read + Send>) -> Self {
        // Only LF ends a record here: the parser counts lines by LF, and would count one late in a file with CRLF.
        let records = ReaderBuilder::new()
            .has_headers(false)
            .flexible(true)
            .delimiter(if form == Form::Csv { b',' } else { b'\t' })
            .quoting(form == Form::Csv)
            .terminator(Terminator::Any(b'\n'))
            .buffer_capacity(BUFFER_BYTES)
            .from_reader(Rationed::new(source));
        Self { form, records, record: ByteRecord::new(), columns: None }
    }

    /// The next example, and in `place` where it is; `None` at the end.
    pub(crate) fn next_example(&mut self, place: &mut Place) -> Result<Option<Example>, DataError> {
        while self.next_record(place)? {
            match &self.columns {
                Some(columns) => return columns.example(&self.record, place).map(Some),
                None if self.form == Form::Csv && is_headless(&self.record) => {
                    let columns = Columns::of_ag_news();
                    let example = columns.example(&self.record, place)?;
                    self.columns = Some(columns);
                    return Ok(Some(example));
                }
                None => self.columns = Some(Columns::of_header(&self.record, place)?),
            }
        }
        Ok(None)
    }

    /// Reads the next record that is not a blank line.
    fn next_record(&mut self, place: &mut Place) -> Result<bool, DataError> {
        loop {
            (place.line, place.column) = (self.records.position().line(), 0);
            self.records.get_mut().ration = MAX_RECORD_BYTES + BUFFER_BYTES;
            let found = self.records.read_byte_record(&mut self.record).map_err(|error| self.failure(error, place))?;
            if !found {
                return Ok(false);
            }
            let unclosed = self.records.get_ref().is_at_end(self.records.position().byte());
            place.line = self.first_line(unclosed);
            if unclosed {
                return Err(DataError::UnclosedQuote { place: place.clone() });
            }
            if self.record.as_slice().len() > MAX_RECORD_BYTES {
                return Err(DataError::RecordTooLong { place: place.clone(), limit_bytes: MAX_RECORD_BYTES });
            }
            strip_carriage_return(&mut self.record);
            if !self.record.iter().all(<[u8]>::is_empty) || self.record.len() > 1 {
                return Ok(true);
            }
        }
    }

    /// The parser's own position of a record is before the blank lines that precede it.
    fn first_line(&self, unclosed: bool) -> u64 {
        let inside = self.record.as_slice().iter().filter(|&&byte| byte == b'\n').count() as u64;
        let end = u64::from(!unclosed);
        self.records.position().line().saturating_sub(inside + end).max(1)
    }

    fn failure(&self, error: csv::Error, place: &Place) -> DataError {
        let place = place.clone();
        if self.records.get_ref().ration == 0 {
            return DataError::RecordTooLong { place, limit_bytes: MAX_RECORD_BYTES };
        }
        let message = error.to_string();
        let source =
            if let csv::ErrorKind::Io(source) = error.into_kind() { source } else { io::Error::other(message) };
        DataError::Read { place, source }
    }
}

impl Columns {
    /// `class,title,description`, the class a number.
    fn of_ag_news() -> Self {
        Self { count: 3, label: 0, text: TextColumns::TitleAndDescription(1, 2) }
    }

    fn of_header(header: &ByteRecord, place: &Place) -> Result<Self, DataError> {
        let names: Vec<String> = header
            .iter()
            .enumerate()
            .map(|(at, name)| Ok(field_text(name, &at_field(place, at))?.trim().to_owned()))
            .collect::<Result<_, DataError>>()?;
        let pair: Vec<String> = names.iter().filter(|name| is_half_of_a_pair(name)).cloned().collect();
        if pair.len() > 1 {
            return Err(DataError::SentencePair { place: place.clone(), columns: pair });
        }
        let column = |wanted: &str| names.iter().position(|name| name.eq_ignore_ascii_case(wanted));
        let label = LABEL_COLUMNS.into_iter().find_map(column);
        let text = TEXT_COLUMNS.into_iter().find_map(column).map(TextColumns::One);
        let title = column("title").zip(column("description")).map(|(t, d)| TextColumns::TitleAndDescription(t, d));
        match (label, text.or(title)) {
            (Some(label), Some(text)) => Ok(Self { count: names.len(), label, text }),
            _ => Err(DataError::UnknownColumns { place: place.clone(), found: names }),
        }
    }

    fn example(&self, record: &ByteRecord, place: &Place) -> Result<Example, DataError> {
        if record.len() != self.count {
            return Err(DataError::FieldCount {
                place: at_field(place, record.len().min(self.count)),
                expected: self.count,
                found: record.len(),
            });
        }
        let field = |at| field_text(&record[at], &at_field(place, at));
        let label = field(self.label)?.trim();
        if label.is_empty() {
            return Err(DataError::MissingLabel { place: at_field(place, self.label) });
        }
        let (first, text) = match self.text {
            TextColumns::One(text) => (text, field(text)?.to_owned()),
            TextColumns::TitleAndDescription(title, description) => {
                let (heading, body) = (field(title)?, field(description)?);
                let blank = heading.trim().is_empty() && body.trim().is_empty();
                (title, if blank { String::new() } else { format!("{heading}. {body}") })
            }
        };
        if text.trim().is_empty() {
            return Err(DataError::MissingText { place: at_field(place, first) });
        }
        Ok(Example { label: label.to_owned(), text })
    }
}

fn at_field(place: &Place, at: usize) -> Place {
    Place { column: at + 1, ..place.clone() }
}

/// Three fields or more, the first a whole number: data, not a header.
fn is_headless(record: &ByteRecord) -> bool {
    record.len() > 2 && record.get(0).is_some_and(|class| !class.is_empty() && class.iter().all(u8::is_ascii_digit))
}

fn is_half_of_a_pair(name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    let half = name.trim_start_matches(['#', '1', '2', ' ']).trim_end_matches(['1', '2', '_', ' ']);
    (half != name && ["string", "sentence", "question", "text"].contains(&half))
        || ["premise", "hypothesis"].contains(&half)
}

/// Of a CRLF, the CR is left at the end of the last field.
fn strip_carriage_return(record: &mut ByteRecord) {
    let Some(last) = record.len().checked_sub(1) else { return };
    if record[last].ends_with(b"\r") {
        let stripped = record[last][..record[last].len() - 1].to_vec();
        record.truncate(last);
        record.push_field(&stripped);
    }
}

/// A source that hands out at most `ration` bytes before the ration is renewed, so that a record cannot grow without bound.
struct Rationed {
    source: Box<dyn Read + Send>,
    ration: usize,
    handed_out: u64,
    end: &'static [u8],
}

impl Rationed {
    fn new(source: Box<dyn Read + Send>) -> Self {
        Self { source, ration: 0, handed_out: 0, end: END }
    }

    /// Whether a record that ends before `byte` has swallowed the end of the file.
    fn is_at_end(&self, byte: u64) -> bool {
        self.end.is_empty() && byte == self.handed_out
    }
}

impl Read for Rationed {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.ration == 0 {
            return Err(io::Error::other("the record is too long"));
        }
        let most = buffer.len().min(self.ration);
        let length = match self.source.read(&mut buffer[..most])? {
            0 => self.end.read(&mut buffer[..most])?,
            length => length,
        };
        self.ration -= length;
        self.handed_out += length as u64;
        Ok(length)
    }
}
