//! What requests have in common: parameters that are checked, and pages.

use axum::extract::{FromRequestParts, Path, Query};
use axum::http::request::Parts;
use frostline_core::model::{Kind, Timestamp};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer, Serialize};

use super::problem::Problem;
use crate::config::parse_duration_ms;

/// Query parameters; an unknown one, or a value that does not fit, is a problem.
pub(crate) struct Params<T>(pub(crate) T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequestParts<S> for Params<T> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        let Query(params) = Query::from_request_parts(parts, state).await?;
        Ok(Self(params))
    }
}

/// Parameters of the path, percent-decoded.
pub(crate) struct PathParams<T>(pub(crate) T);

impl<T: DeserializeOwned + Send, S: Send + Sync> FromRequestParts<S> for PathParams<T> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        let Path(params) = Path::from_request_parts(parts, state).await?;
        Ok(Self(params))
    }
}

/// One page of a list.
#[derive(Debug, Serialize)]
pub(crate) struct Page<T> {
    /// What is asked for.
    pub(crate) items: Vec<T>,
    /// The `cursor` of the next page, if there is one.
    pub(crate) next: Option<String>,
}

/// Returns the length of a page.
pub(crate) fn page_length(limit: Option<usize>, default: usize, max: usize) -> Result<usize, Problem> {
    match limit.unwrap_or(default) {
        limit if (1..=max).contains(&limit) => Ok(limit),
        limit => Err(Problem::bad_request(format!("`limit` is {limit}; 1 to {max} is expected"))),
    }
}

/// Returns the problem with a cursor that this interface has not given out.
pub(crate) fn unknown_cursor(cursor: &str) -> Problem {
    Problem::bad_request(format!("`{cursor}` is not a cursor of this list; take the `next` of the page before"))
}

/// Reads an instant: RFC 3339 with an offset, or integer milliseconds since 1970.
pub(crate) fn instant<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Timestamp>, D::Error> {
    let text = String::deserialize(deserializer)?;
    if let Ok(millis) = text.parse() {
        return Ok(Some(Timestamp::from_millis(millis)));
    }
    // An offset's `+` that was not percent-encoded has become a space on the way.
    let parsed = Timestamp::parse_rfc3339(&text).or_else(|error| match text.contains(' ') {
        true => Timestamp::parse_rfc3339(&text.replace(' ', "+")),
        false => Err(error),
    });
    parsed.map(Some).map_err(serde::de::Error::custom)
}

/// Reads a span of time: `5m`, or a number of seconds.
pub(crate) fn span_ms<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<i64>, D::Error> {
    let text = String::deserialize(deserializer)?;
    let span_ms = match text.parse::<i64>() {
        Ok(seconds) => seconds.saturating_mul(1_000),
        Err(_) => parse_duration_ms(&text).map_err(serde::de::Error::custom)?,
    };
    // Longer than anything is kept, and short enough to count with.
    const SPAN_MAX_MS: i64 = 100 * 366 * 86_400_000;
    if (1..=SPAN_MAX_MS).contains(&span_ms) {
        Ok(Some(span_ms))
    } else {
        Err(serde::de::Error::custom(format!("`{text}` is not a span from 1ms to a hundred years")))
    }
}

/// Reads the word of a kind of readings.
pub(crate) fn kind<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Kind, D::Error> {
    let word = String::deserialize(deserializer)?;
    Kind::from_word(&word).ok_or_else(|| {
        let words = Kind::ALL.map(Kind::as_str).join(", ");
        serde::de::Error::custom(format!("`{word}` is not a kind of readings; one of {words} is expected"))
    })
}
