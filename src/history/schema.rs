use std::path::Path;
use std::time::Duration;

use rusqlite::{Connection, OpenFlags};

use super::HistoryError;

/// The version of the tables, kept as SQLite's `user_version`.
const FORMAT: i64 = 2;

/// How long a statement waits for another process before it gives up.
const BUSY_TIMEOUT: Duration = Duration::from_millis(500);

/// Blocks lie in the order of writing, densely; only the small indexes are touched at random.
const TABLES: &str = "
    CREATE TABLE series (
        id INTEGER PRIMARY KEY,
        operator TEXT NOT NULL,
        unit TEXT NOT NULL,
        sensor TEXT NOT NULL,
        kind INTEGER NOT NULL,
        UNIQUE (operator, unit, sensor, kind)
    );
    CREATE TABLE block (
        id INTEGER PRIMARY KEY,
        series INTEGER NOT NULL,
        start_ms INTEGER NOT NULL,
        end_ms INTEGER NOT NULL,
        readings INTEGER NOT NULL,
        data BLOB NOT NULL
    );
    CREATE UNIQUE INDEX block_series ON block (series, start_ms);
    CREATE INDEX block_end ON block (end_ms);
    CREATE TABLE recent (
        number INTEGER PRIMARY KEY,
        readings INTEGER NOT NULL,
        data BLOB NOT NULL
    );
    CREATE TABLE cursor (value INTEGER NOT NULL);
    INSERT INTO cursor VALUES (0);
";

/// Makes the file where there is none, or where a crash left one without tables.
///
/// # Errors
/// The file cannot be made, or is something else.
pub fn make(path: &Path) -> Result<(), HistoryError> {
    open_writer(path).map(drop)
}

/// Opens the file for the one writer, and makes it where there is none.
pub(crate) fn open_writer(path: &Path) -> Result<Connection, HistoryError> {
    let mut connection = Connection::open(path)?;
    connection.busy_timeout(BUSY_TIMEOUT)?;
    connection.pragma_update(None, "journal_mode", "wal")?;
    connection.pragma_update(None, "synchronous", "full")?;
    // Pages of the indexes are rewritten in the log many times before they go to the file once.
    connection.pragma_update(None, "wal_autocheckpoint", 4_000)?;
    connection.pragma_update(None, "cache_size", -16_384)?;
    let transaction = connection.transaction_with_behavior(rusqlite::TransactionBehavior::Immediate)?;
    if format(&transaction)? == 0 && tables(&transaction)? == 0 {
        transaction.execute_batch(TABLES)?;
        transaction.execute_batch(super::snapshot::TABLES)?;
        transaction.pragma_update(None, "user_version", FORMAT)?;
    }
    check_format(&transaction)?;
    transaction.commit()?;
    Ok(connection)
}

/// Opens the file for reading only, also while a writer is at work.
pub(crate) fn open_reader(path: &Path) -> Result<Connection, HistoryError> {
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(path, flags)?;
    connection.busy_timeout(BUSY_TIMEOUT)?;
    check_format(&connection)?;
    Ok(connection)
}

fn check_format(connection: &Connection) -> Result<(), HistoryError> {
    match format(connection)? {
        FORMAT => Ok(()),
        found => Err(HistoryError::Format { found, expected: FORMAT }),
    }
}

fn format(connection: &Connection) -> rusqlite::Result<i64> {
    connection.pragma_query_value(None, "user_version", |row| row.get(0))
}

fn tables(connection: &Connection) -> rusqlite::Result<i64> {
    connection.query_row("SELECT count(*) FROM sqlite_master", [], |row| row.get(0))
}
