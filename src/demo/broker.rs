//! The demo's broker: in this process, in memory, on a free port.

use std::collections::HashMap;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use rumqttd::{Broker, Config, ConnectionSettings, RouterConfig, ServerSettings};

/// Starts the broker and returns where it listens for MQTT 3.1.1. It runs until the process ends: it cannot be stopped.
///
/// # Errors
/// Where no port is free, or the broker does not come up.
pub(super) fn start() -> anyhow::Result<SocketAddr> {
    // The broker does not tell which port it was given, so one is looked for first.
    let listen = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?;
    let server = ServerSettings {
        name: "demo".to_owned(),
        listen,
        tls: None,
        next_connection_delay_ms: 0,
        connections: ConnectionSettings {
            connection_timeout_ms: 5_000,
            max_payload_size: 4 << 20,
            max_inflight_count: 100,
            auth: None,
            external_auth: None,
            dynamic_filters: false,
        },
    };
    let config = Config {
        id: 0,
        router: RouterConfig {
            max_connections: 64,
            max_outgoing_packet_count: 200,
            max_segment_size: 16 << 20,
            max_segment_count: 16,
            custom_segment: None,
            initialized_filters: None,
            shared_subscriptions_strategy: Default::default(),
        },
        v4: Some(HashMap::from([("demo".to_owned(), server)])),
        v5: None,
        ws: None,
        cluster: None,
        console: None,
        bridge: None,
        prometheus: None,
        metrics: None,
    };
    std::thread::Builder::new().name("demo-broker".to_owned()).spawn(move || {
        if let Err(error) = Broker::new(config).start() {
            tracing::error!(%error, "the embedded broker has ended");
        }
    })?;
    let deadline = Instant::now() + Duration::from_secs(5);
    while TcpStream::connect(listen).is_err() {
        anyhow::ensure!(Instant::now() < deadline, "nothing listens on {listen}");
        std::thread::sleep(Duration::from_millis(5));
    }
    Ok(listen)
}
