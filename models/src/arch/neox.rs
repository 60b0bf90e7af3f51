//! GPT-NeoX (Pythia), BLOOM, Falcon, MPT and StarCoder2: layer norms, plain MLPs, mostly one matrix for q, k and v.

use super::gpt2::head_dim;
use super::llama::{common, set_windows};
use crate::config::Config;
use crate::decoder::{Decoder, LmHead};
use crate::error::ModelError;
use crate::heads;
use crate::layer::{Attention, FusedOrder, Layer, Mlp, MlpKind, Norms, Qkv};
use crate::names::activation;
use crate::rope::{rope, rope_of_kind, rotated};
use crate::stack::{Embeddings, PositionBias, Stack};

const DENSE_4H: MlpKind = MlpKind::Plain { up: "mlp.dense_h_to_4h", down: "mlp.dense_4h_to_h" };

/// `model_type: gpt_neox`: attention and MLP side by side, a quarter of each head rotated.
///
/// # Errors
/// A config field that is missing or out of range, or an option that changes numbers and is not supported.
pub fn gpt_neox(c: Config<'_>) -> Result<Decoder, ModelError> {
    let hidden = c.count("hidden_size", 1 << 20)?;
    let heads = c.count("num_attention_heads", 1 << 16)?;
    let head_dim = head_dim(c, hidden, heads, "num_attention_heads")?;
    let max_positions = c.count("max_position_embeddings", 1 << 24)?;
    let inner = c.count("intermediate_size", 1 << 22)?;
    let act = activation(c, "hidden_act", "gelu")?;
    let bias = c.flag_or("attention_bias", true)?;
    let parallel = c.flag_or("use_parallel_residual", true)?;
    let dim = rotated(c, "rotary_pct", head_dim, 0.25)?;
    let theta = match c.get("rotary_emb_base") {
        Some(_) => ("rotary_emb_base", 10000.0),
        None => ("rope_theta", 10000.0),
    };
    let nested = c.object("rope_parameters").or_else(|| c.object("rope_scaling"));
    let qkv = Qkv::Fused { module: "attention.query_key_value", order: FusedOrder::Groups };
    let layer = |i: usize| {
        let norm = Norms::pre("input_layernorm");
        let mut attention = Attention::causal(norm, qkv, "attention.dense", (heads, head_dim)).biases(bias);
        attention.rope = Some(0);
        let mlp = Mlp {
            norms: Norms::pre("post_attention_layernorm"),
            kind: DENSE_4H,
            inner,
            act,
            bias: true,
            experts: None,
        };
        Layer { parallel, ..Layer::new(format!("layers.{i}"), attention, mlp) }
    };
    Ok(Decoder {
        stack: Stack {
            prefixes: &["gpt_neox.", ""],
            hidden,
            embeddings: Embeddings::words(&["embed_in"], c.count("vocab_size", 1 << 23)?, hidden),
            norm: heads::layer_norm(c.number_or("layer_norm_eps", 1e-5)? as f32),
            layers: (0..c.count("num_hidden_layers", 4096)?).map(layer).collect(),
            final_norm: Some("final_layer_norm"),
            ropes: vec![rope_of_kind(c, "", theta, nested, (dim, max_positions))?],
            bias: PositionBias::None,
            max_positions,
        },
        head: LmHead { module: "embed_out", ..LmHead::new(c.flag_or("tie_word_embeddings", false)?) },
    })
}

/// ALiBi's slopes (Press et al. 2021): a geometric sequence for the power of two below the number of heads, the rest
/// from the sequence of twice as many.
fn alibi_slopes(heads: usize) -> Vec<f32> {
    let below = 1 << heads.ilog2();
    let base = |n: usize| 2_f64.powf(-(2_f64.powf(-((n as f64).log2() - 3.0)))) as f32;
    let slopes = |base: f32, step: usize, count: usize| {
        (0..count).map(move |i| f64::from(base).powf((1 + i * step) as f64) as f32)
    };
    slopes(base(below), 1, below).chain(slopes(base(2 * below), 2, heads - below)).collect()
}

/// `model_type: bloom`: ALiBi, a norm on the embeddings.
///
/// # Errors
/// As [`gpt_neox`].
pub fn bloom(c: Config<'_>) -> Result<Decoder, ModelError> {
    let hidden = match c.get("hidden_size") {
        Some(_) => c.count("hidden_size", 1 << 20)?,
        None => c.count("n_embed", 1 << 20)?,
    };
    let heads = match c.get("n_head") {
        Some(_) => c.count("n_head", 1 << 16)?,
        None => c.count("num_attention_heads", 1 << 16)?,
    };
    let layers = match c.get("n_layer") {
        Some(_) => c.count("n_layer", 4096)?,
        None => c.count("num_hidden_layers", 4096)?,
    };
    if c.flag_or("apply_residual_connection_post_layernorm", false)? {
        return Err(c.unsupported("apply_residual_connection_post_layernorm", "false"));
    }
    let qkv = Qkv::Fused { module: "self_attention.query_key_value", order: FusedOrder::Groups };
    let sizes = (heads, head_dim(c, hidden, heads, "n_head")?);
    let layer = |i: usize| {
        let norm = Norms::pre("input_layernorm");
        let attention = Attention::causal(norm, qkv, "self_attention.dense", sizes).biases(true);
        let mlp = Mlp {
            norms: Norms::pre("post_attention_layernorm"),
            kind: DENSE_4H,
            inner: 4 * hidden,
            act: lora_runtime::kernels::Act::GeluTanh,
            bias: true,
            experts: None,
        };
        Layer::new(format!("h.{i}"), attention, mlp)
    };
    Ok(Decoder {
        stack: Stack {
            prefixes: &["transformer.", ""],
            hidden,
            embeddings: Embeddings {
                norm: Some("word_embeddings_layernorm"),
                ..Embeddings::words(&["word_embeddings"], c.count("vocab_size", 1 << 23)?, hidden)
            },
            norm: heads::layer_norm(c.number_or("layer_norm_epsilon", 1e-5)? as f32),
            layers: (0..layers).map(layer).collect(),
            final_norm: Some("ln_f"),
            ropes: Vec::new(),
            bias: PositionBias::Alibi(alibi_slopes(heads)),
            // ALiBi has no end; this is the length that BLOOM was trained with.
            max_positions: c.count_or("seq_length", 1 << 24, 2048)?,
        },
        head: LmHead::new(c.flag_or("tie_word_embeddings", true)?),
    })
}

/// MPT's slopes: a geometric sequence down to 2^−`max` for the power of two above the number of heads, every other one
/// first where there are too many.
fn mpt_slopes(heads: usize, max: f64) -> Vec<f32> {
    let above = heads.next_power_of_two();
    let slope = |i: usize| 2_f64.powf(-((i + 1) as f64 * max / above as f64)) as f32;
    let all = (0..above).map(slope);
    if above == heads {
        return all.collect();
    }
    let all: Vec<f32> = all.collect();
    all.iter().skip(1).step_by(2).chain(all.iter().step_by(2)).take(heads).copied().collect()
}

/// `model_type: mpt`: ALiBi, norms without biases.
///
/// # Errors
/// As [`gpt_neox`].
pub fn mpt(c: Config<'_>) -> Result<Decoder, ModelError> {
    let hidden = c.count("d_model", 1 << 20)?;
    let heads = c.count("n_heads", 1 << 16)?;
    let head_dim = head_dim(c, hidden, heads, "n_heads")?;
    let a = c.object("attn_config").ok_or(ModelError::ConfigMissing { field: "attn_config" })?;
    for field in ["qk_ln", "prefix_lm", "attn_uses_sequence_id"] {
        if a.flag_or(field, false)? {
            return Err(a.unsupported(field, "attn_config with false"));
        }
    }
    if !a.flag_or("alibi", true)? || a.get("clip_qkv").is_some() || !c.flag_or("no_bias", true)? {
        return Err(c.unsupported("attn_config", "alibi, no clip_qkv, and no_bias"));
    }
    let scale = a.optional_number("softmax_scale")?;
    let qkv = Qkv::Fused { module: "attn.Wqkv", order: FusedOrder::Blocks };
    let layer = |i: usize| {
        let mut attention = Attention::causal(Norms::pre("norm_1"), qkv, "attn.out_proj", (heads, head_dim));
        attention.scale = scale.unwrap_or(attention.scale);
        let mlp = Mlp {
            norms: Norms::pre("norm_2"),
            kind: MlpKind::Plain { up: "ffn.up_proj", down: "ffn.down_proj" },
            inner: 4 * hidden,
            act: lora_runtime::kernels::Act::Gelu,
            bias: false,
            experts: None,
        };
        Layer::new(format!("blocks.{i}"), attention, mlp)
    };
    Ok(Decoder {
        stack: Stack {
            prefixes: &["transformer.", ""],
            hidden,
            embeddings: Embeddings::words(&["wte"], c.count("vocab_size", 1 << 23)?, hidden),
            norm: heads::layer_norm(c.number_or("layer_norm_epsilon", 1e-5)? as f32),
            layers: (0..c.count("n_layers", 4096)?).map(layer).collect(),
            final_norm: Some("norm_f"),
            ropes: Vec::new(),
            bias: PositionBias::Alibi(mpt_slopes(heads, a.number_or("alibi_bias_max", 8.0)?)),
            max_positions: c.count_or("max_seq_len", 1 << 24, 2048)?,
        },
        head: LmHead::new(c.flag_or("tie_word_embeddings", true)?),
    })
}

/// `model_type: falcon`: one key/value head or groups, attention and MLP side by side.
///
/// # Errors
/// As [`gpt_neox`].
pub fn falcon(c: Config<'_>) -> Result<Decoder, ModelError> {
    let hidden = c.count("hidden_size", 1 << 20)?;
    let heads = c.count("num_attention_heads", 1 << 16)?;
    let head_dim = head_dim(c, hidden, heads, "num_attention_heads")?;
    let grouped = c.flag_or("new_decoder_architecture", false)?;
    let multi_query = c.flag_or("multi_query", true)?;
    let kv_heads = match (grouped, multi_query) {
        (true, _) => c.count_or("num_kv_heads", 1 << 16, heads)?,
        (false, true) => 1,
        (false, false) => heads,
    };
    if !heads.is_multiple_of(kv_heads) || !head_dim.is_multiple_of(2) {
        return Err(c.unsupported("num_kv_heads", "a divisor of num_attention_heads, and heads of an even size"));
    }
    if c.flag_or("alibi", false)? {
        return Err(c.unsupported("alibi", "false: Falcon rounds its ALiBi to bfloat16, which is not supported"));
    }
    let max_positions = c.count_or("max_position_embeddings", 1 << 24, 2048)?;
    let inner = c.count_or("ffn_hidden_size", 1 << 22, 4 * hidden)?;
    let act = activation(c, "activation", "gelu")?;
    let bias = c.flag_or("bias", false)?;
    let parallel = grouped || c.flag_or("parallel_attn", true)?;
    let norms_in_parallel = c.count_or("num_ln_in_parallel_attn", 2, if grouped { 2 } else { 1 })?;
    let (attention_norm, mlp_norm) = match (parallel, grouped && norms_in_parallel == 2) {
        (_, true) => ("ln_attn", "ln_mlp"),
        (true, false) => ("input_layernorm", "input_layernorm"),
        (false, false) => ("input_layernorm", "post_attention_layernorm"),
    };
    let qkv = Qkv::Fused { module: "self_attention.query_key_value", order: FusedOrder::Groups };
    let layer = |i: usize| {
        let norm = Norms::pre(attention_norm);
        let mut attention = Attention::causal(norm, qkv, "self_attention.dense", (heads, head_dim)).biases(bias);
        (attention.kv_heads, attention.rope) = (kv_heads, Some(0));
        let mlp = Mlp { norms: Norms::pre(mlp_norm), kind: DENSE_4H, inner, act, bias, experts: None };
        Layer { parallel, ..Layer::new(format!("h.{i}"), attention, mlp) }
    };
    Ok(Decoder {
        stack: Stack {
            prefixes: &["transformer.", ""],
            hidden,
            embeddings: Embeddings::words(&["word_embeddings"], c.count("vocab_size", 1 << 23)?, hidden),
            norm: heads::layer_norm(c.number_or("layer_norm_epsilon", 1e-5)? as f32),
            layers: (0..c.count("num_hidden_layers", 4096)?).map(layer).collect(),
            final_norm: Some("ln_f"),
            ropes: vec![rope(c, head_dim, max_positions)?],
            bias: PositionBias::None,
            max_positions,
        },
        head: LmHead::new(c.flag_or("tie_word_embeddings", true)?),
    })
}

/// `model_type: starcoder2`: Llama's attention with biases, layer norms and a plain MLP; a window.
///
/// # Errors
/// As [`gpt_neox`].
pub fn starcoder2(c: Config<'_>) -> Result<Decoder, ModelError> {
    let mut d = common(c, "hidden_act")?;
    d.head.tied = c.flag_or("tie_word_embeddings", true)?;
    d.stack.norm = heads::layer_norm(c.number_or("norm_epsilon", 1e-5)? as f32);
    set_windows(c, &mut d, true, |_| true)?;
    let bias = c.flag_or("use_bias", true)?;
    let act = activation(c, "hidden_act", "gelu_pytorch_tanh")?;
    d.each_layer(|_, l| {
        l.attention = l.attention.biases(bias);
        l.mlp.kind = MlpKind::Plain { up: "mlp.c_fc", down: "mlp.c_proj" };
        (l.mlp.act, l.mlp.bias) = (act, bias);
    });
    Ok(d)
}

#[cfg(test)]
mod tests {
    use super::alibi_slopes;

    #[test]
    fn slopes_of_powers_of_two_and_others() {
        assert_eq!(alibi_slopes(8), [0.5, 0.25, 0.125, 0.0625, 0.03125, 0.015_625, 0.007_812_5, 0.003_906_25]);
        let six = alibi_slopes(6);
        assert_eq!(six[..4], [0.25, 0.0625, 0.015_625, 0.003_906_25]);
        assert_eq!(six[4..], [0.5, 0.125]);
    }
}
