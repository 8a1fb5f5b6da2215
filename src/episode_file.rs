//! Episodes as JSON Lines or CSV, sorted, so that two files can be compared with `diff`.

use std::io::{self, Write};

use frostline_core::model::Timestamp;
use serde::Serialize;

/// One episode that fired, in the order in which a file is sorted.
#[derive(Debug, Clone, PartialEq)]
pub struct EpisodeRecord {
    /// The enterprise responsible.
    pub operator: String,
    /// The unit.
    pub unit: String,
    /// The sensor; `None` for a rule about a whole unit.
    pub sensor: Option<String>,
    /// The rule's id.
    pub rule: String,
    /// When the condition began to hold.
    pub started_at: Timestamp,
    /// When it had held for long enough.
    pub fired_at: Timestamp,
    /// When it ended; `None` while firing.
    pub resolved_at: Option<Timestamp>,
    /// The value farthest outside the limits.
    pub extreme: Option<f64>,
}

/// The shape of a line.
#[derive(Serialize)]
struct Line<'a> {
    operator: &'a str,
    unit: &'a str,
    sensor: Option<&'a str>,
    rule: &'a str,
    state: &'static str,
    started_at: String,
    fired_at: String,
    resolved_at: Option<String>,
    extreme: Option<f64>,
}

impl EpisodeRecord {
    /// Returns `firing` or `resolved`.
    pub fn state(&self) -> &'static str {
        if self.resolved_at.is_some() { "resolved" } else { "firing" }
    }

    /// Returns what a table of episodes shows under its [`COLUMNS`]; what is null in JSON is empty.
    pub fn cells(&self) -> [String; COLUMNS.len()] {
        [
            self.operator.clone(),
            self.unit.clone(),
            self.sensor.clone().unwrap_or_default(),
            self.rule.clone(),
            self.state().to_owned(),
            self.started_at.to_string(),
            self.fired_at.to_string(),
            self.resolved_at.map_or(String::new(), |at| at.to_string()),
            self.extreme.map_or(String::new(), |extreme| extreme.to_string()),
        ]
    }
}

/// The columns of a table of episodes, which are the keys of a line too.
pub const COLUMNS: [&str; 9] =
    ["operator", "unit", "sensor", "rule", "state", "started_at", "fired_at", "resolved_at", "extreme"];

/// Sorts episodes as files have them: by operator, unit, sensor, rule and start.
pub fn sort(episodes: &mut [EpisodeRecord]) {
    episodes.sort_by(|a, b| {
        let key = |e: &EpisodeRecord| (e.started_at, e.fired_at);
        (&a.operator, &a.unit, &a.sensor, &a.rule)
            .cmp(&(&b.operator, &b.unit, &b.sensor, &b.rule))
            .then_with(|| key(a).cmp(&key(b)))
    });
}

/// Writes one line per episode, in the order given.
///
/// # Errors
/// `out` does not take it.
pub fn write(episodes: &[EpisodeRecord], out: &mut (impl Write + ?Sized)) -> io::Result<()> {
    for episode in episodes {
        let line = Line {
            operator: &episode.operator,
            unit: &episode.unit,
            sensor: episode.sensor.as_deref(),
            rule: &episode.rule,
            state: episode.state(),
            started_at: episode.started_at.to_string(),
            fired_at: episode.fired_at.to_string(),
            resolved_at: episode.resolved_at.map(|at| at.to_string()),
            extreme: episode.extreme,
        };
        serde_json::to_writer(&mut *out, &line)?;
        out.write_all(b"\n")?;
    }
    Ok(())
}
