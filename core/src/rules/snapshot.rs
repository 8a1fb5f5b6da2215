//! The state of one unit as bytes. Rules are named by their versions and the starts of their terms, so that a state is
//! never given to another rule. The encoding is postcard's, behind one byte for the version of what is encoded.

use serde::{Deserialize, Serialize};

use super::RuleIndex;
use super::engine::{Engine, Series, SeriesId, Slot};
use super::slot::State;
use crate::model::{Kind, Timestamp, UnitKey};

const VERSION: u8 = 2;

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

/// One series, or the whole unit.
#[derive(Debug, Serialize, Deserialize)]
struct SavedSeries<'a> {
    #[serde(borrow)]
    sensor: Option<&'a str>,
    kind: Option<u8>,
    is_muted: bool,
    newest: Timestamp,
    last_value: f64,
    alive_at: Timestamp,
    observed_at: Timestamp,
    #[serde(borrow)]
    slots: Vec<SavedSlot<'a>>,
}

#[derive(Debug, Serialize, Deserialize)]
struct SavedSlot<'a> {
    rule_version: &'a str,
    rule_from: Timestamp,
    told: u16,
    state: State,
}

impl Engine {
    /// Returns the state of a unit as bytes; `None` where no series of it is known.
    pub fn snapshot_unit(&self, unit: &UnitKey) -> Option<Vec<u8>> {
        self.save(unit, |slot| slot.told)
    }

    /// Returns the state of a unit as [`Engine::snapshot_unit`], as if nothing that time alone makes true had been told:
    /// judging again from there tells all of it.
    pub fn checkpoint_unit(&self, unit: &UnitKey) -> Option<Vec<u8>> {
        self.save(unit, |_| 0)
    }

    fn save(&self, unit: &UnitKey, told: impl Fn(&Slot) -> u16) -> Option<Vec<u8>> {
        let number = self.known_unit(unit)?;
        let series_ids = self.series_ids(number);
        let saved = series_ids.iter().map(|id| {
            let series = &self.series[id.0 as usize];
            // Slots in which nothing is going on are left out.
            let busy = series.slots.iter().filter(|slot| told(slot) > 0 || !slot.state.is_blank());
            let slots = busy.map(|slot| SavedSlot {
                rule_version: &self.rule(slot.rule).version,
                rule_from: self.term(slot.rule).from,
                told: told(slot),
                state: slot.state.clone(),
            });
            SavedSeries {
                sensor: series.sensor.as_deref(),
                kind: series.kind.map(|kind| kind as u8),
                is_muted: series.is_muted,
                newest: series.newest,
                last_value: series.last_value,
                alive_at: series.alive_at,
                observed_at: series.observed_at,
                slots: slots.collect(),
            }
        });
        let saved: Vec<_> = saved.collect();
        Some(postcard::to_extend(&saved, vec![VERSION]).expect("memory takes any state"))
    }

    /// Takes up the state of a unit. State of rules that the engine does not have is dropped.
    ///
    /// # Errors
    /// The bytes are another version's or damaged; the engine is to be thrown away then.
    pub fn restore_unit(&mut self, unit: &UnitKey, bytes: &[u8]) -> Result<(), RestoreError> {
        let (&version, bytes) = bytes.split_first().ok_or(RestoreError::Damaged)?;
        if version != VERSION {
            return Err(RestoreError::Version(version));
        }
        let (saved, rest): (Vec<SavedSeries<'_>>, _) =
            postcard::take_from_bytes(bytes).map_err(|_| RestoreError::Damaged)?;
        if !rest.is_empty() {
            return Err(RestoreError::Damaged);
        }
        let number = self.unit(unit);
        let mut restored = Vec::new();
        for saved in saved {
            let id = match (saved.sensor, saved.kind) {
                (Some(sensor), Some(kind)) => {
                    let kind = Kind::from_code(kind).ok_or(RestoreError::Damaged)?;
                    self.series_of_unit(number, sensor, kind)
                }
                // A whole unit is of interest only while a rule is about whole units.
                _ => match self.units[number as usize].whole {
                    Some(id) => id,
                    None => continue,
                },
            };
            self.restore_series(id, saved, &mut restored)?;
        }
        self.complete_unit(number, &restored);
        Ok(())
    }

    fn restore_series(
        &mut self,
        id: SeriesId,
        saved: SavedSeries<'_>,
        restored: &mut Vec<(SeriesId, RuleIndex)>,
    ) -> Result<(), RestoreError> {
        for SavedSlot { rule_version, rule_from, told, state } in saved.slots {
            let Some(rule) = self.rule_index(rule_version, rule_from) else { continue };
            if !self.method(rule).fits(&state) {
                return Err(RestoreError::Damaged);
            }
            let slots = &mut self.series[id.0 as usize].slots;
            if let Some(slot) = slots.iter_mut().find(|slot| slot.rule == rule) {
                (slot.told, slot.state) = (told, state);
                restored.push((id, rule));
            }
        }
        let series: &mut Series = &mut self.series[id.0 as usize];
        (series.is_muted, series.newest, series.last_value) = (saved.is_muted, saved.newest, saved.last_value);
        series.observed_at = saved.observed_at;
        // A sensor that has been registered since is expected from its registration on.
        if saved.alive_at != Timestamp::MIN {
            series.alive_at = saved.alive_at;
        }
        self.schedule(id);
        Ok(())
    }
}
