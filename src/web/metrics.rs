use prometheus::{IntCounter, IntCounterVec, IntGauge, Opts, Registry};

/// What the HTTP interface counts.
#[derive(Debug, Clone)]
pub(crate) struct WebMetrics {
    /// Answers by status code.
    pub(crate) requests: IntCounterVec,
    /// Listeners of the stream now.
    pub(crate) stream_listeners: IntGauge,
    /// Events that a listener of the stream was too slow for.
    pub(crate) stream_events_dropped: IntCounter,
}

impl WebMetrics {
    /// Makes the metrics known to `registry`.
    pub(crate) fn register(registry: &Registry) -> prometheus::Result<Self> {
        let metrics = Self {
            requests: IntCounterVec::new(
                Opts::new("frostline_http_requests_total", "HTTP requests answered"),
                &["status"],
            )?,
            stream_listeners: IntGauge::new("frostline_stream_listeners", "Listeners of the event stream now")?,
            stream_events_dropped: IntCounter::new(
                "frostline_stream_events_dropped_total",
                "Events left out of the stream because its listener was too slow",
            )?,
        };
        registry.register(Box::new(metrics.requests.clone()))?;
        registry.register(Box::new(metrics.stream_listeners.clone()))?;
        registry.register(Box::new(metrics.stream_events_dropped.clone()))?;
        Ok(metrics)
    }
}
