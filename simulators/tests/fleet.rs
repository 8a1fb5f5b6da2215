//! The simulated fleet, read as an outsider would: topics and JSON only.

use std::collections::{BTreeMap, BTreeSet};

use frostline_simulators::{Fleet, FleetOptions, Message};
use proptest::prelude::*;
use serde_json::Value;

/// 2026-11-23T10:00:00Z.
const START_MS: i64 = 1_795_428_000_000;

fn fleet(units: usize, seed: u64) -> Fleet {
    Fleet::new(FleetOptions { units, seed, start_ms: START_MS })
}

fn minutes(fleet: &mut Fleet, count: usize) -> Vec<Message> {
    (0..count).flat_map(|_| fleet.step()).collect()
}

/// The lowest and highest temperature that a profile allows, in storage and in transport.
fn limits(profile: &str, transport: bool) -> (f64, f64) {
    match (profile, transport) {
        ("pasteurised_milk" | "fermented_milk", _) => (2.0, 6.0),
        ("raw_milk", false) => (0.0, 4.0),
        ("raw_milk", true) => (0.0, 6.0),
        ("frozen_meat", _) => (f64::NEG_INFINITY, -18.0),
        ("chilled_meat", _) => (-1.0, 4.0),
        ("vaccine_2_8", _) => (2.0, 8.0),
        ("leafy_vegetables", _) => (0.0, 5.0),
        ("potato_ware", _) => (3.0, 8.0),
        ("tomato_ripe", _) => (8.0, 13.0),
        (other, _) => panic!("no limits known for {other}"),
    }
}

/// The samples of one telemetry message, in order: when, and its readings.
fn samples(payload: &Value) -> Vec<(i64, &Vec<Value>)> {
    let one = |sample: &'_ Value| sample["ts"].as_i64().unwrap();
    match payload.get("samples") {
        Some(samples) => {
            samples.as_array().unwrap().iter().map(|s| (one(s), s["readings"].as_array().unwrap())).collect()
        }
        None => vec![(one(payload), payload["readings"].as_array().unwrap())],
    }
}

/// Every temperature in the messages, by topic and probe, by time.
fn temperatures(messages: &[Message]) -> BTreeMap<(String, String), BTreeMap<i64, Option<f64>>> {
    let mut series: BTreeMap<(String, String), BTreeMap<i64, Option<f64>>> = BTreeMap::new();
    for message in messages.iter().filter(|message| message.topic.ends_with("/telemetry")) {
        let payload: Value = serde_json::from_slice(&message.payload).unwrap();
        for (time_ms, readings) in samples(&payload) {
            for reading in readings.iter().filter(|reading| reading["kind"] == "temperature") {
                let key = (message.topic.clone(), reading["sensor"].as_str().unwrap().to_owned());
                series.entry(key).or_default().insert(time_ms, reading["value"].as_f64());
            }
        }
    }
    series
}

/// The longest time, in minutes, that any probe stayed above its unit's limit.
fn longest_too_warm_min(fleet: &Fleet, messages: &[Message]) -> i64 {
    let mut longest_ms = 0;
    let limit_of: BTreeMap<String, f64> = fleet
        .units()
        .map(|unit| {
            let topic = format!("coldchain/v1/{}/{}/telemetry", unit.operator, unit.unit);
            (topic, limits(unit.profile, unit.kind.as_str() == "transport").1)
        })
        .collect();
    for ((topic, _), values) in temperatures(messages) {
        let mut since_ms = None;
        for (time_ms, value) in values {
            if value.is_some_and(|value| value > limit_of[&topic]) {
                longest_ms = longest_ms.max(time_ms - *since_ms.get_or_insert(time_ms));
            } else {
                since_ms = None;
            }
        }
    }
    longest_ms / 60_000
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, ..ProptestConfig::default() })]

    #[test]
    fn whatever_the_seed_the_size_and_the_season_something_is_too_warm_for_long_within_half_an_hour(
        seed: u64, units in 1_usize..60, start_day in 0_i64..366,
    ) {
        let start_ms = START_MS + start_day * 86_400_000;
        let mut fleet = Fleet::new(FleetOptions { units, seed, start_ms });
        let messages = minutes(&mut fleet, 28);
        let longest = longest_too_warm_min(&fleet, &messages);
        prop_assert!(longest >= 12, "longest excursion {longest} min");
    }
}

#[test]
fn the_same_seed_gives_the_same_bytes_and_another_seed_others() {
    let run = |seed| minutes(&mut fleet(24, seed), 600);
    assert_eq!(run(42), run(42));
    assert_ne!(run(42), run(43));
}

#[test]
fn a_unit_behaves_the_same_in_a_larger_fleet() {
    let of_unit = |units, unit: usize| {
        let mut fleet = fleet(units, 5);
        let name = fleet.units().nth(unit).unwrap().unit.clone();
        let messages = minutes(&mut fleet, 120).into_iter();
        messages.filter(|message| message.topic.contains(&format!("/{name}/"))).collect::<Vec<_>>()
    };
    // A truck: careless loading, whose place depends on the size of the fleet, meets rooms and fridges only.
    assert_eq!(of_unit(24, 9), of_unit(40, 9));
}

#[test]
fn every_unit_says_everything_once_a_minute_in_order_and_gaps_in_the_radio_lose_nothing() {
    const MINUTES: usize = 3 * 24 * 60;
    let mut fleet = fleet(24, 11);
    let messages = minutes(&mut fleet, MINUTES);
    assert!(messages.is_sorted_by_key(|message| message.simulated_time_ms));

    let (mut gaps, mut repeats, mut failed) = (0, 0, 0);
    for unit in fleet.units() {
        let topic = format!("coldchain/v1/{}/{}/telemetry", unit.operator, unit.unit);
        let (mut times, mut last_seq, mut last_time_ms) = (BTreeSet::new(), 0, i64::MIN);
        for message in messages.iter().filter(|message| message.topic == topic) {
            let payload: Value = serde_json::from_slice(&message.payload).unwrap();
            let seq = payload["seq"].as_u64().unwrap();
            if seq == last_seq {
                repeats += 1;
                continue;
            }
            assert_eq!(seq, last_seq + 1, "{topic}");
            last_seq = seq;
            gaps += usize::from(payload.get("samples").is_some());
            for (time_ms, readings) in samples(&payload) {
                assert!(time_ms > last_time_ms, "{topic} goes back in time");
                last_time_ms = time_ms;
                times.insert(time_ms);
                let found: BTreeSet<(&str, &str)> =
                    readings.iter().map(|r| (r["sensor"].as_str().unwrap(), r["kind"].as_str().unwrap())).collect();
                let expected: BTreeSet<(&str, &str)> = unit.sensors.iter().map(|s| (s.sensor, s.kind)).collect();
                assert_eq!(found, expected, "{topic}");
                failed += readings.iter().filter(|reading| reading["value"].is_null()).count();
            }
        }
        let unsent = MINUTES - times.len();
        assert!(unsent <= 180, "{topic}: {unsent} minutes are missing, more than one gap that is still open explains");
    }
    assert!(gaps > 20, "only {gaps} backlogs in three days");
    assert!(repeats > 20, "only {repeats} repeated messages in three days");
    assert!(failed > 0, "no probe failed in three days");
}

#[test]
fn values_stay_in_what_is_physically_possible() {
    for start_day in [0, 60, 120, 240] {
        let start_ms = START_MS + start_day * 86_400_000;
        let mut fleet = Fleet::new(FleetOptions { units: 24, seed: 3, start_ms });
        for message in minutes(&mut fleet, 2 * 24 * 60).iter().filter(|m| m.topic.ends_with("/telemetry")) {
            let payload: Value = serde_json::from_slice(&message.payload).unwrap();
            for reading in samples(&payload).into_iter().flat_map(|(_, readings)| readings) {
                let possible = match (reading["kind"].as_str().unwrap(), &reading["value"]) {
                    ("temperature", Value::Null) | ("door" | "power", Value::Bool(_)) => true,
                    ("temperature", value) => (-40.0..40.0).contains(&value.as_f64().unwrap()),
                    ("humidity" | "battery", value) => (0.0..=100.0).contains(&value.as_f64().unwrap()),
                    ("latitude", value) => (37.0..54.0).contains(&value.as_f64().unwrap()),
                    ("longitude", value) => (97.0..127.0).contains(&value.as_f64().unwrap()),
                    _ => false,
                };
                assert!(possible, "{}: {reading}", message.topic);
            }
        }
    }
}

#[test]
fn connections_are_announced_lost_and_announced_again() {
    let messages = minutes(&mut fleet(24, 11), 24 * 60);
    let statuses: Vec<&Message> = messages.iter().filter(|message| message.topic.ends_with("/status")).collect();
    assert!(statuses.iter().all(|message| message.retain));
    assert!(messages.iter().all(|message| message.retain == message.topic.ends_with("/status")));
    let mut by_topic: BTreeMap<&str, Vec<bool>> = BTreeMap::new();
    for message in statuses {
        let payload: Value = serde_json::from_slice(&message.payload).unwrap();
        by_topic.entry(&message.topic).or_default().push(payload["online"].as_bool().unwrap());
    }
    assert_eq!(by_topic.len(), 24);
    assert!(by_topic.values().any(|changes| changes.len() > 2), "no unit lost its signal in a day");
    for (topic, changes) in by_topic {
        let expected: Vec<bool> = (0..changes.len()).map(|index| index % 2 == 0).collect();
        assert_eq!(changes, expected, "{topic}");
    }
}

#[test]
fn goods_are_within_their_limits_most_of_the_time_in_every_season() {
    for start_day in [0, 60, 150, 240] {
        let start_ms = START_MS + start_day * 86_400_000;
        let mut fleet = Fleet::new(FleetOptions { units: 24, seed: 1, start_ms });
        let messages = minutes(&mut fleet, 2 * 24 * 60);
        let series = temperatures(&messages);
        let (mut inside, mut all) = (0, 0);
        for unit in fleet.units() {
            let (low, high) = limits(unit.profile, unit.kind.as_str() == "transport");
            let topic = format!("coldchain/v1/{}/{}/telemetry", unit.operator, unit.unit);
            for value in series[&(topic, "t1".to_owned())].values().flatten() {
                inside += usize::from((low..=high).contains(value));
                all += 1;
            }
        }
        let share = inside as f64 / all as f64;
        assert!((0.90..0.999).contains(&share), "day {start_day}: {share} of the time within limits");
    }
}

#[test]
fn the_registry_and_the_rules_are_what_the_configuration_asks_for() {
    let fleet = fleet(30, 9);
    let registry: toml::Table = fleet.registry_toml().parse().unwrap();
    let list = |name: &str| registry[name].as_array().unwrap().clone();
    assert_eq!(list("operator").len(), 4);
    assert_eq!(list("unit").len(), 30);
    let ids: BTreeSet<String> = list("unit").iter().map(|unit| unit["id"].as_str().unwrap().to_owned()).collect();
    assert_eq!(ids.len(), 30, "identifiers repeat");
    for id in &ids {
        assert!(id.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-') && id.len() <= 64, "{id}");
    }
    for unit in list("unit") {
        assert_eq!(unit["monitor"].as_str(), Some("always"));
        assert!(["storage", "transport"].contains(&unit["kind"].as_str().unwrap()));
        assert!(unit["jurisdiction"].as_str().unwrap().starts_with("15"));
    }
    let probes: usize = fleet.units().map(|u| u.sensors.iter().filter(|s| s.kind == "temperature").count()).sum();
    assert_eq!(list("sensor").len(), probes);
    let leagues: BTreeSet<&str> = fleet.units().map(|unit| unit.league.code).collect();
    assert_eq!(leagues.len(), 12);

    let rules: toml::Table = fleet.rules_toml().parse().unwrap();
    let rules = rules["rule"].as_array().unwrap();
    assert_eq!(rules.len(), 6);
    for rule in rules.iter().filter(|rule| rule["kind"].as_str() == Some("range")) {
        assert_eq!((rule["limits"].as_str(), rule["for"].as_str()), (Some("profile"), Some("10m")));
    }
}
