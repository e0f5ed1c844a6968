//! Datagrams that clients have sent, received many at a time: one block of memory per worker, none per client.

use std::io::IoSliceMut;

use super::{DATAGRAM_BUFFER_BYTES, Peer, Upstream, runs::Piece};
use crate::forwarder::{
    sessions::Sessions,
    slab::Key,
    sockets::{DatagramSocket, Received},
};

/// Datagrams, or runs of joined ones, that are received at once.
pub(super) const BATCH: usize = 32;
/// What is asked for at least.
const MIN_BATCH: usize = 4;
/// From one buffer to the next. No power of two, or their beginnings would compete for the same places of the caches.
const BUFFER_DISTANCE: usize = DATAGRAM_BUFFER_BYTES + 192;

/// What is received at once: one block of memory per worker.
#[derive(Default)]
pub(super) struct Inbox {
    memory: Box<[u8]>,
    received: Vec<Received>,
    /// How much is asked for: to ask for more than there is costs a little.
    ask: usize,
    /// The clients of the batch.
    flows: Vec<Flow>,
    /// After each that was received the next one of its flow.
    next: Vec<u8>,
}

/// What a batch has of one client.
pub(super) struct Flow {
    pub peer: Peer,
    pub session: Option<Key>,
    first: u8,
    last: u8,
}

impl Inbox {
    pub(super) fn new() -> Self {
        Self {
            memory: vec![0; BATCH * BUFFER_DISTANCE].into(),
            received: vec![Received::default(); BATCH],
            ask: MIN_BATCH,
            flows: Vec::with_capacity(BATCH),
            next: vec![0; BATCH],
        }
    }

    /// Takes what waits at a socket. Says how many buffers it fills, and whether that was all.
    pub(super) fn fill(&mut self, socket: &DatagramSocket) -> (usize, bool) {
        let mut buffers = self.memory.chunks_exact_mut(BUFFER_DISTANCE);
        let mut buffers = std::array::from_fn::<_, BATCH, _>(|_| {
            IoSliceMut::new(&mut buffers.next().expect("as many as a batch has")[..DATAGRAM_BUFFER_BYTES])
        });
        // An error of a socket that only receives and answers concerns one answer, which is lost anyway.
        let ask = self.ask;
        let received = socket.receive(&socket.descriptor, &mut buffers[..ask], &mut self.received[..ask]).unwrap_or(0);
        match received {
            // The end of what a full batch was the beginning of: the next time there may be as much.
            0 => {}
            _ if received == ask => self.ask = BATCH,
            _ => self.ask = (2 * received).clamp(MIN_BATCH, BATCH),
        }
        (received, received < ask)
    }

    /// Finds out which client's each datagram is.
    pub(super) fn sort(&mut self, received: usize, address: u8, sessions: &Sessions<Peer, Upstream>) {
        self.flows.clear();
        // Sessions in short, so that many are compared at once.
        let mut known = [None; BATCH];
        let mut before = 0;
        for number in 0..received {
            let (peer, place) = (self.peer(number, address), number as u8);
            if self.flows.get(before).is_none_or(|flow| flow.peer != peer) {
                let session = sessions.find(&peer);
                before = match session.map(|session| session.index) {
                    Some(index) => known[..self.flows.len()].iter().position(|known| *known == Some(index)),
                    None => self.flows.iter().position(|flow| flow.session.is_none() && flow.peer == peer),
                }
                .unwrap_or(self.flows.len());
                if before == self.flows.len() {
                    known[before] = session.map(|session| session.index);
                    self.flows.push(Flow { peer, session, first: place, last: place });
                    continue;
                }
            }
            let flow = &mut self.flows[before];
            self.next[usize::from(flow.last)] = place;
            flow.last = place;
        }
    }

    /// The clients of the batch.
    pub(super) fn flows(&self) -> &[Flow] {
        &self.flows
    }

    /// What was received of a flow, when it is all in one place, as mostly.
    pub(super) fn only_piece_of(&self, flow: &Flow) -> Option<Piece<'_>> {
        (flow.first == flow.last).then(|| self.piece(flow.first.into()))
    }

    /// What was received of a flow, in order, and how many pieces it is.
    pub(super) fn pieces_of(&self, flow: &Flow) -> ([Piece<'_>; BATCH], usize) {
        let mut pieces = [Piece { bytes: &[], length: 0 }; BATCH];
        let (mut number, mut count) = (flow.first, 0);
        loop {
            pieces[count] = self.piece(usize::from(number));
            count += 1;
            if number == flow.last {
                return (pieces, count);
            }
            number = self.next[usize::from(number)];
        }
    }

    fn piece(&self, number: usize) -> Piece<'_> {
        let Received { len, stride, .. } = self.received[number];
        Piece { bytes: &self.memory[number * BUFFER_DISTANCE..][..len], length: stride }
    }

    fn peer(&self, number: usize, address: u8) -> Peer {
        let Received { addr, dst_ip, .. } = self.received[number];
        Peer { client: addr, local: dst_ip, address }
    }
}
