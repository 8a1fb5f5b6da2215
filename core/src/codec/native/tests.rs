use expect_test::expect_file;
use proptest::prelude::*;

use super::super::{Codec, DeadLetterReason};
use super::*;

fn decode(payload: &str) -> Result<Decoded<'_>, Rejection> {
    let mut decoded = Decoded::default();
    Native::default().decode(payload.as_bytes(), &mut decoded).map(|()| decoded)
}

/// Returns the outcome in one word: `ok`, the reason of the only reading, or `message:` and the message's reason.
fn outcome(payload: &str) -> String {
    match decode(payload) {
        Err(rejection) => format!("message:{}", rejection.reason),
        Ok(decoded) => decoded
            .items
            .iter()
            .map(|item| item.as_ref().map_or_else(|rejection| rejection.reason.as_str(), |_| "ok"))
            .collect::<Vec<_>>()
            .join(" "),
    }
}

fn one_value(kind: &str, value: &str, unit: &str) -> String {
    let payload = format!(r#"{{"ts":1,"readings":[{{"sensor":"t1","kind":"{kind}","value":{value}{unit}}}]}}"#);
    match decode(&payload).expect("the message is good").items.remove(0) {
        Ok(reading) => reading.value.map_or("failed".to_owned(), |value| value.to_string()),
        Err(rejection) => rejection.reason.to_string(),
    }
}

/// Writes what a payload decodes to, one line per reading.
fn describe(payload: &[u8]) -> String {
    let mut decoded = Decoded::default();
    if let Err(rejection) = Native::default().decode(payload, &mut decoded) {
        return format!("rejected as {rejection}\n");
    }
    let mut text = format!("seq {:?}, invalid {}\n", decoded.seq, decoded.invalid_seq);
    for item in &decoded.items {
        text += &match item {
            Ok(reading) => format!(
                "{:?} {} {} {}\n",
                reading.sensor,
                reading.kind,
                reading.event_time.map_or("without time".to_owned(), |time| time.to_string()),
                reading.value.map_or("failed".to_owned(), |value| value.to_string()),
            ),
            Err(rejection) => format!("rejected as {rejection}\n"),
        };
    }
    text
}

#[test]
fn golden_payloads_decode_as_recorded() {
    // Tests run in the root of their package, wherever they were compiled.
    let folder = std::path::absolute("../tests/payloads").unwrap();
    let mut count = 0;
    for entry in std::fs::read_dir(&folder).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|extension| extension == "json") {
            let payload = std::fs::read(&path).unwrap();
            expect_file![path.with_extension("expected")].assert_eq(&describe(&payload));
            count += 1;
        }
    }
    assert!(count >= 8, "only {count} payloads found in {}", folder.display());
}

#[test]
fn the_innermost_time_wins() {
    let decoded = decode(
        r#"{"samples":[{"ts":2,"readings":[{"sensor":"a","kind":"temperature","value":1},
                                           {"sensor":"b","kind":"temperature","value":1,"ts":3}]},
                       {"readings":[{"sensor":"c","kind":"temperature","value":1}]}],
            "readings":[{"sensor":"d","kind":"temperature","value":1,"ts":null}],"ts":1}"#,
    )
    .unwrap();
    let times: Vec<_> = decoded
        .items
        .iter()
        .map(|item| item.as_ref().map(|reading| (&*reading.sensor, reading.event_time.unwrap().as_millis())).unwrap())
        .collect();
    assert_eq!(times, [("d", 1), ("a", 2), ("b", 3), ("c", 1)]);
}

#[test]
fn a_malformed_time_takes_only_the_readings_that_depend_on_it() {
    let bad = r#"{"ts":"2026-11-23T10:00:00","readings":[{"sensor":"a","kind":"door","value":1},
                 {"sensor":"b","kind":"door","value":1,"ts":"2026-11-23T10:00:00Z"}]}"#;
    assert_eq!(outcome(bad), "schema ok");
    let bad_sample = r#"{"ts":5,"samples":[{"ts":1.5,"readings":[{"sensor":"a","kind":"door","value":1},
                 {"sensor":"b","kind":"door","value":1,"ts":-1}]},
                 {"readings":[{"sensor":"c","kind":"door","value":1}]}]}"#;
    assert_eq!(outcome(bad_sample), "schema ok ok");
    for ts in ["true", "{}", "\"\"", "\"1795427999123\"", "1795427999.5", "1e12", "99999999999999999999"] {
        let payload = format!(r#"{{"ts":{ts},"readings":[{{"sensor":"a","kind":"door","value":1}}]}}"#);
        assert_eq!(outcome(&payload), "schema", "{ts}");
    }
}

#[test]
fn values_are_brought_to_the_unit_of_their_kind() {
    for (kind, value, unit, expected) in [
        ("temperature", "-18.42", "", "-18.42"),
        ("temperature", "4", r#","unit":"Cel""#, "4"),
        ("temperature", "277.15", r#","unit":"K""#, "4"),
        ("temperature", "254.73", r#","unit":"K""#, "-18.42"),
        ("temperature", "173.15", r#","unit":"K""#, "-100"),
        ("temperature", "0", r#","unit":"K""#, "range"),
        ("temperature", "39.2", r#","unit":"[degF]""#, "4"),
        ("temperature", "0", r#","unit":"[degF]""#, "-17.777777778"),
        ("setpoint", "-0.4", r#","unit":"[degF]""#, "-18"),
        ("temperature", "4", r#","unit":"%RH""#, "schema"),
        ("temperature", "4", r#","unit":"C""#, "schema"),
        ("temperature", "4", r#","unit":7"#, "schema"),
        ("temperature", "4", r#","unit":null"#, "4"),
        ("temperature", "-0.0", "", "0"),
        ("humidity", "61.2", r#","unit":"%RH""#, "61.2"),
        ("humidity", "61.2", r#","unit":"%""#, "61.2"),
        ("humidity", "61.2", r#","unit":"Cel""#, "schema"),
        ("battery", "99", r#","unit":"%""#, "99"),
        ("battery", "99", r#","unit":"%RH""#, "schema"),
        ("door", "1", r#","unit":"Cel""#, "schema"),
        ("latitude", "40.84", r#","unit":"deg""#, "40.84"),
        ("longitude", "111.75", "", "111.75"),
    ] {
        assert_eq!(one_value(kind, value, unit), expected, "{kind} {value}{unit}");
    }
}

#[test]
fn impossible_values_are_out_of_range_and_other_types_out_of_shape() {
    for (kind, value, expected) in [
        ("temperature", "-100", "-100"),
        ("temperature", "200", "200"),
        ("temperature", "-100.0001", "range"),
        ("temperature", "200.0001", "range"),
        ("humidity", "0", "0"),
        ("humidity", "105", "105"),
        ("humidity", "-0.1", "range"),
        ("humidity", "105.1", "range"),
        ("battery", "100.5", "range"),
        ("door", "2", "range"),
        ("door", "0.5", "range"),
        ("door", "true", "1"),
        ("power", "false", "0"),
        ("compressor", "true", "1"),
        ("defrost", "false", "0"),
        ("temperature", "true", "schema"),
        ("battery", "false", "schema"),
        ("latitude", "true", "schema"),
        ("temperature", "null", "failed"),
        ("door", "null", "failed"),
        ("temperature", "\"warm\"", "schema"),
        ("temperature", "\"4\"", "schema"),
        ("temperature", "[4]", "schema"),
        ("temperature", "{}", "schema"),
        ("temperature", "1e400", "range"),
        ("latitude", "-1e400", "range"),
        ("temperature", "123456789012345678901234567890", "range"),
        ("temperature", "1e-400", "0"),
        ("pressure", "4", "schema"),
        ("Temperature", "4", "schema"),
    ] {
        assert_eq!(one_value(kind, value, ""), expected, "{kind} {value}");
    }
}

#[test]
fn a_bad_reading_falls_alone() {
    let good = r#"{"sensor":"t1","kind":"temperature","value":4}"#;
    for (bad, reason) in [
        ("7", "schema"),
        ("null", "schema"),
        ("[]", "schema"),
        (r#"["t1","temperature",4,null,1]"#, "schema"),
        (r#""t1""#, "schema"),
        ("1e400", "schema"),
        ("{}", "schema"),
        (r#"{"kind":"temperature","value":4}"#, "schema"),
        (r#"{"sensor":"t1","value":4}"#, "schema"),
        (r#"{"sensor":"t1","kind":"temperature"}"#, "schema"),
        (r#"{"sensor":7,"kind":"temperature","value":4}"#, "schema"),
        (r#"{"sensor":"","kind":"temperature","value":4}"#, "schema"),
        (r#"{"sensor":"t\n1","kind":"temperature","value":4}"#, "schema"),
        (r#"{"sensor":"\ud800","kind":"temperature","value":4}"#, "schema"),
        (r#"{"sensor":"t1","kind":7,"value":4}"#, "schema"),
        (r#"{"sensor":"t1","kind":"temperature","value":4,"value":5}"#, "schema"),
        (r#"{"sensor":"t1","kind":"temperature","value":"warm"}"#, "schema"),
        (r#"{"sensor":"t1","kind":"temperature","value":1e400}"#, "range"),
    ] {
        assert_eq!(outcome(&format!(r#"{{"ts":1,"readings":[{good},{bad},{good}]}}"#)), format!("ok {reason} ok"));
        let samples = format!(r#"{{"samples":[{{"ts":1,"readings":[{good},{bad}]}},{{"readings":[{good}]}}]}}"#);
        assert_eq!(outcome(&samples), format!("ok {reason} ok"));
    }
    for bad in ["7", "{}", "[]", r#"{"ts":1,"ts":2,"readings":[]}"#, r#"{"readings":null}"#] {
        let samples = format!(r#"{{"samples":[{{"ts":1,"readings":[{good}]}},{bad}],"readings":[{good}]}}"#);
        assert_eq!(outcome(&samples), "ok ok schema", "{bad}");
    }
    assert_eq!(outcome(&format!(r#"{{"readings":[{good}],"samples":7}}"#)), "ok schema");
    assert_eq!(outcome(&format!(r#"{{"readings":"x","samples":[{{"readings":[{good}]}}]}}"#)), "schema ok");
}

#[test]
fn a_message_without_the_shape_of_one_is_rejected_as_a_whole() {
    for (payload, expected) in [
        ("", "message:malformed"),
        ("{", "message:malformed"),
        ("hello", "message:malformed"),
        (r#"{"readings":[]} x"#, "message:malformed"),
        (r#"{"readings":[{"sensor":"t1","kind":"temperature","value":NaN}]}"#, "message:malformed"),
        (r#"{"readings":[{"sensor":"t1","kind":"temperature","value":4}"#, "message:malformed"),
        ("\u{feff}{\"readings\":[]}", "message:malformed"),
        ("null", "message:schema"),
        ("7", "message:schema"),
        ("[]", "message:schema"),
        (r#"[1,2,[{"sensor":"t1","kind":"temperature","value":4}],null]"#, "message:schema"),
        ("{}", "message:schema"),
        (r#"{"ts":1,"seq":2}"#, "message:schema"),
        (r#"{"readings":null,"samples":null}"#, "message:schema"),
        (r#"{"readings":[],"readings":[]}"#, "message:schema"),
        (r#"{"readings":[]}"#, ""),
        (r#"{"readings":{}}"#, "schema"),
    ] {
        assert_eq!(outcome(payload), expected, "{payload}");
    }
    let mut decoded = Decoded::default();
    let not_utf8 = Native::default().decode(b"{\"readings\":[\"\xff\"]}", &mut decoded);
    assert_eq!(not_utf8.map_err(|rejection| rejection.reason), Err(DeadLetterReason::Malformed));
}

#[test]
fn a_rejected_message_leaves_nothing_of_itself_or_of_the_one_before() {
    let mut decoded = Decoded::default();
    let native = Native::default();
    let good = br#"{"seq":7,"readings":[{"sensor":"t1","kind":"temperature","value":4}]}"#;
    native.decode(good, &mut decoded).unwrap();
    assert_eq!((decoded.seq, decoded.items.len()), (Some(7), 1));
    native.decode(br#"{"seq":8,"samples":[{"readings":["#, &mut decoded).unwrap_err();
    assert_eq!(decoded, Decoded::default());
}

#[test]
fn more_than_ten_thousand_readings_are_too_many() {
    let reading = r#"{"sensor":"t1","kind":"temperature","value":4}"#;
    let list = |count: usize| vec![reading; count].join(",");
    assert_eq!(decode(&format!(r#"{{"readings":[{}]}}"#, list(10_000))).unwrap().items.len(), 10_000);
    for payload in [
        format!(r#"{{"readings":[{}]}}"#, list(10_001)),
        format!(r#"{{"readings":[{},7]}}"#, list(10_000)),
        format!(r#"{{"readings":[{}],"samples":[{{"readings":[{reading}]}}]}}"#, list(10_000)),
        format!(r#"{{"samples":[{}]}}"#, vec![r#"{"readings":[]}"#; 10_001].join(",")),
        format!(r#"{{"samples":[7,{}]}}"#, vec![r#"{"readings":[]}"#; 10_000].join(",")),
        format!(r#"{{"readings":[],"padding":"{}"}}"#, "x".repeat(4 << 20)),
    ] {
        assert_eq!(outcome(&payload), "message:oversize");
    }
}

#[test]
fn deep_nesting_does_not_overflow_the_stack() {
    let deep = format!("{}{}", "[".repeat(1 << 20), "]".repeat(1 << 20));
    let good = r#"{"sensor":"t1","kind":"temperature","value":4}"#;
    assert_eq!(outcome(&deep), "message:schema");
    assert_eq!(outcome(&format!(r#"{{"readings":[{good}],"extra":{deep}}}"#)), "ok");
    assert_eq!(outcome(&format!(r#"{{"readings":[{good},{deep}]}}"#)), "ok schema");
    assert_eq!(
        outcome(&format!(r#"{{"readings":[{good},{{"sensor":"t1","kind":"temperature","value":{deep}}}]}}"#)),
        "ok schema"
    );
}

#[test]
fn an_unusable_seq_is_told_and_loses_nothing() {
    for (seq, expected, invalid) in [
        ("42", Some(42), false),
        ("0", Some(0), false),
        ("18446744073709551615", Some(u64::MAX), false),
        ("null", None, false),
        ("-1", None, true),
        ("1.0", None, true),
        ("1e3", None, true),
        ("18446744073709551616", None, true),
        ("\"42\"", None, true),
        ("[]", None, true),
    ] {
        let payload = format!(r#"{{"seq":{seq},"readings":[{{"sensor":"t1","kind":"door","value":1}}]}}"#);
        let decoded = decode(&payload).unwrap();
        assert_eq!((decoded.seq, decoded.invalid_seq, decoded.items.len()), (expected, invalid, 1), "{seq}");
        assert!(decoded.items[0].is_ok());
    }
}

#[test]
fn a_sensor_is_any_text_of_up_to_64_characters() {
    for (sensor, is_good) in [
        ("t 1,=\\\\\\\"", true),
        ("\\u51b7\\u5e93", true),
        ("冷库", true),
        (&*"冷".repeat(64), true),
        (&*"冷".repeat(65), false),
        ("\\u0007", false),
        ("\u{85}", false),
    ] {
        let payload = format!(r#"{{"readings":[{{"sensor":"{sensor}","kind":"door","value":1}}]}}"#);
        assert_eq!(outcome(&payload) == "ok", is_good, "{sensor}");
    }
}

#[test]
fn a_sentinel_is_a_failed_probe_and_only_among_temperatures() {
    let codec = Codec::Native(Native { sentinels: [85.0, -127.0].into() });
    let payload = br#"{"readings":[{"sensor":"a","kind":"temperature","value":85},
        {"sensor":"b","kind":"temperature","value":-127.0},{"sensor":"c","kind":"humidity","value":85},
        {"sensor":"d","kind":"temperature","value":84.9}]}"#;
    let mut decoded = Decoded::default();
    codec.decode(payload, &mut decoded).unwrap();
    let found: Vec<_> =
        decoded.items.into_iter().map(|item| item.map(|reading| (reading.value, reading.quality)).unwrap()).collect();
    assert_eq!(
        found,
        [
            (None, Quality::SENTINEL),
            (None, Quality::SENTINEL),
            (Some(85.0), Quality::GOOD),
            (Some(84.9), Quality::GOOD)
        ]
    );
}

#[test]
fn a_message_has_identity_by_its_number_or_its_times() {
    for (payload, expected) in [
        (r#"{"readings":[{"sensor":"a","kind":"door","value":1}]}"#, false),
        (r#"{"seq":1,"readings":[{"sensor":"a","kind":"door","value":1}]}"#, true),
        (r#"{"seq":1,"readings":[7]}"#, true),
        (r#"{"seq":-1,"readings":[{"sensor":"a","kind":"door","value":1}]}"#, false),
        (r#"{"ts":1,"readings":[{"sensor":"a","kind":"door","value":1}]}"#, true),
        (r#"{"ts":"x","readings":[{"sensor":"a","kind":"door","value":1}]}"#, false),
        (r#"{"readings":[{"sensor":"a","kind":"door","value":1,"ts":1}]}"#, true),
        (
            r#"{"readings":[{"sensor":"a","kind":"door","value":1,"ts":1},{"sensor":"b","kind":"door","value":1}]}"#,
            false,
        ),
        (r#"{"samples":[{"ts":1,"readings":[{"sensor":"a","kind":"door","value":1}]}]}"#, true),
        (r#"{"readings":[]}"#, false),
        ("[", false),
    ] {
        assert_eq!(has_identity(payload.as_bytes()), expected, "{payload}");
    }
}

fn any_json() -> impl Strategy<Value = serde_json::Value> {
    use serde_json::Value;
    let key = prop_oneof![
        Just("ts".to_owned()),
        Just("seq".to_owned()),
        Just("readings".to_owned()),
        Just("samples".to_owned()),
        Just("sensor".to_owned()),
        Just("kind".to_owned()),
        Just("value".to_owned()),
        Just("unit".to_owned()),
        ".{0,3}",
    ];
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        Just(Value::from("temperature")),
        Just(Value::from("K")),
        Just(Value::from("2026-11-23T10:00:00Z")),
        ".{0,8}".prop_map(Value::from),
    ];
    leaf.prop_recursive(5, 64, 8, move |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..6).prop_map(Value::from),
            prop::collection::vec((key.clone(), inner), 0..6)
                .prop_map(|pairs| Value::Object(pairs.into_iter().collect())),
        ]
    })
}

type AnyReading = (String, usize, Option<f64>, Option<i64>);

fn any_reading() -> impl Strategy<Value = AnyReading> {
    // Temperature, humidity and door, each with a value that is possible for it.
    ("[^\\p{Cc}]{1,64}", 0..3_usize, prop::option::of(0.0..=100.0_f64), prop::option::of(any::<i64>())).prop_map(
        |(sensor, kind, value, ts)| {
            (sensor, kind, if kind == 2 { value.map(|value| (value > 50.0).into()) } else { value }, ts)
        },
    )
}

fn encode(readings: &[AnyReading]) -> Vec<serde_json::Value> {
    readings
        .iter()
        .map(|(sensor, kind, value, ts)| {
            let mut json = serde_json::json!({"sensor": sensor, "kind": Kind::ALL[*kind].as_str(), "value": value});
            if let Some(ts) = ts {
                json["ts"] = (*ts).into();
            }
            json
        })
        .collect()
}

proptest! {
    #[test]
    fn no_bytes_make_the_codec_panic(payload in prop::collection::vec(any::<u8>(), 0..256)) {
        let mut decoded = Decoded::default();
        if Native::default().decode(&payload, &mut decoded).is_err() {
            prop_assert!(decoded.items.is_empty());
        }
        has_identity(&payload);
    }

    #[test]
    fn no_json_makes_the_codec_panic_or_gives_an_impossible_reading(
        json in any_json(),
        cut in any::<prop::sample::Index>(),
    ) {
        let payload = json.to_string().into_bytes();
        for payload in [&payload[..], &payload[..cut.index(payload.len())]] {
            let mut decoded = Decoded::default();
            if Native::default().decode(payload, &mut decoded).is_ok() {
                for reading in decoded.items.iter().flatten() {
                    prop_assert!(reading.value.is_none_or(|value| reading.kind.is_possible(value)));
                    prop_assert!(!reading.sensor.is_empty());
                }
            }
            has_identity(payload);
        }
    }

    #[test]
    fn what_is_encoded_decodes_to_itself(
        readings in prop::collection::vec(any_reading(), 0..8),
        backfill in prop::collection::vec((any::<i64>(), prop::collection::vec(any_reading(), 0..4)), 0..3),
        seq in prop::option::of(any::<u64>()),
        ts in prop::option::of(any::<i64>()),
        spoil in any::<bool>(),
    ) {
        let samples: Vec<_> =
            backfill.iter().map(|(ts, list)| serde_json::json!({"ts": ts, "readings": encode(list)})).collect();
        let mut list = encode(&readings);
        if spoil {
            // One element that is no reading sends the whole message down the other path, to the same end.
            list.push(7.into());
        }
        let payload = serde_json::json!({"ts": ts, "seq": seq, "readings": list, "samples": samples, "x": {}}).to_string();
        let mut decoded = decode(&payload).unwrap();
        prop_assert_eq!(decoded.seq, seq);
        if spoil {
            prop_assert!(decoded.items.remove(readings.len()).is_err());
        }
        let expected: Vec<_> = readings
            .iter()
            .map(|reading| (reading, ts))
            .chain(backfill.iter().flat_map(|(ts, list)| list.iter().map(|reading| (reading, Some(*ts)))))
            .map(|((sensor, kind, value, own), outer)| DecodedReading {
                sensor: sensor.as_str().into(),
                kind: Kind::ALL[*kind],
                event_time: own.or(outer).map(Timestamp::from_millis),
                value: *value,
                quality: Quality::GOOD,
            })
            .collect();
        let found: Vec<_> = decoded.items.into_iter().map(Result::unwrap).collect();
        prop_assert_eq!(found, expected);
    }
}
