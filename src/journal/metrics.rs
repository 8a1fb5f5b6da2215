use prometheus::{Histogram, HistogramOpts, IntCounter, IntCounterVec, IntGauge, Opts, Registry, exponential_buckets};

use super::entry::EntryKind;

/// What the journal counts.
#[derive(Debug, Clone)]
pub struct JournalMetrics {
    pub(crate) appended: [IntCounter; EntryKind::ALL.len()],
    pub(crate) bytes: IntCounter,
    pub(crate) syncs: IntCounter,
    pub(crate) sync_seconds: Histogram,
    pub(crate) size_bytes: IntGauge,
    pub(crate) next_offset: IntGauge,
    pub(crate) full: IntGauge,
    pub(crate) write_retries: IntCounter,
    pub(crate) refused: IntCounter,
    pub(crate) segments_deleted: IntCounter,
}

impl JournalMetrics {
    /// Enters the journal's metrics in `registry`.
    pub fn register(registry: &Registry) -> prometheus::Result<Self> {
        let counter = |name: &str, help: &str| -> prometheus::Result<IntCounter> {
            let counter = IntCounter::new(name, help)?;
            registry.register(Box::new(counter.clone()))?;
            Ok(counter)
        };
        let gauge = |name: &str, help: &str| -> prometheus::Result<IntGauge> {
            let gauge = IntGauge::new(name, help)?;
            registry.register(Box::new(gauge.clone()))?;
            Ok(gauge)
        };
        let appended = IntCounterVec::new(
            Opts::new("frostline_journal_appended_total", "Entries appended and synced, by kind"),
            &["kind"],
        )?;
        registry.register(Box::new(appended.clone()))?;
        let sync_seconds = Histogram::with_opts(
            HistogramOpts::new("frostline_journal_sync_seconds", "How long each sync of the journal took")
                .buckets(exponential_buckets(0.000_1, 2.0, 15)?),
        )?;
        registry.register(Box::new(sync_seconds.clone()))?;
        Ok(Self {
            appended: EntryKind::ALL.map(|kind| appended.with_label_values(&[kind.as_str()])),
            bytes: counter("frostline_journal_bytes_total", "Bytes appended and synced, headers included")?,
            syncs: counter("frostline_journal_syncs_total", "Times that the journal was forced to disk")?,
            sync_seconds,
            size_bytes: gauge("frostline_journal_size_bytes", "Bytes of all segments")?,
            next_offset: gauge("frostline_journal_next_offset", "The offset behind the last synced entry")?,
            full: gauge("frostline_journal_full", "1 while the journal cannot take more for want of room")?,
            write_retries: counter(
                "frostline_journal_write_retries_total",
                "Attempts to write that found no room and were repeated",
            )?,
            refused: counter("frostline_journal_refused_total", "Entries refused because the queue was full")?,
            segments_deleted: counter("frostline_journal_segments_deleted_total", "Segments deleted by retention")?,
        })
    }
}
