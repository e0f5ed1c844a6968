//! On whose behalf something is changed, as far as that is said: for the audit log, never for a decision.

/// Longest text of a platform that is kept, in characters.
pub const MAX_SAID_CHARACTERS: usize = 128;

/// On whose behalf something is changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Requester {
    /// A platform, which has the broker's password.
    Platform {
        /// For whom it says that it asks.
        identity: Identity,
        /// How it calls its request.
        request_id: Option<Said>,
    },
    /// An operator, who has the admin token.
    Operator {
        /// Who they say they are: the token is the same for all.
        name: Said,
    },
    /// Whoever may send a signal to the process.
    Signal,
    /// Harbor itself, which finishes or undoes what was begun, or defines what its file says.
    Harbor,
}

impl Requester {
    /// The word used in logs.
    #[must_use]
    pub const fn as_str(&self) -> &'static str {
        match self {
            Self::Platform { .. } => "platform",
            Self::Operator { .. } => "admin token",
            Self::Signal => "signal",
            Self::Harbor => "harbor",
        }
    }
}

/// For whom a platform says that it asks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Identity {
    /// It does not say.
    Unsaid,
    /// What it says cannot be read.
    Malformed,
    /// A user of a platform.
    Of {
        /// Which, such as `cloudfoundry`.
        platform: Said,
        /// The user's id or name; none where it says something else.
        user: Option<Said>,
    },
}

/// A text from outside, which can hold anything: cut short, and without control characters.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Said(String);

impl Said {
    /// What is kept of `text`.
    #[must_use]
    pub fn new(text: &str) -> Self {
        Self(text.chars().filter(|c| !c.is_control()).take(MAX_SAID_CHARACTERS).collect())
    }

    /// What is kept.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}
