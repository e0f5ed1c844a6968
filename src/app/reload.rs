//! SIGHUP: the configuration, certificates and log files are read again, and what can change live is taken over.

use std::{
    collections::BTreeSet,
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
};

use tokio::sync::watch;

use super::{live, machine, settings};
use crate::{
    admin::wire::{Beneath, ConfigurationKey},
    broker::Passwords,
    config::{self, Config, Explained, Sources},
    control::{Control, ReloadRefusal},
    discovery::Discovery,
    forwarder::Forwarder,
    http::Tls,
    model::{PoolName, setting::Setting},
    telemetry::log::Log,
};

/// What a reload reaches.
#[derive(Debug)]
pub(super) struct Reloadable<'a> {
    pub(super) sources: &'a Sources,
    pub(super) log: &'a Log,
    pub(super) control: Arc<Control>,
    pub(super) discovery: Arc<Discovery>,
    pub(super) forwarder: Arc<Forwarder>,
    /// Where Harbor's own APIs listen, and where the parts are that it uses.
    pub(super) own_apis: BTreeSet<SocketAddr>,
    pub(super) infrastructure: BTreeSet<SocketAddr>,
    pub(super) passwords: Arc<Passwords>,
    pub(super) certificates: Vec<Arc<Tls>>,
    /// Where the other nodes are told which pools this one serves.
    pub(super) served: watch::Sender<BTreeSet<PoolName>>,
    /// Where operators are told what each key is.
    pub(super) configuration: watch::Sender<Arc<[ConfigurationKey]>>,
    /// Why live settings are not in force here though the nodes have them; none: they are. Operators are told.
    pub(super) behind: watch::Sender<Option<String>>,
    /// What was read last of the configuration file. A live setting does not read it again: it may be half edited.
    pub(super) text: Mutex<Option<config::Text>>,
}

impl Reloadable<'_> {
    pub(super) fn text(&self) -> Option<config::Text> {
        self.text.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// Reads certificates and log files again, and takes over what can change live.
pub(super) async fn reload(running: &mut Config, reach: &Reloadable<'_>) {
    reach.log.reopen();
    for certificate in &reach.certificates {
        if let Err(error) = certificate.reload() {
            tracing::error!(%error, "a certificate was not taken over: the one before stays in use");
        }
    }
    let settings = Arc::clone(&reach.control.settings().borrow());
    let read = config::Text::of(reach.sources).and_then(|text| {
        let loaded = config::load_from(text.as_ref(), &live::with_settings(reach.sources, &settings))?;
        Ok((text, loaded))
    });
    let (text, (wanted, explained)) = match read {
        Ok(read) => read,
        Err(error) => {
            let live = Some(live::told(&settings)).filter(|live| !live.is_empty());
            for problem in &error.problems {
                tracing::error!(%problem, live = live.as_deref(), "the configuration was not taken over");
            }
            return;
        }
    };
    let (username, passwords) = settings::login(&wanted.broker);
    let before = reach.configuration.borrow().clone();
    if let Err(refusal) = take_over(running, wanted, explained, &settings, reach).await {
        tracing::error!(%refusal, "the configuration was not taken over");
        return;
    }
    reach.passwords.replace(&username, &passwords);
    tell_hidden(&before, &reach.configuration.borrow());
    *reach.text.lock().unwrap_or_else(PoisonError::into_inner) = text;
}

/// Says of what was changed in file or environment that it does not hold, where a live setting hides it.
fn tell_hidden(before: &[ConfigurationKey], now: &[ConfigurationKey]) {
    for ConfigurationKey { section, key, value, beneath, .. } in now {
        let known = before.iter().find(|known| (&known.section, &known.key) == (section, key));
        let was = known.and_then(|known| known.beneath.as_ref()).map(|beneath| &beneath.value);
        let is_news = |now: &&Beneath| was != Some(&now.value) && now.value != *value;
        if let Some(Beneath { value: hidden, place }) = beneath.as_ref().filter(is_news) {
            tracing::warn!(
                place,
                written = hidden.as_deref(),
                live = value.as_deref(),
                "{section}.{key} is set live, and what was changed here does not hold: `harbor config unset {section}.{key}` has \
                 it hold"
            );
        }
    }
}

/// Takes over the live settings as they are now. All else stays as it was read last, secrets too.
///
/// # Errors
/// Why they were not taken over.
pub(super) async fn take_over_settings(running: &mut Config, reach: &Reloadable<'_>) -> Result<(), String> {
    let settings = Arc::clone(&reach.control.settings().borrow());
    let loaded = config::load_from(reach.text().as_ref(), &live::with_settings(reach.sources, &settings));
    let (wanted, explained) = loaded.map_err(|error| error.to_string().replace('\n', "; "))?;
    let wanted = Config { broker: running.broker.clone(), ..wanted };
    take_over(running, wanted, explained, &settings, reach).await.map_err(|refusal| refusal.to_string())
}

/// Takes over what can change live of a configuration that is right, and notes in `running` what holds then. One that is
/// refused changes nothing.
async fn take_over(
    running: &mut Config,
    wanted: Config,
    explained: Vec<Explained>,
    settings: &[Setting],
    reach: &Reloadable<'_>,
) -> Result<(), ReloadRefusal> {
    let (pools, plans) = (wanted.node.pools.clone(), wanted.plans.clone());
    reach.control.reload(pools, plans, wanted.forwarder.limits.clone()).await?;
    let served = reach.control.served();
    reach.served.send_if_modified(|known| {
        let changed = *known != served;
        *known = served;
        changed
    });
    if let Err(error) = reach.log.set_level(&wanted.log.level) {
        tracing::error!(%error, "the log level was not taken over");
    }
    for warning in wanted.warnings.iter().filter(|warning| !running.warnings.contains(warning)) {
        tracing::warn!("{warning}");
    }
    if running.node.pools != wanted.node.pools {
        machine::judge(&wanted);
    }
    running.node.pools.clone_from(&wanted.node.pools);
    running.node.other_pools.clone_from(&wanted.node.other_pools);
    running.plans.clone_from(&wanted.plans);
    running.forwarder.limits.clone_from(&wanted.forwarder.limits);
    running.log.level.clone_from(&wanted.log.level);
    running.broker.username.clone_from(&wanted.broker.username);
    running.broker.passwords.clone_from(&wanted.broker.passwords);
    running.settings.clone_from(&wanted.settings);
    running.warnings.clone_from(&wanted.warnings);
    let at_the_start = &running.discovery;
    running.discovery = config::Discovery {
        harbor_subjects: at_the_start.harbor_subjects,
        router_subjects: at_the_start.router_subjects,
        service_discovery_subjects: at_the_start.service_discovery_subjects,
        max_backends: at_the_start.max_backends,
        ..wanted.discovery.clone()
    };
    take_over_pools(running, reach);
    reach.configuration.send_modify(|known| *known = live::told_keys(explained, settings, known));
    reach.behind.send_replace(None);
    if *running == wanted {
        tracing::info!("the configuration was taken over");
    } else {
        tracing::warn!(
            "the configuration was taken over in part: `harbor config list` shows what waits for a restart of Harbor, but for \
             secrets"
        );
    }
    Ok(())
}

/// Takes over what the nodes have agreed on.
pub(super) fn take_over_pools(running: &Config, reach: &Reloadable<'_>) {
    let pools = reach.control.pools().borrow().clone();
    reach.forwarder.set_pool_ports(&settings::pool_ports(pools.values()));
    // Other ports and hosts of the pools: backends there would go in circles.
    let (own_apis, infrastructure) = (reach.own_apis.clone(), reach.infrastructure.clone());
    let settings = settings::discovery(running, &pools, reach.sources.own_address, own_apis, infrastructure);
    reach.discovery.set_settings(settings);
}
