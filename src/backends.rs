//! Live backends per service instance: discovery writes, the forwarder reads.
//!
//! Each service instance has one slot with an immutable [`BackendSet`] in it. A change makes a new set and swaps it
//! in, once; the forwarder sees it at its next choice. What a flow must notice of the backend it is already on (that
//! it left, drains, or lost its authority) is the backend's [`Phase`].
//!
//! The table behind the slots keeps what the forwarder need not know: by whom each backend was announced last, and how
//! long it lives. It decides nothing about who may announce: `discovery` does, before it calls.

mod instance;
mod members;
mod set;
mod table;

pub use instance::{BackendState, stands};
pub use set::{Backend, BackendSet, Health, Phase, Slot};
pub use table::{Backends, Change, Counts};
