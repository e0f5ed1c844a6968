//! Announcements over NATS: subscribe, hand over, greet, relay; and connect again, for ever.
//!
//! One session is one connection: when it is lost, everything of it is dropped and a new one is made. Each begins by
//! asking every announcer to speak again (`harbor.start`), since what was said meanwhile is lost. `router.start` is
//! never published and `router.greet` never answered: either would retune every route-emitter of the platform.

use std::{
    fmt, io,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use async_nats::{Client, ConnectOptions, Event, Message, Subscriber};
use bytes::Bytes;
use futures_util::{
    StreamExt as _,
    stream::{self, SelectAll},
};
use tokio::{
    sync::watch,
    time::{MissedTickBehavior, timeout},
};
use tokio_util::sync::CancellationToken;

use super::{
    Discovery, Relays,
    source::{Action, Source},
    wire::{self, Greeting},
};
use crate::model::observed::Link;

/// Longest pause between two attempts to connect.
const RECONNECT_PAUSE: Duration = Duration::from_millis(250);

/// How long one attempt to connect may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);

/// How long a write may wait for the connection before it counts as lost.
const WRITE_TIMEOUT: Duration = Duration::from_secs(3);

/// How long the server may take to have read the subscriptions.
const ROUND_TRIP_TIMEOUT: Duration = Duration::from_secs(1);

/// How often a silent server is asked whether it is there; after two silences it counts as lost.
const PING_INTERVAL: Duration = Duration::from_secs(10);

/// Messages that wait per subject; more are dropped by the client, which says so.
const MAX_WAITING_MESSAGES: usize = 65_536;

/// How often announcers are asked to repeat, at the most, when messages were dropped.
const RESYNC_PAUSE: Duration = Duration::from_secs(5);

/// How often other nodes are told since when this one knows backends, where there is news of that.
const SENIORITY_INTERVAL: Duration = Duration::from_millis(100);

/// What announcers are told of how often to announce, at the least: three times in the life of a backend.
const REGISTER_INTERVAL: Duration = Duration::from_secs(20);

/// How often it is logged that the server refuses something, at the most.
const SERVER_ERROR_PAUSE: Duration = Duration::from_secs(60);

/// How to reach NATS.
#[derive(Debug, Clone)]
pub struct Settings {
    /// URLs, `nats://` or `tls://`.
    pub servers: Vec<String>,
    /// How this node shows who it is.
    pub login: Login,
    /// TLS files.
    pub tls: Tls,
    /// Whether `harbor.*` is listened to.
    pub harbor_subjects: bool,
    /// Whether `router.*` is listened to.
    pub router_subjects: bool,
    /// Whether `service-discovery.*` is listened to.
    pub service_discovery_subjects: bool,
    /// This run of this node, as greetings show it: `<node>-<uuid>`.
    pub id: String,
    /// Its addresses, as greetings show them.
    pub hosts: Vec<String>,
}

/// How a client of NATS shows who it is.
#[derive(Clone)]
pub enum Login {
    /// It does not.
    Anonymous,
    /// By user and password.
    Password {
        /// The user.
        user: String,
        /// The password.
        password: String,
    },
    /// By a token.
    Token(String),
    /// By the seed of a key in a file.
    NkeySeedFile(PathBuf),
    /// By a credentials file: a user's JWT and the seed of its key.
    CredentialsFile(PathBuf),
}

/// TLS towards NATS.
#[derive(Debug, Clone, Default)]
pub struct Tls {
    /// The authority of the servers, beside those of the machine.
    pub ca: Option<PathBuf>,
    /// Certificate and private key of this node.
    pub identity: Option<(PathBuf, PathBuf)>,
}

impl fmt::Debug for Login {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Anonymous => "Anonymous",
            Self::Password { .. } => "Password(…)",
            Self::Token(_) => "Token(…)",
            Self::NkeySeedFile(_) => "NkeySeedFile(…)",
            Self::CredentialsFile(_) => "CredentialsFile(…)",
        })
    }
}

/// A file that shows who a client is cannot be read.
#[derive(Debug, thiserror::Error)]
#[error("cannot read {}: {source}", path.display())]
pub struct UnreadableFile {
    path: PathBuf,
    source: io::Error,
}

/// Why there is no session.
#[derive(Debug, thiserror::Error)]
enum Lost {
    #[error("cannot connect: {0}")]
    Connect(#[from] async_nats::ConnectError),
    #[error(transparent)]
    File(#[from] UnreadableFile),
    #[error("cannot subscribe: {0}")]
    Subscribe(#[from] async_nats::SubscribeError),
    #[error("the connection took no writes for {} seconds", WRITE_TIMEOUT.as_secs())]
    Stuck,
    #[error("the connection was lost")]
    Closed,
}

/// What the client says of itself while a session lasts.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Signals {
    disconnected: bool,
    /// Times that messages were dropped.
    slow: u64,
    /// When the server's last refusal was logged: whoever makes it refuse can do so very often.
    told_at: Option<tokio::time::Instant>,
}

/// Receives until `shutdown`, over however many sessions that takes. `link` shows how it fares.
pub async fn run(
    discovery: Arc<Discovery>,
    mut relays: Relays,
    settings: Settings,
    link: watch::Sender<Link>,
    shutdown: CancellationToken,
) {
    let mut pause = Duration::ZERO;
    loop {
        tokio::select! {
            () = shutdown.cancelled() => return,
            () = tokio::time::sleep(pause) => {}
        }
        let Err(lost) = session(&discovery, &mut relays, &settings, &link, &shutdown).await else { return };
        pause =
            if link_is_up(&link) { Duration::ZERO } else { (pause * 2).clamp(RECONNECT_PAUSE / 8, RECONNECT_PAUSE) };
        // Not before the first attempt: where NATS is there at the start, backends of the last process keep the
        // deadlines they had.
        discovery.nats_is_away();
        show_down(&link, &discovery, &lost);
    }
}

fn link_is_up(link: &watch::Sender<Link>) -> bool {
    matches!(*link.borrow(), Link::Up(_))
}

/// Says once that the connection is lost; while it stays so only the reason is kept up to date.
fn show_down(link: &watch::Sender<Link>, discovery: &Discovery, lost: &Lost) {
    let reason: Arc<str> = lost.to_string().into();
    link.send_if_modified(|link| {
        let since = match link {
            Link::Down(_, known) if *known == reason => return false,
            Link::Down(since, _) => *since,
            Link::Up(_) | Link::Absent => discovery.clock.wall(),
        };
        tracing::warn!(%reason, "NATS is away: backends stay as they are, and connecting goes on");
        *link = Link::Down(since, reason);
        true
    });
}

/// One connection, from its making to its loss. Ok when it ended because of `shutdown`.
async fn session(
    discovery: &Arc<Discovery>,
    relays: &mut Relays,
    settings: &Settings,
    link: &watch::Sender<Link>,
    shutdown: &CancellationToken,
) -> Result<(), Lost> {
    let (signals, mut signalled) = watch::channel(Signals::default());
    let start = greeting(discovery, settings);
    let (client, mut messages, mut greets) = tokio::select! {
        () = shutdown.cancelled() => return Ok(()),
        connected = connect(settings, signals, &start) => connected?,
    };
    discovery.nats_is_back();
    link.send_replace(Link::Up(discovery.clock.wall()));
    tracing::info!("connected to NATS: announcers were asked to announce again");

    let mut seniority = tokio::time::interval(SENIORITY_INTERVAL);
    seniority.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut slow_seen = 0;
    let mut resync_at = None;
    loop {
        let resync = async {
            match resync_at {
                Some(at) => tokio::time::sleep_until(at).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = shutdown.cancelled() => {
                // Relays that were accepted still go out; nothing more is read.
                let _ = flush(&client).await;
                return Ok(());
            }
            Some(message) = messages.next() => hand_over(discovery, &message),
            greet = greets.next() => answer(&client, greet.ok_or(Lost::Closed)?, &start).await?,
            Some(relay) = relays.0.recv() => {
                if discovery.clock.now() < relay.good_until {
                    publish(&client, relay.subject, relay.payload).await?;
                } else {
                    discovery.metrics.relays_dropped.inc();
                }
            }
            _ = seniority.tick(), if settings.harbor_subjects => {
                for message in discovery.seniority() {
                    publish(&client, wire::HARBOR_SINCE, message).await?;
                }
            }
            changed = signalled.changed() => {
                changed.map_err(|_| Lost::Closed)?;
                let now = *signalled.borrow_and_update();
                if now.disconnected {
                    return Err(Lost::Closed);
                }
                discovery.metrics.nats_slow_consumer.inc_by(now.slow - slow_seen);
                slow_seen = now.slow;
                resync_at = resync_at.or_else(|| Some(tokio::time::Instant::now() + RESYNC_PAUSE));
            }
            () = resync => {
                tracing::warn!("messages came faster than they were read: announcers are asked to announce again");
                resync_at = None;
                publish(&client, wire::HARBOR_START, start.clone()).await?;
                discovery.say_seniority_of_all();
            }
        }
    }
}

/// A client whose subscriptions the server knows, and who has asked announcers to speak.
async fn connect(
    settings: &Settings,
    signals: watch::Sender<Signals>,
    start: &Bytes,
) -> Result<(Client, SelectAll<Subscriber>, Subscriber), Lost> {
    let client = options(settings, signals).await?.connect(settings.servers.clone()).await?;
    let messages = stream::select_all(subscribe(&client, settings).await?);
    let greets = client.subscribe(wire::HARBOR_GREET).await?;
    publish(&client, wire::HARBOR_START, start.clone()).await?;
    // Flushing tells only that the bytes are on their way. The server says at once that nobody listens to a subject
    // that was made up just now, and by then it has read all that was written before. One who listens to everything
    // keeps it from saying so; then time must do.
    let _ = timeout(ROUND_TRIP_TIMEOUT, client.request(client.new_inbox(), Bytes::new())).await;
    Ok((client, messages, greets))
}

async fn options(settings: &Settings, signals: watch::Sender<Signals>) -> Result<ConnectOptions, Lost> {
    let signals = Arc::new(signals);
    let options = ConnectOptions::new()
        .name(&settings.id)
        .no_echo()
        .connection_timeout(CONNECT_TIMEOUT)
        .ping_interval(PING_INTERVAL)
        .subscription_capacity(MAX_WAITING_MESSAGES)
        // The client's own attempts end soon after a loss, and so does its task: `run` makes the next session.
        .max_reconnects(settings.servers.len().max(1))
        .reconnect_delay_callback(|_| Duration::ZERO)
        .event_callback(move |event| {
            signals.send_if_modified(|signals| note(signals, &event));
            std::future::ready(())
        });
    Ok(identified(options, &settings.login, &settings.tls).await?)
}

/// Options by which a client shows who it is, and knows who the servers are.
///
/// # Errors
/// [`UnreadableFile`].
pub async fn identified(
    mut options: ConnectOptions,
    login: &Login,
    tls: &Tls,
) -> Result<ConnectOptions, UnreadableFile> {
    if let Some(ca) = &tls.ca {
        options = options.add_root_certificates(ca.clone()).require_tls(true);
    }
    if let Some((certificate, key)) = &tls.identity {
        options = options.add_client_certificate(certificate.clone(), key.clone()).require_tls(true);
    }
    let unreadable = |path: &Path, source| UnreadableFile { path: path.to_owned(), source };
    Ok(match login {
        Login::Anonymous => options,
        Login::Password { user, password } => options.user_and_password(user.clone(), password.clone()),
        Login::Token(token) => options.token(token.clone()),
        Login::NkeySeedFile(path) => {
            let seed = tokio::fs::read_to_string(path).await.map_err(|error| unreadable(path, error))?;
            options.nkey(seed.trim().to_owned())
        }
        Login::CredentialsFile(path) => {
            let text = tokio::fs::read_to_string(path).await.map_err(|error| unreadable(path, error))?;
            options.credentials(&text).map_err(|error| unreadable(path, error))?
        }
    })
}

/// Takes in what the client says. Returns whether the session must know.
fn note(signals: &mut Signals, event: &Event) -> bool {
    match event {
        Event::Disconnected | Event::Closed => signals.disconnected = true,
        Event::SlowConsumer(_) => signals.slow += 1,
        Event::ServerError(error) => {
            let now = tokio::time::Instant::now();
            if signals.told_at.is_none_or(|told_at| now.duration_since(told_at) >= SERVER_ERROR_PAUSE) {
                signals.told_at = Some(now);
                tracing::warn!(%error, "NATS refuses something: check the user's permissions");
            }
            return false;
        }
        Event::Connected | Event::LameDuckMode | Event::Draining | Event::ClientError(_) => return false,
    }
    true
}

async fn subscribe(client: &Client, settings: &Settings) -> Result<Vec<Subscriber>, Lost> {
    let mut subjects = Vec::new();
    if settings.harbor_subjects {
        subjects.extend([wire::HARBOR_REGISTER, wire::HARBOR_UNREGISTER, wire::HARBOR_SINCE]);
    }
    if settings.router_subjects {
        subjects.extend([wire::ROUTER_REGISTER, wire::ROUTER_UNREGISTER]);
    }
    if settings.service_discovery_subjects {
        subjects.extend([wire::SERVICE_DISCOVERY_REGISTER, wire::SERVICE_DISCOVERY_UNREGISTER]);
    }
    let mut subscribers = Vec::with_capacity(subjects.len());
    for subject in subjects {
        subscribers.push(client.subscribe(subject).await?);
    }
    Ok(subscribers)
}

fn hand_over(discovery: &Discovery, message: &Message) {
    let (source, action) = match message.subject.as_str() {
        wire::HARBOR_REGISTER => (Source::Harbor, Action::Register),
        wire::HARBOR_UNREGISTER => (Source::Harbor, Action::Unregister),
        wire::ROUTER_REGISTER => (Source::Router, Action::Register),
        wire::ROUTER_UNREGISTER => (Source::Router, Action::Unregister),
        wire::SERVICE_DISCOVERY_REGISTER => (Source::ServiceDiscovery, Action::Register),
        wire::SERVICE_DISCOVERY_UNREGISTER => (Source::ServiceDiscovery, Action::Unregister),
        wire::HARBOR_SINCE => {
            if let Err(malformed) = discovery.hear_seniority(&message.payload) {
                tracing::debug!(%malformed, "cannot read since when another node knows backends");
            }
            return;
        }
        _ => return,
    };
    discovery.receive(source, action, &message.payload);
}

/// Answers a greeting, but never on a subject of the routing protocols: whoever greets chooses where the answer goes,
/// and there it would be taken for an order.
async fn answer(client: &Client, greet: Message, greeting: &Bytes) -> Result<(), Lost> {
    let Some(reply) = greet.reply else { return Ok(()) };
    let first = reply.as_str().split('.').next().unwrap_or_default();
    if matches!(first, "router" | "service-discovery" | "harbor") {
        return Ok(());
    }
    publish(client, reply.as_str(), greeting.clone()).await
}

fn greeting(discovery: &Discovery, settings: &Settings) -> Bytes {
    let stale_after = discovery.settings.load().rules.stale_after;
    let greeting = Greeting {
        id: settings.id.clone(),
        hosts: settings.hosts.clone(),
        // Never 0: route-emitters and their like make a ticker of it.
        register_interval_seconds: REGISTER_INTERVAL.min(stale_after / 3).as_secs().max(1),
        prune_threshold_seconds: stale_after.as_secs(),
    };
    serde_json::to_vec(&greeting).expect("it has neither maps nor floats").into()
}

async fn publish(client: &Client, subject: &str, payload: Bytes) -> Result<(), Lost> {
    match timeout(WRITE_TIMEOUT, client.publish(subject.to_owned(), payload)).await {
        Ok(Ok(())) => Ok(()),
        Ok(Err(error)) => {
            // A subject that a greeter chose may be no subject; that is no fault of the connection.
            tracing::debug!(%error, "cannot publish");
            Ok(())
        }
        Err(_) => Err(Lost::Stuck),
    }
}

/// Waits until the server has everything that was written. Without a limit this would never end on a lost connection.
async fn flush(client: &Client) -> Result<(), Lost> {
    match timeout(WRITE_TIMEOUT, client.flush()).await {
        Ok(Ok(())) => Ok(()),
        Ok(Err(_)) => Err(Lost::Closed),
        Err(_) => Err(Lost::Stuck),
    }
}

impl Discovery {
    /// Nothing can be heard: for a while nothing ends because it was not announced.
    pub fn nats_is_away(&self) {
        self.metrics.nats_connected.set(0);
        let until = self.clock.now() + self.settings.load().prune_suspend_max;
        self.backends.suspend(until);
        self.attribution().suspend(until);
        self.say_no_seniority();
    }

    /// Everything can be heard again, and has its whole time to be.
    pub fn nats_is_back(&self) {
        self.metrics.nats_connected.set(1);
        self.metrics.nats_connects.inc();
        let now = self.clock.now();
        self.backends.resume(now);
        self.attribution().resume(now + self.settings.load().rules.stale_after);
        self.say_seniority_of_all();
    }
}
