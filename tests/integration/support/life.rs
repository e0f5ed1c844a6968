//! Lives of TCP connections as scripts for both sides, played on real sockets by one thread, and judged.
//!
//! What is judged, of each direction: the bytes that arrive are a beginning of those that were sent; an end arrives
//! only when its sender has said its last, and after all bytes; a connection breaks only when the other side broke it.
//! A life that stands still is a failure too.

#![allow(dead_code, reason = "each test module uses the helpers it needs")]

use std::{
    io::{ErrorKind, Read as _, Write as _},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    os::fd::AsFd,
    sync::LazyLock,
    time::{Duration, Instant},
};

use fastrand::Rng;
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    net::{AddressFamily, SocketType, sockopt},
};
use socket2::SockRef;

use super::eventually::PATIENCE;

/// What all streams are parts of: long enough that no shift by a buffer's length leaves it unchanged.
static PATTERN: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let mut bytes = vec![0; 5 * 1024 * 1024 + 7];
    Rng::with_seed(1).fill(&mut bytes);
    bytes
});

/// Silence after which whoever waits goes on: by then the forwarder has carried what it can.
const QUIET: Timespec = Timespec { tv_sec: 0, tv_nsec: 10_000_000 };

/// Largest read or write.
const MOST_AT_ONCE: usize = 1024 * 1024;

/// What one side says, in order. Then it says its last.
#[derive(Debug, Clone, Copy)]
pub enum Say {
    /// So many bytes, so many in a call.
    Write {
        bytes: usize,
        at_once: usize,
    },
    Wait(Until),
    /// Ends the connection with a reset.
    BreakOff,
    /// Closes without listening to the rest.
    Leave,
}

/// How one side listens, in order. Then it reads to the end.
#[derive(Debug, Clone, Copy)]
pub enum Hear {
    /// So many bytes, so many in a call.
    Read {
        bytes: usize,
        at_once: usize,
    },
    Wait(Until),
    /// Ends the connection with a reset.
    BreakOff,
}

/// What ends a pause. A silence of everybody ends each, so that no two can wait for each other.
#[derive(Debug, Clone, Copy)]
pub enum Until {
    /// The other side has read all that this one has written.
    AllIsRead,
    /// The other side has written so many bytes.
    Written(usize),
    Quiet,
}

/// One side's life.
#[derive(Debug, Clone, Default)]
pub struct Part {
    pub says: Vec<Say>,
    pub hears: Vec<Hear>,
    /// Sizes of the socket's buffers, where the kernel's own are not wanted.
    pub send_buffer: Option<usize>,
    pub receive_buffer: Option<usize>,
}

/// A connection's life.
#[derive(Debug, Clone, Default)]
pub struct Life {
    pub client: Part,
    pub backend: Part,
}

/// Where lives are played: a forwarder's port, and the one backend behind it.
#[derive(Debug)]
pub struct Stage {
    pub port: SocketAddr,
    pub backend: TcpListener,
    /// The largest segment that both sides take: that of loopback, or a network's. The kernel's buffers go by it.
    segment: Option<u32>,
}

/// One side, as far as it has got.
#[derive(Debug)]
struct Player {
    part: Part,
    socket: Option<TcpStream>,
    /// Where in the pattern what it writes begins.
    salt: usize,
    written: usize,
    read: usize,
    /// The current steps, and how many bytes of each are done.
    say: (usize, usize),
    hear: (usize, usize),
    /// Pauses of both have been ended by silence.
    released: [bool; 2],
    finished: bool,
    /// It has ended the connection by itself.
    gone: bool,
    heard_end: bool,
    saw_break: bool,
}

/// What one side may know of the other.
#[derive(Debug, Clone, Copy)]
struct Other {
    written: usize,
    read: usize,
    salt: usize,
    finished: bool,
    gone: bool,
    over: bool,
}

impl Stage {
    /// A backend for the forwarder's port, to be announced there.
    pub fn new(port: SocketAddr) -> Self {
        let backend = TcpListener::bind((port.ip(), 0)).expect("a free port of loopback");
        backend.set_nonblocking(true).expect("a socket");
        Self { port, backend, segment: None }
    }

    /// One with the segments of an Ethernet.
    pub fn with_small_segments(port: SocketAddr) -> Self {
        let stage = Self { segment: Some(1400), ..Self::new(port) };
        stage.set_segment(&stage.backend);
        stage
    }

    fn set_segment(&self, socket: impl AsFd) {
        if let Some(bytes) = self.segment {
            SockRef::from(&socket).set_tcp_mss(bytes).expect("a socket that is not connected");
        }
    }

    /// Plays these lives at the same time.
    ///
    /// # Panics
    /// When one is not as it should be.
    pub fn play(&self, lives: &[Life], random: &mut Rng) {
        self.play_watched(lives, random, &mut || {});
    }

    /// The same. `at_rest` is called whenever nothing moves and somebody waits for that.
    pub fn play_watched(&self, lives: &[Life], random: &mut Rng, at_rest: &mut dyn FnMut()) {
        let mut pairs = lives.iter().map(|life| self.open(life, random)).collect::<Vec<_>>();
        let mut moved_at = Instant::now();
        while !pairs.iter().flatten().all(Player::is_over) {
            let mut moved = false;
            for pair in &mut pairs {
                moved |= step(pair, random);
            }
            if moved {
                moved_at = Instant::now();
            } else if is_quiet(&pairs) {
                at_rest();
                let released = pairs.iter_mut().flatten().map(Player::release).filter(|any| *any).count() > 0;
                let patient = released || moved_at.elapsed() < PATIENCE;
                assert!(patient, "nothing moves: {:#?}", pairs.iter().find(|pair| !pair.iter().all(Player::is_over)));
            }
        }
    }

    /// Both sides of a new connection.
    fn open(&self, life: &Life, random: &mut Rng) -> [Player; 2] {
        let mut client = Player::new(&life.client, self.connect(&life.client), random);
        // Some clients talk before their backend is there.
        if random.bool() && matches!(life.client.says.first(), Some(Say::Write { .. })) {
            client.speak(Other { written: 0, read: 0, salt: 0, finished: false, gone: false, over: false });
        }
        let mut fds = [PollFd::new(&self.backend, PollFlags::IN)];
        let patience = Timespec::try_from(PATIENCE).expect("seconds");
        assert_eq!(poll(&mut fds, Some(&patience)), Ok(1), "no connection to the backend");
        let (backend, _) = self.backend.accept().expect("it is there");
        set_buffers(&backend, &life.backend);
        [client, Player::new(&life.backend, backend, random)]
    }

    fn connect(&self, part: &Part) -> TcpStream {
        let family = if self.port.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
        let socket = rustix::net::socket(family, SocketType::STREAM, None).expect("descriptors are left");
        let socket = TcpStream::from(socket);
        // Before it connects: the window's scale is agreed upon then.
        set_buffers(&socket, part);
        self.set_segment(&socket);
        rustix::net::connect(&socket, &self.port).expect("somebody listens");
        socket
    }
}

fn set_buffers(socket: &TcpStream, part: &Part) {
    if let Some(bytes) = part.send_buffer {
        sockopt::set_socket_send_buffer_size(socket, bytes).expect("a socket");
    }
    if let Some(bytes) = part.receive_buffer {
        sockopt::set_socket_recv_buffer_size(socket, bytes).expect("a socket");
    }
}

/// Lets both sides do one thing of each kind. Returns whether anything moved.
fn step([client, backend]: &mut [Player; 2], random: &mut Rng) -> bool {
    let first = random.usize(..4);
    let mut moved = false;
    for turn in first..first + 4 {
        moved |= match turn % 4 {
            0 => client.speak(backend.seen()),
            1 => backend.listen(client.seen()),
            2 => backend.speak(client.seen()),
            _ => client.listen(backend.seen()),
        };
    }
    moved
}

/// Whether no socket becomes ready for a while.
fn is_quiet(pairs: &[[Player; 2]]) -> bool {
    let players = pairs.iter().flatten();
    let mut fds = players.filter_map(Player::interest).collect::<Vec<_>>();
    // Without a socket to wait for nothing can change by itself.
    fds.is_empty() || poll(&mut fds, Some(&QUIET)).expect("polling works") == 0
}

impl Player {
    fn new(part: &Part, socket: TcpStream, random: &mut Rng) -> Self {
        socket.set_nonblocking(true).expect("a socket");
        socket.set_nodelay(true).expect("a socket");
        Self {
            part: part.clone(),
            socket: Some(socket),
            salt: random.usize(..PATTERN.len()),
            written: 0,
            read: 0,
            say: (0, 0),
            hear: (0, 0),
            released: [false; 2],
            finished: false,
            gone: false,
            heard_end: false,
            saw_break: false,
        }
    }

    fn seen(&self) -> Other {
        Other {
            written: self.written,
            read: self.read,
            salt: self.salt,
            finished: self.finished,
            gone: self.gone,
            over: self.is_over(),
        }
    }

    fn is_over(&self) -> bool {
        self.socket.is_none()
    }

    fn says(&self) -> Option<Say> {
        self.part.says.get(self.say.0).copied()
    }

    /// After the script it reads to the end.
    fn hears(&self) -> Hear {
        let rest = Hear::Read { bytes: usize::MAX, at_once: 256 * 1024 };
        self.part.hears.get(self.hear.0).copied().unwrap_or(rest)
    }

    /// What it waits for that only the kernel can say.
    fn interest(&self) -> Option<PollFd<'_>> {
        let mut flags = PollFlags::empty();
        flags.set(PollFlags::OUT, !self.is_mute() && matches!(self.says(), Some(Say::Write { .. })));
        flags.set(PollFlags::IN, !self.heard_end && matches!(self.hears(), Hear::Read { .. }));
        let socket = self.socket.as_ref().filter(|_| !flags.is_empty())?;
        Some(PollFd::new(socket, flags))
    }

    fn is_mute(&self) -> bool {
        self.finished || self.saw_break
    }

    /// Ends its pauses. Returns whether it has any.
    fn release(&mut self) -> bool {
        let says = !self.is_mute() && matches!(self.says(), Some(Say::Wait(_)));
        let hears = !self.heard_end && matches!(self.hears(), Hear::Wait(_));
        self.released = [says, hears];
        !self.is_over() && (says || hears)
    }

    fn may_go_on(&self, until: Until, other: Other) -> bool {
        match until {
            Until::AllIsRead => other.over || other.read == self.written,
            Until::Written(bytes) => other.over || other.written >= bytes,
            Until::Quiet => false,
        }
    }

    fn speak(&mut self, other: Other) -> bool {
        let Some(socket) = self.socket.as_mut().filter(|_| !(self.finished || self.saw_break)) else { return false };
        match self.part.says.get(self.say.0).copied() {
            None => {
                // It fails when the other side has broken off.
                let _ = socket.shutdown(Shutdown::Write);
                self.finished = true;
            }
            Some(Say::Write { bytes, .. }) if self.say.1 == bytes => self.say = (self.say.0 + 1, 0),
            Some(Say::Write { bytes, at_once }) => {
                let left = at_once.min(bytes - self.say.1).min(MOST_AT_ONCE);
                let from = (self.salt + self.written) % PATTERN.len();
                match socket.write(&PATTERN[from..PATTERN.len().min(from + left)]) {
                    Ok(written) => {
                        self.written += written;
                        self.say.1 += written;
                    }
                    Err(error) if error.kind() == ErrorKind::WouldBlock => return false,
                    Err(error) => self.broken(error.kind(), other),
                }
            }
            Some(Say::Wait(until)) => {
                if !std::mem::take(&mut self.released[0]) && !self.may_go_on(until, other) {
                    return false;
                }
                self.say = (self.say.0 + 1, 0);
            }
            Some(Say::BreakOff) => self.go(true),
            Some(Say::Leave) => {
                self.finished = true;
                self.go(false);
            }
        }
        self.close_when_done();
        true
    }

    fn listen(&mut self, other: Other) -> bool {
        let hears = self.hears();
        let Some(socket) = self.socket.as_mut().filter(|_| !self.heard_end) else { return false };
        match hears {
            Hear::Read { bytes, .. } if self.hear.1 == bytes => self.hear = (self.hear.0 + 1, 0),
            Hear::Read { bytes, at_once } => {
                thread_local!(static SCRATCH: std::cell::RefCell<Vec<u8>> = vec![0; MOST_AT_ONCE].into());
                let result = SCRATCH.with_borrow_mut(|scratch| {
                    let read = socket.read(&mut scratch[..at_once.min(bytes - self.hear.1).min(MOST_AT_ONCE)])?;
                    assert_same(&scratch[..read], other.salt, self.read);
                    Ok::<_, std::io::Error>(read)
                });
                match result {
                    Ok(0) => {
                        // What a write has learned, a read need not tell again.
                        if !self.saw_break {
                            assert!(other.finished, "an end that nobody has said, after {} bytes", self.read);
                            assert_eq!(self.read, other.written, "an end before all bytes");
                        }
                        self.heard_end = true;
                    }
                    Ok(read) => {
                        self.read += read;
                        self.hear.1 += read;
                        assert!(self.read <= other.written, "bytes that nobody has sent");
                    }
                    Err(error) if error.kind() == ErrorKind::WouldBlock => return false,
                    Err(error) => {
                        self.broken(error.kind(), other);
                        self.heard_end = true;
                    }
                }
            }
            Hear::Wait(until) => {
                if !std::mem::take(&mut self.released[1]) && !self.may_go_on(until, other) {
                    return false;
                }
                self.hear = (self.hear.0 + 1, 0);
            }
            Hear::BreakOff => self.go(true),
        }
        self.close_when_done();
        true
    }

    fn broken(&mut self, error: ErrorKind, other: Other) {
        assert!(matches!(error, ErrorKind::ConnectionReset | ErrorKind::BrokenPipe), "{error}");
        assert!(other.gone, "{error} after {} bytes sent and {} read, and nobody broke off", self.written, self.read);
        self.saw_break = true;
    }

    fn go(&mut self, reset: bool) {
        let socket = self.socket.take().expect("it is still there");
        if reset {
            sockopt::set_socket_linger(&socket, Some(Duration::ZERO)).expect("a socket");
        }
        self.gone = true;
    }

    fn close_when_done(&mut self) {
        if self.is_mute() && self.heard_end {
            self.socket = None;
        }
    }
}

/// Whether these bytes are the ones at this place of a stream.
#[track_caller]
fn assert_same(bytes: &[u8], salt: usize, mut at: usize) {
    let mut left = bytes;
    while !left.is_empty() {
        let from = (salt + at) % PATTERN.len();
        let length = left.len().min(PATTERN.len() - from);
        assert!(left[..length] == PATTERN[from..from + length], "a wrong byte among {length} from {at} on");
        left = &left[length..];
        at += length;
    }
}

/// Largest amount that a random life sends in one step.
const MOST_BYTES: usize = 3 << 20;
/// Calls that a step may take, so that no life is long for its small steps.
const MOST_CALLS: usize = 400;
/// What a random life sends in one step where buffers are small: each fill of them costs a round.
const MOST_BYTES_OF_SMALL: usize = 384 * 1024;

impl Life {
    /// Any life.
    pub fn random(random: &mut Rng) -> Self {
        let small = random.u8(..4) == 0;
        let most = if small { MOST_BYTES_OF_SMALL } else { MOST_BYTES };
        let mut life = Self { client: Part::random(random, most), backend: Part::random(random, most) };
        if small {
            for part in [&mut life.client, &mut life.backend] {
                part.send_buffer = random.bool().then(|| random.usize(2048..64 * 1024));
                // Windows below loopback's segment of 64 KiB are full of the kernel's own pauses.
                part.receive_buffer = random.bool().then(|| random.usize(64 * 1024..128 * 1024));
            }
        }
        life
    }

    /// A life without resets, of which one in a hundred is broken off after all.
    pub fn ordinary(random: &mut Rng) -> Self {
        let mut life = Self::random(random);
        let breaks_off = random.u8(..100) == 0;
        for part in [&mut life.client, &mut life.backend] {
            part.says.retain(|say| !matches!(say, Say::BreakOff | Say::Leave));
            part.hears.retain(|hear| !matches!(hear, Hear::BreakOff));
        }
        if breaks_off {
            let part = if random.bool() { &mut life.client } else { &mut life.backend };
            part.says.insert(random.usize(..=part.says.len()), Say::BreakOff);
        }
        life
    }
}

impl Part {
    fn random(random: &mut Rng, most: usize) -> Self {
        let mut part = Self::default();
        for _ in 0..random.usize(..6) {
            part.says.push(if random.u8(..4) == 0 {
                Say::Wait(if random.bool() { Until::AllIsRead } else { Until::Quiet })
            } else {
                let (bytes, at_once) = amount(random, most);
                Say::Write { bytes, at_once }
            });
        }
        for _ in 0..random.usize(..5) {
            part.hears.push(if random.u8(..3) == 0 {
                Hear::Wait(if random.bool() { Until::Written(random.usize(..most)) } else { Until::Quiet })
            } else {
                let (bytes, at_once) = amount(random, most);
                Hear::Read { bytes, at_once }
            });
        }
        match random.u8(..16) {
            0 => part.says.insert(random.usize(..=part.says.len()), Say::BreakOff),
            1 => part.hears.insert(random.usize(..=part.hears.len()), Hear::BreakOff),
            2 => part.says.push(Say::Leave),
            _ => {}
        }
        part
    }
}

/// So many bytes, and how many in a call.
fn amount(random: &mut Rng, most: usize) -> (usize, usize) {
    let around = |random: &mut Rng, unit: usize, times: usize| unit * random.usize(1..=times) + random.usize(..7) - 3;
    let bytes = match random.u8(..10) {
        0..=2 => random.usize(1..=64),
        3..=4 => random.usize(1..=16 * 1024),
        5..=6 => around(random, 64 * 1024, 5),
        7 => around(random, 256 * 1024, 3),
        8 => random.usize(1..=1024 * 1024),
        _ => random.usize(1..=MOST_BYTES),
    };
    let bytes = bytes.min(most);
    let at_once = match random.u8(..6) {
        0 => random.usize(1..=16),
        1 => random.usize(1..=4096),
        2 => 64 * 1024,
        3 => random.usize(1..=128 * 1024),
        4 => 256 * 1024,
        _ => MOST_AT_ONCE,
    };
    (bytes, at_once.max(bytes.div_ceil(MOST_CALLS)))
}
