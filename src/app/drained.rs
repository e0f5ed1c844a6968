//! An operator's wish to have this node drained, which the store keeps: carried out while it stands, taken back when it
//! goes.

use std::sync::Arc;

use tokio::{sync::watch, time::sleep};
use tokio_util::sync::CancellationToken;

use super::drain;
use crate::{
    forwarder::Forwarder,
    model::{NodeId, desired::DesiredState, member::Members, observed::Mode},
};

/// What carries the wish out.
pub(super) struct Drained {
    pub(super) node: NodeId,
    pub(super) members: watch::Receiver<Arc<Members>>,
    pub(super) desired: watch::Receiver<Arc<DesiredState>>,
    pub(super) mode: watch::Sender<Mode>,
    pub(super) forwarder: Arc<Forwarder>,
}

impl Drained {
    /// Whether the node is to be drained, as far as that is known.
    pub(super) fn is_wanted(&self) -> bool {
        self.members.borrow().wants_drained(&self.node)
    }

    /// Does what the store says until `shutdown`; the node serves by now, or is drained already.
    pub(super) async fn run(mut self, shutdown: CancellationToken) {
        let node = self.node.clone();
        loop {
            let wanted = shutdown.run_until_cancelled(self.members.wait_for(|members| members.wants_drained(&node)));
            let Some(Ok(_)) = wanted.await else { return };
            let mut members = self.members.clone();
            tokio::select! {
                () = shutdown.cancelled() => return,
                resumed = members.wait_for(|members| !members.wants_drained(&node)) => if resumed.is_err() { return },
                () = self.drain() => {}
            }
            self.forwarder.reopen_listeners();
            self.mode.send_replace(Mode::Serving);
            tracing::info!("resumed: taking part again");
        }
    }

    /// Not ready at once, then no new flows, then no open ones. Never returns.
    async fn drain(&self) {
        let (wait, timeout) = {
            let limits = &self.desired.borrow().limits;
            (limits.drain_wait, limits.drain_timeout)
        };
        if *self.mode.borrow() == Mode::Serving {
            self.mode.send_replace(Mode::Draining);
            tracing::info!(?wait, ?timeout, "an operator wants this node drained");
            sleep(wait).await;
        }
        self.forwarder.close_listeners();
        drain::finished(&self.forwarder, timeout).await;
        self.forwarder.end_flows();
        tracing::info!("drained: `harbor node resume` has this node take part again");
        std::future::pending().await
    }
}
