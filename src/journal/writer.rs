use std::collections::VecDeque;
use std::fs::{File, TryLockError};
use std::hash::{BuildHasher, RandomState};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use frostline_core::model::Timestamp;
use tracing::{error, info, warn};

use super::entry::EntryKind;
use super::error::JournalError;
use super::file_system::{FileSystem, JournalFile, RealFileSystem, is_for_want_of_room, read_exact_at, write_all_at};
use super::format::{BlockHeader, SEGMENT_HEADER_BYTES, SegmentHeader};
use super::metrics::JournalMetrics;
use super::queue::{Gathered, JournalHandle, Queue, Work};
use super::reader::{Cursor, JournalReaders, Shared, SyncedEnd};
use super::segment::{SegmentReader, UNFINISHED_SUFFIX, list_segments, segment_path};
use crate::clock::Clock;
use crate::crash_point::crash_point;
use crate::health::Part;

const LOCK_FILE: &str = "journal.lock";
/// How often retention looks at the clock where nothing is written.
const HOUSEKEEPING: Duration = Duration::from_secs(1);
/// How often a full journal looks for room.
const ROOM_RETRY: Duration = Duration::from_millis(250);
/// A journal of fewer segments than this could free too little at once.
const SEGMENTS_MIN: u64 = 8;

/// How a journal is to be kept.
#[derive(Clone)]
pub struct JournalOptions {
    /// Where the segments are; created where it is missing.
    pub directory: PathBuf,
    /// The bytes that all segments may have together; at this size the oldest go before their time, once consumed.
    pub max_size_bytes: u64,
    /// How long a segment is kept after its last entry was taken.
    pub retention_ms: i64,
    /// The size at which a segment is closed; at most an eighth of `max_size_bytes` is used.
    pub segment_size_bytes: u64,
    /// The bytes that may wait for the writer.
    pub queue_bytes_max: usize,
    /// The entries that may wait for the writer.
    pub queue_entries_max: usize,
    /// The file system; another one than the machine's in tests.
    pub file_system: Arc<dyn FileSystem>,
    /// Tells when an entry was taken.
    pub clock: Arc<dyn Clock>,
    /// What is counted.
    pub metrics: JournalMetrics,
    /// Where the journal says whether it can be written.
    pub health: Part,
}

impl JournalOptions {
    /// Returns the usual options for a journal in `directory`.
    pub fn new(directory: impl Into<PathBuf>, clock: Arc<dyn Clock>, metrics: JournalMetrics, health: Part) -> Self {
        Self {
            directory: directory.into(),
            max_size_bytes: 8 << 30,
            retention_ms: 24 * 3_600_000,
            segment_size_bytes: 64 << 20,
            queue_bytes_max: 16 << 20,
            queue_entries_max: 1 << 17,
            file_system: Arc::new(RealFileSystem),
            clock,
            metrics,
            health,
        }
    }
}

/// What [`Journal::open`] found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Recovery {
    /// How many segments there are.
    pub segments: usize,
    /// The oldest entry that is kept.
    pub first_offset: u64,
    /// The offset that the next entry gets.
    pub next_offset: u64,
    /// The bytes of a write that a crash had cut short, and that were cut off; nothing of them was ever acknowledged.
    pub torn_bytes_cut: u64,
    /// The newest `received_at`; [`Timestamp::MIN`] where there is no entry yet.
    pub last_received_at: Timestamp,
    /// How long opening took.
    pub duration: Duration,
}

/// The writing end of the journal; [`Self::run`] is its thread.
pub struct Journal<T> {
    options: JournalOptions,
    queue: Arc<Queue<T>>,
    shared: Arc<Shared>,
    /// The consumers, by name.
    cursors: Vec<(String, Cursor)>,
    /// The segments that will not be written again, oldest first.
    closed: VecDeque<ClosedSegment>,
    active: ActiveSegment,
    /// The offset behind the last synced entry.
    next_offset: u64,
    /// The newest instant that the clock has shown, which no later block's is before.
    received_at: Timestamp,
    /// The `received_at` of the last synced block.
    synced_received_at: Timestamp,
    is_full: bool,
    /// Holds the lock for as long as the journal is open.
    _lock: File,
}

struct ClosedSegment {
    first_offset: u64,
    /// The offset behind its last entry.
    end_offset: u64,
    bytes: u64,
    /// When its last entry was taken.
    received_at: Timestamp,
}

struct ActiveSegment {
    file: Box<dyn JournalFile>,
    path: PathBuf,
    header: SegmentHeader,
    /// How many bytes are synced.
    bytes: u64,
}

/// What came of one attempt to write a block.
enum Attempt {
    Synced,
    /// There is no room now, for this reason. Nothing of the block is in the segment.
    NoRoom(String),
}

impl<T> Journal<T> {
    /// Opens the journal of a directory or begins one; cuts a torn tail and says so.
    ///
    /// Only the last segment is read through, so this takes the same short time whatever the journal holds.
    pub fn open(options: JournalOptions) -> Result<(Self, Recovery), JournalError> {
        let began = Instant::now();
        let (file_system, directory) = (Arc::clone(&options.file_system), options.directory.clone());
        file_system
            .create_directory(&directory)
            .map_err(JournalError::io("create the journal's directory", &directory))?;
        let lock = lock(&directory)?;
        remove_unfinished(&*file_system, &directory)?;

        let first_offsets = list_segments(&*file_system, &directory)?;
        let (closed, active, last) = match first_offsets.split_last() {
            None => {
                let header = SegmentHeader {
                    salt: salt(),
                    first_offset: 0,
                    received_at: Timestamp::MIN,
                    previous_first_offset: 0,
                    previous_bytes: 0,
                };
                let active = ActiveSegment::create(&*file_system, &directory, header)?;
                (VecDeque::new(), active, Tail { next_offset: 0, received_at: Timestamp::MIN, torn_bytes_cut: 0 })
            }
            Some((&last, earlier)) => {
                let (active, tail) = ActiveSegment::recover(&*file_system, &directory, last)?;
                (check_closed(&*file_system, &directory, earlier, &active.header)?, active, tail)
            }
        };
        let end = SyncedEnd { next_offset: last.next_offset, segment: active.header.first_offset, bytes: active.bytes };
        let queue = Queue::new(
            last.next_offset,
            options.queue_bytes_max,
            options.queue_entries_max,
            options.metrics.refused.clone(),
        );
        let recovery = Recovery {
            segments: closed.len() + 1,
            first_offset: closed.front().map_or(active.header.first_offset, |segment| segment.first_offset),
            next_offset: last.next_offset,
            torn_bytes_cut: last.torn_bytes_cut,
            last_received_at: last.received_at,
            duration: began.elapsed(),
        };
        let journal = Self {
            queue: Arc::new(queue),
            shared: Arc::new(Shared::new(file_system, directory, end)),
            cursors: Vec::new(),
            closed,
            active,
            next_offset: last.next_offset,
            received_at: last.received_at,
            synced_received_at: last.received_at,
            is_full: false,
            _lock: lock,
            options,
        };
        journal.show_size();
        journal.options.health.up("writing");
        Ok((journal, recovery))
    }

    /// Returns what submits entries.
    pub fn handle(&self) -> JournalHandle<T> {
        JournalHandle::new(Arc::clone(&self.queue))
    }

    /// Returns what opens readers.
    pub fn readers(&self) -> JournalReaders {
        JournalReaders::new(Arc::clone(&self.shared))
    }

    /// Enters a consumer that still needs `offset` and what follows; they stay until its cursor has passed them.
    ///
    /// Every consumer is entered before [`Self::run`], which deletes what no cursor needs. Where there is no consumer,
    /// nothing is deleted.
    pub fn register(&mut self, consumer: impl Into<String>, offset: u64) -> Cursor {
        let cursor = Cursor::at(offset);
        self.cursors.push((consumer.into(), cursor.clone()));
        cursor
    }

    /// Writes what is submitted until told to stop, and then what still waits.
    ///
    /// After each sync `on_durable` gets the tokens of what is now on disk, in the order of the offsets. An error is
    /// final: nothing that was not given to `on_durable` may be acknowledged, and the process must end.
    pub fn run(mut self, mut on_durable: impl FnMut(&mut Vec<T>)) -> Result<(), JournalError> {
        let result = loop {
            match self.step(HOUSEKEEPING, &mut on_durable) {
                Ok(true) => {}
                Ok(false) => break Ok(()),
                Err(error) => break Err(error),
            }
        };
        match &result {
            Ok(()) => self.options.health.down("stopped"),
            Err(failure) => {
                error!(error = %failure, "the journal cannot go on");
                self.options.health.down(failure.to_string());
            }
        }
        result
    }

    /// Writes the next block, or looks after retention where there is none; returns whether to go on.
    pub(crate) fn step(
        &mut self,
        patience: Duration,
        on_durable: &mut impl FnMut(&mut Vec<T>),
    ) -> Result<bool, JournalError> {
        match self.queue.next(patience) {
            Work::Write(gathered) => self.write(gathered, on_durable),
            Work::Housekeeping => {
                self.received_at = self.received_at.max(self.options.clock.now());
                self.delete_expired(0)?;
                Ok(true)
            }
            Work::End => Ok(false),
        }
    }

    /// Writes a block, waiting for room where there is none; returns false where it had to stop without.
    fn write(
        &mut self,
        mut gathered: Gathered<T>,
        on_durable: &mut impl FnMut(&mut Vec<T>),
    ) -> Result<bool, JournalError> {
        self.received_at = self.received_at.max(self.options.clock.now());
        let received_at = self.received_at;
        while let Attempt::NoRoom(reason) = self.try_write(&mut gathered, received_at)? {
            if !self.is_full {
                self.is_full = true;
                error!(reason, "the journal is full: nothing is acknowledged until there is room");
                self.options.metrics.full.set(1);
            }
            self.options.health.down(reason);
            if !self.queue.pause(ROOM_RETRY) {
                warn!(entries = gathered.tokens.len(), "the journal stops full: what waited is left unacknowledged");
                return Ok(false);
            }
            self.options.metrics.write_retries.inc();
        }
        if self.is_full {
            self.is_full = false;
            info!("the journal has room again");
            self.options.metrics.full.set(0);
            self.options.health.up("writing");
        }
        for kind in EntryKind::ALL {
            self.options.metrics.appended[kind as usize].inc_by(u64::from(gathered.kinds[kind as usize]));
        }
        self.options.metrics.bytes.inc_by(gathered.block.len() as u64);
        self.show_size();
        self.shared.publish(SyncedEnd {
            next_offset: self.next_offset,
            segment: self.active.header.first_offset,
            bytes: self.active.bytes,
        });
        crash_point("journal-synced");
        on_durable(&mut gathered.tokens);
        crash_point("journal-acknowledged");
        self.queue.recycle(gathered);
        Ok(true)
    }

    fn try_write(&mut self, gathered: &mut Gathered<T>, received_at: Timestamp) -> Result<Attempt, JournalError> {
        let bytes = gathered.block.len() as u64;
        self.delete_expired(bytes)?;
        let segment_size_bytes = self.options.segment_size_bytes.min(self.options.max_size_bytes / SEGMENTS_MIN);
        let has_entries = self.active.bytes > SEGMENT_HEADER_BYTES as u64;
        let is_ripe = self.active.bytes + bytes > segment_size_bytes || self.is_consumed_but_in_the_way(bytes);
        if has_entries && is_ripe {
            if let Attempt::NoRoom(reason) = self.begin_segment()? {
                return Ok(Attempt::NoRoom(reason));
            }
            self.delete_expired(bytes)?;
        }
        // The only segment, and empty, takes anything: otherwise a large block would wait for ever.
        let is_empty = self.closed.is_empty() && self.active.bytes == SEGMENT_HEADER_BYTES as u64;
        if self.size_bytes() + bytes > self.options.max_size_bytes && !is_empty {
            let limit = self.options.max_size_bytes;
            let slowest = self.slowest();
            let who = slowest.map_or("it has no consumer".to_owned(), |(consumer, offset)| {
                format!("`{consumer}` still needs entry {offset}")
            });
            let reason = format!("the journal has reached its limit of {limit} bytes, and {who}");
            return Ok(Attempt::NoRoom(reason));
        }

        let count = u32::try_from(gathered.tokens.len()).expect("a block of 512 KiB has fewer entries");
        BlockHeader::seal(&mut gathered.block, count, gathered.first_offset, received_at, self.active.header.salt);
        crash_point("journal-before-write");
        if let Err(error) = write_all_at(&*self.active.file, &gathered.block, self.active.bytes) {
            // The beginning of the block may be in the file: the next attempt must find the end as it was.
            let truncated = self.active.file.truncate(self.active.bytes);
            truncated.map_err(JournalError::io("cut a failed write off the journal segment", &self.active.path))?;
            if is_for_want_of_room(&error) {
                return Ok(Attempt::NoRoom(format!("no room to write `{}`: {error}", self.active.path.display())));
            }
            return Err(JournalError::io("write the journal segment", &self.active.path)(error));
        }
        crash_point("journal-written");
        let began = Instant::now();
        self.active.file.sync_data().map_err(JournalError::sync(&self.active.path))?;
        self.options.metrics.sync_seconds.observe(began.elapsed().as_secs_f64());
        self.options.metrics.syncs.inc();
        self.active.bytes += bytes;
        self.next_offset += u64::from(count);
        self.synced_received_at = received_at;
        Ok(Attempt::Synced)
    }

    /// Closes the segment being written, which is whole and synced, and begins the next.
    fn begin_segment(&mut self) -> Result<Attempt, JournalError> {
        let header = SegmentHeader {
            salt: salt(),
            first_offset: self.next_offset,
            received_at: self.synced_received_at,
            previous_first_offset: self.active.header.first_offset,
            previous_bytes: self.active.bytes,
        };
        let next = match ActiveSegment::create(&*self.shared.file_system, &self.shared.directory, header) {
            Ok(next) => next,
            Err(JournalError::Io { doing, path, source }) if is_for_want_of_room(&source) => {
                return Ok(Attempt::NoRoom(format!("cannot {doing} `{}`: {source}", path.display())));
            }
            Err(error) => return Err(error),
        };
        let closed = std::mem::replace(&mut self.active, next);
        self.closed.push_back(ClosedSegment {
            first_offset: closed.header.first_offset,
            end_offset: self.next_offset,
            bytes: closed.bytes,
            received_at: self.synced_received_at,
        });
        Ok(Attempt::Synced)
    }

    /// Returns whether `bytes` more would only fit if the segment being written could be deleted, and it could.
    fn is_consumed_but_in_the_way(&self, bytes: u64) -> bool {
        self.size_bytes() + bytes > self.options.max_size_bytes && self.needed_from() >= Some(self.next_offset)
    }

    /// Deletes closed segments that every consumer has passed, where they are too old or `bytes` more would not fit.
    fn delete_expired(&mut self, bytes: u64) -> Result<(), JournalError> {
        let Some(needed_from) = self.needed_from() else { return Ok(()) };
        while let Some(oldest) = self.closed.front() {
            let is_old = self.received_at.millis_since(oldest.received_at) > self.options.retention_ms;
            let is_in_the_way = self.size_bytes() + bytes > self.options.max_size_bytes;
            if oldest.end_offset > needed_from || !(is_old || is_in_the_way) {
                break;
            }
            let (shared, path) = (&self.shared, segment_path(&self.shared.directory, oldest.first_offset));
            shared.file_system.remove(&path).map_err(JournalError::io("delete the journal segment", &path))?;
            // One by one, so that a crash leaves no gap.
            let synced = shared.file_system.sync_directory(&shared.directory);
            synced.map_err(JournalError::sync(&shared.directory))?;
            info!(offset = oldest.first_offset, is_old, "deleted a journal segment that every consumer has passed");
            crash_point("journal-segment-deleted");
            self.options.metrics.segments_deleted.inc();
            self.closed.pop_front();
            self.show_size();
        }
        Ok(())
    }

    /// Returns the smallest offset that some consumer still needs.
    fn needed_from(&self) -> Option<u64> {
        self.slowest().map(|(_, offset)| offset)
    }

    /// Returns the consumer that is furthest behind, and the offset that it still needs.
    fn slowest(&self) -> Option<(&str, u64)> {
        let offsets = self.cursors.iter().map(|(consumer, cursor)| (consumer.as_str(), cursor.offset()));
        offsets.min_by_key(|(_, offset)| *offset)
    }

    fn size_bytes(&self) -> u64 {
        self.closed.iter().map(|segment| segment.bytes).sum::<u64>() + self.active.bytes
    }

    fn show_size(&self) {
        self.options.metrics.size_bytes.set(self.size_bytes().cast_signed());
        self.options.metrics.next_offset.set(self.next_offset.cast_signed());
    }
}

impl<T> Drop for Journal<T> {
    /// Lets nobody wait for a writer that is gone.
    fn drop(&mut self) {
        self.queue.close();
    }
}

/// Where the last segment ends.
struct Tail {
    next_offset: u64,
    received_at: Timestamp,
    torn_bytes_cut: u64,
}

impl ActiveSegment {
    /// Begins a segment; it gets its name only when its header is on disk, so that no segment is without one.
    fn create(file_system: &dyn FileSystem, directory: &Path, header: SegmentHeader) -> Result<Self, JournalError> {
        let path = segment_path(directory, header.first_offset);
        let unfinished = directory.join(format!("{:020}{UNFINISHED_SUFFIX}", header.first_offset));
        let file =
            file_system.create(&unfinished).map_err(JournalError::io("create a journal segment", &unfinished))?;
        write_all_at(&*file, &header.encode(), 0).map_err(JournalError::io("begin a journal segment", &unfinished))?;
        file.sync_data().map_err(JournalError::sync(&unfinished))?;
        crash_point("journal-segment-unnamed");
        file_system.rename(&unfinished, &path).map_err(JournalError::io("name a journal segment", &path))?;
        file_system.sync_directory(directory).map_err(JournalError::sync(directory))?;
        crash_point("journal-segment-begun");
        Ok(Self { file, path, header, bytes: SEGMENT_HEADER_BYTES as u64 })
    }

    /// Reads the last segment through, cuts a torn tail and makes sure that the rest is on disk.
    fn recover(
        file_system: &dyn FileSystem,
        directory: &Path,
        first_offset: u64,
    ) -> Result<(Self, Tail), JournalError> {
        let mut reader = SegmentReader::open(file_system, directory, first_offset)?;
        let torn_bytes_cut = reader.scan_to_end()?;
        let (path, bytes) = (reader.path, reader.position);
        let file = file_system.open(&path).map_err(JournalError::io("open the journal segment", &path))?;
        if torn_bytes_cut > 0 {
            warn!(
                segment = %path.display(),
                position = bytes,
                torn_bytes_cut,
                "cut a torn write off the journal; nothing of it was acknowledged"
            );
            file.truncate(bytes).map_err(JournalError::io("cut the torn tail of the journal segment", &path))?;
        }
        // The last block may never have been synced, or its sync may have failed and left pages that only look clean.
        // Written again it is synced for certain, before anyone reads it.
        let mut last_block = vec![0; usize::try_from(reader.last_block_bytes).expect("it was in memory already")];
        let position = bytes - reader.last_block_bytes;
        read_exact_at(&*file, &mut last_block, position)
            .map_err(JournalError::io("read the journal segment", &path))?;
        write_all_at(&*file, &last_block, position).map_err(JournalError::io("write the journal segment", &path))?;
        file.sync_data().map_err(JournalError::sync(&path))?;
        file_system.sync_directory(directory).map_err(JournalError::sync(directory))?;
        let tail = Tail { next_offset: reader.next_offset, received_at: reader.received_at, torn_bytes_cut };
        Ok((Self { file, path, header: reader.header, bytes }, tail))
    }
}

/// Checks that the segments before the last follow one another and are as long as they were when they were closed.
///
/// Their blocks are checked when they are read.
fn check_closed(
    file_system: &dyn FileSystem,
    directory: &Path,
    first_offsets: &[u64],
    last: &SegmentHeader,
) -> Result<VecDeque<ClosedSegment>, JournalError> {
    let mut closed = VecDeque::with_capacity(first_offsets.len());
    let mut next = *last;
    for &first_offset in first_offsets.iter().rev() {
        let segment = SegmentReader::open(file_system, directory, first_offset)?;
        let bytes = segment.file.length().map_err(JournalError::io("measure the journal segment", &segment.path))?;
        if next.previous_first_offset != first_offset {
            let reason = format!("the next segment follows one of offset {}", next.previous_first_offset);
            return Err(JournalError::damaged(&segment.path, bytes, reason));
        }
        if next.previous_bytes != bytes {
            let reason = format!("it has {bytes} bytes and was closed with {}", next.previous_bytes);
            return Err(JournalError::damaged(&segment.path, bytes.min(next.previous_bytes), reason));
        }
        closed.push_front(ClosedSegment {
            first_offset,
            end_offset: next.first_offset,
            bytes,
            received_at: next.received_at,
        });
        next = segment.header;
    }
    Ok(closed)
}

/// Takes the lock that a second process finds taken.
fn lock(directory: &Path) -> Result<File, JournalError> {
    let path = directory.join(LOCK_FILE);
    let opened = File::options().write(true).create(true).truncate(false).open(&path);
    let file = opened.map_err(JournalError::io("open the journal's lock", &path))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(JournalError::InUse { directory: directory.to_owned() }),
        Err(TryLockError::Error(error)) => Err(JournalError::io("lock the journal", &path)(error)),
    }
}

/// Deletes a segment that a crash caught before it got its name.
fn remove_unfinished(file_system: &dyn FileSystem, directory: &Path) -> Result<(), JournalError> {
    let names = file_system.list(directory).map_err(JournalError::io("list the journal's directory", directory))?;
    for name in names.iter().filter(|name| name.ends_with(UNFINISHED_SUFFIX)) {
        let path = directory.join(name);
        file_system.remove(&path).map_err(JournalError::io("delete an unfinished journal segment", &path))?;
    }
    Ok(())
}

/// Returns a number that no sender of messages knows.
fn salt() -> u32 {
    let random = RandomState::new().hash_one(0);
    u32::try_from(random >> 32).expect("32 bits are left")
}
