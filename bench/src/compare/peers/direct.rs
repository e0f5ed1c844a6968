//! No proxy: what the load and its backend can do.

use std::net::SocketAddr;

use super::{Peer, Process, Site};

#[derive(Debug)]
pub struct Direct;

impl Peer for Direct {
    fn name(&self) -> &'static str {
        "direct"
    }

    fn version(&self) -> anyhow::Result<String> {
        Ok("no proxy".into())
    }

    fn start(&self, _: &Site) -> anyhow::Result<Option<Process>> {
        Ok(None)
    }

    fn target(&self, site: &Site) -> SocketAddr {
        site.backend
    }
}
