//! Encoder–decoder models: an entry that reads the source and leaves its keys and values behind, and one that
//! continues the target.

use lora_runtime::format::{EntryKind, NONE, Task};
use lora_runtime::program::SelectRows;

use crate::block;
use crate::decoder::LmHead;
use crate::error::ModelError;
use crate::graph::Graph;
use crate::heads::{self, Head, HeadInput};
use crate::policy::Depth;
use crate::spec::Role;
use crate::stack::Stack;

/// Everything that distinguishes one encoder–decoder from another.
#[derive(Clone, Debug)]
pub struct Seq2Seq {
    /// Reads the source.
    pub encoder: Stack,
    /// Continues the target; its layers have [`crate::layer::Layer::cross`].
    pub decoder: Stack,
    /// Language-model head.
    pub head: LmHead,
    /// A bias of the logits that may stand beside the head, as a row (`final_logits_bias`).
    pub logits_bias: Option<&'static str>,
}

/// Lowers both entries with the head of `task`.
///
/// # Errors
/// Missing or misshapen tensors; another task than generation.
pub fn lower(g: &mut Graph<'_>, m: &Seq2Seq, input: &HeadInput) -> Result<Head, ModelError> {
    if input.task != Task::Seq2SeqLm {
        return Err(ModelError::Task { architecture: input.architecture, task: input.task.name() });
    }
    let role = if m.head.tied { Role::TiedEmbedding } else { Role::Embedding };
    let hidden = m.encoder.hidden;

    let prefix = m.encoder.prefix(g);
    let source = m.encoder.lower(g, prefix, role, true, Vec::new())?;
    m.encoder.finish(g, prefix, source)?;
    g.output("encoder_last_hidden_state", source, hidden);
    let prefix = m.decoder.prefix(g);
    let layers = m.decoder.layers_under(prefix);
    let mut caches = Vec::new();
    for (i, layer) in layers.iter().enumerate() {
        g.depth = Some(Depth { layer: i, layers: layers.len(), causal: true });
        if let Some(cross) = &layer.cross {
            caches.push(block::store_source(g, layer, cross, source, hidden)?);
        }
    }
    g.depth = None;
    g.finish_entry(EntryKind::Encode, m.encoder.max_positions);

    let x = m.decoder.lower(g, prefix, role, false, caches)?;
    g.begin_head(x);
    let rows = g.select(x, hidden, SelectRows::Requested)?;
    m.decoder.finish(g, prefix, rows)?;
    let vocab = m.decoder.embeddings.vocab;
    let bias = match m.logits_bias.filter(|name| g.has(name)) {
        Some(name) => g.row(name, vocab, "vocab_size")?,
        None => NONE,
    };
    heads::lm_head(g, &m.head, &m.decoder.word_module(g, prefix), rows, (vocab, hidden), bias)?;
    g.finish_entry(EntryKind::Decode, m.decoder.max_positions);
    Ok(Head::default())
}
