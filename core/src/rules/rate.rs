//! The kind `rate`: how far a value has come from the lowest and the highest of a stretch before it.

use std::collections::VecDeque;

use serde::{Deserialize, Serialize};

use super::band::{Band, BandRule, Class, Seen};
use crate::model::Timestamp;

/// What such a rule asks, in millionths.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RateRule {
    pub(crate) band: BandRule,
    pub(crate) per_ms: i64,
    pub(crate) rise_micro: Option<i64>,
    pub(crate) fall_micro: Option<i64>,
}

/// The readings of the stretch that can still be its lowest or highest, and the episode.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Rate {
    /// Each lower than all after it.. first the lowest; time and value in millionths.
    lows: VecDeque<(Timestamp, i64)>,
    /// Each higher than all after it, so first the highest.
    highs: VecDeque<(Timestamp, i64)>,
    pub(crate) band: Option<Band>,
}

impl Rate {
    /// Returns the episode alone: what goes on until the next reading.
    pub(crate) fn without_window(&self) -> Self {
        Self { band: self.band, ..Self::default() }
    }
}

impl RateRule {
    /// Takes a reading into the stretch, and returns what it says.
    pub(crate) fn see(&self, state: &mut Rate, at: Timestamp, value_micro: i64) -> Seen {
        let from = at.plus_millis(-self.per_ms);
        let lowest = push(&mut state.lows, from, at, value_micro, |kept, new| kept < new);
        let highest = push(&mut state.highs, from, at, value_micro, |kept, new| kept > new);
        let rise = self.rise_micro.map(|limit| (value_micro - lowest, limit));
        let fall = self.fall_micro.map(|limit| (highest - value_micro, limit));
        let changes = || rise.into_iter().chain(fall);
        let is_out = changes().any(|(change, limit)| change >= limit);
        let largest = changes().map(|(change, _)| change).max().unwrap_or(0);
        Seen {
            value: largest as f64 / 1e6,
            class: if is_out { Class::Out } else { Class::Clear },
            excess_micro: largest,
            fires_at_once: false,
        }
    }
}

/// Appends a reading, drops those before `from` and those that can no longer be first, and returns the first.
fn push(
    queue: &mut VecDeque<(Timestamp, i64)>,
    from: Timestamp,
    at: Timestamp,
    value: i64,
    stays_before: impl Fn(i64, i64) -> bool,
) -> i64 {
    while queue.front().is_some_and(|(time, _)| *time < from) {
        queue.pop_front();
    }
    while queue.back().is_some_and(|(_, kept)| !stays_before(*kept, value)) {
        queue.pop_back();
    }
    if queue.len() == queue.capacity() {
        // Doubling would cost twice the memory that is needed.
        queue.reserve_exact(queue.len() / 8 + 1);
    }
    queue.push_back((at, value));
    queue.front().expect("one was just pushed").1
}
