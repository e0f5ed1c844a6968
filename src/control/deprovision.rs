//! Deprovision: the end of a service instance, with its bindings, its listener and its flows.

use std::sync::Arc;

use super::{
    Control, Failure,
    audit::{self, Change},
};
use crate::{
    model::{
        PlanId, ServiceInstanceId, Timestamp, pool::DEFAULT_QUARANTINE, requester::Requester,
        service_instance::ServiceInstance,
    },
    store,
};

/// Why nothing is deleted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DeleteRefusal {
    /// It is not there.
    #[error("there is nothing to delete: it is gone, or never was")]
    Gone,
    /// The plan is neither in the catalog nor the service instance's.
    #[error("there is no plan {0:?}: give the one of the service instance")]
    UnknownPlan(PlanId),
}

impl Control {
    /// Deletes a service instance, closes its listener and puts its port to rest. `plan_id` is what the platform takes
    /// its plan to be.
    ///
    /// # Errors
    /// [`Failure`]; [`DeleteRefusal::Gone`] when there is none.
    pub async fn deprovision(
        self: &Arc<Self>,
        id: &ServiceInstanceId,
        plan_id: &PlanId,
        by: Requester,
    ) -> Result<ServiceInstance, Failure<DeleteRefusal>> {
        let (owned, plan_id) = (id.clone(), plan_id.clone());
        self.in_turn(id, |control| async move { control.deprovision_in_turn(&owned, &plan_id, &by).await }).await
    }

    async fn deprovision_in_turn(
        &self,
        id: &ServiceInstanceId,
        plan_id: &PlanId,
        by: &Requester,
    ) -> Result<ServiceInstance, Failure<DeleteRefusal>> {
        let now = self.clock.wall();
        let known = self.store.instance(id).await?;
        self.check_plan(known.as_ref(), plan_id).map_err(Failure::Refused)?;
        let gone = match known {
            Some(known) => self.free(known, now).await?,
            None => None,
        };
        if let Some(gone) = &gone {
            audit::note(by, Change::Deprovisioned(gone));
        }
        let committed = self.clock.now();
        // Also when there was none: an earlier attempt may have deleted it and failed here.
        self.snapshot.refresh().await?;
        let closed = self.listener_gone(id).await;
        let gone = gone.ok_or(Failure::Refused(DeleteRefusal::Gone))?;
        self.closed_elsewhere(&gone, self.snapshot.revision().await).await;
        let took = self.clock.now().saturating_duration_since(committed);
        if closed {
            self.metrics.closed(took);
        }
        let (pool, port, closed_after_ms) = (&gone.pool, gone.port, took.as_secs_f64() * 1e3);
        tracing::info!(service_instance = %id, %pool, port, closed_after_ms, "deprovisioned");
        Ok(gone)
    }

    /// Deletes a service instance and puts its port to rest, of which the next refresh tells: by the time of the answer
    /// another node may have given it to somebody, and this one may know that. `None` when another process was faster.
    async fn free(&self, known: ServiceInstance, now: Timestamp) -> store::Result<Option<ServiceInstance>> {
        let facts = self.facts();
        let quarantine = facts.pools.get(&known.pool).map_or(DEFAULT_QUARANTINE, |pool| pool.quarantine);
        let quarantined_until = now.plus(quarantine);
        let outcome = self.store.deprovision(&known.id, now, store::Ending::Rest(quarantined_until)).await;
        if !matches!(outcome, Ok(Some(_))) {
            self.ports.doubt(&known.pool).await;
        }
        outcome
    }

    /// Whether a delete may name this plan: one of the catalog that is not the service instance's may have been left by
    /// a change of plan that the platform lost. For what is gone any plan will do: a refusal would keep the platform
    /// from forgetting it once the plan has been taken out of the catalog.
    pub(super) fn check_plan(&self, known: Option<&ServiceInstance>, plan_id: &PlanId) -> Result<(), DeleteRefusal> {
        let Some(known) = known else { return Ok(()) };
        if !self.knows_plan(plan_id, known) {
            return Err(DeleteRefusal::UnknownPlan(plan_id.clone()));
        }
        if known.plan_id != *plan_id {
            let (service_instance, stored) = (&known.id, &known.plan_id);
            tracing::warn!(%service_instance, plan = %plan_id, %stored, "a delete names another plan than the stored one");
        }
        Ok(())
    }

    /// Whether a plan is of the catalog, or was: a service instance keeps a plan that was taken out of it.
    pub(super) fn knows_plan(&self, plan_id: &PlanId, instance: &ServiceInstance) -> bool {
        self.plan(plan_id).is_some() || instance.plan_id == *plan_id
    }
}
