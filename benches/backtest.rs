//! What a backtest of a table of readings costs, next to counting the lines of the same file.
//!
//! `cargo bench --bench backtest [-- MILLIONS]`. One thread; every sensor is judged by three range rules. The rows are in
//! the order of time, once as they come from many sensors in turn, once with each sensor's after the other's. What counts
//! is the thread's own time on a processor, and the best of three rounds, since others use the machine too.

#![expect(clippy::print_stdout, reason = "a benchmark prints its figures")]

use std::fs::File;
use std::io::{BufWriter, Read, Write};
use std::path::Path;

use frostline::backtest::{Backtest, Outcome};
use frostline::config;
use frostline_core::model::Timestamp;

const ROUNDS: usize = 3;
const SENSORS: u64 = 1_000;
const START: Timestamp = Timestamp::from_millis(1_795_428_000_000);
const RULES: &str = r#"
[[rule]]
id = "frozen-high"
kind = "range"
quantity = "temperature"
severity = "critical"
high = -18.0
hysteresis = 0.5
for = "10m"
keep_firing_for = "5m"

[[rule]]
id = "frozen-warning"
kind = "range"
quantity = "temperature"
severity = "warning"
high = -19.0
for = "30m"

[[rule]]
id = "too-cold"
kind = "range"
quantity = "temperature"
severity = "notice"
low = -24.0
for = "5m"
"#;

fn main() {
    let millions = std::env::args().skip(1).find_map(|argument| argument.parse().ok()).unwrap_or(4_u64);
    let dir = tempfile::tempdir().expect("a temporary directory can be made");
    std::fs::write(dir.path().join("rules.toml"), RULES).expect("the directory is writable");
    let steps = millions * 1_000_000 / SENSORS;
    let file = dir.path().join("readings.csv");
    for (layout, times) in [("sensors in turn", true), ("sensor after sensor", false)] {
        write_table(&file, steps, times).expect("the file can be written");
        // In turn, so that whatever else the machine does disturbs both alike.
        let rounds: Vec<_> = (0..ROUNDS).map(|_| (seconds(|| count_lines(&file)), run(dir.path(), &file))).collect();
        let rows = steps * SENSORS;
        let best = |times: &mut dyn Iterator<Item = f64>| times.fold(f64::INFINITY, f64::min);
        let lines_s = best(&mut rounds.iter().map(|(lines, _)| lines.0));
        let read_s = best(&mut rounds.iter().map(|(_, run)| run.read_s));
        let all_s = best(&mut rounds.iter().map(|(_, run)| run.all_s));
        assert!(rounds.iter().all(|(lines, run)| lines.1 == rows + 1 && run.outcome.summary.accepted == rows));
        println!("{layout}: {rows} rows of {SENSORS} sensors, {} episodes", rounds[0].1.outcome.episodes.len());
        println!("  counting lines  {:>12.0} rows/s", rows as f64 / lines_s);
        println!("  reading         {:>12.0} rows/s", rows as f64 / read_s);
        println!("  whole backtest  {:>12.0} rows/s, {:.1} times counting lines", rows as f64 / all_s, all_s / lines_s);
    }
}

struct Run {
    read_s: f64,
    all_s: f64,
    outcome: Outcome,
}

fn run(config_dir: &Path, file: &Path) -> Run {
    let began_s = processor_seconds();
    let judgement = config::load_judgement(config_dir, None).expect("the rules are good");
    let mut backtest = Backtest::default();
    backtest.add_file(file, &judgement).expect("the file can be read");
    let read_s = processor_seconds() - began_s;
    let outcome = backtest.judge(judgement.rules, judgement.registry);
    Run { read_s, all_s: processor_seconds() - began_s, outcome }
}

fn seconds<T>(work: impl FnOnce() -> T) -> (f64, T) {
    let began_s = processor_seconds();
    let result = work();
    (processor_seconds() - began_s, result)
}

/// Returns for how long this thread has been on a processor, as Linux counts it.
fn processor_seconds() -> f64 {
    let counts = std::fs::read_to_string("/proc/thread-self/schedstat").expect("Linux counts a thread's time");
    let nanoseconds = counts.split(' ').next().and_then(|count| count.parse::<f64>().ok());
    nanoseconds.expect("the first of the counts is the time in nanoseconds") / 1e9
}

fn count_lines(file: &Path) -> u64 {
    let mut file = File::open(file).expect("the file is there");
    let mut buffer = vec![0; 1 << 18];
    let mut lines = 0;
    loop {
        match file.read(&mut buffer).expect("the file can be read") {
            0 => return lines,
            length => lines += memchr::memchr_iter(b'\n', &buffer[..length]).count() as u64,
        }
    }
}

fn write_table(file: &Path, steps: u64, in_turn: bool) -> std::io::Result<()> {
    let mut out = BufWriter::new(File::create(file)?);
    out.write_all(b"event_time,operator,unit,sensor,kind,value\n")?;
    let mut noise = 0x9E37_79B9_7F4A_7C15_u64;
    let (outer, inner) = if in_turn { (steps, SENSORS) } else { (SENSORS, steps) };
    for first in 0..outer {
        for second in 0..inner {
            let (step, sensor) = if in_turn { (first, second) } else { (second, first) };
            noise ^= noise << 13;
            noise ^= noise >> 7;
            noise ^= noise << 17;
            // A door stands open for a while now and then.
            let warm = if (step + sensor * 7) % 400 < 25 { 4.0 } else { 0.0 };
            let value = -20.0 + warm + (noise % 200) as f64 / 100.0;
            let event_time = START.plus_millis((step * 60_000 + sensor) as i64);
            writeln!(out, "{event_time},op1,unit-{},t{},temperature,{value:.2}", sensor / 4, sensor % 4)?;
        }
    }
    out.flush()
}
