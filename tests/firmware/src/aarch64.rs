//! AArch64 at exception level 1: vectors, start, semihosting.

use core::arch::{asm, global_asm};

// Every exception ends the program.
global_asm!(
    ".section .text.reset, \"ax\"",
    ".global reset",
    "reset:",
    // Floating point and vectors on (CPACR_EL1.FPEN).
    "mov x0, #(3 << 20)",
    "msr cpacr_el1, x0",
    "ldr x0, =vectors",
    "msr vbar_el1, x0",
    "isb",
    "ldr x0, =bss_start",
    "ldr x1, =bss_end",
    "b 2f",
    "1: str xzr, [x0], #8",
    "2: cmp x0, x1",
    "b.lo 1b",
    "ldr x0, =stack_bottom",
    "ldr x1, =stack_top",
    "mov sp, x1",
    "ldr x3, =0xa5a5a5a5a5a5a5a5",
    "b 4f",
    "3: str x3, [x0], #8",
    "4: cmp x0, x1",
    "b.lo 3b",
    "bl main",
    "b fault",
    ".balign 2048",
    "vectors:",
    ".rept 16",
    ".balign 128",
    "b fault",
    ".endr",
    "fault:",
    "ldr x1, =stack_top",
    "mov sp, x1",
    "bl crash",
);

/// One semihosting call.
pub fn semihosting(operation: usize, argument: usize) {
    // SAFETY: the debugger reads what the argument of this operation describes and may change x0 only.
    unsafe { asm!("hlt #0xf000", inout("x0") operation => _, in("x1") argument, options(nostack)) };
}

/// Ends the program.
pub fn exit(success: bool) -> ! {
    // SYS_EXIT takes a block here: reason, exit code.
    let block: [usize; 2] = [0x20026, usize::from(!success)];
    semihosting(0x18, block.as_ptr() as usize);
    loop {}
}
