//! Element by element: sums, products, scales, soft caps, activations and gates.
//!
//! Each output is computed from the inputs of its own index alone, by the operations written in each function's
//! definition, each rounded; the activations are those of [`math`]. Outputs may be one of the
//! inputs (the `_in_place` methods).

use super::isa::Isa;
use super::reduce::{has_rest, map, zip};
use super::{Kernels, math};

#[cfg(test)]
mod tests;

/// An activation function. The numbers are part of the file format.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u16)]
pub enum Act {
    /// x.
    None = 0,
    /// max(x, 0).
    Relu = 1,
    /// x·sigmoid(x).
    Silu = 2,
    /// x·Φ(x) through erf (`gelu`).
    Gelu = 3,
    /// GELU through tanh (`gelu_new`, `gelu_pytorch_tanh`, `gelu_fast`).
    GeluTanh = 4,
    /// x·sigmoid(1.702·x).
    QuickGelu = 5,
    /// tanh x.
    Tanh = 6,
    /// 1/(1 + exp(−x)).
    Sigmoid = 7,
    /// max(x, 0)².
    Relu2 = 8,
}

impl Act {
    /// Every activation, in the order of their numbers.
    pub const ALL: [Self; 9] = [
        Self::None,
        Self::Relu,
        Self::Silu,
        Self::Gelu,
        Self::GeluTanh,
        Self::QuickGelu,
        Self::Tanh,
        Self::Sigmoid,
        Self::Relu2,
    ];

    /// The activation of that number in a file.
    #[must_use]
    pub fn from_u16(number: u16) -> Option<Self> {
        Self::ALL.get(usize::from(number)).copied()
    }
}

/// `out[i] = act(x[i])`, or `act(x[i]) · up[i]` where `up` is not null.
///
/// # Safety
/// `x` (and `up`) valid for reading, `out` for writing `n` floats; `out` is one of them or overlaps none.
#[inline(always)]
pub unsafe fn activate<I: Isa>(isa: I, act: Act, x: *const f32, up: *const f32, out: *mut f32, n: usize) {
    #[inline(always)]
    unsafe fn run<I: Isa>(
        isa: I,
        (x, up, out, n): (*const f32, *const f32, *mut f32, usize),
        f: impl Fn(I::F) -> I::F,
    ) {
        // SAFETY: passed on.
        unsafe {
            if !has_rest::<I>() {
                // One copy of `f` where code size counts.
                let mut i = 0;
                while i < n {
                    let y = f(isa.load(x.add(i)));
                    let y = if up.is_null() { y } else { isa.mul(y, isa.load(up.add(i))) };
                    isa.store(out.add(i), y);
                    i += 1;
                }
            } else if up.is_null() {
                map(isa, x, out, n, f);
            } else {
                zip(
                    isa,
                    x,
                    up,
                    out,
                    n,
                    #[inline(always)]
                    |x, up| isa.mul(f(x), up),
                );
            }
        }
    }
    // A closure of its own for each: only closures and functions that are always inlined get the level's instructions,
    // and a function's name passed as a value is neither.
    macro_rules! run {
        ($f:ident) => {
            run(
                isa,
                (x, up, out, n),
                #[inline(always)]
                |x| math::$f(isa, x),
            )
        };
    }
    // SAFETY: passed on.
    unsafe {
        match act {
            Act::None => run!(identity),
            Act::Relu => run!(relu),
            Act::Silu => run!(silu),
            Act::Gelu => run!(gelu),
            Act::GeluTanh => run!(gelu_tanh),
            Act::QuickGelu => run!(quick_gelu),
            Act::Tanh => run!(tanh),
            Act::Sigmoid => run!(sigmoid),
            Act::Relu2 => run!(relu2),
        }
    }
}

/// `out[i] = a[i] + b[i]`.
///
/// # Safety
/// `a` and `b` valid for reading, `out` for writing `n` floats; `out` is one of them or overlaps neither.
#[inline(always)]
pub unsafe fn add<I: Isa>(isa: I, a: *const f32, b: *const f32, out: *mut f32, n: usize) {
    // SAFETY: passed on.
    unsafe {
        zip(
            isa,
            a,
            b,
            out,
            n,
            #[inline(always)]
            |a, b| isa.add(a, b),
        )
    }
}

/// `out[i] = a[i] · b[i]`.
///
/// # Safety
/// As [`add`].
#[inline(always)]
pub unsafe fn mul<I: Isa>(isa: I, a: *const f32, b: *const f32, out: *mut f32, n: usize) {
    // SAFETY: passed on.
    unsafe {
        zip(
            isa,
            a,
            b,
            out,
            n,
            #[inline(always)]
            |a, b| isa.mul(a, b),
        )
    }
}

/// `out[i] = a[i] + b[i]·s`.
///
/// # Safety
/// As [`add`].
#[inline(always)]
pub unsafe fn add_scaled<I: Isa>(isa: I, a: *const f32, b: *const f32, s: f32, out: *mut f32, n: usize) {
    let s = isa.splat(s);
    // SAFETY: passed on.
    unsafe {
        zip(
            isa,
            a,
            b,
            out,
            n,
            #[inline(always)]
            |a, b| isa.add(a, isa.mul(b, s)),
        )
    }
}

/// `out[i] = x[i] · s`.
///
/// # Safety
/// `x` valid for reading, `out` for writing `n` floats; `out` is `x` or does not overlap it.
#[inline(always)]
pub unsafe fn scale<I: Isa>(isa: I, x: *const f32, s: f32, out: *mut f32, n: usize) {
    let s = isa.splat(s);
    // SAFETY: passed on.
    unsafe {
        map(
            isa,
            x,
            out,
            n,
            #[inline(always)]
            |x| isa.mul(x, s),
        )
    }
}

/// `out[i] = cap · tanh(x[i] / cap)`.
///
/// # Safety
/// As [`scale`].
#[inline(always)]
pub unsafe fn softcap<I: Isa>(isa: I, x: *const f32, cap: f32, out: *mut f32, n: usize) {
    let cap = isa.splat(cap);
    // SAFETY: passed on.
    unsafe {
        map(
            isa,
            x,
            out,
            n,
            #[inline(always)]
            |x| isa.mul(cap, math::tanh(isa, isa.div(x, cap))),
        )
    }
}

/// The methods panic where lengths differ.
impl Kernels {
    /// `out[i] = act(x[i])`.
    pub fn activation(&self, act: Act, x: &[f32], out: &mut [f32]) {
        assert!(x.len() == out.len());
        // SAFETY: two slices of one length; the table fits the CPU.
        unsafe { (self.activate)(act, x.as_ptr(), core::ptr::null(), out.as_mut_ptr(), x.len()) }
    }

    /// `x[i] = act(x[i])`.
    pub fn activation_in_place(&self, act: Act, x: &mut [f32]) {
        let p = x.as_mut_ptr();
        // SAFETY: one slice; the table fits the CPU.
        unsafe { (self.activate)(act, p, core::ptr::null(), p, x.len()) }
    }

    /// `out[i] = act(gate[i]) · up[i]`.
    pub fn gated(&self, act: Act, gate: &[f32], up: &[f32], out: &mut [f32]) {
        assert!(gate.len() == out.len() && up.len() == out.len());
        // SAFETY: three slices of one length; the table fits the CPU.
        unsafe { (self.activate)(act, gate.as_ptr(), up.as_ptr(), out.as_mut_ptr(), out.len()) }
    }

    /// `gate[i] = act(gate[i]) · up[i]`.
    pub fn gated_in_place(&self, act: Act, gate: &mut [f32], up: &[f32]) {
        assert!(gate.len() == up.len());
        let p = gate.as_mut_ptr();
        // SAFETY: two slices of one length; the table fits the CPU.
        unsafe { (self.activate)(act, p, up.as_ptr(), p, gate.len()) }
    }

    /// `out[i] = a[i] + b[i]`.
    pub fn add(&self, a: &[f32], b: &[f32], out: &mut [f32]) {
        assert!(a.len() == out.len() && b.len() == out.len());
        // SAFETY: three slices of one length; the table fits the CPU.
        unsafe { (self.add)(a.as_ptr(), b.as_ptr(), out.as_mut_ptr(), out.len()) }
    }

    /// `a[i] += b[i]`.
    pub fn add_assign(&self, a: &mut [f32], b: &[f32]) {
        assert!(a.len() == b.len());
        let p = a.as_mut_ptr();
        // SAFETY: two slices of one length; the table fits the CPU.
        unsafe { (self.add)(p, b.as_ptr(), p, a.len()) }
    }

    /// Adds `bias` to every row of `rows` (rows of the bias's length).
    pub fn add_bias(&self, rows: &mut [f32], bias: &[f32]) {
        if bias.is_empty() {
            return assert!(rows.is_empty());
        }
        assert!(rows.len().is_multiple_of(bias.len()));
        for row in rows.chunks_exact_mut(bias.len()) {
            self.add_assign(row, bias);
        }
    }

    /// `out[i] = a[i] + b[i]·s`.
    pub fn add_scaled(&self, a: &[f32], b: &[f32], s: f32, out: &mut [f32]) {
        assert!(a.len() == out.len() && b.len() == out.len());
        // SAFETY: three slices of one length; the table fits the CPU.
        unsafe { (self.add_scaled)(a.as_ptr(), b.as_ptr(), s, out.as_mut_ptr(), out.len()) }
    }

    /// `a[i] += b[i]·s`.
    pub fn add_scaled_assign(&self, a: &mut [f32], b: &[f32], s: f32) {
        assert!(a.len() == b.len());
        let p = a.as_mut_ptr();
        // SAFETY: two slices of one length; the table fits the CPU.
        unsafe { (self.add_scaled)(p, b.as_ptr(), s, p, a.len()) }
    }

    /// `out[i] = a[i] · b[i]`.
    pub fn mul(&self, a: &[f32], b: &[f32], out: &mut [f32]) {
        assert!(a.len() == out.len() && b.len() == out.len());
        // SAFETY: three slices of one length; the table fits the CPU.
        unsafe { (self.mul)(a.as_ptr(), b.as_ptr(), out.as_mut_ptr(), out.len()) }
    }

    /// `a[i] *= b[i]`.
    pub fn mul_assign(&self, a: &mut [f32], b: &[f32]) {
        assert!(a.len() == b.len());
        let p = a.as_mut_ptr();
        // SAFETY: two slices of one length; the table fits the CPU.
        unsafe { (self.mul)(p, b.as_ptr(), p, a.len()) }
    }

    /// `out[i] = x[i] · s`.
    pub fn scale(&self, x: &[f32], s: f32, out: &mut [f32]) {
        assert!(x.len() == out.len());
        // SAFETY: two slices of one length; the table fits the CPU.
        unsafe { (self.scale)(x.as_ptr(), s, out.as_mut_ptr(), x.len()) }
    }

    /// `x[i] *= s`.
    pub fn scale_in_place(&self, x: &mut [f32], s: f32) {
        let p = x.as_mut_ptr();
        // SAFETY: one slice; the table fits the CPU.
        unsafe { (self.scale)(p, s, p, x.len()) }
    }

    /// `x[i] = cap · tanh(x[i] / cap)`.
    pub fn softcap_in_place(&self, x: &mut [f32], cap: f32) {
        let p = x.as_mut_ptr();
        // SAFETY: one slice; the table fits the CPU.
        unsafe { (self.softcap)(p, cap, p, x.len()) }
    }
}
