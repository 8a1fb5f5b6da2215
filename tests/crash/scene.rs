//! A broker, the daemon, a database, a fleet that publishes and someone who listens for alerts; and the comparison of
//! all of them afterwards.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use frostline::alert::{Alert, AlertState};
use frostline::history::HistoryReader;
use frostline::ledger::{AlertFilter, Ledger, LedgerReader};
use frostline::pipeline::HISTORY_FILE;
use frostline_core::model::Timestamp;
use rumqttc::{Client, Event, MqttOptions, Packet, QoS};
use serde_json::Value;

use crate::daemon::Daemon;
use crate::load::{Load, Point, RULES, Readings, millionths};
use crate::publisher::{Message, Publisher};
use crate::servers::{Influx, Mosquitto, Server, VictoriaMetrics, wait_until};

/// A broker that keeps whatever we have not taken yet.
pub(crate) const KEEP_EVERYTHING: &str = "max_queued_messages 0";

/// The database behind the daemon.
pub(crate) enum Database {
    Victoria(VictoriaMetrics),
    Influx(Influx),
}

impl Database {
    /// Returns what the daemon's configuration says of it; `url` may be that of something in between.
    pub(crate) fn settings(&self, url: &str, confirm_after: &str) -> String {
        format!(
            "[series]\nstore = \"influxdb2\"\n[series.influxdb2]\nurl = \"{url}\"\norg = \"{}\"\nbucket = \"{}\"\n\
             confirm_after = \"{confirm_after}\"\n",
            Influx::ORG,
            Influx::BUCKET,
        )
    }

    pub(crate) fn url(&self) -> String {
        match self {
            Self::Victoria(database) => database.url(),
            Self::Influx(database) => database.url(),
        }
    }

    /// Returns the process.
    pub(crate) fn server(&mut self) -> &mut Server {
        match self {
            Self::Victoria(database) => &mut database.server,
            Self::Influx(database) => &mut database.server,
        }
    }

    /// Returns every reading that it has; panics where one series has two values for a millisecond.
    pub(crate) fn readings(&self) -> Readings {
        let mut readings = Readings::new();
        let mut add = |labels: &BTreeMap<String, String>, kind: &str, field: &str, time_ms: i64, value: f64| {
            assert_eq!(labels["operator"], "op1");
            let (unit, sensor) = (labels["unit"].clone(), labels["sensor"].clone());
            let value = if field == "failed" { None } else { Some(millionths(value)) };
            let before = readings.insert(Point { unit, sensor, kind: kind.to_owned(), time_ms }, value);
            assert_eq!(before, None, "{labels:?} {kind} at {time_ms} is there twice");
        };
        match self {
            Self::Victoria(database) => {
                for sample in database.samples(r#"{__name__=~"(temperature|humidity|door|defrost)_(value|failed)"}"#) {
                    let (kind, field) = sample.name.split_once('_').expect("the selector says so");
                    add(&sample.labels, kind, field, sample.time_ms, sample.value);
                }
            }
            Self::Influx(database) => {
                for kind in ["temperature", "humidity", "door", "defrost"] {
                    for row in database.points(kind) {
                        let time = Timestamp::parse_rfc3339(&row["_time"]).expect("a time as InfluxDB writes it");
                        add(&row, kind, &row["_field"], time.as_millis(), row["_value"].parse().unwrap_or_default());
                    }
                }
            }
        }
        readings
    }
}

/// Where the database has a point of an alert: unit, sensor, rule, state and milliseconds.
type AlertPlace = (String, Option<String>, String, String, i64);

/// Returns where an alert that stands has points.
fn places(alert: &Alert) -> Vec<AlertPlace> {
    let place = |state: AlertState, at: Timestamp| {
        (alert.unit.clone(), alert.sensor.clone(), alert.rule.clone(), state.as_str().to_owned(), at.as_millis())
    };
    let fired =
        alert.fired_at.filter(|_| alert.state != AlertState::Retracted).map(|at| place(AlertState::Firing, at.0));
    let is_over = alert.state == AlertState::Resolved;
    let resolved = alert.resolved_at.filter(|_| is_over).map(|at| place(AlertState::Resolved, at.0));
    fired.into_iter().chain(resolved).collect()
}

impl Database {
    /// Says how its points of alerts differ from these alerts; nothing where they do not.
    fn difference_from(&self, alerts: &[Alert]) -> String {
        let standing: BTreeMap<AlertPlace, &str> =
            alerts.iter().flat_map(|alert| places(alert).into_iter().map(|place| (place, alert.id.as_str()))).collect();
        let place = |labels: &BTreeMap<String, String>, time_ms: i64| {
            let label = |name: &str| labels.get(name).filter(|text| !text.is_empty()).cloned();
            let always = |name: &str| label(name).expect("every point of an alert has it");
            (always("unit"), label("sensor"), always("rule"), always("state"), time_ms)
        };
        match self {
            // It keeps no text, and of several values for one place any: so only that the points are there can be told.
            Self::Victoria(database) => {
                let samples = database.samples(r#"{__name__="alert_started"}"#);
                let there: BTreeSet<_> = samples.iter().map(|sample| place(&sample.labels, sample.time_ms)).collect();
                match standing.keys().find(|place| !there.contains(place)) {
                    Some(missing) => format!("missing {missing:?}"),
                    None => String::new(),
                }
            }
            Self::Influx(database) => {
                let mut there: BTreeMap<AlertPlace, BTreeMap<String, String>> = BTreeMap::new();
                for row in database.points("alert") {
                    let time = Timestamp::parse_rfc3339(&row["_time"]).expect("a time as InfluxDB writes it");
                    let fields = there.entry(place(&row, time.as_millis())).or_default();
                    fields.insert(row["_field"].clone(), row["_value"].clone());
                }
                there.retain(|place, fields| {
                    place.3 != "retracted" && fields.get("superseded").is_none_or(|flag| flag != "true")
                });
                let there: BTreeMap<AlertPlace, &str> =
                    there.iter().map(|(place, fields)| (place.clone(), fields["episode"].as_str())).collect();
                let missing = standing.iter().find(|(place, id)| there.get(place) != Some(id));
                let extra = there.iter().find(|(place, id)| standing.get(place) != Some(id));
                if missing.is_none() && extra.is_none() {
                    return String::new();
                }
                format!("missing {missing:?}, extra {extra:?}")
            }
        }
    }
}

/// Returns every alert of the ledger.
fn all_alerts(data_dir: &Path) -> Vec<Alert> {
    let ledger = LedgerReader::open(data_dir).unwrap();
    ledger.alerts(&AlertFilter::default(), None, 1_000_000).unwrap().items
}

/// Everything together.
pub(crate) struct Scene {
    pub(crate) broker: Mosquitto,
    pub(crate) database: Option<Database>,
    pub(crate) daemon: Daemon,
    pub(crate) publisher: Arc<Publisher>,
    pub(crate) load: Arc<Mutex<Load>>,
    listener: AlertListener,
    traffic: Option<Traffic>,
    began: Instant,
    name: &'static str,
}

/// How a scene differs from the usual one.
pub(crate) struct Setup {
    pub(crate) name: &'static str,
    pub(crate) seed: u64,
    pub(crate) broker: &'static str,
    /// Whether the broker loses what it has confirmed.
    pub(crate) broker_forgets: bool,
    pub(crate) confirm_after: &'static str,
    /// Further lines of `frostline.toml`, before its sections.
    pub(crate) settings: &'static str,
    /// Where the daemon finds the database, if not where it is.
    pub(crate) database_url: Option<String>,
}

impl Setup {
    pub(crate) fn new(name: &'static str, seed: u64) -> Self {
        Self {
            name,
            seed,
            broker: KEEP_EVERYTHING,
            broker_forgets: false,
            confirm_after: "1s",
            // Small segments that go at once, so that they are begun and deleted under load.
            settings: "journal.max_size = \"2MiB\"\njournal.retention = \"0s\"\n",
            database_url: None,
        }
    }

    /// Starts everything but the daemon and the traffic.
    pub(crate) fn build(self, database: Option<Database>) -> Scene {
        self.build_in(None, database)
    }

    /// Likewise, with the daemon's data in a directory that the test has made.
    pub(crate) fn build_in(self, data_dir: Option<PathBuf>, database: Option<Database>) -> Scene {
        let broker = Mosquitto::start(self.broker);
        let series = database.as_ref().map(|database| {
            let url = self.database_url.unwrap_or_else(|| database.url());
            database.settings(&url, self.confirm_after)
        });
        let settings = format!(
            "mqtt.url = \"{}\"\nclock.source = \"readings\"\nrules.settle = \"0s\"\n{}{}",
            broker.url(),
            self.settings,
            series.unwrap_or_default()
        );
        let daemon = Daemon::new(data_dir, &settings, RULES);
        eprintln!("{}: seed {}", self.name, self.seed);
        Scene {
            listener: AlertListener::start(broker.server.port()),
            publisher: Arc::new(Publisher::start(broker.server.address())),
            load: Arc::new(Mutex::new(Load::new(self.seed, self.broker_forgets))),
            traffic: None,
            began: Instant::now(),
            name: self.name,
            broker,
            database,
            daemon,
        }
    }
}

impl Scene {
    /// Says what the test does.
    pub(crate) fn say(&self, what: impl std::fmt::Display) {
        eprintln!("{} {:5.1} s: {what}", self.name, self.began.elapsed().as_secs_f64());
    }

    /// Begins to publish about so many messages a second, until [`Self::settle`].
    pub(crate) fn begin_traffic(&mut self, messages_per_s: u64) {
        self.traffic = Some(Traffic::start(Arc::clone(&self.load), Arc::clone(&self.publisher), messages_per_s));
    }

    /// Returns how many messages were published so far.
    pub(crate) fn published(&self) -> usize {
        self.load().published.len()
    }

    pub(crate) fn load(&self) -> MutexGuard<'_, Load> {
        self.load.lock().unwrap()
    }

    /// Waits until so many more messages are published.
    pub(crate) fn wait_for_traffic(&self, messages: usize) {
        let enough = self.published() + messages;
        wait_until("more messages are published", || self.published() >= enough);
    }

    /// Ends the traffic and waits until the daemon has judged the last message.
    pub(crate) fn settle(&mut self) {
        drop(self.traffic.take());
        self.publisher.wait_for_confirmations();
        let (messages, time) = self.load().last_messages();
        self.publisher.publish(messages);
        let time = time.to_string();
        wait_until("the daemon has judged everything", || {
            self.daemon.expect_alive();
            self.daemon.get("/api/v1/units/op1/marker").is_some_and(|response| response.body.contains(&time))
        });
        wait_until("all units are judged again", || self.daemon.metric("frostline_units_dirty") == 0.0);
        self.say(format_args!(
            "everything is judged, {} messages; since the last start {} units were judged again, {} alerts amended",
            self.published(),
            self.daemon.metric("frostline_rejudged_units_total"),
            self.daemon.metric("frostline_amendments_total"),
        ));
    }

    /// Waits until the database has exactly what was published.
    pub(crate) fn wait_for_database(&mut self) {
        let database = self.database.as_ref().expect("there is a database");
        let expected = self.load().expected.clone();
        let deadline = Instant::now() + crate::servers::PATIENCE;
        loop {
            let stored = database.readings();
            if stored == expected {
                break;
            }
            if Instant::now() > deadline {
                panic!("the database differs from what was published: {}", difference(&expected, &stored));
            }
            self.daemon.expect_alive();
            thread::park_timeout(Duration::from_millis(250));
        }
        self.say(format_args!("the database has all {} readings, each once", expected.len()));
        let mut points = 0;
        let mut difference = String::new();
        while Instant::now() < deadline {
            let alerts = all_alerts(self.daemon.data_dir());
            points = alerts.len();
            difference = database.difference_from(&alerts);
            if difference.is_empty() {
                break;
            }
            thread::park_timeout(Duration::from_millis(250));
        }
        assert!(difference.is_empty(), "the points of alerts in the database differ from the ledger: {difference}");
        self.say(format_args!("and the points of {points} alerts"));
    }

    /// Publishes all that was published once more, after a broker has forgotten some of it.
    pub(crate) fn publish_everything_again(&mut self) {
        drop(self.traffic.take());
        self.publisher.wait_for_confirmations();
        let published = self.load().published.clone();
        self.publisher.publish(published);
    }

    /// Settles, waits for the database, stops the daemon and compares everything.
    pub(crate) fn check(&mut self) {
        self.settle();
        if self.database.is_some() {
            self.wait_for_database();
        }
        let alerts = self.wait_for_alerts();
        self.daemon.stop();
        let stored = stored_readings(self.daemon.data_dir());
        let load = self.load();
        assert!(stored == load.expected, "the history differs: {}", difference(&load.expected, &stored));
        if let Some(database) = &self.database {
            let in_database = database.readings();
            assert!(in_database == stored, "the database differs: {}", difference(&stored, &in_database));
        }
        check_accounting(self.daemon.data_dir(), stored.len());
        check_dead_letters(self.daemon.data_dir(), &load);
        check_told(self.daemon.data_dir(), &alerts);
        let episodes = check_episodes(&self.daemon, &load);
        drop(load);
        self.say(format_args!(
            "{} readings, {} tellings of alerts and {episodes} episodes are as they should be",
            stored.len(),
            alerts.len()
        ));
    }

    /// Waits until the outbox is empty, and returns what the listener got.
    fn wait_for_alerts(&self) -> BTreeSet<Told> {
        let told = |data_dir: &Path| told_to_people(data_dir);
        wait_until("every alert is on the broker", || {
            let heard = self.listener.heard.lock().unwrap();
            told(self.daemon.data_dir()).is_subset(&heard)
        });
        self.listener.heard.lock().unwrap().clone()
    }
}

/// One telling of an alert: id, revision, state.
type Told = (String, u64, String);

/// Subscribes to the alerts with a session of its own.
struct AlertListener {
    heard: Arc<Mutex<BTreeSet<Told>>>,
    client: Client,
}

impl AlertListener {
    fn start(port: u16) -> Self {
        let mut options = MqttOptions::new("listener", "127.0.0.1", port);
        options.set_clean_session(false);
        let (client, mut connection) = Client::new(options, 100);
        let heard = Arc::new(Mutex::new(BTreeSet::new()));
        let subscribed = Arc::new(AtomicBool::new(false));
        thread::spawn({
            let (heard, subscribed, client) = (Arc::clone(&heard), Arc::clone(&subscribed), client.clone());
            move || {
                for event in connection.iter() {
                    match event {
                        Ok(Event::Incoming(Packet::ConnAck(_))) => {
                            // Again on every connection: the broker may have forgotten.
                            client.try_subscribe("coldchain/v1/+/+/alerts", QoS::AtLeastOnce).ok();
                        }
                        Ok(Event::Incoming(Packet::SubAck(_))) => subscribed.store(true, Ordering::SeqCst),
                        Ok(Event::Incoming(Packet::Publish(publish))) => {
                            let alert: Value = serde_json::from_slice(&publish.payload).expect("an alert is JSON");
                            let text = |key: &str| alert[key].as_str().expect("an alert has it").to_owned();
                            let revision = alert["revision"].as_u64().expect("an alert has one");
                            heard.lock().unwrap().insert((text("id"), revision, text("state")));
                        }
                        Ok(Event::Outgoing(rumqttc::Outgoing::Disconnect)) => return,
                        Ok(_) => {}
                        Err(_) => thread::park_timeout(Duration::from_millis(50)),
                    }
                }
            }
        });
        wait_until("the listener is subscribed", || subscribed.load(Ordering::SeqCst));
        Self { heard, client }
    }
}

impl Drop for AlertListener {
    fn drop(&mut self) {
        self.client.try_disconnect().ok();
    }
}

/// Publishes rounds from a thread, at a steady pace, until it is dropped.
struct Traffic {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Traffic {
    fn start(load: Arc<Mutex<Load>>, publisher: Arc<Publisher>, messages_per_s: u64) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let sent = AtomicU64::new(0);
        let thread = thread::spawn({
            let stop = Arc::clone(&stop);
            move || {
                let began = Instant::now();
                while !stop.load(Ordering::SeqCst) {
                    let due = began.elapsed().as_millis() as u64 * messages_per_s / 1_000;
                    if sent.load(Ordering::SeqCst) >= due {
                        thread::park_timeout(Duration::from_millis(2));
                        continue;
                    }
                    // Both under one lock, so that the order of publication is that of the books.
                    let mut load = load.lock().unwrap();
                    let messages: Vec<Message> = load.next_round();
                    sent.fetch_add(messages.len() as u64, Ordering::SeqCst);
                    publisher.publish(messages);
                }
            }
        });
        Self { stop, thread: Some(thread) }
    }
}

impl Drop for Traffic {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        if let Some(thread) = self.thread.take() {
            thread.join().ok();
        }
    }
}

/// Returns every reading in the history of a daemon that has stopped.
pub(crate) fn stored_readings(data_dir: &Path) -> Readings {
    let history = HistoryReader::open(&data_dir.join(HISTORY_FILE)).unwrap();
    let recent = history.recent().unwrap();
    let mut readings = Readings::new();
    for key in history.series(None, None).unwrap() {
        assert_eq!(key.unit.operator.as_str(), "op1");
        for reading in history.read_with(&recent, &key, Timestamp::MIN, Timestamp::MAX).unwrap() {
            let point = Point {
                unit: key.unit.unit.as_str().to_owned(),
                sensor: key.sensor.to_string(),
                kind: key.kind.as_str().to_owned(),
                time_ms: reading.event_time.as_millis(),
            };
            let before = readings.insert(point.clone(), reading.value.map(millionths));
            assert_eq!(before, None, "{point:?} is in the history twice");
        }
    }
    readings
}

/// Checks the accounting identity of a daemon that has stopped, and that what it counts as stored is what is there.
pub(crate) fn check_accounting(data_dir: &Path, readings_stored: usize) {
    let totals = Ledger::open(data_dir).unwrap().counters().unwrap();
    let total =
        |name: &str| -> u64 { totals.iter().filter(|((other, _), _)| other == name).map(|(_, value)| value).sum() };
    let (received, stored) = (total("readings_received"), total("readings_stored"));
    let (duplicate, dead_lettered) = (total("readings_duplicate"), total("readings_dead_lettered"));
    assert_eq!(received, stored + duplicate + dead_lettered, "{totals:?}");
    assert_eq!(stored, readings_stored as u64, "counted as stored, and in the history");
}

/// Checks that the dead letters are the bad messages, every one of them and no other.
fn check_dead_letters(data_dir: &Path, load: &Load) {
    let ledger = LedgerReader::open(data_dir).unwrap();
    let letters = ledger.dead_letters(None, None, usize::MAX >> 1).unwrap();
    let kept: BTreeSet<Vec<u8>> = letters.into_iter().map(|letter| letter.message.payload).collect();
    assert!(kept == load.bad, "{} bad messages were published, {} are kept", load.bad.len(), kept.len());
}

/// Checks that the ledger's episodes are those of a backtest that nobody interrupted; returns how many.
fn check_episodes(daemon: &Daemon, load: &Load) -> usize {
    let (csv, judged) = (daemon.path("readings.csv"), daemon.path("episodes.jsonl"));
    std::fs::write(&csv, &load.csv).unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_frostline"))
        .arg("--config")
        .arg(daemon.config_dir())
        .arg("backtest")
        .arg(&csv)
        .arg("--out")
        .arg(&judged)
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let expected = std::fs::read_to_string(&judged).unwrap();

    let exported = daemon.path("exported.jsonl");
    let mut export = Command::new(env!("CARGO_BIN_EXE_frostline"));
    export.arg("--config").arg(daemon.config_dir()).args(["export", "--what", "episodes", "--out"]).arg(&exported);
    let output = export.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let told = std::fs::read_to_string(&exported).unwrap();
    for (told, expected) in told.lines().zip(expected.lines()) {
        assert_eq!(told, expected, "the first episode that differs from the backtest's");
    }
    assert_eq!(told.lines().count(), expected.lines().count(), "episodes in the ledger, and in the backtest");
    told.lines().count()
}

/// Returns what the ledger has told to people.
fn told_to_people(data_dir: &Path) -> BTreeSet<Told> {
    let told = LedgerReader::open(data_dir).unwrap().told_from(0, usize::MAX >> 1).unwrap();
    let told = told.into_iter().filter(|told| !told.superseded);
    told.map(|told| (told.alert.id, told.alert.revision, told.alert.state.as_str().to_owned())).collect()
}

/// Checks that every alert was told, nothing twice in the ledger, and everything at least once on the broker.
fn check_told(data_dir: &Path, heard: &BTreeSet<Told>) {
    let rows = LedgerReader::open(data_dir).unwrap().told_from(0, usize::MAX >> 1).unwrap();
    let count = rows.iter().filter(|told| !told.superseded).count();
    let told = told_to_people(data_dir);
    assert_eq!(told.len(), count, "transitions that are in the ledger twice");
    for alert in all_alerts(data_dir) {
        let told_now = (alert.id.clone(), alert.revision, alert.state.as_str().to_owned());
        assert!(told.contains(&told_now), "{told_now:?} was never told");
    }
    assert!(told.is_subset(heard), "{:?} was not heard", told.difference(heard).next());
    assert!(heard.is_subset(&told), "{:?} was heard and is not in the ledger", heard.difference(&told).next());
}

/// Says in a few words how two sets of readings differ.
pub(crate) fn difference(expected: &Readings, found: &Readings) -> String {
    let missing: Vec<_> = expected.iter().filter(|(point, _)| !found.contains_key(point)).collect();
    let extra: Vec<_> = found.iter().filter(|(point, _)| !expected.contains_key(point)).collect();
    let other: Vec<_> = expected
        .iter()
        .filter_map(|(point, value)| {
            found.get(point).filter(|found| *found != value).map(|found| (point, value, found))
        })
        .collect();
    format!(
        "of {} readings {} are missing ({:?}), {} are extra ({:?}), {} have another value ({:?})",
        expected.len(),
        missing.len(),
        missing.first(),
        extra.len(),
        extra.first(),
        other.len(),
        other.first()
    )
}
