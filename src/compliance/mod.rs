//! For how long units were compliant, in excursion or unmonitored, over any period.
//!
//! What is counted is [`frostline_core::accounting`]'s to say; here it is worked out from the history, and kept for
//! whole days of UTC in a file of its own ([`RollUps`]), so that a month of a large fleet is a sum of a few rows.
//!
//! # Why a sum is never a wrong one
//!
//! A sum for a unit and a day may be used where nothing it was made from has changed since:
//!
//! - *The configuration.* The sums of a unit are kept with a fingerprint of its [`Terms`]: duty, goods, limits, rules and
//!   the list of its series. The terms are worked out anew for every question; with another fingerprint the sums are
//!   passed over.
//! - *The readings.* Before a day is summed up it is closed in the history ([`ClosedDays`]): a reading that comes for it
//!   afterwards leaves a mark, in memory at once and in the history's file with the commit that holds the reading. A
//!   unit's days from its earliest mark on are passed over, until they have been summed up again with the marked reading
//!   in them. That covers what a reading changes behind its own day, by holding into the next.
//!
//! What is passed over is worked out from the readings, so the answer is the same, only slower. Sums can be lost and made
//! again at any time; a crash between summing up and writing, or between two units, leaves days to be summed up again.
//! What the history has forgotten (its retention) cannot be summed up again: those sums stay as they are.
//!
//! # Order of asking
//!
//! The pipeline's memory first, then the history's file, then the sums: what moves from one to the next meanwhile is
//! seen twice, which merging sorts out, but never missed.

mod keeper;
mod reader;
mod roll_ups;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use frostline_core::accounting::{Account, Terms, UnitAccount};
use frostline_core::hex;
use frostline_core::model::{Kind, SeriesKey, Timestamp, UnitKey};
use sha2::{Digest, Sha256};

use crate::config::Judgement;
use crate::history::{ClosedDays, HistoryError, HistoryReader, day_of, day_start, merge};
use crate::pipeline::{Live, NoAnswer, UnwrittenUnit};

pub use keeper::{ComplianceMetrics, Keeper};
pub use reader::{Accounts, ComplianceReader};
pub use roll_ups::{RollUpError, RollUps};

/// How much is read at one time, so that a long period does not fill the memory.
const WINDOW_DAYS: i64 = 7;

/// Why a period is not accounted for.
#[derive(Debug, thiserror::Error)]
pub enum ComplianceError {
    /// The pipeline does not say what is in its memory: try again later.
    #[error(transparent)]
    NoAnswer(#[from] NoAnswer),
    /// The readings cannot be read.
    #[error(transparent)]
    History(#[from] HistoryError),
    /// The sums cannot be read or written.
    #[error(transparent)]
    RollUps(#[from] RollUpError),
    /// Too much has not been summed up yet: ask for less, or later.
    #[error(
        "{unit_days} days of units are not summed up yet, and {max} are worked out at once: ask for fewer units or days, or later"
    )]
    TooMuch {
        /// How many days of how many units, multiplied.
        unit_days: i64,
        /// How many are worked out for one question.
        max: i64,
    },
    /// The thread that worked it out has panicked.
    #[error("working it out has failed")]
    Failed(#[from] tokio::task::JoinError),
}

/// The accounts of one unit and its sensors over a period.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct UnitSums {
    /// The unit's time by the category of the profile in force.
    pub by_category: BTreeMap<Box<str>, Account>,
    /// The time of each temperature and humidity series.
    pub by_series: BTreeMap<(Box<str>, Kind), Account>,
}

impl UnitSums {
    /// Returns the unit's time, whatever was in it.
    pub fn total(&self) -> Account {
        let mut total = Account::default();
        self.by_category.values().for_each(|account| total += *account);
        total
    }

    fn add(&mut self, terms: &Terms, account: UnitAccount) {
        for (category, account) in account.by_category {
            *self.by_category.entry(category).or_default() += account;
        }
        for ((sensor, kind), account) in terms.series().zip(account.series) {
            *self.by_series.entry((sensor.into(), kind)).or_default() += account;
        }
    }
}

/// What accounts are made from, whoever asks; clones share it.
#[derive(Clone)]
pub struct Sources {
    /// Where the history and the sums live.
    pub data_dir: PathBuf,
    /// What is in no file yet.
    pub live: Live,
    /// The configuration in force.
    pub judgement: Arc<Judgement>,
    /// How long readings stay in the history, in milliseconds.
    pub history_retention_ms: i64,
}

impl Sources {
    fn terms(&self, unit: &UnitKey, unwritten: Option<&UnwrittenUnit>) -> Terms {
        let seen = unwritten.into_iter().flat_map(|unit| &unit.series).map(|(sensor, kind, _)| (&**sensor, *kind));
        Terms::new(&self.judgement.registry, &self.judgement.rules, unit, seen)
    }

    /// Returns the first day of which every reading is still there.
    fn first_retained_day(&self, now: Timestamp) -> i64 {
        day_of(now.plus_millis(-self.history_retention_ms)) + 1
    }

    fn history(&self) -> Result<HistoryReader, HistoryError> {
        HistoryReader::open(&self.data_dir.join(crate::pipeline::HISTORY_FILE))
    }
}

/// Returns what tells terms apart that ask for different things.
fn fingerprint(terms: &Terms) -> String {
    // The derived text says everything; should its form change with a version, sums are made again, which is all.
    hex(&Sha256::digest(format!("{terms:?}"))[..16])
}

/// One unit's readings: those in the history's file, and those that were not there yet when the pipeline was asked.
struct UnitReadings<'a> {
    history: &'a HistoryReader,
    key: &'a UnitKey,
    terms: &'a Terms,
    unwritten: Option<&'a UnwrittenUnit>,
}

impl UnitReadings<'_> {
    fn series_key(&self, sensor: &str, kind: Kind) -> SeriesKey {
        SeriesKey { unit: self.key.clone(), sensor: sensor.into(), kind }
    }

    fn open(&self, sensor: &str, kind: Kind) -> &[frostline_core::model::Reading] {
        let mut series = self.unwritten.into_iter().flat_map(|unit| &unit.series);
        let found = series.find(|(other, of, _)| **other == *sensor && *of == kind);
        found.map_or(&[], |(_, _, readings)| readings)
    }

    /// Returns the day of the oldest reading, if there is any.
    fn first_day(&self) -> Result<Option<i64>, HistoryError> {
        let mut oldest = None;
        for (sensor, kind) in self.terms.series() {
            let stored = self.history.oldest(&self.series_key(sensor, kind))?;
            let open = self.open(sensor, kind).first().map(|reading| reading.event_time);
            oldest = oldest.into_iter().chain(stored).chain(open).min();
        }
        Ok(oldest.map(day_of))
    }

    /// Tells the account of each day, or part of one, of `from..to`.
    fn each_day(
        &self,
        from: Timestamp,
        to: Timestamp,
        mut tell: impl FnMut(i64, UnitAccount),
    ) -> Result<(), HistoryError> {
        let before = |end: Timestamp| move |reading: &frostline_core::model::Reading| reading.event_time < end;
        let hold_ms = self.terms.longest_hold_ms();
        let mut window_from = from;
        while window_from < to {
            let window_to = to.min(day_start(day_of(window_from) + WINDOW_DAYS));
            let oldest = window_from.plus_millis(-hold_ms);
            let mut readings = Vec::new();
            for (sensor, kind) in self.terms.series() {
                let open = self.open(sensor, kind);
                let open = &open[open.partition_point(before(oldest))..open.partition_point(before(window_to))];
                let stored = self.history.read(&self.series_key(sensor, kind), oldest, window_to)?;
                readings.push(merge(stored, open.to_vec()));
            }
            let mut at = window_from;
            while at < window_to {
                let until = window_to.min(day_start(day_of(at) + 1));
                let oldest = at.plus_millis(-hold_ms);
                let of_day = readings.iter().map(|readings| {
                    &readings[readings.partition_point(before(oldest))..readings.partition_point(before(until))]
                });
                tell(day_of(at), self.terms.account(&of_day.collect::<Vec<_>>(), at, until));
                at = until;
            }
            window_from = window_to;
        }
        Ok(())
    }

    /// Returns the account of a stretch in which there are no readings, nor before it.
    fn account_of_nothing(&self, from: Timestamp, to: Timestamp) -> UnitAccount {
        self.terms.account(&vec![&[][..]; self.terms.series().len()], from, to)
    }
}
