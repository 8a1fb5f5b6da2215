use std::io;
use std::path::{Path, PathBuf};

/// Why the journal could not be opened, read or written.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    /// Another process writes this journal: leave it alone.
    #[error("journal `{}` is in use by another process", directory.display())]
    InUse {
        /// The journal's directory.
        directory: PathBuf,
    },
    /// The file system failed: the process must end, and may start again.
    #[error("cannot {doing} `{}`", path.display())]
    Io {
        /// What was tried.
        doing: &'static str,
        /// On which file or directory.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// Something could not be forced to disk: the process must end, and may start again. What was synced before is safe
    /// and nothing else was acknowledged; a second sync of the same open file could succeed and prove nothing.
    #[error("cannot force `{}` to disk", path.display())]
    Sync {
        /// Which file or directory.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// The bytes on disk are not what was written: a person must look.
    #[error("damaged journal segment `{}` at byte {position}: {reason}", segment.display())]
    Damaged {
        /// The segment's file.
        segment: PathBuf,
        /// Where in it.
        position: u64,
        /// What is wrong.
        reason: String,
    },
    /// Retention has deleted what was asked for: begin at `first_offset`, knowing that something is missing.
    #[error("journal offset {offset} is no longer kept; the first kept is {first_offset}")]
    Gone {
        /// What was asked for.
        offset: u64,
        /// The oldest entry that is kept.
        first_offset: u64,
    },
    /// The consumer is ahead of the journal, so that its store does not belong to this journal.
    #[error("journal offset {offset} was never written; the next is {next_offset}")]
    Ahead {
        /// What was asked for.
        offset: u64,
        /// The offset that the next entry gets.
        next_offset: u64,
    },
}

impl JournalError {
    pub(crate) fn damaged(segment: &Path, position: u64, reason: impl Into<String>) -> Self {
        Self::Damaged { segment: segment.to_owned(), position, reason: reason.into() }
    }

    /// Returns what turns a failed sync into this error.
    pub(crate) fn sync(path: &Path) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Sync { path: path.to_owned(), source }
    }

    /// Returns what turns another I/O error into this error.
    pub(crate) fn io(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Io { doing, path: path.to_owned(), source }
    }
}
