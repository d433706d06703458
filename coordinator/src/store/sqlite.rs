//! The journal on disk: one SQLite file in the state folder, WAL, every commit synchronised.

use super::journal;
use super::layout::{APPLICATION_ID, Layout, connect, sqlite_error};
use super::migrations::{self, Migrated};
use super::removals::{self, Mark};
use super::summary::Summary;
use super::tables::{LAYOUT, TABLES, append, first_record, known, read_run, run_id, run_row, sql_id, traffic_of};
use super::tail::{Last, Tail};
use super::{Finding, RunRow, Store, StoreError, Traffic, tail};
use crate::run::{Entry, RunSettings};
use rusqlite::{Connection, OptionalExtension as _, Transaction, params};
use skiff_api::removal::Removal;
use skiff_blobs::Blobs;
use skiff_protocol::{DeviceId, Digest, RunId};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// The journal's name in the state folder.
pub const FILE: &str = "journal.sqlite";

/// A journal in an SQLite file.
#[derive(Debug)]
pub struct SqliteStore {
    path: PathBuf,
    connection: Connection,
    /// File with the place of the last record; `None` if the journal is opened only for reading.
    tail: Option<Tail>,
    identity: [u8; 16],
    findings: Vec<Finding>,
}

impl SqliteStore {
    /// Opens the journal in the folder `state`, or creates it if there are neither a journal nor blobs. Migrates an older layout.
    /// Verifies every record, and stops each run with a damaged or missing record.
    ///
    /// # Errors
    /// A file that is damaged as a whole, is not a journal, or has a newer layout; blobs that the journal does not know; failures
    /// of the disk. Nothing was changed then.
    pub fn open(state: &Path, blobs: &dyn Blobs) -> Result<Self, StoreError> {
        let path = state.join(FILE);
        let found = Layout::of_file(&path)?;
        let owner = blobs.owner()?;
        let present = blobs.list()?;
        if found == Layout::Empty && !present.is_empty() {
            return Err(StoreError::UnknownBlobs { path, is_new: true, blobs: present.len() });
        }
        let connection = connect(&path)?;
        let mut store = Self { path, connection, tail: None, identity: [0; 16], findings: Vec::new() };
        store.prepare().map_err(|source| store.sqlite("preparing", source))?;
        match found {
            Layout::Empty => store.create()?,
            Layout::Number(LAYOUT) => {}
            Layout::Number(older) => {
                match owner.filter(|_| !present.is_empty()) {
                    // A marker is written from layout 5 on: this journal was put back under newer blobs.
                    Some(owner) if older < migrations::FIRST_WITH_IDENTITY => {
                        let identity = format!("of layout {older}, without one");
                        return Err(StoreError::OtherJournal { path: store.path, identity, owner });
                    }
                    Some(owner) => {
                        store.identity = store.read_identity()?;
                        store.check_owner(blobs, Some(&owner), &present)?;
                    }
                    None => {}
                }
                let migrated = store.migrate(true)?;
                tracing::info!(
                    from = older,
                    to = LAYOUT,
                    runs = migrated.runs,
                    records = migrated.records,
                    "journal migrated"
                );
                return Self::open(state, blobs);
            }
        }
        store.identity = store.read_identity()?;
        store.check_owner(blobs, owner.as_deref(), &present)?;
        let (tail, last) = Tail::open(state).map_err(|source| store.tail_error("opening", source))?;
        store.tail = Some(tail);
        store.check_records(last, !present.is_empty())?;
        Ok(store)
    }

    /// Opens the journal in the folder `state` for reading only. A coordinator may be writing to it at the same time.
    ///
    /// # Errors
    /// No journal in the folder, or a journal of another layout; failures of the disk.
    pub fn open_existing(state: &Path) -> Result<Self, StoreError> {
        let path = state.join(FILE);
        if !path.is_file() {
            return Err(StoreError::None { path });
        }
        match Layout::of_file(&path)? {
            Layout::Number(LAYOUT) => {}
            Layout::Empty => return Err(StoreError::None { path }),
            Layout::Number(found) => return Err(StoreError::NotMigrated { path, found }),
        }
        let connection = connect(&path)?;
        let mut store = Self { path, connection, tail: None, identity: [0; 16], findings: Vec::new() };
        store.identity = store.read_identity()?;
        Ok(store)
    }

    /// Migrates the journal in the folder `state` to the newest layout; if `keep` is false, only tries to.
    ///
    /// # Errors
    /// The same as for [`SqliteStore::open`]; no journal in the folder.
    pub fn migrate_folder(state: &Path, keep: bool) -> Result<Migrated, StoreError> {
        let path = state.join(FILE);
        if !path.is_file() || Layout::of_file(&path)? == Layout::Empty {
            return Err(StoreError::None { path });
        }
        let connection = connect(&path)?;
        Self { path, connection, tail: None, identity: [0; 16], findings: Vec::new() }.migrate(keep)
    }

    /// Copies the journal, as it is at one moment, to the new file `to`. Another process may be writing to it.
    ///
    /// # Errors
    /// Failures of SQLite.
    pub(super) fn copy_to(&self, to: &Path) -> Result<(), StoreError> {
        let to = to.to_string_lossy();
        let copied = self.connection.execute("VACUUM INTO ?1", [&to]);
        copied.map(drop).map_err(|source| self.sqlite("copying", source))
    }

    /// Returns the journal's identity, 32 hexadecimal digits.
    #[must_use]
    pub fn identity(&self) -> String {
        hex(self.identity)
    }

    /// Returns the number of records that the journal ever held.
    ///
    /// # Errors
    /// Failures of SQLite.
    pub fn records(&self) -> Result<u64, StoreError> {
        let found =
            self.connection.query_row("SELECT records FROM state", [], |row| row.get(0).map(i64::cast_unsigned));
        found.map_err(|source| self.sqlite("counting records", source))
    }

    /// Returns a run's records as they are stored.
    ///
    /// # Errors
    /// [`StoreError::Record`] for the first record that is damaged or missing; failures of SQLite.
    pub fn journal(&self, run: RunId) -> Result<Vec<journal::Entry>, StoreError> {
        let read = read_run(&self.connection, run).map_err(|source| self.sqlite("reading records", source))?;
        read.map_err(|(at, source)| StoreError::Record { run, at, source })
    }

    /// Returns a run's settings; `None` if its first record is damaged. Reads only that record.
    ///
    /// # Errors
    /// Failures of SQLite.
    pub fn settings(&self, run: RunId) -> Result<Option<RunSettings>, StoreError> {
        let first = first_record(&self.connection, run).map_err(|source| self.sqlite("reading a record", source))?;
        Ok(first.and_then(|entry| serde_json::from_str(&entry.start()?.settings).ok()))
    }

    /// Returns the first run that names the blob, with the kind of the blob.
    ///
    /// # Errors
    /// Failures of SQLite.
    pub fn name_of(&self, blob: Digest) -> Result<Option<(RunId, String)>, StoreError> {
        let sql = "SELECT run, kind FROM named WHERE digest = ? ORDER BY run LIMIT 1";
        let found = self.connection.query_row(sql, [blob.0], |row| Ok((run_id(row.get(0)?), row.get(1)?))).optional();
        found.map_err(|source| self.sqlite("looking for a blob", source))
    }

    fn prepare(&self) -> Result<(), rusqlite::Error> {
        self.connection.pragma_update(None, "journal_mode", "WAL")?;
        self.connection.pragma_update(None, "synchronous", "FULL")?;
        self.connection.pragma_update(None, "foreign_keys", true)
    }

    fn create(&self) -> Result<(), StoreError> {
        let identity = hex(random_identity());
        let create = || -> Result<(), rusqlite::Error> {
            let transaction = self.connection.unchecked_transaction()?;
            for tables in TABLES {
                transaction.execute_batch(tables)?;
            }
            transaction.execute("INSERT INTO state VALUES (1, ?, 0)", [identity])?;
            transaction.pragma_update(None, "application_id", APPLICATION_ID)?;
            transaction.pragma_update(None, "user_version", LAYOUT)?;
            commit(transaction)?;
            // Into the database itself: a lost log must not make the journal look new.
            self.connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()))
        };
        create().map_err(|source| self.sqlite("making", source))
    }

    fn migrate(&self, keep: bool) -> Result<Migrated, StoreError> {
        let sqlite = |source| self.sqlite("migrating", source);
        let found: i64 = self.connection.pragma_query_value(None, "user_version", |row| row.get(0)).map_err(sqlite)?;
        let transaction = self.connection.unchecked_transaction().map_err(sqlite)?;
        let migrated = migrations::migrate(&transaction, found, &hex(random_identity())).map_err(sqlite)?;
        if keep { commit(transaction) } else { transaction.rollback() }.map_err(sqlite)?;
        Ok(migrated)
    }

    fn read_identity(&self) -> Result<[u8; 16], StoreError> {
        let text: String = self
            .connection
            .query_row("SELECT identity FROM state", [], |row| row.get(0))
            .map_err(|source| self.sqlite("reading the identity", source))?;
        let corrupt = || StoreError::Corrupt { path: self.path.clone(), finding: "its identity cannot be read".into() };
        u128::from_str_radix(&text, 16).map(u128::to_be_bytes).map_err(|_| corrupt())
    }

    /// Refuses blobs of another journal. Accepts blobs without a marker if the journal knows at least one of them.
    fn check_owner(&self, blobs: &dyn Blobs, owner: Option<&str>, present: &[(Digest, u64)]) -> Result<(), StoreError> {
        let identity = self.identity();
        match owner {
            Some(owner) if owner == identity => return Ok(()),
            Some(owner) if !present.is_empty() => {
                let (path, owner) = (self.path.clone(), owner.to_owned());
                return Err(StoreError::OtherJournal { path, identity, owner });
            }
            Some(_) => {}
            None => {
                let mut is_known = present.is_empty();
                for (blob, _) in present {
                    is_known = is_known || self.is_named(*blob)?;
                }
                if !is_known {
                    let (path, blobs) = (self.path.clone(), present.len());
                    return Err(StoreError::UnknownBlobs { path, is_new: false, blobs });
                }
            }
        }
        Ok(blobs.set_owner(&identity)?)
    }

    /// Verifies every record of every run that is not yet known to be damaged. Then compares the last record with its place
    /// outside the database.
    fn check_records(&mut self, last: Option<Last>, has_blobs: bool) -> Result<(), StoreError> {
        let rows = self.runs()?;
        let records = self.records()?;
        let missing = last.filter(|last| last.journal == self.identity && last.records > records);
        if missing.is_some() && rows.is_empty() && has_blobs {
            let path = self.path.clone();
            return Err(StoreError::Corrupt { path, finding: "it lost all its records, and blobs are there".into() });
        }
        for row in rows.iter().filter(|row| row.damage.is_none()) {
            match self.journal(row.run) {
                Err(fault) if fault.is_of_one_run() => self.find(row.run, &skiff_base::chain(&fault))?,
                read => self.check_summary(row, &Summary::of_entries(&read?))?,
            }
        }
        if let Some(last) = missing {
            let lost = last.records - records;
            let reason = format!(
                "the last {lost} records of the journal are missing: its database or log was damaged or replaced by an older one"
            );
            let open = rows.last().filter(|row| row.run != last.run && !row.summary.is_ended());
            if let Some(row) = open {
                self.find(row.run, &reason)?;
            }
            self.find(last.run, &reason)?;
        }
        let records = records.max(missing.map_or(0, |last| last.records));
        self.connection
            .execute("UPDATE state SET records = ?", [records.cast_signed()])
            .map_err(|source| self.sqlite("counting records", source))?;
        if last.is_none_or(|last| last.journal != self.identity || last.records != records) {
            let (run, at) = rows.last().map_or((RunId(0), 0), |row| (row.run, row.records.saturating_sub(1)));
            let place = Last { journal: self.identity, records, run, at };
            let written = self.tail.as_mut().map_or(Ok(()), |tail| tail.replace(&place));
            written.map_err(|source| self.tail_error("writing", source))?;
        }
        Ok(())
    }

    /// Replaces a summary that does not agree with the records.
    fn check_summary(&self, row: &RunRow, right: &Summary) -> Result<(), StoreError> {
        if row.summary == *right {
            return Ok(());
        }
        tracing::warn!(run = %row.run, "the run's summary did not match its records; it is computed again");
        let sql = "UPDATE run SET summary = ? WHERE run = ?";
        let updated = self.connection.execute(sql, params![right.to_json(), sql_id(row.run)]);
        updated.map(drop).map_err(|source| self.sqlite("correcting a summary", source))
    }

    fn find(&mut self, run: RunId, reason: &str) -> Result<(), StoreError> {
        self.stop_damaged(run, reason)?;
        self.findings.push(Finding { run, reason: reason.to_owned() });
        Ok(())
    }

    fn sqlite(&self, attempt: &'static str, source: rusqlite::Error) -> StoreError {
        sqlite_error(&self.path, attempt, source)
    }

    fn tail_error(&self, attempt: &'static str, source: std::io::Error) -> StoreError {
        StoreError::Io { attempt, path: self.path.with_file_name(tail::FILE), source }
    }
}

impl Store for SqliteStore {
    fn append(&mut self, run: RunId, entries: &[Entry], round: u32, traffic: Traffic) -> Result<(), StoreError> {
        let path = &self.path;
        let sqlite = |source| sqlite_error(path, "adding records", source);
        let transaction = self.connection.transaction().map_err(sqlite)?;
        let (records, next) = append(&transaction, run, entries, round, traffic).map_err(sqlite)?;
        commit(transaction).map_err(sqlite)?;
        if let (Some(tail), Some(at)) = (&mut self.tail, next.checked_sub(1))
            && !entries.is_empty()
        {
            let written = tail.write(&Last { journal: self.identity, records, run, at });
            return written.map_err(|source| self.tail_error("writing", source));
        }
        Ok(())
    }

    fn runs(&self) -> Result<Vec<RunRow>, StoreError> {
        let sql = "SELECT run.run, records, damage, summary, coalesce(sum(up), 0), coalesce(sum(down), 0)
                   FROM run LEFT JOIN traffic USING (run) GROUP BY run.run ORDER BY number";
        let rows = self.connection.prepare_cached(sql).and_then(|mut statement| {
            let rows = statement.query_map([], run_row)?;
            rows.collect()
        });
        rows.map_err(|source| self.sqlite("listing runs", source))
    }

    fn entries(&self, run: RunId) -> Result<Vec<Entry>, StoreError> {
        let entries = self.journal(run)?.into_iter().zip(0..);
        entries
            .map(|(entry, at)| Entry::try_from(entry).map_err(|source| StoreError::Record { run, at, source }))
            .collect()
    }

    fn traffic(&self, run: RunId) -> Result<BTreeMap<u32, Traffic>, StoreError> {
        let sql = "SELECT round, up, down FROM traffic WHERE run = ?";
        let rows = self.connection.prepare_cached(sql).and_then(|mut statement| {
            let rows = statement.query_map([sql_id(run)], |row| Ok((row.get(0)?, traffic_of(row, 1)?)))?;
            rows.collect()
        });
        rows.map_err(|source| self.sqlite("reading traffic", source))
    }

    fn stop_damaged(&mut self, run: RunId, reason: &str) -> Result<(), StoreError> {
        let stop = || -> Result<(), rusqlite::Error> {
            let transaction = self.connection.unchecked_transaction()?;
            let (_, mut summary) = known(&transaction, run)?;
            summary.stop(reason);
            transaction.execute(
                "UPDATE run SET damage = ?, summary = ? WHERE run = ?",
                params![reason, summary.to_json(), sql_id(run)],
            )?;
            commit(transaction)
        };
        stop().map_err(|source| self.sqlite("stopping a damaged run", source))
    }

    fn delete(&mut self, run: RunId) -> Result<(), StoreError> {
        let delete = || -> Result<(), rusqlite::Error> {
            let transaction = self.connection.unchecked_transaction()?;
            for table in ["record", "traffic", "run"] {
                transaction.execute(&format!("DELETE FROM {table} WHERE run = ?"), [sql_id(run)])?;
            }
            commit(transaction)
        };
        delete().map_err(|source| self.sqlite("deleting a run", source))
    }

    fn add_removal(&mut self, removal: &Removal) -> Result<(), StoreError> {
        removals::add(&self.connection, removal).map_err(|source| self.sqlite("adding a removal", source))
    }

    fn mark_cleared(&mut self, device: &DeviceId, at_ms: u64) -> Result<(), StoreError> {
        removals::mark(&self.connection, Mark::Cleared, device, at_ms)
            .map_err(|source| self.sqlite("changing a removal", source))
    }

    fn mark_returned(&mut self, device: &DeviceId, at_ms: u64) -> Result<(), StoreError> {
        removals::mark(&self.connection, Mark::Returned, device, at_ms)
            .map_err(|source| self.sqlite("changing a removal", source))
    }

    fn removals(&self) -> Result<Vec<Removal>, StoreError> {
        removals::list(&self.connection).map_err(|source| self.sqlite("reading removals", source))
    }

    fn kept(&self) -> Result<BTreeSet<Digest>, StoreError> {
        let sql = "SELECT unhex(summary ->> '$.last.weights') FROM run WHERE json_valid(summary) UNION
                   SELECT unhex(summary ->> '$.best.weights') FROM run WHERE json_valid(summary) UNION
                   SELECT digest FROM named JOIN run USING (run) WHERE damage IS NOT NULL";
        let rows: Result<Vec<Option<[u8; 32]>>, _> = self.connection.prepare_cached(sql).and_then(|mut statement| {
            let rows = statement.query_map([], |row| row.get(0))?;
            rows.collect()
        });
        let rows = rows.map_err(|source| self.sqlite("looking for weights", source))?;
        Ok(rows.into_iter().flatten().map(Digest).collect())
    }

    fn is_named(&self, blob: Digest) -> Result<bool, StoreError> {
        Ok(self.name_of(blob)?.is_some())
    }

    fn findings(&self) -> &[Finding] {
        &self.findings
    }
}

pub(super) fn commit(transaction: Transaction<'_>) -> Result<(), rusqlite::Error> {
    #[cfg(test)]
    super::kills::pass("before a commit");
    transaction.commit()?;
    #[cfg(test)]
    super::kills::pass_commit();
    Ok(())
}

fn random_identity() -> [u8; 16] {
    let mut identity = [0; 16];
    getrandom::fill(&mut identity).expect("the system has random numbers");
    identity
}

pub(super) fn hex(identity: [u8; 16]) -> String {
    format!("{:032x}", u128::from_be_bytes(identity))
}

#[cfg(test)]
impl SqliteStore {
    pub(super) fn pragma(&self, name: &str) -> rusqlite::types::Value {
        let value = self.connection.pragma_query_value(None, name, |row| row.get(0));
        value.unwrap_or(rusqlite::types::Value::Null)
    }
}
