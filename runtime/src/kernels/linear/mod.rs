//! Linear layers: one panel of 16 output rows times a few rows of activations.
//!
//! The caller walks the panels of a weight and the tiles of tokens; threads share the work by panels. The layout of a
//! panel is [`crate::weights`]'s, that of quantized activations [`quantize_row`](super::quantize_row)'s.
//!
//! What is computed, to the bit, by every level (`g` runs over the groups of 32 inputs in order, nothing is fused):
//!
//! ```text
//! q4 q4l q5 q6   d = Σ c[q]·x            exact, in integers
//!                acc = acc + (f32(d) · f32(multiplier)) · xscale[g]          y = acc · S[row]
//! q8 i4 i5       acc = acc + f32(d) · (f32(f16 scale) · xscale[g])           y = acc
//! i4m i5m        acc = acc + (f32(d) · (f32(f16 scale) · xscale[g])
//!                           + f32(Σx) · (f32(f16 min) · xscale[g]))          y = acc
//! q8r            acc = acc + f32(d) · xscale[g]                              y = acc · S[row]
//! f32 f16        p = ((0 + w₀·x₀) + w₁·x₁) + …  over the group's inputs below K
//!                acc = acc + p                                               y = acc
//! ```
//! `|d| < 2^24`, so `f32(d)` is exact and the product with the multiplier is the correctly rounded exact product.

#[cfg(target_arch = "x86_64")]
mod amx;
#[cfg(all(target_arch = "aarch64", target_feature = "neon"))]
mod arm;
#[cfg_attr(
    not(any(
        target_arch = "x86_64",
        all(target_arch = "aarch64", target_feature = "neon"),
        all(target_arch = "wasm32", target_feature = "simd128")
    )),
    expect(dead_code, reason = "without vectors only the formats' names are read")
)]
mod codes;
#[cfg(all(target_arch = "arm", feature = "dsp"))]
mod cortex_m;
mod dequant;
mod float;
#[cfg(any(
    target_arch = "x86_64",
    all(target_arch = "aarch64", target_feature = "neon"),
    all(target_arch = "wasm32", target_feature = "simd128")
))]
mod groups;
#[cfg(any(target_arch = "x86_64", all(target_arch = "wasm32", target_feature = "simd128")))]
mod int;
#[cfg(any(target_arch = "x86_64", all(target_arch = "wasm32", target_feature = "simd128")))]
mod many;
#[cfg(feature = "pack")]
mod pack;
mod plain;
#[cfg(all(test, feature = "pack", feature = "std"))]
mod tests;

use crate::kernels::isa::Isa;
#[cfg(all(target_arch = "arm", feature = "dsp"))]
use crate::kernels::isa::cortex_m::Dsp;
use crate::kernels::isa::scalar::{Lanes, Plain};
use crate::kernels::level::Level;
use crate::kernels::quantize_row::quant_row_used;
use crate::kernels::table::Kernels;
use crate::weights::{PANEL_ROWS, WeightFormat};

pub use dequant::dequant_row;
#[cfg(feature = "pack")]
pub use pack::{Multipliers, QuantizedRows, pack_float, pack_float_panel};

use codes::Codes;
pub(super) use codes::{I4, I4M, I5, I5M, Q4, Q4L, Q5, Q6, Q8, Q8R};
pub(super) use float::{Half, Single, add_thin};

/// Most tokens that one call of [`Kernels::linear_panel`] takes: more where they share a panel's unpacking.
pub const MAX_TOKENS: usize =
    if cfg!(any(target_arch = "x86_64", all(target_arch = "aarch64", target_feature = "neon"))) { 64 } else { 16 };

/// Most panels that [`Kernels::sharing_panels`] tells.
pub const MAX_SHARING_PANELS: usize = if cfg!(target_arch = "x86_64") {
    8
} else if cfg!(all(target_arch = "aarch64", target_feature = "neon")) {
    4
} else {
    1
};

/// Room for the sums of `N` rows of a panel. Registers hold 4, 8 or 16 of them: on the boundary of a line none lies across two,
/// whose loads and stores would take twice the time.
#[cfg_attr(any(target_arch = "x86_64", target_arch = "aarch64"), repr(align(64)))]
pub struct Sums<const N: usize>(pub [[f32; PANEL_ROWS]; N]);

impl<const N: usize> Sums<N> {
    /// Zeros.
    pub const ZEROS: Self = Self([[0.0; PANEL_ROWS]; N]);
}

/// Rows of activations: quantized rows for quantized weights, f32 rows (little-endian, as on every supported CPU)
/// for float weights.
#[derive(Clone, Copy, Debug)]
pub struct ActRows<'a> {
    bytes: &'a [u8],
    stride: usize,
}

impl<'a> ActRows<'a> {
    /// Rows that begin every `stride` bytes.
    #[must_use]
    pub fn new(bytes: &'a [u8], stride: usize) -> Self {
        Self { bytes, stride }
    }
    /// Float rows that begin every `stride` elements.
    #[must_use]
    pub fn floats(rows: &'a [f32], stride: usize) -> Self {
        Self { bytes: bytemuck::cast_slice(rows), stride: 4 * stride }
    }
    /// Panics unless there are `count` rows of at least `row` bytes.
    #[inline]
    fn check(&self, count: usize, row: usize) {
        let end = self.stride.checked_mul(count - 1).and_then(|last| last.checked_add(row));
        assert!(end.is_some_and(|end| end <= self.bytes.len()), "activation rows too short");
    }
    /// The rows from number `n` on.
    ///
    /// # Panics
    /// When there are fewer.
    #[must_use]
    pub fn skip(self, n: usize) -> Self {
        Self { bytes: &self.bytes[n * self.stride..], stride: self.stride }
    }
}

/// Operands of the linear entries.
///
/// - `panel` is valid for reading `panels` panels of the format and `k` (of a float format, `k` inputs without padding) that
///   follow each other `panel_bytes` apart, `row_scales` points to the first one's row scales (or its end, if the format has
///   none), `codebook` is valid for reading 16 bytes.
/// - Row `t < tokens` at `x + t·stride` is valid for reading a quantized row's used part (or `k` f32).
/// - `out` has `tokens` rows for each panel, of zeros if there are no inputs or the level adds to them; `1 <= tokens <= MAX_TOKENS`.
/// - No pointer needs alignment.
#[derive(Clone, Copy)]
pub(super) struct LinearArgs {
    panel: *const u8,
    panels: usize,
    panel_bytes: usize,
    row_scales: *const f32,
    codebook: *const u8,
    k: usize,
    x: *const u8,
    stride: usize,
    tokens: usize,
    out: *mut [f32; PANEL_ROWS],
}

/// Operands of the thin entries.
///
/// - `panels` is valid for reading `count` thin panels of the format and `k`.
/// - Row `t < tokens` at `x + t·stride` is valid for reading `k` f32.
/// - `out` holds `tokens` rows of sums for the first panel, then those for the next.
/// - No pointer needs alignment.
#[derive(Clone, Copy)]
pub(super) struct ThinArgs {
    panels: *const u8,
    count: usize,
    k: usize,
    x: *const u8,
    stride: usize,
    tokens: usize,
    out: *mut [f32; PANEL_ROWS],
}

impl LinearArgs {
    /// Panel number `i` alone.
    #[inline(always)]
    fn panel(self, i: usize) -> Self {
        let bytes = i * self.panel_bytes;
        Self {
            panel: self.panel.wrapping_add(bytes),
            panels: 1,
            row_scales: self.row_scales.wrapping_byte_add(bytes),
            out: self.out.wrapping_add(i * self.tokens),
            ..self
        }
    }
    /// Calls `f` with each panel.
    #[inline(always)]
    fn each_panel(self, mut f: impl FnMut(Self)) {
        let mut i = 0;
        while i < self.panels {
            f(self.panel(i));
            i += 1;
        }
    }
}

/// The body of a level's integer entries.
pub(super) trait IntPanel: Isa {
    /// A panel.
    ///
    /// # Safety
    /// As [`LinearArgs`] says; the panel is of `C`'s format.
    unsafe fn int_panel<C: Codes>(self, a: LinearArgs);

    /// All panels, for levels where they share something.
    ///
    /// # Safety
    /// As [`LinearArgs`] says; the panels are of `C`'s format.
    #[inline(always)]
    unsafe fn int_panels<C: Codes>(self, a: LinearArgs) {
        a.each_panel(
            #[inline(always)]
            |a| {
                // SAFETY: passed on.
                unsafe { self.int_panel::<C>(a) }
            },
        );
    }
}

impl<const L: usize> IntPanel for Lanes<L, Plain> {
    #[inline(always)]
    unsafe fn int_panel<C: Codes>(self, a: LinearArgs) {
        // SAFETY: passed on.
        unsafe { plain::panel(C::FORMAT, a) }
    }
}

#[cfg(all(target_arch = "arm", feature = "dsp"))]
impl IntPanel for Dsp {
    #[inline(always)]
    unsafe fn int_panel<C: Codes>(self, a: LinearArgs) {
        // SAFETY: passed on.
        unsafe { cortex_m::panels(self, C::FORMAT, a) }
    }
    #[inline(always)]
    unsafe fn int_panels<C: Codes>(self, a: LinearArgs) {
        // SAFETY: passed on.
        unsafe { cortex_m::panels(self, C::FORMAT, a) }
    }
}

/// Levels with the general body.
#[cfg(any(target_arch = "x86_64", all(target_arch = "wasm32", target_feature = "simd128")))]
mod general {
    use super::{Codes, IntPanel, LinearArgs, int};
    #[cfg(all(target_arch = "wasm32", target_feature = "simd128"))]
    use crate::kernels::isa::wasm::Simd128;
    #[cfg(target_arch = "x86_64")]
    use crate::kernels::isa::x86::{Avx512, Dot, Sse41, Ymm};

    macro_rules! general {
        ($(#[$when:meta] $({$($of:tt)+})? $level:ty),+ $(,)?) => {$(
            #[$when]
            impl$(<$($of)+>)? IntPanel for $level {
                #[inline(always)]
                unsafe fn int_panel<C: Codes>(self, a: LinearArgs) {
                    // SAFETY: passed on.
                    unsafe { int::panels::<Self, C>(self, a) }
                }
                #[inline(always)]
                unsafe fn int_panels<C: Codes>(self, a: LinearArgs) {
                    // SAFETY: passed on.
                    unsafe { int::panels::<Self, C>(self, a) }
                }
            }
        )+};
    }
    general! {
        #[cfg(target_arch = "x86_64")] Sse41,
        #[cfg(target_arch = "x86_64")] {D: Dot} Ymm<D>,
        #[cfg(target_arch = "x86_64")] Avx512,
        #[cfg(all(target_arch = "wasm32", target_feature = "simd128"))] Simd128,
    }
}

/// The body of the integer linear entries.
///
/// # Safety
/// As [`LinearArgs`] says; the panels are of `C`'s format.
#[inline(always)]
pub(super) unsafe fn int_panels<I: IntPanel, C: Codes>(isa: I, a: LinearArgs) {
    // SAFETY: passed on.
    unsafe { isa.int_panels::<C>(a) }
}

/// The body of the float linear entries.
///
/// # Safety
/// As [`LinearArgs`] says; the panels are of `W`'s format.
#[inline(always)]
pub(super) unsafe fn float_panels<I: Isa, W: float::Stored>(isa: I, a: LinearArgs) {
    // Without inputs the zeros stay; writing them would be a call.
    if a.k == 0 {
        return;
    }
    a.each_panel(
        #[inline(always)]
        |a| {
            // SAFETY: passed on.
            unsafe { float::panel::<I, W>(isa, a) }
        },
    );
}

impl Kernels {
    /// How many panels a call for several tokens should have: more than one where levels bring activations into an order
    /// of their own first, or work in stages that run on from panel to panel.
    #[must_use]
    pub fn sharing_panels(&self) -> usize {
        match self.level() {
            Level::Scalar | Level::Neon | Level::Dsp => 1,
            _ => MAX_SHARING_PANELS,
        }
    }

    /// How many tokens a call should have at most: as many as gain by sharing an unpacking while their activations stay in the
    /// first-level cache.
    #[must_use]
    pub fn tokens_at_once(&self) -> usize {
        match self.level() {
            Level::Scalar => 16,
            Level::Sse41 | Level::Avx2 | Level::AvxVnni | Level::Avx512 => 32,
            _ => MAX_TOKENS,
        }
    }

    /// Whether the level's integer entries add to what `out` holds, instead of writing it.
    fn adds_to_zeros(&self) -> bool {
        !matches!(self.level(), Level::Sse41 | Level::Avx2 | Level::AvxVnni | Level::Avx512 | Level::Simd128)
    }

    /// Multiplies one panel by `out.len()` rows of activations (1…[`MAX_TOKENS`]): `out[t][r]` is row `r` of the panel
    /// times row `t` of `x`, row scale included.
    ///
    /// `codebook` is the file's table for [`WeightFormat::Q4`] (values + 64, at most 127), and is not read otherwise.
    /// Panels should be 64-byte aligned, for speed.
    ///
    /// # Panics
    /// When the panel is not exactly [`WeightFormat::panel_bytes`]`(k)` long, the rows end before the last token's, or
    /// `out` has no or too many rows.
    pub fn linear_panel(
        &self,
        format: WeightFormat,
        codebook: &[u8; 16],
        panel: &[u8],
        k: usize,
        x: ActRows<'_>,
        out: &mut [[f32; PANEL_ROWS]],
    ) {
        self.linear_panels(format, codebook, panel, k, x, out.len(), out);
    }

    /// [`Kernels::linear_panel`] for panels that follow each other: `out` holds `tokens` rows of the first, then those of
    /// the next.
    ///
    /// # Panics
    /// As [`Kernels::linear_panel`]; when `out` has not `tokens` rows for each panel.
    #[allow(clippy::too_many_arguments, reason = "a matrix, its input and its output")]
    pub fn linear_panels(
        &self,
        format: WeightFormat,
        codebook: &[u8; 16],
        panels: &[u8],
        k: usize,
        x: ActRows<'_>,
        tokens: usize,
        out: &mut [[f32; PANEL_ROWS]],
    ) {
        assert!((1..=MAX_TOKENS).contains(&tokens), "tokens out of range");
        let bytes = format.panel_bytes(k);
        assert!(
            out.len().is_multiple_of(tokens) && (out.len() / tokens).checked_mul(bytes) == Some(panels.len()),
            "panel size"
        );
        let row = if format.is_float() { 4 * k } else { quant_row_used(k) };
        x.check(tokens, row);
        let entry = match format {
            WeightFormat::F32 => self.linear_f32,
            WeightFormat::F16 => self.linear_f16,
            WeightFormat::Q8 => self.linear_q8,
            WeightFormat::Q8R => self.linear_q8r,
            WeightFormat::Q4 => self.linear_q4,
            WeightFormat::Q4L => self.linear_q4l,
            WeightFormat::Q5 => self.linear_q5,
            WeightFormat::Q6 => self.linear_q6,
            WeightFormat::I4 => self.linear_i4,
            WeightFormat::I4M => self.linear_i4m,
            WeightFormat::I5 => self.linear_i5,
            WeightFormat::I5M => self.linear_i5m,
        };
        if k == 0 || !format.is_float() && self.adds_to_zeros() {
            out.fill([0.0; PANEL_ROWS]);
        }
        let Some(first) = panels.get(..bytes) else { return };
        let args = LinearArgs {
            panel: panels.as_ptr(),
            panels: out.len() / tokens,
            panel_bytes: bytes,
            row_scales: first[bytes - format.row_scale_bytes()..].as_ptr().cast(),
            codebook: codebook.as_ptr(),
            k,
            x: x.bytes.as_ptr(),
            stride: x.stride,
            tokens,
            out: out.as_mut_ptr(),
        };
        // SAFETY: the assertions above are the entry's conditions.
        unsafe { entry(args) }
    }

    /// Multiplies thin panels of `k` inputs (a float format without padding) that follow each other by `tokens` rows of
    /// floats, and adds the products to `out`, which holds `tokens` rows for the first panel, then those for the next. The
    /// products' bits are those of [`Kernels::linear_panel`] with the padded panel.
    ///
    /// # Panics
    /// When `panels` is not [`WeightFormat::thin_panel_bytes`]`(k)` bytes for every `tokens` rows of `out`, or of an integer
    /// format; when the rows end before the last token's; when there are no or more than [`MAX_TOKENS`] tokens.
    pub fn add_thin_panels(
        &self,
        format: WeightFormat,
        panels: &[u8],
        k: usize,
        x: ActRows<'_>,
        tokens: usize,
        out: &mut [[f32; PANEL_ROWS]],
    ) {
        assert!((1..=MAX_TOKENS).contains(&tokens), "tokens out of range");
        let (count, bytes) = (out.len() / tokens, format.thin_panel_bytes(k));
        assert!(count * tokens == out.len() && count.checked_mul(bytes) == Some(panels.len()), "panel size");
        x.check(tokens, 4 * k);
        let entry = match format {
            WeightFormat::F32 => self.add_thin_f32,
            WeightFormat::F16 => self.add_thin_f16,
            _ => panic!("thin panels hold floats"),
        };
        let args = ThinArgs {
            panels: panels.as_ptr(),
            count,
            k,
            x: x.bytes.as_ptr(),
            stride: x.stride,
            tokens,
            out: out.as_mut_ptr(),
        };
        // SAFETY: the assertions above are the entry's conditions.
        unsafe { entry(args) }
    }
}
