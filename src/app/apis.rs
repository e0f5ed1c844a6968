//! The HTTP listeners: bound before anything else is started, so that a port in use is found at once.

use std::{net::SocketAddr, sync::Arc};

use anyhow::Context as _;
use axum::Router;
use tokio::net::TcpListener;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{config::TlsFiles, http};

/// A bound listener of one API, not serving yet.
#[derive(Debug)]
pub(super) struct Api {
    /// The section of the configuration: `broker`, `announce` or `admin`.
    name: &'static str,
    listener: TcpListener,
    tls: Option<Arc<http::Tls>>,
}

impl Api {
    /// Binds the address and reads the certificate.
    pub(super) async fn bind(
        name: &'static str,
        listen: SocketAddr,
        tls: Option<&TlsFiles>,
    ) -> anyhow::Result<Self> {
        let listener = TcpListener::bind(listen)
            .await
            .with_context(|| format!("cannot listen on {listen}: free it, or change {name}.listen"))?;
        let tls = tls
            .map(|files| http::Tls::load(&files.certificate, &files.private_key, files.client_ca.as_deref()))
            .transpose()
            .with_context(|| format!("{name}.tls cannot be used"))?;
        Ok(Self { name, listener, tls })
    }

    /// Where it listens.
    pub(super) fn address(&self) -> anyhow::Result<SocketAddr> {
        Ok(self.listener.local_addr()?)
    }

    /// Its certificate, to be read again on SIGHUP.
    pub(super) fn tls(&self) -> Option<Arc<http::Tls>> {
        self.tls.clone()
    }

    /// Serves `router` as one of `tasks` until `shutdown`.
    pub(super) fn serve(self, router: Router, tasks: &TaskTracker, shutdown: CancellationToken) -> anyhow::Result<()> {
        let (api, address, tls) = (self.name, self.address()?, self.tls.is_some());
        tasks.spawn(http::serve(self.listener, self.tls, router, http::Limits::default(), shutdown));
        tracing::info!(api, %address, tls, "listening");
        Ok(())
    }
}
