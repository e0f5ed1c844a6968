//! TCP: the sockets of connections, doing what their relays say.

use std::{
    collections::{HashMap, VecDeque},
    net::SocketAddr,
    os::fd::{AsFd as _, BorrowedFd, OwnedFd},
    sync::Arc,
    time::{Duration, Instant},
};

use rustix::{
    event::epoll::EventFlags,
    io::{Errno, retry_on_intr},
    net::{self, RecvFlags, SendFlags, Shutdown, sockopt},
};

use super::{
    super::{
        admission::{Barred, Permit},
        engine::{Closing, ClosingRecord, FlowEnd, canonical},
        listener::{Listener, OnBackend, speaks_for_others},
        proxy_protocol::{self, Ends, Header, Parsed},
        relay::{Action, Input, Readiness, Relay, Side, Source},
        slab::{Key, Slab},
        sockets,
    },
    handover::Handed,
    pipes::{Pipe, Pipes},
    tools::{Token, Tools},
};
use crate::{
    backends::Phase,
    model::{ServiceInstanceId, Transport, desired::ForwarderLimits, parameters::ProxyProtocol},
    telemetry::metrics::{ConnectionEnd, Direction, PortTally, Refusal},
};

/// Connections that one listener gets into a worker per turn, so that others get theirs too.
const ACCEPTS_PER_TURN: usize = 64;
/// Actions of one connection per turn, then others have theirs.
const ACTIONS_PER_TURN: usize = 16;
/// Bytes that one connection reads per turn.
const BYTES_PER_TURN: usize = 256 * 1024;
/// Bytes that bulk connections read together before the kernel is asked whether others have news.
const BYTES_PER_SLICE: usize = 512 * 1024;
/// What a turn counts for at least, whatever it read: its system calls take time too.
const BYTES_OF_A_TURN: usize = 16 * 1024;
/// How long a listener is left alone when no descriptor is to be had. Its connections wait in the kernel.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// How long a balancer may take to send its PROXY header.
const HEADER_TIMEOUT: Duration = Duration::from_secs(5);

/// What one worker has of a TCP listener.
struct TcpPort {
    listener: Arc<Listener>,
    /// None while listeners are closed.
    sockets: Option<Arc<[OwnedFd]>>,
    /// When accepting goes on, after it had to pause.
    paused_until: Option<Instant>,
    /// In no order; each knows its [`Connection::place`].
    connections: Vec<Key>,
    /// How many are accepted before the next event. More are asked for than waited the last time only one at a time,
    /// since the kernel says again that some wait, and asking in vain costs a call.
    accepts: usize,
}

impl TcpPort {
    fn unwatch(&self, tools: &Tools) {
        self.sockets.iter().flat_map(|sockets| sockets.iter()).for_each(|socket| tools.unregister(socket));
    }
}

/// Bytes carried so far.
#[derive(Debug, Clone, Copy, Default)]
struct Carried {
    to_backend: u64,
    to_client: u64,
}

/// One accepted connection.
struct Connection {
    relay: Relay,
    port: Key,
    /// Where its listener's list has it.
    place: u32,
    listener: Arc<Listener>,
    /// What this worker counts of the port.
    tally: Arc<PortTally>,
    client: OwnedFd,
    /// The client, or who a believed balancer says it is, and what it connected to if the balancer says that.
    client_address: SocketAddr,
    destination: Option<SocketAddr>,
    backend: Option<(OwnedFd, OnBackend)>,
    to_backend: Held,
    to_client: Held,
    ticket: u64,
    opened_at: Instant,
    carried: Carried,
    alarm: Option<Instant>,
    queued: bool,
    /// Whether the backend's socket sends small writes at once, and whether it is kept alive: both are set late, since
    /// most connections end before it matters.
    prompt: bool,
    kept_alive: bool,
    /// The backend's socket is connected, and its peer may not know.
    to_acknowledge: bool,
    _permit: Permit,
}

/// Bytes that a socket had no room for. No memory and no pipe while there are none.
type Held = Option<Box<Remainder>>;

#[derive(Debug)]
enum Remainder {
    /// What follows the first `sent`.
    Bytes { bytes: Vec<u8>, sent: usize },
    /// So many in a pipe.
    Piped { pipe: Pipe, left: usize },
}

impl Remainder {
    fn bytes(bytes: Vec<u8>) -> Held {
        (!bytes.is_empty()).then(|| Box::new(Self::Bytes { bytes, sent: 0 }))
    }

    fn left(&self) -> usize {
        match self {
            Self::Bytes { bytes, sent } => bytes.len() - sent,
            Self::Piped { left, .. } => *left,
        }
    }

    /// Sends what the socket has room for. Returns how much that was.
    fn send(&mut self, socket: BorrowedFd<'_>) -> rustix::io::Result<usize> {
        match self {
            Self::Bytes { bytes, sent } => {
                let now_sent = send(socket, &bytes[*sent..])?;
                *sent += now_sent;
                Ok(now_sent)
            }
            Self::Piped { pipe, left } => {
                let sent = pipe.drain(socket, *left)?;
                *left -= sent;
                Ok(sent)
            }
        }
    }

    fn let_go(self, pipes: &mut Pipes) {
        if let Self::Piped { pipe, left } = self {
            pipes.let_go(pipe, left);
        }
    }
}

enum Turn {
    /// Nothing to do until there is news.
    Waiting,
    /// More to do, in the next turn.
    Unfinished,
    Ended(ConnectionEnd),
}

/// The TCP side of a worker.
#[derive(Default)]
pub(super) struct Tcp {
    ports: Slab<TcpPort>,
    by_id: HashMap<ServiceInstanceId, Key>,
    connections: Slab<Box<Connection>>,
    /// Bulk connections with news, and those that had more to do than fits into a turn. Each is in it at most once.
    unfinished: VecDeque<Key>,
}

impl Tcp {
    pub(super) fn open(&mut self, listener: Arc<Listener>, sockets: Arc<[OwnedFd]>, tools: &mut Tools) {
        let port = *self.by_id.entry(listener.id.clone()).or_insert_with(|| {
            listener.opened();
            let port = TcpPort { listener, sockets: None, paused_until: None, connections: Vec::new(), accepts: 1 };
            self.ports.insert(port)
        });
        let entry = self.ports.get_mut(port).expect("just made");
        debug_assert!(entry.sockets.is_none(), "a listener is opened once");
        entry.sockets = Some(sockets);
        self.start_accepting(port, tools);
    }

    /// Lets go of a listener and ends its connections.
    pub(super) fn close(&mut self, id: &ServiceInstanceId, why: Closing, tools: &mut Tools) {
        let Some(port) = self.by_id.remove(id) else { return };
        self.stop_accepting(port, tools);
        let end = match why {
            Closing::Removed => ConnectionEnd::Removed,
            Closing::Suspended => ConnectionEnd::Suspended,
        };
        self.stop_connections(port, end, tools);
        if let Some(entry) = self.ports.remove(port) {
            entry.listener.closed();
        }
    }

    /// Lets go of all listening sockets; connections go on.
    pub(super) fn close_listeners(&mut self, tools: &mut Tools) {
        self.ports.keys().into_iter().for_each(|port| self.stop_accepting(port, tools));
    }

    /// Accepts nothing for now; connections go on.
    pub(super) fn hold(&mut self, tools: &mut Tools) {
        for key in self.ports.keys() {
            let Some(entry) = self.ports.get_mut(key) else { continue };
            entry.unwatch(tools);
            tools.timers.set(&mut entry.paused_until, None, Token::Accept(key, 0));
        }
    }

    /// Accepts again, what has come meanwhile too.
    pub(super) fn go_on(&mut self, tools: &mut Tools) {
        self.ports.keys().into_iter().for_each(|port| self.start_accepting(port, tools));
    }

    /// Ends all connections.
    pub(super) fn end_all(&mut self, end: ConnectionEnd, tools: &mut Tools) {
        self.ports.keys().into_iter().for_each(|port| self.stop_connections(port, end, tools));
    }

    /// Settings have changed, of one listener or of all: deadlines of open connections follow them, and those of clients that
    /// are blocked by now end.
    pub(super) fn refresh(&mut self, id: Option<&ServiceInstanceId>, tools: &mut Tools) {
        let ports = match id {
            Some(id) => self.by_id.get(id).copied().into_iter().collect(),
            None => self.ports.keys(),
        };
        for port in ports {
            let Some(entry) = self.ports.get(port) else { continue };
            let limits = tools.shared.limits.load_full();
            let idle_timeout = entry.listener.idle_timeout(Transport::Tcp, &limits);
            for key in self.connections_of(port) {
                let blocked = self.connections.get(key).is_some_and(|connection| connection.is_blocked(&limits));
                let input =
                    if blocked { Input::Stop(ConnectionEnd::Blocked) } else { Input::IdleTimeout(idle_timeout) };
                self.drive(key, Some(input), tools);
            }
        }
    }

    /// Takes what has become of a listener's backends over to their connections.
    pub(super) fn follow_backends(&mut self, id: &ServiceInstanceId, tools: &mut Tools) {
        let Some(port) = self.by_id.get(id).copied() else { return };
        for key in self.connections_of(port) {
            let input = self.connections.get(key).and_then(|connection| connection.follow());
            if input.is_some() {
                self.drive(key, input, tools);
            }
        }
    }

    fn stop_connections(&mut self, port: Key, end: ConnectionEnd, tools: &mut Tools) {
        for key in self.connections_of(port) {
            self.drive(key, Some(Input::Stop(end)), tools);
        }
    }

    fn connections_of(&self, port: Key) -> Vec<Key> {
        self.ports.get(port).map(|port| port.connections.clone()).unwrap_or_default()
    }

    fn start_accepting(&mut self, port: Key, tools: &mut Tools) {
        if tools.held {
            return;
        }
        let Some(sockets) = self.ports.get(port).and_then(|port| port.sockets.as_ref()) else { return };
        for (address, socket) in (0..).zip(sockets.iter()) {
            // Exclusive: a new connection wakes one worker, not all of them.
            let token = Token::Accept(port, address);
            if let Err(error) = tools.register(socket, token, EventFlags::IN | EventFlags::EXCLUSIVE) {
                tracing::error!(%error, "a listener cannot be watched: trying again");
                return self.pause_accepting(port, tools);
            }
        }
    }

    fn pause_accepting(&mut self, port: Key, tools: &mut Tools) {
        let Some(entry) = self.ports.get_mut(port) else { return };
        entry.unwatch(tools);
        tools.timers.set(&mut entry.paused_until, Some(tools.now + ACCEPT_PAUSE), Token::Accept(port, 0));
    }

    /// A pause is over.
    pub(super) fn accept_again(&mut self, port: Key, tools: &mut Tools) {
        if let Some(entry) = self.ports.get_mut(port) {
            entry.paused_until = None;
            self.start_accepting(port, tools);
        }
    }

    fn stop_accepting(&mut self, port: Key, tools: &mut Tools) {
        let Some(entry) = self.ports.get_mut(port) else { return };
        entry.unwatch(tools);
        entry.sockets = None;
        tools.timers.set(&mut entry.paused_until, None, Token::Accept(port, 0));
    }

    /// Connections wait at a listener.
    pub(super) fn accept(&mut self, port: Key, address: u8, tools: &mut Tools) {
        let Some(entry) = self.ports.get_mut(port) else { return };
        let accepts = entry.accepts;
        entry.accepts = (accepts + 1).min(ACCEPTS_PER_TURN);
        for accepted in 0..accepts {
            let Some(entry) = self.ports.get_mut(port) else { return };
            let Some(sockets) = &entry.sockets else { return };
            if entry.paused_until.is_some() {
                return;
            }
            match sockets::accept(sockets[usize::from(address)].as_fd()) {
                Ok((client, address)) => {
                    let handed = Handed { listener: Arc::clone(&entry.listener), client, address };
                    if let Err(own) = tools.desks.hand_over(handed) {
                        self.take_in(port, own, tools);
                    }
                }
                Err(Errno::AGAIN) => {
                    entry.accepts = accepted.max(1);
                    return;
                }
                Err(error) if is_of_the_connection(error) => {}
                Err(_) => {
                    tools.tally.connections_refused.of(Refusal::Exhausted).one();
                    tools.tally_of(&entry.listener).connections_refused.one();
                    return self.pause_accepting(port, tools);
                }
            }
        }
    }

    /// Another worker has accepted a connection for this one.
    pub(super) fn adopt(&mut self, handed: Handed, tools: &mut Tools) {
        match self.by_id.get(&handed.listener.id) {
            Some(port) => self.take_in(*port, handed, tools),
            // It has been removed in the meantime, and with it go its connections.
            None => sockets::reset(handed.client),
        }
    }

    fn take_in(&mut self, port: Key, handed: Handed, tools: &mut Tools) {
        let tally = Arc::clone(tools.tally_of(&handed.listener));
        if let Err((client, refusal)) = self.admit(port, handed, &tally, tools) {
            tools.tally.connections_refused.of(refusal).one();
            tally.connections_refused.one();
            sockets::reset(client);
        }
    }

    fn admit(
        &mut self,
        port: Key,
        handed: Handed,
        tally: &Arc<PortTally>,
        tools: &mut Tools,
    ) -> Result<(), (OwnedFd, Refusal)> {
        let Handed { listener, client, address: client_address } = handed;
        let limits = tools.shared.limits.load();
        let spec = listener.spec();
        let header_by = speaks_for_others(&limits, client_address).then(|| tools.now + HEADER_TIMEOUT);
        if header_by.is_none()
            && let Some(barred) = Barred::why(client_address.ip(), &spec, &limits)
        {
            return Err((client, barred.into()));
        }
        let permit = match tools.shared.admission.admit(&listener.usage, Transport::Tcp, &spec, &limits) {
            Ok(permit) => permit,
            Err(refusal) => return Err((client, refusal)),
        };
        drop(spec);
        let idle_timeout = listener.idle_timeout(Transport::Tcp, &limits);
        drop(limits);
        let ticket = listener.usage.ticket(Transport::Tcp);
        let connection = Connection {
            relay: Relay::new(header_by, idle_timeout, tools.now),
            port,
            place: 0,
            listener,
            tally: Arc::clone(tally),
            client,
            client_address,
            destination: None,
            backend: None,
            to_backend: None,
            to_client: None,
            ticket,
            opened_at: tools.now,
            carried: Carried::default(),
            alarm: None,
            queued: false,
            prompt: false,
            kept_alive: false,
            to_acknowledge: false,
            _permit: permit,
        };
        let key = self.connections.insert(Box::new(connection));
        let connection = self.connections.get_mut(key).expect("just put in");
        if tools.register(&connection.client, Token::Client(key), WATCHED).is_err() {
            let connection = self.connections.remove(key).expect("just put in");
            return Err((connection.client, Refusal::Exhausted));
        }
        let others = &mut self.ports.get_mut(port).expect("its listener accepted").connections;
        connection.place = u32::try_from(others.len()).expect("descriptors run out first");
        others.push(key);
        tools.desks.show(self.connections.len());
        tools.tally.connections_accepted.one();
        tally.connections_accepted.one();
        self.drive(key, None, tools);
        Ok(())
    }

    /// There is news of a connection's socket. Returns whether it is bulk and so waits for [`Tcp::resume`].
    pub(super) fn ready(&mut self, key: Key, side: Side, flags: EventFlags, tools: &mut Tools) -> bool {
        let readiness = Readiness {
            readable: flags.contains(EventFlags::IN),
            writable: flags.contains(EventFlags::OUT),
            hangup: flags.intersects(EventFlags::RDHUP | EventFlags::HUP),
            closed: flags.contains(EventFlags::HUP),
            urgent: flags.contains(EventFlags::PRI),
            error: flags.contains(EventFlags::ERR),
        };
        let input = Input::Ready(side, readiness);
        let Some(connection) = self.connections.get_mut(key) else { return false };
        let bulk = connection.relay.is_bulk();
        if bulk {
            connection.relay.handle(input, tools.now);
            self.queue(key);
        } else {
            self.drive(key, Some(input), tools);
        }
        bulk
    }

    fn queue(&mut self, key: Key) {
        let Some(connection) = self.connections.get_mut(key) else { return };
        if !std::mem::replace(&mut connection.queued, true) {
            self.unfinished.push_back(key);
        }
    }

    /// A connection's time may be up.
    pub(super) fn due(&mut self, key: Key, tools: &mut Tools) {
        if let Some(connection) = self.connections.get_mut(key) {
            connection.alarm = None;
            connection.keep_alive(tools.now);
            self.drive(key, Some(Input::Tick), tools);
        }
    }

    /// Whether [`Tcp::resume`] has something to do.
    pub(super) fn has_more(&self) -> bool {
        !self.unfinished.is_empty()
    }

    /// Goes on with connections that are unfinished: a slice, since others may have had news in the meantime. Whoever
    /// is not done then, or not reached, waits for the next one. Returns whether there were any.
    pub(super) fn resume(&mut self, tools: &mut Tools) -> bool {
        if !self.has_more() {
            return false;
        }
        let mut left = BYTES_PER_SLICE;
        for _ in 0..self.unfinished.len() {
            let key = self.unfinished.pop_front().expect("counted");
            let Some(connection) = self.connections.get_mut(key) else { continue };
            connection.queued = false;
            let read = self.drive(key, None, tools);
            left = left.saturating_sub(read.max(BYTES_OF_A_TURN));
            if left == 0 {
                break;
            }
        }
        true
    }

    /// Lets a connection do what there is to do, within a turn's bounds. Returns how many bytes it has read.
    fn drive(&mut self, key: Key, input: Option<Input>, tools: &mut Tools) -> usize {
        let Some(connection) = self.connections.get_mut(key) else { return 0 };
        if let Some(input) = input {
            connection.relay.handle(input, tools.now);
        }
        let (turn, read) = connection.turn(key, tools);
        // A deadline that has moved away is found out when the timer fires; one that has come closer is not.
        let deadline = connection.deadline();
        if connection.alarm.is_none_or(|alarm| deadline < alarm) && !matches!(turn, Turn::Ended(_)) {
            tools.timers.set(&mut connection.alarm, Some(deadline), Token::Client(key));
        }
        match turn {
            Turn::Waiting => {}
            Turn::Unfinished => self.queue(key),
            Turn::Ended(end) => self.end(key, end, tools),
        }
        read
    }

    fn end(&mut self, key: Key, end: ConnectionEnd, tools: &mut Tools) {
        let mut connection = self.connections.remove(key).expect("it has just been driven");
        tools.desks.show(self.connections.len());
        tools.timers.set(&mut connection.alarm, None, Token::Client(key));
        if let Some(port) = self.ports.get_mut(connection.port) {
            port.connections.swap_remove(connection.place as usize);
            if let Some(moved) = port.connections.get(connection.place as usize) {
                self.connections.get_mut(*moved).expect("listed while it lives").place = connection.place;
            }
        }
        // A close says that this was all, which is not so while some is held here.
        let quietly = match end {
            ConnectionEnd::Finished => true,
            ConnectionEnd::Idle => connection.to_backend.is_none() && connection.to_client.is_none(),
            _ => false,
        };
        for remainder in [connection.to_backend.take(), connection.to_client.take()].into_iter().flatten() {
            remainder.let_go(&mut tools.pipes);
        }
        tools.tally.connections_closed.of(end).one();
        connection.tally.connections_closed.one();
        (tools.shared.closed)(&connection.closing_record(end, tools.now));
        let Connection { client, backend, port, .. } = *connection;
        if end == ConnectionEnd::Exhausted {
            // The next one would fare the same: let it wait in the kernel.
            self.pause_accepting(port, tools);
        }
        if !quietly {
            // Whoever is cut off learns that this was not the end of the data.
            sockets::reset(client);
            if let Some((socket, _)) = backend {
                sockets::reset(socket);
            }
        }
    }
}

/// Whether `accept` tells of a connection that ended while it waited, or of its network: the next one may be fine.
const fn is_of_the_connection(error: Errno) -> bool {
    matches!(
        error,
        Errno::CONNABORTED
            | Errno::HOSTDOWN
            | Errno::HOSTUNREACH
            | Errno::INTR
            | Errno::NETDOWN
            | Errno::NETUNREACH
            | Errno::NONET
            | Errno::NOPROTOOPT
            | Errno::OPNOTSUPP
            | Errno::PERM
            | Errno::PROTO
    )
}

/// Everything, once: no call is needed to change what is watched.
const WATCHED: EventFlags =
    EventFlags::IN.union(EventFlags::OUT).union(EventFlags::PRI).union(EventFlags::RDHUP).union(EventFlags::ET);

impl Connection {
    /// Returns how many bytes were read, too.
    fn turn(&mut self, key: Key, tools: &mut Tools) -> (Turn, usize) {
        let mut all_read = 0;
        for _ in 0..ACTIONS_PER_TURN {
            let input = match self.relay.next() {
                None => {
                    self.acknowledge();
                    return (Turn::Waiting, all_read);
                }
                Some(Action::End(end)) => return (Turn::Ended(end), all_read),
                Some(Action::ReadHeader) => self.read_header(tools),
                Some(Action::Connect) => self.connect(key, tools),
                Some(Action::FinishConnect { suspect }) => self.finish_connect(suspect),
                Some(Action::Copy(from)) => self.copy(from, tools),
                Some(Action::Splice(from)) => self.splice(from, tools),
                Some(Action::Flush(to)) => self.flush(to, tools),
                Some(Action::Tell(side)) => {
                    // A peer that is gone has nothing to be told.
                    let _ = net::shutdown(self.socket(side), Shutdown::Write);
                    Input::Told(side)
                }
            };
            self.relay.handle(input, tools.now);
            match input {
                Input::Copied { read, .. } => {
                    all_read += read;
                    // Bulk is read once a turn: until the next one more has come, and fewer reads are in vain.
                    if all_read >= BYTES_PER_TURN || read > 0 && self.relay.is_bulk() {
                        break;
                    }
                }
                Input::Connected { .. } => {
                    if let Some(input) = self.follow() {
                        self.relay.handle(input, tools.now);
                    }
                    self.to_acknowledge = true;
                }
                _ => {}
            }
        }
        (Turn::Unfinished, all_read)
    }

    /// Lets the backend know that it is connected, unless the first bytes have.
    fn acknowledge(&mut self) {
        if std::mem::take(&mut self.to_acknowledge) && self.carried.to_backend == 0 {
            sockets::acknowledge(self.socket(Side::Backend));
        }
    }

    /// When something has to be looked at, news or not.
    fn deadline(&self) -> Instant {
        let deadline = self.relay.deadline();
        if self.kept_alive { deadline } else { deadline.min(self.opened_at + sockets::KEEPALIVE_AFTER) }
    }

    /// Has the kernel ask whether the backend is still there, once the connection is so old that it could.
    fn keep_alive(&mut self, now: Instant) {
        if !self.kept_alive && now >= self.opened_at + sockets::KEEPALIVE_AFTER {
            self.kept_alive = true;
            if let Some((socket, _)) = &self.backend {
                // One that is gone will say so by itself.
                let _ = sockets::keep_alive(socket.as_fd());
            }
        }
    }

    fn socket(&self, side: Side) -> BorrowedFd<'_> {
        match side {
            Side::Client => self.client.as_fd(),
            Side::Backend => self.backend.as_ref().expect("the relay knows whether it is connected").0.as_fd(),
        }
    }

    /// What the state of its backend means for the connection.
    fn follow(&self) -> Option<Input> {
        let (_, backend) = self.backend.as_ref()?;
        Some(match backend.phase() {
            Phase::Revoked => Input::Stop(ConnectionEnd::Revoked),
            Phase::Serving => Input::DrainBy(None),
            Phase::Draining | Phase::Left => Input::DrainBy(backend.drain_deadline()),
        })
    }

    /// Whether its client is. Of one whom a balancer has yet to name that is not known.
    fn is_blocked(&self, limits: &ForwarderLimits) -> bool {
        !self.relay.awaits_header() && limits.blocked.contains(self.client_address.ip())
    }

    /// Looks at what has arrived, and takes it off the socket only when the header is whole.
    fn read_header(&mut self, tools: &mut Tools) -> Input {
        let peeked = &mut tools.scratch[..proxy_protocol::MAX_HEADER_BYTES];
        let length = match retry_on_intr(|| net::recv(&self.client, &mut *peeked, RecvFlags::PEEK)) {
            Ok((length, _)) => length,
            Err(Errno::AGAIN) => return Input::HeaderIncomplete,
            Err(_) => return Input::HeaderRefused(ConnectionEnd::ClientGone),
        };
        let (header, length) = match proxy_protocol::parse(&peeked[..length], Transport::Tcp) {
            Parsed::Whole(header, length) => (header, length),
            Parsed::Incomplete if length > 0 => return Input::HeaderIncomplete,
            Parsed::Incomplete | Parsed::Bad => return Input::HeaderRefused(ConnectionEnd::BadHeader),
        };
        let taken = net::recv(&self.client, &mut peeked[..length], RecvFlags::empty());
        if taken.map(|(taken, _)| taken) != Ok(length) {
            return Input::HeaderRefused(ConnectionEnd::ClientGone);
        }
        if let Header::Proxied(Ends { source, destination }) = header {
            self.client_address = source;
            self.destination = Some(destination);
        }
        match Barred::why(self.client_address.ip(), &self.listener.spec(), &tools.shared.limits.load()) {
            None => Input::HeaderRead,
            Some(barred) => Input::HeaderRefused(barred.into()),
        }
    }

    fn connect(&mut self, key: Key, tools: &mut Tools) -> Input {
        if let Some((_, failed)) = self.backend.take() {
            failed.failed(tools.now);
            tools.tally.connects_failed.one();
        }
        let flow = (self.client_address.ip(), self.ticket);
        let chosen = tools.chooser.choose(&self.listener, Transport::Tcp, flow, self.relay.tried(), tools.now);
        let Some(backend) = chosen.map(OnBackend::new) else { return Input::NoBackend };
        let address = backend.endpoint.address;
        let connecting = tools.shared.connector.load().connect(address, Transport::Tcp).and_then(|socket| {
            tools.register(&socket, Token::Backend(key), WATCHED)?;
            Ok(socket)
        });
        match connecting {
            Ok(socket) => {
                self.backend = Some((socket, backend));
                Input::Connecting(address, tools.now + tools.shared.limits.load().connect_timeout)
            }
            Err(error) if sockets::is_exhaustion(&error) => Input::Stop(ConnectionEnd::Exhausted),
            Err(error) => {
                tools.tally.connects_failed.one();
                if !sockets::is_own_fault(&error) {
                    backend.failed(tools.now);
                }
                Input::ConnectFailed(address)
            }
        }
    }

    fn finish_connect(&mut self, suspect: bool) -> Input {
        let (socket, backend) = self.backend.as_ref().expect("the relay awaits its connect");
        if suspect && sockopt::socket_error(socket) != Ok(Ok(())) {
            return Input::ConnectFailed(backend.endpoint.address);
        }
        backend.worked();
        let Some(header) = self.header() else { return Input::Stop(ConnectionEnd::ClientGone) };
        let held = header.len();
        self.to_backend = Remainder::bytes(header);
        Input::Connected { held }
    }

    /// What the backend is told of its client, perhaps nothing; none when the client's socket has no address any more.
    fn header(&self) -> Option<Vec<u8>> {
        let build = match self.listener.spec().settings.proxy_protocol.unwrap_or_default() {
            ProxyProtocol::None => return Some(Vec::new()),
            ProxyProtocol::V1 => Ends::v1,
            ProxyProtocol::V2 => |ends: Ends| ends.v2(Transport::Tcp),
        };
        let destination = self.destination.or_else(|| sockets::local_address(self.client.as_fd()))?;
        Some(build(Ends { source: self.client_address, destination }))
    }

    fn copy(&mut self, from: Side, tools: &mut Tools) -> Input {
        let to = from.other();
        let socket = self.socket(from);
        let read = match retry_on_intr(|| net::recv(socket, &mut *tools.scratch, RecvFlags::empty())) {
            Ok((0, _)) => return Input::Copied { from, read: 0, held: 0, source: Source::Ended },
            Ok((read, _)) => read,
            Err(Errno::AGAIN) => return Input::Copied { from, read: 0, held: 0, source: Source::Drained },
            Err(_) => return Input::ReadFailed(from),
        };
        let source = if read == tools.scratch.len() { Source::More } else { Source::Drained };
        self.send_promptly(to);
        let sent = match send(self.socket(to), &tools.scratch[..read]) {
            Ok(sent) => sent,
            Err(error) => return write_failed(to, error),
        };
        if sent < read {
            *self.held(to) = Remainder::bytes(tools.scratch[sent..read].to_vec());
        }
        self.count(to, sent, tools);
        Input::Copied { from, read, held: read - sent, source }
    }

    /// Copies when no pipe is to be had.
    fn splice(&mut self, from: Side, tools: &mut Tools) -> Input {
        let Some(pipe) = tools.pipes.take(tools.now) else { return self.copy(from, tools) };
        let input = match pipe.fill(self.socket(from)) {
            Ok(0) => None,
            Ok(read) => return self.pass_on(pipe, read, from.other(), tools),
            Err(Errno::AGAIN) => Some(Input::Copied { from, read: 0, held: 0, source: Source::Drained }),
            Err(_) => Some(Input::ReadFailed(from)),
        };
        tools.pipes.let_go(pipe, 0);
        // A splice does not get past an urgent byte, and says there that the end has come if it has: a read knows.
        input.unwrap_or_else(|| self.copy(from, tools))
    }

    fn pass_on(&mut self, pipe: Pipe, read: usize, to: Side, tools: &mut Tools) -> Input {
        self.send_promptly(to);
        let sent = match pipe.drain(self.socket(to), read) {
            Ok(sent) => sent,
            Err(error) => {
                tools.pipes.let_go(pipe, read);
                return write_failed(to, error);
            }
        };
        self.count(to, sent, tools);
        if sent == read {
            tools.pipes.let_go(pipe, 0);
        } else {
            *self.held(to) = Some(Box::new(Remainder::Piped { pipe, left: read - sent }));
        }
        // A pipe has so many places, and bytes may take one each: that it is not full does not say that this was all.
        Input::Copied { from: to.other(), read, held: read - sent, source: Source::More }
    }

    fn flush(&mut self, to: Side, tools: &mut Tools) -> Input {
        self.send_promptly(to);
        let mut remainder = self.held(to).take().expect("the relay knows what is held");
        let result = remainder.send(self.socket(to));
        let held = remainder.left();
        match result {
            Ok(sent) => {
                self.count(to, sent, tools);
                if held > 0 {
                    *self.held(to) = Some(remainder);
                } else {
                    remainder.let_go(&mut tools.pipes);
                }
                Input::Flushed { to, held }
            }
            Err(error) => {
                remainder.let_go(&mut tools.pipes);
                write_failed(to, error)
            }
        }
    }

    /// A first write is never held back, later ones are until the one before is acknowledged: not from then on.
    fn send_promptly(&mut self, to: Side) {
        if to == Side::Backend && !self.prompt && self.carried.to_backend > 0 {
            self.prompt = true;
            // A socket that is gone has nothing to send.
            let _ = sockopt::set_tcp_nodelay(self.socket(to), true);
        }
    }

    fn count(&mut self, to: Side, bytes: usize, tools: &Tools) {
        let (direction, carried) = match to {
            Side::Client => (Direction::ToClient, &mut self.carried.to_client),
            Side::Backend => (Direction::ToBackend, &mut self.carried.to_backend),
        };
        *carried += bytes as u64;
        tools.tally.tcp_bytes.of(direction).more(bytes as u64);
        self.tally.carried_over_tcp(direction, bytes);
    }

    fn closing_record(&self, end: ConnectionEnd, now: Instant) -> ClosingRecord<'_> {
        ClosingRecord {
            service_instance_id: &self.listener.id,
            pool: &self.listener.pool,
            port: self.listener.port,
            client: canonical(self.client_address),
            backend: self.backend.as_ref().map(|(_, backend)| backend.endpoint.address),
            lasted: now.saturating_duration_since(self.opened_at),
            to_backend: self.carried.to_backend,
            to_client: self.carried.to_client,
            datagrams: None,
            end: FlowEnd::Connection(end),
            at: now,
        }
    }

    const fn held(&mut self, to: Side) -> &mut Held {
        match to {
            Side::Client => &mut self.to_client,
            Side::Backend => &mut self.to_backend,
        }
    }
}

/// A broken pipe is what a write to a peer brings that has said its last and gone; any other error cuts it off.
fn write_failed(to: Side, error: Errno) -> Input {
    Input::WriteFailed { to, cut: error != Errno::PIPE }
}

/// Writes what the socket has room for, perhaps nothing.
fn send(socket: BorrowedFd<'_>, bytes: &[u8]) -> rustix::io::Result<usize> {
    match retry_on_intr(|| net::send(socket, bytes, SendFlags::NOSIGNAL)) {
        Err(Errno::AGAIN) => Ok(0),
        result => result,
    }
}
