//! The command line: one file per command; results go to stdout, everything else to stderr.

mod alerts;
mod backtest;
mod check;
mod coverage;
mod daemon;
mod dead_letters;
#[cfg(feature = "demo")]
mod demo;
mod export;
mod progress;
mod run;
mod table;
mod test;

use std::io::{self, IsTerminal as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Parser, Subcommand, ValueEnum};
use tracing_subscriber::EnvFilter;

use crate::config::{self, Judgement, Loaded, Problem};

/// Exit code: something failed while running.
pub(crate) const FAILED: u8 = 1;
/// Exit code: wrong usage or configuration.
pub(crate) const MISUSED: u8 = 2;
/// Exit code: a check found something.
pub(crate) const FOUND: u8 = 3;

/// Watches cold chains: takes temperature and humidity over MQTT, loses none of it, and tells when goods were not kept
/// as the rules ask.
#[derive(Debug, Parser)]
#[command(name = "frostline", version, propagate_version = true)]
struct Arguments {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Args)]
struct Global {
    /// The directory of the configuration.
    #[arg(long, global = true, value_name = "DIR", default_value = config::DEFAULT_DIR)]
    config: PathBuf,
    /// How log lines look.
    #[arg(long, global = true, value_name = "FORMAT", default_value = "text")]
    log_format: LogFormat,
    /// Log more; twice for everything.
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    verbose: u8,
    /// Log errors only.
    #[arg(short, long, global = true, conflicts_with = "verbose")]
    quiet: bool,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum LogFormat {
    Text,
    Json,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run an embedded broker, a simulated fleet and the whole pipeline, with a live view here and on a web page.
    #[cfg(feature = "demo")]
    Demo(demo::DemoArgs),
    /// Run the daemon.
    Run,
    /// Load every file of the configuration, connect to nothing, and print every problem.
    Check(check::CheckArgs),
    /// Run rules over recordings without any server, and write the episodes that fired.
    Backtest(backtest::BacktestArgs),
    /// Write episodes, alerts or readings from the data directory, also while the daemon runs.
    Export(export::ExportArgs),
    /// Run the stories that rules are tested with.
    Test(test::TestArgs),
    /// Show the alerts of a running daemon.
    Alerts(alerts::AlertsArgs),
    /// Show messages that could not be used, and give them to the daemon again.
    DeadLetters(dead_letters::DeadLettersArgs),
}

/// What every command is given.
#[derive(Debug)]
pub(crate) struct Context {
    /// The directory of the configuration.
    pub(crate) config_dir: PathBuf,
    /// Whether somebody looks on who wants to know how far a command has got.
    pub(crate) shows_progress: bool,
}

/// How results are printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// For people.
    Table,
    /// For programs.
    Json,
}

/// The configuration cannot be used; every problem has its line.
#[derive(Debug)]
pub(crate) struct Misconfigured(pub(crate) Vec<Problem>);

impl std::fmt::Display for Misconfigured {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for problem in &self.0 {
            writeln!(f, "{problem}")?;
        }
        let count = self.0.len();
        write!(f, "{count} problem{} in the configuration", if count == 1 { "" } else { "s" })
    }
}

impl std::error::Error for Misconfigured {}

/// An argument means nothing to the daemon that was asked.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct Misused(pub(crate) String);

impl Context {
    /// Loads the configuration.
    pub(crate) fn load(&self) -> anyhow::Result<Loaded> {
        config::load(&self.config_dir).map_err(|problems| Misconfigured(problems).into())
    }

    /// Loads what readings are judged by, for a command that judges without a daemon.
    pub(crate) fn load_judgement(&self, rules_file: Option<&Path>) -> anyhow::Result<Judgement> {
        config::load_judgement(&self.config_dir, rules_file).map_err(|problems| Misconfigured(problems).into())
    }
}

/// Runs the command that the process was started with.
pub fn main() -> ExitCode {
    let Arguments { global, command } = Arguments::parse();
    let is_demo = command.is_demo();
    start_logging(&global, is_demo);
    let is_for_people = matches!(global.log_format, LogFormat::Text) && !global.quiet;
    let shows_progress = is_for_people && io::stderr().is_terminal();
    let context = Context { config_dir: global.config, shows_progress };
    let result = match command {
        #[cfg(feature = "demo")]
        Command::Demo(arguments) => demo::run(arguments),
        Command::Run => run::run(&context),
        Command::Check(arguments) => check::run(&arguments, &context),
        Command::Backtest(arguments) => backtest::run(arguments, &context),
        Command::Export(arguments) => export::run(&arguments, &context),
        Command::Test(arguments) => test::run(arguments, &context),
        Command::Alerts(arguments) => alerts::run(arguments, &context),
        Command::DeadLetters(arguments) => dead_letters::run(arguments, &context),
    };
    match result {
        Ok(code) => code,
        Err(error) => {
            complain(&format!("frostline: {error:#}"));
            let code = if error.is::<Misconfigured>() || error.is::<Misused>() { MISUSED } else { FAILED };
            ExitCode::from(code)
        }
    }
}

impl Command {
    fn is_demo(&self) -> bool {
        #[cfg(feature = "demo")]
        return matches!(self, Self::Demo(_));
        #[cfg(not(feature = "demo"))]
        return false;
    }
}

#[expect(clippy::print_stderr, reason = "errors of a command go to stderr")]
fn complain(text: &str) {
    eprintln!("{text}");
}

fn start_logging(global: &Global, is_demo: bool) {
    // The demo's terminal belongs to its live view; what goes wrong is still told.
    let level = match (global.quiet, global.verbose) {
        (true, _) => "error",
        (false, 0) if is_demo => "error",
        (false, 0) => "info",
        (false, 1) => "debug",
        (false, _) => "trace",
    };
    let filter = EnvFilter::new(format!("warn,frostline={level},rumqttd=off,rumqttc=off"));
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    match global.log_format {
        LogFormat::Json => builder.json().flatten_event(true).init(),
        LogFormat::Text => {
            builder.with_ansi(io::stderr().is_terminal()).with_target(false).init();
        }
    }
}

/// Returns a runtime for commands that talk to a network.
pub(crate) fn runtime() -> std::io::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_multi_thread().enable_all().build()
}
