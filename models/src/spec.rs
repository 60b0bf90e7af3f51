//! What lowering produces: a program, and a recipe for every tensor that lora-pack then fills.

use lora_runtime::format::{BufferRecord, CacheRecord, EntryKind, Operand, ProblemType, SlotKind, Task};
use lora_runtime::program::Op;
use lora_runtime::weights::WeightFormat;

use crate::balance::Factors;

/// The part a matrix plays; decides its format.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[allow(missing_docs)]
pub enum Role {
    Query,
    Key,
    Value,
    AttentionOut,
    Gate,
    Up,
    Down,
    /// Scores of experts.
    Router,
    /// Input embedding only looked up.
    Embedding,
    /// Input embedding that is the language-model head too.
    TiedEmbedding,
    /// Position and token-type tables.
    SmallEmbedding,
    /// Language-model head.
    Head,
    /// Task heads and poolers.
    TaskHead,
}

/// Rows taken from a checkpoint matrix (after `transpose`): `count` blocks of `block` rows, `stride` apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RowMap {
    /// First row.
    pub start: usize,
    /// Rows of a block.
    pub block: usize,
    /// Rows from block to block.
    pub stride: usize,
    /// Blocks.
    pub count: usize,
}

impl RowMap {
    /// Rows `start .. start + rows`.
    #[must_use]
    pub const fn range(start: usize, rows: usize) -> Self {
        Self { start, block: rows, stride: rows, count: 1 }
    }
    /// Number of rows taken.
    #[must_use]
    pub const fn rows(&self) -> usize {
        self.block * self.count
    }
}

/// Where values come from.
#[derive(Clone, Debug)]
pub enum Source {
    /// A checkpoint tensor.
    Checkpoint {
        /// Name in the (merged) checkpoint.
        name: String,
        /// Stored as inputs × outputs (transformers' Conv1D).
        transpose: bool,
        /// Rows taken.
        rows: RowMap,
    },
    /// Values of a checkpoint tensor by their row-major index (a bias by distance out of a table by bucket).
    Gather {
        /// Name in the (merged) checkpoint.
        name: String,
        /// Index of every value.
        index: Vec<u32>,
    },
    /// What a projection makes of the rows of a table that no input changes (DeBERTa's relative positions):
    /// `factor · (W · norm(row) + b)`.
    Product(Box<Product>),
    /// Numbers computed while lowering (rotary frequencies, slopes …).
    Values(Vec<f32>),
    /// Zeros (a missing bias in a fused tensor).
    Zeros,
}

/// A projection of a table, see [`Source::Product`].
#[derive(Clone, Debug)]
pub struct Product {
    /// Name of the table.
    pub table: String,
    /// Names of weight and bias of the layer norm that the rows go through, and its epsilon.
    pub norm: Option<(String, String, f32)>,
    /// Name of the matrix.
    pub matrix: String,
    /// Name of the bias.
    pub bias: String,
    /// Outputs: first row of the matrix, and how many.
    pub outputs: (usize, usize),
    /// Factor.
    pub factor: f32,
}

/// A run of rows of a matrix, or of values of a vector (a checkpoint vector counts as rows of one value).
#[derive(Clone, Debug)]
pub struct Part {
    /// Values.
    pub source: Source,
    /// Rows of the result.
    pub rows: usize,
    /// Added to every value (Gemma's norms store weight − 1).
    pub add: f32,
    /// The framework's module path, empty for computed values.
    pub module: String,
}

/// How a tensor is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Storage {
    /// Panels.
    Panels(WeightFormat),
    /// Plain f32.
    Vector,
}

/// The recipe of one tensor of the file.
#[derive(Clone, Debug)]
pub struct TensorSpec {
    /// Name in the file.
    pub name: String,
    /// Storage.
    pub storage: Storage,
    /// Outputs.
    pub rows: usize,
    /// Inputs.
    pub cols: usize,
    /// Row runs, in order.
    pub parts: Vec<Part>,
    /// Role, for matrices.
    pub role: Option<Role>,
    /// Layer, for reports.
    pub layer: Option<usize>,
    /// What rows and columns are multiplied with; nothing as it comes out of the lowering.
    pub factors: Factors,
}

/// A named result.
#[derive(Clone, Debug)]
pub struct OutputSpec {
    /// Name as the frameworks call it.
    pub name: &'static str,
    /// Buffer and column.
    pub at: Operand,
    /// Columns.
    pub width: u32,
}

/// One entry point.
#[derive(Clone, Debug)]
pub struct EntrySpec {
    /// Kind.
    pub kind: EntryKind,
    /// Ops in order.
    pub ops: Vec<Op>,
    /// Outputs.
    pub outputs: Vec<OutputSpec>,
    /// Positions it can take.
    pub max_positions: u32,
    /// Where the task head begins, if another one can stand in its place.
    pub head: Option<HeadSpec>,
}

/// Where the task head of an entry begins.
#[derive(Clone, Copy, Debug)]
pub struct HeadSpec {
    /// First op.
    pub op: usize,
    /// The hidden states that it starts from.
    pub hidden: Operand,
    /// Slots before it.
    pub slots: usize,
}

/// A place where an adapter can attach. Slots come in the order of the program, whatever the weights' formats.
#[derive(Clone, Debug)]
pub struct SlotSpec {
    /// What it is.
    pub kind: SlotKind,
    /// Module; for vectors the tensor's name.
    pub module: String,
    /// Tensor.
    pub tensor: u32,
    /// First row in the tensor.
    pub row_start: usize,
    /// Rows.
    pub rows: usize,
    /// Inputs.
    pub cols: usize,
    /// Where its values come from; of vectors, the tensor's parts say. A product of several tensors changes with each of them.
    pub source: Source,
    /// Where its bias comes from.
    pub bias: Source,
    /// Slots of one number read the same input.
    pub input: usize,
}

impl SlotSpec {
    /// A slot whose sizes and sources are still to be said.
    #[must_use]
    pub fn new(kind: SlotKind, module: String, tensor: u32) -> Self {
        let (source, bias) = (Source::Zeros, Source::Zeros);
        Self { kind, module, tensor, row_start: 0, rows: 0, cols: 0, source, bias, input: 0 }
    }
}

/// A lowered model.
#[derive(Clone, Debug)]
pub struct Lowered {
    /// Architecture name.
    pub architecture: &'static str,
    /// Task.
    pub task: Task,
    /// How label scores are read.
    pub problem: ProblemType,
    /// Vocabulary rows.
    pub vocab: u32,
    /// Longest sequence.
    pub max_positions: u32,
    /// Token types.
    pub token_types: u32,
    /// Hidden size.
    pub hidden: u32,
    /// Labels of the head.
    pub labels: u32,
    /// Default pooling: 0 none, 1 mean, 2 first, 3 last.
    pub pooling: u32,
    /// Entry points.
    pub entries: Vec<EntrySpec>,
    /// Activation buffers with their planned offsets.
    pub buffers: Vec<BufferRecord>,
    /// KV caches.
    pub caches: Vec<CacheRecord>,
    /// Tensor recipes.
    pub tensors: Vec<TensorSpec>,
    /// Places for adapters.
    pub slots: Vec<SlotSpec>,
    /// Activation bytes per token.
    pub per_token: u32,
    /// Activation bytes per output row.
    pub per_output: u32,
}
