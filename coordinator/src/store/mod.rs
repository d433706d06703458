//! The journal on disk: one SQLite file in the state folder, WAL, every commit synchronised.
//!
//! A run is the sequence of its records. Beside it stand the bytes that travelled in each round, and the last merged weights.
//! Blobs (weights, updates) lie beside it, see [`crate::transfers`].

pub mod keys;

use crate::run::{Action, Entry, Merged, OutOfPlace, Record, Run};
use rusqlite::{Connection, ErrorCode, OptionalExtension, params};
use skiff_protocol::{Digest, RunId, Timestamp};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// The layout of the file; a newer one is refused.
pub const SCHEMA_VERSION: i64 = 4;
/// The journal's name in the state folder.
pub const FILE: &str = "journal.sqlite";

/// "SKIF": tells our file from any other SQLite file.
const APPLICATION_ID: i64 = 0x534b_4946;
const SCHEMA: &str = "
    CREATE TABLE run (run INTEGER PRIMARY KEY, number INTEGER NOT NULL UNIQUE, weights TEXT) STRICT;
    CREATE TABLE journal (
        run INTEGER NOT NULL REFERENCES run, at INTEGER NOT NULL, entry BLOB NOT NULL, PRIMARY KEY (run, at)
    ) STRICT, WITHOUT ROWID;
    CREATE TABLE traffic (
        run INTEGER NOT NULL REFERENCES run, round INTEGER NOT NULL, up INTEGER NOT NULL, down INTEGER NOT NULL,
        PRIMARY KEY (run, round)
    ) STRICT, WITHOUT ROWID;
";

/// Why the journal cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// There is none.
    #[error("there is no journal {}; is that the state folder of `skiff serve`?", path.display())]
    None {
        /// Where it was looked for.
        path: PathBuf,
    },
    /// SQLite failed.
    #[error("{attempt} in the journal {}", path.display())]
    Sqlite {
        /// What was attempted.
        attempt: &'static str,
        /// The file.
        path: PathBuf,
        /// SQLite's word.
        source: rusqlite::Error,
    },
    /// Not a journal, or damaged.
    #[error("{} is damaged or not a journal of Skiff ({finding}): restore it from a backup, or move it away to start anew", path.display())]
    Corrupt {
        /// The file.
        path: PathBuf,
        /// What was found.
        finding: String,
    },
    /// Written by a newer version.
    #[error("{} has layout {found}, this version knows {SCHEMA_VERSION}: update Skiff", path.display())]
    Newer {
        /// The file.
        path: PathBuf,
        /// Its layout.
        found: i64,
    },
    /// Written by an older version.
    #[error("{} has layout {found}, this version writes {SCHEMA_VERSION}: let the older version end its runs, then move the file away", path.display())]
    Older {
        /// The file.
        path: PathBuf,
        /// Its layout.
        found: i64,
    },
    /// A record that cannot be read.
    #[error("record {at} of run {run} in {} cannot be read: the file is damaged or of another version", path.display())]
    Record {
        /// The file.
        path: PathBuf,
        /// The run.
        run: RunId,
        /// Position.
        at: usize,
        /// The decoder's word.
        source: postcard::Error,
    },
    /// Records that do not follow from one another.
    #[error("run {run} in {}", path.display())]
    OutOfPlace {
        /// The file.
        path: PathBuf,
        /// The run.
        run: RunId,
        /// Which record.
        source: OutOfPlace,
    },
}

/// Bytes that travelled.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Traffic {
    /// From devices.
    pub up: u64,
    /// To devices.
    pub down: u64,
}

impl std::ops::AddAssign for Traffic {
    fn add_assign(&mut self, other: Self) {
        self.up += other.up;
        self.down += other.down;
    }
}

/// The journal.
#[derive(Debug)]
pub struct Store {
    path: PathBuf,
    connection: Connection,
}

impl Store {
    /// Opens the journal in the folder `state`, or makes it.
    ///
    /// # Errors
    /// A file that is damaged, not ours, or of a newer layout; SQLite's own failures.
    pub fn open(state: &Path) -> Result<Self, StoreError> {
        let path = state.join(FILE);
        let connection = Connection::open(&path).map_err(|source| StoreError::Sqlite {
            attempt: "opening a file",
            path: path.clone(),
            source,
        })?;
        let store = Self { path, connection };
        store.check().map_err(|source| store.sqlite("opening a file", source)).flatten()?;
        store.prepare().map_err(|source| store.sqlite("preparing tables", source))?;
        Ok(store)
    }

    /// Opens the journal that is in the folder `state`.
    ///
    /// # Errors
    /// No journal there; as [`Store::open`].
    pub fn open_existing(state: &Path) -> Result<Self, StoreError> {
        let path = state.join(FILE);
        if path.is_file() { Self::open(state) } else { Err(StoreError::None { path }) }
    }

    /// Adds records to a run, and what travelled in `round`, in one synchronised transaction.
    ///
    /// # Errors
    /// SQLite's failures; then nothing was added.
    pub fn append(&mut self, run: RunId, entries: &[Entry], round: u32, traffic: Traffic) -> Result<(), StoreError> {
        let path = &self.path;
        let sqlite = |source| sqlite_error(path, "adding records", source);
        let transaction = self.connection.transaction().map_err(sqlite)?;
        append(&transaction, run, entries, round, traffic).map_err(sqlite)?;
        transaction.commit().map_err(sqlite)
    }

    /// The runs, oldest first.
    ///
    /// # Errors
    /// SQLite's failures.
    pub fn runs(&self) -> Result<Vec<RunId>, StoreError> {
        let mut statement = self.prepared("SELECT run FROM run ORDER BY number", "listing runs")?;
        let runs = statement.query_map([], |row| row.get(0).map(run_id)).and_then(Iterator::collect);
        runs.map_err(|source| self.sqlite("listing runs", source))
    }

    /// A run's records in order.
    ///
    /// # Errors
    /// A record that cannot be read; SQLite's failures.
    pub fn entries(&self, run: RunId) -> Result<Vec<Entry>, StoreError> {
        let mut statement = self.prepared("SELECT entry FROM journal WHERE run = ? ORDER BY at", "reading records")?;
        let blobs: Result<Vec<Vec<u8>>, _> =
            statement.query_map([sql_id(run)], |row| row.get(0)).and_then(Iterator::collect);
        let blobs = blobs.map_err(|source| self.sqlite("reading records", source))?;
        let read = |(at, blob): (usize, &Vec<u8>)| {
            postcard::from_bytes(blob).map_err(|source| StoreError::Record { path: self.path.clone(), run, at, source })
        };
        blobs.iter().enumerate().map(read).collect()
    }

    /// Takes a run up where its journal ends.
    ///
    /// # Errors
    /// Records that cannot be read, or do not follow from one another; SQLite's failures.
    pub fn resume(&self, run: RunId, now: Timestamp) -> Result<(Run, Vec<Action>), StoreError> {
        let out_of_place = |source| StoreError::OutOfPlace { path: self.path.clone(), run, source };
        Run::resume(&self.entries(run)?, now).map_err(out_of_place)
    }

    /// The weights that each run's last merge made; runs without a merge are not in it.
    ///
    /// # Errors
    /// SQLite's failures.
    pub fn final_weights(&self) -> Result<BTreeMap<RunId, Digest>, StoreError> {
        let attempt = "looking for weights";
        let mut statement = self.prepared("SELECT run, weights FROM run WHERE weights IS NOT NULL", attempt)?;
        let rows: Result<Vec<(i64, String)>, _> =
            statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?))).and_then(Iterator::collect);
        let rows = rows.map_err(|source| self.sqlite(attempt, source))?;
        Ok(rows.into_iter().filter_map(|(run, hex)| Some((run_id(run), Digest::parse(&hex)?))).collect())
    }

    /// What travelled in each round of a run.
    ///
    /// # Errors
    /// SQLite's failures.
    pub fn traffic(&self, run: RunId) -> Result<BTreeMap<u32, Traffic>, StoreError> {
        let mut statement = self.prepared("SELECT round, up, down FROM traffic WHERE run = ?", "reading traffic")?;
        let rows = statement.query_map([sql_id(run)], |row| {
            let (up, down): (i64, i64) = (row.get(1)?, row.get(2)?);
            Ok((row.get(0)?, Traffic { up: up.cast_unsigned(), down: down.cast_unsigned() }))
        });
        rows.and_then(Iterator::collect).map_err(|source| self.sqlite("reading traffic", source))
    }

    /// The inner result: what is wrong with a file that can be read.
    fn check(&self) -> Result<Result<(), StoreError>, rusqlite::Error> {
        let path = || self.path.clone();
        if self.is_empty()? {
            return Ok(Ok(()));
        }
        if self.pragma("application_id")? != APPLICATION_ID {
            return Ok(Err(StoreError::Corrupt { path: path(), finding: "it belongs to another program".into() }));
        }
        let found = self.pragma("user_version")?;
        if found > SCHEMA_VERSION {
            return Ok(Err(StoreError::Newer { path: path(), found }));
        }
        if found < SCHEMA_VERSION {
            return Ok(Err(StoreError::Older { path: path(), found }));
        }
        let finding: String = self.connection.query_row("PRAGMA quick_check(1)", [], |row| row.get(0))?;
        Ok(if finding == "ok" { Ok(()) } else { Err(StoreError::Corrupt { path: path(), finding }) })
    }

    fn prepare(&self) -> Result<(), rusqlite::Error> {
        self.connection.pragma_update(None, "journal_mode", "WAL")?;
        self.connection.pragma_update(None, "synchronous", "FULL")?;
        self.connection.pragma_update(None, "foreign_keys", true)?;
        if self.is_empty()? {
            let transaction = self.connection.unchecked_transaction()?;
            transaction.execute_batch(SCHEMA)?;
            transaction.pragma_update(None, "application_id", APPLICATION_ID)?;
            transaction.pragma_update(None, "user_version", SCHEMA_VERSION)?;
            transaction.commit()?;
        }
        Ok(())
    }

    fn is_empty(&self) -> Result<bool, rusqlite::Error> {
        self.connection.query_row("SELECT count(*) = 0 FROM sqlite_schema", [], |row| row.get(0))
    }

    fn pragma(&self, name: &str) -> Result<i64, rusqlite::Error> {
        self.connection.pragma_query_value(None, name, |row| row.get(0))
    }

    fn prepared(&self, sql: &str, attempt: &'static str) -> Result<rusqlite::Statement<'_>, StoreError> {
        self.connection.prepare(sql).map_err(|source| self.sqlite(attempt, source))
    }

    fn sqlite(&self, attempt: &'static str, source: rusqlite::Error) -> StoreError {
        sqlite_error(&self.path, attempt, source)
    }
}

fn sqlite_error(path: &Path, attempt: &'static str, source: rusqlite::Error) -> StoreError {
    let path = path.to_owned();
    match source.sqlite_error_code() {
        Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase) => {
            StoreError::Corrupt { path, finding: source.to_string() }
        }
        _ => StoreError::Sqlite { attempt, path, source },
    }
}

fn append(
    transaction: &rusqlite::Transaction<'_>,
    run: RunId,
    entries: &[Entry],
    round: u32,
    traffic: Traffic,
) -> Result<(), rusqlite::Error> {
    let run = sql_id(run);
    transaction.execute(
        "INSERT INTO run SELECT ?1, coalesce(max(number) + 1, 0), NULL FROM run WHERE true ON CONFLICT (run) DO NOTHING",
        [run],
    )?;
    let next: Option<i64> = transaction
        .query_row("SELECT at + 1 FROM journal WHERE run = ? ORDER BY at DESC LIMIT 1", [run], |row| row.get(0))
        .optional()?;
    for (at, entry) in (next.unwrap_or(0)..).zip(entries) {
        let bytes = postcard::to_stdvec(entry).expect("records are plain values, which postcard writes");
        transaction.execute("INSERT INTO journal VALUES (?, ?, ?)", params![run, at, bytes])?;
        if let Record::Merged(Merged { weights, .. }) = &entry.record {
            transaction.execute("UPDATE run SET weights = ? WHERE run = ?", params![weights.to_string(), run])?;
        }
    }
    transaction.execute(
        "INSERT INTO traffic VALUES (?, ?, ?, ?) ON CONFLICT DO UPDATE SET up = up + excluded.up, down = down + excluded.down",
        params![run, round, traffic.up.cast_signed(), traffic.down.cast_signed()],
    )?;
    Ok(())
}

fn sql_id(run: RunId) -> i64 {
    run.0.cast_signed()
}

fn run_id(sql: i64) -> RunId {
    RunId(sql.cast_unsigned())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests fail by panicking")]
    use super::*;
    use crate::run::{RunSettings, Start};
    use tempfile::TempDir;

    fn entry(at_ms: u64, record: Record) -> Entry {
        Entry { at_ms, record }
    }

    fn started(run: RunId) -> Entry {
        let digest = Digest([1; 32]);
        let settings = Box::new(RunSettings { final_examples: 0, ..RunSettings::default() });
        entry(5, Record::RunStarted(Start { run, settings, layers: 4, pack: digest, schema: digest, weights: digest }))
    }

    fn open(folder: &TempDir) -> Store {
        Store::open(folder.path()).unwrap()
    }

    fn message(folder: &TempDir) -> String {
        Store::open(folder.path()).unwrap_err().to_string()
    }

    #[test]
    fn records_and_traffic_are_there_after_reopening() {
        let folder = TempDir::new().unwrap();
        let (first, second) = (RunId(u64::MAX), RunId(3));
        let skipped = entry(9, Record::Skipped { reason: "nobody".into() });
        let traffic = |up, down| Traffic { up, down };
        let mut store = open(&folder);
        store.append(first, &[started(first)], 0, traffic(1, 10)).unwrap();
        store.append(second, &[started(second)], 0, traffic(0, 0)).unwrap();
        store.append(first, std::slice::from_ref(&skipped), 1, traffic(2, 20)).unwrap();
        store.append(first, &[], 1, traffic(3, 30)).unwrap();
        drop(store);
        let store = open(&folder);
        assert_eq!(store.runs().unwrap(), [first, second], "in the order they were started");
        assert_eq!(store.entries(first).unwrap(), [started(first), skipped]);
        assert_eq!(store.traffic(first).unwrap(), BTreeMap::from([(0, traffic(1, 10)), (1, traffic(5, 50))]));
        let (run, actions) = store.resume(first, Timestamp(20)).unwrap();
        assert_eq!((run.ledger().round, actions.len()), (2, 1));
        assert_eq!(store.entries(RunId(99)).unwrap(), []);
    }

    #[test]
    fn the_last_merged_weights_of_a_run_are_known() {
        let folder = TempDir::new().unwrap();
        let run = RunId(4);
        let mut store = open(&folder);
        store.append(run, &[started(run)], 0, Traffic::default()).unwrap();
        assert_eq!(store.final_weights().unwrap(), BTreeMap::new());
        let merged = |byte| entry(9, Record::Merged(Merged { weights: Digest([byte; 32]), moments: None }));
        store.append(run, &[merged(2), merged(3)], 1, Traffic::default()).unwrap();
        store.append(RunId(5), &[started(RunId(5))], 0, Traffic::default()).unwrap();
        assert_eq!(store.final_weights().unwrap(), BTreeMap::from([(run, Digest([3; 32]))]));
    }

    #[test]
    fn commits_are_synchronised() {
        let folder = TempDir::new().unwrap();
        let store = open(&folder);
        assert_eq!(store.pragma("synchronous").unwrap(), 2);
        let mode: String = store.connection.pragma_query_value(None, "journal_mode", |row| row.get(0)).unwrap();
        assert_eq!(mode, "wal");
    }

    #[test]
    fn another_layout_is_refused() {
        let folder = TempDir::new().unwrap();
        open(&folder).connection.pragma_update(None, "user_version", SCHEMA_VERSION + 1).unwrap();
        assert!(message(&folder).contains("layout 5, this version knows 4: update Skiff"));
        let folder = TempDir::new().unwrap();
        open(&folder).connection.pragma_update(None, "user_version", SCHEMA_VERSION - 1).unwrap();
        assert!(message(&folder).contains("layout 3, this version writes 4"));
    }

    #[test]
    fn what_is_not_a_journal_is_refused_and_left_alone() {
        let folder = TempDir::new().unwrap();
        let path = folder.path().join(FILE);
        let noise = vec![7u8; 5000];
        std::fs::write(&path, &noise).unwrap();
        assert!(message(&folder).contains("damaged or not a journal"), "{}", message(&folder));
        assert_eq!(std::fs::read(&path).unwrap(), noise);
        std::fs::remove_file(&path).unwrap();
        Connection::open(&path).unwrap().execute_batch("CREATE TABLE recipe (name TEXT)").unwrap();
        assert!(message(&folder).contains("belongs to another program"));
    }

    #[test]
    fn a_torn_file_is_refused() {
        let folder = TempDir::new().unwrap();
        let run = RunId(1);
        let mut store = open(&folder);
        let many: Vec<Entry> =
            std::iter::once(started(run)).chain((0..500).map(|at| entry(at, Record::Resumed))).collect();
        store.append(run, &many, 0, Traffic::default()).unwrap();
        drop(store);
        let path = folder.path().join(FILE);
        let bytes = std::fs::read(&path).unwrap();
        std::fs::write(&path, &bytes[..bytes.len() / 2]).unwrap();
        assert!(message(&folder).contains("damaged"), "{}", message(&folder));
    }

    #[test]
    fn a_record_that_cannot_be_read_is_named() {
        let folder = TempDir::new().unwrap();
        let run = RunId(1);
        let mut store = open(&folder);
        store.append(run, &[started(run), entry(6, Record::Resumed)], 0, Traffic::default()).unwrap();
        store.connection.execute("UPDATE journal SET entry = x'ff' WHERE at = 1", []).unwrap();
        let message = store.entries(run).unwrap_err().to_string();
        assert!(message.contains("record 1 of run 0000000000000001"), "{message}");
        store.connection.execute("DELETE FROM journal WHERE at = 0", []).unwrap();
        store.connection.execute("UPDATE journal SET entry = (SELECT x'0101')", []).unwrap();
        assert!(matches!(store.resume(run, Timestamp(0)), Err(StoreError::OutOfPlace { .. })));
    }
}
