//! A week of a whole fleet comes in no order, in pieces, some of them twice, and the daemon is killed in the midst of it:
//! its episodes are those of a backtest of the same readings in order.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use frostline_core::model::Timestamp;

use crate::daemon::Daemon;
use crate::dead_letters::now_ms;
use crate::kills::seed;
use crate::load::Chance;
use crate::publisher::{Message, Publisher};
use crate::scene::KEEP_EVERYTHING;
use crate::servers::Mosquitto;

const MINUTE_MS: i64 = 60_000;
const HOUR_MS: i64 = 60 * MINUTE_MS;
const DAY_MS: i64 = 24 * HOUR_MS;

/// How long the daemon may take for all of it: a week at one-minute spacing is much work for a build without optimization.
const PATIENCE: Duration = Duration::from_secs(1_800);

/// Samples in one message.
const SAMPLES_PER_MESSAGE: usize = 8;
/// How many readings are contradicted once everything has come.
const CONFLICTS: usize = 40;

/// One rule of every kind, beside those that are shipped.
const RULES: &str = r#"
rule = [
    { id = "w-range", kind = "range", quantity = "temperature", severity = "critical", limits = "profile", for = "10m", keep_firing_for = "5m", hysteresis = 0.5, never_above = 14.0, suspend_while = { quantity = "defrost", is = 1, plus = "15m", at_most = "45m" } },
    { id = "w-range-fixed", kind = "range", quantity = "temperature", severity = "warning", high = 8.0, for = "15m", max_gap = "20m" },
    { id = "w-cumulative", kind = "cumulative", quantity = "temperature", severity = "warning", high = 8.0, window = "24h", budget = "2h" },
    { id = "w-cumulative-goods", kind = "cumulative", quantity = "temperature", severity = "warning", high = 8.0, window = "consignment", budget = "30m" },
    { id = "w-kinetic", kind = "mean_kinetic_temperature", quantity = "temperature", severity = "warning", high = 6.0, hysteresis = 0.2, window = "24h" },
    { id = "w-kinetic-goods", kind = "mean_kinetic_temperature", quantity = "temperature", severity = "warning", high = 6.0, window = "consignment", min_known = "1h" },
    { id = "w-rate", kind = "rate", quantity = "temperature", severity = "notice", per = "30m", rise = 5.0, fall = 5.0, for = "5m" },
    { id = "w-silence", kind = "silence", quantity = "temperature", severity = "warning", for = "10m", max_gap = "15m" },
    { id = "w-silence-unit", kind = "silence", quantity = "temperature", scope = "unit", severity = "critical", for = "30m" },
    { id = "w-cadence", kind = "cadence", quantity = "temperature", severity = "notice", every = "5m", window = "2h", share = 0.8 },
    { id = "w-stuck", kind = "stuck", quantity = "temperature", severity = "notice", for = "4h", min_readings = 10 },
    { id = "w-disagreement", kind = "disagreement", quantity = "temperature", severity = "notice", limit = 5.0, for = "20m", keep_firing_for = "10m", hysteresis = 0.5 },
    { id = "w-state", kind = "state", quantity = "door", severity = "notice", is = 1, for = "15m", keep_firing_for = "1m" },
]
"#;

/// The shipped profiles of the units, each with the usual temperature in hundredths of a degree.
const PROFILES: [(&str, i64); 6] = [
    ("frozen_food", -2_000),
    ("chilled_food", 400),
    ("vaccine_2_8", 500),
    ("drug_refrigerated_2_8", 500),
    ("pasteurised_milk", 400),
    ("leafy_vegetables", 300),
];

/// What kind of week.
struct Plan {
    name: &'static str,
    clock: &'static str,
    units: u64,
    spacing_ms: i64,
    begin_ms: i64,
    length_ms: i64,
}

/// What one unit said at one instant.
struct Sample {
    unit: u64,
    time_ms: i64,
    /// Sensor, kind, and value in hundredths.
    readings: Vec<(&'static str, &'static str, Option<i64>)>,
}

#[test]
fn a_shuffled_and_doubled_week_with_two_kills_gives_the_episodes_of_its_ordered_backtest() {
    let spacing_s: i64 = match std::env::var("FROSTLINE_WEEK_SPACING_S") {
        Ok(spacing) => spacing.parse().expect("FROSTLINE_WEEK_SPACING_S is a number of seconds"),
        Err(_) => 300,
    };
    let begin = Timestamp::parse_rfc3339("2026-03-02T00:00:00Z").expect("it is a time");
    let plan = Plan {
        name: "week",
        clock: "readings",
        units: 50,
        spacing_ms: spacing_s * 1_000,
        begin_ms: begin.as_millis(),
        length_ms: 7 * DAY_MS,
    };
    check_week(&plan, |samples, home| {
        // The newest reading says what time it is.
        let mut rows: Vec<_> = samples.iter().flat_map(rows_of).collect();
        rows.sort_by_key(|(time_ms, _)| *time_ms);
        let mut csv = "event_time,operator,unit,sensor,kind,value\n".to_owned();
        for (time_ms, rest) in rows {
            writeln!(csv, "{time_ms},{rest}").expect("a String takes everything");
        }
        let file = home.join("ordered.csv");
        fs::write(&file, csv).unwrap();
        file
    });
}

#[test]
fn two_shuffled_days_by_the_clock_of_the_system_give_the_episodes_of_their_recording() {
    // Long enough ago that it does not matter at which instant of the test one looks: all windows are over.
    let plan = Plan {
        name: "two days",
        clock: "system",
        units: 12,
        spacing_ms: 10 * MINUTE_MS,
        begin_ms: now_ms() - 6 * DAY_MS,
        length_ms: 2 * DAY_MS,
    };
    check_week(&plan, |samples, home| {
        let received_at = now_ms();
        let mut recording = "{\"frostline_recording\":1,\"origin\":\"field\"}\n".to_owned();
        for sample in samples {
            let (topic, payload) = (topic(sample.unit), json(&[sample]));
            writeln!(recording, "{{\"received_at\":{received_at},\"topic\":\"{topic}\",\"payload\":{payload}}}")
                .expect("a String takes everything");
        }
        let file = home.join("ordered.jsonl");
        fs::write(&file, recording).unwrap();
        file
    });
}

/// Lets the daemon take the week in no order, kills it, and compares what it exports; `write_ordered` writes the samples, in
/// order, as a file that can be backtested.
fn check_week(plan: &Plan, write_ordered: impl Fn(&[Sample], &Path) -> std::path::PathBuf) {
    let seed = seed();
    let began = Instant::now();
    let say =
        |what: std::fmt::Arguments<'_>| eprintln!("{} {:5.1} s: {what}", plan.name, began.elapsed().as_secs_f64());
    say(format_args!("seed {seed}"));
    let mut chance = Chance::new(seed);
    let mut samples = make_samples(plan, &mut chance);
    let mut messages = make_messages(&samples, &mut chance);
    contradict(&samples, &mut messages, &mut chance);
    // The last message shows, wherever it is seen, that all before it were.
    let marker_ms = plan.begin_ms + 5 * MINUTE_MS;
    samples.push(Sample { unit: plan.units, time_ms: marker_ms, readings: vec![("m1", "humidity", Some(5_000))] });
    messages.push(message(&[samples.last().expect("it was just added")]));
    samples.sort_by_key(|sample| sample.time_ms);
    let readings: usize = samples.iter().map(|sample| sample.readings.len()).sum();
    say(format_args!("{readings} readings in {} messages", messages.len()));

    let broker = Mosquitto::start(KEEP_EVERYTHING);
    let settings =
        format!("mqtt.url = \"{}\"\nclock.source = \"{}\"\nrules.settle = \"0s\"\n", broker.url(), plan.clock);
    let mut daemon = Daemon::new(None, &settings, RULES);
    copy_shipped_rules(&daemon);
    daemon.write_config("fleet.toml", &fleet(plan));
    daemon.start();
    let publisher = Publisher::start(broker.server.address());
    publisher.publish(messages);
    let stored = |daemon: &Daemon| daemon.metric("frostline_readings_stored_total");
    wait_patiently("a third has come", || stored(&daemon) >= readings as f64 / 3.0);
    daemon.kill();
    say(format_args!("killed with a third of the readings"));
    daemon.spawn(Some(&format!("rejudged:{}", 1 + chance.below(plan.units / 3))));
    daemon.wait_for_crash();
    say(format_args!("killed while a unit was judged again"));
    daemon.start();
    daemon.kill();
    say(format_args!("killed as soon as it took messages again"));
    daemon.start();
    let marker = format!("/api/v1/units/{}/{}", operator(plan.units), unit(plan.units));
    wait_patiently("the last message is judged", || {
        daemon.expect_alive();
        daemon.get(&marker).is_some_and(|response| response.status == 200 && response.body.contains("m1"))
    });
    say(format_args!("everything has come"));
    wait_patiently("all is judged again", || daemon.metric("frostline_units_dirty") == 0.0);
    let cpu_s = daemon.cpu_s();
    say(format_args!(
        "at rest: {} times a unit was judged again, {} readings; {} amendments; {cpu_s:.1} s of CPU since the last start",
        daemon.metric("frostline_rejudged_units_total"),
        daemon.metric("frostline_rejudged_readings_total"),
        daemon.metric("frostline_amendments_total"),
    ));

    let ordered = write_ordered(&samples, daemon.config_dir().parent().expect("it is in a directory"));
    let expected = output_of(&daemon, &["backtest", path_text(&ordered)]);
    let kinds: BTreeSet<String> = expected.lines().map(rule_of).collect();
    for rule in ["range", "cumulative", "kinetic", "rate", "silence", "silence-unit", "cadence", "stuck", "state"] {
        assert!(kinds.contains(&format!("w-{rule}")), "no episode of w-{rule} to be compared: {kinds:?}");
    }
    // What time alone concludes is told at the next tick.
    let mut exported = String::new();
    let deadline = Instant::now() + Duration::from_secs(20);
    while exported != expected && Instant::now() < deadline {
        exported = output_of(&daemon, &["export", "--what", "episodes", "--out", "-"]);
        thread::park_timeout(Duration::from_millis(100));
    }
    assert_same_lines("episodes", &expected, &exported);
    say(format_args!("{} episodes of {} rules, as in the backtest", expected.lines().count(), kinds.len()));

    let totals = ["received", "stored", "duplicate", "dead_lettered"]
        .map(|term| daemon.metric(&format!("frostline_readings_{term}_total")));
    let [received, stored, duplicate, dead_lettered] = totals;
    assert_eq!(received, stored + duplicate + dead_lettered, "{totals:?}");
    assert_eq!(stored, readings as f64);
    assert!(dead_lettered >= CONFLICTS as f64 && duplicate > 0.0, "{totals:?}");
    assert_eq!(daemon.metric("frostline_readings_in_flight"), 0.0);
    let file = daemon.path("readings.csv");
    output_of(&daemon, &["export", "--what", "readings", "--out", path_text(&file)]);
    let exported = fs::read_to_string(&file).unwrap();
    let mut expected: Vec<String> = samples
        .iter()
        .flat_map(rows_of)
        .map(|(time_ms, rest)| format!("{},{rest}", Timestamp::from_millis(time_ms)))
        .collect();
    expected.sort_unstable();
    let mut exported: Vec<&str> = exported.lines().skip(1).collect();
    exported.sort_unstable();
    assert_same_lines("readings", &expected.join("\n"), &exported.join("\n"));
    daemon.stop();
    say(format_args!("{} readings, as published", expected.len()));
}

/// Returns what all units say, unit by unit, each in order.
fn make_samples(plan: &Plan, chance: &mut Chance) -> Vec<Sample> {
    let mut samples = Vec::new();
    for unit in 0..plan.units {
        let usual = PROFILES[unit as usize % PROFILES.len()].1;
        let steps = |duration_ms: i64| (duration_ms / plan.spacing_ms).max(1) as u64;
        // So many steps it goes on for.
        let (mut link_down, mut warm, mut warm_by, mut door_open) = (0, 0, 0, 0);
        let mut sensors = [Sensor::default(); 3];
        for step in 0..plan.length_ms / plan.spacing_ms {
            let time_ms = plan.begin_ms + step * plan.spacing_ms + unit as i64 * 1_007 + chance.below(20_000) as i64;
            // Each begins about once in so many hours.
            let mut begins = |left: &mut u64, every_hours: i64, longest_ms: i64| {
                if *left > 0 {
                    *left -= 1;
                } else if chance.below(steps(every_hours * HOUR_MS)) == 0 {
                    *left = 1 + chance.below(steps(longest_ms));
                    return true;
                }
                false
            };
            begins(&mut link_down, 40, 9 * HOUR_MS);
            begins(&mut door_open, 20, HOUR_MS);
            let is_new = begins(&mut warm, 25, 6 * HOUR_MS);
            for sensor in &mut sensors {
                begins(&mut sensor.stuck, 160, 16 * HOUR_MS);
                begins(&mut sensor.dead, 60, 2 * HOUR_MS);
                begins(&mut sensor.absent, 60, 3 * HOUR_MS);
                begins(&mut sensor.drifting, 80, 4 * HOUR_MS);
            }
            if is_new {
                warm_by = if chance.below(5) == 0 { -600 } else { 300 + chance.below(1_000) as i64 };
            }
            if link_down > 0 {
                continue;
            }
            let is_defrosting = (step * plan.spacing_ms + unit as i64 * HOUR_MS / 3) % (8 * HOUR_MS) < 25 * MINUTE_MS;
            let mut readings = Vec::new();
            for (sensor, name) in sensors.iter_mut().zip(["t1", "t2", "t3"]) {
                if sensor.stuck == 0 {
                    sensor.hundredths = usual
                        + chance.below(120) as i64
                        + if warm > 0 { warm_by } else { 0 }
                        + if is_defrosting { 600 } else { 0 }
                        + if sensor.drifting > 0 { 800 } else { 0 };
                }
                if sensor.absent == 0 {
                    readings.push((name, "temperature", (sensor.dead == 0).then_some(sensor.hundredths)));
                }
            }
            if step % 3 == 0 {
                readings.push(("d1", "defrost", Some(i64::from(is_defrosting) * 100)));
                readings.push(("d2", "door", Some(i64::from(door_open > 0) * 100)));
            }
            if !readings.is_empty() {
                samples.push(Sample { unit, time_ms, readings });
            }
        }
    }
    samples
}

/// How many steps a sensor's troubles go on for, and its last value.
#[derive(Debug, Clone, Copy, Default)]
struct Sensor {
    stuck: u64,
    dead: u64,
    absent: u64,
    drifting: u64,
    hundredths: i64,
}

/// Packs each unit's samples, in no order, into messages; some are in two, some messages come twice.
fn make_messages(samples: &[Sample], chance: &mut Chance) -> Vec<Message> {
    let mut by_unit: BTreeMap<u64, Vec<&Sample>> = BTreeMap::new();
    for sample in samples {
        let samples = by_unit.entry(sample.unit).or_default();
        samples.push(sample);
        if chance.below(20) == 0 {
            samples.push(sample);
        }
    }
    let mut messages = Vec::new();
    for mut samples in by_unit.into_values() {
        shuffle(&mut samples, chance);
        for samples in samples.chunks(SAMPLES_PER_MESSAGE) {
            messages.push(message(samples));
            if chance.below(10) == 0 {
                messages.push(message(samples));
            }
        }
    }
    shuffle(&mut messages, chance);
    messages
}

/// Adds messages that say something else of readings that have come.
fn contradict(samples: &[Sample], messages: &mut Vec<Message>, chance: &mut Chance) {
    let mut contradicted = BTreeSet::new();
    while contradicted.len() < CONFLICTS {
        let number = chance.below(samples.len() as u64) as usize;
        let Sample { unit, time_ms, readings } = &samples[number];
        let (sensor, kind, hundredths) = readings[0];
        if kind == "temperature" && contradicted.insert(number) {
            let other = Some(hundredths.map_or(100, |hundredths| hundredths + 1));
            messages.push(message(&[&Sample {
                unit: *unit,
                time_ms: *time_ms,
                readings: vec![(sensor, kind, other)],
            }]));
        }
    }
}

fn shuffle<T>(items: &mut [T], chance: &mut Chance) {
    for last in (1..items.len()).rev() {
        items.swap(last, chance.below(last as u64 + 1) as usize);
    }
}

fn message(samples: &[&Sample]) -> Message {
    Message { topic: topic(samples[0].unit), payload: json(samples).into_bytes() }
}

fn operator(unit: u64) -> String {
    format!("op{}", unit % 3)
}

fn unit(unit: u64) -> String {
    format!("u{unit:02}")
}

fn topic(number: u64) -> String {
    format!("coldchain/v1/{}/{}/telemetry", operator(number), unit(number))
}

fn value_text(hundredths: Option<i64>) -> Option<String> {
    hundredths.map(|hundredths| (hundredths as f64 / 100.0).to_string())
}

/// Returns samples of one unit as a payload.
fn json(samples: &[&Sample]) -> String {
    let samples: Vec<String> = samples
        .iter()
        .map(|sample| {
            let readings = sample.readings.iter().map(|(sensor, kind, value)| {
                let value = value_text(*value).unwrap_or_else(|| "null".to_owned());
                format!("{{\"sensor\":\"{sensor}\",\"kind\":\"{kind}\",\"value\":{value}}}")
            });
            let readings: Vec<String> = readings.collect();
            format!("{{\"ts\":{},\"readings\":[{}]}}", sample.time_ms, readings.join(","))
        })
        .collect();
    format!("{{\"samples\":[{}]}}", samples.join(","))
}

/// Returns the rows of a sample in a table, each as its time and the rest.
fn rows_of(sample: &Sample) -> impl Iterator<Item = (i64, String)> {
    let (operator, unit, time_ms) = (operator(sample.unit), unit(sample.unit), sample.time_ms);
    sample.readings.iter().map(move |(sensor, kind, value)| {
        let value = value_text(*value).unwrap_or_default();
        (time_ms, format!("{operator},{unit},{sensor},{kind},{value}"))
    })
}

/// Returns a registry: every tenth unit is unknown, two of five are on the road, loaded for some of the time.
fn fleet(plan: &Plan) -> String {
    let mut fleet = String::new();
    for number in 0..3 {
        writeln!(fleet, "[[operator]]\nid = \"op{number}\"\nname = \"Operator {number}\"").unwrap();
    }
    let at = |ms: i64| Timestamp::from_millis(plan.begin_ms + ms);
    for number in (0..plan.units).filter(|number| number % 10 != 9) {
        let place = format!("unit = \"{}\"\noperator = \"{}\"", unit(number), operator(number));
        let is_transport = number % 5 >= 3;
        let kind = if is_transport { "transport" } else { "storage" };
        let profile = PROFILES[number as usize % PROFILES.len()].0;
        writeln!(
            fleet,
            "[[unit]]\nid = \"{}\"\noperator = \"{}\"\nkind = \"{kind}\"\nprofile = \"{profile}\"",
            unit(number),
            operator(number)
        )
        .unwrap();
        writeln!(fleet, "[[sensor]]\nid = \"t1\"\n{place}\nmax_gap = \"25m\"").unwrap();
        let third_ms = plan.length_ms / 3;
        for trip in 0..3 {
            if !is_transport {
                break;
            }
            let from = at(trip * third_ms + number as i64 * MINUTE_MS);
            let to = at(trip * third_ms + third_ms * 3 / 4);
            let goods = PROFILES[(number as usize + trip as usize) % PROFILES.len()].0;
            writeln!(
                fleet,
                "[[consignment]]\nid = \"c-{number}-{trip}\"\n{place}\nprofile = \"{goods}\"\nfrom = \"{from}\"\nto = \"{to}\""
            )
            .unwrap();
        }
    }
    fleet
}

/// Adds the rules and profiles that are shipped.
fn copy_shipped_rules(daemon: &Daemon) {
    let shipped = Path::new(env!("CARGO_MANIFEST_DIR")).join("config");
    fs::copy(shipped.join("profiles.toml"), daemon.config_dir().join("profiles.toml")).unwrap();
    for entry in fs::read_dir(shipped.join("rules")).unwrap() {
        let entry = entry.unwrap();
        fs::copy(entry.path(), daemon.config_dir().join("rules").join(entry.file_name())).unwrap();
    }
}

/// Returns what a command of the program prints.
fn output_of(daemon: &Daemon, arguments: &[&str]) -> String {
    let mut command = Command::new(env!("CARGO_BIN_EXE_frostline"));
    let output = command.arg("--config").arg(daemon.config_dir()).args(arguments).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

fn path_text(path: &Path) -> &str {
    path.to_str().expect("temporary paths are text")
}

fn rule_of(line: &str) -> String {
    let episode: serde_json::Value = serde_json::from_str(line).expect("an episode is JSON");
    episode["rule"].as_str().expect("it has a rule").to_owned()
}

fn assert_same_lines(what: &str, expected: &str, found: &str) {
    if expected == found {
        return;
    }
    let (expected_set, found_set): (BTreeSet<&str>, BTreeSet<&str>) =
        (expected.lines().collect(), found.lines().collect());
    let missing: Vec<_> = expected_set.difference(&found_set).collect();
    let extra: Vec<_> = found_set.difference(&expected_set).collect();
    panic!(
        "of {} {what} {} are missing and {} should not be there:\n{:#?}\n{:#?}",
        expected_set.len(),
        missing.len(),
        extra.len(),
        &missing[..missing.len().min(6)],
        &extra[..extra.len().min(6)]
    );
}

fn wait_patiently(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < deadline, "waited in vain: {what}");
        thread::park_timeout(Duration::from_millis(50));
    }
}
