use prometheus::{IntCounter, IntGauge, Registry};

/// What the history counts.
#[derive(Debug, Clone)]
pub struct HistoryMetrics {
    pub(crate) commits: IntCounter,
    pub(crate) blocks_written: IntCounter,
    pub(crate) block_bytes_written: IntCounter,
    pub(crate) late: IntCounter,
    pub(crate) blocks_expired: IntCounter,
    pub(crate) readings_expired: IntCounter,
    pub(crate) series: IntGauge,
    pub(crate) open_readings: IntGauge,
}

impl Default for HistoryMetrics {
    /// Returns metrics that nobody scrapes.
    fn default() -> Self {
        let counter = |name: &str, help: &str| IntCounter::new(name, help).expect("the name is well-formed");
        let gauge = |name: &str, help: &str| IntGauge::new(name, help).expect("the name is well-formed");
        Self {
            commits: counter("frostline_history_commits_total", "Transactions that made readings durable."),
            blocks_written: counter("frostline_history_blocks_written_total", "Blocks of readings written."),
            block_bytes_written: counter("frostline_history_block_bytes_written_total", "Bytes of the blocks written."),
            late: counter("frostline_history_late_readings_total", "Readings not newer than their series' newest."),
            blocks_expired: counter("frostline_history_blocks_expired_total", "Blocks deleted by the retention."),
            readings_expired: counter("frostline_history_readings_expired_total", "Readings deleted by the retention."),
            series: gauge("frostline_history_series", "Series that the history knows."),
            open_readings: gauge("frostline_history_open_readings", "Readings held in memory, not yet in a block."),
        }
    }
}

impl HistoryMetrics {
    /// Registers the metrics.
    pub fn register(registry: &Registry) -> prometheus::Result<Self> {
        let metrics = Self::default();
        for counter in [
            &metrics.commits,
            &metrics.blocks_written,
            &metrics.block_bytes_written,
            &metrics.late,
            &metrics.blocks_expired,
            &metrics.readings_expired,
        ] {
            registry.register(Box::new(counter.clone()))?;
        }
        registry.register(Box::new(metrics.series.clone()))?;
        registry.register(Box::new(metrics.open_readings.clone()))?;
        Ok(metrics)
    }
}
