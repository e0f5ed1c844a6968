//! A worker: one thread, one epoll set, its own connections and sessions. Nothing in it ever blocks.
//!
//! Workers share listening sockets, limits and counters. A TCP connection lives in the worker that accepted it; a UDP
//! listener with all its sessions in one worker. The reconciler says what to serve ([`Command`]); changes of backends
//! arrive as the ids of the service instances that are concerned ([`Waker::backends_changed`]).

use std::{
    collections::{BTreeSet, HashMap, HashSet, VecDeque},
    io,
    mem::MaybeUninit,
    os::fd::{AsFd, OwnedFd},
    sync::{
        Arc, Mutex,
        mpsc::{Receiver, SyncSender, TryRecvError},
    },
    time::Instant,
};

use arc_swap::ArcSwap;
use rustix::{
    event::{EventfdFlags, Timespec, epoll, eventfd},
    io::Errno,
};

use super::{
    admission::Admission,
    listener::{Chooser, Listener},
    slab::{GENERATION_BITS, Key, Slab},
    sockets::{Connector, DatagramSocket},
    tcp::{Connection, TcpPort},
    udp::{ExportedSession, UdpPort},
};
use crate::{
    model::{Clock, ServiceInstanceId, Transport, desired::ForwarderLimits},
    telemetry::metrics::{ConnectionEnd, ForwarderMetrics, SessionEnd},
};

/// Commands that wait for a worker; the reconciler waits when there are more.
pub(super) const MAX_COMMANDS: usize = 1024;
/// Events that are taken from the kernel at once.
const EVENTS_PER_TURN: usize = 256;
/// What one read may bring: one per worker, not per connection.
const SCRATCH_BYTES: usize = 64 * 1024;

/// What the reconciler asks of a worker.
pub(super) enum Command {
    /// Accept from these sockets.
    OpenTcp(Arc<Listener>, Arc<[OwnedFd]>),
    /// Serve these sockets; only the worker that owns the listener gets this.
    OpenUdp(Arc<Listener>, Arc<[DatagramSocket]>),
    /// Let go of the sockets of one transport and end its flows.
    Close(ServiceInstanceId, Transport),
    /// Settings of this listener, or of all, have changed.
    Refresh(Option<ServiceInstanceId>),
    /// Let go of listening sockets and begin no sessions, but go on with what is open.
    CloseListeners,
    /// Say when everything before has been done.
    Barrier(SyncSender<()>),
    /// Hand out copies of all sessions.
    Export(SyncSender<Vec<ExportedSession>>),
    /// End everything.
    Stop,
}

/// What all workers share.
pub(super) struct Shared {
    pub admission: Arc<Admission>,
    pub limits: ArcSwap<ForwarderLimits>,
    pub metrics: Arc<ForwarderMetrics>,
    pub clock: Arc<dyn Clock>,
    pub connector: ArcSwap<Connector>,
}

/// Rouses a worker from another thread.
pub(super) struct Waker {
    descriptor: OwnedFd,
    /// Whose backends have changed. Bounded by the service instances that there are.
    changed: Mutex<HashSet<ServiceInstanceId>>,
}

impl Waker {
    pub(super) fn new() -> io::Result<Self> {
        let descriptor = eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC)?;
        Ok(Self { descriptor, changed: Mutex::default() })
    }

    /// There is something new.
    pub(super) fn wake(&self) {
        // Full means that it is awake.
        let _ = rustix::io::write(&self.descriptor, &1_u64.to_ne_bytes());
    }

    /// A set or a phase has changed.
    pub(super) fn backends_changed(&self, id: &ServiceInstanceId) {
        let mut changed = self.changed.lock().expect("nothing panics while it holds the set");
        if !changed.contains(id) {
            changed.insert(id.clone());
            drop(changed);
            self.wake();
        }
    }

    fn take_changed(&self) -> HashSet<ServiceInstanceId> {
        std::mem::take(&mut self.changed.lock().expect("nothing panics while it holds the set"))
    }

    fn acknowledge(&self) {
        let mut count = [0; 8];
        let _ = rustix::io::read(&self.descriptor, &mut count);
    }
}

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
pub(super) const MAX_ADDRESSES: usize = 32;

impl Token {
    const ADDRESS_SHIFT: u32 = 32 + GENERATION_BITS;
    const KIND_SHIFT: u32 = Self::ADDRESS_SHIFT + 5;

    fn pack(self) -> u64 {
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

    fn unpack(packed: u64) -> Self {
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
    pub scratch: Box<[u8]>,
    pub chooser: Chooser,
    /// The time of this turn.
    pub now: Instant,
}

impl Tools {
    pub(super) fn register(
        &self,
        descriptor: impl AsFd,
        token: Token,
        flags: epoll::EventFlags,
    ) -> rustix::io::Result<()> {
        epoll::add(&self.epoll, descriptor, epoll::EventData::new_u64(token.pack()), flags)
    }

    pub(super) fn unregister(&self, descriptor: impl AsFd) {
        // A socket that was never registered, as during a pause, is as good as one that no longer is.
        let _ = epoll::delete(&self.epoll, descriptor);
    }
}

/// What one worker has of a listener.
pub(super) struct Port {
    pub listener: Arc<Listener>,
    pub tcp: Option<TcpPort>,
    pub udp: Option<UdpPort>,
    /// The listener's connections in this worker.
    pub connections: HashSet<Key>,
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

    fn take_due(&mut self, now: Instant) -> Option<Token> {
        let first = self.0.first().filter(|(at, _)| *at <= now)?.to_owned();
        self.0.remove(&first);
        Some(first.1)
    }

    fn next(&self) -> Option<Instant> {
        self.0.first().map(|(at, _)| *at)
    }
}

/// One worker.
pub(super) struct Worker {
    pub(super) tools: Tools,
    pub(super) timers: Timers,
    pub(super) ports: Slab<Port>,
    by_id: HashMap<ServiceInstanceId, Key>,
    pub(super) connections: Slab<Box<Connection>>,
    /// Connections that had more to do than fits into a turn.
    pub(super) unfinished: VecDeque<Key>,
    /// Which session an upstream socket belongs to: listener, session.
    pub(super) upstreams: Slab<(Key, Key)>,
    pub(super) datagram_buffers: Vec<Box<[u8]>>,
    /// Whether new sessions begin.
    pub(super) accepting: bool,
    waker: Arc<Waker>,
    commands: Receiver<Command>,
}

impl Worker {
    pub(super) fn new(shared: Arc<Shared>, waker: Arc<Waker>, commands: Receiver<Command>) -> io::Result<Self> {
        let tools = Tools {
            epoll: epoll::create(epoll::CreateFlags::CLOEXEC)?,
            now: shared.clock.now(),
            shared,
            scratch: vec![0; SCRATCH_BYTES].into(),
            chooser: Chooser::default(),
        };
        tools.register(&waker.descriptor, Token::Wake, epoll::EventFlags::IN)?;
        Ok(Self {
            tools,
            timers: Timers::default(),
            ports: Slab::default(),
            by_id: HashMap::new(),
            connections: Slab::default(),
            unfinished: VecDeque::new(),
            upstreams: Slab::default(),
            datagram_buffers: super::udp::buffers(),
            accepting: true,
            waker,
            commands,
        })
    }

    /// Works until it is told to stop.
    pub(super) fn run(mut self) {
        let mut events = [const { MaybeUninit::<epoll::Event>::uninit() }; EVENTS_PER_TURN];
        loop {
            let timeout = self.patience();
            let taken = match epoll::wait(&self.tools.epoll, &mut events, timeout.as_ref()) {
                Ok((taken, _)) => taken,
                Err(Errno::INTR) => continue,
                Err(error) => unreachable!("epoll_wait fails only for descriptors that are none: {error}"),
            };
            self.tools.now = self.tools.shared.clock.now();
            let mut woken = false;
            for event in taken.iter() {
                let (flags, data) = (event.flags, event.data);
                match Token::unpack(data.u64()) {
                    Token::Wake => woken = true,
                    Token::Accept(port, address) => self.accept(port, address),
                    Token::Client(key) => self.connection_ready(key, super::tcp::Side::Client, flags),
                    Token::Backend(key) => self.connection_ready(key, super::tcp::Side::Backend, flags),
                    Token::Datagrams(port, address) => self.receive_datagrams(port, address),
                    Token::Upstream(key) => self.receive_answers(key),
                }
            }
            // Those that were unfinished before this turn; whoever is again waits for the next one.
            for _ in 0..self.unfinished.len() {
                let key = self.unfinished.pop_front().expect("counted");
                self.resume_connection(key);
            }
            while let Some(token) = self.timers.take_due(self.tools.now) {
                match token {
                    Token::Accept(port, _) => self.accept_again(port),
                    Token::Client(key) => self.connection_due(key),
                    Token::Datagrams(port, _) => self.sessions_due(port),
                    Token::Wake | Token::Backend(_) | Token::Upstream(_) => unreachable!("{token:?} has no timer"),
                }
            }
            if woken && self.obey() {
                return;
            }
        }
    }

    /// How long to wait for events: not at all when there is work left, else until the next timer.
    fn patience(&self) -> Option<Timespec> {
        let until = if self.unfinished.is_empty() { self.timers.next()? } else { self.tools.now };
        let wait = until.saturating_duration_since(self.tools.shared.clock.now());
        // Whole milliseconds, rounded up: a timer that is looked at too early would be looked at again and again.
        let milliseconds =
            i64::try_from(wait.as_nanos().div_ceil(1_000_000)).unwrap_or(i64::MAX).min(i64::from(i32::MAX));
        Some(Timespec { tv_sec: milliseconds / 1000, tv_nsec: milliseconds % 1000 * 1_000_000 })
    }

    /// Does what the reconciler and changed backends ask for. Returns whether to stop.
    fn obey(&mut self) -> bool {
        self.waker.acknowledge();
        for id in self.waker.take_changed() {
            if let Some(port) = self.by_id.get(&id).copied() {
                self.follow_backends(port);
            }
        }
        loop {
            match self.commands.try_recv() {
                Ok(Command::OpenTcp(listener, sockets)) => self.open_tcp(listener, sockets),
                Ok(Command::OpenUdp(listener, sockets)) => self.open_udp(listener, sockets),
                Ok(Command::Close(id, transport)) => self.close(&id, transport),
                Ok(Command::Refresh(Some(id))) => {
                    if let Some(port) = self.by_id.get(&id).copied() {
                        self.refresh(port);
                    }
                }
                Ok(Command::Refresh(None)) => self.ports.keys().into_iter().for_each(|port| self.refresh(port)),
                Ok(Command::CloseListeners) => {
                    self.accepting = false;
                    self.ports.keys().into_iter().for_each(|port| self.stop_accepting(port));
                }
                Ok(Command::Barrier(done)) => done.send(()).expect("the reconciler waits for it"),
                Ok(Command::Export(sessions)) => {
                    let exported = self.export_sessions();
                    // Who asked may have given up.
                    let _ = sessions.try_send(exported);
                }
                Ok(Command::Stop) | Err(TryRecvError::Disconnected) => {
                    for port in self.ports.keys() {
                        self.end_connections(port, ConnectionEnd::Stopped);
                        self.end_sessions(port, SessionEnd::Stopped);
                    }
                    return true;
                }
                Err(TryRecvError::Empty) => return false,
            }
        }
    }

    /// This worker's part of a listener, made when it is new.
    pub(super) fn port(&mut self, listener: &Arc<Listener>) -> Key {
        *self.by_id.entry(listener.id.clone()).or_insert_with(|| {
            self.ports.insert(Port {
                listener: Arc::clone(listener),
                tcp: None,
                udp: None,
                connections: HashSet::new(),
            })
        })
    }

    fn close(&mut self, id: &ServiceInstanceId, transport: Transport) {
        let Some(port) = self.by_id.get(id).copied() else { return };
        match transport {
            Transport::Tcp => {
                self.stop_accepting(port);
                self.end_connections(port, ConnectionEnd::Removed);
            }
            Transport::Udp => self.close_udp(port),
        }
        let left = self.ports.get(port).expect("it was found by its id");
        if left.tcp.is_none() && left.udp.is_none() && left.connections.is_empty() {
            self.ports.remove(port);
            self.by_id.remove(id);
        }
    }

    /// Settings have changed: deadlines of what is open follow them.
    fn refresh(&mut self, port: Key) {
        self.refresh_connections(port);
        self.refresh_sessions(port);
    }

    /// The listener's backends have changed: so does what their flows must do.
    fn follow_backends(&mut self, port: Key) {
        self.connections_follow(port);
        self.sessions_follow(port);
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
