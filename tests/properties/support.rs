//! Real parts, shared with the integration tests.

#[path = "../integration/support/eventually.rs"]
pub mod eventually;
#[path = "../integration/support/postgres.rs"]
pub mod postgres;
