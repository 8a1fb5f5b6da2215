//! Three-state accounting against a second one that looks at every millisecond by itself.

use std::collections::BTreeMap;
use std::sync::Arc;

use frostline_core::accounting::{Account, Terms, UnitAccount};
use frostline_core::model::{
    Consignment, Kind, Limits, Monitor, Name, Profile, Quality, Reading, Registry, Sensor, Timestamp, Unit, UnitKey,
    UnitKind,
};
use frostline_core::rules::{
    Condition, LimitSource, Message, Rule, Selector, Severity, holding_time_ms, limits_in_force, micro,
};
use proptest::prelude::*;

/// The end of everything that happens here.
const END_MS: i64 = 200;

fn at(event_ms: i64) -> Timestamp {
    Timestamp::from_millis(event_ms)
}

fn unit_key() -> UnitKey {
    UnitKey { operator: Name::new("op1").unwrap(), unit: Name::new("u1").unwrap() }
}

fn rule(quantity: Kind, selector: Selector) -> Arc<Rule> {
    let limits = LimitSource::Fixed(Limits { low: None, high: Some(0.0) });
    let rule = Rule {
        id: "any".into(),
        quantity,
        severity: Severity::Notice,
        condition: Condition::Range {
            limits,
            hysteresis: 0.0,
            keep_firing_for_ms: 0,
            never_below: None,
            never_above: None,
            suspend_while: None,
        },
        for_ms: 0,
        max_gap_ms: None,
        selector,
        message: Message::default(),
        source: None,
        verified: false,
        version: "".into(),
    };
    Arc::new(Rule::new(rule).unwrap())
}

fn profile(id: &str, category: &str, high: Option<f64>) -> Profile {
    Profile {
        id: id.into(),
        category: category.into(),
        temperature: Limits { low: None, high },
        record_storage_ms: Some(10),
        ..Profile::default()
    }
}

/// A unit as it may be, with the goods that come and go.
#[derive(Clone, Debug)]
struct Scene {
    registry: Registry,
    rules: Vec<Arc<Rule>>,
    /// By sensor and kind.
    readings: BTreeMap<(String, Kind), Vec<Reading>>,
}

impl Scene {
    fn terms(&self) -> Terms {
        let seen = self.readings.keys().map(|(sensor, kind)| (sensor.as_str(), *kind));
        Terms::new(&self.registry, &self.rules, &unit_key(), seen)
    }

    fn account(&self, from_ms: i64, to_ms: i64) -> UnitAccount {
        let terms = self.terms();
        let oldest_ms = from_ms - terms.longest_hold_ms();
        let readings = terms.series().map(|(sensor, kind)| {
            let all = self.readings.get(&(sensor.to_owned(), kind)).map_or(&[][..], Vec::as_slice);
            let before = |end_ms: i64| all.partition_point(|reading| reading.event_time < at(end_ms));
            &all[before(oldest_ms.min(to_ms))..before(to_ms)]
        });
        terms.account(&readings.collect::<Vec<_>>(), at(from_ms), at(to_ms))
    }

    /// Adds up one millisecond after the other, each by the words of the definition.
    fn account_naively(&self, from_ms: i64, to_ms: i64) -> UnitAccount {
        let series: Vec<(String, Kind)> =
            self.terms().series().map(|(sensor, kind)| (sensor.to_owned(), kind)).collect();
        let mut account = self.terms().no_account();
        let unit = unit_key();
        for now in (from_ms..to_ms).map(at) {
            let profiles = self.registry.profiles_at(&unit, now);
            let Some(profile) = profiles.first().filter(|_| self.registry.is_on_duty(&unit_key(), now)) else {
                continue;
            };
            let (mut is_any_out, mut is_any_unknown, mut is_any_ruled) = (false, false, false);
            for ((sensor, kind), account) in series.iter().zip(&mut account.series) {
                let limits = limits_in_force(&self.registry, &unit_key(), *kind, now).unwrap_or_default();
                if limits == Limits::default() {
                    continue;
                }
                let is_out = self.is_out(sensor, *kind, now);
                match is_out {
                    Some(true) => account.excursion_ms += 1,
                    Some(false) => account.compliant_ms += 1,
                    None => account.unmonitored_ms += 1,
                }
                let is_selected = |rule: &Arc<Rule>| {
                    let selector = &rule.selector;
                    let category = selector.category.as_ref();
                    let wants = |category: &Vec<String>| {
                        profiles.iter().any(|profile| category.iter().any(|word| **word == *profile.category))
                    };
                    rule.quantity == *kind
                        && selector.sensor.as_ref().is_none_or(|wanted| wanted == sensor)
                        && category.is_none_or(wants)
                };
                if self.rules.iter().any(is_selected) {
                    is_any_ruled = true;
                    is_any_out |= is_out == Some(true);
                    is_any_unknown |= is_out.is_none();
                }
            }
            let of_category = account.by_category.entry(profile.category.clone()).or_default();
            match (is_any_out, is_any_unknown || !is_any_ruled) {
                (true, _) => of_category.excursion_ms += 1,
                (false, true) => of_category.unmonitored_ms += 1,
                (false, false) => of_category.compliant_ms += 1,
            }
        }
        account
    }

    /// Returns whether the value held at an instant is outside, if one is held that was ever compared with limits.
    fn is_out(&self, sensor: &str, kind: Kind, now: Timestamp) -> Option<bool> {
        let readings = self.readings.get(&(sensor.to_owned(), kind))?;
        let newest = readings.iter().rfind(|reading| reading.event_time <= now)?;
        let value = newest.value?;
        let held_ms = holding_time_ms(&self.registry, &unit_key(), sensor, newest.event_time);
        let has_held_since = now.millis_since(newest.event_time);
        let was_on_duty = |passed_ms| self.registry.is_on_duty(&unit_key(), newest.event_time.plus_millis(passed_ms));
        if has_held_since >= held_ms || !(0..=has_held_since).all(was_on_duty) {
            return None;
        }
        let limits = limits_in_force(&self.registry, &unit_key(), kind, newest.event_time)?;
        if limits == Limits::default() {
            return None;
        }
        let is_low = limits.low.is_some_and(|low| micro(value) < micro(low));
        Some(is_low || limits.high.is_some_and(|high| micro(value) > micro(high)))
    }
}

fn readings() -> impl Strategy<Value = Vec<Reading>> {
    let reading = (-20..END_MS, prop_oneof![1 => Just(None), 8 => (-4..5_i32).prop_map(Some)]);
    prop::collection::vec(reading, 0..25).prop_map(|mut all| {
        all.sort_by_key(|(event_ms, _)| *event_ms);
        all.dedup_by_key(|(event_ms, _)| *event_ms);
        let reading = |(event_ms, value): (i64, Option<i32>)| Reading {
            event_time: at(event_ms),
            value: value.map(f64::from),
            quality: Quality::GOOD,
        };
        all.into_iter().map(reading).collect()
    })
}

fn rules() -> impl Strategy<Value = Vec<Arc<Rule>>> {
    let quantity = prop_oneof![3 => Just(Kind::Temperature), 1 => Just(Kind::Humidity)];
    let sensor = prop_oneof![2 => Just(None), 1 => Just(Some("t1".to_owned()))];
    let category = prop_oneof![2 => Just(None), 1 => Just(Some(vec!["frozen".to_owned()]))];
    let rule = (quantity, sensor, category)
        .prop_map(|(quantity, sensor, category)| rule(quantity, Selector { sensor, category, ..Selector::default() }));
    prop::collection::vec(rule, 0..3)
}

fn scene() -> impl Strategy<Value = Scene> {
    let monitor = prop_oneof![Just(Monitor::Always), Just(Monitor::Loaded), Just(Monitor::Off)];
    let monitor = prop::collection::vec((0..END_MS, monitor), 0..3);
    let goods = (0..END_MS, prop::option::of(0..80_i64), prop::option::of(prop::bool::ANY));
    let goods = prop::collection::vec(goods, 0..4);
    let own_profile = prop::option::of(prop_oneof![Just("frozen"), Just("chilled"), Just("humid"), Just("free")]);
    let registered =
        prop::collection::btree_map(prop_oneof![Just("t1"), Just("t9")], prop::option::of(1..40_i64), 0..3);
    let series = (readings(), readings(), readings(), any::<bool>());
    (monitor, goods, own_profile, registered, series, rules()).prop_map(
        |(mut monitor, goods, own_profile, registered, (first, second, humid, has_door), rules)| {
            let mut registry = Registry::default();
            let mut humid_profile = profile("humid", "frozen", None);
            humid_profile.humidity = Limits { low: Some(-1.0), high: Some(2.0) };
            for profile in
                [profile("frozen", "frozen", Some(0.0)), profile("chilled", "chilled", Some(2.0)), humid_profile]
            {
                registry.profiles.insert(profile.id.clone(), profile);
            }
            registry.profiles.insert("free".into(), profile("free", "chilled", None));
            monitor.sort_by_key(|(from, _)| *from);
            let unit = Unit {
                key: unit_key(),
                kind: UnitKind::Storage,
                site: None,
                jurisdiction: None,
                profile: own_profile.map(Into::into),
                monitor: monitor.into_iter().map(|(from, monitor)| (at(from), monitor)).collect(),
                labels: BTreeMap::new(),
            };
            registry.units.insert(unit_key(), unit);
            let goods = goods.into_iter().enumerate().map(|(number, (from, stay_ms, is_frozen))| Consignment {
                id: number.to_string().into(),
                unit: unit_key(),
                profile: is_frozen.map(|is_frozen| if is_frozen { "frozen" } else { "chilled" }.into()),
                lot: None,
                from: at(from),
                to: stay_ms.map(|stay_ms| at(from + stay_ms)),
            });
            registry.consignments.insert(unit_key(), goods.collect());
            let sensors = registered.into_iter().map(|(id, max_gap_ms)| {
                let id: Box<str> = id.into();
                let (placement, calibration_due) = (None, None);
                (id.clone(), Sensor { unit: unit_key(), id, placement, max_gap_ms, calibration_due })
            });
            registry.sensors.insert(unit_key(), sensors.collect());
            let mut readings = BTreeMap::new();
            for (name, kind, list) in
                [("t1", Kind::Temperature, first), ("t2", Kind::Temperature, second), ("h1", Kind::Humidity, humid)]
            {
                if !list.is_empty() {
                    readings.insert((name.to_owned(), kind), list);
                }
            }
            if has_door {
                let open = Reading { event_time: at(1), value: Some(1.0), quality: Quality::GOOD };
                readings.insert(("t9".to_owned(), Kind::Door), vec![open]);
            }
            Scene { registry, rules, readings }
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, ..ProptestConfig::default() })]

    #[test]
    fn it_is_what_every_millisecond_by_itself_adds_up_to(scene in scene(), from in 0..END_MS, to in 0..END_MS + 50) {
        prop_assert_eq!(scene.account(from, to), scene.account_naively(from, to));
    }

    #[test]
    fn a_period_is_the_sum_of_its_parts(scene in scene(), mut cuts in prop::collection::vec(0..END_MS, 2..6)) {
        cuts.sort_unstable();
        let whole = scene.account(cuts[0], cuts[cuts.len() - 1]);
        let mut sum = scene.terms().no_account();
        for cut in cuts.windows(2) {
            sum += scene.account(cut[0], cut[1]);
        }
        prop_assert_eq!(sum, whole);
    }

    #[test]
    fn the_three_states_add_up_to_the_time_on_duty_with_a_profile(scene in scene()) {
        let account = scene.account(0, END_MS);
        let is_counted = |now: &i64| {
            let now = at(*now);
            scene.registry.is_on_duty(&unit_key(), now) && !scene.registry.profiles_at(&unit_key(), now).is_empty()
        };
        let on_duty_ms = (0..END_MS).filter(is_counted).count() as i64;
        let counted_ms: i64 = account.by_category.values().map(Account::on_duty_ms).sum();
        prop_assert_eq!(counted_ms, on_duty_ms);
    }
}

const MINUTE_MS: i64 = 60_000;

/// A freezer whose sensors have sent one value a minute, `None` where a minute is missing.
fn freezer(sensors: &[(&str, &[Option<f64>])]) -> Scene {
    let mut registry = Registry::default();
    let frozen = Profile { record_storage_ms: Some(MINUTE_MS), ..profile("frozen", "food", Some(-18.0)) };
    registry.profiles.insert("frozen".into(), frozen);
    let unit = Unit {
        key: unit_key(),
        kind: UnitKind::Storage,
        site: None,
        jurisdiction: None,
        profile: Some("frozen".into()),
        monitor: Vec::new(),
        labels: BTreeMap::new(),
    };
    registry.units.insert(unit_key(), unit);
    let series = sensors.iter().map(|(sensor, values)| {
        let readings = (0..).zip(*values).filter_map(|(minute, value)| {
            Some(Reading { event_time: at(minute * MINUTE_MS), value: Some((*value)?), quality: Quality::GOOD })
        });
        ((String::from(*sensor), Kind::Temperature), readings.collect())
    });
    Scene { registry, rules: vec![rule(Kind::Temperature, Selector::default())], readings: series.collect() }
}

fn minutes(account: Account) -> [i64; 3] {
    [account.compliant_ms, account.excursion_ms, account.unmonitored_ms].map(|ms| ms / MINUTE_MS)
}

fn unit_minutes(scene: &Scene) -> [i64; 3] {
    minutes(scene.account(0, 10 * MINUTE_MS).by_category["food"])
}

const COLD: Option<f64> = Some(-20.0);
const WARM: Option<f64> = Some(-17.999_999);
/// Good to the last millionth; what is beyond it does not count.
const LIMIT: Option<f64> = Some(-17.999_999_6);

#[test]
fn a_value_holds_until_the_next_or_for_two_intervals_and_then_nothing_is_known() {
    let scene = freezer(&[("t1", &[COLD, COLD, WARM, LIMIT, None, None, None, COLD])]);
    assert_eq!(unit_minutes(&scene), [6, 1, 3]);
    assert_eq!(minutes(scene.account(0, 10 * MINUTE_MS).series[0]), [6, 1, 3]);
}

#[test]
fn a_unit_is_as_bad_as_its_worst_sensor() {
    let scene = freezer(&[("t1", &[COLD; 10]), ("t2", &[COLD, COLD, WARM, WARM, None, None, COLD, COLD, COLD, COLD])]);
    assert_eq!(unit_minutes(&scene), [6, 3, 1]);
}

#[test]
fn a_registered_sensor_that_never_sent_anything_makes_its_unit_unmonitored() {
    let mut scene = freezer(&[("t1", &[COLD, COLD, WARM, COLD, COLD, COLD, COLD, COLD, COLD, COLD])]);
    let sensor = Sensor { unit: unit_key(), id: "t2".into(), placement: None, max_gap_ms: None, calibration_due: None };
    scene.registry.sensors.entry(unit_key()).or_default().insert("t2".into(), sensor);
    assert_eq!(unit_minutes(&scene), [0, 1, 9]);
}

#[test]
fn a_unit_without_any_rule_is_unmonitored_whatever_its_sensors_say() {
    let mut scene = freezer(&[("t1", &[COLD; 10])]);
    scene.rules.clear();
    assert_eq!(unit_minutes(&scene), [0, 0, 10]);
    assert_eq!(minutes(scene.account(0, 10 * MINUTE_MS).series[0]), [10, 0, 0]);
}

#[test]
fn a_sensor_that_no_rule_selects_does_not_matter_to_its_unit() {
    let mut scene = freezer(&[("t1", &[COLD; 10]), ("probe", &[WARM; 10])]);
    scene.rules = vec![rule(Kind::Temperature, Selector { sensor: Some("t*".into()), ..Selector::default() })];
    assert_eq!(unit_minutes(&scene), [10, 0, 0]);
}

#[test]
fn what_is_not_registered_has_no_profile_and_no_account() {
    let mut scene = freezer(&[("t1", &[COLD; 10])]);
    scene.registry.units.clear();
    assert_eq!(scene.account(0, 10 * MINUTE_MS).by_category, BTreeMap::new());
}
