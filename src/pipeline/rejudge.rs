//! Judging again what late readings, or goods entered late, have changed.
//!
//! A unit into whose past something was put is *dirty* from the earliest such instant on. Live judging goes on from the
//! state as it is, and never waits. At a tick, once nothing late has come for a second (or five seconds after the first),
//! the unit is judged again, by the same engine: from the newest checkpoint before the earliest instant, with all its
//! readings since, as the history has them at this offset. The state that comes out takes the place of the old one, and
//! the episodes are compared with those that were told: what differs is amended.
//!
//! All of it depends on the journal alone: which units are judged at which tick is decided by the times at which entries
//! were taken and by how many readings a unit has from its earliest late instant on. Only the cost depends on which
//! checkpoints there are.

use std::collections::BTreeMap;

use frostline_core::model::{Registry, Timestamp, UnitKey};
use frostline_core::rules::{JudgedEpisode, Point, judge_unit_in_steps};

use super::state::{Dirty, LateReason, UnitIndex};
use super::{Pipeline, PipelineError, accounting};
use crate::crash_point::crash_point;
use crate::history::CHECKPOINT_SPACING_MS;

/// How many readings are judged again at one tick, if there are several units: about a twentieth of a second's work.
const READINGS_PER_TICK: u64 = 50_000;

/// The episodes of a rule and a sensor (none for a whole unit) as they are now, and from which start on that is all.
pub(super) struct Rejudged {
    pub(super) from: Timestamp,
    pub(super) episodes: Vec<JudgedEpisode>,
}

impl Pipeline {
    /// Notes that something was put into a unit's past.
    pub(super) fn make_dirty(&mut self, index: UnitIndex, from: Timestamp, reason: LateReason) {
        let received_at = self.received_at;
        let unit = self.units.get_mut(index);
        unit.changed = true;
        unit.dirty = Some(match unit.dirty {
            None => Dirty { from, since: received_at, latest: received_at, reason },
            Some(dirty) => Dirty { from: dirty.from.min(from), latest: received_at, ..dirty },
        });
        self.dirty.insert(index);
    }

    /// Makes dirty what was judged before the configuration in force from `at` on was known: readings of its time, and
    /// what its registry says differently about the past.
    pub(super) fn find_what_came_before(&mut self, before: &Registry, at: Timestamp) {
        let registry = std::sync::Arc::clone(&self.judgement.registry);
        for index in self.units.indexes() {
            let unit = self.units.get(index);
            let newest = unit.series.iter().map(|series| series.newest).max().unwrap_or(Timestamp::MIN);
            let entered_late = registry.first_dated_difference(before, &unit.key).filter(|from| *from <= newest);
            if let Some(from) = entered_late {
                self.make_dirty(index, from, LateReason::Consignment);
            }
            if newest >= at {
                self.make_dirty(index, at, LateReason::Configuration);
            }
        }
    }

    /// Returns when the next unit is due.
    pub(super) fn next_rejudging(&self) -> Option<Timestamp> {
        self.dirty.iter().filter_map(|index| self.units.get(*index).dirty).map(|dirty| dirty.due_at()).min()
    }

    /// Judges the units again that are due by the tick that is being applied.
    pub(super) fn judge_again(&mut self) -> Result<(), PipelineError> {
        let tick = self.received_at;
        let due = self.dirty.iter().filter_map(|index| {
            let unit = self.units.get(*index);
            let dirty = unit.dirty.filter(|dirty| dirty.due_at() <= tick)?;
            Some((dirty.since, unit.key.clone(), *index, dirty))
        });
        let mut due: Vec<_> = due.collect();
        // In which order units were first seen is nobody's business.
        due.sort_by(|a, b| (a.0, &a.1).cmp(&(b.0, &b.1)));
        let mut readings = 0;
        for (_, key, index, dirty) in due {
            // Not those since the checkpoint: which one there is depends on when the machine made it.
            if readings >= READINGS_PER_TICK {
                break;
            }
            readings += self.judge_unit_again(index, &key, dirty)?;
        }
        Ok(())
    }

    /// Judges one unit again, and returns how many readings it has from the earliest late instant on.
    fn judge_unit_again(&mut self, index: UnitIndex, key: &UnitKey, dirty: Dirty) -> Result<u64, PipelineError> {
        self.has_judged_again = true;
        self.dirty.remove(&index);
        let unit = self.units.get_mut(index);
        (unit.dirty, unit.changed) = (None, true);
        unit.checkpoints.forget_from(dirty.from);
        let mut engine = self.engine.blank_for_unit(key);
        unit.checkpointed = Timestamp::MIN;
        // Without a checkpoint all is judged that the history still has. Of what began before its retention that may not
        // be all there was: it stands as it was told.
        let mut complete_from = self.now.plus_millis(-self.options.history_retention_ms);
        if let Some((newest, state)) = self.history.checkpoint(key, dirty.from, &unit.checkpoints)? {
            let restored = engine.restore_unit(key, &state);
            restored.map_err(|error| PipelineError::Content {
                what: "checkpoint",
                offset: self.next_offset,
                detail: error.to_string(),
            })?;
            (unit.checkpointed, complete_from) = (newest, Timestamp::MIN);
        }
        let mut points: Vec<(_, Vec<Point>)> = Vec::new();
        for series in &unit.series {
            let id = engine.series(&series.key(key));
            let after = engine.newest(id).unwrap_or(Timestamp::MIN);
            let readings = self.history.readings_after(series.history, after)?;
            let point = |reading: &frostline_core::model::Reading| {
                (reading.event_time.as_millis(), reading.value.unwrap_or(f64::NAN))
            };
            points.push((id, readings.iter().map(point).collect()));
        }
        let unsettled = engine.unsettled_from(key);
        let series: Vec<_> = points.iter().map(|(id, points)| (*id, points.as_slice())).collect();
        let readings = points.iter().map(|(_, points)| points.len() as u64).sum();
        let episodes =
            judge_unit_in_steps(&mut engine, key, &series, self.now, CHECKPOINT_SPACING_MS, &mut |engine, newest| {
                unit.checkpoint(newest, || engine.checkpoint_unit(key));
            });
        crash_point("rejudged");
        self.count(self.next_offset, accounting::REJUDGED_UNITS, "", 1);
        self.count(self.next_offset, accounting::REJUDGED_READINGS, "", readings);
        if self.has_effects(self.next_offset) {
            // What each rule says of each sensor, whichever of its versions did.
            let mut rejudged: BTreeMap<(String, Option<Box<str>>), Rejudged> = BTreeMap::new();
            let name = |rule, series| {
                (engine.rule(rule).id.to_string(), engine.subject(series).sensor.map(Into::<Box<str>>::into))
            };
            for (rule, series, from) in unsettled {
                let from = from.max(complete_from);
                let entry = rejudged.entry(name(rule, series)).or_insert(Rejudged { from, episodes: Vec::new() });
                entry.from = entry.from.min(from);
            }
            for judged in episodes.into_iter().filter(|judged| judged.episode.started_at >= complete_from) {
                let from = judged.episode.started_at;
                let name = name(judged.rule, judged.series);
                rejudged.entry(name).or_insert(Rejudged { from, episodes: Vec::new() }).episodes.push(judged);
            }
            self.amend(key, &engine, rejudged, dirty)?;
        }
        self.engine.replace_unit(key, &engine);
        crash_point("amended");
        let from_ms = dirty.from.as_millis();
        let since_late = points.iter().map(|(_, points)| points.iter().filter(|(ms, _)| *ms >= from_ms).count() as u64);
        Ok(since_late.sum())
    }
}
