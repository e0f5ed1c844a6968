//! One decision over a message: what it means, or why it is refused. Pure.

use std::{net::SocketAddr, ops::RangeInclusive, sync::Arc, time::Duration};

use super::{
    address::{self, AddressRules},
    attribution::{Attribution, Speaker},
    authority::{self, Claim, MAX_CLOCK_LEAD, Trusted},
    matching,
    source::{Action, Source},
    wire::Announcement,
};
use crate::model::{
    AppId, Protocol, ServiceInstanceId, Timestamp, Transport,
    announcement::{AnnouncedState, AnnouncementRefusal, Authority, Endpoint, Origin, Registration, Withdrawal},
    directory::{Directory, DirectoryEntry},
    id::MAX_ID_BYTES,
};

/// What messages are held to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rules {
    /// The domain under which uris name service instances, in lower case and without a dot at either end.
    pub domain: Option<String>,
    /// The longest a backend lives without being announced again.
    pub stale_after: Duration,
    /// Hosts that are believed without app or token.
    pub trusted: Vec<Trusted>,
    /// Where backends may be.
    pub addresses: AddressRules,
}

/// What an accepted message asks of the table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Accepted {
    /// To add or renew.
    Register(Registration),
    /// To remove.
    Unregister(Withdrawal),
}

/// A message that makes no difference, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refused {
    /// Which service instance was meant, where that much is known.
    pub service_instance_id: Option<ServiceInstanceId>,
    /// Why.
    pub reason: AnnouncementRefusal,
}

/// What a message is held against.
#[derive(Debug, Clone, Copy)]
pub struct Known<'a> {
    /// Service instances and bindings.
    pub directory: &'a Directory,
    /// What the platform has said of addresses on cells.
    pub attribution: &'a Attribution,
    /// What the operator wants.
    pub rules: &'a Rules,
    /// The time by this node's clock.
    pub wall: Timestamp,
}

/// Judges a message.
///
/// # Errors
/// [`Refused`].
pub fn judge(message: &Announcement, action: Action, source: Source, known: &Known<'_>) -> Result<Accepted, Refused> {
    let entry = matching::service_instance(message, source, known.directory, known.rules.domain.as_deref())
        .map_err(|reason| Refused { service_instance_id: None, reason })?;
    judge_for(entry, message, action, source, known)
        .map_err(|reason| Refused { service_instance_id: Some(entry.id.clone()), reason })
}

/// What a message of the platform says of whose addresses are, whatever else it says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Given<'a> {
    /// The addresses: that of a route, or all of a container's.
    pub addresses: Vec<RangeInclusive<SocketAddr>>,
    /// Whose they are; none: not an app's.
    pub speaker: Option<Speaker<'a>>,
}

/// What the message says of whose addresses are.
#[must_use]
pub fn given(message: &Announcement, source: Source) -> Option<Given<'_>> {
    let ip = address::parse_host(message.host.as_deref()?).ok()?;
    let ports = [message.port, message.tls_port].into_iter().flatten().filter(|port| *port != 0);
    let mut addresses =
        ports.map(|port| SocketAddr::new(ip, port)).map(|address| address..=address).collect::<Vec<_>>();
    match source {
        Source::Router => {}
        // A container is one app's, with all of its ports.
        Source::ServiceDiscovery if addresses.is_empty() => {
            addresses.push(SocketAddr::new(ip, 0)..=SocketAddr::new(ip, u16::MAX));
        }
        Source::ServiceDiscovery => {}
        Source::Harbor | Source::Http => return None,
    }
    let filled = |text: &&str| !text.is_empty();
    let app = message.app.as_deref().filter(filled);
    let app_instance = message.private_instance_id.as_deref().filter(filled);
    Some(Given { addresses, speaker: app.map(|app| Speaker { app, app_instance }) })
}

fn judge_for(
    entry: &DirectoryEntry,
    message: &Announcement,
    action: Action,
    source: Source,
    known: &Known<'_>,
) -> Result<Accepted, AnnouncementRefusal> {
    let Known { directory, attribution, rules, wall } = *known;
    let state = announced_state(message)?;
    let time_to_live = time_to_live(message, rules.stale_after);
    let host = address::parse_host(message.host.as_deref().unwrap_or_default());
    let claim = Claim { message, action, host: host.ok(), proof_lives: time_to_live, wall };
    let authority = authority::decide(&claim, entry, directory, &rules.trusted)?;
    let app = app_of(&authority, directory);
    let (host, origin, service_instance_id) = (host?, origin(message, app, wall)?, entry.id.clone());
    let endpoints = ports(message, source, entry)?
        .into_iter()
        .map(|(transport, port)| Endpoint { transport, address: SocketAddr::new(host, port) })
        .collect::<Vec<_>>();
    match action {
        Action::Register => {
            for endpoint in &endpoints {
                address::check(endpoint.address, &rules.addresses)?;
                let is_attributed = || app.is_some_and(|app| attribution.is_of(endpoint.address, app.as_str()));
                if rules.addresses.is_on_cell(host) && !is_attributed() {
                    return Err(AnnouncementRefusal::NotAttributed);
                }
            }
            let registration = Registration {
                service_instance_id,
                endpoints,
                authority,
                since: since(message, &origin, wall),
                origin,
                time_to_live,
                state,
                heard_at: wall,
            };
            Ok(Accepted::Register(registration))
        }
        Action::Unregister => Ok(Accepted::Unregister(Withdrawal { service_instance_id, endpoints, origin })),
    }
}

/// The app that the authority is of; none of a key's token and of a trusted source.
fn app_of<'a>(authority: &'a Authority, directory: &'a Directory) -> Option<&'a AppId> {
    match authority {
        Authority::App(app) => Some(app),
        Authority::Binding(binding) => directory.binding(binding.as_str())?.app_id.as_ref(),
        Authority::Trusted => None,
    }
}

fn announced_state(message: &Announcement) -> Result<AnnouncedState, AnnouncementRefusal> {
    match message.harbor().state.as_deref() {
        None | Some("" | "up") => Ok(AnnouncedState::Up),
        Some("draining") => Ok(AnnouncedState::Draining),
        Some(_) => Err(AnnouncementRefusal::Malformed),
    }
}

/// A message can shorten the life of its backend, never prolong it.
pub(super) fn time_to_live(message: &Announcement, stale_after: Duration) -> Duration {
    let wanted = message.stale_threshold_in_seconds.and_then(|seconds| u64::try_from(seconds).ok());
    wanted.filter(|seconds| *seconds > 0).map_or(stale_after, |seconds| Duration::from_secs(seconds).min(stale_after))
}

/// Whoever has the authority of an app speaks for it, whatever app the message names; all its backends share the id.
fn origin(message: &Announcement, app: Option<&AppId>, wall: Timestamp) -> Result<Origin, AnnouncementRefusal> {
    let said = message.app.as_deref().filter(|app| !app.is_empty());
    let instance = message.private_instance_id.as_deref().filter(|id| !id.is_empty());
    if [said, instance].into_iter().flatten().any(|id| id.len() > MAX_ID_BYTES) {
        return Err(AnnouncementRefusal::Malformed);
    }
    let app_id = app.cloned().or_else(|| AppId::new(said?).ok());
    let latest = i128::from(wall.plus(MAX_CLOCK_LEAD).0) * 1000;
    let updated_at_ns = message.endpoint_updated_at_ns.filter(|ns| *ns > 0 && i128::from(*ns) <= latest);
    Ok(Origin { app_id, private_instance_id: instance.map(Arc::from), updated_at_ns })
}

/// When the backend was first announced, as far as the message tells: in Harbor's own words, else by when the app
/// instance last changed. What is ahead of this node's clock is now.
fn since(message: &Announcement, origin: &Origin, wall: Timestamp) -> Option<Timestamp> {
    let said = message.harbor().since.filter(|micros| *micros > 0);
    said.or(origin.updated_at_ns.map(|ns| ns / 1000)).map(|micros| Timestamp(micros).min(wall))
}

/// The port of each transport that the backend serves and the service instance has.
fn ports(
    message: &Announcement,
    source: Source,
    entry: &DirectoryEntry,
) -> Result<Vec<(Transport, u16)>, AnnouncementRefusal> {
    let has = entry.protocol;
    let word = message.harbor_or_tag(|harbor| harbor.protocol.as_ref(), |tags| tags.harbor_protocol.as_ref());
    let declared = word.map(str::parse::<Protocol>).transpose().map_err(|_| AnnouncementRefusal::Malformed)?;
    let udp_port = message.harbor().udp_port.filter(|port| *port != 0);
    let serves = match declared {
        Some(protocol) => protocol,
        // It has said nothing but where it serves UDP.
        None if message.port.is_none() && udp_port.is_some() => Protocol::Udp,
        None => has,
    };
    let plain = match (message.port, message.tls_port.unwrap_or(0)) {
        // An internal route is the address of a container: the app listens on what it was told to.
        (Some(0) | None, _) if source == Source::ServiceDiscovery => Ok(entry.int_port),
        (Some(0), _) | (None, 1..) => Err(AnnouncementRefusal::TlsOnly),
        (None, 0) => Err(AnnouncementRefusal::NoPort),
        (Some(port), _) => Ok(port),
    };
    let common = has.transports().iter().filter(|transport| serves.has(**transport));
    let ports = common
        .map(|transport| match (transport, udp_port) {
            (Transport::Udp, Some(port)) => Ok((*transport, port)),
            _ => plain.map(|port| (*transport, port)),
        })
        .collect::<Result<Vec<_>, _>>()?;
    if ports.is_empty() { Err(AnnouncementRefusal::ProtocolMismatch) } else { Ok(ports) }
}

#[cfg(test)]
mod tests;
