//! The engine against a second implementation, on random stories, however time passes between the readings.

mod oracle;

use std::sync::Arc;

use frostline_core::model::{
    Kind, Limits, Monitor, Name, Quality, Reading, Registry, Sensor, SeriesKey, Timestamp, Unit, UnitKey, UnitKind,
};
use frostline_core::rules::{
    Change, Condition, Engine, LimitSource, Message, Rule, Selector, SeriesId, Severity, SilenceScope, Transition,
};
use oracle::stories::{self, Random, Story};
use oracle::{Coverage, Episode};

const STORIES: u64 = 6_000;

fn at(millis: i64) -> Timestamp {
    Timestamp::from_millis(millis)
}

fn unit() -> UnitKey {
    UnitKey { operator: Name::new("op1").unwrap(), unit: Name::new("u1").unwrap() }
}

fn series() -> SeriesKey {
    SeriesKey { unit: unit(), sensor: "t1".into(), kind: Kind::Temperature }
}

fn rules_of(story: &Story) -> Arc<[Arc<Rule>]> {
    let keep_firing_for_ms = story.keep_firing_for_ms;
    let condition = match story.kind {
        stories::Kind::Range { low, high, hysteresis } => {
            Condition::Range { limits: LimitSource::Fixed(Limits { low, high }), hysteresis, keep_firing_for_ms }
        }
        stories::Kind::State { is } => Condition::State { is, keep_firing_for_ms },
        stories::Kind::Silence => Condition::Silence { scope: SilenceScope::Sensor },
    };
    let rule = Rule::new(Rule {
        id: "r".into(),
        quantity: Kind::Temperature,
        severity: Severity::Critical,
        condition,
        for_ms: story.for_ms,
        max_gap_ms: Some(story.max_gap_ms),
        selector: Selector::default(),
        message: Message::default(),
        version: "".into(),
    });
    Arc::from([Arc::new(rule.unwrap())])
}

fn registry_of(story: &Story) -> Arc<Registry> {
    let mut registry = Registry::default();
    if story.is_registered {
        let duty = story.duty.iter().map(|(from, on)| (at(*from), if *on { Monitor::Always } else { Monitor::Off }));
        let unit = Unit {
            key: unit(),
            kind: UnitKind::Storage,
            site: None,
            jurisdiction: None,
            profile: None,
            monitor: duty.collect(),
            labels: Default::default(),
        };
        registry.units.insert(unit.key.clone(), unit);
        let sensor =
            Sensor { unit: self::unit(), id: "t1".into(), placement: None, max_gap_ms: None, calibration_due: None };
        registry.sensors.entry(self::unit()).or_default().insert("t1".into(), sensor);
    }
    Arc::new(registry)
}

/// What an outsider knows who is told every transition.
#[derive(Debug, Default)]
struct Listener {
    episodes: Vec<Episode>,
    taken_back: usize,
}

impl Listener {
    fn hear(&mut self, transitions: &mut Vec<Transition>) {
        for transition in transitions.drain(..) {
            let known = |e: &frostline_core::rules::Episode| Episode {
                started_at: e.started_at.as_millis(),
                fired_at: e.fired_at.as_millis(),
                resolved_at: e.resolved_at.map(Timestamp::as_millis),
                extreme: e.extreme,
            };
            match transition.change {
                Change::Fired(episode) => self.episodes.push(known(&episode)),
                Change::Resolved(episode) => {
                    let last = self.episodes.last_mut().expect("what resolves has fired");
                    assert_eq!((last.started_at, last.resolved_at), (known(&episode).started_at, None));
                    *last = known(&episode);
                }
                Change::Updated(episode) => {
                    let started_at = known(&episode).started_at;
                    let last = self.episodes.iter_mut().find(|told| told.started_at == started_at);
                    let last = last.expect("what is updated has fired");
                    assert_eq!(*last, Episode { extreme: last.extreme, ..known(&episode) });
                    *last = known(&episode);
                }
                Change::Reopened(episode) => {
                    self.taken_back += 1;
                    let last = self.episodes.last_mut().expect("what is reopened has fired");
                    assert!(last.resolved_at.is_some() && last.started_at == known(&episode).started_at);
                    last.resolved_at = None;
                }
                Change::Retracted(episode, _) => {
                    self.taken_back += 1;
                    // What fired with one value may since have seen a worse one.
                    let is_it = |told: &Episode| *told == Episode { extreme: told.extreme, ..known(&episode) };
                    let told = self.episodes.iter().position(is_it);
                    self.episodes.remove(told.expect("what is retracted was told"));
                }
                Change::Pending { .. } | Change::PendingEnded { .. } => {}
            }
        }
    }
}

impl Listener {
    /// Takes up the figures of what is still firing, which have gone on since it was told.
    fn look_at(&mut self, engine: &Engine) {
        let firing = engine.firing(&unit());
        let told = self.episodes.iter_mut().filter(|episode| episode.resolved_at.is_none());
        let mut told: Vec<_> = told.collect();
        assert_eq!(firing.len(), told.len());
        for (told, firing) in told.iter_mut().zip(firing) {
            assert_eq!(told.started_at, firing.episode.started_at.as_millis());
            assert_eq!(told.fired_at, firing.episode.fired_at.as_millis());
            told.extreme = firing.episode.extreme;
        }
    }
}

fn reading(event_time: i64, value: Option<f64>) -> Reading {
    Reading { event_time: at(event_time), value, quality: Quality::GOOD }
}

fn registered_at(story: &Story) -> Timestamp {
    at(story.readings.first().map_or(0, |(time, _)| *time))
}

/// Judges all readings, then lets time pass once.
fn judge_at_once(story: &Story) -> Vec<Episode> {
    let mut engine = Engine::new(rules_of(story), registry_of(story), 0, registered_at(story));
    let id = engine.series(&series());
    let mut listener = Listener::default();
    let mut transitions = Vec::new();
    for (time, value) in &story.readings {
        engine.observe(id, &reading(*time, *value), at(story.now), &mut transitions);
        listener.hear(&mut transitions);
    }
    engine.advance(at(story.now), &mut transitions);
    listener.hear(&mut transitions);
    engine.advance(at(story.now), &mut transitions);
    assert_eq!(transitions, [], "a repeated call tells nothing");
    listener.look_at(&engine);
    listener.episodes
}

/// Judges readings as they come, late or early, with time passing between them and a restart now and then.
fn judge_live(story: &Story, random: &mut Random) -> Listener {
    let settle_ms = random.pick(&[0, 0, 3, 10]);
    let new_engine = || Engine::new(rules_of(story), registry_of(story), settle_ms, registered_at(story));
    let mut engine = new_engine();
    let mut id: SeriesId = engine.series(&series());
    let mut listener = Listener::default();
    let mut transitions = Vec::new();
    let mut now = registered_at(story).as_millis();
    let end = story.now.max(now);
    for (time, value) in &story.readings {
        for _ in 0..random.below(3) {
            now = (now + random.pick(&[0, 1, 5, 20, 60, 200])).min(end);
            let deadline = engine.next_deadline();
            engine.advance(at(now), &mut transitions);
            assert!(transitions.is_empty() || deadline.is_some_and(|d| d <= at(now)), "the deadline was too late");
            listener.hear(&mut transitions);
        }
        if random.below(6) == 0 {
            let bytes = engine.snapshot_unit(&unit()).unwrap();
            engine = new_engine();
            engine.restore_unit(&unit(), &bytes).unwrap();
            assert_eq!(engine.snapshot_unit(&unit()).unwrap(), bytes);
            id = engine.series(&series());
        }
        engine.observe(id, &reading(*time, *value), at(now), &mut transitions);
        listener.hear(&mut transitions);
    }
    engine.advance(at(story.now.max(now) + settle_ms), &mut transitions);
    listener.hear(&mut transitions);
    listener.look_at(&engine);
    listener
}

#[test]
fn the_engine_agrees_with_the_second_implementation() {
    let mut counts = [0_u64; 8];
    for seed in 0..STORIES {
        let mut random = Random(seed);
        let story = Story::random(&mut random);
        let mut coverage = Coverage::default();
        let expected = oracle::judge(&story, &mut coverage);
        assert_eq!(judge_at_once(&story), expected, "seed {seed}: {story:?}");
        let live = judge_live(&story, &mut random);
        assert_eq!(live.episodes, expected, "live, seed {seed}: {story:?}");
        let flags = [
            !expected.is_empty(),
            coverage.tie_at_for,
            coverage.null_while_pending,
            coverage.gap_while_firing,
            coverage.duty_end_while_firing,
            coverage.band_while_firing,
            live.taken_back > 0,
            story.kind == stories::Kind::Silence && expected.iter().any(|episode| episode.resolved_at.is_some()),
        ];
        for (count, flag) in counts.iter_mut().zip(flags) {
            *count += u64::from(flag);
        }
    }
    let names = [
        "any episode",
        "a tie at `for`",
        "a null while pending",
        "a gap while firing",
        "the end of duty while firing",
        "neither out nor clear while firing",
        "told and taken back by a backlog in order",
        "a silence that ended",
    ];
    for (name, count) in names.iter().zip(counts) {
        eprintln!("{name}: {count} of {STORIES} stories");
        assert!(count * 100 >= STORIES, "too few stories with {name}: {count} of {STORIES}");
    }
}
