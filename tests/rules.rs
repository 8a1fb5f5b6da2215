//! Rules as people meet them: configuration files, stories, and backtests of tables and recordings.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use frostline::backtest::{Backtest, Outcome};
use frostline::config;
use frostline::episode_file::{self, EpisodeRecord};
use frostline::story;

fn shipped() -> PathBuf {
    Path::new("config").to_owned()
}

fn backtest(config_dir: &Path, files: &[PathBuf]) -> Outcome {
    let judgement = config::load_judgement(config_dir, None).unwrap();
    let mut backtest = Backtest::default();
    for file in files {
        backtest.add_file(file, &judgement).unwrap();
    }
    backtest.judge(judgement.rules, judgement.registry)
}

fn lines_of(episodes: &[EpisodeRecord]) -> String {
    let mut lines = Vec::new();
    episode_file::write(episodes, &mut lines).unwrap();
    String::from_utf8(lines).unwrap()
}

#[test]
fn the_shipped_configuration_loads_and_its_stories_are_true() {
    let judgement = config::load_judgement(&shipped(), None).unwrap();
    assert_eq!(judgement.registry.profiles.len(), 36);
    let mut told = 0;
    for entry in fs::read_dir(shipped().join("tests")).unwrap() {
        let file = entry.unwrap().path();
        let mut problems = Vec::new();
        let stories = story::parse(&file, &fs::read_to_string(&file).unwrap(), &judgement.registry, &mut problems);
        assert_eq!(problems, []);
        for story in stories {
            let result = story.tell(&judgement.rules, &judgement.registry);
            assert_eq!(result.found, result.expected, "{}", result.name);
            told += 1;
        }
    }
    assert!(told >= 10, "{told} stories");
}

/// Returns what is wrong with a file of rules: line, key and message, in the order of the lines.
fn problems_of(rules: &str) -> String {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("rules.toml"), rules).unwrap();
    let problems = config::load_judgement(dir.path(), None).err().unwrap_or_default();
    let mut told: Vec<_> = problems.iter().map(|p| (p.line.unwrap(), p.key.as_str(), p.message.as_str())).collect();
    told.sort();
    told.iter().map(|(line, key, message)| format!("{line} {key}: {message}\n")).collect()
}

#[test]
fn every_problem_of_a_rule_file_is_told_with_its_line_and_key() {
    let rules = r#"[[rule]]
id = "Frozen"
kind = "range"
quantity = "temperature"
high = -18.0

[[rule]]
id = "too-wide"
kind = "range"
quantity = "temperature"
low = 2.0
high = 3.0
hysteresis = 0.6

[[rule]]
id = "misspelt"
kind = "state"
quantity = "dor"
is = 1
fro = "10m"

[[rule]]
id = "no-such-kind"
kind = "median"
quantity = "temperature"
per = "10m"

[[rule]]
id = "soon"
kind = "silence"
quantity = "temperature"
for = "soon"
where = { unit_knid = "storage" }

[[rule]]
id = "range-within"
kind = "range"
quantity = "temperature"
high = -18.0
never_above = -20.0

[[rule]]
id = "endless-defrost"
kind = "range"
quantity = "temperature"
high = -18.0
suspend_while = { quantity = "defrost", is = 1, plus = "15m" }

[[rule]]
id = "half-a-defrost"
kind = "range"
quantity = "temperature"
high = -18.0
suspend_while = { quantity = "defrost", is = 0.5, at_most = "45m" }
"#;
    expect_test::expect![[r#"
        2 rule.id: `Frozen` is not a rule id: a-z, 0-9 and - are expected
        13 rule.hysteresis: no value is clear: low + hysteresis is above high - hysteresis
        18 rule.quantity: expected temperature, humidity, door, power, compressor, battery, setpoint, defrost, latitude or longitude, found `"dor"`
        20 rule.fro: unknown key; expected one of id, kind, quantity, severity, max_gap, where, message, source, verified, is, keep_firing_for, for
        24 rule.kind: expected range, cumulative, mean_kinetic_temperature, rate, silence, cadence, stuck, disagreement or state, found `median`
        32 rule.for: expected a duration such as "250ms", "90s", "5m", "24h" or "7d", found `"soon"`
        33 rule.where.unit_knid: unknown key; expected one of unit_kind, operator, jurisdiction, category, profile, unit, sensor, loaded
        37 rule.kind: expected `never_above` at or above `high`, and `never_below` at or below `low`
        47 rule.suspend_while.at_most: expected how long one suspension lasts at most, found nothing
        54 rule.suspend_while: no reading of defrost has this value
    "#]].assert_eq(&problems_of(rules));
}

#[test]
fn every_kind_has_its_own_keys_and_no_others() {
    let rules = r#"[[rule]]
id = "budget-beyond-window"
kind = "cumulative"
quantity = "temperature"
high = 8.0
window = "24h"
budget = "25h"

[[rule]]
id = "cumulative-for"
kind = "cumulative"
quantity = "temperature"
high = 8.0
window = "consignment"
budget = "2h"
for = "10m"

[[rule]]
id = "cumulative-without"
kind = "cumulative"
quantity = "temperature"
window = "lately"
budget = "2h"

[[rule]]
id = "mean-of-humidity"
kind = "mean_kinetic_temperature"
quantity = "humidity"
window = "24h"
high = 8.0

[[rule]]
id = "mean-from-profile"
kind = "mean_kinetic_temperature"
quantity = "temperature"
window = "24h"
high = 8.0
min_known = "2h"
limits = "profile"

[[rule]]
id = "rate-of-nothing"
kind = "rate"
quantity = "temperature"
per = "10m"

[[rule]]
id = "rate-downwards"
kind = "rate"
quantity = "temperature"
per = "10m"
fall = -3.0

[[rule]]
id = "cadence-for"
kind = "cadence"
quantity = "temperature"
every = "5m"
window = "1h"
for = "1h"

[[rule]]
id = "cadence-share"
kind = "cadence"
quantity = "temperature"
every = "5m"
every_out = "2m"
share = 1.1
window = "1h"

[[rule]]
id = "stuck-at-half"
kind = "stuck"
quantity = "temperature"
for = "2h"
min_readings = 2.5

[[rule]]
id = "stuck-keeps"
kind = "stuck"
quantity = "temperature"
for = "2h"
keep_firing_for = "1m"

[[rule]]
id = "never-agreed"
kind = "disagreement"
quantity = "temperature"
limit = 3.0
hysteresis = 3.5

[[rule]]
id = "disagreement-without"
kind = "disagreement"
quantity = "temperature"

[[rule]]
id = "impossible-door"
kind = "state"
quantity = "door"
is = 2

[[rule]]
id = "unit-and-sensor"
kind = "silence"
scope = "unit"
where = { sensor = "t*" }

[[rule]]
id = "sourced"
kind = "state"
quantity = "door"
is = true
source = 31605
verified = "yes"
"#;
    expect_test::expect![[r#"
        16 rule.for: unknown key; expected one of id, kind, quantity, severity, max_gap, where, message, source, verified, low, high, window, budget
        22 rule.window: expected a duration such as "24h", or "consignment", found `"lately"`
        28 rule.quantity: only temperatures have a mean kinetic temperature, humidity has none
        39 rule.limits: unknown key; expected one of id, kind, quantity, severity, max_gap, where, message, source, verified, window, high, hysteresis, keep_firing_for, delta_h, min_known, for
        43 rule.kind: expected `rise` or `fall`
        52 rule.fall: expected a number above zero
        60 rule.for: unknown key; expected one of id, kind, quantity, severity, max_gap, where, message, source, verified, every, every_out, share, window
        68 rule.share: expected a share above 0 and not above 1
        76 rule.min_readings: expected a whole number, found `2.5`
        83 rule.keep_firing_for: unknown key; expected one of id, kind, quantity, severity, max_gap, where, message, source, verified, min_readings, for
        90 rule.hysteresis: no distance is clear: the hysteresis is above the limit
        92 rule.limit: expected how far apart sensors may be, found nothing
        101 rule.is: no reading of door has this value
        107 rule.where: a rule about a whole unit cannot select sensors
        114 rule.source: expected a text in quotes, found `31605`
        115 rule.verified: expected true or false, found `"yes"`
    "#]].assert_eq(&problems_of(rules));
}

#[test]
fn every_kind_with_every_key_is_read() {
    let rules = r#"[[rule]]
id = "range"
kind = "range"
quantity = "temperature"
limits = "profile"
for = "10m"
keep_firing_for = "5m"
hysteresis = 0.5
never_below = -30.0
never_above = -10.0
suspend_while = { quantity = "defrost", is = true, plus = "15m", at_most = "45m" }
where = { category = "food", profile = ["frozen_*", "*_frozen"] }
source = "GB 1-2020, 3.1"
verified = false

[[rule]]
id = "cumulative"
kind = "cumulative"
quantity = "temperature"
low = 2.0
high = 8.0
window = "consignment"
budget = "10h"

[[rule]]
id = "mkt"
kind = "mean_kinetic_temperature"
quantity = "temperature"
window = "24h"
high = 8.0
hysteresis = 0.2
for = "1h"
keep_firing_for = "1h"
delta_h = 100
min_known = "2h"

[[rule]]
id = "rate"
kind = "rate"
quantity = "temperature"
per = "10m"
rise = 3.0
fall = 4.0
for = "1m"
keep_firing_for = "5m"

[[rule]]
id = "silence"
kind = "silence"
scope = "unit"
for = "10m"

[[rule]]
id = "cadence"
kind = "cadence"
quantity = "temperature"
every = "5m"
every_out = "2m"
share = 0.8
window = "1h"
max_gap = "11m"

[[rule]]
id = "stuck"
kind = "stuck"
quantity = "temperature"
for = "2h"
min_readings = 20

[[rule]]
id = "disagreement"
kind = "disagreement"
quantity = "temperature"
limit = 3.0
for = "30m"
keep_firing_for = "5m"
hysteresis = 0.5
where = { sensor = "t*" }

[[rule]]
id = "state"
kind = "state"
quantity = "door"
is = true
for = "15m"
keep_firing_for = "1m"
"#;
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("rules.toml"), rules).unwrap();
    let judgement = config::load_judgement(dir.path(), None).unwrap();
    let read = judgement.rules.iter().map(|rule| {
        assert_eq!((&*rule.id == "range", rule.verified), (rule.source.is_some(), rule.source.is_none()));
        format!("for {} {:?}\n", rule.for_ms, rule.condition)
    });
    expect_test::expect![[r#"
        for 600000 Range { limits: Profile, hysteresis: 0.5, keep_firing_for_ms: 300000, never_below: Some(-30.0), never_above: Some(-10.0), suspend_while: Some(Suspension { quantity: Defrost, is: 1.0, plus_ms: 900000, at_most_ms: 2700000 }) }
        for 0 Cumulative { limits: Limits { low: Some(2.0), high: Some(8.0) }, window: Consignment, budget_ms: 36000000 }
        for 3600000 MeanKineticTemperature { window: Rolling(86400000), high: 8.0, hysteresis: 0.2, keep_firing_for_ms: 3600000, delta_h: 100.0, min_known_ms: Some(7200000) }
        for 60000 Rate { per_ms: 600000, rise: Some(3.0), fall: Some(4.0), keep_firing_for_ms: 300000 }
        for 600000 Silence { scope: Unit }
        for 0 Cadence { every_ms: 300000, every_out_ms: Some(120000), share: 0.8, window_ms: 3600000 }
        for 7200000 Stuck { min_readings: 20 }
        for 1800000 Disagreement { limit: 3.0, hysteresis: 0.5, keep_firing_for_ms: 300000 }
        for 900000 State { is: 1.0, keep_firing_for_ms: 60000 }
    "#]].assert_eq(&read.collect::<String>());
}

#[test]
fn a_recording_gives_what_the_same_readings_in_a_table_give() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(
        dir.path().join("rules.toml"),
        "[[rule]]\nid = \"warm\"\nkind = \"range\"\nquantity = \"temperature\"\nhigh = 8.0\nfor = \"2m\"\n",
    )
    .unwrap();
    let mut table = "event_time,operator,unit,sensor,kind,value\n".to_owned();
    let mut recording = "{\"frostline_recording\": 1, \"created_at\": 0, \"origin\": \"field\"}\n".to_owned();
    for minute in 0..20_i64 {
        let (time, value) = (minute * 60_000, if (5..12).contains(&minute) { 9.5 } else { 4.0 });
        writeln!(table, "{time},op1,u1,t1,temperature,{value}").unwrap();
        // Every fourth message leaves its time to the moment of arrival.
        let ts = if minute % 4 == 0 { String::new() } else { format!("\"ts\": {time}, ") };
        let payload = format!(
            "{{{ts}\"readings\": [{{\"sensor\": \"t1\", \"kind\": \"temperature\", \"value\": {value}, \"unit\": \"Cel\"}}]}}"
        );
        writeln!(
            recording,
            "{{\"received_at\": {time}, \"topic\": \"coldchain/v1/op1/u1/telemetry\", \"payload\": {payload}}}"
        )
        .unwrap();
    }
    recording.push_str("{\"received_at\": 1140000, \"topic\": \"elsewhere\", \"payload_b64\": \"AAEC\"}\nnonsense\n");
    let (csv, jsonl) = (dir.path().join("a.csv"), dir.path().join("a.jsonl.zst"));
    fs::write(&csv, table).unwrap();
    fs::write(&jsonl, zstd::encode_all(recording.as_bytes(), 0).unwrap()).unwrap();

    let expected = "{\"operator\":\"op1\",\"unit\":\"u1\",\"sensor\":\"t1\",\"rule\":\"warm\",\"state\":\"resolved\",\
        \"started_at\":\"1970-01-01T00:05:00.000Z\",\"fired_at\":\"1970-01-01T00:07:00.000Z\",\
        \"resolved_at\":\"1970-01-01T00:12:00.000Z\",\"extreme\":9.5}\n";
    assert_eq!(lines_of(&backtest(dir.path(), &[csv]).episodes), expected);
    let outcome = backtest(dir.path(), &[jsonl]);
    assert_eq!(lines_of(&outcome.episodes), expected);
    assert_eq!(outcome.summary.to_string(), "22 received: 20 accepted, 0 duplicate, 2 rejected (malformed 1, topic 1)");
}

#[test]
fn rows_that_cannot_be_used_are_named_and_the_rest_is_judged() {
    let dir = tempfile::tempdir().unwrap();
    let table = "value,kind,sensor,unit,operator,event_time,remark\n\
        5,temperature,t1,u1,op1,2026-01-01T08:00:00+08:00,good\n\
        5.0000001,temperature,t1,u1,op1,1767225600000,the same\n\
        300,temperature,t1,u1,op1,1767225600001,impossible\n\
        warm,temperature,t1,u1,op1,1767225600001,not a number\n\
        5,warmth,t1,u1,op1,1767225600001,no such kind\n\
        5,temperature,t1,u 1,op1,1767225600001,no such name\n\
        5,temperature,t1,u1,op1,yesterday,no such time\n\
        ,temperature,t1,u1,op1,1767225600001,a failed probe\n";
    let file = dir.path().join("rows.csv");
    fs::write(&file, table).unwrap();
    let outcome = backtest(dir.path(), std::slice::from_ref(&file));
    assert_eq!(outcome.summary.to_string(), "8 received: 2 accepted, 1 duplicate, 5 rejected (range 1, schema 4)");
    let first = format!("{}:4: range: 300 is not possible for temperature", file.display());
    assert_eq!(outcome.summary.remarks[0], first);
    assert_eq!(outcome.summary.remarks.len(), 5);
}

#[test]
fn a_rule_that_leaves_a_profile_in_use_nothing_clear_is_named_with_its_file_and_line() {
    let dir = tempfile::tempdir().unwrap();
    let rules = "# Two rules.\n[[rule]]\nid = \"good\"\nkind = \"silence\"\nquantity = \"temperature\"\n\n\
                 [[rule]]\nid = \"too-wide\"\nkind = \"range\"\nquantity = \"temperature\"\nlimits = \"profile\"\nhysteresis = 4.0\n";
    fs::write(dir.path().join("rules.toml"), rules).unwrap();
    let fleet = "[[unit]]\nid = \"u1\"\noperator = \"op1\"\nkind = \"storage\"\nprofile = \"vaccine_2_8\"\n";
    fs::write(dir.path().join("fleet.toml"), fleet).unwrap();
    let problems = config::load_judgement(dir.path(), None).unwrap_err();
    let told: Vec<_> = problems.iter().map(ToString::to_string).collect();
    let place = format!("{}:8: rule.hysteresis: ", dir.path().join("rules.toml").display());
    assert_eq!(told.len(), 1, "{told:?}");
    assert!(told[0].starts_with(&place), "{}", told[0]);
}
