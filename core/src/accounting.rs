//! Three-state accounting: for how long a unit, and each of its sensors, was compliant, in excursion or unmonitored.
//!
//! # What is counted
//!
//! Time at which the unit is on duty and a profile is in force. For a sensor the profile must also limit its quantity,
//! and not in an advisory way. Everything else is not counted at all, so that the three states add up to the time on
//! duty, to the millisecond, and a period adds up to its parts.
//!
//! # A sensor
//!
//! A reading holds until the next one of its series, for the sensor's own `max_gap` or else by the profile at most, and
//! not beyond the end of duty. While it holds, the sensor is in *excursion* where the value is outside the limits in
//! force at the reading's event time, else *compliant*: there is no `for` and no hysteresis. Where nothing holds it is
//! *unmonitored*: before the first reading, in a gap, after a `null`. A reading taken off duty, or when nothing limited
//! its quantity, holds nothing, since it was never compared with any limit.
//!
//! # A unit
//!
//! In excursion where one of its *ruled* sensors is, else unmonitored where one of them is, else compliant. A sensor is
//! ruled where the profile limits its quantity and some rule about that quantity selects it; it counts whether it is
//! registered or has been seen, and before its first reading too. A registered sensor that has never sent anything
//! counts as one for temperature, since what it would measure is not registered. Without any ruled sensor the unit is
//! unmonitored: unknown is not good.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::AddAssign;
use std::sync::Arc;

use crate::model::{Kind, Reading, Registry, Timestamp, UnitKey};
use crate::rules::{Rule, holding_time_ms, limits_in_force, micro};

/// What holds at an instant that is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Known to be within the limits.
    Compliant,
    /// Known to be outside the limits.
    Excursion,
    /// Not known.
    Unmonitored,
}

/// For how long each state held.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Account {
    /// Known to be within the limits, in milliseconds.
    pub compliant_ms: i64,
    /// Known to be outside the limits, in milliseconds.
    pub excursion_ms: i64,
    /// Not known, in milliseconds.
    pub unmonitored_ms: i64,
}

impl Account {
    /// Returns all the time counted, in milliseconds.
    pub const fn on_duty_ms(&self) -> i64 {
        self.compliant_ms + self.excursion_ms + self.unmonitored_ms
    }

    fn add(&mut self, state: State, duration_ms: i64) {
        match state {
            State::Compliant => self.compliant_ms += duration_ms,
            State::Excursion => self.excursion_ms += duration_ms,
            State::Unmonitored => self.unmonitored_ms += duration_ms,
        }
    }
}

impl AddAssign for Account {
    fn add_assign(&mut self, other: Self) {
        self.compliant_ms += other.compliant_ms;
        self.excursion_ms += other.excursion_ms;
        self.unmonitored_ms += other.unmonitored_ms;
    }
}

/// The accounts of a unit and its sensors over one period.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct UnitAccount {
    /// The unit's time by the category of the profile in force; of several profiles, of the first.
    pub by_category: BTreeMap<Box<str>, Account>,
    /// One for each of [`Terms::series`], in their order.
    pub series: Vec<Account>,
}

impl AddAssign for UnitAccount {
    /// Adds the account of another period, of the same series.
    fn add_assign(&mut self, other: Self) {
        for (category, account) in other.by_category {
            *self.by_category.entry(category).or_default() += account;
        }
        self.series.iter_mut().zip(other.series).for_each(|(sum, account)| *sum += account);
    }
}

/// What is asked of one unit at every instant, by the configuration in force. Equal terms give equal accounts.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Terms {
    /// In order, the first from the beginning of time.
    stretches: Box<[Stretch]>,
    /// In order of sensor and kind.
    series: Box<[SeriesTerms]>,
}

/// A stretch of time in which neither duty nor goods change.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Stretch {
    from: Timestamp,
    is_on_duty: bool,
    /// The first instant off duty from here on.
    duty_end: Timestamp,
    /// Of the profile in force; `None` without any.
    category: Option<Box<str>>,
}

/// One series.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct SeriesTerms {
    sensor: Box<str>,
    kind: Kind,
    /// One for each stretch of the unit.
    stretches: Box<[SeriesStretch]>,
}

/// What is asked of one series in one stretch.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct SeriesStretch {
    /// `None` where nothing limits the quantity.
    limits: Option<LimitsMicro>,
    /// How long a reading holds at most.
    max_gap_ms: i64,
    /// Whether the unit's state depends on it.
    is_ruled: bool,
}

/// Limits in millionths, the grain in which values are compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct LimitsMicro {
    low: Option<i64>,
    high: Option<i64>,
}

impl LimitsMicro {
    fn allow(self, value_micro: i64) -> bool {
        self.low.is_none_or(|low| low <= value_micro) && self.high.is_none_or(|high| value_micro <= high)
    }
}

impl Terms {
    /// Works out what is asked of a unit whose series with readings, of whatever kind, are `seen`.
    pub fn new<'s>(
        registry: &Registry,
        rules: &[Arc<Rule>],
        unit: &UnitKey,
        seen: impl IntoIterator<Item = (&'s str, Kind)>,
    ) -> Self {
        let seen: BTreeSet<(&str, Kind)> = seen.into_iter().collect();
        let sensors_seen: BTreeSet<&str> = seen.iter().map(|(sensor, _)| *sensor).collect();
        let registered = registry.sensors.get(unit).into_iter().flat_map(BTreeMap::keys).map(|sensor| &**sensor);
        let never_seen = registered.filter(|sensor| !sensors_seen.contains(sensor));
        let mut counted: BTreeSet<(&str, Kind)> = never_seen.map(|sensor| (sensor, Kind::Temperature)).collect();
        counted.extend(seen.iter().filter(|(_, kind)| matches!(kind, Kind::Temperature | Kind::Humidity)));

        let mut starts: Vec<Timestamp> = std::iter::once(Timestamp::MIN).chain(registry.changes_of(unit)).collect();
        starts.dedup();
        let series = counted.into_iter().map(|(sensor, kind)| SeriesTerms {
            sensor: sensor.into(),
            kind,
            stretches: starts.iter().map(|at| series_stretch(registry, rules, unit, sensor, kind, *at)).collect(),
        });
        Self { series: series.collect(), stretches: stretches(registry, unit, &starts) }
    }

    /// Returns the series that are counted, in order: sensor and kind.
    pub fn series(&self) -> impl ExactSizeIterator<Item = (&str, Kind)> {
        self.series.iter().map(|series| (&*series.sensor, series.kind))
    }

    /// Returns how long before a period its readings must begin, in milliseconds: no older one holds into it.
    pub fn longest_hold_ms(&self) -> i64 {
        let stretches = self.series.iter().flat_map(|series| &series.stretches);
        stretches.map(|stretch| stretch.max_gap_ms).max().unwrap_or(0)
    }

    /// Returns the accounts over `from..to`.
    ///
    /// `readings` are those of each of [`Self::series`], oldest first: all that are in the period, and all from
    /// [`Self::longest_hold_ms`] before it on.
    ///
    /// # Panics
    ///
    /// Where there are not as many lists of readings as series.
    pub fn account(&self, readings: &[&[Reading]], from: Timestamp, to: Timestamp) -> UnitAccount {
        assert_eq!(readings.len(), self.series.len(), "one list of readings for each series");
        let mut account = self.no_account();
        if from >= to {
            return account;
        }
        let steps = self.series.iter().zip(readings).map(|(series, readings)| self.steps(series, readings, from));
        let steps: Vec<Vec<Step>> = steps.collect();
        let changes = self.stretches.iter().map(|stretch| stretch.from);
        let mut instants: Vec<Timestamp> = steps.iter().flatten().map(|step| step.from).chain(changes).collect();
        instants.retain(|at| (from..to).contains(at));
        instants.extend([from, to]);
        instants.sort_unstable();
        instants.dedup();

        let mut places = vec![0; steps.len()];
        for pair in instants.windows(2) {
            let (at, duration_ms) = (pair[0], pair[1].millis_since(pair[0]));
            let index = self.stretch_at(at);
            let stretch = &self.stretches[index];
            if !stretch.is_on_duty {
                continue;
            }
            let mut of_unit = None;
            for (number, series) in self.series.iter().enumerate() {
                let place = &mut places[number];
                while steps[number].get(*place + 1).is_some_and(|next| next.from <= at) {
                    *place += 1;
                }
                let state = steps[number][*place].state;
                let due = &series.stretches[index];
                if due.limits.is_some() {
                    account.series[number].add(state, duration_ms);
                }
                if due.is_ruled {
                    of_unit = Some(of_unit.map_or(state, |of_others| worse(of_others, state)));
                }
            }
            if let Some(category) = &stretch.category {
                let of_category = account.by_category.entry(category.clone()).or_default();
                of_category.add(of_unit.unwrap_or(State::Unmonitored), duration_ms);
            }
        }
        account
    }

    /// Returns the account of no time at all, to add others to.
    pub fn no_account(&self) -> UnitAccount {
        UnitAccount { by_category: BTreeMap::new(), series: vec![Account::default(); self.series.len()] }
    }

    fn stretch_at(&self, at: Timestamp) -> usize {
        self.stretches.partition_point(|stretch| stretch.from <= at) - 1
    }

    /// Returns the states of a series from an instant on, in order.
    fn steps(&self, series: &SeriesTerms, readings: &[Reading], from: Timestamp) -> Vec<Step> {
        let mut steps = vec![Step { from, state: State::Unmonitored }];
        let mut enter = |at: Timestamp, state: State| {
            let at = at.max(from);
            let last = steps.last_mut().expect("there is a first step from the beginning");
            if at == last.from {
                last.state = state;
            } else if last.state != state {
                steps.push(Step { from: at, state });
            }
        };
        let mut index = 0;
        for (number, reading) in readings.iter().enumerate() {
            let at = reading.event_time;
            while self.stretches.get(index + 1).is_some_and(|next| next.from <= at) {
                index += 1;
            }
            let (stretch, due) = (&self.stretches[index], &series.stretches[index]);
            let value = reading.value.filter(|_| stretch.is_on_duty);
            let Some((value, limits)) = value.zip(due.limits) else {
                enter(at, State::Unmonitored);
                continue;
            };
            enter(at, if limits.allow(micro(value)) { State::Compliant } else { State::Excursion });
            let held_until = at.plus_millis(due.max_gap_ms).min(stretch.duty_end);
            if readings.get(number + 1).is_none_or(|next| held_until < next.event_time) {
                enter(held_until, State::Unmonitored);
            }
        }
        steps
    }
}

/// What holds of a series from an instant on.
#[derive(Clone, Copy, Debug)]
struct Step {
    from: Timestamp,
    state: State,
}

/// Returns what two sensors together make of a unit.
fn worse(a: State, b: State) -> State {
    match (a, b) {
        (State::Excursion, _) | (_, State::Excursion) => State::Excursion,
        (State::Unmonitored, _) | (_, State::Unmonitored) => State::Unmonitored,
        (State::Compliant, State::Compliant) => State::Compliant,
    }
}

fn stretches(registry: &Registry, unit: &UnitKey, starts: &[Timestamp]) -> Box<[Stretch]> {
    let mut stretches: Box<[Stretch]> = starts
        .iter()
        .map(|at| Stretch {
            from: *at,
            is_on_duty: registry.is_on_duty(unit, *at),
            duty_end: Timestamp::MAX,
            category: registry.profiles_at(unit, *at).first().map(|profile| profile.category.clone()),
        })
        .collect();
    let mut duty_end = Timestamp::MAX;
    for stretch in stretches.iter_mut().rev() {
        if !stretch.is_on_duty {
            duty_end = stretch.from;
        }
        stretch.duty_end = duty_end;
    }
    stretches
}

fn series_stretch(
    registry: &Registry,
    rules: &[Arc<Rule>],
    unit: &UnitKey,
    sensor: &str,
    kind: Kind,
    at: Timestamp,
) -> SeriesStretch {
    let limits = limits_in_force(registry, unit, kind, at);
    let limits = limits.filter(|limits| limits.low.is_some() || limits.high.is_some());
    let is_ruled = limits.is_some()
        && rules.iter().any(|rule| {
            rule.quantity == kind
                && rule.selector.matches_sensor(sensor)
                && rule.selector.matches_unit(&registry.facts(unit), at)
        });
    SeriesStretch {
        limits: limits.map(|limits| LimitsMicro { low: limits.low.map(micro), high: limits.high.map(micro) }),
        max_gap_ms: holding_time_ms(registry, unit, sensor, at),
        is_ruled,
    }
}
