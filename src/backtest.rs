//! Runs rules over recorded readings without any server.
//!
//! First every reading is taken in the order of arrival, which decides nothing but which of two different values for one
//! millisecond counts: the first. Then each unit's readings are judged in the order of event time by the same engine
//! that judges live, so the order of arrival cannot matter otherwise.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, HashMap, HashSet};
use std::path::Path;
use std::sync::Arc;

use foldhash::fast::RandomState;
use frostline_core::codec::DeadLetterReason;
use frostline_core::model::{Name, Quality, Reading, Registry, SeriesKey, Timestamp, UnitKey};
use frostline_core::rules::{Change, Engine, Episode, Rule, RuleIndex, SeriesId, Transition, micro};

use crate::config::Judgement;
use crate::episode_file::{self, EpisodeRecord};
use crate::recording::{self, Item, RecordedReading, RecordingError};

/// How many lines that cannot be used are described; the rest is only counted.
const REMARKS_MAX: usize = 20;

/// Readings taken from files, to be judged together.
#[derive(Debug, Default)]
pub struct Backtest {
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
        recording::read(file, judgement, &mut |line, item| match item {
            Item::Now(now) => self.now = self.now.max(Some(now)),
            Item::Reading(reading) => self.add(&reading),
            Item::Refused { reason, detail } => {
                self.summary.received += 1;
                self.summary.reject(reason, || format!("{}:{line}: {reason}: {detail}", file.display()));
            }
        })
    }

    fn add(&mut self, reading: &RecordedReading<'_>) {
        self.summary.received += 1;
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

    /// Judges everything taken so far.
    pub fn judge(mut self, rules: Arc<[Arc<Rule>]>, registry: Arc<Registry>) -> Outcome {
        for series in &mut self.series {
            series.settle(&mut self.summary);
        }
        let first = self.series.iter().filter_map(|series| series.readings.first()).map(|(time, _)| *time).min();
        let Some((first, now)) = first.zip(self.now) else {
            return Outcome { episodes: Vec::new(), summary: self.summary };
        };
        let series = self.series.into_iter().map(|series| (series.key, series.readings)).collect();
        let episodes = judge(rules, registry, series, Timestamp::from_millis(first), now);
        Outcome { episodes, summary: self.summary }
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

/// A series as the engine knows it, and its readings in order.
type JudgedSeries = (SeriesId, Vec<(i64, f64)>);

/// Judges series whose readings are in order, each a time in milliseconds and a value, not a number for a failed probe.
pub(crate) fn judge(
    rules: Arc<[Arc<Rule>]>,
    registry: Arc<Registry>,
    series: Vec<(SeriesKey, Vec<(i64, f64)>)>,
    registered_at: Timestamp,
    now: Timestamp,
) -> Vec<EpisodeRecord> {
    let mut engine = Engine::new(rules, registry, 0, registered_at);
    let mut by_unit: BTreeMap<UnitKey, Vec<JudgedSeries>> = BTreeMap::new();
    for (key, readings) in series {
        let id = engine.series(&key);
        by_unit.entry(key.unit).or_default().push((id, readings));
    }
    let mut book = Book::default();
    let mut transitions = Vec::new();
    for series in by_unit.into_values() {
        // A unit's rules see its readings in the order of event time, whichever of its series they are of.
        let mut heads: BinaryHeap<_> = series.iter().enumerate().map(|(n, (_, r))| Reverse((r[0].0, n, 0))).collect();
        while let Some(Reverse((_, number, mut position))) = heads.pop() {
            let (id, readings) = &series[number];
            let until = heads.peek().map_or(i64::MAX, |Reverse((time, ..))| *time);
            while let Some((millis, value)) = readings.get(position).copied() {
                if millis > until {
                    heads.push(Reverse((millis, number, position)));
                    break;
                }
                let value = (!value.is_nan()).then_some(value);
                let reading = Reading { event_time: Timestamp::from_millis(millis), value, quality: Quality::GOOD };
                engine.observe(*id, &reading, now, &mut transitions);
                position += 1;
            }
            book.enter(&mut transitions);
        }
    }
    engine.advance(now, &mut transitions);
    book.enter(&mut transitions);
    book.look_at(&engine);
    book.into_records(&engine)
}

/// The episodes as transitions tell them.
#[derive(Debug, Default)]
struct Book {
    episodes: Vec<(RuleIndex, SeriesId, Episode)>,
    /// Which of them is firing.
    firing: HashMap<(RuleIndex, SeriesId), usize, RandomState>,
}

impl Book {
    fn enter(&mut self, transitions: &mut Vec<Transition>) {
        for Transition { rule, series, change, .. } in transitions.drain(..) {
            match change {
                Change::Fired(episode) => {
                    self.firing.insert((rule, series), self.episodes.len());
                    self.episodes.push((rule, series, episode));
                }
                Change::Resolved(episode) => {
                    let number = self.firing.remove(&(rule, series)).expect("what resolves has fired");
                    self.episodes[number].2 = episode;
                }
                Change::Updated(_) | Change::Reopened(_) | Change::Retracted(..) => {
                    unreachable!("time is let pass once, after the last reading")
                }
                Change::Pending { .. } | Change::PendingEnded { .. } => {}
            }
        }
    }

    /// Takes up the figures of what is still firing, which have gone on since it fired.
    fn look_at(&mut self, engine: &Engine) {
        for unit in engine.units() {
            for firing in engine.firing(unit) {
                let number = self.firing[&(firing.rule, firing.series)];
                self.episodes[number].2 = firing.episode;
            }
        }
    }

    fn into_records(self, engine: &Engine) -> Vec<EpisodeRecord> {
        let record = |(rule, series, episode): (RuleIndex, SeriesId, Episode)| {
            let subject = engine.subject(series);
            EpisodeRecord {
                operator: subject.unit.operator.to_string(),
                unit: subject.unit.unit.to_string(),
                sensor: subject.sensor.map(str::to_owned),
                rule: engine.rule(rule).id.to_string(),
                started_at: episode.started_at,
                fired_at: episode.fired_at,
                resolved_at: episode.resolved_at,
                extreme: episode.extreme,
            }
        };
        let mut records: Vec<_> = self.episodes.into_iter().map(record).collect();
        episode_file::sort(&mut records);
        records
    }
}
