//! Quantized weights times quantized activations by the DSP extension: pairs of halfwords.
//!
//! A product costs half an instruction, bringing codes into halfwords costs more. So there is a way for each kind of code;
//! linear codes stay unsigned, and Σx takes their offset out again:
//!
//! - int8: `sxtb16` spreads a word of codes to two pairs.
//! - nibbles: those of the even and of the odd bytes, masked, are two pairs as they are. Bits from planes have a sum of
//!   their own, which counts 16 times.
//! - `q4`: a byte is two indices into the file's table, so a table for all bytes gives a pair at once. It is made anew for
//!   each call.
//!
//! The activations of a group are spread once for 16 rows, in the order in which a row meets them.
//!
//! With the feature `mve` int8 and `q4` go through the vector unit, which multiplies bytes as they are.

use core::mem::MaybeUninit;

use crate::kernels::isa::cortex_m::Dsp;
use crate::kernels::linear::LinearArgs;
use crate::kernels::linear::plain::{minimum, multiplier, row_scales};
use crate::weights::{GROUP, LINE, PANEL_ROWS, PLANE_PART, SLOT_ROW, WeightFormat};

/// Activations of a group as pairs.
type Pairs = [u32; GROUP / 2];

/// All panels of a call.
///
/// # Safety
/// As [`LinearArgs`] says; the panels are of `format`.
#[inline(never)]
pub(super) unsafe fn panels(dsp: Dsp, format: WeightFormat, a: LinearArgs) {
    let mut table = MaybeUninit::<[u32; 256]>::uninit();
    let table = table.as_mut_ptr();
    // SAFETY: the codebook has 16 bytes, the table is read for `q4` alone; passed on.
    unsafe {
        let way = Way::of(format, &a);
        if matches!(way, Way::LookedUp) {
            fill(table.cast(), &*a.codebook.cast());
        }
        a.each_panel(|a| panel(dsp, format, &way, table.cast(), a));
    }
}

/// One panel.
///
/// # Safety
/// As [`LinearArgs`] says; the panel is of `format`, and `table` holds 256 words where it is read.
#[inline(always)]
unsafe fn panel(dsp: Dsp, format: WeightFormat, way: &Way, table: *const u32, a: LinearArgs) {
    let groups = a.k.div_ceil(GROUP);
    let (mut dots, mut multipliers) = ([0; PANEL_ROWS], [0.0; PANEL_ROWS]);
    // SAFETY: groups, rows and tokens are those of the panel, of each row of activations and of the output.
    unsafe {
        for g in 0..groups {
            let (codes_at, multipliers_at) = format.group_place(a.k, g);
            let (codes, factors) = (a.panel.add(codes_at), a.panel.add(multipliers_at));
            for (row, m) in multipliers.iter_mut().enumerate() {
                *m = multiplier(format, factors, row);
            }
            let mut x = a.x;
            for t in 0..a.tokens {
                let group = x.add(g * GROUP).cast::<u32>();
                let xscale = x.add(groups * GROUP).cast::<f32>().add(g).read_unaligned();
                let sum = x.add(groups * (GROUP + 4)).cast::<i32>().add(g).read_unaligned();
                match way {
                    Way::Bytes => bytes(dsp, codes, group, &mut dots),
                    Way::LookedUp => looked_up(dsp, table, codes, group, &mut dots),
                    Way::Nibbles => nibbles(dsp, format, codes, group, sum, &mut dots),
                    #[cfg(feature = "mve")]
                    Way::Vectors(panel) => panel.dots(dsp, codes, group.cast(), &mut dots),
                }
                let out = &mut *a.out.add(t);
                for (row, ((out, d), m)) in out.iter_mut().zip(&dots).zip(&multipliers).enumerate() {
                    let d = *d as f32;
                    let mut p = if format.multiplier_bytes() == 1 { d * m * xscale } else { d * (m * xscale) };
                    if format.has_minimum() {
                        p += sum as f32 * (minimum(format, factors, row) * xscale);
                    }
                    *out += p;
                }
                x = x.wrapping_add(a.stride);
            }
        }
        row_scales(format, &a);
    }
}

/// How a panel's codes are multiplied.
enum Way {
    Bytes,
    LookedUp,
    Nibbles,
    #[cfg(feature = "mve")]
    Vectors(vectors::Panel),
}

impl Way {
    /// # Safety
    /// As [`LinearArgs`] says.
    unsafe fn of(format: WeightFormat, _a: &LinearArgs) -> Self {
        #[cfg(feature = "mve")]
        // SAFETY: the caller's.
        if let Some(panel) = unsafe { vectors::Panel::new(format, _a) } {
            return Self::Vectors(panel);
        }
        match format.code_bits() {
            8 => Self::Bytes,
            _ if format == WeightFormat::Q4 => Self::LookedUp,
            _ => Self::Nibbles,
        }
    }
}

/// The formats that the vector unit multiplies.
#[cfg(feature = "mve")]
mod vectors {
    use super::{Dsp, GROUP, LINE, LinearArgs, PANEL_ROWS, WeightFormat, row_of};
    use crate::kernels::isa::cortex_m::mve::SLOTS;

    /// A panel that it multiplies; for `q4` the codes of nibbles.
    pub struct Panel(Option<[i8; 16]>);

    impl Panel {
        /// `None` where the format is another or the panel not aligned as the unit's loads need it.
        ///
        /// # Safety
        /// As [`LinearArgs`] says.
        pub unsafe fn new(format: WeightFormat, a: &LinearArgs) -> Option<Self> {
            if !(a.panel as usize).is_multiple_of(8) {
                return None;
            }
            match format {
                // SAFETY: the codebook has 16 bytes.
                WeightFormat::Q4 => {
                    Some(Self(Some(unsafe { *a.codebook.cast::<[u8; 16]>() }.map(|c| c.wrapping_sub(64) as i8))))
                }
                _ if format.code_bits() == 8 => Some(Self(None)),
                _ => None,
            }
        }

        /// The dot products of 16 rows.
        ///
        /// # Safety
        /// `codes` points to a group's codes in this panel, `x` to 32 activations.
        #[inline(never)]
        pub unsafe fn dots(&self, dsp: Dsp, codes: *const u8, x: *const u8, dots: &mut [i32; PANEL_ROWS]) {
            const { assert!(GROUP == 32 && LINE == 64 && PANEL_ROWS == 2 * SLOTS) };
            let mut sums = [0; SLOTS];
            for half in 0..2 {
                // SAFETY: four lines of bytes or two of nibbles for each half, at multiples of 8 in an aligned panel.
                unsafe {
                    match &self.0 {
                        Some(table) => dsp.lines_of_indices(codes.add(half * 2 * LINE), table, x, &mut sums),
                        None => dsp.lines_of_bytes(codes.add(half * 4 * LINE), x, &mut sums),
                    }
                }
                for (i, sum) in sums.iter().enumerate() {
                    dots[row_of(half * SLOTS + i)] = *sum;
                }
            }
        }
    }
}

/// The row in slot `i` of 16.
#[inline(always)]
const fn row_of(i: usize) -> usize {
    i & 8 | SLOT_ROW[i & 7]
}

/// Where slot `i` of 16 is, from the beginning of a group's codes, in the first of its half's `lines`.
#[inline(always)]
const fn slot(i: usize, lines: usize) -> usize {
    i / 8 * lines * LINE + i % 8 * 8
}

/// For every byte the codes of its low and its high nibble, as halfwords.
///
/// # Safety
/// `table` is valid for writing 256 words.
unsafe fn fill(table: *mut u32, codebook: &[u8; 16]) {
    let codes = codebook.map(|c| u32::from(c).wrapping_sub(64) & 0xffff);
    let mut at = table;
    for high in &codes {
        // Four at once, for as many registers.
        for &[a, b, c, d] in codes.as_chunks::<4>().0 {
            let high = high << 16;
            // SAFETY: 16 · 4 times four words.
            unsafe {
                at.cast::<[u32; 4]>().write([a | high, b | high, c | high, d | high]);
                at = at.add(4);
            }
        }
    }
}

/// The pairs (0, 2), (1, 3) of each word, in the order of words in which [`bytes`] and [`nibbles`] read codes.
///
/// # Safety
/// `x` is valid for reading 32 bytes, at any address.
#[inline(never)]
unsafe fn near_pairs(dsp: Dsp, x: *const u32, pairs: &mut Pairs) {
    for (i, pair) in pairs.as_chunks_mut::<2>().0.iter_mut().enumerate() {
        // SAFETY: the word is below 2 · 3 + 1.
        *pair = dsp.pairs(unsafe { x.add(2 * PLANE_PART[i & 3] + i / 4).read_unaligned() });
    }
}

/// The pairs (k, 16 + k), which share a byte of codes.
///
/// # Safety
/// As [`near_pairs`].
unsafe fn far_pairs(dsp: Dsp, x: *const u32, pairs: &mut Pairs) {
    for (i, four) in pairs.as_chunks_mut::<4>().0.iter_mut().enumerate() {
        // SAFETY: the words are below 8.
        let (low, high) = unsafe { (x.add(i).read_unaligned(), x.add(4 + i).read_unaligned()) };
        let ([a, b], [c, d]) = (dsp.pairs(low), dsp.pairs(high));
        *four = [a & 0xffff | c << 16, b & 0xffff | d << 16, a >> 16 | c & 0xffff_0000, b >> 16 | d & 0xffff_0000];
    }
}

/// The word at `at + offset`.
///
/// # Safety
/// It is valid for reading, at any address.
#[inline(always)]
unsafe fn word(at: *const u8, offset: usize) -> u32 {
    // SAFETY: the caller's.
    unsafe { at.add(offset).cast::<u32>().read_unaligned() }
}

/// The dot products of 16 rows of int8 codes.
///
/// # Safety
/// `codes` points to a group's codes, `x` to 32 activations.
#[inline(never)]
unsafe fn bytes(dsp: Dsp, codes: *const u8, x: *const u32, dots: &mut [i32; PANEL_ROWS]) {
    let mut pairs = [0; GROUP / 2];
    // SAFETY: the lines of a slot lie one after the other; four words four times.
    unsafe {
        near_pairs(dsp, x, &mut pairs);
        for i in 0..PANEL_ROWS {
            let (mut sum, mut x, at) = (0, pairs.as_ptr(), codes.add(slot(i, 4)));
            for half in [0, 4] {
                dsp.bytes(&mut sum, [word(at, half), word(at, half + 2 * LINE)], &mut x);
                dsp.bytes(&mut sum, [word(at, half + LINE), word(at, half + 3 * LINE)], &mut x);
            }
            dots[row_of(i)] = sum;
        }
    }
}

/// The dot products of 16 rows of indices, whose codes `table` has in pairs.
///
/// # Safety
/// As [`bytes`]; `table` holds 256 words.
#[inline(never)]
unsafe fn looked_up(dsp: Dsp, table: *const u32, codes: *const u8, x: *const u32, dots: &mut [i32; PANEL_ROWS]) {
    let mut pairs = [0; GROUP / 2];
    // SAFETY: as in `bytes`.
    unsafe {
        far_pairs(dsp, x, &mut pairs);
        for i in 0..PANEL_ROWS {
            let (mut sum, mut x, at) = (0, pairs.as_ptr(), codes.add(slot(i, 2)));
            dsp.looked_up(&mut sum, word(at, 0), table, &mut x);
            dsp.looked_up(&mut sum, word(at, 4), table, &mut x);
            dsp.looked_up(&mut sum, word(at, LINE), table, &mut x);
            dsp.looked_up(&mut sum, word(at, LINE + 4), table, &mut x);
            dots[row_of(i)] = sum;
        }
    }
}

/// The dot products of 16 rows of linear codes of four to six bits; `sum_x` is that of the activations.
///
/// # Safety
/// As [`bytes`].
#[inline(never)]
unsafe fn nibbles(
    dsp: Dsp,
    format: WeightFormat,
    codes: *const u8,
    x: *const u32,
    sum_x: i32,
    dots: &mut [i32; PANEL_ROWS],
) {
    let mut pairs = [0; GROUP / 2];
    let high_bits = format.plane_bits();
    // SAFETY: as in `bytes`; the planes follow the codes.
    unsafe {
        near_pairs(dsp, x, &mut pairs);
        let planes = codes.add(format.code_bytes());
        for i in 0..PANEL_ROWS {
            let (mut sum, mut x, at) = (0, pairs.as_ptr(), codes.add(slot(i, 2)));
            for half in [0, 4] {
                dsp.nibbles(&mut sum, word(at, half), &mut x);
                dsp.nibbles(&mut sum, word(at, half + LINE), &mut x);
            }
            if high_bits > 0 {
                sum += planes_of(dsp, high_bits == 1, planes, i, &pairs) << 4;
            }
            dots[row_of(i)] = sum - sum_x * format.code_offset();
        }
    }
}

/// The bits above the nibbles of slot `i`; `single`: one for each code, in one line for both halves, else two.
///
/// # Safety
/// `planes` points to a group's planes.
#[inline(always)]
unsafe fn planes_of(dsp: Dsp, single: bool, planes: *const u8, i: usize, pairs: &Pairs) -> i32 {
    let (mut sum, mut x) = (0, pairs.as_ptr());
    // SAFETY: as in `bytes`.
    unsafe {
        for half in [0, 4] {
            let high = if single {
                // Bits 0…3 of a byte to 0, 2, 4, 6.
                let four = word(planes, slot(i & 7, 1) + half) >> ((i & 8) / 2) & 0x0f0f_0f0f;
                let two = (four | four << 2) & 0x3333_3333;
                (two | two << 1) & 0x5555_5555
            } else {
                word(planes, slot(i, 1) + half)
            };
            dsp.planes(&mut sum, high, &mut x);
            dsp.planes(&mut sum, high >> 4, &mut x);
        }
    }
    sum
}

/// As [`super::plain::row_codes`], code by code: it serves the embedding's rows alone here, so it has to be small.
///
/// # Safety
/// `group` points to a group's codes of a quantized format, `codebook` to 16 bytes.
pub(super) unsafe fn row_codes(format: WeightFormat, codebook: *const u8, group: *const u8, row: usize) -> [u32; 8] {
    let mut codes = [0_u8; GROUP];
    for (k, code) in codes.iter_mut().enumerate() {
        let place = format.code_place(row, k);
        // SAFETY: the places are the group's; indices into the table are nibbles.
        unsafe {
            let low = group.add(place.byte).read() >> place.shift;
            *code = match format.code_bits() {
                8 => low,
                _ if format == WeightFormat::Q4 => codebook.add(usize::from(low & 15)).read().wrapping_sub(64),
                bits => {
                    let high = if bits > 4 { group.add(place.plane_byte).read() >> place.plane_shift } else { 0 };
                    ((low & 15 | high << 4) & ((1 << bits) - 1)).wrapping_sub(format.code_offset() as u8)
                }
            };
        }
    }
    bytemuck::cast(codes)
}
