//! `harbor data rotate-secret`

use std::path::PathBuf;

use anyhow::Context as _;
use hyper::Method;

use super::{
    FINE, Failure, Outcome, clean,
    operator::{Node, Reach},
    print,
};
use crate::admin::wire;

/// Rotate the secret that announce tokens are derived from, without a gap: ask a running node, for all.
///
/// From then on binding an app gives it a token of the new secret, and tokens of both count on all nodes. When every app that
/// announces has been bound anew and restaged, --finish ends the rotation: tokens of the former secret count no more, and
/// backends that were announced by one end when they are not announced again in time.
#[derive(Debug, clap::Args)]
pub struct RotateSecret {
    /// End the rotation that is under way.
    #[arg(long)]
    finish: bool,

    /// Print JSON.
    #[arg(long)]
    json: bool,

    #[command(flatten)]
    reach: Reach,
}

impl RotateSecret {
    pub fn run(self, file: Option<PathBuf>) -> Outcome {
        let node = Node::find(self.reach, file)?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let step = if self.finish { "finish" } else { "rotate" };
        let path = format!("{}/{step}", wire::ANNOUNCE_SECRET_PATH);
        let told = runtime.block_on(node.ask::<wire::AnnounceSecret>(Method::POST, &path))?;
        if self.json {
            let text = serde_json::to_string_pretty(&told).context("an answer can be written as JSON");
            print(&(text.map_err(Failure::Problem)? + "\n"))?;
        } else {
            print(&said(&told, self.finish))?;
        }
        Ok(FINE)
    }
}

fn said(told: &wire::AnnounceSecret, finished: bool) -> String {
    let mut text = if finished {
        "The rotation is over: tokens of the former secret count no more.\n".to_owned()
    } else {
        "There is a new secret, and tokens of both count: bind and restage each app that announces, then run this with \
         --finish.\n"
            .to_owned()
    };
    if !told.lagging.is_empty() {
        let lagging = told.lagging.iter().map(|node| clean(node)).collect::<Vec<_>>().join(", ");
        text += &format!("  ! not so yet on {lagging}, as soon as that can be reached: see `harbor node list`\n");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_next_is_told_and_who_has_not_heard() {
        let told = |lagging: &[&str]| wire::AnnounceSecret {
            rotation: None,
            lagging: lagging.iter().map(ToString::to_string).collect(),
        };
        assert!(
            said(&told(&[]), false)
                .ends_with("bind and restage each app that announces, then run this with --finish.\n")
        );
        let finished = "The rotation is over: tokens of the former secret count no more.\n";
        assert_eq!(said(&told(&[]), true), finished);
        let lagging = "  ! not so yet on b, as soon as that can be reached: see `harbor node list`\n";
        assert_eq!(said(&told(&["b"]), true), format!("{finished}{lagging}"));
    }
}
