//! What a small fleet sends: mostly good, with everything that devices get wrong in between, and what has to be stored
//! of it.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;

use frostline_core::model::Timestamp;

use crate::publisher::Message;

/// When the fleet's time begins; every round is a second.
const BEGIN: &str = "2024-06-01T00:00:00Z";
/// How many units report in every round.
const UNITS: u64 = 8;

/// The rules that the fleet is judged by; sensors whose readings come late have none.
pub(crate) const RULES: &str = r#"
[[rule]]
id = "too-warm"
kind = "range"
quantity = "temperature"
severity = "critical"
high = -15.0
hysteresis = 0.5
for = "10s"
keep_firing_for = "3s"
max_gap = "6s"
where = { sensor = "t*" }

[[rule]]
id = "probe-silent"
kind = "silence"
quantity = "temperature"
severity = "warning"
for = "4s"
max_gap = "6s"
where = { sensor = "t*" }

[[rule]]
id = "door-open"
kind = "state"
quantity = "door"
is = 1
severity = "notice"
for = "8s"
max_gap = "6s"
where = { sensor = "d*" }
"#;

/// Which reading: of which series, and when.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Point {
    pub(crate) unit: String,
    pub(crate) sensor: String,
    pub(crate) kind: String,
    pub(crate) time_ms: i64,
}

/// Readings by what identifies them; the values in millionths, none where the probe failed.
pub(crate) type Readings = BTreeMap<Point, Option<i64>>;

/// Returns a value as [`Readings`] have it.
pub(crate) fn millionths(value: f64) -> i64 {
    (value * 1e6).round() as i64
}

/// Random numbers that depend on the seed alone (SplitMix64).
#[derive(Debug, Clone)]
pub(crate) struct Chance(u64);

impl Chance {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// Returns a number from 0 to before `end`.
    pub(crate) fn below(&mut self, end: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        (mixed ^ (mixed >> 31)) % end
    }

    fn one_in(&mut self, count: u64) -> bool {
        self.below(count) == 0
    }
}

/// Makes the messages, round by round, and keeps the books.
pub(crate) struct Load {
    chance: Chance,
    begin_ms: i64,
    round: i64,
    /// Every message so far, as published.
    pub(crate) published: Vec<Message>,
    /// What has to be stored.
    pub(crate) expected: Readings,
    /// The accepted readings in the order of publication, as a CSV file has them.
    pub(crate) csv: String,
    /// Payloads of which something cannot be used.
    pub(crate) bad: BTreeSet<Vec<u8>>,
}

impl Load {
    pub(crate) fn new(seed: u64) -> Self {
        let begin = Timestamp::parse_rfc3339(BEGIN).expect("it is a time");
        Self {
            chance: Chance::new(seed),
            begin_ms: begin.as_millis(),
            round: 0,
            published: Vec::new(),
            expected: Readings::new(),
            csv: "event_time,operator,unit,sensor,kind,value\n".to_owned(),
            bad: BTreeSet::new(),
        }
    }

    /// Returns the messages of the next second of the fleet's life.
    pub(crate) fn next_round(&mut self) -> Vec<Message> {
        self.round += 1;
        let first = self.published.len();
        for unit in 0..UNITS {
            self.report(unit);
        }
        if self.chance.one_in(4) {
            self.spoil();
        }
        self.published[first..].to_vec()
    }

    /// Returns a last message that shows, wherever it is seen, that all before it were; and its time.
    pub(crate) fn marker(&mut self) -> (Message, Timestamp) {
        self.round += 1;
        let time_ms = self.time_ms(0);
        let reading = self.reading("marker", "m1", "humidity", time_ms, Some(self.round % 100 * 100));
        self.publish("marker", format!("{{\"ts\":{time_ms},\"readings\":[{reading}]}}"));
        (self.published.last().expect("it was just made").clone(), Timestamp::from_millis(time_ms))
    }

    fn report(&mut self, unit: u64) {
        // Each unit is a little out of step with the others, in time and in what happens to it.
        let (name, phase) = (format!("u{unit}"), self.round + unit as i64 * 17);
        let time_ms = self.time_ms(unit as i64 * 37);
        if phase % 150 >= 135 {
            // The link is down: what was measured meanwhile comes later or never.
            if phase % 150 == 149 {
                self.upload_backlog(&name, time_ms);
            }
            return;
        }
        let noise = self.chance.below(200) as i64 - 100;
        let is_warm = phase % 70 >= 40;
        let celsius_hundredths = if is_warm { -1_200 } else { -1_900 } + noise;
        let value = if phase % 97 == 0 { None } else { Some(celsius_hundredths) };
        let door = i64::from(phase % 60 >= 45) * 100;
        let readings = [
            self.reading(&name, "t1", "temperature", time_ms, value),
            self.reading(&name, "d1", "door", time_ms, Some(door)),
            self.reading(&name, "h1", "humidity", time_ms, Some(6_000 + noise)),
        ];
        // One a round: what the link kept back is missing.
        let seq = self.round;
        self.publish(&name, format!("{{\"ts\":{time_ms},\"seq\":{seq},\"readings\":[{}]}}", readings.join(",")));
    }

    /// Sends ten older readings of a sensor without rules at once, in no order.
    fn upload_backlog(&mut self, unit: &str, time_ms: i64) {
        let mut samples: Vec<String> = (1..=10)
            .map(|step| {
                let time_ms = time_ms - step * 1_000;
                let reading = self.reading(unit, "b1", "temperature", time_ms, Some(-2_000 + step));
                format!("{{\"ts\":{time_ms},\"readings\":[{reading}]}}")
            })
            .collect();
        let shift = self.chance.below(10) as usize;
        samples.rotate_left(shift);
        self.publish(unit, format!("{{\"samples\":[{}]}}", samples.join(",")));
    }

    /// Sends something that a device should not.
    fn spoil(&mut self) {
        let time_ms = self.time_ms(0);
        match self.chance.below(5) {
            0 | 1 => {
                // The same again, as after a confirmation that got lost; of the last few, so that it may fall into a crash.
                let recent = self.published.len().min(60);
                let message =
                    self.published[self.published.len() - 1 - self.chance.below(recent as u64) as usize].clone();
                self.published.push(message);
            }
            2 => self.publish_bad("u0", format!("{{\"ts\":{time_ms},\"readings\":[")),
            3 => {
                let good = self.reading("u1", "x1", "humidity", time_ms, Some(5_000));
                let bad = "{\"sensor\":\"x2\",\"kind\":\"humidity\",\"value\":170}";
                self.publish_bad("u1", format!("{{\"ts\":{time_ms},\"readings\":[{good},{bad}]}}"));
            }
            _ => {
                // Another value for a series and millisecond that have one.
                let first = self.reading("u2", "x3", "humidity", time_ms, Some(4_000));
                self.publish("u2", format!("{{\"ts\":{time_ms},\"readings\":[{first}]}}"));
                let second = "{\"sensor\":\"x3\",\"kind\":\"humidity\",\"value\":41.0}";
                self.publish_bad("u2", format!("{{\"ts\":{time_ms},\"readings\":[{second}]}}"));
            }
        }
    }

    /// Books a reading that is to be accepted, and returns it as JSON; the value is given in hundredths.
    fn reading(&mut self, unit: &str, sensor: &str, kind: &str, time_ms: i64, hundredths: Option<i64>) -> String {
        let value = hundredths.map(|hundredths| hundredths as f64 / 100.0);
        let point = Point { unit: unit.to_owned(), sensor: sensor.to_owned(), kind: kind.to_owned(), time_ms };
        if self.expected.insert(point, value.map(millionths)).is_none() {
            let text = value.map(|value| value.to_string()).unwrap_or_default();
            writeln!(self.csv, "{time_ms},op1,{unit},{sensor},{kind},{text}").expect("a String takes everything");
        }
        let value = value.map_or_else(|| "null".to_owned(), |value| value.to_string());
        format!("{{\"sensor\":\"{sensor}\",\"kind\":\"{kind}\",\"value\":{value}}}")
    }

    fn time_ms(&self, offset_ms: i64) -> i64 {
        self.begin_ms + self.round * 1_000 + offset_ms
    }

    fn publish(&mut self, unit: &str, payload: String) {
        let topic = format!("coldchain/v1/op1/{unit}/telemetry");
        self.published.push(Message { topic, payload: payload.into_bytes() });
    }

    fn publish_bad(&mut self, unit: &str, payload: String) {
        self.bad.insert(payload.clone().into_bytes());
        self.publish(unit, payload);
    }
}
