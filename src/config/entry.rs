//! The file and the environment as one tree, each value with the place it was written at.

use std::{collections::BTreeMap, fmt, sync::Arc};

use toml::{
    Spanned,
    de::{DeTable, DeValue},
};

use super::{Change, Key};
use crate::model::setting::Setting;

/// What every variable that overrides a key begins with.
pub const VARIABLE_PREFIX: &str = "HARBOR_";

/// What separates the sections and the key in the name of a variable; a single underscore belongs to a name.
pub const VARIABLE_SEPARATOR: &str = "__";

/// Where something was written.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Origin {
    /// Nowhere: there is no file.
    Nowhere,
    /// In a file, as a whole.
    File(Arc<str>),
    /// In a file, at a line and column, both from 1.
    Place(Arc<str>, usize, usize),
    /// In an environment variable.
    Variable(Arc<str>),
    /// In a live setting, `section.key`.
    Setting(Arc<str>),
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Nowhere => f.write_str("configuration"),
            Self::File(file) => f.write_str(file),
            Self::Place(file, line, column) => write!(f, "{file}:{line}:{column}"),
            Self::Variable(name) => f.write_str(name),
            Self::Setting(name) => write!(f, "live setting {name}"),
        }
    }
}

/// Something that is wrong with a configuration, and where.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Problem {
    /// Where.
    pub at: Origin,
    /// What, and what to do about it. Never a secret.
    pub message: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.at, self.message)
    }
}

/// A value with the places of its key and of itself. It may be a password: it has no debug output.
#[derive(Clone)]
pub struct Entry {
    pub key_at: Origin,
    pub at: Origin,
    pub value: Value,
}

/// Sections and keys by name.
pub type Table = BTreeMap<String, Entry>;

/// A value as it was written.
#[derive(Clone)]
pub enum Value {
    Text(String),
    Integer(i64),
    Boolean(bool),
    List(Vec<Entry>),
    Table(Table),
    /// The text of a variable: whoever reads it knows of what kind it must be.
    Variable(String),
    /// Of a kind that no key takes.
    Other(&'static str),
}

impl Entry {
    /// Refuses this value.
    pub fn problem(&self, message: impl Into<String>) -> Problem {
        Problem { at: self.at.clone(), message: message.into() }
    }
}

impl Value {
    /// What to call it in a message.
    pub const fn kind(&self) -> &'static str {
        match self {
            Self::Text(_) | Self::Variable(_) => "text",
            Self::Integer(_) => "a whole number",
            Self::Boolean(_) => "true or false",
            Self::List(_) => "a list",
            Self::Table(_) => "a section",
            Self::Other(kind) => kind,
        }
    }
}

/// Parses TOML; `origin` tells the place of a byte offset.
///
/// # Errors
/// Everything that is not TOML.
pub fn parse(text: &str, origin: impl Fn(usize) -> Origin) -> Result<Table, Vec<Problem>> {
    let (table, errors) = DeTable::parse_recoverable(text);
    if errors.is_empty() {
        return Ok(read_table(table.get_ref(), &origin));
    }
    let place = |error: &toml::de::Error| origin(error.span().map_or(text.len(), |span| span.start));
    Err(errors
        .iter()
        .map(|error| Problem { at: place(error), message: format!("this is not TOML: {}", error.message()) })
        .collect())
}

/// Tells places of `text`, which was read from `file`.
pub fn places<'a>(file: &'a Arc<str>, text: &'a str) -> impl Fn(usize) -> Origin + 'a {
    move |offset| {
        let before = text.get(..offset).unwrap_or(text);
        let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
        let line = before.matches('\n').count() + 1;
        Origin::Place(Arc::clone(file), line, before[line_start..].chars().count() + 1)
    }
}

fn read_table(table: &DeTable<'_>, origin: &impl Fn(usize) -> Origin) -> Table {
    let entry = |(key, value): (&Spanned<_>, _)| {
        let key_at = origin(key.span().start);
        (std::borrow::Cow::to_string(key.get_ref()), Entry { key_at, ..read_value(value, origin) })
    };
    table.iter().map(entry).collect()
}

fn read_value(value: &Spanned<DeValue<'_>>, origin: &impl Fn(usize) -> Origin) -> Entry {
    let at = origin(value.span().start);
    let read = match value.get_ref() {
        DeValue::String(text) => Value::Text(text.to_string()),
        DeValue::Integer(number) => i64::from_str_radix(number.as_str(), number.radix())
            .map_or(Value::Other("a number beyond all limits"), Value::Integer),
        DeValue::Boolean(flag) => Value::Boolean(*flag),
        DeValue::Array(items) => Value::List(items.iter().map(|item| read_value(item, origin)).collect()),
        DeValue::Table(table) => Value::Table(read_table(table, origin)),
        DeValue::Float(_) => Value::Other("a fraction"),
        DeValue::Datetime(_) => Value::Other("a date"),
    };
    Entry { key_at: at.clone(), at, value: read }
}

/// Lays `HARBOR_<SECTION>__<KEY>` variables over a tree; other variables are not looked at.
pub fn overlay(root: &mut Table, variables: &[(String, String)]) {
    for (name, text) in variables {
        let Some(rest) = name.strip_prefix(VARIABLE_PREFIX).filter(|rest| rest.contains(VARIABLE_SEPARATOR)) else {
            continue;
        };
        let origin = Origin::Variable(name.as_str().into());
        let (sections, key) = rest.rsplit_once(VARIABLE_SEPARATOR).expect("it contains the separator");
        let table = sections.split(VARIABLE_SEPARATOR).fold(&mut *root, |table, section| {
            let name = matching_name(table, section);
            section_in(table, name, &origin)
        });
        let entry = Entry { key_at: origin.clone(), at: origin, value: Value::Variable(text.clone()) };
        table.insert(matching_name(table, key), entry);
    }
}

/// Lays live settings over a tree. A pool or plan that the file does not have is not made by them: another node's file has
/// it. One that only a later version knows is left out.
pub fn overlay_settings(root: &mut Table, settings: &[Setting]) {
    for Setting { scope, key, value, .. } in settings {
        let (Some(text), parts) = (value, super::explain::parts(scope)) else { continue };
        let is_live = Key::of(scope, key).is_some_and(|key| key.change == Change::Live);
        let is_there = match parts[..] {
            [family @ ("pools" | "plans"), name] => {
                matches!(root.get(family).map(|entry| &entry.value), Some(Value::Table(all)) if all.contains_key(name))
            }
            _ => true,
        };
        if !(is_live && is_there) {
            continue;
        }
        let origin = Origin::Setting(format!("{scope}.{key}").into());
        let table = parts.iter().fold(&mut *root, |table, section| section_in(table, (*section).into(), &origin));
        let entry = Entry { key_at: origin.clone(), at: origin, value: Value::Variable(text.clone()) };
        table.insert(key.clone(), entry);
    }
}

/// The section of that name, made where it is missing.
fn section_in<'a>(table: &'a mut Table, name: String, origin: &Origin) -> &'a mut Table {
    let made = || Entry { key_at: origin.clone(), at: origin.clone(), value: Value::Table(Table::new()) };
    let entry = table.entry(name).or_insert_with(made);
    if !matches!(entry.value, Value::Table(_)) {
        *entry = made();
    }
    match &mut entry.value {
        Value::Table(table) => table,
        _ => unreachable!("it has just been made one"),
    }
}

/// The name in `table` that a part of a variable's name stands for: variables have neither lower case nor dashes.
fn matching_name(table: &Table, part: &str) -> String {
    let part = part.to_lowercase();
    table.keys().find(|name| name.to_lowercase().replace('-', "_") == part).cloned().unwrap_or(part)
}
