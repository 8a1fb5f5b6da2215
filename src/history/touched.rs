//! Which days of which series changed after they had been summed up.
//!
//! Whoever sums up days (see [`crate::compliance`]) first *closes* them here. From then on a reading that falls into a
//! closed day leaves a mark: its series, its day, and the *generation*, which is the cursor of the commit that makes it
//! durable. A sum made when the journal stood at `next_offset` holds every reading of a generation up to that one.
//! Readings of open days, which is what nearly all are, cost one comparison and no mark.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};

use frostline_core::model::{Timestamp, UnitKey};
use rusqlite::{Connection, Transaction, params};

use super::reader::unit_key;
use super::{HistoryError, HistoryReader};

/// The length of a day, which here is always one of UTC.
pub const DAY_MS: i64 = 86_400_000;

/// The marks.
const TABLE: &str = "
    CREATE TABLE IF NOT EXISTS touched (
        generation INTEGER NOT NULL,
        series INTEGER NOT NULL,
        day INTEGER NOT NULL,
        PRIMARY KEY (generation, series)
    ) WITHOUT ROWID;
";

/// Returns the day, counted from 1970-01-01, that an instant falls into.
pub const fn day_of(at: Timestamp) -> i64 {
    at.as_millis().div_euclid(DAY_MS)
}

/// Returns the first instant of a day counted from 1970-01-01.
pub const fn day_start(day: i64) -> Timestamp {
    Timestamp::from_millis(day.saturating_mul(DAY_MS))
}

/// Up to which day somebody sums up, and which marks he has heeded; clones share it.
#[derive(Debug, Clone)]
pub struct ClosedDays {
    until_ms: Arc<AtomicI64>,
    heeded: Arc<AtomicU64>,
}

impl Default for ClosedDays {
    /// No day is closed.
    fn default() -> Self {
        Self { until_ms: Arc::new(AtomicI64::new(i64::MIN)), heeded: Arc::default() }
    }
}

impl ClosedDays {
    /// Closes the days before this instant: readings that fall into them leave marks from now on.
    pub fn close_until(&self, until: Timestamp) {
        self.until_ms.store(until.as_millis(), Ordering::SeqCst);
    }

    /// Says that no mark up to this generation is needed any more.
    pub fn heeded(&self, generation: u64) {
        self.heeded.store(generation, Ordering::SeqCst);
    }
}

/// The marks since the last commit.
#[derive(Debug, Default)]
pub(crate) struct Touched {
    closed: ClosedDays,
    /// The earliest closed day that a reading fell into, by series.
    days: BTreeMap<u32, i64>,
}

impl Touched {
    pub(crate) fn open(connection: &Connection, closed: ClosedDays) -> Result<Self, HistoryError> {
        connection.execute_batch(TABLE)?;
        Ok(Self { closed, days: BTreeMap::new() })
    }

    pub(crate) fn note(&mut self, series: u32, event_time: Timestamp) {
        if event_time.as_millis() < self.closed.until_ms.load(Ordering::SeqCst) {
            let day = day_of(event_time);
            self.days.entry(series).and_modify(|earliest| *earliest = day.min(*earliest)).or_insert(day);
        }
    }

    /// Returns the earliest closed day that a reading of the series has fallen into since the last commit.
    pub(crate) fn day(&self, series: u32) -> Option<i64> {
        self.days.get(&series).copied()
    }

    pub(crate) fn write(&self, transaction: &Transaction<'_>, generation: u64) -> rusqlite::Result<()> {
        let heeded = self.closed.heeded.load(Ordering::SeqCst) as i64;
        transaction.prepare_cached("DELETE FROM touched WHERE generation <= ?1")?.execute([heeded])?;
        let insert = "INSERT INTO touched (generation, series, day) VALUES (?1, ?2, ?3) \
                      ON CONFLICT DO UPDATE SET day = min(day, excluded.day)";
        let mut insert = transaction.prepare_cached(insert)?;
        for (series, day) in &self.days {
            insert.execute(params![generation as i64, series, day])?;
        }
        Ok(())
    }

    /// Forgets what a commit has written.
    pub(crate) fn clear(&mut self) {
        self.days.clear();
    }
}

/// The marks in the file, by unit: generation and day.
pub type TouchedDays = BTreeMap<UnitKey, Vec<(u64, i64)>>;

impl HistoryReader {
    /// Returns the closed days that readings have fallen into, of generations after this one.
    pub fn touched_after(&self, generation: u64) -> Result<TouchedDays, HistoryError> {
        let select = "SELECT id, operator, unit, generation, min(day) FROM touched JOIN series ON series.id = touched.series \
                      WHERE generation > ?1 GROUP BY operator, unit, generation";
        let mut statement = self.connection.prepare_cached(select)?;
        let mut rows = statement.query([generation as i64])?;
        let mut touched = TouchedDays::new();
        while let Some(row) = rows.next()? {
            let mark = (row.get::<_, i64>(3)? as u64, row.get(4)?);
            touched.entry(unit_key(row)?).or_default().push(mark);
        }
        Ok(touched)
    }
}
