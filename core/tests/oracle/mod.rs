//! A second implementation of the rules, obvious and slow: it steps through every millisecond of a short story.
//!
//! It shares no code with the engine beyond the nouns (rules, registry, series). [`view`] says what one version of one
//! rule sees of a unit, [`band`] steps through readings that are out or clear, [`kinds`] holds one function per kind.

mod band;
mod kinds;
pub(crate) mod stories;
mod view;

use std::collections::{BTreeMap, BTreeSet};

use frostline_core::model::{Registry, SeriesKey, UnitKey};
use frostline_core::rules::Rule;

/// A configuration and when it was loaded; it holds until the next one.
#[derive(Clone, Debug)]
pub(crate) struct Era {
    pub(crate) loaded_at: i64,
    pub(crate) rules: Vec<Rule>,
    pub(crate) registry: Registry,
}

/// Everything that the episodes are a function of.
#[derive(Clone, Debug)]
pub(crate) struct World {
    /// In order of loading; the first holds for all time before, too.
    pub(crate) eras: Vec<Era>,
    /// The accepted readings of each series in order of time; a failed probe has no value.
    pub(crate) readings: BTreeMap<SeriesKey, Vec<(i64, Option<f64>)>>,
    pub(crate) now: i64,
}

/// One interval in which a rule held and fired.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Episode {
    pub(crate) started_at: i64,
    pub(crate) fired_at: i64,
    pub(crate) resolved_at: Option<i64>,
    pub(crate) extreme: Option<f64>,
    /// Known time within it and the rest of it, for the kinds that have readings to hold.
    pub(crate) excursion_and_unmonitored_ms: Option<(i64, i64)>,
}

/// An episode and what it is about; in the order in which exports have them.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Verdict {
    pub(crate) unit: UnitKey,
    pub(crate) sensor: Option<Box<str>>,
    pub(crate) rule: Box<str>,
    pub(crate) episode: Episode,
}

impl Verdict {
    pub(crate) fn order(&self) -> impl Ord + use<> {
        let Episode { started_at, fired_at, resolved_at, .. } = self.episode;
        // What is still firing comes last: nothing of the same rule can follow it.
        let resolved_at = resolved_at.unwrap_or(i64::MAX);
        (self.unit.clone(), self.sensor.clone(), self.rule.clone(), started_at, fired_at, resolved_at)
    }
}

/// Which of the awkward cases stories had.
#[derive(Clone, Debug, Default)]
pub(crate) struct Coverage(pub(crate) BTreeSet<&'static str>);

impl Coverage {
    pub(crate) fn note(&mut self, case: &'static str, happened: bool) {
        if happened {
            self.0.insert(case);
        }
    }
}

impl World {
    /// Returns the configuration in force at an instant: undated facts are those of then.
    pub(crate) fn era_at(&self, at: i64) -> &Era {
        self.eras.iter().rev().find(|era| era.loaded_at <= at).unwrap_or(&self.eras[0])
    }

    /// Returns the newest registry: dated facts (consignments, monitoring) are those that it says, for all time.
    pub(crate) fn newest_registry(&self) -> &Registry {
        &self.eras.last().expect("there is always a first configuration").registry
    }

    /// Returns every unit that is registered or has readings.
    pub(crate) fn units(&self) -> BTreeSet<&UnitKey> {
        let registered = self.eras.iter().flat_map(|era| era.registry.units.keys());
        registered.chain(self.readings.keys().map(|series| &series.unit)).collect()
    }

    /// Returns each version of each rule with the instants from which and until which it holds.
    fn versions(&self) -> Vec<(&Rule, Option<i64>, Option<i64>)> {
        let has = |era: &Era, rule: &Rule| era.rules.iter().any(|r| r.id == rule.id && r.version == rule.version);
        let mut versions = Vec::new();
        for (index, era) in self.eras.iter().enumerate() {
            for rule in &era.rules {
                if index == 0 || !has(&self.eras[index - 1], rule) {
                    let end = self.eras[index..].iter().find(|later| !has(later, rule));
                    versions.push((rule, (index > 0).then_some(era.loaded_at), end.map(|era| era.loaded_at)));
                }
            }
        }
        versions
    }
}

/// Returns the episodes of a world that fired.
pub(crate) fn judge(world: &World, coverage: &mut Coverage) -> Vec<Verdict> {
    let mut verdicts = Vec::new();
    for unit in world.units() {
        for (rule, from, until) in world.versions() {
            let view = view::View::new(world, rule, unit, from, until);
            for (sensor, episodes) in kinds::judge(&view, coverage) {
                coverage.note("any episode", !episodes.is_empty());
                verdicts.extend(episodes.into_iter().map(|episode| Verdict {
                    unit: unit.clone(),
                    sensor: sensor.clone(),
                    rule: rule.id.clone(),
                    episode,
                }));
            }
        }
    }
    verdicts.sort_by_key(Verdict::order);
    verdicts
}

/// Returns a value in millionths, the grain in which values, limits and differences are compared.
fn rounded(value: f64) -> i64 {
    (value * 1e6).round() as i64
}
