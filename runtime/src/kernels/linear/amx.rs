//! Quantized weights times quantized activations by AMX: one instruction multiplies up to 16 tokens by the 16 rows of a
//! panel over a group.
//!
//! ```text
//! activations    T rows × 32 bytes, signed           as they lie in the quantized rows
//! codes          8 rows × 16 × 4 bytes, signed       row j: inputs 4j…4j+3 of each of the panel's rows
//! dot products   T rows × 16 × i32                   through memory into registers, a panel's rows side by side
//! ```
//! What a tile reads or writes is handed over through memory, and takes its time; and where many instructions wait, none behind
//! them can begin. So the work goes by blocks, two groups of two panels each, and in four stages: while the codes of one block
//! are unpacked, the block before it is multiplied by a tile of tokens, the dot products of the tile before that are stored, and
//! those of the one before are scaled and added, a quarter of each at a time. The two panels share the loads of activations and
//! their scales, all tiles of a call the unpacking. The sums are integers: the bits are every other level's.

use core::arch::asm;
use core::arch::x86_64::{__m512i, _mm512_set1_epi8, _mm512_sub_epi8};
use core::mem::MaybeUninit;

use super::codes::Codes;
use super::groups::{FAR, Place};
use super::int::{self, Strip, load_strip};
use super::{IntPanel, LinearArgs};
use crate::kernels::isa::x86::Amx;
use crate::kernels::isa::{Bytes, Isa};
use crate::weights::{BLOCK, GROUP, LINE, PANEL_ROWS, WeightFormat};

/// Most tokens of a tile.
const TILE_TOKENS: usize = 16;
/// Tokens from which on tiles pay.
const LEAST_TOKENS: usize = 10;
/// Panels of a block.
const PAIR: usize = 2;
/// Groups of a block.
const SPAN: usize = 2;
/// Quarters of a block: number `i` is group `i / PAIR` of panel `i % PAIR`.
const QUARTERS: usize = SPAN * PAIR;

impl IntPanel for Amx {
    #[inline(always)]
    unsafe fn int_panel<C: Codes>(self, a: LinearArgs) {
        // SAFETY: passed on.
        unsafe { int::panels::<Self, C>(self, a) }
    }

    #[inline(always)]
    unsafe fn int_panels<C: Codes>(self, a: LinearArgs) {
        // The zeros stay; the compiler would make a call out of writing them.
        if a.k == 0 && !C::FORMAT.has_row_scale() {
            return;
        }
        // SAFETY: passed on; the shapes are those of the tokens.
        unsafe {
            if a.tokens < LEAST_TOKENS {
                self.int_panel::<C>(a);
                return;
            }
            let shapes = Shapes::new(tile_rows(a) as u8);
            // Other libraries set the shapes once and count on them: they get theirs back. Without any, that frees the tiles.
            let mut before = MaybeUninit::<Shapes>::uninit();
            asm!(
                "sttilecfg [{0}]", "ldtilecfg [{1}]", in(reg) before.as_mut_ptr(), in(reg) &raw const shapes,
                options(nostack, preserves_flags)
            );
            panels::<C>(self, a);
            asm!("ldtilecfg [{0}]", in(reg) before.as_ptr(), options(nostack, readonly, preserves_flags));
        }
    }
}

/// Tokens of each tile.
#[inline(always)]
fn tile_rows(a: LinearArgs) -> usize {
    if a.tokens < TILE_TOKENS { a.tokens } else { TILE_TOKENS }
}

/// The operand of `ldtilecfg`: the shapes of four tiles of dot products, two of activations and two of codes.
#[repr(C, align(64))]
struct Shapes {
    palette: u8,
    first_row: u8,
    reserved: [u8; 14],
    row_bytes: [u16; 16],
    rows: [u8; 16],
}

impl Shapes {
    fn new(tokens: u8) -> Self {
        let (mut row_bytes, mut rows) = ([0; 16], [0; 16]);
        let mut i = 0;
        while i < 8 {
            (rows[i], row_bytes[i]) = match i {
                0..4 => (tokens, LINE as u16),
                4 | 5 => (tokens, GROUP as u16),
                _ => ((GROUP / 4) as u8, LINE as u16),
            };
            i += 1;
        }
        Self { palette: 1, first_row: 0, reserved: [0; 14], row_bytes, rows }
    }
}

/// A block, unpacked.
#[repr(C, align(64))]
struct Block {
    codes: [[[u8; LINE]; GROUP / 4]; QUARTERS],
    multipliers: [[f32; PANEL_ROWS]; QUARTERS],
    minima: [[f32; PANEL_ROWS]; QUARTERS],
}

/// The dot products of a block and a tile of tokens.
#[repr(C, align(64))]
struct Dots([[[i32; PANEL_ROWS]; TILE_TOKENS]; QUARTERS]);

/// What is on its way: the blocks that are unpacked, multiplied, stored and added, and two sets of dot products.
struct Stages {
    blocks: [Block; 4],
    dots: [Dots; 2],
}

/// Where a stage is: a tile of tokens in a block.
#[derive(Clone, Copy)]
struct Cursor {
    /// The block's first panel.
    panel: usize,
    /// The block's first group.
    g: usize,
    /// The first token that no tile before had.
    token: usize,
}

impl Cursor {
    const START: Self = Self { panel: 0, g: 0, token: 0 };

    /// The block's groups and panels; none of them behind the end.
    #[inline(always)]
    fn extent(self, a: LinearArgs) -> (usize, usize) {
        if self.panel >= a.panels {
            return (0, 0);
        }
        let least = |a, b| if a < b { a } else { b };
        (least(a.k.div_ceil(GROUP) - self.g, SPAN), least(a.panels - self.panel, PAIR))
    }
    /// The block after it.
    #[inline(always)]
    fn next_block(self, a: LinearArgs) -> Self {
        let g = self.g + SPAN;
        if g < a.k.div_ceil(GROUP) {
            Self { g, token: 0, ..self }
        } else {
            Self { panel: self.panel + PAIR, g: 0, token: 0 }
        }
    }
    /// The tile after it.
    #[inline(always)]
    fn next(self, a: LinearArgs) -> Self {
        let token = self.token + TILE_TOKENS;
        if token < a.tokens { Self { token, ..self } } else { self.next_block(a) }
    }
    /// The first token that is multiplied: the last tile begins within the one before, so that all have one shape.
    #[inline(always)]
    fn first(self, a: LinearArgs) -> usize {
        let last = a.tokens - tile_rows(a);
        if self.token < last { self.token } else { last }
    }
}

/// A tile of tokens on its way.
#[derive(Clone, Copy)]
struct Step {
    at: Cursor,
    /// Its block, unpacked.
    block: *mut Block,
    /// Groups and panels of the block; none where there is no tile.
    groups: usize,
    panels: usize,
}

impl Step {
    /// Whether there are all quarters of the block.
    #[inline(always)]
    fn whole(self) -> bool {
        self.groups == SPAN && self.panels == PAIR
    }
    /// Whether there is quarter `i` of the block.
    #[inline(always)]
    fn has(self, i: usize) -> bool {
        i / PAIR < self.groups && i % PAIR < self.panels
    }
}

/// Where the fourth stage is: the next token's scales, sums and dot products.
#[derive(Clone, Copy)]
struct Adding {
    /// Tokens that are the tile's own.
    own: usize,
    row: *const u8,
    out: *mut f32,
    dots: *const i32,
}

impl Adding {
    #[inline(always)]
    fn new(a: LinearArgs, at: Cursor, dots: *const Dots) -> Self {
        let left = a.tokens - at.token;
        Self {
            own: if left < TILE_TOKENS { left } else { TILE_TOKENS },
            row: a.x.wrapping_add(at.token * a.stride + a.k.div_ceil(GROUP) * GROUP + 4 * at.g),
            out: a.out.wrapping_add(at.panel * a.tokens + at.token).cast(),
            dots: dots.cast::<i32>().wrapping_add((at.token - at.first(a)) * PANEL_ROWS),
        }
    }
}

/// # Safety
/// As [`LinearArgs`] says; the panels are of `C`'s format; the tiles have the shapes of the tokens.
#[inline(always)]
unsafe fn panels<C: Codes>(isa: Amx, a: LinearArgs) {
    if a.k == 0 {
        // Without inputs there are no blocks, but zeros have signs.
        a.each_panel(
            #[inline(always)]
            |a| {
                // SAFETY: as the caller vouches; the caller knows that the format has row scales.
                unsafe { scale(isa, a) }
            },
        );
        return;
    }
    let mut memory = MaybeUninit::<Stages>::uninit();
    let stages = opaque(memory.as_mut_ptr());
    // SAFETY: places within the stages.
    let (blocks, dots) =
        unsafe { ((&raw mut (*stages).blocks).cast::<Block>(), (&raw mut (*stages).dots).cast::<Dots>()) };
    let (mut fresh, mut done) = (dots, dots.wrapping_add(1));
    let mut ring = [blocks, blocks.wrapping_add(1), blocks.wrapping_add(2), blocks.wrapping_add(3)];
    // SAFETY: as the caller vouches; blocks lie within the panels, tiles within the rows; each goes through the stages in order.
    unsafe {
        let table = match C::FORMAT {
            WeightFormat::Q4 => minus(isa.table(a.codebook), C::OFFSET),
            _ => isa.table(a.codebook),
        };
        let mut at = Cursor::START;
        let mut unpacking = block_step(a, at, ring[0]);
        unpack::<C, 0>(isa, table, a, unpacking);
        unpack::<C, 1>(isa, table, a, unpacking);
        unpack::<C, 2>(isa, table, a, unpacking);
        unpack::<C, 3>(isa, table, a, unpacking);
        let none = Step { groups: 0, panels: 0, ..unpacking };
        // The tile whose products the registers hold, and the one whose products are stored.
        let (mut held, mut stored) = (none, none);
        // The stages run on from block to block.
        loop {
            let now = block_step(a, at, ring[0]);
            unpacking = if at.token == 0 {
                block_step(a, unpacking.at.next_block(a), ring[1])
            } else {
                Step { groups: 0, ..unpacking }
            };
            let x = a.x.wrapping_add(at.first(a) * a.stride + at.g * GROUP);
            let turn = Turn { x, held, now, unpacking, stored, adding: Adding::new(a, stored.at, done), fresh };
            // Nearly all are whole: with one shape and nothing to ask, registers hold all that a turn needs.
            if held.whole() && now.whole() && stored.whole() && unpacking.groups == 0 && turn.adding.own == TILE_TOKENS
            {
                let whole = |step| Step { groups: SPAN, panels: PAIR, ..step };
                quarters::<C>(
                    isa,
                    table,
                    a,
                    Turn {
                        held: whole(held),
                        now: whole(now),
                        unpacking: Step { groups: 0, ..unpacking },
                        stored: whole(stored),
                        adding: Adding { own: TILE_TOKENS, ..turn.adding },
                        ..turn
                    },
                );
            } else {
                quarters::<C>(isa, table, a, turn);
            }
            if C::FORMAT.has_row_scale() && stored.groups > 0 && stored.at.next(a).panel != stored.at.panel {
                let mut p = 0;
                while p < stored.panels {
                    scale(isa, a.panel(stored.at.panel + p));
                    p += 1;
                }
            }
            (stored, held) = (held, now);
            (fresh, done) = (done, fresh);
            if stored.groups == 0 && held.groups == 0 {
                return;
            }
            if now.groups > 0 {
                at = at.next(a);
                if at.token == 0 {
                    ring = [ring[1], ring[2], ring[3], ring[0]];
                }
            }
        }
    }
}

/// What the stages do at once.
#[derive(Clone, Copy)]
struct Turn {
    /// The activations of `now`.
    x: *const u8,
    held: Step,
    now: Step,
    unpacking: Step,
    stored: Step,
    adding: Adding,
    fresh: *mut Dots,
}

/// A turn of all stages.
///
/// # Safety
/// As [`panels`] says; the steps are in the order of the stages.
#[inline(always)]
unsafe fn quarters<C: Codes>(isa: Amx, table: __m512i, a: LinearArgs, turn: Turn) {
    let Turn { x, held, now, unpacking, stored, mut adding, fresh } = turn;
    macro_rules! quarter {
        ($i:literal) => {
            if held.has($i) {
                store::<$i>(fresh);
            }
            if now.has($i) {
                multiply::<$i>(x, a.stride, now.block);
            }
            unpack::<C, $i>(isa, table, a, unpacking);
            match (stored.groups, stored.panels) {
                (0, _) => {}
                (2, 2) => add::<C, $i, 2, 2>(isa, a, &mut adding, stored.block),
                (_, 2) => add::<C, $i, 1, 2>(isa, a, &mut adding, stored.block),
                (2, _) => add::<C, $i, 2, 1>(isa, a, &mut adding, stored.block),
                _ => add::<C, $i, 1, 1>(isa, a, &mut adding, stored.block),
            }
        };
    }
    // SAFETY: as the caller vouches.
    unsafe {
        quarter!(0);
        quarter!(1);
        quarter!(2);
        quarter!(3);
    }
}

/// The tile at `at`, its block in `block`.
#[inline(always)]
fn block_step(a: LinearArgs, at: Cursor, block: *mut Block) -> Step {
    let (groups, panels) = at.extent(a);
    Step { at, block, groups, panels }
}

/// Multiplies the sums by the row scales.
///
/// # Safety
/// As [`LinearArgs`] says; the format has row scales.
#[inline(always)]
unsafe fn scale(isa: Amx, a: LinearArgs) {
    // SAFETY: there are 16 row scales; t is below the number of tokens.
    unsafe {
        let scales = isa.load(a.row_scales);
        let mut t = 0;
        while t < a.tokens {
            let out = a.out.add(t).cast::<f32>();
            isa.store(out, isa.mul(isa.load(out), scales));
            t += 1;
        }
    }
}

/// First stage: codes and multipliers of quarter `I` of a block, if it has that.
///
/// # Safety
/// The block is one of panels of `C`'s format.
#[inline(always)]
unsafe fn unpack<C: Codes, const I: usize>(isa: Amx, table: __m512i, a: LinearArgs, step: Step) {
    if !step.has(I) {
        return;
    }
    let Step { at, block, .. } = step;
    let place = group::<C>(isa, a.panel(at.panel + I % PAIR), at.g + I / PAIR);
    // SAFETY: the group is one of the panel's.
    unsafe {
        let strip = load_strip::<Amx, C>(isa, table, place, 0);
        let codes = (&raw mut (*block).codes).cast::<i32>().add(I * GROUP / 4 * PANEL_ROWS);
        let w = signed::<C>(&strip, isa);
        let mut j = 0;
        while j < w.len() {
            isa.store_i(codes.add(j * PANEL_ROWS), w[j]);
            j += 1;
        }
        isa.store((&raw mut (*block).multipliers).cast::<f32>().add(I * PANEL_ROWS), strip.multipliers);
        if C::FORMAT.has_minimum() {
            isa.store((&raw mut (*block).minima).cast::<f32>().add(I * PANEL_ROWS), strip.minima);
        }
    }
}

/// Group `g` of a panel.
#[inline(always)]
fn group<C: Codes>(isa: Amx, a: LinearArgs, g: usize) -> Place {
    let (block, i) = (g / BLOCK, g % BLOCK);
    let left = a.k.div_ceil(GROUP) - block * BLOCK;
    let multipliers = a.panel.wrapping_add(block * C::FORMAT.block_bytes());
    let area = C::FORMAT.multiplier_area(if left < BLOCK { left } else { BLOCK });
    let codes = multipliers.wrapping_add(area + i * C::FORMAT.group_bytes());
    let mut line = 0;
    while line < C::FORMAT.group_bytes() {
        isa.prefetch_far(codes.wrapping_add(FAR + line));
        line += LINE;
    }
    Place { g, codes, multipliers: multipliers.wrapping_add(i * PANEL_ROWS * C::FORMAT.multiplier_bytes()) }
}

/// Second stage: the products of quarter `I` of a block and a tile, into one of four registers. The first panel's quarters load the
/// activations for the second's.
///
/// # Safety
/// Rows `x + t·stride` of the tile's tokens have the block's groups, the block has their codes, the tiles have their shapes.
#[inline(always)]
unsafe fn multiply<const I: usize>(x: *const u8, stride: usize, block: *const Block) {
    macro_rules! multiply {
        ($dots:literal, $x:literal, $w:literal) => {
            asm!(
                concat!("tilezero ", $dots),
                concat!("tileloadd ", $w, ", [{w} + {line}*1]"),
                concat!("tdpbssd ", $dots, ", ", $x, ", ", $w),
                w = in(reg) (&raw const (*block).codes).cast::<u8>().wrapping_add(I * GROUP / 4 * LINE),
                line = in(reg) LINE,
                options(nostack, readonly, preserves_flags)
            )
        };
    }
    macro_rules! load {
        ($x:literal) => {
            asm!(
                concat!("tileloadd ", $x, ", [{x} + {stride}*1]"),
                x = in(reg) x.wrapping_add(I / PAIR * GROUP),
                stride = in(reg) stride,
                options(nostack, readonly, preserves_flags)
            )
        };
    }
    // SAFETY: as the caller vouches. No other code uses tiles.
    unsafe {
        match I {
            0 => {
                load!("tmm4");
                multiply!("tmm0", "tmm4", "tmm6");
            }
            1 => multiply!("tmm1", "tmm4", "tmm7"),
            2 => {
                load!("tmm5");
                multiply!("tmm2", "tmm5", "tmm6");
            }
            _ => multiply!("tmm3", "tmm5", "tmm7"),
        }
    }
}

/// Third stage: stores what [`multiply`] computed.
///
/// # Safety
/// `dots` is valid for writing, the tiles have their shapes.
#[inline(always)]
unsafe fn store<const I: usize>(dots: *mut Dots) {
    macro_rules! store {
        ($dots:literal) => {
            asm!(
                concat!("tilestored [{dots} + {line}*1], ", $dots),
                dots = in(reg) dots.cast::<u8>().wrapping_add(I * TILE_TOKENS * LINE),
                line = in(reg) LINE,
                options(nostack, preserves_flags)
            )
        };
    }
    // SAFETY: as the caller vouches. No other code uses tiles.
    unsafe {
        match I {
            0 => store!("tmm0"),
            1 => store!("tmm1"),
            2 => store!("tmm2"),
            _ => store!("tmm3"),
        }
    }
}

/// Fourth stage: adds the parts of a block of `N` groups and `P` panels to the sums of quarter `I` of a tile's own tokens.
///
/// # Safety
/// As [`LinearArgs`] says; `to` has come to the quarter; the block is unpacked.
#[inline(always)]
unsafe fn add<C: Codes, const I: usize, const N: usize, const P: usize>(
    isa: Amx,
    a: LinearArgs,
    to: &mut Adding,
    block: *const Block,
) {
    let groups = a.k.div_ceil(GROUP);
    let Adding { own, mut row, mut out, mut dots } = *to;
    // SAFETY: as the caller vouches; the scales and sums are where the layout of the row says.
    unsafe {
        let lines = |p: *const [f32; PANEL_ROWS]| {
            let mut of = [[isa.splat(0.0); P]; N];
            let mut i = 0;
            while i < N * P {
                of[i / P][i % P] = isa.load(p.add(i / P * PAIR + i % P).cast());
                i += 1;
            }
            of
        };
        let multipliers = lines((&raw const (*block).multipliers).cast());
        let minima = if C::FORMAT.has_minimum() { lines((&raw const (*block).minima).cast()) } else { multipliers };
        let mut t = own * I / 4;
        while t < own * (I + 1) / 4 {
            let mut scales = [isa.splat(0.0); N];
            let mut totals = scales;
            let mut g = 0;
            while g < N {
                scales[g] = isa.splat(row.cast::<f32>().add(g).read_unaligned());
                if C::FORMAT.has_minimum() {
                    totals[g] = isa.to_f(isa.splat_i(row.add(groups * 4).cast::<i32>().add(g).read_unaligned()));
                }
                g += 1;
            }
            let mut p = 0;
            while p < P {
                let out = out.add(p * a.tokens * PANEL_ROWS);
                let mut sum = isa.load(out);
                let mut g = 0;
                while g < N {
                    let dot = isa.to_f(isa.load_i(dots.add((g * PAIR + p) * TILE_TOKENS * PANEL_ROWS)));
                    let mut part = C::scaled(isa, dot, multipliers[g][p], scales[g]);
                    if C::FORMAT.has_minimum() {
                        part = isa.add(part, isa.mul(totals[g], isa.mul(minima[g][p], scales[g])));
                    }
                    sum = isa.add(sum, part);
                    g += 1;
                }
                isa.store(out, sum);
                p += 1;
            }
            dots = dots.wrapping_add(PANEL_ROWS);
            row = row.wrapping_add(a.stride);
            out = out.wrapping_add(PANEL_ROWS);
            t += 1;
        }
    }
    *to = Adding { own, row, out, dots };
}

/// The codes in the order of the tile, their offset taken out.
#[inline(always)]
fn signed<C: Codes>(strip: &Strip<Amx>, isa: Amx) -> [__m512i; 8] {
    let offset = match C::FORMAT {
        // The table has it no more.
        WeightFormat::Q4 => 0,
        // The general body multiplies unsigned ones.
        _ if C::FORMAT.code_bits() == 8 => Amx::SIGNED_OFFSET,
        _ => C::OFFSET,
    };
    let mut w = strip.dealt(isa);
    let mut j = 0;
    // A map of the array would become a call.
    while offset != 0 && j < w.len() {
        w[j] = minus(w[j], offset);
        j += 1;
    }
    w
}

/// Every byte less a number, modulo 256.
#[inline(always)]
fn minus(w: __m512i, number: i32) -> __m512i {
    // SAFETY: only the level's entries call this.
    unsafe { _mm512_sub_epi8(w, _mm512_set1_epi8(number as i8)) }
}

/// `p`, of which the compiler knows no more than that: it would address the buffers like registers that it has spilled.
#[inline(always)]
fn opaque<T>(mut p: *mut T) -> *mut T {
    // SAFETY: no instruction.
    unsafe { asm!("/* {0} */", inout(reg) p, options(nostack, preserves_flags)) }
    p
}
