//! Classifies texts with the encoder that lies in flash.
#![no_std]
#![no_main]

use core::fmt::Write;

use firmware::Console;
use lora_runtime::embedded::{Aligned, Memory, arena_bytes, session_config};
use lora_runtime::program::SessionConfig;
use lora_runtime::tasks::{TextBuffer, classify};
use lora_runtime::{Model, Result, include_lpk};

static MODEL: &Aligned<[u8]> = include_lpk!(env!("MODEL"), section = ".model");
const CONFIG: SessionConfig = session_config(MODEL, 48, 48);
static ARENA: Memory<{ arena_bytes(MODEL, &CONFIG) }> = Memory::new();

fn run(out: &mut Console) -> Result<()> {
    let model = Model::open(MODEL)?;
    let mut session = firmware::session(model, CONFIG, ARENA.take()?)?;
    let mut text = TextBuffer::<48, 1024>::new();
    for line in env!("TEXTS").lines() {
        let ids = text.encode(&model, line)?;
        let (best, scores) = classify(&mut session, ids)?;
        let _ = write!(out, "{}", model.face.label(best).unwrap_or("?"));
        for score in scores {
            let _ = write!(out, " {:08x}", score.to_bits());
        }
        let _ = writeln!(out);
    }
    Ok(())
}

firmware::main!(run);
