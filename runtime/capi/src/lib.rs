//! The C interface of lora-runtime. `include/lora_runtime.h` is its documentation; every function here is declared there.
//!
//! Nothing is allocated but for files and threads (feature `std`): models, sessions and decoders live in the caller's memory.
//! Every pointer is checked for null; no panic crosses the border.
#![cfg_attr(not(feature = "std"), no_std)]
#![expect(unsafe_code, reason = "C pointers")]

mod adapter;
mod model;
mod session;
mod status;
mod task;
mod text;

/// Where a panic ends without an operating system: in the C program's `abort`, in WebAssembly in a trap.
#[cfg(not(feature = "std"))]
#[panic_handler]
fn panicked(_: &core::panic::PanicInfo<'_>) -> ! {
    #[cfg(target_family = "wasm")]
    core::arch::wasm32::unreachable();
    #[cfg(not(target_family = "wasm"))]
    {
        unsafe extern "C" {
            fn abort() -> !;
        }
        // SAFETY: the C program defines it, and it does not return.
        unsafe { abort() }
    }
}
