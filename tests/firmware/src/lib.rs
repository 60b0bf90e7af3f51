//! What a program on a bare board needs beside the runtime: a start, a console, an end, and a look at the stack.
#![no_std]

use core::fmt::{self, Write};
use core::panic::PanicInfo;

use lora_runtime::error::decimal;
use lora_runtime::kernels::Kernels;
use lora_runtime::program::SessionConfig;
use lora_runtime::session::workers::Inline;
use lora_runtime::{ErrorKind, Model, Result, Session};

#[cfg_attr(target_arch = "arm", path = "cortex_m.rs")]
#[cfg_attr(target_arch = "aarch64", path = "aarch64.rs")]
mod processor;

pub use processor::exit;

/// Text to whoever debugs the board.
pub struct Console;

impl Write for Console {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for byte in text.bytes() {
            // SYS_WRITEC takes the address of one character.
            processor::semihosting(0x03, &raw const byte as usize);
        }
        Ok(())
    }
}

impl Console {
    /// A number. `write!` could do it too, with three kilobytes of padding and division.
    pub fn number(&mut self, value: usize) {
        let _ = self.write_str(decimal(value as u64, &mut [0; 20]));
    }

    /// The last `digits` hexadecimal digits of a number.
    pub fn hex(&mut self, value: u64, digits: u32) {
        for digit in (0..digits).rev() {
            let _ = self.write_char(char::from(b"0123456789abcdef"[(value >> (4 * digit)) as usize & 15]));
        }
    }
}

/// A number that was given while compiling.
#[must_use]
pub const fn number(text: Option<&str>, otherwise: usize) -> usize {
    let Some(text) = text else { return otherwise };
    let (mut value, mut i) = (0, 0);
    while i < text.len() {
        assert!(text.as_bytes()[i].is_ascii_digit(), "not a number");
        value = value * 10 + (text.as_bytes()[i] - b'0') as usize;
        i += 1;
    }
    value
}

/// Makes `run` the program: `fn(&mut Console) -> lora_runtime::Result<()>`.
#[macro_export]
macro_rules! main {
    ($run:path) => {
        /// Called by the start code.
        #[unsafe(no_mangle)]
        pub extern "C" fn main() -> ! {
            $crate::start($run)
        }
    };
}

/// Runs the program and ends with its result.
pub fn start(run: fn(&mut Console) -> Result<()>) -> ! {
    let result = run(&mut Console);
    if let Err(error) = &result {
        let _ = writeln!(Console, "error: {error}");
    }
    let (used, all) = stack();
    let _ = Console.write_str("stack ");
    Console.number(used);
    let _ = Console.write_str(" of ");
    Console.number(all);
    let _ = Console.write_str(" bytes\n");
    exit(result.is_ok())
}

/// Opens a session in the first bytes of `memory`, and shows that one byte less than planned is refused.
///
/// # Errors
/// As [`Session::new`]; the plan is not exact.
pub fn session<'m>(model: Model<'m>, config: SessionConfig, memory: &'m mut [u8]) -> Result<Session<'m>> {
    let planned = model.plan(&config).arena_bytes as usize;
    let less = memory.get_mut(..planned.saturating_sub(1)).unwrap_or_default();
    // The short-lived borrow ends before the real session begins.
    let refused = Session::new(model, config, Kernels::best(), &Inline, less).err();
    let exact = refused.is_some_and(|e| e.kind == ErrorKind::TooSmall && e.expected == planned as u64);
    let _ = Console.write_str("arena ");
    Console.number(memory.len());
    let _ = Console.write_str(if exact { " bytes, one less is refused\n" } else { " bytes, one less is taken\n" });
    Session::new(model, config, Kernels::best(), &Inline, memory)
}

/// Bytes of the stack that have been written to (below, the start code's pattern is untouched), and all of them.
fn stack() -> (usize, usize) {
    unsafe extern "C" {
        static stack_bottom: u32;
        static stack_top: u32;
    }
    let (bottom, top) = (&raw const stack_bottom, &raw const stack_top);
    let mut at = bottom;
    // SAFETY: the linker script puts the painted stack between the two; volatile, because the compiler knows nothing of it.
    while at < top && unsafe { at.read_volatile() } == 0xa5a5_a5a5 {
        at = at.wrapping_add(1);
    }
    (top as usize - at as usize, top as usize - bottom as usize)
}

#[panic_handler]
fn panicked(info: &PanicInfo<'_>) -> ! {
    // The place, without the message: what formats any message is a kilobyte and a half.
    if let Some(place) = info.location() {
        let _ = Console.write_str(place.file());
        let _ = Console.write_str(":");
        Console.number(place.line() as usize);
        let _ = Console.write_str(": panic\n");
    }
    exit(false)
}

/// Where faults end.
#[unsafe(no_mangle)]
extern "C" fn crash() -> ! {
    let _ = Console.write_str("fault\n");
    exit(false)
}
