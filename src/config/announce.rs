//! `[announce]`: HTTP announcements. Without the section they are off.

use std::net::SocketAddr;

use super::{broker::TlsFiles, section::Section, value};

/// Where apps announce their instances.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Announce {
    /// Where it listens.
    pub listen: SocketAddr,
    /// Its base as apps see it, without a slash at its end; shown in credentials.
    pub public_url: String,
    /// TLS; may be missing on loopback only.
    pub tls: Option<TlsFiles>,
}

impl Announce {
    pub(super) fn read(mut section: Section<'_>) -> Option<Self> {
        let listen = section.get("listen", value::socket_address);
        let public_url = section.get("public_url", value::http_url);
        let tls = TlsFiles::read(&mut section, |_| None);
        if !section.has("listen") {
            section.missing("listen", "write for example listen = \"0.0.0.0:8082\", or leave [announce] out");
        }
        if !section.has("public_url") {
            section.missing("public_url", "write the URL by which apps reach announce.listen");
        }
        if let Some(listen) = listen
            && !listen.ip().to_canonical().is_loopback()
            && !section.has("tls")
        {
            section.missing("tls", "tokens may cross a network only with TLS; without it listen on 127.0.0.1");
        }
        section.finish();
        Some(Self { listen: listen?, public_url: public_url?, tls })
    }
}
