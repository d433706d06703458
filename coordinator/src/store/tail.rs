//! The place of the journal's last record, kept outside the database, which reveals whether the database lost records.
//!
//! SQLite drops the frames of a damaged write-ahead log silently, and a database restored from a backup lacks the newest records
//! without any sign. The file has two slots of 64 bytes, written in turn, each with a checksum: a crash in the middle of a write
//! leaves the other slot. A slot is written after the commit, so the file is never ahead of the database. It is not flushed with
//! every write, so after a power cut it may be some seconds old. Some lost records may then go unnoticed, but an intact database
//! is never reported as damaged.

use skiff_protocol::RunId;
use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind, Read as _};
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::Path;

/// Name of the file in the state folder.
pub(super) const FILE: &str = "journal.last";

const SLOT_BYTES: usize = 64;
const CONTENT_BYTES: usize = 48;

/// The place of the last record.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Last {
    /// Identity of the journal.
    pub(super) journal: [u8; 16],
    /// Number of records that the journal ever held, over all runs.
    pub(super) records: u64,
    /// Run of the last record.
    pub(super) run: RunId,
    /// Position of the record in that run, from 0.
    pub(super) at: u64,
}

/// The open file with the place of the last record.
#[derive(Debug)]
pub(super) struct Tail {
    file: File,
    next_slot: u64,
}

impl Tail {
    /// Opens the file in the folder `state`, or creates it. Also returns the stored place, if it can be read.
    pub(super) fn open(state: &Path) -> io::Result<(Self, Option<Last>)> {
        let path = state.join(FILE);
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(&path)?;
        let slots = read_slots(&file)?;
        let last = slots.iter().flatten().max_by_key(|last| last.records).copied();
        // The slot that is overwritten first is the one with less to lose.
        let next_slot = u64::from(slots[0].map(|last| last.records) >= slots[1].map(|last| last.records));
        Ok((Self { file, next_slot }, last))
    }

    /// Reads the file in the folder `state` without changing it.
    pub(super) fn read(state: &Path) -> io::Result<Option<Last>> {
        match File::open(state.join(FILE)) {
            Ok(file) => Ok(read_slots(&file)?.into_iter().flatten().max_by_key(|last| last.records)),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Writes the place of the last committed record.
    pub(super) fn write(&mut self, last: &Last) -> io::Result<()> {
        self.file.write_all_at(&encode(last), self.next_slot * SLOT_BYTES as u64)?;
        self.next_slot = 1 - self.next_slot;
        #[cfg(test)]
        super::kills::pass("a slot of the place file is written");
        Ok(())
    }

    /// Replaces both slots, because their contents belong to another journal.
    pub(super) fn replace(&mut self, last: &Last) -> io::Result<()> {
        self.write(last)?;
        self.write(last)?;
        self.file.sync_all()
    }
}

fn read_slots(file: &File) -> io::Result<[Option<Last>; 2]> {
    let mut bytes = Vec::new();
    file.take(2 * SLOT_BYTES as u64).read_to_end(&mut bytes)?;
    let slot = |at: usize| bytes.get(at * SLOT_BYTES..(at + 1) * SLOT_BYTES).and_then(decode);
    Ok([slot(0), slot(1)])
}

fn encode(last: &Last) -> [u8; SLOT_BYTES] {
    let mut slot = [0; SLOT_BYTES];
    slot[..16].copy_from_slice(&last.journal);
    slot[16..24].copy_from_slice(&last.records.to_le_bytes());
    slot[24..32].copy_from_slice(&last.run.0.to_le_bytes());
    slot[32..40].copy_from_slice(&last.at.to_le_bytes());
    let sum = blake3::hash(&slot[..CONTENT_BYTES]);
    slot[CONTENT_BYTES..].copy_from_slice(&sum.as_bytes()[..SLOT_BYTES - CONTENT_BYTES]);
    slot
}

fn decode(slot: &[u8]) -> Option<Last> {
    let number = |at: usize| Some(u64::from_le_bytes(slot.get(at..at + 8)?.try_into().ok()?));
    let journal = slot.get(..16)?.try_into().ok()?;
    let last = Last { journal, records: number(16)?, run: RunId(number(24)?), at: number(32)? };
    (encode(&last) == slot).then_some(last)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests fail by panicking")]
    use super::*;
    use proptest::prelude::*;
    use tempfile::TempDir;

    fn last(records: u64) -> Last {
        Last { journal: [7; 16], records, run: RunId(3), at: records }
    }

    #[test]
    fn the_last_place_written_is_read() {
        let folder = TempDir::new().unwrap();
        assert_eq!(Tail::read(folder.path()).unwrap(), None);
        let (mut tail, none) = Tail::open(folder.path()).unwrap();
        assert_eq!(none, None);
        for records in 1..5 {
            tail.write(&last(records)).unwrap();
            assert_eq!(Tail::read(folder.path()).unwrap(), Some(last(records)));
        }
        // Another process writes on: the older slot is the one that goes.
        let (mut tail, found) = Tail::open(folder.path()).unwrap();
        assert_eq!(found, Some(last(4)));
        tail.write(&last(5)).unwrap();
        assert_eq!(read_slots(&tail_file(&folder)).unwrap().map(Option::unwrap).map(|last| last.records), [4, 5]);
    }

    fn tail_file(folder: &TempDir) -> File {
        File::open(folder.path().join(FILE)).unwrap()
    }

    proptest! {
        /// A write that a crash cut short leaves the place before it.
        #[test]
        fn a_torn_write_leaves_the_other_slot(cut in 0..SLOT_BYTES, before in 1..9u64) {
            let folder = TempDir::new().unwrap();
            let (mut tail, _) = Tail::open(folder.path()).unwrap();
            (1..=before).for_each(|records| tail.write(&last(records)).unwrap());
            let torn = &encode(&last(before + 1))[..cut];
            tail.file.write_all_at(torn, tail.next_slot * SLOT_BYTES as u64).unwrap();
            let (_, found) = Tail::open(folder.path()).unwrap();
            prop_assert!(found == Some(last(before)) || found == Some(last(before + 1)), "{found:?}");
        }

        #[test]
        fn a_changed_bit_voids_a_slot(byte in 0..SLOT_BYTES, bit in 0..8u8) {
            let mut slot = encode(&last(9));
            slot[byte] ^= 1 << bit;
            prop_assert_eq!(decode(&slot), None);
        }
    }
}
