//! Reads TOML tables key by key and collects every problem, each with its file, line and key, instead of stopping at the
//! first.

use std::cell::RefCell;
use std::ops::Range;
use std::path::{Path, PathBuf};

use frostline_core::model::Timestamp;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::{Problem, parse_duration_ms};

/// One configuration file and what is wrong with it so far.
#[derive(Debug)]
pub(crate) struct Source {
    file: PathBuf,
    text: String,
    problems: RefCell<Vec<Problem>>,
}

impl Source {
    /// Takes a text as the content of a file.
    pub(crate) fn new(file: &Path, text: &str) -> Self {
        Self { file: file.to_owned(), text: text.to_owned(), problems: RefCell::default() }
    }

    /// Parses the text and hands its top level to `read`; then returns what it made of it.
    pub(crate) fn parse<T: Default>(self, problems: &mut Vec<Problem>, read: impl FnOnce(&mut Section<'_>) -> T) -> T {
        let made = match DeTable::parse(&self.text) {
            Ok(table) => {
                let mut top = Section::new(&self, String::new(), table.span(), table.get_ref());
                let made = read(&mut top);
                top.finish();
                made
            }
            Err(error) => {
                self.problems.borrow_mut().push(Problem::from_toml(&self.file, &self.text, &error));
                T::default()
            }
        };
        problems.extend(self.problems.into_inner());
        made
    }
}

/// One table of a file, with the keys that have been asked for.
pub(crate) struct Section<'a> {
    source: &'a Source,
    /// The dotted name of the table, empty for the top level.
    name: String,
    span: Range<usize>,
    table: &'a DeTable<'a>,
    asked: Vec<&'static str>,
    knows_all: bool,
}

impl<'a> Section<'a> {
    fn new(source: &'a Source, name: String, span: Range<usize>, table: &'a DeTable<'a>) -> Self {
        Self { source, name, span, table, asked: Vec::new(), knows_all: false }
    }

    fn dotted(&self, key: &str) -> String {
        if self.name.is_empty() { key.to_owned() } else { format!("{}.{key}", self.name) }
    }

    fn problem_at(&self, span: Range<usize>, key: &str, message: impl Into<String>) {
        let key = if key.is_empty() { self.name.clone() } else { self.dotted(key) };
        let problem = Problem::at(&self.source.file, &self.source.text, Some(span), &key, message);
        self.source.problems.borrow_mut().push(problem);
    }

    /// Notes a problem with a key, at its line where it is given, else at the table's.
    pub(crate) fn problem(&self, key: &str, message: impl Into<String>) {
        let span = self.table.get(key).map_or_else(|| self.span.clone(), |value| value.span());
        self.problem_at(span, key, message);
    }

    /// Returns whether a key is given.
    pub(crate) fn has(&self, key: &str) -> bool {
        self.table.contains_key(key)
    }

    fn value(&mut self, key: &'static str) -> Option<&'a Spanned<DeValue<'a>>> {
        if !self.asked.contains(&key) {
            self.asked.push(key);
        }
        self.table.get(key)
    }

    /// Takes a value by `take`, or notes that something else was `expected`.
    fn take<T>(
        &mut self,
        key: &'static str,
        expected: &str,
        take: impl FnOnce(&'a DeValue<'a>) -> Option<T>,
    ) -> Option<T> {
        let value = self.value(key)?;
        let taken = take(value.get_ref());
        if taken.is_none() {
            let found = &self.source.text[value.span()];
            self.problem_at(value.span(), key, format!("expected {expected}, found `{}`", found.trim()));
        }
        taken
    }

    /// Notes a problem where a key is not given.
    pub(crate) fn require(&mut self, key: &'static str, expected: &str) {
        if self.value(key).is_none() {
            self.problem(key, format!("expected {expected}, found nothing"));
            // Whoever reads may stop here, and so not have asked for every key that there may be.
            self.knows_all = true;
        }
    }

    /// Returns a text.
    pub(crate) fn text(&mut self, key: &'static str) -> Option<String> {
        self.take(key, "a text in quotes", |value| value.as_str().map(str::to_owned))
    }

    /// Returns a text that `parse` accepts.
    pub(crate) fn word<T>(
        &mut self,
        key: &'static str,
        expected: &str,
        parse: impl FnOnce(&str) -> Option<T>,
    ) -> Option<T> {
        self.take(key, expected, |value| value.as_str().and_then(parse))
    }

    /// Returns a list of texts; a single text stands for a list of one.
    pub(crate) fn texts(&mut self, key: &'static str) -> Option<Vec<String>> {
        self.take(key, "a list of texts in quotes", |value| match value {
            DeValue::String(text) => Some(vec![text.to_string()]),
            DeValue::Array(items) => items.iter().map(|item| item.get_ref().as_str().map(str::to_owned)).collect(),
            _ => None,
        })
    }

    /// Returns a finite number.
    pub(crate) fn number(&mut self, key: &'static str) -> Option<f64> {
        self.take(key, "a number", number_of)
    }

    /// Returns a whole number that is not below zero.
    pub(crate) fn count(&mut self, key: &'static str) -> Option<u32> {
        self.take(key, "a whole number", |value| match value {
            DeValue::Integer(integer) if integer.radix() == 10 => integer.as_str().replace('_', "").parse().ok(),
            _ => None,
        })
    }

    /// Returns a number; `true` stands for 1 and `false` for 0.
    pub(crate) fn number_or_flag(&mut self, key: &'static str) -> Option<f64> {
        self.take(key, "a number, true or false", |value| match value {
            DeValue::Boolean(flag) => Some(if *flag { 1.0 } else { 0.0 }),
            other => number_of(other),
        })
    }

    /// Returns `true` or `false`.
    pub(crate) fn flag(&mut self, key: &'static str) -> Option<bool> {
        self.take(key, "true or false", DeValue::as_bool)
    }

    /// Returns a duration in milliseconds.
    pub(crate) fn duration_ms(&mut self, key: &'static str) -> Option<i64> {
        let expected = "a duration such as \"250ms\", \"90s\", \"5m\", \"24h\" or \"7d\"";
        self.word(key, expected, |text| parse_duration_ms(text).ok())
    }

    /// Returns an instant, written as a text or as TOML's own kind of time.
    pub(crate) fn time(&mut self, key: &'static str) -> Option<Timestamp> {
        self.take(key, "a time with an offset such as 2026-11-23T10:00:00Z", |value| match value {
            DeValue::String(text) => Timestamp::parse_rfc3339(text).ok(),
            DeValue::Datetime(time) => Timestamp::parse_rfc3339(&time.to_string()).ok(),
            _ => None,
        })
    }

    /// Returns a table.
    pub(crate) fn section(&mut self, key: &'static str) -> Option<Section<'a>> {
        let (source, name) = (self.source, self.dotted(key));
        let span = self.value(key)?.span();
        let table = self.take(key, "a table", DeValue::as_table)?;
        Some(Section::new(source, name, span, table))
    }

    /// Returns the tables of a list, in order.
    pub(crate) fn sections(&mut self, key: &'static str) -> Vec<Section<'a>> {
        let (source, name) = (self.source, self.dotted(key));
        let tables = self.take(key, "a list of tables", |value| {
            let items = value.as_array()?.iter();
            let tables = items.map(|item| {
                let table = item.get_ref().as_table()?;
                Some(Section::new(source, name.clone(), item.span(), table))
            });
            tables.collect::<Option<Vec<_>>>()
        });
        tables.unwrap_or_default()
    }

    /// Returns whether a key holds a list.
    pub(crate) fn is_list(&self, key: &str) -> bool {
        self.table.get(key).is_some_and(|value| value.get_ref().is_array())
    }

    /// Returns a date or time as it is written.
    pub(crate) fn date_text(&mut self, key: &'static str) -> Option<String> {
        self.take(key, "a date such as 2027-03-01", |value| match value {
            DeValue::String(text) => Some(text.to_string()),
            DeValue::Datetime(time) => Some(time.to_string()),
            _ => None,
        })
    }

    /// Treats all keys as known, after a problem was noted that makes them meaningless.
    pub(crate) fn ignore_unknown(&mut self) {
        self.knows_all = true;
    }

    /// Returns every key with its text; all keys are known then.
    pub(crate) fn all_texts(&mut self) -> Vec<(String, String)> {
        let mut texts = Vec::new();
        for (key, value) in self.table {
            match value.get_ref().as_str() {
                Some(text) => texts.push((key.get_ref().to_string(), text.to_owned())),
                None => self.problem_at(value.span(), key.get_ref(), "expected a text in quotes"),
            }
        }
        texts
    }

    /// Notes every key that was not asked for.
    pub(crate) fn finish(self) {
        for key in self.table.keys() {
            let word: &str = key.get_ref();
            if !self.knows_all && !self.asked.contains(&word) {
                let message = format!("unknown key; expected one of {}", self.asked.join(", "));
                self.problem_at(key.span(), word, message);
            }
        }
    }
}

fn number_of(value: &DeValue<'_>) -> Option<f64> {
    let digits = match value {
        DeValue::Float(float) => float.as_str().replace('_', ""),
        DeValue::Integer(integer) if integer.radix() == 10 => integer.as_str().replace('_', ""),
        _ => return None,
    };
    digits.parse::<f64>().ok().filter(|number| number.is_finite())
}
