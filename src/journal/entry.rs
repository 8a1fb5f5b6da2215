use frostline_core::model::Timestamp;

/// The largest frame that the journal takes; a message is cut by the source long before, at 4 MiB.
pub const MAX_ENTRY_BYTES: usize = 32 << 20;

const LENGTH_BYTES: usize = 4;
const MESSAGE: u8 = 1;
const TICK: u8 = 2;
const CONFIGURATION: u8 = 3;

const RETAINED: u8 = 1;
const OVERSIZE: u8 = 2;
const REDRIVEN: u8 = 4;

/// One thing that the journal keeps, borrowed from whoever holds its bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Entry<'a> {
    /// What a device sent.
    Message(Message<'a>),
    /// The clock that the rules see; the instant is the entry's `received_at`.
    Tick,
    /// A configuration, at the offset from which it holds.
    Configuration {
        /// What identifies the content.
        hash: &'a [u8; 32],
        /// The whole configuration, in the shape that the configuration module gave it.
        content: &'a [u8],
    },
}

/// A message as it came from the broker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Message<'a> {
    /// The topic; whoever decodes it checks that it is UTF-8.
    pub topic: &'a [u8],
    /// The payload, or its beginning where `oversize` is set.
    pub payload: &'a [u8],
    /// Whether the broker had kept it from before.
    pub retained: bool,
    /// Set where the payload was too large to keep whole.
    pub oversize: Option<Oversize>,
    /// When it was taken first, where it is a dead letter driven through again.
    pub original_received_at: Option<Timestamp>,
}

/// What is known about a payload of which only the beginning was kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Oversize {
    /// The bytes of the whole payload.
    pub length: u64,
    /// The hash of the whole payload.
    pub sha256: [u8; 32],
}

/// The kinds of entries, as metrics label them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum EntryKind {
    Message,
    Tick,
    Configuration,
}

impl EntryKind {
    pub(crate) const ALL: [Self; 3] = [Self::Message, Self::Tick, Self::Configuration];

    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Message => "message",
            Self::Tick => "tick",
            Self::Configuration => "configuration",
        }
    }
}

impl<'a> Entry<'a> {
    pub(crate) fn kind(&self) -> EntryKind {
        match self {
            Self::Message(_) => EntryKind::Message,
            Self::Tick => EntryKind::Tick,
            Self::Configuration { .. } => EntryKind::Configuration,
        }
    }

    /// Returns how many bytes [`Self::encode`] appends.
    pub(crate) fn frame_bytes(&self) -> usize {
        LENGTH_BYTES
            + match self {
                Self::Message(message) => {
                    6 + message.oversize.map_or(0, |_| 40)
                        + message.original_received_at.map_or(0, |_| 8)
                        + message.topic.len()
                        + message.payload.len()
                }
                Self::Tick => 1,
                Self::Configuration { hash, content } => 1 + hash.len() + content.len(),
            }
    }

    /// Appends the entry as one frame: `length u32` of what follows, `kind u8`, and by kind
    ///
    /// - message: `flags u8`, `topic length u32`, where flagged `whole length u64` and `sha256`, where flagged
    ///   `original received_at i64`, topic, payload;
    /// - tick: nothing;
    /// - configuration: `hash`, content.
    ///
    /// Numbers are little-endian. The caller has checked the frame against [`MAX_ENTRY_BYTES`].
    pub(crate) fn encode(&self, to: &mut Vec<u8>) {
        to.extend_from_slice(&length_u32(self.frame_bytes() - LENGTH_BYTES).to_le_bytes());
        match self {
            Self::Message(message) => {
                let flag = |set: bool, flag: u8| if set { flag } else { 0 };
                to.push(MESSAGE);
                to.push(
                    flag(message.retained, RETAINED)
                        | flag(message.oversize.is_some(), OVERSIZE)
                        | flag(message.original_received_at.is_some(), REDRIVEN),
                );
                to.extend_from_slice(&length_u32(message.topic.len()).to_le_bytes());
                if let Some(oversize) = &message.oversize {
                    to.extend_from_slice(&oversize.length.to_le_bytes());
                    to.extend_from_slice(&oversize.sha256);
                }
                if let Some(original_received_at) = message.original_received_at {
                    to.extend_from_slice(&original_received_at.as_millis().to_le_bytes());
                }
                to.extend_from_slice(message.topic);
                to.extend_from_slice(message.payload);
            }
            Self::Tick => to.push(TICK),
            Self::Configuration { hash, content } => {
                to.push(CONFIGURATION);
                to.extend_from_slice(*hash);
                to.extend_from_slice(content);
            }
        }
    }

    /// Reads a frame without its length; `None` where it is not one that [`Self::encode`] wrote.
    pub(crate) fn decode(frame: &'a [u8]) -> Option<Self> {
        let (&kind, mut rest) = frame.split_first()?;
        match kind {
            MESSAGE => {
                let [flags] = *take(&mut rest)?;
                if flags & !(RETAINED | OVERSIZE | REDRIVEN) != 0 {
                    return None;
                }
                let topic_length = u32::from_le_bytes(*take(&mut rest)?) as usize;
                let oversize = if flags & OVERSIZE == 0 {
                    None
                } else {
                    Some(Oversize { length: u64::from_le_bytes(*take(&mut rest)?), sha256: *take(&mut rest)? })
                };
                let original_received_at = if flags & REDRIVEN == 0 {
                    None
                } else {
                    Some(Timestamp::from_millis(i64::from_le_bytes(*take(&mut rest)?)))
                };
                let (topic, payload) = rest.split_at_checked(topic_length)?;
                let retained = flags & RETAINED != 0;
                Some(Self::Message(Message { topic, payload, retained, oversize, original_received_at }))
            }
            TICK => rest.is_empty().then_some(Self::Tick),
            CONFIGURATION => Some(Self::Configuration { hash: take(&mut rest)?, content: rest }),
            _ => None,
        }
    }
}

/// Cuts the next frame, without its length, off `bytes`; `None` where they do not begin with a whole one.
pub(crate) fn next_frame<'a>(bytes: &mut &'a [u8]) -> Option<&'a [u8]> {
    let length = u32::from_le_bytes(*take(bytes)?) as usize;
    let (frame, rest) = bytes.split_at_checked(length)?;
    *bytes = rest;
    Some(frame)
}

/// Cuts the next `N` bytes off `bytes`.
pub(crate) fn take<'a, const N: usize>(bytes: &mut &'a [u8]) -> Option<&'a [u8; N]> {
    let (taken, rest) = bytes.split_first_chunk()?;
    *bytes = rest;
    Some(taken)
}

fn length_u32(length: usize) -> u32 {
    u32::try_from(length).expect("no entry is larger than MAX_ENTRY_BYTES")
}
