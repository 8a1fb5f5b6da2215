//! `frostline.toml`: the settings of the daemon itself.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::problem::Problem;
use super::secret::Secret;
use super::units::{parse_duration_ms, parse_size};

/// Settings as checked and ready for use; see [`Shape`] for the file.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Where the journal, the ledger and the history live.
    pub data_dir: PathBuf,
    /// The broker.
    pub mqtt: MqttConfig,
    /// What moves the rules' *now*.
    pub clock: ClockSource,
    /// What is taken in.
    pub ingest: IngestSettings,
    /// How long a provisional conclusion waits before it is told, in milliseconds.
    pub settle_ms: i64,
    /// The journal's quota in bytes; at it the source stops acknowledging.
    pub journal_max_size_bytes: u64,
    /// How long journal segments stay after every consumer has passed them, in milliseconds.
    pub journal_retention_ms: i64,
    /// How long readings stay in the history, in milliseconds.
    pub history_retention_ms: i64,
    /// How many bytes of dead letters are kept.
    pub dead_letters_max_size_bytes: u64,
    /// The series database beside the history, if any.
    pub influxdb2: Option<InfluxDb2Settings>,
    /// Where the HTTP interface listens.
    pub http_listen: SocketAddr,
}

/// How to reach the broker.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MqttConfig {
    /// `mqtt://host[:1883]` or `mqtts://host[:8883]`.
    pub url: String,
    /// Which MQTT is spoken.
    pub version: MqttVersion,
    /// Names the session at the broker: it must be stable, and no other client's.
    pub client_id: String,
    /// User name, where the broker asks for one.
    pub username: Option<String>,
    /// Password, from `password_file` or the environment.
    pub password: Option<Secret>,
    /// PEM: who may sign the broker's certificate; without it, the machine's own roots.
    pub ca_file: Option<PathBuf>,
    /// PEM: our certificate and those between it and its root.
    pub client_cert_file: Option<PathBuf>,
    /// PEM: the key of our certificate.
    pub client_key_file: Option<PathBuf>,
}

/// Which MQTT is spoken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum MqttVersion {
    /// 3.1.1
    V4,
    /// 5
    #[default]
    V5,
}

/// What the rules take for *now*.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ClockSource {
    /// The machine's clock, as journaled.
    System,
    /// The largest event time accepted: for simulated and replayed fleets at any speed.
    Readings,
}

/// What is taken in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IngestSettings {
    /// Whether units that are not in `fleet.toml` are dead-lettered as `unregistered`.
    pub refuse_unknown_units: bool,
    /// How far ahead of its arrival a reading may be, in milliseconds.
    pub max_clock_skew_ms: i64,
    /// How far behind its arrival a reading may be, in milliseconds.
    pub max_age_ms: i64,
}

/// How to reach InfluxDB 2, or what takes its line protocol.
#[derive(Debug, Clone)]
pub struct InfluxDb2Settings {
    /// Base address, `http://host:port`.
    pub url: String,
    /// Organisation.
    pub org: String,
    /// Bucket.
    pub bucket: String,
    /// API token, from `token_file` or the environment.
    pub token: Secret,
    /// How long after a write it counts as safe, in milliseconds.
    pub confirm_after_ms: i64,
}

/// The file as written; every key may be absent.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Shape {
    data_dir: Option<String>,
    mqtt: MqttShape,
    clock: ClockShape,
    ingest: IngestShape,
    rules: RulesShape,
    journal: JournalShape,
    history: HistoryShape,
    dead_letters: DeadLettersShape,
    series: SeriesShape,
    http: HttpShape,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct MqttShape {
    url: Option<String>,
    version: Option<u8>,
    client_id: Option<String>,
    username: Option<String>,
    /// From the environment only; a file names `password_file`.
    password: Option<String>,
    password_file: Option<String>,
    ca_file: Option<String>,
    client_cert_file: Option<String>,
    client_key_file: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct ClockShape {
    source: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct IngestShape {
    unknown_units: Option<String>,
    max_clock_skew: Option<String>,
    max_age: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct RulesShape {
    settle: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct JournalShape {
    max_size: Option<String>,
    retention: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct HistoryShape {
    retention: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct DeadLettersShape {
    max_size: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct SeriesShape {
    store: Option<String>,
    influxdb2: InfluxDb2Shape,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct InfluxDb2Shape {
    url: Option<String>,
    org: Option<String>,
    bucket: Option<String>,
    /// From the environment only; a file names `token_file`.
    token: Option<String>,
    token_file: Option<String>,
    confirm_after: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct HttpShape {
    listen: Option<String>,
}

/// The prefix of environment variables: `FROSTLINE__MQTT__URL` sets `mqtt.url`.
const ENVIRONMENT_PREFIX: &str = "FROSTLINE__";

/// Reads `frostline.toml` in `dir` (it may be absent), lays `environment` over it and checks everything.
pub(super) fn load(dir: &Path, environment: &[(String, String)], problems: &mut Vec<Problem>) -> Option<Settings> {
    let path = dir.join("frostline.toml");
    let text = match std::fs::read_to_string(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => String::new(),
        Err(error) => {
            problems.push(Problem::at(&path, "", None, "", format!("cannot be read: {error}")));
            return None;
        }
    };
    // Keys and types are looked at here, where every one has a line; the layering below would lose it.
    let before = problems.len();
    let usable = usable_part(&path, &text, problems)?;
    let shape = layer(&path, &usable, environment, problems)?;
    let mut check = Check { path: &path, text: &text, environment, problems };
    let settings = check.settings(shape);
    settings.filter(|_| problems.len() == before)
}

/// Every key of the file; all but one hold texts.
const KEYS: [&str; 27] = [
    "data_dir",
    "mqtt.url",
    VERSION_KEY,
    "mqtt.client_id",
    "mqtt.username",
    "mqtt.password",
    "mqtt.password_file",
    "mqtt.ca_file",
    "mqtt.client_cert_file",
    "mqtt.client_key_file",
    "clock.source",
    "ingest.unknown_units",
    "ingest.max_clock_skew",
    "ingest.max_age",
    "rules.settle",
    "journal.max_size",
    "journal.retention",
    "history.retention",
    "dead_letters.max_size",
    "series.store",
    "series.influxdb2.url",
    "series.influxdb2.org",
    "series.influxdb2.bucket",
    "series.influxdb2.token",
    "series.influxdb2.token_file",
    "series.influxdb2.confirm_after",
    "http.listen",
];
/// The key that holds a number.
const VERSION_KEY: &str = "mqtt.version";
/// What comes from a `…_file` or the environment only.
const SECRETS: [&str; 2] = ["mqtt.password", "series.influxdb2.token"];

/// Notes every key that is unknown, of the wrong type or a secret, and returns the file without them.
fn usable_part(path: &Path, text: &str, problems: &mut Vec<Problem>) -> Option<String> {
    let document = match toml::de::DeTable::parse(text) {
        Ok(document) => document,
        Err(error) => {
            problems.push(Problem::from_toml(path, text, &error));
            return None;
        }
    };
    let mut usable: toml::Table = text.parse().expect("it was parsed just now");
    let mut tables = vec![(String::new(), document.get_ref())];
    while let Some((prefix, table)) = tables.pop() {
        for (key, value) in table.iter() {
            let dotted = format!("{prefix}{}", key.get_ref());
            let below = format!("{dotted}.");
            let is_section = KEYS.iter().any(|known| known.starts_with(&below));
            let value = value.get_ref();
            let wrong = if is_section {
                match value.as_table() {
                    Some(table) => {
                        tables.push((below, table));
                        continue;
                    }
                    None => format!("expected a table, found {}", value.type_str()),
                }
            } else if SECRETS.contains(&&*dotted) {
                format!("a secret does not belong in this file; name a file with `{dotted}_file`")
            } else if !KEYS.contains(&&*dotted) {
                let known = KEYS
                    .iter()
                    .filter_map(|known| known.strip_prefix(&*prefix))
                    .map(|known| known.split_once('.').map_or(known, |(section, _)| section));
                let known: std::collections::BTreeSet<&str> = known.collect();
                format!("unknown key; expected one of {}", Vec::from_iter(known).join(", "))
            } else if dotted == VERSION_KEY {
                if value.type_str() == "integer" {
                    continue;
                }
                format!("expected 5 or 4, found {}", value.type_str())
            } else if value.as_str().is_none() {
                format!("expected a text in quotes, found {}", value.type_str())
            } else {
                continue;
            };
            problems.push(Problem::at(path, text, Some(key.span()), &dotted, wrong));
            remove(&mut usable, &dotted);
        }
    }
    Some(toml::to_string(&usable).expect("a table that was parsed can be written"))
}

fn remove(table: &mut toml::Table, dotted: &str) {
    match dotted.split_once('.') {
        None => {
            table.remove(dotted);
        }
        Some((section, rest)) => {
            if let Some(section) = table.get_mut(section).and_then(toml::Value::as_table_mut) {
                remove(section, rest);
            }
        }
    }
}

fn layer(path: &Path, text: &str, environment: &[(String, String)], problems: &mut Vec<Problem>) -> Option<Shape> {
    let ours = environment.iter().filter(|(name, _)| name.starts_with(ENVIRONMENT_PREFIX)).cloned().collect();
    // Never `try_parsing`: it would turn the password `0012` into the number 12.
    let variables = config::Environment::with_prefix("FROSTLINE")
        .prefix_separator("__")
        .separator("__")
        .ignore_empty(false)
        .source(Some(ours));
    let layered = config::Config::builder()
        .add_source(config::File::from_str(text, config::FileFormat::Toml))
        .add_source(variables)
        .build()
        .and_then(config::Config::try_deserialize::<Shape>);
    match layered {
        Ok(shape) => Some(shape),
        Err(error) => {
            // The file alone was fine, so it is the environment that does not fit.
            let message =
                format!("{error} (set through a variable `{ENVIRONMENT_PREFIX}…`; see also {})", path.display());
            problems.push(Problem::at(Path::new("environment"), "", None, "", message));
            None
        }
    }
}

/// Returns where `dotted` stands in the file, if it does.
fn span_of_key(text: &str, dotted: &str) -> Option<std::ops::Range<usize>> {
    let table = toml::de::DeTable::parse(text).ok()?;
    let mut table = table.get_ref();
    let mut parts = dotted.split('.').peekable();
    while let Some(part) = parts.next() {
        let (key, value) = table.iter().find(|(key, _)| key.get_ref() == part)?;
        if parts.peek().is_none() {
            return Some(key.span());
        }
        table = value.get_ref().as_table()?;
    }
    None
}

/// Turns the file's texts into settings and notes every problem on the way.
struct Check<'a> {
    path: &'a Path,
    text: &'a str,
    environment: &'a [(String, String)],
    problems: &'a mut Vec<Problem>,
}

impl Check<'_> {
    fn settings(&mut self, shape: Shape) -> Option<Settings> {
        let before = self.problems.len();
        let max_age_ms = self.duration("ingest.max_age", shape.ingest.max_age, "400d");
        let history_retention_ms = match shape.history.retention {
            None => max_age_ms,
            given => self.duration("history.retention", given, "400d"),
        };
        if history_retention_ms < max_age_ms {
            self.problem(
                "history.retention",
                "must not be shorter than ingest.max_age, or late readings could not be judged",
            );
        }
        let settings = Settings {
            data_dir: shape.data_dir.unwrap_or_else(|| "data".to_owned()).into(),
            clock: match shape.clock.source.as_deref() {
                None | Some("system") => ClockSource::System,
                Some("readings") => ClockSource::Readings,
                Some(other) => {
                    self.problem("clock.source", format!("expected `system` or `readings`, found `{other}`"));
                    ClockSource::System
                }
            },
            ingest: IngestSettings {
                refuse_unknown_units: match shape.ingest.unknown_units.as_deref() {
                    None | Some("accept") => false,
                    Some("refuse") => true,
                    Some(other) => {
                        self.problem("ingest.unknown_units", format!("expected `accept` or `refuse`, found `{other}`"));
                        false
                    }
                },
                max_clock_skew_ms: self.duration("ingest.max_clock_skew", shape.ingest.max_clock_skew, "5m"),
                max_age_ms,
            },
            settle_ms: self.duration("rules.settle", shape.rules.settle, "10s"),
            journal_max_size_bytes: self.size("journal.max_size", shape.journal.max_size, "8GiB"),
            journal_retention_ms: self.duration("journal.retention", shape.journal.retention, "24h"),
            history_retention_ms,
            dead_letters_max_size_bytes: self.size("dead_letters.max_size", shape.dead_letters.max_size, "256MiB"),
            influxdb2: self.influxdb2(shape.series),
            http_listen: self.listen(shape.http.listen),
            mqtt: self.mqtt(shape.mqtt),
        };
        (self.problems.len() == before).then_some(settings)
    }

    fn mqtt(&mut self, shape: MqttShape) -> MqttConfig {
        let url = shape.url.unwrap_or_else(|| "mqtt://127.0.0.1:1883".to_owned());
        let host = url.strip_prefix("mqtt://").or_else(|| url.strip_prefix("mqtts://"));
        if host.is_none_or(|host| host.trim_end_matches('/').is_empty()) {
            self.problem("mqtt.url", format!("expected mqtt://host[:port] or mqtts://host[:port], found `{url}`"));
        }
        let version = match shape.version {
            None | Some(5) => MqttVersion::V5,
            Some(4) => MqttVersion::V4,
            Some(other) => {
                self.problem("mqtt.version", format!("expected 5, or 4 for MQTT 3.1.1, found {other}"));
                MqttVersion::V5
            }
        };
        if shape.client_cert_file.is_some() != shape.client_key_file.is_some() {
            self.problem("mqtt.client_cert_file", "client_cert_file and client_key_file go together");
        }
        let client_id = shape.client_id.unwrap_or_else(|| "frostline".to_owned());
        if client_id.is_empty() {
            self.problem("mqtt.client_id", "must not be empty: the broker keeps the session under this name");
        }
        MqttConfig {
            url,
            version,
            client_id,
            username: shape.username,
            password: self.secret("mqtt.password", shape.password, shape.password_file),
            ca_file: shape.ca_file.map(PathBuf::from),
            client_cert_file: shape.client_cert_file.map(PathBuf::from),
            client_key_file: shape.client_key_file.map(PathBuf::from),
        }
    }

    fn influxdb2(&mut self, shape: SeriesShape) -> Option<InfluxDb2Settings> {
        match shape.store.as_deref() {
            None | Some("embedded") => return None,
            Some("influxdb2") => {}
            Some(other) => {
                self.problem("series.store", format!("expected `embedded` or `influxdb2`, found `{other}`"));
                return None;
            }
        }
        let influx = shape.influxdb2;
        let url = self.required("series.influxdb2.url", influx.url);
        if !url.is_empty() && !url.starts_with("http://") && !url.starts_with("https://") {
            self.problem(
                "series.influxdb2.url",
                format!("expected http://host:port or https://host:port, found `{url}`"),
            );
        }
        Some(InfluxDb2Settings {
            url,
            org: self.required("series.influxdb2.org", influx.org),
            bucket: self.required("series.influxdb2.bucket", influx.bucket),
            // VictoriaMetrics asks for no token.
            token: self
                .secret("series.influxdb2.token", influx.token, influx.token_file)
                .unwrap_or_else(|| Secret::new("")),
            confirm_after_ms: self.duration("series.influxdb2.confirm_after", influx.confirm_after, "30s"),
        })
    }

    fn listen(&mut self, listen: Option<String>) -> SocketAddr {
        let listen = listen.unwrap_or_else(|| "127.0.0.1:8080".to_owned());
        listen.parse().unwrap_or_else(|_| {
            self.problem(
                "http.listen",
                format!("expected an address and a port such as 127.0.0.1:8080, found `{listen}`"),
            );
            SocketAddr::from(([127, 0, 0, 1], 8080))
        })
    }

    fn required(&mut self, key: &str, value: Option<String>) -> String {
        value.filter(|value| !value.is_empty()).unwrap_or_else(|| {
            self.problem(key, "is needed where series.store is `influxdb2`");
            String::new()
        })
    }

    fn secret(&mut self, key: &str, value: Option<String>, file: Option<String>) -> Option<Secret> {
        match (value, file) {
            (Some(value), _) => Some(Secret::new(value)),
            (None, Some(file)) => match std::fs::read_to_string(&file) {
                Ok(content) => Some(Secret::new(content.trim_end_matches(['\r', '\n']).to_owned())),
                Err(error) => {
                    self.problem(&format!("{key}_file"), format!("`{file}` cannot be read: {error}"));
                    None
                }
            },
            (None, None) => None,
        }
    }

    fn duration(&mut self, key: &str, value: Option<String>, default: &str) -> i64 {
        parse_duration_ms(value.as_deref().unwrap_or(default)).unwrap_or_else(|message| {
            self.problem(key, message);
            0
        })
    }

    fn size(&mut self, key: &str, value: Option<String>, default: &str) -> u64 {
        parse_size(value.as_deref().unwrap_or(default)).unwrap_or_else(|message| {
            self.problem(key, message);
            0
        })
    }

    fn problem(&mut self, key: &str, message: impl Into<String>) {
        let variable = format!("{ENVIRONMENT_PREFIX}{}", key.to_uppercase().replace('.', "__"));
        let problem = if self.environment.iter().any(|(name, _)| *name == variable) {
            Problem::at(Path::new("environment"), "", None, &variable, message)
        } else {
            Problem::at(self.path, self.text, span_of_key(self.text, key), key, message)
        };
        self.problems.push(problem);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load_text(text: &str, environment: &[(&str, &str)]) -> (Option<Settings>, Vec<Problem>) {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("frostline.toml"), text).unwrap();
        let environment: Vec<_> =
            environment.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        let mut problems = Vec::new();
        (load(dir.path(), &environment, &mut problems), problems)
    }

    #[test]
    fn every_problem_of_the_file_is_named_with_its_line_and_key() {
        let text = "foo = 1\n[mqtt]\nurll = \"a\"\nversion = \"5\"\npassword = \"x\"\n[http]\nlisten = \"nope\"\n\
                    [clock]\nsource = \"sys\"\n[series]\nfoo = 1\n[journal]\nretention = 5\n";
        let (settings, problems) = load_text(text, &[]);
        assert!(settings.is_none());
        let mut found: Vec<(usize, &str)> =
            problems.iter().map(|problem| (problem.line.unwrap(), problem.key.as_str())).collect();
        found.sort_unstable();
        let expected = [
            (1, "foo"),
            (3, "mqtt.urll"),
            (4, "mqtt.version"),
            (5, "mqtt.password"),
            (7, "http.listen"),
            (9, "clock.source"),
            (11, "series.foo"),
            (13, "journal.retention"),
        ];
        assert_eq!(found, expected);
    }

    #[test]
    fn the_environment_wins_and_is_never_re_typed() {
        let (settings, problems) = load_text(
            "[mqtt]\nurl = \"mqtt://file\"\n",
            &[
                ("FROSTLINE__MQTT__URL", "mqtt://environment"),
                ("FROSTLINE__MQTT__PASSWORD", "0012"),
                ("FROSTLINE__MQTT__VERSION", "4"),
                ("FROSTLINE_PORT", "tcp://somebody.else"),
            ],
        );
        assert_eq!(problems, []);
        let mqtt = settings.unwrap().mqtt;
        assert_eq!((mqtt.url.as_str(), mqtt.version), ("mqtt://environment", MqttVersion::V4));
        assert_eq!(mqtt.password.unwrap().expose(), "0012");
        let (settings, problems) = load_text("", &[("FROSTLINE__MQTT__URL", "http://x")]);
        assert!(settings.is_none());
        assert_eq!(problems[0].key, "FROSTLINE__MQTT__URL");
    }
}
