use std::collections::BTreeSet;
use std::fmt::Write;

use crate::equipment::OPERATORS;
use crate::unit::UnitInfo;

/// Writes operators, units and temperature probes as a `fleet.toml`.
///
/// Only the temperature probes are entered: they are what an operator calibrates and is asked about. Everything else
/// that a registered unit sends is taken all the same.
pub(crate) fn registry_toml<'a>(units: impl Iterator<Item = &'a UnitInfo> + Clone) -> String {
    let mut text = String::from("# The simulated fleet.\n");
    let present: BTreeSet<&str> = units.clone().map(|unit| unit.operator).collect();
    for operator in OPERATORS.iter().filter(|operator| present.contains(operator.id)) {
        let (id, name, code) = (operator.id, operator.name, operator.code);
        line(&mut text, format_args!("\n[[operator]]\nid = \"{id}\"\nname = \"{name}\"\ncode = \"{code}\""));
    }
    for unit in units {
        let UnitInfo { operator, unit: id, kind, league, profile, site, sensors } = unit;
        line(
            &mut text,
            format_args!("\n[[unit]]\nid = \"{id}\"\noperator = \"{operator}\"\nkind = \"{}\"", kind.as_str()),
        );
        line(&mut text, format_args!("site = \"{site}\"\njurisdiction = \"{}\"", league.code));
        line(&mut text, format_args!("profile = \"{profile}\"\nmonitor = \"always\""));
        for probe in sensors.iter().filter(|probe| probe.kind == "temperature") {
            let (sensor, placement) = (probe.sensor, probe.placement);
            line(
                &mut text,
                format_args!("\n[[sensor]]\nid = \"{sensor}\"\nunit = \"{id}\"\noperator = \"{operator}\""),
            );
            line(&mut text, format_args!("placement = \"{placement}\""));
        }
    }
    text
}

fn line(text: &mut String, arguments: std::fmt::Arguments<'_>) {
    writeln!(text, "{arguments}").expect("a String takes everything");
}

/// Rules for every line of goods in the fleet, for the mains and for silence.
pub(crate) const RULES: &str = r#"# Rules for the simulated fleet.

[[rule]]
id = "vaccine-temperature"
kind = "range"
quantity = "temperature"
severity = "critical"
limits = "profile"
for = "10m"
keep_firing_for = "5m"
hysteresis = 0.5
where = { category = ["vaccine"] }
message = { en = "vaccine at {value} °C, limit {limit} °C, in {unit} ({sensor}) since {since}", zh = "{unit}（{sensor}）疫苗温度 {value} °C，限值 {limit} °C，自 {since} 起" }

[[rule]]
id = "dairy-temperature"
kind = "range"
quantity = "temperature"
severity = "warning"
limits = "profile"
for = "10m"
keep_firing_for = "5m"
hysteresis = 0.5
where = { category = ["dairy"] }
message = { en = "dairy goods at {value} °C, limit {limit} °C, in {unit} ({sensor}) since {since}", zh = "{unit}（{sensor}）乳品温度 {value} °C，限值 {limit} °C，自 {since} 起" }

[[rule]]
id = "meat-temperature"
kind = "range"
quantity = "temperature"
severity = "warning"
limits = "profile"
for = "10m"
keep_firing_for = "5m"
hysteresis = 0.5
where = { category = ["food"] }
message = { en = "meat at {value} °C, limit {limit} °C, in {unit} ({sensor}) since {since}", zh = "{unit}（{sensor}）肉品温度 {value} °C，限值 {limit} °C，自 {since} 起" }

[[rule]]
id = "produce-temperature"
kind = "range"
quantity = "temperature"
severity = "warning"
limits = "profile"
for = "10m"
keep_firing_for = "5m"
hysteresis = 0.5
where = { category = ["produce"] }
message = { en = "produce at {value} °C, limit {limit} °C, in {unit} ({sensor}) since {since}", zh = "{unit}（{sensor}）果蔬温度 {value} °C，限值 {limit} °C，自 {since} 起" }

[[rule]]
id = "power-lost"
kind = "state"
quantity = "power"
is = 0
severity = "warning"
for = "5m"
keep_firing_for = "2m"
message = { en = "no mains power at {unit} since {since}", zh = "{unit} 自 {since} 起断电" }

[[rule]]
id = "unit-silent"
kind = "silence"
quantity = "temperature"
scope = "unit"
severity = "notice"
max_gap = "5m"
for = "10m"
message = { en = "nothing heard from {unit} since {since}", zh = "{unit} 自 {since} 起无数据" }
"#;
