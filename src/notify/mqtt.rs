//! Alerts on the broker's own topics: the outbox's rows, each until the broker has taken it.

use std::path::PathBuf;
use std::time::Duration;

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::crash_point::crash_point;
use crate::ledger::{Delivery, LedgerError, SinkProgress};

/// How many deliveries are read at once.
const BATCH: usize = 64;
/// How long to wait after a failure before the same delivery is tried again.
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// The way to the broker: the daemon's own client, or a test's stand-in.
pub trait Broker: Send + Sync {
    /// Publishes at QoS 1, not retained, and returns once the broker has acknowledged.
    fn publish(&self, topic: &str, payload: String) -> impl Future<Output = Result<(), Unpublished>> + Send;
}

/// Why an alert is not known to have been published; it may have been.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Unpublished {
    /// Try again later; whoever publishes has logged why.
    #[error("the broker cannot be reached")]
    Later,
    /// To try again will not help.
    #[error("{0}")]
    Never(String),
}

/// Publishes what the outbox holds, in order, until `stop` is cancelled.
///
/// `committed` changes whenever there may be something new.
///
/// # Errors
/// Where the ledger cannot be used.
pub async fn run(
    data_dir: PathBuf,
    broker: impl Broker,
    mut committed: watch::Receiver<u64>,
    metrics: NotifyMetrics,
    stop: CancellationToken,
) -> Result<(), LedgerError> {
    let outbox = std::sync::Arc::new(std::sync::Mutex::new(SinkProgress::open(&data_dir)?));
    loop {
        committed.mark_unchanged();
        let waiting = with(&outbox, |outbox| outbox.outbox_after(0, BATCH)).await?;
        if waiting.is_empty() {
            tokio::select! {
                () = stop.cancelled() => return Ok(()),
                changed = committed.changed() => if changed.is_err() { return Ok(()) },
            }
            continue;
        }
        let mut delivered = None;
        for delivery in &waiting {
            tokio::select! {
                biased;
                () = stop.cancelled() => break,
                () = deliver(&broker, delivery, &metrics) => delivered = Some(delivery.seq),
            }
        }
        let Some(last) = delivered else { return Ok(()) };
        // Once for all of them, since each time has to wait for the pipeline's turn at the ledger.
        while let Err(error) = with(&outbox, move |outbox| outbox.delivered_until(last)).await {
            // A full disk is waited for, as everywhere else.
            if !error.is_temporary() {
                return Err(error);
            }
            tracing::warn!(error = &error as &dyn std::error::Error, "deliveries cannot be noted yet");
            tokio::select! {
                () = stop.cancelled() => return Ok(()),
                () = tokio::time::sleep(RETRY_AFTER) => {}
            }
        }
    }
}

/// Publishes one delivery, however often that takes; gives up only what no broker would ever take.
async fn deliver(broker: &impl Broker, delivery: &Delivery, metrics: &NotifyMetrics) {
    loop {
        match broker.publish(&delivery.destination, delivery.payload.clone()).await {
            Ok(()) => {
                crash_point("outbox-published");
                metrics.deliveries.with_label_values(&["mqtt", "delivered"]).inc();
                return;
            }
            Err(error @ Unpublished::Never(_)) => {
                tracing::error!(
                    error = &error as &dyn std::error::Error,
                    topic = delivery.destination,
                    "alert not published"
                );
                metrics.deliveries.with_label_values(&["mqtt", "given_up"]).inc();
                return;
            }
            Err(Unpublished::Later) => {
                metrics.deliveries.with_label_values(&["mqtt", "retried"]).inc();
                tokio::time::sleep(RETRY_AFTER).await;
            }
        }
    }
}

/// Runs a short piece of SQLite work where blocking is allowed.
async fn with<T: Send + 'static>(
    outbox: &std::sync::Arc<std::sync::Mutex<SinkProgress>>,
    work: impl FnOnce(&SinkProgress) -> Result<T, LedgerError> + Send + 'static,
) -> Result<T, LedgerError> {
    let outbox = std::sync::Arc::clone(outbox);
    let done =
        tokio::task::spawn_blocking(move || work(&outbox.lock().unwrap_or_else(std::sync::PoisonError::into_inner)));
    done.await.expect("the outbox's work does not panic")
}

/// What the channels count.
#[derive(Debug, Clone)]
pub struct NotifyMetrics {
    deliveries: prometheus::IntCounterVec,
}

impl NotifyMetrics {
    /// Registers the counters.
    pub fn register(registry: &prometheus::Registry) -> prometheus::Result<Self> {
        let deliveries = prometheus::IntCounterVec::new(
            prometheus::Opts::new("frostline_deliveries_total", "Alerts given to a channel, by what came of it"),
            &["channel", "outcome"],
        )?;
        registry.register(Box::new(deliveries.clone()))?;
        Ok(Self { deliveries })
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;
    use crate::ledger::Ledger;

    /// A broker that is away at first, and takes nothing for one topic.
    #[derive(Clone, Default)]
    struct Awkward {
        asked: Arc<Mutex<Vec<String>>>,
    }

    impl Broker for Awkward {
        async fn publish(&self, topic: &str, _: String) -> Result<(), Unpublished> {
            let mut asked = self.asked.lock().unwrap();
            asked.push(topic.to_owned());
            match topic {
                _ if asked.len() < 3 => Err(Unpublished::Later),
                "refused" => Err(Unpublished::Never("not authorized".to_owned())),
                _ => Ok(()),
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_waits_is_published_in_order_until_it_is_taken_or_never_will_be() {
        let data_dir = tempfile::tempdir().unwrap();
        drop(Ledger::open(data_dir.path()).unwrap());
        let connection = rusqlite::Connection::open(data_dir.path().join("ledger.db")).unwrap();
        for topic in ["first", "refused", "last"] {
            let insert =
                "INSERT INTO outbox (channel, destination, payload, journal_offset) VALUES ('mqtt', ?1, '{}', 0)";
            connection.execute(insert, [topic]).unwrap();
        }
        let (broker, metrics) = (Awkward::default(), NotifyMetrics::register(&prometheus::Registry::new()).unwrap());
        let (_committed, watched) = watch::channel(0);
        let stop = CancellationToken::new();
        let running = run(data_dir.path().to_owned(), broker.clone(), watched, metrics.clone(), stop.clone());
        let stopping = async {
            let waiting =
                || connection.query_row("SELECT count(*) FROM outbox", [], |row| row.get::<_, i64>(0)).unwrap();
            while waiting() > 0 {
                tokio::time::sleep(RETRY_AFTER / 10).await;
            }
            stop.cancel();
        };
        let (ended, ()) = tokio::time::timeout(Duration::from_secs(600), async { tokio::join!(running, stopping) })
            .await
            .expect("the outbox is emptied");
        ended.unwrap();
        assert_eq!(*broker.asked.lock().unwrap(), ["first", "first", "first", "refused", "last"]);
        let count = |outcome| metrics.deliveries.with_label_values(&["mqtt", outcome]).get();
        assert_eq!([count("delivered"), count("retried"), count("given_up")], [2, 2, 1]);
    }
}
