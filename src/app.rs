//! Builds every part from the configuration, in one straight function, and joins them.
//!
//! The order of starting is the order in which a broker loses patience: the journal opens, the source subscribes, and
//! everything behind the journal (which may have much to catch up with) comes to life beside it. The order of ending is
//! the way of a message: intake, journal, judging, and then whoever tells of it.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use anyhow::Context;
use frostline_core::codec::find_route;
use frostline_core::codec::topic::STATUS_FILTER;
use frostline_core::model::Timestamp;
use tokio::sync::oneshot;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::clock::Clock;
use crate::compliance::{ComplianceMetrics, Keeper, Sources};
use crate::config::{ClockSource, Judgement, Loaded};
use crate::crash_point::crash_point;
use crate::health::Health;
use crate::history::{self, ClosedDays, HistoryReader};
use crate::ingest::{
    AckToken, Acknowledger, IncomingMessage, IngestMetrics, MessageLog, PublishError, Publisher, PublisherTask,
    REMEMBERED_MAX, Source, SubmitError,
};
use crate::journal::{
    self, Batch, Entry, Journal, JournalError, JournalHandle, JournalMetrics, JournalOptions, JournalReaders, Message,
    Recovery,
};
use crate::ledger::{Ledger, SinkProgress};
use crate::notify::mqtt::{Broker, NotifyMetrics, Unpublished};
use crate::pipeline::{self, AcceptedFeed, LedgerSinkStore, PipelineOptions, PipelineShared};
use crate::series::influxdb2;
use crate::web::{self, WebOptions};

/// How often the ticker looks whether the rules want to know the time.
const TICK_RESOLUTION: Duration = Duration::from_millis(50);
/// The longest time without a tick, in milliseconds.
const TICK_INTERVAL_MS: i64 = 60_000;
/// How long each stage of stopping may take before it is left behind; the journal makes that safe.
const STOP_PATIENCE: Duration = Duration::from_secs(20);
/// How many points go to the series database in one request.
const POINTS_MAX: usize = 10_000;
/// How many events a slow listener of the stream may fall behind.
const STREAM_BACKLOG: usize = 4_096;

/// The journal's token: whom to acknowledge, if anyone.
type Token = Option<AckToken>;

/// The running daemon.
pub struct App {
    /// Where the HTTP interface listens.
    pub http_address: SocketAddr,
    /// What the parts share.
    pub shared: PipelineShared,
    /// What works and what does not.
    pub health: Health,
    stages: Stages,
    journal: JournalHandle<Token>,
    tasks: JoinSet<(&'static str, anyhow::Result<()>)>,
    ended: Vec<&'static str>,
}

/// What ends in which order.
#[derive(Clone, Default)]
struct Stages {
    intake: CancellationToken,
    judging: CancellationToken,
    telling: CancellationToken,
}

/// Starts every part of the daemon.
///
/// # Errors
/// Where the data directory, the HTTP address or the broker's settings cannot be used.
pub async fn start(loaded: Loaded, clock: Arc<dyn Clock>) -> anyhow::Result<App> {
    let Loaded { settings, bundle, judgement } = loaded;
    let judgement = Arc::new(judgement);
    let stages = Stages::default();
    let health = Health::default();
    let registry = prometheus::Registry::new();
    let mut tasks = JoinSet::new();
    std::fs::create_dir_all(&settings.data_dir)
        .with_context(|| format!("cannot create the data directory {}", settings.data_dir.display()))?;

    let listener = web::bind(settings.http_listen).await?;
    let http_address = listener.local_addr()?;

    let mut journal_options = JournalOptions::new(
        settings.data_dir.join("journal"),
        Arc::clone(&clock),
        JournalMetrics::register(&registry)?,
        health.part("journal"),
    );
    journal_options.max_size_bytes = settings.journal_max_size_bytes;
    journal_options.retention_ms = settings.journal_retention_ms;
    let (mut journal, recovery) = Journal::<Token>::open(journal_options).context("the journal cannot be opened")?;
    tracing::info!(
        segments = recovery.segments,
        next_offset = recovery.next_offset,
        torn_bytes_cut = recovery.torn_bytes_cut,
        duration_ms = recovery.duration.as_millis() as u64,
        "journal open"
    );
    let (handle, readers) = (journal.handle(), journal.readers());
    // Both are made here so that whoever reads finds them; the pipeline opens its own.
    let ledger = Ledger::open(&settings.data_dir)?;
    let history_file = settings.data_dir.join(pipeline::HISTORY_FILE);
    history::make(&history_file)?;
    let judged = HistoryReader::open(&history_file)?.cursor()?.max(recovery.first_offset);
    let pipeline_cursor = journal.register("pipeline", judged);
    let sink_cursor = match &settings.influxdb2 {
        Some(_) => {
            Some(journal.register(influxdb2::SINK, SinkProgress::open(&settings.data_dir)?.sink(influxdb2::SINK)?.0))
        }
        None => None,
    };
    drop(ledger);

    let ingest_metrics = IngestMetrics::register(&registry)?;
    let acknowledger = Acknowledger::new(ingest_metrics.clone());
    remember_durable(&readers, &recovery, &acknowledger);
    spawn_thread(&mut tasks, "journal", {
        let acknowledger = acknowledger.clone();
        let mut acknowledgements = Vec::new();
        move || {
            let run = journal.run(|tokens| {
                acknowledgements.extend(tokens.drain(..).flatten());
                acknowledger.durable(&mut acknowledgements);
            });
            run.map_err(Into::into)
        }
    });

    // The first entry of every run: what follows is judged by it.
    let content = bundle.to_text();
    let configuration = Entry::Configuration { hash: &bundle.hash(), content: content.as_bytes() };
    handle.submit(configuration, None).context("the configuration cannot be journaled")?;

    let mut filters: Vec<String> = judgement.routes.iter().map(|route| route.filter.to_string()).collect();
    filters.push(STATUS_FILTER.to_owned());
    let source = Source::new(
        &settings.mqtt,
        filters,
        JournalLog(handle.clone()),
        acknowledger,
        has_identity(Arc::clone(&judgement)),
        ingest_metrics.clone(),
        health.part("broker"),
    )?;
    let stop = stages.intake.clone();
    tasks.spawn(async move { ("source", source.run(stop).await.map_err(Into::into)) });

    let shared = PipelineShared::new(STREAM_BACKLOG);
    registry.register(Box::new(shared.accounting.clone()))?;
    let closed_days = ClosedDays::default();
    let sources = Sources {
        data_dir: settings.data_dir.clone(),
        live: shared.live.clone(),
        judgement: Arc::clone(&judgement),
        history_retention_ms: settings.history_retention_ms,
    };
    let keeper = Keeper::open(sources, closed_days.clone(), ComplianceMetrics::register(&registry)?);
    let stop = stages.telling.clone();
    tasks.spawn(async move {
        keeper.run(stop).await;
        ("compliance", Ok(()))
    });
    let options = PipelineOptions {
        data_dir: settings.data_dir.clone(),
        history_retention_ms: settings.history_retention_ms,
        dead_letters_max_size_bytes: settings.dead_letters_max_size_bytes,
        snapshot_every_bytes: settings.journal_max_size_bytes / 8,
        exercise: judgement.clock == ClockSource::Readings,
        closed_days,
        history_metrics: history::HistoryMetrics::register(&registry)?,
        clock: Arc::clone(&clock),
    };
    spawn_thread(&mut tasks, "pipeline", {
        let (shared, readers, stop) = (shared.clone(), readers.clone(), stages.judging.clone());
        let part = health.part("pipeline");
        move || pipeline::run(&options, &shared, &readers, &pipeline_cursor, &part, &stop).map_err(Into::into)
    });

    let ticks = Ticks {
        handle: handle.clone(),
        clock: Arc::clone(&clock),
        next_deadline_ms: (judgement.clock == ClockSource::System).then(|| Arc::clone(&shared.next_deadline_ms)),
        next_quiet_ms: Arc::clone(&shared.next_quiet_ms),
    };
    let stop = stages.intake.clone();
    tasks.spawn(async move { ("ticks", ticks.run(stop).await) });

    let (publisher, publisher_task): (Publisher, PublisherTask) =
        PublisherTask::new(&settings.mqtt, ingest_metrics, health.part("alerts"))?;
    let stop = stages.telling.clone();
    tasks.spawn(async move {
        publisher_task.run(stop).await;
        ("publisher", Ok(()))
    });
    let outbox = crate::notify::mqtt::run(
        settings.data_dir.clone(),
        AlertBroker(publisher),
        shared.committed.subscribe(),
        NotifyMetrics::register(&registry)?,
        stages.telling.clone(),
    );
    tasks.spawn(async move { ("outbox", outbox.await.map_err(Into::into)) });

    if let (Some(influx), Some(cursor)) = (settings.influxdb2, sink_cursor) {
        let feed = AcceptedFeed::open(&settings.data_dir, readers.clone(), shared.committed.subscribe())?;
        let store = LedgerSinkStore::open(
            &settings.data_dir,
            Arc::clone(&clock),
            shared.committed.subscribe(),
            move |offset| cursor.advance(offset),
        )?;
        let sink = influxdb2::Sink::new(
            influxdb2::Settings {
                url: influx.url,
                org: influx.org,
                bucket: influx.bucket,
                token: influx.token.expose().to_owned(),
                confirm_after: Duration::from_millis(influx.confirm_after_ms.unsigned_abs()),
                points_max: POINTS_MAX,
                pace: influxdb2::Pace::default(),
            },
            Box::new(feed),
            Arc::new(store),
            influxdb2::SinkMetrics::register(&registry)?,
            health.part("series"),
        )?;
        let stop = stages.telling.clone();
        tasks.spawn(async move { ("series", sink.run(stop).await.map_err(Into::into)) });
    }

    let redrive_data_dir = settings.data_dir.clone();
    let web = web::run(
        listener,
        WebOptions {
            data_dir: settings.data_dir.clone(),
            shared: shared.clone(),
            judgement,
            history_retention_ms: settings.history_retention_ms,
            health: health.clone(),
            metrics: registry,
            redrive: redrive(handle.clone(), redrive_data_dir, clock),
        },
        stages.telling.clone(),
    );
    tasks.spawn(async move { ("web", web.await.map_err(Into::into)) });

    tracing::info!(address = %http_address, "frostline is running");
    Ok(App { http_address, shared, health, stages, tasks, journal: handle, ended: Vec::new() })
}

impl App {
    /// Waits until `stop` is cancelled, then ends every part in order; a part that ends before that ends the rest.
    ///
    /// # Errors
    /// Why a part ended that should not have.
    pub async fn run_until(mut self, stop: CancellationToken) -> anyhow::Result<()> {
        let died = tokio::select! {
            () = stop.cancelled() => None,
            ended = self.tasks.join_next() => Some(match ended {
                Some(Ok((name, result))) => {
                    self.ended.push(name);
                    match result {
                        Ok(()) => anyhow::anyhow!("the {name} ended without being asked to"),
                        Err(error) => error.context(format!("the {name} cannot go on")),
                    }
                }
                Some(Err(error)) => anyhow::anyhow!(error).context("a part of the daemon panicked"),
                None => anyhow::anyhow!("nothing is running"),
            }),
        };
        if let Some(error) = &died {
            tracing::error!(error = format!("{error:#}"), "stopping, because a part of the daemon has ended");
        }
        self.stages.intake.cancel();
        self.wait_for(&["source", "ticks"]).await;
        self.journal.stop();
        self.wait_for(&["journal"]).await;
        self.stages.judging.cancel();
        self.wait_for(&["pipeline"]).await;
        self.stages.telling.cancel();
        self.wait_for(&["series", "outbox", "publisher", "compliance", "web"]).await;
        tracing::info!("stopped");
        match died {
            Some(error) => Err(error),
            None => Ok(()),
        }
    }

    /// Waits for parts to end, for a while; what they did not finish is in the journal.
    async fn wait_for(&mut self, names: &[&'static str]) {
        let patience = tokio::time::sleep(STOP_PATIENCE);
        tokio::pin!(patience);
        while !self.tasks.is_empty() && self.runs_any_of(names) {
            tokio::select! {
                ended = self.tasks.join_next() => match ended {
                    Some(Ok((name, result))) => {
                        self.ended.push(name);
                        if let Err(error) = result {
                            tracing::error!(part = name, error = format!("{error:#}"), "failed while stopping");
                        }
                    }
                    Some(Err(error)) => tracing::error!(%error, "a part of the daemon panicked while stopping"),
                    None => return,
                },
                () = &mut patience => {
                    tracing::warn!(?names, "left behind: they did not end in time; the journal holds what is unfinished");
                    return;
                }
            }
        }
    }

    fn runs_any_of(&self, names: &[&'static str]) -> bool {
        names.iter().any(|name| !self.ended.contains(name))
    }
}

/// Tells the acknowledger what the journal holds: a crash may have taken the acknowledgements along, and a message that
/// says no time but has a sequence number would be stored twice when the broker sends it again.
fn remember_durable(journal: &JournalReaders, recovery: &Recovery, acknowledger: &Acknowledger) {
    let remember = || -> Result<(), JournalError> {
        let from = recovery.next_offset.saturating_sub(REMEMBERED_MAX as u64).max(recovery.first_offset);
        let mut reader = journal.open(from)?;
        let mut batch = Batch::new();
        while reader.read(&mut batch, 1 << 20)? > 0 {
            for (_, _, entry) in batch.iter() {
                // Of an oversize message not all is there, and a redriven one did not come from the broker.
                if let Entry::Message(message @ Message { oversize: None, original_received_at: None, .. }) = entry {
                    acknowledger.remember(message.topic, message.payload);
                }
            }
        }
        Ok(())
    };
    if let Err(error) = remember() {
        // Whoever needs these entries will say more; without them a redelivery may count as a new message.
        tracing::warn!(error = &error as &dyn std::error::Error, "the end of the journal cannot be read");
    }
}

/// The journal as the source sees it.
struct JournalLog(JournalHandle<Token>);

impl MessageLog for JournalLog {
    fn submit(&self, message: &IncomingMessage, token: AckToken) -> Result<(), SubmitError> {
        let entry = Entry::Message(Message {
            topic: &message.topic,
            payload: &message.payload,
            retained: message.retained,
            oversize: message
                .oversize
                .as_ref()
                .map(|oversize| journal::Oversize { length: oversize.length, sha256: oversize.sha256 }),
            original_received_at: None,
        });
        match self.0.submit(entry, Some(token)) {
            Ok(_) => Ok(()),
            // The source has cut what is too large for the journal.
            Err(journal::SubmitError::Full | journal::SubmitError::TooLarge { .. }) => Err(SubmitError::Full),
            Err(journal::SubmitError::Stopped) => Err(SubmitError::Stopped),
        }
    }

    fn has_room(&self) -> bool {
        self.0.has_room()
    }
}

/// The publishing client as the outbox sees it.
struct AlertBroker(Publisher);

impl Broker for AlertBroker {
    async fn publish(&self, topic: &str, payload: String) -> Result<(), Unpublished> {
        self.0.publish(topic, payload).await.map_err(|error| match error {
            PublishError::Topic(_) | PublishError::Refused(_) => Unpublished::Never(error.to_string()),
            PublishError::Lost(_) | PublishError::Stopped => Unpublished::Later,
        })
    }
}

/// Puts the clock into the journal, where the rules have asked for it.
struct Ticks {
    handle: JournalHandle<Token>,
    clock: Arc<dyn Clock>,
    /// When the rules next want to know the time; none where readings bring it.
    next_deadline_ms: Option<Arc<AtomicI64>>,
    /// When late readings are next to be judged.
    next_quiet_ms: Arc<AtomicI64>,
}

impl Ticks {
    async fn run(self, stop: CancellationToken) -> anyhow::Result<()> {
        let mut last_tick = Timestamp::MIN;
        let mut interval = tokio::time::interval(TICK_RESOLUTION);
        interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = stop.cancelled() => return Ok(()),
                _ = interval.tick() => {}
            }
            let now = self.clock.now();
            let deadline_ms = self.next_deadline_ms.as_ref().map(|deadline| deadline.load(Ordering::Acquire));
            let quiet_ms = self.next_quiet_ms.load(Ordering::Acquire);
            let next_ms = deadline_ms.map_or(quiet_ms, |deadline_ms| deadline_ms.min(quiet_ms));
            let is_asked_for = next_ms <= now.as_millis()
                // One tick is enough until the pipeline has seen it.
                && now.millis_since(last_tick) >= 200;
            if is_asked_for || now.millis_since(last_tick) >= TICK_INTERVAL_MS {
                match self.handle.submit(Entry::Tick, None) {
                    Ok(_) => last_tick = now,
                    // The next look will find room.
                    Err(journal::SubmitError::Full | journal::SubmitError::TooLarge { .. }) => {}
                    Err(journal::SubmitError::Stopped) => anyhow::bail!("the journal has stopped"),
                }
            }
        }
    }
}

/// Runs a part that blocks on a thread of its own.
fn spawn_thread(
    tasks: &mut JoinSet<(&'static str, anyhow::Result<()>)>,
    name: &'static str,
    work: impl FnOnce() -> anyhow::Result<()> + Send + 'static,
) {
    let (done, ended) = oneshot::channel();
    let spawned = std::thread::Builder::new().name(name.to_owned()).spawn(move || {
        // Nobody waits any more where the daemon has left the part behind.
        drop(done.send(work()));
    });
    tasks.spawn(async move {
        let result = match spawned {
            Err(error) => Err(anyhow::anyhow!(error).context("no thread could be started")),
            Ok(_) => ended.await.unwrap_or_else(|_| Err(anyhow::anyhow!("it panicked"))),
        };
        (name, result)
    });
}

/// Says whether a message that comes twice can be told from two messages.
fn has_identity(judgement: Arc<Judgement>) -> crate::ingest::HasIdentity {
    Arc::new(move |topic, payload| {
        let Ok(topic) = std::str::from_utf8(topic) else { return false };
        find_route(&judgement.routes, topic).is_some_and(|route| judgement.routes[route].codec.has_identity(payload))
    })
}

/// Gives a dead letter's message to the journal again, and notes that.
fn redrive(handle: JournalHandle<Token>, data_dir: PathBuf, clock: Arc<dyn Clock>) -> web::Redrive {
    Arc::new(move |message| {
        let entry = Entry::Message(Message {
            topic: &message.topic,
            payload: &message.payload,
            retained: false,
            oversize: None,
            original_received_at: Some(message.received_at),
        });
        let offset = handle.submit(entry, None).map_err(|error| error.to_string())?;
        crash_point("redrive-submitted");
        let noted =
            SinkProgress::open(&data_dir).and_then(|ledger| ledger.mark_redriven(message.journal_offset, clock.now()));
        if let Err(error) = noted {
            // A remark for people only: what counts is that the journal has the message.
            tracing::warn!(error = &error as &dyn std::error::Error, "a redriven message could not be marked so");
        }
        Ok(offset)
    })
}
