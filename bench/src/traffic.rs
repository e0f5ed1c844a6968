//! Load, and what answers it.

pub mod backend;
pub mod events;
mod histogram;
pub mod load;
pub mod naive;
mod outcome;
mod protocol;
pub mod schedule;
mod sockets;
