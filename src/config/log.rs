//! `[log]`: what Harbor says of itself, how and where.

use std::path::PathBuf;

use tracing_subscriber::EnvFilter;

use super::{
    entry::{Entry, Problem},
    section::Section,
    value,
};

/// What is logged, how and where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Log {
    /// How.
    pub format: LogFormat,
    /// What: a level, or `level,harbor::discovery=debug`.
    pub level: String,
    /// Where the four component files go, beside standard output.
    pub directory: Option<PathBuf>,
}

/// How a line of the log is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    Text,
    /// For machines: one JSON object a line.
    Json,
}

impl Log {
    pub(super) fn read(mut section: Section<'_>) -> Self {
        let read = Self {
            format: section.get("format", format).unwrap_or(LogFormat::Text),
            level: section.get("level", level).unwrap_or_else(|| "info".into()),
            directory: section.get("directory", value::path),
        };
        section.finish();
        read
    }
}

fn format(entry: &Entry) -> Result<LogFormat, Problem> {
    match value::text(entry)?.as_str() {
        "text" => Ok(LogFormat::Text),
        "json" => Ok(LogFormat::Json),
        other => Err(entry.problem(format!("{other:?} is not a format: use text or json"))),
    }
}

fn level(entry: &Entry) -> Result<String, Problem> {
    const LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];
    let text = value::text(entry)?;
    // A filter takes a word that is no level for the name of a target, and shows all of that.
    let is_level = |part: &str| part.contains('=') || LEVELS.contains(&part.trim().to_lowercase().as_str());
    if !text.split(',').all(is_level) || EnvFilter::builder().parse(&text).is_err() {
        let levels = LEVELS.join(", ");
        return Err(
            entry.problem(format!("{text:?} is not a level: use one of {levels}, or \"info,harbor::discovery=debug\""))
        );
    }
    Ok(text)
}
