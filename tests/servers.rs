//! The servers that the end-to-end tests run are the real ones, and the helpers that run them keep their word.

#[path = "support/servers.rs"]
#[expect(dead_code, reason = "the helpers are for other tests too")]
mod servers;

use rumqttc::{Client, Connection, Event, MqttOptions, Packet, QoS};
use servers::{Influx, Mosquitto, PATIENCE, VictoriaMetrics, http, wait_until};

#[test]
fn mosquitto_is_real_and_keeps_what_it_had_when_stopped() {
    let version = Mosquitto::version();
    eprintln!("{version}");
    assert!(version.starts_with("mosquitto version 2."), "{version}");

    let mut broker = Mosquitto::start("max_queued_messages 0");
    let (client, mut connection) = connect(&broker);
    client.publish("shelf", QoS::AtLeastOnce, true, "milk").expect("the client takes requests");
    wait_for(&mut connection, |packet| matches!(packet, Packet::PubAck(_)));

    broker.server.stop();
    broker.server.start();

    let (client, mut connection) = connect(&broker);
    client.subscribe("shelf", QoS::AtLeastOnce).expect("the client takes requests");
    wait_for(&mut connection, |packet| matches!(packet, Packet::Publish(publish) if publish.payload == "milk"));
}

#[test]
fn victoria_metrics_is_real_and_keeps_what_it_had_when_stopped() {
    let version = VictoriaMetrics::version();
    eprintln!("{version}");
    assert!(version.starts_with("victoria-metrics") && version.contains("1."), "{version}");

    let mut database = VictoriaMetrics::start();
    // The second writes the first again, as a resend does.
    for _ in 0..2 {
        let line = b"temperature,operator=op1,unit=u1 value=-18.42 1795427999123";
        http(database.server.address(), "POST", "/api/v2/write?precision=ms", &[], line).expect_status(204);
    }
    database.server.stop();
    database.server.start();

    let samples = database.samples(r#"{operator="op1"}"#);
    assert_eq!(samples.len(), 1, "{samples:?}");
    assert_eq!((samples[0].name.as_str(), samples[0].time_ms), ("temperature_value", 1_795_427_999_123));
    assert_eq!((samples[0].labels["unit"].as_str(), samples[0].value), ("u1", -18.42));
}

#[test]
fn influxdb_is_real_and_keeps_what_it_had_accepted_when_killed() {
    let version = Influx::version();
    eprintln!("{version}");
    assert!(version.starts_with("InfluxDB v2.") || version.starts_with("InfluxDB 2."), "{version}");

    let mut database = Influx::start();
    let path = format!("/api/v2/write?org={}&bucket={}&precision=ms", Influx::ORG, Influx::BUCKET);
    let lines = b"temperature,unit=u1 value=-18.42 1795427999123\ntemperature,unit=u2 failed=true 1795427999124";
    database.request("POST", &path, "text/plain", lines).expect_status(204);
    database.server.kill();
    database.server.start();

    let mut rows = database.points("temperature");
    assert_eq!(rows.len(), 2, "{rows:?}");
    rows.sort_by_key(|row| row["unit"].clone());
    assert_eq!((rows[0]["_field"].as_str(), rows[0]["_value"].as_str()), ("value", "-18.42"));
    assert_eq!((rows[1]["_field"].as_str(), rows[1]["_value"].as_str()), ("failed", "true"));
    assert_eq!(rows[0]["_time"], "2026-11-23T09:59:59.123Z");
}

/// What the README says of a broker's queue, and that the configuration we ship changes it.
#[test]
fn mosquitto_drops_all_but_a_thousand_messages_unless_it_is_configured_as_we_ship_it() {
    queue_for_an_absent_subscriber("", 1_000);

    let shipped = include_str!("../config/mosquitto/mosquitto.conf");
    // The place in the container is not there, and the listener is the helper's.
    let queue_settings: Vec<&str> = shipped
        .lines()
        .filter(|line| !line.starts_with("listener") && !line.starts_with("persistence_location"))
        .collect();
    queue_for_an_absent_subscriber(&queue_settings.join("\n"), 5_000);
}

/// Publishes 5,000 messages while their subscriber is away, and checks that it gets these first ones of them and no more.
fn queue_for_an_absent_subscriber(configuration: &str, delivered: usize) {
    let broker = Mosquitto::start(configuration);
    let subscribe = || {
        let mut options = options(&broker, "subscriber");
        options.set_clean_session(false);
        Client::new(options, 10)
    };

    let (subscriber, mut connection) = subscribe();
    subscriber.subscribe("shelf", QoS::AtLeastOnce).expect("the client takes requests");
    wait_for(&mut connection, |packet| matches!(packet, Packet::SubAck(_)));
    drop((subscriber, connection));
    wait_until("the broker has noticed", || broker.server.log().contains("Client subscriber"));

    let (publisher, mut publishing) = Client::new(options(&broker, "publisher"), 6_000);
    for number in 0..5_000 {
        publisher.publish("shelf", QoS::AtLeastOnce, false, number.to_string()).expect("the client takes requests");
    }
    let mut acknowledged = 0;
    wait_for(&mut publishing, |packet| {
        acknowledged += usize::from(matches!(packet, Packet::PubAck(_)));
        acknowledged == 5_000
    });

    let (_subscriber, mut connection) = subscribe();
    for number in 0..delivered {
        assert_eq!(next_payload(&mut connection), number.to_string());
    }
    // Nothing else was waiting: what is published now comes next.
    publisher.publish("shelf", QoS::AtLeastOnce, false, "the next").expect("the client takes requests");
    wait_for(&mut publishing, |packet| matches!(packet, Packet::PubAck(_)));
    assert_eq!(next_payload(&mut connection), "the next");
}

fn next_payload(connection: &mut Connection) -> String {
    let mut payload = String::new();
    wait_for(connection, |packet| match packet {
        Packet::Publish(publish) => {
            payload = String::from_utf8_lossy(&publish.payload).into_owned();
            true
        }
        _ => false,
    });
    payload
}

fn connect(broker: &Mosquitto) -> (Client, Connection) {
    Client::new(options(broker, "outsider"), 10)
}

fn options(broker: &Mosquitto, client_id: &str) -> MqttOptions {
    MqttOptions::new(client_id, "127.0.0.1", broker.server.port())
}

fn wait_for(connection: &mut Connection, mut wanted: impl FnMut(&Packet) -> bool) {
    loop {
        let event = connection.recv_timeout(PATIENCE).expect("the packet comes in time").expect("the broker is there");
        if matches!(event, Event::Incoming(packet) if wanted(&packet)) {
            return;
        }
    }
}
