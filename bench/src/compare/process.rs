//! Child processes that end with their owner.

use std::{
    fs::{self, File},
    io,
    path::Path,
    process::{Child, Command, Stdio},
    time::Duration,
};

use anyhow::Context as _;
use rustix::process::{Pid, Signal, kill_process};

use super::wait;

/// How long a process may take to end when asked; then it is killed.
const FAREWELL: Duration = Duration::from_secs(2);

/// A proxy or a part of one, with all its descendants; ended when dropped.
#[derive(Debug)]
pub struct Process {
    child: Child,
}

impl Process {
    /// Starts it with its output in `log`.
    pub fn start(command: &mut Command, log: &Path) -> anyhow::Result<Self> {
        let out = File::create(log).with_context(|| format!("cannot write {}", log.display()))?;
        command.stdin(Stdio::null()).stdout(out.try_clone()?).stderr(out);
        let child = command.spawn().with_context(|| format!("cannot start {}", command.get_program().display()))?;
        Ok(Self { child })
    }

    /// Waits until `look` gives something; an error when the process ends before, or `patience` does.
    pub fn until<T>(
        &mut self,
        what: &str,
        patience: Duration,
        pause: Duration,
        mut look: impl FnMut() -> Option<T>,
    ) -> anyhow::Result<T> {
        let mut ended = None;
        let found = wait::until(patience, pause, || {
            if let Some(found) = look() {
                return Some(Some(found));
            }
            ended = self.child.try_wait().ok().flatten();
            ended.is_some().then_some(None)
        });
        found.flatten().with_context(|| match ended {
            Some(status) => format!("it ended with {status} before {what}"),
            None => format!("{what}: not within {patience:?}"),
        })
    }

    /// Ends it as a crash would.
    pub fn kill(mut self) -> anyhow::Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }

    /// The process and its descendants.
    pub fn pids(&self) -> Vec<u32> {
        let parents = parents().unwrap_or_default();
        let mut pids = vec![self.child.id()];
        let mut next = 0;
        while let Some(&parent) = pids.get(next) {
            pids.extend(parents.iter().filter(|(_, of)| *of == parent).map(|(pid, _)| *pid));
            next += 1;
        }
        pids
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if self.child.try_wait().is_ok_and(|ended| ended.is_some()) {
            return;
        }
        let pids = self.pids();
        signal(self.child.id(), Signal::TERM);
        let ended = wait::until(FAREWELL, Duration::from_millis(5), || self.child.try_wait().ok().flatten());
        if ended.is_none() {
            pids.iter().for_each(|pid| signal(*pid, Signal::KILL));
            // It was killed: this ends.
            let _ = self.child.wait();
        }
    }
}

fn signal(pid: u32, signal: Signal) {
    if let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) {
        // It may be gone.
        let _ = kill_process(pid, signal);
    }
}

/// All processes with their parents.
fn parents() -> io::Result<Vec<(u32, u32)>> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc")? {
        let Some(pid) = entry?.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        // A process may end while we look.
        let Ok(stat) = fs::read_to_string(format!("/proc/{pid}/stat")) else { continue };
        // The name, in parentheses, may hold anything; state and parent come after it.
        let parent = stat.rsplit(')').next().and_then(|rest| rest.split_whitespace().nth(1)?.parse().ok());
        found.extend(parent.map(|parent| (pid, parent)));
    }
    Ok(found)
}
