//! The engine: every series of every unit, what the rules think of it, and time.
//!
//! # Two kinds of knowledge
//!
//! The *state* of a rule for a series stands at the newest reading of the series: it is what the readings say up to and
//! including that one. What follows from the state by letting time pass is *provisional*: a reading may still come that
//! is newer than the newest and older than now. It is worked out when asked for, by the same code that readings run
//! through, on a copy; the state never learns of it. All that is remembered is how many provisional conclusions have
//! been told.
//!
//! So when a reading comes, what was told is worked out again from the state as it was, and compared with what is true
//! now: the same again is confirmed without a word; the rest is taken back.
//!
//! # Order
//!
//! [`Engine::observe`] takes readings newer than the newest of their series. An older one changes what the state was
//! built from; whoever drives the engine judges the unit again, from a state before it. The same goes for a reading that
//! is older than the newest that a rule over several series has seen: [`Timeliness`] tells.
//!
//! # Configurations
//!
//! Rules and registry change with time, in event time: each version of a rule judges the readings of its own term, and
//! at the end of one term the engine ends what fires by it as it would at the end of duty. See [`Era`].
//!
//! # Deadlines
//!
//! A series has at most one current entry in a heap of deadlines. An entry may be too early, never too late: it is put
//! off when it comes up. Telling waits besides until nothing has come from the series for a second, by the clock of
//! arrival, so that a truck that uploads three days of readings in order does not fire and take back silence with each
//! of them. That clock goes on where *now* is what readings say, and stands still with them.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};
use std::sync::Arc;

use foldhash::fast::RandomState;

use super::binding::Binding;
use super::episode::{Change, Conclusion, Episode, RetractionReason, RuleIndex, Transition};
use super::era::{Era, Eras, Term};
use super::slot::{FOREVER, Input, Method, SeriesView, State};
use super::{Condition, Rule, SilenceScope, micro};
use crate::model::{Kind, Reading, SeriesKey, Timestamp, UnitKey};

/// The engine's own short name of a series, or of a unit for a rule about a whole unit; not stable across restarts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SeriesId(pub u32);

/// What a [`SeriesId`] stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Subject<'a> {
    /// The unit.
    pub unit: &'a UnitKey,
    /// The sensor; `None` for a whole unit.
    pub sensor: Option<&'a str>,
    /// What is measured; `None` for a whole unit.
    pub kind: Option<Kind>,
}

/// An episode that has not held for long enough yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PendingEpisode {
    /// Which rule.
    pub rule: RuleIndex,
    /// Which series.
    pub series: SeriesId,
    /// The time of its first reading.
    pub since: Timestamp,
}

/// An episode that has fired and has not ended.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct FiringEpisode {
    /// Which rule.
    pub rule: RuleIndex,
    /// Which series, or which unit for a rule about a whole unit.
    pub series: SeriesId,
    /// Its figures up to the newest reading.
    pub episode: Episode,
}

/// Whether every rule could take a reading in where it stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Timeliness {
    /// All could.
    InTime,
    /// A rule over several series of the unit has seen a later instant: the unit is to be judged again from the reading
    /// on.
    LateForUnit,
}

/// Judges readings by rules; see the module's essay.
#[derive(Clone, Debug)]
pub struct Engine {
    eras: Arc<Eras>,
    /// The rules of the terms in whole numbers.
    methods: Arc<[Method]>,
    /// How long a provisional conclusion waits before it is told.
    settle_ms: i64,
    /// Whether transitions into and out of pending are told.
    tells_pending: bool,
    pub(crate) units: Vec<UnitEntry>,
    unit_numbers: HashMap<Arc<UnitKey>, u32, RandomState>,
    pub(crate) series: Vec<Series>,
    /// What rules mean for units, each different meaning once.
    bindings: Vec<Binding>,
    binding_numbers: HashMap<Binding, u32, RandomState>,
    deadlines: BinaryHeap<Reverse<(Timestamp, SeriesId)>>,
    /// Series that are due and not quiet for long enough, each once, with when they will be by the clock of arrival.
    unquiet: BinaryHeap<Reverse<(Timestamp, SeriesId)>>,
    /// The clock of arrival.
    arrived_at: Timestamp,
    /// Reused, so that judging a reading allocates nothing.
    scratch: Scratch,
}

#[derive(Clone, Debug, Default)]
struct Scratch {
    actual: Vec<Conclusion>,
    told: Vec<Conclusion>,
}

#[derive(Clone, Debug)]
pub(crate) struct UnitEntry {
    pub(crate) key: Arc<UnitKey>,
    /// For every rule the number of its binding, or [`NO_BINDING`].
    bindings: Box<[u32]>,
    sensors: HashMap<Arc<str>, Vec<SeriesId>, RandomState>,
    /// What rules about the whole unit see, where there are any.
    pub(crate) whole: Option<SeriesId>,
    /// The series with rules that a quantity of the unit suspends.
    suspended: Vec<(Kind, SeriesId)>,
    /// Whether anything changed since the changed units were last asked for.
    pub(crate) is_changed: bool,
}

const NO_BINDING: u32 = u32::MAX;
/// For how long nothing must have come from a series before what time makes of it is told: a backlog comes faster.
const QUIET_MS: i64 = 1_000;

#[derive(Clone, Debug)]
pub(crate) struct Series {
    unit: u32,
    pub(crate) sensor: Option<Arc<str>>,
    pub(crate) kind: Option<Kind>,
    /// Another series of the sensor has been seen, this one not: it is not expected.
    pub(crate) is_muted: bool,
    /// The time of the newest reading; [`Timestamp::MIN`] before any.
    pub(crate) newest: Timestamp,
    /// The newest value; not a number before any.
    pub(crate) last_value: f64,
    /// The newest reading with a value, before any the registration, else [`Timestamp::MIN`].
    pub(crate) alive_at: Timestamp,
    /// When the newest reading came, by the clock of arrival.
    pub(crate) observed_at: Timestamp,
    /// The time of the current entry among the deadlines; [`Timestamp::MAX`] without one.
    scheduled: Timestamp,
    /// Whether it is among those that are due and not quiet.
    is_unquiet: bool,
    pub(crate) slots: Box<[Slot]>,
}

/// One rule for one series.
#[derive(Clone, Debug)]
pub(crate) struct Slot {
    pub(crate) rule: RuleIndex,
    /// How many of the provisional conclusions have been told.
    pub(crate) told: u16,
    binding: u32,
    pub(crate) state: State,
}

impl Series {
    pub(crate) fn view(&self) -> SeriesView {
        let last_value = (!self.last_value.is_nan()).then_some(self.last_value);
        let Self { newest, alive_at, is_muted, .. } = *self;
        SeriesView { newest, alive_at, last_value, is_muted }
    }
}

/// The part of the engine that does not change while it judges.
#[derive(Clone, Copy)]
struct Law<'a> {
    methods: &'a [Method],
    bindings: &'a [Binding],
}

impl<'a> Law<'a> {
    fn of(&self, slot: &Slot) -> (&'a Method, &'a Binding) {
        (&self.methods[usize::from(slot.rule.0)], &self.bindings[slot.binding as usize])
    }

    fn conclude(&self, slot: &Slot, series: SeriesView, until: Timestamp, out: &mut Vec<Conclusion>) {
        let (method, binding) = self.of(slot);
        method.conclude(&slot.state, binding, series, until, out);
    }

    /// Returns the episode that was told to have fired and not to have ended, if there is one.
    fn firing(&self, slot: &Slot, series: SeriesView) -> Option<Episode> {
        if slot.told > 0 {
            let mut told = Vec::new();
            self.conclude(slot, series, FOREVER, &mut told);
            told.truncate(usize::from(slot.told));
            return told.last().filter(|last| !last.is_resolution()).map(|last| last.episode);
        }
        let (method, binding) = self.of(slot);
        method.firing(&slot.state, binding, series)
    }
}

impl Engine {
    /// Returns an engine without any reading.
    ///
    /// Provisional conclusions are told `settle_ms` after they are true.
    pub fn new(first: Era, settle_ms: i64) -> Self {
        let mut engine = Self::blank(Arc::new(Eras::new(first)), settle_ms);
        engine.expect_registered_sensors();
        engine
    }

    fn blank(eras: Arc<Eras>, settle_ms: i64) -> Self {
        Self {
            methods: eras.terms().iter().map(|term| Method::new(&term.rule)).collect(),
            eras,
            settle_ms,
            tells_pending: false,
            units: Vec::new(),
            unit_numbers: HashMap::default(),
            series: Vec::new(),
            bindings: Vec::new(),
            binding_numbers: HashMap::default(),
            deadlines: BinaryHeap::new(),
            unquiet: BinaryHeap::new(),
            arrived_at: Timestamp::MIN,
            scratch: Scratch::default(),
        }
    }

    /// Returns an engine of the same configurations that knows only one unit, and no reading of it.
    pub fn blank_for_unit(&self, unit: &UnitKey) -> Self {
        let mut blank = Self::blank(Arc::clone(&self.eras), self.settle_ms);
        blank.expect_sensors_of(unit);
        blank
    }

    /// Creates the series whose silence is to be noticed although no reading of them may ever come.
    fn expect_registered_sensors(&mut self) {
        let eras = Arc::clone(&self.eras);
        for unit in eras.newest_registry().sensors.keys() {
            self.expect_sensors_of(unit);
        }
    }

    fn expect_sensors_of(&mut self, unit: &UnitKey) {
        let eras = Arc::clone(&self.eras);
        let Some(sensors) = eras.newest_registry().sensors.get(unit) else { return };
        let number = self.unit(unit);
        for term in eras.terms() {
            if term.rule.condition != (Condition::Silence { scope: SilenceScope::Sensor }) {
                continue;
            }
            for sensor in sensors.keys() {
                let id = self.series_of_unit(number, sensor, term.rule.quantity);
                self.schedule(id);
            }
        }
        if let Some(whole) = self.units[number as usize].whole {
            self.schedule(whole);
        }
    }

    /// Makes [`Engine::observe`] tell transitions into and out of pending too.
    pub fn tell_pending(&mut self, tells_pending: bool) {
        self.tells_pending = tells_pending;
    }

    /// Returns the rule at an index; that of an ended version keeps its index.
    pub fn rule(&self, index: RuleIndex) -> &Arc<Rule> {
        &self.term(index).rule
    }

    /// Returns whether some version of a rule has this id.
    pub fn knows_rule(&self, id: &str) -> bool {
        self.eras.terms().iter().any(|term| *term.rule.id == *id)
    }

    pub(crate) fn term(&self, index: RuleIndex) -> &Term {
        &self.eras.terms()[usize::from(index.0)]
    }

    pub(crate) fn method(&self, index: RuleIndex) -> &Method {
        &self.methods[usize::from(index.0)]
    }

    /// Returns the index of a rule's version that judges from an instant on.
    pub(crate) fn rule_index(&self, version: &str, from: Timestamp) -> Option<RuleIndex> {
        let is_it = |term: &Term| *term.rule.version == *version && term.from == from;
        self.eras.terms().iter().position(is_it).map(|index| RuleIndex(index as u16))
    }

    /// Returns the short name of a series, which is the same at every call.
    pub fn series(&mut self, key: &SeriesKey) -> SeriesId {
        let unit = self.unit(&key.unit);
        self.series_of_unit(unit, &key.sensor, key.kind)
    }

    /// Returns what a short name stands for.
    pub fn subject(&self, id: SeriesId) -> Subject<'_> {
        let series = &self.series[id.0 as usize];
        Subject { unit: &self.units[series.unit as usize].key, sensor: series.sensor.as_deref(), kind: series.kind }
    }

    /// Returns the time of the newest reading of a series, if it has one.
    pub fn newest(&self, id: SeriesId) -> Option<Timestamp> {
        Some(self.series[id.0 as usize].newest).filter(|newest| *newest > Timestamp::MIN)
    }

    /// Applies one reading, newer than the newest of its series, and appends the transitions it causes, in event-time
    /// order for each rule.
    pub fn observe(
        &mut self,
        id: SeriesId,
        reading: &Reading,
        now: Timestamp,
        out: &mut Vec<Transition>,
    ) -> Timeliness {
        let at = reading.event_time;
        let value = reading.value.map(|value| (value, micro(value)));
        debug_assert!(at > self.series[id.0 as usize].newest, "a late reading is not the engine's");
        if self.series[id.0 as usize].newest == Timestamp::MIN {
            self.mute_siblings(id, out);
        }
        let mut timeliness = self.observe_own(id, at, value, now, out);
        let unit = self.series[id.0 as usize].unit as usize;
        self.units[unit].is_changed = true;
        if self.units[unit].whole.is_some() || !self.units[unit].suspended.is_empty() {
            timeliness = timeliness.and(self.observe_for_unit(id, at, value, now, out));
        }
        timeliness
    }

    /// Lets a reading be judged by the rules of its own series.
    fn observe_own(
        &mut self,
        id: SeriesId,
        at: Timestamp,
        value: Option<(f64, i64)>,
        now: Timestamp,
        out: &mut Vec<Transition>,
    ) -> Timeliness {
        let series = &mut self.series[id.0 as usize];
        let before = series.view();
        series.newest = at;
        series.observed_at = self.arrived_at;
        series.is_muted = false;
        if let Some((value, _)) = value {
            series.last_value = value;
            // Off duty a reading says nothing, not even that more are to be expected of a sensor that nobody registered.
            let is_on_duty = |slot: &Slot| self.bindings[slot.binding as usize].at(at).is_on_duty;
            if series.alive_at > Timestamp::MIN || series.slots.first().is_none_or(is_on_duty) {
                series.alive_at = at;
            }
        }
        let mut timeliness = Timeliness::InTime;
        let mut slots = std::mem::take(&mut series.slots);
        let after = series.view();
        let input = Input { at, sensor: None, value };
        let mut is_quiet = true;
        for slot in &mut slots {
            let (method, binding) = Law { methods: &self.methods, bindings: &self.bindings }.of(slot);
            if !method.stays_idle(&slot.state, binding, value) {
                is_quiet = false;
                timeliness = timeliness.and(self.observe_slot(id, slot, (before, after), input, now, out));
            }
        }
        self.series[id.0 as usize].slots = slots;
        if !is_quiet {
            self.schedule(id);
        }
        timeliness
    }

    /// Lets a reading be judged by the rules of other series that look at it, and by those about the whole unit.
    fn observe_for_unit(
        &mut self,
        id: SeriesId,
        at: Timestamp,
        value: Option<(f64, i64)>,
        now: Timestamp,
        out: &mut Vec<Transition>,
    ) -> Timeliness {
        let mut timeliness = Timeliness::InTime;
        let Series { unit, sensor, kind, .. } = &self.series[id.0 as usize];
        let (unit, kind, sensor) = (*unit as usize, *kind, sensor.clone());
        let Some(sensor) = sensor.as_deref() else { return timeliness };
        for index in 0..self.units[unit].suspended.len() {
            let (quantity, follower) = self.units[unit].suspended[index];
            if Some(quantity) != kind || follower == id {
                continue;
            }
            let series = &mut self.series[follower.0 as usize];
            series.observed_at = self.arrived_at;
            let view = series.view();
            let mut slots = std::mem::take(&mut series.slots);
            for slot in &mut slots {
                if matches!(self.rule(slot.rule).suspending_quantity(), Some(quantity) if Some(quantity) == kind) {
                    let holds_until = self.holds_until(unit, slot.rule, sensor, at);
                    let input = Input { at, sensor: Some((sensor, holds_until)), value };
                    timeliness = timeliness.and(self.observe_slot(follower, slot, (view, view), input, now, out));
                }
            }
            self.series[follower.0 as usize].slots = slots;
            self.schedule(follower);
        }
        let Some(whole) = self.units[unit].whole else { return timeliness };
        let series = &mut self.series[whole.0 as usize];
        let before = series.view();
        let is_newest = at > series.newest;
        series.observed_at = self.arrived_at;
        if is_newest {
            // Any reading is a sign of life of the unit, also a failed one.
            (series.newest, series.alive_at) = (at, at);
        }
        let is_late = at < before.newest;
        let after = series.view();
        let mut slots = std::mem::take(&mut series.slots);
        for slot in &mut slots {
            let rule = self.rule(slot.rule);
            let is_looked_at = match self.method(slot.rule) {
                Method::Silence { .. } => {
                    if is_late {
                        timeliness = Timeliness::LateForUnit;
                    } else if is_newest {
                        let input = Input { at, sensor: None, value: Some((f64::NAN, 0)) };
                        timeliness = timeliness.and(self.observe_slot(whole, slot, (before, after), input, now, out));
                    }
                    continue;
                }
                Method::Suspended(_) => rule.suspending_quantity() == kind,
                _ => Some(rule.quantity) == kind && rule.selector.matches_sensor(sensor),
            };
            if is_looked_at {
                let holds_until = self.holds_until(unit, slot.rule, sensor, at);
                let input = Input { at, sensor: Some((sensor, holds_until)), value };
                timeliness = timeliness.and(self.observe_slot(whole, slot, (after, after), input, now, out));
            }
        }
        self.series[whole.0 as usize].slots = slots;
        self.schedule(whole);
        timeliness
    }

    /// Returns until when a reading of some sensor of a unit holds at most for a rule over several series.
    fn holds_until(&self, unit: usize, rule: RuleIndex, sensor: &str, read_at: Timestamp) -> Timestamp {
        let UnitEntry { key, bindings, .. } = &self.units[unit];
        let binding = &self.bindings[bindings[usize::from(rule.0)] as usize];
        let of_rule = self.rule(rule).max_gap_ms;
        let own_max_gap_ms = of_rule.or_else(|| self.eras.own_max_gap_ms(key, sensor, read_at));
        binding.holds_until_by(read_at, own_max_gap_ms.unwrap_or(binding.at(read_at).max_gap_ms))
    }

    /// Lets one rule take a reading in: tells what became true, confirms or takes back what had been told.
    fn observe_slot(
        &mut self,
        id: SeriesId,
        slot: &mut Slot,
        (before, after): (SeriesView, SeriesView),
        input: Input<'_>,
        now: Timestamp,
        out: &mut Vec<Transition>,
    ) -> Timeliness {
        if input.at < slot.state.seen() {
            return Timeliness::LateForUnit;
        }
        let law = Law { methods: &self.methods, bindings: &self.bindings };
        let (method, binding) = law.of(slot);
        let Scratch { actual, told } = &mut self.scratch;
        actual.clear();
        told.clear();
        if slot.told > 0 {
            law.conclude(slot, before, now, told);
            told.truncate(usize::from(slot.told));
        }
        let was_pending = slot.state.pending_since();
        method.apply(&mut slot.state, binding, before, input, actual);
        let mut emit = |instant, provisional, change| {
            out.push(Transition { rule: slot.rule, series: id, instant, provisional, change });
        };
        if told.is_empty() {
            slot.told = 0;
            for conclusion in &*actual {
                emit(conclusion.instant, false, change_of(conclusion));
            }
        } else if matches!(method, Method::Silence { .. }) && input.value.is_none() {
            // A failed probe neither confirms a silence nor ends it.
        } else {
            let from_reading = actual.len();
            law.conclude(slot, after, now, actual);
            let confirmed = told.iter().zip(&*actual).take_while(|(told, true_now)| told.says_the_same(true_now));
            let confirmed = confirmed.count();
            for (told, true_now) in told.iter().zip(&*actual).take(confirmed) {
                let as_told = Episode { last_value: told.episode.last_value, ..true_now.episode };
                if told.is_resolution() && told.episode != as_told {
                    emit(true_now.instant, true, Change::Updated(true_now.episode));
                }
            }
            take_back(&told[confirmed..], method.retraction_reason(), &mut emit);
            for conclusion in &actual[confirmed.min(from_reading)..from_reading] {
                emit(conclusion.instant, false, change_of(conclusion));
            }
            slot.told = confirmed.saturating_sub(from_reading) as u16;
        }
        if self.tells_pending {
            let is_pending = slot.state.pending_since();
            if was_pending != is_pending {
                let has_fired = actual.iter().any(|c| was_pending == Some(c.episode.started_at));
                if let Some(since) = was_pending.filter(|_| !has_fired) {
                    emit(input.at, false, Change::PendingEnded { since });
                }
                if let Some(since) = is_pending {
                    emit(since, false, Change::Pending { since });
                }
            }
        }
        Timeliness::InTime
    }

    /// Lets time pass until `now`, and appends the transitions that are true without a reading and have not been told.
    ///
    /// A spurious call does nothing.
    pub fn advance(&mut self, now: Timestamp, out: &mut Vec<Transition>) {
        while let Some(Reverse((quiet_at, id))) = self.unquiet.peek().copied()
            && quiet_at <= self.arrived_at
        {
            self.unquiet.pop();
            self.series[id.0 as usize].is_unquiet = false;
            self.schedule(id);
        }
        while let Some(Reverse((deadline, id))) = self.deadlines.peek().copied()
            && deadline <= now
        {
            self.deadlines.pop();
            let series = &mut self.series[id.0 as usize];
            // Otherwise an earlier entry took its place.
            if series.scheduled != deadline {
                continue;
            }
            series.scheduled = Timestamp::MAX;
            let quiet_at = series.observed_at.plus_millis(self.settle_ms.min(QUIET_MS));
            if quiet_at <= self.arrived_at || self.arrived_at == Timestamp::MIN {
                self.tell(id, now, out);
                self.schedule(id);
            } else if !series.is_unquiet {
                series.is_unquiet = true;
                self.unquiet.push(Reverse((quiet_at, id)));
            }
        }
    }

    /// Says what the clock of arrival shows. Who never says it is taken to have all readings together already.
    pub fn arrive_at(&mut self, arrived_at: Timestamp) {
        self.arrived_at = self.arrived_at.max(arrived_at);
    }

    /// Returns when [`Engine::advance`] should next be called, if ever, by the rules' *now*; never too late.
    pub fn next_deadline(&self) -> Option<Timestamp> {
        self.deadlines.peek().map(|Reverse((deadline, _))| *deadline)
    }

    /// Returns when [`Engine::advance`] should next be called, if ever, by the clock of arrival.
    pub fn next_quiet(&self) -> Option<Timestamp> {
        self.unquiet.peek().map(|Reverse((quiet_at, _))| *quiet_at)
    }

    fn tell(&mut self, id: SeriesId, now: Timestamp, out: &mut Vec<Transition>) {
        let law = Law { methods: &self.methods, bindings: &self.bindings };
        let conclusions = &mut self.scratch.actual;
        let series = &mut self.series[id.0 as usize];
        let view = series.view();
        for slot in &mut series.slots {
            conclusions.clear();
            law.conclude(slot, view, now.plus_millis(-self.settle_ms), conclusions);
            for conclusion in conclusions.iter().skip(usize::from(slot.told)) {
                let (instant, change) = (conclusion.instant, change_of(conclusion));
                out.push(Transition { rule: slot.rule, series: id, instant, provisional: true, change });
                self.units[series.unit as usize].is_changed = true;
            }
            slot.told = slot.told.max(conclusions.len() as u16);
        }
    }

    /// Lets time pass until `now` for every series, however lately its newest reading was observed: what was told before
    /// the unit was judged again is then told again.
    pub(crate) fn tell_all(&mut self, now: Timestamp, out: &mut Vec<Transition>) {
        for number in 0..self.series.len() {
            let id = SeriesId(number as u32);
            self.tell(id, now, out);
            self.schedule(id);
        }
    }

    /// Enters the series among the deadlines where it has none, or an earlier one than it is entered with.
    pub(crate) fn schedule(&mut self, id: SeriesId) {
        let law = Law { methods: &self.methods, bindings: &self.bindings };
        let series = &mut self.series[id.0 as usize];
        let view = series.view();
        let mut next: Option<Timestamp> = None;
        for slot in &series.slots {
            let (method, binding) = law.of(slot);
            let instant = method.next_instant(&slot.state, binding, view, slot.told, &mut self.scratch.told);
            next = next.into_iter().chain(instant).min();
        }
        if let Some(next) = next {
            let deadline = next.plus_millis(self.settle_ms);
            if deadline < series.scheduled && !series.is_unquiet {
                series.scheduled = deadline;
                self.deadlines.push(Reverse((deadline, id)));
            }
        }
    }

    /// The first reading of a sensor shows that it lives: what else was expected of it, because it is registered and no
    /// more is known, is expected no longer.
    fn mute_siblings(&mut self, id: SeriesId, out: &mut Vec<Transition>) {
        let series = &self.series[id.0 as usize];
        let Some(sensor) = &series.sensor else { return };
        let siblings = &self.units[series.unit as usize].sensors[sensor];
        if siblings.len() == 1 {
            return;
        }
        let law = Law { methods: &self.methods, bindings: &self.bindings };
        for sibling in siblings.iter().filter(|sibling| **sibling != id) {
            let series = &mut self.series[sibling.0 as usize];
            if series.newest != Timestamp::MIN || series.is_muted {
                continue;
            }
            let view = series.view();
            series.is_muted = true;
            for slot in &mut series.slots {
                let told = &mut self.scratch.told;
                told.clear();
                law.conclude(slot, view, FOREVER, told);
                told.truncate(usize::from(std::mem::take(&mut slot.told)));
                take_back(told, RetractionReason::Backlog, &mut |instant, provisional, change| {
                    out.push(Transition { rule: slot.rule, series: *sibling, instant, provisional, change });
                });
            }
        }
    }

    /// Returns the episodes of a unit that have not held for long enough yet, as far as the readings go.
    pub fn pending(&self, unit: &UnitKey) -> Vec<PendingEpisode> {
        let ids = self.unit_numbers.get(unit).map(|number| self.series_ids(*number)).unwrap_or_default();
        let of_series = |id: SeriesId| {
            let slots = self.series[id.0 as usize].slots.iter();
            slots.filter_map(move |slot| {
                let since = slot.state.pending_since().filter(|_| slot.told == 0)?;
                Some(PendingEpisode { rule: slot.rule, series: id, since })
            })
        };
        ids.into_iter().flat_map(of_series).collect()
    }

    /// Returns the episodes of a unit that were told to have fired and not to have ended, with their figures as the
    /// newest readings make them.
    pub fn firing(&self, unit: &UnitKey) -> Vec<FiringEpisode> {
        let ids = self.known_unit(unit).map(|number| self.series_ids(number)).unwrap_or_default();
        let law = Law { methods: &self.methods, bindings: &self.bindings };
        let mut firing = Vec::new();
        for series in ids {
            let view = self.series[series.0 as usize].view();
            for slot in &self.series[series.0 as usize].slots {
                let episode = law.firing(slot, view);
                firing.extend(episode.map(|episode| FiringEpisode { rule: slot.rule, series, episode }));
            }
        }
        firing
    }

    /// Returns the units that the engine knows.
    pub fn units(&self) -> impl Iterator<Item = &UnitKey> {
        self.units.iter().map(|unit| &*unit.key)
    }

    /// Returns the units whose state changed since the last call.
    pub fn take_changed_units(&mut self) -> Vec<UnitKey> {
        let changed = self
            .units
            .iter_mut()
            .filter_map(|unit| std::mem::take(&mut unit.is_changed).then(|| UnitKey::clone(&unit.key)));
        changed.collect()
    }

    /// Takes the first configuration to have been loaded earlier than was thought, where readings bring the time and an
    /// older one has come. The units with registered sensors are to be judged again, from before their first reading.
    pub fn begin_at(&mut self, at: Timestamp) {
        Arc::make_mut(&mut self.eras).begin_at(at);
    }

    /// Goes over to another configuration at the instant at which it was loaded.
    ///
    /// Short names stay, and a rule of which the same version goes on keeps its state. What ends by the change is told
    /// as time passes, like everything that no reading causes.
    pub fn reconfigure(&mut self, era: Era, settle_ms: i64) {
        let eras = Arc::make_mut(&mut self.eras);
        eras.push(era);
        self.methods = eras.terms().iter().map(|term| Method::new(&term.rule)).collect();
        self.settle_ms = settle_ms;
        self.bindings.clear();
        self.binding_numbers.clear();
        self.deadlines.clear();
        self.unquiet.clear();
        for number in 0..self.units.len() as u32 {
            self.rebind_unit(number);
        }
        self.expect_registered_sensors();
    }

    /// Works out anew what the rules mean for a unit, keeping the state of those that go on.
    fn rebind_unit(&mut self, number: u32) {
        let key = Arc::clone(&self.units[number as usize].key);
        let bindings = self.bindings_of(&key);
        let unit = &mut self.units[number as usize];
        (unit.bindings, unit.is_changed) = (bindings, true);
        unit.suspended.clear();
        self.add_whole(number);
        for id in self.series_ids(number) {
            let sensor = self.series[id.0 as usize].sensor.clone();
            let Series { kind, newest, .. } = self.series[id.0 as usize];
            let slots = self.slots(number, sensor.as_deref().zip(kind), newest);
            let series = &mut self.series[id.0 as usize];
            (series.scheduled, series.is_unquiet) = (Timestamp::MAX, false);
            let mut old = std::mem::take(&mut series.slots).into_vec();
            let goes_on = |slot: &Slot, old: &mut Vec<Slot>| {
                let position = old.iter().position(|old| old.rule == slot.rule)?;
                Some(old.swap_remove(position))
            };
            let taken_over = slots.into_vec().into_iter().map(|slot| match goes_on(&slot, &mut old) {
                Some(known) => Slot { binding: slot.binding, ..known },
                None => self.with_what_holds(number, slot),
            });
            let slots: Box<[Slot]> = taken_over.collect();
            let series = &mut self.series[id.0 as usize];
            series.slots = slots;
            if series.newest == Timestamp::MIN && series.alive_at == Timestamp::MIN {
                let known_since = match &sensor {
                    Some(sensor) => self.eras.registered_at(&key, sensor),
                    None => self.eras.unit_registered_at(&key),
                };
                series.alive_at = known_since.unwrap_or(Timestamp::MIN);
            }
            self.note_suspended(number, id);
            self.schedule(id);
        }
    }

    /// Gives rules over several series that were not there when a unit's state was saved what its series hold.
    pub(crate) fn complete_unit(&mut self, number: u32, restored: &[(SeriesId, RuleIndex)]) {
        self.hear_unit(number);
        for id in self.series_ids(number) {
            let mut slots = std::mem::take(&mut self.series[id.0 as usize].slots).into_vec();
            for slot in &mut slots {
                if !restored.contains(&(id, slot.rule)) {
                    let blank = Slot { state: self.method(slot.rule).initial(), ..slot.clone() };
                    *slot = self.with_what_holds(number, blank);
                }
            }
            self.series[id.0 as usize].slots = slots.into();
        }
    }

    /// Lets what stands for the whole unit hear what its series have heard.
    fn hear_unit(&mut self, number: u32) {
        let unit = &self.units[number as usize];
        let Some(whole) = unit.whole else { return };
        let of_unit = unit.sensors.values().flatten();
        let newest = of_unit.map(|id| self.series[id.0 as usize].newest).max().unwrap_or(Timestamp::MIN);
        let series = &mut self.series[whole.0 as usize];
        if newest > series.newest {
            (series.newest, series.alive_at) = (newest, newest);
        }
    }

    /// Gives a new rule over several series what the unit's series hold already.
    fn with_what_holds(&self, unit: u32, mut slot: Slot) -> Slot {
        if !matches!(slot.state, State::Suspended(_) | State::Disagreement(_)) {
            return slot;
        }
        if let Some(State::Suspended(of_unit)) = self.state_of_whole(unit, slot.rule) {
            slot.state = State::Suspended(of_unit.clone());
            return slot;
        }
        let binding = &self.bindings[slot.binding as usize];
        let rule = self.rule(slot.rule);
        for id in self.series_ids(unit) {
            let series = &self.series[id.0 as usize];
            let Some(sensor) = &series.sensor else { continue };
            let read_at = series.newest;
            if read_at == Timestamp::MIN || read_at != series.alive_at || !binding.at(read_at).counts() {
                continue;
            }
            let held = (micro(series.last_value), self.holds_until(unit as usize, slot.rule, sensor, read_at));
            match (self.method(slot.rule), &mut slot.state) {
                (Method::Suspended(method), State::Suspended(state)) if rule.suspending_quantity() == series.kind => {
                    method.begin_with(state, read_at, sensor, held);
                }
                (Method::Disagreement(_), State::Disagreement(state))
                    if series.kind == Some(rule.quantity) && rule.selector.matches_sensor(sensor) =>
                {
                    state.begin_with(read_at, sensor, held.0, held.1);
                }
                _ => {}
            }
        }
        slot
    }

    /// Returns where a rule stands with the whole unit. What suspends a rule is kept there too, for series to come.
    fn state_of_whole(&self, unit: u32, rule: RuleIndex) -> Option<&State> {
        let whole = &self.series[self.units[unit as usize].whole?.0 as usize];
        whole.slots.iter().find(|slot| slot.rule == rule).map(|slot| &slot.state)
    }

    /// Takes over the state of a unit from an engine that has judged it again.
    pub fn replace_unit(&mut self, unit: &UnitKey, from: &Self) {
        let state = from.snapshot_unit(unit).expect("the unit was judged");
        let number = self.unit(unit);
        let mut observed_at = Vec::new();
        for id in self.series_ids(number) {
            let series = &mut self.series[id.0 as usize];
            observed_at.push((id, series.observed_at));
            for slot in &mut series.slots {
                (slot.told, slot.state) = (0, self.methods[usize::from(slot.rule.0)].initial());
            }
        }
        self.restore_unit(unit, &state).expect("a snapshot just taken is whole and of this version");
        // Judging again is no arrival.
        for (id, observed_at) in observed_at {
            self.series[id.0 as usize].observed_at = observed_at;
        }
        self.units[number as usize].is_changed = true;
    }

    /// Returns, for every rule and series of a unit, the earliest start that an episode can have which the readings so
    /// far do not settle.
    pub fn unsettled_from(&self, unit: &UnitKey) -> Vec<(RuleIndex, SeriesId, Timestamp)> {
        let Some(number) = self.known_unit(unit) else { return Vec::new() };
        let of_series = |id: SeriesId| {
            let series = &self.series[id.0 as usize];
            let of_slot =
                move |slot: &Slot| (slot.rule, id, self.method(slot.rule).unsettled_from(&slot.state, series.view()));
            series.slots.iter().map(of_slot)
        };
        self.series_ids(number).into_iter().flat_map(of_series).collect()
    }

    /// Returns the number of a unit, new or known.
    pub(crate) fn unit(&mut self, key: &UnitKey) -> u32 {
        if let Some(number) = self.unit_numbers.get(key) {
            return *number;
        }
        let number = self.units.len() as u32;
        let key = Arc::new(key.clone());
        let bindings = self.bindings_of(&key);
        self.unit_numbers.insert(Arc::clone(&key), number);
        let (sensors, suspended) = (HashMap::default(), Vec::new());
        self.units.push(UnitEntry { key, bindings, sensors, whole: None, suspended, is_changed: false });
        self.add_whole(number);
        number
    }

    /// Adds what rules about the whole unit see, where there are any and it is not there.
    fn add_whole(&mut self, number: u32) {
        if self.units[number as usize].whole.is_some() {
            return;
        }
        let slots = self.slots(number, None, Timestamp::MIN);
        if slots.is_empty() {
            return;
        }
        let slots = slots.into_iter().map(|slot| self.with_what_holds(number, slot)).collect();
        let id = self.add_series(number, None, None, slots);
        let known_since = self.eras.unit_registered_at(&self.units[number as usize].key);
        self.series[id.0 as usize].alive_at = known_since.unwrap_or(Timestamp::MIN);
        self.units[number as usize].whole = Some(id);
        self.hear_unit(number);
    }

    /// Returns the short name of a series of a unit, new or known.
    pub(crate) fn series_of_unit(&mut self, number: u32, sensor: &str, kind: Kind) -> SeriesId {
        let unit = &mut self.units[number as usize];
        let known = unit.sensors.get_key_value(sensor);
        let of_kind = |id: &&SeriesId| self.series[id.0 as usize].kind == Some(kind);
        if let Some(id) = known.and_then(|(_, ids)| ids.iter().find(of_kind)) {
            return *id;
        }
        let sensor = known.map_or_else(|| Arc::from(sensor), |(name, _)| Arc::clone(name));
        let key = Arc::clone(&unit.key);
        let slots = self.slots(number, Some((&sensor, kind)), Timestamp::MIN);
        let slots = slots.into_iter().map(|slot| self.with_what_holds(number, slot)).collect();
        let id = self.add_series(number, Some(Arc::clone(&sensor)), Some(kind), slots);
        self.series[id.0 as usize].alive_at = self.eras.registered_at(&key, &sensor).unwrap_or(Timestamp::MIN);
        let siblings = self.units[number as usize].sensors.get(&sensor).into_iter().flatten();
        let is_seen = |sibling: &SeriesId| self.series[sibling.0 as usize].newest > Timestamp::MIN;
        self.series[id.0 as usize].is_muted = siblings.into_iter().any(is_seen);
        self.units[number as usize].sensors.entry(sensor).or_default().push(id);
        self.note_suspended(number, id);
        id
    }

    fn note_suspended(&mut self, unit: u32, id: SeriesId) {
        if self.units[unit as usize].whole == Some(id) {
            // It hears all of the unit anyway.
            return;
        }
        let quantities = self.series[id.0 as usize].slots.iter().map(|slot| self.rule(slot.rule).suspending_quantity());
        let mut quantities: Vec<_> = quantities.flatten().collect();
        quantities.sort_unstable();
        quantities.dedup();
        self.units[unit as usize].suspended.extend(quantities.into_iter().map(|quantity| (quantity, id)));
    }

    /// Returns for every rule the number of its binding to a unit.
    fn bindings_of(&mut self, unit: &UnitKey) -> Box<[u32]> {
        let eras = Arc::clone(&self.eras);
        let bindings = eras.terms().iter().map(|term| self.binding_number(Binding::new(term, &eras, unit, None)));
        bindings.collect()
    }

    fn binding_number(&mut self, binding: Option<Binding>) -> u32 {
        let Some(binding) = binding else { return NO_BINDING };
        if let Some(number) = self.binding_numbers.get(&binding) {
            return *number;
        }
        let number = self.bindings.len() as u32;
        self.bindings.push(binding.clone());
        self.binding_numbers.insert(binding, number);
        number
    }

    /// Returns a slot for each rule that concerns a series of a unit, or the whole unit, and has not ended for good by
    /// its `newest` reading.
    fn slots(&mut self, unit: u32, series: Option<(&str, Kind)>, newest: Timestamp) -> Box<[Slot]> {
        let eras = Arc::clone(&self.eras);
        let key = Arc::clone(&self.units[unit as usize].key);
        let mut slots = Vec::new();
        for (index, term) in eras.terms().iter().enumerate() {
            let mut binding = self.units[unit as usize].bindings[index];
            let rule = &term.rule;
            let concerns = match series {
                Some((sensor, kind)) => {
                    !rule.is_about_unit() && rule.quantity == kind && rule.selector.matches_sensor(sensor)
                }
                // What suspends a rule is followed for the unit too, for sensors that are still to come.
                None => rule.is_about_unit() || rule.suspending_quantity().is_some(),
            };
            if binding == NO_BINDING || !concerns || term.to <= newest {
                continue;
            }
            if let Some((sensor, _)) = series
                && rule.max_gap_ms.is_none()
                && eras.has_own_max_gap(&key, sensor)
            {
                binding = self.binding_number(Binding::new(term, &eras, &key, Some(sensor)));
            }
            let state = self.methods[index].initial();
            slots.push(Slot { rule: RuleIndex(index as u16), told: 0, binding, state });
        }
        slots.into()
    }

    fn add_series(&mut self, unit: u32, sensor: Option<Arc<str>>, kind: Option<Kind>, slots: Box<[Slot]>) -> SeriesId {
        let id = SeriesId(self.series.len() as u32);
        self.series.push(Series {
            unit,
            sensor,
            kind,
            is_muted: false,
            newest: Timestamp::MIN,
            last_value: f64::NAN,
            alive_at: Timestamp::MIN,
            observed_at: Timestamp::MIN,
            scheduled: Timestamp::MAX,
            is_unquiet: false,
            slots,
        });
        id
    }

    /// Returns the series of a unit, the one for the whole unit included.
    pub(crate) fn series_ids(&self, unit: u32) -> Vec<SeriesId> {
        let unit = &self.units[unit as usize];
        let mut ids: Vec<_> = unit.sensors.values().flatten().copied().chain(unit.whole).collect();
        ids.sort_unstable();
        ids
    }

    /// Returns the number of a unit, if it is known.
    pub(crate) fn known_unit(&self, key: &UnitKey) -> Option<u32> {
        self.unit_numbers.get(key).copied()
    }
}

impl Timeliness {
    fn and(self, other: Self) -> Self {
        if self == Self::InTime { other } else { self }
    }
}

fn change_of(conclusion: &Conclusion) -> Change {
    if conclusion.is_resolution() { Change::Resolved(conclusion.episode) } else { Change::Fired(conclusion.episode) }
}

/// Takes back conclusions that were told, the newest first: a lone end is opened again, an episode is retracted with its end.
fn take_back(told: &[Conclusion], reason: RetractionReason, emit: &mut impl FnMut(Timestamp, bool, Change)) {
    for (index, conclusion) in told.iter().enumerate().rev() {
        let episode = conclusion.episode;
        if !conclusion.is_resolution() {
            let end = told.get(index + 1).filter(|next| next.is_resolution());
            let episode = end.map_or(episode, |end| end.episode);
            emit(conclusion.instant, true, Change::Retracted(episode, reason));
        } else if index == 0 {
            let reopened = Episode { resolved_at: None, resolution: None, ..episode };
            emit(conclusion.instant, true, Change::Reopened(reopened));
        }
    }
}
