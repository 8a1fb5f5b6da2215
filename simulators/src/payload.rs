//! The payloads, as devices write them.

use serde::Serialize;

/// One measured value.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Measured {
    pub(crate) sensor: &'static str,
    pub(crate) kind: &'static str,
    pub(crate) value: Value,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) unit: Option<&'static str>,
}

/// A number, a switch, or `null` from a probe that failed.
#[derive(Debug, Clone, Copy, Serialize)]
#[serde(untagged)]
pub(crate) enum Value {
    Number(f64),
    Switch(bool),
    Failed,
}

/// Everything a unit measured at one instant.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Sample {
    #[serde(rename = "ts")]
    pub(crate) time_ms: i64,
    pub(crate) readings: Vec<Measured>,
}

#[derive(Serialize)]
struct Telemetry<'a> {
    seq: u64,
    #[serde(flatten)]
    sample: &'a Sample,
}

#[derive(Serialize)]
struct Backlog<'a> {
    seq: u64,
    samples: &'a [Sample],
}

#[derive(Serialize)]
struct Status {
    online: bool,
    #[serde(rename = "ts")]
    time_ms: i64,
}

/// Returns the message for one sample.
pub(crate) fn telemetry(seq: u64, sample: &Sample) -> Vec<u8> {
    encode(&Telemetry { seq, sample })
}

/// Returns the message for samples that could not be sent in time.
pub(crate) fn backlog(seq: u64, samples: &[Sample]) -> Vec<u8> {
    encode(&Backlog { seq, samples })
}

/// Returns the message that a unit, or the broker in its place, leaves about its connection.
pub(crate) fn status(online: bool, time_ms: i64) -> Vec<u8> {
    encode(&Status { online, time_ms })
}

fn encode(message: &impl Serialize) -> Vec<u8> {
    serde_json::to_vec(message).expect("numbers, switches and fixed texts always have a JSON form")
}

/// Rounds to two decimals, as the probes do.
pub(crate) fn to_hundredths(value: f64) -> f64 {
    (value * 100.0).round() / 100.0
}
