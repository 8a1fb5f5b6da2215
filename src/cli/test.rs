//! `frostline test`: tells the rules the stories that they are tested with.

use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context as _;
use clap::ValueEnum;
use serde::Serialize;

use super::{Context, FOUND, Misconfigured};
use crate::config::Problem;
use crate::story::{self, StoryEpisode, Told, shown_duration};

/// What `frostline test` is told.
#[derive(Debug, clap::Args)]
pub(crate) struct TestArgs {
    /// Files of stories; without any, those in `tests/` of the configuration.
    #[arg(value_name = "FILE")]
    files: Vec<PathBuf>,
    /// How the results look.
    #[arg(long, value_name = "FORMAT", default_value = "text")]
    format: ReportFormat,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum ReportFormat {
    Text,
    Json,
    Junit,
}

/// Runs `frostline test`.
pub(crate) fn run(arguments: TestArgs, context: &Context) -> anyhow::Result<ExitCode> {
    let judgement = context.load_judgement(None)?;
    let files =
        if arguments.files.is_empty() { story_files(&context.config_dir.join("tests"))? } else { arguments.files };
    let mut problems = Vec::new();
    let mut results = Vec::new();
    for file in files {
        let text = match std::fs::read_to_string(&file) {
            Ok(text) => text,
            Err(error) => {
                let message = format!("cannot be read: {error}");
                problems.push(Problem { file, line: None, key: String::new(), message });
                continue;
            }
        };
        let stories = story::parse(&file, &text, &judgement.registry, &mut problems);
        let told = stories.iter().map(|story| story.tell(&judgement.rules, &judgement.registry)).collect();
        results.push((file, told));
    }
    if !problems.is_empty() {
        return Err(Misconfigured(problems).into());
    }
    let mut out = BufWriter::new(io::stdout().lock());
    let written = match arguments.format {
        ReportFormat::Text => write_text(&results, &mut out),
        ReportFormat::Json => write_json(&results, &mut out),
        ReportFormat::Junit => write_junit(&results, &mut out),
    };
    written.and_then(|()| out.flush()).context("cannot write")?;
    let is_as_expected = results.iter().flat_map(|(_, told)| told).all(Told::is_as_expected);
    Ok(if is_as_expected { ExitCode::SUCCESS } else { ExitCode::from(FOUND) })
}

type Results = [(PathBuf, Vec<Told>)];

fn story_files(dir: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let entries = std::fs::read_dir(dir).with_context(|| format!("cannot read `{}`", dir.display()))?;
    let mut files = entries.map(|entry| Ok(entry?.path())).collect::<io::Result<Vec<_>>>()?;
    files.retain(|file| file.extension().is_some_and(|extension| extension == "toml"));
    files.sort();
    Ok(files)
}

fn write_text(results: &Results, out: &mut impl Write) -> io::Result<()> {
    let mut failed = 0;
    let mut count = 0;
    for (file, told) in results {
        writeln!(out, "{}", file.display())?;
        for told in told {
            count += 1;
            let verdict = if told.is_as_expected() { "ok  " } else { "FAIL" };
            writeln!(out, "  {verdict} {}", told.name)?;
            if !told.is_as_expected() {
                failed += 1;
                for line in side_by_side(told) {
                    writeln!(out, "       {line}")?;
                }
            }
        }
    }
    writeln!(out, "{count} stories, {failed} not as expected")
}

/// Returns what was expected beside what was found, an episode of one rule and sensor beside its like.
fn side_by_side(told: &Told) -> Vec<String> {
    let mut pairs: Vec<(Option<&StoryEpisode>, Option<&StoryEpisode>)> = Vec::new();
    let mut left: Vec<_> = told.found.iter().collect();
    for expected in &told.expected {
        let likeness = |found: &&StoryEpisode| {
            let is_of_same = found.rule == expected.rule && found.sensor == expected.sensor;
            (is_of_same && *found != expected, (found.started_ms - expected.started_ms).abs())
        };
        let same = left.iter().position(|found| *found == expected);
        let like = || {
            let candidates = left.iter().enumerate().filter(|(_, found)| likeness(found).0);
            candidates.min_by_key(|(_, found)| likeness(found).1).map(|(number, _)| number)
        };
        let found = same.or_else(like).map(|number| left.remove(number));
        pairs.push((Some(expected), found));
    }
    pairs.extend(left.into_iter().map(|found| (None, Some(found))));
    let shown = |episode: Option<&StoryEpisode>| episode.map_or("-".to_owned(), ToString::to_string);
    let width = pairs.iter().map(|(expected, _)| shown(*expected).len()).max().unwrap_or(0).max("expected".len());
    let mut lines = vec![format!("  {:width$}   found", "expected")];
    lines.extend(pairs.into_iter().map(|(expected, found)| {
        let mark = if expected == found { ' ' } else { '!' };
        format!("{mark} {:width$}   {}", shown(expected), shown(found))
    }));
    lines
}

/// The shape of a story in JSON.
#[derive(Serialize)]
struct TestView<'a> {
    file: String,
    name: &'a str,
    passed: bool,
    expected: Vec<EpisodeView<'a>>,
    found: Vec<EpisodeView<'a>>,
}

/// The shape of an episode of a story in JSON.
#[derive(Serialize)]
struct EpisodeView<'a> {
    rule: &'a str,
    sensor: Option<&'a str>,
    started: String,
    fired: String,
    resolved: Option<String>,
}

impl<'a> EpisodeView<'a> {
    fn new(episode: &'a StoryEpisode) -> Self {
        Self {
            rule: &episode.rule,
            sensor: episode.sensor.as_deref(),
            started: shown_duration(episode.started_ms),
            fired: shown_duration(episode.fired_ms),
            resolved: episode.resolved_ms.map(shown_duration),
        }
    }
}

fn write_json(results: &Results, out: &mut impl Write) -> io::Result<()> {
    let views = results.iter().flat_map(|(file, told)| {
        told.iter().map(|told| TestView {
            file: file.display().to_string(),
            name: &told.name,
            passed: told.is_as_expected(),
            expected: told.expected.iter().map(EpisodeView::new).collect(),
            found: told.found.iter().map(EpisodeView::new).collect(),
        })
    });
    serde_json::to_writer_pretty(&mut *out, &serde_json::json!({ "tests": views.collect::<Vec<_>>() }))?;
    out.write_all(b"\n")
}

fn write_junit(results: &Results, out: &mut impl Write) -> io::Result<()> {
    writeln!(out, "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<testsuites>")?;
    for (file, told) in results {
        let file = escaped(&file.display().to_string());
        let failures = told.iter().filter(|told| !told.is_as_expected()).count();
        writeln!(out, "  <testsuite name=\"{file}\" tests=\"{}\" failures=\"{failures}\">", told.len())?;
        for told in told {
            let name = escaped(&told.name);
            if told.is_as_expected() {
                writeln!(out, "    <testcase classname=\"{file}\" name=\"{name}\"/>")?;
            } else {
                let text = escaped(&side_by_side(told).join("\n"));
                writeln!(out, "    <testcase classname=\"{file}\" name=\"{name}\">")?;
                writeln!(out, "      <failure message=\"episodes differ\">{text}</failure>\n    </testcase>")?;
            }
        }
        writeln!(out, "  </testsuite>")?;
    }
    writeln!(out, "</testsuites>")
}

/// Returns a text that may stand in XML, in an attribute too.
fn escaped(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            control if control.is_control() && control != '\n' && control != '\t' => escaped.push('\u{fffd}'),
            other => escaped.push(other),
        }
    }
    escaped
}
