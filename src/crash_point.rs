//! Named points at which the crash tests end the process, as a power cut or `kill -9` would.
//!
//! Only builds with the feature `e2e` have them: there `FROSTLINE_CRASH_AT=journal-written` ends the process at that
//! point's first passage, `journal-written:40` at the fortieth. In every other build a point is nothing.

/// Every point, on the way that a message takes.
#[cfg(feature = "e2e")]
pub const CRASH_POINTS: [&str; 20] = [
    // The source has given a message to the journal's queue.
    "source-submitted",
    // A block is ready, nothing of it is in the file.
    "journal-before-write",
    // The block is in the page cache only.
    "journal-written",
    // The block is on disk, the broker has not been told.
    "journal-synced",
    // The acknowledgements are queued, perhaps not sent.
    "journal-acknowledged",
    // A new segment is on disk under its unfinished name.
    "journal-segment-unnamed",
    // A new segment has its name and no block.
    "journal-segment-begun",
    // A segment that every consumer had passed is gone.
    "journal-segment-deleted",
    // A new configuration judges, which the ledger does not say yet.
    "pipeline-configured",
    // A unit is judged again, no alert of it is amended.
    "rejudged",
    // Its alerts are amended, in a transaction that is not committed.
    "amended",
    // A batch is judged, the ledger knows nothing of it.
    "pipeline-applied",
    // The ledger has the batch, nobody was told.
    "pipeline-committed",
    // The ledger is ahead of the history and of the snapshot in it.
    "snapshot-before-history",
    // The history and the snapshot are on disk, the journal's cursor has not moved.
    "snapshot-made",
    // A batch for the series database is ready.
    "sink-before-request",
    // The series database has the batch, the sink has not noted it.
    "sink-taken",
    // The sink's cursor is committed, the journal's has not moved.
    "sink-committed",
    // The broker has an alert, the outbox still holds it.
    "outbox-published",
    // A dead letter is in the journal's queue again and not marked as such.
    "redrive-submitted",
];

/// Ends the process where this point and this passage are the ones asked for.
#[cfg(feature = "e2e")]
pub(crate) fn crash_point(name: &str) {
    use std::sync::OnceLock;
    use std::sync::atomic::{AtomicU64, Ordering};

    /// The point, and how many passages are left.
    static PLAN: OnceLock<Option<(String, AtomicU64)>> = OnceLock::new();
    debug_assert!(CRASH_POINTS.contains(&name), "`{name}` is not in the list");
    let plan = PLAN.get_or_init(|| {
        let asked_for = std::env::var("FROSTLINE_CRASH_AT").ok()?;
        let (point, passage) = asked_for.split_once(':').unwrap_or((&asked_for, "1"));
        let passage = passage.parse().expect("FROSTLINE_CRASH_AT is a point, or a point, a colon and a number");
        Some((point.to_owned(), AtomicU64::new(passage)))
    });
    if let Some((point, passages)) = plan
        && point == name
        && passages.fetch_sub(1, Ordering::SeqCst) == 1
    {
        // No destructor runs, no buffer is written out, no other thread goes on.
        std::process::abort();
    }
}

/// Does nothing.
#[cfg(not(feature = "e2e"))]
#[inline(always)]
pub(crate) fn crash_point(_name: &str) {}
