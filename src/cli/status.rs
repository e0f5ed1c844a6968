//! `harbor status`

use std::{io::IsTerminal as _, path::PathBuf, process::ExitCode, time::Duration};

use anyhow::Context as _;
use tokio::signal::unix::{SignalKind, signal};

use super::{
    FINE, FOUND_A_PROBLEM, Failure, Outcome, complain,
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
/// Interrupted, --watch ends with the code of what it showed last.
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
                let (text, code) = look(&node, self.json).await?;
                print(&text)?;
                return Ok(code);
            }
            // Redirected output gets one answer after another.
            let on_screen = std::io::stdout().is_terminal() && !self.json;
            let mut interrupted = signal(SignalKind::interrupt())?;
            let mut ticks = tokio::time::interval(WATCH_EVERY);
            let mut last = FOUND_A_PROBLEM;
            loop {
                let looked = async {
                    ticks.tick().await;
                    look(&node, self.json).await
                };
                let looked = tokio::select! {
                    _ = interrupted.recv() => return Ok(last),
                    looked = looked => looked,
                };
                let (text, code) = match looked {
                    // It may be restarted a moment later.
                    Err(Failure::Problem(error)) if self.json => {
                        complain(&format!("{error:#}"));
                        last = FOUND_A_PROBLEM;
                        continue;
                    }
                    Err(Failure::Problem(error)) => (format!("{error:#}\n"), FOUND_A_PROBLEM),
                    looked => looked?,
                };
                if on_screen { print(&redrawn(&text)) } else { print(&text) }?;
                last = code;
            }
        })
    }
}

/// What there is to show, and the exit code for it.
async fn look(node: &Node, json: bool) -> Result<(String, ExitCode), Failure> {
    let status = node.get::<wire::Status>(wire::STATUS_PATH).await?;
    let text = if json {
        serde_json::to_string_pretty(&status).context("an answer can be written as JSON").map_err(Failure::Problem)?
            + "\n"
    } else {
        let colour = std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none();
        screen::render(&status, colour)
    };
    Ok((text, if status.degraded.is_empty() { FINE } else { FOUND_A_PROBLEM }))
}

/// A screen that takes the place of the last one, line by line: none is empty meanwhile, and none flickers.
fn redrawn(text: &str) -> String {
    format!("\x1b[H{}\x1b[J", text.replace('\n', "\x1b[K\n"))
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_screen_is_drawn_over_the_last_one_and_clears_what_is_left_of_it() {
        assert_eq!(super::redrawn("one\ntwo\n"), "\x1b[Hone\x1b[K\ntwo\x1b[K\n\x1b[J");
    }
}
