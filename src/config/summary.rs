//! What a configuration comes to, for people. Nothing secret is in it.

use std::fmt;

use super::{Config, NatsLogin};
use crate::model::{plan::PlanProtocol, pool::Pool};

impl fmt::Display for Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        lines(self).into_iter().try_for_each(|(name, value)| writeln!(f, "{name:<10} {value}"))
    }
}

fn lines(config: &Config) -> Vec<(&'static str, String)> {
    let mut lines = Vec::new();
    let mut line = |name, value| lines.push((name, value));
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
    let metrics = match (admin.metrics_public, &admin.metrics_token_file) {
        (true, _) => "public",
        (false, None) => "with the token",
        (false, Some(_)) => "with a token of their own",
    };
    line("admin", format!("{}, metrics {metrics}", listens(admin.listen, false)));
    line("store", config.store.to_string());
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
    lines
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
