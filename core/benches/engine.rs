//! What judging costs: nanoseconds per reading with three rules, and memory per sensor.

#![expect(clippy::print_stdout, reason = "a benchmark tells its figures")]

use std::sync::Arc;
use std::time::Instant;

use frostline_core::model::{Kind, Limits, Name, Quality, Reading, Registry, SeriesKey, Timestamp, UnitKey};
use frostline_core::rules::{
    Condition, Engine, Era, LimitSource, Message, Rule, Selector, SeriesId, Severity, Timeliness, Window,
};

/// How many sensors the memory is measured with.
const SENSORS_IN_MEMORY: usize = 1_000_000;
/// How many the time is measured with.
const SENSORS: usize = 100_000;
const SENSORS_PER_UNIT: usize = 4;
const ROUNDS: i64 = 50;
/// Of the measurement of windows: sensors, and readings of each within the window.
const WINDOWED_SENSORS: usize = 2_000;
const READINGS_IN_WINDOW: i64 = 1_000;
const MINUTE_MS: i64 = 60_000;

fn range(high: f64) -> Condition {
    Condition::Range {
        limits: LimitSource::Fixed(Limits { low: None, high: Some(high) }),
        hysteresis: 0.5,
        keep_firing_for_ms: 300_000,
        never_below: None,
        never_above: None,
        suspend_while: None,
    }
}

fn rule(id: &str, condition: Condition) -> Arc<Rule> {
    let rule = Rule::new(Rule {
        id: id.into(),
        quantity: Kind::Temperature,
        severity: Severity::Warning,
        condition,
        for_ms: 600_000,
        max_gap_ms: None,
        selector: Selector::default(),
        message: Message::default(),
        source: None,
        verified: true,
        version: "".into(),
    });
    Arc::new(rule.expect("the rule is valid"))
}

/// Returns an engine that knows sensors, and their names.
fn engine_with(rules: Arc<[Arc<Rule>]>, sensors: usize) -> (Engine, Vec<SeriesId>) {
    let era = Era { loaded_at: Timestamp::from_millis(0), rules, registry: Arc::new(Registry::default()) };
    let mut engine = Engine::new(era, 10_000);
    let ids = (0..sensors).map(|number| {
        let name = |text: String| Name::new(&text).expect("the name is valid");
        let operator = name("operator-1".to_owned());
        let unit = UnitKey { operator, unit: name(format!("unit-{:06}", number / SENSORS_PER_UNIT)) };
        let sensor = format!("t{}", number % SENSORS_PER_UNIT).into();
        engine.series(&SeriesKey { unit, sensor, kind: Kind::Temperature })
    });
    let ids = ids.collect();
    (engine, ids)
}

/// Lets every sensor report once.
fn round(engine: &mut Engine, ids: &[SeriesId], minute: i64, value_of: impl Fn(usize) -> f64) -> usize {
    let event_time = Timestamp::from_millis(minute * MINUTE_MS);
    let mut transitions = Vec::new();
    for (number, id) in ids.iter().enumerate() {
        let reading = Reading { event_time, value: Some(value_of(number)), quality: Quality::GOOD };
        let timeliness = engine.observe(*id, &reading, event_time, &mut transitions);
        assert_eq!(timeliness, Timeliness::InTime);
    }
    engine.advance(event_time, &mut transitions);
    transitions.len()
}

fn resident_bytes() -> usize {
    let statm = std::fs::read_to_string("/proc/self/statm").expect("this runs on Linux");
    let pages: usize = statm.split(' ').nth(1).expect("the second field").parse().expect("a number");
    pages * 4096
}

fn main() {
    // First, while no memory that was given back can be used again.
    windows();
    let three =
        || -> Arc<[Arc<Rule>]> { Arc::from([rule("a", range(8.0)), rule("b", range(10.0)), rule("c", range(15.0))]) };
    {
        let before = resident_bytes();
        let (mut engine, ids) = engine_with(three(), SENSORS_IN_MEMORY);
        let bytes = || (resident_bytes().saturating_sub(before)) / SENSORS_IN_MEMORY;
        println!("memory with three rules, {SENSORS_IN_MEMORY} sensors: {} bytes per sensor at rest", bytes());
        round(&mut engine, &ids, 1, |_| 20.0);
        println!("  {} bytes per sensor with an episode of each rule going on", bytes());
    }
    let (mut engine, ids) = engine_with(three(), SENSORS);
    // `share_out` of 64 readings are out of every limit, so some episodes are always pending or firing.
    let mut minute = 0;
    for share_out in [0, 4, 64] {
        let (mut told, start) = (0, Instant::now());
        for _ in 0..ROUNDS {
            minute += 1;
            told += round(&mut engine, &ids, minute, |number| if number % 64 < share_out { 20.0 } else { 4.0 });
        }
        let nanos = start.elapsed().as_nanos() as f64 / (SENSORS as f64 * ROUNDS as f64);
        println!(
            "{share_out} of 64 readings out: {nanos:.0} ns per reading, {:.0} per reading and rule ({told} transitions)",
            nanos / 3.0
        );
    }
}

/// What a rule with a window remembers for each reading in it, or each run of readings that are out.
fn windows() {
    let window_ms = READINGS_IN_WINDOW * MINUTE_MS;
    let cumulative = Condition::Cumulative {
        limits: Limits { low: None, high: Some(8.0) },
        window: Window::Rolling(window_ms),
        budget_ms: window_ms,
    };
    let kinetic = Condition::MeanKineticTemperature {
        window: Window::Rolling(window_ms),
        high: 100.0,
        hysteresis: 0.0,
        keep_firing_for_ms: 0,
        delta_h: 83.144,
        min_known_ms: None,
    };
    let rate = Condition::Rate { per_ms: window_ms, rise: Some(100.0), fall: None, keep_firing_for_ms: 0 };
    let readings = READINGS_IN_WINDOW as f64;
    for (name, condition, remembered, of) in [
        ("cumulative", cumulative, readings / 2.0, "run of readings that are out"),
        ("mean_kinetic_temperature", kinetic, readings, "reading in the window"),
        ("rate", rate, readings, "reading in the window"),
    ] {
        let (mut engine, ids) = engine_with(Arc::from([rule("windowed", condition)]), WINDOWED_SENSORS);
        let before = resident_bytes();
        for minute in 0..READINGS_IN_WINDOW {
            // Out and in by turns, and for the rate rising all the time, the most that it can remember.
            let value = if name == "rate" { minute as f64 / 1e3 } else { 4.0 + 16.0 * (minute % 2) as f64 };
            round(&mut engine, &ids, minute, |_| value);
        }
        let bytes = resident_bytes().saturating_sub(before) as f64 / WINDOWED_SENSORS as f64;
        println!("{name}: {:.1} bytes per {of}", bytes / remembered);
    }
}
