//! Announcements at their full length, as route-emitters and Harbor's own announcers publish them. The benchmark of
//! ingest (`bench/ingest.rs`) reads this file too.

use std::{fmt, net::Ipv4Addr};

/// An app instance with a route, as a cell's route-emitter knows it.
#[derive(Debug, Clone, Copy)]
pub struct Route<'a> {
    pub host: Ipv4Addr,
    pub port: u16,
    /// Of the sidecar that ends TLS; 0: there is none.
    pub tls_port: u16,
    pub uri: &'a str,
    pub app: &'a str,
    pub app_instance: Guid,
}

/// An id of the platform's: what kind of thing, and which.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Guid(pub u32, pub u64);

impl fmt::Display for Guid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:08x}-5eed-4000-8000-{:012x}", self.0, self.1)
    }
}

impl Route<'_> {
    /// `router.register` of a route-emitter: some 900 bytes, most of it the tags that the Cloud Controller has it pass on.
    pub fn router_register(&self) -> String {
        let Self { host, port, tls_port, uri, app, app_instance } = self;
        format!(
            r#"{{"host":"{host}","port":{port},"tls_port":{tls_port},"uris":["{uri}"],"app":"{app}","private_instance_id":"{app_instance}","private_instance_index":"0","server_cert_domain_san":"{app_instance}","endpoint_updated_at_ns":1700000000000000000,"availability_zone":"z1","tags":{{"component":"route-emitter","source_id":"{app}","process_id":"{app}","process_type":"web","process_instance_id":"{app_instance}","instance_id":"0","app_id":"{app}","app_name":"an-app-of-somebody","space_id":"b5f1c9a7-2d60-4f7e-9a53-0e4c1d8a7f36","space_name":"production","organization_id":"1e8f6d34-7c2b-4a95-8f0d-93b6a2c5e471","organization_name":"an-organization-of-somebody"}},"options":{{"loadbalancing":"least-connection"}}}}"#
        )
    }

    /// `service-discovery.register` of the same: the address of a container, without a port.
    pub fn service_discovery_register(&self) -> String {
        let Self { host, uri, app, .. } = self;
        format!(
            r#"{{"uris":["{uri}","0.{uri}"],"host":"{host}","port":0,"app":"{app}","tags":{{"component":"route-emitter"}},"private_instance_index":"0","endpoint_updated_at_ns":1700000000000000000}}"#
        )
    }

    /// `harbor.register` of the same, for this service instance.
    pub fn harbor_register(&self, service_instance: &str) -> String {
        let Self { host, port, app, .. } = self;
        format!(r#"{{"host":"{host}","port":{port},"app":"{app}","harbor":{{"instance_id":"{service_instance}"}}}}"#)
    }
}

#[cfg(test)]
mod tests {
    use harbor::discovery::wire;

    use super::*;

    #[test]
    fn harbor_reads_what_they_say() {
        let route = Route {
            host: Ipv4Addr::new(10, 0, 1, 7),
            port: 61_012,
            tls_port: 61_013,
            uri: "p35012.harbor.example.com",
            app: "00000001-5eed-4000-8000-000000000002",
            app_instance: Guid(3, 4),
        };
        for (text, port) in [
            (route.router_register(), Some(61_012)),
            (route.service_discovery_register(), Some(0)),
            (route.harbor_register("one"), Some(61_012)),
        ] {
            let read = wire::parse(text.as_bytes()).expect("it is of the documented form");
            let app = Some("00000001-5eed-4000-8000-000000000002");
            assert_eq!((read.host.as_deref(), read.port, read.app.as_deref()), (Some("10.0.1.7"), port, app));
        }
        let length = route.router_register().len();
        assert!((850..1000).contains(&length), "{length} bytes");
    }
}
