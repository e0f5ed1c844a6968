//! The HTTP listeners: bound before anything is served, so that a port in use is found at once.

use std::{
    collections::{BTreeSet, HashMap},
    net::{SocketAddr, TcpListener},
    os::fd::{AsFd as _, BorrowedFd, OwnedFd},
    sync::Arc,
};

use anyhow::Context as _;
use axum::Router;

use super::tasks::Tasks;
use crate::{
    config::{Config, TlsFiles},
    host::ServiceManager,
    http,
};

/// What they are called: their sections of the configuration.
pub(super) const NAMES: [&str; 3] = [BROKER, ANNOUNCE, ADMIN];
const BROKER: &str = "broker";
const ANNOUNCE: &str = "announce";
const ADMIN: &str = "admin";

/// All of them.
#[derive(Debug)]
pub(super) struct Apis {
    pub(super) broker: Api,
    pub(super) announce: Option<Api>,
    pub(super) admin: Api,
}

/// A bound listener of one API. It can be served, and after that has ended again: connections wait meanwhile. It is closed
/// when this is dropped and nobody serves it.
#[derive(Debug)]
pub(super) struct Api {
    /// One of [`NAMES`].
    name: &'static str,
    listener: TcpListener,
    address: SocketAddr,
    tls: Option<Arc<http::Tls>>,
}

impl Apis {
    /// Binds what the configuration asks for, or takes it from what an earlier process had, by name.
    pub(super) async fn bind(
        config: &Config,
        mut inherited: HashMap<String, OwnedFd>,
        manager: &ServiceManager,
    ) -> anyhow::Result<Self> {
        let mut bind = async |name, listen, tls| Api::bind(name, listen, tls, inherited.remove(name), manager).await;
        let announce = match &config.announce {
            Some(announce) => Some(bind(ANNOUNCE, announce.listen, announce.tls.as_ref()).await?),
            None => None,
        };
        Ok(Self {
            broker: bind(BROKER, config.broker.listen, config.broker.tls.as_ref()).await?,
            announce,
            admin: bind(ADMIN, config.admin.listen, None).await?,
        })
    }

    /// What they listen on, by name.
    pub(super) fn sockets(&self) -> Vec<(&'static str, BorrowedFd<'_>)> {
        self.each().map(|api| (api.name, api.listener.as_fd())).collect()
    }

    /// Where they listen: no backend may be there.
    pub(super) fn addresses(&self) -> BTreeSet<SocketAddr> {
        self.each().map(|api| api.address).collect()
    }

    /// Their certificates, to be read again on SIGHUP.
    pub(super) fn certificates(&self) -> Vec<Arc<http::Tls>> {
        self.each().filter_map(|api| api.tls.clone()).collect()
    }

    fn each(&self) -> impl Iterator<Item = &Api> {
        [Some(&self.broker), self.announce.as_ref(), Some(&self.admin)].into_iter().flatten()
    }
}

impl Api {
    async fn bind(
        name: &'static str,
        listen: SocketAddr,
        tls: Option<&TlsFiles>,
        inherited: Option<OwnedFd>,
        manager: &ServiceManager,
    ) -> anyhow::Result<Self> {
        let listener = match inherited.map(TcpListener::from).filter(|inherited| is_at(inherited, listen)) {
            Some(inherited) => inherited,
            None => {
                let bound = tokio::net::TcpListener::bind(listen).await.and_then(tokio::net::TcpListener::into_std);
                let bound =
                    bound.with_context(|| format!("cannot listen on {listen}: free it, or change {name}.listen"))?;
                manager.let_go(name);
                manager.keep(name, &[bound.as_fd()]);
                bound
            }
        };
        let tls = tls
            .map(|files| http::Tls::load(&files.certificate, &files.private_key, files.client_ca.as_deref()))
            .transpose()
            .with_context(|| format!("{name}.tls cannot be used"))?;
        Ok(Self { name, address: listener.local_addr()?, listener, tls })
    }

    /// Serves `router` as one of `tasks`.
    pub(super) fn serve(&self, router: Router, tasks: &mut Tasks) -> anyhow::Result<()> {
        let Self { name, listener, address, tls } = self;
        let listener = listener.try_clone().and_then(tokio::net::TcpListener::from_std);
        let listener = listener.with_context(|| format!("the {name} API cannot be served"))?;
        tracing::info!(api = name, %address, tls = tls.is_some(), "listening");
        let tls = tls.clone();
        tasks.spawn(name, |stop| http::serve(listener, tls, router, http::Limits::default(), stop));
        Ok(())
    }
}

/// Whether it is where the configuration wants it; port 0 is any.
fn is_at(listener: &TcpListener, wanted: SocketAddr) -> bool {
    listener
        .local_addr()
        .is_ok_and(|address| address.ip() == wanted.ip() && (address.port() == wanted.port() || wanted.port() == 0))
}
