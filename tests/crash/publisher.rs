//! A device's side of MQTT that knows exactly what the broker has confirmed: QoS 1, in order, sent again after every
//! lost connection until it is confirmed.

use std::collections::VecDeque;
use std::io::{self, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::{Arc, Condvar, Mutex};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use crate::servers::wait_until;

/// How many messages may be unconfirmed at a time.
const IN_FLIGHT_MAX: usize = 100;

/// What is published.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Message {
    pub(crate) topic: String,
    pub(crate) payload: Vec<u8>,
}

/// Publishes from a thread of its own.
pub(crate) struct Publisher {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    waiting: VecDeque<Message>,
    /// How many were given to [`Publisher::publish`].
    published: usize,
    /// How many of them the broker has confirmed; they are the first ones.
    confirmed: usize,
    stop: bool,
}

impl Publisher {
    /// Publishes to the broker at this address, also while it is not there.
    pub(crate) fn start(broker: SocketAddr) -> Self {
        let shared = Arc::new(Shared { state: Mutex::default(), changed: Condvar::new() });
        let thread = thread::spawn({
            let shared = Arc::clone(&shared);
            move || run(broker, &shared)
        });
        Self { shared, thread: Some(thread) }
    }

    /// Queues messages, in order.
    pub(crate) fn publish(&self, messages: impl IntoIterator<Item = Message>) {
        let mut state = self.shared.state.lock().unwrap();
        let before = state.waiting.len();
        state.waiting.extend(messages);
        state.published += state.waiting.len() - before;
        drop(state);
        self.shared.changed.notify_all();
    }

    /// Waits until the broker has confirmed everything.
    pub(crate) fn wait_for_confirmations(&self) {
        wait_until("the broker confirms everything", || {
            let state = self.shared.state.lock().unwrap();
            state.confirmed == state.published
        });
    }
}

impl Drop for Publisher {
    fn drop(&mut self) {
        self.shared.state.lock().unwrap().stop = true;
        self.shared.changed.notify_all();
        if let Some(thread) = self.thread.take() {
            thread.join().ok();
        }
    }
}

fn run(broker: SocketAddr, shared: &Shared) {
    let mut in_flight = VecDeque::new();
    while !shared.state.lock().unwrap().stop {
        // The broker may be away; what is in flight is sent again on the next connection.
        let lost = publish_on_one_connection(broker, shared, &mut in_flight);
        if lost.is_err() {
            let state = shared.state.lock().unwrap();
            drop(shared.changed.wait_timeout(state, Duration::from_millis(20)).unwrap());
        }
    }
}

fn publish_on_one_connection(
    broker: SocketAddr,
    shared: &Shared,
    in_flight: &mut VecDeque<(u16, Message)>,
) -> io::Result<()> {
    let stream = TcpStream::connect(broker)?;
    stream.set_nodelay(true)?;
    // A broker that takes longer has lost the connection without saying so.
    stream.set_read_timeout(Some(Duration::from_secs(30)))?;
    let (mut writer, mut reader) = (stream.try_clone()?, BufReader::new(stream));
    // MQTT 3.1.1, a clean session, no keep-alive, the client id `device`.
    writer.write_all(b"\x10\x12\x00\x04MQTT\x04\x02\x00\x00\x00\x06device")?;
    let (first, _) = read_packet(&mut reader)?;
    if first >> 4 != 2 {
        return Err(io::Error::other("no CONNACK"));
    }
    let mut next_id = in_flight.back().map_or(1, |(id, _)| following(*id));
    for (id, message) in &*in_flight {
        writer.write_all(&publish_packet(*id, message))?;
    }
    loop {
        let mut packets = Vec::new();
        {
            let mut state = shared.state.lock().unwrap();
            while state.waiting.is_empty() && in_flight.is_empty() && !state.stop {
                state = shared.changed.wait(state).unwrap();
            }
            if state.stop {
                return Ok(());
            }
            while in_flight.len() < IN_FLIGHT_MAX
                && let Some(message) = state.waiting.pop_front()
            {
                packets.extend(publish_packet(next_id, &message));
                in_flight.push_back((next_id, message));
                next_id = following(next_id);
            }
        }
        writer.write_all(&packets)?;
        let (first, body) = read_packet(&mut reader)?;
        if first >> 4 == 4 {
            let id = u16::from_be_bytes([body[0], body[1]]);
            // Brokers confirm in order; should one not, the message is confirmed when those before it are.
            if in_flight.front().is_some_and(|(first, _)| *first == id) {
                in_flight.pop_front();
                shared.state.lock().unwrap().confirmed += 1;
            } else {
                return Err(io::Error::other("confirmed out of order"));
            }
        }
    }
}

fn following(id: u16) -> u16 {
    if id == u16::MAX { 1 } else { id + 1 }
}

fn publish_packet(id: u16, message: &Message) -> Vec<u8> {
    let mut length = 2 + message.topic.len() + 2 + message.payload.len();
    let mut packet = vec![0x32];
    loop {
        let byte = (length % 128) as u8;
        length /= 128;
        packet.push(if length > 0 { byte | 0x80 } else { byte });
        if length == 0 {
            break;
        }
    }
    packet.extend((message.topic.len() as u16).to_be_bytes());
    packet.extend(message.topic.as_bytes());
    packet.extend(id.to_be_bytes());
    packet.extend(&message.payload);
    packet
}

fn read_packet(reader: &mut impl Read) -> io::Result<(u8, Vec<u8>)> {
    let mut byte = [0];
    reader.read_exact(&mut byte)?;
    let first = byte[0];
    let (mut length, mut factor) = (0, 1);
    loop {
        reader.read_exact(&mut byte)?;
        length += usize::from(byte[0] & 0x7F) * factor;
        factor *= 128;
        if byte[0] & 0x80 == 0 {
            break;
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body)?;
    Ok((first, body))
}
