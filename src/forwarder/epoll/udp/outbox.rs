//! Answers of one turn on their way to clients: one block of memory per worker, none per session.

use std::{
    io::{self, IoSlice, IoSliceMut},
    os::fd::AsFd as _,
};

use rustix::{
    io::{Errno, retry_on_intr},
    net::{self, RecvFlags},
};

use super::{
    DATAGRAM_BUFFER_BYTES, Peer, Udp, UdpPort, Upstream,
    runs::{Piece, Run, Runs},
};
use crate::{
    forwarder::{
        slab::Key,
        sockets::{self, DatagramSocket, MAX_MESSAGES, Message, Received},
    },
    telemetry::metrics::{Direction, Refusal, Tally},
};

/// Answers of the largest size that the memory has room for.
const BUFFERS: usize = MOST_AT_ONCE;
/// Answers, or joined ones, that are read at once from one session.
pub(super) const MOST_AT_ONCE: usize = 16;

/// How many datagrams the kernel has joined to so many bytes; all but the last have that length.
fn datagrams(bytes: usize, length: usize) -> usize {
    if bytes <= length { 1 } else { bytes.div_ceil(length) }
}

/// Answers that have been read and not yet sent, at most [`MAX_MESSAGES`].
pub(super) struct Outbox {
    memory: Box<[u8]>,
    used: usize,
    waiting: Vec<Answer>,
    /// What becomes of those that leave together; kept for its memory.
    leaving: Vec<Leaving>,
}

/// A datagram from a backend, or several that the kernel has joined.
#[derive(Clone, Copy)]
struct Answer {
    port: Key,
    session: Key,
    peer: Peer,
    joinable: u16,
    /// Where in memory it is.
    start: usize,
    bytes: usize,
    /// The length of its datagrams; the last may be shorter.
    length: usize,
}

impl Answer {
    fn piece<'a>(&self, memory: &'a [u8]) -> Piece<'a> {
        Piece { bytes: &memory[self.start..][..self.bytes], length: self.length }
    }
}

/// A run to a client, and where its parts are among those of its kind.
#[derive(Clone, Copy)]
struct Leaving {
    answer: Answer,
    run: Run,
    first_part: usize,
    parts: usize,
}

impl Outbox {
    pub(super) fn new() -> Self {
        let memory = vec![0; BUFFERS * DATAGRAM_BUFFER_BYTES].into();
        Self { memory, used: 0, waiting: Vec::with_capacity(MAX_MESSAGES), leaving: Vec::new() }
    }

    pub(super) const fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// Whether there is room for one more answer, whatever its size.
    pub(super) fn has_room(&self) -> bool {
        self.waiting.len() < MAX_MESSAGES && self.memory.len() - self.used >= DATAGRAM_BUFFER_BYTES
    }

    /// Reads one answer of a session; there must be room.
    pub(super) fn read_one(&mut self, (port, session): (Key, Key), peer: Peer, from: &mut Upstream) -> io::Result<()> {
        let room = &mut self.memory[self.used..][..DATAGRAM_BUFFER_BYTES];
        let (bytes, _) = retry_on_intr(|| net::recv(&from.socket, &mut *room, RecvFlags::empty()))?;
        let joinable = from.joinable_to_client;
        self.waiting.push(Answer { port, session, peer, joinable, start: self.used, bytes, length: bytes });
        self.used += bytes;
        from.to_client.add(1, bytes);
        Ok(())
    }

    /// Reads as many answers of a session as it may have, joined or not, and says how many; there must be room.
    pub(super) fn read_many(
        &mut self,
        (port, session): (Key, Key),
        peer: Peer,
        from: &mut Upstream,
        by: &DatagramSocket,
    ) -> io::Result<usize> {
        let most = usize::from(from.appetite).min(MAX_MESSAGES - self.waiting.len());
        let start = self.used;
        let mut received = [Received::default(); MOST_AT_ONCE];
        let mut buffers = self.memory[start..].chunks_exact_mut(DATAGRAM_BUFFER_BYTES);
        let mut buffers =
            std::array::from_fn::<_, MOST_AT_ONCE, _>(|_| IoSliceMut::new(buffers.next().unwrap_or_default()));
        let most = most.min(buffers.iter().take_while(|buffer| !buffer.is_empty()).count());
        let count = by.receive(from.socket.as_fd(), &mut buffers[..most], &mut received[..most])?;
        for (number, one) in received[..count].iter().enumerate() {
            self.waiting.push(Answer {
                port,
                session,
                peer,
                joinable: from.joinable_to_client,
                start: start + number * DATAGRAM_BUFFER_BYTES,
                bytes: one.len,
                length: one.stride,
            });
            self.used = start + number * DATAGRAM_BUFFER_BYTES + one.len;
            from.to_client.add(datagrams(one.len, one.stride), one.len);
        }
        Ok(count)
    }
}

impl Udp {
    /// Sends all answers that have been read.
    pub(super) fn send_answers(&mut self, tally: &Tally) {
        let Self { ports, outbox: Outbox { memory, used, waiting, leaving }, .. } = self;
        let socket_of = |answer: &Answer| (answer.port, answer.peer.address);
        // Stable: a flow's answers stay in order.
        waiting.sort_by_key(socket_of);
        for answers in waiting.chunk_by(|a, b| socket_of(a) == socket_of(b)) {
            let port = ports.get_mut(answers[0].port).expect("answers are sent before their port is closed");
            port.send(answers, memory, leaving, tally);
        }
        waiting.clear();
        *used = 0;
    }
}

impl UdpPort {
    /// Sends answers that leave by one socket.
    fn send(&mut self, answers: &[Answer], memory: &[u8], leaving: &mut Vec<Leaving>, tally: &Tally) {
        if let [answer] = answers
            && answer.bytes <= answer.length
        {
            let run = Run { segment: None, datagrams: 1, bytes: answer.bytes, parts: 1 };
            let alone = Leaving { answer: *answer, run, first_part: 0, parts: 1 };
            return self.send_all(&[alone], &[IoSlice::new(answer.piece(memory).bytes)], tally);
        }
        let pieces = answers.iter().map(|answer| answer.piece(memory)).collect::<Vec<_>>();
        let mut parts = Vec::with_capacity(answers.len());
        leaving.clear();
        let mut rest = &pieces[..];
        for flow in answers.chunk_by(|a, b| a.session == b.session) {
            let (own, others) = rest.split_at(flow.len());
            rest = others;
            let mut runs = Runs::new(own);
            while let Some(run) = runs.next(flow[0].joinable) {
                let first_part = parts.len();
                parts.extend(runs.parts(run));
                leaving.push(Leaving { answer: flow[0], run, first_part, parts: parts.len() - first_part });
                runs.advance(run);
            }
        }
        self.send_all(leaving, &parts, tally);
    }

    fn send_all(&mut self, leaving: &[Leaving], parts: &[IoSlice<'_>], tally: &Tally) {
        let mut left = leaving;
        while let Some(first) = left.first() {
            let messages = left.iter().map(|one| Message {
                parts: &parts[one.first_part..][..one.parts],
                segment: one.run.segment,
                to: Some(one.answer.peer.client),
                from: one.answer.peer.local,
            });
            let socket = &self.sockets[usize::from(first.answer.peer.address)];
            let (gone, rest) = match socket.send(messages) {
                Ok(sent) => {
                    let (gone, rest) = left.split_at(sent);
                    let sum = |of: fn(&Run) -> usize| gone.iter().map(|one| of(&one.run)).sum();
                    let (datagrams, bytes) = (sum(|run| run.datagrams), sum(|run| run.bytes));
                    tally.carried(Direction::ToClient, datagrams, bytes);
                    self.tally.carried(Direction::ToClient, datagrams, bytes);
                    (gone, rest)
                }
                Err(error) => {
                    let (gone, rest) = left.split_at(1);
                    match first.run.segment {
                        Some(segment) if sockets::refuses_to_cut(error) => {
                            self.send_apart(first, segment, error, &parts[first.first_part..][..first.parts], tally);
                        }
                        _ => self.lose(first.answer.session, first.run, tally),
                    }
                    (gone, rest)
                }
            };
            debug_assert!(!gone.is_empty(), "each turn of the loop is done with something");
            left = rest;
        }
    }

    /// Sends a run's datagrams one by one, and remembers that the client's path does not take them joined.
    fn send_apart(&mut self, whole: &Leaving, segment: u16, error: Errno, parts: &[IoSlice<'_>], tally: &Tally) {
        if let Some(upstream) = self.sessions.value_mut(whole.answer.session) {
            upstream.joinable_to_client = sockets::joinable_after(error, segment);
        }
        let run = |bytes| Run { segment: None, datagrams: 1, bytes, parts: 1 };
        let datagrams = parts.iter().flat_map(|part| part.chunks(segment.into()));
        let datagrams = datagrams.map(IoSlice::new).collect::<Vec<_>>();
        let leaving = datagrams.iter().enumerate().map(|(first_part, datagram)| Leaving {
            answer: whole.answer,
            run: run(datagram.len()),
            first_part,
            parts: 1,
        });
        let leaving = leaving.collect::<Vec<_>>();
        self.send_all(&leaving, &datagrams, tally);
    }

    /// Takes back what was counted when it was read.
    fn lose(&mut self, session: Key, run: Run, tally: &Tally) {
        tally.datagrams_dropped.of(Refusal::Undeliverable).more(run.datagrams as u64);
        self.tally.datagrams_dropped.more(run.datagrams as u64);
        if let Some(upstream) = self.sessions.value_mut(session) {
            upstream.to_client.take_back(run.datagrams, run.bytes);
        }
    }
}
