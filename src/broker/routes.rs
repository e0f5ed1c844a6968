//! The list of routes.

use std::sync::Arc;

use axum::routing::{MethodRouter, delete, get, patch, put};

use super::{Broker, bind, catalog, deprovision, fetch, fetch_binding, last_operation, provision, unbind, update};

/// What the API can do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "the list below says it")]
pub enum Operation {
    Catalog,
    Provision,
    Fetch,
    Update,
    Deprovision,
    LastOperation,
    Bind,
    FetchBinding,
    Unbind,
    BindingLastOperation,
}

/// One line of the API.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Route {
    /// The method.
    pub method: &'static str,
    /// The path, with its parameters in braces.
    pub path: &'static str,
    /// What it does.
    pub operation: Operation,
}

const fn route(method: &'static str, path: &'static str, operation: Operation) -> Route {
    Route { method, path, operation }
}

const INSTANCE: &str = "/v2/service_instances/{instance_id}";
const BINDING: &str = "/v2/service_instances/{instance_id}/service_bindings/{binding_id}";

/// The whole API.
pub const ROUTES: [Route; 10] = [
    route("GET", "/v2/catalog", Operation::Catalog),
    route("PUT", INSTANCE, Operation::Provision),
    route("GET", INSTANCE, Operation::Fetch),
    route("PATCH", INSTANCE, Operation::Update),
    route("DELETE", INSTANCE, Operation::Deprovision),
    route("GET", "/v2/service_instances/{instance_id}/last_operation", Operation::LastOperation),
    route("PUT", BINDING, Operation::Bind),
    route("GET", BINDING, Operation::FetchBinding),
    route("DELETE", BINDING, Operation::Unbind),
    route(
        "GET",
        "/v2/service_instances/{instance_id}/service_bindings/{binding_id}/last_operation",
        Operation::BindingLastOperation,
    ),
];

impl Operation {
    pub(super) fn handler(self) -> MethodRouter<Arc<Broker>> {
        match self {
            Self::Catalog => get(catalog::handle),
            Self::Provision => put(provision::handle),
            Self::Fetch => get(fetch::handle),
            Self::Update => patch(update::handle),
            Self::Deprovision => delete(deprovision::handle),
            Self::LastOperation => get(last_operation::handle),
            Self::Bind => put(bind::handle),
            Self::FetchBinding => get(fetch_binding::handle),
            Self::Unbind => delete(unbind::handle),
            Self::BindingLastOperation => get(last_operation::handle_binding),
        }
    }

    /// The word in metrics and logs.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Catalog => "catalog",
            Self::Provision => "provision",
            Self::Fetch => "fetch",
            Self::Update => "update",
            Self::Deprovision => "deprovision",
            Self::LastOperation => "last_operation",
            Self::Bind => "bind",
            Self::FetchBinding => "fetch_binding",
            Self::Unbind => "unbind",
            Self::BindingLastOperation => "binding_last_operation",
        }
    }
}

/// The word in metrics and logs for a request by its method and matched path; `none` for what is no route.
pub(super) fn word(method: &str, path: Option<&str>) -> &'static str {
    ROUTES
        .iter()
        .find(|route| route.method == method && Some(route.path) == path)
        .map_or("none", |route| route.operation.as_str())
}
