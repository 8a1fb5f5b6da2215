use std::fmt;

use serde::{Deserialize, Serialize};

/// An instant: milliseconds since 1970-01-01T00:00:00Z.
///
/// Which instant it is goes into the name of the variable that holds it: `event_time` (when measured), `received_at`
/// (when the journal took it), `recorded_at` (when a decision was written).
///
/// `serde` takes it as its milliseconds, which is what snapshots hold; files and answers for people write RFC 3339.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(transparent)]
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
        parse_rfc3339(text.as_bytes()).map(Self).ok_or_else(|| TimestampError(text.to_owned()))
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

/// By hand, because every message brings a time, and because a general parser takes more than the standard allows.
fn parse_rfc3339(text: &[u8]) -> Option<i64> {
    let (date_time, mut rest) = text.split_at_checked(19)?;
    let [_, _, _, _, b'-', _, _, b'-', _, _, b'T' | b't' | b' ', _, _, b':', _, _, b':', _, _] = date_time else {
        return None;
    };
    let (year, month, day) = (number(&text[..4])?, number(&text[5..7])?, number(&text[8..10])?);
    let (hour, minute, second) = (number(&text[11..13])?, number(&text[14..16])?, number(&text[17..19])?);
    if !(1..=12).contains(&month)
        || !(1..=days_in(year, month)).contains(&day)
        || hour > 23
        || minute > 59
        || second > 60
    {
        return None;
    }
    let mut millis = 0;
    if let Some(fraction) = rest.strip_prefix(b".") {
        let digits = fraction.iter().take_while(|byte| byte.is_ascii_digit()).count();
        if digits == 0 {
            return None;
        }
        let padded = fraction[..digits].iter().chain(b"00").take(3);
        millis = padded.fold(0, |millis, digit| millis * 10 + i64::from(digit - b'0'));
        rest = &fraction[digits..];
    }
    let offset_minutes = match rest {
        [b'Z' | b'z'] => 0,
        [sign @ (b'+' | b'-'), h1, h2, b':', m1, m2] => {
            let (hours, minutes) = (number(&[*h1, *h2])?, number(&[*m1, *m2])?);
            if hours > 23 || minutes > 59 {
                return None;
            }
            let minutes = hours * 60 + minutes;
            if *sign == b'-' { -minutes } else { minutes }
        }
        _ => return None,
    };
    // A leap second is the last millisecond before the next minute: days are 86,400 s long here.
    let (second, millis) = if second == 60 { (59, 999) } else { (second, millis) };
    let minutes = (days_since_1970(year, month, day) * 24 + hour) * 60 + minute - offset_minutes;
    Some((minutes * 60 + second) * 1000 + millis)
}

fn number(digits: &[u8]) -> Option<i64> {
    digits.iter().try_fold(0, |number, byte| byte.is_ascii_digit().then(|| number * 10 + i64::from(byte - b'0')))
}

fn days_in(year: i64, month: i64) -> i64 {
    match month {
        2 if year % 4 == 0 && (year % 100 != 0 || year % 400 == 0) => 29,
        2 => 28,
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    }
}

/// Returns the day's number in the Gregorian calendar, counting years from March so that a leap day comes last.
fn days_since_1970(year: i64, month: i64, day: i64) -> i64 {
    let (year, months_since_march) = if month >= 3 { (year, month - 3) } else { (year - 1, month + 9) };
    let leap_days = year.div_euclid(4) - year.div_euclid(100) + year.div_euclid(400);
    // 153 days in the five months from March to July, and again from August to December.
    year * 365 + leap_days + (153 * months_since_march + 2) / 5 + day - 719_469
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
    fn it_reads_the_same_instants_as_a_general_parser() {
        for (date, time, offset) in [
            ("0000-01-01", "00:00:00", "Z"),
            ("1600-02-29", "23:59:59.9", "z"),
            ("1900-03-01", "00:00:00.05", "+00:00"),
            ("1970-01-01", "00:00:00", "-00:00"),
            ("2000-12-31", "23:59:59.1239", "+14:00"),
            ("2023-02-28", "12:34:56.000000001", "-12:30"),
            ("2024-02-29", "12:34:56", "+05:45"),
            ("9998-12-31", "23:59:59.999999999", "Z"),
        ] {
            let text = format!("{date}T{time}{offset}");
            let expected: jiff::Timestamp = text.parse().unwrap();
            let expected = expected.as_nanosecond().div_euclid(1_000_000);
            assert_eq!(i128::from(Timestamp::parse_rfc3339(&text).unwrap().as_millis()), expected, "{text}");
        }
        for day in 0..200_000 {
            let instant = Timestamp::from_millis(day * 86_400_000);
            assert_eq!(Timestamp::parse_rfc3339(&instant.to_string()), Ok(instant));
        }
    }

    #[test]
    fn a_leap_second_belongs_to_its_minute() {
        let leap_second = Timestamp::parse_rfc3339("2016-12-31T23:59:60.5Z").unwrap();
        assert_eq!(leap_second.to_string(), "2016-12-31T23:59:59.999Z");
    }

    #[test]
    fn what_rfc_3339_does_not_allow_is_refused() {
        for text in [
            "2026-11-23T10:00:00",
            "2026-11-23",
            "yesterday",
            "",
            "2026-11-23T10:00Z",
            "2026-11-23T10:00:00+08",
            "2026-11-23T10:00:00+0800",
            "2026-11-23T10:00:00+24:00",
            "2026-11-23T10:00:00.Z",
            "2026-11-23T10:00:00,5Z",
            "2026-11-23T10:00:00Z ",
            "2026-11-23T10:00:00+08:00[Asia/Shanghai]",
            "20261123T100000Z",
            "2026-11-23T24:00:00Z",
            "2026-11-23T10:60:00Z",
            "2026-11-23T10:00:61Z",
            "2026-13-23T10:00:00Z",
            "2026-00-23T10:00:00Z",
            "2026-11-31T10:00:00Z",
            "2026-11-00T10:00:00Z",
            "2023-02-29T10:00:00Z",
            "1900-02-29T10:00:00Z",
            "+2026-1-23T10:00:00Z",
            "２026-11-23T10:00:00Z",
        ] {
            assert!(Timestamp::parse_rfc3339(text).is_err(), "{text}");
        }
    }
}
