//! A worker's part of a port that several share, because it outgrew one.
//!
//! Every worker has a socket of its own on the port, and the kernel gives each client's datagrams to one of them by a
//! rule that workers can compute ([`Spread`]). A session is in the table of the worker whose clients it has: when a port
//! is spread, those of others are handed over to them, sockets included. What arrives elsewhere nevertheless, as what
//! was received before the rule, is passed on.

use std::{
    mem,
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use super::{Behind, Peer, Udp, UdpPort, Upstream, runs::Piece};
use crate::{
    forwarder::{
        epoll::{
            tools::{Token, Tools},
            worker::Waker,
        },
        listener::Listener,
        sessions::Session,
        slab::Key,
        sockets::{DatagramSocket, Spread},
    },
    model::ServiceInstanceId,
    telemetry::metrics::{Refusal, SessionEnd},
};

/// How long a port's queue may not become empty before the port is spread.
const OUTGROWN_AFTER: Duration = Duration::from_millis(100);
/// A turn that left datagrams behind so long ago has nothing to do with one that does now: what it left was received
/// without anybody having seen that the queue was empty.
const FORGOTTEN_AFTER: Duration = Duration::from_secs(10);

/// Datagrams that wait for a worker because they arrived at another one, and their bytes.
const MAX_WAITING: usize = 4096;
const MAX_WAITING_BYTES: usize = 4 << 20;

/// Which clients of a port are whose.
#[derive(Clone)]
pub(in crate::forwarder::epoll) struct Share {
    pub spread: Spread,
    /// All workers that share the port, in the order of their sockets.
    pub workers: Arc<[Arc<Waker>]>,
    /// Which of them this is.
    pub place: usize,
}

impl Share {
    /// The place of the worker whose client it is, if that is another one.
    pub(super) fn elsewhere(&self, peer: Peer) -> Option<usize> {
        Some(self.spread.place_of(peer.client)).filter(|place| *place != self.place)
    }
}

/// What one worker has for another.
pub(in crate::forwarder::epoll) enum Letter {
    /// A part of a port, with the sessions that belong to it.
    Part(Box<Part>),
    /// Datagrams of a client of the other's.
    Datagrams(Datagrams),
}

/// A worker's part of a port.
pub(in crate::forwarder::epoll) struct Part {
    listener: Arc<Listener>,
    sockets: Arc<[DatagramSocket]>,
    share: Share,
    sessions: Vec<Session<Peer, Upstream>>,
}

/// A datagram that arrived at the wrong worker, or several that the kernel has joined.
pub(in crate::forwarder::epoll) struct Datagrams {
    listener: Arc<Listener>,
    peer: Peer,
    bytes: Box<[u8]>,
    length: usize,
}

/// What other workers have for one.
#[derive(Default)]
pub(in crate::forwarder::epoll) struct Mailbox(Mutex<Waiting>);

#[derive(Default)]
struct Waiting {
    letters: Vec<Letter>,
    /// Bytes of datagrams among them.
    bytes: usize,
}

impl Mailbox {
    /// Takes everything out, in order.
    pub(in crate::forwarder::epoll) fn take(&self) -> Vec<Letter> {
        mem::take(&mut *self.waiting()).letters
    }

    /// Puts in what must arrive. Bounded, as the reconciler spreads one port after the other.
    fn put(&self, part: Part) {
        self.waiting().letters.push(Letter::Part(Box::new(part)));
    }

    /// Puts in datagrams, if there is room.
    fn offer(&self, datagrams: Datagrams) -> bool {
        let mut waiting = self.waiting();
        let bytes = waiting.bytes + datagrams.bytes.len();
        let room = waiting.letters.len() < MAX_WAITING && bytes <= MAX_WAITING_BYTES;
        if room {
            waiting.bytes = bytes;
            waiting.letters.push(Letter::Datagrams(datagrams));
        }
        room
    }

    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        self.0.lock().expect("nothing panics while it holds the letters")
    }
}

impl Udp {
    /// Sees whether a port is kept up with: whether all that waited at one of its sockets could be received in a turn.
    pub(super) fn keep_up(&mut self, port: Key, address: u8, emptied: bool, tools: &Tools) {
        let Some(entry) = self.ports.get_mut(port) else { return };
        match &mut entry.behind {
            Some(behind) if emptied && behind.address == address => entry.behind = None,
            _ if emptied => {}
            Some(behind) if tools.now < behind.until + FORGOTTEN_AFTER => {
                behind.until = tools.now;
                if !entry.outgrown && tools.now >= behind.since + OUTGROWN_AFTER {
                    entry.outgrown = true;
                    (tools.shared.outgrown)(&entry.listener.id);
                }
            }
            _ => entry.behind = Some(Behind { address, since: tools.now, until: tools.now }),
        }
    }

    /// Shares a port with the other workers: gives each its sockets and the sessions of its clients.
    pub(in crate::forwarder::epoll) fn share_out(
        &mut self,
        id: &ServiceInstanceId,
        sockets: Vec<Arc<[DatagramSocket]>>,
        share: Share,
        tools: &mut Tools,
    ) {
        self.finish_turn(tools);
        let Self { ports, upstreams, by_id, .. } = self;
        let Some(port) = by_id.get(id).copied() else { return };
        let Some(entry) = ports.get_mut(port) else { return };
        let parts = (1..).zip(sockets).map(|(place, sockets)| Part {
            listener: Arc::clone(&entry.listener),
            sockets,
            share: Share { place, ..share.clone() },
            sessions: Vec::new(),
        });
        let mut parts = parts.collect::<Vec<_>>();
        for key in entry.sessions.keys() {
            let place = entry.sessions.get(key).and_then(|(peer, _)| share.elsewhere(peer));
            let session = place.and_then(|place| Some((place, entry.sessions.take(key)?)));
            if let Some((place, session)) = session {
                tools.unregister(&session.value().socket);
                upstreams.remove(session.value().key);
                parts[place - 1].sessions.push(session);
            }
        }
        // All have their parts before the first passes something on to another.
        parts.into_iter().for_each(|part| share.workers[part.share.place].mailbox.put(part));
        share.workers.iter().for_each(|worker| worker.wake());
        entry.share = Some(share);
        self.arm(port, tools);
    }

    /// Takes what another worker has for this one.
    pub(in crate::forwarder::epoll) fn take_letter(&mut self, letter: Letter, tools: &mut Tools) {
        match letter {
            Letter::Part(part) => self.take_part(*part, tools),
            Letter::Datagrams(Datagrams { listener, peer, bytes, length }) => {
                let Some(port) = self.by_id.get(&listener.id).copied() else {
                    // It has been closed meanwhile.
                    let lost = Piece { bytes: &bytes, length }.count();
                    return tools.tally.datagrams_dropped.of(Refusal::NoBackend).more(lost);
                };
                let session = self.ports.get(port).and_then(|port| port.sessions.find(&peer));
                self.pass_on(port, (peer, session), &[Piece { bytes: &bytes, length }], tools);
                self.arm(port, tools);
            }
        }
    }

    fn take_part(&mut self, part: Part, tools: &mut Tools) {
        let Part { listener, sockets, share, sessions } = part;
        let id = listener.id.clone();
        let port = self.open(listener, sockets, tools);
        let Some(entry) = self.ports.get_mut(port) else { return };
        entry.share = Some(share);
        // There are no more hands.
        entry.outgrown = true;
        let mut unwatched = Vec::new();
        for mut session in sessions {
            let place = self.upstreams.insert((port, Key { index: 0, generation: 0 }));
            session.value_mut().key = place;
            let watched = tools.receive_from(&session.value().socket, Token::Upstream(place));
            let key = entry.sessions.adopt(session);
            *self.upstreams.get_mut(place).expect("just put in") = (port, key);
            if watched.is_err() {
                unwatched.push(key);
            }
        }
        unwatched.into_iter().for_each(|session| self.end_session(port, session, SessionEnd::Displaced, tools));
        // They were on the way when something became of their backends, or a network was blocked.
        self.end_blocked(port, tools);
        self.follow_backends(&id, tools);
    }

    /// Passes a client's datagrams on to the worker that has its session or is to begin it. Returns whether that is
    /// another one.
    pub(super) fn hand_on<'a>(
        &self,
        port: Key,
        peer: Peer,
        pieces: impl Iterator<Item = Piece<'a>>,
        tools: &Tools,
    ) -> bool {
        let Some(UdpPort { share: Some(share), listener, .. }) = self.ports.get(port) else { return false };
        let Some(place) = share.elsewhere(peer) else { return false };
        for Piece { bytes, length } in pieces {
            let listener = Arc::clone(listener);
            let datagrams = Datagrams { listener, peer, bytes: bytes.into(), length };
            if !share.workers[place].mailbox.offer(datagrams) {
                self.drop_of(port, Refusal::Undeliverable, Piece { bytes, length }.count(), tools);
            }
        }
        share.workers[place].wake();
        true
    }
}
