//! What the history costs, beside plain rows `(series, time, value)` of the same readings in the same run.
//!
//! `cargo bench --bench history`, or with a number of readings: `cargo bench --bench history -- 2000000`.

#![expect(clippy::print_stdout, reason = "the figures are the result of this program")]

use std::fs;
use std::hint::black_box;
use std::path::Path;
use std::time::{Duration, Instant};

use frostline::history::{History, HistoryOptions, HistoryReader, HistorySeriesId};
use frostline_core::model::{Kind, Name, Quality, Reading, SeriesKey, Timestamp, UnitKey};
use rusqlite::{Connection, params};

const START_MS: i64 = 1_795_392_000_000;
const DAY_MS: i64 = 86_400_000;
const SERIES: usize = 1_000;
const INTERVAL_MS: i64 = 30_000;
/// A commit about once a minute, as the daemon makes it.
const ROUNDS_PER_COMMIT: usize = 2;

/// Plain rows take so long that they get this part of the readings only (which flatters them: their tree stays smaller).
const PLAIN_ROWS_SHARE: u64 = 5;

type Failure = Box<dyn std::error::Error>;

/// A fleet that reports every 30 s or every minute with up to 2 s of jitter: walks of a few hundredths of a degree.
struct Fleet {
    random: u64,
    /// By series, in hundredths of °C.
    hundredths: Vec<i64>,
}

impl Fleet {
    fn new(series: usize) -> Self {
        Self { random: 42, hundredths: vec![-1_800; series] }
    }

    fn random(&mut self, below: u64) -> i64 {
        self.random = self.random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((self.random >> 33) % below) as i64
    }

    /// Returns the reading of a series in one round, if it reports in it: every second one only in every other round.
    fn reading(&mut self, series: usize, round: usize) -> Option<Reading> {
        if series % 2 == 1 && round % 2 == 1 {
            return None;
        }
        self.hundredths[series] = (self.hundredths[series] + self.random(41) - 20).clamp(-2_500, 1_500);
        let event_ms = START_MS + round as i64 * INTERVAL_MS + self.random(2_000);
        Some(Reading {
            event_time: Timestamp::from_millis(event_ms),
            value: Some(self.hundredths[series] as f64 / 100.0),
            quality: Quality::GOOD,
        })
    }
}

/// What one way to keep the readings came to.
struct Figures {
    readings: u64,
    elapsed: Duration,
    bytes_at_rest: u64,
    bytes_written: u64,
    read_day: Duration,
}

impl Figures {
    fn per_second(&self) -> f64 {
        self.readings as f64 / self.elapsed.as_secs_f64()
    }

    fn per_reading(&self, bytes: u64) -> f64 {
        bytes as f64 / self.readings as f64
    }

    fn print(&self, what: &str) {
        println!(
            "{what:<12} {:>10} readings  {:>11.0} readings/s  {:>6.2} B/reading at rest  {:>7.1} B/reading written  \
             a day of one series {:>7.3} ms",
            self.readings,
            self.per_second(),
            self.per_reading(self.bytes_at_rest),
            self.per_reading(self.bytes_written),
            self.read_day.as_secs_f64() * 1e3,
        );
    }
}

fn main() -> Result<(), Failure> {
    let readings = std::env::args().skip(1).find_map(|argument| argument.parse().ok()).unwrap_or(10_000_000);
    let directory = tempfile::tempdir_in(".")?;
    let blocks = measure_history(&directory.path().join("history.db"), readings)?;
    blocks.print("history");
    let rows = measure_rows(&directory.path().join("rows.db"), readings / PLAIN_ROWS_SHARE)?;
    rows.print("plain rows");
    println!(
        "history to plain rows: {:.1} times the speed; a reading takes {:.2} of the bytes at rest and {:.4} of the bytes \
         written; a day of one series {:.2} of the time to read",
        blocks.per_second() / rows.per_second(),
        blocks.per_reading(blocks.bytes_at_rest) / rows.per_reading(rows.bytes_at_rest),
        blocks.per_reading(blocks.bytes_written) / rows.per_reading(rows.bytes_written),
        blocks.read_day.as_secs_f64() / rows.read_day.as_secs_f64(),
    );
    measure_backlog(&directory.path().join("backlog.db"))?;
    measure_memory(&directory.path().join("memory.db"))
}

fn measure_history(path: &Path, readings_wanted: u64) -> Result<Figures, Failure> {
    let mut history = History::open(path, HistoryOptions::default())?;
    let ids: Vec<_> = (0..SERIES).map(|series| history.series(&key(series))).collect::<Result<_, _>>()?;
    let mut fleet = Fleet::new(SERIES);
    let (mut readings, mut round, mut elapsed) = (0, 0, Duration::ZERO);
    let written_before = bytes_written()?;
    let mut arrivals: Vec<(HistorySeriesId, Reading)> = vec![];
    while readings < readings_wanted {
        arrivals.clear();
        for round in round..round + ROUNDS_PER_COMMIT {
            arrivals.extend((0..SERIES).filter_map(|series| Some((ids[series], fleet.reading(series, round)?))));
        }
        round += ROUNDS_PER_COMMIT;
        let started = Instant::now();
        for &(id, reading) in &arrivals {
            history.insert(id, reading);
        }
        readings += arrivals.len() as u64;
        history.commit(readings)?;
        elapsed += started.elapsed();
    }
    drop(history);
    let bytes_written = bytes_written()? - written_before;
    let reader = HistoryReader::open(path)?;
    let days = whole_days(round);
    let read_day = median(|nth| {
        let from = Timestamp::from_millis(START_MS + nth % days * DAY_MS);
        let day = reader.read(&key(nth as usize * 37 % SERIES), from, from.plus_millis(DAY_MS))?;
        Ok(black_box(day).len())
    })?;
    Ok(Figures { readings, elapsed, bytes_at_rest: fs::metadata(path)?.len(), bytes_written, read_day })
}

fn measure_rows(path: &Path, readings_wanted: u64) -> Result<Figures, Failure> {
    let mut connection = Connection::open(path)?;
    connection.pragma_update(None, "journal_mode", "wal")?;
    connection.pragma_update(None, "synchronous", "full")?;
    connection.execute_batch(
        "CREATE TABLE reading (series INTEGER, event_ms INTEGER, value REAL, PRIMARY KEY (series, event_ms)) WITHOUT ROWID",
    )?;
    let mut fleet = Fleet::new(SERIES);
    let (mut readings, mut round, mut elapsed) = (0, 0, Duration::ZERO);
    let written_before = bytes_written()?;
    let mut arrivals: Vec<(usize, Reading)> = vec![];
    while readings < readings_wanted {
        arrivals.clear();
        for round in round..round + ROUNDS_PER_COMMIT {
            arrivals.extend((0..SERIES).filter_map(|series| Some((series, fleet.reading(series, round)?))));
        }
        round += ROUNDS_PER_COMMIT;
        let started = Instant::now();
        let transaction = connection.transaction()?;
        let mut insert = transaction.prepare_cached("INSERT INTO reading VALUES (?1, ?2, ?3)")?;
        for &(series, reading) in &arrivals {
            insert.execute(params![series as i64, reading.event_time.as_millis(), reading.value])?;
        }
        drop(insert);
        transaction.commit()?;
        readings += arrivals.len() as u64;
        elapsed += started.elapsed();
    }
    drop(connection);
    let bytes_written = bytes_written()? - written_before;
    let connection = Connection::open(path)?;
    let mut select = connection
        .prepare("SELECT event_ms, value FROM reading WHERE series = ?1 AND event_ms >= ?2 AND event_ms < ?3")?;
    let days = whole_days(round);
    let read_day = median(|nth| {
        let from_ms = START_MS + nth % days * DAY_MS;
        let rows = select.query_map(params![nth * 37 % SERIES as i64, from_ms, from_ms + DAY_MS], |row| {
            Ok((row.get::<_, i64>(0)?, row.get::<_, Option<f64>>(1)?))
        })?;
        Ok(black_box(rows.collect::<Result<Vec<_>, _>>()?).len())
    })?;
    Ok(Figures { readings, elapsed, bytes_at_rest: fs::metadata(path)?.len(), bytes_written, read_day })
}

/// 50 units of three series upload a week, a reading a minute, all of it in random order.
fn measure_backlog(path: &Path) -> Result<(), Failure> {
    const SERIES: usize = 150;
    const MINUTES: usize = 7 * 1_440;
    const READINGS_PER_COMMIT: usize = 200_000;
    let mut history = History::open(path, HistoryOptions::default())?;
    let mut ids = vec![];
    for series in 0..SERIES {
        let id = history.series(&key(series))?;
        history.insert(id, reading_at(START_MS + DAY_MS * 8));
        ids.push(id);
    }
    let mut arrivals: Vec<(usize, i64)> =
        (0..SERIES * MINUTES).map(|nth| (nth % SERIES, (nth / SERIES) as i64)).collect();
    let mut chance = Fleet::new(0);
    for last in (1..arrivals.len()).rev() {
        arrivals.swap(last, chance.random(last as u64 + 1) as usize);
    }
    let (started, mut longest_commit) = (Instant::now(), Duration::ZERO);
    for (chunk, number) in arrivals.chunks(READINGS_PER_COMMIT).zip(1..) {
        for &(series, minute) in chunk {
            let event_ms = START_MS + minute * 60_000;
            if history.value_at(ids[series], Timestamp::from_millis(event_ms))?.is_none() {
                history.insert(ids[series], reading_at(event_ms));
            }
        }
        let began = Instant::now();
        history.commit(number)?;
        longest_commit = longest_commit.max(began.elapsed());
    }
    println!(
        "a week of {SERIES} series in random order: {} readings, {:.0} readings/s, the longest commit {:.0} ms",
        arrivals.len(),
        arrivals.len() as f64 / started.elapsed().as_secs_f64(),
        longest_commit.as_secs_f64() * 1e3,
    );
    arrivals.sort_unstable_by_key(|&(_, minute)| minute);
    let started = Instant::now();
    for &(series, minute) in &arrivals {
        let event_time = Timestamp::from_millis(START_MS + minute * 60_000);
        assert!(black_box(history.value_at(ids[series], event_time)?).is_some());
    }
    let look_ups_per_s = arrivals.len() as f64 / started.elapsed().as_secs_f64();
    println!("the same delivered again, in order: {look_ups_per_s:.0} look-ups/s");
    Ok(())
}

/// Memory of 100,000 series, idle and with open blocks.
fn measure_memory(path: &Path) -> Result<(), Failure> {
    const SERIES: usize = 100_000;
    const ROUNDS: usize = 60;
    let before = resident_bytes()?;
    let mut history = History::open(path, HistoryOptions::default())?;
    let ids: Vec<_> = (0..SERIES).map(|series| history.series(&key(series))).collect::<Result<_, _>>()?;
    history.commit(1)?;
    let idle = resident_bytes()?;
    let mut fleet = Fleet::new(SERIES);
    let mut open = 0;
    for round in 0..ROUNDS {
        for (series, &id) in ids.iter().enumerate() {
            if let Some(reading) = fleet.reading(series, round) {
                history.insert(id, reading);
                open += 1;
            }
        }
        history.commit(round as u64 + 2)?;
    }
    let full = resident_bytes()?;
    println!(
        "memory of {SERIES} series: {:.1} MiB idle ({:.0} B each); with {open} open readings {:.1} MiB",
        mebibytes(idle - before),
        (idle - before) as f64 / SERIES as f64,
        mebibytes(full - before),
    );
    drop(history);
    let started = Instant::now();
    let history = History::open(path, HistoryOptions::default())?;
    println!("opened again after a kill, {open} open readings: {:.0} ms", started.elapsed().as_secs_f64() * 1e3);
    drop(history);
    Ok(())
}

fn key(series: usize) -> SeriesKey {
    let operator = Name::new("op1").expect("op1 is a name");
    let unit = Name::new(&format!("unit{:05}", series / 2)).expect("letters and digits are a name");
    SeriesKey { unit: UnitKey { operator, unit }, sensor: format!("t{}", series % 2).into(), kind: Kind::Temperature }
}

fn reading_at(event_ms: i64) -> Reading {
    let value = (event_ms / 60_000 % 700) as f64 / 100.0;
    Reading { event_time: Timestamp::from_millis(event_ms), value: Some(value), quality: Quality::GOOD }
}

/// Returns how many days the rounds fill, or 1 where the first is not full.
fn whole_days(rounds: usize) -> i64 {
    (rounds as i64 * INTERVAL_MS / DAY_MS).max(1)
}

/// Returns the median time of 301 calls.
fn median(mut call: impl FnMut(i64) -> Result<usize, Failure>) -> Result<Duration, Failure> {
    let mut times = vec![];
    for nth in 0..301 {
        let started = Instant::now();
        if call(nth)? == 0 {
            return Err("a day without readings".into());
        }
        times.push(started.elapsed());
    }
    times.sort_unstable();
    Ok(times[times.len() / 2])
}

/// Returns the bytes that this process has handed to the block device so far.
fn bytes_written() -> Result<u64, Failure> {
    field(&fs::read_to_string("/proc/self/io")?, "write_bytes:")
}

fn resident_bytes() -> Result<u64, Failure> {
    Ok(field(&fs::read_to_string("/proc/self/status")?, "VmRSS:")? * 1_024)
}

fn field(text: &str, name: &str) -> Result<u64, Failure> {
    let line = text.lines().find_map(|line| line.strip_prefix(name)).ok_or("this needs Linux")?;
    Ok(line.split_whitespace().next().ok_or("this needs Linux")?.parse()?)
}

fn mebibytes(bytes: u64) -> f64 {
    bytes as f64 / 1_048_576.0
}
