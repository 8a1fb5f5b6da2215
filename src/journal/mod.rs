//! The journal: everything that comes in, on disk, in one order.
//!
//! Messages, the ticks of the clock and every accepted configuration are appended here before anything else happens to
//! them, and a message is acknowledged to the broker only then. What the rest of the daemon does is a function of the
//! journal, so that after a crash it is read again from where each consumer stood.
//!
//! # Constraints
//!
//! - What was given to `on_durable` is on disk and is never lost, reordered or altered unseen.
//! - An entry has an **offset**: 0, 1, 2, …, never used twice, not even when everything before it was deleted.
//! - An entry has a **`received_at`**: when the writer took its block; never before that of an earlier entry, also
//!   across restarts and when the clock is set back.
//! - A lone entry is synced at once, without a timer; many are synced together.
//! - Readers see only what is synced. A consumer can therefore never know an entry that a power cut takes back.
//! - Opening takes the same short time whatever is kept, since a broker queues little while nobody is subscribed.
//!
//! # Format
//!
//! A directory of segments, each named by the first offset in it: `00000000000000001234.journal`. Numbers are
//! little-endian, checksums are CRC32C.
//!
//! ```text
//! segment = header block*
//! header  = "FROSTJNL" version:u32 salt:u32 first_offset:u64 received_at:i64
//!           previous_first_offset:u64 previous_bytes:u64 checksum:u32
//! block   = F5 "BLK" checksum:u32 body_bytes:u32 count:u32 first_offset:u64 received_at:i64 frame{count}
//! frame   = length:u32 kind:u8 …                                           (see `Entry::encode`)
//! ```
//!
//! The checksum of a block begins with the segment's salt and covers the rest of its header and its frames. The salt is
//! random, so that no sender can craft a payload that passes for a block of ours. The header's `received_at` is the
//! newest one before it; with `previous_…` it tells whether the segment before it is there, and whole, without reading
//! that one through.
//!
//! # Operations
//!
//! **Submitting** encodes the entry into the block that is gathering, under a lock, and gives it its offset. Blocks are
//! cut at 512 KiB. The queue is bounded in bytes and entries; when it is full, submitting is refused and the caller
//! stops reading: that is the whole of back-pressure.
//!
//! **Writing** is one thread: take the oldest gathered block as soon as nothing more is just arriving (20 µs; at the
//! latest at 512 KiB or after 5 ms), complete its header, write it with one call, `fdatasync`, tell the readers the new
//! end, give the tokens back. While it syncs, the next block gathers. So the batch grows with the load and with the
//! slowness of the disk, and there is never more than **one block in flight**.
//!
//! **A segment is begun** under another name, gets its header, is synced, renamed, and its directory synced, before the
//! first block goes in. The one before it is whole and synced by then and is never written again.
//!
//! **Reading** follows the segments through the page cache, checks every block, and never goes beyond the synced end.
//!
//! **Deleting** takes the oldest segments, one by one, that every [`Cursor`] has passed and that are older than the
//! retention, or in the way of the size limit. The segment being written stays, and with it the next offset.
//!
//! # When there is no room
//!
//! At the size limit, or when the disk or a quota is full, the block in hand is kept and tried again four times a
//! second; what it had left in the file is cut off first. Nothing is acknowledged meanwhile, the health part says why,
//! and it goes on by itself when a consumer advances or the disk has room.
//!
//! # When something fails
//!
//! A failed sync ends the writer, and the process must end with it: the kernel may have dropped the pages it could not
//! write and a second sync would succeed without them. Any other failure to write that is not want of room does the
//! same.
//!
//! # When it crashes
//!
//! | killed, or without power, … | what is on disk | at the next start |
//! |---|---|---|
//! | while a block is written, before its sync was over | any part of that block, in any order of its pages, at the very end | where it is whole it is kept, else it is cut off, and said so; nobody had been told |
//! | after the sync, before the tokens went out | the whole block | it is kept; the broker sends its messages again |
//! | while a segment is begun | a file with the unfinished name, or an empty segment | the first is deleted, the second is used |
//! | while segments are deleted | the oldest ones are gone, without a gap | nothing to do |
//! | while a torn tail is cut | the tail, or not | it is cut again |
//!
//! Since only one block is in flight and the next is written when it is synced, a bad block **with a good block behind
//! it** was synced before and went bad later: perhaps acknowledged data is lost, and opening fails, naming the file and
//! the position, instead of cutting. The same damage in the very last block cannot be told from a torn write, and is
//! cut. Segments before the last cannot be torn: whatever is wrong with them is an error, at opening where the length
//! shows it, else when it is read.
//!
//! A whole last block may never have been synced, or its sync may have failed just before the process ended. It is
//! therefore written again in place and synced before anyone may read it.

mod entry;
mod error;
mod file_system;
mod format;
mod metrics;
mod queue;
mod reader;
mod segment;
#[cfg(test)]
mod tests;
mod writer;

pub use entry::{Entry, MAX_ENTRY_BYTES, Message, Oversize};
pub use error::JournalError;
pub use file_system::{FileSystem, JournalFile, RealFileSystem};
pub use metrics::JournalMetrics;
pub use queue::{JournalHandle, SubmitError};
pub use reader::{Cursor, JournalReader, JournalReaders};
pub use segment::Batch;
pub use writer::{Journal, JournalOptions, Recovery};
