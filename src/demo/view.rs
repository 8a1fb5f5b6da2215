//! What the demo shows in the terminal.
//!
//! On a terminal a table is repainted in place and alerts scroll above it. Into a pipe or a file go plain lines: every
//! alert, and the table now and then. A frame is drawn from plain data, so the same data always gives the same text.

use std::fmt::Write as _;
use std::io::{self, IsTerminal, Write};
use std::time::Duration;

use frostline_core::model::Timestamp;

/// Everything that one frame shows.
#[derive(Debug, Clone)]
pub struct DemoSnapshot {
    /// The rules' *now*.
    pub simulated_time: Timestamp,
    /// The units, in the order in which they are shown.
    pub units: Vec<UnitRow>,
    /// The accounting identity.
    pub accounting: Accounting,
    /// How many alerts are firing.
    pub active_alerts: usize,
}

/// One unit as it stands.
#[derive(Debug, Clone)]
pub struct UnitRow {
    /// Its id.
    pub unit: String,
    /// Its league or city.
    pub place: String,
    /// The category of its goods.
    pub category: String,
    /// How it is doing.
    pub state: UnitState,
    /// The last temperature, °C.
    pub temperature_celsius: Option<f64>,
    /// The last relative humidity, %RH.
    pub humidity_percent: Option<f64>,
    /// The lower limit in force, °C.
    pub low_celsius: Option<f64>,
    /// The upper limit in force, °C.
    pub high_celsius: Option<f64>,
    /// The newest event time of any of its series.
    pub last_seen: Option<Timestamp>,
}

/// How a unit is doing; the later variant wins where two apply.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum UnitState {
    /// Within its limits.
    Ok,
    /// Some rule's condition holds, not yet for long enough.
    Pending,
    /// Nothing is known about it now.
    Silent,
    /// An alert is firing.
    Alert,
}

/// The terms of the accounting identity, in readings.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Accounting {
    /// Decoded.
    pub received: u64,
    /// In the history.
    pub stored: u64,
    /// Already there.
    pub duplicate: u64,
    /// Kept as unusable, with a reason.
    pub dead_lettered: u64,
    /// Not decided yet.
    pub in_flight: u64,
}

/// What happened to an alert.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AlertChange {
    /// It fired.
    Fired,
    /// Its condition ended.
    Resolved,
    /// Later readings showed that it never was.
    Retracted,
}

/// One transition of an alert.
#[derive(Debug, Clone)]
pub struct AlertLine {
    /// The transition's event time.
    pub at: Timestamp,
    /// What happened.
    pub change: AlertChange,
    /// `notice`, `warning` or `critical`.
    pub severity: String,
    /// The rule's id.
    pub rule: String,
    /// The unit's id.
    pub unit: String,
    /// The probe, where the rule looks at one.
    pub sensor: Option<String>,
    /// When the episode began.
    pub started_at: Timestamp,
    /// The value farthest outside, where the rule knows one.
    pub extreme: Option<f64>,
    /// The lower limit that the rule applied.
    pub limit_low: Option<f64>,
    /// The upper limit that the rule applied.
    pub limit_high: Option<f64>,
}

/// The account of a whole demo.
#[derive(Debug, Clone)]
pub struct DemoSummary {
    /// How long it ran.
    pub real_duration: Duration,
    /// How much time was simulated.
    pub simulated_duration: Duration,
    /// How many messages the fleet published.
    pub messages: u64,
    /// The accounting identity at the end.
    pub accounting: Accounting,
    /// How many alerts fired.
    pub alerts_fired: u64,
    /// How many of them resolved.
    pub alerts_resolved: u64,
    /// How many are still firing.
    pub alerts_open: u64,
    /// The units that had alerts, worst first.
    pub worst_units: Vec<WorstUnit>,
}

/// One unit that had alerts.
#[derive(Debug, Clone)]
pub struct WorstUnit {
    /// Its id.
    pub unit: String,
    /// Its league or city.
    pub place: String,
    /// How many alerts fired.
    pub alerts_fired: u64,
    /// The temperature farthest outside its limits, °C.
    pub extreme_celsius: Option<f64>,
    /// The lower limit, °C.
    pub low_celsius: Option<f64>,
    /// The upper limit, °C.
    pub high_celsius: Option<f64>,
}

/// How to draw.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ViewOptions {
    /// Repaint the table in place; otherwise write plain lines without any escape code.
    pub repaint: bool,
    /// Use colours; only where the table is repainted.
    pub colours: bool,
    /// How much simulated time passes between two tables in plain lines.
    pub table_every_ms: i64,
}

/// How large the terminal is, in characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TerminalSize {
    /// Its width.
    pub columns: usize,
    /// Its height.
    pub rows: usize,
}

/// Draws the demo to `out`.
#[derive(Debug)]
pub struct View<W> {
    out: W,
    options: ViewOptions,
    /// The lines of the table that stands on the terminal now, the cursor being below the last.
    frame: Vec<Line>,
    /// The simulated time of the last table written as plain lines.
    last_table: Option<Timestamp>,
}

/// A line without its end: the text, how to colour it, and how wide it is.
#[derive(Debug, Clone)]
struct Line {
    text: String,
    paint: Paint,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Paint {
    Plain,
    Faint,
    Bold,
    Yellow,
    Red,
}

impl ViewOptions {
    /// Returns what suits standard output: repainting on a terminal, colours unless `NO_COLOR` is set.
    pub fn for_stdout(table_every_ms: i64) -> Self {
        let set = |name: &str| std::env::var_os(name).is_some_and(|value| !value.is_empty());
        let dumb = std::env::var_os("TERM").is_some_and(|term| term == "dumb");
        Self { repaint: io::stdout().is_terminal() && !dumb, colours: !set("NO_COLOR"), table_every_ms }
    }
}

impl TerminalSize {
    /// Returns the size of the terminal behind standard output; a usual one where it cannot be told.
    pub fn of_stdout() -> Self {
        match terminal_size::terminal_size_of(io::stdout()) {
            Some((terminal_size::Width(columns), terminal_size::Height(rows))) => {
                Self { columns: usize::from(columns), rows: usize::from(rows) }
            }
            None => Self { columns: 100, rows: 40 },
        }
    }
}

impl<W: Write> View<W> {
    /// Returns a view that has drawn nothing yet.
    pub const fn new(out: W, options: ViewOptions) -> Self {
        Self { out, options, frame: Vec::new(), last_table: None }
    }

    /// Shows how things stand: at once on a terminal, every `table_every_ms` of simulated time in plain lines.
    pub fn show(&mut self, snapshot: &DemoSnapshot, size: TerminalSize) -> io::Result<()> {
        if self.options.repaint {
            return self.repaint(table(snapshot, Some(size)), size);
        }
        let due = self
            .last_table
            .is_none_or(|last| snapshot.simulated_time.millis_since(last) >= self.options.table_every_ms);
        if !due {
            return Ok(());
        }
        self.last_table = Some(snapshot.simulated_time);
        let mut text = String::from("\n");
        for line in table(snapshot, None) {
            text.push_str(line.text.trim_end());
            text.push('\n');
        }
        text.push('\n');
        self.out.write_all(text.as_bytes())?;
        self.out.flush()
    }

    /// Writes the line of one transition; on a terminal it goes above the table.
    pub fn alert(&mut self, alert: &AlertLine, size: TerminalSize) -> io::Result<()> {
        let paint = match (alert.change, alert.severity.as_str()) {
            (AlertChange::Fired, "notice") => Paint::Yellow,
            (AlertChange::Fired, _) => Paint::Red,
            (AlertChange::Resolved | AlertChange::Retracted, _) => Paint::Plain,
        };
        let mut text = String::new();
        if self.options.repaint {
            text.push_str(SYNCHRONISED_START);
            self.climb(&mut text, size);
            text.push_str(ERASE_BELOW);
        }
        self.push(&mut text, &Line { text: alert_text(alert), paint });
        text.push('\n');
        for line in &self.frame {
            self.push(&mut text, line);
            text.push('\n');
        }
        if self.options.repaint {
            text.push_str(SYNCHRONISED_END);
        }
        self.out.write_all(text.as_bytes())?;
        self.out.flush()
    }

    /// Leaves the last table where it stands and writes the account of the whole below it.
    pub fn finish(&mut self, summary: &DemoSummary) -> io::Result<()> {
        self.frame.clear();
        self.out.write_all(summary_text(summary).as_bytes())?;
        self.out.flush()
    }

    /// Draws a frame over the one before, in one write, so that nothing flickers.
    fn repaint(&mut self, frame: Vec<Line>, size: TerminalSize) -> io::Result<()> {
        let mut text = String::from(SYNCHRONISED_START);
        self.climb(&mut text, size);
        for line in &frame {
            self.push(&mut text, line);
            text.push_str(ERASE_TO_END_OF_LINE);
            text.push('\n');
        }
        text.push_str(ERASE_BELOW);
        text.push_str(SYNCHRONISED_END);
        self.frame = frame;
        self.out.write_all(text.as_bytes())?;
        self.out.flush()
    }

    /// Moves the cursor to the first line of the frame. A terminal made narrower has wrapped the lines meanwhile.
    fn climb(&self, text: &mut String, size: TerminalSize) {
        let columns = size.columns.max(1);
        let height: usize = self.frame.iter().map(|line| width(&line.text).div_ceil(columns).max(1)).sum();
        if height > 0 {
            push(text, format_args!("\x1b[{height}F"));
        }
    }

    fn push(&self, text: &mut String, line: &Line) {
        let code = match line.paint {
            Paint::Plain => "",
            Paint::Faint => "\x1b[2m",
            Paint::Bold => "\x1b[1m",
            Paint::Yellow => "\x1b[33m",
            Paint::Red => "\x1b[31m",
        };
        if self.options.repaint && self.options.colours && !code.is_empty() {
            push(text, format_args!("{code}{}\x1b[0m", line.text));
        } else {
            text.push_str(&line.text);
        }
    }
}

/// Terminals that know it show everything between the two at once; the others ignore it.
const SYNCHRONISED_START: &str = "\x1b[?2026h";
const SYNCHRONISED_END: &str = "\x1b[?2026l";
const ERASE_TO_END_OF_LINE: &str = "\x1b[K";
const ERASE_BELOW: &str = "\x1b[J";

/// Returns the table; with a size, cut to it so that no line wraps and the whole stays on the screen.
fn table(snapshot: &DemoSnapshot, size: Option<TerminalSize>) -> Vec<Line> {
    const LINES_AROUND: usize = 6;
    // The last column stays free: a terminal whose line is full erases its last character with the rest of the line.
    let columns = size.map_or(usize::MAX, |size| size.columns.saturating_sub(1));
    let room = size.map_or(usize::MAX, |size| size.rows.saturating_sub(LINES_AROUND).max(1));
    let mut units: Vec<&UnitRow> = snapshot.units.iter().collect();
    if units.len() > room {
        // Stable: the troubled ones first, each group in the usual order.
        units.sort_by_key(|unit| std::cmp::Reverse(unit.state));
    }
    let hidden = units.len().saturating_sub(room);

    let mut lines = vec![
        Line::new(
            format!(
                "{} (UTC+8)   {} units   {}",
                date_time(snapshot.simulated_time),
                snapshot.units.len(),
                alerts_firing(snapshot.active_alerts)
            ),
            Paint::Bold,
        ),
        Line::new(
            row(
                columns,
                &Cells {
                    unit: "UNIT",
                    place: "PLACE",
                    category: "CATEGORY",
                    state: "STATE",
                    temperature: "TEMP C",
                    limits: "LIMITS C",
                    humidity: "RH %",
                    last_seen: "LAST SEEN",
                },
            ),
            Paint::Faint,
        ),
    ];
    lines.extend(units.iter().take(room).map(|unit| unit_line(unit, columns)));
    if hidden > 0 {
        lines.push(Line::new(format!("... and {hidden} more"), Paint::Faint));
    }
    let mut accounting = accounting_text(&snapshot.accounting);
    if width(&accounting) > columns {
        let Accounting { received, stored, duplicate, dead_lettered, in_flight } = snapshot.accounting;
        accounting = format!("received {received} = {stored} + {duplicate} + {dead_lettered} + {in_flight}");
    }
    lines.push(Line::new(accounting, Paint::Faint));
    for line in &mut lines {
        cut(&mut line.text, columns);
    }
    lines
}

fn unit_line(unit: &UnitRow, columns: usize) -> Line {
    let (state, paint) = match unit.state {
        UnitState::Ok => ("ok", Paint::Plain),
        UnitState::Pending => ("pending", Paint::Yellow),
        UnitState::Silent => ("silent", Paint::Faint),
        UnitState::Alert => ("ALERT", Paint::Red),
    };
    let number = |value: Option<f64>, decimals: usize| value.map_or("-".to_owned(), |v| format!("{v:.decimals$}"));
    let cells = Cells {
        unit: &unit.unit,
        place: &unit.place,
        category: &unit.category,
        state,
        temperature: &number(unit.temperature_celsius, 2),
        limits: &limits_text(unit.low_celsius, unit.high_celsius),
        humidity: &number(unit.humidity_percent, 1),
        last_seen: &unit.last_seen.map_or("never".to_owned(), time_of_day),
    };
    Line::new(row(columns, &cells), paint)
}

struct Cells<'a> {
    unit: &'a str,
    place: &'a str,
    category: &'a str,
    state: &'a str,
    temperature: &'a str,
    limits: &'a str,
    humidity: &'a str,
    last_seen: &'a str,
}

/// Sets one row; what matters least is left out on a narrow terminal.
fn row(columns: usize, cells: &Cells<'_>) -> String {
    let mut text = left(cells.unit, 28);
    if columns >= 78 {
        text += &left(cells.place, 11);
    }
    if columns >= 96 {
        text += &left(cells.category, 10);
    }
    text += &left(cells.state, 8);
    text += &right(cells.temperature, 7);
    text += "  ";
    text += &left(cells.limits, 14);
    if columns >= 86 {
        text += &right(cells.humidity, 6);
        text += "  ";
    }
    text += cells.last_seen;
    text
}

/// `18:12:40  FIRED      critical  vaccine-temperature  hohhot-vaccine-fridge-1 t1: 9.31, limits 2.0 .. 8.0`
fn alert_text(alert: &AlertLine) -> String {
    let change = match alert.change {
        AlertChange::Fired => "FIRED",
        AlertChange::Resolved => "resolved",
        AlertChange::Retracted => "retracted",
    };
    let mut text = format!("{}  {}", date_time(alert.at), left(change, 11));
    text += &left(&alert.severity, 10);
    text += &left(&alert.rule, 21);
    text += &printable(&alert.unit);
    if let Some(sensor) = &alert.sensor {
        push(&mut text, format_args!(" {}", printable(sensor)));
    }
    if let Some(extreme) = alert.extreme {
        push(&mut text, format_args!(": {extreme:.2}"));
        if alert.limit_low.is_some() || alert.limit_high.is_some() {
            push(&mut text, format_args!(", limits {}", limits_text(alert.limit_low, alert.limit_high)));
        }
    }
    let lasted = duration_text(Duration::from_millis(alert.at.millis_since(alert.started_at).try_into().unwrap_or(0)));
    match alert.change {
        AlertChange::Fired => push(&mut text, format_args!(", since {}", time_of_day(alert.started_at))),
        AlertChange::Resolved => push(&mut text, format_args!(", after {lasted}")),
        AlertChange::Retracted => {}
    }
    text
}

fn summary_text(summary: &DemoSummary) -> String {
    let mut text = String::from("\n");
    let DemoSummary { real_duration, simulated_duration, messages, .. } = summary;
    let (real, simulated) = (duration_text(*real_duration), duration_text(*simulated_duration));
    push(&mut text, format_args!("ran      {real}, in which {simulated} were simulated with {messages} messages\n"));
    push(&mut text, format_args!("readings {}\n", accounting_text(&summary.accounting)));
    let DemoSummary { alerts_fired, alerts_resolved, alerts_open, worst_units, .. } = summary;
    push(
        &mut text,
        format_args!("alerts   {alerts_fired} fired, {alerts_resolved} resolved, {alerts_open} still firing\n"),
    );
    if worst_units.is_empty() {
        return text;
    }
    let mut add = |unit: &str, place: &str, alerts: &str, worst: &str, limits: &str| {
        let line = left(unit, 28) + &left(place, 11) + &right(alerts, 6) + &right(worst, 10) + "  " + limits;
        push(&mut text, format_args!("{}\n", line.trim_end()));
    };
    add("", "", "", "", "");
    add("UNIT", "PLACE", "ALERTS", "WORST C", "LIMITS C");
    for unit in worst_units {
        let worst = unit.extreme_celsius.map_or("-".to_owned(), |value| format!("{value:.2}"));
        let limits = limits_text(unit.low_celsius, unit.high_celsius);
        add(&unit.unit, &unit.place, &unit.alerts_fired.to_string(), &worst, &limits);
    }
    text
}

fn accounting_text(accounting: &Accounting) -> String {
    let Accounting { received, stored, duplicate, dead_lettered, in_flight } = accounting;
    let mut text = format!(
        "received {received} = stored {stored} + duplicate {duplicate} + dead-lettered {dead_lettered} + in flight {in_flight}"
    );
    let explained = stored + duplicate + dead_lettered + in_flight;
    if *received != explained {
        push(&mut text, format_args!("  DOES NOT HOLD: {explained} on the right"));
    }
    text
}

fn alerts_firing(count: usize) -> String {
    match count {
        0 => "no alert is firing".to_owned(),
        1 => "1 alert is firing".to_owned(),
        _ => format!("{count} alerts are firing"),
    }
}

fn limits_text(low: Option<f64>, high: Option<f64>) -> String {
    match (low, high) {
        (Some(low), Some(high)) => format!("{low:.1} .. {high:.1}"),
        (Some(low), None) => format!(">= {low:.1}"),
        (None, Some(high)) => format!("<= {high:.1}"),
        (None, None) => "-".to_owned(),
    }
}

/// Returns the two largest units of a duration: `2 h 5 min`, `12 s`.
fn duration_text(duration: Duration) -> String {
    let seconds = duration.as_secs();
    match (seconds / 86_400, seconds / 3_600 % 24, seconds / 60 % 60, seconds % 60) {
        (0, 0, 0, s) => format!("{s} s"),
        (0, 0, min, s) => format!("{min} min {s} s"),
        (0, h, min, _) => format!("{h} h {min} min"),
        (d, h, _, _) => format!("{d} d {h} h"),
    }
}

fn date_time(instant: Timestamp) -> String {
    local_time(instant, "%Y-%m-%d %H:%M:%S")
}

fn time_of_day(instant: Timestamp) -> String {
    local_time(instant, "%H:%M:%S")
}

/// All of China keeps UTC+8, the year round.
fn local_time(instant: Timestamp, format: &str) -> String {
    match jiff::Timestamp::from_millisecond(instant.as_millis()) {
        Ok(instant) => jiff::tz::offset(8).to_datetime(instant).strftime(format).to_string(),
        Err(_) => instant.to_string(),
    }
}

impl Line {
    const fn new(text: String, paint: Paint) -> Self {
        Self { text, paint }
    }
}

/// Fills a text up on the right, or cuts it, so that it takes `columns` with at least one blank at its end.
fn left(text: &str, columns: usize) -> String {
    let mut text = printable(text);
    cut(&mut text, columns.saturating_sub(1));
    let blanks = columns.saturating_sub(width(&text));
    text.extend(std::iter::repeat_n(' ', blanks));
    text
}

/// Fills a text up on the left so that it takes `columns`.
fn right(text: &str, columns: usize) -> String {
    let blanks = columns.saturating_sub(width(text));
    " ".repeat(blanks) + text
}

/// Cuts a text to at most `columns`.
fn cut(text: &mut String, columns: usize) {
    let mut taken = 0;
    let end = text.char_indices().find_map(|(at, character)| {
        taken += character_width(character);
        (taken > columns).then_some(at)
    });
    if let Some(end) = end {
        text.truncate(end);
    }
}

/// Replaces what a device could use to write elsewhere on the screen.
fn printable(text: &str) -> String {
    text.chars().map(|character| if character.is_control() { '?' } else { character }).collect()
}

fn width(text: &str) -> usize {
    text.chars().map(character_width).sum()
}

/// Chinese characters and their punctuation take two columns.
const fn character_width(character: char) -> usize {
    match character {
        '\u{1100}'..='\u{115F}'
        | '\u{2E80}'..='\u{A4CF}'
        | '\u{AC00}'..='\u{D7A3}'
        | '\u{F900}'..='\u{FAFF}'
        | '\u{FE30}'..='\u{FE6F}'
        | '\u{FF00}'..='\u{FF60}'
        | '\u{FFE0}'..='\u{FFE6}'
        | '\u{20000}'..='\u{3FFFD}' => 2,
        _ => 1,
    }
}

fn push(text: &mut String, arguments: std::fmt::Arguments<'_>) {
    text.write_fmt(arguments).expect("a String takes everything");
}

#[cfg(test)]
mod tests {
    use expect_test::{Expect, expect};

    use super::*;

    const WIDE: TerminalSize = TerminalSize { columns: 120, rows: 40 };

    fn at(text: &str) -> Timestamp {
        Timestamp::parse_rfc3339(text).unwrap()
    }

    fn unit(unit: &str, place: &str, state: UnitState, temperature_celsius: f64) -> UnitRow {
        UnitRow {
            unit: unit.to_owned(),
            place: place.to_owned(),
            category: "dairy".to_owned(),
            state,
            temperature_celsius: Some(temperature_celsius),
            humidity_percent: Some(71.25),
            low_celsius: Some(2.0),
            high_celsius: Some(6.0),
            last_seen: Some(at("2026-11-23T10:41:03Z")),
        }
    }

    fn snapshot(time: &str) -> DemoSnapshot {
        let mut never = unit("ordos-vaccine-box-1", "Ordos", UnitState::Silent, 0.0);
        never.temperature_celsius = None;
        never.humidity_percent = None;
        never.last_seen = None;
        let mut frozen = unit("chifeng-lamb-room-1", "赤峰", UnitState::Pending, -17.84);
        frozen.low_celsius = None;
        frozen.high_celsius = Some(-18.0);
        DemoSnapshot {
            simulated_time: at(time),
            units: vec![
                unit("hohhot-milk-room-1", "Hohhot", UnitState::Ok, 4.126),
                frozen,
                unit("baotou-yoghurt-room-1", "Baotou", UnitState::Alert, 11.9),
                never,
            ],
            accounting: Accounting { received: 120, stored: 115, duplicate: 3, dead_lettered: 1, in_flight: 1 },
            active_alerts: 1,
        }
    }

    fn fired() -> AlertLine {
        AlertLine {
            at: at("2026-11-23T10:42:03Z"),
            change: AlertChange::Fired,
            severity: "warning".to_owned(),
            rule: "dairy-temperature".to_owned(),
            unit: "baotou-yoghurt-room-1".to_owned(),
            sensor: Some("t1".to_owned()),
            started_at: at("2026-11-23T10:32:03Z"),
            extreme: Some(11.9),
            limit_low: Some(2.0),
            limit_high: Some(6.0),
        }
    }

    fn plain() -> ViewOptions {
        ViewOptions { repaint: false, colours: true, table_every_ms: 30 * 60_000 }
    }

    fn live(colours: bool) -> ViewOptions {
        ViewOptions { repaint: true, colours, table_every_ms: 30 * 60_000 }
    }

    /// Draws, and compares with escape codes made visible.
    fn check(options: ViewOptions, draw: impl FnOnce(&mut View<Vec<u8>>), expected: Expect) {
        let mut view = View::new(Vec::new(), options);
        draw(&mut view);
        expected.assert_eq(&String::from_utf8(view.out).unwrap().replace('\x1b', "ESC"));
    }

    #[test]
    fn a_pipe_gets_plain_lines_and_a_table_now_and_then() {
        check(
            plain(),
            |view| {
                view.show(&snapshot("2026-11-23T10:41:30Z"), WIDE).unwrap();
                view.alert(&fired(), WIDE).unwrap();
                view.show(&snapshot("2026-11-23T11:11:29Z"), WIDE).unwrap();
                let resolved = AlertLine {
                    change: AlertChange::Resolved,
                    at: at("2026-11-23T11:11:29Z"),
                    sensor: None,
                    extreme: None,
                    ..fired()
                };
                view.alert(&resolved, WIDE).unwrap();
                view.show(&snapshot("2026-11-23T11:11:30Z"), WIDE).unwrap();
            },
            expect![[r#"

                2026-11-23 18:41:30 (UTC+8)   4 units   1 alert is firing
                UNIT                        PLACE      CATEGORY  STATE    TEMP C  LIMITS C        RH %  LAST SEEN
                hohhot-milk-room-1          Hohhot     dairy     ok         4.13  2.0 .. 6.0      71.2  18:41:03
                chifeng-lamb-room-1         赤峰       dairy     pending  -17.84  <= -18.0        71.2  18:41:03
                baotou-yoghurt-room-1       Baotou     dairy     ALERT     11.90  2.0 .. 6.0      71.2  18:41:03
                ordos-vaccine-box-1         Ordos      dairy     silent        -  2.0 .. 6.0         -  never
                received 120 = stored 115 + duplicate 3 + dead-lettered 1 + in flight 1

                2026-11-23 18:42:03  FIRED      warning   dairy-temperature    baotou-yoghurt-room-1 t1: 11.90, limits 2.0 .. 6.0, since 18:32:03
                2026-11-23 19:11:29  resolved   warning   dairy-temperature    baotou-yoghurt-room-1, after 39 min 26 s

                2026-11-23 19:11:30 (UTC+8)   4 units   1 alert is firing
                UNIT                        PLACE      CATEGORY  STATE    TEMP C  LIMITS C        RH %  LAST SEEN
                hohhot-milk-room-1          Hohhot     dairy     ok         4.13  2.0 .. 6.0      71.2  18:41:03
                chifeng-lamb-room-1         赤峰       dairy     pending  -17.84  <= -18.0        71.2  18:41:03
                baotou-yoghurt-room-1       Baotou     dairy     ALERT     11.90  2.0 .. 6.0      71.2  18:41:03
                ordos-vaccine-box-1         Ordos      dairy     silent        -  2.0 .. 6.0         -  never
                received 120 = stored 115 + duplicate 3 + dead-lettered 1 + in flight 1

            "#]],
        );
    }

    #[test]
    fn a_terminal_is_repainted_in_place_with_alerts_above() {
        check(
            live(true),
            |view| {
                view.show(&snapshot("2026-11-23T10:41:30Z"), WIDE).unwrap();
                view.alert(&fired(), WIDE).unwrap();
                view.show(&snapshot("2026-11-23T10:42:30Z"), WIDE).unwrap();
            },
            expect![[r#"
                ESC[?2026hESC[1m2026-11-23 18:41:30 (UTC+8)   4 units   1 alert is firingESC[0mESC[K
                ESC[2mUNIT                        PLACE      CATEGORY  STATE    TEMP C  LIMITS C        RH %  LAST SEENESC[0mESC[K
                hohhot-milk-room-1          Hohhot     dairy     ok         4.13  2.0 .. 6.0      71.2  18:41:03ESC[K
                ESC[33mchifeng-lamb-room-1         赤峰       dairy     pending  -17.84  <= -18.0        71.2  18:41:03ESC[0mESC[K
                ESC[31mbaotou-yoghurt-room-1       Baotou     dairy     ALERT     11.90  2.0 .. 6.0      71.2  18:41:03ESC[0mESC[K
                ESC[2mordos-vaccine-box-1         Ordos      dairy     silent        -  2.0 .. 6.0         -  neverESC[0mESC[K
                ESC[2mreceived 120 = stored 115 + duplicate 3 + dead-lettered 1 + in flight 1ESC[0mESC[K
                ESC[JESC[?2026lESC[?2026hESC[7FESC[JESC[31m2026-11-23 18:42:03  FIRED      warning   dairy-temperature    baotou-yoghurt-room-1 t1: 11.90, limits 2.0 .. 6.0, since 18:32:03ESC[0m
                ESC[1m2026-11-23 18:41:30 (UTC+8)   4 units   1 alert is firingESC[0m
                ESC[2mUNIT                        PLACE      CATEGORY  STATE    TEMP C  LIMITS C        RH %  LAST SEENESC[0m
                hohhot-milk-room-1          Hohhot     dairy     ok         4.13  2.0 .. 6.0      71.2  18:41:03
                ESC[33mchifeng-lamb-room-1         赤峰       dairy     pending  -17.84  <= -18.0        71.2  18:41:03ESC[0m
                ESC[31mbaotou-yoghurt-room-1       Baotou     dairy     ALERT     11.90  2.0 .. 6.0      71.2  18:41:03ESC[0m
                ESC[2mordos-vaccine-box-1         Ordos      dairy     silent        -  2.0 .. 6.0         -  neverESC[0m
                ESC[2mreceived 120 = stored 115 + duplicate 3 + dead-lettered 1 + in flight 1ESC[0m
                ESC[?2026lESC[?2026hESC[7FESC[1m2026-11-23 18:42:30 (UTC+8)   4 units   1 alert is firingESC[0mESC[K
                ESC[2mUNIT                        PLACE      CATEGORY  STATE    TEMP C  LIMITS C        RH %  LAST SEENESC[0mESC[K
                hohhot-milk-room-1          Hohhot     dairy     ok         4.13  2.0 .. 6.0      71.2  18:41:03ESC[K
                ESC[33mchifeng-lamb-room-1         赤峰       dairy     pending  -17.84  <= -18.0        71.2  18:41:03ESC[0mESC[K
                ESC[31mbaotou-yoghurt-room-1       Baotou     dairy     ALERT     11.90  2.0 .. 6.0      71.2  18:41:03ESC[0mESC[K
                ESC[2mordos-vaccine-box-1         Ordos      dairy     silent        -  2.0 .. 6.0         -  neverESC[0mESC[K
                ESC[2mreceived 120 = stored 115 + duplicate 3 + dead-lettered 1 + in flight 1ESC[0mESC[K
                ESC[JESC[?2026l"#]],
        );
    }

    #[test]
    fn a_small_terminal_gets_the_troubled_units_first_and_fewer_columns() {
        check(
            live(false),
            |view| view.show(&snapshot("2026-11-23T10:41:30Z"), TerminalSize { columns: 70, rows: 8 }).unwrap(),
            expect![[r#"
                ESC[?2026h2026-11-23 18:41:30 (UTC+8)   4 units   1 alert is firingESC[K
                UNIT                        STATE    TEMP C  LIMITS C      LAST SEENESC[K
                baotou-yoghurt-room-1       ALERT     11.90  2.0 .. 6.0    18:41:03ESC[K
                ordos-vaccine-box-1         silent        -  2.0 .. 6.0    neverESC[K
                ... and 2 moreESC[K
                received 120 = 115 + 3 + 1 + 1ESC[K
                ESC[JESC[?2026l"#]],
        );
    }

    #[test]
    fn no_line_is_wider_than_the_terminal_and_a_narrowed_one_is_climbed_by_what_it_wrapped() {
        for columns in 1..130 {
            for line in table(&snapshot("2026-11-23T10:41:30Z"), Some(TerminalSize { columns, rows: 24 })) {
                assert!(width(&line.text) < columns, "{columns}: {}", line.text);
            }
        }
        let mut view = View::new(Vec::new(), live(false));
        view.show(&snapshot("2026-11-23T10:41:30Z"), WIDE).unwrap();
        view.out.clear();
        view.show(&snapshot("2026-11-23T10:41:31Z"), TerminalSize { columns: 50, rows: 24 }).unwrap();
        let text = String::from_utf8(view.out).unwrap();
        // Seven lines stood there: the heading of 61 columns, the head, four units and the account wrap once each.
        assert!(text.starts_with("\x1b[?2026h\x1b[14F"), "{text:?}");
    }

    #[test]
    fn a_hostile_name_cannot_move_the_cursor() {
        let mut alert = fired();
        alert.unit = "evil\x1b[2Jroom".to_owned();
        alert.sensor = Some("t1\r\n".to_owned());
        assert!(!alert_text(&alert).contains(char::is_control));
        let mut row = unit("evil\x1b[2Jroom", "place\n", UnitState::Ok, 1.0);
        row.category = "\u{7}".to_owned();
        assert!(!unit_line(&row, 120).text.contains(char::is_control));
    }

    #[test]
    fn the_summary_gives_the_account_of_the_whole() {
        let summary = DemoSummary {
            real_duration: Duration::from_secs(300),
            simulated_duration: Duration::from_secs(5 * 3_600),
            messages: 7_230,
            accounting: Accounting { received: 46_000, stored: 45_990, duplicate: 9, dead_lettered: 0, in_flight: 0 },
            alerts_fired: 3,
            alerts_resolved: 2,
            alerts_open: 1,
            worst_units: vec![
                WorstUnit {
                    unit: "chifeng-lamb-room-1".to_owned(),
                    place: "Chifeng".to_owned(),
                    alerts_fired: 2,
                    extreme_celsius: Some(2.21),
                    low_celsius: None,
                    high_celsius: Some(-18.0),
                },
                WorstUnit {
                    unit: "hohhot-milk-room-1".to_owned(),
                    place: "Hohhot".to_owned(),
                    alerts_fired: 1,
                    extreme_celsius: None,
                    low_celsius: Some(2.0),
                    high_celsius: Some(6.0),
                },
            ],
        };
        check(
            plain(),
            |view| view.finish(&summary).unwrap(),
            expect![[r#"

            ran      5 min 0 s, in which 5 h 0 min were simulated with 7230 messages
            readings received 46000 = stored 45990 + duplicate 9 + dead-lettered 0 + in flight 0  DOES NOT HOLD: 45999 on the right
            alerts   3 fired, 2 resolved, 1 still firing

            UNIT                        PLACE      ALERTS   WORST C  LIMITS C
            chifeng-lamb-room-1         Chifeng         2      2.21  <= -18.0
            hohhot-milk-room-1          Hohhot          1         -  2.0 .. 6.0
        "#]],
        );
    }
}
