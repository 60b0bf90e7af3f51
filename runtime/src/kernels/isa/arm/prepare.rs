//! Quantized activations as the tiles read them: in the order of use, beside the numbers that sums start from.
//!
//! ```text
//! token   96 bytes a group    4 × (8 codes, the same 8 codes) · start, 0, start, 0 · scale, Σ as a float, –, –
//! quad   144 bytes a group    8 × (4 codes of each of 4 tokens) · 4 scales
//! pair    80 bytes a group    4 × (8 codes of each of 2 tokens) · 2 × both scales
//! ```
//! A start is [`BIAS`] less what the weights' offset adds to a dot product, so that taking the offset out of weights that one
//! token reads costs nothing. For several tokens it is taken out as they are unpacked.
//! Room is for a run of groups at a time, which all panels of a call share; a tile's groups follow each other.

use core::mem::MaybeUninit;

use super::dot::BIAS;
use super::strip::RUN;
use crate::kernels::linear::MAX_TOKENS;
use crate::weights::GROUP;

/// Bytes of a group of one token.
const TOKEN: usize = 96;
/// Bytes of a group of four tokens for `sdot`, and of two for `smmla`.
const QUAD: usize = 144;
const PAIR: usize = 80;

/// Bytes that groups of `T` tokens are apart; for a `MATRIX` of pairs.
#[must_use]
pub const fn group_bytes<const T: usize, const MATRIX: bool>() -> usize {
    if T == 1 {
        TOKEN
    } else if MATRIX {
        T / 2 * PAIR
    } else {
        T / 4 * QUAD
    }
}

/// Groups of one token that there is room for: whole blocks.
pub const TOKEN_RUN: usize = 128;

/// Room for the groups of one token.
pub type TokenRoom = Room<{ TOKEN_RUN * TOKEN / 64 }>;
/// Room for a run of groups of as many tokens as a call has, and for inputs that are read ahead.
pub type TilesRoom = Room<{ MAX_TOKENS / 2 * RUN * PAIR / 64 + 1 }>;

/// Room for prepared groups, of lines of 64 bytes.
#[repr(C, align(64))]
pub struct Room<const LINES: usize>([MaybeUninit<[u8; 64]>; LINES]);

impl<const LINES: usize> Room<LINES> {
    /// Room with nothing in it.
    #[inline(always)]
    pub fn empty() -> Self {
        Self([const { MaybeUninit::uninit() }; LINES])
    }
    /// Its first byte.
    #[inline(always)]
    pub fn start(&mut self) -> *mut u8 {
        self.0.as_mut_ptr().cast()
    }
}

/// A row of quantized activations, and a run of its groups.
#[derive(Clone, Copy)]
pub struct Run {
    /// The row.
    pub row: *const u8,
    /// Bytes to the next token's row.
    pub stride: usize,
    /// Groups of a row.
    pub groups: usize,
    /// The first of the run.
    pub first: usize,
    /// The one after its last.
    pub end: usize,
    /// What linear codes are stored with.
    pub offset: i32,
}

/// A group of a token, as the row has it.
struct Group {
    codes: [u64; 4],
    scale: u32,
    sum: i32,
}

impl Run {
    /// Group `g` of token `t`.
    ///
    /// # Safety
    /// They exist.
    #[inline(always)]
    unsafe fn group(&self, t: usize, g: usize) -> Group {
        let row = self.row.wrapping_add(t * self.stride);
        let codes = row.wrapping_add(g * GROUP).cast::<u64>();
        let scale = row.wrapping_add(self.groups * GROUP + 4 * g);
        // SAFETY: as the layout of the row says.
        unsafe {
            Group {
                codes: [
                    codes.read_unaligned(),
                    codes.wrapping_add(1).read_unaligned(),
                    codes.wrapping_add(2).read_unaligned(),
                    codes.wrapping_add(3).read_unaligned(),
                ],
                scale: scale.cast::<u32>().read_unaligned(),
                sum: scale.wrapping_add(4 * self.groups).cast::<i32>().read_unaligned(),
            }
        }
    }
    /// What dot products with the group start from.
    #[inline(always)]
    fn start(&self, group: &Group) -> u64 {
        u64::from(BIAS.wrapping_sub(self.offset.wrapping_mul(group.sum)) as u32)
    }
}

/// The lower half.
const LOW: u64 = 0xffff_ffff;

/// Two words side by side.
#[inline(always)]
fn both(low: u64, high: u64) -> u64 {
    low | high << 32
}

/// One token, each group at `to` and on.
///
/// # Safety
/// The row has the groups, and `to` is valid for writing them and aligned.
#[inline(always)]
pub unsafe fn token(run: Run, to: *mut u8) {
    let mut to = to.cast::<[u64; TOKEN / 8]>();
    let mut g = run.first;
    while g < run.end {
        // SAFETY: as the caller vouches.
        unsafe {
            let group = run.group(0, g);
            let ([a, b, c, d], start) = (group.codes, run.start(&group));
            let scale = both(u64::from(group.scale), u64::from((group.sum as f32).to_bits()));
            to.write([a, a, b, b, c, c, d, d, start, start, scale, 0]);
        }
        to = to.wrapping_add(1);
        g += 1;
    }
}

/// `tokens` tokens in quads.
///
/// # Safety
/// The rows have the groups, and `to` is valid for writing them and aligned; `tokens` is a multiple of 4.
#[inline(always)]
pub unsafe fn quads(run: Run, tokens: usize, to: *mut u8) {
    let mut to = to.cast::<[u64; QUAD / 8]>();
    let mut g = run.first;
    while g < run.end {
        let mut t = 0;
        while t < tokens {
            // SAFETY: as the caller vouches.
            unsafe {
                let (p, q, r, s) = (run.group(t, g), run.group(t + 1, g), run.group(t + 2, g), run.group(t + 3, g));
                let mut words = [0; QUAD / 8];
                let mut i = 0;
                while i < 4 {
                    let (p, q, r, s) = (p.codes[i], q.codes[i], r.codes[i], s.codes[i]);
                    words[4 * i] = both(p & LOW, q);
                    words[4 * i + 1] = both(r & LOW, s);
                    words[4 * i + 2] = both(p >> 32, q >> 32);
                    words[4 * i + 3] = both(r >> 32, s >> 32);
                    i += 1;
                }
                words[16] = both(u64::from(p.scale), u64::from(q.scale));
                words[17] = both(u64::from(r.scale), u64::from(s.scale));
                to.write(words);
            }
            to = to.wrapping_add(1);
            t += 4;
        }
        g += 1;
    }
}

/// `tokens` tokens in pairs.
///
/// # Safety
/// The rows have the groups, and `to` is valid for writing them and aligned; `tokens` is even.
#[inline(always)]
pub unsafe fn pairs(run: Run, tokens: usize, to: *mut u8) {
    let mut to = to.cast::<[u64; PAIR / 8]>();
    let mut g = run.first;
    while g < run.end {
        let mut t = 0;
        while t < tokens {
            // SAFETY: as the caller vouches.
            unsafe {
                let (p, q) = (run.group(t, g), run.group(t + 1, g));
                let scale = both(u64::from(p.scale), u64::from(q.scale));
                let ([a, b, c, d], [e, f, g, h]) = (p.codes, q.codes);
                to.write([a, e, b, f, c, g, d, h, scale, scale]);
            }
            to = to.wrapping_add(1);
            t += 2;
        }
        g += 1;
    }
}
