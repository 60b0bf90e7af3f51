//! The README's program, as printed there.
#![no_std]
#![no_main]

use firmware::Console;

include!(concat!(env!("OUT_DIR"), "/readme.rs"));

fn run(out: &mut Console) -> Result<()> {
    answer(env!("PROMPT"), out)
}

firmware::main!(run);
