//! What transitions amount to: the episodes that fired.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};

use super::{Change, Engine, Episode, RuleIndex, SeriesId, Transition};
use crate::model::{Quality, Reading, Timestamp, UnitKey};

/// An episode that fired, with its rule and series.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct JudgedEpisode {
    /// Which version of which rule.
    pub rule: RuleIndex,
    /// Which series, or which unit for a rule about a whole unit.
    pub series: SeriesId,
    /// The episode.
    pub episode: Episode,
}

/// The episodes as the transitions so far tell them.
#[derive(Clone, Debug, Default)]
pub struct EpisodeBook {
    episodes: BTreeMap<(SeriesId, RuleIndex, Timestamp), Episode>,
}

impl EpisodeBook {
    /// Returns a book with the episodes of one unit that fire already.
    pub fn of_unit(engine: &Engine, unit: &UnitKey) -> Self {
        let mut book = Self::default();
        book.look_at(engine, unit);
        book
    }

    /// Takes transitions in, and empties the list.
    pub fn enter(&mut self, transitions: &mut Vec<Transition>) {
        for Transition { rule, series, change, .. } in transitions.drain(..) {
            match change {
                Change::Fired(episode)
                | Change::Resolved(episode)
                | Change::Updated(episode)
                | Change::Reopened(episode) => {
                    self.episodes.insert((series, rule, episode.started_at), episode);
                }
                Change::Retracted(episode, _) => {
                    self.episodes.remove(&(series, rule, episode.started_at));
                }
                Change::Pending { .. } | Change::PendingEnded { .. } => {}
            }
        }
    }

    /// Takes up the figures of what fires in a unit, which go on changing after it fired.
    pub fn look_at(&mut self, engine: &Engine, unit: &UnitKey) {
        for firing in engine.firing(unit) {
            self.episodes.insert((firing.series, firing.rule, firing.episode.started_at), firing.episode);
        }
    }

    /// Returns the episodes by series and rule, in the order of their starts.
    pub fn into_episodes(self) -> Vec<JudgedEpisode> {
        let judged = |((series, rule, _), episode)| JudgedEpisode { rule, series, episode };
        self.episodes.into_iter().map(judged).collect()
    }
}

/// An accepted reading: its event time in milliseconds and its value, not a number for a failed probe.
pub type Point = (i64, f64);

/// Judges readings of one unit, each series' in order and newer than what the engine has seen of it, whichever series
/// they are of; then lets time pass until `now`. Returns the episodes that fired, those that fired before included.
pub fn judge_unit(
    engine: &mut Engine,
    unit: &UnitKey,
    series: &[(SeriesId, &[Point])],
    now: Timestamp,
) -> Vec<JudgedEpisode> {
    judge_unit_in_steps(engine, unit, series, now, i64::MAX, &mut |_, _| {})
}

/// Judges as [`judge_unit`], and shows the engine each time that event time comes to another multiple of `step_ms`, with
/// the newest instant that it has seen by then.
pub fn judge_unit_in_steps(
    engine: &mut Engine,
    unit: &UnitKey,
    series: &[(SeriesId, &[Point])],
    now: Timestamp,
    step_ms: i64,
    at_step: &mut dyn FnMut(&Engine, Timestamp),
) -> Vec<JudgedEpisode> {
    let mut book = EpisodeBook::of_unit(engine, unit);
    let mut transitions = Vec::new();
    // A unit's rules see its readings in the order of event time, whichever of its series they are of.
    let has_any = series.iter().enumerate().filter(|(_, (_, points))| !points.is_empty());
    let mut heads: BinaryHeap<_> = has_any.map(|(number, (_, points))| Reverse((points[0].0, number, 0))).collect();
    let seen = series.iter().filter_map(|(id, _)| engine.newest(*id)).max();
    let mut newest_ms = seen.map_or(i64::MIN, Timestamp::as_millis);
    let mut next_step_ms = i64::MIN;
    while let Some(Reverse((_, number, mut position))) = heads.pop() {
        let (id, points) = series[number];
        let until_ms = heads.peek().map_or(i64::MAX, |Reverse((time_ms, ..))| *time_ms);
        while let Some((time_ms, value)) = points.get(position).copied() {
            if time_ms > until_ms {
                heads.push(Reverse((time_ms, number, position)));
                break;
            }
            if time_ms >= next_step_ms {
                if newest_ms > i64::MIN {
                    at_step(engine, Timestamp::from_millis(newest_ms));
                }
                next_step_ms = time_ms.div_euclid(step_ms).saturating_add(1).saturating_mul(step_ms);
            }
            let value = (!value.is_nan()).then_some(value);
            let reading = Reading { event_time: Timestamp::from_millis(time_ms), value, quality: Quality::GOOD };
            let timeliness = engine.observe(id, &reading, now, &mut transitions);
            debug_assert_eq!(timeliness, super::Timeliness::InTime, "readings come in the order of event time");
            // One series may be behind the others.
            newest_ms = newest_ms.max(time_ms);
            position += 1;
        }
        book.enter(&mut transitions);
    }
    engine.tell_all(now, &mut transitions);
    book.enter(&mut transitions);
    book.look_at(engine, unit);
    book.into_episodes()
}
