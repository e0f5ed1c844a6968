//! Live settings: what operators ask for is checked against the whole configuration of this node, kept in the store, and
//! taken over here and by every other node.

use std::{collections::BTreeSet, sync::Arc};

use super::reload::{self, Reloadable};
use crate::{
    admin::{
        SettingsError, SettingsRequest,
        wire::{self, ConfigurationKey},
    },
    config::{self, Change, Config, DEFAULT_POOL, Explained, Key, Origin, Sources},
    control::{Disagreement, ReloadRefusal, SettingsRefusal},
    model::{
        Revision,
        setting::{BLOCKED, SUSPENDED, Setting, SettingChange},
    },
};

/// Longest value of a live setting, in bytes.
const MAX_VALUE_BYTES: usize = 4096;

/// How often a change is tried while others change settings too.
const MAX_ATTEMPTS: usize = 4;

/// Those of the configuration.
pub(super) fn of_configuration(settings: &[Setting]) -> Vec<Setting> {
    let is_key = |setting: &&Setting| ![SUSPENDED, BLOCKED].contains(&setting.scope.as_str());
    settings.iter().filter(is_key).cloned().collect()
}

/// The sources with these live settings.
pub(super) fn with_settings(sources: &Sources, settings: &[Setting]) -> Sources {
    Sources { settings: of_configuration(settings), ..sources.clone() }
}

/// Changes what an operator asks for, and says what has come of it. Who asked may have gone.
pub(super) async fn change(asked: SettingsRequest, running: &mut Config, reach: &Reloadable<'_>) {
    let SettingsRequest { changes, who, reply } = asked;
    let before = running.warnings.clone();
    let outcome = try_change(&changes, &who, running, reach).await;
    let outcome = outcome.map(|()| {
        let is_changed = |key: &&ConfigurationKey| {
            changes.iter().any(|change| (&change.scope, &change.key) == (&key.section, &key.key))
        };
        let warnings = running.warnings.iter().filter(|warning| !before.contains(warning)).cloned();
        wire::ConfigurationChanged {
            keys: reach.configuration.borrow().iter().filter(is_changed).cloned().collect(),
            lagging: Vec::new(),
            warnings: warnings.collect(),
        }
    });
    let _ = reply.send(outcome);
}

async fn try_change(
    changes: &[SettingChange],
    who: &str,
    running: &mut Config,
    reach: &Reloadable<'_>,
) -> Result<(), SettingsError> {
    check_keys(changes)?;
    let away = || SettingsError::Unavailable("the store is away: try again in a few seconds".into());
    for _ in 0..MAX_ATTEMPTS {
        let (read_at, present) = reach.control.read_settings().await.map_err(|_| away())?;
        let wanted = laid_over(&present, changes)?;
        let (config, explained) = config::load_from(reach.text().as_ref(), &with_settings(reach.sources, &wanted))
            .map_err(|error| SettingsError::Refused(error.to_string().replace('\n', "; ")))?;
        check_reach(changes, &config, &explained)?;
        reach.control.check_reload(&config.node.pools).await.map_err(refused)?;
        match reach.control.change_settings(changes, who, read_at).await {
            Ok(revision) => {
                if reach.control.desired().borrow().revision < revision {
                    return Err(SettingsError::Unavailable(
                        "it is set, and holds here as soon as this node can read the store again".into(),
                    ));
                }
                let Err(reason) = reload::take_over_settings(running, reach).await else { return Ok(()) };
                // Something else has changed since it was checked.
                return Err(SettingsError::Conflict(match take_back(changes, &present, who, revision, reach).await {
                    Ok(()) => format!("it was taken back, since {reason}"),
                    Err(refusal) => format!(
                        "it is set, though this node cannot take it over, since {reason}; and it could not be taken back, \
                         since {refusal}"
                    ),
                }));
            }
            Err(SettingsRefusal::Contended) => {}
            Err(SettingsRefusal::Fault(_)) => return Err(away()),
            Err(refusal @ SettingsRefusal::TooMany) => return Err(SettingsError::Conflict(refusal.to_string())),
        }
    }
    Err(SettingsError::Conflict(SettingsRefusal::Contended.to_string()))
}

/// Whether each is of what this node can judge: what it does not have it would store unread, for those who do.
fn check_reach(changes: &[SettingChange], config: &Config, explained: &[Explained]) -> Result<(), SettingsError> {
    for SettingChange { scope, key, .. } in changes.iter().filter(|change| change.value.is_some()) {
        let is_there = explained.iter().any(|known| (&known.section, &known.key) == (scope, key));
        if !is_there && scope.strip_prefix("pools.") == Some(DEFAULT_POOL) {
            return Err(SettingsError::Refused(format!(
                "the pool {DEFAULT_POOL} is that of [harbor_node]: set harbor_node.{key}"
            )));
        }
        if !is_there {
            return Err(SettingsError::Conflict(format!(
                "this node has no [{scope}] in its configuration: ask a node that has"
            )));
        }
        let is_of_a_pool = Key::of("pools.NAME", key).is_some();
        let Some(pool) = config::pool_of(scope).filter(|_| is_of_a_pool) else { continue };
        if !config.node.pools.iter().any(|served| served.name.as_str() == pool) {
            return Err(SettingsError::Conflict(format!(
                "this node does not serve the pool {pool}: ask a node that does"
            )));
        }
    }
    Ok(())
}

/// Has what was there before again, unless somebody has changed it since.
async fn take_back(
    changes: &[SettingChange],
    before: &[Setting],
    who: &str,
    read_at: Revision,
    reach: &Reloadable<'_>,
) -> Result<(), SettingsRefusal> {
    let former = |change: &SettingChange| {
        let known = before.iter().find(|known| (&known.scope, &known.key) == (&change.scope, &change.key));
        SettingChange { value: known.and_then(|known| known.value.clone()), ..change.clone() }
    };
    let former = changes.iter().map(former).collect::<Vec<_>>();
    let taken_back = reach.control.change_settings(&former, &format!("harbor, for {who}"), read_at).await;
    if let Err(refusal) = &taken_back {
        let changes = changes.iter().map(|change| format!("{}.{}", change.scope, change.key)).collect::<Vec<_>>();
        let changes = changes.join(", ");
        tracing::error!(%refusal, changes, "live settings that cannot be taken over were not taken back");
    }
    taken_back.map(drop)
}

fn refused(refusal: ReloadRefusal) -> SettingsError {
    match refusal {
        ReloadRefusal::Pools(Disagreement::Fault(_)) => {
            SettingsError::Unavailable("the store is away: try again in a few seconds".into())
        }
        other => SettingsError::Conflict(other.to_string()),
    }
}

/// Those of the configuration, for messages: live settings hold no secrets.
pub(super) fn told(settings: &[Setting]) -> String {
    let told = of_configuration(settings).into_iter().map(|Setting { scope, key, value, .. }| {
        let value = value.unwrap_or_default();
        format!("{scope}.{key} = {value:?}")
    });
    told.collect::<Vec<_>>().join(", ")
}

/// Whether each is a key that can be changed live, once.
fn check_keys(changes: &[SettingChange]) -> Result<(), SettingsError> {
    let mut seen = BTreeSet::new();
    for SettingChange { scope, key, value } in changes {
        let Some(known) = Key::of(scope, key) else {
            return Err(SettingsError::Refused(format!(
                "there is no key {scope}.{key}: `harbor config list` shows all"
            )));
        };
        match known.change {
            Change::Live => {}
            Change::Reload => {
                return Err(SettingsError::Refused(format!(
                    "{scope}.{key} cannot be changed so: change it in the file or the environment, and send SIGHUP"
                )));
            }
            Change::Restart => {
                return Err(SettingsError::Refused(format!(
                    "{scope}.{key} is read at the start alone: change it in the file or the environment, and restart Harbor"
                )));
            }
        }
        if value.as_ref().is_some_and(|value| value.len() > MAX_VALUE_BYTES) {
            return Err(SettingsError::Refused(format!("{scope}.{key}: this has more than {MAX_VALUE_BYTES} bytes")));
        }
        if !seen.insert((scope, key)) {
            return Err(SettingsError::Refused(format!("{scope}.{key} stands twice in this change")));
        }
    }
    Ok(())
}

/// The settings as they would be.
fn laid_over(present: &[Setting], changes: &[SettingChange]) -> Result<Vec<Setting>, SettingsError> {
    let mut wanted = present.to_vec();
    for SettingChange { scope, key, value } in changes {
        let before = wanted.iter().position(|known| (&known.scope, &known.key) == (scope, key));
        let before = before.map(|index| wanted.remove(index));
        match (value, before) {
            (None, None) => {
                return Err(SettingsError::Conflict(format!(
                    "{scope}.{key} is not set live: `harbor config get {scope} {key}` says where it comes from"
                )));
            }
            (None, Some(_)) => {}
            (Some(value), _) => wanted.push(Setting {
                scope: scope.clone(),
                key: key.clone(),
                value: Some(value.clone()),
                changed_by: String::new(),
                changed_at: Default::default(),
                revision: Default::default(),
            }),
        }
    }
    Ok(wanted)
}

/// What each key is, for operators. A key that is read at the start stays as it was `before`; what is written for it by now
/// is told beside it.
pub(super) fn told_keys(
    explained: Vec<Explained>,
    settings: &[Setting],
    before: &[ConfigurationKey],
) -> Arc<[ConfigurationKey]> {
    let of = |explained: Explained| {
        let Explained { section, key, value, origin, beneath, default, change } = explained;
        let live = settings.iter().find(|setting| (&setting.scope, &setting.key) == (&section, &key));
        let live = live.filter(|_| matches!(origin, Some(Origin::Setting(_))));
        let before = before.iter().find(|before| (&before.section, &before.key) == (&section, &key));
        if let Some(before) = before.filter(|before| change == Change::Restart && before.value != value) {
            return ConfigurationKey { after_restart: value.or_else(|| Some(String::new())), ..before.clone() };
        }
        let (source, place) = match origin {
            None => ("default", None),
            Some(Origin::Variable(name)) => ("environment", Some(name.to_string())),
            Some(Origin::Setting(_)) => ("live", None),
            Some(place) => ("file", Some(place.to_string())),
        };
        ConfigurationKey {
            section,
            key,
            value,
            source: source.into(),
            place,
            beneath: beneath.map(|(place, value)| wire::Beneath { value, place: place.to_string() }),
            default,
            change: change.as_str().into(),
            after_restart: None,
            changed_by: live.map(|live| live.changed_by.clone()),
            changed_at: live.map(|live| wire::rfc3339(live.changed_at)),
        }
    };
    explained.into_iter().map(of).collect()
}
