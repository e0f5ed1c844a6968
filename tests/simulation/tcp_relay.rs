//! The TCP relay between two sockets of a kernel that is simulated: buffers that fill, edges that come once, pipes that
//! run out, urgent bytes, peers that stop, break off or hang.

use std::{
    net::SocketAddr,
    ops::Range,
    time::{Duration, Instant},
};

use fastrand::Rng;
use harbor::{
    forwarder::relay::{Action, Input, Readiness, Relay, Side, Source},
    telemetry::metrics::ConnectionEnd,
};

use crate::seeds::{STEPS, run, weighted};

/// What one read brings at most.
const SCRATCH: u64 = 16;
/// What a pipe holds.
const PIPE: u64 = 4 * SCRATCH;
/// What a socket takes without its peer reading.
const BUFFER: u64 = 200;
/// Actions of one turn at most.
const ACTIONS_PER_TURN: u32 = 16;
/// More turns than it may take to come to rest.
const TOO_MANY_TURNS: u32 = 1_000;
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
const HEADER: u64 = 7;

/// One socket of the forwarder and the peer at its other end. Bytes are numbers in the order in which they were sent.
#[derive(Debug, Default)]
struct Socket {
    /// There is news that no poll has told of yet. What it is, the poll finds out.
    edge: bool,
    connected: bool,
    /// Bytes that the peer has sent, and of them those that were read here.
    sent_by_peer: u64,
    read: u64,
    /// Which of them is urgent and has not been read: the kernel knows of one, the last.
    urgent: Option<u64>,
    peer_finished: bool,
    broken: bool,
    /// A read or write has been told that it broke: the kernel says so once.
    break_was_told: bool,
    /// Bytes that were written here, and of them those that the peer has read.
    written: u64,
    read_by_peer: u64,
    told_peer: bool,
    /// A write has found it full, so that room is news.
    was_full: bool,
}

impl Socket {
    fn connected() -> Self {
        Self { connected: true, edge: true, ..Self::default() }
    }

    fn room(&self) -> u64 {
        BUFFER - (self.written - self.read_by_peer)
    }

    /// As `epoll_wait`: what is so now, if anything has happened since the last time.
    fn poll(&mut self) -> Option<Readiness> {
        std::mem::take(&mut self.edge).then(|| Readiness {
            readable: self.read < self.sent_by_peer || self.peer_finished || self.broken,
            writable: self.connected && self.room() > 0 || self.broken,
            hangup: self.peer_finished || self.broken,
            closed: self.broken || self.peer_finished && self.told_peer,
            urgent: self.urgent.is_some(),
            error: self.broken && !self.break_was_told,
        })
    }

    fn peer_sends(&mut self, bytes: u64, urgent: bool) {
        let taken = bytes.min(BUFFER - (self.sent_by_peer - self.read));
        if taken > 0 && !self.peer_finished && !self.broken {
            self.sent_by_peer += taken;
            if urgent {
                self.urgent = Some(self.sent_by_peer - 1);
            }
            self.edge = true;
        }
    }

    fn peer_finishes(&mut self) {
        if !self.broken {
            self.peer_finished = true;
            self.edge = true;
        }
    }

    fn peer_breaks_off(&mut self) {
        self.broken = true;
        self.edge = true;
    }

    fn peer_reads(&mut self, bytes: u64) {
        self.read_by_peer += bytes.min(self.written - self.read_by_peer);
        if self.was_full && self.room() > 0 {
            self.was_full = false;
            self.edge = true;
        }
    }

    /// As `recv`: what was there before the connection broke is read first; a read begins with an urgent byte or stops
    /// before it.
    fn recv(&mut self) -> Result<Option<Range<u64>>, ()> {
        let before = self.urgent.filter(|urgent| *urgent > self.read);
        self.take(SCRATCH, before.unwrap_or(u64::MAX))
    }

    /// As `splice` into an empty pipe: it never gets past an urgent byte, where it says that the end has come if it is
    /// known, and takes less than there is when that needs more places than the pipe has.
    fn splice(&mut self, places_for: u64) -> Result<Option<Range<u64>>, ()> {
        self.take(places_for.min(PIPE), self.urgent.unwrap_or(u64::MAX))
    }

    fn take(&mut self, most: u64, until: u64) -> Result<Option<Range<u64>>, ()> {
        let from = self.read;
        self.read += most.min(self.sent_by_peer.min(until) - self.read);
        self.urgent = self.urgent.filter(|urgent| *urgent >= self.read);
        if self.read > from {
            return Ok(Some(from..self.read));
        }
        if self.peer_finished {
            return Ok(Some(from..from));
        }
        if self.broken && !std::mem::replace(&mut self.break_was_told, true) {
            return Err(());
        }
        Ok(self.broken.then_some(from..from))
    }

    /// All was read, and the peer has said its last.
    fn is_at_end(&self) -> bool {
        self.peer_finished && self.read == self.sent_by_peer
    }

    /// As `splice` out of a pipe: it writes more than once, and when the connection breaks in between nobody is told.
    fn splice_out(&mut self, bytes: u64, breaks: bool) -> Result<u64, bool> {
        if !breaks || self.broken || self.room() == 0 {
            return self.send(bytes);
        }
        let taken = self.send(bytes.div_ceil(2))?;
        if taken < bytes {
            self.peer_breaks_off();
            self.break_was_told = true;
        }
        Ok(taken)
    }

    /// The peer broke off before it had said its last.
    fn cut(&self) -> bool {
        self.broken && !self.peer_finished
    }

    /// As `send`: what does not fit is not taken. An error tells whether the peer cut it off; a pipe is broken when it
    /// had said its last, and once that has been told.
    fn send(&mut self, bytes: u64) -> Result<u64, bool> {
        assert!(!self.told_peer, "nothing is written after the end");
        if self.broken {
            return Err(!std::mem::replace(&mut self.break_was_told, true) && self.cut());
        }
        let taken = bytes.min(self.room());
        self.was_full |= taken < bytes;
        self.written += taken;
        Ok(taken)
    }
}

#[derive(Debug, Clone, Copy)]
enum Step {
    ClientSends,
    BackendSends,
    ClientSendsUrgently,
    BackendSendsUrgently,
    ClientReads,
    BackendReads,
    ClientFinishes,
    BackendFinishes,
    ClientBreaksOff,
    BackendBreaksOff,
    Connects,
    Refuses,
    Poll,
    Wait,
    Drain,
    Serve,
    ChangeIdleTimeout,
    Revoke,
    LackPipes,
    Resume,
}

const CHOICES: [(u32, Step); 20] = [
    (120, Step::ClientSends),
    (120, Step::BackendSends),
    (2, Step::ClientSendsUrgently),
    (2, Step::BackendSendsUrgently),
    (20, Step::LackPipes),
    (60, Step::ClientReads),
    (60, Step::BackendReads),
    (8, Step::ClientFinishes),
    (8, Step::BackendFinishes),
    (3, Step::ClientBreaksOff),
    (3, Step::BackendBreaksOff),
    (60, Step::Connects),
    (20, Step::Refuses),
    (300, Step::Poll),
    (60, Step::Wait),
    (3, Step::Drain),
    (3, Step::Serve),
    (2, Step::ChangeIdleTimeout),
    (1, Step::Revoke),
    (150, Step::Resume),
];

/// One connection from its beginning to its end.
struct World<'a> {
    random: &'a mut Rng,
    now: Instant,
    idle_timeout: Duration,
    drain_by: Option<Instant>,
    relay: Relay,
    client: Socket,
    backend: Socket,
    /// Backends that can be chosen; none is chosen twice.
    backends: u8,
    connecting: Option<(SocketAddr, Option<bool>)>,
    connected: bool,
    header: u64,
    /// No pipe is to be had.
    lacks_pipes: bool,
    /// Bytes that were read and not yet written.
    to_backend: Range<u64>,
    to_client: Range<u64>,
    active_at: Instant,
    /// It has more to do, in a later turn.
    queued: bool,
    end: Option<ConnectionEnd>,
}

impl<'a> World<'a> {
    fn new(random: &'a mut Rng, now: Instant) -> Self {
        let idle_timeout = Duration::from_secs(random.u64(10..100));
        let header_by = random.bool().then(|| now + Duration::from_secs(5));
        let backends = random.u8(..5);
        let header = if random.bool() { HEADER } else { 0 };
        let relay = Relay::new(header_by, idle_timeout, now);
        Self {
            random,
            now,
            idle_timeout,
            drain_by: None,
            relay,
            client: Socket::connected(),
            backend: Socket::default(),
            backends,
            connecting: None,
            connected: false,
            header,
            lacks_pipes: false,
            to_backend: 0..0,
            to_client: 0..0,
            active_at: now,
            queued: false,
            end: None,
        }
    }

    fn socket(&mut self, side: Side) -> &mut Socket {
        match side {
            Side::Client => &mut self.client,
            Side::Backend => &mut self.backend,
        }
    }

    fn held(&mut self, to: Side) -> &mut Range<u64> {
        match to {
            Side::Client => &mut self.to_client,
            Side::Backend => &mut self.to_backend,
        }
    }

    fn step(&mut self) {
        let most = weighted(self.random, &[(1, 2 * SCRATCH), (1, BUFFER)]);
        let bytes = self.random.u64(1..=most);
        match weighted(self.random, &CHOICES) {
            Step::ClientSends => self.client.peer_sends(bytes, false),
            Step::BackendSends if self.connected => self.backend.peer_sends(bytes, false),
            Step::ClientSendsUrgently => self.client.peer_sends(bytes, true),
            Step::BackendSendsUrgently if self.connected => self.backend.peer_sends(bytes, true),
            Step::LackPipes => self.lacks_pipes = !self.lacks_pipes,
            Step::ClientReads => self.client.peer_reads(bytes),
            Step::BackendReads if self.connected => self.backend.peer_reads(bytes),
            Step::ClientFinishes => self.client.peer_finishes(),
            Step::BackendFinishes if self.connected => self.backend.peer_finishes(),
            Step::ClientBreaksOff => self.client.peer_breaks_off(),
            Step::BackendBreaksOff if self.connected => self.backend.peer_breaks_off(),
            Step::Connects => self.decide_connect(true),
            Step::Refuses => self.decide_connect(false),
            Step::Poll => self.poll(),
            Step::Resume => self.resume(),
            Step::Wait => {
                let longest = weighted(self.random, &[(10, 500), (3, 10_000), (1, 100_000)]);
                self.now += Duration::from_millis(self.random.u64(..longest));
                self.tick();
            }
            Step::Drain => {
                self.drain_by = Some(self.now + Duration::from_secs(self.random.u64(..40)));
                self.input(Input::DrainBy(self.drain_by));
            }
            Step::Serve => {
                self.drain_by = None;
                self.input(Input::DrainBy(None));
            }
            Step::ChangeIdleTimeout => {
                self.idle_timeout = Duration::from_secs(self.random.u64(10..100));
                self.input(Input::IdleTimeout(self.idle_timeout));
            }
            Step::Revoke => {
                self.input(Input::Stop(ConnectionEnd::Revoked));
                assert_eq!(self.end, Some(ConnectionEnd::Revoked), "it ends at once");
            }
            Step::BackendSendsUrgently
            | Step::BackendSends
            | Step::BackendReads
            | Step::BackendFinishes
            | Step::BackendBreaksOff => {}
        }
    }

    fn decide_connect(&mut self, connects: bool) {
        if let Some((_, outcome @ None)) = &mut self.connecting {
            *outcome = Some(connects);
            self.backend = Socket { broken: !connects, ..Socket::connected() };
        }
    }

    /// Tells the relay the news of both sockets, in either order.
    fn poll(&mut self) {
        let first = if self.random.bool() { Side::Client } else { Side::Backend };
        for side in [first, first.other()] {
            if self.end.is_some() {
                break;
            }
            if let Some(news) = self.socket(side).poll() {
                self.input(Input::Ready(side, news));
            }
        }
    }

    fn tick(&mut self) {
        let due = self.relay.deadline() <= self.now;
        let (before, busy) = (self.connecting, self.queued);
        self.input(Input::Tick);
        if due && self.end.is_none() && !busy {
            assert!(before.is_some() && before != self.connecting, "only a connect outlives a deadline");
        }
        if self.connected && self.end.is_none() {
            assert!(busy || self.now < self.active_at + self.idle_timeout, "it is idle");
            assert!(self.drain_by.is_none_or(|drain_by| self.now < drain_by), "it has drained");
        }
    }

    /// Lets so much time pass that whatever can end for it does: an idle connection, or one try to connect.
    fn run_out(&mut self) {
        for _ in 0..TOO_MANY_TURNS {
            self.resume();
        }
        assert!(!self.queued, "it comes to rest");
        if self.end.is_none() {
            self.now += Duration::from_secs(1000);
            self.tick();
        }
    }

    /// Tells the relay something and does what it says for a turn. News of bulk wait for their turn.
    fn input(&mut self, input: Input) {
        let waits = matches!(input, Input::Ready(..)) && self.relay.is_bulk();
        self.notice(input);
        self.relay.handle(input, self.now);
        if waits { self.queued = true } else { self.turn() }
    }

    fn resume(&mut self) {
        if self.queued && self.end.is_none() {
            self.turn();
        }
    }

    /// Does what the relay says until it waits, or others have theirs.
    fn turn(&mut self) {
        self.queued = false;
        for _ in 0..ACTIONS_PER_TURN {
            let Some(action) = self.relay.next() else { return self.check() };
            let Some(done) = self.act(action) else { return self.check() };
            self.notice(done);
            self.relay.handle(done, self.now);
            if matches!(done, Input::Copied { read: 1.., .. }) && self.relay.is_bulk() {
                break;
            }
        }
        self.queued = true;
    }

    /// From when a side has broken off, the other one has some time again.
    fn notice(&mut self, input: Input) {
        if let Input::ReadFailed(_) | Input::WriteFailed { .. } | Input::Ready(_, Readiness { error: true, .. }) = input
        {
            self.active_at = self.now;
        }
    }

    fn act(&mut self, action: Action) -> Option<Input> {
        Some(match action {
            Action::ReadHeader => match self.client.recv() {
                Ok(None) => Input::HeaderIncomplete,
                Ok(Some(bytes)) if bytes.is_empty() => Input::HeaderRefused(ConnectionEnd::BadHeader),
                // The header's bytes are not carried: count them as sent, or the rest would be off by them.
                Ok(Some(bytes)) => {
                    self.to_backend = bytes.end..bytes.end;
                    self.active_at = self.now;
                    Input::HeaderRead
                }
                Err(()) => Input::HeaderRefused(ConnectionEnd::ClientGone),
            },
            Action::Connect => {
                assert!(!self.connected, "one backend is enough");
                self.connecting = None;
                self.backend = Socket::default();
                let tried = u8::try_from(self.relay.tried().len()).expect("few");
                if tried == self.backends {
                    return Some(Input::NoBackend);
                }
                let address = SocketAddr::from(([10, 0, 0, tried], 4100));
                assert!(!self.relay.tried().contains(&address), "each at most once");
                if self.random.u8(..8) == 0 {
                    return Some(Input::ConnectFailed(address));
                }
                self.connecting = Some((address, None));
                self.drain_by = None;
                Input::Connecting(address, self.now + CONNECT_TIMEOUT)
            }
            Action::FinishConnect { suspect } => match self.connecting {
                Some((_, Some(true))) => {
                    self.connecting = None;
                    self.connected = true;
                    self.active_at = self.now;
                    // A header comes first; it counts as bytes below those of the client.
                    Input::Connected { held: usize::try_from(self.header).expect("small") }
                }
                Some((address, Some(false))) => {
                    assert!(suspect, "a failure is found out");
                    Input::ConnectFailed(address)
                }
                other => panic!("nothing is known of the connect yet: {other:?}"),
            },
            Action::Copy(from) => self.copy(from, false),
            Action::Splice(from) => self.copy(from, !self.lacks_pipes),
            Action::Flush(to) => self.flush(to),
            Action::Tell(side) => {
                assert!(self.held(side).is_empty(), "first what is held, then the end");
                let source = self.socket(side.other());
                assert!(source.is_at_end(), "an end is passed on after all bytes");
                let socket = self.socket(side);
                assert!(!socket.told_peer, "the end is told once");
                socket.told_peer = true;
                Input::Told(side)
            }
            Action::End(end) => {
                if end == ConnectionEnd::Finished {
                    // The close tells both.
                    for socket in [&mut self.client, &mut self.backend] {
                        socket.told_peer = true;
                    }
                }
                self.end = Some(end);
                return None;
            }
        })
    }

    /// Copies or splices. Until the one is done, peers may do more.
    fn copy(&mut self, from: Side, splice: bool) -> Input {
        let to = from.other();
        assert!(
            self.held(to).is_empty() && (to == Side::Client || self.header == 0),
            "nothing is read over a remainder"
        );
        if self.random.u8(..8) == 0 {
            self.peer_goes_on(from);
        }
        let spliced = splice.then(|| {
            let places_for = self.random.u64(1..=2 * PIPE);
            self.socket(from).splice(places_for)
        });
        let through_pipe = matches!(&spliced, Some(Ok(Some(bytes))) if !bytes.is_empty());
        let taken = match spliced {
            // It may have stopped before an urgent byte: a read says whether this is the end.
            Some(Ok(Some(bytes))) if bytes.is_empty() => self.socket(from).recv(),
            Some(taken) => taken,
            None => self.socket(from).recv(),
        };
        match taken {
            Err(()) => Input::ReadFailed(from),
            Ok(None) => Input::Copied { from, read: 0, held: 0, source: Source::Drained },
            Ok(Some(bytes)) if bytes.is_empty() => Input::Copied { from, read: 0, held: 0, source: Source::Ended },
            Ok(Some(bytes)) => {
                assert_eq!(self.held(to).end, bytes.start, "bytes stay in order");
                let read = bytes.end - bytes.start;
                let breaks = through_pipe && self.random.u8(..32) == 0;
                let sent = match self.socket(to).splice_out(read, breaks) {
                    Ok(sent) => sent,
                    Err(cut) => return Input::WriteFailed { to, cut },
                };
                self.active_at = self.now;
                *self.held(to) = bytes.start + sent..bytes.end;
                let source = if read == SCRATCH || through_pipe { Source::More } else { Source::Drained };
                let size = |bytes| usize::try_from(bytes).expect("small");
                Input::Copied { from, read: size(read), held: size(read - sent), source }
            }
        }
    }

    /// Between a poll and the call that it leads to.
    fn peer_goes_on(&mut self, side: Side) {
        let bytes = self.random.u64(1..=BUFFER);
        let step = self.random.u8(..8);
        let socket = self.socket(side);
        match step {
            0 => socket.peer_finishes(),
            1 => {
                socket.peer_sends(bytes, true);
                socket.peer_finishes();
            }
            2 => socket.peer_sends(bytes, true),
            3 => socket.peer_breaks_off(),
            4 => socket.peer_reads(bytes),
            _ => socket.peer_sends(bytes, false),
        }
    }

    fn flush(&mut self, to: Side) -> Input {
        let held = self.held(to).clone();
        let header = if to == Side::Backend { self.header } else { 0 };
        let bytes = header + held.end - held.start;
        assert!(bytes > 0, "there is something to flush");
        let breaks = bytes > SCRATCH && self.random.u8(..32) == 0;
        let sent = match self.socket(to).splice_out(bytes, breaks) {
            Ok(sent) => sent,
            Err(cut) => return Input::WriteFailed { to, cut },
        };
        if sent > 0 {
            self.active_at = self.now;
        }
        if to == Side::Backend {
            self.header -= sent.min(header);
        }
        self.held(to).start += sent - sent.min(header);
        Input::Flushed { to, held: usize::try_from(bytes - sent).expect("small") }
    }

    /// Nothing is left to do that could be done: no edge was lost.
    fn check(&self) {
        if self.end.is_some() || !self.connected {
            return;
        }
        if self.client.edge || self.backend.edge {
            return;
        }
        let whole = !self.client.broken && !self.backend.broken;
        for (from, to, held) in [
            (&self.client, &self.backend, self.header + self.to_backend.end - self.to_backend.start),
            (&self.backend, &self.client, self.to_client.end - self.to_client.start),
        ] {
            assert!(held <= PIPE + HEADER, "what is held is bounded");
            if from.cut() {
                assert!(held > 0 && to.room() == 0 && !to.broken, "nothing keeps it from ending");
            }
            if whole && held > 0 {
                assert_eq!(to.room(), 0, "what is held could be written");
            }
            if whole && held == 0 {
                assert_eq!(from.sent_by_peer, from.read, "what has come could be read");
                assert_eq!(to.told_peer, from.peer_finished, "the end could be told");
            }
        }
    }

    /// What an end says is so.
    fn check_end(&self, end: ConnectionEnd) {
        for (from, to) in [(&self.client, &self.backend), (&self.backend, &self.client)] {
            // Whoever has broken off hears nothing any more.
            assert!(!from.cut() || !to.told_peer || to.broken, "what was cut off is not told to be whole");
        }
        match end {
            ConnectionEnd::Finished => {
                let whole = !self.client.broken && !self.backend.broken;
                for (from, to) in [(&self.client, &self.backend), (&self.backend, &self.client)] {
                    if whole {
                        assert!(from.peer_finished && to.told_peer);
                        assert_eq!(from.read, from.sent_by_peer);
                    }
                }
                assert!(!whole || self.to_backend.is_empty() && self.to_client.is_empty() && self.header == 0);
            }
            ConnectionEnd::ClientGone => assert!(self.client.broken),
            ConnectionEnd::BackendGone => assert!(self.backend.broken),
            ConnectionEnd::Idle => assert!(self.now >= self.active_at + self.idle_timeout),
            ConnectionEnd::Drained => assert!(self.drain_by.is_some_and(|drain_by| self.now >= drain_by)),
            ConnectionEnd::NoBackend => assert!(!self.connected),
            ConnectionEnd::BadHeader => assert!(!self.connected && self.relay.tried().is_empty()),
            ConnectionEnd::Revoked => {}
            ConnectionEnd::Exhausted
            | ConnectionEnd::NotAllowed
            | ConnectionEnd::Blocked
            | ConnectionEnd::Removed
            | ConnectionEnd::Suspended
            | ConnectionEnd::Stopped => {
                panic!("nobody said {end:?}")
            }
        }
        assert_eq!(self.relay.next(), Some(Action::End(end)), "an end is for good");
    }
}

#[test]
fn whatever_the_sockets_do_bytes_stay_whole_ends_are_passed_on_and_no_edge_is_lost() {
    run(|mut random| {
        let mut now = Instant::now();
        let mut steps = 0;
        while steps < STEPS {
            let mut world = World::new(&mut random, now);
            world.input(Input::Tick);
            while world.end.is_none() {
                world.step();
                steps += 1;
                if steps >= STEPS {
                    // The last connection of a history.
                    (0..=world.backends).for_each(|_| world.run_out());
                }
            }
            let end = world.end.expect("it has ended");
            world.check_end(end);
            now = world.now;
        }
    });
}
