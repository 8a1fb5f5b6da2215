//! One test at least for each thing that the client library does not do for us.

use std::time::Duration;

use frostline::config::MqttVersion;
use frostline::ingest::OVERSIZE_KEPT_BYTES;
use sha2::{Digest, Sha256};

use crate::harness::{Running, TOPIC, VERSIONS, level, wait_until};
use crate::scripted_broker::{Packet, ScriptedBroker};

const MIB: usize = 1 << 20;

#[test]
fn messages_of_a_dead_connection_do_not_surface_on_the_next_one() {
    for version in VERSIONS {
        let broker = ScriptedBroker::start(level(version));
        let source = Running::start(broker.url(), version);
        let (mut first, _) = broker.accept_subscriber(false);
        wait_until("subscribed", || source.broker_health().is_ok());
        // Five messages and a packet that ends the connection arrive together, so that the library has read the five when it
        // fails.
        let mut bytes: Vec<u8> =
            (1..=5).flat_map(|id| first.publish_packet(id, TOPIC, format!("old {id}").as_bytes())).collect();
        bytes.extend([0xF0, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF]);
        first.send_bytes(&bytes);
        let (mut second, _) = broker.accept_subscriber(true);
        let before = source.log.messages().len();
        second.publish(7, TOPIC, b"new");
        source.log.wait_for(before + 1);
        source.log.make_durable(0, source.log.messages().len());
        second.publish(8, TOPIC, b"newer");
        source.log.wait_for(before + 2);
        source.log.make_durable(before + 1, before + 2);
        assert_eq!([second.read_ack(), second.read_ack()], [7, 8], "{version:?}: only what this connection brought");
        assert_eq!(source.log.payloads()[before..], ["new", "newer"], "{version:?}");
    }
}

#[test]
fn a_late_acknowledgement_never_hits_another_message_of_the_same_packet_id() {
    for version in VERSIONS {
        let broker = ScriptedBroker::start(level(version));
        let source = Running::start(broker.url(), version);
        let (mut first, _) = broker.accept_subscriber(false);
        first.publish(1, TOPIC, b"first");
        source.log.wait_for(1);
        first.close();
        let (mut second, _) = broker.accept_subscriber(true);
        second.publish(1, TOPIC, b"second");
        second.publish(2, TOPIC, b"third");
        source.log.wait_for(3);
        source.log.make_durable(0, 1);
        source.log.make_durable(1, 3);
        assert_eq!([second.read_ack(), second.read_ack()], [1, 2], "{version:?}: each message acknowledged once");
        assert_eq!(source.counter("frostline_mqtt_acks_stale_total", None), 1);
        assert_eq!(source.counter("frostline_mqtt_messages_acknowledged_total", None), 2);
    }
}

#[test]
fn a_redelivery_is_acknowledged_in_its_turn_and_not_journaled_again() {
    for version in VERSIONS {
        let broker = ScriptedBroker::start(level(version));
        let source = Running::start(broker.url(), version);
        let (mut first, _) = broker.accept_subscriber(false);
        first.publish(1, TOPIC, b"{a}");
        first.publish(2, TOPIC, b"{b}");
        source.log.wait_for(2);
        first.close();
        source.log.make_durable(0, 2);
        // Renumbered, and not flagged as sent before.
        let (mut second, _) = broker.accept_subscriber(true);
        second.publish(1, TOPIC, b"{new}");
        second.publish(2, TOPIC, b"{a}");
        second.publish(3, TOPIC, b"{b}");
        // The device's own repeat: the redelivery of that message has been.
        second.publish(4, TOPIC, b"{b}");
        source.log.wait_for(4);
        assert_eq!(source.log.payloads(), ["{a}", "{b}", "{new}", "{b}"], "{version:?}");
        source.log.make_durable(2, 4);
        assert_eq!([(); 4].map(|()| second.read_ack()), [1, 2, 3, 4], "{version:?}: in the order of reception");
        assert_eq!(source.counter("frostline_messages_redelivered_total", None), 2);
        // Those acknowledgements may be lost with the connection too.
        second.close();
        let (mut third, _) = broker.accept_subscriber(true);
        third.publish(9, TOPIC, b"{a}");
        assert_eq!(third.read_ack(), 9);
        assert_eq!(source.log.payloads().len(), 4);
    }
}

#[test]
fn a_message_without_identity_or_repeated_on_one_connection_is_journaled_again() {
    let broker = ScriptedBroker::start(5);
    let source = Running::start(broker.url(), MqttVersion::V5);
    let (mut first, _) = broker.accept_subscriber(false);
    first.publish(1, TOPIC, b"no time");
    first.publish(2, TOPIC, b"{a}");
    first.publish(3, TOPIC, b"{a}");
    source.log.wait_for(3);
    source.log.make_durable(0, 3);
    assert_eq!([first.read_ack(), first.read_ack(), first.read_ack()], [1, 2, 3]);
    first.close();
    let (mut second, _) = broker.accept_subscriber(true);
    second.publish(1, TOPIC, b"no time");
    source.log.wait_for(4);
    assert_eq!(source.log.payloads(), ["no time", "{a}", "{a}", "no time"]);
    assert_eq!(source.counter("frostline_messages_redelivered_total", None), 0);
}

#[test]
fn a_flood_that_is_acknowledged_while_it_comes_in_blocks_nothing_and_breaks_nothing() {
    const MESSAGES: u32 = 400_000;
    for version in VERSIONS {
        let broker = ScriptedBroker::start(level(version));
        let source = Running::start(broker.url(), version);
        // Acknowledged from within the task that polls, while more comes in than goes out.
        source.log.set_durable_at_once();
        let (mut peer, _) = broker.accept_subscriber(false);
        let packet_id = |number| (number % 65_535 + 1) as u16;
        let flood: Vec<u8> = (0..MESSAGES)
            .flat_map(|number| peer.publish_packet(packet_id(number), TOPIC, &number.to_be_bytes()))
            .collect();
        let mut writer = peer.writer();
        let reader = std::thread::spawn(move || (0..MESSAGES).all(|number| peer.read_ack() == packet_id(number)));
        writer.try_send_bytes(&flood);
        assert!(reader.join().unwrap(), "{version:?}: not everything was acknowledged in order");
        assert_eq!(source.counter("frostline_mqtt_connections_total", Some(("client", "source"))), 1);
    }
}

#[test]
fn a_payload_over_the_limit_is_taken_as_its_beginning_and_hash_among_good_ones() {
    let large: Vec<u8> = (0..6 * MIB).map(|index| (index % 251) as u8).collect();
    for version in VERSIONS {
        let broker = ScriptedBroker::start(level(version));
        let source = Running::start(broker.url(), version);
        let (mut peer, _) = broker.accept_subscriber(false);
        peer.publish(1, TOPIC, b"before");
        peer.publish(2, TOPIC, &large);
        peer.publish(3, TOPIC, b"after");
        source.log.wait_for(3);
        source.log.make_durable(0, 3);
        assert_eq!([peer.read_ack(), peer.read_ack(), peer.read_ack()], [1, 2, 3], "{version:?}");
        let messages = source.log.messages();
        assert!(
            messages[1].payload == large[..OVERSIZE_KEPT_BYTES],
            "{version:?}: {} bytes",
            messages[1].payload.len()
        );
        let oversize = messages[1].oversize.as_ref().unwrap();
        assert_eq!(oversize.length, large.len() as u64);
        assert_eq!(oversize.sha256[..], Sha256::digest(&large)[..]);
        assert!(messages[0].oversize.is_none() && messages[2].oversize.is_none());
        assert_eq!(source.counter("frostline_mqtt_messages_oversize_total", None), 1);
    }
}

#[test]
fn a_packet_over_the_limit_does_not_wedge_the_session() {
    let huge = vec![b'x'; 12 * MIB];
    for version in VERSIONS {
        let broker = ScriptedBroker::start(level(version));
        let source = Running::start(broker.url(), version);
        // On MQTT 5 the broker is told the limit and should drop the message; this one does not.
        let told = |limit: u32| (version == MqttVersion::V5).then_some(limit);
        let (mut first, connect) = broker.accept_subscriber(false);
        assert_eq!(connect.packet_bytes_max, told(8 << 20), "{version:?}");
        wait_until("subscribed", || source.broker_health().is_ok());
        let packet = first.publish_packet(1, TOPIC, &huge);
        first.try_send_bytes(&packet);
        let (mut second, connect) = broker.accept_subscriber(true);
        assert_eq!(connect.packet_bytes_max, told(256 << 20), "{version:?}");
        second.publish(1, TOPIC, &huge);
        second.publish(2, TOPIC, b"after");
        source.log.wait_for(2);
        source.log.make_durable(0, 2);
        assert_eq!([second.read_ack(), second.read_ack()], [1, 2], "{version:?}");
        assert_eq!(source.log.messages()[0].oversize.as_ref().unwrap().length, huge.len() as u64);
        assert_eq!(source.counter("frostline_mqtt_connection_errors_total", Some(("kind", "oversize"))), 1);
        second.close();
        let (mut third, connect) = broker.accept_subscriber(true);
        assert_eq!(connect.packet_bytes_max, told(8 << 20), "{version:?}: the limit is back");
        third.try_send_bytes(&packet);
        broker.accept_subscriber(true);
    }
}

#[test]
fn topic_aliases_are_not_offered_and_a_message_without_topic_is_not_taken() {
    let broker = ScriptedBroker::start(5);
    let source = Running::start(broker.url(), MqttVersion::V5);
    let (mut first, connect) = broker.accept_subscriber(false);
    assert_eq!(connect.topic_alias_max, None);
    let alias = [0x23, 0, 1];
    let named = first.publish_packet_with(1, TOPIC, b"{named}", &alias);
    first.send_bytes(&named);
    source.log.wait_for(1);
    let nameless = first.publish_packet_with(2, "", b"{nameless}", &alias);
    first.send_bytes(&nameless);
    // Aliases end with the connection: on the next one the broker has to name the topic.
    let (mut second, _) = broker.accept_subscriber(true);
    second.publish(2, TOPIC, b"{nameless}");
    source.log.wait_for(2);
    assert!(source.log.messages().iter().all(|message| message.topic == TOPIC));
    assert_eq!(source.log.payloads(), ["{named}", "{nameless}"]);
    assert_eq!(source.counter("frostline_mqtt_connection_errors_total", Some(("kind", "protocol"))), 1);
}

#[test]
fn a_message_that_finds_the_log_full_stays_with_the_broker_until_there_is_room() {
    for version in VERSIONS {
        let broker = ScriptedBroker::start(level(version));
        let source = Running::start(broker.url(), version);
        let (mut first, _) = broker.accept_subscriber(false);
        first.publish(1, TOPIC, b"taken");
        source.log.wait_for(1);
        source.log.make_durable(0, 1);
        assert_eq!(first.read_ack(), 1);
        source.log.set_full(true);
        first.publish(2, TOPIC, b"left");
        first.publish(3, TOPIC, b"left too");
        assert_eq!(first.read_to_end(), [], "{version:?}: nothing more is acknowledged");
        wait_until("readiness says why", || {
            source.broker_health() == Err("the journal is full, messages stay with the broker".to_owned())
        });
        source.log.set_full(false);
        let (mut second, _) = broker.accept_subscriber(true);
        second.publish(2, TOPIC, b"left");
        second.publish(3, TOPIC, b"left too");
        source.log.wait_for(3);
        source.log.make_durable(1, 3);
        assert_eq!([second.read_ack(), second.read_ack()], [2, 3], "{version:?}");
        assert_eq!(source.log.payloads(), ["taken", "left", "left too"]);
        assert_eq!(source.broker_health(), Ok("subscribed".to_owned()));
    }
}

/// On tokio's paused clock, which the test moves.
#[tokio::test(start_paused = true)]
async fn attempts_to_connect_come_at_growing_intervals() {
    use frostline::health::Health;
    use frostline::ingest::{Acknowledger, IngestMetrics, Source};

    // A port on which nobody listens: it was free a moment ago, and it stays bound to a socket that does not listen.
    let taken = tokio::net::TcpSocket::new_v4().unwrap();
    taken.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let url = format!("mqtt://{}", taken.local_addr().unwrap());
    let metrics = IngestMetrics::register(&prometheus::Registry::new()).unwrap();
    let acknowledger = Acknowledger::new(metrics.clone());
    let registry = prometheus::Registry::new();
    let counted = IngestMetrics::register(&registry).unwrap();
    let source = Source::new(
        &crate::harness::config(url, MqttVersion::V5),
        vec!["#".to_owned()],
        crate::harness::TestLog::new(acknowledger.clone()),
        acknowledger,
        std::sync::Arc::new(|_, _| true),
        counted,
        Health::default().part("broker"),
    )
    .unwrap();
    let stop = tokio_util::sync::CancellationToken::new();
    let started = tokio::time::Instant::now();
    let task = tokio::spawn(source.run(stop.clone()));
    let failed = || {
        registry
            .gather()
            .iter()
            .find(|family| family.name() == "frostline_mqtt_connection_errors_total")
            .map_or(0.0, |family| family.get_metric().iter().map(|sample| sample.get_counter().get_value()).sum())
    };
    while failed() < 8.0 {
        tokio::time::advance(Duration::from_millis(1)).await;
    }
    // Seven waits, of 0.1 s doubled each time, shortened by half at most.
    assert!(started.elapsed() >= Duration::from_millis(100 * 127 / 2), "{:?}", started.elapsed());
    stop.cancel();
    task.await.unwrap().unwrap();
}

#[test]
fn unanswered_publishes_do_not_hold_up_acknowledgements() {
    use frostline::health::Health;
    use frostline::ingest::PublisherTask;

    for version in VERSIONS {
        let broker = ScriptedBroker::start(level(version));
        let source = Running::start(broker.url(), version);
        let (mut subscriber, subscribing) = broker.accept_subscriber(false);
        let health = Health::default();
        let (publisher, task) = PublisherTask::new(
            &crate::harness::config(broker.url(), version),
            source.metrics.clone(),
            health.part("alerts"),
        )
        .unwrap();
        source.runtime.spawn(task.run(source.stop.clone()));
        let (mut publishing_peer, publishing) = broker.accept();
        assert_ne!(publishing.client_id, subscribing.client_id, "the broker would throw one of them out");
        publishing_peer.accept_session(false);
        for number in 0..150 {
            let publisher = publisher.clone();
            source
                .runtime
                .spawn(async move { publisher.publish("coldchain/v1/op1/u1/alerts", number.to_string()).await });
        }
        // As many as may be in flight are out, and none is ever answered.
        for _ in 0..100 {
            assert!(matches!(publishing_peer.read(), Packet::Publish { qos: 1, .. }));
        }
        subscriber.publish(1, TOPIC, b"{a}");
        source.log.wait_for(1);
        source.log.make_durable(0, 1);
        assert_eq!(subscriber.read_ack(), 1, "{version:?}");
    }
}
