//! Series databases: what is written to them, where it comes from, and how far each has got.
//!
//! A sink reads the journal at its own pace through a [`Feed`] and keeps its place in a [`SinkStore`], so that a
//! database that is slow or away stops nothing but its own sink. Read in this order: [`line_protocol`], [`influxdb2`].

pub mod influxdb2;
pub mod line_protocol;

use std::time::Duration;

use line_protocol::LineBatch;

/// Why a sink could not read or keep its place; the daemon cannot go on without either, but waits where this is the
/// ledger's full disk.
pub type StoreError = Box<dyn std::error::Error + Send + Sync>;

/// The journal as a sink reads it: accepted readings, already as lines.
///
/// Its methods block and are called where that is allowed.
pub trait Feed: Send + 'static {
    /// Appends the accepted readings of the entries from offset `from` on, about `points_max` of them, and returns the
    /// offset to go on from; `None` where no entry is there yet.
    ///
    /// The same offsets give the same lines whenever they are read.
    fn read(&mut self, from: u64, points_max: usize, lines: &mut LineBatch) -> Result<Option<u64>, StoreError>;

    /// Returns when there may be something to read at `from`, or after `timeout`.
    fn wait(&mut self, from: u64, timeout: Duration);
}

/// How far a sink has got: everything before it is known to be kept by the database.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct SinkCursor {
    /// The journal offset of the next entry whose readings are to be written.
    pub readings: u64,
    /// The sequence number of the last alert point written.
    pub alerts: u64,
}

/// Where sinks keep their place, find alerts, and leave what a database would not take. Its methods block.
pub trait SinkStore: Send + Sync + 'static {
    /// Returns the cursor committed last, or the beginning.
    fn cursor(&self, sink: &str) -> Result<SinkCursor, StoreError>;

    /// Commits a cursor durably.
    fn commit(&self, sink: &str, cursor: SinkCursor) -> Result<(), StoreError>;

    /// Appends the alert points with a sequence number above `after`, at most `points_max`, in order, and returns the
    /// last one's number; `after` where there is none.
    fn read_alerts(&self, after: u64, points_max: usize, lines: &mut LineBatch) -> Result<u64, StoreError>;

    /// Returns the offset behind the newest journal entry that a feed can read; this one does not block.
    fn journal_end(&self) -> u64;

    /// Records durably what the database would not take. The same point may come again and is one entry.
    fn record_refused(&self, sink: &str, points: &[RefusedPoint]) -> Result<(), StoreError>;
}

/// A point that a database would not take.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RefusedPoint {
    /// The point as it was sent, one line of line protocol.
    pub line: String,
    /// What the server said.
    pub reason: String,
}
