//! Sessions, subscriptions and the stop.

use frostline::config::Secret;
use frostline::config::{MqttConfig, MqttVersion};

use crate::harness::{FILTERS, Running, TOPIC, VERSIONS, config, level, wait_until};
use crate::scripted_broker::{Packet, ScriptedBroker};

#[test]
fn a_lasting_session_is_asked_for_with_the_credentials_configured() {
    for version in VERSIONS {
        let broker = ScriptedBroker::start(level(version));
        let config = MqttConfig {
            username: Some("reader".into()),
            password: Some(Secret::new("0012")),
            ..config(broker.url(), version)
        };
        let source = Running::start_with(&config);
        let (mut peer, connect) = broker.accept();
        assert!(!connect.clean);
        assert_eq!(connect.client_id, "frostline-test");
        assert_eq!(connect.keep_alive_s, 60);
        assert_eq!(connect.username.as_deref(), Some("reader"));
        assert_eq!(connect.password.as_deref(), Some("0012"));
        let only_v5 = |value| (version == MqttVersion::V5).then_some(value);
        assert_eq!(connect.session_expiry_s, only_v5(30 * 86_400));
        assert_eq!(connect.receive_maximum, only_v5(4_096).map(|maximum| maximum as u16));
        peer.accept_session(false);
        let filters = peer.grant_subscription();
        assert_eq!(filters, FILTERS.map(|filter| (filter.to_owned(), 1)), "{version:?}: one request, at qos 1");
        wait_until("subscribed", || source.broker_health() == Ok("subscribed".to_owned()));
    }
}

#[test]
fn a_broker_that_has_lost_the_session_is_subscribed_to_again_and_one_that_has_it_is_not() {
    for version in VERSIONS {
        let broker = ScriptedBroker::start(level(version));
        let source = Running::start(broker.url(), version);
        // A session from an earlier process may lack a filter that is configured now.
        let (mut first, _) = broker.accept();
        first.accept_session(true);
        assert_eq!(first.grant_subscription().len(), 2);
        wait_until("subscribed", || source.broker_health().is_ok());
        first.close();

        let (mut second, _) = broker.accept();
        second.accept_session(true);
        second.publish(1, TOPIC, b"{a}");
        source.log.wait_for(1);
        source.log.make_durable(0, 1);
        assert_eq!(second.read_ack(), 1, "{version:?}: nothing else was sent");
        second.close();

        let (mut third, _) = broker.accept();
        third.accept_session(false);
        assert_eq!(third.grant_subscription().len(), 2, "{version:?}");
        assert_eq!(source.counter("frostline_mqtt_connections_total", None), 3);
        assert_eq!(source.counter("frostline_mqtt_reconnects_total", None), 2);
    }
}

#[test]
fn a_refused_filter_is_told_and_asked_for_again_while_the_others_go_on() {
    for version in VERSIONS {
        let broker = ScriptedBroker::start(level(version));
        let source = Running::start(broker.url(), version);
        let (mut peer, _) = broker.accept();
        peer.accept_session(false);
        let Packet::Subscribe { packet_id, .. } = peer.read() else { panic!("expected a SUBSCRIBE") };
        let not_authorized = if version == MqttVersion::V5 { 0x87 } else { 0x80 };
        peer.answer_subscription(packet_id, &[1, not_authorized]);
        peer.publish(1, TOPIC, b"{a}");
        source.log.wait_for(1);
        source.log.make_durable(0, 1);
        let reason = source.broker_health().unwrap_err();
        assert!(reason.contains(FILTERS[1]) && !reason.contains(FILTERS[0]), "{reason}");
        assert_eq!(source.counter("frostline_mqtt_subscriptions_refused_total", None), 1);
        assert_eq!(peer.read_ack(), 1, "{version:?}");
        assert_eq!(peer.grant_subscription().len(), 2, "{version:?}");
        wait_until("subscribed", || source.broker_health() == Ok("subscribed".to_owned()));
    }
}

#[test]
fn a_refused_connection_is_tried_again_and_readiness_says_why() {
    for version in VERSIONS {
        let broker = ScriptedBroker::start(level(version));
        let source = Running::start(broker.url(), version);
        let not_authorized = if version == MqttVersion::V5 { 0x87 } else { 5 };
        for _ in 0..2 {
            let (mut peer, _) = broker.accept();
            peer.refuse_session(not_authorized);
            assert_eq!(peer.read_to_end(), []);
        }
        let refusals = || source.counter("frostline_mqtt_connection_errors_total", Some(("kind", "refused")));
        wait_until("both refusals are counted", || refusals() == 2);
        wait_until("the reason is told", || {
            source.broker_health().is_err_and(|reason| reason.contains("NotAuthorized"))
        });
        let _peer = broker.accept_subscriber(false);
        wait_until("subscribed", || source.broker_health().is_ok());
    }
}

#[test]
fn messages_are_handed_on_as_they_came_and_acknowledged_in_order_only_when_durable() {
    for version in VERSIONS {
        let broker = ScriptedBroker::start(level(version));
        let source = Running::start(broker.url(), version);
        let (mut peer, _) = broker.accept_subscriber(false);
        peer.publish(3, TOPIC, b"{a}");
        peer.publish_unacknowledged(TOPIC, b"at qos 0");
        let mut kept = peer.publish_packet(1, "coldchain/v1/op1/u1/status", b"");
        kept[0] |= 1;
        peer.send_bytes(&kept);
        source.log.wait_for(3);
        source.log.make_durable(0, 1);
        assert_eq!(peer.read_ack(), 3);
        source.log.make_durable(1, 3);
        assert_eq!(peer.read_ack(), 1, "{version:?}");
        let messages = source.log.messages();
        assert_eq!(messages[2].topic, "coldchain/v1/op1/u1/status");
        assert_eq!(source.log.payloads(), ["{a}", "at qos 0", ""]);
        assert_eq!([0, 1, 2].map(|index: usize| messages[index].retained), [false, false, true]);
        assert!(messages.iter().all(|message| message.oversize.is_none()));
        assert_eq!(source.counter("frostline_mqtt_messages_received_total", None), 3);
        assert_eq!(source.counter("frostline_mqtt_messages_acknowledged_total", None), 2);
    }
}

#[test]
fn a_stop_acknowledges_what_the_log_took_and_then_says_good_bye() {
    for version in VERSIONS {
        let broker = ScriptedBroker::start(level(version));
        let mut source = Running::start(broker.url(), version);
        let (mut peer, _) = broker.accept_subscriber(false);
        peer.publish(1, TOPIC, b"{a}");
        peer.publish(2, TOPIC, b"{b}");
        source.log.wait_for(2);
        source.stop.cancel();
        source.log.make_durable(0, 1);
        assert_eq!(peer.read_ack(), 1);
        source.log.make_durable(1, 2);
        assert_eq!(peer.read_ack(), 2);
        assert_eq!(peer.read(), Packet::Disconnect, "{version:?}");
        peer.close();
        assert!(source.join().is_ok());
    }
}

#[test]
fn a_stop_ends_a_source_that_has_no_broker() {
    let broker = ScriptedBroker::start(5);
    let mut source = Running::start(broker.url(), MqttVersion::V5);
    // Accepted by the system, never answered.
    source.stop.cancel();
    assert!(source.join().is_ok());
}

#[test]
fn a_log_that_has_stopped_stops_the_source() {
    let broker = ScriptedBroker::start(5);
    let mut source = Running::start(broker.url(), MqttVersion::V5);
    let (mut peer, _) = broker.accept_subscriber(false);
    source.log.set_stopped();
    peer.publish(1, TOPIC, b"{a}");
    assert!(source.join().is_err());
    assert_eq!(peer.read_to_end(), [], "nothing was acknowledged");
}
