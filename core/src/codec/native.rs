//! Telemetry in the contract's own JSON.
//!
//! A message is parsed once into structs whose fields are still text ([`Field`]), and each reading is then judged by
//! itself. Only where the shape is so wrong that this fails (a reading that is no object, a key that stands twice) is
//! the message taken apart a second time, element by element, so that the good readings still get through.

use std::fmt;
use std::marker::PhantomData;

use serde::de::{IgnoredAny, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::value::RawValue;

use super::json::{self, Field, Object, excerpt, schema};
use super::{DeadLetterReason, Decoded, DecodedReading, READINGS_MAX, Rejection};
use crate::model::{Kind, Quality, Timestamp};

/// The native codec with its settings.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Native {
    /// Temperatures, as sent, by which the route's sensors say that they have none (85.0, −127).
    ///
    /// They are looked for in temperatures only: 85 is a fine humidity and a fine charge.
    pub sentinels: Box<[f64]>,
}

impl Native {
    /// Decodes a payload into `decoded`, replacing what it held; on an error it holds nothing.
    pub fn decode<'a>(&self, payload: &'a [u8], decoded: &mut Decoded<'a>) -> Result<(), Rejection> {
        decoded.clear();
        let text = json::text(payload)?;
        let result = match serde_json::from_str::<Object<Message<'a>>>(text) {
            Ok(Object(message)) => self.judge_message(&message, decoded),
            Err(error) => self.judge_piecewise(text, &error, decoded),
        };
        if result.is_err() {
            decoded.clear();
        }
        result
    }

    fn judge_message<'a>(&self, message: &Message<'a>, decoded: &mut Decoded<'a>) -> Result<(), Rejection> {
        if message.readings.is_none() && message.samples.is_none() {
            return Err(neither_readings_nor_samples());
        }
        decoded.take_seq(message.seq);
        let message_time = json::time(message.ts);
        for Object(reading) in message.readings.iter().flat_map(|list| &list.0) {
            decoded.push(self.judge(reading, &message_time))?;
        }
        let samples = message.samples.as_ref().map_or(&[][..], |list| &list.0);
        check_count(samples.len())?;
        for Object(sample) in samples {
            let Some(readings) = &sample.readings else {
                decoded.push(Err(sample_without_readings()))?;
                continue;
            };
            let time = sample_time(sample.ts, &message_time);
            for Object(reading) in &readings.0 {
                decoded.push(self.judge(reading, &time))?;
            }
        }
        Ok(())
    }

    /// Judges a message that does not have the expected shape as a whole, keeping every element that does.
    fn judge_piecewise<'a>(
        &self,
        text: &'a str,
        error: &serde_json::Error,
        decoded: &mut Decoded<'a>,
    ) -> Result<(), Rejection> {
        let Ok(Object(message)) = serde_json::from_str::<Object<Outline<'a>>>(text) else {
            return Err(json::explain(text, error));
        };
        let (readings, samples) = (not_null(message.readings), not_null(message.samples));
        if readings.is_none() && samples.is_none() {
            return Err(neither_readings_nor_samples());
        }
        decoded.take_seq(message.seq);
        let message_time = json::time(message.ts);
        if let Some(readings) = readings {
            self.judge_elements(readings, &message_time, decoded)?;
        }
        let Some(samples) = samples else { return Ok(()) };
        let Ok(List(samples)) = serde_json::from_str::<List<&RawValue>>(samples.get()) else {
            return decoded.push(Err(schema("`samples` is not an array")));
        };
        check_count(samples.len())?;
        for sample in samples {
            // Only the outline of a sample is read first: one wrong reading must not take the others with it.
            match serde_json::from_str::<Object<Outline<'a>>>(sample.get()) {
                Err(error) => decoded.push(Err(schema(format!("not a sample: {error}"))))?,
                Ok(Object(sample)) => match not_null(sample.readings) {
                    None => decoded.push(Err(sample_without_readings()))?,
                    Some(readings) => self.judge_elements(readings, &sample_time(sample.ts, &message_time), decoded)?,
                },
            }
        }
        Ok(())
    }

    fn judge_elements<'a>(
        &self,
        readings: &'a RawValue,
        time: &Time,
        decoded: &mut Decoded<'a>,
    ) -> Result<(), Rejection> {
        let Ok(List(readings)) = serde_json::from_str::<List<&RawValue>>(readings.get()) else {
            return decoded.push(Err(schema("`readings` is not an array")));
        };
        for reading in readings {
            let item = match serde_json::from_str::<Object<WireReading<'a>>>(reading.get()) {
                Ok(Object(reading)) => self.judge(&reading, time),
                Err(error) => Err(schema(format!("not a reading: {error}"))),
            };
            decoded.push(item)?;
        }
        Ok(())
    }

    /// Returns the reading that the fields amount to, `outer_time` being what the message or sample says.
    fn judge<'a>(&self, wire: &WireReading<'a>, outer_time: &Time) -> Result<DecodedReading<'a>, Rejection> {
        let Some(sensor) = json::string("sensor", wire.sensor)? else { return Err(schema("no `sensor`")) };
        if !is_sensor_name(&sensor) {
            return Err(schema("`sensor` is not 1 to 64 characters without control characters"));
        }
        let Some(kind) = json::string("kind", wire.kind)? else { return Err(schema("no `kind`")) };
        let Some(kind) = Kind::from_word(&kind) else {
            return Err(schema(format!("unknown kind `{}`", excerpt(&kind))));
        };
        let event_time = match json::time(wire.ts)? {
            Some(own) => Some(own),
            None => outer_time.clone()?,
        };
        let unit = json::string("unit", wire.unit)?;
        let unit = UnitOfMeasure::of(kind, unit.as_deref())?;
        let Some(value) = wire.value else { return Err(schema("no `value`; a failed probe is an explicit null")) };
        let (value, quality) = match parse_value(kind, value.get())? {
            Some(sent) if kind == Kind::Temperature && self.sentinels.contains(&sent) => (None, Quality::SENTINEL),
            Some(sent) => (Some(unit.to_own(sent)), Quality::GOOD),
            None => (None, Quality::GOOD),
        };
        if let Some(value) = value
            && !kind.is_possible(value)
        {
            let detail = format!("{kind} of {value} from sensor `{sensor}`");
            return Err(Rejection::new(DeadLetterReason::Range, detail));
        }
        Ok(DecodedReading { sensor, kind, event_time, value, quality })
    }
}

/// Returns whether a second delivery of this message can be told from a new message: it has a sequence number or a
/// time, or every one of its readings has a time.
pub fn has_identity(payload: &[u8]) -> bool {
    let Ok(text) = json::text(payload) else { return false };
    let Ok(Object(message)) = serde_json::from_str::<Object<Outline<'_>>>(text) else { return false };
    if matches!(parse_seq(message.seq), Ok(Some(_))) || matches!(json::time(message.ts), Ok(Some(_))) {
        return true;
    }
    let mut decoded = Decoded::default();
    Native::default().decode(payload, &mut decoded).is_ok()
        && !decoded.items.is_empty()
        && decoded.items.iter().all(|item| item.as_ref().is_ok_and(|reading| reading.event_time.is_some()))
}

/// What a `ts` says, or why it cannot be used; the latter matters only to readings without a time of their own.
type Time = Result<Option<Timestamp>, Rejection>;

#[derive(Deserialize)]
struct Message<'a> {
    #[serde(borrow, default, deserialize_with = "json::field")]
    ts: Field<'a>,
    #[serde(borrow, default, deserialize_with = "json::field")]
    seq: Field<'a>,
    #[serde(borrow)]
    readings: Option<List<Object<WireReading<'a>>>>,
    #[serde(borrow)]
    samples: Option<List<Object<Sample<'a>>>>,
}

#[derive(Deserialize)]
struct Sample<'a> {
    #[serde(borrow, default, deserialize_with = "json::field")]
    ts: Field<'a>,
    #[serde(borrow)]
    readings: Option<List<Object<WireReading<'a>>>>,
}

/// A message or a sample of which only the outermost shape is read.
#[derive(Deserialize)]
struct Outline<'a> {
    #[serde(borrow, default, deserialize_with = "json::field")]
    ts: Field<'a>,
    #[serde(borrow, default, deserialize_with = "json::field")]
    seq: Field<'a>,
    #[serde(borrow, default, deserialize_with = "json::field")]
    readings: Field<'a>,
    #[serde(borrow, default, deserialize_with = "json::field")]
    samples: Field<'a>,
}

#[derive(Deserialize)]
struct WireReading<'a> {
    #[serde(borrow, default, deserialize_with = "json::field")]
    sensor: Field<'a>,
    #[serde(borrow, default, deserialize_with = "json::field")]
    kind: Field<'a>,
    #[serde(borrow, default, deserialize_with = "json::field")]
    value: Field<'a>,
    #[serde(borrow, default, deserialize_with = "json::field")]
    unit: Field<'a>,
    #[serde(borrow, default, deserialize_with = "json::field")]
    ts: Field<'a>,
}

/// An array, of which no more is kept than shows that it is too long.
struct List<T>(Vec<T>);

impl<'de, T: Deserialize<'de>> Deserialize<'de> for List<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct ListVisitor<T>(PhantomData<T>);

        impl<'de, T: Deserialize<'de>> Visitor<'de> for ListVisitor<T> {
            type Value = List<T>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an array")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut sequence: A) -> Result<List<T>, A::Error> {
                let mut list = Vec::new();
                while list.len() <= READINGS_MAX {
                    match sequence.next_element()? {
                        Some(element) => list.push(element),
                        None => return Ok(List(list)),
                    }
                }
                while sequence.next_element::<IgnoredAny>()?.is_some() {}
                Ok(List(list))
            }
        }

        deserializer.deserialize_seq(ListVisitor(PhantomData))
    }
}

fn is_sensor_name(text: &str) -> bool {
    // Most names are short and plain, and then need no look at their characters.
    let is_plain = text.len() <= 64 && text.bytes().all(|byte| matches!(byte, b' '..=b'~'));
    !text.is_empty() && (is_plain || text.chars().count() <= 64 && !text.chars().any(char::is_control))
}

/// How a value as sent becomes one in the kind's own unit of measure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum UnitOfMeasure {
    Own,
    Kelvin,
    DegreeFahrenheit,
}

impl UnitOfMeasure {
    /// Returns the unit of measure with this UCUM or SenML symbol, provided that it fits the kind.
    fn of(kind: Kind, symbol: Option<&str>) -> Result<Self, Rejection> {
        let Some(symbol) = symbol else { return Ok(Self::Own) };
        match (kind, symbol) {
            (Kind::Temperature | Kind::Setpoint, "Cel") => Ok(Self::Own),
            (Kind::Temperature | Kind::Setpoint, "K") => Ok(Self::Kelvin),
            (Kind::Temperature | Kind::Setpoint, "[degF]") => Ok(Self::DegreeFahrenheit),
            (Kind::Humidity, "%RH" | "%") | (Kind::Battery, "%") => Ok(Self::Own),
            (Kind::Door | Kind::Power | Kind::Compressor | Kind::Defrost, "1" | "/") => Ok(Self::Own),
            (Kind::Latitude, "deg" | "lat") | (Kind::Longitude, "deg" | "lon") => Ok(Self::Own),
            _ => Err(schema(format!("unit `{}` does not fit {kind}", excerpt(symbol)))),
        }
    }

    fn to_own(self, sent: f64) -> f64 {
        match self {
            Self::Own => sent,
            Self::Kelvin => without_binary_tail(sent - 273.15),
            Self::DegreeFahrenheit => without_binary_tail((sent - 32.0) * 5.0 / 9.0),
        }
    }
}

/// Rounds to 1e-9, far below what any probe resolves, so that 277.15 K is 4 °C and not 4.000000000000057.
fn without_binary_tail(value: f64) -> f64 {
    // Beyond this a double has no such digits, and the product might overflow.
    if value.abs() > 1e6 { value } else { (value * 1e9).round() / 1e9 }
}

/// Returns the number that a `value` field holds; `None` where it is `null`.
fn parse_value(kind: Kind, raw: &str) -> Result<Option<f64>, Rejection> {
    let is_switch = matches!(kind, Kind::Door | Kind::Power | Kind::Compressor | Kind::Defrost);
    match raw {
        "null" => Ok(None),
        "true" if is_switch => Ok(Some(1.0)),
        "false" if is_switch => Ok(Some(0.0)),
        "true" | "false" => Err(schema(format!("`value` of {kind} is a boolean"))),
        number if number.starts_with(|c: char| c == '-' || c.is_ascii_digit()) => match number.parse::<f64>() {
            // Adding zero turns the negative zero into the common one.
            Ok(value) if value.is_finite() => Ok(Some(value + 0.0)),
            _ => Err(Rejection::new(DeadLetterReason::Range, format!("{kind} of {}", excerpt(number)))),
        },
        other => Err(schema(format!("`value` is neither a number, a boolean nor null: {}", excerpt(other)))),
    }
}

/// Returns the sequence number that a `seq` field holds, or that it holds something else.
fn parse_seq(field: Field<'_>) -> Result<Option<u64>, std::num::ParseIntError> {
    not_null(field).map(|raw| raw.get().parse()).transpose()
}

impl<'a> Decoded<'a> {
    fn clear(&mut self) {
        self.seq = None;
        self.invalid_seq = false;
        self.items.clear();
    }

    fn take_seq(&mut self, field: Field<'_>) {
        let seq = parse_seq(field);
        self.invalid_seq = seq.is_err();
        self.seq = seq.ok().flatten();
    }

    fn push(&mut self, item: Result<DecodedReading<'a>, Rejection>) -> Result<(), Rejection> {
        self.items.push(item);
        check_count(self.items.len())
    }
}

/// Refuses a message with more than [`READINGS_MAX`] readings or samples.
fn check_count(count: usize) -> Result<(), Rejection> {
    if count <= READINGS_MAX {
        return Ok(());
    }
    let detail = format!("more than {READINGS_MAX} readings or samples in one message");
    Err(Rejection::new(DeadLetterReason::Oversize, detail))
}

fn not_null(field: Field<'_>) -> Field<'_> {
    field.filter(|raw| raw.get() != "null")
}

fn sample_time(own: Field<'_>, message_time: &Time) -> Time {
    match json::time(own) {
        Ok(None) => message_time.clone(),
        own => own,
    }
}

fn neither_readings_nor_samples() -> Rejection {
    schema("neither `readings` nor `samples`")
}

fn sample_without_readings() -> Rejection {
    schema("a sample without `readings`")
}

#[cfg(test)]
mod tests;
