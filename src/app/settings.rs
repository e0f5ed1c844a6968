//! From the configuration to each part's own settings.

use std::{
    collections::BTreeSet,
    net::{IpAddr, SocketAddr},
};

use uuid::Uuid;

use super::machine;
use crate::{
    config::{self, Config, NatsLogin, TrustedFor},
    control,
    discovery::{self, address::AddressRules, authority::Trusted, judge::Rules, nats},
    forwarder,
    model::{
        PortSet,
        pool::{Pool, Pools},
    },
    store,
};

/// User and passwords of the broker API.
pub(super) fn login(config: &config::Broker) -> (String, Vec<String>) {
    let passwords = config.passwords.iter().map(|password| password.expose().to_owned()).collect();
    (config.username.clone(), passwords)
}

pub(super) fn store(config: &Config) -> store::Settings {
    store::Settings {
        url: config.store.url.expose().to_owned(),
        password: config.store.password.as_ref().map(|password| password.expose().to_owned()),
        data_dir: config.node.data_dir.clone(),
        answer_within: store::ANSWER_WITHIN,
        migrate_within: store::MIGRATE_WITHIN,
    }
}

pub(super) fn control(config: &Config) -> control::Settings {
    control::Settings {
        node: config.node.id.clone(),
        pools: config.node.pools.clone(),
        plans: config.plans.clone(),
        limits: config.forwarder.limits.clone(),
        announce_url: config.announce.as_ref().map(|announce| announce.public_url.clone()),
    }
}

/// `threads`: of the process that this one follows, if there is one.
pub(super) fn forwarder(config: &Config, threads: Option<usize>) -> forwarder::Settings {
    forwarder::Settings {
        listen: config.node.listen.clone(),
        // Ports that are spread over so many sockets stay so.
        workers: threads.unwrap_or(config.forwarder.workers),
        pool_ports: pool_ports(&config.node.pools),
        // Until the backends are known: what comes before waits.
        held: true,
    }
}

/// `pools` are all that nodes have, `own_apis` is where Harbor's APIs listen, `infrastructure` where the parts are that it uses itself: no backend may
/// be there.
pub(super) fn discovery(
    config: &Config,
    pools: &Pools,
    own_address: IpAddr,
    own_apis: BTreeSet<SocketAddr>,
    infrastructure: BTreeSet<SocketAddr>,
) -> discovery::Settings {
    let settings = &config.discovery;
    let names = pools.values().flat_map(|pool| [&pool.names.host, &pool.names.host_external]);
    let own_hosts = names
        .flatten()
        .filter_map(|host| host.parse().ok())
        .chain(config.node.listen.iter().copied().filter(|listen| !listen.is_unspecified()))
        .chain([own_address])
        .chain(machine::addresses())
        .map(|host: IpAddr| host.to_canonical())
        .collect();
    let trusted = settings.trusted.iter().map(|trusted| Trusted {
        networks: trusted.networks.clone(),
        service_instances: match &trusted.service_instances {
            TrustedFor::All => None,
            TrustedFor::Only(ids) => Some(ids.iter().cloned().collect()),
        },
    });
    discovery::Settings {
        rules: Rules {
            domain: settings.domain.clone(),
            stale_after: settings.stale_after,
            trusted: trusted.collect(),
            addresses: AddressRules {
                backend_networks: settings.backend_networks.clone(),
                backend_deny: settings.backend_deny.clone(),
                cell_networks: settings.cell_networks.clone(),
                infrastructure,
                own_hosts,
                pool_ports: pool_ports(pools.values()),
                own_apis,
            },
        },
        prune_every: settings.prune_every,
        prune_suspend_max: settings.prune_suspend_max,
        token_networks: settings.token_networks.clone(),
    }
}

pub(super) fn nats(config: &Config, nats: &config::Nats, own_address: IpAddr) -> nats::Settings {
    nats::Settings {
        servers: nats.servers.clone(),
        login: match &nats.login {
            NatsLogin::Anonymous => nats::Login::Anonymous,
            NatsLogin::Password { user, password } => {
                nats::Login::Password { user: user.clone(), password: password.expose().to_owned() }
            }
            NatsLogin::Token(token) => nats::Login::Token(token.expose().to_owned()),
            NatsLogin::NkeySeedFile(path) => nats::Login::NkeySeedFile(path.clone()),
            NatsLogin::CredentialsFile(path) => nats::Login::CredentialsFile(path.clone()),
        },
        tls: nats::Tls { ca: nats.tls.ca.clone(), identity: nats.tls.identity.clone() },
        harbor_subjects: config.discovery.harbor_subjects,
        router_subjects: config.discovery.router_subjects,
        service_discovery_subjects: config.discovery.service_discovery_subjects,
        id: format!("{}-{}", config.node.id, Uuid::new_v4()),
        hosts: vec![own_address.to_string()],
    }
}

/// The ports of all these pools.
pub(super) fn pool_ports<'a>(pools: impl IntoIterator<Item = &'a Pool>) -> PortSet {
    let ranges = pools.into_iter().flat_map(|pool| pool.ports.ranges().to_vec());
    PortSet::from_ranges(ranges).expect("the ranges of pools have been checked")
}
