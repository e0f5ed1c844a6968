//! Runs: datagrams of one flow that the kernel can take as one, to cut them apart again as late as it can.
//!
//! A run's datagrams have one length, but for the last, which may be shorter; none is empty. Nothing is copied: a run
//! refers to where its datagrams are.

use std::io::IoSlice;

use crate::forwarder::sockets::MAX_MESSAGES;

/// Datagrams that one run may have: what kernels have taken since they take runs.
const MAX_DATAGRAMS: usize = 64;
/// Bytes that one run may have: a little less than IPv4 allows a packet with its headers.
const MAX_BYTES: usize = 65_000;

/// Memory that holds one datagram, or several of `length` of which the last may be shorter.
#[derive(Debug, Clone, Copy)]
pub(super) struct Piece<'a> {
    pub bytes: &'a [u8],
    pub length: usize,
}

impl Piece<'_> {
    /// How many datagrams it holds; an empty one is one, too.
    pub(super) fn count(&self) -> u64 {
        self.bytes.len().div_ceil(self.length.max(1)).max(1) as u64
    }
}

/// Datagrams that are sent as one, or a single one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Run {
    /// The length of its datagrams, if there are several.
    pub segment: Option<u16>,
    pub datagrams: usize,
    pub bytes: usize,
    /// Pieces that it has a part in.
    pub parts: usize,
}

/// What of some pieces has not been sent.
#[derive(Debug, Clone)]
pub(super) struct Runs<'p, 'a> {
    pieces: &'p [Piece<'a>],
    /// Bytes of the first piece that are done with.
    done: usize,
}

impl<'p, 'a> Runs<'p, 'a> {
    /// All of these, in order.
    pub(super) fn new(pieces: &'p [Piece<'a>]) -> Self {
        Self { pieces, done: 0 }
    }

    /// All of it.
    pub(super) fn pieces(&self) -> impl Iterator<Item = Piece<'a>> {
        let mut done = self.done;
        self.pieces.iter().map(move |piece| Piece { bytes: &piece.bytes[std::mem::take(&mut done)..], ..*piece })
    }

    /// The next datagram.
    pub(super) fn first(&self) -> Option<&'a [u8]> {
        let piece = self.pieces.first()?;
        let rest = &piece.bytes[self.done..];
        Some(&rest[..rest.len().min(piece.length)])
    }

    /// The next run of datagrams shorter than `joinable`, or a single one.
    pub(super) fn next(&self, joinable: u16) -> Option<Run> {
        let first = self.first()?;
        let mut run = Run { segment: None, datagrams: 1, bytes: first.len(), parts: 1 };
        let length = first.len();
        if length == 0 || length >= usize::from(joinable) {
            return Some(run);
        }
        let most = MAX_DATAGRAMS.min(MAX_BYTES / length).max(1) * length;
        let mut done = self.done;
        run.bytes = 0;
        run.parts = 0;
        for piece in self.pieces {
            let rest = &piece.bytes[std::mem::take(&mut done)..];
            let last = rest.len() <= piece.length && (1..=length).contains(&rest.len());
            let alike = piece.length == length || last;
            if !alike || run.bytes >= most || !run.bytes.is_multiple_of(length) || run.parts == MAX_MESSAGES {
                break;
            }
            run.bytes += rest.len().min(most - run.bytes);
            run.parts += 1;
        }
        run.datagrams = run.bytes.div_ceil(length);
        run.segment = u16::try_from(length).ok().filter(|_| run.datagrams > 1);
        Some(run)
    }

    /// Where the bytes of a run that comes next are.
    pub(super) fn parts(&self, run: Run) -> impl Iterator<Item = IoSlice<'a>> {
        let (mut done, mut left) = (self.done, run.bytes);
        self.pieces[..run.parts].iter().map(move |piece| {
            let rest = &piece.bytes[std::mem::take(&mut done)..];
            let part = &rest[..rest.len().min(left)];
            left -= part.len();
            IoSlice::new(part)
        })
    }

    /// Is done with the run that comes next.
    pub(super) fn advance(&mut self, run: Run) {
        let mut left = run.bytes;
        for _ in 0..run.parts {
            let rest = self.pieces[0].bytes.len() - self.done;
            if left < rest {
                self.done += left;
                return;
            }
            left -= rest;
            self.pieces = &self.pieces[1..];
            self.done = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(pieces: &[(usize, usize)], joinable: u16, expected: &[(usize, usize)]) {
        let memory = (0..=250).cycle().take(200_000).collect::<Vec<u8>>();
        let mut rest = &memory[..];
        let pieces = pieces.iter().map(|(bytes, length)| {
            let (bytes, after) = rest.split_at(*bytes);
            rest = after;
            Piece { bytes, length: *length }
        });
        let pieces = pieces.collect::<Vec<_>>();
        let mut runs = Runs::new(&pieces);
        let (mut seen, mut sent) = (Vec::new(), Vec::new());
        while let Some(run) = runs.next(joinable) {
            let parts = runs.parts(run).collect::<Vec<_>>();
            assert!(parts[0].starts_with(runs.first().unwrap()));
            let bytes = parts.iter().flat_map(|part| part.iter().copied()).collect::<Vec<_>>();
            assert_eq!(bytes.len(), run.bytes);
            assert_eq!(run.segment.is_some(), run.datagrams > 1);
            seen.push((run.bytes, run.datagrams));
            match run.segment {
                Some(segment) => sent.extend(bytes.chunks(segment.into()).map(<[u8]>::to_vec)),
                None => sent.push(bytes),
            }
            runs.advance(run);
        }
        assert_eq!(seen, expected, "{joinable}");
        let datagrams = pieces.iter().flat_map(|piece| match piece.bytes.len() {
            0 => vec![Vec::new()],
            _ => piece.bytes.chunks(piece.length).map(<[u8]>::to_vec).collect(),
        });
        assert!(sent == datagrams.collect::<Vec<_>>(), "no boundary moves and nothing is lost");
    }

    #[test]
    fn datagrams_of_one_length_are_joined_as_far_as_the_kernel_takes_them() {
        check(&[(64, 64)], 1000, &[(64, 1)]);
        check(&[(64, 64), (64, 64), (64, 64)], 1000, &[(192, 3)]);
        check(&[(64, 64), (64, 64), (10, 10), (64, 64)], 1000, &[(138, 3), (64, 1)]);
        check(&[(64, 64), (65, 65), (64, 64)], 1000, &[(64, 1), (129, 2)]);
        check(&[(0, 0), (0, 0), (5, 5), (0, 0)], 1000, &[(0, 1), (0, 1), (5, 1), (0, 1)]);
        check(&[(250, 100), (100, 100)], 1000, &[(250, 3), (100, 1)]);
        check(&[(300, 100), (250, 100), (50, 50)], 1000, &[(550, 6), (50, 1)]);
        check(&[(300, 100), (80, 40)], 1000, &[(300, 3), (80, 2)]);
        check(&[(300, 100), (100, 50), (25, 50)], 1000, &[(300, 3), (125, 3)]);
        check(&[(6500, 100), (6500, 100)], 1000, &[(6400, 64), (6400, 64), (200, 2)]);
        check(&[(60_000, 20_000), (20_000, 20_000)], u16::MAX, &[(60_000, 3), (20_000, 1)]);
        check(&[(40_000, 40_000), (40_000, 40_000)], u16::MAX, &[(40_000, 1), (40_000, 1)]);
        check(&[(1, 1); 130], 2, &[(64, 64), (64, 64), (2, 2)]);
    }

    #[test]
    fn what_the_path_does_not_take_joined_goes_one_by_one() {
        check(&[(250, 100), (100, 100)], 100, &[(100, 1), (100, 1), (50, 1), (100, 1)]);
        check(&[(250, 100), (99, 99), (99, 99)], 100, &[(100, 1), (100, 1), (50, 1), (198, 2)]);
        check(&[(9, 3)], 0, &[(3, 1), (3, 1), (3, 1)]);
    }
}
