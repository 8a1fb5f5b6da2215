//! The kind `disagreement`: how far apart the sensors of a unit are that hold a reading.
//!
//! The distance is a step function that changes where a reading comes or a hold ends; its pieces are the readings of a
//! `range`. As for every rule over several series, the state stands just before the newest instant.

use serde::{Deserialize, Serialize};

use super::Episode;
use super::band::{Band, BandRule};
use super::binding::Binding;
use super::episode::Telling;
use super::slot::Input;
use super::suspension::HeldValue;
use crate::model::Timestamp;

/// The episode, the readings that hold, and those of the newest instant.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Disagreement {
    pub(crate) band: Option<Band>,
    holding: Vec<Holding>,
    /// The newest instant.
    pub(crate) seen: Timestamp,
    /// Readings at that instant, with until when they hold.
    newest: Vec<(Box<str>, HeldValue)>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct Holding {
    sensor: Box<str>,
    value_micro: i64,
    until: Timestamp,
}

impl Disagreement {
    pub(crate) fn new() -> Self {
        Self { band: None, holding: Vec::new(), seen: Timestamp::MIN, newest: Vec::new() }
    }

    /// Takes what a sensor holds already at the instant at which the rule first sees the unit.
    pub(crate) fn begin_with(&mut self, read_at: Timestamp, sensor: &str, value_micro: i64, until: Timestamp) {
        self.seen = self.seen.max(read_at);
        self.holding.push(Holding { sensor: sensor.into(), value_micro, until });
    }

    /// Takes a reading at an instant not before the newest.
    pub(crate) fn take(&mut self, rule: &BandRule, Input { at, sensor, value }: Input<'_>, telling: &mut Telling<'_>) {
        let binding = telling.binding;
        if at > self.seen {
            self.settle(rule, (at, true), telling);
            self.seen = at;
        }
        let (sensor, holds_until) = sensor.expect("a rule about a whole unit is told the sensor");
        let value = value.filter(|_| binding.at(at).counts());
        self.newest.push((sensor.into(), value.map(|(_, value_micro)| (value_micro, holds_until))));
    }

    /// Judges the newest instant, then lets time pass until `until`; readings at `until` may be still to come.
    pub(crate) fn settle(
        &mut self,
        rule: &BandRule,
        (until, until_is_open): (Timestamp, bool),
        telling: &mut Telling<'_>,
    ) {
        self.close(rule, telling);
        let mut at = self.seen;
        loop {
            let ends = self.holding.iter().map(|holding| holding.until);
            let next = ends.chain(telling.binding.begins_within(at, until)).filter(|next| *next > at).min();
            let is_due = |next: &Timestamp| *next < until || *next == until && !until_is_open;
            let Some(next) = next.filter(is_due) else { break };
            rule.run(&mut self.band, next, telling);
            self.look(rule, next, telling);
            at = next;
        }
        rule.run(&mut self.band, until, telling);
    }

    /// Judges the newest instant, of which all readings are in.
    fn close(&mut self, rule: &BandRule, telling: &mut Telling<'_>) {
        let newest = std::mem::take(&mut self.newest);
        if newest.is_empty() {
            return;
        }
        for (sensor, value) in newest {
            self.holding.retain(|holding| holding.sensor != sensor);
            let holding = value.map(|(value_micro, until)| Holding { sensor, value_micro, until });
            self.holding.extend(holding);
        }
        self.look(rule, self.seen, telling);
    }

    /// Looks at the distance from an instant on.
    fn look(&mut self, rule: &BandRule, at: Timestamp, telling: &mut Telling<'_>) {
        let binding = telling.binding;
        self.holding.retain(|holding| holding.until > at);
        let values = || self.holding.iter().map(|holding| holding.value_micro);
        let is_known = self.holding.len() >= 2 && binding.applies(at);
        let distance_micro = values().max().unwrap_or(0) - values().min().unwrap_or(0);
        let distance = distance_micro as f64 / 1e6;
        // It holds until the first of the readings does not; what the distance is then is looked at there.
        let until = self.holding.iter().map(|holding| holding.until).min().unwrap_or(at);
        let seen = is_known.then(|| (rule.see(binding.at(at), distance, distance_micro), until));
        rule.look(&mut self.band, at, seen, false, telling);
    }

    /// Returns the episode as the readings so far make it, if it has fired.
    pub(crate) fn firing(&self, rule: &BandRule, binding: &Binding) -> Option<Episode> {
        let mut closed = self.clone();
        closed.close(rule, &mut Telling { binding, last_value: None, out: &mut Vec::new() });
        // Should it end with the newest instant, that has not been told yet.
        let band = closed.band.or(self.band).filter(|_| self.band.is_some_and(|band| band.fired_at.is_some()))?;
        rule.firing(&band, binding, None)
    }
}
