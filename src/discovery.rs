//! Announcements: from bytes over NATS or HTTP to backends in the table.
//!
//! Every message takes the same way: [`wire`] (form) → [`matching`] (which service instance) → [`authority`] (who says
//! so) → [`address`] (where it may be) → [`crate::backends`]. The steps are pure; [`Discovery`] joins them to the live
//! directory and table, and [`nats`], [`announce`] and [`upkeep`] are the shells that do the I/O. Nothing here touches
//! a socket of a port.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::Duration,
};

use arc_swap::ArcSwap;
use bytes::Bytes;
use ipnet::IpNet;
use tokio::sync::{mpsc, watch};

use crate::{
    backends::{Backends, Change},
    model::{Clock, ServiceInstanceId, Timestamp, announcement::AnnouncementRefusal, directory::Directory},
    telemetry::metrics::DiscoveryMetrics,
};

pub mod address;
pub mod announce;
pub mod authority;
pub mod judge;
pub mod matching;
pub mod nats;
pub mod source;
pub mod upkeep;
pub mod wire;

mod rate;
mod refusals;
mod tally;

#[cfg(test)]
mod fixture;

pub use announce::announce_router;
pub use refusals::{MAX_REFUSALS, Refusal};

use judge::{Accepted, Refused, Rules};
use refusals::Refusals;
use source::{Action, Source};
use tally::Tally;

/// Relays that wait for NATS; more are dropped and counted: their announcers repeat them.
const MAX_WAITING_RELAYS: usize = 1024;

/// What discovery needs to be told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// What messages are held to.
    pub rules: Rules,
    /// How often backends that were not announced in time are looked for.
    pub prune_every: Duration,
    /// How long that is suspended, at the longest, while NATS is away.
    pub prune_suspend_max: Duration,
    /// Networks in which a token may announce a host other than the caller.
    pub token_networks: Vec<IpNet>,
}

/// Judges announcements against the live directory and brings them into the table.
pub struct Discovery {
    settings: ArcSwap<Settings>,
    backends: Backends,
    directory: watch::Receiver<Arc<Directory>>,
    clock: Arc<dyn Clock>,
    metrics: Arc<DiscoveryMetrics>,
    tally: Tally,
    refusals: Mutex<Refusals>,
    relays: mpsc::Sender<Relay>,
}

/// HTTP announcements on their way to the other nodes: for [`nats::run`], or dropped where there is no NATS.
#[derive(Debug)]
pub struct Relays(mpsc::Receiver<Relay>);

#[derive(Debug)]
struct Relay {
    subject: &'static str,
    payload: Bytes,
}

impl Discovery {
    /// Joins the parts.
    #[must_use]
    pub fn new(
        settings: Settings,
        backends: Backends,
        directory: watch::Receiver<Arc<Directory>>,
        clock: Arc<dyn Clock>,
        metrics: Arc<DiscoveryMetrics>,
    ) -> (Arc<Self>, Relays) {
        let (relays, waiting) = mpsc::channel(MAX_WAITING_RELAYS);
        let discovery = Self {
            settings: ArcSwap::from_pointee(settings),
            backends,
            directory,
            clock,
            tally: Tally::new(&metrics),
            metrics,
            refusals: Mutex::default(),
            relays,
        };
        (Arc::new(discovery), Relays(waiting))
    }

    /// Takes over other settings; `prune_every` from the next sweep on.
    pub fn set_settings(&self, settings: Settings) {
        self.settings.store(Arc::new(settings));
    }

    /// Whether the address rules let a backend be at `address`.
    #[must_use]
    pub fn admits(&self, address: SocketAddr) -> bool {
        address::check(address, &self.settings.load().rules.addresses).is_ok()
    }

    /// The last refusals of a service instance, the latest first.
    #[must_use]
    pub fn refusals(&self, id: &ServiceInstanceId) -> Vec<Refusal> {
        self.refusals.lock().expect("nothing panics while it holds the refusals").of(id)
    }

    /// Takes a message from NATS. What it is worth is counted; nothing in it is fatal.
    pub fn receive(&self, source: Source, action: Action, payload: &[u8]) {
        let message = match wire::parse(payload) {
            Ok(message) => message,
            Err(malformed) => {
                tracing::debug!(source = source.as_str(), %malformed, "an announcement is malformed");
                return self.tally.refused(source, AnnouncementRefusal::Malformed);
            }
        };
        if (source, action) == (Source::Router, Action::Register)
            && let Some((address, app)) = judge::address_given(&message)
            && self.backends.evict_address(address, &app)
        {
            tracing::debug!(%address, %app, "backends gave way to the app that their address belongs to now");
            self.metrics.evictions.inc();
            self.show_counts();
        }
        // A refusal is counted and kept for who may ask; the sender of a message on NATS is not known.
        let _ = self.decide(&message, action, source);
    }

    /// Judges a message and, when it is accepted, applies it.
    fn decide(&self, message: &wire::Announcement, action: Action, source: Source) -> Result<Change, Refused> {
        let directory = Arc::clone(&self.directory.borrow());
        let wall = self.clock.wall();
        let outcome = self.judge_and_apply(message, action, source, &directory, wall);
        if !Arc::ptr_eq(&directory, &self.directory.borrow()) {
            // A newer one came meanwhile, and its eviction may have run before the backend was there.
            let newer = Arc::clone(&self.directory.borrow());
            self.backends.retain_authorised(&newer);
        }
        match &outcome {
            Ok(change) => {
                self.tally.accepted(source, *change);
                if *change != Change::Renewed {
                    self.show_counts();
                }
            }
            Err(Refused { service_instance_id, reason }) => {
                self.tally.refused(source, *reason);
                if let Some(id) = service_instance_id {
                    let host = message.host.clone().unwrap_or_default();
                    tracing::debug!(service_instance = %id, ?host, reason = reason.as_str(), "an announcement is refused");
                    let refusal = Refusal { at: wall, source, reason: *reason, host, port: message.port };
                    self.refusals.lock().expect("nothing panics while it holds the refusals").push(id, refusal);
                }
            }
        }
        outcome
    }

    fn judge_and_apply(
        &self,
        message: &wire::Announcement,
        action: Action,
        source: Source,
        directory: &Directory,
        wall: Timestamp,
    ) -> Result<Change, Refused> {
        let now = self.clock.now();
        let accepted = judge::judge(message, action, source, directory, &self.settings.load().rules, wall)?;
        let (id, outcome) = match &accepted {
            Accepted::Register(registration) => {
                (&registration.service_instance_id, self.backends.apply(registration, now))
            }
            Accepted::Unregister(withdrawal) => {
                (&withdrawal.service_instance_id, self.backends.withdraw(withdrawal, now))
            }
        };
        outcome.map_err(|reason| Refused { service_instance_id: Some(id.clone()), reason })
    }

    /// Hands an accepted HTTP announcement to the other nodes.
    fn relay(&self, action: Action, message: &wire::Announcement) {
        let subject = match action {
            Action::Register => wire::HARBOR_REGISTER,
            Action::Unregister => wire::HARBOR_UNREGISTER,
        };
        let relay = Relay { subject, payload: message.to_bytes().into() };
        if let Err(mpsc::error::TrySendError::Full(_)) = self.relays.try_send(relay) {
            self.metrics.relays_dropped.inc();
        }
    }

    fn show_counts(&self) {
        let counts = self.backends.counts();
        self.metrics.set_backends("tcp", counts.tcp);
        self.metrics.set_backends("udp", counts.udp);
    }
}

impl std::fmt::Debug for Discovery {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Discovery").field("backends", &self.backends).finish_non_exhaustive()
    }
}
