//! From clients to backends: what listeners receive, and how sessions begin.

use std::{
    io::IoSlice,
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use rustix::{
    io::{Errno, retry_on_intr},
    net::{self, SendAncillaryBuffer, SendFlags},
};

use super::{
    Peer, Udp, Upstream,
    inbox::BATCH,
    runs::{Piece, Run, Runs},
};
use crate::{
    backends::Phase,
    forwarder::{
        admission::{Barred, Permit},
        epoll::tools::{Token, Tools},
        listener::{OnBackend, speaks_for_others},
        proxy_protocol::{self, Ends, Header, Parsed},
        sessions::{Source, has_room},
        slab::Key,
        sockets,
    },
    model::{Transport, parameters::ProxyProtocol},
    telemetry::metrics::{Direction, Refusal, SessionEnd},
};

/// Batches that one listener gets per turn.
const BATCHES_PER_TURN: usize = 4;

/// Who a first datagram is from, and what of it is for the backend.
struct Opening<'a> {
    source: SocketAddr,
    destination: Option<SocketAddr>,
    payload: &'a [u8],
}

impl Udp {
    /// Datagrams wait at a listener.
    pub(in crate::forwarder::epoll) fn receive(&mut self, port: Key, address: u8, tools: &mut Tools) {
        let mut inbox = std::mem::take(&mut self.inbox);
        let emptied = (0..BATCHES_PER_TURN).any(|_| {
            let Some(entry) = self.ports.get(port) else { return true };
            let (received, all) = inbox.fill(&entry.sockets[usize::from(address)]);
            inbox.sort(received, address, &entry.sessions);
            for flow in inbox.flows() {
                let whose = (flow.peer, flow.session);
                match inbox.only_piece_of(flow) {
                    Some(piece) => self.pass_on(port, whose, &[piece], tools),
                    None => {
                        let (pieces, count) = inbox.pieces_of(flow);
                        self.pass_on(port, whose, &pieces[..count], tools);
                    }
                }
            }
            all
        });
        self.inbox = inbox;
        self.keep_up(port, address, emptied, tools);
        self.arm(port, tools);
    }

    /// Sends datagrams of one client to its backend: the rest to another one, when that turns out to be gone.
    pub(super) fn pass_on(&mut self, port: Key, flow: (Peer, Option<Key>), pieces: &[Piece<'_>], tools: &mut Tools) {
        let (peer, mut session) = flow;
        let mut runs = Runs::new(pieces);
        while let Some(datagram) = runs.first() {
            let Some(entry) = self.ports.get_mut(port) else { return };
            let known = session.and_then(|key| Some((key, entry.sessions.sent(key, tools.now)?)));
            let Some((key, upstream)) = known else {
                if self.hand_on(port, peer, runs.pieces(), tools) {
                    return;
                }
                match self.begin(port, peer, datagram, tools) {
                    Ok(begun) => session = Some(begun),
                    Err(refusal) => self.drop_of(port, refusal, 1, tools),
                }
                runs.advance(runs.next(0).expect("there is a first"));
                continue;
            };
            // It may have left just now, before this worker was told, or refused another session's datagram.
            if let Some(end) = upstream.ended_by_backend().or_else(|| upstream.gives_way(&entry.listener, tools.now)) {
                self.end_session(port, key, end, tools);
                session = None;
                continue;
            }
            upstream.asked();
            let run = runs.next(upstream.joinable_to_backend).expect("there is a first");
            match upstream.send(datagram, &runs, run) {
                Ok(()) => {
                    tools.tally.carried(Direction::ToBackend, run.datagrams, run.bytes);
                    entry.tally.carried(Direction::ToBackend, run.datagrams, run.bytes);
                }
                // The error is of a datagram before: this one has not been sent.
                Err(Errno::CONNREFUSED) => {
                    self.lose_backend(port, key, tools);
                    session = None;
                    continue;
                }
                Err(error) => match run.segment {
                    Some(segment) if sockets::refuses_to_cut(error) => {
                        upstream.joinable_to_backend = sockets::joinable_after(error, segment);
                        continue;
                    }
                    _ => self.drop_of(port, Refusal::Undeliverable, run.datagrams as u64, tools),
                },
            }
            runs.advance(run);
        }
    }

    /// Counts datagrams that are not passed on.
    pub(super) fn drop_of(&self, port: Key, refusal: Refusal, datagrams: u64, tools: &Tools) {
        tools.tally.datagrams_dropped.of(refusal).more(datagrams);
        if let Some(entry) = self.ports.get(port) {
            entry.tally.datagrams_dropped.more(datagrams);
        }
    }

    /// Begins a session with the first datagram of a client that has none.
    fn begin(&mut self, port: Key, peer: Peer, datagram: &[u8], tools: &mut Tools) -> Result<Key, Refusal> {
        let opening = self.opening(port, peer, datagram, tools)?;
        let mut tried = Vec::new();
        let ticket = self.ports.get(port).ok_or(Refusal::Draining)?.listener.usage.ticket(Transport::Udp);
        loop {
            let session = self.open_session(port, peer, opening.source, ticket, &mut tried, tools)?;
            let header = self.header(port, peer, &opening);
            let entry = self.ports.get_mut(port).expect("it has just got a session");
            let upstream = entry.sessions.value_mut(session).expect("just opened");
            match upstream.send_first(&header, opening.payload) {
                Ok(()) => {
                    tools.tally.carried(Direction::ToBackend, 1, opening.payload.len());
                    entry.tally.carried(Direction::ToBackend, 1, opening.payload.len());
                    return Ok(session);
                }
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
        let limits = tools.shared.limits.load();
        if speaks_for_others(&limits, peer.client) {
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
        Barred::why(opening.source.ip(), &spec, &limits).map_or(Ok(opening), |barred| Err(barred.into()))
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
            let permit = self.admit_session(port, Source::of(source.ip()), tools)?;
            let address = backend.endpoint.address;
            tried.push(address);
            let socket = match tools.shared.connector.load().connect(address, Transport::Udp) {
                Ok(socket) => socket,
                Err(error) if sockets::is_own_fault(&error) => return Err(Refusal::Exhausted),
                Err(_) => {
                    backend.failed(now);
                    continue;
                }
            };
            let entry = self.ports.get_mut(port).ok_or(Refusal::Draining)?;
            let key = self.upstreams.insert((port, Key { index: 0, generation: 0 }));
            if tools.receive_from(&socket, Token::Upstream(key)).is_err() {
                self.upstreams.remove(key);
                return Err(Refusal::Exhausted);
            }
            let drain_by = (backend.phase() == Phase::Draining).then(|| backend.drain_deadline()).flatten();
            let upstream = Upstream::new(socket, backend, key, permit, now);
            let session = entry.sessions.open(peer, Source::of(source.ip()), upstream, now);
            entry.sessions.drain_by(session, drain_by);
            *self.upstreams.get_mut(key).expect("just put in") = (port, session);
            tools.tally.sessions_opened.one();
            entry.tally.sessions_opened.one();
            return Ok(session);
        }
    }

    /// Room for one more session, if need be that of one which never got an answer.
    fn admit_session(&mut self, port: Key, source: Source, tools: &mut Tools) -> Result<Permit, Refusal> {
        let shared = Arc::clone(&tools.shared);
        let entry = self.ports.get(port).ok_or(Refusal::Draining)?;
        let listener = Arc::clone(&entry.listener);
        let (spec, limits) = (listener.spec(), shared.limits.load());
        // This worker has about its share of what a source has on a port that several have.
        let shares = entry.share.as_ref().map_or(1, |share| share.workers.len() as u32);
        let own = entry.sessions.of_source(source).saturating_mul(shares);
        if !has_room(own, listener.usage.session_room(&spec, &limits)) {
            return Err(Refusal::SourceLimit);
        }
        let admit = || shared.admission.admit(&listener.usage, Transport::Udp, &spec, &limits);
        admit().or_else(|refusal| {
            let expendable = self.ports.get(port).and_then(|port| port.sessions.expendable()).ok_or(refusal)?;
            self.end_session(port, expendable, SessionEnd::Displaced, tools);
            admit()
        })
    }

    /// What the backend is told of its client, with the first datagram.
    fn header(&self, port: Key, peer: Peer, opening: &Opening<'_>) -> Vec<u8> {
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
}

impl Upstream {
    /// Sends the run that comes next, whose first datagram this is.
    fn send(&mut self, first: &[u8], runs: &Runs<'_, '_>, run: Run) -> Result<(), Errno> {
        match run.segment {
            None => {
                retry_on_intr(|| net::send(&self.socket, first, SendFlags::NOSIGNAL))?;
            }
            Some(segment) => {
                let mut parts = [IoSlice::new(&[]); BATCH];
                let count = parts.iter_mut().zip(runs.parts(run)).map(|(place, part)| *place = part).count();
                sockets::send_joined(&self.socket, &parts[..count], segment)?;
            }
        }
        self.to_backend.add(run.datagrams, run.bytes);
        Ok(())
    }

    /// Sends the first datagram, behind what the backend is told of its client.
    fn send_first(&mut self, header: &[u8], datagram: &[u8]) -> Result<(), Errno> {
        let parts = [IoSlice::new(header), IoSlice::new(datagram)];
        let mut no_extras = SendAncillaryBuffer::default();
        retry_on_intr(|| net::sendmsg(&self.socket, &parts, &mut no_extras, SendFlags::NOSIGNAL))?;
        self.to_backend.add(1, datagram.len());
        Ok(())
    }
}
