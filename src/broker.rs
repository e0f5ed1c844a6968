//! The Open Service Broker API: routes, one handler a file, wire structs, one table of errors.
//!
//! JSON and HTTP end here: [`crate::control`] gets checked values. `openapi.yaml` describes what this module answers.
//!
//! On its way in, a request is judged in this order: who asks, which version of the API, which route, how large, what
//! it says. Each step answers for itself, so that nothing is read for a caller who may not ask.

use std::sync::Arc;

use arc_swap::ArcSwap;
use axum::{Router, middleware};
use bytes::Bytes;

use crate::{control::Control, http, model::plan::Plan, telemetry::metrics::BrokerMetrics};

mod bind;
mod catalog;
mod credentials;
mod deprovision;
mod errors;
mod fetch;
mod fetch_binding;
mod gate;
mod last_operation;
pub mod parameters;
mod provision;
mod request;
mod routes;
pub mod schemas;
mod unbind;
mod update;

pub use gate::Passwords;
pub use routes::{Operation, ROUTES, Route};

use schemas::Schemas;

/// Largest body that is read.
pub const MAX_BODY_BYTES: usize = 256 * 1024;

/// What handlers share.
#[derive(Debug)]
struct Broker {
    control: Arc<Control>,
    passwords: Arc<Passwords>,
    offer: ArcSwap<Offer>,
    metrics: Arc<BrokerMetrics>,
}

/// What is made of the plans, once for each time that they change.
#[derive(Debug)]
struct Offer {
    plans: Arc<[Plan]>,
    schemas: Schemas,
    catalog: Bytes,
}

impl Offer {
    fn of(plans: Arc<[Plan]>) -> Self {
        let schemas = Schemas::of(&plans);
        Self { catalog: catalog::body(&plans, &schemas), schemas, plans }
    }
}

impl Broker {
    /// What there is to choose from at this moment.
    fn offer(&self) -> Arc<Offer> {
        let (offer, plans) = (self.offer.load_full(), self.control.catalog());
        if Arc::ptr_eq(&offer.plans, &plans) {
            return offer;
        }
        let offer = Arc::new(Offer::of(plans));
        self.offer.store(Arc::clone(&offer));
        offer
    }
}

/// The API as a router, ready for [`http::serve`]. The caller keeps `passwords` too, to replace them.
pub fn router(control: Arc<Control>, passwords: Arc<Passwords>, metrics: Arc<BrokerMetrics>) -> Router {
    let offer = ArcSwap::from_pointee(Offer::of(control.catalog()));
    let broker = Arc::new(Broker { control, passwords, offer, metrics });
    let routes = ROUTES.iter().fold(Router::new(), |router, route| router.route(route.path, route.operation.handler()));
    http::with_fallbacks(routes.with_state(Arc::clone(&broker)))
        .layer(middleware::from_fn(gate::version))
        .layer(middleware::from_fn_with_state(Arc::clone(&broker), gate::authentication))
        .layer(middleware::from_fn_with_state(broker, gate::account))
}
