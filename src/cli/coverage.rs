//! `frostline check --coverage`: what is asked of each unit, and which rule watches over it.

use std::fmt::Write as _;

use frostline_core::model::{
    Consignment, Kind, Limits, Monitor, Profile, Registry, Timestamp, Unit, UnitKey, UnitKind,
};
use frostline_core::rules::{Condition, LimitSource, Rule, micro};
use serde::Serialize;

use crate::config::Judgement;
use crate::story::shown_duration;

/// One unit and what is asked of it.
#[derive(Debug, Serialize)]
pub(crate) struct UnitCoverage {
    operator: String,
    unit: String,
    kind: &'static str,
    /// One entry for each profile that may be in force; none where nobody says what the unit is for.
    in_force: Vec<ProfileCoverage>,
}

/// One profile in a unit.
#[derive(Debug, Serialize)]
struct ProfileCoverage {
    profile: String,
    /// Whether it is a consignment's rather than the unit's own.
    of_goods: bool,
    source: String,
    verified: bool,
    clauses: Vec<ClauseCoverage>,
}

/// One thing that a profile asks for.
#[derive(Debug, Serialize)]
struct ClauseCoverage {
    clause: String,
    /// Told in statistics only: no rule is expected.
    advisory: bool,
    watched_by: Vec<WatchingRule>,
}

#[derive(Debug, Serialize)]
struct WatchingRule {
    rule: String,
    source: Option<String>,
    verified: bool,
}

/// What a profile may ask for.
#[derive(Debug, Clone, Copy)]
enum Clause {
    Low(Kind, f64),
    High(Kind, f64),
    /// The longest spacing of records, in milliseconds.
    Record(i64),
    /// The longest spacing of records while outside the limits, in milliseconds.
    RecordOutside(i64),
    Power,
}

/// Returns for every unit which clause of each profile in force is watched by which rules.
pub(crate) fn of(judgement: &Judgement) -> Vec<UnitCoverage> {
    judgement.registry.units.values().map(|unit| of_unit(unit, &judgement.rules, &judgement.registry)).collect()
}

fn of_unit(unit: &Unit, rules: &[std::sync::Arc<Rule>], registry: &Registry) -> UnitCoverage {
    let own = unit.profile.as_deref().into_iter().map(|id| (id, false));
    let goods = registry.consignments.get(&unit.key).into_iter().flatten();
    let mut of_goods: Vec<_> = goods.filter_map(|goods| Some((goods.profile.as_deref()?, true))).collect();
    of_goods.sort_unstable();
    of_goods.dedup();
    let in_force = own.chain(of_goods).map(|(id, of_goods)| {
        let profile = &registry.profiles[id];
        let stage = stage(unit, profile, of_goods, registry);
        ProfileCoverage {
            profile: id.to_owned(),
            of_goods,
            source: profile.source.clone(),
            verified: profile.verified,
            clauses: clauses_of(profile, unit.kind)
                .into_iter()
                .map(|(clause, advisory)| ClauseCoverage {
                    clause: clause.to_string(),
                    advisory,
                    watched_by: rules
                        .iter()
                        .filter(|rule| !advisory && concerns(rule, &stage, &unit.key) && watches(rule, clause))
                        .map(|rule| WatchingRule {
                            rule: rule.id.to_string(),
                            source: rule.source.as_deref().map(str::to_owned),
                            verified: rule.verified,
                        })
                        .collect(),
                })
                .collect(),
        }
    });
    let UnitKey { operator, unit: name } = &unit.key;
    UnitCoverage {
        operator: operator.to_string(),
        unit: name.to_string(),
        kind: unit.kind.as_str(),
        in_force: in_force.collect(),
    }
}

/// Returns a registry in which one profile is in force in the unit at every instant, so that selectors can be asked.
fn stage(unit: &Unit, profile: &Profile, of_goods: bool, registry: &Registry) -> Registry {
    let mut stage = Registry::default();
    stage.profiles.insert(profile.id.clone(), profile.clone());
    stage.units.insert(unit.key.clone(), unit.clone());
    stage
        .sensors
        .extend(registry.sensors.get_key_value(&unit.key).map(|(key, sensors)| (key.clone(), sensors.clone())));
    // A unit that is watched while it is loaded has its own profile in force with goods that have none.
    if of_goods || unit.monitor_at(Timestamp::MAX) == Monitor::Loaded {
        let goods = Consignment {
            id: "any".into(),
            unit: unit.key.clone(),
            profile: of_goods.then(|| profile.id.clone()),
            lot: None,
            from: Timestamp::MIN,
            to: None,
        };
        stage.consignments.insert(unit.key.clone(), vec![goods]);
    }
    stage
}

fn clauses_of(profile: &Profile, kind: UnitKind) -> Vec<(Clause, bool)> {
    let (temperature, record_ms) = match kind {
        UnitKind::Storage => (profile.temperature, profile.record_storage_ms),
        UnitKind::Transport => (profile.temperature_in_transport(), profile.record_transport_ms),
    };
    let limits_of = |quantity, limits: Limits, advisory| {
        let low = limits.low.map(|limit| (Clause::Low(quantity, limit), advisory));
        low.into_iter().chain(limits.high.map(|limit| (Clause::High(quantity, limit), advisory)))
    };
    limits_of(Kind::Temperature, temperature, false)
        .chain(limits_of(Kind::Humidity, profile.humidity, profile.humidity_advisory))
        .chain(record_ms.map(|every_ms| (Clause::Record(every_ms), false)))
        .chain(profile.record_excursion_ms.map(|every_ms| (Clause::RecordOutside(every_ms), false)))
        .chain(profile.power_alarm.then_some((Clause::Power, false)))
        .collect()
}

/// Returns whether a rule is about the unit as it stands on the stage, and about one of its sensors at least.
fn concerns(rule: &Rule, stage: &Registry, unit: &UnitKey) -> bool {
    let sensors = stage.sensors.get(unit).filter(|sensors| !sensors.is_empty());
    rule.selector.matches_unit(&stage.facts(unit), Timestamp::from_millis(0))
        && sensors.is_none_or(|sensors| sensors.keys().any(|sensor| rule.selector.matches_sensor(sensor)))
}

/// Returns whether a rule that concerns the unit fires where the clause is broken.
fn watches(rule: &Rule, clause: Clause) -> bool {
    match (clause, rule.condition) {
        (Clause::Low(quantity, limit), Condition::Range { limits, .. }) => {
            rule.quantity == quantity
                && match limits {
                    LimitSource::Profile => true,
                    LimitSource::Fixed(fixed) => fixed.low.is_some_and(|low| micro(low) >= micro(limit)),
                }
        }
        (Clause::High(quantity, limit), Condition::Range { limits, .. }) => {
            rule.quantity == quantity
                && match limits {
                    LimitSource::Profile => true,
                    LimitSource::Fixed(fixed) => fixed.high.is_some_and(|high| micro(high) <= micro(limit)),
                }
        }
        (Clause::Record(due_ms), Condition::Cadence { every_ms, .. }) => {
            rule.quantity == Kind::Temperature && every_ms <= due_ms
        }
        (Clause::RecordOutside(due_ms), Condition::Cadence { every_ms, every_out_ms, .. }) => {
            rule.quantity == Kind::Temperature && every_out_ms.unwrap_or(every_ms) <= due_ms
        }
        (Clause::Power, Condition::State { is, .. }) => rule.quantity == Kind::Power && micro(is) == 0,
        _ => false,
    }
}

impl std::fmt::Display for Clause {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let unit_of = |quantity| if quantity == Kind::Humidity { "%RH" } else { "°C" };
        match *self {
            Self::Low(quantity, limit) => write!(f, "{quantity} at least {limit} {}", unit_of(quantity)),
            Self::High(quantity, limit) => write!(f, "{quantity} at most {limit} {}", unit_of(quantity)),
            Self::Record(every_ms) => write!(f, "a record every {}", shown_duration(every_ms)),
            Self::RecordOutside(every_ms) => write!(f, "a record every {} while outside", shown_duration(every_ms)),
            Self::Power => f.write_str("power failure told"),
        }
    }
}

/// Returns the coverage for people.
pub(crate) fn as_text(units: &[UnitCoverage]) -> String {
    let mut text = String::new();
    let mut write = |line: String| writeln!(text, "{line}").expect("a text takes every line");
    let clauses = || units.iter().flat_map(|unit| &unit.in_force).flat_map(|profile| &profile.clauses);
    let width = clauses().map(|clause| clause.clause.chars().count()).max().unwrap_or(0);
    for UnitCoverage { operator, unit, kind, in_force } in units {
        if in_force.is_empty() {
            write(format!("{operator}/{unit} ({kind}): no profile, so nothing is asked of it"));
        }
        for ProfileCoverage { profile, of_goods, verified, clauses, .. } in in_force {
            let whose = if *of_goods { "goods" } else { "profile" };
            let unverified = if *verified { "" } else { ", not verified" };
            write(format!("{operator}/{unit} ({kind}, {whose} {profile}{unverified})"));
            for ClauseCoverage { clause, advisory, watched_by } in clauses {
                let by: Vec<_> = watched_by.iter().map(WatchingRule::shown).collect();
                let by = match (advisory, by.is_empty()) {
                    (true, _) => "advisory".to_owned(),
                    (false, true) => "not watched".to_owned(),
                    (false, false) => by.join(", "),
                };
                write(format!("  {clause:width$}  {by}"));
            }
        }
    }
    let binding = clauses().filter(|clause| !clause.advisory);
    let (watched, count) = binding
        .fold((0, 0), |(watched, count), clause| (watched + usize::from(!clause.watched_by.is_empty()), count + 1));
    write(format!("{watched} of {count} clauses are watched, {} units", units.len()));
    text
}

impl WatchingRule {
    fn shown(&self) -> String {
        if self.verified { self.rule.clone() } else { format!("{} (not verified)", self.rule) }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    use super::*;
    use crate::config;

    /// Returns the coverage of a fleet by the rules of a file, or by those that are shipped.
    fn coverage(fleet: &str, rules: Option<&str>) -> String {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("fleet.toml"), fleet).unwrap();
        if let Some(rules) = rules {
            fs::write(dir.path().join("rules.toml"), rules).unwrap();
        } else {
            fs::create_dir(dir.path().join("rules")).unwrap();
            for entry in fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("config/rules")).unwrap() {
                let file = entry.unwrap().path();
                fs::copy(&file, dir.path().join("rules").join(file.file_name().unwrap())).unwrap();
            }
        }
        as_text(&of(&config::load_judgement(dir.path(), None).unwrap()))
    }

    #[test]
    fn the_shipped_rules_say_what_they_watch_and_what_they_do_not() {
        let fleet = r#"
[[unit]]
id = "pharmacy"
operator = "op1"
kind = "storage"
profile = "drug_cool_20"

[[unit]]
id = "room"
operator = "op1"
kind = "storage"
profile = "frozen_meat"

[[unit]]
id = "shed"
operator = "op1"
kind = "storage"

[[unit]]
id = "truck"
operator = "op1"
kind = "transport"
profile = "ice_cream"

[[consignment]]
id = "c1"
unit = "truck"
operator = "op1"
profile = "vaccine_2_8"
from = 2026-01-01T00:00:00Z
to = 2026-01-02T00:00:00Z
"#;
        expect_test::expect![[r#"
            op1/pharmacy (storage, profile drug_cool_20)
              temperature at least 0 °C        drug-storage
              temperature at most 20 °C        drug-storage
              humidity at least 35 %RH         drug-humidity
              humidity at most 75 %RH          drug-humidity
              a record every 30m               drug-cadence-storage
              a record every 2m while outside  drug-cadence-storage
              power failure told               power-lost
            op1/room (storage, profile frozen_meat)
              temperature at most -18 °C       meat-frozen
              humidity at least 90 %RH         advisory
              a record every 30m               food-cadence-storage (not verified)
              a record every 2m while outside  not watched
            op1/shed (storage): no profile, so nothing is asked of it
            op1/truck (transport, profile ice_cream, not verified)
              temperature at most -18 °C       food-ice-cream (not verified)
              a record every 10m               food-cadence-transport (not verified)
              a record every 2m while outside  not watched
            op1/truck (transport, goods vaccine_2_8)
              temperature at least 2 °C        vaccine-temperature
              temperature at most 8 °C         vaccine-temperature, vaccine-heat
              a record every 5m                drug-cadence-transport
              a record every 2m while outside  drug-cadence-transport
              power failure told               power-lost
            16 of 18 clauses are watched, 4 units
        "#]]
        .assert_eq(&coverage(fleet, None));
    }

    #[test]
    fn the_limits_of_every_shipped_profile_have_one_rule_each() {
        let shipped = Path::new(env!("CARGO_MANIFEST_DIR")).join("config");
        let judgement = config::load_judgement(&shipped, None).unwrap();
        for profile in judgement.registry.profiles.values() {
            for kind in [UnitKind::Storage, UnitKind::Transport] {
                let name = |text| frostline_core::model::Name::new(text).unwrap();
                let unit = Unit {
                    key: UnitKey { operator: name("op1"), unit: name("u1") },
                    kind,
                    site: None,
                    jurisdiction: None,
                    profile: Some(profile.id.clone()),
                    monitor: Vec::new(),
                    labels: Default::default(),
                };
                let stage = stage(&unit, profile, false, &judgement.registry);
                let judging: Vec<_> = judgement
                    .rules
                    .iter()
                    .filter(|rule| matches!(rule.condition, Condition::Range { limits: LimitSource::Profile, .. }))
                    .filter(|rule| rule.quantity == Kind::Temperature && concerns(rule, &stage, &unit.key))
                    .map(|rule| &*rule.id)
                    .collect();
                assert_eq!(judging.len(), 1, "{} in {}: {judging:?}", profile.id, kind.as_str());
            }
        }
    }

    #[test]
    fn a_rule_watches_only_what_it_would_fire_at() {
        let fleet = r#"
[[unit]]
id = "fridge"
operator = "op1"
kind = "storage"
profile = "vaccine_2_8"

[[sensor]]
id = "t1"
unit = "fridge"
operator = "op1"
"#;
        let rules = |high: &str, sensor: &str, every: &str| {
            format!(
                "[[rule]]\nid = \"warm\"\nkind = \"range\"\nquantity = \"temperature\"\nhigh = {high}\n\
                 where = {{ sensor = \"{sensor}\", loaded = false }}\n\n\
                 [[rule]]\nid = \"loaded\"\nkind = \"range\"\nquantity = \"temperature\"\nlimits = \"profile\"\n\
                 where = {{ loaded = true }}\n\n\
                 [[rule]]\nid = \"often\"\nkind = \"cadence\"\nquantity = \"temperature\"\nwindow = \"1h\"\nevery = \"{every}\"\n"
            )
        };
        let watching = |high, sensor, every| {
            let text = coverage(fleet, Some(&rules(high, sensor, every)));
            ["warm", "loaded", "often"].map(|rule| text.matches(rule).count())
        };
        assert_eq!(watching("8.0", "t*", "2m"), [1, 0, 2]);
        assert_eq!(watching("7.5", "*", "30m"), [1, 0, 1]);
        assert_eq!(watching("8.1", "t*", "31m"), [0, 0, 0]);
        assert_eq!(watching("8.0", "p*", "31m"), [0, 0, 0]);
    }
}
