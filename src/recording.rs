//! Files of readings: recordings of a broker (JSON Lines) and tables (CSV), either of them also compressed with zstd.
//!
//! A file is read in the order of its lines, which is the order of arrival, and never held in memory.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::path::{Path, PathBuf};

use base64::alphabet;
use base64::engine::{DecodePaddingMode, Engine, GeneralPurpose, GeneralPurposeConfig};
use frostline_core::codec::DeadLetterReason;
use frostline_core::model::{Kind, Name, Timestamp};
use serde::Deserialize;
use serde_json::value::RawValue;

use crate::config::Judgement;
use crate::journal::Message;
use crate::pipeline::decode::{self, Meaning};

/// Why a file cannot be read on.
#[derive(Debug, thiserror::Error)]
pub enum RecordingError {
    /// The file cannot be opened or read.
    #[error("cannot read `{file}`")]
    Read {
        /// The file.
        file: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// The file is neither a recording nor a table of readings.
    #[error("`{file}` is neither a recording nor a table of readings: {reason}")]
    Unknown {
        /// The file.
        file: PathBuf,
        /// What is missing.
        reason: String,
    },
}

/// One thing that a file says.
#[derive(Debug)]
pub enum Item<'a> {
    /// A reading that can be used.
    Reading(RecordedReading<'a>),
    /// A reading or a message that cannot be used.
    Refused {
        /// The class of the reason.
        reason: DeadLetterReason,
        /// What exactly is wrong, for people.
        detail: String,
    },
    /// The instant to which *now* has moved.
    Now(Timestamp),
}

/// A usable reading of a file.
#[derive(Debug, Clone, Copy)]
pub struct RecordedReading<'a> {
    /// The enterprise responsible; a valid [`Name`].
    pub operator: &'a str,
    /// The unit; a valid [`Name`].
    pub unit: &'a str,
    /// The probe.
    pub sensor: &'a str,
    /// What was measured.
    pub kind: Kind,
    /// When it was measured, or else when it arrived.
    pub event_time: Timestamp,
    /// Whether nobody said when it was measured; it then goes to the next free millisecond of its series.
    pub is_server_time: bool,
    /// The value; `None` says that the probe failed.
    pub value: Option<f64>,
}

/// Reads a file and hands everything in it, with the number of its line, to `take`.
///
/// # Errors
/// The file cannot be read, or is something else. What is wrong with one line only goes to `take`.
pub fn read(file: &Path, judgement: &Judgement, take: &mut dyn FnMut(u64, Item<'_>)) -> Result<(), RecordingError> {
    let failed = |source| RecordingError::Read { file: file.to_owned(), source };
    let opened = File::open(file).map_err(failed)?;
    let is_compressed = file.extension().is_some_and(|extension| extension == "zst");
    let reader: Box<dyn Read> =
        if is_compressed { Box::new(zstd::Decoder::new(opened).map_err(failed)?) } else { Box::new(opened) };
    let mut reader = BufReader::with_capacity(1 << 18, reader);
    match reader.fill_buf().map_err(failed)?.first() {
        Some(b'{') => read_messages(file, reader, judgement, take),
        Some(_) => read_table(file, reader, judgement, take),
        None => Err(RecordingError::Unknown { file: file.to_owned(), reason: "it is empty".to_owned() }),
    }
}

const COLUMNS: [&str; 6] = ["event_time", "operator", "unit", "sensor", "kind", "value"];

fn read_table(
    file: &Path,
    reader: impl Read,
    judgement: &Judgement,
    take: &mut dyn FnMut(u64, Item<'_>),
) -> Result<(), RecordingError> {
    let unknown = |reason: String| RecordingError::Unknown { file: file.to_owned(), reason };
    let mut table = csv::ReaderBuilder::new().flexible(true).from_reader(reader);
    let header = table.byte_headers().map_err(|error| unknown(error.to_string()))?;
    let mut columns = [0; COLUMNS.len()];
    for (column, name) in columns.iter_mut().zip(COLUMNS) {
        let found = header.iter().position(|title| title.trim_ascii() == name.as_bytes());
        *column = found.ok_or_else(|| unknown(format!("the first line has no column `{name}`")))?;
    }
    let mut row = csv::ByteRecord::new();
    loop {
        let line = table.position().line();
        match table.read_byte_record(&mut row) {
            Ok(false) => return Ok(()),
            Ok(true) => {
                let line = row.position().map_or(line, csv::Position::line);
                match read_row(&row, &columns, judgement) {
                    Ok(reading) => {
                        take(line, Item::Now(reading.event_time));
                        take(line, Item::Reading(reading));
                    }
                    Err((reason, detail)) => take(line, Item::Refused { reason, detail }),
                }
            }
            Err(error) => match error.into_kind() {
                csv::ErrorKind::Io(source) => return Err(RecordingError::Read { file: file.to_owned(), source }),
                kind => {
                    let detail = format!("{kind:?}");
                    take(line, Item::Refused { reason: DeadLetterReason::Malformed, detail });
                }
            },
        }
    }
}

fn read_row<'a>(
    row: &'a csv::ByteRecord,
    columns: &[usize; COLUMNS.len()],
    judgement: &Judgement,
) -> Result<RecordedReading<'a>, (DeadLetterReason, String)> {
    use DeadLetterReason::{Malformed, Range, Schema, Unregistered};
    let mut fields = [""; COLUMNS.len()];
    for ((field, column), name) in fields.iter_mut().zip(columns).zip(COLUMNS) {
        let bytes = row.get(*column).ok_or_else(|| (Malformed, format!("the row has no `{name}`")))?;
        *field = std::str::from_utf8(bytes).map_err(|_| (Malformed, format!("`{name}` is not UTF-8")))?;
    }
    let [event_time, operator, unit, sensor, kind, value] = fields.map(str::trim);
    let event_time = parse_time(event_time)
        .ok_or_else(|| (Schema, format!("`event_time` is not RFC 3339 or whole milliseconds: `{event_time}`")))?;
    for (name, what) in [(operator, "operator"), (unit, "unit")] {
        if !Name::is_valid(name) {
            return Err((Schema, format!("`{what}` is not a name: `{name}`")));
        }
    }
    if !is_sensor_id(sensor) {
        return Err((Schema, format!("`sensor` has not 1 to 64 characters, or control characters: `{sensor}`")));
    }
    let kind = Kind::from_word(kind).ok_or_else(|| (Schema, format!("`kind` is not known: `{kind}`")))?;
    let value = match value {
        "" => None,
        text => {
            let value = text.parse::<f64>().ok().filter(|value| value.is_finite());
            Some(value.ok_or_else(|| (Schema, format!("`value` is not a finite number: `{text}`")))?)
        }
    };
    if let Some(value) = value.filter(|value| !kind.is_possible(*value)) {
        return Err((Range, format!("{value} is not possible for {kind}")));
    }
    if judgement.ingest.refuse_unknown_units && !decode::is_registered(judgement, operator, unit) {
        return Err((Unregistered, format!("unit {operator}/{unit} is not in fleet.toml")));
    }
    Ok(RecordedReading { operator, unit, sensor, kind, event_time, is_server_time: false, value })
}

/// Returns whether a text may be the name of a sensor.
fn is_sensor_id(text: &str) -> bool {
    (1..=64).contains(&text.chars().count()) && !text.chars().any(char::is_control)
}

/// Parses RFC 3339 with an offset, or whole milliseconds since 1970.
fn parse_time(text: &str) -> Option<Timestamp> {
    match text.parse::<i64>() {
        Ok(millis) => Some(Timestamp::from_millis(millis)),
        Err(_) => Timestamp::parse_rfc3339(text).ok(),
    }
}

/// The first line of a recording.
#[derive(Deserialize)]
struct Header {
    frostline_recording: u32,
}

/// Every other line of a recording.
#[derive(Deserialize)]
struct RecordedMessage<'a> {
    #[serde(borrow)]
    received_at: &'a RawValue,
    topic: String,
    #[serde(borrow)]
    payload: Option<&'a RawValue>,
    payload_b64: Option<String>,
}

fn read_messages(
    file: &Path,
    mut reader: impl BufRead,
    judgement: &Judgement,
    take: &mut dyn FnMut(u64, Item<'_>),
) -> Result<(), RecordingError> {
    let mut text = String::new();
    for line in 1_u64.. {
        text.clear();
        let length =
            reader.read_line(&mut text).map_err(|source| RecordingError::Read { file: file.to_owned(), source })?;
        if length == 0 {
            break;
        }
        if line == 1 {
            let header = serde_json::from_str::<Header>(&text).ok();
            if header.is_none_or(|header| header.frostline_recording != 1) {
                let reason = "its first line does not say `\"frostline_recording\": 1`".to_owned();
                return Err(RecordingError::Unknown { file: file.to_owned(), reason });
            }
        } else if !text.trim().is_empty() {
            read_message(&text, judgement, &mut |item| take(line, item));
        }
    }
    Ok(())
}

fn read_message(text: &str, judgement: &Judgement, take: &mut dyn FnMut(Item<'_>)) {
    let mut refuse = |detail: String| take(Item::Refused { reason: DeadLetterReason::Malformed, detail });
    let message: RecordedMessage<'_> = match serde_json::from_str(text) {
        Ok(message) => message,
        Err(error) => return refuse(format!("the line is not a recorded message: {error}")),
    };
    let Some(received_at) = parse_time(message.received_at.get().trim_matches('"')) else {
        return refuse(format!("`received_at` is not a time: {}", message.received_at));
    };
    let payload = match (message.payload, message.payload_b64.as_deref().map(decode_base64)) {
        (Some(payload), None) => payload.get().as_bytes().to_vec(),
        (None, Some(Some(bytes))) => bytes,
        (None, Some(None)) => return refuse("`payload_b64` is not base64".to_owned()),
        (None, None) | (Some(_), Some(_)) => {
            return refuse("expected either `payload` or `payload_b64`".to_owned());
        }
    };
    take(Item::Now(received_at));
    let message = Message {
        topic: message.topic.as_bytes(),
        payload: &payload,
        retained: false,
        oversize: None,
        original_received_at: None,
    };
    match decode::decode(judgement, &message, received_at) {
        Meaning::Status { .. } => {}
        Meaning::Dead { rejection, .. } => {
            take(Item::Refused { reason: rejection.reason, detail: rejection.detail });
        }
        Meaning::Telemetry(telemetry) => {
            for item in telemetry.decoded.items {
                match item {
                    Err(rejection) => take(Item::Refused { reason: rejection.reason, detail: rejection.detail }),
                    Ok(reading) => take(Item::Reading(RecordedReading {
                        operator: telemetry.operator,
                        unit: telemetry.unit,
                        sensor: &reading.sensor,
                        kind: reading.kind,
                        event_time: reading.event_time.unwrap_or(received_at),
                        is_server_time: reading.event_time.is_none(),
                        value: reading.value,
                    })),
                }
            }
        }
    }
}

/// Returns the bytes that a text says in base64 with the standard alphabet; padding may be missing.
fn decode_base64(text: &str) -> Option<Vec<u8>> {
    const ENGINE: GeneralPurpose = GeneralPurpose::new(
        &alphabet::STANDARD,
        GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
    );
    ENGINE.decode(text).ok()
}

#[cfg(test)]
mod tests {
    use super::decode_base64;

    #[test]
    fn base64_reads_what_others_write() {
        for (text, bytes) in [("", ""), ("Zg==", "f"), ("Zm8=", "fo"), ("Zm9v", "foo"), ("Zm9vYg", "foob")] {
            assert_eq!(decode_base64(text).unwrap(), bytes.as_bytes(), "{text}");
        }
        for wrong in ["Z", "Zm9v!", "Zm9=v", "Zh"] {
            assert_eq!(decode_base64(wrong), None, "{wrong}");
        }
    }
}
