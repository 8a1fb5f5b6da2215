//! Everything that cannot be used is found again, with the reason that the contract gives it.

use std::collections::BTreeMap;

use serde_json::Value;

use crate::daemon::Daemon;
use crate::publisher::{Message, Publisher};
use crate::scene::Database;
use crate::servers::{Influx, Mosquitto, wait_until};

const NOW: &str = "{NOW}";

#[test]
fn every_reason_for_a_dead_letter_is_listed_once() {
    let broker = Mosquitto::start("max_queued_messages 0");
    let influx = Influx::start();
    // The field is an integer here, for ever: InfluxDB refuses our floats for this measurement, and no others.
    let path = format!("/api/v2/write?org={}&bucket={}&precision=ms", Influx::ORG, Influx::BUCKET);
    let integer = b"battery,operator=op1,unit=u1,sensor=first value=1i 1795427999123";
    influx.request("POST", &path, "text/plain", integer).expect_status(204);
    let database = Database::Influx(influx);

    let settings = format!(
        "mqtt.url = \"{}\"\ningest.unknown_units = \"refuse\"\n{}",
        broker.url(),
        database.settings(&database.url(), "1s")
    );
    let mut daemon = Daemon::new(None, &settings, "");
    daemon.write_config(
        "fleet.toml",
        "[[operator]]\nid = \"op1\"\nname = \"One\"\n[[unit]]\nid = \"u1\"\noperator = \"op1\"\nkind = \"storage\"\n",
    );
    // The second filter also takes topics that name no unit.
    daemon.write_config(
        "routes.toml",
        "[[route]]\nfilter = \"coldchain/v1/+/+/telemetry\"\ncodec = \"native\"\n\
         [[route]]\nfilter = \"elsewhere/#\"\ncodec = \"native\"\n",
    );
    daemon.start();

    let now_ms = now_ms();
    let reading = |kind: &str, value: &str| {
        format!("{{\"ts\":{NOW},\"readings\":[{{\"sensor\":\"s\",\"kind\":\"{kind}\",\"value\":{value}}}]}}")
    };
    let u1 = "coldchain/v1/op1/u1/telemetry";
    let cases = [
        ("malformed", u1, "{\"ts\":".to_owned()),
        ("schema", u1, reading("smell", "1")),
        ("range", u1, reading("temperature", "-100.1")),
        ("future", u1, reading("temperature", "1").replace(NOW, &(now_ms + 3_600_000).to_string())),
        ("past", u1, reading("temperature", "1").replace(NOW, &(now_ms - 401 * 86_400_000).to_string())),
        // This one is good, and the next contradicts it.
        ("", u1, reading("temperature", "1")),
        ("conflict", u1, reading("temperature", "2")),
        ("unregistered", "coldchain/v1/op1/stranger/telemetry", reading("temperature", "1")),
        ("topic", "elsewhere/thing", reading("temperature", "1")),
        ("oversize", u1, format!("{}{}", reading("temperature", "3"), " ".repeat(5 << 20))),
        ("refused", u1, reading("battery", "55.5")),
    ];
    let publisher = Publisher::start(broker.server.address());
    publisher.publish(cases.iter().map(|(_, topic, payload)| Message {
        topic: (*topic).to_owned(),
        payload: payload.replace(NOW, &now_ms.to_string()).into_bytes(),
    }));
    publisher.wait_for_confirmations();

    let expected: BTreeMap<String, usize> =
        cases.iter().filter(|(reason, ..)| !reason.is_empty()).map(|(reason, ..)| ((*reason).to_owned(), 1)).collect();
    let mut found = BTreeMap::new();
    wait_until("every dead letter is listed", || {
        daemon.expect_alive();
        found = reasons(&daemon.get_json("/api/v1/dead-letters?limit=1000"));
        found.values().sum::<usize>() >= expected.values().sum()
    });
    assert_eq!(found, expected);
    for reason in expected.keys() {
        let listed = reasons(&daemon.get_json(&format!("/api/v1/dead-letters?reason={reason}")));
        assert_eq!(listed, BTreeMap::from([(reason.clone(), 1)]));
    }

    let refused = daemon.get_json("/api/v1/dead-letters?reason=refused");
    let detail = refused["items"][0]["detail"].as_str().expect("it says why");
    assert!(detail.contains("field type conflict"), "{detail}");
    let oversize = daemon.get_json("/api/v1/dead-letters?reason=oversize");
    assert_eq!(
        oversize["items"][0]["length"].as_u64(),
        Some(cases[9].2.replace(NOW, &now_ms.to_string()).len() as u64)
    );
    // What the database refused is stored all the same, and what it did not refuse is there.
    assert_eq!(daemon.metric("frostline_readings_stored_total"), 2.0);
    wait_until("the good reading is in the database", || database.readings().len() == 1);
    daemon.stop();
    eprintln!("dead letters: {found:?}");
}

fn reasons(list: &Value) -> BTreeMap<String, usize> {
    let mut reasons = BTreeMap::new();
    for item in list["items"].as_array().expect("a list") {
        *reasons.entry(item["reason"].as_str().expect("a reason").to_owned()).or_default() += 1;
    }
    reasons
}

/// Returns the time of day, which is what the daemon compares with.
pub(crate) fn now_ms() -> i64 {
    use frostline::clock::{Clock, SystemClock};
    SystemClock.now().as_millis()
}
