//! Rules as people meet them: configuration files, stories, and backtests of tables and recordings.

#[path = "../core/tests/oracle/mod.rs"]
mod oracle;

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use frostline::backtest::{Backtest, Outcome};
use frostline::config;
use frostline::episode_file::{self, EpisodeRecord};
use frostline::story;
use oracle::stories::{Kind, Random, Story};
use oracle::{Coverage, Episode};

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

/// Writes a story as the files that a person would have.
fn write_configuration(story: &Story, dir: &Path) {
    let mut rule = format!(
        "[[rule]]\nid = \"r\"\nquantity = \"temperature\"\nseverity = \"critical\"\nfor = \"{}ms\"\nmax_gap = \"{}ms\"\n",
        story.for_ms, story.max_gap_ms
    );
    match story.kind {
        Kind::Range { low, high, hysteresis } => {
            write!(rule, "kind = \"range\"\nhysteresis = {hysteresis:?}\n").unwrap();
            for (key, limit) in [("low", low), ("high", high)] {
                if let Some(limit) = limit {
                    writeln!(rule, "{key} = {limit:?}").unwrap();
                }
            }
        }
        Kind::State { is } => write!(rule, "kind = \"state\"\nis = {is:?}\n").unwrap(),
        Kind::Silence => rule.push_str("kind = \"silence\"\n"),
    }
    if story.kind != Kind::Silence {
        writeln!(rule, "keep_firing_for = \"{}ms\"", story.keep_firing_for_ms).unwrap();
    }
    fs::write(dir.join("rules.toml"), rule).unwrap();
    if story.is_registered {
        let at = |millis| frostline_core::model::Timestamp::from_millis(millis);
        let duty = story.duty.iter().map(|(from, is_on)| {
            format!("{{ from = \"{}\", value = \"{}\" }}", at(*from), if *is_on { "always" } else { "off" })
        });
        let fleet = format!(
            "[[unit]]\nid = \"u1\"\noperator = \"op1\"\nkind = \"storage\"\nmonitor = [{}]\n\n\
             [[sensor]]\nid = \"t1\"\nunit = \"u1\"\noperator = \"op1\"\n",
            duty.collect::<Vec<_>>().join(", ")
        );
        fs::write(dir.join("fleet.toml"), fleet).unwrap();
    }
}

#[test]
fn a_backtest_agrees_with_the_second_implementation_whatever_the_order_of_the_rows() {
    const STORIES: u64 = 1_000;
    let mut counts = [0_u64; 5];
    for seed in 1_000_000..1_000_000 + STORIES {
        let mut random = Random(seed);
        let mut story = Story::random(&mut random);
        let Some((newest, _)) = story.readings.last().copied() else { continue };
        // In a table, now is the largest event time.
        story.now = newest;
        let mut coverage = Coverage::default();
        let expected = oracle::judge(&story, &mut coverage);

        let mut rows = story.readings.clone();
        if random.below(2) == 0 {
            for index in (1..rows.len()).rev() {
                rows.swap(index, random.below(index + 1));
            }
        }
        let is_out_of_order = rows.windows(2).any(|pair| pair[1].0 < pair[0].0);
        let original = rows.len() as u64;
        // Later rows for a millisecond that is taken change nothing: equal ones are duplicates, others conflicts.
        let (mut duplicates, mut conflicts) = (0, 0);
        for _ in 0..random.below(4) {
            let (time, value) = rows[random.below(original as usize)];
            if random.below(2) == 0 {
                rows.push((time, value));
                duplicates += 1;
            } else {
                rows.push((time, Some(value.unwrap_or(0.0) + 20.0)));
                conflicts += 1;
            }
        }
        let mut table = "event_time,operator,unit,sensor,kind,value\n".to_owned();
        for (time, value) in &rows {
            let value = value.map_or(String::new(), |value| value.to_string());
            writeln!(table, "{time},op1,u1,t1,temperature,{value}").unwrap();
        }
        let dir = tempfile::tempdir().unwrap();
        write_configuration(&story, dir.path());
        let file = dir.path().join("rows.csv");
        fs::write(&file, table).unwrap();

        let outcome = backtest(dir.path(), &[file]);
        let found: Vec<_> = outcome.episodes.iter().map(known).collect();
        assert_eq!(found, expected, "seed {seed}: {story:?}");
        let summary = outcome.summary;
        assert_eq!((summary.accepted, summary.duplicate), (original, duplicates), "seed {seed}");
        assert_eq!(summary.rejected.get("conflict").copied().unwrap_or(0), conflicts, "seed {seed}");

        let flags = [
            is_out_of_order,
            coverage.tie_at_for,
            coverage.null_while_pending,
            coverage.gap_while_firing,
            !expected.is_empty(),
        ];
        for (count, flag) in counts.iter_mut().zip(flags) {
            *count += u64::from(flag);
        }
    }
    let names = ["a row out of order", "a tie at `for`", "a null while pending", "a gap while firing", "any episode"];
    for (name, count) in names.iter().zip(counts) {
        eprintln!("{name}: {count} of {STORIES} stories");
        assert!(count * 100 >= STORIES, "too few stories with {name}: {count} of {STORIES}");
    }
}

fn known(record: &EpisodeRecord) -> Episode {
    Episode {
        started_at: record.started_at.as_millis(),
        fired_at: record.fired_at.as_millis(),
        resolved_at: record.resolved_at.map(|at| at.as_millis()),
        extreme: record.extreme,
    }
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

#[test]
fn every_problem_of_a_rule_file_is_told_with_its_line_and_key() {
    let dir = tempfile::tempdir().unwrap();
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
id = "later"
kind = "rate"
quantity = "temperature"
per = "10m"

[[rule]]
id = "soon"
kind = "silence"
quantity = "temperature"
for = "soon"
where = { unit_knid = "storage" }
"#;
    fs::write(dir.path().join("rules.toml"), rules).unwrap();
    let problems = config::load_judgement(dir.path(), None).unwrap_err();
    let mut told: Vec<_> = problems
        .iter()
        .map(|problem| (problem.line.unwrap(), problem.key.as_str(), problem.message.as_str()))
        .collect();
    told.sort();
    expect_test::expect![[r#"
        [
            (
                2,
                "rule.id",
                "`Frozen` is not a rule id: a-z, 0-9 and - are expected",
            ),
            (
                13,
                "rule.hysteresis",
                "no value is clear: low + hysteresis is above high - hysteresis",
            ),
            (
                18,
                "rule.quantity",
                "expected temperature, humidity, door, power, compressor, battery, setpoint, defrost, latitude or longitude, found `\"dor\"`",
            ),
            (
                20,
                "rule.fro",
                "unknown key; expected one of id, kind, quantity, severity, for, max_gap, where, message, is, keep_firing_for",
            ),
            (
                24,
                "rule.kind",
                "kind `rate` is not available in this version",
            ),
            (
                32,
                "rule.for",
                "expected a duration such as \"250ms\", \"90s\", \"5m\", \"24h\" or \"7d\", found `\"soon\"`",
            ),
            (
                33,
                "rule.where.unit_knid",
                "unknown key; expected one of unit_kind, operator, jurisdiction, category, unit, sensor, loaded",
            ),
        ]
    "#]]
    .assert_debug_eq(&told);
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
