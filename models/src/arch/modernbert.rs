//! ModernBERT: a pre-norm encoder with rotary positions, gated MLPs, and windows on most layers.

use super::gpt2::head_dim;
use super::llama::layer_types;
use crate::config::Config;
use crate::encoder::{Dense, Encoder, EncoderHeads, Sentence};
use crate::error::ModelError;
use crate::heads;
use crate::layer::{Attention, FusedOrder, Layer, Mlp, MlpKind, Norms, Qkv};
use crate::names::activation;
use crate::rope::rope_of_kind;
use crate::stack::{Embeddings, PositionBias, Stack};

/// `model_type: modernbert`.
///
/// # Errors
/// A config field that is missing or out of range, or an option that changes numbers and is not supported.
pub fn modernbert(c: Config<'_>) -> Result<Encoder, ModelError> {
    let hidden = c.count("hidden_size", 1 << 20)?;
    let heads = c.count("num_attention_heads", 1 << 16)?;
    let head_dim = head_dim(c, hidden, heads, "num_attention_heads")?;
    if !head_dim.is_multiple_of(2) {
        return Err(c.unsupported("num_attention_heads", "heads of an even size"));
    }
    let layers = c.count("num_hidden_layers", 4096)?;
    let max_positions = c.count("max_position_embeddings", 1 << 24)?;
    let every = c.count_or("global_attn_every_n_layers", 4096, 3)?;
    let local = layer_types(c, layers)?.unwrap_or_else(|| (0..layers).map(|i| i % every != 0).collect());
    // A token of a local layer sees half of `local_attention` on either side.
    let window = c.count_or("local_attention", 1 << 24, 128)? / 2 + 1;
    let (attention_bias, mlp_bias) = (c.flag_or("attention_bias", false)?, c.flag_or("mlp_bias", false)?);
    let inner = c.count("intermediate_size", 1 << 22)?;
    let act = activation(c, "hidden_activation", "gelu")?;
    let layer = |i: usize| {
        // The embeddings' norm serves the first layer.
        let norms = Norms { input: (i > 0).then_some("attn_norm"), ..Norms::default() };
        let qkv = Qkv::Fused { module: "attn.Wqkv", order: FusedOrder::Blocks };
        let mut attention = Attention::causal(norms, qkv, "attn.Wo", (heads, head_dim)).biases(attention_bias);
        attention.causal = false;
        attention.window = if local[i] { window } else { 0 };
        attention.rope = Some(usize::from(local[i]));
        let kind = MlpKind::GatedFused { gate_up: "mlp.Wi", down: "mlp.Wo" };
        let mlp = Mlp { norms: Norms::pre("mlp_norm"), kind, inner, act, bias: mlp_bias, experts: None };
        Layer::new(format!("layers.{i}"), attention, mlp)
    };
    let sizes = (head_dim, max_positions);
    let global_theta = if c.names("global_rope_theta") { "global_rope_theta" } else { "rope_theta" };
    let local_theta = if c.names("local_rope_theta") { "local_rope_theta" } else { "rope_local_base_freq" };
    let sentence = match c.text("classifier_pooling")?.unwrap_or("cls") {
        "cls" => Sentence::First,
        "mean" => Sentence::Mean,
        _ => return Err(c.unsupported("classifier_pooling", "cls or mean")),
    };
    let act = activation(c, "classifier_activation", "gelu")?;
    let head = Dense { module: "head.dense", in_backbone: false, act, norm: Some("head.norm") };
    Ok(Encoder {
        stack: Stack {
            prefixes: &["model.", ""],
            hidden,
            embeddings: Embeddings {
                norm: Some("embeddings.norm"),
                ..Embeddings::words(&["embeddings.tok_embeddings"], c.count("vocab_size", 1 << 23)?, hidden)
            },
            norm: heads::layer_norm(c.number_or("norm_eps", 1e-5)? as f32),
            layers: (0..layers).map(layer).collect(),
            final_norm: Some("final_norm"),
            ropes: vec![
                rope_of_kind(c, "full_attention", (global_theta, 160_000.0), None, sizes)?,
                rope_of_kind(c, "sliding_attention", (local_theta, 10_000.0), None, sizes)?,
            ],
            bias: PositionBias::None,
            max_positions,
        },
        heads: EncoderHeads {
            pooler: None,
            sentence,
            sentence_dense: head,
            sentence_classifier: "classifier",
            token_dense: Some(head),
            spans: "classifier",
        },
    })
}
