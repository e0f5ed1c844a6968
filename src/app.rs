//! Builds and supervises everything.

pub mod clock;
mod migrate;
mod serve;

pub use migrate::migrate;
pub use serve::serve;
