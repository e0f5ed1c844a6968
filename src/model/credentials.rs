//! Credentials: what a binding tells its app or key.

use super::{
    binding::Binding,
    pool::Pool,
    service_instance::ServiceInstance,
    token::{AnnounceSecret, Token},
    {NodeId, Protocol, ServiceInstanceId},
};

/// The values of the credentials object and of `endpoints`; the broker writes them as JSON.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Credentials {
    /// The service instance's id, as in the original.
    pub name: ServiceInstanceId,
    /// The node that provisioned.
    pub node_id: NodeId,
    /// What the port carries.
    pub protocol: Protocol,
    /// The port.
    pub port: u16,
    /// What the app is to listen on.
    pub int_port: u16,
    /// Internal address; stands in for the name where that is not configured, and the other way round.
    pub host: Option<String>,
    /// Internal name.
    pub hostname: Option<String>,
    /// Public address, when configured.
    pub host_external: Option<String>,
    /// Public name, when configured.
    pub hostname_external: Option<String>,
    /// Where and with what to announce backends.
    pub announce: Option<AnnounceCredentials>,
}

/// Where a holder announces its backends, and the token it shows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AnnounceCredentials {
    /// Base of the announce listener as clients see it, without a slash at its end.
    pub public_url: String,
    /// The binding's token.
    pub token: Token,
}

impl Credentials {
    /// The credentials of `binding`. `public_url` is that of the announce listener, where there is one.
    #[must_use]
    pub fn of(
        instance: &ServiceInstance,
        pool: &Pool,
        binding: &Binding,
        public_url: Option<&str>,
        secret: &AnnounceSecret,
    ) -> Self {
        let names = &pool.names;
        Self {
            name: instance.id.clone(),
            node_id: instance.node_id.clone(),
            protocol: instance.protocol,
            port: instance.port,
            int_port: instance.settings.int_port.unwrap_or(pool.int_port),
            host: names.host.clone().or_else(|| names.hostname.clone()),
            hostname: names.hostname.clone().or_else(|| names.host.clone()),
            host_external: names.host_external.clone(),
            hostname_external: names.hostname_external.clone(),
            announce: public_url.filter(|_| binding.announce).map(|url| AnnounceCredentials {
                public_url: url.trim_end_matches('/').into(),
                token: secret.token(&binding.id),
            }),
        }
    }

    /// The best name a client can reach: public before internal, a name before an address.
    #[must_use]
    pub fn best_host(&self) -> Option<&str> {
        [&self.hostname_external, &self.host_external, &self.hostname, &self.host]
            .into_iter()
            .find_map(|name| name.as_deref())
    }
}
