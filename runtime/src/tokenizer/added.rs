//! Added tokens: found in the text before the model sees it.

use super::blob::Blob;
use super::chars::{decode, previous};
use super::layout::{NONE, RECORD, added, header};
use super::trie::Trie;

/// A stretch of text: an added token, or text in between.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Found {
    pub lo: usize,
    pub hi: usize,
    pub id: Option<u32>,
}

/// Walks over a text from added token to added token (leftmost, then longest).
pub(crate) struct Finder {
    lo: usize,
    /// End of what has been handed out.
    done: usize,
    /// Where the search goes on.
    at: usize,
    end: usize,
    normalized: bool,
    parse_special: bool,
    waiting: Option<Found>,
}

impl Finder {
    pub(crate) fn new(lo: usize, hi: usize, normalized: bool, parse_special: bool) -> Self {
        Self { lo, done: lo, at: lo, end: hi, normalized, parse_special, waiting: None }
    }

    fn trie<'a>(&self, blob: &Blob<'a>) -> Trie<'a> {
        if self.normalized { blob.added_normalized } else { blob.added_raw }
    }

    /// The next stretch of `text`. What has been handed out may since have been overwritten; it is not read again.
    pub(crate) fn next(&mut self, blob: &Blob<'_>, text: &[u8]) -> Option<Found> {
        if let Some(found) = self.waiting.take() {
            return Some(found);
        }
        let trie = self.trie(blob);
        let text = &text[..self.end];
        while !trie.is_empty() && self.at < self.end {
            let Some((len, index)) = trie.longest(&text[self.at..]) else {
                self.at += 1;
                continue;
            };
            let (mut start, mut stop) = (self.at, self.at + len);
            self.at = stop;
            let Some([id, bits, _, _]) = blob.added.record::<RECORD>(index as usize) else { continue };
            if bits & added::SPECIAL != 0 && !self.parse_special {
                continue;
            }
            if bits & added::SINGLE_WORD != 0 {
                let class = blob.header(header::WORD_CLASS);
                let word = |at: usize| decode(text, at).is_some_and(|(c, _)| is(blob, c, class));
                if (start > self.lo && word(previous(text, start))) || word(stop) {
                    continue;
                }
            }
            let class = blob.header(header::SPACE_CLASS);
            if bits & added::LSTRIP != 0 {
                // After a token that took white space on its right, this one may begin inside of it.
                start = start.max(self.done.min(stop));
                while start > self.done {
                    let before = previous(text, start);
                    if !decode(text, before).is_some_and(|(c, _)| is(blob, c, class)) {
                        break;
                    }
                    start = before;
                }
            }
            if bits & added::RSTRIP != 0 {
                while let Some((c, n)) = decode(text, stop)
                    && is(blob, c, class)
                {
                    stop += n;
                }
            }
            let token = Found { lo: start, hi: stop, id: Some(id) };
            let between = Found { lo: self.done, hi: start, id: None };
            self.done = stop;
            if between.lo < between.hi {
                self.waiting = Some(token);
                return Some(between);
            }
            return Some(token);
        }
        if self.done < self.end {
            let rest = Found { lo: self.done, hi: self.end, id: None };
            self.done = self.end;
            return Some(rest);
        }
        None
    }
}

fn is(blob: &Blob<'_>, c: u32, class: u32) -> bool {
    class != NONE && blob.classes.is(c, class as usize)
}
