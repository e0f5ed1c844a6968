//! UDP: the sockets of listeners and sessions.
//!
//! Each session has a socket of its own, connected to its backend, so that the kernel tells answers apart and reports
//! refusals. Answers leave by the listener's socket, from the very address that the client sent to.

pub mod sessions;

use std::{
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
use sessions::Sessions;

use super::{
    admission::Permit,
    listener::{Listener, OnBackend},
    proxy_protocol::{self, Ends, Header, Parsed},
    slab::Key,
    sockets::{self, DatagramSocket},
    tcp::speaks_for_others,
    worker::{Token, Worker},
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

/// Where a worker receives datagrams.
pub(super) fn buffers() -> Vec<Box<[u8]>> {
    (0..BATCH).map(|_| vec![0; DATAGRAM_BUFFER_BYTES].into()).collect()
}

/// The owning worker's part of a UDP listener.
pub(super) struct UdpPort {
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
    _permit: Permit,
}

/// A session as a successor of this process could take it over.
#[derive(Debug)]
pub struct ExportedSession {
    /// Whose listener it is of.
    pub service_instance_id: ServiceInstanceId,
    /// The client.
    pub client: SocketAddr,
    /// The address that the client sends to, where the kernel says.
    pub local: Option<IpAddr>,
    /// Where its datagrams go.
    pub backend: SocketAddr,
    /// A copy of the descriptor of the socket that is connected to the backend.
    pub upstream: OwnedFd,
    /// When it ends unless a datagram comes.
    pub deadline: Instant,
}

/// Who a first datagram is from, and what of it is for the backend.
struct Opening<'a> {
    source: SocketAddr,
    destination: Option<SocketAddr>,
    payload: &'a [u8],
}

impl Worker {
    pub(super) fn open_udp(&mut self, listener: Arc<Listener>, sockets: Arc<[DatagramSocket]>) {
        let port = self.port(&listener);
        for (address, socket) in (0..).zip(sockets.iter()) {
            let token = Token::Datagrams(port, address);
            if let Err(error) = self.tools.register(&socket.descriptor, token, EventFlags::IN) {
                tracing::error!(service_instance = %listener.id, %error, "a UDP port cannot be watched and stays silent");
            }
        }
        let idle_timeout = listener.idle_timeout(Transport::Udp, &self.tools.shared.limits.load());
        let entry = self.ports.get_mut(port).expect("just made");
        debug_assert!(entry.udp.is_none(), "a listener is opened once");
        entry.udp = Some(UdpPort { sockets, sessions: Sessions::new(idle_timeout), alarm: None });
    }

    pub(super) fn close_udp(&mut self, port: Key) {
        self.end_sessions(port, SessionEnd::Removed);
        if let Some(mut udp) = self.ports.get_mut(port).and_then(|port| port.udp.take()) {
            self.timers.set(&mut udp.alarm, None, Token::Datagrams(port, 0));
            for socket in &*udp.sockets {
                self.tools.unregister(&socket.descriptor);
            }
        }
    }

    pub(super) fn receive_datagrams(&mut self, port: Key, address: u8) {
        let mut buffers = std::mem::take(&mut self.datagram_buffers);
        for _ in 0..BATCHES_PER_TURN {
            let Some(udp) = self.udp(port) else { break };
            let socket = &udp.sockets[usize::from(address)];
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
                    self.pass_on(port, peer, bytes);
                }
                for datagram in bytes.chunks(meta.stride.max(1)) {
                    self.pass_on(port, peer, datagram);
                }
            }
            if received < BATCH {
                break;
            }
        }
        self.datagram_buffers = buffers;
        self.arm_sessions(port);
    }

    /// Sends a client's datagram to its backend.
    fn pass_on(&mut self, port: Key, peer: Peer, datagram: &[u8]) {
        if let Err(refusal) = self.try_pass_on(port, peer, datagram) {
            self.tools.shared.metrics.datagrams_dropped.of(refusal).inc();
        }
    }

    fn try_pass_on(&mut self, port: Key, peer: Peer, datagram: &[u8]) -> Result<(), Refusal> {
        let now = self.tools.now;
        let udp = self.udp(port).ok_or(Refusal::Draining)?;
        if let Some(session) = udp.sessions.find(&peer) {
            udp.sessions.sent(session, now);
            match self.send(port, session, &[], datagram) {
                // The error is of a datagram before: this one has not been sent.
                Err(Errno::CONNREFUSED) => self.lose_backend(port, session),
                result => return result.map_err(|_| Refusal::Undeliverable),
            }
        }
        let opening = self.opening(port, peer, datagram)?;
        let mut tried = Vec::new();
        let ticket = self.ports.get(port).ok_or(Refusal::Draining)?.listener.ticket(Transport::Udp);
        loop {
            let session = self.open_session(port, peer, opening.source, ticket, &mut tried)?;
            let header = self.header(port, peer, &opening);
            match self.send(port, session, &header, opening.payload) {
                Ok(()) => return Ok(()),
                Err(Errno::CONNREFUSED) => self.lose_backend(port, session),
                Err(_) => {
                    // The next datagram would go out without the header, and could bring one of its own.
                    self.end_session(port, session, SessionEnd::NotBegun);
                    return Err(Refusal::Undeliverable);
                }
            }
        }
    }

    /// Whether a peer without a session may have one, and what its first datagram says.
    fn opening<'a>(&self, port: Key, peer: Peer, datagram: &'a [u8]) -> Result<Opening<'a>, Refusal> {
        if !self.accepting {
            return Err(Refusal::Draining);
        }
        let mut opening = Opening { source: peer.client, destination: None, payload: datagram };
        if speaks_for_others(&self.tools.shared.limits.load(), peer.client) {
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
    ) -> Result<Key, Refusal> {
        let now = self.tools.now;
        loop {
            let listener = &self.ports.get(port).ok_or(Refusal::Draining)?.listener;
            let chosen = self.tools.chooser.choose(listener, Transport::Udp, (source.ip(), ticket), tried, now);
            let backend = chosen.map(OnBackend::new).ok_or(Refusal::NoBackend)?;
            let permit = self.admit_session(port)?;
            let address = backend.endpoint.address;
            tried.push(address);
            let socket = match self.tools.shared.connector.load().connect(address, Transport::Udp) {
                Ok(socket) => socket,
                Err(error) if sockets::is_own_fault(&error) => return Err(Refusal::Exhausted),
                Err(_) => {
                    backend.put_aside(now);
                    continue;
                }
            };
            let udp = self.ports.get_mut(port).and_then(|port| port.udp.as_mut()).ok_or(Refusal::Draining)?;
            let key = self.upstreams.insert((port, Key { index: 0, generation: 0 }));
            if self.tools.register(&socket, Token::Upstream(key), EventFlags::IN).is_err() {
                self.upstreams.remove(key);
                return Err(Refusal::Exhausted);
            }
            let drain_by = (backend.phase() == Phase::Draining).then(|| backend.drain_deadline()).flatten();
            let session = udp.sessions.open(peer, Upstream { socket, backend, key, _permit: permit }, now);
            udp.sessions.drain_by(session, drain_by);
            *self.upstreams.get_mut(key).expect("just put in") = (port, session);
            self.tools.shared.metrics.sessions_opened.inc();
            self.tools.shared.metrics.sessions_open.inc();
            return Ok(session);
        }
    }

    /// Room for one more session, if need be that of one which never got an answer.
    fn admit_session(&mut self, port: Key) -> Result<Permit, Refusal> {
        let shared = Arc::clone(&self.tools.shared);
        let listener = Arc::clone(&self.ports.get(port).ok_or(Refusal::Draining)?.listener);
        let admit = || shared.admission.admit(&listener.usage, Transport::Udp, &listener.spec(), &shared.limits.load());
        admit().or_else(|refusal| {
            let expendable = self.udp(port).and_then(|udp| udp.sessions.expendable()).ok_or(refusal)?;
            self.end_session(port, expendable, SessionEnd::Displaced);
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

    fn send(&mut self, port: Key, session: Key, header: &[u8], datagram: &[u8]) -> Result<(), Errno> {
        let upstream =
            self.udp(port).and_then(|udp| udp.sessions.get(session)).expect("the caller has just found it").1;
        let parts = [IoSlice::new(header), IoSlice::new(datagram)];
        let mut no_extras = SendAncillaryBuffer::default();
        retry_on_intr(|| net::sendmsg(&upstream.socket, &parts, &mut no_extras, SendFlags::NOSIGNAL))?;
        let metrics = &self.tools.shared.metrics;
        metrics.datagrams.of(Direction::ToBackend).inc();
        metrics.udp_bytes.of(Direction::ToBackend).inc_by(datagram.len() as u64);
        Ok(())
    }

    pub(super) fn receive_answers(&mut self, upstream: Key) {
        let Some((port, session)) = self.upstreams.get(upstream).copied() else { return };
        for _ in 0..ANSWERS_PER_TURN {
            let Some(udp) = self.ports.get_mut(port).and_then(|port| port.udp.as_mut()) else { return };
            let Some((peer, upstream)) = udp.sessions.get(session) else { return };
            let scratch = &mut self.tools.scratch;
            let length = match retry_on_intr(|| net::recv(&upstream.socket, &mut **scratch, RecvFlags::empty())) {
                Ok((length, _)) => length,
                Err(Errno::AGAIN) => return,
                Err(Errno::CONNREFUSED) => return self.lose_backend(port, session),
                // A report of a datagram that was lost on the way; the next may arrive.
                Err(_) => continue,
            };
            upstream.backend.works();
            udp.sessions.answered(session, self.tools.now);
            let socket = &udp.sockets[usize::from(peer.address)];
            let answer = Transmit {
                destination: peer.client,
                ecn: None,
                contents: &scratch[..length],
                segment_size: None,
                src_ip: peer.local,
            };
            let metrics = &self.tools.shared.metrics;
            if socket.state.try_send(UdpSockRef::from(&socket.descriptor), &answer).is_ok() {
                metrics.datagrams.of(Direction::ToClient).inc();
                metrics.udp_bytes.of(Direction::ToClient).inc_by(length as u64);
            } else {
                metrics.datagrams_dropped.of(Refusal::Undeliverable).inc();
            }
        }
    }

    pub(super) fn sessions_due(&mut self, port: Key) {
        if let Some(udp) = self.udp(port) {
            udp.alarm = None;
        }
        let now = self.tools.now;
        while let Some((session, end)) = self.udp(port).and_then(|udp| udp.sessions.expired(now)) {
            self.end_session(port, session, end);
        }
        self.arm_sessions(port);
    }

    /// Takes new settings over to open sessions.
    pub(super) fn refresh_sessions(&mut self, port: Key) {
        let Some(entry) = self.ports.get_mut(port) else { return };
        let idle_timeout = entry.listener.idle_timeout(Transport::Udp, &self.tools.shared.limits.load());
        if let Some(udp) = &mut entry.udp {
            udp.sessions.set_idle_timeout(idle_timeout);
        }
        self.arm_sessions(port);
    }

    /// Takes what has become of backends over to their sessions.
    pub(super) fn sessions_follow(&mut self, port: Key) {
        for session in self.udp(port).map(|udp| udp.sessions.keys()).unwrap_or_default() {
            let Some(udp) = self.udp(port) else { return };
            let (_, upstream) = udp.sessions.get(session).expect("only this loop ends sessions");
            match upstream.backend.phase() {
                Phase::Serving => udp.sessions.drain_by(session, None),
                Phase::Draining => {
                    let deadline = upstream.backend.drain_deadline();
                    udp.sessions.drain_by(session, deadline);
                }
                Phase::Left => self.end_session(port, session, SessionEnd::BackendLeft),
                Phase::Revoked => self.end_session(port, session, SessionEnd::Revoked),
            }
        }
        self.arm_sessions(port);
    }

    pub(super) fn end_sessions(&mut self, port: Key, end: SessionEnd) {
        for session in self.udp(port).map(|udp| udp.sessions.keys()).unwrap_or_default() {
            self.end_session(port, session, end);
        }
    }

    pub(super) fn export_sessions(&self) -> Vec<ExportedSession> {
        let ports = self.ports.iter().filter_map(|(_, port)| Some((&port.listener, port.udp.as_ref()?)));
        ports
            .flat_map(|(listener, udp)| {
                udp.sessions.keys().into_iter().filter_map(|key| {
                    let (peer, upstream) = udp.sessions.get(key)?;
                    Some(ExportedSession {
                        service_instance_id: listener.id.clone(),
                        client: peer.client,
                        local: peer.local,
                        backend: upstream.backend.endpoint.address,
                        upstream: upstream.socket.as_fd().try_clone_to_owned().ok()?,
                        deadline: udp.sessions.deadline(key)?,
                    })
                })
            })
            .collect()
    }

    /// The backend's machine says that nobody listens there.
    fn lose_backend(&mut self, port: Key, session: Key) {
        let now = self.tools.now;
        if let Some((_, upstream)) = self.udp(port).and_then(|udp| udp.sessions.get(session)) {
            upstream.backend.put_aside(now);
        }
        self.end_session(port, session, SessionEnd::BackendGone);
    }

    fn end_session(&mut self, port: Key, session: Key, end: SessionEnd) {
        let Some((_, upstream)) = self.udp(port).and_then(|udp| udp.sessions.end(session)) else { return };
        self.upstreams.remove(upstream.key);
        let metrics = &self.tools.shared.metrics;
        metrics.sessions_closed.of(end).inc();
        metrics.sessions_open.dec();
    }

    fn arm_sessions(&mut self, port: Key) {
        if let Some(udp) = self.ports.get_mut(port).and_then(|port| port.udp.as_mut()) {
            self.timers.set(&mut udp.alarm, udp.sessions.next_alarm(), Token::Datagrams(port, 0));
        }
    }

    fn udp(&mut self, port: Key) -> Option<&mut UdpPort> {
        self.ports.get_mut(port)?.udp.as_mut()
    }
}
