//! The HTTP listeners: bound before anything is served, so that a port in use is found at once.

use std::{collections::BTreeSet, net::SocketAddr, sync::Arc};

use anyhow::Context as _;
use axum::Router;
use tokio::net::TcpListener;

use super::tasks::Tasks;
use crate::{
    config::{Config, TlsFiles},
    http,
};

/// All of them.
#[derive(Debug)]
pub(super) struct Apis {
    pub(super) broker: Api,
    pub(super) announce: Option<Api>,
    pub(super) admin: Api,
}

/// A bound listener of one API, not serving yet.
#[derive(Debug)]
pub(super) struct Api {
    /// Its section of the configuration.
    name: &'static str,
    listener: TcpListener,
    address: SocketAddr,
    tls: Option<Arc<http::Tls>>,
}

impl Apis {
    /// Binds what the configuration asks for.
    pub(super) async fn bind(config: &Config) -> anyhow::Result<Self> {
        let announce = match &config.announce {
            Some(announce) => Some(Api::bind("announce", announce.listen, announce.tls.as_ref()).await?),
            None => None,
        };
        Ok(Self {
            broker: Api::bind("broker", config.broker.listen, config.broker.tls.as_ref()).await?,
            announce,
            admin: Api::bind("admin", config.admin.listen, None).await?,
        })
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
    async fn bind(name: &'static str, listen: SocketAddr, tls: Option<&TlsFiles>) -> anyhow::Result<Self> {
        let listener = TcpListener::bind(listen)
            .await
            .with_context(|| format!("cannot listen on {listen}: free it, or change {name}.listen"))?;
        let tls = tls
            .map(|files| http::Tls::load(&files.certificate, &files.private_key, files.client_ca.as_deref()))
            .transpose()
            .with_context(|| format!("{name}.tls cannot be used"))?;
        Ok(Self { name, address: listener.local_addr()?, listener, tls })
    }

    /// Serves `router` as one of `tasks`.
    pub(super) fn serve(self, router: Router, tasks: &mut Tasks) {
        let Self { name, listener, address, tls } = self;
        tracing::info!(api = name, %address, tls = tls.is_some(), "listening");
        tasks.spawn(name, |stop| http::serve(listener, tls, router, http::Limits::default(), stop));
    }
}
