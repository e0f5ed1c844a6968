//! From backends to clients: what sessions' sockets receive.

use std::io;

use rustix::io::Errno;

use super::{Udp, UdpPort, Upstream, outbox::MOST_AT_ONCE};
use crate::forwarder::{epoll::tools::Tools, slab::Key, sockets};

impl Upstream {
    /// The client has sent something, which the backend may answer.
    pub(super) fn asked(&mut self) {
        self.unasked = 0;
    }

    /// So many answers were there to read; whoever answers more than is asked is likely to have more next time.
    fn fed(&mut self, answers: usize) {
        let answers = u8::try_from(answers).unwrap_or(u8::MAX);
        let streams = self.unasked > 0 && answers == self.appetite;
        self.unasked = self.unasked.saturating_add(answers);
        self.appetite = if streams { (2 * self.appetite).min(MOST_AT_ONCE as u8) } else { answers.max(1) };
        if self.appetite > 1 && !self.joins {
            self.joins = true;
            sockets::join_received(&self.socket);
        }
    }
}

impl Udp {
    /// A backend has answered. One read: the kernel says again when there is more.
    pub(in crate::forwarder::epoll) fn receive_answers(&mut self, upstream: Key, tools: &mut Tools) {
        let Some((port, session)) = self.upstreams.get(upstream).copied() else { return };
        if !self.outbox.has_room() {
            self.finish_turn(tools);
        }
        let Some(UdpPort { sessions, sockets, .. }) = self.ports.get_mut(port) else { return };
        let Some((peer, upstream)) = sessions.get_mut(session) else { return };
        let read = if upstream.joins {
            self.outbox.read_many((port, session), peer, upstream, &sockets[0])
        } else {
            self.outbox.read_one((port, session), peer, upstream).map(|()| 1)
        };
        match read {
            Ok(answers) => {
                upstream.fed(answers);
                upstream.backend.worked();
                sessions.answered(session, tools.now);
            }
            Err(error) => self.not_answered(port, session, &error, tools),
        }
    }

    fn not_answered(&mut self, port: Key, session: Key, error: &io::Error, tools: &mut Tools) {
        // Any other is of a datagram that was lost on the way: the next may arrive.
        if Errno::from_io_error(error) == Some(Errno::CONNREFUSED) {
            self.lose_backend(port, session, tools);
        }
    }
}
