//! What announcements look like: gorouter's message, and the object `harbor` that adds what gorouter has no word for.
//!
//! Unknown keys are ignored and `null` counts as absent, as in gorouter. Nothing is judged here but the form.

use serde::{Deserialize, Serialize};

/// Where backends are announced in Harbor's own form, unseen by gorouter.
pub const HARBOR_REGISTER: &str = "harbor.register";
/// Where they are withdrawn.
pub const HARBOR_UNREGISTER: &str = "harbor.unregister";
/// Where a node says that it wants to hear every announcement again.
pub const HARBOR_START: &str = "harbor.start";
/// Where an announcer asks for a [`Greeting`].
pub const HARBOR_GREET: &str = "harbor.greet";
/// Where nodes tell one another since when they know backends, see [`super::seniority`].
pub const HARBOR_SINCE: &str = "harbor.since";
/// Where the platform's route-emitters and registrars announce HTTP routes. Harbor only reads it.
pub const ROUTER_REGISTER: &str = "router.register";
/// Where they withdraw them. Harbor only reads it.
pub const ROUTER_UNREGISTER: &str = "router.unregister";
/// Where the platform's route-emitters announce internal routes: addresses of containers, without a port. Harbor only
/// reads it.
pub const SERVICE_DISCOVERY_REGISTER: &str = "service-discovery.register";
/// Where they withdraw them. Harbor only reads it.
pub const SERVICE_DISCOVERY_UNREGISTER: &str = "service-discovery.unregister";

/// Largest message that is looked into, in bytes; the platform's own have a few hundred.
pub const MAX_MESSAGE_BYTES: usize = 64 * 1024;

/// A register or an unregister.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Announcement {
    /// Names, `host[/path]`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub uris: Option<Vec<String>>,
    /// The backend's address.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub host: Option<String>,
    /// Its port. 0 on platforms that have only [`Announcement::tls_port`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
    /// Its port for TLS.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls_port: Option<u16>,
    /// The app's id.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub app: Option<String>,
    /// The app instance's id, or that of a registrar process.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub private_instance_id: Option<String>,
    /// How long the backend lives without being announced again; 0 or less: as long as Harbor lets it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stale_threshold_in_seconds: Option<i64>,
    /// When the app instance last changed, in nanoseconds since the epoch.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub endpoint_updated_at_ns: Option<i64>,
    /// Metric tags, of which two mean something here.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tags: Option<Tags>,
    /// What gorouter has no word for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub harbor: Option<Harbor>,
}

/// The tags that an unmodified route_registrar passes through.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Tags {
    /// A service instance's id.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub harbor_instance: Option<String>,
    /// `tcp`, `udp` or `both`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub harbor_protocol: Option<String>,
}

/// Harbor's own part of a message.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Harbor {
    /// A service instance's id.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub instance_id: Option<String>,
    /// `tcp`, `udp` or `both`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub protocol: Option<String>,
    /// The UDP port where it is not [`Announcement::port`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub udp_port: Option<u16>,
    /// `up` or `draining`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub state: Option<String>,
    /// When the backend was first announced, in microseconds since the epoch: its place among the primaries.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub since: Option<i64>,
    /// Whose token [`Harbor::proof`] was made with.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub binding_id: Option<String>,
    /// When it was made, in seconds since the epoch.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timestamp: Option<i64>,
    /// What shows that the sender holds the token, see [`crate::model::token`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub proof: Option<String>,
}

/// `harbor.start`, and the answer to `harbor.greet`: gorouter's own message.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Greeting {
    /// One run of one node.
    pub id: String,
    /// Its addresses.
    pub hosts: Vec<String>,
    /// How often to announce.
    #[serde(rename = "minimumRegisterIntervalInSeconds")]
    pub register_interval_seconds: u64,
    /// How long a backend lives without being announced again.
    #[serde(rename = "pruneThresholdInSeconds")]
    pub prune_threshold_seconds: u64,
}

/// Why bytes are no announcement.
#[derive(Debug, thiserror::Error)]
pub enum Malformed {
    /// Larger than [`MAX_MESSAGE_BYTES`].
    #[error("it has {0} bytes, more than {MAX_MESSAGE_BYTES}")]
    TooLarge(usize),
    /// Not JSON of this form.
    #[error(transparent)]
    Form(#[from] serde_json::Error),
}

/// Reads a message.
///
/// # Errors
/// [`Malformed`].
pub fn parse(bytes: &[u8]) -> Result<Announcement, Malformed> {
    if bytes.len() > MAX_MESSAGE_BYTES {
        return Err(Malformed::TooLarge(bytes.len()));
    }
    Ok(serde_json::from_slice(bytes)?)
}

impl Announcement {
    /// The message as bytes.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("it has neither maps nor floats")
    }

    /// Harbor's own part, empty when there is none.
    pub(super) fn harbor(&self) -> &Harbor {
        static NONE: Harbor = Harbor {
            instance_id: None,
            protocol: None,
            udp_port: None,
            state: None,
            since: None,
            binding_id: None,
            timestamp: None,
            proof: None,
        };
        self.harbor.as_ref().unwrap_or(&NONE)
    }

    /// `harbor.<field>`, else the tag; empty counts as absent.
    pub(super) fn harbor_or_tag(
        &self,
        field: impl Fn(&Harbor) -> Option<&String>,
        tag: impl Fn(&Tags) -> Option<&String>,
    ) -> Option<&str> {
        let filled = |text: &&String| !text.is_empty();
        let own = self.harbor.as_ref().and_then(field).filter(filled);
        own.or_else(|| self.tags.as_ref().and_then(tag).filter(filled)).map(String::as_str)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str, expect: Announcement) {
        assert_eq!(parse(text.as_bytes()).expect(text), expect, "{text}");
    }

    #[test]
    fn what_is_legal_on_the_wire_is_understood() {
        let base = || Announcement { host: Some("10.0.1.7".into()), port: Some(61012), ..Announcement::default() };
        check("{}", Announcement::default());
        check(r#"{"host":"10.0.1.7","port":61012}"#, base());
        check(r#"{"host":"10.0.1.7","port":61012,"tags":null,"uris":null,"app":null,"harbor":null}"#, base());
        check(
            r#"{"host":"10.0.1.7","port":61012,"private_instance_index":"0","protocol":"http2","dea":"x",
                "options":{"loadbalancing":"least-connection"},"allowed_sources":{"any":true}}"#,
            base(),
        );
        check(
            r#"{"uris":["a.example.com/path"],"host":"10.0.1.7","port":0,"tls_port":61014,"tags":{"component":"x"}}"#,
            Announcement {
                uris: Some(vec!["a.example.com/path".into()]),
                port: Some(0),
                tls_port: Some(61014),
                tags: Some(Tags::default()),
                ..base()
            },
        );
    }

    #[test]
    fn a_message_of_the_documented_form_survives_both_ways() {
        let text = r#"{"uris":["p35012.harbor.example.com"],"host":"10.0.1.7","port":61012,"tls_port":0,"app":"a","private_instance_id":"i","stale_threshold_in_seconds":120,"endpoint_updated_at_ns":1700000000000000000,"tags":{"harbor_instance":"s","harbor_protocol":"both"},"harbor":{"instance_id":"s","protocol":"tcp","udp_port":61013,"state":"up","binding_id":"b","timestamp":1700000000,"proof":"p"}}"#;
        assert_eq!(String::from_utf8(parse(text.as_bytes()).unwrap().to_bytes()).unwrap(), text);
    }

    #[test]
    fn what_is_of_another_form_is_malformed() {
        for text in [
            "",
            "null",
            "[]",
            "{",
            r#"{"port":65536}"#,
            r#"{"port":-1}"#,
            r#"{"port":"61012"}"#,
            r#"{"port":1.5}"#,
            r#"{"uris":"a"}"#,
            r#"{"uris":[null]}"#,
            r#"{"tags":[]}"#,
            r#"{"harbor":"x"}"#,
            r#"{"harbor":{"udp_port":65536}}"#,
            r#"{"endpoint_updated_at_ns":9223372036854775808}"#,
            r#"{"port":1,"port":2}"#,
            "{} {}",
        ] {
            assert!(matches!(parse(text.as_bytes()), Err(Malformed::Form(_))), "{text}");
        }
        let large = [b" ".repeat(MAX_MESSAGE_BYTES - 1), b"{}".to_vec()].concat();
        assert!(matches!(parse(&large), Err(Malformed::TooLarge(65537))));
        assert!(parse(&large[1..]).is_ok());
    }
}
