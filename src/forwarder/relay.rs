//! One TCP connection without its sockets: what to do next, given what has happened.
//!
//! The shell tells a [`Relay`] what it saw ([`Input`]) and does what it is told ([`Action`]). The relay knows how many
//! bytes are held, who has said their last, which backends were tried and when time is up; it never sees the bytes.
//! It relies on edge-triggered readiness: a socket counts as readable until a read has come back short.
//!
//! A direction that keeps filling its reads is bulk: its bytes are spliced, inside the kernel, until it turns small.

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use crate::telemetry::metrics::ConnectionEnd;

/// How long nothing may happen once a side has broken off and what it sent is still being delivered.
pub const BROKEN_TIMEOUT: Duration = Duration::from_secs(10);

/// Reads in a row that fill their buffer of 64 KiB, from which on a direction is bulk.
pub const BULK_AFTER: u8 = 4;

/// Bytes between two moments in which nothing was left to be read; less is a small run, for which copying is cheaper.
const SMALL_RUN: usize = 16 * 1024;

/// Small runs in a row after which a direction is no longer bulk.
const SMALL_RUNS: u8 = 4;

/// One of the two sockets of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// The accepted one.
    Client,
    /// The one to the backend.
    Backend,
}

impl Side {
    /// The other one.
    #[must_use]
    pub const fn other(self) -> Self {
        match self {
            Self::Client => Self::Backend,
            Self::Backend => Self::Client,
        }
    }
}

/// What the kernel says of a socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Readiness {
    /// There is something to read, perhaps the end.
    pub readable: bool,
    /// There is room to write.
    pub writable: bool,
    /// Nothing more will come than what is there.
    pub hangup: bool,
    /// Nothing can be sent to it either: it has been told the end and has said its own, or the connection is broken,
    /// though the error may have been told before.
    pub closed: bool,
    /// There is urgent data, before which reads stop.
    pub urgent: bool,
    /// The connection is broken.
    pub error: bool,
}

/// What has happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Input {
    /// News of a socket.
    Ready(Side, Readiness),
    /// The client's PROXY header has been read, and its client may connect.
    HeaderRead,
    /// It has not all arrived.
    HeaderIncomplete,
    /// It is none, or from a client that is not let in.
    HeaderRefused(ConnectionEnd),
    /// A connect to this backend has begun and may take until then.
    Connecting(SocketAddr, Instant),
    /// The connect to this backend has failed.
    ConnectFailed(SocketAddr),
    /// The backend is connected. So many bytes of a header are held for it.
    Connected {
        /// Length of the header.
        held: usize,
    },
    /// No backend is left to be tried.
    NoBackend,
    /// A copy from this side is done.
    Copied {
        /// Where the bytes came from.
        from: Side,
        /// How many were read.
        read: usize,
        /// How many of them the other side's socket did not take; they are held in memory, or in a pipe.
        held: usize,
        /// What the read says of the source.
        source: Source,
    },
    /// A flush towards this side is done; so many bytes are still held.
    Flushed {
        /// Where they go.
        to: Side,
        /// How many are left.
        held: usize,
    },
    /// A read from this side failed.
    ReadFailed(Side),
    /// A write to this side failed.
    WriteFailed {
        /// Which side takes no more.
        to: Side,
        /// The error says that it broke off without having said its last: what it sent is not whole.
        cut: bool,
    },
    /// This side has been told that no more comes.
    Told(Side),
    /// The idle time-out is now this.
    IdleTimeout(Duration),
    /// The backend's draining ends then, or it no longer drains.
    DrainBy(Option<Instant>),
    /// The connection has to end.
    Stop(ConnectionEnd),
    /// Time has passed.
    Tick,
}

/// What a read says of the socket it came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// The read filled its buffer, or says nothing of what is left: there may be more.
    More,
    /// It came back short, or with nothing: news will come when there is more.
    Drained,
    /// The peer has said its last.
    Ended,
}

/// What to do next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Look for the client's PROXY header.
    ReadHeader,
    /// Choose a backend that is not in [`Relay::tried`] and begin to connect.
    Connect,
    /// The connect is over. It has succeeded, unless the news were of an error too: then the socket has to be asked.
    FinishConnect {
        /// Whether there is anything to ask.
        suspect: bool,
    },
    /// Read from this side once and write what came to the other one.
    Copy(Side),
    /// The same, through a pipe if there is one to be had.
    Splice(Side),
    /// Write what is held for this side.
    Flush(Side),
    /// Tell this side that no more comes.
    Tell(Side),
    /// Close both sockets.
    End(ConnectionEnd),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// The client's PROXY header is awaited until then.
    Header(Instant),
    /// A backend has to be chosen.
    Choosing,
    /// A connect to it goes on until then.
    Connecting(SocketAddr, Instant),
    /// Bytes flow both ways.
    Open,
    /// This side broke off; what it had sent before is still delivered.
    Breaking(Side),
    Ended(ConnectionEnd),
}

#[derive(Debug, Clone, Copy)]
struct Half {
    readable: bool,
    writable: bool,
    /// The peer has said its last or has broken off.
    hangup: bool,
    /// All that the peer ever sent is there, and its end after it: a short read has reached it.
    whole: bool,
    /// The peer has sent urgent data once. A read stops before it and so says nothing when it is short, and a splice
    /// does not get past it.
    urgent: bool,
    /// The peer has broken off; what it had sent before is still delivered.
    broke: bool,
    /// Its reads may end as if it had said its last, though it has not: the error was told to a write.
    cut: bool,
}

impl Half {
    const NEW: Self =
        Self { readable: false, writable: false, hangup: false, whole: false, urgent: false, broke: false, cut: false };
}

/// What flows from one side to the other.
#[derive(Debug, Clone, Copy, Default)]
struct Flow {
    /// Bytes that the destination's socket had no room for.
    held: usize,
    /// The source has said its last.
    ended: bool,
    /// The destination knows it, or cannot be told.
    told: bool,
    /// Many bytes come at a time.
    bulk: bool,
    /// Reads in a row that filled their buffer; of a bulk flow: small runs in a row.
    streak: u8,
    /// Of a bulk flow: bytes since nothing was left to be read.
    run: usize,
}

impl Flow {
    const NEW: Self = Self { held: 0, ended: false, told: false, bulk: false, streak: 0, run: 0 };
    /// There is no point in carrying anything that way.
    const OVER: Self = Self { ended: true, told: true, ..Self::NEW };

    /// Many bytes come at a time, and more may.
    const fn is_bulk(&self) -> bool {
        self.bulk && !self.ended
    }

    /// All of it was delivered.
    const fn is_over(&self) -> bool {
        self.ended && self.held == 0
    }

    /// A read brought so much, and found the source so.
    const fn notice(&mut self, read: usize, source: Source) {
        let (counts, enough) = if self.bulk {
            self.run = self.run.saturating_add(read);
            if matches!(source, Source::More) {
                return;
            }
            (self.run < SMALL_RUN, SMALL_RUNS)
        } else {
            (matches!(source, Source::More), BULK_AFTER)
        };
        self.run = 0;
        self.streak = if counts { self.streak + 1 } else { 0 };
        if self.streak == enough {
            self.bulk = !self.bulk;
            self.streak = 0;
        }
    }
}

/// Both directions of one connection.
#[derive(Debug)]
pub struct Relay {
    stage: Stage,
    client: Half,
    backend: Half,
    /// From the client.
    up: Flow,
    /// From the backend.
    down: Flow,
    /// Which side is read next, so that neither direction waits for the other.
    turn: Side,
    tried: Vec<SocketAddr>,
    idle_timeout: Duration,
    active_at: Instant,
    drain_by: Option<Instant>,
}

impl Relay {
    /// A connection that was just accepted. `header_by`: until when its PROXY header must be there, if it must.
    #[must_use]
    pub const fn new(header_by: Option<Instant>, idle_timeout: Duration, now: Instant) -> Self {
        Self {
            stage: match header_by {
                Some(until) => Stage::Header(until),
                None => Stage::Choosing,
            },
            client: Half { writable: true, ..Half::NEW },
            backend: Half::NEW,
            up: Flow::NEW,
            down: Flow::NEW,
            turn: Side::Client,
            tried: Vec::new(),
            idle_timeout,
            active_at: now,
            drain_by: None,
        }
    }

    /// Backends that were tried in vain; none is tried twice.
    #[must_use]
    pub fn tried(&self) -> &[SocketAddr] {
        &self.tried
    }

    /// Whether a direction is bulk, so that the connection can wait until others had their turn.
    #[must_use]
    pub const fn is_bulk(&self) -> bool {
        self.up.is_bulk() || self.down.is_bulk()
    }

    /// When [`Input::Tick`] is due; it may come later, and too early does no harm.
    #[must_use]
    pub fn deadline(&self) -> Instant {
        let stage = match self.stage {
            Stage::Header(until) | Stage::Connecting(_, until) => until,
            _ => self.active_at + self.patience(),
        };
        self.drain_by.map_or(stage, |drain_by| stage.min(drain_by))
    }

    /// How long nothing may happen.
    fn patience(&self) -> Duration {
        if self.broken().is_some() { self.idle_timeout.min(BROKEN_TIMEOUT) } else { self.idle_timeout }
    }

    /// Takes note of what has happened.
    pub fn handle(&mut self, input: Input, now: Instant) {
        if matches!(self.stage, Stage::Ended(_)) {
            return;
        }
        match input {
            Input::Ready(side, readiness) => self.ready(side, readiness, now),
            Input::HeaderRead => {
                self.stage = Stage::Choosing;
                self.active_at = now;
            }
            Input::HeaderIncomplete => {
                self.client.readable = false;
                if self.client.hangup {
                    self.end(ConnectionEnd::BadHeader);
                }
            }
            Input::HeaderRefused(end) | Input::Stop(end) => self.end(end),
            Input::Connecting(backend, until) => {
                self.backend = Half::NEW;
                self.drain_by = None;
                self.stage = Stage::Connecting(backend, until);
            }
            Input::ConnectFailed(backend) => {
                self.tried.push(backend);
                self.stage = Stage::Choosing;
            }
            Input::Connected { held } => {
                self.tried = Vec::new();
                self.up.held = held;
                self.backend.writable = true;
                self.active_at = now;
                self.stage = Stage::Open;
            }
            Input::NoBackend => self.end(ConnectionEnd::NoBackend),
            Input::Copied { from, read, held, source } => {
                if read > 0 {
                    self.active_at = now;
                }
                let in_doubt = self.is_in_doubt(from);
                let half = self.half(from);
                let ended = match source {
                    Source::More => false,
                    Source::Drained => read > 0 && half.whole && !half.urgent,
                    // An end that is one is shown, too: until then it may be a break.
                    Source::Ended => !in_doubt,
                };
                half.readable = match source {
                    Source::More => true,
                    // The end is there and will not be announced again.
                    Source::Drained => !ended && (half.hangup || half.urgent) && read > 0,
                    Source::Ended => false,
                };
                let flow = self.flow(from);
                flow.notice(read, source);
                flow.held = held;
                flow.ended |= ended;
                self.half(from.other()).writable &= held == 0;
                self.turn = from.other();
                if ended && self.is_cut(from) {
                    self.stage = Stage::Breaking(from);
                }
            }
            Input::Flushed { to, held } => {
                if held < self.flow(to.other()).held {
                    self.active_at = now;
                }
                self.flow(to.other()).held = held;
                self.half(to).writable = held == 0;
            }
            Input::ReadFailed(side) => {
                self.broke(side, true, now);
                self.stage = Stage::Breaking(side);
                *self.flow(side.other()) = Flow::OVER;
            }
            Input::WriteFailed { to, cut } => {
                self.broke(to, cut || self.is_in_doubt(to), now);
                self.cannot_write(to);
            }
            Input::Told(side) => self.flow(side.other()).told = true,
            Input::IdleTimeout(timeout) => self.idle_timeout = timeout,
            Input::DrainBy(deadline) => self.drain_by = deadline,
            Input::Tick => self.tick(now),
        }
    }

    /// What to do next; nothing: wait for news.
    #[must_use]
    pub fn next(&self) -> Option<Action> {
        match self.stage {
            Stage::Header(_) => self.client.readable.then_some(Action::ReadHeader),
            Stage::Choosing => Some(Action::Connect),
            Stage::Connecting(..) => {
                self.backend.writable.then_some(Action::FinishConnect { suspect: self.backend.hangup })
            }
            // What either had sent is for nobody.
            Stage::Open | Stage::Breaking(_) if self.client.broke && self.backend.broke => {
                Some(Action::End(gone(Side::Client)))
            }
            Stage::Open => {
                // To be closed tells both sides that no more comes.
                if self.up.is_over() && self.down.is_over() {
                    return Some(Action::End(ConnectionEnd::Finished));
                }
                self.next_of(self.turn).or_else(|| self.next_of(self.turn.other()))
            }
            Stage::Breaking(side) => {
                let held = self.flow_of(side).held;
                if held > 0 {
                    return self.half_of(side.other()).writable.then_some(Action::Flush(side.other()));
                }
                Some(Action::End(gone(side)))
            }
            Stage::Ended(end) => Some(Action::End(end)),
        }
    }

    fn next_of(&self, from: Side) -> Option<Action> {
        let flow = self.flow_of(from);
        if flow.held > 0 {
            return self.half_of(from.other()).writable.then_some(Action::Flush(from.other()));
        }
        if flow.ended {
            return (!flow.told).then_some(Action::Tell(from.other()));
        }
        let half = self.half_of(from);
        let action = if flow.bulk && !half.urgent { Action::Splice(from) } else { Action::Copy(from) };
        half.readable.then_some(action)
    }

    fn ready(&mut self, side: Side, readiness: Readiness, now: Instant) {
        // The error of a broken connection has been told, and perhaps not to us.
        let broken = readiness.closed && !readiness.error && !self.flow_of(side.other()).told;
        let cut = broken && self.is_in_doubt(side);
        let half = self.half(side);
        half.readable |= readiness.readable || readiness.hangup || readiness.urgent || readiness.error;
        half.writable |= readiness.writable || readiness.error;
        half.whole |= readiness.hangup && !readiness.closed && !readiness.error;
        half.hangup |= readiness.hangup || readiness.error;
        half.urgent |= readiness.urgent;
        if readiness.error || broken {
            match (self.stage, side) {
                (Stage::Header(_) | Stage::Choosing | Stage::Connecting(..), Side::Client) => {
                    self.end(ConnectionEnd::ClientGone);
                }
                // Nothing is read from it any more that would show the error.
                (Stage::Open, _) if self.flow_of(side).ended => self.cannot_write(side),
                // The next read shows it, perhaps only when what is held has been delivered.
                (Stage::Open, _) => self.broke(side, cut, now),
                _ => {}
            }
        }
    }

    /// Whether it is not known yet whom a balancer speaks for.
    pub fn awaits_header(&self) -> bool {
        matches!(self.stage, Stage::Header(_))
    }

    /// Whether `side` may have broken off without anybody having been told: a splice to it that came back short may have
    /// met the error, which the kernel tells once, after it had moved some bytes.
    fn is_in_doubt(&self, side: Side) -> bool {
        let known = self.half_of(side).whole || self.flow_of(side).ended || self.is_cut(side);
        self.flow_of(side.other()).held > 0 && !known
    }

    fn is_cut(&self, side: Side) -> bool {
        self.half_of(side).cut
    }

    /// `side` has broken off: from now on the other one may not keep it waiting for long.
    fn broke(&mut self, side: Side, cut: bool, now: Instant) {
        let half = self.half(side);
        (half.broke, half.cut) = (true, half.cut || cut);
        self.active_at = now;
    }

    /// Who has broken off.
    fn broken(&self) -> Option<Side> {
        [Side::Client, Side::Backend].into_iter().find(|side| self.half_of(*side).broke)
    }

    /// `side` takes no more; what it had sent before it broke off is still read.
    fn cannot_write(&mut self, side: Side) {
        *self.flow(side.other()) = Flow::OVER;
        if self.flow_of(side).told || !matches!(self.stage, Stage::Open) {
            self.stage = Stage::Breaking(side);
        }
    }

    fn tick(&mut self, now: Instant) {
        if now < self.deadline() {
            return;
        }
        match self.stage {
            Stage::Header(_) => self.end(ConnectionEnd::BadHeader),
            // Also when the backend drains: others may be left.
            Stage::Connecting(backend, _) => self.handle(Input::ConnectFailed(backend), now),
            _ if self.drain_by.is_some_and(|drain_by| drain_by <= now) => self.end(ConnectionEnd::Drained),
            // News that wait for their turn are none of idleness.
            _ if self.next().is_some() => {}
            _ => self.end(self.broken().map_or(ConnectionEnd::Idle, gone)),
        }
    }

    const fn end(&mut self, end: ConnectionEnd) {
        self.stage = Stage::Ended(end);
    }

    const fn half(&mut self, side: Side) -> &mut Half {
        match side {
            Side::Client => &mut self.client,
            Side::Backend => &mut self.backend,
        }
    }

    const fn half_of(&self, side: Side) -> &Half {
        match side {
            Side::Client => &self.client,
            Side::Backend => &self.backend,
        }
    }

    /// What flows from `side`.
    const fn flow(&mut self, side: Side) -> &mut Flow {
        match side {
            Side::Client => &mut self.up,
            Side::Backend => &mut self.down,
        }
    }

    const fn flow_of(&self, side: Side) -> &Flow {
        match side {
            Side::Client => &self.up,
            Side::Backend => &self.down,
        }
    }
}

const fn gone(side: Side) -> ConnectionEnd {
    match side {
        Side::Client => ConnectionEnd::ClientGone,
        Side::Backend => ConnectionEnd::BackendGone,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const READ: usize = 64 * 1024;

    /// A connection that is open, with nothing said yet.
    fn open(now: Instant) -> Relay {
        let mut relay = Relay::new(None, Duration::from_secs(60), now);
        relay.handle(Input::Connecting(SocketAddr::from(([10, 0, 0, 1], 4100)), now + Duration::from_secs(5)), now);
        relay.handle(Input::Ready(Side::Backend, Readiness { writable: true, ..Readiness::default() }), now);
        assert_eq!(relay.next(), Some(Action::FinishConnect { suspect: false }));
        relay.handle(Input::Connected { held: 0 }, now);
        relay
    }

    fn readable(relay: &mut Relay, now: Instant) {
        relay.handle(Input::Ready(Side::Client, Readiness { readable: true, ..Readiness::default() }), now);
    }

    fn copied(relay: &mut Relay, read: usize, source: Source, now: Instant) {
        relay.handle(Input::Copied { from: Side::Client, read, held: 0, source }, now);
    }

    #[test]
    fn a_direction_is_spliced_after_full_reads_in_a_row_and_copied_again_after_small_runs() {
        let now = Instant::now();
        let mut relay = open(now);
        readable(&mut relay, now);
        for _ in 1..BULK_AFTER {
            copied(&mut relay, READ, Source::More, now);
        }
        assert_eq!(relay.next(), Some(Action::Copy(Side::Client)));
        copied(&mut relay, READ - 1, Source::Drained, now);
        readable(&mut relay, now);
        for _ in 0..BULK_AFTER {
            assert_eq!(relay.next(), Some(Action::Copy(Side::Client)), "a short read begins the row again");
            copied(&mut relay, READ, Source::More, now);
        }
        assert!(relay.is_bulk());
        let mut runs = |runs: u8, bytes| {
            for _ in 0..runs {
                assert_eq!(relay.next(), Some(Action::Splice(Side::Client)));
                copied(&mut relay, bytes, Source::More, now);
                copied(&mut relay, 0, Source::Drained, now);
                readable(&mut relay, now);
            }
        };
        runs(SMALL_RUNS - 1, SMALL_RUN - 1);
        runs(1, SMALL_RUN);
        runs(SMALL_RUNS, SMALL_RUN - 1);
        assert_eq!(relay.next(), Some(Action::Copy(Side::Client)));
        assert!(!relay.is_bulk());
    }

    #[test]
    fn a_direction_with_urgent_data_is_never_spliced() {
        let now = Instant::now();
        let mut relay = open(now);
        relay.handle(Input::Ready(Side::Client, Readiness { urgent: true, ..Readiness::default() }), now);
        (0..2 * BULK_AFTER).for_each(|_| copied(&mut relay, READ, Source::More, now));
        assert_eq!(relay.next(), Some(Action::Copy(Side::Client)));
    }

    #[test]
    fn a_short_read_after_the_end_was_shown_is_the_last_unless_something_else_may_have_cut_it_short() {
        fn check(shown: Readiness, expected: Option<Action>) {
            let now = Instant::now();
            let mut relay = open(now);
            relay.handle(Input::Ready(Side::Client, Readiness { readable: true, ..shown }), now);
            assert_eq!(relay.next(), Some(Action::Copy(Side::Client)));
            copied(&mut relay, 1, Source::Drained, now);
            assert_eq!(relay.next(), expected, "{shown:?}");
        }
        let hangup = Readiness { hangup: true, ..Readiness::default() };
        check(Readiness::default(), None);
        check(hangup, Some(Action::Tell(Side::Backend)));
        check(Readiness { urgent: true, ..hangup }, Some(Action::Copy(Side::Client)));
        check(Readiness { error: true, ..hangup }, Some(Action::Copy(Side::Client)));
    }

    #[test]
    fn the_close_tells_the_second_side() {
        let now = Instant::now();
        let mut relay = open(now);
        readable(&mut relay, now);
        copied(&mut relay, 0, Source::Ended, now);
        assert_eq!(relay.next(), Some(Action::Tell(Side::Backend)));
        relay.handle(Input::Told(Side::Backend), now);
        assert_eq!(relay.next(), None);
        relay.handle(Input::Ready(Side::Backend, Readiness { readable: true, ..Readiness::default() }), now);
        relay.handle(Input::Copied { from: Side::Backend, read: 0, held: 0, source: Source::Ended }, now);
        assert_eq!(relay.next(), Some(Action::End(ConnectionEnd::Finished)));
    }

    #[test]
    fn the_socket_of_a_connect_is_asked_only_when_the_news_are_of_a_failure() {
        let now = Instant::now();
        let mut relay = Relay::new(None, Duration::from_secs(60), now);
        let backend = SocketAddr::from(([10, 0, 0, 1], 4100));
        relay.handle(Input::Connecting(backend, now + Duration::from_secs(5)), now);
        let failed =
            Readiness { readable: true, writable: true, hangup: true, closed: true, error: true, urgent: false };
        relay.handle(Input::Ready(Side::Backend, failed), now);
        assert_eq!(relay.next(), Some(Action::FinishConnect { suspect: true }));
        relay.handle(Input::ConnectFailed(backend), now);
        assert_eq!((relay.next(), relay.tried()), (Some(Action::Connect), &[backend][..]));
    }
}
