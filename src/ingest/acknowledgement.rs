//! Sends acknowledgements once the journal has synced, in the order of reception, each on its own connection or not at all.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio_util::sync::CancellationToken;

use super::client::{ACKS_QUEUED_MAX, Client};
use super::metrics::IngestMetrics;
use super::redelivery::{Durable, Fingerprint, fingerprint};

/// How many acknowledgements may wait for their turn, at two bytes each, before the connection is given up.
///
/// The client library receives up to nine messages for each acknowledgement that it sends, and there are brokers that send
/// two more for each one that they get, whatever window they were told. Then half of a backlog is unacknowledged at its peak.
const ACKS_BEHIND_MAX: usize = 8 << 20;

/// What the log hands back once a message is durable.
#[derive(Debug, Clone, Copy)]
pub struct AckToken {
    /// What the message is recognised by if it comes again.
    pub(crate) fingerprint: Fingerprint,
    /// Counts the messages of one connection that were submitted, from 1.
    pub(crate) sequence: u64,
    /// The connection that it came on.
    pub(crate) epoch: u32,
    /// None where the broker expects no acknowledgement.
    pub(crate) packet_id: Option<u16>,
}

/// Takes what became durable and acknowledges it; clones share the state.
#[derive(Clone)]
pub struct Acknowledger {
    state: Arc<Mutex<State>>,
    metrics: IngestMetrics,
}

/// Shared by the source, which opens and closes connections, and the log's thread, which reports what is durable.
#[derive(Default)]
struct State {
    /// Grows with every connection; a token of another epoch is never acknowledged.
    epoch: u32,
    /// The connection that is up, if one is.
    connection: Option<Connection>,
    /// What became durable since the source last asked.
    durable: Durable,
}

struct Connection {
    client: Client,
    /// Cancelled to have the source drop the connection.
    give_up: CancellationToken,
    /// The sequence up to which everything is durable and its acknowledgement queued, or behind those that are.
    durable_to: u64,
    /// Acknowledgements in the client's channel that have not been reported as sent.
    queued: usize,
    /// Acknowledgements that come behind those, oldest first.
    behind: VecDeque<u16>,
    /// Redeliveries, each to be acknowledged once everything received before it is: after this sequence, this packet.
    waiting: VecDeque<(u64, u16)>,
    /// Set when the daemon stops: disconnect when this sequence is durable.
    disconnect_after: Option<u64>,
    /// Whether any acknowledgement was queued.
    has_acknowledged: bool,
}

impl Acknowledger {
    /// Returns an acknowledger without a connection.
    pub fn new(metrics: IngestMetrics) -> Self {
        Self { state: Arc::default(), metrics }
    }

    /// Acknowledges durable messages and empties `tokens`; they come in the order of their submission.
    ///
    /// Never waits: called on the thread that syncs the log.
    pub fn durable(&self, tokens: &mut Vec<AckToken>) {
        let mut acknowledged = 0;
        let mut stale = 0;
        let mut guard = self.lock();
        let state = &mut *guard;
        for token in tokens.drain(..) {
            if token.packet_id.is_some() {
                state.durable.remember(token.fingerprint);
            }
            match &mut state.connection {
                Some(connection) if token.epoch == state.epoch => {
                    connection.durable_to = token.sequence;
                    acknowledged += connection.acknowledge(token.packet_id);
                    acknowledged += connection.acknowledge_waiting();
                }
                _ => stale += u64::from(token.packet_id.is_some()),
            }
        }
        if let Some(connection) = &mut state.connection {
            connection.disconnect_if_due();
        }
        drop(guard);
        self.metrics.messages_acknowledged.inc_by(acknowledged);
        self.metrics.acks_stale.inc_by(stale);
    }

    /// Remembers a message that an earlier run of the daemon made durable and perhaps did not acknowledge.
    ///
    /// To be called, oldest first, before the source runs.
    pub fn remember(&self, topic: &[u8], payload: &[u8]) {
        self.lock().durable.remember(fingerprint(topic, payload));
    }

    /// Begins a connection and returns its epoch; `give_up` is cancelled if its acknowledgements cannot be queued.
    pub(crate) fn open(&self, client: Client, give_up: CancellationToken) -> u32 {
        let mut state = self.lock();
        state.epoch += 1;
        state.connection = Some(Connection {
            client,
            give_up,
            durable_to: 0,
            queued: 0,
            behind: VecDeque::new(),
            waiting: VecDeque::new(),
            disconnect_after: None,
            has_acknowledged: false,
        });
        state.epoch
    }

    /// Ends the connection and returns whether anything was acknowledged on it.
    pub(crate) fn close(&self) -> bool {
        let mut state = self.lock();
        state.epoch += 1;
        state.connection.take().is_some_and(|connection| connection.has_acknowledged)
    }

    /// Returns what has become durable since this was last called.
    pub(crate) fn take_durable(&self) -> Durable {
        std::mem::take(&mut self.lock().durable)
    }

    /// Acknowledges a message that is durable already, once the `submitted` messages before it are acknowledged.
    pub(crate) fn redelivered(&self, submitted: u64, packet_id: u16, fingerprint: Fingerprint) {
        let mut state = self.lock();
        // It may come yet again: on the connection after this one.
        state.durable.remember(fingerprint);
        let Some(connection) = &mut state.connection else { return };
        connection.waiting.push_back((submitted, packet_id));
        let acknowledged = connection.acknowledge_waiting();
        drop(state);
        self.metrics.messages_acknowledged.inc_by(acknowledged);
    }

    /// Notes that `count` acknowledgements of this connection have been sent, and queues as many more.
    pub(crate) fn sent(&self, count: usize) {
        let mut state = self.lock();
        let Some(connection) = &mut state.connection else { return };
        connection.queued -= count;
        let acknowledged = connection.fill_channel();
        connection.disconnect_if_due();
        drop(state);
        self.metrics.messages_acknowledged.inc_by(acknowledged);
    }

    /// Disconnects once the `submitted` messages of this connection are acknowledged.
    pub(crate) fn disconnect_after(&self, submitted: u64) {
        if let Some(connection) = &mut self.lock().connection {
            connection.disconnect_after = Some(submitted);
            connection.disconnect_if_due();
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Connection {
    /// Takes one more acknowledgement and returns how many were queued by that.
    fn acknowledge(&mut self, packet_id: Option<u16>) -> u64 {
        let Some(packet_id) = packet_id else { return 0 };
        self.behind.push_back(packet_id);
        if self.behind.len() > ACKS_BEHIND_MAX {
            self.give_up.cancel();
        }
        self.fill_channel()
    }

    /// Queues what is due, as far as there is room, and returns how many acknowledgements that were. Where a connection is given
    /// up, what is queued after that does not matter: the broker sends everything unacknowledged again.
    fn fill_channel(&mut self) -> u64 {
        let mut acknowledged = 0;
        while self.queued < ACKS_QUEUED_MAX
            && !self.give_up.is_cancelled()
            && let Some(packet_id) = self.behind.pop_front()
        {
            match self.client.acknowledge(packet_id) {
                Ok(()) => {
                    self.has_acknowledged = true;
                    self.queued += 1;
                    acknowledged += 1;
                }
                Err(_) => self.give_up.cancel(),
            }
        }
        acknowledged
    }

    fn acknowledge_waiting(&mut self) -> u64 {
        let mut acknowledged = 0;
        while let Some((after, packet_id)) = self.waiting.front().copied() {
            if after > self.durable_to {
                break;
            }
            self.waiting.pop_front();
            acknowledged += self.acknowledge(Some(packet_id));
        }
        acknowledged
    }

    fn disconnect_if_due(&mut self) {
        if self.behind.is_empty() && self.disconnect_after.is_some_and(|submitted| submitted <= self.durable_to) {
            self.disconnect_after = None;
            if self.client.disconnect().is_err() {
                self.give_up.cancel();
            }
        }
    }
}
