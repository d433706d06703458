//! Records of fields between commas (with quotes) or tabs (without).

use crate::advice::advice;
use crate::columns::Columns;
use crate::error::{DataError, Place};
use crate::example::Record;
use crate::format::{BYTE_ORDER_MARK, MAX_RECORD_BYTES, field_text};
use crate::names::{Named, is_known, missing_from, position};
use crate::row::{Cells, Row, at_field, shown};
use csv::{ByteRecord, ReaderBuilder, Terminator};
use std::io::{self, Read};
use std::ops::Range;

const BUFFER_BYTES: usize = 16 * 1024;

/// Bytes that replace the end of a file. The first newline ends a last line that has none. A record includes the second newline
/// only if a quote is not closed.
const END: &[u8] = b"\n\n";

/// Columns of a file without a header. The first field of such a file is a number.
const AG_NEWS: [&str; 3] = ["class index", "title", "description"];

#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Form {
    Csv,
    Tsv,
}

pub(crate) struct Delimited {
    form: Form,
    records: csv::Reader<Rationed>,
    record: ByteRecord,
    /// Names of the columns; empty until the header is read.
    names: Vec<String>,
    /// Byte range of the record in the source.
    bytes: Range<u64>,
}

impl Delimited {
    /// Reads records from `source`. If `names` is empty, the source begins with a header.
    pub(crate) fn new(form: Form, names: Vec<String>, source: Box<dyn Read + Send>) -> Self {
        // Only LF ends a record here. The parser counts lines by LF, and with CRLF as the end it would count one line late.
        let records = ReaderBuilder::new()
            .has_headers(false)
            .flexible(true)
            .delimiter(if form == Form::Csv { b',' } else { b'\t' })
            .quoting(form == Form::Csv)
            .terminator(Terminator::Any(b'\n'))
            .buffer_capacity(BUFFER_BYTES)
            .from_reader(Rationed::new(source));
        Self { form, records, record: ByteRecord::new(), names, bytes: 0..0 }
    }

    /// Moves to the next record after the header, which must name the fields of an `R`. Returns false at the end.
    pub(crate) fn advance<R: Record>(&mut self, place: &mut Place, columns: &Columns) -> Result<bool, DataError> {
        let first = self.names.is_empty();
        if first {
            if !self.next_record(place)? {
                return Ok(false);
            }
            let headless = self.read_header::<R>(place, columns)?;
            if headless {
                return self.check_first(place).map(|()| true);
            }
        }
        if !self.next_record(place)? {
            return Ok(false);
        }
        if first { self.check_first(place) } else { self.check_width(place) }.map(|()| true)
    }

    /// Takes the names of the columns from the first record or the settings. Returns true if the first record is data.
    fn read_header<R: Record>(&mut self, place: &Place, columns: &Columns) -> Result<bool, DataError> {
        let numbered = self.form == Form::Csv && is_headless(&self.record);
        let headless = numbered || !columns.header.is_empty();
        let names = if !columns.header.is_empty() {
            columns.header.clone()
        } else if numbered {
            AG_NEWS.map(str::to_owned).into()
        } else {
            header(&self.record, place)?
        };
        if let Some(fault) = self.header_fault(&names, place, columns) {
            return Err(fault);
        }
        if let Some(name) = missing_from(columns, &names) {
            let name = name.to_owned();
            return Err(DataError::NoSuchColumn { place: place.clone(), what: "column", name, found: shown(&names) });
        }
        if !R::fits(&Named { names: &names, columns }) {
            let advice = self.header_advice(&names).unwrap_or_else(|| advice(&names, columns, R::NEEDS));
            let (place, found) = (place.clone(), shown(&names));
            return Err(DataError::UnknownColumns { place, what: "columns", found, wanted: R::COLUMNS, advice });
        }
        self.names = names;
        Ok(headless)
    }

    /// Returns the error of a header that is probably a mistake.
    fn header_fault(&self, names: &[String], place: &Place, columns: &Columns) -> Option<DataError> {
        let twice = |(at, name): &(usize, &String)| is_known(name, columns) && position(&names[..*at], name).is_some();
        if let Some((at, name)) = names.iter().enumerate().find(twice) {
            return Some(DataError::DuplicateColumn { place: at_field(place, at), name: name.clone() });
        }
        let same = |(name, field): (&String, &[u8])| field.trim_ascii().eq_ignore_ascii_case(name.as_bytes());
        let repeated = !columns.header.is_empty()
            && columns.header.len() == self.record.len()
            && columns.header.iter().zip(&self.record).all(same);
        repeated.then(|| DataError::HeaderTwice { place: place.clone() })
    }

    /// Returns the end of a sentence about a header whose separators or quotes belong to another format.
    fn header_advice(&self, names: &[String]) -> Option<String> {
        const CONVERT: &str = "or convert it with `skiff-pack data FILE NEW.jsonl`";
        let quoted = |name: &String| name.len() > 1 && name.starts_with('"') && name.ends_with('"');
        if self.form == Form::Tsv && names.iter().all(quoted) {
            return Some(format!(
                "; the names stand in quotes, which are text in a .tsv file: leave them out, {CONVERT}"
            ));
        }
        let [only] = names else { return None };
        let own = if self.form == Form::Csv { "commas" } else { "tabs" };
        let others = [(';', "semicolons"), ('\t', "tabs"), ('|', "bars"), (',', "commas")];
        let (_, separators) = others.into_iter().find(|(separator, _)| only.contains(*separator))?;
        Some(format!(
            "; the fields seem to stand between {separators}, and {own} are expected: save it with {own}, {CONVERT}"
        ))
    }

    /// Checks the first record of data: its width, and that its quotes are not meant as quotes in a format without them.
    fn check_first(&self, place: &Place) -> Result<(), DataError> {
        self.check_width(place)?;
        let quoted = |field: &[u8]| matches!(field, [b'"', .., b'"']);
        if self.form == Form::Tsv && self.record.len() > 1 && self.record.iter().all(quoted) {
            return Err(DataError::QuotedFields { place: place.clone() });
        }
        Ok(())
    }

    /// Returns the names of the columns; empty until the header is read.
    pub(crate) fn names(&self) -> &[String] {
        &self.names
    }

    /// Returns the byte range of the last record in the source, which may begin with blank lines.
    pub(crate) fn span(&self) -> Range<u64> {
        self.bytes.clone()
    }

    pub(crate) fn row<'a>(&'a self, place: &'a Place, columns: &'a Columns) -> Row<'a> {
        Row::new(place, Named { names: &self.names, columns }, Cells::Bytes(&self.record))
    }

    fn check_width(&self, place: &Place) -> Result<(), DataError> {
        let (expected, found) = (self.names.len(), self.record.len());
        if found == expected {
            return Ok(());
        }
        let advice = match self.form {
            Form::Csv => "put fields that hold a comma or a line end in double quotes",
            Form::Tsv => {
                "a field may hold no tab and no line end, and quotes do not change that: replace them, or save the table as CSV"
            }
        };
        Err(DataError::FieldCount { place: at_field(place, found.min(expected)), expected, found, advice })
    }

    /// Reads the next record and skips blank lines.
    fn next_record(&mut self, place: &mut Place) -> Result<bool, DataError> {
        loop {
            (place.line, place.column) = (self.records.position().line(), 0);
            let start = self.records.position().byte();
            self.records.get_mut().ration = MAX_RECORD_BYTES + BUFFER_BYTES;
            let found = self.records.read_byte_record(&mut self.record).map_err(|error| self.failure(error, place))?;
            if !found {
                return Ok(false);
            }
            self.bytes = self.records.get_ref().real(start..self.records.position().byte());
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

    /// Returns the first line of the record. The parser's own position is before the preceding blank lines.
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

/// Returns the names in a header.
fn header(record: &ByteRecord, place: &Place) -> Result<Vec<String>, DataError> {
    let name = |(at, name)| Ok(field_text(name, &at_field(place, at))?.trim().to_owned());
    record.iter().enumerate().map(name).collect()
}

/// Returns true if a record is data and not a header: it has three fields or more, and the first is a whole number.
fn is_headless(record: &ByteRecord) -> bool {
    record.len() > 2 && record.get(0).is_some_and(|class| !class.is_empty() && class.iter().all(u8::is_ascii_digit))
}

/// Removes the CR of a CRLF, which the parser leaves at the end of the last field.
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
    /// The length of the byte order mark that the parser skips, in bytes.
    mark: u64,
    end: &'static [u8],
}

impl Rationed {
    fn new(source: Box<dyn Read + Send>) -> Self {
        Self { source, ration: 0, handed_out: 0, mark: 0, end: END }
    }

    /// Returns true if a record that ends before `byte` includes the end of the file.
    fn is_at_end(&self, byte: u64) -> bool {
        self.end.is_empty() && byte == self.handed_out
    }

    /// Returns `bytes` without the byte order mark and without [`END`].
    fn real(&self, bytes: Range<u64>) -> Range<u64> {
        let length = self.handed_out - (END.len() - self.end.len()) as u64;
        bytes.start.max(self.mark)..bytes.end.min(length)
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
        if self.handed_out == 0 && buffer[..length].starts_with(BYTE_ORDER_MARK) {
            self.mark = BYTE_ORDER_MARK.len() as u64;
        }
        self.ration -= length;
        self.handed_out += length as u64;
        Ok(length)
    }
}
