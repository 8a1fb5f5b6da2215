//! Making a snapshot, and going on from one.

use std::sync::Arc;

use frostline_core::model::{Name, Timestamp, UnitKey};

use super::{Pipeline, PipelineError, SNAPSHOT_INTERVAL_MS, UNCOMMITTED_READINGS_MAX, alerts};
use crate::config::Bundle;
use crate::crash_point::crash_point;
use crate::journal::{Cursor as JournalCursor, JournalReaders};
use crate::ledger::{Cursor, Snapshot, SnapshotUnit};

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
        self.commit()?;
        // The order is what recovery relies on: ledger, history, snapshot; each on disk before the next.
        self.ledger.force()?;
        crash_point("snapshot-before-history");
        self.history.commit(self.next_offset)?;
        crash_point("snapshot-after-history");
        self.history_from = self.next_offset;
        // A registered unit that has never sent anything has a state too: how long it has been silent.
        for key in self.engine.take_changed_units() {
            self.refresh_firing(&key)?;
            let index = self.units.of_key(key);
            self.units.get_mut(index).changed = true;
        }
        let engine = &self.engine;
        let changed = self.units.iter_mut().filter(|unit| unit.changed).map(|unit| {
            unit.changed = false;
            SnapshotUnit {
                operator: unit.key.operator.to_string(),
                unit: unit.key.unit.to_string(),
                state: unit.to_bytes(&engine.snapshot_unit(&unit.key).unwrap_or_default()),
            }
        });
        let mut state = vec![STATE_VERSION];
        state.extend_from_slice(&self.now.as_millis().to_le_bytes());
        self.ledger.put_snapshot(&Snapshot { next_offset: self.next_offset, state }, changed)?;
        self.ledger.tidy(journal.first_offset()?)?;
        self.ledger.commit(Cursor { next_offset: self.next_offset, now: self.now }, &self.growth)?;
        crash_point("snapshot-made");
        self.last_snapshot_at = self.options.clock.now();
        self.bytes_since_snapshot = 0;
        cursor.advance(self.next_offset);
        self.expire_history()?;
        Ok(())
    }

    /// Goes on from the last snapshot, if there is one.
    pub(super) fn restore_snapshot(&mut self) -> Result<(), PipelineError> {
        let Some(snapshot) = self.ledger.snapshot()? else {
            return Ok(());
        };
        let offset = snapshot.next_offset;
        let unusable = |what, detail: &str| PipelineError::Content { what, offset, detail: detail.to_owned() };
        let now = match snapshot.state.split_first() {
            Some((&STATE_VERSION, now)) => now.try_into().map(i64::from_le_bytes).ok(),
            _ => None,
        };
        self.now = Timestamp::from_millis(now.ok_or_else(|| unusable("snapshot", "written by another version"))?);
        self.next_offset = offset;
        if let Some((since, content)) = self.ledger.configuration_before(offset)? {
            let (bundle, judgement) = Bundle::from_text(&content).map_err(|detail| PipelineError::Content {
                what: "configuration",
                offset: since,
                detail,
            })?;
            self.shared.accounting.show_routes(judgement.routes.iter().map(|route| &*route.filter));
            self.judgement = Arc::new(judgement);
            self.configuration_hash = Some(bundle.hash());
            if self.now > Timestamp::MIN {
                // When each sensor was registered is in its unit's state.
                self.engine = alerts::new_engine(&self.judgement, self.now);
            }
        }
        let mut units = std::mem::take(&mut self.units);
        let (ledger, engine, history) = (&self.ledger, &mut self.engine, &mut self.history);
        let restored = ledger.each_snapshot_unit::<PipelineError>(|unit| {
            let key = match (Name::new(&unit.operator), Name::new(&unit.unit)) {
                (Ok(operator), Ok(unit)) => UnitKey { operator, unit },
                _ => return Err(unusable("snapshot", "it names a unit that cannot be")),
            };
            let index = units.of_key(key.clone());
            let state = units.get_mut(index).restore(&unit.state, engine, history)?;
            let state = state.ok_or_else(|| unusable("snapshot", "a unit's state cannot be read"))?;
            if state.is_empty() {
                return Ok(());
            }
            engine.restore_unit(&key, state).map_err(|error| unusable("snapshot", &error.to_string()))
        });
        self.units = units;
        restored
    }

    /// Drops a little of what the history need not keep any more.
    fn expire_history(&mut self) -> Result<(), PipelineError> {
        if self.now > Timestamp::MIN {
            self.history.expire(self.now.plus_millis(-self.options.history_retention_ms))?;
        }
        Ok(())
    }
}
