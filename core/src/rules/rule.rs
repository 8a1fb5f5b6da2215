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

/// Over what a sum or a mean is taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Window {
    /// The latest stretch of this length, in milliseconds.
    Rolling(i64),
    /// Since the goods were loaded; of several consignments in force, since the earliest was.
    Consignment,
}

/// While another quantity of the unit has a value, time out of limits does not count toward `for`: a defrost.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Suspension {
    /// The quantity looked at, in any sensor of the unit.
    pub quantity: Kind,
    /// The value that suspends.
    pub is: f64,
    /// For how long after it the rule stays suspended, in milliseconds.
    pub plus_ms: i64,
    /// How long one suspension lasts at most, in milliseconds from its start.
    pub at_most_ms: i64,
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
        /// A value below it fires at once, whatever `for` and suspension say.
        never_below: Option<f64>,
        /// A value above it fires at once, whatever `for` and suspension say.
        never_above: Option<f64>,
        /// What keeps time from counting.
        suspend_while: Option<Suspension>,
    },
    /// Time outside limits adding up to a budget.
    Cumulative {
        /// The limits.
        limits: Limits,
        /// Over what the time is added up.
        window: Window,
        /// How much of it is allowed, in milliseconds.
        budget_ms: i64,
    },
    /// The mean kinetic temperature above a limit.
    MeanKineticTemperature {
        /// Over what the mean is taken.
        window: Window,
        /// The highest good mean, °C.
        high: f64,
        /// How far below the limit the mean must be to end an episode.
        hysteresis: f64,
        /// For how long clear readings must be known to end an episode.
        keep_firing_for_ms: i64,
        /// The activation energy, kJ/mol.
        delta_h: f64,
        /// How much of the window must be known; without it, a tenth.
        min_known_ms: Option<i64>,
    },
    /// A value that rises or falls too fast.
    Rate {
        /// The stretch that a reading is compared over, in milliseconds.
        per_ms: i64,
        /// The rise that is too much.
        rise: Option<f64>,
        /// The fall that is too much.
        fall: Option<f64>,
        /// For how long clear readings must be known to end an episode.
        keep_firing_for_ms: i64,
    },
    /// Fewer readings than are due.
    Cadence {
        /// The spacing due, in milliseconds.
        every_ms: i64,
        /// The spacing due while the last value is outside the profile, in milliseconds.
        every_out_ms: Option<i64>,
        /// Which share of the readings due must be made.
        share: f64,
        /// The stretch that is judged, aligned to its length since 1970, in milliseconds.
        window_ms: i64,
    },
    /// A value that does not change.
    Stuck {
        /// How many equal readings it takes at least.
        min_readings: u32,
    },
    /// Sensors of one unit too far apart.
    Disagreement {
        /// The distance that is allowed.
        limit: f64,
        /// How far below the limit the distance must be to end an episode.
        hysteresis: f64,
        /// For how long clear distances must be known to end an episode.
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
    /// The clause and edition that it watches over, where it is one of a standard's.
    pub source: Option<Box<str>>,
    /// Whether somebody has compared the figures with the text of the standard.
    pub verified: bool,
    /// A hash of all the above but `source` and `verified`, which change nothing that is judged or told: two rules with
    /// one version judge alike.
    pub version: Box<str>,
}

/// Why a rule cannot be built.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RuleError {
    /// The id has other characters than allowed, or none.
    #[error("`{0}` is not a rule id: a-z, 0-9 and - are expected")]
    Id(String),
    /// A duration below zero.
    #[error("a duration is not below zero")]
    NegativeDuration(&'static str),
    /// A duration that must be above zero and is not.
    #[error("expected a duration above zero")]
    NoDuration(&'static str),
    /// A number too large to be computed with exactly, or none at all.
    #[error("expected a number from -1000000 to 1000000")]
    Number(&'static str),
    /// A number that must be above zero and is not.
    #[error("expected a number above zero")]
    NotPositive(&'static str),
    /// A rule about limits that has none.
    #[error("expected {0}")]
    NoLimit(&'static str),
    /// The profile has limits for temperature and humidity only.
    #[error("a profile has limits for temperature and humidity, not for {0}")]
    NoProfileLimits(Kind),
    /// A low limit above the high one.
    #[error("expected `low` not above `high`")]
    LimitsCrossed,
    /// The limits and the hysteresis leave no clear value.
    #[error("no value is clear: low + hysteresis is above high - hysteresis")]
    NothingClear,
    /// Sensors would have to agree by less than nothing to end an episode.
    #[error("no distance is clear: the hysteresis is above the limit")]
    NoDistanceClear,
    /// A hysteresis below zero.
    #[error("a hysteresis is not below zero")]
    NegativeHysteresis,
    /// `never_above` or `never_below` speaks of values that are not outside the limits.
    #[error("expected `never_above` at or above `high`, and `never_below` at or below `low`")]
    NeverWithinLimits,
    /// The value waited for is none that the quantity can have.
    #[error("no reading of {1} has this value")]
    ImpossibleValue(&'static str, Kind),
    /// A share of the readings due that is none of them, or more than all.
    #[error("expected a share above 0 and not above 1")]
    Share,
    /// A run of no readings.
    #[error("expected at least 1")]
    NoReadings,
    /// A mean kinetic temperature of something else than temperatures.
    #[error("only temperatures have a mean kinetic temperature, {0} has none")]
    NotTemperature(Kind),
    /// A selector for sensors on a rule about the whole unit.
    #[error("a rule about a whole unit cannot select sensors")]
    SensorOfUnitRule,
}

impl RuleError {
    /// Returns the key that is at fault.
    pub const fn key(&self) -> &'static str {
        match self {
            Self::Id(_) => "id",
            Self::NegativeDuration(key)
            | Self::NoDuration(key)
            | Self::Number(key)
            | Self::NotPositive(key)
            | Self::ImpossibleValue(key, _) => key,
            Self::NoProfileLimits(_) | Self::NotTemperature(_) => "quantity",
            Self::NothingClear | Self::NoDistanceClear | Self::NegativeHysteresis => "hysteresis",
            Self::LimitsCrossed => "low",
            // What is missing or in disagreement has no one key of its own.
            Self::NoLimit(_) | Self::NeverWithinLimits => "kind",
            Self::Share => "share",
            Self::NoReadings => "min_readings",
            Self::SensorOfUnitRule => "where",
        }
    }
}

/// The largest number that a rule may have: sums of such in millionths are far from overflowing.
const NUMBER_MAX: f64 = 1e6;

impl Rule {
    /// Checks a rule and gives it its version; `rule.version` is ignored.
    ///
    /// # Errors
    /// The first thing found that makes no sense.
    pub fn new(mut rule: Self) -> Result<Self, RuleError> {
        let id_is_good = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
        if rule.id.is_empty() || !rule.id.bytes().all(id_is_good) {
            return Err(RuleError::Id(rule.id.into_string()));
        }
        not_negative("for", rule.for_ms)?;
        not_negative("keep_firing_for", rule.keep_firing_for_ms())?;
        positive("max_gap", rule.max_gap_ms)?;
        rule.check_condition()?;
        rule.version = rule.hash().into();
        Ok(rule)
    }

    fn check_condition(&self) -> Result<(), RuleError> {
        match self.condition {
            Condition::Range { limits, hysteresis, never_below, never_above, suspend_while, .. } => {
                check_hysteresis(hysteresis)?;
                numbers(&[("never_below", never_below), ("never_above", never_above)])?;
                match limits {
                    LimitSource::Fixed(limits) => {
                        check_limits(limits, "`low`, `high` or `limits = \"profile\"`")?;
                        if !leaves_something_clear(limits, hysteresis) {
                            return Err(RuleError::NothingClear);
                        }
                        if !leaves_limits_alone(limits, never_below, never_above) {
                            return Err(RuleError::NeverWithinLimits);
                        }
                    }
                    LimitSource::Profile => self.check_profile_has_limits()?,
                }
                suspend_while.map_or(Ok(()), check_suspension)
            }
            Condition::Cumulative { limits, window, budget_ms } => {
                check_limits(limits, "`low` or `high`")?;
                check_window(window)?;
                positive("budget", Some(budget_ms))
            }
            Condition::MeanKineticTemperature { window, high, hysteresis, delta_h, min_known_ms, .. } => {
                if self.quantity != Kind::Temperature {
                    return Err(RuleError::NotTemperature(self.quantity));
                }
                check_window(window)?;
                numbers(&[("high", Some(high)), ("delta_h", Some(delta_h))])?;
                check_hysteresis(hysteresis)?;
                if delta_h <= 0.0 {
                    return Err(RuleError::NotPositive("delta_h"));
                }
                not_negative("min_known", min_known_ms.unwrap_or(0))
            }
            Condition::Rate { per_ms, rise, fall, .. } => {
                positive("per", Some(per_ms))?;
                numbers(&[("rise", rise), ("fall", fall)])?;
                if rise.is_none() && fall.is_none() {
                    return Err(RuleError::NoLimit("`rise` or `fall`"));
                }
                // After rounding: a difference of nothing would be out always.
                let is_positive = |change: Option<f64>| change.is_none_or(|change| micro(change) > 0);
                if !is_positive(rise) {
                    return Err(RuleError::NotPositive("rise"));
                }
                if is_positive(fall) { Ok(()) } else { Err(RuleError::NotPositive("fall")) }
            }
            Condition::Cadence { every_ms, every_out_ms, share, window_ms } => {
                positive("every", Some(every_ms))?;
                positive("every_out", every_out_ms)?;
                positive("window", Some(window_ms))?;
                if every_out_ms.is_some() {
                    self.check_profile_has_limits()?;
                }
                if share > 0.0 && share <= 1.0 { Ok(()) } else { Err(RuleError::Share) }
            }
            Condition::Stuck { min_readings: 0 } => Err(RuleError::NoReadings),
            Condition::Stuck { .. } => Ok(()),
            Condition::Disagreement { limit, hysteresis, .. } => {
                numbers(&[("limit", Some(limit))])?;
                check_hysteresis(hysteresis)?;
                if micro(hysteresis) > micro(limit) { Err(RuleError::NoDistanceClear) } else { Ok(()) }
            }
            Condition::State { is, .. } => is_possible("is", self.quantity, is),
            Condition::Silence { scope: SilenceScope::Unit } if self.selector.sensor.is_some() => {
                Err(RuleError::SensorOfUnitRule)
            }
            Condition::Silence { .. } => Ok(()),
        }
    }

    fn check_profile_has_limits(&self) -> Result<(), RuleError> {
        match self.quantity {
            Kind::Temperature | Kind::Humidity => Ok(()),
            quantity => Err(RuleError::NoProfileLimits(quantity)),
        }
    }

    /// Returns the word for the kind, as in files and alerts.
    pub const fn kind(&self) -> &'static str {
        match self.condition {
            Condition::Range { .. } => "range",
            Condition::Cumulative { .. } => "cumulative",
            Condition::MeanKineticTemperature { .. } => "mean_kinetic_temperature",
            Condition::Rate { .. } => "rate",
            Condition::Cadence { .. } => "cadence",
            Condition::Stuck { .. } => "stuck",
            Condition::Disagreement { .. } => "disagreement",
            Condition::State { .. } => "state",
            Condition::Silence { .. } => "silence",
        }
    }

    /// Returns for how long clear readings must be known to end an episode; zero for kinds without such a time.
    pub const fn keep_firing_for_ms(&self) -> i64 {
        match self.condition {
            Condition::Range { keep_firing_for_ms, .. }
            | Condition::MeanKineticTemperature { keep_firing_for_ms, .. }
            | Condition::Rate { keep_firing_for_ms, .. }
            | Condition::Disagreement { keep_firing_for_ms, .. }
            | Condition::State { keep_firing_for_ms, .. } => keep_firing_for_ms,
            Condition::Cumulative { .. }
            | Condition::Cadence { .. }
            | Condition::Stuck { .. }
            | Condition::Silence { .. } => 0,
        }
    }

    /// Returns the quantity that suspends the rule, if one does.
    pub const fn suspending_quantity(&self) -> Option<Kind> {
        match self.condition {
            Condition::Range { suspend_while: Some(Suspension { quantity, .. }), .. } => Some(quantity),
            _ => None,
        }
    }

    /// Returns whether the rule is about a whole unit rather than one series.
    pub const fn is_about_unit(&self) -> bool {
        matches!(self.condition, Condition::Silence { scope: SilenceScope::Unit } | Condition::Disagreement { .. })
    }

    /// Hashes a text that says everything about the rule, one fact a line; the text must never change its form, or
    /// every rule would seem to have changed. A fact that rules did not always have is written only where it is there.
    fn hash(&self) -> String {
        let mut text = format!("frostline rule 1\nid {}\nquantity {}\nfor {}\n", self.id, self.quantity, self.for_ms);
        let mut fact = |name: &str, value: String| {
            // Writing to a String cannot fail; a length before the value keeps two facts from looking like one.
            text.push_str(&format!("{name} {}:{value}\n", value.len()));
        };
        fact("severity", self.severity.as_str().to_owned());
        fact("max_gap", format!("{:?}", self.max_gap_ms));
        fact("condition", self.condition_as_text());
        let selector = &self.selector;
        fact("unit_kind", format!("{:?}", selector.unit_kind.map(|kind| kind.as_str())));
        fact("operator", format!("{:?}", selector.operator));
        fact("jurisdiction", format!("{:?}", selector.jurisdiction));
        fact("category", format!("{:?}", selector.category));
        fact("unit", format!("{:?}", selector.unit));
        fact("sensor", format!("{:?}", selector.sensor));
        fact("loaded", format!("{:?}", selector.loaded));
        fact("message", format!("{:?} {:?}", self.message.en, self.message.zh));
        if let Some(profile) = &selector.profile {
            fact("profile", format!("{profile:?}"));
        }
        if let Condition::Range { never_below, never_above, suspend_while, .. } = self.condition {
            for (name, never) in [("never_below", never_below), ("never_above", never_above)] {
                if let Some(never) = never {
                    fact(name, micro(never).to_string());
                }
            }
            if let Some(Suspension { quantity, is, plus_ms, at_most_ms }) = suspend_while {
                fact("suspend_while", format!("{quantity} {} {plus_ms} {at_most_ms}", micro(is)));
            }
        }
        hex(&Sha256::digest(text.as_bytes())[..8])
    }

    /// Returns the condition as the text that is hashed; numbers are those that are compared with, in millionths.
    fn condition_as_text(&self) -> String {
        let both = |limits: Limits| format!("{:?} {:?}", limits.low.map(micro), limits.high.map(micro));
        let over = |window| match window {
            Window::Rolling(window_ms) => window_ms.to_string(),
            Window::Consignment => "consignment".to_owned(),
        };
        let kind = self.kind();
        match self.condition {
            Condition::Range { limits, hysteresis, keep_firing_for_ms, .. } => {
                let limits = match limits {
                    LimitSource::Profile => "profile".to_owned(),
                    LimitSource::Fixed(limits) => both(limits),
                };
                format!("{kind} {limits} {} {keep_firing_for_ms}", micro(hysteresis))
            }
            Condition::Cumulative { limits, window, budget_ms } => {
                format!("{kind} {} {} {budget_ms}", both(limits), over(window))
            }
            Condition::MeanKineticTemperature {
                window,
                high,
                hysteresis,
                keep_firing_for_ms,
                delta_h,
                min_known_ms,
            } => {
                let (window, high, hysteresis, delta_h) =
                    (over(window), micro(high), micro(hysteresis), micro(delta_h));
                format!("{kind} {window} {high} {hysteresis} {keep_firing_for_ms} {delta_h} {min_known_ms:?}")
            }
            Condition::Rate { per_ms, rise, fall, keep_firing_for_ms } => {
                format!("{kind} {per_ms} {:?} {:?} {keep_firing_for_ms}", rise.map(micro), fall.map(micro))
            }
            Condition::Cadence { every_ms, every_out_ms, share, window_ms } => {
                format!("{kind} {every_ms} {every_out_ms:?} {share} {window_ms}")
            }
            Condition::Stuck { min_readings } => format!("{kind} {min_readings}"),
            Condition::Disagreement { limit, hysteresis, keep_firing_for_ms } => {
                format!("{kind} {} {} {keep_firing_for_ms}", micro(limit), micro(hysteresis))
            }
            Condition::State { is, keep_firing_for_ms } => format!("{kind} {} {keep_firing_for_ms}", micro(is)),
            Condition::Silence { scope: SilenceScope::Sensor } => format!("{kind} sensor"),
            Condition::Silence { scope: SilenceScope::Unit } => format!("{kind} unit"),
        }
    }
}

/// Returns whether some value is clear of these limits by the hysteresis.
pub fn leaves_something_clear(limits: Limits, hysteresis: f64) -> bool {
    match (limits.low, limits.high) {
        (Some(low), Some(high)) => micro(low) + micro(hysteresis) <= micro(high) - micro(hysteresis),
        _ => true,
    }
}

/// Returns whether what must never be lies outside these limits, so that an episode is there to fire.
pub fn leaves_limits_alone(limits: Limits, never_below: Option<f64>, never_above: Option<f64>) -> bool {
    never_below.is_none_or(|never| limits.low.is_some_and(|low| micro(never) <= micro(low)))
        && never_above.is_none_or(|never| limits.high.is_some_and(|high| micro(never) >= micro(high)))
}

fn not_negative(key: &'static str, duration_ms: i64) -> Result<(), RuleError> {
    if duration_ms >= 0 { Ok(()) } else { Err(RuleError::NegativeDuration(key)) }
}

fn positive(key: &'static str, duration_ms: Option<i64>) -> Result<(), RuleError> {
    if duration_ms.is_none_or(|duration_ms| duration_ms > 0) { Ok(()) } else { Err(RuleError::NoDuration(key)) }
}

fn numbers(named: &[(&'static str, Option<f64>)]) -> Result<(), RuleError> {
    // Not a number is in no range.
    let is_wrong = |(_, number): &&(_, Option<f64>)| number.is_some_and(|n| !(-NUMBER_MAX..=NUMBER_MAX).contains(&n));
    named.iter().find(is_wrong).map_or(Ok(()), |(key, _)| Err(RuleError::Number(key)))
}

fn check_hysteresis(hysteresis: f64) -> Result<(), RuleError> {
    numbers(&[("hysteresis", Some(hysteresis))])?;
    if hysteresis < 0.0 { Err(RuleError::NegativeHysteresis) } else { Ok(()) }
}

fn check_limits(limits: Limits, expected: &'static str) -> Result<(), RuleError> {
    numbers(&[("low", limits.low), ("high", limits.high)])?;
    if limits == Limits::default() {
        return Err(RuleError::NoLimit(expected));
    }
    if leaves_something_clear(limits, 0.0) { Ok(()) } else { Err(RuleError::LimitsCrossed) }
}

fn check_window(window: Window) -> Result<(), RuleError> {
    match window {
        Window::Rolling(window_ms) => positive("window", Some(window_ms)),
        Window::Consignment => Ok(()),
    }
}

fn check_suspension(suspension: Suspension) -> Result<(), RuleError> {
    const KEY: &str = "suspend_while";
    not_negative(KEY, suspension.plus_ms)?;
    positive(KEY, Some(suspension.at_most_ms))?;
    is_possible(KEY, suspension.quantity, suspension.is)
}

fn is_possible(key: &'static str, quantity: Kind, value: f64) -> Result<(), RuleError> {
    numbers(&[(key, Some(value))])?;
    if quantity.is_possible(value) { Ok(()) } else { Err(RuleError::ImpossibleValue(key, quantity)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR_MS: i64 = 3_600_000;

    fn rule(condition: Condition) -> Rule {
        Rule {
            id: "r".into(),
            quantity: Kind::Temperature,
            severity: Severity::Critical,
            condition,
            for_ms: 600_000,
            max_gap_ms: None,
            selector: Selector { category: Some(vec!["food".to_owned()]), ..Selector::default() },
            message: Message { en: Some("{unit} is warm".to_owned()), zh: None },
            source: None,
            verified: true,
            version: "".into(),
        }
    }

    fn range(low: Option<f64>, high: Option<f64>) -> Condition {
        Condition::Range {
            limits: LimitSource::Fixed(Limits { low, high }),
            hysteresis: 0.5,
            keep_firing_for_ms: 300_000,
            never_below: None,
            never_above: None,
            suspend_while: None,
        }
    }

    fn mean_kinetic_temperature() -> Condition {
        Condition::MeanKineticTemperature {
            window: Window::Rolling(24 * HOUR_MS),
            high: 8.0,
            hysteresis: 0.5,
            keep_firing_for_ms: 0,
            delta_h: 83.144,
            min_known_ms: None,
        }
    }

    /// The versions of rules are in what was told and exported: none of these may ever change.
    #[test]
    fn a_rule_keeps_its_version() {
        let defrost = Suspension { quantity: Kind::Defrost, is: 1.0, plus_ms: 900_000, at_most_ms: 2_700_000 };
        let suspended = Condition::Range {
            limits: LimitSource::Profile,
            hysteresis: 0.0,
            keep_firing_for_ms: 0,
            never_below: None,
            never_above: Some(-10.0),
            suspend_while: Some(defrost),
        };
        let limits = Limits { low: None, high: Some(8.0) };
        let cadence =
            Condition::Cadence { every_ms: 60_000, every_out_ms: Some(30_000), share: 0.9, window_ms: HOUR_MS };
        let conditions = [
            range(None, Some(-18.0)),
            Condition::State { is: 1.0, keep_firing_for_ms: 0 },
            Condition::Silence { scope: SilenceScope::Sensor },
            Condition::Silence { scope: SilenceScope::Unit },
            suspended,
            Condition::Cumulative { limits, window: Window::Consignment, budget_ms: HOUR_MS },
            mean_kinetic_temperature(),
            Condition::Rate { per_ms: HOUR_MS, rise: Some(5.0), fall: None, keep_firing_for_ms: 0 },
            cadence,
            Condition::Stuck { min_readings: 10 },
            Condition::Disagreement { limit: 3.0, hysteresis: 0.5, keep_firing_for_ms: 0 },
        ];
        let versions = conditions.map(|condition| {
            let rule = Rule::new(rule(condition)).unwrap();
            format!("{} {}", rule.version, rule.kind())
        });
        expect_test::expect![[r#"
            ff535a993a05252f range
            3f2a65b00f4be2d3 state
            31eaa26630cb8f44 silence
            16dface8d9b758c8 silence
            e03c2d71b343cab7 range
            587c0eee39ac296c cumulative
            4f10a35d32c54075 mean_kinetic_temperature
            962f6212466b7aa9 rate
            c20a6a884f444f4b cadence
            b5933b4b1fc73ab8 stuck
            ba16cd2bc58bd50b disagreement
        "#]]
        .assert_eq(&(versions.join("\n") + "\n"));
    }

    #[test]
    fn where_a_figure_comes_from_changes_no_version_and_the_profiles_asked_for_do() {
        let plain = Rule::new(rule(range(None, Some(8.0)))).unwrap();
        let sourced = Rule { source: Some("GB 1-2020".into()), verified: false, ..plain.clone() };
        assert_eq!(Rule::new(sourced).unwrap().version, plain.version);
        let profile = Some(vec!["chilled_*".to_owned()]);
        let narrower = Rule { selector: Selector { profile, ..plain.selector.clone() }, ..plain.clone() };
        assert_ne!(Rule::new(narrower).unwrap().version, plain.version);
    }

    #[test]
    fn what_makes_no_sense_is_refused_under_its_key() {
        let cumulative = |window, budget_ms| Condition::Cumulative {
            limits: Limits { low: None, high: Some(8.0) },
            window,
            budget_ms,
        };
        let mean = |change: fn(&mut i64, &mut f64, &mut Option<i64>)| {
            let (mut window_ms, mut delta_h, mut min_known_ms) = (24 * HOUR_MS, 83.144, None);
            change(&mut window_ms, &mut delta_h, &mut min_known_ms);
            Condition::MeanKineticTemperature {
                window: Window::Rolling(window_ms),
                high: 8.0,
                hysteresis: 0.0,
                keep_firing_for_ms: 0,
                delta_h,
                min_known_ms,
            }
        };
        let rate = |per_ms, rise, fall| Condition::Rate { per_ms, rise, fall, keep_firing_for_ms: 0 };
        let cadence =
            |every_ms, every_out_ms, share, window_ms| Condition::Cadence { every_ms, every_out_ms, share, window_ms };
        let disagreement = |limit, hysteresis| Condition::Disagreement { limit, hysteresis, keep_firing_for_ms: 0 };
        let never = |low, high, never_below, never_above| Condition::Range {
            limits: LimitSource::Fixed(Limits { low, high }),
            hysteresis: 0.0,
            keep_firing_for_ms: 0,
            never_below,
            never_above,
            suspend_while: None,
        };
        let suspended = |is, plus_ms, at_most_ms| Condition::Range {
            limits: LimitSource::Profile,
            hysteresis: 0.0,
            keep_firing_for_ms: 0,
            never_below: None,
            never_above: None,
            suspend_while: Some(Suspension { quantity: Kind::Defrost, is, plus_ms, at_most_ms }),
        };
        for (condition, key) in [
            (range(None, None), "kind"),
            (range(Some(2.0), Some(2.9)), "hysteresis"),
            (range(Some(3.0), Some(2.0)), "low"),
            (range(None, Some(f64::NAN)), "high"),
            (range(None, Some(1e300)), "high"),
            (never(None, Some(-18.0), None, Some(-18.1)), "kind"),
            (never(None, Some(-18.0), Some(-30.0), None), "kind"),
            (never(Some(2.0), None, Some(2.1), None), "kind"),
            (suspended(0.5, 0, 1), "suspend_while"),
            (suspended(1.0, -1, 1), "suspend_while"),
            (suspended(1.0, 0, 0), "suspend_while"),
            (cumulative(Window::Rolling(0), HOUR_MS), "window"),
            (cumulative(Window::Rolling(HOUR_MS), 0), "budget"),
            (mean(|window_ms, _, _| *window_ms = 0), "window"),
            (mean(|_, delta_h, _| *delta_h = 0.0), "delta_h"),
            (mean(|_, _, min_known_ms| *min_known_ms = Some(-1)), "min_known"),
            (rate(0, Some(1.0), None), "per"),
            (rate(1, None, None), "kind"),
            (rate(1, Some(0.0), None), "rise"),
            (rate(1, Some(1.0), Some(4e-7)), "fall"),
            (cadence(0, None, 0.9, 1), "every"),
            (cadence(1, Some(0), 0.9, 1), "every_out"),
            (cadence(1, None, 0.0, 1), "share"),
            (cadence(1, None, 1.01, 1), "share"),
            (cadence(1, None, f64::NAN, 1), "share"),
            (cadence(1, None, 1.0, 0), "window"),
            (Condition::Stuck { min_readings: 0 }, "min_readings"),
            (disagreement(3.0, 3.1), "hysteresis"),
            (disagreement(-1.0, 0.0), "hysteresis"),
            (Condition::State { is: f64::INFINITY, keep_firing_for_ms: 0 }, "is"),
            (Condition::State { is: 1.0, keep_firing_for_ms: -1 }, "keep_firing_for"),
        ] {
            assert_eq!(Rule::new(rule(condition)).unwrap_err().key(), key, "{condition:?}");
        }
        for condition in [
            range(Some(2.0), Some(3.0)),
            never(Some(2.0), Some(8.0), Some(2.0), Some(8.0)),
            suspended(1.0, 0, 1),
            cumulative(Window::Rolling(HOUR_MS), HOUR_MS),
            cumulative(Window::Consignment, 1_000 * HOUR_MS),
            mean(|_, _, min_known_ms| *min_known_ms = Some(0)),
            cadence(1, None, 1.0, 1),
            Condition::Stuck { min_readings: 1 },
            disagreement(3.0, 3.0),
        ] {
            assert_eq!(Rule::new(rule(condition)).map(|rule| rule.condition), Ok(condition));
        }
    }

    #[test]
    fn a_rule_fits_its_quantity_and_its_selector() {
        let of = |quantity, condition| Rule::new(Rule { quantity, ..rule(condition) });
        let profile = Condition::Range {
            limits: LimitSource::Profile,
            hysteresis: 0.0,
            keep_firing_for_ms: 0,
            never_below: None,
            never_above: None,
            suspend_while: None,
        };
        let cadence =
            |every_out_ms| Condition::Cadence { every_ms: 1_000, every_out_ms, share: 0.9, window_ms: HOUR_MS };
        assert_eq!(of(Kind::Door, profile), Err(RuleError::NoProfileLimits(Kind::Door)));
        assert_eq!(of(Kind::Door, cadence(Some(500))), Err(RuleError::NoProfileLimits(Kind::Door)));
        assert!(of(Kind::Door, cadence(None)).is_ok());
        assert_eq!(of(Kind::Humidity, mean_kinetic_temperature()), Err(RuleError::NotTemperature(Kind::Humidity)));
        let state = Condition::State { is: 2.0, keep_firing_for_ms: 0 };
        assert_eq!(of(Kind::Door, state), Err(RuleError::ImpossibleValue("is", Kind::Door)));

        let selector = Selector { sensor: Some("t*".to_owned()), ..Selector::default() };
        let with_sensors = |condition| Rule::new(Rule { selector: selector.clone(), ..rule(condition) });
        let silence = Condition::Silence { scope: SilenceScope::Unit };
        assert_eq!(with_sensors(silence), Err(RuleError::SensorOfUnitRule));
        let disagreement = Condition::Disagreement { limit: 3.0, hysteresis: 0.0, keep_firing_for_ms: 0 };
        assert!(with_sensors(disagreement).unwrap().is_about_unit());
    }
}
