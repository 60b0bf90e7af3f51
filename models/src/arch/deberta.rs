//! DeBERTa v2 and v3: attention in which positions take part as vectors of their own.

use super::gpt2::head_dim;
use crate::buckets::disentangled;
use crate::config::Config;
use crate::encoder::{Dense, Encoder, EncoderHeads, Sentence};
use crate::error::ModelError;
use crate::heads;
use crate::layer::{Attention, Layer, Mlp, MlpKind, Norms, Qkv};
use crate::names::activation;
use crate::stack::{Disentangled, Embeddings, PositionBias, Positions, Stack};

/// `model_type: deberta-v2`.
///
/// # Errors
/// A config field that is missing or out of range, or an option that changes numbers and is not supported.
pub fn deberta_v2(c: Config<'_>) -> Result<Encoder, ModelError> {
    let hidden = c.count("hidden_size", 1 << 20)?;
    let heads = c.count("num_attention_heads", 1 << 16)?;
    let head_dim = head_dim(c, hidden, heads, "num_attention_heads")?;
    let layers = c.count("num_hidden_layers", 4096)?;
    let positions = c.count("max_position_embeddings", 1 << 16)?;
    let inner = c.count("intermediate_size", 1 << 22)?;
    let act = activation(c, "hidden_act", "gelu")?;
    if c.number_or("conv_kernel_size", 0.0)? > 0.0 {
        return Err(c.unsupported("conv_kernel_size", "0: the convolution beside the first layer is not supported"));
    }
    for (field, size) in [("embedding_size", hidden), ("attention_head_size", head_dim)] {
        if c.count_or(field, 1 << 20, size)? != size {
            return Err(c.unsupported(field, "the same as hidden_size (divided by num_attention_heads for a head)"));
        }
    }
    let qkv =
        Qkv::Separate { q: "attention.self.query_proj", k: "attention.self.key_proj", v: "attention.self.value_proj" };
    let norms = Norms::post("attention.output.LayerNorm");
    let layer = |i: usize| {
        let mut attention = Attention::causal(norms, qkv, "attention.output.dense", (heads, head_dim)).biases(true);
        // Three products: text with text, text with position, position with text.
        (attention.causal, attention.scale) = (false, (3.0 * head_dim as f64).powf(-0.5));
        let kind = MlpKind::Plain { up: "intermediate.dense", down: "output.dense" };
        let mlp = Mlp { norms: Norms::post("output.LayerNorm"), kind, inner, act, bias: true, experts: None };
        Layer::new(format!("encoder.layer.{i}"), attention, mlp)
    };
    let types = c.optional_u32("type_vocab_size")?.unwrap_or(0) as usize;
    let absolute = c.flag_or("position_biased_input", true)?;
    let module = "embeddings.position_embeddings";
    let pooler_act = activation(c, "pooler_hidden_act", "gelu")?;
    Ok(Encoder {
        stack: Stack {
            prefixes: &["deberta.", ""],
            hidden,
            embeddings: Embeddings {
                positions: match absolute {
                    true => Positions::Learned { module, rows: positions, offset: 0 },
                    false => Positions::None,
                },
                types: (types > 0).then_some(("embeddings.token_type_embeddings", types)),
                norm: Some("embeddings.LayerNorm"),
                ..Embeddings::words(&["embeddings.word_embeddings"], c.count("vocab_size", 1 << 23)?, hidden)
            },
            norm: heads::layer_norm(c.number_or("layer_norm_eps", 1e-7)? as f32),
            layers: (0..layers).map(layer).collect(),
            final_norm: None,
            ropes: Vec::new(),
            bias: PositionBias::Disentangled(relative(c, positions)?),
            max_positions: positions,
        },
        heads: EncoderHeads {
            pooler: None,
            sentence: Sentence::First,
            sentence_dense: Dense { module: "pooler.dense", in_backbone: false, act: pooler_act, norm: None },
            sentence_classifier: "classifier",
            token_dense: None,
            spans: "qa_outputs",
        },
    })
}

/// The relative positions.
fn relative(c: Config<'_>, positions: usize) -> Result<Disentangled, ModelError> {
    if !c.flag_or("relative_attention", false)? {
        return Err(c.unsupported("relative_attention", "true"));
    }
    // A list, or words with bars between them.
    let kinds: Vec<&str> = match c.text("pos_att_type") {
        Ok(words) => words.unwrap_or("").split('|').collect(),
        Err(_) => c.texts("pos_att_type")?,
    };
    if !kinds.contains(&"c2p") || !kinds.contains(&"p2c") || kinds.len() != 2 {
        return Err(c.unsupported("pos_att_type", "c2p and p2c"));
    }
    let whole = |field: &'static str, default: f64| Ok::<_, ModelError>(c.number_or(field, default)?.max(0.0) as usize);
    let max_distance = match whole("max_relative_positions", -1.0)? {
        0 => positions,
        n => n,
    };
    let buckets = whole("position_buckets", -1.0)?;
    let row_of = disentangled(buckets, max_distance, positions)
        .ok_or_else(|| c.unsupported("position_buckets", "fewer than twice max_relative_positions"))?;
    let norm = match c.text("norm_rel_ebd")?.unwrap_or("none") {
        "none" => None,
        "layer_norm" => Some("encoder.LayerNorm"),
        _ => return Err(c.unsupported("norm_rel_ebd", "none or layer_norm")),
    };
    let (key, query) = match c.flag_or("share_att_key", false)? {
        true => ("attention.self.key_proj", "attention.self.query_proj"),
        false => ("attention.self.pos_key_proj", "attention.self.pos_query_proj"),
    };
    let rows = 2 * if buckets > 0 { buckets } else { max_distance };
    Ok(Disentangled { table: "encoder.rel_embeddings", rows, norm, row_of, key, query })
}
