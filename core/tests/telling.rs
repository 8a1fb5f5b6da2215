//! When what became true is told: the settling time, the quiet second, and configurations that end what fires.

use std::sync::Arc;

use frostline_core::model::{
    Kind, Limits, Monitor, Name, Quality, Reading, Registry, SeriesKey, Timestamp, Unit, UnitKey, UnitKind,
};
use frostline_core::rules::{
    Change, Condition, Engine, Era, LimitSource, Message, Resolution, Rule, Selector, Severity, SilenceScope,
    Timeliness, Transition,
};

fn at(seconds: i64) -> Timestamp {
    Timestamp::from_millis(seconds * 1_000)
}

fn unit() -> UnitKey {
    UnitKey { operator: Name::new("op1").unwrap(), unit: Name::new("u1").unwrap() }
}

fn rule(id: &str, condition: Condition) -> Arc<Rule> {
    let rule = Rule::new(Rule {
        id: id.into(),
        quantity: Kind::Temperature,
        severity: Severity::Critical,
        condition,
        for_ms: 0,
        max_gap_ms: Some(60_000),
        selector: Selector::default(),
        message: Message::default(),
        source: None,
        verified: true,
        version: "".into(),
    });
    Arc::new(rule.unwrap())
}

fn too_warm() -> Arc<Rule> {
    let limits = LimitSource::Fixed(Limits { low: None, high: Some(8.0) });
    let range = Condition::Range {
        limits,
        hysteresis: 0.0,
        keep_firing_for_ms: 0,
        never_below: None,
        never_above: None,
        suspend_while: None,
    };
    rule("warm", range)
}

fn era(loaded_at: Timestamp, rule: &Arc<Rule>, monitor: Option<Monitor>) -> Era {
    let mut registry = Registry::default();
    if let Some(monitor) = monitor {
        let unit = Unit {
            key: unit(),
            kind: UnitKind::Storage,
            site: None,
            jurisdiction: None,
            profile: None,
            monitor: vec![(Timestamp::MIN, monitor)],
            labels: Default::default(),
        };
        registry.units.insert(unit.key.clone(), unit);
    }
    Era { loaded_at, rules: Arc::from([Arc::clone(rule)]), registry: Arc::new(registry) }
}

fn observe(engine: &mut Engine, event_time: Timestamp, value: f64, now: Timestamp, out: &mut Vec<Transition>) {
    let id = engine.series(&SeriesKey { unit: unit(), sensor: "t1".into(), kind: Kind::Temperature });
    let reading = Reading { event_time, value: Some(value), quality: Quality::GOOD };
    assert_eq!(engine.observe(id, &reading, now, out), Timeliness::InTime);
}

#[test]
fn monitoring_that_is_turned_off_without_a_date_ends_what_fires_when_that_is_loaded() {
    let rule = too_warm();
    let mut engine = Engine::new(era(at(0), &rule, Some(Monitor::Always)), 0);
    let mut told = Vec::new();
    observe(&mut engine, at(10), 9.0, at(10), &mut told);
    engine.reconfigure(era(at(20), &rule, Some(Monitor::Off)), 0);
    engine.advance(at(30), &mut told);
    let ends = told.iter().filter_map(|transition| match transition.change {
        Change::Resolved(episode) => Some((episode.started_at, episode.resolved_at, episode.resolution)),
        _ => None,
    });
    assert_eq!(ends.collect::<Vec<_>>(), [(at(10), Some(at(20)), Some(Resolution::OffDuty))]);
    // What is turned on again judges from then on, not what was read in between.
    observe(&mut engine, at(40), 9.0, at(40), &mut told);
    engine.reconfigure(era(at(50), &rule, Some(Monitor::Always)), 0);
    observe(&mut engine, at(60), 9.0, at(60), &mut told);
    let last = told.last().expect("it fires again");
    assert!(matches!(last.change, Change::Fired(episode) if episode.started_at == at(60)), "{last:?}");
}

#[test]
fn a_reading_that_comes_when_now_is_long_past_it_is_concluded_from_after_a_second_of_quiet() {
    let rule = rule("silent", Condition::Silence { scope: SilenceScope::Sensor });
    let mut engine = Engine::new(era(at(0), &rule, None), 10_000);
    let mut told = Vec::new();
    // Where readings bring the time, now may stand still for good while the clock of arrival goes on.
    let (now, arrival) = (at(3_600), at(1_000_000));
    for (number, seconds) in [0, 100, 200].into_iter().enumerate() {
        engine.arrive_at(arrival.plus_millis(100 * number as i64));
        observe(&mut engine, at(seconds), 5.0, now, &mut told);
        engine.advance(now, &mut told);
    }
    let instants = |told: &[Transition]| told.iter().map(|transition| transition.instant).collect::<Vec<_>>();
    assert_eq!(instants(&told), [at(60), at(100), at(160), at(200)], "what readings have settled is told at once");
    assert!(engine.next_quiet().is_some_and(|quiet_at| quiet_at <= arrival.plus_millis(1_200)), "never too late");
    engine.arrive_at(arrival.plus_millis(1_199));
    engine.advance(now, &mut told);
    assert_eq!(told.len(), 4, "a backlog may be going on");
    engine.arrive_at(arrival.plus_millis(1_200));
    engine.advance(now, &mut told);
    assert_eq!(instants(&told)[4..], [at(260)]);
}
