use std::collections::HashMap;
use std::path::Path;

use foldhash::fast::FixedState;
use frostline_core::model::{Kind, Name, Reading, SeriesKey, Timestamp, UnitKey};
use rusqlite::{Connection, OptionalExtension, Row, params};

use super::log::{LogEntry, decompress_log, read_log};
use super::{HistoryError, block, schema};

/// Reads the history beside the daemon that writes it, or without one.
#[derive(Debug)]
pub struct HistoryReader {
    pub(super) connection: Connection,
}

/// The readings that are durable but not in blocks yet, of all series.
#[derive(Debug, Default)]
pub struct RecentReadings {
    /// By the id of the series; not sorted.
    by_series: HashMap<u32, Vec<Reading>, FixedState>,
}

/// The readings of one step of time.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Bucket {
    /// The start of the step, aligned since 1970.
    pub start: Timestamp,
    /// How many readings had a value.
    pub count: u32,
    /// How many said that the probe failed.
    pub failed: u32,
    /// The lowest value, if there was one; likewise the others.
    pub min: Option<f64>,
    /// The highest value.
    pub max: Option<f64>,
    /// The mean of the values, each counted once however long it held.
    pub mean: Option<f64>,
}

impl HistoryReader {
    /// Opens an existing history for reading.
    pub fn open(path: &Path) -> Result<Self, HistoryError> {
        Ok(Self { connection: schema::open_reader(path)? })
    }

    /// Shows the file from now on as it is now, whatever is committed meanwhile; the writer does not wait for it.
    ///
    /// What the writer's log holds cannot be folded into the file meanwhile, so this is for exports, not for pages.
    pub fn hold_still(&self) -> Result<(), HistoryError> {
        if !self.connection.is_autocommit() {
            self.connection.execute_batch("COMMIT")?;
        }
        self.connection.execute_batch("BEGIN")?;
        // Only the first look fixes what is seen.
        self.cursor()?;
        Ok(())
    }

    /// Returns the cursor of the last commit: every reading of the journal's entries before it is in the file.
    pub fn cursor(&self) -> Result<u64, HistoryError> {
        Ok(self.connection.query_row("SELECT value FROM cursor", [], |row| row.get(0))?)
    }

    /// Returns the series, of one operator or one unit where that is asked for, in their order.
    pub fn series(&self, operator: Option<&str>, unit: Option<&str>) -> Result<Vec<SeriesKey>, HistoryError> {
        let select = "SELECT id, operator, unit, sensor, kind FROM series \
                      WHERE (?1 IS NULL OR operator = ?1) AND (?2 IS NULL OR unit = ?2) \
                      ORDER BY operator, unit, sensor, kind";
        let mut statement = self.connection.prepare_cached(select)?;
        let mut rows = statement.query(params![operator, unit])?;
        let mut keys = vec![];
        while let Some(row) = rows.next()? {
            keys.push(series_key(row)?);
        }
        Ok(keys)
    }

    /// Returns the time of the oldest reading of a series that is in a block, if there is one.
    pub fn oldest(&self, key: &SeriesKey) -> Result<Option<Timestamp>, HistoryError> {
        let Some(id) = self.series_id(key)? else { return Ok(None) };
        let mut statement = self.connection.prepare_cached("SELECT min(start_ms) FROM block WHERE series = ?1")?;
        let start_ms: Option<i64> = statement.query_row([id], |row| row.get(0))?;
        Ok(start_ms.map(Timestamp::from_millis))
    }

    /// Returns the readings of `[from, to)` that are in blocks, oldest first; none where the series is unknown.
    pub fn read(&self, key: &SeriesKey, from: Timestamp, to: Timestamp) -> Result<Vec<Reading>, HistoryError> {
        match self.series_id(key)? {
            Some(id) if from < to => self.read_blocks(key, id, from, to),
            _ => Ok(vec![]),
        }
    }

    /// Returns the readings of `[from, to)`, in blocks and in `recent` (asked for before), oldest first.
    pub fn read_with(
        &self,
        recent: &RecentReadings,
        key: &SeriesKey,
        from: Timestamp,
        to: Timestamp,
    ) -> Result<Vec<Reading>, HistoryError> {
        let Some(id) = self.series_id(key)? else { return Ok(vec![]) };
        let mut newer = recent.by_series.get(&id).cloned().unwrap_or_default();
        newer.retain(|reading| (from..to).contains(&reading.event_time));
        newer.sort_by_key(|reading| reading.event_time);
        Ok(merge(self.read(key, from, to)?, newer))
    }

    /// Returns the readings of `[from, to)` that are in blocks, by steps of time.
    pub fn read_thinned(
        &self,
        key: &SeriesKey,
        from: Timestamp,
        to: Timestamp,
        step_ms: i64,
    ) -> Result<Vec<Bucket>, HistoryError> {
        Ok(thin(&self.read(key, from, to)?, step_ms))
    }

    /// Returns what is durable but not in blocks yet, of all series at once: for exports, not for pages.
    pub fn recent(&self) -> Result<RecentReadings, HistoryError> {
        let mut recent = RecentReadings::default();
        let mut statement = self.connection.prepare_cached("SELECT number, data FROM recent ORDER BY number")?;
        let mut rows = statement.query([])?;
        while let Some(row) = rows.next()? {
            let number: u32 = row.get(0)?;
            let log = decompress_log(number, &row.get::<_, Vec<u8>>(1)?)?;
            for entry in read_log(&log) {
                let LogEntry { series, reading, .. } =
                    entry.map_err(|damage| HistoryError::DamagedRecent { number, damage: damage.to_string() })?;
                recent.by_series.entry(series).or_default().push(reading);
            }
        }
        Ok(recent)
    }

    fn series_id(&self, key: &SeriesKey) -> Result<Option<u32>, HistoryError> {
        let select = "SELECT id FROM series WHERE operator = ?1 AND unit = ?2 AND sensor = ?3 AND kind = ?4";
        let (operator, unit) = (key.unit.operator.as_str(), key.unit.unit.as_str());
        let mut statement = self.connection.prepare_cached(select)?;
        Ok(statement.query_row(params![operator, unit, &*key.sensor, key.kind as u8], |row| row.get(0)).optional()?)
    }

    fn read_blocks(
        &self,
        key: &SeriesKey,
        id: u32,
        from: Timestamp,
        to: Timestamp,
    ) -> Result<Vec<Reading>, HistoryError> {
        // Blocks do not overlap: the last that starts at or before `from` is the first that can reach into the span.
        let select = "SELECT start_ms, data FROM block WHERE series = ?1 AND start_ms < ?3 AND start_ms >= \
                      coalesce((SELECT max(start_ms) FROM block WHERE series = ?1 AND start_ms <= ?2), ?2) \
                      ORDER BY start_ms";
        let mut statement = self.connection.prepare_cached(select)?;
        let mut rows = statement.query(params![id, from.as_millis(), to.as_millis()])?;
        let mut readings = vec![];
        while let Some(row) = rows.next()? {
            let data = row.get_ref(1)?.as_blob().map_err(rusqlite::Error::from)?;
            let decoded = block::decode(data);
            let start_ms = row.get(0)?;
            let damaged = |damage| {
                let unit = &key.unit;
                let series = format!("{}/{}/{}/{}", unit.operator, unit.unit, key.sensor, key.kind);
                HistoryError::damaged_block(series, start_ms, damage)
            };
            let within =
                decoded.map_err(damaged)?.into_iter().filter(|reading| (from..to).contains(&reading.event_time));
            readings.extend(within);
        }
        Ok(readings)
    }
}

fn series_key(row: &Row<'_>) -> Result<SeriesKey, HistoryError> {
    let id = row.get(0)?;
    let sensor = row.get_ref(3)?.as_str().map_err(rusqlite::Error::from)?.into();
    let kind = Kind::from_code(row.get(4)?).ok_or(HistoryError::DamagedSeries { id })?;
    Ok(SeriesKey { unit: unit_key(row)?, sensor, kind })
}

/// Reads the unit of a row that begins with a series' id, the operator and the unit.
pub(crate) fn unit_key(row: &Row<'_>) -> Result<UnitKey, HistoryError> {
    let id = row.get(0)?;
    let name = |column| -> Result<Name, HistoryError> {
        let text = row.get_ref(column)?.as_str().map_err(rusqlite::Error::from)?;
        Name::new(text).map_err(|_| HistoryError::DamagedSeries { id })
    };
    Ok(UnitKey { operator: name(1)?, unit: name(2)? })
}

/// Merges two lists, each oldest first; of two readings at one millisecond the first list's stays.
pub fn merge(mut first: Vec<Reading>, second: Vec<Reading>) -> Vec<Reading> {
    let is_after = match (first.last(), second.first()) {
        (Some(last), Some(next)) => last.event_time < next.event_time,
        _ => true,
    };
    first.extend(second);
    if !is_after {
        // A stable sort of two sorted runs is one pass that merges them.
        first.sort_by_key(|reading| reading.event_time);
        first.dedup_by_key(|reading| reading.event_time);
    }
    first
}

/// Returns readings (oldest first) by steps of time; steps without any are left out.
///
/// # Panics
///
/// Where `step_ms` is not positive.
pub fn thin(readings: &[Reading], step_ms: i64) -> Vec<Bucket> {
    assert!(step_ms > 0, "a step of {step_ms} ms");
    readings
        .chunk_by(|a, b| a.event_time.as_millis().div_euclid(step_ms) == b.event_time.as_millis().div_euclid(step_ms))
        .map(|readings| {
            let start_ms = readings[0].event_time.as_millis().div_euclid(step_ms).saturating_mul(step_ms);
            let values = || readings.iter().filter_map(|reading| reading.value);
            let count = values().count();
            Bucket {
                start: Timestamp::from_millis(start_ms),
                count: count as u32,
                failed: (readings.len() - count) as u32,
                min: values().reduce(f64::min),
                max: values().reduce(f64::max),
                mean: (count > 0).then(|| values().sum::<f64>() / count as f64),
            }
        })
        .collect()
}

/// How many blocks are read at once, at most, where a series is read piece by piece.
const PIECE_BLOCKS: usize = 64;

/// Reading everything, piece by piece.
impl HistoryReader {
    /// Returns `[from, to)` cut into spans of a bounded number of blocks of a series, for one read after the other.
    pub fn pieces(
        &self,
        key: &SeriesKey,
        from: Timestamp,
        to: Timestamp,
    ) -> Result<Vec<(Timestamp, Timestamp)>, HistoryError> {
        let mut bounds = vec![from];
        if let Some(id) = self.series_id(key)? {
            let select =
                "SELECT start_ms FROM block WHERE series = ?1 AND start_ms > ?2 AND start_ms < ?3 ORDER BY start_ms";
            let mut statement = self.connection.prepare_cached(select)?;
            let mut rows = statement.query(params![id, from.as_millis(), to.as_millis()])?;
            let mut blocks = 0;
            while let Some(row) = rows.next()? {
                blocks += 1;
                if blocks % PIECE_BLOCKS == 0 {
                    bounds.push(Timestamp::from_millis(row.get(0)?));
                }
            }
        }
        bounds.push(to);
        Ok(bounds.windows(2).map(|pair| (pair[0], pair[1])).collect())
    }
}
