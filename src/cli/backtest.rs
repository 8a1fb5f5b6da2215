//! `frostline backtest`: runs rules over recordings without any server.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context as _;

use super::{Context, complain};
use crate::backtest::Backtest;
use crate::episode_file;

/// What `frostline backtest` is told.
#[derive(Debug, clap::Args)]
pub(crate) struct BacktestArgs {
    /// Recordings (JSON Lines) and tables of readings (CSV), also as `.zst`, one after the other as given.
    #[arg(required = true, value_name = "FILE")]
    files: Vec<PathBuf>,
    /// Judge by the rules of this file instead of the configured ones.
    #[arg(long, value_name = "FILE")]
    rules: Option<PathBuf>,
    /// Write the episodes here instead of to standard output.
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
}

/// Runs `frostline backtest`.
pub(crate) fn run(arguments: BacktestArgs, context: &Context) -> anyhow::Result<ExitCode> {
    let judgement = context.load_judgement(arguments.rules.as_deref())?;
    let mut backtest = Backtest::default();
    for file in &arguments.files {
        backtest.add_file(file, &judgement)?;
    }
    let outcome = backtest.judge(judgement.rules, judgement.registry);
    for remark in &outcome.summary.remarks {
        complain(remark);
    }
    if outcome.summary.remarks_left_out > 0 {
        complain(&format!("and {} more that could not be used", outcome.summary.remarks_left_out));
    }
    complain(&format!("{}; {} episodes", outcome.summary, outcome.episodes.len()));
    match &arguments.out {
        Some(file) => {
            let written = File::create(file).and_then(|opened| {
                let mut out = BufWriter::new(opened);
                episode_file::write(&outcome.episodes, &mut out)?;
                out.flush()
            });
            written.with_context(|| format!("cannot write `{}`", file.display()))?;
        }
        None => {
            let mut out = BufWriter::new(io::stdout().lock());
            episode_file::write(&outcome.episodes, &mut out).and_then(|()| out.flush()).context("cannot write")?;
        }
    }
    Ok(ExitCode::SUCCESS)
}
