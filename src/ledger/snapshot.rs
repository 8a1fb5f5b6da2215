//! The state that judging goes on from after a restart.

use rusqlite::{OptionalExtension, params};

use super::{Ledger, LedgerError};

/// State of everything as of one journal offset.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot {
    /// The first journal entry that is not in it.
    pub next_offset: u64,
    /// What belongs to no unit, as the pipeline encodes it.
    pub state: Vec<u8>,
}

/// State of one unit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SnapshotUnit {
    /// The enterprise responsible.
    pub operator: String,
    /// The monitored space.
    pub unit: String,
    /// Its state as the pipeline encodes it.
    pub state: Vec<u8>,
}

impl Ledger {
    /// Writes the units that have changed since the last snapshot; with those that have not, the whole is of `snapshot`.
    pub fn put_snapshot(
        &mut self,
        snapshot: &Snapshot,
        changed: impl Iterator<Item = SnapshotUnit>,
    ) -> Result<(), LedgerError> {
        self.begin()?;
        self.connection
            .prepare_cached("INSERT OR REPLACE INTO snapshot VALUES (1, ?1, ?2)")?
            .execute(params![snapshot.next_offset, snapshot.state])?;
        let mut statement =
            self.connection.prepare_cached("INSERT OR REPLACE INTO snapshot_unit VALUES (?1, ?2, ?3)")?;
        for unit in changed {
            statement.execute(params![unit.operator, unit.unit, unit.state])?;
        }
        Ok(())
    }

    /// Returns the last snapshot, if one was ever made.
    pub fn snapshot(&self) -> Result<Option<Snapshot>, LedgerError> {
        let mut statement = self.connection.prepare("SELECT next_offset, state FROM snapshot")?;
        Ok(statement.query_row([], |row| Ok(Snapshot { next_offset: row.get(0)?, state: row.get(1)? })).optional()?)
    }

    /// Gives the units of the last snapshot to `take`, one after the other.
    pub fn each_snapshot_unit<E: From<LedgerError>>(
        &self,
        mut take: impl FnMut(SnapshotUnit) -> Result<(), E>,
    ) -> Result<(), E> {
        let mut statement =
            self.connection.prepare("SELECT operator, unit, state FROM snapshot_unit").map_err(LedgerError::from)?;
        let mut rows = statement.query([]).map_err(LedgerError::from)?;
        while let Some(row) = rows.next().map_err(LedgerError::from)? {
            let unit = || -> rusqlite::Result<_> {
                Ok(SnapshotUnit { operator: row.get(0)?, unit: row.get(1)?, state: row.get(2)? })
            };
            take(unit().map_err(LedgerError::from)?)?;
        }
        Ok(())
    }
}
