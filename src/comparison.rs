//! What two sets of rules make of the same readings: the episodes gained, lost and changed.

use std::collections::BTreeMap;
use std::sync::Arc;

use frostline_core::model::Timestamp;
use frostline_core::rules::{Rule, micro};
use serde::Serialize;

use crate::alert::Time;
use crate::episode_file::EpisodeRecord;

/// One set of rules and the episodes that it finds.
#[derive(Debug, Clone, Copy)]
pub struct Side<'a> {
    /// The rules.
    pub rules: &'a [Arc<Rule>],
    /// The episodes that fired.
    pub episodes: &'a [EpisodeRecord],
}

/// How two sets of rules differ.
#[derive(Debug, Clone, PartialEq)]
pub struct Comparison {
    /// Every rule of either side, by id.
    pub rules: Vec<RuleComparison>,
    /// What differs, by operator, unit, sensor, rule and start.
    pub differences: Vec<Difference>,
    /// How many episodes are the same on both sides.
    pub unchanged: usize,
}

/// One rule on both sides.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct RuleComparison {
    /// The rule's id.
    pub rule: String,
    /// As it was; null where there was none of this id.
    pub before: Option<RuleFigures>,
    /// As it would be.
    pub after: Option<RuleFigures>,
}

/// What came of one rule.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct RuleFigures {
    /// The hash of the rule.
    pub version: String,
    /// How many episodes fired.
    pub episodes: u64,
    /// How long they were firing, all together; one that still fires counts until *now*.
    pub firing_ms: i64,
}

/// One episode that is not the same on both sides.
#[derive(Debug, Clone, PartialEq)]
pub enum Difference {
    /// Only the rules after find it.
    Gained(EpisodeRecord),
    /// Only the rules before find it.
    Lost(EpisodeRecord),
    /// Both find it, with other instants or another extreme.
    Changed {
        /// As the rules before have it.
        before: EpisodeRecord,
        /// As the rules after have it.
        after: EpisodeRecord,
    },
}

impl Difference {
    /// Returns `gained`, `lost` or `changed`.
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Gained(_) => "gained",
            Self::Lost(_) => "lost",
            Self::Changed { .. } => "changed",
        }
    }

    /// Returns the episode before and after.
    pub fn sides(&self) -> (Option<&EpisodeRecord>, Option<&EpisodeRecord>) {
        match self {
            Self::Gained(after) => (None, Some(after)),
            Self::Lost(before) => (Some(before), None),
            Self::Changed { before, after } => (Some(before), Some(after)),
        }
    }

    /// Returns the episode as it would be, or else as it was.
    pub fn newest(&self) -> &EpisodeRecord {
        match self {
            Self::Gained(episode) | Self::Lost(episode) | Self::Changed { after: episode, .. } => episode,
        }
    }
}

/// Compares what two sets of rules find in the same readings.
///
/// Two episodes of one rule and series are the same one where they share an instant. First those that are equal find each
/// other, since one may begin at the very instant at which the one before it ends; then each of the others takes the
/// earliest one of the other side that is still free.
pub fn compare(before: Side<'_>, after: Side<'_>, now: Timestamp) -> Comparison {
    let mut rules: BTreeMap<&str, RuleComparison> = BTreeMap::new();
    for (side, is_after) in [(before, false), (after, true)] {
        for rule in side.rules {
            let id = rule.id.to_string();
            let entry = rules.entry(&rule.id).or_insert(RuleComparison { rule: id, before: None, after: None });
            let figures = Some(figures(rule, side.episodes, now));
            *(if is_after { &mut entry.after } else { &mut entry.before }) = figures;
        }
    }
    let mut free = by_series(before.episodes);
    let mut unequal: Vec<&EpisodeRecord> = after.episodes.iter().collect();
    unequal.retain(|episode| claim(&mut free, episode, |candidate| candidate == *episode).is_none());
    let unchanged = after.episodes.len() - unequal.len();
    let mut differences = Vec::new();
    for episode in unequal {
        differences.push(match claim(&mut free, episode, |candidate| share_an_instant(candidate, episode)) {
            None => Difference::Gained(episode.clone()),
            Some(other) => Difference::Changed { before: other.clone(), after: episode.clone() },
        });
    }
    differences.extend(free.into_values().flatten().map(|episode| Difference::Lost(episode.clone())));
    differences.sort_by(|a, b| {
        let (a, b) = (a.newest(), b.newest());
        (series_of(a), a.started_at, a.fired_at).cmp(&(series_of(b), b.started_at, b.fired_at))
    });
    Comparison { rules: rules.into_values().collect(), differences, unchanged }
}

fn figures(rule: &Rule, episodes: &[EpisodeRecord], now: Timestamp) -> RuleFigures {
    let mut figures = RuleFigures { version: rule.version.to_string(), episodes: 0, firing_ms: 0 };
    for episode in episodes.iter().filter(|episode| *episode.rule == *rule.id) {
        figures.episodes += 1;
        figures.firing_ms += episode.resolved_at.unwrap_or(now).millis_since(episode.fired_at).max(0);
    }
    figures
}

type SeriesOfEpisode<'a> = (&'a str, &'a str, Option<&'a str>, &'a str);

fn series_of(episode: &EpisodeRecord) -> SeriesOfEpisode<'_> {
    (&episode.operator, &episode.unit, episode.sensor.as_deref(), &episode.rule)
}

fn by_series(episodes: &[EpisodeRecord]) -> BTreeMap<SeriesOfEpisode<'_>, Vec<&EpisodeRecord>> {
    let mut by_series: BTreeMap<_, Vec<_>> = BTreeMap::new();
    for episode in episodes {
        by_series.entry(series_of(episode)).or_default().push(episode);
    }
    for episodes in by_series.values_mut() {
        episodes.sort_by_key(|episode| episode.started_at);
    }
    by_series
}

/// Takes the earliest free episode of the same rule and series that `is_same` accepts.
fn claim<'a>(
    free: &mut BTreeMap<SeriesOfEpisode<'a>, Vec<&'a EpisodeRecord>>,
    episode: &'a EpisodeRecord,
    is_same: impl Fn(&EpisodeRecord) -> bool,
) -> Option<&'a EpisodeRecord> {
    let candidates = free.get_mut(&series_of(episode))?;
    let position = candidates.iter().position(|candidate| is_same(candidate))?;
    Some(candidates.remove(position))
}

fn share_an_instant(a: &EpisodeRecord, b: &EpisodeRecord) -> bool {
    let end = |episode: &EpisodeRecord| episode.resolved_at.unwrap_or(Timestamp::MAX);
    a.started_at <= end(b) && b.started_at <= end(a)
}

/// A difference as one line of JSON.
#[derive(Debug, Serialize)]
pub struct DifferenceLine<'a> {
    difference: &'static str,
    operator: &'a str,
    unit: &'a str,
    sensor: Option<&'a str>,
    rule: &'a str,
    before: Option<Figures>,
    after: Option<Figures>,
    change: Option<Change>,
}

/// The figures of an episode.
#[derive(Debug, Serialize)]
struct Figures {
    state: &'static str,
    started_at: Time,
    fired_at: Time,
    resolved_at: Option<Time>,
    extreme: Option<f64>,
}

/// By how much an episode has changed: later is positive; null where one side has no such figure.
#[derive(Debug, PartialEq, Serialize)]
pub struct Change {
    /// Of the start, in milliseconds.
    pub started_ms: i64,
    /// Of the firing, in milliseconds.
    pub fired_ms: i64,
    /// Of the end, in milliseconds.
    pub resolved_ms: Option<i64>,
    /// Of the extreme.
    pub extreme: Option<f64>,
}

impl Change {
    /// Returns by how much `after` differs from `before`.
    pub fn of(before: &EpisodeRecord, after: &EpisodeRecord) -> Self {
        let extremes = after.extreme.zip(before.extreme);
        Self {
            started_ms: after.started_at.millis_since(before.started_at),
            fired_ms: after.fired_at.millis_since(before.fired_at),
            resolved_ms: after.resolved_at.zip(before.resolved_at).map(|(after, before)| after.millis_since(before)),
            // Compared as the rules compare, so that 0.1 is not 0.09999999999999964.
            extreme: extremes.map(|(after, before)| (micro(after) - micro(before)) as f64 / 1e6),
        }
    }
}

impl<'a> From<&'a Difference> for DifferenceLine<'a> {
    fn from(difference: &'a Difference) -> Self {
        let (operator, unit, sensor, rule) = series_of(difference.newest());
        let figures = |episode: &EpisodeRecord| Figures {
            state: episode.state(),
            started_at: Time(episode.started_at),
            fired_at: Time(episode.fired_at),
            resolved_at: episode.resolved_at.map(Time),
            extreme: episode.extreme,
        };
        let (before, after) = difference.sides();
        Self {
            difference: difference.as_str(),
            operator,
            unit,
            sensor,
            rule,
            before: before.map(figures),
            after: after.map(figures),
            change: before.zip(after).map(|(before, after)| Change::of(before, after)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn episode(started: i64, fired: i64, resolved: Option<i64>, extreme: f64) -> EpisodeRecord {
        EpisodeRecord {
            operator: "op1".to_owned(),
            unit: "u1".to_owned(),
            sensor: Some("t1".to_owned()),
            rule: "r".to_owned(),
            started_at: Timestamp::from_millis(started),
            fired_at: Timestamp::from_millis(fired),
            resolved_at: resolved.map(Timestamp::from_millis),
            extreme: Some(extreme),
        }
    }

    fn differences(before: &[EpisodeRecord], after: &[EpisodeRecord]) -> (Vec<Difference>, usize) {
        let side = |episodes| Side { rules: &[], episodes };
        let comparison = compare(side(before), side(after), Timestamp::from_millis(1_000));
        (comparison.differences, comparison.unchanged)
    }

    #[test]
    fn an_episode_that_touches_another_is_the_same_one_and_one_that_does_not_is_new() {
        let (one, two) = (episode(0, 10, Some(50), 9.0), episode(60, 70, Some(90), 9.0));
        let later = episode(50, 55, Some(59), 8.5);
        let (found, unchanged) = differences(&[one.clone(), two.clone()], &[later.clone(), two.clone()]);
        assert_eq!((found, unchanged), (vec![Difference::Changed { before: one.clone(), after: later }], 1));

        let apart = episode(51, 55, Some(59), 8.5);
        let (found, _) = differences(&[one.clone(), two.clone()], &[apart.clone(), two]);
        assert_eq!(found, vec![Difference::Lost(one), Difference::Gained(apart)]);
    }

    #[test]
    fn of_two_that_become_one_the_earlier_is_it_and_the_later_is_lost() {
        let (one, two) = (episode(0, 10, Some(50), 9.0), episode(60, 70, Some(90), 9.5));
        let whole = episode(0, 10, None, 9.5);
        let (found, unchanged) = differences(&[one.clone(), two.clone()], std::slice::from_ref(&whole));
        assert_eq!(unchanged, 0);
        assert_eq!(
            found,
            vec![Difference::Changed { before: one.clone(), after: whole.clone() }, Difference::Lost(two)]
        );
        let change = Change::of(&one, &whole);
        assert_eq!(change, Change { started_ms: 0, fired_ms: 0, resolved_ms: None, extreme: Some(0.5) });
    }

    #[test]
    fn what_is_equal_stays_the_same_beside_one_that_ends_where_it_begins() {
        let (one, two) = (episode(0, 10, Some(50), 9.0), episode(50, 70, Some(90), 9.0));
        let both = [one.clone(), two.clone()];
        assert_eq!(differences(&both, std::slice::from_ref(&two)), (vec![Difference::Lost(one.clone())], 1));
        assert_eq!(differences(std::slice::from_ref(&two), &both), (vec![Difference::Gained(one)], 1));
    }

    #[test]
    fn other_series_and_other_rules_are_never_the_same() {
        let one = episode(0, 10, Some(50), 9.0);
        for other in [
            EpisodeRecord { rule: "q".to_owned(), ..one.clone() },
            EpisodeRecord { sensor: None, ..one.clone() },
            EpisodeRecord { unit: "u2".to_owned(), ..one.clone() },
        ] {
            let (found, _) = differences(std::slice::from_ref(&one), std::slice::from_ref(&other));
            assert_eq!(found.len(), 2, "{other:?}");
        }
    }
}
