//! Messages and readings that could not be used, kept until their quota is full.

use frostline_core::model::Timestamp;
use rusqlite::{Row, params};

use super::{Ledger, LedgerError, LedgerReader};

/// A message of which something could not be used.
#[derive(Debug, Clone, PartialEq)]
pub struct DeadMessage {
    /// Its place in the journal.
    pub journal_offset: u64,
    /// When the journal took it.
    pub received_at: Timestamp,
    /// The filter of its route; empty where no route matched.
    pub route: String,
    /// The topic as it came.
    pub topic: Vec<u8>,
    /// The payload as it came; of an oversize one the first 64 KiB.
    pub payload: Vec<u8>,
    /// The length of the whole payload in bytes.
    pub length: u64,
    /// Hash of the whole payload, in hex, where it was cut.
    pub sha256: Option<String>,
    /// When it was last given to the journal again.
    pub redriven_at: Option<Timestamp>,
}

/// One thing in it that could not be used.
#[derive(Debug, Clone, PartialEq)]
pub struct DeadLetter {
    /// Its number; grows with time.
    pub id: i64,
    /// The message that it came in.
    pub message: DeadMessage,
    /// Which reading of the message, counted from 0; none for all of it.
    pub item: Option<u64>,
    /// One of the contract's words: `malformed`, `schema`, `range`, ….
    pub reason: String,
    /// What exactly is wrong.
    pub detail: String,
}

/// How much of its payload a letter shows in a list, in bytes.
const EXCERPT_BYTES: usize = 200;

/// Returns the query for dead letters with this much of their payload.
fn select(payload: &str) -> String {
    format!(
        "SELECT dead_letter.id, dead_letter.item, dead_letter.reason, dead_letter.detail, dead_message.journal_offset,
             received_at_ms, route, topic, {payload}, length, sha256, redriven_at_ms
         FROM dead_letter JOIN dead_message USING (journal_offset)"
    )
}

impl Ledger {
    /// Keeps a message, once, for the dead letters in it.
    pub fn put_dead_message(&mut self, message: &DeadMessage) -> Result<(), LedgerError> {
        self.begin()?;
        self.connection
            .prepare_cached("INSERT OR IGNORE INTO dead_message VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, NULL)")?
            .execute(params![
                message.journal_offset,
                message.received_at.as_millis(),
                message.route,
                message.topic,
                message.payload,
                message.length,
                message.sha256,
            ])?;
        Ok(())
    }

    /// Notes one thing in a kept message that could not be used.
    pub fn put_dead_letter(
        &mut self,
        journal_offset: u64,
        item: Option<usize>,
        reason: &str,
        detail: &str,
    ) -> Result<(), LedgerError> {
        self.begin()?;
        self.connection
            .prepare_cached("INSERT INTO dead_letter (journal_offset, item, reason, detail) VALUES (?1, ?2, ?3, ?4)")?
            .execute(params![journal_offset, item.map(|item| item as i64), reason, detail])?;
        Ok(())
    }

    /// Drops the oldest messages until what is kept takes at most `max_size_bytes`; returns how many letters went.
    pub fn evict_dead_letters(&mut self, max_size_bytes: u64) -> Result<u64, LedgerError> {
        // What a row costs beside its payload: topic, hash, index entries.
        const ROW_BYTES: u64 = 200;
        let size: u64 = self
            .connection
            .prepare_cached("SELECT coalesce(sum(length(payload) + ?1), 0) FROM dead_message")?
            .query_row([ROW_BYTES], |row| row.get(0))?;
        if size <= max_size_bytes {
            return Ok(0);
        }
        self.begin()?;
        let mut excess = size - max_size_bytes;
        let mut last = None;
        {
            let mut statement = self
                .connection
                .prepare_cached("SELECT journal_offset, length(payload) FROM dead_message ORDER BY journal_offset")?;
            let mut rows = statement.query([])?;
            while excess > 0
                && let Some(row) = rows.next()?
            {
                last = Some(row.get::<_, u64>(0)?);
                excess = excess.saturating_sub(row.get::<_, u64>(1)? + ROW_BYTES);
            }
        }
        let gone =
            self.connection.prepare_cached("DELETE FROM dead_letter WHERE journal_offset <= ?1")?.execute([last])?;
        self.connection.prepare_cached("DELETE FROM dead_message WHERE journal_offset <= ?1")?.execute([last])?;
        Ok(gone as u64)
    }
}

impl LedgerReader {
    /// Returns up to `limit` dead letters older than `before` (a number; none for the newest), newest first, each with
    /// the beginning of its payload: there may be thousands of them, of megabytes each.
    pub fn dead_letters(
        &self,
        reason: Option<&str>,
        before: Option<i64>,
        limit: usize,
    ) -> Result<Vec<DeadLetter>, LedgerError> {
        let mut statement = self.connection.prepare_cached(&format!(
            "{} WHERE (?1 IS NULL OR reason = ?1) AND (?2 IS NULL OR id < ?2) ORDER BY id DESC LIMIT ?3",
            // Of an empty blob SQLite makes null.
            select(&format!("ifnull(substr(payload, 1, {EXCERPT_BYTES}), x'')"))
        ))?;
        let rows = statement.query_map(params![reason, before, limit as i64], dead_letter)?;
        Ok(rows.collect::<Result<_, _>>()?)
    }

    /// Returns the dead letter with this number, if it is still kept.
    pub fn dead_letter(&self, id: i64) -> Result<Option<DeadLetter>, LedgerError> {
        use rusqlite::OptionalExtension;
        let mut statement = self.connection.prepare_cached(&format!("{} WHERE id = ?1", select("payload")))?;
        Ok(statement.query_row([id], dead_letter).optional()?)
    }
}

fn dead_letter(row: &Row<'_>) -> rusqlite::Result<DeadLetter> {
    Ok(DeadLetter {
        id: row.get(0)?,
        item: row.get(1)?,
        reason: row.get(2)?,
        detail: row.get(3)?,
        message: DeadMessage {
            journal_offset: row.get(4)?,
            received_at: Timestamp::from_millis(row.get(5)?),
            route: row.get(6)?,
            topic: row.get(7)?,
            payload: row.get(8)?,
            length: row.get(9)?,
            sha256: row.get(10)?,
            redriven_at: row.get::<_, Option<i64>>(11)?.map(Timestamp::from_millis),
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_payload_is_listed_like_any_other() {
        let dir = tempfile::tempdir().unwrap();
        let mut ledger = Ledger::open(dir.path()).unwrap();
        let message = DeadMessage {
            journal_offset: 7,
            received_at: Timestamp::from_millis(1),
            route: "coldchain/v1/+/+/telemetry".to_owned(),
            topic: b"coldchain/v1/op1/u1/telemetry".to_vec(),
            payload: Vec::new(),
            length: 0,
            sha256: None,
            redriven_at: None,
        };
        ledger.put_dead_message(&message).unwrap();
        ledger.put_dead_letter(7, None, "malformed", "nothing").unwrap();
        ledger.force().unwrap();
        let listed = LedgerReader::open(dir.path()).unwrap().dead_letters(None, None, 10).unwrap();
        assert_eq!(listed.len(), 1);
        assert_eq!(listed[0].message, message);
    }
}
