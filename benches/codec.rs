//! What a message costs on its way from JSON to line protocol, next to what checking its syntax alone costs.
//!
//! `cargo bench --bench codec`. The best of many short rounds counts, since others use the machine too.

#![expect(clippy::print_stdout, reason = "a benchmark prints its figures")]

use std::hint::black_box;
use std::time::Instant;

use frostline::series::line_protocol::LineBatch;
use frostline_core::codec::Decoded;
use frostline_core::codec::native::Native;
use frostline_core::model::{Kind, Timestamp};

const ROUNDS: usize = 200;
const MESSAGES: usize = 1000;

fn main() {
    let payloads: Vec<String> = (0..MESSAGES).map(payload).collect();
    let syntax_ns = best_ns(|| {
        for payload in &payloads {
            black_box(serde_json::from_str::<serde::de::IgnoredAny>(black_box(payload)).is_ok());
        }
    });
    let native = Native::default();
    let mut decoded = Decoded::default();
    let decode_ns = best_ns(|| {
        for payload in &payloads {
            black_box(native.decode(black_box(payload.as_bytes()), &mut decoded).is_ok());
        }
    });
    let mut lines = LineBatch::default();
    let line_ns = best_ns(|| {
        lines.clear();
        for number in 0..MESSAGES {
            let event_time = Timestamp::from_millis(1_795_427_999_123 + number as i64);
            let value = number as f64 / 100.0 - 30.0;
            lines.push_reading(black_box("op1"), "unit-17", "t1", Kind::Temperature, event_time, Some(value));
        }
        black_box(lines.as_bytes());
    });
    println!("payload            {:>7} bytes, two readings", payloads[0].len());
    println!("decode             {decode_ns:>7.0} ns, {:.1} times its syntax alone", decode_ns / syntax_ns);
    println!("line of protocol   {line_ns:>7.0} ns");
}

fn payload(number: usize) -> String {
    format!(
        r#"{{"ts":"2026-11-23T10:00:00.{number:03}Z","seq":{number},"readings":[{{"sensor":"t1","kind":"temperature","value":-18.42,"unit":"Cel"}},{{"sensor":"h1","kind":"humidity","value":61.2,"unit":"%RH"}}]}}"#
    )
}

/// Returns the nanoseconds that one of the messages took in the best round.
fn best_ns(mut round: impl FnMut()) -> f64 {
    let times = (0..ROUNDS).map(|_| {
        let began = Instant::now();
        round();
        began.elapsed().as_secs_f64()
    });
    times.fold(f64::INFINITY, f64::min) / MESSAGES as f64 * 1e9
}
