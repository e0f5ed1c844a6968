//! By which way a message came, and what it wants: said by where it arrived, not by its text.

/// By which way a message came.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Source {
    /// `harbor.register` and `harbor.unregister`.
    Harbor,
    /// `router.register` and `router.unregister`.
    Router,
    /// `announce.listen`.
    Http,
}

/// What a message wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Action {
    /// A backend is there.
    Register,
    /// A backend is gone.
    Unregister,
}

impl Source {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Harbor, Self::Router, Self::Http];

    /// The word used in metrics and answers.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Harbor => "harbor",
            Self::Router => "router",
            Self::Http => "http",
        }
    }
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
