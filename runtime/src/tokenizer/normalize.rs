//! Normalization: operations over the buffer, in order.

use super::blob::Blob;
use super::buffer::{Buffer, Pass};
use super::chars::{Text, decode, encode, previous};
use super::layout::{RECORD, map, op, stand_in};
use super::words::Words;
use super::{compose, precompiled};
use crate::error::Result;

/// Applies the normalizer to the buffer's content.
pub(crate) fn normalize(blob: &Blob<'_>, buffer: &mut Buffer<'_>) -> Result<()> {
    for i in 0..blob.normalizer.len() / RECORD {
        let [kind, a, b, c] = blob.normalizer.record(i).unwrap_or_default();
        if kind & op::ASCII_SAME != 0 && buffer.content().is_ascii() {
            continue;
        }
        if buffer.lo == buffer.hi {
            return Ok(());
        }
        match kind & !op::ASCII_SAME {
            op::MAP => apply_map(blob, buffer, a, b)?,
            op::DECOMPOSE => compose::decompose(blob, buffer.pass(), (a, b), c == 1)?,
            op::REPLACE => replace(blob, buffer.pass(), a as usize, blob.string(b, c))?,
            op::PREPEND => buffer.lo = buffer.prepend(buffer.lo, blob.string(b, c))?,
            op::STRIP => strip(blob, buffer, a as usize, b),
            op::PRECOMPILED => precompiled::precompiled(blob, buffer.pass())?,
            op::STAND_INS => {
                let mut pass = buffer.pass();
                while let Some(c) = pass.next() {
                    let (bytes, n) = encode(c);
                    for (i, b) in bytes[..n].iter().enumerate() {
                        pass.put(stand_in(*b), i32::from(i > 0))?;
                    }
                }
                pass.finish();
            }
            _ => {}
        }
    }
    Ok(())
}

/// The words of replacement `leaf` in a map's pool, up to the last.
pub(crate) fn replacement(pool: Words<'_>, leaf: u16) -> impl Iterator<Item = u32> {
    let mut at = usize::from(leaf) - 1;
    let mut more = true;
    core::iter::from_fn(move || {
        if !more {
            return None;
        }
        let word = pool.at(at);
        at += 1;
        more = word & map::LAST == 0 && at < pool.len();
        Some(word & !map::LAST)
    })
}

fn apply_map(blob: &Blob<'_>, buffer: &mut Buffer<'_>, at: u32, len: u32) -> Result<()> {
    let Some(table) = blob.map(at, len) else { return Ok(()) };
    let mut pass = buffer.pass();
    while let Some(c) = pass.next() {
        let leaf = table.half(c);
        if leaf == 0 {
            pass.put(c, 0)?;
            continue;
        }
        let mut change = 0;
        for word in replacement(table.head, leaf) {
            match word {
                map::NOTHING => drop(pass.take()),
                map::SELF => pass.put(c, change)?,
                new => pass.put(new, change)?,
            }
            change = 1;
        }
    }
    pass.finish();
    Ok(())
}

fn replace(blob: &Blob<'_>, mut pass: Pass<'_>, pattern: usize, by: &[u8]) -> Result<()> {
    let pattern = blob.patterns.get(pattern);
    while pass.read < pass.end {
        let text = Text { bytes: &pass.text[..pass.end], stand_ins: false };
        let (lo, hi) = pattern.find(blob.classes, text, pass.read).unwrap_or((pass.end, pass.end));
        while pass.read < lo {
            match pass.next() {
                Some(c) => pass.put(c, 0)?,
                None => break,
            }
        }
        if lo < hi {
            while pass.read < hi && pass.next().is_some() {
                pass.take();
            }
            pass.insert(by)?;
        }
    }
    pass.finish();
    Ok(())
}

fn strip(blob: &Blob<'_>, buffer: &mut Buffer<'_>, class: usize, sides: u32) {
    let is = |at: usize| decode(buffer.text, at).filter(|(c, _)| blob.classes.is(*c, class));
    let (mut lo, mut hi) = (buffer.lo, buffer.hi);
    while sides & 1 != 0
        && lo < hi
        && let Some((_, n)) = is(lo)
    {
        lo += n;
    }
    while sides & 2 != 0 && lo < hi && is(previous(buffer.text, hi)).is_some() {
        hi = previous(buffer.text, hi);
    }
    (buffer.lo, buffer.hi) = (lo, hi);
}
