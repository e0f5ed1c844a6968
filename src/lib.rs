//! Harbor: a Cloud Foundry service broker whose service is a TCP or UDP port.
//!
//! The modules stand in dependency order: each may import only from those above it, and only as the
//! table in `ARCHITECTURE.md` allows (`tests/tidy.rs` holds it).
//!
//! Three promises can be checked from the imports alone: traffic never waits for the database
//! ([`forwarder`] does not know [`store`]); a NATS message never touches a socket ([`discovery`] does
//! not know [`forwarder`]); HTTP types never reach the rules ([`model`] knows nothing).

pub mod model;

pub mod telemetry;

pub mod http;

pub mod host;

pub mod config;

pub mod store;

pub mod backends;

pub mod cluster;
pub mod control;

pub mod discovery;

pub mod announcer;

pub mod health;

pub mod forwarder;

pub mod broker;

pub mod admin;

pub mod app;

pub mod cli;

pub use model::registry::PortAllocator;
