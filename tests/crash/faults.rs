//! What surrounds the daemon fails: the database, the broker, the disk.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crate::daemon::Daemon;
use crate::dead_letters::now_ms;
use crate::kills::seed;
use crate::load::Chance;
use crate::publisher::{Message, Publisher};
use crate::scene::{Database, Scene, Setup, check_accounting, stored_readings};
use crate::servers::{Influx, Mosquitto, VictoriaMetrics, wait_until};

#[test]
fn a_database_that_is_away_for_ten_seconds_stops_only_its_sink() {
    let mut setup = Setup::new("database away", seed());
    // Room for all that waits.
    setup.settings = "journal.max_size = \"64MiB\"\n";
    let mut scene = setup.build(Some(Database::Influx(Influx::start())));
    scene.daemon.start();
    scene.begin_traffic(400);
    scene.wait_for_traffic(400);
    database(&mut scene).stop();
    let away = Instant::now();
    let stored = |scene: &Scene| scene.daemon.metric("frostline_readings_stored_total");
    wait_until(
        "the sink says that it is buffering",
        || matches!(scene.daemon.part("series"), Some(Ok(remark)) if remark.contains("buffering")),
    );
    let before = stored(&scene);
    wait_until("ten seconds have passed", || away.elapsed() >= Duration::from_secs(10));
    assert!(stored(&scene) > before, "the history and the rules go on without the database");
    database(&mut scene).start();
    scene.say("the database is back after ten seconds");
    scene.check();
}

#[test]
fn a_slow_database_holds_nothing_up_but_itself() {
    let victoria = VictoriaMetrics::start();
    let proxy = SlowProxy::start(victoria.server.address(), Duration::from_millis(400));
    let mut setup = Setup::new("slow database", seed());
    setup.settings = "journal.max_size = \"64MiB\"\n";
    setup.database_url = Some(format!("http://{}", proxy.address));
    let mut scene = setup.build(Some(Database::Victoria(victoria)));
    scene.daemon.start();
    scene.begin_traffic(400);
    scene.wait_for_traffic(3_000);
    scene.check();
    drop(proxy);
}

#[test]
fn a_broker_that_is_stopped_and_started_costs_nothing() {
    let mut scene = Setup::new("broker stopped", seed()).build(None);
    scene.daemon.start();
    scene.begin_traffic(400);
    for _ in 0..3 {
        scene.wait_for_traffic(400);
        scene.broker.server.stop();
        scene.broker.server.start();
        scene.say("the broker was stopped and is back");
    }
    scene.check();
}

#[test]
fn of_a_broker_that_is_killed_everything_that_reached_the_journal_is_kept() {
    let mut scene = Setup { broker_forgets: true, ..Setup::new("broker killed", seed()) }.build(None);
    scene.daemon.start();
    scene.begin_traffic(400);
    for _ in 0..3 {
        scene.wait_for_traffic(400);
        let (taken, log) = (scene.daemon.metric("frostline_readings_received_total"), scene.daemon.log().len());
        scene.broker.server.kill();
        scene.broker.server.start();
        wait_until("the daemon is subscribed again", || {
            let log = scene.daemon.log()[log..].to_owned();
            log.contains("connected client=\"source\"") && scene.daemon.part("broker").is_some_and(|part| part.is_ok())
        });
        assert!(scene.daemon.metric("frostline_readings_received_total") >= taken);
        scene.say("the broker was killed and is back");
    }
    // What the broker had confirmed and forgot is the publisher's to send again; the rest are duplicates.
    scene.publish_everything_again();
    scene.check();
}

#[test]
fn after_a_broker_without_persistence_the_daemon_subscribes_anew() {
    let mut setup = Setup::new("broker without sessions", seed());
    (setup.broker, setup.broker_forgets) = ("max_queued_messages 0\npersistence false", true);
    let mut scene = setup.build(None);
    scene.daemon.start();
    scene.begin_traffic(400);
    for _ in 0..3 {
        scene.wait_for_traffic(300);
        let log = scene.daemon.log().len();
        scene.broker.server.stop();
        scene.broker.server.start();
        wait_until("the daemon is subscribed anew", || scene.daemon.log()[log..].contains("INFO subscribed"));
        scene.say("the broker forgot all sessions and is subscribed to again");
    }
    scene.publish_everything_again();
    scene.check();
}

#[test]
fn a_full_journal_holds_acknowledgements_back_and_goes_on_by_itself() {
    let mut setup = Setup::new("journal full", seed());
    setup.settings = "journal.max_size = \"1MiB\"\n";
    let mut scene = setup.build(Some(Database::Victoria(VictoriaMetrics::start())));
    database(&mut scene).stop();
    scene.daemon.start();
    scene.begin_traffic(1_000);
    wait_until("the journal is full", || matches!(scene.daemon.part("journal"), Some(Err(_))));
    let reason = scene.daemon.part("journal").expect("it is there").expect_err("it was waited for");
    assert!(reason.contains("limit") && reason.contains("influxdb2"), "{reason}");
    assert!(scene.daemon.log().contains("ERROR"), "a full journal is told loudly");
    scene.say(format_args!("readyz: {reason}"));
    scene.wait_for_traffic(2_000);
    database(&mut scene).start();
    scene.check();
    scene.say("it went on by itself");
}

#[test]
fn a_full_disk_loses_nothing_and_it_goes_on_by_itself() {
    let home = tempfile::Builder::new().prefix("frostline").tempdir().unwrap();
    let Some(disk) = SmallDisk::mount(&home.path().join("disk")) else {
        eprintln!("SKIPPED: a small file system cannot be mounted here, which takes root");
        return;
    };
    let ballast = disk.path.join("ballast");
    let mut setup = Setup::new("disk full", seed());
    setup.settings = "journal.max_size = \"64MiB\"\njournal.retention = \"0s\"\n";
    let mut scene = setup.build_in(Some(disk.path.join("data")), Some(Database::Victoria(VictoriaMetrics::start())));
    scene.daemon.start();
    scene.begin_traffic(400);
    for _ in 0..3 {
        scene.wait_for_traffic(400);
        // All that is left, to the last byte.
        fill(&ballast);
        wait_until("the daemon says that the disk is full", || {
            scene.daemon.expect_alive();
            ["journal", "pipeline"].iter().any(|part| matches!(scene.daemon.part(part), Some(Err(_))))
        });
        scene.say(format_args!(
            "full; journal: {:?}, pipeline: {:?}",
            scene.daemon.part("journal"),
            scene.daemon.part("pipeline")
        ));
        scene.wait_for_traffic(600);
        scene.daemon.expect_alive();
        std::fs::remove_file(&ballast).unwrap();
        wait_until("the daemon goes on", || {
            scene.daemon.expect_alive();
            ["journal", "pipeline"].iter().all(|part| matches!(scene.daemon.part(part), Some(Ok(_))))
        });
    }
    scene.check();
    drop(scene);
    drop(disk);
}

/// A message without a time is told from its redelivery by its sequence number: after any crash each is stored once.
#[test]
fn readings_without_a_time_are_stored_once_where_they_have_a_sequence_number() {
    let seed = seed();
    let mut chance = Chance::new(seed);
    eprintln!("without time: seed {seed}");
    let broker = Mosquitto::start("max_queued_messages 0\nmax_inflight_messages 1000");
    let mut daemon = Daemon::new(None, &format!("mqtt.url = \"{}\"\n", broker.url()), "");
    daemon.start();
    let publisher = Publisher::start(broker.server.address());
    let mut published: u32 = 0;
    let publish = |count: u32, published: &mut u32| {
        for _ in 0..count {
            *published += 1;
            // The value tells which message it was.
            let value = f64::from(*published) / 100.0;
            let payload = format!(
                "{{\"seq\":{published},\"readings\":[{{\"sensor\":\"s\",\"kind\":\"latitude\",\"value\":{value}}}]}}"
            );
            let topic = "coldchain/v1/op1/u1/telemetry".to_owned();
            publisher.publish([Message { topic, payload: payload.into_bytes() }]);
        }
    };
    for _ in 0..8 {
        // While the daemon is there, and while it is away: both find it with messages that are not acknowledged.
        publish(200, &mut published);
        daemon.kill();
        publish(200, &mut published);
        let point = ["journal-written", "journal-synced", "journal-acknowledged"][chance.below(3) as usize];
        // The first block of a run has its configuration, and perhaps messages already; the second has messages.
        daemon.spawn(Some(&format!("{point}:2")));
        daemon.wait_for_crash_under(|| publish(1, &mut published));
        daemon.start();
    }
    publisher.wait_for_confirmations();
    let began_ms = now_ms();
    let last = format!("{{\"ts\":{began_ms},\"readings\":[{{\"sensor\":\"s\",\"kind\":\"humidity\",\"value\":1}}]}}");
    publisher.publish([Message { topic: "coldchain/v1/op1/last/telemetry".into(), payload: last.into_bytes() }]);
    wait_until("the last message is judged", || {
        daemon.get("/api/v1/units/op1/last").is_some_and(|response| response.status == 200)
    });
    let redelivered = daemon.metric("frostline_messages_redelivered_total");
    daemon.stop();
    let stored = stored_readings(daemon.data_dir());
    let mut values: Vec<i64> =
        stored.iter().filter(|(point, _)| point.kind == "latitude").filter_map(|(_, value)| *value).collect();
    values.sort_unstable();
    let expected: Vec<i64> = (1..=i64::from(published)).map(|number| number * 10_000).collect();
    let doubled = values.windows(2).filter(|pair| pair[0] == pair[1]).count();
    assert_eq!((values.len(), doubled), (expected.len(), 0), "readings stored, and how many of them twice");
    assert_eq!(values, expected);
    check_accounting(daemon.data_dir(), stored.len());
    eprintln!("{published} messages without time are stored once, {redelivered} redelivered to the last run");
}

fn database(scene: &mut Scene) -> &mut crate::servers::Server {
    scene.database.as_mut().expect("there is a database").server()
}

/// Passes connections on and every answer late.
struct SlowProxy {
    address: SocketAddr,
    stop: Arc<AtomicBool>,
}

impl SlowProxy {
    fn start(server: SocketAddr, delay: Duration) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let address = listener.local_addr().unwrap();
        let stop = Arc::new(AtomicBool::new(false));
        thread::spawn({
            let stop = Arc::clone(&stop);
            move || {
                for client in listener.incoming() {
                    if stop.load(Ordering::SeqCst) {
                        return;
                    }
                    let (Ok(client), Ok(server)) = (client, TcpStream::connect(server)) else { continue };
                    let (from_client, to_server) = (client.try_clone().unwrap(), server.try_clone().unwrap());
                    thread::spawn(move || copy(from_client, to_server, Duration::ZERO));
                    thread::spawn(move || copy(server, client, delay));
                }
            }
        });
        Self { address, stop }
    }
}

impl Drop for SlowProxy {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        // Wakes the listener, which then ends.
        TcpStream::connect(self.address).ok();
    }
}

/// Copies until either side closes, waiting before each piece: the delay is what is tested, not waited for.
fn copy(mut from: TcpStream, mut to: TcpStream, delay: Duration) {
    let mut buffer = [0; 65_536];
    let result: io::Result<()> = loop {
        match from.read(&mut buffer) {
            Ok(0) => break Ok(()),
            Ok(count) => {
                thread::sleep(delay);
                if let Err(error) = to.write_all(&buffer[..count]) {
                    break Err(error);
                }
            }
            Err(error) => break Err(error),
        }
    };
    // Whoever is left learns it from the closed connection.
    drop(result);
    to.shutdown(std::net::Shutdown::Both).ok();
}

/// A file system of a few MiB, unmounted when it is dropped.
struct SmallDisk {
    path: std::path::PathBuf,
}

impl SmallDisk {
    fn mount(path: &Path) -> Option<Self> {
        std::fs::create_dir_all(path).unwrap();
        let mounted =
            Command::new("mount").args(["-t", "tmpfs", "-o", "size=24m", "frostline-test"]).arg(path).output();
        mounted.is_ok_and(|output| output.status.success()).then(|| Self { path: path.to_owned() })
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let unmounted = Command::new("umount").arg("-l").arg(&self.path).status();
        if !unmounted.is_ok_and(|status| status.success()) {
            eprintln!("cannot unmount {}", self.path.display());
        }
    }
}

/// Writes into a file until the disk takes no more.
fn fill(ballast: &Path) {
    let mut file = std::fs::File::options().create(true).append(true).open(ballast).unwrap();
    let mut piece = 1 << 20;
    while piece > 0 {
        if file.write_all(&vec![1; piece]).is_err() {
            piece /= 2;
        }
    }
}
