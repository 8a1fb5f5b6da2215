//! What a data directory holds, written out beside the daemon that fills it, and judged again.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::AtomicI64;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use expect_test::expect;
use frostline::clock::ManualClock;
use frostline::config;
use frostline::health::Health;
use frostline::history::{ClosedDays, HistoryMetrics};
use frostline::journal::{Entry, Journal, JournalHandle, JournalMetrics, JournalOptions, Message};
use frostline::pipeline::{self, Accounting, Live, PipelineOptions, PipelineShared};
use frostline_core::model::Timestamp;
use tempfile::TempDir;
use tokio_util::sync::CancellationToken;

/// 2026-11-23T10:00:00Z.
const START_MS: i64 = 1_795_428_000_000;
const MINUTE_MS: i64 = 60_000;

const SETTINGS: &str = "[clock]\nsource = \"readings\"\n[rules]\nsettle = \"0s\"\n";
const RULES: &str = r#"
[[rule]]
id = "warm"
kind = "range"
quantity = "temperature"
severity = "critical"
high = 8.0
for = "2m"
message = { en = "warm, \"{value}\"", zh = "热" }
"#;

/// A configuration and a data directory.
struct House {
    dir: TempDir,
}

/// What a command left behind.
struct Done {
    code: i32,
    out: String,
    err: String,
}

impl House {
    fn new() -> Self {
        let dir = TempDir::new().unwrap();
        fs::create_dir(dir.path().join("data")).unwrap();
        let settings = format!("data_dir = {:?}\n{SETTINGS}", dir.path().join("data").to_str().unwrap());
        fs::write(dir.path().join("frostline.toml"), settings).unwrap();
        fs::write(dir.path().join("rules.toml"), RULES).unwrap();
        Self { dir }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn run(&self, arguments: &[&str]) -> Done {
        let mut command = Command::new(env!("CARGO_BIN_EXE_frostline"));
        let output = command.arg("--config").arg(self.dir.path()).args(arguments).current_dir(&self.dir).output();
        let output = output.unwrap();
        Done {
            code: output.status.code().expect("it ends by itself"),
            out: String::from_utf8(output.stdout).unwrap(),
            err: String::from_utf8(output.stderr).unwrap(),
        }
    }

    /// Runs a command that succeeds, and returns what it wrote into `file`.
    fn written(&self, file: &str, arguments: &[&str]) -> String {
        let done = self.run(&[arguments, &["--out", file]].concat());
        assert_eq!((done.code, done.out.as_str()), (0, ""), "{arguments:?}: {}", done.err);
        assert!(!self.path(&format!("{file}.part")).exists());
        fs::read_to_string(self.path(file)).unwrap()
    }
}

/// Journal and pipeline as the daemon runs them, without anything around.
struct Daemon {
    handle: JournalHandle<()>,
    shared: PipelineShared,
    stop: CancellationToken,
    journal: JoinHandle<()>,
    pipeline: JoinHandle<()>,
}

impl Daemon {
    fn start(house: &House) -> Self {
        let data_dir = house.path("data");
        let clock = ManualClock::at(Timestamp::from_millis(START_MS));
        let registry = prometheus::Registry::new();
        let health = Health::default();
        let options = JournalOptions::new(
            data_dir.join("journal"),
            Arc::new(clock.clone()),
            JournalMetrics::register(&registry).unwrap(),
            health.part("journal"),
        );
        let (mut journal, recovery) = Journal::<()>::open(options).unwrap();
        let cursor = journal.register("pipeline", recovery.first_offset);
        let (handle, readers) = (journal.handle(), journal.readers());
        let journal = std::thread::spawn(move || journal.run(|_| {}).unwrap());
        let bundle = config::load(house.dir.path()).unwrap().bundle;
        handle
            .submit_blocking(Entry::Configuration { hash: &bundle.hash(), content: bundle.to_text().as_bytes() }, ())
            .unwrap();
        let options = PipelineOptions {
            data_dir,
            history_retention_ms: i64::MAX / 4,
            dead_letters_max_size_bytes: 1 << 20,
            snapshot_every_bytes: u64::MAX,
            exercise: false,
            closed_days: ClosedDays::default(),
            history_metrics: HistoryMetrics::register(&registry).unwrap(),
            // It stands still, so that the history is committed at the end only.
            clock: Arc::new(clock),
        };
        let shared = PipelineShared {
            accounting: Accounting::default(),
            live: Live::default(),
            events: tokio::sync::broadcast::channel(16).0,
            readings: tokio::sync::broadcast::channel(16).0,
            next_deadline_ms: Arc::new(AtomicI64::new(i64::MAX)),
            next_quiet_ms: Arc::new(AtomicI64::new(i64::MAX)),
            committed: tokio::sync::watch::channel(0).0,
        };
        let stop = CancellationToken::new();
        let pipeline = std::thread::spawn({
            let (shared, stop, part) = (shared.clone(), stop.clone(), health.part("pipeline"));
            move || pipeline::run(&options, &shared, &readers, &cursor, &part, &stop).unwrap()
        });
        Self { handle, shared, stop, journal, pipeline }
    }

    /// Takes messages of one unit, lets a tick pass, and waits until all of it is decided.
    fn take(&self, unit: &str, payloads: &[String]) {
        let topic = format!("coldchain/v1/op1/{unit}/telemetry");
        for payload in payloads {
            let message = Message {
                topic: topic.as_bytes(),
                payload: payload.as_bytes(),
                retained: false,
                oversize: None,
                original_received_at: None,
            };
            self.handle.submit_blocking(Entry::Message(message), ()).unwrap();
        }
        let last = self.handle.submit_blocking(Entry::Tick, ()).unwrap();
        let deadline = Instant::now() + Duration::from_secs(60);
        while *self.shared.committed.borrow() <= last {
            assert!(Instant::now() < deadline, "the pipeline does not get on");
            std::thread::yield_now();
        }
    }

    fn stop(self) {
        self.handle.stop();
        self.journal.join().unwrap();
        self.stop.cancel();
        self.pipeline.join().unwrap();
    }
}

/// Returns a message with one reading, so many minutes after the start.
fn reading(minute: i64, sensor: &str, value: &str) -> String {
    let sensor = serde_json::json!(sensor);
    let ts = START_MS + minute * MINUTE_MS;
    format!(r#"{{"ts":{ts},"readings":[{{"sensor":{sensor},"kind":"temperature","value":{value},"unit":"Cel"}}]}}"#)
}

/// Returns what is in the files of a directory, but for those that SQLite keeps beside its own while they are read.
fn content(dir: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut content = BTreeMap::new();
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        let name = path.to_str().unwrap();
        if path.is_dir() {
            content.extend(self::content(&path));
        } else if !name.ends_with("-shm") && !name.ends_with("-wal") {
            content.insert(path.clone(), fs::read(&path).unwrap());
        }
    }
    content
}

const READINGS: [&str; 2] = ["export", "--what=readings"];

#[test]
fn an_export_is_complete_while_the_daemon_runs_and_a_backtest_of_it_finds_the_same_episodes() {
    let house = House::new();
    let daemon = Daemon::start(&house);
    let odd = "door, \"left\"";
    let mut first: Vec<String> = (0..4).map(|minute| reading(minute, "t1", "4.5")).collect();
    first.extend((4..8).map(|minute| reading(minute, "t1", "9.055555555555557")));
    first.extend([reading(8, "t1", "5"), reading(8, "t1", "5"), reading(8, "t1", "6"), reading(9, "t1", "null")]);
    first.push(reading(3, odd, "2"));
    daemon.take("u1", &first);
    daemon.stop();

    // Of what comes now, the history on disk knows nothing; one reading is late, one a conflict with an older one.
    let daemon = Daemon::start(&house);
    let mut second: Vec<String> = (10..15).map(|minute| reading(minute, odd, &format!("{minute}.25"))).collect();
    second.extend([reading(2, odd, "1"), reading(3, odd, "3"), reading(14, odd, "14.25")]);
    daemon.take("u1", &second);
    daemon.take("u2", &[reading(0, "t1", "-1e-7")]);
    let readings = house.written("readings.csv", &READINGS);
    expect![[r#"
        event_time,operator,unit,sensor,kind,value
        2026-11-23T10:02:00.000Z,op1,u1,"door, ""left""",temperature,1
        2026-11-23T10:03:00.000Z,op1,u1,"door, ""left""",temperature,2
        2026-11-23T10:10:00.000Z,op1,u1,"door, ""left""",temperature,10.25
        2026-11-23T10:11:00.000Z,op1,u1,"door, ""left""",temperature,11.25
        2026-11-23T10:12:00.000Z,op1,u1,"door, ""left""",temperature,12.25
        2026-11-23T10:13:00.000Z,op1,u1,"door, ""left""",temperature,13.25
        2026-11-23T10:14:00.000Z,op1,u1,"door, ""left""",temperature,14.25
        2026-11-23T10:00:00.000Z,op1,u1,t1,temperature,4.5
        2026-11-23T10:01:00.000Z,op1,u1,t1,temperature,4.5
        2026-11-23T10:02:00.000Z,op1,u1,t1,temperature,4.5
        2026-11-23T10:03:00.000Z,op1,u1,t1,temperature,4.5
        2026-11-23T10:04:00.000Z,op1,u1,t1,temperature,9.055555555555557
        2026-11-23T10:05:00.000Z,op1,u1,t1,temperature,9.055555555555557
        2026-11-23T10:06:00.000Z,op1,u1,t1,temperature,9.055555555555557
        2026-11-23T10:07:00.000Z,op1,u1,t1,temperature,9.055555555555557
        2026-11-23T10:08:00.000Z,op1,u1,t1,temperature,5
        2026-11-23T10:09:00.000Z,op1,u1,t1,temperature,
        2026-11-23T10:00:00.000Z,op1,u2,t1,temperature,-0.0000001
    "#]]
    .assert_eq(&readings);
    let episodes = house.written("episodes.jsonl", &["export"]);
    expect![[r#"
        {"operator":"op1","unit":"u1","sensor":"door, \"left\"","rule":"warm","state":"firing","started_at":"2026-11-23T10:10:00.000Z","fired_at":"2026-11-23T10:12:00.000Z","resolved_at":null,"extreme":14.25}
        {"operator":"op1","unit":"u1","sensor":"t1","rule":"warm","state":"resolved","started_at":"2026-11-23T10:04:00.000Z","fired_at":"2026-11-23T10:06:00.000Z","resolved_at":"2026-11-23T10:08:00.000Z","extreme":9.055555555555557}
    "#]]
    .assert_eq(&episodes);
    assert_eq!(house.written("judged.jsonl", &["backtest", "readings.csv"]), episodes);
    assert_eq!(house.written("judged.jsonl", &["backtest", "--from-store"]), episodes);
    daemon.stop();

    let before = content(&house.path("data"));
    assert_eq!(house.written("readings.csv", &READINGS), readings, "and the same when it has stopped");
    assert_eq!(house.written("episodes.jsonl", &["export"]), episodes);
    assert_eq!(house.written("judged.jsonl", &["backtest", "--from-store"]), episodes);
    assert_eq!(house.run(&["export", "--out", "-"]).out, episodes);
    assert!(content(&house.path("data")) == before, "an export has changed the data directory");
}

#[test]
fn an_export_takes_what_shares_an_instant_with_the_span_in_either_shape() {
    let house = House::new();
    let daemon = Daemon::start(&house);
    let minutes =
        (0..4).map(|minute| reading(minute, "t1", "9")).chain([reading(4, "t1", "-2.5"), reading(5, "t1", "null")]);
    daemon.take("u1", &minutes.collect::<Vec<_>>());
    daemon.stop();

    expect![[r#"
        operator,unit,sensor,rule,state,started_at,fired_at,resolved_at,extreme
        op1,u1,t1,warm,resolved,2026-11-23T10:00:00.000Z,2026-11-23T10:02:00.000Z,2026-11-23T10:04:00.000Z,9
    "#]]
    .assert_eq(&house.written("episodes.csv", &["export"]));
    // From the closed interval of the episode on, and before the end that was asked for.
    for (from, to, lines) in [
        ("2026-11-23T10:04:00Z", "2026-11-24T10:00:00Z", 1),
        ("2026-11-23T10:04:00.001Z", "2026-11-24T10:00:00Z", 0),
        ("2026-11-22T10:00:00Z", "2026-11-23T18:00:00.001+08:00", 1),
        ("2026-11-22T10:00:00Z", "1795428000000", 0),
    ] {
        let episodes = house.written("episodes.jsonl", &["export", "--from", from, "--to", to]);
        assert_eq!(episodes.lines().count(), lines, "{from} to {to}");
    }
    expect![[r#"
        {"event_time":"2026-11-23T10:03:00.000Z","operator":"op1","unit":"u1","sensor":"t1","kind":"temperature","value":9.0}
        {"event_time":"2026-11-23T10:04:00.000Z","operator":"op1","unit":"u1","sensor":"t1","kind":"temperature","value":-2.5}
        {"event_time":"2026-11-23T10:05:00.000Z","operator":"op1","unit":"u1","sensor":"t1","kind":"temperature","value":null}
    "#]]
    .assert_eq(&house.written("readings.jsonl", &["export", "--what=readings", "--from", "1795428180000"]));

    let alerts = house.written("alerts.jsonl", &["export", "--what=alerts"]);
    let alert: serde_json::Value = serde_json::from_str(&alerts).unwrap();
    assert_eq!((alert["state"].as_str(), alert["rule"].as_str()), (Some("resolved"), Some("warm")));
    let table = house.written("alerts.csv", &["export", "--what=alerts"]);
    let mut table = csv::Reader::from_reader(table.as_bytes());
    let titles = table.headers().unwrap().clone();
    let row = table.records().next().unwrap().unwrap();
    let cell = |title: &str| &row[titles.iter().position(|other| other == title).unwrap()];
    assert_eq!(cell("id"), alert["id"]);
    // Every field that is not a list or an object is a column of the same name.
    let flat = alert.as_object().unwrap().keys().filter(|key| !["amendments", "message"].contains(&key.as_str()));
    let missing: Vec<_> = flat.filter(|key| !titles.iter().any(|title| title == *key)).collect();
    assert!(missing.is_empty(), "no column for {missing:?}");
    assert_eq!(cell("message_en"), "warm, \"9\"");
    assert_eq!((cell("resolved_at"), cell("extreme"), cell("site")), ("2026-11-23T10:04:00.000Z", "9", ""));
}

#[test]
fn what_cannot_be_exported_is_said_and_leaves_no_file() {
    let house = House::new();
    let nothing = house.run(&["export", "--out", "e.jsonl"]);
    assert_eq!((nothing.code, nothing.out.as_str()), (1, ""));
    assert!(nothing.err.contains("has the daemon ever run with this configuration?"), "{}", nothing.err);
    let nothing = house.run(&["backtest", "--from-store"]);
    assert_eq!(nothing.code, 1);
    assert!(nothing.err.contains("has the daemon ever run with this configuration?"), "{}", nothing.err);
    for (arguments, complaint) in [
        (&["export", "--out", "e.xml"][..], "`e.xml` ends neither in .jsonl nor in .csv"),
        (&["export", "--out", "e"], "`e` ends neither in .jsonl nor in .csv"),
        (&["export", "--what=audit", "--out", "e.jsonl"], "not available in this version"),
        (&["export", "--from", "yesterday", "--out", "e.jsonl"], "expected RFC 3339 with an offset"),
        (&["export", "--from", "2", "--to", "1", "--out", "e.jsonl"], "is after --to"),
        (&["export"], "--out"),
        (&["backtest"], "FILE"),
        (&["backtest", "--from-store", "e.csv"], "cannot be used with"),
        (&["backtest", "e.csv", "--format", "json"], "--against"),
    ] {
        let done = house.run(arguments);
        assert_eq!((done.code, done.out.as_str()), (2, ""), "{arguments:?}");
        assert!(done.err.contains(complaint), "{arguments:?}: {}", done.err);
    }
    let left: Vec<_> = fs::read_dir(&house.dir).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left.len(), 3, "{left:?}");
}

const STRICTER: &str = r#"
[[rule]]
id = "warm"
kind = "range"
quantity = "temperature"
severity = "critical"
high = 6.0
for = "2m"

[[rule]]
id = "cold"
kind = "range"
quantity = "temperature"
severity = "warning"
low = 0.0
"#;

const TABLE: &str = "event_time,operator,unit,sensor,kind,value
2026-11-23T10:00:00Z,op1,u1,t1,temperature,5
2026-11-23T10:01:00Z,op1,u1,t1,temperature,7
2026-11-23T10:02:00Z,op1,u1,t1,temperature,9
2026-11-23T10:04:00Z,op1,u1,t1,temperature,10.5
2026-11-23T10:05:00Z,op1,u1,t1,temperature,7
2026-11-23T10:06:00Z,op1,u1,t1,temperature,5
2026-11-23T10:00:00Z,op1,u2,t1,temperature,9
2026-11-23T10:02:00Z,op1,u2,t1,temperature,9
2026-11-23T10:03:00Z,op1,u2,t1,temperature,-1
2026-11-23T10:04:00Z,op1,u2,t1,temperature,4
2026-11-23T10:00:00Z,op1,u3,t1,temperature,7
2026-11-23T10:02:00Z,op1,u3,t1,temperature,6.5
2026-11-23T10:06:00Z,op1,u3,t1,temperature,7
";

#[test]
fn two_sets_of_rules_are_compared_so_that_somebody_can_sign_it() {
    let house = House::new();
    fs::write(house.path("week.csv"), TABLE).unwrap();
    fs::write(house.path("stricter.toml"), STRICTER).unwrap();
    fs::write(house.path("old.toml"), RULES).unwrap();
    let both = ["backtest", "week.csv", "--rules", "old.toml", "--against", "stricter.toml"];
    let shown = house.run(&both);
    assert_eq!(shown.code, 0, "{}", shown.err);
    expect![[r#"
        before    old.toml
        after     stricter.toml
        readings  week.csv
                  13 of 3 series
                  2026-11-23T10:00:00.000Z to 2026-11-23T10:06:00.000Z

        RULE  VERSION BEFORE    AFTER             EPISODES BEFORE  AFTER  TIME FIRING BEFORE  AFTER
        cold  -                 960730211fa6dc93  -                1      -                   1m
        warm  5e560c1ac098438f  bbdf66ab0f66051f  2                3      2m                  8m

        2 gained, 0 lost, 1 changed, 1 unchanged

        DIFFERENCE  UNIT    SENSOR  RULE  STARTED                         FIRED                           RESOLVED                        EXTREME
        changed     op1/u1  t1      warm  2026-11-23T10:01:00.000Z (-1m)  2026-11-23T10:03:00.000Z (-1m)  2026-11-23T10:06:00.000Z (+1m)  10.5
        gained      op1/u2  t1      cold  2026-11-23T10:03:00.000Z        2026-11-23T10:03:00.000Z        2026-11-23T10:04:00.000Z        -1
        gained      op1/u3  t1      warm  2026-11-23T10:00:00.000Z        2026-11-23T10:02:00.000Z        firing                          7
    "#]].assert_eq(&shown.out);
    expect![["13 received: 13 accepted, 0 duplicate, 0 rejected\n"]].assert_eq(&shown.err);

    let json = house.run(&[&both[..], &["--format", "json", "--out", "differences.jsonl"]].concat());
    assert_eq!(json.code, 0, "{}", json.err);
    let json: serde_json::Value = serde_json::from_str(&json.out).unwrap();
    assert_eq!((&json["before"], &json["after"]), (&"old.toml".into(), &"stricter.toml".into()));
    assert_eq!(json["readings"]["accepted"], 13);
    let lines = fs::read_to_string(house.path("differences.jsonl")).unwrap();
    let lines: Vec<serde_json::Value> = lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(json["differences"].as_array().unwrap(), &lines);
    expect![[r#"
        {
          "after": {
            "extreme": 10.5,
            "fired_at": "2026-11-23T10:03:00.000Z",
            "resolved_at": "2026-11-23T10:06:00.000Z",
            "started_at": "2026-11-23T10:01:00.000Z",
            "state": "resolved"
          },
          "before": {
            "extreme": 10.5,
            "fired_at": "2026-11-23T10:04:00.000Z",
            "resolved_at": "2026-11-23T10:05:00.000Z",
            "started_at": "2026-11-23T10:02:00.000Z",
            "state": "resolved"
          },
          "change": {
            "extreme": 0.0,
            "fired_ms": -60000,
            "resolved_ms": 60000,
            "started_ms": -60000
          },
          "difference": "changed",
          "operator": "op1",
          "rule": "warm",
          "sensor": "t1",
          "unit": "u1"
        }"#]]
    .assert_eq(&serde_json::to_string_pretty(&lines[0]).unwrap());

    // What is no file is not replaced by one.
    let piped = house.run(&["backtest", "week.csv", "--rules", "old.toml", "--out", "/dev/stdout"]);
    assert_eq!((piped.code, piped.out.lines().count()), (0, 2), "{}", piped.err);

    // The other way round, what was gained is lost; the configured rules stand before where no others are named.
    let back =
        house.run(&["backtest", "week.csv", "--rules", "stricter.toml", "--against", "old.toml", "--format=json"]);
    let back: serde_json::Value = serde_json::from_str(&back.out).unwrap();
    assert_eq!((&back["gained"], &back["lost"]), (&json["lost"], &json["gained"]));
    let same = house.run(&["backtest", "week.csv", "--against", "old.toml", "--format=json"]);
    let same: serde_json::Value = serde_json::from_str(&same.out).unwrap();
    assert_eq!((&same["unchanged"], same["differences"].as_array().unwrap().len()), (&serde_json::json!(2), 0));
}
