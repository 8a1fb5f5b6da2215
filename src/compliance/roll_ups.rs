//! The file with the sums of whole days.

use std::ops::Range;
use std::path::Path;
use std::time::Duration;

use frostline_core::accounting::{Account, Terms, UnitAccount};
use frostline_core::model::{Kind, Name, Timestamp, UnitKey};
use rusqlite::types::FromSqlError;
use rusqlite::{Connection, ErrorCode, OpenFlags, OptionalExtension, Row, Transaction, params};

use super::UnitSums;

/// The file's name in the data directory.
const FILE_NAME: &str = "compliance.db";

/// The version of the tables, kept as SQLite's `user_version`.
const FORMAT: i64 = 1;

/// How long a statement waits for another connection before it gives up.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);

const TABLES: &str = "
    -- Days before this instant are closed: readings that come for them leave marks.
    CREATE TABLE closed (until_ms INTEGER NOT NULL);
    INSERT INTO closed VALUES (-9223372036854775808);

    -- Which days of a unit are summed up, by which terms, and how far the journal had been read.
    CREATE TABLE unit (
        id              INTEGER PRIMARY KEY,
        operator        TEXT NOT NULL,
        unit            TEXT NOT NULL,
        terms           TEXT NOT NULL,
        next_offset     INTEGER NOT NULL,
        first_day       INTEGER NOT NULL,
        end_day         INTEGER NOT NULL,
        UNIQUE (operator, unit)
    ) STRICT;

    -- A summed day without a row has no time on duty.
    CREATE TABLE unit_day (
        unit            INTEGER NOT NULL,
        day             INTEGER NOT NULL,
        category        TEXT NOT NULL,
        compliant_ms    INTEGER NOT NULL,
        excursion_ms    INTEGER NOT NULL,
        unmonitored_ms  INTEGER NOT NULL,
        PRIMARY KEY (unit, day, category)
    ) STRICT, WITHOUT ROWID;
    CREATE TABLE series_day (
        unit            INTEGER NOT NULL,
        day             INTEGER NOT NULL,
        sensor          TEXT NOT NULL,
        kind            INTEGER NOT NULL,
        compliant_ms    INTEGER NOT NULL,
        excursion_ms    INTEGER NOT NULL,
        unmonitored_ms  INTEGER NOT NULL,
        PRIMARY KEY (unit, day, sensor, kind)
    ) STRICT, WITHOUT ROWID;
";

/// Why the sums cannot be used, by what the caller does next.
#[derive(Debug, thiserror::Error)]
pub enum RollUpError {
    /// The disk is full or the file is held: try again later.
    #[error("the sums of days cannot be used for now")]
    Unavailable(#[source] rusqlite::Error),
    /// The file was written by another version: delete it, and the sums are made again.
    #[error("{FILE_NAME} has format {found}; this program reads format {FORMAT}; the file may be deleted")]
    Format {
        /// The format found in the file.
        found: i64,
    },
    /// The file is of no use and cannot be renamed: look after the directory.
    #[error("{FILE_NAME} cannot be set aside")]
    Stuck(#[source] std::io::Error),
    /// The file is damaged, or its disk: the file may be deleted.
    #[error("the sums of days have failed; {FILE_NAME} may be deleted")]
    Failed(#[source] rusqlite::Error),
}

impl From<rusqlite::Error> for RollUpError {
    fn from(error: rusqlite::Error) -> Self {
        match error.sqlite_error_code() {
            Some(ErrorCode::DiskFull | ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => Self::Unavailable(error),
            _ => Self::Failed(error),
        }
    }
}

/// The sums of whole days.
#[derive(Debug)]
pub struct RollUps {
    connection: Connection,
}

/// Which days of a unit are summed up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Summed {
    /// Its number in the file.
    pub(crate) id: i64,
    /// The fingerprint of the terms.
    pub(crate) terms: String,
    /// Readings of journal entries before this one are in the sums.
    pub(crate) next_offset: u64,
    /// The days; there was no reading before them.
    pub(crate) days: Range<i64>,
}

/// The sums of one unit, made anew from one day on.
#[derive(Debug)]
pub(crate) struct NewSums<'a> {
    pub(crate) key: &'a UnitKey,
    pub(crate) terms: &'a Terms,
    pub(crate) fingerprint: String,
    pub(crate) next_offset: u64,
    pub(crate) days: Range<i64>,
    pub(crate) accounts: Vec<(i64, UnitAccount)>,
}

impl RollUps {
    /// Opens the file in `data_dir` for the one who writes it, and makes it where there is none.
    pub fn open(data_dir: &Path) -> Result<Self, RollUpError> {
        let mut connection = Connection::open(data_dir.join(FILE_NAME))?;
        connection.busy_timeout(BUSY_TIMEOUT)?;
        connection.pragma_update(None, "journal_mode", "wal")?;
        // A power cut may take sums back, which are then made again; closing days is forced by its own order.
        connection.pragma_update(None, "synchronous", "full")?;
        let transaction = connection.transaction_with_behavior(rusqlite::TransactionBehavior::Immediate)?;
        let tables: i64 = transaction.query_row("SELECT count(*) FROM sqlite_master", [], |row| row.get(0))?;
        if tables == 0 {
            transaction.execute_batch(TABLES)?;
            transaction.pragma_update(None, "user_version", FORMAT)?;
        }
        transaction.commit()?;
        Self::checked(connection)
    }

    /// Gives the file in `data_dir` another name, so that a new one is made.
    pub(crate) fn set_aside(data_dir: &Path) -> Result<(), RollUpError> {
        for suffix in ["", "-wal", "-shm"] {
            let file = data_dir.join(format!("{FILE_NAME}{suffix}"));
            match std::fs::rename(&file, data_dir.join(format!("{FILE_NAME}.unusable{suffix}"))) {
                Ok(()) => {}
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
                Err(error) => return Err(RollUpError::Stuck(error)),
            }
        }
        Ok(())
    }

    /// Opens the file in `data_dir` for reading, if there is one.
    pub fn open_reader(data_dir: &Path) -> Result<Option<Self>, RollUpError> {
        let path = data_dir.join(FILE_NAME);
        if !path.exists() {
            return Ok(None);
        }
        let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let connection = Connection::open_with_flags(path, flags)?;
        connection.busy_timeout(BUSY_TIMEOUT)?;
        Self::checked(connection).map(Some)
    }

    fn checked(connection: Connection) -> Result<Self, RollUpError> {
        match connection.pragma_query_value(None, "user_version", |row| row.get(0))? {
            FORMAT => Ok(Self { connection }),
            found => Err(RollUpError::Format { found }),
        }
    }

    /// Returns the instant before which days are closed; none is where it is the beginning of time.
    pub fn closed_until(&self) -> Result<Timestamp, RollUpError> {
        let until_ms = self.connection.query_row("SELECT until_ms FROM closed", [], |row| row.get(0))?;
        Ok(Timestamp::from_millis(until_ms))
    }

    /// Closes the days before an instant for good.
    pub(crate) fn close_until(&self, until: Timestamp) -> Result<(), RollUpError> {
        self.connection.execute("UPDATE closed SET until_ms = max(until_ms, ?1)", [until.as_millis()])?;
        Ok(())
    }

    /// Begins to read: everything read until `read` is dropped is of one moment.
    pub(crate) fn read(&mut self) -> Result<RollUpsRead<'_>, RollUpError> {
        Ok(RollUpsRead { transaction: self.connection.transaction()? })
    }

    /// Writes the sums of some units, all or none.
    pub(crate) fn put(&mut self, units: &[NewSums<'_>]) -> Result<(), RollUpError> {
        let transaction = self.connection.transaction_with_behavior(rusqlite::TransactionBehavior::Immediate)?;
        for sums in units {
            put_unit(&transaction, sums)?;
        }
        Ok(transaction.commit()?)
    }
}

/// The sums as of one moment.
pub(crate) struct RollUpsRead<'a> {
    transaction: Transaction<'a>,
}

impl RollUpsRead<'_> {
    /// Returns the units that anything is summed up of.
    pub(crate) fn units(&self) -> Result<Vec<UnitKey>, RollUpError> {
        let mut statement = self.transaction.prepare_cached("SELECT operator, unit FROM unit")?;
        let mut rows = statement.query([])?;
        let mut units = Vec::new();
        while let Some(row) = rows.next()? {
            let name = |column| -> rusqlite::Result<Name> {
                let text = row.get_ref(column)?.as_str()?;
                Name::new(text).map_err(|error| FromSqlError::other(error).into())
            };
            units.push(UnitKey { operator: name(0)?, unit: name(1)? });
        }
        Ok(units)
    }

    /// Returns which days of a unit are summed up.
    pub(crate) fn summed(&self, unit: &UnitKey) -> Result<Option<Summed>, RollUpError> {
        let select = "SELECT id, terms, next_offset, first_day, end_day FROM unit WHERE operator = ?1 AND unit = ?2";
        let mut statement = self.transaction.prepare_cached(select)?;
        let summed = statement.query_row(params![unit.operator.as_str(), unit.unit.as_str()], |row| {
            let next_offset = row.get::<_, i64>(2)? as u64;
            Ok(Summed { id: row.get(0)?, terms: row.get(1)?, next_offset, days: row.get(3)?..row.get(4)? })
        });
        Ok(summed.optional()?)
    }

    /// Adds the sums of some days of a unit, of its series too where that is asked for.
    pub(crate) fn add_days(
        &self,
        summed: &Summed,
        days: &Range<i64>,
        with_series: bool,
        sums: &mut UnitSums,
    ) -> Result<(), RollUpError> {
        let select = "SELECT category, sum(compliant_ms), sum(excursion_ms), sum(unmonitored_ms) FROM unit_day \
                      WHERE unit = ?1 AND day >= ?2 AND day < ?3 GROUP BY category";
        let mut statement = self.transaction.prepare_cached(select)?;
        let mut rows = statement.query(params![summed.id, days.start, days.end])?;
        while let Some(row) = rows.next()? {
            let category = row.get_ref(0)?.as_str().map_err(rusqlite::Error::from)?;
            *sums.by_category.entry(category.into()).or_default() += account(row, 1)?;
        }
        if !with_series {
            return Ok(());
        }
        let select = "SELECT sensor, kind, sum(compliant_ms), sum(excursion_ms), sum(unmonitored_ms) FROM series_day \
                      WHERE unit = ?1 AND day >= ?2 AND day < ?3 GROUP BY sensor, kind";
        let mut statement = self.transaction.prepare_cached(select)?;
        let mut rows = statement.query(params![summed.id, days.start, days.end])?;
        while let Some(row) = rows.next()? {
            let sensor = row.get_ref(0)?.as_str().map_err(rusqlite::Error::from)?;
            let code: u8 = row.get(1)?;
            let kind = Kind::from_code(code).ok_or(rusqlite::Error::IntegralValueOutOfRange(1, code.into()))?;
            *sums.by_series.entry((sensor.into(), kind)).or_default() += account(row, 2)?;
        }
        Ok(())
    }
}

fn account(row: &Row<'_>, column: usize) -> rusqlite::Result<Account> {
    let (compliant_ms, excursion_ms) = (row.get(column)?, row.get(column + 1)?);
    Ok(Account { compliant_ms, excursion_ms, unmonitored_ms: row.get(column + 2)? })
}

fn put_unit(transaction: &Transaction<'_>, sums: &NewSums<'_>) -> Result<(), RollUpError> {
    let upsert = "INSERT INTO unit (operator, unit, terms, next_offset, first_day, end_day) \
                  VALUES (?1, ?2, ?3, ?4, ?5, ?6) \
                  ON CONFLICT DO UPDATE SET terms = excluded.terms, next_offset = excluded.next_offset, \
                  first_day = min(first_day, excluded.first_day), end_day = excluded.end_day RETURNING id";
    let (operator, unit) = (sums.key.operator.as_str(), sums.key.unit.as_str());
    let days = &sums.days;
    let id: i64 = transaction
        .prepare_cached(upsert)?
        .query_row(params![operator, unit, sums.fingerprint, sums.next_offset as i64, days.start, days.end], |row| {
            row.get(0)
        })?;
    for table in ["unit_day", "series_day"] {
        let delete = format!("DELETE FROM {table} WHERE unit = ?1 AND day >= ?2");
        transaction.prepare_cached(&delete)?.execute(params![id, days.start])?;
    }
    let mut unit_day = transaction.prepare_cached("INSERT INTO unit_day VALUES (?1, ?2, ?3, ?4, ?5, ?6)")?;
    let mut series_day = transaction.prepare_cached("INSERT INTO series_day VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)")?;
    for (day, accounts) in &sums.accounts {
        for (category, Account { compliant_ms, excursion_ms, unmonitored_ms }) in &accounts.by_category {
            unit_day.execute(params![id, day, &**category, compliant_ms, excursion_ms, unmonitored_ms])?;
        }
        for ((sensor, kind), account) in sums.terms.series().zip(&accounts.series) {
            let Account { compliant_ms, excursion_ms, unmonitored_ms } = account;
            if account.on_duty_ms() > 0 {
                let kind = kind as u8;
                series_day.execute(params![id, day, sensor, kind, compliant_ms, excursion_ms, unmonitored_ms])?;
            }
        }
    }
    Ok(())
}
