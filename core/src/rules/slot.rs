//! One rule for one series: which state machine judges it, and what is asked of every one of them.
//!
//! *Running* lets time pass while the newest reading holds; *looking* takes a reading in. The state is what the readings
//! say up to the newest; *concluding* runs a copy of it on, so that what time alone makes true never becomes state.

use serde::{Deserialize, Serialize};

use super::band::{Band, BandRule, Class};
use super::binding::Binding;
use super::cadence::{Cadence, CadenceRule};
use super::cumulative::{Cumulative, CumulativeRule};
use super::disagreement::Disagreement;
use super::episode::{Conclusion, Episode, Telling};
use super::mean_kinetic_temperature::{Kinetic, KineticRule};
use super::rate::{Rate, RateRule};
use super::silence::Silence;
use super::stuck::{Run, StuckRule};
use super::suspension::{SuspendedBand, SuspendedRule};
use super::{Condition, RetractionReason, Rule, micro};
use crate::model::Timestamp;

/// Later than anything happens, and early enough to add any duration to.
pub(crate) const FOREVER: Timestamp = Timestamp::from_millis(i64::MAX / 4);

/// What a rule asks, in whole numbers.
#[derive(Clone, Debug)]
pub(crate) enum Method {
    Band(BandRule),
    Suspended(SuspendedRule),
    Kinetic(KineticRule),
    Rate(RateRule),
    Cumulative(CumulativeRule),
    Cadence(CadenceRule),
    Stuck(StuckRule),
    Disagreement(BandRule),
    Silence { for_ms: i64 },
}

/// Where a rule stands with a series.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) enum State {
    /// Nothing is remembered: everything follows from the last sign of life.
    Silence,
    Band(Option<Box<Band>>),
    Suspended(Box<SuspendedBand>),
    Kinetic(Box<Kinetic>),
    Rate(Box<Rate>),
    Cumulative(Option<Box<Cumulative>>),
    Cadence(Option<Box<Cadence>>),
    Stuck(Option<Box<Run>>),
    Disagreement(Box<Disagreement>),
}

/// What judging needs to know of a series besides the state.
#[derive(Clone, Copy, Debug)]
pub(crate) struct SeriesView {
    /// The time of the newest reading; [`Timestamp::MIN`] before any.
    pub(crate) newest: Timestamp,
    /// The newest reading with a value, before any the registration, else [`Timestamp::MIN`].
    pub(crate) alive_at: Timestamp,
    /// The newest value.
    pub(crate) last_value: Option<f64>,
    /// Another series of the sensor has been seen, this one not: it is not expected.
    pub(crate) is_muted: bool,
}

impl SeriesView {
    /// Returns the newest reading, if it has a value.
    fn held(&self) -> Option<(Timestamp, f64, i64)> {
        let value = self.last_value.filter(|_| self.newest == self.alive_at && self.newest > Timestamp::MIN)?;
        Some((self.newest, value, micro(value)))
    }

    fn telling<'a>(&self, binding: &'a Binding, out: &'a mut Vec<Conclusion>) -> Telling<'a> {
        Telling { binding, last_value: self.last_value, out }
    }

    fn is_expected(&self) -> bool {
        !self.is_muted && self.alive_at > Timestamp::MIN
    }
}

/// A reading, as one rule takes it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Input<'a> {
    pub(crate) at: Timestamp,
    /// The sensor it is of and until when it holds at most, where the rule looks at more than the one it judges.
    pub(crate) sensor: Option<(&'a str, Timestamp)>,
    /// The value, also in millionths.
    pub(crate) value: Option<(f64, i64)>,
}

impl Method {
    pub(crate) fn new(rule: &Rule) -> Self {
        let band = || BandRule::new(rule).expect("these kinds end in a band");
        match rule.condition {
            Condition::Range { suspend_while: Some(suspension), .. } => Self::Suspended(SuspendedRule {
                band: band(),
                is_micro: micro(suspension.is),
                plus_ms: suspension.plus_ms,
                at_most_ms: suspension.at_most_ms,
            }),
            Condition::Range { .. } | Condition::State { .. } => Self::Band(band()),
            Condition::MeanKineticTemperature { window, delta_h, min_known_ms, .. } => {
                Self::Kinetic(KineticRule::new(band(), window, delta_h, min_known_ms))
            }
            Condition::Rate { per_ms, rise, fall, .. } => {
                Self::Rate(RateRule { band: band(), per_ms, rise_micro: rise.map(micro), fall_micro: fall.map(micro) })
            }
            Condition::Cumulative { window, budget_ms, .. } => Self::Cumulative(CumulativeRule { window, budget_ms }),
            Condition::Cadence { every_ms, every_out_ms, share, window_ms } => {
                Self::Cadence(CadenceRule::new(every_ms, every_out_ms, share, window_ms))
            }
            Condition::Stuck { min_readings } => Self::Stuck(StuckRule { for_ms: rule.for_ms, min_readings }),
            Condition::Disagreement { .. } => Self::Disagreement(band()),
            Condition::Silence { .. } => Self::Silence { for_ms: rule.for_ms },
        }
    }

    /// Returns the state before any reading.
    pub(crate) fn initial(&self) -> State {
        match self {
            Self::Band(_) => State::Band(None),
            Self::Suspended(_) => State::Suspended(Box::new(SuspendedBand::new())),
            Self::Kinetic(_) => State::Kinetic(Box::default()),
            Self::Rate(_) => State::Rate(Box::default()),
            Self::Cumulative(_) => State::Cumulative(None),
            Self::Cadence(_) => State::Cadence(None),
            Self::Stuck(_) => State::Stuck(None),
            Self::Disagreement(_) => State::Disagreement(Box::new(Disagreement::new())),
            Self::Silence { .. } => State::Silence,
        }
    }

    /// Returns whether a state is one of this kind.
    pub(crate) fn fits(&self, state: &State) -> bool {
        std::mem::discriminant(&self.initial()) == std::mem::discriminant(state)
    }

    /// Returns whether it is about time without readings, so that readings which come late explain what it said.
    pub(crate) fn retraction_reason(&self) -> RetractionReason {
        match self {
            Self::Silence { .. } | Self::Cadence(_) => RetractionReason::Backlog,
            _ => RetractionReason::Contradicted,
        }
    }

    /// Returns whether a reading changes nothing, because nothing is going on and it is not out: the case that nearly all
    /// readings are.
    pub(crate) fn stays_idle(&self, state: &State, binding: &Binding, value: Option<(f64, i64)>) -> bool {
        match (self, state) {
            (Self::Band(rule), State::Band(None)) if binding.is_constant() => {
                value.is_none_or(|(value, value_micro)| {
                    rule.see(binding.at(Timestamp::MIN), value, value_micro).class != Class::Out
                })
            }
            _ => false,
        }
    }

    /// Tells what follows from the state by letting time pass until `until`.
    pub(crate) fn conclude(
        &self,
        state: &State,
        binding: &Binding,
        view: SeriesView,
        until: Timestamp,
        out: &mut Vec<Conclusion>,
    ) {
        if let Self::Silence { for_ms } = self {
            if view.is_expected() {
                silence(*for_ms, binding, view).conclude(until, out);
            }
            return;
        }
        if state.is_idle() && binding.begins_within(view.newest, until).is_none() {
            return;
        }
        let mut copy = match state {
            // Windows are only looked at when a reading comes; what holds until then is in the band.
            State::Kinetic(kinetic) => State::Kinetic(Box::new(kinetic.without_window())),
            State::Rate(rate) => State::Rate(Box::new(rate.without_window())),
            state => state.clone(),
        };
        self.run(&mut copy, view, (until, false), &mut view.telling(binding, out));
    }

    /// Takes a reading in, newer than what the state stands at or of the same instant where the rule sees several
    /// series, and tells what became true up to it and by it.
    pub(crate) fn apply(
        &self,
        state: &mut State,
        binding: &Binding,
        view: SeriesView,
        input: Input<'_>,
        out: &mut Vec<Conclusion>,
    ) {
        let Input { at, value, .. } = input;
        match (self, &mut *state) {
            (Self::Silence { for_ms }, _) => {
                // A failed probe is as silent as before.
                if value.is_some() && view.alive_at > Timestamp::MIN {
                    silence(*for_ms, binding, view).conclude_at_reading(at, out);
                }
            }
            (Self::Suspended(rule), State::Suspended(state)) => {
                rule.take(state, input, view.held(), &mut view.telling(binding, out));
            }
            (Self::Disagreement(rule), State::Disagreement(state)) => {
                state.take(rule, input, &mut view.telling(binding, out));
            }
            _ => {
                let mut telling = view.telling(binding, out);
                self.run(state, view, (at, true), &mut telling);
                let value = value.filter(|_| binding.counts(at));
                let holds_until = value.map_or(at, |_| binding.holds_until(at));
                telling.last_value = value.map(|(value, _)| value).or(view.last_value);
                self.look(state, at, value, holds_until, &mut telling);
            }
        }
    }

    /// Lets time pass; where `until_is_open`, readings at `until` itself are still to come.
    fn run(
        &self,
        state: &mut State,
        view: SeriesView,
        (until, until_is_open): (Timestamp, bool),
        telling: &mut Telling<'_>,
    ) {
        let binding = telling.binding;
        match (self, &mut *state) {
            (Self::Suspended(rule), State::Suspended(state)) => {
                if until >= state.seen {
                    rule.settle(state, (until, until_is_open), view.held(), telling);
                }
                return;
            }
            (Self::Disagreement(rule), State::Disagreement(state)) => {
                if until >= state.seen {
                    state.settle(rule, (until, until_is_open), telling);
                }
                return;
            }
            _ => {}
        }
        let begins_at = binding.begins_within(view.newest, until).filter(|from| !until_is_open || *from < until);
        if let Some(from) = begins_at
            && let Some((read_at, value, value_micro)) = view.held()
            && let Some(holds_until) = binding.held_at_begin(read_at)
        {
            // The reading held then is the rule's first, at its first instant.
            self.look(state, from, Some((value, value_micro)), holds_until, telling);
        }
        match (self, state) {
            (Self::Band(rule), State::Band(state)) => {
                let mut band = state.as_deref().copied();
                rule.run(&mut band, until, telling);
                set(state, band);
            }
            (Self::Kinetic(rule), State::Kinetic(state)) => {
                rule.band.run(&mut state.band, until, telling);
            }
            (Self::Rate(rule), State::Rate(state)) => {
                rule.band.run(&mut state.band, until, telling);
            }
            (Self::Cumulative(rule), State::Cumulative(Some(state))) => {
                rule.run(state, until, telling);
            }
            (Self::Cadence(rule), State::Cadence(state)) => {
                let mut cadence = state.as_deref().copied();
                rule.run(&mut cadence, until, telling);
                set(state, cadence);
            }
            (Self::Stuck(rule), State::Stuck(state)) => {
                let mut run = state.as_deref().copied();
                rule.run(&mut run, until, telling);
                set(state, run);
            }
            _ => {}
        }
    }

    /// Looks at a reading, after [`Method::run`] up to its time; `None` for one that does not count.
    fn look(
        &self,
        state: &mut State,
        at: Timestamp,
        value: Option<(f64, i64)>,
        holds_until: Timestamp,
        telling: &mut Telling<'_>,
    ) {
        let binding = telling.binding;
        let held = value.map(|(_, value_micro)| (value_micro, holds_until));
        match (self, state) {
            (Self::Band(rule), State::Band(state)) => {
                let seen =
                    value.map(|(value, value_micro)| (rule.see(binding.at(at), value, value_micro), holds_until));
                let mut band = state.as_deref().copied();
                rule.look(&mut band, at, seen, false, telling);
                set(state, band);
            }
            (Self::Kinetic(rule), State::Kinetic(state)) => {
                let seen = rule.see(state, binding, at, held);
                rule.band.look(&mut state.band, at, seen, false, telling);
            }
            (Self::Rate(rule), State::Rate(state)) => {
                let seen = held.map(|(value_micro, until)| (rule.see(state, at, value_micro), until));
                rule.band.look(&mut state.band, at, seen, false, telling);
            }
            (Self::Cumulative(rule), State::Cumulative(state)) => rule.look(state, binding, at, held),
            (Self::Cadence(rule), State::Cadence(state)) => {
                if let Some((value_micro, _)) = held {
                    let mut cadence = state.as_deref().copied();
                    rule.look(&mut cadence, binding, at, value_micro);
                    set(state, cadence);
                }
            }
            (Self::Stuck(rule), State::Stuck(state)) => {
                if let Some((value_micro, _)) = held {
                    let mut run = state.as_deref().copied();
                    rule.look(&mut run, at, value_micro, telling);
                    set(state, run);
                }
            }
            _ => {}
        }
    }

    /// Returns the episode that fires as far as the state goes.
    pub(crate) fn firing(&self, state: &State, binding: &Binding, view: SeriesView) -> Option<Episode> {
        let of_band = |rule: &BandRule, band: &Band| rule.firing(band, binding, view.last_value);
        match (self, state) {
            (Self::Band(rule), State::Band(state)) => of_band(rule, state.as_ref()?),
            (Self::Kinetic(rule), State::Kinetic(state)) => of_band(&rule.band, state.band.as_ref()?),
            (Self::Rate(rule), State::Rate(state)) => of_band(&rule.band, state.band.as_ref()?),
            (Self::Suspended(rule), State::Suspended(state)) => {
                rule.firing(state, binding, view.held(), view.last_value)
            }
            (Self::Disagreement(rule), State::Disagreement(state)) => state.firing(rule, binding),
            (Self::Cumulative(_), State::Cumulative(state)) => state.as_ref()?.firing(view.last_value),
            (Self::Cadence(rule), State::Cadence(state)) => rule.firing(state.as_ref()?, view.last_value),
            (Self::Stuck(_), State::Stuck(state)) => state.as_ref()?.firing(view.last_value),
            _ => None,
        }
    }

    /// Returns an instant not after the first conclusion behind the `told` ones, if there is one.
    pub(crate) fn next_instant(
        &self,
        state: &State,
        binding: &Binding,
        view: SeriesView,
        told: u16,
        scratch: &mut Vec<Conclusion>,
    ) -> Option<Timestamp> {
        if let Self::Silence { for_ms } = self
            && binding.is_constant()
        {
            let since = view.alive_at.plus_millis(binding.at(view.alive_at).max_gap_ms);
            return (view.is_expected() && told == 0).then(|| since.plus_millis(*for_ms));
        }
        scratch.clear();
        self.conclude(state, binding, view, FOREVER, scratch);
        scratch.get(usize::from(told)).map(|next| next.instant)
    }

    /// Returns the earliest start that an episode can have which is not settled by the readings so far.
    pub(crate) fn unsettled_from(&self, state: &State, SeriesView { newest, alive_at, .. }: SeriesView) -> Timestamp {
        let later = newest.plus_millis(1);
        let of_band = |band: Option<&Band>| band.map_or(later, |band| band.started_at.min(later));
        match state {
            // A failed probe is silent since it last had a value.
            State::Silence => alive_at.min(newest).plus_millis(1),
            State::Band(band) => of_band(band.as_deref()),
            State::Kinetic(state) => of_band(state.band.as_ref()),
            State::Rate(state) => of_band(state.band.as_ref()),
            State::Suspended(state) => of_band(state.band.as_ref()).min(state.seen),
            State::Disagreement(state) => of_band(state.band.as_ref()).min(state.seen),
            State::Cumulative(state) => state.as_ref().and_then(|state| state.firing_since).unwrap_or(later),
            State::Cadence(state) => {
                let since = state.as_ref().map(|state| state.failing_since.unwrap_or(state.window_from));
                since.map_or(later, |since| since.min(later))
            }
            State::Stuck(run) => run.as_ref().map_or(later, |run| run.since),
        }
    }
}

impl State {
    /// Returns whether nothing follows from it by time alone, whatever the binding.
    pub(crate) fn is_idle(&self) -> bool {
        match self {
            Self::Silence | Self::Disagreement(_) | Self::Suspended(_) => false,
            Self::Band(band) => band.is_none(),
            Self::Kinetic(state) => state.band.is_none(),
            Self::Rate(state) => state.band.is_none(),
            Self::Cumulative(state) => state.is_none(),
            Self::Cadence(state) => state.is_none(),
            Self::Stuck(run) => run.is_none(),
        }
    }

    /// Returns whether it is worth writing down.
    pub(crate) fn is_blank(&self) -> bool {
        match self {
            Self::Silence => true,
            Self::Disagreement(_) | Self::Suspended(_) | Self::Kinetic(_) | Self::Rate(_) => false,
            idle => idle.is_idle(),
        }
    }

    /// Returns the newest instant that a rule over several series has seen.
    pub(crate) fn seen(&self) -> Timestamp {
        match self {
            Self::Suspended(state) => state.seen,
            Self::Disagreement(state) => state.seen,
            _ => Timestamp::MIN,
        }
    }

    /// Returns since when an episode is pending, if one is.
    pub(crate) fn pending_since(&self) -> Option<Timestamp> {
        let band = match self {
            Self::Band(band) => band.as_deref(),
            Self::Kinetic(state) => state.band.as_ref(),
            Self::Rate(state) => state.band.as_ref(),
            Self::Suspended(state) => state.band.as_ref(),
            Self::Disagreement(state) => state.band.as_ref(),
            _ => None,
        };
        band.filter(|band| band.fired_at.is_none()).map(|band| band.started_at)
    }
}

fn silence(for_ms: i64, binding: &Binding, view: SeriesView) -> Silence<'_> {
    Silence { for_ms, binding, alive_at: view.alive_at, last_value: view.last_value }
}

/// Writes a state back, reusing its memory where it has some.
fn set<T>(place: &mut Option<Box<T>>, state: Option<T>) {
    match (place, state) {
        (Some(place), Some(state)) => **place = state,
        (place, state) => *place = state.map(Box::new),
    }
}
