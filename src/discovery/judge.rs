//! One decision over a message: what it means, or why it is refused. Pure.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use super::{
    address::{self, AddressRules},
    authority::{self, Claim, MAX_CLOCK_LEAD, Trusted},
    matching,
    source::{Action, Source},
    wire::Announcement,
};
use crate::model::{
    AppId, Protocol, ServiceInstanceId, Timestamp, Transport,
    announcement::{AnnouncedState, AnnouncementRefusal, Endpoint, Origin, Registration, Withdrawal},
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

/// Judges a message.
///
/// # Errors
/// [`Refused`].
pub fn judge(
    message: &Announcement,
    action: Action,
    source: Source,
    directory: &Directory,
    rules: &Rules,
    wall: Timestamp,
) -> Result<Accepted, Refused> {
    let entry = matching::service_instance(message, source, directory, rules.domain.as_deref())
        .map_err(|reason| Refused { service_instance_id: None, reason })?;
    judge_for(entry, message, action, directory, rules, wall)
        .map_err(|reason| Refused { service_instance_id: Some(entry.id.clone()), reason })
}

/// The address that a `router.register` gives to an app, whatever else it says: nobody else's backend is there any more.
#[must_use]
pub fn address_given(message: &Announcement) -> Option<(SocketAddr, AppId)> {
    let ip = address::parse_host(message.host.as_deref()?).ok()?;
    let port = message.port.filter(|port| *port != 0)?;
    Some((SocketAddr::new(ip, port), AppId::new(message.app.as_deref()?).ok()?))
}

fn judge_for(
    entry: &DirectoryEntry,
    message: &Announcement,
    action: Action,
    directory: &Directory,
    rules: &Rules,
    wall: Timestamp,
) -> Result<Accepted, AnnouncementRefusal> {
    let state = announced_state(message)?;
    let time_to_live = time_to_live(message, rules.stale_after);
    let host = address::parse_host(message.host.as_deref().unwrap_or_default());
    let claim = Claim { message, action, host: host.ok(), proof_lives: time_to_live, wall };
    let authority = authority::decide(&claim, entry, directory, &rules.trusted)?;
    let (host, origin, service_instance_id) = (host?, origin(message, wall)?, entry.id.clone());
    let endpoints = ports(message, entry.protocol)?
        .into_iter()
        .map(|(transport, port)| Endpoint { transport, address: SocketAddr::new(host, port) })
        .collect::<Vec<_>>();
    match action {
        Action::Register => {
            endpoints.iter().try_for_each(|endpoint| address::check(endpoint.address, &rules.addresses))?;
            let registration = Registration { service_instance_id, endpoints, authority, origin, time_to_live, state };
            Ok(Accepted::Register(registration))
        }
        Action::Unregister => Ok(Accepted::Unregister(Withdrawal { service_instance_id, endpoints, origin })),
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

fn origin(message: &Announcement, wall: Timestamp) -> Result<Origin, AnnouncementRefusal> {
    let app = message.app.as_deref().filter(|app| !app.is_empty());
    let app_id = app.map(AppId::new).transpose().map_err(|_| AnnouncementRefusal::Malformed)?;
    let instance = message.private_instance_id.as_deref().filter(|id| !id.is_empty());
    if instance.is_some_and(|id| id.len() > MAX_ID_BYTES) {
        return Err(AnnouncementRefusal::Malformed);
    }
    let latest = i128::from(wall.plus(MAX_CLOCK_LEAD).0) * 1000;
    let updated_at_ns = message.endpoint_updated_at_ns.filter(|ns| *ns > 0 && i128::from(*ns) <= latest);
    Ok(Origin { app_id, private_instance_id: instance.map(Arc::from), updated_at_ns })
}

/// The port of each transport that the backend serves and the service instance has.
fn ports(message: &Announcement, has: Protocol) -> Result<Vec<(Transport, u16)>, AnnouncementRefusal> {
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
