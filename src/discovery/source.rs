//! By which way a message came, and what it wants: said by where it arrived, not by its text.

pub use crate::model::announcement::Source;

/// What a message wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Action {
    /// A backend is there.
    Register,
    /// A backend is gone.
    Unregister,
}

impl Action {
    /// The word that proofs have.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Register => "register",
            Self::Unregister => "unregister",
        }
    }
}
