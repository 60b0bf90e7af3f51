//! The one verifier of adapters: against the base's slots, and the head by the verifier of programs.

use crate::error::{Error, ErrorKind, Result};
use crate::format::record::{EntryRecord, NONE, PatchRecord, SlotKind, SlotRecord, Task};
use crate::format::view::{File, Tensor};
use crate::model::Model;
use crate::program::op::{EmbedSource, Op};
use crate::program::plan::AdapterNeeds;
use crate::program::verify;
use crate::weights::{PANEL_ROWS, WeightFormat};

/// Most ranks of one update, a bound on memory and on the stack.
const MAX_RANK: usize = 1 << 20;

pub(super) fn verify(file: &File<'_>, base: &Model<'_>) -> Result<AdapterNeeds> {
    let info = file.info;
    if Task::from_u32(info.task).is_none() {
        return Err(Error::new(ErrorKind::Invalid, "info.task").values(info.task.into(), 0));
    }
    if info.invocation as usize > file.indices.len() {
        return Err(Error::new(ErrorKind::OutOfBounds, "info.invocation")
            .values(info.invocation.into(), file.indices.len() as u64));
    }
    if info.token_types != base.file.info.token_types || info.hidden != base.file.info.hidden {
        return Err(
            Error::new(ErrorKind::Mismatch, "info: sizes").values(info.hidden.into(), base.file.info.hidden.into())
        );
    }
    verify_head(file, base)?;
    for (i, p) in file.patches.iter().enumerate() {
        let named = |e: Error| if e.index == u64::MAX { e.index(i as u64) } else { e };
        if i > 0 && file.patches[i - 1].slot >= p.slot {
            return Err(Error::new(ErrorKind::Invalid, "patches: slots not in order").index(i as u64));
        }
        let slot = base.file.slots.get(p.slot as usize).ok_or_else(|| {
            named(
                Error::new(ErrorKind::OutOfBounds, "patches.slot").values(p.slot.into(), base.file.slots.len() as u64),
            )
        })?;
        if file.str(p.module) != base.file.str(slot.module) {
            return Err(named(Error::new(
                ErrorKind::Mismatch,
                "patches.module: the base has another module at this slot",
            )));
        }
        patch(file, p, slot).map_err(named)?;
    }
    verify_vocabulary(file, base)?;
    needs(file, base)
}

/// A head: one entry of the base's kind, whose first buffer is the base's hidden states.
fn verify_head(file: &File<'_>, base: &Model<'_>) -> Result<()> {
    let fail = |what| Err(Error::new(ErrorKind::Mismatch, what));
    let [] = file.entries else {
        let [EntryRecord { kind, .. }] = file.entries else { return fail("entries: more than one head") };
        let Some(entry) = base.file.entries.iter().find(|e| e.kind == *kind) else {
            return fail("entries: the base has no such entry");
        };
        let Some(hidden) = base.file.buffers.get(entry.head_buffer as usize) else {
            return fail("entries: the base takes no other head");
        };
        if !file.caches.is_empty() {
            return fail("caches: a head has none");
        }
        return verify::verify_head(file, hidden.width);
    };
    if file.info.task != base.file.info.task {
        return Err(Error::new(ErrorKind::Mismatch, "info.task: the adapter needs the head of another task")
            .values(file.info.task.into(), base.file.info.task.into()));
    }
    if file.info.labels != base.file.info.labels {
        return Err(Error::new(ErrorKind::Mismatch, "info.labels")
            .values(file.info.labels.into(), base.file.info.labels.into()));
    }
    Ok(())
}

/// Token ids beyond the base's need a table that holds them, and the base's head cannot give them.
fn verify_vocabulary(file: &File<'_>, base: &Model<'_>) -> Result<()> {
    let (now, before) = (file.info.vocab, base.file.info.vocab);
    if now == before {
        return Ok(());
    }
    let mut tables = 0;
    for r in base.file.ops {
        let Ok(Op::Embed { source: EmbedSource::Token, slot, .. }) = Op::parse(r) else { continue };
        let patch = file.patches.iter().find(|p| p.slot == slot && slot != NONE);
        let rows =
            patch.filter(|p| p.index_count == 0).and_then(|p| file.tensors.get(p.values as usize)).map(|t| t.rows);
        if rows.is_none_or(|rows| rows < now) {
            return Err(Error::new(ErrorKind::Mismatch, "info.vocab: a token table has fewer rows")
                .values(rows.unwrap_or(before).into(), now.into()));
        }
        tables += 1;
    }
    if tables == 0 {
        return Err(Error::new(ErrorKind::Mismatch, "info.vocab").values(now.into(), before.into()));
    }
    Ok(())
}

fn patch(file: &File<'_>, p: &PatchRecord, slot: &SlotRecord) -> Result<()> {
    let invalid = |what, found: u32, expected: u32| {
        Err(Error::new(ErrorKind::Invalid, what).values(found.into(), expected.into()))
    };
    if p.kind != slot.kind || p.reserved != [0; 2] {
        return invalid("patches.kind", p.kind, slot.kind);
    }
    if (p.rows, p.cols) != (slot.rows, slot.cols) {
        return Err(Error::new(ErrorKind::Mismatch, "patches: shape").values(p.rows.into(), slot.rows.into()));
    }
    let end = p.index_start.checked_add(p.index_count).filter(|end| *end as usize <= file.indices.len());
    let Some(end) = end else { return invalid("patches.index_count", p.index_count, file.indices.len() as u32) };
    let indices = &file.indices[p.index_start as usize..end as usize];
    if indices.windows(2).any(|w| w[0] >= w[1]) || indices.last().is_some_and(|i| *i >= p.rows) {
        return invalid("patches: indices", p.index_count, p.rows);
    }
    let (rows, cols) = (p.rows as usize, p.cols as usize);
    let linear = p.kind == SlotKind::Linear as u32;
    let outputs = if linear { rows } else { cols };
    for v in [p.gain, p.bias].into_iter().filter(|v| *v != NONE) {
        match file.tensor(v) {
            Some(Tensor::Vector { rows: 1, cols, .. }) if cols == outputs => {}
            _ => return invalid("patches: gain or bias", v, outputs as u32),
        }
    }
    let b = match (p.b != NONE).then(|| file.tensor(p.b)) {
        None => None,
        Some(Some(Tensor::Thin(b))) if b.rows == outputs && b.cols <= MAX_RANK => Some(b),
        Some(_) => return invalid("patches.b", p.b, outputs as u32),
    };
    if p.kind == SlotKind::Vector as u32 {
        let alone = p.a == NONE && b.is_none() && p.gain == NONE && p.bias == NONE && indices.is_empty();
        return match file.tensor(p.values) {
            Some(Tensor::Vector { rows: r, cols: c, .. }) if alone && (r, c) == (rows, cols) => Ok(()),
            _ => invalid("patches.values", p.values, p.cols),
        };
    }
    if linear {
        if p.values != NONE || (p.a == NONE && (b.is_some() || !indices.is_empty())) {
            return invalid("patches.values", p.values, NONE);
        }
        if p.a == NONE {
            return Ok(());
        }
        let (ranks, inputs) = match file.tensor(p.a) {
            Some(Tensor::Thin(a)) => (a.rows, a.cols),
            Some(Tensor::Panels { format: WeightFormat::Q8, rows, cols, .. }) => (rows, cols),
            _ => return invalid("patches.a", p.a, 0),
        };
        let rank = match (b, indices.len()) {
            (Some(b), 0) => b.cols,
            (Some(_), n) => return invalid("patches: indices beside B", n as u32, 0),
            (None, 0) => rows,
            (None, n) => n,
        };
        let fits =
            inputs == cols && ranks <= MAX_RANK && (p.a_row as usize).checked_add(rank).is_some_and(|end| end <= ranks);
        return if fits { Ok(()) } else { invalid("patches.a", p.a, p.cols) };
    }
    if p.bias != NONE || p.a_row != 0 || (p.a == NONE) != b.is_none() {
        return invalid("patches: table", p.a, p.b);
    }
    if let Some(b) = b {
        match file.tensor(p.a) {
            Some(Tensor::Thin(a)) if a.rows == rows && a.cols == b.cols => {}
            _ => return invalid("patches.a", p.a, p.rows),
        }
    }
    match (p.values != NONE).then(|| file.tensor(p.values)) {
        None if indices.is_empty() => Ok(()),
        Some(Some(Tensor::Panels { rows: r, cols: c, .. }))
            if c == cols && if indices.is_empty() { r >= rows } else { r == indices.len() } =>
        {
            Ok(())
        }
        _ => invalid("patches.values", p.values, p.rows),
    }
}

/// Low-rank values that an op holds at most; the head's memory.
fn needs(file: &File<'_>, base: &Model<'_>) -> Result<AdapterNeeds> {
    let mut most = 0_usize;
    let mut reach = |weight: u32, slot: u32| {
        let (mut sum, mut last) = (0_usize, NONE);
        for slot in verify::linear_slots(&base.file, slot, weight) {
            let Ok(i) = file.patches.binary_search_by_key(&slot, |p| p.slot) else { continue };
            let p = &file.patches[i];
            if p.a != NONE && p.a != last {
                sum += (file.tensors[p.a as usize].rows as usize).next_multiple_of(PANEL_ROWS);
                last = p.a;
            }
        }
        most = most.max(sum);
    };
    for r in base.file.ops {
        match Op::parse(r) {
            Ok(Op::Linear { weight, slot, .. }) => reach(weight, slot),
            Ok(Op::ExpertLinear { weight, experts, .. }) => {
                (weight..weight + experts).for_each(|w| reach(w, base.file.tensors[w as usize].slot));
            }
            _ => {}
        }
    }
    if most > 8 * MAX_RANK {
        return Err(Error::new(ErrorKind::Invalid, "patches: ranks").values(most as u64, 8 * MAX_RANK as u64));
    }
    let head = !file.entries.is_empty();
    Ok(AdapterNeeds {
        used: true,
        rank: most as u32,
        per_token: if head { file.info.per_token } else { 0 },
        per_output: if head { file.info.per_output } else { 0 },
    })
}
