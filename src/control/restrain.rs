//! Restrain: service instances suspended and resumed, networks blocked and unblocked. On all nodes, by a live setting.

use std::sync::Arc;

use ipnet::IpNet;

use super::{Control, Failure, Fault, SettingsRefusal};
use crate::model::{
    NodeId, Revision, ServiceInstanceId,
    restraint::{self, MAX_BLOCKED, MAX_REASON, NetworkRefusal, Restraint, Restraints},
    setting::{BLOCKED, MAX_SETTINGS, SUSPENDED, SettingChange},
};

/// How often a change is made anew because somebody else has changed settings meanwhile.
const MAX_ATTEMPTS: usize = 8;

/// Why nothing is held back, or let go on.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RestrainRefusal {
    /// There is none.
    #[error("there is no service instance {0:?}: `harbor status --json` shows all")]
    NoServiceInstance(ServiceInstanceId),
    /// It is no network to block.
    #[error(transparent)]
    Network(#[from] NetworkRefusal),
    /// [`MAX_BLOCKED`] is reached.
    #[error(
        "there are {MAX_BLOCKED} blocked networks, the most that can be: unblock one, or block a larger one in their place"
    )]
    TooManyBlocked,
    /// What is blocked is a network around it.
    #[error(
        "the network {0} is not blocked by itself, but {1} is, and refuses its clients: unblock that, and block again what of it is to stay so"
    )]
    WithinBlocked(IpNet, IpNet),
    /// [`MAX_SETTINGS`] is reached.
    #[error("there are {MAX_SETTINGS} live settings, the most that can be: resume or unblock something, or unset some")]
    TooManySettings,
    /// The reason is no line of text.
    #[error("a reason has at most {MAX_REASON} characters, and no line breaks: write it shorter, or leave it out")]
    Reason,
}

/// What became of a wish to hold something back, or to let it go on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Restrained {
    /// Whether anything was changed: it may have been so before.
    pub changed: bool,
    /// How it is held back by now; none: it is not.
    pub restraint: Option<Restraint>,
    /// Live nodes that have not said in time that it is so there.
    pub lagging: Vec<NodeId>,
}

type Outcome = Result<Restrained, Failure<RestrainRefusal>>;

impl Control {
    /// All that is held back, as this node knows it.
    #[must_use]
    pub fn restraints(&self) -> Arc<Restraints> {
        Arc::clone(&self.desired().borrow().restraints)
    }

    /// Closes the port of a service instance on all nodes and ends its flows, until [`Control::resume`]. Without a reason, one
    /// that is suspended already stays as it is.
    ///
    /// # Errors
    /// [`Failure`]; nothing is changed then, unless the store does not know whether it is.
    pub async fn suspend(self: &Arc<Self>, id: &ServiceInstanceId, why: Option<String>, who: &str) -> Outcome {
        let (owned, who) = (id.clone(), who.to_owned());
        self.in_turn(id, |control| async move {
            if control.store.instance(&owned).await?.is_none() {
                return Err(Failure::Refused(RestrainRefusal::NoServiceInstance(owned)));
            }
            // Its provision has still to find out whether the port can be had.
            if control.is_being_opened(&owned).await? {
                return Err(Failure::Busy);
            }
            let outcome = control.restrain((SUSPENDED, owned.as_str()), why, &who).await?;
            if outcome.changed {
                tracing::info!(service_instance = %owned, by = who, why = why_of(&outcome), "suspended");
            }
            Ok(outcome)
        })
        .await
    }

    /// Opens the port of a service instance again.
    ///
    /// # Errors
    /// [`Failure`]; nothing is changed then, unless the store does not know whether it is.
    pub async fn resume(self: &Arc<Self>, id: &ServiceInstanceId, who: &str) -> Outcome {
        let (owned, who) = (id.clone(), who.to_owned());
        self.in_turn(id, |control| async move {
            let outcome = control.let_go((SUSPENDED, owned.as_str()), &who).await?;
            if outcome.changed {
                tracing::info!(service_instance = %owned, by = who, "resumed");
            } else if control.store.instance(&owned).await?.is_none() {
                return Err(Failure::Refused(RestrainRefusal::NoServiceInstance(owned)));
            }
            Ok(outcome)
        })
        .await
    }

    /// Refuses clients of a network on every port of all nodes and ends their flows, until [`Control::unblock`].
    ///
    /// # Errors
    /// [`Failure`]; nothing is changed then, unless the store does not know whether it is.
    pub async fn block(&self, network: &str, why: Option<String>, who: &str) -> Outcome {
        let network = restraint::network(network).map_err(|refusal| Failure::Refused(refusal.into()))?;
        let outcome = self.restrain((BLOCKED, &network.to_string()), why, who).await?;
        if outcome.changed {
            tracing::info!(%network, by = who, why = why_of(&outcome), "blocked");
        }
        Ok(outcome)
    }

    /// Lets clients of a network in again, as far as no other one that has them is blocked.
    ///
    /// # Errors
    /// [`Failure`]; nothing is changed then, unless the store does not know whether it is.
    pub async fn unblock(&self, network: &str, who: &str) -> Outcome {
        let network = restraint::network(network).map_err(|refusal| Failure::Refused(refusal.into()))?;
        let outcome = self.let_go((BLOCKED, &network.to_string()), who).await?;
        if outcome.changed {
            tracing::info!(%network, by = who, "unblocked");
        } else if let Some(around) = self.restraints().blocked.keys().find(|blocked| blocked.contains(&network)) {
            return Err(Failure::Refused(RestrainRefusal::WithinBlocked(network, *around)));
        }
        Ok(outcome)
    }

    async fn restrain(&self, place: (&'static str, &str), why: Option<String>, who: &str) -> Outcome {
        let refuse = |refusal| Err(Failure::Refused(refusal));
        if why.as_ref().is_some_and(|why| why.chars().count() > MAX_REASON || why.chars().any(char::is_control)) {
            return refuse(RestrainRefusal::Reason);
        }
        let (scope, key) = place;
        for _ in 0..MAX_ATTEMPTS {
            let (read_at, settings) = self.read_settings().await?;
            let known = settings.iter().find(|setting| (&*setting.scope, &*setting.key) == place);
            if known.is_some_and(|known| why.is_none() || known.value == why) {
                return Ok(self.restrained(place, None).await);
            }
            let blocked = settings.iter().filter(|setting| setting.scope == BLOCKED).count();
            if scope == BLOCKED && known.is_none() && blocked >= MAX_BLOCKED {
                return refuse(RestrainRefusal::TooManyBlocked);
            }
            if known.is_none() && settings.len() >= MAX_SETTINGS {
                return refuse(RestrainRefusal::TooManySettings);
            }
            let value = Some(why.clone().unwrap_or_default());
            let change = SettingChange { scope: scope.into(), key: key.into(), value };
            if let Some(revision) = self.change_setting(change, who, read_at).await? {
                return Ok(self.restrained(place, Some(revision)).await);
            }
        }
        Err(Failure::Busy)
    }

    async fn let_go(&self, place: (&'static str, &str), who: &str) -> Outcome {
        let (scope, key) = place;
        for _ in 0..MAX_ATTEMPTS {
            let (read_at, settings) = self.read_settings().await?;
            if !settings.iter().any(|setting| (&*setting.scope, &*setting.key) == place) {
                return Ok(self.restrained(place, None).await);
            }
            let change = SettingChange { scope: scope.into(), key: key.into(), value: None };
            if let Some(revision) = self.change_setting(change, who, read_at).await? {
                return Ok(self.restrained(place, Some(revision)).await);
            }
        }
        Err(Failure::Busy)
    }

    /// `None` when somebody else was faster.
    async fn change_setting(
        &self,
        change: SettingChange,
        who: &str,
        read_at: Revision,
    ) -> Result<Option<Revision>, Fault> {
        match self.change_settings(&[change], who, read_at).await {
            Ok(revision) => Ok(Some(revision)),
            // That there are too many was looked at in the store: this node may have been behind.
            Err(SettingsRefusal::Contended | SettingsRefusal::TooMany) => Ok(None),
            Err(SettingsRefusal::Fault(fault)) => Err(fault.into()),
        }
    }

    /// How it is by now, once all nodes have said that they have applied what was changed.
    async fn restrained(&self, place: (&'static str, &str), changed: Option<Revision>) -> Restrained {
        let lagging = match changed {
            Some(revision) => self.applied_everywhere(revision).await,
            None => Vec::new(),
        };
        let settings = self.settings().borrow().clone();
        let restraint = settings.iter().find(|setting| (&*setting.scope, &*setting.key) == place);
        Restrained { changed: changed.is_some(), restraint: restraint.map(Restraint::of), lagging }
    }
}

fn why_of(outcome: &Restrained) -> &str {
    outcome.restraint.as_ref().map_or("", |restraint| &restraint.why)
}
