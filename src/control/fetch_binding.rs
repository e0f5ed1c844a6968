//! Fetch a binding: its credentials once more.

use std::sync::Arc;

use super::{Control, Failure, NotFound};
use crate::model::{BindingId, ServiceInstanceId, binding::Binding, credentials::Credentials};

/// A binding and its credentials.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FetchedBinding {
    /// As it is stored.
    pub binding: Binding,
    /// The same as when it was bound.
    pub credentials: Credentials,
}

impl Control {
    /// A binding of a service instance.
    ///
    /// # Errors
    /// [`Failure`]; [`NotFound`] when there is none.
    pub async fn fetch_binding(
        self: &Arc<Self>,
        instance: &ServiceInstanceId,
        id: &BindingId,
    ) -> Result<FetchedBinding, Failure<NotFound>> {
        let (owned, id) = (instance.clone(), id.clone());
        self.in_turn(instance, |control| async move {
            let Some(instance) = control.store.instance(&owned).await? else { return Err(Failure::Refused(NotFound)) };
            let Some(binding) = control.store.binding(&owned, &id).await? else {
                return Err(Failure::Refused(NotFound));
            };
            let credentials = control.credentials(&instance, &binding)?;
            Ok(FetchedBinding { binding, credentials })
        })
        .await
    }
}
