//! Names that come from outside: opaque, of any characters, bounded in length, cheap to clone.

use std::{borrow::Borrow, fmt, sync::Arc};

/// Longest id that is taken, in bytes. Cloud Foundry sends 36-byte GUIDs; the specification sets no bound.
pub const MAX_ID_BYTES: usize = 255;

/// An id that is empty or longer than [`MAX_ID_BYTES`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{kind} must have 1 to {MAX_ID_BYTES} bytes, got {bytes}")]
pub struct BadId {
    /// What the id names.
    pub kind: &'static str,
    /// How many bytes it had.
    pub bytes: usize,
}

macro_rules! id {
    ($(#[$doc:meta])* $name:ident, $kind:literal) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub struct $name(Arc<str>);

        impl $name {
            /// Takes `text` as it is.
            ///
            /// # Errors
            /// [`BadId`] when it is empty or longer than [`MAX_ID_BYTES`].
            pub fn new(text: impl AsRef<str>) -> Result<Self, BadId> {
                let text = text.as_ref();
                if text.is_empty() || text.len() > MAX_ID_BYTES {
                    return Err(BadId { kind: $kind, bytes: text.len() });
                }
                Ok(Self(text.into()))
            }

            /// The id as it was given.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Debug::fmt(&self.0, f)
            }
        }

        impl Borrow<str> for $name {
            fn borrow(&self) -> &str {
                &self.0
            }
        }

        impl AsRef<str> for $name {
            fn as_ref(&self) -> &str {
                &self.0
            }
        }
    };
}

id!(
    /// An Open Service Broker service instance: one allocated port.
    ServiceInstanceId,
    "a service instance id"
);
id!(
    /// An Open Service Broker binding.
    BindingId,
    "a binding id"
);
id!(
    /// A Cloud Foundry app.
    AppId,
    "an app id"
);
id!(
    /// A Cloud Foundry organization.
    OrganizationId,
    "an organization id"
);
id!(
    /// A Cloud Foundry space.
    SpaceId,
    "a space id"
);
id!(
    /// A plan of the catalog.
    PlanId,
    "a plan id"
);
id!(
    /// A pool: a port range, its names and the nodes that serve it.
    PoolName,
    "a pool name"
);
id!(
    /// One running `harbor` that forwards.
    NodeId,
    "a node id"
);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_take_any_characters_but_not_none_and_not_too_many() {
        assert_eq!(BindingId::new("a/b %00 ü").unwrap().as_str(), "a/b %00 ü");
        assert_eq!(AppId::new("").unwrap_err().bytes, 0);
        assert!(SpaceId::new("x".repeat(MAX_ID_BYTES)).is_ok());
        assert!(SpaceId::new("x".repeat(MAX_ID_BYTES + 1)).is_err());
    }
}
