//! Recognises messages that the broker sends again although the journal has them.
//!
//! A connection that breaks takes with it the acknowledgements under way, and the broker delivers those messages again:
//! tens of thousands of them where it does not keep to the window. Journaling them again would be harmless (they are counted as
//! duplicates) but, with a connection that keeps breaking, might never come to an end. So the latest durable messages are
//! remembered by a hash of topic and payload (after a restart: those at the end of the journal), and one that comes again on a *later* connection is acknowledged at once. A message
//! that a device repeats within one connection is no redelivery and is journaled.

use std::collections::HashMap;
use std::collections::VecDeque;

use foldhash::fast::FixedState;
use xxhash_rust::xxh3::Xxh3;

/// How many durable messages one connection, or one run, leaves to be recognised later: as many as may be in flight.
pub const REMEMBERED_MAX: usize = 65_536;

/// The hash of a message's topic and payload.
pub(crate) type Fingerprint = [u8; 16];

/// Returns what a message is recognised by.
pub(crate) fn fingerprint(topic: &[u8], payload: &[u8]) -> Fingerprint {
    let mut hasher = Xxh3::new();
    hasher.update(&(topic.len() as u64).to_le_bytes());
    hasher.update(topic);
    hasher.update(payload);
    hasher.digest128().to_le_bytes()
}

/// The durable messages of one connection, newest last; the oldest fall out.
#[derive(Debug, Default)]
pub(crate) struct Durable(VecDeque<Fingerprint>);

impl Durable {
    /// Notes that a message has become durable.
    pub(crate) fn remember(&mut self, fingerprint: Fingerprint) {
        if self.0.len() == REMEMBERED_MAX {
            self.0.pop_front();
        }
        self.0.push_back(fingerprint);
    }
}

/// The durable messages of earlier connections that have not come again.
#[derive(Debug, Default)]
pub(crate) struct Earlier {
    /// How often each may still come again. The keys are hashes of what strangers send, but of a hash they cannot aim at
    /// buckets through, so a fixed seed will do.
    expected: HashMap<Fingerprint, u32, FixedState>,
}

impl Earlier {
    /// Adds what the connection that has ended made durable.
    pub(crate) fn extend(&mut self, durable: Durable) {
        // What is this far back was acknowledged long ago; forgetting too much costs duplicates, never a message.
        if self.expected.len() + durable.0.len() > 2 * REMEMBERED_MAX {
            self.expected.clear();
        }
        for fingerprint in durable.0 {
            *self.expected.entry(fingerprint).or_default() += 1;
        }
    }

    /// Returns whether nothing is remembered, so that no hash need be looked up.
    pub(crate) fn is_empty(&self) -> bool {
        self.expected.is_empty()
    }

    /// Returns whether the message was durable on an earlier connection.
    pub(crate) fn contains(&self, fingerprint: &Fingerprint) -> bool {
        self.expected.contains_key(fingerprint)
    }

    /// Strikes out one occurrence: the next equal message is a repeat of its own.
    pub(crate) fn strike_out(&mut self, fingerprint: &Fingerprint) {
        if let Some(count) = self.expected.get_mut(fingerprint) {
            *count -= 1;
            if *count == 0 {
                self.expected.remove(fingerprint);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn topic_and_payload_are_told_apart() {
        assert_ne!(fingerprint(b"ab", b"c"), fingerprint(b"a", b"bc"));
        assert_eq!(fingerprint(b"ab", b"c"), fingerprint(b"ab", b"c"));
    }

    #[test]
    fn a_message_comes_again_as_often_as_it_was_durable() {
        let (message, other) = (fingerprint(b"t", b"1"), fingerprint(b"t", b"2"));
        let mut durable = Durable::default();
        durable.remember(message);
        durable.remember(message);
        let mut earlier = Earlier::default();
        assert!(earlier.is_empty());
        earlier.extend(durable);
        assert!(!earlier.contains(&other));
        for _ in 0..2 {
            assert!(earlier.contains(&message));
            earlier.strike_out(&message);
        }
        assert!(!earlier.contains(&message));
    }

    #[test]
    fn memory_is_bounded_over_many_connections_and_the_newest_stay() {
        let mut earlier = Earlier::default();
        let mut newest = fingerprint(b"", b"");
        for connection in 0..5_u32 {
            let mut durable = Durable::default();
            for number in 0..70_000_u32 {
                newest = fingerprint(&connection.to_le_bytes(), &number.to_le_bytes());
                durable.remember(newest);
            }
            assert_eq!(durable.0.len(), REMEMBERED_MAX);
            earlier.extend(durable);
            assert!(earlier.expected.len() <= 2 * REMEMBERED_MAX);
        }
        assert!(earlier.contains(&newest));
        assert!(!earlier.contains(&fingerprint(&0_u32.to_le_bytes(), &69_999_u32.to_le_bytes())));
    }
}
