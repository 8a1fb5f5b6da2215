//! What all kinds have in common whose readings are out or clear: pending, firing, resolved, one millisecond at a time.

use std::collections::BTreeMap;

use super::view::View;
use super::{Coverage, Episode};

#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Class {
    Out,
    Clear,
    /// Nothing can be said, or it lies between out and clear.
    Neither,
    /// A failed probe, or not on duty: passed over.
    Null,
}

/// A reading, or something that is like one.
#[derive(Clone, Copy, Debug)]
pub(super) struct Piece {
    pub(super) time: i64,
    pub(super) known_until: i64,
    pub(super) class: Class,
    /// Whether it fires at its own time, whatever `for` and suspension say.
    pub(super) fires_at_once: bool,
    /// How far outside it is, in millionths, and what it reads.
    pub(super) outside: Option<(i64, f64)>,
}

#[derive(Clone, Copy, Debug)]
enum State {
    Inactive,
    Pending { since: i64, sum_ms: i64 },
    Firing { since: i64, fired_at: i64, clear: Option<(i64, i64)> },
}

pub(super) struct Band<'a> {
    pub(super) view: &'a View<'a>,
    pub(super) pieces: &'a [Piece],
    /// The stretches in which time does not count toward `for`.
    pub(super) suspended: &'a [(i64, i64)],
    pub(super) keep_firing_for_ms: i64,
    pub(super) end: i64,
}

impl Band<'_> {
    fn is_suspended(&self, at: i64) -> bool {
        self.suspended.iter().any(|(from, to)| *from <= at && at < *to)
    }

    /// `clear_since` is the first clear reading of those that have not lasted for long enough.
    fn episode(&self, started_at: i64, fired_at: i64, resolved_at: Option<i64>, clear_since: Option<i64>) -> Episode {
        let end = resolved_at.or(clear_since).unwrap_or(self.end);
        let known = self.pieces.iter().map(|p| (p.known_until.min(end) - p.time.max(started_at)).max(0));
        let known_ms: i64 = known.sum();
        let within = self.pieces.iter().filter(|p| {
            let is_before_the_end = resolved_at.or(clear_since).is_none_or(|end| p.time < end);
            p.time >= started_at && is_before_the_end
        });
        // The earliest of equals.
        let farthest = within.filter_map(|p| p.outside).reduce(|a, b| if b.0 > a.0 { b } else { a });
        Episode {
            started_at,
            fired_at,
            resolved_at,
            extreme: farthest.map(|(_, value)| value),
            excursion_and_unmonitored_ms: Some((known_ms, end - started_at - known_ms)),
        }
    }

    pub(super) fn judge(&self, coverage: &mut Coverage) -> Vec<Episode> {
        let rule = self.view.rule;
        let by_time: BTreeMap<i64, &Piece> = self.pieces.iter().map(|piece| (piece.time, piece)).collect();
        let held_during = |at: i64| {
            let (_, piece) = by_time.range(..=at).next_back()?;
            (at < piece.known_until).then_some(*piece)
        };
        let mut episodes = Vec::new();
        let mut state = State::Inactive;
        for at in 0..=self.end {
            let piece = by_time.get(&at).copied();
            let is_suspended = self.is_suspended(at);

            // What was held until now counts before anything else is looked at.
            let held = if at > 0 { held_during(at - 1) } else { None };
            match &mut state {
                State::Pending { sum_ms, .. } if held.is_some() => {
                    let was_suspended = self.is_suspended(at - 1);
                    coverage.note("suspension while pending", was_suspended && rule.for_ms > 0);
                    *sum_ms += i64::from(!was_suspended);
                }
                State::Firing { clear: Some((_, sum_ms)), .. } if held.is_some() => *sum_ms += 1,
                State::Firing { .. } => coverage.note("a gap while firing", at > 0 && held.is_none()),
                _ => {}
            }
            let mut reach = |state: &mut State, coverage: &mut Coverage, is_before_the_reading: bool| {
                let ends_here = held.is_some_and(|held| held.known_until == at);
                if let State::Pending { since, sum_ms } = *state
                    && sum_ms >= rule.for_ms
                    && (rule.for_ms > 0 || !is_suspended)
                {
                    let is_tie = is_before_the_reading && rule.for_ms > 0;
                    coverage.note("a tie at `for`", is_tie && piece.is_some());
                    coverage.note("a tie of `for` and the end of a hold", is_tie && ends_here && piece.is_none());
                    coverage.note("fired at the end of a suspension", at > since && rule.for_ms == 0);
                    *state = State::Firing { since, fired_at: at, clear: None };
                }
                if let State::Firing { since, fired_at, clear: Some((clear_since, sum_ms)) } = *state
                    && sum_ms >= self.keep_firing_for_ms
                {
                    let is_tie = is_before_the_reading && piece.is_some();
                    coverage.note("a tie at `keep_firing_for`", is_tie && self.keep_firing_for_ms > 0);
                    episodes.push(self.episode(since, fired_at, Some(clear_since), None));
                    *state = State::Inactive;
                }
            };
            reach(&mut state, coverage, true);

            let version_ends = self.view.until == Some(at);
            if version_ends || !self.view.applies(at) {
                if let State::Firing { since, fired_at, .. } = state {
                    coverage.note("the end of duty while firing", !version_ends);
                    coverage.note("a change of the rule while firing", version_ends);
                    episodes.push(self.episode(since, fired_at, Some(at), None));
                }
                coverage
                    .note("a change of the rule while pending", version_ends && matches!(state, State::Pending { .. }));
                state = State::Inactive;
                continue;
            }

            let Some(piece) = piece else { continue };
            coverage.note("a change of the rule while held out", {
                self.view.from == Some(at) && piece.class == Class::Out
            });
            state = match (state, piece.class) {
                (state, Class::Null) => {
                    coverage.note("a null while pending", matches!(state, State::Pending { .. }));
                    coverage.note("a null while firing", matches!(state, State::Firing { .. }));
                    state
                }
                (State::Inactive, Class::Out) => State::Pending { since: at, sum_ms: 0 },
                (State::Pending { since, sum_ms }, Class::Out) => State::Pending { since, sum_ms },
                (State::Inactive | State::Pending { .. }, Class::Clear | Class::Neither) => State::Inactive,
                (State::Firing { since, fired_at, clear }, Class::Clear) => {
                    State::Firing { since, fired_at, clear: clear.or(Some((at, 0))) }
                }
                (State::Firing { since, fired_at, .. }, class) => {
                    coverage.note("neither out nor clear while firing", class == Class::Neither);
                    State::Firing { since, fired_at, clear: None }
                }
            };
            if let State::Pending { since, .. } = state
                && piece.fires_at_once
            {
                coverage.note("at once in spite of a suspension", is_suspended);
                state = State::Firing { since, fired_at: at, clear: None };
            }
            reach(&mut state, coverage, false);
        }
        if let State::Firing { since, fired_at, clear } = state {
            episodes.push(self.episode(since, fired_at, None, clear.map(|(clear_since, _)| clear_since)));
        }
        episodes
    }
}
