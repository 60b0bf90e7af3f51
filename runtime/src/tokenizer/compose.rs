//! Canonical decomposition, ordering and composition, in one pass.
//!
//! ```text
//! ... done | starter, marks that did not compose with it | marks not yet in order | room | old content
//!          start                                         run                      write
//! ```
//! Characters past `start` do not know their origin yet: the reference library hands origins out in the order of
//! the result. Until then a character carries its *change* (see [`Pass::origin_for`]) in the place of its origin.

use super::blob::Blob;
use super::buffer::{Pass, SCRATCH};
use super::chars::{Table, decode, encode};
use super::layout::combining;
use super::normalize::replacement;
use crate::error::Result;

const S_BASE: u32 = 0xac00;
const L_BASE: u32 = 0x1100;
const V_BASE: u32 = 0x1161;
const T_BASE: u32 = 0x11a7;
const L_COUNT: u32 = 19;
const V_COUNT: u32 = 21;
const T_COUNT: u32 = 28;
const S_COUNT: u32 = L_COUNT * V_COUNT * T_COUNT;

/// Marks that are put in order on the stack.
const SHORT: usize = 32;

/// Decomposes the content (map `map`) and, if asked, composes it again.
pub(crate) fn decompose(blob: &Blob<'_>, pass: Pass<'_>, map: (u32, u32), compose: bool) -> Result<()> {
    let (Some(map), Some(combining)) = (blob.map(map.0, map.1), blob.combining) else { return Ok(()) };
    let mut this = Composer { blob, combining, pass, compose, start: 0, run: 0, starter: false, last_class: 0 };
    while let Some(c) = this.pass.next() {
        let syllable = c.wrapping_sub(S_BASE);
        let leaf = if c < 0x80 { 0 } else { map.half(c) };
        if syllable < S_COUNT {
            this.add(L_BASE + syllable / (V_COUNT * T_COUNT), 0)?;
            this.add(V_BASE + syllable / T_COUNT % V_COUNT, 1)?;
            if syllable % T_COUNT > 0 {
                this.add(T_BASE + syllable % T_COUNT, 1)?;
            }
        } else if leaf == 0 {
            this.add(c, 0)?;
        } else {
            for (i, d) in replacement(map.head, leaf).enumerate() {
                this.add(d, i32::from(i > 0))?;
            }
        }
    }
    this.settle()?;
    this.finish_to(this.pass.write);
    this.pass.finish();
    Ok(())
}

struct Composer<'b, 'a, 'p> {
    blob: &'b Blob<'a>,
    combining: Table<'a>,
    pass: Pass<'p>,
    compose: bool,
    start: usize,
    run: usize,
    /// The character at `start` is a starter that others may compose with.
    starter: bool,
    /// Class of the last mark after the starter, 0 if there is none.
    last_class: u32,
}

impl Composer<'_, '_, '_> {
    /// Combining class and composition bits.
    fn properties(&self, c: u32) -> u32 {
        if c < 0x80 { 0 } else { self.combining.head.at(usize::from(self.combining.byte(c))) }
    }

    /// Takes a decomposed character.
    fn add(&mut self, c: u32, change: i32) -> Result<()> {
        let properties = self.properties(c);
        if properties & 0xff == 0 {
            self.settle()?;
        }
        self.write(c, change)?;
        if properties & 0xff == 0 { self.feed() } else { Ok(()) }
    }

    fn write(&mut self, c: u32, change: i32) -> Result<()> {
        let (bytes, n) = encode(c);
        self.pass.put_bytes(&bytes[..n], change as u32)
    }

    /// The character at `at`: itself, its change, and where it ends.
    fn read(&self, at: usize) -> (u32, i32, usize) {
        let (c, n) = decode(&self.pass.text[..self.pass.write], at).unwrap_or((0, 1));
        (c, self.pass.origin[at] as i32, at + n)
    }

    /// Orders the marks of the run and hands them on.
    fn settle(&mut self) -> Result<()> {
        if self.run == self.pass.write {
            return Ok(());
        }
        self.sort()?;
        while self.run < self.pass.write {
            self.feed()?;
        }
        Ok(())
    }

    /// Hands origins to all characters before `end`.
    fn finish_to(&mut self, end: usize) {
        while self.start < end {
            let (_, change, next) = self.read(self.start);
            let origin = self.pass.origin_for(change);
            self.pass.origin[self.start..next].fill(origin);
            self.start = next;
        }
    }

    /// Hands on the first character of the run: it composes with the starter, follows it, or replaces it.
    fn feed(&mut self) -> Result<()> {
        let at = self.run;
        let (c, change, end) = self.read(at);
        let properties = self.properties(c);
        let class = properties & 0xff;
        if !self.compose || (!self.starter && class != 0) {
            self.run = end;
            self.finish_to(end);
            return Ok(());
        }
        if self.starter && (self.last_class == 0 || self.last_class < class) && properties & combining::SECOND != 0 {
            let (first, first_change, after) = self.read(self.start);
            if let Some(composed) = compose(self.blob, first, c) {
                return self.join(composed, first_change + change - 1, after, end);
            }
        }
        if class == 0 {
            self.finish_to(at);
            (self.starter, self.last_class) = (true, 0);
        } else {
            self.last_class = class;
        }
        self.run = end;
        Ok(())
    }

    /// Replaces the starter, which ends at `after`, by `c`, and drops the character from `run` to `end`.
    fn join(&mut self, c: u32, change: i32, after: usize, end: usize) -> Result<()> {
        let (bytes, n) = encode(c);
        let (marks, moved) = (after..self.run, self.start + n);
        let marks_end = moved + marks.len();
        if marks_end > end {
            return Err(SCRATCH);
        }
        let pass = &mut self.pass;
        pass.text.copy_within(marks.clone(), moved);
        pass.origin.copy_within(marks, moved);
        pass.text[self.start..moved].copy_from_slice(&bytes[..n]);
        pass.origin[self.start..moved].fill(change as u32);
        pass.text.copy_within(end..pass.write, marks_end);
        pass.origin.copy_within(end..pass.write, marks_end);
        pass.write -= end - marks_end;
        self.run = marks_end;
        Ok(())
    }

    /// Puts the run in the order of combining classes; equal classes keep their order.
    fn sort(&mut self) -> Result<()> {
        let mut marks = [(0, 0, 0); SHORT];
        let (mut n, mut at) = (0, self.run);
        let mut classes = [0u64; 4];
        let (mut last, mut sorted) = (0, true);
        while at < self.pass.write {
            let (c, change, next) = self.read(at);
            let class = self.properties(c) & 0xff;
            sorted &= last <= class;
            last = class;
            classes[(class / 64) as usize] |= 1 << (class % 64);
            if n < SHORT {
                marks[n] = (class, c, change);
            }
            n += 1;
            at = next;
        }
        if sorted {
            return Ok(());
        }
        if n <= SHORT {
            for i in 1..n {
                let mut j = i;
                while j > 0 && marks[j - 1].0 > marks[j].0 {
                    marks.swap(j - 1, j);
                    j -= 1;
                }
            }
            self.pass.write = self.run;
            return marks[..n].iter().try_for_each(|(_, c, change)| self.write(*c, *change));
        }
        // Many marks: class after class into the room behind them, then back.
        let (from, to) = (self.run, self.pass.write);
        let mut out = to;
        for class in 0..256 {
            if classes[class / 64] >> (class % 64) & 1 == 0 {
                continue;
            }
            let mut at = from;
            while at < to {
                let (c, change, next) = self.read(at);
                if self.properties(c) & 0xff == class as u32 {
                    self.pass.write = out;
                    let written = self.write(c, change);
                    out = self.pass.write;
                    self.pass.write = to;
                    written?;
                }
                at = next;
            }
        }
        self.pass.text.copy_within(to..out, from);
        self.pass.origin.copy_within(to..out, from);
        Ok(())
    }
}

fn compose(blob: &Blob<'_>, first: u32, second: u32) -> Option<u32> {
    let (l, v) = (first.wrapping_sub(L_BASE), second.wrapping_sub(V_BASE));
    if l < L_COUNT && v < V_COUNT {
        return Some(S_BASE + (l * V_COUNT + v) * T_COUNT);
    }
    let (s, t) = (first.wrapping_sub(S_BASE), second.wrapping_sub(T_BASE));
    if s < S_COUNT && s % T_COUNT == 0 && (1..T_COUNT).contains(&t) {
        return Some(first + t);
    }
    let (mut lo, mut hi) = (0, blob.compositions.len() / 3);
    while lo < hi {
        let middle = lo.midpoint(hi);
        let [a, b, c] = blob.compositions.record(middle)?;
        match (a, b).cmp(&(first, second)) {
            core::cmp::Ordering::Equal => return Some(c),
            core::cmp::Ordering::Less => lo = middle + 1,
            core::cmp::Ordering::Greater => hi = middle,
        }
    }
    None
}
