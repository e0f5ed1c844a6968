//! `harbor node …`

use std::{fmt::Write as _, path::PathBuf};

use anyhow::Context as _;
use clap::Subcommand;
use hyper::Method;

use super::{
    FINE, FOUND_A_PROBLEM, Failure, Outcome,
    operator::Node,
    print,
    restrain::{self, Asked},
};
use crate::admin::wire;

/// List, drain, resume or remove nodes; suspend service instances or block networks.
///
/// Any node can be asked about all. A node that is drained is not ready from then on, takes what still comes for
/// `forwarder.drain_wait`, and then nothing new; what is open may finish for `forwarder.drain_timeout`. It stays drained,
/// also after a restart, until it is resumed.
///
/// What is suspended or blocked is so on all nodes at once, also after restarts, and in the history of settings with who and
/// when. The operators' API is none of it: nobody locks themselves out.
#[derive(Debug, clap::Args)]
pub struct NodeCommand {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Show all nodes; the exit code is 1 when one is dead, lags behind, or cannot open a port.
    List(Asked),
    /// Have a node take nothing new, and finish what is open.
    Drain(Named),
    /// Have a drained node take part again; or, with --service-instance, a service instance that was suspended.
    Resume(Resumed),
    /// Forget a node that has died for good. One that lives is not removed.
    Remove(Named),
    /// Close the port of a service instance on all nodes and end its connections and sessions, until it is resumed.
    ///
    /// It keeps its port, its bindings and its backends, and the platform can go on with it.
    Suspend(restrain::Suspend),
    /// Refuse the clients of a network on every port of all nodes, and end their connections and sessions, until it is
    /// unblocked.
    Block(restrain::Block),
    /// Let the clients of a network in again.
    Unblock(restrain::Unblock),
    /// Show which service instances are suspended and which networks are blocked.
    Blocked(Asked),
}

#[derive(Debug, clap::Args)]
struct Named {
    /// The node's id [default for drain and resume: the node that is asked].
    id: Option<String>,

    #[command(flatten)]
    asked: Asked,
}

#[derive(Debug, clap::Args)]
struct Resumed {
    /// The service instance, by its id, that is resumed instead of a node.
    #[arg(long, value_name = "ID", conflicts_with = "id")]
    service_instance: Option<String>,

    #[command(flatten)]
    named: Named,
}

impl NodeCommand {
    pub fn run(self, file: Option<PathBuf>) -> Outcome {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(async {
            match self.action {
                Action::List(Asked { json, reach }) => {
                    let nodes = Node::find(reach, file)?.get::<wire::Nodes>(wire::NODES_PATH).await?;
                    show(&nodes.nodes, json, table)?;
                    Ok(if nodes.nodes.iter().all(wire::Node::is_fine) { FINE } else { FOUND_A_PROBLEM })
                }
                Action::Drain(named) => named.tell(file, Method::POST, "/drain", table).await,
                Action::Resume(Resumed { service_instance: Some(id), named }) => {
                    restrain::resume(&id, named.asked, file).await
                }
                Action::Resume(Resumed { named, .. }) => named.tell(file, Method::POST, "/resume", table).await,
                Action::Suspend(suspend) => suspend.run(file).await,
                Action::Block(block) => block.run(file).await,
                Action::Unblock(unblock) => unblock.run(file).await,
                Action::Blocked(asked) => restrain::list(asked, file).await,
                Action::Remove(Named { id: None, .. }) => {
                    Err(Failure::Usage("which node? Name it, for example `harbor node remove harbor_node_2`".into()))
                }
                Action::Remove(named) => named.tell(file, Method::DELETE, "", forgotten).await,
            }
        })
    }
}

impl Named {
    async fn tell(self, file: Option<PathBuf>, method: Method, action: &str, words: Words) -> Outcome {
        let Asked { json, reach } = self.asked;
        let node = Node::find(reach, file)?;
        let id = match self.id {
            Some(id) => id,
            None => node.get::<wire::Status>(wire::STATUS_PATH).await?.node,
        };
        let path = format!("{}/{}{action}", wire::NODES_PATH, wire::in_path(&id));
        show(&[node.ask::<wire::Node>(method, &path).await?], json, words)?;
        Ok(FINE)
    }
}

/// How nodes are shown to people.
type Words = fn(&[wire::Node]) -> String;

fn show(nodes: &[wire::Node], json: bool, words: Words) -> Result<(), Failure> {
    if json {
        let nodes = wire::Nodes { nodes: nodes.to_vec() };
        let text = serde_json::to_string_pretty(&nodes).context("an answer can be written as JSON");
        return Ok(print(&(text.map_err(Failure::Problem)? + "\n"))?);
    }
    Ok(print(&words(nodes))?)
}

fn forgotten(nodes: &[wire::Node]) -> String {
    let line =
        |node: &wire::Node| format!("{} is forgotten: it was heard last at {}\n", super::clean(&node.id), node.seen_at);
    nodes.iter().map(line).collect()
}

/// One line a node, and one for each thing that ails it.
fn table(nodes: &[wire::Node]) -> String {
    let width = nodes.iter().map(|node| node.id.chars().count()).max().unwrap_or(0).max(4);
    let mut text = format!("{:<width$}  STATE     REVISION  FLOWS   VERSION  LAST HEARD            POOLS\n", "NODE");
    for node in nodes {
        let wire::Node { id, revision_applied, flows, version, seen_at, .. } = node;
        let _ = writeln!(
            text,
            "{:<width$}  {:<8}  {revision_applied:<8}  {flows:<6}  {version:<7}  {seen_at:<20}  {}",
            super::clean(id),
            node.state(),
            node.pools.join(", ")
        );
        for problem in &node.problems {
            let _ = writeln!(text, "  ! {}", super::clean(problem));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_is_a_line_and_what_ails_it_another() {
        let fine = wire::Node {
            id: "harbor_node_1".into(),
            alive: true,
            mode: wire::Mode::Serving,
            drain: false,
            version: "0.1.0".into(),
            pools: vec!["default".into(), "games".into()],
            revision_applied: 12,
            flows: 3,
            ports_failed: 0,
            joined_at: "2026-11-21T09:15:18Z".into(),
            seen_at: "2026-11-21T09:15:19Z".into(),
            problems: vec![],
        };
        let dead = wire::Node {
            id: "b\u{1b}".into(),
            alive: false,
            problems: vec!["it has not been heard for a while".into()],
            ..fine.clone()
        };
        let expected = "NODE           STATE     REVISION  FLOWS   VERSION  LAST HEARD            POOLS\n\
                        harbor_node_1  serving   12        3       0.1.0    2026-11-21T09:15:19Z  default, games\n\
                        b\\u{1b}        dead      12        3       0.1.0    2026-11-21T09:15:19Z  default, games\n  \
                        ! it has not been heard for a while\n";
        assert_eq!(table(&[fine, dead]), expected);
    }
}
