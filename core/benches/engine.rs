//! What judging costs: nanoseconds per reading with three rules, and memory per sensor.

#![expect(clippy::print_stdout, reason = "a benchmark tells its figures")]

use std::sync::Arc;
use std::time::Instant;

use frostline_core::model::{Kind, Limits, Name, Quality, Reading, Registry, SeriesKey, Timestamp, UnitKey};
use frostline_core::rules::{Condition, Engine, LimitSource, Message, Rule, Selector, Severity};

const SENSORS: usize = 100_000;
const SENSORS_PER_UNIT: usize = 4;
const ROUNDS: i64 = 50;

fn rule(id: &str, high: f64) -> Arc<Rule> {
    let limits = LimitSource::Fixed(Limits { low: None, high: Some(high) });
    let rule = Rule::new(Rule {
        id: id.into(),
        quantity: Kind::Temperature,
        severity: Severity::Warning,
        condition: Condition::Range { limits, hysteresis: 0.5, keep_firing_for_ms: 300_000 },
        for_ms: 600_000,
        max_gap_ms: None,
        selector: Selector::default(),
        message: Message::default(),
        version: "".into(),
    });
    Arc::new(rule.expect("the rule is valid"))
}

fn resident_bytes() -> usize {
    let statm = std::fs::read_to_string("/proc/self/statm").expect("this runs on Linux");
    let pages: usize = statm.split(' ').nth(1).expect("the second field").parse().expect("a number");
    pages * 4096
}

fn main() {
    let rules: Arc<[Arc<Rule>]> = Arc::from([rule("a", 8.0), rule("b", 10.0), rule("c", 15.0)]);
    let before = resident_bytes();
    let mut engine = Engine::new(rules, Arc::new(Registry::default()), 10_000, Timestamp::from_millis(0));
    let ids: Vec<_> = (0..SENSORS)
        .map(|number| {
            let name = |text: String| Name::new(&text).expect("the name is valid");
            let operator = name("operator-1".to_owned());
            let unit = UnitKey { operator, unit: name(format!("unit-{:06}", number / SENSORS_PER_UNIT)) };
            let sensor = format!("t{}", number % SENSORS_PER_UNIT).into();
            engine.series(&SeriesKey { unit, sensor, kind: Kind::Temperature })
        })
        .collect();
    let bytes = resident_bytes().saturating_sub(before);
    println!("memory: {} bytes per sensor with three rules", bytes / SENSORS);

    // `share_out` of 64 readings are out of every limit, so some episodes are always pending or firing.
    let mut minute = 0;
    for share_out in [0, 4, 64] {
        let mut transitions = Vec::new();
        let (mut fired, start) = (0, Instant::now());
        for _ in 0..ROUNDS {
            minute += 1;
            let event_time = Timestamp::from_millis(minute * 60_000);
            for (number, id) in ids.iter().enumerate() {
                let value = Some(if number % 64 < share_out { 20.0 } else { 4.0 });
                let reading = Reading { event_time, value, quality: Quality::GOOD };
                engine.observe(*id, &reading, event_time, &mut transitions);
            }
            engine.advance(event_time, &mut transitions);
            fired += transitions.len();
            transitions.clear();
        }
        let nanos = start.elapsed().as_nanos() as f64 / (SENSORS as f64 * ROUNDS as f64);
        println!(
            "{share_out} of 64 readings out: {nanos:.0} ns per reading, {:.0} per reading and rule ({fired} transitions)",
            nanos / 3.0
        );
    }
}
