//! Real parts for tests, started on free ports and stopped on drop.

pub mod debian;
pub mod echo;
pub mod eventually;
pub mod footprint;
pub mod harbor;
pub mod http;
pub mod keepalived;
pub mod life;
pub mod namespaces;
pub mod nats;
pub mod postgres;

#[path = "../fixtures/announcements.rs"]
pub mod announcements;
#[path = "../fuzz/mutate.rs"]
pub mod mutate;
pub mod peer;
