//! What a unit's messages say of its device's clock: how far it is ahead, and whether it was set.
//!
//! The *offset* of a message is its newest event time minus its time of arrival: how far the clock is ahead, minus how
//! long the message was under way. No message comes before it was sent, so the largest offset of a few messages tells
//! the clock best; a negative one may also be nothing but delay.
//!
//! A clock that is set moves the offset, and so does a backlog that is uploaded. But the offset of a backlog moves with
//! every message, since it comes faster than it was measured, until it has caught up; that of a clock stays where it was
//! set to. So a jump is told where one *steady* run of messages follows another with another offset. A single wild
//! message is no run, and a truck that was offline is no jump: its clock is the same before and after.

use frostline_core::model::Timestamp;

use super::state::{put_i64, put_u64, take_u64};

/// Offsets that differ by more are different: messages take some seconds, clocks are set by minutes or hours.
const TOLERANCE_MS: i64 = 60_000;
/// A run of messages with one offset is steady when it has this many …
const STEADY_MESSAGES: u64 = 3;
/// … over so long.
const STEADY_MS: i64 = 120_000;
/// The skew is the largest offset of the last 32 to 64 messages.
const HALF_WINDOW: u64 = 32;
/// Beyond all offsets that are worth telling apart.
const OFFSET_MAX_MS: i64 = 1 << 50;
/// Stands for no offset in a snapshot.
const NONE: i64 = i64::MIN;

/// What is known of one unit's clock.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct DeviceClock {
    /// The largest offset of the messages since the window's halves were changed.
    current_ms: Option<i64>,
    /// How many those are.
    current_messages: u64,
    /// The largest offset of the half before.
    previous_ms: Option<i64>,
    run: Option<Run>,
    /// The newest offset of the last steady run.
    level_ms: Option<i64>,
    jumps: u64,
    last_jump_at: Option<Timestamp>,
    future_readings: u64,
}

/// Messages one after the other with the same offset.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Run {
    offset_ms: i64,
    since: Timestamp,
    messages: u64,
}

/// What one message has changed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct ClockChange {
    /// By how much the clock was found to have been set, in milliseconds.
    pub(crate) jumped_ms: Option<i64>,
    /// Whether it is ahead now, where that has changed.
    pub(crate) is_ahead: Option<bool>,
}

impl DeviceClock {
    /// Takes a message that came straight from the device.
    pub(crate) fn observe(&mut self, event_time: Timestamp, received_at: Timestamp) -> ClockChange {
        let offset_ms = event_time.millis_since(received_at).clamp(-OFFSET_MAX_MS, OFFSET_MAX_MS);
        let was_ahead = self.is_ahead();
        if self.current_messages == HALF_WINDOW {
            (self.previous_ms, self.current_ms, self.current_messages) = (self.current_ms, None, 0);
        }
        self.current_ms = self.current_ms.max(Some(offset_ms));
        self.current_messages += 1;
        let jumped_ms = self.follow(offset_ms, received_at);
        let is_ahead = self.is_ahead();
        ClockChange { jumped_ms, is_ahead: (is_ahead != was_ahead).then_some(is_ahead) }
    }

    /// Counts readings that were refused because they are from the future.
    pub(crate) fn refuse_future(&mut self, readings: u64) {
        self.future_readings += readings;
    }

    /// Follows the run of messages, and returns by how much the clock was set where a steady run shows that.
    fn follow(&mut self, offset_ms: i64, received_at: Timestamp) -> Option<i64> {
        let run = match self.run.filter(|run| (offset_ms - run.offset_ms).abs() <= TOLERANCE_MS) {
            Some(run) => Run { messages: run.messages + 1, ..run },
            None => Run { offset_ms, since: received_at, messages: 1 },
        };
        self.run = Some(run);
        if run.messages < STEADY_MESSAGES || received_at.millis_since(run.since) < STEADY_MS {
            return None;
        }
        let moved_ms = self.level_ms.map_or(0, |level_ms| run.offset_ms - level_ms);
        if moved_ms.abs() <= TOLERANCE_MS {
            // The newest, so that a clock that drifts slowly never jumps.
            self.level_ms = Some(offset_ms);
            return None;
        }
        self.jumps += 1;
        self.last_jump_at = Some(run.since);
        self.level_ms = Some(run.offset_ms);
        // What was measured before the jump says nothing about the clock any more.
        (self.previous_ms, self.current_ms, self.current_messages) = (None, Some(offset_ms), 1);
        Some(moved_ms)
    }

    /// Returns how far the clock is ahead, by the least delayed of the last messages, in milliseconds.
    pub fn skew_ms(&self) -> Option<i64> {
        self.current_ms.max(self.previous_ms)
    }

    /// Returns whether the clock is ahead by more than messages and small errors explain.
    pub fn is_ahead(&self) -> bool {
        self.skew_ms().is_some_and(|skew_ms| skew_ms > TOLERANCE_MS)
    }

    /// Returns how many times the clock was found to have been set.
    pub fn jumps(&self) -> u64 {
        self.jumps
    }

    /// Returns when the first message came in after it was last set.
    pub fn last_jump_at(&self) -> Option<Timestamp> {
        self.last_jump_at
    }

    /// Returns how many readings were refused because they are from the future.
    pub fn future_readings(&self) -> u64 {
        self.future_readings
    }

    /// Appends it to a unit's snapshot.
    pub(super) fn put(&self, bytes: &mut Vec<u8>) {
        for offset_ms in [self.current_ms, self.previous_ms, self.level_ms] {
            put_i64(bytes, offset_ms.unwrap_or(NONE));
        }
        put_u64(bytes, self.current_messages);
        let run = self.run.unwrap_or(Run { offset_ms: NONE, since: Timestamp::MIN, messages: 0 });
        put_i64(bytes, run.offset_ms);
        put_i64(bytes, run.since.as_millis());
        put_u64(bytes, run.messages);
        put_u64(bytes, self.jumps);
        put_i64(bytes, self.last_jump_at.map_or(NONE, Timestamp::as_millis));
        put_u64(bytes, self.future_readings);
    }

    /// Takes back what [`Self::put`] wrote.
    pub(super) fn take(bytes: &mut &[u8]) -> Option<Self> {
        let mut offset = || Some(take_u64(bytes)? as i64).map(|value| (value != NONE).then_some(value));
        let (current_ms, previous_ms, level_ms) = (offset()?, offset()?, offset()?);
        let current_messages = take_u64(bytes)?;
        let (offset_ms, since, messages) = (take_u64(bytes)? as i64, take_u64(bytes)? as i64, take_u64(bytes)?);
        let jumps = take_u64(bytes)?;
        let last_jump_ms = take_u64(bytes)? as i64;
        Some(Self {
            current_ms,
            current_messages,
            previous_ms,
            run: (offset_ms != NONE).then_some(Run { offset_ms, since: Timestamp::from_millis(since), messages }),
            level_ms,
            jumps,
            last_jump_at: (last_jump_ms != NONE).then_some(Timestamp::from_millis(last_jump_ms)),
            future_readings: take_u64(bytes)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MINUTE_MS: i64 = 60_000;
    const HOUR_MS: i64 = 60 * MINUTE_MS;

    /// Sends messages (how long after the one before, and the offset), and returns the clock with the jumps told.
    fn send(messages: impl IntoIterator<Item = (i64, i64)>) -> (DeviceClock, Vec<i64>) {
        let (mut clock, mut received_ms, mut jumps) = (DeviceClock::default(), 0, Vec::new());
        for (pause_ms, offset_ms) in messages {
            received_ms += pause_ms;
            let event_time = Timestamp::from_millis(received_ms + offset_ms);
            jumps.extend(clock.observe(event_time, Timestamp::from_millis(received_ms)).jumped_ms);
        }
        (clock, jumps)
    }

    /// A message a minute with one offset, give or take the seconds that it was under way.
    fn live(offset_ms: i64, messages: i64) -> impl Iterator<Item = (i64, i64)> {
        (0..messages).map(move |number| (MINUTE_MS, offset_ms - number % 5 * 1_000))
    }

    /// Messages measured every `spacing_ms` and sent in a burst, the last of them fresh.
    fn backlog(spacing_ms: i64, messages: i64) -> impl Iterator<Item = (i64, i64)> {
        (0..messages).map(move |number| (50, (number + 1 - messages) * (spacing_ms - 50)))
    }

    #[test]
    fn the_least_delayed_message_tells_the_skew() {
        assert_eq!(DeviceClock::default().skew_ms(), None);
        let (clock, _) = send([(MINUTE_MS, -40_000), (MINUTE_MS, 1_500), (MINUTE_MS, -90_000)]);
        assert_eq!((clock.skew_ms(), clock.is_ahead()), (Some(1_500), false));
        let (clock, _) = send(live(90_000, 10));
        assert_eq!((clock.skew_ms(), clock.is_ahead()), (Some(90_000), true));
        // What was long ago counts no more.
        let (clock, _) = send(live(50_000, 10).chain(live(-2_000, 64)));
        assert_eq!(clock.skew_ms(), Some(-2_000));
    }

    #[test]
    fn a_clock_that_is_set_jumps_once_either_way() {
        let (clock, jumps) = send(live(0, 20).chain(live(HOUR_MS, 20)).chain(live(-2 * HOUR_MS, 20)));
        // To the seconds that messages are under way.
        let minutes: Vec<i64> = jumps.iter().map(|ms| (*ms as f64 / MINUTE_MS as f64).round() as i64).collect();
        assert_eq!(minutes, [60, -180]);
        assert_eq!((clock.jumps(), clock.skew_ms()), (2, Some(-2 * HOUR_MS)));
        assert_eq!(clock.last_jump_at(), Some(Timestamp::from_millis(41 * MINUTE_MS)));
    }

    #[test]
    fn being_ahead_is_told_once_when_it_begins_and_once_when_it_ends() {
        let (mut clock, mut told) = (DeviceClock::default(), Vec::new());
        let messages = live(0, 10).chain(live(HOUR_MS, 100)).chain(live(0, 10));
        for (minute, (_, offset_ms)) in (0..).zip(messages) {
            let received_at = Timestamp::from_millis(minute * MINUTE_MS);
            told.extend(clock.observe(received_at.plus_millis(offset_ms), received_at).is_ahead);
        }
        assert_eq!(told, [true, false]);
    }

    #[test]
    fn a_backlog_is_no_jump_whatever_it_was_spaced() {
        for spacing_ms in [1_000, 10_000, MINUTE_MS, 5 * MINUTE_MS, HOUR_MS] {
            let (clock, jumps) = send(live(0, 20).chain(backlog(spacing_ms, 500)).chain(live(0, 20)));
            assert!(jumps.is_empty(), "spaced by {spacing_ms} ms");
            assert!(!clock.is_ahead());
            assert!(send(backlog(spacing_ms, 500).chain(live(0, 20))).1.is_empty(), "as the first thing heard");
        }
    }

    #[test]
    fn a_clock_that_drifts_slowly_does_not_jump() {
        let drift = (0..5_000).map(|minute| (MINUTE_MS, minute * 100));
        let (clock, jumps) = send(drift);
        assert!(jumps.is_empty(), "{jumps:?}");
        assert_eq!((clock.skew_ms(), clock.is_ahead()), (Some(499_900), true));
    }

    #[test]
    fn a_wild_message_is_no_jump() {
        assert!(send(live(0, 20).chain([(MINUTE_MS, 400_000 * HOUR_MS)]).chain(live(0, 20))).1.is_empty());
    }

    proptest! {
        #[test]
        fn a_snapshot_goes_on_where_it_was(
            messages in prop::collection::vec((0..200_000_i64, prop_oneof![Just(0_i64), Just(HOUR_MS), any::<i64>()]), 0..100),
            future in any::<u32>(),
        ) {
            let mut clock = DeviceClock::default();
            let mut received_ms = 0_i64;
            for (pause_ms, offset_ms) in messages {
                received_ms += pause_ms;
                clock.observe(Timestamp::from_millis(received_ms).plus_millis(offset_ms), Timestamp::from_millis(received_ms));
            }
            clock.refuse_future(future.into());
            let mut bytes = Vec::new();
            clock.put(&mut bytes);
            let mut rest = bytes.as_slice();
            prop_assert_eq!(DeviceClock::take(&mut rest), Some(clock));
            prop_assert!(rest.is_empty());
        }
    }
}
