//! The values that codes of a format stand for, and the nearest of them to a number.

use lora_runtime::kernels::QuantizedRows;
use lora_runtime::weights::WeightFormat;

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
    /// For `q4`, the code nearest to the interval `i/2 − 64 .. (i+1)/2 − 64`; borders between codes are multiples
    /// of one half, so that no interval has two nearest codes.
    nearest: Option<Box<[u8; 256]>>,
    /// What those codes stand for.
    nearest_value: Option<Box<[f32; 256]>>,
    /// The code of `values[0]`.
    first: i8,
}

/// Added and taken off again, it rounds a number below 2²² to the nearest integer, ties to even, without a call.
const ROUND: f32 = 12_582_912.0;

impl Grid {
    /// The grid of `format`; `codebook` is the table of `q4`.
    #[must_use]
    pub fn new(format: WeightFormat, codebook: &[u8; 16]) -> Self {
        let range = QuantizedRows::code_range(format);
        if format != WeightFormat::Q4 {
            return Self {
                values: range.clone().map(f32::from).collect(),
                nearest: None,
                nearest_value: None,
                first: *range.start(),
            };
        }
        let values: Vec<f32> = codebook.iter().map(|v| f32::from(*v) - 64.0).collect();
        let nearest: Box<[u8; 256]> = Box::new(core::array::from_fn(|i| {
            let middle = (i as f32 + 0.5) / 2.0 - 64.0;
            let distance = |code: &usize| (values[*code] - middle).abs();
            (0..16).min_by(|a, b| distance(a).total_cmp(&distance(b))).unwrap_or(0) as u8
        }));
        let nearest_value = Box::new(core::array::from_fn(|i| values[usize::from(nearest[i])]));
        Self { values, nearest: Some(nearest), nearest_value: Some(nearest_value), first: 0 }
    }

    /// Smallest and largest value.
    #[must_use]
    pub fn ends(&self) -> [f32; 2] {
        [self.values[0], self.values[self.values.len() - 1]]
    }

    /// The code nearest to `v`.
    #[inline]
    #[must_use]
    pub fn code(&self, v: f32) -> i8 {
        match &self.nearest {
            // A float to integer cast saturates: far below is 0, far above is 255.
            Some(nearest) => nearest[usize::from((v * 2.0 + 128.0) as u8)] as i8,
            None => {
                let [low, high] = self.ends();
                ((v.clamp(low, high) + ROUND) - ROUND) as i8
            }
        }
    }

    /// What `code` stands for.
    #[inline]
    #[must_use]
    pub fn value(&self, code: i8) -> f32 {
        self.values[usize::from(code.wrapping_sub(self.first) as u8)]
    }

    /// The value nearest to `v`: [`Grid::value`] of [`Grid::code`].
    #[inline]
    #[must_use]
    pub fn nearest(&self, v: f32) -> f32 {
        self.nearest_all(&[v])[0]
    }

    /// [`Grid::nearest`] of many, in a form that compilers turn into vector instructions.
    #[inline]
    #[must_use]
    pub fn nearest_all<const N: usize>(&self, v: &[f32; N]) -> [f32; N] {
        match &self.nearest_value {
            Some(nearest) => v.map(|v| nearest[usize::from((v * 2.0 + 128.0) as u8)]),
            None => {
                let [low, high] = self.ends();
                v.map(|v| {
                    (if v < low {
                        low
                    } else if v > high {
                        high
                    } else {
                        v
                    } + ROUND)
                        - ROUND
                })
            }
        }
    }
}
