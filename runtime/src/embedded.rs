//! Models linked into the program: aligned bytes, a plan at compile time, memory without a heap.
//!
//! ```ignore
//! static MODEL: &Aligned<[u8]> = include_lpk!("home.lpk");
//! const CONFIG: SessionConfig = session_config(MODEL, 160, 16);
//! static ARENA: Memory<{ arena_bytes(MODEL, &CONFIG) }> = Memory::new();
//! ```
//! The constants read a few records of the file; that the file is sound is judged by [`crate::Model::open`] on the device.
#![expect(unsafe_code, reason = "static memory is lent out once")]

use core::cell::UnsafeCell;
use core::mem::offset_of;
use core::ops::Deref;
use core::sync::atomic::{AtomicBool, Ordering};

use crate::error::{Error, ErrorKind, Result};
use crate::format::record::{
    CacheRecord, EntryKind, EntryRecord, Header, Info, MAGIC, NONE, OpRecord, PatchRecord, SectionId, SectionRecord,
    SlotKind, SlotRecord, TensorRecord,
};
use crate::kernels::KvType;
use crate::program::op::{EXPERT_COUNT, LINEAR_SLOT, OpCode};
use crate::program::plan::{AdapterNeeds, Plan, SessionConfig};
use crate::program::verify::MAX_SLOTS;
use crate::weights::PANEL_ROWS;

/// Bytes at an address that is a multiple of 64, as models and arenas need it.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(64))]
pub struct Aligned<T: ?Sized>(pub T);

impl<T: ?Sized> Deref for Aligned<T> {
    type Target = T;
    fn deref(&self) -> &T {
        &self.0
    }
}

/// A file's bytes, linked into the program and aligned for [`Model::open`](crate::Model::open): a
/// `&'static Aligned<[u8]>`. Paths are those of [`include_bytes!`]. `section = ".model"` names the section that the
/// linker script places.
#[macro_export]
macro_rules! include_lpk {
    ($path:expr $(, section = $section:literal)? $(,)?) => {{
        $(#[unsafe(link_section = $section)])?
        static FILE: $crate::embedded::Aligned<[u8; include_bytes!($path).len()]> =
            $crate::embedded::Aligned(*include_bytes!($path));
        &FILE as &$crate::embedded::Aligned<[u8]>
    }};
}

/// Exactly the arena that a session of `config` needs, in bytes.
///
/// # Panics
/// While compiling, where `file` is no model.
#[must_use]
pub const fn arena_bytes(file: &Aligned<[u8]>, config: &SessionConfig) -> usize {
    let file = Records { bytes: &file.0 };
    let (per_token, per_output) = (file.info(offset_of!(Info, per_token)), file.info(offset_of!(Info, per_output)));
    let mut plan = Plan::without_caches(per_token, per_output, config);
    let (start, count) = file.section(SectionId::Caches, size_of::<CacheRecord>());
    let mut i = 0;
    while i < count {
        let at = start + i * size_of::<CacheRecord>();
        let cache = CacheRecord {
            kind: file.u32(at + offset_of!(CacheRecord, kind)),
            kv_heads: file.u32(at + offset_of!(CacheRecord, kv_heads)),
            key_dim: file.u32(at + offset_of!(CacheRecord, key_dim)),
            value_dim: file.u32(at + offset_of!(CacheRecord, value_dim)),
            reserved: 0,
        };
        plan = plan.and_cache(&cache, config);
        i += 1;
    }
    assert!(plan.arena_bytes <= usize::MAX as u64, "the arena is larger than the address space");
    plan.arena_bytes as usize
}

/// A session of one sequence: `positions` of it, at most `step` tokens at once (encoders take all positions in one
/// step), one output row, and the file's own type of KV cache.
///
/// # Panics
/// While compiling, where `file` is no model.
#[must_use]
pub const fn session_config(file: &Aligned<[u8]>, positions: u32, step: u32) -> SessionConfig {
    let file = Records { bytes: &file.0 };
    let (start, count) = file.section(SectionId::Entries, size_of::<EntryRecord>());
    let (mut decodes, mut encodes) = (false, false);
    let mut i = 0;
    while i < count {
        let kind = file.u32(start + i * size_of::<EntryRecord>() + offset_of!(EntryRecord, kind));
        decodes |= kind == EntryKind::Decode as u32;
        encodes |= kind == EntryKind::Encode as u32;
        i += 1;
    }
    let kv = match KvType::from_u16(file.info(offset_of!(Info, kv_type)) as u16) {
        Some(kv) => kv,
        None => panic!("the file names a type of KV cache that this runtime does not know"),
    };
    SessionConfig::single(decodes, encodes, positions, step, kv)
}

/// What a session on `base` needs to run `adapter`: [`Adapter::needs`](crate::Adapter::needs), while compiling. For
/// [`SessionConfig::adapters`].
///
/// # Panics
/// While compiling, where one of the two is no `.lpk` file.
#[must_use]
pub const fn adapter_needs(base: &Aligned<[u8]>, adapter: &Aligned<[u8]>) -> AdapterNeeds {
    let (base, adapter) = (Records { bytes: &base.0 }, Records { bytes: &adapter.0 });
    let (ops, op_count) = base.section(SectionId::Ops, size_of::<OpRecord>());
    let (mut i, mut most) = (0, 0);
    while i < op_count {
        let op = ops + i * size_of::<OpRecord>();
        let (code, weight) = (base.u16(op + offset_of!(OpRecord, code)), base.u32(op + offset_of!(OpRecord, w0)));
        let parameters = op + offset_of!(OpRecord, p);
        let mut ranks = 0;
        if code == OpCode::Linear as u16 {
            ranks = adapter.ranks(&base, base.u32(parameters + 4 * LINEAR_SLOT), weight);
        } else if code == OpCode::ExpertLinear as u16 {
            let end = weight + base.u32(parameters + 4 * EXPERT_COUNT);
            let mut expert = weight;
            while expert < end {
                let of_one = adapter.ranks(&base, base.tensor(expert, offset_of!(TensorRecord, slot)), expert);
                ranks = if of_one > ranks { of_one } else { ranks };
                expert += 1;
            }
        }
        most = if ranks > most { ranks } else { most };
        i += 1;
    }
    let head = adapter.section(SectionId::Entries, size_of::<EntryRecord>()).1 > 0;
    AdapterNeeds {
        used: true,
        rank: most,
        per_token: if head { adapter.info(offset_of!(Info, per_token)) } else { 0 },
        per_output: if head { adapter.info(offset_of!(Info, per_output)) } else { 0 },
    }
}

/// Records of a file, read where no cast can be: while compiling.
struct Records<'a> {
    bytes: &'a [u8],
}

impl Records<'_> {
    const fn u32(&self, at: usize) -> u32 {
        assert!(at + 4 <= self.bytes.len(), "the file ends too early");
        u32::from_le_bytes([self.bytes[at], self.bytes[at + 1], self.bytes[at + 2], self.bytes[at + 3]])
    }

    const fn u16(&self, at: usize) -> u16 {
        assert!(at + 2 <= self.bytes.len(), "the file ends too early");
        u16::from_le_bytes([self.bytes[at], self.bytes[at + 1]])
    }

    /// A field of a tensor's record.
    const fn tensor(&self, tensor: u32, field: usize) -> u32 {
        let (start, count) = self.section(SectionId::Tensors, size_of::<TensorRecord>());
        assert!((tensor as usize) < count, "the file names a tensor that it does not have");
        self.u32(start + tensor as usize * size_of::<TensorRecord>() + field)
    }

    /// Low-rank values, in whole panels, that an adapter's patches have at the slots of a matrix from `slot` on.
    const fn ranks(&self, base: &Self, mut slot: u32, weight: u32) -> u32 {
        let (mut ranks, mut last, mut slots) = (0, NONE, 0);
        while slots < MAX_SLOTS && base.is_slot_of(slot, weight) {
            let a = self.factor_at(slot);
            if a != NONE && a != last {
                ranks += self.tensor(a, offset_of!(TensorRecord, rows)).next_multiple_of(PANEL_ROWS as u32);
                last = a;
            }
            (slot, slots) = (slot + 1, slots + 1);
        }
        ranks
    }

    /// Whether a slot is one of the linear ones of a matrix.
    const fn is_slot_of(&self, slot: u32, weight: u32) -> bool {
        let (start, count) = self.section(SectionId::Slots, size_of::<SlotRecord>());
        let at = start + slot as usize * size_of::<SlotRecord>();
        (slot as usize) < count
            && self.u32(at + offset_of!(SlotRecord, tensor)) == weight
            && self.u32(at + offset_of!(SlotRecord, kind)) == SlotKind::Linear as u32
    }

    /// The A of an adapter's patch at a slot; [`NONE`] without. Patches are sorted by slot.
    const fn factor_at(&self, slot: u32) -> u32 {
        let (start, count) = self.section(SectionId::Patches, size_of::<PatchRecord>());
        let (mut low, mut high) = (0, count);
        while low < high {
            let middle = (low + high) / 2;
            let at = start + middle * size_of::<PatchRecord>();
            let found = self.u32(at + offset_of!(PatchRecord, slot));
            if found == slot {
                return self.u32(at + offset_of!(PatchRecord, a));
            }
            (low, high) = if found < slot { (middle + 1, high) } else { (low, middle) };
        }
        NONE
    }

    /// A number that is 64 bits wide in the file but small.
    const fn size(&self, at: usize) -> usize {
        assert!(self.u32(at + 4) == 0, "the file has a size beyond four gigabytes");
        self.u32(at) as usize
    }

    /// Offset and number of a section's records.
    const fn section(&self, id: SectionId, record: usize) -> (usize, usize) {
        let mut i = 0;
        while i < MAGIC.len() {
            assert!(i < self.bytes.len() && self.bytes[i] == MAGIC[i], "not an .lpk file");
            i += 1;
        }
        let mut at = size_of::<Header>();
        let end = at + self.u32(offset_of!(Header, section_count)) as usize * size_of::<SectionRecord>();
        while at < end {
            if self.u32(at + offset_of!(SectionRecord, id)) == id as u32 {
                let size = self.u32(at + offset_of!(SectionRecord, record_size)) as usize;
                assert!(size == record, "the file has records of another size");
                let offset = self.size(at + offset_of!(SectionRecord, offset));
                return (offset, self.size(at + offset_of!(SectionRecord, count)));
            }
            at += size_of::<SectionRecord>();
        }
        (0, 0)
    }

    /// A field of the info record.
    const fn info(&self, field: usize) -> u32 {
        let (start, count) = self.section(SectionId::Info, size_of::<Info>());
        assert!(count == 1, "the file has no info record");
        self.u32(start + field)
    }
}

/// `N` bytes for a session's arena, 64-byte aligned, in a `static`; lent out once.
#[repr(C, align(64))]
pub struct Memory<const N: usize> {
    bytes: UnsafeCell<[u8; N]>,
    taken: AtomicBool,
}

// SAFETY: the bytes are reached through `take` alone, which gives them to one caller.
unsafe impl<const N: usize> Sync for Memory<N> {}

impl<const N: usize> Memory<N> {
    /// Zeroed memory: it costs no flash.
    #[must_use]
    #[expect(clippy::new_without_default, reason = "for statics, where Default cannot be called")]
    pub const fn new() -> Self {
        Self { bytes: UnsafeCell::new([0; N]), taken: AtomicBool::new(false) }
    }

    /// The bytes.
    ///
    /// # Errors
    /// [`ErrorKind::Mismatch`] at the second call.
    #[expect(clippy::mut_from_ref, reason = "once in the life of the program")]
    pub fn take(&'static self) -> Result<&'static mut [u8]> {
        if self.taken.swap(true, Ordering::AcqRel) {
            return Err(Error::new(ErrorKind::Mismatch, "the static memory is in use already"));
        }
        // SAFETY: the flag above lets one caller through in the life of the program, and the memory is never freed.
        Ok(unsafe { &mut *self.bytes.get() })
    }
}
