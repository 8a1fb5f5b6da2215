use super::era::{Eras, Term};
use super::{Condition, LimitSource, Resolution, Rule, Window, micro};
use crate::model::{Kind, Limits, Profile, Registry, Timestamp, UnitFacts, UnitKey, UnitKind};

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
    /// Whether there are goods, or the rule is not about goods: without, readings hold and nothing is judged.
    has_goods: bool,
    /// Whether there are limits to judge by; without, a reading is neither out nor clear.
    pub(crate) has_limits: bool,
    /// The lowest good value in millionths, far below all values where there is none; for `state`, the value waited for.
    pub(crate) low_micro: i64,
    /// The highest good value in millionths, far above all values where there is none.
    pub(crate) high_micro: i64,
    /// How long a reading holds, by rule, sensor or profile.
    pub(crate) max_gap_ms: i64,
    /// For a rule about goods: when the earliest of those in the unit was loaded.
    pub(crate) loaded_at: Timestamp,
}

/// The low limit that no value is below; the distance to any value and hysteresis can be computed without overflow.
const NO_LOW_MICRO: i64 = i64::MIN / 4;
/// The high limit that no value is above.
const NO_HIGH_MICRO: i64 = i64::MAX / 4;

impl Segment {
    /// Returns whether readings count and hold: the unit is on duty and the selector matches.
    pub(crate) fn counts(&self) -> bool {
        self.is_on_duty && self.matches
    }

    /// Returns whether readings are judged.
    fn is_judged(&self) -> bool {
        self.counts() && self.has_goods
    }

    /// Returns the limits for people.
    pub(crate) fn limits(&self) -> Limits {
        let has = |micro: i64| self.has_limits && NO_LOW_MICRO < micro && micro < NO_HIGH_MICRO;
        let shown = |micro: i64| has(micro).then_some(micro as f64 / 1e6);
        Limits { low: shown(self.low_micro), high: shown(self.high_micro) }
    }

    /// Returns whether a value in millionths is outside the limits.
    pub(crate) fn is_outside(&self, value_micro: i64) -> bool {
        self.has_limits && (value_micro < self.low_micro || value_micro > self.high_micro)
    }

    fn says_the_same(&self, other: &Self) -> bool {
        Self { from: other.from, ..self.clone() } == *other
    }
}

/// What a rule means for one unit at every instant: segments in order, the first from the beginning of time, and the
/// term within which the rule judges.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Binding {
    segments: Box<[Segment]>,
    /// The first instant of the rule's term.
    pub(crate) from: Timestamp,
    /// The first instant after it.
    pub(crate) to: Timestamp,
    ends_by: Resolution,
}

impl Binding {
    /// Works out what a rule means for a unit, or for one `sensor` whose readings hold for a time of their own; `None`
    /// where it never applies.
    pub(crate) fn new(term: &Term, eras: &Eras, unit: &UnitKey, sensor: Option<&str>) -> Option<Self> {
        let mut segments: Vec<Segment> = Vec::new();
        for (from, facts) in eras.facts(unit) {
            let segment = segment_at(&term.rule, &facts, from, sensor);
            if segments.last().is_none_or(|last| !last.says_the_same(&segment)) {
                segments.push(segment);
            }
        }
        let Term { from, to, ends_by, .. } = *term;
        segments.iter().any(Segment::is_judged).then(|| Self { segments: segments.into(), from, to, ends_by })
    }

    /// Returns what holds at an instant.
    pub(crate) fn at(&self, at: Timestamp) -> &Segment {
        match &*self.segments {
            [only] => only,
            several => &several[several.partition_point(|segment| segment.from <= at) - 1],
        }
    }

    /// Returns whether the rule judges at an instant: within its term, and readings are judged.
    pub(crate) fn applies(&self, at: Timestamp) -> bool {
        self.from <= at && at < self.to && self.at(at).is_judged()
    }

    /// Returns whether a reading of an instant counts within the rule's term.
    pub(crate) fn counts(&self, at: Timestamp) -> bool {
        self.from <= at && at < self.to && self.at(at).counts()
    }

    /// Returns the first instant after `after` at which the rule no longer judges, if it comes, and why.
    pub(crate) fn end_of_applying(&self, after: Timestamp) -> Option<(Timestamp, Resolution)> {
        self.end_of(Segment::is_judged, after)
    }

    fn end_of(&self, goes_on: fn(&Segment) -> bool, after: Timestamp) -> Option<(Timestamp, Resolution)> {
        let of_term = (after < self.to && self.to < Timestamp::MAX).then_some((self.to, self.ends_by));
        let off_duty = match &*self.segments {
            [_] => None,
            several => several.iter().find(|segment| segment.from > after && !goes_on(segment)),
        };
        match (of_term, off_duty) {
            (Some((end, _)), Some(segment)) if segment.from <= end => Some((segment.from, Resolution::OffDuty)),
            (None, Some(segment)) => Some((segment.from, Resolution::OffDuty)),
            (of_term, _) => of_term,
        }
    }

    /// Returns the first instant after `after` from which on the rule means something else.
    pub(crate) fn next_change(&self, after: Timestamp) -> Option<Timestamp> {
        let of_segment = match &*self.segments {
            [_] => None,
            several => several.iter().map(|segment| segment.from).find(|from| *from > after),
        };
        let of_term = [self.from, self.to].into_iter().filter(|at| *at > after && *at < Timestamp::MAX);
        of_term.chain(of_segment).min()
    }

    /// Returns the instant after `after` and not after `until` at which the rule's term begins.
    pub(crate) fn begins_within(&self, after: Timestamp, until: Timestamp) -> Option<Timestamp> {
        (self.from > Timestamp::MIN && after < self.from && self.from <= until).then_some(self.from)
    }

    /// Returns until when a reading of `read_at` holds, if it holds beyond the instant at which the rule's term begins.
    pub(crate) fn held_at_begin(&self, read_at: Timestamp) -> Option<Timestamp> {
        let segment = self.at(read_at);
        let holds_until = read_at.plus_millis(segment.max_gap_ms);
        let is_cut = |segment: &Segment| read_at < segment.from && segment.from <= self.from && !segment.counts();
        let holds = segment.counts() && holds_until > self.from && !self.segments.iter().any(is_cut);
        holds.then_some(holds_until)
    }

    /// Returns until when a reading holds that is taken now, if no other comes.
    pub(crate) fn holds_until(&self, read_at: Timestamp) -> Timestamp {
        self.holds_until_by(read_at, self.at(read_at).max_gap_ms)
    }

    /// Does as [`Binding::holds_until`] for a reading of a sensor whose readings hold for `max_gap_ms` at most.
    pub(crate) fn holds_until_by(&self, read_at: Timestamp, max_gap_ms: i64) -> Timestamp {
        let holds_until = read_at.plus_millis(max_gap_ms);
        self.end_of(Segment::counts, read_at).map_or(holds_until, |(end, _)| holds_until.min(end))
    }

    /// Returns the starts of the stretches on duty within the rule's term that reach beyond `after`, in order.
    pub(crate) fn duties_after(&self, after: Timestamp) -> impl Iterator<Item = Timestamp> {
        let segments = &self.segments;
        let begins = |index: &usize| segments[*index].is_on_duty && (*index == 0 || !segments[*index - 1].is_on_duty);
        let reaches_beyond = move |index: &usize| {
            let end = segments[*index..].iter().find(|segment| !segment.is_on_duty);
            end.is_none_or(|end| after < end.from && self.from < end.from)
        };
        let starts = (0..segments.len()).filter(begins).filter(reaches_beyond).map(|index| segments[index].from);
        starts.map(|start| start.max(self.from)).take_while(|start| *start < self.to)
    }

    /// Returns whether it means the same at every instant.
    pub(crate) fn is_constant(&self) -> bool {
        self.segments.len() == 1 && self.from == Timestamp::MIN && self.to == Timestamp::MAX
    }
}

fn segment_at(rule: &Rule, facts: &UnitFacts<'_>, from: Timestamp, sensor: Option<&str>) -> Segment {
    let profiles = facts.profiles_at(from);
    let above = |high: f64| Limits { low: None, high: Some(high) };
    let limits = match rule.condition {
        Condition::Range { limits: LimitSource::Fixed(limits), .. } | Condition::Cumulative { limits, .. } => {
            Some(limits)
        }
        Condition::Range { limits: LimitSource::Profile, .. } | Condition::Cadence { .. } => {
            strictest_limits(&profiles, rule.quantity, facts.kind())
        }
        Condition::State { is, .. } => Some(Limits { low: Some(is), high: Some(is) }),
        Condition::MeanKineticTemperature { high, .. } => Some(above(high)),
        Condition::Disagreement { limit, .. } => Some(above(limit)),
        Condition::Rate { .. } | Condition::Silence { .. } | Condition::Stuck { .. } => None,
    };
    let is_about_goods = matches!(
        rule.condition,
        Condition::Cumulative { window: Window::Consignment, .. }
            | Condition::MeanKineticTemperature { window: Window::Consignment, .. }
    );
    let loaded_at = facts.consignments_at(from).map(|consignment| consignment.from).min().filter(|_| is_about_goods);
    let of_sensor = sensor.and_then(|sensor| facts.undated.sensor(facts.unit, sensor)?.max_gap_ms);
    Segment {
        from,
        is_on_duty: facts.is_on_duty(from),
        matches: rule.selector.matches_unit(facts, from),
        has_goods: !is_about_goods || loaded_at.is_some(),
        has_limits: limits.is_some(),
        low_micro: limits.and_then(|limits| limits.low).map_or(NO_LOW_MICRO, micro),
        high_micro: limits.and_then(|limits| limits.high).map_or(NO_HIGH_MICRO, micro),
        max_gap_ms: rule.max_gap_ms.or(of_sensor).unwrap_or_else(|| max_gap_of(&profiles, facts.kind())),
        loaded_at: loaded_at.unwrap_or(Timestamp::MIN),
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
