//! Fetch: a service instance as it stands.

use std::sync::Arc;

use super::{Control, Failure};
use crate::model::{ServiceInstanceId, service_instance::ServiceInstance};

/// What should be shown is not there.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("there is no such service instance or binding")]
pub struct NotFound;

impl Control {
    /// A service instance. One that is being provisioned or changed here is waited for; one that is being provisioned
    /// elsewhere is not there yet.
    ///
    /// # Errors
    /// [`Failure`]; [`NotFound`] when there is none.
    pub async fn fetch(self: &Arc<Self>, id: &ServiceInstanceId) -> Result<ServiceInstance, Failure<NotFound>> {
        let owned = id.clone();
        self.in_turn(id, |control| async move {
            let known = control.store.instance(&owned).await?.ok_or(Failure::Refused(NotFound))?;
            if control.is_being_opened(&owned).await? { Err(Failure::Refused(NotFound)) } else { Ok(known) }
        })
        .await
    }
}
