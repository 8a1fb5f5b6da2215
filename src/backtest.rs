//! Runs rules over recorded readings without any server.
//!
//! First every reading is taken in the order of arrival, which decides nothing but which of two different values for one
//! millisecond counts: the first. Then each unit's readings are judged in the order of event time by the same engine
//! that judges live, so the order of arrival cannot matter otherwise.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use foldhash::fast::RandomState;
use frostline_core::codec::DeadLetterReason;
use frostline_core::model::{Name, Registry, SeriesKey, Timestamp, UnitKey};
use frostline_core::rules::{Engine, Era, JudgedEpisode, Point, Rule, judge_unit, micro};

use crate::config::Judgement;
use crate::episode_file::{self, EpisodeRecord};
use crate::recording::{self, Item, RecordedReading, RecordingError};
use crate::stored_readings::{StoredReadings, StoredReadingsError};

/// How many lines that cannot be used are described; the rest is only counted.
const REMARKS_MAX: usize = 20;

/// How many readings are taken between two looks at the progress.
const PROGRESS_EVERY: u64 = 4_096;

/// How far a backtest has got, for whoever shows it.
#[derive(Debug, Default)]
pub struct Progress {
    /// Bytes of the files read, compressed where they are.
    pub bytes_read: AtomicU64,
    /// Readings taken.
    pub readings: AtomicU64,
    /// Units that are being judged; 0 while readings are taken.
    pub units: AtomicU64,
    /// Those that have been.
    pub units_judged: AtomicU64,
}

/// Readings taken from files or from the history, to be judged together.
#[derive(Debug, Default)]
pub struct Backtest {
    progress: Arc<Progress>,
    series: Vec<Collected>,
    /// Series by operator, unit, sensor and kind, with a byte between them that no name has.
    numbers: HashMap<Box<[u8]>, usize, RandomState>,
    /// The key and the number of the series of the last reading: the next is often of the same.
    last: (Vec<u8>, usize),
    key: Vec<u8>,
    now: Option<Timestamp>,
    summary: Summary,
}

/// What became of the readings.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Summary {
    /// Readings in the files, and messages that could not be decoded.
    pub received: u64,
    /// Readings that were judged.
    pub accepted: u64,
    /// Readings that repeat an accepted one.
    pub duplicate: u64,
    /// Those that could not be used, by reason; `conflict` are different values for one series and millisecond.
    pub rejected: BTreeMap<&'static str, u64>,
    /// Descriptions of the first that could not be used.
    pub remarks: Vec<String>,
    /// How many more could not be used.
    pub remarks_left_out: u64,
}

/// What a backtest found.
#[derive(Debug)]
pub struct Outcome {
    /// The episodes that fired, sorted as in a file.
    pub episodes: Vec<EpisodeRecord>,
    /// What became of the readings.
    pub summary: Summary,
}

/// Readings in order, ready to be judged as often as one likes.
#[derive(Debug)]
pub struct OrderedReadings {
    series: Vec<(SeriesKey, Vec<Point>)>,
    now: Option<Timestamp>,
    progress: Arc<Progress>,
    /// What became of the readings.
    pub summary: Summary,
}

/// The readings of one series.
#[derive(Debug)]
struct Collected {
    key: SeriesKey,
    /// Event time in milliseconds and value, not a number for a failed probe; in the order of arrival.
    readings: Vec<(i64, f64)>,
    /// Whether each is later than the one before.
    is_in_order: bool,
    /// The milliseconds that are taken; kept only where readings have no time of their own.
    taken: Option<HashSet<i64>>,
}

impl Backtest {
    /// Takes every reading of a file.
    ///
    /// # Errors
    /// The file cannot be read, or is something else.
    pub fn add_file(&mut self, file: &Path, judgement: &Judgement) -> Result<(), RecordingError> {
        let progress = Arc::clone(&self.progress);
        recording::read(file, judgement, &progress.bytes_read, &mut |line, item| match item {
            Item::Now(now) => self.now = self.now.max(Some(now)),
            Item::Reading(reading) => self.add(&reading),
            Item::Refused { reason, detail } => {
                self.summary.received += 1;
                self.summary.reject(reason, || format!("{}:{line}: {reason}: {detail}", file.display()));
            }
        })
    }

    /// Takes every reading that a daemon has accepted; *now* is then the daemon's.
    ///
    /// # Errors
    /// The readings cannot be read.
    pub fn add_stored(&mut self, stored: &StoredReadings) -> Result<(), StoredReadingsError> {
        self.now = self.now.max(Some(stored.now()));
        for SeriesKey { unit, sensor, kind } in stored.series()? {
            let key = SeriesKey { unit: unit.clone(), sensor: sensor.clone(), kind };
            stored.each::<StoredReadingsError>(&key, Timestamp::MIN, Timestamp::MAX, |piece| {
                for reading in piece {
                    self.add(&RecordedReading {
                        operator: unit.operator.as_str(),
                        unit: unit.unit.as_str(),
                        sensor: &sensor,
                        kind,
                        event_time: reading.event_time,
                        is_server_time: false,
                        value: reading.value,
                    });
                }
                Ok(())
            })?;
        }
        Ok(())
    }

    /// Returns how far it has got, to be looked at from another thread.
    pub fn progress(&self) -> Arc<Progress> {
        Arc::clone(&self.progress)
    }

    fn add(&mut self, reading: &RecordedReading<'_>) {
        self.summary.received += 1;
        if self.summary.received.is_multiple_of(PROGRESS_EVERY) {
            self.progress.readings.store(self.summary.received, Ordering::Relaxed);
        }
        let number = self.series_number(reading);
        let series = &mut self.series[number];
        let mut millis = reading.event_time.as_millis();
        if reading.is_server_time {
            let taken = series.taken.get_or_insert_with(|| series.readings.iter().map(|(time, _)| *time).collect());
            while taken.contains(&millis) {
                millis += 1;
            }
        }
        if let Some(taken) = &mut series.taken {
            taken.insert(millis);
        }
        series.is_in_order &= series.readings.last().is_none_or(|(newest, _)| *newest < millis);
        series.readings.push((millis, reading.value.unwrap_or(f64::NAN)));
    }

    fn series_number(&mut self, reading: &RecordedReading<'_>) -> usize {
        self.key.clear();
        for part in [reading.operator, reading.unit, reading.sensor] {
            self.key.extend_from_slice(part.as_bytes());
            self.key.push(0);
        }
        self.key.push(reading.kind as u8);
        if self.key == self.last.0 {
            return self.last.1;
        }
        let number = match self.numbers.get(self.key.as_slice()) {
            Some(number) => *number,
            None => {
                let name = |text| Name::new(text).expect("a file's reader checks names");
                let unit = UnitKey { operator: name(reading.operator), unit: name(reading.unit) };
                let key = SeriesKey { unit, sensor: reading.sensor.into(), kind: reading.kind };
                self.series.push(Collected { key, readings: Vec::new(), is_in_order: true, taken: None });
                self.numbers.insert(self.key.as_slice().into(), self.series.len() - 1);
                self.series.len() - 1
            }
        };
        self.last.0.clone_from(&self.key);
        self.last.1 = number;
        number
    }

    /// Puts everything taken so far in order.
    pub fn order(mut self) -> OrderedReadings {
        for series in &mut self.series {
            series.settle(&mut self.summary);
        }
        let series = self.series.into_iter().map(|series| (series.key, series.readings)).collect();
        OrderedReadings { series, now: self.now, progress: self.progress, summary: self.summary }
    }

    /// Judges everything taken so far.
    pub fn judge(self, rules: Arc<[Arc<Rule>]>, registry: Arc<Registry>) -> Outcome {
        let readings = self.order();
        Outcome { episodes: readings.judge(rules, registry), summary: readings.summary }
    }
}

impl OrderedReadings {
    /// Returns the episodes that rules find, sorted as in a file.
    pub fn judge(&self, rules: Arc<[Arc<Rule>]>, registry: Arc<Registry>) -> Vec<EpisodeRecord> {
        match self.span().zip(self.now) {
            Some(((first, _), now)) => judge_watched(rules, registry, &self.series, first, now, &self.progress),
            None => Vec::new(),
        }
    }

    /// Returns the times of the oldest and the newest reading, if there is one.
    pub fn span(&self) -> Option<(Timestamp, Timestamp)> {
        let at = |(millis, _): &Point| Timestamp::from_millis(*millis);
        let first = self.series.iter().filter_map(|(_, readings)| readings.first()).map(at).min();
        first.zip(self.series.iter().filter_map(|(_, readings)| readings.last()).map(at).max())
    }

    /// Returns how many series there are.
    pub fn series_count(&self) -> usize {
        self.series.len()
    }

    /// Returns the instant until which is judged, if there is any reading.
    pub fn now(&self) -> Option<Timestamp> {
        self.now
    }
}

impl Collected {
    /// Puts the readings in order and leaves the first of those for one millisecond.
    fn settle(&mut self, summary: &mut Summary) {
        if !self.is_in_order {
            // The sort keeps the order of arrival among equals.
            self.readings.sort_by_key(|(time, _)| *time);
            let key = &self.key;
            self.readings.dedup_by(|later, first| {
                if later.0 != first.0 {
                    return false;
                }
                if later.1.is_nan() && first.1.is_nan()
                    || micro(later.1) == micro(first.1) && !later.1.is_nan() && !first.1.is_nan()
                {
                    summary.duplicate += 1;
                } else {
                    summary.reject(DeadLetterReason::Conflict, || {
                        let (time, kept, left) = (Timestamp::from_millis(first.0), shown(first.1), shown(later.1));
                        let SeriesKey { unit: UnitKey { operator, unit }, sensor, kind } = key;
                        format!("conflict: {operator}/{unit}/{sensor} {kind} at {time} is {kept} already, not {left}")
                    });
                }
                true
            });
        }
        summary.accepted += self.readings.len() as u64;
        self.readings.shrink_to_fit();
    }
}

fn shown(value: f64) -> String {
    if value.is_nan() { "failed".to_owned() } else { value.to_string() }
}

impl Summary {
    fn reject(&mut self, reason: DeadLetterReason, remark: impl FnOnce() -> String) {
        *self.rejected.entry(reason.as_str()).or_default() += 1;
        if self.remarks.len() < REMARKS_MAX {
            self.remarks.push(remark());
        } else {
            self.remarks_left_out += 1;
        }
    }
}

/// `9 received: 6 accepted, 1 duplicate, 2 rejected (conflict 1, range 1)`
impl std::fmt::Display for Summary {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let rejected: u64 = self.rejected.values().sum();
        let Self { received, accepted, duplicate, .. } = self;
        write!(f, "{received} received: {accepted} accepted, {duplicate} duplicate, {rejected} rejected")?;
        let reasons: Vec<_> = self.rejected.iter().map(|(reason, count)| format!("{reason} {count}")).collect();
        if reasons.is_empty() { Ok(()) } else { write!(f, " ({})", reasons.join(", ")) }
    }
}

/// Judges series whose readings are in order, each unit as if it were the only one.
pub(crate) fn judge(
    rules: Arc<[Arc<Rule>]>,
    registry: Arc<Registry>,
    series: Vec<(SeriesKey, Vec<Point>)>,
    registered_at: Timestamp,
    now: Timestamp,
) -> Vec<EpisodeRecord> {
    judge_watched(rules, registry, &series, registered_at, now, &Progress::default())
}

fn judge_watched(
    rules: Arc<[Arc<Rule>]>,
    registry: Arc<Registry>,
    series: &[(SeriesKey, Vec<Point>)],
    registered_at: Timestamp,
    now: Timestamp,
    progress: &Progress,
) -> Vec<EpisodeRecord> {
    let registered = registry.sensors.keys().cloned().collect::<Vec<_>>();
    let blank = Engine::new(Era { loaded_at: registered_at, rules, registry }, 0);
    let mut by_unit: BTreeMap<UnitKey, Vec<(&SeriesKey, &[Point])>> = BTreeMap::new();
    // A registered unit is silent where it never sent anything.
    for unit in registered {
        by_unit.entry(unit).or_default();
    }
    for (key, readings) in series {
        by_unit.entry(key.unit.clone()).or_default().push((key, readings));
    }
    progress.units_judged.store(0, Ordering::Relaxed);
    progress.units.store(by_unit.len() as u64, Ordering::Relaxed);
    let mut records = Vec::new();
    for (unit, series) in by_unit {
        let mut engine = blank.blank_for_unit(&unit);
        let series: Vec<_> = series.iter().map(|(key, readings)| (engine.series(key), *readings)).collect();
        let episodes = judge_unit(&mut engine, &unit, &series, now);
        records.extend(episodes.into_iter().map(|episode| record(&engine, &episode)));
        progress.units_judged.fetch_add(1, Ordering::Relaxed);
    }
    episode_file::sort(&mut records);
    records
}

fn record(engine: &Engine, judged: &JudgedEpisode) -> EpisodeRecord {
    let subject = engine.subject(judged.series);
    EpisodeRecord {
        operator: subject.unit.operator.to_string(),
        unit: subject.unit.unit.to_string(),
        sensor: subject.sensor.map(str::to_owned),
        rule: engine.rule(judged.rule).id.to_string(),
        started_at: judged.episode.started_at,
        fired_at: judged.episode.fired_at,
        resolved_at: judged.episode.resolved_at,
        extreme: judged.episode.extreme,
    }
}
