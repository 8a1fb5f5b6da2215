//! The MQTT source and publisher against a real mosquitto.

#[path = "../it_source/harness.rs"]
#[expect(dead_code, reason = "shared with the tests against the scripted broker, which use all of it")]
mod harness;
#[path = "../support/mosquitto.rs"]
mod mosquitto;
#[path = "../support/scripted_broker.rs"]
#[expect(dead_code, reason = "the harness needs its patience only")]
mod scripted_broker;

use std::path::Path;

use frostline::config::{MqttConfig, MqttVersion};
use frostline::health::Health;
use frostline::ingest::{IngestMetrics, Publisher, PublisherTask};
use harness::{Running, TOPIC, VERSIONS, config, wait_until};
use mosquitto::Mosquitto;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};
use tempfile::tempdir;

const MIB: usize = 1 << 20;

/// Starts a source whose log is durable at once, and waits until it is subscribed.
fn subscribed(config: &MqttConfig) -> Running {
    let source = Running::start_with(config);
    source.log.set_durable_at_once();
    wait_until("subscribed", || source.broker_health() == Ok("subscribed".to_owned()));
    source
}

/// Stops a source and waits until it has gone.
fn stop(mut source: Running) {
    source.stop.cancel();
    source.join().unwrap();
}

fn publisher(source: &Running, config: &MqttConfig) -> Publisher {
    let metrics = IngestMetrics::register(&prometheus::Registry::new()).unwrap();
    let (publisher, task) = PublisherTask::new(config, metrics, Health::default().part("alerts")).unwrap();
    source.runtime.spawn(task.run(source.stop.clone()));
    publisher
}

fn acknowledged(source: &Running) -> u64 {
    source.counter("frostline_mqtt_messages_acknowledged_total", None)
}

/// Publishes one message at QoS 1, of any size, on a connection of its own.
fn publish_large(source: &Running, broker: &Mosquitto, payload: Vec<u8>) {
    let mut options = rumqttc::MqttOptions::new("large", "127.0.0.1", broker.port());
    options.set_max_packet_size(64 * MIB, 64 * MIB);
    let (client, mut event_loop) = rumqttc::AsyncClient::new(options, 10);
    client.try_publish(TOPIC, rumqttc::QoS::AtLeastOnce, false, payload).unwrap();
    source.runtime.block_on(async {
        tokio::time::timeout(scripted_broker::PATIENCE, async {
            while !matches!(event_loop.poll().await.unwrap(), rumqttc::Event::Incoming(rumqttc::Packet::PubAck(_))) {}
        })
        .await
        .expect("the broker takes it");
    });
}

#[test]
fn what_is_published_while_the_daemon_is_away_is_received_when_it_is_back() {
    for version in VERSIONS {
        let broker = Mosquitto::start(tempdir().unwrap(), "");
        let config = config(broker.url(), version);
        stop(subscribed(&config));
        let other = MqttConfig { client_id: "another".into(), ..config.clone() };
        let helper = Running::start_with(&other);
        let publisher = publisher(&helper, &other);
        helper.runtime.block_on(async {
            for number in 0..3_000 {
                publisher.publish(TOPIC, format!("{{{number}}}")).await.unwrap();
            }
        });
        let source = subscribed(&config);
        source.log.wait_for(3_000);
        wait_until("everything is acknowledged", || acknowledged(&source) == 3_000);
        let expected: Vec<String> = (0..3_000).map(|number| format!("{{{number}}}")).collect();
        assert_eq!(source.log.payloads(), expected, "{version:?}");
        stop(source);
        // Nothing is left at the broker.
        let source = subscribed(&config);
        helper.runtime.block_on(publisher.publish(TOPIC, "{last}")).unwrap();
        source.log.wait_for(1);
        assert_eq!(source.log.payloads(), ["{last}"], "{version:?}");
    }
}

#[test]
fn large_messages_neither_wedge_the_session_nor_disturb_the_others() {
    for version in VERSIONS {
        let broker = Mosquitto::start(tempdir().unwrap(), "");
        let config = config(broker.url(), version);
        let source = subscribed(&config);
        let publisher = publisher(&source, &config);
        source.runtime.block_on(publisher.publish(TOPIC, "{before}")).unwrap();
        publish_large(&source, &broker, vec![b'6'; 6 * MIB]);
        publish_large(&source, &broker, vec![b'C'; 12 * MIB]);
        source.runtime.block_on(publisher.publish(TOPIC, "{after}")).unwrap();
        wait_until("the last message", || source.log.payloads().contains(&"{after}".to_owned()));
        let oversize: Vec<u64> = source
            .log
            .messages()
            .iter()
            .filter_map(|message| message.oversize.as_ref().map(|oversize| oversize.length))
            .collect();
        match version {
            // The broker was told the limit and drops what is over it.
            MqttVersion::V5 => assert_eq!(oversize, [6 * MIB as u64]),
            MqttVersion::V4 => assert_eq!(oversize, [6 * MIB as u64, 12 * MIB as u64]),
        }
    }
}

#[test]
fn a_broker_that_restarts_without_sessions_is_subscribed_to_again() {
    for version in VERSIONS {
        let mut broker = Mosquitto::start(tempdir().unwrap(), "");
        let config = config(broker.url(), version);
        let source = subscribed(&config);
        broker.restart();
        wait_until("connected again", || source.counter("frostline_mqtt_connections_total", None) >= 2);
        wait_until("subscribed again", || source.broker_health() == Ok("subscribed".to_owned()));
        let publisher = publisher(&source, &config);
        wait_until("published", || source.runtime.block_on(publisher.publish(TOPIC, "{again}")).is_ok());
        source.log.wait_for(1);
        assert_eq!(source.log.payloads()[0], "{again}", "{version:?}");
    }
}

/// Writes a certificate authority, and a certificate with its key for each name.
fn write_certificates(dir: &Path, names: &[&str]) {
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let authority = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
    std::fs::write(dir.join("ca.pem"), authority.pem()).unwrap();
    for name in names {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(vec![(*name).to_owned()]).unwrap();
        // Without a name of its own it looks as if it had signed itself.
        params.distinguished_name.push(DnType::CommonName, *name);
        let certificate = params.signed_by(&key, &authority).unwrap();
        std::fs::write(dir.join(format!("{name}.pem")), certificate.pem()).unwrap();
        std::fs::write(dir.join(format!("{name}.key")), key.serialize_pem()).unwrap();
    }
}

#[test]
fn tls_needs_the_right_authority_and_the_client_certificate() {
    let dir = tempdir().unwrap();
    write_certificates(dir.path(), &["localhost", "daemon"]);
    let path = |name: &str| dir.path().join(name);
    let listener = format!(
        "cafile {}\ncertfile {}\nkeyfile {}\nrequire_certificate true",
        path("ca.pem").display(),
        path("localhost.pem").display(),
        path("localhost.key").display()
    );
    let stranger = tempdir().unwrap();
    write_certificates(stranger.path(), &[]);
    let good = |port: u16, version| MqttConfig {
        ca_file: Some(path("ca.pem")),
        client_cert_file: Some(path("daemon.pem")),
        client_key_file: Some(path("daemon.key")),
        ..config(format!("mqtts://localhost:{port}"), version)
    };
    let broker = Mosquitto::start(tempdir().unwrap(), &listener);
    for version in VERSIONS {
        let config = good(broker.port(), version);
        let source = subscribed(&config);
        let publisher = publisher(&source, &config);
        source.runtime.block_on(publisher.publish(TOPIC, "{a}")).unwrap();
        source.log.wait_for(1);

        let without = MqttConfig {
            client_id: "nameless".into(),
            client_cert_file: None,
            client_key_file: None,
            ..config.clone()
        };
        let wrong = MqttConfig {
            client_id: "mistrusting".into(),
            ca_file: Some(stranger.path().join("ca.pem")),
            ..config.clone()
        };
        for config in [without, wrong] {
            let source = Running::start_with(&config);
            wait_until("it fails", || source.counter("frostline_mqtt_connection_errors_total", None) >= 2);
            assert!(source.broker_health().is_err());
            assert_eq!(source.counter("frostline_mqtt_connections_total", None), 0, "{version:?}");
        }
    }
}
