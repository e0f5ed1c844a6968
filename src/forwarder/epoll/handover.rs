//! Connections that one worker hands to another, so that each has about as many.
//!
//! The kernel wakes the worker that waits first, which would get nearly all: the others would be woken for each message
//! of the few that they have, where a busy worker finds many at a time.

use std::{
    net::SocketAddr,
    os::fd::OwnedFd,
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicU32, Ordering},
    },
};

use super::{super::listener::Listener, worker::Waker};

/// How many more connections than another a worker may have before it hands over: to do so costs a few calls, which
/// short connections are not worth.
const SLACK: u32 = 8;
/// Connections that may wait for a worker.
const MAX_WAITING: usize = 256;

/// An accepted connection on its way to the worker that will have it.
pub(super) struct Handed {
    pub listener: Arc<Listener>,
    pub client: OwnedFd,
    pub address: SocketAddr,
}

/// What a worker shows the others. On cache lines of its own, since each writes to it all the time.
#[repr(align(128))]
pub(super) struct Desk {
    /// Its open connections, and those that wait for it.
    connections: AtomicU32,
    waiting: Mutex<Vec<Handed>>,
    waker: Arc<Waker>,
}

impl Desk {
    pub(super) fn new(waker: Arc<Waker>) -> Self {
        Self { connections: AtomicU32::new(0), waiting: Mutex::default(), waker }
    }

    fn waiting(&self) -> MutexGuard<'_, Vec<Handed>> {
        self.waiting.lock().expect("nothing panics while it holds the list")
    }
}

/// One worker's desk among all.
pub(super) struct Desks {
    all: Arc<[Desk]>,
    own: usize,
    /// Who is looked at next.
    other: usize,
}

impl Desks {
    pub(super) fn new(all: Arc<[Desk]>, own: usize) -> Self {
        Self { all, own, other: own }
    }

    /// Which of them this is.
    pub(super) const fn own(&self) -> usize {
        self.own
    }

    /// How many workers there are.
    pub(super) fn len(&self) -> usize {
        self.all.len()
    }

    /// Shows how many connections there are.
    pub(super) fn show(&self, connections: usize) {
        let connections = u32::try_from(connections).unwrap_or(u32::MAX);
        self.all[self.own].connections.store(connections, Ordering::Relaxed);
    }

    /// Hands a connection to another worker that has clearly fewer, or gives it back. One is looked at each time, in turn.
    pub(super) fn hand_over(&mut self, handed: Handed) -> Result<(), Handed> {
        self.other = (self.other + 1) % self.all.len();
        let (own, other) = (&self.all[self.own], &self.all[self.other]);
        let (own, others) = (own.connections.load(Ordering::Relaxed), other.connections.load(Ordering::Relaxed));
        // Everybody has to know the listener before anybody may be given its connections.
        if own <= others.saturating_add(SLACK) || !handed.listener.is_open_at_all(self.all.len()) {
            return Err(handed);
        }
        let mut waiting = other.waiting();
        if waiting.len() >= MAX_WAITING {
            return Err(handed);
        }
        waiting.push(handed);
        let first = waiting.len() == 1;
        drop(waiting);
        other.connections.fetch_add(1, Ordering::Relaxed);
        if first {
            other.waker.wake();
        }
        Ok(())
    }

    /// What others have handed over.
    pub(super) fn take_handed(&self) -> Vec<Handed> {
        std::mem::take(&mut *self.all[self.own].waiting())
    }
}

#[cfg(test)]
mod tests {
    use rustix::event::{EventfdFlags, eventfd};

    use super::*;
    use crate::{
        backends::Backends,
        model::{PoolName, Protocol, ServiceInstanceId, desired::ListenerSpec, parameters::Settings},
    };

    fn listener(opened: usize) -> Arc<Listener> {
        let id = ServiceInstanceId::new("id").unwrap();
        let slot = Backends::new(1).slot(&id);
        let spec = ListenerSpec {
            service_instance_id: id,
            pool: PoolName::new("default").unwrap(),
            port: 35000,
            protocol: Protocol::Tcp,
            settings: Settings::default(),
            version: 1,
        };
        let listener = Arc::new(Listener::new(Arc::new(spec), slot, 2));
        (0..opened).for_each(|_| listener.opened());
        listener
    }

    fn handed(listener: &Arc<Listener>) -> Handed {
        let client = eventfd(0, EventfdFlags::CLOEXEC).unwrap();
        Handed { listener: Arc::clone(listener), client, address: SocketAddr::from(([127, 0, 0, 1], 9)) }
    }

    #[test]
    fn connections_go_to_whoever_has_clearly_fewer_and_knows_the_listener() {
        fn check(own: usize, others: &[usize], opened: usize, expected: &[usize]) {
            let waker = Arc::new(Waker::new().unwrap());
            let all = (0..=others.len()).map(|_| Desk::new(Arc::clone(&waker))).collect::<Arc<[_]>>();
            let desks = (0..all.len()).map(|number| Desks::new(Arc::clone(&all), number)).collect::<Vec<_>>();
            for (desk, connections) in std::iter::zip(&desks, [&[own], others].concat()) {
                desk.show(connections);
            }
            let mut own = Desks::new(Arc::clone(&all), 0);
            let listener = listener(opened);
            // As if each connection that stays had ended at once.
            (0..100).for_each(|_| drop(own.hand_over(handed(&listener))));
            let got = desks.iter().map(|desk| desk.take_handed().len()).collect::<Vec<_>>();
            assert_eq!(got, expected, "{others:?} {opened}");
        }
        check(8, &[0], 2, &[0, 0]);
        check(9, &[0], 2, &[0, 1]);
        check(40, &[0], 2, &[0, 32]);
        check(40, &[0], 1, &[0, 0]);
        check(40, &[30, 32, 10], 4, &[0, 2, 0, 22]);
        check(40, &[], 1, &[0]);
    }
}
