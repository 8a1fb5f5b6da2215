//! The sink against real databases: what was accepted is there once, also when the database is killed in between.

#[path = "support/servers.rs"]
#[expect(dead_code, reason = "the helpers are for other tests too")]
mod servers;

use std::collections::BTreeMap;
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use frostline::health::Health;
use frostline::series::influxdb2::{Pace, Settings, Sink, SinkError, SinkMetrics};
use frostline::series::line_protocol::LineBatch;
use frostline::series::{Feed, RefusedPoint, SinkCursor, SinkStore, StoreError};
use frostline_core::model::{Kind, Timestamp};
use prometheus::Registry;
use servers::{Influx, VictoriaMetrics, wait_until};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

/// Some instant in the past; each reading is a second after the one before.
const START_MS: i64 = 1_795_000_000_000;

/// Names that a careless writer would break a line with, and what a database may make of them.
const SENSORS: [(&str, &str); 7] = [
    ("t1", "t1"),
    ("left, back", "left, back"),
    ("a=b", "a=b"),
    ("say \"hi\"", "say \"hi\""),
    ("冷库1", "冷库1"),
    ("a\\b", "a\\b"),
    ("a\\, b\\", "a＼, b＼"),
];

/// A journal whose entry `n` is one temperature of one of the sensors, and a store in memory.
#[derive(Clone, Default)]
struct Books(Arc<(Mutex<State>, Condvar)>);

#[derive(Default)]
struct State {
    entries: u64,
    cursor: SinkCursor,
    refused: Vec<RefusedPoint>,
}

impl Books {
    fn append(&self, entries: u64) {
        self.0.0.lock().unwrap().entries += entries;
        self.0.1.notify_all();
    }

    fn with<T>(&self, look: impl FnOnce(&mut State) -> T) -> T {
        look(&mut self.0.0.lock().unwrap())
    }
}

fn event_time(offset: u64) -> Timestamp {
    Timestamp::from_millis(START_MS + 1000 * i64::try_from(offset).unwrap())
}

/// Every 50th reading is of a failed probe. The others have two decimals: VictoriaMetrics keeps some 15 digits.
fn value(offset: u64) -> Option<f64> {
    (!offset.is_multiple_of(50)).then(|| ((offset % 4000) as f64 - 3000.0) / 100.0)
}

impl Feed for Books {
    fn read(&mut self, from: u64, points_max: usize, lines: &mut LineBatch) -> Result<Option<u64>, StoreError> {
        let end = self.with(|state| state.entries).min(from + points_max as u64);
        for offset in from..end {
            let (sensor, _) = SENSORS[offset as usize % SENSORS.len()];
            lines.push_reading("op1", "u1", sensor, Kind::Temperature, event_time(offset), value(offset));
        }
        Ok((from < end).then_some(end))
    }

    fn wait(&mut self, from: u64, timeout: Duration) {
        let state = self.0.0.lock().unwrap();
        drop(self.0.1.wait_timeout_while(state, timeout, |state| state.entries <= from).unwrap());
    }
}

impl SinkStore for Books {
    fn cursor(&self, _: &str) -> Result<SinkCursor, StoreError> {
        Ok(self.with(|state| state.cursor))
    }

    fn commit(&self, _: &str, cursor: SinkCursor) -> Result<(), StoreError> {
        self.with(|state| state.cursor = cursor);
        Ok(())
    }

    fn read_alerts(&self, after: u64, _: usize, _: &mut LineBatch) -> Result<u64, StoreError> {
        Ok(after)
    }

    fn journal_end(&self) -> u64 {
        self.with(|state| state.entries)
    }

    fn record_refused(&self, _: &str, points: &[RefusedPoint]) -> Result<(), StoreError> {
        self.with(|state| state.refused.extend_from_slice(points));
        Ok(())
    }
}

struct Running {
    books: Books,
    registry: Registry,
    health: Health,
    stop: CancellationToken,
    task: JoinHandle<Result<(), SinkError>>,
}

fn start(url: String, bucket: &str) -> Running {
    let (books, registry, health) = (Books::default(), Registry::new(), Health::default());
    let settings = Settings {
        url,
        org: Influx::ORG.to_owned(),
        bucket: bucket.to_owned(),
        token: Influx::TOKEN.to_owned(),
        confirm_after: Duration::from_secs(30),
        points_max: 1000,
        pace: Pace {
            backoff_max: Duration::from_millis(500),
            look_every: Duration::from_millis(200),
            ..Pace::default()
        },
    };
    let sink = Sink::new(
        settings,
        Box::new(books.clone()),
        Arc::new(books.clone()),
        SinkMetrics::register(&registry).unwrap(),
        health.part("series"),
    );
    let stop = CancellationToken::new();
    let task = tokio::spawn(sink.unwrap().run(stop.clone()));
    Running { books, registry, health, stop, task }
}

impl Running {
    /// Returns how many points met this outcome.
    fn points(&self, outcome: &str) -> u64 {
        let families = self.registry.gather();
        let points = families.iter().find(|family| family.name() == "frostline_sink_points_total");
        let metrics = points.map_or(&[][..], |family| family.get_metric());
        let of_outcome =
            metrics.iter().filter(|metric| metric.get_label().iter().any(|label| label.value() == outcome));
        of_outcome.map(|metric| metric.get_counter().get_value() as u64).sum()
    }

    async fn stop(self) {
        self.stop.cancel();
        self.task.await.unwrap().unwrap();
    }
}

/// What the database should hold: (field, sensor, time) to value.
type Points = BTreeMap<(String, String, i64), f64>;

fn expected(count: u64) -> Points {
    (0..count)
        .map(|offset| {
            let (_, sensor) = SENSORS[offset as usize % SENSORS.len()];
            let (field, value) = value(offset).map_or(("failed", 1.0), |value| ("value", value));
            ((field.to_owned(), sensor.to_owned(), event_time(offset).as_millis()), value)
        })
        .collect()
}

fn assert_same(found: &Points, expected: &Points) {
    let missing: Vec<_> = expected.iter().filter(|(key, value)| found.get(*key) != Some(*value)).take(3).collect();
    let extra: Vec<_> = found.keys().filter(|key| !expected.contains_key(*key)).take(3).collect();
    assert_eq!(found.len(), expected.len(), "missing or other: {missing:?}, extra: {extra:?}");
    assert!(missing.is_empty() && extra.is_empty(), "missing or other: {missing:?}, extra: {extra:?}");
}

fn in_victoria_metrics(database: &VictoriaMetrics) -> Points {
    let samples = database.samples(r#"{operator="op1"}"#);
    let count = samples.len();
    let points: Points = samples
        .into_iter()
        .map(|sample| {
            let field = sample.name.strip_prefix("temperature_").unwrap().to_owned();
            assert_eq!(sample.labels["unit"], "u1");
            ((field, sample.labels["sensor"].clone(), sample.time_ms), sample.value)
        })
        .collect();
    assert_eq!(points.len(), count, "some point is there twice");
    points
}

fn in_influx(database: &Influx) -> Points {
    let rows = database.points("temperature");
    let count = rows.len();
    let points: Points = rows
        .into_iter()
        .map(|row| {
            let time = Timestamp::parse_rfc3339(&row["_time"]).unwrap().as_millis();
            let value = match &*row["_value"] {
                "true" => 1.0,
                number => number.parse().unwrap(),
            };
            ((row["_field"].clone(), row.get("sensor").cloned().unwrap_or_default(), time), value)
        })
        .collect();
    assert_eq!(points.len(), count, "some point is there twice");
    points
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn victoria_metrics_holds_everything_once_after_being_killed_under_load() {
    let mut database = VictoriaMetrics::start();
    let sink = start(database.url(), Influx::BUCKET);
    for round in 1..=3 {
        sink.books.append(20_000);
        wait_until("some of it is written", || sink.points("written") + sink.points("resent") > round * 5_000);
        database.server.kill();
        sink.books.append(5_000);
        wait_until("the sink says that it buffers", || {
            sink.health.parts()["series"].as_ref().is_ok_and(|remark| remark.starts_with("buffering"))
        });
        database.server.start();
    }
    wait_until("everything has arrived", || in_victoria_metrics(&database).len() == 75_000);
    assert_same(&in_victoria_metrics(&database), &expected(75_000));
    assert!(sink.points("resent") > 0, "the kill was never noticed");
    assert_eq!(sink.books.with(|state| state.refused.len()), 0);
    sink.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_victoria_metrics_restarted_while_nothing_is_written_is_sent_its_loss_again() {
    let mut database = VictoriaMetrics::start();
    let sink = start(database.url(), Influx::BUCKET);
    sink.books.append(100);
    wait_until("it is written", || sink.points("written") == 100);
    // The start is told in whole seconds; without a failed request it must differ for the restart to be seen.
    let started = std::time::Instant::now();
    wait_until("a second has passed", || started.elapsed() > Duration::from_millis(1100));
    database.server.kill();
    database.server.start();
    wait_until("it is written again", || sink.points("resent") >= 100);
    assert_same(&in_victoria_metrics(&database), &expected(100));
    sink.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn influxdb_holds_everything_once_after_being_killed_under_load() {
    let mut database = Influx::start();
    let sink = start(database.url(), Influx::BUCKET);
    for round in 1..=2 {
        sink.books.append(20_000);
        wait_until("some of it is written", || sink.points("written") + sink.points("resent") > round * 5_000);
        database.server.kill();
        sink.books.append(5_000);
        database.server.start();
    }
    wait_until("everything has arrived", || in_influx(&database).len() == 50_000);
    assert_same(&in_influx(&database), &expected(50_000));
    assert_eq!(sink.books.with(|state| state.refused.len()), 0);
    sink.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn influxdb_refuses_what_conflicts_with_its_schema_and_takes_the_rest() {
    let database = Influx::start();
    // Somebody has written the flag as a number before: in this shard, every failed probe is refused now.
    let path = format!("/api/v2/write?org={}&bucket={}&precision=ms", Influx::ORG, Influx::BUCKET);
    let spoiler = format!("temperature,operator=other failed=1i {START_MS}");
    database.request("POST", &path, "text/plain", spoiler.as_bytes()).expect_status(204);
    let sink = start(database.url(), Influx::BUCKET);
    sink.books.append(1000);
    wait_until("all are dealt with", || sink.points("written") + sink.points("refused") == 1000);
    let refused = sink.books.with(|state| state.refused.clone());
    assert_eq!(refused.len(), 20, "{refused:?}");
    assert!(refused.iter().all(|point| point.line.contains(" failed=true ") && point.reason.starts_with("422")));
    let taken = in_influx(&database).into_keys().filter(|(field, ..)| field == "value").count();
    assert_eq!(taken, 980);
    sink.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bucket_that_influxdb_does_not_have_is_created() {
    let database = Influx::start();
    let sink = start(database.url(), "another");
    sink.books.append(10);
    wait_until("it is written", || sink.points("written") == 10);
    let buckets = database.request("GET", "/api/v2/buckets?name=another", "", b"").expect_status(200);
    assert!(buckets.contains(r#""name": "another""#), "{buckets}");
    sink.stop().await;
}
