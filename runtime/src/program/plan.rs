//! The memory plan: exactly how many bytes a session needs, known before running.
//!
//! ```text
//! arena = T · per_token + R · per_output + Σ caches
//! cache = sequences · capacity · …   capacity = context, tokens or source positions by its kind, in blocks of 16
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
    /// Longest encoder sequence that a decoder attends to (0 without an encoder).
    pub source: u32,
    /// Sequences that share the session.
    pub sequences: u32,
    /// Element type of the KV cache.
    pub kv: KvType,
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

/// Bytes of one sequence's share of a cache, and whether it was computed without overflow.
#[must_use]
pub const fn cache_bytes(cache: &CacheRecord, config: &SessionConfig) -> u64 {
    let capacity = cache_capacity(cache.kind, config) as usize;
    let head = kv_head_bytes(config.kv, cache.key_dim as usize, cache.value_dim as usize, capacity);
    head as u64 * cache.kv_heads as u64
}

/// The plan from the tables of a verified file; usable in constants.
#[must_use]
pub const fn plan(info: &Info, caches: &[CacheRecord], config: &SessionConfig) -> Plan {
    let activation_bytes =
        info.per_token as u64 * config.tokens as u64 + info.per_output as u64 * config.outputs as u64;
    let mut kv_bytes = 0_u64;
    let mut i = 0;
    while i < caches.len() {
        let copies = if caches[i].kind == CacheKind::Step as u32 { 1 } else { config.sequences as u64 };
        kv_bytes = kv_bytes.saturating_add(cache_bytes(&caches[i], config).saturating_mul(copies));
        i += 1;
    }
    Plan { arena_bytes: activation_bytes.saturating_add(kv_bytes), activation_bytes, kv_bytes }
}

impl Plan {
    /// The plan of a file.
    #[must_use]
    pub const fn of(file: &File<'_>, config: &SessionConfig) -> Self {
        plan(file.info, file.caches, config)
    }
}
