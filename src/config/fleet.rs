//! `fleet.toml`: operators, units, sensors and consignments.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use frostline_core::model::{
    Consignment, Monitor, Name, Operator, Profile, Registry, Sensor, Timestamp, Unit, UnitKey, UnitKind,
};

use super::Problem;
use super::profiles::positive_duration_ms;
use super::section::{Section, Source};

/// Reads `fleet.toml`, given with its text if there is one, into a registry with these profiles, and notes every problem.
pub(crate) fn parse(
    file: &Path,
    text: Option<&str>,
    profiles: BTreeMap<Box<str>, Profile>,
    problems: &mut Vec<Problem>,
) -> Registry {
    let mut registry = Registry { profiles, ..Registry::default() };
    Source::new(file, text.unwrap_or_default()).parse(problems, |top| read_fleet(top, &mut registry));
    registry
}

fn read_fleet(top: &mut Section<'_>, registry: &mut Registry) {
    for mut section in top.sections("operator") {
        if let Some(operator) = read_operator(&mut section)
            && let Some(earlier) = registry.operators.insert(operator.id.clone(), operator)
        {
            section.problem("id", format!("there is another operator `{}`", earlier.id));
        }
        section.finish();
    }
    for mut section in top.sections("unit") {
        let unit = read_unit(&mut section, "id", &registry.profiles);
        if let Some(unit) = unit
            && let Some(earlier) = registry.units.insert(unit.key.clone(), unit)
        {
            section.problem("id", format!("operator `{}` has another such unit", earlier.key.operator));
        }
        section.finish();
    }
    for mut section in top.sections("sensor") {
        if let Some(sensor) = read_sensor(&mut section, registry) {
            let sensors = registry.sensors.entry(sensor.unit.clone()).or_default();
            if let Some(earlier) = sensors.insert(sensor.id.clone(), sensor) {
                section.problem("id", format!("unit `{}` has another such sensor", earlier.unit.unit));
            }
        }
        section.finish();
    }
    let mut ids = BTreeSet::new();
    for mut section in top.sections("consignment") {
        if let Some(consignment) = read_consignment(&mut section, registry) {
            if !ids.insert(consignment.id.clone()) {
                section.problem("id", format!("there is another consignment `{}`", consignment.id));
            }
            registry.consignments.entry(consignment.unit.clone()).or_default().push(consignment);
        }
        section.finish();
    }
}

fn read_operator(section: &mut Section<'_>) -> Option<Operator> {
    let id = read_name(section, "id");
    let (name, code) = (section.text("name"), section.text("code"));
    let id = id?;
    Some(Operator { name: name.unwrap_or_else(|| id.to_string()), id, code })
}

/// Reads a unit, whose name stands under `id_key`.
pub(crate) fn read_unit(
    section: &mut Section<'_>,
    id_key: &'static str,
    profiles: &BTreeMap<Box<str>, Profile>,
) -> Option<Unit> {
    let (id, operator) = (read_name(section, id_key), read_name(section, "operator"));
    section.require("kind", "storage or transport");
    let kind = section.word("kind", "storage or transport", UnitKind::from_word);
    let site = section.text("site");
    let jurisdiction = section.word("jurisdiction", "a division code of digits such as \"150100\"", |code| {
        (!code.is_empty() && code.bytes().all(|b| b.is_ascii_digit())).then(|| code.into())
    });
    let profile = read_profile_id(section, profiles);
    let monitor = read_monitor(section);
    let labels =
        section.section("labels").map_or_else(BTreeMap::new, |mut labels| labels.all_texts().into_iter().collect());
    Some(Unit {
        key: UnitKey { operator: operator?, unit: id? },
        kind: kind?,
        site,
        jurisdiction,
        profile,
        monitor,
        labels,
    })
}

/// Reads `monitor`: one word, or a list of `{ from, value }`.
fn read_monitor(section: &mut Section<'_>) -> Vec<(Timestamp, Monitor)> {
    const EXPECTED: &str = "always, loaded or off, or a list of { from = …, value = … }";
    if !section.is_list("monitor") {
        let monitor = section.word("monitor", EXPECTED, Monitor::from_word);
        return monitor.map(|monitor| (Timestamp::MIN, monitor)).into_iter().collect();
    }
    let mut dated = Vec::new();
    for mut entry in section.sections("monitor") {
        entry.require("from", "the time from which it holds");
        entry.require("value", "always, loaded or off");
        let (from, value) = (entry.time("from"), entry.word("value", "always, loaded or off", Monitor::from_word));
        dated.extend(from.zip(value));
        entry.finish();
    }
    dated.sort_by_key(|(from, _)| *from);
    dated
}

fn read_sensor(section: &mut Section<'_>, registry: &Registry) -> Option<Sensor> {
    section.require("id", "a sensor id");
    let id =
        section.word("id", "1 to 64 characters without control characters", |id| is_sensor_id(id).then(|| id.into()));
    let placement = section.text("placement");
    let max_gap_ms = positive_duration_ms(section, "max_gap");
    let calibration_due = section.date_text("calibration_due");
    let unit = read_unit_key(section, registry);
    Some(Sensor { unit: unit?, id: id?, placement, max_gap_ms, calibration_due })
}

/// Returns whether a text may be the name of a sensor.
pub(crate) fn is_sensor_id(id: &str) -> bool {
    (1..=64).contains(&id.chars().count()) && !id.chars().any(char::is_control)
}

fn read_consignment(section: &mut Section<'_>, registry: &Registry) -> Option<Consignment> {
    section.require("id", "a consignment id");
    let id = section.text("id");
    let lot = section.text("lot");
    let profile = read_profile_id(section, &registry.profiles);
    let (from, to) = read_stay(section);
    let unit = read_unit_key(section, registry);
    Some(Consignment { id: id?.into(), unit: unit?, profile, lot, from: from?, to })
}

/// Reads when goods are loaded and unloaded.
fn read_stay(section: &mut Section<'_>) -> (Option<Timestamp>, Option<Timestamp>) {
    section.require("from", "the time of loading");
    let (from, to) = (section.time("from"), section.time("to"));
    if from.zip(to).is_some_and(|(from, to)| to < from) {
        section.problem("to", "expected a time not before `from`");
    }
    (from, to)
}

/// Reads a profile's id and notes where there is no such profile.
pub(crate) fn read_profile_id(section: &mut Section<'_>, profiles: &BTreeMap<Box<str>, Profile>) -> Option<Box<str>> {
    let id: Box<str> = section.text("profile")?.into();
    if !profiles.contains_key(&id) {
        section.problem("profile", format!("expected the id of a profile, found `{id}`"));
        return None;
    }
    Some(id)
}

fn read_unit_key(section: &mut Section<'_>, registry: &Registry) -> Option<UnitKey> {
    let (unit, operator) = (read_name(section, "unit"), read_name(section, "operator"));
    let key = UnitKey { operator: operator?, unit: unit? };
    if !registry.units.contains_key(&key) {
        section.problem("unit", format!("operator `{}` has no unit `{}` in this file", key.operator, key.unit));
        return None;
    }
    Some(key)
}

/// Reads a name, which must be given.
pub(crate) fn read_name(section: &mut Section<'_>, key: &'static str) -> Option<Name> {
    const EXPECTED: &str = "1 to 64 of the characters A-Z a-z 0-9 . _ -";
    section.require(key, EXPECTED);
    section.word(key, EXPECTED, |name| Name::new(name).ok())
}
