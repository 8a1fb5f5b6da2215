//! The power is cut: what was written and not synced is gone, and everything that was acknowledged is still there.
//!
//! Killing a process proves nothing about this, for the page cache outlives it. So the journal, the source and its
//! acknowledgements run here over a file system that keeps in memory what would survive, and is cut off at a random
//! write, sync or rename. A scripted broker says what was acknowledged.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use frostline::clock::SystemClock;
use frostline::config::{MqttConfig, MqttVersion};
use frostline::health::Health;
use frostline::ingest::{AckToken, Acknowledger, IncomingMessage, IngestMetrics, MessageLog, Source, SubmitError};
use frostline::journal::{
    Batch, Entry, FileSystem, Journal, JournalFile, JournalHandle, JournalMetrics, JournalOptions, Message,
};
use prometheus::Registry;
use tokio_util::sync::CancellationToken;

use crate::kills::seed;
use crate::load::Chance;
use crate::scripted_broker::{Packet, ScriptedBroker};

/// How often the power is cut.
const CUTS: u64 = 150;
/// How many messages the broker has; the cut comes before the last.
const MESSAGES: u16 = 400;
const TOPIC: &str = "coldchain/v1/op1/u1/telemetry";

#[test]
fn a_power_cut_loses_nothing_that_was_acknowledged() {
    let first_seed = seed();
    eprintln!("power cuts: seed {first_seed}");
    let (mut acknowledged, mut torn) = (0, 0);
    for cut in 0..CUTS {
        let outcome = cut_power(first_seed.wrapping_add(cut));
        acknowledged += outcome.acknowledged;
        torn += u64::from(outcome.torn_bytes_cut > 0);
    }
    eprintln!("{CUTS} power cuts, {acknowledged} messages acknowledged before, {torn} torn tails: none of them lost");
    assert!(acknowledged > CUTS, "the cuts come too early to show anything");
    assert!(torn > 0, "no cut left a torn tail");
}

struct Outcome {
    acknowledged: u64,
    torn_bytes_cut: u64,
}

fn cut_power(seed: u64) -> Outcome {
    let mut chance = Chance::new(seed);
    let disk = Disk::new(chance.clone(), 8 + chance.below(120));
    let directory = tempfile::tempdir().unwrap();
    let broker = ScriptedBroker::start(5);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();

    let metrics = IngestMetrics::register(&Registry::new()).unwrap();
    let acknowledger = Acknowledger::new(metrics.clone());
    let (journal, _) = Journal::<AckToken>::open(options(&disk, directory.path())).unwrap();
    let log = Log(journal.handle());
    let stop = CancellationToken::new();
    let source = Source::new(
        &mqtt(broker.url()),
        vec!["coldchain/v1/+/+/telemetry".into()],
        log,
        acknowledger.clone(),
        Arc::new(|_, _| true),
        metrics,
        Health::default().part("broker"),
    )
    .unwrap();
    let source = runtime.spawn(source.run(stop.clone()));
    let (mut peer, _) = broker.accept_subscriber(false);
    let (mut writer, mut last_writer) = (peer.writer(), peer.writer());
    let last_packet = peer.publish_packet(MESSAGES + 1, TOPIC, b"{}");
    let journal = std::thread::spawn(move || {
        let ended = journal.run(|tokens| acknowledger.durable(tokens));
        // One more message, with which the source notices that the journal has stopped.
        last_writer.try_send_bytes(&last_packet);
        ended
    });
    let window = 1 + chance.below(20) as u16;
    let (mut sent, mut acknowledged) = (0, 0);
    // The broker keeps to its window; once the power is gone the source hangs up.
    loop {
        while sent < MESSAGES && sent - acknowledged < window {
            sent += 1;
            let packet = peer.publish_packet(sent, TOPIC, payload(sent).as_bytes());
            if !writer.try_send_bytes(&packet) {
                break;
            }
        }
        match peer.try_read() {
            Some(Packet::PubAck { packet_id }) => {
                assert_eq!(packet_id, acknowledged + 1, "acknowledged out of order");
                acknowledged = packet_id;
            }
            Some(other) => panic!("unexpected {other:?}"),
            None => break,
        }
        assert!(acknowledged < MESSAGES, "the power was never cut");
    }
    stop.cancel();
    runtime.block_on(source).unwrap().expect_err("the journal stopped first");
    journal.join().unwrap().expect_err("the power was cut");

    disk.power_on();
    let (journal, recovery) = Journal::<()>::open(options(&disk, directory.path()))
        .unwrap_or_else(|error| panic!("seed {seed}: the journal cannot be opened after the power cut: {error}"));
    let mut reader = journal.readers().open(0).unwrap();
    let (mut batch, mut kept) = (Batch::new(), Vec::new());
    while reader.read(&mut batch, 1 << 20).unwrap() > 0 {
        for (offset, _, entry) in batch.iter() {
            assert_eq!(offset, kept.len() as u64, "an offset is missing or repeated");
            let Entry::Message(message) = entry else { panic!("only messages were submitted") };
            kept.push(String::from_utf8(message.payload.to_vec()).unwrap());
        }
    }
    for number in 1..=acknowledged {
        let found = kept.get(usize::from(number) - 1);
        assert_eq!(
            found,
            Some(&payload(number)),
            "seed {seed}: message {number} of {acknowledged} acknowledged was lost; {} are in the journal",
            kept.len()
        );
    }
    Outcome { acknowledged: acknowledged.into(), torn_bytes_cut: recovery.torn_bytes_cut }
}

fn payload(number: u16) -> String {
    format!("{{\"seq\":{number},\"padding\":\"{}\"}}", "x".repeat(usize::from(number) * 37 % 900))
}

fn options(disk: &Disk, directory: &Path) -> JournalOptions {
    let metrics = JournalMetrics::register(&Registry::new()).unwrap();
    let mut options = JournalOptions::new(directory, Arc::new(SystemClock), metrics, Health::default().part("journal"));
    options.segment_size_bytes = 16 << 10;
    options.file_system = Arc::new(disk.clone());
    options
}

fn mqtt(url: String) -> MqttConfig {
    MqttConfig {
        url,
        version: MqttVersion::V5,
        client_id: "power-cut".into(),
        username: None,
        password: None,
        ca_file: None,
        client_cert_file: None,
        client_key_file: None,
    }
}

/// The journal as the source sees it, as the daemon connects them.
struct Log(JournalHandle<AckToken>);

impl MessageLog for Log {
    fn submit(&self, message: &IncomingMessage, token: AckToken) -> Result<(), SubmitError> {
        let entry = Entry::Message(Message {
            topic: &message.topic,
            payload: &message.payload,
            retained: message.retained,
            oversize: None,
            original_received_at: None,
        });
        self.0.submit(entry, token).map(drop).map_err(|_| SubmitError::Stopped)
    }

    fn has_room(&self) -> bool {
        self.0.has_room()
    }
}

/// A disk in memory with a cache that a power cut empties.
#[derive(Clone)]
struct Disk(Arc<Mutex<State>>);

struct State {
    chance: Chance,
    /// How many changes until the power is cut; none once it has been, and is on again.
    changes_left: Option<u64>,
    is_off: bool,
    /// Contents by what the name points to; a rename moves the number, not the content.
    files: Vec<Content>,
    /// The names as the running system sees them.
    names: BTreeMap<PathBuf, usize>,
    /// The names as they are on disk.
    names_on_disk: BTreeMap<PathBuf, usize>,
}

#[derive(Clone, Default)]
struct Content {
    cached: Vec<u8>,
    on_disk: Vec<u8>,
}

impl Disk {
    fn new(chance: Chance, changes_left: u64) -> Self {
        Self(Arc::new(Mutex::new(State {
            chance,
            changes_left: Some(changes_left),
            is_off: false,
            files: Vec::new(),
            names: BTreeMap::new(),
            names_on_disk: BTreeMap::new(),
        })))
    }

    fn with<T>(&self, work: impl FnOnce(&mut State) -> io::Result<T>) -> io::Result<T> {
        let mut state = self.0.lock().unwrap();
        if state.is_off {
            return Err(io::Error::other("the power is off"));
        }
        work(&mut state)
    }

    /// Counts a change; the one at which the power is cut fails.
    fn change<T>(&self, work: impl FnOnce(&mut State) -> io::Result<T>) -> io::Result<T> {
        self.with(|state| {
            if let Some(left) = &mut state.changes_left {
                *left -= 1;
                if *left == 0 {
                    state.is_off = true;
                    return Err(io::Error::other("the power was cut"));
                }
            }
            work(state)
        })
    }

    /// Gives back what survived: what was synced, and of every later page of 512 bytes perhaps the new content.
    fn power_on(&self) {
        let state = &mut *self.0.lock().unwrap();
        (state.is_off, state.changes_left) = (false, None);
        state.names = state.names_on_disk.clone();
        for content in &mut state.files {
            let length = content.on_disk.len()
                + state.chance.below(1 + content.cached.len().saturating_sub(content.on_disk.len()) as u64) as usize;
            let mut survived = content.on_disk.clone();
            survived.resize(length, 0);
            for (page, bytes) in survived.chunks_mut(512).enumerate() {
                let cached = &content.cached[(page * 512).min(content.cached.len())..];
                if state.chance.below(2) == 0 {
                    let count = bytes.len().min(cached.len());
                    bytes[..count].copy_from_slice(&cached[..count]);
                }
            }
            content.cached.clone_from(&survived);
            content.on_disk = survived;
        }
    }

    fn file(&self, number: usize) -> Box<dyn JournalFile> {
        Box::new(OpenFile { disk: self.clone(), number })
    }
}

impl FileSystem for Disk {
    fn create_directory(&self, directory: &Path) -> io::Result<()> {
        // For the lock, which is a real file.
        std::fs::create_dir_all(directory)
    }

    fn list(&self, directory: &Path) -> io::Result<Vec<String>> {
        self.with(|state| {
            let names = state.names.keys().filter(|path| path.parent() == Some(directory));
            Ok(names.map(|path| path.file_name().unwrap().to_string_lossy().into_owned()).collect())
        })
    }

    fn create(&self, path: &Path) -> io::Result<Box<dyn JournalFile>> {
        let number = self.change(|state| {
            state.files.push(Content::default());
            let number = state.files.len() - 1;
            state.names.insert(path.to_owned(), number);
            Ok(number)
        })?;
        Ok(self.file(number))
    }

    fn open(&self, path: &Path) -> io::Result<Box<dyn JournalFile>> {
        let number = self.with(|state| state.names.get(path).copied().ok_or(io::ErrorKind::NotFound.into()))?;
        Ok(self.file(number))
    }

    fn open_to_read(&self, path: &Path) -> io::Result<Box<dyn JournalFile>> {
        self.open(path)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.change(|state| {
            let number = state.names.remove(from).ok_or(io::ErrorKind::NotFound)?;
            state.names.insert(to.to_owned(), number);
            Ok(())
        })
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        self.change(|state| state.names.remove(path).map(drop).ok_or(io::ErrorKind::NotFound.into()))
    }

    fn sync_directory(&self, _: &Path) -> io::Result<()> {
        self.change(|state| {
            state.names_on_disk = state.names.clone();
            Ok(())
        })
    }
}

struct OpenFile {
    disk: Disk,
    number: usize,
}

impl JournalFile for OpenFile {
    fn length(&self) -> io::Result<u64> {
        self.disk.with(|state| Ok(state.files[self.number].cached.len() as u64))
    }

    fn read_at(&self, buffer: &mut [u8], position: u64) -> io::Result<usize> {
        self.disk.with(|state| {
            let cached = &state.files[self.number].cached;
            let rest = &cached[(position as usize).min(cached.len())..];
            let count = rest.len().min(buffer.len());
            buffer[..count].copy_from_slice(&rest[..count]);
            Ok(count)
        })
    }

    fn write_at(&self, bytes: &[u8], position: u64) -> io::Result<usize> {
        let write = |state: &mut State, bytes: &[u8]| {
            let (cached, end) = (&mut state.files[self.number].cached, position as usize + bytes.len());
            cached.resize(cached.len().max(end), 0);
            cached[position as usize..end].copy_from_slice(bytes);
        };
        let written = self.disk.change(|state| {
            write(state, bytes);
            Ok(bytes.len())
        });
        if written.is_err() {
            // What was on its way may still reach the disk.
            write(&mut self.disk.0.lock().unwrap(), bytes);
        }
        written
    }

    fn sync_data(&self) -> io::Result<()> {
        self.disk.change(|state| {
            let content = &mut state.files[self.number];
            content.on_disk.clone_from(&content.cached);
            Ok(())
        })
    }

    fn truncate(&self, length: u64) -> io::Result<()> {
        self.disk.change(|state| {
            state.files[self.number].cached.truncate(length as usize);
            Ok(())
        })
    }
}
