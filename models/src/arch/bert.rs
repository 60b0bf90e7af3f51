//! BERT.

use crate::config::Config;
use crate::encoder::Encoder;
use crate::error::ModelError;
use crate::heads;
use crate::names::activation;

/// `model_type: bert` (MiniLM, BGE, E5 …).
///
/// # Errors
/// A config field that is missing or out of range, or an option that changes numbers and is not supported.
pub fn bert(c: Config<'_>) -> Result<Encoder, ModelError> {
    let hidden = c.count("hidden_size", 1 << 20)?;
    let heads = c.count("num_attention_heads", 1 << 16)?;
    if !hidden.is_multiple_of(heads) {
        return Err(c.unsupported("num_attention_heads", "a divisor of hidden_size"));
    }
    if !matches!(c.text("position_embedding_type")?, None | Some("absolute")) {
        return Err(c.unsupported("position_embedding_type", "absolute"));
    }
    if c.flag_or("is_decoder", false)? {
        return Err(c.unsupported("is_decoder", "false: BERT is supported as an encoder"));
    }
    Ok(Encoder {
        hidden,
        layers: c.count("num_hidden_layers", 4096)?,
        heads,
        intermediate: c.count("intermediate_size", 1 << 22)?,
        vocab: c.count("vocab_size", 1 << 23)?,
        positions: c.count("max_position_embeddings", 1 << 24)?,
        token_types: c.count("type_vocab_size", 1 << 16)?,
        norm: heads::layer_norm(c.number_or("layer_norm_eps", 1e-12)? as f32),
        act: activation(c, "hidden_act", "gelu")?,
    })
}
