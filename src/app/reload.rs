//! SIGHUP: the configuration, certificates and log files are read again, and what can change live is taken over.

use std::{collections::BTreeSet, net::SocketAddr, sync::Arc};

use tokio::sync::watch;

use super::{live, settings};
use crate::{
    admin::wire::ConfigurationKey,
    broker::Passwords,
    config::{self, Config, Sources},
    control::Control,
    discovery::Discovery,
    forwarder::Forwarder,
    http::Tls,
    model::PoolName,
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
}

/// Reads certificates and log files again, and takes over what can change live.
pub(super) async fn reload(running: &mut Config, reach: &Reloadable<'_>) {
    reach.log.reopen();
    for certificate in &reach.certificates {
        if let Err(error) = certificate.reload() {
            tracing::error!(%error, "a certificate was not taken over: the one before stays in use");
        }
    }
    // What was wrong has been told.
    let _ = take_over(running, reach).await;
}

/// Takes over what can change live of the configuration as it is now, with the live settings, and notes in `running` what
/// holds then. A configuration that is not right changes nothing.
///
/// # Errors
/// Why it was not taken over, as the log says it too.
pub(super) async fn take_over(running: &mut Config, reach: &Reloadable<'_>) -> Result<(), String> {
    let settings = Arc::clone(&reach.control.settings().borrow());
    let (wanted, explained) = match config::load_explained(&live::with_settings(reach.sources, &settings)) {
        Ok(wanted) => wanted,
        Err(error) => {
            for problem in &error.problems {
                tracing::error!(%problem, "the configuration was not taken over");
            }
            return Err(error.to_string().replace('\n', "; "));
        }
    };
    let (pools, plans) = (wanted.node.pools.clone(), wanted.plans.clone());
    if let Err(refusal) = reach.control.reload(pools, plans, wanted.forwarder.limits.clone()).await {
        tracing::error!(%refusal, "the configuration was not taken over");
        return Err(refusal.to_string());
    }
    let served = reach.control.served();
    reach.served.send_if_modified(|known| {
        let changed = *known != served;
        *known = served;
        changed
    });
    if let Err(error) = reach.log.set_level(&wanted.log.level) {
        tracing::error!(%error, "the log level was not taken over");
    }
    let (username, passwords) = settings::login(&wanted.broker);
    reach.passwords.replace(&username, &passwords);
    running.node.pools.clone_from(&wanted.node.pools);
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
    reach.configuration.send_modify(|known| *known = live::told_keys(explained, &settings, known));
    if *running == wanted {
        tracing::info!("the configuration was taken over");
    } else {
        tracing::warn!(
            "the configuration was taken over in part: `harbor config list` shows what waits for a restart of Harbor"
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
