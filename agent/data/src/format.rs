//! Code that the readers of all formats share: the list of formats, the maximum length of a record, and the check of a field's
//! text.

use crate::error::{DataError, Place};

/// Maximum length of a record in bytes. A longer record is an error, so the memory use is bounded for any file.
pub const MAX_RECORD_BYTES: usize = 1 << 20;

/// Bytes with which a UTF-8 file may begin.
pub(crate) const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";

/// The way in which a file holds its records.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Format {
    /// Fields between commas, with quotes.
    Csv,
    /// Fields between tabs, without quotes.
    Tsv,
    /// A JSON object on each line.
    JsonLines,
    /// A word and its label on each line.
    Conll,
    /// A text on each line.
    Lines,
}

/// Returns `bytes` as the text of a field, or an error if they are not UTF-8 or contain NUL.
pub(crate) fn field_text<'a>(bytes: &'a [u8], place: &Place) -> Result<&'a str, DataError> {
    let foreign = |source| DataError::Encoding { place: place.clone(), guess: None, source: Some(source) };
    let text = std::str::from_utf8(bytes).map_err(foreign)?;
    if text.contains('\0') { Err(DataError::Nul { place: place.clone() }) } else { Ok(text) }
}
