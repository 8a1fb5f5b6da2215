//! The kind `mean_kinetic_temperature`: the one temperature that would have aged the goods as much as those they had.
//!
//! T = (ΔH/R) / −ln(Σ w·exp(−ΔH/(R·T)) / Σ w) over known time w, T in kelvin (USP ⟨1079⟩, after Haynes 1971). The sums
//! run along with the window. They are kept in whole numbers: adding and later subtracting the same then leaves nothing
//! behind, however different the terms are, and the same readings give the same mean on every way to it.

use std::collections::VecDeque;

use serde::{Deserialize, Serialize};

use super::band::{Band, BandRule, Class, Seen};
use super::binding::{Binding, Segment};
use super::{Window, micro};
use crate::model::Timestamp;

/// The gas constant, J/(mol·K).
const GAS_CONSTANT: f64 = 8.3144;
const ZERO_CELSIUS_IN_KELVIN: f64 = 273.15;
/// The hottest reading that is possible, K: no term of the sum is larger than the one it stands for.
const HOTTEST_KELVIN: f64 = 200.0 + ZERO_CELSIUS_IN_KELVIN;
/// The longest time that one consignment is thought to be in a unit: about four years.
const CONSIGNMENT_MAX_MS: i64 = 1 << 37;

/// What such a rule asks.
#[derive(Clone, Copy, Debug)]
pub(crate) struct KineticRule {
    pub(crate) band: BandRule,
    window: Window,
    /// ΔH/R, K.
    activation_kelvin: f64,
    /// How much must be known; without it, a tenth of the window.
    min_known_ms: Option<i64>,
    /// What the largest term is for each millisecond: as large as the sum has room for.
    scale: f64,
}

/// The known time in the window, and the episode on the means at its readings.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Kinetic {
    pieces: VecDeque<Piece>,
    known_ms: i64,
    sum: i128,
    newest: Option<Held>,
    pub(crate) band: Option<Band>,
}

/// How long a reading held; longer ones are several.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
struct Piece {
    start: Timestamp,
    held_ms: u32,
    value_micro: i32,
}

#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
struct Held {
    from: Timestamp,
    until: Timestamp,
    value_micro: i32,
}

impl Kinetic {
    /// Returns the episode alone: what goes on until the next reading.
    pub(crate) fn without_window(&self) -> Self {
        Self { band: self.band, ..Self::default() }
    }
}

impl KineticRule {
    /// `delta_h` is in kJ/mol.
    pub(crate) fn new(band: BandRule, window: Window, delta_h: f64, min_known_ms: Option<i64>) -> Self {
        let longest_ms = match window {
            Window::Rolling(window_ms) => window_ms,
            Window::Consignment => CONSIGNMENT_MAX_MS,
        };
        let scale = 2_f64.powi(126 - (longest_ms as f64).log2().ceil() as i32);
        Self { band, window, activation_kelvin: delta_h * 1e3 / GAS_CONSTANT, min_known_ms, scale }
    }

    /// Returns the term of one millisecond at a temperature.
    fn term(&self, value_micro: i32) -> i128 {
        let kelvin = f64::from(value_micro) / 1e6 + ZERO_CELSIUS_IN_KELVIN;
        ((self.activation_kelvin * (1.0 / HOTTEST_KELVIN - 1.0 / kelvin)).exp() * self.scale) as i128
    }

    /// Returns the mean of the known time in the window in °C, to 0.001; `None` where too little is known.
    fn mean(&self, state: &Kinetic, at: Timestamp, window_from: Timestamp) -> Option<f64> {
        let min_known_tenths_ms = match (self.min_known_ms, self.window) {
            (Some(min_known_ms), _) => min_known_ms.saturating_mul(10),
            (None, Window::Rolling(window_ms)) => window_ms,
            (None, Window::Consignment) => at.millis_since(window_from),
        };
        if state.known_ms == 0 || state.known_ms.saturating_mul(10) < min_known_tenths_ms {
            return None;
        }
        let mean_term = state.sum as f64 / state.known_ms as f64 / self.scale;
        let kelvin = 1.0 / (1.0 / HOTTEST_KELVIN - mean_term.ln() / self.activation_kelvin);
        Some(((kelvin - ZERO_CELSIUS_IN_KELVIN) * 1e3).round() / 1e3)
    }

    fn window_from(&self, segment: &Segment, at: Timestamp) -> Timestamp {
        match self.window {
            Window::Rolling(window_ms) => at.plus_millis(-window_ms),
            // Without goods nothing is kept: what is loaded later has none of it.
            Window::Consignment if segment.loaded_at == Timestamp::MIN => at,
            Window::Consignment => segment.loaded_at,
        }
    }

    /// Takes a reading into the window, and returns what the mean at it says; `None` for one that does not count.
    pub(crate) fn see(
        &self,
        state: &mut Kinetic,
        binding: &Binding,
        at: Timestamp,
        value: Option<(i64, Timestamp)>,
    ) -> Option<(Seen, Timestamp)> {
        if let Some(held) = state.newest.take() {
            self.add(state, held, at.min(held.until));
        }
        let segment = binding.at(at);
        let window_from = self.window_from(segment, at);
        self.forget_before(state, window_from);
        let (value_micro, holds_until) = value?;
        // No temperature is as large as to be cut short by this.
        let value_micro = i32::try_from(value_micro).unwrap_or(i32::MAX);
        let until = binding.end_of_applying(at).map_or(holds_until, |(end, _)| holds_until.min(end));
        state.newest = Some(Held { from: at, until, value_micro });
        if !binding.applies(at) {
            return None;
        }
        let seen = match self.mean(state, at, window_from) {
            Some(mean) => self.band.see(segment, mean, micro(mean)),
            None => Seen { value: f64::NAN, class: Class::Neither, excess_micro: i64::MIN, fires_at_once: false },
        };
        Some((seen, holds_until))
    }

    fn add(&self, state: &mut Kinetic, held: Held, until: Timestamp) {
        let mut start = held.from;
        while start < until {
            let held_ms = until.millis_since(start).min(i64::from(u32::MAX)) as u32;
            if state.pieces.len() == state.pieces.capacity() {
                // Doubling would cost twice the memory that is needed.
                state.pieces.reserve_exact(state.pieces.len() / 8 + 1);
            }
            state.pieces.push_back(Piece { start, held_ms, value_micro: held.value_micro });
            self.count(state, held.value_micro, i64::from(held_ms));
            start = start.plus_millis(i64::from(held_ms));
        }
    }

    fn forget_before(&self, state: &mut Kinetic, edge: Timestamp) {
        while let Some(piece) = state.pieces.front_mut()
            && piece.start < edge
        {
            let gone_ms = edge.millis_since(piece.start).min(i64::from(piece.held_ms));
            piece.start = piece.start.plus_millis(gone_ms);
            piece.held_ms -= gone_ms as u32;
            let Piece { held_ms, value_micro, .. } = *piece;
            if held_ms == 0 {
                state.pieces.pop_front();
            }
            self.count(state, value_micro, -gone_ms);
        }
    }

    fn count(&self, state: &mut Kinetic, value_micro: i32, ms: i64) {
        state.known_ms += ms;
        state.sum += self.term(value_micro) * i128::from(ms);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns the mean over known time at given temperatures, hours each.
    fn mean(window_hours: i64, delta_h: f64, spans: &[(i64, f64)]) -> Option<f64> {
        let test = BandRule::plain(0, 0);
        let rule = KineticRule::new(test, Window::Rolling(window_hours * 3_600_000), delta_h, Some(0));
        let mut state = Kinetic::default();
        let mut at = Timestamp::from_millis(0);
        for (hours, celsius) in spans {
            let until = at.plus_millis(hours * 3_600_000);
            rule.add(&mut state, Held { from: at, until, value_micro: micro(*celsius) as i32 }, until);
            at = until;
        }
        let window_from = at.plus_millis(-window_hours * 3_600_000);
        rule.forget_before(&mut state, window_from);
        rule.mean(&state, at, window_from)
    }

    #[test]
    fn the_mean_is_the_published_one() {
        assert_eq!(mean(24, 83.144, &[(12, 20.0), (12, 30.0)]), Some(26.260));
        assert_eq!(mean(24, 83.144, &[(18, 5.0), (6, 14.0)]), Some(8.285));
        assert_eq!(mean(24, 83.144, &[(22, 5.0), (2, 15.0)]), Some(6.462));
    }

    #[test]
    fn what_has_left_the_window_leaves_nothing_behind() {
        let hot_then_cold = [(24, 200.0), (24, -100.0), (23, 5.0), (1, 5.0)];
        assert_eq!(mean(24, 83.144, &hot_then_cold), Some(5.0));
        assert_eq!(mean(24, 244.0, &[(24, 200.0), (24, -25.0)]), Some(-25.0));
        assert_eq!(mean(24, 83.144, &[(24, -100.0)]), Some(-100.0));
        assert_eq!(mean(24, 83.144, &[]), None);
    }
}
