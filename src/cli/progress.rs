//! One line on a terminal that says how far a command has got.

use std::io::{self, Write};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread::JoinHandle;
use std::time::Duration;

/// How often the line is written anew.
const INTERVAL: Duration = Duration::from_millis(100);
/// How many characters wide the bar is.
const WIDTH: usize = 30;

/// Shows the line until it is dropped.
pub(crate) struct ProgressLine {
    stop: Option<mpsc::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl ProgressLine {
    /// Shows what `text` returns, ten times a second, in a thread of its own.
    pub(crate) fn show(text: impl Fn() -> String + Send + 'static) -> Self {
        let (stop, stopped) = mpsc::channel();
        let thread = std::thread::spawn(move || {
            while stopped.recv_timeout(INTERVAL) == Err(RecvTimeoutError::Timeout) {
                write_line(&text());
            }
            write_line("");
        });
        Self { stop: Some(stop), thread: Some(thread) }
    }
}

impl Drop for ProgressLine {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            thread.join().expect("showing the progress does not panic");
        }
    }
}

/// Writes the line over the one before; a terminal that is gone is no reason to stop working.
fn write_line(text: &str) {
    let mut terminal = io::stderr().lock();
    write!(terminal, "\r\x1b[K{text}").and_then(|()| terminal.flush()).ok();
}

/// Returns a bar: `[######------------------------]  20 %`.
pub(crate) fn bar(done: u64, total: u64) -> String {
    let share = if total == 0 { 1.0 } else { (done as f64 / total as f64).min(1.0) };
    let filled = (share * WIDTH as f64) as usize;
    format!("[{}{}] {:>3.0} %", "#".repeat(filled), "-".repeat(WIDTH - filled), (share * 100.0).floor())
}

#[cfg(test)]
mod tests {
    use super::bar;

    #[test]
    fn a_bar_is_full_only_at_the_end() {
        assert_eq!(bar(0, 10), "[------------------------------]   0 %");
        assert_eq!(bar(999, 1_000), "[#############################-]  99 %");
        for (done, total) in [(10, 10), (11, 10), (0, 0)] {
            assert_eq!(bar(done, total), "[##############################] 100 %", "{done} of {total}");
        }
    }
}
