//! `frostline run`: the daemon.

use std::process::ExitCode;
use std::sync::Arc;

use tokio_util::sync::CancellationToken;

use super::Context;
use crate::clock::SystemClock;
use crate::{app, lifecycle};

pub(crate) fn run(context: &Context) -> anyhow::Result<ExitCode> {
    let loaded = context.load()?;
    super::runtime()?.block_on(async {
        let stop = CancellationToken::new();
        lifecycle::stop_on_signals(stop.clone())?;
        app::start(loaded, Arc::new(SystemClock)).await?.run_until(stop).await
    })?;
    Ok(ExitCode::SUCCESS)
}
