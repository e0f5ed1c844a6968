//! Deprovision: the end of a service instance, with its bindings, its listener and its flows.

use std::sync::Arc;

use super::{Control, Failure};
use crate::model::{ServiceInstanceId, allocation::Release, service_instance::ServiceInstance};

/// What should be deleted is not there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Gone;

impl Control {
    /// Deletes a service instance, closes its listener and puts its port to rest.
    ///
    /// # Errors
    /// [`Failure`]; [`Gone`] when there is none.
    pub async fn deprovision(
        self: &Arc<Self>,
        id: &ServiceInstanceId,
    ) -> Result<ServiceInstance, Failure<Gone>> {
        let owned = id.clone();
        self.in_turn(id, |control| async move { control.deprovision_in_turn(&owned).await }).await
    }

    async fn deprovision_in_turn(&self, id: &ServiceInstanceId) -> Result<ServiceInstance, Failure<Gone>> {
        let now = self.clock.wall();
        let pool = match self.store.instance(id).await? {
            Some(known) => self.facts.load().pools.get(&known.pool).cloned(),
            None => None,
        };
        let quarantined_until = now.plus(pool.map(|pool| pool.quarantine).unwrap_or_default());
        let gone = self.store.deprovision(id, now, quarantined_until).await?;
        if let Some(gone) = &gone {
            let release = Release { space_id: gone.space_id.clone(), at: now, quarantined_until };
            self.ports.release(&gone.pool, gone.port, release).await;
        }
        // Also when there was none: an earlier attempt may have deleted it and failed here.
        self.snapshot.refresh().await?;
        self.listener_gone(id).await;
        let gone = gone.ok_or(Failure::Refused(Gone))?;
        tracing::info!(service_instance = %id, pool = %gone.pool, port = gone.port, "deprovisioned");
        Ok(gone)
    }
}
