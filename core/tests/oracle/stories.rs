//! Random worlds: a unit or two with their duty, goods and sensors, some rules, changes of both, and readings on a
//! coarse grid, so that ties are common. In which order the readings arrive is a matter of its own.

use std::collections::BTreeMap;
use std::fmt;

use frostline_core::model::{
    Consignment, Kind, Limits, Monitor, Name, Profile, Registry, Sensor, SeriesKey, Timestamp, Unit, UnitKey, UnitKind,
};
use frostline_core::rules::{
    Condition, LimitSource, Message, Rule, Selector, Severity, SilenceScope, Suspension, Window,
};

use super::{Era, World};

/// A small generator of random numbers (splitmix64).
#[derive(Clone)]
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    pub(crate) fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound as u64) as usize
    }

    pub(crate) fn pick<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[self.below(choices.len())]
    }

    pub(crate) fn one_in(&mut self, count: usize) -> bool {
        self.below(count) == 0
    }

    pub(crate) fn shuffle<T>(&mut self, items: &mut [T]) {
        for index in (1..items.len()).rev() {
            items.swap(index, self.below(index + 1));
        }
    }
}

pub(crate) fn unit_key(name: &str) -> UnitKey {
    UnitKey { operator: Name::new("op1").unwrap(), unit: Name::new(name).unwrap() }
}

pub(crate) fn series_key(unit: &str, sensor: &str, kind: Kind) -> SeriesKey {
    SeriesKey { unit: unit_key(unit), sensor: sensor.into(), kind }
}

/// Returns a rule with what a test cares for, and nothing said about the rest.
pub(crate) fn rule(id: &str, quantity: Kind, condition: Condition, for_ms: i64, max_gap_ms: Option<i64>) -> Rule {
    checked(Rule {
        id: id.into(),
        quantity,
        severity: Severity::Critical,
        condition,
        for_ms,
        max_gap_ms,
        selector: Selector::default(),
        message: Message::default(),
        source: None,
        verified: true,
        version: "".into(),
    })
}

fn checked(rule: Rule) -> Rule {
    let shown = format!("{rule:?}");
    Rule::new(rule).unwrap_or_else(|error| panic!("{error}: {shown}"))
}

fn at(millis: i64) -> Timestamp {
    Timestamp::from_millis(millis)
}

const TEMPERATURES: [f64; 14] =
    [-1.0, 0.0, 0.2, 0.5, 5.0, 9.5, 9.7, 10.0, 10.000_001, 10.000_000_1, 11.0, 11.0, 12.0, 12.0];
const HUMIDITIES: [f64; 8] = [10.0, 19.5, 20.0, 40.0, 60.0, 60.5, 75.0, 75.0];

/// One reading on its way: which series, when it was measured, and what.
pub(crate) type Arrival = (SeriesKey, i64, Option<f64>);

impl World {
    pub(crate) fn random(random: &mut Random) -> Self {
        let mut registry = Registry { profiles: random_profiles(random), ..Registry::default() };
        let mut readings = BTreeMap::new();
        for name in &["u1", "u2"][..if random.one_in(5) { 2 } else { 1 }] {
            random_readings(random, name, &mut readings);
            if !random.one_in(4) {
                register(random, name, &readings, &mut registry);
            }
        }
        let times = || readings.values().flatten().map(|(time, _)| *time);
        let (oldest, newest) = (times().min().unwrap_or(0), times().max().unwrap_or(0));
        let rules = (0..1 + random.below(3)).map(|index| random_rule(random, index)).collect();
        let mut eras = vec![Era { loaded_at: oldest, rules, registry }];
        if random.one_in(3) {
            for _ in 0..1 + random.below(2) {
                let loaded_at =
                    eras.last().expect("there is a first").loaded_at + random.pick(&[7, 20, 20, 35, 50, 81]);
                if loaded_at <= newest {
                    let mut era = Era { loaded_at, ..eras.last().expect("there is a first").clone() };
                    change(random, &mut era);
                    eras.push(era);
                }
            }
        }
        let last_change = eras.last().expect("there is a first").loaded_at;
        let mut now = (newest + random.pick(&[-5, 0, 0, 1, 5, 10, 20, 50])).max(last_change);
        // Readings of the future are for rules that look at one series and no window.
        if eras.iter().flat_map(|era| &era.rules).any(looks_further) {
            now = now.max(newest);
        }
        Self { eras, readings, now }
    }

    /// Returns all readings in the order of event time; what was measured at one instant comes in any order.
    pub(crate) fn in_order(&self, random: &mut Random) -> Vec<Arrival> {
        let all = self.readings.iter();
        let mut arrivals: Vec<Arrival> = all
            .flat_map(|(series, readings)| readings.iter().map(|(time, value)| (series.clone(), *time, *value)))
            .collect();
        random.shuffle(&mut arrivals);
        arrivals.sort_by_key(|(_, time, _)| *time);
        arrivals
    }

    /// Returns all readings in one of the orders in which they may arrive, some of them more than once.
    pub(crate) fn arrivals(&self, random: &mut Random) -> Vec<Arrival> {
        let mut arrivals = self.in_order(random);
        if arrivals.is_empty() {
            return arrivals;
        }
        match random.below(6) {
            0 => {}
            1 => random.shuffle(&mut arrivals),
            2 => {
                // Batches, in order or not, each of them in any order.
                let length = 1 + random.below(8);
                let mut batches: Vec<Vec<Arrival>> = arrivals.chunks(length).map(<[Arrival]>::to_vec).collect();
                if random.one_in(2) {
                    random.shuffle(&mut batches);
                }
                batches.iter_mut().for_each(|batch| random.shuffle(batch));
                arrivals = batches.concat();
            }
            3 => {
                // One series last and backwards.
                let keys: Vec<&SeriesKey> = self.readings.keys().collect();
                let series = random.pick(&keys);
                let (mut last, mut first): (Vec<_>, Vec<_>) = arrivals.into_iter().partition(|(key, ..)| key == series);
                last.reverse();
                first.append(&mut last);
                arrivals = first;
            }
            4 => {
                // One unit, or one series, is without a link for a while and then uploads its backlog in order.
                let keys: Vec<&SeriesKey> = self.readings.keys().collect();
                let series = random.pick(&keys);
                let whole_unit = random.one_in(2);
                let from = random.below(100) as i64;
                let is_held_back = |(key, time, _): &Arrival| {
                    (if whole_unit { key.unit == series.unit } else { key == series }) && *time >= from
                };
                let (mut last, mut first): (Vec<_>, Vec<_>) = arrivals.into_iter().partition(is_held_back);
                first.append(&mut last);
                arrivals = first;
            }
            _ => {
                // A few stray ones come much later.
                for _ in 0..1 + random.below(4) {
                    let late = arrivals.remove(random.below(arrivals.len()));
                    arrivals.insert(random.below(arrivals.len() + 1), late);
                }
            }
        }
        for _ in 0..random.below(4) {
            let again = arrivals[random.below(arrivals.len())].clone();
            arrivals.insert(random.below(arrivals.len() + 1), again);
        }
        arrivals
    }
}

fn looks_further(rule: &Rule) -> bool {
    match rule.condition {
        Condition::Range { suspend_while, .. } => suspend_while.is_some(),
        Condition::Cadence { .. } | Condition::Disagreement { .. } => true,
        _ => false,
    }
}

fn random_readings(random: &mut Random, unit: &str, readings: &mut BTreeMap<SeriesKey, Vec<(i64, Option<f64>)>>) {
    let mut add = |random: &mut Random, sensor: &str, kind: Kind, values: &[f64]| {
        let series = random_series(random, values);
        if !series.is_empty() {
            readings.insert(series_key(unit, sensor, kind), series);
        }
    };
    for sensor in &["t1", "t2", "t3", "t4"][..random.pick(&[1, 1, 1, 2, 2, 3, 4])] {
        add(random, sensor, Kind::Temperature, &TEMPERATURES);
    }
    if random.one_in(3) {
        // A sensor that measures both is named like one that measures the other.
        let sensor = random.pick(&["h1", "t1"]);
        add(random, sensor, Kind::Humidity, &HUMIDITIES);
    }
    for sensor in &["d1", "d2"][..random.pick(&[0, 1, 1, 2])] {
        add(random, sensor, Kind::Defrost, &[0.0, 0.0, 1.0]);
    }
}

fn random_series(random: &mut Random, values: &[f64]) -> Vec<(i64, Option<f64>)> {
    let mut readings = Vec::new();
    let mut time = random.pick(&[0, 0, 5, 25]);
    if random.one_in(3) {
        // A regular one that jumps between two values: sums come out even.
        let two = [random.pick(values), random.pick(values)];
        for _ in 0..random.below(25) {
            readings.push((time, Some(random.pick(&two))));
            time += random.pick(&[5, 5, 5, 5, 10]);
        }
        return readings;
    }
    let mut value = Some(random.pick(values));
    for _ in 0..random.below(25) {
        // Values come in runs, or nothing would ever hold for long.
        if random.one_in(3) {
            value = if random.one_in(6) { None } else { Some(random.pick(values)) };
        }
        readings.push((time, value));
        time += random.pick(&[1, 2, 5, 5, 5, 5, 10, 10, 15, 30]);
    }
    readings
}

fn random_profiles(random: &mut Random) -> BTreeMap<Box<str>, Profile> {
    let limits = |low, high| Limits { low, high };
    let profiles = [
        Profile {
            id: "p1".into(),
            category: "food".into(),
            temperature: limits(Some(0.0), Some(10.0)),
            humidity: limits(None, Some(60.0)),
            record_storage_ms: Some(5),
            record_transport_ms: random.pick(&[None, Some(4)]),
            ..Profile::default()
        },
        Profile {
            id: "p2".into(),
            category: "drug".into(),
            temperature: limits(Some(0.5), Some(11.0)),
            transport_temperature: limits(None, Some(9.7)),
            humidity: limits(Some(20.0), Some(75.0)),
            humidity_advisory: random.one_in(2),
            record_storage_ms: random.pick(&[None, Some(10)]),
            ..Profile::default()
        },
        Profile {
            id: "p3".into(),
            category: "food".into(),
            temperature: limits(Some(10.5), Some(11.5)),
            record_transport_ms: Some(7),
            ..Profile::default()
        },
    ];
    profiles.into_iter().map(|profile| (profile.id.clone(), profile)).collect()
}

fn register(
    random: &mut Random,
    name: &str,
    readings: &BTreeMap<SeriesKey, Vec<(i64, Option<f64>)>>,
    registry: &mut Registry,
) {
    let key = unit_key(name);
    let mut monitor = Vec::new();
    if random.one_in(2) {
        let mut from = 0;
        for _ in 0..random.below(4) {
            from += random.pick(&[5, 5, 10, 20, 35, 60]);
            monitor.push((at(from), random.pick(&[Monitor::Always, Monitor::Loaded, Monitor::Off])));
        }
    }
    let kind = random.pick(&[UnitKind::Storage, UnitKind::Storage, UnitKind::Transport]);
    let profile = random.pick(&[None, Some("p1"), Some("p2"), Some("p3")]);
    let unit = Unit {
        key: key.clone(),
        kind,
        site: None,
        jurisdiction: random.pick(&[None, Some("150100")]).map(Into::into),
        profile: profile.map(Into::into),
        monitor,
        labels: BTreeMap::new(),
    };
    registry.units.insert(key.clone(), unit);

    let goods = if kind == UnitKind::Transport { random.pick(&[1, 2, 3]) } else { random.pick(&[0, 1, 2, 3]) };
    for index in 0..goods {
        let from = 5 * random.below(20) as i64;
        let to = (!random.one_in(4)).then(|| from + random.pick(&[5, 20, 35, 60, 100]));
        let profile = random.pick(&[None, Some("p1"), Some("p2"), Some("p3")]);
        registry.consignments.entry(key.clone()).or_default().push(Consignment {
            id: format!("c-{name}-{index}").into(),
            unit: key.clone(),
            profile: profile.map(Into::into),
            lot: None,
            from: at(from),
            to: to.map(at),
        });
    }

    let seen = readings.keys().filter(|series| series.unit == key).map(|series| &*series.sensor);
    // One that never says anything, too.
    for sensor in seen.chain(["t9"]) {
        if random.one_in(2) {
            let max_gap_ms = random.pick(&[None, Some(7), Some(10), Some(20)]);
            let sensor =
                Sensor { unit: key.clone(), id: sensor.into(), placement: None, max_gap_ms, calibration_due: None };
            registry.sensors.entry(key.clone()).or_default().insert(sensor.id.clone(), sensor);
        }
    }
}

fn random_rule(random: &mut Random, index: usize) -> Rule {
    let limits = random.pick(&[(None, Some(10.0)), (Some(0.0), Some(10.0)), (Some(0.0), None), (Some(5.0), None)]);
    let limits = Limits { low: limits.0, high: limits.1 };
    let hysteresis = random.pick(&[0.0, 0.5, 2.5]);
    let keep_firing_for_ms = random.pick(&[0, 0, 5, 10, 15]);
    let window = if random.one_in(3) { Window::Consignment } else { Window::Rolling(random.pick(&[15, 20, 40, 60])) };
    let mut quantity = Kind::Temperature;
    let condition = match random.below(20) {
        0..6 => {
            let by_profile = random.one_in(2);
            if by_profile && random.one_in(3) {
                quantity = Kind::Humidity;
            }
            let suspend_while = (!random.one_in(3)).then(|| Suspension {
                quantity: Kind::Defrost,
                is: random.pick(&[1.0, 1.0, 1.0, 0.0]),
                plus_ms: random.pick(&[0, 5, 10]),
                at_most_ms: random.pick(&[10, 20, 45]),
            });
            let hysteresis = if by_profile { random.pick(&[0.0, 0.5]) } else { hysteresis };
            let has_high = quantity == Kind::Temperature && (by_profile || limits.high.is_some());
            let has_low = quantity == Kind::Temperature && (by_profile || limits.low == Some(0.0));
            Condition::Range {
                limits: if by_profile { LimitSource::Profile } else { LimitSource::Fixed(limits) },
                hysteresis,
                keep_firing_for_ms,
                never_below: (has_low && random.one_in(4)).then_some(-0.5),
                never_above: (has_high && random.one_in(3)).then_some(11.5),
                suspend_while,
            }
        }
        6..9 => {
            let budget_ms = random.pick(&[5, 10, 15]);
            Condition::Cumulative { limits, window, budget_ms }
        }
        9..11 => Condition::MeanKineticTemperature {
            window,
            high: random.pick(&[9.0, 10.0, 10.5]),
            hysteresis,
            keep_firing_for_ms,
            delta_h: random.pick(&[83.144, 83.144, 60.0]),
            min_known_ms: random.pick(&[None, Some(5), Some(10), Some(15)]),
        },
        11..13 => {
            let (rise, fall) =
                random.pick(&[(Some(2.0), None), (None, Some(1.0)), (Some(2.0), Some(1.0)), (Some(0.5), Some(6.0))]);
            Condition::Rate { per_ms: random.pick(&[5, 10, 20, 35]), rise, fall, keep_firing_for_ms }
        }
        13 => Condition::Cadence {
            every_ms: random.pick(&[3, 5, 10]),
            every_out_ms: random.pick(&[None, Some(2), Some(5)]),
            share: random.pick(&[0.9, 0.5, 1.0, 0.75]),
            window_ms: random.pick(&[10, 20, 30]),
        },
        14..16 => Condition::Stuck { min_readings: random.pick(&[1, 2, 3, 4]) },
        16 => Condition::Disagreement {
            limit: random.pick(&[0.5, 1.0, 2.0]),
            hysteresis: random.pick(&[0.0, 0.3]),
            keep_firing_for_ms,
        },
        17 => Condition::State { is: 11.0, keep_firing_for_ms },
        _ => Condition::Silence { scope: random.pick(&[SilenceScope::Sensor, SilenceScope::Unit]) },
    };
    let for_ms = match condition {
        // These two kinds have none.
        Condition::Cumulative { .. } | Condition::Cadence { .. } => 0,
        _ => random.pick(&[0, 0, 5, 10, 10, 15, 20]),
    };
    let mut rule = Rule {
        max_gap_ms: random.pick(&[None, Some(5), Some(7), Some(10), Some(10), Some(20)]),
        ..rule(&format!("r{index}"), quantity, condition, for_ms, None)
    };
    match random.below(12) {
        0 => rule.selector.loaded = Some(random.pick(&[true, true, false])),
        1 => rule.selector.category = Some(vec![random.pick(&["food", "drug"]).to_owned()]),
        2 => rule.selector.unit_kind = Some(random.pick(&[UnitKind::Storage, UnitKind::Transport])),
        3 => rule.selector.unit = Some(random.pick(&["u1", "u*", "?2"]).to_owned()),
        4 => rule.selector.jurisdiction = Some(random.pick(&["15", "1501", "22"]).to_owned()),
        5 if rule.condition != (Condition::Silence { scope: SilenceScope::Unit }) => {
            rule.selector.sensor = Some(random.pick(&["t1", "t*", "*2"]).to_owned());
        }
        _ => {}
    }
    checked(rule)
}

/// Makes the next configuration of this one: other rules, or other facts about what is registered.
fn change(random: &mut Random, era: &mut Era) {
    let index = random.below(era.rules.len().max(1));
    match random.below(8) {
        0 if !era.rules.is_empty() => {
            era.rules.remove(index);
        }
        1 => {
            let profile = era.registry.profiles.get_mut("p1").expect("it is one of three");
            profile.temperature.high = Some(random.pick(&[9.6, 11.0]));
            profile.record_storage_ms = random.pick(&[None, Some(3), Some(10)]);
        }
        2 => {
            for sensor in era.registry.sensors.values_mut().flat_map(BTreeMap::values_mut) {
                sensor.max_gap_ms = random.pick(&[None, Some(5), Some(15)]);
            }
        }
        3 if random.one_in(2) && !era.registry.units.is_empty() => {
            // Goods that were loaded long ago are entered only now.
            let units: Vec<UnitKey> = era.registry.units.keys().cloned().collect();
            let unit = &units[random.below(units.len())];
            let goods = era.registry.consignments.entry(unit.clone()).or_default();
            let from = 5 * random.below(20) as i64;
            goods.push(Consignment {
                id: format!("c-{}-{}", unit.unit, goods.len()).into(),
                unit: unit.clone(),
                profile: random.pick(&[None, Some("p1"), Some("p2")]).map(Into::into),
                lot: None,
                from: at(from),
                to: Some(at(from + random.pick(&[20, 60]))),
            });
        }
        3 => {
            let next = era.rules.iter().map(|rule| rule.id[1..].parse::<usize>().expect("r and a number")).max();
            era.rules.push(random_rule(random, next.map_or(0, |last| last + 1)));
        }
        4 | 5 if !era.rules.is_empty() => {
            let rule = era.rules[index].clone();
            let for_ms = match rule.condition {
                Condition::Cumulative { .. } | Condition::Cadence { .. } => 0,
                _ => random.pick(&[0, 5, 10, 15]),
            };
            let max_gap_ms = random.pick(&[rule.max_gap_ms, Some(6), Some(15), None]);
            era.rules[index] = checked(Rule { for_ms, max_gap_ms, ..rule });
        }
        6 if !era.rules.is_empty() => {
            // Another text, and so another version, that judges as the one before.
            let message = Message { en: Some("too warm".to_owned()), zh: None };
            era.rules[index] = checked(Rule { message, ..era.rules[index].clone() });
        }
        _ if !era.rules.is_empty() => {
            let id = era.rules[index].id[1..].parse().expect("r and a number");
            era.rules[index] = random_rule(random, id);
        }
        _ => {}
    }
}

/// Everything about a world that a person needs to judge it by hand.
impl fmt::Display for World {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (series, readings) in &self.readings {
            write!(f, "{}/{} {}:", series.unit.unit, series.sensor, series.kind)?;
            for (time, value) in readings {
                match value {
                    Some(value) => write!(f, " {time}:{value}")?,
                    None => write!(f, " {time}:_")?,
                }
            }
            writeln!(f)?;
        }
        let ms = |at: &Timestamp| at.as_millis();
        for era in &self.eras {
            writeln!(f, "from {} on:", era.loaded_at)?;
            for rule in &era.rules {
                let Rule { id, quantity, condition, for_ms, max_gap_ms, selector, version, .. } = rule;
                writeln!(f, "  {id} {version} {quantity} for {for_ms} max_gap {max_gap_ms:?} {condition:?}")?;
                if *selector != Selector::default() {
                    writeln!(f, "    where {selector:?}")?;
                }
            }
            let registry = &era.registry;
            for (key, unit) in &registry.units {
                let monitor: Vec<_> = unit.monitor.iter().map(|(from, monitor)| (ms(from), monitor)).collect();
                let (kind, profile, code) = (unit.kind, &unit.profile, &unit.jurisdiction);
                writeln!(f, "  unit {} {kind:?} profile {profile:?} code {code:?} monitor {monitor:?}", key.unit)?;
            }
            for goods in registry.consignments.values().flatten() {
                let to = goods.to.as_ref().map(ms);
                writeln!(f, "  goods {} profile {:?} from {} to {to:?}", goods.id, goods.profile, ms(&goods.from))?;
            }
            for sensor in registry.sensors.values().flat_map(BTreeMap::values) {
                writeln!(f, "  sensor {}/{} max_gap {:?}", sensor.unit.unit, sensor.id, sensor.max_gap_ms)?;
            }
            if !registry.units.is_empty() {
                for Profile { id, category, temperature, transport_temperature, humidity, .. } in
                    registry.profiles.values()
                {
                    writeln!(f, "  profile {id} {category} {temperature:?} {transport_temperature:?} {humidity:?}")?;
                }
                for profile in registry.profiles.values() {
                    let (storage, transport) = (profile.record_storage_ms, profile.record_transport_ms);
                    let advisory = profile.humidity_advisory;
                    writeln!(f, "  profile {} advisory {advisory} records {storage:?} {transport:?}", profile.id)?;
                }
            }
        }
        write!(f, "now {}", self.now)
    }
}
