//! Credentials as JSON, under the original's names and the operator's.

use std::net::Ipv6Addr;

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::{Map, Value, json};

use crate::model::{Protocol, credentials::Credentials};

/// What stays as it is in a segment of a path.
const SEGMENT: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// The answer to a bind, and to the fetch of a binding.
pub(super) fn answer(credentials: &Credentials) -> Value {
    let endpoints = credentials.best_host().map(|host| {
        json!({ "host": host, "ports": [credentials.port.to_string()], "protocol": endpoint_protocol(credentials.protocol) })
    });
    json!({ "credentials": object(credentials), "endpoints": Vec::from_iter(endpoints) })
}

fn object(credentials: &Credentials) -> Map<String, Value> {
    let Credentials {
        name,
        node_id,
        protocol,
        port,
        int_port,
        host,
        hostname,
        host_external,
        hostname_external,
        announce,
    } = credentials;
    let text = |value: &Option<String>| value.as_deref().map(Value::from);
    let segment = utf8_percent_encode(name.as_str(), SEGMENT);
    let announce = announce.as_ref().map(|announce| {
        json!({
            "url": format!("{}/announce/v1/instances/{segment}", announce.public_url),
            "token": announce.token.expose(),
        })
    });
    let uri = credentials.best_host().map(|host| Value::from(format!("{protocol}://{}:{port}", in_uri(host))));
    let all = [
        ("name", Some(json!(name.as_str()))),
        ("node_id", Some(json!(node_id.as_str()))),
        ("protocol", Some(json!(protocol.as_str()))),
        ("port", Some(json!(port))),
        ("int_port", Some(json!(int_port))),
        ("host", text(host)),
        ("hostname", text(hostname)),
        ("host_external", text(host_external)),
        ("hostname_external", text(hostname_external)),
        // The original's names of the two above.
        ("ext_host", text(host_external)),
        ("ext_hostname", text(hostname_external)),
        ("uri", uri),
        ("announce", announce),
    ];
    all.into_iter().filter_map(|(key, value)| Some((key.to_owned(), value?))).collect()
}

/// A host as a URI has it: IPv6 addresses in brackets.
fn in_uri(host: &str) -> String {
    if host.parse::<Ipv6Addr>().is_ok() { format!("[{host}]") } else { host.into() }
}

/// The specification's word.
const fn endpoint_protocol(protocol: Protocol) -> &'static str {
    match protocol {
        Protocol::Tcp => "tcp",
        Protocol::Udp => "udp",
        Protocol::Both => "all",
    }
}
