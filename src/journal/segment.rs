use std::path::{Path, PathBuf};
use std::{io, ops::Range};

use frostline_core::model::Timestamp;
use memchr::memmem;

use super::entry::{Entry, next_frame};
use super::error::JournalError;
use super::file_system::{FileSystem, JournalFile, read_exact_at};
use super::format::{
    BLOCK_HEADER_BYTES, BLOCK_MAGIC, BlockHeader, SEGMENT_HEADER_BYTES, SegmentHeader, checksum_matches,
};

const SUFFIX: &str = ".journal";
/// What a segment is called until its header is on disk.
pub(crate) const UNFINISHED_SUFFIX: &str = ".journal.new";
const SCAN_BYTES: usize = 1 << 20;

/// Entries read together; borrowed from one buffer, which is used again for the next batch.
#[derive(Debug, Default)]
pub struct Batch {
    bytes: Vec<u8>,
    entries: Vec<Located>,
}

#[derive(Debug)]
struct Located {
    offset: u64,
    received_at: Timestamp,
    frame: Range<usize>,
}

impl Batch {
    /// Returns a batch without entries.
    pub fn new() -> Self {
        Self::default()
    }

    /// Returns how many entries there are.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Returns whether there are none.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Returns how many bytes of the journal they were read from.
    pub fn bytes(&self) -> usize {
        self.bytes.len()
    }

    /// Returns the entries in order: offset, when the journal took it, and the entry.
    pub fn iter(&self) -> impl Iterator<Item = (u64, Timestamp, Entry<'_>)> {
        self.entries.iter().map(|located| {
            let entry =
                Entry::decode(&self.bytes[located.frame.clone()]).expect("it was decoded once when it was read");
            (located.offset, located.received_at, entry)
        })
    }

    pub(crate) fn clear(&mut self) {
        self.bytes.clear();
        self.entries.clear();
    }

    /// Replaces the bytes by those of `file` from `position`.
    fn fill(&mut self, file: &dyn JournalFile, position: u64, bytes: usize) -> io::Result<()> {
        self.bytes.resize(bytes, 0);
        read_exact_at(file, &mut self.bytes, position)
    }
}

/// Returns the path of the segment that begins with `first_offset`.
pub(crate) fn segment_path(directory: &Path, first_offset: u64) -> PathBuf {
    directory.join(format!("{first_offset:020}{SUFFIX}"))
}

/// Returns the first offsets of the segments in `directory`, in order.
pub(crate) fn list_segments(file_system: &dyn FileSystem, directory: &Path) -> Result<Vec<u64>, JournalError> {
    let names = file_system.list(directory).map_err(JournalError::io("list the journal's directory", directory))?;
    let first_offset = |name: &String| name.strip_suffix(SUFFIX).filter(|digits| digits.len() == 20)?.parse().ok();
    let mut first_offsets: Vec<u64> = names.iter().filter_map(first_offset).collect();
    first_offsets.sort_unstable();
    Ok(first_offsets)
}

/// Reads the blocks of one segment in order and trusts none of them unseen.
pub(crate) struct SegmentReader {
    pub(crate) file: Box<dyn JournalFile>,
    pub(crate) path: PathBuf,
    pub(crate) header: SegmentHeader,
    /// Where the next block begins.
    pub(crate) position: u64,
    /// The first offset of the next block.
    pub(crate) next_offset: u64,
    /// When the last block was taken.
    pub(crate) received_at: Timestamp,
    /// The bytes of the last block.
    pub(crate) last_block_bytes: u64,
}

impl SegmentReader {
    pub(crate) fn open(
        file_system: &dyn FileSystem,
        directory: &Path,
        first_offset: u64,
    ) -> Result<Self, JournalError> {
        let path = segment_path(directory, first_offset);
        let file = file_system.open_to_read(&path).map_err(JournalError::io("open the journal segment", &path))?;
        let length = file.length().map_err(JournalError::io("measure the journal segment", &path))?;
        let mut bytes = [0; SEGMENT_HEADER_BYTES];
        if length < bytes.len() as u64 {
            return Err(JournalError::damaged(&path, 0, "it is shorter than its header"));
        }
        read_exact_at(&*file, &mut bytes, 0).map_err(JournalError::io("read the journal segment", &path))?;
        let header = SegmentHeader::decode(&bytes).map_err(|reason| JournalError::damaged(&path, 0, reason))?;
        if header.first_offset != first_offset {
            let reason = format!("it begins at offset {}, which is not its name", header.first_offset);
            return Err(JournalError::damaged(&path, 0, reason));
        }
        Ok(Self {
            file,
            path,
            header,
            position: SEGMENT_HEADER_BYTES as u64,
            next_offset: first_offset,
            received_at: header.received_at,
            last_block_bytes: 0,
        })
    }

    /// Reads whole blocks into `batch`, about `bytes_max` and at least one, of those that end by `limit`.
    ///
    /// Entries before offset `from` are checked and left out. Returns false where no block is left. A bad block is
    /// reported when it is the first; blocks before it are returned first.
    pub(crate) fn read(
        &mut self,
        limit: u64,
        bytes_max: usize,
        from: u64,
        batch: &mut Batch,
    ) -> Result<bool, JournalError> {
        batch.clear();
        let Some(left) = limit.checked_sub(self.position).filter(|left| *left > 0) else { return Ok(false) };
        let wanted = bytes_max.max(BLOCK_HEADER_BYTES);
        self.fill(batch, usize::try_from(left).map_or(wanted, |left| left.min(wanted)))?;
        let begin = self.position;
        let mut at = 0;
        while at < batch.bytes.len() {
            let available = &batch.bytes[at..];
            let more_follows = limit - self.position > available.len() as u64;
            if available.len() < BLOCK_HEADER_BYTES && more_follows {
                break;
            }
            let fault = match BlockHeader::decode(available) {
                None => "no block begins here".to_owned(),
                Some(header) if header.block_bytes() > available.len() => {
                    if header.block_bytes() as u64 > limit - self.position {
                        "the block is longer than the segment".to_owned()
                    } else if at > 0 {
                        break;
                    } else {
                        self.fill(batch, header.block_bytes())?;
                        continue;
                    }
                }
                Some(header) => match self.take_block(&header, at, from, batch) {
                    Ok(()) => {
                        at += header.block_bytes();
                        continue;
                    }
                    Err(fault) => fault,
                },
            };
            if self.position > begin {
                break;
            }
            return Err(JournalError::damaged(&self.path, self.position, fault));
        }
        Ok(true)
    }

    /// Checks the block at `at` and enters its entries in `batch`; returns what is wrong with it otherwise.
    fn take_block(&mut self, header: &BlockHeader, at: usize, from: u64, batch: &mut Batch) -> Result<(), String> {
        let block = &batch.bytes[at..at + header.block_bytes()];
        if !checksum_matches(block, self.header.salt) {
            return Err("the checksum of the block does not match".to_owned());
        }
        if header.first_offset != self.next_offset {
            return Err(format!("the block begins at offset {} instead of {}", header.first_offset, self.next_offset));
        }
        if header.received_at < self.received_at {
            return Err("the block was taken before the one before it".to_owned());
        }
        let entries_before = batch.entries.len();
        let mut frames = &block[BLOCK_HEADER_BYTES..];
        for offset in header.first_offset..header.first_offset + u64::from(header.count) {
            let frame = next_frame(&mut frames).filter(|frame| Entry::decode(frame).is_some());
            let Some(frame) = frame else {
                batch.entries.truncate(entries_before);
                return Err(format!("entry {offset} cannot be read"));
            };
            if offset >= from {
                let end = at + block.len() - frames.len();
                let frame = end - frame.len()..end;
                batch.entries.push(Located { offset, received_at: header.received_at, frame });
            }
        }
        if !frames.is_empty() {
            batch.entries.truncate(entries_before);
            return Err("bytes follow the last entry of the block".to_owned());
        }
        self.position += header.block_bytes() as u64;
        self.next_offset += u64::from(header.count);
        self.received_at = header.received_at;
        self.last_block_bytes = header.block_bytes() as u64;
        Ok(())
    }

    /// Reads on to the last good block of the journal's last segment, and returns how many torn bytes follow it.
    ///
    /// Fails where a good block follows a bad one: only the write in flight can be torn, so that the bad one had been
    /// synced, and perhaps acknowledged.
    pub(crate) fn scan_to_end(&mut self) -> Result<u64, JournalError> {
        let length = self.file.length().map_err(JournalError::io("measure the journal segment", &self.path))?;
        let mut batch = Batch::new();
        loop {
            match self.read(length, SCAN_BYTES, u64::MAX, &mut batch) {
                Ok(true) => {}
                Ok(false) => return Ok(0),
                Err(JournalError::Damaged { segment, position, reason }) => {
                    let torn_bytes = length - self.position;
                    let rest = usize::try_from(torn_bytes).map_err(|_| {
                        JournalError::damaged(&self.path, position, "more follows than the memory holds")
                    })?;
                    self.fill(&mut batch, rest)?;
                    return match self.find_good_block(&batch.bytes) {
                        None => Ok(torn_bytes),
                        Some(at) => {
                            let good = position + at as u64;
                            let reason = format!("{reason}, yet a good block follows at byte {good}");
                            Err(JournalError::Damaged { segment, position, reason })
                        }
                    };
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Returns where in `bytes` a block of this segment begins, wherever that may be.
    fn find_good_block(&self, bytes: &[u8]) -> Option<usize> {
        memmem::find_iter(bytes, &BLOCK_MAGIC).find(|&at| {
            BlockHeader::decode(&bytes[at..]).is_some_and(|header| {
                // What could not follow is not worth a checksum over everything behind it.
                let offsets = self.next_offset..self.next_offset.saturating_add(bytes.len() as u64);
                offsets.contains(&header.first_offset)
                    && bytes[at..]
                        .get(..header.block_bytes())
                        .is_some_and(|block| checksum_matches(block, self.header.salt))
            })
        })
    }

    fn fill(&self, batch: &mut Batch, bytes: usize) -> Result<(), JournalError> {
        batch.fill(&*self.file, self.position, bytes).map_err(JournalError::io("read the journal segment", &self.path))
    }
}
