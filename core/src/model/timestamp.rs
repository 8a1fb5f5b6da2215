use std::fmt;

/// An instant: milliseconds since 1970-01-01T00:00:00Z.
///
/// Which instant it is goes into the name of the variable that holds it: `event_time` (when measured), `received_at`
/// (when the journal took it), `recorded_at` (when a decision was written).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Timestamp(i64);

/// Why a text is not an instant.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not an RFC 3339 time with an offset")]
pub struct TimestampError(pub String);

impl Timestamp {
    /// Earlier than any instant a reading may have.
    pub const MIN: Self = Self(i64::MIN);
    /// Later than any instant a reading may have.
    pub const MAX: Self = Self(i64::MAX);

    /// Returns the instant `millis` milliseconds after 1970-01-01T00:00:00Z.
    pub const fn from_millis(millis: i64) -> Self {
        Self(millis)
    }

    /// Returns the milliseconds since 1970-01-01T00:00:00Z.
    pub const fn as_millis(self) -> i64 {
        self.0
    }

    /// Parses RFC 3339 with an offset; digits below a millisecond are cut off, towards the past.
    pub fn parse_rfc3339(text: &str) -> Result<Self, TimestampError> {
        let parsed: jiff::Timestamp = text.parse().map_err(|_| TimestampError(text.to_owned()))?;
        let millis = parsed.as_nanosecond().div_euclid(1_000_000);
        i64::try_from(millis).map(Self).map_err(|_| TimestampError(text.to_owned()))
    }

    /// Returns the instant `millis` later, or the nearest one that can be expressed.
    #[must_use]
    pub const fn plus_millis(self, millis: i64) -> Self {
        Self(self.0.saturating_add(millis))
    }

    /// Returns how many milliseconds `self` is later than `earlier`; negative where it is before it.
    pub const fn millis_since(self, earlier: Self) -> i64 {
        self.0.saturating_sub(earlier.0)
    }
}

/// RFC 3339 in UTC with exactly three decimals: `2026-11-23T10:00:00.123Z`.
impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match jiff::Timestamp::from_millisecond(self.0) {
            Ok(timestamp) => write!(f, "{timestamp:.3}"),
            Err(_) => write!(f, "{}ms", self.0),
        }
    }
}

impl fmt::Debug for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_round_trips_to_the_millisecond() {
        for text in ["2026-11-23T10:00:00.123Z", "1969-12-31T23:59:59.999Z", "2000-02-29T00:00:00.000Z"] {
            assert_eq!(Timestamp::parse_rfc3339(text).unwrap().to_string(), text);
        }
        assert_eq!(
            Timestamp::parse_rfc3339("2026-11-23T18:00:00+08:00").unwrap().to_string(),
            "2026-11-23T10:00:00.000Z"
        );
        assert_eq!(Timestamp::parse_rfc3339("1969-12-31T23:59:59.9999Z").unwrap().as_millis(), -1);
    }

    #[test]
    fn a_time_without_an_offset_is_refused() {
        for text in ["2026-11-23T10:00:00", "2026-11-23", "yesterday", ""] {
            assert!(Timestamp::parse_rfc3339(text).is_err(), "{text}");
        }
    }
}
