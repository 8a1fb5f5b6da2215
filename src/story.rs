//! The stories that rules are tested with: readings as a line of text, and the episodes that they should give.
//!
//! Time in a story is counted from its start, an arbitrary midnight; *now* is the end of its longest series.

use std::path::Path;
use std::sync::Arc;

use frostline_core::model::{Consignment, Kind, Profile, Registry, Sensor, SeriesKey, Timestamp, Unit, UnitKey};
use frostline_core::rules::Rule;

use crate::backtest::judge;
use crate::config::section::{Section, Source};
use crate::config::{Problem, fleet, one_of};

/// The instant at which every story starts: 2026-01-01T00:00:00Z.
const START: Timestamp = Timestamp::from_millis(1_767_225_600_000);

/// The longest series that is taken: a misspelt count should not fill the memory.
const READINGS_MAX: usize = 1_000_000;

/// One story: what a unit reports, and what should be found.
#[derive(Debug)]
pub struct Story {
    /// What people call it.
    pub name: String,
    /// Whether the unit is registered, and as what.
    registered: Option<Unit>,
    unit: UnitKey,
    every_ms: i64,
    series: Vec<StorySeries>,
    consignments: Vec<Consignment>,
    expected: Vec<StoryEpisode>,
}

/// What one sensor reports of one quantity.
#[derive(Debug)]
struct StorySeries {
    quantity: Kind,
    sensor: String,
    steps: Vec<Step>,
}

/// What is there at one step: `None` is a missing reading, `Some(None)` one of a failed probe.
type Step = Option<Option<f64>>;

/// An episode as a story has it: times in milliseconds from the start.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct StoryEpisode {
    /// The sensor; `None` for a rule about a whole unit.
    pub sensor: Option<String>,
    /// The rule's id.
    pub rule: String,
    /// When it started.
    pub started_ms: i64,
    /// When it fired.
    pub fired_ms: i64,
    /// When it was resolved; `None` where it was still firing at the end.
    pub resolved_ms: Option<i64>,
}

/// What became of a story.
#[derive(Debug)]
pub struct Told {
    /// The story's name.
    pub name: String,
    /// What should be found, sorted.
    pub expected: Vec<StoryEpisode>,
    /// What was found, sorted.
    pub found: Vec<StoryEpisode>,
}

impl Told {
    /// Returns whether what was found is what was expected.
    pub fn is_as_expected(&self) -> bool {
        self.expected == self.found
    }
}

/// `frozen-high t1 started 30m fired 40m resolved 70m`
impl std::fmt::Display for StoryEpisode {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let sensor = self.sensor.as_deref().unwrap_or("(unit)");
        let (started, fired) = (shown_duration(self.started_ms), shown_duration(self.fired_ms));
        write!(f, "{} {sensor} started {started} fired {fired} ", self.rule)?;
        match self.resolved_ms {
            Some(resolved_ms) => write!(f, "resolved {}", shown_duration(resolved_ms)),
            None => f.write_str("still firing"),
        }
    }
}

/// Returns a duration as a story would write it.
pub fn shown_duration(duration_ms: i64) -> String {
    match duration_ms {
        0 => "0s".to_owned(),
        ms if ms % 60_000 == 0 => format!("{}m", ms / 60_000),
        ms if ms % 1_000 == 0 => format!("{}s", ms / 1_000),
        ms => format!("{ms}ms"),
    }
}

impl Story {
    /// Returns what the rules make of the story.
    pub fn tell(&self, rules: &Arc<[Arc<Rule>]>, registry: &Registry) -> Told {
        let mut stage = Registry { profiles: registry.profiles.clone(), ..Registry::default() };
        if let Some(unit) = &self.registered {
            stage.units.insert(self.unit.clone(), unit.clone());
            let sensors = stage.sensors.entry(self.unit.clone()).or_default();
            for series in &self.series {
                let sensor = Sensor {
                    unit: self.unit.clone(),
                    id: series.sensor.as_str().into(),
                    placement: None,
                    max_gap_ms: None,
                    calibration_due: None,
                };
                sensors.insert(sensor.id.clone(), sensor);
            }
            stage.consignments.insert(self.unit.clone(), self.consignments.clone());
        }
        let length = self.series.iter().map(|series| series.steps.len()).max().unwrap_or(0);
        let now = START.plus_millis(self.every_ms * length as i64);
        let series = self.series.iter().filter_map(|StorySeries { quantity, sensor, steps }| {
            let at = |step: usize| START.plus_millis(self.every_ms * step as i64).as_millis();
            let readings = steps.iter().enumerate();
            let readings = readings.filter_map(|(step, value)| Some((at(step), (*value)?.unwrap_or(f64::NAN))));
            let readings: Vec<_> = readings.collect();
            let key = SeriesKey { unit: self.unit.clone(), sensor: sensor.as_str().into(), kind: *quantity };
            (!readings.is_empty()).then_some((key, readings))
        });
        let episodes = judge(Arc::clone(rules), Arc::new(stage), series.collect(), START, now);
        let found = episodes.into_iter().map(|episode| StoryEpisode {
            sensor: episode.sensor,
            rule: episode.rule,
            started_ms: episode.started_at.millis_since(START),
            fired_ms: episode.fired_at.millis_since(START),
            resolved_ms: episode.resolved_at.map(|at| at.millis_since(START)),
        });
        let mut found: Vec<_> = found.collect();
        found.sort();
        let mut expected = self.expected.clone();
        expected.sort();
        Told { name: self.name.clone(), expected, found }
    }
}

/// Reads the stories of a file, given with its text, and notes every problem with them.
pub fn parse(file: &Path, text: &str, registry: &Registry, problems: &mut Vec<Problem>) -> Vec<Story> {
    Source::new(file, text).parse(problems, |top| {
        let mut stories = Vec::new();
        for mut section in top.sections("test") {
            stories.extend(read_story(&mut section, registry));
            section.finish();
        }
        stories
    })
}

fn read_story(section: &mut Section<'_>, registry: &Registry) -> Option<Story> {
    section.require("name", "what the story is called");
    let name = section.text("name");
    section.require("unit", "a table with `operator` and `unit`");
    let unit = section.section("unit").and_then(|mut unit| {
        let read = read_unit(&mut unit, registry);
        unit.finish();
        read
    });
    section.require("every", "the time between two readings");
    let every_ms = section.duration_ms("every");
    if every_ms == Some(0) {
        section.problem("every", "expected a duration above zero");
    }
    let quantity_words = one_of(Kind::ALL.iter().map(|kind| kind.as_str()));
    let quantity = section.word("quantity", &quantity_words, Kind::from_word).unwrap_or(Kind::Temperature);
    section.require("readings", "a table of sensors with their readings");
    let mut series = Vec::new();
    if let Some(mut readings) = section.section("readings") {
        read_series(&mut readings, quantity, &mut series);
    }
    if let Some(mut also) = section.section("also") {
        for quantity in Kind::ALL {
            if let Some(mut readings) = also.section(quantity.as_str()) {
                read_series(&mut readings, quantity, &mut series);
            }
        }
        also.finish();
    }
    let (key, registered) = unit?;
    let consignments = section.sections("consignment").into_iter().enumerate().filter_map(|(number, mut goods)| {
        let consignment = read_consignment(&mut goods, &key, number, &registry.profiles);
        goods.finish();
        consignment
    });
    let consignments: Vec<_> = consignments.collect();
    if !consignments.is_empty() && registered.is_none() {
        section.problem("consignment", "goods need a registered unit: one with a `kind`");
    }
    section.require("expect", "a list of episodes, which may be empty");
    let expected = section.sections("expect").into_iter().filter_map(|mut expected| {
        let episode = read_expected(&mut expected);
        expected.finish();
        episode
    });
    Some(Story {
        name: name?,
        registered,
        unit: key,
        expected: expected.collect(),
        every_ms: every_ms.filter(|every_ms| *every_ms > 0)?,
        series,
        consignments,
    })
}

/// Reads the unit; it is registered where its `kind` is told.
fn read_unit(section: &mut Section<'_>, registry: &Registry) -> Option<(UnitKey, Option<Unit>)> {
    if section.has("kind") {
        let unit = fleet::read_unit(section, "unit", &registry.profiles)?;
        return Some((unit.key.clone(), Some(unit)));
    }
    let (operator, unit) = (fleet::read_name(section, "operator"), fleet::read_name(section, "unit"));
    Some((UnitKey { operator: operator?, unit: unit? }, None))
}

fn read_series(section: &mut Section<'_>, quantity: Kind, series: &mut Vec<StorySeries>) {
    for (sensor, text) in section.all_texts() {
        if !fleet::is_sensor_id(&sensor) {
            section.problem(&sensor, "expected a sensor of 1 to 64 characters without control characters");
        }
        if series.iter().any(|other| other.quantity == quantity && other.sensor == sensor) {
            section.problem(&sensor, format!("`readings` has {quantity} of this sensor already"));
        }
        match read_steps(&text, quantity) {
            Ok(steps) => series.push(StorySeries { quantity, sensor, steps }),
            Err(message) => section.problem(&sensor, message),
        }
    }
}

/// Reads `-19x30 -14..-18x5 _x3 null (5 _x9)x12`: values, ramps, missing readings, failed probes and groups of them,
/// each with its count.
fn read_steps(text: &str, quantity: Kind) -> Result<Vec<Step>, String> {
    // The innermost group that is still open comes last; the first is the line itself.
    let mut open: Vec<Vec<Step>> = vec![Vec::new()];
    // A count may stand apart: `-14..-18 x 5`.
    for word in text.replace(" x ", "x").replace('(', " ( ").replace(')', " )").split_whitespace() {
        if word == "(" {
            open.push(Vec::new());
            continue;
        }
        let wrong =
            || format!("expected `value`, `valuexcount`, `from..toxcount`, `_`, `null` or `(…)xcount`, found `{word}`");
        let (what, count) = match word.split_once('x') {
            Some((what, count)) => (what, count.parse::<usize>().map_err(|_| wrong())?),
            None => (word, 1),
        };
        let value = |text: &str| {
            let value: f64 = text.parse().map_err(|_| wrong())?;
            if quantity.is_possible(value) { Ok(value) } else { Err(format!("{value} is not possible for {quantity}")) }
        };
        let group = match (what, what.split_once("..")) {
            (")", _) if open.len() > 1 => open.pop().expect("more than one is open"),
            ("_", _) => vec![None],
            ("null", _) => vec![Some(None)],
            (_, Some((from, to))) => {
                let (from, to) = (value(from)?, value(to)?);
                check_count(count)?;
                let step = (to - from) / count.saturating_sub(1).max(1) as f64;
                (0..count).map(|number| Some(Some(from + step * number as f64))).collect()
            }
            (one, None) => vec![Some(Some(value(one)?))],
        };
        let repeats = if what.contains("..") { 1 } else { count };
        let steps = open.last_mut().expect("the line itself is never closed");
        check_count(group.len().saturating_mul(repeats).saturating_add(steps.len()))?;
        steps.extend(std::iter::repeat_n(group, repeats).flatten());
    }
    match <[_; 1]>::try_from(open) {
        Ok([steps]) => Ok(steps),
        Err(_) => Err("a `(` is not closed".to_owned()),
    }
}

fn check_count(count: usize) -> Result<(), String> {
    if count > READINGS_MAX { Err(format!("expected at most {READINGS_MAX} readings")) } else { Ok(()) }
}

fn read_consignment(
    section: &mut Section<'_>,
    unit: &UnitKey,
    number: usize,
    profiles: &std::collections::BTreeMap<Box<str>, Profile>,
) -> Option<Consignment> {
    let profile = fleet::read_profile_id(section, profiles);
    section.require("from", "the time from the start of the story");
    let (from_ms, to_ms) = (section.duration_ms("from"), section.duration_ms("to"));
    Some(Consignment {
        id: number.to_string().into(),
        unit: unit.clone(),
        profile,
        lot: None,
        from: START.plus_millis(from_ms?),
        to: to_ms.map(|to_ms| START.plus_millis(to_ms)),
    })
}

fn read_expected(section: &mut Section<'_>) -> Option<StoryEpisode> {
    section.require("rule", "the id of a rule");
    let (rule, sensor) = (section.text("rule"), section.text("sensor"));
    for key in ["started", "fired"] {
        section.require(key, "a time from the start of the story");
    }
    let (started_ms, fired_ms) = (section.duration_ms("started"), section.duration_ms("fired"));
    let resolved_ms = section.duration_ms("resolved");
    Some(StoryEpisode { sensor, rule: rule?, started_ms: started_ms?, fired_ms: fired_ms?, resolved_ms })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_readings_says_what_its_words_say() {
        let (five, dead, missing) = (Some(Some(5.0)), Some(None), None);
        for (text, steps) in [
            ("5", vec![five]),
            ("5x2 null _x2", vec![five, five, dead, missing, missing]),
            ("4..6x3", vec![Some(Some(4.0)), five, Some(Some(6.0))]),
            ("4..6 x 3", vec![Some(Some(4.0)), five, Some(Some(6.0))]),
            ("(5 _)x2 5", vec![five, missing, five, missing, five]),
            ("((5)x2 _) x 2", vec![five, five, missing, five, five, missing]),
            ("(5)", vec![five]),
            ("5x0", vec![]),
        ] {
            assert_eq!(read_steps(text, Kind::Temperature), Ok(steps), "{text}");
        }
        for text in [
            "warm",
            "5x",
            "x5",
            "5x-1",
            "5..",
            "(5",
            "5)",
            "(5)x",
            "300",
            "5x9999999",
            "((5x999)x999)x999",
            "1..2x9999999",
        ] {
            assert!(read_steps(text, Kind::Temperature).is_err(), "{text}");
        }
        assert!(read_steps("0.5", Kind::Defrost).is_err());
    }

    #[test]
    fn what_is_wrong_with_a_story_is_told_with_its_line_and_key() {
        let text = r#"[[test]]
name = "twice"
unit = { operator = "op1", unit = "u1" }
every = "1m"
quantity = "door"
readings = { d1 = "1x5" }
also = { door = { d1 = "0x5" }, defrost = { p1 = "2x5" }, warmth = { t1 = "5x5" } }
expect = []
"#;
        let mut problems = Vec::new();
        parse(Path::new("a.toml"), text, &Registry::default(), &mut problems);
        let told: String = problems.iter().map(|problem| format!("{problem}\n")).collect();
        expect_test::expect![[r#"
            a.toml:7: test.also.door.d1: `readings` has door of this sensor already
            a.toml:7: test.also.defrost.p1: 2 is not possible for defrost
            a.toml:7: test.also.warmth: unknown key; expected one of temperature, humidity, door, power, compressor, battery, setpoint, defrost, latitude, longitude
        "#]].assert_eq(&told);
    }
}
