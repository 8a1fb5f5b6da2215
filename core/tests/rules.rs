//! The engine against a second implementation: on stories worked out by hand, and on random ones, judged at once, while
//! time passes and the process restarts, and with readings that come late, twice and in any order.
//!
//! `FROSTLINE_STORIES` says how many random stories are told.

mod oracle;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use frostline_core::model::{
    Consignment, Kind, Limits, Monitor, Profile, Quality, Reading, Registry, SeriesKey, Timestamp, Unit, UnitKey,
    UnitKind,
};
use frostline_core::rules::{
    self, Change, Condition, Engine, JudgedEpisode, LimitSource, Point, Rule, RuleIndex, Selector, SeriesId,
    SilenceScope, Suspension, Timeliness, Transition, Window, judge_unit, judge_unit_in_steps,
};
use oracle::stories::{Arrival, Random, rule, series_key, unit_key};
use oracle::{Coverage, Episode, Era, Verdict, World};

type Series = (SeriesKey, Vec<(i64, Option<f64>)>);

const T: Kind = Kind::Temperature;

/// Returns the series of unit u1 that a text describes: `time:value`, where `_` is the value of a failed probe.
fn series(sensor: &str, kind: Kind, text: &str) -> Series {
    let reading = |word: &str| {
        let (time, value) = word.split_once(':').unwrap();
        (time.parse().unwrap(), (value != "_").then(|| value.parse().unwrap()))
    };
    (series_key("u1", sensor, kind), text.split_whitespace().map(reading).collect())
}

fn shown(verdicts: &[Verdict]) -> Vec<String> {
    let shown = |verdict: &Verdict| {
        let e = verdict.episode;
        let sensor = verdict.sensor.as_deref().unwrap_or("-");
        let resolved_at = e.resolved_at.map_or("..".to_owned(), |at| at.to_string());
        let mut text =
            format!("{}/{sensor} {} {} {} {resolved_at}", verdict.unit.unit, verdict.rule, e.started_at, e.fired_at);
        if let Some(extreme) = e.extreme {
            text.push_str(&format!(" extreme {extreme}"));
        }
        if let Some((excursion_ms, unmonitored_ms)) = e.excursion_and_unmonitored_ms {
            text.push_str(&format!(" known {excursion_ms} + {unmonitored_ms}"));
        }
        text
    };
    verdicts.iter().map(shown).collect()
}

/// Asserts that this is what the rules say about these readings; worked out by hand.
fn check_world(world: &World, expected: &[&str]) {
    let verdicts = oracle::judge(world, &mut Coverage::default());
    assert_eq!(shown(&verdicts), expected, "{world}");
    assert_eq!(shown(&comparable(judge_at_once(world))), shown(&comparable(verdicts)), "the engine, {world}");
}

fn check(rules: &[Rule], registry: Registry, readings: &[Series], now: i64, expected: &[&str]) {
    let era = Era { loaded_at: 0, rules: rules.to_vec(), registry };
    check_world(&World { eras: vec![era], readings: readings.iter().cloned().collect(), now }, expected);
}

fn high(high: f64) -> Limits {
    Limits { low: None, high: Some(high) }
}

fn range(high_limit: f64, hysteresis: f64, keep_firing_for_ms: i64) -> Condition {
    Condition::Range {
        limits: LimitSource::Fixed(high(high_limit)),
        hysteresis,
        keep_firing_for_ms,
        never_below: None,
        never_above: None,
        suspend_while: None,
    }
}

fn suspended(suspend_while: Suspension, never_above: Option<f64>) -> Condition {
    let limits = LimitSource::Fixed(high(10.0));
    let suspend_while = Some(suspend_while);
    Condition::Range { limits, hysteresis: 0.0, keep_firing_for_ms: 0, never_below: None, never_above, suspend_while }
}

const DEFROST: Suspension = Suspension { quantity: Kind::Defrost, is: 1.0, plus_ms: 5, at_most_ms: 100 };

/// Returns a registry in which unit u1 is of a kind and has profile `p`, with this monitoring and these goods.
fn registered(kind: UnitKind, profile: Profile, monitor: &[(i64, Monitor)], goods: &[(i64, Option<i64>)]) -> Registry {
    let at = Timestamp::from_millis;
    let unit = Unit {
        key: unit_key("u1"),
        kind,
        site: None,
        jurisdiction: None,
        profile: Some("p".into()),
        monitor: monitor.iter().map(|(from, monitor)| (at(*from), *monitor)).collect(),
        labels: BTreeMap::new(),
    };
    let consignment = |(from, to): &(i64, Option<i64>)| Consignment {
        id: format!("c{from}").into(),
        unit: unit_key("u1"),
        profile: None,
        lot: None,
        from: at(*from),
        to: to.map(at),
    };
    Registry {
        units: BTreeMap::from([(unit.key.clone(), unit)]),
        consignments: BTreeMap::from([(unit_key("u1"), goods.iter().map(consignment).collect())]),
        profiles: BTreeMap::from([("p".into(), Profile { id: "p".into(), ..profile })]),
        ..Registry::default()
    }
}

#[test]
fn a_range_counts_known_time_and_ends_with_the_first_clear_reading_that_lasts() {
    let rules = [rule("r", T, range(10.0, 1.0, 10), 20, Some(15))];
    // Held [0, 15) and [30, 40): 20 is reached at 35. 9.5 is neither out nor clear; 9 at 50 is clear, and forgotten at 55.
    let readings = [series("t1", T, "0:11 30:12 40:9.5 50:9 55:10.5 60:8 65:8")];
    check(&rules, Registry::default(), &readings, 100, &["u1/t1 r 0 35 60 extreme 12 known 45 + 15"]);
    // A sum that is reached exactly where a hold ends is reached, though the next reading would have ended it.
    let readings = [series("t1", T, "0:11 10:11 20:9")];
    check(&rules, Registry::default(), &readings, 25, &["u1/t1 r 0 20 .. extreme 11 known 20 + 0"]);
    check(&rules, Registry::default(), &readings, 30, &["u1/t1 r 0 20 20 extreme 11 known 20 + 0"]);
}

#[test]
fn a_null_ends_a_hold_and_is_passed_over() {
    let rules = [rule("r", T, range(10.0, 0.0, 0), 10, Some(15))];
    let readings = [series("t1", T, "0:11 5:_ 20:11 25:9")];
    check(&rules, Registry::default(), &readings, 30, &["u1/t1 r 0 25 25 extreme 11 known 10 + 15"]);
}

#[test]
fn the_end_of_duty_ends_an_episode_there() {
    let duty = [(0, Monitor::Always), (20, Monitor::Off), (30, Monitor::Always)];
    let registry = registered(UnitKind::Storage, Profile::default(), &duty, &[]);
    let rules = [rule("r", T, range(10.0, 0.0, 0), 10, Some(50))];
    let readings = [series("t1", T, "5:11 25:11 33:11 40:11")];
    check(
        &rules,
        registry,
        &readings,
        45,
        &["u1/t1 r 5 15 20 extreme 11 known 15 + 0", "u1/t1 r 33 43 .. extreme 11 known 12 + 0"],
    );
}

#[test]
fn a_suspended_rule_fires_later_and_what_must_never_be_fires_at_once() {
    let pending = rule("r", T, suspended(DEFROST, None), 10, Some(50));
    let readings = |t1: &str| [series("t1", T, t1), series("d1", Kind::Defrost, "5:1 15:0")];
    // Suspended [5, 20): 5 ms count before it, and 5 after it.
    check(
        std::slice::from_ref(&pending),
        Registry::default(),
        &readings("0:11 40:9"),
        50,
        &["u1/t1 r 0 25 40 extreme 11 known 40 + 0"],
    );
    let at_once = rule("r", T, suspended(DEFROST, None), 0, Some(4));
    // A reading holds for 4, a suspending one too, so suspended is [5, 14). Nothing holds at its end, and yet nothing
    // has ended what is pending.
    check(&[at_once], Registry::default(), &readings("7:11 30:9"), 50, &["u1/t1 r 7 14 30 extreme 11 known 4 + 19"]);
    let never = rule("r", T, suspended(DEFROST, Some(12.0)), 10, Some(50));
    check(
        &[never],
        Registry::default(),
        &readings("6:11 8:12.5 12:9"),
        50,
        &["u1/t1 r 6 8 12 extreme 12.5 known 6 + 0"],
    );
    // Two stretches that overlap are one, and that is cut off after 12 ms.
    let twice = Suspension { at_most_ms: 12, ..DEFROST };
    let readings = [
        series("t1", T, "0:11 40:9"),
        series("d1", Kind::Defrost, "5:1 8:0"),
        series("d2", Kind::Defrost, "13:1 30:0"),
    ];
    check(
        &[rule("r", T, suspended(twice, None), 10, Some(50))],
        Registry::default(),
        &readings,
        50,
        &["u1/t1 r 0 22 40 extreme 11 known 40 + 0"],
    );
}

#[test]
fn a_budget_is_used_up_at_an_instant_and_free_again_at_another() {
    let condition = Condition::Cumulative { limits: high(10.0), window: Window::Rolling(20), budget_ms: 10 };
    let rules = [rule("r", T, condition, 0, Some(50))];
    // Out [0, 12): used up at 10; at 22 what is left in the window is 10, and less from then on.
    check(&rules, Registry::default(), &[series("t1", T, "0:11 12:9")], 40, &["u1/t1 r 10 10 22"]);
    // Out [0, 5) and [15, 20): at 20 the sum is 10 for no longer than an instant.
    check(&rules, Registry::default(), &[series("t1", T, "0:11 5:9 15:11 20:9")], 40, &["u1/t1 r 20 20 20"]);
    // Used up when duty ends, and still when it begins again.
    let duty = [(0, Monitor::Always), (12, Monitor::Off), (15, Monitor::Always)];
    let registry = registered(UnitKind::Storage, Profile::default(), &duty, &[]);
    check(&rules, registry, &[series("t1", T, "0:11")], 40, &["u1/t1 r 10 10 12", "u1/t1 r 15 15 22"]);
}

#[test]
fn a_budget_for_goods_lasts_until_they_are_unloaded() {
    let condition = Condition::Cumulative { limits: high(10.0), window: Window::Consignment, budget_ms: 10 };
    let rules = [rule("r", T, condition, 0, Some(50))];
    let goods = [(5, Some(40)), (18, Some(60))];
    let registry = registered(UnitKind::Storage, Profile::default(), &[], &goods);
    // Out [5, 20) while loaded, as what was read at 0 holds then: used up at 15, and gone with the goods at 40, as those that stay have seen 2 ms.
    let readings = [series("t1", T, "0:11 6:11 20:9")];
    check(&rules, registry.clone(), &readings, 80, &["u1/t1 r 15 15 40"]);
    // Out [5, 30): those that stay have seen 12 ms.
    check(&rules, registry, &[series("t1", T, "0:11 6:11 30:9")], 80, &["u1/t1 r 15 15 60"]);
}

#[test]
fn the_mean_kinetic_temperature_is_that_of_the_pharmacopoeias() {
    let rules = |high, min_known_ms| {
        let condition = Condition::MeanKineticTemperature {
            window: Window::Rolling(24),
            high,
            hysteresis: 0.0,
            keep_firing_for_ms: 0,
            delta_h: 83.144,
            min_known_ms,
        };
        [rule("r", T, condition, 0, Some(50))]
    };
    // An hour is a millisecond here; a reading has no weight yet at its own time.
    for (text, mean) in [("0:20 12:30 24:0", 26.26), ("0:5 18:14 24:0", 8.285), ("0:5 22:15 24:0", 6.462)] {
        let below = [format!("u1/t1 r 24 24 .. extreme {mean} known 0 + 0")];
        let below: Vec<&str> = below.iter().map(String::as_str).collect();
        check(&rules(mean - 0.001, None), Registry::default(), &[series("t1", T, text)], 24, &below);
        check(&rules(mean, None), Registry::default(), &[series("t1", T, text)], 24, &[]);
    }
    // Unknown at 0 and, with 6 known of the last 24, at 40: the episode goes on until 50, when 10 of 24 are known.
    let readings = [series("t1", T, "0:20 10:20 16:_ 40:5 50:5")];
    check(&rules(15.0, Some(8)), Registry::default(), &readings, 55, &["u1/t1 r 10 10 50 extreme 20 known 16 + 24"]);
}

#[test]
fn a_rate_is_the_largest_difference_within_its_window() {
    let condition = Condition::Rate { per_ms: 10, rise: Some(2.0), fall: Some(3.0), keep_firing_for_ms: 0 };
    let rules = [rule("r", T, condition, 0, Some(50))];
    // At 10 the reading at 0 is still in the window, at 21 that at 10 is not; 3 down at 30 from 20 is a fall.
    let readings = [series("t1", T, "0:4 10:6 21:6.5 25:6 30:3.5 45:3.5")];
    check(
        &rules,
        Registry::default(),
        &readings,
        50,
        &["u1/t1 r 10 10 21 extreme 2 known 11 + 0", "u1/t1 r 30 30 45 extreme 3 known 15 + 0"],
    );
}

#[test]
fn silence_runs_from_the_last_sign_of_life() {
    let silent = |scope| [rule("r", T, Condition::Silence { scope }, 5, Some(10))];
    let readings = [series("t1", T, "0:5 20:_ 40:5"), series("d1", Kind::Defrost, "33:0")];
    check(&silent(SilenceScope::Sensor), Registry::default(), &readings, 55, &["u1/t1 r 10 15 40", "u1/t1 r 50 55 .."]);
    // A failed probe and another sensor show that the link is up: [10, 20), [30, 33) and [50, 55] remain.
    check(&silent(SilenceScope::Unit), Registry::default(), &readings, 55, &["u1/- r 10 15 20", "u1/- r 50 55 .."]);
}

#[test]
fn cadence_compares_what_was_made_with_what_was_due() {
    let condition = Condition::Cadence { every_ms: 5, every_out_ms: Some(2), share: 0.9, window_ms: 20 };
    let rules = [rule("r", T, condition, 0, Some(50))];
    let registry = || {
        let profile = Profile { temperature: high(10.0), ..Profile::default() };
        registered(UnitKind::Storage, profile, &[], &[])
    };
    // The first full window after the first reading is [20, 40): 4 due, 3 made. In [40, 60) 4 of 4.
    // In [60, 80) the value is out from 70 on: 2 + 5 due, 4 made. [80, 100) has none of 10.
    let readings = [series("t1", T, "3:5 20:5 25:5 30:_ 35:5 40:5 45:5 50:5 55:5 60:5 65:5 70:11 75:11 100:5")];
    check(&rules, registry(), &readings, 119, &["u1/t1 r 20 40 40", "u1/t1 r 60 80 .."]);
    let readings = [series("t1", T, "3:5 20:5 25:5 30:_ 35:5 40:5 45:5 50:5 55:5 60:5 65:5 70:11 75:11")];
    check(&rules, registry(), &readings, 79, &["u1/t1 r 20 40 40"]);
}

#[test]
fn a_value_is_stuck_while_nothing_differs() {
    let rules = [rule("r", T, Condition::Stuck { min_readings: 3 }, 20, Some(5))];
    let readings = [series("t1", T, "0:4 5:5 10:5.0000001 15:_ 25:5 30:5 40:6 45:6 70:6")];
    check(&rules, Registry::default(), &readings, 80, &["u1/t1 r 5 25 40", "u1/t1 r 40 70 .."]);
}

#[test]
fn sensors_disagree_while_two_of_them_hold() {
    let condition = Condition::Disagreement { limit: 2.0, hysteresis: 0.5, keep_firing_for_ms: 0 };
    let rules = [rule("r", T, condition, 10, Some(20))];
    // 3 apart on [5, 20), as t1 holds until 20; then unknown until 30; t2 and t3 are 2 apart from 30: neither out nor
    // clear; at 50 the hold of t2 has ended, and at 55 both agree.
    let readings = [
        series("t1", T, "0:5"),
        series("t2", T, "5:8 30:8"),
        series("t3", T, "30:6 50:6 55:6"),
        series("t4", T, "55:6"),
    ];
    check(&rules, Registry::default(), &readings, 60, &["u1/- r 5 15 55 extreme 3 known 35 + 15"]);
}

#[test]
fn the_limits_are_those_of_the_goods_and_of_several_the_strictest() {
    let condition = Condition::Range {
        limits: LimitSource::Profile,
        hysteresis: 0.0,
        keep_firing_for_ms: 0,
        never_below: None,
        never_above: None,
        suspend_while: None,
    };
    let rules = [Rule { selector: Selector::default(), ..rule("r", T, condition, 0, None) }];
    let own = Profile { temperature: high(5.0), record_storage_ms: Some(10), ..Profile::default() };
    let mut registry = registered(UnitKind::Storage, own, &[], &[(10, Some(30)), (20, Some(40))]);
    for (id, high_limit) in [("a", 8.0), ("b", 7.0)] {
        let profile = Profile { id: id.into(), temperature: high(high_limit), ..Profile::default() };
        registry.profiles.insert(id.into(), Profile { record_storage_ms: Some(20), ..profile });
    }
    let goods = registry.consignments.get_mut(&unit_key("u1")).unwrap();
    goods[0].profile = Some("a".into());
    goods[1].profile = Some("b".into());
    // 7.5 is out by the unit's own limit before 10 and after 40, within a's, and out by b's.
    let readings = [series("t1", T, "5:7.5 10:7.5 20:7.5 35:6 40:7.5 65:6")];
    check(
        &rules,
        registry,
        &readings,
        70,
        &[
            "u1/t1 r 5 5 10 extreme 7.5 known 5 + 0",
            "u1/t1 r 20 20 35 extreme 7.5 known 15 + 0",
            // The unit's own profile asks for a reading every 10 ms, so one holds for 20.
            "u1/t1 r 40 40 .. extreme 7.5 known 25 + 5",
        ],
    );
}

#[test]
fn a_new_version_starts_with_what_holds_then() {
    let version = |for_ms| rule("r", T, range(10.0, 0.0, 0), for_ms, Some(30));
    let era = |loaded_at, rules| Era { loaded_at, rules, registry: Registry::default() };
    let readings = BTreeMap::from([series("t1", T, "0:11 40:11 45:9")]);
    let world =
        World { eras: vec![era(0, vec![version(10)]), era(20, vec![version(7)]), era(42, vec![])], readings, now: 60 };
    // The reading at 0 still holds at 20: [20, 30) is known, and 7 of it are over at 27.
    check_world(&world, &["u1/t1 r 0 10 20 extreme 11 known 20 + 0", "u1/t1 r 20 27 42 extreme 11 known 12 + 10"]);
}

fn at(millis: i64) -> Timestamp {
    Timestamp::from_millis(millis)
}

fn era_of(era: &Era) -> rules::Era {
    rules::Era {
        loaded_at: at(era.loaded_at),
        rules: era.rules.iter().cloned().map(Arc::new).collect(),
        registry: Arc::new(era.registry.clone()),
    }
}

/// Returns an engine that knows every configuration of a world.
fn engine_of(world: &World, settle_ms: i64) -> Engine {
    let mut engine = Engine::new(era_of(&world.eras[0]), settle_ms);
    for era in &world.eras[1..] {
        engine.reconfigure(era_of(era), settle_ms);
    }
    engine
}

/// Returns an episode as the second implementation tells it.
fn verdict(engine: &Engine, judged: &JudgedEpisode) -> Verdict {
    let subject = engine.subject(judged.series);
    let rule = engine.rule(judged.rule);
    let JudgedEpisode { episode, .. } = judged;
    let has_figures = match rule.condition {
        Condition::Silence { .. }
        | Condition::Cumulative { .. }
        | Condition::Cadence { .. }
        | Condition::Stuck { .. } => false,
        _ => episode.resolved_at.is_some(),
    };
    Verdict {
        unit: subject.unit.clone(),
        sensor: subject.sensor.map(Into::into),
        rule: rule.id.clone(),
        episode: Episode {
            started_at: episode.started_at.as_millis(),
            fired_at: episode.fired_at.as_millis(),
            resolved_at: episode.resolved_at.map(Timestamp::as_millis),
            extreme: episode.extreme,
            excursion_and_unmonitored_ms: has_figures.then_some((episode.excursion_ms, episode.unmonitored_ms)),
        },
    }
}

/// Puts verdicts in order, without what differs as long as an episode goes on, and with figures in millionths.
fn comparable(mut verdicts: Vec<Verdict>) -> Vec<Verdict> {
    for Verdict { episode, .. } in &mut verdicts {
        episode.extreme = episode.extreme.map(|value| (value * 1e6).round() / 1e6);
        if episode.resolved_at.is_none() {
            episode.excursion_and_unmonitored_ms = None;
        }
    }
    verdicts.sort_by_key(Verdict::order);
    verdicts
}

/// Judges everything at once, in the order of event time.
fn judge_at_once(world: &World) -> Vec<Verdict> {
    let engine = engine_of(world, 0);
    let mut verdicts = Vec::new();
    for unit in world.units() {
        let mut engine = engine.blank_for_unit(unit);
        let of_unit = world.readings.iter().filter(|(series, _)| series.unit == *unit);
        let points: Vec<(SeriesId, Vec<Point>)> = of_unit
            .map(|(series, readings)| {
                let point = |(time, value): &(i64, Option<f64>)| (*time, value.unwrap_or(f64::NAN));
                (engine.series(series), readings.iter().map(point).collect())
            })
            .collect();
        let points: Vec<(SeriesId, &[Point])> = points.iter().map(|(id, points)| (*id, &points[..])).collect();
        let judged = judge_unit(&mut engine, unit, &points, at(world.now));
        verdicts.extend(judged.iter().map(|judged| verdict(&engine, judged)));
    }
    verdicts
}

/// Unit, sensor (none for a whole unit), version of a rule, and start.
type EpisodeKey = (UnitKey, Option<Box<str>>, RuleIndex, i64);

/// Everything that a daemon does with readings as they come: it judges them live, judges units again where something
/// came late, restarts now and then, and tells an outsider.
struct Daemon<'w> {
    world: &'w World,
    engine: Engine,
    settle_ms: i64,
    now: i64,
    /// The clock of arrival, which runs apart from the rules' *now* where readings bring their own time.
    arrived_at: i64,
    /// How many of the configurations have been loaded.
    eras: usize,
    accepted: BTreeMap<SeriesKey, BTreeMap<i64, Option<f64>>>,
    /// Units into whose past something was put, and from when on.
    dirty: BTreeMap<UnitKey, i64>,
    /// States of units to judge again from, with the newest instant that each has seen.
    checkpoints: BTreeMap<UnitKey, BTreeMap<i64, Vec<u8>>>,
    /// What the outsider knows.
    told: BTreeMap<EpisodeKey, JudgedEpisode>,
    events: BTreeSet<&'static str>,
}

impl<'w> Daemon<'w> {
    fn new(world: &'w World, settle_ms: i64) -> Self {
        let engine = Engine::new(era_of(&world.eras[0]), settle_ms);
        Self {
            world,
            engine,
            settle_ms,
            now: world.eras[0].loaded_at,
            arrived_at: 0,
            eras: 1,
            accepted: BTreeMap::new(),
            dirty: BTreeMap::new(),
            checkpoints: BTreeMap::new(),
            told: BTreeMap::new(),
            events: BTreeSet::new(),
        }
    }

    /// Takes in what the engine tells. It must fit to what it told before, unless that is to be judged again anyway.
    fn hear(&mut self, transitions: Vec<Transition>) {
        for transition in transitions {
            let Transition { rule, series, change, .. } = transition;
            let (episode, fits): (_, fn(&rules::Episode, &rules::Episode) -> bool) = match change {
                Change::Fired(episode) => (episode, |_, _| false),
                Change::Resolved(episode) => (episode, |known, _| known.resolved_at.is_none()),
                Change::Updated(episode) => (episode, |known, now| known.resolved_at == now.resolved_at),
                Change::Reopened(episode) => (episode, |known, _| known.resolved_at.is_some()),
                Change::Retracted(episode, _) => (episode, |known, now| known.fired_at == now.fired_at),
                Change::Pending { .. } | Change::PendingEnded { .. } => continue,
            };
            let subject = self.engine.subject(series);
            let unit = subject.unit.clone();
            let key = (unit.clone(), subject.sensor.map(Into::into), rule, episode.started_at.as_millis());
            let known = match change {
                Change::Retracted(..) => self.told.remove(&key),
                _ => self.told.insert(key, JudgedEpisode { rule, series, episode }),
            };
            if matches!(change, Change::Reopened(_) | Change::Retracted(..)) {
                self.events.insert("told and taken back");
            }
            let fits = known.map_or(matches!(change, Change::Fired(_)), |known| fits(&known.episode, &episode));
            assert!(fits || self.dirty.contains_key(&unit), "{transition:?} does not fit to {known:?}");
        }
    }

    /// Lets time pass up to an instant, and loads each configuration at its own.
    fn tick(&mut self, now: i64) {
        while let Some(era) = self.world.eras.get(self.eras).filter(|era| era.loaded_at <= now.max(self.now)) {
            // What would only just be true at that instant by the rules before is not told any more.
            self.now = self.now.max(era.loaded_at - 1);
            self.advance();
            self.now = self.now.max(era.loaded_at);
            self.engine.reconfigure(era_of(era), self.settle_ms);
            self.eras += 1;
            for unit in self.units() {
                // Readings of then and later were judged by the version before; goods may have been entered late.
                let newest = self.accepted.iter().filter(|(series, _)| series.unit == unit);
                let newest = newest.filter_map(|(_, readings)| readings.last_key_value()).map(|(time, _)| *time).max();
                let (before, after) = (&self.world.eras[self.eras - 2].registry, &era.registry);
                if newest.is_none() {
                    continue;
                }
                if before.consignments.get(&unit) != after.consignments.get(&unit) {
                    self.events.insert("goods entered late");
                    self.dirty.insert(unit, i64::MIN);
                } else if newest.is_some_and(|newest| newest >= era.loaded_at) {
                    let from = self.dirty.entry(unit).or_insert(era.loaded_at);
                    *from = (*from).min(era.loaded_at);
                }
            }
        }
        self.now = self.now.max(now);
        self.advance();
    }

    fn advance(&mut self) {
        self.engine.arrive_at(at(self.arrived_at));
        let deadline = self.engine.next_deadline();
        let quiet_at = self.engine.next_quiet();
        let mut transitions = Vec::new();
        self.engine.advance(at(self.now), &mut transitions);
        let is_due = deadline.is_some_and(|deadline| deadline <= at(self.now))
            || quiet_at.is_some_and(|quiet_at| quiet_at <= at(self.arrived_at));
        assert!(transitions.is_empty() || is_due, "the deadline was too late");
        self.hear(transitions);
        let mut again = Vec::new();
        self.engine.advance(at(self.now), &mut again);
        assert_eq!(again, [], "a repeated call tells nothing");
    }

    fn take(&mut self, (series, time, value): &Arrival) {
        let readings = self.accepted.entry(series.clone()).or_default();
        let newest = readings.last_key_value().map(|(newest, _)| *newest);
        if readings.contains_key(time) {
            return;
        }
        readings.insert(*time, *value);
        let mut is_late = newest.is_some_and(|newest| *time < newest);
        if !is_late {
            let id = self.engine.series(series);
            let reading = Reading { event_time: at(*time), value: *value, quality: Quality::GOOD };
            let mut transitions = Vec::new();
            is_late = self.engine.observe(id, &reading, at(self.now), &mut transitions) == Timeliness::LateForUnit;
            self.hear(transitions);
        }
        if is_late {
            let from = self.dirty.entry(series.unit.clone()).or_insert(*time);
            *from = (*from).min(*time);
        }
    }

    fn units(&self) -> Vec<UnitKey> {
        self.world.units().into_iter().cloned().collect()
    }

    /// Judges again what is dirty, from the newest checkpoint before it.
    fn judge_again(&mut self, checkpoint_spacing_ms: i64) {
        for (unit, from) in std::mem::take(&mut self.dirty) {
            self.events.insert("judged again");
            let mut engine = self.engine.blank_for_unit(&unit);
            let checkpoints = self.checkpoints.entry(unit.clone()).or_default();
            checkpoints.split_off(&from);
            if let Some((_, state)) = checkpoints.last_key_value() {
                self.events.insert("judged again from a checkpoint");
                engine.restore_unit(&unit, state).unwrap();
            }
            let mut points: Vec<(SeriesId, Vec<Point>)> = Vec::new();
            for (series, readings) in self.accepted.iter().filter(|(series, _)| series.unit == unit) {
                let id = engine.series(series);
                let after = engine.newest(id).map_or(i64::MIN, Timestamp::as_millis);
                let readings = readings.iter().filter(|(time, _)| **time > after);
                points.push((id, readings.map(|(time, value)| (*time, value.unwrap_or(f64::NAN))).collect()));
            }
            let points: Vec<(SeriesId, &[Point])> = points.iter().map(|(id, points)| (*id, &points[..])).collect();
            // What the checkpoint has settled stays; everything else is told anew.
            for (rule, series, from) in engine.unsettled_from(&unit) {
                let subject = engine.subject(series);
                let sensor: Option<Box<str>> = subject.sensor.map(Into::into);
                self.told.retain(|(told_unit, told_sensor, told_rule, started_at), _| {
                    (told_unit, told_sensor, *told_rule) != (&unit, &sensor, rule) || at(*started_at) < from
                });
            }
            let now = at(self.now);
            let judged =
                judge_unit_in_steps(&mut engine, &unit, &points, now, checkpoint_spacing_ms, &mut |e, newest| {
                    checkpoints.extend(e.checkpoint_unit(&unit).map(|state| (newest.as_millis(), state)));
                });
            for judged in judged {
                let sensor = engine.subject(judged.series).sensor.map(Into::into);
                let series = match &sensor {
                    Some(sensor) => {
                        let kind = engine.subject(judged.series).kind.expect("a sensor's series is of a kind");
                        self.engine.series(&SeriesKey { unit: unit.clone(), sensor: Box::clone(sensor), kind })
                    }
                    None => judged.series,
                };
                let started_at = judged.episode.started_at.as_millis();
                let key = (unit.clone(), sensor, judged.rule, started_at);
                let known = self.told.insert(key.clone(), JudgedEpisode { series, ..judged });
                assert_eq!(known, None, "what was settled is not told again, {key:?} from {from}");
            }
            self.engine.replace_unit(&unit, &engine);
        }
    }

    /// Goes on with another engine that knows nothing but what was written down.
    fn restart(&mut self) {
        let mut engine = Engine::new(era_of(&self.world.eras[0]), self.settle_ms);
        for era in &self.world.eras[1..self.eras] {
            engine.reconfigure(era_of(era), self.settle_ms);
        }
        for unit in self.units() {
            if let Some(state) = self.engine.snapshot_unit(&unit) {
                engine.restore_unit(&unit, &state).unwrap();
            }
        }
        self.engine = engine;
    }

    /// Returns what the outsider knows in the end.
    fn verdicts(mut self) -> (Vec<Verdict>, BTreeSet<&'static str>) {
        for unit in self.units() {
            for firing in self.engine.firing(&unit) {
                let sensor = self.engine.subject(firing.series).sensor.map(Into::into);
                let key = (unit.clone(), sensor, firing.rule, firing.episode.started_at.as_millis());
                let told = self.told.get_mut(&key).expect("what fires was told");
                assert_eq!(told.episode.resolved_at, None);
                told.episode = firing.episode;
            }
        }
        let verdicts = self.told.iter().map(|((unit, sensor, ..), judged)| Verdict {
            unit: unit.clone(),
            sensor: sensor.clone(),
            ..verdict(&self.engine, judged)
        });
        (verdicts.collect(), self.events)
    }
}

/// Judges readings as they arrive, while time passes and the daemon restarts between them.
fn judge_live(world: &World, arrivals: &[Arrival], random: &mut Random) -> (Vec<Verdict>, BTreeSet<&'static str>) {
    let settle_ms = random.pick(&[0, 0, 3, 10]);
    let checkpoint_spacing_ms = random.pick(&[10, 40]);
    let mut daemon = Daemon::new(world, settle_ms);
    for arrival in arrivals {
        for _ in 0..random.below(3) {
            daemon.arrived_at += random.pick(&[0, 1, 5, 20]);
            let now = daemon.now + random.pick(&[0, 1, 5, 20, 60, 200]);
            daemon.tick(now.min(world.now));
        }
        if random.one_in(6) {
            daemon.judge_again(checkpoint_spacing_ms);
        }
        if random.one_in(8) {
            daemon.restart();
        }
        daemon.take(arrival);
    }
    daemon.arrived_at += settle_ms;
    daemon.tick(world.now + settle_ms);
    daemon.judge_again(checkpoint_spacing_ms);
    daemon.advance();
    daemon.verdicts()
}

/// The story that is being told, to be shown if that fails.
struct Story<'w> {
    seed: u64,
    world: &'w World,
}

impl Drop for Story<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("seed {}:\n{}", self.seed, self.world);
        }
    }
}

/// How many stories are told where the environment does not say.
const STORIES_DEFAULT: u64 = 800;

/// Tells stories, each with what the second implementation finds, and counts the awkward cases in them: of each of
/// `cases` there must be at least one in a thousand.
fn tell_stories(
    first_seed: u64,
    times: u64,
    cases: &[&'static str],
    mut tell: impl FnMut(u64, &World, &[Verdict], &mut Random) -> BTreeSet<&'static str>,
) {
    let wanted = std::env::var("FROSTLINE_STORIES")
        .map_or(STORIES_DEFAULT, |text| text.parse().expect("FROSTLINE_STORIES is a number"));
    let stories = wanted * times;
    let mut counts: BTreeMap<&str, u64> = cases.iter().map(|case| (*case, 0)).collect();
    for seed in first_seed..first_seed + stories {
        let mut random = Random(seed);
        let world = World::random(&mut random);
        let mut coverage = Coverage::default();
        let expected = comparable(oracle::judge(&world, &mut coverage));
        let story = Story { seed, world: &world };
        let events = tell(seed, &world, &expected, &mut random);
        drop(story);
        for case in coverage.0.into_iter().chain(events) {
            *counts.entry(case).or_default() += 1;
        }
    }
    for (case, count) in counts {
        eprintln!("{case}: {count} of {stories} stories");
        let is_enough = count * 1000 >= stories || wanted < STORIES_DEFAULT || !cases.contains(&case);
        assert!(is_enough, "too few stories with {case}: {count} of {stories}");
    }
}

fn compare(how: &str, seed: u64, found: Vec<Verdict>, expected: &[Verdict]) {
    let found = comparable(found);
    if found != expected {
        let (found, expected) = (shown(&found), shown(expected));
        let only = |these: &[String], others: &[String]| -> Vec<String> {
            these.iter().filter(|one| !others.contains(one)).cloned().collect()
        };
        panic!("{how}, seed {seed}: found {:?}, expected {:?}", only(&found, &expected), only(&expected, &found));
    }
}

#[test]
fn the_engine_agrees_with_the_second_implementation() {
    tell_stories(0, 4, &AWKWARD_CASES, |seed, world, expected, _| {
        compare("at once", seed, judge_at_once(world), expected);
        BTreeSet::new()
    });
}

#[test]
fn the_engine_agrees_while_time_passes_between_readings_in_order() {
    let cases = ["told and taken back"];
    tell_stories(10_000_000, 1, &cases, |seed, world, expected, random| {
        let arrivals = world.in_order(random);
        let (found, events) = judge_live(world, &arrivals, random);
        compare("live in order", seed, found, expected);
        events
    });
}

#[test]
fn late_readings_are_judged_as_if_they_had_come_in_time() {
    let cases = ["judged again", "judged again from a checkpoint", "told and taken back", "goods entered late"];
    tell_stories(20_000_000, 1, &cases, |seed, world, expected, random| {
        let arrivals = world.arrivals(random);
        let (found, events) = judge_live(world, &arrivals, random);
        compare("live in any order", seed, found, expected);
        events
    });
}

/// What stories must not do without.
const AWKWARD_CASES: [&str; 33] = [
    "a budget reached at the end of duty",
    "a budget still used up when duty begins",
    "a budget used up exactly and no more",
    "a change of the rule while firing",
    "a change of the rule while held out",
    "a change of the rule while pending",
    "a distance changed by the end of a hold",
    "a failed window and then a kept one",
    "a gap while firing",
    "a null while firing",
    "a null while pending",
    "a rate in both directions",
    "a reading at the edge of a window",
    "a second failed window in a row",
    "a sensor registered and never seen",
    "a silence as long as `for` exactly",
    "a silence that ended",
    "a suspension cut off by `at_most`",
    "a tie at `for`",
    "a tie at `keep_firing_for`",
    "a tie of `for` and the end of a hold",
    "a window that is not judged",
    "an episode of no length",
    "an unknown mean while firing",
    "at once in spite of a suspension",
    "fired at the end of a suspension",
    "goods unloaded while others stay, and the budget with them",
    "goods whose limits exclude each other",
    "neither out nor clear while firing",
    "stuck across a null",
    "suspension while pending",
    "suspensions merged into one",
    "the end of duty while firing",
];
