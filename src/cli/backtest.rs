//! `frostline backtest`: runs rules over recordings, or over what the daemon has kept, without any server.

use std::io::{self, BufWriter, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use anyhow::Context as _;
use frostline_core::model::Timestamp;

use super::export::write_whole;
use super::progress::{ProgressLine, bar};
use super::table::{listing, table};
use super::{Context, Format, complain};
use crate::alert::Time;
use crate::backtest::{Backtest, OrderedReadings, Progress};
use crate::comparison::{Change, Comparison, Difference, DifferenceLine, RuleFigures, Side, compare};
use crate::episode_file::{self, EpisodeRecord};
use crate::stored_readings::StoredReadings;

/// What `frostline backtest` is told.
#[derive(Debug, clap::Args)]
pub(crate) struct BacktestArgs {
    /// Recordings (JSON Lines) and tables of readings (CSV), also as `.zst`, one after the other as given.
    #[arg(required_unless_present = "from_store", value_name = "FILE")]
    files: Vec<PathBuf>,
    /// Judge the readings in the data directory instead of files; also while the daemon runs.
    #[arg(long, conflicts_with = "files")]
    from_store: bool,
    /// Judge by the rules of this file instead of the configured ones.
    #[arg(long, value_name = "FILE")]
    rules: Option<PathBuf>,
    /// Judge by the rules of this file too, and print which episodes these would gain, lose and change.
    #[arg(long, value_name = "FILE")]
    against: Option<PathBuf>,
    /// Write the episodes here instead of to standard output; with --against, the differences as JSON Lines.
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// With --against: how the comparison is printed.
    #[arg(long, value_name = "FORMAT", requires = "against")]
    format: Option<Format>,
}

/// Runs `frostline backtest`.
pub(crate) fn run(arguments: BacktestArgs, context: &Context) -> anyhow::Result<ExitCode> {
    let judgement = context.load_judgement(arguments.rules.as_deref())?;
    let against = arguments.against.as_deref().map(|file| context.load_judgement(Some(file))).transpose()?;
    let mut backtest = Backtest::default();
    let line = context.shows_progress.then(|| show_progress(backtest.progress(), &arguments.files));
    if arguments.from_store {
        let data_dir = context.load()?.settings.data_dir;
        backtest.add_stored(&StoredReadings::open(&data_dir)?)?;
    }
    for file in &arguments.files {
        backtest.add_file(file, &judgement)?;
    }
    let readings = backtest.order();
    let episodes = readings.judge(Arc::clone(&judgement.rules), Arc::clone(&judgement.registry));
    let compared = against.map(|against| {
        let others = readings.judge(Arc::clone(&against.rules), against.registry);
        (against.rules, others)
    });
    drop(line);
    for remark in &readings.summary.remarks {
        complain(remark);
    }
    if readings.summary.remarks_left_out > 0 {
        complain(&format!("and {} more that could not be used", readings.summary.remarks_left_out));
    }
    match compared {
        None => {
            complain(&format!("{}; {} episodes", readings.summary, episodes.len()));
            write_out(&arguments, |out| episode_file::write(&episodes, out))?;
        }
        Some((rules, others)) => {
            complain(&readings.summary.to_string());
            let before = Side { rules: &judgement.rules, episodes: &episodes };
            let after = Side { rules: &rules, episodes: &others };
            let comparison = compare(before, after, readings.now().unwrap_or(Timestamp::MIN));
            let report = Report { arguments: &arguments, context, readings: &readings, comparison: &comparison };
            report.print()?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn show_progress(progress: Arc<Progress>, files: &[PathBuf]) -> ProgressLine {
    // A file that cannot be looked at is complained of when it is read.
    let total: u64 = files.iter().filter_map(|file| Some(std::fs::metadata(file).ok()?.len())).sum();
    ProgressLine::show(move || {
        let [bytes, readings, units, judged] =
            [&progress.bytes_read, &progress.readings, &progress.units, &progress.units_judged]
                .map(|count| count.load(Ordering::Relaxed));
        match (units, total) {
            (0, 0) => format!("reading {readings} readings"),
            (0, total) => format!("reading {} {readings} readings", bar(bytes, total)),
            (units, _) => format!("judging {} {judged} of {units} units", bar(judged, units)),
        }
    })
}

/// Writes to the file that was asked for, or else to standard output.
fn write_out(arguments: &BacktestArgs, write: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> anyhow::Result<()> {
    match &arguments.out {
        Some(file) => write_whole(file, |out| write(out).with_context(|| format!("cannot write `{}`", file.display()))),
        None => {
            let mut out = BufWriter::new(io::stdout().lock());
            write(&mut out).and_then(|()| out.flush()).context("cannot write")
        }
    }
}

/// Two sets of rules side by side, as somebody can sign it.
struct Report<'a> {
    arguments: &'a BacktestArgs,
    context: &'a Context,
    readings: &'a OrderedReadings,
    comparison: &'a Comparison,
}

impl Report<'_> {
    #[expect(clippy::print_stdout, reason = "the result of a command goes to stdout")]
    fn print(&self) -> anyhow::Result<()> {
        if let Some(file) = &self.arguments.out {
            write_whole(file, |out| {
                for difference in &self.comparison.differences {
                    serde_json::to_writer(&mut *out, &DifferenceLine::from(difference))?;
                    out.write_all(b"\n")?;
                }
                Ok(())
            })?;
        }
        match self.arguments.format.unwrap_or(Format::Table) {
            Format::Json => println!("{}", self.json()),
            Format::Table => print!("{}", self.text()),
        }
        Ok(())
    }

    /// Returns where the rules before, the rules after and the readings come from.
    fn sources(&self) -> (String, String, Vec<String>) {
        let before = self.arguments.rules.as_ref().unwrap_or(&self.context.config_dir).display().to_string();
        let after = self.arguments.against.as_ref().map_or(String::new(), |file| file.display().to_string());
        let readings = match self.arguments.from_store {
            true => vec!["the data directory".to_owned()],
            false => self.arguments.files.iter().map(|file| file.display().to_string()).collect(),
        };
        (before, after, readings)
    }

    /// Returns how many episodes are gained, lost and changed.
    fn counts(&self) -> [usize; 3] {
        let count = |word| self.comparison.differences.iter().filter(|difference| difference.as_str() == word).count();
        ["gained", "lost", "changed"].map(count)
    }

    fn json(&self) -> serde_json::Value {
        let (before, after, from) = self.sources();
        let span = self.readings.span();
        let [gained, lost, changed] = self.counts();
        let differences: Vec<_> = self.comparison.differences.iter().map(DifferenceLine::from).collect();
        serde_json::json!({
            "before": before,
            "after": after,
            "readings": {
                "from": from,
                "accepted": self.readings.summary.accepted,
                "series": self.readings.series_count(),
                "first": span.map(|(first, _)| Time(first)),
                "last": span.map(|(_, last)| Time(last)),
                "now": self.readings.now().map(Time),
            },
            "rules": self.comparison.rules,
            "gained": gained,
            "lost": lost,
            "changed": changed,
            "unchanged": self.comparison.unchanged,
            "differences": differences,
        })
    }

    fn text(&self) -> String {
        let (before, after, from) = self.sources();
        let span = self.readings.span().map(|(first, last)| format!("{first} to {last}"));
        let count = format!("{} of {} series", self.readings.summary.accepted, self.readings.series_count());
        let mut text = listing([
            ("before", Some(before)),
            ("after", Some(after)),
            ("readings", Some(from.join(", "))),
            ("", Some(count)),
            ("", span),
        ]);
        text.push('\n');
        text.push_str(&rules_table(self.comparison));
        let [gained, lost, changed] = self.counts();
        let unchanged = self.comparison.unchanged;
        text.push_str(&format!("\n{gained} gained, {lost} lost, {changed} changed, {unchanged} unchanged\n"));
        if !self.comparison.differences.is_empty() {
            text.push('\n');
            text.push_str(&differences_table(&self.comparison.differences));
        }
        text
    }
}

fn rules_table(comparison: &Comparison) -> String {
    let cells = |figures: &Option<RuleFigures>| match figures {
        Some(RuleFigures { version, episodes, firing_ms }) => {
            [version.clone(), episodes.to_string(), duration_text(*firing_ms)]
        }
        None => ["-"; 3].map(str::to_owned),
    };
    let rows = comparison.rules.iter().map(|rule| {
        let ([version, episodes, firing], [new_version, new_episodes, new_firing]) =
            (cells(&rule.before), cells(&rule.after));
        [rule.rule.clone(), version, new_version, episodes, new_episodes, firing, new_firing]
    });
    let headings = ["RULE", "VERSION BEFORE", "AFTER", "EPISODES BEFORE", "AFTER", "TIME FIRING BEFORE", "AFTER"];
    table(headings, &rows.collect::<Vec<_>>())
}

fn differences_table(differences: &[Difference]) -> String {
    let rows = differences.iter().map(|difference| {
        let newest = difference.newest();
        let [started, fired, resolved, extreme] = figures(difference);
        [
            difference.as_str().to_owned(),
            format!("{}/{}", newest.operator, newest.unit),
            newest.sensor.clone().unwrap_or_else(|| "-".to_owned()),
            newest.rule.clone(),
            started,
            fired,
            resolved,
            extreme,
        ]
    });
    let headings = ["DIFFERENCE", "UNIT", "SENSOR", "RULE", "STARTED", "FIRED", "RESOLVED", "EXTREME"];
    table(headings, &rows.collect::<Vec<_>>())
}

/// Returns start, firing, end and extreme; of a changed episode as they would be, with what has changed behind them.
fn figures(difference: &Difference) -> [String; 4] {
    let end = |episode: &EpisodeRecord| episode.resolved_at.map_or_else(|| "firing".to_owned(), |at| at.to_string());
    let peak = |episode: &EpisodeRecord| episode.extreme.map_or_else(|| "-".to_owned(), |extreme| extreme.to_string());
    let newest = difference.newest();
    let plain = [newest.started_at.to_string(), newest.fired_at.to_string(), end(newest), peak(newest)];
    let Difference::Changed { before, after } = difference else { return plain };
    let change = Change::of(before, after);
    let shifted = |by_ms: i64| {
        let sign = if by_ms < 0 { '-' } else { '+' };
        (by_ms != 0).then(|| format!("{sign}{}", duration_text(by_ms.abs())))
    };
    let was = |before: String, after: String| (before != after).then(|| format!("was {before}"));
    let notes = [
        shifted(change.started_ms),
        shifted(change.fired_ms),
        change.resolved_ms.map_or_else(|| was(end(before), end(after)), shifted),
        change.extreme.map_or_else(
            || was(peak(before), peak(after)),
            |by| (by != 0.0).then(|| format!("{}{by}", if by > 0.0 { "+" } else { "" })),
        ),
    ];
    let mut figures = plain.into_iter().zip(notes).map(|(figure, note)| match note {
        Some(note) => format!("{figure} ({note})"),
        None => figure,
    });
    std::array::from_fn(|_| figures.next().expect("there are four of each"))
}

/// Returns a duration for people: `1d 2h 30m`, `0s`.
fn duration_text(duration_ms: i64) -> String {
    const PARTS: [(i64, &str); 5] = [(86_400_000, "d"), (3_600_000, "h"), (60_000, "m"), (1_000, "s"), (1, "ms")];
    let mut rest_ms = duration_ms;
    let parts = PARTS.iter().filter_map(|(length_ms, letter)| {
        let count = rest_ms / length_ms;
        rest_ms %= length_ms;
        (count > 0).then(|| format!("{count}{letter}"))
    });
    let text = parts.collect::<Vec<_>>().join(" ");
    if text.is_empty() { "0s".to_owned() } else { text }
}

#[cfg(test)]
mod tests {
    use super::duration_text;

    #[test]
    fn durations_read_as_people_say_them() {
        for (duration_ms, text) in
            [(0, "0s"), (600_000, "10m"), (95_400_000, "1d 2h 30m"), (1_500, "1s 500ms"), (3_600_000, "1h")]
        {
            assert_eq!(duration_text(duration_ms), text);
        }
    }
}
