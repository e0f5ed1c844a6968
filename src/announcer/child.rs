//! The process whose life the announcement is tied to, and the signals on their way to it.

use std::{ffi::OsString, io, os::unix::process::ExitStatusExt as _, process::ExitStatus};

use rustix::process::{Pid, Signal as Number, kill_process};
use tokio::{
    process,
    signal::unix::{Signal, SignalKind, signal},
};

/// How it ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// By a signal to this process; there was no child.
    Told,
    /// The child ended.
    Child(ExitStatus),
}

impl Ended {
    /// The exit code to pass on: a shell's 128 + n for a child that a signal ended.
    #[must_use]
    pub fn code(self) -> u8 {
        match self {
            Self::Told => 0,
            Self::Child(status) => {
                let code = status.code().or_else(|| status.signal().map(|signal| 128 + signal)).unwrap_or(1);
                u8::try_from(code).unwrap_or(1)
            }
        }
    }
}

/// What a signal means here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Told {
    /// To end.
    End(Number),
    /// Whatever the child makes of it.
    Other(Number),
}

/// The signals that are passed on.
pub(super) struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hang_up: Signal,
    quit: Signal,
    user_1: Signal,
    user_2: Signal,
}

impl Signals {
    pub(super) fn listen() -> io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hang_up: signal(SignalKind::hangup())?,
            quit: signal(SignalKind::quit())?,
            user_1: signal(SignalKind::user_defined1())?,
            user_2: signal(SignalKind::user_defined2())?,
        })
    }

    /// The next one. None is lost by dropping the future.
    pub(super) async fn next(&mut self) -> Told {
        tokio::select! {
            _ = self.terminate.recv() => Told::End(Number::TERM),
            _ = self.interrupt.recv() => Told::End(Number::INT),
            _ = self.quit.recv() => Told::End(Number::QUIT),
            _ = self.hang_up.recv() => Told::Other(Number::HUP),
            _ = self.user_1.recv() => Told::Other(Number::USR1),
            _ = self.user_2.recv() => Told::Other(Number::USR2),
        }
    }
}

/// A child, or none.
pub(super) struct Child(Option<process::Child>);

impl Child {
    /// Starts it; it inherits all that this process has.
    pub(super) fn start(command: &[OsString]) -> io::Result<Self> {
        let Some((program, arguments)) = command.split_first() else { return Ok(Self(None)) };
        process::Command::new(program).args(arguments).spawn().map(|child| Self(Some(child)))
    }

    /// Waits for its end; for ever where there is none.
    pub(super) async fn ended(&mut self) -> io::Result<Ended> {
        match &mut self.0 {
            Some(child) => child.wait().await.map(Ended::Child),
            None => std::future::pending().await,
        }
    }

    /// Passes a signal on. Returns whether there is anyone to hear it.
    pub(super) fn signal(&self, signal: Number) -> bool {
        // The id is the child's until it has been waited for.
        let id = self.0.as_ref().and_then(process::Child::id).and_then(|id| Pid::from_raw(id.cast_signed()));
        id.is_some_and(|id| kill_process(id, signal).is_ok())
    }
}
