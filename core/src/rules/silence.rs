//! The kind `silence`: no state of its own, for everything follows from the last sign of life.

use super::binding::Binding;
use super::episode::{Conclusion, Episode, Resolution};
use crate::model::Timestamp;

/// What is known about a silence.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Silence<'a> {
    /// How long it must last.
    pub(crate) for_ms: i64,
    /// What the rule means for the unit.
    pub(crate) binding: &'a Binding,
    /// The last reading that counts, or else the registration.
    pub(crate) alive_at: Timestamp,
    /// The last value.
    pub(crate) last_value: Option<f64>,
}

impl Silence<'_> {
    /// Tells what is true by the instant `until`, if no reading comes.
    pub(crate) fn conclude(&self, until: Timestamp, out: &mut Vec<Conclusion>) {
        self.episodes(until, until, out);
    }

    /// Tells what turned out to be true when a reading came at `event_time`.
    pub(crate) fn conclude_at_reading(&self, event_time: Timestamp, out: &mut Vec<Conclusion>) {
        // An episode that would start with the reading would be empty.
        self.episodes(event_time, event_time.plus_millis(-1), out);
        if let Some(&Conclusion { episode, .. }) = out.last().filter(|last| !last.is_resolution()) {
            out.push(resolved(episode, event_time, Resolution::Cleared));
        }
    }

    /// Every stretch of duty may have one silence: from its start or the last sign of life, and a gap.
    fn episodes(&self, until: Timestamp, starts_until: Timestamp, out: &mut Vec<Conclusion>) {
        for duty_start in self.binding.duties_after(self.alive_at) {
            let basis = self.alive_at.max(duty_start);
            if basis > starts_until || basis >= self.binding.to {
                break;
            }
            let segment = self.binding.at(basis);
            if !segment.matches {
                continue;
            }
            let started_at = basis.plus_millis(segment.max_gap_ms);
            let fired_at = started_at.plus_millis(self.for_ms);
            let end = self.binding.end_of_applying(basis);
            let is_cut_short = end.is_some_and(|(end, _)| started_at >= end || fired_at > end);
            if started_at > starts_until || fired_at > until || is_cut_short {
                continue;
            }
            let episode = Episode {
                last_value: self.last_value,
                unmonitored_ms: self.for_ms,
                ..Episode::new(started_at, fired_at)
            };
            out.push(Conclusion { instant: fired_at, episode });
            if let Some((end, why)) = end.filter(|(end, _)| *end <= until) {
                out.push(resolved(episode, end, why));
            }
        }
    }
}

fn resolved(episode: Episode, at: Timestamp, resolution: Resolution) -> Conclusion {
    let unmonitored_ms = at.millis_since(episode.started_at);
    let episode = Episode { unmonitored_ms, ..episode.ended(at, resolution) };
    Conclusion { instant: at, episode }
}
