use sha2::{Digest, Sha256};

use super::Selector;
use crate::hex;
use crate::model::{Kind, Limits};

/// Returns a value in millionths, the grain in which values and limits are compared.
pub fn micro(value: f64) -> i64 {
    (value * 1e6).round() as i64
}

/// How much an episode matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Severity {
    /// Good to know.
    Notice,
    /// Somebody should look.
    Warning,
    /// Goods are at risk.
    Critical,
}

impl Severity {
    /// Returns the word used in files and alerts: `notice`, `warning` or `critical`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Notice => "notice",
            Self::Warning => "warning",
            Self::Critical => "critical",
        }
    }

    /// Returns the severity with this word, if there is one.
    pub fn from_word(word: &str) -> Option<Self> {
        [Self::Notice, Self::Warning, Self::Critical].into_iter().find(|severity| severity.as_str() == word)
    }
}

/// What people are told, with `{value}`, `{limit}`, `{unit}`, `{sensor}` and `{since}` to be filled in.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Message {
    /// In English.
    pub en: Option<String>,
    /// In Chinese.
    pub zh: Option<String>,
}

/// Where a `range` rule takes its limits from.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum LimitSource {
    /// The rule itself.
    Fixed(Limits),
    /// The profile in force at the reading's event time.
    Profile,
}

/// Whose silence is meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SilenceScope {
    /// One series'.
    Sensor,
    /// The whole unit's: any reading of it counts.
    Unit,
}

/// What a rule waits for; one variant per kind.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Condition {
    /// A value outside its limits.
    Range {
        /// Where the limits come from.
        limits: LimitSource,
        /// How far inside the limits a value must be to end an episode.
        hysteresis: f64,
        /// For how long clear readings must be known to end an episode.
        keep_firing_for_ms: i64,
    },
    /// A value equal to a given one.
    State {
        /// The value waited for.
        is: f64,
        /// For how long other readings must be known to end an episode.
        keep_firing_for_ms: i64,
    },
    /// No reading for longer than one holds.
    Silence {
        /// Whose silence.
        scope: SilenceScope,
    },
}

/// A named condition on readings, bound to units by a selector. It does not change once built.
#[derive(Clone, Debug, PartialEq)]
pub struct Rule {
    /// Its name: `[a-z0-9-]+`.
    pub id: Box<str>,
    /// The kind of readings that it looks at.
    pub quantity: Kind,
    /// How much its episodes matter.
    pub severity: Severity,
    /// What it waits for.
    pub condition: Condition,
    /// For how long the condition must be known to hold before the rule fires.
    pub for_ms: i64,
    /// How long a reading holds at most; without it, the sensor's or the profile's figure is taken.
    pub max_gap_ms: Option<i64>,
    /// Where it applies.
    pub selector: Selector,
    /// What people are told.
    pub message: Message,
    /// A hash of all the above: two rules with one version judge alike.
    pub version: Box<str>,
}

/// Why a rule cannot be built.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RuleError {
    /// The id has other characters than allowed, or none.
    #[error("`{0}` is not a rule id: a-z, 0-9 and - are expected")]
    Id(String),
    /// A duration is below zero, or a gap not above it.
    #[error("a duration is too short")]
    Duration,
    /// A `range` rule without any limit.
    #[error("expected `low`, `high` or `limits = \"profile\"`")]
    NoLimit,
    /// The profile has limits for temperature and humidity only.
    #[error("a profile has limits for temperature and humidity, not for {0}")]
    NoProfileLimits(Kind),
    /// The limits and the hysteresis leave no clear value.
    #[error("no value is clear: low + hysteresis is above high - hysteresis")]
    NothingClear,
    /// A hysteresis below zero.
    #[error("a hysteresis is not below zero")]
    NegativeHysteresis,
    /// A selector for sensors on a rule about the whole unit.
    #[error("a rule about a whole unit cannot select sensors")]
    SensorOfUnitRule,
}

impl Rule {
    /// Checks a rule and gives it its version; `rule.version` is ignored.
    pub fn new(mut rule: Self) -> Result<Self, RuleError> {
        let id_is_good = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
        if rule.id.is_empty() || !rule.id.bytes().all(id_is_good) {
            return Err(RuleError::Id(rule.id.into_string()));
        }
        if rule.for_ms < 0 || rule.keep_firing_for_ms() < 0 || rule.max_gap_ms.is_some_and(|gap_ms| gap_ms <= 0) {
            return Err(RuleError::Duration);
        }
        match rule.condition {
            Condition::Range { limits, hysteresis, .. } => {
                if hysteresis < 0.0 {
                    return Err(RuleError::NegativeHysteresis);
                }
                match limits {
                    LimitSource::Fixed(Limits { low: None, high: None }) => return Err(RuleError::NoLimit),
                    LimitSource::Fixed(limits) if !leaves_something_clear(limits, hysteresis) => {
                        return Err(RuleError::NothingClear);
                    }
                    LimitSource::Profile if !matches!(rule.quantity, Kind::Temperature | Kind::Humidity) => {
                        return Err(RuleError::NoProfileLimits(rule.quantity));
                    }
                    LimitSource::Fixed(_) | LimitSource::Profile => {}
                }
            }
            Condition::Silence { scope: SilenceScope::Unit } if rule.selector.sensor.is_some() => {
                return Err(RuleError::SensorOfUnitRule);
            }
            Condition::State { .. } | Condition::Silence { .. } => {}
        }
        rule.version = rule.hash().into();
        Ok(rule)
    }

    /// Returns the word for the kind, as in files and alerts.
    pub const fn kind(&self) -> &'static str {
        match self.condition {
            Condition::Range { .. } => "range",
            Condition::State { .. } => "state",
            Condition::Silence { .. } => "silence",
        }
    }

    /// Returns for how long clear readings must be known to end an episode.
    pub const fn keep_firing_for_ms(&self) -> i64 {
        match self.condition {
            Condition::Range { keep_firing_for_ms, .. } | Condition::State { keep_firing_for_ms, .. } => {
                keep_firing_for_ms
            }
            Condition::Silence { .. } => 0,
        }
    }

    /// Returns whether the rule is about a whole unit rather than one series.
    pub const fn is_about_unit(&self) -> bool {
        matches!(self.condition, Condition::Silence { scope: SilenceScope::Unit })
    }

    /// Hashes a text that says everything about the rule, one fact a line; the text must never change its form, or
    /// every rule would seem to have changed.
    fn hash(&self) -> String {
        let mut text = format!("frostline rule 1\nid {}\nquantity {}\nfor {}\n", self.id, self.quantity, self.for_ms);
        let mut fact = |name: &str, value: String| {
            // Writing to a String cannot fail; a length before the value keeps two facts from looking like one.
            text.push_str(&format!("{name} {}:{value}\n", value.len()));
        };
        fact("severity", self.severity.as_str().to_owned());
        fact("max_gap", format!("{:?}", self.max_gap_ms));
        let condition = match self.condition {
            Condition::Range { limits, hysteresis, keep_firing_for_ms } => {
                let limits = match limits {
                    LimitSource::Profile => "profile".to_owned(),
                    LimitSource::Fixed(limits) => format!("{:?} {:?}", limits.low.map(micro), limits.high.map(micro)),
                };
                format!("range {limits} {} {keep_firing_for_ms}", micro(hysteresis))
            }
            Condition::State { is, keep_firing_for_ms } => format!("state {} {keep_firing_for_ms}", micro(is)),
            Condition::Silence { scope: SilenceScope::Sensor } => "silence sensor".to_owned(),
            Condition::Silence { scope: SilenceScope::Unit } => "silence unit".to_owned(),
        };
        fact("condition", condition);
        let selector = &self.selector;
        fact("unit_kind", format!("{:?}", selector.unit_kind.map(|kind| kind.as_str())));
        fact("operator", format!("{:?}", selector.operator));
        fact("jurisdiction", format!("{:?}", selector.jurisdiction));
        fact("category", format!("{:?}", selector.category));
        fact("unit", format!("{:?}", selector.unit));
        fact("sensor", format!("{:?}", selector.sensor));
        fact("loaded", format!("{:?}", selector.loaded));
        fact("message", format!("{:?} {:?}", self.message.en, self.message.zh));
        hex(&Sha256::digest(text.as_bytes())[..8])
    }
}

/// Returns whether some value is clear of these limits by the hysteresis.
pub fn leaves_something_clear(limits: Limits, hysteresis: f64) -> bool {
    match (limits.low, limits.high) {
        (Some(low), Some(high)) => micro(low) + micro(hysteresis) <= micro(high) - micro(hysteresis),
        _ => true,
    }
}
