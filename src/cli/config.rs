//! `harbor config …`

use std::{fmt::Write as _, path::PathBuf};

use anyhow::Context as _;
use clap::{Subcommand, builder::RangedU64ValueParser};
use hyper::Method;
use serde::Serialize;

use super::{
    FINE, Failure, Outcome, clean,
    operator::{Node, Reach},
    print,
};
use crate::admin::wire::{
    Beneath, CONFIG_PATH, Configuration, ConfigurationChange, ConfigurationChanged, ConfigurationKey, SettingChanged,
    SettingWanted, SettingsHistory,
};

/// Show the configuration, and change live settings for all nodes.
///
/// A live setting wins over file and environment of every node until it is unset. It is checked against the whole
/// configuration before it is kept, holds at once without a restart, and goes into a history with who and when. A key is
/// written in two words or with dots: `harbor_node port_range` or `harbor_node.port_range`.
#[derive(Debug, clap::Args)]
pub struct ConfigCommand {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Print the value of a key, or all keys of a section with their values.
    Get {
        /// The key: `harbor_node port_range` or `harbor_node.port_range`; or the section: `harbor_node`.
        #[arg(required = true, num_args = 1..=2, value_name = "KEY")]
        key: Vec<String>,

        #[command(flatten)]
        asked: Asked,
    },
    /// Set a key live, for all nodes.
    ///
    /// Lists have commas between their items, durations a unit; a value that begins with a hyphen comes after `--`. What is read
    /// at the start alone is refused.
    Set {
        /// The key and its value: `harbor_node port_range 35000-40000` or `harbor_node.port_range 35000-40000`.
        #[arg(required = true, num_args = 2..=3, value_name = "KEY VALUE")]
        key_and_value: Vec<String>,

        #[command(flatten)]
        asked: Asked,
    },
    /// Take a live setting back: file and environment hold again.
    Unset {
        /// The key: `harbor_node port_range` or `harbor_node.port_range`.
        #[arg(required = true, num_args = 1..=2, value_name = "KEY")]
        key: Vec<String>,

        #[command(flatten)]
        asked: Asked,
    },
    /// Show every key with its value, where that comes from, and its default.
    List {
        /// Only the keys of this section, such as `harbor_node` or `pools.games`.
        section: Option<String>,

        /// Only what is not the default.
        #[arg(long)]
        changed: bool,

        #[command(flatten)]
        asked: Asked,
    },
    /// Show what operators have changed for all nodes, the latest first: who, when, and to what.
    History {
        /// Only changes of this section, such as `harbor_node`, or of this key.
        #[arg(num_args = 0..=2, value_name = "KEY")]
        key: Vec<String>,

        /// The most changes to show.
        #[arg(long, value_name = "COUNT", default_value_t = 50, value_parser = RangedU64ValueParser::<usize>::new().range(1..))]
        limit: usize,

        #[command(flatten)]
        asked: Asked,
    },
}

#[derive(Debug, clap::Args)]
struct Asked {
    /// Print JSON.
    #[arg(long)]
    json: bool,

    #[command(flatten)]
    reach: Reach,
}

impl ConfigCommand {
    pub fn run(self, file: Option<PathBuf>) -> Outcome {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(async {
            match self.action {
                Action::Get { key, asked } => {
                    let mut all = Node::find(asked.reach, file)?.get::<Configuration>(CONFIG_PATH).await?;
                    if let [one] = &key[..]
                        && all.keys.iter().any(|known| known.section == *one)
                    {
                        all.keys.retain(|known| known.section == *one);
                        return show(asked.json, &all, |all| values(&all.keys));
                    }
                    let (section, key) = split(&key)?;
                    let found = all.keys.into_iter().find(|known| (&known.section, &known.key) == (&section, &key));
                    let found = found.ok_or_else(|| {
                        Failure::Usage(format!("there is no key {section}.{key}: `harbor config list` shows all"))
                    })?;
                    show(asked.json, &found, |found| format!("{}\n", clean(found.value.as_deref().unwrap_or_default())))
                }
                Action::Set { mut key_and_value, asked } => {
                    let value = key_and_value.pop();
                    change(&key_and_value, value, asked, file).await
                }
                Action::Unset { key, asked } => change(&key, None, asked, file).await,
                Action::List { section, changed, asked } => {
                    let mut all = Node::find(asked.reach, file)?.get::<Configuration>(CONFIG_PATH).await?;
                    if let Some(section) = &section {
                        all.keys.retain(|key| key.section == *section);
                        if all.keys.is_empty() {
                            return Err(Failure::Usage(format!(
                                "there is no section {section:?}: `harbor config list` shows all"
                            )));
                        }
                    }
                    if changed {
                        all.keys.retain(|key| key.source != "default");
                    }
                    show(asked.json, &all, |all| table(&all.keys))
                }
                Action::History { key, limit, asked } => {
                    let path =
                        format!("{CONFIG_PATH}/history?limit={}", if key.is_empty() { limit } else { usize::MAX });
                    let mut history = Node::find(asked.reach, file)?.get::<SettingsHistory>(&path).await?;
                    history.changes.retain(|change| is_asked_for(change, &key));
                    history.changes.truncate(limit);
                    show(asked.json, &history, |history| changes(&history.changes))
                }
            }
        })
    }
}

/// The section and the key, from two words or one with dots.
fn split(words: &[String]) -> Result<(String, String), Failure> {
    match words {
        [section, key] => Ok((section.clone(), key.clone())),
        [dotted] if dotted.contains('.') => {
            let (section, key) = dotted.rsplit_once('.').expect("it has a dot");
            Ok((section.to_owned(), key.to_owned()))
        }
        _ => Err(Failure::Usage(
            "which key? Write for example `harbor_node port_range` or `harbor_node.port_range`".into(),
        )),
    }
}

async fn change(words: &[String], value: Option<String>, asked: Asked, file: Option<PathBuf>) -> Outcome {
    let (section, key) = split(words)?;
    let node = Node::find(asked.reach, file)?;
    let wanted = ConfigurationChange { changes: vec![SettingWanted { section, key, value }] };
    let changed = node.ask_with::<ConfigurationChanged>(Method::PATCH, CONFIG_PATH, &wanted).await?;
    show(asked.json, &changed, said)
}

fn said(changed: &ConfigurationChanged) -> String {
    let line = |key: &ConfigurationKey| {
        format!("{}.{} is {} ({})\n", clean(&key.section), clean(&key.key), value_of(key), source_of(key))
    };
    let mut text = changed.keys.iter().map(line).collect::<String>();
    if !changed.lagging.is_empty() {
        let lagging = changed.lagging.iter().map(|node| clean(node)).collect::<Vec<_>>().join(", ");
        let _ = writeln!(text, "  ! not heard by {lagging} yet: see `harbor node list`");
    }
    for warning in &changed.warnings {
        let _ = writeln!(text, "  ! {}", clean(warning));
    }
    text
}

fn show<T: Serialize>(json: bool, told: &T, words: impl Fn(&T) -> String) -> Outcome {
    let text = if json {
        serde_json::to_string_pretty(told).context("an answer can be written as JSON").map_err(Failure::Problem)? + "\n"
    } else {
        words(told)
    };
    print(&text)?;
    Ok(FINE)
}

fn value_of(key: &ConfigurationKey) -> String {
    match key.value.as_deref() {
        Some("") => "\"\"".into(),
        Some(value) => clean(value),
        None => "-".into(),
    }
}

fn source_of(key: &ConfigurationKey) -> String {
    let mut source = clean(&key.source);
    if let Some(place) = &key.place {
        let _ = write!(source, " {}", clean(place));
    }
    if let (Some(by), Some(at)) = (&key.changed_by, &key.changed_at) {
        let _ = write!(source, " by {} at {}", clean(by), clean(at));
    }
    if let Some(Beneath { value, place }) = &key.beneath {
        let _ = write!(source, "; {} says {}", clean(place), value.as_deref().map_or("another".into(), clean));
    }
    if let Some(value) = &key.after_restart {
        let _ = write!(source, "; after a restart: {}", clean(value));
    }
    source
}

/// A line a key, with its value alone.
fn values(keys: &[ConfigurationKey]) -> String {
    let line = |key: &ConfigurationKey| {
        let line = format!("{}: {}", clean(&key.key), clean(key.value.as_deref().unwrap_or_default()));
        format!("{}\n", line.trim_end())
    };
    keys.iter().map(line).collect()
}

/// A line a key.
fn table(keys: &[ConfigurationKey]) -> String {
    let rows = keys.iter().map(|key| {
        let name = format!("{}.{}", clean(&key.section), clean(&key.key));
        let default = key.default.as_deref().map_or_else(|| "-".into(), clean);
        [name, value_of(key), default, source_of(key)]
    });
    aligned(["KEY", "VALUE", "DEFAULT", "SOURCE"], rows.collect())
}

/// A line a change.
fn changes(history: &[SettingChanged]) -> String {
    if history.is_empty() {
        return "Nothing was changed.\n".into();
    }
    let rows = history.iter().map(|change| {
        let value = change.value.as_deref().map_or_else(|| "unset".into(), clean);
        let key = format!("{}.{}", clean(&change.section), clean(&change.key));
        [change.at.clone(), clean(&change.by), key, value]
    });
    aligned(["WHEN", "WHO", "KEY", "VALUE"], rows.collect())
}

/// Columns as wide as what is in them, the last as it comes.
fn aligned<const N: usize>(heads: [&str; N], rows: Vec<[String; N]>) -> String {
    let rows = std::iter::once(heads.map(str::to_owned)).chain(rows).collect::<Vec<_>>();
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths = std::array::from_fn::<_, N, _>(width);
    let mut text = String::new();
    for row in &rows {
        let line = row.iter().zip(widths).map(|(cell, width)| format!("{cell:<width$}")).collect::<Vec<_>>();
        text.push_str(line.join("  ").trim_end());
        text.push('\n');
    }
    text
}

fn is_asked_for(change: &SettingChanged, key: &[String]) -> bool {
    match key {
        [] => true,
        [section, key] => (&change.section, &change.key) == (section, key),
        [one, ..] => change.section == *one || format!("{}.{}", change.section, change.key) == *one,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_is_told_with_who_has_not_heard_of_it() {
        let key = ConfigurationKey {
            section: "log".into(),
            key: "level".into(),
            value: Some("debug".into()),
            source: "live".into(),
            place: None,
            beneath: Some(Beneath { value: Some("warn".into()), place: "harbor.toml:3:1".into() }),
            default: Some("info".into()),
            change: "live".into(),
            after_restart: None,
            changed_by: Some("root@a".into()),
            changed_at: Some("2026-11-21T09:15:18Z".into()),
        };
        let told = |lagging: &[&str]| {
            let lagging = lagging.iter().map(ToString::to_string).collect();
            let warnings = vec!["a port stands twice".into()];
            said(&ConfigurationChanged { keys: vec![key.clone()], lagging, warnings })
        };
        let line = "log.level is debug (live by root@a at 2026-11-21T09:15:18Z; harbor.toml:3:1 says warn)\n";
        let warning = "  ! a port stands twice\n";
        assert_eq!(told(&[]), format!("{line}{warning}"));
        assert_eq!(told(&["b", "c"]), format!("{line}  ! not heard by b, c yet: see `harbor node list`\n{warning}"));
    }
}
