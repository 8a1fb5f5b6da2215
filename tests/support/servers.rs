//! The real servers of the end-to-end tests: [`Mosquitto`], [`VictoriaMetrics`] and [`Influx`].
//!
//! Each runs as a child process on a free loopback port with a directory of its own, can be stopped, killed and
//! started again on the same port and data, and is gone when its value is dropped. After a panic the end of its log
//! is shown. The programs are looked for where `tests/servers/get` finds or puts them: `PATH`, `/usr/sbin`, its cache.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use std::{env, iter, thread};

use serde_json::{Value, json};
use tempfile::TempDir;

/// How long anything may take that a test waits for: far more than it needs, also on a machine that is busy.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// How much of a server's log is shown after a failure.
const LOG_LINES_SHOWN: usize = 60;

/// A mosquitto with persistence, on a listener without TLS or passwords unless its extra lines say otherwise.
pub(crate) struct Mosquitto {
    /// The process and where it listens.
    pub(crate) server: Server,
}

impl Mosquitto {
    /// Starts a broker whose configuration ends with these lines.
    ///
    /// They come after the listener's, so they may also give it certificates or a password file.
    pub(crate) fn start(extra_configuration: &str) -> Self {
        let mut server = Server::new("mosquitto");
        let (port, directory) = (server.port(), server.directory());
        // Started by root it would become another user, who may not write here.
        let configuration = format!(
            "user root\npersistence true\npersistence_location {}/\nlistener {port} 127.0.0.1\nallow_anonymous true\n\
             {extra_configuration}\n",
            directory.display()
        );
        let file = directory.join("mosquitto.conf");
        fs::write(&file, configuration).expect("the test's directory is writable");
        server.arguments = vec!["-c".into(), file.display().to_string()];
        server.start();
        Self { server }
    }

    /// Returns the URL to connect to.
    pub(crate) fn url(&self) -> String {
        format!("mqtt://{}", self.server.address())
    }

    /// Returns what the program says of its version.
    pub(crate) fn version() -> String {
        first_line(Command::new(find_program("mosquitto")).arg("-h"))
    }
}

/// A VictoriaMetrics that keeps points of any age, and of several for one series and millisecond only the last.
pub(crate) struct VictoriaMetrics {
    /// The process and where it listens.
    pub(crate) server: Server,
}

/// One sample as VictoriaMetrics keeps it: the metric's name is `{measurement}_{field}`.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Sample {
    /// The metric's name.
    pub(crate) name: String,
    /// All other labels, which are the tags.
    pub(crate) labels: BTreeMap<String, String>,
    /// The instant in milliseconds since 1970.
    pub(crate) time_ms: i64,
    /// The value; booleans are 0 and 1.
    pub(crate) value: f64,
}

impl VictoriaMetrics {
    /// Starts an empty database.
    pub(crate) fn start() -> Self {
        let mut server = Server::new("victoria-metrics");
        server.arguments = vec![
            format!("-httpListenAddr={}", server.address()),
            format!("-storageDataPath={}", server.directory().join("data").display()),
            "-retentionPeriod=100y".into(),
            "-dedup.minScrapeInterval=1ms".into(),
        ];
        server.ready_path = Some("/health");
        server.start();
        Self { server }
    }

    /// Returns the base URL.
    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.server.address())
    }

    /// Returns every sample of the metrics that this selector matches (`{operator="op1"}`), in no particular order.
    pub(crate) fn samples(&self, selector: &str) -> Vec<Sample> {
        // What was written a moment ago is shown to queries only after a flush.
        http(self.server.address(), "GET", "/internal/force_flush", &[], b"").expect_status(200);
        let path = format!("/api/v1/export?start=0&match[]={}", percent_encoded(selector));
        let answer = http(self.server.address(), "GET", &path, &[], b"").expect_status(200);
        answer.lines().flat_map(samples_of_line).collect()
    }

    /// Returns what the program says of its version.
    pub(crate) fn version() -> String {
        let program = find_program("victoria-metrics");
        match first_line(Command::new(program).arg("--version")) {
            // Debian's knows of no version: its package does.
            none if none.is_empty() => {
                first_line(Command::new("dpkg-query").args(["-W", "-f", "${Package} ${Version}", "victoria-metrics"]))
            }
            version => version,
        }
    }
}

fn samples_of_line(line: &str) -> Vec<Sample> {
    let series: Value = serde_json::from_str(line).expect("the export is JSON lines");
    let mut labels: BTreeMap<String, String> =
        serde_json::from_value(series["metric"].clone()).expect("labels are strings");
    let name = labels.remove("__name__").expect("every metric has a name");
    let times_ms = series["timestamps"].as_array().expect("a series has timestamps").iter();
    let values = series["values"].as_array().expect("a series has values").iter();
    iter::zip(times_ms, values)
        .map(|(time_ms, value)| Sample {
            name: name.clone(),
            labels: labels.clone(),
            time_ms: time_ms.as_i64().expect("a timestamp is an integer"),
            value: value.as_f64().expect("a value is a number"),
        })
        .collect()
}

/// An InfluxDB 2 that has been set up with one organization, one bucket without expiry, and one token for everything.
pub(crate) struct Influx {
    /// The process and where it listens.
    pub(crate) server: Server,
}

/// One row of a Flux answer: column name to value as text.
pub(crate) type FluxRow = BTreeMap<String, String>;

impl Influx {
    /// The organization's name.
    pub(crate) const ORG: &str = "frostline";
    /// The bucket's name.
    pub(crate) const BUCKET: &str = "coldchain";
    /// The token that may do everything.
    pub(crate) const TOKEN: &str = "a-token-for-tests-only";

    /// Starts an empty database and sets it up.
    pub(crate) fn start() -> Self {
        let mut server = Server::new("influxd");
        let directory = server.directory();
        server.arguments = vec![
            format!("--http-bind-address={}", server.address()),
            format!("--bolt-path={}", directory.join("influxd.bolt").display()),
            format!("--sqlite-path={}", directory.join("influxd.sqlite").display()),
            format!("--engine-path={}", directory.join("engine").display()),
            "--reporting-disabled".into(),
        ];
        server.ready_path = Some("/health");
        server.start();
        let influx = Self { server };
        let setup = json!({
            "username": "tester",
            "password": "a-password-for-tests-only",
            "org": Self::ORG,
            "bucket": Self::BUCKET,
            "token": Self::TOKEN,
        });
        influx.request("POST", "/api/v2/setup", "application/json", setup.to_string().as_bytes()).expect_status(201);
        influx
    }

    /// Returns the base URL.
    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.server.address())
    }

    /// Sends a request with the token.
    pub(crate) fn request(&self, method: &str, path: &str, content_type: &str, body: &[u8]) -> Response {
        let token = format!("Token {}", Self::TOKEN);
        let headers = [("Authorization", token.as_str()), ("Content-Type", content_type), ("Accept", "*/*")];
        http(self.server.address(), method, path, &headers, body)
    }

    /// Returns the rows of all tables that a Flux query answers.
    pub(crate) fn query(&self, flux: &str) -> Vec<FluxRow> {
        let path = format!("/api/v2/query?org={}", Self::ORG);
        let answer = self.request("POST", &path, "application/vnd.flux", flux.as_bytes()).expect_status(200);
        // Tables that differ in their columns come one after the other, an empty line between, each with a header.
        answer.split("\r\n\r\n").filter(|table| !table.trim().is_empty()).flat_map(rows_of_table).collect()
    }

    /// Returns every point of a measurement, one row for each field of each (`_time`, `_field`, `_value` and the tags).
    pub(crate) fn points(&self, measurement: &str) -> Vec<FluxRow> {
        self.query(&format!(
            r#"from(bucket: "{}") |> range(start: 1970-01-01T00:00:00Z, stop: 2200-01-01T00:00:00Z)
               |> filter(fn: (r) => r._measurement == "{measurement}")"#,
            Self::BUCKET
        ))
    }

    /// Returns what the program says of its version.
    pub(crate) fn version() -> String {
        first_line(Command::new(find_program("influxd")).arg("version"))
    }
}

fn rows_of_table(table: &str) -> Vec<FluxRow> {
    let mut reader = csv::Reader::from_reader(table.as_bytes());
    reader.deserialize().map(|row| row.expect("the answer is CSV")).collect()
}

/// A child process that serves one port out of one directory.
pub(crate) struct Server {
    name: &'static str,
    program: PathBuf,
    arguments: Vec<String>,
    /// Answered with 200 once the server works; without it a server works once it takes connections.
    ready_path: Option<&'static str>,
    port: Port,
    directory: TempDir,
    child: Option<Child>,
}

impl Server {
    fn new(name: &'static str) -> Self {
        Self {
            name,
            program: find_program(name),
            arguments: Vec::new(),
            ready_path: None,
            port: Port::reserve(),
            directory: tempfile::Builder::new().prefix(name).tempdir().expect("a temporary directory can be made"),
            child: None,
        }
    }

    /// Returns where the server listens, also while it is down.
    pub(crate) fn address(&self) -> SocketAddr {
        SocketAddr::from((Ipv4Addr::LOCALHOST, self.port()))
    }

    /// Returns the port that the server listens on, also while it is down.
    pub(crate) fn port(&self) -> u16 {
        self.port.number
    }

    /// Returns the directory that holds the server's data and its log.
    pub(crate) fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// Returns all that the server has logged, over all its starts.
    pub(crate) fn log(&self) -> String {
        String::from_utf8_lossy(&fs::read(self.log_path()).unwrap_or_default()).into_owned()
    }

    /// Starts the server, again on the same port and data, and waits until it works.
    pub(crate) fn start(&mut self) {
        assert!(self.child.is_none(), "{} runs already", self.name);
        let log = File::options().create(true).append(true).open(self.log_path()).expect("the log can be opened");
        let child = Command::new(&self.program)
            .args(&self.arguments)
            .current_dir(self.directory())
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("the log can be shared"))
            .stderr(log)
            .spawn()
            .unwrap_or_else(|error| panic!("cannot start {}: {error}", self.program.display()));
        self.child = Some(child);
        wait_until(&format!("{} works", self.name), || {
            let exited = self.child.as_mut().expect("it was just started").try_wait().expect("it is our child");
            assert!(exited.is_none(), "{} ended while starting: {exited:?}", self.name);
            self.works()
        });
    }

    /// Stops the server with SIGTERM and waits for its end.
    pub(crate) fn stop(&mut self) {
        self.signal("TERM");
        let mut child = self.child.take().expect("a signalled server has a process");
        wait_until(&format!("{} stops", self.name), || child.try_wait().expect("it is our child").is_some());
    }

    /// Ends the server at once, with SIGKILL.
    pub(crate) fn kill(&mut self) {
        let mut child = self.child.take().expect("only a running server can be killed");
        child.kill().expect("a child that was not waited for can be killed");
        child.wait().expect("it is our child");
    }

    /// Sends a signal by name; `STOP` and `CONT` make a server that answers late.
    pub(crate) fn signal(&self, signal: &str) {
        let pid = self.child.as_ref().expect("only a running server takes signals").id();
        // The shell's own `kill`: the standard library sends no signal but SIGKILL.
        let status = Command::new("sh").arg("-c").arg(format!("kill -s {signal} {pid}")).status();
        assert!(status.is_ok_and(|status| status.success()), "cannot send SIG{signal} to {}", self.name);
    }

    fn works(&self) -> bool {
        match self.ready_path {
            None => TcpStream::connect(self.address()).is_ok(),
            Some(path) => try_http(self.address(), "GET", path, &[], b"").is_ok_and(|response| response.status == 200),
        }
    }

    fn log_path(&self) -> PathBuf {
        self.directory().join("log")
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            // It may have ended by itself; either way it is gone afterwards.
            child.kill().ok();
            child.wait().ok();
        }
        if thread::panicking() {
            let log = self.log();
            let lines: Vec<&str> = log.lines().collect();
            let end = &lines[lines.len().saturating_sub(LOG_LINES_SHOWN)..];
            eprintln!("--- the end of the log of {}:\n{}\n---", self.name, end.join("\n"));
        }
    }
}

/// A port that no other test takes while this value lives, so that a server that is down finds it free again.
struct Port {
    number: u16,
    /// Locked for as long as the port is ours; the system unlocks it when the process ends.
    _lock: File,
}

impl Port {
    /// Below the range that the system takes for outgoing connections, which could sit on the port of a stopped server.
    const RANGE: std::ops::Range<u16> = 20_000..32_000;

    fn reserve() -> Self {
        // Outside the build, so that tests of two clones do not meet either.
        let directory = cache_folder().join("ports");
        fs::create_dir_all(&directory).expect("the cache is writable");
        Self::RANGE
            .filter_map(|number| {
                let path = directory.join(number.to_string());
                let lock = File::options().create(true).append(true).open(path).ok()?;
                lock.try_lock().ok()?;
                // Somebody who knows nothing of our locks may have it.
                TcpListener::bind((Ipv4Addr::LOCALHOST, number)).ok()?;
                Some(Self { number, _lock: lock })
            })
            .next()
            .expect("one of the ports is free")
    }
}

/// Waits until the condition holds, and panics where it takes too long.
pub(crate) fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < deadline, "waited in vain: {what}");
        thread::sleep(Duration::from_millis(5));
    }
}

/// What an HTTP server answered.
#[derive(Debug)]
pub(crate) struct Response {
    /// The status code.
    pub(crate) status: u16,
    /// The body as text.
    pub(crate) body: String,
}

impl Response {
    /// Returns the body, and panics where the status is another.
    pub(crate) fn expect_status(self, status: u16) -> String {
        assert_eq!(self.status, status, "{}", self.body);
        self.body
    }
}

/// Sends one HTTP request and returns the answer; panics where none comes.
pub(crate) fn http(address: SocketAddr, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Response {
    try_http(address, method, path, headers, body).unwrap_or_else(|error| panic!("{method} {path}: {error}"))
}

/// Sends one HTTP request and returns the answer.
///
/// It speaks HTTP/1.0, where the answer is simply all that comes until the server closes.
pub(crate) fn try_http(
    address: SocketAddr,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: &[u8],
) -> std::io::Result<Response> {
    let mut request = format!("{method} {path} HTTP/1.0\r\nHost: {address}\r\nContent-Length: {}\r\n", body.len());
    for (name, value) in headers {
        request += &format!("{name}: {value}\r\n");
    }
    request += "\r\n";
    let mut connection = TcpStream::connect(address)?;
    connection.set_read_timeout(Some(PATIENCE))?;
    connection.write_all(request.as_bytes())?;
    connection.write_all(body)?;
    let mut answer = Vec::new();
    connection.read_to_end(&mut answer)?;

    let answer = String::from_utf8_lossy(&answer);
    let status = answer.split(' ').nth(1).and_then(|status| status.parse().ok());
    match (status, answer.split_once("\r\n\r\n")) {
        (Some(status), Some((_, body))) => Ok(Response { status, body: body.to_owned() }),
        _ => Err(std::io::Error::other(format!("no HTTP answer but {answer:?}"))),
    }
}

fn percent_encoded(text: &str) -> String {
    text.bytes().map(|byte| format!("%{byte:02X}")).collect()
}

fn find_program(name: &str) -> PathBuf {
    let mut folders: Vec<PathBuf> = env::split_paths(&env::var_os("PATH").unwrap_or_default()).collect();
    folders.push("/usr/sbin".into());
    folders.push(cache_folder().join("bin"));
    let found = folders.iter().map(|folder| folder.join(name)).find(|path| path.is_file());
    found.unwrap_or_else(|| panic!("no {name} here: run tests/servers/get first"))
}

/// Returns the folder that `tests/servers/get` builds into.
fn cache_folder() -> PathBuf {
    let set = |name: &str| env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    set("FROSTLINE_CACHE")
        .or_else(|| Some(set("XDG_CACHE_HOME")?.join("frostline")))
        .or_else(|| Some(set("HOME")?.join(".cache/frostline")))
        .expect("HOME is set")
}

fn first_line(command: &mut Command) -> String {
    let output = command.output().unwrap_or_else(|error| panic!("cannot run {command:?}: {error}"));
    let text = String::from_utf8_lossy(if output.stdout.is_empty() { &output.stderr } else { &output.stdout });
    text.lines().next().unwrap_or_default().to_owned()
}
