//! As much of MQTT 3.1.1 as a load generator needs. A whole client would take the processor from those who are measured.

use std::io::{self, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

const CONNECT: u8 = 0x10;
const CONNACK: u8 = 0x20;
const PUBLISH: u8 = 0x30;
const PUBLISH_QOS_1: u8 = 0x32;
const PUBACK: u8 = 0x40;
const SUBSCRIBE: u8 = 0x82;
const SUBACK: u8 = 0x90;
const DISCONNECT: u8 = 0xe0;

const CLEAN_SESSION: u8 = 0x02;

/// A connection to a broker.
pub(crate) struct Client {
    stream: TcpStream,
    incoming: BufReader<TcpStream>,
    outgoing: Vec<u8>,
    packet_id: u16,
    /// Messages published whose acknowledgement has not been read.
    unacknowledged: usize,
}

/// A message that a subscription brought.
pub(crate) struct Message {
    /// Where it was published.
    pub(crate) topic: String,
    /// What it says.
    pub(crate) payload: Vec<u8>,
}

impl Client {
    /// Connects; a session that is not `clean` is kept by the broker.
    pub(crate) fn connect(address: SocketAddr, client_id: &str, clean: bool) -> io::Result<Self> {
        let stream = TcpStream::connect(address)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(Duration::from_secs(30)))?;
        let incoming = BufReader::new(stream.try_clone()?);
        let mut client = Self { stream, incoming, outgoing: Vec::new(), packet_id: 0, unacknowledged: 0 };
        let mut body = vec![0, 4];
        body.extend_from_slice(b"MQTT");
        // Level 4 is 3.1.1; no keep-alive.
        body.extend_from_slice(&[4, if clean { CLEAN_SESSION } else { 0 }, 0, 0]);
        push_text(&mut body, client_id);
        client.push_packet(CONNECT, &[&body]);
        client.flush()?;
        let (kind, answer) = client.read_packet()?;
        if kind != CONNACK || answer.get(1) != Some(&0) {
            return Err(io::Error::other(format!("the broker answers the connection with {kind:#x} {answer:?}")));
        }
        Ok(client)
    }

    /// Subscribes to a filter at a quality of service and waits for the answer.
    pub(crate) fn subscribe(&mut self, filter: &str, qos: u8) -> io::Result<()> {
        let mut body = self.next_packet_id().to_be_bytes().to_vec();
        push_text(&mut body, filter);
        body.push(qos);
        self.push_packet(SUBSCRIBE, &[&body]);
        self.flush()?;
        let (kind, answer) = self.read_packet()?;
        if kind != SUBACK || answer.get(2) != Some(&qos) {
            return Err(io::Error::other(format!("the broker answers the subscription with {kind:#x} {answer:?}")));
        }
        Ok(())
    }

    /// Writes a message at QoS 1 into the buffer; [`Self::flush`] sends it.
    pub(crate) fn publish(&mut self, topic: &str, payload: &[u8]) {
        let packet_id = self.next_packet_id().to_be_bytes();
        self.push_packet(PUBLISH_QOS_1, &[&length_u16(topic), topic.as_bytes(), &packet_id, payload]);
        self.unacknowledged += 1;
    }

    /// Sends what is in the buffer.
    pub(crate) fn flush(&mut self) -> io::Result<()> {
        self.stream.write_all(&self.outgoing)?;
        self.outgoing.clear();
        Ok(())
    }

    /// Reads acknowledgements until no more than `left` are missing.
    pub(crate) fn wait_for_acknowledgements(&mut self, left: usize) -> io::Result<()> {
        while self.unacknowledged > left {
            let (kind, _) = self.read_packet()?;
            if kind != PUBACK {
                return Err(io::Error::other(format!("a packet of kind {kind:#x} instead of an acknowledgement")));
            }
            self.unacknowledged -= 1;
        }
        Ok(())
    }

    /// Waits for the next message of a subscription at QoS 0.
    pub(crate) fn receive(&mut self) -> io::Result<Message> {
        let (kind, body) = self.read_packet()?;
        let message = (kind == PUBLISH).then(|| read_message(&body)).flatten();
        message.ok_or_else(|| io::Error::other(format!("a packet of kind {kind:#x} instead of a message")))
    }

    /// Ends the connection; the broker keeps a session that is not clean.
    pub(crate) fn disconnect(mut self) -> io::Result<()> {
        self.push_packet(DISCONNECT, &[]);
        self.flush()
    }

    fn next_packet_id(&mut self) -> u16 {
        self.packet_id = self.packet_id.checked_add(1).unwrap_or(1);
        self.packet_id
    }

    fn push_packet(&mut self, kind: u8, parts: &[&[u8]]) {
        self.outgoing.push(kind);
        let mut left = parts.iter().map(|part| part.len()).sum::<usize>();
        loop {
            let more = if left > 0x7f { 0x80 } else { 0 };
            self.outgoing.push((left & 0x7f) as u8 | more);
            left >>= 7;
            if left == 0 {
                break;
            }
        }
        parts.iter().for_each(|part| self.outgoing.extend_from_slice(part));
    }

    fn read_packet(&mut self) -> io::Result<(u8, Vec<u8>)> {
        let kind = self.read_byte()?;
        let (mut length, mut shift) = (0, 0);
        loop {
            let byte = self.read_byte()?;
            length |= usize::from(byte & 0x7f) << shift;
            shift += 7;
            if byte & 0x80 == 0 {
                break;
            }
        }
        let mut body = vec![0; length];
        self.incoming.read_exact(&mut body)?;
        Ok((kind, body))
    }

    fn read_byte(&mut self) -> io::Result<u8> {
        let mut byte = [0];
        self.incoming.read_exact(&mut byte)?;
        Ok(byte[0])
    }
}

fn read_message(body: &[u8]) -> Option<Message> {
    let (length, rest) = body.split_first_chunk()?;
    let (topic, payload) = rest.split_at_checked(usize::from(u16::from_be_bytes(*length)))?;
    Some(Message { topic: String::from_utf8(topic.to_vec()).ok()?, payload: payload.to_vec() })
}

fn push_text(to: &mut Vec<u8>, text: &str) {
    to.extend_from_slice(&length_u16(text));
    to.extend_from_slice(text.as_bytes());
}

fn length_u16(text: &str) -> [u8; 2] {
    u16::try_from(text.len()).expect("topics and names are short").to_be_bytes()
}
