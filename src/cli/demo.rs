//! `frostline demo`: everything at once, without any server.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use crate::config::parse_duration_ms;
use crate::demo::{self, DemoOptions};
use crate::lifecycle;

#[derive(Debug, clap::Args)]
pub(crate) struct DemoArgs {
    /// How many units the simulated fleet has.
    #[arg(long, value_name = "N", default_value_t = 24, value_parser = clap::value_parser!(u16).range(1..=10_000))]
    units: u16,
    /// How many times faster than real time the fleet lives.
    #[arg(long, value_name = "X", default_value_t = 60.0, value_parser = speed)]
    speed: f64,
    /// Ends the demo after so much real time, with a summary.
    #[arg(long, value_name = "D", value_parser = duration)]
    duration: Option<Duration>,
    /// Where the web page is served.
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:8080")]
    listen: SocketAddr,
    /// Keeps what the demo writes here; otherwise it goes with the demo.
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
    /// What the fleet's fate is drawn from; the same seed, the same fate.
    #[arg(long, value_name = "S", default_value_t = 1)]
    seed: u64,
}

pub(crate) fn run(arguments: DemoArgs) -> anyhow::Result<ExitCode> {
    super::runtime()?.block_on(async {
        let stop = CancellationToken::new();
        lifecycle::stop_on_signals(stop.clone())?;
        let options = DemoOptions {
            units: usize::from(arguments.units),
            speed: arguments.speed,
            duration: arguments.duration,
            listen: arguments.listen,
            data_dir: arguments.data_dir,
            seed: arguments.seed,
        };
        demo::run(options, stop).await
    })?;
    Ok(ExitCode::SUCCESS)
}

fn speed(text: &str) -> Result<f64, String> {
    let speed: f64 =
        text.trim_end_matches(['x', '×']).parse().map_err(|_| "expected a number such as 60".to_owned())?;
    if (0.1..=6_000.0).contains(&speed) { Ok(speed) } else { Err("expected 0.1 to 6000".to_owned()) }
}

fn duration(text: &str) -> Result<Duration, String> {
    parse_duration_ms(text).map(|millis| Duration::from_millis(millis.unsigned_abs()))
}
