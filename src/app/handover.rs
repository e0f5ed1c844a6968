//! Hot restart: a running node hands everything that is open to a new process, and ends when that one serves.
//!
//! The old process starts the new one, by a shell that goes when all is done, and gives it one end of a pair of sockets, as
//! its standard input. Over it they agree, step by step ([`Message`]), and descriptors travel. At any moment one of them
//! serves, and until the new one has said that it does the old one can take everything back:
//!
//! | old | new |
//! |---|---|
//! | starts it | reads its configuration; `Hello` |
//! | `Hello`; lets requests finish, writes what it knows of backends, lets go of the store | |
//! | the store's lock, the listening sockets of the APIs, those of all ports; `Estate` | opens the store, reads it, takes the sockets, takes up the backends; `Prepared` |
//! | accepts and receives nothing more; its UDP sessions with their sockets; `Over` | takes up the sessions, accepts and receives; `Serving` |
//! | lets go of what it had, lets open connections finish, ends | |
//!
//! What comes between `Over` and `Serving` waits in the kernel. A new process that ends, says [`Message::Refused`], or
//! lets one of the bounds below pass, is killed, and the old one goes on.

use std::time::Duration;

mod message;
mod predecessor;
mod program;
mod successor;

pub use message::{Channel, Greeting, MAX_DESCRIPTORS, Message, PROTOCOL, SocketUse};
pub use predecessor::{Estate, Predecessor};
pub(super) use program::Program;
pub(super) use successor::{Given, Successor};

/// How long a new process may take until it says hello: to be loaded, and to check its configuration.
const STARTS_WITHIN: Duration = Duration::from_secs(30);

/// How long it may take until it is prepared: to take what it is given, open the store, read it, and bind what was not
/// handed over. Ports are served meanwhile, the APIs are not.
const PREPARES_WITHIN: Duration = Duration::from_secs(60);

/// How long it may take, from the first session that it is sent, until it serves. Nobody does meanwhile; what comes waits
/// in the kernel.
const TAKES_OVER_WITHIN: Duration = Duration::from_secs(5);
