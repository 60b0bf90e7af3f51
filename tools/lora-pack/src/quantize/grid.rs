//! The values that codes of a format stand for, and the nearest of them to a number.

use lora_runtime::kernels::{Nearest, QuantizedRows, half_unit, nearest_values};
use lora_runtime::weights::{GROUP, WeightFormat};

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
    /// The way to the nearest value.
    nearest: Nearest,
    /// The way to its code.
    codes: Nearest,
    /// The code of each half unit from 0 on, then from −128 on: one at a time, looking up is faster.
    by_half: [i8; 256],
}

impl Grid {
    /// The grid of `format`; `codebook` is the table of `q4`.
    #[must_use]
    pub fn new(format: WeightFormat, codebook: &[u8; 16]) -> Self {
        let range = QuantizedRows::code_range(format);
        let first = *range.start();
        let (values, nearest, codes): (Vec<i8>, _, _) = if format == WeightFormat::Q4 {
            let table = codebook.map(|v| v.wrapping_sub(64) as i8);
            let numbers = std::array::from_fn(|code| code as i8);
            (table.to_vec(), Nearest::of_table(&table, &table), Nearest::of_table(&table, &numbers))
        } else {
            let even = Nearest::Even(first, *range.end());
            (range.clone().collect(), even.clone(), even)
        };
        let by_half = std::array::from_fn(|half| codes.value(half as u8 as i8));
        Self { values: values.into_iter().map(f32::from).collect(), first, nearest, codes, by_half }
    }

    /// Smallest and largest value.
    #[inline]
    #[must_use]
    pub fn ends(&self) -> [f32; 2] {
        [self.values[0], self.values[self.values.len() - 1]]
    }

    /// The way from a half unit to the nearest value.
    #[inline]
    #[must_use]
    pub fn nearest(&self) -> &Nearest {
        &self.nearest
    }

    /// The code nearest to `v`.
    #[inline(always)]
    #[must_use]
    pub fn code(&self, v: f32) -> i8 {
        self.by_half[usize::from(half_unit(v * 2.0) as u8)]
    }

    /// What `code` stands for.
    #[inline]
    #[must_use]
    pub fn value(&self, code: i8) -> f32 {
        self.values[usize::from(code.wrapping_sub(self.first) as u8)]
    }

    /// The codes nearest to `w`, where `halves` brings it to half units.
    #[inline]
    #[must_use]
    pub fn codes(&self, w: &[f32; GROUP], halves: f32) -> [i8; GROUP] {
        nearest_values(&self.codes, w, halves)
    }
}
