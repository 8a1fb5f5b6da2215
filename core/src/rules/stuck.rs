//! The kind `stuck`: readings that all say the same for too long.

use serde::{Deserialize, Serialize};

use super::episode::{Episode, Resolution, Telling};
use crate::model::Timestamp;

/// What such a rule asks.
#[derive(Clone, Copy, Debug)]
pub(crate) struct StuckRule {
    pub(crate) for_ms: i64,
    pub(crate) min_readings: u32,
}

/// A run of equal readings.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Run {
    pub(crate) since: Timestamp,
    last: Timestamp,
    value_micro: i64,
    readings: u32,
    pub(crate) fired_at: Option<Timestamp>,
}

impl Run {
    fn episode(&self, fired_at: Timestamp) -> Episode {
        Episode { excursion_ms: self.last.millis_since(self.since), ..Episode::new(self.since, fired_at) }
    }

    /// Returns the episode as it is now, if it has fired.
    pub(crate) fn firing(&self, last_value: Option<f64>) -> Option<Episode> {
        self.fired_at.map(|fired_at| Episode { last_value, ..self.episode(fired_at) })
    }

    fn end(&self, at: Timestamp, resolution: Resolution, telling: &mut Telling<'_>) {
        if let Some(fired_at) = self.fired_at {
            telling.tell(at, self.episode(fired_at).ended(at, resolution));
        }
    }
}

impl StuckRule {
    /// Lets time pass: only the end of duty ends a run without a reading.
    pub(crate) fn run(&self, state: &mut Option<Run>, until: Timestamp, telling: &mut Telling<'_>) {
        if let Some(run) = state
            && let Some((end, resolution)) = telling.binding.end_of_applying(run.last).filter(|(end, _)| *end <= until)
        {
            run.end(end, resolution, telling);
            *state = None;
        }
    }

    /// Looks at a reading with a value, after [`StuckRule::run`] up to its time.
    pub(crate) fn look(&self, state: &mut Option<Run>, at: Timestamp, value_micro: i64, telling: &mut Telling<'_>) {
        let run = match state {
            Some(run) if run.value_micro == value_micro => {
                run.last = at;
                run.readings = run.readings.saturating_add(1);
                run
            }
            _ => {
                if let Some(run) = state {
                    run.end(at, Resolution::Cleared, telling);
                }
                state.insert(Run { since: at, last: at, value_micro, readings: 1, fired_at: None })
            }
        };
        let is_long_enough = at.millis_since(run.since) >= self.for_ms && run.readings >= self.min_readings;
        if run.fired_at.is_none() && is_long_enough {
            run.fired_at = Some(at);
            telling.tell(at, run.episode(at));
        }
    }
}
