//! The sockets of ports: from an earlier process, or from the machine; kept by the service manager for the next one.

use std::{
    collections::{HashMap, HashSet},
    io,
    net::IpAddr,
    os::fd::{BorrowedFd, OwnedFd},
    sync::{Arc, Mutex, MutexGuard},
};

use crate::{
    forwarder::{Binder, InheritedSockets, PortSockets, Spread, SystemBinder},
    host::{self, ServiceManager},
    model::Transport,
};

/// The binder of a node.
#[derive(Debug)]
pub(super) struct Sockets {
    inherited: InheritedSockets,
    manager: Arc<ServiceManager>,
    /// What was bound here, until its port is open.
    fresh: Mutex<HashSet<(u16, Transport)>>,
}

impl Sockets {
    pub(super) fn new(inherited: PortSockets, manager: Arc<ServiceManager>) -> Self {
        Self { inherited: InheritedSockets::new(inherited), manager, fresh: Mutex::default() }
    }

    /// Closes what an earlier process had and this one does not want: every port has been tried.
    pub(super) fn close_rest(&self) {
        for (transport, address) in self.inherited.close_rest() {
            tracing::info!(%address, transport = transport.as_str(), "closed an inherited socket that nobody wants");
            self.manager.let_go(&name(address.port(), transport));
        }
    }

    fn fresh(&self) -> MutexGuard<'_, HashSet<(u16, Transport)>> {
        self.fresh.lock().expect("nothing panics while it holds the set")
    }
}

impl Binder for Sockets {
    fn bind(&self, address: IpAddr, port: u16, transport: Transport) -> io::Result<OwnedFd> {
        if let Some(inherited) = self.inherited.take(address, port, transport) {
            return Ok(inherited);
        }
        let bound = SystemBinder.bind(address, port, transport)?;
        self.fresh().insert((port, transport));
        Ok(bound)
    }

    fn bind_beside(&self, first: BorrowedFd<'_>) -> io::Result<OwnedFd> {
        self.inherited.bind_beside(first)
    }

    fn spread(&self, port: u16) -> Option<Spread> {
        self.inherited.spread(port)
    }

    fn opened(&self, port: u16, transport: Transport, sockets: &[BorrowedFd<'_>]) {
        // What was inherited is kept already.
        if self.fresh().remove(&(port, transport)) {
            self.manager.keep(&name(port, transport), sockets);
        }
    }

    fn closed(&self, port: u16, transport: Transport) {
        self.manager.let_go(&name(port, transport));
    }
}

/// Under which the service manager keeps the sockets of a port.
fn name(port: u16, transport: Transport) -> String {
    format!("{}-{port}", transport.as_str())
}

/// What the service manager has kept of an earlier process that died: sockets of APIs by name, and those of ports.
pub(super) fn kept(apis: &[&str]) -> (HashMap<String, OwnedFd>, PortSockets) {
    let (of_apis, of_ports) =
        host::kept_sockets().into_iter().partition::<Vec<_>, _>(|(name, _)| apis.contains(&name.as_str()));
    let sockets = of_ports.into_iter().map(|(_, socket)| socket).collect();
    (of_apis.into_iter().collect(), PortSockets { sockets, spreads: Vec::new() })
}
