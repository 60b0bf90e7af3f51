//! Softmax of a row, and the largest elements of a row.

use super::Kernels;
use super::isa::{Isa, LANES, sum_lanes};
use super::math::exp;
use super::reduce::{MAX_REGS, copy_few, map, max};

#[cfg(test)]
mod tests;

/// Elements looked at together before the row is searched more closely.
const BLOCK: usize = 128;

/// `x[i] = exp(x[i] − m)` for 16 elements, added to `acc`.
///
/// # Safety
/// `x` is valid for reading and writing 16 floats.
#[inline(always)]
unsafe fn exp_step<I: Isa>(isa: I, x: *mut f32, m: I::F, acc: &mut [I::F; MAX_REGS]) {
    let mut r = 0;
    while r < LANES / I::L {
        // SAFETY: r·L + L <= 16.
        unsafe {
            let e = exp(isa, isa.sub(isa.load(x.add(r * I::L)), m));
            isa.store(x.add(r * I::L), e);
            acc[r] = isa.add(acc[r], e);
        }
        r += 1;
    }
}

/// Softmax in place: `e[i] = exp(x[i] − m)` with `m` the largest element, `x[i] = e[i] / Σe`; the sum is a row sum on
/// 16 lanes. All zeros where every element is −∞ or NaN; all NaN where one element is NaN or +∞.
///
/// # Safety
/// `x` is valid for reading and writing `n` floats.
#[inline(always)]
pub unsafe fn softmax<I: Isa>(isa: I, x: *mut f32, n: usize) {
    // SAFETY: i + 16 <= n in the loop; the rest goes through a buffer of 16.
    unsafe {
        let largest = max(isa, x, n);
        if largest == f32::NEG_INFINITY {
            return map(
                isa,
                x,
                x,
                n,
                #[inline(always)]
                |_| isa.splat(0.0),
            );
        }
        let m = isa.splat(largest);
        let mut acc = [isa.splat(0.0); MAX_REGS];
        let mut i = 0;
        while i + LANES <= n {
            exp_step(isa, x.add(i), m, &mut acc);
            i += LANES;
        }
        if i < n {
            let mut rest = [f32::NEG_INFINITY; LANES];
            copy_few(x.add(i), rest.as_mut_ptr(), n - i);
            exp_step(isa, rest.as_mut_ptr(), m, &mut acc);
            copy_few(rest.as_ptr(), x.add(i), n - i);
        }
        let total = isa.splat(sum_lanes(isa, &acc[..LANES / I::L]));
        map(
            isa,
            x,
            x,
            n,
            #[inline(always)]
            |e| isa.div(e, total),
        );
    }
}

/// Index of the first of the largest elements. NaN never wins; 0 where there is nothing else.
///
/// # Safety
/// `x` is valid for reading `n` floats.
#[inline(always)]
pub unsafe fn argmax<I: Isa>(isa: I, x: *const f32, n: usize) -> usize {
    // SAFETY: blocks end at n; the search ends at the end of the row.
    unsafe {
        // First the block, then the place in it. A row without anything above −∞ is searched from its beginning.
        let (mut best, mut start, mut i) = (f32::NEG_INFINITY, 0, 0);
        while i < n {
            let len = if n - i < BLOCK { n - i } else { BLOCK };
            let m = max(isa, x.add(i), len);
            if m > best {
                (best, start) = (m, i);
            }
            i += len;
        }
        while start < n {
            if *x.add(start) == best {
                return start;
            }
            start += 1;
        }
        0
    }
}

/// The `k` largest elements, largest first, equal ones by index; NaN is left out. Returns how many there are.
///
/// # Safety
/// `x` is valid for reading `n` floats, `index` and `value` for writing `k` elements; nothing overlaps.
#[inline(always)]
pub unsafe fn top_k<I: Isa>(isa: I, x: *const f32, n: usize, index: *mut u32, value: *mut f32, k: usize) -> usize {
    if k == 0 {
        return 0;
    }
    let mut count = 0;
    let mut i = 0;
    // SAFETY: blocks end at n; count <= k, and the places written are below k.
    unsafe {
        while i < n {
            let len = if n - i < BLOCK { n - i } else { BLOCK };
            if count < k || max(isa, x.add(i), len) > *value.add(k - 1) {
                let mut j = i;
                while j < i + len {
                    let v = *x.add(j);
                    // Equal elements stay behind those found before.
                    if (count < k && !v.is_nan()) || (count == k && v > *value.add(k - 1)) {
                        let mut place = if count < k { count } else { k - 1 };
                        while place > 0 && v > *value.add(place - 1) {
                            *value.add(place) = *value.add(place - 1);
                            *index.add(place) = *index.add(place - 1);
                            place -= 1;
                        }
                        *value.add(place) = v;
                        *index.add(place) = j as u32;
                        if count < k {
                            count += 1;
                        }
                    }
                    j += 1;
                }
            }
            i += len;
        }
    }
    count
}

impl Kernels {
    /// Softmax of a row in place: zeros where every element is −∞.
    pub fn softmax_in_place(&self, x: &mut [f32]) {
        // SAFETY: one slice; the table fits the CPU.
        unsafe { (self.softmax)(x.as_mut_ptr(), x.len()) }
    }

    /// Index of the first of the largest elements (NaN never wins); `None` for an empty row.
    #[must_use]
    pub fn argmax(&self, x: &[f32]) -> Option<usize> {
        if x.is_empty() {
            return None;
        }
        // SAFETY: one slice; the table fits the CPU.
        Some(unsafe { (self.argmax)(x.as_ptr(), x.len()) })
    }

    /// The `index.len()` largest elements of a row, largest first, equal ones by index, NaN left out. Returns how many
    /// were found.
    ///
    /// # Panics
    /// Where `index` and `value` differ in length, or the row has more than 2³² elements.
    pub fn top_k(&self, x: &[f32], index: &mut [u32], value: &mut [f32]) -> usize {
        assert!(index.len() == value.len());
        assert!(u32::try_from(x.len()).is_ok());
        // SAFETY: slices of these lengths; the table fits the CPU.
        unsafe { (self.top_k)(x.as_ptr(), x.len(), index.as_mut_ptr(), value.as_mut_ptr(), index.len()) }
    }
}
