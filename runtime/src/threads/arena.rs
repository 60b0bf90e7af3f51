//! Memory for a session, from the system.

#[cfg(target_os = "linux")]
use memmap2::{Advice, MmapMut};
use std::boxed::Box;

/// Up to this size an arena asks for huge pages. They cost a fraction of the page faults of small ones and of the
/// translations when a long past is read; but a page is taken whole when its first byte is touched, and the caches of
/// a long context are touched in many places long before they are full, so larger arenas do without.
#[cfg(target_os = "linux")]
const HUGE: usize = 32 << 20;
/// Smaller ones are left to the allocator.
#[cfg(target_os = "linux")]
const LEAST: usize = 2 << 20;

/// A zeroed, 64-byte aligned arena, for hosted programs.
pub struct ArenaBox {
    memory: Memory,
}

enum Memory {
    Heap(Box<[AlignedBlock]>),
    #[cfg(target_os = "linux")]
    Pages(MmapMut),
}

#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct AlignedBlock([u8; 64]);

// SAFETY: plain bytes without padding; every bit pattern is valid.
unsafe impl bytemuck::Zeroable for AlignedBlock {}
// SAFETY: as above.
unsafe impl bytemuck::Pod for AlignedBlock {}

impl ArenaBox {
    /// An arena of at least `bytes`; pages are taken from the system when first touched.
    #[must_use]
    pub fn new(bytes: usize) -> Self {
        #[cfg(target_os = "linux")]
        if (LEAST..=HUGE).contains(&bytes)
            && let Ok(map) = MmapMut::map_anon(bytes.next_multiple_of(64))
        {
            // Advice: a system without huge pages has its own reasons.
            let _ = map.advise(Advice::HugePage);
            return Self { memory: Memory::Pages(map) };
        }
        Self { memory: Memory::Heap(bytemuck::allocation::zeroed_slice_box(bytes.div_ceil(64))) }
    }
    /// The bytes.
    pub fn as_mut_slice(&mut self) -> &mut [u8] {
        match &mut self.memory {
            Memory::Heap(blocks) => bytemuck::cast_slice_mut(blocks),
            #[cfg(target_os = "linux")]
            Memory::Pages(map) => map,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arenas_of_all_sizes_are_zero_and_aligned() {
        for bytes in [0, 1, 64, 100, (2 << 20) - 1, 2 << 20, (5 << 20) + 1, (32 << 20) + 1] {
            let mut arena = ArenaBox::new(bytes);
            let memory = arena.as_mut_slice();
            assert!(
                memory.len() >= bytes && memory.len().is_multiple_of(64) && memory.as_ptr().addr().is_multiple_of(64)
            );
            assert!(memory.iter().step_by(1009).chain(memory.last()).all(|b| *b == 0), "{bytes}");
            memory.fill(1);
        }
    }
}
