//! UDP: the sockets of listeners and sessions.
//!
//! Each session has a socket of its own, connected to its backend, so that the kernel tells answers apart and reports
//! refusals. Answers leave by the listener's socket, from the very address that the client sent to.

use std::{
    collections::HashMap,
    io::{IoSlice, IoSliceMut},
    net::{IpAddr, SocketAddr},
    os::fd::{AsFd as _, OwnedFd},
    sync::Arc,
    time::Instant,
};

use quinn_udp::{RecvMeta, Transmit, UdpSockRef};
use rustix::{
    event::epoll::EventFlags,
    io::{Errno, retry_on_intr},
    net::{self, RecvFlags, SendAncillaryBuffer, SendFlags},
};

use super::{
    super::{
        admission::Permit,
        engine::{ClosingRecord, ExportedSession, FlowEnd, canonical},
        listener::{Listener, OnBackend, speaks_for_others},
        proxy_protocol::{self, Ends, Header, Parsed},
        sessions::Sessions,
        slab::{Key, Slab},
        sockets::{self, DatagramSocket},
    },
    tools::{Token, Tools},
};
use crate::{
    backends::Phase,
    model::{ServiceInstanceId, Transport, desired::allows, parameters::ProxyProtocol},
    telemetry::metrics::{Direction, Refusal, SessionEnd},
};

/// The largest datagram, rounded up; the kernel may also join several of one sender up to this size.
const DATAGRAM_BUFFER_BYTES: usize = 64 * 1024;
/// Datagrams, or runs of joined ones, that are received at once.
const BATCH: usize = 16;
/// Batches that one listener gets per turn.
const BATCHES_PER_TURN: usize = 4;
/// Answers that one session gets per turn.
const ANSWERS_PER_TURN: usize = 32;

/// The UDP side of a worker.
pub(super) struct Udp {
    ports: Slab<UdpPort>,
    by_id: HashMap<ServiceInstanceId, Key>,
    /// Which session an upstream socket belongs to: listener, session.
    upstreams: Slab<(Key, Key)>,
    buffers: Vec<Box<[u8]>>,
    /// Whether new sessions begin.
    accepting: bool,
}

impl Default for Udp {
    fn default() -> Self {
        Self {
            ports: Slab::default(),
            by_id: HashMap::new(),
            upstreams: Slab::default(),
            buffers: (0..BATCH).map(|_| vec![0; DATAGRAM_BUFFER_BYTES].into()).collect(),
            accepting: true,
        }
    }
}

/// The owning worker's part of a UDP listener.
struct UdpPort {
    listener: Arc<Listener>,
    sockets: Arc<[DatagramSocket]>,
    sessions: Sessions<Peer, Upstream>,
    alarm: Option<Instant>,
}

/// One end of a session: a client, and the address of ours that it talks to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Peer {
    client: SocketAddr,
    /// None only where the kernel does not say.
    local: Option<IpAddr>,
    /// Which of the listener's sockets.
    address: u8,
}

/// The other end of a session.
struct Upstream {
    socket: OwnedFd,
    backend: OnBackend,
    /// Under which events name it.
    key: Key,
    opened_at: Instant,
    /// Bytes carried so far, to the backend and to the client.
    to_backend: u64,
    to_client: u64,
    _permit: Permit,
}

/// Who a first datagram is from, and what of it is for the backend.
struct Opening<'a> {
    source: SocketAddr,
    destination: Option<SocketAddr>,
    payload: &'a [u8],
}

impl Udp {
    pub(super) fn open(&mut self, listener: Arc<Listener>, sockets: Arc<[DatagramSocket]>, tools: &mut Tools) {
        let idle_timeout = listener.idle_timeout(Transport::Udp, &tools.shared.limits.load());
        let id = listener.id.clone();
        let sessions = Sessions::new(idle_timeout);
        let port = self.ports.insert(UdpPort { listener, sockets: Arc::clone(&sockets), sessions, alarm: None });
        for (address, socket) in (0..).zip(sockets.iter()) {
            let token = Token::Datagrams(port, address);
            if let Err(error) = tools.register(&socket.descriptor, token, EventFlags::IN) {
                tracing::error!(service_instance = %id, %error, "a UDP port cannot be watched and stays silent");
            }
        }
        let before = self.by_id.insert(id, port);
        debug_assert!(before.is_none(), "a listener is opened once");
    }

    /// Lets go of a listener and ends its sessions.
    pub(super) fn close(&mut self, id: &ServiceInstanceId, tools: &mut Tools) {
        let Some(port) = self.by_id.remove(id) else { return };
        self.end_sessions(port, SessionEnd::Removed, tools);
        let Some(mut entry) = self.ports.remove(port) else { return };
        tools.timers.set(&mut entry.alarm, None, Token::Datagrams(port, 0));
        entry.sockets.iter().for_each(|socket| tools.unregister(&socket.descriptor));
    }

    /// From now on only sessions that are open go on.
    pub(super) fn begin_no_more(&mut self) {
        self.accepting = false;
    }

    /// Ends everything.
    pub(super) fn stop(&mut self, tools: &mut Tools) {
        self.ports.keys().into_iter().for_each(|port| self.end_sessions(port, SessionEnd::Stopped, tools));
    }

    /// Settings have changed, of one listener or of all: deadlines of open sessions follow them.
    pub(super) fn refresh(&mut self, id: Option<&ServiceInstanceId>, tools: &mut Tools) {
        let ports = match id {
            Some(id) => self.by_id.get(id).copied().into_iter().collect(),
            None => self.ports.keys(),
        };
        for port in ports {
            let Some(entry) = self.ports.get_mut(port) else { continue };
            let idle_timeout = entry.listener.idle_timeout(Transport::Udp, &tools.shared.limits.load());
            entry.sessions.set_idle_timeout(idle_timeout);
            self.arm(port, tools);
        }
    }

    /// Takes what has become of a listener's backends over to their sessions.
    pub(super) fn follow_backends(&mut self, id: &ServiceInstanceId, tools: &mut Tools) {
        let Some(port) = self.by_id.get(id).copied() else { return };
        for session in self.sessions_of(port) {
            let Some(entry) = self.ports.get_mut(port) else { return };
            let (_, upstream) = entry.sessions.get(session).expect("only this loop ends sessions");
            match upstream.backend.phase() {
                Phase::Serving => entry.sessions.drain_by(session, None),
                Phase::Draining => {
                    let deadline = upstream.backend.drain_deadline();
                    entry.sessions.drain_by(session, deadline);
                }
                Phase::Left => self.end_session(port, session, SessionEnd::BackendLeft, tools),
                Phase::Revoked => self.end_session(port, session, SessionEnd::Revoked, tools),
            }
        }
        self.arm(port, tools);
    }

    /// Copies of all sessions.
    pub(super) fn export(&self) -> Vec<ExportedSession> {
        let sessions = self.ports.iter().flat_map(|(_, port)| {
            port.sessions.keys().into_iter().filter_map(|key| {
                let (peer, upstream) = port.sessions.get(key)?;
                Some(ExportedSession {
                    service_instance_id: port.listener.id.clone(),
                    client: peer.client,
                    local: peer.local,
                    backend: upstream.backend.endpoint.address,
                    upstream: upstream.socket.as_fd().try_clone_to_owned().ok()?,
                    deadline: port.sessions.deadline(key)?,
                })
            })
        });
        sessions.collect()
    }

    /// Datagrams wait at a listener.
    pub(super) fn receive(&mut self, port: Key, address: u8, tools: &mut Tools) {
        let mut buffers = std::mem::take(&mut self.buffers);
        for _ in 0..BATCHES_PER_TURN {
            let Some(entry) = self.ports.get(port) else { break };
            let socket = &entry.sockets[usize::from(address)];
            let mut metas = [RecvMeta::default(); BATCH];
            let mut slices = buffers.iter_mut().map(|buffer| IoSliceMut::new(buffer));
            let mut slices: [_; BATCH] = std::array::from_fn(|_| slices.next().expect("as many as a batch has"));
            // An error of a socket that only receives and answers concerns one answer, which is lost anyway.
            let received = socket.state.recv(UdpSockRef::from(&socket.descriptor), &mut slices, &mut metas);
            let Ok(received) = received else { break };
            for (meta, buffer) in metas.iter().zip(&buffers).take(received) {
                let peer = Peer { client: meta.addr, local: meta.dst_ip, address };
                let bytes = &buffer[..meta.len];
                if bytes.is_empty() {
                    self.pass_on(port, peer, bytes, tools);
                }
                for datagram in bytes.chunks(meta.stride.max(1)) {
                    self.pass_on(port, peer, datagram, tools);
                }
            }
            if received < BATCH {
                break;
            }
        }
        self.buffers = buffers;
        self.arm(port, tools);
    }

    /// Sends a client's datagram to its backend.
    fn pass_on(&mut self, port: Key, peer: Peer, datagram: &[u8], tools: &mut Tools) {
        if let Err(refusal) = self.try_pass_on(port, peer, datagram, tools) {
            tools.tally.datagrams_dropped.of(refusal).one();
        }
    }

    fn try_pass_on(&mut self, port: Key, peer: Peer, datagram: &[u8], tools: &mut Tools) -> Result<(), Refusal> {
        let entry = self.ports.get_mut(port).ok_or(Refusal::Draining)?;
        if let Some(session) = entry.sessions.find(&peer) {
            entry.sessions.sent(session, tools.now);
            match self.send(port, session, &[], datagram, tools) {
                // The error is of a datagram before: this one has not been sent.
                Err(Errno::CONNREFUSED) => self.lose_backend(port, session, tools),
                result => return result.map_err(|_| Refusal::Undeliverable),
            }
        }
        let opening = self.opening(port, peer, datagram, tools)?;
        let mut tried = Vec::new();
        let ticket = self.ports.get(port).ok_or(Refusal::Draining)?.listener.ticket(Transport::Udp);
        loop {
            let session = self.open_session(port, peer, opening.source, ticket, &mut tried, tools)?;
            let header = self.header(port, peer, &opening);
            match self.send(port, session, &header, opening.payload, tools) {
                Ok(()) => return Ok(()),
                Err(Errno::CONNREFUSED) => self.lose_backend(port, session, tools),
                Err(_) => {
                    // The next datagram would go out without the header, and could bring one of its own.
                    self.end_session(port, session, SessionEnd::NotBegun, tools);
                    return Err(Refusal::Undeliverable);
                }
            }
        }
    }

    /// Whether a peer without a session may have one, and what its first datagram says.
    fn opening<'a>(&self, port: Key, peer: Peer, datagram: &'a [u8], tools: &Tools) -> Result<Opening<'a>, Refusal> {
        if !self.accepting {
            return Err(Refusal::Draining);
        }
        let mut opening = Opening { source: peer.client, destination: None, payload: datagram };
        if speaks_for_others(&tools.shared.limits.load(), peer.client) {
            let Parsed::Whole(header, length) = proxy_protocol::parse(datagram, Transport::Udp) else {
                return Err(Refusal::BadHeader);
            };
            opening.payload = &datagram[length..];
            if let Header::Proxied(Ends { source, destination }) = header {
                opening.source = source;
                opening.destination = Some(destination);
            }
        }
        let spec = self.ports.get(port).ok_or(Refusal::Draining)?.listener.spec();
        if allows(&spec.settings.allow, opening.source.ip()) { Ok(opening) } else { Err(Refusal::NotAllowed) }
    }

    /// Begins a session with a backend that is not in `tried`.
    fn open_session(
        &mut self,
        port: Key,
        peer: Peer,
        source: SocketAddr,
        ticket: u64,
        tried: &mut Vec<SocketAddr>,
        tools: &mut Tools,
    ) -> Result<Key, Refusal> {
        let now = tools.now;
        loop {
            let listener = &self.ports.get(port).ok_or(Refusal::Draining)?.listener;
            let chosen = tools.chooser.choose(listener, Transport::Udp, (source.ip(), ticket), tried, now);
            let backend = chosen.map(OnBackend::new).ok_or(Refusal::NoBackend)?;
            let permit = self.admit_session(port, tools)?;
            let address = backend.endpoint.address;
            tried.push(address);
            let socket = match tools.shared.connector.load().connect(address, Transport::Udp) {
                Ok(socket) => socket,
                Err(error) if sockets::is_own_fault(&error) => return Err(Refusal::Exhausted),
                Err(_) => {
                    backend.put_aside(now);
                    continue;
                }
            };
            let entry = self.ports.get_mut(port).ok_or(Refusal::Draining)?;
            let key = self.upstreams.insert((port, Key { index: 0, generation: 0 }));
            if tools.register(&socket, Token::Upstream(key), EventFlags::IN).is_err() {
                self.upstreams.remove(key);
                return Err(Refusal::Exhausted);
            }
            let drain_by = (backend.phase() == Phase::Draining).then(|| backend.drain_deadline()).flatten();
            let upstream =
                Upstream { socket, backend, key, opened_at: now, to_backend: 0, to_client: 0, _permit: permit };
            let session = entry.sessions.open(peer, upstream, now);
            entry.sessions.drain_by(session, drain_by);
            *self.upstreams.get_mut(key).expect("just put in") = (port, session);
            tools.tally.sessions_opened.one();
            return Ok(session);
        }
    }

    /// Room for one more session, if need be that of one which never got an answer.
    fn admit_session(&mut self, port: Key, tools: &mut Tools) -> Result<Permit, Refusal> {
        let shared = Arc::clone(&tools.shared);
        let listener = Arc::clone(&self.ports.get(port).ok_or(Refusal::Draining)?.listener);
        let admit = || shared.admission.admit(&listener.usage, Transport::Udp, &listener.spec(), &shared.limits.load());
        admit().or_else(|refusal| {
            let expendable = self.ports.get(port).and_then(|port| port.sessions.expendable()).ok_or(refusal)?;
            self.end_session(port, expendable, SessionEnd::Displaced, tools);
            admit()
        })
    }

    /// What the backend is told of its client, with the first datagram.
    fn header(&mut self, port: Key, peer: Peer, opening: &Opening<'_>) -> Vec<u8> {
        let Some(entry) = self.ports.get(port) else { return Vec::new() };
        if entry.listener.spec().settings.proxy_protocol != Some(ProxyProtocol::V2) {
            return Vec::new();
        }
        let unspecified = || match peer.client {
            SocketAddr::V4(_) => IpAddr::from([0; 4]),
            SocketAddr::V6(_) => IpAddr::from([0; 16]),
        };
        let arrived = || SocketAddr::new(peer.local.unwrap_or_else(unspecified), entry.listener.port);
        let ends = Ends { source: opening.source, destination: opening.destination.unwrap_or_else(arrived) };
        ends.v2(Transport::Udp)
    }

    fn send(&mut self, port: Key, session: Key, header: &[u8], datagram: &[u8], tools: &Tools) -> Result<(), Errno> {
        let entry = self.ports.get_mut(port).expect("the caller has just found it");
        let upstream = entry.sessions.value_mut(session).expect("the caller has just found it");
        let parts = [IoSlice::new(header), IoSlice::new(datagram)];
        let mut no_extras = SendAncillaryBuffer::default();
        retry_on_intr(|| net::sendmsg(&upstream.socket, &parts, &mut no_extras, SendFlags::NOSIGNAL))?;
        upstream.to_backend += datagram.len() as u64;
        tools.tally.datagrams.of(Direction::ToBackend).one();
        tools.tally.udp_bytes.of(Direction::ToBackend).more(datagram.len() as u64);
        Ok(())
    }

    /// A backend has answered.
    pub(super) fn receive_answers(&mut self, upstream: Key, tools: &mut Tools) {
        let Some((port, session)) = self.upstreams.get(upstream).copied() else { return };
        for _ in 0..ANSWERS_PER_TURN {
            let Some(entry) = self.ports.get_mut(port) else { return };
            let Some((peer, upstream)) = entry.sessions.get(session) else { return };
            let scratch = &mut tools.scratch;
            let length = match retry_on_intr(|| net::recv(&upstream.socket, &mut **scratch, RecvFlags::empty())) {
                Ok((length, _)) => length,
                Err(Errno::AGAIN) => return,
                Err(Errno::CONNREFUSED) => return self.lose_backend(port, session, tools),
                // A report of a datagram that was lost on the way; the next may arrive.
                Err(_) => continue,
            };
            upstream.backend.works();
            entry.sessions.answered(session, tools.now);
            let socket = &entry.sockets[usize::from(peer.address)];
            let answer = Transmit {
                destination: peer.client,
                ecn: None,
                contents: &scratch[..length],
                segment_size: None,
                src_ip: peer.local,
            };
            if socket.state.try_send(UdpSockRef::from(&socket.descriptor), &answer).is_ok() {
                if let Some(upstream) = entry.sessions.value_mut(session) {
                    upstream.to_client += length as u64;
                }
                tools.tally.datagrams.of(Direction::ToClient).one();
                tools.tally.udp_bytes.of(Direction::ToClient).more(length as u64);
            } else {
                tools.tally.datagrams_dropped.of(Refusal::Undeliverable).one();
            }
        }
    }

    /// Sessions' time may be up.
    pub(super) fn due(&mut self, port: Key, tools: &mut Tools) {
        let Some(entry) = self.ports.get_mut(port) else { return };
        entry.alarm = None;
        while let Some((session, end)) = self.ports.get_mut(port).and_then(|port| port.sessions.expired(tools.now)) {
            self.end_session(port, session, end, tools);
        }
        self.arm(port, tools);
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
            upstream.backend.put_aside(tools.now);
        }
        self.end_session(port, session, SessionEnd::BackendGone, tools);
    }

    fn end_session(&mut self, port: Key, session: Key, end: SessionEnd, tools: &mut Tools) {
        let Some(entry) = self.ports.get_mut(port) else { return };
        let Some((peer, upstream)) = entry.sessions.end(session) else { return };
        self.upstreams.remove(upstream.key);
        tools.tally.sessions_closed.of(end).one();
        (tools.shared.closed)(&ClosingRecord {
            service_instance_id: &entry.listener.id,
            client: canonical(peer.client),
            backend: Some(upstream.backend.endpoint.address),
            lasted: tools.now.saturating_duration_since(upstream.opened_at),
            to_backend: upstream.to_backend,
            to_client: upstream.to_client,
            end: FlowEnd::Session(end),
        });
    }

    fn arm(&mut self, port: Key, tools: &mut Tools) {
        if let Some(entry) = self.ports.get_mut(port) {
            tools.timers.set(&mut entry.alarm, entry.sessions.next_alarm(), Token::Datagrams(port, 0));
        }
    }
}
