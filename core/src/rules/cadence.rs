//! The kind `cadence`: fewer readings in a window than are due.
//!
//! Windows are aligned to their length since 1970. Time passes window by window only where readings can make a
//! difference: after the last reading all windows fail alike, so of those only the first matters until duty changes.

use serde::{Deserialize, Serialize};

use super::binding::Binding;
use super::episode::{Episode, Resolution, Telling};
use super::micro;
use crate::model::Timestamp;

/// What such a rule asks.
#[derive(Clone, Copy, Debug)]
pub(crate) struct CadenceRule {
    pub(crate) every_ms: i64,
    pub(crate) every_out_ms: i64,
    pub(crate) share_micro: i64,
    pub(crate) window_ms: i64,
}

/// The window that time stands in, and the row of failed ones before it.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Cadence {
    /// The start of the window; the first full one after the first reading may still be to come.
    pub(crate) window_from: Timestamp,
    /// Up to where its time is in the sums.
    accounted_to: Timestamp,
    made: u32,
    out_ms: i64,
    /// Whether the last value is outside the profile.
    is_out: bool,
    /// The start of the first of the failed windows in a row.
    pub(crate) failing_since: Option<Timestamp>,
}

impl CadenceRule {
    pub(crate) fn new(every_ms: i64, every_out_ms: Option<i64>, share: f64, window_ms: i64) -> Self {
        Self { every_ms, every_out_ms: every_out_ms.unwrap_or(every_ms), share_micro: micro(share), window_ms }
    }

    fn window_end(&self, state: &Cadence) -> Timestamp {
        state.window_from.plus_millis(self.window_ms)
    }

    /// Returns the first window that starts at or after an instant.
    fn window_at_or_after(&self, at: Timestamp) -> Timestamp {
        let millis = at.as_millis();
        Timestamp::from_millis(millis.saturating_add((-millis).rem_euclid(self.window_ms)))
    }

    /// Returns whether fewer were made than are due: made < share · (time in limits / every + time out / every_out).
    fn fails(&self, made: u32, out_ms: i64) -> bool {
        let wide = i128::from;
        let due = wide(self.window_ms - out_ms) * wide(self.every_out_ms) + wide(out_ms) * wide(self.every_ms);
        i128::from(made) * wide(self.every_ms) * wide(self.every_out_ms) * 1_000_000 < wide(self.share_micro) * due
    }

    fn episode(&self, since: Timestamp) -> Episode {
        Episode::new(since, since.plus_millis(self.window_ms))
    }

    /// Judges every window that ends by `until`.
    pub(crate) fn run(&self, state: &mut Option<Cadence>, until: Timestamp, telling: &mut Telling<'_>) {
        let Some(state) = state else { return };
        let binding = telling.binding;
        // Where a row of failed windows ends because duty does.
        let duty_end_after =
            |at: Timestamp| binding.end_of_applying(at.plus_millis(-1)).filter(|(end, _)| *end <= until);
        loop {
            let window_end = self.window_end(state);
            if let Some(since) = state.failing_since
                && let Some((end, resolution)) = duty_end_after(state.window_from)
                && end < window_end
            {
                telling.tell(end, unmonitored(self.episode(since).ended(end, resolution)));
                state.failing_since = None;
            }
            if window_end > until {
                let to = until.max(state.accounted_to);
                state.account(to);
                return;
            }
            state.account(window_end);
            let is_on_duty = binding.applies(state.window_from)
                && binding.end_of_applying(state.window_from).is_none_or(|(end, _)| end >= window_end);
            let fails = self.fails(state.made, state.out_ms);
            if is_on_duty {
                match state.failing_since {
                    None if fails => {
                        state.failing_since = Some(state.window_from);
                        telling.tell(window_end, self.episode(state.window_from));
                    }
                    Some(since) if !fails => {
                        let episode = self.episode(since).ended(state.window_from, Resolution::Cleared);
                        telling.tell(window_end, unmonitored(episode));
                        state.failing_since = None;
                    }
                    _ => {}
                }
            }
            state.begin_window(window_end);
            if state.failing_since.is_none() && binding.applies(window_end) {
                continue;
            }
            // No reading comes before `until`, so nothing happens before duty changes: go on to the window in which that is.
            let next = binding.next_change(window_end.plus_millis(-1)).unwrap_or(Timestamp::MAX).min(until);
            let ahead = next.millis_since(window_end).div_euclid(self.window_ms).saturating_mul(self.window_ms);
            if ahead > 0 {
                state.begin_window(window_end.plus_millis(ahead));
            }
        }
    }

    /// Looks at a reading, after [`CadenceRule::run`] up to its time.
    pub(crate) fn look(&self, state: &mut Option<Cadence>, binding: &Binding, at: Timestamp, value_micro: i64) {
        let is_out = binding.at(at).is_outside(value_micro);
        let first = || Cadence {
            window_from: self.window_at_or_after(at),
            accounted_to: at,
            made: 0,
            out_ms: 0,
            is_out,
            failing_since: None,
        };
        let state = state.get_or_insert_with(first);
        state.made += u32::from(state.window_from <= at);
        state.is_out = is_out;
    }

    /// Returns the episode as it is now, if one is firing.
    pub(crate) fn firing(&self, state: &Cadence, last_value: Option<f64>) -> Option<Episode> {
        state.failing_since.map(|since| Episode { last_value, ..self.episode(since) })
    }
}

/// Counts all of an ended episode as time in which not enough was known.
fn unmonitored(episode: Episode) -> Episode {
    let end = episode.resolved_at.unwrap_or(episode.started_at);
    Episode { unmonitored_ms: end.millis_since(episode.started_at), ..episode }
}

impl Cadence {
    fn account(&mut self, to: Timestamp) {
        let from = self.accounted_to.max(self.window_from);
        if self.is_out {
            self.out_ms += to.millis_since(from).max(0);
        }
        self.accounted_to = self.accounted_to.max(to);
    }

    fn begin_window(&mut self, from: Timestamp) {
        (self.window_from, self.accounted_to, self.made, self.out_ms) = (from, from, 0, 0);
    }
}
