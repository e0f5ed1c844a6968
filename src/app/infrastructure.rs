//! Where the parts are that Harbor itself uses: no tenant may make it connect there.

use std::{collections::BTreeSet, net::SocketAddr, time::Duration};

use tokio::{net::lookup_host, time::timeout};

use crate::config::Config;

/// The port of NATS where a URL names none.
const NATS_PORT: u16 = 4222;

/// How long a name may take to resolve.
const RESOLVE_WITHIN: Duration = Duration::from_secs(3);

/// The addresses of the NATS servers. A name that cannot be resolved is logged: its addresses then have to be in
/// `discovery.backend_deny`, if tenants could reach them otherwise.
pub(super) async fn addresses(config: &Config) -> BTreeSet<SocketAddr> {
    let mut addresses = BTreeSet::new();
    for server in config.nats.iter().flat_map(|nats| &nats.servers) {
        let authority = server.split_once("://").map_or(server.as_str(), |(_, authority)| authority);
        let target = match authority.parse::<axum::http::uri::Authority>() {
            Ok(authority) => format!("{}:{}", authority.host(), authority.port_u16().unwrap_or(NATS_PORT)),
            Err(_) => authority.to_owned(),
        };
        match timeout(RESOLVE_WITHIN, lookup_host(&target)).await {
            Ok(Ok(found)) => addresses.extend(found),
            Ok(Err(error)) => tracing::warn!(server = target, %error, "this NATS server's name cannot be resolved"),
            Err(_) => tracing::warn!(server = target, "this NATS server's name takes too long to resolve"),
        }
    }
    addresses
}
