//! The files that are read to answer requests: read-only connections that are kept and used again.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::Semaphore;

use super::problem::Problem;
use crate::history::{HistoryError, HistoryReader};
use crate::ledger::{LedgerError, LedgerReader};
use crate::pipeline::HISTORY_FILE;

/// How many requests may read files at one time; the rest wait.
const READERS_MAX: usize = 8;

/// Reads the ledger and the history away from the threads that serve.
#[derive(Clone)]
pub(crate) struct Stores {
    ledger: Arc<Pool<LedgerReader, LedgerError>>,
    history: Arc<Pool<HistoryReader, HistoryError>>,
}

impl Stores {
    /// Prepares to read the files in `data_dir`, which need not exist yet.
    pub(crate) fn new(data_dir: &Path) -> Self {
        Self {
            ledger: Arc::new(Pool::new(data_dir.to_owned(), LedgerReader::open)),
            history: Arc::new(Pool::new(data_dir.join(HISTORY_FILE), HistoryReader::open)),
        }
    }

    /// Asks the ledger.
    pub(crate) async fn ledger<T: Send + 'static>(
        &self,
        ask: impl FnOnce(&LedgerReader) -> Result<T, LedgerError> + Send + 'static,
    ) -> Result<T, Problem> {
        Pool::ask(&self.ledger, ask).await
    }

    /// Asks the history.
    pub(crate) async fn history<T: Send + 'static>(
        &self,
        ask: impl FnOnce(&HistoryReader) -> Result<T, HistoryError> + Send + 'static,
    ) -> Result<T, Problem> {
        Pool::ask(&self.history, ask).await
    }
}

struct Pool<R, E> {
    path: PathBuf,
    open: fn(&Path) -> Result<R, E>,
    free: Mutex<Vec<R>>,
    permits: Semaphore,
}

impl<R, E> Pool<R, E>
where
    R: Send + 'static,
    E: Send + 'static,
    Problem: From<E>,
{
    fn new(path: PathBuf, open: fn(&Path) -> Result<R, E>) -> Self {
        Self { path, open, free: Mutex::default(), permits: Semaphore::new(READERS_MAX) }
    }

    async fn ask<T: Send + 'static>(
        pool: &Arc<Self>,
        ask: impl FnOnce(&R) -> Result<T, E> + Send + 'static,
    ) -> Result<T, Problem> {
        let _permit = pool.permits.acquire().await.expect("the semaphore is never closed");
        let pool = Arc::clone(pool);
        let answered = tokio::task::spawn_blocking(move || {
            let kept = pool.free().pop();
            let reader = kept.map_or_else(|| (pool.open)(&pool.path), Ok)?;
            // A connection that has failed is not kept.
            let answer = ask(&reader)?;
            pool.free().push(reader);
            Ok(answer)
        });
        match answered.await {
            Ok(answer) => answer.map_err(|error: E| Problem::from(error)),
            Err(panicked) => Err(Problem::from_failure(&panicked)),
        }
    }

    fn free(&self) -> std::sync::MutexGuard<'_, Vec<R>> {
        self.free.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
