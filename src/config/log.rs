//! `[log]`: what Harbor says of itself, how and where.

use super::{
    entry::{Entry, Problem},
    section::Section,
    value,
};
use crate::telemetry::log::{Format, Settings, filter};

pub(super) fn read(mut section: Section<'_>) -> Settings {
    let settings = Settings {
        format: section.get("format", format).unwrap_or(Format::Text),
        level: section.get("level", level).unwrap_or_else(|| "info".into()),
        directory: section.get("directory", value::path),
    };
    section.finish();
    settings
}

fn format(entry: &Entry) -> Result<Format, Problem> {
    match value::text(entry)?.as_str() {
        "text" => Ok(Format::Text),
        "json" => Ok(Format::Json),
        other => Err(entry.problem(format!("{other:?} is not a format: use text or json"))),
    }
}

fn level(entry: &Entry) -> Result<String, Problem> {
    let text = value::text(entry)?;
    filter(&text).map_err(|error| entry.problem(error.to_string()))?;
    Ok(text)
}
