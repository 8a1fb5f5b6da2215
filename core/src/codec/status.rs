//! A device's word about itself: online, or, as its last will, not. It is shown and audited and judges nothing.

use serde::Deserialize;

use super::Rejection;
use super::json::{self, Field, Object, schema};
use crate::model::Timestamp;

/// What a status message says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Status {
    /// Whether the device is connected.
    pub online: bool,
    /// When that was so; `None` where the payload does not say.
    pub event_time: Option<Timestamp>,
}

/// Decodes `{"online": true, "ts": …}`.
pub fn decode(payload: &[u8]) -> Result<Status, Rejection> {
    #[derive(Deserialize)]
    struct Wire<'a> {
        #[serde(borrow, default, deserialize_with = "json::field")]
        online: Field<'a>,
        #[serde(borrow, default, deserialize_with = "json::field")]
        ts: Field<'a>,
    }

    let text = json::text(payload)?;
    let Object(wire) = serde_json::from_str::<Object<Wire<'_>>>(text).map_err(|error| json::explain(text, &error))?;
    let online = match wire.online.map(|raw| raw.get()) {
        Some("true") => true,
        Some("false") => false,
        _ => return Err(schema("`online` is neither true nor false")),
    };
    Ok(Status { online, event_time: json::time(wire.ts)? })
}

#[cfg(test)]
mod tests {
    use super::super::DeadLetterReason;
    use super::*;

    #[test]
    fn a_status_says_whether_the_device_is_online_and_since_when() {
        assert_eq!(decode(br#"{"online": true}"#), Ok(Status { online: true, event_time: None }));
        assert_eq!(
            decode(br#"{"ts": 1795427999123, "online": false, "why": "will"}"#),
            Ok(Status { online: false, event_time: Some(Timestamp::from_millis(1_795_427_999_123)) })
        );
    }

    #[test]
    fn a_status_that_does_not_say_it_is_refused() {
        for (payload, reason) in [
            ("", DeadLetterReason::Malformed),
            ("online", DeadLetterReason::Malformed),
            ("{}", DeadLetterReason::Schema),
            ("[true]", DeadLetterReason::Schema),
            (r#"{"online": 1}"#, DeadLetterReason::Schema),
            (r#"{"online": true, "online": false}"#, DeadLetterReason::Schema),
            (r#"{"online": true, "ts": "today"}"#, DeadLetterReason::Schema),
        ] {
            assert_eq!(decode(payload.as_bytes()).map_err(|rejection| rejection.reason), Err(reason), "{payload}");
        }
    }
}
