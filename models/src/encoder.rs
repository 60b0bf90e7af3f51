//! Encoders: a stack that sees its whole text at once, and the task heads that can stand on one.

use lora_runtime::format::EntryKind;
use lora_runtime::kernels::Act;

use crate::error::ModelError;
use crate::graph::Graph;
use crate::heads::{self, HeadInput};
use crate::spec::Role;
use crate::stack::Stack;

/// A dense layer between the backbone and a classifier.
#[derive(Clone, Copy, Debug)]
pub struct Dense {
    /// Module, under the backbone's prefix where `in_backbone`.
    pub module: &'static str,
    /// Belongs to the backbone (BERT's pooler).
    pub in_backbone: bool,
    /// Activation.
    pub act: Act,
    /// A norm that follows.
    pub norm: Option<&'static str>,
}

/// The row that stands for the whole text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sentence {
    /// The first token's.
    First,
    /// The mean of all.
    Mean,
}

/// How an architecture builds its task heads.
#[derive(Clone, Copy, Debug)]
pub struct EncoderHeads {
    /// The backbone's pooler, whose output feature extraction shows.
    pub pooler: Option<Dense>,
    /// The row that sequence classification starts from.
    pub sentence: Sentence,
    /// What stands between that row and the classifier.
    pub sentence_dense: Dense,
    /// The classifier of sequences.
    pub sentence_classifier: &'static str,
    /// What stands before the classifiers of tokens and spans.
    pub token_dense: Option<Dense>,
    /// The classifier of spans.
    pub spans: &'static str,
}

/// Everything that distinguishes one encoder from another.
#[derive(Clone, Debug)]
pub struct Encoder {
    /// Embeddings and layers.
    pub stack: Stack,
    /// Task heads.
    pub heads: EncoderHeads,
}

/// Lowers an encoder with the head of `task`.
///
/// # Errors
/// Missing or misshapen tensors; a task without a head in the checkpoint.
pub fn lower(g: &mut Graph<'_>, e: &Encoder, head: &HeadInput) -> Result<heads::Head, ModelError> {
    let prefix = e.stack.prefix(g);
    let x = e.stack.lower(g, prefix, Role::Embedding, true, Vec::new())?;
    e.stack.finish(g, prefix, x)?;
    let head = heads::encoder_head(g, head, e, x, prefix)?;
    g.finish_entry(EntryKind::Encode, e.stack.max_positions);
    Ok(head)
}
