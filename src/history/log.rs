//! The log of what came since the last commit: all series together, in the order of arrival.
//!
//! A commit writes it as one row, so that a minute of 100,000 series costs one blob instead of 100,000 touched pages;
//! opening the history plays the rows again. An entry is
//!
//! ```text
//! series·2 + late, as zigzag varint of the difference to the entry before
//! event_ms, likewise
//! value, as in a block (quality only where it is not good)
//! ```

use frostline_core::model::{Quality, Reading, Timestamp};

use super::HistoryError;
use super::block::{Damage, put_value, put_varint, scale, take_value, take_varint, unzigzag, zigzag};

/// The fastest that zstd recommends.
const COMPRESSION_LEVEL: i32 = 1;

/// One arrival.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct LogEntry {
    pub(crate) series: u32,
    /// Whether it was not newer than its series' newest when it came.
    pub(crate) is_late: bool,
    pub(crate) reading: Reading,
}

/// Encodes arrivals.
#[derive(Debug, Default)]
pub(crate) struct LogWriter {
    bytes: Vec<u8>,
    before: Before,
    entries: u64,
}

/// What an entry is written in relation to.
#[derive(Debug, Default, Clone, Copy)]
struct Before {
    series: i64,
    event_ms: i64,
}

impl LogWriter {
    /// Appends an arrival.
    pub(crate) fn push(&mut self, entry: &LogEntry) {
        let series = i64::from(entry.series) << 1 | i64::from(entry.is_late);
        let event_ms = entry.reading.event_time.as_millis();
        put_varint(&mut self.bytes, zigzag(series - self.before.series));
        put_varint(&mut self.bytes, zigzag(event_ms.wrapping_sub(self.before.event_ms)));
        let Reading { value, quality, .. } = entry.reading;
        let scaled = value.and_then(|value| scale(value, 0));
        put_value(&mut self.bytes, value, scaled, (quality != Quality::GOOD).then_some(quality.bits()));
        self.before = Before { series, event_ms };
        self.entries += 1;
    }

    pub(crate) fn entries(&self) -> u64 {
        self.entries
    }

    /// Returns the row: the entries compressed, with a checksum.
    pub(crate) fn compressed(&self) -> Vec<u8> {
        let compress = || {
            let mut compressor = zstd::bulk::Compressor::new(COMPRESSION_LEVEL)?;
            compressor.include_checksum(true)?;
            compressor.compress(&self.bytes)
        };
        compress().expect("compressing from memory to memory cannot fail")
    }

    /// Forgets everything, keeping the memory for the next minute.
    pub(crate) fn clear(&mut self) {
        self.bytes.clear();
        (self.before, self.entries) = (Before::default(), 0);
    }
}

/// Returns the entries of the row with this number, still encoded.
pub(crate) fn decompress_log(number: u32, data: &[u8]) -> Result<Vec<u8>, HistoryError> {
    zstd::decode_all(data).map_err(|error| HistoryError::DamagedRecent { number, damage: error.to_string() })
}

/// Returns the arrivals of one row.
pub(crate) fn read_log(mut rest: &[u8]) -> impl Iterator<Item = Result<LogEntry, Damage>> + '_ {
    let mut before = Before::default();
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let entry = take_entry(&mut rest, &mut before);
        if entry.is_err() {
            rest = &[];
        }
        Some(entry)
    })
}

fn take_entry(rest: &mut &[u8], before: &mut Before) -> Result<LogEntry, Damage> {
    before.series = before.series.wrapping_add(unzigzag(take_varint(rest)?));
    before.event_ms = before.event_ms.wrapping_add(unzigzag(take_varint(rest)?));
    let series = u32::try_from(before.series >> 1).map_err(|_| Damage::Content("no such series"))?;
    let (value, quality) = take_value(rest)?;
    let reading = Reading {
        event_time: Timestamp::from_millis(before.event_ms),
        value: value.to_option(),
        quality: quality.map_or(Quality::GOOD, Quality::from_bits),
    };
    Ok(LogEntry { series, is_late: before.series & 1 == 1, reading })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn arrivals_come_back_bit_for_bit(
            arrivals in prop::collection::vec((any::<u32>(), any::<bool>(), any::<i64>(), any::<Option<u64>>(), any::<u8>()), 0..50),
        ) {
            let mut log = LogWriter::default();
            for &(series, is_late, event_ms, bits, quality) in &arrivals {
                let event_time = Timestamp::from_millis(event_ms);
                let reading = Reading { event_time, value: bits.map(f64::from_bits), quality: Quality::from_bits(quality) };
                log.push(&LogEntry { series, is_late, reading });
            }
            let read: Vec<_> = read_log(&log.bytes)
                .map(|entry| entry.unwrap())
                .map(|LogEntry { series, is_late, reading }| {
                    let bits = reading.value.map(f64::to_bits);
                    (series, is_late, reading.event_time.as_millis(), bits, reading.quality.bits())
                })
                .collect();
            prop_assert_eq!(read, arrivals);
        }

        #[test]
        fn damaged_logs_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..100)) {
            prop_assert!(read_log(&bytes).count() <= bytes.len());
        }
    }
}
