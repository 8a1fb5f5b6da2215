//! Messages and readings that could not be used, and the way back for them.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, header};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use frostline_core::codec::DeadLetterReason;
use serde::{Deserialize, Serialize};

use super::problem::Problem;
use super::request::{Page, Params, PathParams, page_length, unknown_cursor};
use super::{App, Shared};
use crate::alert::Time;
use crate::ledger::{DeadLetter, LedgerError, LedgerReader};

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct DeadLetterParams {
    reason: Option<String>,
    limit: Option<usize>,
    cursor: Option<String>,
}

/// One dead letter, or one point that a series database refused, as it is shown.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct DeadLetterView {
    /// Its number; none for a refused point, which is in the history and needs no way back.
    pub(crate) id: Option<i64>,
    pub(crate) reason: String,
    pub(crate) detail: String,
    pub(crate) received_at: Time,
    /// The filter of its route, or the sink that was refused.
    pub(crate) route: Option<String>,
    pub(crate) sink: Option<String>,
    pub(crate) topic: Option<String>,
    /// Which reading of the message, counted from 0; none for all of it.
    pub(crate) item: Option<u64>,
    pub(crate) journal_offset: Option<u64>,
    /// Of the whole payload, in bytes.
    pub(crate) length: u64,
    /// Of the whole payload, where only its beginning is kept.
    pub(crate) sha256: Option<String>,
    pub(crate) redriven_at: Option<Time>,
    /// The payload, or in a list its beginning, where it is text.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) payload: Option<String>,
    /// The same where it is not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) payload_b64: Option<String>,
}

#[derive(Serialize)]
pub(crate) struct Redriven {
    journal_offset: u64,
}

pub(crate) async fn list(
    State(app): Shared,
    Params(params): Params<DeadLetterParams>,
) -> Result<Json<Page<DeadLetterView>>, Problem> {
    let limit = page_length(params.limit, 100, 1_000)?;
    if let Some(reason) = &params.reason
        && DeadLetterReason::from_word(reason).is_none()
    {
        let words = DeadLetterReason::ALL.map(DeadLetterReason::as_str).join(", ");
        return Err(Problem::bad_request(format!("`{reason}` is not a reason; one of {words} is expected")));
    }
    let before = match params.cursor.as_deref() {
        Some(text) => Some(text.parse().map_err(|_| unknown_cursor(text))?),
        None => None,
    };
    let listed = app.stores.ledger(move |ledger| list_dead_letters(ledger, params.reason.as_deref(), before, limit));
    let (items, next) = listed.await?;
    Ok(Json(Page { items, next: next.map(|id| id.to_string()) }))
}

pub(crate) async fn show(
    State(app): Shared,
    PathParams(id): PathParams<String>,
) -> Result<Json<DeadLetterView>, Problem> {
    Ok(Json(find(&app, &id).await?.into()))
}

pub(crate) async fn redrive(
    State(app): Shared,
    PathParams(id): PathParams<String>,
    headers: HeaderMap,
) -> Result<(StatusCode, Json<Redriven>), Problem> {
    // A page of another site can send forms and plain text without asking, but not this.
    let content_type = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    if content_type
        .split(';')
        .next()
        .is_none_or(|media_type| !media_type.trim().eq_ignore_ascii_case("application/json"))
    {
        let detail = "`content-type: application/json` is expected";
        return Err(Problem::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, detail));
    }
    let message = find(&app, &id).await?.message;
    if message.sha256.is_some() {
        let detail = "only the beginning of this payload is kept, so it cannot be taken in again";
        return Err(Problem::new(StatusCode::CONFLICT, detail));
    }
    let redrive = Arc::clone(&app.options.redrive);
    match tokio::task::spawn_blocking(move || redrive(message)).await {
        Ok(Ok(journal_offset)) => Ok((StatusCode::ACCEPTED, Json(Redriven { journal_offset }))),
        Ok(Err(reason)) => Err(Problem::unavailable(reason)),
        Err(panicked) => Err(Problem::from_failure(&panicked)),
    }
}

async fn find(app: &App, id: &str) -> Result<DeadLetter, Problem> {
    let unknown =
        || Problem::not_found(format!("there is no dead letter `{id}`; the oldest go when their quota is full"));
    let number = id.parse().map_err(|_| unknown())?;
    app.stores.ledger(move |ledger| ledger.dead_letter(number)).await?.ok_or_else(unknown)
}

/// Returns dead letters older than `before`, newest first, each with the beginning of its payload, and where to go on.
///
/// Points that a series database refused have no number: they come behind the letters of the first page.
pub(crate) fn list_dead_letters(
    ledger: &LedgerReader,
    reason: Option<&str>,
    before: Option<i64>,
    limit: usize,
) -> Result<(Vec<DeadLetterView>, Option<i64>), LedgerError> {
    let mut letters = ledger.dead_letters(reason, before, limit + 1)?;
    let has_more = letters.len() > limit;
    letters.truncate(limit);
    let next = letters.last().filter(|_| has_more).map(|letter| letter.id);
    let mut items: Vec<DeadLetterView> = letters.into_iter().map(DeadLetterView::from).collect();
    if before.is_none() && reason.is_none_or(|reason| reason == DeadLetterReason::Refused.as_str()) {
        let refused = ledger.refused(limit - items.len())?;
        items.extend(refused.into_iter().map(|(sink, line, detail, refused_at)| DeadLetterView {
            id: None,
            reason: DeadLetterReason::Refused.as_str().to_owned(),
            detail,
            received_at: Time(refused_at),
            route: None,
            sink: Some(sink),
            topic: None,
            item: None,
            journal_offset: None,
            length: line.len() as u64,
            sha256: None,
            redriven_at: None,
            payload: Some(line),
            payload_b64: None,
        }));
    }
    Ok((items, next))
}

impl From<DeadLetter> for DeadLetterView {
    fn from(letter: DeadLetter) -> Self {
        let message = letter.message;
        let is_cut = (message.payload.len() as u64) < message.length;
        let (payload, payload_b64) = match std::str::from_utf8(&message.payload) {
            Ok(text) => (Some(text.to_owned()), None),
            // A cut may have gone through a character.
            Err(error) if is_cut && error.error_len().is_none() => {
                (Some(String::from_utf8_lossy(&message.payload[..error.valid_up_to()]).into_owned()), None)
            }
            Err(_) => (None, Some(STANDARD.encode(&message.payload))),
        };
        Self {
            id: Some(letter.id),
            reason: letter.reason,
            detail: letter.detail,
            received_at: Time(message.received_at),
            route: Some(message.route).filter(|route| !route.is_empty()),
            sink: None,
            topic: Some(String::from_utf8_lossy(&message.topic).into_owned()),
            item: letter.item,
            journal_offset: Some(message.journal_offset),
            length: message.length,
            sha256: message.sha256,
            redriven_at: message.redriven_at.map(Time),
            payload,
            payload_b64,
        }
    }
}
