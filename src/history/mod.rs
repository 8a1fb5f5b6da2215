//! The history: the local series store, always on.
//!
//! # Constraints
//!
//! Ten thousand readings a second come from a hundred thousand series, each a little. A row for each reading would touch
//! a page of 4 KiB for each (and wear out flash); so readings rest in **blocks** of one series (`block.rs`), about three
//! bytes a reading, and a block is written once, when it is full.
//!
//! # Where a reading is
//!
//! ```text
//!  insert ──► newer: open block (memory, encoded) ──full──► sealed (memory) ──commit──► table `block`
//!     │                                                         ▲                            ▲
//!     ├─────► late: late readings (memory, sorted) ─────────────┴────── commit, merged ──────┘
//!     │
//!     └─────► both: log (memory) ──commit──► table `recent`, until all its readings are in blocks
//! ```
//!
//! [`History::commit`] makes everything durable in one transaction: the log as one row of `recent`, the blocks sealed
//! since, the **cursor**, and the **snapshot** of what judges: the history holds every reading of the journal's entries
//! before the cursor and none behind it. After a crash the caller plays the journal again from there;
//! [`History::open`] plays the rows of `recent` again. A commit that fails changes nothing and loses nothing: all is
//! still in memory, and the next one takes it along.
//!
//! # Invariants
//!
//! - The blocks of one series never overlap, in the file and in memory; the block with the greatest start at or before
//!   an instant is the only one that can hold it. Late readings are merged into the block they fall into.
//! - What came in order and is not newer than the series' last block in the file is in the file. So playing
//!   `recent` again skips exactly that. Late readings may be played twice: merging the same one again changes nothing.
//! - Readings come back bit for bit.
//! - A row of `recent` goes only in the transaction that writes the last of its readings into a block. Series that
//!   report seldom are sealed early where they would keep too many rows ([`HistoryOptions::spare_recent_readings`]).
//!
//! # Reading
//!
//! [`HistoryReader`] is a connection of its own: it sees the blocks in the file. What is not there yet tells
//! [`History::open_readings`] or, from another process, [`HistoryReader::recent`]. Ask for those *first*, then for the
//! blocks, and [`merge`] both: a commit between the two may then show a reading twice, but never hide it.

mod block;
mod error;
mod log;
mod metrics;
mod reader;
mod schema;
mod snapshot;
mod store;
mod touched;

#[cfg(test)]
mod tests;

pub use error::HistoryError;
pub use metrics::HistoryMetrics;
pub use reader::{Bucket, HistoryReader, RecentReadings, merge, thin};
pub use schema::make;
pub use snapshot::{CHECKPOINT_SPACING_MS, Checkpoints, SavedUnit, Snapshot};
pub use store::{History, HistoryOptions, HistorySeriesId};
pub use touched::{ClosedDays, DAY_MS, TouchedDays, day_of, day_start};
