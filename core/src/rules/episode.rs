use sha2::{Digest, Sha256};

use super::SeriesId;
use super::binding::Binding;
use crate::hex;
use crate::model::{Timestamp, UnitKey};

/// The place of a rule in the list that the engine was given.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RuleIndex(pub u16);

/// Why an episode ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Resolution {
    /// Readings were clear for long enough; for `silence`, a reading came.
    Cleared,
    /// The unit's duty ended, or the rule's selector stopped matching it.
    OffDuty,
    /// Another version of the rule took over.
    RuleChanged,
    /// The rule was taken away.
    RuleRemoved,
}

impl Resolution {
    /// Returns the resolution with this word, if there is one.
    pub fn from_word(word: &str) -> Option<Self> {
        [Self::Cleared, Self::OffDuty, Self::RuleChanged, Self::RuleRemoved].into_iter().find(|it| it.as_str() == word)
    }

    /// Returns the word used in alerts.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Cleared => "cleared",
            Self::OffDuty => "off_duty",
            Self::RuleChanged => "rule_changed",
            Self::RuleRemoved => "rule_removed",
        }
    }
}

/// Why an episode that was told has turned out not to be one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RetractionReason {
    /// The readings were there and came late: the link was down, not the probe.
    Backlog,
    /// A reading that came later shows that the condition did not hold for long enough.
    Contradicted,
}

impl RetractionReason {
    /// Returns the word used in amendments.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Backlog => "backlog",
            Self::Contradicted => "contradicted",
        }
    }
}

/// One interval in which a rule held and fired, as known at some instant.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Episode {
    /// When the condition began to hold.
    pub started_at: Timestamp,
    /// When it had held for long enough.
    pub fired_at: Timestamp,
    /// When it ended, if it has.
    pub resolved_at: Option<Timestamp>,
    /// Why it ended.
    pub resolution: Option<Resolution>,
    /// The value farthest outside the limits so far.
    pub extreme: Option<f64>,
    /// The newest value.
    pub last_value: Option<f64>,
    /// The low limit in force when it started.
    pub limit_low: Option<f64>,
    /// The high limit in force when it started.
    pub limit_high: Option<f64>,
    /// For how long readings are known to have held within it.
    pub excursion_ms: i64,
    /// The rest of it.
    pub unmonitored_ms: i64,
    /// How much of the time before it fired did not count, because the rule was suspended.
    pub suspended_ms: i64,
}

impl Episode {
    /// Returns an episode of which no more is known than its beginning.
    pub(crate) const fn new(started_at: Timestamp, fired_at: Timestamp) -> Self {
        Self {
            started_at,
            fired_at,
            resolved_at: None,
            resolution: None,
            extreme: None,
            last_value: None,
            limit_low: None,
            limit_high: None,
            excursion_ms: 0,
            unmonitored_ms: 0,
            suspended_ms: 0,
        }
    }

    /// Returns the episode as one that has ended.
    pub(crate) fn ended(self, at: Timestamp, resolution: Resolution) -> Self {
        Self { resolved_at: Some(at), resolution: Some(resolution), ..self }
    }
}

/// One change of state of one rule for one series.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Transition {
    /// Which rule.
    pub rule: RuleIndex,
    /// Which series, or which unit for a rule about a whole unit.
    pub series: SeriesId,
    /// The event time at which it is true; when it was noticed is the caller's to know.
    pub instant: Timestamp,
    /// Whether it was concluded from time alone, so that a reading may still take it back.
    pub provisional: bool,
    /// What changed.
    pub change: Change,
}

/// What changed.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Change {
    /// The condition holds, not for long enough yet. For display only.
    Pending {
        /// Since when it holds.
        since: Timestamp,
    },
    /// The condition ended before it had held for long enough. For display only.
    PendingEnded {
        /// Since when it had held.
        since: Timestamp,
    },
    /// An episode fired.
    Fired(Episode),
    /// An episode that had fired ended.
    Resolved(Episode),
    /// An end that had been told stands, and the figures of the episode have changed by a reading before it.
    Updated(Episode),
    /// An end that had been told has turned out not to be one.
    Reopened(Episode),
    /// An episode that had been told has turned out not to be one.
    Retracted(Episode, RetractionReason),
}

/// Something that the readings so far say, with the instant from which they say it: an episode fired, or, where
/// `resolved_at` is set, ended.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Conclusion {
    pub(crate) instant: Timestamp,
    pub(crate) episode: Episode,
}

impl Conclusion {
    /// Returns whether both say the same happened; figures that grow with time do not matter.
    pub(crate) fn says_the_same(&self, other: &Self) -> bool {
        let facts = |c: &Self| {
            (c.instant, c.episode.started_at, c.episode.fired_at, c.episode.resolved_at, c.episode.resolution)
        };
        facts(self) == facts(other)
    }

    pub(crate) fn is_resolution(&self) -> bool {
        self.episode.resolved_at.is_some()
    }
}

/// What every state machine is given besides its state.
pub(crate) struct Telling<'a> {
    /// What the rule means for the unit.
    pub(crate) binding: &'a Binding,
    /// The value to show as the last one.
    pub(crate) last_value: Option<f64>,
    /// Takes what becomes true.
    pub(crate) out: &'a mut Vec<Conclusion>,
}

impl Telling<'_> {
    pub(crate) fn tell(&mut self, instant: Timestamp, episode: Episode) {
        let episode = Episode { last_value: self.last_value, ..episode };
        self.out.push(Conclusion { instant, episode });
    }
}

/// Returns the id of an episode: the same wherever and whenever the same journal is read.
///
/// `started_at` is the start as first known; `counter` tells episodes apart that were first known with one start.
pub fn episode_id(unit: &UnitKey, sensor: Option<&str>, rule: &str, started_at: Timestamp, counter: u32) -> String {
    // Neither names nor control-free sensor ids hold a newline, so no two tuples make one text.
    let sensor = sensor.map_or_else(String::new, |sensor| format!("={sensor}"));
    let text = format!("{}\n{}\n{sensor}\n{rule}\n{}\n{counter}", unit.operator, unit.unit, started_at.as_millis());
    hex(&Sha256::digest(text.as_bytes())[..16])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Name;

    #[test]
    fn an_episode_id_depends_on_every_part_and_on_nothing_else() {
        let unit = |unit| UnitKey { operator: Name::new("op1").unwrap(), unit: Name::new(unit).unwrap() };
        let at = Timestamp::from_millis;
        let ids = [
            episode_id(&unit("u1"), Some("t1"), "r", at(1), 0),
            episode_id(&unit("u2"), Some("t1"), "r", at(1), 0),
            episode_id(&unit("u1"), Some(""), "r", at(1), 0),
            episode_id(&unit("u1"), None, "r", at(1), 0),
            episode_id(&unit("u1"), Some("t1"), "q", at(1), 0),
            episode_id(&unit("u1"), Some("t1"), "r", at(2), 0),
            episode_id(&unit("u1"), Some("t1"), "r", at(1), 1),
        ];
        assert_eq!(ids.iter().collect::<std::collections::BTreeSet<_>>().len(), ids.len());
        assert_eq!(ids[0], episode_id(&unit("u1"), Some("t1"), "r", at(1), 0));
        assert_eq!(ids[0].len(), 32);
    }
}
