//! What machines ask: alive, ready, figures.

use std::collections::BTreeMap;

use axum::Json;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use prometheus::{Encoder, TextEncoder};
use serde::Serialize;

use super::Shared;
use super::problem::Problem;
use crate::pipeline::Terms;

#[derive(Serialize)]
pub(crate) struct Alive {
    status: &'static str,
}

#[derive(Serialize)]
pub(crate) struct Ready {
    ready: bool,
    parts: BTreeMap<&'static str, PartView>,
}

#[derive(Serialize)]
struct PartView {
    ready: bool,
    remark: String,
}

#[derive(Serialize)]
pub(crate) struct AccountingView {
    #[serde(flatten)]
    total: Terms,
    routes: BTreeMap<String, Terms>,
}

pub(crate) async fn alive() -> Json<Alive> {
    Json(Alive { status: "alive" })
}

pub(crate) async fn ready(State(app): Shared) -> (StatusCode, Json<Ready>) {
    let parts: BTreeMap<_, _> = app
        .options
        .health
        .parts()
        .into_iter()
        .map(|(name, state)| {
            let ready = state.is_ok();
            let (Ok(remark) | Err(remark)) = state;
            (name, PartView { ready, remark })
        })
        .collect();
    let ready = parts.values().all(|part| part.ready);
    let status = if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (status, Json(Ready { ready, parts }))
}

pub(crate) async fn metrics(State(app): Shared) -> Result<impl IntoResponse, Problem> {
    let encoder = TextEncoder::new();
    let mut text = Vec::new();
    encoder.encode(&app.options.metrics.gather(), &mut text).map_err(|error| Problem::from_failure(&error))?;
    Ok(([(header::CONTENT_TYPE, encoder.format_type().to_owned())], text))
}

pub(crate) async fn accounting(State(app): Shared) -> Json<AccountingView> {
    let routes = app.options.shared.accounting.routes();
    Json(AccountingView { total: routes.values().copied().sum(), routes })
}
