//! What each key is, and where that comes from.

use std::net::IpAddr;

use super::{
    Change, Default, KEYS, Key, Secret, Store,
    entry::{Entry, Origin, Table, Value},
};

/// Keys whose values are never shown.
const SECRETS: [&str; 3] = ["broker.password", "nats.password", "nats.token"];

/// What stands for one.
const HIDDEN: &str = "(hidden)";

/// A key, and what it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Explained {
    /// Its section, such as `harbor_node` or `pools.games`.
    pub section: String,
    /// Its name there.
    pub key: String,
    /// What holds, as it is given to `harbor config set`; none: nothing is set. Never a secret.
    pub value: Option<String>,
    /// Where that was written; none: it is the default.
    pub origin: Option<Origin>,
    /// What a live setting hides, and where that is written.
    pub beneath: Option<(Origin, Option<String>)>,
    /// What holds where it is not written: a value, or words that say which. None: nothing.
    pub default: Option<String>,
    /// When a change holds.
    pub change: Change,
}

/// Every key, those of pools and plans for each that there is, in the order of the documentation.
pub(super) fn explain(root: &Table, own_address: IpAddr) -> Vec<Explained> {
    let mut all = Vec::with_capacity(KEYS.len());
    let mut rest = KEYS;
    while let Some(first) = rest.first() {
        // One pool or plan after the other, each with all of its keys.
        let (section, _) = first.parts();
        let (of_section, others) = rest.split_at(rest.iter().take_while(|key| key.parts().0 == section).count());
        rest = others;
        match section.split_once(".NAME") {
            None => all.extend(of_section.iter().map(|key| one(root, key, section.to_owned(), own_address))),
            Some((family, _)) => {
                for name in names(root, family) {
                    let section = format!("{family}.{name}");
                    all.extend(of_section.iter().map(|key| one(root, key, section.clone(), own_address)));
                }
            }
        }
    }
    all
}

/// The same, and what live settings hide of what was `written` before them.
pub(super) fn explain_over(written: Vec<Explained>, root: &Table, own_address: IpAddr) -> Vec<Explained> {
    let mut all = explain(root, own_address);
    for key in all.iter_mut().filter(|key| matches!(key.origin, Some(Origin::Setting(_)))) {
        let before = written.iter().find(|before| (&before.section, &before.key) == (&key.section, &key.key));
        key.beneath = before.and_then(|before| Some((before.origin.clone()?, before.value.clone())));
    }
    all
}

/// The parts of a section's name: that of a pool or plan may have dots.
pub(super) fn parts(section: &str) -> Vec<&str> {
    match section.split_once('.') {
        Some((family @ ("pools" | "plans"), name)) => vec![family, name],
        _ => section.split('.').collect(),
    }
}

fn one(root: &Table, key: &Key, section: String, own_address: IpAddr) -> Explained {
    let (_, name) = key.parts();
    let default = match key.default {
        Default::Value(literal) => super::entry::parse(&format!("value = {literal}"), |_| Origin::Nowhere)
            .ok()
            .and_then(|table| table.get("value").and_then(text)),
        Default::Words(words) => Some(words.replace('`', "")),
        Default::Absent | Default::Needed => None,
    };
    let written = find(root, &section).and_then(|table| table.get(name));
    let shown = |entry: &Entry| match key.name {
        secret if SECRETS.contains(&secret) => Some(HIDDEN.to_owned()),
        "store.url" => text(entry).map(|url| Store { url: Secret::new(url), password: None }.to_string()),
        _ => text(entry),
    };
    let value = match (written, key.default) {
        (Some(entry), _) => shown(entry),
        (None, Default::Words(_)) if key.name == "harbor_node.host" => {
            let has_name = find(root, &section).is_some_and(|table| table.contains_key("hostname"));
            (!has_name).then(|| own_address.to_string())
        }
        (None, Default::Words(_)) => None,
        (None, _) => default.clone(),
    };
    let origin = written.map(|entry| entry.at.clone());
    Explained { section, key: name.to_owned(), value, origin, beneath: None, default, change: key.change }
}

/// The names in a family of sections.
fn names(root: &Table, family: &str) -> Vec<String> {
    let sections = root.get(family).and_then(|entry| match &entry.value {
        Value::Table(sections) => Some(sections),
        _ => None,
    });
    sections.into_iter().flat_map(|sections| sections.keys().cloned()).collect()
}

fn find<'a>(root: &'a Table, section: &str) -> Option<&'a Table> {
    parts(section).into_iter().try_fold(root, |table, part| match &table.get(part)?.value {
        Value::Table(table) => Some(table),
        // The first of a list of sections stands for all.
        Value::List(entries) => entries.iter().find_map(|entry| match &entry.value {
            Value::Table(table) => Some(table),
            _ => None,
        }),
        _ => None,
    })
}

/// A value as a variable would have it; none for what no variable can have.
fn text(entry: &Entry) -> Option<String> {
    match &entry.value {
        Value::Text(text) | Value::Variable(text) => Some(text.clone()),
        Value::Integer(number) => Some(number.to_string()),
        Value::Boolean(flag) => Some(flag.to_string()),
        Value::List(items) => Some(items.iter().filter_map(text).collect::<Vec<_>>().join(", ")),
        Value::Table(_) | Value::Other(_) => None,
    }
}
