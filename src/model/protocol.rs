//! TCP, UDP, or both on one port number.

use std::{fmt, str::FromStr};

/// What a service instance carries. A port number belongs to one service instance, whatever its protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Protocol {
    /// TCP connections.
    Tcp,
    /// UDP sessions.
    Udp,
    /// TCP and UDP on the same number.
    Both,
}

/// One of the two transports that a socket speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Transport {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

impl Protocol {
    /// All of them, in the order the documentation lists them.
    pub const ALL: [Self; 3] = [Self::Tcp, Self::Udp, Self::Both];

    /// The transports it is made of.
    #[must_use]
    pub const fn transports(self) -> &'static [Transport] {
        match self {
            Self::Tcp => &[Transport::Tcp],
            Self::Udp => &[Transport::Udp],
            Self::Both => &Transport::ALL,
        }
    }

    /// Whether `transport` is part of it.
    #[must_use]
    pub fn has(self, transport: Transport) -> bool {
        self.transports().contains(&transport)
    }

    /// The word used in parameters, messages and rows.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
            Self::Both => "both",
        }
    }

    /// The rule of the plan `free`, as Stackato's Harbor had it: the service instance's name, lower-cased,
    /// decides by its prefix. A suffix `https` changes nothing here: that TLS was in the app's container.
    #[must_use]
    pub fn from_instance_name(name: &str) -> Self {
        let name = name.to_lowercase();
        if name.starts_with("udp") {
            Self::Udp
        } else if name.starts_with("both-") || name.starts_with("multi-") {
            Self::Both
        } else {
            Self::Tcp
        }
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A word that names no protocol.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a protocol: use tcp, udp or both")]
pub struct UnknownProtocol(pub String);

impl FromStr for Protocol {
    type Err = UnknownProtocol;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::ALL.into_iter().find(|protocol| protocol.as_str() == text).ok_or_else(|| UnknownProtocol(text.into()))
    }
}

impl Transport {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Tcp, Self::Udp];

    /// The one whose word it is.
    #[must_use]
    pub fn of_word(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|transport| transport.as_str() == word)
    }

    /// The word used in logs, metrics and messages.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        }
    }
}

impl fmt::Display for Transport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_name_decides_by_its_prefix_as_the_original_did() {
        for (name, protocol) in [
            ("udp-debug-port", Protocol::Udp),
            ("UDPgame", Protocol::Udp),
            ("both-dns", Protocol::Both),
            ("multi-sip", Protocol::Both),
            ("bothersome", Protocol::Tcp),
            ("multiplayer", Protocol::Tcp),
            ("my-udp", Protocol::Tcp),
            ("cert-https", Protocol::Tcp),
            ("", Protocol::Tcp),
        ] {
            assert_eq!(Protocol::from_instance_name(name), protocol, "{name}");
        }
    }

    #[test]
    fn words_round_trip() {
        for protocol in Protocol::ALL {
            assert_eq!(protocol.as_str().parse(), Ok(protocol));
        }
        assert!("TCP".parse::<Protocol>().is_err());
    }
}
