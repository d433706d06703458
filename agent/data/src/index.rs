//! Reads the records of a file in any order, so that the file may be larger than memory.
//!
//! One pass over the file reads and checks every record, and notes its place. The index takes [`BYTES_OF_RECORD`] for each record
//! and holds no text. A record is later read from its place.
//!
//! The file stays open, so its contents survive if another file takes its name. If the file's own bytes change, a checksum
//! detects it. Appended bytes have no effect.

use crate::columns::Columns;
use crate::error::{DataError, Place};
use crate::example::Record;
use crate::format::Format;
use crate::reader::{Reader, open_file};
use std::fs::{File, Metadata};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

/// Memory of the index for each record, in bytes.
pub const BYTES_OF_RECORD: usize = size_of::<Stand>();

/// The places of the records of an open file.
#[derive(Debug)]
pub struct Index {
    path: PathBuf,
    file: File,
    version: Version,
    format: Format,
    /// Names in the file's header, if it has one.
    header: Vec<String>,
    columns: Columns,
    stands: Vec<Stand>,
}

/// The place of a record.
#[derive(Clone, Copy, Debug)]
struct Stand {
    offset: u64,
    line: u64,
    /// Number of bytes of the record and the blank lines before it; both have a limit below 4 GiB.
    bytes: u32,
    checksum: u32,
}

/// The properties that distinguish a file from other files, and from its own earlier contents.
#[derive(PartialEq, Eq, Debug)]
struct Version {
    device: u64,
    inode: u64,
    bytes: u64,
    modified: (i64, i64),
}

impl Index {
    /// Reads the file at `path` once and hands each record to `check`, which may refuse it. `columns` names columns that do not have
    /// a usual name.
    ///
    /// # Errors
    /// The first fault of the file, a file without records, or the error of `check`.
    pub fn build<R: Record, E: From<DataError>>(
        path: &Path,
        columns: &Columns,
        check: &mut dyn FnMut(R, &Place) -> Result<(), E>,
    ) -> Result<Self, E> {
        let (format, file) = open_file::<R>(path)?;
        let opened = |source| DataError::Open { path: path.to_owned(), source };
        let version = Version::of(&file.metadata().map_err(opened)?);
        let mut reader = Reader::<R>::new(path, format, columns, Box::new(file.try_clone().map_err(opened)?));
        let (mut stands, mut record_bytes) = (Vec::new(), Vec::new());
        while let Some(record) = reader.next() {
            let place = reader.place();
            check(record?, place)?;
            let (offset, end) = (reader.span().start, reader.span().end);
            let mut stand = Stand { offset, line: place.line, bytes: (end - offset) as u32, checksum: 0 };
            stand.bring(&file, &mut record_bytes).map_err(|source| stand.failure(path, source))?;
            stand.checksum = checksum(&record_bytes);
            push(&mut stands, stand);
        }
        stands.shrink_to_fit();
        let header = reader.header().to_vec();
        Ok(Self { path: path.to_owned(), file, version, format, header, columns: columns.clone(), stands })
    }

    /// Returns the number of records.
    #[must_use]
    pub fn len(&self) -> usize {
        self.stands.len()
    }

    /// Returns false, because an index always has a record.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.stands.is_empty()
    }

    /// Reads record `at`, which is below [`Index::len`].
    ///
    /// # Errors
    /// A file that changed, or cannot be read any more.
    pub fn read<R: Record>(&self, at: usize) -> Result<R, DataError> {
        let stand = self.stands[at];
        let changed = || DataError::Changed { place: self.place(at) };
        let mut bytes = Vec::new();
        stand.bring(&self.file, &mut bytes).map_err(|source| stand.failure(&self.path, source))?;
        if checksum(&bytes) != stand.checksum {
            return Err(changed());
        }
        // After a blank line it is not the start of a file, where U+FEFF would be taken for a byte order mark.
        let source = io::Read::chain(&b"\n"[..], io::Cursor::new(bytes));
        let mut reader = Reader::resumed(&self.path, self.format, &self.header, &self.columns, Box::new(source));
        reader.next().and_then(Result::ok).ok_or_else(changed)
    }

    /// Returns the place where record `at` begins.
    #[must_use]
    pub fn place(&self, at: usize) -> Place {
        self.stands[at].place(&self.path)
    }

    /// Returns the length of record `at` in the file, in bytes.
    #[must_use]
    pub fn record_bytes(&self, at: usize) -> usize {
        self.stands[at].bytes as usize
    }

    /// Returns the memory of the index, in bytes.
    #[must_use]
    pub fn memory_bytes(&self) -> usize {
        self.stands.capacity() * BYTES_OF_RECORD
    }

    /// Returns true if the path still names the indexed file and it has not changed.
    #[must_use]
    pub fn is_current(&self) -> bool {
        std::fs::metadata(&self.path).is_ok_and(|metadata| Version::of(&metadata) == self.version)
    }
}

impl Stand {
    /// Reads the bytes of the record into `bytes`.
    fn bring(&self, file: &File, bytes: &mut Vec<u8>) -> io::Result<()> {
        bytes.resize(self.bytes as usize, 0);
        file.read_exact_at(bytes, self.offset)
    }

    fn place(&self, path: &Path) -> Place {
        Place { path: path.to_owned(), line: self.line, column: 0 }
    }

    fn failure(&self, path: &Path, source: io::Error) -> DataError {
        let place = self.place(path);
        let cut_off = source.kind() == io::ErrorKind::UnexpectedEof;
        if cut_off { DataError::Changed { place } } else { DataError::Read { place, source } }
    }
}

impl Version {
    fn of(metadata: &Metadata) -> Self {
        Self {
            device: metadata.dev(),
            inode: metadata.ino(),
            bytes: metadata.size(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
        }
    }
}

/// Adds `stand`. A full vector grows by an eighth here; by default, it would double.
fn push(stands: &mut Vec<Stand>, stand: Stand) {
    if stands.len() == stands.capacity() {
        stands.reserve_exact(stands.len() / 8 + 64);
    }
    stands.push(stand);
}

/// Computes the 32-bit FNV-1a checksum (draft-eastlake-fnv-17, section 2). It detects accidents, not malice.
fn checksum(bytes: &[u8]) -> u32 {
    bytes.iter().fold(0x811c_9dc5, |hash, byte| (hash ^ u32::from(*byte)).wrapping_mul(0x0100_0193))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may panic")]
    use super::*;
    use crate::example::{Example, Passage, Rated, Tagged};
    use crate::reader::read;
    use proptest::prelude::*;
    use std::fmt::Debug;
    use std::io::{BufWriter, Write};

    fn file(extension: &str, content: &[u8]) -> tempfile::NamedTempFile {
        let mut file = tempfile::Builder::new().suffix(extension).tempfile().unwrap();
        file.write_all(content).unwrap();
        file
    }

    fn build<R: Record>(path: &Path) -> Result<Index, DataError> {
        Index::build(path, &Columns::default(), &mut |_: R, _| Ok(()))
    }

    /// Checks that a file with these bytes gives the same records in one pass and one by one.
    fn same<R: Record + Debug>(extension: &str, content: &[u8]) -> usize {
        let file = file(extension, content);
        let mut places = Vec::new();
        let index = Index::build(file.path(), &Columns::default(), &mut |_: R, place: &Place| {
            places.push(Place { column: 0, ..place.clone() });
            Ok::<(), DataError>(())
        });
        let read = read::<R>(file.path());
        let (Ok(read), Ok(index)) = (&read, &index) else {
            let (read, index) = (read.unwrap_err().to_string(), index.unwrap_err().to_string());
            assert_eq!(read, index);
            return 0;
        };
        assert_eq!(index.len(), read.len());
        for at in (0..read.len()).rev() {
            assert_eq!(format!("{:?}", index.read::<R>(at).unwrap()), format!("{:?}", read[at]), "record {at}");
            assert_eq!(index.place(at), places[at]);
        }
        read.len()
    }

    #[test]
    fn records_of_every_format_are_the_same_again() {
        let mark = "\u{feff}";
        for end in ["\n", "\r\n", "\n\n", "\r\n\r\n"] {
            for last in ["", end] {
                for start in ["", mark, "\n", "\r\n", "\u{feff}\u{feff}"] {
                    let content = |lines: &[&str]| format!("{start}{}{last}", lines.join(end)).into_bytes();
                    let headless = content(&["\"3\",\"a\",\"b\"", "1,\"x\n\ny\",\u{feff}c", "2,\"q\"\"\",d"]);
                    same::<Example>(".csv", &headless);
                    same::<Example>(".csv", &content(&["text,label", "a,b", "\"a\n\",b", "\u{feff}c,d"]));
                    same::<Rated>(".tsv", &content(&["score\tsentence", "1\t\"a", "2\tb", "\u{feff}3\tc"]));
                    same::<Passage>(".txt", &content(&["a", " \u{feff}b ", "\u{feff}c", " "]));
                    let json = [r#"{"text": "a", "label": "x"}"#, r#"{"label": 2, "text": "\n"}"#];
                    same::<Example>(".jsonl", &content(&json[..1]));
                    same::<Example>(".jsonl", &content(&json));
                    same::<Tagged>(".conll", &content(&["-DOCSTART- O", "", "a b O", "\u{feff}c X", "", "d Y", " "]));
                }
            }
        }
    }

    #[test]
    fn every_record_of_a_plain_file_is_found() {
        assert_eq!(same::<Example>(".csv", b"\xef\xbb\xbf\"3\",\"a\",\"b\"\r\n\r\n4,\"c\nd\",e"), 2);
        assert_eq!(same::<Example>(".tsv", b"text\tlabel\n\na\t1\nb\t2"), 2);
        assert_eq!(same::<Tagged>(".conll", b"a X\nb Y\n\n-DOCSTART- O\n\nc Z"), 2);
        assert_eq!(same::<Passage>(".txt", "\u{feff}a\n\n\u{feff}b".as_bytes()), 2);
    }

    #[test]
    fn records_longer_than_a_buffer_are_the_same_again() {
        let long = "ab ".repeat(200_000);
        assert_eq!(same::<Example>(".csv", format!("1,a,\"{long}\"\n2,a,b\n3,\"{long}\",x").as_bytes()), 3);
        assert_eq!(same::<Passage>(".txt", format!("{long}\na\n{long}").as_bytes()), 3);
    }

    #[test]
    fn a_changed_record_is_named_and_the_others_are_read() {
        let file = file(".txt", b"aaa\nbbb\nccc\n");
        let index = build::<Passage>(file.path()).unwrap();
        file.as_file().write_all_at(b"x", 5).unwrap();
        let error = index.read::<Passage>(1).unwrap_err();
        assert!(matches!(&error, DataError::Changed { place } if place.line == 2), "{error}");
        assert!(error.to_string().contains(".txt, line 2: the file changed"), "{error}");
        assert_eq!(index.read::<Passage>(2).unwrap().text, "ccc");
    }

    #[test]
    fn a_truncated_file_is_told_from_a_broken_disk() {
        let file = file(".jsonl", b"{\"text\": \"a\"}\n{\"text\": \"b\"}\n");
        let index = build::<Passage>(file.path()).unwrap();
        file.as_file().set_len(20).unwrap();
        assert_eq!(index.read::<Passage>(0).unwrap().text, "a");
        assert!(matches!(index.read::<Passage>(1), Err(DataError::Changed { place }) if place.line == 2));
    }

    #[test]
    fn a_file_that_grows_or_is_replaced_keeps_its_records_and_is_not_current() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("texts.txt");
        std::fs::write(&path, "a\nb").unwrap();
        let index = build::<Passage>(&path).unwrap();
        assert!(index.is_current());
        std::fs::write(folder.path().join("new"), "x\ny").unwrap();
        std::fs::rename(folder.path().join("new"), &path).unwrap();
        assert!(!index.is_current());
        assert_eq!(index.read::<Passage>(1).unwrap().text, "b");

        let index = build::<Passage>(&path).unwrap();
        File::options().append(true).open(&path).unwrap().write_all(b"z\n").unwrap();
        assert!(!index.is_current());
        assert_eq!(index.read::<Passage>(1).unwrap().text, "y");
        std::fs::remove_file(&path).unwrap();
        assert!(!index.is_current());
    }

    #[test]
    fn what_the_check_refuses_is_refused() {
        let file = file(".txt", b"a\n\nb\n");
        let refused =
            Index::build(file.path(), &Columns::default(), &mut |Passage { text, .. }, place: &Place| match text
                .as_str()
            {
                "b" => Err(DataError::MissingLabel { place: place.clone() }),
                _ => Ok(()),
            });
        assert!(matches!(refused, Err(DataError::MissingLabel { place }) if place.line == 3));
    }

    #[test]
    fn an_index_takes_no_more_than_32_bytes_a_record_however_long_the_texts_are() {
        const RECORDS: usize = 1_000_000;
        let file = tempfile::Builder::new().suffix(".txt").tempfile().unwrap();
        let mut out = BufWriter::new(file.as_file());
        for record in 0..RECORDS {
            writeln!(out, "{record} of a million").unwrap();
        }
        out.flush().unwrap();
        let mut most = 0;
        let mut stands = Vec::new();
        for _ in 0..RECORDS {
            push(&mut stands, Stand { offset: 0, line: 0, bytes: 0, checksum: 0 });
            most = most.max(stands.capacity().saturating_sub(64) * BYTES_OF_RECORD / stands.len());
        }
        assert!(most <= 32, "{most}");
        let index = build::<Passage>(file.path()).unwrap();
        assert_eq!(index.len(), RECORDS);
        assert!(index.memory_bytes() <= 32 * RECORDS, "{}", index.memory_bytes());
        assert_eq!(index.read::<Passage>(RECORDS - 1).unwrap().text, "999999 of a million");
        assert_eq!(index.place(RECORDS / 2).line, RECORDS as u64 / 2 + 1);
    }

    /// Generates bytes that often resemble a file.
    fn content() -> impl Strategy<Value = Vec<u8>> {
        let piece = prop_oneof![
            Just("\n"),
            Just("\r\n"),
            Just("\""),
            Just(","),
            Just("\t"),
            Just("\u{feff}"),
            Just(" "),
            Just("1,a,b\n"),
            Just("a X\n"),
            Just("text,label\n"),
            Just("text\tlabel\n"),
            Just("\"a\n\"\"b\",2\n"),
            Just("x\t1\n"),
            Just("{\"text\": \"a\", \"label\": \"1\"}\n"),
            Just("-DOCSTART- O\n"),
            Just("é"),
            Just("\r"),
        ];
        proptest::collection::vec(piece, 0..24).prop_map(|pieces| pieces.concat().into_bytes())
    }

    proptest! {
        #[test]
        fn whatever_is_read_is_read_again(content in content()) {
            for extension in [".csv", ".tsv", ".jsonl"] {
                same::<Example>(extension, &content);
                same::<Rated>(extension, &content);
            }
            for extension in [".jsonl", ".conll"] {
                same::<Tagged>(extension, &content);
            }
            for extension in [".txt", ".csv", ".tsv", ".jsonl"] {
                same::<Passage>(extension, &content);
            }
        }

        #[test]
        fn any_changed_byte_is_noticed(at in 0_usize..12, byte in any::<u8>()) {
            let file = file(".txt", b"aaa\nbbb\nccc\n");
            let index = build::<Passage>(file.path()).unwrap();
            file.as_file().write_all_at(&[byte], at as u64).unwrap();
            let same = b"aaa\nbbb\nccc\n"[at] == byte;
            for record in 0..3 {
                prop_assert_eq!(index.read::<Passage>(record).is_ok(), same || record != at / 4);
            }
        }
    }
}
