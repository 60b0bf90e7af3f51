//! BERT and its relatives: RoBERTa, DistilBERT, ELECTRA, ALBERT, MPNet. Post-norm encoders with absolute positions.

use lora_runtime::kernels::Act;

use super::gpt2::head_dim;
use crate::buckets::by_distance;
use crate::config::Config;
use crate::encoder::{Dense, Encoder, EncoderHeads, Sentence};
use crate::error::ModelError;
use crate::heads;
use crate::layer::{Attention, Layer, Mlp, MlpKind, Norms, Qkv};
use crate::names::activation;
use crate::stack::{Embeddings, PositionBias, Positions, Stack};

const POOLER: Dense = Dense { module: "pooler.dense", in_backbone: true, act: Act::Tanh, norm: None };

/// BERT's heads.
const HEADS: EncoderHeads = EncoderHeads {
    pooler: Some(POOLER),
    sentence: Sentence::First,
    sentence_dense: POOLER,
    sentence_classifier: "classifier",
    token_dense: None,
    spans: "qa_outputs",
};

/// Heads whose classifier of sequences has a dense layer of its own.
const fn own_dense(act: Act) -> EncoderHeads {
    let dense = Dense { module: "classifier.dense", in_backbone: false, act, norm: None };
    EncoderHeads { sentence_dense: dense, sentence_classifier: "classifier.out_proj", ..HEADS }
}

/// What the config fields are called.
struct Fields {
    hidden: &'static str,
    heads: &'static str,
    layers: &'static str,
    inner: &'static str,
    act: &'static str,
}

const FIELDS: Fields = Fields {
    hidden: "hidden_size",
    heads: "num_attention_heads",
    layers: "num_hidden_layers",
    inner: "intermediate_size",
    act: "hidden_act",
};

/// What a layer's modules are called.
struct Modules {
    qkv: Qkv,
    out: &'static str,
    attention_norm: &'static str,
    up: &'static str,
    down: &'static str,
    norm: &'static str,
}

const MODULES: Modules = Modules {
    qkv: Qkv::Separate { q: "attention.self.query", k: "attention.self.key", v: "attention.self.value" },
    out: "attention.output.dense",
    attention_norm: "attention.output.LayerNorm",
    up: "intermediate.dense",
    down: "output.dense",
    norm: "output.LayerNorm",
};

/// The family's common part. `offset` is the first row of the position table.
fn family(
    c: Config<'_>,
    f: &Fields,
    m: &Modules,
    prefixes: &'static [&'static str],
    path: impl Fn(usize) -> String,
    offset: usize,
) -> Result<Encoder, ModelError> {
    let hidden = c.count(f.hidden, 1 << 20)?;
    let heads = c.count(f.heads, 1 << 16)?;
    let sizes = (heads, head_dim(c, hidden, heads, f.heads)?);
    if !matches!(c.text("position_embedding_type")?, None | Some("absolute")) {
        return Err(c.unsupported("position_embedding_type", "absolute"));
    }
    if c.flag_or("is_decoder", false)? {
        return Err(c.unsupported("is_decoder", "false: this model is supported as an encoder"));
    }
    let rows = c.count("max_position_embeddings", 1 << 24)?;
    if rows <= offset {
        return Err(c.unsupported("max_position_embeddings", "more rows than the positions before the first"));
    }
    let inner = c.count(f.inner, 1 << 22)?;
    let act = activation(c, f.act, "gelu")?;
    let layer = |i: usize| {
        let mut attention = Attention::causal(Norms::post(m.attention_norm), m.qkv, m.out, sizes).biases(true);
        attention.causal = false;
        let kind = MlpKind::Plain { up: m.up, down: m.down };
        Layer::new(path(i), attention, Mlp { norms: Norms::post(m.norm), kind, inner, act, bias: true, experts: None })
    };
    Ok(Encoder {
        stack: Stack {
            prefixes,
            hidden,
            embeddings: Embeddings {
                positions: Positions::Learned { module: "embeddings.position_embeddings", rows, offset },
                norm: Some("embeddings.LayerNorm"),
                ..Embeddings::words(&["embeddings.word_embeddings"], c.count("vocab_size", 1 << 23)?, hidden)
            },
            norm: heads::layer_norm(c.number_or("layer_norm_eps", 1e-12)? as f32),
            layers: (0..c.count(f.layers, 4096)?).map(layer).collect(),
            final_norm: None,
            ropes: Vec::new(),
            bias: PositionBias::None,
            max_positions: rows - offset,
        },
        heads: HEADS,
    })
}

/// The table of token types that most of the family have.
fn token_types(c: Config<'_>, default: usize) -> Result<Option<(&'static str, usize)>, ModelError> {
    Ok(Some(("embeddings.token_type_embeddings", c.count_or("type_vocab_size", 1 << 16, default)?)))
}

/// Tables narrower than the hidden size, and the module that widens their sum.
fn factorized(c: Config<'_>, e: &mut Encoder, default: usize, module: &'static str) -> Result<(), ModelError> {
    let embeddings = &mut e.stack.embeddings;
    embeddings.width = c.count_or("embedding_size", 1 << 20, default)?;
    embeddings.project = (embeddings.width != e.stack.hidden || module.starts_with("encoder.")).then_some(module);
    Ok(())
}

fn numbered(i: usize) -> String {
    format!("encoder.layer.{i}")
}

/// `model_type: bert` (MiniLM, BGE, E5 …).
///
/// # Errors
/// A config field that is missing or out of range, or an option that changes numbers and is not supported.
pub fn bert(c: Config<'_>) -> Result<Encoder, ModelError> {
    let mut e = family(c, &FIELDS, &MODULES, &["bert.", ""], numbered, 0)?;
    e.stack.embeddings.types = token_types(c, 2)?;
    Ok(e)
}

/// `model_type: roberta`, `xlm-roberta`, `camembert`: positions begin after the padding index; a head of its own.
///
/// # Errors
/// As [`bert`].
pub fn roberta(c: Config<'_>) -> Result<Encoder, ModelError> {
    let offset = c.optional_u32("pad_token_id")?.unwrap_or(1) as usize + 1;
    let mut e = family(c, &FIELDS, &MODULES, &["roberta.", ""], numbered, offset)?;
    e.stack.embeddings.types = token_types(c, 2)?;
    e.heads = own_dense(Act::Tanh);
    Ok(e)
}

/// `model_type: distilbert`: no token types, no pooler.
///
/// # Errors
/// As [`bert`].
pub fn distilbert(c: Config<'_>) -> Result<Encoder, ModelError> {
    let fields = Fields { hidden: "dim", heads: "n_heads", layers: "n_layers", inner: "hidden_dim", act: "activation" };
    let modules = Modules {
        qkv: Qkv::Separate { q: "attention.q_lin", k: "attention.k_lin", v: "attention.v_lin" },
        out: "attention.out_lin",
        attention_norm: "sa_layer_norm",
        up: "ffn.lin1",
        down: "ffn.lin2",
        norm: "output_layer_norm",
    };
    let path = |i| format!("transformer.layer.{i}");
    let mut e = family(c, &fields, &modules, &["distilbert.", ""], path, 0)?;
    e.stack.norm = heads::layer_norm(1e-12);
    let dense = Dense { module: "pre_classifier", in_backbone: false, act: Act::Relu, norm: None };
    e.heads = EncoderHeads { pooler: None, sentence_dense: dense, ..HEADS };
    Ok(e)
}

/// `model_type: electra`: narrower embeddings, a head of its own, no pooler.
///
/// # Errors
/// As [`bert`].
pub fn electra(c: Config<'_>) -> Result<Encoder, ModelError> {
    let mut e = family(c, &FIELDS, &MODULES, &["electra.", ""], numbered, 0)?;
    e.stack.embeddings.types = token_types(c, 2)?;
    factorized(c, &mut e, 128, "embeddings_project")?;
    e.heads = EncoderHeads { pooler: None, ..own_dense(Act::Gelu) };
    Ok(e)
}

/// `model_type: albert`: narrower embeddings; layers of a group share their weights.
///
/// # Errors
/// As [`bert`].
pub fn albert(c: Config<'_>) -> Result<Encoder, ModelError> {
    let layers = c.count("num_hidden_layers", 4096)?;
    let groups = c.count_or("num_hidden_groups", 4096, 1)?;
    if groups > layers {
        return Err(c.unsupported("num_hidden_groups", "at most num_hidden_layers"));
    }
    if c.count_or("inner_group_num", 4096, 1)? != 1 {
        return Err(c.unsupported("inner_group_num", "1"));
    }
    let modules = Modules {
        qkv: Qkv::Separate { q: "attention.query", k: "attention.key", v: "attention.value" },
        out: "attention.dense",
        attention_norm: "attention.LayerNorm",
        up: "ffn",
        down: "ffn_output",
        norm: "full_layer_layer_norm",
    };
    let path = |i: usize| format!("encoder.albert_layer_groups.{}.albert_layers.0", i * groups / layers);
    let mut e = family(c, &FIELDS, &modules, &["albert.", ""], path, 0)?;
    e.stack.embeddings.types = token_types(c, 2)?;
    factorized(c, &mut e, 128, "encoder.embedding_hidden_mapping_in")?;
    let act = activation(c, "hidden_act", "gelu_new")?;
    for layer in &mut e.stack.layers {
        layer.mlp.act = act;
    }
    let pooler = Dense { module: "pooler", ..POOLER };
    e.heads = EncoderHeads { pooler: Some(pooler), sentence_dense: pooler, ..HEADS };
    Ok(e)
}

/// `model_type: mpnet`: as RoBERTa without token types, with a bias by distance that all layers share. Positions begin at
/// row 2, whatever the padding index.
///
/// # Errors
/// As [`bert`].
pub fn mpnet(c: Config<'_>) -> Result<Encoder, ModelError> {
    let modules = Modules {
        qkv: Qkv::Separate { q: "attention.attn.q", k: "attention.attn.k", v: "attention.attn.v" },
        out: "attention.attn.o",
        attention_norm: "attention.LayerNorm",
        ..MODULES
    };
    let mut e = family(c, &FIELDS, &modules, &["mpnet.", ""], numbered, 2)?;
    let buckets = c.count_or("relative_attention_num_buckets", 1 << 12, 32)?;
    e.stack.bias = PositionBias::Buckets {
        module: "encoder.relative_attention_bias".into(),
        buckets,
        bucket_of: by_distance(buckets, 128, true)
            .ok_or_else(|| c.unsupported("relative_attention_num_buckets", "an even number from 4 to 256"))?,
    };
    e.heads = own_dense(Act::Tanh);
    Ok(e)
}
