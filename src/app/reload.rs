//! SIGHUP: the configuration, certificates and log files are read again, and what can change live is taken over.

use std::sync::Arc;

use crate::{
    config::{self, Config, Sources},
    control::Control,
    http::Tls,
    telemetry::log::Log,
};

/// What a reload reaches.
#[derive(Debug)]
pub(super) struct Reloadable<'a> {
    pub(super) sources: &'a Sources,
    pub(super) log: &'a Log,
    pub(super) control: Arc<Control>,
    pub(super) passwords: crate::broker::Passwords,
    pub(super) certificates: Vec<Arc<Tls>>,
}

/// Takes over what can change live. `running` is what holds now; returns what holds afterwards. A configuration that
/// is not right changes nothing.
pub(super) async fn reload(running: Config, reach: &Reloadable<'_>) -> Config {
    reach.log.reopen();
    for certificate in &reach.certificates {
        if let Err(error) = certificate.reload() {
            tracing::error!(%error, "a certificate was not taken over; the one before stays in use");
        }
    }
    let wanted = match config::load(reach.sources) {
        Ok(wanted) => wanted,
        Err(error) => {
            for problem in error.problems {
                tracing::error!(%problem, "the configuration was not taken over: it is not right");
            }
            return running;
        }
    };
    if let Err(refusal) = reach.control.reload(wanted.node.pools.clone(), wanted.forwarder.limits.clone()).await {
        tracing::error!(%refusal, "the configuration was not taken over");
        return running;
    }
    if let Err(error) = reach.log.set_level(&wanted.log.level) {
        tracing::error!(%error, "the log level was not taken over");
    }
    reach.passwords.replace(&wanted.broker.username, &super::settings::passwords(&wanted.broker));
    let holds = Config {
        broker: config::Broker {
            username: wanted.broker.username.clone(),
            passwords: wanted.broker.passwords.clone(),
            ..running.broker.clone()
        },
        node: config::Node { pools: wanted.node.pools.clone(), ..running.node.clone() },
        forwarder: config::Forwarder { limits: wanted.forwarder.limits.clone(), ..running.forwarder.clone() },
        log: crate::telemetry::log::Settings { level: wanted.log.level.clone(), ..running.log.clone() },
        warnings: wanted.warnings.clone(),
        ..running
    };
    if holds == wanted {
        tracing::info!("the configuration was taken over");
    } else {
        tracing::warn!(
            "the configuration was taken over in part: pools, limits, passwords and log level hold now; restart Harbor \
             for the rest"
        );
    }
    holds
}
