//! The HTTP interface: pages, probes, metrics, the API and its event stream.
//!
//! It reads what the pipeline has committed, through connections of its own, and asks the pipeline for the little that
//! is in no file yet; it never waits in the pipeline's way. The one thing that it changes is to hand a dead letter's
//! message back for the journal.
//!
//! Every list is `{"items": […], "next": null}` with paging by cursor; every error is a problem document.

mod alerts;
mod compliance;
mod dead_letters;
mod metrics;
mod page;
mod probes;
mod problem;
mod request;
mod series;
mod stores;
mod stream;
#[cfg(test)]
mod tests;
mod units;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::{Request, State};
use axum::http::{HeaderName, HeaderValue, StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::Response;
use axum::routing::{get, post};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use self::metrics::WebMetrics;
use self::problem::Problem;
use self::stores::Stores;
use crate::compliance::{ComplianceReader, Sources};
use crate::config::Judgement;
use crate::health::Health;
use crate::ledger::DeadMessage;
use crate::pipeline::PipelineShared;

pub(crate) use dead_letters::{DeadLetterView, list_dead_letters};

/// How long open requests are waited for at the end; what they asked for has no effect that could be lost.
const DRAIN_PATIENCE: Duration = Duration::from_secs(2);

/// Gives a dead letter's message to the journal again and returns its new offset, or says why that cannot be done now;
/// it may block.
pub type Redrive = Arc<dyn Fn(DeadMessage) -> Result<u64, String> + Send + Sync>;

/// What the interface is built from.
#[derive(Clone)]
pub struct WebOptions {
    /// Where the ledger and the history live.
    pub data_dir: PathBuf,
    /// The pipeline's totals, live state and events.
    pub shared: PipelineShared,
    /// The configuration in force.
    pub judgement: Arc<Judgement>,
    /// How long readings stay in the history, in milliseconds.
    pub history_retention_ms: i64,
    /// What works and what does not.
    pub health: Health,
    /// What `/metrics` shows; the interface adds what it counts itself.
    pub metrics: prometheus::Registry,
    /// The way back into the journal.
    pub redrive: Redrive,
}

/// Why the interface is not served.
#[derive(Debug, thiserror::Error)]
pub enum WebError {
    /// Another program listens there, or the address is not this machine's.
    #[error("cannot listen on {listen}")]
    Listen {
        /// The address configured.
        listen: SocketAddr,
        /// What the system says.
        source: std::io::Error,
    },
    /// The interface's metrics are registered already.
    #[error("the HTTP interface's metrics cannot be registered")]
    Metrics(#[from] prometheus::Error),
    /// The listener has failed.
    #[error("the HTTP interface has failed")]
    Serve(#[source] std::io::Error),
}

/// Takes the address, before anything else is started; port 0 takes any free one.
///
/// # Errors
/// Where it cannot be had.
pub async fn bind(listen: SocketAddr) -> Result<TcpListener, WebError> {
    TcpListener::bind(listen).await.map_err(|source| WebError::Listen { listen, source })
}

/// Serves until `stop` is cancelled, then lets open requests end.
///
/// # Errors
/// Where the listener fails, or an interface is served with the same metrics already.
pub async fn run(listener: TcpListener, options: WebOptions, stop: CancellationToken) -> Result<(), WebError> {
    let router = router(options, stop.clone())?;
    let serve = axum::serve(listener, router).with_graceful_shutdown(stop.clone().cancelled_owned());
    tokio::select! {
        ended = serve.into_future() => ended.map_err(WebError::Serve),
        () = async { stop.cancelled().await; tokio::time::sleep(DRAIN_PATIENCE).await } => Ok(()),
    }
}

/// What handlers share.
struct App {
    options: WebOptions,
    metrics: WebMetrics,
    stores: Stores,
    compliance: ComplianceReader,
    stop: CancellationToken,
}

type Shared = State<Arc<App>>;

fn router(options: WebOptions, stop: CancellationToken) -> Result<Router, WebError> {
    let metrics = WebMetrics::register(&options.metrics)?;
    let compliance = ComplianceReader::new(Sources {
        data_dir: options.data_dir.clone(),
        live: options.shared.live.clone(),
        judgement: Arc::clone(&options.judgement),
        history_retention_ms: options.history_retention_ms,
    });
    let app = Arc::new(App { stores: Stores::new(&options.data_dir), compliance, options, metrics, stop });
    let router = Router::new()
        .merge(page::routes())
        .route("/healthz", get(probes::alive))
        .route("/readyz", get(probes::ready))
        .route("/metrics", get(probes::metrics))
        .route("/api/v1/accounting", get(probes::accounting))
        .route("/api/v1/alerts", get(alerts::list))
        .route("/api/v1/alerts/{id}", get(alerts::show))
        .route("/api/v1/units", get(units::list))
        .route("/api/v1/units/{operator}/{unit}", get(units::show))
        .route("/api/v1/series", get(series::read))
        .route("/api/v1/compliance", get(compliance::read))
        .route("/api/v1/stream", get(stream::listen))
        .route("/api/v1/dead-letters", get(dead_letters::list))
        .route("/api/v1/dead-letters/{id}", get(dead_letters::show))
        .route("/api/v1/dead-letters/{id}/redrive", post(dead_letters::redrive))
        .fallback(async || Problem::not_found("there is nothing at this address"))
        .method_not_allowed_fallback(async || {
            Problem::new(StatusCode::METHOD_NOT_ALLOWED, "this address does not take this method")
        })
        .layer(middleware::from_fn_with_state(Arc::clone(&app), finish))
        .with_state(app);
    Ok(router)
}

/// Sends what every answer carries (the page's files bring stricter or looser headers of their own), and counts it.
async fn finish(State(app): Shared, request: Request, next: Next) -> Response {
    const HEADERS: [(HeaderName, &str); 3] = [
        (header::CONTENT_SECURITY_POLICY, "default-src 'none'; frame-ancestors 'none'"),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::CACHE_CONTROL, "no-store"),
    ];
    let mut response = next.run(request).await;
    for (name, value) in HEADERS {
        response.headers_mut().entry(name).or_insert(HeaderValue::from_static(value));
    }
    app.metrics.requests.with_label_values(&[response.status().as_str()]).inc();
    response
}
