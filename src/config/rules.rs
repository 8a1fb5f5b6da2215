//! `rules.toml` and `rules/*.toml`.

use std::path::PathBuf;
use std::sync::Arc;

use frostline_core::model::{Kind, Limits, Profile, Registry, UnitKind};
use frostline_core::rules::{
    Condition, LimitSource, Message, Rule, Selector, Severity, SilenceScope, Suspension, Window, leaves_limits_alone,
    leaves_something_clear,
};

use super::section::{Section, Source};
use super::{Problem, parse_duration_ms};

/// The kinds of rules, as they are named in files.
const KINDS: [&str; 9] =
    ["range", "cumulative", "mean_kinetic_temperature", "rate", "silence", "cadence", "stuck", "disagreement", "state"];

/// The activation energy that goods are taken to have where nobody says, kJ/mol.
const DELTA_H_DEFAULT: f64 = 83.144;

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
    section.require("kind", &one_of(KINDS));
    let kind = section.text("kind");
    let scope = read_scope(section, kind.as_deref());
    if scope != Some(SilenceScope::Unit) {
        section.require("quantity", "a kind of reading such as temperature");
    }
    let quantity = read_quantity(section);
    // A silent unit is silent in every quantity.
    let quantity = quantity.or((scope == Some(SilenceScope::Unit)).then_some(Kind::Temperature));
    let severity = section.word("severity", "notice, warning or critical", Severity::from_word);
    let max_gap_ms = section.duration_ms("max_gap");
    let selector = section.section("where").map(read_selector).unwrap_or_default();
    let message = section.section("message").map(read_message).unwrap_or_default();
    let source = section.text("source");
    let verified = section.flag("verified").unwrap_or(true);
    let condition = read_condition(section, kind?.as_str(), scope);
    let for_ms = if matches!(condition, Some(Condition::Cumulative { .. } | Condition::Cadence { .. })) {
        None
    } else {
        section.duration_ms("for")
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
        source: source.map(Into::into),
        verified,
        version: "".into(),
    };
    Rule::new(rule).map_err(|error| section.problem(error.key(), error.to_string())).ok()
}

/// Returns the condition of a rule of this kind, or `None` where a problem was noted.
fn read_condition(section: &mut Section<'_>, kind: &str, scope: Option<SilenceScope>) -> Option<Condition> {
    match kind {
        "range" => read_range(section),
        "cumulative" => read_cumulative(section),
        "mean_kinetic_temperature" => read_mean_kinetic_temperature(section),
        "rate" => read_rate(section),
        "silence" => scope.map(|scope| Condition::Silence { scope }),
        "cadence" => read_cadence(section),
        "stuck" => Some(Condition::Stuck { min_readings: section.count("min_readings").unwrap_or(10) }),
        "disagreement" => read_disagreement(section),
        "state" => read_state(section),
        kind => {
            section.problem("kind", format!("expected {}, found `{kind}`", one_of(KINDS)));
            section.ignore_unknown();
            None
        }
    }
}

fn read_quantity(section: &mut Section<'_>) -> Option<Kind> {
    section.word("quantity", &one_of(Kind::ALL.iter().map(|kind| kind.as_str())), Kind::from_word)
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
    let limits = read_limits(section);
    let from_profile = section.word("limits", "\"profile\"", |word| (word == "profile").then_some(()));
    let hysteresis = read_hysteresis(section);
    let keep_firing_for_ms = read_keep_firing_for_ms(section);
    let (never_below, never_above) = (section.number("never_below"), section.number("never_above"));
    let suspend_while = section.section("suspend_while").and_then(read_suspension);
    let limits = match from_profile {
        Some(()) if limits == Limits::default() => LimitSource::Profile,
        Some(()) => {
            section.problem("limits", "expected either `limits` or `low` and `high`, found both");
            return None;
        }
        None => LimitSource::Fixed(limits),
    };
    Some(Condition::Range { limits, hysteresis, keep_firing_for_ms, never_below, never_above, suspend_while })
}

fn read_suspension(mut section: Section<'_>) -> Option<Suspension> {
    section.require("quantity", "a kind of reading such as defrost");
    let quantity = read_quantity(&mut section);
    section.require("is", "a number, true or false");
    let is = section.number_or_flag("is");
    let plus_ms = section.duration_ms("plus").unwrap_or(0);
    section.require("at_most", "how long one suspension lasts at most");
    let at_most_ms = section.duration_ms("at_most");
    section.finish();
    Some(Suspension { quantity: quantity?, is: is?, plus_ms, at_most_ms: at_most_ms? })
}

fn read_cumulative(section: &mut Section<'_>) -> Option<Condition> {
    let limits = read_limits(section);
    let window = read_window(section);
    section.require("budget", "how much time outside the limits is allowed");
    let budget_ms = section.duration_ms("budget");
    Some(Condition::Cumulative { limits, window: window?, budget_ms: budget_ms? })
}

fn read_mean_kinetic_temperature(section: &mut Section<'_>) -> Option<Condition> {
    let window = read_window(section);
    section.require("high", "the highest good mean in °C");
    let high = section.number("high");
    let hysteresis = read_hysteresis(section);
    let keep_firing_for_ms = read_keep_firing_for_ms(section);
    let delta_h = section.number("delta_h").unwrap_or(DELTA_H_DEFAULT);
    let min_known_ms = section.duration_ms("min_known");
    Some(Condition::MeanKineticTemperature {
        window: window?,
        high: high?,
        hysteresis,
        keep_firing_for_ms,
        delta_h,
        min_known_ms,
    })
}

fn read_rate(section: &mut Section<'_>) -> Option<Condition> {
    section.require("per", "the time that a change is looked for in");
    let per_ms = section.duration_ms("per");
    let (rise, fall) = (section.number("rise"), section.number("fall"));
    let keep_firing_for_ms = read_keep_firing_for_ms(section);
    Some(Condition::Rate { per_ms: per_ms?, rise, fall, keep_firing_for_ms })
}

fn read_cadence(section: &mut Section<'_>) -> Option<Condition> {
    section.require("every", "the time between two readings that are due");
    let every_ms = section.duration_ms("every");
    let every_out_ms = section.duration_ms("every_out");
    let share = section.number("share").unwrap_or(0.9);
    section.require("window", "the time that is judged at once");
    let window_ms = section.duration_ms("window");
    Some(Condition::Cadence { every_ms: every_ms?, every_out_ms, share, window_ms: window_ms? })
}

fn read_disagreement(section: &mut Section<'_>) -> Option<Condition> {
    section.require("limit", "how far apart sensors may be");
    let limit = section.number("limit");
    let hysteresis = read_hysteresis(section);
    let keep_firing_for_ms = read_keep_firing_for_ms(section);
    Some(Condition::Disagreement { limit: limit?, hysteresis, keep_firing_for_ms })
}

fn read_state(section: &mut Section<'_>) -> Option<Condition> {
    section.require("is", "a number, true or false");
    let is = section.number_or_flag("is");
    let keep_firing_for_ms = read_keep_firing_for_ms(section);
    Some(Condition::State { is: is?, keep_firing_for_ms })
}

fn read_limits(section: &mut Section<'_>) -> Limits {
    Limits { low: section.number("low"), high: section.number("high") }
}

fn read_hysteresis(section: &mut Section<'_>) -> f64 {
    section.number("hysteresis").unwrap_or(0.0)
}

fn read_keep_firing_for_ms(section: &mut Section<'_>) -> i64 {
    section.duration_ms("keep_firing_for").unwrap_or(0)
}

fn read_window(section: &mut Section<'_>) -> Option<Window> {
    const EXPECTED: &str = "a duration such as \"24h\", or \"consignment\"";
    section.require("window", EXPECTED);
    section.word("window", EXPECTED, |text| match text {
        "consignment" => Some(Window::Consignment),
        text => parse_duration_ms(text).ok().map(Window::Rolling),
    })
}

fn read_selector(mut section: Section<'_>) -> Selector {
    let selector = Selector {
        unit_kind: section.word("unit_kind", "storage or transport", UnitKind::from_word),
        operator: section.text("operator"),
        jurisdiction: section.text("jurisdiction"),
        category: section.texts("category"),
        profile: section.texts("profile"),
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

/// Notes every profile in use by whose limits a rule could never end an episode, or would fire within them.
pub(crate) fn check_against_profiles(
    files: &[(PathBuf, &str)],
    rules: &[Arc<Rule>],
    registry: &Registry,
    problems: &mut Vec<Problem>,
) {
    for rule in rules {
        for (key, message) in profiles_that_do_not_fit(rule, registry) {
            let (file, line) = place_of(&rule.id, files);
            problems.push(Problem { file, line, key: format!("rule.{key}"), message });
        }
    }
}

/// Returns the file and the line in which a rule says its id.
fn place_of(id: &str, files: &[(PathBuf, &str)]) -> (PathBuf, Option<usize>) {
    let quoted = format!("\"{id}\"");
    let says_id = |line: &str| line.trim_start().starts_with("id") && line.contains(&quoted);
    let place = files.iter().find_map(|(file, text)| Some((file.clone(), text.lines().position(says_id)? + 1)));
    match place {
        Some((file, line)) => (file, Some(line)),
        None => (files.first().map(|(file, _)| file.clone()).unwrap_or_default(), None),
    }
}

/// Returns a key and a message for each profile in use whose limits a rule with limits from the profile does not suit.
fn profiles_that_do_not_fit(rule: &Rule, registry: &Registry) -> Vec<(&'static str, String)> {
    let Condition::Range { limits: LimitSource::Profile, hysteresis, never_below, never_above, .. } = rule.condition
    else {
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
    let mut found = Vec::new();
    for (id, kind) in in_use {
        let profile = &registry.profiles[id];
        let is_meant = rule.selector.matches_profile(profile)
            && rule.selector.unit_kind.is_none_or(|wanted| wanted == kind)
            && has_limits(profile, rule.quantity);
        if !is_meant {
            continue;
        }
        let limits = limits_of(profile, kind, rule.quantity);
        let (rule, kind) = (&rule.id, kind.as_str());
        if !leaves_something_clear(limits, hysteresis) {
            let message =
                format!("rule `{rule}`: no value of profile `{id}` in a {kind} unit is clear by {hysteresis}");
            found.push(("hysteresis", message));
        }
        for (key, below, above) in [("never_below", never_below, None), ("never_above", None, never_above)] {
            if !leaves_limits_alone(limits, below, above) {
                let message =
                    format!("rule `{rule}`: the value is not outside the limits of profile `{id}` in a {kind} unit");
                found.push((key, message));
            }
        }
    }
    found
}

/// Returns whether a profile has anything to judge a quantity by.
fn has_limits(profile: &Profile, quantity: Kind) -> bool {
    quantity != Kind::Humidity || !profile.humidity_advisory
}

fn limits_of(profile: &Profile, kind: UnitKind, quantity: Kind) -> Limits {
    match (quantity, kind) {
        (Kind::Humidity, _) => profile.humidity,
        (_, UnitKind::Storage) => profile.temperature,
        (_, UnitKind::Transport) => profile.temperature_in_transport(),
    }
}
