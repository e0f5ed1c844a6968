//! `harbor check-config`

use std::{fmt::Write as _, path::PathBuf};

use super::{FINE, Outcome, load, print};
use crate::{
    config::{Config, NatsLogin},
    model::{plan::PlanProtocol, pool::Pool},
};

/// Check the configuration and show what it comes to, without secrets.
///
/// All problems are shown at once, each with file, line and column or with the name of its variable.
#[derive(Debug, clap::Args)]
pub struct CheckConfig {}

impl CheckConfig {
    pub fn run(self, file: Option<PathBuf>) -> Outcome {
        print(&summary(&load(file)?))?;
        Ok(FINE)
    }
}

fn summary(config: &Config) -> String {
    let mut text = String::from("The configuration is valid.\n\n");
    let mut line = |name: &str, value: String| _ = writeln!(text, "{name:<10} {value}");
    let listens = |address: std::net::SocketAddr, tls: bool| format!("http{}://{address}", if tls { "s" } else { "" });
    let passwords = match config.broker.passwords.len() {
        1 => "one password".to_owned(),
        many => format!("{many} passwords"),
    };
    let broker = &config.broker;
    line("broker", format!("{} as {} with {passwords}", listens(broker.listen, broker.tls.is_some()), broker.username));
    line(
        "announce",
        match &config.announce {
            None => "off".into(),
            Some(announce) => {
                format!("{}, reached as {}", listens(announce.listen, announce.tls.is_some()), announce.public_url)
            }
        },
    );
    let admin = &config.admin;
    let metrics = if admin.metrics_public { "public" } else { "with the token" };
    line("admin", format!("{}, metrics {metrics}", listens(admin.listen, false)));
    line("store", config.store_url.clone());
    line(
        "nats",
        match &config.nats {
            None => "off".into(),
            Some(nats) => {
                let login = match nats.login {
                    NatsLogin::Anonymous => "without a login",
                    NatsLogin::Password { .. } => "with user and password",
                    NatsLogin::Token(_) => "with a token",
                    NatsLogin::NkeySeedFile(_) => "with a key",
                    NatsLogin::CredentialsFile(_) => "with a credentials file",
                };
                format!("{} {login}", nats.servers.join(", "))
            }
        },
    );
    let addresses: Vec<_> = config.node.listen.iter().map(ToString::to_string).collect();
    let node = &config.node;
    line("node", format!("{}, ports on {}, state in {}", node.id, addresses.join(", "), node.data_dir.display()));
    for pool in &node.pools {
        line("pool", pool_summary(pool));
    }
    for plan in &config.plans {
        let protocol = match plan.protocol {
            PlanProtocol::ByName => "tcp, udp or both",
            PlanProtocol::Fixed(protocol) => protocol.as_str(),
        };
        line("plan", format!("{}: {protocol}, from pool {}", plan.name, plan.pool));
    }
    for warning in &config.warnings {
        line("warning", warning.clone());
    }
    text
}

fn pool_summary(pool: &Pool) -> String {
    let names = &pool.names;
    let known_as = |host: &Option<String>, hostname: &Option<String>| match (host, hostname) {
        (Some(host), Some(hostname)) => Some(format!("{hostname} ({host})")),
        (Some(name), None) | (None, Some(name)) => Some(name.clone()),
        (None, None) => None,
    };
    let inside = known_as(&names.host, &names.hostname).unwrap_or_else(|| "nothing".into());
    let outside = known_as(&names.host_external, &names.hostname_external)
        .map_or_else(|| "not public".into(), |name| format!("outside as {name}"));
    format!("{}: {} ({} ports), inside as {inside}, {outside}", pool.name, pool.ports, pool.ports.len())
}
