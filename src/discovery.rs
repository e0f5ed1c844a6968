//! Announcements: from bytes over NATS or HTTP to backends in the table.
//!
//! Every message takes the same way: [`wire`] (form) → [`matching`] (which service instance) → [`authority`] (who says
//! so) → [`address`] (where it may be; on a Diego cell, by [`attribution`], only what the platform has given the app) →
//! [`crate::backends`]. The steps are pure; [`Discovery`] joins them to the live
//! directory and table, and [`nats`], [`announce`] and [`upkeep`] are the shells that do the I/O. Nothing here touches
//! a socket of a port.

use std::{
    collections::HashMap,
    net::SocketAddr,
    ops::RangeInclusive,
    sync::{Arc, Mutex, MutexGuard},
    time::{Duration, Instant},
};

use arc_swap::ArcSwap;
use bytes::Bytes;
use ipnet::IpNet;
use tokio::sync::{mpsc, watch};

use crate::{
    backends::{Backend, Backends, Change},
    model::{
        AppId, Clock, ServiceInstanceId,
        announcement::{AnnouncementRefusal, Authority, Refusal, Sketch},
        directory::Directory,
    },
    telemetry::metrics::DiscoveryMetrics,
};

pub mod address;
pub mod announce;
pub mod attribution;
pub mod authority;
pub mod judge;
pub mod matching;
pub mod nats;
pub mod seniority;
pub mod source;
pub mod upkeep;
pub mod wire;

mod early;
mod rate;
mod refusals;
mod tally;

#[cfg(test)]
mod fixture;

pub use announce::announce_router;
pub use refusals::MAX_REFUSALS;

use attribution::Attribution;
use early::Early;
use judge::{Accepted, Given, Known, Refused, Rules};
use refusals::Refusals;
use seniority::Unsaid;
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
    attribution: Mutex<Attribution>,
    unsaid: Mutex<Unsaid>,
    early: Mutex<Early>,
    relays: mpsc::Sender<Relay>,
}

/// HTTP announcements on their way to the other nodes: for [`nats::run`], or dropped where there is no NATS.
#[derive(Debug)]
pub struct Relays(mpsc::Receiver<Relay>);

#[derive(Debug)]
struct Relay {
    subject: &'static str,
    payload: Bytes,
    /// Until when it is news: what waited longer for NATS says nothing of today.
    good_until: Instant,
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
            attribution: Mutex::default(),
            unsaid: Mutex::default(),
            early: Mutex::default(),
            relays,
        };
        (Arc::new(discovery), Relays(waiting))
    }

    /// Takes over other settings, and ends backends that they do not let stand; `prune_every` from the next sweep on.
    pub fn set_settings(&self, settings: Settings) {
        self.settings.store(Arc::new(settings));
        self.backends.retain(|id, backend| self.admits(id, backend));
        self.show_counts();
    }

    /// Whether the operator's settings let a backend stand: where it is, and by trust where it is believed by that.
    #[must_use]
    pub fn admits(&self, id: &ServiceInstanceId, backend: &Backend) -> bool {
        let (rules, address) = (&self.settings.load().rules, backend.endpoint.address);
        let is_trusted = || rules.trusted.iter().any(|source| source.covers(address.ip(), id));
        address::check(address, &rules.addresses).is_ok() && (backend.authority != Authority::Trusted || is_trusted())
    }

    /// The last refusals of a service instance, or of messages that name none that there is; the latest first.
    #[must_use]
    pub fn refusals(&self, whose: &Option<ServiceInstanceId>) -> Vec<Refusal> {
        self.known_refusals().of(whose)
    }

    /// The last refusals of each.
    #[must_use]
    pub fn all_refusals(&self) -> HashMap<Option<ServiceInstanceId>, Vec<Refusal>> {
        self.known_refusals().all()
    }

    fn known_refusals(&self) -> MutexGuard<'_, Refusals> {
        self.refusals.lock().expect("nothing panics while it holds the refusals")
    }

    /// Takes a message from NATS. What it is worth is counted; nothing in it is fatal.
    pub fn receive(&self, source: Source, action: Action, payload: &[u8]) {
        let arrived_at = self.clock.now();
        let message = match wire::parse(payload) {
            Ok(message) => message,
            Err(malformed) => {
                let detail = Some(refusals::shortened(&malformed.to_string()));
                let of = Sketch { detail, ..Sketch::default() };
                return self.refused(source, AnnouncementRefusal::Malformed, &[None], &of);
            }
        };
        let given = judge::given(&message, source);
        if let (Some(given), Action::Register) = (&given, action) {
            let time_to_live = judge::time_to_live(&message, self.settings.load().rules.stale_after);
            self.give(given, source, arrived_at + time_to_live);
        }
        // A refusal is counted and kept for who may ask; the sender of a message on NATS is not known.
        let outcome = self.decide(&message, action, source, arrived_at);
        if let (Some(given), Action::Unregister) = (&given, action) {
            self.take(given, source);
        }
        if let Err(refused) = outcome {
            self.keep_early(message, action, source, arrived_at, refused.reason);
        }
    }

    /// The platform has given addresses to an app: nobody else's backend is there any more.
    fn give(&self, given: &Given<'_>, source: Source, expires_at: Instant) {
        let app = given.speaker.and_then(|speaker| AppId::new(speaker.app).ok());
        for addresses in &given.addresses {
            let on_cell = source == Source::Router && self.is_on_cell(*addresses.start());
            if on_cell && self.attribution().set(*addresses.start(), given.speaker, expires_at).is_err() {
                self.metrics.attributions_dropped.inc();
            }
            // Elsewhere than on a cell what is no app's may be announced by whoever it is.
            if app.is_some() || on_cell {
                self.evict(addresses, app.as_ref());
            }
        }
    }

    /// The platform has taken addresses from an app: on a cell nothing is believed to be there any more.
    fn take(&self, given: &Given<'_>, source: Source) {
        let (Some(speaker), Source::Router) = (given.speaker, source) else { return };
        for addresses in &given.addresses {
            if self.is_on_cell(*addresses.start()) && self.attribution().take(*addresses.start(), speaker) {
                self.evict(addresses, None);
            }
        }
    }

    /// Forgets to whom addresses on cells were given when that has not been said again in time.
    fn expire_attribution(&self) {
        let expired = self.attribution().expire(self.clock.now());
        for address in expired {
            self.evict(&(address..=address), None);
        }
        let known = self.attribution().len();
        self.metrics.attributed_addresses.set(i64::try_from(known).unwrap_or(i64::MAX));
    }

    fn evict(&self, addresses: &RangeInclusive<SocketAddr>, owner: Option<&AppId>) {
        if self.backends.evict(addresses, owner) {
            let owner = owner.map(AppId::as_str);
            tracing::debug!(address = %addresses.start(), owner, "backends gave way: their address is another's now");
            self.metrics.evictions.inc();
            self.show_counts();
        }
    }

    fn is_on_cell(&self, address: SocketAddr) -> bool {
        self.settings.load().rules.addresses.is_on_cell(address.ip())
    }

    fn attribution(&self) -> MutexGuard<'_, Attribution> {
        self.attribution.lock().expect("nothing panics while it holds the attribution")
    }

    /// Judges a message and, when it is accepted, applies it.
    fn decide(
        &self,
        message: &wire::Announcement,
        action: Action,
        source: Source,
        arrived_at: Instant,
    ) -> Result<Change, Refused> {
        let directory = Arc::clone(&self.directory.borrow());
        let outcome = self.judge_and_apply(message, action, source, &directory, arrived_at);
        if !Arc::ptr_eq(&directory, &self.directory.borrow()) {
            // A newer one came meanwhile, and its eviction may have run before the backend was there.
            let newer = Arc::clone(&self.directory.borrow());
            self.hold_against(&newer, Some(&directory));
        }
        match &outcome {
            Ok(change) => self.accepted(source, *change, arrived_at),
            Err(Refused { service_instance_id, reason }) => {
                let whose = match (reason, &message.app) {
                    // Somebody's HTTP route is counted, and no concern of Harbor's.
                    (AnnouncementRefusal::NotAddressed, _) => Vec::new(),
                    (AnnouncementRefusal::NotMatched, Some(app)) => {
                        directory.all_by_app(app).iter().cloned().map(Some).collect()
                    }
                    _ => vec![service_instance_id.clone()],
                };
                self.refused(source, *reason, &whose, &refusals::sketch(message));
            }
        }
        outcome
    }

    fn accepted(&self, source: Source, change: Change, arrived_at: Instant) {
        self.tally.accepted(source, change);
        if change != Change::Renewed {
            self.metrics.announced_to_set(self.clock.now().saturating_duration_since(arrived_at));
            self.show_counts();
        }
    }

    /// Counts a refusal, and keeps it for who asks why these have no backend.
    fn refused(&self, source: Source, reason: AnnouncementRefusal, whose: &[Option<ServiceInstanceId>], of: &Sketch) {
        self.tally.refused(source, reason);
        let times = (self.clock.now(), self.clock.wall());
        for whose in whose {
            let log = self.known_refusals().push(whose, (source, reason), of.clone(), times);
            // An app that has a port beside its route is no news.
            if log && reason != AnnouncementRefusal::NotMatched {
                let Sketch { named, app, host, port, udp_port, detail } = of;
                tracing::warn!(
                    service_instance = whose.as_ref().map(ServiceInstanceId::as_str),
                    source = source.as_str(),
                    reason = reason.as_str(),
                    named,
                    app,
                    host,
                    port,
                    udp_port,
                    detail,
                    "an announcement is refused"
                );
            }
        }
    }

    fn judge_and_apply(
        &self,
        message: &wire::Announcement,
        action: Action,
        source: Source,
        directory: &Directory,
        now: Instant,
    ) -> Result<Change, Refused> {
        let accepted = {
            let (settings, attribution) = (self.settings.load(), self.attribution());
            let known = Known { directory, attribution: &attribution, rules: &settings.rules, wall: self.clock.wall() };
            judge::judge(message, action, source, &known)?
        };
        let (id, outcome) = match &accepted {
            Accepted::Register(registration) => {
                (&registration.service_instance_id, self.backends.apply(registration, now))
            }
            Accepted::Unregister(withdrawal) => {
                (&withdrawal.service_instance_id, self.backends.withdraw(withdrawal, now))
            }
        };
        if let Ok(Change::Added) = outcome {
            self.say_seniority_of(id);
        }
        outcome.map_err(|reason| Refused { service_instance_id: Some(id.clone()), reason })
    }

    /// Hands an accepted HTTP announcement to the other nodes.
    fn relay(&self, action: Action, message: &wire::Announcement) {
        let subject = match action {
            Action::Register => wire::HARBOR_REGISTER,
            Action::Unregister => wire::HARBOR_UNREGISTER,
        };
        let time_to_live = judge::time_to_live(message, self.settings.load().rules.stale_after);
        let relay = Relay { subject, payload: message.to_bytes().into(), good_until: self.clock.now() + time_to_live };
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
