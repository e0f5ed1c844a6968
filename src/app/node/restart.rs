//! A hot restart, as the running process goes through it: see [`handover`](crate::app::handover).

use std::time::Duration;

use anyhow::{Context as _, anyhow, bail};
use tokio::{sync::mpsc, task::block_in_place, time::sleep};

use super::{Node, Running, TAKE_BACK_AGAIN};
use crate::{
    admin::{RestartError, RestartRequest, wire::Restarted},
    app::{
        handover::{Given, Greeting, Successor},
        reload,
        signals::{Signals, Told},
    },
    control::audit::{self, Change},
    model::{observed::Mode, requester::Requester},
};

/// What has been given up for a new process so far.
#[derive(Debug, Default)]
struct GivenUp {
    /// The APIs answer no more, and nothing is read from or written to the store and the data directory.
    doors: bool,
    /// The store.
    store: bool,
    /// Ports are neither opened nor closed; at the end nothing is accepted or received.
    ports: bool,
}

/// What has come of a hot restart.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Restart {
    /// Another process serves.
    Done,
    /// All is as before.
    Failed,
    /// All is as before, and this process was told to end meanwhile.
    ToldToEnd,
}

impl Node {
    /// Hands everything over to a new process. When that fails all goes on as before.
    pub(super) async fn restart(
        &self,
        running: &mut Running<'_>,
        signals: &mut Signals,
        requests: &mut mpsc::Receiver<RestartRequest>,
        asked: Option<RestartRequest>,
    ) -> Restart {
        self.manager.reloading("Handing over to a new process");
        let (mut successor, mut given_up) = (None, GivenUp::default());
        let mut reload = false;
        let outcome = tokio::select! {
            outcome = self.hand_over(running, &mut successor, &mut given_up) => Some(outcome),
            () = busy(signals, requests, &mut reload) => None,
        };
        let (error, restart) = match (outcome, successor) {
            (Some(Ok(held)), Some(successor)) => {
                self.succeeded_by(successor.release().await, held, asked);
                return Restart::Done;
            }
            (Some(Ok(_)), None) => unreachable!("whoever took over was started"),
            (outcome, successor) => {
                let restart = if outcome.is_none() { Restart::ToldToEnd } else { Restart::Failed };
                let error = outcome.and_then(Result::err).unwrap_or_else(|| anyhow!("this process was told to end"));
                match successor {
                    Some(successor) => (successor.end(error).await, restart),
                    None => (error, restart),
                }
            }
        };
        tracing::error!(error = format!("{error:#}"), "the hot restart failed: going on as before");
        self.take_back(running, given_up, signals).await;
        self.manager.ready();
        if let Some(asked) = asked {
            // Who asked may have gone.
            let _ = asked.send(Err(RestartError::Failed(format!("{error:#}"))));
        }
        if reload {
            reload::reload(&mut running.config, &running.reach).await;
        }
        restart
    }

    /// Step by step, noting what is given up before it is. Says how long nobody served.
    async fn hand_over(
        &self,
        running: &mut Running<'_>,
        successor: &mut Option<Successor>,
        given_up: &mut GivenUp,
    ) -> anyhow::Result<Duration> {
        if std::process::id() == 1 {
            bail!("this is the first process of its container, which ends with it: replace the container instead");
        }
        if *self.mode.borrow() != Mode::Serving {
            bail!("the node drains: resume it first");
        }
        tracing::info!(program = %self.program.path.display(), "hot restart: starting a new process");
        let successor = successor.insert(Successor::start(&self.program).await?);
        let Greeting { process, version, .. } = successor.greeting();
        tracing::info!(process, version, "hot restart: handing over");

        given_up.doors = true;
        running.doors.end().await;
        self.control.close().await;
        running.keepers.end().await;
        given_up.store = true;
        let store = self.store.hand_over().await?;
        given_up.ports = true;
        let ports = block_in_place(|| self.forwarder.export_sockets());
        let given = Given { store, apis: running.apis.sockets(), ports, threads: self.forwarder.threads() };
        successor.prepare(given).await?;

        let held_at = self.clock.now();
        let sessions = block_in_place(|| {
            self.forwarder.hold();
            self.forwarder.export_sessions()
        });
        successor.take_over(&sessions).await.context("the new process was prepared")?;
        Ok(self.clock.now().saturating_duration_since(held_at))
    }

    fn succeeded_by(&self, new: Greeting, held: Duration, asked: Option<RestartRequest>) {
        let (process, version) = (new.process, &new.version);
        tracing::info!(process, version, held_ms = held.as_secs_f64() * 1e3, "hot restart: another process serves");
        let by = asked.as_ref().map_or(&Requester::Signal, |asked| &asked.by);
        audit::note(by, Change::Restarted { node: &self.identity.node, process });
        self.manager.succeeded_by(new.process);
        let old = Greeting::own();
        if let Some(asked) = asked {
            let restarted = Restarted {
                old_process: old.process,
                old_version: old.version,
                process: new.process,
                version: new.version,
            };
            // Who asked may have gone.
            let _ = asked.send(Ok(restarted));
        }
    }

    /// Takes back what was given up: traffic first.
    async fn take_back(&self, running: &mut Running<'_>, given_up: GivenUp, signals: &mut Signals) {
        if given_up.ports {
            block_in_place(|| self.forwarder.go_on());
        }
        while given_up.store
            && let Err(fault) = self.store.take_back().await
        {
            tracing::error!(%fault, "the store cannot be opened again: ports go on, nothing can be provisioned or bound");
            tokio::select! {
                () = sleep(TAKE_BACK_AGAIN) => {}
                () = signals.end() => return,
            }
        }
        if given_up.doors {
            self.control.reopen();
            self.start_keepers(running);
            if let Err(error) = self.open_doors(running) {
                tracing::error!(error = format!("{error:#}"), "the APIs cannot be served again");
            }
        }
    }
}

/// Refuses what cannot be done during a hot restart, until the process is told to end.
async fn busy(signals: &mut Signals, requests: &mut mpsc::Receiver<RestartRequest>, reload: &mut bool) {
    loop {
        tokio::select! {
            told = signals.next() => match told {
                Told::End => return,
                Told::Reload => *reload = true,
                Told::Restart => tracing::warn!("a hot restart is under way: this one is refused"),
            },
            Some(asked) = requests.recv() => {
                tracing::warn!("a hot restart is under way: this one is refused");
                let _ = asked.send(Err(RestartError::UnderWay));
            }
        }
    }
}
