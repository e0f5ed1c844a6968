//! Announcements over NATS, each with a proof of the binding's token: for the operator's own machines.

use std::{
    fmt,
    net::IpAddr,
    sync::{Arc, Mutex, MutexGuard, OnceLock},
    time::Duration,
};

use async_nats::{Client, ConnectOptions, Event, ServerAddr, Subscriber};
use bytes::Bytes;
use futures_util::{
    StreamExt as _,
    stream::{self, SelectAll},
};
use percent_encoding::percent_decode_str;
use tokio::{
    sync::{self, Notify},
    time::timeout,
};

use super::{
    places::Place,
    word::{NotHeard, Word},
};
use crate::{
    discovery::{
        authority::statement,
        nats::{Login, Tls, UnreadableFile, identified},
        source::Action,
        wire::{Announcement, Greeting, HARBOR_GREET, HARBOR_REGISTER, HARBOR_START, HARBOR_UNREGISTER, Harbor},
    },
    model::{Clock, Timestamp, token::Token},
};

/// How long a message may take to reach the server.
const WRITE_TIMEOUT: Duration = Duration::from_secs(5);

/// How to reach NATS.
#[derive(Debug, Clone)]
pub struct Server {
    /// URLs.
    pub urls: Vec<String>,
    /// How to show who speaks; none: as the URLs say.
    pub login: Option<Login>,
    /// TLS files.
    pub tls: Tls,
}

/// Says it to all nodes: of one place, as whose beginning it takes its own first word.
pub struct Publisher {
    client: Client,
    /// What nodes say by themselves, and what they answer at `inbox`.
    greetings: sync::Mutex<SelectAll<Subscriber>>,
    inbox: String,
    connected: Arc<Notify>,
    /// How long an announcement holds at the node that forgets first, as far as nodes have said so.
    holds: Mutex<Option<Duration>>,
    since: OnceLock<Timestamp>,
    service_instance_id: String,
    binding_id: String,
    token: Token,
    clock: Arc<dyn Clock>,
}

/// Why there can be no publisher.
#[derive(Debug, thiserror::Error)]
pub enum PublisherError {
    /// A file that shows who this is.
    #[error(transparent)]
    File(#[from] UnreadableFile),
    /// A URL is none. It may hold a password, so it is not shown.
    #[error("that is not the URL of a NATS server ({0}): write for example nats://10.0.0.7:4222")]
    Url(std::io::Error),
    /// The client cannot begin.
    #[error("cannot connect to NATS: {0}")]
    Connect(#[from] async_nats::ConnectError),
    /// Greetings cannot be listened to.
    #[error("cannot listen to {HARBOR_START}: {0}")]
    Subscribe(#[from] async_nats::SubscribeError),
}

impl Publisher {
    /// Connects by itself, again and again where it must: what is served does not wait for NATS.
    ///
    /// # Errors
    /// [`PublisherError`].
    pub async fn connect(
        server: &Server,
        service_instance_id: String,
        binding_id: String,
        token: Token,
        clock: Arc<dyn Clock>,
    ) -> Result<Self, PublisherError> {
        let connected = Arc::new(Notify::new());
        let options = ConnectOptions::new().name("harbor announce").retry_on_initial_connect();
        let urls = server.urls.iter().map(|url| url.parse::<ServerAddr>()).collect::<Result<Vec<_>, _>>();
        let urls = urls.map_err(PublisherError::Url)?;
        let login = server.login.clone().unwrap_or_else(|| login_of(&urls));
        let options = identified(options, &login, &server.tls).await?;
        let options = options.event_callback(told(Arc::clone(&connected)));
        let client = options.connect(urls).await?;
        let inbox = client.new_inbox();
        let greetings = [client.subscribe(HARBOR_START).await?, client.subscribe(inbox.clone()).await?];
        Ok(Self {
            client,
            greetings: sync::Mutex::new(stream::select_all(greetings)),
            inbox,
            connected,
            holds: Mutex::default(),
            since: OnceLock::new(),
            service_instance_id,
            binding_id,
            token,
            clock,
        })
    }

    /// Says it. Returns how long it holds, where a node has said that.
    pub(super) async fn say(&self, place: &Place, word: Word) -> Result<Option<Duration>, NotHeard> {
        let (subject, action) = match word {
            Word::Up | Word::Draining => (HARBOR_REGISTER, Action::Register),
            Word::Gone => (HARBOR_UNREGISTER, Action::Unregister),
        };
        let Some(host) = place.host else {
            return Err(NotHeard::Refused("over NATS the host must be said: name it by --host".into()));
        };
        let sent = timeout(WRITE_TIMEOUT, async {
            // Not before there is a connection: what waited in the client for one would be old news by then.
            self.client.flush().await.map_err(|error| error.to_string())?;
            let message = self.message(host, place, word, action);
            self.client.publish(subject, message.to_bytes().into()).await.map_err(|error| error.to_string())?;
            self.client.flush().await.map_err(|error| error.to_string())
        });
        match sent.await {
            Ok(Ok(())) => Ok(*self.holds()),
            Ok(Err(error)) => Err(NotHeard::Failed(format!("NATS does not take it: {error}"))),
            Err(_) => Err(NotHeard::Failed(format!("NATS takes nothing for {} s", WRITE_TIMEOUT.as_secs()))),
        }
    }

    fn message(&self, host: IpAddr, place: &Place, word: Word, action: Action) -> Announcement {
        let now = self.clock.wall();
        let mut message = Announcement {
            host: Some(host.to_string()),
            port: place.port,
            harbor: Some(Harbor {
                instance_id: Some(self.service_instance_id.clone()),
                binding_id: Some(self.binding_id.clone()),
                protocol: Some(place.protocol().as_str().to_owned()),
                udp_port: place.udp_port,
                state: Some(word.state().to_owned()),
                since: Some(self.since.get_or_init(|| now).0),
                timestamp: Some(now.seconds()),
                ..Harbor::default()
            }),
            ..Announcement::default()
        };
        let proof = self.token.prove(&statement(&message, action));
        message.harbor.get_or_insert_default().proof = Some(proof);
        message
    }

    /// Waits until a node asks to hear everything again, forgets sooner than was known, or NATS is there again: nobody
    /// may have heard the last word, and nodes are asked how long they remember.
    pub(super) async fn asked_again(&self) {
        let mut greetings = self.greetings.lock().await;
        loop {
            tokio::select! {
                Some(greeting) = greetings.next() => {
                    let sooner = self.heed(&greeting.payload);
                    if sooner || greeting.subject.as_str() == HARBOR_START {
                        return;
                    }
                }
                () = self.connected.notified() => {
                    // Without an answer the next `harbor.start` tells it.
                    let _ = self.client.publish_with_reply(HARBOR_GREET, self.inbox.clone(), Bytes::new()).await;
                    return;
                }
            }
        }
    }

    /// Takes in what a node says of how long it remembers. Returns whether that is less than any before it.
    fn heed(&self, greeting: &[u8]) -> bool {
        let told = serde_json::from_slice::<Greeting>(greeting).map_or(0, |greeting| greeting.prune_threshold_seconds);
        let told = Duration::from_secs(told);
        let mut known = self.holds();
        let sooner = !told.is_zero() && known.is_none_or(|known| told < known);
        if sooner {
            *known = Some(told);
        }
        sooner
    }

    fn holds(&self) -> MutexGuard<'_, Option<Duration>> {
        self.holds.lock().expect("nothing panics while it holds the time")
    }
}

/// Who the URLs say speaks, by the first one that does: the client does not look there.
fn login_of(urls: &[ServerAddr]) -> Login {
    let decoded = |text: &str| percent_decode_str(text).decode_utf8_lossy().into_owned();
    let named = urls.iter().find_map(|url| Some((decoded(url.username()?), url.password().map(decoded))));
    match named {
        Some((user, Some(password))) => Login::Password { user, password },
        Some((token, None)) => Login::Token(token),
        None => Login::Anonymous,
    }
}

/// Tells the user what the client says of its connection, nothing twice in a row, and wakes who waits for one.
fn told(connected: Arc<Notify>) -> impl Fn(Event) -> std::future::Ready<()> + Send + Sync + 'static {
    let last = Mutex::new(String::new());
    move |event| {
        if matches!(event, Event::Connected) {
            connected.notify_one();
        }
        let text = event.to_string();
        let mut last = last.lock().expect("nothing panics while it holds the text");
        if *last != text {
            match event {
                Event::ServerError(_) | Event::ClientError(_) => tracing::warn!("NATS: {text}"),
                _ => tracing::info!("NATS: {text}"),
            }
            *last = text;
        }
        std::future::ready(())
    }
}

impl fmt::Debug for Publisher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Publisher").field("service_instance_id", &self.service_instance_id).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_may_say_who_speaks() {
        let login = |urls: &[&str]| login_of(&urls.iter().map(|url| url.parse().unwrap()).collect::<Vec<_>>());
        assert!(matches!(login(&["nats://10.0.0.7", "tls://10.0.0.8:4224"]), Login::Anonymous));
        assert!(matches!(login(&["nats://secret@10.0.0.7"]), Login::Token(token) if token == "secret"));
        let named = login(&["nats://10.0.0.7:4222", "nats://a%40b:p%2Fq@10.0.0.8:4222"]);
        assert!(matches!(named, Login::Password { user, password } if user == "a@b" && password == "p/q"));
    }
}
