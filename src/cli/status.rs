//! `harbor status`

use std::{io::IsTerminal as _, path::PathBuf, time::Duration};

use anyhow::Context as _;

use super::{
    FINE, FOUND_A_PROBLEM, Failure, Outcome,
    operator::{Node, Reach},
    print,
};
use crate::admin::wire;

mod screen;

/// How often `--watch` asks.
const WATCH_EVERY: Duration = Duration::from_secs(2);

/// Show how a running node is, what is wrong first.
///
/// Then come store, NATS, pools, listeners and backends. The exit code is 0 when all is well and 1 when something is
/// not: a port that cannot be opened, a pool without free ports, or a store or NATS that is configured and away.
#[derive(Debug, clap::Args)]
pub struct Status {
    /// Print JSON.
    #[arg(long)]
    json: bool,

    /// Ask again every two seconds, until interrupted.
    #[arg(long)]
    watch: bool,

    #[command(flatten)]
    reach: Reach,
}

impl Status {
    pub fn run(self, file: Option<PathBuf>) -> Outcome {
        let node = Node::find(self.reach, file)?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(async {
            if !self.watch {
                return show(&node, self.json, "").await;
            }
            let mut ticks = tokio::time::interval(WATCH_EVERY);
            loop {
                ticks.tick().await;
                // Home and clear: what was there before is history. Redirected output gets one answer after another.
                let clear = if std::io::stdout().is_terminal() && !self.json { "\x1b[H\x1b[2J" } else { "" };
                match show(&node, self.json, clear).await {
                    Ok(_) => {}
                    Err(Failure::Problem(error)) if error.downcast_ref::<std::io::Error>().is_none() => {
                        print(&format!("{clear}{error:#}\n"))?;
                    }
                    Err(failure) => return Err(failure),
                }
            }
        })
    }
}

async fn show(node: &Node, json: bool, clear: &str) -> Outcome {
    let status = node.get::<wire::Status>(wire::STATUS_PATH).await?;
    let text = if json {
        serde_json::to_string_pretty(&status).context("an answer can be written as JSON").map_err(Failure::Problem)?
            + "\n"
    } else {
        let colour = std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none();
        screen::render(&status, colour)
    };
    print(&format!("{clear}{text}"))?;
    Ok(if status.degraded.is_empty() { FINE } else { FOUND_A_PROBLEM })
}
