//! What the journal costs, as ratios to bare files measured in the same run.
//!
//! `cargo bench --bench journal`. What is compared is measured in turns of some milliseconds, since a shared disk changes
//! its mind within seconds. A directory on the disk to be measured may be given in `FROSTLINE_BENCH_DIR`; the
//! figures of a memory file system say nothing.

#![expect(clippy::print_stdout, reason = "a benchmark prints its figures")]

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use frostline::clock::SystemClock;
use frostline::health::Health;
use frostline::journal::{Batch, Cursor, Entry, Journal, JournalMetrics, JournalOptions, Message};

const TOPIC: &[u8] = b"coldchain/v1/dairy-01/truck-0042/telemetry";
const PAYLOAD_BYTES: usize = 180;
const WINDOW: usize = 20;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let parent = std::env::var_os("FROSTLINE_BENCH_DIR").unwrap_or_else(|| "target".into());
    std::fs::create_dir_all(&parent)?;
    let directory = tempfile::tempdir_in(parent)?;
    throughput(directory.path())?;
    window(directory.path())?;
    recovery(directory.path())?;
    Ok(())
}

fn open<T>(directory: &Path) -> Result<(Journal<T>, Cursor, Duration), Box<dyn std::error::Error>> {
    let metrics = JournalMetrics::register(&prometheus::Registry::new())?;
    let health = Health::default();
    let mut options = JournalOptions::new(directory, Arc::new(SystemClock), metrics, health.part("journal"));
    options.max_size_bytes = 64 << 30;
    let (mut journal, recovery) = Journal::open(options)?;
    let cursor = journal.register("bench", recovery.first_offset);
    Ok((journal, cursor, recovery.duration))
}

fn message(payload: &[u8]) -> Entry<'_> {
    Entry::Message(Message { topic: TOPIC, payload, retained: false, oversize: None, original_received_at: None })
}

/// Submits slices as fast as the journal takes them, each followed by the same batches to a bare file.
fn throughput(directory: &Path) -> Result<(), Box<dyn std::error::Error>> {
    const SLICES: u32 = 60;
    const SLICE_MESSAGES: usize = 25_000;
    let journal_directory = directory.join("throughput");
    let (journal, _cursor, _) = open::<()>(&journal_directory)?;
    let handle = journal.handle();
    let (durable, batches) = mpsc::channel();
    let writer = thread::spawn(move || {
        journal.run(|tokens| {
            durable.send(tokens.len()).unwrap_or_default();
            tokens.clear();
        })
    });
    let payload = [b'7'; PAYLOAD_BYTES];
    let frame_bytes = 4 + 6 + TOPIC.len() + PAYLOAD_BYTES;
    let content = vec![b'7'; 32 + frame_bytes * SLICE_MESSAGES];
    let file = File::create(directory.join("bare"))?;
    let (mut position, mut batches_sum) = (0, 0);
    let (mut journal_time, mut bare_time, mut submit_time) = (Duration::ZERO, Duration::ZERO, Duration::ZERO);
    for _ in 0..SLICES {
        let began = Instant::now();
        for _ in 0..SLICE_MESSAGES {
            handle.submit(message(&payload), ())?;
        }
        submit_time += began.elapsed();
        let mut slice = Vec::new();
        while slice.iter().sum::<usize>() < SLICE_MESSAGES {
            slice.push(batches.recv()?);
        }
        journal_time += began.elapsed();

        let began = Instant::now();
        for entries in &slice {
            let block = &content[..32 + entries * frame_bytes];
            file.write_all_at(block, position)?;
            file.sync_data()?;
            position += block.len() as u64;
        }
        bare_time += began.elapsed();
        batches_sum += slice.len();
    }
    handle.stop();
    writer.join().map_err(|_| "the writer panicked")??;
    let messages = f64::from(SLICES) * SLICE_MESSAGES as f64;
    println!(
        "throughput: {:.0} messages/s of {frame_bytes} B through the journal ({batches_sum} batches, {:.0} ns to submit \
         one), {:.0} messages/s bare write + fdatasync of the same batches; ratio {:.2} (to be at least 0.70)",
        messages / journal_time.as_secs_f64(),
        submit_time.as_nanos() as f64 / messages,
        messages / bare_time.as_secs_f64(),
        bare_time.as_secs_f64() / journal_time.as_secs_f64()
    );
    std::fs::remove_dir_all(journal_directory)?;
    Ok(())
}

/// Plays a broker that has no more than a window of messages unacknowledged.
///
/// The ceiling is one batch of a window, one sync, one hand-over to another thread and back.
fn window(directory: &Path) -> Result<(), Box<dyn std::error::Error>> {
    const SLICES: usize = 100;
    const SLICE_MESSAGES: usize = 400;
    let journal_directory = directory.join("window");
    let (journal, _cursor, _) = open::<()>(&journal_directory)?;
    let handle = journal.handle();
    let (acknowledge, acknowledged) = mpsc::channel();
    let writer = thread::spawn(move || {
        // A broker that has left wants no acknowledgement.
        journal.run(|tokens| tokens.drain(..).for_each(|token| acknowledge.send(token).unwrap_or_default()))
    });
    let payload = [b'7'; PAYLOAD_BYTES];
    let file = File::create(directory.join("sync"))?;
    let block = [b'7'; 32 + WINDOW * 232];
    let (mut slice_times, mut sync_times, mut position) = (Vec::new(), Vec::new(), 0);
    for _ in 0..SLICES {
        let began = Instant::now();
        let mut in_flight = 0;
        for _ in 0..SLICE_MESSAGES {
            handle.submit(message(&payload), ())?;
            in_flight += 1;
            if in_flight == WINDOW {
                acknowledged.recv()?;
                in_flight -= 1 + acknowledged.try_iter().count();
            }
        }
        for _ in 0..in_flight {
            acknowledged.recv()?;
        }
        slice_times.push(began.elapsed());
        for _ in 0..SLICE_MESSAGES / WINDOW {
            let began = Instant::now();
            file.write_all_at(&block, position)?;
            file.sync_data()?;
            sync_times.push(began.elapsed());
            position += block.len() as u64;
        }
    }
    handle.stop();
    writer.join().map_err(|_| "the writer panicked")??;
    let (sync_p50, round_trip) = (median(sync_times), round_trip_p50()?);
    let rate = SLICE_MESSAGES as f64 / median(slice_times).as_secs_f64();
    let ceiling = WINDOW as f64 / (sync_p50 + round_trip).as_secs_f64();
    println!(
        "window: {rate:.0} messages/s with {WINDOW} in flight; fdatasync p50 {sync_p50:?}, round trip {round_trip:?}, \
         ceiling {ceiling:.0}/s; ratio {:.2} (to be at least 0.50)",
        rate / ceiling
    );
    std::fs::remove_dir_all(journal_directory)?;
    Ok(())
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort_unstable();
    times[times.len() / 2]
}

fn round_trip_p50() -> Result<Duration, Box<dyn std::error::Error>> {
    let (to, from_here) = mpsc::channel::<()>();
    let (back, answers) = mpsc::channel::<()>();
    let echo = thread::spawn(move || from_here.iter().for_each(|()| back.send(()).unwrap_or_default()));
    let mut times = Vec::new();
    for _ in 0..2000 {
        let began = Instant::now();
        to.send(())?;
        answers.recv()?;
        times.push(began.elapsed());
    }
    drop(to);
    echo.join().map_err(|_| "the echo panicked")?;
    Ok(median(times))
}

/// Opens a journal of 1 GiB and waits for its first new message to be on disk; then reads all of it.
fn recovery(directory: &Path) -> Result<(), Box<dyn std::error::Error>> {
    // Not a whole number of segments, so that the last one is nearly full: the longest scan.
    const SIZE_BYTES: u64 = (1 << 30) - (2 << 20);
    let journal_directory = directory.join("recovery");
    let (journal, _cursor, _) = open::<()>(&journal_directory)?;
    let handle = journal.handle();
    let writer = thread::spawn(move || journal.run(Vec::clear));
    let payload = [b'7'; PAYLOAD_BYTES];
    for _ in 0..SIZE_BYTES / (10 + TOPIC.len() + PAYLOAD_BYTES) as u64 {
        handle.submit_blocking(message(&payload), ())?;
    }
    handle.stop();
    writer.join().map_err(|_| "the writer panicked")??;
    let mut segments: Vec<_> = std::fs::read_dir(&journal_directory)?.collect::<Result<_, _>>()?;
    segments.retain(|file| file.path().extension().is_some_and(|extension| extension == "journal"));
    segments.sort_by_key(std::fs::DirEntry::file_name);
    let last_bytes = segments.last().ok_or("the journal has no segment")?.metadata()?.len();

    let began = Instant::now();
    let (journal, _cursor, open_time) = open::<()>(&journal_directory)?;
    let (handle, readers) = (journal.handle(), journal.readers());
    let (acknowledge, acknowledged) = mpsc::channel();
    let writer = thread::spawn(move || {
        journal.run(|tokens| {
            tokens.clear();
            acknowledge.send(()).unwrap_or_default();
        })
    });
    handle.submit(message(&payload), ())?;
    acknowledged.recv()?;
    println!(
        "recovery: a journal of 1 GiB (last segment {last_bytes} B, in the page cache) accepts its first message after \
         {:?}, of which opening {open_time:?} (to be less than 2 s)",
        began.elapsed()
    );

    let began = Instant::now();
    let mut reader = readers.open(0)?;
    let (mut batch, mut entries) = (Batch::new(), 0);
    loop {
        let read = reader.read(&mut batch, 512 << 10)?;
        if read == 0 {
            break;
        }
        entries += read;
    }
    println!("reading: {:.0} messages/s, checked", entries as f64 / began.elapsed().as_secs_f64());
    handle.stop();
    writer.join().map_err(|_| "the writer panicked")??;
    Ok(())
}
