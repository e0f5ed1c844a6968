//! Operations: provisions on a store of several nodes, from their commit until their port listens. The store has them, so
//! that each is the work of one node at a time, and that any node can tell what becomes of one, and finish it when the
//! node that began it has died.

use std::{collections::HashSet, sync::Arc, time::Duration};

use tokio::sync::watch;
use tracing::Instrument as _;

use super::{
    Control, Failure, NotFound, ProvisionRefusal,
    audit::{self, Change},
    provision::said,
};
use crate::{
    model::{ServiceInstanceId, requester::Requester},
    store::{self, Operation},
};

/// How long the answer to who asks for an operation waits for its end: most end sooner than the platform asks again.
const ANSWER_WAIT: Duration = Duration::from_secs(2);

/// What has become of an operation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Progress {
    /// It is under way.
    InProgress,
    /// It has ended well.
    Succeeded,
    /// It has failed, for this reason; the service instance does not exist.
    Failed(String),
}

impl Control {
    /// What has become of the operation on a service instance, whichever node began it.
    ///
    /// # Errors
    /// [`Failure`]; [`NotFound`] when there is neither an operation nor a service instance.
    pub async fn operation(self: &Arc<Self>, id: &ServiceInstanceId) -> Result<Progress, Failure<NotFound>> {
        let mut operation = self.store.operation(id, self.clock.wall()).await?;
        if let Some(Operation { failure: None, .. }) = &operation {
            self.take_up(&operation).await?;
            let mut openings = self.openings.subscribe();
            let ended = openings.wait_for(|openings| !openings.contains(id));
            // One of another node is asked for again.
            let _ = tokio::time::timeout(ANSWER_WAIT, ended).await;
            operation = self.store.operation(id, self.clock.wall()).await?;
        }
        match operation {
            Some(Operation { failure: None, .. }) => Ok(Progress::InProgress),
            Some(Operation { failure: Some(reason), .. }) => Ok(Progress::Failed(reason)),
            None => match self.store.instance(id).await? {
                Some(_) => Ok(Progress::Succeeded),
                None => Err(Failure::Refused(NotFound)),
            },
        }
    }

    /// Whether a service instance that was read before is being opened, here or elsewhere, or could not be and is gone
    /// since: nobody has been told that it is there.
    pub(super) async fn is_being_opened(&self, id: &ServiceInstanceId) -> store::Result<bool> {
        Ok(self.untold(id).await?.is_some())
    }

    /// The operation that keeps it from being told.
    pub(super) async fn untold(&self, id: &ServiceInstanceId) -> store::Result<Option<Operation>> {
        if self.store.serves_many() { self.store.operation(id, self.clock.wall()).await } else { Ok(None) }
    }

    /// Takes up what was begun by this node's last process, or by a node that has died.
    pub(super) async fn take_up_operations(self: &Arc<Self>) -> store::Result<()> {
        if !self.store.serves_many() {
            return Ok(());
        }
        let operations = self.store.operations().await?;
        self.take_up(&operations).await
    }

    /// Takes up those whose node is dead, or was this node's last process.
    pub(super) async fn take_up(
        self: &Arc<Self>,
        operations: impl IntoIterator<Item = &Operation>,
    ) -> store::Result<()> {
        for Operation { service_instance_id: id, node_id, .. } in operations {
            let left = if *node_id == self.node {
                !self.openings.borrow().contains(id)
            } else {
                !self.members.borrow().is_alive(node_id)
            };
            if left && self.store.take_up(id, node_id, &self.node, self.clock.wall()).await? {
                audit::note(&Requester::Harbor, Change::TakenUp { id, node: &self.node, from_node: node_id });
                self.open_later(id);
            }
        }
        Ok(())
    }

    /// Opens the port of a service instance that has an operation, in its turn, and ends the operation.
    pub(super) fn open_later(self: &Arc<Self>, id: &ServiceInstanceId) {
        if !self.openings.send_if_modified(|openings| openings.insert(id.clone())) {
            return;
        }
        let (control, id) = (Arc::clone(self), id.clone());
        let work = async move {
            let in_turn = control.in_turn(&id, {
                let id = id.clone();
                |control| async move { control.finish(&id).await }
            });
            let outcome: Result<(), Failure<ProvisionRefusal>> = in_turn.await;
            if let Err(failure) = outcome.as_ref()
                && !failure.is_final()
            {
                tracing::warn!(service_instance = %id, failure = said(failure), "a provision is to be taken up again");
            }
            control.openings.send_modify(|openings| {
                openings.remove(&id);
            });
        };
        self.tasks.spawn(work.in_current_span());
    }

    async fn finish(&self, id: &ServiceInstanceId) -> Result<(), Failure<ProvisionRefusal>> {
        // Deprovisioned meanwhile: its operation has ended with it.
        let Some(instance) = self.store.instance(id).await? else { return Ok(()) };
        self.open_or_undo(instance).await.map(drop)
    }

    /// Notes that a service instance is being opened here, until what is returned is dropped.
    pub(super) fn begin_opening(&self, id: &ServiceInstanceId) -> Opening<'_> {
        self.openings.send_modify(|openings| _ = openings.insert(id.clone()));
        Opening { openings: &self.openings, id: id.clone() }
    }
}

/// A service instance that is being opened here.
pub(super) struct Opening<'a> {
    openings: &'a watch::Sender<HashSet<ServiceInstanceId>>,
    id: ServiceInstanceId,
}

impl Drop for Opening<'_> {
    fn drop(&mut self) {
        self.openings.send_modify(|openings| _ = openings.remove(&self.id));
    }
}
