//! Properties of authority.
