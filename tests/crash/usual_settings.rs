//! With mosquitto's own defaults (20 in flight, 1,000 queued) and ours, nothing is lost where other collectors lose most.

use std::time::{Duration, Instant};

use crate::kills::seed;
use crate::scene::{Database, Setup};
use crate::servers::{VictoriaMetrics, wait_until};

#[test]
fn at_200_messages_a_second_nothing_is_lost_without_a_fault() {
    let mut setup = Setup::new("200/s", seed());
    (setup.broker, setup.settings, setup.confirm_after) = ("", "", "30s");
    let mut scene = setup.build(Some(Database::Victoria(VictoriaMetrics::start())));
    scene.daemon.start();
    scene.begin_traffic(200);
    scene.wait_for_traffic(3_000);
    scene.check();
}

#[test]
fn at_2000_messages_a_second_a_database_away_for_twenty_seconds_costs_nothing() {
    let mut setup = Setup::new("2,000/s, database away", seed());
    (setup.broker, setup.settings, setup.confirm_after) = ("", "", "30s");
    let mut scene = setup.build(Some(Database::Victoria(VictoriaMetrics::start())));
    scene.daemon.start();
    scene.begin_traffic(2_000);
    scene.wait_for_traffic(2_000);
    let database = scene.database.as_mut().expect("there is one").server();
    database.stop();
    let away = Instant::now();
    wait_until("twenty seconds have passed", || away.elapsed() >= Duration::from_secs(20));
    scene.database.as_mut().expect("there is one").server().start();
    scene.say("the database is back");
    scene.check();
}

#[test]
fn at_2000_messages_a_second_a_kill_for_five_seconds_costs_nothing_where_the_queue_holds_it() {
    let mut setup = Setup::new("2,000/s, killed", seed());
    // What came in five seconds, and as much again for the start: the one thing to be set on a broker.
    (setup.broker, setup.settings, setup.confirm_after) = ("max_queued_messages 20000", "", "30s");
    let mut scene = setup.build(Some(Database::Victoria(VictoriaMetrics::start())));
    scene.daemon.start();
    scene.begin_traffic(2_000);
    scene.wait_for_traffic(4_000);
    scene.daemon.kill();
    let killed = Instant::now();
    wait_until("five seconds have passed", || killed.elapsed() >= Duration::from_secs(5));
    scene.daemon.start();
    scene.say("the daemon is back");
    scene.wait_for_traffic(2_000);
    scene.check();
}
