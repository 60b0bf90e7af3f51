//! Byte-pair encoding: merge the pair of lowest rank, leftmost first, until none is left.
//!
//! Short pieces (nearly all, where a pre-tokenizer splits words) are merged in a small array on the stack by looking
//! for the lowest rank again each time. Long pieces use a tournament tree over the symbols in scratch memory: every
//! symbol holds the rank of the pair that it begins, the tree's root names the winner, and a merge replays three paths.
//! That makes a piece of a megabyte `n log n`.

use super::blob::Blob;
use super::buffer::SCRATCH;
use super::chars::{decode, stand_in_len};
use super::layout::{NONE, UNK_MISSING, flag, header};
use crate::error::{Error, ErrorKind, Result};

/// The error for text that no token covers, where there is no unknown token either.
pub(crate) const NO_UNKNOWN: Error =
    Error::new(ErrorKind::Mismatch, "text outside of a vocabulary that has no unknown token");
/// Symbols that are merged on the stack.
const SHORT: usize = 32;
/// Words of scratch per symbol of a long piece.
pub(crate) const WORDS_PER_SYMBOL: usize = 7;

/// Symbols of a piece before merging. In a raw vocabulary they are bytes, but their lengths are those of the printable
/// stand-ins in UTF-8, so that the spans come out as the reference library's do.
struct Symbols<'b, 'a, 't> {
    blob: &'b Blob<'a>,
    word: &'t [u8],
    raw: bool,
}

impl Symbols<'_, '_, '_> {
    /// Calls `add(id, length)` for each symbol, in order.
    fn each(&self, mut add: impl FnMut(u32, usize) -> Result<()>) -> Result<()> {
        let blob = self.blob;
        let (prefix, suffix) = (blob.header_string(header::PREFIX), blob.header_string(header::SUFFIX));
        let direct = self.raw && prefix.is_empty() && suffix.is_empty();
        let mut unknown: Option<usize> = None;
        let mut at = 0;
        while at < self.word.len() {
            let n = if self.raw { 1 } else { decode(self.word, at).map_or(1, |(_, n)| n) };
            let end = at + n;
            let bytes = &self.word[at..end];
            let len = if self.raw { stand_in_len(bytes[0]) } else { n };
            let id = if direct {
                Some(blob.byte_ids.at(usize::from(bytes[0]))).filter(|id| *id != NONE)
            } else {
                let mut node = Some(blob.trie.root());
                if at > 0 {
                    node = node.and_then(|n| blob.trie.walk(n, prefix));
                }
                node = node.and_then(|n| blob.trie.walk(n, bytes));
                if end == self.word.len() {
                    node = node.and_then(|n| blob.trie.walk(n, suffix));
                }
                node.and_then(|n| blob.trie.value(n)).filter(|id| *id < blob.vocab)
            };
            at = end;
            if let Some(id) = id {
                if let Some(len) = unknown.take() {
                    add(blob.unk, len)?;
                }
                add(id, len)?;
                continue;
            }
            if blob.has(flag::BYTE_FALLBACK) {
                let all = bytes.iter().all(|b| blob.byte_ids.at(usize::from(*b)) < blob.vocab);
                if all && blob.byte_ids.len() == 256 {
                    // The reference does not flush pending unknown text here; it comes out after these bytes.
                    for b in bytes {
                        add(blob.byte_ids.at(usize::from(*b)), 1)?;
                    }
                    continue;
                }
            }
            match blob.unk {
                NONE => {}
                UNK_MISSING => return Err(NO_UNKNOWN),
                unk => match unknown {
                    Some(so_far) if blob.has(flag::FUSE_UNK) => unknown = Some(so_far + len),
                    Some(so_far) => {
                        add(unk, so_far)?;
                        unknown = Some(len);
                    }
                    None => unknown = Some(len),
                },
            }
        }
        if let Some(len) = unknown {
            add(blob.unk, len)?;
        }
        Ok(())
    }
}

/// Splits `word` into tokens and hands `(id, start, end)` (bytes of `word`) to `emit`.
pub(crate) fn bpe(
    blob: &Blob<'_>,
    word: &[u8],
    raw: bool,
    scratch: &mut [u32],
    mut emit: impl FnMut(u32, usize, usize) -> Result<()>,
) -> Result<()> {
    if blob.has(flag::IGNORE_MERGES)
        && let Some(id) = blob.lookup(word)
    {
        return emit(id, 0, word.len());
    }
    let symbols = Symbols { blob, word, raw };
    let mut spans = Spans { word, raw, sum: 0, at: 0, passed: 0 };
    let (mut short_ids, mut short_lens) = ([0; SHORT], [0; SHORT]);
    // A symbol takes at least one byte of the word.
    let short = word.len() <= SHORT;
    let (ids, lens, rest) = if short {
        (&mut short_ids[..], &mut short_lens[..], &mut [][..])
    } else {
        let room = scratch.len() / WORDS_PER_SYMBOL;
        let (ids, rest) = scratch.split_at_mut(room);
        let (lens, rest) = rest.split_at_mut(room);
        (ids, lens, rest)
    };
    let mut n = 0;
    symbols.each(|id, len| {
        *ids.get_mut(n).ok_or(SCRATCH)? = id;
        lens[n] = len as u32;
        n += 1;
        Ok(())
    })?;
    if short {
        n = merge_short(blob, &mut short_ids, &mut short_lens, n);
        for i in 0..n {
            let (lo, hi) = spans.next(short_lens[i] as usize);
            emit(short_ids[i], lo, hi)?;
        }
        return Ok(());
    }
    let mut long = Long::new(blob, &mut ids[..n], &mut lens[..n], rest);
    long.merge();
    let mut i = 0;
    while i < n {
        let (lo, hi) = spans.next(long.lens[i] as usize);
        emit(long.ids[i], lo, hi)?;
        i = long.next[i] as usize;
    }
    Ok(())
}

/// Turns lengths of symbols into places in the piece. Places are sums of lengths even where something was dropped:
/// that is how the reference library counts.
struct Spans<'t> {
    word: &'t [u8],
    raw: bool,
    sum: usize,
    /// Raw: bytes passed, and the length of their stand-ins.
    at: usize,
    passed: usize,
}

impl Spans<'_> {
    #[inline]
    fn next(&mut self, len: usize) -> (usize, usize) {
        let begin = self.sum;
        self.sum += len;
        if !self.raw {
            let n = self.word.len();
            return (begin.min(n), self.sum.min(n));
        }
        let lo = self.seek(begin);
        (lo, (self.seek(self.sum - 1) + 1).min(self.word.len()))
    }

    /// The byte whose stand-in holds place `place`.
    #[inline]
    fn seek(&mut self, place: usize) -> usize {
        while let Some(b) = self.word.get(self.at) {
            let n = stand_in_len(*b);
            if self.passed + n > place {
                break;
            }
            self.passed += n;
            self.at += 1;
        }
        self.at
    }
}

/// Merges in place; returns how many symbols remain.
fn merge_short(blob: &Blob<'_>, ids: &mut [u32; SHORT], lens: &mut [u32; SHORT], mut n: usize) -> usize {
    // Of the pair that symbol i begins: its rank (NONE: no merge) and what it becomes.
    let (mut ranks, mut results) = ([NONE; SHORT], [0; SHORT]);
    let pair = |ids: &[u32; SHORT], i: usize| blob.merge(ids[i], ids[i + 1]).unwrap_or((NONE, 0));
    for i in 0..n.saturating_sub(1) {
        (ranks[i], results[i]) = pair(ids, i);
    }
    while n > 1 {
        let (mut best, mut rank) = (0, NONE);
        for (i, r) in ranks[..n - 1].iter().enumerate() {
            if *r < rank {
                (best, rank) = (i, *r);
            }
        }
        if rank == NONE {
            break;
        }
        ids[best] = results[best];
        lens[best] += lens[best + 1];
        ids.copy_within(best + 2..n, best + 1);
        lens.copy_within(best + 2..n, best + 1);
        ranks.copy_within(best + 1..n, best);
        results.copy_within(best + 1..n, best);
        n -= 1;
        if best + 1 < n {
            (ranks[best], results[best]) = pair(ids, best);
        }
        if best > 0 {
            (ranks[best - 1], results[best - 1]) = pair(ids, best - 1);
        }
    }
    n
}

/// A long piece: a linked list of symbols and a tournament tree over the ranks of their pairs.
struct Long<'b, 'a, 's> {
    blob: &'b Blob<'a>,
    ids: &'s mut [u32],
    lens: &'s mut [u32],
    next: &'s mut [u32],
    previous: &'s mut [u32],
    ranks: &'s mut [u32],
    results: &'s mut [u32],
    /// Node `i` has children `2i` and `2i + 1`; from `n` on they are the symbols. Each node names the winner below it.
    tree: &'s mut [u32],
}

impl<'b, 'a, 's> Long<'b, 'a, 's> {
    fn new(blob: &'b Blob<'a>, ids: &'s mut [u32], lens: &'s mut [u32], rest: &'s mut [u32]) -> Self {
        let n = ids.len();
        let (next, rest) = rest.split_at_mut(n);
        let (previous, rest) = rest.split_at_mut(n);
        let (ranks, rest) = rest.split_at_mut(n);
        let (results, rest) = rest.split_at_mut(n);
        let tree = &mut rest[..n];
        for i in 0..n {
            next[i] = i as u32 + 1;
            previous[i] = (i as u32).wrapping_sub(1);
            (ranks[i], results[i]) = match ids.get(i + 1) {
                Some(right) => blob.merge(ids[i], *right).unwrap_or((NONE, 0)),
                None => (NONE, 0),
            };
        }
        let this = Self { blob, ids, lens, next, previous, ranks, results, tree };
        for node in (1..n).rev() {
            this.tree[node] = this.winner(node);
        }
        this
    }

    fn at(&self, node: usize) -> u32 {
        let n = self.ids.len();
        if node < n { self.tree[node] } else { (node - n) as u32 }
    }

    fn winner(&self, node: usize) -> u32 {
        let (a, b) = (self.at(2 * node), self.at(2 * node + 1));
        if (self.ranks[b as usize], b) < (self.ranks[a as usize], a) { b } else { a }
    }

    /// Looks the pair of symbol `i` up again and replays its path.
    fn renew(&mut self, i: usize) {
        (self.ranks[i], self.results[i]) = match self.ids.get(self.next[i] as usize) {
            Some(right) => self.blob.merge(self.ids[i], *right).unwrap_or((NONE, 0)),
            None => (NONE, 0),
        };
        self.replay(i);
    }

    fn replay(&mut self, i: usize) {
        let mut node = (i + self.ids.len()) / 2;
        while node > 0 {
            self.tree[node] = self.winner(node);
            node /= 2;
        }
    }

    fn merge(&mut self) {
        let n = self.ids.len();
        if n < 2 {
            return;
        }
        loop {
            let i = self.tree[1] as usize;
            if self.ranks[i] == NONE {
                return;
            }
            let gone = self.next[i] as usize;
            self.ids[i] = self.results[i];
            self.lens[i] += self.lens[gone];
            let after = self.next[gone] as usize;
            self.next[i] = after as u32;
            if let Some(p) = self.previous.get_mut(after) {
                *p = i as u32;
            }
            self.ranks[gone] = NONE;
            self.replay(gone);
            self.renew(i);
            let before = self.previous[i] as usize;
            if before < n {
                self.renew(before);
            }
        }
    }
}
