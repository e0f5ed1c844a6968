//! Pipes through which bulk is spliced: few, each lent to a connection while bytes are in it.

use std::{
    os::fd::{BorrowedFd, OwnedFd},
    time::{Duration, Instant},
};

use rustix::{
    io::{Errno, retry_on_intr},
    pipe::{self, PipeFlags, SpliceFlags},
};

/// Pipes of all workers together. Their pages are half of what an unprivileged user may have by
/// `pipe-user-pages-soft`, and their descriptors half of those that are reserved.
const MAX_PIPES: usize = 128;
/// What a pipe holds, in bytes, where the machine allows it.
const PIPE_BYTES: usize = 256 * 1024;
/// With less, copying is cheaper.
const MIN_PIPE_BYTES: usize = 64 * 1024;
/// How long none are made when none is to be had.
const PAUSE: Duration = Duration::from_secs(1);

/// Nobody waits, neither for the pipe nor for the socket.
const FLAGS: SpliceFlags = SpliceFlags::NONBLOCK.union(SpliceFlags::MOVE);

/// One pipe. It is empty, or belongs to a connection.
#[derive(Debug)]
pub(super) struct Pipe {
    reader: OwnedFd,
    writer: OwnedFd,
    capacity: usize,
}

impl Pipe {
    fn new() -> rustix::io::Result<Self> {
        let (reader, writer) = pipe::pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)?;
        let capacity = match pipe::fcntl_setpipe_size(&writer, PIPE_BYTES) {
            Ok(capacity) => capacity.min(PIPE_BYTES),
            Err(error) => {
                Some(pipe::fcntl_getpipe_size(&writer)?).filter(|size| *size >= MIN_PIPE_BYTES).ok_or(error)?
            }
        };
        Ok(Self { reader, writer, capacity })
    }

    /// Takes from a socket what the empty pipe holds at most; 0 at its end.
    pub(super) fn fill(&self, socket: BorrowedFd<'_>) -> rustix::io::Result<usize> {
        retry_on_intr(|| pipe::splice(socket, None, &self.writer, None, self.capacity, FLAGS))
    }

    /// Hands a socket what it has room for, perhaps nothing.
    ///
    /// A splice may also come back short because of a signal, such as the one that lets a stopped process go on. Only one
    /// that moves nothing has found the socket full, and has the kernel tell when it is so no more. Nor does a splice that
    /// moved something tell of an error that it met: so this does not either, and whoever holds the rest finds it out.
    ///
    /// The kernel raises `SIGPIPE` for a socket that takes no more, which Rust's runtime ignores from the start.
    pub(super) fn drain(&self, socket: BorrowedFd<'_>, bytes: usize) -> rustix::io::Result<usize> {
        let mut sent = 0;
        while sent < bytes {
            match retry_on_intr(|| pipe::splice(&self.reader, None, socket, None, bytes - sent, FLAGS)) {
                Ok(more @ 1..) => sent += more,
                Err(error) if sent == 0 && error != Errno::AGAIN => return Err(error),
                _ => break,
            }
        }
        Ok(sent)
    }
}

/// The pipes of one worker.
#[derive(Debug)]
pub(super) struct Pipes {
    spare: Vec<Pipe>,
    /// How many more may be made.
    allowance: usize,
    /// When one may be made again, after that has failed.
    paused_until: Option<Instant>,
}

impl Pipes {
    /// The share of one of so many workers.
    pub(super) fn new(workers: usize) -> Self {
        let allowance = (MAX_PIPES / workers).max(1);
        Self { spare: Vec::with_capacity(allowance), allowance, paused_until: None }
    }

    /// An empty pipe, if there is one to be had.
    pub(super) fn take(&mut self, now: Instant) -> Option<Pipe> {
        if let Some(pipe) = self.spare.pop() {
            return Some(pipe);
        }
        if self.allowance == 0 || self.paused_until.is_some_and(|until| now < until) {
            return None;
        }
        let made = Pipe::new().ok();
        match made {
            Some(_) => self.allowance -= 1,
            None => self.paused_until = Some(now + PAUSE),
        }
        made
    }

    /// Takes a pipe back with so many bytes in it, which nobody will get: a new pipe is cheaper than to read them.
    pub(super) fn let_go(&mut self, pipe: Pipe, left: usize) {
        if left == 0 {
            self.spare.push(pipe);
        } else {
            self.allowance += 1;
        }
    }
}
