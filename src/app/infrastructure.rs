//! Where the parts are that Harbor itself uses: no tenant may make it connect there.

use std::{collections::BTreeSet, net::SocketAddr, time::Duration};

use tokio::{net::lookup_host, time::timeout};

use super::settings;
use crate::config::Config;

/// The port of NATS where a URL names none.
const NATS_PORT: u16 = 4222;

/// How long a name may take to resolve.
const RESOLVE_WITHIN: Duration = Duration::from_secs(3);

/// The addresses of the store and of the NATS servers. A name that cannot be resolved is logged: its addresses then have to
/// be in `discovery.backend_deny`, if tenants could reach them otherwise.
pub(super) async fn addresses(config: &Config) -> BTreeSet<SocketAddr> {
    let mut addresses = BTreeSet::new();
    for (host, port) in servers(config) {
        match timeout(RESOLVE_WITHIN, lookup_host((host.as_str(), port))).await {
            Ok(Ok(found)) => addresses.extend(found),
            Ok(Err(error)) => tracing::warn!(host, %error, "the name of this server cannot be resolved"),
            Err(_) => tracing::warn!(host, "the name of this server takes too long to resolve"),
        }
    }
    addresses
}

/// The hosts and ports of the servers that Harbor connects to. An address of IPv6 is without brackets.
fn servers(config: &Config) -> Vec<(String, u16)> {
    // A store whose URL cannot be understood has not been opened.
    let mut servers: Vec<_> = settings::store(config).server().ok().flatten().into_iter().collect();
    for url in config.nats.iter().flat_map(|nats| &nats.servers) {
        let authority = url.split_once("://").map_or(url.as_str(), |(_, authority)| authority);
        if let Ok(authority) = authority.parse::<axum::http::uri::Authority>() {
            let host = authority.host().trim_start_matches('[').trim_end_matches(']').to_owned();
            servers.push((host, authority.port_u16().unwrap_or(NATS_PORT)));
        }
    }
    servers
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use super::*;
    use crate::config::{self, Sources};

    #[test]
    fn the_servers_of_the_store_and_of_nats_are_known_with_their_ports() {
        let check = |store: &str, expected: &[(&str, u16)]| {
            let text = format!(
                "broker.password = \"secret\"\nstore.url = \"{store}\"\n\
                 nats.servers = [\"nats://n1\", \"tls://[fd00::2]:4333\"]"
            );
            let sources = Sources {
                file: None,
                variables: Vec::new(),
                settings: Vec::new(),
                own_address: IpAddr::from([127, 0, 0, 1]),
            };
            let config = config::check(&text, Some("harbor.toml"), &sources).unwrap();
            let found = servers(&config);
            let found = found.iter().map(|(host, port)| (host.as_str(), *port)).collect::<Vec<_>>();
            assert_eq!(found, [expected, &[("n1", 4222), ("fd00::2", 4333)]].concat(), "{store}");
        };
        check("sqlite:harbor.db", &[]);
        check("postgres://harbor:x@db.example.com/harbor", &[("db.example.com", 5432)]);
        check("postgres://harbor@[fd00::7]:6432/harbor", &[("fd00::7", 6432)]);
        check("postgres://harbor@/harbor?host=/run/postgresql", &[]);
    }
}
