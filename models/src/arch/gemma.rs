//! Gemma, Gemma 2 and the text part of Gemma 3: norms that store weight − 1, scaled embeddings.

use super::llama::{common, layer_types, set_windows};
use crate::config::Config;
use crate::decoder::Decoder;
use crate::error::ModelError;
use crate::layer::{Norms, QkNorm};
use crate::names::activation;
use crate::rope::rope_of_kind;

/// What the three share.
fn shared(c: Config<'_>) -> Result<Decoder, ModelError> {
    let mut d = common(c, "hidden_activation")?;
    // Files of the first Gemma say `hidden_act: gelu` and mean the tanh form.
    let act = activation(c, "hidden_activation", "gelu_pytorch_tanh")?;
    if c.flag_or("use_bidirectional_attention", false)? {
        return Err(c.unsupported("use_bidirectional_attention", "false: Gemma is supported as a decoder"));
    }
    let bias = c.flag_or("attention_bias", false)?;
    d.stack.norm.add = 1.0;
    d.stack.embeddings.scale = (d.stack.hidden as f64).sqrt() as f32;
    d.head.tied = c.flag_or("tie_word_embeddings", true)?;
    d.each_layer(|_, l| {
        l.attention = l.attention.biases(bias);
        l.mlp.act = act;
    });
    Ok(d)
}

/// Norms before and after each sublayer, and the factor and caps of scores and logits.
fn sandwich(c: Config<'_>, d: &mut Decoder, cap_scores: f64, cap_logits: f64) -> Result<(), ModelError> {
    let cap = |field: &'static str, default| match c.get(field) {
        // An explicit null turns a cap off; absence means the family's default.
        None if c.names(field) => Ok(0.0),
        _ => c.number_or(field, default),
    };
    let scores = cap("attn_logit_softcapping", cap_scores)?;
    d.head.softcap = cap("final_logit_softcapping", cap_logits)? as f32;
    let scalar = c.number_or("query_pre_attn_scalar", 256.0)?;
    if scalar <= 0.0 || scores < 0.0 || d.head.softcap < 0.0 {
        return Err(c.unsupported("query_pre_attn_scalar", "a number above 0"));
    }
    let norms = |input, output| Norms { input: Some(input), output: Some(output), sum: None };
    d.each_layer(|_, l| {
        l.attention.scale = scalar.powf(-0.5);
        l.attention.softcap = scores as f32;
        l.attention.norms = norms("input_layernorm", "post_attention_layernorm");
        l.mlp.norms = norms("pre_feedforward_layernorm", "post_feedforward_layernorm");
    });
    Ok(())
}

/// `model_type: gemma`.
///
/// # Errors
/// A config field that is missing or out of range.
pub fn gemma(c: Config<'_>) -> Result<Decoder, ModelError> {
    shared(c)
}

/// `model_type: gemma2`: soft caps, norms on both sides, a window on every other layer.
///
/// # Errors
/// As [`gemma`].
pub fn gemma2(c: Config<'_>) -> Result<Decoder, ModelError> {
    let mut d = shared(c)?;
    sandwich(c, &mut d, 50.0, 30.0)?;
    set_windows(c, &mut d, true, |i| i % 2 == 0)?;
    Ok(d)
}

/// `model_type: gemma3_text`: local layers with a rotary table of their own, norms of queries and keys.
///
/// # Errors
/// As [`gemma`].
pub fn gemma3_text(c: Config<'_>) -> Result<Decoder, ModelError> {
    let mut d = shared(c)?;
    sandwich(c, &mut d, 0.0, 0.0)?;
    let layers = d.stack.layers.len();
    let pattern = c.count_or("sliding_window_pattern", 1 << 16, 6)?;
    let slides = layer_types(c, layers)?.unwrap_or_else(|| (0..layers).map(|i| (i + 1) % pattern != 0).collect());
    set_windows(c, &mut d, true, |i| slides[i])?;
    let sizes = (d.stack.layers[0].attention.head_dim, d.stack.max_positions);
    let scaling = c.object("rope_scaling");
    d.stack.ropes = vec![
        rope_of_kind(c, "full_attention", ("rope_theta", 1_000_000.0), scaling, sizes)?,
        rope_of_kind(c, "sliding_attention", ("rope_local_base_freq", 10000.0), None, sizes)?,
    ];
    d.each_layer(|i, l| {
        l.attention.rope = Some(usize::from(slides[i]));
        l.attention.qk_norm = Some(QkNorm { q: "self_attn.q_norm", k: "self_attn.k_norm", per_head: true });
    });
    Ok(d)
}
