//! The ledger: what was decided, in SQLite.
//!
//! The pipeline is its one writer of decisions: everything a batch of journal entries causes is one transaction,
//! together with the cursor behind that batch. A crash therefore leaves either all of a batch or nothing of it, and
//! the journal still holds what is missing. Sinks and the outbox write only their own progress, through connections of
//! their own; pages and commands read through [`LedgerReader`].
//!
//! A transaction that decided something for people (an alert, a dead letter, a snapshot) is forced to disk; one that
//! only moves the cursor may be lost to a power cut, since the journal gives it back.

mod dead_letters;
mod reader;
mod sink_progress;

use std::collections::BTreeMap;
use std::path::Path;

use frostline_core::model::Timestamp;
use rusqlite::{Connection, OptionalExtension, params};

use crate::alert::{Alert, AlertState};

pub use dead_letters::{DeadLetter, DeadMessage};
pub use reader::{AlertFilter, AlertPage, LedgerReader};
pub use sink_progress::{Delivery, SinkProgress, ToldAlert};

/// The version of the file's layout; a ledger of another version is refused.
const SCHEMA_VERSION: i64 = 2;

/// The file's name in the data directory.
const FILE_NAME: &str = "ledger.db";

/// Why the ledger could not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum LedgerError {
    /// The disk is full: wait for room and try again.
    #[error("the ledger's disk is full")]
    DiskFull(#[source] rusqlite::Error),
    /// Another writer has held the file for long: try again.
    #[error("the ledger is being written by somebody else")]
    Busy(#[source] rusqlite::Error),
    /// The data directory was written by another version.
    #[error("the ledger has layout {found}; this version reads layout {SCHEMA_VERSION}")]
    Version {
        /// The layout found in the file.
        found: i64,
    },
    /// What is stored cannot be read back.
    #[error("the ledger's {table} holds what cannot be read: {detail}")]
    Content {
        /// The table.
        table: &'static str,
        /// What is wrong with it.
        detail: String,
    },
    /// Anything else that SQLite says.
    #[error("the ledger cannot be used")]
    Sqlite(#[source] rusqlite::Error),
}

impl LedgerError {
    /// Returns whether waiting can mend it.
    pub fn is_temporary(&self) -> bool {
        matches!(self, Self::DiskFull(_) | Self::Busy(_))
    }
}

impl From<rusqlite::Error> for LedgerError {
    fn from(error: rusqlite::Error) -> Self {
        match error.sqlite_error_code() {
            Some(rusqlite::ErrorCode::DiskFull | rusqlite::ErrorCode::SystemIoFailure) => Self::DiskFull(error),
            Some(rusqlite::ErrorCode::DatabaseBusy | rusqlite::ErrorCode::DatabaseLocked) => Self::Busy(error),
            _ => Self::Sqlite(error),
        }
    }
}

/// Names a persistent total: the metric's name without prefix and suffix, and its label.
pub type CounterKey = (&'static str, String);

/// The writer.
#[derive(Debug)]
pub struct Ledger {
    connection: Connection,
    in_transaction: bool,
}

/// How far the ledger has got.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cursor {
    /// The first journal entry not yet applied.
    pub next_offset: u64,
    /// The rules' *now* after the last one applied.
    pub now: Timestamp,
}

/// An alert as it was told before, to be claimed or amended.
#[derive(Debug, Clone)]
pub struct StoredAlert {
    /// The alert.
    pub alert: Alert,
    /// The order in which it became known.
    pub first_seq: i64,
}

/// One transition to be told.
#[derive(Debug, Clone, Copy)]
pub struct Telling<'a> {
    /// The alert as it is now.
    pub alert: &'a Alert,
    /// The instant of the transition, in event time.
    pub event_time: Timestamp,
    /// The value as it was then.
    pub value: Option<f64>,
    /// Whether this rewrites a transition that an amendment took back.
    pub superseded: bool,
}

impl Ledger {
    /// Opens the ledger in `data_dir`, or makes it.
    ///
    /// # Errors
    /// Where the file cannot be opened, or another version made it.
    pub fn open(data_dir: &Path) -> Result<Self, LedgerError> {
        let connection = Connection::open(data_dir.join(FILE_NAME))?;
        configure(&connection)?;
        let version: i64 = connection.query_row("PRAGMA user_version", [], |row| row.get(0))?;
        match version {
            0 => connection.execute_batch(&format!(
                "BEGIN; {} PRAGMA user_version = {SCHEMA_VERSION}; COMMIT",
                include_str!("schema.sql")
            ))?,
            SCHEMA_VERSION => {}
            found => return Err(LedgerError::Version { found }),
        }
        Ok(Self { connection, in_transaction: false })
    }

    /// Returns how far the ledger has got.
    pub fn cursor(&self) -> Result<Cursor, LedgerError> {
        read_cursor(&self.connection)
    }

    /// Returns the persistent totals.
    pub fn counters(&self) -> Result<BTreeMap<(String, String), u64>, LedgerError> {
        let mut statement = self.connection.prepare("SELECT name, label, value FROM counter")?;
        let rows = statement.query_map([], |row| Ok(((row.get(0)?, row.get(1)?), row.get(2)?)))?;
        Ok(rows.collect::<Result<_, _>>()?)
    }

    /// Begins the transaction of a batch that decided something, unless it has begun; it will be forced to disk.
    fn begin(&mut self) -> Result<(), LedgerError> {
        if !self.in_transaction {
            self.connection.execute_batch("PRAGMA synchronous = FULL; BEGIN IMMEDIATE")?;
            self.in_transaction = true;
        }
        Ok(())
    }

    /// Commits the batch: everything written since the last commit, the totals' growth and the cursor behind it.
    pub fn commit(&mut self, cursor: Cursor, growth: &BTreeMap<CounterKey, u64>) -> Result<(), LedgerError> {
        if !self.in_transaction {
            self.connection.execute_batch("PRAGMA synchronous = NORMAL; BEGIN IMMEDIATE")?;
            self.in_transaction = true;
        }
        {
            let mut statement = self.connection.prepare_cached("UPDATE cursor SET next_offset = ?1, now_ms = ?2")?;
            statement.execute(params![cursor.next_offset, cursor.now.as_millis()])?;
            let mut statement = self.connection.prepare_cached(
                "INSERT INTO counter VALUES (?1, ?2, ?3) ON CONFLICT DO UPDATE SET value = value + excluded.value",
            )?;
            for ((name, label), value) in growth {
                statement.execute(params![name, label, value])?;
            }
        }
        self.connection.execute_batch("COMMIT")?;
        self.in_transaction = false;
        Ok(())
    }

    /// Puts everything committed so far on disk.
    pub fn force(&mut self) -> Result<(), LedgerError> {
        // A commit that is forced takes the whole write-ahead log before it along.
        self.begin()?;
        self.connection.prepare_cached("UPDATE cursor SET id = id")?.execute([])?;
        self.connection.execute_batch("COMMIT")?;
        self.in_transaction = false;
        Ok(())
    }

    /// Returns the newest configuration that took effect before a journal entry: its own offset and its content.
    pub fn configuration_before(&self, journal_offset: u64) -> Result<Option<(u64, String)>, LedgerError> {
        configuration_below(&self.connection, journal_offset)
    }

    /// Returns the episode of this rule and series that was told with this start, unless it was retracted.
    pub fn told_episode(
        &self,
        series: EpisodeSeries<'_>,
        started_at: Timestamp,
    ) -> Result<Option<StoredAlert>, LedgerError> {
        let mut statement = self.connection.prepare_cached(
            "SELECT body, first_seq FROM alert
             WHERE operator = ?1 AND unit = ?2 AND rule = ?3 AND sensor IS ?4 AND started_at_ms = ?5
               AND state <> 'retracted' ORDER BY first_seq DESC LIMIT 1",
        )?;
        let found = statement
            .query_row(
                params![series.operator, series.unit, series.rule, series.sensor, started_at.as_millis()],
                |row| Ok((row.get::<_, String>(0)?, row.get(1)?)),
            )
            .optional()?;
        found.map(|(body, first_seq)| stored_alert(&body, first_seq)).transpose()
    }

    /// Returns the retracted episodes of this rule and series, the earliest known first: a new one may revive them.
    pub fn retracted_episodes(&self, series: EpisodeSeries<'_>) -> Result<Vec<StoredAlert>, LedgerError> {
        let mut statement = self.connection.prepare_cached(
            "SELECT body, first_seq FROM alert
             WHERE operator = ?1 AND unit = ?2 AND rule = ?3 AND sensor IS ?4 AND state = 'retracted'
             ORDER BY first_seq",
        )?;
        let rows = statement.query_map(params![series.operator, series.unit, series.rule, series.sensor], |row| {
            Ok((row.get::<_, String>(0)?, row.get(1)?))
        })?;
        let mut alerts = Vec::new();
        for row in rows {
            let (body, first_seq) = row?;
            alerts.push(stored_alert(&body, first_seq)?);
        }
        Ok(alerts)
    }

    /// Returns the episodes of a unit that start at `from` or later, and those retracted that were thought to last until
    /// then.
    pub fn episodes_from(&self, operator: &str, unit: &str, from: Timestamp) -> Result<Vec<StoredAlert>, LedgerError> {
        let mut statement = self.connection.prepare_cached(
            "SELECT body, first_seq FROM alert WHERE operator = ?1 AND unit = ?2
               AND (started_at_ms >= ?3 OR state = 'retracted' AND coalesce(resolved_at_ms, ?3) >= ?3)",
        )?;
        let mut rows = statement.query(params![operator, unit, from.as_millis()])?;
        let mut alerts = Vec::new();
        while let Some(row) = rows.next()? {
            alerts.push(stored_alert(row.get_ref(0)?.as_str().map_err(rusqlite::Error::from)?, row.get(1)?)?);
        }
        Ok(alerts)
    }

    /// Writes the new state of an alert that is there already, whatever its series measures.
    pub fn put_alert_state(&mut self, alert: &Alert) -> Result<(), LedgerError> {
        self.begin()?;
        let mut statement = self.connection.prepare_cached("UPDATE alert SET state = ?2, body = ?3 WHERE id = ?1")?;
        statement.execute(params![alert.id, alert.state.as_str(), to_json(alert)])?;
        Ok(())
    }

    /// Returns whether an episode has this id already.
    pub fn has_alert(&self, id: &str) -> Result<bool, LedgerError> {
        let mut statement = self.connection.prepare_cached("SELECT 1 FROM alert WHERE id = ?1")?;
        Ok(statement.exists([id])?)
    }

    /// Writes an alert as it is now; `kind` is that of its series.
    pub fn put_alert(&mut self, alert: &Alert, kind: &str) -> Result<(), LedgerError> {
        self.begin()?;
        // No alert is ever deleted, so its row's own number grows with each; to look for the greatest of `first_seq` would
        // take reading them all.
        let mut statement = self.connection.prepare_cached(
            "INSERT INTO alert
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14,
                     (SELECT coalesce(max(rowid), 0) + 1 FROM alert), ?15)
             ON CONFLICT (id) DO UPDATE SET severity = excluded.severity, state = excluded.state,
                 handling = excluded.handling, jurisdiction = excluded.jurisdiction, category = excluded.category,
                 started_at_ms = excluded.started_at_ms, fired_at_ms = excluded.fired_at_ms,
                 resolved_at_ms = excluded.resolved_at_ms, body = excluded.body",
        )?;
        statement.execute(params![
            alert.id,
            alert.operator,
            alert.unit,
            alert.sensor,
            kind,
            alert.rule,
            alert.severity,
            alert.state.as_str(),
            alert.handling.as_str(),
            alert.jurisdiction,
            alert.category,
            alert.started_at.0.as_millis(),
            alert.fired_at.unwrap_or(alert.started_at).0.as_millis(),
            alert.resolved_at.map(|time| time.0.as_millis()),
            to_json(alert),
        ])?;
        Ok(())
    }

    /// Notes a transition to be told, and queues it for MQTT under each of `topics`.
    ///
    /// Returns its place in the order of everything told.
    pub fn tell(&mut self, journal_offset: u64, telling: Telling<'_>, topics: &[String]) -> Result<i64, LedgerError> {
        self.begin()?;
        let body = to_json(telling.alert);
        let mut statement = self.connection.prepare_cached(
            "INSERT INTO told (journal_offset, alert_id, revision, state, event_time_ms, superseded, value, body)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)",
        )?;
        statement.execute(params![
            journal_offset,
            telling.alert.id,
            telling.alert.revision,
            telling.alert.state.as_str(),
            telling.event_time.as_millis(),
            telling.superseded,
            telling.value,
            body,
        ])?;
        let seq = self.connection.last_insert_rowid();
        let mut statement = self.connection.prepare_cached(
            "INSERT INTO outbox (channel, destination, payload, journal_offset) VALUES ('mqtt', ?1, ?2, ?3)",
        )?;
        for topic in topics {
            statement.execute(params![topic, body, journal_offset])?;
        }
        Ok(seq)
    }

    /// Returns the points of an alert that stand, as the last telling of each leaves it: (state, event time, value).
    pub fn tellings(&self, alert_id: &str) -> Result<Vec<(AlertState, Timestamp, Option<f64>)>, LedgerError> {
        let mut statement = self.connection.prepare_cached(
            // Of each group SQLite takes the columns from the row that has the maximum.
            "SELECT state, event_time_ms, value, superseded, max(seq) AS last FROM told WHERE alert_id = ?1
             GROUP BY state, event_time_ms HAVING superseded = 0 ORDER BY last",
        )?;
        let rows = statement.query_map([alert_id], |row| {
            let state = match row.get_ref(0)?.as_str()? {
                "firing" => AlertState::Firing,
                "resolved" => AlertState::Resolved,
                "retracted" => AlertState::Retracted,
                _ => AlertState::Pending,
            };
            Ok((state, Timestamp::from_millis(row.get(1)?), row.get(2)?))
        })?;
        Ok(rows.collect::<Result<_, _>>()?)
    }

    /// Notes a configuration that takes effect with a journal entry.
    pub fn put_configuration(
        &mut self,
        journal_offset: u64,
        received_at: Timestamp,
        hash: &str,
        content: &str,
    ) -> Result<(), LedgerError> {
        self.begin()?;
        self.connection
            .prepare_cached("INSERT OR REPLACE INTO configuration VALUES (?1, ?2, ?3, ?4)")?
            .execute(params![journal_offset, received_at.as_millis(), hash, content])?;
        Ok(())
    }

    /// Notes what decoding the message again cannot tell: a conflict (`None`), or the time an untimed reading was given.
    pub fn put_exception(
        &mut self,
        journal_offset: u64,
        item: usize,
        given: Option<Timestamp>,
    ) -> Result<(), LedgerError> {
        self.begin()?;
        self.connection.prepare_cached("INSERT OR REPLACE INTO exception VALUES (?1, ?2, ?3)")?.execute(params![
            journal_offset,
            item as i64,
            given.map(Timestamp::as_millis)
        ])?;
        Ok(())
    }

    /// Returns the exceptions of the journal entries in `offsets`.
    pub fn exceptions(
        &self,
        offsets: std::ops::Range<u64>,
    ) -> Result<BTreeMap<(u64, usize), Option<Timestamp>>, LedgerError> {
        read_exceptions(&self.connection, offsets)
    }

    /// Notes what a device says of itself, unless something newer is known.
    pub fn put_status(
        &mut self,
        unit: &frostline_core::model::UnitKey,
        online: bool,
        event_time: Option<Timestamp>,
        received_at: Timestamp,
    ) -> Result<(), LedgerError> {
        self.begin()?;
        self.connection.prepare_cached("INSERT OR REPLACE INTO status VALUES (?1, ?2, ?3, ?4, ?5)")?.execute(
            params![
                unit.operator.as_str(),
                unit.unit.as_str(),
                online,
                event_time.map(Timestamp::as_millis),
                received_at.as_millis(),
            ],
        )?;
        Ok(())
    }

    /// Drops the exceptions of entries that are gone from the journal, which now begins at `first_offset`.
    pub fn tidy(&mut self, first_offset: u64) -> Result<(), LedgerError> {
        self.begin()?;
        self.connection.prepare_cached("DELETE FROM exception WHERE journal_offset < ?1")?.execute([first_offset])?;
        Ok(())
    }
}

/// Names the rule and series (or unit, without a sensor) that an episode belongs to.
#[derive(Debug, Clone, Copy)]
pub struct EpisodeSeries<'a> {
    /// The enterprise responsible.
    pub operator: &'a str,
    /// The monitored space.
    pub unit: &'a str,
    /// The probe, or none for a rule on a whole unit.
    pub sensor: Option<&'a str>,
    /// The rule's id.
    pub rule: &'a str,
}

fn configure(connection: &Connection) -> Result<(), LedgerError> {
    connection.busy_timeout(std::time::Duration::from_secs(10))?;
    connection.set_prepared_statement_cache_capacity(64);
    connection.execute_batch(
        "PRAGMA journal_mode = WAL; PRAGMA synchronous = NORMAL; PRAGMA foreign_keys = ON; PRAGMA temp_store = MEMORY",
    )?;
    Ok(())
}

fn read_cursor(connection: &Connection) -> Result<Cursor, LedgerError> {
    let mut statement = connection.prepare_cached("SELECT next_offset, now_ms FROM cursor")?;
    Ok(statement
        .query_row([], |row| Ok(Cursor { next_offset: row.get(0)?, now: Timestamp::from_millis(row.get(1)?) }))?)
}

fn read_exceptions(
    connection: &Connection,
    offsets: std::ops::Range<u64>,
) -> Result<BTreeMap<(u64, usize), Option<Timestamp>>, LedgerError> {
    let mut statement = connection.prepare_cached(
        "SELECT journal_offset, item, event_time_ms FROM exception WHERE journal_offset >= ?1 AND journal_offset < ?2",
    )?;
    let rows = statement.query_map(params![offsets.start, offsets.end], |row| {
        let item: i64 = row.get(1)?;
        Ok(((row.get(0)?, item as usize), row.get::<_, Option<i64>>(2)?.map(Timestamp::from_millis)))
    })?;
    Ok(rows.collect::<Result<_, _>>()?)
}

fn configuration_below(connection: &Connection, offset: u64) -> Result<Option<(u64, String)>, LedgerError> {
    let mut statement = connection.prepare_cached(
        "SELECT journal_offset, content FROM configuration WHERE journal_offset < ?1
         ORDER BY journal_offset DESC LIMIT 1",
    )?;
    Ok(statement.query_row([offset], |row| Ok((row.get(0)?, row.get(1)?))).optional()?)
}

fn stored_alert(body: &str, first_seq: i64) -> Result<StoredAlert, LedgerError> {
    Ok(StoredAlert { alert: from_json(body)?, first_seq })
}

fn from_json(body: &str) -> Result<Alert, LedgerError> {
    serde_json::from_str(body).map_err(|error| LedgerError::Content { table: "alert", detail: error.to_string() })
}

fn to_json(alert: &Alert) -> String {
    serde_json::to_string(alert).expect("an alert has only string keys")
}
