//! RMS norm and layer norm of one row.
//!
//! Sums are row sums on 16 lanes (see [`reduce`](super::reduce)), everything else is one rounded operation after the
//! other as written. In formulas `n` is the row's length as a float.

use super::Kernels;
use super::isa::Isa;
use super::reduce::{map, sum, zip};

#[cfg(test)]
mod tests;

/// `1 / √(total / n + eps)` in every lane.
#[inline(always)]
fn inverse_deviation<I: Isa>(isa: I, total: f32, n: usize, eps: f32) -> I::F {
    let mean = isa.splat(total / n as f32);
    isa.div(isa.splat(1.0), isa.sqrt(isa.add(mean, isa.splat(eps))))
}

/// `out = (x · r) · weight`, `r = 1 / √(Σx² / n + eps)`; without the last factor where `weight` is null.
///
/// # Safety
/// `x` (and `weight`) valid for reading, `out` for writing `n` floats; `out` is `x` or overlaps neither.
#[inline(always)]
pub unsafe fn rms_norm<I: Isa>(isa: I, x: *const f32, weight: *const f32, eps: f32, out: *mut f32, n: usize) {
    // SAFETY: passed on.
    unsafe {
        let r = inverse_deviation(
            isa,
            sum(
                isa,
                x,
                n,
                0.0,
                #[inline(always)]
                |x| isa.mul(x, x),
            ),
            n,
            eps,
        );
        if weight.is_null() {
            map(
                isa,
                x,
                out,
                n,
                #[inline(always)]
                |x| isa.mul(x, r),
            );
        } else {
            zip(
                isa,
                x,
                weight,
                out,
                n,
                #[inline(always)]
                |x, w| isa.mul(isa.mul(x, r), w),
            );
        }
    }
}

/// `out = ((x − m) · r) · weight + bias`, `m = Σx / n`, `r = 1 / √(Σ(x − m)² / n + eps)`; without the factor or the
/// summand whose pointer is null.
///
/// # Safety
/// `x` (and `weight`, `bias`) valid for reading, `out` for writing `n` floats; `out` is `x` or overlaps none.
#[inline(always)]
pub unsafe fn layer_norm<I: Isa>(
    isa: I,
    x: *const f32,
    weight: *const f32,
    bias: *const f32,
    eps: f32,
    out: *mut f32,
    n: usize,
) {
    // SAFETY: passed on. The last passes run in place over `out`, which is written by then.
    unsafe {
        let mean = sum(
            isa,
            x,
            n,
            0.0,
            #[inline(always)]
            |x| x,
        ) / n as f32;
        let m = isa.splat(mean);
        // Padding with the mean makes the deviations of the padding 0.
        let squares = sum(
            isa,
            x,
            n,
            mean,
            #[inline(always)]
            |x| {
                let d = isa.sub(x, m);
                isa.mul(d, d)
            },
        );
        let r = inverse_deviation(isa, squares, n, eps);
        if weight.is_null() {
            map(
                isa,
                x,
                out,
                n,
                #[inline(always)]
                |x| isa.mul(isa.sub(x, m), r),
            );
        } else {
            zip(
                isa,
                x,
                weight,
                out,
                n,
                #[inline(always)]
                |x, w| isa.mul(isa.mul(isa.sub(x, m), r), w),
            );
        }
        if !bias.is_null() {
            zip(
                isa,
                out,
                bias,
                out,
                n,
                #[inline(always)]
                |x, b| isa.add(x, b),
            );
        }
    }
}

/// The pointer of a slice that must have `n` elements, null for none.
fn pointer(slice: Option<&[f32]>, n: usize) -> *const f32 {
    slice.map_or(core::ptr::null(), |slice| {
        assert!(slice.len() == n);
        slice.as_ptr()
    })
}

/// The methods panic where lengths differ. A per-head norm is a norm of each head's slice.
impl Kernels {
    /// `out = x / √(mean(x²) + eps) · weight` (a weight of `None` is all ones).
    pub fn rms_norm(&self, x: &[f32], weight: Option<&[f32]>, eps: f32, out: &mut [f32]) {
        assert!(x.len() == out.len());
        // SAFETY: slices of one length; the table fits the CPU.
        unsafe { (self.rms_norm)(x.as_ptr(), pointer(weight, x.len()), eps, out.as_mut_ptr(), x.len()) }
    }

    /// [`Kernels::rms_norm`] over its own input.
    pub fn rms_norm_in_place(&self, x: &mut [f32], weight: Option<&[f32]>, eps: f32) {
        let p = x.as_mut_ptr();
        // SAFETY: slices of one length; the table fits the CPU.
        unsafe { (self.rms_norm)(p, pointer(weight, x.len()), eps, p, x.len()) }
    }

    /// `out = (x − mean) / √(variance + eps) · weight + bias` (`None` is all ones, all zeros).
    pub fn layer_norm(&self, x: &[f32], weight: Option<&[f32]>, bias: Option<&[f32]>, eps: f32, out: &mut [f32]) {
        let n = x.len();
        assert!(n == out.len());
        // SAFETY: slices of one length; the table fits the CPU.
        unsafe { (self.layer_norm)(x.as_ptr(), pointer(weight, n), pointer(bias, n), eps, out.as_mut_ptr(), n) }
    }

    /// [`Kernels::layer_norm`] over its own input.
    pub fn layer_norm_in_place(&self, x: &mut [f32], weight: Option<&[f32]>, bias: Option<&[f32]>, eps: f32) {
        let (p, n) = (x.as_mut_ptr(), x.len());
        // SAFETY: slices of one length; the table fits the CPU.
        unsafe { (self.layer_norm)(p, pointer(weight, n), pointer(bias, n), eps, p, n) }
    }
}
