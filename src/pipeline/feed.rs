//! The accepted readings as a sink reads them: from the journal, at its own pace, with the ledger's exceptions.

use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::watch;

use super::decode::{Meaning, decode};
use crate::clock::Clock;
use crate::config::{Bundle, Judgement};
use crate::crash_point::crash_point;
use crate::journal::{Batch, Entry, JournalError, JournalReader, JournalReaders};
use crate::ledger::{LedgerError, SinkProgress};
use crate::series::line_protocol::{AlertPoint, LineBatch};
use crate::series::{Feed, RefusedPoint, SinkCursor, SinkStore, StoreError};

/// How much of the journal is read at once, in bytes.
const READ_BYTES: usize = 1 << 20;

/// Readings of the journal that the pipeline has accepted, as lines.
pub struct AcceptedFeed {
    journal: JournalReaders,
    reader: Option<JournalReader>,
    batch: Batch,
    ledger: SinkProgress,
    /// Entries below it are decided.
    committed: watch::Receiver<u64>,
    /// The configuration in force at the next entry, and where that is.
    judgement: Option<(u64, Arc<Judgement>)>,
}

impl AcceptedFeed {
    /// Reads the journal up to what `committed` says is decided.
    pub fn open(
        data_dir: &Path,
        journal: JournalReaders,
        committed: watch::Receiver<u64>,
    ) -> Result<Self, LedgerError> {
        Ok(Self {
            journal,
            reader: None,
            batch: Batch::new(),
            ledger: SinkProgress::open(data_dir)?,
            committed,
            judgement: None,
        })
    }

    /// Opens a reader at an offset, or at the oldest entry where that one is gone: it was written long ago, and safely.
    fn open_reader(&self, from: u64) -> Result<JournalReader, StoreError> {
        match self.journal.open(from) {
            Err(JournalError::Gone { first_offset, .. }) if first_offset > from => {
                tracing::info!(from, first_offset, "the sink begins at the oldest entry of the journal");
                Ok(self.journal.open(first_offset)?)
            }
            opened => Ok(opened?),
        }
    }

    fn judgement_at(&mut self, offset: u64) -> Result<Arc<Judgement>, StoreError> {
        match &self.judgement {
            Some((at, judgement)) if *at == offset => Ok(Arc::clone(judgement)),
            _ => match self.ledger.configuration_before(offset)? {
                Some((_, content)) => Ok(Arc::new(Bundle::from_text(&content)?.1)),
                None => Ok(Arc::new(Bundle::empty().1)),
            },
        }
    }
}

impl Feed for AcceptedFeed {
    fn read(&mut self, from: u64, points_max: usize, lines: &mut LineBatch) -> Result<Option<u64>, StoreError> {
        let end = *self.committed.borrow();
        if from >= end {
            return Ok(None);
        }
        let mut reader = match self.reader.take() {
            Some(reader) if reader.next_offset() == from => reader,
            _ => self.open_reader(from)?,
        };
        let first = reader.next_offset();
        let mut judgement = self.judgement_at(first)?;
        reader.read(&mut self.batch, READ_BYTES)?;
        let until = reader.next_offset().min(end);
        let exceptions = self.ledger.exceptions(first..until)?;
        let enough = lines.len() + points_max;
        let mut next = first;
        for (offset, received_at, entry) in self.batch.iter() {
            if offset >= until || lines.len() >= enough {
                break;
            }
            match entry {
                Entry::Message(message) => {
                    if let Meaning::Telemetry(telemetry) = decode(&judgement, &message, received_at) {
                        for (item, reading) in telemetry.decoded.items.iter().enumerate() {
                            let Ok(reading) = reading else { continue };
                            let event_time = match exceptions.get(&(offset, item)) {
                                Some(None) => continue,
                                Some(Some(given)) => *given,
                                None => reading.event_time.unwrap_or(telemetry.arrived_at),
                            };
                            let (operator, unit) = (telemetry.operator, telemetry.unit);
                            lines.push_reading(
                                operator,
                                unit,
                                &reading.sensor,
                                reading.kind,
                                event_time,
                                reading.value,
                            );
                        }
                    }
                }
                Entry::Configuration { content, .. } => {
                    let content = std::str::from_utf8(content)?;
                    judgement = Arc::new(Bundle::from_text(content)?.1);
                }
                Entry::Tick => {}
            }
            next = offset + 1;
        }
        self.judgement = Some((next, judgement));
        // A reader that stands further on than what was taken is opened anew.
        self.reader = (reader.next_offset() == next).then_some(reader);
        Ok(Some(next))
    }

    fn wait(&mut self, from: u64, timeout: Duration) {
        let deadline = std::time::Instant::now() + timeout;
        while *self.committed.borrow() <= from && std::time::Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(10).min(timeout));
        }
    }
}

/// The sinks' places and what they need of the ledger.
pub struct LedgerSinkStore {
    ledger: Mutex<SinkProgress>,
    clock: Arc<dyn Clock>,
    /// Entries below it are decided.
    committed: watch::Receiver<u64>,
    /// How far each sink has got, for the journal's clean-up.
    on_commit: Box<dyn Fn(u64) + Send + Sync>,
}

impl LedgerSinkStore {
    /// Opens the ledger in `data_dir`; `on_commit` hears how far the sink has safely got.
    pub fn open(
        data_dir: &Path,
        clock: Arc<dyn Clock>,
        committed: watch::Receiver<u64>,
        on_commit: impl Fn(u64) + Send + Sync + 'static,
    ) -> Result<Self, LedgerError> {
        let ledger = Mutex::new(SinkProgress::open(data_dir)?);
        Ok(Self { ledger, clock, committed, on_commit: Box::new(on_commit) })
    }

    fn ledger(&self) -> std::sync::MutexGuard<'_, SinkProgress> {
        self.ledger.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl SinkStore for LedgerSinkStore {
    fn cursor(&self, sink: &str) -> Result<SinkCursor, StoreError> {
        let (readings, alerts) = self.ledger().sink(sink)?;
        Ok(SinkCursor { readings, alerts: alerts as u64 })
    }

    fn commit(&self, sink: &str, cursor: SinkCursor) -> Result<(), StoreError> {
        self.ledger().set_sink(sink, cursor.readings, cursor.alerts as i64)?;
        crash_point("sink-committed");
        (self.on_commit)(cursor.readings);
        Ok(())
    }

    fn read_alerts(&self, after: u64, points_max: usize, lines: &mut LineBatch) -> Result<u64, StoreError> {
        let mut last = after;
        for told in self.ledger().told_from(after as i64 + 1, points_max)? {
            let alert = &told.alert;
            let broken = match (told.value, alert.limit_low, alert.limit_high) {
                (Some(value), Some(low), _) if value < low => Some(low),
                (_, low, high) => high.or(low),
            };
            lines.push_alert(&AlertPoint {
                operator: &alert.operator,
                unit: &alert.unit,
                sensor: alert.sensor.as_deref(),
                rule: &alert.rule,
                severity: &alert.severity,
                state: alert.state.as_str(),
                episode: &alert.id,
                revision: u32::try_from(alert.revision).unwrap_or(u32::MAX),
                value: told.value,
                limit: broken,
                started_at: alert.started_at.0,
                event_time: told.event_time,
                superseded: told.superseded,
                may_replace: alert.revision > 1 || alert.late,
            });
            last = told.seq as u64;
        }
        Ok(last)
    }

    fn journal_end(&self) -> u64 {
        *self.committed.borrow()
    }

    fn record_refused(&self, sink: &str, points: &[RefusedPoint]) -> Result<(), StoreError> {
        let lines: Vec<_> = points.iter().map(|point| (point.line.clone(), point.reason.clone())).collect();
        Ok(self.ledger().put_refused(sink, &lines, self.clock.now())?)
    }
}
