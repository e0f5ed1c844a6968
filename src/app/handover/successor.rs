//! The old process's side: the new one, as far as it has come.

use std::{
    fmt::Display,
    io,
    os::fd::{AsFd as _, BorrowedFd, OwnedFd},
    path::PathBuf,
    process::Stdio,
    time::{Duration, Instant},
};

use anyhow::{Context as _, anyhow, bail};
use rustix::{
    event::{PollFd, PollFlags, poll},
    process::{Pid, PidfdFlags, Signal, kill_process_group, pidfd_open},
};
use tokio::{
    process::{Child, Command},
    task::spawn_blocking,
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

/// Starts the program `$0`, and ends as it ends: by the same code or signal. Standard input is for the program alone.
///
/// systemd follows only a process whose parent it is. The program is nobody's child once this shell has been ended, and
/// then systemd's; its parent would be the old process otherwise, for as long as that has open connections.
const BETWEEN: &str = r#"
exec 3<&0 </dev/null
"$0" "$@" <&3 3<&- &
exec 3<&-
wait $!
code=$?
[ $code -le 128 ] || kill -$((code - 128)) $$
exit $code
"#;

/// The codes by which a shell says that there is no such program, or that it cannot be run.
const CANNOT_BE_RUN: [i32; 2] = [126, 127];

/// How long a process that has closed its end of the pair may take to end by itself, and one that is killed until it is
/// gone.
const ENDS_WITHIN: Duration = Duration::from_secs(1);

/// A new process. Killed when dropped, until it serves.
#[derive(Debug)]
pub(in crate::app) struct Successor {
    /// The shell between, with a process group of its own. None once the new process serves, or has ended.
    between: Option<Child>,
    program: PathBuf,
    /// The process itself, once it has said which it is.
    process: Option<OwnedFd>,
    channel: Channel,
    greeting: Greeting,
}

impl Drop for Successor {
    fn drop(&mut self) {
        // First, and the channel after it: one that is prepared would take its end for ours, and serve.
        if let Some(between) = &self.between {
            let _ = kill_group(between);
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
        let mut command = Command::new("/bin/sh");
        command.args(["-c", BETWEEN]).arg(&program.path).args(&program.arguments).stdin(Stdio::from(theirs));
        command.process_group(0);
        for name in NOT_INHERITED {
            command.env_remove(name);
        }
        let between = command.spawn().context("/bin/sh cannot be run")?;
        // Its end goes with the command: what is heard here from now on is the process, or its end.
        drop(command);
        let (program, greeting) = (program.path.clone(), Greeting::own());
        let mut successor = Self { between: Some(between), program, process: None, channel, greeting };
        let outcome = successor.greet().await;
        match outcome {
            Ok(()) => Ok(successor),
            Err(error) => Err(successor.end(error).await),
        }
    }

    async fn greet(&mut self) -> anyhow::Result<()> {
        match within(STARTS_WITHIN, "say hello", self.next()).await? {
            Message::Hello(greeting) if greeting.protocol == PROTOCOL => {
                let process = Pid::from_raw(greeting.process.cast_signed());
                self.process = process.and_then(|process| pidfd_open(process, PidfdFlags::empty()).ok());
                self.greeting = greeting;
            }
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

    /// Leaves it alone: it serves, and is the service manager's child from now on.
    pub(in crate::app) async fn release(mut self) -> Greeting {
        if let Some(mut between) = self.between.take()
            && !matches!(timeout(ENDS_WITHIN, between.kill()).await, Ok(Ok(())))
        {
            tracing::warn!("the shell that has started the new process is not gone: a service manager may not follow");
        }
        self.greeting.clone()
    }

    /// Ends it because of `error`, and adds how it ended if that says more.
    pub(in crate::app) async fn end(mut self, error: anyhow::Error) -> anyhow::Error {
        let Some(mut between) = self.between.take() else { return error };
        if error.downcast_ref::<io::Error>().is_some_and(is_end)
            && let Ok(Ok(status)) = timeout(ENDS_WITHIN, between.wait()).await
        {
            return match status.code().is_some_and(|code| CANNOT_BE_RUN.contains(&code)) {
                true => anyhow!("{} cannot be run ({status}): the log says why", self.program.display()),
                false => anyhow!("the new process ended ({status}): its log says why"),
            };
        }
        if let Err(error) = kill_group(&between) {
            tracing::warn!(%error, "a new process that failed cannot be ended");
        }
        // Once it is killed it does nothing more, even where the kernel is long in clearing it away: nobody waits for that.
        let process = self.process.take();
        let gone = async {
            let _ = between.wait().await;
            let _ = spawn_blocking(|| process.map(ends)).await;
        };
        if timeout(ENDS_WITHIN, gone).await.is_err() {
            tracing::warn!(process = self.greeting.process, "a new process that failed is killed and not gone yet");
        }
        error
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

/// Kills the shell and the process that it has started, if they are there.
fn kill_group(between: &Child) -> io::Result<()> {
    let group = between.id().and_then(|id| Pid::from_raw(id.cast_signed()));
    group.map_or(Ok(()), |group| Ok(kill_process_group(group, Signal::KILL)?))
}

/// Waits until a process has let go of all it had.
fn ends(process: OwnedFd) {
    let patience = ENDS_WITHIN.try_into().expect("a second is a time");
    let _ = poll(&mut [PollFd::new(&process, PollFlags::IN)], Some(&patience));
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
