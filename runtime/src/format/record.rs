//! Every record of an `.lpk` file, byte for byte. `docs/format.md` is this file in prose.
//!
//! All integers are little-endian; all records are multiples of 8 bytes without implicit padding, so a
//! verified file is used in place through `bytemuck` casts.

use bytemuck::{Pod, Zeroable};

/// First eight bytes of a file. The high bit and the line endings catch text-mode transfers.
pub const MAGIC: [u8; 8] = *b"\x89LPK\r\n\x1a\n";
/// Format version that this code writes and the newest it reads.
pub const VERSION: u32 = 1;
/// Sections start at multiples of this; the weights section at [`WEIGHTS_ALIGN`].
pub const SECTION_ALIGN: u64 = 64;
/// Alignment of the weights section: one page, so that a mapping shares nothing with other sections.
pub const WEIGHTS_ALIGN: u64 = 4096;
/// "No such thing" in a `u32` reference.
pub const NONE: u32 = u32::MAX;
/// "No buffer" in an operand.
pub const NO_BUFFER: u16 = u16::MAX;

/// What a file is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum FileKind {
    /// A model that runs: merged, or a base.
    Model = 1,
    /// An adapter for a base (unmerged mode).
    Adapter = 2,
    /// A base and named adapters in one file.
    Bundle = 3,
}

/// The file header, 128 bytes at offset 0.
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(C)]
pub struct Header {
    /// [`MAGIC`].
    pub magic: [u8; 8],
    /// [`VERSION`].
    pub version: u32,
    /// [`FileKind`].
    pub kind: u32,
    /// Feature bits that a reader must know, else it refuses the file.
    pub required: u64,
    /// Length of the whole file in bytes.
    pub file_len: u64,
    /// Entries of the section table.
    pub section_count: u32,
    /// Offset of the section table: 128.
    pub section_offset: u32,
    /// SHA-256 of the file with these 32 bytes zero.
    pub hash: [u8; 32],
    /// SHA-256 over the base model's config and tensors: what adapters bind to.
    pub fingerprint: [u8; 32],
    /// The 16 codes of the `q4` format, each value + 64 (0…127).
    pub codebook: [u8; 16],
    /// Zero.
    pub reserved: u64,
}

/// Identifies a section. Unknown ids are refused unless `required` says nothing of them: a reader skips ids ≥ 0x8000_0000.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum SectionId {
    /// UTF-8 bytes that [`StrRef`]s point into.
    Strings = 1,
    /// [`MetaRecord`]s.
    Meta = 2,
    /// One [`Info`].
    Info = 3,
    /// [`EntryRecord`]s.
    Entries = 4,
    /// [`OpRecord`]s of all entries.
    Ops = 5,
    /// [`BufferRecord`]s.
    Buffers = 6,
    /// [`CacheRecord`]s.
    Caches = 7,
    /// [`OutputRecord`]s.
    Outputs = 8,
    /// [`TensorRecord`]s.
    Tensors = 9,
    /// [`SlotRecord`]s.
    Slots = 10,
    /// [`StrRef`]s: label names by index.
    Labels = 11,
    /// The compiled tokenizer (`docs/tokenizer-format.md`).
    Tokenizer = 12,
    /// Weight data.
    Weights = 13,
    /// [`PatchRecord`]s of an adapter.
    Patches = 14,
    /// u32 row numbers that patches refer to, and the tokens that switch an adapter on.
    Indices = 15,
    /// [`MemberRecord`]s of a bundle.
    Members = 16,
}

impl SectionId {
    /// The largest id.
    pub const LAST: Self = Self::Members;
}

/// One entry of the section table, 32 bytes.
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(C)]
pub struct SectionRecord {
    /// [`SectionId`].
    pub id: u32,
    /// Bytes of one record, 1 for blobs.
    pub record_size: u32,
    /// Offset in the file, a multiple of [`SECTION_ALIGN`].
    pub offset: u64,
    /// Length in bytes: `count · record_size`.
    pub len: u64,
    /// Number of records.
    pub count: u64,
}

/// A string in the strings section.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct StrRef {
    /// Offset in the section.
    pub offset: u32,
    /// Bytes.
    pub len: u32,
}

/// One metadata item: a key and a UTF-8 value (numbers in decimal, structures as JSON). Sorted by key, unique.
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(C)]
pub struct MetaRecord {
    /// Key, e.g. `base.name`.
    pub key: StrRef,
    /// Value.
    pub value: StrRef,
}

/// What a program's input and output mean; PEFT's task types.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
#[allow(missing_docs)]
pub enum Task {
    CausalLm = 1,
    Seq2SeqLm = 2,
    SeqCls = 3,
    TokenCls = 4,
    QuestionAnswering = 5,
    FeatureExtraction = 6,
    Other = 7,
}

impl Task {
    /// Every task, in numeric order.
    pub const ALL: [Self; 7] = [
        Self::CausalLm,
        Self::Seq2SeqLm,
        Self::SeqCls,
        Self::TokenCls,
        Self::QuestionAnswering,
        Self::FeatureExtraction,
        Self::Other,
    ];
    /// PEFT's name.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::CausalLm => "CAUSAL_LM",
            Self::Seq2SeqLm => "SEQ_2_SEQ_LM",
            Self::SeqCls => "SEQ_CLS",
            Self::TokenCls => "TOKEN_CLS",
            Self::QuestionAnswering => "QUESTION_ANSWERING",
            Self::FeatureExtraction => "FEATURE_EXTRACTION",
            Self::Other => "OTHER",
        }
    }
    /// From the number in the file.
    #[must_use]
    pub fn from_u32(v: u32) -> Option<Self> {
        Self::ALL.into_iter().find(|t| *t as u32 == v)
    }
}

/// How the numbers of a classification head are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum ProblemType {
    /// Softmax over the labels.
    SingleLabel = 0,
    /// Sigmoid per label.
    MultiLabel = 1,
    /// The value itself.
    Regression = 2,
}

/// Facts about the model that the runtime's callers need, 256 bytes.
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(C)]
pub struct Info {
    /// [`Task`].
    pub task: u32,
    /// Rows of the input embedding: token ids must be below.
    pub vocab: u32,
    /// Longest sequence (positions) the model was made for.
    pub max_positions: u32,
    /// Rows of the token-type embedding, 0 if the model has none.
    pub token_types: u32,
    /// Hidden size.
    pub hidden: u32,
    /// Number of labels of the head, 0 if none.
    pub labels: u32,
    /// [`ProblemType`].
    pub problem: u32,
    /// Default KV element type (`KvType`).
    pub kv_type: u32,
    /// Name of the architecture, e.g. `llama`.
    pub architecture: StrRef,
    /// Chat template (Jinja), empty if none.
    pub chat_template: StrRef,
    /// Begin-of-sequence token, or [`NONE`].
    pub bos: u32,
    /// Padding token, or [`NONE`].
    pub pad: u32,
    /// First decoder token of an encoder–decoder, or [`NONE`].
    pub decoder_start: u32,
    /// How many of `eos` are used.
    pub eos_count: u32,
    /// Tokens that end generation.
    pub eos: [u32; 8],
    /// Generation default: temperature (0 = greedy).
    pub temperature: f32,
    /// Generation default: top-p (1 = off).
    pub top_p: f32,
    /// Generation default: repetition penalty (1 = off).
    pub repetition_penalty: f32,
    /// Generation default: top-k (0 = off).
    pub top_k: u32,
    /// Default pooling of an embedding model (0 none, 1 mean, 2 first, 3 last).
    pub pooling: u32,
    /// 1 if embeddings are to be L2-normalised.
    pub normalize: u32,
    /// Bytes of activation memory per token of a step.
    pub per_token: u32,
    /// Bytes of activation memory per output row of a step.
    pub per_output: u32,
    /// Of an adapter: how many tokens, at the end of the indices, switch it on; 0 if it always acts.
    pub invocation: u32,
    /// The first token of an answer, plus one; 0 if it is free.
    pub forced_first: u32,
    /// No run of so many tokens comes twice; 0 is off.
    pub no_repeat_ngram: u32,
    /// None of `eos` comes before so many new tokens.
    pub min_new: u32,
    /// How many of `suppressed` are used.
    pub suppressed_count: u32,
    /// Tokens that never come.
    pub suppressed: [u32; Info::SUPPRESSED],
    /// Zero.
    pub reserved: [u32; 19],
}

impl Info {
    /// The most tokens that can be forbidden.
    pub const SUPPRESSED: usize = 8;
}

/// Which rows a buffer has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
pub enum RowKind {
    /// One row per token of the step (T).
    Token = 0,
    /// One row per requested output (R).
    Output = 1,
}

/// What a buffer's row holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
pub enum BufferKind {
    /// `width` f32.
    F32 = 0,
    /// A quantized activation row of `width` inputs.
    Quant = 1,
}

/// An activation buffer, 24 bytes. With `n` rows planned, it lies at `offset·n` of its row kind's area.
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(C)]
pub struct BufferRecord {
    /// [`RowKind`].
    pub rows: u16,
    /// [`BufferKind`].
    pub kind: u16,
    /// Elements of a row.
    pub width: u32,
    /// Bytes from row to row, a multiple of 64.
    pub row_bytes: u32,
    /// Offset coefficient, a multiple of 64.
    pub offset: u32,
    /// Zero.
    pub reserved: u64,
}

/// How many positions a KV cache holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum CacheKind {
    /// The session's context: grows with every step (decoder self-attention).
    Context = 0,
    /// Only the step itself (encoder self-attention); one such cache serves all layers.
    Step = 1,
    /// The encoder's output (cross-attention): written by `encode`, read by `decode`.
    Source = 2,
}

/// A key/value cache, 24 bytes.
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(C)]
pub struct CacheRecord {
    /// [`CacheKind`].
    pub kind: u32,
    /// Key/value heads.
    pub kv_heads: u32,
    /// Elements of a key.
    pub key_dim: u32,
    /// Elements of a value.
    pub value_dim: u32,
    /// Zero.
    pub reserved: u64,
}

/// Which of a file's programs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum EntryKind {
    /// Tokens with a past: causal models, the decoder of an encoder–decoder.
    Decode = 1,
    /// A whole sequence at once: encoders.
    Encode = 2,
}

/// An entry point, 32 bytes.
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(C)]
pub struct EntryRecord {
    /// [`EntryKind`].
    pub kind: u32,
    /// First op.
    pub op_start: u32,
    /// Number of ops.
    pub op_count: u32,
    /// First output.
    pub output_start: u32,
    /// Number of outputs.
    pub output_count: u32,
    /// Positions that this entry can take (position table, or the model's maximum).
    pub max_positions: u32,
    /// First op of the task head (an adapter may bring another head), or the end of the ops.
    pub head_op: u32,
    /// Buffer of the hidden states that the head starts from, or [`NONE`] where no other head can stand.
    pub head_buffer: u32,
}

/// A named result, 24 bytes: columns `col .. col + width` of a buffer.
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(C)]
pub struct OutputRecord {
    /// Name as in the frameworks: `logits`, `last_hidden_state`, …
    pub name: StrRef,
    /// Buffer and first column.
    pub at: Operand,
    /// Columns.
    pub width: u32,
    /// Zero.
    pub reserved: u32,
}

/// How a tensor is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
pub enum TensorKind {
    /// Row panels of a [`crate::weights::WeightFormat`].
    Panels = 0,
    /// `rows · cols` f32, row-major.
    Vector = 1,
    /// Panels of 16 rows without padded inputs, `f32` or `f16`: for every input the 16 rows' values side by side.
    Thin = 2,
}

/// A tensor, 40 bytes.
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(C)]
pub struct TensorRecord {
    /// Name, e.g. `model.layers.0.self_attn.qkv`.
    pub name: StrRef,
    /// [`TensorKind`].
    pub kind: u16,
    /// [`crate::weights::WeightFormat`].
    pub format: u16,
    /// Outputs (N).
    pub rows: u32,
    /// Inputs (K).
    pub cols: u32,
    /// The [`SlotKind::Vector`] slot of this tensor, or [`NONE`].
    pub slot: u32,
    /// Offset in the weights section, a multiple of 64.
    pub offset: u64,
    /// Bytes.
    pub len: u64,
}

/// What stands at a slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum SlotKind {
    /// Rows of a matrix to multiply with.
    Linear = 0,
    /// A table to look up rows in.
    Embed = 1,
    /// A vector: norm weights, attention biases.
    Vector = 2,
}

/// A place an adapter can attach, 32 bytes. Slots stand in the order of the program; their number and order do not
/// depend on the weights' formats, so an adapter file refers to them by number.
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(C)]
pub struct SlotRecord {
    /// Module path, e.g. `model.layers.0.self_attn.q_proj`; for vectors the tensor's name.
    pub module: StrRef,
    /// Index of the tensor.
    pub tensor: u32,
    /// First row.
    pub row_start: u32,
    /// Rows.
    pub rows: u32,
    /// Inputs.
    pub cols: u32,
    /// [`SlotKind`].
    pub kind: u32,
    /// Zero.
    pub reserved: u32,
}

/// What an adapter does at a slot, 64 bytes. Sorted by slot, one at most for each.
///
/// With the slot's rows `W`, weight `s` and input `x`, by kind:
///
/// ```text
/// linear   t = A·x      y = gain ⊙ (W·x + s·B·t[a_row..])  + bias         B none: s·t[a_row..] is added to the rows `indices`
/// embed    gain ⊙ (W[i] + s·B·A[i])                                        or `values` in place of the rows `indices`
/// vector   `values` in place of W
/// ```
/// Without indices, `B` none adds to all rows and `values` takes the place of the whole table.
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(C)]
pub struct PatchRecord {
    /// The slot's module.
    pub module: StrRef,
    /// Index of the base's slot.
    pub slot: u32,
    /// [`SlotKind`].
    pub kind: u32,
    /// The slot's rows.
    pub rows: u32,
    /// The slot's inputs.
    pub cols: u32,
    /// A, `[ranks, cols]` (several patches may share one; thin, or panels in `q8`), for a table thin `[rows, rank]`; or [`NONE`].
    pub a: u32,
    /// First row of A that is meant.
    pub a_row: u32,
    /// B, thin `[rows, rank]`, for a table `[cols, rank]`; or [`NONE`].
    pub b: u32,
    /// Factor of every output, or [`NONE`].
    pub gain: u32,
    /// Bias in place of the base's, or [`NONE`].
    pub bias: u32,
    /// Values in place of the base's, or [`NONE`].
    pub values: u32,
    /// First index of replaced rows.
    pub index_start: u32,
    /// How many; ascending.
    pub index_count: u32,
    /// Zero.
    pub reserved: [u32; 2],
}

/// A file in a bundle, 32 bytes. The first is the base, the others are adapters, sorted by name.
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(C)]
pub struct MemberRecord {
    /// Name; of the base empty.
    pub name: StrRef,
    /// [`FileKind`].
    pub kind: u32,
    /// Zero.
    pub reserved: u32,
    /// Offset in the weights section, a multiple of 4096.
    pub offset: u64,
    /// Bytes.
    pub len: u64,
}

/// Columns from `col` on of a buffer's rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct Operand {
    /// Buffer index or [`NO_BUFFER`].
    pub buffer: u16,
    /// Zero.
    pub reserved: u16,
    /// First column, in elements.
    pub col: u32,
}

impl Operand {
    /// No operand.
    pub const NONE: Self = Self { buffer: NO_BUFFER, reserved: 0, col: 0 };
    /// Column `col` of `buffer`.
    #[must_use]
    pub const fn new(buffer: u16, col: u32) -> Self {
        Self { buffer, reserved: 0, col }
    }
    /// Whether there is none.
    #[must_use]
    pub const fn is_none(self) -> bool {
        self.buffer == NO_BUFFER
    }
}

/// One op, 64 bytes; the meaning of the fields by op code is in [`crate::program::op`].
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(C)]
pub struct OpRecord {
    /// [`crate::program::OpCode`].
    pub code: u16,
    /// Bits by op.
    pub flags: u16,
    /// Columns worked on.
    pub width: u32,
    /// First input.
    pub a: Operand,
    /// Second input.
    pub b: Operand,
    /// Output.
    pub out: Operand,
    /// First tensor or [`NONE`].
    pub w0: u32,
    /// Second tensor or [`NONE`].
    pub w1: u32,
    /// Parameters (integers, or the bits of an f32).
    pub p: [u32; 6],
}

#[cfg(target_endian = "big")]
compile_error!("an .lpk file is little-endian and used in place: this target is big-endian");

const _: () = {
    assert!(size_of::<Header>() == 128);
    assert!(size_of::<SectionRecord>() == 32);
    assert!(size_of::<MetaRecord>() == 16);
    assert!(size_of::<Info>() == 256);
    assert!(size_of::<BufferRecord>() == 24);
    assert!(size_of::<CacheRecord>() == 24);
    assert!(size_of::<EntryRecord>() == 32);
    assert!(size_of::<OutputRecord>() == 24);
    assert!(size_of::<TensorRecord>() == 40);
    assert!(size_of::<SlotRecord>() == 32);
    assert!(size_of::<PatchRecord>() == 64);
    assert!(size_of::<MemberRecord>() == 32);
    assert!(size_of::<OpRecord>() == 64);
};
