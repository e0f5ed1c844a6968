//! `[admin]`: the operators' API.

use std::{net::SocketAddr, path::PathBuf};

use super::{section::Section, value};

/// Where operators ask, and how they are known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Admin {
    /// Where it listens.
    pub listen: SocketAddr,
    /// Where the token is; absent: `admin.token` in the data directory, made once.
    pub token_file: Option<PathBuf>,
    /// Where a token is that shows metrics and nothing else.
    pub metrics_token_file: Option<PathBuf>,
    /// Whether metrics are shown without a token.
    pub metrics_public: bool,
    /// Whether `/metrics` has the series of each service instance too.
    pub metrics_instances: bool,
}

impl Admin {
    pub(super) fn read(mut section: Section<'_>) -> Self {
        let listen =
            section.get("listen", value::socket_address).unwrap_or_else(|| SocketAddr::from(([127, 0, 0, 1], 8081)));
        let token_file = section.get("token_file", value::path);
        let metrics_token_file = section.get("metrics_token_file", value::path);
        let metrics_public = section.get("metrics_public", value::flag);
        let metrics_instances = section.get("metrics_instances", value::flag).unwrap_or(false);
        let loopback = listen.ip().to_canonical().is_loopback();
        if !loopback && !section.has("token_file") {
            section.missing(
                "token_file",
                "an admin.listen beyond loopback wants a file with the token that operators use",
            );
        }
        section.finish();
        let metrics_public = metrics_public.unwrap_or(loopback);
        Self { listen, token_file, metrics_token_file, metrics_public, metrics_instances }
    }
}
