//! `harbor restart`

use std::{path::PathBuf, time::Duration};

use anyhow::anyhow;
use hyper::Method;
use tokio::time::{Instant, sleep};

use super::{
    FINE, Failure, Outcome,
    operator::{Node, Reach},
    print,
};
use crate::admin::wire::{RESTART_PATH, Restarted, STATUS_PATH, Status};

/// How long a node may take to hand over to a new process: longer than all that it waits for meanwhile.
const HANDED_OVER_WITHIN: Duration = Duration::from_secs(180);

/// How long the new process may take to answer after the old one has said that it serves.
const ANSWERS_WITHIN: Duration = Duration::from_secs(10);

/// How often it is asked.
const ASK_EVERY: Duration = Duration::from_millis(100);

/// Hand a running node over to a new process; open connections may finish.
///
/// The node starts its program anew, as it is found on the disk now, and hands over all ports, with the connections and
/// datagrams that wait there, and all UDP sessions. TCP connections that are open go on in the old process for
/// forwarder.drain_timeout: those that are not done by then are ended, and the old process ends with the last of them. When
/// the new one fails, the old one goes on as if nothing had been, and the exit code is 1. SIGUSR2 to the node does the same.
#[derive(Debug, clap::Args)]
pub struct Restart {
    #[command(flatten)]
    reach: Reach,
}

impl Restart {
    pub fn run(self, file: Option<PathBuf>) -> Outcome {
        let node = Node::find(self.reach, file)?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(async {
            let restarted = node.ask_within::<Restarted>(Method::POST, RESTART_PATH, HANDED_OVER_WITHIN).await?;
            let deadline = Instant::now() + ANSWERS_WITHIN;
            loop {
                match node.get::<Status>(STATUS_PATH).await {
                    Ok(status) if status.process == restarted.process => break,
                    Err(Failure::Usage(refused)) => return Err(Failure::Usage(refused)),
                    // The old one, or nobody yet.
                    _ if Instant::now() < deadline => sleep(ASK_EVERY).await,
                    _ => {
                        return Err(Failure::Problem(anyhow!(
                            "process {} has taken over, but does not answer as a node: look into its log",
                            restarted.process
                        )));
                    }
                }
            }
            print(&format!(
                "Process {} (harbor {}) has handed over to process {} (harbor {}).\n",
                restarted.old_process, restarted.old_version, restarted.process, restarted.version
            ))?;
            Ok(FINE)
        })
    }
}
