//! The bytes of a segment: its header and its blocks. The journal's essay draws them.

use frostline_core::model::Timestamp;

pub(crate) const SEGMENT_HEADER_BYTES: usize = 52;
pub(crate) const BLOCK_HEADER_BYTES: usize = 32;

const SEGMENT_MAGIC: [u8; 8] = *b"FROSTJNL";
pub(crate) const BLOCK_MAGIC: [u8; 4] = *b"\xF5BLK";
const VERSION: u32 = 1;
/// Where the bytes begin that a block's checksum covers: behind magic and checksum.
const BLOCK_CHECKED_FROM: usize = 8;
/// A length of a frame and a kind: no entry is smaller.
const MIN_FRAME_BYTES: u32 = 5;

/// What a segment says about itself and about the one before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct SegmentHeader {
    /// Begins the checksum of each block, so that bytes made elsewhere never pass for a block of this segment.
    pub(crate) salt: u32,
    /// The offset of its first entry, also its name.
    pub(crate) first_offset: u64,
    /// The newest `received_at` before it.
    pub(crate) received_at: Timestamp,
    /// The name of the segment before it.
    pub(crate) previous_first_offset: u64,
    /// The bytes of the segment before it; 0 where there never was one.
    pub(crate) previous_bytes: u64,
}

/// What stands before the frames of a block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct BlockHeader {
    pub(crate) body_bytes: u32,
    pub(crate) count: u32,
    pub(crate) first_offset: u64,
    pub(crate) received_at: Timestamp,
}

impl SegmentHeader {
    pub(crate) fn encode(&self) -> [u8; SEGMENT_HEADER_BYTES] {
        let mut bytes = Vec::with_capacity(SEGMENT_HEADER_BYTES);
        bytes.extend_from_slice(&SEGMENT_MAGIC);
        bytes.extend_from_slice(&VERSION.to_le_bytes());
        bytes.extend_from_slice(&self.salt.to_le_bytes());
        bytes.extend_from_slice(&self.first_offset.to_le_bytes());
        bytes.extend_from_slice(&self.received_at.as_millis().to_le_bytes());
        bytes.extend_from_slice(&self.previous_first_offset.to_le_bytes());
        bytes.extend_from_slice(&self.previous_bytes.to_le_bytes());
        bytes.extend_from_slice(&crc32c::crc32c(&bytes).to_le_bytes());
        bytes.try_into().expect("the fields add up to SEGMENT_HEADER_BYTES")
    }

    /// Reads a header, or returns what is wrong with it.
    pub(crate) fn decode(bytes: &[u8; SEGMENT_HEADER_BYTES]) -> Result<Self, &'static str> {
        if bytes[..8] != SEGMENT_MAGIC {
            return Err("it does not begin as a journal segment does");
        }
        if u32_at(bytes, 8) != VERSION {
            return Err("its format is of another version");
        }
        if u32_at(bytes, 48) != crc32c::crc32c(&bytes[..48]) {
            return Err("the checksum of its header does not match");
        }
        Ok(Self {
            salt: u32_at(bytes, 12),
            first_offset: u64_at(bytes, 16),
            received_at: Timestamp::from_millis(u64_at(bytes, 24).cast_signed()),
            previous_first_offset: u64_at(bytes, 32),
            previous_bytes: u64_at(bytes, 40),
        })
    }
}

impl BlockHeader {
    /// Fills in the header of `block`, whose first [`BLOCK_HEADER_BYTES`] were left free before its frames.
    pub(crate) fn seal(block: &mut [u8], count: u32, first_offset: u64, received_at: Timestamp, salt: u32) {
        let body_bytes = u32::try_from(block.len() - BLOCK_HEADER_BYTES).expect("a block is cut far below 4 GiB");
        block[8..12].copy_from_slice(&body_bytes.to_le_bytes());
        block[12..16].copy_from_slice(&count.to_le_bytes());
        block[16..24].copy_from_slice(&first_offset.to_le_bytes());
        block[24..32].copy_from_slice(&received_at.as_millis().to_le_bytes());
        let checksum = crc32c::crc32c_append(salt, &block[BLOCK_CHECKED_FROM..]);
        block[..4].copy_from_slice(&BLOCK_MAGIC);
        block[4..8].copy_from_slice(&checksum.to_le_bytes());
    }

    /// Reads the header of a block without checking the checksum; `None` where no block begins here.
    pub(crate) fn decode(bytes: &[u8]) -> Option<Self> {
        if bytes.len() < BLOCK_HEADER_BYTES || bytes[..4] != BLOCK_MAGIC {
            return None;
        }
        let header = Self {
            body_bytes: u32_at(bytes, 8),
            count: u32_at(bytes, 12),
            first_offset: u64_at(bytes, 16),
            received_at: Timestamp::from_millis(u64_at(bytes, 24).cast_signed()),
        };
        (header.count > 0 && header.count <= header.body_bytes / MIN_FRAME_BYTES).then_some(header)
    }

    /// Returns how many bytes the block has with its header.
    pub(crate) fn block_bytes(&self) -> usize {
        BLOCK_HEADER_BYTES + self.body_bytes as usize
    }
}

/// Returns whether the checksum of a whole block matches.
pub(crate) fn checksum_matches(block: &[u8], salt: u32) -> bool {
    crc32c::crc32c_append(salt, &block[BLOCK_CHECKED_FROM..]) == u32_at(block, 4)
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(*bytes[at..].first_chunk().expect("the caller has checked the length"))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(*bytes[at..].first_chunk().expect("the caller has checked the length"))
}
