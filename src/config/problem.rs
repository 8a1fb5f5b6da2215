use std::fmt;
use std::path::{Path, PathBuf};

/// One thing wrong with the configuration: where it stands, and what was expected instead.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// The file, or where else the value came from (`environment`).
    pub file: PathBuf,
    /// The line in it, counted from 1, where one can be named.
    pub line: Option<usize>,
    /// The key, dotted: `rule.for`, `mqtt.url`.
    pub key: String,
    /// What is wrong, and what is expected; lowercase, no full stop.
    pub message: String,
}

impl Problem {
    /// Describes a problem at a byte range of `text`, the content of `file`.
    pub fn at(
        file: &Path,
        text: &str,
        span: Option<std::ops::Range<usize>>,
        key: &str,
        message: impl Into<String>,
    ) -> Self {
        let line = span.map(|span| line_of(text, span.start));
        Self { file: file.to_owned(), line, key: key.to_owned(), message: message.into() }
    }

    /// Turns what the TOML parser says (a syntax error, an unknown key, a wrong type) into a problem.
    pub fn from_toml(file: &Path, text: &str, error: &toml::de::Error) -> Self {
        let key = error.span().and_then(|span| text.get(span)).unwrap_or_default();
        let key = key.lines().next().unwrap_or_default().trim();
        Self::at(file, text, error.span(), key, error.message().replace('\n', "; "))
    }
}

/// Returns the line, counted from 1, that holds byte `position` of `text`.
pub fn line_of(text: &str, position: usize) -> usize {
    text.as_bytes().iter().take(position).filter(|byte| **byte == b'\n').count() + 1
}

/// `config/rules.toml:12: rule.for: expected a duration such as 10m, found "soon"`
impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.file.display())?;
        if let Some(line) = self.line {
            write!(f, ":{line}")?;
        }
        if !self.key.is_empty() {
            write!(f, ": {}", self.key)?;
        }
        write!(f, ": {}", self.message)
    }
}
