//! The daemon and its database are killed, at named points and at random times.

use std::time::{Duration, Instant};

use frostline::crash_point::CRASH_POINTS;
use serde_json::Value;

use crate::load::Chance;
use crate::scene::{Database, Scene, Setup};
use crate::servers::{Influx, VictoriaMetrics, try_http, wait_until};

#[test]
fn killed_at_every_named_point_nothing_is_lost_or_doubled_in_victoria_metrics() {
    killed_at_every_named_point(Database::Victoria(VictoriaMetrics::start()), "points, VictoriaMetrics");
}

#[test]
fn killed_at_every_named_point_nothing_is_lost_or_doubled_in_influxdb() {
    killed_at_every_named_point(Database::Influx(Influx::start()), "points, InfluxDB");
}

fn killed_at_every_named_point(database: Database, name: &'static str) {
    let seed = seed();
    let mut chance = Chance::new(seed);
    let mut scene = Setup::new(name, seed).build(Some(database));
    // Once, so that the broker keeps a session for it.
    scene.daemon.start();
    scene.daemon.kill();
    scene.begin_traffic(400);
    for point in CRASH_POINTS {
        // The first passages of some are those of the start, so a later one is taken where many come under load.
        let passages = match point {
            "source-submitted" => 400,
            "journal-before-write" | "journal-written" | "journal-synced" | "journal-acknowledged" => 60,
            "pipeline-applied" | "pipeline-committed" => 30,
            "rejudged" | "amended" => 8,
            "sink-before-request" | "sink-taken" | "outbox-published" => 6,
            _ => 1,
        };
        let passage = 1 + chance.below(passages);
        if point == "pipeline-configured" {
            scene.daemon.write_config("rules/unused.toml", UNUSED_RULE);
        }
        scene.daemon.spawn(Some(&format!("{point}:{passage}")));
        if point == "redrive-submitted" {
            redrive_one(&mut scene);
        }
        scene.daemon.wait_for_crash();
        scene.say(format_args!("killed at {point}, passage {passage}"));
    }
    scene.daemon.start();
    scene.check();
}

/// A rule that applies to nothing, so that the configuration changes and the episodes do not.
const UNUSED_RULE: &str = "[[rule]]\nid = \"unused\"\nkind = \"range\"\nquantity = \"battery\"\nseverity = \"notice\"\n\
                           low = 5\nwhere = { unit = \"nobody\" }\n";

/// Gives the message of a dead letter to the daemon again; the daemon may not live to answer.
fn redrive_one(scene: &mut Scene) {
    let mut id = None;
    wait_until("there is a dead letter", || {
        scene.daemon.expect_alive();
        let letters = scene.daemon.get("/api/v1/dead-letters?reason=malformed&limit=1").map(|response| response.body);
        let letters: Option<Value> = letters.and_then(|body| serde_json::from_str(&body).ok());
        id = letters.and_then(|letters| letters["items"][0]["id"].as_i64());
        id.is_some()
    });
    let address = scene.daemon.address().expect("it has answered");
    let path = format!("/api/v1/dead-letters/{}/redrive", id.expect("it was waited for"));
    try_http(address, "POST", &path, &[("Content-Type", "application/json")], b"{}").ok();
}

#[test]
fn killed_at_random_times_nothing_is_lost_or_doubled() {
    let hours: Option<f64> =
        std::env::var("FROSTLINE_SOAK_HOURS").ok().map(|hours| hours.parse().expect("a number of hours"));
    let until = Instant::now() + Duration::from_secs_f64(hours.unwrap_or(0.0) * 3_600.0);
    let (first_seed, mut rounds) = (seed(), 0);
    while rounds < 3 && hours.is_none() || Instant::now() < until {
        random_round(first_seed.wrapping_add(rounds), rounds % 2 == 0);
        rounds += 1;
    }
    eprintln!("{rounds} rounds");
}

/// One round: what is killed, and after how many messages, comes from the seed.
fn random_round(seed: u64, with_influxdb: bool) {
    let mut chance = Chance::new(seed);
    let database =
        if with_influxdb { Database::Influx(Influx::start()) } else { Database::Victoria(VictoriaMetrics::start()) };
    let mut setup = Setup::new(if with_influxdb { "random, InfluxDB" } else { "random, VictoriaMetrics" }, seed);
    // A database that is killed loses what it took in the last seconds; that is what confirming late is for.
    setup.confirm_after = "12s";
    setup.settings = "journal.max_size = \"16MiB\"\njournal.retention = \"0s\"\n";
    let mut scene = setup.build(Some(database));
    scene.daemon.start();
    scene.begin_traffic(400);
    for _ in 0..6 {
        scene.wait_for_traffic(1 + chance.below(800) as usize);
        match chance.below(6) {
            0 => {
                let database = scene.database.as_mut().expect("there is one");
                database.server().kill();
                database.server().start();
                scene.say("the database was killed and is back");
            }
            1 => {
                // Both at once.
                scene.daemon.kill();
                let database = scene.database.as_mut().expect("there is one");
                database.server().kill();
                scene.daemon.start();
                scene.database.as_mut().expect("there is one").server().start();
                scene.say("the daemon and the database were killed and are back");
            }
            2 => {
                // Killed again before it has caught up, perhaps before it was connected.
                scene.daemon.kill();
                scene.daemon.spawn(None);
                scene.wait_for_traffic(1 + chance.below(300) as usize);
                scene.daemon.kill();
                scene.daemon.start();
                scene.say("the daemon was killed twice and is back");
            }
            3 => {
                scene.broker.server.stop();
                scene.daemon.kill();
                scene.broker.server.start();
                scene.daemon.start();
                scene.say("the broker was stopped, the daemon killed, and both are back");
            }
            4 => {
                scene.daemon.stop();
                scene.daemon.start();
                scene.say("the daemon was stopped and is back");
            }
            _ => {
                scene.daemon.kill();
                scene.daemon.start();
                scene.say("the daemon was killed and is back");
            }
        }
    }
    scene.check();
}

/// Returns the seed that was asked for, or a new one.
pub(crate) fn seed() -> u64 {
    match std::env::var("FROSTLINE_SEED") {
        Ok(seed) => seed.parse().expect("FROSTLINE_SEED is a number"),
        Err(_) => u64::from(std::process::id()).wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 32,
    }
}
