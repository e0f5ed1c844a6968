//! What Harbor says of itself: logs and metric handles.

pub mod log;
pub mod metrics;
