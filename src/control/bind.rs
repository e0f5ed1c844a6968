//! Bind: credentials for an app or a key.

use std::sync::Arc;

use super::{
    Control, Failure, Fault,
    audit::{self, Change},
};
use crate::{
    model::{
        AppId, BindingId, PlanId, Revision, ServiceInstanceId, SpaceId, binding::Binding, credentials::Credentials,
        requester::Requester, service_instance::ServiceInstance,
    },
    store,
};

/// Most bindings of one service instance.
pub const MAX_BINDINGS: usize = 1024;

/// A request for a binding.
#[derive(Debug, Clone)]
pub struct BindSpec {
    /// Given by the platform.
    pub id: BindingId,
    /// What it gives access to.
    pub service_instance_id: ServiceInstanceId,
    /// What the platform takes the plan to be; a rotation does not say.
    pub plan_id: Option<PlanId>,
    /// The app to bind; none for a service key.
    pub app_id: Option<AppId>,
    /// The app's space.
    pub space_id: Option<SpaceId>,
    /// Whether its holder may announce backends; `None`: an app may, a key may not.
    pub announce: Option<bool>,
    /// The binding that it takes over from: app, space and the right to announce are that one's then.
    pub predecessor_id: Option<BindingId>,
    /// Who asks.
    pub by: Requester,
}

/// What became of a bind.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Bound {
    /// It is new.
    Created(Credentials),
    /// It had been bound by the same request.
    Existing(Credentials),
}

/// Why a binding is not made.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BindRefusal {
    /// There is none.
    #[error("there is no service instance {0:?}")]
    NoServiceInstance(ServiceInstanceId),
    /// The plan is neither in the catalog nor the service instance's.
    #[error("there is no plan {0:?}: give the one of the service instance")]
    UnknownPlan(PlanId),
    /// The id is taken by another request.
    #[error("a binding with this id exists and differs: use another id, or unbind it first")]
    Conflict,
    /// [`MAX_BINDINGS`] is reached.
    #[error(
        "the service instance has {MAX_BINDINGS} bindings, the most it can have: unbind one that is no longer needed"
    )]
    TooMany,
    /// The predecessor is not a binding of this service instance.
    #[error(
        "there is no binding {0:?} of this service instance to take over from: bind without `predecessor_binding_id`"
    )]
    NoPredecessor(BindingId),
}

impl Control {
    /// Binds an app or a key.
    ///
    /// # Errors
    /// [`Failure`]; nothing is changed then, unless the store does not know whether it is.
    pub async fn bind(self: &Arc<Self>, spec: BindSpec) -> Result<Bound, Failure<BindRefusal>> {
        let id = spec.service_instance_id.clone();
        self.in_turn(&id, |control| async move { control.bind_in_turn(spec).await }).await
    }

    async fn bind_in_turn(&self, spec: BindSpec) -> Result<Bound, Failure<BindRefusal>> {
        let id = &spec.service_instance_id;
        let Some(instance) = self.store.instance(id).await? else {
            return Err(Failure::Refused(BindRefusal::NoServiceInstance(id.clone())));
        };
        if let Some(plan_id) = spec.plan_id.as_ref().filter(|plan_id| !self.knows_plan(plan_id, &instance)) {
            return Err(Failure::Refused(BindRefusal::UnknownPlan(plan_id.clone())));
        }
        if self.is_being_opened(id).await? {
            return Err(Failure::Busy);
        }
        // Its opening may have ended since it was read, with another port.
        if self.store.serves_many()
            && self.store.instance(id).await?.is_none_or(|now| now.revision != instance.revision)
        {
            return Err(Failure::Busy);
        }
        if let Some(known) = self.store.binding(id, &spec.id).await? {
            return self.rebind(&instance, &known, &spec);
        }
        // Without its pool it has no names to tell: nothing is bound then.
        self.pool(&instance.pool)?;
        let (app_id, space_id, announce) = match &spec.predecessor_id {
            Some(predecessor) => match self.store.binding(id, predecessor).await? {
                Some(predecessor) => (predecessor.app_id, predecessor.space_id, predecessor.announce),
                None => return Err(Failure::Refused(BindRefusal::NoPredecessor(predecessor.clone()))),
            },
            None => (spec.app_id.clone(), spec.space_id.clone(), may_announce(&spec)),
        };
        self.snapshot.reach(instance.revision).await?;
        let directory = self.directory();
        let bindings = directory.borrow().instance(id.as_str()).map_or(0, |entry| entry.bindings.len());
        if bindings >= MAX_BINDINGS {
            return Err(Failure::Refused(BindRefusal::TooMany));
        }
        let binding = Binding {
            id: spec.id.clone(),
            service_instance_id: id.clone(),
            app_id,
            space_id,
            announce,
            predecessor_id: spec.predecessor_id.clone(),
            created_at: self.clock.wall(),
            revision: Revision::default(),
        };
        match self.store.bind(&binding).await? {
            store::Bind::Created(binding) => {
                audit::note(&spec.by, Change::Bound(&instance, &binding));
                self.snapshot.reach(binding.revision).await?;
                Ok(Bound::Created(self.credentials(&instance, &binding)?))
            }
            store::Bind::Exists(known) => self.rebind(&instance, &known, &spec),
            store::Bind::NoServiceInstance => Err(Failure::Refused(BindRefusal::NoServiceInstance(id.clone()))),
        }
    }

    /// A request for a binding that is there.
    fn rebind(
        &self,
        instance: &ServiceInstance,
        known: &Binding,
        spec: &BindSpec,
    ) -> Result<Bound, Failure<BindRefusal>> {
        let same_holder =
            || (&known.app_id, &known.space_id, known.announce) == (&spec.app_id, &spec.space_id, may_announce(spec));
        let same = known.service_instance_id == instance.id
            && known.predecessor_id == spec.predecessor_id
            // One made by rotation has its holder from its predecessor.
            && (spec.predecessor_id.is_some() || same_holder());
        if !same {
            return Err(Failure::Refused(BindRefusal::Conflict));
        }
        Ok(Bound::Existing(self.credentials(instance, known)?))
    }

    /// The credentials of a binding: the same whenever they are asked for, until the announce secret is rotated.
    pub(super) fn credentials(&self, instance: &ServiceInstance, binding: &Binding) -> Result<Credentials, Fault> {
        let (pool, directory) = (self.pool(&instance.pool)?, self.directory());
        let secret = directory.borrow().announce_secret.clone();
        Ok(Credentials::of(instance, &pool, binding, self.announce_url.as_deref(), &secret))
    }
}

fn may_announce(spec: &BindSpec) -> bool {
    spec.announce.unwrap_or(spec.app_id.is_some())
}
