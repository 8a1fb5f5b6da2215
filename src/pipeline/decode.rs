//! From a journaled message to readings, the same way for the judging pipeline and for every sink.
//!
//! What comes out depends on the message, its time of arrival and the configuration in force alone. The two things
//! that depend on what came before (is it a conflict? which millisecond does an untimed reading get?) are decided by
//! the pipeline and noted in the ledger.

use frostline_core::codec::topic::{self, Channel};
use frostline_core::codec::{DeadLetterReason, Decoded, Rejection, find_route, status};
use frostline_core::model::{Name, Timestamp, UnitKey};

use crate::config::{ClockSource, Judgement};
use crate::journal::Message;

/// What a message is.
#[derive(Debug)]
pub(crate) enum Meaning<'a> {
    /// Readings of a unit; some may be rejected.
    Telemetry(Telemetry<'a>),
    /// A device's word about itself.
    Status {
        /// The device's unit.
        operator: &'a str,
        /// The device's unit.
        unit: &'a str,
        /// What it says.
        status: status::Status,
    },
    /// Nothing that can be used.
    Dead {
        /// The route's filter; empty where none takes the topic.
        route: &'a str,
        /// Why.
        rejection: Rejection,
    },
}

/// The readings of one message.
#[derive(Debug)]
pub(crate) struct Telemetry<'a> {
    /// The filter of the route that took it.
    pub(crate) route: &'a str,
    /// The enterprise responsible.
    pub(crate) operator: &'a str,
    /// The monitored space.
    pub(crate) unit: &'a str,
    /// Every reading, or why it is rejected.
    pub(crate) decoded: Decoded<'a>,
    /// When the message came in; of a redriven one, when it first did.
    pub(crate) arrived_at: Timestamp,
    /// The newest time that the message itself says, of readings that are rejected for it too.
    pub(crate) newest_event_time: Option<Timestamp>,
    /// Whether readings were left out because a retained message does not say when they were taken.
    pub(crate) retained_without_time: bool,
}

/// Reads a message that the journal took at `received_at`.
pub(crate) fn decode<'a>(judgement: &'a Judgement, message: &Message<'a>, received_at: Timestamp) -> Meaning<'a> {
    let Ok(topic) = std::str::from_utf8(message.topic) else {
        let rejection = Rejection::new(DeadLetterReason::Topic, "the topic is not UTF-8");
        return Meaning::Dead { route: "", rejection };
    };
    let parsed = topic::parse(topic);
    if let Some(topic::UnitTopic { operator, unit, channel: Channel::Status }) = parsed {
        return match status::decode(message.payload) {
            Ok(status) => Meaning::Status { operator, unit, status },
            Err(rejection) => Meaning::Dead { route: topic::STATUS_FILTER, rejection },
        };
    }
    let Some(route) = find_route(&judgement.routes, topic).map(|index| &judgement.routes[index]) else {
        let rejection = Rejection::new(DeadLetterReason::Topic, "no route takes this topic");
        return Meaning::Dead { route: "", rejection };
    };
    let Some(topic::UnitTopic { operator, unit, .. }) = parsed else {
        let detail = "the topic names no operator and unit: coldchain/v1/{operator}/{unit}/telemetry is expected, \
                      each of 1 to 64 of the characters A-Z a-z 0-9 . _ -";
        return Meaning::Dead { route: &route.filter, rejection: Rejection::new(DeadLetterReason::Topic, detail) };
    };
    if let Some(oversize) = &message.oversize {
        let detail = format!("the payload has {} bytes; 4 MiB is the most that is taken", oversize.length);
        let rejection = Rejection::new(DeadLetterReason::Oversize, detail);
        return Meaning::Dead { route: &route.filter, rejection };
    }
    let mut decoded = Decoded::default();
    if let Err(rejection) = route.codec.decode(message.payload, &mut decoded) {
        return Meaning::Dead { route: &route.filter, rejection };
    }
    let arrived_at = message.original_received_at.unwrap_or(received_at);
    let mut retained_without_time = false;
    if message.retained {
        let before = decoded.items.len();
        decoded.items.retain(|item| !matches!(item, Ok(reading) if reading.event_time.is_none()));
        retained_without_time = decoded.items.len() < before;
    }
    let newest_event_time = decoded.items.iter().flatten().filter_map(|reading| reading.event_time).max();
    if judgement.ingest.refuse_unknown_units && !is_registered(judgement, operator, unit) {
        reject(&mut decoded, |_| {
            Some(Rejection::new(DeadLetterReason::Unregistered, format!("unit {operator}/{unit} is not in fleet.toml")))
        });
    } else if judgement.clock == ClockSource::System {
        let (newest, oldest) = (
            arrived_at.plus_millis(judgement.ingest.max_clock_skew_ms),
            arrived_at.plus_millis(-judgement.ingest.max_age_ms),
        );
        reject(&mut decoded, |event_time| match event_time {
            Some(time) if time > newest => Some(Rejection::new(
                DeadLetterReason::Future,
                format!("{time} is more than ingest.max_clock_skew ahead of its arrival at {arrived_at}"),
            )),
            Some(time) if time < oldest => Some(Rejection::new(
                DeadLetterReason::Past,
                format!("{time} is more than ingest.max_age before its arrival at {arrived_at}"),
            )),
            _ => None,
        });
    }
    Meaning::Telemetry(Telemetry {
        route: &route.filter,
        operator,
        unit,
        decoded,
        arrived_at,
        newest_event_time,
        retained_without_time,
    })
}

fn reject(decoded: &mut Decoded<'_>, why: impl Fn(Option<Timestamp>) -> Option<Rejection>) {
    for item in &mut decoded.items {
        if let Ok(reading) = item
            && let Some(rejection) = why(reading.event_time)
        {
            *item = Err(rejection);
        }
    }
}

pub(crate) fn is_registered(judgement: &Judgement, operator: &str, unit: &str) -> bool {
    match (Name::new(operator), Name::new(unit)) {
        (Ok(operator), Ok(unit)) => judgement.registry.units.contains_key(&UnitKey { operator, unit }),
        _ => false,
    }
}
