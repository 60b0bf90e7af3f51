//! What this CPU runs, asked from core alone where that is possible.

use core::sync::atomic::{AtomicU16, Ordering};

use super::level::Level;

/// The set of supported levels (bit per level). Asked once: CPUID is slow in virtual machines.
pub(super) fn levels() -> u16 {
    // Racing threads compute the same value; 0 means "not asked yet", since scalar is always there.
    static LEVELS: AtomicU16 = AtomicU16::new(0);
    match LEVELS.load(Ordering::Relaxed) {
        0 => {
            let levels = Level::Scalar.bit() | arch_levels();
            LEVELS.store(levels, Ordering::Relaxed);
            levels
        }
        levels => levels,
    }
}

#[cfg(target_arch = "x86_64")]
fn arch_levels() -> u16 {
    use core::arch::x86_64::{__cpuid, __cpuid_count, _xgetbv};
    const fn has(register: u32, bits: &[u32]) -> bool {
        let mut i = 0;
        while i < bits.len() {
            if register >> bits[i] & 1 == 0 {
                return false;
            }
            i += 1;
        }
        true
    }

    let max_leaf = __cpuid(0).eax;
    let one = __cpuid(1);
    let mut levels = 0;
    // SSSE3, SSE4.1
    if has(one.ecx, &[9, 19]) {
        levels |= Level::Sse41.bit();
    }
    // FMA, OSXSAVE, AVX, F16C; then the operating system must save the wide registers (XCR0).
    if max_leaf < 7 || !has(one.ecx, &[12, 27, 28, 29]) {
        return levels;
    }
    // SAFETY: OSXSAVE says that the instruction exists and is enabled.
    let saved = unsafe { xcr0() };
    #[target_feature(enable = "xsave")]
    fn xcr0() -> u64 {
        // SAFETY: register 0 always exists.
        unsafe { _xgetbv(0) }
    }
    let seven = __cpuid_count(7, 0);
    if saved & 0x06 != 0x06 || !has(seven.ebx, &[5]) {
        return levels;
    }
    levels |= Level::Avx2.bit();
    if seven.eax >= 1 && has(__cpuid_count(7, 1).eax, &[4]) {
        levels |= Level::AvxVnni.bit();
    }
    // F, DQ, BW, VL; VNNI
    if saved & 0xe6 == 0xe6 && has(seven.ebx, &[16, 17, 30, 31]) && has(seven.ecx, &[11]) {
        levels |= Level::Avx512.bit();
        // TILE, INT8; the tiles and their shapes are saved.
        if saved & 0x6_0000 == 0x6_0000 && has(seven.edx, &[24, 25]) && tiles_are_granted() {
            levels |= Level::Amx.bit();
        }
    }
    levels
}

/// Asks Linux for the tiles: it gives their 8 KiB of state only to processes that want it.
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
fn tiles_are_granted() -> bool {
    const ARCH_PRCTL: isize = 158;
    const REQUEST_PERMISSION: usize = 0x1023;
    const TILE_DATA: usize = 18;
    let mut result = ARCH_PRCTL;
    // SAFETY: the call takes numbers only; a kernel that does not know the request says so.
    unsafe {
        core::arch::asm!("syscall", inout("rax") result, in("rdi") REQUEST_PERMISSION, in("rsi") TILE_DATA,
            out("rcx") _, out("r11") _, options(nostack));
    }
    result == 0
}

#[cfg(all(target_arch = "x86_64", not(target_os = "linux")))]
fn tiles_are_granted() -> bool {
    false
}

/// Programs may not ask an ARM CPU itself: the operating system knows, through the standard library. Without one it is
/// what the program was compiled for, and [`Kernels::for_level_unchecked`](super::Kernels::for_level_unchecked).
#[cfg(all(target_arch = "aarch64", target_feature = "neon"))]
fn arch_levels() -> u16 {
    #[cfg(feature = "std")]
    use std::arch::is_aarch64_feature_detected as has;
    #[cfg(not(feature = "std"))]
    macro_rules! has {
        ($feature:tt) => {
            cfg!(target_feature = $feature)
        };
    }
    let mut levels = Level::Neon.bit();
    if has!("dotprod") {
        levels |= Level::Dotprod.bit();
        if has!("i8mm") {
            levels |= Level::I8mm.bit();
        }
    }
    levels
}

/// The feature is the word of whoever builds: there is one program per microcontroller.
#[cfg(all(target_arch = "arm", feature = "dsp"))]
fn arch_levels() -> u16 {
    Level::Dsp.bit()
}

/// A module with an instruction that the engine lacks isn't even loaded.
#[cfg(all(target_arch = "wasm32", target_feature = "simd128"))]
fn arch_levels() -> u16 {
    Level::Simd128.bit()
}

#[cfg(not(any(
    target_arch = "x86_64",
    all(target_arch = "aarch64", target_feature = "neon"),
    all(target_arch = "arm", feature = "dsp"),
    all(target_arch = "wasm32", target_feature = "simd128")
)))]
fn arch_levels() -> u16 {
    0
}
