//! The configuration: one file per section; serde shapes, validation, conversion into core types.
//!
//! A directory of TOML files becomes two things: [`Settings`], which say how the daemon runs on this machine, and a
//! [`Bundle`], the texts that decide what a message means. The bundle is journaled whole where it takes effect, so
//! that every entry behind it is judged by it, also after a restart with other files.

pub(crate) mod fleet;
mod problem;
mod profiles;
mod routes;
mod rules;
mod secret;
pub(crate) mod section;
mod settings;
mod units;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use frostline_core::codec::Route;
use frostline_core::model::Registry;
use frostline_core::rules::Rule;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

pub use problem::{Problem, line_of};
pub(crate) use rules::one_of;
pub use secret::Secret;
pub use settings::{ClockSource, InfluxDb2Settings, IngestSettings, MqttConfig, MqttVersion, Settings};
pub use units::{parse_duration_ms, parse_size};

/// Where the configuration is looked for where nothing is said; it may be absent.
pub const DEFAULT_DIR: &str = "config";

/// The texts that decide what a message means, and the few settings that do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bundle {
    /// `system` or `readings`.
    clock: String,
    refuse_unknown_units: bool,
    max_clock_skew_ms: i64,
    max_age_ms: i64,
    settle_ms: i64,
    /// The files by their path within the configuration directory.
    files: BTreeMap<String, String>,
}

/// What a [`Bundle`] says, checked and ready for use.
#[derive(Debug)]
pub struct Judgement {
    /// Which topics are taken, and how they are read.
    pub routes: Vec<Route>,
    /// The rules.
    pub rules: Arc<[Arc<Rule>]>,
    /// Operators, units, sensors, consignments and profiles.
    pub registry: Arc<Registry>,
    /// What moves the rules' *now*.
    pub clock: ClockSource,
    /// What is taken in.
    pub ingest: IngestSettings,
    /// How long a provisional conclusion waits before it is told, in milliseconds.
    pub settle_ms: i64,
}

/// A configuration directory as loaded.
#[derive(Debug)]
pub struct Loaded {
    /// How the daemon runs on this machine.
    pub settings: Settings,
    /// What is journaled.
    pub bundle: Bundle,
    /// What the bundle says.
    pub judgement: Judgement,
}

/// Loads every file of the configuration in `dir` with this process's environment.
///
/// # Errors
/// Every problem found, not only the first.
pub fn load(dir: &Path) -> Result<Loaded, Vec<Problem>> {
    load_with_environment(dir, &std::env::vars().collect::<Vec<_>>())
}

/// Loads every file of the configuration in `dir` with the given environment variables.
///
/// # Errors
/// Every problem found, not only the first.
pub fn load_with_environment(dir: &Path, environment: &[(String, String)]) -> Result<Loaded, Vec<Problem>> {
    let mut problems = Vec::new();
    let settings = settings::load(dir, environment, &mut problems);
    let files = read_files(dir, &mut problems);
    let bundle = Bundle::new(settings.as_ref(), files);
    let judgement = bundle.judge(dir, &mut problems);
    problems.sort_by(|a, b| (&a.file, a.line).cmp(&(&b.file, b.line)));
    match (settings, problems.is_empty()) {
        (Some(settings), true) => Ok(Loaded { settings, bundle, judgement }),
        _ => Err(problems),
    }
}

/// Loads what readings are judged by, for a command that judges without a daemon; the rules of `rules_file`, if given,
/// stand in for the configured ones.
///
/// # Errors
/// Every problem found, not only the first.
pub fn load_judgement(dir: &Path, rules_file: Option<&Path>) -> Result<Judgement, Vec<Problem>> {
    let mut problems = Vec::new();
    let settings = settings::load(dir, &std::env::vars().collect::<Vec<_>>(), &mut problems);
    let mut files = read_files(dir, &mut problems);
    if rules_file.is_some() {
        files.retain(|name, _| name != "rules.toml" && !name.starts_with("rules/"));
    }
    let mut judgement = Bundle::new(settings.as_ref(), files).judge(dir, &mut problems);
    if let Some(file) = rules_file {
        match std::fs::read_to_string(file) {
            Ok(text) => {
                let files = [(file.to_owned(), text.as_str())];
                let rules = rules::parse(&files, &mut problems);
                rules::check_against_profiles(&files, &rules, &judgement.registry, &mut problems);
                judgement.rules = rules.into();
            }
            Err(error) => problems.push(unreadable(file, &error)),
        }
    }
    if problems.is_empty() { Ok(judgement) } else { Err(problems) }
}

impl Bundle {
    /// Gathers what decides what a message means; without settings the defaults stand in, to find more problems.
    fn new(settings: Option<&Settings>, mut files: BTreeMap<String, String>) -> Self {
        // As text, so that a later version of the program with other profiles judges the past as it was judged.
        files.entry("profiles.toml".to_owned()).or_insert_with(|| profiles::SHIPPED.to_owned());
        Self {
            clock: match settings.map(|settings| settings.clock) {
                Some(ClockSource::Readings) => "readings".to_owned(),
                Some(ClockSource::System) | None => "system".to_owned(),
            },
            refuse_unknown_units: settings.is_some_and(|settings| settings.ingest.refuse_unknown_units),
            max_clock_skew_ms: settings.map_or(300_000, |settings| settings.ingest.max_clock_skew_ms),
            max_age_ms: settings.map_or(400 * 86_400_000, |settings| settings.ingest.max_age_ms),
            settle_ms: settings.map_or(10_000, |settings| settings.settle_ms),
            files,
        }
    }

    /// Returns the bundle as it is journaled; equal bundles give equal texts.
    pub fn to_text(&self) -> String {
        serde_json::to_string(self).expect("a bundle has only string keys")
    }

    /// Returns the bundle that was journaled as `text`, and what it says.
    ///
    /// # Errors
    /// What is wrong with it: it was written by a version that knew more, or it was damaged.
    pub fn from_text(text: &str) -> Result<(Self, Judgement), String> {
        let bundle: Self = serde_json::from_str(text).map_err(|error| error.to_string())?;
        let mut problems = Vec::new();
        let judgement = bundle.judge(Path::new("journaled configuration"), &mut problems);
        match problems.first() {
            None => Ok((bundle, judgement)),
            Some(problem) => Err(problem.to_string()),
        }
    }

    /// Returns the bundle of no files at all, and what it says: the product's own route and profiles.
    pub fn empty() -> (Self, Judgement) {
        let bundle = Self::new(None, BTreeMap::new());
        let judgement = bundle.judge(Path::new(""), &mut Vec::new());
        (bundle, judgement)
    }

    /// Returns the hash that identifies the bundle.
    pub fn hash(&self) -> [u8; 32] {
        Sha256::digest(self.to_text()).into()
    }

    fn judge(&self, dir: &Path, problems: &mut Vec<Problem>) -> Judgement {
        let text = |name: &str| self.files.get(name).map(String::as_str);
        let profiles =
            profiles::parse(&dir.join("profiles.toml"), text("profiles.toml").unwrap_or(profiles::SHIPPED), problems);
        let registry = fleet::parse(&dir.join("fleet.toml"), text("fleet.toml"), profiles, problems);
        let rule_files = self.files.iter().filter(|(name, _)| *name == "rules.toml" || name.starts_with("rules/"));
        let rule_files: Vec<(PathBuf, &str)> = rule_files.map(|(name, text)| (dir.join(name), text.as_str())).collect();
        let rules = rules::parse(&rule_files, problems);
        rules::check_against_profiles(&rule_files, &rules, &registry, problems);
        Judgement {
            routes: routes::parse(&dir.join("routes.toml"), text("routes.toml"), problems),
            rules: rules.into(),
            registry: Arc::new(registry),
            clock: if self.clock == "readings" { ClockSource::Readings } else { ClockSource::System },
            ingest: IngestSettings {
                refuse_unknown_units: self.refuse_unknown_units,
                max_clock_skew_ms: self.max_clock_skew_ms,
                max_age_ms: self.max_age_ms,
            },
            settle_ms: self.settle_ms,
        }
    }
}

/// Reads the files that go into a bundle; `tests/` is not among them.
fn read_files(dir: &Path, problems: &mut Vec<Problem>) -> BTreeMap<String, String> {
    if !dir.is_dir() && dir != Path::new(DEFAULT_DIR) {
        let message = "there is no such directory".to_owned();
        problems.push(Problem { file: dir.to_owned(), line: None, key: String::new(), message });
        return BTreeMap::new();
    }
    let mut names: Vec<String> = ["routes.toml", "profiles.toml", "rules.toml", "fleet.toml"].map(str::to_owned).into();
    match std::fs::read_dir(dir.join("rules")) {
        Ok(entries) => {
            let found = entries.filter_map(Result::ok).map(|entry| entry.file_name().to_string_lossy().into_owned());
            names.extend(found.filter(|name| name.ends_with(".toml")).map(|name| format!("rules/{name}")));
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        Err(error) => problems.push(unreadable(&dir.join("rules"), &error)),
    }
    let mut files = BTreeMap::new();
    for name in names {
        let path = dir.join(&name);
        match std::fs::read_to_string(&path) {
            Ok(text) => {
                files.insert(name, text);
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => problems.push(unreadable(&path, &error)),
        }
    }
    files
}

fn unreadable(path: &Path, error: &std::io::Error) -> Problem {
    Problem { file: path.to_owned(), line: None, key: String::new(), message: format!("cannot be read: {error}") }
}
