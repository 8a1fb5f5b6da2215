//! A source under test, a log that does as it is told, and ways to wait.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use frostline::config::{MqttConfig, MqttVersion};
use frostline::health::Health;
use frostline::ingest::{
    AckToken, Acknowledger, HasIdentity, IncomingMessage, IngestMetrics, LogStopped, MessageLog, Source, SubmitError,
};
use prometheus::Registry;
use tokio::runtime::Runtime;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::scripted_broker::PATIENCE;

pub(crate) const FILTERS: [&str; 2] = ["coldchain/v1/+/+/telemetry", "coldchain/v1/+/+/status"];
pub(crate) const TOPIC: &str = "coldchain/v1/op1/u1/telemetry";

pub(crate) const VERSIONS: [MqttVersion; 2] = [MqttVersion::V4, MqttVersion::V5];

pub(crate) fn level(version: MqttVersion) -> u8 {
    match version {
        MqttVersion::V4 => 4,
        MqttVersion::V5 => 5,
    }
}

pub(crate) fn config(url: String, version: MqttVersion) -> MqttConfig {
    MqttConfig {
        url,
        version,
        client_id: "frostline-test".into(),
        username: None,
        password: None,
        ca_file: None,
        client_cert_file: None,
        client_key_file: None,
    }
}

/// A log that keeps everything in memory and calls it durable when the test says so.
#[derive(Clone)]
pub(crate) struct TestLog(Arc<Inner>);

struct Inner {
    taken: Mutex<Vec<(IncomingMessage, AckToken)>>,
    grown: Condvar,
    is_full: AtomicBool,
    is_stopped: AtomicBool,
    /// Set where everything is durable as soon as it is taken.
    at_once: AtomicBool,
    acknowledger: Acknowledger,
}

impl TestLog {
    pub(crate) fn new(acknowledger: Acknowledger) -> Self {
        Self(Arc::new(Inner {
            taken: Mutex::default(),
            grown: Condvar::new(),
            is_full: AtomicBool::new(false),
            is_stopped: AtomicBool::new(false),
            at_once: AtomicBool::new(false),
            acknowledger,
        }))
    }

    pub(crate) fn set_full(&self, is_full: bool) {
        self.0.is_full.store(is_full, Ordering::SeqCst);
    }

    pub(crate) fn set_stopped(&self) {
        self.0.is_stopped.store(true, Ordering::SeqCst);
    }

    pub(crate) fn set_durable_at_once(&self) {
        self.0.at_once.store(true, Ordering::SeqCst);
    }

    /// Waits until `count` messages have been taken in all.
    pub(crate) fn wait_for(&self, count: usize) {
        let taken = self.0.taken.lock().unwrap();
        let (taken, timeout) = self.0.grown.wait_timeout_while(taken, PATIENCE, |taken| taken.len() < count).unwrap();
        assert!(!timeout.timed_out(), "{} of {count} messages were taken", taken.len());
    }

    /// Reports the messages from `from` to before `to` durable.
    pub(crate) fn make_durable(&self, from: usize, to: usize) {
        let mut tokens: Vec<_> = self.0.taken.lock().unwrap()[from..to].iter().map(|(_, token)| *token).collect();
        self.0.acknowledger.durable(&mut tokens);
        assert!(tokens.is_empty());
    }

    pub(crate) fn messages(&self) -> Vec<IncomingMessage> {
        self.0.taken.lock().unwrap().iter().map(|(message, _)| message.clone()).collect()
    }

    pub(crate) fn payloads(&self) -> Vec<String> {
        self.messages().iter().map(|message| String::from_utf8_lossy(&message.payload).into_owned()).collect()
    }
}

impl MessageLog for TestLog {
    fn submit(&self, message: &IncomingMessage, token: AckToken) -> Result<(), SubmitError> {
        if self.0.is_stopped.load(Ordering::SeqCst) {
            return Err(SubmitError::Stopped);
        }
        if !self.has_room() {
            return Err(SubmitError::Full);
        }
        self.0.taken.lock().unwrap().push((message.clone(), token));
        self.0.grown.notify_all();
        if self.0.at_once.load(Ordering::SeqCst) {
            self.0.acknowledger.durable(&mut vec![token]);
        }
        Ok(())
    }

    fn has_room(&self) -> bool {
        !self.0.is_full.load(Ordering::SeqCst)
    }
}

/// A source that runs, with all that the tests look at.
pub(crate) struct Running {
    pub(crate) log: TestLog,
    pub(crate) registry: Registry,
    pub(crate) health: Health,
    pub(crate) metrics: IngestMetrics,
    pub(crate) stop: CancellationToken,
    pub(crate) runtime: Runtime,
    task: Option<JoinHandle<Result<(), LogStopped>>>,
}

impl Running {
    /// Starts a source against `url`; messages that begin with `{` have an identity.
    pub(crate) fn start(url: String, version: MqttVersion) -> Self {
        Self::start_with(&config(url, version))
    }

    pub(crate) fn start_with(config: &MqttConfig) -> Self {
        let registry = Registry::new();
        let metrics = IngestMetrics::register(&registry).unwrap();
        let health = Health::default();
        let acknowledger = Acknowledger::new(metrics.clone());
        let log = TestLog::new(acknowledger.clone());
        let has_identity: HasIdentity = Arc::new(|_, payload| payload.starts_with(b"{"));
        let source = Source::new(
            config,
            FILTERS.map(str::to_owned).to_vec(),
            log.clone(),
            acknowledger,
            has_identity,
            metrics.clone(),
            health.part("broker"),
        )
        .unwrap();
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let stop = CancellationToken::new();
        let task = Some(runtime.spawn(source.run(stop.clone())));
        Self { log, registry, health, metrics, stop, runtime, task }
    }

    /// Waits for the source to end by itself.
    pub(crate) fn join(&mut self) -> Result<(), LogStopped> {
        let task = self.task.take().unwrap();
        self.runtime.block_on(async { tokio::time::timeout(PATIENCE, task).await }).expect("the source ends").unwrap()
    }

    pub(crate) fn broker_health(&self) -> Result<String, String> {
        self.health.parts()["broker"].clone()
    }

    /// Returns the sum of a counter over the labels that are not given.
    pub(crate) fn counter(&self, name: &str, label: Option<(&str, &str)>) -> u64 {
        let families = self.registry.gather();
        let samples = families.iter().filter(|family| family.name() == name).flat_map(|family| family.get_metric());
        let matching = samples.filter(|sample| {
            label.is_none_or(|(name, value)| {
                sample.get_label().iter().any(|pair| pair.name() == name && pair.value() == value)
            })
        });
        matching.map(|sample| sample.get_counter().get_value() as u64).sum()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.stop.cancel();
        if let Some(task) = self.task.take() {
            task.abort();
        }
    }
}

/// Waits until a condition holds.
pub(crate) fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < deadline, "in vain: {what}");
        std::thread::park_timeout(Duration::from_millis(1));
    }
}
