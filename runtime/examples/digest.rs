//! A digest of every bit that a model computes from a few tokens. It fails where the levels of this CPU, or chunk sizes,
//! differ among each other; on different machines the printed line has to be the same.
//!
//! ```text
//! cargo run --release -p lora-runtime --example digest -- model.lpk
//! ```

use std::error::Error;

use lora_runtime::kernels::{Kernels, KvType};
use lora_runtime::map::Mapping;
use lora_runtime::selftest::{config, digest};
use lora_runtime::threads::{ArenaBox, Pool};
use lora_runtime::{Model, Session};

/// Token ids that any vocabulary has; enough for two blocks of attention and for tiles of 16, 4 and 1 tokens.
const TOKENS: u32 = 21;

fn main() -> Result<(), Box<dyn Error>> {
    let path = std::env::args().nth(1).ok_or("usage: digest model.lpk")?;
    let mapping = Mapping::open(path.as_ref())?;
    let model = Model::open(&mapping)?;
    let ids: Vec<u32> = (0..TOKENS).map(|i| i * 7 % 61).collect();
    let pool = Pool::new(1)?;
    for kv in [KvType::I8, KvType::F16] {
        let mut first = None;
        for kernels in Kernels::supported() {
            for chunk in [TOKENS, 1] {
                let config = config(&model, kv, TOKENS, chunk);
                let mut arena = ArenaBox::new(usize::try_from(model.plan(&config).arena_bytes)?);
                let mut session = Session::new(model, config, kernels, &pool, arena.as_mut_slice())?;
                let got = digest(&mut session, &ids)?;
                eprintln!("{} {:<8} {chunk:>2} tokens a step  {got:016x}", kv.name(), kernels.level().name());
                if *first.get_or_insert(got) != got {
                    return Err("levels or step sizes differ".into());
                }
            }
        }
        println!("{} {:016x}", kv.name(), first.ok_or("no level")?);
    }
    Ok(())
}
