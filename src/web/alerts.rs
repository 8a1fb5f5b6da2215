//! Alerts: those that were told, from the ledger, and the pending ones, which only the pipeline knows.

use axum::Json;
use axum::extract::State;
use frostline_core::model::Timestamp;
use serde::Deserialize;

use super::problem::Problem;
use super::request::{Page, Params, PathParams, instant, page_length, unknown_cursor};
use super::{App, Shared};
use crate::alert::{Alert, AlertState, Handling};
use crate::ledger::AlertFilter;
use crate::pipeline::NoAnswer;

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct AlertParams {
    state: Option<AlertState>,
    handling: Option<Handling>,
    severity: Option<Severity>,
    operator: Option<String>,
    unit: Option<String>,
    jurisdiction: Option<String>,
    category: Option<String>,
    #[serde(deserialize_with = "instant")]
    from: Option<Timestamp>,
    #[serde(deserialize_with = "instant")]
    to: Option<Timestamp>,
    limit: Option<usize>,
    cursor: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Severity {
    Notice,
    Warning,
    Critical,
}

impl Severity {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Notice => "notice",
            Self::Warning => "warning",
            Self::Critical => "critical",
        }
    }
}

/// Where a page begins: pending alerts come first, then those that were told.
#[derive(Debug, PartialEq, Eq)]
enum Cursor {
    /// So many pending alerts were shown.
    Pending(usize),
    /// Behind the alert that fired at this millisecond and has this id.
    Told(i64, String),
}

impl Cursor {
    fn parse(text: &str) -> Option<Self> {
        if let Some(shown) = text.strip_prefix("pending.") {
            return shown.parse().ok().map(Self::Pending);
        }
        let (fired_at_ms, id) = text.split_once('.')?;
        Some(Self::Told(fired_at_ms.parse().ok()?, id.to_owned()))
    }

    fn text(&self) -> String {
        match self {
            Self::Pending(shown) => format!("pending.{shown}"),
            Self::Told(fired_at_ms, id) => format!("{fired_at_ms}.{id}"),
        }
    }
}

pub(crate) async fn list(
    State(app): Shared,
    Params(params): Params<AlertParams>,
) -> Result<Json<Page<Alert>>, Problem> {
    let limit = page_length(params.limit, 100, 1_000)?;
    let cursor = match params.cursor.as_deref() {
        Some(text) => Cursor::parse(text).ok_or_else(|| unknown_cursor(text))?,
        None => Cursor::Pending(0),
    };
    let mut items = Vec::new();
    let after = match cursor {
        Cursor::Told(fired_at_ms, id) => Some((fired_at_ms, id)),
        Cursor::Pending(shown) => {
            let pending = pending_matching(&app, &params).await?;
            let is_last = pending.len() <= shown + limit;
            items.extend(pending.into_iter().skip(shown).take(limit));
            if params.state == Some(AlertState::Pending) || !is_last {
                let next = (!is_last).then(|| Cursor::Pending(shown + limit).text());
                return Ok(Json(Page { items, next }));
            }
            if items.len() == limit {
                return Ok(Json(Page { items, next: Some(Cursor::Pending(shown + limit).text()) }));
            }
            None
        }
    };
    let filter = params.filter();
    let room = limit - items.len();
    let told = app.stores.ledger(move |ledger| ledger.alerts(&filter, after.as_ref(), room)).await?;
    items.extend(told.items);
    let next = told.next.map(|(fired_at_ms, id)| Cursor::Told(fired_at_ms, id).text());
    Ok(Json(Page { items, next }))
}

pub(crate) async fn show(State(app): Shared, PathParams(id): PathParams<String>) -> Result<Json<Alert>, Problem> {
    let wanted = id.clone();
    if let Some(alert) = app.stores.ledger(move |ledger| ledger.alert(&wanted)).await? {
        return Ok(Json(alert));
    }
    let pending = app.options.shared.live.pending().await?;
    let found = pending.into_iter().find(|alert| alert.id == id);
    found.map(Json).ok_or_else(|| Problem::not_found(format!("there is no alert `{id}`")))
}

/// Returns the pending alerts that are asked for, the latest begun first.
async fn pending_matching(app: &App, params: &AlertParams) -> Result<Vec<Alert>, Problem> {
    if params.state.is_some_and(|state| state != AlertState::Pending) {
        return Ok(Vec::new());
    }
    let mut pending = match app.options.shared.live.pending().await {
        Ok(pending) => pending,
        // What was told is shown also while the pipeline cannot be asked.
        Err(NoAnswer) if params.state.is_none() => Vec::new(),
        Err(error) => return Err(error.into()),
    };
    pending.retain(|alert| params.matches(alert));
    pending.sort_by(|a, b| b.started_at.cmp(&a.started_at).then_with(|| a.id.cmp(&b.id)));
    Ok(pending)
}

impl AlertParams {
    fn filter(&self) -> AlertFilter {
        AlertFilter {
            state: self.state.map(|state| state.as_str().to_owned()),
            handling: self.handling.map(|handling| handling.as_str().to_owned()),
            severity: self.severity.map(|severity| severity.as_str().to_owned()),
            operator: self.operator.clone(),
            unit: self.unit.clone(),
            jurisdiction: self.jurisdiction.clone(),
            category: self.category.clone(),
            from: self.from,
            to: self.to,
        }
    }

    /// Returns whether a pending alert is asked for; the ledger's own query says the same of those that were told.
    fn matches(&self, alert: &Alert) -> bool {
        fn is<T: PartialEq>(wanted: Option<&T>, found: Option<&T>) -> bool {
            wanted.is_none() || wanted == found
        }
        is(self.handling.as_ref(), Some(&alert.handling))
            && self.severity.is_none_or(|severity| severity.as_str() == alert.severity)
            && is(self.operator.as_ref(), Some(&alert.operator))
            && is(self.unit.as_ref(), Some(&alert.unit))
            && is(self.category.as_ref(), alert.category.as_ref())
            && self.jurisdiction.as_ref().is_none_or(|prefix| {
                alert.jurisdiction.as_ref().is_some_and(|jurisdiction| jurisdiction.starts_with(prefix.as_str()))
            })
            && self.to.is_none_or(|to| alert.started_at.0 < to)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cursor_is_read_back_as_it_was_given_out() {
        for cursor in [Cursor::Pending(3), Cursor::Told(1_795_427_999_123, "0a1b".into()), Cursor::Told(-5, "f".into())]
        {
            assert_eq!(Cursor::parse(&cursor.text()), Some(cursor));
        }
        for text in ["", "pending", "pending.-1", "yesterday.0a", "12"] {
            assert_eq!(Cursor::parse(text), None, "{text}");
        }
    }
}
