//! Quantized weights times quantized activations by AMX: one instruction multiplies up to 16 tokens by the 16 rows of a
//! panel over a group.
//!
//! ```text
//! activations    T rows × 32 bytes, signed           as they lie in the quantized rows
//! codes          8 rows × 16 × 4 bytes, signed       row j: inputs 4j…4j+3 of each of the panel's rows
//! dot products   T rows × 16 × i32                   through memory into registers, a panel's rows side by side
//! ```
//! What a tile reads or writes is handed over through memory, and takes its time; and where many instructions wait, none behind
//! them can begin. So a panel is worked on in blocks of four groups and in four stages: while the codes of one block are unpacked,
//! the block before it is multiplied by a tile of tokens, the dot products of the tile before that are stored, and those of
//! the one before are scaled and added, a quarter of each at a time. All tiles of a call share the unpacking. The sums
//! are integers: the bits are every other level's.

use core::arch::asm;
use core::arch::x86_64::{__m512i, _mm512_set1_epi8, _mm512_sub_epi8};
use core::mem::MaybeUninit;

use super::codes::Codes;
use super::groups::groups_of;
use super::int::{self, Strip, load_strip};
use super::{IntPanel, LinearArgs};
use crate::kernels::isa::x86::Amx;
use crate::kernels::isa::{Bytes, Isa};
use crate::weights::{BLOCK, GROUP, LINE, PANEL_ROWS, WeightFormat};

/// Most tokens of a tile.
const TILE_TOKENS: usize = 16;
/// Tokens from which on tiles pay.
const LEAST_TOKENS: usize = 10;

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

/// A block of groups, unpacked.
#[repr(C, align(64))]
struct Block {
    codes: [[[u8; LINE]; GROUP / 4]; BLOCK],
    multipliers: [[f32; PANEL_ROWS]; BLOCK],
    minima: [[f32; PANEL_ROWS]; BLOCK],
}

/// The dot products of a block and a tile of tokens.
#[repr(C, align(64))]
struct Dots([[[i32; PANEL_ROWS]; TILE_TOKENS]; BLOCK]);

/// What is on its way: the blocks that are unpacked, multiplied, stored and added, and two sets of dot products.
struct Stages {
    blocks: [Block; 4],
    dots: [Dots; 2],
}

/// Where a stage is: a tile of tokens in a block of a panel.
#[derive(Clone, Copy)]
struct Cursor {
    panel: usize,
    /// The block's first group.
    g: usize,
    /// The first token that no tile before had.
    token: usize,
}

impl Cursor {
    /// The block's groups, of `groups` of the panel.
    #[inline(always)]
    fn count(self, groups: usize) -> usize {
        if groups - self.g < BLOCK { groups - self.g } else { BLOCK }
    }
    /// The block after it.
    #[inline(always)]
    fn next_block(self, groups: usize) -> Self {
        let g = self.g + BLOCK;
        if g < groups { Self { g, token: 0, ..self } } else { Self { panel: self.panel + 1, g: 0, token: 0 } }
    }
    /// The tile after it.
    #[inline(always)]
    fn next(self, groups: usize, tokens: usize) -> Self {
        let token = self.token + TILE_TOKENS;
        if token < tokens { Self { token, ..self } } else { self.next_block(groups) }
    }
    /// The first token that is multiplied: the last tile begins within the one before, so that all have one shape.
    #[inline(always)]
    fn first(self, a: LinearArgs) -> usize {
        let last = a.tokens - tile_rows(a);
        if self.token < last { self.token } else { last }
    }
    /// A quarter of the tokens that are the tile's own, and where their dot products are.
    #[inline(always)]
    fn quarter(self, i: usize, a: LinearArgs, dots: *const Dots) -> (LinearArgs, *const i32) {
        let left = a.tokens - self.token;
        let own = if left < TILE_TOKENS { left } else { TILE_TOKENS };
        let (from, to) = (self.token + own * i / 4, self.token + own * (i + 1) / 4);
        let panel = a.panel(self.panel);
        let quarter = LinearArgs {
            x: panel.x.wrapping_add(from * panel.stride),
            out: panel.out.wrapping_add(from),
            tokens: to - from,
            ..panel
        };
        (quarter, dots.cast::<i32>().wrapping_add((from - self.first(a)) * PANEL_ROWS))
    }
}

/// A tile of tokens on its way.
#[derive(Clone, Copy)]
struct Step {
    at: Cursor,
    /// Its block, unpacked.
    block: *mut Block,
    /// Groups of the block; none where there is no tile.
    count: usize,
}

/// # Safety
/// As [`LinearArgs`] says; the panels are of `C`'s format; the tiles have the shapes of the tokens.
#[inline(always)]
unsafe fn panels<C: Codes>(isa: Amx, a: LinearArgs) {
    let groups = a.k.div_ceil(GROUP);
    if groups == 0 {
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
    let start = Cursor { panel: 0, g: 0, token: 0 };
    // SAFETY: as the caller vouches; blocks lie within the panels, tiles within the rows; each goes through the stages in order.
    unsafe {
        let table = match C::FORMAT {
            WeightFormat::Q4 => minus(isa.table(a.codebook), C::OFFSET),
            _ => isa.table(a.codebook),
        };
        unpack::<C>(isa, table, a, start, ring[0]);
        let (mut at, mut unpacking) = (start, start.next_block(groups));
        // The tile whose products the registers hold, and the one whose products are stored.
        let mut held = Step { at, block: ring[0], count: 0 };
        let mut stored = held;
        // The stages run on from panel to panel.
        loop {
            let multiplies = at.panel < a.panels;
            if at.token == 0 && unpacking.panel < a.panels {
                unpack::<C>(isa, table, a, unpacking, ring[1]);
                unpacking = unpacking.next_block(groups);
            }
            let now = Step { at, block: ring[0], count: if multiplies { at.count(groups) } else { 0 } };
            let x = a.x.wrapping_add(at.first(a) * a.stride + at.g * GROUP);
            macro_rules! quarter {
                ($i:literal) => {
                    if $i < held.count {
                        store::<$i>(fresh);
                    }
                    if $i < now.count {
                        multiply::<$i>(x, a.stride, now.block);
                    }
                    let (quarter, dots) = stored.at.quarter($i, a, done);
                    match stored.count {
                        BLOCK => add::<C, BLOCK>(isa, quarter, stored.at.g, stored.block, dots),
                        3 => add::<C, 3>(isa, quarter, stored.at.g, stored.block, dots),
                        2 => add::<C, 2>(isa, quarter, stored.at.g, stored.block, dots),
                        1 => add::<C, 1>(isa, quarter, stored.at.g, stored.block, dots),
                        _ => {}
                    }
                };
            }
            quarter!(0);
            quarter!(1);
            quarter!(2);
            quarter!(3);
            let ends = stored.at.next(groups, a.tokens).panel != stored.at.panel;
            if C::FORMAT.has_row_scale() && stored.count > 0 && ends {
                scale(isa, a.panel(stored.at.panel));
            }
            (stored, held) = (held, now);
            (fresh, done) = (done, fresh);
            if stored.count == 0 && held.count == 0 {
                return;
            }
            if multiplies {
                at = at.next(groups, a.tokens);
                if at.token == 0 {
                    ring = [ring[1], ring[2], ring[3], ring[0]];
                }
            }
        }
    }
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

/// First stage: codes and multipliers of a block.
///
/// # Safety
/// The block is one of a panel of `C`'s format.
#[inline(always)]
unsafe fn unpack<C: Codes>(isa: Amx, table: __m512i, a: LinearArgs, at: Cursor, block: *mut Block) {
    groups_of::<Amx, C>(
        isa,
        a.panel(at.panel),
        at.g,
        at.g + at.count(a.k.div_ceil(GROUP)),
        #[inline(always)]
        |place| {
            let i = place.g - at.g;
            // SAFETY: the group is one of the panel's, `i` below BLOCK.
            unsafe {
                let strip = load_strip::<Amx, C>(isa, table, place, 0);
                let codes = (&raw mut (*block).codes).cast::<i32>().add(i * GROUP / 4 * PANEL_ROWS);
                let w = signed::<C>(&strip, isa);
                let mut j = 0;
                while j < w.len() {
                    isa.store_i(codes.add(j * PANEL_ROWS), w[j]);
                    j += 1;
                }
                isa.store((&raw mut (*block).multipliers).cast::<f32>().add(i * PANEL_ROWS), strip.multipliers);
                if C::FORMAT.has_minimum() {
                    isa.store((&raw mut (*block).minima).cast::<f32>().add(i * PANEL_ROWS), strip.minima);
                }
            }
        },
    );
}

/// Second stage: the products of group `I` of a block and a tile, into one of four registers.
///
/// # Safety
/// Rows `x + t·stride` of the tile's tokens have the block's groups, the block has their codes, the tiles have their shapes.
#[inline(always)]
unsafe fn multiply<const I: usize>(x: *const u8, stride: usize, block: *const Block) {
    macro_rules! multiply {
        ($dots:literal, $x:literal, $w:literal) => {
            asm!(
                concat!("tilezero ", $dots),
                concat!("tileloadd ", $x, ", [{x} + {stride}*1]"),
                concat!("tileloadd ", $w, ", [{w} + {line}*1]"),
                concat!("tdpbssd ", $dots, ", ", $x, ", ", $w),
                x = in(reg) x.wrapping_add(I * GROUP),
                stride = in(reg) stride,
                w = in(reg) (&raw const (*block).codes).cast::<u8>().wrapping_add(I * GROUP / 4 * LINE),
                line = in(reg) LINE,
                options(nostack, readonly, preserves_flags)
            )
        };
    }
    // SAFETY: as the caller vouches. No other code uses tiles.
    unsafe {
        match I {
            0 => multiply!("tmm0", "tmm4", "tmm6"),
            1 => multiply!("tmm1", "tmm5", "tmm7"),
            2 => multiply!("tmm2", "tmm4", "tmm6"),
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

/// Fourth stage: adds the parts of a block's `N` groups, `g` and those after it, to the sums of some of a tile's tokens.
///
/// # Safety
/// As [`LinearArgs`] says; the block has the groups' multipliers, `dots` points to the first token's dot products.
#[inline(always)]
unsafe fn add<C: Codes, const N: usize>(isa: Amx, a: LinearArgs, g: usize, block: *const Block, mut dots: *const i32) {
    let groups = a.k.div_ceil(GROUP);
    // SAFETY: as the caller vouches; the scales and sums are where the layout of the row says.
    unsafe {
        let lines = |p: *const [f32; PANEL_ROWS]| {
            let mut of = [isa.splat(0.0); N];
            let mut j = 0;
            while j < N {
                of[j] = isa.load(p.add(j).cast());
                j += 1;
            }
            of
        };
        let multipliers = lines((&raw const (*block).multipliers).cast());
        let minima = if C::FORMAT.has_minimum() { lines((&raw const (*block).minima).cast()) } else { multipliers };
        let mut row = a.x.add(groups * GROUP + 4 * g);
        let mut out = a.out.cast::<f32>();
        let mut t = 0;
        while t < a.tokens {
            let mut sum = isa.load(out);
            let mut j = 0;
            while j < N {
                let scale = isa.splat(row.cast::<f32>().add(j).read_unaligned());
                let dot = isa.to_f(isa.load_i(dots.add(j * TILE_TOKENS * PANEL_ROWS)));
                let mut p = C::scaled(isa, dot, multipliers[j], scale);
                if C::FORMAT.has_minimum() {
                    let total = row.add(groups * 4).cast::<i32>().add(j).read_unaligned();
                    p = isa.add(p, isa.mul(isa.splat(total as f32), isa.mul(minima[j], scale)));
                }
                sum = isa.add(sum, p);
                j += 1;
            }
            isa.store(out, sum);
            dots = dots.wrapping_add(PANEL_ROWS);
            row = row.wrapping_add(a.stride);
            out = out.wrapping_add(PANEL_ROWS);
            t += 1;
        }
    }
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
    let w = strip.dealt(isa);
    if offset == 0 { w } else { w.map(|w| minus(w, offset)) }
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
