//! The sink for InfluxDB 2, and for whatever else takes line protocol over its write route.
//!
//! One task reads the journal in order, prepares the next batch while the one before is on its way, and keeps one
//! request in flight: alert points of one instant depend on their order. A batch that the server will not take is cut
//! in halves until the lines to blame are alone; those are recorded as refused and the rest goes on.
//!
//! **Confirmation.** A database may answer before its data is on disk. What was written is therefore committed only
//! `confirm_after` later, and only if the server has not been started anew in between: where it shows when it was
//! started (`/metrics` of InfluxDB and VictoriaMetrics), the sink asks before every commit and after every failed
//! request, and goes back to the committed cursor when the answer has changed. A lost connection sends it back in any
//! case; a failure that was answered, or a reply that came too late, only where the server does not show its start, for
//! otherwise a database that is merely slow would be sent the same again for ever. Points are safe to write twice.
//!
//! **After an outage** the sink goes on in the order of the journal, so the newest readings come last. They are not
//! starved: batches grow to their full size, and the sink catches up many times faster than readings arrive.

mod metrics;
mod progress;
mod server;

use std::hash::{BuildHasher, Hasher};
use std::io::Write;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use flate2::Compression;
use flate2::write::GzEncoder;
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::line_protocol::LineBatch;
use super::{Feed, RefusedPoint, SinkCursor, SinkStore, StoreError};
use crate::crash_point::crash_point;
use crate::health::Part;
use crate::ledger::LedgerError;
pub use metrics::SinkMetrics;
use progress::Progress;
use server::{Reply, Run, Server};

/// The name under which this sink keeps its cursor and counts.
pub const SINK: &str = "influxdb2";

/// Where to write, and how patiently.
#[derive(Clone)]
pub struct Settings {
    /// `http://host:8086`, without a path.
    pub url: String,
    /// The organization; servers without organizations ignore it.
    pub org: String,
    /// The bucket; created where it is missing and the token allows it.
    pub bucket: String,
    /// The API token; empty for servers that ask for none.
    pub token: String,
    /// How long what was written may still be lost by a crash of the database.
    pub confirm_after: Duration,
    /// The most points in one request.
    pub points_max: usize,
    /// The waiting times.
    pub pace: Pace,
}

/// The waiting times of a sink.
#[derive(Debug, Clone, Copy)]
pub struct Pace {
    /// The longest wait after the first failure; it doubles with every further one.
    pub backoff_first: Duration,
    /// The longest wait between two attempts.
    pub backoff_max: Duration,
    /// The wait after the server has turned us away and a person must mend something.
    pub denied_retry: Duration,
    /// How often the server is asked whether it was started anew, while anything is unconfirmed.
    pub look_every: Duration,
    /// The wait for more readings after a request that was not full.
    pub linger: Duration,
    /// How long stopping may take to write what is there.
    pub flush_max: Duration,
}

impl Default for Pace {
    fn default() -> Self {
        Self {
            backoff_first: Duration::from_millis(250),
            backoff_max: Duration::from_secs(5),
            denied_retry: Duration::from_secs(30),
            look_every: Duration::from_secs(5),
            linger: Duration::from_millis(50),
            flush_max: Duration::from_secs(3),
        }
    }
}

impl Settings {
    fn base_url(&self) -> Result<reqwest::Url, SinkError> {
        let url = reqwest::Url::parse(&self.url).map_err(|error| SinkError::url(&self.url, &error))?;
        if !matches!(url.scheme(), "http" | "https") {
            return Err(SinkError::url(&self.url, &"expected http:// or https://"));
        }
        if url.path() != "/" || url.query().is_some() {
            return Err(SinkError::url(&self.url, &"a path is not possible, the server's own routes are used"));
        }
        Ok(url)
    }
}

/// Why a sink cannot be built, or cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum SinkError {
    /// The configured url cannot be used.
    #[error("`{url}` is not the url of a series database: {reason}")]
    Url {
        /// As configured.
        url: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The client of the database could not be built.
    #[error("cannot build the client of the series database")]
    Client(#[source] ::influxdb2::BuildError),
    /// The HTTP client could not be built.
    #[error("cannot build the http client of the series database")]
    Http(#[source] reqwest::Error),
    /// The journal could not be read, or the place in it not be kept.
    #[error("the sink cannot read the journal or keep its place in it")]
    Store(#[source] StoreError),
    /// The reading side panicked.
    #[error("the reader of the sink ended unexpectedly")]
    Reader(#[source] tokio::task::JoinError),
}

impl SinkError {
    fn url(url: &str, reason: &dyn std::fmt::Display) -> Self {
        Self::Url { url: url.to_owned(), reason: reason.to_string() }
    }
}

/// Writes accepted readings and told alerts to one series database.
pub struct Sink {
    settings: Settings,
    server: Server,
    store: Arc<dyn SinkStore>,
    metrics: SinkMetrics,
    health: Part,
    progress: Progress,
    /// When the server says it was started; `None` while it has not told.
    started_at: Option<String>,
    looked_at: Option<Instant>,
    /// Whether the server did not answer when it was last looked for.
    is_away: bool,
    /// Failures since the last success.
    failures: u32,
    /// The journal, while nobody reads it.
    feed: Option<Box<dyn Feed>>,
    /// The one who reads it.
    reader: Option<Reader>,
}

/// Reads one batch, and gives the journal back.
type Reader = JoinHandle<(Box<dyn Feed>, Result<Prepared, StoreError>)>;

/// A batch ready to be sent, and where the sink stands once it is taken.
struct Prepared {
    lines: LineBatch,
    compressed: Vec<u8>,
    next: SinkCursor,
}

/// What the server's answer to "when were you started" means.
enum Look {
    SameRun,
    OtherRun,
    Unknown,
    Late(String),
    Unreachable(String),
}

/// How the delivery of a batch ended.
#[derive(Debug, PartialEq, Eq)]
enum Delivery {
    Taken,
    /// What was written before may be lost: send it again first.
    Rewind,
}

impl Sink {
    /// Builds a sink; nothing is connected yet.
    pub fn new(
        settings: Settings,
        feed: Box<dyn Feed>,
        store: Arc<dyn SinkStore>,
        metrics: SinkMetrics,
        health: Part,
    ) -> Result<Self, SinkError> {
        let server = Server::new(&settings)?;
        let progress = Progress::new(SinkCursor::default());
        Ok(Self {
            settings,
            server,
            store,
            metrics,
            health,
            progress,
            started_at: None,
            looked_at: None,
            is_away: false,
            failures: 0,
            feed: Some(feed),
            reader: None,
        })
    }

    /// Writes until `stop`, then what is there for a short while longer; fails only where the journal or the store do.
    pub async fn run(mut self, stop: CancellationToken) -> Result<(), SinkError> {
        let store = Arc::clone(&self.store);
        self.progress = Progress::new(blocking(move || store.cursor(SINK)).await?);
        // Being stopped at any point is harmless: what is not noted as written will be written again.
        tokio::select! {
            () = stop.cancelled() => {}
            result = self.work(false) => return result,
        }
        match tokio::time::timeout(self.settings.pace.flush_max, self.work(true)).await {
            Ok(result) => result,
            Err(_) => {
                tracing::info!(sink = SINK, "stopping before everything is written, the rest follows after a restart");
                Ok(())
            }
        }
    }

    /// Reads and writes, for ever or until everything is written.
    async fn work(&mut self, until_idle: bool) -> Result<(), SinkError> {
        self.stop_reading().await?;
        self.confirm().await?;
        loop {
            let look_at =
                self.looked_at.map_or_else(Instant::now, |looked_at| looked_at + self.settings.pace.look_every);
            if (self.progress.has_unconfirmed() || self.is_away) && Instant::now() >= look_at {
                self.confirm().await?;
            }
            self.start_reading(!until_idle);
            let prepared = self.read().await?;
            let is_new = prepared.next != self.progress.written();
            if !is_new && until_idle {
                return Ok(());
            }
            let is_full = prepared.lines.len() * 2 > self.settings.points_max;
            if is_full {
                self.start_reading_at(prepared.next, false);
            }
            if is_new {
                match self.deliver(&prepared).await? {
                    Delivery::Taken => self.progress.advance(prepared.next, Instant::now()),
                    Delivery::Rewind => self.rewind().await?,
                }
            }
            self.report();
            if !is_full && !until_idle {
                tokio::time::sleep(self.settings.pace.linger).await;
            }
        }
    }

    /// Sends a batch until every point of it is taken or recorded as refused.
    async fn deliver(&mut self, prepared: &Prepared) -> Result<Delivery, SinkError> {
        let lines = &prepared.lines;
        // Parts still to be sent, the next one last.
        let mut parts = Vec::from_iter((!lines.is_empty()).then_some(0..lines.len()));
        while let Some(part) = parts.last().cloned() {
            let compressed = match &part {
                whole if whole.len() == lines.len() => prepared.compressed.clone(),
                part => compress(lines.lines(part.clone())),
            };
            crash_point("sink-before-request");
            let reply = self.server.write(compressed).await;
            self.metrics.request(SINK, reply.as_label());
            match reply {
                Reply::Done => {
                    crash_point("sink-taken");
                    let outcome = if self.progress.is_resending() { "resent" } else { "written" };
                    self.metrics.points(SINK, outcome, part.len());
                    parts.pop();
                    self.succeeded();
                }
                Reply::Refused { reason, dropped } if part.len() == 1 || dropped == Some(part.len()) => {
                    self.record_refused(lines, part, reason).await?;
                    parts.pop();
                    self.succeeded();
                }
                Reply::TooLarge(reason) if part.len() == 1 => {
                    self.record_refused(lines, part, reason).await?;
                    parts.pop();
                    self.succeeded();
                }
                Reply::Refused { .. } | Reply::TooLarge(_) => {
                    parts.pop();
                    let middle = part.start + part.len() / 2;
                    parts.push(middle..part.end);
                    parts.push(part.start..middle);
                }
                Reply::Denied(reason) => {
                    if reason.starts_with("404") && self.server.ensure_bucket().await {
                        continue;
                    }
                    tracing::error!(sink = SINK, reason, "the series database turns us away, the data is kept");
                    self.health.down(reason);
                    self.report();
                    tokio::time::sleep(self.settings.pace.denied_retry).await;
                }
                Reply::Busy(reason) => self.back_off(&reason).await,
                Reply::Failed { reason, is_lost } => {
                    self.back_off(&reason).await;
                    if self.is_sent_back(is_lost).await {
                        return Ok(Delivery::Rewind);
                    }
                }
            }
        }
        Ok(Delivery::Taken)
    }

    /// Waits until the server answers again, and returns whether it may have lost what it took before.
    ///
    /// A lost connection is proof enough: a server that dies within a second of its start shows the same start again.
    async fn is_sent_back(&mut self, mut is_lost: bool) -> bool {
        loop {
            match self.look().await {
                Look::SameRun => return is_lost,
                Look::OtherRun | Look::Unknown => return true,
                Look::Late(reason) => self.back_off(&reason).await,
                Look::Unreachable(reason) => {
                    is_lost = true;
                    self.back_off(&reason).await;
                }
            }
        }
    }

    /// Commits what is old enough, provided that the server is still the one that took it.
    async fn confirm(&mut self) -> Result<(), SinkError> {
        match self.look().await {
            Look::SameRun | Look::Unknown => {}
            Look::OtherRun | Look::Unreachable(_) => return self.rewind().await,
            // It will be asked again, and nothing is committed until it answers.
            Look::Late(_) => return Ok(()),
        }
        if let Some(cursor) = self.progress.confirmable(Instant::now(), self.settings.confirm_after) {
            let store = Arc::clone(&self.store);
            once_it_can(move || store.commit(SINK, cursor)).await?;
            self.progress.confirm(cursor);
        }
        Ok(())
    }

    async fn look(&mut self) -> Look {
        let run = self.server.run().await;
        let is_first = self.looked_at.is_none();
        self.looked_at = Some(Instant::now());
        let started_at = match run {
            Run::StartedAt(started_at) => Some(started_at),
            Run::Unknown => None,
            Run::Late(reason) => return Look::Late(reason),
            Run::Unreachable(reason) => {
                self.is_away = true;
                self.health.up(format!("buffering: {reason}"));
                return Look::Unreachable(reason);
            }
        };
        if is_first || std::mem::take(&mut self.is_away) {
            self.health.up("connected");
        }
        if started_at != self.started_at {
            self.started_at = started_at;
            return Look::OtherRun;
        }
        if started_at.is_some() { Look::SameRun } else { Look::Unknown }
    }

    async fn rewind(&mut self) -> Result<(), SinkError> {
        if self.progress.has_unconfirmed() {
            let (from, to) = (self.progress.committed().readings, self.progress.written().readings);
            tracing::warn!(sink = SINK, from, to, "the series database may have lost what it took, sending it again");
            self.metrics.rewind(SINK);
        }
        self.progress.rewind();
        self.stop_reading().await
    }

    async fn record_refused(&mut self, lines: &LineBatch, part: Range<usize>, reason: String) -> Result<(), SinkError> {
        tracing::warn!(sink = SINK, points = part.len(), reason, "the series database refused points");
        let points: Vec<_> = part
            .map(|position| RefusedPoint {
                line: String::from_utf8_lossy(lines.lines(position..position + 1)).trim_end().to_owned(),
                reason: reason.clone(),
            })
            .collect();
        self.metrics.points(SINK, "refused", points.len());
        let store = Arc::clone(&self.store);
        once_it_can(move || store.record_refused(SINK, &points)).await
    }

    fn report(&self) {
        self.metrics.progress(SINK, self.store.journal_end(), self.progress.written(), self.progress.committed());
    }

    fn succeeded(&mut self) {
        self.failures = 0;
        self.health.up("writing");
    }

    /// Waits between half and all of a time that doubles with every failure in a row.
    async fn back_off(&mut self, reason: &str) {
        let pace = self.settings.pace;
        let longest = pace.backoff_first.saturating_mul(1 << self.failures.min(16)).min(pace.backoff_max);
        let wait = longest.mul_f64(0.5 + random_share() / 2.0);
        if self.failures == 0 {
            tracing::warn!(sink = SINK, reason, "the series database does not take data, buffering in the journal");
        }
        self.failures = self.failures.saturating_add(1);
        self.health.up(format!("buffering: {reason}"));
        self.report();
        tokio::time::sleep(wait).await;
    }

    /// Starts to read what follows the written cursor, unless somebody reads already.
    fn start_reading(&mut self, wait: bool) {
        self.start_reading_at(self.progress.written(), wait);
    }

    fn start_reading_at(&mut self, from: SinkCursor, wait: bool) {
        let Some(mut feed) = self.feed.take() else { return };
        let store = Arc::clone(&self.store);
        let (points_max, timeout) = (self.settings.points_max, self.settings.pace.look_every);
        self.reader = Some(tokio::task::spawn_blocking(move || {
            if wait {
                feed.wait(from.readings, timeout.min(FEED_WAIT_MAX));
            }
            let prepared = prepare(&mut *feed, &*store, from, points_max);
            (feed, prepared)
        }));
    }

    /// Returns what the reader has read.
    async fn read(&mut self) -> Result<Prepared, SinkError> {
        let reader = self.reader.as_mut().expect("reading has been started");
        let (feed, prepared) = reader.await.map_err(SinkError::Reader)?;
        self.reader = None;
        self.feed = Some(feed);
        prepared.map_err(SinkError::Store)
    }

    /// Waits for the reader, if there is one, and forgets what it has read.
    async fn stop_reading(&mut self) -> Result<(), SinkError> {
        if self.reader.is_some() {
            self.read().await?;
        }
        Ok(())
    }
}

/// Connects to the configured server once and says what answers, or why nothing useful does; it writes nothing.
pub async fn examine(settings: &Settings) -> Result<String, String> {
    Server::new(settings).map_err(|error| error.to_string())?.examine().await
}

/// How long a full disk is left alone before the store is changed again.
const ROOM_RETRY: Duration = Duration::from_secs(1);

/// How long the reader waits for the journal to grow; alerts are looked for as often.
const FEED_WAIT_MAX: Duration = Duration::from_millis(250);

fn prepare(
    feed: &mut dyn Feed,
    store: &dyn SinkStore,
    from: SinkCursor,
    points_max: usize,
) -> Result<Prepared, StoreError> {
    let mut lines = LineBatch::default();
    let readings = feed.read(from.readings, points_max, &mut lines)?.unwrap_or(from.readings);
    let alerts = store.read_alerts(from.alerts, points_max, &mut lines)?;
    let compressed = if lines.is_empty() { Vec::new() } else { compress(lines.as_bytes()) };
    Ok(Prepared { lines, compressed, next: SinkCursor { readings, alerts } })
}

/// Compresses at the fastest level: the higher ones take five times as long and save a quarter more.
fn compress(text: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::with_capacity(text.len() / 8), Compression::fast());
    encoder.write_all(text).and_then(|()| encoder.finish()).expect("writing to memory does not fail")
}

/// Changes the store, again and again while its disk is full or another writer is busy: that is waited for, as everywhere
/// else.
async fn once_it_can(work: impl Fn() -> Result<(), StoreError> + Clone + Send + 'static) -> Result<(), SinkError> {
    loop {
        match blocking(work.clone()).await {
            Err(SinkError::Store(error))
                if error.downcast_ref::<LedgerError>().is_some_and(LedgerError::is_temporary) =>
            {
                tracing::warn!(sink = SINK, error = &*error as &dyn std::error::Error, "waiting for the ledger");
                tokio::time::sleep(ROOM_RETRY).await;
            }
            ended => return ended,
        }
    }
}

/// Runs what blocks where that is allowed.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, StoreError> + Send + 'static,
) -> Result<T, SinkError> {
    tokio::task::spawn_blocking(work).await.map_err(SinkError::Reader)?.map_err(SinkError::Store)
}

/// Returns a number from 0 to 1 that differs from sink to sink, so that they do not all come back at once.
fn random_share() -> f64 {
    let random = std::collections::hash_map::RandomState::new().build_hasher().finish();
    (random >> 11) as f64 / (1_u64 << 53) as f64
}

#[cfg(test)]
mod tests;
