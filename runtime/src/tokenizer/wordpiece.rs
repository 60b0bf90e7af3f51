//! WordPiece: the longest known piece, again and again; and whole-word vocabularies.

use super::blob::Blob;
use super::chars::decode;
use super::layout::header;

/// Hands `(id, end)` of the pieces of `word` to `emit`; `false` if some part is in no piece.
pub(crate) fn word_piece(blob: &Blob<'_>, word: &[u8], mut emit: impl FnMut(u32, usize)) -> bool {
    let (mut chars, mut at) = (0, 0);
    while let Some((_, n)) = decode(word, at) {
        at += n;
        chars += 1;
        if chars > blob.header(header::MAX_CHARS) {
            return false;
        }
    }
    let continued = blob.trie.walk(blob.trie.root(), blob.header_string(header::PREFIX));
    let mut start = 0;
    while start < word.len() {
        let first = if start == 0 { Some(blob.trie.root()) } else { continued };
        let Some(mut node) = first else { return false };
        let mut best = None;
        for (i, &b) in word[start..].iter().enumerate() {
            let Some(next) = blob.trie.child(node, b) else { break };
            node = next;
            if let Some(id) = blob.trie.value(node) {
                best = Some((id, start + i + 1));
            }
        }
        let Some((id, end)) = best.filter(|(id, _)| *id < blob.vocab) else { return false };
        emit(id, end);
        start = end;
    }
    true
}
