//! What is known of backends beyond their announcements.
//!
//! So far the last-known file: backends survive a restart of their node with the deadlines they had, so that a port
//! serves again before its apps have announced themselves anew.

pub mod last_known;
