//! Questions about what is in no file yet, answered by the pipeline between two batches.

use std::collections::BTreeMap;
use std::sync::mpsc;
use std::sync::{Arc, Mutex, PoisonError};

use frostline_core::model::{Kind, Reading, SeriesKey, Timestamp, UnitKey};
use tokio::sync::oneshot;

use super::Pipeline;
use super::device_clock::DeviceClock;
use super::state::UnitState;
use crate::alert::Alert;

/// One unit as it stands.
#[derive(Debug, Clone, PartialEq)]
pub struct UnitView {
    /// Operator and unit.
    pub key: UnitKey,
    /// When its newest message came in.
    pub last_received_at: Option<Timestamp>,
    /// The largest sequence number.
    pub sequence_last: Option<u64>,
    /// Messages missing between two sequence numbers.
    pub sequence_gaps: u64,
    /// Messages whose sequence number had come already.
    pub sequence_repeats: u64,
    /// What its messages say of its clock.
    pub clock: DeviceClock,
    /// The newest reading of each series.
    pub series: Vec<SeriesView>,
    /// Episodes that have begun and not yet fired.
    pub pending: Vec<Alert>,
}

/// The newest reading of one series.
#[derive(Debug, Clone, PartialEq)]
pub struct SeriesView {
    /// The probe.
    pub sensor: String,
    /// What it measures.
    pub kind: Kind,
    /// Its newest reading.
    pub newest: Reading,
}

/// What the history's file does not say yet of some units, and where the journal stands.
#[derive(Debug, Clone, PartialEq)]
pub struct Unwritten {
    /// The rules' *now*.
    pub now: Timestamp,
    /// The first journal entry that is not in it.
    pub next_offset: u64,
    /// The units asked for that have sent anything.
    pub units: BTreeMap<UnitKey, UnwrittenUnit>,
}

/// What the history's file does not say yet of one unit.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct UnwrittenUnit {
    /// Every series that has ever sent anything, with those of its readings asked for that are not in the file.
    pub series: Vec<(Box<str>, Kind, Vec<Reading>)>,
    /// The earliest closed day that a reading has fallen into, as far as the file does not say.
    pub touched_day: Option<i64>,
}

enum Question {
    Unwritten { wanted: Vec<(UnitKey, Timestamp, Timestamp)>, answer: oneshot::Sender<Unwritten> },
    Units { only: Option<UnitKey>, answer: oneshot::Sender<(Timestamp, Vec<UnitView>)> },
    Pending { answer: oneshot::Sender<Vec<Alert>> },
    OpenReadings { series: SeriesKey, from: Timestamp, to: Timestamp, answer: oneshot::Sender<Vec<Reading>> },
}

/// Where questions are asked; clones share it.
#[derive(Clone)]
pub struct Live {
    ask: mpsc::SyncSender<Question>,
    questions: Arc<Mutex<mpsc::Receiver<Question>>>,
}

/// Why there is no answer: the pipeline has ended, or does not come round to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the pipeline does not answer")]
pub struct NoAnswer;

impl Default for Live {
    fn default() -> Self {
        // More than so many open questions at once means that nobody answers.
        let (ask, questions) = mpsc::sync_channel(256);
        Self { ask, questions: Arc::new(Mutex::new(questions)) }
    }
}

impl Live {
    /// Returns the rules' *now* and every unit, or the one asked for.
    pub async fn units(&self, only: Option<UnitKey>) -> Result<(Timestamp, Vec<UnitView>), NoAnswer> {
        let (answer, answered) = oneshot::channel();
        self.put(Question::Units { only, answer }, answered).await
    }

    /// Returns the episodes of all units that have begun and not yet fired.
    pub async fn pending(&self) -> Result<Vec<Alert>, NoAnswer> {
        let (answer, answered) = oneshot::channel();
        self.put(Question::Pending { answer }, answered).await
    }

    /// Returns the readings of a series in `from..to` that are not in the history's file yet.
    pub async fn open_readings(
        &self,
        series: SeriesKey,
        from: Timestamp,
        to: Timestamp,
    ) -> Result<Vec<Reading>, NoAnswer> {
        let (answer, answered) = oneshot::channel();
        self.put(Question::OpenReadings { series, from, to, answer }, answered).await
    }

    /// Returns the temperature and humidity readings of some units, each within `from..to`, that are not in the history's
    /// file yet. Ask for these first and then the file: then nothing is missed.
    pub async fn unwritten(&self, wanted: Vec<(UnitKey, Timestamp, Timestamp)>) -> Result<Unwritten, NoAnswer> {
        let (answer, answered) = oneshot::channel();
        self.put(Question::Unwritten { wanted, answer }, answered).await
    }

    async fn put<T>(&self, question: Question, answered: oneshot::Receiver<T>) -> Result<T, NoAnswer> {
        self.ask.try_send(question).map_err(|_| NoAnswer)?;
        let patience = std::time::Duration::from_secs(5);
        match tokio::time::timeout(patience, answered).await {
            Ok(Ok(answer)) => Ok(answer),
            _ => Err(NoAnswer),
        }
    }

    pub(super) fn answer(&self, pipeline: &Pipeline) {
        let questions = self.questions.lock().unwrap_or_else(PoisonError::into_inner);
        for question in questions.try_iter() {
            // Whoever asked may have gone; that is his affair.
            match question {
                Question::Units { only, answer } => {
                    drop(answer.send((pipeline.now, pipeline.unit_views(only.as_ref()))))
                }
                Question::Unwritten { wanted, answer } => drop(answer.send(pipeline.unwritten(&wanted))),
                Question::Pending { answer } => {
                    let units = pipeline.units.iter();
                    drop(answer.send(units.flat_map(|unit| pipeline.pending_alerts(&unit.key)).collect()));
                }
                Question::OpenReadings { series, from, to, answer } => {
                    drop(answer.send(pipeline.open_readings(&series, from, to)));
                }
            }
        }
    }
}

impl Pipeline {
    fn unit_views(&self, only: Option<&UnitKey>) -> Vec<UnitView> {
        match only {
            Some(key) => self.units.find(key).map(|unit| self.unit_view(unit)).into_iter().collect(),
            None => self.units.iter().map(|unit| self.unit_view(unit)).collect(),
        }
    }

    fn unit_view(&self, unit: &UnitState) -> UnitView {
        let series = unit.series.iter().filter_map(|series| {
            let newest = self.history.newest(series.history)?;
            Some(SeriesView { sensor: series.sensor.to_string(), kind: series.kind, newest })
        });
        UnitView {
            key: unit.key.clone(),
            last_received_at: (unit.last_received_at > Timestamp::MIN).then_some(unit.last_received_at),
            sequence_last: unit.sequence.last,
            sequence_gaps: unit.sequence.gaps,
            sequence_repeats: unit.sequence.repeats,
            clock: unit.clock,
            series: series.collect(),
            pending: self.pending_alerts(&unit.key),
        }
    }

    fn unwritten(&self, wanted: &[(UnitKey, Timestamp, Timestamp)]) -> Unwritten {
        let units = wanted.iter().filter_map(|(key, from, to)| {
            let unit = self.units.find(key)?;
            let series = unit.series.iter().map(|series| {
                let is_measured = matches!(series.kind, Kind::Temperature | Kind::Humidity);
                let to = if is_measured { *to } else { *from };
                (series.sensor.clone(), series.kind, self.history.open_readings(series.history, *from, to))
            });
            let touched = unit.series.iter().filter_map(|series| self.history.touched_day(series.history));
            Some((key.clone(), UnwrittenUnit { series: series.collect(), touched_day: touched.min() }))
        });
        Unwritten { now: self.now, next_offset: self.next_offset, units: units.collect() }
    }

    fn open_readings(&self, key: &SeriesKey, from: Timestamp, to: Timestamp) -> Vec<Reading> {
        let unit = self.units.find(&key.unit);
        let series = unit
            .and_then(|unit| unit.series.iter().find(|series| series.kind == key.kind && series.sensor == key.sensor));
        series.map(|series| self.history.open_readings(series.history, from, to)).unwrap_or_default()
    }
}
