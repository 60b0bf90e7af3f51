//! Decoders: a causal stack that continues its text, and the task heads that can stand on one.

use lora_runtime::format::EntryKind;

use crate::error::ModelError;
use crate::graph::Graph;
use crate::heads::{self, HeadInput};
use crate::layer::{Attention, Layer, Mlp, MlpKind, Norms, Qkv};
use crate::spec::Role;
use crate::stack::Stack;

/// A language-model head.
#[derive(Clone, Copy, Debug)]
pub struct LmHead {
    /// Module of a head of its own.
    pub module: &'static str,
    /// The head is the input embedding.
    pub tied: bool,
    /// A bias stands beside the head.
    pub bias: bool,
    /// Factor of the logits.
    pub scale: f32,
    /// Soft cap of the logits, 0 for none.
    pub softcap: f32,
}

impl LmHead {
    /// `lm_head`, without a bias or a factor.
    #[must_use]
    pub const fn new(tied: bool) -> Self {
        Self { module: "lm_head", tied, bias: false, scale: 1.0, softcap: 0.0 }
    }
}

/// Everything that distinguishes one decoder from another.
#[derive(Clone, Debug)]
pub struct Decoder {
    /// Embeddings and layers.
    pub stack: Stack,
    /// Language-model head.
    pub head: LmHead,
}

/// The names that Llama gave its layers, and many took over.
#[must_use]
pub fn llama_attention(norms: Norms, heads: (usize, usize)) -> Attention {
    let qkv = Qkv::Separate { q: "self_attn.q_proj", k: "self_attn.k_proj", v: "self_attn.v_proj" };
    Attention::causal(norms, qkv, "self_attn.o_proj", heads)
}

/// As [`llama_attention`].
#[must_use]
pub const fn llama_mlp(norms: Norms, inner: usize, act: lora_runtime::kernels::Act) -> Mlp {
    let kind = MlpKind::Gated { gate: "mlp.gate_proj", up: "mlp.up_proj", down: "mlp.down_proj" };
    Mlp { norms, kind, inner, act, bias: false, experts: None }
}

impl Decoder {
    /// Changes every layer by its number.
    pub fn each_layer(&mut self, mut change: impl FnMut(usize, &mut Layer)) {
        for (i, layer) in self.stack.layers.iter_mut().enumerate() {
            change(i, layer);
        }
    }
}

/// Lowers a decoder with the head of `task`.
///
/// # Errors
/// Missing or misshapen tensors; a task without a head in the checkpoint.
pub fn lower(g: &mut Graph<'_>, d: &Decoder, head: &HeadInput) -> Result<heads::Head, ModelError> {
    let prefix = d.stack.prefix(g);
    let role = if d.head.tied && head.uses_lm_head() { Role::TiedEmbedding } else { Role::Embedding };
    let x = d.stack.lower(g, prefix, role, false, Vec::new())?;
    let head = heads::decoder_head(g, head, d, x, prefix)?;
    g.finish_entry(EntryKind::Decode, d.stack.max_positions);
    Ok(head)
}
