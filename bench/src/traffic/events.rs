//! What is ready: an epoll set, level-triggered, so that one read and one write per event are enough.

use std::{io, os::fd::AsFd, os::fd::OwnedFd, time::Duration, time::Instant};

use rustix::{
    buffer::spare_capacity,
    event::{PollFd, PollFlags, Timespec, epoll, poll},
    io::Errno,
};

pub use rustix::event::epoll::EventFlags as Interest;

/// Events that are taken from the kernel at once.
const EVENTS_PER_TURN: usize = 256;

/// Shorter waits end exactly: `ppoll` counts nanoseconds. `epoll_pwait` counts milliseconds and rounds up.
const EXACT: Duration = Duration::from_millis(10);
/// Longer waits end early by this, and whoever waits looks again.
const EARLY: Duration = Duration::from_millis(1);

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

    /// Waits until something is ready, or until a time; perhaps it ends early with neither.
    pub fn wait(&self, events: &mut Events, until: Option<Instant>) -> io::Result<()> {
        events.0.clear();
        let mut patience = until.map(|until| until.saturating_duration_since(Instant::now()));
        if let Some(patience) = &mut patience {
            if *patience >= EXACT {
                *patience -= EARLY;
            } else if !patience.is_zero() {
                match poll(&mut [PollFd::new(&self.epoll, PollFlags::IN)], Some(&timespec(*patience))) {
                    Ok(0) | Err(Errno::INTR) => return Ok(()),
                    Ok(_) => *patience = Duration::ZERO,
                    Err(error) => return Err(error.into()),
                }
            }
        }
        let timeout = patience.map(timespec);
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

#[cfg(test)]
mod tests {
    use super::*;

    /// How long the shortest of some waits took: the others may have been held up.
    fn shortest(wait: Duration) -> Duration {
        let poll = Poll::new().unwrap();
        let mut events = Events::new();
        let took = (0..50).map(|_| {
            let start = Instant::now();
            poll.wait(&mut events, Some(start + wait)).unwrap();
            start.elapsed()
        });
        took.min().unwrap()
    }

    #[test]
    fn short_waits_are_not_rounded_to_milliseconds() {
        let wait = Duration::from_micros(300);
        let took = shortest(wait);
        assert!(wait <= took && took < Duration::from_millis(1), "{took:?}");
    }

    #[test]
    fn a_long_wait_is_not_late_for_being_rounded() {
        // 10.001 ms would be rounded to 11, and its end is at most as late as that of 10.
        let took = shortest(EXACT + Duration::from_micros(1));
        assert!(took < EXACT + EARLY, "{took:?}");
    }

    #[test]
    fn what_is_ready_ends_a_short_wait() {
        let (reader, writer) = io::pipe().unwrap();
        let poll = Poll::new().unwrap();
        poll.add(&reader, 7, Interest::IN).unwrap();
        io::Write::write_all(&mut &writer, b"x").unwrap();
        let mut events = Events::new();
        poll.wait(&mut events, Some(Instant::now() + EXACT / 2)).unwrap();
        assert_eq!(events.iter().map(|event| event.token).collect::<Vec<_>>(), [7]);
    }
}
