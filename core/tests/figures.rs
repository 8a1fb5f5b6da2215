//! The figures of episodes, one by one: what an alert says besides when it was.

use std::sync::Arc;

use frostline_core::model::{Kind, Limits, Name, Quality, Reading, Registry, SeriesKey, Timestamp, UnitKey};
use frostline_core::rules::{
    Change, Condition, Engine, Episode, Era, LimitSource, Message, Resolution, Rule, Selector, Severity, Suspension,
    Timeliness,
};

fn unit() -> UnitKey {
    UnitKey { operator: Name::new("op1").unwrap(), unit: Name::new("u1").unwrap() }
}

/// Tells what became of readings: (time, sensor, value), of temperature `t1` and defrost `d1`.
struct Told {
    engine: Engine,
    changes: Vec<Change>,
}

fn tell(rule: Condition, for_ms: i64, readings: &[(i64, &str, f64)], now: i64) -> Told {
    let rule = Rule::new(Rule {
        id: "r".into(),
        quantity: Kind::Temperature,
        severity: Severity::Critical,
        condition: rule,
        for_ms,
        max_gap_ms: Some(10),
        selector: Selector::default(),
        message: Message::default(),
        source: None,
        verified: true,
        version: "".into(),
    });
    let rules = Arc::from([Arc::new(rule.unwrap())]);
    let registry = Arc::new(Registry::default());
    let mut engine = Engine::new(Era { loaded_at: Timestamp::from_millis(0), rules, registry }, 0);
    let mut transitions = Vec::new();
    for (time, sensor, value) in readings {
        let kind = if *sensor == "d1" { Kind::Defrost } else { Kind::Temperature };
        let id = engine.series(&SeriesKey { unit: unit(), sensor: (*sensor).into(), kind });
        let event_time = Timestamp::from_millis(*time);
        let reading = Reading { event_time, value: Some(*value), quality: Quality::GOOD };
        assert_eq!(engine.observe(id, &reading, event_time, &mut transitions), Timeliness::InTime);
    }
    engine.advance(Timestamp::from_millis(now), &mut transitions);
    Told { engine, changes: transitions.into_iter().map(|transition| transition.change).collect() }
}

fn range(suspend_while: Option<Suspension>) -> Condition {
    Condition::Range {
        limits: LimitSource::Fixed(Limits { low: Some(0.0), high: Some(8.0) }),
        hysteresis: 0.0,
        keep_firing_for_ms: 4,
        never_below: Some(-5.0),
        never_above: Some(15.0),
        suspend_while,
    }
}

fn episode(started_at: i64, fired_at: i64, figures: (f64, f64, i64, i64, i64)) -> Episode {
    let (extreme, last_value, excursion_ms, unmonitored_ms, suspended_ms) = figures;
    Episode {
        started_at: Timestamp::from_millis(started_at),
        fired_at: Timestamp::from_millis(fired_at),
        resolved_at: None,
        resolution: None,
        extreme: Some(extreme),
        last_value: Some(last_value),
        limit_low: Some(0.0),
        limit_high: Some(8.0),
        excursion_ms,
        unmonitored_ms,
        suspended_ms,
    }
}

fn ended(episode: Episode, at: i64) -> Episode {
    Episode { resolved_at: Some(Timestamp::from_millis(at)), resolution: Some(Resolution::Cleared), ..episode }
}

#[test]
fn a_range_knows_its_extreme_its_limits_and_what_was_known() {
    // Out from 5 on, known until 15 and from 20 on: twelve milliseconds are full at 22.
    let readings = [(0, "t1", 4.0), (5, "t1", 9.0), (20, "t1", 11.0), (24, "t1", 10.0), (30, "t1", 5.0)];
    let told = tell(range(None), 12, &readings, 100);
    assert_eq!(
        told.changes,
        [
            Change::Fired(episode(5, 22, (11.0, 11.0, 12, 5, 0))),
            Change::Resolved(ended(episode(5, 22, (11.0, 5.0, 20, 5, 0)), 30)),
        ]
    );
}

#[test]
fn what_is_firing_has_the_figures_of_its_newest_reading() {
    let readings = [(5, "t1", 9.0), (20, "t1", 12.0), (24, "t1", -3.0)];
    let told = tell(range(None), 4, &readings, 24);
    let firing: Vec<_> = told.engine.firing(&unit()).into_iter().map(|firing| firing.episode).collect();
    assert_eq!(firing, [episode(5, 9, (12.0, -3.0, 14, 5, 0))]);
}

#[test]
fn suspended_time_is_known_and_does_not_count() {
    // The defrost lasts from 6 to 10, and one more millisecond; out since 5, six milliseconds are full at 16.
    let suspension = Suspension { quantity: Kind::Defrost, is: 1.0, plus_ms: 1, at_most_ms: 50 };
    let readings = [(5, "t1", 9.0), (6, "d1", 1.0), (10, "d1", 0.0), (12, "t1", 9.5), (20, "t1", 9.5)];
    let told = tell(range(Some(suspension)), 6, &readings, 20);
    assert_eq!(told.changes, [Change::Fired(episode(5, 16, (9.5, 9.5, 11, 0, 5)))]);
}

#[test]
fn with_nothing_to_wait_for_it_fires_as_the_suspension_ends_and_the_limits_never_to_be_passed_at_once() {
    let suspension = Suspension { quantity: Kind::Defrost, is: 1.0, plus_ms: 0, at_most_ms: 50 };
    let fired = |changes: &[Change]| {
        let fired = changes.iter().filter_map(|change| match change {
            Change::Fired(episode) => Some(episode.fired_at.as_millis()),
            _ => None,
        });
        fired.collect::<Vec<_>>()
    };
    let defrost = |value| [(5, "d1", 1.0), (6, "t1", value), (9, "d1", 0.0), (12, "t1", value), (20, "t1", value)];
    for (value, fires_at) in [(9.0, 9), (15.0, 9), (15.000_001, 6), (-5.0, 9), (-5.000_001, 6)] {
        assert_eq!(fired(&tell(range(Some(suspension)), 0, &defrost(value), 20).changes), [fires_at], "{value}");
    }
}

#[test]
fn a_rate_counts_clear_readings_too_once_another_is_out() {
    let rate = Condition::Rate { per_ms: 100, rise: Some(6.0), fall: Some(2.0), keep_firing_for_ms: 50 };
    // Differences: none, fallen by 2.5, risen by 4 and by 3, fallen by 2.1; the rises are clear.
    let readings = [(0, "t1", 5.0), (5, "t1", 2.5), (10, "t1", 6.5), (15, "t1", 5.5), (20, "t1", 4.4)];
    let extremes = [2, 3, 4, 5].map(|count| {
        let told = tell(rate, 0, &readings[..count], 20);
        told.engine.firing(&unit())[0].episode.extreme
    });
    assert_eq!(extremes, [Some(2.5), Some(2.5), Some(2.5), Some(4.0)]);
}

#[test]
fn all_of_an_episode_of_too_few_readings_is_unmonitored() {
    let cadence = Condition::Cadence { every_ms: 5, every_out_ms: None, share: 0.9, window_ms: 20 };
    let readings = [
        (0, "t1", 5.0),
        (45, "t1", 6.0),
        (60, "t1", 6.0),
        (65, "t1", 6.0),
        (70, "t1", 6.0),
        (75, "t1", 6.0),
        (81, "t1", 7.0),
    ];
    let of = |fired_at, last_value, unmonitored_ms| Episode {
        extreme: None,
        limit_low: None,
        limit_high: None,
        ..episode(0, fired_at, (0.0, last_value, 0, unmonitored_ms, 0))
    };
    let firing = tell(cadence, 0, &readings[..2], 45).engine.firing(&unit());
    assert_eq!(firing[0].episode, of(20, 6.0, 0));
    let told = tell(cadence, 0, &readings, 81);
    // What is told when a reading shows it has the last value before that reading.
    assert_eq!(told.changes, [Change::Fired(of(20, 5.0, 0)), Change::Resolved(ended(of(20, 6.0, 60), 60))]);
}
