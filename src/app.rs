//! Builds and supervises everything.

pub mod clock;
