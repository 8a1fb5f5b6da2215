//! Files of readings: recordings of a broker (JSON Lines) and tables (CSV), either of them also compressed with zstd.
//!
//! A file is read in the order of its lines, which is the order of arrival, and never held in memory.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

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

/// Reads a file and hands everything in it, with the number of its line, to `take`; `bytes_read` grows by what was read
/// of the file.
///
/// # Errors
/// The file cannot be read, or is something else. What is wrong with one line only goes to `take`.
pub fn read(
    file: &Path,
    judgement: &Judgement,
    bytes_read: &AtomicU64,
    take: &mut dyn FnMut(u64, Item<'_>),
) -> Result<(), RecordingError> {
    let failed = |source| RecordingError::Read { file: file.to_owned(), source };
    let opened = CountedFile { file: File::open(file).map_err(failed)?, bytes_read };
    let is_compressed = file.extension().is_some_and(|extension| extension == "zst");
    let reader: Box<dyn Read + '_> =
        if is_compressed { Box::new(zstd::Decoder::new(opened).map_err(failed)?) } else { Box::new(opened) };
    let mut reader = BufReader::with_capacity(1 << 18, reader);
    match reader.fill_buf().map_err(failed)?.first() {
        Some(b'{') => read_messages(file, reader, judgement, take),
        Some(_) => read_table(file, reader, judgement, take),
        None => Err(RecordingError::Unknown { file: file.to_owned(), reason: "it is empty".to_owned() }),
    }
}

/// Counts what is read.
struct CountedFile<'a> {
    file: File,
    bytes_read: &'a AtomicU64,
}

impl Read for CountedFile<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let length = self.file.read(buffer)?;
        self.bytes_read.fetch_add(length as u64, Ordering::Relaxed);
        Ok(length)
    }
}

/// The columns of a table of readings.
pub const COLUMNS: [&str; 6] = ["event_time", "operator", "unit", "sensor", "kind", "value"];

/// Where the columns of a table are.
struct Layout {
    /// For each of [`COLUMNS`] the number of its field.
    fields: [usize; COLUMNS.len()],
    /// For each field which of [`COLUMNS`] it is; what follows the last of them does not matter.
    columns: Vec<Option<usize>>,
}

impl Layout {
    fn of_titles<'a>(titles: impl Iterator<Item = &'a [u8]>) -> Result<Self, String> {
        let titles: Vec<&[u8]> = titles.map(<[u8]>::trim_ascii).collect();
        let mut fields = [0; COLUMNS.len()];
        for (field, name) in fields.iter_mut().zip(COLUMNS) {
            let found = titles.iter().position(|title| *title == name.as_bytes());
            *field = found.ok_or_else(|| format!("the first line has no column `{name}`"))?;
        }
        let columns = (0..titles.len()).map(|number| fields.iter().position(|field| *field == number)).collect();
        Ok(Self { fields, columns })
    }
}

/// The fields of [`COLUMNS`], as far as a row has them.
type Row<'a> = [Option<&'a [u8]>; COLUMNS.len()];

/// Reads a table. Lines without quotes are cut at their commas; from the first one with a quote on, the library for CSV
/// takes over, which is slower.
fn read_table(
    file: &Path,
    mut reader: impl BufRead,
    judgement: &Judgement,
    take: &mut dyn FnMut(u64, Item<'_>),
) -> Result<(), RecordingError> {
    let failed = |source| RecordingError::Read { file: file.to_owned(), source };
    let unknown = |reason| RecordingError::Unknown { file: file.to_owned(), reason };
    let untitled = || unknown(format!("the first line has no column `{}`", COLUMNS[0]));
    let mut layout: Option<Layout> = None;
    // The beginning of a line whose end has not been read yet.
    let mut begun: Vec<u8> = Vec::new();
    let mut number = 0;
    loop {
        let buffer = reader.fill_buf().map_err(failed)?;
        let length = buffer.len();
        let is_end = length == 0;
        let mut rest = buffer;
        loop {
            let end = match memchr::memchr(b'\n', rest) {
                Some(end) => end,
                None if is_end && !begun.is_empty() => 0,
                None => break,
            };
            let mut line = &rest[..end];
            rest = rest.get(end + 1..).unwrap_or_default();
            if !begun.is_empty() {
                begun.extend_from_slice(line);
                line = &begun;
            }
            number += 1;
            if number == 1 {
                line = line.strip_prefix(b"\xef\xbb\xbf").unwrap_or(line);
            }
            line = line.strip_suffix(b"\r").unwrap_or(line);
            if memchr::memchr2(b'"', b'\r', line).is_some() {
                let unread = [line, b"\n", rest].concat();
                reader.consume(length);
                return read_quoted_table(file, unread.chain(reader), (number, layout), judgement, take);
            }
            match &layout {
                _ if line.is_empty() => {}
                None => layout = Some(Layout::of_titles(line.split(|byte| *byte == b',')).map_err(unknown)?),
                Some(layout) => take_row(number, &row_of_line(line, layout), judgement, take),
            }
            begun.clear();
        }
        begun.extend_from_slice(rest);
        reader.consume(length);
        if is_end {
            return layout.map(|_| ()).ok_or_else(untitled);
        }
    }
}

fn row_of_line<'a>(line: &'a [u8], layout: &Layout) -> Row<'a> {
    let mut row = [None; COLUMNS.len()];
    for (field, column) in line.split(|byte| *byte == b',').zip(&layout.columns) {
        if let Some(column) = column {
            row[*column] = Some(field);
        }
    }
    row
}

/// Reads on from a line with this number; its columns are known unless it is the first.
fn read_quoted_table(
    file: &Path,
    reader: impl Read,
    (first_line, mut layout): (u64, Option<Layout>),
    judgement: &Judgement,
    take: &mut dyn FnMut(u64, Item<'_>),
) -> Result<(), RecordingError> {
    let unknown = |reason| RecordingError::Unknown { file: file.to_owned(), reason };
    let mut table = csv::ReaderBuilder::new().flexible(true).has_headers(false).from_reader(reader);
    let mut record = csv::ByteRecord::new();
    loop {
        match table.read_byte_record(&mut record) {
            Ok(false) => {
                let untitled = || unknown(format!("the first line has no column `{}`", COLUMNS[0]));
                return layout.map(|_| ()).ok_or_else(untitled);
            }
            Ok(true) => {
                let line = first_line - 1 + record.position().map_or(1, csv::Position::line);
                match &layout {
                    None => layout = Some(Layout::of_titles(record.iter()).map_err(unknown)?),
                    Some(layout) => take_row(line, &layout.fields.map(|field| record.get(field)), judgement, take),
                }
            }
            Err(error) => {
                return Err(RecordingError::Read { file: file.to_owned(), source: error.into() });
            }
        }
    }
}

fn take_row(line: u64, row: &Row<'_>, judgement: &Judgement, take: &mut dyn FnMut(u64, Item<'_>)) {
    match read_row(row, judgement) {
        Ok(reading) => {
            take(line, Item::Now(reading.event_time));
            take(line, Item::Reading(reading));
        }
        Err((reason, detail)) => take(line, Item::Refused { reason, detail }),
    }
}

fn read_row<'a>(row: &Row<'a>, judgement: &Judgement) -> Result<RecordedReading<'a>, (DeadLetterReason, String)> {
    use DeadLetterReason::{Malformed, Range, Schema, Unregistered};
    let mut fields = [""; COLUMNS.len()];
    for ((field, bytes), name) in fields.iter_mut().zip(row).zip(COLUMNS) {
        let bytes = bytes.ok_or_else(|| (Malformed, format!("the row has no `{name}`")))?;
        let text = std::str::from_utf8(bytes).map_err(|_| (Malformed, format!("`{name}` is not UTF-8")))?;
        // Nearly every field begins and ends with something that is to be seen.
        let is_trimmed = |byte: Option<&u8>| byte.is_some_and(u8::is_ascii_graphic);
        *field = if is_trimmed(bytes.first()) && is_trimmed(bytes.last()) { text } else { text.trim() };
    }
    let [event_time, operator, unit, sensor, kind, value] = fields;
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
    if (1..=64).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_graphic()) {
        return true;
    }
    (1..=64).contains(&text.chars().count()) && !text.chars().any(char::is_control)
}

/// Parses RFC 3339 with an offset, or whole milliseconds since 1970.
pub fn parse_time(text: &str) -> Option<Timestamp> {
    // A whole number has no colon, where RFC 3339 has one.
    match text.as_bytes().get(13) {
        Some(b':') => Timestamp::parse_rfc3339(text).ok(),
        _ => text.parse().ok().map(Timestamp::from_millis),
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
    use proptest::prelude::*;

    use super::*;

    /// Reads a table and returns what was said of every row.
    fn items(read: impl FnOnce(&mut dyn FnMut(u64, Item<'_>)) -> Result<(), RecordingError>) -> (Vec<String>, String) {
        let mut items = Vec::new();
        let result = read(&mut |_, item| items.push(format!("{item:?}")));
        (items, format!("{:?}", result.map_err(|error| error.to_string())))
    }

    /// Lines such as somebody might have edited by hand.
    fn table() -> impl Strategy<Value = String> {
        let field = prop_oneof![
            6 => Just("1795428000000"),
            2 => Just("2026-11-23T10:00:00+08:00"),
            6 => Just("op1"),
            2 => Just("temperature"),
            2 => Just("-18.5"),
            1 => Just(""),
            1 => Just(" u1 "),
            1 => Just("\"t,1\""),
            1 => Just("\"a\"\"b\nc\"d"),
            1 => Just("x\"y"),
            1 => Just("冷"),
        ];
        let good = Just("1795428000000,op1,u1,t1,temperature,-18.5".to_owned());
        let line =
            prop_oneof![2 => good, 3 => proptest::collection::vec(field, 0..8).prop_map(|fields| fields.join(","))];
        let end = prop_oneof![6 => Just("\n"), 3 => Just("\r\n"), 1 => Just("\r"), 1 => Just("\n\n"), 1 => Just("")];
        let lines = proptest::collection::vec((line, end), 0..8);
        let titles = prop_oneof![
            4 => Just("event_time,operator,unit,sensor,kind,value\n"),
            1 => Just("\u{feff}event_time,operator,unit,sensor,kind,value\r\n"),
            1 => Just("value,kind,note,sensor,unit, operator ,event_time\n"),
            1 => Just("\"event_time\",operator,unit,sensor,kind,value\n"),
            1 => Just("event_time,operator\n"),
            1 => Just("\r\n\n"),
        ];
        (titles, lines).prop_map(|(titles, lines)| {
            lines.into_iter().fold(titles.to_owned(), |table, (line, end)| table + &line + end)
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 2_000, ..ProptestConfig::default() })]

        #[test]
        fn lines_cut_at_their_commas_say_what_the_library_for_csv_makes_of_them(table in table(), capacity in 1..200_usize) {
            let file = Path::new("table.csv");
            let judgement = crate::config::Bundle::empty().1;
            let expected = items(|take| read_quoted_table(file, table.as_bytes(), (1, None), &judgement, take));
            let reader = BufReader::with_capacity(capacity, table.as_bytes());
            prop_assert_eq!(items(|take| read_table(file, reader, &judgement, take)), expected);
        }
    }

    #[test]
    fn a_row_is_told_by_its_line_before_and_after_the_first_quote() {
        let table = "event_time,operator,unit,sensor,kind,value\nx\n\ny\n1,op1,u1,\"t\n1\",door,1\nz\n";
        let mut lines = Vec::new();
        let judgement = crate::config::Bundle::empty().1;
        let mut take = |line, item: Item<'_>| {
            if matches!(item, Item::Refused { .. }) {
                lines.push(line);
            }
        };
        read_table(Path::new("table.csv"), table.as_bytes(), &judgement, &mut take).unwrap();
        // The sensor with a line break in its name is refused too.
        assert_eq!(lines, [2, 4, 5, 7]);
    }

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
