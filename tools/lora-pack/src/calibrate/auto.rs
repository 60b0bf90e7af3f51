//! Mixed precision: which matrices get more bits, by measured loss per byte.
//!
//! The divergence that a matrix causes at 4 bits is measured on text for every role (all layers) and for every layer
//! (all roles); a single matrix is taken to share both, `s = role · layer / sum`. Its divergence in another format is
//! that times the ratio of the formats' errors on its own weights. Formats are then chosen to minimize
//! `Σ loss + μ·bytes`, with the smallest μ that keeps the size.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Result, bail};
use lora_models::spec::{Lowered, Role, Storage, TensorSpec};
use lora_runtime::kernels::{KvType, pack_float};
use lora_runtime::weights::WeightFormat;

use super::compare::{Side, compare};
use super::run::Job;
use super::{Document, text};
use crate::quantize::{quantize_rows, signal_to_noise};

/// Tokens of the text on which divergences are measured.
const TOKENS: usize = 256;
/// Rows of a matrix on which formats are compared.
const ROWS: usize = 32;

/// What the result may weigh.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Budget {
    /// Bytes of the file.
    Bytes(u64),
    /// Bits per weight over all matrices, scales included.
    Bits(f64),
}

/// Formats by role and layer.
pub type Choice = BTreeMap<(Role, Option<usize>), WeightFormat>;

/// The roles that share a fused matrix, and so a format.
fn together(role: Role) -> &'static [Role] {
    match role {
        Role::Query | Role::Key => &[Role::Query, Role::Key],
        Role::Gate | Role::Up => &[Role::Gate, Role::Up],
        Role::Value => &[Role::Value],
        Role::AttentionOut => &[Role::AttentionOut],
        Role::Down => &[Role::Down],
        Role::Router => &[Role::Router],
        Role::Embedding => &[Role::Embedding],
        Role::TiedEmbedding => &[Role::TiedEmbedding],
        Role::SmallEmbedding => &[Role::SmallEmbedding],
        Role::Head => &[Role::Head],
        Role::TaskHead => &[Role::TaskHead],
    }
}

/// The formats that a role may get, by size.
fn candidates(role: Role) -> &'static [WeightFormat] {
    use WeightFormat::{Q4, Q5, Q6, Q8, Q8R};
    match role {
        Role::SmallEmbedding | Role::TaskHead | Role::Router => &[],
        Role::Embedding | Role::TiedEmbedding | Role::Head => &[Q4, Q5, Q6, Q8R, Q8],
        _ => &[Q4, Q5, Q6, Q8],
    }
}

/// Formats for the blocks that keep the matrices of a fused group apart from others, to lower the model with while
/// measuring.
#[must_use]
pub fn separate(lowered: &Lowered) -> Choice {
    let layers: BTreeSet<usize> = lowered.tensors.iter().filter_map(|t| t.layer).collect();
    let roles = [Role::Query, Role::Key, Role::AttentionOut, Role::Gate, Role::Up, Role::Down];
    let of_layer = |l: usize| {
        let low = roles.into_iter().map(move |r| ((r, Some(l)), WeightFormat::Q4));
        low.chain([((Role::Value, Some(l)), WeightFormat::Q6)])
    };
    layers.into_iter().flat_map(of_layer).collect()
}

/// Matrices that get one format.
struct Unit {
    key: (Role, Option<usize>),
    tensors: Vec<usize>,
    /// Divergence at 4 bits, as estimated.
    loss: f64,
    /// By candidate: bytes, and error over that at 4 bits.
    options: Vec<(WeightFormat, u64, f64)>,
}

/// Chooses formats. `job.target` is lowered with [`separate`], `overhead` what the file holds beside these matrices.
///
/// # Errors
/// The budget is below what 4 bits need.
pub fn choose(
    job: &Job<'_>,
    documents: &[Document],
    budget: Budget,
    overhead: u64,
    progress: &mut dyn FnMut(usize, usize),
) -> Result<Choice> {
    let documents = text::sample(documents.to_vec(), TOKENS);
    let mut units = units(job)?;
    let keys: Vec<(Option<Role>, Option<usize>)> = {
        let roles: BTreeSet<Role> = units.iter().map(|u| u.key.0).collect();
        let layers: BTreeSet<usize> = units.iter().filter_map(|u| u.key.1).collect();
        roles.into_iter().map(|r| (Some(r), None)).chain(layers.into_iter().map(|l| (None, Some(l)))).collect()
    };
    let mut measured = BTreeMap::new();
    for (i, key) in keys.iter().enumerate() {
        let of_key = |u: &&Unit| key.0.is_none_or(|r| r == u.key.0) && key.1.is_none_or(|l| u.key.1 == Some(l));
        let tensors: Vec<usize> = units.iter().filter(of_key).flat_map(|u| u.tensors.clone()).collect();
        measured.insert(*key, divergence(job, &documents, &tensors)?);
        progress(i + 1, keys.len());
    }
    let in_layers: f64 = measured.iter().filter(|(k, _)| k.1.is_some()).map(|(_, v)| v).sum();
    for u in &mut units {
        let role = measured[&(Some(u.key.0), None)];
        u.loss = match u.key.1 {
            None => role,
            Some(l) => role * measured[&(None, Some(l))] / f64::max(in_layers, f64::MIN_POSITIVE),
        };
    }
    let weights: u64 = units.iter().flat_map(|u| &u.tensors).map(|t| size(&job.target.tensors[*t])).sum();
    let limit = match budget {
        Budget::Bytes(bytes) => bytes.saturating_sub(overhead),
        Budget::Bits(bits) => (bits * weights as f64 / 8.0) as u64,
    };
    let least: u64 = units.iter().map(|u| u.options[0].1).sum();
    if least > limit {
        bail!(
            "the target is too small: at 4 bits the matrices take {least} bytes and the rest of the file {overhead}; \
             {limit} bytes are left for the matrices"
        );
    }
    Ok(formats(&units, price(&units, limit)))
}

fn size(spec: &TensorSpec) -> u64 {
    (spec.rows * spec.cols) as u64
}

fn units(job: &Job<'_>) -> Result<Vec<Unit>> {
    let mut units: BTreeMap<(Role, Option<usize>), Unit> = BTreeMap::new();
    for (index, spec) in job.target.tensors.iter().enumerate() {
        let (Some(role), Storage::Panels(_)) = (spec.role, spec.storage) else { continue };
        let Some(role) = together(role).first().copied().filter(|r| !candidates(*r).is_empty()) else { continue };
        let w = (job.values)(index)?;
        let rows = &w[..spec.rows.min(ROWS) * spec.cols];
        let mut options = Vec::new();
        for format in candidates(role) {
            let q = quantize_rows(*format, rows, rows.len() / spec.cols, spec.cols, None, job.codebook)?;
            let error = 10f64.powf(-signal_to_noise(rows, &q.dequantize(job.codebook)) / 10.0);
            options.push((*format, format.tensor_bytes(spec.rows, spec.cols) as u64, error));
        }
        let first = options[0].2.max(f64::MIN_POSITIVE);
        options.iter_mut().for_each(|o| o.2 /= first);
        let key = (role, spec.layer);
        match units.get_mut(&key) {
            None => {
                units.insert(key, Unit { key, tensors: vec![index], loss: 0.0, options });
            }
            Some(unit) => {
                unit.tensors.push(index);
                for (a, b) in unit.options.iter_mut().zip(options) {
                    a.1 += b.1;
                }
            }
        }
    }
    Ok(units.into_values().collect())
}

/// KL of the float model to itself with some matrices at 4 bits.
fn divergence(job: &Job<'_>, documents: &[Document], tensors: &[usize]) -> Result<f64> {
    let mut panels = BTreeMap::new();
    for &t in tensors {
        let spec = &job.target.tensors[t];
        let w = (job.values)(t)?;
        let q = quantize_rows(WeightFormat::Q4, &w, spec.rows, spec.cols, None, job.codebook)?;
        panels.insert(t, pack_float(WeightFormat::F32, &q.dequantize(job.codebook), spec.rows, spec.cols));
    }
    let float = Side::new(job.twin, KvType::F32);
    let d = compare(float, Side { panels: Some(&panels), ..float }, documents)?;
    // An embedding model has no distribution: what is missing from a cosine of 1 plays its part.
    Ok(d.mean_kl().or(d.cosine.map(|c| 1.0 - c)).unwrap_or(0.0))
}

/// The option of a unit at a price per byte.
fn pick(unit: &Unit, price: f64) -> &(WeightFormat, u64, f64) {
    let cost = |o: &(WeightFormat, u64, f64)| unit.loss * o.2 + price * o.1 as f64;
    unit.options.iter().min_by(|a, b| cost(a).total_cmp(&cost(b))).unwrap_or(&unit.options[0])
}

/// The smallest price per byte at which everything fits.
fn price(units: &[Unit], limit: u64) -> f64 {
    let bytes = |price: f64| units.iter().map(|u| pick(u, price).1).sum::<u64>();
    if bytes(0.0) <= limit {
        return 0.0;
    }
    let (mut low, mut high) = (-80.0_f64, 40.0_f64);
    for _ in 0..80 {
        let middle = (low + high) / 2.0;
        if bytes(middle.exp()) <= limit { high = middle } else { low = middle }
    }
    high.exp()
}

fn formats(units: &[Unit], price: f64) -> Choice {
    let of = |u: &Unit| {
        let (key, format) = (u.key, pick(u, price).0);
        together(key.0).iter().map(move |r| ((*r, key.1), format)).collect::<Vec<_>>()
    };
    units.iter().flat_map(of).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn unit(role: Role, layer: usize, loss: f64) -> Unit {
        use WeightFormat::{Q4, Q6, Q8};
        let options = vec![(Q4, 100, 1.0), (Q6, 150, 0.07), (Q8, 200, 0.005)];
        Unit { key: (role, Some(layer)), tensors: vec![0], loss, options }
    }

    #[test]
    fn bytes_go_where_they_save_most() {
        let units = [unit(Role::Value, 0, 1.0), unit(Role::Query, 0, 0.01), unit(Role::Down, 0, 0.1)];
        let at = |limit| formats(&units, price(&units, limit));
        let tight = at(350);
        assert_eq!(tight[&(Role::Value, Some(0))], WeightFormat::Q6);
        assert_eq!(
            (tight[&(Role::Query, Some(0))], tight[&(Role::Key, Some(0))]),
            (WeightFormat::Q4, WeightFormat::Q4)
        );
        assert_eq!(tight[&(Role::Down, Some(0))], WeightFormat::Q4);
        assert!(at(600).values().all(|f| *f == WeightFormat::Q8));
        for limit in [300, 349, 350, 400, 450, 599] {
            let p = price(&units, limit);
            assert!(units.iter().map(|u| pick(u, p).1).sum::<u64>() <= limit);
        }
    }
}
