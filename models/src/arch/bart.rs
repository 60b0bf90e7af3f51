//! BART, mBART and Marian: biases everywhere, absolute positions.

use super::gpt2::head_dim;
use super::t5::words;
use crate::config::Config;
use crate::decoder::LmHead;
use crate::error::ModelError;
use crate::heads;
use crate::layer::{Attention, Layer, Mlp, MlpKind, Norms, Qkv};
use crate::names::activation;
use crate::seq2seq::Seq2Seq;
use crate::stack::{Embeddings, PositionBias, Positions, Stack};

/// What the three differ in.
#[derive(Clone, Copy)]
struct Family {
    /// Norms stand before the sublayers, and one at the end.
    pre_norm: bool,
    /// Learned positions (from row 2 on) and a norm of the embeddings, instead of sinusoids alone.
    learned: bool,
    /// Default of `activation_function`.
    act: &'static str,
}

/// `model_type: bart`.
///
/// # Errors
/// A config field that is missing or out of range, or an option that changes numbers and is not supported.
pub fn bart(c: Config<'_>) -> Result<Seq2Seq, ModelError> {
    read(c, Family { pre_norm: false, learned: true, act: "gelu" })
}

/// `model_type: mbart`: pre-norm.
///
/// # Errors
/// As [`bart`].
pub fn mbart(c: Config<'_>) -> Result<Seq2Seq, ModelError> {
    read(c, Family { pre_norm: true, learned: true, act: "gelu" })
}

/// `model_type: marian`: sinusoidal positions.
///
/// # Errors
/// As [`bart`].
pub fn marian(c: Config<'_>) -> Result<Seq2Seq, ModelError> {
    if !c.flag_or("share_encoder_decoder_embeddings", true)? {
        return Err(c.unsupported("share_encoder_decoder_embeddings", "true"));
    }
    let vocab = c.count("vocab_size", 1 << 23)?;
    if c.count_or("decoder_vocab_size", 1 << 23, vocab)? != vocab {
        return Err(c.unsupported("decoder_vocab_size", "vocab_size"));
    }
    read(c, Family { pre_norm: false, learned: false, act: "gelu" })
}

fn read(c: Config<'_>, family: Family) -> Result<Seq2Seq, ModelError> {
    let tied = c.flag_or("tie_word_embeddings", true)?;
    Ok(Seq2Seq {
        encoder: stack(c, family, tied, false)?,
        decoder: stack(c, family, tied, true)?,
        head: LmHead::new(tied),
        logits_bias: Some("final_logits_bias"),
    })
}

fn stack(c: Config<'_>, family: Family, tied: bool, decoder: bool) -> Result<Stack, ModelError> {
    const OFFSET: usize = 2;
    let hidden = c.count("d_model", 1 << 20)?;
    let by_side = |encoder, of_decoder| if decoder { of_decoder } else { encoder };
    let heads_field = by_side("encoder_attention_heads", "decoder_attention_heads");
    let heads = c.count(heads_field, 1 << 16)?;
    let sizes = (heads, head_dim(c, hidden, heads, heads_field)?);
    let inner = c.count(by_side("encoder_ffn_dim", "decoder_ffn_dim"), 1 << 22)?;
    let layers = c.count(by_side("encoder_layers", "decoder_layers"), 4096)?;
    let positions = c.count("max_position_embeddings", 1 << 16)?;
    let act = activation(c, "activation_function", family.act)?;
    let norms = |name| if family.pre_norm { Norms::pre(name) } else { Norms::post(name) };
    let attention = |norm, qkv, out, causal| {
        let mut a = Attention::causal(norms(norm), qkv, out, sizes).biases(true);
        a.causal = causal;
        a
    };
    let qkv = Qkv::Separate { q: "self_attn.q_proj", k: "self_attn.k_proj", v: "self_attn.v_proj" };
    let cross = Qkv::Separate { q: "encoder_attn.q_proj", k: "encoder_attn.k_proj", v: "encoder_attn.v_proj" };
    let side = by_side("encoder", "decoder");
    let layer = |i: usize| Layer {
        cross: decoder.then(|| attention("encoder_attn_layer_norm", cross, "encoder_attn.out_proj", false)),
        ..Layer::new(
            format!("{side}.layers.{i}"),
            attention("self_attn_layer_norm", qkv, "self_attn.out_proj", decoder),
            Mlp {
                norms: norms("final_layer_norm"),
                kind: MlpKind::Plain { up: "fc1", down: "fc2" },
                inner,
                act,
                bias: true,
                experts: None,
            },
        )
    };
    let module = by_side("encoder.embed_positions", "decoder.embed_positions");
    let embedding_norm = by_side("encoder.layernorm_embedding", "decoder.layernorm_embedding");
    let scale = if c.flag_or("scale_embedding", false)? { (hidden as f64).sqrt() as f32 } else { 1.0 };
    Ok(Stack {
        prefixes: &["model.", ""],
        hidden,
        embeddings: Embeddings {
            scale,
            positions: match family.learned {
                true => Positions::Learned { module, rows: positions + OFFSET, offset: OFFSET },
                false => Positions::Sinusoidal { rows: positions },
            },
            norm: family.learned.then_some(embedding_norm),
            ..Embeddings::words(words(tied, decoder), c.count("vocab_size", 1 << 23)?, hidden)
        },
        norm: heads::layer_norm(1e-5),
        layers: (0..layers).map(layer).collect(),
        final_norm: family.pre_norm.then_some(by_side("encoder.layer_norm", "decoder.layer_norm")),
        ropes: Vec::new(),
        bias: PositionBias::None,
        max_positions: positions,
    })
}
