//! One UDP session: datagrams of any size that are echoed, one at a time.

use std::{
    net::{SocketAddr, UdpSocket},
    time::{Duration, Instant},
};

use anyhow::ensure;

use super::Tally;
use crate::traffic::{
    events::{Interest, Poll},
    protocol::{self, Pattern},
    sockets,
};

const MOST_EXCHANGES: u32 = 100;
const LARGEST_DATAGRAM: u64 = 8000;
/// Sizes that fit into a packet come more often.
const COMMON_DATAGRAM: u64 = 1400;
const LOST_AFTER: Duration = Duration::from_millis(500);

pub struct Session {
    socket: UdpSocket,
    exchanges_left: u32,
    /// The datagram on its way: where in the pattern it begins, and its size.
    waits_for: Option<(u64, u64, Instant)>,
}

impl Session {
    pub fn begin(target: SocketAddr, poll: &Poll, token: usize, random: &mut fastrand::Rng) -> anyhow::Result<Self> {
        let socket = sockets::flow(target)?;
        poll.add(&socket, token as u64, Interest::IN)?;
        Ok(Self { socket, exchanges_left: random.u32(1..=MOST_EXCHANGES), waits_for: None })
    }

    /// Takes what came back. An answer of before the last loss is left out.
    pub fn receive(&mut self, pattern: &Pattern, scratch: &mut [u8], tally: &mut Tally) -> anyhow::Result<()> {
        // An error tells of a datagram that is lost, which is found later.
        let Ok(Some(length)) = sockets::receive(&self.socket, scratch) else { return Ok(()) };
        let Some((base, size, _)) = self.waits_for else { return Ok(()) };
        let same = length as u64 == size
            && scratch.first() == Some(&protocol::ECHO)
            && pattern.matches(base + 1, &scratch[1..length]);
        if same {
            self.waits_for = None;
            tally.exchanges += 1;
        }
        ensure!(same || tally.lost > 0, "a datagram of {size} bytes came back as another of {length}");
        Ok(())
    }

    /// Sends the next datagram when nothing is on its way. Returns whether the session has had its time.
    pub fn look(&mut self, pattern: &Pattern, random: &mut fastrand::Rng, tally: &mut Tally, now: Instant) -> bool {
        match self.waits_for {
            Some((.., since)) if now - since < LOST_AFTER => return false,
            Some(_) => tally.lost += 1,
            None => {}
        }
        self.waits_for = None;
        if self.exchanges_left == 0 {
            return true;
        }
        self.exchanges_left -= 1;
        let base = random.u64(0..1 << 32);
        let largest = if random.u8(0..10) == 0 { LARGEST_DATAGRAM } else { COMMON_DATAGRAM };
        let size = random.u64(1..=largest);
        let mut datagram = pattern.from(base, size).to_vec();
        datagram[0] = protocol::ECHO;
        // What cannot be sent is found missing later.
        let _ = sockets::send(&self.socket, &datagram);
        self.waits_for = Some((base, size, now));
        false
    }
}
