//! The key/value cache of one sequence and one kv head: its layout and the kernel that stores a position.
//!
//! ```text
//! region = blocks of 16 positions, one after the other, each  [ keys | values ]
//! keys   = for d in 0..head_dim_k: the 16 positions' element d side by side      (i8: then 16 × f16 scales)
//! values = for each of the 16 positions: head_dim_v elements, padded to 16       (i8: then 16 × f16 scales)
//! ```
//! Keys and values are padded to 64 bytes each. With keys transposed, the scores of 16 positions are computed with one
//! position per lane and no reduction over lanes; a block is one run of memory, whatever the context's size.
//!
//! In `i8` a position's key (and value) is `scale · code`: `scale` = max|x| / 127, at most 65504, rounded to binary16;
//! `code` = x / scale, brought into −127…127, to the nearest even integer; all codes are 0 where the scale is 0. NaN
//! takes no part in the maximum and gets the code −127.

use super::Kernels;
use super::isa::{Isa, LANES, max_lanes};
use super::math::abs;
use super::reduce::{fold, has_rest, load_few};

#[cfg(test)]
mod tests;

/// Positions in a block.
pub const KV_BLOCK: usize = LANES;
/// Regions are best aligned to this; their size is a multiple of it.
pub const KV_ALIGN: usize = 64;

/// How keys and values are kept. The numbers are part of the file format.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u16)]
pub enum KvType {
    /// 32-bit floats.
    F32 = 0,
    /// 16-bit floats.
    F16 = 1,
    /// 8-bit codes with a scale per position.
    I8 = 2,
}

impl KvType {
    /// The type of that number in a file.
    #[must_use]
    pub const fn from_u16(number: u16) -> Option<Self> {
        match number {
            0 => Some(Self::F32),
            1 => Some(Self::F16),
            2 => Some(Self::I8),
            _ => None,
        }
    }

    /// The name on command lines.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::F16 => "f16",
            Self::I8 => "i8",
        }
    }

    /// The type of that name.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        [Self::F32, Self::F16, Self::I8].into_iter().find(|t| t.name() == name)
    }

    /// Bytes of an element.
    #[must_use]
    pub const fn element_bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 => 2,
            Self::I8 => 1,
        }
    }

    /// Bytes of a block's `elements`, with the scales if there are any.
    const fn part_bytes(self, elements: usize) -> usize {
        let scales = if matches!(self, Self::I8) { 2 * KV_BLOCK } else { 0 };
        (elements * self.element_bytes() + scales).next_multiple_of(KV_ALIGN)
    }
}

/// Where a block's parts lie.
#[derive(Clone, Copy, Debug)]
pub struct KvLayout {
    /// Bytes of a block.
    pub block: usize,
    /// Offset of the values in a block.
    pub values: usize,
    /// Elements of a row of values.
    pub row: usize,
}

impl KvLayout {
    /// The layout for heads of these widths.
    #[must_use]
    pub const fn new(kv: KvType, head_dim_k: usize, head_dim_v: usize) -> Self {
        let row = head_dim_v.next_multiple_of(LANES);
        let values = kv.part_bytes(head_dim_k * KV_BLOCK);
        Self { block: values + kv.part_bytes(row * KV_BLOCK), values, row }
    }
}

/// Bytes of the region that keeps `ctx` positions of one kv head.
#[must_use]
pub const fn kv_head_bytes(kv: KvType, head_dim_k: usize, head_dim_v: usize, ctx: usize) -> usize {
    ctx.div_ceil(KV_BLOCK) * KvLayout::new(kv, head_dim_k, head_dim_v).block
}

/// One position's key and value, and the block that takes them.
#[derive(Clone, Copy)]
pub struct StoreArgs {
    pub(super) kv: KvType,
    pub(super) block: *mut u8,
    pub(super) lane: usize,
    pub(super) k: *const f32,
    pub(super) head_dim_k: usize,
    pub(super) v: *const f32,
    pub(super) head_dim_v: usize,
}

/// A register's worth of `x` from element `i` on, zeros beyond `n`.
///
/// # Safety
/// `x` is valid for reading `n` floats.
#[inline(always)]
unsafe fn load_at<I: Isa>(isa: I, x: *const f32, i: usize, n: usize) -> I::F {
    if i >= n {
        return isa.splat(0.0);
    }
    // SAFETY: inside the n floats.
    unsafe { if !has_rest::<I>() || i + I::L <= n { isa.load(x.add(i)) } else { load_few(isa, x.add(i), n - i, 0.0) } }
}

/// The scale of a row in every lane, as it reads back from the binary16 stored at `to`.
///
/// # Safety
/// `x` is valid for reading `n` floats, `to` for writing two bytes.
#[cfg_attr(not(target_os = "none"), inline(always))]
unsafe fn store_scale<I: Isa>(isa: I, x: *const f32, n: usize, to: *mut u16) -> I::F {
    // SAFETY: passed on; the buffer holds a register.
    unsafe {
        let largest = fold(
            isa,
            x,
            n,
            0.0,
            0.0,
            #[inline(always)]
            |acc, x| isa.max(abs(isa, x), acc),
        );
        let largest = max_lanes(isa, &largest[..LANES / I::L]);
        let mut half = [0u16; LANES];
        isa.store_f16(half.as_mut_ptr(), isa.min(isa.splat(65_504.0), isa.splat(largest / 127.0)));
        to.write_unaligned(half[0]);
        isa.load_f16(half.as_ptr())
    }
}

/// The codes of a register of values.
#[inline(always)]
fn codes<I: Isa>(isa: I, x: I::F, scale: I::F) -> I::I {
    let x = isa.max(isa.div(x, scale), isa.splat(-127.0));
    let codes = isa.round_i(isa.min(x, isa.splat(127.0)));
    isa.and_i(codes, isa.lt(isa.splat(0.0), scale))
}

/// Stores one position.
///
/// # Safety
/// `block` is valid for writing a block of the layout, `k` and `v` for reading their widths; `lane < 16`.
#[inline(always)]
pub unsafe fn store<I: Isa>(isa: I, args: StoreArgs) {
    let StoreArgs { kv, block, lane, k, head_dim_k, v, head_dim_v } = args;
    let layout = KvLayout::new(kv, head_dim_k, head_dim_v);
    // SAFETY: element d of lane `lane` is inside the keys, and the lane's row inside the values; a register written
    // to a row stays inside it because rows are padded to 16.
    unsafe {
        let values = block.add(layout.values);
        match kv {
            KvType::F32 => {
                let (keys, row) = (block.cast::<f32>(), values.cast::<f32>().add(lane * layout.row));
                let mut d = 0;
                while d < head_dim_k {
                    keys.add(d * KV_BLOCK + lane).write_unaligned(*k.add(d));
                    d += 1;
                }
                let mut d = 0;
                while d < layout.row {
                    isa.store(row.add(d), load_at(isa, v, d, head_dim_v));
                    d += I::L;
                }
            }
            KvType::F16 => {
                let (keys, row) = (block.cast::<u16>(), values.cast::<u16>().add(lane * layout.row));
                let mut d = 0;
                while d < head_dim_k {
                    let mut half = [0u16; LANES];
                    isa.store_f16(half.as_mut_ptr(), load_at(isa, k, d, head_dim_k));
                    scatter(&half, keys.add(lane), d, head_dim_k, I::L);
                    d += I::L;
                }
                let mut d = 0;
                while d < layout.row {
                    isa.store_f16(row.add(d), load_at(isa, v, d, head_dim_v));
                    d += I::L;
                }
            }
            KvType::I8 => {
                let scale = store_scale(isa, k, head_dim_k, block.add(head_dim_k * KV_BLOCK).cast::<u16>().add(lane));
                let mut d = 0;
                while d < head_dim_k {
                    let mut code = [0i8; LANES];
                    isa.store_i8(code.as_mut_ptr(), codes(isa, load_at(isa, k, d, head_dim_k), scale));
                    scatter(&code, block.cast::<i8>().add(lane), d, head_dim_k, I::L);
                    d += I::L;
                }
                let (row, scales) = (values.add(lane * layout.row), values.add(layout.row * KV_BLOCK));
                let scale = store_scale(isa, v, head_dim_v, scales.cast::<u16>().add(lane));
                let mut d = 0;
                while d < layout.row {
                    isa.store_i8(row.cast::<i8>().add(d), codes(isa, load_at(isa, v, d, head_dim_v), scale));
                    d += I::L;
                }
            }
        }
    }
}

/// Writes `from[i]` to element `d + i` of a lane of keys, for `i < l` and `d + i < n`.
///
/// # Safety
/// `lane` is the address of element 0 of a lane of `n` elements.
#[inline(always)]
unsafe fn scatter<T: Copy>(from: &[T; LANES], lane: *mut T, d: usize, n: usize, l: usize) {
    let count = if n - d < l { n - d } else { l };
    let mut i = 0;
    while i < count {
        // SAFETY: d + i < n.
        unsafe { lane.add((d + i) * KV_BLOCK).write_unaligned(from[i]) };
        i += 1;
    }
}

impl Kernels {
    /// Stores key and value of position `pos` into the region of one kv head, which is sized for heads of the widths
    /// `k.len()` and `v.len()`.
    ///
    /// # Panics
    /// Where the region ends before the position.
    pub fn kv_store(&self, kv: KvType, region: &mut [u8], pos: usize, k: &[f32], v: &[f32]) {
        let block_bytes = KvLayout::new(kv, k.len(), v.len()).block;
        let block = &mut region[pos / KV_BLOCK * block_bytes..][..block_bytes];
        let args = StoreArgs {
            kv,
            block: block.as_mut_ptr(),
            lane: pos % KV_BLOCK,
            k: k.as_ptr(),
            head_dim_k: k.len(),
            v: v.as_ptr(),
            head_dim_v: v.len(),
        };
        // SAFETY: a whole block, both slices with their lengths; the table fits the CPU.
        unsafe { (self.kv_store)(args) }
    }
}
