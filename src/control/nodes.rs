//! Nodes: drained and resumed by their operators' wish, and forgotten when they have died for good. The wish is in the
//! store: whoever it is about hears of it there.

use super::Control;
use crate::{
    model::{NodeId, member::Known},
    store,
};

/// Why nothing is done with a node.
#[derive(Debug, thiserror::Error)]
pub enum NodeRefusal {
    /// There is none of that name.
    #[error("there is no node {0:?}: `harbor node list` shows all")]
    Unknown(String),
    /// It would join again at once.
    #[error("the node {0} lives: stop it first, and try again when `harbor node list` shows it as dead")]
    Alive(NodeId),
    /// The store is away.
    #[error("the store is away: try again in a few seconds")]
    Fault(#[from] store::Fault),
}

impl Control {
    /// Has a node drained, or take part again.
    ///
    /// # Errors
    /// [`NodeRefusal`].
    pub async fn drain(&self, node: &str, drain: bool) -> Result<Known, NodeRefusal> {
        let mut known = self.known(node)?;
        if !self.store.set_drain(&known.member.id, drain).await? {
            return Err(NodeRefusal::Unknown(node.to_owned()));
        }
        known.member.drain = drain;
        tracing::info!(node, drain, "an operator has asked to drain a node, or to resume it");
        Ok(known)
    }

    /// Forgets a node that is dead.
    ///
    /// # Errors
    /// [`NodeRefusal`].
    pub async fn remove_node(&self, node: &str) -> Result<Known, NodeRefusal> {
        let known = self.known(node)?;
        if known.alive {
            return Err(NodeRefusal::Alive(known.member.id));
        }
        if !self.store.remove_node(&known.member.id).await? {
            return Err(NodeRefusal::Unknown(node.to_owned()));
        }
        tracing::info!(node, "an operator has removed a node");
        Ok(known)
    }

    fn known(&self, node: &str) -> Result<Known, NodeRefusal> {
        let all = self.members.borrow().clone();
        let known = all.all.iter().find(|known| known.member.id.as_str() == node);
        known.cloned().ok_or_else(|| NodeRefusal::Unknown(node.to_owned()))
    }
}
