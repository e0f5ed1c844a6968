//! Load, and what answers it.

pub mod backend;
pub mod load;
pub mod naive;
