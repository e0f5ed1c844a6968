//! What the machine tells the process.

use std::io;

use tokio::signal::unix::{Signal, SignalKind, signal};

/// Signals that were asked for from the first moment on.
#[derive(Debug)]
pub(super) struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hang_up: Signal,
    user_defined: Signal,
}

/// What a signal means here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Told {
    /// SIGTERM or SIGINT.
    End,
    /// SIGHUP.
    Reload,
    /// SIGUSR2.
    Restart,
}

impl Signals {
    pub(super) fn listen() -> io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hang_up: signal(SignalKind::hangup())?,
            user_defined: signal(SignalKind::user_defined2())?,
        })
    }

    /// The next one. None is lost by dropping the future.
    pub(super) async fn next(&mut self) -> Told {
        tokio::select! {
            _ = self.terminate.recv() => Told::End,
            _ = self.interrupt.recv() => Told::End,
            _ = self.hang_up.recv() => Told::Reload,
            _ = self.user_defined.recv() => Told::Restart,
        }
    }

    /// Waits until the process is told to end; whatever else it is told meanwhile is too early or too late.
    pub(super) async fn end(&mut self) {
        while self.next().await != Told::End {}
    }
}
