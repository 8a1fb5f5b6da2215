//! What it costs to judge what comes late: a unit that was away for days, in order or in none.

use std::path::Path;
use std::sync::Arc;
use std::thread;

use frostline::clock::SystemClock;
use frostline::health::Health;
use frostline::journal::{Entry, Journal, JournalMetrics, JournalOptions, Message};
use frostline_core::model::Timestamp;

use crate::Failure;
use crate::fleet;
use crate::process::{Daemon, Usage};
use crate::servers::Mosquitto;

const SENSORS: usize = 4;
const MINUTE_MS: i64 = 60_000;
const MINUTES_PER_DAY: usize = 24 * 60;
/// How many minutes a device puts into one message of its backlog.
const MINUTES_PER_MESSAGE: usize = 15;

/// In which order the minutes of the units come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Order {
    /// Those of all units in turn, as they are measured.
    Live,
    /// One unit's after the other's, each oldest first.
    Backlog,
    /// As a backlog, and each unit's newest minute first, then all others in no order.
    Shuffled,
}

/// Compares judging what comes late with judging the same readings as they come.
pub(crate) fn late(broker: &Mosquitto, root: &Path) -> Result<(), Failure> {
    const DAYS: usize = 3;
    println!("late: a unit of {SENSORS} sensors uploads {DAYS} days at one-minute spacing; load {}", crate::load());
    let one_unit = |order| cpu_s(broker, root, 1, DAYS, order);
    let (live, shuffled) = (one_unit(Order::Live)?, one_unit(Order::Shuffled)?);
    println!(
        "  in order {live:.2} s of CPU, in no order and judged again {shuffled:.2} s (to be less than 2 s), both with the start"
    );
    const UNITS: usize = 20;
    println!("backlog: {UNITS} units of {SENSORS} sensors at one-minute spacing; load {}", crate::load());
    for days in [1, 10] {
        let readings = (UNITS * SENSORS * MINUTES_PER_DAY * days) as f64;
        let [live, backlog] = [Order::Live, Order::Backlog].map(|order| cpu_s(broker, root, UNITS, days, order));
        let (live, backlog) = (live? * 1e6 / readings, backlog? * 1e6 / readings);
        println!(
            "  {days} days: {backlog:.2} µs of CPU per reading unit after unit, {live:.2} µs as they are measured, ratio {:.2}",
            backlog / live
        );
    }
    Ok(())
}

/// Returns what a daemon uses until it has judged a journal that holds so many days of so many units.
fn cpu_s(broker: &Mosquitto, root: &Path, units: usize, days: usize, order: Order) -> Result<f64, Failure> {
    let directory = tempfile::tempdir_in(root)?;
    // Its configuration comes first in the journal, as in any that has readings.
    let mut first = Daemon::start(directory.path(), &broker.url(), None)?;
    first.wait_for_metric("frostline_mqtt_connections_total{client=\"source\"}", 1)?;
    drop(first);
    let readings = write_journal(&directory.path().join("data").join("journal"), units, days, order)?;
    let mut frostline = Daemon::start(directory.path(), &broker.url(), None)?;
    frostline.wait_for_stored(readings)?;
    if order == Order::Shuffled {
        frostline.wait_for_metric("frostline_rejudged_units_total", units as u64)?;
    }
    let Usage { cpu_s, .. } = frostline.usage()?;
    Ok(cpu_s)
}

/// Writes the messages of a fleet into a journal that nobody has judged, and returns how many readings they hold.
fn write_journal(directory: &Path, units: usize, days: usize, order: Order) -> Result<u64, Failure> {
    std::fs::create_dir_all(directory)?;
    let metrics = JournalMetrics::register(&prometheus::Registry::new())?;
    let mut options = JournalOptions::new(directory, Arc::new(SystemClock), metrics, Health::default().part("journal"));
    options.max_size_bytes = 16 << 30;
    let (mut journal, _) = Journal::<()>::open(options)?;
    let _cursor = journal.register("pipeline", 0);
    let handle = journal.handle();
    let writer = thread::spawn(move || journal.run(Vec::clear));
    let minutes = days * MINUTES_PER_DAY;
    let began_at = fleet::now().plus_millis(-(minutes as i64) * MINUTE_MS);
    let mut random = fleet::Random::new(7);
    let mut submit = |unit: usize, minutes: &[usize]| {
        let samples: Vec<String> = minutes.iter().map(|minute| sample(&mut random, began_at, *minute)).collect();
        let topic = format!("coldchain/v1/dairy-01/truck-{unit:03}/telemetry");
        let payload = format!("{{\"samples\":[{}]}}", samples.join(","));
        let (topic, payload) = (topic.as_bytes(), payload.as_bytes());
        let message = Message { topic, payload, retained: false, oversize: None, original_received_at: None };
        handle.submit_blocking(Entry::Message(message), ())
    };
    let in_order: Vec<usize> = (0..minutes).collect();
    match order {
        Order::Live => {
            for some in in_order.chunks(MINUTES_PER_MESSAGE) {
                for unit in 0..units {
                    submit(unit, some)?;
                }
            }
        }
        Order::Backlog => {
            for unit in 0..units {
                for some in in_order.chunks(MINUTES_PER_MESSAGE) {
                    submit(unit, some)?;
                }
            }
        }
        Order::Shuffled => {
            for unit in 0..units {
                let mut shuffled = in_order.clone();
                let mut order = fleet::Random::new(unit as u64);
                for last in (1..shuffled.len() - 1).rev() {
                    shuffled.swap(last, order.below(last as u64 + 1) as usize);
                }
                // The newest is the last one, which has stayed where it was.
                shuffled.rotate_right(1);
                for some in shuffled.chunks(MINUTES_PER_MESSAGE) {
                    submit(unit, some)?;
                }
            }
        }
    }
    handle.stop();
    writer.join().map_err(|_| "the journal's writer panicked")??;
    Ok((units * SENSORS * minutes) as u64)
}

/// Returns what the sensors of a unit measure in one minute.
fn sample(random: &mut fleet::Random, began_at: Timestamp, minute: usize) -> String {
    let event_time = began_at.plus_millis(minute as i64 * MINUTE_MS);
    let readings: Vec<String> = (0..SENSORS)
        .map(|sensor| {
            let celsius = (random.below(600) as f64 - 2_300.0) / 100.0;
            format!("{{\"sensor\":\"t{sensor}\",\"kind\":\"temperature\",\"value\":{celsius}}}")
        })
        .collect();
    format!("{{\"ts\":\"{event_time}\",\"readings\":[{}]}}", readings.join(","))
}
