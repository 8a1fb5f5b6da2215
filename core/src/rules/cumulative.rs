//! The kind `cumulative`: known time out of limits within a window, or since loading, against a budget.
//!
//! The sum is a broken line over time: it rises while a reading that is out holds, and falls while time out of limits
//! leaves the window. What happens is found at its corners and crossings, not by stepping.

use std::collections::VecDeque;

use serde::{Deserialize, Serialize};

use super::Window;
use super::binding::Binding;
use super::episode::{Episode, Resolution, Telling};
use crate::model::Timestamp;

/// What such a rule asks.
#[derive(Clone, Copy, Debug)]
pub(crate) struct CumulativeRule {
    pub(crate) window: Window,
    pub(crate) budget_ms: i64,
}

/// How much time out of limits there is, and whether that is too much.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Cumulative {
    runs: Runs,
    is_out: bool,
    /// Up to where time is in the sum.
    accounted_to: Timestamp,
    /// Until when the newest reading holds if no other comes.
    holds_until: Timestamp,
    pub(crate) firing_since: Option<Timestamp>,
}

/// Stretches of time out of limits, in order, none touching the next.
///
/// Each takes eight bytes: how long after the one before it begins, and how long it is.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
struct Runs {
    /// The start of the first.
    start: Timestamp,
    /// The end of the last.
    end: Timestamp,
    sum_ms: i64,
    runs: VecDeque<(u32, u32)>,
}

impl Runs {
    fn push(&mut self, from: Timestamp, to: Timestamp) {
        if self.runs.is_empty() {
            (self.start, self.end) = (from, from);
        }
        self.sum_ms += to.millis_since(from);
        let mut gap_ms = from.millis_since(self.end);
        let mut length_ms = to.millis_since(from);
        if gap_ms == 0
            && let Some((_, last_ms)) = self.runs.back_mut()
        {
            let taken_ms = length_ms.min(i64::from(u32::MAX - *last_ms));
            *last_ms += taken_ms as u32;
            length_ms -= taken_ms;
        }
        // What is longer than fits is written as several.
        while gap_ms > i64::from(u32::MAX) {
            self.push_run(u32::MAX, 0);
            gap_ms -= i64::from(u32::MAX);
        }
        while length_ms > 0 {
            let part_ms = length_ms.min(i64::from(u32::MAX));
            self.push_run(gap_ms as u32, part_ms as u32);
            (gap_ms, length_ms) = (0, length_ms - part_ms);
        }
        self.end = to;
    }

    fn push_run(&mut self, gap_ms: u32, length_ms: u32) {
        if self.runs.len() == self.runs.capacity() {
            // Doubling would cost twice the memory that is needed.
            self.runs.reserve_exact(self.runs.len() / 8 + 1);
        }
        self.runs.push_back((gap_ms, length_ms));
    }

    /// Forgets everything before `edge`.
    fn forget_before(&mut self, edge: Timestamp) {
        while let Some((_, length_ms)) = self.runs.front_mut()
            && self.start < edge
        {
            let gone_ms = edge.millis_since(self.start).min(i64::from(*length_ms));
            self.start = self.start.plus_millis(gone_ms);
            self.sum_ms -= gone_ms;
            *length_ms -= gone_ms as u32;
            if *length_ms == 0 {
                self.runs.pop_front();
                let gap_ms = self.runs.front().map_or(0, |(gap_ms, _)| i64::from(*gap_ms));
                self.start = self.start.plus_millis(gap_ms);
            }
        }
    }

    /// Returns the first stretch; some at the front may have no length.
    fn first(&self) -> Option<(Timestamp, i64)> {
        self.runs.front().map(|(_, length_ms)| (self.start, i64::from(*length_ms)))
    }
}

impl CumulativeRule {
    /// Lets time pass until `until`, and tells what comes true on the way.
    pub(crate) fn run(&self, state: &mut Cumulative, until: Timestamp, telling: &mut Telling<'_>) {
        let binding = telling.binding;
        loop {
            let at = state.accounted_to;
            let segment = binding.at(at);
            let applies = binding.applies(at);
            let edge = match self.window {
                Window::Rolling(window_ms) => at.plus_millis(-window_ms),
                // Without goods nothing is kept: what is loaded later has none of it.
                Window::Consignment if segment.loaded_at == Timestamp::MIN => at,
                Window::Consignment => segment.loaded_at,
            };
            state.runs.forget_before(edge);
            if state.firing_since.is_some() && !applies {
                let (_, why) = binding.end_of_applying(at.plus_millis(-1)).unwrap_or((at, Resolution::OffDuty));
                state.resolve(at, at, why, telling);
            } else if state.firing_since.is_some() && state.runs.sum_ms < self.budget_ms {
                // Other goods are in the unit now.
                state.resolve(at, at, Resolution::Cleared, telling);
            } else if state.firing_since.is_none() && applies && state.runs.sum_ms >= self.budget_ms {
                state.fire(at, telling);
            }
            if at >= until {
                return;
            }
            let rises = state.is_out && applies && at < state.holds_until;
            let (falls, first_corner) = match (self.window, state.runs.first()) {
                (Window::Rolling(_), Some((start, length_ms))) if start == edge => {
                    (length_ms > 0, Some(at.plus_millis(length_ms.max(1))))
                }
                (Window::Rolling(_), Some((start, _))) => (false, Some(at.plus_millis(start.millis_since(edge)))),
                (Window::Rolling(window_ms), None) => (false, rises.then(|| at.plus_millis(window_ms))),
                (Window::Consignment, _) => (false, None),
            };
            let end_of_hold = rises.then_some(state.holds_until);
            let corners = first_corner.into_iter().chain(end_of_hold).chain(binding.next_change(at));
            let mut next = corners.fold(until, Timestamp::min);
            let sum_ms = state.runs.sum_ms;
            if state.firing_since.is_none() && applies && rises && !falls {
                // The corner before which the budget is reached is where the rule fires; it is looked at there.
                next = next.min(at.plus_millis(self.budget_ms - sum_ms));
            }
            if state.firing_since.is_some() && falls && !rises {
                let below_from = at.plus_millis(sum_ms - self.budget_ms);
                if below_from < next {
                    // Certain only once time has gone on: another reading that is out would keep the sum where it is.
                    state.resolve(below_from.plus_millis(1), below_from, Resolution::Cleared, telling);
                }
            }
            if rises {
                state.runs.push(at, next);
            }
            state.accounted_to = next;
            if let Window::Rolling(window_ms) = self.window {
                state.runs.forget_before(next.plus_millis(-window_ms));
            }
            if state.firing_since.is_none() && applies && state.runs.sum_ms >= self.budget_ms {
                // Reached by what was in force until now, whatever begins or ends at this instant.
                state.fire(next, telling);
            }
        }
    }

    /// Looks at a reading, after [`CumulativeRule::run`] up to its time.
    pub(crate) fn look(
        &self,
        state: &mut Option<Box<Cumulative>>,
        binding: &Binding,
        at: Timestamp,
        value: Option<(i64, Timestamp)>,
    ) {
        let is_out = value.is_some_and(|(value_micro, _)| binding.at(at).is_outside(value_micro));
        let holds_until = value.map_or(at, |(_, holds_until)| holds_until);
        match state {
            Some(state) if !is_out && state.runs.runs.is_empty() && state.firing_since.is_none() => {}
            Some(state) => {
                (state.is_out, state.accounted_to, state.holds_until) = (is_out, at, holds_until);
                return;
            }
            None if is_out => {
                let runs = Runs::default();
                let firing_since = None;
                *state = Some(Box::new(Cumulative { runs, is_out, accounted_to: at, holds_until, firing_since }));
                return;
            }
            None => {}
        }
        *state = None;
    }
}

impl Cumulative {
    fn fire(&mut self, at: Timestamp, telling: &mut Telling<'_>) {
        self.firing_since = Some(at);
        telling.tell(at, self.episode(at));
    }

    fn resolve(&mut self, instant: Timestamp, end: Timestamp, resolution: Resolution, telling: &mut Telling<'_>) {
        if let Some(since) = self.firing_since.take() {
            telling.tell(instant, self.episode(since).ended(end, resolution));
        }
    }

    /// Its excursion is the time in the window.
    fn episode(&self, since: Timestamp) -> Episode {
        Episode { excursion_ms: self.runs.sum_ms, ..Episode::new(since, since) }
    }

    /// Returns the episode as it is now, if one is firing.
    pub(crate) fn firing(&self, last_value: Option<f64>) -> Option<Episode> {
        self.firing_since.map(|since| Episode { last_value, ..self.episode(since) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_and_gaps_longer_than_seven_weeks_are_added_and_forgotten_to_the_millisecond() {
        let at = Timestamp::from_millis;
        // Longer than 2³² milliseconds.
        let long_ms = 5_000_000_000;
        let mut runs = Runs::default();
        runs.push(at(0), at(long_ms));
        runs.push(at(long_ms), at(long_ms + 7));
        runs.push(at(3 * long_ms), at(3 * long_ms + 10));
        assert_eq!((runs.sum_ms, runs.first()), (long_ms + 17, Some((at(0), i64::from(u32::MAX)))));
        runs.forget_before(at(long_ms / 2));
        assert_eq!(runs.sum_ms, long_ms / 2 + 17);
        runs.forget_before(at(long_ms + 3));
        assert_eq!((runs.sum_ms, runs.first()), (14, Some((at(long_ms + 3), 4))));
        runs.forget_before(at(2 * long_ms));
        assert_eq!(runs.sum_ms, 10);
        runs.forget_before(at(3 * long_ms + 4));
        assert_eq!((runs.sum_ms, runs.first()), (6, Some((at(3 * long_ms + 4), 6))));
        runs.forget_before(at(4 * long_ms));
        assert_eq!((runs.sum_ms, runs.first()), (0, None));
    }
}
