//! BERT.

use crate::config::Config;
use crate::encoder::{Dense, Encoder, EncoderHeads, Sentence};
use crate::error::ModelError;
use crate::heads;
use crate::layer::{Attention, Layer, Mlp, MlpKind, Norms, Qkv};
use crate::names::activation;
use crate::stack::{Embeddings, PositionBias, Positions, Stack};
use lora_runtime::kernels::Act;

const POOLER: Dense = Dense { module: "pooler.dense", in_backbone: true, act: Act::Tanh, norm: None };

/// `model_type: bert` (MiniLM, BGE, E5 …).
///
/// # Errors
/// A config field that is missing or out of range, or an option that changes numbers and is not supported.
pub fn bert(c: Config<'_>) -> Result<Encoder, ModelError> {
    let hidden = c.count("hidden_size", 1 << 20)?;
    let heads = c.count("num_attention_heads", 1 << 16)?;
    let head_dim = super::gpt2::head_dim(c, hidden, heads, "num_attention_heads")?;
    if !matches!(c.text("position_embedding_type")?, None | Some("absolute")) {
        return Err(c.unsupported("position_embedding_type", "absolute"));
    }
    if c.flag_or("is_decoder", false)? {
        return Err(c.unsupported("is_decoder", "false: BERT is supported as an encoder"));
    }
    let positions = c.count("max_position_embeddings", 1 << 24)?;
    let inner = c.count("intermediate_size", 1 << 22)?;
    let act = activation(c, "hidden_act", "gelu")?;
    let qkv = Qkv::Separate { q: "attention.self.query", k: "attention.self.key", v: "attention.self.value" };
    let layer = |i: usize| {
        let norms = Norms::post("attention.output.LayerNorm");
        let mut attention = Attention::causal(norms, qkv, "attention.output.dense", (heads, head_dim)).biases(true);
        attention.causal = false;
        let kind = MlpKind::Plain { up: "intermediate.dense", down: "output.dense" };
        let mlp = Mlp { norms: Norms::post("output.LayerNorm"), kind, inner, act, bias: true };
        Layer::new(format!("encoder.layer.{i}"), attention, mlp)
    };
    Ok(Encoder {
        stack: Stack {
            prefixes: &["bert.", ""],
            hidden,
            embeddings: Embeddings {
                positions: Positions::Learned { module: "embeddings.position_embeddings", rows: positions, offset: 0 },
                types: Some(("embeddings.token_type_embeddings", c.count("type_vocab_size", 1 << 16)?)),
                norm: Some("embeddings.LayerNorm"),
                ..Embeddings::words(&["embeddings.word_embeddings"], c.count("vocab_size", 1 << 23)?, hidden)
            },
            norm: heads::layer_norm(c.number_or("layer_norm_eps", 1e-12)? as f32),
            layers: (0..c.count("num_hidden_layers", 4096)?).map(layer).collect(),
            final_norm: None,
            ropes: Vec::new(),
            bias: PositionBias::None,
            max_positions: positions,
        },
        heads: EncoderHeads {
            pooler: Some(POOLER),
            sentence: Sentence::First,
            sentence_dense: POOLER,
            sentence_classifier: "classifier",
            token_dense: None,
            spans: "qa_outputs",
        },
    })
}
