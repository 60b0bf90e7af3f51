//! Cortex-M: vectors, start, semihosting.

use core::arch::{asm, global_asm};

// The processor takes the stack pointer and the address of `reset` from the vector table. Every fault ends the program.
global_asm!(
    ".section .vectors, \"a\"",
    ".word stack_top",
    ".word reset",
    ".rept 14",
    ".word fault",
    ".endr",
    ".section .text.reset, \"ax\"",
    ".syntax unified",
    ".thumb_func",
    ".global reset",
    "reset:",
    // The floating-point unit on (CPACR: coprocessors 10 and 11).
    "ldr r0, =0xe000ed88",
    "ldr r1, [r0]",
    "orr r1, r1, #0xf00000",
    "str r1, [r0]",
    "dsb",
    "isb",
    "ldr r0, =data_start",
    "ldr r1, =data_end",
    "ldr r2, =data_load",
    "b 2f",
    "1: ldr r3, [r2], #4",
    "str r3, [r0], #4",
    "2: cmp r0, r1",
    "blo 1b",
    "ldr r0, =bss_start",
    "ldr r1, =bss_end",
    "movs r3, #0",
    "b 4f",
    "3: str r3, [r0], #4",
    "4: cmp r0, r1",
    "blo 3b",
    "ldr r0, =stack_bottom",
    "ldr r1, =stack_top",
    "ldr r3, =0xa5a5a5a5",
    "b 6f",
    "5: str r3, [r0], #4",
    "6: cmp r0, r1",
    "blo 5b",
    "bl main",
    ".thumb_func",
    "fault:",
    "bl crash",
);

/// One semihosting call.
pub fn semihosting(operation: usize, argument: usize) {
    // SAFETY: the debugger reads what the argument of this operation describes and may change r0 only.
    unsafe { asm!("bkpt 0xab", inout("r0") operation => _, in("r1") argument, options(nostack)) };
}

/// Ends the program.
pub fn exit(success: bool) -> ! {
    // SYS_EXIT: "the application ended" or "run-time error".
    semihosting(0x18, if success { 0x20026 } else { 0x20023 });
    loop {}
}
