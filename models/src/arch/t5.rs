//! T5 and mT5: RMS norms, no biases, a bias by distance, unscaled scores.

use lora_runtime::kernels::Act;

use crate::buckets::by_distance;
use crate::config::Config;
use crate::decoder::LmHead;
use crate::error::ModelError;
use crate::heads;
use crate::layer::{Attention, Layer, Mlp, MlpKind, Norms, Qkv};
use crate::seq2seq::Seq2Seq;
use crate::stack::{Embeddings, PositionBias, Stack};

/// Whether a stack is the decoder.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Side {
    Encoder,
    Decoder,
}

/// `model_type: t5` (T5, T5 v1.1, Flan-T5).
///
/// # Errors
/// A config field that is missing or out of range, or an option that changes numbers and is not supported.
pub fn t5(c: Config<'_>) -> Result<Seq2Seq, ModelError> {
    let tied = c.flag_or("tie_word_embeddings", true)?;
    read(c, tied, c.text("feed_forward_proj")?.unwrap_or("relu"))
}

/// `model_type: mt5`: T5 v1.1's form by default.
///
/// # Errors
/// As [`t5`].
pub fn mt5(c: Config<'_>) -> Result<Seq2Seq, ModelError> {
    let tied = c.flag_or("tie_word_embeddings", false)?;
    read(c, tied, c.text("feed_forward_proj")?.unwrap_or("gated-gelu"))
}

fn read(c: Config<'_>, tied: bool, feed_forward: &str) -> Result<Seq2Seq, ModelError> {
    let hidden = c.count("d_model", 1 << 20)?;
    let layers = c.count("num_layers", 4096)?;
    let decoder_layers = c.count_or("num_decoder_layers", 4096, layers)?;
    let (gated, act) = match feed_forward {
        "relu" => (false, Act::Relu),
        "gelu" => (false, Act::Gelu),
        "silu" => (false, Act::Silu),
        "gelu_new" => (false, Act::GeluTanh),
        "gated-relu" => (true, Act::Relu),
        "gated-silu" => (true, Act::Silu),
        // The name of the published files means the tanh form.
        "gated-gelu" => (true, Act::GeluTanh),
        _ => return Err(c.unsupported("feed_forward_proj", "relu, gelu, silu or one of them after gated-")),
    };
    let scaled = c.flag_or("scale_decoder_outputs", tied)?;
    let mut head = LmHead::new(tied);
    if scaled {
        head.scale = (hidden as f64).powf(-0.5) as f32;
    }
    let stack = |side, layers| stack(c, side, (hidden, layers), tied, (gated, act));
    Ok(Seq2Seq {
        encoder: stack(Side::Encoder, layers)?,
        decoder: stack(Side::Decoder, decoder_layers)?,
        head,
        logits_bias: None,
    })
}

fn stack(
    c: Config<'_>,
    side: Side,
    (hidden, layers): (usize, usize),
    tied: bool,
    (gated, act): (bool, Act),
) -> Result<Stack, ModelError> {
    let decoder = side == Side::Decoder;
    let name = if decoder { "decoder" } else { "encoder" };
    let sizes = (c.count("num_heads", 1 << 16)?, c.count("d_kv", 512)?);
    let inner = c.count("d_ff", 1 << 22)?;
    let attention = |norm, qkv, out, causal| {
        let mut a = Attention::causal(Norms::pre(norm), qkv, out, sizes);
        (a.scale, a.causal) = (1.0, causal);
        a
    };
    let qkv =
        Qkv::Separate { q: "layer.0.SelfAttention.q", k: "layer.0.SelfAttention.k", v: "layer.0.SelfAttention.v" };
    let cross = Qkv::Separate {
        q: "layer.1.EncDecAttention.q",
        k: "layer.1.EncDecAttention.k",
        v: "layer.1.EncDecAttention.v",
    };
    // The MLP is the second sublayer of the encoder and the third of the decoder.
    let (mlp_norm, kind) = match (decoder, gated) {
        (false, false) => ("layer.1.layer_norm", plain("layer.1.DenseReluDense.wi", "layer.1.DenseReluDense.wo")),
        (true, false) => ("layer.2.layer_norm", plain("layer.2.DenseReluDense.wi", "layer.2.DenseReluDense.wo")),
        (false, true) => (
            "layer.1.layer_norm",
            MlpKind::Gated {
                gate: "layer.1.DenseReluDense.wi_0",
                up: "layer.1.DenseReluDense.wi_1",
                down: "layer.1.DenseReluDense.wo",
            },
        ),
        (true, true) => (
            "layer.2.layer_norm",
            MlpKind::Gated {
                gate: "layer.2.DenseReluDense.wi_0",
                up: "layer.2.DenseReluDense.wi_1",
                down: "layer.2.DenseReluDense.wo",
            },
        ),
    };
    let layer = |i: usize| Layer {
        cross: decoder.then(|| attention("layer.1.layer_norm", cross, "layer.1.EncDecAttention.o", false)),
        ..Layer::new(
            format!("{name}.block.{i}"),
            attention("layer.0.layer_norm", qkv, "layer.0.SelfAttention.o", decoder),
            Mlp { norms: Norms::pre(mlp_norm), kind, inner, act, bias: false, experts: None },
        )
    };
    let buckets = c.count_or("relative_attention_num_buckets", 1 << 12, 32)?;
    let max_distance = c.count_or("relative_attention_max_distance", 1 << 14, 128)?;
    let bucket_of = by_distance(buckets, max_distance, !decoder)
        .ok_or_else(|| c.unsupported("relative_attention_num_buckets", "an even number, small beside the distance"))?;
    Ok(Stack {
        prefixes: &["", "transformer."],
        hidden,
        embeddings: Embeddings::words(words(tied, decoder), c.count("vocab_size", 1 << 23)?, hidden),
        norm: heads::rms(c.number_or("layer_norm_epsilon", 1e-6)? as f32),
        layers: (0..layers).map(layer).collect(),
        final_norm: Some(if decoder { "decoder.final_layer_norm" } else { "encoder.final_layer_norm" }),
        ropes: Vec::new(),
        bias: PositionBias::Buckets {
            module: format!("{name}.block.0.layer.0.SelfAttention.relative_attention_bias"),
            buckets,
            bucket_of,
        },
        // Distances have no end; this bounds what a device may be asked for.
        max_positions: c.count_or("n_positions", 1 << 24, 512)?.max(2048),
    })
}

const fn plain(up: &'static str, down: &'static str) -> MlpKind {
    MlpKind::Plain { up, down }
}

/// The modules of the word table: a tied model has one, whatever copies are stored; in others each side may have its own.
pub(super) const fn words(tied: bool, decoder: bool) -> &'static [&'static str] {
    match (tied, decoder) {
        (true, _) => &["shared", "encoder.embed_tokens", "decoder.embed_tokens"],
        (false, false) => &["encoder.embed_tokens", "shared"],
        (false, true) => &["decoder.embed_tokens", "shared"],
    }
}
