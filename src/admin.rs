//! What operators ask: health, metrics, and a status that the command line shows.

pub mod wire;
