//! Several nodes on one PostgreSQL, each a process with addresses of its own on loopback.

mod announcements;
mod away;
mod histories;
mod lagging;
mod membership;
mod pools;
mod provision;
mod restrained;
pub mod trio;
mod versions;
