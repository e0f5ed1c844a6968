//! Update: another plan, other settings, another name; live, and either whole or not at all.

use std::sync::Arc;

use super::{
    Control, Failure, Fault,
    audit::{self, Change},
    failure::chain,
    observe::Seen,
};
use crate::{
    model::{
        PlanId, PoolName, Protocol, ServiceInstanceId,
        parameters::{ParameterRefusal, SettingsPatch},
        requester::Requester,
        service_instance::ServiceInstance,
    },
    store,
};

/// How often a change is made anew because another process has changed the service instance meanwhile.
const MAX_ATTEMPTS: usize = 3;

/// A change of a service instance.
#[derive(Debug, Clone)]
pub struct UpdateSpec {
    /// Which.
    pub id: ServiceInstanceId,
    /// Its plan from now on; `None`: the same.
    pub plan_id: Option<PlanId>,
    /// Its settings: what is not given stays.
    pub settings: SettingsPatch,
    /// What its user calls it from now on; `None`: the same.
    pub name: Option<String>,
    /// Who asks.
    pub by: Requester,
}

/// Why a service instance is not changed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UpdateRefusal {
    /// There is none.
    #[error("there is no service instance {0:?}")]
    NotFound(ServiceInstanceId),
    /// No such plan.
    #[error("there is no plan {0:?}: choose one of the catalog")]
    UnknownPlan(PlanId),
    /// The plan is of another pool, where the port number may be somebody else's.
    #[error(
        "this plan takes its ports from the pool {to}, and the port is of the pool {from}: provision a new service instance"
    )]
    OtherPool {
        /// Whose its port is.
        from: PoolName,
        /// Whose the plan's are.
        to: PoolName,
    },
    /// Settings that the plan does not take.
    #[error(transparent)]
    Parameters(#[from] ParameterRefusal),
    /// The port cannot be bound for the protocol that is added.
    #[error(
        "port {0} is in use outside of Harbor for the protocol that the plan adds: provision a new service instance"
    )]
    PortHeld(u16),
}

impl Control {
    /// Changes a service instance. Its port and its open flows stay.
    ///
    /// # Errors
    /// [`Failure`]; nothing is changed then, unless the store does not know whether it is, or is away when a change that
    /// another node cannot carry out is to be taken back. A repeat of such a one fails while that node cannot.
    pub async fn update(self: &Arc<Self>, spec: UpdateSpec) -> Result<ServiceInstance, Failure<UpdateRefusal>> {
        let id = spec.id.clone();
        self.in_turn(&id, |control| async move { control.update_in_turn(&spec).await }).await
    }

    async fn update_in_turn(&self, spec: &UpdateSpec) -> Result<ServiceInstance, Failure<UpdateRefusal>> {
        for _ in 0..MAX_ATTEMPTS {
            let Some(known) = self.store.instance(&spec.id).await? else {
                return Err(Failure::Refused(UpdateRefusal::NotFound(spec.id.clone())));
            };
            let wanted = self.wanted(&known, spec).map_err(Failure::Refused)?;
            if wanted == known && !self.may_be_doubtful(spec) {
                return Ok(known);
            }
            if self.is_being_opened(&known.id).await? {
                return Err(Failure::Busy);
            }
            if wanted == known {
                return self.carried_out(known).await;
            }
            let union = union(known.protocol, wanted.protocol);
            let outcome = if union == known.protocol {
                self.commit_update(&wanted, &spec.by).await
            } else {
                self.bind_then_commit(&known, &wanted, union, &spec.by).await
            };
            match outcome? {
                store::Change::Done(changed) => {
                    self.applied(&changed).await;
                    return Ok(changed);
                }
                store::Change::Stale => {}
                store::Change::PortTaken => unreachable!("an update keeps the port"),
            }
        }
        Err(Failure::Busy)
    }

    /// Whether a request that finds nothing to change may be the repeat of one that could not be taken back.
    fn may_be_doubtful(&self, spec: &UpdateSpec) -> bool {
        spec.plan_id.is_some() && self.store.serves_many()
    }

    /// The service instance, which is stored as it should be, once all nodes have opened its port so. What it was before
    /// is not known any more: where a node cannot, that is no refusal, as nothing is taken back.
    async fn carried_out(&self, known: ServiceInstance) -> Result<ServiceInstance, Failure<UpdateRefusal>> {
        self.snapshot.reach(known.revision).await?;
        match self.opening(&known).await {
            Seen::Listening => Ok(known),
            failed => Err(not_opened(known.port, failed).into()),
        }
    }

    /// The service instance as it should be.
    fn wanted(&self, known: &ServiceInstance, spec: &UpdateSpec) -> Result<ServiceInstance, UpdateRefusal> {
        let mut wanted = known.clone();
        wanted.settings = known.settings.patched(&spec.settings);
        if let Some(name) = &spec.name {
            wanted.name = Some(name.clone());
        }
        if let Some(id) = &spec.plan_id {
            wanted.plan_id = id.clone();
        }
        if wanted.settings == known.settings && wanted.plan_id == known.plan_id {
            // Also one whose plan was taken out of the catalog can be renamed.
            return Ok(wanted);
        }
        let plan = self.plan(&wanted.plan_id).ok_or_else(|| UpdateRefusal::UnknownPlan(wanted.plan_id.clone()))?;
        if plan.pool != known.pool {
            return Err(UpdateRefusal::OtherPool { from: known.pool.clone(), to: plan.pool.clone() });
        }
        if wanted.plan_id != known.plan_id {
            wanted.protocol = plan.protocol_after_change(known.protocol);
        }
        plan.check_settings(&wanted.settings, wanted.protocol)?;
        Ok(wanted)
    }

    async fn commit_update(
        &self,
        wanted: &ServiceInstance,
        by: &Requester,
    ) -> Result<store::Change, Failure<UpdateRefusal>> {
        let outcome = self.store.update(wanted).await?;
        if let store::Change::Done(changed) = &outcome {
            audit::note(by, Change::Updated(changed));
        }
        Ok(outcome)
    }

    /// Commits a change that adds a transport: only once the port is bound for it, beside what it carries already. The
    /// other nodes can try that only when it is stored: where one of them cannot, it is undone.
    async fn bind_then_commit(
        &self,
        known: &ServiceInstance,
        wanted: &ServiceInstance,
        union: Protocol,
        by: &Requester,
    ) -> Result<store::Change, Failure<UpdateRefusal>> {
        let id = &wanted.id;
        self.snapshot.try_protocol(id, union).await;
        let outcome = match self.opening_here(id).await {
            None | Some(Seen::Listening) => self.commit_update(wanted, by).await,
            Some(failed) => Err(refusal(wanted, failed)),
        };
        if let Err(fault) = self.snapshot.settle(id).await {
            tracing::warn!(service_instance = %id, error = %chain(&fault), "the store could not be read after a trial");
        }
        let changed = match outcome? {
            store::Change::Done(changed) => changed,
            refused => return Ok(refused),
        };
        match self.opening(&changed).await {
            // It is stored, and whether another node can carry it out shows in its status, as of one that lags.
            Seen::Listening | Seen::Untold(_) => Ok(store::Change::Done(changed)),
            failed => {
                self.take_back(known, &changed).await?;
                if let Err(fault) = self.snapshot.refresh().await {
                    tracing::warn!(
                        service_instance = %id, error = %chain(&fault), "a change is taken back and not published yet"
                    );
                }
                Err(refusal(wanted, failed))
            }
        }
    }

    /// Takes back the update from `known` to `changed`. What another node has changed meanwhile stays.
    async fn take_back(&self, known: &ServiceInstance, changed: &ServiceInstance) -> Result<(), Fault> {
        let away = |fault: store::Fault| {
            tracing::error!(
                service_instance = %known.id, port = known.port, error = %chain(&fault),
                "a change that a node cannot carry out could not be taken back"
            );
            Fault::NotTakenBack
        };
        let mut latest = changed.clone();
        for _ in 0..MAX_ATTEMPTS {
            let without = latest.without_update(known, changed, |instance| self.takes_settings(instance));
            match self.store.update(&without).await.map_err(away)? {
                store::Change::Done(changed) => {
                    audit::note(&Requester::Harbor, Change::TakenBack(&changed));
                    return Ok(());
                }
                store::Change::Stale => {}
                store::Change::PortTaken => unreachable!("an update keeps the port"),
            }
            match self.store.instance(&known.id).await.map_err(away)? {
                Some(found) if found.created_at == known.created_at => latest = found,
                // It is gone, and the change with it.
                _ => return Ok(()),
            }
        }
        tracing::error!(
            service_instance = %known.id, port = known.port,
            "a change that a node cannot carry out could not be taken back: others keep changing the service instance"
        );
        Err(Fault::NotTakenBack)
    }

    /// Whether the settings of a service instance are within its plan; also where that was taken out of the catalog.
    fn takes_settings(&self, instance: &ServiceInstance) -> bool {
        let ServiceInstance { plan_id, settings, protocol, .. } = instance;
        self.plan(plan_id).is_none_or(|plan| plan.check_settings(settings, *protocol).is_ok())
    }

    /// Waits until the forwarder has taken the change over. A fault now only delays that until
    /// the next refresh; told to the platform, it would mean that nothing has been changed.
    async fn applied(&self, changed: &ServiceInstance) {
        if let Err(fault) = self.snapshot.reach(changed.revision).await {
            tracing::warn!(
                service_instance = %changed.id, error = %chain(&fault), "a change is stored and not published yet"
            );
        } else if let Some(version) = self.snapshot.version(&changed.id).await {
            self.listener(&changed.id, version).await;
        }
    }
}

/// Why a port could not be bound for a protocol.
fn refusal(wanted: &ServiceInstance, seen: Seen) -> Failure<UpdateRefusal> {
    let (id, port) = (&wanted.id, wanted.port);
    match seen {
        Seen::Held(reason) => {
            tracing::warn!(service_instance = %id, port, reason, "the port is held by somebody else");
            Failure::Refused(UpdateRefusal::PortHeld(port))
        }
        failed => not_opened(port, failed).into(),
    }
}

/// The same where it does not matter who is to blame.
fn not_opened(port: u16, seen: Seen) -> Fault {
    let reason = match seen {
        Seen::Untold(fault) => return fault.into(),
        Seen::Held(reason) | Seen::Failed(reason) => reason,
        Seen::Closed => "the node drains".into(),
        Seen::Listening => unreachable!("only what failed is refused"),
    };
    Fault::NotListening { port, reason }
}

/// What carries all that both carry.
fn union(a: Protocol, b: Protocol) -> Protocol {
    if a == b { a } else { Protocol::Both }
}
