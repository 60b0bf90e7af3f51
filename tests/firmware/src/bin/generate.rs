//! Answers a command with the model that lies in flash.
#![no_std]
#![no_main]

use core::fmt::Write;

use firmware::Console;
use lora_runtime::embedded::{Aligned, Memory, arena_bytes, session_config};
use lora_runtime::program::SessionConfig;
use lora_runtime::sampler::{Rng, Sampling};
use lora_runtime::selftest::{Golden, digest};
use lora_runtime::tasks::{TextBuffer, generate};
use lora_runtime::{Error, ErrorKind, Model, Result, include_lpk};

static MODEL: &Aligned<[u8]> = include_lpk!(env!("MODEL"), section = ".model");
const CONFIG: SessionConfig = session_config(MODEL, firmware::number(option_env!("POSITIONS"), 96) as u32, 8);
static ARENA: Memory<{ arena_bytes(MODEL, &CONFIG) }> = Memory::new();
/// Most new tokens.
const NEW: usize = firmware::number(option_env!("NEW"), 48);

fn run(out: &mut Console) -> Result<()> {
    let model = Model::open(MODEL)?;
    let mut session = firmware::session(model, CONFIG, ARENA.take()?)?;
    let mut text = TextBuffer::<64, 1024>::new();
    let prompt = text.encode(&model, env!("PROMPT"))?;
    let mut decoder = model.tokenizer()?.decoder(true);
    let (sampling, mut rng) = (Sampling::GREEDY, Rng::new(1));
    generate(&mut session, prompt, NEW, &sampling, &mut rng, |id| decoder.push(id, out).is_ok())?;
    let _ = decoder.finish(out);
    // What `lora-run selftest` prints for the same file elsewhere.
    let golden = Golden::of(&model).ok_or(Error::new(ErrorKind::Invalid, "no golden result"))??;
    let digest = digest(&mut session, golden.ids())?;
    let _ = out.write_str("\ndigest ");
    out.hex(digest, 16);
    let _ = out.write_str("\n");
    Ok(())
}

firmware::main!(run);
