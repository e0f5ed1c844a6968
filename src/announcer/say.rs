//! One word about one place, by whichever way.

use std::time::Duration;

use super::{http::Client, nats::Publisher, places::Place};

/// By which way announcements go.
#[derive(Debug)]
pub enum Way {
    /// To Harbor's announce listener.
    Http(Client),
    /// To every node that listens.
    Nats(Publisher),
}

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

impl Way {
    /// Says it. Returns how long it holds, where that is known.
    pub(super) async fn say(&self, place: &Place, word: Word) -> Result<Option<Duration>, NotHeard> {
        match self {
            Self::Http(client) => client.say(place, word).await,
            Self::Nats(publisher) => publisher.say(place, word).await.map(|()| None),
        }
    }

    /// What has been done when it is said. Over NATS nobody answers, so nobody knows whether it is believed.
    pub(super) const fn done(&self, word: Word) -> &'static str {
        match (self, word) {
            (Self::Http(_), Word::Up) => "announced",
            (Self::Http(_), Word::Draining) => "announced as draining",
            (Self::Http(_), Word::Gone) => "withdrawn",
            (Self::Nats(_), Word::Up) => "published",
            (Self::Nats(_), Word::Draining) => "published as draining",
            (Self::Nats(_), Word::Gone) => "withdrawal published",
        }
    }

    /// Waits until everything is to be said again: for ever, over HTTP.
    pub(super) async fn asked_again(&self) {
        match self {
            Self::Http(_) => std::future::pending().await,
            Self::Nats(publisher) => publisher.asked_again().await,
        }
    }
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
