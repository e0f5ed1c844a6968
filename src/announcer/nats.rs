//! Announcements over NATS, each with a proof of the binding's token: for the operator's own machines.

use std::{fmt, path::PathBuf, sync::Arc, time::Duration};

use async_nats::{Client, ConnectOptions, Subscriber};
use futures_util::StreamExt as _;
use tokio::{sync::Mutex, time::timeout};

use super::{
    places::Place,
    say::{NotHeard, Word},
};
use crate::{
    discovery::{
        authority::statement,
        source::Action,
        wire::{Announcement, HARBOR_REGISTER, HARBOR_START, HARBOR_UNREGISTER, Harbor},
    },
    model::{Clock, Protocol, token::Token},
};

/// How long a message may take to reach the server.
const WRITE_TIMEOUT: Duration = Duration::from_secs(5);

/// How to show who speaks.
#[derive(Debug, Clone)]
pub enum Login {
    /// As the URL says.
    Url,
    /// By a credentials file.
    CredentialsFile(PathBuf),
}

/// Says it to all nodes.
pub struct Publisher {
    client: Client,
    starts: Mutex<Subscriber>,
    service_instance_id: String,
    binding_id: String,
    token: Token,
    clock: Arc<dyn Clock>,
}

/// Why there can be no publisher.
#[derive(Debug, thiserror::Error)]
pub enum PublisherError {
    /// The credentials file.
    #[error("cannot read {}: {source}", path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// No server lets this one in.
    #[error("cannot connect to NATS: {0}")]
    Connect(#[from] async_nats::ConnectError),
    /// `harbor.start` cannot be listened to.
    #[error("cannot listen to {HARBOR_START}: {0}")]
    Subscribe(#[from] async_nats::SubscribeError),
}

impl Publisher {
    /// Connects by itself, again and again where it must: what is served does not wait for NATS.
    ///
    /// # Errors
    /// [`PublisherError`].
    pub async fn connect(
        servers: &[String],
        login: &Login,
        service_instance_id: String,
        binding_id: String,
        token: Token,
        clock: Arc<dyn Clock>,
    ) -> Result<Self, PublisherError> {
        let options = ConnectOptions::new().name("harbor announce").retry_on_initial_connect().event_callback(
            |event| async move {
                tracing::info!(%event, "NATS");
            },
        );
        let options = match login {
            Login::Url => options,
            Login::CredentialsFile(path) => {
                let with = options.credentials_file(path).await;
                with.map_err(|source| PublisherError::File { path: path.clone(), source })?
            }
        };
        let client = options.connect(servers).await?;
        let starts = Mutex::new(client.subscribe(HARBOR_START).await?);
        Ok(Self { client, starts, service_instance_id, binding_id, token, clock })
    }

    pub(super) async fn say(&self, place: &Place, word: Word) -> Result<(), NotHeard> {
        let (subject, action) = match word {
            Word::Up | Word::Draining => (HARBOR_REGISTER, Action::Register),
            Word::Gone => (HARBOR_UNREGISTER, Action::Unregister),
        };
        let Some(host) = place.host else {
            return Err(NotHeard::Refused("over NATS the host must be said: name it by --host".into()));
        };
        let protocol = match (place.port, place.udp_port) {
            (Some(_), Some(_)) => Protocol::Both,
            (None, Some(_)) => Protocol::Udp,
            _ => Protocol::Tcp,
        };
        let mut message = Announcement {
            host: Some(host.to_string()),
            port: place.port,
            harbor: Some(Harbor {
                instance_id: Some(self.service_instance_id.clone()),
                binding_id: Some(self.binding_id.clone()),
                protocol: Some(protocol.as_str().to_owned()),
                udp_port: place.udp_port,
                state: Some(word.state().to_owned()),
                timestamp: Some(self.clock.wall().seconds()),
                ..Harbor::default()
            }),
            ..Announcement::default()
        };
        let proof = self.token.prove(&statement(&message, action));
        message.harbor.get_or_insert_default().proof = Some(proof);
        let sent = timeout(WRITE_TIMEOUT, async {
            self.client.publish(subject, message.to_bytes().into()).await.map_err(|error| error.to_string())?;
            self.client.flush().await.map_err(|error| error.to_string())
        });
        match sent.await {
            Ok(sent) => sent.map_err(|error| NotHeard::Failed(format!("NATS does not take it: {error}"))),
            Err(_) => Err(NotHeard::Failed(format!("NATS takes nothing for {} s", WRITE_TIMEOUT.as_secs()))),
        }
    }

    /// Waits until a node asks to hear everything again.
    pub(super) async fn asked_again(&self) {
        if self.starts.lock().await.next().await.is_none() {
            // The client has ended for good; there is nothing more to hear.
            std::future::pending().await
        }
    }
}

impl fmt::Debug for Publisher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Publisher").field("service_instance_id", &self.service_instance_id).finish_non_exhaustive()
    }
}
