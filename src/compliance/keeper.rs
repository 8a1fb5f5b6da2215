//! Sums up days that are over, and again where something has changed.

use std::collections::BTreeSet;
use std::time::Duration;

use frostline_core::accounting::Terms;
use frostline_core::model::{Timestamp, UnitKey};
use prometheus::{IntCounter, Registry};
use tokio_util::sync::CancellationToken;

use super::roll_ups::NewSums;
use super::{ClosedDays, ComplianceError, RollUpError, RollUps, Sources, UnitReadings, fingerprint};
use crate::history::{day_of, day_start};
use crate::pipeline::Unwritten;

/// How long after its end a day is summed up, so that its last readings have come, in milliseconds.
const SLACK_MS: i64 = 5 * 60_000;
/// How often it is looked whether there is anything to sum up.
const PASS_INTERVAL: Duration = Duration::from_secs(30);
/// So many units are summed up in one transaction.
const UNITS_AT_ONCE: usize = 20;

/// Counts what is summed up.
#[derive(Debug, Clone)]
pub struct ComplianceMetrics {
    days_summed: IntCounter,
    failures: IntCounter,
}

impl ComplianceMetrics {
    /// Makes the metrics known to `registry`.
    ///
    /// # Errors
    /// Where they are known to it already.
    pub fn register(registry: &Registry) -> prometheus::Result<Self> {
        let days_summed =
            IntCounter::new("frostline_compliance_days_summed_total", "Days of units summed up, or summed up again")?;
        let failures =
            IntCounter::new("frostline_compliance_failures_total", "Times that days could not be summed up")?;
        registry.register(Box::new(days_summed.clone()))?;
        registry.register(Box::new(failures.clone()))?;
        Ok(Self { days_summed, failures })
    }
}

/// Keeps the sums of whole days.
pub struct Keeper {
    pub(super) sources: Sources,
    closed_days: ClosedDays,
    metrics: ComplianceMetrics,
}

/// A unit whose days are to be summed up from one day on.
struct Task {
    key: UnitKey,
    terms: Terms,
    /// `None` for the first day with a reading.
    from_day: Option<i64>,
}

impl Keeper {
    /// Opens or makes the file of the sums, and closes the days that it closed before. A file that cannot be used is set
    /// aside: what can be made again must not keep a daemon from watching.
    ///
    /// Call it before the history is opened that has these `closed_days`: what comes back from the journal leaves marks
    /// too.
    pub fn open(sources: Sources, closed_days: ClosedDays, metrics: ComplianceMetrics) -> Self {
        let mut opened = RollUps::open(&sources.data_dir);
        if let Err(error @ (RollUpError::Format { .. } | RollUpError::Failed(_))) = &opened {
            tracing::error!(error = error as &dyn std::error::Error, "the sums of days are set aside and made again");
            opened = RollUps::set_aside(&sources.data_dir).and_then(|()| RollUps::open(&sources.data_dir));
        }
        match opened.and_then(|roll_ups| roll_ups.closed_until()) {
            Ok(until) => closed_days.close_until(until),
            Err(error) => {
                tracing::warn!(error = &error as &dyn std::error::Error, "the sums of days cannot be used for now");
                // Whatever was closed before: every day leaves marks until that is known.
                closed_days.close_until(Timestamp::MAX);
            }
        }
        Self { sources, closed_days, metrics }
    }

    /// Looks after the sums until `stop` is cancelled. A failure is told and tried again: the sums only save time.
    pub async fn run(self, stop: CancellationToken) {
        loop {
            tokio::select! {
                // What is being written is written; the rest is for the next run.
                () = stop.cancelled() => return,
                ended = self.pass() => if let Err(error) = ended {
                    self.metrics.failures.inc();
                    tracing::warn!(error = &error as &dyn std::error::Error, "days cannot be summed up for now");
                },
            }
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(PASS_INTERVAL) => {}
            }
        }
    }

    /// Sums up everything that is to be, and returns how many days of units that were.
    ///
    /// # Errors
    /// Where something cannot be read or written; what was summed up before stays.
    pub async fn pass(&self) -> Result<u64, ComplianceError> {
        let now = self.sources.live.unwritten(Vec::new()).await?.now;
        if now == Timestamp::MIN {
            return Ok(0);
        }
        let end_day = day_of(now.plus_millis(-SLACK_MS));
        let (data_dir, closed_days) = (self.sources.data_dir.clone(), self.closed_days.clone());
        let close = move || -> Result<(), RollUpError> {
            let roll_ups = RollUps::open(&data_dir)?;
            // First in the file: after a crash, what the journal gives back leaves marks as well.
            roll_ups.close_until(day_start(end_day))?;
            closed_days.close_until(roll_ups.closed_until()?);
            Ok(())
        };
        tokio::task::spawn_blocking(close).await??;
        // The pipeline answers between two batches: whatever it inserts after this answer finds the days closed.
        let nothing = |key: &UnitKey| (key.clone(), Timestamp::MIN, Timestamp::MIN);
        let units = self.sources.judgement.registry.units.keys().map(nothing).collect();
        let known = self.sources.live.unwritten(units).await?;
        let next_offset = known.next_offset;
        let sources = self.sources.clone();
        let mut tasks = tokio::task::spawn_blocking(move || sources.tasks(&known, end_day)).await??;
        let mut days_summed = 0;
        while !tasks.is_empty() {
            let rest = tasks.split_off(tasks.len().min(UNITS_AT_ONCE));
            let wanted = tasks.iter().map(|task| {
                let from = task.from_day.map_or(Timestamp::MIN, day_start);
                (task.key.clone(), from.plus_millis(-task.terms.longest_hold_ms()), day_start(end_day))
            });
            let unwritten = self.sources.live.unwritten(wanted.collect()).await?;
            let sources = self.sources.clone();
            let days = tokio::task::spawn_blocking(move || sources.sum_up(&tasks, &unwritten, end_day)).await??;
            self.metrics.days_summed.inc_by(days);
            days_summed += days;
            tasks = rest;
        }
        // Every mark up to here is in the sums, and may go.
        self.closed_days.heeded(next_offset);
        Ok(days_summed)
    }
}

impl Sources {
    /// Returns the units that are not summed up until `end_day`, or not any more.
    fn tasks(&self, known: &Unwritten, end_day: i64) -> Result<Vec<Task>, ComplianceError> {
        let touched = self.history()?.touched_after(0)?;
        let mut roll_ups = RollUps::open(&self.data_dir)?;
        let roll_ups = roll_ups.read()?;
        let retained_day = self.first_retained_day(known.now);
        let mut keys: BTreeSet<UnitKey> = self.judgement.registry.units.keys().cloned().collect();
        // A unit that is not registered any more has no time on duty; should it come back, its marks will have gone.
        keys.extend(roll_ups.units()?);
        let mut tasks = Vec::new();
        for key in keys {
            let unwritten = known.units.get(&key);
            let terms = self.terms(&key, unwritten);
            let Some(summed) = roll_ups.summed(&key)? else {
                tasks.push(Task { key, terms, from_day: None });
                continue;
            };
            let marks = touched.get(&key).into_iter().flatten();
            let marks = marks.filter(|(generation, _)| *generation > summed.next_offset).map(|(_, day)| *day);
            let touched_day = marks.chain(unwritten.and_then(|unit| unit.touched_day)).min().unwrap_or(i64::MAX);
            let changed_day = if summed.terms == fingerprint(&terms) {
                i64::MAX
            } else {
                // What is not all there any more stays as it was summed up.
                summed.days.start.max(retained_day)
            };
            let from_day = summed.days.end.min(touched_day).min(changed_day);
            if from_day < end_day {
                tasks.push(Task { key, terms, from_day: Some(from_day) });
            }
        }
        Ok(tasks)
    }

    /// Sums up the days of some units, and returns how many they are.
    fn sum_up(&self, tasks: &[Task], unwritten: &Unwritten, end_day: i64) -> Result<u64, ComplianceError> {
        let history = self.history()?;
        let mut sums = Vec::new();
        for Task { key, terms, from_day } in tasks {
            let readings = UnitReadings { history: &history, key, terms, unwritten: unwritten.units.get(key) };
            let first_day = match from_day {
                Some(day) => *day,
                None => readings.first_day()?.map_or(end_day, |day| day.min(end_day)),
            };
            let mut accounts = Vec::new();
            readings
                .each_day(day_start(first_day), day_start(end_day), |day, account| accounts.push((day, account)))?;
            sums.push(NewSums {
                key,
                terms,
                fingerprint: fingerprint(terms),
                next_offset: unwritten.next_offset,
                days: first_day..end_day,
                accounts,
            });
        }
        RollUps::open(&self.data_dir)?.put(&sums)?;
        Ok(sums.iter().map(|sums| sums.accounts.len() as u64).sum())
    }
}
