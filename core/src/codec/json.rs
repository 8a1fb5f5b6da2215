//! What the JSON formats have in common: fields that are looked at one by one, after the syntax is known to be good.

use std::borrow::Cow;
use std::fmt;
use std::marker::PhantomData;

use serde::de::value::MapAccessDeserializer;
use serde::de::{MapAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::value::RawValue;

use super::{DeadLetterReason, PAYLOAD_MAX_BYTES, Rejection};
use crate::model::Timestamp;

/// A field as it stands in the payload; `None` where the key is absent.
///
/// A field that is not looked into cannot spoil its neighbours: a number too large for a double, a string with half
/// of a surrogate pair or an unexpected object are found when the field is judged, and only the reading falls.
pub(crate) type Field<'a> = Option<&'a RawValue>;

/// Deserializes a field so that an explicit `null` is told from an absent key.
pub(crate) fn field<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Field<'de>, D::Error> {
    <&RawValue>::deserialize(deserializer).map(Some)
}

/// An object and nothing else: by itself, a derived struct would also take its fields as an array.
pub(crate) struct Object<T>(pub(crate) T);

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Object<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct ObjectVisitor<T>(PhantomData<T>);

        impl<'de, T: Deserialize<'de>> Visitor<'de> for ObjectVisitor<T> {
            type Value = Object<T>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Object<T>, A::Error> {
                T::deserialize(MapAccessDeserializer::new(map)).map(Object)
            }
        }

        deserializer.deserialize_map(ObjectVisitor(PhantomData))
    }
}

/// Returns the payload as text, or why it is not even that.
pub(crate) fn text(payload: &[u8]) -> Result<&str, Rejection> {
    if payload.len() > PAYLOAD_MAX_BYTES {
        let detail = format!("payload of {} bytes, at most {PAYLOAD_MAX_BYTES} are taken", payload.len());
        return Err(Rejection::new(DeadLetterReason::Oversize, detail));
    }
    std::str::from_utf8(payload).map_err(|error| Rejection::new(DeadLetterReason::Malformed, error.to_string()))
}

/// Says why `text` is not the object that was expected: broken syntax, or good syntax and another shape.
pub(crate) fn explain(text: &str, error: &serde_json::Error) -> Rejection {
    match serde_json::from_str::<&RawValue>(text) {
        Err(syntax) => Rejection::new(DeadLetterReason::Malformed, syntax.to_string()),
        Ok(_) => schema(error.to_string()),
    }
}

/// Returns a rejection of something that has the wrong shape.
pub(crate) fn schema(detail: impl Into<String>) -> Rejection {
    Rejection::new(DeadLetterReason::Schema, detail)
}

/// Returns the string that a field holds; `None` where it is absent or `null`.
pub(crate) fn string<'a>(name: &str, field: Field<'a>) -> Result<Option<Cow<'a, str>>, Rejection> {
    let Some(raw) = field.map(RawValue::get) else { return Ok(None) };
    if raw == "null" {
        return Ok(None);
    }
    if let Some(inner) = raw.strip_prefix('"').and_then(|rest| rest.strip_suffix('"'))
        && !inner.contains('\\')
    {
        return Ok(Some(Cow::Borrowed(inner)));
    }
    match serde_json::from_str(raw) {
        Ok(text) => Ok(Some(Cow::Owned(text))),
        Err(_) => Err(schema(format!("`{name}` is not a string: {}", excerpt(raw)))),
    }
}

/// Returns the instant that a `ts` field holds; `None` where it is absent or `null`.
pub(crate) fn time(field: Field<'_>) -> Result<Option<Timestamp>, Rejection> {
    let Some(raw) = field.map(RawValue::get) else { return Ok(None) };
    if raw == "null" {
        return Ok(None);
    }
    if raw.starts_with('"') {
        let text = string("ts", field)?.unwrap_or_default();
        return Timestamp::parse_rfc3339(&text).map(Some).map_err(|error| schema(format!("`ts`: {error}")));
    }
    // A number with a fraction or an exponent is refused too: whoever writes one has probably written seconds.
    match raw.parse() {
        Ok(millis) => Ok(Some(Timestamp::from_millis(millis))),
        Err(_) => {
            Err(schema(format!("`ts` is neither RFC 3339 with an offset nor integer milliseconds: {}", excerpt(raw))))
        }
    }
}

/// Returns the beginning of a value, short enough for a message to people.
pub(crate) fn excerpt(raw: &str) -> Cow<'_, str> {
    const SHOWN_CHARS: usize = 80;
    match raw.char_indices().nth(SHOWN_CHARS) {
        None => Cow::Borrowed(raw),
        Some((end, _)) => Cow::Owned(format!("{}…", &raw[..end])),
    }
}
