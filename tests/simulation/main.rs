//! Seeded simulations: many histories, each replayed by `HARBOR_SEED=<seed>`.

mod announcements;
mod primaries;
mod seeds;
mod tcp_relay;
mod udp_sessions;
