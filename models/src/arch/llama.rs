//! Llama, and what differs from it in Mistral, Qwen2 and Qwen3.

use crate::config::Config;
use crate::decoder::Decoder;
use crate::error::ModelError;
use crate::heads;
use crate::names::activation;
use crate::rope::rope;

/// The fields that the whole family shares.
fn common(c: Config<'_>) -> Result<Decoder, ModelError> {
    let hidden = c.count("hidden_size", 1 << 20)?;
    let layers = c.count("num_hidden_layers", 4096)?;
    let heads = c.count("num_attention_heads", 1 << 16)?;
    let kv_heads = c.count_or("num_key_value_heads", 1 << 16, heads)?;
    if !heads.is_multiple_of(kv_heads) {
        return Err(c.unsupported("num_key_value_heads", "a divisor of num_attention_heads"));
    }
    let head_dim = c.count_or("head_dim", 512, hidden / heads)?;
    if head_dim == 0 || !head_dim.is_multiple_of(2) {
        return Err(c.unsupported("head_dim", "an even number"));
    }
    let max_positions = c.count("max_position_embeddings", 1 << 24)?;
    Ok(Decoder {
        hidden,
        layers,
        heads,
        kv_heads,
        head_dim,
        intermediate: c.count("intermediate_size", 1 << 22)?,
        vocab: c.count("vocab_size", 1 << 23)?,
        max_positions,
        norm: heads::rms(c.number_or("rms_norm_eps", 1e-6)? as f32),
        act: activation(c, "hidden_act", "silu")?,
        qkv_bias: false,
        out_bias: false,
        mlp_bias: false,
        qk_norm: false,
        rope: rope(c, head_dim, max_positions)?,
        windows: vec![0; layers],
        tied: c.flag_or("tie_word_embeddings", false)?,
    })
}

/// Sliding window of every layer: `layer_types` where given, else the layers from `first` on.
fn windows(c: Config<'_>, layers: usize, active: bool, first: usize) -> Result<Vec<usize>, ModelError> {
    let window = c.optional_u32("sliding_window")?.unwrap_or(0) as usize;
    if window == 0 || !active {
        return Ok(vec![0; layers]);
    }
    let types = c.texts("layer_types")?;
    if types.is_empty() {
        return Ok((0..layers).map(|i| if i >= first { window } else { 0 }).collect());
    }
    if types.len() != layers {
        return Err(c.unsupported("layer_types", "one entry per layer"));
    }
    types
        .iter()
        .map(|t| match *t {
            "full_attention" => Ok(0),
            "sliding_attention" => Ok(window),
            _ => Err(c.unsupported("layer_types", "full_attention or sliding_attention")),
        })
        .collect()
}

/// `model_type: llama` (SmolLM2, TinyLlama, Llama 2 and 3 …).
///
/// # Errors
/// A config field that is missing or out of range.
pub fn llama(c: Config<'_>) -> Result<Decoder, ModelError> {
    let mut d = common(c)?;
    d.qkv_bias = c.flag_or("attention_bias", false)?;
    d.out_bias = d.qkv_bias;
    d.mlp_bias = c.flag_or("mlp_bias", false)?;
    Ok(d)
}

/// `model_type: mistral`: a sliding window over every layer.
///
/// # Errors
/// As [`llama`].
pub fn mistral(c: Config<'_>) -> Result<Decoder, ModelError> {
    let mut d = common(c)?;
    d.windows = windows(c, d.layers, true, 0)?;
    Ok(d)
}

/// `model_type: qwen2`: biases on q, k and v; optional window on the upper layers.
///
/// # Errors
/// As [`llama`].
pub fn qwen2(c: Config<'_>) -> Result<Decoder, ModelError> {
    let mut d = common(c)?;
    d.qkv_bias = true;
    d.windows = windows(
        c,
        d.layers,
        c.flag_or("use_sliding_window", false)?,
        c.optional_u32("max_window_layers")?.unwrap_or(28) as usize,
    )?;
    Ok(d)
}

/// `model_type: qwen3`: per-head norms of queries and keys, no biases unless `attention_bias`.
///
/// # Errors
/// As [`llama`].
pub fn qwen3(c: Config<'_>) -> Result<Decoder, ModelError> {
    let mut d = qwen2(c)?;
    d.qk_norm = true;
    d.qkv_bias = c.flag_or("attention_bias", false)?;
    d.out_bias = d.qkv_bias;
    Ok(d)
}
