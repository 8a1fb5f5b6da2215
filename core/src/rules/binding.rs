use super::{Condition, LimitSource, Rule, micro};
use crate::model::{Kind, Limits, Profile, Registry, Timestamp, UnitKey, UnitKind};

/// How long a reading holds where neither rule nor sensor nor profile says.
const DEFAULT_MAX_GAP_MS: i64 = 30 * 60_000;

/// What a rule means for one unit from an instant on, until the next segment.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Segment {
    /// The first instant.
    pub(crate) from: Timestamp,
    /// Whether the unit is on duty.
    pub(crate) is_on_duty: bool,
    /// Whether the rule's selector matches.
    pub(crate) matches: bool,
    /// Whether there are limits to judge by; without, a reading is neither out nor clear.
    pub(crate) has_limits: bool,
    /// The lowest good value in millionths, far below all values where there is none; for `state`, the value waited for.
    pub(crate) low_micro: i64,
    /// The highest good value in millionths, far above all values where there is none.
    pub(crate) high_micro: i64,
    /// How long a reading holds, by the profile.
    pub(crate) max_gap_ms: i64,
}

/// The low limit that no value is below; the distance to any value and hysteresis can be computed without overflow.
const NO_LOW_MICRO: i64 = i64::MIN / 4;
/// The high limit that no value is above.
const NO_HIGH_MICRO: i64 = i64::MAX / 4;

impl Segment {
    /// Returns whether readings count: the unit is on duty and the selector matches.
    pub(crate) fn applies(&self) -> bool {
        self.is_on_duty && self.matches
    }

    /// Returns the limits for people.
    pub(crate) fn limits(&self) -> Limits {
        let has = |micro: i64| self.has_limits && NO_LOW_MICRO < micro && micro < NO_HIGH_MICRO;
        let shown = |micro: i64| has(micro).then_some(micro as f64 / 1e6);
        Limits { low: shown(self.low_micro), high: shown(self.high_micro) }
    }

    fn says_the_same(&self, other: &Self) -> bool {
        Self { from: other.from, ..self.clone() } == *other
    }
}

/// What a rule means for one unit at every instant: segments in order, the first from the beginning of time.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Binding(Box<[Segment]>);

impl Binding {
    /// Works out what `rule` means for a unit, or `None` where it never applies.
    pub(crate) fn new(rule: &Rule, registry: &Registry, unit: &UnitKey) -> Option<Self> {
        if !rule.selector.matches_unit(registry, unit) {
            return None;
        }
        let mut segments: Vec<Segment> = Vec::new();
        for from in std::iter::once(Timestamp::MIN).chain(registry.changes_of(unit)) {
            let segment = segment_at(rule, registry, unit, from);
            if segments.last().is_none_or(|last| !last.says_the_same(&segment)) {
                segments.push(segment);
            }
        }
        segments.iter().any(Segment::applies).then(|| Self(segments.into()))
    }

    /// Returns what holds at an instant.
    pub(crate) fn at(&self, at: Timestamp) -> &Segment {
        match &*self.0 {
            [only] => only,
            several => &several[several.partition_point(|segment| segment.from <= at) - 1],
        }
    }

    /// Returns the first instant after `after` at which readings no longer count, if it comes.
    pub(crate) fn end_of_applying(&self, after: Timestamp) -> Option<Timestamp> {
        match &*self.0 {
            [_] => None,
            several => several.iter().find(|segment| segment.from > after && !segment.applies()).map(|s| s.from),
        }
    }

    /// Returns the starts of the stretches on duty that reach beyond `after`, in order.
    pub(crate) fn duties_after(&self, after: Timestamp) -> impl Iterator<Item = Timestamp> {
        let segments = &self.0;
        let begins = |index: &usize| segments[*index].is_on_duty && (*index == 0 || !segments[*index - 1].is_on_duty);
        let reaches_beyond = move |index: &usize| {
            let end = segments[*index..].iter().find(|segment| !segment.is_on_duty);
            end.is_none_or(|end| after < end.from)
        };
        (0..segments.len()).filter(begins).filter(reaches_beyond).map(|index| segments[index].from)
    }

    /// Returns whether one segment says it all.
    pub(crate) fn is_constant(&self) -> bool {
        self.0.len() == 1
    }
}

fn segment_at(rule: &Rule, registry: &Registry, unit: &UnitKey, from: Timestamp) -> Segment {
    let kind = registry.units.get(unit).map(|unit| unit.kind);
    let profiles = registry.profiles_at(unit, from);
    let limits = match rule.condition {
        Condition::Range { limits: LimitSource::Fixed(limits), .. } => Some(limits),
        Condition::Range { limits: LimitSource::Profile, .. } => strictest_limits(&profiles, rule.quantity, kind),
        Condition::State { is, .. } => Some(Limits { low: Some(is), high: Some(is) }),
        Condition::Silence { .. } => None,
    };
    Segment {
        from,
        is_on_duty: registry.is_on_duty(unit, from),
        matches: rule.selector.matches_at(registry, unit, from),
        has_limits: limits.is_some(),
        low_micro: limits.and_then(|limits| limits.low).map_or(NO_LOW_MICRO, micro),
        high_micro: limits.and_then(|limits| limits.high).map_or(NO_HIGH_MICRO, micro),
        max_gap_ms: max_gap_of(&profiles, kind),
    }
}

/// Returns the limits of the profiles in force in a unit at an instant; `None` where there is nothing to judge by.
pub fn limits_in_force(registry: &Registry, unit: &UnitKey, quantity: Kind, at: Timestamp) -> Option<Limits> {
    let kind = registry.units.get(unit).map(|unit| unit.kind);
    strictest_limits(&registry.profiles_at(unit, at), quantity, kind)
}

/// Returns how long a reading of a sensor holds at most, where no rule says otherwise, in milliseconds.
pub fn holding_time_ms(registry: &Registry, unit: &UnitKey, sensor: &str, at: Timestamp) -> i64 {
    let kind = registry.units.get(unit).map(|unit| unit.kind);
    let of_sensor = registry.sensor(unit, sensor).and_then(|sensor| sensor.max_gap_ms);
    of_sensor.unwrap_or_else(|| max_gap_of(&registry.profiles_at(unit, at), kind))
}

/// Returns twice the shortest recording interval of the profiles.
fn max_gap_of(profiles: &[&Profile], kind: Option<UnitKind>) -> i64 {
    let recorded_every_ms = profiles.iter().filter_map(|profile| match kind {
        Some(UnitKind::Transport) => profile.record_transport_ms,
        Some(UnitKind::Storage) | None => profile.record_storage_ms,
    });
    recorded_every_ms.min().map_or(DEFAULT_MAX_GAP_MS, |spacing_ms| spacing_ms.saturating_mul(2))
}

/// Returns the highest low and the lowest high of the profiles that are not advisory for the quantity; `None` without any.
fn strictest_limits(profiles: &[&Profile], quantity: Kind, kind: Option<UnitKind>) -> Option<Limits> {
    let of_profile = |profile: &&Profile| match quantity {
        Kind::Temperature if kind == Some(UnitKind::Transport) => Some(profile.temperature_in_transport()),
        Kind::Temperature => Some(profile.temperature),
        Kind::Humidity if !profile.humidity_advisory => Some(profile.humidity),
        _ => None,
    };
    profiles.iter().filter_map(of_profile).reduce(|a, b| Limits {
        low: a.low.into_iter().chain(b.low).reduce(f64::max),
        high: a.high.into_iter().chain(b.high).reduce(f64::min),
    })
}
