//! `suspend_while`: a `range` whose time out of limits does not count while the unit defrosts.
//!
//! The rule sees several series, so what happens at one instant is known only when all readings of that instant are in.
//! The state therefore stands just before the newest instant, and keeps the readings of that instant beside it.

use serde::{Deserialize, Serialize};

use super::band::{Band, BandRule, Suspended};
use super::binding::Binding;
use super::episode::Telling;
use super::slot::Input;
use crate::model::Timestamp;

/// What such a rule asks.
#[derive(Clone, Copy, Debug)]
pub(crate) struct SuspendedRule {
    pub(crate) band: BandRule,
    pub(crate) is_micro: i64,
    pub(crate) plus_ms: i64,
    pub(crate) at_most_ms: i64,
}

/// An episode, what suspends the rule, and the readings of the newest instant.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct SuspendedBand {
    pub(crate) band: Option<Band>,
    /// The sensors that have suspended the rule, and until when they do if nothing else comes from them.
    suspending: Vec<(Box<str>, Timestamp)>,
    /// The start of the newest occurrence.
    occurs_since: Option<Timestamp>,
    /// Until when it lasts by the stretches in it that have ended.
    lasts_until: Timestamp,
    /// The newest instant.
    pub(crate) seen: Timestamp,
    /// The series' own reading at that instant.
    own: Option<Option<(f64, i64)>>,
    /// Readings of the suspending quantity at that instant, and until when they hold.
    others: Vec<(Box<str>, HeldValue)>,
}

/// A value in millionths and until when it holds; none for a failed probe.
pub(crate) type HeldValue = Option<(i64, Timestamp)>;

/// The series' own newest reading before the newest instant.
pub(crate) type OwnReading = Option<(Timestamp, f64, i64)>;

impl SuspendedBand {
    pub(crate) fn new() -> Self {
        Self {
            band: None,
            suspending: Vec::new(),
            occurs_since: None,
            lasts_until: Timestamp::MIN,
            seen: Timestamp::MIN,
            own: None,
            others: Vec::new(),
        }
    }
}

impl SuspendedRule {
    /// Returns the stretch in which the rule is suspended by the newest occurrence.
    fn suspended(&self, state: &SuspendedBand) -> Option<Suspended> {
        let from = state.occurs_since?;
        let until = self.lasts_until(state).min(from.plus_millis(self.at_most_ms));
        Some(Suspended { from, until })
    }

    fn lasts_until(&self, state: &SuspendedBand) -> Timestamp {
        let ongoing = state.suspending.iter().map(|(_, until)| until.plus_millis(self.plus_ms));
        ongoing.fold(state.lasts_until, Timestamp::max)
    }

    /// Takes a reading of the suspending quantity.
    fn suspend(&self, state: &mut SuspendedBand, at: Timestamp, sensor: Box<str>, value: HeldValue) {
        let suspends_until = value.filter(|(value_micro, _)| *value_micro == self.is_micro).map(|(_, until)| until);
        let known = state.suspending.iter().position(|(other, _)| *other == sensor);
        if let Some(index) = known {
            let (_, until) = &mut state.suspending[index];
            if let Some(longer) = suspends_until.filter(|_| at <= *until) {
                *until = longer;
                return;
            }
            let (_, until) = state.suspending.swap_remove(index);
            state.lasts_until = state.lasts_until.max(until.min(at).plus_millis(self.plus_ms));
        }
        if let Some(until) = suspends_until {
            if state.occurs_since.is_none() || at > self.lasts_until(state) {
                (state.occurs_since, state.lasts_until) = (Some(at), Timestamp::MIN);
            }
            state.suspending.push((sensor, until));
        }
    }

    /// Takes what suspends the rule already at the instant at which it first sees the unit.
    pub(crate) fn begin_with(&self, state: &mut SuspendedBand, at: Timestamp, sensor: &str, held: (i64, Timestamp)) {
        state.seen = state.seen.max(at);
        self.suspend(state, at, sensor.into(), Some(held));
    }

    /// Takes a reading at an instant not before the newest; `sensor` is that of another series.
    pub(crate) fn take(
        &self,
        state: &mut SuspendedBand,
        Input { at, sensor, value }: Input<'_>,
        own: OwnReading,
        telling: &mut Telling<'_>,
    ) {
        let binding = telling.binding;
        if at > state.seen {
            self.settle(state, (at, true), own, telling);
            state.seen = at;
        }
        let counted = value.filter(|_| binding.at(at).counts());
        match sensor {
            Some((sensor, holds_until)) => {
                let held = counted.map(|(_, value_micro)| (value_micro, holds_until));
                state.others.push((sensor.into(), held));
            }
            None => state.own = Some(counted),
        }
    }

    /// Judges the newest instant, then lets time pass until `until`; readings at `until` may be still to come.
    pub(crate) fn settle(
        &self,
        state: &mut SuspendedBand,
        (until, until_is_open): (Timestamp, bool),
        own: OwnReading,
        telling: &mut Telling<'_>,
    ) {
        let binding = telling.binding;
        self.close(state, own, telling);
        if let Some(from) = binding.begins_within(state.seen, until).filter(|from| !until_is_open || *from < until) {
            self.forget_what_was(state, from);
            let is_suspended = self.suspended(state).is_some_and(|suspended| suspended.contains(from));
            self.begin(state, (from, is_suspended), own, telling);
        }
        let suspended = self.suspended(state);
        self.band.run_suspended(&mut state.band, (until, until_is_open), suspended, telling);
    }

    /// Leaves of what suspended before the rule's term what still does at its first instant, from then on.
    fn forget_what_was(&self, state: &mut SuspendedBand, from: Timestamp) {
        let is_read_anew = |sensor: &str| state.others.iter().any(|(other, _)| **other == *sensor);
        state.suspending.retain(|(sensor, until)| *until > from && !is_read_anew(sensor));
        (state.occurs_since, state.lasts_until) = ((!state.suspending.is_empty()).then_some(from), Timestamp::MIN);
    }

    /// Takes the reading held at the first instant of the rule's term as its first, at that instant.
    fn begin(
        &self,
        state: &mut SuspendedBand,
        (from, is_suspended): (Timestamp, bool),
        own: OwnReading,
        telling: &mut Telling<'_>,
    ) {
        let binding = telling.binding;
        if let Some((read_at, value, value_micro)) = own.filter(|(read_at, ..)| *read_at < from)
            && let Some(holds_until) = binding.held_at_begin(read_at)
        {
            let seen = self.band.see(binding.at(from), value, value_micro);
            self.band.look(&mut state.band, from, Some((seen, holds_until)), is_suspended, telling);
        }
    }

    /// Judges the newest instant, of which all readings are in; `own` is the series' own newest reading.
    fn close(&self, state: &mut SuspendedBand, own: OwnReading, telling: &mut Telling<'_>) {
        let (at, binding) = (state.seen, telling.binding);
        let begins = at == binding.from && at > Timestamp::MIN;
        if begins {
            self.forget_what_was(state, at);
        }
        for (sensor, value) in std::mem::take(&mut state.others) {
            self.suspend(state, at, sensor, value);
        }
        let is_suspended = self.suspended(state).is_some_and(|suspended| suspended.contains(at));
        if !is_suspended {
            self.band.fire_what_needs_no_time(&mut state.band, at, telling);
        }
        if begins && state.own.is_none() {
            self.begin(state, (at, is_suspended), own, telling);
        }
        if let Some(own) = state.own.take() {
            let seen = own.filter(|_| binding.applies(at)).map(|(value, value_micro)| {
                (self.band.see(binding.at(at), value, value_micro), binding.holds_until(at))
            });
            self.band.look(&mut state.band, at, seen, is_suspended, telling);
        }
    }

    /// Returns the episode as the readings so far make it, if it has fired.
    pub(crate) fn firing(
        &self,
        state: &SuspendedBand,
        binding: &Binding,
        own: OwnReading,
        last_value: Option<f64>,
    ) -> Option<super::Episode> {
        let mut closed = state.clone();
        self.close(&mut closed, own, &mut Telling { binding, last_value, out: &mut Vec::new() });
        // Should it end with the newest instant, that has not been told yet.
        let band = closed.band.or(state.band).filter(|_| state.band.is_some_and(|band| band.fired_at.is_some()))?;
        self.band.firing(&band, binding, last_value)
    }
}
