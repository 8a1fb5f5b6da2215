//! The fleet's own connection to the broker.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use frostline_simulators::Fleet;
use rumqttc::{AsyncClient, Event, MqttOptions, Packet, QoS};
use tokio_util::sync::CancellationToken;

use super::FleetProgress;

/// Publishes what the fleet says, minute by simulated minute, until `stop` is cancelled; then waits for the broker to
/// have taken all of it.
pub(super) async fn run(
    mut fleet: Fleet,
    broker: SocketAddr,
    speed: f64,
    progress: Arc<FleetProgress>,
    stop: CancellationToken,
) -> anyhow::Result<()> {
    let mut options = MqttOptions::new("demo-fleet", broker.ip().to_string(), broker.port());
    options.set_keep_alive(Duration::from_secs(30)).set_max_packet_size(8 << 20, 8 << 20).set_inflight(100);
    let (client, mut event_loop) = AsyncClient::new(options, 1_024);
    let polling = tokio::spawn(async move {
        loop {
            match event_loop.poll().await {
                Ok(Event::Outgoing(rumqttc::Outgoing::Disconnect)) => return,
                Ok(Event::Incoming(Packet::Disconnect)) | Err(_) => {
                    tokio::time::sleep(Duration::from_millis(100)).await
                }
                Ok(_) => {}
            }
        }
    });
    let mut minutes = tokio::time::interval(Duration::from_secs_f64(60.0 / speed));
    minutes.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Burst);
    loop {
        tokio::select! {
            () = stop.cancelled() => break,
            _ = minutes.tick() => {}
        }
        for message in fleet.step() {
            client.publish(message.topic, QoS::AtLeastOnce, message.retain, message.payload).await?;
            progress.messages.fetch_add(1, Ordering::Relaxed);
        }
        progress.simulated_ms.store(fleet.simulated_time_ms(), Ordering::Relaxed);
    }
    // The disconnect stands in line behind everything published.
    client.disconnect().await?;
    drop(tokio::time::timeout(Duration::from_secs(5), polling).await);
    Ok(())
}
