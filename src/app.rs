//! Builds and supervises everything: what starts in which order, what is told to whom, and how it ends.

mod apis;
pub mod clock;
mod data;
mod drain;
mod drained;
mod flows;
pub mod handover;
mod infrastructure;
mod live;
mod lookout;
mod machine;
mod migrate;
mod node;
mod reload;
mod serve;
mod settings;
mod signals;
mod sockets;
mod tasks;

pub use data::{Imported, export, import, live_settings};
pub use machine::machine_needs;
pub use migrate::{check_store, migrate};
pub use serve::serve;

pub use crate::store::{Dump, MAX_FILE_BYTES};
