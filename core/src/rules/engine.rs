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
//! built from; whoever drives the engine judges that range again from its start.
//!
//! # Deadlines
//!
//! A series has at most one current entry in a heap of deadlines. An entry may be too early, never too late: it is put
//! off when it comes up. Telling waits until the series has been quiet for the settling time, so that a truck that
//! uploads three days of readings in order does not fire and take back silence with each of them.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};
use std::sync::Arc;

use foldhash::fast::RandomState;

use super::band::{Band, BandRule};
use super::binding::Binding;
use super::episode::{Change, Conclusion, Episode, Resolution, RetractionReason, RuleIndex, Transition};
use super::silence::Silence;
use super::{Condition, Rule, SilenceScope, micro};
use crate::model::{Kind, Reading, Registry, SeriesKey, Timestamp, UnitKey};

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

/// Judges readings by rules; see the module's essay.
#[derive(Debug)]
pub struct Engine {
    pub(crate) rules: Arc<[Arc<Rule>]>,
    /// The same rules in whole numbers; `None` for kinds that are not about a band.
    bands: Vec<Option<BandRule>>,
    registry: Arc<Registry>,
    /// How long a provisional conclusion waits before it is told.
    settle_ms: i64,
    /// When the sensors of the registry were registered.
    registered_at: Timestamp,
    /// Whether transitions into and out of pending are told.
    tells_pending: bool,
    pub(crate) units: Vec<UnitEntry>,
    unit_numbers: HashMap<Arc<UnitKey>, u32, RandomState>,
    pub(crate) series: Vec<Series>,
    /// What rules mean for units, each different meaning once.
    bindings: Vec<Binding>,
    binding_numbers: HashMap<Binding, u32, RandomState>,
    deadlines: BinaryHeap<Reverse<(Timestamp, SeriesId)>>,
    /// Reused, so that judging a reading allocates nothing.
    scratch: Scratch,
}

#[derive(Debug, Default)]
struct Scratch {
    actual: Vec<Conclusion>,
    told: Vec<Conclusion>,
}

#[derive(Debug)]
pub(crate) struct UnitEntry {
    pub(crate) key: Arc<UnitKey>,
    /// For every rule the number of its binding, or [`NO_BINDING`].
    bindings: Box<[u32]>,
    sensors: HashMap<Arc<str>, Vec<SeriesId>, RandomState>,
    /// What rules about the whole unit see, where there are any.
    whole: Option<SeriesId>,
    /// Whether anything changed since the changed units were last asked for.
    pub(crate) is_changed: bool,
}

impl UnitEntry {
    /// Returns what rules about the whole unit see, where there are any.
    pub(crate) fn whole_series(&self) -> Option<SeriesId> {
        self.whole
    }
}

const NO_BINDING: u32 = u32::MAX;

#[derive(Debug)]
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
    /// What *now* was when the newest reading came.
    pub(crate) observed_at: Timestamp,
    /// The time of the current entry among the deadlines; [`Timestamp::MAX`] without one.
    scheduled: Timestamp,
    pub(crate) slots: Box<[Slot]>,
}

/// One rule for one series.
#[derive(Debug)]
pub(crate) struct Slot {
    pub(crate) rule: RuleIndex,
    /// How many of the provisional conclusions have been told.
    pub(crate) told: u16,
    binding: u32,
    /// How long a reading holds at most, by rule or sensor; 0 where that is the profile's to say.
    max_gap_ms: i64,
    /// For `range` and `state`: the episode that is pending or firing.
    pub(crate) band: Option<Box<Band>>,
}

/// What concluding needs to know of a series besides the slot.
#[derive(Clone, Copy)]
struct SeriesView {
    alive_at: Timestamp,
    is_muted: bool,
    last_value: Option<f64>,
}

impl Series {
    fn view(&self) -> SeriesView {
        let last_value = (!self.last_value.is_nan()).then_some(self.last_value);
        SeriesView { alive_at: self.alive_at, is_muted: self.is_muted, last_value }
    }
}

/// The part of the engine that does not change while it judges.
struct Law<'a> {
    rules: &'a [Arc<Rule>],
    bands: &'a [Option<BandRule>],
    bindings: &'a [Binding],
}

impl Law<'_> {
    fn silence<'a>(&'a self, slot: &Slot, series: SeriesView) -> Silence<'a> {
        Silence {
            for_ms: self.rules[usize::from(slot.rule.0)].for_ms,
            max_gap_ms: slot.own_max_gap_ms(),
            binding: &self.bindings[slot.binding as usize],
            alive_at: series.alive_at,
            last_value: series.last_value,
        }
    }

    /// Tells what follows from the state by letting time pass until `until`.
    fn conclude(&self, slot: &Slot, series: SeriesView, until: Timestamp, out: &mut Vec<Conclusion>) {
        match &self.bands[usize::from(slot.rule.0)] {
            Some(rule) => {
                let mut copy = slot.band.as_deref().copied();
                rule.run(&mut copy, &self.bindings[slot.binding as usize], until, series.last_value, out);
            }
            None if series.is_muted || series.alive_at == Timestamp::MIN => {}
            None => self.silence(slot, series).conclude(until, out),
        }
    }

    /// Applies a reading to the state and tells what became true up to it and by it.
    fn apply(
        &self,
        slot: &mut Slot,
        series: SeriesView,
        event_time: Timestamp,
        value: Option<(f64, i64)>,
        out: &mut Vec<Conclusion>,
    ) {
        match &self.bands[usize::from(slot.rule.0)] {
            Some(rule) => {
                let binding = &self.bindings[slot.binding as usize];
                let max_gap_ms = slot.own_max_gap_ms();
                let mut state = slot.band.as_deref().copied();
                rule.run(&mut state, binding, event_time, series.last_value, out);
                rule.look(&mut state, binding, event_time, value, max_gap_ms, out);
                match (&mut slot.band, state) {
                    (Some(band), Some(state)) => **band = state,
                    (band, state) => *band = state.map(Box::new),
                }
            }
            // A failed probe is as silent as before.
            None if value.is_none() || series.alive_at == Timestamp::MIN => {}
            None => self.silence(slot, series).conclude_at_reading(event_time, out),
        }
    }

    /// Returns the episode that was told to have fired and not to have ended, if there is one.
    fn firing(&self, slot: &Slot, series: SeriesView) -> Option<Episode> {
        if slot.told > 0 {
            let mut told = Vec::new();
            self.conclude(slot, series, Timestamp::MAX, &mut told);
            told.truncate(usize::from(slot.told));
            return told.last().filter(|last| !last.is_resolution()).map(|last| last.episode);
        }
        let rule = self.bands[usize::from(slot.rule.0)].as_ref()?;
        let band = slot.band.as_ref()?;
        rule.firing(band, &self.bindings[slot.binding as usize], series.last_value)
    }

    /// Tells what follows from the state until `at`, and that what is firing then ends there.
    fn end(&self, slot: &Slot, series: SeriesView, at: Timestamp, resolution: Resolution, out: &mut Vec<Conclusion>) {
        match &self.bands[usize::from(slot.rule.0)] {
            Some(rule) => {
                let mut copy = slot.band.as_deref().copied();
                let binding = &self.bindings[slot.binding as usize];
                rule.run(&mut copy, binding, at, series.last_value, out);
                out.extend(copy.and_then(|band| rule.end(&band, binding, at, resolution, series.last_value)));
            }
            None => {
                self.conclude(slot, series, at, out);
                if let Some(last) = out.last().filter(|last| !last.is_resolution()) {
                    let (resolved_at, resolution) = (Some(at), Some(resolution));
                    let unmonitored_ms = at.millis_since(last.episode.started_at);
                    let episode = Episode { resolved_at, resolution, unmonitored_ms, ..last.episode };
                    out.push(Conclusion { instant: at, episode });
                }
            }
        }
    }

    /// Returns an instant not after the first provisional conclusion that has not been told.
    fn next_instant(&self, slot: &Slot, series: SeriesView, scratch: &mut Vec<Conclusion>) -> Option<Timestamp> {
        let binding = &self.bindings[slot.binding as usize];
        if self.bands[usize::from(slot.rule.0)].is_some() {
            slot.band.as_ref()?;
        } else if series.is_muted || series.alive_at == Timestamp::MIN {
            return None;
        } else if binding.is_constant() {
            let max_gap_ms = slot.own_max_gap_ms().unwrap_or(binding.at(series.alive_at).max_gap_ms);
            let for_ms = self.rules[usize::from(slot.rule.0)].for_ms;
            return (slot.told == 0).then(|| series.alive_at.plus_millis(max_gap_ms).plus_millis(for_ms));
        }
        scratch.clear();
        self.conclude(slot, series, Timestamp::MAX, scratch);
        scratch.get(usize::from(slot.told)).map(|next| next.instant)
    }
}

impl Slot {
    fn own_max_gap_ms(&self) -> Option<i64> {
        (self.max_gap_ms > 0).then_some(self.max_gap_ms)
    }
}

impl Engine {
    /// Returns an engine without any reading.
    ///
    /// Provisional conclusions are told `settle_ms` after they are true. `registered_at` is when the sensors of the
    /// registry became known: one that is never seen is silent from then on.
    pub fn new(rules: Arc<[Arc<Rule>]>, registry: Arc<Registry>, settle_ms: i64, registered_at: Timestamp) -> Self {
        assert!(rules.len() < usize::from(u16::MAX), "no configuration has that many rules");
        let mut engine = Self {
            bands: rules.iter().map(|rule| BandRule::new(rule)).collect(),
            rules,
            registry: Arc::clone(&registry),
            settle_ms,
            registered_at,
            tells_pending: false,
            units: Vec::new(),
            unit_numbers: HashMap::default(),
            series: Vec::new(),
            bindings: Vec::new(),
            binding_numbers: HashMap::default(),
            deadlines: BinaryHeap::new(),
            scratch: Scratch::default(),
        };
        engine.expect_registered_sensors(&registry);
        engine
    }

    /// Creates the series whose silence is to be noticed although no reading of them may ever come.
    fn expect_registered_sensors(&mut self, registry: &Registry) {
        for (unit, sensors) in &registry.sensors {
            let number = self.unit(unit);
            for rule in Arc::clone(&self.rules).iter() {
                if rule.condition != (Condition::Silence { scope: SilenceScope::Sensor }) {
                    continue;
                }
                for sensor in sensors.keys() {
                    let id = self.series_of_unit(number, sensor, rule.quantity);
                    self.schedule(id);
                }
            }
            if let Some(whole) = self.units[number as usize].whole {
                self.schedule(whole);
            }
        }
    }

    /// Makes [`Engine::observe`] tell transitions into and out of pending too.
    pub fn tell_pending(&mut self, tells_pending: bool) {
        self.tells_pending = tells_pending;
    }

    /// Returns the rules that the engine judges by; a [`RuleIndex`] is a place in them.
    pub fn rules(&self) -> &[Arc<Rule>] {
        &self.rules
    }

    /// Returns the rule at an index.
    pub fn rule(&self, index: RuleIndex) -> &Arc<Rule> {
        &self.rules[usize::from(index.0)]
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

    /// Applies one reading, newer than the newest of its series, and appends the transitions it causes, in event-time
    /// order for each rule.
    pub fn observe(&mut self, id: SeriesId, reading: &Reading, now: Timestamp, out: &mut Vec<Transition>) {
        let value = reading.value.map(|value| (value, micro(value)));
        debug_assert!(reading.event_time > self.series[id.0 as usize].newest, "a late reading is not the engine's");
        if self.series[id.0 as usize].newest == Timestamp::MIN {
            self.mute_siblings(id, out);
        }
        self.observe_series(id, reading.event_time, value, now, out);
        let unit = &mut self.units[self.series[id.0 as usize].unit as usize];
        unit.is_changed = true;
        // Any reading counts for the whole unit, also a failed one. One that is late for the unit is judged again.
        if let Some(whole) = unit.whole
            && reading.event_time > self.series[whole.0 as usize].newest
        {
            self.observe_series(whole, reading.event_time, Some((f64::NAN, 0)), now, out);
        }
    }

    fn observe_series(
        &mut self,
        id: SeriesId,
        event_time: Timestamp,
        value: Option<(f64, i64)>,
        now: Timestamp,
        out: &mut Vec<Transition>,
    ) {
        let law = Law { rules: &self.rules, bands: &self.bands, bindings: &self.bindings };
        let Scratch { actual, told } = &mut self.scratch;
        let series = &mut self.series[id.0 as usize];
        let mut slots = std::mem::take(&mut series.slots);
        let before = series.view();
        series.newest = event_time;
        series.observed_at = now;
        series.is_muted = false;
        if let Some((value, _)) = value {
            series.last_value = value;
            series.alive_at = event_time;
        }
        let after = series.view();
        for slot in &mut slots {
            actual.clear();
            told.clear();
            if slot.told > 0 {
                law.conclude(slot, before, now, told);
                told.truncate(usize::from(slot.told));
            }
            let was_pending = pending_since(slot);
            law.apply(slot, before, event_time, value, actual);
            let mut emit = |instant, provisional, change| {
                out.push(Transition { rule: slot.rule, series: id, instant, provisional, change });
            };
            if told.is_empty() {
                for conclusion in &*actual {
                    emit(conclusion.instant, false, change_of(conclusion));
                }
            } else if law.bands[usize::from(slot.rule.0)].is_none() && value.is_none() {
                // A failed probe neither confirms a silence nor ends it.
            } else {
                let from_reading = actual.len();
                law.conclude(slot, after, now, actual);
                let confirmed = told.iter().zip(&*actual).take_while(|(told, true_now)| told.says_the_same(true_now));
                let confirmed = confirmed.count();
                let reason = if law.bands[usize::from(slot.rule.0)].is_some() {
                    RetractionReason::Contradicted
                } else {
                    RetractionReason::Backlog
                };
                for (told, true_now) in told.iter().zip(&*actual).take(confirmed) {
                    let as_told = Episode { last_value: told.episode.last_value, ..true_now.episode };
                    if told.is_resolution() && told.episode != as_told {
                        emit(true_now.instant, true, Change::Updated(true_now.episode));
                    }
                }
                take_back(&told[confirmed..], reason, &mut emit);
                for conclusion in &actual[confirmed.min(from_reading)..from_reading] {
                    emit(conclusion.instant, false, change_of(conclusion));
                }
                slot.told = confirmed.saturating_sub(from_reading) as u16;
            }
            if self.tells_pending {
                let is_pending = pending_since(slot);
                if was_pending != is_pending {
                    let has_fired = actual.iter().any(|c| was_pending == Some(c.episode.started_at));
                    if let Some(since) = was_pending.filter(|_| !has_fired) {
                        emit(event_time, false, Change::PendingEnded { since });
                    }
                    if let Some(since) = is_pending {
                        emit(since, false, Change::Pending { since });
                    }
                }
            }
        }
        self.series[id.0 as usize].slots = slots;
        self.schedule(id);
    }

    /// Lets time pass until `now`, and appends the transitions that are true without a reading and have not been told.
    ///
    /// A spurious call does nothing.
    pub fn advance(&mut self, now: Timestamp, out: &mut Vec<Transition>) {
        while let Some(Reverse((deadline, id))) = self.deadlines.peek().copied()
            && deadline <= now
        {
            self.deadlines.pop();
            let series = &mut self.series[id.0 as usize];
            // Otherwise an earlier entry took its place.
            if series.scheduled == deadline {
                series.scheduled = Timestamp::MAX;
                self.tell(id, now, out);
                self.schedule(id);
            }
        }
    }

    /// Returns when [`Engine::advance`] should next be called, if ever; never too late.
    pub fn next_deadline(&self) -> Option<Timestamp> {
        self.deadlines.peek().map(|Reverse((deadline, _))| *deadline)
    }

    fn tell(&mut self, id: SeriesId, now: Timestamp, out: &mut Vec<Transition>) {
        let law = Law { rules: &self.rules, bands: &self.bands, bindings: &self.bindings };
        let conclusions = &mut self.scratch.actual;
        let series = &mut self.series[id.0 as usize];
        if series.observed_at.plus_millis(self.settle_ms) > now {
            return;
        }
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

    /// Enters the series among the deadlines where it has none, or an earlier one than it is entered with.
    pub(crate) fn schedule(&mut self, id: SeriesId) {
        let law = Law { rules: &self.rules, bands: &self.bands, bindings: &self.bindings };
        let series = &mut self.series[id.0 as usize];
        let view = series.view();
        let mut next: Option<Timestamp> = None;
        for slot in &series.slots {
            let instant = law.next_instant(slot, view, &mut self.scratch.told);
            next = next.into_iter().chain(instant).min();
        }
        if let Some(next) = next {
            let deadline = next.max(series.observed_at).plus_millis(self.settle_ms);
            if deadline < series.scheduled {
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
        let law = Law { rules: &self.rules, bands: &self.bands, bindings: &self.bindings };
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
                law.conclude(slot, view, Timestamp::MAX, told);
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
                let since = pending_since(slot).filter(|_| slot.told == 0)?;
                Some(PendingEpisode { rule: slot.rule, series: id, since })
            })
        };
        ids.into_iter().flat_map(of_series).collect()
    }

    /// Returns the episodes of a unit that were told to have fired and not to have ended, with their figures as the
    /// newest readings make them.
    pub fn firing(&self, unit: &UnitKey) -> Vec<FiringEpisode> {
        let ids = self.known_unit(unit).map(|number| self.series_ids(number)).unwrap_or_default();
        let law = Law { rules: &self.rules, bands: &self.bands, bindings: &self.bindings };
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

    /// Goes over to other rules or another registry at the instant `at`, and appends what begins by that.
    ///
    /// What ends by it is to be told before, by [`Engine::end_rules_not_in`]: the rules and short names in transitions
    /// are those of the engine that makes them. A rule of which the same version goes on keeps its state; a new version
    /// starts inactive, with the reading then held as its first reading.
    pub fn reconfigure(
        self,
        rules: Arc<[Arc<Rule>]>,
        registry: Arc<Registry>,
        settle_ms: i64,
        at: Timestamp,
        out: &mut Vec<Transition>,
    ) -> Self {
        let mut next = Self::new(rules, registry, settle_ms, at);
        next.tells_pending = self.tells_pending;
        for unit in &self.units {
            let state = self.snapshot_unit(&unit.key).expect("the unit is one of this engine");
            next.restore_unit(&unit.key, &state).expect("a snapshot just taken is whole and of this version");
        }
        next.begin_rules_not_in(&self.rules, at, out);
        for unit in &mut next.units {
            unit.is_changed = true;
        }
        next
    }

    /// Ends every rule that has no equal among `rules` at the instant `at`, and appends what resolves by that.
    pub fn end_rules_not_in(&mut self, rules: &[Arc<Rule>], at: Timestamp, out: &mut Vec<Transition>) {
        let law = Law { rules: &self.rules, bands: &self.bands, bindings: &self.bindings };
        let conclusions = &mut self.scratch.actual;
        for (number, series) in self.series.iter_mut().enumerate() {
            let view = series.view();
            for slot in &mut series.slots {
                let rule = &law.rules[usize::from(slot.rule.0)];
                if rules.iter().any(|other| other.version == rule.version) {
                    continue;
                }
                let has_successor = rules.iter().any(|other| other.id == rule.id);
                let resolution = if has_successor { Resolution::RuleChanged } else { Resolution::RuleRemoved };
                conclusions.clear();
                law.end(slot, view, at, resolution, conclusions);
                for conclusion in conclusions.iter().skip(usize::from(slot.told)) {
                    let (series, change) = (SeriesId(number as u32), change_of(conclusion));
                    let instant = conclusion.instant;
                    out.push(Transition { rule: slot.rule, series, instant, provisional: false, change });
                }
                (slot.band, slot.told) = (None, 0);
            }
        }
    }

    fn begin_rules_not_in(&mut self, rules: &[Arc<Rule>], at: Timestamp, out: &mut Vec<Transition>) {
        let law = Law { rules: &self.rules, bands: &self.bands, bindings: &self.bindings };
        let conclusions = &mut self.scratch.actual;
        for (number, series) in self.series.iter_mut().enumerate() {
            // Only a reading with a value holds.
            if series.newest == Timestamp::MIN || series.newest != series.alive_at {
                continue;
            }
            let value = Some((series.last_value, micro(series.last_value)));
            for slot in &mut series.slots {
                let Some(rule) = law.bands[usize::from(slot.rule.0)] else { continue };
                if rules.iter().any(|other| other.version == law.rules[usize::from(slot.rule.0)].version) {
                    continue;
                }
                let binding = &law.bindings[slot.binding as usize];
                let max_gap_ms = slot.own_max_gap_ms().unwrap_or(binding.at(series.newest).max_gap_ms);
                let begins_at = series.newest.max(at);
                let holds_ms = series.newest.plus_millis(max_gap_ms).millis_since(begins_at);
                if holds_ms <= 0 {
                    continue;
                }
                conclusions.clear();
                let mut state = None;
                rule.look(&mut state, binding, begins_at, value, Some(holds_ms), conclusions);
                slot.band = state.map(Box::new);
                for conclusion in &*conclusions {
                    let (series, change) = (SeriesId(number as u32), change_of(conclusion));
                    let instant = conclusion.instant;
                    out.push(Transition { rule: slot.rule, series, instant, provisional: false, change });
                }
            }
        }
        for number in 0..self.series.len() {
            self.schedule(SeriesId(number as u32));
        }
    }

    /// Returns the number of a unit, new or known.
    pub(crate) fn unit(&mut self, key: &UnitKey) -> u32 {
        if let Some(number) = self.unit_numbers.get(key) {
            return *number;
        }
        let number = self.units.len() as u32;
        let key = Arc::new(key.clone());
        let rules = Arc::clone(&self.rules);
        let bindings = rules.iter().map(|rule| match Binding::new(rule, &self.registry, &key) {
            Some(binding) => {
                let next = self.bindings.len() as u32;
                *self.binding_numbers.entry(binding).or_insert_with_key(|binding| {
                    self.bindings.push(binding.clone());
                    next
                })
            }
            None => NO_BINDING,
        });
        let bindings = bindings.collect();
        self.unit_numbers.insert(Arc::clone(&key), number);
        let sensors = HashMap::default();
        let has_registered_sensors = self.registry.sensors.contains_key(&key);
        self.units.push(UnitEntry { key, bindings, sensors, whole: None, is_changed: false });
        let slots = self.slots(number, |rule| rule.is_about_unit().then_some(rule.max_gap_ms));
        if !slots.is_empty() {
            let id = self.add_series(number, None, None, slots);
            if has_registered_sensors {
                self.series[id.0 as usize].alive_at = self.registered_at;
            }
            self.units[number as usize].whole = Some(id);
        }
        number
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
        let registered = self.registry.sensor(&unit.key, &sensor);
        let is_registered = registered.is_some();
        let sensor_max_gap_ms = registered.and_then(|sensor| sensor.max_gap_ms);
        let slots = self.slots(number, |rule| {
            let concerns = !rule.is_about_unit() && rule.quantity == kind && rule.selector.matches_sensor(&sensor);
            concerns.then_some(rule.max_gap_ms.or(sensor_max_gap_ms))
        });
        let id = self.add_series(number, Some(Arc::clone(&sensor)), Some(kind), slots);
        if is_registered {
            self.series[id.0 as usize].alive_at = self.registered_at;
        }
        self.units[number as usize].sensors.entry(sensor).or_default().push(id);
        id
    }

    /// Returns a slot for each rule that is bound to the unit and that `concerns` accepts, with the gap it gives.
    fn slots(&self, unit: u32, concerns: impl Fn(&Rule) -> Option<Option<i64>>) -> Box<[Slot]> {
        let bound = self.rules.iter().zip(&self.units[unit as usize].bindings).enumerate();
        let slots = bound.filter(|(_, (_, binding))| **binding != NO_BINDING).filter_map(|(index, (rule, binding))| {
            let max_gap_ms = concerns(rule)?.unwrap_or(0);
            let rule = RuleIndex(index as u16);
            Some(Slot { rule, told: 0, binding: *binding, max_gap_ms, band: None })
        });
        slots.collect()
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

fn pending_since(slot: &Slot) -> Option<Timestamp> {
    slot.band.as_ref().filter(|band| band.fired_at.is_none()).map(|band| band.started_at)
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
