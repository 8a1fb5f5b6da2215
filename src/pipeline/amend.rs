//! What judging again changes about alerts that were told.

use std::collections::BTreeMap;

use frostline_core::model::{Timestamp, UnitKey};
use frostline_core::rules::amendment::{Amendment, OldEpisode, reconcile};
use frostline_core::rules::{Engine, Episode, JudgedEpisode, Resolution, Rule};

use super::alerts::{Concerned, set_figures};
use super::rejudge::Rejudged;
use super::state::{Dirty, LateReason};
use super::{Pipeline, PipelineError, accounting};
use crate::alert::{Alert, AlertState};
use crate::ledger::StoredAlert;

/// Where episodes can be the same one: a rule and a sensor, none for a whole unit.
type Place = (String, Option<Box<str>>);

/// An alert as it is from now on.
struct Amended<'e> {
    alert: Alert,
    /// What happened to it, for the log.
    what: &'static str,
    /// Which of the transitions that were told are true still.
    stands: Vec<(AlertState, Timestamp)>,
    to_tell: ToTell<'e>,
}

/// What is told of an alert that has changed.
enum ToTell<'e> {
    Retraction,
    Episode {
        rule: &'e Rule,
        /// The instant at which people were told that it fired; that need not be told again.
        known_to_fire_at: Option<Timestamp>,
    },
}

impl Pipeline {
    /// Makes the alerts of a unit into what judging again has found.
    pub(super) fn amend(
        &mut self,
        unit: &UnitKey,
        engine: &Engine,
        mut rejudged: BTreeMap<Place, Rejudged>,
        Dirty { from, reason, .. }: Dirty,
    ) -> Result<(), PipelineError> {
        let from = rejudged.values().map(|rejudged| rejudged.from).fold(from, Timestamp::min);
        let mut told: BTreeMap<Place, Vec<StoredAlert>> = BTreeMap::new();
        for stored in self.ledger.episodes_from(unit.operator.as_str(), unit.unit.as_str(), from)? {
            let place = (stored.alert.rule.clone(), stored.alert.sensor.as_deref().map(Into::into));
            told.entry(place).or_default().push(stored);
        }
        for place in told.keys().filter(|place| engine.knows_rule(&place.0)) {
            // A rule that does not concern the sensor at any time any more has no episodes of it.
            let none = || Rejudged { from: Timestamp::MIN, episodes: Vec::new() };
            rejudged.entry(place.clone()).or_insert_with(none);
        }
        for (place, Rejudged { from, episodes }) in rejudged {
            let is_unsettled = |stored: &StoredAlert| match stored.alert.state {
                AlertState::Retracted => stored.alert.resolved_at.is_none_or(|end| end.0 >= from),
                _ => stored.alert.started_at.0 >= from,
            };
            let told = told.remove(&place).unwrap_or_default().into_iter().filter(is_unsettled).collect();
            let concerned = Concerned { unit: unit.clone(), sensor: place.1 };
            self.amend_place(&concerned, engine, told, &episodes, reason)?;
        }
        Ok(())
    }

    fn amend_place(
        &mut self,
        concerned: &Concerned,
        engine: &Engine,
        told: Vec<StoredAlert>,
        episodes: &[JudgedEpisode],
        reason: LateReason,
    ) -> Result<(), PipelineError> {
        let mut told = told;
        told.sort_by_key(|stored| stored.first_seq);
        let mut episodes = episodes.to_vec();
        episodes.sort_by_key(|judged| judged.episode.started_at);
        let old: Vec<_> = told.iter().map(|stored| old_episode(&stored.alert)).collect();
        let new: Vec<_> = episodes.iter().map(|judged| as_told(&judged.episode)).collect();
        // The ids of what the new ones became, for those that merge into them.
        let mut ids: Vec<Option<String>> = vec![None; episodes.len()];
        let mut amended = Vec::new();
        for amendment in reconcile(&old, &new) {
            amended.push(match amendment {
                Amendment::Unchanged { old, new }
                    if told[old].alert.rule_version == *engine.rule(episodes[new].rule).version =>
                {
                    ids[new] = Some(told[old].alert.id.clone());
                    continue;
                }
                Amendment::Unchanged { old, new } | Amendment::Revised { old, new } => {
                    let (rule, alert) = (engine.rule(episodes[new].rule), &told[old].alert);
                    ids[new] = Some(alert.id.clone());
                    self.revise(rule, concerned, alert, &episodes[new].episode, reason)?
                }
                Amendment::Added { new } => {
                    let (rule, episode) = (engine.rule(episodes[new].rule), &episodes[new].episode);
                    let added = self.add(rule, concerned, episode)?;
                    ids[new] = Some(added.alert.id.clone());
                    added
                }
                Amendment::Retracted { old, merged_into } => {
                    let merged_into = merged_into.and_then(|new| ids[new].clone());
                    self.retract(&told[old].alert, merged_into, reason)
                }
            });
        }
        // All is taken back before anything is told: an episode may end where another one was said to, and is then the same
        // point of the series database.
        for Amended { alert, stands, .. } in &amended {
            self.supersede(alert, stands)?;
        }
        for Amended { alert, what, to_tell, .. } in amended {
            self.log(&alert, what);
            match to_tell {
                ToTell::Retraction => {
                    let instant = alert.resolved_at.or(alert.fired_at).unwrap_or(alert.started_at).0;
                    self.ledger.put_alert_state(&alert)?;
                    self.tell_stored(&alert, instant, alert.last_value)?;
                }
                ToTell::Episode { rule, known_to_fire_at } => {
                    self.tell_all_of(rule, concerned, &alert, known_to_fire_at)?;
                }
            }
        }
        Ok(())
    }

    /// Makes an alert of an episode that was not known at all.
    fn add<'e>(&self, rule: &'e Rule, concerned: &Concerned, episode: &Episode) -> Result<Amended<'e>, PipelineError> {
        let mut alert = self.new_alert(rule, concerned, episode.started_at)?;
        alert.late = true;
        self.describe(rule, concerned, &mut alert, episode)?;
        let to_tell = ToTell::Episode { rule, known_to_fire_at: None };
        Ok(Amended { alert, what: "alert found in late readings", stands: Vec::new(), to_tell })
    }

    /// Makes an alert into what its episode is now.
    fn revise<'e>(
        &mut self,
        rule: &'e Rule,
        concerned: &Concerned,
        before: &Alert,
        episode: &Episode,
        reason: LateReason,
    ) -> Result<Amended<'e>, PipelineError> {
        let mut alert = self.blank_alert(before.id.clone(), rule, concerned, episode.started_at);
        self.describe(rule, concerned, &mut alert, episode)?;
        let change = what_changed(before, &alert);
        alert.handling = before.handling;
        alert.detected_at = before.detected_at;
        (alert.revision, alert.amendments) = (before.revision, before.amendments.clone());
        self.note_amendment(&mut alert, reason.as_str(), &change);
        let mut stands = vec![(AlertState::Firing, alert.fired_at.unwrap_or(alert.started_at).0)];
        stands.extend(alert.resolved_at.map(|end| (AlertState::Resolved, end.0)));
        let was_fired_at = (before.state != AlertState::Retracted).then_some(before.fired_at).flatten();
        let to_tell = ToTell::Episode { rule, known_to_fire_at: was_fired_at.map(|at| at.0) };
        Ok(Amended { alert, what: "alert amended", stands, to_tell })
    }

    fn retract(&mut self, before: &Alert, merged_into: Option<String>, reason: LateReason) -> Amended<'static> {
        let mut alert = before.clone();
        let change = match &merged_into {
            Some(id) => format!("it is a part of {id}"),
            None => "with what has come since it was none".to_owned(),
        };
        self.note_amendment(&mut alert, reason.as_str(), &change);
        alert.state = AlertState::Retracted;
        alert.merged_into = merged_into;
        Amended { alert, what: "alert retracted", stands: Vec::new(), to_tell: ToTell::Retraction }
    }

    /// Fills in everything that an episode says.
    fn describe(
        &self,
        rule: &Rule,
        concerned: &Concerned,
        alert: &mut Alert,
        episode: &Episode,
    ) -> Result<(), PipelineError> {
        alert.late = true;
        alert.state = if episode.resolved_at.is_some() { AlertState::Resolved } else { AlertState::Firing };
        set_figures(alert, rule, episode);
        (alert.latitude, alert.longitude) = self.position(&concerned.unit, episode.fired_at)?;
        alert.message = super::alerts::message(rule, alert);
        Ok(())
    }

    /// Tells each transition of an alert, except that it fired where that is known; the last one is always told.
    fn tell_all_of(
        &mut self,
        rule: &Rule,
        concerned: &Concerned,
        alert: &Alert,
        known_to_fire_at: Option<Timestamp>,
    ) -> Result<(), PipelineError> {
        let fired_at = alert.fired_at.unwrap_or(alert.started_at).0;
        let Some(resolved_at) = alert.resolved_at else {
            return self.tell(rule, alert, fired_at, self.value_at(concerned, rule.quantity, fired_at)?);
        };
        if known_to_fire_at != Some(fired_at) {
            let firing = Alert { state: AlertState::Firing, resolved_at: None, resolution: None, ..alert.clone() };
            self.tell(rule, &firing, fired_at, self.value_at(concerned, rule.quantity, fired_at)?)?;
        }
        let value = self.value_at(concerned, rule.quantity, resolved_at.0)?;
        self.tell(rule, alert, resolved_at.0, value)
    }

    /// Adds a revision to an alert.
    pub(super) fn note_amendment(&mut self, alert: &mut Alert, reason: &str, change: &str) {
        alert.revision += 1;
        alert.late = true;
        alert.amendments.push(crate::alert::Amendment {
            revision: alert.revision,
            at: crate::alert::Time(self.now),
            reason: reason.to_owned(),
            change: change.to_owned(),
        });
        self.count(self.next_offset, accounting::AMENDMENTS, reason, 1);
    }
}

/// Returns the part of an episode that was told: of one that goes on, its figures are not.
fn as_told(episode: &Episode) -> Episode {
    let told = Episode { last_value: None, suspended_ms: 0, ..*episode };
    match episode.resolved_at {
        Some(_) => told,
        None => Episode { extreme: None, excursion_ms: 0, unmonitored_ms: 0, ..told },
    }
}

fn old_episode(alert: &Alert) -> OldEpisode {
    let millis = |seconds: f64| (seconds * 1e3).round() as i64;
    let episode = Episode {
        started_at: alert.started_at.0,
        fired_at: alert.fired_at.unwrap_or(alert.started_at).0,
        resolved_at: alert.resolved_at.map(|end| end.0),
        resolution: alert.resolution.as_deref().and_then(Resolution::from_word),
        extreme: alert.extreme,
        last_value: None,
        limit_low: alert.limit_low,
        limit_high: alert.limit_high,
        excursion_ms: millis(alert.excursion_s),
        unmonitored_ms: millis(alert.unmonitored_s),
        suspended_ms: 0,
    };
    OldEpisode { episode: as_told(&episode), is_retracted: alert.state == AlertState::Retracted }
}

/// Says in words what is different now.
fn what_changed(before: &Alert, now: &Alert) -> String {
    if before.state == AlertState::Retracted {
        return format!("it did hold, since {}", now.started_at.0);
    }
    let mut changes = Vec::new();
    let mut moved = |what: &str, before: Option<Timestamp>, now: Option<Timestamp>| match (before, now) {
        (Some(before), Some(now)) if before != now => changes.push(format!("{what} at {now}, not at {before}")),
        (Some(before), None) => changes.push(format!("not {what} at {before}")),
        (None, Some(now)) => changes.push(format!("{what} at {now}")),
        _ => {}
    };
    moved("started", Some(before.started_at.0), Some(now.started_at.0));
    moved("fired", before.fired_at.map(|at| at.0), now.fired_at.map(|at| at.0));
    moved("resolved", before.resolved_at.map(|at| at.0), now.resolved_at.map(|at| at.0));
    if before.extreme != now.extreme && now.resolved_at.is_some() {
        let shown = |value: Option<f64>| value.map_or_else(|| "unknown".to_owned(), |value| value.to_string());
        changes.push(format!("extreme {}, not {}", shown(now.extreme), shown(before.extreme)));
    }
    if before.rule_version != now.rule_version {
        changes.push(format!("by version {} of the rule", now.rule_version));
    }
    if changes.is_empty() {
        changes.push("known and unknown time within it".to_owned());
    }
    changes.join("; ")
}
