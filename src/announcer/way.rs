//! By which way a word is said.

use std::time::Duration;

use super::{
    http::Client,
    nats::Publisher,
    places::Place,
    word::{NotHeard, Word},
};

/// By which way announcements go.
#[derive(Debug)]
pub enum Way {
    /// To Harbor's announce listener.
    Http(Client),
    /// To every node that listens.
    Nats(Box<Publisher>),
}

impl Way {
    /// Says it. Returns how long it holds, where that is known.
    pub(super) async fn say(&self, place: &Place, word: Word) -> Result<Option<Duration>, NotHeard> {
        match self {
            Self::Http(client) => client.say(place, word).await,
            Self::Nats(publisher) => publisher.say(place, word).await,
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
