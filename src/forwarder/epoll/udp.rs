//! UDP: the sockets of listeners and sessions.
//!
//! Each session has a socket of its own, connected to its backend, so that the kernel tells answers apart and reports
//! refusals. Answers leave by the listener's socket, from the very address that the client sent to. Datagrams are
//! received and sent many at a time, but none waits: what a turn brings leaves in that turn.

mod inbox;
mod outbox;
mod runs;
mod share;
mod succession;
mod to_backend;
mod to_client;

use std::{
    collections::HashMap,
    hash::{Hash, Hasher},
    net::{IpAddr, Ipv4Addr, SocketAddr},
    os::fd::OwnedFd,
    sync::Arc,
    time::{Duration, Instant},
};

use ipnet::IpNet;
use rustix::io::Errno;

use self::{inbox::Inbox, outbox::Outbox};
pub(super) use self::{
    share::{Mailbox, Share},
    succession::Imports,
};
use super::{
    super::{
        admission::Permit,
        engine::{Carried, Closing, ClosingRecord, FlowEnd, canonical},
        listener::{Listener, OnBackend},
        sessions::{Sessions, Source},
        slab::{Key, Slab},
        sockets::DatagramSocket,
    },
    tools::{Token, Tools},
};
use crate::{
    backends::Phase,
    model::{ServiceInstanceId, Transport},
    telemetry::metrics::{PortTally, SessionEnd},
};

/// The largest datagram, rounded up; the kernel may also join several of one sender up to this size.
const DATAGRAM_BUFFER_BYTES: usize = 64 * 1024;
/// How long a port is left alone that cannot be watched. Its datagrams wait in the kernel.
const WATCH_PAUSE: Duration = Duration::from_millis(100);

/// The UDP side of a worker.
pub(super) struct Udp {
    ports: Slab<UdpPort>,
    by_id: HashMap<ServiceInstanceId, Key>,
    /// Which session an upstream socket belongs to: listener, session.
    upstreams: Slab<(Key, Key)>,
    inbox: Inbox,
    outbox: Outbox,
    /// Whether new sessions begin.
    accepting: bool,
}

impl Default for Udp {
    fn default() -> Self {
        Self {
            ports: Slab::default(),
            by_id: HashMap::new(),
            upstreams: Slab::default(),
            inbox: Inbox::new(),
            outbox: Outbox::new(),
            accepting: true,
        }
    }
}

/// The owning worker's part of a UDP listener.
struct UdpPort {
    listener: Arc<Listener>,
    /// What this worker counts of it.
    tally: Arc<PortTally>,
    sockets: Arc<[DatagramSocket]>,
    sessions: Sessions<Peer, Upstream>,
    alarm: Option<Instant>,
    /// Which of its clients are this worker's, when others have the rest.
    share: Option<Share>,
    /// While more waits at one of its sockets than a turn receives.
    behind: Option<Behind>,
    /// That it should be spread has been said.
    outgrown: bool,
    /// When its sockets are watched again, after that has failed.
    unwatched: Option<Instant>,
}

impl UdpPort {
    /// The client of a session, or whom a balancer has named: of that one the address, or its network, is what sessions are
    /// counted by.
    fn client_of(&self, session: Key) -> Option<IpNet> {
        let (peer, _) = self.sessions.get(session)?;
        let source = self.sessions.past(session)?.source;
        Some(match source {
            _ if source == Source::of(peer.client.ip()) => peer.client.ip().to_canonical().into(),
            Source::V4(address) => IpAddr::from(address).into(),
            Source::V6(_) => IpNet::new(source.address(), 64).expect("an address has so many bits"),
        })
    }
}

/// More waits at a socket than a turn receives.
struct Behind {
    address: u8,
    /// The first and the last such turn.
    since: Instant,
    until: Instant,
}

/// One end of a session: a client, and the address of ours that it talks to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Peer {
    client: SocketAddr,
    /// None only where the kernel does not say.
    local: Option<IpAddr>,
    /// Which of the listener's sockets.
    address: u8,
}

impl Hash for Peer {
    /// As one piece: each would cost as much as a few words more. What is left out hardly ever tells peers apart.
    fn hash<H: Hasher>(&self, state: &mut H) {
        let octets = |ip| match ip {
            IpAddr::V4(ip) => Ipv4Addr::to_ipv6_mapped(&ip).octets(),
            IpAddr::V6(ip) => ip.octets(),
        };
        let mut bytes = [0; 34];
        bytes[..16].copy_from_slice(&octets(self.client.ip()));
        bytes[16..32].copy_from_slice(&self.local.map(octets).unwrap_or_default());
        bytes[32..].copy_from_slice(&self.client.port().to_ne_bytes());
        state.write(&bytes);
    }
}

/// The other end of a session.
struct Upstream {
    socket: OwnedFd,
    backend: OnBackend,
    /// Under which events name it.
    key: Key,
    opened_at: Instant,
    /// Carried so far, to the backend and to the client.
    to_backend: Carried,
    to_client: Carried,
    /// Datagrams shorter than that may be sent joined: to the backend, to the client.
    joinable_to_backend: u16,
    joinable_to_client: u16,
    /// Answers since the client has last sent something, as far as it matters.
    unasked: u8,
    /// Answers that are read at once.
    appetite: u8,
    /// The kernel may have joined what is read.
    joins: bool,
    _permit: Permit,
}

impl Upstream {
    fn new(socket: OwnedFd, backend: OnBackend, key: Key, permit: Permit, now: Instant) -> Self {
        Self {
            socket,
            backend,
            key,
            opened_at: now,
            to_backend: Carried::default(),
            to_client: Carried::default(),
            joinable_to_backend: u16::MAX,
            joinable_to_client: u16::MAX,
            unasked: 0,
            appetite: 1,
            joins: false,
            _permit: permit,
        }
    }

    /// Why the session ends, when its backend has failed and another one has not.
    fn gives_way(&self, listener: &Listener, now: Instant) -> Option<SessionEnd> {
        let others_come_first = self.backend.aside(now).is_some() && listener.has_one_that_works(Transport::Udp, now);
        others_come_first.then_some(SessionEnd::BackendGone)
    }

    /// Why the session ends, when its backend is no longer there.
    fn ended_by_backend(&self) -> Option<SessionEnd> {
        match self.backend.phase() {
            Phase::Serving | Phase::Draining => None,
            Phase::Left => Some(SessionEnd::BackendLeft),
            Phase::Revoked => Some(SessionEnd::Revoked),
        }
    }
}

impl Udp {
    pub(super) fn open(&mut self, listener: Arc<Listener>, sockets: Arc<[DatagramSocket]>, tools: &mut Tools) -> Key {
        let idle_timeout = listener.idle_timeout(Transport::Udp, &tools.shared.limits.load());
        let id = listener.id.clone();
        let sessions = Sessions::new(idle_timeout);
        let port = self.ports.insert(UdpPort {
            tally: Arc::clone(tools.tally_of(&listener)),
            listener,
            sockets,
            sessions,
            alarm: None,
            share: None,
            behind: None,
            unwatched: None,
            outgrown: false,
        });
        let before = self.by_id.insert(id, port);
        debug_assert!(before.is_none(), "a listener is opened once");
        self.watch(port, tools);
        self.arm(port, tools);
        port
    }

    /// Has the kernel tell of datagrams, now or as soon as it can.
    fn watch(&mut self, port: Key, tools: &Tools) {
        let Some(entry) = self.ports.get_mut(port) else { return };
        entry.unwatched = None;
        for (address, socket) in (0..).zip(entry.sockets.iter()) {
            match tools.receive_from(&socket.descriptor, Token::Datagrams(port, address)) {
                Ok(()) | Err(Errno::EXIST) => {}
                Err(error) => {
                    tracing::error!(
                        service_instance = %entry.listener.id, %error,
                        "a UDP port cannot be watched: trying again"
                    );
                    entry.unwatched = Some(tools.now + WATCH_PAUSE);
                    return;
                }
            }
        }
    }

    /// Lets go of a listener and ends its sessions.
    pub(super) fn close(&mut self, id: &ServiceInstanceId, why: Closing, tools: &mut Tools) {
        let end = match why {
            Closing::Removed => SessionEnd::Removed,
            Closing::Suspended => SessionEnd::Suspended,
        };
        if let Some(port) = self.by_id.remove(id) {
            self.let_go_of(port, end, tools);
        }
    }

    fn let_go_of(&mut self, port: Key, end: SessionEnd, tools: &mut Tools) {
        self.end_sessions(port, end, tools);
        let Some(mut entry) = self.ports.remove(port) else { return };
        tools.timers.set(&mut entry.alarm, None, Token::Datagrams(port, 0));
        entry.sockets.iter().for_each(|socket| tools.unregister(&socket.descriptor));
    }

    /// Whether sessions begin from now on. Those that are open go on.
    pub(super) const fn set_accepting(&mut self, accepting: bool) {
        self.accepting = accepting;
    }

    /// Ends all sessions.
    pub(super) fn end_all(&mut self, end: SessionEnd, tools: &mut Tools) {
        self.ports.keys().into_iter().for_each(|port| self.end_sessions(port, end, tools));
    }

    /// Settings have changed, of one listener or of all: deadlines of open sessions follow them, and those of clients that are
    /// blocked by now end.
    pub(super) fn refresh(&mut self, id: Option<&ServiceInstanceId>, tools: &mut Tools) {
        let ports = match id {
            Some(id) => self.by_id.get(id).copied().into_iter().collect(),
            None => self.ports.keys(),
        };
        for port in ports {
            let Some(entry) = self.ports.get_mut(port) else { continue };
            let idle_timeout = entry.listener.idle_timeout(Transport::Udp, &tools.shared.limits.load());
            entry.sessions.set_idle_timeout(idle_timeout);
            self.end_blocked(port, tools);
            self.arm(port, tools);
        }
    }

    /// Ends the sessions of clients that are blocked.
    fn end_blocked(&mut self, port: Key, tools: &mut Tools) {
        let blocked = Arc::clone(&tools.shared.limits.load().blocked);
        if blocked.is_empty() {
            return;
        }
        for session in self.sessions_of(port) {
            let client = self.ports.get(port).and_then(|port| port.client_of(session));
            if client.is_some_and(|client| blocked.overlaps(client)) {
                self.end_session(port, session, SessionEnd::Blocked, tools);
            }
        }
    }

    /// Takes what has become of a listener's backends over to their sessions.
    pub(super) fn follow_backends(&mut self, id: &ServiceInstanceId, tools: &mut Tools) {
        let Some(port) = self.by_id.get(id).copied() else { return };
        for session in self.sessions_of(port) {
            let Some(entry) = self.ports.get_mut(port) else { return };
            let (_, upstream) = entry.sessions.get(session).expect("only this loop ends sessions");
            if let Some(end) = upstream.ended_by_backend() {
                self.end_session(port, session, end, tools);
            } else {
                let draining = upstream.backend.phase() == Phase::Draining;
                let deadline = draining.then(|| upstream.backend.drain_deadline()).flatten();
                entry.sessions.drain_by(session, deadline);
            }
        }
        self.arm(port, tools);
    }

    /// Sessions' time may be up.
    pub(super) fn due(&mut self, port: Key, tools: &mut Tools) {
        let Some(entry) = self.ports.get_mut(port) else { return };
        entry.alarm = None;
        if entry.unwatched.is_some_and(|at| at <= tools.now) {
            self.watch(port, tools);
        }
        while let Some((session, end)) = self.ports.get_mut(port).and_then(|port| port.sessions.expired(tools.now)) {
            self.end_session(port, session, end, tools);
        }
        self.arm(port, tools);
    }

    /// Sends what is still to be sent of this turn.
    pub(super) fn finish_turn(&mut self, tools: &Tools) {
        if !self.outbox.is_empty() {
            self.send_answers(&tools.tally);
        }
    }

    fn sessions_of(&self, port: Key) -> Vec<Key> {
        self.ports.get(port).map(|port| port.sessions.keys()).unwrap_or_default()
    }

    fn end_sessions(&mut self, port: Key, end: SessionEnd, tools: &mut Tools) {
        for session in self.sessions_of(port) {
            self.end_session(port, session, end, tools);
        }
    }

    /// The backend's machine says that nobody listens there.
    fn lose_backend(&mut self, port: Key, session: Key, tools: &mut Tools) {
        if let Some((_, upstream)) = self.ports.get(port).and_then(|port| port.sessions.get(session)) {
            upstream.backend.failed(tools.now);
        }
        self.end_session(port, session, SessionEnd::BackendGone, tools);
    }

    fn end_session(&mut self, port: Key, session: Key, end: SessionEnd, tools: &mut Tools) {
        self.finish_turn(tools);
        let Some(entry) = self.ports.get_mut(port) else { return };
        let Some((peer, upstream)) = entry.sessions.end(session) else { return };
        self.upstreams.remove(upstream.key);
        tools.tally.sessions_closed.of(end).one();
        entry.tally.sessions_closed.one();
        (tools.shared.closed)(&ClosingRecord {
            service_instance_id: &entry.listener.id,
            pool: &entry.listener.pool,
            port: entry.listener.port,
            client: canonical(peer.client),
            backend: Some(upstream.backend.endpoint.address),
            lasted: tools.now.saturating_duration_since(upstream.opened_at),
            to_backend: upstream.to_backend.bytes,
            to_client: upstream.to_client.bytes,
            datagrams: Some([upstream.to_backend.datagrams, upstream.to_client.datagrams]),
            end: FlowEnd::Session(end),
            at: tools.now,
        });
    }

    fn arm(&mut self, port: Key, tools: &mut Tools) {
        if let Some(entry) = self.ports.get_mut(port) {
            let next = [entry.sessions.next_alarm(), entry.unwatched].into_iter().flatten().min();
            tools.timers.set(&mut entry.alarm, next, Token::Datagrams(port, 0));
        }
    }
}
