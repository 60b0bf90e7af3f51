//! The head that an adapter brings: the ops behind the base's hidden states, lowered from the merged model, with
//! tensors of their own.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result, bail};
use lora_models::allocate::allocate;
use lora_models::spec::{EntrySpec, Lowered, Source, Storage};
use lora_models::{Policy, lower};
use lora_runtime::format::{
    BufferRecord, EntryRecord, NO_BUFFER, NONE, OpRecord, Operand, OutputRecord, Task, TensorKind,
};
use lora_runtime::program::Op;
use lora_runtime::weights::WeightFormat;

use super::tensors::Writer;
use crate::merge::Merged;
use crate::pack::{View, fill, pack_matrix};
use crate::quantize::Q4_TABLE;

/// A head, ready to be written.
pub struct Head {
    /// The whole merged model with the head.
    pub lowered: Lowered,
    pub entry: EntryRecord,
    pub ops: Vec<OpRecord>,
    /// The first is the base's hidden states.
    pub buffers: Vec<BufferRecord>,
    pub outputs: Vec<OutputRecord>,
    pub per_token: u32,
    pub per_output: u32,
}

/// Lowers the merged model for `task`, cuts its head off and writes the head's tensors; adds the tensors that it reads to
/// `consumed`.
pub fn build(merged: &Merged<'_>, task: Task, writer: &mut Writer, consumed: &mut BTreeSet<String>) -> Result<Head> {
    let lowered = lower(merged.config(), &View { merged, keep: false }, task, Policy::new(writer.float()))?;
    let found = lowered.entries.iter().find_map(|e| Some((e, e.head?)));
    let Some((entry, head)) = found else {
        bail!("this base takes no other head in unmerged mode; use `lora-pack merge`")
    };
    let hidden = head.hidden;
    let mut numbers = BTreeMap::from([(hidden.buffer, 0_u16)]);
    let mut buffers = vec![lowered.buffers[usize::from(hidden.buffer)]];
    let mut moved = |at: Operand| {
        if at.is_none() {
            return at;
        }
        let next = buffers.len() as u16;
        let number = *numbers.entry(at.buffer).or_insert_with(|| {
            buffers.push(lowered.buffers[usize::from(at.buffer)]);
            next
        });
        Operand::new(number, at.col)
    };
    let mut tensors = BTreeMap::new();
    let mut ops = Vec::new();
    for op in &entry.ops[head.op..] {
        let mut r = match *op {
            Op::Linear { a, out, residual, weight, bias, act, scale, width, .. } => {
                Op::Linear { a, out, residual, weight, bias, act, scale, width, slot: NONE }
            }
            Op::KvStore { .. } | Op::Attention { .. } => bail!("a head with attention has no unmerged form"),
            op => op,
        }
        .encode();
        (r.a, r.b, r.out) = (moved(r.a), moved(r.b), moved(r.out));
        for w in [&mut r.w0, &mut r.w1] {
            if uses_tensor(op, *w) {
                let next = tensors.len() as u32;
                *w = *tensors.entry(*w).or_insert(next);
            }
        }
        ops.push(r);
    }
    let outputs: Vec<_> = entry.outputs.iter().map(|o| (o.name, moved(o.at), o.width)).collect();
    // Written in the order in which the ops name them.
    let mut order: Vec<(u32, u32)> = tensors.into_iter().map(|(old, new)| (new, old)).collect();
    order.sort_unstable();
    let base = writer.records.len() as u32;
    for (_, old) in order {
        let spec = &lowered.tensors[old as usize];
        let values = fill(spec, merged).with_context(|| format!("tensor {}", spec.name))?;
        let (kind, format, bytes) = match spec.storage {
            Storage::Vector => (TensorKind::Vector, WeightFormat::F32, bytemuck::cast_slice(&values).to_vec()),
            Storage::Panels(f) => (TensorKind::Panels, f, pack_matrix(f, &values, spec.rows, spec.cols, &Q4_TABLE)?),
        };
        writer.tensor(&spec.name, kind, format, (spec.rows, spec.cols), &bytes)?;
        consumed.extend(spec.parts.iter().filter_map(|p| match &p.source {
            Source::Checkpoint { name, .. } | Source::Gather { name, .. } => Some(name.clone()),
            Source::Product(_) | Source::Values(_) | Source::Zeros => None,
        }));
    }
    for (r, op) in ops.iter_mut().zip(&entry.ops[head.op..]) {
        let old = op.encode();
        for (w, old) in [(&mut r.w0, old.w0), (&mut r.w1, old.w1)] {
            if uses_tensor(op, old) {
                *w += base;
            }
        }
    }
    let (per_token, per_output) = place(&mut buffers, &ops, &outputs)?;
    // The hidden states are the base's memory; in the head's they stand for the place behind its own.
    buffers[0].offset = per_token;
    let entry = EntryRecord {
        kind: entry.kind as u32,
        op_start: 0,
        op_count: ops.len() as u32,
        output_start: 0,
        output_count: outputs.len() as u32,
        max_positions: entry.max_positions,
        head_op: 0,
        head_buffer: NONE,
    };
    let outputs = outputs
        .into_iter()
        .map(|(name, at, width)| OutputRecord { name: writer.strings.add(name), at, width, reserved: 0 })
        .collect();
    Ok(Head { lowered, entry, ops, buffers, outputs, per_token, per_output })
}

/// Whether a tensor number of an op is one.
fn uses_tensor(op: &Op, w: u32) -> bool {
    w != NONE && matches!(op, Op::Linear { .. } | Op::Norm { .. } | Op::Embed { .. } | Op::RotaryTable { .. })
}

/// Lets the head's values share memory; the hidden states take none.
fn place(
    buffers: &mut [BufferRecord],
    ops: &[OpRecord],
    outputs: &[(&'static str, Operand, u32)],
) -> Result<(u32, u32)> {
    let own = |at: Operand| if at.buffer == 0 { Operand::new(NO_BUFFER, 0) } else { at };
    let ops = ops.iter().map(|r| {
        // Only which values an op touches matters here.
        let (a, b, out) = (own(r.a), own(r.b), own(r.out));
        Op::Add { a, b, out, width: 0, scale: 0.0 }
    });
    let entry = EntrySpec {
        kind: lora_runtime::format::EntryKind::Decode,
        ops: ops.collect(),
        outputs: outputs
            .iter()
            .map(|(name, at, width)| lora_models::spec::OutputSpec { name, at: own(*at), width: *width })
            .collect(),
        max_positions: 0,
        head: None,
    };
    Ok(allocate(buffers, &[entry]))
}
