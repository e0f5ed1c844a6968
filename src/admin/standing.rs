//! What a backend is good for at the moment, in one word.

use std::time::Instant;

use crate::{
    backends::{BackendState, Health},
    model::announcement::AnnouncedState,
    telemetry::metrics::Words,
};

/// Of several that hold, the one that comes later here is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// It gets what is new.
    Up,
    /// It is passed over for a while, since connecting to it failed.
    Aside,
    /// Its checks find it down.
    Down,
    /// It wants nothing new.
    Draining,
}

impl From<Standing> for usize {
    fn from(standing: Standing) -> Self {
        standing as Self
    }
}

impl Words for Standing {
    const WORDS: &'static [&'static str] = &["up", "aside", "down", "draining"];
}

impl Standing {
    /// That of a backend, and since when.
    pub fn of(backend: &BackendState, now: Instant) -> (Self, Instant) {
        let (health, health_since) = backend.backend.health();
        match (backend.state, health, backend.backend.aside(now)) {
            (AnnouncedState::Draining, ..) => (Self::Draining, backend.state_since),
            (_, Health::Down, _) => (Self::Down, health_since),
            (.., Some((since, _))) => (Self::Aside, since),
            _ => (Self::Up, backend.state_since),
        }
    }
}
