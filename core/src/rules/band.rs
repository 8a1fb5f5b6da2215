//! The state machine of `range` and `state`: a reading is out, clear or neither, and time adds up while readings hold.
//!
//! ```text
//!            out                known time out ≥ for            known time clear ≥ keep_firing_for
//! inactive ───────► pending ─────────────────────────► firing ────────────────────────────────────► inactive
//!     ▲                │ not out, or off duty             │ off duty
//!     └────────────────┴──────────────────────────────────┘
//! ```
//!
//! Inactive needs no memory at all, so a series in good order costs two comparisons per reading.

use super::binding::{Binding, Segment};
use super::episode::{Conclusion, Episode, Resolution};
use super::{Condition, Rule, micro};
use crate::model::Timestamp;

/// What a `range` or `state` rule asks of a value, in whole numbers.
#[derive(Clone, Copy, Debug)]
pub(crate) struct BandRule {
    test: Test,
    for_ms: i64,
    keep_firing_for_ms: i64,
}

#[derive(Clone, Copy, Debug)]
enum Test {
    OutsideLimits { hysteresis_micro: i64 },
    Equals,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Class {
    Out,
    Neither,
    Clear,
}

/// An episode that is pending or firing, as far as the readings go.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Band {
    /// The time of the first reading that was out.
    pub(crate) started_at: Timestamp,
    /// When it fired; `None` while pending.
    pub(crate) fired_at: Option<Timestamp>,
    /// While firing: the first of the clear readings after which none was not clear.
    pub(crate) clear_since: Option<Timestamp>,
    /// Up to where held time is in the sums: the newest reading, or the end of its hold.
    pub(crate) accounted_to: Timestamp,
    /// How long the newest reading holds if none comes; not beyond itself for a `null`.
    pub(crate) holds_until: Timestamp,
    /// Known time since the start.
    pub(crate) known_ms: i64,
    /// Known time from the start to `clear_since`.
    pub(crate) known_until_clear_ms: i64,
    /// The value farthest outside the limits, the earliest of equals.
    pub(crate) extreme: f64,
    /// How far outside it is, in millionths.
    pub(crate) excess_micro: i64,
}

impl BandRule {
    /// Returns what a `range` or `state` rule asks; `None` for other kinds.
    pub(crate) fn new(rule: &Rule) -> Option<Self> {
        let test = match rule.condition {
            Condition::Range { hysteresis, .. } => Test::OutsideLimits { hysteresis_micro: micro(hysteresis) },
            Condition::State { .. } => Test::Equals,
            Condition::Silence { .. } => return None,
        };
        Some(Self { test, for_ms: rule.for_ms, keep_firing_for_ms: rule.keep_firing_for_ms() })
    }

    fn class_of(&self, segment: &Segment, value_micro: i64) -> Class {
        match self.test {
            _ if !segment.has_limits => Class::Neither,
            Test::Equals if value_micro == segment.low_micro => Class::Out,
            Test::Equals => Class::Clear,
            Test::OutsideLimits { .. } if value_micro < segment.low_micro || value_micro > segment.high_micro => {
                Class::Out
            }
            Test::OutsideLimits { hysteresis_micro } => {
                let clear = segment.low_micro + hysteresis_micro..=segment.high_micro - hysteresis_micro;
                if clear.contains(&value_micro) { Class::Clear } else { Class::Neither }
            }
        }
    }

    /// Returns how far outside the limits a value is, in millionths.
    fn excess_micro(&self, segment: &Segment, value_micro: i64) -> i64 {
        (segment.low_micro - value_micro).max(value_micro - segment.high_micro)
    }

    fn episode(&self, band: &Band, binding: &Binding, last_value: Option<f64>) -> Episode {
        let is_range = matches!(self.test, Test::OutsideLimits { .. });
        let limits = if is_range { binding.at(band.started_at).limits() } else { Default::default() };
        Episode {
            started_at: band.started_at,
            fired_at: band.fired_at.unwrap_or(band.started_at),
            resolved_at: None,
            resolution: None,
            extreme: is_range.then_some(band.extreme),
            last_value,
            limit_low: limits.low,
            limit_high: limits.high,
            excursion_ms: 0,
            unmonitored_ms: 0,
        }
    }

    fn fired(&self, band: &Band, at: Timestamp, binding: &Binding, last_value: Option<f64>) -> Conclusion {
        let known_ms = band.known_ms + at.millis_since(band.accounted_to);
        let unmonitored_ms = at.millis_since(band.started_at) - known_ms;
        let episode = self.episode(band, binding, last_value);
        Conclusion { instant: at, episode: Episode { fired_at: at, excursion_ms: known_ms, unmonitored_ms, ..episode } }
    }

    /// Describes an episode that ends at `end`, until when `known_ms` were known; it is certain at `instant`.
    fn resolved(
        &self,
        band: &Band,
        (instant, end, known_ms): (Timestamp, Timestamp, i64),
        resolution: Resolution,
        binding: &Binding,
        last_value: Option<f64>,
    ) -> Conclusion {
        let unmonitored_ms = end.millis_since(band.started_at) - known_ms;
        let episode = self.episode(band, binding, last_value);
        Conclusion {
            instant,
            episode: Episode {
                resolved_at: Some(end),
                resolution: Some(resolution),
                excursion_ms: known_ms,
                unmonitored_ms,
                ..episode
            },
        }
    }

    /// Lets the newest reading hold until `until` at most, and tells what comes true on the way, ends included.
    ///
    /// `state` becomes `None` where the episode ends.
    pub(crate) fn run(
        &self,
        state: &mut Option<Band>,
        binding: &Binding,
        until: Timestamp,
        last_value: Option<f64>,
        out: &mut Vec<Conclusion>,
    ) {
        let Some(band) = state else { return };
        let duty_end = binding.end_of_applying(band.accounted_to).filter(|end| *end <= until);
        let held_until = band.holds_until.min(duty_end.unwrap_or(until));
        let held_ms = held_until.millis_since(band.accounted_to).max(0);
        match (band.fired_at, band.clear_since) {
            (None, _) => {
                let missing_ms = self.for_ms - band.known_ms;
                if missing_ms <= held_ms {
                    let at = band.accounted_to.plus_millis(missing_ms);
                    out.push(self.fired(band, at, binding, last_value));
                    band.fired_at = Some(at);
                }
            }
            (Some(_), Some(clear_since)) => {
                let missing_ms = self.keep_firing_for_ms - (band.known_ms - band.known_until_clear_ms);
                if missing_ms <= held_ms {
                    let at = band.accounted_to.plus_millis(missing_ms);
                    let end = (at, clear_since, band.known_until_clear_ms);
                    out.push(self.resolved(band, end, Resolution::Cleared, binding, last_value));
                    *state = None;
                    return;
                }
            }
            (Some(_), None) => {}
        }
        band.known_ms += held_ms;
        band.accounted_to = band.accounted_to.plus_millis(held_ms);
        if let Some(end) = duty_end {
            if band.fired_at.is_some() {
                let end = (end, end, band.known_ms);
                out.push(self.resolved(band, end, Resolution::OffDuty, binding, last_value));
            }
            *state = None;
        }
    }

    /// Looks at a reading, after [`BandRule::run`] up to its time.
    ///
    /// `max_gap_ms` is how long the reading holds at most, where that is not the profile's to say.
    pub(crate) fn look(
        &self,
        state: &mut Option<Band>,
        binding: &Binding,
        event_time: Timestamp,
        value: Option<(f64, i64)>,
        max_gap_ms: Option<i64>,
        out: &mut Vec<Conclusion>,
    ) {
        let segment = binding.at(event_time);
        let Some((value, value_micro)) = value.filter(|_| segment.applies()) else {
            if let Some(band) = state {
                band.accounted_to = event_time;
                band.holds_until = event_time;
            }
            return;
        };
        let class = self.class_of(segment, value_micro);
        if state.as_ref().is_none_or(|band| band.fired_at.is_none()) && class != Class::Out {
            *state = None;
            return;
        }
        // From here on the reading is out, or an episode is firing.
        let excess_micro = self.excess_micro(segment, value_micro);
        let band = state.get_or_insert(Band {
            started_at: event_time,
            fired_at: None,
            clear_since: None,
            accounted_to: event_time,
            holds_until: event_time,
            known_ms: 0,
            known_until_clear_ms: 0,
            extreme: value,
            excess_micro,
        });
        band.accounted_to = event_time;
        band.holds_until = event_time.plus_millis(max_gap_ms.unwrap_or(segment.max_gap_ms));
        if class == Class::Out && excess_micro > band.excess_micro {
            (band.extreme, band.excess_micro) = (value, excess_micro);
        }
        if class != Class::Clear {
            band.clear_since = None;
        } else if band.clear_since.is_none() {
            band.clear_since = Some(event_time);
            band.known_until_clear_ms = band.known_ms;
        }
        // What needs no time at all is true at the reading itself.
        if band.fired_at.is_none() && self.for_ms == 0 {
            out.push(self.fired(band, event_time, binding, Some(value)));
            band.fired_at = Some(event_time);
        } else if band.clear_since == Some(event_time) && self.keep_firing_for_ms == 0 {
            let end = (event_time, event_time, band.known_until_clear_ms);
            out.push(self.resolved(band, end, Resolution::Cleared, binding, Some(value)));
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
        Some(Episode { excursion_ms, unmonitored_ms, ..self.episode(band, binding, last_value) })
    }

    /// Returns that an episode ends at `at` for a reason other than its readings; `None` where it has not fired.
    pub(crate) fn end(
        &self,
        band: &Band,
        binding: &Binding,
        at: Timestamp,
        resolution: Resolution,
        last_value: Option<f64>,
    ) -> Option<Conclusion> {
        band.fired_at?;
        Some(self.resolved(band, (at, at, band.known_ms), resolution, binding, last_value))
    }
}
