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
    PREPARES_WITHIN, Program, STARTS_WITHIN, TAKES_OVER_WITHIN,
    message::{
        Channel, Greeting, MAX_DESCRIPTORS, Message, PROTOCOL, SESSIONS_AT_ONCE, SPREADS_AT_ONCE, Session, SocketUse,
        is_end,
    },
};
use crate::forwarder::{ExportedSession, PortSockets};

/// What a service manager has set for the old process alone.
const NOT_INHERITED: [&str; 3] = ["LISTEN_FDS", "LISTEN_FDNAMES", "LISTEN_PID"];

/// How long a process that has closed its end of the pair may take to end by itself, and one that is killed until it is
/// gone.
const ENDS_WITHIN: Duration = Duration::from_secs(1);

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
        command.args(&program.arguments).stdin(Stdio::from(theirs));
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
        match within(STARTS_WITHIN, "say hello", self.next()).await? {
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
    pub(in crate::app) async fn prepare(&self, given: Given<'_>) -> anyhow::Result<()> {
        match within(PREPARES_WITHIN, "get prepared", self.give(given)).await? {
            Message::Prepared => Ok(()),
            other => bail!("the new process says {other:?} where it should be prepared"),
        }
    }

    /// Says what it says then.
    async fn give(&self, given: Given<'_>) -> anyhow::Result<Message> {
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
        self.next().await
    }

    /// Hands over the sessions, and waits until it serves. This process must neither accept nor receive any more.
    ///
    /// # Errors
    /// As [`Successor::start`]; it is not gone.
    pub(in crate::app) async fn take_over(&self, sessions: &[ExportedSession]) -> anyhow::Result<()> {
        match within(TAKES_OVER_WITHIN, "serve", self.give_sessions(sessions)).await? {
            Message::Serving => Ok(()),
            other => bail!("the new process says {other:?} where it should serve"),
        }
    }

    /// Says what it says then.
    async fn give_sessions(&self, sessions: &[ExportedSession]) -> anyhow::Result<Message> {
        let now = Instant::now();
        for batch in sessions.chunks(SESSIONS_AT_ONCE) {
            let notes = batch.iter().map(|session| Session::of(session, now)).collect();
            let sockets = batch.iter().map(|session| session.upstream.as_fd()).collect::<Vec<_>>();
            self.say(&Message::Sessions(notes), &sockets).await?;
        }
        self.say(&Message::Over, &[]).await?;
        self.next().await
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
        // Once it is killed it does nothing more, even where the kernel is long in clearing it away: nobody waits for that.
        match timeout(ENDS_WITHIN, child.kill()).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!(%error, "a new process that failed cannot be ended"),
            Err(_) => tracing::warn!(process = child.id(), "a new process that failed is killed and not gone yet"),
        }
        match ended {
            Some(status) => anyhow!("the new process ended ({status}): its log says why"),
            None => error,
        }
    }

    async fn say(&self, message: &Message, descriptors: &[BorrowedFd<'_>]) -> anyhow::Result<()> {
        match self.channel.send(message, descriptors).await {
            Ok(()) => Ok(()),
            // It may have said why before it ended. One that has not ended may say nothing, for ever.
            Err(error) if is_end(&error) => Err(self.next().await.err().unwrap_or_else(|| error.into())),
            Err(error) => Err(error.into()),
        }
    }

    /// What it says next, whenever that is.
    async fn next(&self) -> anyhow::Result<Message> {
        match self.channel.receive().await? {
            (Message::Refused { reason }, _) => Err(refused(reason)),
            (message, _) => Ok(message),
        }
    }
}

/// All that is said to the new process, and what it answers, within one bound.
async fn within(
    bound: Duration,
    what: impl Display,
    exchange: impl Future<Output = anyhow::Result<Message>>,
) -> anyhow::Result<Message> {
    match timeout(bound, exchange).await {
        Ok(answer) => answer,
        Err(_) => bail!("the new process does not {what} within {bound:?}"),
    }
}

fn refused(reason: String) -> anyhow::Error {
    anyhow!("the new process cannot go on: {reason}")
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use super::*;
    use crate::{
        forwarder::{
            Carried, Spread,
            sessions::{Past, Source},
        },
        model::{ServiceInstanceId, id::MAX_ID_BYTES},
    };

    /// One that greets, and hears nothing afterwards.
    async fn deaf() -> Successor {
        let script = r#"echo '{"hello":{"protocol":1,"version":"0","process":1}}' >&0; exec sleep 1000"#;
        let program = Program { path: "/bin/sh".into(), arguments: vec!["-c".into(), script.into()] };
        Successor::start(&program).await.unwrap()
    }

    fn session(upstream: OwnedFd) -> ExportedSession {
        let (client, now) = ("192.0.2.1:40000".parse().unwrap(), Instant::now());
        ExportedSession {
            service_instance_id: ServiceInstanceId::new("x".repeat(MAX_ID_BYTES)).unwrap(),
            client,
            local: None,
            address: 0,
            backend: client,
            upstream,
            joins: false,
            past: Past { source: Source::of(client.ip()), opened_at: now, active_at: now, answered: true },
            to_backend: Carried::default(),
            to_client: Carried::default(),
        }
    }

    #[tokio::test]
    async fn a_new_process_that_hears_nothing_is_given_no_more_time_for_many_messages_than_for_one() {
        let (first, second) = (deaf().await, deaf().await);
        // From here on whoever waits for something that does not come has waited for it at once.
        tokio::time::pause();
        // More of each than the pair takes unread.
        let spreads = (0..20_000).map(|port| (port, Spread::new(2, u32::MAX))).collect();
        let ports = PortSockets { sockets: Vec::new(), spreads };
        let (begun, given) = (tokio::time::Instant::now(), Given { store: None, apis: Vec::new(), ports, threads: 1 });
        let error = first.prepare(given).await.unwrap_err();
        assert_eq!(error.to_string(), "the new process does not get prepared within 60s");
        assert_eq!(begun.elapsed().as_secs(), PREPARES_WITHIN.as_secs());

        let null = File::open("/dev/null").unwrap();
        let sessions = (0..600).map(|_| session(null.try_clone().unwrap().into())).collect::<Vec<_>>();
        let begun = tokio::time::Instant::now();
        let error = second.take_over(&sessions).await.unwrap_err();
        assert_eq!(error.to_string(), "the new process does not serve within 5s");
        assert_eq!(begun.elapsed().as_secs(), TAKES_OVER_WITHIN.as_secs());
    }
}
