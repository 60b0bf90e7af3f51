//! Plain loops in the CPU's wide vectors.
//!
//! The same Rust is compiled with the base instructions, with AVX2 and with AVX-512, and the compiler vectorises each. They
//! give the same bits: fused arithmetic is not enabled, and the compiler does not change the order of float operations.

/// Work on slices whose loops are worth wide vectors.
///
/// [`Wide::run`] and everything hot that it calls are to be `#[inline(always)]`: what is not inlined is not compiled anew.
/// Closures that are handed to library functions may stay calls, so plain `for` loops.
pub trait Wide {
    /// What comes out.
    type Output;
    /// Does it.
    fn run(self) -> Self::Output;
}

/// Runs `work` in the widest vectors that this CPU has.
#[inline]
pub fn widest<W: Wide>(work: W) -> W::Output {
    #[cfg(target_arch = "x86_64")]
    if super::Level::Avx512.is_supported() {
        // SAFETY: the CPU has the level, and the level these instructions.
        return unsafe { avx512(work) };
    } else if super::Level::Avx2.is_supported() {
        // SAFETY: as above.
        return unsafe { avx2(work) };
    }
    work.run()
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
fn avx512<W: Wide>(work: W) -> W::Output {
    work.run()
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn avx2<W: Wide>(work: W) -> W::Output {
    work.run()
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Sum<'a>(&'a [f32]);

    impl Wide for Sum<'_> {
        type Output = f32;
        #[inline(always)]
        fn run(self) -> f32 {
            self.0.iter().fold(0.0, |sum, v| sum * 0.75 + v * 1.1)
        }
    }

    #[test]
    fn width_does_not_change_the_bits() {
        let v: std::vec::Vec<f32> = (0..1000).map(|i| (i as f32 * 0.37).sin()).collect();
        for n in [0, 1, 7, 8, 9, 999, 1000] {
            assert_eq!(widest(Sum(&v[..n])).to_bits(), Sum(&v[..n]).run().to_bits());
        }
    }
}
