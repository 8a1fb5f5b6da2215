//! The pipeline against itself: cut short anywhere, it ends up where it would have without.

use std::collections::BTreeMap;
use std::path::Path;

use frostline_core::model::SeriesKey;
use proptest::prelude::*;

use super::*;
use crate::clock::ManualClock;
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
"#;

/// When the stories begin.
const EPOCH_MS: i64 = 1_790_000_000_000;

/// One thing that comes into the journal, so many milliseconds after the one before.
#[derive(Debug, Clone)]
enum Step {
    Reading { unit: u8, age_ms: i64, value: Option<i8>, seq: Option<u8> },
    Untimed { unit: u8, value: i8, seq: Option<u8> },
    Nonsense,
    Tick,
    Restart { with_snapshot: bool },
}

fn step() -> impl Strategy<Value = (u16, Step)> {
    let reading = (
        0..2_u8,
        prop_oneof![4 => Just(0_i64), 1 => 0..8_000_i64],
        proptest::option::weighted(0.9, 0..14_i8),
        proptest::option::of(0..20_u8),
    );
    let step = prop_oneof![
        10 => reading.prop_map(|(unit, age_ms, value, seq)| Step::Reading { unit, age_ms, value, seq }),
        2 => (0..2_u8, 0..4_i8, proptest::option::of(0..3_u8)).prop_map(|(unit, value, seq)| Step::Untimed { unit, value, seq }),
        1 => Just(Step::Nonsense),
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
    let config = tempfile::tempdir().unwrap();
    std::fs::write(config.path().join("rules.toml"), RULES).unwrap();
    std::fs::write(config.path().join("frostline.toml"), settings).unwrap();
    let bundle = crate::config::load_with_environment(config.path(), &[]).unwrap().bundle;
    put(Entry::Configuration { hash: &bundle.hash(), content: bundle.to_text().as_bytes() }, EPOCH_MS);
    let mut now_ms = EPOCH_MS;
    for (pause_ms, step) in steps {
        now_ms += i64::from(*pause_ms);
        let (unit, payload) = match step {
            Step::Reading { unit, age_ms, value, seq } => {
                let value = value.map_or("null".to_owned(), |value| value.to_string());
                let seq = seq.map_or(String::new(), |seq| format!(r#""seq":{seq},"#));
                let ts = now_ms - age_ms;
                let payload = format!(
                    r#"{{{seq}"ts":{ts},"readings":[{{"sensor":"t1","kind":"temperature","value":{value}}}]}}"#
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
        history_metrics: HistoryMetrics::register(&registry).unwrap(),
        clock: Arc::new(ManualClock::at(Timestamp::from_millis(EPOCH_MS))),
    };
    let shared = PipelineShared {
        accounting: Accounting::default(),
        live: Live::default(),
        events: tokio::sync::broadcast::channel(16).0,
        readings: tokio::sync::broadcast::channel(16).0,
        next_deadline_ms: Arc::new(AtomicI64::new(i64::MAX)),
        committed: tokio::sync::watch::channel(0).0,
    };
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
    // The order of units is nobody's business.
    sequences.sort();
    drop(pipeline);
    let mut totals = shared.accounting.totals();
    totals.retain(|_, value| *value > 0);
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
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 32, ..ProptestConfig::default() })]

    #[test]
    fn a_pipeline_cut_short_anywhere_ends_up_where_it_would_have(
        steps in proptest::collection::vec(step(), 1..60),
        source in prop_oneof![Just(ClockSource::System), Just(ClockSource::Readings)],
    ) {
        let (whole, cut, journal) =
            (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let readers = write_journal(journal.path(), &steps, source);
        let expected = run_pipeline(whole.path(), &readers, &steps, false);
        let found = run_pipeline(cut.path(), &readers, &steps, true);
        prop_assert_eq!(&found, &expected);

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
    let reading = |age_ms| Step::Reading { unit: 0, age_ms, value: Some(5), seq: None };
    let steps = [(0, reading(0)), (4_000, reading(0)), (4_000, reading(0))];
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
