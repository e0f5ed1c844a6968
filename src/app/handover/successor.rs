//! The old process's side: the new one, as far as it has come.

use std::{
    fmt::Display,
    io,
    os::fd::{AsFd as _, BorrowedFd, OwnedFd},
    process::Stdio,
    time::{Duration, Instant},
};

use anyhow::{Context as _, anyhow, bail};
use tokio::{
    process::{Child, Command},
    time::timeout,
};

use super::{
    PREPARES_WITHIN, Program, STARTS_WITHIN, TAKES_OVER_WITHIN, VARIABLE,
    message::{
        Channel, Greeting, MAX_DESCRIPTORS, Message, PROTOCOL, SESSIONS_AT_ONCE, SPREADS_AT_ONCE, Session, SocketUse,
        is_end,
    },
};
use crate::forwarder::{ExportedSession, PortSockets};

/// What a service manager has set for the old process alone.
const NOT_INHERITED: [&str; 3] = ["LISTEN_FDS", "LISTEN_FDNAMES", "LISTEN_PID"];

/// How long a process that has closed its end of the pair may take to end by itself.
const ENDS_WITHIN: Duration = Duration::from_secs(2);

/// A new process. Killed when dropped, until it serves.
#[derive(Debug)]
pub(in crate::app) struct Successor {
    /// None once it serves.
    child: Option<Child>,
    channel: Channel,
    greeting: Greeting,
}

impl Drop for Successor {
    fn drop(&mut self) {
        // First, and the channel after it: one that is prepared would take its end for ours, and serve.
        if let Some(child) = &mut self.child {
            let _ = child.start_kill();
        }
    }
}

/// What is handed to it, but the sessions.
#[derive(Debug)]
pub(in crate::app) struct Given<'a> {
    pub store: Option<OwnedFd>,
    pub apis: Vec<(&'static str, BorrowedFd<'a>)>,
    pub ports: PortSockets,
    pub threads: usize,
}

impl Successor {
    /// Starts a process, and waits until it greets: it has read its configuration by then.
    ///
    /// # Errors
    /// When it cannot be started, ends, says why it cannot go on, or takes too long. It is gone then.
    pub(in crate::app) async fn start(program: &Program) -> anyhow::Result<Self> {
        let (channel, theirs) = Channel::pair()?;
        let mut command = Command::new(&program.path);
        command.args(&program.arguments).env(VARIABLE, PROTOCOL.to_string()).stdin(Stdio::from(theirs));
        for name in NOT_INHERITED {
            command.env_remove(name);
        }
        let child = command.spawn().with_context(|| format!("{} cannot be run", program.path.display()))?;
        // Its end goes with the command: what is heard here from now on is the process, or its end.
        drop(command);
        let mut successor = Self { child: Some(child), channel, greeting: Greeting::own() };
        let outcome = successor.greet().await;
        match outcome {
            Ok(()) => Ok(successor),
            Err(error) => Err(successor.end(error).await),
        }
    }

    async fn greet(&mut self) -> anyhow::Result<()> {
        match self.next(STARTS_WITHIN, "say hello").await? {
            Message::Hello(greeting) if greeting.protocol == PROTOCOL => self.greeting = greeting,
            Message::Hello(Greeting { protocol, version, .. }) => bail!(
                "harbor {version} takes over by protocol {protocol}, and this version hands over by {PROTOCOL}: restart \
                 without a hand-over"
            ),
            other => bail!("the new process says {other:?} where it should greet"),
        }
        Ok(self.channel.send(&Message::Hello(Greeting::own()), &[]).await?)
    }

    /// Who it says it is.
    pub(in crate::app) const fn greeting(&self) -> &Greeting {
        &self.greeting
    }

    /// Hands over all but the sessions, and waits until it is prepared.
    ///
    /// # Errors
    /// As [`Successor::start`]; it is not gone.
    pub(in crate::app) async fn prepare(&mut self, given: Given<'_>) -> anyhow::Result<()> {
        let mut sockets = Vec::new();
        sockets.extend(given.store.iter().map(|socket| (SocketUse::Store, socket.as_fd())));
        sockets.extend(given.apis.iter().map(|(name, socket)| (SocketUse::Api((*name).into()), *socket)));
        sockets.extend(given.ports.sockets.iter().map(|socket| (SocketUse::Port, socket.as_fd())));
        for batch in sockets.chunks(MAX_DESCRIPTORS) {
            let (uses, sockets): (Vec<_>, Vec<_>) = batch.iter().cloned().unzip();
            self.say(&Message::Sockets(uses), &sockets).await?;
        }
        let spreads = given.ports.spreads.iter().map(|(port, spread)| (*port, spread.sockets(), spread.seed()));
        for batch in spreads.collect::<Vec<_>>().chunks(SPREADS_AT_ONCE) {
            self.say(&Message::Spreads(batch.to_vec()), &[]).await?;
        }
        self.say(&Message::Estate { threads: given.threads }, &[]).await?;
        match self.next(PREPARES_WITHIN, "be prepared").await? {
            Message::Prepared => Ok(()),
            other => bail!("the new process says {other:?} where it should be prepared"),
        }
    }

    /// Hands over the sessions, and waits until it serves. This process must neither accept nor receive any more.
    ///
    /// # Errors
    /// As [`Successor::start`]; it is not gone.
    pub(in crate::app) async fn take_over(&mut self, sessions: &[ExportedSession]) -> anyhow::Result<()> {
        let now = Instant::now();
        for batch in sessions.chunks(SESSIONS_AT_ONCE) {
            let notes = batch.iter().map(|session| Session::of(session, now)).collect();
            let sockets = batch.iter().map(|session| session.upstream.as_fd()).collect::<Vec<_>>();
            self.say(&Message::Sessions(notes), &sockets).await?;
        }
        self.say(&Message::Over, &[]).await?;
        match self.next(TAKES_OVER_WITHIN, "serve").await? {
            Message::Serving => Ok(()),
            other => bail!("the new process says {other:?} where it should serve"),
        }
    }

    /// Leaves it alone: it serves.
    pub(in crate::app) fn release(mut self) -> Greeting {
        drop(self.child.take());
        self.greeting.clone()
    }

    /// Ends it because of `error`, and adds how it ended if that says more.
    pub(in crate::app) async fn end(mut self, error: anyhow::Error) -> anyhow::Error {
        let Some(mut child) = self.child.take() else { return error };
        let ended = match error.downcast_ref::<io::Error>().is_some_and(is_end) {
            true => timeout(ENDS_WITHIN, child.wait()).await.ok().and_then(Result::ok),
            false => None,
        };
        if let Err(error) = child.kill().await {
            tracing::warn!(%error, "a new process that failed cannot be ended");
        }
        match ended {
            Some(status) => anyhow!("the new process ended ({status}): its log says why"),
            None => error,
        }
    }

    async fn say(&self, message: &Message, descriptors: &[BorrowedFd<'_>]) -> anyhow::Result<()> {
        match self.channel.send(message, descriptors).await {
            Ok(()) => Ok(()),
            // It may have said why.
            Err(error) => match self.channel.receive().await {
                Ok((Message::Refused { reason }, _)) => Err(refused(reason)),
                _ => Err(error.into()),
            },
        }
    }

    /// What it says next.
    async fn next(&mut self, within: Duration, what: impl Display) -> anyhow::Result<Message> {
        match timeout(within, self.channel.receive()).await {
            Ok(Ok((Message::Refused { reason }, _))) => Err(refused(reason)),
            Ok(said) => Ok(said?.0),
            Err(_) => bail!("the new process does not {what} within {within:?}"),
        }
    }
}

fn refused(reason: String) -> anyhow::Error {
    anyhow!("the new process cannot go on: {reason}")
}
