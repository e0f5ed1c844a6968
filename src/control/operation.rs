//! Operations: provisions that were answered before their port listens. The store has them, so that any node can tell
//! what becomes of one, and finish it when the node that began it has died.

use std::{sync::Arc, time::Duration};

use tracing::Instrument as _;

use super::{Control, Failure, Fault, NotFound, ProvisionRefusal, failure::chain};
use crate::{
    model::ServiceInstanceId,
    store::{self, Ending, Operation},
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
            self.take_up(operation.iter()).await?;
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

    /// Whether a service instance is being opened, here or elsewhere.
    pub(super) async fn is_being_opened(&self, id: &ServiceInstanceId) -> store::Result<bool> {
        if !self.store.serves_many() {
            return Ok(false);
        }
        let operation = self.store.operation(id, self.clock.wall()).await?;
        Ok(operation.is_some_and(|operation| operation.failure.is_none()))
    }

    /// Takes up what was begun by this node's last process, or by a node that has died.
    pub(super) async fn take_up_operations(self: &Arc<Self>) -> store::Result<()> {
        if !self.store.serves_many() {
            return Ok(());
        }
        let operations = self.store.operations().await?;
        self.take_up(operations.iter()).await
    }

    async fn take_up(self: &Arc<Self>, operations: impl Iterator<Item = &Operation>) -> store::Result<()> {
        for Operation { service_instance_id: id, node_id, .. } in operations {
            let left = if *node_id == self.node {
                !self.openings.borrow().contains(id)
            } else {
                !self.members.borrow().is_alive(node_id)
            };
            if left && self.store.take_up(id, node_id, &self.node, self.clock.wall()).await? {
                tracing::info!(service_instance = %id, begun_by = %node_id, "taking up a provision that was left");
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
            if let Err(failure) = in_turn.await {
                let failure: Failure<ProvisionRefusal> = failure;
                tracing::warn!(service_instance = %id, failure = said(&failure), "a provision is to be taken up again");
            }
            control.openings.send_modify(|openings| {
                openings.remove(&id);
            });
        };
        self.tasks.spawn(work.in_current_span());
    }

    async fn finish(self: &Arc<Self>, id: &ServiceInstanceId) -> Result<(), Failure<ProvisionRefusal>> {
        // Deprovisioned meanwhile: its operation has ended with it.
        let Some(mut instance) = self.store.instance(id).await? else { return Ok(()) };
        match self.listen(&mut instance).await {
            Ok(()) => {
                self.store.opened(id, &self.node).await?;
                Ok(())
            }
            Err(failure) if failure.is_final() => {
                let reason = said(&failure);
                tracing::warn!(service_instance = %id, reason, "a provision has failed");
                Ok(self.undo(&instance, Ending::Failed(&reason)).await?)
            }
            Err(failure) => Err(failure),
        }
    }
}

/// A failure in words for whoever asked for the service instance.
fn said(failure: &Failure<ProvisionRefusal>) -> String {
    match failure {
        Failure::Refused(refusal) => refusal.to_string(),
        Failure::Busy => "another operation on this service instance is in progress".into(),
        Failure::Fault(Fault::Store(fault)) => chain(fault),
        Failure::Fault(fault) => fault.to_string(),
    }
}
