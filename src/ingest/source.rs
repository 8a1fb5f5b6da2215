use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use prometheus::IntCounter;
use sha2::{Digest, Sha256};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, info, warn};

use super::acknowledgement::{AckToken, Acknowledger};
use super::back_off::BackOff;
use super::client::{Client, Event, EventLoop, Failure, PACKET_BYTES_ANY, PACKET_BYTES_MAX, STUCK, Session, prepare};
use super::metrics::IngestMetrics;
use super::options::{ConnectionOptions, SetupError};
use super::redelivery::{Earlier, fingerprint};
use super::{IncomingMessage, MessageLog, OVERSIZE_KEPT_BYTES, Oversize, PAYLOAD_BYTES_MAX, SubmitError};
use crate::config::MqttConfig;
use crate::crash_point::crash_point;
use crate::health::Part;

/// Tells from topic and payload whether a message has a time or a sequence number, so that an equal one is surely the same.
///
/// Asked only about messages that look like redeliveries.
pub type HasIdentity = Arc<dyn Fn(&[u8], &[u8]) -> bool + Send + Sync>;

const RECONNECT_FIRST: Duration = Duration::from_millis(100);
const RECONNECT_LONGEST: Duration = Duration::from_secs(10);

/// A connection that lived this long was a good one, even if nothing came on it.
const GOOD_CONNECTION: Duration = Duration::from_secs(30);

/// How often a full journal is asked whether there is room again.
const ROOM_FIRST: Duration = Duration::from_millis(50);
const ROOM_LONGEST: Duration = Duration::from_secs(1);

/// How long the connection is kept, unread, where the log is full: as long as a slow sync takes. To give it up costs more,
/// for the broker sends everything unacknowledged again.
const ROOM_PATIENCE: Duration = Duration::from_secs(1);
const ROOM_LOOK: Duration = Duration::from_millis(5);

/// After how many sent acknowledgements the acknowledger hears of them; far fewer than it lets be queued.
const ACKS_REPORTED: usize = 1_024;

/// After how long a refused subscription is tried again.
const RESUBSCRIBE_FIRST: Duration = Duration::from_secs(1);
const RESUBSCRIBE_LONGEST: Duration = Duration::from_secs(60);

/// How long the log has at a stop to sync what it took, and the broker to take the acknowledgements.
const DRAIN: Duration = Duration::from_secs(10);

/// How long the broker has to close the connection after our good-bye.
const GOOD_BYE: Duration = Duration::from_secs(1);

/// Receives from the broker into the log, for as long as the daemon runs.
pub struct Source<L> {
    options: ConnectionOptions,
    filters: Vec<String>,
    log: L,
    acknowledger: Acknowledger,
    has_identity: HasIdentity,
    metrics: IngestMetrics,
    health: Part,
    /// Counted apart from the metrics' vectors, where a look-up costs.
    received: IntCounter,
    /// What may come again from earlier connections.
    earlier: Earlier,
    /// Whether the broker has confirmed every filter since this process started, in the session it has now.
    is_subscribed: bool,
    /// The limit of the next connection.
    packet_bytes_max: u32,
    errors: ErrorLog,
}

/// The log takes nothing any more: the daemon has to stop.
#[derive(Debug, thiserror::Error)]
#[error("the journal has stopped")]
pub struct LogStopped;

/// How a connection ended.
enum End {
    Failed(Failure),
    Stopped,
    LogStopped,
}

/// One connection, from the attempt to its end.
struct Connection<'a> {
    stop: &'a CancellationToken,
    give_up: CancellationToken,
    client: Client,
    epoch: u32,
    /// How many messages of this connection the log has taken.
    submitted: u64,
    /// Acknowledgements sent and not yet reported to the acknowledger.
    acks_sent: usize,
    /// When it was accepted.
    connected_at: Option<Instant>,
    /// Pings sent since the subscription was asked for and not answered; a broker that answers pings only is no use.
    unanswered_pings: Option<u32>,
    /// When to ask again for filters that were refused.
    resubscribe_at: Option<Instant>,
    resubscribe_back_off: BackOff,
    /// Set once the daemon stops: by then everything is over.
    drain_until: Option<Instant>,
    /// Whether everything taken was acknowledged and the broker told that we leave.
    said_good_bye: bool,
}

impl<L: MessageLog> Source<L> {
    /// Prepares the source; `filters` are what is subscribed to, all at QoS 1.
    ///
    /// The log must hand its tokens to `acknowledger`.
    pub fn new(
        config: &MqttConfig,
        filters: Vec<String>,
        log: L,
        acknowledger: Acknowledger,
        has_identity: HasIdentity,
        metrics: IngestMetrics,
        health: Part,
    ) -> Result<Self, SetupError> {
        let options = ConnectionOptions::new(config)?;
        Ok(Self {
            errors: ErrorLog::new("source", &options.url),
            received: metrics.messages_received.clone(),
            options,
            filters,
            log,
            acknowledger,
            has_identity,
            metrics,
            health,
            earlier: Earlier::default(),
            is_subscribed: false,
            packet_bytes_max: PACKET_BYTES_MAX,
        })
    }

    /// Receives until `stop`: then takes no more, acknowledges what the log has synced and leaves the session to the broker.
    pub async fn run(mut self, stop: CancellationToken) -> Result<(), LogStopped> {
        let mut back_off = BackOff::new(RECONNECT_FIRST, RECONNECT_LONGEST);
        self.health.down(format!("connecting to {}", self.options.url));
        loop {
            let (end, was_good) = self.connect_and_receive(&stop).await;
            let failure = match end {
                End::Stopped => {
                    self.health.down("stopped");
                    return Ok(());
                }
                End::LogStopped => {
                    self.health.down(LogStopped.to_string());
                    return Err(LogStopped);
                }
                End::Failed(failure) => failure,
            };
            if was_good {
                back_off.reset();
                self.errors.recovered();
            }
            self.metrics.connection_errors.with_label_values(&["source", failure.kind()]).inc();
            self.errors.failed(&failure);
            self.health.down(failure.to_string());
            // One connection takes whatever is in the way; the next has the usual limit again.
            self.packet_bytes_max = match failure {
                Failure::Oversize { .. } => PACKET_BYTES_ANY,
                _ => PACKET_BYTES_MAX,
            };
            if sleep_unless(&stop, back_off.next_delay()).await.is_stopped() {
                return Ok(());
            }
            if let Failure::LogFull = failure
                && self.wait_for_room(&stop).await.is_stopped()
            {
                return Ok(());
            }
        }
    }

    /// Returns how the connection ended, and whether it was of any use.
    async fn connect_and_receive(&mut self, stop: &CancellationToken) -> (End, bool) {
        let (client, mut event_loop) =
            prepare(&self.options, Session::Persistent { packet_bytes_max: self.packet_bytes_max });
        let give_up = CancellationToken::new();
        let epoch = self.acknowledger.open(client.clone(), give_up.clone());
        let mut connection = Connection {
            stop,
            give_up,
            client,
            epoch,
            submitted: 0,
            acks_sent: 0,
            connected_at: None,
            unanswered_pings: None,
            resubscribe_at: None,
            resubscribe_back_off: BackOff::new(RESUBSCRIBE_FIRST, RESUBSCRIBE_LONGEST),
            drain_until: None,
            said_good_bye: false,
        };
        let end = loop {
            let event = match self.next_event(&mut connection, &mut event_loop).await {
                Ok(event) => event,
                Err(end) => break end,
            };
            if let Err(end) = self.handle(event, &mut connection).await {
                break end;
            }
        };
        // From here on no token of this connection is acknowledged; what was queued goes with the event loop.
        let has_acknowledged = self.acknowledger.close();
        let lived_long = connection.connected_at.is_some_and(|connected_at| connected_at.elapsed() >= GOOD_CONNECTION);
        (end, has_acknowledged || lived_long)
    }

    /// Returns the next event, looking after the stop, refused filters and a stuck peer meanwhile.
    async fn next_event(&self, connection: &mut Connection<'_>, event_loop: &mut EventLoop) -> Result<Event, End> {
        // One future until there is an event: to drop it halfway could lose a request.
        let mut poll = pin!(event_loop.poll());
        loop {
            // Looked at before every event, for under load the poll below is always ready.
            if connection.give_up.is_cancelled() {
                return Err(End::Failed(Failure::AckBacklog));
            }
            if connection.drain_until.is_none() && connection.stop.is_cancelled() {
                if connection.connected_at.is_none() {
                    return Err(End::Stopped);
                }
                connection.drain_until = Some(Instant::now() + DRAIN);
                self.acknowledger.disconnect_after(connection.submitted);
            }
            if connection.resubscribe_at.is_some_and(|at| at <= Instant::now()) {
                self.subscribe(connection)?;
            }
            let (drain_until, resubscribe_at) = (connection.drain_until, connection.resubscribe_at);
            tokio::select! {
                biased;
                event = &mut poll => {
                    return match event {
                        Ok(event) => Ok(event),
                        // The broker closes the connection once we have said good-bye.
                        Err(failure) if drain_until.is_some() => {
                            debug!(error = %failure, "connection closed at the stop");
                            Err(End::Stopped)
                        }
                        Err(failure) => Err(End::Failed(failure)),
                    };
                }
                () = connection.stop.cancelled(), if drain_until.is_none() => {}
                () = connection.give_up.cancelled() => {}
                () = sleep_until(resubscribe_at) => {}
                () = sleep_until(drain_until) => {
                    if !connection.said_good_bye {
                        warn!("stopped before everything was acknowledged; the broker sends it again");
                    }
                    return Err(End::Stopped);
                }
                // A block, so that no timer is made while events are at hand.
                () = async { tokio::time::sleep(STUCK).await } => return Err(End::Failed(Failure::Timeout)),
            }
        }
    }

    async fn handle(&mut self, event: Event, connection: &mut Connection<'_>) -> Result<(), End> {
        match event {
            Event::Message { topic, payload, retained, packet_id } => {
                self.received.inc();
                // Nothing more is taken at a stop; the broker keeps it.
                if connection.drain_until.is_none() {
                    self.take(topic, payload, retained, packet_id, connection).await?;
                }
            }
            Event::Connected { session_present } => self.connected(session_present, connection)?,
            Event::SubscriptionAnswered(answers) => self.subscription_answered(&answers, connection),
            Event::PingSent => {
                if let Some(pings) = &mut connection.unanswered_pings {
                    *pings += 1;
                    if *pings > 1 {
                        return Err(End::Failed(Failure::Protocol("the subscription is not answered".to_owned())));
                    }
                }
            }
            Event::AckSent => {
                connection.acks_sent += 1;
                if connection.acks_sent == ACKS_REPORTED {
                    connection.acks_sent = 0;
                    self.acknowledger.sent(ACKS_REPORTED);
                }
            }
            Event::DisconnectSent => {
                connection.said_good_bye = true;
                connection.drain_until = Some(Instant::now() + GOOD_BYE);
            }
            Event::PublishSent { .. } | Event::PublishAnswered { .. } | Event::Other => {}
        }
        Ok(())
    }

    fn connected(&mut self, session_present: bool, connection: &mut Connection<'_>) -> Result<(), End> {
        connection.connected_at = Some(Instant::now());
        self.earlier.extend(self.acknowledger.take_durable());
        let connections = self.metrics.connections.with_label_values(&["source"]);
        connections.inc();
        if connections.get() > 1 {
            self.metrics.reconnects.with_label_values(&["source"]).inc();
        }
        self.errors.connected();
        if !session_present {
            self.is_subscribed = false;
        }
        if self.is_subscribed {
            self.health.up("subscribed");
            return Ok(());
        }
        self.health.down("waiting for the broker to confirm the subscription");
        self.subscribe(connection)
    }

    fn subscribe(&self, connection: &mut Connection<'_>) -> Result<(), End> {
        connection.resubscribe_at = None;
        connection.unanswered_pings = Some(0);
        connection.client.subscribe(&self.filters).map_err(|_| {
            let filters = self.filters.join("`, `");
            End::Failed(Failure::Protocol(format!("one of the filters `{filters}` cannot be subscribed to")))
        })
    }

    fn subscription_answered(&mut self, answers: &[Option<String>], connection: &mut Connection<'_>) {
        connection.unanswered_pings = None;
        let mut refused: Vec<String> = self
            .filters
            .iter()
            .zip(answers)
            .filter_map(|(filter, refusal)| refusal.as_ref().map(|refusal| format!("`{filter}` ({refusal})")))
            .collect();
        if answers.len() != self.filters.len() {
            refused.push(format!("{} answers to {} filters", answers.len(), self.filters.len()));
        }
        self.is_subscribed = refused.is_empty();
        if self.is_subscribed {
            info!(filters = ?self.filters, "subscribed");
            self.health.up("subscribed");
            return;
        }
        self.metrics.subscriptions_refused.inc_by(refused.len() as u64);
        let reason = format!("the broker refused the subscription to {}", refused.join(", "));
        // What it granted goes on meanwhile.
        self.errors.refused(&reason);
        self.health.down(reason);
        connection.resubscribe_at = Some(Instant::now() + connection.resubscribe_back_off.next_delay());
    }

    /// Hands a message to the log, or acknowledges it at once where the log has it.
    async fn take(
        &mut self,
        topic: Bytes,
        payload: Bytes,
        retained: bool,
        packet_id: Option<u16>,
        connection: &mut Connection<'_>,
    ) -> Result<(), End> {
        if topic.is_empty() {
            return Err(End::Failed(Failure::Protocol("a message without a topic".to_owned())));
        }
        let fingerprint = fingerprint(&topic, &payload);
        if let Some(packet_id) = packet_id
            && !self.earlier.is_empty()
            && self.earlier.contains(&fingerprint)
            && (self.has_identity)(&topic, &payload)
        {
            self.earlier.strike_out(&fingerprint);
            self.metrics.messages_redelivered.inc();
            self.acknowledger.redelivered(connection.submitted, packet_id, fingerprint);
            return Ok(());
        }
        let message = if payload.len() > PAYLOAD_BYTES_MAX {
            self.metrics.messages_oversize.inc();
            warn!(topic = %String::from_utf8_lossy(&topic), length = payload.len(), "payload over the limit: only its beginning is kept");
            oversize_message(topic, &payload, retained)
        } else {
            IncomingMessage { topic, payload, retained, oversize: None }
        };
        let token = AckToken { fingerprint, sequence: connection.submitted + 1, epoch: connection.epoch, packet_id };
        let submitted = match self.log.submit(&message, token) {
            Err(SubmitError::Full) if self.has_room_soon(connection.stop).await => self.log.submit(&message, token),
            submitted => submitted,
        };
        match submitted {
            Ok(()) => {
                connection.submitted += 1;
                crash_point("source-submitted");
                Ok(())
            }
            Err(SubmitError::Full) => {
                self.metrics.messages_not_taken.inc();
                Err(End::Failed(Failure::LogFull))
            }
            Err(SubmitError::Stopped) => Err(End::LogStopped),
        }
    }

    /// Waits a moment for room in the log, reading nothing, and returns whether there is some.
    async fn has_room_soon(&self, stop: &CancellationToken) -> bool {
        let deadline = Instant::now() + ROOM_PATIENCE;
        while !self.log.has_room() {
            if Instant::now() >= deadline || sleep_unless(stop, ROOM_LOOK).await.is_stopped() {
                return false;
            }
        }
        true
    }

    async fn wait_for_room(&self, stop: &CancellationToken) -> Pause {
        let mut back_off = BackOff::new(ROOM_FIRST, ROOM_LONGEST);
        while !self.log.has_room() {
            if sleep_unless(stop, back_off.next_delay()).await.is_stopped() {
                return Pause::Stopped;
            }
        }
        Pause::Over
    }
}

/// Keeps the beginning and the hash of a payload over the limit, and not its memory.
///
/// Hashing holds up the connection for at most a second, at the largest packet that MQTT knows.
fn oversize_message(topic: Bytes, payload: &Bytes, retained: bool) -> IncomingMessage {
    IncomingMessage {
        topic: Bytes::copy_from_slice(&topic),
        payload: Bytes::copy_from_slice(&payload[..OVERSIZE_KEPT_BYTES]),
        retained,
        oversize: Some(Oversize { length: payload.len() as u64, sha256: Sha256::digest(payload).into() }),
    }
}

/// How a wait ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Pause {
    Over,
    Stopped,
}

impl Pause {
    pub(crate) fn is_stopped(self) -> bool {
        self == Self::Stopped
    }
}

/// Waits, but not beyond a stop.
pub(crate) async fn sleep_unless(stop: &CancellationToken, delay: Duration) -> Pause {
    tokio::select! {
        () = stop.cancelled() => Pause::Stopped,
        () = tokio::time::sleep(delay) => Pause::Over,
    }
}

/// Waits until an instant, or for ever where there is none.
async fn sleep_until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}

/// Tells each failure once, and how often it came when something else happens.
#[derive(Debug)]
pub(crate) struct ErrorLog {
    client: &'static str,
    url: String,
    last: Option<(String, u64)>,
}

impl ErrorLog {
    pub(crate) fn new(client: &'static str, url: &str) -> Self {
        Self { client, url: url.to_owned(), last: None }
    }

    pub(crate) fn failed(&mut self, failure: &Failure) {
        let text = failure.to_string();
        if !self.is_news(&text) {
            return;
        }
        match failure {
            Failure::LogFull => error!(client = self.client, url = self.url, error = text, "no message is taken"),
            _ => warn!(client = self.client, url = self.url, error = text, "connection failed, trying again"),
        }
    }

    pub(crate) fn refused(&mut self, reason: &str) {
        if self.is_news(reason) {
            error!(client = self.client, url = self.url, error = reason, "not subscribed to everything, trying again");
        }
    }

    pub(crate) fn connected(&mut self) {
        let failures = self.last.as_ref().map_or(0, |(_, count)| *count);
        info!(client = self.client, url = self.url, failures, "connected");
    }

    /// Has the next failure told even if it is the same as the last.
    pub(crate) fn recovered(&mut self) {
        self.last = None;
    }

    fn is_news(&mut self, text: &str) -> bool {
        match &mut self.last {
            Some((last, count)) if last == text => {
                *count += 1;
                false
            }
            last => {
                if let Some((error, times)) = last.replace((text.to_owned(), 1)).filter(|(_, count)| *count > 1) {
                    info!(client = self.client, url = self.url, error, times, "that failure came repeatedly");
                }
                true
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_is_news_when_it_changes_or_comes_after_a_recovery() {
        let mut errors = ErrorLog::new("source", "mqtt://localhost");
        assert!(errors.is_news("timeout"));
        assert!(!errors.is_news("timeout"));
        assert!(errors.is_news("refused"));
        assert!(errors.is_news("timeout"));
        assert_eq!(errors.last, Some(("timeout".to_owned(), 1)));
        errors.recovered();
        assert!(errors.is_news("timeout"));
    }
}
