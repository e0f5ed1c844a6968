//! The seam between what should be served and what serves it.
//!
//! The reconciler binds ports and tells an [`Engine`] what to serve; the engine carries the traffic on its own threads,
//! or none. It reads settings and backends from the [`Listener`], counts in [`Tally`]s, and hands out a
//! [`ClosingRecord`] for each flow that ends. An engine on another interface of the kernel, or inside it, stands beside
//! `epoll` by implementing this trait.
//!
//! [`Tally`]: crate::telemetry::metrics::Tally

use std::{
    net::{IpAddr, SocketAddr},
    os::fd::OwnedFd,
    sync::Arc,
    time::{Duration, Instant},
};

use super::{
    listener::Listener,
    sessions::Past,
    sockets::{DatagramSocket, Spread},
};
use crate::{
    backends::Backend,
    model::{PoolName, ServiceInstanceId, Transport},
    telemetry::metrics::{ConnectionEnd, SessionEnd, Words as _},
};

/// Carries traffic. All calls but those that say so return before they have taken effect; they take effect in order, and
/// when [`Engine::settle`] is called at the latest.
pub(super) trait Engine: Send + Sync {
    /// Serves a listener's sockets of one transport, one for each address.
    fn open(&self, listener: &Arc<Listener>, sockets: Sockets);

    /// Over how many sockets for each address it can spread a UDP port.
    fn spreads_over(&self) -> usize;

    /// Serves more sockets of a UDP port: sets of one for each address, in the order in which they were bound beside
    /// the first. No flow is disturbed. To be settled twice before anything else is asked for.
    fn spread(&self, listener: &Arc<Listener>, more: Vec<Arc<[DatagramSocket]>>, spread: Spread);

    /// Lets go of a listener's sockets of one transport and ends its flows.
    fn close(&self, id: &ServiceInstanceId, transport: Transport, why: Closing);

    /// Takes changed settings over to open flows, and ends those whose clients are blocked by now: of one listener, or of all.
    fn refresh(&self, id: Option<&ServiceInstanceId>);

    /// Lets go of listening TCP sockets and begins no UDP sessions; open flows go on.
    fn close_listeners(&self);

    /// Begins UDP sessions again. TCP sockets to listen on come by [`Engine::open`].
    fn reopen_listeners(&self);

    /// Ends all flows, as those are that a drain does not wait for any longer.
    fn end_flows(&self);

    /// Makes everything that was asked for before take effect, and returns when it has.
    fn settle(&self);

    /// Accepts and receives nothing from now on; it waits in the kernel. Open connections go on, sessions rest.
    fn hold(&self);

    /// Goes on after [`Engine::hold`].
    fn go_on(&self);

    /// Lets go of UDP sockets, and of the sessions on them, which another process has.
    fn let_go_of_udp(&self);

    /// Copies of all UDP sessions, with the descriptors of their sockets. Waits for them.
    fn export_sessions(&self) -> Vec<ExportedSession>;

    /// Goes on with sessions of another process, each with its backend. Those whose listener or room is not there end.
    fn import_sessions(&self, sessions: Vec<(ExportedSession, Arc<Backend>)>);

    /// Whether it has ended by itself, which only a bug makes it do.
    fn has_failed(&self) -> bool;

    /// Ends all flows and waits for what it runs. Doing it again does nothing. Returns whether it ended well.
    fn stop(&self) -> bool;
}

/// Why a listener closes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Closing {
    /// It is wanted no more.
    Removed,
    /// It is to carry nothing for now.
    Suspended,
}

/// A listener's bound sockets of one transport. Whoever bound them keeps a handle too.
#[derive(Clone)]
pub(super) enum Sockets {
    /// They listen.
    Tcp(Arc<[OwnedFd]>),
    /// They receive.
    Udp(Arc<[DatagramSocket]>),
}

/// A session as a successor of this process could take it over.
#[derive(Debug)]
pub struct ExportedSession {
    /// Whose listener it is of.
    pub service_instance_id: ServiceInstanceId,
    /// The client.
    pub client: SocketAddr,
    /// The address that the client sends to, where the kernel says.
    pub local: Option<IpAddr>,
    /// Which of the addresses that the node listens on that is.
    pub address: u8,
    /// Where its datagrams go.
    pub backend: SocketAddr,
    /// A copy of the descriptor of the socket that is connected to the backend.
    pub upstream: OwnedFd,
    /// Whether the kernel joins what that socket receives.
    pub joins: bool,
    /// What it has been through.
    pub past: Past,
    /// Carried so far, to the backend.
    pub to_backend: Carried,
    /// Carried so far, to the client.
    pub to_client: Carried,
}

/// What a session has carried in one direction.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Carried {
    /// Bytes of payload.
    pub bytes: u64,
    /// Datagrams.
    pub datagrams: u64,
}

impl Carried {
    pub(super) fn add(&mut self, datagrams: usize, bytes: usize) {
        self.bytes += bytes as u64;
        self.datagrams += datagrams as u64;
    }

    pub(super) fn take_back(&mut self, datagrams: usize, bytes: usize) {
        self.bytes -= bytes as u64;
        self.datagrams -= datagrams as u64;
    }
}

/// What there is to say of a flow when it ends.
#[derive(Debug, Clone, Copy)]
pub struct ClosingRecord<'a> {
    /// Whose listener it came in by.
    pub service_instance_id: &'a ServiceInstanceId,
    /// Of which pool its port is.
    pub pool: &'a PoolName,
    /// The port.
    pub port: u16,
    /// The client, or who a believed balancer says it is. IPv4 is IPv4, on a dual-stack socket too.
    pub client: SocketAddr,
    /// Where it went, if anywhere.
    pub backend: Option<SocketAddr>,
    /// From the accept, or the first datagram, to the end.
    pub lasted: Duration,
    /// Bytes carried from the client to the backend.
    pub to_backend: u64,
    /// Bytes carried from the backend to the client.
    pub to_client: u64,
    /// Of a session: datagrams carried to the backend, and to the client.
    pub datagrams: Option<[u64; 2]>,
    /// Why it ended.
    pub end: FlowEnd,
    /// When it ended.
    pub at: Instant,
}

/// IPv4 as IPv4, on a dual-stack socket too.
pub(super) fn canonical(client: SocketAddr) -> SocketAddr {
    SocketAddr::new(client.ip().to_canonical(), client.port())
}

/// Why a flow ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FlowEnd {
    /// Of a TCP connection.
    Connection(ConnectionEnd),
    /// Of a UDP session.
    Session(SessionEnd),
}

impl FlowEnd {
    /// The transport of the flow.
    #[must_use]
    pub const fn transport(self) -> Transport {
        match self {
            Self::Connection(_) => Transport::Tcp,
            Self::Session(_) => Transport::Udp,
        }
    }

    /// The word used in metrics and logs.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Connection(end) => end.as_str(),
            Self::Session(end) => end.as_str(),
        }
    }
}

/// Is told of each flow that ends, by the thread that carried it: it must not wait for anything.
pub type OnClose = dyn Fn(&ClosingRecord<'_>) + Send + Sync;
