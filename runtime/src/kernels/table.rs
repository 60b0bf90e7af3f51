//! The tables of kernel entry points, one per level, and the only place that chooses between them.
//!
//! To add a kernel: write its body generic over [`Isa`] and `#[inline(always)]`, and add one line to `families` below.
//! The macro writes, for each level, an entry function that carries the level's `#[target_feature]` and calls
//! the body, and puts it into the level's table.

use super::isa::{Isa, scalar};
use super::level::Level;
use super::quantize_row::{self, QuantizeArgs};

#[cfg(target_arch = "x86_64")]
use super::isa::x86;

/// Writes the struct of entries and a static table per level.
macro_rules! tables {
    (
        levels { $({ $(#[cfg($cfg:meta)])? $module:ident #$attribute:tt $level:ident, $isa:ty })* }
        families $families:tt
    ) => {
        tables!(@struct $families);
        $(
            $(#[cfg($cfg)])?
            mod $module {
                use super::*;
                tables!(@level $attribute $level $isa, $families);
            }
        )*
        /// Every table of this build.
        static TABLES: &[&Kernels] = &[$($(#[cfg($cfg)])? &$module::KERNELS),*];
    };
    (@struct { $($(#[$doc:meta])* $name:ident: fn($($arg:ident: $ty:ty),*) $(-> $ret:ty)? = $body:expr;)* }) => {
        /// The kernels of one level. Every entry of every level computes the same bits.
        #[non_exhaustive]
        pub struct Kernels {
            level: Level,
            $($(#[$doc])* pub(super) $name: unsafe fn($($ty),*) $(-> $ret)?,)*
        }
    };
    (@level $attribute:tt $level:ident $isa:ty,
     { $($(#[$doc:meta])* $name:ident: fn($($arg:ident: $ty:ty),*) $(-> $ret:ty)? = $body:expr;)* }) => {
        $(
            #$attribute
            unsafe fn $name($($arg: $ty),*) $(-> $ret)? {
                // SAFETY: the table is handed out only where the CPU has the level's instructions; the body's
                // conditions are the caller's.
                unsafe { $body(<$isa>::proof(), $($arg),*) }
            }
        )*
        pub(super) static KERNELS: Kernels = Kernels { level: Level::$level, $($name),* };
    };
}

tables! {
    levels {
        { scalar_table #[inline(never)] Scalar, scalar::Scalar }
        { #[cfg(target_arch = "x86_64")] sse41 #[target_feature(enable = "sse4.1,ssse3")] Sse41, x86::Sse41 }
        { #[cfg(target_arch = "x86_64")] avx2 #[target_feature(enable = "avx2,f16c")] Avx2, x86::Avx2 }
        { #[cfg(target_arch = "x86_64")] avxvnni #[target_feature(enable = "avx2,f16c,avxvnni")] AvxVnni, x86::AvxVnni }
        { #[cfg(target_arch = "x86_64")]
          avx512 #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")] Avx512, x86::Avx512 }
    }
    families {
        /// Quantizes a row of activations.
        quantize_row: fn(args: QuantizeArgs) = quantize_row::body;
    }
}

impl Kernels {
    /// The table of `level`, or `None` where this CPU does not run it.
    #[must_use]
    pub fn for_level(level: Level) -> Option<&'static Self> {
        if !level.is_supported() {
            return None;
        }
        TABLES.iter().copied().find(|table| table.level == level)
    }

    /// The table of the best level that this CPU runs.
    #[must_use]
    pub fn best() -> &'static Self {
        Self::for_level(Level::best()).unwrap_or(&scalar_table::KERNELS)
    }

    /// The tables that this CPU runs, the best last: what tests and benches walk.
    pub fn supported() -> impl Iterator<Item = &'static Self> {
        Level::supported().filter_map(Self::for_level)
    }

    /// The level that the kernels are written for.
    #[must_use]
    pub fn level(&self) -> Level {
        self.level
    }
}

impl core::fmt::Debug for Kernels {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "Kernels({})", self.level.name())
    }
}
