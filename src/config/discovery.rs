//! `[discovery]`: which announcements are believed, and for how long.

use std::{collections::BTreeSet, time::Duration};

use ipnet::IpNet;

use super::{
    entry::{Entry, Problem},
    section::Section,
    value,
};
use crate::model::ServiceInstanceId;

/// Most networks in one list, most trusted sources, and most service instances of one.
const MAX_ITEMS: usize = 1024;

/// Networks that backends are in, where nothing else is written: the private ones.
const DEFAULT_BACKEND_NETWORKS: [&str; 4] = ["10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "fc00::/7"];

/// Which announcements are believed, and for how long.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Discovery {
    /// Whether `harbor.*` is listened to.
    pub harbor_subjects: bool,
    /// Whether `router.*` is listened to.
    pub router_subjects: bool,
    /// Whether `service-discovery.*` is listened to.
    pub service_discovery_subjects: bool,
    /// Under which `p<port>` and the ids of service instances are names; lower case, without a dot at its end.
    pub domain: Option<String>,
    /// The longest a backend lives without being announced again.
    pub stale_after: Duration,
    /// How often those that have not been are looked for.
    pub prune_every: Duration,
    /// How long that may be suspended while NATS is away.
    pub prune_suspend_max: Duration,
    /// Networks that backends may be in.
    pub backend_networks: Vec<IpNet>,
    /// Networks taken out of them.
    pub backend_deny: Vec<IpNet>,
    /// Networks of Diego cells: there an address is believed only where `router.register` gives it to the binding's app.
    pub cell_networks: Vec<IpNet>,
    /// Networks in which a token may announce a host other than the caller.
    pub token_networks: Vec<IpNet>,
    /// Most backends of one service instance.
    pub max_backends: usize,
    /// Sources believed without app or token.
    pub trusted: Vec<Trusted>,
}

/// A source believed by the announced host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trusted {
    /// Networks of the host.
    pub networks: Vec<IpNet>,
    /// What it may serve.
    pub service_instances: TrustedFor,
}

/// What a trusted source may serve.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TrustedFor {
    /// Every service instance.
    All,
    /// These.
    Only(BTreeSet<ServiceInstanceId>),
}

impl Discovery {
    pub(super) fn read(mut section: Section<'_>) -> Self {
        let networks = || value::list(MAX_ITEMS, value::network);
        let sources = section.get("sources", value::list(MAX_ITEMS, source));
        let sources = sources.unwrap_or_else(|| DEFAULT_SOURCES.to_vec());
        let router_subjects = sources.contains(&Source::Router);
        let default_networks = || DEFAULT_BACKEND_NETWORKS.map(|text| text.parse().expect("they are networks")).into();
        let cell_networks = section.get("cell_networks", networks()).unwrap_or_default();
        if !cell_networks.is_empty() && !router_subjects {
            section.problem(
                "cell_networks",
                "whose an address on a cell is, router.register says: add \"router\" to sources",
            );
        }
        let trusted = section.listed_sections("trusted").into_iter().filter_map(Trusted::read).collect();
        let seconds = Duration::from_secs;
        let read = Self {
            harbor_subjects: sources.contains(&Source::Harbor),
            router_subjects,
            service_discovery_subjects: sources.contains(&Source::ServiceDiscovery),
            domain: section.get("domain", domain),
            stale_after: section.get("stale_after", value::duration(seconds(1))).unwrap_or(seconds(120)),
            prune_every: section.get("prune_every", value::duration(Duration::from_millis(10))).unwrap_or(seconds(30)),
            prune_suspend_max: section
                .get("prune_suspend_max", value::duration(Duration::ZERO))
                .unwrap_or(seconds(600)),
            backend_networks: section.get("backend_networks", networks()).unwrap_or_else(default_networks),
            backend_deny: section.get("backend_deny", networks()).unwrap_or_default(),
            cell_networks,
            token_networks: section.get("token_networks", networks()).unwrap_or_default(),
            max_backends: section.get("max_backends", value::number(1..=65_535_u16)).map_or(256, usize::from),
            trusted,
        };
        section.finish();
        read
    }
}

impl Trusted {
    fn read(mut section: Section<'_>) -> Option<Self> {
        let networks = section.get("networks", value::list(MAX_ITEMS, value::network));
        let ids = section.get("service_instances", value::list(MAX_ITEMS, value::text));
        if !section.has("networks") {
            section.missing("networks", "write the networks of the hosts that are believed");
        }
        if !section.has("service_instances") {
            section.missing("service_instances", "write the ids of the service instances, or [\"*\"] for all");
        }
        let service_instances = ids.map(|ids| {
            if ids.iter().any(|id| id == "*") {
                return TrustedFor::All;
            }
            let parse = |id: &String| {
                let parsed = ServiceInstanceId::new(id);
                parsed.map_err(|error| section.problem("service_instances", error.to_string())).ok()
            };
            TrustedFor::Only(ids.iter().filter_map(parse).collect())
        });
        section.finish();
        Some(Self { networks: networks?, service_instances: service_instances? })
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Source {
    Harbor,
    Router,
    ServiceDiscovery,
}

const DEFAULT_SOURCES: [Source; 2] = [Source::Harbor, Source::Router];

fn source(entry: &Entry) -> Result<Source, Problem> {
    match value::text(entry)?.as_str() {
        "harbor" => Ok(Source::Harbor),
        "router" => Ok(Source::Router),
        "service-discovery" => Ok(Source::ServiceDiscovery),
        other => Err(entry.problem(format!("{other:?} is not a source: use harbor, router and service-discovery"))),
    }
}

fn domain(entry: &Entry) -> Result<String, Problem> {
    let text = value::text(entry)?;
    let domain = text.trim_matches('.').to_lowercase();
    let is_label = |label: &str| {
        !label.is_empty() && label.len() <= 63 && label.chars().all(|c| c.is_ascii_alphanumeric() || c == '-')
    };
    if domain.len() > 253 || !domain.split('.').all(is_label) {
        return Err(entry.problem(format!("{text:?} is not a domain: write for example \"harbor.example.com\"")));
    }
    Ok(domain)
}
