//! The pipeline against itself: cut short anywhere, it ends up where it would have without.

use std::collections::BTreeMap;
use std::path::Path;

use frostline_core::model::SeriesKey;
use proptest::prelude::*;

use super::*;
use crate::alert::AlertState;
use crate::clock::ManualClock;
use crate::episode_file::EpisodeRecord;
use crate::health::Health;
use crate::history::{HistoryMetrics, HistoryReader};
use crate::journal::{Journal, JournalMetrics, JournalOptions};
use crate::ledger::{AlertFilter, LedgerReader};
use crate::series::Feed;
use crate::series::line_protocol::LineBatch;

const RULES: &str = r#"
[[rule]]
id = "warm"
kind = "range"
quantity = "temperature"
severity = "critical"
high = 8.0
hysteresis = 0.5
for = "4s"
keep_firing_for = "2s"
max_gap = "5s"

[[rule]]
id = "silent"
kind = "silence"
quantity = "temperature"
severity = "notice"
max_gap = "5s"
for = "3s"

[[rule]]
id = "unit-silent"
kind = "silence"
scope = "unit"
max_gap = "4s"

[[rule]]
id = "warm-but-for-defrosts"
kind = "range"
quantity = "temperature"
high = 6.0
for = "2s"
max_gap = "5s"
never_above = 12.0
suspend_while = { quantity = "defrost", is = 1, plus = "1s", at_most = "6s" }

[[rule]]
id = "too-long-warm"
kind = "cumulative"
quantity = "temperature"
high = 5.0
window = "12s"
budget = "5s"
max_gap = "4s"

[[rule]]
id = "kinetic"
kind = "mean_kinetic_temperature"
quantity = "temperature"
window = "10s"
high = 7.0
max_gap = "4s"

[[rule]]
id = "steep"
kind = "rate"
quantity = "temperature"
per = "6s"
rise = 6.0
fall = 8.0
max_gap = "4s"

[[rule]]
id = "seldom"
kind = "cadence"
quantity = "temperature"
every = "2s"
window = "8s"
share = 0.5

[[rule]]
id = "stuck"
kind = "stuck"
quantity = "temperature"
for = "6s"
min_readings = 3

[[rule]]
id = "apart"
kind = "disagreement"
quantity = "temperature"
limit = 4.0
for = "1s"
max_gap = "5s"
"#;

/// One probe that reports and one that never does.
const FLEET: &str = r#"
[[unit]]
id = "u0"
operator = "op1"
kind = "storage"

[[sensor]]
id = "t1"
unit = "u0"
operator = "op1"
max_gap = "3s"

[[sensor]]
id = "t9"
unit = "u0"
operator = "op1"
"#;

/// Goods that the second configuration knows of: an hour before the stories begin, until five seconds after.
const GOODS: &str = r#"
[[consignment]]
id = "c1"
unit = "u0"
operator = "op1"
profile = "chilled_food"
from = "2026-09-21T13:13:20Z"
to = "2026-09-21T14:13:25Z"
"#;

/// When the stories begin.
const EPOCH_MS: i64 = 1_790_000_000_000;

/// One thing that comes into the journal, so many milliseconds after the one before.
#[derive(Debug, Clone)]
enum Step {
    Reading {
        unit: u8,
        sensor: Sensor,
        age_ms: i64,
        value: Option<i8>,
        seq: Option<u8>,
    },
    Untimed {
        unit: u8,
        value: i8,
        seq: Option<u8>,
    },
    Nonsense,
    /// One of two configurations, which differ in rules and goods.
    Configure {
        second: bool,
    },
    Tick,
    Restart {
        with_snapshot: bool,
    },
}

/// What a reading is of.
#[derive(Debug, Clone, Copy)]
enum Sensor {
    T1,
    T2,
    Defrost,
}

fn step() -> impl Strategy<Value = (u16, Step)> {
    let reading = (
        (0..2_u8, prop_oneof![4 => Just(Sensor::T1), 3 => Just(Sensor::T2), 1 => Just(Sensor::Defrost)]),
        prop_oneof![4 => Just(0_i64), 1 => 0..8_000_i64, 1 => (0..20_i64).prop_map(|seconds| seconds * 1_000)],
        proptest::option::weighted(0.9, 0..14_i8),
        proptest::option::of(0..20_u8),
    );
    let step = prop_oneof![
        10 => reading.prop_map(|((unit, sensor), age_ms, value, seq)| Step::Reading { unit, sensor, age_ms, value, seq }),
        2 => (0..2_u8, 0..4_i8, proptest::option::of(0..3_u8)).prop_map(|(unit, value, seq)| Step::Untimed { unit, value, seq }),
        1 => Just(Step::Nonsense),
        1 => any::<bool>().prop_map(|second| Step::Configure { second }),
        4 => Just(Step::Tick),
        2 => any::<bool>().prop_map(|with_snapshot| Step::Restart { with_snapshot }),
    ];
    (prop_oneof![Just(0_u16), Just(1), 0..3_000_u16], step)
}

/// Writes the steps into a journal in `dir`, with the configuration first.
///
/// Where readings bring the time, the machine's clock is years ahead of theirs.
fn write_journal(dir: &Path, steps: &[(u16, Step)], source: ClockSource) -> JournalReaders {
    let (settings, ahead_ms) = match source {
        ClockSource::System => ("rules.settle = \"1s\"\n", 0),
        ClockSource::Readings => ("rules.settle = \"1s\"\nclock.source = \"readings\"\n", 1_000 * 86_400_000),
    };
    let clock = ManualClock::at(Timestamp::from_millis(EPOCH_MS));
    let registry = prometheus::Registry::new();
    let health = Health::default();
    let options = JournalOptions::new(
        dir.join("journal"),
        Arc::new(clock.clone()),
        JournalMetrics::register(&registry).unwrap(),
        health.part("journal"),
    );
    let (journal, _) = Journal::<()>::open(options).unwrap();
    let (handle, readers) = (journal.handle(), journal.readers());
    let writer = std::thread::spawn(move || journal.run(|_| {}).unwrap());
    let put = |entry: Entry<'_>, now_ms: i64| {
        clock.set(Timestamp::from_millis(now_ms + ahead_ms));
        let offset = handle.submit_blocking(entry, ()).unwrap();
        // One entry a block: each has the time at which it was taken.
        while readers.next_offset() <= offset {
            std::thread::yield_now();
        }
    };
    let bundle = |second: bool| {
        let config = tempfile::tempdir().unwrap();
        let (rules, goods) =
            if second { (RULES.replace("high = 8.0", "high = 9.0"), GOODS) } else { (RULES.to_owned(), "") };
        std::fs::write(config.path().join("rules.toml"), rules).unwrap();
        std::fs::write(config.path().join("fleet.toml"), format!("{FLEET}{goods}")).unwrap();
        std::fs::write(config.path().join("frostline.toml"), settings).unwrap();
        crate::config::load_with_environment(config.path(), &[]).unwrap().bundle
    };
    let bundles = [bundle(false), bundle(true)];
    let configure = |second: bool, now_ms| {
        let bundle = &bundles[usize::from(second)];
        put(Entry::Configuration { hash: &bundle.hash(), content: bundle.to_text().as_bytes() }, now_ms);
    };
    configure(false, EPOCH_MS);
    let mut now_ms = EPOCH_MS;
    for (pause_ms, step) in steps {
        now_ms += i64::from(*pause_ms);
        let (unit, payload) = match step {
            Step::Reading { unit, sensor, age_ms, value, seq } => {
                let (sensor, kind) = match sensor {
                    Sensor::T1 => ("t1", "temperature"),
                    Sensor::T2 => ("t2", "temperature"),
                    Sensor::Defrost => ("d1", "defrost"),
                };
                let value = value.map(|value| if kind == "defrost" { value % 2 } else { value });
                let value = value.map_or("null".to_owned(), |value| value.to_string());
                let seq = seq.map_or(String::new(), |seq| format!(r#""seq":{seq},"#));
                let ts = now_ms - age_ms;
                let payload = format!(
                    r#"{{{seq}"ts":{ts},"readings":[{{"sensor":"{sensor}","kind":"{kind}","value":{value}}}]}}"#
                );
                (*unit, payload)
            }
            Step::Untimed { unit, value, seq } => {
                let seq = seq.map_or(String::new(), |seq| format!(r#""seq":{seq},"#));
                (*unit, format!(r#"{{{seq}"readings":[{{"sensor":"t1","kind":"temperature","value":{value}}}]}}"#))
            }
            Step::Nonsense => (0, "nonsense".to_owned()),
            Step::Tick => {
                put(Entry::Tick, now_ms);
                continue;
            }
            Step::Configure { second } => {
                configure(*second, now_ms);
                continue;
            }
            Step::Restart { .. } => continue,
        };
        let topic = format!("coldchain/v1/op1/u{unit}/telemetry");
        put(
            Entry::Message(Message {
                topic: topic.as_bytes(),
                payload: payload.as_bytes(),
                retained: false,
                oversize: None,
                original_received_at: None,
            }),
            now_ms,
        );
    }
    handle.stop();
    writer.join().unwrap();
    readers
}

/// Everything that an outsider could see in the end.
#[derive(Debug, PartialEq)]
struct Outcome {
    totals: Totals,
    alerts: Vec<crate::alert::Alert>,
    told: Vec<(String, u64, &'static str, i64, bool)>,
    readings: BTreeMap<SeriesKey, Vec<Reading>>,
    lines: String,
    dead_letters: Vec<(u64, String)>,
    sequences: Vec<(String, Option<u64>, u64, u64)>,
    clocks: BTreeMap<UnitKey, DeviceClock>,
    /// The rules' *now* in the end.
    now: Timestamp,
}

/// Applies the journal, starting anew where the steps say so.
fn run_pipeline(dir: &Path, readers: &JournalReaders, steps: &[(u16, Step)], restarts: bool) -> Outcome {
    let registry = prometheus::Registry::new();
    let options = PipelineOptions {
        data_dir: dir.to_owned(),
        history_retention_ms: i64::MAX / 4,
        dead_letters_max_size_bytes: 1 << 20,
        snapshot_every_bytes: u64::MAX,
        exercise: false,
        closed_days: crate::history::ClosedDays::default(),
        history_metrics: HistoryMetrics::register(&registry).unwrap(),
        clock: Arc::new(ManualClock::at(Timestamp::from_millis(EPOCH_MS))),
    };
    let shared = PipelineShared::new(16);
    let cursor = {
        let health = Health::default();
        let options = JournalOptions::new(
            dir.join("elsewhere"),
            Arc::new(ManualClock::default()),
            JournalMetrics::register(&prometheus::Registry::new()).unwrap(),
            health.part("journal"),
        );
        Journal::<()>::open(options).unwrap().0.register("pipeline", 0)
    };
    let mut pipeline = Pipeline::open(&options, &shared).unwrap();
    let mut batch = Batch::new();
    let apply_until = |pipeline: &mut Pipeline, batch: &mut Batch, end: u64| {
        let mut reader = readers.open(pipeline.next_offset).unwrap();
        while pipeline.next_offset < end {
            // Small batches, so that commits fall everywhere.
            reader.read(batch, 1).unwrap();
            for (offset, received_at, entry) in batch.iter() {
                if offset < end {
                    pipeline.apply(offset, received_at, &entry).unwrap();
                }
            }
        }
    };
    let mut end = 1;
    for (_, step) in steps {
        match step {
            Step::Restart { with_snapshot } if restarts => {
                apply_until(&mut pipeline, &mut batch, end);
                if *with_snapshot {
                    pipeline.make_snapshot(readers, &cursor).unwrap();
                } else if end % 2 == 0 {
                    pipeline.commit().unwrap();
                }
                // Without either, what was applied since the last commit is lost with the process.
                drop(pipeline);
                pipeline = Pipeline::open(&options, &shared).unwrap();
            }
            Step::Restart { .. } => {}
            _ => end += 1,
        }
    }
    apply_until(&mut pipeline, &mut batch, end);
    pipeline.make_snapshot(readers, &cursor).unwrap();
    let mut sequences: Vec<_> = pipeline
        .units
        .iter()
        .map(|unit| (unit.key.unit.to_string(), unit.sequence.last, unit.sequence.gaps, unit.sequence.repeats))
        .collect();
    let now = pipeline.now;
    let clocks = pipeline.units.iter().map(|unit| (unit.key.clone(), unit.clock)).collect();
    // The order of units is nobody's business.
    sequences.sort();
    drop(pipeline);
    let mut totals = shared.accounting.totals();
    // How far back judging again goes depends on which checkpoints there are; what comes out does not.
    totals.retain(|(name, _), value| *value > 0 && name != accounting::REJUDGED_READINGS);
    let reader = LedgerReader::open(dir).unwrap();
    let history = HistoryReader::open(&dir.join(HISTORY_FILE)).unwrap();
    let recent = history.recent().unwrap();
    let readings = history.series(None, None).unwrap().into_iter().map(|key| {
        let readings = history.read_with(&recent, &key, Timestamp::MIN, Timestamp::MAX).unwrap();
        (key, readings)
    });
    let mut lines = LineBatch::default();
    let mut feed = AcceptedFeed::open(dir, readers.clone(), shared.committed.subscribe()).unwrap();
    let mut from = 0;
    while let Some(next) = feed.read(from, 3, &mut lines).unwrap() {
        from = next;
    }
    Outcome {
        totals,
        alerts: reader.alerts(&AlertFilter::default(), None, 1_000).unwrap().items,
        told: reader
            .told_from(0, 10_000)
            .unwrap()
            .into_iter()
            .map(|told| {
                let state = told.alert.state.as_str();
                (told.alert.id, told.alert.revision, state, told.event_time.as_millis(), told.superseded)
            })
            .collect(),
        readings: readings.collect(),
        lines: String::from_utf8(lines.as_bytes().to_vec()).unwrap(),
        dead_letters: reader
            .dead_letters(None, None, 1_000)
            .unwrap()
            .into_iter()
            .map(|letter| (letter.message.journal_offset, letter.reason))
            .collect(),
        sequences,
        clocks,
        now,
    }
}

/// Returns the lines in which two values differ, as they print.
fn difference<T: std::fmt::Debug>(found: &T, expected: &T) -> String {
    let [found, expected] = [found, expected].map(|value| format!("{value:#?}"));
    let lines = |sign: char, of: &str, other: &str| -> Vec<String> {
        let other: std::collections::BTreeSet<&str> = other.lines().collect();
        let differs = of.lines().enumerate().filter(|(_, line)| !other.contains(line));
        differs.map(|(number, line)| format!("{sign} {number} {}", line.trim())).collect()
    };
    [lines('+', &found, &expected), lines('-', &expected, &found)].concat().join("\n")
}

/// Returns the episodes of the alerts that stand, and those of all accepted readings judged in order.
fn episodes(outcome: &Outcome, source: ClockSource) -> (Vec<EpisodeRecord>, Vec<EpisodeRecord>) {
    let standing = outcome.alerts.iter().filter(|alert| alert.state != AlertState::Retracted);
    let told = standing.map(|alert| EpisodeRecord {
        operator: alert.operator.clone(),
        unit: alert.unit.clone(),
        sensor: alert.sensor.clone(),
        rule: alert.rule.clone(),
        started_at: alert.started_at.0,
        fired_at: alert.fired_at.unwrap().0,
        resolved_at: alert.resolved_at.map(|at| at.0),
        extreme: alert.extreme,
    });
    let mut told: Vec<_> = told.collect();
    crate::episode_file::sort(&mut told);
    let config = tempfile::tempdir().unwrap();
    std::fs::write(config.path().join("rules.toml"), RULES).unwrap();
    std::fs::write(config.path().join("fleet.toml"), FLEET).unwrap();
    let judgement = crate::config::load_judgement(config.path(), None).unwrap();
    let point = |reading: &Reading| (reading.event_time.as_millis(), reading.value.unwrap_or(f64::NAN));
    let series = outcome.readings.iter().map(|(key, readings)| (key.clone(), readings.iter().map(point).collect()));
    // What time alone makes true is told when it has settled.
    let now = outcome.now.plus_millis(-1_000);
    let oldest = outcome.readings.values().filter_map(|readings| readings.first()).map(|reading| reading.event_time);
    let registered_at = match source {
        ClockSource::System => Timestamp::from_millis(EPOCH_MS),
        ClockSource::Readings => oldest.min().unwrap_or(now),
    };
    let judged = crate::backtest::judge(judgement.rules, judgement.registry, series.collect(), registered_at, now);
    (told, judged)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 32, ..ProptestConfig::default() })]

    #[test]
    fn a_pipeline_cut_short_anywhere_ends_up_where_it_would_have(
        steps in proptest::collection::vec(step(), 1..60),
        source in prop_oneof![Just(ClockSource::System), Just(ClockSource::Readings)],
    ) {
        // In the end everything late is judged, and everything has settled.
        let steps: Vec<_> = steps.into_iter().chain(std::iter::repeat_n((6_000, Step::Tick), 3)).collect();
        let (whole, cut, journal) =
            (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let readers = write_journal(journal.path(), &steps, source);
        let expected = run_pipeline(whole.path(), &readers, &steps, false);
        let found = run_pipeline(cut.path(), &readers, &steps, true);
        prop_assert!(found == expected, "{}", difference(&found, &expected));
        if !steps.iter().any(|(_, step)| matches!(step, Step::Configure { second: true })) {
            let (told, judged) = episodes(&expected, source);
            prop_assert!(told == judged, "{}", difference(&told, &judged));
        }

        // The accounting identity, and every accepted reading both in the history and on its way to the sinks.
        let sum = |name: &str| -> u64 {
            expected.totals.iter().filter(|((other, _), _)| other == name).map(|(_, value)| value).sum()
        };
        let accounted = sum(accounting::STORED) + sum(accounting::DUPLICATE) + sum(accounting::DEAD_LETTERED);
        prop_assert_eq!(sum(accounting::RECEIVED), accounted);
        let kept: usize = expected.readings.values().map(Vec::len).sum();
        prop_assert_eq!(kept as u64, sum(accounting::STORED));
        let written: std::collections::BTreeSet<&str> = expected.lines.lines().collect();
        prop_assert_eq!(written.len(), kept);
    }
}

#[test]
fn where_readings_bring_the_time_the_machine_has_none_to_add() {
    let reading = |value| Step::Reading { unit: 0, sensor: Sensor::T1, age_ms: 0, value: Some(value), seq: None };
    let steps = [(0, reading(3)), (4_000, reading(4)), (4_000, reading(5))];
    let (data, journal) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let readers = write_journal(journal.path(), &steps, ClockSource::Readings);
    let outcome = run_pipeline(data.path(), &readers, &steps, false);
    assert_eq!(outcome.dead_letters, [], "nothing is past");
    assert_eq!(outcome.told, [], "nobody is silent");
    assert_eq!(outcome.readings.values().map(Vec::len).sum::<usize>(), 3);
}

#[test]
fn a_message_without_a_time_that_comes_twice_is_told_by_its_sequence_number_alone() {
    let totals = |seq| {
        let (dir, journal) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let step = (1_000, Step::Untimed { unit: 0, value: 5, seq });
        let steps = [step.clone(), step];
        let readers = write_journal(journal.path(), &steps, ClockSource::System);
        let totals = run_pipeline(dir.path(), &readers, &steps, false).totals;
        let total = |name: &str| totals.iter().filter(|((other, _), _)| other == name).map(|(_, value)| *value).sum();
        (total(accounting::STORED), total(accounting::DUPLICATE))
    };
    assert_eq!(totals(Some(7)), (1_u64, 1_u64));
    assert_eq!(totals(None), (2, 0));
}

/// Returns what an outcome says of one unit.
fn of_unit(outcome: &Outcome, unit: &str) -> String {
    let alerts: Vec<_> = outcome.alerts.iter().filter(|alert| alert.unit == unit).cloned().collect();
    let is_of_unit = |id: &String| alerts.iter().any(|alert| alert.id == *id);
    let told: Vec<_> = outcome.told.iter().filter(|(id, ..)| is_of_unit(id)).cloned().collect();
    let readings: Vec<_> = outcome.readings.iter().filter(|(key, _)| key.unit.unit.as_str() == unit).collect();
    let lines: Vec<_> = outcome.lines.lines().filter(|line| line.contains(&format!("unit={unit},"))).collect();
    format!("{alerts:#?} {told:#?} {readings:#?} {lines:#?}")
}

/// A message of the unit whose clock is bad: minutes or years ahead, or behind.
fn wild() -> impl Strategy<Value = (u16, Step)> {
    let age_ms = prop_oneof![
        -299_000..0_i64,
        -4_000_000_000_000..-299_000_i64,
        0..4_000_000_i64,
        any::<i32>().prop_map(i64::from)
    ];
    let reading = (age_ms, prop::option::of(0..14_i8)).prop_map(|(age_ms, value)| Step::Reading {
        unit: 0,
        sensor: Sensor::T1,
        age_ms,
        value,
        seq: None,
    });
    (0..3_000_u16, reading)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    #[test]
    fn a_bad_clock_changes_nothing_for_another_unit(
        steps in proptest::collection::vec((any::<bool>(), step(), wild()), 5..60),
    ) {
        let of_others = |step: &Step| !matches!(step, Step::Reading { unit: 0, .. } | Step::Untimed { unit: 0, .. } | Step::Nonsense | Step::Restart { .. });
        let with: Vec<(u16, Step)> = steps
            .into_iter()
            .map(|(is_wild, step, wild)| if is_wild || !of_others(&step.1) { wild } else { step })
            .collect();
        // The same instants, but a unit with a good clock speaks in place of the one with the bad.
        let good = || Step::Reading { unit: 2, sensor: Sensor::T1, age_ms: 0, value: Some(5), seq: None };
        let without: Vec<(u16, Step)> =
            with.iter().map(|(pause_ms, step)| (*pause_ms, if of_others(step) { step.clone() } else { good() })).collect();
        let outcomes = [with, without].map(|steps| {
            let (dir, journal) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
            let readers = write_journal(journal.path(), &steps, ClockSource::System);
            run_pipeline(dir.path(), &readers, &steps, false)
        });
        prop_assert_eq!(of_unit(&outcomes[0], "u1"), of_unit(&outcomes[1], "u1"));
    }
}

#[test]
fn a_reading_of_the_very_instant_at_which_a_rule_changes_is_the_new_versions_first() {
    let reading = || Step::Reading { unit: 1, sensor: Sensor::T1, age_ms: 0, value: Some(12), seq: None };
    let ticks = [(6_000, Step::Tick), (6_000, Step::Tick)];
    let steps: Vec<_> =
        [(0, reading()), (4_000, reading()), (0, Step::Configure { second: true })].into_iter().chain(ticks).collect();
    for source in [ClockSource::System, ClockSource::Readings] {
        let (data, journal) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let readers = write_journal(journal.path(), &steps, source);
        let outcome = run_pipeline(data.path(), &readers, &steps, false);
        let of_rule = outcome.alerts.iter().filter(|alert| alert.rule == "warm");
        let instants = of_rule.map(|alert| {
            let from_start_ms = |at: Timestamp| at.as_millis() - EPOCH_MS;
            let resolved = alert.resolved_at.map(|at| from_start_ms(at.0));
            (from_start_ms(alert.started_at.0), resolved, alert.resolution.clone())
        });
        let mut instants: Vec<_> = instants.collect();
        instants.sort();
        let old = (0, Some(4_000), Some("rule_changed".to_owned()));
        let is_new_known = source == ClockSource::System;
        let new = is_new_known.then_some((4_000, None, None));
        assert_eq!(instants, [old].into_iter().chain(new).collect::<Vec<_>>(), "{source:?}");
    }
}
