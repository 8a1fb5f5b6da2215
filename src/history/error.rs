use frostline_core::model::Timestamp;
use rusqlite::ErrorCode;

use super::block::Damage;

/// Why the history could not do something, by what the caller does next.
#[derive(Debug, thiserror::Error)]
pub enum HistoryError {
    /// The disk is full or another process holds the file: nothing is lost, try again later.
    #[error("the history cannot be written for now")]
    Unavailable(#[source] rusqlite::Error),
    /// A block of one series cannot be read: restore the file, or do without this block.
    #[error("the history block of {series} that begins at {start} is damaged: {damage}")]
    DamagedBlock { series: String, start: Timestamp, damage: String },
    /// The readings not yet in blocks cannot be read: restore the file.
    #[error("row {number} of the history's recent readings is damaged: {damage}")]
    DamagedRecent { number: u32, damage: String },
    /// The list of series makes no sense: restore the file.
    #[error("row {id} of the history's series is damaged")]
    DamagedSeries { id: u32 },
    /// The state that judging went on from cannot be read: restore the file.
    #[error("the history's snapshot is damaged")]
    DamagedSnapshot,
    /// The file was written by a later version, or is not a history: stop.
    #[error("the history has format {found}; this program reads format {expected}")]
    Format { found: i64, expected: i64 },
    /// The disk or the file fails: stop.
    #[error("the history has failed")]
    Failed(#[source] rusqlite::Error),
}

impl From<rusqlite::Error> for HistoryError {
    fn from(error: rusqlite::Error) -> Self {
        match error.sqlite_error_code() {
            Some(ErrorCode::DiskFull | ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => Self::Unavailable(error),
            _ => Self::Failed(error),
        }
    }
}

impl HistoryError {
    pub(crate) fn damaged_block(series: String, start_ms: i64, damage: Damage) -> Self {
        Self::DamagedBlock { series, start: Timestamp::from_millis(start_ms), damage: damage.to_string() }
    }

    /// Returns whether the same call may succeed later.
    pub fn is_temporary(&self) -> bool {
        matches!(self, Self::Unavailable(_))
    }
}
