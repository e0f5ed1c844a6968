//! What operators hold back until they let it go on: service instances that are suspended, and networks whose clients are
//! blocked. Both are live settings, so they hold on all nodes, outlast them, and are in the history.

use std::{collections::BTreeMap, sync::Arc};

use ipnet::IpNet;

use super::{
    ServiceInstanceId, Timestamp,
    networks::{self, Networks},
    setting::{BLOCKED, SUSPENDED, Setting},
};

/// Most networks that are blocked at a time: each new connection is looked up among them.
pub const MAX_BLOCKED: usize = 1_024;

/// Most characters that say why.
pub const MAX_REASON: usize = 500;

/// Why something is held back, by whom, and since when.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Restraint {
    /// In the operator's words, perhaps none.
    pub why: String,
    /// As they call themselves.
    pub by: String,
    /// Since when.
    pub at: Timestamp,
}

/// All that is held back.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Restraints {
    /// Service instances that carry nothing.
    pub suspended: Arc<BTreeMap<ServiceInstanceId, Restraint>>,
    /// Networks whose clients get nowhere, as they are written.
    pub blocked: Arc<BTreeMap<IpNet, Restraint>>,
    /// The same networks, to be asked for each client.
    pub networks: Arc<Networks>,
}

/// Why a network is not blocked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NetworkRefusal {
    /// It is none.
    #[error("not a network: {0:?}; write for example 203.0.113.0/24 or 2001:db8::/32, or an address alone")]
    NotANetwork(String),
    /// It has every client.
    #[error(
        "the network {0} has every client there is: to carry nothing for one service instance, suspend that; for none, drain the nodes"
    )]
    Everybody(IpNet),
}

impl Restraint {
    /// What a live setting of one of the two scopes says.
    #[must_use]
    pub fn of(setting: &Setting) -> Self {
        Self { why: setting.value.clone().unwrap_or_default(), by: setting.changed_by.clone(), at: setting.changed_at }
    }
}

impl Restraints {
    /// What these live settings say. A key that would be refused is passed over.
    #[must_use]
    pub fn of(settings: &[Setting]) -> Self {
        let of_scope = |scope: &'static str| settings.iter().filter(move |setting| setting.scope == scope);
        let suspended = of_scope(SUSPENDED)
            .filter_map(|setting| Some((ServiceInstanceId::new(&*setting.key).ok()?, Restraint::of(setting))));
        let blocked =
            of_scope(BLOCKED).filter_map(|setting| Some((network(&setting.key).ok()?, Restraint::of(setting))));
        let blocked = blocked.collect::<BTreeMap<_, _>>();
        let networks = blocked.keys().copied().collect();
        Self { suspended: Arc::new(suspended.collect()), blocked: Arc::new(blocked), networks: Arc::new(networks) }
    }
}

/// The network that an operator names to be blocked.
///
/// # Errors
/// [`NetworkRefusal`].
pub fn network(text: &str) -> Result<IpNet, NetworkRefusal> {
    let network = networks::parse(text).ok_or_else(|| NetworkRefusal::NotANetwork(text.into()))?;
    if network.prefix_len() == 0 { Err(NetworkRefusal::Everybody(network)) } else { Ok(network) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Revision;

    fn setting(scope: &str, key: &str) -> Setting {
        Setting {
            scope: scope.into(),
            key: key.into(),
            value: Some("why".into()),
            changed_by: "root@a".into(),
            changed_at: Timestamp(7),
            revision: Revision(3),
        }
    }

    #[test]
    fn of_all_settings_two_scopes_hold_something_back() {
        let all = [setting("harbor_node", "port_range"), setting(SUSPENDED, "id"), setting(BLOCKED, "10.0.0.0/8")];
        let held = Restraints::of(&all);
        let restraint = Restraint { why: "why".into(), by: "root@a".into(), at: Timestamp(7) };
        assert_eq!(*held.suspended, [(ServiceInstanceId::new("id").unwrap(), restraint)].into());
        assert!(held.networks.contains([10, 1, 2, 3].into()) && held.blocked.len() == 1);
        assert_eq!(Restraints::of(&all[..1]), Restraints::default());
        assert_eq!(Restraints::of(&[setting(BLOCKED, "::/0"), setting(SUSPENDED, "")]), Restraints::default());
    }

    #[test]
    fn every_client_at_once_is_not_a_network_to_block() {
        for (text, expected) in [
            ("203.0.113.9/24", Ok("203.0.113.0/24")),
            ("203.0.113.9", Ok("203.0.113.9/32")),
            ("128.0.0.0/1", Ok("128.0.0.0/1")),
            ("0.0.0.0/0", Err("the network 0.0.0.0/0 has every client there is")),
            ("::/0", Err("the network ::/0 has every client there is")),
            ("::ffff:0.0.0.0/96", Err("the network 0.0.0.0/0 has every client there is")),
            ("nowhere", Err("not a network: \"nowhere\"; write for example")),
        ] {
            let said = network(text).map(|network| network.to_string()).map_err(|refusal| refusal.to_string());
            match expected {
                Ok(expected) => assert_eq!(said.as_deref(), Ok(expected)),
                Err(expected) => assert!(said.unwrap_err().starts_with(expected), "{text}"),
            }
        }
    }
}
