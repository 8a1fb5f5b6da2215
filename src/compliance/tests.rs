//! Sums against readings, with a real journal, pipeline and history.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use frostline_core::accounting::{Account, Terms, UnitAccount};
use frostline_core::model::{Kind, Name, Quality, Reading, Timestamp, UnitKey};
use proptest::prelude::*;
use serde_json::json;
use tempfile::TempDir;
use tokio_util::sync::CancellationToken;

use super::*;
use crate::clock::ManualClock;
use crate::config::{self, Loaded};
use crate::health::Health;
use crate::history::{DAY_MS, HistoryMetrics};
use crate::journal::{Entry, Journal, JournalHandle, JournalMetrics, JournalOptions, Message};
use crate::pipeline::{self, PipelineOptions, PipelineShared};

/// How long anything that must happen is waited for.
const PATIENCE: Duration = Duration::from_secs(30);
const HOUR_MS: i64 = 3_600_000;
/// Midnight.
const START_MS: i64 = 20_780 * DAY_MS;
const START_DAY: i64 = 20_780;

const PROFILES: &str = r#"
[[profile]]
id = "frozen"
name = { zh = "冷冻", en = "frozen" }
category = "food"
high = -18.0
record_storage = "6h"

[[profile]]
id = "chilled"
name = { zh = "冷藏", en = "chilled" }
category = "dairy"
high = 4.0
record_storage = "1h"
"#;

const RULES: &str = r#"
[[rule]]
id = "too-warm"
kind = "range"
quantity = "temperature"
severity = "critical"
limits = "profile"
"#;

/// The rule looks at one sensor only.
const RULES_FOR_ONE: &str = r#"
[[rule]]
id = "too-warm"
kind = "range"
quantity = "temperature"
severity = "critical"
limits = "profile"
where = { sensor = "t1" }
"#;

fn fleet(units: &[&str], more: String) -> String {
    let unit =
        |id: &&str| format!("[[unit]]\nid = \"{id}\"\noperator = \"op1\"\nkind = \"storage\"\nprofile = \"frozen\"\n");
    let units: String = units.iter().map(unit).collect();
    format!("[[operator]]\nid = \"op1\"\nname = \"One\"\n{units}{more}")
}

/// Goods of another profile in u0 in the middle of the second day.
fn goods() -> String {
    let (from, to) = (at(START_MS + 30 * HOUR_MS), at(START_MS + 45 * HOUR_MS));
    format!(
        "[[consignment]]\nid = \"c1\"\nunit = \"u0\"\noperator = \"op1\"\nprofile = \"chilled\"\n\
         from = \"{from}\"\nto = \"{to}\"\n"
    )
}

/// A configuration that the daemon is started with.
#[derive(Debug, Clone, Copy)]
enum Configured {
    Plain,
    WithGoods,
    WithRuleForOne,
    WithoutUnit1,
}

impl Configured {
    fn load(self) -> Loaded {
        let directory = TempDir::new().unwrap();
        let write = |name: &str, text: &str| std::fs::write(directory.path().join(name), text).unwrap();
        write("profiles.toml", PROFILES);
        let with_goods = matches!(self, Self::WithGoods);
        let without_unit = matches!(self, Self::WithoutUnit1);
        let units: &[&str] = if without_unit { &["u0"] } else { &["u0", "u1"] };
        write("fleet.toml", &fleet(units, if with_goods { goods() } else { String::new() }));
        write("rules.toml", if matches!(self, Self::WithRuleForOne) { RULES_FOR_ONE } else { RULES });
        config::load_with_environment(directory.path(), &[]).unwrap()
    }
}

fn at(event_ms: i64) -> Timestamp {
    Timestamp::from_millis(event_ms)
}

fn key(unit: u8) -> UnitKey {
    UnitKey { operator: Name::new("op1").unwrap(), unit: Name::new(&format!("u{unit}")).unwrap() }
}

/// A value that depends on series and time alone, so that a reading that comes again is a duplicate.
fn value_of(unit: u8, sensor: &str, event_ms: i64) -> Option<f64> {
    match (event_ms / HOUR_MS + i64::from(unit) + sensor.len() as i64) % 11 {
        0 => None,
        1..3 => Some(-10.0),
        3 => Some(5.0),
        _ => Some(-20.0),
    }
}

/// A daemon without broker and web page, whose readings are remembered here too.
struct Daemon {
    data_dir: Arc<TempDir>,
    clock: ManualClock,
    journal: JournalHandle<()>,
    shared: PipelineShared,
    judgement: Arc<Judgement>,
    keeper: Keeper,
    stop: CancellationToken,
    threads: Vec<JoinHandle<()>>,
    accepted: BTreeMap<(UnitKey, String), BTreeMap<i64, Option<f64>>>,
}

impl Daemon {
    async fn start(configured: Configured) -> Self {
        let clock = ManualClock::at(at(START_MS));
        Self::start_with(configured, Arc::new(TempDir::new().unwrap()), clock, BTreeMap::new()).await
    }

    async fn start_with(
        configured: Configured,
        data_dir: Arc<TempDir>,
        clock: ManualClock,
        accepted: BTreeMap<(UnitKey, String), BTreeMap<i64, Option<f64>>>,
    ) -> Self {
        let Loaded { settings, bundle, judgement } = configured.load();
        let (health, metrics, stop) = (Health::default(), prometheus::Registry::new(), CancellationToken::new());
        let options = JournalOptions::new(
            data_dir.path().join("journal"),
            Arc::new(clock.clone()),
            JournalMetrics::register(&metrics).unwrap(),
            health.part("journal"),
        );
        let (mut journal, _) = Journal::<()>::open(options).unwrap();
        let (handle, readers, cursor) = (journal.handle(), journal.readers(), journal.register("pipeline", 0));
        let shared = PipelineShared::new(64);
        let judgement = Arc::new(judgement);
        let closed_days = ClosedDays::default();
        let sources = Sources {
            data_dir: data_dir.path().to_owned(),
            live: shared.live.clone(),
            judgement: Arc::clone(&judgement),
            history_retention_ms: settings.history_retention_ms,
        };
        let keeper = Keeper::open(sources, closed_days.clone(), ComplianceMetrics::register(&metrics).unwrap());
        let pipeline_options = PipelineOptions {
            data_dir: data_dir.path().to_owned(),
            history_retention_ms: settings.history_retention_ms,
            dead_letters_max_size_bytes: 1 << 20,
            snapshot_every_bytes: u64::MAX,
            exercise: false,
            closed_days,
            history_metrics: HistoryMetrics::default(),
            clock: Arc::new(clock.clone()),
        };
        let threads = vec![
            std::thread::spawn(move || journal.run(|_| {}).unwrap()),
            std::thread::spawn({
                let (shared, stop, part) = (shared.clone(), stop.clone(), health.part("pipeline"));
                move || pipeline::run(&pipeline_options, &shared, &readers, &cursor, &part, &stop).unwrap()
            }),
        ];
        let daemon = Self { data_dir, clock, journal: handle, shared, judgement, keeper, stop, threads, accepted };
        let content = bundle.to_text();
        daemon.put(Entry::Configuration { hash: &bundle.hash(), content: content.as_bytes() }).await;
        daemon
    }

    /// Ends as a daemon does.
    async fn stop(&mut self) {
        self.journal.stop();
        self.stop.cancel();
        let threads = std::mem::take(&mut self.threads);
        let join = move || threads.into_iter().for_each(|thread| thread.join().unwrap());
        tokio::task::spawn_blocking(join).await.unwrap();
    }

    async fn restart(mut self, configured: Configured) -> Self {
        self.stop().await;
        Self::start_with(configured, self.data_dir, self.clock, self.accepted).await
    }

    /// Goes on with the files as they are at this moment, as after a kill; what was only in memory is lost.
    async fn crash(mut self, configured: Configured) -> Self {
        // The first answer may come before a snapshot is made, the second comes after it.
        for _ in 0..2 {
            self.shared.live.unwritten(Vec::new()).await.unwrap();
        }
        let copy = Arc::new(TempDir::new().unwrap());
        copy_files(self.data_dir.path(), copy.path());
        self.stop().await;
        Self::start_with(configured, copy, self.clock, self.accepted).await
    }

    async fn put(&self, entry: Entry<'_>) {
        let offset = self.journal.submit(entry, ()).unwrap();
        let mut committed = self.shared.committed.subscribe();
        tokio::time::timeout(PATIENCE, committed.wait_for(|next| *next > offset)).await.unwrap().unwrap();
    }

    async fn pass_hours(&self, hours: i64) {
        self.clock.set(crate::clock::Clock::now(&self.clock).plus_millis(hours * HOUR_MS));
        self.put(Entry::Tick).await;
    }

    /// Publishes the readings of a sensor at some instants in one message.
    async fn publish(&mut self, unit: u8, sensor: &str, instants_ms: impl IntoIterator<Item = i64>) {
        let samples = instants_ms.into_iter().map(|event_ms| {
            let value = value_of(unit, sensor, event_ms);
            self.accepted.entry((key(unit), sensor.to_owned())).or_default().insert(event_ms, value);
            json!({ "ts": event_ms, "readings": [{ "sensor": sensor, "kind": "temperature", "value": value }] })
        });
        let payload = json!({ "samples": samples.collect::<Vec<_>>() }).to_string();
        let topic = format!("coldchain/v1/op1/u{unit}/telemetry");
        let (topic, payload) = (topic.as_bytes(), payload.as_bytes());
        let message = Message { topic, payload, retained: false, oversize: None, original_received_at: None };
        self.put(Entry::Message(message)).await;
    }

    fn reader(&self) -> ComplianceReader {
        ComplianceReader::new(Sources {
            data_dir: self.data_dir.path().to_owned(),
            live: self.shared.live.clone(),
            judgement: Arc::clone(&self.judgement),
            history_retention_ms: i64::MAX / 4,
        })
    }

    /// Asks for both units, and compares with what all readings together say.
    async fn check(&self, from_ms: i64, to_ms: i64) -> BTreeMap<UnitKey, UnitSums> {
        let accounts = self.reader().accounts(vec![key(0), key(1)], at(from_ms), at(to_ms), true).await.unwrap();
        for unit in [key(0), key(1)] {
            let expected = self.straight(&unit, accounts.from, accounts.to);
            assert_eq!(accounts.units[&unit], expected, "{}: {}..{}", unit.unit, accounts.from, accounts.to);
        }
        accounts.units
    }

    fn straight(&self, unit: &UnitKey, from: Timestamp, to: Timestamp) -> UnitSums {
        let of_unit = self.accepted.iter().filter(|((key, _), _)| key == unit);
        let seen = of_unit.map(|((_, sensor), _)| (sensor.as_str(), Kind::Temperature));
        let terms = Terms::new(&self.judgement.registry, &self.judgement.rules, unit, seen);
        let readings: Vec<Vec<Reading>> = terms
            .series()
            .map(|(sensor, _)| {
                let readings = self.accepted.get(&(unit.clone(), sensor.to_owned())).into_iter().flatten();
                let reading = |(event_ms, value): (&i64, &Option<f64>)| Reading {
                    event_time: at(*event_ms),
                    value: *value,
                    quality: Quality::GOOD,
                };
                readings.map(reading).take_while(|reading| reading.event_time < to).collect()
            })
            .collect();
        let slices: Vec<&[Reading]> = readings.iter().map(Vec::as_slice).collect();
        let account: UnitAccount = terms.account(&slices, from, to);
        let mut sums = UnitSums::default();
        sums.add(&terms, account);
        sums
    }
}

fn copy_files(from: &Path, to: &Path) {
    for entry in std::fs::read_dir(from).unwrap().map(Result::unwrap) {
        let copy = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            std::fs::create_dir(&copy).unwrap();
            copy_files(&entry.path(), &copy);
        } else {
            std::fs::copy(entry.path(), copy).unwrap();
        }
    }
}

fn hours(from: i64, to: i64) -> impl Iterator<Item = i64> {
    (from..to).map(|hour| START_MS + hour * HOUR_MS)
}

const WHOLE: (i64, i64) = (START_MS - 5 * DAY_MS, START_MS + 20 * DAY_MS);

#[tokio::test(flavor = "multi_thread")]
async fn days_that_are_over_are_summed_up_once_and_again_when_a_reading_comes_late() {
    let mut daemon = Daemon::start(Configured::Plain).await;
    assert_eq!(daemon.keeper.pass().await.unwrap(), 0, "no day is over");
    daemon.pass_hours(24).await;
    daemon.publish(0, "t1", hours(0, 24)).await;
    daemon.pass_hours(48).await;
    daemon.publish(0, "t1", hours(24, 30).chain(hours(41, 60))).await;
    assert_eq!(daemon.keeper.pass().await.unwrap(), 2 * 3, "since yesterday, when there was nothing to sum up");
    assert_eq!(daemon.keeper.pass().await.unwrap(), 0);
    let before = daemon.check(WHOLE.0, WHOLE.1).await;

    // In memory only at first; the sums of that day and those behind it must not be used.
    daemon.publish(0, "t1", hours(30, 41)).await;
    let after = daemon.check(WHOLE.0, WHOLE.1).await;
    assert_ne!(after[&key(0)], before[&key(0)], "the late readings say something new");
    // Then in the history's file.
    daemon.pass_hours(1).await;
    daemon.check(WHOLE.0, WHOLE.1).await;
    assert_eq!(daemon.keeper.pass().await.unwrap(), 2 + 1, "u0 from the day of the late readings on, and u1's new day");
    daemon.check(WHOLE.0, WHOLE.1).await;
    assert_eq!(daemon.keeper.pass().await.unwrap(), 0, "and that is all");

    // A unit that has never sent anything has a past as soon as it does.
    daemon.publish(1, "t1", hours(-30, 10)).await;
    daemon.check(WHOLE.0, WHOLE.1).await;
    assert_eq!(daemon.keeper.pass().await.unwrap(), 5);
    daemon.check(WHOLE.0, WHOLE.1).await;
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn another_configuration_sums_up_anew_what_it_changes_and_nothing_else() {
    let mut daemon = Daemon::start(Configured::Plain).await;
    daemon.pass_hours(72).await;
    for unit in [0, 1] {
        daemon.publish(unit, "t1", hours(0, 70)).await;
        daemon.publish(unit, "t2", hours(0, 50)).await;
    }
    assert_eq!(daemon.keeper.pass().await.unwrap(), 4, "two days of two units; the third is not over for long enough");
    daemon.check(WHOLE.0, WHOLE.1).await;

    let daemon = daemon.restart(Configured::WithGoods).await;
    daemon.check(WHOLE.0, WHOLE.1).await;
    assert_eq!(daemon.keeper.pass().await.unwrap(), 2, "the unit with the goods");
    let sums = daemon.check(WHOLE.0, WHOLE.1).await;
    assert_eq!(sums[&key(0)].by_category["dairy"].on_duty_ms(), 15 * HOUR_MS);

    let mut daemon = daemon.restart(Configured::WithRuleForOne).await;
    daemon.check(WHOLE.0, WHOLE.1).await;
    assert_eq!(daemon.keeper.pass().await.unwrap(), 4, "the rule is about both units");
    daemon.check(WHOLE.0, WHOLE.1).await;
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_unit_that_is_registered_again_has_its_whole_past() {
    let mut daemon = Daemon::start(Configured::Plain).await;
    daemon.pass_hours(72).await;
    daemon.publish(1, "t1", hours(0, 30).chain(hours(41, 70))).await;
    assert!(daemon.keeper.pass().await.unwrap() > 0);
    let mut daemon = daemon.restart(Configured::WithoutUnit1).await;
    daemon.keeper.pass().await.unwrap();
    assert_eq!(daemon.check(WHOLE.0, WHOLE.1).await[&key(1)].total(), Account::default());
    daemon.publish(1, "t1", hours(30, 41)).await;
    // The mark of what came meanwhile is written, heeded and dropped.
    for _ in 0..2 {
        daemon.pass_hours(1).await;
        daemon.keeper.pass().await.unwrap();
        daemon.publish(0, "t1", hours(73, 74)).await;
    }
    let mut daemon = daemon.restart(Configured::Plain).await;
    daemon.check(WHOLE.0, WHOLE.1).await;
    daemon.keeper.pass().await.unwrap();
    daemon.check(WHOLE.0, WHOLE.1).await;
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mark_that_was_lost_with_the_process_comes_back_with_the_journal() {
    let mut daemon = Daemon::start(Configured::Plain).await;
    daemon.pass_hours(72).await;
    daemon.publish(0, "t1", hours(0, 30).chain(hours(41, 70))).await;
    daemon.pass_hours(1).await;
    assert!(daemon.keeper.pass().await.unwrap() > 0);
    daemon.publish(0, "t1", hours(30, 41)).await;
    let daemon = daemon.crash(Configured::Plain).await;
    daemon.check(WHOLE.0, WHOLE.1).await;
    assert!(daemon.keeper.pass().await.unwrap() > 0);
    let mut daemon = daemon.crash(Configured::Plain).await;
    daemon.check(WHOLE.0, WHOLE.1).await;
    assert_eq!(daemon.keeper.pass().await.unwrap(), 2, "what the journal gives back is marked again, and nothing else");
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_history_has_forgotten_stays_as_it_was_summed_up() {
    let mut daemon = Daemon::start(Configured::Plain).await;
    daemon.pass_hours(96).await;
    daemon.publish(0, "t1", hours(0, 90)).await;
    assert!(daemon.keeper.pass().await.unwrap() > 0);
    let before = daemon.straight(&key(0), at(START_MS), at(START_MS + DAY_MS));

    let mut daemon = daemon.restart(Configured::WithRuleForOne).await;
    // The first day is beyond the retention now.
    daemon.keeper.sources.history_retention_ms = 3 * DAY_MS - HOUR_MS;
    let reader = ComplianceReader::new(daemon.keeper.sources.clone());
    daemon.keeper.pass().await.unwrap();
    let connection = rusqlite::Connection::open(daemon.data_dir.path().join(crate::pipeline::HISTORY_FILE)).unwrap();
    connection.execute_batch("DELETE FROM block; DELETE FROM recent").unwrap();
    let (from, to) = (at(START_MS), at(START_MS + DAY_MS));
    let accounts = reader.accounts(vec![key(0)], from, to, true).await.unwrap();
    assert_eq!(accounts.units[&key(0)], before);
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_file_of_sums_is_set_aside_and_made_again() {
    let mut daemon = Daemon::start(Configured::Plain).await;
    daemon.pass_hours(50).await;
    daemon.publish(0, "t1", hours(0, 50)).await;
    assert_eq!(daemon.keeper.pass().await.unwrap(), 2);
    daemon.stop().await;
    let file = daemon.data_dir.path().join("compliance.db");
    std::fs::write(&file, "this is no database, and has not been for long enough to be taken for an empty one")
        .unwrap();
    let mut daemon = Daemon::start_with(Configured::Plain, daemon.data_dir, daemon.clock, daemon.accepted).await;
    daemon.check(WHOLE.0, WHOLE.1).await;
    assert_eq!(daemon.keeper.pass().await.unwrap(), 2);
    daemon.check(WHOLE.0, WHOLE.1).await;
    assert!(daemon.data_dir.path().join("compliance.db.unusable").exists());
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn time_that_has_not_come_is_not_counted() {
    let mut daemon = Daemon::start(Configured::Plain).await;
    daemon.pass_hours(10).await;
    daemon.publish(0, "t1", hours(0, 10)).await;
    let accounts =
        daemon.reader().accounts(vec![key(0)], at(START_MS), at(START_MS + 3 * DAY_MS), false).await.unwrap();
    assert_eq!(accounts.to, at(START_MS + 10 * HOUR_MS));
    assert_eq!(accounts.units[&key(0)].total().on_duty_ms(), 10 * HOUR_MS);
    assert_eq!(accounts.units[&key(0)].by_series, BTreeMap::new(), "nobody asked for sensors");
    let later = at(START_MS + 4 * DAY_MS);
    let accounts = daemon.reader().accounts(vec![key(0)], later, later.plus_millis(1), true).await.unwrap();
    assert_eq!(accounts.units[&key(0)].total(), Account::default());
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn more_than_can_be_worked_out_is_refused() {
    let mut daemon = Daemon::start(Configured::Plain).await;
    daemon.pass_hours(1).await;
    let from = at(START_MS - 40_000 * DAY_MS);
    let refused = daemon.reader().accounts(vec![key(0)], from, at(START_MS), false).await.unwrap_err();
    assert!(matches!(refused, ComplianceError::TooMuch { unit_days: 40_000, .. }), "{refused}");
    daemon.pass_hours(24).await;
    daemon.keeper.pass().await.unwrap();
    let accounts = daemon.reader().accounts(vec![key(0)], from, at(START_MS), false).await.unwrap();
    assert_eq!(accounts.units[&key(0)].total().unmonitored_ms, 40_000 * DAY_MS, "what is known to be empty is no work");
    daemon.stop().await;
}

/// What happens next.
#[derive(Debug, Clone)]
enum Step {
    /// So many readings, half an hour apart, from so many hours before now on.
    Publish {
        unit: u8,
        sensor: bool,
        age_hours: i64,
        count: i64,
    },
    PassHours(i64),
    SumUp,
    Restart(Configured),
    Crash(Configured),
    Check {
        from_hours: i64,
        length_hours: i64,
        odd_ms: i64,
    },
}

fn step() -> impl Strategy<Value = Step> {
    let configured = || prop_oneof![2 => Just(Configured::Plain), 1 => Just(Configured::WithGoods), 1 => Just(Configured::WithRuleForOne), 1 => Just(Configured::WithoutUnit1)];
    prop_oneof![
        6 => (0..2_u8, any::<bool>(), prop_oneof![3 => 1..12_i64, 1 => 12..90_i64], 1..30_i64)
            .prop_map(|(unit, sensor, age_hours, count)| Step::Publish { unit, sensor, age_hours, count }),
        4 => (1..20_i64).prop_map(Step::PassHours),
        4 => Just(Step::SumUp),
        1 => configured().prop_map(Step::Restart),
        2 => configured().prop_map(Step::Crash),
        3 => (-50..100_i64, 1..150_i64, 0..3_i64)
            .prop_map(|(from_hours, length_hours, odd_ms)| Step::Check { from_hours, length_hours, odd_ms }),
    ]
}

async fn play(steps: Vec<Step>) {
    let mut daemon = Daemon::start(Configured::Plain).await;
    for step in steps {
        match step {
            Step::Publish { unit, sensor, age_hours, count } => {
                let now_ms = crate::clock::Clock::now(&daemon.clock).as_millis();
                let first_ms = now_ms - age_hours * HOUR_MS + i64::from(unit);
                let instants = (0..count).map(|number| first_ms + number * HOUR_MS / 2);
                let instants: Vec<i64> = instants.take_while(|event_ms| *event_ms <= now_ms).collect();
                daemon.publish(unit, if sensor { "t1" } else { "t2-b" }, instants).await;
            }
            Step::PassHours(hours) => daemon.pass_hours(hours).await,
            Step::SumUp => {
                daemon.keeper.pass().await.unwrap();
            }
            Step::Restart(configured) => daemon = daemon.restart(configured).await,
            Step::Crash(configured) => daemon = daemon.crash(configured).await,
            Step::Check { from_hours, length_hours, odd_ms } => {
                let from_ms = START_MS + from_hours * HOUR_MS + odd_ms;
                drop(daemon.check(from_ms, from_ms + length_hours * HOUR_MS - odd_ms).await);
            }
        }
    }
    drop(daemon.check(WHOLE.0, WHOLE.1).await);
    daemon.keeper.pass().await.unwrap();
    drop(daemon.check(WHOLE.0, WHOLE.1).await);
    daemon.stop().await;
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 12, max_shrink_iters: 40, ..ProptestConfig::default() })]

    #[test]
    fn whatever_happens_in_whatever_order_the_answer_is_that_of_all_readings(
        steps in prop::collection::vec(step(), 5..25),
    ) {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        runtime.block_on(play(steps));
    }
}

#[test]
fn a_day_is_one_of_utc() {
    assert_eq!(day_of(at(START_MS)), START_DAY);
    assert_eq!(day_of(at(START_MS - 1)), START_DAY - 1);
    assert_eq!(day_of(at(-1)), -1);
}
