//! Rows of weights into panels, and back.

use core::array;
use std::vec;
use std::vec::Vec;

use crate::kernels::isa::scalar::{f16_to_f32, f32_to_f16};
use crate::kernels::wide::{Wide, widest};
use crate::weights::{CodePlace, GROUP, PANEL_ROWS, WeightFormat};

/// A one in every byte.
const EACH: u64 = 0x0101_0101_0101_0101;

/// Scales of the groups of [`QuantizedRows`], row by row, `⌈K / 32⌉` each.
#[derive(Clone, Debug, PartialEq)]
pub enum Multipliers {
    /// `q8r`: there are none.
    None,
    /// `q4`, `q4l`, `q5`, `q6`.
    Int(Vec<i8>),
    /// `q8`, `i4`, `i5`: binary16 bits.
    Half(Vec<u16>),
    /// `i4m`, `i5m`: binary16 bits of scale and minimum.
    HalfAndMinimum(Vec<[u16; 2]>),
}

/// A quantized weight before it is packed: `w[r,k] ≈ S[r] · s[r,g] · c[q[r,k]] (+ m[r,g])`.
#[derive(Clone, Debug, PartialEq)]
pub struct QuantizedRows {
    /// Which formula: a quantized format.
    pub format: WeightFormat,
    /// Inputs.
    pub k: usize,
    /// N × K codes: signed (offset not yet added), or for `q4` the index into the table.
    pub codes: Vec<i8>,
    /// Scales of the groups.
    pub multipliers: Multipliers,
    /// Scales of the rows, N of them, where the format has them.
    pub row_scales: Vec<f32>,
}

impl QuantizedRows {
    /// Outputs.
    #[must_use]
    pub fn n(&self) -> usize {
        self.codes.len().checked_div(self.k).unwrap_or(0)
    }

    /// Range of the codes of `format`.
    #[must_use]
    pub fn code_range(format: WeightFormat) -> core::ops::RangeInclusive<i8> {
        match format {
            WeightFormat::Q4 | WeightFormat::I4M => 0..=15,
            WeightFormat::Q4L | WeightFormat::I4 => -8..=7,
            WeightFormat::Q5 | WeightFormat::I5 => -16..=15,
            WeightFormat::I5M => 0..=31,
            WeightFormat::Q6 => -32..=31,
            WeightFormat::F32 | WeightFormat::F16 | WeightFormat::Q8 | WeightFormat::Q8R => -128..=127,
        }
    }

    /// Value of code `i` of row `r` without its scales.
    fn value(&self, codebook: &[u8; 16], r: usize, i: usize) -> i32 {
        let code = self.codes[r * self.k + i];
        if self.format == WeightFormat::Q4 {
            i32::from(codebook[usize::from(code as u8)]) - 64
        } else {
            i32::from(code)
        }
    }

    /// Multiplier of group `g` of row `r`.
    fn multiplier(&self, r: usize, g: usize) -> f32 {
        let at = r * self.k.div_ceil(GROUP) + g;
        match &self.multipliers {
            Multipliers::None => 1.0,
            Multipliers::Int(m) => f32::from(m[at]),
            Multipliers::Half(m) => f16_to_f32(m[at]),
            Multipliers::HalfAndMinimum(m) => f16_to_f32(m[at][0]),
        }
    }

    /// Minimum of group `g` of row `r`.
    fn minimum(&self, r: usize, g: usize) -> f32 {
        match &self.multipliers {
            Multipliers::HalfAndMinimum(m) => f16_to_f32(m[r * self.k.div_ceil(GROUP) + g][1]),
            _ => 0.0,
        }
    }

    /// All weights as floats, N × K, by the same products as [`dequant_row`](super::dequant_row).
    #[must_use]
    pub fn dequantize(&self, codebook: &[u8; 16]) -> Vec<f32> {
        let mut out = Vec::with_capacity(self.codes.len());
        for r in 0..self.n() {
            let row_scale = self.row_scales.get(r).copied().unwrap_or(1.0);
            for i in 0..self.k {
                let product = self.value(codebook, r, i) as f32 * self.multiplier(r, i / GROUP) * row_scale;
                // Adding 0 would turn −0 into 0.
                out.push(if self.format.has_minimum() { product + self.minimum(r, i / GROUP) } else { product });
            }
        }
        out
    }

    /// Packs the rows `first_row..first_row + 16`, as far as they exist, into one panel.
    ///
    /// # Panics
    /// When `panel` is not exactly [`WeightFormat::panel_bytes`]`(k)` long, the parts do not fit each other, the format
    /// is a float format, or a code is out of [`QuantizedRows::code_range`].
    pub fn pack_panel(&self, first_row: usize, panel: &mut [u8]) {
        let (format, k, n) = (self.format, self.k, self.n());
        assert_eq!(panel.len(), format.panel_bytes(k), "panel size");
        assert!(!format.is_float());
        assert_eq!(self.codes.len(), n * k);
        assert_eq!(self.row_scales.len(), if format.has_row_scale() { n } else { 0 });
        widest(CodePanel { rows: self, first_row, panel });
    }

    /// All panels, one after the other.
    #[must_use]
    pub fn pack(&self) -> Vec<u8> {
        let bytes = self.format.panel_bytes(self.k);
        let mut out = vec![0; self.format.tensor_bytes(self.n(), self.k)];
        for (i, panel) in out.chunks_exact_mut(bytes).enumerate() {
            self.pack_panel(i * PANEL_ROWS, panel);
        }
        out
    }

    /// The first `n` rows of packed panels of `format`.
    ///
    /// # Panics
    /// When `panels` is not [`WeightFormat::tensor_bytes`]`(n, k)` long or the format is a float format.
    #[must_use]
    pub fn unpack(format: WeightFormat, panels: &[u8], n: usize, k: usize) -> Self {
        assert_eq!(panels.len(), format.tensor_bytes(n, k), "tensor size");
        assert!(!format.is_float());
        let panel_bytes = format.panel_bytes(k);
        let mut rows = Self {
            format,
            k,
            codes: Vec::with_capacity(n * k),
            multipliers: match format.multiplier_bytes() {
                0 => Multipliers::None,
                1 => Multipliers::Int(Vec::new()),
                2 => Multipliers::Half(Vec::new()),
                _ => Multipliers::HalfAndMinimum(Vec::new()),
            },
            row_scales: Vec::new(),
        };
        for r in 0..n {
            let (panel, row) = (&panels[r / PANEL_ROWS * panel_bytes..][..panel_bytes], r % PANEL_ROWS);
            for i in 0..k {
                let (place, at) = (format.code_place(row, i % GROUP), format.group_place(k, i / GROUP).0);
                let code = if format.code_bits() == 8 {
                    panel[at + place.byte]
                } else {
                    let high = match format.plane_bits() {
                        0 => 0,
                        bits => panel[at + place.plane_byte] >> place.plane_shift & ((1 << bits) - 1),
                    };
                    (panel[at + place.byte] >> place.shift & 15) | high << 4
                };
                rows.codes.push((i32::from(code as i8) - format.code_offset()) as i8);
            }
            for g in 0..k.div_ceil(GROUP) {
                let at = format.group_place(k, g).1;
                let half = |i: usize| u16::from_le_bytes([panel[at + 2 * i], panel[at + 2 * i + 1]]);
                match &mut rows.multipliers {
                    Multipliers::None => {}
                    Multipliers::Int(m) => m.push(panel[at + row] as i8),
                    Multipliers::Half(m) => m.push(half(row)),
                    Multipliers::HalfAndMinimum(m) => m.push([half(row), half(PANEL_ROWS + row)]),
                }
            }
            if format.has_row_scale() {
                let at = format.row_scales_at(k) + 4 * row;
                let scale = [panel[at], panel[at + 1], panel[at + 2], panel[at + 3]];
                rows.row_scales.push(f32::from_le_bytes(scale));
            }
        }
        rows
    }
}

/// The layout of [`QuantizedRows::pack_panel`].
struct CodePanel<'a> {
    rows: &'a QuantizedRows,
    first_row: usize,
    panel: &'a mut [u8],
}

impl Wide for CodePanel<'_> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let Self { rows, first_row, panel } = self;
        let (format, k, n) = (rows.format, rows.k, rows.n());
        let range = QuantizedRows::code_range(format);
        let (low, high) = (*range.start(), *range.end());
        let (offset, eights, planes) = (format.code_offset() as u8, format.code_bits() == 8, format.plane_bits() != 0);
        let groups = k.div_ceil(GROUP);
        panel.fill(0);
        let places: [[CodePlace; 4]; PANEL_ROWS] =
            array::from_fn(|row| array::from_fn(|part| format.code_place(row, 8 * part)));
        for (g, (row, places)) in (0..groups).flat_map(|g| places.iter().enumerate().map(move |row| (g, row))) {
            let r = first_row + row;
            let (codes_at, multipliers_at) = format.group_place(k, g);
            let (group, multipliers) = (&mut panel[multipliers_at..], codes_at - multipliers_at);
            let (multipliers, group) = group.split_at_mut(multipliers);
            // Codes of rows and inputs that do not exist are 0: the linear formats' offset, the table's first entry.
            // The row's multipliers, or the activations beyond K, are 0.
            let mut codes = [0i8; GROUP];
            if r < n {
                let there = &rows.codes[r * k + g * GROUP..][..GROUP.min(k - g * GROUP)];
                match there.first_chunk() {
                    Some(there) => codes = *there,
                    None => codes[..there.len()].copy_from_slice(there),
                }
            }
            let inside = codes.iter().fold(true, |inside, code| inside & (low <= *code) & (*code <= high));
            assert!(inside, "a code of row {r}, group {g} is out of range");
            // The eight codes of a part of the group are neighbours in the panel, too (see `code_place`).
            for (place, codes) in places.iter().zip(codes.as_chunks::<8>().0) {
                let stored = u64::from_le_bytes(codes.map(|code| (code as u8).wrapping_add(offset)));
                if eights {
                    join(group, place.byte, stored);
                    continue;
                }
                join(group, place.byte, (stored & (15 * EACH)) << place.shift);
                if planes {
                    join(group, place.plane_byte, ((stored >> 4) & (3 * EACH)) << place.plane_shift);
                }
            }
            if r >= n {
                continue;
            }
            match &rows.multipliers {
                Multipliers::None => assert_eq!(format.multiplier_bytes(), 0),
                Multipliers::Int(m) => {
                    assert_eq!(format.multiplier_bytes(), 1);
                    multipliers[row] = m[r * groups + g] as u8;
                }
                Multipliers::Half(m) => {
                    assert_eq!(format.multiplier_bytes(), 2);
                    multipliers[2 * row..2 * row + 2].copy_from_slice(&m[r * groups + g].to_le_bytes());
                }
                Multipliers::HalfAndMinimum(m) => {
                    assert_eq!(format.multiplier_bytes(), 4);
                    for (half, at) in m[r * groups + g].iter().zip([2 * row, 2 * (PANEL_ROWS + row)]) {
                        multipliers[at..at + 2].copy_from_slice(&half.to_le_bytes());
                    }
                }
            }
        }
        for (row, scale) in rows.row_scales.iter().skip(first_row).take(PANEL_ROWS).enumerate() {
            let at = format.row_scales_at(k) + 4 * row;
            panel[at..at + 4].copy_from_slice(&scale.to_le_bytes());
        }
    }
}

/// Sets eight bytes' bits beside those that are set already.
#[inline]
fn join(bytes: &mut [u8], at: usize, bits: u64) {
    if let Some(bytes) = bytes[at..].first_chunk_mut::<8>() {
        *bytes = (u64::from_le_bytes(*bytes) | bits).to_le_bytes();
    }
}

/// Packs up to 16 rows of floats (row by row, K each) into one `f32` or `f16` panel; binary16 to nearest even.
///
/// # Panics
/// When `panel` is not exactly [`WeightFormat::panel_bytes`]`(k)` long, `rows` are not whole rows, more than 16, or the
/// format is not a float format.
pub fn pack_float_panel(format: WeightFormat, rows: &[f32], k: usize, panel: &mut [u8]) {
    assert_eq!(panel.len(), format.panel_bytes(k), "panel size");
    assert!(format.is_float());
    panel.fill(0);
    if k == 0 {
        return;
    }
    assert!(rows.len().is_multiple_of(k) && rows.len() <= PANEL_ROWS * k, "rows");
    widest(FloatPanel { format, rows, k, panel });
}

/// The transposition of [`pack_float_panel`].
struct FloatPanel<'a> {
    format: WeightFormat,
    rows: &'a [f32],
    k: usize,
    panel: &'a mut [u8],
}

impl Wide for FloatPanel<'_> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let Self { format, rows, k, panel } = self;
        for from in (0..k).step_by(TILE) {
            let width = TILE.min(k - from);
            if format == WeightFormat::F32 {
                let mut tile = [0u32; TILE * PANEL_ROWS];
                for (row, tile) in rows.chunks_exact(k).zip(tile.as_chunks_mut::<TILE>().0) {
                    for (out, v) in tile.iter_mut().zip(&row[from..from + width]) {
                        *out = v.to_bits();
                    }
                }
                let out = panel[4 * PANEL_ROWS * from..].as_chunks_mut::<4>().0;
                for (out, v) in out[..PANEL_ROWS * width].iter_mut().zip(transposed(tile)) {
                    *out = v.to_le_bytes();
                }
            } else {
                let mut tile = [0u16; TILE * PANEL_ROWS];
                for (row, tile) in rows.chunks_exact(k).zip(tile.as_chunks_mut::<TILE>().0) {
                    for (out, v) in tile.iter_mut().zip(&row[from..from + width]) {
                        *out = f32_to_f16(*v);
                    }
                }
                let out = panel[2 * PANEL_ROWS * from..].as_chunks_mut::<2>().0;
                for (out, v) in out[..PANEL_ROWS * width].iter_mut().zip(transposed(tile)) {
                    *out = v.to_le_bytes();
                }
            }
        }
    }
}

/// Inputs of a tile: as many as a panel has rows, so that it is square.
const TILE: usize = PANEL_ROWS;
const _: () = assert!(TILE == 16, "four halvings");

/// The transpose of a square tile: to take the elements of its two halves in turn moves the number of an element by one
/// bit in a circle; four times brings row and column, of four bits each, into each other's place.
#[inline(always)]
fn transposed<T: Copy + Default>(mut tile: [T; TILE * TILE]) -> [T; TILE * TILE] {
    for _ in 0..4 {
        let mut next = [T::default(); TILE * TILE];
        let (low, high) = tile.split_at(TILE * TILE / 2);
        for ((out, low), high) in next.as_chunks_mut::<2>().0.iter_mut().zip(low).zip(high) {
            *out = [*low, *high];
        }
        tile = next;
    }
    tile
}

/// Packs an N × K weight of floats.
///
/// # Panics
/// When `w` is not N × K or the format is not a float format.
#[must_use]
pub fn pack_float(format: WeightFormat, w: &[f32], n: usize, k: usize) -> Vec<u8> {
    assert_eq!(w.len(), n * k, "weight size");
    let mut out = vec![0; format.tensor_bytes(n, k)];
    if k > 0 {
        for (rows, panel) in w.chunks(PANEL_ROWS * k).zip(out.chunks_exact_mut(format.panel_bytes(k))) {
            pack_float_panel(format, rows, k, panel);
        }
    }
    out
}
