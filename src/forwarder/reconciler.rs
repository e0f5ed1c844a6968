//! The reconciler: one thread that makes the node have what the desired state says.
//!
//! Level-triggered: it always works from the latest desired state, and what could not be bound is tried again until it
//! can be or is no longer wanted. It alone binds and lets go; workers are told.

use std::{
    collections::{HashMap, HashSet},
    io, mem,
    net::IpAddr,
    os::fd::{AsFd as _, OwnedFd},
    sync::{
        Arc, Condvar, Mutex, MutexGuard,
        mpsc::{SyncSender, sync_channel},
    },
    time::{Duration, Instant},
};

use super::{
    Binder, HolderLookup, Observe, PortSockets,
    admission::Supply,
    engine::{Closing, Engine, Sockets},
    listener::Listener,
    shared::Shared,
    sockets::{self, DatagramSocket, Spread},
};
use crate::{
    backends::Backends,
    model::{
        Protocol, ServiceInstanceId, Transport,
        desired::{DesiredState, ListenerSpec},
        observed::{ListenerObservation, ListenerState, Observations},
    },
};

/// How often a port that could not be bound is tried again.
const RETRY_EVERY: Duration = Duration::from_millis(500);

/// How often it is looked again who holds ports: a walk through all processes, once for all of them.
const LOOK_EVERY: Duration = Duration::from_secs(10);

/// What the forwarder is asked for, until the reconciler takes it.
#[derive(Default)]
pub(super) struct Inbox {
    wishes: Mutex<Wishes>,
    news: Condvar,
}

#[derive(Default)]
struct Wishes {
    desired: Option<Arc<DesiredState>>,
    /// UDP ports that one thread cannot keep up with.
    outgrown: HashSet<ServiceInstanceId>,
    closed: Option<bool>,
    end_flows: bool,
    errands: Vec<Errand>,
    stop: bool,
}

impl Wishes {
    /// Whether there is nothing to do; while `frozen`, changes wait.
    fn are_none(&self, frozen: bool) -> bool {
        let unchanged = self.desired.is_none() && self.outgrown.is_empty() && self.closed.is_none() && !self.end_flows;
        (frozen || unchanged) && self.errands.is_empty() && !self.stop
    }
}

/// What somebody waits for.
enum Errand {
    /// Hand out copies of all bound sockets, and change nothing from then on.
    Export(SyncSender<PortSockets>),
    /// Go on after that, or after a start that was held.
    GoOn(SyncSender<()>),
    /// Let go of everything that is bound: another process has it.
    LetGo(SyncSender<()>),
}

impl Inbox {
    /// The latest wins.
    pub(super) fn apply(&self, desired: Arc<DesiredState>) {
        self.tell(|wishes| wishes.desired = Some(desired));
    }

    /// This UDP port wants more than one thread.
    pub(super) fn outgrown(&self, id: &ServiceInstanceId) {
        self.tell(|wishes| {
            wishes.outgrown.insert(id.clone());
        });
    }

    /// Whether listeners shall be closed for now. The latest wins.
    pub(super) fn set_closed(&self, closed: bool) {
        self.tell(|wishes| wishes.closed = Some(closed));
    }

    pub(super) fn end_flows(&self) {
        self.tell(|wishes| wishes.end_flows = true);
    }

    /// Copies of all bound sockets. Nothing is bound or closed from then on.
    pub(super) fn export(&self) -> PortSockets {
        self.ask(Errand::Export)
    }

    /// Undoes that; or ends a start that was held.
    pub(super) fn go_on(&self) {
        self.ask(Errand::GoOn)
    }

    /// Lets go of what another process has.
    pub(super) fn let_go(&self) {
        self.ask(Errand::LetGo)
    }

    /// Waits until an errand is done. A reconciler that has ended does none.
    fn ask<T: Default>(&self, errand: impl FnOnce(SyncSender<T>) -> Errand) -> T {
        let (reply, answer) = sync_channel(1);
        self.tell(|wishes| wishes.errands.push(errand(reply)));
        answer.recv().unwrap_or_default()
    }

    pub(super) fn stop(&self) {
        self.tell(|wishes| wishes.stop = true);
    }

    fn tell(&self, change: impl FnOnce(&mut Wishes)) {
        change(&mut self.wishes());
        self.news.notify_one();
    }

    fn wishes(&self) -> MutexGuard<'_, Wishes> {
        self.wishes.lock().expect("nothing panics while it holds the wishes")
    }

    /// Waits for a wish, at most so long. While `frozen`, those for changes wait.
    fn take(&self, frozen: bool, patience: Option<Duration>) -> Wishes {
        let quiet = |wishes: &mut Wishes| wishes.are_none(frozen);
        let wishes = self.wishes();
        let mut wishes = match patience {
            Some(patience) => {
                self.news.wait_timeout_while(wishes, patience, quiet).expect("nothing panics while it holds them").0
            }
            None => self.news.wait_while(wishes, quiet).expect("nothing panics while it holds them"),
        };
        if frozen {
            let (errands, stop) = (mem::take(&mut wishes.errands), wishes.stop);
            return Wishes { errands, stop, ..Wishes::default() };
        }
        mem::take(&mut wishes)
    }
}

pub(super) struct Reconciler {
    pub(super) inbox: Arc<Inbox>,
    pub(super) engine: Arc<dyn Engine>,
    pub(super) shared: Arc<Shared>,
    pub(super) backends: Backends,
    pub(super) binder: Arc<dyn Binder>,
    pub(super) listen: Vec<IpAddr>,
    pub(super) holders: Box<HolderLookup>,
    pub(super) observe: Box<Observe>,
    pub(super) state: State,
}

/// What there is.
#[derive(Default)]
pub(super) struct State {
    desired: Arc<DesiredState>,
    entries: HashMap<ServiceInstanceId, Entry>,
    observations: Observations,
    /// Whether the observations have changed since they were published.
    unpublished: bool,
    /// Sockets of UDP ports beyond one for each address.
    more_sockets: usize,
    /// When those that failed are tried again.
    retry_at: Option<Instant>,
    /// Those of a pass that somebody else holds, until it is said who.
    held: Vec<(Arc<ListenerSpec>, BindFailure)>,
    /// When it is looked again who holds those that are known to be held.
    look_at: Option<Instant>,
    /// Nothing is opened for now: the node drains.
    closed: bool,
    /// Nothing is changed for now: another process is being told what there is.
    frozen: bool,
}

/// One listener that is wanted.
struct Entry {
    spec: Arc<ListenerSpec>,
    listener: Arc<Listener>,
    /// Kept so that a port stays bound until it is unwanted, whatever its engine does. A UDP port stays bound while
    /// listeners are closed: answers of its open sessions leave by it.
    tcp: Option<Sockets>,
    udp: Option<Sockets>,
    /// Sockets that its UDP port has got beside those, in the order in which they were bound.
    more: Option<(Spread, Vec<Arc<[DatagramSocket]>>)>,
    /// A part of what the specification wants is not there.
    incomplete: bool,
}

impl Entry {
    fn has(&self, transport: Transport) -> bool {
        match transport {
            Transport::Tcp => self.tcp.is_some(),
            Transport::Udp => self.udp.is_some(),
        }
    }

    fn more_sockets(&self) -> usize {
        self.more.iter().flat_map(|(_, more)| more).map(|sockets| sockets.len()).sum()
    }

    const fn sockets(&mut self, transport: Transport) -> &mut Option<Sockets> {
        match transport {
            Transport::Tcp => &mut self.tcp,
            Transport::Udp => &mut self.udp,
        }
    }
}

struct BindFailure {
    address: IpAddr,
    transport: Transport,
    error: io::Error,
}

impl Reconciler {
    /// Works until it is told to stop.
    pub(super) fn run(mut self) {
        loop {
            let now = self.shared.clock.now();
            let retry_at = self.state.retry_at.filter(|_| !self.state.frozen);
            let wishes = self.inbox.take(self.state.frozen, retry_at.map(|at| at.saturating_duration_since(now)));
            if wishes.stop {
                return;
            }
            if wishes.closed == Some(true) && !self.state.closed {
                self.close_listeners();
            }
            // After the last of them has been taken, and before the first of those that come again.
            if wishes.end_flows {
                self.engine.end_flows();
                self.engine.settle();
            }
            if wishes.closed == Some(false) && self.state.closed {
                self.reopen_listeners();
            }
            if let Some(desired) = wishes.desired {
                self.reconcile(desired);
            }
            wishes.outgrown.iter().for_each(|id| self.spread(id));
            wishes.errands.into_iter().for_each(|errand| self.run_errand(errand));
            // Also while changes come without a pause.
            if !self.state.frozen && self.state.retry_at.is_some_and(|at| at <= self.shared.clock.now()) {
                self.retry();
            }
        }
    }

    /// Whoever has asked may have given up.
    fn run_errand(&mut self, errand: Errand) {
        match errand {
            Errand::Export(reply) => {
                self.state.frozen = true;
                let _ = reply.try_send(self.export());
            }
            Errand::GoOn(reply) => {
                self.state.frozen = false;
                self.engine.go_on();
                let _ = reply.try_send(());
            }
            Errand::LetGo(reply) => {
                (self.state.frozen, self.state.closed, self.state.retry_at) = (false, true, None);
                self.engine.close_listeners();
                self.engine.let_go_of_udp();
                for entry in self.state.entries.values_mut() {
                    (entry.tcp, entry.udp, entry.more) = (None, None, None);
                }
                self.engine.settle();
                tracing::info!(open = self.shared.admission.flows(), "handed over, finishing what is open");
                let _ = reply.try_send(());
            }
        }
    }

    /// Copies of all bound sockets. One that cannot be copied is bound anew by whoever gets the others.
    fn export(&self) -> PortSockets {
        let mut exported = PortSockets::default();
        let copy = |socket: &OwnedFd| socket.try_clone().ok();
        for entry in self.state.entries.values() {
            if let Some(Sockets::Tcp(sockets)) = &entry.tcp {
                exported.sockets.extend(sockets.iter().filter_map(copy));
            }
            if let Some(Sockets::Udp(sockets)) = &entry.udp {
                exported.sockets.extend(sockets.iter().filter_map(|socket| copy(&socket.descriptor)));
            }
            if let Some((spread, more)) = &entry.more {
                let more = more.iter().flat_map(|sockets| sockets.iter());
                exported.sockets.extend(more.filter_map(|socket| copy(&socket.descriptor)));
                exported.spreads.push((entry.listener.port, *spread));
            }
        }
        exported
    }

    fn reconcile(&mut self, desired: Arc<DesiredState>) {
        let before = mem::replace(&mut self.state.desired, Arc::clone(&desired));
        if before.limits != desired.limits {
            self.shared.limits.store(Arc::clone(&desired.limits));
            self.engine.refresh(None);
        }
        let started = self.shared.clock.now();
        let (mut changed, mut gone) = (Vec::new(), Vec::new());
        for id in self.places(&before, &desired) {
            let (entry, spec) = (self.state.entries.get(&id), desired.listeners.get(&id));
            if spec.is_some_and(|spec| entry.is_none_or(|entry| !Arc::ptr_eq(&entry.spec, spec))) {
                changed.extend(spec.cloned());
            }
            if entry.is_some_and(|entry| spec.is_none_or(|spec| entry.spec.port != spec.port)) {
                gone.push(id);
            }
        }
        // What goes, goes first: its port may be wanted by another.
        let mut narrowed = !gone.is_empty();
        gone.iter().for_each(|id| self.remove(id));
        for spec in &changed {
            narrowed |= self.narrow(spec);
        }
        if narrowed {
            self.engine.settle();
        }
        self.set_capacity();
        for spec in changed {
            self.take_over(spec);
        }
        self.name_holders(false);
        self.engine.settle();
        if self.state.observations.applied.is_none() {
            let (ports, took) = (desired.listeners.size(), self.shared.clock.now().saturating_duration_since(started));
            tracing::info!(ports, took_ms = took.as_secs_f64() * 1e3, "took over the first snapshot");
        }
        self.state.observations.applied = Some(desired.revision);
        self.publish();
    }

    /// Where what is wanted may differ from what there is, which is what was wanted `before`.
    fn places(&self, before: &DesiredState, desired: &DesiredState) -> Vec<ServiceInstanceId> {
        match desired.listeners.changed_since(&before.listeners) {
            Some(changed) => changed.into_iter().collect(),
            None => {
                let unwanted = self.state.entries.keys().filter(|id| !desired.listeners.contains_key(*id));
                desired.listeners.keys().chain(unwanted).cloned().collect()
            }
        }
    }

    /// Tries what has failed once more.
    fn retry(&mut self) {
        let incomplete = self.state.entries.values().filter(|entry| entry.incomplete);
        let incomplete = incomplete.map(|entry| Arc::clone(&entry.spec)).collect::<Vec<_>>();
        self.state.retry_at = None;
        let now = self.shared.clock.now();
        let again = self.state.look_at.take_if(|at| *at <= now).is_some();
        for spec in incomplete {
            self.take_over(spec);
        }
        self.name_holders(again);
        if self.state.unpublished {
            self.engine.settle();
            self.publish();
        }
    }

    /// Removes a listener that is wanted no more, or elsewhere.
    fn remove(&mut self, id: &ServiceInstanceId) {
        let Some(entry) = self.state.entries.remove(id) else { return };
        let suspended = self.state.desired.restraints.suspended.contains_key(id);
        let why = if suspended { Closing::Suspended } else { Closing::Removed };
        self.state.more_sockets -= entry.more_sockets();
        for transport in Protocol::Both.transports() {
            self.engine.close(id, *transport, why);
            if entry.has(*transport) {
                self.binder.closed(entry.spec.port, *transport);
            }
        }
        self.state.observations.remove(id);
        tracing::info!(service_instance = %id, port = entry.spec.port, suspended, "port closed");
    }

    /// Lets go of a transport that `spec` no longer has. Returns whether there was one.
    fn narrow(&mut self, spec: &ListenerSpec) -> bool {
        let id = &spec.service_instance_id;
        let Some(entry) = self.state.entries.get_mut(id) else { return false };
        let mut narrowed = false;
        for transport in Protocol::Both.transports() {
            // It may have flows without a socket that listens, while listeners are closed.
            if entry.spec.protocol.has(*transport) && !spec.protocol.has(*transport) {
                *entry.sockets(*transport) = None;
                self.engine.close(id, *transport, Closing::Removed);
                self.binder.closed(entry.listener.port, *transport);
                narrowed = true;
                if *transport == Transport::Udp {
                    self.state.more_sockets -= entry.more_sockets();
                    entry.more = None;
                }
            }
        }
        narrowed
    }

    /// Makes a listener what `spec` says, as far as the machine lets it.
    fn take_over(&mut self, spec: Arc<ListenerSpec>) {
        let id = spec.service_instance_id.clone();
        let entry = self.state.entries.entry(id.clone()).or_insert_with(|| {
            let threads = self.engine.spreads_over();
            let listener = Arc::new(Listener::new(Arc::clone(&spec), self.backends.slot(&id), threads));
            self.shared.listeners.enter(&listener);
            Entry { listener, spec: Arc::clone(&spec), tcp: None, udp: None, more: None, incomplete: false }
        });
        if !Arc::ptr_eq(&entry.spec, &spec) {
            entry.spec = Arc::clone(&spec);
            entry.listener.set_spec(Arc::clone(&spec));
            self.engine.refresh(Some(&id));
        }
        if self.state.closed {
            return self.note(&spec, ListenerState::Closed);
        }
        let missing = spec.protocol.transports().iter().copied();
        let missing = missing.filter(|transport| entry.sockets(*transport).is_none()).collect::<Vec<_>>();
        // All or nothing: half a port helps nobody.
        match missing.iter().map(|transport| self.bind(spec.port, *transport)).collect::<Result<Vec<_>, _>>() {
            Ok(bound) => {
                let known = self.state.observations.get(&id).map(|observation| &observation.state);
                if self.state.observations.applied.is_none() || known == Some(&ListenerState::Closed) {
                    // One line tells of all, at the start and when the node no longer drains.
                    tracing::debug!(service_instance = %id, port = spec.port, protocol = %spec.protocol, "port open");
                } else if !bound.is_empty() {
                    tracing::info!(service_instance = %id, port = spec.port, protocol = %spec.protocol, "port open");
                }
                missing.into_iter().zip(bound).for_each(|(transport, sockets)| self.open(&id, transport, sockets));
                self.note(&spec, ListenerState::Bound);
            }
            Err(failure) => {
                self.state.retry_at.get_or_insert(self.shared.clock.now() + RETRY_EVERY);
                if failure.error.kind() == io::ErrorKind::AddrInUse {
                    self.state.held.push((spec, failure));
                } else {
                    let (transport, address) = (failure.transport.as_str().to_uppercase(), failure.address);
                    let port = spec.port;
                    let reason = format!(
                        "{transport} port {port} of {address} cannot be bound ({}): trying again",
                        failure.error
                    );
                    self.note_failure(&spec, false, &reason);
                }
            }
        }
    }

    fn bind(&self, port: u16, transport: Transport) -> Result<Sockets, BindFailure> {
        let each = self.listen.iter().map(|address| {
            let bound = self.binder.bind(*address, port, transport);
            bound.map_err(|error| BindFailure { address: *address, transport, error })
        });
        let unusable = |error| BindFailure { address: self.listen[0], transport, error };
        match transport {
            Transport::Tcp => {
                let sockets = each.collect::<Result<Arc<[_]>, _>>()?;
                for socket in &*sockets {
                    sockets::prepare_listener(socket.as_fd()).map_err(unusable)?;
                }
                Ok(Sockets::Tcp(sockets))
            }
            Transport::Udp => {
                let sockets = each.map(|socket| DatagramSocket::new(socket?).map_err(unusable));
                Ok(Sockets::Udp(sockets.collect::<Result<_, _>>()?))
            }
        }
    }

    /// Spreads a UDP port over the engine's threads, if it can be.
    fn spread(&mut self, id: &ServiceInstanceId) {
        let threads = self.engine.spreads_over();
        let Some(entry) = self.state.entries.get(id) else { return };
        let (Some(Sockets::Udp(first)), 2.., None) = (&entry.udp, threads, &entry.more) else { return };
        let (port, sockets) = (entry.listener.port, (threads - 1) * first.len());
        if !self.shared.admission.may_spread(count(self.state.more_sockets + sockets), count(sockets)) {
            tracing::warn!(
                service_instance = %id, port, sockets,
                "a UDP port that one thread cannot keep up with stays on it, as sockets are scarce"
            );
            return;
        }
        match self.spread_by(id, Spread::new(threads, fastrand::u32(..))) {
            Ok(()) => tracing::info!(service_instance = %id, port, threads, "UDP port spread over several threads"),
            Err(error) => tracing::warn!(
                service_instance = %id, port, %error,
                "a UDP port that one thread cannot keep up with stays on it, as it gets no more sockets"
            ),
        }
    }

    /// Spreads a UDP port by this rule.
    fn spread_by(&mut self, id: &ServiceInstanceId, spread: Spread) -> io::Result<()> {
        let Some(entry) = self.state.entries.get(id) else { return Ok(()) };
        let Some(Sockets::Udp(first)) = &entry.udp else { return Ok(()) };
        let more = self.bind_more(first, spread.sockets() - 1, spread)?;
        self.engine.spread(&entry.listener, more.clone(), spread);
        // The thread that has its sessions gives the others theirs; then they have them.
        self.engine.settle();
        self.engine.settle();
        let entry = self.state.entries.get_mut(id).expect("it was just there");
        entry.more = Some((spread, more));
        self.state.more_sockets += entry.more_sockets();
        self.set_capacity();
        Ok(())
    }

    /// So many sets of sockets, each with one beside each of `first`.
    fn bind_more(
        &self,
        first: &[DatagramSocket],
        sets: usize,
        spread: Spread,
    ) -> io::Result<Vec<Arc<[DatagramSocket]>>> {
        let bind = |beside: &DatagramSocket| DatagramSocket::new(self.binder.bind_beside(beside.descriptor.as_fd())?);
        let more = (0..sets).map(|_| first.iter().map(bind).collect::<io::Result<Arc<[_]>>>());
        let more = more.collect::<io::Result<Vec<_>>>()?;
        first.iter().try_for_each(|socket| spread.apply(&socket.descriptor))?;
        Ok(more)
    }

    fn open(&mut self, id: &ServiceInstanceId, transport: Transport, sockets: Sockets) {
        let entry = self.state.entries.get_mut(id).expect("its sockets were bound for it");
        self.engine.open(&entry.listener, sockets.clone());
        let descriptors = match &sockets {
            Sockets::Tcp(sockets) => sockets.iter().map(OwnedFd::as_fd).collect::<Vec<_>>(),
            Sockets::Udp(sockets) => sockets.iter().map(|socket| socket.descriptor.as_fd()).collect(),
        };
        let port = entry.listener.port;
        self.binder.opened(port, transport, &descriptors);
        *entry.sockets(transport) = Some(sockets);
        let inherited = self.binder.spread(port).filter(|_| transport == Transport::Udp);
        if let Some(spread) = inherited.filter(|spread| spread.sockets() == self.engine.spreads_over())
            && let Err(error) = self.spread_by(id, spread)
        {
            tracing::warn!(service_instance = %id, port, %error, "a UDP port that was spread is on one thread again");
        }
    }

    /// Says of what is held who holds it, where it can be found out. Of what was known to be held, only `again`.
    fn name_holders(&mut self, again: bool) {
        let mut held = mem::take(&mut self.state.held);
        if held.is_empty() {
            return;
        }
        self.state.look_at.get_or_insert(self.shared.clock.now() + LOOK_EVERY);
        if !again {
            held.retain(|(spec, _)| {
                let known = self.state.observations.get(&spec.service_instance_id).map(|known| known.state.clone());
                let known = known.filter(|known| matches!(known, ListenerState::Failed { held: true, .. }));
                known.map(|known| self.note(spec, known)).is_none()
            });
        }
        let places = held.iter().map(|(spec, failure)| ((failure.address, spec.port).into(), failure.transport));
        let places = places.collect::<Vec<_>>();
        if places.is_empty() {
            return;
        }
        for ((spec, failure), holder) in held.into_iter().zip((self.holders)(&places)) {
            let BindFailure { address, transport, .. } = failure;
            let (transport, port) = (transport.as_str().to_uppercase(), spec.port);
            let holder = holder.unwrap_or_else(|| "somebody unknown".into());
            let reason =
                format!("{transport} port {port} of {address} is held by {holder}: it is taken as soon as it is free");
            self.note_failure(&spec, true, &reason);
        }
    }

    /// Keeps why a listener is not there. Logged when it is new.
    fn note_failure(&mut self, spec: &ListenerSpec, held: bool, reason: &str) {
        let id = &spec.service_instance_id;
        let state = ListenerState::Failed { held, reason: reason.into() };
        if self.state.observations.get(id).is_none_or(|known| known.state != state) {
            tracing::error!(service_instance = %id, port = spec.port, reason, "port not open");
        }
        self.note(spec, state);
    }

    /// Keeps what has become of a listener, for the next publication.
    fn note(&mut self, spec: &ListenerSpec, state: ListenerState) {
        let id = &spec.service_instance_id;
        let entry = self.state.entries.get_mut(id).expect("only what is wanted is observed");
        entry.incomplete = state != ListenerState::Bound;
        let before = self.state.observations.get(id);
        let since = match before {
            Some(before) if before.state == state && before.version == spec.version => return,
            // Another holder is none of its doing.
            Some(before) if mem::discriminant(&before.state) == mem::discriminant(&state) => before.since,
            _ => self.shared.clock.wall(),
        };
        let observation = ListenerObservation { version: spec.version, state, since };
        self.state.observations.insert(id.clone(), observation);
        self.state.unpublished = true;
    }

    fn close_listeners(&mut self) {
        self.state.closed = true;
        self.state.retry_at = None;
        self.engine.close_listeners();
        for entry in self.state.entries.values_mut() {
            if entry.tcp.take().is_some() {
                self.binder.closed(entry.spec.port, Transport::Tcp);
            }
        }
        self.engine.settle();
        let specs = self.state.entries.values().map(|entry| Arc::clone(&entry.spec)).collect::<Vec<_>>();
        specs.iter().for_each(|spec| self.note(spec, ListenerState::Closed));
        self.publish();
        tracing::info!(open = self.shared.admission.flows(), "listeners closed, finishing what is open");
    }

    fn reopen_listeners(&mut self) {
        self.state.closed = false;
        self.engine.reopen_listeners();
        self.retry();
        tracing::info!(ports = self.state.entries.len(), "listening again");
    }

    /// Shares the node's sockets anew, before listeners are opened that would find none.
    fn set_capacity(&self) {
        let DesiredState { listeners, limits, .. } = &*self.state.desired;
        let supply = Supply {
            descriptors: sockets::descriptor_limit(),
            local_ports: self.shared.connector.load().port_count(),
            listeners: count(listeners.size()),
            listening_sockets: count(listeners.transports() * self.listen.len() + self.state.more_sockets),
        };
        self.shared.admission.set(limits, supply);
    }

    fn publish(&mut self) {
        self.state.unpublished = false;
        (self.observe)(Arc::new(self.state.observations.clone()));
    }
}

fn count(number: usize) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests;
