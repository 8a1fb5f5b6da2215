//! The publisher: one answer for every message.

use frostline::config::MqttVersion;
use frostline::health::Health;
use frostline::ingest::{IngestMetrics, PublishError, Publisher, PublisherTask};
use prometheus::Registry;
use tokio::runtime::Runtime;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::harness::{VERSIONS, config, level};
use crate::scripted_broker::{PATIENCE, Packet, ScriptedBroker};

const TOPIC: &str = "coldchain/v1/op1/u1/alerts";

struct Publishing {
    publisher: Publisher,
    stop: CancellationToken,
    runtime: Runtime,
}

impl Publishing {
    fn start(broker: &ScriptedBroker, version: MqttVersion) -> Self {
        let metrics = IngestMetrics::register(&Registry::new()).unwrap();
        let (publisher, task) =
            PublisherTask::new(&config(broker.url(), version), metrics, Health::default().part("alerts")).unwrap();
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let stop = CancellationToken::new();
        runtime.spawn(task.run(stop.clone()));
        Self { publisher, stop, runtime }
    }

    fn publish(&self, payload: &'static str) -> JoinHandle<Result<(), PublishError>> {
        let publisher = self.publisher.clone();
        self.runtime.spawn(async move { publisher.publish(TOPIC, payload).await })
    }

    fn answer(&self, publish: JoinHandle<Result<(), PublishError>>) -> Result<(), PublishError> {
        self.runtime.block_on(async { tokio::time::timeout(PATIENCE, publish).await }).expect("an answer").unwrap()
    }
}

impl Drop for Publishing {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

fn read_publish(peer: &mut crate::scripted_broker::Peer) -> (u16, String) {
    match peer.read() {
        Packet::Publish { packet_id, qos: 1, retain: false, topic, payload } if topic == TOPIC => {
            (packet_id, String::from_utf8(payload).unwrap())
        }
        other => panic!("expected a PUBLISH, found {other:?}"),
    }
}

#[test]
fn each_publish_is_answered_by_its_own_acknowledgement() {
    for version in VERSIONS {
        let broker = ScriptedBroker::start(level(version));
        let publishing = Publishing::start(&broker, version);
        let (mut peer, connect) = broker.accept();
        assert!(connect.clean);
        assert_eq!(connect.client_id, "frostline-test-alerts");
        peer.accept_session(false);
        let one = publishing.publish("one");
        let (one_id, payload) = read_publish(&mut peer);
        assert_eq!(payload, "one");
        let two = publishing.publish("two");
        let (two_id, payload) = read_publish(&mut peer);
        assert_eq!(payload, "two");
        // A broker may answer in any order.
        peer.acknowledge(two_id);
        assert_eq!(publishing.answer(two), Ok(()), "{version:?}");
        assert!(!one.is_finished());
        peer.acknowledge(one_id);
        assert_eq!(publishing.answer(one), Ok(()), "{version:?}");
    }
}

#[test]
fn a_publish_on_a_connection_that_breaks_is_lost_and_the_next_one_goes_through() {
    for version in VERSIONS {
        let broker = ScriptedBroker::start(level(version));
        let publishing = Publishing::start(&broker, version);
        let (mut first, _) = broker.accept();
        first.accept_session(false);
        let lost = publishing.publish("lost");
        read_publish(&mut first);
        first.close();
        assert!(matches!(publishing.answer(lost), Err(PublishError::Lost(_))), "{version:?}");
        let (mut second, _) = broker.accept();
        second.accept_session(false);
        let next = publishing.publish("next");
        let (packet_id, payload) = read_publish(&mut second);
        assert_eq!(payload, "next", "{version:?}: the lost one is whose it was to send again");
        second.acknowledge(packet_id);
        assert_eq!(publishing.answer(next), Ok(()));
    }
}

#[test]
fn what_the_broker_refuses_and_what_cannot_be_sent_is_told_apart() {
    let broker = ScriptedBroker::start(5);
    let publishing = Publishing::start(&broker, MqttVersion::V5);
    let (mut peer, _) = broker.accept();
    peer.accept_session(false);
    let refused = publishing.publish("refused");
    let (packet_id, _) = read_publish(&mut peer);
    peer.refuse_publish(packet_id, 0x87);
    assert_eq!(publishing.answer(refused), Err(PublishError::Refused("NotAuthorized".to_owned())));
    for topic in ["", "coldchain/#", "coldchain/+/alerts"] {
        let answer = publishing.runtime.block_on(publishing.publisher.publish(topic, "x"));
        assert_eq!(answer, Err(PublishError::Topic(topic.to_owned())));
    }
    publishing.stop.cancel();
    let late = publishing.publish("late");
    assert_eq!(publishing.answer(late), Err(PublishError::Stopped));
}
