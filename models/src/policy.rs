//! Which format each matrix gets: the presets behind `--quant`.

use std::collections::BTreeMap;

use lora_runtime::weights::WeightFormat;

use crate::spec::Role;

/// Layers of a stack that counts as short.
const SHORT: usize = 12;

/// Where in a stack a layer stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Depth {
    /// Its number, from 0.
    pub layer: usize,
    /// Layers of the stack.
    pub layers: usize,
    /// Whether tokens see only what came before them.
    pub causal: bool,
}

impl Depth {
    const fn is_last(self) -> bool {
        self.layer + 1 == self.layers
    }

    const fn is_first_of_short_encoder(self) -> bool {
        self.layer == 0 && !self.causal && self.layers <= SHORT
    }
}

/// A preset, by the name of its main format.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Policy {
    /// Format of block weights.
    pub blocks: WeightFormat,
    /// Formats chosen one by one, by role and layer, before the preset's rule.
    pub chosen: BTreeMap<(Role, Option<usize>), WeightFormat>,
    /// Store f32 whatever the formats, which then only decide what is fused: the float model with the tensors of the
    /// quantized one. It runs whole sequences only (layers share caches).
    pub float_twin: bool,
    /// The model is asked for its hidden states: [`crate::lower`] sets it by the task.
    pub embeds: bool,
}

impl Policy {
    /// The preset of a main format.
    #[must_use]
    pub const fn new(blocks: WeightFormat) -> Self {
        Self { blocks, chosen: BTreeMap::new(), float_twin: false, embeds: false }
    }

    /// The same decisions, stored as floats.
    #[must_use]
    pub fn twin(&self) -> Self {
        Self { float_twin: true, ..self.clone() }
    }

    /// How a matrix of that format is stored.
    #[must_use]
    pub const fn stored(&self, format: WeightFormat) -> WeightFormat {
        if self.float_twin { WeightFormat::F32 } else { format }
    }

    /// The format of a matrix, by its role and its layer.
    ///
    /// Below 6 bits the value projections and the whole last layer get 6 bits, and the head gets 8 above 4: they are
    /// the most sensitive by measured divergence per byte. In short encoders the first layer gets a bit more: every
    /// token reads every error of it at once. Values go into an embedding as they are, and a start token often has one
    /// input so large that the 8-bit activations beside it are coarse: where embeddings are all that is asked for, `q8`
    /// keeps their projections f16, and the word table has scales by group. Task heads and the scores of experts are
    /// tiny and stay f16.
    #[must_use]
    pub fn format(&self, role: Role, depth: Option<Depth>) -> WeightFormat {
        use WeightFormat::{F16, F32, Q4, Q4L, Q5, Q6, Q8, Q8R};
        let low = matches!(self.blocks, Q4 | Q4L | Q5);
        if let Some(format) = self.chosen.get(&(role, depth.map(|d| d.layer))) {
            return *format;
        }
        match (self.blocks, role) {
            (F32 | F16, _) => self.blocks,
            (_, Role::TaskHead | Role::SmallEmbedding | Role::Router) => F16,
            (Q5 | Q6 | Q8, Role::TiedEmbedding | Role::Head) => Q8,
            (Q8, Role::Embedding) if self.embeds => Q8,
            (Q8 | Q8R, Role::Embedding | Role::TiedEmbedding | Role::Head) => Q8R,
            (_, Role::Embedding | Role::TiedEmbedding | Role::Head) => Q6,
            (_, Role::Value) if low => Q6,
            (Q8, Role::Value) if self.embeds => F16,
            _ if low && depth.is_some_and(Depth::is_last) => Q6,
            (Q4 | Q4L, _) if depth.is_some_and(Depth::is_first_of_short_encoder) => Q5,
            (Q5, _) if depth.is_some_and(Depth::is_first_of_short_encoder) => Q6,
            _ => self.blocks,
        }
    }
}
