//! `frostline dead-letters`: what could not be used, and the way back for it.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context as _, bail};

use super::daemon::Daemon;
use super::table::{listing, plain, table};
use super::{Context, FAILED, Format, complain, runtime};
use crate::ledger::LedgerReader;
use crate::web::{DeadLetterView, list_dead_letters};
use frostline_core::codec::DeadLetterReason;

#[derive(Debug, clap::Args)]
pub(crate) struct DeadLettersArgs {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// List dead letters, newest first; reads the data directory, also while the daemon runs.
    List(ListArgs),
    /// Show one dead letter with its whole payload.
    Show(ShowArgs),
    /// Give the message of a dead letter to the running daemon again, once what was wrong is mended.
    Redrive(RedriveArgs),
}

#[derive(Debug, clap::Args)]
struct ListArgs {
    /// Those with this reason only: malformed, schema, range, future, past, conflict, unregistered, topic, oversize, refused.
    #[arg(long, value_parser = parse_reason)]
    reason: Option<DeadLetterReason>,
    /// How many at most.
    #[arg(long, value_name = "N", default_value_t = 100)]
    limit: usize,
    /// How the result is printed.
    #[arg(long, value_name = "FORMAT", default_value = "table")]
    format: Format,
}

#[derive(Debug, clap::Args)]
struct ShowArgs {
    /// The dead letter's number.
    id: i64,
    /// How the result is printed.
    #[arg(long, value_name = "FORMAT", default_value = "table")]
    format: Format,
}

#[derive(Debug, clap::Args)]
struct RedriveArgs {
    /// The dead letter's number.
    #[arg(required_unless_present = "all", conflicts_with = "all")]
    id: Option<i64>,
    /// Every message that was not redriven yet.
    #[arg(long)]
    all: bool,
    /// With --all: those with this reason only.
    #[arg(long, requires = "all", value_parser = parse_reason)]
    reason: Option<DeadLetterReason>,
    /// The daemon's address; without it, http.listen of the configuration.
    #[arg(long)]
    url: Option<String>,
}

/// How many letters are read from the ledger at one time.
const PAGE_LENGTH: usize = 1_000;

pub(crate) fn run(arguments: DeadLettersArgs, context: &Context) -> anyhow::Result<ExitCode> {
    match arguments.command {
        Command::List(arguments) => list(&arguments, context),
        Command::Show(arguments) => show(&arguments, context),
        Command::Redrive(arguments) => redrive(&arguments, context),
    }
}

fn parse_reason(word: &str) -> Result<DeadLetterReason, String> {
    DeadLetterReason::from_word(word).ok_or_else(|| {
        let words = DeadLetterReason::ALL.map(DeadLetterReason::as_str).join(", ");
        format!("expected one of {words}")
    })
}

fn open_ledger(context: &Context) -> anyhow::Result<LedgerReader> {
    let data_dir = context.load()?.settings.data_dir;
    LedgerReader::open(&data_dir).with_context(|| no_ledger(&data_dir))
}

fn no_ledger(data_dir: &Path) -> String {
    format!("no ledger can be read in {}; has the daemon ever run with this configuration?", data_dir.display())
}

#[expect(clippy::print_stdout, reason = "the result of a command goes to stdout")]
fn list(arguments: &ListArgs, context: &Context) -> anyhow::Result<ExitCode> {
    let ledger = open_ledger(context)?;
    let reason = arguments.reason.map(DeadLetterReason::as_str);
    let (letters, next) = list_dead_letters(&ledger, reason, None, arguments.limit)?;
    match arguments.format {
        Format::Json => println!("{}", serde_json::json!({ "items": letters, "next": next.map(|id| id.to_string()) })),
        Format::Table => {
            print!("{}", letters_table(&letters));
            if next.is_some() {
                println!("… and more: raise --limit, or narrow the question");
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}

#[expect(clippy::print_stdout, reason = "the result of a command goes to stdout")]
fn show(arguments: &ShowArgs, context: &Context) -> anyhow::Result<ExitCode> {
    let Some(letter) = open_ledger(context)?.dead_letter(arguments.id)? else {
        bail!("there is no dead letter {}; the oldest go when their quota is full", arguments.id);
    };
    let letter = DeadLetterView::from(letter);
    match arguments.format {
        Format::Json => println!("{}", serde_json::json!(letter)),
        Format::Table => print!("{}", letter_listing(&letter)),
    }
    Ok(ExitCode::SUCCESS)
}

#[expect(clippy::print_stdout, reason = "the result of a command goes to stdout")]
fn redrive(arguments: &RedriveArgs, context: &Context) -> anyhow::Result<ExitCode> {
    let daemon = Daemon::new(arguments.url.as_deref(), context)?;
    let ids = match arguments.id {
        Some(id) => vec![id],
        None => messages_to_redrive(&open_ledger(context)?, arguments.reason)?,
    };
    let (mut redriven, mut failed) = (0, 0);
    runtime()?.block_on(async {
        for id in &ids {
            match daemon.post(&["dead-letters", &id.to_string(), "redrive"]).await {
                Ok(_) => redriven += 1,
                // Without the daemon the rest would fail alike.
                Err(error) if error.is::<reqwest::Error>() => return Err(error),
                Err(error) => {
                    failed += 1;
                    complain(&format!("frostline: dead letter {id}: {error:#}"));
                }
            }
        }
        Ok(())
    })?;
    println!("{redriven} {} given to the journal again", if redriven == 1 { "message" } else { "messages" });
    Ok(if failed == 0 { ExitCode::SUCCESS } else { ExitCode::from(FAILED) })
}

/// Returns one letter of each message that was not redriven yet and is there whole, the oldest first.
fn messages_to_redrive(ledger: &LedgerReader, reason: Option<DeadLetterReason>) -> anyhow::Result<Vec<i64>> {
    let reason = reason.map(DeadLetterReason::as_str);
    let mut letter_of_message = BTreeMap::new();
    let mut before = None;
    loop {
        let letters = ledger.dead_letters(reason, before, PAGE_LENGTH)?;
        for letter in &letters {
            if letter.message.redriven_at.is_none() && letter.message.sha256.is_none() {
                letter_of_message.insert(letter.message.journal_offset, letter.id);
            }
        }
        match letters.last() {
            Some(last) => before = Some(last.id),
            None => return Ok(letter_of_message.into_values().collect()),
        }
    }
}

fn letters_table(letters: &[DeadLetterView]) -> String {
    let rows: Vec<_> = letters
        .iter()
        .map(|letter| {
            [
                letter.id.map_or_else(|| "-".to_owned(), |id| id.to_string()),
                letter.received_at.0.to_string(),
                letter.reason.clone(),
                letter.topic.clone().or_else(|| letter.sink.clone()).unwrap_or_default(),
                letter.item.map_or_else(|| "all".to_owned(), |item| item.to_string()),
                if letter.redriven_at.is_some() { "yes" } else { "no" }.to_owned(),
                letter.detail.clone(),
                excerpt(letter),
            ]
        })
        .collect();
    table(["ID", "RECEIVED", "REASON", "TOPIC", "ITEM", "REDRIVEN", "DETAIL", "PAYLOAD"], &rows)
}

/// Returns the beginning of a payload, short enough for a line.
fn excerpt(letter: &DeadLetterView) -> String {
    const CHARACTERS_MAX: usize = 40;
    let text = match (&letter.payload, &letter.payload_b64) {
        (Some(text), _) => text,
        (None, Some(_)) => return format!("{} bytes, not text", letter.length),
        (None, None) => return String::new(),
    };
    let mut excerpt: String = text.chars().take(CHARACTERS_MAX).collect();
    if excerpt.len() < text.len() || (text.len() as u64) < letter.length {
        excerpt.push('…');
    }
    excerpt
}

fn letter_listing(letter: &DeadLetterView) -> String {
    let mut text = listing([
        ("id", letter.id.map(|id| id.to_string())),
        ("reason", Some(letter.reason.clone())),
        ("detail", Some(letter.detail.clone())),
        ("received", Some(letter.received_at.0.to_string())),
        ("route", letter.route.clone()),
        ("topic", letter.topic.clone()),
        ("item", Some(letter.item.map_or_else(|| "all of the message".to_owned(), |item| item.to_string()))),
        ("journal offset", letter.journal_offset.map(|offset| offset.to_string())),
        ("length", Some(format!("{} bytes", letter.length))),
        ("sha256", letter.sha256.clone()),
        ("redriven", letter.redriven_at.map(|time| time.0.to_string())),
    ]);
    let encoding = if letter.payload_b64.is_some() { "payload (base64)" } else { "payload" };
    let payload = letter.payload.as_ref().or(letter.payload_b64.as_ref()).map_or("", String::as_str);
    text.push_str(&format!("{encoding}:\n{}\n", plain(payload)));
    text
}
