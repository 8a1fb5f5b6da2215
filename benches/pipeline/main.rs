//! What the whole way costs: from a real broker's queue to judged readings, and on into a real database.
//!
//! `cargo bench --bench pipeline`, or with a number of messages and some of its parts:
//! `cargo bench --bench pipeline -- 200000 judged latency`. Parts are `judged`, `databases`, `latency`, `sensors`,
//! `start` and `late`. A directory on the disk to be measured may be given in `FROSTLINE_BENCH_DIR`.
//!
//! Broker, database, load generator and the measured process share the machine, so absolute figures mean little on
//! another: what is compared is a bare subscriber that only counts and acknowledges, in the same run.

#![expect(clippy::print_stdout, reason = "the figures are the result of this program")]

mod fleet;
mod late;
mod mqtt;
mod process;
#[path = "../../tests/support/servers.rs"]
#[expect(dead_code, reason = "the helpers are for the tests too")]
mod servers;

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use frostline::clock::SystemClock;
use frostline::health::Health;
use frostline::journal::{Entry, Journal, JournalMetrics, JournalOptions, Message};
use serde_json::Value;
use tempfile::TempDir;

use fleet::Fleet;
use mqtt::Client;
use process::{Acknowledging, CLIENT_ID, Daemon, Database, SUBSCRIBER_ARGUMENT, Usage};
use servers::{Influx, Mosquitto, VictoriaMetrics};

pub(crate) type Failure = Box<dyn std::error::Error>;

/// How many units share the messages.
const UNITS: usize = 1_000;
const READINGS_PER_MESSAGE: u64 = 2;
/// How often the subscriber and the daemon take turns; the median counts.
const ROUNDS: usize = 3;
/// How many messages the load generator has unacknowledged: enough to keep the broker busy.
const PUBLISH_WINDOW: usize = 2_000;

/// What a broker must be told not to lose messages while nobody is subscribed.
const BROKER_SETTINGS: &str = "max_queued_messages 0\nmax_inflight_messages 4096\nautosave_interval 0";

fn main() -> Result<(), Failure> {
    let arguments: Vec<String> = std::env::args().skip(1).filter(|argument| argument != "--bench").collect();
    if let [first, broker, messages, acknowledging] = &arguments[..]
        && first == SUBSCRIBER_ARGUMENT
    {
        return process::subscriber_main(broker, messages.parse()?, acknowledging);
    }
    let number = arguments.iter().find_map(|argument| argument.parse().ok());
    let messages = number.unwrap_or(500_000);
    let parts: Vec<&String> = arguments.iter().filter(|argument| argument.parse::<usize>().is_err()).collect();
    let wants = |part: &str| parts.is_empty() || parts.iter().any(|wanted| *wanted == part);
    if wants("judged") {
        judged(messages)?;
    }
    if wants("databases") {
        let victoria = VictoriaMetrics::start();
        let database = Database { url: victoria.url(), token: "" };
        into_database("VictoriaMetrics", messages, &database)?;
        wait_for_points("VictoriaMetrics", messages, || {
            let samples = victoria.samples("{operator!=\"\"}");
            Ok(samples.iter().filter(|sample| sample.name.ends_with("_value")).count())
        })?;
        drop(victoria);

        let influx = Influx::start();
        into_database("InfluxDB 2", messages, &Database { url: influx.url(), token: Influx::TOKEN })?;
        wait_for_points("InfluxDB 2", messages, || points_in_influx(&influx))?;
    }
    if wants("latency") {
        latency()?;
    }
    if wants("sensors") {
        sensors()?;
    }
    if wants("start") {
        start_with_backlog()?;
    }
    if wants("late") {
        late::late(&Mosquitto::start(BROKER_SETTINGS), directory()?.path())?;
    }
    Ok(())
}

/// Lets bare subscribers and the daemon drain the same queue in turns.
fn judged(messages: usize) -> Result<(), Failure> {
    let (mut by_hand, mut automatic, mut daemon) = (Vec::new(), Vec::new(), Vec::new());
    for round in 0..ROUNDS {
        println!("round {round}: {messages} messages, {UNITS} units; load {}", load());
        for (acknowledging, rates) in
            [(Acknowledging::ByHand, &mut by_hand), (Acknowledging::Automatic, &mut automatic)]
        {
            let broker = broker_with_queue(messages)?;
            let (elapsed, usage) = process::run_subscriber(broker.server.address(), messages, acknowledging)?;
            let what = format!("  bare subscriber, acknowledging {}", acknowledging.as_str());
            rates.push(report(&what, messages, elapsed, usage));
        }
        let broker = broker_with_queue(messages)?;
        let directory = directory()?;
        let mut frostline = Daemon::start(directory.path(), &broker.url(), None)?;
        let judged = frostline.wait_for_stored(READINGS_PER_MESSAGE * messages as u64)?;
        let acknowledged = frostline.wait_for_metric("frostline_mqtt_messages_acknowledged_total", messages as u64)?;
        let elapsed = judged.max(acknowledged.saturating_sub(Duration::from_millis(25)));
        daemon.push(report("  frostline, judged", messages, elapsed, frostline.usage()?));
    }
    let (by_hand, automatic, daemon) = (median(by_hand), median(automatic), median(daemon));
    println!(
        "judged: {daemon:.0} messages/s; a bare subscriber {by_hand:.0}, ratio {:.2} (to be at least 0.55); one that leaves \
         acknowledging to the library {automatic:.0}, ratio {:.2}",
        daemon / by_hand,
        daemon / automatic
    );
    Ok(())
}

/// Drains the queue with the database attached, until everything is in it.
fn into_database(name: &str, messages: usize, database: &Database) -> Result<(), Failure> {
    let broker = broker_with_queue(messages)?;
    let directory = directory()?;
    println!("{name}: {messages} messages; load {}", load());
    let mut frostline = Daemon::start(directory.path(), &broker.url(), Some(database))?;
    let readings = READINGS_PER_MESSAGE * messages as u64;
    let judged = frostline.wait_for_stored(readings)?;
    report("  frostline, judged with the database attached", messages, judged, frostline.usage()?);
    let written = r#"frostline_sink_points_total{outcome="written",sink="influxdb2"}"#;
    let written = frostline.wait_for_metric(written, readings)?;
    report("  frostline, in the database", messages, written, frostline.usage()?);
    Ok(())
}

/// Waits until the database returns every point; what it has accepted it may show a moment later.
fn wait_for_points(
    name: &str,
    messages: usize,
    mut count: impl FnMut() -> Result<usize, Failure>,
) -> Result<(), Failure> {
    const PATIENCE: Duration = Duration::from_secs(30);
    let deadline = Instant::now() + PATIENCE;
    loop {
        let points = count()?;
        if points as u64 == READINGS_PER_MESSAGE * messages as u64 {
            println!("  {name} returns every one of {points} points");
            return Ok(());
        }
        if Instant::now() > deadline {
            return Err(format!("{name} returns {points} points of {messages} messages").into());
        }
        thread::sleep(Duration::from_millis(100));
    }
}

fn points_in_influx(influx: &Influx) -> Result<usize, Failure> {
    let count = format!(
        "from(bucket: \"{}\") |> range(start: 2000-01-01T00:00:00Z) |> filter(fn: (r) => r._field == \"value\" and \
         r._measurement != \"alert\") |> count() |> group() |> sum()",
        Influx::BUCKET
    );
    let rows = influx.query(&count);
    let value = rows.first().and_then(|row| row.get("_value")).ok_or("the count has no value")?;
    Ok(value.parse()?)
}

/// Publishes at a steady rate, some of it alarms, and measures until each alert comes back from the broker.
fn latency() -> Result<(), Failure> {
    const RATE_PER_S: usize = 10_000;
    const SECONDS: usize = 20;
    const ALARM_EVERY: usize = 101;
    /// Sent at once; the clock ticks this often.
    const BURST: usize = RATE_PER_S / 1_000;
    let broker = Mosquitto::start(BROKER_SETTINGS);
    let directory = directory()?;
    let mut frostline = Daemon::start(directory.path(), &broker.url(), None)?;
    frostline.wait_for_metric("frostline_mqtt_connections_total{client=\"alerts\"}", 1)?;

    let mut subscriber = Client::connect(broker.server.address(), "alert-reader", true)?;
    subscriber.subscribe("coldchain/v1/+/+/alerts", 0)?;
    let alarms = RATE_PER_S * SECONDS / ALARM_EVERY;
    let reader = thread::spawn(move || read_alerts(&mut subscriber, alarms).map_err(|error| error.to_string()));

    println!("latency: {RATE_PER_S} messages/s for {SECONDS} s, {alarms} of them alarms; load {}", load());
    let mut publisher = Client::connect(broker.server.address(), "fleet", true)?;
    let mut fleet = Fleet::new(UNITS);
    let mut sent = HashMap::new();
    let began = Instant::now();
    for burst in 0..RATE_PER_S * SECONDS / BURST {
        let at = began + Duration::from_millis(burst as u64);
        thread::sleep(at.saturating_duration_since(Instant::now()));
        let event_time = fleet::now();
        for number in burst * BURST..(burst + 1) * BURST {
            let is_alarm = number % ALARM_EVERY == ALARM_EVERY - 1;
            fleet.write(number, event_time, is_alarm);
            publisher.publish(&fleet.topic, fleet.payload.as_bytes());
            if is_alarm {
                let topic = fleet.topic.replace("/telemetry", "/alerts");
                sent.insert((topic, event_time.to_string()), Instant::now());
            }
        }
        publisher.flush()?;
        publisher.wait_for_acknowledgements(PUBLISH_WINDOW)?;
    }
    publisher.wait_for_acknowledgements(0)?;
    let took = began.elapsed();
    let received = reader.join().map_err(|_| "the reader of alerts panicked")??;
    let mut latencies = Vec::new();
    for (key, arrived) in received {
        latencies.push(arrived - *sent.get(&key).ok_or_else(|| format!("nobody caused the alert {key:?}"))?);
    }
    latencies.sort_unstable();
    let percentile = |share: usize| latencies[(latencies.len() - 1) * share / 100];
    println!(
        "  publish to alert: p50 {:.1?}, p99 {:.1?}, longest {:.1?} of {} alerts at {:.0} messages/s (p99 to be at most 25 ms); \
         daemon {:.2} CPU s per s",
        percentile(50),
        percentile(99),
        percentile(100),
        latencies.len(),
        (RATE_PER_S * SECONDS) as f64 / took.as_secs_f64(),
        frostline.usage()?.cpu_s / frostline.started.elapsed().as_secs_f64(),
    );
    Ok(())
}

/// Returns when each alert fired, by topic and start.
fn read_alerts(subscriber: &mut Client, expected: usize) -> Result<HashMap<(String, String), Instant>, Failure> {
    let mut received = HashMap::new();
    while received.len() < expected {
        let message = subscriber.receive()?;
        let now = Instant::now();
        let alert: Value = serde_json::from_slice(&message.payload)?;
        if alert["rule"] == "far-too-warm" && alert["state"] == "firing" {
            let started_at = alert["started_at"].as_str().ok_or("an alert without a start")?;
            received.insert((message.topic, started_at.to_owned()), now);
        }
    }
    Ok(received)
}

/// Lets very many sensors speak a few times, and looks at the memory.
fn sensors() -> Result<(), Failure> {
    const SENSORS: usize = 100_000;
    const ROUNDS: usize = 4;
    let units = SENSORS / 2;
    let messages = units * ROUNDS;
    let broker = Mosquitto::start(BROKER_SETTINGS);
    let directory = directory()?;
    let mut frostline = Daemon::start(directory.path(), &broker.url(), None)?;
    let subscribed = "frostline_mqtt_connections_total{client=\"source\"}";
    frostline.wait_for_metric(subscribed, 1)?;
    println!("sensors: {SENSORS} of them, {ROUNDS} readings each; load {}", load());
    let began_at = fleet::recording_begins_at(messages, units);
    publish(broker.server.address(), &mut Fleet::new(units), messages, began_at)?;
    frostline.wait_for_stored(READINGS_PER_MESSAGE * messages as u64)?;
    let usage = frostline.usage()?;
    println!("  frostline has {:.0} MiB, peak {:.0} MiB (to be less than 200 MiB)", usage.resident_mib, usage.peak_mib);
    Ok(())
}

/// Starts the daemon on a journal that nobody has judged yet, with messages waiting at the broker.
fn start_with_backlog() -> Result<(), Failure> {
    const BACKLOG_BYTES: usize = 1 << 30;
    let directory = directory()?;
    let journal_directory = directory.path().join("data").join("journal");
    std::fs::create_dir_all(&journal_directory)?;
    let health = Health::default();
    let metrics = JournalMetrics::register(&prometheus::Registry::new())?;
    let mut options = JournalOptions::new(&journal_directory, Arc::new(SystemClock), metrics, health.part("journal"));
    options.max_size_bytes = 16 << 30;
    let (mut journal, _) = Journal::<()>::open(options)?;
    let _cursor = journal.register("pipeline", 0);
    let handle = journal.handle();
    let writer = thread::spawn(move || journal.run(Vec::clear));
    let mut fleet = Fleet::new(UNITS);
    let began_at = fleet::recording_begins_at(BACKLOG_BYTES / 200, UNITS);
    let (mut bytes, mut entries) = (0, 0);
    while bytes < BACKLOG_BYTES {
        fleet.write_recorded(entries, began_at);
        let (topic, payload) = (fleet.topic.as_bytes(), fleet.payload.as_bytes());
        let message = Message { topic, payload, retained: false, oversize: None, original_received_at: None };
        handle.submit_blocking(Entry::Message(message), ())?;
        bytes += topic.len() + payload.len();
        entries += 1;
    }
    handle.stop();
    writer.join().map_err(|_| "the journal's writer panicked")??;

    let broker = broker_with_queue(100)?;
    println!(
        "start: {entries} entries in the journal, none of them judged, 100 messages at the broker; load {}",
        load()
    );
    let mut frostline = Daemon::start(directory.path(), &broker.url(), None)?;
    let acknowledged = frostline.wait_for_metric("frostline_mqtt_messages_acknowledged_total", 100)?;
    println!("  from exec to subscribed and all 100 acknowledged: {acknowledged:.0?} (to be less than 300 ms)");
    let caught_up = frostline
        .wait_for_metric("frostline_readings_stored_total{route=\"coldchain/v1/+/+/telemetry\"}", 2 * entries as u64)?;
    let rate = entries as f64 / caught_up.as_secs_f64();
    println!("  caught up after {caught_up:.1?}: {rate:.0} messages/s, peak {:.0} MiB", frostline.usage()?.peak_mib);
    Ok(())
}

/// Starts a broker that has queued so many messages for the client.
fn broker_with_queue(messages: usize) -> Result<Mosquitto, Failure> {
    let broker = Mosquitto::start(BROKER_SETTINGS);
    let address = broker.server.address();
    let mut session = Client::connect(address, CLIENT_ID, false)?;
    session.subscribe("coldchain/v1/+/+/telemetry", 1)?;
    session.disconnect()?;
    let mut fleet = Fleet::new(UNITS);
    publish(address, &mut fleet, messages, fleet::recording_begins_at(messages, UNITS))?;
    Ok(broker)
}

/// Publishes a recording as fast as the broker takes it.
fn publish(
    broker: SocketAddr,
    fleet: &mut Fleet,
    messages: usize,
    began_at: frostline_core::model::Timestamp,
) -> Result<(), Failure> {
    let mut publisher = Client::connect(broker, "fleet", true)?;
    for number in 0..messages {
        fleet.write_recorded(number, began_at);
        publisher.publish(&fleet.topic, fleet.payload.as_bytes());
        if number % (PUBLISH_WINDOW / 4) == 0 {
            publisher.flush()?;
            publisher.wait_for_acknowledgements(PUBLISH_WINDOW / 2)?;
        }
    }
    publisher.flush()?;
    publisher.wait_for_acknowledgements(0)?;
    Ok(publisher.disconnect()?)
}

/// Prints one line of figures and returns the rate.
fn report(what: &str, messages: usize, elapsed: Duration, usage: Usage) -> f64 {
    let rate = messages as f64 / elapsed.as_secs_f64();
    println!(
        "{what}: {rate:.0} messages/s, {:.2} CPU s per million, peak {:.0} MiB",
        usage.cpu_s * 1e6 / messages as f64,
        usage.peak_mib
    );
    rate
}

fn median(mut figures: Vec<f64>) -> f64 {
    figures.sort_by(f64::total_cmp);
    figures[figures.len() / 2]
}

/// Returns how many processes have wanted a processor in the last minute: above 1 somebody else is working here.
fn load() -> String {
    let load = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    load.split(' ').next().unwrap_or("unknown").to_owned()
}

fn directory() -> Result<TempDir, Failure> {
    let parent = std::env::var_os("FROSTLINE_BENCH_DIR").unwrap_or_else(|| "target".into());
    std::fs::create_dir_all(&parent)?;
    Ok(tempfile::tempdir_in(std::path::absolute(parent)?)?)
}
