//! Units: what is registered of them, their last values, and whether all is well.

use std::collections::{BTreeMap, BTreeSet};

use axum::Json;
use axum::extract::State;
use frostline_core::model::{Kind, Limits, Name, Quality, Registry, Timestamp, UnitKey};
use frostline_core::rules::{holding_time_ms, limits_in_force, micro};
use serde::{Deserialize, Serialize};

use super::problem::Problem;
use super::request::{Page, Params, PathParams, page_length, unknown_cursor};
use super::{App, Shared};
use crate::alert::{Alert, Time};
use crate::ledger::LedgerError;
use crate::pipeline::{DeviceClock, SeriesView, UnitView};

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct UnitParams {
    operator: Option<String>,
    unit: Option<String>,
    jurisdiction: Option<String>,
    limit: Option<usize>,
    cursor: Option<String>,
}

/// One unit as it is shown.
#[derive(Debug, Serialize)]
pub(crate) struct UnitJson {
    operator: String,
    operator_name: Option<String>,
    operator_code: Option<String>,
    unit: String,
    registered: bool,
    kind: Option<&'static str>,
    site: Option<String>,
    jurisdiction: Option<String>,
    labels: BTreeMap<String, String>,
    /// Of the profile in force; of several, the first.
    category: Option<String>,
    profile: Option<String>,
    consignments: Vec<String>,
    state: UnitState,
    /// For temperature, by the profiles in force.
    limit_low: Option<f64>,
    limit_high: Option<f64>,
    /// The event time of the newest reading.
    last_seen: Option<Time>,
    last_received_at: Option<Time>,
    /// What the device says of itself, where it says anything.
    online: Option<bool>,
    online_at: Option<Time>,
    sequence: SequenceJson,
    clock: ClockJson,
    /// How many alerts fire.
    firing: u64,
    pending: Vec<Alert>,
    sensors: Vec<SensorJson>,
    /// Registered sensors without any reading yet.
    sensors_never_seen: Vec<String>,
}

/// What holds of a unit at the rules' *now*.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
enum UnitState {
    /// Every measuring sensor is known to be within the limits.
    Compliant,
    /// Some sensor is known to be outside.
    Excursion,
    /// Some sensor's value is not known.
    Unmonitored,
    /// The unit is not to be watched now.
    OffDuty,
}

#[derive(Debug, Serialize)]
struct SequenceJson {
    last: Option<u64>,
    gaps: u64,
    repeats: u64,
}

/// What a unit's messages say of its device's clock.
#[derive(Debug, Serialize)]
struct ClockJson {
    /// How far it is ahead, by the least delayed of the last messages; null before any that says a time.
    skew_s: Option<f64>,
    ahead: bool,
    /// How many times it was found to have been set.
    jumps: u64,
    last_jump_at: Option<Time>,
    /// How many readings were refused because they are from the future.
    future_readings: u64,
}

/// The newest reading of one series.
#[derive(Debug, Serialize)]
struct SensorJson {
    sensor: String,
    kind: &'static str,
    event_time: Time,
    value: Option<f64>,
    /// The unit of measure; null for what is on or off.
    unit: Option<&'static str>,
    quality: Vec<&'static str>,
    placement: Option<String>,
    calibration_due: Option<String>,
}

/// What the ledger knows of units beside their readings.
struct Decided {
    firing: BTreeMap<(String, String), u64>,
    statuses: BTreeMap<(String, String), (bool, Option<Timestamp>, Timestamp)>,
}

pub(crate) async fn list(
    State(app): Shared,
    Params(params): Params<UnitParams>,
) -> Result<Json<Page<UnitJson>>, Problem> {
    let limit = page_length(params.limit, 1_000, 10_000)?;
    let after = match &params.cursor {
        Some(text) => Some(parse_cursor(text).ok_or_else(|| unknown_cursor(text))?),
        None => None,
    };
    let registry = &app.options.judgement.registry;
    let (now, live) = app.options.shared.live.units(None).await?;
    let live: BTreeMap<&UnitKey, &UnitView> = live.iter().map(|unit| (&unit.key, unit)).collect();
    let decided = decided(&app).await?;
    // A device may have said that it is there before it has sent anything.
    let said: Vec<UnitKey> = decided.statuses.keys().filter_map(|(operator, unit)| unit_key(operator, unit)).collect();
    let keys: BTreeSet<&UnitKey> = registry.units.keys().chain(live.keys().copied()).chain(&said).collect();
    let mut wanted = keys.into_iter().filter(|key| {
        let jurisdiction = registry.units.get(key).and_then(|unit| unit.jurisdiction.as_deref());
        params.operator.as_deref().is_none_or(|operator| operator == key.operator.as_str())
            && params.unit.as_deref().is_none_or(|unit| unit == key.unit.as_str())
            && params
                .jurisdiction
                .as_deref()
                .is_none_or(|prefix| jurisdiction.is_some_and(|jurisdiction| jurisdiction.starts_with(prefix)))
            && after.as_ref().is_none_or(|after| *key > after)
    });
    let page: Vec<&UnitKey> = wanted.by_ref().take(limit).collect();
    let next = wanted.next().and(page.last()).map(|last| format!("{}/{}", last.operator, last.unit));
    let items = page.into_iter().map(|key| view(registry, key, live.get(key).copied(), now, &decided)).collect();
    Ok(Json(Page { items, next }))
}

pub(crate) async fn show(
    State(app): Shared,
    PathParams((operator, unit)): PathParams<(String, String)>,
) -> Result<Json<UnitJson>, Problem> {
    let unknown = || Problem::not_found(format!("there is no unit `{operator}/{unit}`"));
    let key = unit_key(&operator, &unit).ok_or_else(unknown)?;
    let registry = &app.options.judgement.registry;
    let (now, live) = app.options.shared.live.units(Some(key.clone())).await?;
    let (live, decided) = (live.first(), decided(&app).await?);
    let has_status = decided.statuses.contains_key(&(key.operator.to_string(), key.unit.to_string()));
    if live.is_none() && !has_status && !registry.units.contains_key(&key) {
        return Err(unknown());
    }
    Ok(Json(view(registry, &key, live, now, &decided)))
}

async fn decided(app: &App) -> Result<Decided, Problem> {
    app.stores
        .ledger(|ledger| Ok::<_, LedgerError>(Decided { firing: ledger.firing_units()?, statuses: ledger.statuses()? }))
        .await
}

pub(crate) fn parse_cursor(text: &str) -> Option<UnitKey> {
    let (operator, unit) = text.split_once('/')?;
    unit_key(operator, unit)
}

fn unit_key(operator: &str, unit: &str) -> Option<UnitKey> {
    Some(UnitKey { operator: Name::new(operator).ok()?, unit: Name::new(unit).ok()? })
}

fn view(registry: &Registry, key: &UnitKey, live: Option<&UnitView>, now: Timestamp, decided: &Decided) -> UnitJson {
    let registered = registry.units.get(key);
    let operator = registry.operators.get(&key.operator);
    let profiles = registry.profiles_at(key, now);
    let names = (key.operator.to_string(), key.unit.to_string());
    let firing = decided.firing.get(&names).copied().unwrap_or(0);
    let status = decided.statuses.get(&names);
    let limits = limits_in_force(registry, key, Kind::Temperature, now).unwrap_or_default();
    let series = live.map_or(&[][..], |live| &live.series);
    let never_seen = registry.sensors.get(key).into_iter().flat_map(BTreeMap::keys);
    let never_seen = never_seen.filter(|sensor| !series.iter().any(|series| *series.sensor == ***sensor));
    let never_seen: Vec<String> = never_seen.map(|sensor| sensor.to_string()).collect();
    let mut sensors: Vec<SensorJson> = series.iter().map(|series| sensor_view(registry, key, series)).collect();
    sensors.sort_by(|a, b| (&a.sensor, a.kind).cmp(&(&b.sensor, b.kind)));
    UnitJson {
        operator_name: operator.map(|operator| operator.name.clone()),
        operator_code: operator.and_then(|operator| operator.code.clone()),
        registered: registered.is_some(),
        kind: registered.map(|unit| unit.kind.as_str()),
        site: registered.and_then(|unit| unit.site.clone()),
        jurisdiction: registered.and_then(|unit| unit.jurisdiction.as_deref().map(str::to_owned)),
        labels: registered.map(|unit| unit.labels.clone()).unwrap_or_default(),
        category: profiles.first().map(|profile| profile.category.to_string()),
        profile: profiles.first().map(|profile| profile.id.to_string()),
        consignments: registry.consignments_at(key, now).map(|consignment| consignment.id.to_string()).collect(),
        state: state(registry, key, series, &never_seen, firing, now),
        limit_low: limits.low,
        limit_high: limits.high,
        last_seen: series.iter().map(|series| Time(series.newest.event_time)).max(),
        last_received_at: live.and_then(|live| live.last_received_at).map(Time),
        online: status.map(|(online, _, _)| *online),
        online_at: status.map(|(_, event_time, received_at)| Time(event_time.unwrap_or(*received_at))),
        sequence: SequenceJson {
            last: live.and_then(|live| live.sequence_last),
            gaps: live.map_or(0, |live| live.sequence_gaps),
            repeats: live.map_or(0, |live| live.sequence_repeats),
        },
        clock: clock_view(live.map(|live| live.clock).unwrap_or_default()),
        firing,
        pending: live.map(|live| live.pending.clone()).unwrap_or_default(),
        sensors,
        sensors_never_seen: never_seen,
        operator: names.0,
        unit: names.1,
    }
}

fn clock_view(clock: DeviceClock) -> ClockJson {
    ClockJson {
        skew_s: clock.skew_ms().map(|skew_ms| skew_ms as f64 / 1_000.0),
        ahead: clock.is_ahead(),
        jumps: clock.jumps(),
        last_jump_at: clock.last_jump_at().map(Time),
        future_readings: clock.future_readings(),
    }
}

/// Returns what holds of a unit: unknown is not good, so it is compliant only where every measuring sensor is known to be.
fn state(
    registry: &Registry,
    key: &UnitKey,
    series: &[SeriesView],
    never_seen: &[String],
    firing: u64,
    now: Timestamp,
) -> UnitState {
    if !registry.is_on_duty(key, now) {
        return UnitState::OffDuty;
    }
    let measured = || series.iter().filter(|series| matches!(series.kind, Kind::Temperature | Kind::Humidity));
    let is_held = |series: &SeriesView| {
        let holding_ms = holding_time_ms(registry, key, &series.sensor, now);
        series.newest.value.is_some() && now < series.newest.event_time.plus_millis(holding_ms)
    };
    let is_out = |series: &SeriesView| {
        let limits = limits_in_force(registry, key, series.kind, now).unwrap_or_default();
        is_held(series) && series.newest.value.is_some_and(|value| is_outside(value, limits))
    };
    let has_profile = !registry.profiles_at(key, now).is_empty();
    if measured().any(is_out) || (!has_profile && firing > 0) {
        UnitState::Excursion
    } else if measured().next().is_none() || !measured().all(is_held) || !never_seen.is_empty() {
        UnitState::Unmonitored
    } else {
        UnitState::Compliant
    }
}

fn is_outside(value: f64, limits: Limits) -> bool {
    limits.low.is_some_and(|low| micro(value) < micro(low))
        || limits.high.is_some_and(|high| micro(value) > micro(high))
}

fn sensor_view(registry: &Registry, key: &UnitKey, series: &SeriesView) -> SensorJson {
    let registered = registry.sensor(key, &series.sensor);
    SensorJson {
        sensor: series.sensor.clone(),
        kind: series.kind.as_str(),
        event_time: Time(series.newest.event_time),
        value: series.newest.value,
        unit: unit_of_measure(series.kind),
        quality: quality_words(series.newest.quality),
        placement: registered.and_then(|sensor| sensor.placement.clone()),
        calibration_due: registered.and_then(|sensor| sensor.calibration_due.clone()),
    }
}

/// Returns the UCUM symbol of what a kind is stored in.
const fn unit_of_measure(kind: Kind) -> Option<&'static str> {
    match kind {
        Kind::Temperature | Kind::Setpoint => Some("Cel"),
        Kind::Humidity => Some("%RH"),
        Kind::Battery => Some("%"),
        Kind::Latitude | Kind::Longitude => Some("deg"),
        Kind::Door | Kind::Power | Kind::Compressor | Kind::Defrost => None,
    }
}

/// Returns what there is to remark about a reading; nothing where it is good.
pub(crate) fn quality_words(quality: Quality) -> Vec<&'static str> {
    [(Quality::SERVER_TIME, "server_time"), (Quality::SENTINEL, "sentinel")]
        .into_iter()
        .filter_map(|(flag, word)| quality.has(flag).then_some(word))
        .collect()
}
