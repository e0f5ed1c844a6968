//! Deprovision: the end of a service instance, with its bindings, its listener and its flows.

use std::sync::Arc;

use super::{Control, Failure};
use crate::model::{PlanId, ServiceInstanceId, allocation::Release, service_instance::ServiceInstance};

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
    ) -> Result<ServiceInstance, Failure<DeleteRefusal>> {
        let (owned, plan_id) = (id.clone(), plan_id.clone());
        self.in_turn(id, |control| async move { control.deprovision_in_turn(&owned, &plan_id).await }).await
    }

    async fn deprovision_in_turn(
        &self,
        id: &ServiceInstanceId,
        plan_id: &PlanId,
    ) -> Result<ServiceInstance, Failure<DeleteRefusal>> {
        let now = self.clock.wall();
        let known = self.store.instance(id).await?;
        self.check_plan(known.as_ref(), plan_id).map_err(Failure::Refused)?;
        let pool = known.and_then(|known| self.facts.load().pools.get(&known.pool).cloned());
        let quarantined_until = now.plus(pool.map(|pool| pool.quarantine).unwrap_or_default());
        let gone = self.store.deprovision(id, now, quarantined_until).await?;
        if let Some(gone) = &gone {
            let release = Release { space_id: gone.space_id.clone(), at: now, quarantined_until };
            self.ports.release(&gone.pool, gone.port, release).await;
        }
        // Also when there was none: an earlier attempt may have deleted it and failed here.
        self.snapshot.refresh().await?;
        self.listener_gone(id).await;
        let gone = gone.ok_or(Failure::Refused(DeleteRefusal::Gone))?;
        tracing::info!(service_instance = %id, pool = %gone.pool, port = gone.port, "deprovisioned");
        Ok(gone)
    }

    /// Whether a delete may name this plan: one of the catalog that is not the service instance's may have been left by
    /// a change of plan that the platform lost.
    pub(super) fn check_plan(&self, known: Option<&ServiceInstance>, plan_id: &PlanId) -> Result<(), DeleteRefusal> {
        if !self.knows_plan(plan_id, known) {
            return Err(DeleteRefusal::UnknownPlan(plan_id.clone()));
        }
        if let Some(known) = known.filter(|known| known.plan_id != *plan_id) {
            let (service_instance, stored) = (&known.id, &known.plan_id);
            tracing::warn!(%service_instance, plan = %plan_id, %stored, "a delete names another plan than the stored one");
        }
        Ok(())
    }

    /// Whether a plan is of the catalog, or was: a service instance keeps a plan that was taken out of it.
    pub(super) fn knows_plan(&self, plan_id: &PlanId, instance: Option<&ServiceInstance>) -> bool {
        self.plan(plan_id).is_some() || instance.is_some_and(|instance| instance.plan_id == *plan_id)
    }
}
