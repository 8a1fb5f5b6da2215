//! From the journal to everything else: the one place that sees decoding, judging, the ledger and the history.
//!
//! The pipeline is one thread that applies journal entries in their order. What it does with an entry depends on the
//! journal alone, never on the time of day or on how entries happened to be batched: time passes for the rules where an
//! entry says so, and `advance` is called before each entry that is late enough, not when a batch happens to end.
//!
//! A restart takes the last snapshot, from offset S, and applies the entries behind it again. Up to the ledger's cursor
//! their effects are known already and are left out. The history is as of S too, since both are committed together, and
//! gets the readings of the entries behind S again; so every entry finds what it found the first time.
//!
//! Readings that come late are stored at once and judged a little later, at a tick, together with others of their unit:
//! see [`rejudge`].

mod accounting;
mod alerts;
mod amend;
pub(crate) mod decode;
mod device_clock;
mod feed;
mod query;
mod rejudge;
mod snapshot;
mod state;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use frostline_core::codec::{DeadLetterReason, Rejection};
use frostline_core::hex;
use frostline_core::model::{Kind, Name, Quality, Reading, Timestamp, UnitKey};
use frostline_core::rules::{Engine, Timeliness, Transition};
use tokio_util::sync::CancellationToken;

use self::decode::{Meaning, Telemetry, decode};
use self::state::{LateReason, Step, UnitIndex, Units};
use crate::clock::Clock;
use crate::config::{Bundle, ClockSource, Judgement};
use crate::crash_point::crash_point;
use crate::health::Part;
use crate::history::{ClosedDays, History, HistoryError, HistoryOptions, HistorySeriesId};
use crate::journal::{Batch, Cursor as JournalCursor, Entry, JournalError, JournalReaders, Message};
use crate::ledger::{CounterKey, Cursor, DeadMessage, Ledger, LedgerError};

pub use accounting::{Accounting, Terms, Totals};
pub use alerts::{ReadingEvent, StreamEvent};
pub use device_clock::DeviceClock;
pub use feed::{AcceptedFeed, LedgerSinkStore};
pub use query::{Live, NoAnswer, SeriesView, UnitView, Unwritten, UnwrittenUnit};

/// The history's file in the data directory.
pub const HISTORY_FILE: &str = "history.db";
/// How much of the journal is applied in one ledger transaction, in bytes.
const BATCH_BYTES: usize = 1 << 20;
/// How long the pipeline sleeps at most before it looks for questions and for the end.
const IDLE_WAIT: Duration = Duration::from_millis(20);
/// Where readings bring the time, how far one may move it without a word, in milliseconds.
const LEAP_MS: i64 = 3_600_000;
/// How often a snapshot is made, in milliseconds.
const SNAPSHOT_INTERVAL_MS: i64 = 60_000;
/// After how long a message is seen in the figures of alerts that it does not end, in milliseconds.
const FIGURES_INTERVAL_MS: i64 = 1_000;
/// How many readings may wait in memory for the history's next commit.
const UNCOMMITTED_READINGS_MAX: u64 = 2_000_000;

/// Why the pipeline stopped.
#[derive(Debug, thiserror::Error)]
pub enum PipelineError {
    /// The journal cannot be read.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// The ledger cannot be used.
    #[error(transparent)]
    Ledger(#[from] LedgerError),
    /// The history cannot be used.
    #[error(transparent)]
    History(#[from] HistoryError),
    /// A configuration in the journal, or a snapshot, cannot be understood.
    #[error("the {what} at journal offset {offset} cannot be used: {detail}")]
    Content {
        /// What it is.
        what: &'static str,
        /// Where it stands.
        offset: u64,
        /// What is wrong with it.
        detail: String,
    },
}

impl PipelineError {
    /// Returns whether waiting can mend it, for room on the disk as a rule.
    fn is_temporary(&self) -> bool {
        matches!(self, Self::Ledger(error) if error.is_temporary())
            || matches!(self, Self::History(error) if error.is_temporary())
    }
}

/// What the pipeline is built from.
#[derive(Clone)]
pub struct PipelineOptions {
    /// Where the ledger and the history live.
    pub data_dir: PathBuf,
    /// How long readings stay in the history, in milliseconds.
    pub history_retention_ms: i64,
    /// How many bytes of dead letters are kept.
    pub dead_letters_max_size_bytes: u64,
    /// After how many bytes of journal a snapshot is made before its time, so that a small journal is not held full.
    pub snapshot_every_bytes: u64,
    /// Whether the fleet is simulated or replayed.
    pub exercise: bool,
    /// In which days a reading leaves a mark in the history.
    pub closed_days: ClosedDays,
    /// Where the history counts.
    pub history_metrics: crate::history::HistoryMetrics,
    /// The time of day, for the spacing of snapshots only.
    pub clock: Arc<dyn Clock>,
}

/// What the rest of the daemon shares with the pipeline.
#[derive(Clone)]
pub struct PipelineShared {
    /// The totals as of the last commit.
    pub accounting: Accounting,
    /// Questions about what is not in any file.
    pub live: Live,
    /// Transitions and readings as they are committed.
    pub events: tokio::sync::broadcast::Sender<Arc<StreamEvent>>,
    /// Readings as they are accepted; made only while somebody listens.
    pub readings: tokio::sync::broadcast::Sender<Arc<ReadingEvent>>,
    /// When the rules next want to know the time, in milliseconds; `i64::MAX` for never.
    pub next_deadline_ms: Arc<AtomicI64>,
    /// When a series or unit will have been quiet for long enough to be judged, by the clock of arrival, in
    /// milliseconds; `i64::MAX` for never.
    pub next_quiet_ms: Arc<AtomicI64>,
    /// Told that something new is committed: (next journal offset, anything for the outbox).
    pub committed: tokio::sync::watch::Sender<u64>,
}

impl PipelineShared {
    /// Returns it as it is before anything is judged; a listener may fall `backlog` events behind.
    pub fn new(backlog: usize) -> Self {
        Self {
            accounting: Accounting::default(),
            live: Live::default(),
            events: tokio::sync::broadcast::channel(backlog).0,
            readings: tokio::sync::broadcast::channel(backlog).0,
            next_deadline_ms: Arc::new(AtomicI64::new(i64::MAX)),
            next_quiet_ms: Arc::new(AtomicI64::new(i64::MAX)),
            committed: tokio::sync::watch::channel(0).0,
        }
    }
}

/// The pipeline between two journal entries.
struct Pipeline {
    options: PipelineOptions,
    shared: PipelineShared,
    ledger: Ledger,
    history: History,
    engine: Engine,
    judgement: Arc<Judgement>,
    configuration_hash: Option<[u8; 32]>,
    /// The journal offset of the newest configuration.
    configuration_offset: u64,
    /// Every configuration that has judged: its journal offset, and the instant from which on it was in force.
    eras: Vec<(u64, Timestamp)>,
    units: Units,
    /// The rules' *now*.
    now: Timestamp,
    /// The next entry to apply.
    next_offset: u64,
    /// Entries below this one have had their effects.
    effects_from: u64,
    /// When the entry being applied was taken.
    received_at: Timestamp,
    /// The units that have to be judged again.
    dirty: BTreeSet<UnitIndex>,
    /// Whether a unit was judged again since the last commit.
    has_judged_again: bool,
    /// The units whose firing alerts are brought up to date at the next tick.
    unshown: BTreeSet<UnitIndex>,
    /// When the first message since the last tick was taken.
    untimed_since: Option<Timestamp>,
    /// What the batch adds to the totals.
    growth: BTreeMap<CounterKey, u64>,
    /// What the batch tells the stream once it is committed.
    events: Vec<Arc<StreamEvent>>,
    /// A buffer for the engine's answers.
    transitions: Vec<Transition>,
    /// Whether dead letters were written since their quota was last looked at.
    dead_letters_written: bool,
    last_snapshot_at: Timestamp,
    bytes_since_snapshot: u64,
}

/// Runs the pipeline until `stop` is cancelled, then makes a snapshot and ends.
///
/// # Errors
/// What makes it impossible to go on. A full disk does not: it is waited for.
pub fn run(
    options: &PipelineOptions,
    shared: &PipelineShared,
    journal: &JournalReaders,
    cursor: &JournalCursor,
    health: &Part,
    stop: &CancellationToken,
) -> Result<(), PipelineError> {
    loop {
        let ended =
            Pipeline::open(options, shared).and_then(|mut pipeline| pipeline.follow(journal, cursor, health, stop));
        match ended {
            Err(error) if error.is_temporary() && !stop.is_cancelled() => {
                // What was applied since the last commit is given up; the journal still has it.
                tracing::error!(error = &error as &dyn std::error::Error, "cannot write: waiting");
                health.down(format!("waiting until it can write: {error}"));
                std::thread::sleep(Duration::from_secs(1));
            }
            ended => return ended,
        }
    }
}

impl Pipeline {
    fn open(options: &PipelineOptions, shared: &PipelineShared) -> Result<Self, PipelineError> {
        let ledger = Ledger::open(&options.data_dir)?;
        let history = History::open(
            &options.data_dir.join(HISTORY_FILE),
            HistoryOptions {
                closed_days: options.closed_days.clone(),
                metrics: options.history_metrics.clone(),
                ..HistoryOptions::default()
            },
        )?;
        shared.accounting.replace(ledger.counters()?);
        let cursor = ledger.cursor()?;
        let judgement = Arc::new(Bundle::empty().1);
        let mut pipeline = Self {
            options: options.clone(),
            shared: shared.clone(),
            engine: alerts::new_engine(&judgement, Timestamp::MIN),
            judgement,
            configuration_hash: None,
            configuration_offset: 0,
            eras: Vec::new(),
            units: Units::default(),
            now: Timestamp::MIN,
            next_offset: 0,
            effects_from: cursor.next_offset,
            received_at: Timestamp::MIN,
            dirty: BTreeSet::new(),
            has_judged_again: false,
            unshown: BTreeSet::new(),
            untimed_since: None,
            ledger,
            history,
            growth: BTreeMap::new(),
            events: Vec::new(),
            transitions: Vec::new(),
            dead_letters_written: true,
            last_snapshot_at: options.clock.now(),
            bytes_since_snapshot: 0,
        };
        pipeline.restore_snapshot()?;
        pipeline.show_clocks_ahead();
        if pipeline.next_offset < cursor.next_offset {
            tracing::info!(
                from = pipeline.next_offset,
                to = cursor.next_offset,
                "judging what was judged since the last snapshot once more, without its effects"
            );
        }
        Ok(pipeline)
    }

    fn follow(
        &mut self,
        journal: &JournalReaders,
        cursor: &JournalCursor,
        health: &Part,
        stop: &CancellationToken,
    ) -> Result<(), PipelineError> {
        let mut reader = journal.open(self.next_offset)?;
        cursor.advance(self.next_offset);
        let mut batch = Batch::new();
        loop {
            let count = reader.read(&mut batch, BATCH_BYTES)?;
            if count == 0 {
                health.up("judging");
                self.shared.live.answer(self);
                if stop.is_cancelled() && reader.next_offset() >= journal.next_offset() {
                    break;
                }
                if self.wants_snapshot() {
                    self.make_snapshot(journal, cursor)?;
                }
                reader.wait(IDLE_WAIT);
                continue;
            }
            self.bytes_since_snapshot += batch.bytes() as u64;
            for (offset, received_at, entry) in batch.iter() {
                self.apply(offset, received_at, &entry)?;
                if std::mem::take(&mut self.has_judged_again) {
                    // That takes a while, and outbox and sinks wait for the ledger.
                    self.commit()?;
                }
            }
            self.commit()?;
            self.shared.live.answer(self);
            if self.wants_snapshot() {
                self.make_snapshot(journal, cursor)?;
            }
        }
        self.make_snapshot(journal, cursor)
    }

    fn apply(&mut self, offset: u64, received_at: Timestamp, entry: &Entry<'_>) -> Result<(), PipelineError> {
        (self.next_offset, self.received_at) = (offset, received_at);
        self.engine.arrive_at(received_at);
        // Before the first configuration nobody has said whose clock counts.
        if self.judgement.clock == ClockSource::System && self.configuration_hash.is_some() {
            self.now = self.now.max(received_at);
        }
        if let Entry::Tick = entry {
            // Before time passes for the rules: what they would say of it would be taken back.
            self.judge_again()?;
        }
        self.let_time_pass()?;
        match entry {
            Entry::Tick => self.show_figures()?,
            Entry::Configuration { hash, content } => self.apply_configuration(offset, received_at, hash, content)?,
            Entry::Message(message) => {
                self.untimed_since = self.untimed_since.or(Some(received_at));
                self.apply_message(offset, received_at, message)?;
            }
        }
        if self.judgement.clock == ClockSource::Readings {
            // The message itself may have moved the rules' now.
            self.let_time_pass()?;
        }
        self.next_offset = offset + 1;
        Ok(())
    }

    /// Goes over to another configuration, at the instant at which it was loaded.
    fn apply_configuration(
        &mut self,
        offset: u64,
        received_at: Timestamp,
        hash: &[u8; 32],
        content: &[u8],
    ) -> Result<(), PipelineError> {
        if self.configuration_hash == Some(*hash) {
            return Ok(());
        }
        let understood = std::str::from_utf8(content)
            .map_err(|error| error.to_string())
            .and_then(|text| Bundle::from_text(text).map(|(_, judgement)| (text, judgement)));
        let (text, judgement) =
            understood.map_err(|detail| PipelineError::Content { what: "configuration", offset, detail })?;
        if self.has_effects(offset) {
            self.ledger.put_configuration(offset, received_at, &hex(hash), text)?;
        }
        let judgement = Arc::new(judgement);
        if judgement.clock == ClockSource::System {
            self.now = self.now.max(received_at);
        }
        self.configuration_offset = offset;
        if self.now > Timestamp::MIN {
            let before = Arc::clone(&self.judgement);
            self.reconfigure(offset, judgement, *hash, self.now);
            self.find_what_came_before(&before.registry, self.now);
        } else {
            // Where readings bring the time, it begins with the first one, and the rules with it.
            self.judgement = judgement;
            self.configuration_hash = Some(*hash);
        }
        crash_point("pipeline-configured");
        Ok(())
    }

    /// Lets the rules conclude what follows from time alone, where they have asked for it.
    fn let_time_pass(&mut self) -> Result<(), PipelineError> {
        let is_due = self.engine.next_deadline().is_some_and(|deadline| deadline <= self.now)
            || self.engine.next_quiet().is_some_and(|quiet_at| quiet_at <= self.received_at);
        if is_due {
            let mut transitions = std::mem::take(&mut self.transitions);
            self.engine.advance(self.now, &mut transitions);
            // In which order the engine comes to them depends on its past; what is told must not. For one rule and
            // series the instants never go back, so this keeps the order of what belongs together.
            let engine = &self.engine;
            transitions.sort_by_cached_key(|transition| {
                let subject = engine.subject(transition.series);
                (transition.instant, subject.unit.clone(), subject.sensor.map(str::to_owned), transition.rule)
            });
            self.take_transitions(&mut transitions)?;
            self.transitions = transitions;
        }
        Ok(())
    }

    fn apply_message(
        &mut self,
        offset: u64,
        received_at: Timestamp,
        message: &Message<'_>,
    ) -> Result<(), PipelineError> {
        let judgement = Arc::clone(&self.judgement);
        match decode(&judgement, message, received_at) {
            Meaning::Telemetry(telemetry) => self.apply_telemetry(offset, received_at, message, telemetry),
            Meaning::Status { operator, unit, status } => {
                let key = unit_key(operator, unit);
                if self.has_effects(offset) {
                    self.ledger.put_status(&key, status.online, status.event_time, received_at)?;
                }
                Ok(())
            }
            Meaning::Dead { route, rejection } => {
                self.count(offset, accounting::RECEIVED, route_label(route), 1);
                self.dead_letter(offset, received_at, message, route, None, &rejection)
            }
        }
    }

    fn apply_telemetry(
        &mut self,
        offset: u64,
        received_at: Timestamp,
        message: &Message<'_>,
        telemetry: Telemetry<'_>,
    ) -> Result<(), PipelineError> {
        let Telemetry { route, operator, unit, decoded, arrived_at, newest_event_time, retained_without_time } =
            telemetry;
        let label = route_label(route);
        if retained_without_time {
            self.count(offset, accounting::MESSAGES_IGNORED, "retained_without_time", 1);
        }
        let index = self.units.of_topic(message.topic, || unit_key(operator, unit));
        let unit = self.units.get_mut(index);
        unit.last_received_at = unit.last_received_at.max(received_at);
        unit.changed = true;
        let is_future = |item: &Result<_, Rejection>| matches!(item, Err(r) if r.reason == DeadLetterReason::Future);
        unit.clock.refuse_future(decoded.items.iter().filter(|item| is_future(item)).count() as u64);
        let has_untimed = decoded.items.iter().any(|item| matches!(item, Ok(reading) if reading.event_time.is_none()));
        let is_repeat = decoded.seq.is_some_and(|seq| has_untimed && unit.untimed.is_repeat(seq, message.payload));
        match decoded.seq.map(|seq| unit.sequence.take(seq)) {
            Some(Step::Gap(missing)) => self.count(offset, accounting::SEQUENCE_GAPS, "", missing),
            Some(Step::Repeat) => self.count(offset, accounting::SEQUENCE_REPEATS, "", 1),
            Some(Step::Next) | None => {}
        }
        if decoded.invalid_seq {
            self.count(offset, accounting::SEQUENCE_INVALID, "", 1);
        }
        let is_straight = !message.retained && message.original_received_at.is_none();
        if let Some(event_time) = newest_event_time.filter(|_| is_straight) {
            self.watch_clock(offset, received_at, index, event_time);
        }
        let mut tally = Tally { received: decoded.items.len() as u64, ..Tally::default() };
        for (item, reading) in decoded.items.into_iter().enumerate() {
            let rejection = match reading {
                Ok(reading) => {
                    let is_redriven = message.original_received_at.is_some();
                    let place = Place { offset, item, unit: index, arrived_at, is_repeat, is_redriven };
                    match self.accept(
                        &place,
                        &reading.sensor,
                        reading.kind,
                        reading.event_time,
                        reading.value,
                        reading.quality,
                    )? {
                        Verdict::Stored => {
                            tally.stored += 1;
                            continue;
                        }
                        Verdict::Duplicate => {
                            tally.duplicate += 1;
                            continue;
                        }
                        Verdict::Rejected(rejection) => {
                            self.note_exception(offset, item, None)?;
                            rejection
                        }
                    }
                }
                Err(rejection) => rejection,
            };
            self.dead_letter(offset, received_at, message, route, Some(item), &rejection)?;
        }
        for (name, value) in [
            (accounting::RECEIVED, tally.received),
            (accounting::STORED, tally.stored),
            (accounting::DUPLICATE, tally.duplicate),
        ] {
            self.count(offset, name, label, value);
        }
        Ok(())
    }

    /// Takes one reading: into the history and to the rules, or finds that it is there already.
    fn accept(
        &mut self,
        place: &Place,
        sensor: &str,
        kind: Kind,
        event_time: Option<Timestamp>,
        value: Option<f64>,
        quality: Quality,
    ) -> Result<Verdict, PipelineError> {
        let unit = self.units.get_mut(place.unit);
        let position = unit.series_position(sensor, kind, &mut self.engine, &mut self.history)?;
        let series = &mut unit.series[position];
        let (newest, history) = (series.newest, series.history);
        let (event_time, quality) = match event_time {
            Some(event_time) => (event_time, quality),
            None => match self.time_of_arrival(place, newest, history, value)? {
                Some(event_time) => (event_time, quality.with(Quality::SERVER_TIME)),
                None => return Ok(Verdict::Duplicate),
            },
        };
        let reading = Reading { event_time, value, quality };
        if quality.has(Quality::SERVER_TIME) {
            self.count(place.offset, accounting::SERVER_TIME, "", 1);
        }
        if self.judgement.clock == ClockSource::Readings
            && event_time < self.now.plus_millis(-self.judgement.ingest.max_age_ms)
        {
            let detail = format!("{event_time} is more than ingest.max_age before the newest reading, {}", self.now);
            return Ok(Verdict::Rejected(Rejection::new(DeadLetterReason::Past, detail)));
        }
        if event_time > newest {
            self.units.get_mut(place.unit).series[position].newest = event_time;
            self.history.insert(history, reading);
            if self.judgement.clock == ClockSource::Readings {
                if self.now == Timestamp::MIN
                    && let Some(hash) = self.configuration_hash
                {
                    self.reconfigure(self.configuration_offset, Arc::clone(&self.judgement), hash, event_time);
                }
                let leap_ms = event_time.millis_since(self.now);
                if self.now > Timestamp::MIN && leap_ms > LEAP_MS && self.has_effects(place.offset) {
                    let key = &self.units.get_mut(place.unit).key;
                    tracing::warn!(operator = %key.operator, unit_id = %key.unit, from = %self.now, to = %event_time,
                        "one reading has moved the time of all by more than an hour");
                }
                self.now = self.now.max(event_time);
            }
            let engine = self.units.get_mut(place.unit).series[position].engine;
            let mut transitions = std::mem::take(&mut self.transitions);
            let timeliness = self.engine.observe(engine, &reading, self.now, &mut transitions);
            if timeliness == Timeliness::LateForUnit {
                self.make_dirty(place.unit, event_time, LateReason::Backlog);
            }
            self.take_transitions(&mut transitions)?;
            self.transitions = transitions;
            self.begin_earlier(event_time);
            self.show_reading(place, sensor, kind, &reading);
            return Ok(Verdict::Stored);
        }
        match self.history.value_at(history, event_time)? {
            Some(accepted) if accepted.has_same_value(&reading) => Ok(Verdict::Duplicate),
            Some(accepted) => {
                let detail = format!(
                    "{} {sensor} at {event_time} was accepted as {}; this message says {}",
                    kind,
                    value_text(accepted.value),
                    value_text(value)
                );
                Ok(Verdict::Rejected(Rejection::new(DeadLetterReason::Conflict, detail)))
            }
            None => {
                self.history.insert(history, reading);
                self.count(place.offset, accounting::LATE, "", 1);
                self.make_dirty(place.unit, event_time, LateReason::Backlog);
                self.begin_earlier(event_time);
                Ok(Verdict::Stored)
            }
        }
    }

    /// Where readings bring the time, sensors were registered at the oldest of them, whichever came first.
    fn begin_earlier(&mut self, event_time: Timestamp) {
        let Some((_, begins_at)) = self.eras.first_mut() else { return };
        if self.judgement.clock == ClockSource::System || event_time >= *begins_at {
            return;
        }
        *begins_at = event_time;
        self.engine.begin_at(event_time);
        let registry = Arc::clone(&self.judgement.registry);
        for unit in registry.sensors.keys() {
            let index = self.units.of_key(unit.clone());
            self.make_dirty(index, Timestamp::MIN, LateReason::Backlog);
        }
    }

    fn show_reading(&mut self, place: &Place, sensor: &str, kind: Kind, reading: &Reading) {
        if self.shared.readings.receiver_count() > 0 && self.has_effects(place.offset) {
            let unit = self.units.get_mut(place.unit);
            // Whoever has just left misses nothing.
            drop(self.shared.readings.send(Arc::new(ReadingEvent {
                unit: unit.key.clone(),
                sensor: sensor.to_owned(),
                kind,
                reading: *reading,
            })));
        }
    }

    /// Returns the time of a reading that says none: the next free millisecond of its series from its arrival on; or
    /// none where the message has been taken before.
    fn time_of_arrival(
        &mut self,
        place: &Place,
        newest: Timestamp,
        history: HistorySeriesId,
        value: Option<f64>,
    ) -> Result<Option<Timestamp>, PipelineError> {
        let is_known = place.is_repeat
            || place.is_redriven && {
                let reading = Reading { event_time: place.arrived_at, value, quality: Quality::GOOD };
                let there = self.history.value_at(history, place.arrived_at)?;
                there.is_some_and(|there| there.has_same_value(&reading))
            };
        if is_known {
            self.note_exception(place.offset, place.item, None)?;
            return Ok(None);
        }
        if place.arrived_at > newest {
            return Ok(Some(place.arrived_at));
        }
        let free = self.history.next_free(history, place.arrived_at)?;
        if free != place.arrived_at {
            self.note_exception(place.offset, place.item, Some(free))?;
        }
        Ok(Some(free))
    }

    /// Notes for the sinks what decoding the message again cannot tell.
    fn note_exception(&mut self, offset: u64, item: usize, given: Option<Timestamp>) -> Result<(), PipelineError> {
        if self.has_effects(offset) {
            self.ledger.put_exception(offset, item, given)?;
        }
        Ok(())
    }

    fn dead_letter(
        &mut self,
        offset: u64,
        received_at: Timestamp,
        message: &Message<'_>,
        route: &str,
        item: Option<usize>,
        rejection: &Rejection,
    ) -> Result<(), PipelineError> {
        self.count(offset, accounting::DEAD_LETTERED, route_label(route), 1);
        self.count(offset, accounting::DEAD_LETTERS, rejection.reason.as_str(), 1);
        if !self.has_effects(offset) {
            return Ok(());
        }
        self.dead_letters_written = true;
        self.ledger.put_dead_message(&DeadMessage {
            journal_offset: offset,
            received_at: message.original_received_at.unwrap_or(received_at),
            route: route.to_owned(),
            topic: message.topic.to_vec(),
            payload: message.payload.to_vec(),
            length: message.oversize.as_ref().map_or(message.payload.len() as u64, |oversize| oversize.length),
            sha256: message.oversize.as_ref().map(|oversize| hex(&oversize.sha256)),
            redriven_at: None,
        })?;
        self.ledger.put_dead_letter(offset, item, rejection.reason.as_str(), &rejection.detail)?;
        Ok(())
    }

    /// Compares a unit's clock with the journal's, and tells where it goes wrong or right again.
    fn watch_clock(&mut self, offset: u64, received_at: Timestamp, index: UnitIndex, event_time: Timestamp) {
        if self.judgement.clock == ClockSource::Readings {
            // Readings bring the time: there is no other to compare them with.
            return;
        }
        let unit = self.units.get_mut(index);
        let change = unit.clock.observe(event_time, received_at);
        let (operator, unit_id) = (unit.key.operator.clone(), unit.key.unit.clone());
        let skew_ms = unit.clock.skew_ms();
        if let Some(jumped_ms) = change.jumped_ms {
            self.count(offset, accounting::CLOCK_JUMPS, "", 1);
            if self.has_effects(offset) {
                tracing::warn!(%operator, %unit_id, jumped_ms, ?skew_ms, "the clock of a device was set");
            }
        }
        if let Some(is_ahead) = change.is_ahead {
            self.show_clocks_ahead();
            if self.has_effects(offset) && is_ahead {
                tracing::warn!(%operator, %unit_id, skew_ms, "the clock of a device is ahead");
            } else if self.has_effects(offset) {
                tracing::warn!(%operator, %unit_id, skew_ms, "the clock of a device is not ahead any more");
            }
        }
    }

    fn show_clocks_ahead(&self) {
        self.shared.accounting.show_units_clock_ahead(self.units.iter().filter(|unit| unit.clock.is_ahead()).count());
    }

    fn has_effects(&self, offset: u64) -> bool {
        offset >= self.effects_from
    }

    fn count(&mut self, offset: u64, name: &'static str, label: &str, by: u64) {
        if by == 0 || !self.has_effects(offset) {
            return;
        }
        // They are few, and to look one up by its key would take a key made for that, three times a message.
        match self.growth.iter_mut().find(|((known, of), _)| *known == name && of == label) {
            Some((_, value)) => *value += by,
            None => {
                self.growth.insert((name, label.to_owned()), by);
            }
        }
    }

    /// Commits the batch, then shows it.
    fn commit(&mut self) -> Result<(), PipelineError> {
        if self.dead_letters_written {
            let evicted = self.ledger.evict_dead_letters(self.options.dead_letters_max_size_bytes)?;
            self.dead_letters_written = false;
            if evicted > 0 {
                tracing::warn!(evicted, "the dead letters' quota is full: the oldest are dropped");
                *self.growth.entry((accounting::DEAD_LETTERS_EVICTED, String::new())).or_default() += evicted;
            }
        }
        if self.next_offset > self.effects_from {
            crash_point("pipeline-applied");
            self.ledger.commit(Cursor { next_offset: self.next_offset, now: self.now }, &self.growth)?;
            self.effects_from = self.next_offset;
            crash_point("pipeline-committed");
            self.shared.accounting.add(&self.growth);
        }
        self.growth.clear();
        let deadline_ms = self.engine.next_deadline().map_or(i64::MAX, Timestamp::as_millis);
        self.shared.next_deadline_ms.store(deadline_ms, Ordering::Release);
        let show_figures = self.untimed_since.map(|since| since.plus_millis(FIGURES_INTERVAL_MS));
        let next_quiet = self.next_rejudging().into_iter().chain(self.engine.next_quiet()).chain(show_figures).min();
        let next_quiet_ms = next_quiet.map_or(i64::MAX, Timestamp::as_millis);
        self.shared.next_quiet_ms.store(next_quiet_ms, Ordering::Release);
        self.shared.accounting.show_units_dirty(self.dirty.len());
        self.shared.committed.send_replace(self.effects_from);
        for event in self.events.drain(..) {
            // Nobody listening is no error.
            drop(self.shared.events.send(event));
        }
        Ok(())
    }
}

/// Which reading of which message is being taken.
struct Place {
    offset: u64,
    item: usize,
    unit: UnitIndex,
    arrived_at: Timestamp,
    /// Whether the message came before, by its sequence number and content.
    is_repeat: bool,
    /// Whether it was a dead letter, some of whose readings may have been taken.
    is_redriven: bool,
}

/// What became of a reading.
enum Verdict {
    Stored,
    Duplicate,
    Rejected(Rejection),
}

#[derive(Default)]
struct Tally {
    received: u64,
    stored: u64,
    duplicate: u64,
}

fn unit_key(operator: &str, unit: &str) -> UnitKey {
    let name = |text| Name::new(text).expect("the topic was checked to name an operator and a unit");
    UnitKey { operator: name(operator), unit: name(unit) }
}

fn value_text(value: Option<f64>) -> String {
    value.map_or_else(|| "failed".to_owned(), |value| value.to_string())
}

/// Returns the accounting label of a route; messages that no route takes are accounted under `none`.
fn route_label(route: &str) -> &str {
    if route.is_empty() { "none" } else { route }
}
