//! The golden result of a pack: what the model makes of a few tokens, so that `lora-run selftest` can tell on any device
//! whether it computes the same bits.

use std::path::Path;

use anyhow::{Context, Result};
use lora_runtime::kernels::{Kernels, KvType};
use lora_runtime::selftest::{Golden, digest_observed};
use lora_runtime::threads::{ArenaBox, Pool};
use lora_runtime::{Model, Session};

use crate::source::MappedFile;

/// Tokens of the test: more than one block of the KV cache, and not a multiple of it.
const TOKENS: u32 = 21;

/// The golden result of a model that has not run yet: its digest is still zero.
///
/// # Errors
/// A model without positions.
pub fn pending(kv: KvType, vocab: u32, positions: u32) -> Result<Golden> {
    // Ids from all over the vocabulary: a stride that shares no factor with most sizes.
    let ids: Vec<u32> =
        (0..TOKENS.min(positions)).map(|i| (u64::from(i + 1) * 2_654_435_761 % u64::from(vocab)) as u32).collect();
    Ok(Golden::new(kv, 0, &ids)?)
}

/// Runs the model in the file at `path`, which is complete but for its content hash and the digest of its golden result;
/// gives that result. Pages of the weights are given back op by op, so that memory stays bounded by the largest tensor.
///
/// # Errors
/// The file is not sound, or holds no golden result.
pub fn compute(path: &Path) -> Result<Golden> {
    let file = MappedFile::open(path)?;
    let model = Model::open(file.bytes())?;
    let golden = Golden::of(&model).context("the file holds no golden result to compute")??;
    let config = golden.config(&model, golden.ids().len() as u32);
    let pool = Pool::new(rayon::current_num_threads()).context("cannot start threads")?;
    let mut arena = ArenaBox::new(usize::try_from(model.plan(&config).arena_bytes)?);
    let mut session = Session::new(model, config, Kernels::best(), &pool, arena.as_mut_slice())?;
    let digest = digest_observed(&mut session, golden.ids(), &mut |_, _| file.release())?;
    Ok(Golden::new(golden.kv, digest, golden.ids())?)
}
