//! Compiled regular expressions: a small backtracking matcher over character classes.
//!
//! Semantics are those of a backtracking engine (the first alternative that matches wins, repeats are greedy).
//! The packer marks repeats that can give nothing back, and at most one repeat without bound per alternative may;
//! programs only jump forwards. So one attempt costs at most the square of the few choices times the text, and the
//! stack of choices has a fixed size.

use super::chars::{Classes, Text};
use super::layout::pattern::{
    AHEAD, CHAR, CLASS, HEAD, JUMP, MATCH, MAX_ALTERNATIVES, MAX_CHOICES, MAX_INSTRUCTIONS, NOT_AHEAD, REPEAT, SPLIT,
};
use super::layout::table::MAX_KINDS;
use super::words::Words;
use crate::error::{Error, ErrorKind, Result};

const WHAT: &str = "tokenizer patterns";

#[derive(Clone, Copy)]
struct Instruction {
    op: u8,
    flag: u8,
    arg: usize,
    word: u32,
}

impl Instruction {
    #[inline]
    fn read(b: [u8; 8]) -> Self {
        Self {
            op: b[0],
            flag: b[1],
            arg: usize::from(u16::from_le_bytes([b[2], b[3]])),
            word: u32::from_le_bytes([b[4], b[5], b[6], b[7]]),
        }
    }
}

/// A program (layout: [`super::layout::pattern`]).
#[derive(Clone, Copy)]
pub(crate) struct Pattern<'a> {
    starts: Words<'a>,
    first: Words<'a>,
    code: &'a [[u8; 8]],
}

/// All programs of a tokenizer.
#[derive(Clone, Copy)]
pub(crate) struct Patterns<'a> {
    words: Words<'a>,
    bytes: &'a [u8],
}

impl<'a> Patterns<'a> {
    pub(crate) fn new_checked(bytes: &'a [u8], classes: Classes<'_>) -> Result<Self> {
        let this = Self { words: Words::new(bytes), bytes };
        for i in 0..this.count() {
            this.read(i).ok_or(Error::new(ErrorKind::OutOfBounds, WHAT).index(i as u64))?.verify(i, classes)?;
        }
        Ok(this)
    }
    pub(crate) fn count(self) -> usize {
        // Each program takes at least a head, which bounds the count by the section.
        (self.words.at(0) as usize).min(self.bytes.len() / 4)
    }
    fn read(self, i: usize) -> Option<Pattern<'a>> {
        let at = self.words.at(1 + 2 * i) as usize;
        let program = self.bytes.get(at..at.checked_add(self.words.at(2 + 2 * i) as usize)?)?;
        let w = Words::new(program);
        let (alternatives, count, kinds) = (w.at(0) as usize, w.at(1) as usize, w.at(2) as usize);
        if alternatives > MAX_ALTERNATIVES || count > MAX_INSTRUCTIONS || kinds > MAX_KINDS {
            return None;
        }
        let starts = HEAD * 4;
        let first = starts + alternatives * 4;
        let code = first + kinds * 4;
        if program.len() != code + count * 8 {
            return None;
        }
        Some(Pattern {
            starts: Words::new(&program[starts..first]),
            first: Words::new(&program[first..code]),
            code: program[code..].as_chunks().0,
        })
    }
    /// Program `i`, which the stages' verification has bounded.
    pub(crate) fn get(self, i: usize) -> Pattern<'a> {
        self.read(i).unwrap_or(Pattern { starts: Words(&[]), first: Words(&[]), code: &[] })
    }
}

/// A choice to return to: where to go on, from which position, and the least position of a repeat.
#[derive(Clone, Copy)]
struct Choice {
    at: usize,
    pos: usize,
    least: usize,
}

impl Pattern<'_> {
    fn verify(self, index: usize, classes: Classes<'_>) -> Result<()> {
        let bad = |found: u64| Error::new(ErrorKind::Invalid, WHAT).index(index as u64).values(found, 0);
        if self.starts.iter().any(|s| s as usize >= self.code.len()) {
            return Err(bad(0));
        }
        let (mut choices, mut loops) = (0, 0);
        for (i, b) in self.code.iter().enumerate() {
            let ins = Instruction::read(*b);
            // Jumps stay inside their alternative, which ends at the next match.
            let end = || i + self.code[i..].iter().position(|b| b[0] == MATCH).unwrap_or(0);
            let ok = match ins.op {
                CHAR => char::from_u32(ins.word).is_some(),
                CLASS | NOT_AHEAD | AHEAD => ins.arg < classes.count(),
                REPEAT => {
                    if ins.flag == 0 {
                        choices += 1;
                        loops += u32::from(ins.word >> 16 > 4);
                    }
                    ins.arg < classes.count() && ins.word & 0xffff <= ins.word >> 16
                }
                SPLIT | JUMP => {
                    choices += usize::from(ins.op == SPLIT);
                    ins.word as usize > i && ins.word as usize <= end()
                }
                MATCH => {
                    // Alternatives end in a match; what can be returned to is counted for each.
                    if choices > MAX_CHOICES || loops > 1 {
                        return Err(bad(i as u64));
                    }
                    (choices, loops) = (0, 0);
                    true
                }
                _ => false,
            };
            if !ok {
                return Err(bad(i as u64));
            }
        }
        // The last instruction ends the last alternative, so that nothing runs off the end.
        match self.code.last() {
            Some(b) if b[0] == MATCH => Ok(()),
            _ => Err(bad(0)),
        }
    }

    /// End of the match that begins at `pos`.
    pub(crate) fn match_at(self, classes: Classes<'_>, text: Text<'_>, pos: usize) -> Option<usize> {
        let (c, _) = text.next(pos)?;
        let mut alternatives = self.first.at(usize::from(classes.kind(c)));
        while alternatives != 0 {
            let i = alternatives.trailing_zeros();
            alternatives &= alternatives - 1;
            if let Some(end) = self.run(self.starts.at(i as usize) as usize, classes, text, pos)
                && end > pos
            {
                return Some(end);
            }
        }
        None
    }

    fn run(self, start: usize, classes: Classes<'_>, text: Text<'_>, start_pos: usize) -> Option<usize> {
        let mut stack = [Choice { at: 0, pos: 0, least: 0 }; MAX_CHOICES];
        let mut depth = 0;
        let (mut at, mut pos) = (start, start_pos);
        loop {
            let ins = Instruction::read(*self.code.get(at)?);
            at += 1;
            let ok = match ins.op {
                CHAR => match text.next(pos) {
                    Some((c, next)) if c == ins.word => {
                        pos = next;
                        true
                    }
                    _ => false,
                },
                CLASS => match text.next(pos) {
                    Some((c, next)) if classes.is(c, ins.arg) => {
                        pos = next;
                        true
                    }
                    _ => false,
                },
                REPEAT => {
                    let (set, min, max) = (classes.set(ins.arg), ins.word & 0xffff, ins.word >> 16);
                    let max = if max == 0xffff { u32::MAX } else { max };
                    let (mut n, mut least) = (0, pos);
                    while n < max
                        && let Some((c, next)) = text.next(pos)
                        && set >> classes.kind(c) & 1 != 0
                    {
                        pos = next;
                        n += 1;
                        if n == min {
                            least = pos;
                        }
                    }
                    if n >= min && n > min && ins.flag == 0 && depth < MAX_CHOICES {
                        stack[depth] = Choice { at, pos, least };
                        depth += 1;
                    }
                    n >= min
                }
                SPLIT => {
                    if depth < MAX_CHOICES {
                        stack[depth] = Choice { at: ins.word as usize, pos, least: usize::MAX };
                        depth += 1;
                    }
                    true
                }
                JUMP => {
                    at = ins.word as usize;
                    true
                }
                NOT_AHEAD => !text.next(pos).is_some_and(|(c, _)| classes.is(c, ins.arg)),
                AHEAD => text.next(pos).is_some_and(|(c, _)| classes.is(c, ins.arg)),
                _ => return Some(pos),
            };
            if !ok {
                let choice = stack.get_mut(depth.checked_sub(1)?)?;
                at = choice.at;
                if choice.least == usize::MAX {
                    pos = choice.pos;
                    depth -= 1;
                } else {
                    choice.pos = text.previous(choice.pos);
                    pos = choice.pos;
                    if pos <= choice.least {
                        depth -= 1;
                    }
                }
            }
        }
    }

    /// The next match at or after `pos`.
    pub(crate) fn find(self, classes: Classes<'_>, text: Text<'_>, mut pos: usize) -> Option<(usize, usize)> {
        while let Some((_, next)) = text.next(pos) {
            if let Some(end) = self.match_at(classes, text, pos) {
                return Some((pos, end));
            }
            pos = next;
        }
        None
    }
}
