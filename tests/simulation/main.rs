//! Seeded simulations: many histories, each replayed by `HARBOR_SEED=<seed>`.

mod announcements;
mod cluster;
#[path = "../histories/driver.rs"]
mod histories;
mod primaries;
mod seeds;
mod tcp_relay;
mod udp_sessions;
