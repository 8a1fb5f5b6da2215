use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::watch;

use super::error::JournalError;
use super::file_system::FileSystem;
use super::segment::{Batch, SegmentReader, list_segments};

/// What the writer tells the readers; nobody reads past the synced end.
pub(crate) struct Shared {
    pub(crate) file_system: Arc<dyn FileSystem>,
    pub(crate) directory: PathBuf,
    synced: Mutex<SyncedEnd>,
    grown: Condvar,
    next_offset: watch::Sender<u64>,
}

/// How far the journal is on disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct SyncedEnd {
    /// The offset behind the last synced entry.
    pub(crate) next_offset: u64,
    /// The first offset of the segment being written.
    pub(crate) segment: u64,
    /// The synced bytes of that segment.
    pub(crate) bytes: u64,
}

impl Shared {
    pub(crate) fn new(file_system: Arc<dyn FileSystem>, directory: PathBuf, end: SyncedEnd) -> Self {
        let (next_offset, _) = watch::channel(end.next_offset);
        Self { file_system, directory, synced: Mutex::new(end), grown: Condvar::new(), next_offset }
    }

    pub(crate) fn publish(&self, end: SyncedEnd) {
        *self.synced.lock().unwrap_or_else(PoisonError::into_inner) = end;
        self.grown.notify_all();
        self.next_offset.send_replace(end.next_offset);
    }

    fn end(&self) -> SyncedEnd {
        *self.synced.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Opens readers of a journal that is being written; clones are the same.
#[derive(Clone)]
pub struct JournalReaders(Arc<Shared>);

impl JournalReaders {
    pub(crate) fn new(shared: Arc<Shared>) -> Self {
        Self(shared)
    }

    /// Opens a reader whose first entry is `from`, which may be the next one to be written.
    pub fn open(&self, from: u64) -> Result<JournalReader, JournalError> {
        JournalReader::new(Arc::clone(&self.0), from)
    }

    /// Returns the offset behind the last synced entry.
    pub fn next_offset(&self) -> u64 {
        self.0.end().next_offset
    }

    /// Returns the offset of the oldest entry that is kept.
    pub fn first_offset(&self) -> Result<u64, JournalError> {
        let first_offsets = list_segments(&*self.0.file_system, &self.0.directory)?;
        Ok(first_offsets.first().copied().unwrap_or(0))
    }

    /// Returns what shows the offset behind the last synced entry, for tasks to wait on.
    pub fn subscribe(&self) -> watch::Receiver<u64> {
        self.0.next_offset.subscribe()
    }
}

/// Reads a journal in order, up to its synced end.
pub struct JournalReader {
    shared: Arc<Shared>,
    segment: SegmentReader,
    from: u64,
}

impl JournalReader {
    /// Opens a journal that nobody needs to be writing, and reads up to what is whole in it now.
    ///
    /// It takes no lock and changes nothing; a torn tail is not read.
    pub fn open_at_rest(
        file_system: Arc<dyn FileSystem>,
        directory: &Path,
        from: Option<u64>,
    ) -> Result<Self, JournalError> {
        let first_offsets = list_segments(&*file_system, directory)?;
        let (Some(&first), Some(&last)) = (first_offsets.first(), first_offsets.last()) else {
            return Err(JournalError::Gone { offset: from.unwrap_or(0), first_offset: 0 });
        };
        let mut segment = SegmentReader::open(&*file_system, directory, last)?;
        segment.scan_to_end()?;
        let end = SyncedEnd { next_offset: segment.next_offset, segment: last, bytes: segment.position };
        Self::new(Arc::new(Shared::new(file_system, directory.to_owned(), end)), from.unwrap_or(first))
    }

    fn new(shared: Arc<Shared>, from: u64) -> Result<Self, JournalError> {
        let next_offset = shared.end().next_offset;
        if from > next_offset {
            return Err(JournalError::Ahead { offset: from, next_offset });
        }
        let first_offsets = list_segments(&*shared.file_system, &shared.directory)?;
        let Some(&first_offset) = first_offsets.iter().rev().find(|&&first_offset| first_offset <= from) else {
            return Err(JournalError::Gone { offset: from, first_offset: first_offsets.first().copied().unwrap_or(0) });
        };
        let segment = SegmentReader::open(&*shared.file_system, &shared.directory, first_offset)?;
        Ok(Self { shared, segment, from })
    }

    /// Returns the offset of the next entry to be read.
    pub fn next_offset(&self) -> u64 {
        self.segment.next_offset.max(self.from)
    }

    /// Fills `batch` with the next entries, about `bytes_max` and at least one block, and returns how many.
    ///
    /// Returns 0 at the synced end, and never waits for more. After an error the reader stands where it stood.
    pub fn read(&mut self, batch: &mut Batch, bytes_max: usize) -> Result<usize, JournalError> {
        batch.clear();
        let end = self.shared.end();
        while batch.is_empty() && self.next_offset() < end.next_offset {
            let is_last = self.segment.header.first_offset == end.segment;
            let limit = if is_last {
                end.bytes
            } else {
                let length = self.segment.file.length();
                length.map_err(JournalError::io("measure the journal segment", &self.segment.path))?
            };
            if !self.segment.read(limit, bytes_max, self.from, batch)? {
                if is_last || self.segment.next_offset == self.segment.header.first_offset {
                    let reason = format!("entry {} is missing", self.segment.next_offset);
                    return Err(JournalError::damaged(&self.segment.path, limit, reason));
                }
                let (shared, next) = (&self.shared, self.segment.next_offset);
                self.segment = SegmentReader::open(&*shared.file_system, &shared.directory, next)?;
            }
        }
        Ok(batch.len())
    }

    /// Sleeps until there is more to read, at most for `patience`; returns whether there is.
    pub fn wait(&self, patience: Duration) -> bool {
        let synced = self.shared.synced.lock().unwrap_or_else(PoisonError::into_inner);
        let (synced, _) = self
            .shared
            .grown
            .wait_timeout_while(synced, patience, |end| end.next_offset <= self.next_offset())
            .unwrap_or_else(PoisonError::into_inner);
        synced.next_offset > self.next_offset()
    }

    /// Waits until there is more to read; for tasks.
    pub async fn wait_async(&self) {
        let mut next_offset = self.shared.next_offset.subscribe();
        let read = self.next_offset();
        next_offset.wait_for(|next| *next > read).await.expect("the sender lives as long as this reader");
    }
}

/// How far one consumer has got, kept in memory: it decides which segments may go.
///
/// Across restarts each consumer keeps its cursor in its own store.
#[derive(Debug, Clone)]
pub struct Cursor(Arc<AtomicU64>);

impl Cursor {
    pub(crate) fn at(offset: u64) -> Self {
        Self(Arc::new(AtomicU64::new(offset)))
    }

    /// Says that the consumer needs nothing below `offset` any more, not even after a crash.
    pub fn advance(&self, offset: u64) {
        self.0.fetch_max(offset, Ordering::Release);
    }

    /// Returns the offset below which the consumer needs nothing.
    pub fn offset(&self) -> u64 {
        self.0.load(Ordering::Acquire)
    }
}
