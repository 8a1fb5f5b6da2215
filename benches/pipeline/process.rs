//! The processes that are measured: the daemon, and a bare subscriber to compare it with.

use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rumqttc::Outgoing;
use rumqttc::v5::mqttbytes::v5::Packet;
use rumqttc::v5::{AsyncClient, Event, MqttOptions};
use serde_json::Value;

use crate::Failure;
use crate::fleet::RULES;
use crate::servers::try_http;

/// The name of the session at the broker.
pub(crate) const CLIENT_ID: &str = "frostline-bench";

/// The argument with which this program is the bare subscriber.
pub(crate) const SUBSCRIBER_ARGUMENT: &str = "subscriber";

/// Who acknowledges for the bare subscriber.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Acknowledging {
    /// The program, one message after the other, as whoever must store them first has to.
    ByHand,
    /// The library, several at once before it hands them out: the least work there can be.
    Automatic,
}

impl Acknowledging {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::ByHand => "by-hand",
            Self::Automatic => "automatic",
        }
    }
}

/// More than a broker that overruns the window leaves unacknowledged.
const REQUESTS_MAX: usize = 1 << 20;

/// The window of both.
const RECEIVE_MAXIMUM: u16 = 4_096;

/// Linux counts processor time in these, whatever the kernel's own clock does.
const TICKS_PER_SECOND: f64 = 100.0;

/// How long the slowest machine may take for anything.
const PATIENCE: Duration = Duration::from_secs(600);

/// What a process has used so far.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Usage {
    /// Processor time, user and system.
    pub(crate) cpu_s: f64,
    /// The most memory that it ever had.
    pub(crate) peak_mib: f64,
    /// The memory that it has.
    pub(crate) resident_mib: f64,
}

impl Usage {
    fn of(pid: u32) -> Result<Self, Failure> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
        // The name in parentheses may hold anything; the fields behind it are numbered from 3.
        let (_, fields) = stat.rsplit_once(')').ok_or("a process without a name")?;
        let ticks: u64 = fields.split_whitespace().skip(14 - 3).take(2).map(|field| field.parse().unwrap_or(0)).sum();
        let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
        let mib = |name: &str| -> Option<f64> {
            let kib: f64 =
                status.lines().find_map(|line| line.strip_prefix(name))?.split_whitespace().next()?.parse().ok()?;
            Some(kib / 1024.0)
        };
        Ok(Self {
            cpu_s: ticks as f64 / TICKS_PER_SECOND,
            peak_mib: mib("VmHWM:").ok_or("no peak memory")?,
            resident_mib: mib("VmRSS:").ok_or("no resident memory")?,
        })
    }
}

/// A series database for the daemon to write to.
pub(crate) struct Database {
    /// Its address.
    pub(crate) url: String,
    /// Its token; some ask for none.
    pub(crate) token: &'static str,
}

/// A `frostline run`.
pub(crate) struct Daemon {
    child: Child,
    http: SocketAddr,
    /// When it was started.
    pub(crate) started: Instant,
}

impl Daemon {
    /// Starts the daemon with its configuration, its data and its log in `directory`.
    pub(crate) fn start(directory: &Path, broker_url: &str, database: Option<&Database>) -> Result<Self, Failure> {
        let http = TcpListener::bind("127.0.0.1:0")?.local_addr()?;
        let mut settings = format!(
            "data_dir = {:?}\nmqtt = {{ url = {broker_url:?}, client_id = {CLIENT_ID:?} }}\nhttp.listen = \"{http}\"\n\
             journal.max_size = \"16GiB\"\n",
            directory.join("data"),
        );
        if let Some(Database { url, token }) = database {
            fs::write(directory.join("token"), token)?;
            settings += &format!(
                "[series]\nstore = \"influxdb2\"\n[series.influxdb2]\nurl = {url:?}\norg = \"frostline\"\nbucket = \"coldchain\"\n\
                 token_file = {:?}\n",
                directory.join("token"),
            );
        }
        fs::write(directory.join("frostline.toml"), settings)?;
        fs::write(directory.join("rules.toml"), RULES)?;
        let log = File::create(directory.join("log"))?;
        let started = Instant::now();
        let child = Command::new(env!("CARGO_BIN_EXE_frostline"))
            .arg("run")
            .arg("--config")
            .arg(directory)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()?;
        Ok(Self { child, http, started })
    }

    /// Returns what it has used so far.
    pub(crate) fn usage(&self) -> Result<Usage, Failure> {
        Usage::of(self.child.id())
    }

    /// Waits until so many readings are in the history, and returns how long after its start that was.
    pub(crate) fn wait_for_stored(&mut self, readings: u64) -> Result<Duration, Failure> {
        self.wait_for(&format!("{readings} readings stored"), Duration::from_millis(20), |daemon| {
            let Some(text) = daemon.get("/api/v1/accounting") else { return Ok(false) };
            let terms: Value = serde_json::from_str(&text)?;
            if terms["dead_lettered"].as_u64() != Some(0) {
                return Err(format!("not every reading was good: {terms}").into());
            }
            Ok(terms["stored"].as_u64() == Some(readings))
        })
    }

    /// Waits until a metric has reached a value, and returns how long after its start that was.
    pub(crate) fn wait_for_metric(&mut self, name: &str, value: u64) -> Result<Duration, Failure> {
        self.wait_for(&format!("{name} {value}"), Duration::from_millis(5), |daemon| {
            let Some(text) = daemon.get("/metrics") else { return Ok(false) };
            let found = text.lines().find_map(|line| line.strip_prefix(name)?.trim().parse::<f64>().ok());
            Ok(found.is_some_and(|found| found >= value as f64))
        })
    }

    fn wait_for(
        &mut self,
        what: &str,
        pause: Duration,
        condition: impl Fn(&Self) -> Result<bool, Failure>,
    ) -> Result<Duration, Failure> {
        while !condition(self)? {
            if let Some(status) = self.child.try_wait()? {
                return Err(format!("the daemon ended with {status}").into());
            }
            if self.started.elapsed() > PATIENCE {
                return Err(format!("waited in vain: {what}").into());
            }
            std::thread::sleep(pause);
        }
        Ok(self.started.elapsed())
    }

    fn get(&self, path: &str) -> Option<String> {
        let response = try_http(self.http, "GET", path, &[], b"").ok()?;
        (response.status == 200).then_some(response.body)
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // Whether it has ended already or not, it is gone then.
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

/// Lets a bare subscriber drain the session, and returns how long that took from its start and what it used.
pub(crate) fn run_subscriber(
    broker: SocketAddr,
    messages: usize,
    acknowledging: Acknowledging,
) -> Result<(Duration, Usage), Failure> {
    let started = Instant::now();
    let mut child = Command::new(std::env::current_exe()?)
        .args([SUBSCRIBER_ARGUMENT, &broker.to_string(), &messages.to_string(), acknowledging.as_str()])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()?;
    let mut line = String::new();
    BufReader::new(child.stdout.take().ok_or("the output is piped")?).read_line(&mut line)?;
    let elapsed = started.elapsed();
    let usage = Usage::of(child.id());
    // It ends when its input does.
    drop(child.stdin.take());
    child.wait()?;
    if line.trim() != messages.to_string() {
        return Err(format!("the bare subscriber says {line:?}").into());
    }
    Ok((elapsed, usage?))
}

/// Counts and acknowledges `messages`, says so, and waits for the end of its input.
#[expect(clippy::print_stdout, reason = "the parent process reads it")]
pub(crate) fn subscriber_main(broker: &str, messages: usize, acknowledging: &str) -> Result<(), Failure> {
    let by_hand = acknowledging == Acknowledging::ByHand.as_str();
    let address: SocketAddr = broker.parse()?;
    let mut options = MqttOptions::new(CLIENT_ID, address.ip().to_string(), address.port());
    options.set_clean_start(false).set_session_expiry_interval(Some(3_600)).set_receive_maximum(Some(RECEIVE_MAXIMUM));
    options.set_manual_acks(by_hand);
    let (client, mut events) = AsyncClient::new(options, REQUESTS_MAX);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let (mut received, mut acknowledged) = (0, 0);
        while acknowledged < messages {
            match events.poll().await? {
                Event::Incoming(Packet::Publish(message)) => {
                    received += 1;
                    if by_hand {
                        client.try_ack(&message)?;
                    }
                }
                Event::Outgoing(Outgoing::PubAck(_)) => acknowledged += 1,
                _ => {}
            }
        }
        println!("{received}");
        Ok::<_, Failure>(())
    })?;
    std::io::stdin().read_line(&mut String::new())?;
    Ok(())
}
