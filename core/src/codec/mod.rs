//! From a topic and bytes to readings, or to the reason why not; one file per payload format.
//!
//! Read in this order: [`topic`] (whose message it is), [`native`] (telemetry in the contract's own format),
//! [`status`] (whether a device is online). Nothing here allocates for a good reading or can panic on a bad one.

mod json;
pub mod native;
pub mod status;
pub mod topic;

use std::borrow::Cow;
use std::fmt;

use crate::model::{Kind, Quality, Timestamp};

/// The largest payload that is decoded, in bytes.
pub const PAYLOAD_MAX_BYTES: usize = 4 << 20;

/// The most readings that one message may carry.
pub const READINGS_MAX: usize = 10_000;

/// What a message says, in the order in which it says it; the buffer may be used again for the next message.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Decoded<'a> {
    /// The message's sequence number, where it has a usable one.
    pub seq: Option<u64>,
    /// Whether the message has a `seq` that is not an unsigned integer; it is then treated as absent.
    pub invalid_seq: bool,
    /// Every reading or why it was refused; a dead letter names a reading by its position here.
    pub items: Vec<Result<DecodedReading<'a>, Rejection>>,
}

/// One usable reading of a message.
#[derive(Debug, Clone, PartialEq)]
pub struct DecodedReading<'a> {
    /// The probe: 1 to 64 characters, none of them a control character.
    pub sensor: Cow<'a, str>,
    /// What was measured.
    pub kind: Kind,
    /// When it was measured; `None` where the payload does not say.
    pub event_time: Option<Timestamp>,
    /// The value in the kind's own unit of measure; `None` says that the probe failed.
    pub value: Option<f64>,
    /// How the value came to be.
    pub quality: Quality,
}

/// Why a message, or one reading of it, cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{reason}: {detail}")]
pub struct Rejection {
    /// The class it is counted and listed under.
    pub reason: DeadLetterReason,
    /// What exactly is wrong, for people.
    pub detail: String,
}

impl Rejection {
    /// Returns a rejection for `reason`.
    pub fn new(reason: DeadLetterReason, detail: impl Into<String>) -> Self {
        Self { reason, detail: detail.into() }
    }
}

/// The classes of dead letters. The discriminants are stored on disk: never renumber them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum DeadLetterReason {
    /// The bytes cannot be decoded.
    Malformed = 0,
    /// They can be decoded and have the wrong shape.
    Schema = 1,
    /// The value is physically impossible for its kind.
    Range = 2,
    /// The event time is too far ahead of the clock.
    Future = 3,
    /// The event time is too long ago.
    Past = 4,
    /// Another value was accepted for the same series and millisecond.
    Conflict = 5,
    /// The unit is not known and the configuration refuses unknown units.
    Unregistered = 6,
    /// No route takes the topic.
    Topic = 7,
    /// More bytes or readings than a message may have.
    Oversize = 8,
    /// The series database would not take it; it stays in the history.
    Refused = 9,
}

impl DeadLetterReason {
    /// Every reason, in the order of the discriminants.
    pub const ALL: [Self; 10] = [
        Self::Malformed,
        Self::Schema,
        Self::Range,
        Self::Future,
        Self::Past,
        Self::Conflict,
        Self::Unregistered,
        Self::Topic,
        Self::Oversize,
        Self::Refused,
    ];

    /// Returns the word used in listings and as a metric label: `malformed`, `schema`, ….
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Malformed => "malformed",
            Self::Schema => "schema",
            Self::Range => "range",
            Self::Future => "future",
            Self::Past => "past",
            Self::Conflict => "conflict",
            Self::Unregistered => "unregistered",
            Self::Topic => "topic",
            Self::Oversize => "oversize",
            Self::Refused => "refused",
        }
    }

    /// Returns the reason with this word, if there is one.
    pub fn from_word(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|reason| reason.as_str() == word)
    }

    /// Returns the reason with this discriminant, if there is one.
    pub fn from_code(code: u8) -> Option<Self> {
        Self::ALL.get(usize::from(code)).copied()
    }
}

impl fmt::Display for DeadLetterReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// How the payloads of a route are decoded.
#[derive(Debug, Clone, PartialEq)]
pub enum Codec {
    /// The contract's own JSON.
    Native(native::Native),
}

impl Codec {
    /// Decodes a payload into `decoded`, replacing what it held; on an error it holds nothing.
    pub fn decode<'a>(&self, payload: &'a [u8], decoded: &mut Decoded<'a>) -> Result<(), Rejection> {
        match self {
            Self::Native(native) => native.decode(payload, decoded),
        }
    }

    /// Returns whether a second delivery of this message can be told from a new message.
    pub fn has_identity(&self, payload: &[u8]) -> bool {
        match self {
            Self::Native(_) => native::has_identity(payload),
        }
    }
}

/// Which topics are taken, and how their payloads are read.
#[derive(Debug, Clone, PartialEq)]
pub struct Route {
    /// The MQTT topic filter that is subscribed to.
    pub filter: Box<str>,
    /// What reads the payloads.
    pub codec: Codec,
}

/// Returns the routes that apply where nothing is configured: the contract's own topics in its own format.
pub fn default_routes() -> Vec<Route> {
    vec![Route { filter: topic::TELEMETRY_FILTER.into(), codec: Codec::Native(native::Native::default()) }]
}

/// Returns the position of the first route that takes `topic`.
pub fn find_route(routes: &[Route], topic: &str) -> Option<usize> {
    routes.iter().position(|route| topic::matches(&route.filter, topic))
}
