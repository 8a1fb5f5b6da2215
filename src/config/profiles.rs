//! `profiles.toml`: the limits for categories of goods.

use std::collections::BTreeMap;
use std::path::Path;

use frostline_core::model::{Limits, Profile};

use super::Problem;
use super::section::{Section, Source};

/// The profiles that apply where the configuration has no `profiles.toml`.
pub(crate) const SHIPPED: &str = include_str!("../../config/profiles.toml");

/// Reads `profiles.toml`, given with its text, and notes every problem with it.
pub(crate) fn parse(file: &Path, text: &str, problems: &mut Vec<Problem>) -> BTreeMap<Box<str>, Profile> {
    Source::new(file, text).parse(problems, |top| {
        let mut profiles = BTreeMap::new();
        for mut section in top.sections("profile") {
            if let Some(profile) = read_profile(&mut section)
                && let Some(earlier) = profiles.insert(profile.id.clone(), profile)
            {
                section.problem("id", format!("there is another profile `{}`", earlier.id));
            }
            section.finish();
        }
        profiles
    })
}

fn read_profile(section: &mut Section<'_>) -> Option<Profile> {
    section.require("id", "a profile id");
    let id = section.text("id");
    section.require("category", "a category such as food");
    let category = section.text("category");
    let mut name = section.section("name");
    let (name_zh, name_en) = name.as_mut().map_or((None, None), |name| (name.text("zh"), name.text("en")));
    if let Some(name) = name {
        name.finish();
    }
    let mut limits = |low, high| {
        let limits = Limits { low: section.number(low), high: section.number(high) };
        if let (Some(lowest), Some(highest)) = (limits.low, limits.high)
            && lowest > highest
        {
            section.problem(low, format!("expected at most `{high}`, {highest}; found {lowest}"));
        }
        limits
    };
    let temperature = limits("low", "high");
    let transport_temperature = limits("transport_low", "transport_high");
    let humidity = limits("humidity_low", "humidity_high");
    let id = id?;
    Some(Profile {
        name_zh: name_zh.unwrap_or_else(|| id.clone()),
        name_en: name_en.unwrap_or_else(|| id.clone()),
        id: id.into(),
        category: category?.into(),
        temperature,
        transport_temperature,
        humidity,
        humidity_advisory: section.flag("humidity_advisory").unwrap_or(false),
        record_storage_ms: positive_duration_ms(section, "record_storage"),
        record_transport_ms: positive_duration_ms(section, "record_transport"),
        record_excursion_ms: positive_duration_ms(section, "record_excursion"),
        notify_at_least: section.count("notify_at_least"),
        power_alarm: section.flag("power_alarm").unwrap_or(false),
        retention: section.text("retention"),
        source: section.text("source").unwrap_or_default(),
        verified: section.flag("verified").unwrap_or(false),
    })
}

/// Returns a duration above zero: nothing could hold for none.
pub(crate) fn positive_duration_ms(section: &mut Section<'_>, key: &'static str) -> Option<i64> {
    let duration_ms = section.duration_ms(key)?;
    if duration_ms == 0 {
        section.problem(key, "expected a duration above zero");
        return None;
    }
    Some(duration_ms)
}
