//! What a worker's loop lends to those that handle its events: the epoll set, timers, memory, time.

use std::{
    collections::BTreeSet,
    io,
    os::fd::{AsFd, OwnedFd},
    sync::Arc,
    time::Instant,
};

use rustix::event::epoll;

use super::{
    super::{
        listener::{Chooser, Listener},
        shared::Shared,
        slab::{GENERATION_BITS, Key},
    },
    handover::Desks,
    pipes::Pipes,
};
use crate::telemetry::metrics::{PortTally, Tally};

/// What one read may bring: one per worker, not per connection.
const SCRATCH_BYTES: usize = 64 * 1024;

/// What an event or a timer is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Token {
    Wake,
    /// A listener's TCP socket, and which of its addresses; as a timer: accepting again after a pause.
    Accept(Key, u8),
    /// A connection's client side; as a timer: its deadline.
    Client(Key),
    /// A connection's backend side.
    Backend(Key),
    /// A listener's UDP socket, and which of its addresses; as a timer: the next end of a session.
    Datagrams(Key, u8),
    /// A session's socket.
    Upstream(Key),
}

/// Addresses that a listener may be bound on: what a [`Token`] has room for.
pub(in crate::forwarder) const MAX_ADDRESSES: usize = 32;

impl Token {
    const ADDRESS_SHIFT: u32 = 32 + GENERATION_BITS;
    const KIND_SHIFT: u32 = Self::ADDRESS_SHIFT + 5;

    pub(super) fn pack(self) -> u64 {
        let none = Key { index: 0, generation: 0 };
        let (kind, key, address) = match self {
            Self::Wake => (0, none, 0),
            Self::Accept(key, address) => (1, key, address),
            Self::Client(key) => (2, key, 0),
            Self::Backend(key) => (3, key, 0),
            Self::Datagrams(key, address) => (4, key, address),
            Self::Upstream(key) => (5, key, 0),
        };
        kind << Self::KIND_SHIFT
            | u64::from(address) << Self::ADDRESS_SHIFT
            | u64::from(key.generation) << 32
            | u64::from(key.index)
    }

    pub(super) fn unpack(packed: u64) -> Self {
        let key = Key {
            index: (packed & u64::from(u32::MAX)) as u32,
            generation: (packed >> 32) as u32 & ((1 << GENERATION_BITS) - 1),
        };
        let address = (packed >> Self::ADDRESS_SHIFT) as u8 & (MAX_ADDRESSES - 1) as u8;
        match packed >> Self::KIND_SHIFT {
            0 => Self::Wake,
            1 => Self::Accept(key, address),
            2 => Self::Client(key),
            3 => Self::Backend(key),
            4 => Self::Datagrams(key, address),
            5 => Self::Upstream(key),
            kind => unreachable!("no token of kind {kind} is ever registered"),
        }
    }
}

/// What handling an event needs besides the thing that the event is about.
pub(super) struct Tools {
    pub epoll: OwnedFd,
    pub shared: Arc<Shared>,
    pub tally: Arc<Tally>,
    pub timers: Timers,
    pub scratch: Box<[u8]>,
    pub pipes: Pipes,
    pub desks: Desks,
    pub chooser: Chooser,
    /// Nothing is accepted and nothing received over UDP for now.
    pub held: bool,
    /// The time of this turn.
    pub now: Instant,
}

impl Tools {
    pub(super) fn new(shared: Arc<Shared>, desks: Desks, held: bool) -> io::Result<Self> {
        Ok(Self {
            epoll: epoll::create(epoll::CreateFlags::CLOEXEC)?,
            tally: shared.metrics.tally(),
            timers: Timers::default(),
            scratch: vec![0; SCRATCH_BYTES].into(),
            pipes: Pipes::new(desks.len()),
            desks,
            chooser: Chooser::default(),
            held,
            now: shared.clock.now(),
            shared,
        })
    }

    /// What this worker counts of a port.
    pub(super) fn tally_of<'l>(&self, listener: &'l Listener) -> &'l Arc<PortTally> {
        listener.tally(self.desks.own())
    }

    pub(super) fn register(
        &self,
        descriptor: impl AsFd,
        token: Token,
        flags: epoll::EventFlags,
    ) -> rustix::io::Result<()> {
        epoll::add(&self.epoll, descriptor, epoll::EventData::new_u64(token.pack()), flags)
    }

    /// Has the kernel tell of datagrams at a socket: not while the worker is held.
    pub(super) fn receive_from(&self, socket: impl AsFd, token: Token) -> rustix::io::Result<()> {
        if self.held { Ok(()) } else { self.register(socket, token, epoll::EventFlags::IN) }
    }

    pub(super) fn unregister(&self, descriptor: impl AsFd) {
        // A socket that was never registered, as during a pause, is as good as one that no longer is.
        let _ = epoll::delete(&self.epoll, descriptor);
    }
}

/// Things to do at a time, in order; what is looked at too early is put back.
#[derive(Debug, Default)]
pub(super) struct Timers(BTreeSet<(Instant, Token)>);

impl Timers {
    /// Moves a timer from where it was.
    pub(super) fn set(&mut self, armed: &mut Option<Instant>, at: Option<Instant>, token: Token) {
        if *armed == at {
            return;
        }
        if let Some(before) = armed.take() {
            self.0.remove(&(before, token));
        }
        if let Some(at) = at {
            self.0.insert((at, token));
        }
        *armed = at;
    }

    pub(super) fn take_due(&mut self, now: Instant) -> Option<Token> {
        let first = self.0.first().filter(|(at, _)| *at <= now)?.to_owned();
        self.0.remove(&first);
        Some(first.1)
    }

    pub(super) fn next(&self) -> Option<Instant> {
        self.0.first().map(|(at, _)| *at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_survive_the_way_through_the_kernel() {
        let key = Key { index: u32::MAX, generation: (1 << GENERATION_BITS) - 1 };
        for token in [
            Token::Wake,
            Token::Accept(key, 31),
            Token::Client(key),
            Token::Backend(Key { index: 7, generation: 1 }),
            Token::Datagrams(Key { index: 0, generation: 0 }, 1),
            Token::Upstream(key),
        ] {
            assert_eq!(Token::unpack(token.pack()), token);
        }
    }
}
