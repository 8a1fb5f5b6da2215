//! The accepted readings of a data directory, also while the daemon writes it: all of them, up to the ledger's cursor.
//!
//! The history is committed about once a minute. What came since is in the journal, and is decoded from there by the
//! same function as the daemon's, with the ledger's word on what decoding alone cannot tell. Nothing here takes a lock
//! that the daemon would wait for, and nothing is written.
//!
//! The daemon may commit at any moment, and an export may take minutes. So the history is held as it is at one instant,
//! and then the ledger's cursor is read, which is never behind the history's: the history and the journal between the two
//! cursors are together every reading up to the ledger's cursor, and none behind it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use frostline_core::model::{Name, Quality, Reading, SeriesKey, Timestamp, UnitKey};

use crate::config::Bundle;
use crate::history::{HistoryError, HistoryReader, RecentReadings, merge};
use crate::journal::{Batch, Entry, JournalError, JournalReader, RealFileSystem};
use crate::ledger::{LedgerError, LedgerReader};
use crate::pipeline::HISTORY_FILE;
use crate::pipeline::decode::{Meaning, decode};

/// The journal's directory in the data directory.
const JOURNAL_DIRECTORY: &str = "journal";
/// How much of the journal is read at once, in bytes.
const READ_BYTES: usize = 1 << 20;

/// Why the readings cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum StoredReadingsError {
    /// There is no ledger or no history to be read: no daemon has run there.
    #[error("nothing can be read in {}; has the daemon ever run with this configuration?", .0.display())]
    NoData(PathBuf, #[source] Box<Self>),
    /// The history cannot be read.
    #[error(transparent)]
    History(#[from] HistoryError),
    /// The ledger cannot be read.
    #[error(transparent)]
    Ledger(#[from] LedgerError),
    /// The journal cannot be read.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// A configuration that was in force cannot be understood.
    #[error("the configuration at journal offset {offset} cannot be used: {detail}")]
    Configuration {
        /// Where it stands.
        offset: u64,
        /// What is wrong with it.
        detail: String,
    },
}

/// The readings of a data directory.
#[derive(Debug)]
pub struct StoredReadings {
    history: HistoryReader,
    /// Durable in the history, and in no block.
    recent: RecentReadings,
    /// Only in the journal; oldest first.
    journaled: BTreeMap<SeriesKey, Vec<Reading>>,
    now: Timestamp,
}

impl StoredReadings {
    /// Opens a data directory, and reads what is not in the blocks of its history.
    ///
    /// # Errors
    /// No daemon has run there, or a file is damaged.
    pub fn open(data_dir: &Path) -> Result<Self, StoredReadingsError> {
        let no_data = |error: StoredReadingsError| StoredReadingsError::NoData(data_dir.to_owned(), Box::new(error));
        let ledger = LedgerReader::open(data_dir).map_err(|error| no_data(error.into()))?;
        let history = HistoryReader::open(&data_dir.join(HISTORY_FILE)).map_err(|error| no_data(error.into()))?;
        let mut held_at = None;
        loop {
            history.hold_still()?;
            let from = history.cursor()?;
            let cursor = ledger.cursor()?;
            match read_journal(data_dir, &ledger, from, cursor.next_offset) {
                Ok(journaled) => {
                    let recent = history.recent()?;
                    return Ok(Self { history, recent, journaled, now: cursor.now });
                }
                // The journal may go as soon as the history has been committed: begin again behind that commit.
                Err(_) if held_at != Some(from) => held_at = Some(from),
                Err(error) => return Err(error),
            }
        }
    }

    /// Returns the rules' *now* behind the last reading.
    pub fn now(&self) -> Timestamp {
        self.now
    }

    /// Returns every series, in the order of operator, unit, sensor and kind.
    pub fn series(&self) -> Result<Vec<SeriesKey>, StoredReadingsError> {
        let mut series = self.history.series(None, None)?;
        series.extend(self.journaled.keys().cloned());
        series.sort();
        series.dedup();
        Ok(series)
    }

    /// Gives the readings of a series in `[from, to)` to `take`, oldest first, some thousands at a time.
    pub fn each<E: From<StoredReadingsError>>(
        &self,
        key: &SeriesKey,
        from: Timestamp,
        to: Timestamp,
        mut take: impl FnMut(&[Reading]) -> Result<(), E>,
    ) -> Result<(), E> {
        let journaled = self.journaled.get(key).map_or(&[][..], Vec::as_slice);
        for (from, to) in self.history.pieces(key, from, to).map_err(StoredReadingsError::from)? {
            let stored = self.history.read_with(&self.recent, key, from, to).map_err(StoredReadingsError::from)?;
            let first = journaled.partition_point(|reading| reading.event_time < from);
            let behind = journaled.partition_point(|reading| reading.event_time < to);
            take(&merge(stored, journaled[first..behind.max(first)].to_vec()))?;
        }
        Ok(())
    }
}

/// Returns the readings of the journal's entries from `from` to before `until` that were accepted.
fn read_journal(
    data_dir: &Path,
    ledger: &LedgerReader,
    from: u64,
    until: u64,
) -> Result<BTreeMap<SeriesKey, Vec<Reading>>, StoredReadingsError> {
    let mut series: BTreeMap<SeriesKey, Vec<Reading>> = BTreeMap::new();
    if from >= until {
        return Ok(series);
    }
    let exceptions = ledger.exceptions(from..until)?;
    let understand = |offset, content: &str| match Bundle::from_text(content) {
        Ok((_, judgement)) => Ok(judgement),
        Err(detail) => Err(StoredReadingsError::Configuration { offset, detail }),
    };
    let mut judgement = match ledger.configuration_before(from)? {
        Some((offset, content)) => understand(offset, &content)?,
        None => Bundle::empty().1,
    };
    let journal = data_dir.join(JOURNAL_DIRECTORY);
    let mut reader = JournalReader::open_at_rest(Arc::new(RealFileSystem), &journal, Some(from))?;
    let mut batch = Batch::new();
    while reader.next_offset() < until && reader.read(&mut batch, READ_BYTES)? > 0 {
        for (offset, received_at, entry) in batch.iter().filter(|(offset, ..)| *offset < until) {
            let message = match entry {
                Entry::Tick => continue,
                Entry::Configuration { content, .. } => {
                    judgement = understand(offset, &String::from_utf8_lossy(content))?;
                    continue;
                }
                Entry::Message(message) => message,
            };
            let Meaning::Telemetry(telemetry) = decode(&judgement, &message, received_at) else { continue };
            let name = |text| Name::new(text).expect("the topic was checked to name an operator and a unit");
            let unit = UnitKey { operator: name(telemetry.operator), unit: name(telemetry.unit) };
            for (item, reading) in telemetry.decoded.items.iter().enumerate() {
                let Ok(reading) = reading else { continue };
                let event_time = match exceptions.get(&(offset, item)) {
                    Some(None) => continue,
                    Some(Some(given)) => *given,
                    None => reading.event_time.unwrap_or(telemetry.arrived_at),
                };
                let key = SeriesKey { unit: unit.clone(), sensor: (*reading.sensor).into(), kind: reading.kind };
                let reading = Reading { event_time, value: reading.value, quality: Quality::GOOD };
                series.entry(key).or_default().push(reading);
            }
        }
    }
    for readings in series.values_mut() {
        readings.sort_by_key(|reading| reading.event_time);
        readings.dedup_by_key(|reading| reading.event_time);
    }
    Ok(series)
}
