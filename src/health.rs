//! What is known of backends beyond their announcements.
//!
//! The last-known file: backends survive a restart of their node with the deadlines they had, so that a port serves again
//! before its apps have announced themselves anew. And checks, where a service instance asks for them: whether its
//! backends take connections, found out before a client does.

pub mod checks;
pub mod last_known;
pub mod probe;
