//! What sinks and the outbox have done: each writes its own progress, through a connection of its own.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;

use frostline_core::model::Timestamp;
use rusqlite::{Connection, OptionalExtension, params};

use super::{FILE_NAME, LedgerError, configuration_below, configure, from_json, read_exceptions};
use crate::alert::Alert;

/// A connection that writes progress only.
#[derive(Debug)]
pub struct SinkProgress {
    connection: Connection,
}

/// A transition that was told.
#[derive(Debug, Clone)]
pub struct ToldAlert {
    /// Its place in the order of everything told.
    pub seq: i64,
    /// The alert as it was then.
    pub alert: Alert,
    /// The instant of the transition, in event time.
    pub event_time: Timestamp,
    /// The value as it was then.
    pub value: Option<f64>,
    /// Whether this rewrites a transition that an amendment took back.
    pub superseded: bool,
}

/// A message waiting to be delivered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Delivery {
    /// Its place in the order of the outbox.
    pub seq: i64,
    /// The topic.
    pub destination: String,
    /// The alert as JSON.
    pub payload: String,
}

impl SinkProgress {
    /// Opens the ledger in `data_dir`, which the daemon has made.
    pub fn open(data_dir: &Path) -> Result<Self, LedgerError> {
        let connection = Connection::open(data_dir.join(FILE_NAME))?;
        configure(&connection)?;
        Ok(Self { connection })
    }

    /// Returns how far a sink has safely got: (next journal offset, next transition).
    pub fn sink(&self, name: &str) -> Result<(u64, i64), LedgerError> {
        let mut statement =
            self.connection.prepare_cached("SELECT next_offset, next_told FROM sink WHERE name = ?1")?;
        let found = statement.query_row([name], |row| Ok((row.get(0)?, row.get(1)?))).optional()?;
        Ok(found.unwrap_or((0, 0)))
    }

    /// Notes how far a sink has safely got.
    pub fn set_sink(&self, name: &str, next_offset: u64, next_told: i64) -> Result<(), LedgerError> {
        self.connection.prepare_cached("INSERT OR REPLACE INTO sink VALUES (?1, ?2, ?3)")?.execute(params![
            name,
            next_offset,
            next_told
        ])?;
        Ok(())
    }

    /// Notes lines that a sink's server would not take; a line once, however often it is sent.
    pub fn put_refused(&self, sink: &str, lines: &[(String, String)], at: Timestamp) -> Result<(), LedgerError> {
        let mut statement = self.connection.prepare_cached(
            "INSERT OR IGNORE INTO refused (sink, line, reason, refused_at_ms) VALUES (?1, ?2, ?3, ?4)",
        )?;
        for (line, reason) in lines {
            statement.execute(params![sink, line, reason, at.as_millis()])?;
        }
        Ok(())
    }

    /// Returns the first journal entry that the pipeline has not committed: nothing from there on is decided yet.
    pub fn committed_offset(&self) -> Result<u64, LedgerError> {
        let mut statement = self.connection.prepare_cached("SELECT next_offset FROM cursor")?;
        Ok(statement.query_row([], |row| row.get(0))?)
    }

    /// Returns the exceptions of the journal entries in `offsets`.
    pub fn exceptions(&self, offsets: Range<u64>) -> Result<BTreeMap<(u64, usize), Option<Timestamp>>, LedgerError> {
        read_exceptions(&self.connection, offsets)
    }

    /// Returns the newest configuration that took effect before a journal entry: its own offset and its content.
    pub fn configuration_before(&self, journal_offset: u64) -> Result<Option<(u64, String)>, LedgerError> {
        configuration_below(&self.connection, journal_offset)
    }

    /// Notes that the message of dead letters was given to the journal again.
    pub fn mark_redriven(&self, journal_offset: u64, at: Timestamp) -> Result<(), LedgerError> {
        self.connection
            .prepare_cached("UPDATE dead_message SET redriven_at_ms = ?2 WHERE journal_offset = ?1")?
            .execute(params![journal_offset, at.as_millis()])?;
        Ok(())
    }

    /// Returns up to `limit` transitions told from `seq` on.
    pub fn told_from(&self, seq: i64, limit: usize) -> Result<Vec<ToldAlert>, LedgerError> {
        told_from(&self.connection, seq, limit)
    }

    /// Returns up to `limit` deliveries that wait after `seq`, in order.
    pub fn outbox_after(&self, seq: i64, limit: usize) -> Result<Vec<Delivery>, LedgerError> {
        let mut statement = self.connection.prepare_cached(
            "SELECT seq, destination, payload FROM outbox WHERE channel = 'mqtt' AND seq > ?1 ORDER BY seq LIMIT ?2",
        )?;
        let rows = statement.query_map(params![seq, limit as i64], |row| {
            Ok(Delivery { seq: row.get(0)?, destination: row.get(1)?, payload: row.get(2)? })
        })?;
        Ok(rows.collect::<Result<_, _>>()?)
    }

    /// Notes that the receiver has confirmed every delivery up to this one.
    pub fn delivered_until(&self, seq: i64) -> Result<(), LedgerError> {
        self.connection.prepare_cached("DELETE FROM outbox WHERE channel = 'mqtt' AND seq <= ?1")?.execute([seq])?;
        Ok(())
    }
}

pub(super) fn told_from(connection: &Connection, seq: i64, limit: usize) -> Result<Vec<ToldAlert>, LedgerError> {
    let mut statement = connection.prepare_cached(
        "SELECT seq, event_time_ms, value, superseded, body FROM told WHERE seq >= ?1 ORDER BY seq LIMIT ?2",
    )?;
    let mut rows = statement.query(params![seq, limit as i64])?;
    let mut told = Vec::new();
    while let Some(row) = rows.next()? {
        told.push(ToldAlert {
            seq: row.get(0)?,
            event_time: Timestamp::from_millis(row.get(1)?),
            value: row.get(2)?,
            superseded: row.get(3)?,
            alert: from_json(row.get_ref(4)?.as_str().unwrap_or_default())?,
        });
    }
    Ok(told)
}
