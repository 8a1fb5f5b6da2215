use std::collections::VecDeque;
use std::time::Duration;

use tokio::time::Instant;

use crate::series::SinkCursor;

/// How far a sink has written, and how far that can be trusted.
///
/// A database may answer before its data is on disk, so what was written is committed only when the same run of the
/// database has outlived it by a while; until then the sink can be sent back to the committed cursor.
#[derive(Debug)]
pub(super) struct Progress {
    committed: SinkCursor,
    written: SinkCursor,
    /// The farthest that this process has ever written: what it writes below is written again.
    farthest: SinkCursor,
    /// What was written since `committed`, the oldest first, and when.
    unconfirmed: VecDeque<(Instant, SinkCursor)>,
}

impl Progress {
    pub(super) fn new(committed: SinkCursor) -> Self {
        Self { committed, written: committed, farthest: committed, unconfirmed: VecDeque::new() }
    }

    pub(super) fn committed(&self) -> SinkCursor {
        self.committed
    }

    pub(super) fn written(&self) -> SinkCursor {
        self.written
    }

    pub(super) fn has_unconfirmed(&self) -> bool {
        !self.unconfirmed.is_empty()
    }

    /// Returns whether what comes next has been written before.
    pub(super) fn is_resending(&self) -> bool {
        self.written.readings < self.farthest.readings || self.written.alerts < self.farthest.alerts
    }

    /// Notes that everything up to `cursor` was taken at `now`.
    pub(super) fn advance(&mut self, cursor: SinkCursor, now: Instant) {
        self.written = cursor;
        self.farthest.readings = self.farthest.readings.max(cursor.readings);
        self.farthest.alerts = self.farthest.alerts.max(cursor.alerts);
        self.unconfirmed.push_back((now, cursor));
    }

    /// Returns the newest cursor that was written at least `confirm_after` before `now`.
    pub(super) fn confirmable(&self, now: Instant, confirm_after: Duration) -> Option<SinkCursor> {
        self.unconfirmed
            .iter()
            .take_while(|(written_at, _)| now.duration_since(*written_at) >= confirm_after)
            .last()
            .map(|(_, cursor)| *cursor)
    }

    /// Notes that `cursor` is committed.
    pub(super) fn confirm(&mut self, cursor: SinkCursor) {
        self.committed = cursor;
        while self.unconfirmed.front().is_some_and(|(_, written)| *written <= cursor) {
            self.unconfirmed.pop_front();
        }
    }

    /// Goes back to the committed cursor.
    pub(super) fn rewind(&mut self) {
        self.written = self.committed;
        self.unconfirmed.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn cursor(readings: u64, alerts: u64) -> SinkCursor {
        SinkCursor { readings, alerts }
    }

    #[test]
    fn only_what_is_old_enough_is_confirmed() {
        let start = Instant::now();
        let second = |n| start + Duration::from_secs(n);
        let mut progress = Progress::new(cursor(5, 0));
        progress.advance(cursor(10, 0), second(0));
        progress.advance(cursor(20, 1), second(10));
        progress.advance(cursor(30, 1), second(20));
        assert_eq!(progress.confirmable(second(29), Duration::from_secs(30)), None);
        assert_eq!(progress.confirmable(second(30), Duration::from_secs(30)), Some(cursor(10, 0)));
        assert_eq!(progress.confirmable(second(45), Duration::from_secs(30)), Some(cursor(20, 1)));
        progress.confirm(cursor(20, 1));
        assert_eq!((progress.committed(), progress.written()), (cursor(20, 1), cursor(30, 1)));
        assert!(progress.has_unconfirmed());
        progress.confirm(cursor(30, 1));
        assert!(!progress.has_unconfirmed());
    }

    #[test]
    fn a_rewind_goes_back_to_what_is_committed_and_knows_what_is_written_again() {
        let now = Instant::now();
        let mut progress = Progress::new(cursor(5, 0));
        progress.advance(cursor(10, 0), now);
        progress.advance(cursor(20, 3), now);
        assert!(!progress.is_resending());
        progress.rewind();
        assert_eq!(progress.written(), cursor(5, 0));
        assert!(!progress.has_unconfirmed() && progress.is_resending());
        progress.advance(cursor(20, 1), now);
        assert!(progress.is_resending(), "the alerts are not where they were");
        progress.advance(cursor(20, 3), now);
        assert!(!progress.is_resending());
    }
}
