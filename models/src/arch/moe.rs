//! Mixtures of experts: Mixtral, Qwen2-MoE, Qwen3-MoE and OLMoE are Llama-like decoders whose MLPs are many.

use super::llama::{common, mistral, qk_norms, qwen2, qwen3};
use crate::config::Config;
use crate::decoder::Decoder;
use crate::error::ModelError;
use crate::layer::{Experts, MlpKind, SharedExpert};

/// The names of Llama's matrices, within an expert.
const LLAMA: MlpKind = MlpKind::Gated { gate: "gate_proj", up: "up_proj", down: "down_proj" };

/// How many experts a layer has and a token takes.
fn experts(
    c: Config<'_>,
    module: &'static str,
    router: &'static str,
    counts: (&'static str, &'static str),
    normalize: bool,
) -> Result<Experts, ModelError> {
    let count = c.count(counts.0, 1024)?;
    let chosen = c.count(counts.1, 64)?;
    if chosen > count {
        return Err(c.unsupported(counts.1, "at most the number of experts"));
    }
    Ok(Experts { module, router, count, chosen, normalize, shared: None })
}

/// Puts the experts into every layer that has them; the others keep their MLP.
fn place(d: &mut Decoder, kind: MlpKind, inner: usize, e: Experts, sparse: impl Fn(usize) -> bool) {
    d.each_layer(|i, l| {
        if sparse(i) {
            (l.mlp.kind, l.mlp.inner, l.mlp.experts) = (kind, inner, Some(e));
        }
    });
}

/// The layers of Qwen's mixtures that have experts.
fn sparse_layers(c: Config<'_>, layers: usize) -> Result<Vec<bool>, ModelError> {
    let step = c.count_or("decoder_sparse_step", 4096, 1)?;
    let dense = c.numbers("mlp_only_layers")?.unwrap_or_default();
    Ok((0..layers).map(|i| !dense.contains(&(i as f64)) && (i + 1).is_multiple_of(step)).collect())
}

/// `model_type: mixtral`.
///
/// # Errors
/// A config field that is missing or out of range, or an option that changes numbers and is not supported.
pub fn mixtral(c: Config<'_>) -> Result<Decoder, ModelError> {
    let mut d = mistral(c)?;
    let e = experts(
        c,
        "block_sparse_moe.experts",
        "block_sparse_moe.gate",
        ("num_local_experts", "num_experts_per_tok"),
        true,
    )?;
    let inner = c.count("intermediate_size", 1 << 22)?;
    place(&mut d, MlpKind::Gated { gate: "w1", up: "w3", down: "w2" }, inner, e, |_| true);
    Ok(d)
}

/// `model_type: qwen2_moe`: one more expert, that every token takes.
///
/// # Errors
/// As [`mixtral`].
pub fn qwen2_moe(c: Config<'_>) -> Result<Decoder, ModelError> {
    let mut d = qwen2(c)?;
    let bias = c.flag_or("qkv_bias", true)?;
    d.each_layer(|_, l| l.attention.qkv_bias = bias);
    let mut e = qwen_experts(c)?;
    let inner = c.count("shared_expert_intermediate_size", 1 << 22)?;
    let kind = MlpKind::Gated {
        gate: "mlp.shared_expert.gate_proj",
        up: "mlp.shared_expert.up_proj",
        down: "mlp.shared_expert.down_proj",
    };
    e.shared = Some(SharedExpert { kind, inner, gate: "mlp.shared_expert_gate" });
    let sparse = sparse_layers(c, d.stack.layers.len())?;
    place(&mut d, LLAMA, c.count("moe_intermediate_size", 1 << 22)?, e, |i| sparse[i]);
    Ok(d)
}

/// `model_type: qwen3_moe`.
///
/// # Errors
/// As [`mixtral`].
pub fn qwen3_moe(c: Config<'_>) -> Result<Decoder, ModelError> {
    let mut d = qwen3(c)?;
    let e = qwen_experts(c)?;
    let sparse = sparse_layers(c, d.stack.layers.len())?;
    place(&mut d, LLAMA, c.count("moe_intermediate_size", 1 << 22)?, e, |i| sparse[i]);
    Ok(d)
}

fn qwen_experts(c: Config<'_>) -> Result<Experts, ModelError> {
    let normalize = c.flag_or("norm_topk_prob", false)?;
    // transformers 5 writes the field under Mixtral's name.
    let count = if c.names("num_local_experts") { "num_local_experts" } else { "num_experts" };
    experts(c, "mlp.experts", "mlp.gate", (count, "num_experts_per_tok"), normalize)
}

/// `model_type: olmoe`: norms of whole rows of queries and keys.
///
/// # Errors
/// As [`mixtral`].
pub fn olmoe(c: Config<'_>) -> Result<Decoder, ModelError> {
    let mut d = common(c, "hidden_act")?;
    if c.get("clip_qkv").is_some() {
        return Err(c.unsupported("clip_qkv", "null"));
    }
    let bias = c.flag_or("attention_bias", false)?;
    d.each_layer(|_, l| {
        l.attention = l.attention.biases(bias);
        l.attention.qk_norm = Some(qk_norms(false));
    });
    let e = qwen_experts(c)?;
    let inner = c.count("intermediate_size", 1 << 22)?;
    place(&mut d, LLAMA, inner, e, |_| true);
    Ok(d)
}
