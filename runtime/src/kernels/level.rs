//! Instruction-set levels: their names, which of them this CPU runs, and the best one.

use super::detect;

/// An instruction-set level: which instructions the kernels of a table use. All levels give the same bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Level {
    /// Portable Rust.
    Scalar = 0,
    /// x86-64 with SSSE3 and SSE4.1.
    Sse41 = 1,
    /// x86-64 with AVX2, F16C and FMA.
    Avx2 = 2,
    /// AVX2 and the 256-bit dot product.
    AvxVnni = 3,
    /// AVX-512 F, BW, DQ, VL and VNNI.
    Avx512 = 4,
    /// AVX-512 and AMX's tiles for bytes, where Linux grants them.
    Amx = 5,
    /// AArch64's base instructions.
    Neon = 6,
    /// AArch64 with `sdot`.
    Dotprod = 7,
    /// AArch64 with `sdot` and `smmla`.
    I8mm = 8,
    /// Cortex-M with the DSP extension (`smlad`); in builds with the feature `dsp`.
    Dsp = 9,
    /// WebAssembly with vectors, in modules that are compiled with `simd128`.
    Simd128 = 10,
}

impl Level {
    /// Every level, on any CPU, in order of preference within an architecture.
    pub const ALL: [Self; 11] = [
        Self::Scalar,
        Self::Sse41,
        Self::Avx2,
        Self::AvxVnni,
        Self::Avx512,
        Self::Amx,
        Self::Neon,
        Self::Dotprod,
        Self::I8mm,
        Self::Dsp,
        Self::Simd128,
    ];

    /// The name used on command lines and in reports.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Scalar => "scalar",
            Self::Sse41 => "sse41",
            Self::Avx2 => "avx2",
            Self::AvxVnni => "avxvnni",
            Self::Avx512 => "avx512",
            Self::Amx => "amx",
            Self::Neon => "neon",
            Self::Dotprod => "dotprod",
            Self::I8mm => "i8mm",
            Self::Dsp => "dsp",
            Self::Simd128 => "simd128",
        }
    }

    /// The level of that name.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|level| level.name() == name)
    }

    /// Whether this CPU (and operating system) runs the level.
    #[must_use]
    pub fn is_supported(self) -> bool {
        detect::levels() & self.bit() != 0
    }

    /// The levels that this CPU runs, the best last.
    pub fn supported() -> impl Iterator<Item = Self> {
        let levels = detect::levels();
        Self::ALL.into_iter().filter(move |level| levels & level.bit() != 0)
    }

    /// The best level that this CPU runs.
    #[must_use]
    pub fn best() -> Self {
        Self::supported().last().unwrap_or(Self::Scalar)
    }

    /// The level's bit in a set of levels.
    pub(super) const fn bit(self) -> u16 {
        1 << self as u16
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_lead_back() {
        for (i, level) in Level::ALL.into_iter().enumerate() {
            assert_eq!(level as usize, i);
            assert_eq!(Level::from_name(level.name()), Some(level));
        }
        assert_eq!(Level::from_name("AVX2"), None);
    }

    #[test]
    fn scalar_is_always_there_and_best_is_supported() {
        assert!(Level::Scalar.is_supported());
        assert!(Level::best().is_supported());
    }

    #[test]
    #[cfg(target_arch = "aarch64")]
    fn detection_agrees_with_the_standard_library() {
        use std::arch::is_aarch64_feature_detected as has;
        assert!(Level::Neon.is_supported());
        assert_eq!(Level::Dotprod.is_supported(), has!("dotprod"));
        assert_eq!(Level::I8mm.is_supported(), has!("dotprod") && has!("i8mm"));
    }

    #[test]
    #[cfg(target_arch = "x86_64")]
    fn detection_agrees_with_the_standard_library() {
        use std::arch::is_x86_feature_detected as has;
        let avx2 = has!("avx2") && has!("f16c") && has!("fma");
        assert_eq!(Level::Sse41.is_supported(), has!("ssse3") && has!("sse4.1"));
        assert_eq!(Level::Avx2.is_supported(), avx2);
        assert_eq!(Level::AvxVnni.is_supported(), avx2 && has!("avxvnni"));
        let avx512 = has!("avx512f") && has!("avx512bw") && has!("avx512dq") && has!("avx512vl") && has!("avx512vnni");
        assert_eq!(Level::Avx512.is_supported(), avx512);
        assert!(avx512 || !Level::Amx.is_supported());
    }
}
