//! Properties of pure rules, and of engines against their reference model.

mod allocation;
mod authority;
mod registry;
mod store;
mod support;
