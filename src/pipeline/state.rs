//! What the pipeline remembers of each unit between two messages, and how that is written down.

use foldhash::HashMap;
use frostline_core::model::{Kind, SeriesKey, Timestamp, UnitKey};
use frostline_core::rules::{Engine, SeriesId};

use super::device_clock::DeviceClock;
use crate::history::{CHECKPOINT_SPACING_MS, Checkpoints, History, HistoryError, HistorySeriesId};

/// Where a unit stands in [`Units`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct UnitIndex(u32);

/// Every unit that has ever sent a reading.
#[derive(Debug, Default)]
pub(crate) struct Units {
    all: Vec<UnitState>,
    by_key: HashMap<UnitKey, UnitIndex>,
    /// By the topic as it came: one look-up a message.
    by_topic: HashMap<Box<[u8]>, UnitIndex>,
}

/// One unit.
#[derive(Debug)]
pub(crate) struct UnitState {
    /// Operator and unit.
    pub(crate) key: UnitKey,
    /// What its messages' sequence numbers say.
    pub(crate) sequence: Sequence,
    /// The latest messages with a number and readings without a time: such a message that comes again is the same one.
    pub(crate) untimed: RecentUntimed,
    /// When its newest message came in.
    pub(crate) last_received_at: Timestamp,
    /// What its messages say of its clock.
    pub(crate) clock: DeviceClock,
    /// Its series, in the order in which they were first seen.
    pub(crate) series: Vec<SeriesState>,
    /// What has to be judged again.
    pub(crate) dirty: Option<Dirty>,
    /// The newest reading that its newest checkpoint has seen.
    pub(crate) checkpointed: Timestamp,
    /// What became of its checkpoints since the last snapshot.
    pub(crate) checkpoints: Checkpoints,
    /// Whether the figures of its firing alerts may have changed since the last tick.
    pub(crate) is_unshown: bool,
    /// Whether it has changed since the last snapshot.
    pub(crate) changed: bool,
}

/// What of a unit has to be judged again: everything from an instant on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Dirty {
    /// The earliest instant at which something was accepted late.
    pub(crate) from: Timestamp,
    /// When the first late thing came in.
    pub(crate) since: Timestamp,
    /// When the last one did.
    pub(crate) latest: Timestamp,
    /// What came late.
    pub(crate) reason: LateReason,
}

/// What came late.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum LateReason {
    /// Readings: the link was down, not the probe.
    Backlog,
    /// What is known of goods and duty.
    Consignment,
    /// A configuration, after readings of its time.
    Configuration,
}

impl LateReason {
    /// Returns the word used in amendments.
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Backlog => "backlog",
            Self::Consignment => "consignment",
            Self::Configuration => "configuration",
        }
    }
}

impl Dirty {
    /// How long nothing late must have come.
    const QUIET_MS: i64 = 1_000;
    /// How long judging waits at most while late readings go on coming.
    const WAIT_MAX_MS: i64 = 5_000;

    /// Returns when it is to be judged again.
    pub(crate) fn due_at(&self) -> Timestamp {
        self.latest.plus_millis(Self::QUIET_MS).min(self.since.plus_millis(Self::WAIT_MAX_MS))
    }
}

/// One series.
#[derive(Debug)]
pub(crate) struct SeriesState {
    /// The probe.
    pub(crate) sensor: Box<str>,
    /// What it measures.
    pub(crate) kind: Kind,
    /// The event time of its newest reading.
    pub(crate) newest: Timestamp,
    /// Its name in the history.
    pub(crate) history: HistorySeriesId,
    /// Its name in the engine.
    pub(crate) engine: SeriesId,
}

/// What the sequence numbers of one unit's messages say.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Sequence {
    /// The largest number since the device last started counting anew.
    pub(crate) last: Option<u64>,
    /// Messages missing between two numbers.
    pub(crate) gaps: u64,
    /// Messages whose number had come already.
    pub(crate) repeats: u64,
}

/// The latest messages of one unit that have a sequence number and readings without a time, by number and content.
///
/// A reading with a time is found again by its time. One without would get a new time, and be stored twice.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct RecentUntimed(Vec<(u64, u64)>);

impl RecentUntimed {
    /// How many are remembered; a device repeats itself soon or, after a loss of connection, its last few messages.
    const MAX: usize = 32;

    /// Remembers a message, and returns whether it was there before.
    pub(crate) fn is_repeat(&mut self, number: u64, payload: &[u8]) -> bool {
        let message = (number, xxhash_rust::xxh3::xxh3_64(payload));
        if self.0.contains(&message) {
            return true;
        }
        if self.0.len() == Self::MAX {
            self.0.remove(0);
        }
        self.0.push(message);
        false
    }
}

/// What one sequence number means after those before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Step {
    /// The first one, the next one, or the first after a restart of the device.
    Next,
    /// So many messages are missing before it.
    Gap(u64),
    /// It had come already.
    Repeat,
}

impl Sequence {
    /// A number this far below the last means that the device counts anew rather than repeats itself.
    const RESTART_DISTANCE: u64 = 1_000;

    /// Takes the next message's number.
    pub(crate) fn take(&mut self, number: u64) -> Step {
        let step = match self.last {
            None => Step::Next,
            Some(last) if number > last => match number - last - 1 {
                0 => Step::Next,
                missing => Step::Gap(missing),
            },
            Some(last) if number == 0 && last > 0 => Step::Next,
            Some(last) if last - number >= Self::RESTART_DISTANCE => Step::Next,
            Some(_) => Step::Repeat,
        };
        match step {
            Step::Next => self.last = Some(number),
            Step::Gap(missing) => {
                self.gaps += missing;
                self.last = Some(number);
            }
            Step::Repeat => self.repeats += 1,
        }
        step
    }
}

impl Units {
    /// Returns the unit that speaks on `topic`, which was found to name `operator` and `unit`.
    pub(crate) fn of_topic(&mut self, topic: &[u8], key: impl FnOnce() -> UnitKey) -> UnitIndex {
        if let Some(index) = self.by_topic.get(topic) {
            return *index;
        }
        let index = self.of_key(key());
        self.by_topic.insert(topic.into(), index);
        index
    }

    /// Returns the unit with this key, made where it is new.
    pub(crate) fn of_key(&mut self, key: UnitKey) -> UnitIndex {
        if let Some(index) = self.by_key.get(&key) {
            return *index;
        }
        let index = UnitIndex(u32::try_from(self.all.len()).expect("there are fewer than 2^32 units"));
        self.all.push(UnitState {
            key: key.clone(),
            sequence: Sequence::default(),
            untimed: RecentUntimed::default(),
            last_received_at: Timestamp::MIN,
            clock: DeviceClock::default(),
            series: Vec::new(),
            dirty: None,
            checkpointed: Timestamp::MIN,
            checkpoints: Checkpoints::default(),
            is_unshown: false,
            changed: true,
        });
        self.by_key.insert(key, index);
        index
    }

    /// Returns a unit.
    pub(crate) fn get_mut(&mut self, index: UnitIndex) -> &mut UnitState {
        &mut self.all[index.0 as usize]
    }

    /// Returns a unit.
    pub(crate) fn get(&self, index: UnitIndex) -> &UnitState {
        &self.all[index.0 as usize]
    }

    /// Returns every unit's place, in the order in which they were first seen.
    pub(crate) fn indexes(&self) -> impl Iterator<Item = UnitIndex> + use<> {
        (0..self.all.len() as u32).map(UnitIndex)
    }

    /// Returns every unit, in the order in which they were first seen.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &UnitState> {
        self.all.iter()
    }

    /// Returns every unit, to be changed.
    pub(crate) fn iter_mut(&mut self) -> impl Iterator<Item = &mut UnitState> {
        self.all.iter_mut()
    }

    /// Returns the unit with this key.
    pub(crate) fn find(&self, key: &UnitKey) -> Option<&UnitState> {
        self.by_key.get(key).map(|index| &self.all[index.0 as usize])
    }
}

impl SeriesState {
    /// Returns the series' whole name in its unit.
    pub(crate) fn key(&self, unit: &UnitKey) -> SeriesKey {
        SeriesKey { unit: unit.clone(), sensor: self.sensor.clone(), kind: self.kind }
    }
}

impl UnitState {
    /// Returns the position of a series, made where it is new.
    pub(crate) fn series_position(
        &mut self,
        sensor: &str,
        kind: Kind,
        engine: &mut Engine,
        history: &mut History,
    ) -> Result<usize, HistoryError> {
        if let Some(position) = self.series.iter().position(|series| series.kind == kind && &*series.sensor == sensor) {
            return Ok(position);
        }
        let key = SeriesKey { unit: self.key.clone(), sensor: sensor.into(), kind };
        let (history, engine) = (history.series(&key)?, engine.series(&key));
        self.series.push(SeriesState { sensor: key.sensor, kind, newest: Timestamp::MIN, history, engine });
        Ok(self.series.len() - 1)
    }

    /// Adds a checkpoint that has seen everything up to `newest`, where the last one is long enough before.
    pub(crate) fn checkpoint(&mut self, newest: Timestamp, state: impl FnOnce() -> Option<Vec<u8>>) {
        let place = |at: Timestamp| at.as_millis().div_euclid(CHECKPOINT_SPACING_MS);
        if newest > Timestamp::MIN
            && place(newest) > place(self.checkpointed)
            && let Some(state) = state()
        {
            self.checkpoints.push(newest, state);
            self.checkpointed = newest;
        }
    }

    /// Writes the unit down for a snapshot; `engine` is the engine's own part of it.
    pub(crate) fn to_bytes(&self, engine: &[u8]) -> Vec<u8> {
        let mut bytes = vec![UNIT_VERSION];
        put_u64(&mut bytes, self.sequence.last.map_or(0, |last| last.saturating_add(1)));
        put_u64(&mut bytes, self.sequence.gaps);
        put_u64(&mut bytes, self.sequence.repeats);
        put_i64(&mut bytes, self.last_received_at.as_millis());
        self.clock.put(&mut bytes);
        put_i64(&mut bytes, self.checkpointed.as_millis());
        bytes.push(u8::from(self.is_unshown));
        bytes.push(self.dirty.map_or(0, |dirty| 1 + dirty.reason as u8));
        if let Some(dirty) = self.dirty {
            for instant in [dirty.from, dirty.since, dirty.latest] {
                put_i64(&mut bytes, instant.as_millis());
            }
        }
        put_u64(&mut bytes, self.untimed.0.len() as u64);
        for (number, hash) in &self.untimed.0 {
            put_u64(&mut bytes, *number);
            put_u64(&mut bytes, *hash);
        }
        put_u64(&mut bytes, self.series.len() as u64);
        for series in &self.series {
            bytes.push(series.kind as u8);
            put_bytes(&mut bytes, series.sensor.as_bytes());
            put_i64(&mut bytes, series.newest.as_millis());
        }
        put_bytes(&mut bytes, engine);
        bytes
    }

    /// Takes back what [`Self::to_bytes`] wrote; returns the engine's own part of it.
    pub(crate) fn restore<'b>(
        &mut self,
        bytes: &'b [u8],
        engine: &mut Engine,
        history: &mut History,
    ) -> Result<Option<&'b [u8]>, HistoryError> {
        let Some(read) = UnitBytes::read(bytes) else { return Ok(None) };
        (self.sequence, self.untimed) = (read.sequence, read.untimed);
        (self.last_received_at, self.clock) = (read.last_received_at, read.clock);
        (self.checkpointed, self.dirty, self.is_unshown) = (read.checkpointed, read.dirty, read.is_unshown);
        for (sensor, kind, newest) in read.series {
            let position = self.series_position(sensor, kind, engine, history)?;
            self.series[position].newest = newest;
        }
        self.changed = false;
        Ok(Some(read.engine))
    }
}

/// What [`UnitState::to_bytes`] wrote.
struct UnitBytes<'b> {
    sequence: Sequence,
    untimed: RecentUntimed,
    last_received_at: Timestamp,
    clock: DeviceClock,
    checkpointed: Timestamp,
    dirty: Option<Dirty>,
    is_unshown: bool,
    series: Vec<(&'b str, Kind, Timestamp)>,
    engine: &'b [u8],
}

impl<'b> UnitBytes<'b> {
    fn read(bytes: &'b [u8]) -> Option<Self> {
        let mut bytes = bytes.strip_prefix(&[UNIT_VERSION])?;
        let sequence = Sequence {
            last: take_u64(&mut bytes)?.checked_sub(1),
            gaps: take_u64(&mut bytes)?,
            repeats: take_u64(&mut bytes)?,
        };
        let last_received_at = Timestamp::from_millis(take_u64(&mut bytes)? as i64);
        let clock = DeviceClock::take(&mut bytes)?;
        let checkpointed = Timestamp::from_millis(take_u64(&mut bytes)? as i64);
        let ([is_unshown, reason], rest) = bytes.split_first_chunk()?;
        bytes = rest;
        let reason = match reason {
            0 => None,
            1 => Some(LateReason::Backlog),
            2 => Some(LateReason::Consignment),
            3 => Some(LateReason::Configuration),
            _ => return None,
        };
        let dirty = match reason {
            None => None,
            Some(reason) => {
                let mut instant = || Some(Timestamp::from_millis(take_u64(&mut bytes)? as i64));
                Some(Dirty { from: instant()?, since: instant()?, latest: instant()?, reason })
            }
        };
        let mut untimed = RecentUntimed::default();
        for _ in 0..take_u64(&mut bytes)? {
            untimed.0.push((take_u64(&mut bytes)?, take_u64(&mut bytes)?));
        }
        let mut series = Vec::new();
        for _ in 0..take_u64(&mut bytes)? {
            let (kind, rest) = bytes.split_first()?;
            bytes = rest;
            let sensor = std::str::from_utf8(take_bytes(&mut bytes)?).ok()?;
            series.push((sensor, Kind::from_code(*kind)?, Timestamp::from_millis(take_u64(&mut bytes)? as i64)));
        }
        let engine = take_bytes(&mut bytes)?;
        bytes.is_empty().then_some(Self {
            sequence,
            untimed,
            last_received_at,
            clock,
            checkpointed,
            dirty,
            is_unshown: *is_unshown == 1,
            series,
            engine,
        })
    }
}

/// The version of a unit's bytes.
const UNIT_VERSION: u8 = 3;

pub(super) fn put_u64(bytes: &mut Vec<u8>, value: u64) {
    bytes.extend_from_slice(&value.to_le_bytes());
}

pub(super) fn put_i64(bytes: &mut Vec<u8>, value: i64) {
    bytes.extend_from_slice(&value.to_le_bytes());
}

fn put_bytes(bytes: &mut Vec<u8>, value: &[u8]) {
    put_u64(bytes, value.len() as u64);
    bytes.extend_from_slice(value);
}

pub(super) fn take_u64(bytes: &mut &[u8]) -> Option<u64> {
    let (value, rest) = bytes.split_first_chunk::<8>()?;
    *bytes = rest;
    Some(u64::from_le_bytes(*value))
}

fn take_bytes<'b>(bytes: &mut &'b [u8]) -> Option<&'b [u8]> {
    let length = usize::try_from(take_u64(bytes)?).ok()?;
    let (value, rest) = bytes.split_at_checked(length)?;
    *bytes = rest;
    Some(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gaps_and_repeats_are_told_from_a_device_that_counts_anew() {
        let mut sequence = Sequence::default();
        let steps: Vec<Step> = [5, 6, 9, 9, 8, 10, 0, 1, 2_000, 3].map(|number| sequence.take(number)).into();
        use Step::{Gap, Next, Repeat};
        assert_eq!(steps, [Next, Next, Gap(2), Repeat, Repeat, Next, Next, Next, Gap(1_998), Next]);
        assert_eq!(sequence, Sequence { last: Some(3), gaps: 2_000, repeats: 2 });
    }
}
