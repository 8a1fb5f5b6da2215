use prometheus::{IntCounterVec, IntGaugeVec, Opts, Registry};

use crate::series::SinkCursor;

/// What a sink counts.
#[derive(Debug, Clone)]
pub struct SinkMetrics {
    points: IntCounterVec,
    requests: IntCounterVec,
    rewinds: IntCounterVec,
    lag_entries: IntGaugeVec,
    unconfirmed_entries: IntGaugeVec,
}

impl SinkMetrics {
    /// Enters the sink's metrics into `registry`.
    pub fn register(registry: &Registry) -> prometheus::Result<Self> {
        let counter = |name, help, labels: &[&str]| {
            let counter = IntCounterVec::new(Opts::new(name, help), labels)?;
            registry.register(Box::new(counter.clone()))?;
            prometheus::Result::Ok(counter)
        };
        let gauge = |name, help| {
            let gauge = IntGaugeVec::new(Opts::new(name, help), &["sink"])?;
            registry.register(Box::new(gauge.clone()))?;
            prometheus::Result::Ok(gauge)
        };
        Ok(Self {
            points: counter(
                "frostline_sink_points_total",
                "points by what became of them: written, resent (written again to be safe) or refused",
                &["sink", "outcome"],
            )?,
            requests: counter(
                "frostline_sink_requests_total",
                "write requests by the server's reply",
                &["sink", "outcome"],
            )?,
            rewinds: counter(
                "frostline_sink_rewinds_total",
                "how often a sink went back to its committed cursor to send again",
                &["sink"],
            )?,
            lag_entries: gauge("frostline_sink_lag_entries", "journal entries that are still to be written")?,
            unconfirmed_entries: gauge(
                "frostline_sink_unconfirmed_entries",
                "journal entries written and not yet trusted to survive a crash of the database",
            )?,
        })
    }

    pub(super) fn points(&self, sink: &str, outcome: &str, count: usize) {
        self.points.with_label_values(&[sink, outcome]).inc_by(count as u64);
    }

    pub(super) fn request(&self, sink: &str, outcome: &str) {
        self.requests.with_label_values(&[sink, outcome]).inc();
    }

    pub(super) fn rewind(&self, sink: &str) {
        self.rewinds.with_label_values(&[sink]).inc();
    }

    pub(super) fn progress(&self, sink: &str, end: u64, written: SinkCursor, committed: SinkCursor) {
        let entries = |from: u64, to: u64| i64::try_from(to.saturating_sub(from)).unwrap_or(i64::MAX);
        self.lag_entries.with_label_values(&[sink]).set(entries(written.readings, end));
        self.unconfirmed_entries.with_label_values(&[sink]).set(entries(committed.readings, written.readings));
    }
}
