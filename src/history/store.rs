use std::collections::{BTreeMap, HashMap, VecDeque};
use std::path::Path;

use foldhash::fast::FixedState;
use frostline_core::model::{Kind, Quality, Reading, SeriesKey, Timestamp};
use rusqlite::{Connection, OptionalExtension, Transaction, TransactionBehavior, params};

use super::block::{self, Damage, OpenBlock, SealedBlock};
use super::log::{LogEntry, LogWriter, decompress_log, read_log};
use super::snapshot::{self, Snapshot};
use super::touched::{ClosedDays, Touched};
use super::{HistoryError, HistoryMetrics, schema};

/// How many series have the block that was last asked for kept in memory, still encoded (about 800 bytes each).
const CACHED_SERIES_MAX: usize = 4_096;
/// How many blocks one call of [`History::expire`] deletes at most.
const EXPIRE_BLOCKS_MAX: usize = 2_000;
/// The rows of `recent` may hold this many times what is really open before slow series are sealed early. Twice is what
/// series that all report equally often come to.
const RECENT_PER_OPEN_MAX: u64 = 3;

/// How the history trades size against memory; the defaults are for production.
#[derive(Debug, Clone)]
pub struct HistoryOptions {
    /// A block is sealed when it holds this many readings.
    pub block_readings: usize,
    /// Late readings of a series are merged into its blocks when there are this many.
    pub late_readings: usize,
    /// Readings that the rows of `recent` may hold beyond three times those in open blocks.
    pub spare_recent_readings: u64,
    /// In which days a reading leaves a mark.
    pub closed_days: ClosedDays,
    /// Where the history counts.
    pub metrics: HistoryMetrics,
}

impl Default for HistoryOptions {
    fn default() -> Self {
        Self {
            block_readings: 240,
            late_readings: 512,
            spare_recent_readings: 100_000,
            closed_days: ClosedDays::default(),
            metrics: HistoryMetrics::default(),
        }
    }
}

type SeriesIds = HashMap<Box<[u8]>, u32, FixedState>;

/// A series within one open [`History`]; another opening may give it another number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HistorySeriesId(u32);

/// The local series store, as its one writer sees it.
#[derive(Debug)]
pub struct History {
    pub(super) connection: Connection,
    options: HistoryOptions,
    /// As in the file.
    cursor: u64,
    /// By the text of [`put_series_name`], which is much smaller than a [`SeriesKey`].
    ids: SeriesIds,
    /// By id.
    series: Vec<Series>,
    /// How many of `series` are in the file.
    series_written: usize,
    /// The keys of those that are not.
    new_series: Vec<SeriesKey>,
    /// Blocks that the next commit writes, by series and start.
    sealed: BTreeMap<(u32, i64), SealedBlock>,
    /// What came since the last commit.
    log: LogWriter,
    /// The number that the row with `log` will have.
    number: u32,
    /// The rows in the file, oldest first, with how many readings each has.
    recent: VecDeque<(u32, u64)>,
    /// How many readings are in open blocks and late; those in sealed ones are not.
    open_readings: u64,
    /// What came for closed days since the last commit.
    touched: Touched,
    cache: BlockCache,
    /// Holds a series' name while it is looked up.
    name: Vec<u8>,
}

/// What is in memory of one series; there may be a hundred thousand.
#[derive(Debug, Default)]
struct Series {
    newest: Option<Reading>,
    open: OpenBlock,
    /// The number of the row of `recent` that holds the oldest reading of `open`.
    open_since: u32,
    /// Whether `newest` was fetched from the file since it was opened.
    is_loaded: bool,
    late: Option<Box<Late>>,
}

/// Readings that came late and are not in a block yet; some may be twice, here and in a block, after a crash.
#[derive(Debug)]
struct Late {
    since: u32,
    readings: BTreeMap<i64, (Option<f64>, Quality)>,
}

impl Late {
    fn end_ms(&self) -> i64 {
        self.readings.last_key_value().map_or(i64::MIN, |(&event_ms, _)| event_ms)
    }
}

fn reading_of(event_ms: i64, (value, quality): (Option<f64>, Quality)) -> Reading {
    Reading { event_time: Timestamp::from_millis(event_ms), value, quality }
}

/// A block in the file.
#[derive(Debug)]
struct StoredBlock {
    id: i64,
    start_ms: i64,
    end_ms: i64,
    readings: u32,
    data: Vec<u8>,
}

impl History {
    /// Opens the file, makes it where there is none, and takes back into memory what is not in blocks yet.
    pub fn open(path: &Path, options: HistoryOptions) -> Result<Self, HistoryError> {
        let connection = schema::open_writer(path)?;
        let cursor: i64 = connection.query_row("SELECT value FROM cursor", [], |row| row.get(0))?;
        let touched = Touched::open(&connection, options.closed_days.clone())?;
        let mut history = Self {
            connection,
            options,
            cursor: cursor as u64,
            ids: HashMap::default(),
            series: vec![],
            series_written: 0,
            new_series: vec![],
            sealed: BTreeMap::new(),
            log: LogWriter::default(),
            number: 0,
            recent: VecDeque::new(),
            open_readings: 0,
            touched,
            cache: BlockCache::default(),
            name: vec![],
        };
        history.read_series()?;
        history.replay_recent()?;
        history.report();
        Ok(history)
    }

    /// Returns the cursor of the last commit: every reading of the journal's entries before it is durable here.
    pub fn cursor(&self) -> u64 {
        self.cursor
    }

    /// Returns the series with this key, a new one where there was none. The first call for a series since the history
    /// was opened may read from the disk.
    pub fn series(&mut self, key: &SeriesKey) -> Result<HistorySeriesId, HistoryError> {
        self.name.clear();
        put_series_name(&mut self.name, key.unit.operator.as_str(), key.unit.unit.as_str(), &key.sensor, key.kind);
        if let Some(&id) = self.ids.get(self.name.as_slice()) {
            self.load(id)?;
            return Ok(HistorySeriesId(id));
        }
        let id = u32::try_from(self.series.len()).expect("four billion series do not fit into memory");
        self.ids.insert(self.name.as_slice().into(), id);
        self.series.push(Series { is_loaded: true, ..Series::default() });
        self.new_series.push(key.clone());
        Ok(HistorySeriesId(id))
    }

    /// Returns the newest reading of a series.
    pub fn newest(&self, id: HistorySeriesId) -> Option<Reading> {
        self.series[id.0 as usize].newest
    }

    /// Adds a reading, newer than the series' newest or late, at a millisecond that [`Self::value_at`] says is free.
    pub fn insert(&mut self, HistorySeriesId(series): HistorySeriesId, reading: Reading) {
        let is_late = self.keep(series, reading);
        self.touched.note(series, reading.event_time);
        self.log.push(&LogEntry { series, is_late, reading });
        if is_late {
            self.options.metrics.late.inc();
        }
    }

    /// Takes a reading into memory, and returns whether it was late.
    fn keep(&mut self, id: u32, reading: Reading) -> bool {
        let series = &mut self.series[id as usize];
        self.open_readings += 1;
        if series.newest.is_some_and(|newest| reading.event_time <= newest.event_time) {
            let late =
                series.late.get_or_insert_with(|| Box::new(Late { since: self.number, readings: BTreeMap::new() }));
            let before = late.readings.insert(reading.event_time.as_millis(), (reading.value, reading.quality));
            self.open_readings -= u64::from(before.is_some());
            return true;
        }
        if series.open.is_empty() {
            series.open_since = self.number;
        }
        series.open.push(&reading);
        series.newest = Some(reading);
        if series.open.readings() as usize >= self.options.block_readings {
            self.seal(id);
        }
        false
    }

    /// Closes the open block of a series, together with the late readings that fall into it or after it.
    fn seal(&mut self, id: u32) {
        let series = &mut self.series[id as usize];
        let open = std::mem::take(&mut series.open);
        self.open_readings -= u64::from(open.readings());
        let mut late_within = BTreeMap::new();
        if let Some(late) = &mut series.late {
            late_within = late.readings.split_off(&open.start_ms());
            if late.readings.is_empty() {
                series.late = None;
            }
        }
        if late_within.is_empty() {
            self.sealed.insert((id, open.start_ms()), open.seal());
            return;
        }
        self.open_readings -= late_within.len() as u64;
        let late_within: Vec<_> = late_within.into_iter().map(|(event_ms, late)| reading_of(event_ms, late)).collect();
        let readings = super::merge(open.iter().collect(), late_within);
        for block in block::seal_all(&readings, self.options.block_readings) {
            self.sealed.insert((id, block.start_ms), block);
        }
    }

    /// Returns the reading of a series at one millisecond.
    pub fn value_at(
        &mut self,
        HistorySeriesId(id): HistorySeriesId,
        event_time: Timestamp,
    ) -> Result<Option<Reading>, HistoryError> {
        let event_ms = event_time.as_millis();
        let series = &self.series[id as usize];
        if series.newest.is_none_or(|newest| newest.event_time < event_time) {
            return Ok(None);
        }
        if let Some(newest) = series.newest.filter(|newest| newest.event_time == event_time) {
            return Ok(Some(newest));
        }
        if let Some(&late) = series.late.as_ref().and_then(|late| late.readings.get(&event_ms)) {
            return Ok(Some(reading_of(event_ms, late)));
        }
        if !series.open.is_empty() && series.open.start_ms() <= event_ms {
            return Ok(series.open.iter().find(|reading| reading.event_time == event_time));
        }
        if let Some((_, sealed)) = self.sealed.range((id, i64::MIN)..=(id, event_ms)).next_back()
            && event_ms <= sealed.end_ms
        {
            return block::find(&sealed.data, event_time)
                .map_err(|damage| damaged(&self.ids, id, sealed.start_ms, damage));
        }
        if self.cache.get(id, event_ms).is_none() {
            let block = block_at_or_before(&self.connection, id, event_ms)?;
            let until_ms = next_start_after(&self.connection, id, event_ms)?;
            self.cache.put(id, CachedBlock { block, until_ms });
        }
        match self.cache.get(id, event_ms).and_then(|cached| cached.block.as_ref()) {
            Some(block) if event_ms <= block.end_ms => {
                block::find(&block.data, event_time).map_err(|damage| damaged(&self.ids, id, block.start_ms, damage))
            }
            _ => Ok(None),
        }
    }

    /// Returns the first millisecond at or after `from` at which the series has no reading.
    pub fn next_free(&mut self, id: HistorySeriesId, from: Timestamp) -> Result<Timestamp, HistoryError> {
        if self.newest(id).is_none_or(|newest| newest.event_time < from) {
            return Ok(from);
        }
        let mut free = from;
        // Many readings may share one instant of arrival; they lie in memory, so go through them once.
        for reading in self.open_readings(id, from, Timestamp::MAX) {
            if reading.event_time == free {
                free = free.plus_millis(1);
            } else if self.value_at(id, free)?.is_none() {
                return Ok(free);
            } else {
                break;
            }
        }
        while self.value_at(id, free)?.is_some() {
            free = free.plus_millis(1);
        }
        Ok(free)
    }

    /// Returns the readings of `[from, to)` that no block in the file holds yet, oldest first.
    pub fn open_readings(&self, HistorySeriesId(id): HistorySeriesId, from: Timestamp, to: Timestamp) -> Vec<Reading> {
        if from >= to {
            return vec![];
        }
        let series = &self.series[id as usize];
        let (from_ms, to_ms) = (from.as_millis(), to.as_millis());
        let before = self.sealed.range((id, i64::MIN)..=(id, from_ms)).next_back();
        let sealed_from_ms = before.map_or(from_ms, |(&(_, start_ms), _)| start_ms);
        let sealed = self.sealed.range((id, sealed_from_ms)..(id, to_ms));
        let mut in_order: Vec<Reading> =
            sealed.flat_map(|(_, block)| block::decode(&block.data).expect("memory holds what seal wrote")).collect();
        in_order.extend(series.open.iter());
        in_order.retain(|reading| (from..to).contains(&reading.event_time));
        let late = series.late.iter().flat_map(|late| late.readings.range(from_ms..to_ms));
        super::merge(in_order, late.map(|(&event_ms, &late)| reading_of(event_ms, late)).collect())
    }

    /// Returns the newest reading of a series that is not newer than `at`.
    pub fn newest_until(&self, id: HistorySeriesId, at: Timestamp) -> Result<Option<Reading>, HistoryError> {
        if let Some(newest) = self.newest(id).filter(|newest| newest.event_time <= at) {
            return Ok(Some(newest));
        }
        let (series, at_ms) = (&self.series[id.0 as usize], at.as_millis());
        let late = series.late.as_ref().and_then(|late| late.readings.range(..=at_ms).next_back());
        let late = late.map(|(&event_ms, &late)| reading_of(event_ms, late));
        let open = series.open.iter().take_while(|reading| reading.event_time <= at).last();
        let sealed = self.sealed.range((id.0, i64::MIN)..=(id.0, at_ms)).next_back().and_then(|(_, block)| {
            let readings = block::decode(&block.data).expect("memory holds what seal wrote");
            readings.into_iter().rfind(|reading| reading.event_time <= at)
        });
        let in_file = match block_at_or_before(&self.connection, id.0, at.as_millis())? {
            None => None,
            Some(block) => {
                let readings =
                    block::decode(&block.data).map_err(|damage| damaged(&self.ids, id.0, block.start_ms, damage))?;
                readings.into_iter().rfind(|reading| reading.event_time <= at)
            }
        };
        Ok([late, open, sealed, in_file].into_iter().flatten().max_by_key(|reading| reading.event_time))
    }

    /// Returns every reading of a series newer than `after`, oldest first.
    pub fn readings_after(&self, id: HistorySeriesId, after: Timestamp) -> Result<Vec<Reading>, HistoryError> {
        let from = after.plus_millis(1);
        // Blocks do not overlap: the last that starts at or before `from` is the first that can reach into the span.
        let select = "SELECT start_ms, data FROM block WHERE series = ?1 AND start_ms >= \
                      coalesce((SELECT max(start_ms) FROM block WHERE series = ?1 AND start_ms <= ?2), ?2) \
                      ORDER BY start_ms";
        let mut statement = self.connection.prepare_cached(select)?;
        let mut rows = statement.query(params![id.0, from.as_millis()])?;
        let mut in_file = vec![];
        while let Some(row) = rows.next()? {
            let data = row.get_ref(1)?.as_blob().map_err(rusqlite::Error::from)?;
            let start_ms = row.get(0)?;
            let readings = block::decode(data).map_err(|damage| damaged(&self.ids, id.0, start_ms, damage))?;
            in_file.extend(readings.into_iter().filter(|reading| reading.event_time >= from));
        }
        Ok(super::merge(in_file, self.open_readings(id, from, Timestamp::MAX)))
    }

    /// Returns the earliest closed day that a reading of the series has fallen into since the last commit.
    pub fn touched_day(&self, HistorySeriesId(id): HistorySeriesId) -> Option<i64> {
        self.touched.day(id)
    }

    /// Returns how many readings came since the last commit; a large backlog calls for an early one.
    pub fn uncommitted_readings(&self) -> u64 {
        self.log.entries()
    }

    /// Makes everything durable together with the cursor. Where it fails nothing is lost: the next one takes it along.
    pub fn commit(&mut self, cursor: u64) -> Result<(), HistoryError> {
        self.commit_with(cursor, None)
    }

    /// Makes everything durable together with the cursor and the state of what judges the readings.
    ///
    /// The cursor must not be ahead of the ledger's: what the ledger decided would be decided on other grounds.
    pub fn commit_with(&mut self, cursor: u64, snapshot: Option<&Snapshot>) -> Result<(), HistoryError> {
        if cursor == self.cursor && self.log.entries() == 0 && self.new_series.is_empty() && snapshot.is_none() {
            return Ok(());
        }
        let due = self.seal_due();
        let transaction = self.connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        insert_series(&transaction, self.series_written, &self.new_series)?;
        let mut written = Written::default();
        for (&(series, _), block) in &self.sealed {
            insert_block(&transaction, series, block, &mut written)?;
        }
        for &id in &due.late {
            let late = self.series[id as usize].late.as_ref().expect("only series with late readings are due");
            let late: Vec<_> = late.readings.iter().map(|(&event_ms, &late)| reading_of(event_ms, late)).collect();
            merge_late(&transaction, id, &late, self.options.block_readings, &mut written)
                .map_err(|error| error.name(&self.ids, id))?;
        }
        let is_log_needed = due.oldest_number <= self.number && self.log.entries() > 0;
        if is_log_needed {
            insert_recent(&transaction, self.number, &self.log)?;
        }
        transaction.prepare_cached("DELETE FROM recent WHERE number < ?1")?.execute([due.oldest_number])?;
        self.touched.write(&transaction, cursor)?;
        if let Some(snapshot) = snapshot {
            snapshot::write(&transaction, snapshot)?;
        }
        transaction.prepare_cached("UPDATE cursor SET value = ?1")?.execute([cursor as i64])?;
        transaction.commit()?;

        self.cursor = cursor;
        self.touched.clear();
        self.series_written = self.series.len();
        self.new_series.clear();
        for (series, _) in std::mem::take(&mut self.sealed).into_keys() {
            self.cache.forget(series);
        }
        for id in due.late {
            let late = self.series[id as usize].late.take().expect("only series with late readings are due");
            self.open_readings -= late.readings.len() as u64;
            self.cache.forget(id);
        }
        self.recent.retain(|&(number, _)| number >= due.oldest_number);
        if is_log_needed {
            self.recent.push_back((self.number, self.log.entries()));
        }
        self.number += 1;
        self.log.clear();
        self.options.metrics.commits.inc();
        self.options.metrics.blocks_written.inc_by(written.blocks);
        self.options.metrics.block_bytes_written.inc_by(written.bytes);
        self.report();
        Ok(())
    }

    /// Seals the open blocks that would keep too many rows of `recent`, and says what else the commit has to do.
    fn seal_due(&mut self) -> Due {
        let keep_from = self.first_number_to_keep();
        let mut due = Due { late: vec![], oldest_number: self.number + 1 };
        for id in 0..self.series.len() as u32 {
            let series = &self.series[id as usize];
            let is_late_due = series
                .late
                .as_ref()
                .is_some_and(|late| late.since < keep_from || late.readings.len() >= self.options.late_readings);
            let is_late_within_open = series.late.as_ref().is_some_and(|late| late.end_ms() >= series.open.start_ms());
            let is_open_due = series.open_since < keep_from || is_late_due && is_late_within_open;
            if !series.open.is_empty() && is_open_due {
                self.seal(id);
            }
            let series = &self.series[id as usize];
            if !series.open.is_empty() {
                due.oldest_number = due.oldest_number.min(series.open_since);
            }
            match &series.late {
                Some(_) if is_late_due => due.late.push(id),
                Some(late) => due.oldest_number = due.oldest_number.min(late.since),
                None => {}
            }
        }
        due
    }

    /// Returns the number of the oldest row of `recent` that may stay.
    fn first_number_to_keep(&self) -> u32 {
        let kept_max = RECENT_PER_OPEN_MAX * self.open_readings + self.options.spare_recent_readings;
        let mut kept = self.log.entries() + self.recent.iter().map(|&(_, readings)| readings).sum::<u64>();
        for &(number, readings) in &self.recent {
            if kept <= kept_max {
                return number;
            }
            kept -= readings;
        }
        self.number
    }

    /// Deletes blocks that lie wholly before an instant, a bounded number; returns how many readings they held. Call it
    /// again until it returns 0.
    pub fn expire(&mut self, before: Timestamp) -> Result<u64, HistoryError> {
        let delete = "DELETE FROM block WHERE id IN (SELECT id FROM block WHERE end_ms < ?1 ORDER BY end_ms LIMIT ?2) \
                      RETURNING readings";
        let mut statement = self.connection.prepare_cached(delete)?;
        let deleted: Vec<u64> = statement
            .query_map(params![before.as_millis(), EXPIRE_BLOCKS_MAX as i64], |row| {
                row.get::<_, u32>(0).map(u64::from)
            })?
            .collect::<Result<_, _>>()?;
        let readings = deleted.iter().sum();
        if !deleted.is_empty() {
            self.cache = BlockCache::default();
            self.options.metrics.blocks_expired.inc_by(deleted.len() as u64);
            self.options.metrics.readings_expired.inc_by(readings);
        }
        Ok(readings)
    }

    fn read_series(&mut self) -> Result<(), HistoryError> {
        let mut statement =
            self.connection.prepare("SELECT id, operator, unit, sensor, kind FROM series ORDER BY id")?;
        let mut rows = statement.query([])?;
        while let Some(row) = rows.next()? {
            let id = self.series.len() as u32;
            if row.get::<_, u32>(0)? != id {
                return Err(HistoryError::DamagedSeries { id });
            }
            let kind = Kind::from_code(row.get(4)?).ok_or(HistoryError::DamagedSeries { id })?;
            let text = |column| row.get_ref(column).and_then(|value| value.as_str().map_err(Into::into));
            self.name.clear();
            put_series_name(&mut self.name, text(1)?, text(2)?, text(3)?, kind);
            self.ids.insert(self.name.as_slice().into(), id);
            self.series.push(Series::default());
        }
        self.series_written = self.series.len();
        Ok(())
    }

    /// Takes the readings that are durable but not in blocks back into memory.
    fn replay_recent(&mut self) -> Result<(), HistoryError> {
        let numbers: Vec<u32> = self
            .connection
            .prepare("SELECT number FROM recent ORDER BY number")?
            .query_map([], |row| row.get(0))?
            .collect::<Result<_, _>>()?;
        for number in numbers {
            self.number = number;
            let row = "SELECT data FROM recent WHERE number = ?1";
            let data: Vec<u8> = self.connection.query_row(row, [number], |row| row.get(0))?;
            let log = decompress_log(number, &data)?;
            let mut readings = 0;
            for entry in read_log(&log) {
                let damaged = |damage: Damage| HistoryError::DamagedRecent { number, damage: damage.to_string() };
                let LogEntry { series, is_late, reading } = entry.map_err(damaged)?;
                if series as usize >= self.series.len() {
                    return Err(damaged(Damage::Content("no such series")));
                }
                self.load(series)?;
                readings += 1;
                let newest = self.series[series as usize].newest;
                if is_late || newest.is_none_or(|newest| newest.event_time < reading.event_time) {
                    self.keep(series, reading);
                }
            }
            self.recent.push_back((number, readings));
            self.number = number + 1;
        }
        Ok(())
    }

    /// Fetches the newest reading of a series from its last block, once.
    fn load(&mut self, id: u32) -> Result<(), HistoryError> {
        if self.series[id as usize].is_loaded {
            return Ok(());
        }
        if let Some(block) = block_at_or_before(&self.connection, id, i64::MAX)? {
            let readings =
                block::decode(&block.data).map_err(|damage| damaged(&self.ids, id, block.start_ms, damage))?;
            self.series[id as usize].newest = readings.last().copied();
        }
        self.series[id as usize].is_loaded = true;
        Ok(())
    }

    fn report(&self) {
        self.options.metrics.series.set(self.series.len() as i64);
        self.options.metrics.open_readings.set(self.open_readings as i64);
    }
}

#[cfg(test)]
impl History {
    /// Sets the most pages the file may have, as a full disk would, and returns what it was.
    pub(crate) fn limit_pages(&self, pages_max: i64) -> i64 {
        let before = self.connection.pragma_query_value(None, "max_page_count", |row| row.get(0)).unwrap();
        self.connection.pragma_update(None, "max_page_count", pages_max).unwrap();
        before
    }

    /// Panics where a running count differs from what is there.
    pub(crate) fn check_counts(&self) {
        let late = |series: &Series| series.late.as_ref().map_or(0, |late| late.readings.len() as u64);
        let open: u64 = self.series.iter().map(|series| u64::from(series.open.readings()) + late(series)).sum();
        assert_eq!(self.open_readings, open);
        let rows: Vec<(u32, i64)> = self
            .connection
            .prepare("SELECT number, readings FROM recent ORDER BY number")
            .unwrap()
            .query_map([], |row| Ok((row.get(0)?, row.get(1)?)))
            .unwrap()
            .collect::<Result<_, _>>()
            .unwrap();
        assert_eq!(
            self.recent,
            rows.into_iter().map(|(number, readings)| (number, readings as u64)).collect::<Vec<_>>()
        );
    }
}

/// What a commit has to do beyond the sealed blocks and the log.
struct Due {
    /// Series whose late readings are merged into their blocks.
    late: Vec<u32>,
    /// No row of `recent` before this one is needed afterwards.
    oldest_number: u32,
}

/// What a commit has written.
#[derive(Default)]
struct Written {
    blocks: u64,
    bytes: u64,
}

/// Why late readings could not be merged; the name of the series is known one level up.
enum MergeError {
    Damaged { start_ms: i64, damage: Damage },
    Database(rusqlite::Error),
}

impl From<rusqlite::Error> for MergeError {
    fn from(error: rusqlite::Error) -> Self {
        Self::Database(error)
    }
}

impl MergeError {
    fn name(self, ids: &SeriesIds, id: u32) -> HistoryError {
        match self {
            Self::Damaged { start_ms, damage } => damaged(ids, id, start_ms, damage),
            Self::Database(error) => error.into(),
        }
    }
}

/// Merges late readings (oldest first) into the blocks of the file that they fall into; those between two blocks become
/// new ones, or fill up a small one before them.
fn merge_late(
    transaction: &Transaction<'_>,
    id: u32,
    mut late: &[Reading],
    block_readings: usize,
    written: &mut Written,
) -> Result<(), MergeError> {
    while let Some(first) = late.first() {
        let first_ms = first.event_time.as_millis();
        let until_ms = next_start_after(transaction, id, first_ms)?;
        let here =
            late.partition_point(|reading| until_ms.is_none_or(|until_ms| reading.event_time.as_millis() < until_ms));
        let (here, rest) = late.split_at(here);
        late = rest;
        let before = block_at_or_before(transaction, id, first_ms)?
            .filter(|block| first_ms <= block.end_ms || (block.readings as usize) < block_readings / 2);
        let readings = match before {
            None => here.to_vec(),
            Some(block) => {
                transaction.prepare_cached("DELETE FROM block WHERE id = ?1")?.execute([block.id])?;
                let stored = block::decode(&block.data)
                    .map_err(|damage| MergeError::Damaged { start_ms: block.start_ms, damage })?;
                super::merge(stored, here.to_vec())
            }
        };
        for block in block::seal_all(&readings, block_readings) {
            insert_block(transaction, id, &block, written)?;
        }
    }
    Ok(())
}

fn insert_series(transaction: &Transaction<'_>, first_id: usize, keys: &[SeriesKey]) -> rusqlite::Result<()> {
    let mut insert = transaction
        .prepare_cached("INSERT INTO series (id, operator, unit, sensor, kind) VALUES (?1, ?2, ?3, ?4, ?5)")?;
    for (id, key) in (first_id..).zip(keys) {
        let (operator, unit) = (key.unit.operator.as_str(), key.unit.unit.as_str());
        insert.execute(params![id as i64, operator, unit, &*key.sensor, key.kind as u8])?;
    }
    Ok(())
}

fn insert_block(
    transaction: &Transaction<'_>,
    series: u32,
    block: &SealedBlock,
    written: &mut Written,
) -> rusqlite::Result<()> {
    transaction
        .prepare_cached("INSERT INTO block (series, start_ms, end_ms, readings, data) VALUES (?1, ?2, ?3, ?4, ?5)")?
        .execute(params![series, block.start_ms, block.end_ms, block.readings, &*block.data])?;
    written.blocks += 1;
    written.bytes += block.data.len() as u64;
    Ok(())
}

fn insert_recent(transaction: &Transaction<'_>, number: u32, log: &LogWriter) -> rusqlite::Result<()> {
    transaction.prepare_cached("INSERT INTO recent (number, readings, data) VALUES (?1, ?2, ?3)")?.execute(params![
        number,
        log.entries() as i64,
        log.compressed()
    ])?;
    Ok(())
}

/// Returns the block with the greatest start at or before an instant: the only one that can hold it.
fn block_at_or_before(connection: &Connection, id: u32, event_ms: i64) -> rusqlite::Result<Option<StoredBlock>> {
    let select = "SELECT id, start_ms, end_ms, readings, data FROM block \
                  WHERE series = ?1 AND start_ms <= ?2 ORDER BY start_ms DESC LIMIT 1";
    connection
        .prepare_cached(select)?
        .query_row(params![id, event_ms], |row| {
            Ok(StoredBlock {
                id: row.get(0)?,
                start_ms: row.get(1)?,
                end_ms: row.get(2)?,
                readings: row.get(3)?,
                data: row.get(4)?,
            })
        })
        .optional()
}

fn next_start_after(connection: &Connection, id: u32, event_ms: i64) -> rusqlite::Result<Option<i64>> {
    connection
        .prepare_cached("SELECT min(start_ms) FROM block WHERE series = ?1 AND start_ms > ?2")?
        .query_row(params![id, event_ms], |row| row.get(0))
}

/// Appends the name by which a series is looked up: `op1/unit1/t1/0`. Neither operator nor unit can hold a slash, so no
/// two series share one.
fn put_series_name(name: &mut Vec<u8>, operator: &str, unit: &str, sensor: &str, kind: Kind) {
    for part in [operator, unit, sensor] {
        name.extend_from_slice(part.as_bytes());
        name.push(b'/');
    }
    name.push(b'0' + kind as u8);
}

fn damaged(ids: &SeriesIds, id: u32, start_ms: i64, damage: Damage) -> HistoryError {
    let name = ids.iter().find(|&(_, &other)| other == id).map(|(name, _)| String::from_utf8_lossy(name));
    let (sensor, kind) = name.as_deref().and_then(|name| name.rsplit_once('/')).unwrap_or_default();
    let kind = kind.bytes().next().and_then(|digit| Kind::from_code(digit.wrapping_sub(b'0')));
    let series = format!("{sensor}/{}", kind.map_or("", Kind::as_str));
    HistoryError::damaged_block(series, start_ms, damage)
}

/// The last block that was asked for, of a few thousand series: a redelivered backlog asks for one minute after another.
#[derive(Debug, Default)]
struct BlockCache {
    slots: HashMap<u32, CachedBlock, FixedState>,
}

/// What is known of one series between two block starts.
#[derive(Debug)]
struct CachedBlock {
    /// The block before `until_ms`; none where it would be the series' first.
    block: Option<StoredBlock>,
    /// Where the next block starts, if there is one.
    until_ms: Option<i64>,
}

impl BlockCache {
    fn get(&self, id: u32, event_ms: i64) -> Option<&CachedBlock> {
        self.slots.get(&id).filter(|cached| {
            cached.block.as_ref().is_none_or(|block| block.start_ms <= event_ms)
                && cached.until_ms.is_none_or(|until_ms| event_ms < until_ms)
        })
    }

    fn put(&mut self, id: u32, cached: CachedBlock) {
        if self.slots.len() >= CACHED_SERIES_MAX {
            self.slots.clear();
        }
        self.slots.insert(id, cached);
    }

    fn forget(&mut self, id: u32) {
        self.slots.remove(&id);
    }
}
