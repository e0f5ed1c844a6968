//! What the platform tells an app of its bound services.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};

use serde::Deserialize;
use serde_json::Value;

use crate::model::{Protocol, token::Token};

/// The label of Harbor's service in `VCAP_SERVICES`.
const LABEL: &str = "harbor";

/// A binding to a service instance.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Service {
    /// Its name, as its user chose it.
    pub name: String,
    /// Its id.
    pub id: String,
    /// The binding's id; older platforms do not tell it.
    pub binding_id: Option<String>,
    /// What the app serves.
    pub protocol: Protocol,
    /// What the app listens on.
    pub int_port: u16,
    /// Where and by what token it may announce; none where Harbor takes no announcements over HTTP.
    pub announce: Option<AnnounceAt>,
}

/// Where a binding's holder announces.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AnnounceAt {
    /// The URL of the service instance.
    pub url: String,
    /// The binding's token.
    pub token: Token,
}

/// Why `VCAP_SERVICES` tells nothing.
#[derive(Debug, thiserror::Error)]
pub enum VcapError {
    /// It is not JSON, or not an object of lists.
    #[error("VCAP_SERVICES is not what Cloud Foundry writes there: {0}")]
    Form(serde_json::Error),
    /// One of Harbor's has credentials of another form.
    #[error("VCAP_SERVICES has a service of Harbor whose credentials are not Harbor's ({0}): bind it anew")]
    Credentials(serde_json::Error),
}

#[derive(Deserialize)]
struct Entry {
    name: Option<String>,
    instance_name: Option<String>,
    binding_guid: Option<String>,
    credentials: Credentials,
}

#[derive(Deserialize)]
struct Credentials {
    name: String,
    protocol: String,
    int_port: u16,
    announce: Option<Announce>,
}

#[derive(Deserialize)]
struct Announce {
    url: String,
    token: String,
}

/// The bindings to service instances of Harbor, in the order of their names.
///
/// # Errors
/// [`VcapError`].
pub fn services(vcap_services: &str) -> Result<Vec<Service>, VcapError> {
    let mut all: BTreeMap<String, Vec<Value>> = serde_json::from_str(vcap_services).map_err(VcapError::Form)?;
    let entries = all.remove(LABEL).unwrap_or_default().into_iter().map(read);
    let mut services = entries.collect::<Result<Vec<_>, _>>().map_err(VcapError::Credentials)?;
    services.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(services)
}

fn read(entry: Value) -> Result<Service, serde_json::Error> {
    let Entry { name, instance_name, binding_guid, credentials } = Entry::deserialize(entry)?;
    let protocol = credentials.protocol.parse().map_err(|_| serde::de::Error::custom("an unknown protocol"))?;
    if credentials.announce.as_ref().is_some_and(|announce| announce.token.trim().is_empty()) {
        return Err(serde::de::Error::custom("an empty token"));
    }
    Ok(Service {
        name: instance_name.or(name).unwrap_or_else(|| credentials.name.clone()),
        id: credentials.name,
        binding_id: binding_guid,
        protocol,
        int_port: credentials.int_port,
        announce: credentials
            .announce
            .map(|announce| AnnounceAt { url: announce.url, token: Token::presented(announce.token) }),
    })
}

/// One binding to each service instance: an app may have several to one, and any of them speaks for all. The first with
/// a token, which those have not that were made before Harbor took announcements; else the first.
#[must_use]
pub fn once_each(bindings: Vec<Service>) -> Vec<Service> {
    let (able, unable): (Vec<_>, Vec<_>) = bindings.into_iter().partition(|binding| binding.announce.is_some());
    let mut seen = BTreeSet::new();
    let mut services = [able, unable].concat();
    services.retain(|service| seen.insert(service.id.clone()));
    services.sort_by(|a, b| a.name.cmp(&b.name));
    services
}

/// A variable of Stackato's: what the app listens on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Variable {
    /// `STACKATO_HARBOR`, or `STACKATO_HARBOR_<NAME>`.
    pub name: String,
    /// The port.
    pub port: u16,
}

/// A variable that would say two ports, so that there is none.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{name} is not set, as it would stand for each of {}: rename one", services.join(", "))]
pub struct Ambiguous {
    name: String,
    services: Vec<String>,
}

impl fmt::Display for Variable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "export {}={}", self.name, self.port)
    }
}

/// The variables that Stackato set: `STACKATO_HARBOR` where one service instance is bound, else one for each, by its name
/// in capitals.
#[must_use]
pub fn variables(services: &[Service]) -> Vec<Result<Variable, Ambiguous>> {
    if let [only] = services {
        return vec![Ok(Variable { name: "STACKATO_HARBOR".into(), port: only.int_port })];
    }
    let mut by_name = BTreeMap::<_, Vec<&Service>>::new();
    for service in services {
        by_name.entry(named(&service.name)).or_default().push(service);
    }
    let variable = |(name, meant): (String, Vec<&Service>)| match meant[..] {
        [only] => Ok(Variable { name, port: only.int_port }),
        _ => Err(Ambiguous { name, services: meant.iter().map(|service| service.name.clone()).collect() }),
    };
    by_name.into_iter().map(variable).collect()
}

fn named(service: &str) -> String {
    // Stackato put `_` for `-`; a shell wants it for everything else that is no letter and no digit, too.
    let sign = |sign: char| if sign.is_ascii_alphanumeric() { sign.to_ascii_uppercase() } else { '_' };
    format!("STACKATO_HARBOR_{}", service.chars().map(sign).collect::<String>())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn entry(name: &str, int_port: u16) -> Value {
        json!({
            "label": "harbor", "plan": "free", "name": name, "instance_name": name, "instance_guid": format!("{name}-id"),
            "binding_guid": format!("{name}-binding"), "binding_name": null, "tags": ["tcp"], "volume_mounts": [],
            "credentials": {
                "name": format!("{name}-id"), "node_id": "harbor_node_1", "protocol": "both", "port": 35012,
                "int_port": int_port, "host": "10.0.0.5", "hostname": "harbor.internal", "uri": "tcp://harbor:35012",
                "announce": {"url": "https://harbor/announce/v1/instances/x", "token": "secret"}
            }
        })
    }

    #[test]
    fn harbors_services_are_read_and_others_left_alone() {
        let vcap = json!({
            "harbor": [entry("second", 4101), entry("first", 4100)],
            "postgres": [{"credentials": "postgres://", "name": 7}],
            "user-provided": [{"credentials": {}}],
        });
        let services = services(&vcap.to_string()).unwrap();
        assert_eq!(services.iter().map(|service| service.name.as_str()).collect::<Vec<_>>(), ["first", "second"]);
        let first = &services[0];
        assert_eq!((first.id.as_str(), first.int_port, first.protocol), ("first-id", 4100, Protocol::Both));
        assert_eq!(first.binding_id.as_deref(), Some("first-binding"));
        assert_eq!(first.announce.as_ref().unwrap().url, "https://harbor/announce/v1/instances/x");
        assert!(!format!("{services:?}").contains("secret"));
    }

    #[test]
    fn what_an_older_platform_leaves_out_may_be_missing() {
        let mut old = entry("old", 4100);
        for key in ["instance_name", "binding_guid", "instance_guid"] {
            old.as_object_mut().unwrap().remove(key);
        }
        old["credentials"].as_object_mut().unwrap().remove("announce");
        let services = services(&json!({"harbor": [old]}).to_string()).unwrap();
        assert_eq!((services[0].name.as_str(), &services[0].binding_id, &services[0].announce), ("old", &None, &None));
        assert_eq!(super::services("{}").unwrap(), []);
    }

    #[test]
    fn what_is_of_another_form_is_told() {
        assert!(matches!(services("[]"), Err(VcapError::Form(_))));
        assert!(matches!(services(""), Err(VcapError::Form(_))));
        let foreign = json!({"name": "x", "credentials": {"port": 1}});
        let mut empty = entry("game", 4100);
        empty["credentials"]["announce"]["token"] = " ".into();
        for entry in [foreign, empty] {
            let told = services(&json!({"harbor": [entry]}).to_string());
            assert!(matches!(told, Err(VcapError::Credentials(_))), "{told:?}");
        }
    }

    #[test]
    fn a_service_instance_counts_once_by_the_first_binding_that_can_announce() {
        let bound = |guid: &str, name: &str, token: Option<&str>| {
            let mut entry = entry(name, 4100);
            entry["binding_guid"] = guid.into();
            match token {
                Some(token) => entry["credentials"]["announce"]["token"] = token.into(),
                None => drop(entry["credentials"].as_object_mut().unwrap().remove("announce")),
            }
            entry
        };
        let bindings = [
            bound("1", "b", None),
            bound("2", "b", Some("x")),
            bound("3", "b", Some("y")),
            bound("4", "a", None),
            bound("5", "a", None),
        ];
        let services = once_each(services(&json!({"harbor": bindings}).to_string()).unwrap());
        let chosen = services.iter().map(|service| (service.name.as_str(), service.binding_id.as_deref().unwrap()));
        assert_eq!(chosen.collect::<Vec<_>>(), [("a", "4"), ("b", "2")]);
    }

    #[test]
    fn one_service_has_the_plain_variable_and_several_have_one_each() {
        let read = |entries: Vec<Value>| {
            let services = services(&json!({"harbor": entries}).to_string()).unwrap();
            let text = |variable| match variable {
                Ok::<Variable, Ambiguous>(variable) => variable.to_string(),
                Err(ambiguous) => ambiguous.to_string(),
            };
            variables(&services).into_iter().map(text).collect::<Vec<_>>()
        };
        assert_eq!(read(vec![]), [""; 0]);
        assert_eq!(read(vec![entry("ldap-port", 4100)]), ["export STACKATO_HARBOR=4100"]);
        assert_eq!(
            read(vec![entry("ldap-port", 4100), entry("my game;rm", 4101)]),
            ["export STACKATO_HARBOR_LDAP_PORT=4100", "export STACKATO_HARBOR_MY_GAME_RM=4101"]
        );
        assert_eq!(
            read(vec![entry("a_b", 4101), entry("c", 4102), entry("a-b", 4100)]),
            [
                "STACKATO_HARBOR_A_B is not set, as it would stand for each of a-b, a_b: rename one",
                "export STACKATO_HARBOR_C=4102"
            ]
        );
    }
}
