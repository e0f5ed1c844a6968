//! Load, and what answers it.

pub mod backend;
mod events;
mod histogram;
pub mod load;
pub mod naive;
mod outcome;
mod protocol;
mod schedule;
mod sockets;
