//! Tells the layout of a journal file without changing it.

use super::{StoreError, migrations};
use rusqlite::{Connection, ErrorCode};
use std::path::Path;

/// The letters `SKIF`, which distinguish a journal from any other SQLite file.
pub(super) const APPLICATION_ID: i64 = 0x534b_4946;

/// The layout of a file.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Layout {
    /// There is no file, or the file has no tables.
    Empty,
    /// The file has this layout, which this version reads or migrates.
    Number(i64),
}

impl Layout {
    /// Looks at a file without changing it.
    pub(super) fn of_file(path: &Path) -> Result<Self, StoreError> {
        if !path.is_file() {
            return Ok(Self::Empty);
        }
        let connection = connect(path)?;
        let sqlite = |source| sqlite_error(path, "opening", source);
        let is_empty = connection.query_row("SELECT count(*) = 0 FROM sqlite_schema", [], |row| row.get(0));
        if is_empty.map_err(sqlite)? {
            return Ok(Self::Empty);
        }
        let pragma = |name: &str| connection.pragma_query_value(None, name, |row| row.get::<_, i64>(0)).map_err(sqlite);
        let corrupt = |finding: String| StoreError::Corrupt { path: path.to_owned(), finding };
        if pragma("application_id")? != APPLICATION_ID {
            return Err(corrupt("it belongs to another program".into()));
        }
        let found = pragma("user_version")?;
        migrations::check(path, found)?;
        let finding: String = connection.query_row("PRAGMA quick_check(1)", [], |row| row.get(0)).map_err(sqlite)?;
        if finding == "ok" { Ok(Self::Number(found)) } else { Err(corrupt(finding)) }
    }
}

pub(super) fn connect(path: &Path) -> Result<Connection, StoreError> {
    Connection::open(path).map_err(|source| sqlite_error(path, "opening", source))
}

pub(super) fn sqlite_error(path: &Path, attempt: &'static str, source: rusqlite::Error) -> StoreError {
    let path = path.to_owned();
    match source.sqlite_error_code() {
        Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase) => {
            StoreError::Corrupt { path, finding: source.to_string() }
        }
        _ => StoreError::Sqlite { attempt, path, source },
    }
}
