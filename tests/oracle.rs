//! Backtests of tables, from configuration files on, against the second implementation of the rules.

#[path = "../core/tests/oracle/mod.rs"]
mod oracle;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use frostline::backtest::Backtest;
use frostline::config;
use frostline::episode_file::EpisodeRecord;
use frostline_core::model::{Limits, Monitor, Name, Registry, Timestamp, UnitKey};
use frostline_core::rules::{Condition, LimitSource, Rule, SilenceScope, Window};
use oracle::stories::{Arrival, Random};
use oracle::{Coverage, Episode, Verdict, World};

/// How many stories are told where the environment does not say.
const STORIES_DEFAULT: u64 = 1_000;

/// Writes what a world is judged by as the files that a person would have.
fn write_configuration(world: &World, dir: &Path) {
    let era = &world.eras[0];
    let rules: String = era.rules.iter().map(rule_as_toml).collect();
    fs::write(dir.join("rules.toml"), rules).unwrap();
    fs::write(dir.join("profiles.toml"), profiles_as_toml(&era.registry)).unwrap();
    fs::write(dir.join("fleet.toml"), fleet_as_toml(&era.registry)).unwrap();
}

/// The keys and values of one table, in the order of writing.
#[derive(Default)]
struct Table(String);

impl Table {
    fn set(&mut self, key: &str, value: impl std::fmt::Debug) {
        writeln!(self.0, "{key} = {value:?}").unwrap();
    }

    fn set_if(&mut self, key: &str, value: Option<impl std::fmt::Debug>) {
        if let Some(value) = value {
            self.set(key, value);
        }
    }

    fn set_ms(&mut self, key: &str, duration_ms: Option<i64>) {
        self.set_if(key, duration_ms.map(|duration_ms| format!("{duration_ms}ms")));
    }

    fn set_limits(&mut self, prefix: &str, limits: Limits) {
        self.set_if(&format!("{prefix}low"), limits.low);
        self.set_if(&format!("{prefix}high"), limits.high);
    }
}

fn rule_as_toml(rule: &Rule) -> String {
    let mut table = Table("[[rule]]\n".to_owned());
    table.set("id", &rule.id);
    table.set("kind", rule.kind());
    table.set("quantity", rule.quantity.as_str());
    table.set_ms("max_gap", rule.max_gap_ms);
    if !matches!(rule.condition, Condition::Cumulative { .. } | Condition::Cadence { .. }) {
        table.set_ms("for", Some(rule.for_ms));
    }
    if rule.keep_firing_for_ms() > 0 {
        table.set_ms("keep_firing_for", Some(rule.keep_firing_for_ms()));
    }
    let set_window = |table: &mut Table, window: Window| match window {
        Window::Rolling(window_ms) => table.set_ms("window", Some(window_ms)),
        Window::Consignment => table.set("window", "consignment"),
    };
    match rule.condition {
        Condition::Range { limits, hysteresis, never_below, never_above, suspend_while, .. } => {
            match limits {
                LimitSource::Fixed(limits) => table.set_limits("", limits),
                LimitSource::Profile => table.set("limits", "profile"),
            }
            table.set("hysteresis", hysteresis);
            table.set_if("never_below", never_below);
            table.set_if("never_above", never_above);
            if let Some(s) = suspend_while {
                let (quantity, is, plus_ms, at_most_ms) = (s.quantity, s.is, s.plus_ms, s.at_most_ms);
                writeln!(
                    table.0,
                    "suspend_while = {{ quantity = \"{quantity}\", is = {is}, plus = \"{plus_ms}ms\", \
                     at_most = \"{at_most_ms}ms\" }}"
                )
                .unwrap();
            }
        }
        Condition::Cumulative { limits, window, budget_ms } => {
            table.set_limits("", limits);
            set_window(&mut table, window);
            table.set_ms("budget", Some(budget_ms));
        }
        Condition::MeanKineticTemperature { window, high, hysteresis, delta_h, min_known_ms, .. } => {
            set_window(&mut table, window);
            table.set("high", high);
            table.set("hysteresis", hysteresis);
            table.set("delta_h", delta_h);
            table.set_ms("min_known", min_known_ms);
        }
        Condition::Rate { per_ms, rise, fall, .. } => {
            table.set_ms("per", Some(per_ms));
            table.set_if("rise", rise);
            table.set_if("fall", fall);
        }
        Condition::Cadence { every_ms, every_out_ms, share, window_ms } => {
            table.set_ms("every", Some(every_ms));
            table.set_ms("every_out", every_out_ms);
            table.set("share", share);
            table.set_ms("window", Some(window_ms));
        }
        Condition::Stuck { min_readings } => table.set("min_readings", min_readings),
        Condition::Disagreement { limit, hysteresis, .. } => {
            table.set("limit", limit);
            table.set("hysteresis", hysteresis);
        }
        Condition::State { is, .. } => table.set("is", is),
        Condition::Silence { scope: SilenceScope::Sensor } => {}
        Condition::Silence { scope: SilenceScope::Unit } => table.set("scope", "unit"),
    }
    let wanted = &rule.selector;
    table.0.push_str("[rule.where]\n");
    table.set_if("unit_kind", wanted.unit_kind.map(|kind| kind.as_str()));
    table.set_if("jurisdiction", wanted.jurisdiction.as_ref());
    table.set_if("category", wanted.category.as_ref());
    table.set_if("unit", wanted.unit.as_ref());
    table.set_if("sensor", wanted.sensor.as_ref());
    table.set_if("loaded", wanted.loaded);
    table.0
}

fn profiles_as_toml(registry: &Registry) -> String {
    let mut text = String::new();
    for profile in registry.profiles.values() {
        let mut table = Table("[[profile]]\n".to_owned());
        table.set("id", &profile.id);
        table.set("category", &profile.category);
        table.set_limits("", profile.temperature);
        table.set_limits("transport_", profile.transport_temperature);
        table.set_limits("humidity_", profile.humidity);
        table.set("humidity_advisory", profile.humidity_advisory);
        table.set_ms("record_storage", profile.record_storage_ms);
        table.set_ms("record_transport", profile.record_transport_ms);
        text.push_str(&table.0);
    }
    text
}

fn fleet_as_toml(registry: &Registry) -> String {
    let mut text = String::new();
    for (key, unit) in &registry.units {
        let mut table = Table("[[unit]]\n".to_owned());
        table.set("id", key.unit.as_str());
        table.set("operator", key.operator.as_str());
        table.set("kind", unit.kind.as_str());
        table.set_if("profile", unit.profile.as_ref());
        table.set_if("jurisdiction", unit.jurisdiction.as_ref());
        let dated = |(from, monitor): &(Timestamp, Monitor)| {
            format!("{{ from = \"{from}\", value = \"{}\" }}", monitor.as_str())
        };
        let monitor: Vec<_> = unit.monitor.iter().map(dated).collect();
        if !monitor.is_empty() {
            writeln!(table.0, "monitor = [{}]", monitor.join(", ")).unwrap();
        }
        text.push_str(&table.0);
    }
    let in_unit = |key: &UnitKey| format!("unit = \"{}\"\noperator = \"{}\"\n", key.unit, key.operator);
    for sensor in registry.sensors.values().flat_map(BTreeMap::values) {
        let mut table = Table(format!("[[sensor]]\n{}", in_unit(&sensor.unit)));
        table.set("id", &sensor.id);
        table.set_ms("max_gap", sensor.max_gap_ms);
        text.push_str(&table.0);
    }
    for goods in registry.consignments.values().flatten() {
        let mut table = Table(format!("[[consignment]]\n{}", in_unit(&goods.unit)));
        table.set("id", &goods.id);
        table.set_if("profile", goods.profile.as_ref());
        table.set("from", goods.from.to_string());
        table.set_if("to", goods.to.map(|to| to.to_string()));
        text.push_str(&table.0);
    }
    text
}

fn table_of(arrivals: &[Arrival]) -> String {
    let mut table = "event_time,operator,unit,sensor,kind,value\n".to_owned();
    for (series, time, value) in arrivals {
        let value = value.map_or(String::new(), |value| value.to_string());
        let UnitKey { operator, unit } = &series.unit;
        writeln!(table, "{time},{operator},{unit},{},{},{value}", series.sensor, series.kind).unwrap();
    }
    table
}

fn verdict(record: &EpisodeRecord) -> Verdict {
    let name = |text: &str| Name::new(text).unwrap();
    Verdict {
        unit: UnitKey { operator: name(&record.operator), unit: name(&record.unit) },
        sensor: record.sensor.as_deref().map(Into::into),
        rule: record.rule.as_str().into(),
        episode: Episode {
            started_at: record.started_at.as_millis(),
            fired_at: record.fired_at.as_millis(),
            resolved_at: record.resolved_at.map(|at| at.as_millis()),
            extreme: record.extreme,
            // A file of episodes does not have these.
            excursion_and_unmonitored_ms: None,
        },
    }
}

fn stories_wanted() -> u64 {
    std::env::var("FROSTLINE_STORIES").map_or(STORIES_DEFAULT, |text| text.parse().expect("FROSTLINE_STORIES counts"))
}

#[test]
fn a_backtest_agrees_with_the_second_implementation_whatever_the_order_of_the_rows() {
    let stories = stories_wanted();
    let mut counts = BTreeMap::<&str, u64>::new();
    let mut told = 0;
    for seed in (1_000_000..).take(stories as usize) {
        let mut random = Random(seed);
        let mut world = World::random(&mut random);
        // A table is judged by one configuration, and now is the largest event time.
        world.eras.truncate(1);
        let Some(newest) = world.readings.values().flatten().map(|(time, _)| *time).max() else { continue };
        world.now = newest;
        let mut coverage = Coverage::default();
        let mut expected = oracle::judge(&world, &mut coverage);
        for verdict in &mut expected {
            verdict.episode.excursion_and_unmonitored_ms = None;
        }

        let mut rows = world.arrivals(&mut random);
        coverage.note("a row out of order", rows.windows(2).any(|pair| pair[1].1 < pair[0].1));
        let accepted: u64 = world.readings.values().map(|readings| readings.len() as u64).sum();
        let duplicates = rows.len() as u64 - accepted;
        // A later row with another value for a millisecond that is taken changes nothing, too.
        let conflicts = random.below(3);
        for _ in 0..conflicts {
            let (series, time, value) = rows[random.below(accepted as usize)].clone();
            rows.push((series, time, if value.is_none() { Some(1.0) } else { None }));
        }
        coverage.note("a conflict", conflicts > 0);

        let dir = tempfile::tempdir().unwrap();
        write_configuration(&world, dir.path());
        let file = dir.path().join("rows.csv");
        fs::write(&file, table_of(&rows)).unwrap();
        let judgement = config::load_judgement(dir.path(), None).unwrap();
        let mut backtest = Backtest::default();
        backtest.add_file(&file, &judgement).unwrap();
        let outcome = backtest.judge(judgement.rules, judgement.registry);
        let mut found: Vec<_> = outcome.episodes.iter().map(verdict).collect();
        found.sort_by_key(Verdict::order);
        assert_eq!(found, expected, "seed {seed}:\n{world}");
        let summary = outcome.summary;
        assert_eq!((summary.accepted, summary.duplicate), (accepted, duplicates), "seed {seed}");
        assert_eq!(summary.rejected.get("conflict").copied().unwrap_or(0), conflicts as u64, "seed {seed}");

        told += 1;
        for case in coverage.0 {
            *counts.entry(case).or_default() += 1;
        }
    }
    for (case, count) in &counts {
        eprintln!("{case}: {count} of {told} stories");
    }
    if stories >= STORIES_DEFAULT {
        for case in ["any episode", "a row out of order", "a conflict", "a tie at `for`", "a gap while firing"] {
            let count = counts.get(case).copied().unwrap_or(0);
            assert!(count * 20 >= told, "too few stories with {case}: {count} of {told}");
        }
    }
}
