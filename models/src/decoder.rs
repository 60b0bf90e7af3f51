//! Pre-norm decoder stacks (Llama and its relatives): one description, many models.

use lora_runtime::format::{CacheKind, EntryKind, NONE, Operand};
use lora_runtime::kernels::Act;
use lora_runtime::program::{BiasKind, EmbedSource, NormKind, Op};

use crate::error::ModelError;
use crate::graph::{Epilogue, Graph, NormSpec, Projection};
use crate::heads::{self, HeadInput};
use crate::rope::Rope;
use crate::spec::Role;

/// Everything that distinguishes one decoder from another.
#[derive(Clone, Debug)]
pub struct Decoder {
    /// Hidden size.
    pub hidden: usize,
    /// Layers.
    pub layers: usize,
    /// Query heads.
    pub heads: usize,
    /// Key/value heads.
    pub kv_heads: usize,
    /// Elements of a head.
    pub head_dim: usize,
    /// Inner size of the MLP.
    pub intermediate: usize,
    /// Vocabulary.
    pub vocab: usize,
    /// Longest sequence.
    pub max_positions: usize,
    /// Norms.
    pub norm: NormSpec,
    /// Activation of the gate.
    pub act: Act,
    /// Biases of q, k and v.
    pub qkv_bias: bool,
    /// Bias of the attention output.
    pub out_bias: bool,
    /// Biases of the MLP.
    pub mlp_bias: bool,
    /// Per-head RMS norms of queries and keys (`q_norm`, `k_norm`).
    pub qk_norm: bool,
    /// Rotary embedding.
    pub rope: Rope,
    /// Sliding window per layer, 0 for none.
    pub windows: Vec<usize>,
    /// The language-model head is the input embedding.
    pub tied: bool,
}

/// Lowers a decoder with the head of `task`.
///
/// # Errors
/// Missing or misshapen tensors; a task without a head in the checkpoint.
pub fn lower(g: &mut Graph<'_>, d: &Decoder, head: &HeadInput<'_>) -> Result<heads::Head, ModelError> {
    let prefix = heads::backbone(g, &["model.", "", "transformer."], "embed_tokens.weight");
    let embed_module = format!("{prefix}embed_tokens");
    let role = if d.tied && head.uses_lm_head() { Role::TiedEmbedding } else { Role::Embedding };
    let table = g.matrix(&embed_module, d.vocab, d.hidden, role, "vocab_size, hidden_size")?;
    let x = g.token_value(d.hidden)?;
    g.push(Op::Embed { table, source: EmbedSource::Token, offset: 0, scale: 1.0, out: x, width: d.hidden as u32 });
    let half = d.rope.inv_freq.len();
    let rope = g.token_value(2 * half)?;
    let freqs = g.values("rope.inv_freq", 1, d.rope.inv_freq.clone())?;
    g.push(Op::RotaryTable {
        freqs,
        long_freqs: NONE,
        threshold: 0,
        scale: d.rope.scale,
        out: rope,
        half: half as u32,
    });
    for layer in 0..d.layers {
        g.layer = Some((layer, d.layers));
        lower_layer(g, d, layer, &format!("{prefix}layers.{layer}"), x, rope)?;
    }
    g.layer = None;
    let head = heads::decoder_head(g, head, d, x, &format!("{prefix}norm"), table)?;
    g.finish_entry(EntryKind::Decode, d.max_positions);
    Ok(head)
}

fn lower_layer(
    g: &mut Graph<'_>,
    d: &Decoder,
    index: usize,
    path: &str,
    x: Operand,
    rope: Operand,
) -> Result<(), ModelError> {
    let (q_width, kv_width) = (d.heads * d.head_dim, d.kv_heads * d.head_dim);
    let h = g.token_value(d.hidden)?;
    g.norm(x, h, &format!("{path}.input_layernorm"), d.hidden, 1, d.norm)?;
    let attn = format!("{path}.self_attn");
    let projection = |name: &str, rows, role| Projection::new(format!("{attn}.{name}"), rows, role).bias(d.qkv_bias);
    let list = [
        projection("q_proj", q_width, Role::Query),
        projection("k_proj", kv_width, Role::Key),
        projection("v_proj", kv_width, Role::Value),
    ];
    let q = g.project(&format!("{attn}.qkv"), h, d.hidden, &list, Epilogue::default())?;
    let k = Graph::columns(q, q_width);
    let v = Graph::columns(k, kv_width);
    if d.qk_norm {
        let spec = NormSpec { kind: NormKind::Rms, ..d.norm };
        g.norm(q, q, &format!("{attn}.q_norm"), d.head_dim, d.heads, spec)?;
        g.norm(k, k, &format!("{attn}.k_norm"), d.head_dim, d.kv_heads, spec)?;
    }
    for (at, heads) in [(q, d.heads), (k, d.kv_heads)] {
        g.push(Op::Rotary {
            x: at,
            table: rope,
            heads: heads as u32,
            head_dim: d.head_dim as u32,
            half: d.rope.inv_freq.len() as u32,
            interleaved: false,
        });
    }
    let cache = g.cache(CacheKind::Context, d.kv_heads, d.head_dim, d.head_dim)?;
    g.push(Op::KvStore { k, v, cache });
    let a = g.token_value(q_width)?;
    g.push(Op::Attention {
        q,
        out: a,
        cache,
        heads: d.heads as u32,
        scale: (d.head_dim as f64).powf(-0.5) as f32,
        softcap: 0.0,
        window: d.windows[index] as u32,
        causal: true,
        bias_kind: BiasKind::None,
        bias: NONE,
    });
    let out = Projection::new(format!("{attn}.o_proj"), d.hidden, Role::AttentionOut).bias(d.out_bias);
    g.project_residual(a, q_width, out, 1.0, x)?;

    let h = g.token_value(d.hidden)?;
    g.norm(x, h, &format!("{path}.post_attention_layernorm"), d.hidden, 1, d.norm)?;
    let mlp = format!("{path}.mlp");
    let list = [
        Projection::new(format!("{mlp}.gate_proj"), d.intermediate, Role::Gate).bias(d.mlp_bias),
        Projection::new(format!("{mlp}.up_proj"), d.intermediate, Role::Up).bias(d.mlp_bias),
    ];
    let gate = g.project(&format!("{mlp}.gate_up"), h, d.hidden, &list, Epilogue::default())?;
    let m = g.token_value(d.intermediate)?;
    g.push(Op::Gated {
        gate,
        up: Graph::columns(gate, d.intermediate),
        out: m,
        width: d.intermediate as u32,
        act: d.act,
    });
    let down = Projection::new(format!("{mlp}.down_proj"), d.hidden, Role::Down).bias(d.mlp_bias);
    g.project_residual(m, d.intermediate, down, 1.0, x)
}
