//! Unbind: the end of a binding, and with it of every backend and flow that it authorised.

use std::sync::Arc;

use super::{Control, Failure, Gone};
use crate::model::{BindingId, ServiceInstanceId, binding::Binding};

impl Control {
    /// Deletes a binding. Its token counts no more, and backends that it authorised end at once: the directory that is
    /// published here has it no longer.
    ///
    /// # Errors
    /// [`Failure`]; [`Gone`] when there is none.
    pub async fn unbind(
        self: &Arc<Self>,
        instance: &ServiceInstanceId,
        id: &BindingId,
    ) -> Result<Binding, Failure<Gone>> {
        let (owned, id) = (instance.clone(), id.clone());
        self.in_turn(instance, |control| async move {
            let gone = control.store.unbind(&owned, &id).await?;
            // Also when there was none: an earlier attempt may have deleted it and failed here.
            control.snapshot.refresh().await?;
            let gone = gone.ok_or(Failure::Refused(Gone))?;
            tracing::info!(service_instance = %owned, binding = %id, "unbound");
            Ok(gone)
        })
        .await
    }
}
