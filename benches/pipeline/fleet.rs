//! What the devices send: two readings in about 180 bytes, from many units, each at its own milliseconds.

use std::fmt::Write;

use frostline_core::model::Timestamp;

/// How often a unit sends, in event time, in milliseconds.
const INTERVAL_MS: i64 = 1_000;

/// Three rules for every thermometer and three for every hygrometer, as wide as they are watched in practice: some
/// readings in a hundred are out of some limit for a while, few are for long enough.
pub(crate) const RULES: &str = r#"
[[rule]]
id = "too-warm"
kind = "range"
quantity = "temperature"
severity = "critical"
high = -17.0
for = "10m"
keep_firing_for = "5m"
hysteresis = 0.5

[[rule]]
id = "far-too-warm"
kind = "range"
quantity = "temperature"
severity = "critical"
high = 0.0

[[rule]]
id = "out-of-band"
kind = "range"
quantity = "temperature"
severity = "warning"
low = -22.9
high = -17.1
for = "30m"

[[rule]]
id = "too-humid"
kind = "range"
quantity = "humidity"
severity = "warning"
high = 74.5
for = "30m"
hysteresis = 2.0

[[rule]]
id = "too-dry"
kind = "range"
quantity = "humidity"
severity = "notice"
low = 45.5
for = "30m"

[[rule]]
id = "wet"
kind = "range"
quantity = "humidity"
severity = "critical"
high = 95.0
for = "1m"
"#;

/// The value that only an alarm has, in °C: `far-too-warm` fires at once.
const ALARM_CELSIUS: f64 = 5.0;

/// The messages of a fleet.
pub(crate) struct Fleet {
    units: usize,
    random: Random,
    /// The message being written, used again for the next.
    pub(crate) topic: String,
    /// The message being written, used again for the next.
    pub(crate) payload: String,
}

impl Fleet {
    /// Returns a fleet of so many units, with two sensors each.
    pub(crate) fn new(units: usize) -> Self {
        Self { units, random: Random::new(42), topic: String::new(), payload: String::new() }
    }

    /// Writes message `number` of a recording that began at `began_at`: the units one after the other, round by round.
    pub(crate) fn write_recorded(&mut self, number: usize, began_at: Timestamp) {
        let round = i64::try_from(number / self.units).expect("the rounds are few");
        self.write(number, began_at.plus_millis(round * INTERVAL_MS), false);
    }

    /// Writes message `number` of a fleet as it measures, at `event_time`.
    pub(crate) fn write(&mut self, number: usize, event_time: Timestamp, is_alarm: bool) {
        let unit = number % self.units;
        let celsius = if is_alarm { ALARM_CELSIUS } else { (self.random.below(600) as i64 - 2_300) as f64 / 100.0 };
        let percent = (self.random.below(300) + 450) as f64 / 10.0;
        self.topic.clear();
        write!(self.topic, "coldchain/v1/dairy-{:02}/room-{unit:05}/telemetry", unit % 40).expect("a String takes all");
        self.payload.clear();
        write!(
            self.payload,
            r#"{{"ts":"{event_time}","seq":{},"readings":[{{"sensor":"t1","kind":"temperature","value":{celsius},"unit":"Cel"}},{{"sensor":"h1","kind":"humidity","value":{percent},"unit":"%RH"}}]}}"#,
            number / self.units,
        )
        .expect("a String takes all");
    }
}

/// Random numbers that depend on the seed alone.
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// Returns a number from 0 to before `end`.
    pub(crate) fn below(&mut self, end: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % end
    }
}

/// Returns when a recording of so many messages begins that ends now.
pub(crate) fn recording_begins_at(messages: usize, units: usize) -> Timestamp {
    let rounds = i64::try_from(messages.div_ceil(units)).expect("the rounds are few");
    now().plus_millis(-rounds * INTERVAL_MS)
}

/// Returns the time of day.
pub(crate) fn now() -> Timestamp {
    use frostline::clock::{Clock, SystemClock};
    SystemClock.now()
}
