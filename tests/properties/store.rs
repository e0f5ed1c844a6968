//! Properties of store.
