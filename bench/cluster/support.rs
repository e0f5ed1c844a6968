//! Real parts, shared with the integration tests.

#[path = "../../tests/integration/support/eventually.rs"]
pub mod eventually;
#[path = "../../tests/integration/support/harbor.rs"]
pub mod harbor;
#[path = "../../tests/integration/support/http.rs"]
pub mod http;
#[path = "../../tests/integration/support/namespaces.rs"]
pub mod namespaces;
#[path = "../../tests/integration/support/nats.rs"]
pub mod nats;
#[path = "../../tests/integration/support/postgres.rs"]
pub mod postgres;
