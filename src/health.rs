//! What works and what does not, part by part, as `/readyz` tells it.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

/// The state of every part of the daemon; clones share it.
#[derive(Debug, Clone, Default)]
pub struct Health(Arc<Mutex<BTreeMap<&'static str, Result<String, String>>>>);

/// One part's pen in the [`Health`] book.
#[derive(Debug, Clone)]
pub struct Part {
    health: Health,
    name: &'static str,
}

impl Health {
    /// Enters a part, down until it says otherwise.
    pub fn part(&self, name: &'static str) -> Part {
        let part = Part { health: self.clone(), name };
        part.down("starting");
        part
    }

    /// Returns every part with `Ok(remark)` where it works and `Err(reason)` where it does not.
    pub fn parts(&self) -> BTreeMap<&'static str, Result<String, String>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Part {
    /// Says that the part works, with a remark for people (`subscribed`, `buffering: database unreachable`).
    pub fn up(&self, remark: impl Into<String>) {
        self.set(Ok(remark.into()));
    }

    /// Says that the part does not work, and why.
    pub fn down(&self, reason: impl Into<String>) {
        self.set(Err(reason.into()));
    }

    fn set(&self, state: Result<String, String>) {
        self.health.0.lock().unwrap_or_else(PoisonError::into_inner).insert(self.name, state);
    }
}
