//! A binding: an app's or a key's credentials for a service instance.

use super::{AppId, BindingId, Revision, ServiceInstanceId, SpaceId, Timestamp};

/// A binding as it is stored. Nothing secret is kept: its token is derived, see [`super::token`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Binding {
    /// Given by the platform.
    pub id: BindingId,
    /// What it gives access to.
    pub service_instance_id: ServiceInstanceId,
    /// The app it binds; none for a service key.
    pub app_id: Option<AppId>,
    /// The app's space, where the platform says so: another than the owner's when the service instance is shared.
    pub space_id: Option<SpaceId>,
    /// Whether its holder may announce backends: apps may, keys only when asked for.
    pub announce: bool,
    /// The binding that it takes over from, when it was made by rotation.
    pub predecessor_id: Option<BindingId>,
    /// When it was bound.
    pub created_at: Timestamp,
    /// The revision of its last change.
    pub revision: Revision,
}
