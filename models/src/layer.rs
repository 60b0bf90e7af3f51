//! The description of one transformer layer: which norms stand where, how the projections are stored, what attention
//! does. A family's file in [`crate::arch`] fills these in; [`crate::block`] turns them into ops.
//!
//! Module names are relative to the layer's path.

use lora_runtime::kernels::Act;

/// The norms of a sublayer (attention or MLP), each by module name where there is one.
#[derive(Clone, Copy, Debug, Default)]
pub struct Norms {
    /// On the input of the sublayer (pre-norm: GPT-2, Llama).
    pub input: Option<&'static str>,
    /// On its output, before the residual is added (OLMo 2, Gemma 2).
    pub output: Option<&'static str>,
    /// On the sum (post-norm: BERT, BART).
    pub sum: Option<&'static str>,
}

impl Norms {
    /// A norm on the input alone.
    #[must_use]
    pub const fn pre(input: &'static str) -> Self {
        Self { input: Some(input), output: None, sum: None }
    }

    /// A norm on the sum alone.
    #[must_use]
    pub const fn post(sum: &'static str) -> Self {
        Self { input: None, output: None, sum: Some(sum) }
    }
}

/// Order of the rows of a fused query-key-value matrix.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FusedOrder {
    /// All queries, all keys, all values (GPT-2, Phi-3).
    Blocks,
    /// For every kv head: its queries, its key, its value (GPT-NeoX, BLOOM, Falcon).
    Groups,
}

/// How queries, keys and values are stored.
#[derive(Clone, Copy, Debug)]
pub enum Qkv {
    /// A module each.
    Separate {
        /// Queries.
        q: &'static str,
        /// Keys.
        k: &'static str,
        /// Values.
        v: &'static str,
    },
    /// One module.
    Fused {
        /// The module.
        module: &'static str,
        /// Order of its rows.
        order: FusedOrder,
    },
}

/// Norms of queries and keys, before rotation.
#[derive(Clone, Copy, Debug)]
pub struct QkNorm {
    /// Module of the queries' norm.
    pub q: &'static str,
    /// Module of the keys' norm.
    pub k: &'static str,
    /// Every head by itself, with one weight for all of them; else the whole row.
    pub per_head: bool,
}

/// An attention sublayer.
#[derive(Clone, Copy, Debug)]
pub struct Attention {
    /// Norms.
    pub norms: Norms,
    /// Projections of the input.
    pub qkv: Qkv,
    /// Projection of the output.
    pub out: &'static str,
    /// Query heads.
    pub heads: usize,
    /// Key/value heads.
    pub kv_heads: usize,
    /// Elements of a head.
    pub head_dim: usize,
    /// Biases of queries, keys and values.
    pub qkv_bias: bool,
    /// Bias of the output.
    pub out_bias: bool,
    /// Norms of queries and keys.
    pub qk_norm: Option<QkNorm>,
    /// Which of the stack's rotary tables turns queries and keys.
    pub rope: Option<usize>,
    /// Factor of the scores.
    pub scale: f64,
    /// Soft cap of the scores, 0 for none.
    pub softcap: f32,
    /// Sliding window: keys `window` or more positions away are unseen (on the left; without [`Attention::causal`] on
    /// both sides). 0 for none.
    pub window: usize,
    /// Keys after the query are unseen.
    pub causal: bool,
}

impl Attention {
    /// Causal multi-head attention with scores over √`head_dim`, without biases, rotation or window.
    #[must_use]
    pub fn causal(norms: Norms, qkv: Qkv, out: &'static str, (heads, head_dim): (usize, usize)) -> Self {
        Self {
            norms,
            qkv,
            out,
            heads,
            kv_heads: heads,
            head_dim,
            qkv_bias: false,
            out_bias: false,
            qk_norm: None,
            rope: None,
            scale: (head_dim as f64).powf(-0.5),
            softcap: 0.0,
            window: 0,
            causal: true,
        }
    }

    /// Sets all biases.
    #[must_use]
    pub const fn biases(mut self, bias: bool) -> Self {
        (self.qkv_bias, self.out_bias) = (bias, bias);
        self
    }
}

/// The matrices between the two norms of an MLP.
#[derive(Clone, Copy, Debug)]
pub enum MlpKind {
    /// `down(act(up(x)))`.
    Plain {
        /// First matrix.
        up: &'static str,
        /// Second matrix.
        down: &'static str,
    },
    /// `down(act(gate(x)) · up(x))`.
    Gated {
        /// The matrix under the activation.
        gate: &'static str,
        /// Its partner.
        up: &'static str,
        /// Second matrix.
        down: &'static str,
    },
    /// As [`MlpKind::Gated`], gate and up being the upper and lower half of one matrix.
    GatedFused {
        /// Gate and up.
        gate_up: &'static str,
        /// Second matrix.
        down: &'static str,
    },
}

impl MlpKind {
    /// The second matrix.
    #[must_use]
    pub const fn down(&self) -> &'static str {
        let (Self::Plain { down, .. } | Self::Gated { down, .. } | Self::GatedFused { down, .. }) = self;
        down
    }
}

/// A mixture of experts in place of an MLP: [`Mlp::kind`] and [`Mlp::inner`] describe each of them.
#[derive(Clone, Copy, Debug)]
pub struct Experts {
    /// Their container: expert `e` is `module.e`.
    pub module: &'static str,
    /// The matrix that gives their scores.
    pub router: &'static str,
    /// How many there are.
    pub count: usize,
    /// How many a token takes.
    pub chosen: usize,
    /// The weights of those taken are divided by their sum.
    pub normalize: bool,
    /// One more, that every token takes.
    pub shared: Option<SharedExpert>,
}

/// An expert that every token takes.
#[derive(Clone, Copy, Debug)]
pub struct SharedExpert {
    /// Its matrices.
    pub kind: MlpKind,
    /// Inner size.
    pub inner: usize,
    /// A row whose product with the input, through a sigmoid, is its weight.
    pub gate: &'static str,
}

/// An MLP sublayer.
#[derive(Clone, Copy, Debug)]
pub struct Mlp {
    /// Norms.
    pub norms: Norms,
    /// Matrices.
    pub kind: MlpKind,
    /// Inner size.
    pub inner: usize,
    /// Activation.
    pub act: Act,
    /// Biases.
    pub bias: bool,
    /// Many of these, of which a token takes a few.
    pub experts: Option<Experts>,
}

/// A layer.
#[derive(Clone, Debug)]
pub struct Layer {
    /// Path of its modules in the stack. Layers of the same path share their weights (ALBERT).
    pub path: String,
    /// Attention over the sequence itself.
    pub attention: Attention,
    /// Attention over the encoder's output.
    pub cross: Option<Attention>,
    /// MLP.
    pub mlp: Mlp,
    /// Attention and MLP both read the layer's input (GPT-NeoX, Falcon), instead of one after the other.
    pub parallel: bool,
    /// Factor of what the sublayers add to the residual stream.
    pub residual: f32,
    /// Matrices are stored as inputs × outputs (transformers' Conv1D).
    pub transpose: bool,
}

impl Layer {
    /// A layer that adds attention, then the MLP.
    #[must_use]
    pub fn new(path: String, attention: Attention, mlp: Mlp) -> Self {
        Self { path, attention, cross: None, mlp, parallel: false, residual: 1.0, transpose: false }
    }
}
