//! The history as its users see it, against a map that keeps everything.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use frostline_core::model::{Kind, Name, Quality, Reading, SeriesKey, Timestamp, UnitKey};
use proptest::prelude::*;
use rusqlite::Connection;
use tempfile::TempDir;

use super::*;

const MINUTE_MS: i64 = 60_000;
const START_MS: i64 = 1_795_427_999_123;

fn at(event_ms: i64) -> Timestamp {
    Timestamp::from_millis(event_ms)
}

fn reading(event_ms: i64, value: f64) -> Reading {
    Reading { event_time: at(event_ms), value: Some(value), quality: Quality::GOOD }
}

fn key(sensor: usize) -> SeriesKey {
    let unit = UnitKey { operator: Name::new("op1").unwrap(), unit: Name::new("truck").unwrap() };
    SeriesKey { unit, sensor: format!("t{sensor}").into(), kind: Kind::Temperature }
}

/// Small sizes, so that a few readings meet every case.
fn small() -> HistoryOptions {
    HistoryOptions { block_readings: 5, late_readings: 4, spare_recent_readings: 10, ..HistoryOptions::default() }
}

fn directory() -> (TempDir, PathBuf) {
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("history.db");
    (directory, path)
}

fn everything(path: &Path, key: &SeriesKey) -> Vec<Reading> {
    let reader = HistoryReader::open(path).unwrap();
    let recent = reader.recent().unwrap();
    reader.read_with(&recent, key, Timestamp::MIN, Timestamp::MAX).unwrap()
}

/// Looks up and adds, as the pipeline does; returns whether the reading was new.
fn offer(history: &mut History, key: &SeriesKey, reading: Reading) -> bool {
    let id = history.series(key).unwrap();
    let found = history.value_at(id, reading.event_time).unwrap();
    if found.is_none() {
        history.insert(id, reading);
    }
    found.is_none()
}

#[test]
fn a_reader_that_holds_still_sees_one_instant_and_no_writer_waits_for_it() {
    let (_directory, path) = directory();
    let mut history = History::open(&path, small()).unwrap();
    let minute = |minute: i64| reading(START_MS + minute * MINUTE_MS, minute as f64);
    let mut add = |minutes: std::ops::Range<i64>, cursor| {
        for number in minutes {
            assert!(offer(&mut history, &key(1), minute(number)));
        }
        history.commit(cursor).unwrap();
    };
    add(0..7, 7);
    let reader = HistoryReader::open(&path).unwrap();
    let seen = || {
        let recent = reader.recent().unwrap();
        let readings = reader.read_with(&recent, &key(1), Timestamp::MIN, Timestamp::MAX).unwrap();
        (reader.cursor().unwrap(), readings.len())
    };
    reader.hold_still().unwrap();
    add(7..30, 30);
    assert_eq!(seen(), (7, 7));
    reader.hold_still().unwrap();
    assert_eq!(seen(), (30, 30));
}

/// Equal to the last bit: `==` takes −0.0 for 0.0.
fn bits(readings: &[Reading]) -> Vec<(i64, Option<u64>, u8)> {
    let bits =
        |reading: &Reading| (reading.event_time.as_millis(), reading.value.map(f64::to_bits), reading.quality.bits());
    readings.iter().map(bits).collect()
}

fn assert_blocks_do_not_overlap(path: &Path) {
    let connection = Connection::open(path).unwrap();
    let overlaps: i64 = connection
        .query_row(
            "SELECT count(*) FROM block a JOIN block b ON a.series = b.series AND a.start_ms < b.start_ms \
             WHERE a.end_ms >= b.start_ms",
            [],
            |row| row.get(0),
        )
        .unwrap();
    assert_eq!(overlaps, 0);
}

#[test]
fn what_is_committed_is_there_after_a_kill_and_the_rest_comes_from_the_journal() {
    let (_directory, path) = directory();
    let mut history = History::open(&path, small()).unwrap();
    for minute in 0..12 {
        assert!(offer(&mut history, &key(0), reading(START_MS + minute * MINUTE_MS, minute as f64)));
    }
    history.commit(12).unwrap();
    for minute in 12..30 {
        offer(&mut history, &key(0), reading(START_MS + minute * MINUTE_MS, minute as f64));
    }
    drop(history);

    let mut history = History::open(&path, small()).unwrap();
    assert_eq!(history.cursor(), 12);
    let id = history.series(&key(0)).unwrap();
    assert_eq!(history.newest(id), Some(reading(START_MS + 11 * MINUTE_MS, 11.0)));
    for minute in 12..30 {
        assert!(offer(&mut history, &key(0), reading(START_MS + minute * MINUTE_MS, minute as f64)));
    }
    history.commit(30).unwrap();
    let expected: Vec<_> = (0..30).map(|minute| reading(START_MS + minute * MINUTE_MS, minute as f64)).collect();
    assert_eq!(everything(&path, &key(0)), expected);
    assert_blocks_do_not_overlap(&path);
}

#[test]
fn a_series_without_open_readings_knows_its_newest_after_a_restart() {
    let (_directory, path) = directory();
    let mut history = History::open(&path, small()).unwrap();
    for minute in 0..5 {
        offer(&mut history, &key(0), reading(minute * MINUTE_MS, 4.0));
    }
    history.commit(5).unwrap();
    drop(history);
    let mut history = History::open(&path, small()).unwrap();
    let id = history.series(&key(0)).unwrap();
    assert_eq!(history.newest(id), Some(reading(4 * MINUTE_MS, 4.0)));
    assert!(history.open_readings(id, Timestamp::MIN, Timestamp::MAX).is_empty());
    assert!(!offer(&mut history, &key(0), reading(3 * MINUTE_MS, 4.0)));
}

#[test]
fn three_days_uploaded_backwards_fill_the_gap() {
    let (_directory, path) = directory();
    let mut history = History::open(&path, HistoryOptions::default()).unwrap();
    let minutes = 3 * 1_440;
    offer(&mut history, &key(0), reading(-MINUTE_MS, 0.0));
    offer(&mut history, &key(0), reading(minutes * MINUTE_MS, 0.0));
    for minute in (0..minutes).rev() {
        assert!(offer(&mut history, &key(0), reading(minute * MINUTE_MS, minute as f64)));
        if minute % 500 == 0 {
            history.commit(minute as u64).unwrap();
        }
    }
    for minute in 0..minutes {
        assert!(!offer(&mut history, &key(0), reading(minute * MINUTE_MS, minute as f64)), "minute {minute}");
    }
    history.commit(u64::MAX >> 1).unwrap();
    let read = everything(&path, &key(0));
    assert_eq!(read.len() as i64, minutes + 2);
    assert!(read.is_sorted_by_key(|reading| reading.event_time));
    assert_blocks_do_not_overlap(&path);
    let blocks = Connection::open(&path).unwrap();
    let blocks: i64 = blocks.query_row("SELECT count(*) FROM block", [], |row| row.get(0)).unwrap();
    assert!(blocks <= 60, "{blocks} blocks for {minutes} readings");
}

#[test]
fn next_free_steps_over_what_is_in_memory_and_in_the_file() {
    let (_directory, path) = directory();
    let mut history = History::open(&path, small()).unwrap();
    let id = history.series(&key(0)).unwrap();
    assert_eq!(history.next_free(id, at(100)).unwrap(), at(100));
    for event_ms in [100, 101, 102, 104, 105, 106, 107, 110] {
        history.insert(id, reading(event_ms, 1.0));
    }
    history.commit(1).unwrap();
    for event_ms in 111..120 {
        history.insert(id, reading(event_ms, 1.0));
    }
    history.insert(id, reading(103, 1.0));
    for (from, free) in [(99, 99), (100, 108), (103, 108), (108, 108), (110, 120), (119, 120), (500, 500)] {
        assert_eq!(history.next_free(id, at(from)).unwrap(), at(free), "from {from}");
    }
}

#[test]
fn rows_of_recent_readings_go_when_their_readings_are_in_blocks() {
    let (_directory, path) = directory();
    let mut history = History::open(&path, small()).unwrap();
    // One series reports once, the others go on: it must not keep every row that came after it.
    offer(&mut history, &key(9), reading(0, 1.0));
    for minute in 0..200 {
        for sensor in 0..2 {
            offer(&mut history, &key(sensor), reading(minute * MINUTE_MS, 1.0));
        }
        history.commit(minute as u64 + 1).unwrap();
    }
    let connection = Connection::open(&path).unwrap();
    let rows: i64 = connection.query_row("SELECT count(*) FROM recent", [], |row| row.get(0)).unwrap();
    assert!(rows <= 20, "{rows} rows");
    assert_eq!(everything(&path, &key(9)), [reading(0, 1.0)]);
    assert_eq!(everything(&path, &key(1)).len(), 200);
}

#[test]
fn retention_deletes_whole_blocks_only() {
    let (_directory, path) = directory();
    let mut history = History::open(&path, small()).unwrap();
    for minute in 0..23 {
        offer(&mut history, &key(0), reading(minute * MINUTE_MS, 1.0));
    }
    history.commit(1).unwrap();
    assert_eq!(history.expire(at(11 * MINUTE_MS)).unwrap(), 10);
    assert_eq!(history.expire(at(11 * MINUTE_MS)).unwrap(), 0);
    let left = HistoryReader::open(&path).unwrap().read(&key(0), Timestamp::MIN, Timestamp::MAX).unwrap();
    assert_eq!((left[0].event_time, left.len()), (at(10 * MINUTE_MS), 10));
    let id = history.series(&key(0)).unwrap();
    assert_eq!(history.value_at(id, at(9 * MINUTE_MS)).unwrap(), None);
    assert!(history.value_at(id, at(10 * MINUTE_MS)).unwrap().is_some());
}

#[test]
fn a_damaged_block_is_named_and_spoils_no_other() {
    let (_directory, path) = directory();
    let mut history = History::open(&path, small()).unwrap();
    for minute in 0..15 {
        offer(&mut history, &key(0), reading(START_MS + minute * MINUTE_MS, 1.0));
    }
    history.commit(1).unwrap();
    let start_ms = START_MS + 5 * MINUTE_MS;
    let damage =
        "UPDATE block SET data = CAST(substr(data, 1, 20) || x'55' || substr(data, 22) AS BLOB) WHERE start_ms = ?1";
    assert_eq!(Connection::open(&path).unwrap().execute(damage, [start_ms]).unwrap(), 1);

    let id = history.series(&key(0)).unwrap();
    let expected = format!(
        "the history block of op1/truck/t0/temperature that begins at {} is damaged: its checksum does not match",
        at(start_ms)
    );
    assert_eq!(history.value_at(id, at(start_ms + 1)).unwrap_err().to_string(), expected);
    assert!(history.value_at(id, at(START_MS)).unwrap().is_some());
    let reader = HistoryReader::open(&path).unwrap();
    let error = reader.read(&key(0), Timestamp::MIN, Timestamp::MAX).unwrap_err();
    assert_eq!(error.to_string(), expected);
    assert!(!error.is_temporary());
    assert_eq!(reader.read(&key(0), Timestamp::MIN, at(start_ms)).unwrap().len(), 5);
}

#[test]
fn a_damaged_row_of_recent_readings_is_named() {
    let (_directory, path) = directory();
    let mut history = History::open(&path, small()).unwrap();
    for minute in 0..3 {
        offer(&mut history, &key(0), reading(minute * MINUTE_MS, 1.0));
    }
    history.commit(1).unwrap();
    drop(history);
    let damage = "UPDATE recent SET data = CAST(substr(data, 1, length(data) - 2) || 'ab' AS BLOB)";
    assert_eq!(Connection::open(&path).unwrap().execute(damage, []).unwrap(), 1);
    assert!(matches!(History::open(&path, small()), Err(HistoryError::DamagedRecent { number: 0, .. })));
    let reader = HistoryReader::open(&path).unwrap();
    assert!(matches!(reader.recent(), Err(HistoryError::DamagedRecent { number: 0, .. })));
}

#[test]
fn the_metrics_count_what_happens() {
    let (_directory, path) = directory();
    let registry = prometheus::Registry::new();
    let metrics = HistoryMetrics::register(&registry).unwrap();
    let mut history = History::open(&path, HistoryOptions { metrics, ..small() }).unwrap();
    for minute in 0..7 {
        offer(&mut history, &key(0), reading(minute * MINUTE_MS, 1.0));
    }
    offer(&mut history, &key(0), reading(1, 1.0));
    history.commit(1).unwrap();
    history.expire(at(5 * MINUTE_MS)).unwrap();
    let text = prometheus::TextEncoder::new().encode_to_string(&registry.gather()).unwrap();
    for line in [
        "frostline_history_commits_total 1",
        "frostline_history_blocks_written_total 1",
        "frostline_history_late_readings_total 1",
        "frostline_history_readings_expired_total 5",
        "frostline_history_series 1",
        "frostline_history_open_readings 3",
    ] {
        assert!(text.lines().any(|other| other == line), "{line} is not in\n{text}");
    }
}

#[test]
fn a_commit_that_finds_the_disk_full_or_the_file_held_can_be_made_again() {
    let (_directory, path) = directory();
    let mut history = History::open(&path, small()).unwrap();
    offer(&mut history, &key(0), reading(0, 1.0));
    history.commit(1).unwrap();
    for minute in 1..2_000 {
        offer(&mut history, &key(0), reading(minute * MINUTE_MS, (minute % 7) as f64 * 0.123_456_789));
        offer(&mut history, &key(1), reading(-minute * MINUTE_MS, 2.0));
    }

    let pages_max = history.limit_pages(1);
    let error = history.commit(2).unwrap_err();
    assert!(error.is_temporary(), "{error:?}");
    history.limit_pages(pages_max);

    let other = Connection::open(&path).unwrap();
    other.execute_batch("BEGIN IMMEDIATE").unwrap();
    let error = history.commit(2).unwrap_err();
    assert!(error.is_temporary(), "{error:?}");
    other.execute_batch("ROLLBACK").unwrap();

    assert_eq!(history.cursor(), 1);
    history.commit(2).unwrap();
    drop(history);
    assert_eq!(History::open(&path, small()).unwrap().cursor(), 2);
    assert_eq!(everything(&path, &key(0)).len(), 2_000);
    assert_eq!(everything(&path, &key(1)).len(), 1_999);
}

#[test]
fn the_newest_until_an_instant_is_found_wherever_it_lies() {
    let (_directory, path) = directory();
    let mut history = History::open(&path, small()).unwrap();
    let id = history.series(&key(0)).unwrap();
    // Every third minute in order, then one of those between: in the file, in blocks that are not, in the open one, and late.
    let minutes =
        (0..20).map(|minute| minute * 3).chain([7, 25]).chain((20..27).map(|minute| minute * 3)).chain([70, 41]);
    let mut there = Vec::new();
    for (number, minute) in minutes.enumerate() {
        assert!(offer(&mut history, &key(0), reading(START_MS + minute * MINUTE_MS, minute as f64)));
        there.push(minute);
        if number == 21 {
            history.commit(1).unwrap();
        }
        for instant in -1..82 {
            let found = history.newest_until(id, at(START_MS + instant * MINUTE_MS)).unwrap();
            let expected = there.iter().copied().filter(|minute| *minute <= instant).max();
            assert_eq!(
                found.and_then(|reading| reading.value),
                expected.map(|minute| minute as f64),
                "until {instant}"
            );
        }
    }
}

#[test]
fn a_file_whose_making_was_interrupted_is_made_anew() {
    let (_directory, path) = directory();
    // The tables come in one transaction behind this.
    Connection::open(&path).unwrap().pragma_update(None, "journal_mode", "wal").unwrap();
    assert!(matches!(HistoryReader::open(&path), Err(HistoryError::Format { found: 0, .. })));
    make(&path).unwrap();
    assert_eq!(HistoryReader::open(&path).unwrap().cursor().unwrap(), 0);
}

#[test]
fn a_later_format_is_refused() {
    let (_directory, path) = directory();
    drop(History::open(&path, small()).unwrap());
    Connection::open(&path).unwrap().pragma_update(None, "user_version", 3).unwrap();
    let error = History::open(&path, small()).unwrap_err();
    assert_eq!(error.to_string(), "the history has format 3; this program reads format 2");
    assert!(matches!(HistoryReader::open(&path), Err(HistoryError::Format { found: 3, expected: 2 })));
}

#[test]
fn the_reader_filters_series_and_sees_what_a_killed_writer_left() {
    let (directory, path) = directory();
    let mut history = History::open(&path, small()).unwrap();
    let mut other = key(0);
    other.unit.unit = Name::new("box").unwrap();
    for minute in 0..7 {
        offer(&mut history, &key(0), reading(minute * MINUTE_MS, 1.0));
        offer(&mut history, &key(1), reading(minute * MINUTE_MS, 2.0));
        offer(&mut history, &other, reading(minute * MINUTE_MS, 3.0));
    }
    history.commit(1).unwrap();
    // What is on the disk while the writer lives is what a killed one leaves.
    let copy = directory.path().join("copy.db");
    std::fs::copy(&path, &copy).unwrap();
    std::fs::copy(path.with_extension("db-wal"), copy.with_extension("db-wal")).unwrap();

    let reader = HistoryReader::open(&copy).unwrap();
    assert_eq!(reader.series(None, None).unwrap(), [other.clone(), key(0), key(1)]);
    assert_eq!(reader.series(Some("op1"), Some("truck")).unwrap(), [key(0), key(1)]);
    assert!(reader.series(Some("op2"), None).unwrap().is_empty());
    assert_eq!(reader.read(&other, at(0), at(3 * MINUTE_MS)).unwrap().len(), 3);
    assert_eq!(everything(&copy, &other).len(), 7);
    assert!(reader.read(&key(5), Timestamp::MIN, Timestamp::MAX).unwrap().is_empty());
    assert!(reader.read(&key(0), at(5), at(5)).unwrap().is_empty());
}

#[test]
fn what_the_file_lacks_and_what_it_has_make_the_whole() {
    let (_directory, path) = directory();
    let mut history = History::open(&path, small()).unwrap();
    for minute in 0..8 {
        offer(&mut history, &key(0), reading(minute * MINUTE_MS, 1.0));
    }
    history.commit(1).unwrap();
    for minute in 8..20 {
        offer(&mut history, &key(0), reading(minute * MINUTE_MS, 1.0));
    }
    offer(&mut history, &key(0), reading(90_000, 1.5));
    let id = history.series(&key(0)).unwrap();
    let (from, to) = (at(MINUTE_MS), at(18 * MINUTE_MS));
    let open = history.open_readings(id, from, to);
    let stored = HistoryReader::open(&path).unwrap().read(&key(0), from, to).unwrap();
    assert_eq!((stored.len(), open.len()), (4, 14));
    let whole = merge(stored, open);
    assert_eq!(whole.len(), 18);
    assert!(whole.is_sorted_by(|a, b| a.event_time < b.event_time));
}

#[test]
fn thinning_gives_least_greatest_and_mean_of_each_step() {
    let mut failed = reading(130_000, 0.0);
    failed.value = None;
    let readings = [reading(-1, 9.0), reading(0, 1.0), reading(59_999, 4.0), reading(60_000, 2.0), failed];
    let buckets = thin(&readings, MINUTE_MS);
    let starts: Vec<_> = buckets.iter().map(|bucket| bucket.start.as_millis()).collect();
    assert_eq!(starts, [-MINUTE_MS, 0, MINUTE_MS, 2 * MINUTE_MS]);
    let second = Bucket { start: at(0), count: 2, failed: 0, min: Some(1.0), max: Some(4.0), mean: Some(2.5) };
    assert_eq!(buckets[1], second);
    let last = Bucket { start: at(2 * MINUTE_MS), count: 0, failed: 1, min: None, max: None, mean: None };
    assert_eq!(buckets[3], last);
}

#[derive(Debug, Clone)]
enum Step {
    /// Offers readings `from, from + step, ..`, or the same backwards.
    Offer {
        sensor: usize,
        from_ms: i64,
        step_ms: i64,
        readings: i64,
    },
    Commit,
    /// Kills the process: what was not committed comes again from the journal.
    Kill,
    Look {
        sensor: usize,
        event_ms: i64,
    },
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (0..3_usize, 0..60_i64, prop::sample::select(vec![1_i64, 2, 3, -1, -2]), 1..20_i64)
            .prop_map(|(sensor, from_ms, step_ms, readings)| Step::Offer { sensor, from_ms, step_ms, readings }),
        2 => Just(Step::Commit),
        1 => Just(Step::Kill),
        2 => (0..3_usize, -40..120_i64).prop_map(|(sensor, event_ms)| Step::Look { sensor, event_ms }),
    ]
}

/// A value (and quality) that depends on the reading's time alone, so that a reading played again is the same.
fn made_up(event_ms: i64) -> Reading {
    let value = match event_ms.rem_euclid(9) {
        0 => None,
        1 => Some(-0.0),
        2 => Some(f64::MIN_POSITIVE / 8.0),
        3 => Some(0.1 + 0.2),
        _ => Some(event_ms as f64 / 100.0),
    };
    Reading { event_time: at(event_ms), value, quality: Quality::from_bits((event_ms.rem_euclid(4) == 0) as u8) }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn any_order_of_arrivals_commits_and_kills_agrees_with_a_map(steps in prop::collection::vec(step(), 1..40)) {
        let (_directory, path) = directory();
        let mut history = History::open(&path, small()).unwrap();
        let mut model: [BTreeMap<i64, Reading>; 3] = Default::default();
        let mut journal: Vec<(usize, i64)> = vec![];
        for step in steps {
            match step {
                Step::Offer { sensor, from_ms, step_ms, readings } => {
                    for event_ms in (0..readings).map(|n| from_ms + n * step_ms) {
                        let is_new = offer(&mut history, &key(sensor), made_up(event_ms));
                        prop_assert_eq!(is_new, model[sensor].insert(event_ms, made_up(event_ms)).is_none());
                        if is_new {
                            journal.push((sensor, event_ms));
                        }
                    }
                }
                Step::Commit => history.commit(journal.len() as u64).unwrap(),
                Step::Kill => {
                    drop(history);
                    history = History::open(&path, small()).unwrap();
                    for &(sensor, event_ms) in &journal[history.cursor() as usize..] {
                        prop_assert!(offer(&mut history, &key(sensor), made_up(event_ms)));
                    }
                }
                Step::Look { sensor, event_ms } => {
                    let id = history.series(&key(sensor)).unwrap();
                    let found = history.value_at(id, at(event_ms)).unwrap();
                    let expected = model[sensor].get(&event_ms).copied();
                    prop_assert_eq!(bits(found.as_slice()), bits(expected.as_slice()));
                    let newest = model[sensor].last_key_value().map(|(_, &reading)| reading);
                    prop_assert_eq!(bits(history.newest(id).as_slice()), bits(newest.as_slice()));
                    let free = (event_ms..).find(|event_ms| !model[sensor].contains_key(event_ms)).unwrap();
                    prop_assert_eq!(history.next_free(id, at(event_ms)).unwrap(), at(free));
                    let until = model[sensor].range(..=event_ms).next_back().map(|(_, &reading)| reading);
                    prop_assert_eq!(bits(history.newest_until(id, at(event_ms)).unwrap().as_slice()), bits(until.as_slice()));
                    let after: Vec<_> = model[sensor].range(event_ms + 1..).map(|(_, &reading)| reading).collect();
                    prop_assert_eq!(bits(&history.readings_after(id, at(event_ms)).unwrap()), bits(&after));
                    let (from, to) = (at(event_ms - 30), at(event_ms));
                    let open = history.open_readings(id, from, to);
                    let reader = HistoryReader::open(&path).unwrap();
                    let whole = merge(reader.read(&key(sensor), from, to).unwrap(), open);
                    let expected: Vec<_> = model[sensor].range(event_ms - 30..event_ms).map(|(_, &reading)| reading).collect();
                    prop_assert_eq!(bits(&whole), bits(&expected));
                }
            }
        }
        history.commit(journal.len() as u64).unwrap();
        history.check_counts();
        for (sensor, model) in model.iter().enumerate() {
            let expected: Vec<_> = model.values().copied().collect();
            prop_assert_eq!(bits(&everything(&path, &key(sensor))), bits(&expected));
        }
        assert_blocks_do_not_overlap(&path);
    }
}
