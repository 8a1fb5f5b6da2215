//! The one place that knows the client library: both protocol versions behind one shape.
//!
//! A [`Client`] and its [`EventLoop`] live for one connection. The library can carry them over, but then events, requests,
//! packet ids and topic aliases of the dead connection come along.

use std::time::Duration;

use bytes::Bytes;
use rumqttc::v5::mqttbytes::QoS as QosV5;
use rumqttc::v5::mqttbytes::v5 as packets_v5;
use rumqttc::{QoS, TlsConfiguration, Transport, v5};

use super::options::ConnectionOptions;
use crate::config::MqttVersion;

/// The largest packet that is taken, and what the broker is told on MQTT 5.
pub(crate) const PACKET_BYTES_MAX: u32 = 8 << 20;

/// The limit of the one connection after a packet over [`PACKET_BYTES_MAX`]: no MQTT packet is larger.
pub(crate) const PACKET_BYTES_ANY: u32 = 256 << 20;

/// How many messages the broker may send ahead of our acknowledgements on MQTT 5.
const RECEIVE_MAXIMUM: u16 = 4_096;

/// How many of our own messages may be unacknowledged.
pub(crate) const PUBLISHES_IN_FLIGHT_MAX: usize = 100;

/// How many acknowledgements the acknowledger lets the client's channel hold: each takes some hundred bytes there.
pub(crate) const ACKS_QUEUED_MAX: usize = 8_192;

/// Far more than is ever queued, so that a request finds room.
const REQUESTS_MAX: usize = 131_072;

/// How long the broker keeps the session of a daemon that is away: 30 days.
const SESSION_EXPIRY_S: u32 = 30 * 24 * 3_600;

const KEEP_ALIVE: Duration = Duration::from_secs(60);
const CONNECT_TIMEOUT_S: u64 = 5;

/// Nothing sent or received for more than two keep-alives: the library waits for a peer that takes no bytes.
pub(crate) const STUCK: Duration = Duration::from_secs(150);

/// What happened on a connection.
#[derive(Debug)]
pub(crate) enum Event {
    Connected {
        session_present: bool,
    },
    Message {
        topic: Bytes,
        payload: Bytes,
        retained: bool,
        packet_id: Option<u16>,
    },
    /// For each filter, in order, why it was refused, if it was.
    SubscriptionAnswered(Vec<Option<String>>),
    /// Publishes get their packet ids in the order in which they were asked for.
    PublishSent {
        packet_id: u16,
    },
    PublishAnswered {
        packet_id: u16,
        refused: Option<String>,
    },
    /// One of the acknowledgements that were queued.
    AckSent,
    PingSent,
    DisconnectSent,
    Other,
}

/// Why a connection was not made or has ended.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Failure {
    #[error("a packet of {length} bytes is over the limit")]
    Oversize { length: usize },
    #[error("the broker refused the connection: {0}")]
    Refused(String),
    #[error("the broker ended the connection: {0}")]
    Ended(String),
    #[error("the broker does not answer")]
    Timeout,
    #[error("tls: {0}")]
    Tls(String),
    #[error("network: {0}")]
    Network(String),
    #[error("protocol: {0}")]
    Protocol(String),
    #[error("acknowledgements pile up faster than the broker takes them")]
    AckBacklog,
    #[error("the journal is full, messages stay with the broker")]
    LogFull,
}

impl Failure {
    /// Returns the label under which it is counted.
    pub(crate) fn kind(&self) -> &'static str {
        match self {
            Self::Oversize { .. } => "oversize",
            Self::Refused(_) => "refused",
            Self::Ended(_) => "ended",
            Self::Timeout => "timeout",
            Self::Tls(_) => "tls",
            Self::Network(_) => "network",
            Self::Protocol(_) => "protocol",
            Self::AckBacklog => "ack_backlog",
            Self::LogFull => "log_full",
        }
    }
}

/// The channel of requests has no room.
#[derive(Debug)]
pub(crate) struct RequestsFull;

/// Asks for things to be sent; never waits.
#[derive(Debug, Clone)]
pub(crate) enum Client {
    V4(rumqttc::AsyncClient),
    V5(v5::AsyncClient),
}

/// Does the sending and receiving, as long as it is polled.
pub(crate) enum EventLoop {
    V4(Box<rumqttc::EventLoop>),
    V5(Box<v5::EventLoop>),
}

/// What a client is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Session {
    /// Kept by the broker while we are away; packets up to the limit are taken.
    Persistent { packet_bytes_max: u32 },
    /// Ends with the connection.
    Clean,
}

/// Prepares one connection; it is made by the first poll.
pub(crate) fn prepare(options: &ConnectionOptions, session: Session) -> (Client, EventLoop) {
    let packet_bytes_max = match session {
        Session::Persistent { packet_bytes_max } => packet_bytes_max,
        Session::Clean => PACKET_BYTES_MAX,
    };
    let transport = match &options.tls {
        Some(config) => Transport::tls_with_config(TlsConfiguration::Rustls(config.clone())),
        None => Transport::tcp(),
    };
    match options.version {
        MqttVersion::V4 => {
            let mut mqtt = rumqttc::MqttOptions::new(&options.client_id, &options.host, options.port);
            mqtt.set_transport(transport)
                .set_keep_alive(KEEP_ALIVE)
                .set_clean_session(session == Session::Clean)
                .set_manual_acks(true)
                .set_inflight(PUBLISHES_IN_FLIGHT_MAX as u16)
                .set_max_packet_size(packet_bytes_max as usize, PACKET_BYTES_MAX as usize);
            if let Some((username, password)) = &options.credentials {
                mqtt.set_credentials(username, password.expose());
            }
            let (client, mut event_loop) = rumqttc::AsyncClient::new(mqtt, REQUESTS_MAX);
            event_loop.network_options.set_tcp_nodelay(true);
            event_loop.network_options.set_connection_timeout(CONNECT_TIMEOUT_S);
            (Client::V4(client), EventLoop::V4(Box::new(event_loop)))
        }
        MqttVersion::V5 => {
            let mut network = rumqttc::NetworkOptions::new();
            network.set_tcp_nodelay(true);
            let mut mqtt = v5::MqttOptions::new(&options.client_id, &options.host, options.port);
            mqtt.set_transport(transport)
                .set_network_options(network)
                .set_connection_timeout(CONNECT_TIMEOUT_S)
                .set_keep_alive(KEEP_ALIVE)
                .set_clean_start(session == Session::Clean)
                .set_manual_acks(true)
                .set_outgoing_inflight_upper_limit(PUBLISHES_IN_FLIGHT_MAX as u16)
                // Topic aliases stay at none: the library would deliver them as an empty topic.
                .set_max_packet_size(Some(packet_bytes_max))
                .set_receive_maximum(Some(RECEIVE_MAXIMUM));
            if let Session::Persistent { .. } = session {
                mqtt.set_session_expiry_interval(Some(SESSION_EXPIRY_S));
            }
            if let Some((username, password)) = &options.credentials {
                mqtt.set_credentials(username, password.expose());
            }
            let (client, event_loop) = v5::AsyncClient::new(mqtt, REQUESTS_MAX);
            (Client::V5(client), EventLoop::V5(Box::new(event_loop)))
        }
    }
}

impl Client {
    /// Queues the acknowledgement of a message.
    pub(crate) fn acknowledge(&self, packet_id: u16) -> Result<(), RequestsFull> {
        // The library takes a whole message, of which it reads these two fields.
        match self {
            Self::V4(client) => {
                let mut message = rumqttc::Publish::from_bytes(String::new(), QoS::AtLeastOnce, Bytes::new());
                message.pkid = packet_id;
                client.try_ack(&message).map_err(|_| RequestsFull)
            }
            Self::V5(client) => {
                let message =
                    packets_v5::Publish { pkid: packet_id, qos: QosV5::AtLeastOnce, ..packets_v5::Publish::default() };
                client.try_ack(&message).map_err(|_| RequestsFull)
            }
        }
    }

    /// Queues one subscription to all filters at QoS 1.
    pub(crate) fn subscribe(&self, filters: &[String]) -> Result<(), RequestsFull> {
        match self {
            Self::V4(client) => client
                .try_subscribe_many(
                    filters.iter().map(|filter| rumqttc::SubscribeFilter::new(filter.clone(), QoS::AtLeastOnce)),
                )
                .map_err(|_| RequestsFull),
            Self::V5(client) => client
                .try_subscribe_many(
                    filters.iter().map(|filter| packets_v5::Filter::new(filter.clone(), QosV5::AtLeastOnce)),
                )
                .map_err(|_| RequestsFull),
        }
    }

    /// Queues a message at QoS 1, not retained.
    pub(crate) fn publish(&self, topic: String, payload: Bytes) -> Result<(), RequestsFull> {
        match self {
            Self::V4(client) => client.try_publish(topic, QoS::AtLeastOnce, false, payload).map_err(|_| RequestsFull),
            Self::V5(client) => client.try_publish(topic, QosV5::AtLeastOnce, false, payload).map_err(|_| RequestsFull),
        }
    }

    /// Queues the end of the connection, behind everything queued before.
    pub(crate) fn disconnect(&self) -> Result<(), RequestsFull> {
        match self {
            Self::V4(client) => client.try_disconnect().map_err(|_| RequestsFull),
            Self::V5(client) => client.try_disconnect().map_err(|_| RequestsFull),
        }
    }
}

impl EventLoop {
    /// Connects where there is no connection yet, sends what is queued and returns what happens next.
    ///
    /// To drop the future is to drop a request that it may hold: do so only with the event loop.
    pub(crate) async fn poll(&mut self) -> Result<Event, Failure> {
        match self {
            Self::V4(event_loop) => event_from_v4(event_loop.poll().await.map_err(failure_from_v4)?),
            Self::V5(event_loop) => event_from_v5(event_loop.poll().await.map_err(failure_from_v5)?),
        }
    }
}

fn event_from_v4(event: rumqttc::Event) -> Result<Event, Failure> {
    use rumqttc::{ConnectReturnCode, Outgoing, Packet, SubscribeReasonCode};
    Ok(match event {
        rumqttc::Event::Incoming(Packet::Publish(message)) => Event::Message {
            packet_id: packet_id_of(message.pkid, message.qos == QoS::ExactlyOnce)?,
            topic: message.topic.into(),
            payload: message.payload,
            retained: message.retain,
        },
        rumqttc::Event::Incoming(Packet::ConnAck(answer)) => match answer.code {
            ConnectReturnCode::Success => Event::Connected { session_present: answer.session_present },
            code => return Err(Failure::Refused(format!("{code:?}"))),
        },
        rumqttc::Event::Incoming(Packet::SubAck(answer)) => Event::SubscriptionAnswered(
            answer
                .return_codes
                .into_iter()
                .map(|code| match code {
                    SubscribeReasonCode::Success(_) => None,
                    SubscribeReasonCode::Failure => Some("failure".to_owned()),
                })
                .collect(),
        ),
        rumqttc::Event::Incoming(Packet::PubAck(answer)) => {
            Event::PublishAnswered { packet_id: answer.pkid, refused: None }
        }
        rumqttc::Event::Outgoing(Outgoing::Publish(packet_id)) => Event::PublishSent { packet_id },
        rumqttc::Event::Outgoing(Outgoing::PubAck(_)) => Event::AckSent,
        rumqttc::Event::Outgoing(Outgoing::PingReq) => Event::PingSent,
        rumqttc::Event::Outgoing(Outgoing::Disconnect) => Event::DisconnectSent,
        _ => Event::Other,
    })
}

fn event_from_v5(event: v5::Event) -> Result<Event, Failure> {
    use packets_v5::{ConnectReturnCode, Packet, PubAckReason, SubscribeReasonCode};
    use rumqttc::Outgoing;
    Ok(match event {
        v5::Event::Incoming(Packet::Publish(message)) => Event::Message {
            packet_id: packet_id_of(message.pkid, message.qos == QosV5::ExactlyOnce)?,
            topic: message.topic,
            payload: message.payload,
            retained: message.retain,
        },
        v5::Event::Incoming(Packet::ConnAck(answer)) => match answer.code {
            ConnectReturnCode::Success => Event::Connected { session_present: answer.session_present },
            code => return Err(Failure::Refused(format!("{code:?}"))),
        },
        v5::Event::Incoming(Packet::SubAck(answer)) => Event::SubscriptionAnswered(
            answer
                .return_codes
                .into_iter()
                .map(|code| match code {
                    SubscribeReasonCode::Success(_) => None,
                    code => Some(format!("{code:?}")),
                })
                .collect(),
        ),
        v5::Event::Incoming(Packet::PubAck(answer)) => Event::PublishAnswered {
            packet_id: answer.pkid,
            refused: match answer.reason {
                PubAckReason::Success | PubAckReason::NoMatchingSubscribers => None,
                reason => Some(format!("{reason:?}")),
            },
        },
        v5::Event::Outgoing(Outgoing::Publish(packet_id)) => Event::PublishSent { packet_id },
        v5::Event::Outgoing(Outgoing::PubAck(_)) => Event::AckSent,
        v5::Event::Outgoing(Outgoing::PingReq) => Event::PingSent,
        v5::Event::Outgoing(Outgoing::Disconnect) => Event::DisconnectSent,
        _ => Event::Other,
    })
}

/// Returns the id by which a message is to be acknowledged: none at QoS 0.
fn packet_id_of(packet_id: u16, exactly_once: bool) -> Result<Option<u16>, Failure> {
    if exactly_once {
        return Err(Failure::Protocol("a message at qos 2 on a subscription at qos 1".to_owned()));
    }
    Ok((packet_id != 0).then_some(packet_id))
}

fn failure_from_v4(error: rumqttc::ConnectionError) -> Failure {
    use rumqttc::{ConnectionError, Error as CodecError, StateError};
    match error {
        ConnectionError::NetworkTimeout | ConnectionError::FlushTimeout => Failure::Timeout,
        ConnectionError::Tls(error) => Failure::Tls(error.to_string()),
        ConnectionError::Io(error) => Failure::Network(error.to_string()),
        ConnectionError::ConnectionRefused(code) => Failure::Refused(format!("{code:?}")),
        ConnectionError::MqttState(error) => match error {
            StateError::Deserialization(CodecError::PayloadSizeLimitExceeded(length)) => Failure::Oversize { length },
            StateError::Deserialization(CodecError::Io(error)) => Failure::Network(error.to_string()),
            StateError::Io(error) => Failure::Network(error.to_string()),
            StateError::ConnectionAborted => Failure::Network("closed by the broker".to_owned()),
            StateError::AwaitPingResp => Failure::Timeout,
            error => Failure::Protocol(error.to_string()),
        },
        error => Failure::Protocol(error.to_string()),
    }
}

fn failure_from_v5(error: v5::ConnectionError) -> Failure {
    use rumqttc::v5::mqttbytes::Error as CodecError;
    use rumqttc::v5::{ConnectionError, StateError};
    match error {
        ConnectionError::Timeout(_) => Failure::Timeout,
        ConnectionError::Tls(error) => Failure::Tls(error.to_string()),
        ConnectionError::Io(error) => Failure::Network(error.to_string()),
        ConnectionError::ConnectionRefused(code) => Failure::Refused(format!("{code:?}")),
        ConnectionError::MqttState(error) => match error {
            StateError::Deserialization(CodecError::PayloadSizeLimitExceeded { pkt_size, .. }) => {
                Failure::Oversize { length: pkt_size }
            }
            StateError::Deserialization(CodecError::Io(error)) => Failure::Network(error.to_string()),
            StateError::Io(error) => Failure::Network(error.to_string()),
            StateError::ConnectionAborted => Failure::Network("closed by the broker".to_owned()),
            StateError::AwaitPingResp => Failure::Timeout,
            StateError::ServerDisconnect { reason_code, .. } => Failure::Ended(format!("{reason_code:?}")),
            error => Failure::Protocol(error.to_string()),
        },
        error => Failure::Protocol(error.to_string()),
    }
}
