//! The sink against a scripted server over real HTTP.

use std::collections::BTreeMap;
use std::io::Read;
use std::sync::{Condvar, Mutex};

use axum::Router;
use axum::body::Bytes;
use axum::extract::{RawQuery, State};
use axum::http::{HeaderMap, StatusCode};
use axum::routing::{get, post};
use frostline_core::model::{Kind, Timestamp};
use prometheus::{Registry, TextEncoder};

use super::*;
use crate::health::Health;
use crate::series::line_protocol::AlertPoint;

/// A day, where a test must not depend on how fast it runs.
const NEVER: Duration = Duration::from_secs(86_400);

/// Stands in a script for no answer at all.
const CUT: u16 = 0;

/// What the scripted server answers to one write, given its lines.
type Script = dyn FnMut(&[String]) -> (u16, &'static str) + Send;

/// A server that does as it is told and remembers what it was sent.
#[derive(Clone)]
struct Stub(Arc<Mutex<StubState>>);

struct StubState {
    script: Box<Script>,
    /// What `/metrics` says; `None` answers 404 there.
    started_at: Option<&'static str>,
    /// Whether it knows the bucket routes at all.
    has_buckets: bool,
    buckets: Vec<String>,
    /// The lines of every request, whatever was answered.
    requests: Vec<Vec<String>>,
    /// The lines answered with 204, and how often each.
    stored: BTreeMap<String, usize>,
    last_query: String,
    last_authorization: String,
}

impl Stub {
    fn with<T>(&self, look: impl FnOnce(&mut StubState) -> T) -> T {
        look(&mut self.0.lock().unwrap())
    }

    fn new(script: impl FnMut(&[String]) -> (u16, &'static str) + Send + 'static) -> Self {
        Self(Arc::new(Mutex::new(StubState {
            script: Box::new(script),
            started_at: None,
            has_buckets: false,
            buckets: Vec::new(),
            requests: Vec::new(),
            stored: BTreeMap::new(),
            last_query: String::new(),
            last_authorization: String::new(),
        })))
    }

    async fn serve(&self, listener: tokio::net::TcpListener) {
        let router = Router::new()
            .route("/api/v2/write", post(write))
            .route("/api/v2/buckets", get(list_buckets).post(create_bucket))
            .route("/api/v2/orgs", get(list_organizations))
            .route("/metrics", get(show_metrics))
            .with_state(self.clone());
        tokio::spawn(async move { axum::serve(listener, router).await });
    }
}

async fn write(
    State(stub): State<Stub>,
    RawQuery(query): RawQuery,
    headers: HeaderMap,
    body: Bytes,
) -> (StatusCode, &'static str) {
    assert_eq!(headers["content-encoding"], "gzip");
    let mut text = String::new();
    flate2::read::GzDecoder::new(&body[..]).read_to_string(&mut text).unwrap();
    let lines: Vec<String> = text.lines().map(str::to_owned).collect();
    let (status, text) = stub.with(|state| {
        state.last_query = query.unwrap_or_default();
        state.last_authorization = headers["authorization"].to_str().unwrap().to_owned();
        let (status, text) = (state.script)(&lines);
        if status == 204 {
            for line in &lines {
                *state.stored.entry(line.clone()).or_default() += 1;
            }
        }
        state.requests.push(lines);
        (status, text)
    });
    // A panic here ends the connection without a reply.
    assert_ne!(status, CUT, "the connection is cut, as the test wants it");
    (StatusCode::from_u16(status).unwrap(), text)
}

async fn list_buckets(State(stub): State<Stub>) -> (StatusCode, String) {
    stub.with(|state| {
        if !state.has_buckets {
            return (StatusCode::BAD_REQUEST, "unsupported path requested".to_owned());
        }
        let buckets: Vec<_> = state
            .buckets
            .iter()
            .map(|name| serde_json::json!({"name": name, "retentionRules": [], "labels": []}))
            .collect();
        (StatusCode::OK, serde_json::json!({"buckets": buckets}).to_string())
    })
}

async fn create_bucket(State(stub): State<Stub>, body: Bytes) -> StatusCode {
    let request: serde_json::Value = serde_json::from_slice(&body).unwrap();
    assert_eq!(request["orgID"], "00000000000000aa");
    stub.with(|state| state.buckets.push(request["name"].as_str().unwrap().to_owned()));
    StatusCode::CREATED
}

async fn list_organizations() -> String {
    serde_json::json!({"orgs": [{"id": "00000000000000aa", "name": "cold"}]}).to_string()
}

async fn show_metrics(State(stub): State<Stub>) -> (StatusCode, String) {
    match stub.with(|state| state.started_at) {
        Some(started_at) => (StatusCode::OK, format!("process_start_time_seconds {started_at}\n")),
        None => (StatusCode::NOT_FOUND, String::new()),
    }
}

/// A journal of which every entry is one reading, and a store in memory.
#[derive(Clone, Default)]
struct Books(Arc<(Mutex<BooksState>, Condvar)>);

#[derive(Default)]
struct BooksState {
    entries: u64,
    alerts: u64,
    cursor: SinkCursor,
    refused: Vec<RefusedPoint>,
    is_broken: bool,
}

impl Books {
    fn with<T>(&self, look: impl FnOnce(&mut BooksState) -> T) -> T {
        look(&mut self.0.0.lock().unwrap())
    }

    fn append(&self, entries: u64) {
        self.with(|state| state.entries += entries);
        self.0.1.notify_all();
    }
}

fn line_of(offset: u64) -> String {
    format!("temperature,operator=op1,unit=u1,sensor=t1 value={offset} {offset}")
}

impl Feed for Books {
    fn read(&mut self, from: u64, points_max: usize, lines: &mut LineBatch) -> Result<Option<u64>, StoreError> {
        let end = self.with(|state| state.entries).min(from + points_max as u64);
        for offset in from..end {
            let event_time = Timestamp::from_millis(offset as i64);
            lines.push_reading("op1", "u1", "t1", Kind::Temperature, event_time, Some(offset as f64));
        }
        Ok((from < end).then_some(end))
    }

    fn wait(&mut self, from: u64, timeout: Duration) {
        let state = self.0.0.lock().unwrap();
        drop(self.0.1.wait_timeout_while(state, timeout, |state| state.entries <= from).unwrap());
    }
}

impl SinkStore for Books {
    fn cursor(&self, _: &str) -> Result<SinkCursor, StoreError> {
        Ok(self.with(|state| state.cursor))
    }

    fn commit(&self, _: &str, cursor: SinkCursor) -> Result<(), StoreError> {
        self.with(|state| {
            if state.is_broken {
                return Err("disk full".into());
            }
            state.cursor = cursor;
            Ok(())
        })
    }

    fn read_alerts(&self, after: u64, points_max: usize, lines: &mut LineBatch) -> Result<u64, StoreError> {
        let last = self.with(|state| state.alerts).min(after + points_max as u64);
        for number in after + 1..=last {
            lines.push_alert(&AlertPoint {
                operator: "op1",
                unit: "u1",
                sensor: Some("t1"),
                rule: "frozen-high",
                severity: "critical",
                state: "firing",
                episode: "00ff",
                revision: 1,
                value: None,
                limit: None,
                started_at: Timestamp::from_millis(0),
                event_time: Timestamp::from_millis(number as i64),
                superseded: false,
                may_replace: false,
            });
        }
        Ok(last.max(after))
    }

    fn journal_end(&self) -> u64 {
        self.with(|state| state.entries)
    }

    fn record_refused(&self, _: &str, points: &[RefusedPoint]) -> Result<(), StoreError> {
        self.with(|state| state.refused.extend_from_slice(points));
        Ok(())
    }
}

/// A running sink with everything around it.
struct Rig {
    books: Books,
    stub: Stub,
    health: Health,
    registry: Registry,
    stop: CancellationToken,
    running: JoinHandle<Result<(), SinkError>>,
}

async fn bind() -> (tokio::net::TcpListener, String) {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    (listener, url)
}

fn settings(url: String) -> Settings {
    let pace = Pace {
        backoff_first: Duration::from_millis(1),
        backoff_max: Duration::from_millis(5),
        denied_retry: Duration::from_millis(5),
        look_every: Duration::from_millis(5),
        linger: Duration::ZERO,
        flush_max: Duration::from_secs(20),
    };
    Settings {
        url,
        org: "cold".to_owned(),
        bucket: "chain".to_owned(),
        token: "secret".to_owned(),
        confirm_after: NEVER,
        points_max: 64,
        pace,
    }
}

impl Rig {
    async fn start(stub: Stub, adjust: impl FnOnce(&mut Settings)) -> Self {
        let (listener, url) = bind().await;
        stub.serve(listener).await;
        Self::start_at(url, stub, adjust)
    }

    fn start_at(url: String, stub: Stub, adjust: impl FnOnce(&mut Settings)) -> Self {
        let mut settings = settings(url);
        adjust(&mut settings);
        let (books, health, registry) = (Books::default(), Health::default(), Registry::new());
        let stop = CancellationToken::new();
        let sink = Sink::new(
            settings,
            Box::new(books.clone()),
            Arc::new(books.clone()),
            SinkMetrics::register(&registry).unwrap(),
            health.part("series"),
        )
        .unwrap();
        let running = tokio::spawn(sink.run(stop.clone()));
        Self { books, stub, health, registry, stop, running }
    }

    /// Waits until `condition` holds.
    async fn until(&self, what: &str, condition: impl Fn(&Self) -> bool) {
        until(what, || condition(self)).await;
    }

    /// Waits until exactly the readings at these offsets are stored, each at least once.
    async fn until_stored(&self, offsets: Range<u64>) {
        let expected: Vec<_> = offsets.map(line_of).collect();
        self.until("every reading is stored", |rig| {
            rig.stub.with(|state| {
                state.stored.len() == expected.len() && expected.iter().all(|line| state.stored.contains_key(line))
            })
        })
        .await;
    }

    fn times_stored(&self, offset: u64) -> usize {
        self.stub.with(|state| state.stored.get(&line_of(offset)).copied().unwrap_or_default())
    }

    fn remark(&self) -> Result<String, String> {
        self.health.parts().remove("series").unwrap()
    }

    fn metric(&self, line_start: &str) -> u64 {
        let text = TextEncoder::new().encode_to_string(&self.registry.gather()).unwrap();
        text.lines()
            .find_map(|line| line.strip_prefix(line_start))
            .map_or(0, |value| value.trim().parse().expect("a whole number"))
    }

    async fn stop(self) {
        self.stop.cancel();
        self.running.await.unwrap().unwrap();
    }
}

async fn until(what: &str, condition: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(30);
    while !condition() {
        assert!(Instant::now() < deadline, "gave up waiting until {what}");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

const WRITTEN: &str = r#"frostline_sink_points_total{outcome="written",sink="influxdb2"}"#;
const RESENT: &str = r#"frostline_sink_points_total{outcome="resent",sink="influxdb2"}"#;
const REFUSED: &str = r#"frostline_sink_points_total{outcome="refused",sink="influxdb2"}"#;

#[tokio::test]
async fn readings_and_alerts_are_written_once_in_order_with_the_token() {
    let rig = Rig::start(Stub::new(|_| (204, "")), |_| {}).await;
    rig.books.with(|state| state.alerts = 2);
    rig.books.append(1000);
    rig.until("all are stored", |rig| rig.stub.with(|state| state.stored.len()) == 1002).await;
    rig.stub.with(|state| {
        assert!(state.stored.values().all(|times| *times == 1));
        assert_eq!(state.last_query, "bucket=chain&org=cold&precision=ms");
        assert_eq!(state.last_authorization, "Token secret");
        let readings: Vec<_> = state.requests.concat().into_iter().filter(|line| line.starts_with('t')).collect();
        assert_eq!(readings, (0..1000).map(line_of).collect::<Vec<_>>());
    });
    rig.until("it is counted", |rig| rig.metric(WRITTEN) == 1002).await;
    rig.until("it says so", |rig| rig.metric(r#"frostline_sink_lag_entries{sink="influxdb2"}"#) == 0).await;
    assert_eq!(rig.remark(), Ok("writing".to_owned()));
    rig.stop().await;
}

#[tokio::test]
async fn a_line_that_is_refused_is_found_recorded_and_leaves_the_others_alone() {
    let stub = Stub::new(|lines| match lines.iter().any(|line| line.ends_with(" 7") || line.ends_with(" 33")) {
        true => (422, r#"{"code":"unprocessable entity","message":"field type conflict dropped=1"}"#),
        false => (204, ""),
    });
    let rig = Rig::start(stub, |_| {}).await;
    rig.books.append(100);
    rig.until("the good ones are stored", |rig| rig.stub.with(|state| state.stored.len()) == 98).await;
    let reason = "422: field type conflict dropped=1".to_owned();
    let expected = [7, 33].map(|offset| RefusedPoint { line: line_of(offset), reason: reason.clone() });
    assert_eq!(rig.books.with(|state| state.refused.clone()), expected);
    assert_eq!((rig.metric(REFUSED), rig.remark()), (2, Ok("writing".to_owned())));
    rig.stop().await;
}

#[tokio::test]
async fn a_batch_of_which_nothing_is_taken_is_recorded_without_being_cut_up() {
    let stub = Stub::new(|lines| match lines.len() {
        50 => (422, r#"{"message":"points beyond retention policy dropped=50"}"#),
        _ => (204, ""),
    });
    let rig = Rig::start(stub, |_| {}).await;
    rig.books.append(50);
    rig.until("all are recorded", |rig| rig.books.with(|state| state.refused.len()) == 50).await;
    rig.books.append(1);
    rig.until_stored(50..51).await;
    assert_eq!(rig.stub.with(|state| state.requests.len()), 2);
    rig.stop().await;
}

#[tokio::test]
async fn a_batch_that_is_too_large_is_halved_until_it_fits() {
    let stub = Stub::new(|lines| if lines.len() > 10 { (413, "request entity too large") } else { (204, "") });
    let rig = Rig::start(stub, |_| {}).await;
    rig.books.append(100);
    rig.until_stored(0..100).await;
    assert_eq!(rig.books.with(|state| state.refused.len()), 0);
    rig.stop().await;
}

#[tokio::test]
async fn being_turned_away_keeps_the_data_and_is_told_until_it_is_mended() {
    for status in [401, 403, 404] {
        let rig = Rig::start(Stub::new(move |_| (status, r#"{"message":"not for you"}"#)), |_| {}).await;
        rig.books.append(10);
        rig.until("it is told", |rig| rig.remark() == Err(format!("{status}: not for you"))).await;
        rig.until("it is tried again", |rig| rig.stub.with(|state| state.requests.len()) > 2).await;
        assert_eq!(rig.books.with(|state| state.refused.len()), 0);
        rig.stub.with(|state| state.script = Box::new(|_| (204, "")));
        rig.until_stored(0..10).await;
        rig.until("it is well again", |rig| rig.remark() == Ok("writing".to_owned())).await;
        rig.stop().await;
    }
}

#[tokio::test]
async fn a_missing_bucket_is_created() {
    let stub = Stub::new(|_| (404, r#"{"code":"not found","message":"bucket \"chain\" not found"}"#));
    stub.with(|state| state.has_buckets = true);
    let rig = Rig::start(stub, |_| {}).await;
    rig.books.append(10);
    rig.until("the bucket is there", |rig| rig.stub.with(|state| state.buckets == ["chain"])).await;
    rig.stub.with(|state| state.script = Box::new(|_| (204, "")));
    rig.until_stored(0..10).await;
    assert_eq!(rig.stub.with(|state| state.buckets.len()), 1);
    rig.stop().await;
}

#[tokio::test]
async fn a_server_that_asks_for_patience_is_sent_the_same_again_and_nothing_else() {
    let mut refusals = 3;
    let stub = Stub::new(move |lines| {
        if lines.contains(&line_of(15)) && refusals > 0 {
            refusals -= 1;
            return (429, "slow down");
        }
        (204, "")
    });
    let rig = Rig::start(stub, |_| {}).await;
    rig.books.append(10);
    rig.until_stored(0..10).await;
    rig.books.append(10);
    rig.until_stored(0..20).await;
    assert_eq!((rig.times_stored(0), rig.times_stored(15)), (1, 1));
    assert_eq!(rig.metric(r#"frostline_sink_requests_total{outcome="busy",sink="influxdb2"}"#), 3);
    rig.stop().await;
}

#[tokio::test]
async fn a_failed_request_sends_everything_unconfirmed_again() {
    let mut failures = 2;
    let stub = Stub::new(move |lines| {
        if lines.contains(&line_of(15)) && failures > 0 {
            failures -= 1;
            return (503, "unavailable");
        }
        (204, "")
    });
    let rig = Rig::start(stub, |_| {}).await;
    rig.books.append(10);
    rig.until_stored(0..10).await;
    rig.books.append(10);
    rig.until_stored(0..20).await;
    assert!(rig.times_stored(0) >= 2);
    rig.until("it is counted", |rig| rig.metric(RESENT) >= 10).await;
    rig.stop().await;
}

#[tokio::test]
async fn a_failed_request_to_a_server_that_still_runs_is_only_repeated() {
    let mut failures = 2;
    let stub = Stub::new(move |lines| {
        if lines.contains(&line_of(15)) && failures > 0 {
            failures -= 1;
            return (500, "internal error");
        }
        (204, "")
    });
    stub.with(|state| state.started_at = Some("1795472431"));
    let rig = Rig::start(stub, |_| {}).await;
    rig.books.append(10);
    rig.until_stored(0..10).await;
    rig.books.append(10);
    rig.until_stored(0..20).await;
    assert_eq!((rig.times_stored(0), rig.metric(RESENT)), (1, 0));
    rig.stop().await;
}

#[tokio::test]
async fn a_lost_connection_sends_everything_unconfirmed_again_whatever_the_server_says_of_its_start() {
    let mut cuts = 1;
    let stub = Stub::new(move |lines| {
        if lines.contains(&line_of(15)) && cuts > 0 {
            cuts -= 1;
            return (CUT, "");
        }
        (204, "")
    });
    stub.with(|state| state.started_at = Some("1795472431"));
    let rig = Rig::start(stub, |_| {}).await;
    rig.books.append(10);
    rig.until_stored(0..10).await;
    rig.books.append(10);
    rig.until_stored(0..20).await;
    assert!(rig.times_stored(0) >= 2);
    rig.stop().await;
}

#[tokio::test]
async fn a_server_that_was_started_anew_is_sent_everything_unconfirmed_again() {
    let stub = Stub::new(|_| (204, ""));
    stub.with(|state| state.started_at = Some("1795472431"));
    let rig = Rig::start(stub, |_| {}).await;
    rig.books.append(10);
    rig.until_stored(0..10).await;
    assert_eq!(rig.books.with(|state| state.cursor), SinkCursor::default());
    // It has forgotten what it had, and nothing failed in between.
    rig.stub.with(|state| {
        state.stored.clear();
        state.started_at = Some("1795472499");
    });
    rig.until_stored(0..10).await;
    rig.until("it is counted", |rig| rig.metric(RESENT) == 10).await;
    assert_eq!(rig.metric(r#"frostline_sink_rewinds_total{sink="influxdb2"}"#), 1);
    rig.stop().await;
}

#[tokio::test]
async fn what_has_outlived_the_waiting_time_is_committed_and_not_sent_again() {
    for started_at in [None, Some("1795472431")] {
        let stub = Stub::new(|_| (204, ""));
        stub.with(|state| state.started_at = started_at);
        let rig = Rig::start(stub, |settings| settings.confirm_after = Duration::from_millis(20)).await;
        rig.books.append(10);
        rig.books.with(|state| state.alerts = 1);
        let all = SinkCursor { readings: 10, alerts: 1 };
        rig.until("it is committed", |rig| rig.books.with(|state| state.cursor) == all).await;
        rig.stub.with(|state| state.started_at = Some("1795472499"));
        rig.books.append(1);
        rig.until("the new one is stored", |rig| rig.times_stored(10) >= 1).await;
        assert_eq!(rig.times_stored(0), 1);
        rig.stop().await;
    }
}

#[tokio::test]
async fn a_server_that_is_not_there_yet_is_waited_for() {
    let (listener, url) = bind().await;
    let address = listener.local_addr().unwrap();
    drop(listener);
    let rig = Rig::start_at(url, Stub::new(|_| (204, "")), |_| {});
    rig.books.append(10);
    rig.until("it is told", |rig| rig.remark().is_ok_and(|remark| remark.starts_with("buffering: "))).await;
    rig.until("it is tried", |rig| {
        rig.metric(r#"frostline_sink_requests_total{outcome="failed",sink="influxdb2"}"#) > 0
    })
    .await;
    rig.stub.serve(tokio::net::TcpListener::bind(address).await.unwrap()).await;
    rig.until_stored(0..10).await;
    rig.stop().await;
}

#[tokio::test]
async fn stopping_writes_what_is_there() {
    let started = CancellationToken::new();
    let told = started.clone();
    let stub = Stub::new(move |_| {
        told.cancel();
        (204, "")
    });
    let rig = Rig::start(stub, |_| {}).await;
    rig.books.append(500);
    started.cancelled().await;
    let stub = rig.stub.clone();
    rig.stop().await;
    assert_eq!(stub.with(|state| state.stored.len()), 500);
}

#[tokio::test]
async fn stopping_does_not_wait_for_a_server_that_is_away() {
    let (listener, url) = bind().await;
    drop(listener);
    let rig = Rig::start_at(url, Stub::new(|_| (204, "")), |settings| {
        settings.pace.flush_max = Duration::from_millis(10);
    });
    rig.books.append(10);
    rig.until("it is told", |rig| rig.remark().is_ok_and(|remark| remark.starts_with("buffering: "))).await;
    rig.stop().await;
}

#[tokio::test]
async fn a_place_that_cannot_be_kept_ends_the_sink() {
    let rig = Rig::start(Stub::new(|_| (204, "")), |settings| settings.confirm_after = Duration::ZERO).await;
    rig.books.with(|state| state.is_broken = true);
    rig.books.append(10);
    assert!(matches!(rig.running.await.unwrap(), Err(SinkError::Store(_))));
}

#[tokio::test]
async fn an_examination_says_what_answers() {
    let (listener, url) = bind().await;
    let router = Router::new()
        .route("/health", get(|| async { r#"{"name": "influxdb", "version": "v2.7.12", "status": "pass"}"# }))
        .route("/api/v2/setup", get(|| async { r#"{"allowed": false}"# }));
    tokio::spawn(async move { axum::serve(listener, router).await });
    assert_eq!(examine(&settings(url)).await, Ok("influxdb v2.7.12".to_owned()));

    let (listener, url) = bind().await;
    let router = Router::new()
        .route("/health", get(|| async { r#"{"name": "influxdb", "version": "v2.7.12", "status": "pass"}"# }))
        .route("/api/v2/setup", get(|| async { r#"{"allowed": true}"# }));
    tokio::spawn(async move { axum::serve(listener, router).await });
    assert!(examine(&settings(url)).await.is_err_and(|reason| reason.contains("has not been set up")));

    let (listener, url) = bind().await;
    let router = Router::new().route("/health", get(|| async { "OK" }));
    tokio::spawn(async move { axum::serve(listener, router).await });
    assert_eq!(examine(&settings(url)).await, Ok("a server without a health report".to_owned()));

    let (listener, url) = bind().await;
    drop(listener);
    assert!(examine(&settings(url)).await.is_err_and(|reason| reason.contains("refused")));
}

#[test]
fn an_url_that_cannot_work_is_told_before_anything_starts() {
    for (url, expected) in [
        ("http://localhost:8086", true),
        ("https://influxdb.example/", true),
        ("localhost:8086", false),
        ("http://localhost:8086/influx", false),
        ("ftp://localhost", false),
        ("", false),
    ] {
        assert_eq!(settings(url.to_owned()).base_url().is_ok(), expected, "{url}");
    }
}
