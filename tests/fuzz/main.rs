//! Parsers of outside bytes under mutated input: they refuse or accept, and never panic.

mod announcement;
#[path = "../fixtures/announcements.rs"]
mod announcements;
mod config;
mod dump;
mod mutate;
mod osb_body;
mod seniority;
