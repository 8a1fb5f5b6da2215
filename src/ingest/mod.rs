//! The MQTT side: subscribes, hands every message to the journal, and acknowledges only what the journal has synced.
//!
//! # How a message travels
//!
//! ```text
//! broker ──► Source::run ──► MessageLog::submit(message, token)        (never blocks)
//!    ▲                              │  journal thread: write, sync
//!    └── PUBACK ◄── Acknowledger::durable(tokens in submit order) ◄────┘
//! ```
//!
//! # What the client library does not do, and the guard for it
//!
//! 1. **Messages of a dead connection surface on the next one.** Every connection has an event loop of its own, dropped
//!    with it, and an epoch that every [`AckToken`] carries.
//! 2. **An acknowledgement that comes late can hit another message** that has the same packet id on the next connection.
//!    The epoch is compared, and the acknowledgement queued, inside one mutex section; the end of a connection changes the
//!    epoch inside the same mutex.
//! 3. **The DUP flag means nothing** (some brokers never set it). A redelivery is recognised by what it says: see
//!    `redelivery`.
//! 4. **A full request channel would block for ever.** Acknowledgements are queued without waiting, no more than the channel
//!    has room for; the others wait in a list of our own. Should that grow without end, the connection is dropped.
//! 5. **A packet over the limit is redelivered for ever.** The limit for packets (8 MiB, told to the broker on MQTT 5) is
//!    above our own for payloads (4 MiB), beyond which a message is taken as its first 64 KiB and a hash. After a packet over
//!    the first limit one connection is made that takes anything.
//! 6. **Topic aliases are delivered as an empty topic.** They are never offered, and an empty topic ends the connection.
//! 7. **A client that publishes may stop acknowledging** when its own window is full. The [`publisher`](Publisher) is a
//!    second client.
//! 8. **Reconnecting is immediate and endless.** We wait with growing, jittered delays. The future that polls the client is
//!    never dropped while its connection is to live, and awaits nothing but the network and, for a second at most, room in
//!    the journal's queue.
//!
//! Some brokers send far more than the window that they were told (mosquitto 2.0 has sent tens of thousands of messages
//! beyond it). Where the log cannot follow, the source therefore stops reading for a moment, so that TCP holds the broker
//! back; only where there is no room for longer is the connection given up, and everything unacknowledged sent again.
//!
//! # Invariants
//!
//! - No acknowledgement is sent for a message that the log has not reported durable.
//! - Acknowledgements are sent in the order of reception.
//! - A message that the log does not take is not acknowledged, and neither is any later one of its connection.

mod acknowledgement;
mod back_off;
mod client;
mod metrics;
mod options;
mod publisher;
mod redelivery;
mod source;

use bytes::Bytes;

pub use acknowledgement::{AckToken, Acknowledger};
pub use metrics::IngestMetrics;
pub use options::SetupError;
pub use publisher::{PublishError, Publisher, PublisherTask};
pub use redelivery::REMEMBERED_MAX;
pub use source::{HasIdentity, LogStopped, Source};

/// The largest payload that is taken whole; of a larger one the first [`OVERSIZE_KEPT_BYTES`] are kept, and a hash.
pub const PAYLOAD_BYTES_MAX: usize = 4 << 20;

/// How much of an oversize payload is kept.
pub const OVERSIZE_KEPT_BYTES: usize = 64 << 10;

/// A message as the broker delivered it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IncomingMessage {
    /// Never empty; not checked to be UTF-8.
    pub topic: Bytes,
    /// The payload, or its first [`OVERSIZE_KEPT_BYTES`] where `oversize` is set.
    pub payload: Bytes,
    /// Whether the broker had kept it for new subscribers, so that it may be old.
    pub retained: bool,
    /// Set where the payload was over [`PAYLOAD_BYTES_MAX`].
    pub oversize: Option<Oversize>,
}

/// What is known of a payload that was too large to keep.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Oversize {
    /// Its whole length in bytes.
    pub length: u64,
    /// The SHA-256 of the whole.
    pub sha256: [u8; 32],
}

/// Where messages are made durable: the journal, or a test's stand-in.
pub trait MessageLog: Send + Sync + 'static {
    /// Queues a message to be written and synced; never blocks.
    ///
    /// Once it is durable its token goes to [`Acknowledger::durable`], tokens in the order of their `submit`.
    fn submit(&self, message: &IncomingMessage, token: AckToken) -> Result<(), SubmitError>;

    /// Returns whether a message would be taken now.
    fn has_room(&self) -> bool;
}

/// Why a message was not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SubmitError {
    /// Wait until there is room again; the broker keeps the message meanwhile.
    #[error("the journal is full")]
    Full,
    /// The log takes nothing any more: the daemon has to stop.
    #[error("the journal has stopped")]
    Stopped,
}
