//! GPT-2, GPT-Neo and OPT: learned positions, plain MLPs, biases everywhere.

use crate::config::Config;
use crate::decoder::{Decoder, LmHead};
use crate::error::ModelError;
use crate::heads;
use crate::layer::{Attention, FusedOrder, Layer, Mlp, MlpKind, Norms, Qkv};
use crate::names::activation;
use crate::stack::{Embeddings, PositionBias, Positions, Stack};

/// Elements of a head.
pub(super) fn head_dim(c: Config<'_>, hidden: usize, heads: usize, field: &'static str) -> Result<usize, ModelError> {
    if hidden.is_multiple_of(heads) {
        Ok(hidden / heads)
    } else {
        Err(c.unsupported(field, "a divisor of the hidden size"))
    }
}

/// `model_type: gpt2`: matrices stored as inputs × outputs, one for q, k and v.
///
/// # Errors
/// A config field that is missing or out of range, or an option that changes numbers and is not supported.
pub fn gpt2(c: Config<'_>) -> Result<Decoder, ModelError> {
    let hidden = c.count("n_embd", 1 << 20)?;
    let heads = c.count("n_head", 1 << 16)?;
    let positions = c.count("n_positions", 1 << 24)?;
    let inner = c.count_or("n_inner", 1 << 22, 4 * hidden)?;
    let act = activation(c, "activation_function", "gelu_new")?;
    if c.flag_or("add_cross_attention", false)? {
        return Err(c.unsupported("add_cross_attention", "false"));
    }
    let (scaled, by_layer) =
        (c.flag_or("scale_attn_weights", true)?, c.flag_or("scale_attn_by_inverse_layer_idx", false)?);
    let qkv = Qkv::Fused { module: "attn.c_attn", order: FusedOrder::Blocks };
    let sizes = (heads, head_dim(c, hidden, heads, "n_head")?);
    let layer = |i: usize| {
        let mut attention = Attention::causal(Norms::pre("ln_1"), qkv, "attn.c_proj", sizes).biases(true);
        if !scaled {
            attention.scale = 1.0;
        }
        if by_layer {
            attention.scale /= (i + 1) as f64;
        }
        let kind = MlpKind::Plain { up: "mlp.c_fc", down: "mlp.c_proj" };
        let mlp = Mlp { norms: Norms::pre("ln_2"), kind, inner, act, bias: true, experts: None };
        Layer { transpose: true, ..Layer::new(format!("h.{i}"), attention, mlp) }
    };
    Ok(Decoder {
        stack: Stack {
            prefixes: &["transformer.", ""],
            hidden,
            embeddings: Embeddings {
                positions: Positions::Learned { module: "wpe", rows: positions, offset: 0 },
                ..Embeddings::words(&["wte"], c.count("vocab_size", 1 << 23)?, hidden)
            },
            norm: heads::layer_norm(c.number_or("layer_norm_epsilon", 1e-5)? as f32),
            layers: (0..c.count("n_layer", 4096)?).map(layer).collect(),
            final_norm: Some("ln_f"),
            ropes: Vec::new(),
            bias: PositionBias::None,
            max_positions: positions,
        },
        head: LmHead::new(c.flag_or("tie_word_embeddings", true)?),
    })
}

/// `model_type: gpt_neo`: unscaled scores, a window on the layers that are called local.
///
/// # Errors
/// As [`gpt2`].
pub fn gpt_neo(c: Config<'_>) -> Result<Decoder, ModelError> {
    let hidden = c.count("hidden_size", 1 << 20)?;
    let heads = c.count("num_heads", 1 << 16)?;
    let layers = c.count("num_layers", 4096)?;
    let positions = c.count("max_position_embeddings", 1 << 24)?;
    let inner = c.count_or("intermediate_size", 1 << 22, 4 * hidden)?;
    let act = activation(c, "activation_function", "gelu_new")?;
    let window = c.count_or("window_size", 1 << 24, 256)?;
    let kinds = c.texts("attention_layers")?;
    if kinds.len() != layers || kinds.iter().any(|k| !matches!(*k, "global" | "local")) {
        return Err(c.unsupported("attention_layers", "global or local for every layer"));
    }
    let qkv = Qkv::Separate { q: "attn.attention.q_proj", k: "attn.attention.k_proj", v: "attn.attention.v_proj" };
    let sizes = (heads, head_dim(c, hidden, heads, "num_heads")?);
    let layer = |i: usize| {
        let mut attention = Attention::causal(Norms::pre("ln_1"), qkv, "attn.attention.out_proj", sizes);
        (attention.scale, attention.out_bias) = (1.0, true);
        attention.window = if kinds[i] == "local" { window } else { 0 };
        let kind = MlpKind::Plain { up: "mlp.c_fc", down: "mlp.c_proj" };
        let mlp = Mlp { norms: Norms::pre("ln_2"), kind, inner, act, bias: true, experts: None };
        Layer::new(format!("h.{i}"), attention, mlp)
    };
    Ok(Decoder {
        stack: Stack {
            prefixes: &["transformer.", ""],
            hidden,
            embeddings: Embeddings {
                positions: Positions::Learned { module: "wpe", rows: positions, offset: 0 },
                ..Embeddings::words(&["wte"], c.count("vocab_size", 1 << 23)?, hidden)
            },
            norm: heads::layer_norm(c.number_or("layer_norm_epsilon", 1e-5)? as f32),
            layers: (0..layers).map(layer).collect(),
            final_norm: Some("ln_f"),
            ropes: Vec::new(),
            bias: PositionBias::None,
            max_positions: positions,
        },
        head: LmHead::new(c.flag_or("tie_word_embeddings", true)?),
    })
}

/// `model_type: opt`: positions begin at row 2 of their table.
///
/// # Errors
/// As [`gpt2`].
pub fn opt(c: Config<'_>) -> Result<Decoder, ModelError> {
    const OFFSET: usize = 2;
    let hidden = c.count("hidden_size", 1 << 20)?;
    let heads = c.count("num_attention_heads", 1 << 16)?;
    let positions = c.count("max_position_embeddings", 1 << 24)?;
    let inner = c.count("ffn_dim", 1 << 22)?;
    let act = activation(c, "activation_function", "relu")?;
    let bias = c.flag_or("enable_bias", true)?;
    if c.count_or("word_embed_proj_dim", 1 << 20, hidden)? != hidden {
        return Err(
            c.unsupported("word_embed_proj_dim", "the hidden size: project_in and project_out are not supported")
        );
    }
    if !c.flag_or("layer_norm_elementwise_affine", true)? {
        return Err(c.unsupported("layer_norm_elementwise_affine", "true"));
    }
    let before = c.flag_or("do_layer_norm_before", true)?;
    let norms = |name| if before { Norms::pre(name) } else { Norms::post(name) };
    let qkv = Qkv::Separate { q: "self_attn.q_proj", k: "self_attn.k_proj", v: "self_attn.v_proj" };
    let sizes = (heads, head_dim(c, hidden, heads, "num_attention_heads")?);
    let layer = |i: usize| {
        let norm = norms("self_attn_layer_norm");
        let attention = Attention::causal(norm, qkv, "self_attn.out_proj", sizes).biases(bias);
        let kind = MlpKind::Plain { up: "fc1", down: "fc2" };
        let mlp = Mlp { norms: norms("final_layer_norm"), kind, inner, act, bias, experts: None };
        Layer::new(format!("layers.{i}"), attention, mlp)
    };
    let final_norm = before && !c.flag_or("_remove_final_layer_norm", false)?;
    Ok(Decoder {
        stack: Stack {
            prefixes: &["model.decoder.", "decoder."],
            hidden,
            embeddings: Embeddings {
                positions: Positions::Learned { module: "embed_positions", rows: positions + OFFSET, offset: OFFSET },
                ..Embeddings::words(&["embed_tokens"], c.count("vocab_size", 1 << 23)?, hidden)
            },
            norm: heads::layer_norm(1e-5),
            layers: (0..c.count("num_hidden_layers", 4096)?).map(layer).collect(),
            final_norm: final_norm.then_some("final_layer_norm"),
            ropes: Vec::new(),
            bias: PositionBias::None,
            max_positions: positions,
        },
        head: LmHead::new(c.flag_or("tie_word_embeddings", true)?),
    })
}
