use std::collections::{HashMap, VecDeque};
use std::pin::pin;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use super::back_off::BackOff;
use super::client::{Client, Event, EventLoop, Failure, PUBLISHES_IN_FLIGHT_MAX, STUCK, Session, prepare};
use super::metrics::IngestMetrics;
use super::options::{ConnectionOptions, SetupError};
use super::source::ErrorLog;
use crate::config::MqttConfig;
use crate::health::Part;

const RECONNECT_FIRST: Duration = Duration::from_millis(100);
const RECONNECT_LONGEST: Duration = Duration::from_secs(10);

/// Publishes on a connection of its own, so that nothing outgoing can hold up an acknowledgement; clones share it.
#[derive(Debug, Clone)]
pub struct Publisher {
    jobs: mpsc::Sender<Job>,
}

/// Why a message is not known to have been published; it may have been.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PublishError {
    /// Try again later.
    #[error("no connection to the broker: {0}")]
    Lost(String),
    /// To try again unchanged will not help.
    #[error("the broker refused the message: {0}")]
    Refused(String),
    /// To try again will not help.
    #[error("cannot publish to topic `{0}`")]
    Topic(String),
    /// The daemon is stopping.
    #[error("the publisher has stopped")]
    Stopped,
}

#[derive(Debug)]
struct Job {
    topic: String,
    payload: Bytes,
    answer: Answer,
}

type Answer = oneshot::Sender<Result<(), PublishError>>;

impl Publisher {
    /// Publishes at QoS 1, not retained, and returns once the broker has acknowledged.
    pub async fn publish(&self, topic: &str, payload: impl Into<Bytes>) -> Result<(), PublishError> {
        if topic.is_empty() || topic.len() > usize::from(u16::MAX) || topic.contains(['+', '#', '\0']) {
            return Err(PublishError::Topic(topic.to_owned()));
        }
        let (answer, answered) = oneshot::channel();
        let job = Job { topic: topic.to_owned(), payload: payload.into(), answer };
        self.jobs.send(job).await.map_err(|_| PublishError::Stopped)?;
        answered.await.map_err(|_| PublishError::Stopped)?
    }
}

/// The other end of [`Publisher`]: keeps the connection.
pub struct PublisherTask {
    options: ConnectionOptions,
    jobs: mpsc::Receiver<Job>,
    metrics: IngestMetrics,
    health: Part,
    errors: ErrorLog,
}

/// What was asked for and is not answered yet.
#[derive(Default)]
struct Unanswered {
    /// Handed to the client, which gives packet ids in this order.
    queued: VecDeque<Answer>,
    /// Sent, by packet id.
    sent: HashMap<u16, Answer>,
    /// Pings since the broker last answered anything while something was sent.
    pings: u32,
}

impl PublisherTask {
    /// Prepares the publisher; it needs [`PublisherTask::run`].
    pub fn new(
        config: &MqttConfig,
        metrics: IngestMetrics,
        health: Part,
    ) -> Result<(Publisher, PublisherTask), SetupError> {
        let mut options = ConnectionOptions::new(config)?;
        options.client_id.push_str("-alerts");
        let (sender, jobs) = mpsc::channel(PUBLISHES_IN_FLIGHT_MAX);
        let errors = ErrorLog::new("alerts", &options.url);
        Ok((Publisher { jobs: sender }, PublisherTask { options, jobs, metrics, health, errors }))
    }

    /// Keeps connected and publishes until `stop`, or until every [`Publisher`] is gone.
    pub async fn run(mut self, stop: CancellationToken) {
        let mut back_off = BackOff::new(RECONNECT_FIRST, RECONNECT_LONGEST);
        self.health.down(format!("connecting to {}", self.options.url));
        while !stop.is_cancelled() {
            let (client, event_loop) = prepare(&self.options, Session::Clean);
            let mut unanswered = Unanswered::default();
            let Err(failure) = self.publish_on(client, event_loop, &mut unanswered, &mut back_off, &stop).await else {
                break;
            };
            self.metrics.connection_errors.with_label_values(&["alerts", failure.kind()]).inc();
            self.errors.failed(&failure);
            self.health.down(failure.to_string());
            for answer in unanswered.queued.into_iter().chain(unanswered.sent.into_values()) {
                self.answer(answer, Err(PublishError::Lost(failure.to_string())));
            }
            if !self.refuse_during(back_off.next_delay(), &failure, &stop).await {
                break;
            }
        }
        self.health.down("stopped");
    }

    /// Publishes on one connection; returns without a failure at a stop.
    async fn publish_on(
        &mut self,
        client: Client,
        mut event_loop: EventLoop,
        unanswered: &mut Unanswered,
        back_off: &mut BackOff,
        stop: &CancellationToken,
    ) -> Result<(), Failure> {
        loop {
            let event = {
                // One future until there is an event: to drop it halfway could lose a request.
                let mut poll = pin!(event_loop.poll());
                loop {
                    let has_room = unanswered.queued.len() + unanswered.sent.len() < PUBLISHES_IN_FLIGHT_MAX;
                    tokio::select! {
                        biased;
                        () = stop.cancelled() => return Ok(()),
                        event = &mut poll => break event?,
                        job = self.jobs.recv(), if has_room => {
                            let Some(job) = job else { return Ok(()) };
                            // There is room for more requests than can be in flight, and the topic was checked.
                            client.publish(job.topic, job.payload)
                                .map_err(|_| Failure::Protocol("a message cannot be queued".to_owned()))?;
                            unanswered.queued.push_back(job.answer);
                        }
                        () = tokio::time::sleep(STUCK) => return Err(Failure::Timeout),
                    }
                }
            };
            match event {
                Event::Connected { .. } => {
                    let connections = self.metrics.connections.with_label_values(&["alerts"]);
                    connections.inc();
                    if connections.get() > 1 {
                        self.metrics.reconnects.with_label_values(&["alerts"]).inc();
                    }
                    self.errors.connected();
                    self.health.up("connected");
                }
                Event::PublishSent { packet_id } => {
                    if let Some(answer) = unanswered.queued.pop_front() {
                        unanswered.sent.insert(packet_id, answer);
                    }
                }
                Event::PublishAnswered { packet_id, refused } => {
                    unanswered.pings = 0;
                    back_off.reset();
                    self.errors.recovered();
                    if let Some(answer) = unanswered.sent.remove(&packet_id) {
                        self.answer(answer, refused.map_or(Ok(()), |reason| Err(PublishError::Refused(reason))));
                    }
                }
                Event::PingSent if !unanswered.sent.is_empty() => {
                    unanswered.pings += 1;
                    if unanswered.pings > 1 {
                        return Err(Failure::Timeout);
                    }
                }
                _ => {}
            }
        }
    }

    /// Waits before the next attempt, answering meanwhile that there is no connection; returns false at a stop.
    async fn refuse_during(&mut self, delay: Duration, failure: &Failure, stop: &CancellationToken) -> bool {
        let mut delay = pin!(tokio::time::sleep(delay));
        loop {
            tokio::select! {
                () = stop.cancelled() => return false,
                () = &mut delay => return true,
                job = self.jobs.recv() => {
                    let Some(job) = job else { return false };
                    self.answer(job.answer, Err(PublishError::Lost(failure.to_string())));
                }
            }
        }
    }

    fn answer(&self, answer: Answer, result: Result<(), PublishError>) {
        let outcome = match &result {
            Ok(()) => "acknowledged",
            Err(PublishError::Refused(_)) => "refused",
            Err(_) => "lost",
        };
        self.metrics.publishes.with_label_values(&[outcome]).inc();
        // Who asked may have given up; the outcome is counted all the same.
        drop(answer.send(result));
    }
}
