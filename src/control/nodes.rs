//! Nodes: drained and resumed by their operators' wish, and forgotten when they have died for good. The wish is in the
//! store: whoever it is about hears of it there.

use std::time::Duration;

use super::{
    Control,
    audit::{self, Change},
};
use crate::{
    model::{
        NodeId,
        member::{Known, Member, Members},
        observed::Mode,
        requester::Requester,
    },
    store,
};

/// How long a node that is resumed may take to take part again. It hears of it within milliseconds.
const RESUME_WAIT: Duration = Duration::from_secs(2);

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
    /// Has a node drained, or take part again. Of one that is resumed it is told what it is once it does, if that is soon.
    ///
    /// # Errors
    /// [`NodeRefusal`].
    pub async fn drain(&self, node: &str, drain: bool, by: &Requester) -> Result<Known, NodeRefusal> {
        let known = self.known(node)?;
        if !self.store.set_drain(&known.member.id, drain).await? {
            return Err(NodeRefusal::Unknown(node.to_owned()));
        }
        let id = &known.member.id;
        audit::note(by, if drain { Change::Drained(id) } else { Change::Resumed(id) });
        let known = if drain { known } else { self.resumed(known).await };
        Ok(Known { member: Member { drain, ..known.member }, ..known })
    }

    async fn resumed(&self, known: Known) -> Known {
        let mut members = self.members.clone();
        let is_waited_for = |known: &Known| known.alive && known.member.report.mode != Mode::Serving;
        let takes_part = members.wait_for(|all| !find(all, known.member.id.as_str()).is_some_and(is_waited_for));
        // One that was told to end besides does not.
        let _ = tokio::time::timeout(RESUME_WAIT, takes_part).await;
        find(&self.members.borrow(), known.member.id.as_str()).cloned().unwrap_or(known)
    }

    /// Forgets a node that is dead.
    ///
    /// # Errors
    /// [`NodeRefusal`].
    pub async fn remove_node(&self, node: &str, by: &Requester) -> Result<Known, NodeRefusal> {
        let known = self.known(node)?;
        if known.alive {
            return Err(NodeRefusal::Alive(known.member.id));
        }
        if !self.store.remove_node(&known.member.id).await? {
            return Err(NodeRefusal::Unknown(node.to_owned()));
        }
        audit::note(by, Change::Removed(&known.member.id));
        Ok(known)
    }

    fn known(&self, node: &str) -> Result<Known, NodeRefusal> {
        find(&self.members.borrow(), node).cloned().ok_or_else(|| NodeRefusal::Unknown(node.to_owned()))
    }
}

fn find<'a>(members: &'a Members, node: &str) -> Option<&'a Known> {
    members.all.iter().find(|known| known.member.id.as_str() == node)
}
