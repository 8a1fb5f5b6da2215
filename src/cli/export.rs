//! `frostline export`: writes what the data directory holds, also while the daemon runs.

use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context as _;
use frostline_core::model::Timestamp;

use super::{Context, Misused, complain};
use crate::export::{Shape, What, export};
use crate::recording::parse_time;

/// What `frostline export` is told.
#[derive(Debug, clap::Args)]
pub(crate) struct ExportArgs {
    /// The first instant, as in 2026-11-23T10:00:00Z or as milliseconds since 1970; without it, everything kept.
    #[arg(long, value_name = "T", value_parser = parse_instant)]
    from: Option<Timestamp>,
    /// The instant before which it ends.
    #[arg(long, value_name = "T", value_parser = parse_instant)]
    to: Option<Timestamp>,
    /// What is written.
    #[arg(long, value_name = "WHAT", default_value = "episodes")]
    what: WhatArg,
    /// Where to: a name that ends in `.jsonl` or `.csv`, or `-` for JSON Lines to standard output.
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
}

#[derive(Debug, Clone, Copy, clap::ValueEnum)]
enum WhatArg {
    /// The episodes that fired and were not taken back, as `backtest` writes them.
    Episodes,
    /// The alerts as the API shows them.
    Alerts,
    /// The accepted readings, as `backtest` reads them.
    Readings,
    /// The audit chain; not in this version.
    Audit,
}

fn parse_instant(text: &str) -> Result<Timestamp, String> {
    parse_time(text).ok_or_else(|| "expected RFC 3339 with an offset, or whole milliseconds since 1970".to_owned())
}

pub(crate) fn run(arguments: &ExportArgs, context: &Context) -> anyhow::Result<ExitCode> {
    let what = match arguments.what {
        WhatArg::Episodes => What::Episodes,
        WhatArg::Alerts => What::Alerts,
        WhatArg::Readings => What::Readings,
        WhatArg::Audit => return Err(Misused("`--what audit` is not available in this version".to_owned()).into()),
    };
    let shape = shape_of(&arguments.out)?;
    let span = (arguments.from.unwrap_or(Timestamp::MIN), arguments.to.unwrap_or(Timestamp::MAX));
    if span.0 > span.1 {
        return Err(Misused(format!("--from {} is after --to {}", span.0, span.1)).into());
    }
    let data_dir = context.load()?.settings.data_dir;
    if arguments.out == Path::new("-") {
        let mut out = BufWriter::new(io::stdout().lock());
        export(&data_dir, what, span, shape, &mut out)?;
        out.flush().context("cannot write")?;
        return Ok(ExitCode::SUCCESS);
    }
    let lines = write_whole(&arguments.out, |out| Ok(export(&data_dir, what, span, shape, out)?))?;
    complain(&format!("{lines} lines written to {}", arguments.out.display()));
    Ok(ExitCode::SUCCESS)
}

fn shape_of(out: &Path) -> Result<Shape, Misused> {
    if out == Path::new("-") {
        return Ok(Shape::JsonLines);
    }
    match out.extension().and_then(|extension| extension.to_str()) {
        Some("jsonl") => Ok(Shape::JsonLines),
        Some("csv") => Ok(Shape::Csv),
        _ => Err(Misused(format!("`{}` ends neither in .jsonl nor in .csv", out.display()))),
    }
}

/// Writes a file under another name beside it and renames it when it is whole, so that nobody meets half of it.
pub(crate) fn write_whole<T>(
    file: &Path,
    write: impl FnOnce(&mut dyn Write) -> anyhow::Result<T>,
) -> anyhow::Result<T> {
    let cannot = || format!("cannot write `{}`", file.display());
    if fs::metadata(file).is_ok_and(|known| !known.is_file()) {
        // A pipe or a device has no half of a file to be met, and must not be replaced by one.
        let mut out = BufWriter::new(File::create(file).with_context(cannot)?);
        let result = write(&mut out)?;
        out.flush().with_context(cannot)?;
        return Ok(result);
    }
    let mut part = file.as_os_str().to_owned();
    part.push(".part");
    let mut out = BufWriter::new(File::create(&part).with_context(cannot)?);
    let written = write(&mut out).and_then(|result| {
        let opened = out.into_inner().map_err(io::IntoInnerError::into_error);
        opened.and_then(|opened| opened.sync_all()).and_then(|()| fs::rename(&part, file)).with_context(cannot)?;
        Ok(result)
    });
    if written.is_err() {
        // What is left of it helps nobody; that it cannot be removed says no more than the error itself.
        fs::remove_file(&part).ok();
    }
    written
}
