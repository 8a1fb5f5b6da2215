//! The state machine of `range` and of every kind that ends in one: a reading is out, clear or neither, and time adds up
//! while readings hold.
//!
//! ```text
//!            out                known time out ≥ for            known time clear ≥ keep_firing_for
//! inactive ───────► pending ─────────────────────────► firing ────────────────────────────────────► inactive
//!     ▲                │ not out, or off duty             │ off duty
//!     └────────────────┴──────────────────────────────────┘
//! ```
//!
//! Inactive needs no memory at all, so a series in good order costs two comparisons per reading.

use serde::{Deserialize, Serialize};

use super::binding::{Binding, Segment};
use super::episode::{Episode, Resolution, Telling};
use super::{Condition, Rule, micro};
use crate::model::Timestamp;

/// What such a rule asks of a value, in whole numbers.
#[derive(Clone, Copy, Debug)]
pub(crate) struct BandRule {
    test: Test,
    for_ms: i64,
    keep_firing_for_ms: i64,
}

#[derive(Clone, Copy, Debug)]
enum Test {
    /// Out is what lies outside the limits; beyond `never_below` and `never_above` it fires at once.
    OutsideLimits { hysteresis_micro: i64, never_below_micro: i64, never_above_micro: i64 },
    /// Out is what equals the low limit.
    Equals,
    /// What is out is worked out elsewhere, and what is not out is clear.
    Worked,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Class {
    Out,
    Neither,
    Clear,
}

/// What a reading says to the state machine.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Seen {
    /// The value, or what was worked out of it.
    pub(crate) value: f64,
    pub(crate) class: Class,
    /// How far outside the limits it is, in millionths.
    pub(crate) excess_micro: i64,
    /// Whether no time is to be waited for.
    pub(crate) fires_at_once: bool,
}

/// An episode that is pending or firing, as far as the readings go.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Band {
    /// The time of the first reading that was out.
    pub(crate) started_at: Timestamp,
    /// When it fired; `None` while pending.
    pub(crate) fired_at: Option<Timestamp>,
    /// While firing: the first of the clear readings after which none was not clear.
    clear_since: Option<Timestamp>,
    /// Up to where held time is in the sums: the newest reading, or the end of its hold.
    accounted_to: Timestamp,
    /// How long the newest reading holds if none comes; not beyond itself for a `null`.
    holds_until: Timestamp,
    /// Known time since the start.
    known_ms: i64,
    /// Known time from the start to `clear_since`.
    known_until_clear_ms: i64,
    /// Known time while pending that did not count, because the rule was suspended.
    suspended_ms: i64,
    /// The value farthest outside the limits, the earliest of equals.
    extreme: f64,
    /// How far outside it is, in millionths.
    excess_micro: i64,
    /// The same of the readings since `clear_since`: they belong to the episode only if one after them is not clear.
    clear_extreme: f64,
    clear_excess_micro: i64,
}

impl Band {
    fn note_extreme(&mut self, value: f64, excess_micro: i64) {
        if excess_micro > self.excess_micro {
            (self.extreme, self.excess_micro) = (value, excess_micro);
        }
    }

    /// Makes the readings that were clear a part of the episode.
    fn forget_clear(&mut self) {
        self.clear_since = None;
        self.note_extreme(self.clear_extreme, self.clear_excess_micro);
        self.clear_excess_micro = i64::MIN;
    }
}

/// A stretch in which time does not count toward `for`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Suspended {
    pub(crate) from: Timestamp,
    pub(crate) until: Timestamp,
}

impl Suspended {
    pub(crate) fn contains(&self, at: Timestamp) -> bool {
        self.from <= at && at < self.until
    }
}

impl BandRule {
    /// Returns what a rule asks; `None` for kinds that have no such state machine.
    pub(crate) fn new(rule: &Rule) -> Option<Self> {
        let plain = |hysteresis: f64| Test::OutsideLimits {
            hysteresis_micro: micro(hysteresis),
            never_below_micro: i64::MIN,
            never_above_micro: i64::MAX,
        };
        let test = match rule.condition {
            Condition::Range { hysteresis, never_below, never_above, .. } => Test::OutsideLimits {
                hysteresis_micro: micro(hysteresis),
                never_below_micro: never_below.map_or(i64::MIN, micro),
                never_above_micro: never_above.map_or(i64::MAX, micro),
            },
            Condition::MeanKineticTemperature { hysteresis, .. } | Condition::Disagreement { hysteresis, .. } => {
                plain(hysteresis)
            }
            Condition::State { .. } => Test::Equals,
            Condition::Rate { .. } => Test::Worked,
            Condition::Cumulative { .. }
            | Condition::Silence { .. }
            | Condition::Cadence { .. }
            | Condition::Stuck { .. } => return None,
        };
        Some(Self { test, for_ms: rule.for_ms, keep_firing_for_ms: rule.keep_firing_for_ms() })
    }

    #[cfg(test)]
    pub(crate) const fn plain(for_ms: i64, keep_firing_for_ms: i64) -> Self {
        Self { test: Test::Equals, for_ms, keep_firing_for_ms }
    }

    /// Returns what a value says, by the limits of `segment`.
    pub(crate) fn see(&self, segment: &Segment, value: f64, value_micro: i64) -> Seen {
        let excess_micro = (segment.low_micro - value_micro).max(value_micro - segment.high_micro);
        let mut fires_at_once = false;
        let class = match self.test {
            _ if !segment.has_limits => Class::Neither,
            Test::Equals | Test::Worked if value_micro == segment.low_micro => Class::Out,
            Test::Equals | Test::Worked => Class::Clear,
            Test::OutsideLimits { hysteresis_micro, never_below_micro, never_above_micro } => {
                fires_at_once = value_micro < never_below_micro || value_micro > never_above_micro;
                let clear = segment.low_micro + hysteresis_micro..=segment.high_micro - hysteresis_micro;
                if excess_micro > 0 || fires_at_once {
                    Class::Out
                } else if clear.contains(&value_micro) {
                    Class::Clear
                } else {
                    Class::Neither
                }
            }
        };
        Seen { value, class, excess_micro, fires_at_once }
    }

    fn episode(&self, band: &Band, binding: &Binding) -> Episode {
        let has_extreme = !matches!(self.test, Test::Equals);
        let limits = if has_extreme { binding.at(band.started_at).limits() } else { crate::model::Limits::default() };
        Episode {
            extreme: has_extreme.then_some(band.extreme),
            limit_low: limits.low,
            limit_high: limits.high,
            suspended_ms: band.suspended_ms,
            ..Episode::new(band.started_at, band.fired_at.unwrap_or(band.started_at))
        }
    }

    fn fire(&self, band: &mut Band, at: Timestamp, telling: &mut Telling<'_>) {
        band.fired_at = Some(at);
        let held_ms = at.min(band.holds_until).millis_since(band.accounted_to).max(0);
        let excursion_ms = band.known_ms + held_ms;
        let unmonitored_ms = at.millis_since(band.started_at) - excursion_ms;
        telling.tell(at, Episode { excursion_ms, unmonitored_ms, ..self.episode(band, telling.binding) });
    }

    /// Tells that an episode has ended at `end`, until when `excursion_ms` were known; it is certain at `instant`.
    fn resolve(
        &self,
        band: &Band,
        (instant, end, excursion_ms): (Timestamp, Timestamp, i64),
        resolution: Resolution,
        telling: &mut Telling<'_>,
    ) {
        let unmonitored_ms = end.millis_since(band.started_at) - excursion_ms;
        let episode = Episode { excursion_ms, unmonitored_ms, ..self.episode(band, telling.binding) };
        telling.tell(instant, episode.ended(end, resolution));
    }

    /// Lets the newest reading hold until `until` at most, and tells what comes true on the way, ends included.
    ///
    /// `state` becomes `None` where the episode ends.
    pub(crate) fn run(&self, state: &mut Option<Band>, until: Timestamp, telling: &mut Telling<'_>) {
        self.run_suspended(state, (until, false), None, telling);
    }

    /// Does as [`BandRule::run`], while time in `suspended` does not count toward `for`. Where `until_is_open`, what is
    /// suspended at `until` itself is not known yet.
    pub(crate) fn run_suspended(
        &self,
        state: &mut Option<Band>,
        (until, until_is_open): (Timestamp, bool),
        suspended: Option<Suspended>,
        telling: &mut Telling<'_>,
    ) {
        let Some(band) = state else { return };
        let duty_end = telling.binding.end_of_applying(band.accounted_to).filter(|(end, _)| *end <= until);
        let held_until = band.holds_until.min(duty_end.map_or(until, |(end, _)| end));
        let held_ms = held_until.millis_since(band.accounted_to).max(0);
        match (band.fired_at, band.clear_since) {
            (None, _) => {
                let (fires_at, not_counted_ms) = self.time_to_fire(band, held_ms, suspended);
                band.suspended_ms += not_counted_ms;
                let latest = duty_end.map_or(until, |(end, _)| end);
                // What is read where duty ends does not count any more, so it cannot suspend the rule either.
                let is_open = until_is_open && duty_end.is_none() && self.for_ms == 0;
                let is_known = |at: &Timestamp| *at < latest || *at == latest && !is_open;
                if let Some(at) = fires_at.filter(is_known) {
                    self.fire(band, at, telling);
                }
            }
            (Some(_), Some(clear_since)) => {
                let missing_ms = self.keep_firing_for_ms - (band.known_ms - band.known_until_clear_ms);
                if missing_ms <= held_ms {
                    let at = band.accounted_to.plus_millis(missing_ms);
                    let end = (at, clear_since, band.known_until_clear_ms);
                    self.resolve(band, end, Resolution::Cleared, telling);
                    *state = None;
                    return;
                }
            }
            (Some(_), None) => {}
        }
        band.known_ms += held_ms;
        band.accounted_to = band.accounted_to.plus_millis(held_ms);
        if let Some((end, resolution)) = duty_end {
            if band.fired_at.is_some() {
                band.forget_clear();
                let end = (end, end, band.known_ms);
                self.resolve(band, end, resolution, telling);
            }
            *state = None;
        }
    }

    /// Returns when a pending episode fires, if the newest reading goes on holding for `held_ms`, and how much of that
    /// time until then does not count.
    fn time_to_fire(&self, band: &Band, held_ms: i64, suspended: Option<Suspended>) -> (Option<Timestamp>, i64) {
        let from = band.accounted_to;
        let missing_ms = self.for_ms - (band.known_ms - band.suspended_ms);
        let Some(suspended) = suspended else {
            return ((missing_ms <= held_ms).then(|| from.plus_millis(missing_ms)), 0);
        };
        if missing_ms <= 0 {
            // Nothing is missing but an instant that is not suspended.
            let at = if suspended.contains(from) { suspended.until } else { from };
            return (Some(at), at.millis_since(from).min(held_ms));
        }
        // A suspension begins at a reading, up to which time has passed already.
        let resumes_at = suspended.until.max(from);
        let not_counted_ms = resumes_at.millis_since(from).min(held_ms);
        let fires_at = (missing_ms <= held_ms - not_counted_ms).then(|| resumes_at.plus_millis(missing_ms));
        (fires_at, not_counted_ms)
    }

    /// Looks at a reading, after [`BandRule::run`] up to its time; `None` for one without a value that counts.
    pub(crate) fn look(
        &self,
        state: &mut Option<Band>,
        at: Timestamp,
        seen: Option<(Seen, Timestamp)>,
        is_suspended: bool,
        telling: &mut Telling<'_>,
    ) {
        let Some((seen, holds_until)) = seen else {
            if let Some(band) = state {
                (band.accounted_to, band.holds_until) = (at, at);
            }
            return;
        };
        if state.as_ref().is_none_or(|band| band.fired_at.is_none()) && seen.class != Class::Out {
            *state = None;
            return;
        }
        // From here on the reading is out, or an episode is firing.
        let band = state.get_or_insert(Band {
            started_at: at,
            fired_at: None,
            clear_since: None,
            accounted_to: at,
            holds_until: at,
            known_ms: 0,
            known_until_clear_ms: 0,
            suspended_ms: 0,
            extreme: seen.value,
            excess_micro: seen.excess_micro,
            clear_extreme: seen.value,
            clear_excess_micro: i64::MIN,
        });
        (band.accounted_to, band.holds_until) = (at, holds_until);
        if seen.class == Class::Clear {
            if band.clear_since.is_none() {
                (band.clear_since, band.known_until_clear_ms) = (Some(at), band.known_ms);
            }
            if seen.excess_micro > band.clear_excess_micro {
                (band.clear_extreme, band.clear_excess_micro) = (seen.value, seen.excess_micro);
            }
        } else {
            band.forget_clear();
            band.note_extreme(seen.value, seen.excess_micro);
        }
        // What needs no time at all is true at the reading itself.
        if band.fired_at.is_none() && (seen.fires_at_once || self.for_ms == 0 && !is_suspended) {
            self.fire(band, at, telling);
        } else if band.clear_since == Some(at) && self.keep_firing_for_ms == 0 {
            let end = (at, at, band.known_until_clear_ms);
            self.resolve(band, end, Resolution::Cleared, telling);
            *state = None;
        }
    }

    /// Returns an episode as the readings so far make it; `None` where it has not fired.
    pub(crate) fn firing(&self, band: &Band, binding: &Binding, last_value: Option<f64>) -> Option<Episode> {
        band.fired_at?;
        let (end, excursion_ms) = match band.clear_since {
            Some(clear_since) => (clear_since, band.known_until_clear_ms),
            None => (band.accounted_to, band.known_ms),
        };
        let unmonitored_ms = end.millis_since(band.started_at) - excursion_ms;
        Some(Episode { excursion_ms, unmonitored_ms, last_value, ..self.episode(band, binding) })
    }

    /// Fires a pending episode that needs no time and was suspended until now.
    pub(crate) fn fire_what_needs_no_time(&self, state: &mut Option<Band>, at: Timestamp, telling: &mut Telling<'_>) {
        if let Some(band) = state
            && band.fired_at.is_none()
            && self.for_ms == 0
        {
            self.fire(band, at, telling);
        }
    }
}
