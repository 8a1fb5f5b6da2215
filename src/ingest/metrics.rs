use prometheus::{IntCounter, IntCounterVec, Opts, Registry};

/// What the MQTT side counts; clones share the counters.
#[derive(Debug, Clone)]
pub struct IngestMetrics {
    /// Connections that the broker accepted, by client (`source`, `alerts`).
    pub(crate) connections: IntCounterVec,
    /// Those of them that were not the first.
    pub(crate) reconnects: IntCounterVec,
    /// Connections that failed or broke, by client and kind.
    pub(crate) connection_errors: IntCounterVec,
    /// Filters that the broker refused.
    pub(crate) subscriptions_refused: IntCounter,
    /// Publishes delivered by the broker, redeliveries included.
    pub(crate) messages_received: IntCounter,
    /// Acknowledgements handed to the client.
    pub(crate) messages_acknowledged: IntCounter,
    /// Messages acknowledged without journaling them again.
    pub(crate) messages_redelivered: IntCounter,
    /// Messages taken as their first bytes and a hash.
    pub(crate) messages_oversize: IntCounter,
    /// Messages left with the broker because the journal was full.
    pub(crate) messages_not_taken: IntCounter,
    /// Acknowledgements not sent because their connection was gone.
    pub(crate) acks_stale: IntCounter,
    /// Outgoing messages, by outcome.
    pub(crate) publishes: IntCounterVec,
}

impl IngestMetrics {
    /// Registers the counters.
    pub fn register(registry: &Registry) -> prometheus::Result<Self> {
        let counter = |name: &str, help: &str| {
            let counter = IntCounter::new(name, help)?;
            registry.register(Box::new(counter.clone()))?;
            Ok::<_, prometheus::Error>(counter)
        };
        let labelled = |name: &str, help: &str, labels: &[&str]| {
            let counters = IntCounterVec::new(Opts::new(name, help), labels)?;
            registry.register(Box::new(counters.clone()))?;
            Ok::<_, prometheus::Error>(counters)
        };
        Ok(Self {
            connections: labelled(
                "frostline_mqtt_connections_total",
                "connections accepted by the broker",
                &["client"],
            )?,
            reconnects: labelled("frostline_mqtt_reconnects_total", "connections after the first", &["client"])?,
            connection_errors: labelled(
                "frostline_mqtt_connection_errors_total",
                "connections that failed or broke",
                &["client", "kind"],
            )?,
            subscriptions_refused: counter(
                "frostline_mqtt_subscriptions_refused_total",
                "topic filters that the broker refused",
            )?,
            messages_received: counter(
                "frostline_mqtt_messages_received_total",
                "messages delivered by the broker, redeliveries included",
            )?,
            messages_acknowledged: counter(
                "frostline_mqtt_messages_acknowledged_total",
                "acknowledgements handed to the client",
            )?,
            messages_redelivered: counter(
                "frostline_messages_redelivered_total",
                "messages acknowledged without journaling them again",
            )?,
            messages_oversize: counter(
                "frostline_mqtt_messages_oversize_total",
                "messages over the payload limit, taken as their first bytes and a hash",
            )?,
            messages_not_taken: counter(
                "frostline_mqtt_messages_not_taken_total",
                "messages left with the broker because the journal was full",
            )?,
            acks_stale: counter(
                "frostline_mqtt_acks_stale_total",
                "acknowledgements not sent because their connection was gone",
            )?,
            publishes: labelled("frostline_mqtt_publishes_total", "messages published, by outcome", &["outcome"])?,
        })
    }
}
