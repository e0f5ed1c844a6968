//! Tokens and proofs: how a binding's holder shows that it may announce backends.
//!
//! A token is derived from the store's announce secret and the binding's id, so that nothing secret is kept per
//! binding, a repeated bind shows the same one until the secret is rotated, and unbinding revokes it: a token counts only
//! while its binding stands.

use std::fmt::{self, Write as _};

use ring::hmac;

use super::BindingId;

/// Bytes of an announce secret.
pub const SECRET_BYTES: usize = 32;

/// The secret that every token is derived from. The store makes it once; while it is being rotated, tokens of the former one
/// count too, and new ones are given out.
#[derive(Clone, PartialEq, Eq)]
pub struct AnnounceSecret {
    bytes: [u8; SECRET_BYTES],
    former: Option<[u8; SECRET_BYTES]>,
}

impl AnnounceSecret {
    /// Takes 32 random bytes.
    #[must_use]
    pub const fn new(bytes: [u8; SECRET_BYTES]) -> Self {
        Self { bytes, former: None }
    }

    /// This one, in the place of `former`.
    #[must_use]
    pub fn after(self, former: &Self) -> Self {
        Self { former: Some(former.bytes), ..self }
    }

    /// The one that this one takes the place of, while both count.
    #[must_use]
    pub fn former(&self) -> Option<Self> {
        self.former.map(Self::new)
    }

    /// The bytes, for the store alone.
    #[must_use]
    pub const fn expose(&self) -> &[u8; SECRET_BYTES] {
        &self.bytes
    }

    /// The token of a binding.
    #[must_use]
    pub fn token(&self, binding: &BindingId) -> Token {
        let key = hmac::Key::new(hmac::HMAC_SHA256, &self.bytes);
        Token(hex(hmac::sign(&key, binding.as_str().as_bytes()).as_ref()))
    }

    /// Every token of a binding that counts, the one that is given out first.
    pub fn tokens(&self, binding: &BindingId) -> impl Iterator<Item = Token> {
        [Some(self.token(binding)), self.former().map(|former| former.token(binding))].into_iter().flatten()
    }

    /// Whether `presented` is a token of a binding that counts.
    #[must_use]
    pub fn has_token(&self, binding: &BindingId, presented: &str) -> bool {
        self.tokens(binding).any(|token| token.matches(presented))
    }

    /// What shows other nodes that one that has this secret has said `text`.
    #[must_use]
    pub fn vouch(&self, text: &str) -> String {
        hex(hmac::sign(&self.key_of_nodes(), text.as_bytes()).as_ref())
    }

    /// Whether `proof` (hex, lower case) is that of one who has this secret, in constant time.
    #[must_use]
    pub fn has_vouched(&self, text: &str, proof: &str) -> bool {
        use subtle::ConstantTimeEq as _;
        let is_of = |secret: &Self| bool::from(secret.vouch(text).as_bytes().ct_eq(proof.as_bytes()));
        is_of(self) || self.former().is_some_and(|former| is_of(&former))
    }

    /// Derived as a token is, but from the empty id, which no binding has: neither can be taken for the other.
    fn key_of_nodes(&self) -> hmac::Key {
        let key = hmac::Key::new(hmac::HMAC_SHA256, &self.bytes);
        hmac::Key::new(hmac::HMAC_SHA256, hmac::sign(&key, b"").as_ref())
    }
}

impl fmt::Debug for AnnounceSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("AnnounceSecret(…)")
    }
}

/// What a binding's holder presents: 64 lower-case hexadecimal digits.
#[derive(Clone, PartialEq, Eq)]
pub struct Token(String);

impl Token {
    /// What a holder has in its credentials: whether it is any binding's token is Harbor's to say.
    #[must_use]
    pub const fn presented(text: String) -> Self {
        Self(text)
    }

    /// The characters, for credentials and as the key of a proof.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.0
    }

    /// Whether `presented` is this token, in a time that does not tell how much of it is right.
    #[must_use]
    pub fn matches(&self, presented: &str) -> bool {
        use subtle::ConstantTimeEq as _;
        self.0.as_bytes().ct_eq(presented.as_bytes()).into()
    }

    /// The proof of `statement`.
    #[must_use]
    pub fn prove(&self, statement: &Statement<'_>) -> String {
        hex(hmac::sign(&self.key(), statement.canonical().as_bytes()).as_ref())
    }

    /// Whether `proof` (hex, lower case) is the one for `statement`, in constant time.
    #[must_use]
    pub fn verifies(&self, statement: &Statement<'_>, proof: &str) -> bool {
        use subtle::ConstantTimeEq as _;
        self.prove(statement).as_bytes().ct_eq(proof.as_bytes()).into()
    }

    fn key(&self) -> hmac::Key {
        hmac::Key::new(hmac::HMAC_SHA256, self.0.as_bytes())
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(…)")
    }
}

/// What a proof vouches for. Each field is text as it stood in the message; absent ones are empty.
#[derive(Debug, Clone, Copy, Default)]
pub struct Statement<'a> {
    /// `register` or `unregister`.
    pub action: &'a str,
    /// `harbor.instance_id`.
    pub instance_id: &'a str,
    /// `harbor.binding_id`.
    pub binding_id: &'a str,
    /// `harbor.protocol`.
    pub protocol: &'a str,
    /// `host`.
    pub host: &'a str,
    /// `port`.
    pub port: Option<u16>,
    /// `harbor.udp_port`.
    pub udp_port: Option<u16>,
    /// `harbor.state`.
    pub state: &'a str,
    /// `harbor.timestamp`, seconds since the epoch.
    pub timestamp: Option<i64>,
}

impl Statement<'_> {
    /// The text that is signed: all fields, in this order, with `|` between them.
    #[must_use]
    pub fn canonical(&self) -> String {
        let number = |value: Option<i64>| value.map_or_else(String::new, |value| value.to_string());
        [
            self.action,
            self.instance_id,
            self.binding_id,
            self.protocol,
            self.host,
            &number(self.port.map(i64::from)),
            &number(self.udp_port.map(i64::from)),
            self.state,
            &number(self.timestamp),
        ]
        .join("|")
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_depends_on_secret_and_binding_and_is_never_shown_by_debug() {
        let secret = AnnounceSecret::new([7; SECRET_BYTES]);
        let (a, b) = (BindingId::new("a").unwrap(), BindingId::new("b").unwrap());
        let token = secret.token(&a);
        assert_eq!(token, secret.token(&a));
        assert_ne!(token, secret.token(&b));
        assert_ne!(token, AnnounceSecret::new([8; SECRET_BYTES]).token(&a));
        assert_eq!(token.expose().len(), 64);
        assert!(token.matches(token.expose()) && !token.matches(&token.expose()[1..]) && !token.matches(""));
        assert_eq!(format!("{secret:?} {token:?}"), "AnnounceSecret(…) Token(…)");
    }

    #[test]
    fn while_a_secret_is_rotated_the_former_one_counts_and_the_new_one_is_given_out() {
        let (former, new) = (AnnounceSecret::new([7; SECRET_BYTES]), AnnounceSecret::new([8; SECRET_BYTES]));
        let binding = BindingId::new("b").unwrap();
        let both = new.clone().after(&former);
        assert_eq!(both.token(&binding), new.token(&binding));
        for secret in [&former, &new] {
            assert!(both.has_token(&binding, secret.token(&binding).expose()));
            assert!(
                both.has_vouched("said", &secret.vouch("said")) && !both.has_vouched("other", &secret.vouch("said"))
            );
        }
        // Who has not heard of it yet, and who knows that it is over.
        for (secret, other) in [(&former, &both), (&new, &former)] {
            assert!(!secret.has_token(&binding, other.token(&binding).expose()));
            assert!(!secret.has_vouched("said", &other.vouch("said")));
        }
    }

    #[test]
    fn a_proof_vouches_for_every_field() {
        let token = AnnounceSecret::new([7; SECRET_BYTES]).token(&BindingId::new("b").unwrap());
        let full = Statement {
            action: "register",
            instance_id: "i",
            binding_id: "b",
            protocol: "tcp",
            host: "10.0.1.7",
            port: Some(61012),
            udp_port: Some(61013),
            state: "up",
            timestamp: Some(1_700_000_000),
        };
        assert_eq!(full.canonical(), "register|i|b|tcp|10.0.1.7|61012|61013|up|1700000000");
        assert_eq!(Statement { action: "unregister", ..Statement::default() }.canonical(), "unregister||||||||");
        let proof = token.prove(&full);
        assert!(token.verifies(&full, &proof));
        assert!(!token.verifies(&full, &proof.to_uppercase()) || !proof.contains(|c: char| c.is_ascii_lowercase()));
        for other in [
            Statement { action: "unregister", ..full },
            Statement { instance_id: "j", ..full },
            Statement { binding_id: "c", ..full },
            Statement { protocol: "udp", ..full },
            Statement { host: "10.0.1.8", ..full },
            Statement { port: Some(61011), ..full },
            Statement { udp_port: None, ..full },
            Statement { state: "", ..full },
            Statement { timestamp: Some(1_700_000_001), ..full },
        ] {
            assert!(!token.verifies(&other, &proof), "{other:?}");
        }
    }
}
