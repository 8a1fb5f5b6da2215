//! The journal against a model, against faults and against damage.

use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::mpsc::{self, Receiver};
use std::sync::{Arc, Condvar, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use frostline_core::model::Timestamp;
use proptest::prelude::*;
use tempfile::TempDir;

use super::entry::next_frame;
use super::format::{BLOCK_HEADER_BYTES, BlockHeader, SEGMENT_HEADER_BYTES, SegmentHeader};
use super::queue::GATHER_BYTES;
use super::segment::{list_segments, segment_path};
use super::*;
use crate::clock::ManualClock;
use crate::health::Health;

const DEADLINE: Duration = Duration::from_secs(20);
const BEGIN: Timestamp = Timestamp::from_millis(1_795_427_999_123);

/// An entry that owns its bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Owned {
    Message {
        topic: Vec<u8>,
        payload: Vec<u8>,
        retained: bool,
        oversize: Option<Oversize>,
        original_received_at: Option<Timestamp>,
    },
    Tick,
    Configuration {
        hash: [u8; 32],
        content: Vec<u8>,
    },
}

impl Owned {
    fn message(payload: impl Into<Vec<u8>>) -> Self {
        let (topic, payload) = (b"coldchain/v1/op/u1/telemetry".to_vec(), payload.into());
        Self::Message { topic, payload, retained: false, oversize: None, original_received_at: None }
    }

    fn entry(&self) -> Entry<'_> {
        match self {
            Self::Message { topic, payload, retained, oversize, original_received_at } => Entry::Message(Message {
                topic,
                payload,
                retained: *retained,
                oversize: *oversize,
                original_received_at: *original_received_at,
            }),
            Self::Tick => Entry::Tick,
            Self::Configuration { hash, content } => Entry::Configuration { hash, content },
        }
    }

    fn from_entry(entry: Entry<'_>) -> Self {
        match entry {
            Entry::Message(message) => Self::Message {
                topic: message.topic.to_vec(),
                payload: message.payload.to_vec(),
                retained: message.retained,
                oversize: message.oversize,
                original_received_at: message.original_received_at,
            },
            Entry::Tick => Self::Tick,
            Entry::Configuration { hash, content } => Self::Configuration { hash: *hash, content: content.to_vec() },
        }
    }
}

fn any_owned() -> impl Strategy<Value = Owned> {
    let bytes = |max: usize| proptest::collection::vec(any::<u8>(), 0..max);
    let oversize = (any::<u64>(), any::<[u8; 32]>()).prop_map(|(length, sha256)| Oversize { length, sha256 });
    let message = (
        bytes(40),
        bytes(120),
        any::<bool>(),
        proptest::option::of(oversize),
        proptest::option::of(any::<i64>().prop_map(Timestamp::from_millis)),
    )
        .prop_map(|(topic, payload, retained, oversize, original_received_at)| Owned::Message {
            topic,
            payload,
            retained,
            oversize,
            original_received_at,
        });
    let configuration =
        (any::<[u8; 32]>(), bytes(60)).prop_map(|(hash, content)| Owned::Configuration { hash, content });
    prop_oneof![4 => message, 1 => Just(Owned::Tick), 1 => configuration]
}

/// The machine's file system, made to fail on order.
#[derive(Clone, Default)]
struct FaultyFileSystem(Arc<(Mutex<Faults>, Condvar)>);

#[derive(Default)]
struct Faults {
    /// How many bytes may still be written; the write that goes beyond is cut short, the next one fails.
    room_bytes: Option<usize>,
    /// No write takes more at once.
    write_bytes_max: Option<usize>,
    write_error: Option<ErrorKind>,
    create_error: Option<ErrorKind>,
    sync_error: bool,
    directory_sync_error: bool,
    /// Syncs of files wait while this is set.
    syncs_held: bool,
    syncs: u32,
}

impl FaultyFileSystem {
    fn set(&self, change: impl FnOnce(&mut Faults)) {
        change(&mut self.0.0.lock().unwrap());
        self.0.1.notify_all();
    }

    fn syncs(&self) -> u32 {
        self.0.0.lock().unwrap().syncs
    }

    fn wrap(&self, file: Box<dyn JournalFile>) -> Box<dyn JournalFile> {
        Box::new(FaultyFile { file, faults: self.clone() })
    }
}

impl FileSystem for FaultyFileSystem {
    fn create_directory(&self, directory: &Path) -> io::Result<()> {
        RealFileSystem.create_directory(directory)
    }
    fn list(&self, directory: &Path) -> io::Result<Vec<String>> {
        RealFileSystem.list(directory)
    }
    fn create(&self, path: &Path) -> io::Result<Box<dyn JournalFile>> {
        if let Some(kind) = self.0.0.lock().unwrap().create_error {
            return Err(kind.into());
        }
        Ok(self.wrap(RealFileSystem.create(path)?))
    }
    fn open(&self, path: &Path) -> io::Result<Box<dyn JournalFile>> {
        Ok(self.wrap(RealFileSystem.open(path)?))
    }
    fn open_to_read(&self, path: &Path) -> io::Result<Box<dyn JournalFile>> {
        RealFileSystem.open_to_read(path)
    }
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        RealFileSystem.rename(from, to)
    }
    fn remove(&self, path: &Path) -> io::Result<()> {
        RealFileSystem.remove(path)
    }
    fn sync_directory(&self, directory: &Path) -> io::Result<()> {
        if self.0.0.lock().unwrap().directory_sync_error {
            return Err(io::Error::other("the directory is lost"));
        }
        RealFileSystem.sync_directory(directory)
    }
}

struct FaultyFile {
    file: Box<dyn JournalFile>,
    faults: FaultyFileSystem,
}

impl JournalFile for FaultyFile {
    fn length(&self) -> io::Result<u64> {
        self.file.length()
    }
    fn read_at(&self, buffer: &mut [u8], position: u64) -> io::Result<usize> {
        self.file.read_at(buffer, position)
    }
    fn write_at(&self, bytes: &[u8], position: u64) -> io::Result<usize> {
        let mut faults = self.faults.0.0.lock().unwrap();
        if let Some(kind) = faults.write_error {
            return Err(kind.into());
        }
        let mut length = bytes.len().min(faults.write_bytes_max.unwrap_or(usize::MAX));
        if let Some(room_bytes) = &mut faults.room_bytes {
            if *room_bytes == 0 {
                return Err(ErrorKind::StorageFull.into());
            }
            length = length.min(*room_bytes);
            *room_bytes -= length;
        }
        self.file.write_at(&bytes[..length], position)
    }
    fn sync_data(&self) -> io::Result<()> {
        let (faults, changed) = &*self.faults.0;
        let mut faults = faults.lock().unwrap();
        faults.syncs += 1;
        changed.notify_all();
        let faults = changed.wait_timeout_while(faults, DEADLINE, |faults| faults.syncs_held).unwrap().0;
        if faults.sync_error {
            return Err(io::Error::other("the disk is lost"));
        }
        self.file.sync_data()
    }
    fn truncate(&self, length: u64) -> io::Result<()> {
        self.file.truncate(length)
    }
}

/// A directory with a journal in it.
struct Place {
    directory: TempDir,
    file_system: FaultyFileSystem,
    clock: ManualClock,
    health: Health,
    registry: prometheus::Registry,
    options: JournalOptions,
}

type Tokens = Vec<u64>;

impl Place {
    fn new() -> Self {
        Self::with(|_| {})
    }

    fn with(change: impl FnOnce(&mut JournalOptions)) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let (file_system, clock, health) = (FaultyFileSystem::default(), ManualClock::at(BEGIN), Health::default());
        let registry = prometheus::Registry::new();
        let metrics = JournalMetrics::register(&registry).unwrap();
        let mut options =
            JournalOptions::new(directory.path(), Arc::new(clock.clone()), metrics, health.part("journal"));
        options.file_system = Arc::new(file_system.clone());
        change(&mut options);
        Self { directory, file_system, clock, health, registry, options }
    }

    fn open(&self) -> (Journal<u64>, Recovery) {
        self.try_open().unwrap()
    }

    fn try_open(&self) -> Result<(Journal<u64>, Recovery), JournalError> {
        Journal::open(self.options.clone())
    }

    fn segments(&self) -> Vec<u64> {
        list_segments(&RealFileSystem, self.directory.path()).unwrap()
    }

    fn path(&self, first_offset: u64) -> PathBuf {
        segment_path(self.directory.path(), first_offset)
    }

    fn last_path(&self) -> PathBuf {
        self.path(*self.segments().last().unwrap())
    }

    fn metric(&self, name: &str) -> f64 {
        let families = self.registry.gather();
        let family = families.iter().find(|family| family.name() == name).unwrap();
        family.get_metric().iter().map(|metric| metric.get_counter().get_value() + metric.get_gauge().get_value()).sum()
    }

    fn is_down(&self) -> Option<String> {
        self.health.parts()["journal"].clone().err()
    }
}

/// Writes what waits; returns the tokens that came back.
fn sync(journal: &mut Journal<u64>) -> Result<Tokens, JournalError> {
    let mut durable = Tokens::new();
    loop {
        let before = durable.len();
        assert!(journal.step(Duration::ZERO, &mut |tokens| durable.append(tokens))?);
        if durable.len() == before {
            return Ok(durable);
        }
    }
}

fn submit(journal: &Journal<u64>, entries: &[Owned]) {
    let handle = journal.handle();
    for entry in entries {
        let offset = handle.submit(entry.entry(), 0).unwrap();
        assert!(offset >= journal.readers().next_offset());
    }
}

/// Writes each of the entries as a block of its own.
fn append_one_by_one(journal: &mut Journal<u64>, entries: &[Owned]) {
    for entry in entries {
        submit(journal, std::slice::from_ref(entry));
        assert_eq!(sync(journal).unwrap().len(), 1);
    }
}

fn read_all(mut reader: JournalReader) -> Result<Vec<(u64, Timestamp, Owned)>, JournalError> {
    let (mut batch, mut all) = (Batch::new(), Vec::new());
    while reader.read(&mut batch, 300)? > 0 {
        all.extend(batch.iter().map(|(offset, received_at, entry)| (offset, received_at, Owned::from_entry(entry))));
    }
    Ok(all)
}

fn entries_from(journal: &Journal<u64>, from: u64) -> Vec<Owned> {
    let all = read_all(journal.readers().open(from).unwrap()).unwrap();
    let offsets: Vec<u64> = all.iter().map(|(offset, ..)| *offset).collect();
    assert_eq!(offsets, (from..from + all.len() as u64).collect::<Vec<_>>());
    all.into_iter().map(|(.., entry)| entry).collect()
}

fn numbered(count: usize) -> Vec<Owned> {
    (0..count).map(|number| Owned::message(format!("payload {number}"))).collect()
}

/// A journal whose writer runs on its thread.
struct Running {
    handle: JournalHandle<u64>,
    readers: JournalReaders,
    durable: Receiver<u64>,
    thread: JoinHandle<Result<(), JournalError>>,
}

fn run(journal: Journal<u64>) -> Running {
    let (handle, readers) = (journal.handle(), journal.readers());
    let (sender, durable) = mpsc::channel();
    let thread = thread::spawn(move || {
        journal.run(|tokens| tokens.drain(..).for_each(|token| sender.send(token).unwrap_or_default()))
    });
    Running { handle, readers, durable, thread }
}

impl Running {
    fn wait_durable(&self, tokens: impl IntoIterator<Item = u64>) {
        for token in tokens {
            assert_eq!(self.durable.recv_timeout(DEADLINE), Ok(token));
        }
    }

    fn stop(self) -> (Result<(), JournalError>, Tokens) {
        self.handle.stop();
        let result = self.thread.join().unwrap();
        (result, self.durable.iter().collect())
    }
}

fn wait_until(what: &str, condition: impl Fn() -> bool) {
    let began = Instant::now();
    while !condition() {
        assert!(began.elapsed() < DEADLINE, "{what}");
        thread::yield_now();
    }
}

proptest! {
    #[test]
    fn every_entry_is_read_back_as_it_was(owned in any_owned()) {
        let mut bytes = Vec::new();
        owned.entry().encode(&mut bytes);
        prop_assert_eq!(bytes.len(), owned.entry().frame_bytes());
        let mut rest = &bytes[..];
        let frame = next_frame(&mut rest).unwrap();
        prop_assert!(rest.is_empty());
        prop_assert_eq!(Owned::from_entry(Entry::decode(frame).unwrap()), owned);
    }

    #[test]
    fn whatever_stands_in_a_frame_is_read_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..80)) {
        if let Some(entry) = Entry::decode(&bytes) {
            let mut again = Vec::new();
            entry.encode(&mut again);
            prop_assert_eq!(&again[4..], &bytes[..]);
        }
    }
}

#[test]
fn the_format_does_not_change_unnoticed() {
    let header = SegmentHeader {
        salt: 0x0102_0304,
        first_offset: 7,
        received_at: BEGIN,
        previous_first_offset: 3,
        previous_bytes: 1000,
    };
    let mut block = vec![0; BLOCK_HEADER_BYTES];
    let message = Message {
        topic: b"a/b",
        payload: b"{}",
        retained: true,
        oversize: Some(Oversize { length: 5 << 20, sha256: [0xAB; 32] }),
        original_received_at: Some(BEGIN),
    };
    Entry::Message(message).encode(&mut block);
    Entry::Tick.encode(&mut block);
    Entry::Configuration { hash: &[0xCD; 32], content: b"x = 1" }.encode(&mut block);
    BlockHeader::seal(&mut block, 3, 7, BEGIN, header.salt);
    let hex = |bytes: &[u8]| {
        let lines = bytes.chunks(16).map(|line| line.iter().map(|byte| format!("{byte:02x}")).collect::<String>());
        lines.collect::<Vec<_>>().join("\n") + "\n"
    };
    expect_test::expect_file!["golden/segment_header.hex"].assert_eq(&hex(&header.encode()));
    expect_test::expect_file!["golden/block.hex"].assert_eq(&hex(&block));
    assert_eq!(SegmentHeader::decode(&header.encode()), Ok(header));
}

#[derive(Debug, Clone)]
enum Step {
    Submit(Owned),
    Sync,
    /// Stop with everything synced, and open again.
    Reopen,
    /// The sync of the next block fails; of its bytes so many per mille are on disk after the power is back.
    LosePower(u64),
    /// The consumer passes so many per mille of what there is, and the retention is over.
    Consume(u64),
    ReadFrom(u64),
}

fn any_step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => any_owned().prop_map(Step::Submit),
        3 => Just(Step::Sync),
        1 => Just(Step::Reopen),
        1 => (0..=1000_u64).prop_map(Step::LosePower),
        1 => (0..=1000_u64).prop_map(Step::Consume),
        1 => (0..=1000_u64).prop_map(Step::ReadFrom),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn the_journal_agrees_with_a_list(steps in proptest::collection::vec(any_step(), 1..60)) {
        let place = Place::with(|options| {
            options.segment_size_bytes = 600;
            options.retention_ms = 1000;
        });
        let (mut journal, _) = place.open();
        let mut cursor = journal.register("consumer", 0);
        let (mut synced, mut waiting) = (Vec::<Owned>::new(), Vec::<Owned>::new());
        for step in steps {
            match step {
                Step::Submit(owned) => {
                    let offset = journal.handle().submit(owned.entry(), 0).unwrap();
                    prop_assert_eq!(offset, (synced.len() + waiting.len()) as u64);
                    waiting.push(owned);
                }
                Step::Sync => {
                    prop_assert_eq!(sync(&mut journal).unwrap().len(), waiting.len());
                    synced.append(&mut waiting);
                }
                Step::Reopen => {
                    sync(&mut journal).unwrap();
                    synced.append(&mut waiting);
                    drop(journal);
                    let (reopened, recovery) = place.open();
                    prop_assert_eq!(recovery.torn_bytes_cut, 0);
                    journal = reopened;
                    cursor = journal.register("consumer", cursor.offset());
                }
                Step::LosePower(per_mille) => {
                    place.file_system.set(|faults| faults.sync_error = !waiting.is_empty());
                    let failed = sync(&mut journal);
                    prop_assert_eq!(failed.is_err(), !waiting.is_empty());
                    prop_assert_eq!(journal.readers().next_offset(), synced.len() as u64);
                    drop(journal);
                    place.file_system.set(|faults| faults.sync_error = false);
                    let path = place.last_path();
                    let reader = JournalReader::open_at_rest(Arc::new(RealFileSystem), place.directory.path(), None);
                    let whole = std::fs::read(&path).unwrap();
                    // Everything that waited was one block, the last of the file, if the new segment got its name.
                    let next_offset = reader.unwrap();
                    let on_disk = read_all(next_offset).unwrap().last().map_or(0, |(offset, ..)| offset + 1);
                    let written = on_disk > synced.len() as u64;
                    let kept_whole = if written {
                        let mut block = vec![0; BLOCK_HEADER_BYTES];
                        waiting.iter().for_each(|owned| owned.entry().encode(&mut block));
                        let torn = block.len() as u64 * per_mille / 1000;
                        let kept = whole.len() as u64 - block.len() as u64 + torn;
                        std::fs::OpenOptions::new().write(true).open(&path).unwrap().set_len(kept).unwrap();
                        torn == block.len() as u64
                    } else {
                        false
                    };
                    let (reopened, _) = place.open();
                    if kept_whole {
                        synced.append(&mut waiting);
                    }
                    waiting.clear();
                    journal = reopened;
                    cursor = journal.register("consumer", cursor.offset());
                }
                Step::Consume(per_mille) => {
                    cursor.advance(synced.len() as u64 * per_mille / 1000);
                    let later = crate::clock::Clock::now(&place.clock).plus_millis(2000);
                    place.clock.set(later);
                    sync(&mut journal).unwrap();
                    synced.append(&mut waiting);
                    let segments = place.segments();
                    prop_assert!(segments.get(1).is_none_or(|second| *second > cursor.offset()), "{segments:?}");
                }
                Step::ReadFrom(per_mille) => {
                    let first = place.segments()[0];
                    let from = first + (synced.len() as u64 - first) * per_mille / 1000;
                    prop_assert_eq!(&entries_from(&journal, from)[..], &synced[usize::try_from(from).unwrap()..]);
                }
            }
            prop_assert_eq!(journal.readers().next_offset(), synced.len() as u64);
            let first = place.segments()[0];
            prop_assert!(first <= cursor.offset());
            prop_assert_eq!(&entries_from(&journal, first)[..], &synced[usize::try_from(first).unwrap()..]);
        }
    }

    #[test]
    fn whatever_was_overwritten_what_is_read_was_written(
        at_per_mille in 0..1000_usize, garbage in proptest::collection::vec(any::<u8>(), 1..200),
    ) {
        let place = Place::with(|options| options.segment_size_bytes = 700);
        let (mut journal, _) = place.open();
        let written = numbered(30);
        append_one_by_one(&mut journal, &written);
        drop(journal);
        let segments = place.segments();
        let path = place.path(segments[at_per_mille % segments.len()]);
        let mut bytes = std::fs::read(&path).unwrap();
        let at = bytes.len() * at_per_mille / 1000;
        let end = bytes.len().min(at + garbage.len());
        bytes[at..end].copy_from_slice(&garbage[..end - at]);
        std::fs::write(&path, bytes).unwrap();
        match place.try_open() {
            Ok((journal, recovery)) => {
                let mut reader = journal.readers().open(0).unwrap();
                let (mut batch, mut read) = (Batch::new(), 0);
                while let Ok(1..) = reader.read(&mut batch, 1) {
                    for (_, _, entry) in batch.iter() {
                        prop_assert_eq!(&Owned::from_entry(entry), &written[read]);
                        read += 1;
                    }
                }
                prop_assert!(recovery.next_offset >= *segments.last().unwrap());
            }
            Err(error) => prop_assert!(matches!(error, JournalError::Damaged { .. }), "{error}"),
        }
    }
}

#[test]
fn a_tail_cut_at_any_byte_loses_only_what_was_cut() {
    let place = Place::new();
    let (mut journal, _) = place.open();
    let written = numbered(4);
    let mut ends = vec![SEGMENT_HEADER_BYTES];
    for owned in &written {
        append_one_by_one(&mut journal, std::slice::from_ref(owned));
        ends.push(usize::try_from(std::fs::metadata(place.last_path()).unwrap().len()).unwrap());
    }
    drop(journal);
    let whole = std::fs::read(place.last_path()).unwrap();
    for length in ends[1]..=whole.len() {
        std::fs::write(place.last_path(), &whole[..length]).unwrap();
        let (mut journal, recovery) = place.open();
        let kept = ends.iter().rposition(|end| *end <= length).unwrap();
        assert_eq!(recovery.next_offset, kept as u64, "cut at {length}");
        assert_eq!(recovery.torn_bytes_cut, (length - ends[kept]) as u64, "cut at {length}");
        append_one_by_one(&mut journal, &[Owned::Tick]);
        let expected: Vec<Owned> = written[..kept].iter().cloned().chain([Owned::Tick]).collect();
        assert_eq!(entries_from(&journal, 0), expected, "cut at {length}");
    }
}

#[test]
fn a_damaged_last_block_is_cut_and_one_before_it_is_an_error() {
    let place = Place::new();
    let (mut journal, _) = place.open();
    append_one_by_one(&mut journal, &numbered(2));
    let last_begin = usize::try_from(std::fs::metadata(place.last_path()).unwrap().len()).unwrap();
    append_one_by_one(&mut journal, &numbered(1));
    drop(journal);
    let whole = std::fs::read(place.last_path()).unwrap();
    for at in 0..whole.len() {
        let mut damaged = whole.clone();
        damaged[at] ^= 0x10;
        std::fs::write(place.last_path(), &damaged).unwrap();
        match place.try_open() {
            Ok((journal, recovery)) => {
                assert!(at >= last_begin, "byte {at} was damaged, a good block follows, and it was cut");
                assert_eq!(recovery.torn_bytes_cut, (whole.len() - last_begin) as u64);
                assert_eq!(entries_from(&journal, 0), numbered(2));
            }
            Err(JournalError::Damaged { segment, position, .. }) => {
                assert!(at < last_begin, "byte {at} of the last block was damaged");
                assert_eq!(segment, place.last_path());
                assert!(position <= at as u64);
            }
            Err(error) => panic!("{error}"),
        }
    }
}

#[test]
fn a_tail_of_zeros_is_torn() {
    let place = Place::new();
    let (mut journal, _) = place.open();
    append_one_by_one(&mut journal, &numbered(2));
    drop(journal);
    let mut bytes = std::fs::read(place.last_path()).unwrap();
    bytes.extend([0; 5000]);
    std::fs::write(place.last_path(), &bytes).unwrap();
    let (journal, recovery) = place.open();
    assert_eq!(recovery.torn_bytes_cut, 5000);
    assert_eq!(entries_from(&journal, 0), numbered(2));
}

#[test]
fn a_block_sent_as_a_payload_does_not_pass_for_a_block() {
    let place = Place::new();
    let mut foreign = vec![0; BLOCK_HEADER_BYTES];
    Entry::Tick.encode(&mut foreign);
    BlockHeader::seal(&mut foreign, 1, 1, BEGIN, 0);
    let (mut journal, _) = place.open();
    append_one_by_one(&mut journal, &[Owned::Tick, Owned::message(foreign)]);
    drop(journal);
    let mut bytes = std::fs::read(place.last_path()).unwrap();
    let length = bytes.len();
    bytes[length - BLOCK_HEADER_BYTES - 30] ^= 1;
    std::fs::write(place.last_path(), &bytes).unwrap();
    let (_, recovery) = place.open();
    assert_eq!(recovery.next_offset, 1);
}

fn three_segments() -> (Place, Vec<Owned>, Vec<u64>) {
    let place = Place::with(|options| options.segment_size_bytes = 300);
    let (mut journal, _) = place.open();
    let written = numbered(9);
    append_one_by_one(&mut journal, &written);
    drop(journal);
    let segments = place.segments();
    assert!(segments.len() >= 3, "{segments:?}");
    (place, written, segments)
}

#[test]
fn damage_in_a_closed_segment_is_an_error_when_it_is_read() {
    let (place, written, segments) = three_segments();
    let path = place.path(segments[1]);
    let mut bytes = std::fs::read(&path).unwrap();
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    std::fs::write(&path, bytes).unwrap();
    let (journal, recovery) = place.open();
    assert_eq!((recovery.next_offset, recovery.torn_bytes_cut), (written.len() as u64, 0));
    let error = read_all(journal.readers().open(0).unwrap()).unwrap_err();
    assert!(matches!(&error, JournalError::Damaged { segment, .. } if *segment == path), "{error}");
    // What lies behind it can still be read.
    assert_eq!(entries_from(&journal, segments[2]), written[usize::try_from(segments[2]).unwrap()..]);
}

#[test]
fn a_closed_segment_that_is_short_or_missing_is_an_error_at_once() {
    let (place, _, segments) = three_segments();
    let path = place.path(segments[1]);
    let whole = std::fs::read(&path).unwrap();
    std::fs::write(&path, &whole[..whole.len() - 1]).unwrap();
    let error = place.try_open().err().unwrap();
    assert!(matches!(&error, JournalError::Damaged { segment, .. } if *segment == path), "{error}");

    std::fs::remove_file(&path).unwrap();
    let error = place.try_open().err().unwrap();
    assert!(matches!(&error, JournalError::Damaged { segment, .. } if *segment == place.path(segments[0])), "{error}");
}

#[test]
fn a_segment_that_never_got_its_name_is_removed() {
    let place = Place::new();
    let unfinished = place.directory.path().join(format!("{:020}.journal.new", 1));
    std::fs::write(&unfinished, b"FROST").unwrap();
    let (mut journal, _) = place.open();
    assert!(!unfinished.exists());
    append_one_by_one(&mut journal, &numbered(2));
    assert_eq!(entries_from(&journal, 0), numbered(2));
}

#[test]
fn a_full_disk_holds_everything_back_and_it_goes_on_by_itself() {
    let place = Place::new();
    let (journal, _) = place.open();
    let length_before = std::fs::metadata(place.last_path()).unwrap().len();
    place.file_system.set(|faults| faults.room_bytes = Some(20));
    let running = run(journal);
    running.handle.submit(numbered(2)[0].entry(), 0).unwrap();
    wait_until("the journal says that it is full", || place.metric("frostline_journal_full") == 1.0);
    running.handle.submit(numbered(2)[1].entry(), 1).unwrap();
    wait_until("it is tried again", || place.metric("frostline_journal_write_retries_total") >= 2.0);
    assert!(place.is_down().unwrap().contains("no room"));
    assert_eq!(std::fs::metadata(place.last_path()).unwrap().len(), length_before, "a part of the block was left");
    assert!(running.durable.try_recv().is_err());
    assert_eq!(running.readers.next_offset(), 0);
    place.file_system.set(|faults| faults.room_bytes = None);
    running.wait_durable([0, 1]);
    assert_eq!(place.is_down(), None);
    assert_eq!(place.metric("frostline_journal_full"), 0.0);
    let (result, rest) = running.stop();
    assert!(result.is_ok() && rest.is_empty());
    assert_eq!(entries_from(&place.open().0, 0), numbered(2));
}

#[test]
fn a_journal_that_is_full_stops_without_acknowledging() {
    let place = Place::new();
    let (journal, _) = place.open();
    place.file_system.set(|faults| faults.room_bytes = Some(0));
    let running = run(journal);
    running.handle.submit(Entry::Tick, 0).unwrap();
    wait_until("the journal says that it is full", || place.metric("frostline_journal_full") == 1.0);
    let (result, durable) = running.stop();
    assert!(result.is_ok() && durable.is_empty());
    place.file_system.set(|faults| faults.room_bytes = None);
    assert_eq!(place.open().1.next_offset, 0);
}

#[test]
fn a_disk_too_full_for_a_new_segment_holds_everything_back() {
    let place = Place::with(|options| options.segment_size_bytes = 150);
    let (mut journal, _) = place.open();
    append_one_by_one(&mut journal, &numbered(1));
    place.file_system.set(|faults| faults.create_error = Some(ErrorKind::StorageFull));
    let running = run(journal);
    running.handle.submit(numbered(2)[1].entry(), 1).unwrap();
    wait_until("the journal says that it is full", || place.metric("frostline_journal_full") == 1.0);
    assert!(running.durable.try_recv().is_err());
    place.file_system.set(|faults| faults.create_error = None);
    running.wait_durable([1]);
    assert!(running.stop().0.is_ok());
    assert_eq!(place.segments(), [0, 1]);
    assert_eq!(entries_from(&place.open().0, 0), numbered(2));
}

#[test]
fn short_writes_are_completed() {
    let place = Place::new();
    place.file_system.set(|faults| faults.write_bytes_max = Some(7));
    let (mut journal, _) = place.open();
    submit(&journal, &numbered(20));
    assert_eq!(sync(&mut journal).unwrap().len(), 20);
    assert_eq!(entries_from(&journal, 0), numbered(20));
}

#[test]
fn a_failed_sync_is_final_and_nothing_of_it_is_acknowledged() {
    let place = Place::new();
    let (journal, _) = place.open();
    let running = run(journal);
    running.handle.submit(Entry::Tick, 0).unwrap();
    running.wait_durable([0]);
    let syncs = place.file_system.syncs();
    place.file_system.set(|faults| faults.sync_error = true);
    running.handle.submit(Entry::Tick, 1).unwrap();
    wait_until("the writer ends", || running.thread.is_finished());
    assert_eq!(place.file_system.syncs(), syncs + 1, "a failed sync was repeated");
    assert_eq!(running.readers.next_offset(), 1, "an entry that is not on disk was shown");
    assert_eq!(running.handle.submit(Entry::Tick, 2), Err(SubmitError::Stopped));
    assert!(place.is_down().unwrap().contains("force"));
    let (result, durable) = running.stop();
    assert!(matches!(result, Err(JournalError::Sync { .. })));
    assert!(durable.is_empty());
    place.file_system.set(|faults| faults.sync_error = false);
    // What was written but never synced is made durable before anyone reads it.
    let syncs = place.file_system.syncs();
    let (journal, recovery) = place.open();
    assert_eq!(recovery.next_offset, 2);
    assert!(place.file_system.syncs() > syncs);
    assert_eq!(entries_from(&journal, 0), [Owned::Tick, Owned::Tick]);
}

#[test]
fn another_failed_write_is_final() {
    let place = Place::new();
    let (mut journal, _) = place.open();
    place.file_system.set(|faults| faults.write_error = Some(ErrorKind::Other));
    submit(&journal, &numbered(1));
    assert!(matches!(sync(&mut journal), Err(JournalError::Io { .. })));
}

#[test]
fn a_failed_sync_of_the_directory_is_final() {
    let place = Place::with(|options| options.segment_size_bytes = 150);
    let (mut journal, _) = place.open();
    append_one_by_one(&mut journal, &numbered(1));
    place.file_system.set(|faults| faults.directory_sync_error = true);
    submit(&journal, &numbered(1));
    assert!(matches!(sync(&mut journal), Err(JournalError::Sync { .. })));
    assert_eq!(journal.readers().next_offset(), 1);
}

#[test]
fn at_its_limit_the_journal_waits_for_its_consumers() {
    let place = Place::with(|options| {
        options.segment_size_bytes = 200;
        options.max_size_bytes = 1600;
    });
    let (mut journal, _) = place.open();
    let (fast, slow) = (journal.register("fast", 0), journal.register("slow", 0));
    fast.advance(u64::MAX);
    let running = run(journal);
    let is_full = || place.metric("frostline_journal_full") == 1.0;
    for offset in 0.. {
        running.handle.submit(Entry::Tick, offset).unwrap();
        wait_until("the entry is synced, or there is no room", || running.readers.next_offset() > offset || is_full());
        if is_full() {
            break;
        }
    }
    let synced = running.readers.next_offset();
    running.wait_durable(0..synced);
    assert!(running.durable.try_recv().is_err());
    assert!(place.is_down().unwrap().contains("limit of 1600 bytes, and `slow` still needs"));
    assert_eq!(place.segments()[0], 0, "a segment was deleted that a consumer needs");
    slow.advance(synced);
    running.wait_durable([synced]);
    wait_until("it says that there is room", || !is_full());
    assert!(place.segments()[0] > 0);
    assert!(place.metric("frostline_journal_segments_deleted_total") >= 1.0);
    assert!(running.stop().0.is_ok());
}

#[test]
fn a_block_larger_than_the_limit_is_taken_once_everything_is_consumed() {
    let place = Place::with(|options| options.max_size_bytes = 500);
    let (mut journal, _) = place.open();
    let cursor = journal.register("consumer", 0);
    append_one_by_one(&mut journal, &numbered(2));
    cursor.advance(2);
    append_one_by_one(&mut journal, &[Owned::message(vec![0; 4000])]);
    assert_eq!(place.segments(), [2]);
    cursor.advance(3);
    append_one_by_one(&mut journal, &[Owned::Tick]);
    assert_eq!(place.segments(), [3]);
}

#[test]
fn a_segment_goes_when_it_is_old_and_consumed_and_the_last_one_stays() {
    let place = Place::with(|options| {
        options.segment_size_bytes = 150;
        options.retention_ms = 1000;
    });
    let (mut journal, _) = place.open();
    let cursor = journal.register("consumer", 0);
    append_one_by_one(&mut journal, &numbered(4));
    assert_eq!(place.segments(), [0, 1, 2, 3]);
    place.clock.set(BEGIN.plus_millis(1000));
    cursor.advance(2);
    sync(&mut journal).unwrap();
    assert_eq!(place.segments(), [0, 1, 2, 3], "not old enough");
    place.clock.set(BEGIN.plus_millis(1001));
    sync(&mut journal).unwrap();
    assert_eq!(place.segments(), [2, 3], "old, and two are consumed");
    cursor.advance(4);
    sync(&mut journal).unwrap();
    assert_eq!(place.segments(), [3]);
    let gone = journal.readers().open(2).err().unwrap();
    assert!(matches!(gone, JournalError::Gone { offset: 2, first_offset: 3 }), "{gone}");
    drop(journal);
    let (mut journal, recovery) = place.open();
    assert_eq!((recovery.first_offset, recovery.next_offset), (3, 4), "an offset would be used again");
    append_one_by_one(&mut journal, &[Owned::Tick]);
    assert_eq!(entries_from(&journal, 4), [Owned::Tick]);
}

#[test]
fn without_a_consumer_nothing_is_deleted() {
    let place = Place::with(|options| {
        options.segment_size_bytes = 150;
        options.retention_ms = 0;
    });
    let (mut journal, _) = place.open();
    append_one_by_one(&mut journal, &numbered(3));
    place.clock.set(BEGIN.plus_millis(1_000_000));
    sync(&mut journal).unwrap();
    assert_eq!(place.segments(), [0, 1, 2]);
}

#[test]
fn the_time_of_arrival_never_goes_backwards() {
    let place = Place::with(|options| options.segment_size_bytes = 100);
    let (mut journal, recovery) = place.open();
    assert_eq!(recovery.last_received_at, Timestamp::MIN);
    append_one_by_one(&mut journal, &[Owned::Tick]);
    place.clock.set(BEGIN.plus_millis(-5000));
    append_one_by_one(&mut journal, &[Owned::Tick, Owned::Tick]);
    drop(journal);
    // The newest segment loses its only block: what it knew of the time before it is in its header.
    let path = place.last_path();
    std::fs::OpenOptions::new().write(true).open(path).unwrap().set_len(SEGMENT_HEADER_BYTES as u64).unwrap();
    let (mut journal, recovery) = place.open();
    assert_eq!((recovery.next_offset, recovery.last_received_at), (2, BEGIN));
    append_one_by_one(&mut journal, &[Owned::Tick]);
    place.clock.set(BEGIN.plus_millis(7));
    append_one_by_one(&mut journal, &[Owned::Tick]);
    let all = read_all(journal.readers().open(0).unwrap()).unwrap();
    let times: Vec<Timestamp> = all.iter().map(|(_, received_at, _)| *received_at).collect();
    assert_eq!(times, [BEGIN, BEGIN, BEGIN, BEGIN.plus_millis(7)]);
}

const LOCKED_DIRECTORY: &str = "FROSTLINE_TEST_LOCKED_DIRECTORY";

/// Tries to open the directory that another process has open, when it is run by the test below.
#[test]
fn second_process() {
    let Some(directory) = std::env::var_os(LOCKED_DIRECTORY) else { return };
    let place = Place::with(|options| options.directory = directory.into());
    assert!(matches!(place.try_open(), Err(JournalError::InUse { .. })));
    eprintln!("the second process was refused");
}

#[test]
fn one_directory_has_one_writer() {
    let place = Place::new();
    let (journal, _) = place.open();
    assert!(matches!(place.try_open(), Err(JournalError::InUse { .. })));
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "journal::tests::second_process", "--nocapture"])
        .env(LOCKED_DIRECTORY, place.directory.path())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && said.contains("the second process was refused"), "{said}");
    drop(journal);
    place.open();
}

#[test]
fn the_queue_takes_no_more_than_it_may_and_wakes_whoever_waits() {
    let place = Place::with(|options| options.queue_entries_max = 4);
    let (mut journal, _) = place.open();
    let handle = journal.handle();
    (0..4).for_each(|offset| assert_eq!(handle.submit(Entry::Tick, offset), Ok(offset)));
    assert_eq!(handle.submit(Entry::Tick, 4), Err(SubmitError::Full));
    assert!(!handle.has_room());
    assert_eq!(place.metric("frostline_journal_refused_total"), 1.0);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).build().unwrap();
    let (blocking, task, room) = (handle.clone(), handle.clone(), handle.clone());
    let blocking = thread::spawn(move || blocking.submit_blocking(Entry::Tick, 4));
    let task = runtime.spawn(async move { task.submit_async(Entry::Tick, 5).await });
    let room = runtime.spawn(async move { room.room().await });
    let mut durable = Tokens::new();
    let began = Instant::now();
    while durable.len() < 6 {
        assert!(began.elapsed() < DEADLINE, "{durable:?}");
        durable.append(&mut sync(&mut journal).unwrap());
    }
    let mut offsets = [blocking.join().unwrap().unwrap(), runtime.block_on(task).unwrap().unwrap()];
    offsets.sort_unstable();
    assert_eq!(offsets, [4, 5]);
    assert_eq!(runtime.block_on(room).unwrap(), Ok(()));
    durable.sort_unstable();
    assert_eq!(durable, [0, 1, 2, 3, 4, 5]);

    (6..10).for_each(|offset| assert_eq!(handle.submit(Entry::Tick, offset), Ok(offset)));
    let (blocking, task, room) = (handle.clone(), handle.clone(), handle.clone());
    let blocking = thread::spawn(move || blocking.submit_blocking(Entry::Tick, 10));
    let task = runtime.spawn(async move { task.submit_async(Entry::Tick, 11).await });
    let room = runtime.spawn(async move { room.room().await });
    drop(journal);
    assert_eq!(blocking.join().unwrap(), Err(SubmitError::Stopped));
    assert_eq!(runtime.block_on(task).unwrap(), Err(SubmitError::Stopped));
    assert_eq!(runtime.block_on(room).unwrap(), Err(SubmitError::Stopped));
}

#[test]
fn the_bytes_that_wait_are_bounded_and_a_large_entry_still_passes() {
    let place = Place::with(|options| options.queue_bytes_max = 1000);
    let (mut journal, _) = place.open();
    let handle = journal.handle();
    let large = Owned::message(vec![7; 5000]);
    assert_eq!(handle.submit(large.entry(), 0), Ok(0));
    assert_eq!(handle.submit(Entry::Tick, 1), Err(SubmitError::Full));
    assert_eq!(sync(&mut journal).unwrap(), [0]);
    assert_eq!(handle.submit(Entry::Tick, 1), Ok(1));
    let huge = Owned::message(vec![0; MAX_ENTRY_BYTES]);
    assert!(matches!(handle.submit(huge.entry(), 2), Err(SubmitError::TooLarge { .. })));
    assert_eq!(entries_from(&journal, 0), [large]);
}

#[test]
fn what_comes_during_a_sync_is_synced_together() {
    let place = Place::new();
    let (journal, _) = place.open();
    let running = run(journal);
    let syncs = place.file_system.syncs();
    place.file_system.set(|faults| faults.syncs_held = true);
    running.handle.submit(Entry::Tick, 0).unwrap();
    wait_until("a lone entry is synced at once", || place.file_system.syncs() == syncs + 1);
    (1..100).for_each(|offset| assert_eq!(running.handle.submit(Entry::Tick, offset), Ok(offset)));
    assert!(running.durable.try_recv().is_err(), "acknowledged before the sync was over");
    assert_eq!(running.readers.next_offset(), 0, "shown before the sync was over");
    place.file_system.set(|faults| faults.syncs_held = false);
    running.wait_durable(0..100);
    assert_eq!(place.file_system.syncs(), syncs + 2);
    assert!(running.stop().0.is_ok());
}

#[test]
fn a_block_gathers_half_a_mebibyte_at_most() {
    let place = Place::new();
    let (mut journal, _) = place.open();
    let entries: Vec<Owned> = (0..700).map(|_| Owned::message(vec![1; 1000])).collect();
    submit(&journal, &entries);
    let syncs = place.file_system.syncs();
    let mut blocks = Vec::new();
    while blocks.iter().sum::<usize>() < entries.len() {
        journal.step(Duration::ZERO, &mut |tokens| blocks.push(tokens.len())).unwrap();
    }
    let entry_bytes = entries[0].entry().frame_bytes();
    assert_eq!(
        blocks,
        [(GATHER_BYTES - BLOCK_HEADER_BYTES) / entry_bytes, 700 - (GATHER_BYTES - BLOCK_HEADER_BYTES) / entry_bytes]
    );
    assert_eq!(place.file_system.syncs(), syncs + 2);
    assert_eq!(entries_from(&journal, 0), entries);
}

#[test]
fn stopping_writes_what_waits() {
    let place = Place::new();
    let (journal, _) = place.open();
    place.file_system.set(|faults| faults.syncs_held = true);
    let running = run(journal);
    (0..50).for_each(|offset| assert_eq!(running.handle.submit(Entry::Tick, offset), Ok(offset)));
    running.handle.stop();
    assert_eq!(running.handle.submit(Entry::Tick, 50), Err(SubmitError::Stopped));
    place.file_system.set(|faults| faults.syncs_held = false);
    let (result, durable) = running.stop();
    assert!(result.is_ok());
    assert_eq!(durable, (0..50).collect::<Vec<_>>());
    assert_eq!(place.open().1.next_offset, 50);
}

#[test]
fn a_reader_ahead_of_the_journal_is_refused() {
    let place = Place::new();
    let (mut journal, _) = place.open();
    append_one_by_one(&mut journal, &numbered(2));
    assert!(journal.readers().open(2).is_ok());
    let error = journal.readers().open(3).err().unwrap();
    assert!(matches!(error, JournalError::Ahead { offset: 3, next_offset: 2 }), "{error}");
}

#[test]
fn a_journal_at_rest_is_read_up_to_its_torn_tail_and_left_as_it_is() {
    let (place, written, _) = three_segments();
    let mut bytes = std::fs::read(place.last_path()).unwrap();
    bytes.extend(b"\xF5BLK and then the power went");
    std::fs::write(place.last_path(), &bytes).unwrap();
    let reader = JournalReader::open_at_rest(Arc::new(RealFileSystem), place.directory.path(), None).unwrap();
    let read: Vec<Owned> = read_all(reader).unwrap().into_iter().map(|(.., entry)| entry).collect();
    assert_eq!(read, written);
    assert_eq!(std::fs::read(place.last_path()).unwrap(), bytes);
}

#[test]
fn submitters_readers_and_retention_work_at_the_same_time() {
    const SUBMITTERS: u64 = 3;
    const EACH: u64 = 2000;
    let place = Place::with(|options| {
        options.segment_size_bytes = 4000;
        options.retention_ms = -1;
    });
    let (mut journal, _) = place.open();
    let cursors = [journal.register("a", 0), journal.register("b", 0)];
    let running = run(journal);
    let submitters: Vec<_> = (0..SUBMITTERS)
        .map(|submitter| {
            let handle = running.handle.clone();
            thread::spawn(move || {
                for number in 0..EACH {
                    let payload = format!("{submitter} {number}");
                    let offset = handle.submit_blocking(Owned::message(payload).entry(), submitter * EACH + number);
                    assert!(offset.is_ok());
                }
            })
        })
        .collect();
    let readers: Vec<_> = cursors
        .into_iter()
        .map(|cursor| {
            let mut reader = running.readers.open(0).unwrap();
            thread::spawn(move || {
                let (mut batch, mut next, mut order) = (Batch::new(), 0, Vec::new());
                while next < SUBMITTERS * EACH {
                    assert!(reader.wait(DEADLINE), "nothing came after {next}");
                    reader.read(&mut batch, 2000).unwrap();
                    for (offset, _, entry) in batch.iter() {
                        assert_eq!(offset, next);
                        next += 1;
                        let Entry::Message(message) = entry else { panic!("{entry:?}") };
                        let text = std::str::from_utf8(message.payload).unwrap();
                        let (submitter, number) = text.split_once(' ').unwrap();
                        order.push(submitter.parse::<u64>().unwrap() * EACH + number.parse::<u64>().unwrap());
                    }
                    cursor.advance(next);
                }
                order
            })
        })
        .collect();
    submitters.into_iter().for_each(|submitter| submitter.join().unwrap());
    let orders: Vec<Tokens> = readers.into_iter().map(|reader| reader.join().unwrap()).collect();
    // Retention looks again before each write, and by now everything is consumed.
    running.handle.submit(Entry::Tick, u64::MAX).unwrap();
    let (result, mut tokens) = running.stop();
    assert!(result.is_ok());
    assert_eq!(tokens.pop(), Some(u64::MAX));
    assert_eq!(tokens, orders[0], "the tokens came back in another order than the entries are in");
    assert_eq!(orders[0], orders[1]);
    for submitter in 0..SUBMITTERS {
        let own: Tokens = tokens.iter().copied().filter(|token| token / EACH == submitter).collect();
        assert!(own.is_sorted());
        assert_eq!(own.len() as u64, EACH);
    }
    assert!(place.metric("frostline_journal_segments_deleted_total") > 0.0);
    assert_eq!(place.metric("frostline_journal_appended_total"), (SUBMITTERS * EACH + 1) as f64);
}

#[tokio::test]
async fn a_task_waits_for_the_next_entry() {
    let place = Place::new();
    let (journal, _) = place.open();
    let running = run(journal);
    let mut reader = running.readers.open(0).unwrap();
    let waiting = tokio::spawn(async move {
        reader.wait_async().await;
        reader.read(&mut Batch::new(), 1).unwrap()
    });
    tokio::task::yield_now().await;
    running.handle.submit_async(Entry::Tick, 0).await.unwrap();
    assert_eq!(tokio::time::timeout(DEADLINE, waiting).await.unwrap().unwrap(), 1);
    assert!(running.stop().0.is_ok());
}
