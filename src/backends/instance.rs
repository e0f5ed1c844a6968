//! The backends of one service instance, and the rules of their lives. No lock, no slot, no clock.

use std::{
    cmp::Ordering,
    collections::VecDeque,
    mem,
    sync::{Arc, Weak},
    time::{Duration, Instant},
};

use super::{Backend, BackendSet, Change, Phase, members::Members};
use crate::model::{
    ServiceInstanceId, Timestamp, Transport,
    announcement::{AnnouncedState, AnnouncementRefusal, Authority, Endpoint, Origin, Registration, Withdrawal},
    directory::Directory,
};

/// Withdrawals that are remembered per service instance, so that an older register that comes late is told from a new
/// one. The oldest is forgotten first.
const MAX_REMEMBERED_WITHDRAWALS: usize = 256;

/// A backend with what only the table knows of it.
#[derive(Debug, Clone)]
pub struct BackendState {
    /// What the forwarder sees.
    pub backend: Arc<Backend>,
    /// Who announced it last.
    pub origin: Origin,
    /// Whether it wants new work.
    pub state: AnnouncedState,
    /// Since when it does, or does not.
    pub state_since: Instant,
    /// How long it lives after each announcement.
    pub time_to_live: Duration,
    /// When it ends unless it is announced again.
    pub expires_at: Instant,
    /// When it was first announced: the earliest that any announcement has said, else when this node heard of it. The order
    /// of a set is by this, so that all nodes have the same.
    pub since: Timestamp,
}

/// Whether a backend of `transport` that `authority` made may still serve the service instance.
#[must_use]
pub fn stands(authority: &Authority, id: &ServiceInstanceId, transport: Transport, directory: &Directory) -> bool {
    let Some(entry) = directory.instance(id.as_str()) else { return false };
    entry.protocol.has(transport)
        && match authority {
            Authority::App(app) => entry.bound_app(app.as_str()).is_some(),
            Authority::Binding(binding) => {
                entry.bindings.contains(binding)
                    && directory.binding(binding.as_str()).is_some_and(|binding| binding.announce)
            }
            Authority::Trusted => true,
        }
}

#[derive(Debug, Default)]
pub(super) struct Instance {
    members: Members,
    withdrawn: VecDeque<Withdrawn>,
    /// Backends that left while flows were still on them: those end when the authority does.
    departed: Vec<Weak<Backend>>,
    /// Which members came and went since they were asked for.
    moves: Vec<Move>,
}

/// A change of membership.
#[derive(Debug)]
pub(super) enum Move {
    Came(Arc<Backend>),
    Went(Arc<Backend>),
}

#[derive(Debug)]
struct Withdrawn {
    endpoint: Endpoint,
    origin: Origin,
    forget_at: Instant,
}

impl Instance {
    pub(super) fn members(&self) -> &[BackendState] {
        self.members.as_slice()
    }

    /// Which members came and went since the last call, in that order.
    pub(super) fn take_moves(&mut self) -> Vec<Move> {
        mem::take(&mut self.moves)
    }

    /// Whether nothing is left to know of it.
    pub(super) fn is_idle(&self) -> bool {
        self.members.is_empty() && self.departed.is_empty() && self.withdrawn.is_empty()
    }

    /// What new connections and sessions may go to.
    pub(super) fn set(&self) -> BackendSet {
        let mut set = BackendSet::default();
        for member in self.members.iter().filter(|member| member.state == AnnouncedState::Up) {
            match member.backend.endpoint.transport {
                Transport::Tcp => set.tcp.push(Arc::clone(&member.backend)),
                Transport::Udp => set.udp.push(Arc::clone(&member.backend)),
            }
        }
        set
    }

    /// Adds or renews; all endpoints or none.
    pub(super) fn apply(
        &mut self,
        registration: &Registration,
        limits: &Limits,
        now: Instant,
    ) -> Result<Change, AnnouncementRefusal> {
        let mut added = 0;
        for endpoint in &registration.endpoints {
            if self.knows_newer(endpoint, &registration.origin) {
                return Err(AnnouncementRefusal::OutOfOrder);
            }
            added += usize::from(self.members.find(endpoint).is_none());
        }
        if self.members.len() + added > limits.max_backends {
            return Err(AnnouncementRefusal::TooManyBackends);
        }
        let changes = registration.endpoints.iter().map(|endpoint| {
            self.withdrawn.retain(|withdrawn| withdrawn.endpoint != *endpoint);
            let Some(at) = self.members.find(endpoint) else {
                return self.add(*endpoint, registration, limits.drain_timeout, now);
            };
            let member = self.members.get_mut(at);
            match rank(&registration.authority).cmp(&rank(&member.backend.authority)) {
                _ if registration.authority == member.backend.authority => {
                    let change = member.renew(registration, limits.drain_timeout, now);
                    change.max(self.reorder(at, registration.since))
                }
                // So that two who announce the same address do not take turns.
                Ordering::Greater => {
                    member.expires_at = member.expires_at.max(now + registration.time_to_live);
                    Change::Renewed
                }
                // A better reason to believe it, or another app at the same address: another backend.
                Ordering::Less | Ordering::Equal => {
                    self.leave(at);
                    self.add(*endpoint, registration, limits.drain_timeout, now)
                }
            }
        });
        Ok(changes.max().unwrap_or(Change::Renewed))
    }

    /// Removes those that the sender may remove.
    pub(super) fn withdraw(&mut self, withdrawal: &Withdrawal, now: Instant) -> Result<Change, AnnouncementRefusal> {
        let mut refusal = AnnouncementRefusal::UnknownBackend;
        let mut removed = false;
        for endpoint in &withdrawal.endpoints {
            let Some(at) = self.members.find(endpoint) else { continue };
            let member = &self.members[at];
            if !agree(&member.origin, &withdrawal.origin) {
                refusal = AnnouncementRefusal::OtherOrigin;
            } else if is_newer(&member.origin, &withdrawal.origin) {
                refusal = AnnouncementRefusal::OutOfOrder;
            } else {
                let forget_at = now + member.time_to_live;
                self.remember(Withdrawn { endpoint: *endpoint, origin: withdrawal.origin.clone(), forget_at });
                self.leave(at);
                removed = true;
            }
        }
        if removed { Ok(Change::Removed) } else { Err(refusal) }
    }

    /// Puts members where another node's earlier times want them. Returns whether this node knows an earlier one of any,
    /// and whether it has learnt any.
    pub(super) fn learn_since(&mut self, told: &[(Endpoint, Timestamp)]) -> (bool, bool) {
        let (mut knows_earlier, mut learnt) = (false, false);
        for (endpoint, since) in told {
            if let Some(at) = self.members.find(endpoint) {
                knows_earlier |= self.members[at].since < *since;
                learnt |= self.reorder(at, Some(*since)) != Change::Renewed;
            }
        }
        (knows_earlier, learnt)
    }

    /// Takes over a backend that an earlier process knew, unless it has been announced since.
    pub(super) fn restore(&mut self, state: BackendState, limits: &Limits) -> bool {
        if self.members.find(&state.backend.endpoint).is_some() || self.members.len() >= limits.max_backends {
            return false;
        }
        if state.state == AnnouncedState::Draining {
            state.backend.set_phase(Phase::Draining);
            state.backend.set_drain_deadline(Some(state.state_since + limits.drain_timeout));
        }
        self.insert(state);
        true
    }

    /// Removes those whose time is over. Returns whether there were any.
    pub(super) fn expire(&mut self, now: Instant) -> bool {
        self.remove_where(Phase::Left, |member| member.expires_at <= now)
    }

    /// Forgets what no flow and no late message can ask for any more.
    pub(super) fn forget(&mut self, now: Instant) {
        self.departed.retain(|backend| backend.strong_count() > 0);
        self.withdrawn.retain(|withdrawn| withdrawn.forget_at > now);
    }

    /// Gives every backend its whole time again.
    pub(super) fn renew_all(&mut self, now: Instant) {
        for member in self.members.iter_mut() {
            member.expires_at = member.expires_at.max(now + member.time_to_live);
        }
    }

    /// Ends those whose authority does not stand, and the flows that are still on those that had left. Returns whether
    /// there were any.
    pub(super) fn revoke(&mut self, stands: impl Fn(&Backend) -> bool) -> bool {
        let mut revoked = self.remove_where(Phase::Revoked, |member| !stands(&member.backend));
        self.departed.retain(|backend| {
            let Some(backend) = backend.upgrade() else { return false };
            let stands = stands(&backend);
            if !stands {
                backend.set_phase(Phase::Revoked);
                revoked = true;
            }
            stands
        });
        revoked
    }

    /// Removes those that `evicted` holds for. Returns whether there were any.
    pub(super) fn evict(&mut self, evicted: impl Fn(&BackendState) -> bool) -> bool {
        self.remove_where(Phase::Left, evicted)
    }

    fn knows_newer(&self, endpoint: &Endpoint, origin: &Origin) -> bool {
        let member = self.members.find(endpoint).map(|at| &self.members[at].origin);
        let withdrawn = self.withdrawn.iter().filter(|withdrawn| withdrawn.endpoint == *endpoint);
        member.into_iter().chain(withdrawn.map(|withdrawn| &withdrawn.origin)).any(|known| is_newer(known, origin))
    }

    fn add(
        &mut self,
        endpoint: Endpoint,
        registration: &Registration,
        drain_timeout: Duration,
        now: Instant,
    ) -> Change {
        let authority = registration.authority.clone();
        let origin = registration.origin.clone();
        let mut member = BackendState {
            backend: Arc::new(Backend::new(endpoint, authority, origin.clone(), now)),
            origin,
            state: AnnouncedState::Up,
            state_since: now,
            time_to_live: Duration::ZERO,
            expires_at: now,
            since: registration.since.unwrap_or(registration.heard_at),
        };
        member.renew(registration, drain_timeout, now);
        self.insert(member);
        Change::Added
    }

    fn insert(&mut self, member: BackendState) {
        self.moves.push(Move::Came(Arc::clone(&member.backend)));
        self.members.insert(member);
    }

    /// Puts a member where it belongs when it turns out to have been announced earlier: elsewhere, or while this node was
    /// away.
    fn reorder(&mut self, at: usize, since: Option<Timestamp>) -> Change {
        match since {
            Some(since) if since < self.members[at].since => {
                let member = self.members.remove(at);
                self.members.insert(BackendState { since, ..member });
                Change::Altered
            }
            _ => Change::Renewed,
        }
    }

    fn leave(&mut self, at: usize) {
        let member = self.members.remove(at);
        self.depart(&member, Phase::Left);
    }

    fn remove_where(&mut self, phase: Phase, goes: impl Fn(&BackendState) -> bool) -> bool {
        let gone = self.members.extract(goes);
        for member in &gone {
            self.depart(member, phase);
        }
        !gone.is_empty()
    }

    fn depart(&mut self, member: &BackendState, phase: Phase) {
        self.moves.push(Move::Went(Arc::clone(&member.backend)));
        member.backend.set_phase(phase);
        if phase != Phase::Revoked {
            self.departed.retain(|backend| backend.strong_count() > 0);
            self.departed.push(Arc::downgrade(&member.backend));
        }
    }

    fn remember(&mut self, withdrawn: Withdrawn) {
        if withdrawn.origin.updated_at_ns.is_none() {
            return;
        }
        if self.withdrawn.len() == MAX_REMEMBERED_WITHDRAWALS {
            self.withdrawn.pop_front();
        }
        self.withdrawn.push_back(withdrawn);
    }
}

/// What the table holds all service instances to.
#[derive(Debug)]
pub(super) struct Limits {
    /// Backends of one service instance, both transports together.
    pub max_backends: usize,
    /// How long flows of a draining backend go on.
    pub drain_timeout: Duration,
}

impl BackendState {
    fn renew(&mut self, registration: &Registration, drain_timeout: Duration, now: Instant) -> Change {
        if is_same_app_instance(&self.origin, &registration.origin) {
            // A message without a time of its own does not make an older one with a time young again. The names that are
            // kept are shared with the backend; those of each message would be copies.
            self.origin.updated_at_ns = registration.origin.updated_at_ns.or(self.origin.updated_at_ns);
        } else {
            self.origin = registration.origin.clone();
        }
        self.time_to_live = registration.time_to_live;
        self.expires_at = now + registration.time_to_live;
        if self.state == registration.state {
            return Change::Renewed;
        }
        self.state = registration.state;
        self.state_since = now;
        match self.state {
            AnnouncedState::Up => {
                self.backend.set_drain_deadline(None);
                self.backend.set_phase(Phase::Serving);
            }
            AnnouncedState::Draining => {
                self.backend.set_drain_deadline(Some(now + drain_timeout));
                self.backend.set_phase(Phase::Draining);
            }
        }
        Change::Altered
    }
}

/// The place of an authority in the order in which they are tried: lower is better.
fn rank(authority: &Authority) -> u8 {
    match authority {
        Authority::App(_) => 0,
        Authority::Binding(_) => 1,
        Authority::Trusted => 2,
    }
}

/// Whether two senders may be the same: nothing that both say differs.
fn agree(a: &Origin, b: &Origin) -> bool {
    fn differ<T: PartialEq>(a: &Option<T>, b: &Option<T>) -> bool {
        matches!((a, b), (Some(a), Some(b)) if a != b)
    }
    !differ(&a.app_id, &b.app_id) && !differ(&a.private_instance_id, &b.private_instance_id)
}

fn is_same_app_instance(a: &Origin, b: &Origin) -> bool {
    a.app_id == b.app_id && a.private_instance_id == b.private_instance_id
}

/// Whether `known` is a later word of the very app instance that `said` comes from. Equal times count in the order in
/// which they arrive.
fn is_newer(known: &Origin, said: &Origin) -> bool {
    is_same_app_instance(known, said)
        && matches!((known.updated_at_ns, said.updated_at_ns), (Some(known), Some(said)) if said < known)
}
