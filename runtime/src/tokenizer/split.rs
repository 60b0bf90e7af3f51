//! Pre-tokenization: pieces of text, split further stage by stage, depth first.

use super::blob::Blob;
use super::chars::Text;
use super::layout::{RECORD, behavior, stage};

/// Joins matches and the text between them into pieces, by behaviour.
struct Joiner {
    behavior: u32,
    pending: Option<(usize, usize)>,
    after_match: bool,
}

impl Joiner {
    /// Takes the next stretch; returns a piece that is complete.
    fn feed(&mut self, lo: usize, hi: usize, is_match: bool) -> Option<(usize, usize)> {
        let joins = match self.behavior {
            behavior::REMOVED => return (!is_match).then_some((lo, hi)),
            behavior::ISOLATED => return Some((lo, hi)),
            behavior::CONTIGUOUS => is_match == self.after_match,
            behavior::MERGED_WITH_PREVIOUS => is_match && !self.after_match,
            // A pending piece is a match here; only text that is none takes it in.
            _ => !is_match,
        };
        self.after_match = is_match;
        let done = match &mut self.pending {
            Some(p) if joins => {
                p.1 = hi;
                None
            }
            p => p.replace((lo, hi)),
        };
        if self.behavior == behavior::MERGED_WITH_NEXT && !is_match {
            // Text takes no more; it may complete while an earlier match waits, but then it has joined that one.
            return done.or(self.pending.take());
        }
        done
    }
}

/// The pieces of one stage applied to one piece.
pub(crate) struct Pieces {
    kind: u32,
    what: usize,
    invert: bool,
    joiner: Joiner,
    at: usize,
    hi: usize,
    /// A match found beyond the text that goes before it.
    found: Option<(usize, usize)>,
}

impl Pieces {
    /// For a stage record that splits.
    pub(crate) fn new(record: [u32; RECORD], lo: usize, hi: usize) -> Self {
        let [kind, what, behavior, invert] = record;
        let joiner = Joiner { behavior, pending: None, after_match: false };
        Self { kind, what: what as usize, invert: invert & 1 != 0, joiner, at: lo, hi, found: None }
    }

    /// The next stretch: bounds, and whether it matches.
    fn stretch(&mut self, blob: &Blob<'_>, text: Text<'_>) -> Option<(usize, usize, bool)> {
        if let Some((lo, hi)) = self.found.take() {
            self.at = hi;
            return Some((lo, hi, true));
        }
        if self.at >= self.hi {
            return None;
        }
        let from = self.at;
        let found = if self.kind == stage::CLASS {
            let set = blob.classes.set(self.what);
            let mut at = from;
            loop {
                match text.next(at) {
                    Some((c, next)) if set >> blob.classes.kind(c) & 1 != 0 => break Some((at, next)),
                    Some((_, next)) => at = next,
                    None => break None,
                }
            }
        } else {
            blob.patterns.get(self.what).find(blob.classes, text, from)
        };
        match found {
            Some((lo, hi)) if lo == from => {
                self.at = hi;
                Some((lo, hi, true))
            }
            Some((lo, hi)) => {
                self.at = lo;
                self.found = Some((lo, hi));
                Some((from, lo, false))
            }
            None => {
                self.at = self.hi;
                Some((from, self.hi, false))
            }
        }
    }

    /// The next piece. `text` ends where the piece that is split ends.
    pub(crate) fn next(&mut self, blob: &Blob<'_>, text: Text<'_>) -> Option<(usize, usize)> {
        while let Some((lo, hi, is_match)) = self.stretch(blob, text) {
            if let Some(piece) = self.joiner.feed(lo, hi, is_match != self.invert) {
                return Some(piece);
            }
        }
        self.joiner.pending.take()
    }
}
