//! The state of one unit as bytes. Rules are named by their versions, so that a state is never given to another rule.
//!
//! ```text
//! version u8 = 1
//! per series:  sensor (u8 1 and text, or 0 for the whole unit) · kind u8 · muted u8 · newest i64 · last value f64
//!              · alive at i64 · observed at i64 · number of slots u16
//! per slot:    rule version text · told u16 · u8 1 and the band, or 0
//! ```
//!
//! Integers are little-endian, a text is its length as u16 and UTF-8. Slots in which nothing is going on are left out.

use super::band::Band;
use super::engine::{Engine, SeriesId, Slot};
use crate::model::{Kind, Timestamp, UnitKey};

const VERSION: u8 = 1;
const NO_KIND: u8 = u8::MAX;

/// Why a snapshot cannot be taken up: the caller builds the state again from readings.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum RestoreError {
    /// It was written by another version of the program.
    #[error("snapshot version {0} is not known")]
    Version(u8),
    /// It is cut short or damaged.
    #[error("snapshot is damaged")]
    Damaged,
}

impl Engine {
    /// Returns the state of a unit as bytes; `None` where no series of it is known.
    pub fn snapshot_unit(&self, unit: &UnitKey) -> Option<Vec<u8>> {
        let number = self.known_unit(unit)?;
        let mut bytes = vec![VERSION];
        for id in self.series_ids(number) {
            let series = &self.series[id.0 as usize];
            match &series.sensor {
                Some(sensor) => {
                    bytes.push(1);
                    put_text(&mut bytes, sensor);
                }
                None => bytes.push(0),
            }
            bytes.push(series.kind.map_or(NO_KIND, |kind| kind as u8));
            bytes.push(u8::from(series.is_muted));
            put_time(&mut bytes, series.newest);
            bytes.extend(series.last_value.to_bits().to_le_bytes());
            put_time(&mut bytes, series.alive_at);
            put_time(&mut bytes, series.observed_at);
            let busy = || series.slots.iter().filter(|slot| slot.told > 0 || slot.band.is_some());
            bytes.extend((busy().count() as u16).to_le_bytes());
            for slot in busy() {
                put_text(&mut bytes, &self.rule(slot.rule).version);
                put_slot(&mut bytes, slot);
            }
        }
        Some(bytes)
    }

    /// Takes up the state of a unit. State of rules that the engine does not have is dropped.
    ///
    /// After an error the engine is to be thrown away.
    pub fn restore_unit(&mut self, unit: &UnitKey, bytes: &[u8]) -> Result<(), RestoreError> {
        let mut bytes = Bytes(bytes);
        let version = bytes.u8()?;
        if version != VERSION {
            return Err(RestoreError::Version(version));
        }
        let number = self.unit(unit);
        while !bytes.0.is_empty() {
            let sensor = if bytes.u8()? == 1 { Some(bytes.text()?) } else { None };
            let kind = bytes.u8()?;
            // A whole unit is of interest only while a rule is about whole units.
            let id = match sensor {
                Some(sensor) => {
                    let kind = Kind::from_code(kind).ok_or(RestoreError::Damaged)?;
                    Some(self.series_of_unit(number, sensor, kind))
                }
                None => self.units[number as usize].whole_series(),
            };
            self.restore_series(id, &mut bytes)?;
        }
        Ok(())
    }

    fn restore_series(&mut self, id: Option<SeriesId>, bytes: &mut Bytes<'_>) -> Result<(), RestoreError> {
        let is_muted = bytes.u8()? == 1;
        let (newest, last_value) = (bytes.time()?, f64::from_bits(bytes.u64()?));
        let (alive_at, observed_at) = (bytes.time()?, bytes.time()?);
        let mut slots = Vec::new();
        for _ in 0..bytes.u16()? {
            slots.push((bytes.text()?, bytes.u16()?, bytes.band()?));
        }
        let Some(id) = id else { return Ok(()) };
        for (version, told, band) in slots {
            let index = self.rules.iter().position(|rule| *rule.version == *version);
            let of_rule = |slot: &&mut Slot| Some(usize::from(slot.rule.0)) == index;
            if let Some(slot) = self.series[id.0 as usize].slots.iter_mut().find(of_rule) {
                slot.told = told;
                slot.band = band.map(Box::new);
            }
        }
        let series = &mut self.series[id.0 as usize];
        (series.is_muted, series.newest, series.last_value) = (is_muted, newest, last_value);
        series.observed_at = observed_at;
        // A sensor that has been registered since is expected from its registration on.
        if alive_at != Timestamp::MIN {
            series.alive_at = alive_at;
        }
        self.schedule(id);
        Ok(())
    }
}

fn put_time(bytes: &mut Vec<u8>, time: Timestamp) {
    bytes.extend(time.as_millis().to_le_bytes());
}

fn put_text(bytes: &mut Vec<u8>, text: &str) {
    let length = u16::try_from(text.len()).expect("names and versions are short");
    bytes.extend(length.to_le_bytes());
    bytes.extend(text.as_bytes());
}

fn put_slot(bytes: &mut Vec<u8>, slot: &Slot) {
    bytes.extend(slot.told.to_le_bytes());
    let Some(band) = &slot.band else {
        bytes.push(0);
        return;
    };
    bytes.push(1);
    put_time(bytes, band.started_at);
    put_time(bytes, band.fired_at.unwrap_or(Timestamp::MIN));
    put_time(bytes, band.clear_since.unwrap_or(Timestamp::MIN));
    put_time(bytes, band.accounted_to);
    put_time(bytes, band.holds_until);
    bytes.extend(band.known_ms.to_le_bytes());
    bytes.extend(band.known_until_clear_ms.to_le_bytes());
    bytes.extend(band.extreme.to_bits().to_le_bytes());
    bytes.extend(band.excess_micro.to_le_bytes());
}

/// What is left to read.
struct Bytes<'a>(&'a [u8]);

impl<'a> Bytes<'a> {
    fn take(&mut self, count: usize) -> Result<&'a [u8], RestoreError> {
        let (taken, rest) = self.0.split_at_checked(count).ok_or(RestoreError::Damaged)?;
        self.0 = rest;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], RestoreError> {
        Ok(self.take(N)?.try_into().expect("as many bytes were taken"))
    }

    fn u8(&mut self) -> Result<u8, RestoreError> {
        Ok(self.array::<1>()?[0])
    }

    fn u16(&mut self) -> Result<u16, RestoreError> {
        Ok(u16::from_le_bytes(self.array()?))
    }

    fn u64(&mut self) -> Result<u64, RestoreError> {
        Ok(u64::from_le_bytes(self.array()?))
    }

    fn i64(&mut self) -> Result<i64, RestoreError> {
        Ok(i64::from_le_bytes(self.array()?))
    }

    fn time(&mut self) -> Result<Timestamp, RestoreError> {
        Ok(Timestamp::from_millis(self.i64()?))
    }

    fn time_if_any(&mut self) -> Result<Option<Timestamp>, RestoreError> {
        Ok(Some(self.time()?).filter(|time| *time != Timestamp::MIN))
    }

    fn text(&mut self) -> Result<&'a str, RestoreError> {
        let length = self.u16()?;
        std::str::from_utf8(self.take(usize::from(length))?).map_err(|_| RestoreError::Damaged)
    }

    fn band(&mut self) -> Result<Option<Band>, RestoreError> {
        if self.u8()? == 0 {
            return Ok(None);
        }
        Ok(Some(Band {
            started_at: self.time()?,
            fired_at: self.time_if_any()?,
            clear_since: self.time_if_any()?,
            accounted_to: self.time()?,
            holds_until: self.time()?,
            known_ms: self.i64()?,
            known_until_clear_ms: self.i64()?,
            extreme: f64::from_bits(self.u64()?),
            excess_micro: self.i64()?,
        }))
    }
}
