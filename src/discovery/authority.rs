//! By what authority a message is believed. Pure.

use std::{collections::BTreeSet, net::IpAddr, time::Duration};

use ipnet::IpNet;

use super::{source::Action, wire::Announcement};
use crate::model::{
    ServiceInstanceId, Timestamp,
    announcement::{AnnouncementRefusal, Authority},
    directory::{Directory, DirectoryEntry},
    token::Statement,
};

/// How far a time in a message may be ahead of this node's clock.
pub const MAX_CLOCK_LEAD: Duration = Duration::from_secs(5);

/// A source that is believed by the announced host alone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trusted {
    /// Networks of the host.
    pub networks: Vec<IpNet>,
    /// What it may serve; `None`: every service instance.
    pub service_instances: Option<BTreeSet<ServiceInstanceId>>,
}

/// A message with what its authority depends on beside it.
#[derive(Debug, Clone, Copy)]
pub struct Claim<'a> {
    /// The message.
    pub message: &'a Announcement,
    /// What it wants.
    pub action: Action,
    /// The announced host, when it is an address.
    pub host: Option<IpAddr>,
    /// How old a proof may be.
    pub proof_lives: Duration,
    /// The time by this node's clock.
    pub wall: Timestamp,
}

/// The first authority that holds: the app's binding, a proof of a binding's token, a trusted host.
///
/// # Errors
/// Why none holds: of the proof when there is one, else of the app when there is one.
pub fn decide(
    claim: &Claim<'_>,
    entry: &DirectoryEntry,
    directory: &Directory,
    trusted: &[Trusted],
) -> Result<Authority, AnnouncementRefusal> {
    let app = claim.message.app.as_deref().filter(|app| !app.is_empty());
    if let Some(app) = app.and_then(|app| entry.bound_app(app)) {
        return Ok(Authority::App(app.clone()));
    }
    let proven = prove(claim, entry, directory);
    if let Some(Ok(authority)) = proven {
        return Ok(authority);
    }
    if claim.host.is_some_and(|host| trusted.iter().any(|source| source.covers(host, &entry.id))) {
        return Ok(Authority::Trusted);
    }
    Err(match (proven, app) {
        (Some(Err(refusal)), _) => refusal,
        (_, Some(_)) => AnnouncementRefusal::AppNotBound,
        (_, None) => AnnouncementRefusal::NoAuthority,
    })
}

/// What a proof of the message has to vouch for: its fields as they stand in it.
#[must_use]
pub fn statement(message: &Announcement, action: Action) -> Statement<'_> {
    fn text(field: Option<&String>) -> &str {
        field.map(String::as_str).unwrap_or_default()
    }
    let harbor = message.harbor();
    Statement {
        action: action.as_str(),
        instance_id: text(harbor.instance_id.as_ref()),
        binding_id: text(harbor.binding_id.as_ref()),
        protocol: text(harbor.protocol.as_ref()),
        host: text(message.host.as_ref()),
        port: message.port,
        udp_port: harbor.udp_port,
        state: text(harbor.state.as_ref()),
        timestamp: harbor.timestamp,
    }
}

/// The authority of the message's proof; none when it has no proof.
fn prove(
    claim: &Claim<'_>,
    entry: &DirectoryEntry,
    directory: &Directory,
) -> Option<Result<Authority, AnnouncementRefusal>> {
    let harbor = claim.message.harbor();
    let proof = harbor.proof.as_deref()?;
    let binding = harbor.binding_id.as_deref().and_then(|id| directory.binding(id));
    let binding = binding.filter(|binding| binding.service_instance_id == entry.id && binding.announce);
    let (Some(binding), Some(made_at)) = (binding, harbor.timestamp.map(Timestamp::from_seconds)) else {
        return Some(Err(AnnouncementRefusal::BadProof));
    };
    let statement = statement(claim.message, claim.action);
    if !directory.announce_secret.tokens(&binding.id).any(|token| token.verifies(&statement, proof)) {
        return Some(Err(AnnouncementRefusal::BadProof));
    }
    if claim.wall.since(made_at) > claim.proof_lives || made_at.since(claim.wall) > MAX_CLOCK_LEAD {
        return Some(Err(AnnouncementRefusal::StaleProof));
    }
    Some(Ok(Authority::Binding(binding.id.clone())))
}

impl Trusted {
    /// Whether it may say that `host` serves this service instance.
    pub(super) fn covers(&self, host: IpAddr, id: &ServiceInstanceId) -> bool {
        self.networks.iter().any(|network| network.contains(&host))
            && self.service_instances.as_ref().is_none_or(|ids| ids.contains(id))
    }
}
