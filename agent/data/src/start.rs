//! Looks at the start of a file before its records are read, so that an error can name the kind of file that was found.

use crate::encoding::Guess;
use crate::error::{DataError, Place};
use crate::format::Format;
use skiff_base::foreign::Foreign;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

/// Number of bytes that the check reads.
const START_BYTES: usize = 16 << 10;

/// Refuses a folder, a file in UTF-16, lines that end in CR alone, and contents that are not text. Reads nothing if the file is a
/// pipe.
pub(crate) fn check(path: &Path, file: &File, format: Format) -> Result<(), DataError> {
    if file.metadata().is_ok_and(|metadata| metadata.is_dir()) {
        return Err(DataError::Folder { path: path.to_owned() });
    }
    let mut start = vec![0; START_BYTES];
    let Ok(length) = file.read_at(&mut start, 0) else { return Ok(()) };
    start.truncate(length);
    match Foreign::recognise(&start) {
        // An empty file has an error of its own. A text may be about web pages.
        None | Some(Foreign::Empty) => {}
        Some(Foreign::WebPage { .. }) if format == Format::Lines => {}
        Some(source) => return Err(DataError::Foreign { path: path.to_owned(), source }),
    }
    if let Some(guess) = Guess::wide(&start) {
        let place = Place { path: path.to_owned(), line: 1, column: 1 };
        return Err(DataError::Encoding { place, guess: Some(guess), source: None });
    }
    let ends = start.iter().position(|&byte| byte == b'\r');
    if !start.contains(&b'\n') && ends.is_some_and(|at| at + 1 < start.len()) {
        return Err(DataError::LoneCarriageReturns { path: path.to_owned() });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failing test may panic")]
    use crate::{DataError, Example, Passage, Record, read};
    use std::error::Error;

    fn said<R: Record>(name: &str, contents: &[u8]) -> String {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(name);
        std::fs::write(&path, contents).unwrap();
        let Err(error) = read::<R>(&path) else { return String::new() };
        let cause = error.source().map(ToString::to_string).unwrap_or_default();
        format!("{error}: {cause}").replace(&folder.path().display().to_string(), "")
    }

    #[test]
    fn what_is_no_text_is_named_with_the_remedy() {
        let pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:a\nsize 12\n";
        assert!(said::<Example>("a.csv", pointer).contains("git lfs pull"));
        assert!(said::<Passage>("a.txt", pointer).contains("git lfs pull"));
        assert!(said::<Example>("a.csv", b"<!DOCTYPE html><title>Kaggle</title>").contains("a web page (\"Kaggle\")"));
        assert_eq!(said::<Passage>("a.txt", b"<html> is a tag\n"), "");
        assert!(said::<Example>("a.csv", b"\x1f\x8b\x08\0\0\0").contains("gunzip"));
        assert!(said::<Example>("a.csv", b"PK\x03\x04\x14\0\x06\0").contains("Excel's .xlsx"));
        assert!(said::<Example>("a.csv", b"").contains("holds no examples"));
    }

    #[test]
    fn another_encoding_is_named_with_the_command() {
        let wide: Vec<u8> = "\u{feff}label,text\r\n1,a\r\n".encode_utf16().flat_map(u16::to_le_bytes).collect();
        let message = said::<Example>("a.csv", &wide);
        assert!(message.starts_with("/a.csv, line 1, column 1: not UTF-8, but probably UTF-16"), "{message}");
        assert!(message.contains("iconv -f UTF-16 -t UTF-8"), "{message}");
        let message = said::<Example>("a.csv", &wide[2..]);
        assert!(message.contains("iconv -f UTF-16LE -t UTF-8"), "{message}");
        let message = said::<Example>("a.csv", b"label,text\nham,fine\nspam,caf\xe9 and cr\xe8me for \xa35\n");
        assert!(message.starts_with("/a.csv, line 3, column 2: not UTF-8, but probably CP1252"), "{message}");
        assert!(message.contains("iconv -f CP1252 -t UTF-8: invalid utf-8 sequence"), "{message}");
    }

    #[test]
    fn lines_that_end_in_cr_alone_and_folders_are_named() {
        assert!(said::<Example>("a.csv", b"label,text\r1,a\r").contains("tr '\\r' '\\n'"));
        assert_eq!(said::<Example>("a.csv", b"label,text\r\n1,a\r"), "");
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("train.csv");
        std::fs::create_dir(&path).unwrap();
        assert!(matches!(read::<Example>(&path), Err(DataError::Folder { .. })));
    }
}
