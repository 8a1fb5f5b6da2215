//! Readings of one series: those in the history's file and those that are only in the pipeline's memory yet.

use axum::Json;
use axum::extract::State;
use frostline_core::model::{Kind, Name, Reading, SeriesKey, Timestamp, UnitKey};
use serde::{Deserialize, Serialize};

use super::problem::Problem;
use super::request::{Page, Params, instant, kind, page_length, span_ms, unknown_cursor};
use super::units::quality_words;
use super::{App, Shared};
use crate::alert::Time;
use crate::history::{Bucket, HistoryError, HistoryReader, merge, thin};

/// What is shown where no start is asked for, in milliseconds before the end.
const DEFAULT_SPAN_MS: i64 = 86_400_000;
/// How much is read at one time, so that a long span does not fill the memory.
const WINDOW_MS: i64 = 7 * 86_400_000;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct SeriesParams {
    operator: String,
    unit: String,
    sensor: String,
    #[serde(deserialize_with = "kind")]
    kind: Kind,
    #[serde(default, deserialize_with = "instant")]
    from: Option<Timestamp>,
    #[serde(default, deserialize_with = "instant")]
    to: Option<Timestamp>,
    #[serde(default, deserialize_with = "span_ms")]
    step: Option<i64>,
    limit: Option<usize>,
    cursor: Option<String>,
}

/// One reading, or one step of time.
#[derive(Debug, Serialize)]
#[serde(untagged)]
pub(crate) enum Item {
    Reading { event_time: Time, value: Option<f64>, quality: Vec<&'static str> },
    Step { start: Time, count: u32, failed: u32, min: Option<f64>, max: Option<f64>, mean: Option<f64> },
}

impl Item {
    fn time(&self) -> Timestamp {
        match self {
            Self::Reading { event_time: Time(time), .. } | Self::Step { start: Time(time), .. } => *time,
        }
    }
}

impl From<Reading> for Item {
    fn from(reading: Reading) -> Self {
        Self::Reading {
            event_time: Time(reading.event_time),
            value: reading.value,
            quality: quality_words(reading.quality),
        }
    }
}

impl From<Bucket> for Item {
    fn from(bucket: Bucket) -> Self {
        let Bucket { start, count, failed, min, max, mean } = bucket;
        Self::Step { start: Time(start), count, failed, min, max, mean }
    }
}

/// What is read of which series.
struct Wanted {
    key: SeriesKey,
    from: Timestamp,
    to: Timestamp,
    step_ms: Option<i64>,
    limit: usize,
}

pub(crate) async fn read(
    State(app): Shared,
    Params(params): Params<SeriesParams>,
) -> Result<Json<Page<Item>>, Problem> {
    let limit = page_length(params.limit, 100_000, 100_000)?;
    let name = |text: &str| Name::new(text).map_err(|error| Problem::bad_request(error.to_string()));
    let unit = UnitKey { operator: name(&params.operator)?, unit: name(&params.unit)? };
    let key = SeriesKey { unit, sensor: params.sensor.as_str().into(), kind: params.kind };
    let Some(newest) = newest(&app, &key).await? else {
        return Ok(Json(Page { items: Vec::new(), next: None }));
    };
    let end = newest.plus_millis(1);
    let to = params.to.map_or(end, |to| to.min(end));
    let from = match params.cursor.as_deref() {
        Some(text) => Timestamp::from_millis(text.parse().map_err(|_| unknown_cursor(text))?),
        None => params.from.unwrap_or(to.plus_millis(-DEFAULT_SPAN_MS)),
    };
    // In this order: what moves into the file between the two questions is then seen twice, never not at all.
    let open = app.options.shared.live.open_readings(key.clone(), from, to).await?;
    let wanted = Wanted { key, from, to, step_ms: params.step, limit };
    Ok(Json(app.stores.history(move |history| wanted.read(history, &open)).await?))
}

/// Returns the time of the newest reading of a series, if it has ever had one.
async fn newest(app: &App, key: &SeriesKey) -> Result<Option<Timestamp>, Problem> {
    let (_, units) = app.options.shared.live.units(Some(key.unit.clone())).await?;
    let mut series = units.iter().flat_map(|unit| &unit.series);
    let found = series.find(|series| series.kind == key.kind && *series.sensor == *key.sensor);
    Ok(found.map(|series| series.newest.event_time))
}

impl Wanted {
    fn read(&self, history: &HistoryReader, open: &[Reading]) -> Result<Page<Item>, HistoryError> {
        let oldest = history.oldest(&self.key)?.into_iter().chain(open.first().map(|reading| reading.event_time)).min();
        let Some(oldest) = oldest else {
            return Ok(Page { items: Vec::new(), next: None });
        };
        // Windows end where steps do, so that no step is cut in two.
        let window_ms = self.step_ms.map_or(WINDOW_MS, |step_ms| step_ms * (WINDOW_MS / step_ms).max(1));
        let mut items: Vec<Item> = Vec::new();
        let mut from = self.from.max(oldest);
        while from < self.to && items.len() <= self.limit {
            let window = from.as_millis().div_euclid(window_ms);
            let to = self.to.min(Timestamp::from_millis((window + 1).saturating_mul(window_ms)));
            let is_before = |time: Timestamp| move |reading: &Reading| reading.event_time < time;
            let in_memory = &open[open.partition_point(is_before(from))..open.partition_point(is_before(to))];
            let readings = merge(history.read(&self.key, from, to)?, in_memory.to_vec());
            match self.step_ms {
                None => items.extend(readings.into_iter().map(Item::from)),
                Some(step_ms) => items.extend(thin(&readings, step_ms).into_iter().map(Item::from)),
            }
            from = to;
        }
        let next = items.get(self.limit).map(|item| item.time().as_millis().to_string());
        items.truncate(self.limit);
        Ok(Page { items, next })
    }
}
