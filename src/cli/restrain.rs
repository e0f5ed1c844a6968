//! `harbor node suspend`, `block` and their ways back: what holds on all nodes of a store.

use std::{fmt::Write as _, path::PathBuf};

use anyhow::Context as _;
use hyper::Method;
use serde::Serialize;

use super::{
    FINE, Failure, Outcome, clean,
    operator::{Node, Reach},
    print,
};
use crate::admin::wire;

/// Which service instance is to carry nothing, and why.
#[derive(Debug, clap::Args)]
pub struct Suspend {
    /// Its id, as `cf service NAME --guid` and `harbor status --json` tell it.
    #[arg(long, value_name = "ID")]
    service_instance: String,

    #[command(flatten)]
    why: Why,
}

/// Whose clients are to get nowhere, and why.
#[derive(Debug, clap::Args)]
pub struct Block {
    /// A network, such as 203.0.113.0/24 or 2001:db8::/32, or an address alone.
    network: String,

    #[command(flatten)]
    why: Why,
}

#[derive(Debug, clap::Args)]
struct Why {
    /// Why: the status and the history tell it.
    #[arg(long, value_name = "TEXT")]
    reason: Option<String>,

    #[command(flatten)]
    asked: Asked,
}

/// Whose clients are let in again.
#[derive(Debug, clap::Args)]
pub struct Unblock {
    /// The network, as it was blocked.
    network: String,

    #[command(flatten)]
    asked: Asked,
}

/// How an answer is shown, and which node is asked.
#[derive(Debug, clap::Args)]
pub struct Asked {
    /// Print JSON.
    #[arg(long)]
    pub json: bool,

    #[command(flatten)]
    pub reach: Reach,
}

/// All that is held back.
#[derive(Debug, Serialize)]
struct All {
    #[serde(flatten)]
    suspensions: wire::Suspensions,
    #[serde(flatten)]
    blocked: wire::Blocked,
}

impl Suspend {
    pub async fn run(self, file: Option<PathBuf>) -> Outcome {
        let (id, Why { reason, asked }) = (self.service_instance, self.why);
        let path = format!("{}/{}", wire::SUSPENSIONS_PATH, wire::in_path(&id));
        asked
            .tell(file, Method::PUT, &path, reason, &format!("service instance {id}"), ["suspended", "suspended"])
            .await
    }
}

impl Block {
    pub async fn run(self, file: Option<PathBuf>) -> Outcome {
        let Why { reason, asked } = self.why;
        asked.tell(file, Method::PUT, &path_of(&self.network), reason, &self.network, ["blocked", "blocked"]).await
    }
}

impl Unblock {
    pub async fn run(self, file: Option<PathBuf>) -> Outcome {
        let words = ["unblocked", "not blocked"];
        self.asked.tell(file, Method::DELETE, &path_of(&self.network), None, &self.network, words).await
    }
}

fn path_of(network: &str) -> String {
    format!("{}/{}", wire::BLOCKED_PATH, wire::in_path(network))
}

/// Lets a service instance go on that was suspended.
pub async fn resume(id: &str, asked: Asked, file: Option<PathBuf>) -> Outcome {
    let path = format!("{}/{}", wire::SUSPENSIONS_PATH, wire::in_path(id));
    let words = ["resumed", "not suspended"];
    asked.tell(file, Method::DELETE, &path, None, &format!("service instance {id}"), words).await
}

/// Shows all that is held back.
pub async fn list(Asked { json, reach }: Asked, file: Option<PathBuf>) -> Outcome {
    let node = Node::find(reach, file)?;
    let (suspensions, blocked) = (node.get(wire::SUSPENSIONS_PATH).await?, node.get(wire::BLOCKED_PATH).await?);
    let all = All { suspensions, blocked };
    print(&if json { as_json(&all)? } else { table(&all) })?;
    Ok(FINE)
}

impl Asked {
    /// Tells a node, and says what has come of it: by the first of `words` when something has changed, by the second when it
    /// was so before.
    async fn tell(
        self,
        file: Option<PathBuf>,
        method: Method,
        path: &str,
        reason: Option<String>,
        what: &str,
        words: [&str; 2],
    ) -> Outcome {
        let node = Node::find(self.reach, file)?;
        let told: wire::Restrained = match method {
            Method::PUT => node.ask_with(method, path, &wire::Reason { reason }).await?,
            _ => node.ask(method, path).await?,
        };
        print(&if self.json { as_json(&told)? } else { said(&told, what, words) })?;
        Ok(FINE)
    }
}

fn said(told: &wire::Restrained, what: &str, [changed, same]: [&str; 2]) -> String {
    let mut text = clean(what);
    match (&told.restraint, told.changed) {
        (_, true) => _ = writeln!(text, " is {changed}, on all nodes"),
        (Some(restraint), false) => {
            _ = writeln!(text, " was {same} already, since {} by {}", clean(&restraint.since), clean(&restraint.by));
        }
        (None, false) => _ = writeln!(text, " is {same}: `harbor node blocked` shows what is held back"),
    }
    if !told.lagging.is_empty() {
        let lagging = told.lagging.iter().map(|node| clean(node)).collect::<Vec<_>>().join(", ");
        let _ = writeln!(text, "  ! not so yet on {lagging}, as soon as that can be reached: see `harbor node list`");
    }
    text
}

fn table(all: &All) -> String {
    let suspended = all.suspensions.suspended.iter().map(|of| ("suspended", &of.service_instance, &of.restraint));
    let blocked = all.blocked.blocked.iter().map(|of| ("blocked", &of.network, &of.restraint));
    let rows = suspended.chain(blocked).collect::<Vec<_>>();
    if rows.is_empty() {
        return "No service instance is suspended, and no network is blocked.\n".into();
    }
    let width = rows.iter().map(|(_, of, _)| of.chars().count()).max().unwrap_or(0).max(4);
    let mut text = format!("STATE      {:<width$}  SINCE                 BY\n", "WHAT");
    for (state, of, wire::Restraint { since, by, reason }) in rows {
        let _ = write!(text, "{state:<9}  {:<width$}  {since:<20}  {}", clean(of), clean(by));
        text.push_str(&if reason.is_empty() { "\n".into() } else { format!(": {}\n", clean(reason)) });
    }
    text
}

fn as_json(answer: &impl Serialize) -> Result<String, Failure> {
    let text = serde_json::to_string_pretty(answer).context("an answer can be written as JSON");
    Ok(text.map_err(Failure::Problem)? + "\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn restraint(reason: &str) -> wire::Restraint {
        wire::Restraint { since: "2026-11-21T09:15:18Z".into(), by: "root@a".into(), reason: reason.into() }
    }

    #[test]
    fn what_is_held_back_is_a_line_each_with_who_and_why() {
        let suspension = wire::Suspension { service_instance: "6fbe0f2c".into(), restraint: restraint("abused") };
        let block = wire::Block { network: "203.0.113.0/24".into(), restraint: restraint("") };
        let all = All {
            suspensions: wire::Suspensions { suspended: vec![suspension] },
            blocked: wire::Blocked { blocked: vec![block] },
        };
        let expected = "STATE      WHAT            SINCE                 BY\n\
                        suspended  6fbe0f2c        2026-11-21T09:15:18Z  root@a: abused\n\
                        blocked    203.0.113.0/24  2026-11-21T09:15:18Z  root@a\n";
        assert_eq!(table(&all), expected);
        let none =
            All { suspensions: wire::Suspensions { suspended: vec![] }, blocked: wire::Blocked { blocked: vec![] } };
        assert_eq!(table(&none), "No service instance is suspended, and no network is blocked.\n");
    }

    #[test]
    fn an_answer_says_what_has_changed_and_who_has_not_heard() {
        let told = |changed, restraint: Option<wire::Restraint>, lagging: &[&str]| wire::Restrained {
            changed,
            restraint,
            lagging: lagging.iter().map(ToString::to_string).collect(),
        };
        let blocked = |told: &wire::Restrained| said(told, "10.0.0.0/8", ["blocked", "blocked"]);
        assert_eq!(blocked(&told(true, Some(restraint("")), &[])), "10.0.0.0/8 is blocked, on all nodes\n");
        assert_eq!(
            blocked(&told(false, Some(restraint("")), &[])),
            "10.0.0.0/8 was blocked already, since 2026-11-21T09:15:18Z by root@a\n"
        );
        assert_eq!(
            said(&told(false, None, &[]), "10.0.0.0/8", ["unblocked", "not blocked"]),
            "10.0.0.0/8 is not blocked: `harbor node blocked` shows what is held back\n"
        );
        assert_eq!(
            said(&told(true, None, &["b", "c"]), "10.0.0.0/8", ["unblocked", "not blocked"]),
            "10.0.0.0/8 is unblocked, on all nodes\n  ! not so yet on b, c, as soon as that can be reached: see `harbor node \
             list`\n"
        );
    }
}
