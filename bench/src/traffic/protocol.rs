//! What load and backend say to each other.
//!
//! The first byte of a connection says what the backend does with it; a number follows some, 8 bytes big endian.
//! Datagrams are echoed, but for those that begin with one of three letters. A flow's datagrams are all of one kind,
//! since the kernel may join them.

/// Echo what follows; after its end what is left, then the end.
pub const ECHO: u8 = b'E';
/// One message of so many bytes, the command included, is answered by as many; then the backend closes.
pub const CLOSE: u8 = b'C';
/// Swallow until the end, then say how many bytes that were, as a number.
pub const SWALLOW: u8 = b'S';
/// Give so many bytes, fewer if the client says anything more or ends, then close.
pub const GIVE: u8 = b'G';
/// Swallow until the end while giving so many bytes, fewer if the client ends; then say how many were swallowed.
pub const BOTH: u8 = b'B';
/// Echo, but reset the connection once so many bytes have come.
pub const RESET: u8 = b'X';

/// Bytes of a command's number, and of an answered one.
pub const NUMBER: usize = 8;
/// Bytes of a message, unless something else is asked for.
pub const MESSAGE: usize = 64;

/// Begins datagrams that are counted, not echoed.
pub const COUNTED: u8 = b'S';
/// Begins a datagram that is answered with [`Counted`].
pub const QUERY: u8 = b'Q';
/// Begins a datagram that sets the counters to zero and is echoed.
pub const ZERO: u8 = b'Z';

/// What has come of counted datagrams since the last [`ZERO`].
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counted {
    pub datagrams: u64,
    pub bytes: u64,
}

impl Counted {
    pub fn to_bytes(self) -> [u8; 2 * NUMBER] {
        let mut bytes = [0; 2 * NUMBER];
        bytes[..NUMBER].copy_from_slice(&self.datagrams.to_be_bytes());
        bytes[NUMBER..].copy_from_slice(&self.bytes.to_be_bytes());
        bytes
    }

    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let (datagrams, rest) = bytes.split_first_chunk()?;
        let bytes = rest.first_chunk()?;
        Some(Self { datagrams: u64::from_be_bytes(*datagrams), bytes: u64::from_be_bytes(*bytes) })
    }
}

/// A command with its number.
pub fn command(letter: u8, number: u64) -> [u8; 1 + NUMBER] {
    let mut bytes = [letter; 1 + NUMBER];
    bytes[1..].copy_from_slice(&number.to_be_bytes());
    bytes
}

/// What given bytes are, and echoed ones in the main: fixed random bytes with a prime period, so that no block that is
/// lost, doubled or swapped goes unnoticed.
#[derive(Debug)]
pub struct Pattern {
    bytes: Box<[u8]>,
}

impl Pattern {
    /// Prime, and more than a proxy's buffer or pipe holds.
    const PERIOD: usize = 262_147;
    /// The most that [`Self::from`] gives at once.
    pub const MOST: usize = 256 * 1024;

    pub fn new() -> Self {
        let mut bytes = vec![0; Self::PERIOD + Self::MOST];
        fastrand::Rng::with_seed(0x68_61_72_62_6f_72).fill(&mut bytes[..Self::PERIOD]);
        bytes.copy_within(..Self::MOST, Self::PERIOD);
        Self { bytes: bytes.into() }
    }

    /// The bytes from `offset` on, at most so many and at most [`Self::MOST`].
    pub fn from(&self, offset: u64, most: u64) -> &[u8] {
        let start = (offset % Self::PERIOD as u64) as usize;
        &self.bytes[start..][..(most.min(Self::MOST as u64)) as usize]
    }

    /// Whether `bytes` are what stands at `offset`.
    pub fn matches(&self, mut offset: u64, bytes: &[u8]) -> bool {
        bytes.chunks(Self::MOST).all(|chunk| {
            let same = self.from(offset, chunk.len() as u64) == chunk;
            offset += chunk.len() as u64;
            same
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_period_is_prime_and_the_pattern_repeats_after_it() {
        let root = (1..).find(|root| root * root > Pattern::PERIOD).expect("there is a root");
        assert!((2..root).all(|divisor| !Pattern::PERIOD.is_multiple_of(divisor)));
        let pattern = Pattern::new();
        assert_eq!(pattern.from(5, 100), pattern.from(5 + 3 * Pattern::PERIOD as u64, 100));
        let end = Pattern::PERIOD as u64 - 1;
        assert_eq!(pattern.from(end, u64::MAX).len(), Pattern::MOST);
        assert_eq!(pattern.from(end, 100)[1..], pattern.from(0, 99)[..]);
    }

    #[test]
    fn bytes_at_another_offset_do_not_match() {
        let pattern = Pattern::new();
        let bytes = [pattern.from(7, u64::MAX), pattern.from(7 + Pattern::MOST as u64, 1000)].concat();
        assert!(pattern.matches(7, &bytes));
        assert!(!pattern.matches(8, &bytes));
    }

    #[test]
    fn counters_survive_the_way_through_a_datagram() {
        let counted = Counted { datagrams: 1, bytes: u64::MAX };
        assert_eq!(Counted::from_bytes(&counted.to_bytes()), Some(counted));
        assert_eq!(Counted::from_bytes(b"too short"), None);
    }
}
