//! Writes what a data directory holds as JSON Lines or CSV: episodes, alerts, readings.
//!
//! Everything is written as it is read, so that memory does not grow with what is exported: episodes and alerts in the
//! order of operator, unit, sensor, rule and start, readings in the order of operator, unit, sensor, kind and time.

use std::io::{self, Write};
use std::path::{Path, PathBuf};

use frostline_core::model::{Reading, SeriesKey, Timestamp};
use serde::Deserialize;
use serde_json::value::RawValue;

use crate::alert::{Alert, AlertState, Time};
use crate::episode_file::{self, EpisodeRecord};
use crate::ledger::{LedgerError, LedgerReader};
use crate::recording;
use crate::stored_readings::{StoredReadings, StoredReadingsError};

/// What is exported.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum What {
    /// The episodes that fired and were not taken back, as a backtest writes them.
    Episodes,
    /// The alerts as the API shows them, those that were taken back too.
    Alerts,
    /// The accepted readings.
    Readings,
}

/// How it is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shape {
    /// One JSON object on a line.
    JsonLines,
    /// A line of titles, then one line for each.
    Csv,
}

/// Why an export failed.
#[derive(Debug, thiserror::Error)]
pub enum ExportError {
    /// There is no ledger to be read: no daemon has run there.
    #[error("no ledger can be read in {}; has the daemon ever run with this configuration?", .0.display())]
    NoLedger(PathBuf, #[source] LedgerError),
    /// The ledger cannot be read.
    #[error(transparent)]
    Ledger(#[from] LedgerError),
    /// The readings cannot be read.
    #[error(transparent)]
    Readings(#[from] StoredReadingsError),
    /// The output does not take it.
    #[error("cannot write")]
    Write(#[from] io::Error),
}

impl From<csv::Error> for ExportError {
    fn from(error: csv::Error) -> Self {
        Self::Write(error.into())
    }
}

/// Writes what shares an instant with `[from, to)`, and returns how many lines that were, without titles.
///
/// # Errors
/// The data directory cannot be read, or `out` does not take it.
pub fn export(
    data_dir: &Path,
    what: What,
    (from, to): (Timestamp, Timestamp),
    shape: Shape,
    out: &mut dyn Write,
) -> Result<u64, ExportError> {
    if what == What::Readings {
        return export_readings(data_dir, from, to, shape, out);
    }
    let ledger = LedgerReader::open(data_dir).map_err(|source| ExportError::NoLedger(data_dir.to_owned(), source))?;
    let mut lines = 0;
    match shape {
        Shape::JsonLines => ledger.each_alert::<ExportError>(from, to, |body| {
            if what == What::Alerts {
                writeln!(out, "{body}")?;
            } else if let Some(episode) = episode(body)? {
                episode_file::write(&[episode], out)?;
            } else {
                return Ok(());
            }
            lines += 1;
            Ok(())
        })?,
        Shape::Csv => {
            let mut table = csv::Writer::from_writer(out);
            if what == What::Alerts {
                table.write_record(ALERT_COLUMNS)?;
            } else {
                table.write_record(episode_file::COLUMNS)?;
            }
            ledger.each_alert::<ExportError>(from, to, |body| {
                if what == What::Alerts {
                    table.write_record(alert_cells(&parse(body)?))?;
                } else if let Some(episode) = episode(body)? {
                    table.write_record(episode.cells())?;
                } else {
                    return Ok(());
                }
                lines += 1;
                Ok(())
            })?;
            table.flush()?;
        }
    }
    Ok(lines)
}

fn parse<'a, T: Deserialize<'a>>(body: &'a str) -> Result<T, LedgerError> {
    serde_json::from_str(body).map_err(|error| LedgerError::Content { table: "alert", detail: error.to_string() })
}

/// What an episode takes of its alert.
#[derive(Deserialize)]
struct AlertedEpisode<'a> {
    state: AlertState,
    operator: String,
    unit: String,
    sensor: Option<String>,
    rule: String,
    started_at: Time,
    fired_at: Option<Time>,
    resolved_at: Option<Time>,
    /// As text, since every digit of it counts: the JSON library reads long fractions to within their last digit only.
    #[serde(borrow)]
    extreme: Option<&'a RawValue>,
}

/// Returns the episode of an alert, unless it was taken back or has not fired.
fn episode(body: &str) -> Result<Option<EpisodeRecord>, LedgerError> {
    let alert: AlertedEpisode<'_> = parse(body)?;
    let is_told = matches!(alert.state, AlertState::Firing | AlertState::Resolved);
    let Some(Time(fired_at)) = alert.fired_at.filter(|_| is_told) else { return Ok(None) };
    let extreme = alert.extreme.map(|number| number.get().parse::<f64>()).transpose();
    Ok(Some(EpisodeRecord {
        operator: alert.operator,
        unit: alert.unit,
        sensor: alert.sensor,
        rule: alert.rule,
        started_at: alert.started_at.0,
        fired_at,
        resolved_at: alert.resolved_at.map(|Time(at)| at),
        extreme: extreme.map_err(|error| LedgerError::Content { table: "alert", detail: error.to_string() })?,
    }))
}

/// The columns of alerts; those that are lists or objects in JSON are flat here.
const ALERT_COLUMNS: [&str; 38] = [
    "id",
    "revision",
    "state",
    "handling",
    "severity",
    "rule",
    "rule_version",
    "rule_kind",
    "operator",
    "operator_code",
    "site",
    "unit",
    "unit_kind",
    "sensor",
    "jurisdiction",
    "category",
    "profile",
    "consignments",
    "origin",
    "started_at",
    "fired_at",
    "resolved_at",
    "resolution",
    "detected_at",
    "limit_low",
    "limit_high",
    "extreme",
    "last_value",
    "mean_kinetic_temperature",
    "latitude",
    "longitude",
    "excursion_s",
    "unmonitored_s",
    "suspended_s",
    "late",
    "merged_into",
    "message_en",
    "message_zh",
];

fn alert_cells(alert: &Alert) -> [String; ALERT_COLUMNS.len()] {
    let text = |text: &Option<String>| text.clone().unwrap_or_default();
    let time = |time: Option<Time>| time.map_or(String::new(), |Time(at)| at.to_string());
    let figure = |figure: Option<f64>| figure.map_or(String::new(), |figure| figure.to_string());
    [
        alert.id.clone(),
        alert.revision.to_string(),
        alert.state.as_str().to_owned(),
        alert.handling.as_str().to_owned(),
        alert.severity.clone(),
        alert.rule.clone(),
        alert.rule_version.clone(),
        alert.rule_kind.clone(),
        alert.operator.clone(),
        text(&alert.operator_code),
        text(&alert.site),
        alert.unit.clone(),
        text(&alert.unit_kind),
        text(&alert.sensor),
        text(&alert.jurisdiction),
        text(&alert.category),
        text(&alert.profile),
        alert.consignments.join(" "),
        alert.origin.clone(),
        time(Some(alert.started_at)),
        time(alert.fired_at),
        time(alert.resolved_at),
        text(&alert.resolution),
        time(Some(alert.detected_at)),
        figure(alert.limit_low),
        figure(alert.limit_high),
        figure(alert.extreme),
        figure(alert.last_value),
        figure(alert.mean_kinetic_temperature),
        figure(alert.latitude),
        figure(alert.longitude),
        alert.excursion_s.to_string(),
        alert.unmonitored_s.to_string(),
        alert.suspended_s.to_string(),
        alert.late.to_string(),
        text(&alert.merged_into),
        alert.message.en.clone(),
        alert.message.zh.clone(),
    ]
}

fn export_readings(
    data_dir: &Path,
    from: Timestamp,
    to: Timestamp,
    shape: Shape,
    out: &mut dyn Write,
) -> Result<u64, ExportError> {
    let readings = StoredReadings::open(data_dir)?;
    if shape == Shape::Csv {
        writeln!(out, "{}", recording::COLUMNS.join(","))?;
    }
    let mut lines = 0;
    for key in readings.series()? {
        let series = series_text(&key, shape)?;
        readings.each::<ExportError>(&key, from, to, |piece| {
            for Reading { event_time, value, .. } in piece {
                match (shape, value) {
                    (Shape::Csv, Some(value)) => writeln!(out, "{event_time},{series},{value}")?,
                    (Shape::Csv, None) => writeln!(out, "{event_time},{series},")?,
                    (Shape::JsonLines, Some(value)) => {
                        writeln!(out, r#"{{"event_time":"{event_time}",{series},"value":{value:?}}}"#)?;
                    }
                    (Shape::JsonLines, None) => {
                        writeln!(out, r#"{{"event_time":"{event_time}",{series},"value":null}}"#)?;
                    }
                }
            }
            lines += piece.len() as u64;
            Ok(())
        })?;
    }
    Ok(lines)
}

/// Returns what every line of a series has between the time and the value.
fn series_text(SeriesKey { unit, sensor, kind }: &SeriesKey, shape: Shape) -> Result<String, ExportError> {
    let (operator, unit) = (unit.operator.as_str(), unit.unit.as_str());
    if shape == Shape::JsonLines {
        let sensor = serde_json::Value::from(&**sensor);
        return Ok(format!(r#""operator":"{operator}","unit":"{unit}","sensor":{sensor},"kind":"{kind}""#));
    }
    let mut row = csv::Writer::from_writer(Vec::new());
    row.write_record([operator, unit, sensor, kind.as_str()])?;
    let row = row.into_inner().map_err(|error| error.into_error())?;
    Ok(String::from_utf8_lossy(&row).trim_end_matches('\n').to_owned())
}
