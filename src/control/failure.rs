//! Why a use case did not do what was asked.

use crate::{model::PoolName, store};

/// Why a use case did not do what was asked. Whichever it is, nothing has been changed that a repeat would not mend.
#[derive(Debug)]
pub enum Failure<R> {
    /// The request cannot be granted.
    Refused(R),
    /// Another use case on the same service instance has been under way for too long.
    Busy,
    /// The request is fine, and Harbor is not.
    Fault(Fault),
}

/// What ails Harbor.
#[derive(Debug, thiserror::Error)]
pub enum Fault {
    /// The store.
    #[error(transparent)]
    Store(#[from] store::Fault),
    /// A port could not be opened, for no fault of the request.
    #[error("port {port} could not be opened: {reason}")]
    NotListening {
        /// The port.
        port: u16,
        /// Why, as the forwarder says it.
        reason: String,
    },
    /// An update that some node cannot carry out is stored, and could not be taken back.
    #[error("the change could not be taken back, so it is not known whether it holds: send the request again")]
    NotTakenBack,
    /// A service instance of a pool that no node has ever defined.
    #[error("no node knows the pool {0}: add [pools.{0}] to a configuration")]
    UnknownPool(PoolName),
    /// Too many use cases are under way.
    #[error("too many requests are under way: try again in a few seconds")]
    Overloaded,
    /// The process ends.
    #[error("Harbor is stopping: try again in a few seconds")]
    Stopping,
}

impl<R> Failure<R> {
    /// Whether it is known what has been done: it is not while the store is away, or when somebody else is at it.
    pub(super) fn is_final(&self) -> bool {
        !matches!(self, Self::Busy | Self::Fault(Fault::Store(_) | Fault::NotTakenBack))
    }
}

impl<R> From<Fault> for Failure<R> {
    fn from(fault: Fault) -> Self {
        Self::Fault(fault)
    }
}

impl<R> From<store::Fault> for Failure<R> {
    fn from(fault: store::Fault) -> Self {
        Self::Fault(Fault::Store(fault))
    }
}

/// An error with its sources, for the log.
pub(super) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(inner) = source {
        let words = inner.to_string();
        if !text.ends_with(&words) {
            text = format!("{text}: {words}");
        }
        source = inner.source();
    }
    text
}
