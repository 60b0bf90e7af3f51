//! Unigram: the most probable segmentation, by dynamic programming over the bytes of a piece.

use super::blob::Blob;
use super::bpe::NO_UNKNOWN;
use super::buffer::SCRATCH;
use super::chars::decode;
use super::layout::{NONE, flag, header};
use crate::error::Result;

/// Words of scratch per byte: best score (two), start and id of the last token of the best path.
pub(crate) const WORDS_PER_BYTE: usize = 4;

/// Splits `piece` into tokens and hands `(id, start, end)` to `emit`.
pub(crate) fn unigram(
    blob: &Blob<'_>,
    piece: &[u8],
    scratch: &mut [u32],
    mut emit: impl FnMut(u32, usize, usize) -> Result<()>,
) -> Result<()> {
    let n = piece.len();
    // Node i is the end of a path over the first i bytes; the one at 0 needs no storage.
    let nodes: &mut [[u32; WORDS_PER_BYTE]] = scratch.as_chunks_mut().0.get_mut(..n).ok_or(SCRATCH)?;
    for node in nodes.iter_mut() {
        node[2] = NONE;
    }
    let unk_score =
        f64::from_bits(u64::from(blob.header(header::UNK_SCORE)) | u64::from(blob.header(header::UNK_SCORE + 1)) << 32);
    let score = |node: &[u32; WORDS_PER_BYTE]| f64::from_bits(u64::from(node[0]) | u64::from(node[1]) << 32);
    let mut start = 0;
    while let Some((_, char_len)) = decode(piece, start) {
        let so_far = if start == 0 { 0.0 } else { score(&nodes[start - 1]) };
        let mut offer = |end: usize, gain: f64, id: u32| {
            let node = &mut nodes[end - 1];
            let total = gain + so_far;
            if node[2] == NONE || total > score(node) {
                let bits = total.to_bits();
                *node = [bits as u32, (bits >> 32) as u32, start as u32, id];
            }
        };
        let mut single = false;
        let mut node = blob.trie.root();
        for (i, &b) in piece[start..].iter().enumerate() {
            let Some(next) = blob.trie.child(node, b) else { break };
            node = next;
            if let Some(id) = blob.trie.value(node)
                && let Some(bits) = blob.scores.get(id as usize)
            {
                offer(start + i + 1, f64::from_le_bytes(*bits), id);
                single |= i + 1 == char_len;
            }
        }
        if !single {
            if blob.unk >= blob.vocab {
                // The reference fails when the path would have to use it, which is now or never.
                let end = start + char_len;
                if nodes[end - 1][2] == NONE || unk_score + so_far > score(&nodes[end - 1]) {
                    return Err(NO_UNKNOWN);
                }
            } else {
                offer(start + char_len, unk_score, blob.unk);
            }
        }
        start += char_len;
    }
    // The path is found from its end; turning the links round lets it be told from its start.
    let mut end = n;
    let mut following = NONE;
    while end > 0 {
        let node = &mut nodes[end - 1];
        let start = node[2] as usize;
        if start >= end {
            return Err(NO_UNKNOWN);
        }
        node[0] = following;
        following = end as u32;
        end = start;
    }
    let mut begin = 0;
    let mut at = following;
    while at != NONE {
        let mut end = at as usize;
        let [next, _, _, id] = nodes[end - 1];
        at = next;
        if id == blob.unk {
            // Neighbouring unknown pieces are one.
            while at != NONE && nodes[at as usize - 1][3] == blob.unk {
                end = at as usize;
                at = nodes[end - 1][0];
            }
            unknown(blob, &piece[begin..end], |id| emit(id, begin, end))?;
        } else {
            emit(id, begin, end)?;
        }
        begin = end;
    }
    Ok(())
}

/// Tokens of unknown text: the token that it happens to be, its bytes, or the unknown token.
fn unknown(blob: &Blob<'_>, text: &[u8], mut emit: impl FnMut(u32) -> Result<()>) -> Result<()> {
    if let Some(id) = blob.lookup(text) {
        return emit(id);
    }
    let byte = |b: &u8| blob.byte_ids.at(usize::from(*b));
    if blob.has(flag::BYTE_FALLBACK) && blob.byte_ids.len() == 256 && text.iter().all(|b| byte(b) < blob.vocab) {
        return text.iter().try_for_each(|b| emit(byte(b)));
    }
    emit(blob.unk)
}
