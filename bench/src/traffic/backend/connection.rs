//! One connection: a command, then what it asks for.

use std::{
    io,
    net::TcpStream,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
};

use crate::traffic::{
    events::{Event, Interest},
    protocol::{self, NUMBER, Pattern},
    sockets,
};

pub struct Connection {
    socket: TcpStream,
    state: State,
}

enum State {
    /// What has come of the command.
    Command {
        bytes: [u8; 1 + NUMBER],
        length: usize,
    },
    Echo(Echo),
    Message {
        length: u64,
        size: u64,
    },
    Swallow {
        count: u64,
    },
    Give {
        offset: u64,
        end: u64,
    },
    Both {
        offset: u64,
        end: u64,
        count: u64,
    },
    /// The last bytes, from this one on.
    Answer {
        number: [u8; NUMBER],
        from: usize,
    },
}

/// An echo holds bytes only while the client does not take them; it reads nothing meanwhile.
#[derive(Default)]
struct Echo {
    pending: Vec<u8>,
    from: usize,
    ended: bool,
    /// Bytes until the connection is reset.
    until_reset: Option<u64>,
}

/// What is to become of a connection.
pub enum Progress {
    Open,
    /// It carries much: another thread's business.
    Bulk,
    Done,
}

impl Connection {
    pub fn new(socket: OwnedFd) -> Self {
        Self { socket: socket.into(), state: State::Command { bytes: [0; 1 + NUMBER], length: 0 } }
    }

    pub fn socket(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    /// What it waits for.
    pub fn interest(&self) -> Interest {
        match &self.state {
            State::Echo(echo) if !echo.pending.is_empty() => Interest::OUT,
            State::Command { .. } | State::Echo(_) | State::Message { .. } | State::Swallow { .. } => Interest::IN,
            State::Give { .. } => Interest::IN | Interest::OUT,
            State::Both { offset, end, .. } if offset == end => Interest::IN,
            State::Both { .. } => Interest::IN | Interest::OUT,
            State::Answer { .. } => Interest::OUT,
        }
    }

    /// Reads once and writes once, as the event allows. An error ends the connection.
    pub fn ready(&mut self, event: Event, scratch: &mut [u8], pattern: &Pattern) -> io::Result<Progress> {
        if let State::Command { bytes, length } = &mut self.state {
            let Some(read) = sockets::receive(&self.socket, scratch)? else { return Ok(Progress::Open) };
            if read == 0 {
                return Ok(Progress::Done);
            }
            let taken = read.min(bytes.len() - *length);
            bytes[*length..][..taken].copy_from_slice(&scratch[..taken]);
            let before = *length;
            *length += taken;
            let number =
                (*length == bytes.len()).then(|| u64::from_be_bytes(*bytes.last_chunk().expect("it is longer")));
            let (state, used) = match (bytes[0], number) {
                (protocol::ECHO, _) => (State::Echo(Echo::default()), 1),
                (protocol::SWALLOW, _) => (State::Swallow { count: 0 }, 1),
                (protocol::GIVE, Some(end)) => (State::Give { offset: 0, end }, 1 + NUMBER),
                (protocol::BOTH, Some(end)) => (State::Both { offset: 0, end, count: 0 }, 1 + NUMBER),
                (protocol::CLOSE, Some(size)) => (State::Message { length: 1 + NUMBER as u64, size }, 1 + NUMBER),
                (protocol::RESET, Some(bytes)) => {
                    (State::Echo(Echo { until_reset: Some(bytes), ..Echo::default() }), 1 + NUMBER)
                }
                (protocol::GIVE | protocol::BOTH | protocol::CLOSE | protocol::RESET, None) => {
                    return Ok(Progress::Open);
                }
                _ => return Ok(Progress::Done),
            };
            self.state = state;
            let rest = &scratch[used - before..read];
            let bulk = matches!(self.state, State::Swallow { .. } | State::Give { .. } | State::Both { .. });
            return match self.take(rest, pattern)? {
                Progress::Open if bulk => Ok(Progress::Bulk),
                progress => Ok(progress),
            };
        }
        if event.is_readable() && self.interest().contains(Interest::IN) {
            match sockets::receive(&self.socket, scratch)? {
                Some(0) => {
                    if let Progress::Done = self.ended()? {
                        return Ok(Progress::Done);
                    }
                }
                Some(read) => {
                    if let Progress::Done = self.take(&scratch[..read], pattern)? {
                        return Ok(Progress::Done);
                    }
                }
                None => {}
            }
        }
        if event.is_writable() && self.interest().contains(Interest::OUT) {
            return self.write(pattern);
        }
        Ok(Progress::Open)
    }

    /// Takes what was read; of swallowed bytes only how many there are counts.
    fn take(&mut self, bytes: &[u8], pattern: &Pattern) -> io::Result<Progress> {
        if bytes.is_empty() {
            return Ok(Progress::Open);
        }
        match &mut self.state {
            State::Echo(echo) => {
                if let Some(left) = &mut echo.until_reset {
                    *left = left.saturating_sub(bytes.len() as u64);
                    if *left == 0 {
                        sockets::reset(&self.socket);
                        return Ok(Progress::Done);
                    }
                }
                let sent = sockets::send(&self.socket, bytes)?.unwrap_or(0);
                echo.pending.extend_from_slice(&bytes[sent..]);
            }
            State::Message { length, size } => {
                *length += bytes.len() as u64;
                if *length >= *size {
                    // A new connection has room for it.
                    sockets::send(&self.socket, pattern.from(0, *size))?;
                    return Ok(Progress::Done);
                }
            }
            State::Swallow { count } | State::Both { count, .. } => *count += bytes.len() as u64,
            State::Give { .. } => return Ok(Progress::Done),
            State::Command { .. } | State::Answer { .. } => unreachable!("nothing is read in these"),
        }
        Ok(Progress::Open)
    }

    /// The client has ended its side.
    fn ended(&mut self) -> io::Result<Progress> {
        match &mut self.state {
            State::Swallow { count } | State::Both { count, .. } => {
                self.state = State::Answer { number: count.to_be_bytes(), from: 0 };
                Ok(Progress::Open)
            }
            State::Echo(echo) if !echo.pending.is_empty() => {
                echo.ended = true;
                Ok(Progress::Open)
            }
            _ => Ok(Progress::Done),
        }
    }

    fn write(&mut self, pattern: &Pattern) -> io::Result<Progress> {
        match &mut self.state {
            State::Give { offset, end } | State::Both { offset, end, .. } => {
                *offset += sockets::send(&self.socket, pattern.from(*offset, *end - *offset))?.unwrap_or(0) as u64;
                if matches!(self.state, State::Give { offset, end } if offset == end) {
                    return Ok(Progress::Done);
                }
            }
            State::Echo(echo) => {
                echo.from += sockets::send(&self.socket, &echo.pending[echo.from..])?.unwrap_or(0);
                if echo.from == echo.pending.len() {
                    (echo.pending, echo.from) = (Vec::new(), 0);
                    if echo.ended {
                        return Ok(Progress::Done);
                    }
                }
            }
            State::Answer { number, from } => {
                *from += sockets::send(&self.socket, &number[*from..])?.unwrap_or(0);
                if *from == NUMBER {
                    return Ok(Progress::Done);
                }
            }
            State::Command { .. } | State::Message { .. } | State::Swallow { .. } => {}
        }
        Ok(Progress::Open)
    }
}
