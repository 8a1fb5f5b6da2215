//! Answers for a period: from sums where they hold, from readings where they do not.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use frostline_core::accounting::Terms;
use frostline_core::model::{Timestamp, UnitKey};
use tokio::sync::Mutex;

use super::roll_ups::Summed;
use super::{ComplianceError, RollUps, Sources, UnitReadings, UnitSums, fingerprint};
use crate::history::{DAY_MS, HistoryError, day_of, day_start};
use crate::pipeline::{Unwritten, UnwrittenUnit};

/// How many days of how many units, multiplied, are worked out from readings for one question at most.
const UNIT_DAYS_MAX: i64 = 15_000;
/// The readings in memory of so many units are asked for at once.
const UNITS_AT_ONCE: usize = 300;

/// Answers questions about compliance; clones share what they read.
#[derive(Clone)]
pub struct ComplianceReader {
    sources: Sources,
    /// Held while something is worked out from readings: one processor at most is kept busy with that.
    turn: Arc<Mutex<()>>,
}

/// The accounts of some units over a period.
#[derive(Debug, PartialEq, Eq)]
pub struct Accounts {
    /// The beginning of the period.
    pub from: Timestamp,
    /// Its end: what was asked for, or the rules' *now* where that had not come yet.
    pub to: Timestamp,
    /// The units asked for.
    pub units: BTreeMap<UnitKey, UnitSums>,
}

/// One unit of a question, and which part of the period is still to be worked out.
struct Part {
    key: UnitKey,
    terms: Terms,
    sums: UnitSums,
    ranges: Vec<Range<Timestamp>>,
}

impl ComplianceReader {
    /// Returns a reader of these sources.
    pub fn new(sources: Sources) -> Self {
        Self { sources, turn: Arc::default() }
    }

    /// Returns the rules' *now*.
    ///
    /// # Errors
    /// Where the pipeline does not answer.
    pub async fn now(&self) -> Result<Timestamp, ComplianceError> {
        Ok(self.sources.live.unwritten(Vec::new()).await?.now)
    }

    /// Returns the accounts of registered units over `from..to`, of their series too where that is asked for.
    ///
    /// # Errors
    /// Where something cannot be read, or too much has not been summed up.
    pub async fn accounts(
        &self,
        units: Vec<UnitKey>,
        from: Timestamp,
        to: Timestamp,
        with_series: bool,
    ) -> Result<Accounts, ComplianceError> {
        let nothing = |key: &UnitKey| (key.clone(), Timestamp::MIN, Timestamp::MIN);
        let known = self.sources.live.unwritten(units.iter().map(nothing).collect()).await?;
        let to = to.min(known.now).max(from);
        let sources = self.sources.clone();
        let plan = move || sources.plan(units, &known, from..to, with_series);
        let mut parts = tokio::task::spawn_blocking(plan).await??;
        let ranges = parts.iter().flat_map(|part| &part.ranges);
        let unit_days: i64 = ranges.map(|range| (range.end.millis_since(range.start) - 1) / DAY_MS + 1).sum();
        if unit_days > UNIT_DAYS_MAX {
            return Err(ComplianceError::TooMuch { unit_days, max: UNIT_DAYS_MAX });
        }
        let _turn = if unit_days > 0 { Some(self.turn.lock().await) } else { None };
        let mut accounts = Accounts { from, to, units: BTreeMap::new() };
        while !parts.is_empty() {
            let rest = parts.split_off(parts.len().min(UNITS_AT_ONCE));
            let wanted = parts.iter().filter_map(|part| {
                let (first, last) = (part.ranges.first()?, part.ranges.last()?);
                Some((part.key.clone(), first.start.plus_millis(-part.terms.longest_hold_ms()), last.end))
            });
            let wanted: Vec<_> = wanted.collect();
            if !wanted.is_empty() {
                let unwritten = self.sources.live.unwritten(wanted).await?;
                let sources = self.sources.clone();
                let work = move || sources.work_out(&mut parts, &unwritten.units).map(|()| parts);
                parts = tokio::task::spawn_blocking(work).await??;
            }
            for mut part in parts {
                if !with_series {
                    // Of the days that were not summed up they are known too, which nobody has asked for.
                    part.sums.by_series.clear();
                }
                accounts.units.insert(part.key, part.sums);
            }
            parts = rest;
        }
        Ok(accounts)
    }
}

impl Sources {
    /// Adds up what sums there are for each unit, and says what is left.
    fn plan(
        &self,
        units: Vec<UnitKey>,
        known: &Unwritten,
        period: Range<Timestamp>,
        with_series: bool,
    ) -> Result<Vec<Part>, ComplianceError> {
        let history = self.history()?;
        let touched = history.touched_after(0)?;
        let mut roll_ups = RollUps::open_reader(&self.data_dir)?;
        let roll_ups = roll_ups.as_mut().map(RollUps::read).transpose()?;
        let retained_day = self.first_retained_day(known.now);
        let mut parts = Vec::new();
        for key in units {
            let unwritten = known.units.get(&key);
            let terms = self.terms(&key, unwritten);
            let mut part = Part { sums: UnitSums::default(), ranges: Vec::new(), key, terms };
            if with_series {
                part.sums.add(&part.terms, part.terms.no_account());
            }
            let summed = match &roll_ups {
                Some(roll_ups) => roll_ups.summed(&part.key)?,
                None => None,
            };
            let Some(summed) = summed else {
                part.ranges.push(period.clone());
                parts.push(part);
                continue;
            };
            let marks = touched.get(&part.key).into_iter().flatten();
            let marks = marks.filter(|(generation, _)| *generation > summed.next_offset).map(|(_, day)| *day);
            let touched_day = marks.chain(unwritten.and_then(|unit| unit.touched_day)).min();
            let usable = usable_days(&summed, &fingerprint(&part.terms), touched_day, retained_day);
            // Before the first day that is summed up, or was to be, there is nothing.
            let first = period.end.min(period.start.max(day_start(usable.start)));
            let readings = UnitReadings { history: &history, key: &part.key, terms: &part.terms, unwritten };
            part.sums.add(&part.terms, readings.account_of_nothing(period.start, first));
            let whole_days =
                day_of(first.plus_millis(DAY_MS - 1)).max(usable.start)..day_of(period.end).min(usable.end);
            if let Some(roll_ups) = roll_ups.as_ref().filter(|_| !whole_days.is_empty()) {
                roll_ups.add_days(&summed, &whole_days, with_series, &mut part.sums)?;
                part.ranges.push(first..day_start(whole_days.start));
                part.ranges.push(day_start(whole_days.end)..period.end);
            } else {
                part.ranges.push(first..period.end);
            }
            part.ranges.retain(|range| !range.is_empty());
            parts.push(part);
        }
        Ok(parts)
    }

    /// Adds what the readings say of the rest.
    fn work_out(&self, parts: &mut [Part], unwritten: &BTreeMap<UnitKey, UnwrittenUnit>) -> Result<(), HistoryError> {
        let history = self.history()?;
        for part in parts {
            let unwritten = unwritten.get(&part.key);
            let readings = UnitReadings { history: &history, key: &part.key, terms: &part.terms, unwritten };
            let first = readings.first_day()?.map_or(Timestamp::MAX, day_start);
            for range in std::mem::take(&mut part.ranges) {
                let first = range.end.min(range.start.max(first));
                part.sums.add(&part.terms, readings.account_of_nothing(range.start, first));
                readings.each_day(first, range.end, |_, account| part.sums.add(&part.terms, account))?;
            }
        }
        Ok(())
    }
}

/// Returns the days whose sums are still true; the first of them is also the first with any reading.
fn usable_days(summed: &Summed, fingerprint: &str, touched_day: Option<i64>, retained_day: i64) -> Range<i64> {
    let by_terms = if summed.terms == fingerprint { summed.days.end } else { summed.days.end.min(retained_day) };
    let end = by_terms.min(touched_day.unwrap_or(i64::MAX));
    summed.days.start.min(end)..end
}
