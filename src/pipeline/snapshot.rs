//! Making a snapshot, and going on from one.

use std::sync::Arc;

use frostline_core::model::Timestamp;

use super::{Pipeline, PipelineError, SNAPSHOT_INTERVAL_MS, UNCOMMITTED_READINGS_MAX};
use crate::config::{Bundle, Judgement};
use crate::crash_point::crash_point;
use crate::history::{Checkpoints, SavedUnit, Snapshot};
use crate::journal::{Cursor as JournalCursor, JournalReaders};

/// A configuration: its journal offset, what it says, and its hash.
type Configuration = (u64, Arc<Judgement>, [u8; 32]);

/// The version of what belongs to no unit.
const STATE_VERSION: u8 = 1;

impl Pipeline {
    /// Returns whether enough has happened since the last snapshot; never while the past is applied again, since that
    /// would take the ledger and the history back.
    pub(super) fn wants_snapshot(&self) -> bool {
        if self.next_offset < self.effects_from {
            return false;
        }
        self.history.uncommitted_readings() >= UNCOMMITTED_READINGS_MAX
            || self.bytes_since_snapshot >= self.options.snapshot_every_bytes
            || self.options.clock.now().millis_since(self.last_snapshot_at) >= SNAPSHOT_INTERVAL_MS
    }

    /// Writes the history, then the state of everything that has changed, and lets the journal go up to there.
    pub(super) fn make_snapshot(
        &mut self,
        journal: &JournalReaders,
        cursor: &JournalCursor,
    ) -> Result<(), PipelineError> {
        self.note_changed_units();
        self.ledger.tidy(journal.first_offset()?)?;
        self.commit()?;
        // The order is what recovery relies on: the ledger is on disk before the history says that it got as far.
        self.ledger.force()?;
        crash_point("snapshot-before-history");
        self.checkpoint_units();
        let engine = &self.engine;
        let changed = self.units.iter_mut().filter(|unit| unit.changed).map(|unit| SavedUnit {
            state: unit.to_bytes(&engine.snapshot_unit(&unit.key).unwrap_or_default()),
            key: unit.key.clone(),
            checkpoints: unit.checkpoints.clone(),
        });
        let snapshot = Snapshot { units: changed.collect(), state: self.state_of_no_unit() };
        self.history.commit_with(self.next_offset, Some(&snapshot))?;
        crash_point("snapshot-made");
        for unit in self.units.iter_mut().filter(|unit| unit.changed) {
            (unit.changed, unit.checkpoints) = (false, Checkpoints::default());
        }
        self.last_snapshot_at = self.options.clock.now();
        self.bytes_since_snapshot = 0;
        cursor.advance(self.next_offset);
        self.expire_history()?;
        Ok(())
    }

    /// Makes a checkpoint of every changed unit that has gone on far enough since its last.
    fn checkpoint_units(&mut self) {
        let engine = &self.engine;
        for unit in self.units.iter_mut().filter(|unit| unit.changed && unit.dirty.is_none()) {
            let newest = unit.series.iter().map(|series| series.newest).max().unwrap_or(Timestamp::MIN);
            let key = unit.key.clone();
            unit.checkpoint(newest, || engine.checkpoint_unit(&key));
        }
    }

    fn state_of_no_unit(&self) -> Vec<u8> {
        let mut state = vec![STATE_VERSION];
        state.extend_from_slice(&self.now.as_millis().to_le_bytes());
        for (offset, in_force_from) in &self.eras {
            state.extend_from_slice(&offset.to_le_bytes());
            state.extend_from_slice(&in_force_from.as_millis().to_le_bytes());
        }
        state
    }

    /// Goes on from the last snapshot, if there is one.
    pub(super) fn restore_snapshot(&mut self) -> Result<(), PipelineError> {
        let Some(state) = self.history.snapshot()? else {
            return Ok(());
        };
        let offset = self.history.cursor();
        let unusable = |what, detail: &str| PipelineError::Content { what, offset, detail: detail.to_owned() };
        let content = match state.split_first() {
            Some((&STATE_VERSION, content)) => content,
            _ => return Err(unusable("snapshot", "written by another version")),
        };
        let (numbers, rest) = content.as_chunks::<8>();
        let mut numbers = numbers.iter().map(|bytes| i64::from_le_bytes(*bytes));
        let now = numbers.next().filter(|_| rest.is_empty());
        self.now = Timestamp::from_millis(now.ok_or_else(|| unusable("snapshot", "it is damaged"))?);
        self.next_offset = offset;
        while let (Some(offset), Some(in_force_from)) = (numbers.next(), numbers.next()) {
            let in_force_from = Timestamp::from_millis(in_force_from);
            let configuration = self.configuration_before(offset as u64 + 1)?;
            let missing = || unusable("configuration", "the ledger does not have it");
            let (offset, judgement, hash) = configuration.ok_or_else(missing)?;
            self.reconfigure(offset, judgement, hash, in_force_from);
        }
        if let Some((offset, judgement, hash)) = self.configuration_before(offset)? {
            (self.configuration_offset, self.judgement, self.configuration_hash) = (offset, judgement, Some(hash));
        }
        for (key, state) in self.history.snapshot_units()? {
            let index = self.units.of_key(key.clone());
            let unit = self.units.get_mut(index);
            let of_engine = unit.restore(&state, &mut self.engine, &mut self.history)?;
            let of_engine = of_engine.ok_or_else(|| unusable("snapshot", "a unit's state cannot be read"))?;
            if unit.dirty.is_some() {
                self.dirty.insert(index);
            }
            if unit.is_unshown {
                self.unshown.insert(index);
            }
            if !of_engine.is_empty() {
                let restored = self.engine.restore_unit(&key, of_engine);
                restored.map_err(|error| unusable("snapshot", &error.to_string()))?;
            }
        }
        Ok(())
    }

    /// Returns the newest configuration from before a journal entry.
    fn configuration_before(&self, offset: u64) -> Result<Option<Configuration>, PipelineError> {
        let Some((since, content)) = self.ledger.configuration_before(offset)? else { return Ok(None) };
        let unusable = |detail| PipelineError::Content { what: "configuration", offset: since, detail };
        let (bundle, judgement) = Bundle::from_text(&content).map_err(unusable)?;
        Ok(Some((since, Arc::new(judgement), bundle.hash())))
    }

    /// Drops a little of what the history need not keep any more.
    fn expire_history(&mut self) -> Result<(), PipelineError> {
        if self.now > Timestamp::MIN {
            self.history.expire(self.now.plus_millis(-self.options.history_retention_ms))?;
        }
        Ok(())
    }
}
