//! One word about one place.

use std::time::Duration;

/// What is said of a place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Word {
    Up,
    Draining,
    Gone,
}

/// Why it was not heard.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum NotHeard {
    /// Harbor says no; it is said why.
    #[error("{0}")]
    Refused(String),
    /// Not before so long.
    #[error("Harbor asks to wait for {} s", .0.as_secs())]
    TooMany(Duration),
    /// Nobody answered.
    #[error("{0}")]
    Failed(String),
}

impl Word {
    /// The state in a register.
    pub(super) const fn state(self) -> &'static str {
        match self {
            Self::Up | Self::Gone => "up",
            Self::Draining => "draining",
        }
    }
}
