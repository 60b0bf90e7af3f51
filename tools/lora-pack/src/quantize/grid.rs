//! The values that codes of a format stand for, and the nearest of them to a number.

use lora_runtime::kernels::QuantizedRows;
use lora_runtime::weights::{GROUP, WeightFormat};

use super::lanes::{ROUND, limited};

/// The default table of `q4`, as it stands in the file: values + 64.
///
/// Fitted by Lloyd's algorithm to group-normalized weights of real models; 7 bits, so that products of two codes and
/// activations add up in 16 bits on AVX2. Asymmetric on purpose: a group's scale has the sign that puts its largest
/// weight on the long end.
pub const Q4_TABLE: [u8; 16] = [0, 14, 23, 31, 38, 45, 52, 58, 64, 71, 77, 84, 91, 99, 107, 120];

/// The grid of a 4-, 5- or 6-bit format: ascending integer values, one per code.
#[derive(Clone, Debug)]
pub struct Grid {
    /// Values of the codes.
    values: Vec<f32>,
    /// The code of `values[0]`.
    first: i8,
    /// For `q4`, the way to the nearest entry of the table.
    table: Option<Table>,
}

/// The way to the nearest entry of a table. Borders between integers are multiples of one half, so that no half unit has
/// two nearest codes.
#[derive(Clone, Debug)]
struct Table {
    /// The code of each half unit from −64 on.
    nearest: [u8; 256],
    /// The half unit from which on code `i + 1` is the nearest.
    borders: [f32; 15],
}

impl Table {
    fn new(values: &[f32]) -> Self {
        let nearest = std::array::from_fn(|half| {
            let middle = (half as f32 + 0.5) / 2.0 - 64.0;
            let distance = |code: &usize| (values[*code] - middle).abs();
            (0..16).min_by(|a, b| distance(a).total_cmp(&distance(b))).unwrap_or(0) as u8
        });
        let border = |i: usize| nearest.iter().position(|code| usize::from(*code) > i).unwrap_or(256) as f32;
        Self { nearest, borders: std::array::from_fn(border) }
    }

    /// For each number, the one of `values` that belongs to the nearest code. Asking all borders, 32 numbers at once,
    /// takes fewer instructions than looking every number up.
    #[inline(always)]
    fn choose(&self, v: &[f32; GROUP], values: &[f32; 16]) -> [f32; GROUP] {
        // Copies, so that the compiler knows it may read a value before it knows whether it is wanted.
        let (borders, values) = (self.borders, *values);
        let mut out = [0.0; GROUP];
        for (out, v) in out.iter_mut().zip(v) {
            let half = half_units(*v);
            let mut chosen = values[0];
            for (border, value) in borders.iter().zip(&values[1..]) {
                chosen = if half >= *border { *value } else { chosen };
            }
            *out = chosen;
        }
        out
    }
}

/// Half units from −64 on.
#[inline(always)]
fn half_units(v: f32) -> f32 {
    v * 2.0 + 128.0
}

/// The codes of a table.
const CODES: [f32; 16] = [0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0, 10.0, 11.0, 12.0, 13.0, 14.0, 15.0];

impl Grid {
    /// The grid of `format`; `codebook` is the table of `q4`.
    #[must_use]
    pub fn new(format: WeightFormat, codebook: &[u8; 16]) -> Self {
        let range = QuantizedRows::code_range(format);
        if format != WeightFormat::Q4 {
            return Self { values: range.clone().map(f32::from).collect(), first: *range.start(), table: None };
        }
        let values: Vec<f32> = codebook.iter().map(|v| f32::from(*v) - 64.0).collect();
        Self { first: 0, table: Some(Table::new(&values)), values }
    }

    /// Smallest and largest value.
    #[inline]
    #[must_use]
    pub fn ends(&self) -> [f32; 2] {
        [self.values[0], self.values[self.values.len() - 1]]
    }

    /// The code nearest to `v`.
    #[inline]
    #[must_use]
    pub fn code(&self, v: f32) -> i8 {
        match &self.table {
            // A float to integer cast saturates: far below is 0, far above is 255.
            Some(table) => table.nearest[usize::from(half_units(v) as u8)] as i8,
            None => {
                let [low, high] = self.ends();
                (limited(v, low, high) + ROUND).to_bits() as i8
            }
        }
    }

    /// What `code` stands for.
    #[inline]
    #[must_use]
    pub fn value(&self, code: i8) -> f32 {
        self.values[usize::from(code.wrapping_sub(self.first) as u8)]
    }

    /// The codes nearest to the numbers.
    #[inline(always)]
    #[must_use]
    pub fn codes(&self, v: &[f32; GROUP]) -> [i8; GROUP] {
        let nearest = match &self.table {
            Some(table) => table.choose(v, &CODES),
            None => self.nearest(v),
        };
        let mut codes = [0; GROUP];
        for (code, value) in codes.iter_mut().zip(nearest) {
            *code = (value + ROUND).to_bits() as i8;
        }
        codes
    }

    /// The values nearest to the numbers: [`Grid::value`] of [`Grid::codes`].
    #[inline(always)]
    #[must_use]
    pub fn nearest(&self, v: &[f32; GROUP]) -> [f32; GROUP] {
        if let (Some(table), Some(values)) = (&self.table, self.values.first_chunk()) {
            return table.choose(v, values);
        }
        let [low, high] = self.ends();
        let mut out = [0.0; GROUP];
        for (out, v) in out.iter_mut().zip(v) {
            *out = (limited(*v, low, high) + ROUND) - ROUND;
        }
        out
    }
}
