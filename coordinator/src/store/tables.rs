//! The tables of the newest layout, and the rows in them.

use super::journal::{self, RecordFault};
use super::{RunRow, Summary, Traffic};
use crate::run::Entry;
use rusqlite::{Connection, OptionalExtension as _, Row, Transaction, params};
use skiff_protocol::RunId;

/// Number of the layout that this version writes.
pub const LAYOUT: i64 = 6;
/// SQL texts that create the tables of this layout: those of layout 5, and each later layout's own.
pub(super) const TABLES: [&str; 2] = [LAYOUT_5, LAYOUT_6];
/// SQL text that creates the tables of layout 5.
pub(super) const LAYOUT_5: &str = include_str!("migrations/layout_5.sql");
/// SQL text that creates the tables which layout 6 added.
pub(super) const LAYOUT_6: &str = include_str!("migrations/layout_6.sql");

/// Appends records. Returns the number of all records and the number of the run's records.
pub(super) fn append(
    transaction: &Transaction<'_>,
    run: RunId,
    entries: &[Entry],
    round: u32,
    traffic: Traffic,
) -> Result<(u64, u64), rusqlite::Error> {
    let (mut next, mut summary) = known(transaction, run)?;
    let sql_run = sql_id(run);
    for entry in entries.iter().map(journal::Entry::from) {
        let (bytes, checksum) = entry.encode(run, next);
        transaction.prepare_cached("INSERT INTO record VALUES (?, ?, ?, ?)")?.execute(params![
            sql_run,
            next.cast_signed(),
            bytes,
            checksum
        ])?;
        name_blobs(transaction, sql_run, &summary, &entry)?;
        summary.add(&entry);
        next += 1;
    }
    transaction.prepare_cached("UPDATE run SET records = ?, summary = ? WHERE run = ?")?.execute(params![
        next.cast_signed(),
        summary.to_json(),
        sql_run
    ])?;
    transaction
        .prepare_cached(
            "INSERT INTO traffic VALUES (?, ?, ?, ?)
             ON CONFLICT DO UPDATE SET up = up + excluded.up, down = down + excluded.down",
        )?
        .execute(params![sql_run, round, traffic.up.cast_signed(), traffic.down.cast_signed()])?;
    let records = transaction
        .prepare_cached("UPDATE state SET records = records + ? RETURNING records")?
        .query_row([entries.len() as i64], |row| row.get(0).map(i64::cast_unsigned))?;
    Ok((records, next))
}

/// Returns the number of a run's records and its summary. Creates the run if it does not exist.
pub(super) fn known(transaction: &Transaction<'_>, run: RunId) -> Result<(u64, Summary), rusqlite::Error> {
    transaction
        .prepare_cached(
            "INSERT INTO run SELECT ?1, coalesce(max(number) + 1, 0), 0, NULL, '{}' FROM run WHERE true
             ON CONFLICT (run) DO NOTHING",
        )?
        .execute([sql_id(run)])?;
    transaction.prepare_cached("SELECT records, summary FROM run WHERE run = ?")?.query_row([sql_id(run)], |row| {
        Ok((row.get(0).map(i64::cast_unsigned)?, Summary::from_json(&row.get::<_, String>(1)?)))
    })
}

/// Adds the blobs that a record names; `summary` covers the records before it.
pub(super) fn name_blobs(
    transaction: &Transaction<'_>,
    sql_run: i64,
    summary: &Summary,
    entry: &journal::Entry,
) -> Result<(), rusqlite::Error> {
    for (digest, kind) in entry.names() {
        let round = if kind == journal::Kind::Initial { 0 } else { summary.closed + 1 };
        transaction.prepare_cached("INSERT OR IGNORE INTO named VALUES (?, ?, ?, ?)")?.execute(params![
            digest.0,
            sql_run,
            kind.word(),
            round
        ])?;
    }
    Ok(())
}

type RunRead = Result<Vec<journal::Entry>, (u64, RecordFault)>;

pub(super) fn read_run(connection: &Connection, run: RunId) -> Result<RunRead, rusqlite::Error> {
    let expected: Option<i64> = connection
        .prepare_cached("SELECT records FROM run WHERE run = ?")?
        .query_row([sql_id(run)], |row| row.get(0))
        .optional()?;
    let mut statement =
        connection.prepare_cached("SELECT at, entry, checksum FROM record WHERE run = ? ORDER BY at")?;
    let mut rows = statement.query([sql_id(run)])?;
    let mut entries = Vec::new();
    while let Some(row) = rows.next()? {
        let next = entries.len() as u64;
        let (at, bytes, checksum): (i64, Vec<u8>, Vec<u8>) = (row.get(0)?, row.get(1)?, row.get(2)?);
        if at.cast_unsigned() != next {
            return Ok(Err((next, RecordFault::Missing)));
        }
        match journal::Entry::decode(run, next, &bytes, &checksum) {
            Ok(entry) => entries.push(entry),
            Err(fault) => return Ok(Err((next, fault))),
        }
    }
    let found = entries.len() as u64;
    let is_complete = expected.is_none_or(|expected| expected.cast_unsigned() == found);
    Ok(if is_complete { Ok(entries) } else { Err((found, RecordFault::Missing)) })
}

/// Reads a run's first record; `None` if it is missing or damaged.
pub(super) fn first_record(connection: &Connection, run: RunId) -> Result<Option<journal::Entry>, rusqlite::Error> {
    let mut statement = connection.prepare_cached("SELECT entry, checksum FROM record WHERE run = ? AND at = 0")?;
    let row = statement.query_row([sql_id(run)], |row| Ok((row.get::<_, Vec<u8>>(0)?, row.get::<_, Vec<u8>>(1)?)));
    Ok(row.optional()?.and_then(|(bytes, checksum)| journal::Entry::decode(run, 0, &bytes, &checksum).ok()))
}

pub(super) fn run_row(row: &Row<'_>) -> Result<RunRow, rusqlite::Error> {
    Ok(RunRow {
        run: run_id(row.get(0)?),
        records: row.get(1).map(i64::cast_unsigned)?,
        damage: row.get(2)?,
        summary: Summary::from_json(&row.get::<_, String>(3)?),
        traffic: traffic_of(row, 4)?,
    })
}

pub(super) fn traffic_of(row: &Row<'_>, from: usize) -> Result<Traffic, rusqlite::Error> {
    let bytes = |at| row.get(at).map(i64::cast_unsigned);
    Ok(Traffic { up: bytes(from)?, down: bytes(from + 1)? })
}

pub(super) fn sql_id(run: RunId) -> i64 {
    run.0.cast_signed()
}

pub(super) fn run_id(sql: i64) -> RunId {
    RunId(sql.cast_unsigned())
}
