//! The interface as an outsider sees it: a real server before a real journal, pipeline, ledger and history.

use std::path::Path;
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use expect_test::{Expect, expect};
use frostline_core::model::Timestamp;
use reqwest::{Client, RequestBuilder, StatusCode};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio_util::sync::CancellationToken;

use super::{WebError, WebOptions, bind, run};
use crate::clock::ManualClock;
use crate::config;
use crate::health::Health;
use crate::journal::{Entry, Journal, JournalHandle, JournalMetrics, JournalOptions, Message, Oversize};
use crate::ledger::{DeadMessage, SinkProgress};
use crate::pipeline::{self, PipelineOptions, PipelineShared};

/// How long anything that must happen is waited for.
const PATIENCE: Duration = Duration::from_secs(30);

const FLEET: &str = r#"
[[operator]]
id = "op1"
name = "Grassland Dairy"
code = "91150100MA0PJ0000X"

[[unit]]
id = "room-1"
operator = "op1"
kind = "storage"
site = "Hohhot east"
jurisdiction = "150100"
profile = "frozen_food"

[[unit]]
id = "truck-7"
operator = "op1"
kind = "transport"
jurisdiction = "150200"
profile = "chilled_food"

[[unit]]
id = "room-2"
operator = "op2"
kind = "storage"
jurisdiction = "220100"

[[sensor]]
id = "t1"
unit = "room-1"
operator = "op1"
placement = "door"

[[sensor]]
id = "t2"
unit = "room-1"
operator = "op1"
"#;

const RULES: &str = r#"
[[rule]]
id = "frozen-high"
kind = "range"
quantity = "temperature"
severity = "critical"
limits = "profile"
for = "10m"
keep_firing_for = "5m"
hysteresis = 0.5
message = { en = "{unit} {sensor} is too warm since {since}", zh = "{unit} {sensor} 自 {since} 起温度过高" }
"#;

fn at(time: &str) -> Timestamp {
    Timestamp::parse_rfc3339(&format!("2026-11-23T{time}Z")).unwrap()
}

/// A daemon without a broker: what would come from it is put into the journal.
struct Daemon {
    _config_dir: TempDir,
    data_dir: TempDir,
    clock: ManualClock,
    journal: JournalHandle<()>,
    shared: PipelineShared,
    health: Health,
    redriven: Arc<Mutex<Vec<DeadMessage>>>,
    base: String,
    client: Client,
    stop: CancellationToken,
    server: Option<tokio::task::JoinHandle<Result<(), WebError>>>,
    threads: Vec<JoinHandle<()>>,
}

impl Daemon {
    async fn start() -> Self {
        let (config_dir, data_dir) = (TempDir::new().unwrap(), TempDir::new().unwrap());
        std::fs::write(config_dir.path().join("fleet.toml"), FLEET).unwrap();
        std::fs::write(config_dir.path().join("rules.toml"), RULES).unwrap();
        let loaded = config::load_with_environment(config_dir.path(), &[]).unwrap();
        let clock = ManualClock::at(at("10:00:00"));
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
        metrics.register(Box::new(shared.accounting.clone())).unwrap();
        let pipeline_options = PipelineOptions {
            data_dir: data_dir.path().to_owned(),
            history_retention_ms: loaded.settings.history_retention_ms,
            dead_letters_max_size_bytes: 1 << 20,
            snapshot_every_bytes: u64::MAX,
            exercise: false,
            closed_days: crate::history::ClosedDays::default(),
            history_metrics: crate::history::HistoryMetrics::default(),
            clock: Arc::new(clock.clone()),
        };
        let threads = vec![
            std::thread::spawn(move || journal.run(|_| {}).unwrap()),
            std::thread::spawn({
                let (shared, stop, part) = (shared.clone(), stop.clone(), health.part("pipeline"));
                move || pipeline::run(&pipeline_options, &shared, &readers, &cursor, &part, &stop).unwrap()
            }),
        ];
        let redriven = Arc::new(Mutex::new(Vec::new()));
        let listener = bind("127.0.0.1:0".parse().unwrap()).await.unwrap();
        let base = format!("http://{}", listener.local_addr().unwrap());
        let web_options = WebOptions {
            data_dir: data_dir.path().to_owned(),
            shared: shared.clone(),
            judgement: Arc::new(loaded.judgement),
            history_retention_ms: loaded.settings.history_retention_ms,
            health: health.clone(),
            metrics,
            redrive: Arc::new({
                let redriven = Arc::clone(&redriven);
                move |message| {
                    redriven.lock().unwrap().push(message);
                    Ok(4_711)
                }
            }),
        };
        let server = tokio::spawn(run(listener, web_options, stop.clone()));
        let daemon = Self {
            _config_dir: config_dir,
            data_dir,
            clock,
            journal: handle,
            shared,
            health,
            redriven,
            base,
            client: Client::builder().no_proxy().timeout(PATIENCE).build().unwrap(),
            stop,
            server: Some(server),
            threads,
        };
        let content = loaded.bundle.to_text();
        let configuration = Entry::Configuration { hash: &loaded.bundle.hash(), content: content.as_bytes() };
        daemon.journal_entry(configuration).await;
        daemon
    }

    /// Journals an entry and waits until the pipeline has committed what it causes.
    async fn journal_entry(&self, entry: Entry<'_>) -> u64 {
        let offset = self.journal.submit(entry, ()).unwrap();
        let mut committed = self.shared.committed.subscribe();
        tokio::time::timeout(PATIENCE, committed.wait_for(|next| *next > offset)).await.unwrap().unwrap();
        offset
    }

    async fn publish(&self, unit: &str, channel: &str, payload: &[u8]) -> u64 {
        let topic = format!("coldchain/v1/{unit}/{channel}");
        self.publish_message(Message {
            topic: topic.as_bytes(),
            payload,
            retained: false,
            oversize: None,
            original_received_at: None,
        })
        .await
    }

    async fn publish_message(&self, message: Message<'_>) -> u64 {
        self.journal_entry(Entry::Message(message)).await
    }

    /// Publishes a value a minute of sensor t1 in one message, and lets the clock stand at the last of them.
    async fn publish_minutes(&self, unit: &str, from: &str, values: &[f64]) {
        let samples: Vec<Value> = (0..)
            .zip(values)
            .map(|(minute, value)| {
                let ts = at(from).plus_millis(minute * 60_000);
                json!({ "ts": ts.as_millis(), "readings": [
                { "sensor": "t1", "kind": "temperature", "value": value, "unit": "Cel" },
            ] })
            })
            .collect();
        self.clock.set(at(from).plus_millis((values.len() as i64 - 1) * 60_000));
        self.publish(unit, "telemetry", json!({ "seq": 1, "samples": samples }).to_string().as_bytes()).await;
    }

    fn request(&self, path: &str) -> RequestBuilder {
        self.client.get(format!("{}{path}", self.base))
    }

    async fn get(&self, path: &str) -> (StatusCode, Value) {
        let response = self.request(path).send().await.unwrap();
        (response.status(), response.json().await.unwrap())
    }

    async fn get_ok(&self, path: &str) -> Value {
        let (status, body) = self.get(path).await;
        assert_eq!(status, StatusCode::OK, "{path}: {body}");
        body
    }

    /// Ends everything and waits for it, as the daemon does.
    async fn stop(mut self) {
        self.journal.stop();
        self.stop.cancel();
        let server = self.server.take().unwrap();
        tokio::time::timeout(PATIENCE, server).await.unwrap().unwrap().unwrap();
        let threads = std::mem::take(&mut self.threads);
        tokio::task::spawn_blocking(move || threads.into_iter().for_each(|thread| thread.join().unwrap()))
            .await
            .unwrap();
    }
}

fn check(found: &Value, expected: Expect) {
    expected.assert_eq(&format!("{found:#}\n"));
}

/// Twelve minutes too warm after five good ones: fires at 10:15.
const TOO_WARM: [f64; 18] = [
    -20.0, -20.0, -20.0, -20.0, -20.0, -10.0, -10.0, -10.0, -9.5, -10.0, -10.0, -10.0, -10.0, -10.0, -10.0, -10.0,
    -10.0, -10.0,
];

#[tokio::test(flavor = "multi_thread")]
async fn an_alert_is_listed_while_pending_and_once_it_fires() {
    let daemon = Daemon::start().await;
    daemon.publish_minutes("op1/room-1", "10:00:00", &TOO_WARM[..10]).await;
    let pending = daemon.get_ok("/api/v1/alerts?state=pending").await;
    assert_eq!(pending["items"][0]["state"], "pending");
    assert_eq!(pending["items"][0]["started_at"], "2026-11-23T10:05:00.000Z");
    assert_eq!(daemon.get_ok("/api/v1/alerts?state=firing").await, json!({ "items": [], "next": null }));
    let id = pending["items"][0]["id"].as_str().unwrap().to_owned();
    assert_eq!(daemon.get_ok(&format!("/api/v1/alerts/{id}")).await, pending["items"][0]);

    daemon.publish_minutes("op1/room-1", "10:10:00", &TOO_WARM[10..]).await;
    assert_eq!(daemon.get_ok("/api/v1/alerts?state=pending").await, json!({ "items": [], "next": null }));
    let mut alerts = daemon.get_ok("/api/v1/alerts").await;
    // It grows with the readings, but is written down with a snapshot only.
    alerts["items"][0]["excursion_s"] = Value::Null;
    check(
        &alerts,
        expect![[r#"
            {
              "items": [
                {
                  "amendments": [],
                  "category": "food",
                  "consignments": [],
                  "detected_at": "2026-11-23T10:17:00.000Z",
                  "excursion_s": null,
                  "extreme": -9.5,
                  "fired_at": "2026-11-23T10:15:00.000Z",
                  "handling": "open",
                  "id": "0993b00fad9bc82f01b1f76edfaeebac",
                  "jurisdiction": "150100",
                  "last_value": -10.0,
                  "late": false,
                  "latitude": null,
                  "limit_high": -18.0,
                  "limit_low": null,
                  "longitude": null,
                  "mean_kinetic_temperature": null,
                  "merged_into": null,
                  "message": {
                    "en": "room-1 t1 is too warm since 2026-11-23T10:05:00.000Z",
                    "zh": "room-1 t1 自 2026-11-23T10:05:00.000Z 起温度过高"
                  },
                  "operator": "op1",
                  "operator_code": "91150100MA0PJ0000X",
                  "origin": "field",
                  "profile": "frozen_food",
                  "resolution": null,
                  "resolved_at": null,
                  "revision": 1,
                  "rule": "frozen-high",
                  "rule_kind": "range",
                  "rule_version": "d9cfe0ed9df8f5c6",
                  "sensor": "t1",
                  "severity": "critical",
                  "site": "Hohhot east",
                  "started_at": "2026-11-23T10:05:00.000Z",
                  "state": "firing",
                  "suspended_s": 0.0,
                  "unit": "room-1",
                  "unit_kind": "storage",
                  "unmonitored_s": 0.0
                }
              ],
              "next": null
            }
        "#]],
    );
    let mut alone = daemon.get_ok(&format!("/api/v1/alerts/{id}")).await;
    alone["excursion_s"] = Value::Null;
    assert_eq!(alone, alerts["items"][0]);
    let (status, problem) = daemon.get("/api/v1/alerts/0123").await;
    assert_eq!(status, StatusCode::NOT_FOUND);
    check(
        &problem,
        expect![[r#"
        {
          "detail": "there is no alert `0123`",
          "status": 404,
          "title": "Not Found",
          "type": "about:blank"
        }
    "#]],
    );
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn filters_and_pages_of_alerts_leave_nothing_out_and_repeat_nothing() {
    let daemon = Daemon::start().await;
    daemon.publish_minutes("op1/room-1", "10:00:00", &TOO_WARM).await;
    let again: Vec<f64> = [[-20.0; 10].as_slice(), &[-10.0; 15], &[-20.0; 10], &[-10.0; 5]].concat();
    daemon.publish_minutes("op1/room-1", "10:18:00", &again).await;
    let all = daemon.get_ok("/api/v1/alerts").await;
    let states: Vec<&str> =
        all["items"].as_array().unwrap().iter().map(|alert| alert["state"].as_str().unwrap()).collect();
    assert_eq!(states, ["pending", "resolved", "resolved"]);
    let mut paged = Vec::new();
    let mut cursor = String::new();
    loop {
        let page = daemon.get_ok(&format!("/api/v1/alerts?limit=1{cursor}")).await;
        assert!(page["items"].as_array().unwrap().len() <= 1);
        paged.extend(page["items"].as_array().unwrap().clone());
        match page["next"].as_str() {
            Some(next) => cursor = format!("&cursor={next}"),
            None => break,
        }
    }
    assert_eq!(Value::Array(paged), all["items"]);
    for (filter, count) in [
        ("state=resolved", 2),
        ("state=pending", 1),
        ("state=retracted", 0),
        ("handling=open", 3),
        ("handling=closed", 0),
        ("severity=critical", 3),
        ("severity=notice", 0),
        ("operator=op1", 3),
        ("operator=op2", 0),
        ("unit=room-1&category=food", 3),
        ("category=vaccine", 0),
        ("jurisdiction=15", 3),
        ("jurisdiction=1502", 0),
        ("from=2026-11-23T10:40:00Z", 2),
        ("from=2026-11-23T18:40:00%2B08:00", 2),
        ("from=2026-11-23T18:40:00+08:00", 2),
        ("to=2026-11-23T10:05:00Z", 0),
        ("to=2026-11-23T10:05:00.001Z", 1),
        ("to=1795431300000", 3),
    ] {
        let found = daemon.get_ok(&format!("/api/v1/alerts?{filter}")).await;
        assert_eq!(found["items"].as_array().unwrap().len(), count, "{filter}");
    }
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn units_show_what_is_registered_and_what_is_known_of_them() {
    let daemon = Daemon::start().await;
    daemon.publish_minutes("op1/room-1", "10:00:00", &TOO_WARM).await;
    daemon.publish("op1/room-1", "status", br#"{"online": true, "ts": "2026-11-23T10:16:00Z"}"#).await;
    let other = br#"{"readings": [{"sensor": "x", "kind": "temperature", "value": 4, "unit": "Cel"},
                                  {"sensor": "x", "kind": "door", "value": true}]}"#;
    daemon.publish("op9/unknown", "telemetry", other).await;
    let units = daemon.get_ok("/api/v1/units").await;
    check(
        &units,
        expect![[r#"
            {
              "items": [
                {
                  "category": "food",
                  "clock": {
                    "ahead": false,
                    "future_readings": 0,
                    "jumps": 0,
                    "last_jump_at": null,
                    "skew_s": 0.0
                  },
                  "consignments": [],
                  "firing": 1,
                  "jurisdiction": "150100",
                  "kind": "storage",
                  "labels": {},
                  "last_received_at": "2026-11-23T10:17:00.000Z",
                  "last_seen": "2026-11-23T10:17:00.000Z",
                  "limit_high": -18.0,
                  "limit_low": null,
                  "online": true,
                  "online_at": "2026-11-23T10:16:00.000Z",
                  "operator": "op1",
                  "operator_code": "91150100MA0PJ0000X",
                  "operator_name": "Grassland Dairy",
                  "pending": [],
                  "profile": "frozen_food",
                  "registered": true,
                  "sensors": [
                    {
                      "calibration_due": null,
                      "event_time": "2026-11-23T10:17:00.000Z",
                      "kind": "temperature",
                      "placement": "door",
                      "quality": [],
                      "sensor": "t1",
                      "unit": "Cel",
                      "value": -10.0
                    }
                  ],
                  "sensors_never_seen": [
                    "t2"
                  ],
                  "sequence": {
                    "gaps": 0,
                    "last": 1,
                    "repeats": 0
                  },
                  "site": "Hohhot east",
                  "state": "excursion",
                  "unit": "room-1"
                },
                {
                  "category": "food",
                  "clock": {
                    "ahead": false,
                    "future_readings": 0,
                    "jumps": 0,
                    "last_jump_at": null,
                    "skew_s": null
                  },
                  "consignments": [],
                  "firing": 0,
                  "jurisdiction": "150200",
                  "kind": "transport",
                  "labels": {},
                  "last_received_at": null,
                  "last_seen": null,
                  "limit_high": 8.0,
                  "limit_low": 0.0,
                  "online": null,
                  "online_at": null,
                  "operator": "op1",
                  "operator_code": "91150100MA0PJ0000X",
                  "operator_name": "Grassland Dairy",
                  "pending": [],
                  "profile": "chilled_food",
                  "registered": true,
                  "sensors": [],
                  "sensors_never_seen": [],
                  "sequence": {
                    "gaps": 0,
                    "last": null,
                    "repeats": 0
                  },
                  "site": null,
                  "state": "off_duty",
                  "unit": "truck-7"
                },
                {
                  "category": null,
                  "clock": {
                    "ahead": false,
                    "future_readings": 0,
                    "jumps": 0,
                    "last_jump_at": null,
                    "skew_s": null
                  },
                  "consignments": [],
                  "firing": 0,
                  "jurisdiction": "220100",
                  "kind": "storage",
                  "labels": {},
                  "last_received_at": null,
                  "last_seen": null,
                  "limit_high": null,
                  "limit_low": null,
                  "online": null,
                  "online_at": null,
                  "operator": "op2",
                  "operator_code": null,
                  "operator_name": null,
                  "pending": [],
                  "profile": null,
                  "registered": true,
                  "sensors": [],
                  "sensors_never_seen": [],
                  "sequence": {
                    "gaps": 0,
                    "last": null,
                    "repeats": 0
                  },
                  "site": null,
                  "state": "unmonitored",
                  "unit": "room-2"
                },
                {
                  "category": null,
                  "clock": {
                    "ahead": false,
                    "future_readings": 0,
                    "jumps": 0,
                    "last_jump_at": null,
                    "skew_s": null
                  },
                  "consignments": [],
                  "firing": 0,
                  "jurisdiction": null,
                  "kind": null,
                  "labels": {},
                  "last_received_at": "2026-11-23T10:17:00.000Z",
                  "last_seen": "2026-11-23T10:17:00.000Z",
                  "limit_high": null,
                  "limit_low": null,
                  "online": null,
                  "online_at": null,
                  "operator": "op9",
                  "operator_code": null,
                  "operator_name": null,
                  "pending": [],
                  "profile": null,
                  "registered": false,
                  "sensors": [
                    {
                      "calibration_due": null,
                      "event_time": "2026-11-23T10:17:00.000Z",
                      "kind": "door",
                      "placement": null,
                      "quality": [
                        "server_time"
                      ],
                      "sensor": "x",
                      "unit": null,
                      "value": 1.0
                    },
                    {
                      "calibration_due": null,
                      "event_time": "2026-11-23T10:17:00.000Z",
                      "kind": "temperature",
                      "placement": null,
                      "quality": [
                        "server_time"
                      ],
                      "sensor": "x",
                      "unit": "Cel",
                      "value": 4.0
                    }
                  ],
                  "sensors_never_seen": [],
                  "sequence": {
                    "gaps": 0,
                    "last": null,
                    "repeats": 0
                  },
                  "site": null,
                  "state": "compliant",
                  "unit": "unknown"
                }
              ],
              "next": null
            }
        "#]],
    );
    assert_eq!(daemon.get_ok("/api/v1/units/op1/room-1").await, units["items"][0]);
    assert_eq!(daemon.get("/api/v1/units/op1/nowhere").await.0, StatusCode::NOT_FOUND);
    assert_eq!(daemon.get("/api/v1/units/%2F%00/%F0%9F%98%80").await.0, StatusCode::NOT_FOUND);
    let first = daemon.get_ok("/api/v1/units?limit=3").await;
    let rest = daemon.get_ok(&format!("/api/v1/units?limit=3&cursor={}", first["next"].as_str().unwrap())).await;
    let both: Vec<&Value> = [&first, &rest].into_iter().flat_map(|page| page["items"].as_array().unwrap()).collect();
    assert_eq!(both, units["items"].as_array().unwrap().iter().collect::<Vec<_>>());
    for (filter, count) in [("operator=op1", 2), ("unit=room-2", 1), ("jurisdiction=1501", 1), ("operator=nobody", 0)] {
        let found = daemon.get_ok(&format!("/api/v1/units?{filter}")).await;
        assert_eq!(found["items"].as_array().unwrap().len(), count, "{filter}");
    }
    // An hour later nobody knows whether room-1 is still too warm.
    daemon.clock.set(at("11:17:00"));
    daemon.journal_entry(Entry::Tick).await;
    assert_eq!(daemon.get_ok("/api/v1/units/op1/room-1").await["state"], "unmonitored");
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_series_is_read_from_the_file_and_from_memory_as_one() {
    let daemon = Daemon::start().await;
    let values: Vec<f64> = (0..1_000).map(|minute| f64::from(minute % 60)).collect();
    daemon.publish_minutes("op9/u", "10:00:00", &values).await;
    // A message after the clock has moved makes the pipeline write the history's file.
    daemon.clock.set(at("10:00:00").plus_millis(1_000 * 60_000));
    daemon
        .publish("op9/u", "telemetry", br#"{"readings": [{"sensor": "t1", "kind": "temperature", "value": null}]}"#)
        .await;
    let history = daemon.data_dir.path().join(pipeline::HISTORY_FILE);
    let blocks = || {
        let connection = rusqlite::Connection::open(&history).unwrap();
        connection.query_row("SELECT count(*) FROM block", [], |row| row.get::<_, u64>(0)).unwrap()
    };
    let deadline = tokio::time::Instant::now() + PATIENCE;
    while blocks() == 0 {
        assert!(tokio::time::Instant::now() < deadline, "the history is never written");
        tokio::task::yield_now().await;
    }
    let series = "/api/v1/series?operator=op9&unit=u&sensor=t1&kind=temperature";
    let all = daemon.get_ok(series).await;
    let items = all["items"].as_array().unwrap();
    assert_eq!(items.len(), 1_001);
    let found: Vec<Option<f64>> = items.iter().map(|item| item["value"].as_f64()).collect();
    let expected: Vec<Option<f64>> = values.iter().copied().map(Some).chain([None]).collect();
    assert_eq!(found, expected);
    check(
        &json!([items[0], items[1_000]]),
        expect![[r#"
        [
          {
            "event_time": "2026-11-23T10:00:00.000Z",
            "quality": [],
            "value": 0.0
          },
          {
            "event_time": "2026-11-24T02:40:00.000Z",
            "quality": [
              "server_time"
            ],
            "value": null
          }
        ]
    "#]],
    );

    let mut paged = Vec::new();
    let mut cursor = String::new();
    loop {
        let page = daemon.get_ok(&format!("{series}&limit=300{cursor}")).await;
        paged.extend(page["items"].as_array().unwrap().clone());
        match page["next"].as_str() {
            Some(next) => cursor = format!("&cursor={next}"),
            None => break,
        }
    }
    assert_eq!(&paged, items);

    let stepped = daemon.get_ok(&format!("{series}&from=2026-11-23T10:00:00Z&to=2026-11-23T12:30:00Z&step=1h")).await;
    check(
        &stepped,
        expect![[r#"
        {
          "items": [
            {
              "count": 60,
              "failed": 0,
              "max": 59.0,
              "mean": 29.5,
              "min": 0.0,
              "start": "2026-11-23T10:00:00.000Z"
            },
            {
              "count": 60,
              "failed": 0,
              "max": 59.0,
              "mean": 29.5,
              "min": 0.0,
              "start": "2026-11-23T11:00:00.000Z"
            },
            {
              "count": 30,
              "failed": 0,
              "max": 29.0,
              "mean": 14.5,
              "min": 0.0,
              "start": "2026-11-23T12:00:00.000Z"
            }
          ],
          "next": null
        }
    "#]],
    );
    assert_eq!(
        daemon.get_ok(&format!("{series}&from=-62135596800000&to=253402300799999&step=3600")).await["items"]
            .as_array()
            .unwrap()
            .len(),
        17
    );
    // A late reading is only in memory, weeks before the oldest block in the file.
    let late = br#"{"ts": "2026-11-01T00:00:00Z", "readings": [{"sensor": "t1", "kind": "temperature", "value": -1}]}"#;
    daemon.publish("op9/u", "telemetry", late).await;
    let with_late = daemon.get_ok(&format!("{series}&from=2026-10-01T00:00:00Z")).await;
    assert_eq!(with_late["items"][0]["value"], -1.0);
    assert_eq!(&with_late["items"].as_array().unwrap()[1..], items);
    let nobody = daemon.get_ok("/api/v1/series?operator=op9&unit=u&sensor=t9&kind=temperature").await;
    assert_eq!(nobody, json!({ "items": [], "next": null }));
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn compliance_is_added_up_by_what_is_asked_for() {
    let daemon = Daemon::start().await;
    daemon.publish_minutes("op1/room-1", "10:00:00", &TOO_WARM).await;
    let period = "from=2026-11-23T10:00:00Z&to=2026-11-23T12:00:00Z";
    let get = async |query: &str| daemon.get_ok(&format!("/api/v1/compliance?{query}&{period}")).await;
    // Of two registered sensors one has never sent anything: what is not out of the limits is not known.
    check(
        &get("by=jurisdiction").await,
        expect![[r#"
        {
          "by": "jurisdiction",
          "from": "2026-11-23T10:00:00.000Z",
          "items": [
            {
              "compliant_s": 0.0,
              "disposal_rate": null,
              "excursion_s": 720.0,
              "key": "150100",
              "on_duty_s": 1020.0,
              "share_compliant": 0.0,
              "units": 1,
              "unmonitored_s": 300.0
            },
            {
              "compliant_s": 0.0,
              "disposal_rate": null,
              "excursion_s": 0.0,
              "key": "150200",
              "on_duty_s": 0.0,
              "share_compliant": null,
              "units": 1,
              "unmonitored_s": 0.0
            },
            {
              "compliant_s": 0.0,
              "disposal_rate": null,
              "excursion_s": 0.0,
              "key": "220100",
              "on_duty_s": 0.0,
              "share_compliant": null,
              "units": 1,
              "unmonitored_s": 0.0
            }
          ],
          "next": null,
          "to": "2026-11-23T10:17:00.000Z"
        }
    "#]],
    );
    check(
        &get("by=sensor&operator=op1&unit=room-1").await["items"],
        expect![[r#"
        [
          {
            "compliant_s": 300.0,
            "disposal_rate": null,
            "excursion_s": 720.0,
            "key": "t1/temperature",
            "kind": "temperature",
            "on_duty_s": 1020.0,
            "sensor": "t1",
            "share_compliant": 0.29411764705882354,
            "units": 1,
            "unmonitored_s": 0.0
          },
          {
            "compliant_s": 0.0,
            "disposal_rate": null,
            "excursion_s": 0.0,
            "key": "t2/temperature",
            "kind": "temperature",
            "on_duty_s": 1020.0,
            "sensor": "t2",
            "share_compliant": 0.0,
            "units": 1,
            "unmonitored_s": 1020.0
          }
        ]
    "#]],
    );
    let figures = |item: &Value| {
        let seconds =
            ["compliant_s", "excursion_s", "unmonitored_s", "on_duty_s"].map(|key| item[key].as_f64().unwrap());
        (item["key"].as_str().map(str::to_owned), item["units"].as_u64().unwrap(), seconds)
    };
    let all = async |query: &str| get(query).await["items"].as_array().unwrap().iter().map(figures).collect::<Vec<_>>();
    let some = |key: &str, units, seconds| (Some(key.to_owned()), units, seconds);
    let of_room = [0.0, 720.0, 300.0, 1_020.0];
    assert_eq!(all("by=operator").await, [some("op1", 2, of_room), some("op2", 1, [0.0; 4])]);
    assert_eq!(all("by=category").await, [some("food", 1, of_room)]);
    assert_eq!(all("by=operator&jurisdiction=1501").await, [some("op1", 1, of_room)]);
    assert_eq!(all("by=operator&category=drug&operator=op1").await, [some("op1", 2, [0.0; 4])]);
    let pages = [get("by=unit&limit=2").await, get("by=unit&limit=2&cursor=op1/truck-7").await];
    assert_eq!((&pages[0]["next"], &pages[1]["next"]), (&json!("op1/truck-7"), &Value::Null));
    let units: Vec<_> = pages.iter().flat_map(|page| page["items"].as_array().unwrap()).map(figures).collect();
    let expected = [some("op1/room-1", 1, of_room), some("op1/truck-7", 1, [0.0; 4]), some("op2/room-2", 1, [0.0; 4])];
    assert_eq!(units, expected);

    // Where nothing is said, it is the last thirty whole days; where only a start is, until the end of yesterday or now.
    let whole_days = daemon.get_ok("/api/v1/compliance?by=operator").await;
    assert_eq!(whole_days["from"], "2026-10-24T00:00:00.000Z");
    assert_eq!(whole_days["to"], "2026-11-23T00:00:00.000Z");
    assert_eq!(whole_days["items"][0]["unmonitored_s"], 30.0 * 86_400.0);
    let today = daemon.get_ok("/api/v1/compliance?by=operator&from=2026-11-23T00:00:00Z").await;
    assert_eq!(today["to"], "2026-11-23T10:17:00.000Z");
    let (status, problem) = daemon.get("/api/v1/compliance?by=operator&from=0").await;
    assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE, "{problem}");
    assert!(problem["detail"].as_str().unwrap().contains("not summed up yet"), "{problem}");
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn dead_letters_are_listed_shown_and_redriven() {
    let daemon = Daemon::start().await;
    daemon.publish("op9/u", "telemetry", b"\xff\x00 not JSON").await;
    let two = br#"{"ts": "2026-11-23T09:59:00Z", "readings": [
        {"sensor": "t", "kind": "temperature", "value": 900, "unit": "Cel"},
        {"sensor": "t\u001b[2J", "kind": "temperature", "value": 4, "unit": "Cel"}]}"#;
    let offset = daemon.publish("op9/u", "telemetry", two).await;
    let cut = vec![b'x'; 65_536];
    daemon
        .publish_message(Message {
            topic: b"coldchain/v1/op9/u/telemetry",
            payload: &cut,
            retained: false,
            oversize: Some(Oversize { length: 6 << 20, sha256: [7; 32] }),
            original_received_at: None,
        })
        .await;
    let refused = [("temperature,operator=op9 value=1 1".to_owned(), "field type conflict".to_owned())];
    SinkProgress::open(daemon.data_dir.path()).unwrap().put_refused("influxdb2", &refused, at("09:00:00")).unwrap();

    let listed = daemon.get_ok("/api/v1/dead-letters").await;
    let mut shown = listed.clone();
    for item in shown["items"].as_array_mut().unwrap() {
        let excerpt = item["payload"].as_str().map(|payload| payload.chars().take(24).collect::<String>());
        item["payload"] = json!(excerpt);
    }
    check(
        &shown,
        expect![[r#"
        {
          "items": [
            {
              "detail": "the payload has 6291456 bytes; 4 MiB is the most that is taken",
              "id": 4,
              "item": null,
              "journal_offset": 3,
              "length": 6291456,
              "payload": "xxxxxxxxxxxxxxxxxxxxxxxx",
              "reason": "oversize",
              "received_at": "2026-11-23T10:00:00.000Z",
              "redriven_at": null,
              "route": "coldchain/v1/+/+/telemetry",
              "sha256": "0707070707070707070707070707070707070707070707070707070707070707",
              "sink": null,
              "topic": "coldchain/v1/op9/u/telemetry"
            },
            {
              "detail": "`sensor` is not 1 to 64 characters without control characters",
              "id": 3,
              "item": 1,
              "journal_offset": 2,
              "length": 206,
              "payload": "{\"ts\": \"2026-11-23T09:59",
              "reason": "schema",
              "received_at": "2026-11-23T10:00:00.000Z",
              "redriven_at": null,
              "route": "coldchain/v1/+/+/telemetry",
              "sha256": null,
              "sink": null,
              "topic": "coldchain/v1/op9/u/telemetry"
            },
            {
              "detail": "temperature of 900 from sensor `t`",
              "id": 2,
              "item": 0,
              "journal_offset": 2,
              "length": 206,
              "payload": "{\"ts\": \"2026-11-23T09:59",
              "reason": "range",
              "received_at": "2026-11-23T10:00:00.000Z",
              "redriven_at": null,
              "route": "coldchain/v1/+/+/telemetry",
              "sha256": null,
              "sink": null,
              "topic": "coldchain/v1/op9/u/telemetry"
            },
            {
              "detail": "invalid utf-8 sequence of 1 bytes from index 0",
              "id": 1,
              "item": null,
              "journal_offset": 1,
              "length": 11,
              "payload": null,
              "payload_b64": "/wAgbm90IEpTT04=",
              "reason": "malformed",
              "received_at": "2026-11-23T10:00:00.000Z",
              "redriven_at": null,
              "route": "coldchain/v1/+/+/telemetry",
              "sha256": null,
              "sink": null,
              "topic": "coldchain/v1/op9/u/telemetry"
            },
            {
              "detail": "field type conflict",
              "id": null,
              "item": null,
              "journal_offset": null,
              "length": 34,
              "payload": "temperature,operator=op9",
              "reason": "refused",
              "received_at": "2026-11-23T09:00:00.000Z",
              "redriven_at": null,
              "route": null,
              "sha256": null,
              "sink": "influxdb2",
              "topic": null
            }
          ],
          "next": null
        }
    "#]],
    );
    let items = listed["items"].as_array().unwrap();
    let number_of =
        |reason: &str| items.iter().find(|item| item["reason"] == reason).and_then(|item| item["id"].as_i64()).unwrap();
    let first = daemon.get_ok("/api/v1/dead-letters?limit=1").await;
    assert_eq!(first["items"].as_array().unwrap().len(), 1);
    let rest = daemon.get_ok(&format!("/api/v1/dead-letters?cursor={}", first["next"].as_str().unwrap())).await;
    assert_eq!(rest["items"][0]["id"], items[1]["id"]);
    for (reason, count) in [("malformed", 1), ("range", 1), ("oversize", 1), ("refused", 1), ("future", 0)] {
        let found = daemon.get_ok(&format!("/api/v1/dead-letters?reason={reason}")).await;
        assert_eq!(found["items"].as_array().unwrap().len(), count, "{reason}");
    }
    // A list brings the beginning of a payload, the letter itself all that is kept.
    let oversize = daemon.get_ok(&format!("/api/v1/dead-letters/{}", number_of("oversize"))).await;
    assert_eq!(
        (items[0]["payload"].as_str().unwrap().len(), oversize["payload"].as_str().unwrap().len()),
        (200, 65_536)
    );
    let one = daemon.get_ok(&format!("/api/v1/dead-letters/{}", number_of("range"))).await;
    assert_eq!(one["payload"], std::str::from_utf8(two).unwrap());
    assert_eq!(daemon.get("/api/v1/dead-letters/999").await.0, StatusCode::NOT_FOUND);
    assert_eq!(daemon.get("/api/v1/dead-letters/first").await.0, StatusCode::NOT_FOUND);

    let post = |id: i64| daemon.client.post(format!("{}/api/v1/dead-letters/{id}/redrive", daemon.base));
    // What a form on another site's page could send is not taken.
    for request in [post(number_of("range")), post(number_of("range")).header("content-type", "text/plain").body("{}")]
    {
        assert_eq!(request.send().await.unwrap().status(), StatusCode::UNSUPPORTED_MEDIA_TYPE);
    }
    assert_eq!(post(number_of("oversize")).json(&json!({})).send().await.unwrap().status(), StatusCode::CONFLICT);
    assert_eq!(post(999).json(&json!({})).send().await.unwrap().status(), StatusCode::NOT_FOUND);
    assert!(daemon.redriven.lock().unwrap().is_empty());
    let accepted = post(number_of("range")).json(&json!({})).send().await.unwrap();
    assert_eq!(accepted.status(), StatusCode::ACCEPTED);
    assert_eq!(accepted.json::<Value>().await.unwrap(), json!({ "journal_offset": 4_711 }));
    {
        let redriven = daemon.redriven.lock().unwrap();
        assert_eq!((redriven.len(), redriven[0].journal_offset, redriven[0].payload.as_slice()), (1, offset, &two[..]));
    }
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_stream_tells_transitions_and_on_request_readings_and_does_not_hold_up_the_end() {
    let daemon = Daemon::start().await;
    let mut plain = daemon.request("/api/v1/stream").send().await.unwrap();
    let mut with_readings = daemon.request("/api/v1/stream?readings=true").send().await.unwrap();
    assert_eq!(plain.headers()["content-type"], "text/event-stream");
    daemon.publish_minutes("op1/room-1", "10:00:00", &TOO_WARM).await;
    // The readings of a batch may be told after its transitions: what is waited for comes last of each.
    let heard = read_until(&mut with_readings, &["\"state\":\"firing\"", "10:17:00"]).await;
    assert!(heard.contains("event: reading\n"), "{heard}");
    let reading = json!({
        "operator": "op1", "unit": "room-1", "sensor": "t1", "kind": "temperature",
        "event_time": "2026-11-23T10:08:00.000Z", "value": -9.5,
    });
    assert!(data_of(&heard, "reading").contains(&reading), "{heard}");
    let heard = read_until(&mut plain, &["\"state\":\"firing\""]).await;
    assert!(!heard.contains("event: reading"), "{heard}");
    let transitions = data_of(&heard, "transition");
    let states: Vec<&str> = transitions.iter().map(|alert| alert["state"].as_str().unwrap()).collect();
    assert_eq!(states, ["pending", "firing"]);
    assert!(heard.contains(&format!("id: {}.1.firing.open\n", transitions[1]["id"].as_str().unwrap())), "{heard}");
    daemon.stop().await;
    // The server has ended the streams; they did not wait for the client.
    while plain.chunk().await.is_ok_and(|chunk| chunk.is_some()) {}
}

/// Reads a stream until it holds all of `texts`.
async fn read_until(response: &mut reqwest::Response, texts: &[&str]) -> String {
    let mut heard = String::new();
    let read = async {
        while !(texts.iter().all(|text| heard.contains(text)) && heard.ends_with("\n\n")) {
            heard.push_str(std::str::from_utf8(&response.chunk().await.unwrap().expect("the stream goes on")).unwrap());
        }
    };
    tokio::time::timeout(PATIENCE, read).await.expect("what is waited for is told");
    heard
}

fn data_of(heard: &str, event: &str) -> Vec<Value> {
    let is_wanted = |block: &&str| block.lines().any(|line| line == format!("event: {event}"));
    let data = |block: &str| block.lines().find_map(|line| line.strip_prefix("data: ").map(str::to_owned)).unwrap();
    heard.split("\n\n").filter(is_wanted).map(|block| serde_json::from_str(&data(block)).unwrap()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn probes_metrics_and_accounting_say_how_it_goes() {
    let daemon = Daemon::start().await;
    assert_eq!(daemon.get_ok("/healthz").await, json!({ "status": "alive" }));
    let broker = daemon.health.part("broker");
    let journal = daemon.health.part("journal");
    journal.up("writing");
    let (status, body) = daemon.get("/readyz").await;
    assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(body["ready"], false);
    assert_eq!(body["parts"]["broker"], json!({ "ready": false, "remark": "starting" }));
    broker.up("subscribed");
    // The pipeline is ready when it has nothing left to do.
    let deadline = tokio::time::Instant::now() + PATIENCE;
    while daemon.health.parts()["pipeline"].is_err() {
        assert!(tokio::time::Instant::now() < deadline, "the pipeline is never ready");
        tokio::task::yield_now().await;
    }
    let body = daemon.get_ok("/readyz").await;
    assert_eq!(body["ready"], true);
    assert_eq!(body["parts"]["broker"], json!({ "ready": true, "remark": "subscribed" }));

    daemon.publish_minutes("op1/room-1", "10:00:00", &TOO_WARM).await;
    daemon.publish_minutes("op1/room-1", "10:00:00", &TOO_WARM[..3]).await;
    daemon.publish("op1/room-1", "telemetry", b"?").await;
    daemon.publish("op1/room-1", "elsewhere", b"?").await;
    check(
        &daemon.get_ok("/api/v1/accounting").await,
        expect![[r#"
        {
          "dead_lettered": 2,
          "duplicate": 3,
          "in_flight": 0,
          "received": 23,
          "routes": {
            "coldchain/v1/+/+/telemetry": {
              "dead_lettered": 1,
              "duplicate": 3,
              "in_flight": 0,
              "received": 22,
              "stored": 18
            },
            "none": {
              "dead_lettered": 1,
              "duplicate": 0,
              "in_flight": 0,
              "received": 1,
              "stored": 0
            }
          },
          "stored": 18
        }
    "#]],
    );
    let response = daemon.request("/metrics").send().await.unwrap();
    assert!(response.headers()["content-type"].to_str().unwrap().starts_with("text/plain; version=0.0.4"));
    let text = response.text().await.unwrap();
    for line in [
        r#"frostline_readings_received_total{route="coldchain/v1/+/+/telemetry"} 22"#,
        r#"frostline_http_requests_total{status="503"} 1"#,
        "frostline_stream_events_dropped_total 0",
    ] {
        assert!(text.contains(line), "{line} is not in\n{text}");
    }
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_answered_is_a_problem_document() {
    let daemon = Daemon::start().await;
    for (path, status, word) in [
        ("/api/v1/nothing", 404, "nothing at this address"),
        ("/api/v1/alerts?colour=red", 400, "colour"),
        ("/api/v1/alerts?state=open", 400, "open"),
        ("/api/v1/alerts?severity=high", 400, "critical"),
        ("/api/v1/alerts?from=yesterday", 400, "yesterday"),
        ("/api/v1/alerts?limit=0", 400, "limit"),
        ("/api/v1/alerts?limit=1001", 400, "1000"),
        ("/api/v1/alerts?limit=many", 400, "limit"),
        ("/api/v1/alerts?cursor=7", 400, "cursor"),
        ("/api/v1/alerts?state=firing&state=resolved", 400, "duplicate"),
        ("/api/v1/units?cursor=x", 400, "cursor"),
        ("/api/v1/series", 400, "operator"),
        ("/api/v1/series?operator=a&unit=b&sensor=c&kind=colour", 400, "temperature"),
        ("/api/v1/series?operator=a&unit=b/c&sensor=c&kind=door", 400, "b/c"),
        ("/api/v1/series?operator=a&unit=b&sensor=c&kind=door&step=0", 400, "step"),
        ("/api/v1/series?operator=a&unit=b&sensor=c&kind=door&step=1y", 400, "1y"),
        ("/api/v1/dead-letters?reason=bad", 400, "malformed"),
        ("/api/v1/compliance", 400, "by"),
        ("/api/v1/compliance?by=weather", 400, "jurisdiction"),
        ("/api/v1/compliance?by=unit&from=yesterday", 400, "yesterday"),
        ("/api/v1/compliance?by=unit&from=2026-11-23T10:00:00Z&to=2026-11-23T10:00:00Z", 400, "before `to`"),
        ("/api/v1/compliance?by=unit&cursor=x", 400, "cursor"),
        ("/api/v1/compliance?by=operator&limit=5", 400, "by=unit"),
        ("/api/v1/compliance?by=sensor&operator=op1", 400, "one unit"),
        ("/api/v1/compliance?by=sensor&operator=op1&unit=room-1&category=food", 400, "category"),
        ("/api/v1/compliance?by=sensor&operator=op1&unit=nobody", 404, "unit"),
        ("/api/v1/alerts/%FF", 404, "UTF-8"),
    ] {
        let response = daemon.request(path).send().await.unwrap();
        assert_eq!(response.headers()["content-type"], "application/problem+json", "{path}");
        assert_eq!(response.headers()["x-content-type-options"], "nosniff", "{path}");
        assert_eq!(response.status().as_u16(), status, "{path}");
        let problem: Value = response.json().await.unwrap();
        assert_eq!((&problem["type"], &problem["status"]), (&json!("about:blank"), &json!(status)), "{path}");
        assert!(problem["title"].is_string(), "{path}");
        assert!(problem["detail"].as_str().unwrap().contains(word), "{path}: {problem}");
    }
    let response = daemon.client.delete(format!("{}/api/v1/alerts", daemon.base)).send().await.unwrap();
    assert_eq!(response.status(), StatusCode::METHOD_NOT_ALLOWED);
    assert_eq!(response.headers()["content-type"], "application/problem+json");
    let page = daemon.request("/").send().await.unwrap();
    assert!(page.headers()["content-security-policy"].to_str().unwrap().contains("script-src 'self'"));
    daemon.stop().await;
}

#[tokio::test]
async fn an_address_in_use_is_named_before_anything_starts() {
    let taken = bind("127.0.0.1:0".parse().unwrap()).await.unwrap();
    let address = taken.local_addr().unwrap();
    assert_eq!(bind(address).await.unwrap_err().to_string(), format!("cannot listen on {address}"));
}

#[tokio::test]
async fn a_missing_ledger_is_told_as_unavailable() {
    let stores = super::stores::Stores::new(Path::new("/nonexistent"));
    let problem = stores.ledger(|ledger| ledger.alert("x")).await.unwrap_err();
    assert!(format!("{problem:?}").contains("503"), "{problem:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bad_clock_is_shown_and_its_unit_alone_is_affected() {
    let daemon = Daemon::start().await;
    for minute in 0..8 {
        daemon.clock.set(at("10:00:00").plus_millis(minute * 60_000));
        for (unit, ahead_ms) in [("op1/truck-7", if minute < 4 { 0 } else { 200_000 }), ("op1/room-1", 0)] {
            let ts = at("10:00:00").plus_millis(minute * 60_000 + ahead_ms).as_millis();
            let reading = json!({ "sensor": "t1", "kind": "temperature", "value": -20 });
            daemon.publish(unit, "telemetry", json!({ "ts": ts, "readings": [reading] }).to_string().as_bytes()).await;
        }
    }
    let far =
        json!({ "ts": "2031-01-01T00:00:00Z", "readings": [{ "sensor": "t1", "kind": "temperature", "value": 1 }] });
    daemon.publish("op1/truck-7", "telemetry", far.to_string().as_bytes()).await;
    let clock = async |unit: &str| daemon.get_ok(&format!("/api/v1/units/{unit}")).await["clock"].clone();
    let mut bad = clock("op1/truck-7").await;
    assert!(bad["skew_s"].as_f64().unwrap() > 1e8, "what is refused says most about the clock: {bad}");
    bad["skew_s"] = Value::Null;
    let expected = json!({
        "ahead": true, "jumps": 1, "last_jump_at": "2026-11-23T10:04:00.000Z", "future_readings": 1, "skew_s": null,
    });
    assert_eq!(bad, expected);
    let good = json!({ "ahead": false, "jumps": 0, "last_jump_at": null, "future_readings": 0, "skew_s": 0.0 });
    assert_eq!(clock("op1/room-1").await, good);
    let metrics = daemon.request("/metrics").send().await.unwrap().text().await.unwrap();
    for line in ["frostline_clock_jumps_total 1", "frostline_units_clock_ahead 1"] {
        assert!(metrics.lines().any(|found| found == line), "{line} is not in {metrics}");
    }
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_unit_that_has_only_said_that_it_is_there_is_shown() {
    let daemon = Daemon::start().await;
    daemon.publish("op9/quiet", "status", br#"{"online": true}"#).await;
    let unit = daemon.get_ok("/api/v1/units/op9/quiet").await;
    assert_eq!((&unit["online"], &unit["state"]), (&json!(true), &json!("unmonitored")));
    let listed = daemon.get_ok("/api/v1/units?operator=op9").await;
    assert_eq!(listed["items"], json!([unit]));
    assert_eq!(daemon.get("/api/v1/units/op9/nobody").await.0, StatusCode::NOT_FOUND);
    daemon.stop().await;
}
