//! Reading what was decided, for pages and commands; also while the daemon runs.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;

use frostline_core::model::Timestamp;
use rusqlite::types::Value;
use rusqlite::{Connection, OpenFlags, OptionalExtension, params};

use super::sink_progress::{ToldAlert, told_from};
use super::{Cursor, FILE_NAME, LedgerError, configuration_below, from_json, read_cursor, read_exceptions};
use crate::alert::Alert;

/// A connection that reads only.
#[derive(Debug)]
pub struct LedgerReader {
    pub(super) connection: Connection,
}

/// Which alerts are asked for; what is `None` does not restrict.
#[derive(Debug, Clone, Default)]
pub struct AlertFilter {
    /// `firing`, `resolved` or `retracted`.
    pub state: Option<String>,
    /// `open`, `acknowledged`, `disposed` or `closed`.
    pub handling: Option<String>,
    /// `notice`, `warning` or `critical`.
    pub severity: Option<String>,
    /// The enterprise responsible.
    pub operator: Option<String>,
    /// The monitored space.
    pub unit: Option<String>,
    /// Everything below this GB/T 2260 code.
    pub jurisdiction: Option<String>,
    /// Of the profile in force.
    pub category: Option<String>,
    /// Alerts still going on at or after this instant.
    pub from: Option<Timestamp>,
    /// Alerts that began before this instant.
    pub to: Option<Timestamp>,
}

/// A page of alerts, the latest fired first.
#[derive(Debug, Clone, PartialEq)]
pub struct AlertPage {
    /// The alerts.
    pub items: Vec<Alert>,
    /// Where the next page begins, if there is one.
    pub next: Option<(i64, String)>,
}

impl LedgerReader {
    /// Opens the ledger in `data_dir` for reading.
    ///
    /// # Errors
    /// Where there is none, or it cannot be read.
    pub fn open(data_dir: &Path) -> Result<Self, LedgerError> {
        let connection = Connection::open_with_flags(
            data_dir.join(FILE_NAME),
            OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX,
        )?;
        connection.busy_timeout(std::time::Duration::from_secs(10))?;
        connection.set_prepared_statement_cache_capacity(64);
        Ok(Self { connection })
    }

    /// Returns up to `limit` alerts, the latest fired first, from `after` (the `next` of the page before) on.
    pub fn alerts(
        &self,
        filter: &AlertFilter,
        after: Option<&(i64, String)>,
        limit: usize,
    ) -> Result<AlertPage, LedgerError> {
        let mut conditions = vec!["1"];
        let mut values: Vec<Value> = Vec::new();
        let mut add = |condition: &'static str, new: &[Value]| {
            conditions.push(condition);
            values.extend_from_slice(new);
        };
        for (condition, value) in [
            ("state = ?", &filter.state),
            ("handling = ?", &filter.handling),
            ("severity = ?", &filter.severity),
            ("operator = ?", &filter.operator),
            ("unit = ?", &filter.unit),
            ("category = ?", &filter.category),
        ] {
            if let Some(value) = value {
                add(condition, &[Value::Text(value.clone())]);
            }
        }
        if let Some(prefix) = &filter.jurisdiction {
            let prefix = Value::Text(prefix.clone());
            add("substr(jurisdiction, 1, length(?)) = ?", &[prefix.clone(), prefix]);
        }
        if let Some(from) = filter.from {
            add("coalesce(resolved_at_ms, 9223372036854775807) >= ?", &[Value::Integer(from.as_millis())]);
        }
        if let Some(to) = filter.to {
            add("started_at_ms < ?", &[Value::Integer(to.as_millis())]);
        }
        if let Some((fired_at_ms, id)) = after {
            let fired_at_ms = Value::Integer(*fired_at_ms);
            add(
                "(fired_at_ms < ? OR (fired_at_ms = ? AND id > ?))",
                &[fired_at_ms.clone(), fired_at_ms, Value::Text(id.clone())],
            );
        }
        values.push(Value::Integer(limit as i64 + 1));
        let query = format!(
            "SELECT body, fired_at_ms, id FROM alert WHERE {} ORDER BY fired_at_ms DESC, id LIMIT ?",
            conditions.join(" AND ")
        );
        let mut statement = self.connection.prepare_cached(&query)?;
        let mut rows = statement.query(rusqlite::params_from_iter(values))?;
        let mut page = AlertPage { items: Vec::new(), next: None };
        let mut last = None;
        while let Some(row) = rows.next()? {
            if page.items.len() == limit {
                page.next = last;
                break;
            }
            page.items.push(from_json(row.get_ref(0)?.as_str().unwrap_or_default())?);
            last = Some((row.get(1)?, row.get(2)?));
        }
        Ok(page)
    }

    /// Returns the alert with this id.
    pub fn alert(&self, id: &str) -> Result<Option<Alert>, LedgerError> {
        let mut statement = self.connection.prepare_cached("SELECT body FROM alert WHERE id = ?1")?;
        let body: Option<String> = statement.query_row([id], |row| row.get(0)).optional()?;
        body.map(|body| from_json(&body)).transpose()
    }

    /// Returns the ids of the alerts that fire now, by operator and unit.
    pub fn firing_units(&self) -> Result<BTreeMap<(String, String), u64>, LedgerError> {
        let mut statement = self
            .connection
            .prepare_cached("SELECT operator, unit, count(*) FROM alert WHERE state = 'firing' GROUP BY 1, 2")?;
        let rows = statement.query_map([], |row| Ok(((row.get(0)?, row.get(1)?), row.get(2)?)))?;
        Ok(rows.collect::<Result<_, _>>()?)
    }

    /// Returns up to `limit` transitions told from `seq` on.
    pub fn told_from(&self, seq: i64, limit: usize) -> Result<Vec<ToldAlert>, LedgerError> {
        told_from(&self.connection, seq, limit)
    }

    /// Returns what devices say of themselves: (online, event time, received at) by operator and unit.
    #[expect(clippy::type_complexity, reason = "a row of four columns keyed by two, read in one place")]
    pub fn statuses(&self) -> Result<BTreeMap<(String, String), (bool, Option<Timestamp>, Timestamp)>, LedgerError> {
        let mut statement = self
            .connection
            .prepare_cached("SELECT operator, unit, online, event_time_ms, received_at_ms FROM status")?;
        let rows = statement.query_map([], |row| {
            let event_time = row.get::<_, Option<i64>>(3)?.map(Timestamp::from_millis);
            Ok(((row.get(0)?, row.get(1)?), (row.get(2)?, event_time, Timestamp::from_millis(row.get(4)?))))
        })?;
        Ok(rows.collect::<Result<_, _>>()?)
    }

    /// Returns up to `limit` points that a series database would not take, newest first: (sink, line, reason, when).
    pub fn refused(&self, limit: usize) -> Result<Vec<(String, String, String, Timestamp)>, LedgerError> {
        let mut statement = self
            .connection
            .prepare_cached("SELECT sink, line, reason, refused_at_ms FROM refused ORDER BY id DESC LIMIT ?1")?;
        let rows = statement.query_map(params![limit as i64], |row| {
            Ok((row.get(0)?, row.get(1)?, row.get(2)?, Timestamp::from_millis(row.get(3)?)))
        })?;
        Ok(rows.collect::<Result<_, _>>()?)
    }
}

/// What an export reads.
impl LedgerReader {
    /// Returns how far the ledger has got.
    pub fn cursor(&self) -> Result<Cursor, LedgerError> {
        read_cursor(&self.connection)
    }

    /// Returns the newest configuration that took effect before a journal entry: its own offset and its content.
    pub fn configuration_before(&self, journal_offset: u64) -> Result<Option<(u64, String)>, LedgerError> {
        configuration_below(&self.connection, journal_offset)
    }

    /// Returns the exceptions of the journal entries in `offsets`.
    pub fn exceptions(&self, offsets: Range<u64>) -> Result<BTreeMap<(u64, usize), Option<Timestamp>>, LedgerError> {
        read_exceptions(&self.connection, offsets)
    }

    /// Gives every alert that shares an instant with `[from, to)` to `take`, as the JSON that was written, in the order
    /// of operator, unit, sensor, rule and start. All are of one moment.
    pub fn each_alert<E: From<LedgerError>>(
        &self,
        from: Timestamp,
        to: Timestamp,
        mut take: impl FnMut(&str) -> Result<(), E>,
    ) -> Result<(), E> {
        let select = "SELECT body FROM alert WHERE started_at_ms < ?2 AND coalesce(resolved_at_ms, ?2) >= ?1
             ORDER BY operator, unit, sensor, rule, started_at_ms, fired_at_ms";
        let mut statement = self.connection.prepare_cached(select).map_err(LedgerError::from)?;
        let mut rows = statement.query(params![from.as_millis(), to.as_millis()]).map_err(LedgerError::from)?;
        while let Some(row) = rows.next().map_err(LedgerError::from)? {
            let body = row.get_ref(0).map_err(LedgerError::from)?.as_str();
            take(body.map_err(|error| LedgerError::Content { table: "alert", detail: error.to_string() })?)?;
        }
        Ok(())
    }
}
