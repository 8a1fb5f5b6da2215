//! The daemon under test, as a process of its own.

use std::fs::{self, File};
use std::net::SocketAddr;
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};

use serde_json::Value;
use tempfile::TempDir;

use crate::servers::{Influx, Response, http, try_http, wait_until};

/// `frostline run` with a configuration and a data directory of its own; gone when it is dropped.
pub(crate) struct Daemon {
    home: TempDir,
    data_dir: PathBuf,
    child: Option<Child>,
    starts: u32,
}

impl Daemon {
    /// Writes the configuration; `settings` is what `frostline.toml` says beyond the data directory.
    ///
    /// The data go beside it unless the test has another place for them.
    pub(crate) fn new(data_dir: Option<PathBuf>, settings: &str, rules: &str) -> Self {
        let home = tempfile::Builder::new().prefix("frostline").tempdir().expect("a temporary directory can be made");
        let data_dir = data_dir.unwrap_or_else(|| home.path().join("data"));
        let daemon = Self { home, data_dir, child: None, starts: 0 };
        let settings =
            format!("data_dir = \"{}\"\nhttp.listen = \"127.0.0.1:0\"\n{settings}", daemon.data_dir.display());
        fs::create_dir_all(daemon.config_dir().join("rules")).expect("the directory is writable");
        daemon.write_config("frostline.toml", &settings);
        daemon.write_config("rules.toml", rules);
        daemon
    }

    /// Returns where the configuration is.
    pub(crate) fn config_dir(&self) -> PathBuf {
        self.home.path().join("config")
    }

    /// Returns where the journal, the ledger and the history are.
    pub(crate) fn data_dir(&self) -> &PathBuf {
        &self.data_dir
    }

    /// Returns a path beside the configuration, for the test's own files.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.home.path().join(name)
    }

    /// Replaces a file of the configuration; it counts from the next start.
    pub(crate) fn write_config(&self, name: &str, text: &str) {
        fs::write(self.config_dir().join(name), text).expect("the directory is writable");
    }

    /// Starts the daemon and does not wait for anything.
    pub(crate) fn spawn(&mut self, crash_at: Option<&str>) {
        assert!(self.child.is_none(), "the daemon runs already");
        self.starts += 1;
        let log = File::create(self.log_path()).expect("the log can be made");
        let mut command = Command::new(env!("CARGO_BIN_EXE_frostline"));
        command.arg("--config").arg(self.config_dir()).arg("run");
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        command.env("FROSTLINE__SERIES__INFLUXDB2__TOKEN", Influx::TOKEN).env_remove("FROSTLINE_CRASH_AT");
        if let Some(point) = crash_at {
            command.env("FROSTLINE_CRASH_AT", point);
        }
        self.child = Some(command.spawn().expect("the daemon can be started"));
    }

    /// Starts the daemon and waits until it takes messages.
    pub(crate) fn start(&mut self) {
        self.spawn(None);
        wait_until("the daemon is subscribed", || {
            self.expect_alive();
            self.part("broker").is_some_and(|remark| remark.is_ok())
        });
    }

    /// Ends the daemon at once, as `kill -9` does.
    pub(crate) fn kill(&mut self) {
        let mut child = self.child.take().expect("only a running daemon can be killed");
        child.kill().expect("a child that was not waited for can be killed");
        child.wait().expect("it is our child");
    }

    /// Ends the daemon as a service manager does, and expects that it succeeds.
    pub(crate) fn stop(&mut self) {
        self.terminate();
        let status = self.wait_for_end();
        assert_eq!(status.code(), Some(0), "the daemon ended with {status} on SIGTERM");
    }

    /// Sends SIGTERM and does not wait.
    pub(crate) fn terminate(&self) {
        self.signal("TERM");
    }

    /// Sends a signal by name.
    pub(crate) fn signal(&self, signal: &str) {
        let pid = self.child.as_ref().expect("only a running daemon takes signals").id();
        let status = Command::new("sh").arg("-c").arg(format!("kill -s {signal} {pid}")).status();
        assert!(status.is_ok_and(|status| status.success()), "cannot send SIG{signal} to the daemon");
    }

    /// Waits until the daemon has ended itself at its crash point.
    pub(crate) fn wait_for_crash(&mut self) {
        self.wait_for_crash_under(|| {});
    }

    /// Waits until the daemon has ended itself at its crash point, which it only comes to by the load.
    pub(crate) fn wait_for_crash_under(&mut self, load: impl FnMut()) {
        const SIGABRT: i32 = 6;
        let status = self.wait_for_end_under(load);
        assert_eq!(status.signal(), Some(SIGABRT), "the daemon ended with {status} instead of at its crash point");
    }

    fn wait_for_end(&mut self) -> ExitStatus {
        self.wait_for_end_under(|| {})
    }

    fn wait_for_end_under(&mut self, mut load: impl FnMut()) -> ExitStatus {
        let mut status = None;
        wait_until("the daemon ends", || {
            load();
            let child = self.child.as_mut().expect("only a running daemon is waited for");
            status = child.try_wait().expect("it is our child");
            status.is_some()
        });
        self.child = None;
        status.expect("it was waited for")
    }

    /// Panics where the daemon has ended.
    pub(crate) fn expect_alive(&mut self) {
        let ended = self.child.as_mut().expect("a running daemon").try_wait().expect("it is our child");
        assert!(ended.is_none(), "the daemon ended by itself: {ended:?}");
    }

    /// Returns the log of this run.
    pub(crate) fn log(&self) -> String {
        String::from_utf8_lossy(&fs::read(self.log_path()).unwrap_or_default()).into_owned()
    }

    /// Returns where its HTTP interface listens, once it has said so.
    pub(crate) fn address(&self) -> Option<SocketAddr> {
        let log = self.log();
        let (_, address) = log.split_once("frostline is running address=")?;
        address.lines().next()?.split(' ').next()?.parse().ok()
    }

    /// Returns what one of its addresses answers.
    pub(crate) fn get(&self, path: &str) -> Option<Response> {
        try_http(self.address()?, "GET", path, &[], b"").ok()
    }

    /// Returns an answer in JSON.
    pub(crate) fn get_json(&self, path: &str) -> Value {
        let address = self.address().expect("the daemon runs");
        serde_json::from_str(&http(address, "GET", path, &[], b"").body).expect("the answer is JSON")
    }

    /// Returns what a part says of itself: `Ok` where it works.
    pub(crate) fn part(&self, name: &str) -> Option<Result<String, String>> {
        let ready: Value = serde_json::from_str(&self.get("/readyz")?.body).ok()?;
        let part = ready["parts"].get(name)?;
        let remark = part["remark"].as_str()?.to_owned();
        Some(if part["ready"].as_bool()? { Ok(remark) } else { Err(remark) })
    }

    /// Returns the sum of a metric over its labels.
    pub(crate) fn metric(&self, name: &str) -> f64 {
        let text = self.get("/metrics").map(|response| response.body).unwrap_or_default();
        let values = text.lines().filter_map(|line| {
            let (sample, value) = line.rsplit_once(' ')?;
            (sample.split('{').next() == Some(name)).then(|| value.parse::<f64>().ok()).flatten()
        });
        values.sum()
    }

    /// Returns how much of the processors' time this run has taken, in seconds.
    pub(crate) fn cpu_s(&self) -> f64 {
        let pid = self.child.as_ref().expect("only a running daemon takes time").id();
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).expect("the process is there");
        // Behind the name, which may hold spaces: the twelfth and the thirteenth field, in hundredths.
        let (_, fields) = stat.rsplit_once(") ").expect("the name is in parentheses");
        let ticks = |field: usize| fields.split(' ').nth(field).and_then(|text| text.parse::<f64>().ok());
        (ticks(11).expect("user time") + ticks(12).expect("system time")) / 100.0
    }

    fn log_path(&self) -> PathBuf {
        self.home.path().join(format!("log.{}", self.starts))
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            // It may have ended by itself; either way it is gone afterwards.
            child.kill().ok();
            child.wait().ok();
        }
        if std::thread::panicking() {
            let log = self.log();
            let lines: Vec<&str> = log.lines().collect();
            eprintln!("--- the end of the daemon's log:\n{}\n---", lines[lines.len().saturating_sub(40)..].join("\n"));
        }
    }
}
