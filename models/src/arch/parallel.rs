//! Decoders with layer norms, most of them with attention and MLP side by side: Phi, StableLM, Cohere, GPT-J; and OLMo,
//! whose norms have no weights.

use super::gpt2::head_dim;
use super::llama::{common, layer_types};
use crate::config::Config;
use crate::decoder::{Decoder, LmHead};
use crate::error::ModelError;
use crate::heads;
use crate::layer::{Attention, Layer, Mlp, MlpKind, Norms, QkNorm, Qkv};
use crate::names::activation;
use crate::rope::{rope, rotated};
use crate::stack::{Embeddings, PositionBias, Stack};

/// Attention and MLP both read the one norm of the layer's input.
fn side_by_side(d: &mut Decoder) {
    d.each_layer(|_, l| {
        l.parallel = true;
        l.mlp.norms = l.attention.norms;
    });
}

/// `model_type: phi` (Phi-1, 1.5 and 2).
///
/// # Errors
/// A config field that is missing or out of range, or an option that changes numbers and is not supported.
pub fn phi(c: Config<'_>) -> Result<Decoder, ModelError> {
    let mut d = common(c, "hidden_act")?;
    d.stack.norm = heads::layer_norm(c.number_or("layer_norm_eps", 1e-5)? as f32);
    d.stack.final_norm = Some("final_layernorm");
    d.head.bias = true;
    let head_dim = d.stack.layers[0].attention.head_dim;
    d.stack.ropes = vec![rope(c, rotated(c, "partial_rotary_factor", head_dim, 0.5)?, d.stack.max_positions)?];
    let act = activation(c, "hidden_act", "gelu_new")?;
    let qk_norm = c.flag_or("qk_layernorm", false)?;
    let names = QkNorm { q: "self_attn.q_layernorm", k: "self_attn.k_layernorm", per_head: true };
    d.each_layer(|_, l| {
        l.attention = l.attention.biases(true);
        l.attention.out = "self_attn.dense";
        l.attention.qk_norm = qk_norm.then_some(names);
        l.mlp.kind = MlpKind::Plain { up: "mlp.fc1", down: "mlp.fc2" };
        (l.mlp.act, l.mlp.bias) = (act, true);
    });
    side_by_side(&mut d);
    Ok(d)
}

/// `model_type: stablelm`: a quarter of each head rotated.
///
/// # Errors
/// As [`phi`].
pub fn stablelm(c: Config<'_>) -> Result<Decoder, ModelError> {
    let mut d = common(c, "hidden_act")?;
    if c.flag_or("qk_layernorm", false)? {
        return Err(c.unsupported("qk_layernorm", "false: its norms have weights for every head"));
    }
    d.stack.norm = heads::layer_norm(c.number_or("layer_norm_eps", 1e-5)? as f32);
    let head_dim = d.stack.layers[0].attention.head_dim;
    d.stack.ropes = vec![rope(c, rotated(c, "partial_rotary_factor", head_dim, 0.25)?, d.stack.max_positions)?];
    let bias = c.flag_or("use_qkv_bias", false)?;
    d.each_layer(|_, l| l.attention.qkv_bias = bias);
    if c.flag_or("use_parallel_residual", false)? {
        side_by_side(&mut d);
    }
    Ok(d)
}

/// `model_type: olmo`: norms without weights.
///
/// # Errors
/// As [`phi`].
pub fn olmo(c: Config<'_>) -> Result<Decoder, ModelError> {
    let mut d = common(c, "hidden_act")?;
    if c.get("clip_qkv").is_some() {
        return Err(c.unsupported("clip_qkv", "null"));
    }
    d.stack.norm = heads::layer_norm(1e-5);
    d.stack.norm.weights = false;
    let bias = c.flag_or("attention_bias", false)?;
    d.each_layer(|_, l| l.attention = l.attention.biases(bias));
    Ok(d)
}

/// `model_type: cohere` (Command R): pairs of neighbours rotate, logits have a factor.
///
/// # Errors
/// As [`phi`].
pub fn cohere(c: Config<'_>) -> Result<Decoder, ModelError> {
    let mut d = common(c, "hidden_act")?;
    if c.flag_or("use_qk_norm", false)? {
        return Err(c.unsupported("use_qk_norm", "false: its norms have weights for every head"));
    }
    d.stack.norm = heads::layer_norm(c.number_or("layer_norm_eps", 1e-5)? as f32);
    d.stack.ropes[0].interleaved = true;
    d.head.tied = c.flag_or("tie_word_embeddings", true)?;
    d.head.scale = c.number_or("logit_scale", 0.0625)? as f32;
    let bias = c.flag_or("attention_bias", false)?;
    d.each_layer(|_, l| l.attention = l.attention.biases(bias));
    side_by_side(&mut d);
    Ok(d)
}

/// `model_type: cohere2` (Command R7B): layers with a window rotate, the others do not.
///
/// # Errors
/// As [`phi`].
pub fn cohere2(c: Config<'_>) -> Result<Decoder, ModelError> {
    let mut d = cohere(c)?;
    let layers = d.stack.layers.len();
    let pattern = c.count_or("sliding_window_pattern", 1 << 16, 4)?;
    let slides = layer_types(c, layers)?.unwrap_or_else(|| (0..layers).map(|i| (i + 1) % pattern != 0).collect());
    let window = c.count_or("sliding_window", 1 << 24, 4096)?;
    d.each_layer(|i, l| {
        l.attention.window = if slides[i] { window } else { 0 };
        l.attention.rope = slides[i].then_some(0);
    });
    Ok(d)
}

/// `model_type: gptj`: pairs of neighbours rotate, in the first `rotary_dim` elements of each head.
///
/// # Errors
/// As [`phi`].
pub fn gptj(c: Config<'_>) -> Result<Decoder, ModelError> {
    let hidden = c.count("n_embd", 1 << 20)?;
    let heads = c.count("n_head", 1 << 16)?;
    let head_dim = head_dim(c, hidden, heads, "n_head")?;
    let max_positions = c.count("n_positions", 1 << 24)?;
    let dim = c.count_or("rotary_dim", 512, 64)?;
    if dim > head_dim || !dim.is_multiple_of(2) {
        return Err(c.unsupported("rotary_dim", "an even number up to the size of a head"));
    }
    let inner = c.count_or("n_inner", 1 << 22, 4 * hidden)?;
    let act = activation(c, "activation_function", "gelu_new")?;
    let qkv = Qkv::Separate { q: "attn.q_proj", k: "attn.k_proj", v: "attn.v_proj" };
    let norms = Norms::pre("ln_1");
    let layer = |i: usize| {
        let mut attention = Attention::causal(norms, qkv, "attn.out_proj", (heads, head_dim));
        attention.rope = Some(0);
        let kind = MlpKind::Plain { up: "mlp.fc_in", down: "mlp.fc_out" };
        let mlp = Mlp { norms, kind, inner, act, bias: true, experts: None };
        Layer { parallel: true, ..Layer::new(format!("h.{i}"), attention, mlp) }
    };
    let mut rope = rope(c, dim, max_positions)?;
    rope.interleaved = true;
    Ok(Decoder {
        stack: Stack {
            prefixes: &["transformer.", ""],
            hidden,
            embeddings: Embeddings::words(&["wte"], c.count("vocab_size", 1 << 23)?, hidden),
            norm: heads::layer_norm(c.number_or("layer_norm_epsilon", 1e-5)? as f32),
            layers: (0..c.count("n_layer", 4096)?).map(layer).collect(),
            final_norm: Some("ln_f"),
            ropes: vec![rope],
            bias: PositionBias::None,
            max_positions,
        },
        head: LmHead { bias: true, ..LmHead::new(c.flag_or("tie_word_embeddings", false)?) },
    })
}
