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

use core::arch::aarch64::*;
use core::mem::MaybeUninit;

use super::dot::{BIAS, opaque_count};
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
    /// Group `g` of the first token.
    ///
    /// # Safety
    /// It exists.
    #[inline(always)]
    unsafe fn group(&self, g: usize) -> Group {
        let codes = self.row.wrapping_add(g * GROUP);
        let scale = self.row.wrapping_add(self.groups * GROUP + 4 * g);
        // SAFETY: as the layout of the row says.
        unsafe {
            Group {
                codes: codes.cast::<[u64; 4]>().read_unaligned(),
                scale: scale.cast::<u32>().read_unaligned(),
                sum: scale.wrapping_add(4 * self.groups).cast::<i32>().read_unaligned(),
            }
        }
    }
    /// The scale of group `g` of the token whose codes of that group are given.
    ///
    /// # Safety
    /// They exist.
    #[inline(always)]
    unsafe fn scale(&self, codes: *const u8, g: usize) -> u64 {
        let scale = codes.wrapping_add(self.groups * GROUP - g * (GROUP - 4));
        // SAFETY: as the layout of the row says.
        unsafe { u64::from(scale.cast::<u32>().read_unaligned()) }
    }
    /// What dot products with the group start from.
    #[inline(always)]
    fn start(&self, group: &Group) -> u64 {
        u64::from(BIAS.wrapping_sub(self.offset.wrapping_mul(group.sum)) as u32)
    }
}

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
            let group = run.group(g);
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
pub unsafe fn quads(run: Run, tokens: usize, mut to: *mut u8) {
    let mut g = run.first;
    while g < run.end {
        let (mut codes, mut left) = (run.row.wrapping_add(g * GROUP), tokens);
        while left > 0 {
            // SAFETY: as the caller vouches, and the layout of the row says.
            unsafe {
                let mut half = 0;
                while half < GROUP {
                    let load = |i| vld1q_u32(codes.wrapping_add(i * run.stride + half).cast());
                    let (p, q, r, s) = (load(0), load(1), load(2), load(3));
                    let (a, b) = (vzip1q_u32(p, r), vzip2q_u32(p, r));
                    let (c, d) = (vzip1q_u32(q, s), vzip2q_u32(q, s));
                    let words = uint32x4x4_t(vzip1q_u32(a, c), vzip2q_u32(a, c), vzip1q_u32(b, d), vzip2q_u32(b, d));
                    vst1q_u32_x4(to.wrapping_add(4 * half).cast(), words);
                    half += 16;
                }
                let scale = |i| run.scale(codes.wrapping_add(i * run.stride), g);
                to.add(128).cast::<[u64; 2]>().write([both(scale(0), scale(1)), both(scale(2), scale(3))]);
            }
            to = to.wrapping_add(QUAD);
            codes = codes.wrapping_add(4 * run.stride);
            left = opaque_count(left - 4);
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
        let (mut codes, mut left) = (run.row.wrapping_add(g * GROUP), tokens);
        while left > 0 {
            // SAFETY: as the caller vouches, and the layout of the row says.
            unsafe {
                let next = codes.wrapping_add(run.stride);
                let [a, b, c, d] = codes.cast::<[u64; 4]>().read_unaligned();
                let [e, f, p, h] = next.cast::<[u64; 4]>().read_unaligned();
                let scale = both(run.scale(codes, g), run.scale(next, g));
                to.write([a, e, b, f, c, p, d, h, scale, scale]);
            }
            to = to.wrapping_add(1);
            codes = codes.wrapping_add(2 * run.stride);
            left = opaque_count(left - 2);
        }
        g += 1;
    }
}
