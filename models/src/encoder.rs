//! Post-norm bidirectional encoders (BERT and its relatives).

use lora_runtime::format::{CacheKind, EntryKind, NONE, Operand};
use lora_runtime::kernels::Act;
use lora_runtime::program::{BiasKind, EmbedSource, Op};

use crate::error::ModelError;
use crate::graph::{Epilogue, Graph, NormSpec, Projection};
use crate::heads::{self, HeadInput};
use crate::spec::Role;

/// Everything that distinguishes one encoder from another.
#[derive(Clone, Debug)]
pub struct Encoder {
    /// Hidden size.
    pub hidden: usize,
    /// Layers.
    pub layers: usize,
    /// Attention heads.
    pub heads: usize,
    /// Inner size of the MLP.
    pub intermediate: usize,
    /// Vocabulary.
    pub vocab: usize,
    /// Rows of the position table.
    pub positions: usize,
    /// Rows of the token-type table.
    pub token_types: usize,
    /// Norms.
    pub norm: NormSpec,
    /// Activation.
    pub act: Act,
}

/// Lowers an encoder with the head of `task`.
///
/// # Errors
/// Missing or misshapen tensors; a task without a head in the checkpoint.
pub fn lower(g: &mut Graph<'_>, e: &Encoder, head: &HeadInput<'_>) -> Result<heads::Head, ModelError> {
    let prefix = heads::backbone(g, &["bert.", ""], "embeddings.word_embeddings.weight");
    let x = g.token_value(e.hidden)?;
    let tables = [
        ("word_embeddings", e.vocab, EmbedSource::Token, Role::Embedding, "vocab_size, hidden_size"),
        (
            "position_embeddings",
            e.positions,
            EmbedSource::Position,
            Role::SmallEmbedding,
            "max_position_embeddings, hidden_size",
        ),
        (
            "token_type_embeddings",
            e.token_types,
            EmbedSource::TokenType,
            Role::SmallEmbedding,
            "type_vocab_size, hidden_size",
        ),
    ];
    for (i, (name, rows, source, role, field)) in tables.into_iter().enumerate() {
        let table = g.matrix(&format!("{prefix}embeddings.{name}"), rows, e.hidden, role, field)?;
        let width = e.hidden as u32;
        let out = if i == 0 { x } else { g.token_value(e.hidden)? };
        g.push(Op::Embed { table, source, offset: 0, scale: 1.0, out, width });
        if i > 0 {
            g.push(Op::Add { a: x, b: out, out: x, width, scale: 1.0 });
        }
    }
    g.norm(x, x, &format!("{prefix}embeddings.LayerNorm"), e.hidden, 1, e.norm)?;
    let cache = g.cache(CacheKind::Step, e.heads, e.hidden / e.heads, e.hidden / e.heads)?;
    for layer in 0..e.layers {
        g.layer = Some((layer, e.layers));
        lower_layer(g, e, &format!("{prefix}encoder.layer.{layer}"), x, cache)?;
    }
    g.layer = None;
    let head = heads::encoder_head(g, head, e, x, &prefix)?;
    g.finish_entry(EntryKind::Encode, e.positions);
    Ok(head)
}

fn lower_layer(g: &mut Graph<'_>, e: &Encoder, path: &str, x: Operand, cache: u32) -> Result<(), ModelError> {
    let width = e.hidden;
    let attn = format!("{path}.attention");
    let projection = |name: &str, role| Projection::new(format!("{attn}.self.{name}"), width, role).bias(true);
    let list = [projection("query", Role::Query), projection("key", Role::Key), projection("value", Role::Value)];
    let q = g.project(&format!("{attn}.self.qkv"), x, width, &list, Epilogue::default())?;
    let k = Graph::columns(q, width);
    let v = Graph::columns(k, width);
    g.push(Op::KvStore { k, v, cache });
    let a = g.token_value(width)?;
    g.push(Op::Attention {
        q,
        out: a,
        cache,
        heads: e.heads as u32,
        scale: ((width / e.heads) as f64).powf(-0.5) as f32,
        softcap: 0.0,
        window: 0,
        causal: false,
        bias_kind: BiasKind::None,
        bias: NONE,
    });
    let out = Projection::new(format!("{attn}.output.dense"), width, Role::AttentionOut).bias(true);
    g.project_residual(a, width, out, 1.0, x)?;
    g.norm(x, x, &format!("{attn}.output.LayerNorm"), width, 1, e.norm)?;

    let up = Projection::new(format!("{path}.intermediate.dense"), e.intermediate, Role::Up).bias(true);
    let name = up.module.clone();
    let h = g.project(&name, x, width, &[up], Epilogue { act: e.act, scale: 1.0 })?;
    let down = Projection::new(format!("{path}.output.dense"), width, Role::Down).bias(true);
    g.project_residual(h, e.intermediate, down, 1.0, x)?;
    g.norm(x, x, &format!("{path}.output.LayerNorm"), width, 1, e.norm)
}
