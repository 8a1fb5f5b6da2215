//! The demo: a simulated fleet, its broker, the whole pipeline and a live view in the terminal.
//!
//! The pipeline is the daemon itself, started by the same function and fed through a real broker connection; only the
//! broker lives in this process, and the fleet's own time stands in for the clock.

mod broker;
mod publisher;
pub mod view;

use std::collections::BTreeMap;
use std::io::Write;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::Context;
use frostline_core::model::{Kind, Registry, Timestamp};
use frostline_simulators::{Fleet, FleetOptions};
use tokio::sync::broadcast;
use tokio_util::sync::CancellationToken;

use self::view::{
    AlertChange, AlertLine, DemoSnapshot, DemoSummary, TerminalSize, UnitRow, UnitState, View, ViewOptions, WorstUnit,
};
use crate::alert::{Alert, AlertState};
use crate::app;
use crate::clock::{Clock, SystemClock};
use crate::config;
use crate::ledger::{AlertFilter, Ledger, LedgerReader};
use crate::pipeline::{PipelineShared, StreamEvent, UnitView};

/// How often the terminal's table is drawn.
const FRAME: Duration = Duration::from_millis(500);
/// How much simulated time lies between two tables where output is not a terminal.
const TABLE_EVERY_MS: i64 = 10 * 60_000;
/// How many alerts of an earlier demo are shown as firing.
const TAKEN_OVER_MAX: usize = 1_000;
/// How far behind the fleet a unit's newest reading may be before it counts as silent, in milliseconds.
const SILENT_AFTER_MS: i64 = 10 * 60_000;

/// How the demo is run.
#[derive(Debug, Clone)]
pub struct DemoOptions {
    /// How many units the fleet has.
    pub units: usize,
    /// How many times faster than real time it lives.
    pub speed: f64,
    /// When it ends by itself, in real time.
    pub duration: Option<Duration>,
    /// Where the web page is served.
    pub listen: SocketAddr,
    /// Where data is kept; a temporary directory where none is given.
    pub data_dir: Option<PathBuf>,
    /// What the fleet's fate is drawn from.
    pub seed: u64,
}

/// How far the fleet has got.
#[derive(Debug, Default)]
pub(crate) struct FleetProgress {
    pub(crate) messages: AtomicU64,
    pub(crate) simulated_ms: AtomicI64,
}

/// Runs the demo until its duration is over or `stop` is cancelled.
///
/// # Errors
/// Where an address or directory cannot be used, or a part of the pipeline dies.
pub async fn run(options: DemoOptions, stop: CancellationToken) -> anyhow::Result<()> {
    let started = Instant::now();
    let minute_ms = start_ms(options.data_dir.as_deref())?;
    let fleet = Fleet::new(FleetOptions { units: options.units, seed: options.seed, start_ms: minute_ms });
    let work_dir = tempfile::Builder::new().prefix("frostline-demo-").tempdir()?;
    let data_dir = options.data_dir.clone().unwrap_or_else(|| work_dir.path().join("data"));
    let broker = broker::start().context("the embedded broker cannot be started")?;
    let config_dir = work_dir.path().join("config");
    write_configuration(&config_dir, &fleet, &data_dir, broker, options.listen)?;
    let loaded = config::load_with_environment(&config_dir, &[])
        .map_err(|problems| anyhow::anyhow!("the demo's own configuration is wrong: {problems:?}"))?;
    let registry = Arc::clone(&loaded.judgement.registry);

    let app = app::start(loaded, Arc::new(SystemClock)).await?;
    let shared = app.shared.clone();
    announce(&app.http_address, broker, &options);
    let progress = Arc::new(FleetProgress::default());
    progress.simulated_ms.store(minute_ms, Ordering::Relaxed);
    let publishing = tokio::spawn(publisher::run(fleet, broker, options.speed, Arc::clone(&progress), stop.clone()));

    // The daemon ends when the fleet has; the fleet when the demo does.
    let daemon_stop = CancellationToken::new();
    let daemon = tokio::spawn(app.run_until(daemon_stop.clone()));
    let mut shown = Shown::new(&registry, shared.clone(), minute_ms);
    shown.take_over(&data_dir)?;
    shown.follow(&options, &progress, &stop, || daemon.is_finished()).await?;
    stop.cancel();
    publishing.await??;
    shown.catch_up(&progress).await?;
    daemon_stop.cancel();
    daemon.await??;
    shown.finish(started.elapsed(), &progress)
}

/// Returns when the fleet's time begins: this minute, or behind what an earlier demo left in the data directory.
fn start_ms(data_dir: Option<&Path>) -> anyhow::Result<i64> {
    const MINUTE_MS: i64 = 60_000;
    let mut start_ms = SystemClock.now().as_millis() / MINUTE_MS * MINUTE_MS;
    if let Some(dir) = data_dir.filter(|dir| dir.exists()) {
        let left_at = Ledger::open(dir)?.cursor()?.now;
        if left_at > Timestamp::MIN {
            start_ms = start_ms.max((left_at.as_millis() / MINUTE_MS + 1) * MINUTE_MS);
        }
    }
    Ok(start_ms)
}

#[expect(clippy::print_stdout, reason = "the demo's output is its result")]
fn announce(http: &SocketAddr, broker: SocketAddr, options: &DemoOptions) {
    println!(
        "Frostline demo: {} simulated units at {} times real time, seed {}",
        options.units, options.speed, options.seed
    );
    println!("  web page   http://{http}/");
    println!("  broker     mqtt://{broker} (MQTT 3.1.1)");
    println!("  end with   Ctrl-C\n");
}

fn write_configuration(
    dir: &Path,
    fleet: &Fleet,
    data_dir: &Path,
    broker: SocketAddr,
    listen: SocketAddr,
) -> anyhow::Result<()> {
    std::fs::create_dir_all(dir)?;
    // A JSON string is a TOML basic string.
    let data_dir = serde_json::to_string(&data_dir.to_string_lossy())?;
    let settings = format!(
        "data_dir = {data_dir}\n[mqtt]\nurl = \"mqtt://{broker}\"\nversion = 4\n[clock]\nsource = \"readings\"\n\
         [rules]\nsettle = \"0s\"\n[http]\nlisten = \"{listen}\"\n"
    );
    std::fs::write(dir.join("frostline.toml"), settings)?;
    std::fs::write(dir.join("fleet.toml"), fleet.registry_toml())?;
    std::fs::write(dir.join("rules.toml"), fleet.rules_toml())?;
    Ok(())
}

/// What the terminal shows, and what it needs for the summary.
struct Shown<'a> {
    registry: &'a Registry,
    shared: PipelineShared,
    events: broadcast::Receiver<Arc<StreamEvent>>,
    view: View<std::io::Stdout>,
    firing: BTreeMap<String, (String, String)>,
    fired: u64,
    resolved: u64,
    worst: BTreeMap<String, WorstUnit>,
    start_ms: i64,
}

impl<'a> Shown<'a> {
    fn new(registry: &'a Registry, shared: PipelineShared, start_ms: i64) -> Self {
        Self {
            registry,
            events: shared.events.subscribe(),
            shared,
            view: View::new(std::io::stdout(), ViewOptions::for_stdout(TABLE_EVERY_MS)),
            firing: BTreeMap::new(),
            fired: 0,
            resolved: 0,
            worst: BTreeMap::new(),
            start_ms,
        }
    }

    /// Takes over the alerts that an earlier demo left firing.
    fn take_over(&mut self, data_dir: &Path) -> anyhow::Result<()> {
        let firing = AlertFilter { state: Some("firing".to_owned()), ..AlertFilter::default() };
        for alert in LedgerReader::open(data_dir)?.alerts(&firing, None, TAKEN_OVER_MAX)?.items {
            self.firing.insert(alert.id, (alert.operator, alert.unit));
        }
        Ok(())
    }

    /// Draws until the time is over, `stop` is cancelled or the daemon has died.
    async fn follow(
        &mut self,
        options: &DemoOptions,
        progress: &FleetProgress,
        stop: &CancellationToken,
        has_died: impl Fn() -> bool,
    ) -> anyhow::Result<()> {
        let end = tokio::time::sleep(options.duration.unwrap_or(Duration::from_secs(u64::from(u32::MAX))));
        tokio::pin!(end);
        let mut frames = tokio::time::interval(FRAME);
        frames.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Skip);
        loop {
            tokio::select! {
                () = &mut end => return Ok(()),
                () = stop.cancelled() => return Ok(()),
                event = self.events.recv() => match event {
                    Ok(event) => self.take(&event)?,
                    Err(broadcast::error::RecvError::Lagged(_)) => {}
                    Err(broadcast::error::RecvError::Closed) => return Ok(()),
                },
                _ = frames.tick() => {
                    if has_died() {
                        return Ok(());
                    }
                    self.draw(progress).await?;
                }
            }
        }
    }

    /// Waits until the pipeline has taken all that the fleet has sent, then shows the last of it.
    async fn catch_up(&mut self, progress: &FleetProgress) -> anyhow::Result<()> {
        let deadline = Instant::now() + Duration::from_secs(10);
        let mut before = self.shared.accounting.terms();
        // Quiet for a moment means that nothing is on its way any more: the fleet has stopped.
        while Instant::now() < deadline {
            tokio::time::sleep(Duration::from_millis(300)).await;
            let now = self.shared.accounting.terms();
            if now == before {
                break;
            }
            before = now;
        }
        while let Ok(event) = self.events.try_recv() {
            self.take(&event)?;
        }
        self.draw(progress).await
    }

    fn take(&mut self, event: &StreamEvent) -> anyhow::Result<()> {
        let StreamEvent::Transition(alert) = event else { return Ok(()) };
        let change = match alert.state {
            AlertState::Pending => return Ok(()),
            AlertState::Firing => {
                self.fired += u64::from(!self.firing.contains_key(&alert.id));
                self.firing.insert(alert.id.clone(), (alert.operator.clone(), alert.unit.clone()));
                AlertChange::Fired
            }
            AlertState::Resolved => {
                self.resolved += 1;
                self.firing.remove(&alert.id);
                AlertChange::Resolved
            }
            AlertState::Retracted => {
                self.fired = self.fired.saturating_sub(1);
                self.firing.remove(&alert.id);
                AlertChange::Retracted
            }
        };
        self.note_worst(alert, change);
        let line = AlertLine {
            at: alert_instant(alert),
            change,
            severity: alert.severity.clone(),
            rule: alert.rule.clone(),
            unit: alert.unit.clone(),
            sensor: alert.sensor.clone(),
            started_at: alert.started_at.0,
            extreme: alert.extreme,
            limit_low: alert.limit_low,
            limit_high: alert.limit_high,
        };
        Ok(self.view.alert(&line, TerminalSize::of_stdout())?)
    }

    fn note_worst(&mut self, alert: &Alert, change: AlertChange) {
        let worst = self.worst.entry(alert.unit.clone()).or_insert_with(|| WorstUnit {
            unit: alert.unit.clone(),
            place: place(alert.jurisdiction.as_deref()),
            alerts_fired: 0,
            extreme_celsius: None,
            low_celsius: None,
            high_celsius: None,
        });
        worst.alerts_fired += u64::from(change == AlertChange::Fired);
        let limits = (alert.limit_low, alert.limit_high);
        let beyond = |value: f64| {
            let (low, high) = limits;
            low.map_or(0.0, |low| low - value).max(high.map_or(0.0, |high| value - high))
        };
        if let (Some(extreme), true) = (alert.extreme, limits != (None, None))
            && worst.extreme_celsius.is_none_or(|before| beyond(extreme) >= beyond(before))
        {
            (worst.extreme_celsius, worst.low_celsius, worst.high_celsius) = (Some(extreme), limits.0, limits.1);
        }
    }

    async fn draw(&mut self, progress: &FleetProgress) -> anyhow::Result<()> {
        // Where the pipeline is too busy to answer the frame is left out.
        let Ok((now, units)) = self.shared.live.units(None).await else { return Ok(()) };
        let simulated_ms = progress.simulated_ms.load(Ordering::Relaxed);
        let simulated_time = now.max(Timestamp::from_millis(simulated_ms));
        let mut rows: Vec<UnitRow> = units.iter().map(|unit| self.row(unit, simulated_time)).collect();
        rows.sort_by(|a, b| a.unit.cmp(&b.unit));
        let snapshot = DemoSnapshot {
            simulated_time,
            units: rows,
            accounting: accounting(&self.shared),
            active_alerts: self.firing.len(),
        };
        Ok(self.view.show(&snapshot, TerminalSize::of_stdout())?)
    }

    fn row(&self, unit: &UnitView, now: Timestamp) -> UnitRow {
        let newest = |kind: Kind| unit.series.iter().filter(move |series| series.kind == kind);
        let warmest = newest(Kind::Temperature).filter_map(|series| series.newest.value).reduce(f64::max);
        let last_seen = unit.series.iter().map(|series| series.newest.event_time).max();
        let registered = self.registry.units.get(&unit.key);
        let profile = self.registry.profiles_at(&unit.key, now).into_iter().next();
        let is_moving = registered.is_some_and(|unit| unit.kind == frostline_core::model::UnitKind::Transport);
        let limits = profile.map(|profile| {
            let (own, moving) = (profile.temperature, profile.transport_temperature);
            if is_moving { (moving.low.or(own.low), moving.high.or(own.high)) } else { (own.low, own.high) }
        });
        let (operator, name) = (unit.key.operator.as_str(), unit.key.unit.as_str());
        let fires = self.firing.values().any(|(of, unit)| of == operator && unit == name);
        let is_silent = last_seen.is_none_or(|seen| now.millis_since(seen) > SILENT_AFTER_MS);
        UnitRow {
            unit: name.to_owned(),
            place: place(registered.and_then(|unit| unit.jurisdiction.as_deref())),
            category: profile.map(|profile| profile.category.to_string()).unwrap_or_default(),
            state: match (fires, is_silent, unit.pending.is_empty()) {
                (true, _, _) => UnitState::Alert,
                (false, true, _) => UnitState::Silent,
                (false, false, false) => UnitState::Pending,
                (false, false, true) => UnitState::Ok,
            },
            temperature_celsius: warmest,
            humidity_percent: newest(Kind::Humidity).filter_map(|series| series.newest.value).next(),
            low_celsius: limits.and_then(|(low, _)| low),
            high_celsius: limits.and_then(|(_, high)| high),
            last_seen,
        }
    }

    fn finish(&mut self, elapsed: Duration, progress: &FleetProgress) -> anyhow::Result<()> {
        let mut worst: Vec<WorstUnit> = std::mem::take(&mut self.worst).into_values().collect();
        worst.sort_by_key(|unit| std::cmp::Reverse(unit.alerts_fired));
        let simulated_ms = progress.simulated_ms.load(Ordering::Relaxed) - self.start_ms;
        let summary = DemoSummary {
            real_duration: elapsed,
            simulated_duration: Duration::from_millis(simulated_ms.unsigned_abs()),
            messages: progress.messages.load(Ordering::Relaxed),
            accounting: accounting(&self.shared),
            alerts_fired: self.fired,
            alerts_resolved: self.resolved,
            alerts_open: self.firing.len() as u64,
            worst_units: worst,
        };
        self.view.finish(&summary)?;
        Ok(std::io::stdout().flush()?)
    }
}

fn accounting(shared: &PipelineShared) -> view::Accounting {
    let terms = shared.accounting.terms();
    view::Accounting {
        received: terms.received,
        stored: terms.stored,
        duplicate: terms.duplicate,
        dead_lettered: terms.dead_lettered,
        in_flight: terms.in_flight,
    }
}

fn alert_instant(alert: &Alert) -> Timestamp {
    match alert.state {
        AlertState::Resolved => alert.resolved_at,
        AlertState::Retracted => Some(alert.detected_at),
        AlertState::Firing | AlertState::Pending => alert.fired_at,
    }
    .unwrap_or(alert.started_at)
    .0
}

/// Returns the name of a league or city by its code.
fn place(code: Option<&str>) -> String {
    let league = code.and_then(frostline_simulators::league_by_code);
    league.map_or_else(String::new, |league| league.en.to_owned())
}
