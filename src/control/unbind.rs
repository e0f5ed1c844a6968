//! Unbind: the end of a binding, and with it of every backend and flow that it authorised.

use std::sync::Arc;

use super::{
    Control, DeleteRefusal, Failure,
    audit::{self, Change},
};
use crate::model::{BindingId, PlanId, ServiceInstanceId, binding::Binding, requester::Requester};

impl Control {
    /// Deletes a binding. Its token counts no more, and backends that it authorised end at once: the directory that is
    /// published here has it no longer.
    ///
    /// # Errors
    /// [`Failure`]; [`DeleteRefusal::Gone`] when there is none.
    pub async fn unbind(
        self: &Arc<Self>,
        instance: &ServiceInstanceId,
        id: &BindingId,
        plan_id: &PlanId,
        by: Requester,
    ) -> Result<Binding, Failure<DeleteRefusal>> {
        let (owned, id, plan_id) = (instance.clone(), id.clone(), plan_id.clone());
        self.in_turn(instance, |control| async move {
            let known = control.store.instance(&owned).await?;
            control.check_plan(known.as_ref(), &plan_id).map_err(Failure::Refused)?;
            let gone = control.store.unbind(&owned, &id).await?;
            if let Some(gone) = &gone {
                audit::note(&by, Change::Unbound(gone));
            }
            // Also when there was none: an earlier attempt may have deleted it and failed here.
            control.snapshot.refresh().await?;
            gone.ok_or(Failure::Refused(DeleteRefusal::Gone))
        })
        .await
    }
}
