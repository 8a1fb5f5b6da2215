//! Readings and alerts as line protocol, precision milliseconds.
//!
//! Tags are only what identifies a series, so that a point sent twice overwrites itself.

use std::ops::Range;

use frostline_core::model::{Kind, Timestamp};

/// Points to be sent at once, one line each.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LineBatch {
    text: Vec<u8>,
    /// Where each line ends in `text`, behind its line feed.
    ends: Vec<usize>,
}

/// One transition of an alert that was told.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AlertPoint<'a> {
    /// The enterprise responsible.
    pub operator: &'a str,
    /// The unit.
    pub unit: &'a str,
    /// The sensor; `None` for a rule on a whole unit.
    pub sensor: Option<&'a str>,
    /// The rule's id.
    pub rule: &'a str,
    /// `notice`, `warning` or `critical`.
    pub severity: &'a str,
    /// `firing`, `resolved` or `retracted`.
    pub state: &'a str,
    /// The episode's id.
    pub episode: &'a str,
    /// The episode's revision, from 1.
    pub revision: u32,
    /// The value at the transition, if there was one.
    pub value: Option<f64>,
    /// The limit that was broken, if the rule has one.
    pub limit: Option<f64>,
    /// When the episode started.
    pub started_at: Timestamp,
    /// The transition's own instant.
    pub event_time: Timestamp,
    /// Whether an amendment has taken this point back.
    pub superseded: bool,
    /// Whether a point may stand in its place that was taken back: of this alert, or of one whose end is now its own.
    pub may_replace: bool,
}

impl LineBatch {
    /// Appends a reading; a `value` of `None` says that the probe failed.
    pub fn push_reading(
        &mut self,
        operator: &str,
        unit: &str,
        sensor: &str,
        kind: Kind,
        event_time: Timestamp,
        value: Option<f64>,
    ) {
        self.text.extend_from_slice(kind.as_str().as_bytes());
        self.push_tag(",operator=", operator);
        self.push_tag(",unit=", unit);
        self.push_tag(",sensor=", sensor);
        match value {
            Some(value) => self.push_float(" value=", value),
            None => self.text.extend_from_slice(b" failed=true"),
        }
        self.end_line(event_time);
    }

    /// Appends a told transition of an alert.
    pub fn push_alert(&mut self, point: &AlertPoint<'_>) {
        self.text.extend_from_slice(b"alert");
        self.push_tag(",operator=", point.operator);
        self.push_tag(",unit=", point.unit);
        if let Some(sensor) = point.sensor {
            self.push_tag(",sensor=", sensor);
        }
        self.push_tag(",rule=", point.rule);
        self.push_tag(",severity=", point.severity);
        self.push_tag(",state=", point.state);
        self.push_text(" episode=", point.episode);
        self.push_integer(",revision=", point.revision.into());
        if let Some(value) = point.value {
            self.push_float(",value=", value);
        }
        if let Some(limit) = point.limit {
            self.push_float(",limit=", limit);
        }
        self.push_integer(",started=", point.started_at.as_millis());
        if point.superseded {
            self.text.extend_from_slice(b",superseded=true");
        } else if point.may_replace {
            // Fields of one instant are merged: without this the flag would stay from the point it replaces.
            self.text.extend_from_slice(b",superseded=false");
        }
        self.end_line(point.event_time);
    }

    /// Returns the number of points.
    pub fn len(&self) -> usize {
        self.ends.len()
    }

    /// Returns whether there is no point.
    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    /// Removes every point and keeps the memory.
    pub fn clear(&mut self) {
        self.text.clear();
        self.ends.clear();
    }

    /// Returns the text of all points.
    pub fn as_bytes(&self) -> &[u8] {
        &self.text
    }

    /// Returns the text of some of the points, by their positions.
    pub fn lines(&self, positions: Range<usize>) -> &[u8] {
        let start_of = |position: usize| if position == 0 { 0 } else { self.ends[position - 1] };
        &self.text[start_of(positions.start)..start_of(positions.end)]
    }

    fn push_tag(&mut self, name: &str, value: &str) {
        self.text.extend_from_slice(name.as_bytes());
        if !value.bytes().any(|byte| matches!(byte, b',' | b'=' | b' ' | b'\\')) {
            self.text.extend_from_slice(value.as_bytes());
            return;
        }
        let mut characters = value.chars().peekable();
        while let Some(character) = characters.next() {
            let next = characters.peek();
            match character {
                ',' | '=' | ' ' => self.text.extend_from_slice(&[b'\\', character as u8]),
                // A backslash stands for itself, except where it would escape what follows, and there no escape is
                // read alike by every server: its full-width twin takes its place.
                '\\' if next.is_none_or(|next| matches!(next, ',' | '=' | ' ' | '\\')) => {
                    self.text.extend_from_slice("＼".as_bytes());
                }
                _ => self.text.extend_from_slice(character.encode_utf8(&mut [0; 4]).as_bytes()),
            }
        }
    }

    fn push_text(&mut self, name: &str, value: &str) {
        self.text.extend_from_slice(name.as_bytes());
        self.text.push(b'"');
        for byte in value.bytes() {
            if matches!(byte, b'"' | b'\\') {
                self.text.push(b'\\');
            }
            self.text.push(byte);
        }
        self.text.push(b'"');
    }

    /// Appends a float; a field without the suffix `i` is one, so whole numbers need no decimals.
    fn push_float(&mut self, name: &str, value: f64) {
        self.text.extend_from_slice(name.as_bytes());
        let mut buffer = ryu::Buffer::new();
        let text = buffer.format_finite(value);
        self.text.extend_from_slice(text.strip_suffix(".0").unwrap_or(text).as_bytes());
    }

    fn push_integer(&mut self, name: &str, value: i64) {
        self.text.extend_from_slice(name.as_bytes());
        self.text.extend_from_slice(itoa::Buffer::new().format(value).as_bytes());
        self.text.push(b'i');
    }

    fn end_line(&mut self, event_time: Timestamp) {
        self.text.push(b' ');
        self.text.extend_from_slice(itoa::Buffer::new().format(event_time.as_millis()).as_bytes());
        self.text.push(b'\n');
        self.ends.push(self.text.len());
    }
}

#[cfg(test)]
mod tests {
    use expect_test::expect_file;
    use proptest::prelude::*;

    use super::*;

    const EVENT_TIME: Timestamp = Timestamp::from_millis(1_795_427_999_123);

    fn alert() -> AlertPoint<'static> {
        AlertPoint {
            operator: "op1",
            unit: "u1",
            sensor: Some("t1"),
            rule: "frozen-high",
            severity: "critical",
            state: "firing",
            episode: "0f1e2d3c4b5a6978",
            revision: 1,
            value: Some(-11.2),
            limit: Some(-18.0),
            started_at: EVENT_TIME,
            event_time: Timestamp::from_millis(1_795_428_599_123),
            superseded: false,
            may_replace: false,
        }
    }

    #[test]
    fn lines_are_as_recorded() {
        let mut batch = LineBatch::default();
        for (sensor, kind, value) in [
            ("t1", Kind::Temperature, Some(-18.42)),
            ("h1", Kind::Humidity, Some(61.2)),
            ("t1", Kind::Temperature, None),
            ("d1", Kind::Door, Some(1.0)),
            ("t1", Kind::Temperature, Some(0.0)),
            ("t1", Kind::Temperature, Some(4.000000000000001)),
            ("t1", Kind::Temperature, Some(1e-7)),
            ("g1", Kind::Latitude, Some(40.842585)),
            ("冷库 1, left=a", Kind::Temperature, Some(5.0)),
            ("a\\b", Kind::Temperature, Some(5.0)),
            ("a\\\\b\\ c\\", Kind::Temperature, Some(5.0)),
            ("say \"hi\"", Kind::Temperature, Some(5.0)),
        ] {
            batch.push_reading("op1", "u1", sensor, kind, EVENT_TIME, value);
        }
        batch.push_alert(&alert());
        batch.push_alert(&AlertPoint { sensor: None, value: None, limit: None, ..alert() });
        batch.push_alert(&AlertPoint { revision: 2, superseded: true, ..alert() });
        batch.push_alert(&AlertPoint {
            revision: 2,
            state: "resolved",
            episode: "a\"b\\c",
            may_replace: true,
            ..alert()
        });
        let text = std::str::from_utf8(batch.as_bytes()).unwrap();
        expect_file!["../../tests/payloads/lines.expected"].assert_eq(text);
    }

    #[test]
    fn a_part_of_a_batch_is_whole_lines() {
        let mut batch = LineBatch::default();
        for value in 0..5 {
            batch.push_reading("o", "u", "s", Kind::Door, EVENT_TIME, Some(value.into()));
        }
        let whole = batch.as_bytes().to_vec();
        assert_eq!([batch.lines(0..2), batch.lines(2..2), batch.lines(2..5)].concat(), whole);
        assert_eq!(batch.lines(1..2), b"door,operator=o,unit=u,sensor=s value=1 1795427999123\n");
        batch.clear();
        assert!(batch.is_empty() && batch.as_bytes().is_empty());
    }

    proptest! {
        #[test]
        fn no_sensor_name_breaks_out_of_its_tag_and_no_value_changes(
            sensor in "[^\\p{Cc}]{1,64}", value in -1e6..1e6_f64,
        ) {
            let mut batch = LineBatch::default();
            batch.push_reading("o", "u", &sensor, Kind::Temperature, EVENT_TIME, Some(value));
            let line = std::str::from_utf8(batch.as_bytes()).unwrap().trim_end_matches('\n');
            // What follows the name is known, and so is what comes before it: the rest is the name.
            let rest = line.strip_prefix("temperature,operator=o,unit=u,sensor=").unwrap();
            let (name, fields) = rest.rsplit_once(" value=").unwrap();
            let mut escaped = false;
            for character in name.chars() {
                prop_assert!(escaped || !matches!(character, ',' | '=' | ' '), "{}", line);
                prop_assert!(!(escaped && character == '\\'), "{}", line);
                escaped = character == '\\';
            }
            prop_assert!(!escaped, "{}", line);
            let unescaped = name.replace("\\,", ",").replace("\\=", "=").replace("\\ ", " ");
            prop_assert_eq!(unescaped.replace('＼', "\\"), sensor.replace('＼', "\\"));
            let (written, time) = fields.split_once(' ').unwrap();
            prop_assert_eq!(written.parse::<f64>().unwrap(), value);
            prop_assert_eq!(time, "1795427999123");
        }
    }
}
