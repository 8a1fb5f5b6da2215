//! A broker whose every packet the test writes itself: raw TCP, just enough of MQTT 3.1.1 and 5.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::time::{Duration, Instant};

/// How long anything awaited may take before the test fails.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// Listens on a free port of the loopback.
pub(crate) struct ScriptedBroker {
    listener: TcpListener,
    version: u8,
}

/// One connection to it.
pub(crate) struct Peer {
    stream: TcpStream,
    version: u8,
    /// Bytes read and not yet taken apart.
    unread: Vec<u8>,
}

/// What a client sends, as far as the tests look at it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Packet {
    Connect(Connect),
    Subscribe { packet_id: u16, filters: Vec<(String, u8)> },
    Publish { packet_id: u16, qos: u8, retain: bool, topic: String, payload: Vec<u8> },
    PubAck { packet_id: u16 },
    PingRequest,
    Disconnect,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Connect {
    pub(crate) level: u8,
    pub(crate) clean: bool,
    pub(crate) keep_alive_s: u16,
    pub(crate) client_id: String,
    pub(crate) username: Option<String>,
    pub(crate) password: Option<String>,
    pub(crate) session_expiry_s: Option<u32>,
    pub(crate) receive_maximum: Option<u16>,
    pub(crate) packet_bytes_max: Option<u32>,
    pub(crate) topic_alias_max: Option<u16>,
}

impl ScriptedBroker {
    /// Starts to listen for clients of a protocol level: 4 or 5.
    pub(crate) fn start(version: u8) -> Self {
        Self { listener: TcpListener::bind("127.0.0.1:0").unwrap(), version }
    }

    pub(crate) fn url(&self) -> String {
        format!("mqtt://{}", self.listener.local_addr().unwrap())
    }

    /// Waits for a client and its CONNECT.
    pub(crate) fn accept(&self) -> (Peer, Connect) {
        self.listener.set_nonblocking(true).unwrap();
        let deadline = Instant::now() + PATIENCE;
        let stream = loop {
            match self.listener.accept() {
                Ok((stream, _)) => break stream,
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    assert!(Instant::now() < deadline, "no client connected");
                    std::thread::yield_now();
                }
                Err(error) => panic!("accept: {error}"),
            }
        };
        stream.set_nonblocking(false).unwrap();
        stream.set_nodelay(true).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_write_timeout(Some(PATIENCE)).unwrap();
        let mut peer = Peer { stream, version: self.version, unread: Vec::new() };
        match peer.read() {
            Packet::Connect(connect) => {
                assert_eq!(connect.level, self.version);
                (peer, connect)
            }
            other => panic!("expected a CONNECT, found {other:?}"),
        }
    }

    /// Takes a client in, with or without a session, and grants what it subscribes to.
    pub(crate) fn accept_subscriber(&self, session_present: bool) -> (Peer, Connect) {
        let (mut peer, connect) = self.accept();
        peer.accept_session(session_present);
        if !session_present {
            peer.grant_subscription();
        }
        (peer, connect)
    }
}

impl Peer {
    pub(crate) fn accept_session(&mut self, session_present: bool) {
        let mut body = vec![u8::from(session_present), 0];
        self.push_no_properties(&mut body);
        self.send(0x20, &body);
    }

    pub(crate) fn refuse_session(&mut self, code: u8) {
        let mut body = vec![0, code];
        self.push_no_properties(&mut body);
        self.send(0x20, &body);
    }

    /// Reads a SUBSCRIBE, grants every filter and returns them.
    pub(crate) fn grant_subscription(&mut self) -> Vec<(String, u8)> {
        let Packet::Subscribe { packet_id, filters } = self.read() else { panic!("expected a SUBSCRIBE") };
        self.answer_subscription(packet_id, &vec![1; filters.len()]);
        filters
    }

    pub(crate) fn answer_subscription(&mut self, packet_id: u16, codes: &[u8]) {
        let mut body = packet_id.to_be_bytes().to_vec();
        self.push_no_properties(&mut body);
        body.extend(codes);
        self.send(0x90, &body);
    }

    /// Sends a message at QoS 1.
    pub(crate) fn publish(&mut self, packet_id: u16, topic: &str, payload: &[u8]) {
        let packet = self.publish_packet(packet_id, topic, payload);
        self.send_bytes(&packet);
    }

    /// Returns a message at QoS 1 as it goes over the wire, never flagged as a redelivery.
    pub(crate) fn publish_packet(&self, packet_id: u16, topic: &str, payload: &[u8]) -> Vec<u8> {
        self.publish_packet_with(packet_id, topic, payload, &[])
    }

    /// Likewise, with properties (MQTT 5 only).
    pub(crate) fn publish_packet_with(
        &self,
        packet_id: u16,
        topic: &str,
        payload: &[u8],
        properties: &[u8],
    ) -> Vec<u8> {
        let mut body = Vec::with_capacity(payload.len() + topic.len() + 8);
        push_text(&mut body, topic);
        body.extend(packet_id.to_be_bytes());
        if self.version == 5 {
            body.push(u8::try_from(properties.len()).unwrap());
            body.extend(properties);
        }
        body.extend(payload);
        packet(0x32, &body)
    }

    /// Sends a message at QoS 0.
    pub(crate) fn publish_unacknowledged(&mut self, topic: &str, payload: &[u8]) {
        let mut body = Vec::new();
        push_text(&mut body, topic);
        self.push_no_properties(&mut body);
        body.extend(payload);
        self.send(0x30, &body);
    }

    pub(crate) fn acknowledge(&mut self, packet_id: u16) {
        self.send(0x40, &packet_id.to_be_bytes());
    }

    /// Refuses a publish (MQTT 5 only).
    pub(crate) fn refuse_publish(&mut self, packet_id: u16, reason: u8) {
        let [high, low] = packet_id.to_be_bytes();
        self.send(0x40, &[high, low, reason]);
    }

    pub(crate) fn send_bytes(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).unwrap();
    }

    /// Sends as much as the client takes: it may drop the connection in between. Returns whether it took all.
    pub(crate) fn try_send_bytes(&mut self, bytes: &[u8]) -> bool {
        self.stream.write_all(bytes).is_ok()
    }

    /// Returns another handle to the same connection, to write while this one reads.
    pub(crate) fn writer(&self) -> Peer {
        Peer { stream: self.stream.try_clone().unwrap(), version: self.version, unread: Vec::new() }
    }

    /// Ends the connection for both directions.
    pub(crate) fn close(self) {
        // The client may have been first.
        self.stream.shutdown(Shutdown::Both).ok();
    }

    /// Waits for the next packet but pings, which it answers.
    pub(crate) fn read(&mut self) -> Packet {
        self.try_read().expect("the client closed the connection")
    }

    /// Likewise; none once the client has closed the connection.
    pub(crate) fn try_read(&mut self) -> Option<Packet> {
        loop {
            if let Some((first, body)) = self.take_packet() {
                match parse(first, &body, self.version) {
                    Packet::PingRequest => self.send(0xD0, &[]),
                    packet => return Some(packet),
                }
                continue;
            }
            let mut buffer = [0; 65_536];
            match self.stream.read(&mut buffer) {
                Ok(0) => return None,
                Ok(count) => self.unread.extend_from_slice(&buffer[..count]),
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                    panic!("nothing came from the client for {PATIENCE:?}")
                }
                Err(_) => return None,
            }
        }
    }

    /// Waits for the next packet, which must be an acknowledgement, and returns its packet id.
    pub(crate) fn read_ack(&mut self) -> u16 {
        match self.read() {
            Packet::PubAck { packet_id } => packet_id,
            other => panic!("expected a PUBACK, found {other:?}"),
        }
    }

    /// Reads until the client closes the connection and returns what came before.
    pub(crate) fn read_to_end(mut self) -> Vec<Packet> {
        std::iter::from_fn(|| self.try_read()).collect()
    }

    fn take_packet(&mut self) -> Option<(u8, Vec<u8>)> {
        let (length, header) = remaining_length(self.unread.get(1..)?)?;
        let end = 1 + header + length;
        if self.unread.len() < end {
            return None;
        }
        let rest = self.unread.split_off(end);
        let whole = std::mem::replace(&mut self.unread, rest);
        Some((whole[0], whole[1 + header..].to_vec()))
    }

    fn send(&mut self, first: u8, body: &[u8]) {
        self.send_bytes(&packet(first, body));
    }

    fn push_no_properties(&self, body: &mut Vec<u8>) {
        if self.version == 5 {
            body.push(0);
        }
    }
}

fn packet(first: u8, body: &[u8]) -> Vec<u8> {
    let mut packet = vec![first];
    let mut length = body.len();
    loop {
        let byte = (length & 0x7F) as u8;
        length >>= 7;
        packet.push(if length > 0 { byte | 0x80 } else { byte });
        if length == 0 {
            break;
        }
    }
    packet.extend(body);
    packet
}

/// Returns the variable-length number at the start of `bytes` and how long it is, if it is all there.
fn remaining_length(bytes: &[u8]) -> Option<(usize, usize)> {
    let mut length = 0;
    for (index, byte) in bytes.iter().take(4).enumerate() {
        length |= usize::from(byte & 0x7F) << (7 * index);
        if byte & 0x80 == 0 {
            return Some((length, index + 1));
        }
    }
    None
}

fn push_text(body: &mut Vec<u8>, text: &str) {
    body.extend(u16::try_from(text.len()).unwrap().to_be_bytes());
    body.extend(text.as_bytes());
}

/// Takes a packet's body apart from the front.
struct Body<'a>(&'a [u8]);

impl<'a> Body<'a> {
    fn take(&mut self, count: usize) -> &'a [u8] {
        let (taken, rest) = self.0.split_at(count);
        self.0 = rest;
        taken
    }

    fn u8(&mut self) -> u8 {
        self.take(1)[0]
    }

    fn u16(&mut self) -> u16 {
        u16::from_be_bytes(self.take(2).try_into().unwrap())
    }

    fn u32(&mut self) -> u32 {
        u32::from_be_bytes(self.take(4).try_into().unwrap())
    }

    fn text(&mut self) -> String {
        let length = usize::from(self.u16());
        String::from_utf8(self.take(length).to_vec()).unwrap()
    }

    fn properties(&mut self) -> Body<'a> {
        let (length, header) = remaining_length(self.0).unwrap();
        self.take(header);
        Body(self.take(length))
    }
}

fn parse(first: u8, body: &[u8], version: u8) -> Packet {
    let mut body = Body(body);
    match first >> 4 {
        1 => Packet::Connect(parse_connect(&mut body)),
        3 => {
            let qos = first >> 1 & 3;
            let topic = body.text();
            let packet_id = if qos > 0 { body.u16() } else { 0 };
            if version == 5 {
                body.properties();
            }
            Packet::Publish { packet_id, qos, retain: first & 1 == 1, topic, payload: body.0.to_vec() }
        }
        4 => Packet::PubAck { packet_id: body.u16() },
        8 => {
            let packet_id = body.u16();
            if version == 5 {
                body.properties();
            }
            let mut filters = Vec::new();
            while !body.0.is_empty() {
                let filter = body.text();
                filters.push((filter, body.u8() & 3));
            }
            Packet::Subscribe { packet_id, filters }
        }
        12 => Packet::PingRequest,
        14 => Packet::Disconnect,
        other => panic!("unexpected packet type {other}"),
    }
}

fn parse_connect(body: &mut Body<'_>) -> Connect {
    assert_eq!(body.text(), "MQTT");
    let level = body.u8();
    let flags = body.u8();
    let mut connect = Connect {
        level,
        clean: flags & 2 != 0,
        keep_alive_s: body.u16(),
        client_id: String::new(),
        username: None,
        password: None,
        session_expiry_s: None,
        receive_maximum: None,
        packet_bytes_max: None,
        topic_alias_max: None,
    };
    if level == 5 {
        let mut properties = body.properties();
        while !properties.0.is_empty() {
            match properties.u8() {
                0x11 => connect.session_expiry_s = Some(properties.u32()),
                0x21 => connect.receive_maximum = Some(properties.u16()),
                0x22 => connect.topic_alias_max = Some(properties.u16()),
                0x27 => connect.packet_bytes_max = Some(properties.u32()),
                other => panic!("unexpected property {other:#x} of CONNECT"),
            }
        }
    }
    connect.client_id = body.text();
    connect.username = (flags & 0x80 != 0).then(|| body.text());
    connect.password = (flags & 0x40 != 0).then(|| body.text());
    connect
}
