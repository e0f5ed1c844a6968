//! The rules of `docs/announcements.md`, read once more. What is known stands in flat lists that are searched from end to
//! end; nothing is shared with what is held against this but the making of proofs.

use std::{
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use harbor::{
    discovery::{
        judge::{Accepted, Refused},
        source::{Action, Source},
        wire::{Harbor, Tags},
    },
    model::{
        AppId, BindingId, Timestamp, Transport,
        announcement::{
            AnnouncedState, AnnouncementRefusal as Reason, Authority, Endpoint, Origin, Registration, Withdrawal,
        },
        directory::DirectoryEntry,
    },
};
use ipnet::IpNet;

use super::world::{Case, WALL, prove};

/// What no configuration makes a place for a backend.
const NEVER: [&str; 9] = [
    "0.0.0.0/8",
    "169.254.0.0/16",
    "224.0.0.0/4",
    "255.255.255.255/32",
    "::/128",
    "fe80::/10",
    "ff00::/8",
    "fd00:ec2::254/128",
    "fd20:ce::254/128",
];

/// Empty counts as absent.
fn filled(text: &Option<String>) -> Option<&str> {
    text.as_deref().filter(|text| !text.is_empty())
}

fn is_in(ip: IpAddr, networks: &[IpNet]) -> bool {
    networks.iter().any(|network| network.contains(&ip))
}

impl<'a> Case<'a> {
    /// What Harbor has to say.
    pub fn expected(&self) -> Result<Accepted, Refused> {
        let meant = self.meant().map_err(|reason| Refused { service_instance_id: None, reason })?;
        self.expected_of(meant).map_err(|reason| Refused { service_instance_id: Some(meant.id.clone()), reason })
    }

    fn harbor(&self) -> Harbor {
        self.message.harbor.clone().unwrap_or_default()
    }

    fn tags(&self) -> Tags {
        self.message.tags.clone().unwrap_or_default()
    }

    /// Which service instance.
    fn meant(&self) -> Result<&'a DirectoryEntry, Reason> {
        if let Some(id) = filled(&self.harbor().instance_id).or(filled(&self.tags().harbor_instance)) {
            return self.instance(id).ok_or(Reason::UnknownServiceInstance);
        }
        let mut meant: Option<&DirectoryEntry> = None;
        for name in self.names_under_the_domain() {
            let named = self.named(&name)?;
            if meant.is_some_and(|other| other.id != named.id) {
                return Err(Reason::Ambiguous);
            }
            meant = Some(named);
        }
        let app = filled(&self.message.app);
        let of_app = |entry: &&DirectoryEntry| app.is_some_and(|app| self.is_bound(app, entry));
        let of_app = self.world.instances.iter().filter(of_app).collect::<Vec<_>>();
        match (meant, self.source, &of_app[..]) {
            (Some(meant), ..) => Ok(meant),
            (None, Source::Router, [only]) if only.match_app => Ok(only),
            (None, Source::Router, [_, ..]) => Err(Reason::NotMatched),
            (None, ..) => Err(Reason::NotAddressed),
        }
    }

    fn instance(&self, id: &str) -> Option<&'a DirectoryEntry> {
        self.world.instances.iter().find(|entry| entry.id.as_str() == id)
    }

    fn is_bound(&self, app: &str, entry: &DirectoryEntry) -> bool {
        let is_it = |id: &AppId| id.as_str() == app;
        let bindings = &self.world.bindings;
        bindings.iter().any(|b| b.service_instance_id == entry.id && b.app_id.as_ref().is_some_and(is_it))
    }

    /// What the uris have before the domain, without the index that internal routes may have.
    fn names_under_the_domain(&self) -> Vec<String> {
        let Some(domain) = &self.world.rules.domain else { return Vec::new() };
        let mut names = Vec::new();
        for uri in self.message.uris.iter().flatten() {
            let host = uri.split('/').next().unwrap();
            let mut labels = host.strip_suffix('.').unwrap_or(host).split('.').collect::<Vec<_>>();
            let under = labels.split_off(labels.len().saturating_sub(domain.split('.').count()));
            let is_index = |label: &str| !label.is_empty() && label.chars().all(|c| c.is_ascii_digit());
            if !under.join(".").eq_ignore_ascii_case(domain) || labels.join(".").is_empty() {
                continue;
            }
            if self.source == Source::ServiceDiscovery && labels.len() > 1 && is_index(labels[0]) {
                labels.remove(0);
            }
            names.push(labels.join("."));
        }
        names
    }

    /// Whose id the name is, as it is written or in lower case, or whose port's alone. A wildcard is neither.
    fn named(&self, name: &str) -> Result<&'a DirectoryEntry, Reason> {
        let lower = name.to_ascii_lowercase();
        let of_port = self.world.instances.iter().filter(|entry| format!("p{}", entry.port) == lower);
        match (self.instance(name).or(self.instance(&lower)), &of_port.collect::<Vec<_>>()[..]) {
            (Some(of_id), &[of_port]) if of_id.id != of_port.id => Err(Reason::Ambiguous),
            (Some(only), _) | (None, &[only]) => Ok(only),
            (None, _) => Err(Reason::UnknownServiceInstance),
        }
    }

    /// What is left to ask once that is known, in the order of the contract.
    fn expected_of(&self, entry: &DirectoryEntry) -> Result<Accepted, Reason> {
        let state = match filled(&self.harbor().state) {
            None | Some("up") => AnnouncedState::Up,
            Some("draining") => AnnouncedState::Draining,
            Some(_) => return Err(Reason::Malformed),
        };
        let host = self.message.host.as_ref().and_then(|host| host.parse().ok()).map(|ip: IpAddr| ip.to_canonical());
        let authority = self.authority(entry, host)?;
        let host = host.ok_or(Reason::HostNotAnAddress)?;
        let app = match &authority {
            Authority::App(app) => Some(app),
            Authority::Binding(id) => self.world.bindings.iter().find(|b| b.id == *id).unwrap().app_id.as_ref(),
            Authority::Trusted => None,
        };
        let origin = self.origin(app)?;
        let endpoints = self.endpoints(entry, host)?;
        let service_instance_id = entry.id.clone();
        if self.action == Action::Unregister {
            return Ok(Accepted::Unregister(Withdrawal { service_instance_id, endpoints, origin }));
        }
        endpoints.iter().try_for_each(|endpoint| self.may_be_at(endpoint.address, app))?;
        let since = self.harbor().since.filter(|at| *at > 0).or(origin.updated_at_ns.map(|ns| ns / 1000));
        Ok(Accepted::Register(Registration {
            service_instance_id,
            endpoints,
            authority,
            origin,
            time_to_live: self.time_to_live(),
            state,
            since: since.map(|at| Timestamp(at.min(WALL.0))),
            heard_at: WALL,
        }))
    }

    fn time_to_live(&self) -> Duration {
        let seconds = self.message.stale_threshold_in_seconds.filter(|seconds| (1..120).contains(seconds));
        Duration::from_secs(seconds.unwrap_or(120).unsigned_abs())
    }

    /// By what authority: the first that holds; else what is wrong with the proof, or with the app.
    fn authority(&self, entry: &DirectoryEntry, host: Option<IpAddr>) -> Result<Authority, Reason> {
        let by_app = filled(&self.message.app).map(|app| {
            let bound = self.is_bound(app, entry).then(|| Authority::App(AppId::new(app).unwrap()));
            bound.ok_or(Reason::AppNotBound)
        });
        let by_proof = self.harbor().proof.map(|proof| self.proven(&proof, entry).map(Authority::Binding));
        let trusts = self.world.rules.trusted.iter().any(|trusted| {
            host.is_some_and(|host| is_in(host, &trusted.networks))
                && trusted.service_instances.as_ref().is_none_or(|ids| ids.contains(&entry.id))
        });
        let by_host = trusts.then_some(Ok(Authority::Trusted));
        let why = [&by_proof, &by_app].into_iter().flatten().find_map(|tried| tried.as_ref().err().copied());
        let first = [by_app, by_proof, by_host].into_iter().flatten().find_map(Result::ok);
        first.ok_or(why.unwrap_or(Reason::NoAuthority))
    }

    /// Whose token the proof was made with.
    fn proven(&self, presented: &str, entry: &DirectoryEntry) -> Result<BindingId, Reason> {
        let harbor = self.harbor();
        let binding = self.world.bindings.iter().find(|b| harbor.binding_id.as_deref() == Some(b.id.as_str()));
        let binding = binding.filter(|b| b.announce && b.service_instance_id == entry.id).ok_or(Reason::BadProof)?;
        let made_at = i128::from(harbor.timestamp.ok_or(Reason::BadProof)?) * 1_000_000;
        if prove(self.message, self.action, &binding.id) != presented {
            return Err(Reason::BadProof);
        }
        let (age, oldest) = (i128::from(WALL.0) - made_at, self.time_to_live().as_micros().cast_signed());
        (-5_000_000..=oldest).contains(&age).then(|| binding.id.clone()).ok_or(Reason::StaleProof)
    }

    /// Who speaks: the app whose authority it is, else the app that the message names.
    fn origin(&self, app: Option<&AppId>) -> Result<Origin, Reason> {
        let (said, app_instance) = (filled(&self.message.app), filled(&self.message.private_instance_id));
        if [said, app_instance].into_iter().flatten().any(|id| id.len() > 255) {
            return Err(Reason::Malformed);
        }
        let latest = WALL.0 * 1000 + 5_000_000_000;
        Ok(Origin {
            app_id: app.cloned().or(said.map(|app| AppId::new(app).unwrap())),
            private_instance_id: app_instance.map(Into::into),
            updated_at_ns: self.message.endpoint_updated_at_ns.filter(|ns| (1..=latest).contains(ns)),
        })
    }

    /// Which ports.
    fn endpoints(&self, entry: &DirectoryEntry, host: IpAddr) -> Result<Vec<Endpoint>, Reason> {
        let (harbor, message) = (self.harbor(), self.message);
        let udp_port = harbor.udp_port.filter(|port| *port != 0);
        let serves: &[Transport] = match filled(&harbor.protocol).or(filled(&self.tags().harbor_protocol)) {
            Some("tcp") => &[Transport::Tcp],
            Some("udp") => &[Transport::Udp],
            None if message.port.is_none() && udp_port.is_some() => &[Transport::Udp],
            None | Some("both") => &[Transport::Tcp, Transport::Udp],
            Some(_) => return Err(Reason::Malformed),
        };
        let port = match (self.source, message.port, message.tls_port) {
            (Source::ServiceDiscovery, None | Some(0), _) => Ok(entry.int_port),
            (_, Some(0), _) | (_, None, Some(1..)) => Err(Reason::TlsOnly),
            (_, None, _) => Err(Reason::NoPort),
            (_, Some(port), _) => Ok(port),
        };
        let mut endpoints = Vec::new();
        for transport in serves.iter().copied().filter(|transport| entry.protocol.has(*transport)) {
            let udp_port = udp_port.filter(|_| transport == Transport::Udp);
            endpoints.push(Endpoint { transport, address: SocketAddr::new(host, udp_port.map_or(port, Ok)?) });
        }
        if endpoints.is_empty() { Err(Reason::ProtocolMismatch) } else { Ok(endpoints) }
    }

    /// Which address.
    fn may_be_at(&self, address: SocketAddr, app: Option<&AppId>) -> Result<(), Reason> {
        let (ip, port, rules) = (address.ip(), address.port(), &self.world.rules.addresses);
        let is_here = |ip: IpAddr| ip.is_loopback() || rules.own_hosts.contains(&ip);
        let is_never = NEVER.iter().any(|network| network.parse::<IpNet>().unwrap().contains(&ip));
        let is_api =
            |api: &SocketAddr| api.port() == port && (api.ip() == ip || api.ip().is_unspecified() && is_here(ip));
        // What listens at one address of this machine may do so at the others.
        let is_used = |used: &SocketAddr| used.port() == port && (used.ip() == ip || is_here(used.ip()) && is_here(ip));
        if is_never || !is_in(ip, &rules.backend_networks) || is_in(ip, &rules.backend_deny) {
            return Err(Reason::AddressForbidden);
        }
        if is_here(ip) && (23_000..24_000).contains(&port) || rules.own_apis.iter().any(is_api) {
            return Err(Reason::Loop);
        }
        if rules.infrastructure.iter().any(is_used) {
            return Err(Reason::AddressForbidden);
        }
        if is_in(ip, &rules.cell_networks) && (app.is_none() || self.world.given.get(&address) != app) {
            return Err(Reason::NotAttributed);
        }
        Ok(())
    }
}
