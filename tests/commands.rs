//! Commands as they are typed: the program itself, its exit codes and what it prints where.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, Mutex};

use axum::Json;
use axum::extract::{Path as UrlPath, RawQuery, State};
use axum::http::{HeaderMap, StatusCode};
use axum::routing::{get, post};
use expect_test::expect;
use frostline::ledger::{Cursor, DeadMessage, Ledger, SinkProgress};
use frostline_core::model::Timestamp;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio::process::Command;

/// What a command left behind.
struct Done {
    code: i32,
    out: String,
    err: String,
}

/// A configuration and a data directory.
struct House {
    dir: TempDir,
}

impl House {
    fn new(listen: SocketAddr) -> Self {
        let dir = TempDir::new().unwrap();
        let data_dir = dir.path().join("data");
        std::fs::create_dir(&data_dir).unwrap();
        let settings = format!("data_dir = {:?}\n[http]\nlisten = \"{listen}\"\n", data_dir.to_str().unwrap());
        std::fs::write(dir.path().join("frostline.toml"), settings).unwrap();
        Self { dir }
    }

    fn data_dir(&self) -> std::path::PathBuf {
        self.dir.path().join("data")
    }

    async fn run(&self, arguments: &[&str]) -> Done {
        run(self.dir.path(), arguments).await
    }
}

async fn run(config_dir: &Path, arguments: &[&str]) -> Done {
    let output = Command::new(env!("CARGO_BIN_EXE_frostline"))
        .arg("--config")
        .arg(config_dir)
        .args(arguments)
        .kill_on_drop(true)
        .output()
        .await
        .unwrap();
    Done {
        code: output.status.code().expect("it ends by itself"),
        out: String::from_utf8(output.stdout).unwrap(),
        err: String::from_utf8(output.stderr).unwrap(),
    }
}

/// An address where nobody listens.
async fn nobody() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap()
}

/// Fills a ledger with two letters of one message, one of another that was redriven, and one that was cut.
fn fill_ledger(data_dir: &Path) {
    let mut ledger = Ledger::open(data_dir).unwrap();
    let message = |journal_offset: u64, payload: &[u8]| DeadMessage {
        journal_offset,
        received_at: Timestamp::from_millis(1_795_428_000_000 + journal_offset as i64),
        route: "coldchain/v1/+/+/telemetry".to_owned(),
        topic: b"coldchain/v1/op1/u1/telemetry".to_vec(),
        payload: payload.to_vec(),
        length: payload.len() as u64,
        sha256: None,
        redriven_at: None,
    };
    ledger.put_dead_message(&message(3, b"{\"readings\": \x1b[2J\r\n")).unwrap();
    ledger.put_dead_letter(3, Some(0), "range", "temperature of 900 from sensor `t`").unwrap();
    ledger.put_dead_letter(3, Some(4), "schema", "`kind` is missing").unwrap();
    ledger.put_dead_message(&message(5, b"\xff\xfe")).unwrap();
    ledger.put_dead_letter(5, None, "malformed", "not UTF-8").unwrap();
    let cut = DeadMessage { length: 6 << 20, sha256: Some("ab".repeat(32)), ..message(7, &[b'x'; 300]) };
    ledger.put_dead_message(&cut).unwrap();
    ledger.put_dead_letter(7, None, "oversize", "6 MiB").unwrap();
    ledger.put_dead_message(&message(9, b"[]")).unwrap();
    ledger.put_dead_letter(9, None, "schema", "not an object").unwrap();
    ledger.commit(Cursor { next_offset: 10, now: Timestamp::from_millis(0) }, &BTreeMap::new()).unwrap();
    let redriven_at = Timestamp::from_millis(1_795_428_100_000);
    SinkProgress::open(data_dir).unwrap().mark_redriven(5, redriven_at).unwrap();
}

#[tokio::test]
async fn dead_letters_are_listed_and_shown_without_a_daemon_and_cannot_write_to_the_terminal() {
    let house = House::new(nobody().await);
    let before = house.run(&["dead-letters", "list"]).await;
    assert_eq!((before.code, before.out.as_str()), (1, ""));
    assert!(before.err.contains("has the daemon ever run"), "{}", before.err);

    fill_ledger(&house.data_dir());
    let listed = house.run(&["dead-letters", "list"]).await;
    assert_eq!((listed.code, listed.err.as_str()), (0, ""));
    expect![[r#"
        ID  RECEIVED                  REASON     TOPIC                          ITEM  REDRIVEN  DETAIL                              PAYLOAD
        5   2026-11-23T10:00:00.009Z  schema     coldchain/v1/op1/u1/telemetry  all   no        not an object                       []
        4   2026-11-23T10:00:00.007Z  oversize   coldchain/v1/op1/u1/telemetry  all   no        6 MiB                               xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx…
        3   2026-11-23T10:00:00.005Z  malformed  coldchain/v1/op1/u1/telemetry  all   yes       not UTF-8                           2 bytes, not text
        2   2026-11-23T10:00:00.003Z  schema     coldchain/v1/op1/u1/telemetry  4     no        `kind` is missing                   {"readings": \u{1b}[2J\r\n
        1   2026-11-23T10:00:00.003Z  range      coldchain/v1/op1/u1/telemetry  0     no        temperature of 900 from sensor `t`  {"readings": \u{1b}[2J\r\n
    "#]].assert_eq(&listed.out);
    let shown = house.run(&["dead-letters", "show", "1"]).await;
    assert_eq!(shown.code, 0, "{}", shown.err);
    expect![[r#"
        id              1
        reason          range
        detail          temperature of 900 from sensor `t`
        received        2026-11-23T10:00:00.003Z
        route           coldchain/v1/+/+/telemetry
        topic           coldchain/v1/op1/u1/telemetry
        item            0
        journal offset  3
        length          19 bytes
        payload:
        {"readings": \u{1b}[2J\r\n
    "#]]
    .assert_eq(&shown.out);
    let some = house.run(&["dead-letters", "list", "--reason", "schema", "--limit", "1", "--format", "json"]).await;
    let some: Value = serde_json::from_str(&some.out).unwrap();
    assert_eq!((some["items"].as_array().unwrap().len(), &some["items"][0]["detail"]), (1, &json!("not an object")));
    assert!(some["next"].is_string());

    let missing = house.run(&["dead-letters", "show", "99"]).await;
    assert_eq!((missing.code, missing.out.as_str()), (1, ""));
    assert!(missing.err.contains("there is no dead letter 99"), "{}", missing.err);
    for wrong in [&["dead-letters", "list", "--reason", "bad"][..], &["dead-letters", "redrive"], &["dead-letters"]] {
        assert_eq!(house.run(wrong).await.code, 2, "{wrong:?}");
    }
}

/// What a daemon was asked to do.
type Asked = Arc<Mutex<Vec<String>>>;

#[tokio::test]
async fn redriving_asks_the_daemon_once_for_each_whole_message() {
    let asked = Asked::default();
    let redrive = async |State(asked): State<Asked>, UrlPath(id): UrlPath<String>, headers: HeaderMap| {
        assert_eq!(headers["content-type"], "application/json");
        asked.lock().unwrap().push(id.clone());
        match id.as_str() {
            "3" => (StatusCode::CONFLICT, Json(json!({ "detail": "only its beginning is kept" }))),
            _ => (StatusCode::ACCEPTED, Json(json!({ "journal_offset": 10 }))),
        }
    };
    let router =
        axum::Router::new().route("/api/v1/dead-letters/{id}/redrive", post(redrive)).with_state(Arc::clone(&asked));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let house = House::new(listener.local_addr().unwrap());
    let server = tokio::spawn(async move { axum::serve(listener, router).await });
    fill_ledger(&house.data_dir());

    let one = house.run(&["dead-letters", "redrive", "1"]).await;
    assert_eq!((one.code, one.out.as_str(), one.err.as_str()), (0, "1 message given to the journal again\n", ""));
    let all = house.run(&["dead-letters", "redrive", "--all"]).await;
    assert_eq!((all.code, all.out.as_str(), all.err.as_str()), (0, "2 messages given to the journal again\n", ""));
    // Message 3 by one of its two letters, then message 9; 5 was redriven before, and 7 is not there whole.
    assert_eq!(*asked.lock().unwrap(), ["1", "1", "5"]);
    let refused = house.run(&["dead-letters", "redrive", "3"]).await;
    assert_eq!((refused.code, refused.out.as_str()), (1, "0 messages given to the journal again\n"));
    assert!(refused.err.contains("dead letter 3: only its beginning is kept"), "{}", refused.err);
    server.abort();
}

#[tokio::test]
async fn without_a_daemon_alerts_and_redriving_say_so() {
    let address = nobody().await;
    let house = House::new(address);
    for arguments in [&["alerts", "list"][..], &["alerts", "show", "0a"], &["dead-letters", "redrive", "1"]] {
        let done = house.run(arguments).await;
        assert_eq!((done.code, done.out.as_str()), (1, ""), "{arguments:?}");
        assert!(done.err.contains(&format!("the daemon does not answer at http://{address}/")), "{}", done.err);
    }
    let wrong = house.run(&["alerts", "list", "--url", "somewhere"]).await;
    assert_eq!(wrong.code, 1);
    assert!(wrong.err.contains("`somewhere`"), "{}", wrong.err);
}

#[tokio::test]
async fn a_configuration_with_problems_is_named_and_ends_with_2() {
    let house = House::new(nobody().await);
    std::fs::write(house.dir.path().join("frostline.toml"), "data_dir = \"d\"\n[http]\nlisten = \"here\"\n").unwrap();
    for arguments in [&["alerts", "list"][..], &["dead-letters", "list"], &["check"]] {
        let done = house.run(arguments).await;
        assert_eq!(done.code, 2, "{arguments:?}");
        let all = format!("{}{}", done.out, done.err);
        assert!(all.contains("frostline.toml:3: http.listen: expected an address"), "{arguments:?}: {all}");
    }
}

fn alert(id: &str) -> Value {
    let mut alert = json!({
        "id": id, "revision": 2, "state": "firing", "handling": "open", "severity": "critical", "rule": "frozen-high",
        "rule_version": "940950eaa5c49a10", "rule_kind": "range", "operator": "op1",
        "operator_code": "91150100MA0PJ0000X", "site": null, "unit": "u1", "unit_kind": "storage",
        "sensor": "t\u{1b}1", "jurisdiction": "150100", "category": "food", "profile": "frozen_food",
        "consignments": ["c1", "c2"], "origin": "field", "started_at": "2026-11-23T10:05:00.000Z",
        "fired_at": "2026-11-23T10:15:00.000Z", "resolved_at": null, "resolution": null, "detected_at": "2026-11-23T10:15:01.000Z",
        "limit_low": null, "limit_high": -18.0, "extreme": -9.5, "last_value": -10.0, "mean_kinetic_temperature": null,
        "latitude": null, "longitude": null, "excursion_s": 600.0, "unmonitored_s": 0.0, "late": true,
        "amendments": [
            { "revision": 2, "at": "2026-11-23T10:20:00.000Z", "reason": "backlog", "change": "it did hold" },
        ],
        "message": { "en": "too warm", "zh": "温度过高" },
    });
    (alert["suspended_s"], alert["merged_into"]) = (0.0.into(), Value::Null);
    alert
}

#[tokio::test]
async fn alerts_are_listed_page_by_page_and_shown() {
    let asked = Asked::default();
    let list = async |State(asked): State<Asked>, RawQuery(query): RawQuery| {
        let query = query.unwrap();
        let is_first = !query.contains("cursor=");
        asked.lock().unwrap().push(query);
        Json(match is_first {
            true => json!({ "items": [alert("0a"), alert("0b")], "next": "a b" }),
            false => json!({ "items": [alert("0c")], "next": null }),
        })
    };
    let show = async |UrlPath(id): UrlPath<String>| match id.as_str() {
        "0a" => (StatusCode::OK, Json(alert("0a"))),
        _ => (StatusCode::NOT_FOUND, Json(json!({ "detail": format!("there is no alert `{id}`") }))),
    };
    let router = axum::Router::new()
        .route("/api/v1/alerts", get(list))
        .route("/api/v1/alerts/{id}", get(show))
        .with_state(Arc::clone(&asked));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let server = tokio::spawn(async move { axum::serve(listener, router).await });
    // With an address given, the configuration is not even looked at.
    let nowhere = Path::new("/nonexistent");

    let listed =
        run(nowhere, &["alerts", "list", "--url", &url, "--state", "firing", "--from", "2026-11-23T10:00:00+08:00"])
            .await;
    assert_eq!((listed.code, listed.err.as_str()), (0, ""));
    expect![[r#"
        ID  STATE   HANDLING  SEVERITY  RULE         UNIT    SENSOR    STARTED                   FIRED                     RESOLVED  EXTREME
        0a  firing  open      critical  frozen-high  op1/u1  t\u{1b}1  2026-11-23T10:05:00.000Z  2026-11-23T10:15:00.000Z  -         -9.5
        0b  firing  open      critical  frozen-high  op1/u1  t\u{1b}1  2026-11-23T10:05:00.000Z  2026-11-23T10:15:00.000Z  -         -9.5
        0c  firing  open      critical  frozen-high  op1/u1  t\u{1b}1  2026-11-23T10:05:00.000Z  2026-11-23T10:15:00.000Z  -         -9.5
    "#]].assert_eq(&listed.out);
    assert_eq!(
        *asked.lock().unwrap(),
        [
            "state=firing&from=2026-11-23T10%3A00%3A00%2B08%3A00&limit=100",
            "state=firing&from=2026-11-23T10%3A00%3A00%2B08%3A00&limit=98&cursor=a+b",
        ]
    );
    let two = run(nowhere, &["alerts", "list", "--url", &url, "--limit", "2", "--format", "json"]).await;
    let two: Value = serde_json::from_str(&two.out).unwrap();
    assert_eq!(two, json!({ "items": [alert("0a"), alert("0b")], "next": "a b" }));

    let shown = run(nowhere, &["alerts", "show", "0a", "--url", &url]).await;
    assert_eq!((shown.code, shown.err.as_str()), (0, ""));
    expect![[r#"
        id             0a
        revision       2
        state          firing
        handling       open
        severity       critical
        message        too warm
                       温度过高
        rule           frozen-high (range, version 940950eaa5c49a10)
        operator       op1
        operator code  91150100MA0PJ0000X
        unit           u1
        unit kind      storage
        sensor         t\u{1b}1
        jurisdiction   150100
        profile        frozen_food
        category       food
        consignments   c1, c2
        origin         field
        started        2026-11-23T10:05:00.000Z
        fired          2026-11-23T10:15:00.000Z
        detected       2026-11-23T10:15:01.000Z
        limit high     -18
        extreme        -9.5
        last value     -10
        excursion      600 s
        unmonitored    0 s
        late           true
        revision 2  2026-11-23T10:20:00.000Z backlog: it did hold
    "#]]
    .assert_eq(&shown.out);
    let json_shown = run(nowhere, &["alerts", "show", "0a", "--url", &url, "--format", "json"]).await;
    assert_eq!(serde_json::from_str::<Value>(&json_shown.out).unwrap(), alert("0a"));
    let missing = run(nowhere, &["alerts", "show", "../x", "--url", &url]).await;
    assert_eq!((missing.code, missing.out.as_str()), (1, ""));
    assert!(missing.err.contains("there is no alert `../x`"), "{}", missing.err);
    server.abort();
}
