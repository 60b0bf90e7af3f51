//! Llama, and what differs from it in Mistral, Qwen2, Qwen3, Granite, SmolLM3, OLMo 2, Phi-3 and GLM.

use crate::config::Config;
use crate::decoder::{Decoder, LmHead, llama_attention, llama_mlp};
use crate::error::ModelError;
use crate::heads;
use crate::layer::{FusedOrder, Layer, MlpKind, Norms, QkNorm, Qkv};
use crate::names::activation;
use crate::rope::{rope, rotated};
use crate::stack::{Embeddings, PositionBias, Stack};

/// The prefixes of the family: with a head, without one, and the one of old question-answering models.
pub(super) const PREFIXES: &[&str] = &["model.", "", "transformer."];

/// What the whole family shares.
pub(super) fn common(c: Config<'_>, hidden_act: &'static str) -> Result<Decoder, ModelError> {
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
    let inner = c.count("intermediate_size", 1 << 22)?;
    let act = activation(c, hidden_act, "silu")?;
    let layer = |i| {
        let mut attention = llama_attention(Norms::pre("input_layernorm"), (heads, head_dim));
        attention.kv_heads = kv_heads;
        attention.rope = Some(0);
        let mlp = llama_mlp(Norms::pre("post_attention_layernorm"), inner, act);
        Layer::new(format!("layers.{i}"), attention, mlp)
    };
    let rotated = rotated(c, "partial_rotary_factor", head_dim, 1.0)?;
    Ok(Decoder {
        stack: Stack {
            prefixes: PREFIXES,
            hidden,
            embeddings: Embeddings::words(&["embed_tokens"], c.count("vocab_size", 1 << 23)?, hidden),
            norm: heads::rms(c.number_or("rms_norm_eps", 1e-6)? as f32),
            layers: (0..layers).map(layer).collect(),
            final_norm: Some("norm"),
            ropes: vec![rope(c, rotated, max_positions)?],
            bias: PositionBias::None,
            max_positions,
        },
        head: LmHead::new(c.flag_or("tie_word_embeddings", false)?),
    })
}

/// The sliding window of every layer: by `layer_types` where given, else of the layers that `by_default` picks.
pub(super) fn set_windows(
    c: Config<'_>,
    d: &mut Decoder,
    active: bool,
    by_default: impl Fn(usize) -> bool,
) -> Result<(), ModelError> {
    let window = c.optional_u32("sliding_window")?.unwrap_or(0) as usize;
    let types = layer_types(c, d.stack.layers.len())?;
    if window > 0 && active {
        d.each_layer(|i, l| {
            let slides = types.as_ref().map_or_else(|| by_default(i), |t| t[i]);
            l.attention.window = if slides { window } else { 0 };
        });
    }
    Ok(())
}

/// `layer_types`: whether each layer slides.
pub(super) fn layer_types(c: Config<'_>, layers: usize) -> Result<Option<Vec<bool>>, ModelError> {
    let types = c.texts("layer_types")?;
    if types.is_empty() {
        return Ok(None);
    }
    if types.len() != layers {
        return Err(c.unsupported("layer_types", "one entry per layer"));
    }
    let slides = |t: &&str| match *t {
        "full_attention" => Ok(false),
        "sliding_attention" => Ok(true),
        _ => Err(c.unsupported("layer_types", "full_attention or sliding_attention")),
    };
    types.iter().map(slides).collect::<Result<_, _>>().map(Some)
}

/// Norms of queries and keys by the usual names.
pub(super) const fn qk_norms(per_head: bool) -> QkNorm {
    QkNorm { q: "self_attn.q_norm", k: "self_attn.k_norm", per_head }
}

/// `model_type: llama` (SmolLM2, TinyLlama, Llama 2 and 3 …).
///
/// # Errors
/// A config field that is missing or out of range.
pub fn llama(c: Config<'_>) -> Result<Decoder, ModelError> {
    let mut d = common(c, "hidden_act")?;
    let (attention, mlp) = (c.flag_or("attention_bias", false)?, c.flag_or("mlp_bias", false)?);
    d.each_layer(|_, l| {
        l.attention = l.attention.biases(attention);
        l.mlp.bias = mlp;
    });
    Ok(d)
}

/// `model_type: mistral`: a sliding window over every layer.
///
/// # Errors
/// As [`llama`].
pub fn mistral(c: Config<'_>) -> Result<Decoder, ModelError> {
    let mut d = common(c, "hidden_act")?;
    set_windows(c, &mut d, true, |_| true)?;
    Ok(d)
}

/// `model_type: qwen2`: biases on q, k and v; optional window on the upper layers.
///
/// # Errors
/// As [`llama`].
pub fn qwen2(c: Config<'_>) -> Result<Decoder, ModelError> {
    let mut d = common(c, "hidden_act")?;
    let first = c.optional_u32("max_window_layers")?.unwrap_or(28) as usize;
    set_windows(c, &mut d, c.flag_or("use_sliding_window", false)?, |i| i >= first)?;
    d.each_layer(|_, l| l.attention.qkv_bias = true);
    Ok(d)
}

/// `model_type: qwen3`: per-head norms of queries and keys, no biases unless `attention_bias`.
///
/// # Errors
/// As [`llama`].
pub fn qwen3(c: Config<'_>) -> Result<Decoder, ModelError> {
    let mut d = qwen2(c)?;
    let bias = c.flag_or("attention_bias", false)?;
    d.each_layer(|_, l| {
        l.attention = l.attention.biases(bias);
        l.attention.qk_norm = Some(qk_norms(true));
    });
    Ok(d)
}

/// `model_type: granite`: Llama with factors on embeddings, scores, residuals and logits.
///
/// # Errors
/// As [`llama`].
pub fn granite(c: Config<'_>) -> Result<Decoder, ModelError> {
    let mut d = llama(c)?;
    let logits = c.number_or("logits_scaling", 1.0)?;
    if logits == 0.0 {
        return Err(c.unsupported("logits_scaling", "a divisor other than 0"));
    }
    d.head.scale = logits.recip() as f32;
    d.stack.embeddings.scale = c.number_or("embedding_multiplier", 1.0)? as f32;
    let (scores, residual) = (c.number_or("attention_multiplier", 1.0)?, c.number_or("residual_multiplier", 1.0)?);
    d.each_layer(|_, l| {
        l.attention.scale = scores;
        l.residual = residual as f32;
    });
    Ok(d)
}

/// `model_type: smollm3`: some layers do not rotate.
///
/// # Errors
/// As [`llama`].
pub fn smollm3(c: Config<'_>) -> Result<Decoder, ModelError> {
    let mut d = llama(c)?;
    d.head.tied = c.flag_or("tie_word_embeddings", true)?;
    let layers = d.stack.layers.len();
    let interval = c.count_or("no_rope_layer_interval", 1 << 16, 4)?;
    let rotates: Vec<bool> = match c.numbers("no_rope_layers")? {
        Some(list) if list.len() == layers => list.iter().map(|v| *v != 0.0).collect(),
        Some(_) => return Err(c.unsupported("no_rope_layers", "one entry per layer")),
        None => (0..layers).map(|i| (i + 1) % interval != 0).collect(),
    };
    set_windows(c, &mut d, c.flag_or("use_sliding_window", false)?, |i| !rotates[i])?;
    d.each_layer(|i, l| l.attention.rope = rotates[i].then_some(0));
    Ok(d)
}

/// `model_type: olmo2`: norms on the sublayers' outputs, and on whole rows of queries and keys.
///
/// # Errors
/// As [`llama`].
pub fn olmo2(c: Config<'_>) -> Result<Decoder, ModelError> {
    let mut d = common(c, "hidden_act")?;
    let bias = c.flag_or("attention_bias", false)?;
    d.each_layer(|_, l| {
        l.attention = l.attention.biases(bias);
        l.attention.norms = Norms { output: Some("post_attention_layernorm"), ..Norms::default() };
        l.mlp.norms = Norms { output: Some("post_feedforward_layernorm"), ..Norms::default() };
        l.attention.qk_norm = Some(qk_norms(false));
    });
    Ok(d)
}

/// `model_type: glm`: half of each head rotates, pairs of neighbours; one matrix for gate and up.
///
/// # Errors
/// As [`llama`].
pub fn glm(c: Config<'_>) -> Result<Decoder, ModelError> {
    let mut d = common(c, "hidden_act")?;
    let head_dim = d.stack.layers[0].attention.head_dim;
    let mut table = rope(c, rotated(c, "partial_rotary_factor", head_dim, 0.5)?, d.stack.max_positions)?;
    table.interleaved = true;
    d.stack.ropes = vec![table];
    let bias = c.flag_or("attention_bias", false)?;
    d.each_layer(|_, l| {
        l.attention.qkv_bias = bias;
        l.mlp.kind = MlpKind::GatedFused { gate_up: "mlp.gate_up_proj", down: "mlp.down_proj" };
    });
    Ok(d)
}

/// `model_type: glm4`: more norms, on the sublayers' outputs.
///
/// # Errors
/// As [`llama`].
pub fn glm4(c: Config<'_>) -> Result<Decoder, ModelError> {
    let mut d = glm(c)?;
    d.each_layer(|_, l| {
        l.attention.norms.output = Some("post_self_attn_layernorm");
        l.mlp.norms.output = Some("post_mlp_layernorm");
    });
    Ok(d)
}

/// `model_type: phi3`: one matrix for q, k and v and one for gate and up; LongRoPE; a window.
///
/// # Errors
/// As [`llama`].
pub fn phi3(c: Config<'_>) -> Result<Decoder, ModelError> {
    let mut d = common(c, "hidden_act")?;
    set_windows(c, &mut d, true, |_| true)?;
    d.each_layer(|_, l| {
        l.attention.qkv = Qkv::Fused { module: "self_attn.qkv_proj", order: FusedOrder::Blocks };
        l.mlp.kind = MlpKind::GatedFused { gate_up: "mlp.gate_up_proj", down: "mlp.down_proj" };
    });
    Ok(d)
}
