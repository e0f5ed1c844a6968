//! One connection's life.

use std::{
    io,
    net::{Shutdown, SocketAddr, TcpStream},
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail, ensure};

use crate::traffic::{
    events::{Event, Interest},
    protocol::{self, Pattern},
    sockets,
};

/// Bytes that chatty and bulk connections send at most, and a chatty one's message.
const CHATTY_BYTES: u64 = 16 * 1024;
const BULK_BYTES: u64 = 4 << 20;
const MESSAGE_BYTES: u64 = 2048;
/// The longest pause, and how long nothing may happen that is no pause.
const LONGEST_PAUSE: Duration = Duration::from_millis(200);
const STALLED_AFTER: Duration = Duration::from_secs(10);

/// What is to happen on a connection.
#[derive(Debug, Clone, Copy)]
pub struct Plan {
    /// Where in the pattern its bytes begin.
    base: u64,
    total: u64,
    chatty: bool,
    end: End,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    /// This side ends, the rest of the echo comes, then the end.
    HalfClose,
    /// This side resets once so many bytes have come back.
    ResetByClient(u64),
    /// The backend resets once so many bytes have come to it.
    ResetByBackend(u64),
}

impl Plan {
    pub fn random(random: &mut fastrand::Rng) -> Self {
        let chatty = random.u8(0..10) < 7;
        let total = random.u64(1..=if chatty { CHATTY_BYTES } else { BULK_BYTES });
        let end = match random.u8(0..200) {
            0 => End::ResetByClient(random.u64(0..total)),
            1 => End::ResetByBackend(random.u64(1..=total)),
            _ => End::HalfClose,
        };
        Self { base: random.u64(0..1 << 32), total, chatty, end }
    }
}

pub struct Life {
    stream: TcpStream,
    plan: Plan,
    /// What is left of the command.
    command: Vec<u8>,
    sent: u64,
    received: u64,
    /// Bytes that may be sent before the next pause.
    allowed: u64,
    pause_until: Option<Instant>,
    ended: bool,
    was_reset: bool,
    last_progress: Instant,
}

impl Life {
    pub fn begin(target: SocketAddr, plan: Plan, now: Instant) -> io::Result<Self> {
        let command = match plan.end {
            End::ResetByBackend(after) => protocol::command(protocol::RESET, after).to_vec(),
            End::HalfClose | End::ResetByClient(_) => vec![protocol::ECHO],
        };
        Ok(Self {
            stream: sockets::begin_connect(target)?,
            plan,
            command,
            sent: 0,
            received: 0,
            allowed: if plan.chatty { plan.total.min(MESSAGE_BYTES) } else { plan.total },
            pause_until: None,
            ended: false,
            was_reset: false,
            last_progress: now,
        })
    }

    pub fn stream(&self) -> &TcpStream {
        &self.stream
    }

    pub fn received(&self) -> u64 {
        self.received
    }

    /// Whether it was reset, as planned.
    pub fn was_reset(&self) -> bool {
        self.was_reset
    }

    pub fn describe(&self) -> String {
        format!("{:?}, {} bytes sent, {} received", self.plan, self.sent, self.received)
    }

    pub fn interest(&self) -> Interest {
        if self.sent < self.allowed || !self.command.is_empty() { Interest::IN | Interest::OUT } else { Interest::IN }
    }

    /// Reads once and writes once. Returns whether it is over, as planned.
    pub fn ready(
        &mut self,
        event: Event,
        pattern: &Pattern,
        scratch: &mut [u8],
        random: &mut fastrand::Rng,
        now: Instant,
    ) -> anyhow::Result<bool> {
        let over = self.read(event, pattern, scratch).and_then(|over| {
            if !over && event.is_writable() {
                self.write(pattern)?;
            }
            Ok(over)
        });
        self.last_progress = now;
        match over {
            Ok(true) => return Ok(true),
            Ok(false) => {}
            // How a proxy passes a reset on is its own affair, wrong bytes are not.
            Err(error) if self.expects_reset() && error.is::<io::Error>() => {
                self.was_reset = true;
                return Ok(true);
            }
            Err(error) => return Err(error),
        }
        if let End::ResetByClient(after) = self.plan.end
            && self.received >= after
        {
            sockets::reset(&self.stream);
            self.was_reset = true;
            return Ok(true);
        }
        if self.received == self.allowed && self.allowed < self.plan.total && self.pause_until.is_none() {
            self.pause_until = Some(now + LONGEST_PAUSE.mul_f64(random.f64()));
        }
        if self.sent == self.plan.total && !self.ended && self.plan.end == End::HalfClose {
            self.ended = true;
            self.stream.shutdown(Shutdown::Write).context("it cannot be ended")?;
        }
        Ok(false)
    }

    /// Ends a pause that is over, and a life in which nothing happens.
    pub fn look(&mut self, random: &mut fastrand::Rng, now: Instant) -> anyhow::Result<bool> {
        if self.pause_until.is_some_and(|until| until <= now) {
            self.pause_until = None;
            self.allowed = (self.allowed + random.u64(1..=MESSAGE_BYTES)).min(self.plan.total);
            self.last_progress = now;
        }
        ensure!(now - self.last_progress < STALLED_AFTER, "nothing has happened for {STALLED_AFTER:?}");
        Ok(false)
    }

    fn expects_reset(&self) -> bool {
        matches!(self.plan.end, End::ResetByBackend(after) if self.sent >= after)
    }

    fn read(&mut self, event: Event, pattern: &Pattern, scratch: &mut [u8]) -> anyhow::Result<bool> {
        if !event.is_readable() {
            return Ok(false);
        }
        let Some(read) = sockets::receive(&self.stream, scratch)? else { return Ok(false) };
        if read == 0 {
            if self.received == self.plan.total && self.ended {
                return Ok(true);
            }
            return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
        }
        if !pattern.matches(self.plan.base + self.received, &scratch[..read]) {
            bail!("what came back is not what was sent");
        }
        self.received += read as u64;
        ensure!(self.received <= self.sent, "more came back than was sent");
        Ok(false)
    }

    fn write(&mut self, pattern: &Pattern) -> anyhow::Result<()> {
        if !self.command.is_empty() {
            let sent = sockets::send(&self.stream, &self.command)?.unwrap_or(0);
            self.command.drain(..sent);
        } else if self.sent < self.allowed {
            let chunk = pattern.from(self.plan.base + self.sent, self.allowed - self.sent);
            self.sent += sockets::send(&self.stream, chunk)?.unwrap_or(0) as u64;
        }
        Ok(())
    }
}
