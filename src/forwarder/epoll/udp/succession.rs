//! UDP from one process to the next: ports rest, sessions go out with their sockets and come in again.
//!
//! While a worker is held, datagrams wait in the kernel, at listeners and at sessions' sockets alike. So a session is
//! read by one process at any time, and its backend sees the same peer throughout.

use std::{
    collections::{HashMap, HashSet},
    os::fd::AsFd as _,
    sync::{Arc, Mutex},
};

use super::{Peer, Udp, UdpPort, Upstream};
use crate::{
    backends::Backend,
    forwarder::{
        engine::ExportedSession,
        epoll::tools::{Token, Tools},
        listener::OnBackend,
        sessions::Session,
        slab::Key,
    },
    model::{ServiceInstanceId, Transport},
    telemetry::metrics::SessionEnd,
};

/// Sessions of another process, each with its backend, until the workers whose they are have taken them out.
pub(in crate::forwarder::epoll) type Imports = HashMap<ServiceInstanceId, Vec<(ExportedSession, Arc<Backend>)>>;

impl Udp {
    /// Receives nothing for now, neither from clients nor from backends.
    pub(in crate::forwarder::epoll) fn hold(&mut self, tools: &mut Tools) {
        self.finish_turn(tools);
        for (_, port) in self.ports.iter() {
            port.sockets.iter().for_each(|socket| tools.unregister(&socket.descriptor));
            for key in port.sessions.keys() {
                let (_, upstream) = port.sessions.get(key).expect("just listed");
                tools.unregister(&upstream.socket);
            }
        }
    }

    /// Receives again, what has come meanwhile too.
    pub(in crate::forwarder::epoll) fn go_on(&mut self, tools: &mut Tools) {
        for port in self.ports.keys() {
            for session in self.sessions_of(port) {
                let upstream = self.ports.get(port).and_then(|port| port.sessions.get(session));
                let (_, upstream) = upstream.expect("only this loop ends sessions");
                if tools.receive_from(&upstream.socket, Token::Upstream(upstream.key)).is_err() {
                    self.end_session(port, session, SessionEnd::Displaced, tools);
                }
            }
            self.watch(port, tools);
            self.arm(port, tools);
        }
    }

    /// Lets go of all ports and sessions: another process has them.
    pub(in crate::forwarder::epoll) fn let_go(&mut self, tools: &mut Tools) {
        self.ports.keys().into_iter().for_each(|port| self.let_go_of(port, SessionEnd::HandedOver, tools));
        self.by_id.clear();
    }

    /// Copies of all sessions.
    pub(in crate::forwarder::epoll) fn export(&self) -> Vec<ExportedSession> {
        let sessions = self.ports.iter().flat_map(|(_, port)| {
            port.sessions.keys().into_iter().filter_map(|key| {
                let (peer, upstream) = port.sessions.get(key)?;
                Some(ExportedSession {
                    service_instance_id: port.listener.id.clone(),
                    client: peer.client,
                    local: peer.local,
                    address: peer.address,
                    backend: upstream.backend.endpoint.address,
                    upstream: upstream.socket.as_fd().try_clone_to_owned().ok()?,
                    joins: upstream.joins,
                    past: port.sessions.past(key)?,
                    to_backend: upstream.to_backend,
                    to_client: upstream.to_client,
                })
            })
        });
        sessions.collect()
    }

    /// Takes those sessions out whose clients are this worker's, and goes on with them.
    pub(in crate::forwarder::epoll) fn import(&mut self, imports: &Mutex<Imports>, tools: &mut Tools) {
        let mut own = Vec::new();
        for (id, sessions) in imports.lock().expect("nothing panics while it holds the sessions").iter_mut() {
            let Some(port) = self.by_id.get(id).copied() else { continue };
            let Some(entry) = self.ports.get(port) else { continue };
            let is_own = |peer| entry.share.as_ref().is_none_or(|share| share.elsewhere(peer).is_none());
            let taken = sessions.extract_if(.., |(session, _)| is_own(peer_of(session)));
            own.extend(taken.map(|(session, backend)| (port, session, backend)));
        }
        let ports = own.iter().map(|(port, ..)| *port).collect::<HashSet<_>>();
        for (port, session, backend) in own {
            self.take_over(port, session, backend, tools);
        }
        for port in ports {
            // They were on the way when a network was blocked.
            self.end_blocked(port, tools);
            self.arm(port, tools);
        }
    }

    fn take_over(&mut self, port: Key, session: ExportedSession, backend: Arc<Backend>, tools: &mut Tools) {
        let peer = peer_of(&session);
        let ExportedSession { upstream, joins, past, to_backend, to_client, .. } = session;
        let Some(UdpPort { listener, tally, sockets, sessions, .. }) = self.ports.get_mut(port) else { return };
        // What it came by may be gone: there are fewer addresses now.
        if sessions.find(&peer).is_some() || usize::from(peer.address) >= sockets.len() {
            return;
        }
        let (spec, limits) = (listener.spec(), tools.shared.limits.load());
        // There may be less room than there was.
        let Ok(permit) = tools.shared.admission.admit(&listener.usage, Transport::Udp, &spec, &limits) else { return };
        let key = self.upstreams.insert((port, Key { index: 0, generation: 0 }));
        let backend = OnBackend::new(backend);
        let drain_by = backend.drain_deadline();
        let upstream =
            Upstream { joins, to_backend, to_client, ..Upstream::new(upstream, backend, key, permit, past.opened_at) };
        let watched = tools.receive_from(&upstream.socket, Token::Upstream(key));
        let session = sessions.adopt(Session::new(peer, upstream, past));
        sessions.drain_by(session, drain_by);
        *self.upstreams.get_mut(key).expect("just put in") = (port, session);
        tools.tally.sessions_opened.one();
        tally.sessions_opened.one();
        if watched.is_err() {
            self.end_session(port, session, SessionEnd::Displaced, tools);
        }
    }
}

const fn peer_of(session: &ExportedSession) -> Peer {
    Peer { client: session.client, local: session.local, address: session.address }
}
