//! Classifies texts with the encoder that lies in flash, by one adapter after the other.
#![no_std]
#![no_main]

use core::fmt::Write;

use firmware::Console;
use lora_runtime::embedded::{Aligned, Memory, adapter_needs, arena_bytes, session_config};
use lora_runtime::program::SessionConfig;
use lora_runtime::tasks::{TextBuffer, classify};
use lora_runtime::{Active, Adapter, Model, Result, Set, include_lpk};

static BASE: &Aligned<[u8]> = include_lpk!(env!("BASE"), section = ".model");
static FIRST: &Aligned<[u8]> = include_lpk!(env!("ADAPTER_1"), section = ".model");
// The same line for SECOND, as `lora-pack embed adapter.lpk -o second.rs --name second --section .model` writes it.
include!(env!("ADAPTER_2_RS"));
const CONFIG: SessionConfig = SessionConfig {
    adapters: adapter_needs(BASE, FIRST).or(adapter_needs(BASE, SECOND)),
    ..session_config(BASE, 48, 48)
};
static ARENA: Memory<{ arena_bytes(BASE, &CONFIG) }> = Memory::new();

fn run(out: &mut Console) -> Result<()> {
    let base = Model::open(BASE)?;
    let adapters = [Adapter::attach(&base, FIRST)?, Adapter::attach(&base, SECOND)?];
    let mut session = firmware::session(base, CONFIG, ARENA.take()?)?;
    let mut text = TextBuffer::<48, 1024>::new();
    for adapter in &adapters {
        let model = base.with_adapter(adapter);
        session.select(Set::new(&[Active::new(adapter)])?)?;
        session.set_face(model)?;
        for line in env!("TEXTS").lines() {
            let ids = text.encode(&model, line)?;
            let (best, scores) = classify(&mut session, ids)?;
            let _ = out.write_str(model.face.label(best).unwrap_or("?"));
            for score in scores {
                let _ = out.write_str(" ");
                out.hex(score.to_bits().into(), 8);
            }
            let _ = out.write_str("\n");
        }
    }
    Ok(())
}

firmware::main!(run);
