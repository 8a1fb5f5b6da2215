use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use prometheus::IntCounter;
use tokio::sync::Notify;

use super::entry::{Entry, EntryKind, MAX_ENTRY_BYTES};
use super::format::BLOCK_HEADER_BYTES;

/// How much one block gathers; an entry that is larger has a block of its own.
pub(crate) const GATHER_BYTES: usize = 512 << 10;

/// How long nothing may have come before a block is written that could still grow: far less than a sync takes.
const QUIET: Duration = Duration::from_micros(20);
/// How long a block gathers at most while entries keep coming.
const GATHER_MAX: Duration = Duration::from_millis(5);

/// Puts entries into the journal; clones share one queue, and its order is the journal's.
///
/// `T` is a token of the caller, given back by the writer once the entry is on disk.
#[derive(Debug)]
pub struct JournalHandle<T>(Arc<Queue<T>>);

/// Why an entry was not taken. Nothing of it was kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SubmitError {
    /// Wait for room and submit again.
    #[error("the journal's queue is full")]
    Full,
    /// The writer ends or has ended: give up.
    #[error("the journal has stopped")]
    Stopped,
    /// The entry will never be taken.
    #[error("an entry of {bytes} bytes is larger than the journal takes")]
    TooLarge {
        /// The bytes of its frame.
        bytes: usize,
    },
}

/// What waits for the writer, between the submitting threads and the writing one.
#[derive(Debug)]
pub(crate) struct Queue<T> {
    waiting: Mutex<Waiting<T>>,
    /// Tells the writer that something waits, or that it shall stop.
    to_writer: Condvar,
    /// Tells blocked submitters that there is room, or that there never will be.
    room: Condvar,
    /// The same for tasks.
    room_for_tasks: Notify,
    bytes_max: usize,
    entries_max: usize,
    refused: IntCounter,
}

#[derive(Debug)]
struct Waiting<T> {
    /// Each becomes a block. The last one still grows.
    gathered: VecDeque<Gathered<T>>,
    /// An emptied one whose memory is used again.
    spare: Option<Gathered<T>>,
    /// The offset that the next entry gets.
    next_offset: u64,
    bytes: usize,
    entries: usize,
    stage: Stage,
    /// Whether the writer sleeps: waking it is a system call, and mostly it is awake.
    writer_sleeps: bool,
    /// How many threads sleep for room.
    blocked: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    Open,
    /// Nothing more is taken; the writer still writes what waits.
    Draining,
    /// The writer has gone.
    Closed,
}

/// The entries of one block, encoded.
#[derive(Debug)]
pub(crate) struct Gathered<T> {
    /// Room for the block's header, then the frames.
    pub(crate) block: Vec<u8>,
    pub(crate) first_offset: u64,
    /// One for each entry, in order.
    pub(crate) tokens: Vec<T>,
    /// How many entries of each [`EntryKind`].
    pub(crate) kinds: [u32; EntryKind::ALL.len()],
}

/// What the writer shall do next.
pub(crate) enum Work<T> {
    Write(Gathered<T>),
    /// Nothing came for a while.
    Housekeeping,
    /// Everything is written and nothing more will come.
    End,
}

impl<T> Clone for JournalHandle<T> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<T> JournalHandle<T> {
    pub(crate) fn new(queue: Arc<Queue<T>>) -> Self {
        Self(queue)
    }

    /// Hands an entry to the writer and returns the offset it will have; never waits.
    ///
    /// The entry is on disk only when its token comes back.
    pub fn submit(&self, entry: Entry<'_>, token: T) -> Result<u64, SubmitError> {
        let mut waiting = self.0.lock();
        match self.0.admit(&waiting, &entry) {
            Ok(()) => Ok(self.0.push(&mut waiting, entry, token)),
            Err(refusal) => {
                if refusal == SubmitError::Full {
                    self.0.refused.inc();
                }
                Err(refusal)
            }
        }
    }

    /// As [`Self::submit`], but sleeps while the queue is full; for threads.
    pub fn submit_blocking(&self, entry: Entry<'_>, token: T) -> Result<u64, SubmitError> {
        let mut waiting = self.0.lock();
        loop {
            match self.0.admit(&waiting, &entry) {
                Ok(()) => return Ok(self.0.push(&mut waiting, entry, token)),
                Err(SubmitError::Full) => {
                    waiting.blocked += 1;
                    waiting = self.0.room.wait(waiting).unwrap_or_else(PoisonError::into_inner);
                    waiting.blocked -= 1;
                }
                Err(refusal) => return Err(refusal),
            }
        }
    }

    /// As [`Self::submit`], but waits while the queue is full; for tasks.
    pub async fn submit_async(&self, entry: Entry<'_>, token: T) -> Result<u64, SubmitError> {
        loop {
            let mut room = std::pin::pin!(self.0.room_for_tasks.notified());
            room.as_mut().enable();
            {
                let mut waiting = self.0.lock();
                match self.0.admit(&waiting, &entry) {
                    Ok(()) => return Ok(self.0.push(&mut waiting, entry, token)),
                    Err(SubmitError::Full) => {}
                    Err(refusal) => return Err(refusal),
                }
            }
            room.await;
        }
    }

    /// Returns whether half of the queue is free, so that it pays to open the tap again.
    pub fn has_room(&self) -> bool {
        self.0.has_room(&self.0.lock())
    }

    /// Waits until half of the queue is free; fails where the writer has ended before.
    pub async fn room(&self) -> Result<(), SubmitError> {
        loop {
            let mut room = std::pin::pin!(self.0.room_for_tasks.notified());
            room.as_mut().enable();
            {
                let waiting = self.0.lock();
                if waiting.stage != Stage::Open {
                    return Err(SubmitError::Stopped);
                }
                if self.0.has_room(&waiting) {
                    return Ok(());
                }
            }
            room.await;
        }
    }

    /// Takes nothing more, from any handle; the writer ends when what was submitted is on disk.
    pub fn stop(&self) {
        let mut waiting = self.0.lock();
        if waiting.stage == Stage::Open {
            waiting.stage = Stage::Draining;
        }
        self.0.wake_all(waiting);
    }
}

impl<T> Queue<T> {
    pub(crate) fn new(next_offset: u64, bytes_max: usize, entries_max: usize, refused: IntCounter) -> Self {
        let waiting = Waiting {
            gathered: VecDeque::new(),
            spare: None,
            next_offset,
            bytes: 0,
            entries: 0,
            stage: Stage::Open,
            writer_sleeps: false,
            blocked: 0,
        };
        Self {
            waiting: Mutex::new(waiting),
            to_writer: Condvar::new(),
            room: Condvar::new(),
            room_for_tasks: Notify::new(),
            bytes_max,
            entries_max,
            refused,
        }
    }

    /// Returns what to do next; sleeps up to `patience` while there is nothing.
    pub(crate) fn next(&self, patience: Duration) -> Work<T> {
        let mut waiting = self.lock();
        if waiting.gathered.is_empty() && waiting.stage == Stage::Open {
            waiting = self.sleep(waiting, patience);
        }
        waiting = self.gather(waiting);
        match waiting.gathered.pop_front() {
            Some(gathered) => {
                waiting.bytes -= gathered.block.len() - BLOCK_HEADER_BYTES;
                waiting.entries -= gathered.tokens.len();
                if waiting.blocked > 0 {
                    self.room.notify_all();
                }
                if self.has_room(&waiting) {
                    self.room_for_tasks.notify_waiters();
                }
                Work::Write(gathered)
            }
            None if waiting.stage == Stage::Open => Work::Housekeeping,
            None => Work::End,
        }
    }

    /// Sleeps for `pause`, or until told to stop; returns whether to go on.
    pub(crate) fn pause(&self, pause: Duration) -> bool {
        let waiting = self.lock();
        let (waiting, _) = self
            .to_writer
            .wait_timeout_while(waiting, pause, |waiting| waiting.stage == Stage::Open)
            .unwrap_or_else(PoisonError::into_inner);
        waiting.stage == Stage::Open
    }

    /// Gives the memory of a written block back.
    pub(crate) fn recycle(&self, mut gathered: Gathered<T>) {
        gathered.tokens.clear();
        // What a single large entry needed is not kept for ever.
        if gathered.block.capacity() <= 2 * GATHER_BYTES {
            self.lock().spare = Some(gathered);
        }
    }

    /// Refuses everything from now on, drops what waits and wakes whoever waits for room.
    pub(crate) fn close(&self) {
        let mut waiting = self.lock();
        waiting.stage = Stage::Closed;
        let dropped = std::mem::take(&mut waiting.gathered);
        self.wake_all(waiting);
        drop(dropped);
    }

    fn admit(&self, waiting: &Waiting<T>, entry: &Entry<'_>) -> Result<(), SubmitError> {
        let bytes = entry.frame_bytes();
        if waiting.stage != Stage::Open {
            Err(SubmitError::Stopped)
        } else if bytes > MAX_ENTRY_BYTES {
            Err(SubmitError::TooLarge { bytes })
        } else if waiting.entries > 0 && (waiting.bytes + bytes > self.bytes_max || waiting.entries >= self.entries_max)
        {
            Err(SubmitError::Full)
        } else {
            Ok(())
        }
    }

    fn push(&self, waiting: &mut Waiting<T>, entry: Entry<'_>, token: T) -> u64 {
        let bytes = entry.frame_bytes();
        let offset = waiting.next_offset;
        let fits = |last: &mut Gathered<T>| last.block.len() + bytes <= GATHER_BYTES;
        if waiting.gathered.back_mut().is_none_or(|last| !fits(last)) {
            let mut fresh = waiting.spare.take().unwrap_or_else(Gathered::empty);
            fresh.begin(offset);
            waiting.gathered.push_back(fresh);
        }
        let last = waiting.gathered.back_mut().expect("one was pushed where there was none");
        entry.encode(&mut last.block);
        last.tokens.push(token);
        last.kinds[entry.kind() as usize] += 1;
        waiting.next_offset += 1;
        waiting.bytes += bytes;
        waiting.entries += 1;
        if waiting.writer_sleeps {
            waiting.writer_sleeps = false;
            self.to_writer.notify_one();
        }
        offset
    }

    fn has_room(&self, waiting: &Waiting<T>) -> bool {
        waiting.bytes <= self.bytes_max / 2 && waiting.entries <= self.entries_max / 2
    }

    fn sleep<'a>(&self, mut waiting: MutexGuard<'a, Waiting<T>>, patience: Duration) -> MutexGuard<'a, Waiting<T>> {
        waiting.writer_sleeps = true;
        let (mut waiting, _) = self
            .to_writer
            .wait_timeout_while(waiting, patience, |waiting| {
                waiting.gathered.is_empty() && waiting.stage == Stage::Open
            })
            .unwrap_or_else(PoisonError::into_inner);
        waiting.writer_sleeps = false;
        waiting
    }

    /// Lets into the block what is arriving right now, without a timer: returns as soon as nothing more comes.
    ///
    /// A broker sends its window in one go. Writing on the first message would give every window two syncs, one for
    /// that message and one for the rest.
    fn gather<'a>(&'a self, mut waiting: MutexGuard<'a, Waiting<T>>) -> MutexGuard<'a, Waiting<T>> {
        let began = Instant::now();
        let (mut last_came, mut entries) = (began, waiting.entries);
        while waiting.stage == Stage::Open
            && waiting.entries > 0
            && waiting.bytes < GATHER_BYTES
            && last_came.elapsed() < QUIET
            && began.elapsed() < GATHER_MAX
        {
            drop(waiting);
            thread::yield_now();
            waiting = self.lock();
            if waiting.entries != entries {
                (last_came, entries) = (Instant::now(), waiting.entries);
            }
        }
        waiting
    }

    fn wake_all(&self, waiting: MutexGuard<'_, Waiting<T>>) {
        drop(waiting);
        self.to_writer.notify_all();
        self.room.notify_all();
        self.room_for_tasks.notify_waiters();
    }

    fn lock(&self) -> MutexGuard<'_, Waiting<T>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<T> Gathered<T> {
    fn empty() -> Self {
        Self { block: Vec::new(), first_offset: 0, tokens: Vec::new(), kinds: [0; EntryKind::ALL.len()] }
    }

    fn begin(&mut self, first_offset: u64) {
        self.block.clear();
        self.block.resize(BLOCK_HEADER_BYTES, 0);
        self.first_offset = first_offset;
        self.kinds = [0; EntryKind::ALL.len()];
    }
}
