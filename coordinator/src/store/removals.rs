//! The table of devices that operators removed from the fleet. Rows are added and marked, but never removed.

use super::sqlite::commit;
use rusqlite::types::Type;
use rusqlite::{Connection, Row, params};
use skiff_api::removal::Removal;
use skiff_protocol::DeviceId;

/// A later fact about a removal.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Mark {
    /// The broker removed the device's retained message.
    Cleared,
    /// The device joined again.
    Returned,
}

/// Adds a removal.
pub(super) fn add(connection: &Connection, removal: &Removal) -> Result<(), rusqlite::Error> {
    let Removal { device, boot, at_ms, by, reason, was_online, cleared_ms, returned_ms } = removal;
    let signed = |number: &Option<u64>| number.map(u64::cast_signed);
    let transaction = connection.unchecked_transaction()?;
    transaction.execute(
        "INSERT INTO removal (device, boot, at_ms, by, reason, was_online, cleared_ms, returned_ms)
         VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
        params![
            device.as_str(),
            signed(boot),
            at_ms.cast_signed(),
            by,
            reason,
            was_online,
            signed(cleared_ms),
            signed(returned_ms)
        ],
    )?;
    commit(transaction)
}

/// Marks the removals of a device that do not have the mark yet.
pub(super) fn mark(connection: &Connection, mark: Mark, device: &DeviceId, at_ms: u64) -> Result<(), rusqlite::Error> {
    let column = match mark {
        Mark::Cleared => "cleared_ms",
        Mark::Returned => "returned_ms",
    };
    let transaction = connection.unchecked_transaction()?;
    let sql = format!("UPDATE removal SET {column} = ? WHERE device = ? AND {column} IS NULL");
    transaction.execute(&sql, params![at_ms.cast_signed(), device.as_str()])?;
    commit(transaction)
}

/// Returns all removals, oldest first.
pub(super) fn list(connection: &Connection) -> Result<Vec<Removal>, rusqlite::Error> {
    let sql =
        "SELECT device, boot, at_ms, by, reason, was_online, cleared_ms, returned_ms FROM removal ORDER BY number";
    let mut statement = connection.prepare_cached(sql)?;
    let rows = statement.query_map([], removal)?;
    rows.collect()
}

fn removal(row: &Row<'_>) -> Result<Removal, rusqlite::Error> {
    let unsigned = |number: Option<i64>| number.map(i64::cast_unsigned);
    let device: String = row.get(0)?;
    let unreadable = |error| rusqlite::Error::FromSqlConversionFailure(0, Type::Text, Box::new(error));
    Ok(Removal {
        device: device.parse().map_err(unreadable)?,
        boot: unsigned(row.get(1)?),
        at_ms: row.get(2).map(i64::cast_unsigned)?,
        by: row.get(3)?,
        reason: row.get(4)?,
        was_online: row.get(5)?,
        cleared_ms: unsigned(row.get(6)?),
        returned_ms: unsigned(row.get(7)?),
    })
}
