//! Provision: a port for a new service instance, listening before the answer is given.

use std::sync::Arc;

use super::{
    Control, Facts, Failure, Fault,
    audit::{self, Change},
    failure::chain,
    observe::Seen,
    ports::Shortage,
};
use crate::{
    model::{
        OrganizationId, PlanId, PoolName, Protocol, Revision, ServiceInstanceId, SpaceId,
        allocation::PortRefusal,
        effective::Effective,
        parameters::{ParameterRefusal, ProvisionParameters},
        plan::Plan,
        requester::Requester,
        service_instance::ServiceInstance,
    },
    store::{self, Ending},
};

/// How many ports the store may turn down before a pool counts as exhausted. It does so only when another process has
/// taken them since they were read.
const MAX_PROPOSALS: usize = 16;

/// How many ports that somebody else holds are tried before the machine counts as unfit.
const MAX_MOVES: usize = 16;

/// A request for a service instance.
#[derive(Debug, Clone)]
pub struct ProvisionSpec {
    /// Given by the platform.
    pub id: ServiceInstanceId,
    /// From the catalog.
    pub plan_id: PlanId,
    /// Whose it will be.
    pub organization_id: OrganizationId,
    /// Whose it will be.
    pub space_id: SpaceId,
    /// What its user calls it.
    pub name: Option<String>,
    /// What its user wants.
    pub parameters: ProvisionParameters,
    /// Whether the answer may come before the port listens. It does where other nodes have to open it too.
    pub later: bool,
    /// Who asks.
    pub by: Requester,
}

/// What became of a provision.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Provisioned {
    /// It is new, and its port listens.
    Created(ServiceInstance),
    /// It is new, and its port is being opened: [`Control::operation`] tells what becomes of it.
    Begun(ServiceInstance),
    /// It had been provisioned by the same request.
    Existing(ServiceInstance),
}

/// Why a service instance is not provisioned.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ProvisionRefusal {
    /// No such plan.
    #[error("there is no plan {0:?}: choose one of the catalog")]
    UnknownPlan(PlanId),
    /// The id is taken by another request.
    #[error("a service instance with this id exists and differs in its {0}: use another id, or deprovision it first")]
    Conflict(&'static str),
    /// Parameters that the plan does not take.
    #[error(transparent)]
    Parameters(#[from] ParameterRefusal),
    /// The port asked for is not to be had.
    #[error(transparent)]
    Port(#[from] PortRefusal),
    /// The port asked for could not be bound.
    #[error("port {0} is in use outside of Harbor: choose another one, or leave `port` out")]
    PortHeld(u16),
    /// The pool gives out no more ports.
    #[error("the pool {0} is retired and gives out no more ports: choose another plan")]
    Retired(PoolName),
    /// No port is free.
    #[error(
        "the pool {0} has no free port left: deprovision a service instance that is no longer needed, or ask the operator for a larger range"
    )]
    Exhausted(PoolName),
}

impl Control {
    /// Provisions a service instance and waits until its port listens.
    ///
    /// # Errors
    /// [`Failure`]; the service instance does not exist then, unless the store is away.
    pub async fn provision(self: &Arc<Self>, spec: ProvisionSpec) -> Result<Provisioned, Failure<ProvisionRefusal>> {
        let id = spec.id.clone();
        self.in_turn(&id, |control| async move { control.provision_in_turn(spec).await }).await
    }

    async fn provision_in_turn(
        self: &Arc<Self>,
        spec: ProvisionSpec,
    ) -> Result<Provisioned, Failure<ProvisionRefusal>> {
        let plan = self.plan(&spec.plan_id);
        let Some(plan) = &plan else {
            return Err(Failure::Refused(ProvisionRefusal::UnknownPlan(spec.plan_id)));
        };
        let protocol = plan
            .check_provision(&spec.parameters, spec.name.as_deref())
            .map_err(|refusal| Failure::Refused(refusal.into()))?;
        if let Some(known) = self.store.instance(&spec.id).await? {
            return self.repeat(known, &spec, plan, protocol).await;
        }
        let draft = ServiceInstance {
            id: spec.id.clone(),
            plan_id: spec.plan_id.clone(),
            pool: plan.pool.clone(),
            port: 0,
            protocol,
            requested_port: spec.parameters.port,
            settings: spec.parameters.settings.clone(),
            organization_id: spec.organization_id.clone(),
            space_id: spec.space_id.clone(),
            name: spec.name.clone(),
            node_id: self.node.clone(),
            created_at: self.clock.wall(),
            revision: Revision::default(),
        };
        if self.pool(&plan.pool)?.retired {
            return Err(Failure::Refused(ProvisionRefusal::Retired(plan.pool.clone())));
        }
        let shared = self.store.serves_many();
        // Before it is stored: nobody here takes it for work that was left.
        let opening = self.begin_opening(&spec.id);
        let outcome = self.commit(draft, shared).await?;
        if let store::Provision::Created(instance) = &outcome {
            audit::note(&spec.by, Change::Provisioned(instance));
        }
        match outcome {
            store::Provision::Created(instance) if spec.later && shared => {
                drop(opening);
                self.open_later(&instance.id);
                Ok(Provisioned::Begun(instance))
            }
            store::Provision::Created(instance) => self.open_or_undo(instance).await.map(Provisioned::Created),
            store::Provision::Exists(known) => self.repeat(known, &spec, plan, protocol).await,
            store::Provision::PortTaken => Err(Failure::Refused(match spec.parameters.port {
                Some(port) => PortRefusal::Allocated { port }.into(),
                None => ProvisionRefusal::Exhausted(plan.pool.clone()),
            })),
        }
    }

    /// Stores `draft` with the port it asks for or any free one; where the store is shared, with an operation of this
    /// node.
    async fn commit(
        &self,
        mut draft: ServiceInstance,
        shared: bool,
    ) -> Result<store::Provision, Failure<ProvisionRefusal>> {
        let mut outcome = store::Provision::PortTaken;
        for _ in 0..MAX_PROPOSALS {
            let now = self.clock.wall();
            draft.port = self
                .ports
                .take(&draft.pool, draft.requested_port, &draft.space_id, now)
                .await?
                .map_err(|shortage| Failure::Refused(refusal(shortage, &draft.pool)))?;
            outcome = match self.store.provision(&draft, shared, now).await {
                Ok(outcome) => outcome,
                Err(fault) => {
                    self.ports.doubt(&draft.pool).await;
                    return Err(fault.into());
                }
            };
            match &outcome {
                store::Provision::Created(_) | store::Provision::Exists(_) => break,
                store::Provision::PortTaken => self.ports.doubt(&draft.pool).await,
            }
        }
        Ok(outcome)
    }

    /// Opens the port of a new service instance, or takes it back. Where several nodes share the store, only as long as
    /// this is the work of this node: another one may have taken it up, or somebody may have deprovisioned it.
    pub(super) async fn open_or_undo(
        &self,
        mut instance: ServiceInstance,
    ) -> Result<ServiceInstance, Failure<ProvisionRefusal>> {
        let shared = self.store.serves_many();
        let known = match self.listen(&mut instance).await {
            Ok(()) if !shared || self.store.opened(&instance.id, &self.node).await? => return Ok(instance),
            Ok(()) => self.store.instance(&instance.id).await?,
            Err(failure) if failure.is_final() => {
                let why = said(&failure);
                tracing::warn!(service_instance = %instance.id, why, "a provision has failed");
                let ending = if shared { Ending::Failed { by: &self.node, why: &why } } else { Ending::Unused };
                if self.undo(&instance, ending, &why).await? {
                    // A port that its user chose, and somebody else has, is the user's to choose again.
                    if !matches!(failure, Failure::Refused(ProvisionRefusal::PortHeld(_))) {
                        self.metrics.provisions_undone.inc();
                    }
                    return Err(failure);
                }
                None
            }
            Err(failure) => return Err(failure),
        };
        // Whoever has taken it up may have opened it already.
        let same = |known: &ServiceInstance| (known.port, known.created_at) == (instance.port, instance.created_at);
        if let Some(known) = known.filter(same)
            && !self.is_being_opened(&known.id).await?
        {
            return Ok(known);
        }
        Err(Failure::Busy)
    }

    /// Waits until the port of a new service instance listens on every node; moves it to another one while somebody else
    /// holds it on any of them.
    async fn listen(&self, instance: &mut ServiceInstance) -> Result<(), Failure<ProvisionRefusal>> {
        let committed = self.clock.now();
        for _ in 0..MAX_MOVES {
            self.snapshot.reach(instance.revision).await?;
            let port = instance.port;
            let reason = match self.opening(instance).await {
                Seen::Listening => {
                    let took = self.clock.now().saturating_duration_since(committed);
                    self.metrics.opened(took);
                    let ServiceInstance { id, pool, protocol, .. } = instance;
                    tracing::info!(service_instance = %id, %pool, port, %protocol, listening_after_ms = took.as_secs_f64() * 1e3, "provisioned");
                    return Ok(());
                }
                Seen::Held(reason) => reason,
                Seen::Closed => return Err(Fault::NotListening { port, reason: "the node drains".into() }.into()),
                Seen::Failed(reason) => return Err(Fault::NotListening { port, reason }.into()),
                Seen::Untold(fault) => return Err(fault.into()),
            };
            tracing::warn!(service_instance = %instance.id, port, reason, "the port is held by somebody else");
            self.ports.mark_conflict(&instance.pool, port, self.clock.wall()).await;
            if instance.requested_port.is_some() {
                return Err(Failure::Refused(ProvisionRefusal::PortHeld(port)));
            }
            self.move_on(instance, &reason).await?;
        }
        let reason = format!("{MAX_MOVES} ports of the pool {} are in use outside of Harbor", instance.pool);
        Err(Fault::NotListening { port: instance.port, reason }.into())
    }

    /// Gives a service instance, whose port nobody has been told, another one.
    async fn move_on(&self, instance: &mut ServiceInstance, why: &str) -> Result<(), Failure<ProvisionRefusal>> {
        let by = self.store.serves_many().then_some(&self.node);
        for _ in 0..MAX_PROPOSALS {
            let now = self.clock.wall();
            let port = self.ports.take(&instance.pool, None, &instance.space_id, now).await?;
            let port = port.map_err(|shortage| Failure::Refused(refusal(shortage, &instance.pool)))?;
            match self.store.move_port(&instance.id, instance.port, port, by, now).await {
                Ok(store::Change::Done(moved)) => {
                    let from_port = instance.port;
                    audit::note(&Requester::Harbor, Change::Moved { instance: &moved, from_port, why });
                    *instance = moved;
                    return Ok(());
                }
                Ok(store::Change::PortTaken) => self.ports.doubt(&instance.pool).await,
                Ok(store::Change::Stale) => return Err(Failure::Busy),
                Err(fault) => {
                    self.ports.doubt(&instance.pool).await;
                    return Err(fault.into());
                }
            }
        }
        Err(Failure::Refused(ProvisionRefusal::Exhausted(instance.pool.clone())))
    }

    /// Takes a service instance back that could not be made to listen. Its port was never used and needs no rest. Returns
    /// whether that was still to be done.
    async fn undo(&self, instance: &ServiceInstance, ending: Ending<'_>, why: &str) -> store::Result<bool> {
        let now = self.clock.wall();
        let undone = self.store.deprovision(&instance.id, now, ending).await?.is_some();
        if undone {
            audit::note(&Requester::Harbor, Change::Undone { instance, why });
        }
        self.snapshot.refresh().await?;
        if undone {
            self.listener_gone(&instance.id).await;
        }
        Ok(undone)
    }

    /// A request for a service instance that is there.
    async fn repeat(
        self: &Arc<Self>,
        known: ServiceInstance,
        spec: &ProvisionSpec,
        plan: &Plan,
        protocol: Protocol,
    ) -> Result<Provisioned, Failure<ProvisionRefusal>> {
        if let Some(what) = difference(&known, spec, plan, protocol, &self.facts()) {
            return Err(Failure::Refused(ProvisionRefusal::Conflict(what)));
        }
        if let Some(operation) = self.untold(&known.id).await? {
            self.take_up([&operation]).await?;
            return if spec.later { Ok(Provisioned::Begun(known)) } else { Err(Failure::Busy) };
        }
        // It may have been committed a moment before a crash: then this is the first time that its port is waited for.
        self.snapshot.reach(known.revision).await?;
        self.opening(&known).await;
        Ok(Provisioned::Existing(known))
    }
}

/// In what a request differs from the service instance of that id. Defaults that are written out do not count.
fn difference(
    known: &ServiceInstance,
    spec: &ProvisionSpec,
    plan: &Plan,
    protocol: Protocol,
    facts: &Facts,
) -> Option<&'static str> {
    let int_port = facts.pools.get(&known.pool).map_or(0, |pool| pool.int_port);
    let effective = |settings, protocol| Effective::of(settings, protocol, int_port, plan.caps, &facts.limits);
    [
        (known.plan_id != spec.plan_id, "plan"),
        (known.organization_id != spec.organization_id, "organization"),
        (known.space_id != spec.space_id, "space"),
        (known.requested_port != spec.parameters.port, "port"),
        (known.protocol != protocol, "protocol"),
        (
            effective(&known.settings, known.protocol) != effective(&spec.parameters.settings, known.protocol),
            "parameters",
        ),
    ]
    .into_iter()
    .find_map(|(differs, what)| differs.then_some(what))
}

/// A failure in words for whoever asked for the service instance.
pub(super) fn said(failure: &Failure<ProvisionRefusal>) -> String {
    match failure {
        Failure::Refused(refusal) => refusal.to_string(),
        Failure::Busy => "another operation on this service instance is in progress".into(),
        Failure::Fault(Fault::Store(fault)) => chain(fault),
        Failure::Fault(fault) => fault.to_string(),
    }
}

fn refusal(shortage: Shortage, pool: &PoolName) -> ProvisionRefusal {
    match shortage {
        Shortage::Exhausted => ProvisionRefusal::Exhausted(pool.clone()),
        Shortage::Refused(refusal) => ProvisionRefusal::Port(refusal),
    }
}
