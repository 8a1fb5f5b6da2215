//! Which rules and which registry held when: every configuration from the instant on at which it was loaded.

use std::sync::Arc;

use super::{Resolution, Rule};
use crate::model::{Registry, Timestamp, UnitFacts, UnitKey};

/// One configuration's rules and registry, in force until the next one is loaded.
#[derive(Clone, Debug)]
pub struct Era {
    /// When it was loaded. Readings from before the first era are judged by its rules too; its sensors are expected from
    /// this instant on.
    pub loaded_at: Timestamp,
    /// The rules.
    pub rules: Arc<[Arc<Rule>]>,
    /// The registry.
    pub registry: Arc<Registry>,
}

/// One version of a rule and the stretch of event time that it judges.
#[derive(Clone, Debug)]
pub(crate) struct Term {
    pub(crate) rule: Arc<Rule>,
    /// The first instant.
    pub(crate) from: Timestamp,
    /// The first instant that it does not judge any more.
    pub(crate) to: Timestamp,
    /// What ends it.
    pub(crate) ends_by: Resolution,
}

/// All configurations in order, and the terms of the rules in them. A term keeps its place for good.
#[derive(Clone, Debug)]
pub(crate) struct Eras {
    eras: Vec<Era>,
    terms: Vec<Term>,
}

impl Eras {
    pub(crate) fn new(first: Era) -> Self {
        let mut eras = Self { eras: Vec::new(), terms: Vec::new() };
        eras.begin(&first.rules, Timestamp::MIN);
        eras.eras.push(first);
        eras
    }

    /// Takes the first configuration to have been loaded earlier.
    pub(crate) fn begin_at(&mut self, at: Timestamp) {
        self.eras[0].loaded_at = self.eras[0].loaded_at.min(at);
    }

    /// Goes over to another configuration at the instant at which it was loaded.
    pub(crate) fn push(&mut self, era: Era) {
        for term in self.terms.iter_mut().filter(|term| term.to == Timestamp::MAX) {
            if !era.rules.iter().any(|rule| rule.version == term.rule.version) {
                let is_changed = era.rules.iter().any(|rule| rule.id == term.rule.id);
                term.ends_by = if is_changed { Resolution::RuleChanged } else { Resolution::RuleRemoved };
                term.to = era.loaded_at;
            }
        }
        self.begin(&era.rules, era.loaded_at);
        self.eras.push(era);
    }

    fn begin(&mut self, rules: &[Arc<Rule>], from: Timestamp) {
        for rule in rules {
            let goes_on = |term: &Term| term.to == Timestamp::MAX && term.rule.version == rule.version;
            if !self.terms.iter().any(goes_on) {
                let (rule, to) = (Arc::clone(rule), Timestamp::MAX);
                self.terms.push(Term { rule, from, to, ends_by: Resolution::RuleRemoved });
            }
        }
        assert!(self.terms.len() < usize::from(u16::MAX), "no configuration has that many rules");
    }

    pub(crate) fn terms(&self) -> &[Term] {
        &self.terms
    }

    /// Returns the registry of the newest configuration.
    pub(crate) fn newest_registry(&self) -> &Registry {
        &self.eras.last().expect("there is a first era").registry
    }

    /// Returns what is known about a unit, by each instant from which on it may be something else, in order.
    pub(crate) fn facts<'a>(&'a self, unit: &'a UnitKey) -> Vec<(Timestamp, UnitFacts<'a>)> {
        let newest_first = || self.eras.iter().rev().map(|era| &*era.registry);
        let dated = newest_first().find(|registry| registry.units.contains_key(unit));
        let dated = dated.unwrap_or_else(|| self.newest_registry());
        let loaded = self.eras.iter().skip(1).map(|era| era.loaded_at);
        let mut instants: Vec<_> =
            std::iter::once(Timestamp::MIN).chain(loaded).chain(dated.changes_of(unit)).collect();
        instants.sort_unstable();
        instants.dedup();
        let facts = |from| {
            let index = self.eras.iter().skip(1).take_while(|era| era.loaded_at <= from).count();
            (from, UnitFacts { unit, undated: &self.eras[index].registry, dated })
        };
        instants.into_iter().map(facts).collect()
    }

    /// Returns when a sensor became known, if it is registered now.
    pub(crate) fn registered_at(&self, unit: &UnitKey, sensor: &str) -> Option<Timestamp> {
        let since = self.eras.iter().rev().take_while(|era| era.registry.sensor(unit, sensor).is_some());
        since.last().map(|era| era.loaded_at)
    }

    /// Returns when the first of the sensors that a unit has now became known.
    pub(crate) fn unit_registered_at(&self, unit: &UnitKey) -> Option<Timestamp> {
        let sensors = self.newest_registry().sensors.get(unit)?;
        sensors.keys().filter_map(|sensor| self.registered_at(unit, sensor)).min()
    }

    /// Returns how long readings of this very sensor hold at most, if the configuration in force at an instant says so.
    pub(crate) fn own_max_gap_ms(&self, unit: &UnitKey, sensor: &str, at: Timestamp) -> Option<i64> {
        let in_force = self.eras.iter().skip(1).take_while(|era| era.loaded_at <= at).last().unwrap_or(&self.eras[0]);
        in_force.registry.sensor(unit, sensor)?.max_gap_ms
    }

    /// Returns whether some configuration says how long readings of this very sensor hold.
    pub(crate) fn has_own_max_gap(&self, unit: &UnitKey, sensor: &str) -> bool {
        let has_gap = |era: &Era| era.registry.sensor(unit, sensor).is_some_and(|sensor| sensor.max_gap_ms.is_some());
        self.eras.iter().any(has_gap)
    }
}
