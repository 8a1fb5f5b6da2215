//! What one version of one rule sees of one unit: which instants count, and which reading holds when.

use frostline_core::model::{Kind, Limits, Monitor, Profile, SeriesKey, Timestamp, UnitKey, UnitKind};
use frostline_core::rules::{Condition, Rule, Window};

use super::World;

const HALF_AN_HOUR_MS: i64 = 30 * 60 * 1000;

/// An accepted reading as the rule sees it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Seen {
    pub(super) time: i64,
    /// None for a failed probe, and where the rule does not apply.
    pub(super) value: Option<f64>,
    /// When it stops holding, should time go on for long enough.
    pub(super) holds_until: i64,
    /// Until when it is known to have held by now.
    pub(super) known_until: i64,
}

impl Seen {
    /// Returns whether it is what holds from an instant on, be it known for how long or not.
    pub(super) fn holds_at(&self, at: i64, now: i64) -> bool {
        let end = if at <= now { self.holds_until } else { self.known_until };
        self.value.is_some() && self.time <= at && (at < end || at == self.time)
    }
}

pub(super) struct View<'w> {
    pub(super) world: &'w World,
    pub(super) rule: &'w Rule,
    pub(super) unit: &'w UnitKey,
    /// The instant from which this version holds, if not always.
    pub(super) from: Option<i64>,
    /// The instant from which another or none does, if ever.
    pub(super) until: Option<i64>,
    /// For each millisecond whether the unit is on duty.
    is_on_duty: Vec<bool>,
    /// For each millisecond whether it is, and everything in `where` but the sensor matches: readings then hold.
    holds: Vec<bool>,
    /// For each millisecond whether the rule judges besides: one about goods does not without any.
    applies: Vec<bool>,
}

impl<'w> View<'w> {
    pub(super) fn new(
        world: &'w World,
        rule: &'w Rule,
        unit: &'w UnitKey,
        from: Option<i64>,
        until: Option<i64>,
    ) -> Self {
        let newest = world.readings.values().flatten().map(|(time, _)| *time).max().unwrap_or(0);
        let instants = || 0..=newest.max(world.now) + 1;
        let mut view =
            Self { world, rule, unit, from, until, is_on_duty: Vec::new(), holds: Vec::new(), applies: Vec::new() };
        view.is_on_duty = instants().map(|at| view.find_whether_on_duty(at)).collect();
        view.holds = instants().map(|at| view.is_on_duty(at) && view.find_whether_where_matches(at)).collect();
        view.applies = instants().map(|at| view.holds[at as usize] && view.has_the_goods_it_needs(at)).collect();
        view
    }

    /// Returns whether the unit is on duty at an instant.
    pub(super) fn is_on_duty(&self, at: i64) -> bool {
        self.is_on_duty[at as usize]
    }

    /// Returns whether the rule judges at an instant: the unit is on duty, everything in `where` but the sensor matches, and there are goods
    /// where the rule is about goods.
    pub(super) fn applies(&self, at: i64) -> bool {
        self.applies[at as usize]
    }

    fn find_whether_on_duty(&self, at: i64) -> bool {
        let registered = self.world.era_at(at).registry.units.get(self.unit);
        registered.is_none_or(|unit| match self.monitor_at(unit.kind, at) {
            Monitor::Always => true,
            Monitor::Loaded => self.earliest_loading(at).is_some(),
            Monitor::Off => false,
        })
    }

    fn find_whether_where_matches(&self, at: i64) -> bool {
        let wanted = &self.rule.selector;
        let registered = self.world.era_at(at).registry.units.get(self.unit);
        let is_loaded = self.earliest_loading(at).is_some();
        let has_profile = |fits: &dyn Fn(&Profile) -> bool| self.profiles_at(at).into_iter().any(fits);
        wanted.operator.as_deref().is_none_or(|operator| operator == self.unit.operator.as_str())
            && wanted.unit.as_deref().is_none_or(|glob| fits(glob, self.unit.unit.as_str()))
            && wanted.unit_kind.is_none_or(|kind| registered.is_some_and(|unit| unit.kind == kind))
            && wanted.jurisdiction.as_deref().is_none_or(|prefix| {
                let code = registered.and_then(|unit| unit.jurisdiction.as_deref());
                code.is_some_and(|code| code.starts_with(prefix))
            })
            && wanted.loaded.is_none_or(|loaded| registered.is_some() && loaded == is_loaded)
            && wanted.category.as_ref().is_none_or(|words| has_profile(&|p| words.iter().any(|w| **w == *p.category)))
            && wanted.profile.as_ref().is_none_or(|globs| has_profile(&|p| globs.iter().any(|glob| fits(glob, &p.id))))
    }

    fn has_the_goods_it_needs(&self, at: i64) -> bool {
        let needs_goods = match self.rule.condition {
            Condition::Cumulative { window, .. } | Condition::MeanKineticTemperature { window, .. } => {
                window == Window::Consignment
            }
            _ => false,
        };
        !needs_goods || self.earliest_loading(at).is_some()
    }

    fn monitor_at(&self, kind: UnitKind, at: i64) -> Monitor {
        let settings = self.world.newest_registry().units.get(self.unit).map_or(&[][..], |unit| &unit.monitor[..]);
        let in_force = settings.iter().rev().find(|(from, _)| from.as_millis() <= at);
        in_force.map_or(
            match kind {
                UnitKind::Storage => Monitor::Always,
                UnitKind::Transport => Monitor::Loaded,
            },
            |(_, monitor)| *monitor,
        )
    }

    /// Returns when the goods that are in the unit at an instant were loaded: the first of them.
    pub(super) fn earliest_loading(&self, at: i64) -> Option<i64> {
        self.consignments_at(at).map(|consignment| consignment.from.as_millis()).min()
    }

    fn consignments_at(&self, at: i64) -> impl Iterator<Item = &'w frostline_core::model::Consignment> {
        let at = Timestamp::from_millis(at);
        let all = self.world.newest_registry().consignments.get(self.unit).into_iter().flatten();
        all.filter(move |goods| goods.from <= at && goods.to.is_none_or(|to| at < to))
    }

    /// Returns the profiles in force: those of the goods, without any the unit's own.
    fn profiles_at(&self, at: i64) -> Vec<&'w Profile> {
        let registry = &self.world.era_at(at).registry;
        let of_goods = self.consignments_at(at).filter_map(|goods| registry.profiles.get(goods.profile.as_deref()?));
        let mut profiles: Vec<_> = of_goods.collect();
        if profiles.is_empty() {
            let own = registry.units.get(self.unit).and_then(|unit| registry.profiles.get(unit.profile.as_deref()?));
            profiles.extend(own);
        }
        profiles
    }

    /// Returns the limits that the profiles in force have for a quantity; none where nothing can be out or clear.
    pub(super) fn profile_limits(&self, quantity: Kind, at: i64) -> Option<Limits> {
        let registered = self.world.era_at(at).registry.units.get(self.unit);
        let in_transport = registered.is_some_and(|unit| unit.kind == UnitKind::Transport);
        let limits = self.profiles_at(at).into_iter().filter_map(|profile| match quantity {
            Kind::Temperature if in_transport => Some(Limits {
                low: profile.transport_temperature.low.or(profile.temperature.low),
                high: profile.transport_temperature.high.or(profile.temperature.high),
            }),
            Kind::Temperature => Some(profile.temperature),
            Kind::Humidity if profile.humidity_advisory => None,
            Kind::Humidity => Some(profile.humidity),
            _ => None,
        });
        // The strictest of all: the highest low and the lowest high.
        limits.reduce(|a, b| Limits {
            low: a.low.into_iter().chain(b.low).reduce(f64::max),
            high: a.high.into_iter().chain(b.high).reduce(f64::min),
        })
    }

    /// Returns for how long a reading, of a sensor or of the unit as a whole, holds at most, by what is in force at its
    /// time.
    pub(super) fn max_gap_ms(&self, sensor: Option<&str>, at: i64) -> i64 {
        let registry = &self.world.era_at(at).registry;
        let of_sensor = || registry.sensors.get(self.unit)?.get(sensor?)?.max_gap_ms;
        let of_profile = || {
            let kind = registry.units.get(self.unit)?.kind;
            let intervals = self.profiles_at(at).into_iter().filter_map(|profile| match kind {
                UnitKind::Storage => profile.record_storage_ms,
                UnitKind::Transport => profile.record_transport_ms,
            });
            intervals.min().map(|interval_ms| 2 * interval_ms)
        };
        self.rule.max_gap_ms.or_else(of_sensor).or_else(of_profile).unwrap_or(HALF_AN_HOUR_MS)
    }

    /// Returns whether `where` takes in a sensor.
    pub(super) fn takes_sensor(&self, sensor: &str) -> bool {
        self.rule.selector.sensor.as_deref().is_none_or(|glob| fits(glob, sensor))
    }

    /// Returns the series of a quantity in this unit that have readings.
    pub(super) fn series_of(&self, quantity: Kind) -> Vec<&'w SeriesKey> {
        let all = self.world.readings.keys();
        all.filter(|series| series.unit == *self.unit && series.kind == quantity).collect()
    }

    /// Returns the time of the newest reading of some series.
    pub(super) fn newest(&self, series: &[&SeriesKey]) -> i64 {
        let newest = series.iter().filter_map(|series| self.world.readings[*series].last());
        newest.map(|(time, _)| *time).max().unwrap_or(0)
    }

    /// Returns the last instant at which anything is concluded: this version's last, or that of what is known.
    pub(super) fn end(&self, series: &[&SeriesKey]) -> i64 {
        let end = self.newest(series).max(self.world.now);
        self.until.map_or(end, |until| until.min(end))
    }

    /// Returns every reading of a series, those that others judge among them.
    fn seen_by_any_version(&self, series: &SeriesKey) -> Vec<Seen> {
        let readings = &self.world.readings[series];
        let mut seen = Vec::new();
        for (index, (time, value)) in readings.iter().copied().enumerate() {
            let value = value.filter(|_| self.holds[time as usize]);
            let mut holds_until = time;
            if value.is_some() {
                holds_until = time + self.max_gap_ms(Some(&series.sensor), time);
                if let Some((next, _)) = readings.get(index + 1) {
                    holds_until = holds_until.min(*next);
                }
                let last = self.holds.len() as i64 - 1;
                if let Some(end_of_duty) = (time..=holds_until.min(last)).find(|at| !self.holds[*at as usize]) {
                    holds_until = end_of_duty;
                }
            }
            let is_newest = index + 1 == readings.len();
            let known_until = if is_newest { holds_until.min(self.world.now).max(time) } else { holds_until };
            seen.push(Seen { time, value, holds_until, known_until });
        }
        seen
    }

    /// Returns the readings of a series that this version judges: the first is what held when it came into force.
    pub(super) fn seen(&self, series: &SeriesKey) -> Vec<Seen> {
        let mut seen = self.seen_by_any_version(series);
        if let Some(until) = self.until {
            seen.retain(|reading| reading.time < until);
            for reading in &mut seen {
                reading.holds_until = reading.holds_until.min(until);
                reading.known_until = reading.known_until.min(until);
            }
        }
        if let Some(from) = self.from {
            seen.retain(|reading| reading.time >= from || reading.holds_until > from);
            for reading in &mut seen {
                reading.time = reading.time.max(from);
            }
        }
        seen
    }
}

/// Returns the time within [from, to) that readings for which `counts` are known to have held.
pub(super) fn known_ms(seen: &[Seen], from: i64, to: i64, counts: impl Fn(&Seen) -> bool) -> i64 {
    let counted = seen.iter().filter(|reading| reading.value.is_some() && counts(reading));
    counted.map(|reading| (reading.known_until.min(to) - reading.time.max(from)).max(0)).sum()
}

/// Returns whether a text fits a glob: `*` stands for any characters, `?` for one.
fn fits(glob: &str, text: &str) -> bool {
    let mut rest_of_glob = glob.chars();
    let mut rest_of_text = text.chars();
    match rest_of_glob.next() {
        None => text.is_empty(),
        Some('*') => {
            let after = rest_of_glob.as_str();
            text.char_indices().any(|(at, _)| fits(after, &text[at..])) || fits(after, "")
        }
        Some('?') => rest_of_text.next().is_some() && fits(rest_of_glob.as_str(), rest_of_text.as_str()),
        Some(c) => rest_of_text.next() == Some(c) && fits(rest_of_glob.as_str(), rest_of_text.as_str()),
    }
}
