//! From the engine's transitions to alerts: which episode it is, what is told of it, and to whom.

use std::sync::Arc;

use frostline_core::model::{Kind, Reading, Timestamp, UnitKey};
use frostline_core::rules::{
    Change, Condition, Engine, Episode, Era, LimitSource, Rule, Transition, episode_id, limits_in_force,
};

use super::state::SeriesState;
use super::{Pipeline, PipelineError, accounting};
use crate::alert::{Alert, AlertState, Handling, Message, Time};
use crate::config::Judgement;
use crate::ledger::{EpisodeSeries, StoredAlert, Telling};

/// What a listener of the stream gets.
#[derive(Debug, Clone, PartialEq)]
pub enum StreamEvent {
    /// A transition that was told, or an episode that has begun.
    Transition(Alert),
    /// An episode ended before it had lasted for long enough.
    PendingEnded(Alert),
}

/// A reading as it was accepted.
#[derive(Debug, Clone, PartialEq)]
pub struct ReadingEvent {
    /// Operator and unit.
    pub unit: UnitKey,
    /// The probe.
    pub sensor: String,
    /// What it measures.
    pub kind: Kind,
    /// What it says.
    pub reading: Reading,
}

/// Whom a transition concerns.
#[derive(Clone)]
pub(super) struct Concerned {
    pub(super) unit: UnitKey,
    pub(super) sensor: Option<Box<str>>,
}

/// Builds an engine for a first configuration, loaded at `loaded_at`.
pub(super) fn new_engine(judgement: &Judgement, loaded_at: Timestamp) -> Engine {
    let mut engine = Engine::new(era(judgement, loaded_at), judgement.settle_ms);
    engine.tell_pending(true);
    engine
}

/// Returns what a configuration says to the rules.
pub(super) fn era(judgement: &Judgement, loaded_at: Timestamp) -> Era {
    Era { loaded_at, rules: Arc::clone(&judgement.rules), registry: Arc::clone(&judgement.registry) }
}

impl Pipeline {
    /// Tells what the engine has concluded, and empties the list.
    pub(super) fn take_transitions(&mut self, transitions: &mut Vec<Transition>) -> Result<(), PipelineError> {
        for transition in transitions.drain(..) {
            if self.has_effects(self.next_offset) {
                self.take_transition(&transition)?;
            }
        }
        Ok(())
    }

    /// Goes over to the configuration of the journal entry at `offset`, in force from the instant `at` on.
    pub(super) fn reconfigure(&mut self, offset: u64, judgement: Arc<Judgement>, hash: [u8; 32], at: Timestamp) {
        if self.eras.is_empty() {
            self.engine = new_engine(&judgement, at);
            // Where readings bring the time, the first one is on its way already, under a short name of no engine.
            for unit in self.units.iter_mut() {
                for series in &mut unit.series {
                    series.engine = self.engine.series(&series.key(&unit.key));
                }
            }
        } else {
            self.engine.reconfigure(era(&judgement, at), judgement.settle_ms);
        }
        self.eras.push((offset, at));
        self.shared.accounting.show_routes(judgement.routes.iter().map(|route| &*route.filter));
        self.judgement = judgement;
        self.configuration_hash = Some(hash);
    }

    fn take_transition(&mut self, transition: &Transition) -> Result<(), PipelineError> {
        let rule = Arc::clone(self.engine.rule(transition.rule));
        let rule = &*rule;
        let subject = self.engine.subject(transition.series);
        let concerned = Concerned { unit: subject.unit.clone(), sensor: subject.sensor.map(Into::into) };
        match &transition.change {
            Change::Pending { since } => {
                let alert = self.pending_alert(rule, &concerned, *since);
                self.show(StreamEvent::Transition(alert));
                Ok(())
            }
            Change::PendingEnded { since } => {
                let alert = self.pending_alert(rule, &concerned, *since);
                self.show(StreamEvent::PendingEnded(alert));
                Ok(())
            }
            Change::Fired(episode) => self.fired(rule, &concerned, episode),
            Change::Resolved(episode) => {
                let mut stored = self.told(rule, &concerned, episode)?;
                set_figures(&mut stored.alert, rule, episode);
                stored.alert.state = AlertState::Resolved;
                self.log(&stored.alert, "alert resolved");
                let instant = episode.resolved_at.unwrap_or(transition.instant);
                self.tell(rule, &stored.alert, instant, episode.last_value)
            }
            Change::Updated(episode) => {
                let stored = self.told(rule, &concerned, episode)?;
                let mut alert = self.amended(stored, "backlog", "readings before its end have changed its figures");
                set_figures(&mut alert, rule, episode);
                self.log(&alert, "alert updated");
                let instant = episode.resolved_at.unwrap_or(transition.instant);
                self.tell(rule, &alert, instant, episode.last_value)
            }
            Change::Reopened(episode) => {
                let stored = self.told(rule, &concerned, episode)?;
                let mut alert = self.amended(stored, "contradicted", "the end that was told was not one");
                set_figures(&mut alert, rule, episode);
                alert.state = AlertState::Firing;
                self.supersede(&alert, &[(AlertState::Firing, episode.fired_at)])?;
                self.log(&alert, "alert reopened");
                self.tell(rule, &alert, episode.fired_at, episode.last_value)
            }
            Change::Retracted(episode, reason) => {
                let stored = self.told(rule, &concerned, episode)?;
                let mut alert =
                    self.amended(stored, reason.as_str(), "the readings that have come since say that it was none");
                alert.state = AlertState::Retracted;
                self.supersede(&alert, &[])?;
                self.log(&alert, "alert retracted");
                self.tell(rule, &alert, transition.instant, episode.last_value)
            }
        }
    }

    fn fired(&mut self, rule: &Rule, concerned: &Concerned, episode: &Episode) -> Result<(), PipelineError> {
        let retracted = self.ledger.retracted_episodes(episode_series(rule, concerned))?;
        // A new episode goes on with the earliest-known one that was taken back and shares an instant with it.
        let claimed = retracted
            .into_iter()
            .find(|old| old.alert.resolved_at.is_none_or(|resolved_at| episode.started_at <= resolved_at.0));
        let mut alert = match claimed {
            Some(stored) => {
                let change = format!("it did hold, since {}", episode.started_at);
                let mut alert = self.amended(stored, "backlog", &change);
                (alert.resolved_at, alert.resolution) = (None, None);
                alert.detected_at = Time(self.now);
                alert
            }
            None => self.new_alert(rule, concerned, episode.started_at)?,
        };
        alert.state = AlertState::Firing;
        set_figures(&mut alert, rule, episode);
        (alert.latitude, alert.longitude) = self.position(&concerned.unit, episode.fired_at)?;
        alert.message = message(rule, &alert);
        self.log(&alert, "alert firing");
        self.tell(rule, &alert, episode.fired_at, episode.last_value)
    }

    /// Notes which units have changed. One that has never sent anything changes too: it gets more silent.
    pub(super) fn note_changed_units(&mut self) {
        for key in self.engine.take_changed_units() {
            let index = self.units.of_key(key);
            let unit = self.units.get_mut(index);
            (unit.changed, unit.is_unshown) = (true, true);
            self.unshown.insert(index);
        }
    }

    /// Brings the figures of all firing alerts up to the newest readings.
    pub(super) fn show_figures(&mut self) -> Result<(), PipelineError> {
        self.untimed_since = None;
        self.note_changed_units();
        for index in std::mem::take(&mut self.unshown) {
            let unit = self.units.get_mut(index);
            (unit.changed, unit.is_unshown) = (true, false);
            if self.has_effects(self.next_offset) {
                let key = self.units.get(index).key.clone();
                self.refresh_firing(&key)?;
            }
        }
        Ok(())
    }

    /// Brings the figures of a unit's firing alerts up to its newest readings; that is not told to anyone.
    pub(super) fn refresh_firing(&mut self, unit: &UnitKey) -> Result<(), PipelineError> {
        for firing in self.engine.firing(unit) {
            let rule = Arc::clone(self.engine.rule(firing.rule));
            let subject = self.engine.subject(firing.series);
            let concerned = Concerned { unit: subject.unit.clone(), sensor: subject.sensor.map(Into::into) };
            let stored = self.ledger.told_episode(episode_series(&rule, &concerned), firing.episode.started_at)?;
            if let Some(StoredAlert { mut alert, .. }) = stored
                && alert.state == AlertState::Firing
            {
                set_figures(&mut alert, &rule, &firing.episode);
                self.ledger.put_alert(&alert, rule.quantity.as_str())?;
            }
        }
        Ok(())
    }

    /// Returns the alert of an episode that was told.
    fn told(&mut self, rule: &Rule, concerned: &Concerned, episode: &Episode) -> Result<StoredAlert, PipelineError> {
        match self.ledger.told_episode(episode_series(rule, concerned), episode.started_at)? {
            Some(stored) => Ok(stored),
            // The engine never ends what it has not begun; should the ledger not know it, it is told now as it is.
            None => Ok(StoredAlert { alert: self.new_alert(rule, concerned, episode.started_at)?, first_seq: 0 }),
        }
    }

    fn amended(&mut self, stored: StoredAlert, reason: &str, change: &str) -> Alert {
        let mut alert = stored.alert;
        self.note_amendment(&mut alert, reason, change);
        alert
    }

    /// Marks what was told of an alert as superseded, except what still `stands` as it was.
    pub(super) fn supersede(&mut self, alert: &Alert, stands: &[(AlertState, Timestamp)]) -> Result<(), PipelineError> {
        for (state, event_time, value) in self.ledger.tellings(&alert.id)? {
            if !stands.contains(&(state, event_time)) {
                let old = Alert { state, ..alert.clone() };
                let telling = Telling { alert: &old, event_time, value, superseded: true };
                self.ledger.tell(self.next_offset, telling, &[])?;
            }
        }
        Ok(())
    }

    pub(super) fn tell(
        &mut self,
        rule: &Rule,
        alert: &Alert,
        event_time: Timestamp,
        value: Option<f64>,
    ) -> Result<(), PipelineError> {
        self.ledger.put_alert(alert, rule.quantity.as_str())?;
        self.tell_stored(alert, event_time, value)
    }

    /// Tells a transition of an alert that is in the ledger as it is now.
    pub(super) fn tell_stored(
        &mut self,
        alert: &Alert,
        event_time: Timestamp,
        value: Option<f64>,
    ) -> Result<(), PipelineError> {
        let mut topics = vec![format!("coldchain/v1/{}/{}/alerts", alert.operator, alert.unit)];
        // A jurisdiction's topic is a regulator's: an exercise does not go there.
        if let (Some(code), false) = (&alert.jurisdiction, self.options.exercise) {
            topics.push(format!("coldchain/v1/jurisdictions/{code}/alerts"));
        }
        self.ledger.tell(self.next_offset, Telling { alert, event_time, value, superseded: false }, &topics)?;
        let offset = self.next_offset;
        self.count(offset, accounting::ALERTS_TOLD, alert.state.as_str(), 1);
        self.show(StreamEvent::Transition(alert.clone()));
        Ok(())
    }

    fn show(&mut self, event: StreamEvent) {
        if self.shared.events.receiver_count() > 0 {
            self.events.push(Arc::new(event));
        }
    }

    pub(super) fn log(&self, alert: &Alert, what: &'static str) {
        tracing::info!(
            alert_id = alert.id,
            rule = alert.rule,
            operator_id = alert.operator,
            unit_id = alert.unit,
            sensor_id = alert.sensor,
            severity = alert.severity,
            revision = alert.revision,
            started_at = %alert.started_at.0,
            "{what}"
        );
    }

    pub(super) fn new_alert(
        &self,
        rule: &Rule,
        concerned: &Concerned,
        started_at: Timestamp,
    ) -> Result<Alert, PipelineError> {
        let sensor = concerned.sensor.as_deref();
        let mut counter = 0;
        let id = loop {
            let id = episode_id(&concerned.unit, sensor, &rule.id, started_at, counter);
            if !self.ledger.has_alert(&id)? {
                break id;
            }
            counter += 1;
        };
        Ok(self.blank_alert(id, rule, concerned, started_at))
    }

    fn pending_alert(&self, rule: &Rule, concerned: &Concerned, since: Timestamp) -> Alert {
        let id = episode_id(&concerned.unit, concerned.sensor.as_deref(), &rule.id, since, 0);
        let mut alert = self.blank_alert(id, rule, concerned, since);
        let limits = match rule.condition {
            Condition::Range { limits: LimitSource::Fixed(limits), .. } => Some(limits),
            Condition::Range { limits: LimitSource::Profile, .. } => {
                limits_in_force(&self.judgement.registry, &concerned.unit, rule.quantity, since)
            }
            _ => None,
        };
        (alert.limit_low, alert.limit_high) = limits.map_or((None, None), |limits| (limits.low, limits.high));
        alert.last_value = self.newest_value(concerned, rule.quantity);
        alert.message = message(rule, &alert);
        alert
    }

    fn newest_value(&self, concerned: &Concerned, kind: Kind) -> Option<f64> {
        self.history.newest(self.series_concerned(concerned, kind)?.history)?.value
    }

    pub(super) fn blank_alert(&self, id: String, rule: &Rule, concerned: &Concerned, started_at: Timestamp) -> Alert {
        let registry = &self.judgement.registry;
        let unit = registry.units.get(&concerned.unit);
        let operator = registry.operators.get(&concerned.unit.operator);
        let profile = registry.profiles_at(&concerned.unit, started_at).into_iter().next();
        Alert {
            id,
            revision: 1,
            state: AlertState::Pending,
            handling: Handling::Open,
            severity: rule.severity.as_str().to_owned(),
            rule: rule.id.to_string(),
            rule_version: rule.version.to_string(),
            rule_kind: rule.kind().to_owned(),
            operator: concerned.unit.operator.to_string(),
            operator_code: operator.and_then(|operator| operator.code.clone()),
            site: unit.and_then(|unit| unit.site.clone()),
            unit: concerned.unit.unit.to_string(),
            unit_kind: unit.map(|unit| unit.kind.as_str().to_owned()),
            sensor: concerned.sensor.as_deref().map(str::to_owned),
            jurisdiction: unit.and_then(|unit| unit.jurisdiction.as_deref().map(str::to_owned)),
            category: profile.map(|profile| profile.category.to_string()),
            profile: profile.map(|profile| profile.id.to_string()),
            consignments: registry
                .consignments_at(&concerned.unit, started_at)
                .map(|consignment| consignment.id.to_string())
                .collect(),
            origin: if self.options.exercise { "exercise" } else { "field" }.to_owned(),
            started_at: Time(started_at),
            fired_at: None,
            resolved_at: None,
            resolution: None,
            detected_at: Time(self.now),
            limit_low: None,
            limit_high: None,
            extreme: None,
            last_value: None,
            mean_kinetic_temperature: None,
            latitude: None,
            longitude: None,
            excursion_s: 0.0,
            suspended_s: 0.0,
            unmonitored_s: 0.0,
            late: false,
            merged_into: None,
            amendments: Vec::new(),
            message: Message { en: String::new(), zh: String::new() },
        }
    }

    /// Returns where a unit was at an instant, as far as its positions until then tell.
    pub(super) fn position(&self, unit: &UnitKey, at: Timestamp) -> Result<(Option<f64>, Option<f64>), PipelineError> {
        let newest = |kind| -> Result<Option<f64>, PipelineError> {
            let of_unit = self.units.find(unit).into_iter().flat_map(|unit| &unit.series);
            let Some(series) = of_unit.into_iter().find(|series| series.kind == kind) else { return Ok(None) };
            Ok(self.history.newest_until(series.history, at)?.and_then(|reading| reading.value))
        };
        Ok((newest(Kind::Latitude)?, newest(Kind::Longitude)?))
    }

    /// Returns the newest value of a series at an instant; none for a whole unit.
    pub(super) fn value_at(
        &self,
        concerned: &Concerned,
        kind: Kind,
        at: Timestamp,
    ) -> Result<Option<f64>, PipelineError> {
        let Some(series) = self.series_concerned(concerned, kind) else { return Ok(None) };
        Ok(self.history.newest_until(series.history, at)?.and_then(|reading| reading.value))
    }

    fn series_concerned(&self, concerned: &Concerned, kind: Kind) -> Option<&SeriesState> {
        let sensor = concerned.sensor.as_deref()?;
        let mut series = self.units.find(&concerned.unit)?.series.iter();
        series.find(|series| series.kind == kind && &*series.sensor == sensor)
    }

    /// Returns the episodes of a unit that have begun and not yet fired, as they are shown.
    pub(super) fn pending_alerts(&self, unit: &UnitKey) -> Vec<Alert> {
        let pending = self.engine.pending(unit).into_iter().map(|pending| {
            let sensor = self.engine.subject(pending.series).sensor.map(Into::into);
            let concerned = Concerned { unit: unit.clone(), sensor };
            self.pending_alert(self.engine.rule(pending.rule), &concerned, pending.since)
        });
        pending.collect()
    }
}

fn episode_series<'a>(rule: &'a Rule, concerned: &'a Concerned) -> EpisodeSeries<'a> {
    EpisodeSeries {
        operator: concerned.unit.operator.as_str(),
        unit: concerned.unit.unit.as_str(),
        sensor: concerned.sensor.as_deref(),
        rule: &rule.id,
    }
}

pub(super) fn set_figures(alert: &mut Alert, rule: &Rule, episode: &Episode) {
    alert.started_at = Time(episode.started_at);
    alert.fired_at = Some(Time(episode.fired_at));
    alert.resolved_at = episode.resolved_at.map(Time);
    alert.resolution = episode.resolution.map(|resolution| resolution.as_str().to_owned());
    alert.limit_low = episode.limit_low;
    alert.limit_high = episode.limit_high;
    alert.extreme = episode.extreme;
    alert.last_value = episode.last_value;
    let is_kinetic = matches!(rule.condition, Condition::MeanKineticTemperature { .. });
    alert.mean_kinetic_temperature = episode.extreme.filter(|_| is_kinetic);
    alert.suspended_s = episode.suspended_ms as f64 / 1e3;
    alert.excursion_s = episode.excursion_ms as f64 / 1e3;
    alert.unmonitored_s = episode.unmonitored_ms as f64 / 1e3;
}

/// Fills in a rule's own sentence, or the product's where it has none; figures go in bare.
pub(super) fn message(rule: &Rule, alert: &Alert) -> Message {
    let measured_in = match rule.quantity {
        Kind::Temperature | Kind::Setpoint => " °C",
        Kind::Humidity => " %RH",
        Kind::Battery => " %",
        _ => "",
    };
    let (default_en, default_zh) = match rule.kind() {
        "silence" if alert.sensor.is_none() => {
            ("No reading from {unit} since {since}".to_owned(), "{unit} 自 {since} 起没有数据".to_owned())
        }
        "silence" => (
            "No reading from {sensor} of {unit} since {since}".to_owned(),
            "{unit} 的 {sensor} 自 {since} 起没有数据".to_owned(),
        ),
        "state" => (
            "{sensor} of {unit} has been {value} since {since}".to_owned(),
            "{unit} 的 {sensor} 自 {since} 起为 {value}".to_owned(),
        ),
        _ => (
            format!("{{sensor}} of {{unit}}: {{value}}{measured_in}, limit {{limit}}{measured_in}, since {{since}}"),
            format!("{{unit}} 的 {{sensor}}：{{value}}{measured_in}，限值 {{limit}}{measured_in}，自 {{since}} 起"),
        ),
    };
    let limit = match (alert.limit_low, alert.limit_high) {
        (Some(low), Some(high)) => format!("{low} … {high}"),
        (Some(low), None) => format!("≥ {low}"),
        (None, Some(high)) => format!("≤ {high}"),
        (None, None) => "–".to_owned(),
    };
    let value = alert.extreme.or(alert.last_value).map_or_else(|| "–".to_owned(), |value| value.to_string());
    let fill = |template: &str| {
        template
            .replace("{value}", &value)
            .replace("{limit}", &limit)
            .replace("{unit}", &alert.unit)
            .replace("{since}", &alert.started_at.0.to_string())
            // Last, since a sensor may be called anything.
            .replace("{sensor}", alert.sensor.as_deref().unwrap_or(rule.quantity.as_str()))
    };
    Message {
        en: fill(rule.message.en.as_deref().unwrap_or(&default_en)),
        zh: fill(rule.message.zh.as_deref().unwrap_or(&default_zh)),
    }
}
