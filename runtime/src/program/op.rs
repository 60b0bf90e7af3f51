//! Ops: the typed form of an [`OpRecord`], in both directions. This is the only place that gives the record's
//! fields a meaning.
//!
//! Shapes are per row: an op runs over all rows of its output buffer (T token rows or R output rows).

use crate::error::{Error, ErrorKind, Result};
use crate::format::record::{NONE, OpRecord, Operand};
use crate::kernels::Act;

/// Op codes; part of the file format.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u16)]
#[allow(missing_docs)]
pub enum OpCode {
    Embed = 1,
    Norm = 2,
    Quantize = 3,
    Linear = 4,
    Gated = 5,
    Activation = 6,
    Add = 7,
    Scale = 8,
    RotaryTable = 9,
    Rotary = 10,
    KvStore = 11,
    Attention = 12,
    Select = 13,
    Pool = 14,
    Route = 15,
    ExpertLinear = 16,
}

impl OpCode {
    /// Every code, in numeric order.
    pub const ALL: [Self; 16] = [
        Self::Embed,
        Self::Norm,
        Self::Quantize,
        Self::Linear,
        Self::Gated,
        Self::Activation,
        Self::Add,
        Self::Scale,
        Self::RotaryTable,
        Self::Rotary,
        Self::KvStore,
        Self::Attention,
        Self::Select,
        Self::Pool,
        Self::Route,
        Self::ExpertLinear,
    ];
    /// Short name for listings and profiles.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Embed => "embed",
            Self::Norm => "norm",
            Self::Quantize => "quantize",
            Self::Linear => "linear",
            Self::Gated => "gated",
            Self::Activation => "activation",
            Self::Add => "add",
            Self::Scale => "scale",
            Self::RotaryTable => "rotary_table",
            Self::Rotary => "rotary",
            Self::KvStore => "kv_store",
            Self::Attention => "attention",
            Self::Select => "select",
            Self::Pool => "pool",
            Self::Route => "route",
            Self::ExpertLinear => "expert_linear",
        }
    }
}

/// Which parameter of a linear's record is its slot.
pub(crate) const LINEAR_SLOT: usize = 2;
/// Which parameter of an expert linear's record is the number of experts.
pub(crate) const EXPERT_COUNT: usize = 0;

/// What indexes an embedding table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EmbedSource {
    /// The token id.
    Token,
    /// The token type (segment) id.
    TokenType,
    /// The absolute position plus the op's offset.
    Position,
}

/// Kind of normalisation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NormKind {
    /// `x · rsqrt(mean(x²) + eps) · w`.
    Rms,
    /// `(x − mean) · rsqrt(var + eps) · w + b`.
    Layer,
}

/// Which token rows become output rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SelectRows {
    /// The rows that the caller of the step asked for.
    Requested,
    /// The step's first row.
    First,
    /// The step's last row.
    Last,
}

/// Additive attention bias.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BiasKind {
    /// None.
    None,
    /// ALiBi: tensor `[heads]` of slopes; adds `slope · (key position − query position)`.
    Alibi,
    /// T5: tensor `[heads, 2·span + 1]`, entry `span + clamp(key − query, ±span)`.
    Relative,
    /// DeBERTa: tensor `[1, 2·span + 1]`, at `span + clamp(key − query, ±span)` the number of the entry that is added from
    /// the query's row and from the key's row.
    Rows,
}

/// A typed op. `width` counts elements of a row unless said otherwise.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Op {
    /// `out[:width] = scale · table[index]`.
    Embed {
        /// Table, `[rows, width]`.
        table: u32,
        /// What indexes the table.
        source: EmbedSource,
        /// Added to positions.
        offset: u32,
        /// Factor.
        scale: f32,
        /// Output.
        out: Operand,
        /// Columns.
        width: u32,
        /// The table's slot or [`NONE`].
        slot: u32,
    },
    /// Normalises `groups` consecutive runs of `width` each.
    Norm {
        /// Kind.
        kind: NormKind,
        /// Input; may be the output.
        a: Operand,
        /// Output.
        out: Operand,
        /// Elements of a run.
        width: u32,
        /// Runs per row (heads), 1 for whole rows.
        groups: u32,
        /// Epsilon.
        eps: f32,
        /// `[width]` or [`NONE`].
        weight: u32,
        /// `[width]` or [`NONE`].
        bias: u32,
    },
    /// Quantizes `width` inputs of a float row to an activation row.
    Quantize {
        /// Float input.
        a: Operand,
        /// Quantized output.
        out: Operand,
        /// Inputs.
        width: u32,
    },
    /// `out = residual + scale · act(W·a + bias)`; `residual` may be `out` itself.
    Linear {
        /// Input: float columns, or a whole quantized row for integer formats.
        a: Operand,
        /// Output.
        out: Operand,
        /// Residual or none.
        residual: Operand,
        /// Weight panels.
        weight: u32,
        /// `[N]` or [`NONE`].
        bias: u32,
        /// Activation.
        act: Act,
        /// Factor.
        scale: f32,
        /// Outputs: the weight's rows.
        width: u32,
        /// The first of the weight's slots, which follow each other, or [`NONE`].
        slot: u32,
    },
    /// `out = act(gate) · up`.
    Gated {
        /// Gate.
        gate: Operand,
        /// Up.
        up: Operand,
        /// Output.
        out: Operand,
        /// Columns.
        width: u32,
        /// Activation of the gate.
        act: Act,
    },
    /// `out = act(a)`; in place allowed.
    Activation {
        /// Input.
        a: Operand,
        /// Output.
        out: Operand,
        /// Columns.
        width: u32,
        /// Activation.
        act: Act,
    },
    /// `out = a + scale · b`; `a` may be `out`.
    Add {
        /// First.
        a: Operand,
        /// Second.
        b: Operand,
        /// Output.
        out: Operand,
        /// Columns.
        width: u32,
        /// Factor of `b`.
        scale: f32,
    },
    /// `out = softcap(a · factor)`, `softcap(x) = cap · tanh(x / cap)` unless `cap` is 0; in place allowed.
    Scale {
        /// Input.
        a: Operand,
        /// Output.
        out: Operand,
        /// Columns.
        width: u32,
        /// Factor.
        factor: f32,
        /// Soft cap, 0 for none.
        cap: f32,
    },
    /// Writes `cos | sin` (`half` each) of every row's position.
    RotaryTable {
        /// Inverse frequencies, `[half]`.
        freqs: u32,
        /// Inverse frequencies once the session's planned context exceeds `threshold`, or [`NONE`].
        long_freqs: u32,
        /// See `long_freqs`.
        threshold: u32,
        /// Factor of cos and sin (YaRN-style attention factor).
        scale: f32,
        /// Output, `2·half` columns.
        out: Operand,
        /// Rotated pairs.
        half: u32,
    },
    /// Rotates the first `2·half` elements of each of `heads` heads, in place.
    Rotary {
        /// Vectors, changed in place.
        x: Operand,
        /// Table of [`Op::RotaryTable`].
        table: Operand,
        /// Heads.
        heads: u32,
        /// Elements from head to head.
        head_dim: u32,
        /// Rotated pairs.
        half: u32,
        /// Pairs are neighbours (GPT-J style) instead of `half` apart.
        interleaved: bool,
    },
    /// Appends keys and values of all rows to a cache.
    KvStore {
        /// Keys, `kv_heads · key_dim` columns.
        k: Operand,
        /// Values, `kv_heads · value_dim` columns.
        v: Operand,
        /// Cache.
        cache: u32,
    },
    /// Attention of `heads` query heads over a cache.
    Attention {
        /// Queries, `heads · key_dim` columns.
        q: Operand,
        /// Output, `heads · value_dim` columns.
        out: Operand,
        /// Cache.
        cache: u32,
        /// Query heads, a multiple of the cache's heads.
        heads: u32,
        /// Score factor.
        scale: f32,
        /// Soft cap of the scores, 0 for none.
        softcap: f32,
        /// Keys visible to the left: `key > query − window` (both sides for non-causal: `|key − query| < window`); 0 for all.
        window: u32,
        /// Keys after the query are masked.
        causal: bool,
        /// Additive bias.
        bias_kind: BiasKind,
        /// Bias tensor or [`NONE`].
        bias: u32,
        /// With [`BiasKind::Rows`]: what every token adds by distance, `heads · entries` columns where it is the query, then
        /// as many where it is the key. Else none.
        rows: Operand,
        /// Entries of a head in `rows`, else 0.
        entries: u32,
    },
    /// Copies `width` columns of selected token rows to the output rows; `First` and `Last` fill every output row.
    Select {
        /// Token rows.
        a: Operand,
        /// Output rows.
        out: Operand,
        /// Columns.
        width: u32,
        /// Which rows.
        rows: SelectRows,
    },
    /// Mean over the step's token rows, written to every output row.
    Pool {
        /// Token rows.
        a: Operand,
        /// Output rows.
        out: Operand,
        /// Columns.
        width: u32,
    },
    /// Weights of experts: the softmax of all scores, of which the `chosen` largest stay (equal ones by index) and all
    /// others become 0.
    Route {
        /// Scores of `width` experts.
        a: Operand,
        /// Weights; may be the scores.
        out: Operand,
        /// Experts.
        width: u32,
        /// How many stay.
        chosen: u32,
        /// Those that stay are divided by their sum.
        normalize: bool,
    },
    /// A linear layer whose matrix depends on the row: that of the `slot`-th expert with a weight other than 0. Rows
    /// with fewer experts get 0.
    ExpertLinear {
        /// Input, as of [`Op::Linear`].
        a: Operand,
        /// Weights of the experts, `experts` columns.
        route: Operand,
        /// Output.
        out: Operand,
        /// Weight panels of the first expert; the others' follow in the tensor table.
        weight: u32,
        /// Experts.
        experts: u32,
        /// Which of a row's experts, from 0.
        slot: u32,
        /// Multiplied by the expert's weight.
        weighted: bool,
        /// Added to the output instead of replacing it.
        add: bool,
        /// Outputs: the rows of every expert's matrix.
        width: u32,
    },
}

/// Most experts that an op may choose from.
pub const MAX_EXPERTS: u32 = 1024;
/// Most experts of a row.
pub const MAX_CHOSEN: u32 = 64;

const F_NORMALIZE: u16 = 1;
const F_WEIGHTED: u16 = 1;
const F_ADD: u16 = 2;
const F_INTERLEAVED: u16 = 1;
const F_CAUSAL: u16 = 1;

fn blank(code: OpCode, width: u32) -> OpRecord {
    OpRecord {
        code: code as u16,
        flags: 0,
        width,
        a: Operand::NONE,
        b: Operand::NONE,
        out: Operand::NONE,
        w0: NONE,
        w1: NONE,
        p: [0; 6],
    }
}

impl Op {
    /// The code.
    #[must_use]
    pub const fn code(&self) -> OpCode {
        match self {
            Self::Embed { .. } => OpCode::Embed,
            Self::Norm { .. } => OpCode::Norm,
            Self::Quantize { .. } => OpCode::Quantize,
            Self::Linear { .. } => OpCode::Linear,
            Self::Gated { .. } => OpCode::Gated,
            Self::Activation { .. } => OpCode::Activation,
            Self::Add { .. } => OpCode::Add,
            Self::Scale { .. } => OpCode::Scale,
            Self::RotaryTable { .. } => OpCode::RotaryTable,
            Self::Rotary { .. } => OpCode::Rotary,
            Self::KvStore { .. } => OpCode::KvStore,
            Self::Attention { .. } => OpCode::Attention,
            Self::Select { .. } => OpCode::Select,
            Self::Pool { .. } => OpCode::Pool,
            Self::Route { .. } => OpCode::Route,
            Self::ExpertLinear { .. } => OpCode::ExpertLinear,
        }
    }

    /// The record of this op.
    #[must_use]
    pub fn encode(&self) -> OpRecord {
        let base = |width| blank(self.code(), width);
        match *self {
            Self::Embed { table, source, offset, scale, out, width, slot } => {
                OpRecord { out, w0: table, p: [source as u32, offset, scale.to_bits(), slot, 0, 0], ..base(width) }
            }
            Self::Norm { kind, a, out, width, groups, eps, weight, bias } => OpRecord {
                a,
                out,
                w0: weight,
                w1: bias,
                p: [kind as u32, groups, eps.to_bits(), 0, 0, 0],
                ..base(width)
            },
            Self::Quantize { a, out, width } => OpRecord { a, out, ..base(width) },
            Self::Linear { a, out, residual, weight, bias, act, scale, width, slot } => OpRecord {
                a,
                b: residual,
                out,
                w0: weight,
                w1: bias,
                p: [act as u32, scale.to_bits(), slot, 0, 0, 0],
                ..base(width)
            },
            Self::Gated { gate, up, out, width, act } => {
                OpRecord { a: gate, b: up, out, p: [act as u32, 0, 0, 0, 0, 0], ..base(width) }
            }
            Self::Activation { a, out, width, act } => {
                OpRecord { a, out, p: [act as u32, 0, 0, 0, 0, 0], ..base(width) }
            }
            Self::Add { a, b, out, width, scale } => {
                OpRecord { a, b, out, p: [scale.to_bits(), 0, 0, 0, 0, 0], ..base(width) }
            }
            Self::Scale { a, out, width, factor, cap } => {
                OpRecord { a, out, p: [factor.to_bits(), cap.to_bits(), 0, 0, 0, 0], ..base(width) }
            }
            Self::RotaryTable { freqs, long_freqs, threshold, scale, out, half } => {
                OpRecord { out, w0: freqs, w1: long_freqs, p: [threshold, scale.to_bits(), 0, 0, 0, 0], ..base(half) }
            }
            Self::Rotary { x, table, heads, head_dim, half, interleaved } => OpRecord {
                flags: if interleaved { F_INTERLEAVED } else { 0 },
                b: table,
                out: x,
                p: [heads, head_dim, 0, 0, 0, 0],
                ..base(half)
            },
            Self::KvStore { k, v, cache } => OpRecord { a: k, b: v, p: [cache, 0, 0, 0, 0, 0], ..base(0) },
            Self::Attention {
                q,
                out,
                cache,
                heads,
                scale,
                softcap,
                window,
                causal,
                bias_kind,
                bias,
                rows,
                entries,
            } => OpRecord {
                flags: if causal { F_CAUSAL } else { 0 },
                a: q,
                b: rows,
                out,
                w0: bias,
                p: [cache, heads, scale.to_bits(), softcap.to_bits(), window, bias_kind as u32],
                ..base(entries)
            },
            Self::Select { a, out, width, rows } => OpRecord { a, out, p: [rows as u32, 0, 0, 0, 0, 0], ..base(width) },
            Self::Pool { a, out, width } => OpRecord { a, out, ..base(width) },
            Self::Route { a, out, width, chosen, normalize } => OpRecord {
                flags: if normalize { F_NORMALIZE } else { 0 },
                a,
                out,
                p: [chosen, 0, 0, 0, 0, 0],
                ..base(width)
            },
            Self::ExpertLinear { a, route, out, weight, experts, slot, weighted, add, width } => OpRecord {
                flags: if weighted { F_WEIGHTED } else { 0 } | if add { F_ADD } else { 0 },
                a,
                b: route,
                out,
                w0: weight,
                p: [experts, slot, 0, 0, 0, 0],
                ..base(width)
            },
        }
    }

    /// The op of a record, strictly: unused fields must hold their neutral value, so that [`Op::encode`] gives the same
    /// record back. The verifier's form.
    ///
    /// # Errors
    /// As [`Op::parse`], and for fields that are not neutral.
    pub fn decode(r: &OpRecord) -> Result<Self> {
        let op = Self::parse(r)?;
        if bytemuck::bytes_of(&op.encode()) == bytemuck::bytes_of(r) {
            Ok(op)
        } else {
            Err(Error::new(ErrorKind::Invalid, "ops: unused field is not neutral").values(r.code.into(), 0))
        }
    }

    /// The op of a record.
    ///
    /// # Errors
    /// [`ErrorKind::Invalid`] naming the op field for unknown codes and parameters.
    pub fn parse(r: &OpRecord) -> Result<Self> {
        let bad = |what, v: u32| Error::new(ErrorKind::Invalid, what).values(v.into(), 0);
        let code =
            OpCode::ALL.into_iter().find(|c| *c as u16 == r.code).ok_or_else(|| bad("ops.code", r.code.into()))?;
        let f = f32::from_bits;
        let act = |v: u32| u16::try_from(v).ok().and_then(Act::from_u16).ok_or_else(|| bad("ops: activation", v));
        let p = r.p;
        Ok(match code {
            OpCode::Embed => Self::Embed {
                table: r.w0,
                source: match p[0] {
                    0 => EmbedSource::Token,
                    1 => EmbedSource::TokenType,
                    2 => EmbedSource::Position,
                    v => return Err(bad("embed.source", v)),
                },
                offset: p[1],
                scale: f(p[2]),
                out: r.out,
                width: r.width,
                slot: p[3],
            },
            OpCode::Norm => Self::Norm {
                kind: match p[0] {
                    0 => NormKind::Rms,
                    1 => NormKind::Layer,
                    v => return Err(bad("norm.kind", v)),
                },
                a: r.a,
                out: r.out,
                width: r.width,
                groups: p[1],
                eps: f(p[2]),
                weight: r.w0,
                bias: r.w1,
            },
            OpCode::Quantize => Self::Quantize { a: r.a, out: r.out, width: r.width },
            OpCode::Linear => Self::Linear {
                a: r.a,
                out: r.out,
                residual: r.b,
                weight: r.w0,
                bias: r.w1,
                act: act(p[0])?,
                scale: f(p[1]),
                width: r.width,
                slot: p[LINEAR_SLOT],
            },
            OpCode::Gated => Self::Gated { gate: r.a, up: r.b, out: r.out, width: r.width, act: act(p[0])? },
            OpCode::Activation => Self::Activation { a: r.a, out: r.out, width: r.width, act: act(p[0])? },
            OpCode::Add => Self::Add { a: r.a, b: r.b, out: r.out, width: r.width, scale: f(p[0]) },
            OpCode::Scale => Self::Scale { a: r.a, out: r.out, width: r.width, factor: f(p[0]), cap: f(p[1]) },
            OpCode::RotaryTable => Self::RotaryTable {
                freqs: r.w0,
                long_freqs: r.w1,
                threshold: p[0],
                scale: f(p[1]),
                out: r.out,
                half: r.width,
            },
            OpCode::Rotary => Self::Rotary {
                x: r.out,
                table: r.b,
                heads: p[0],
                head_dim: p[1],
                half: r.width,
                interleaved: r.flags == F_INTERLEAVED,
            },
            OpCode::KvStore => Self::KvStore { k: r.a, v: r.b, cache: p[0] },
            OpCode::Attention => Self::Attention {
                q: r.a,
                out: r.out,
                cache: p[0],
                heads: p[1],
                scale: f(p[2]),
                softcap: f(p[3]),
                window: p[4],
                causal: r.flags == F_CAUSAL,
                bias_kind: match p[5] {
                    0 => BiasKind::None,
                    1 => BiasKind::Alibi,
                    2 => BiasKind::Relative,
                    3 => BiasKind::Rows,
                    v => return Err(bad("attention.bias_kind", v)),
                },
                bias: r.w0,
                rows: r.b,
                entries: r.width,
            },
            OpCode::Select => Self::Select {
                a: r.a,
                out: r.out,
                width: r.width,
                rows: match p[0] {
                    0 => SelectRows::Requested,
                    1 => SelectRows::First,
                    2 => SelectRows::Last,
                    v => return Err(bad("select.rows", v)),
                },
            },
            OpCode::Pool => Self::Pool { a: r.a, out: r.out, width: r.width },
            OpCode::Route => {
                Self::Route { a: r.a, out: r.out, width: r.width, chosen: p[0], normalize: r.flags == F_NORMALIZE }
            }
            OpCode::ExpertLinear => Self::ExpertLinear {
                a: r.a,
                route: r.b,
                out: r.out,
                weight: r.w0,
                experts: p[0],
                slot: p[1],
                weighted: r.flags & F_WEIGHTED != 0,
                add: r.flags & F_ADD != 0,
                width: r.width,
            },
        })
    }
}
