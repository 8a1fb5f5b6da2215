//! `rules.toml` and `rules/*.toml`.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use frostline_core::model::{Kind, Limits, Profile, Registry, UnitKind};
use frostline_core::rules::{
    Condition, LimitSource, Message, Rule, RuleError, Selector, Severity, SilenceScope, leaves_something_clear,
};

use super::Problem;
use super::section::{Section, Source};

/// Kinds and keys whose meaning is fixed and that this version cannot judge by yet.
const NOT_AVAILABLE_KINDS: [&str; 6] =
    ["cumulative", "mean_kinetic_temperature", "rate", "cadence", "stuck", "disagreement"];
const NOT_AVAILABLE_KEYS: [&str; 3] = ["suspend_while", "never_above", "never_below"];

/// Reads the rules of files, each given with its text, and notes every problem with them.
pub(crate) fn parse(files: &[(PathBuf, &str)], problems: &mut Vec<Problem>) -> Vec<Arc<Rule>> {
    let mut rules: Vec<Arc<Rule>> = Vec::new();
    for (file, text) in files {
        Source::new(file, text).parse(problems, |top| {
            for mut section in top.sections("rule") {
                if let Some(rule) = read_rule(&mut section) {
                    if rules.iter().any(|other| other.id == rule.id) {
                        section.problem("id", format!("there is another rule `{}`", rule.id));
                    } else {
                        rules.push(Arc::new(rule));
                    }
                }
                section.finish();
            }
        });
    }
    rules
}

/// Returns the rule of a table, or `None` where a problem was noted.
fn read_rule(section: &mut Section<'_>) -> Option<Rule> {
    section.require("id", "a rule id");
    let id = section.text("id");
    section.require("kind", "range, state or silence");
    let kind = section.text("kind");
    let scope = read_scope(section, kind.as_deref());
    if scope != Some(SilenceScope::Unit) {
        section.require("quantity", "a kind of reading such as temperature");
    }
    let quantity = section.word("quantity", &one_of(Kind::ALL.iter().map(|kind| kind.as_str())), Kind::from_word);
    // A silent unit is silent in every quantity.
    let quantity = quantity.or((scope == Some(SilenceScope::Unit)).then_some(Kind::Temperature));
    let severity = section.word("severity", "notice, warning or critical", Severity::from_word);
    let for_ms = section.duration_ms("for");
    let max_gap_ms = section.duration_ms("max_gap");
    let selector = section.section("where").map(read_selector).unwrap_or_default();
    let message = section.section("message").map(read_message).unwrap_or_default();
    let condition = match kind?.as_str() {
        "range" => read_range(section),
        "state" => read_state(section),
        "silence" => scope.map(|scope| Condition::Silence { scope }),
        kind if NOT_AVAILABLE_KINDS.contains(&kind) => {
            section.problem("kind", format!("kind `{kind}` is not available in this version"));
            section.ignore_unknown();
            None
        }
        kind => {
            section.problem("kind", format!("expected range, state or silence, found `{kind}`"));
            section.ignore_unknown();
            None
        }
    };
    let rule = Rule {
        id: id?.into(),
        quantity: quantity?,
        severity: severity.unwrap_or(Severity::Warning),
        condition: condition?,
        for_ms: for_ms.unwrap_or(0),
        max_gap_ms,
        selector,
        message,
        version: "".into(),
    };
    Rule::new(rule).map_err(|error| section.problem(key_of(&error), error.to_string())).ok()
}

fn key_of(error: &RuleError) -> &'static str {
    match error {
        RuleError::Id(_) => "id",
        RuleError::Duration => "max_gap",
        RuleError::NoLimit => "high",
        RuleError::NoProfileLimits(_) => "quantity",
        RuleError::NothingClear | RuleError::NegativeHysteresis => "hysteresis",
        RuleError::SensorOfUnitRule => "where",
    }
}

fn read_scope(section: &mut Section<'_>, kind: Option<&str>) -> Option<SilenceScope> {
    if kind != Some("silence") {
        return None;
    }
    let parse = |word: &str| match word {
        "sensor" => Some(SilenceScope::Sensor),
        "unit" => Some(SilenceScope::Unit),
        _ => None,
    };
    if section.has("scope") { section.word("scope", "sensor or unit", parse) } else { Some(SilenceScope::Sensor) }
}

fn read_range(section: &mut Section<'_>) -> Option<Condition> {
    let limits = Limits { low: section.number("low"), high: section.number("high") };
    let from_profile = section.word("limits", "\"profile\"", |word| (word == "profile").then_some(()));
    let hysteresis = section.number("hysteresis").unwrap_or(0.0);
    let keep_firing_for_ms = section.duration_ms("keep_firing_for").unwrap_or(0);
    for key in NOT_AVAILABLE_KEYS {
        if section.has(key) {
            section.problem(key, format!("`{key}` is not available in this version"));
            section.ignore(key);
        }
    }
    let limits = match from_profile {
        Some(()) if limits == Limits::default() => LimitSource::Profile,
        Some(()) => {
            section.problem("limits", "expected either `limits` or `low` and `high`, found both");
            return None;
        }
        None => LimitSource::Fixed(limits),
    };
    Some(Condition::Range { limits, hysteresis, keep_firing_for_ms })
}

fn read_state(section: &mut Section<'_>) -> Option<Condition> {
    section.require("is", "a number, true or false");
    let is = section.number_or_flag("is");
    let keep_firing_for_ms = section.duration_ms("keep_firing_for").unwrap_or(0);
    Some(Condition::State { is: is?, keep_firing_for_ms })
}

fn read_selector(mut section: Section<'_>) -> Selector {
    let selector = Selector {
        unit_kind: section.word("unit_kind", "storage or transport", UnitKind::from_word),
        operator: section.text("operator"),
        jurisdiction: section.text("jurisdiction"),
        category: section.texts("category"),
        unit: section.text("unit"),
        sensor: section.text("sensor"),
        loaded: section.flag("loaded"),
    };
    section.finish();
    selector
}

fn read_message(mut section: Section<'_>) -> Message {
    let message = Message { en: section.text("en"), zh: section.text("zh") };
    section.finish();
    message
}

/// Returns words as a list for people: `a, b or c`.
pub(crate) fn one_of<'a>(words: impl IntoIterator<Item = &'a str>) -> String {
    let words: Vec<_> = words.into_iter().collect();
    match words.split_last() {
        Some((last, [])) => (*last).to_owned(),
        Some((last, first)) => format!("{} or {last}", first.join(", ")),
        None => String::new(),
    }
}

/// Notes every profile in use by whose limits a rule could never end an episode.
pub(crate) fn check_against_profiles(
    dir: &Path,
    rules: &[Arc<Rule>],
    registry: &Registry,
    problems: &mut Vec<Problem>,
) {
    problems.extend(
        rules.iter().flat_map(|rule| profiles_without_clear_values(rule, registry)).map(|message| Problem {
            file: dir.to_owned(),
            line: None,
            key: "rule.hysteresis".to_owned(),
            message,
        }),
    );
}

/// Returns a message for each profile in use by whose limits a rule could never end an episode.
fn profiles_without_clear_values(rule: &Rule, registry: &Registry) -> Vec<String> {
    let Condition::Range { limits: LimitSource::Profile, hysteresis, .. } = rule.condition else {
        return Vec::new();
    };
    let of_units = registry.units.values().map(|unit| (unit.kind, unit.profile.as_deref()));
    let of_goods =
        registry.consignments.values().flatten().filter_map(|consignment| {
            Some((registry.units.get(&consignment.unit)?.kind, consignment.profile.as_deref()))
        });
    let mut in_use: Vec<_> = of_units.chain(of_goods).filter_map(|(kind, profile)| Some((profile?, kind))).collect();
    in_use.sort_unstable();
    in_use.dedup();
    let nothing_clear = in_use.into_iter().filter(|(id, kind)| {
        let profile = &registry.profiles[*id];
        let category = rule.selector.category.as_ref();
        category.is_none_or(|wanted| wanted.iter().any(|word| **word == *profile.category))
            && rule.selector.unit_kind.is_none_or(|wanted| wanted == *kind)
            && !leaves_something_clear(limits_of(profile, *kind, rule.quantity), hysteresis)
    });
    nothing_clear
        .map(|(id, kind)| {
            let kind = kind.as_str();
            format!("rule `{}`: no value of profile `{id}` in a {kind} unit is clear by {hysteresis}", rule.id)
        })
        .collect()
}

fn limits_of(profile: &Profile, kind: UnitKind, quantity: Kind) -> Limits {
    match (quantity, kind) {
        (Kind::Humidity, _) => profile.humidity,
        (_, UnitKind::Storage) => profile.temperature,
        (_, UnitKind::Transport) => profile.temperature_in_transport(),
    }
}
