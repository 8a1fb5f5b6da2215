//! How the daemon ends: by a signal, or because one of its tasks did.

use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// Watches for SIGINT and SIGTERM: the first cancels `stop`, the second ends the process at once.
///
/// Ending at once is safe: everything that was acknowledged is in the journal.
///
/// # Errors
/// Where the signals cannot be watched.
pub fn stop_on_signals(stop: CancellationToken) -> std::io::Result<()> {
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    tokio::spawn(async move {
        let first = tokio::select! {
            _ = interrupt.recv() => "SIGINT",
            _ = terminate.recv() => "SIGTERM",
        };
        tracing::info!(
            signal = first,
            "stopping: intake ends, what was taken is finished; a second signal ends at once"
        );
        stop.cancel();
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
        tracing::warn!("second signal: leaving at once; the journal holds what is unfinished");
        std::process::exit(1);
    });
    Ok(())
}
