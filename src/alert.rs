//! The alert as everyone outside sees it: over HTTP, MQTT and in exports.

use frostline_core::model::Timestamp;
use serde::{Deserialize, Serialize};

/// An episode that must be told, with its lifecycle.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Alert {
    /// Identity of the episode: lower-case hex, stable across restarts and replays.
    pub id: String,
    /// 1, 2, …; grows with every amendment.
    pub revision: u64,
    /// Where the data has brought it.
    pub state: AlertState,
    /// Where people have brought it.
    pub handling: Handling,
    /// `notice`, `warning` or `critical`.
    pub severity: String,
    /// The rule's id.
    pub rule: String,
    /// Hash of the rule as it was.
    pub rule_version: String,
    /// The rule's kind: `range`, `silence`, ….
    pub rule_kind: String,
    /// The enterprise responsible.
    pub operator: String,
    /// Its unified social credit code, where registered.
    pub operator_code: Option<String>,
    /// Where the unit is, where registered.
    pub site: Option<String>,
    /// The monitored space.
    pub unit: String,
    /// `storage` or `transport`, where registered.
    pub unit_kind: Option<String>,
    /// The probe; null for a rule on a whole unit.
    pub sensor: Option<String>,
    /// GB/T 2260 code, where registered.
    pub jurisdiction: Option<String>,
    /// Of the profile in force.
    pub category: Option<String>,
    /// The profile in force.
    pub profile: Option<String>,
    /// The consignments in the unit.
    pub consignments: Vec<String>,
    /// `field`, or `exercise` for simulated and replayed fleets.
    pub origin: String,
    /// When the condition began to hold, in event time.
    pub started_at: Time,
    /// When it had held for long enough, in event time.
    pub fired_at: Option<Time>,
    /// When it ended, in event time.
    pub resolved_at: Option<Time>,
    /// Why it ended: `cleared`, `off_duty`, `rule_changed` or `rule_removed`.
    pub resolution: Option<String>,
    /// When the system knew.
    pub detected_at: Time,
    /// The lower limit in force, °C or %RH.
    pub limit_low: Option<f64>,
    /// The upper limit in force, °C or %RH.
    pub limit_high: Option<f64>,
    /// The value farthest outside the limits.
    pub extreme: Option<f64>,
    /// The newest value when this was written.
    pub last_value: Option<f64>,
    /// Mean kinetic temperature, °C, for rules that compute it.
    pub mean_kinetic_temperature: Option<f64>,
    /// Degrees north at `fired_at`, if known.
    pub latitude: Option<f64>,
    /// Degrees east at `fired_at`, if known.
    pub longitude: Option<f64>,
    /// Known time within the episode, in seconds.
    pub excursion_s: f64,
    /// The rest of the episode, in seconds.
    pub unmonitored_s: f64,
    /// Time before it fired that did not count because the rule was suspended, in seconds.
    #[serde(default)]
    pub suspended_s: f64,
    /// Whether readings that came late found or changed it.
    pub late: bool,
    /// The alert that this one turned out to be a part of, where it was taken back for that.
    #[serde(default)]
    pub merged_into: Option<String>,
    /// What was changed after it was told.
    pub amendments: Vec<Amendment>,
    /// For people.
    pub message: Message,
}

/// What the data says of an alert.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum AlertState {
    /// Out, but not for long enough yet; shown by the API and the stream only.
    Pending,
    /// Out for long enough.
    Firing,
    /// Over.
    Resolved,
    /// Taken back: the readings that came since say that it never was.
    Retracted,
}

impl AlertState {
    /// Returns the word used in JSON and in the series database.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Firing => "firing",
            Self::Resolved => "resolved",
            Self::Retracted => "retracted",
        }
    }
}

/// What people have done about an alert.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Handling {
    /// Nobody has acted yet.
    Open,
    /// Somebody has taken it on.
    Acknowledged,
    /// Something was done about it.
    Disposed,
    /// Somebody else has checked that.
    Closed,
}

impl Handling {
    /// Returns the word used in JSON.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Open => "open",
            Self::Acknowledged => "acknowledged",
            Self::Disposed => "disposed",
            Self::Closed => "closed",
        }
    }
}

/// One change to an alert that had been told.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Amendment {
    /// The revision that it made.
    pub revision: u64,
    /// When it was made.
    pub at: Time,
    /// Why: `backlog`, `late`, `rule_changed`, ….
    pub reason: String,
    /// What is different now, in words.
    pub change: String,
}

/// A sentence for people, in both languages.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Message {
    /// English.
    pub en: String,
    /// Chinese.
    pub zh: String,
}

/// An instant as it stands in JSON: RFC 3339 in UTC with milliseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Time(pub Timestamp);

impl Serialize for Time {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for Time {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<str>::deserialize(deserializer)?;
        Timestamp::parse_rfc3339(&text).map(Time).map_err(serde::de::Error::custom)
    }
}
