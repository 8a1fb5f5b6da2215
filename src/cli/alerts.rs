//! `frostline alerts`: what a running daemon has told.

use std::process::ExitCode;

use anyhow::Context as _;
use serde::Deserialize;

use super::daemon::Daemon;
use super::table::{listing, table};
use super::{Context, Format, runtime};
use crate::alert::{Alert, Time};

#[derive(Debug, clap::Args)]
pub(crate) struct AlertsArgs {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// List alerts, the latest fired first.
    List(ListArgs),
    /// Show one alert.
    Show(ShowArgs),
}

#[derive(Debug, clap::Args)]
struct ListArgs {
    /// pending, firing, resolved or retracted.
    #[arg(long)]
    state: Option<String>,
    /// open, acknowledged, disposed or closed.
    #[arg(long)]
    handling: Option<String>,
    /// notice, warning or critical.
    #[arg(long)]
    severity: Option<String>,
    /// The enterprise responsible.
    #[arg(long)]
    operator: Option<String>,
    /// The monitored space.
    #[arg(long)]
    unit: Option<String>,
    /// Everything below this division code.
    #[arg(long, value_name = "PREFIX")]
    jurisdiction: Option<String>,
    /// The category of the profile in force.
    #[arg(long)]
    category: Option<String>,
    /// Alerts going on at or after this time, as in 2026-11-23T10:00:00Z.
    #[arg(long, value_name = "TIME")]
    from: Option<String>,
    /// Alerts that began before this time.
    #[arg(long, value_name = "TIME")]
    to: Option<String>,
    /// How many at most.
    #[arg(long, value_name = "N", default_value_t = 100)]
    limit: usize,
    #[command(flatten)]
    output: OutputArgs,
}

#[derive(Debug, clap::Args)]
struct ShowArgs {
    /// The alert's id.
    id: String,
    #[command(flatten)]
    output: OutputArgs,
}

#[derive(Debug, clap::Args)]
struct OutputArgs {
    /// The daemon's address; without it, http.listen of the configuration.
    #[arg(long)]
    url: Option<String>,
    /// How the result is printed.
    #[arg(long, value_name = "FORMAT", default_value = "table")]
    format: Format,
}

/// A page as the daemon sends it.
#[derive(Debug, Deserialize)]
struct Page {
    items: Vec<Alert>,
    next: Option<String>,
}

/// The most that the daemon gives in one page.
const PAGE_LENGTH_MAX: usize = 1_000;

pub(crate) fn run(arguments: AlertsArgs, context: &Context) -> anyhow::Result<ExitCode> {
    match arguments.command {
        Command::List(arguments) => list(&arguments, context),
        Command::Show(arguments) => show(&arguments, context),
    }
}

#[expect(clippy::print_stdout, reason = "the result of a command goes to stdout")]
fn list(arguments: &ListArgs, context: &Context) -> anyhow::Result<ExitCode> {
    let daemon = Daemon::new(arguments.output.url.as_deref(), context)?;
    let page = runtime()?.block_on(fetch(&daemon, arguments))?;
    match arguments.output.format {
        Format::Json => println!("{}", serde_json::json!({ "items": page.items, "next": page.next })),
        Format::Table => {
            print!("{}", alerts_table(&page.items));
            if page.next.is_some() {
                println!("… and more: raise --limit, or narrow the question");
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}

async fn fetch(daemon: &Daemon, arguments: &ListArgs) -> anyhow::Result<Page> {
    let filters = [
        ("state", &arguments.state),
        ("handling", &arguments.handling),
        ("severity", &arguments.severity),
        ("operator", &arguments.operator),
        ("unit", &arguments.unit),
        ("jurisdiction", &arguments.jurisdiction),
        ("category", &arguments.category),
        ("from", &arguments.from),
        ("to", &arguments.to),
    ];
    let filters = filters.into_iter().filter_map(|(name, value)| Some((name, value.clone()?)));
    let filters: Vec<(&str, String)> = filters.collect();
    let mut all = Page { items: Vec::new(), next: None };
    while all.items.len() < arguments.limit {
        let mut parameters = filters.clone();
        parameters.push(("limit", (arguments.limit - all.items.len()).min(PAGE_LENGTH_MAX).to_string()));
        parameters.extend(all.next.take().map(|cursor| ("cursor", cursor)));
        let page = daemon.get(&["alerts"], &parameters).await?;
        let page: Page = serde_json::from_value(page).context("the daemon sends alerts of another version")?;
        all.items.extend(page.items);
        all.next = page.next;
        if all.next.is_none() {
            break;
        }
    }
    Ok(all)
}

#[expect(clippy::print_stdout, reason = "the result of a command goes to stdout")]
fn show(arguments: &ShowArgs, context: &Context) -> anyhow::Result<ExitCode> {
    let daemon = Daemon::new(arguments.output.url.as_deref(), context)?;
    let alert = runtime()?.block_on(daemon.get(&["alerts", &arguments.id], &[]))?;
    let alert: Alert = serde_json::from_value(alert).context("the daemon sends alerts of another version")?;
    match arguments.output.format {
        Format::Json => println!("{}", serde_json::json!(alert)),
        Format::Table => print!("{}", alert_listing(&alert)),
    }
    Ok(ExitCode::SUCCESS)
}

fn alerts_table(alerts: &[Alert]) -> String {
    let rows: Vec<_> = alerts
        .iter()
        .map(|alert| {
            [
                alert.id.clone(),
                alert.state.as_str().to_owned(),
                alert.handling.as_str().to_owned(),
                alert.severity.clone(),
                alert.rule.clone(),
                format!("{}/{}", alert.operator, alert.unit),
                alert.sensor.clone().unwrap_or_else(|| "-".to_owned()),
                alert.started_at.0.to_string(),
                time_or_dash(alert.fired_at),
                time_or_dash(alert.resolved_at),
                alert.extreme.map_or_else(|| "-".to_owned(), |extreme| extreme.to_string()),
            ]
        })
        .collect();
    let headings =
        ["ID", "STATE", "HANDLING", "SEVERITY", "RULE", "UNIT", "SENSOR", "STARTED", "FIRED", "RESOLVED", "EXTREME"];
    table(headings, &rows)
}

fn alert_listing(alert: &Alert) -> String {
    let figure = |value: Option<f64>| value.map(|value| value.to_string());
    let time = |time: Option<Time>| time.map(|time| time.0.to_string());
    let mut text = listing([
        ("id", Some(alert.id.clone())),
        ("revision", Some(alert.revision.to_string())),
        ("state", Some(alert.state.as_str().to_owned())),
        ("handling", Some(alert.handling.as_str().to_owned())),
        ("severity", Some(alert.severity.clone())),
        ("message", Some(alert.message.en.clone())),
        ("", Some(alert.message.zh.clone())),
        ("rule", Some(format!("{} ({}, version {})", alert.rule, alert.rule_kind, alert.rule_version))),
        ("operator", Some(alert.operator.clone())),
        ("operator code", alert.operator_code.clone()),
        ("site", alert.site.clone()),
        ("unit", Some(alert.unit.clone())),
        ("unit kind", alert.unit_kind.clone()),
        ("sensor", alert.sensor.clone()),
        ("jurisdiction", alert.jurisdiction.clone()),
        ("profile", alert.profile.clone()),
        ("category", alert.category.clone()),
        ("consignments", Some(alert.consignments.join(", ")).filter(|ids| !ids.is_empty())),
        ("origin", Some(alert.origin.clone())),
        ("started", Some(alert.started_at.0.to_string())),
        ("fired", time(alert.fired_at)),
        ("resolved", time(alert.resolved_at)),
        ("detected", Some(alert.detected_at.0.to_string())),
        ("limit low", figure(alert.limit_low)),
        ("limit high", figure(alert.limit_high)),
        ("extreme", figure(alert.extreme)),
        ("last value", figure(alert.last_value)),
        ("mean kinetic", figure(alert.mean_kinetic_temperature)),
        ("latitude", figure(alert.latitude)),
        ("longitude", figure(alert.longitude)),
        ("excursion", Some(format!("{} s", alert.excursion_s))),
        ("unmonitored", Some(format!("{} s", alert.unmonitored_s))),
        ("late", Some(alert.late.to_string())),
    ]);
    for amendment in &alert.amendments {
        let change = format!("{} {}: {}", amendment.at.0, amendment.reason, amendment.change);
        text.push_str(&listing([(&format!("revision {}", amendment.revision), Some(change))]));
    }
    text
}

fn time_or_dash(time: Option<Time>) -> String {
    time.map_or_else(|| "-".to_owned(), |time| time.0.to_string())
}
