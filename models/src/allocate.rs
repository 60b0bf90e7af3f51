//! Decides which values share memory: linear scan over the ops, first fit by offset.
//!
//! A value lives from the first op that touches it to the last one (outputs: to the end of their entry). Values of
//! different row kinds lie in different areas. The order of definition decides ties, so the plan is deterministic.

use lora_runtime::format::{BufferRecord, NO_BUFFER, RowKind};

use crate::spec::EntrySpec;

struct Live {
    buffer: usize,
    first: usize,
    last: usize,
}

/// Sets every buffer's offset; gives the bytes per token and per output row.
pub fn allocate(buffers: &mut [BufferRecord], entries: &[EntrySpec]) -> (u32, u32) {
    let mut lives: Vec<Live> = Vec::new();
    let mut slot = vec![usize::MAX; buffers.len()];
    let mut time = 0;
    for entry in entries {
        for op in &entry.ops {
            let r = op.encode();
            for at in [r.a, r.b, r.out] {
                touch(at.buffer, time, &mut lives, &mut slot);
            }
            time += 1;
        }
        for o in &entry.outputs {
            touch(o.at.buffer, time, &mut lives, &mut slot);
        }
        time += 1;
    }
    let mut sizes = [0_u32; 2];
    for kind in [RowKind::Token, RowKind::Output] {
        let mut placed: Vec<(usize, usize)> = Vec::new(); // (index in lives, buffer)
        for (i, live) in lives.iter().enumerate() {
            if buffers[live.buffer].rows != kind as u16 {
                continue;
            }
            let size = buffers[live.buffer].row_bytes;
            let mut taken: Vec<(u32, u32)> = placed
                .iter()
                .filter(|(j, _)| lives[*j].first <= live.last && live.first <= lives[*j].last)
                .map(|(_, b)| (buffers[*b].offset, buffers[*b].offset + buffers[*b].row_bytes))
                .collect();
            taken.sort_unstable();
            let mut offset = 0;
            for (start, end) in taken {
                if start >= offset + size {
                    break;
                }
                offset = offset.max(end);
            }
            buffers[live.buffer].offset = offset;
            sizes[kind as usize] = sizes[kind as usize].max(offset + size);
            placed.push((i, live.buffer));
        }
    }
    (sizes[0], sizes[1])
}

fn touch(buffer: u16, time: usize, lives: &mut Vec<Live>, slot: &mut [usize]) {
    if buffer == NO_BUFFER {
        return;
    }
    let buffer = usize::from(buffer);
    if slot[buffer] == usize::MAX {
        slot[buffer] = lives.len();
        lives.push(Live { buffer, first: time, last: time });
    }
    lives[slot[buffer]].last = time;
}
