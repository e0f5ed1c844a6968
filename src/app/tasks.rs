//! Tasks that run until they are told to stop, and are all joined.

use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// Tasks that are ended together.
#[derive(Debug, Default)]
pub(super) struct Tasks {
    stop: CancellationToken,
    running: JoinSet<&'static str>,
}

impl Tasks {
    /// Starts one, under the name of what it does; it must end when its token is cancelled, and not before.
    pub(super) fn spawn<F>(&mut self, name: &'static str, work: impl FnOnce(CancellationToken) -> F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let work = work(self.stop.clone());
        self.running.spawn(async move {
            work.await;
            name
        });
    }

    /// Waits until one ends though it was not told to, which is a fault of the node.
    pub(super) async fn ended(&mut self) -> anyhow::Error {
        match self.running.join_next().await {
            Some(Ok(name)) => anyhow::anyhow!("a part of the node has ended by itself: {name}"),
            Some(Err(failed)) => anyhow::Error::new(failed).context("a part of the node has failed"),
            None => std::future::pending().await,
        }
    }

    /// Ends them, and waits until they have.
    pub(super) async fn end(&mut self) {
        self.stop.cancel();
        while let Some(ended) = self.running.join_next().await {
            if let Err(error) = ended {
                tracing::error!(%error, "a part of the node has failed");
            }
        }
    }
}
