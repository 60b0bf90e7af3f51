//! SentencePiece precompiled character maps, with the reference library's reading of them: grapheme clusters of
//! fewer than six bytes are looked up as a whole, by their shortest known beginning; others character by character.

use super::blob::Blob;
use super::buffer::Pass;
use super::chars::decode;
use super::layout::grapheme as g;
use crate::error::Result;

/// Clusters from this length on are looked up character by character.
const WHOLE: usize = 6;

/// Applies the map to the content.
pub(crate) fn precompiled(blob: &Blob<'_>, mut pass: Pass<'_>) -> Result<()> {
    let mut clusters = Clusters::default();
    // The last character is kept back: text that maps to nothing counts as removed after it.
    let mut last: Option<(u32, i32)> = None;
    while pass.read < pass.end {
        let from = pass.read;
        let cluster = clusters.end(blob, &pass.text[..pass.end], from);
        let mut whole = [0; WHOLE];
        let bytes = &pass.text[from..cluster];
        if bytes.len() < WHOLE {
            whole[..bytes.len()].copy_from_slice(bytes);
            if let Some(new) = lookup(blob, &whole[..bytes.len()]) {
                let mut old = 0;
                while pass.read < cluster && pass.next().is_some() {
                    old += 1;
                }
                replace(&mut pass, &mut last, old, new)?;
                continue;
            }
        }
        while pass.read < cluster {
            let at = pass.read;
            let Some(c) = pass.next() else { break };
            match lookup(blob, &pass.text[at..pass.read]) {
                Some(new) => replace(&mut pass, &mut last, 1, new)?,
                None => push(&mut pass, &mut last, c, 0)?,
            }
        }
    }
    if let Some((c, change)) = last {
        pass.put(c, change)?;
    }
    pass.finish();
    Ok(())
}

fn push(pass: &mut Pass<'_>, last: &mut Option<(u32, i32)>, c: u32, change: i32) -> Result<()> {
    match last.replace((c, change)) {
        Some((c, change)) => pass.put(c, change),
        None => Ok(()),
    }
}

/// `old` characters become `new`.
fn replace(pass: &mut Pass<'_>, last: &mut Option<(u32, i32)>, old: i32, new: &[u8]) -> Result<()> {
    let (mut n, mut at) = (0, 0);
    while let Some((c, len)) = decode(new, at) {
        push(pass, last, c, i32::from(n >= old))?;
        at += len;
        n += 1;
    }
    if n < old
        && let Some((_, change)) = last
    {
        *change += n - old;
    }
    Ok(())
}

/// Replacement of the shortest beginning of `key` that the map knows.
fn lookup<'a>(blob: &Blob<'a>, key: &[u8]) -> Option<&'a [u8]> {
    let unit = |at: u32| blob.charsmap.0.get(at as usize).map(|b| u32::from_le_bytes(*b));
    let offset = |unit: u32| (unit >> 10) << ((unit & 1 << 9) >> 6);
    let mut at = offset(unit(0)?);
    for &b in key.iter().take_while(|b| **b != 0) {
        at ^= u32::from(b);
        let here = unit(at)?;
        if here & (1 << 31 | 0xff) != u32::from(b) {
            return None;
        }
        at ^= offset(here);
        if here >> 8 & 1 != 0 {
            let text = blob.charsmap_text.get((unit(at)? & !(1 << 31)) as usize..)?;
            return text.get(..text.iter().position(|b| *b == 0).unwrap_or(text.len()));
        }
    }
    None
}

/// What of the text before matters for the next boundary.
#[derive(Default)]
struct Clusters {
    /// Regional indicators in a row.
    regional: u32,
    /// 1 after a pictograph and extends, 2 after that and a joiner.
    emoji: u8,
    /// 1 after a consonant and extends, 2 if there was a linker among them.
    conjunct: u8,
}

impl Clusters {
    /// End of the grapheme cluster that begins at `at`.
    fn end(&mut self, blob: &Blob<'_>, text: &[u8], mut at: usize) -> usize {
        let property = |at: usize| decode(text, at).map(|(c, n)| (blob.graphemes.map_or(0, |t| t.byte(c)), at + n));
        let Some((mut before, next)) = property(at) else { return text.len() };
        self.pass(before);
        at = next;
        while let Some((after, next)) = property(at) {
            if self.breaks(before & g::CATEGORY, after) {
                break;
            }
            self.pass(after);
            (before, at) = (after, next);
        }
        at
    }

    /// Notes a character.
    fn pass(&mut self, property: u8) {
        let category = property & g::CATEGORY;
        self.regional = if category == g::REGIONAL { self.regional + 1 } else { 0 };
        self.emoji = match category {
            g::PICTOGRAPHIC => 1,
            g::EXTEND if self.emoji == 1 => 1,
            g::ZWJ if self.emoji == 1 => 2,
            _ => 0,
        };
        self.conjunct = match property & !g::CATEGORY {
            g::CONSONANT => 1,
            g::LINKER if self.conjunct > 0 => 2,
            g::INDIC_EXTEND => self.conjunct,
            _ => 0,
        };
    }

    fn breaks(&self, before: u8, after: u8) -> bool {
        let category = after & g::CATEGORY;
        match (before, category) {
            (g::CR, g::LF) => false,
            (g::CONTROL | g::CR | g::LF, _) | (_, g::CONTROL | g::CR | g::LF) => true,
            (g::L, g::L | g::V | g::LV | g::LVT) => false,
            (g::LV | g::V, g::V | g::T) | (g::LVT | g::T, g::T) => false,
            (_, g::EXTEND | g::ZWJ | g::SPACING) | (g::PREPEND, _) => false,
            _ if after & !g::CATEGORY == g::CONSONANT => self.conjunct != 2,
            (g::ZWJ, g::PICTOGRAPHIC) => self.emoji != 2,
            (g::REGIONAL, g::REGIONAL) => self.regional.is_multiple_of(2),
            _ => true,
        }
    }
}
