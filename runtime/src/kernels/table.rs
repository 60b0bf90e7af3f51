//! The tables of kernel entry points, one per level, and the only place that chooses between them.
//!
//! To add a kernel: write its body generic over [`Isa`] and `#[inline(always)]`, and add one line to a list below:
//! `integers` where dot products of codes are involved, else `floats`. The macro writes, for each level, an entry
//! function that carries the level's `#[target_feature]` and calls the body, and puts it into the level's table. Levels
//! that differ in their dot products alone share the float entries: the last word of a level names whose it takes.

use super::attend::{self, Attend, State, tile::Tile};
use super::elementwise::{self, Act};
use super::isa::{Isa, scalar};
use super::kv::{self, StoreArgs};
use super::level::Level;
use super::linear::{self, LinearArgs, ThinArgs};
use super::norm;
use super::quantize_row::{self, QuantizeArgs};
use super::rotary::{self, RotaryStyle};
use super::select;

#[cfg(all(target_arch = "aarch64", target_feature = "neon"))]
use super::isa::arm;
#[cfg(all(target_arch = "arm", feature = "dsp"))]
use super::isa::cortex_m;
#[cfg(all(target_arch = "wasm32", target_feature = "simd128"))]
use super::isa::wasm;
#[cfg(target_arch = "x86_64")]
use super::isa::x86;

/// Writes the struct of entries and a static table per level.
macro_rules! tables {
    (
        levels { $({
            $(#[cfg($cfg:meta)])? $module:ident #$attribute:tt $level:ident, $isa:ty, $float_module:ident
        })* }
        float_levels { $({ $(#[cfg($float_cfg:meta)])? $floats:ident #$float_attribute:tt $float_isa:ty })* }
        integers $integers:tt
        floats $float_list:tt
    ) => {
        tables!(@struct $integers $float_list);
        $(
            $(#[cfg($float_cfg)])?
            mod $floats {
                use super::*;
                tables!(@entries #$float_attribute $float_isa, pub(super), $float_list);
            }
        )*
        $(
            $(#[cfg($cfg)])?
            mod $module {
                use super::*;
                tables!(@entries #$attribute $isa, , $integers);
                tables!(@table $level $float_module $integers $float_list);
            }
        )*
        /// Every table of this build.
        static TABLES: &[&Kernels] = &[$($(#[cfg($cfg)])? &$module::KERNELS),*];
    };
    (@struct
     { $($(#[$doc:meta])* $name:ident: fn($($arg:ident: $ty:ty),*) $(-> $ret:ty)? = $body:expr;)* }
     { $($(#[$float_doc:meta])* $float:ident:
         fn($($float_arg:ident: $float_ty:ty),*) $(-> $float_ret:ty)? = $float_body:expr;)* }
    ) => {
        /// The kernels of one level. Every entry of every level computes the same bits.
        #[non_exhaustive]
        pub struct Kernels {
            level: Level,
            $($(#[$doc])* pub(super) $name: unsafe fn($($ty),*) $(-> $ret)?,)*
            $($(#[$float_doc])* pub(super) $float: unsafe fn($($float_ty),*) $(-> $float_ret)?,)*
        }
    };
    (@entries #$attribute:tt $isa:ty, $vis:vis,
     { $($(#[$doc:meta])* $name:ident: fn($($arg:ident: $ty:ty),*) $(-> $ret:ty)? = $body:expr;)* }
    ) => {
        $(
            #$attribute
            $vis unsafe fn $name($($arg: $ty),*) $(-> $ret)? {
                // SAFETY: the table is handed out only where the CPU has the level's instructions; the body's
                // conditions are the caller's.
                unsafe { $body(<$isa>::proof(), $($arg),*) }
            }
        )*
    };
    (@table $level:ident $float_module:ident
     { $($(#[$doc:meta])* $name:ident: fn($($arg:ident: $ty:ty),*) $(-> $ret:ty)? = $body:expr;)* }
     { $($(#[$float_doc:meta])* $float:ident:
         fn($($float_arg:ident: $float_ty:ty),*) $(-> $float_ret:ty)? = $float_body:expr;)* }
    ) => {
        pub(super) static KERNELS: Kernels =
            Kernels { level: Level::$level, $($name,)* $($float: $float_module::$float),* };
    };
}

// Tests also run what other builds have: registers of one lane, AVX-VNNI's twin.
tables! {
    levels {
        { #[cfg(all(test, target_pointer_width = "64"))]
          one_lane #[inline(never)] Scalar, scalar::Lanes<1, scalar::Plain>, one_lane_floats }
        { scalar_table #[inline(never)] Scalar, scalar::Scalar, scalar_floats }
        { #[cfg(target_arch = "x86_64")]
          sse41 #[target_feature(enable = "sse4.1,ssse3")] Sse41, x86::Sse41, sse41_floats }
        { #[cfg(target_arch = "x86_64")]
          avx2 #[target_feature(enable = "avx2,f16c,fma")] Avx2, x86::Avx2, avx2_floats }
        { #[cfg(target_arch = "x86_64")]
          avxvnni #[target_feature(enable = "avx2,f16c,fma,avxvnni")] AvxVnni, x86::AvxVnni, avx2_floats }
        { #[cfg(all(test, target_arch = "x86_64"))]
          avx512vl #[target_feature(enable = "avx2,f16c,fma,avx512f,avx512vl,avx512vnni")]
          Avx512, x86::Avx512Vl, avx2_floats }
        { #[cfg(target_arch = "x86_64")]
          avx512 #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
          Avx512, x86::Avx512, avx512_floats }
        { #[cfg(target_arch = "x86_64")]
          amx #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
          Amx, x86::Amx, avx512_floats }
        { #[cfg(all(target_arch = "aarch64", target_feature = "neon"))]
          neon #[target_feature(enable = "neon")] Neon, arm::Neon, neon_floats }
        { #[cfg(all(target_arch = "aarch64", target_feature = "neon"))]
          dotprod #[target_feature(enable = "neon,dotprod")] Dotprod, arm::Dotprod, neon_floats }
        { #[cfg(all(target_arch = "aarch64", target_feature = "neon"))]
          i8mm #[target_feature(enable = "neon,dotprod,i8mm")] I8mm, arm::I8mm, neon_floats }
        { #[cfg(all(target_arch = "arm", feature = "dsp"))]
          dsp #[inline(never)] Dsp, cortex_m::Dsp, scalar_floats }
        { #[cfg(all(target_arch = "wasm32", target_feature = "simd128"))]
          simd128 #[inline(never)] Simd128, wasm::Simd128, simd128_floats }
    }
    float_levels {
        { #[cfg(all(test, target_pointer_width = "64"))]
          one_lane_floats #[inline(never)] scalar::Lanes<1, scalar::Plain> }
        { scalar_floats #[inline(never)] scalar::Scalar }
        { #[cfg(target_arch = "x86_64")] sse41_floats #[target_feature(enable = "sse4.1,ssse3")] x86::Sse41 }
        { #[cfg(target_arch = "x86_64")] avx2_floats #[target_feature(enable = "avx2,f16c,fma")] x86::Avx2 }
        { #[cfg(target_arch = "x86_64")]
          avx512_floats #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")] x86::Avx512 }
        { #[cfg(all(target_arch = "aarch64", target_feature = "neon"))]
          neon_floats #[target_feature(enable = "neon")] arm::Neon }
        { #[cfg(all(target_arch = "wasm32", target_feature = "simd128"))] simd128_floats #[inline(never)] wasm::Simd128 }
    }
    integers {
        /// Quantizes a row of activations.
        quantize_row: fn(args: QuantizeArgs) = quantize_row::body;
        /// Panels of `q8` weights.
        linear_q8: fn(args: LinearArgs) = linear::int_panels::<_, linear::Q8>;
        /// Panels of `q8r` weights.
        linear_q8r: fn(args: LinearArgs) = linear::int_panels::<_, linear::Q8R>;
        /// Panels of `q4` weights.
        linear_q4: fn(args: LinearArgs) = linear::int_panels::<_, linear::Q4>;
        /// Panels of `q4l` weights.
        linear_q4l: fn(args: LinearArgs) = linear::int_panels::<_, linear::Q4L>;
        /// Panels of `q5` weights.
        linear_q5: fn(args: LinearArgs) = linear::int_panels::<_, linear::Q5>;
        /// Panels of `q6` weights.
        linear_q6: fn(args: LinearArgs) = linear::int_panels::<_, linear::Q6>;
        /// Panels of `i4` weights.
        linear_i4: fn(args: LinearArgs) = linear::int_panels::<_, linear::I4>;
        /// Panels of `i4m` weights.
        linear_i4m: fn(args: LinearArgs) = linear::int_panels::<_, linear::I4M>;
        /// Panels of `i5` weights.
        linear_i5: fn(args: LinearArgs) = linear::int_panels::<_, linear::I5>;
        /// Panels of `i5m` weights.
        linear_i5m: fn(args: LinearArgs) = linear::int_panels::<_, linear::I5M>;
    }
    floats {
        /// Panels of f32 weights.
        linear_f32: fn(args: LinearArgs) = linear::float_panels::<_, linear::Single>;
        /// Panels of f16 weights.
        linear_f16: fn(args: LinearArgs) = linear::float_panels::<_, linear::Half>;
        /// Adds products of thin panels of f32.
        add_thin_f32: fn(args: ThinArgs) = linear::add_thin::<_, linear::Single>;
        /// Adds products of thin panels of f16.
        add_thin_f16: fn(args: ThinArgs) = linear::add_thin::<_, linear::Half>;
        /// An activation, times a second operand if there is one.
        activate: fn(act: Act, x: *const f32, up: *const f32, out: *mut f32, n: usize) = elementwise::activate;
        /// a + b.
        add: fn(a: *const f32, b: *const f32, out: *mut f32, n: usize) = elementwise::add;
        /// a · b.
        mul: fn(a: *const f32, b: *const f32, out: *mut f32, n: usize) = elementwise::mul;
        /// a + b·s.
        add_scaled: fn(a: *const f32, b: *const f32, s: f32, out: *mut f32, n: usize) = elementwise::add_scaled;
        /// x·s.
        scale: fn(x: *const f32, s: f32, out: *mut f32, n: usize) = elementwise::scale;
        /// cap·tanh(x / cap).
        softcap: fn(x: *const f32, cap: f32, out: *mut f32, n: usize) = elementwise::softcap;
        /// RMS norm of a row.
        rms_norm: fn(x: *const f32, weight: *const f32, eps: f32, out: *mut f32, n: usize) = norm::rms_norm;
        /// Layer norm of a row.
        layer_norm: fn(x: *const f32, weight: *const f32, bias: *const f32, eps: f32, out: *mut f32, n: usize)
            = norm::layer_norm;
        /// Rotary embedding of the heads of one position.
        rotary: fn(style: RotaryStyle, x: *mut f32, heads: usize, stride: usize,
            table: (*const f32, *const f32, usize)) = rotary::rotary;
        /// Softmax of a row in place.
        softmax: fn(x: *mut f32, n: usize) = select::softmax;
        /// Index of the first of the largest elements.
        argmax: fn(x: *const f32, n: usize) -> usize = select::argmax;
        /// The k largest elements.
        top_k: fn(x: *const f32, n: usize, index: *mut u32, value: *mut f32, k: usize) -> usize = select::top_k;
        /// Stores a position's key and value.
        kv_store: fn(args: StoreArgs) = kv::store;
        /// Attention: queries times keys.
        attend_scores: fn(tile: &mut Tile) = attend::tile::scores;
        /// Attention: scores to weights.
        attend_weigh: fn(tile: &mut Tile, call: &Attend<'_>, state: *mut State) = attend::weigh::weigh;
        /// Attention: weights times values.
        attend_values: fn(tile: &Tile) = attend::tile::values;
    }
}

impl Kernels {
    /// The table of `level`, or `None` where this CPU does not run it.
    #[must_use]
    pub fn for_level(level: Level) -> Option<&'static Self> {
        if !level.is_supported() {
            return None;
        }
        TABLES.iter().copied().rfind(|table| table.level == level)
    }

    /// The table of `level`, for firmware: without an operating system there is no one to ask what the CPU runs beyond
    /// what the program was compiled for. `None` where the build has no such table.
    ///
    /// # Safety
    /// The CPU runs the level.
    #[must_use]
    pub unsafe fn for_level_unchecked(level: Level) -> Option<&'static Self> {
        TABLES.iter().copied().rfind(|table| table.level == level)
    }

    /// The table of the best level that this CPU runs.
    #[must_use]
    pub fn best() -> &'static Self {
        // There is one program per microcontroller, and one module per set of features: tables that nobody asks for by
        // name are not linked in.
        #[cfg(all(target_arch = "arm", feature = "dsp"))]
        return &dsp::KERNELS;
        #[cfg(all(target_arch = "wasm32", target_feature = "simd128"))]
        return &simd128::KERNELS;
        #[cfg(not(any(
            all(target_arch = "arm", feature = "dsp"),
            all(target_arch = "wasm32", target_feature = "simd128")
        )))]
        Self::for_level(Level::best()).unwrap_or(&scalar_table::KERNELS)
    }

    /// The tables that this CPU runs, the best last: what tests and benches walk.
    pub fn supported() -> impl Iterator<Item = &'static Self> {
        TABLES.iter().copied().filter(|table| table.level.is_supported())
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
