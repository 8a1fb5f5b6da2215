//! Topics: the contract's own, and which filter takes which topic.

use crate::model::Name;

/// The filter that takes the telemetry of every unit.
pub const TELEMETRY_FILTER: &str = "coldchain/v1/+/+/telemetry";

/// The filter that takes the status of every unit.
pub const STATUS_FILTER: &str = "coldchain/v1/+/+/status";

/// A topic of the contract on which a unit speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UnitTopic<'a> {
    /// The enterprise responsible; a valid [`Name`].
    pub operator: &'a str,
    /// The unit; a valid [`Name`].
    pub unit: &'a str,
    /// What it speaks about.
    pub channel: Channel,
}

/// What a unit's topic carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Channel {
    /// Readings.
    Telemetry,
    /// Whether the device is online.
    Status,
}

/// Returns what `coldchain/v1/{operator}/{unit}/telemetry` or `…/status` says, if `topic` is one of these.
pub fn parse(topic: &str) -> Option<UnitTopic<'_>> {
    let (operator, rest) = topic.strip_prefix("coldchain/v1/")?.split_once('/')?;
    let (unit, channel) = rest.split_once('/')?;
    let channel = match channel {
        "telemetry" => Channel::Telemetry,
        "status" => Channel::Status,
        _ => return None,
    };
    (Name::is_valid(operator) && Name::is_valid(unit)).then_some(UnitTopic { operator, unit, channel })
}

/// Returns whether `filter` may be subscribed to: wildcards stand alone in their level, and `#` in the last one.
pub fn is_valid_filter(filter: &str) -> bool {
    if filter.is_empty() || filter.len() > 65_535 || filter.contains('\0') {
        return false;
    }
    let filter = match filter.strip_prefix("$share/") {
        None => filter,
        Some(shared) => match shared.split_once('/') {
            Some((group, filter)) if !group.is_empty() && !group.contains(['+', '#']) && !filter.is_empty() => filter,
            _ => return false,
        },
    };
    let mut levels = filter.split('/').peekable();
    while let Some(level) = levels.next() {
        let is_good = match level {
            "#" => levels.peek().is_none(),
            "+" => true,
            _ => !level.contains(['+', '#']),
        };
        if !is_good {
            return false;
        }
    }
    true
}

/// Returns whether a subscription to `filter` takes `topic`, as MQTT defines it.
///
/// A shared subscription takes what its filter takes; a wildcard in the first level takes no topic that begins
/// with `$`.
pub fn matches(filter: &str, topic: &str) -> bool {
    let filter = match filter.strip_prefix("$share/").and_then(|shared| shared.split_once('/')) {
        Some((_group, filter)) => filter,
        None => filter,
    };
    if topic.starts_with('$') && filter.starts_with(['+', '#']) {
        return false;
    }
    let mut topic_levels = topic.split('/');
    for filter_level in filter.split('/') {
        if filter_level == "#" {
            // It takes the level above as well, so it does not matter whether the topic has any more levels.
            return true;
        }
        match topic_levels.next() {
            Some(level) if filter_level == "+" || filter_level == level => {}
            _ => return false,
        }
    }
    topic_levels.next().is_none()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_topics_of_a_unit_name_it() {
        assert_eq!(
            parse("coldchain/v1/op1/u-1.a_B/telemetry"),
            Some(UnitTopic { operator: "op1", unit: "u-1.a_B", channel: Channel::Telemetry })
        );
        assert_eq!(parse("coldchain/v1/op1/u1/status").map(|topic| topic.channel), Some(Channel::Status));
        let too_long = format!("coldchain/v1/op1/{}/telemetry", "u".repeat(65));
        for other in [
            "",
            "coldchain/v1/op1/u1",
            "coldchain/v1/op1/u1/alerts",
            "coldchain/v1/op1/u1/telemetry/",
            "coldchain/v1//u1/telemetry",
            "coldchain/v1/op1//telemetry",
            "coldchain/v1/企业/u1/telemetry",
            "coldchain/v1/op 1/u1/telemetry",
            "coldchain/v2/op1/u1/telemetry",
            "/coldchain/v1/op1/u1/telemetry",
            &too_long,
        ] {
            assert_eq!(parse(other), None, "{other}");
        }
    }

    #[test]
    fn filters_take_what_the_mqtt_standard_says() {
        for (filter, topic, expected) in [
            (TELEMETRY_FILTER, "coldchain/v1/op1/u1/telemetry", true),
            (TELEMETRY_FILTER, "coldchain/v1/op1/u1/status", false),
            (TELEMETRY_FILTER, "coldchain/v1/op1/u1/telemetry/x", false),
            (TELEMETRY_FILTER, "coldchain/v1//u1/telemetry", true),
            ("$share/frostline/coldchain/v1/+/+/telemetry", "coldchain/v1/op1/u1/telemetry", true),
            ("sport/#", "sport", true),
            ("sport/#", "sport/tennis/player1", true),
            ("sport/#", "sports", false),
            ("sport/+", "sport", false),
            ("sport/+", "sport/", true),
            ("+/+", "/finance", true),
            ("/+", "/finance", true),
            ("+", "/finance", false),
            ("#", "a/b/c", true),
            ("#", "$SYS/broker", false),
            ("+/broker", "$SYS/broker", false),
            ("$SYS/#", "$SYS/broker", true),
            ("a/b", "a/b", true),
            ("a/b", "a/B", false),
            ("a/b", "a", false),
        ] {
            assert_eq!(matches(filter, topic), expected, "{filter} on {topic}");
        }
    }

    #[test]
    fn filters_that_a_broker_would_refuse_are_told() {
        for good in ["a", "#", "+", "/", "a/+/b/#", "$share/g/a/#", "a//b"] {
            assert!(is_valid_filter(good), "{good}");
        }
        for bad in ["", "a#", "a/#/b", "a+/b", "$share/g", "$share//a", "$share/g/", "$share/+/a", "a\0"] {
            assert!(!is_valid_filter(bad), "{bad}");
        }
    }
}
