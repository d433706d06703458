//! Migrates a journal from any layout since 4 to the newest one, in one transaction.
//!
//! A layout's number is the database's `user_version`. A step that reads records has a file with the types that it reads. These
//! types never change, so that the step keeps working when the engine's types change.
//!
//! | layout | since then |
//! |---|---|
//! | 5 | checksums, summaries, the names of blobs, the journal's identity |
//! | 6 | names of runs ([`journal::Record::NamedRunStarted`]; no stored record changes), removals of devices |

mod layout_4;

use super::StoreError;
use super::journal::{self, Entry};
use super::summary::Summary;
use super::tables::{LAYOUT, LAYOUT_5, LAYOUT_6, name_blobs, sql_id};
use rusqlite::{Transaction, params};
use skiff_protocol::RunId;

/// The oldest layout that can be migrated.
pub(super) const OLDEST: i64 = 4;

/// The oldest layout whose journal has an identity, with which its blobs are marked.
pub(super) const FIRST_WITH_IDENTITY: i64 = 5;

/// Result of a migration, whether it was kept or only tried.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Migrated {
    /// Layout before.
    pub from: i64,
    /// Layout after.
    pub to: i64,
    /// Number of runs.
    pub runs: u64,
    /// Number of records.
    pub records: u64,
    /// Runs with a record that could not be read; they are stopped.
    pub damaged: Vec<RunId>,
}

/// Applies every step from layout `found` on. The caller commits the transaction or rolls it back.
pub(super) fn migrate(transaction: &Transaction<'_>, found: i64, identity: &str) -> Result<Migrated, rusqlite::Error> {
    let damaged = if found < 5 { to_layout_5(transaction, identity)? } else { Vec::new() };
    if found < 6 {
        transaction.execute_batch(LAYOUT_6)?;
    }
    transaction.pragma_update(None, "user_version", LAYOUT)?;
    let count = |sql: &str| transaction.query_row(sql, [], |row| row.get(0).map(i64::cast_unsigned));
    let (runs, records) = (count("SELECT count(*) FROM run")?, count("SELECT count(*) FROM record")?);
    Ok(Migrated { from: found, to: LAYOUT, runs, records, damaged })
}

/// Adds checksums, summaries, the names of blobs, and the journal's identity.
fn to_layout_5(transaction: &Transaction<'_>, identity: &str) -> Result<Vec<RunId>, rusqlite::Error> {
    transaction.execute_batch(
        "ALTER TABLE journal RENAME TO old_journal; ALTER TABLE traffic RENAME TO old_traffic; ALTER TABLE run RENAME TO old_run;",
    )?;
    transaction.execute_batch(LAYOUT_5)?;
    let records: i64 = transaction.query_row("SELECT count(*) FROM old_journal", [], |row| row.get(0))?;
    transaction.execute("INSERT INTO state VALUES (1, ?, ?)", params![identity, records])?;
    let mut statement = transaction.prepare("SELECT run, number FROM old_run ORDER BY number")?;
    let runs: Vec<(i64, i64)> =
        statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?.collect::<Result<_, _>>()?;
    let mut damaged = Vec::new();
    for (sql_run, number) in runs {
        if run_to_layout_5(transaction, sql_run, number)? {
            damaged.push(RunId(sql_run.cast_unsigned()));
        }
    }
    transaction.execute_batch(
        "INSERT INTO traffic SELECT run, round, up, down FROM old_traffic;
         DROP TABLE old_traffic; DROP TABLE old_journal; DROP TABLE old_run;",
    )?;
    Ok(damaged)
}

/// Migrates a run. Returns true if one of its records could not be read; the bytes of such a record are copied unchanged.
fn run_to_layout_5(transaction: &Transaction<'_>, sql_run: i64, number: i64) -> Result<bool, rusqlite::Error> {
    let run = RunId(sql_run.cast_unsigned());
    transaction.execute("INSERT INTO run VALUES (?, ?, 0, NULL, '{}')", params![sql_run, number])?;
    let mut summary = Summary::default();
    let mut damage = None;
    let mut records = 0u64;
    let mut statement = transaction.prepare("SELECT at, entry FROM old_journal WHERE run = ? ORDER BY at")?;
    let mut rows = statement.query([sql_run])?;
    while let Some(row) = rows.next()? {
        let (at, bytes): (i64, Vec<u8>) = (row.get(0)?, row.get(1)?);
        let entry = if at == 0 { first(&bytes) } else { read(&bytes) };
        let (bytes, sum) = match &entry {
            Some(entry) => entry.encode(run, at.cast_unsigned()),
            None => (bytes.clone(), journal::checksum(run, at.cast_unsigned(), &bytes)),
        };
        transaction.execute("INSERT INTO record VALUES (?, ?, ?, ?)", params![sql_run, at, bytes, sum])?;
        if at != sql_id(RunId(records)) && damage.is_none() {
            damage = Some(format!("record {records} was missing when the journal was migrated from layout 4"));
        }
        if entry.is_none() && damage.is_none() {
            damage = Some(format!("record {at} could not be read when the journal was migrated from layout 4"));
        }
        if let (Some(entry), None) = (&entry, &damage) {
            name_blobs(transaction, sql_run, &summary, entry)?;
            summary.add(entry);
        }
        records += 1;
    }
    if let Some(damage) = &damage {
        summary.stop(damage);
    }
    let text = summary.to_json();
    transaction.execute(
        "UPDATE run SET records = ?, damage = ?, summary = ? WHERE run = ?",
        params![records.cast_signed(), damage, text, sql_run],
    )?;
    Ok(damage.is_some())
}

/// Reads layout 4's first record of a run.
fn first(bytes: &[u8]) -> Option<Entry> {
    let (layout_4::First { at_ms, record: layout_4::Record::RunStarted(start) }, []) =
        postcard::take_from_bytes(bytes).ok()?
    else {
        return None;
    };
    let layout_4::Start { run, settings, layers, pack, schema, weights } = start;
    let settings = serde_json::to_string(&settings).ok()?;
    let start = journal::Start { run, settings, layers, pack, schema, weights, task: None };
    Some(Entry { at_ms, record: journal::Record::RunStarted(start) })
}

/// Reads any other record of layout 4, which has the same bytes as in layout 5.
fn read(bytes: &[u8]) -> Option<Entry> {
    match postcard::take_from_bytes(bytes) {
        Ok((entry, [])) => Some(entry),
        Ok(_) | Err(_) => None,
    }
}

/// Refuses a layout from which no step leads to the newest.
pub(super) fn check(path: &std::path::Path, found: i64) -> Result<(), StoreError> {
    let path = || path.to_owned();
    match found {
        _ if found > LAYOUT => Err(StoreError::Newer { path: path(), found }),
        _ if found < OLDEST => Err(StoreError::TooOld { path: path(), found, oldest: OLDEST }),
        _ => Ok(()),
    }
}
