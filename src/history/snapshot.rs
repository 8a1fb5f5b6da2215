//! What the judging of readings stood at when they were committed, in the same transaction as the readings themselves.
//!
//! So whoever judges finds after a crash exactly the readings that his state has seen, none less and none more, and the
//! readings of the journal's entries behind the cursor come once, with the entries.
//!
//! A **checkpoint** is the state of one unit at some instant of event time; to judge late readings, one goes back to the
//! newest before them. A checkpoint is true as long as nothing is accepted for an instant that it has passed, so it goes
//! in the same transaction as it became untrue. Of those of one unit fewer and fewer are kept the older they are.

use frostline_core::model::{Name, Timestamp, UnitKey};
use rusqlite::{OptionalExtension, Transaction, params};

use super::{History, HistoryError};

pub(super) const TABLES: &str = "
    CREATE TABLE snapshot (id INTEGER PRIMARY KEY CHECK (id = 1), state BLOB NOT NULL);
    CREATE TABLE snapshot_unit (
        operator TEXT NOT NULL,
        unit TEXT NOT NULL,
        state BLOB NOT NULL,
        PRIMARY KEY (operator, unit)
    );
    CREATE TABLE checkpoint (
        operator TEXT NOT NULL,
        unit TEXT NOT NULL,
        newest_ms INTEGER NOT NULL,
        state BLOB NOT NULL,
        PRIMARY KEY (operator, unit, newest_ms)
    );
";

/// The spacing of checkpoints in event time, in milliseconds; the stories of unit tests last for a minute or two.
pub const CHECKPOINT_SPACING_MS: i64 = if cfg!(test) { 4_000 } else { 6 * 3_600_000 };

/// The state of everything as of a commit; of units only those that have changed since the commit before.
#[derive(Debug, Default)]
pub struct Snapshot {
    /// What belongs to no unit.
    pub state: Vec<u8>,
    /// The units that have changed.
    pub units: Vec<SavedUnit>,
}

/// The state of one unit.
#[derive(Debug)]
pub struct SavedUnit {
    /// Operator and unit.
    pub key: UnitKey,
    /// Its state.
    pub state: Vec<u8>,
    /// What became of its checkpoints.
    pub checkpoints: Checkpoints,
}

/// What became of a unit's checkpoints since the last commit.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Checkpoints {
    /// Those in the file from this instant on are not true any more.
    untrue_from: Option<Timestamp>,
    /// New ones: the newest reading that each has seen, and the state; oldest first.
    new: Vec<(Timestamp, Vec<u8>)>,
}

impl Checkpoints {
    /// Forgets every checkpoint that has seen an instant from `from` on.
    pub fn forget_from(&mut self, from: Timestamp) {
        self.new.retain(|(newest, _)| *newest < from);
        self.untrue_from = Some(self.untrue_from.map_or(from, |untrue_from| untrue_from.min(from)));
    }

    /// Adds a checkpoint newer than all others.
    pub fn push(&mut self, newest: Timestamp, state: Vec<u8>) {
        self.new.push((newest, state));
    }
}

impl History {
    /// Returns the last snapshot's state of what belongs to no unit, if one was ever made.
    pub fn snapshot(&self) -> Result<Option<Vec<u8>>, HistoryError> {
        let select = "SELECT state FROM snapshot";
        Ok(self.connection.query_row(select, [], |row| row.get(0)).optional()?)
    }

    /// Returns the units of the last snapshot, each with its state.
    pub fn snapshot_units(&self) -> Result<Vec<(UnitKey, Vec<u8>)>, HistoryError> {
        let mut statement = self.connection.prepare("SELECT operator, unit, state FROM snapshot_unit")?;
        let mut rows = statement.query([])?;
        let mut units = Vec::new();
        while let Some(row) = rows.next()? {
            let name = |column| -> Result<Name, HistoryError> {
                let text: String = row.get(column)?;
                Name::new(&text).map_err(|_| HistoryError::DamagedSnapshot)
            };
            units.push((UnitKey { operator: name(0)?, unit: name(1)? }, row.get(2)?));
        }
        Ok(units)
    }

    /// Returns the newest checkpoint of a unit that has seen nothing from `before` on, with the newest instant that it
    /// has seen; `since` is what became of its checkpoints since the last commit.
    pub fn checkpoint(
        &self,
        unit: &UnitKey,
        before: Timestamp,
        since: &Checkpoints,
    ) -> Result<Option<(Timestamp, Vec<u8>)>, HistoryError> {
        if let Some(new) = since.new.iter().rev().find(|(newest, _)| *newest < before) {
            return Ok(Some(new.clone()));
        }
        let before = since.untrue_from.map_or(before, |untrue_from| untrue_from.min(before));
        let select = "SELECT newest_ms, state FROM checkpoint WHERE operator = ?1 AND unit = ?2 AND newest_ms < ?3 \
                      ORDER BY newest_ms DESC LIMIT 1";
        let (operator, unit) = (unit.operator.as_str(), unit.unit.as_str());
        let mut statement = self.connection.prepare_cached(select)?;
        let checkpoint = |row: &rusqlite::Row<'_>| Ok((Timestamp::from_millis(row.get(0)?), row.get(1)?));
        Ok(statement.query_row(params![operator, unit, before.as_millis()], checkpoint).optional()?)
    }
}

/// Writes a snapshot; with the units that have not changed, the whole is of the commit that `transaction` belongs to.
pub(super) fn write(transaction: &Transaction<'_>, snapshot: &Snapshot) -> rusqlite::Result<()> {
    transaction.prepare_cached("INSERT OR REPLACE INTO snapshot VALUES (1, ?1)")?.execute([&snapshot.state])?;
    let mut put_unit = transaction.prepare_cached("INSERT OR REPLACE INTO snapshot_unit VALUES (?1, ?2, ?3)")?;
    for SavedUnit { key, state, checkpoints } in &snapshot.units {
        let (operator, unit) = (key.operator.as_str(), key.unit.as_str());
        put_unit.execute(params![operator, unit, state])?;
        if let Some(untrue_from) = checkpoints.untrue_from {
            let delete = "DELETE FROM checkpoint WHERE operator = ?1 AND unit = ?2 AND newest_ms >= ?3";
            let mut delete = transaction.prepare_cached(delete)?;
            delete.execute(params![operator, unit, untrue_from.as_millis()])?;
        }
        let mut put = transaction.prepare_cached("INSERT OR REPLACE INTO checkpoint VALUES (?1, ?2, ?3, ?4)")?;
        for (newest, state) in &checkpoints.new {
            put.execute(params![operator, unit, newest.as_millis(), state])?;
        }
        if !checkpoints.new.is_empty() {
            thin(transaction, operator, unit)?;
        }
    }
    Ok(())
}

/// Deletes checkpoints so that their spacing grows with their age.
fn thin(transaction: &Transaction<'_>, operator: &str, unit: &str) -> rusqlite::Result<()> {
    let select = "SELECT newest_ms FROM checkpoint WHERE operator = ?1 AND unit = ?2 ORDER BY newest_ms";
    let mut select = transaction.prepare_cached(select)?;
    let newest: Vec<i64> = select.query_map([operator, unit], |row| row.get(0))?.collect::<Result<_, _>>()?;
    let mut delete =
        transaction.prepare_cached("DELETE FROM checkpoint WHERE operator = ?1 AND unit = ?2 AND newest_ms = ?3")?;
    for newest_ms in spare(&newest) {
        delete.execute(params![operator, unit, newest_ms])?;
    }
    Ok(())
}

/// Returns the checkpoints (oldest first) that can be spared: those without which the gap is still no wider than a
/// quarter of its age. The oldest stays for good: what comes late to an old unit need never be judged without any.
fn spare(checkpoints: &[i64]) -> Vec<i64> {
    let Some((&last_ms, &(mut before_ms))) = checkpoints.last().zip(checkpoints.first()) else { return vec![] };
    let mut spared = vec![];
    for pair in checkpoints.windows(2).skip(1) {
        let (here_ms, after_ms) = (pair[0], pair[1]);
        if after_ms - before_ms <= (last_ms - after_ms) / 4 {
            spared.push(here_ms);
        } else {
            before_ms = here_ms;
        }
    }
    spared
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Makes checkpoints at these instants, thinning after each as a commit does.
    fn kept(instants: impl Iterator<Item = i64>) -> Vec<i64> {
        let mut kept: Vec<i64> = vec![];
        for instant in instants {
            kept.push(instant);
            let spared = spare(&kept);
            kept.retain(|instant| !spared.contains(instant));
        }
        kept
    }

    #[test]
    fn a_year_of_checkpoints_four_a_day_comes_to_a_few_dozen() {
        let kept = kept(0..4 * 365);
        assert!((30..=50).contains(&kept.len()), "{} are kept", kept.len());
    }

    proptest! {
        #[test]
        fn the_oldest_and_the_newest_stay_and_no_gap_is_wide_for_its_age(
            steps in prop::collection::vec(prop_oneof![5 => Just(1_i64), 1 => 1..200_i64], 1..300),
        ) {
            let made: Vec<i64> = steps.iter().scan(0, |at, step| { *at += step; Some(*at) }).collect();
            let kept = kept(made.iter().copied());
            let (first, last) = (made[0], made[made.len() - 1]);
            prop_assert_eq!((kept[0], kept[kept.len() - 1]), (first, last));
            for pair in kept.windows(2) {
                // Where the gap is wider than that, none was ever made in it.
                let was_made_in_it = made.iter().any(|at| pair[0] < *at && *at < pair[1]);
                prop_assert!(!was_made_in_it || pair[1] - pair[0] <= (last - pair[1]) / 4, "{:?} of {:?}", pair, kept);
            }
        }
    }
}
