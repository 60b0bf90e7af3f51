//! The memory plan: exactly how many bytes a session needs, known before running.
//!
//! ```text
//! arena = T · per_token + R · per_output + Σ caches + adapters
//! cache = copies · capacity · …   capacity = context, tokens or source positions by its kind, in blocks of 16;
//!                                 copies = sequences for contexts, else 1
//! adapters = max(T, R) · rank · 4 + T · head per_token + R · head per_output + 16 · (sequences + 1), in lines of 64
//! ```

use crate::format::record::{CacheKind, CacheRecord, Info};
use crate::format::view::File;
use crate::kernels::{KvType, kv_head_bytes};

/// Alignment of the arena and of everything in it.
pub const ARENA_ALIGN: usize = 64;

/// What a session is planned for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SessionConfig {
    /// Positions per sequence that the KV cache holds.
    pub context: u32,
    /// Most tokens in one step (the prefill chunk; encoders need the whole sequence).
    pub tokens: u32,
    /// Most output rows of one step (1 is enough to generate).
    pub outputs: u32,
    /// Longest encoder sequence that a decoder attends to (0 without an encoder). All sequences share it.
    pub source: u32,
    /// Sequences that share the session.
    pub sequences: u32,
    /// Element type of the KV cache.
    pub kv: KvType,
    /// What the adapters that requests may use need, [`AdapterNeeds::NONE`] without adapters.
    pub adapters: AdapterNeeds,
}

/// What adapters need of a session's memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AdapterNeeds {
    /// Whether there are adapters at all: the session then remembers what each sequence's cache was computed with.
    pub used: bool,
    /// Low-rank values of one row that an op holds at most, a multiple of 16.
    pub rank: u32,
    /// Activation bytes per token of the largest head that an adapter brings.
    pub per_token: u32,
    /// Activation bytes per output row of it.
    pub per_output: u32,
}

const fn larger(a: u32, b: u32) -> u32 {
    if a > b { a } else { b }
}

impl AdapterNeeds {
    /// No adapters.
    pub const NONE: Self = Self { used: false, rank: 0, per_token: 0, per_output: 0 };

    /// Enough for requests that use the one or the other.
    #[must_use]
    pub const fn or(self, other: Self) -> Self {
        Self {
            used: self.used || other.used,
            rank: larger(self.rank, other.rank),
            per_token: larger(self.per_token, other.per_token),
            per_output: larger(self.per_output, other.per_output),
        }
    }

    /// Enough for requests that use both at once.
    #[must_use]
    pub const fn and(self, other: Self) -> Self {
        Self { rank: self.rank.saturating_add(other.rank), ..self.or(other) }
    }

    /// Whether a session with these needs can serve `other`.
    #[must_use]
    pub const fn covers(&self, other: &Self) -> bool {
        (self.used || !other.used)
            && self.rank >= other.rank
            && self.per_token >= other.per_token
            && self.per_output >= other.per_output
    }

    /// Bytes of the low-rank values of one row.
    #[must_use]
    pub const fn row_bytes(&self) -> u64 {
        (self.rank as u64 * 4).next_multiple_of(ARENA_ALIGN as u64)
    }

    /// Bytes of an arena.
    #[must_use]
    pub const fn bytes(&self, config: &SessionConfig) -> u64 {
        let (tokens, outputs) = (config.tokens as u64, config.outputs as u64);
        let rows = if tokens > outputs { tokens } else { outputs };
        let keys = if self.used { 16 * (config.sequences as u64 + 1) } else { 0 };
        (rows * self.row_bytes())
            .saturating_add(self.per_token as u64 * tokens)
            .saturating_add(self.per_output as u64 * outputs)
            .saturating_add(keys.next_multiple_of(ARENA_ALIGN as u64))
    }
}

impl SessionConfig {
    /// One sequence of `positions`, at most `step` tokens at once, one output row. A model that only encodes takes
    /// all positions in one step; one that encodes and decodes has `positions` on both sides.
    #[must_use]
    pub const fn single(decodes: bool, encodes: bool, positions: u32, step: u32, kv: KvType) -> Self {
        Self {
            context: if decodes { positions } else { 0 },
            tokens: if encodes && (!decodes || positions > step) { positions } else { step },
            outputs: 1,
            source: if decodes && encodes { positions } else { 0 },
            sequences: 1,
            kv,
            adapters: AdapterNeeds::NONE,
        }
    }
}

/// Byte counts of a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Plan {
    /// The whole arena.
    pub arena_bytes: u64,
    /// Activation bytes: `T · per_token + R · per_output`.
    pub activation_bytes: u64,
    /// KV cache bytes.
    pub kv_bytes: u64,
    /// Bytes for adapters.
    pub adapter_bytes: u64,
}

/// Positions that a cache of this kind holds.
#[must_use]
pub const fn cache_capacity(kind: u32, config: &SessionConfig) -> u32 {
    if kind == CacheKind::Context as u32 {
        config.context
    } else if kind == CacheKind::Step as u32 {
        config.tokens
    } else {
        config.source
    }
}

/// Regions of a cache: one per sequence where each has its own past.
#[must_use]
pub const fn cache_copies(kind: u32, config: &SessionConfig) -> u32 {
    if kind == CacheKind::Context as u32 { config.sequences } else { 1 }
}

/// Bytes of one region of a cache, and whether it was computed without overflow.
#[must_use]
pub const fn cache_bytes(cache: &CacheRecord, config: &SessionConfig) -> u64 {
    let capacity = cache_capacity(cache.kind, config) as usize;
    let head = kv_head_bytes(config.kv, cache.key_dim as usize, cache.value_dim as usize, capacity);
    head as u64 * cache.kv_heads as u64
}

/// The plan from the tables of a verified file.
#[must_use]
pub const fn plan(info: &Info, caches: &[CacheRecord], config: &SessionConfig) -> Plan {
    let mut plan = Plan::without_caches(info.per_token, info.per_output, config);
    let mut i = 0;
    while i < caches.len() {
        plan = plan.and_cache(&caches[i], config);
        i += 1;
    }
    plan
}

impl Plan {
    /// The plan of a model without caches.
    #[must_use]
    pub const fn without_caches(per_token: u32, per_output: u32, config: &SessionConfig) -> Self {
        let activation_bytes = per_token as u64 * config.tokens as u64 + per_output as u64 * config.outputs as u64;
        let adapter_bytes = config.adapters.bytes(config);
        let arena_bytes = activation_bytes.saturating_add(adapter_bytes);
        Self { arena_bytes, activation_bytes, kv_bytes: 0, adapter_bytes }
    }

    /// The plan of a model that has this cache too.
    #[must_use]
    pub const fn and_cache(self, cache: &CacheRecord, config: &SessionConfig) -> Self {
        let copies = cache_copies(cache.kind, config) as u64;
        let bytes = cache_bytes(cache, config).saturating_mul(copies);
        Self {
            arena_bytes: self.arena_bytes.saturating_add(bytes),
            kv_bytes: self.kv_bytes.saturating_add(bytes),
            ..self
        }
    }

    /// The plan of a file.
    #[must_use]
    pub const fn of(file: &File<'_>, config: &SessionConfig) -> Self {
        plan(file.info, file.caches, config)
    }
}
