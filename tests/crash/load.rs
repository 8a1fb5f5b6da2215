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

/// The rules that the fleet is judged by: of one series, and of several of a unit.
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
id = "too-warm-but-for-defrost"
kind = "range"
quantity = "temperature"
severity = "warning"
high = -15.0
for = "4s"
max_gap = "6s"
suspend_while = { quantity = "defrost", is = 1, plus = "5s", at_most = "20s" }

[[rule]]
id = "too-warm-in-all"
kind = "cumulative"
quantity = "temperature"
severity = "warning"
high = -15.0
window = "60s"
budget = "15s"
max_gap = "6s"

[[rule]]
id = "probes-disagree"
kind = "disagreement"
quantity = "temperature"
severity = "notice"
limit = 3.0
for = "5s"
keep_firing_for = "2s"
max_gap = "6s"

[[rule]]
id = "unit-silent"
kind = "silence"
scope = "unit"
quantity = "temperature"
severity = "critical"
for = "2s"
max_gap = "6s"

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
    broker_forgets: bool,
    round: i64,
    /// What each unit has measured without a link and not sent yet.
    stored: BTreeMap<u64, Vec<String>>,
    /// Messages that somebody on the way keeps back, each with the round in which it comes.
    kept_back: Vec<(i64, Message)>,
    /// Every message so far, as published.
    pub(crate) published: Vec<Message>,
    /// What has to be stored.
    pub(crate) expected: Readings,
    /// The accepted readings about in the order of measurement, as a CSV file has them.
    pub(crate) csv: String,
    /// Payloads of which something cannot be used.
    pub(crate) bad: BTreeSet<Vec<u8>>,
}

impl Load {
    /// Where the broker may forget messages, no value is contradicted: the second might come without the first.
    pub(crate) fn new(seed: u64, broker_forgets: bool) -> Self {
        let begin = Timestamp::parse_rfc3339(BEGIN).expect("it is a time");
        Self {
            chance: Chance::new(seed),
            begin_ms: begin.as_millis(),
            broker_forgets,
            round: 0,
            stored: BTreeMap::new(),
            kept_back: Vec::new(),
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
        self.release(self.round);
        self.published[first..].to_vec()
    }

    /// Returns the last messages, of which the very last shows, wherever it is seen, that all before it were; and its time.
    pub(crate) fn last_messages(&mut self) -> (Vec<Message>, Timestamp) {
        self.round += 1;
        let first = self.published.len();
        for unit in 0..UNITS {
            self.upload_backlog(unit, &unit_name(unit));
        }
        self.release(i64::MAX);
        let time_ms = self.time_ms(0);
        let reading = self.reading("marker", "m1", "humidity", time_ms, Some(self.round % 100 * 100));
        self.publish("marker", format!("{{\"ts\":{time_ms},\"readings\":[{reading}]}}"));
        (self.published[first..].to_vec(), Timestamp::from_millis(time_ms))
    }

    /// Publishes what was kept back until this round.
    fn release(&mut self, round: i64) {
        let (due, kept_back) = std::mem::take(&mut self.kept_back).into_iter().partition(|(until, _)| *until <= round);
        self.kept_back = kept_back;
        self.published.extend::<Vec<Message>>(due.into_iter().map(|(_, message): (i64, Message)| message).collect());
    }

    fn report(&mut self, unit: u64) {
        // Each unit is a little out of step with the others, in time and in what happens to it.
        let (name, phase) = (unit_name(unit), self.round + unit as i64 * 17);
        let time_ms = self.time_ms(unit as i64 * 37);
        let readings = self.measure(&name, phase, time_ms);
        if phase % 150 >= 135 {
            // The link is down, and the device stores what it measures; when the link is back it sends the newest first.
            self.stored.entry(unit).or_default().push(format!("{{\"ts\":{time_ms},\"readings\":[{readings}]}}"));
            return;
        }
        // One a round: what the link kept back is missing.
        let seq = self.round;
        let payload = format!("{{\"ts\":{time_ms},\"seq\":{seq},\"readings\":[{readings}]}}");
        if self.chance.one_in(40) {
            let until = self.round + 1 + self.chance.below(15) as i64;
            self.kept_back.push((until, message(&name, payload)));
        } else {
            self.publish(&name, payload);
        }
        if phase % 150 == 3 {
            self.upload_backlog(unit, &name);
        }
    }

    /// Returns what a unit measures at one time.
    fn measure(&mut self, name: &str, phase: i64, time_ms: i64) -> String {
        let noise = self.chance.below(200) as i64 - 100;
        let is_warm = phase % 70 >= 40;
        let celsius_hundredths = if is_warm { -1_200 } else { -1_900 } + noise;
        let value = if phase % 97 == 0 { None } else { Some(celsius_hundredths) };
        let beside_it = if phase % 110 < 12 { 400 } else { noise };
        let readings = [
            self.reading(name, "t1", "temperature", time_ms, value),
            self.reading(name, "t2", "temperature", time_ms, Some(celsius_hundredths + beside_it)),
            self.reading(name, "d1", "door", time_ms, Some(i64::from(phase % 60 >= 45) * 100)),
            self.reading(name, "f1", "defrost", time_ms, Some(i64::from(phase % 130 < 12) * 100)),
            self.reading(name, "h1", "humidity", time_ms, Some(6_000 + noise)),
        ];
        readings.join(",")
    }

    /// Sends what a device has stored at once, in no order.
    fn upload_backlog(&mut self, unit: u64, name: &str) {
        let mut samples = self.stored.remove(&unit).unwrap_or_default();
        for last in (1..samples.len()).rev() {
            samples.swap(last, self.chance.below(last as u64 + 1) as usize);
        }
        if !samples.is_empty() {
            self.publish(name, format!("{{\"samples\":[{}]}}", samples.join(",")));
        }
    }

    /// Sends something that a device should not.
    fn spoil(&mut self) {
        let time_ms = self.time_ms(0);
        match self.chance.below(if self.broker_forgets { 4 } else { 5 }) {
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
        self.published.push(message(unit, payload));
    }

    fn publish_bad(&mut self, unit: &str, payload: String) {
        self.bad.insert(payload.clone().into_bytes());
        self.publish(unit, payload);
    }
}

fn unit_name(unit: u64) -> String {
    format!("u{unit}")
}

fn message(unit: &str, payload: String) -> Message {
    Message { topic: format!("coldchain/v1/op1/{unit}/telemetry"), payload: payload.into_bytes() }
}
