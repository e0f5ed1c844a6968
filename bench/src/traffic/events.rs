//! What is ready: an epoll set, level-triggered, so that one read and one write per event are enough.

use std::{io, os::fd::AsFd, os::fd::OwnedFd, time::Duration, time::Instant};

use rustix::{
    buffer::spare_capacity,
    event::{Timespec, epoll},
    io::Errno,
};

pub use rustix::event::epoll::EventFlags as Interest;

/// Events that are taken from the kernel at once.
const EVENTS_PER_TURN: usize = 256;

/// What has happened to whom.
#[derive(Debug, Clone, Copy)]
pub struct Event {
    pub token: u64,
    pub flags: Interest,
}

impl Event {
    /// Whether reading would tell something: bytes, the end or an error.
    pub fn is_readable(self) -> bool {
        self.flags.intersects(Interest::IN | Interest::HUP | Interest::ERR)
    }

    /// Whether writing would: there is room, or an error.
    pub fn is_writable(self) -> bool {
        self.flags.intersects(Interest::OUT | Interest::HUP | Interest::ERR)
    }
}

#[derive(Debug)]
pub struct Poll {
    epoll: OwnedFd,
}

impl Poll {
    pub fn new() -> io::Result<Self> {
        Ok(Self { epoll: epoll::create(epoll::CreateFlags::CLOEXEC)? })
    }

    pub fn add(&self, descriptor: impl AsFd, token: u64, interest: Interest) -> io::Result<()> {
        Ok(epoll::add(&self.epoll, descriptor, epoll::EventData::new_u64(token), interest)?)
    }

    pub fn modify(&self, descriptor: impl AsFd, token: u64, interest: Interest) -> io::Result<()> {
        Ok(epoll::modify(&self.epoll, descriptor, epoll::EventData::new_u64(token), interest)?)
    }

    pub fn remove(&self, descriptor: impl AsFd) -> io::Result<()> {
        Ok(epoll::delete(&self.epoll, descriptor)?)
    }

    /// Waits until something is ready, or until a time.
    pub fn wait(&self, events: &mut Events, until: Option<Instant>) -> io::Result<()> {
        let timeout = until.map(|until| timespec(until.saturating_duration_since(Instant::now())));
        events.0.clear();
        match epoll::wait(&self.epoll, spare_capacity(&mut events.0), timeout.as_ref()) {
            Ok(_) | Err(Errno::INTR) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}

/// Room for the events of a turn.
pub struct Events(Vec<epoll::Event>);

impl Events {
    pub fn new() -> Self {
        Self(Vec::with_capacity(EVENTS_PER_TURN))
    }

    pub fn iter(&self) -> impl Iterator<Item = Event> + '_ {
        self.0.iter().map(|event| {
            let (flags, data) = (event.flags, event.data);
            Event { token: data.u64(), flags }
        })
    }
}

fn timespec(duration: Duration) -> Timespec {
    Timespec {
        tv_sec: i64::try_from(duration.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: i64::from(duration.subsec_nanos()),
    }
}
