//! An adapter file for unmerged mode: what one PEFT adapter does at every slot of the base's program, and the head that
//! it brings where its task is another than the base's.
//!
//! The base is lowered twice, with and without the adapter: slot by slot the two say which names belong together, whatever
//! the weights' formats are in the pack that the adapter will meet.

mod head;
mod tensors;
mod update;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use anyhow::{Context, Result, bail};
use lora_models::spec::{Lowered, SlotSpec, Source};
use lora_models::{Policy, lower};
use lora_runtime::format::{FileKind, NONE, PatchRecord, SlotKind, StrRef};
use lora_runtime::weights::WeightFormat;
use serde_json::json;

use crate::compile::tokenizer::compile_tokenizer;
use crate::merge::{AdapterSpec, MergeOptions, Merged, Note, Purpose};
use crate::pack::{PackOptions, View, info, label_names, task_of, tokenizer};
use crate::quantize::Q4_TABLE;
use crate::source::BaseModel;
use crate::write::{LpkWriter, Tables};

use tensors::Writer;
use update::{Updates, changed_sources};

/// What was packed.
#[derive(Debug)]
pub struct AdapterReport {
    /// Bytes of the file.
    pub file_bytes: u64,
    /// Content hash.
    pub hash: [u8; 32],
    /// Task with the adapter.
    pub task: &'static str,
    /// Slots that it changes, of all that the base has.
    pub slots: (usize, usize),
    /// Adapter tensors that went in, of all that it holds.
    pub applied: (usize, usize),
    /// Whether it brings a head.
    pub head: bool,
    /// What a user should know.
    pub notes: Vec<Note>,
}

/// Packs the adapter `spec` for `base` into `out`.
///
/// # Errors
/// What does not fit or has no unmerged form, by name; no file is left.
pub fn pack_adapter(
    base: &BaseModel,
    spec: &AdapterSpec,
    merge: &MergeOptions,
    options: &PackOptions,
    out: &Path,
) -> Result<AdapterReport> {
    let plain = Merged::new(base, &[], &MergeOptions::default())?;
    let unmerged = MergeOptions { purpose: Purpose::Adapter, ..merge.clone() };
    let merged = Merged::new(base, std::slice::from_ref(spec), &unmerged)?;
    let base_options = PackOptions { task: None, labels: None, ..options.clone() };
    let base_task = match base.packed() {
        Some(packed) if packed.is_merged() => {
            bail!("{}: adapters are merged into this pack; give one of the base alone", base.dir.display())
        }
        Some(packed) => packed.task(),
        None => task_of(&plain, &base_options)?,
    };
    let task = options.task.or(merged.task().map(crate::pack::task_number)).unwrap_or(base_task);
    let policy = Policy::new(WeightFormat::F32);
    let before =
        lower(plain.config(), &View { merged: &plain, keep: false }, base_task, policy.clone()).context("the base")?;
    let after = lower(merged.config(), &View { merged: &merged, keep: false }, base_task, policy)
        .context("the base with the adapter")?;
    let comparable = |a: &SlotSpec, b: &SlotSpec| a.kind == b.kind && a.cols == b.cols;
    if before.slots.len() != after.slots.len() || !before.slots.iter().zip(&after.slots).all(|(a, b)| comparable(a, b))
    {
        bail!("the adapter changes the base's program, which only merging can do");
    }
    base_is_sound(base, &plain, &before, options)?;
    let mut writer = Writer::new(LpkWriter::create(out)?, options.format);
    let mut updates = Updates::new(&plain, &merged, &before, &after);
    let head_slots = before.entries.iter().find_map(|e| e.head).map_or(usize::MAX, |h| h.slots);
    let own_head = task != base_task || before.vocab != after.vocab || updates.replaces_head(head_slots)?;
    let end = if own_head { head_slots.min(before.slots.len()) } else { before.slots.len() };
    let patches = patches(&mut updates, &mut writer, end)?;
    let mut consumed = updates.consumed;

    let settled;
    let head = if own_head {
        settled =
            Merged::new(base, std::slice::from_ref(spec), &MergeOptions { purpose: Purpose::Merge, ..merge.clone() })
                .context("the adapter brings a head, which is merged")?;
        Some(head::build(&settled, task, &mut writer, &mut consumed)?)
    } else {
        None
    };
    every_change_has_a_place(&merged, &after, &consumed)?;

    let lowered = head.as_ref().map_or(&after, |h| &h.lowered);
    let labels = label_names(merged.config(), options, lowered.labels as usize)?;
    let labels: Vec<StrRef> = labels.iter().map(|l| writer.strings.add(l)).collect();
    let mut indices = std::mem::take(&mut writer.indices);
    let invocation = merged.invocation_tokens().unwrap_or(&[]);
    indices.extend(invocation);
    let mut info = info(base, &merged, lowered, &mut writer.strings);
    (info.per_token, info.per_output) = head.as_ref().map_or((0, 0), |h| (h.per_token, h.per_output));
    info.invocation = invocation.len() as u32;
    let own_tokenizer = merged
        .tokenizer()
        .tokenizer_json
        .as_ref()
        .filter(|json| plain.tokenizer().tokenizer_json.as_ref() != Some(json) || lowered.vocab != before.vocab);
    let tokenizer = own_tokenizer
        .map(|json| compile_tokenizer(json, lowered.vocab).context("tokenizer.json"))
        .transpose()?
        .filter(|own| base.packed().is_none_or(|packed| packed.tokenizer() != own.bytes));
    let summary = merged.adapters().remove(0);
    let changed = patches.len();
    let tables = Tables {
        kind: FileKind::Adapter,
        fingerprint: base.fingerprint(),
        codebook: Q4_TABLE,
        info: Some(info),
        meta: meta(base, &merged, options),
        entries: head.as_ref().map(|h| h.entry).into_iter().collect(),
        ops: head.as_ref().map(|h| h.ops.clone()).unwrap_or_default(),
        buffers: head.as_ref().map(|h| h.buffers.clone()).unwrap_or_default(),
        outputs: head.as_ref().map(|h| h.outputs.clone()).unwrap_or_default(),
        caches: Vec::new(),
        tensors: writer.records,
        slots: Vec::new(),
        patches,
        indices,
        members: Vec::new(),
        labels,
        tokenizer: tokenizer.map(|t| t.bytes).unwrap_or_default(),
        strings: writer.strings,
    };
    let (file_bytes, hash) = writer.file.finish(tables)?;
    Ok(AdapterReport {
        file_bytes,
        hash,
        task: task.name(),
        slots: (changed, before.slots.len()),
        applied: (summary.applied, summary.tensors),
        head: own_head,
        notes: merged.notes().to_vec(),
    })
}

/// Refuses a base that could not be packed itself, so that a broken download is found here and not on the device: its
/// tokenizer has to compile, its numbers have to be finite.
fn base_is_sound(base: &BaseModel, plain: &Merged<'_>, lowered: &Lowered, options: &PackOptions) -> Result<()> {
    if base.packed().is_some() {
        // Packing it looked at all of this.
        return Ok(());
    }
    tokenizer(base, plain, lowered.vocab, options)?;
    let names: BTreeSet<&str> = lowered
        .tensors
        .iter()
        .flat_map(|t| &t.parts)
        .filter_map(|part| match &part.source {
            Source::Checkpoint { name, .. } | Source::Gather { name, .. } => Some(name.as_str()),
            _ => None,
        })
        .collect();
    for name in names {
        plain.tensor_f32(name)?;
        base.tensors().release();
    }
    Ok(())
}

fn meta(base: &BaseModel, merged: &Merged<'_>, options: &PackOptions) -> BTreeMap<String, String> {
    let mut meta = BTreeMap::new();
    meta.insert("base.name".into(), base.name());
    meta.extend(base.quantization().map(|text| ("base.weights".into(), text)));
    meta.insert("pack.tool".into(), concat!("lora-pack ", env!("CARGO_PKG_VERSION")).into());
    meta.insert("format.blocks".into(), options.format.name().into());
    for a in merged.adapters() {
        let about = json!({"name": a.label, "weight": a.weight, "type": a.method, "r": a.r, "alpha": a.alpha,
                           "tensors": a.tensors, "applied": a.applied});
        meta.insert("adapter.0".into(), about.to_string());
        meta.insert("adapter.name".into(), a.label);
    }
    meta
}

/// The patches of the first `end` slots.
fn patches(updates: &mut Updates<'_, '_>, writer: &mut Writer, end: usize) -> Result<Vec<PatchRecord>> {
    let mut patches = Vec::new();
    let mut at = 0;
    while at < end {
        let slot = &updates.before.slots[at];
        let mut next = at + 1;
        if slot.kind == SlotKind::Linear {
            // Slots that read one input share a stack of factors A.
            while next < end && same_input(&updates.before.slots[next], slot) {
                next += 1;
            }
        }
        let found: Vec<_> = (at..next).map(|i| updates.of(i)).collect::<Result<_>>()?;
        let stacked = if slot.kind == SlotKind::Linear { &found[..] } else { &[] };
        let stack = writer.stack(stacked, slot.cols, &slot.module)?;
        for (i, update) in (at..next).zip(found) {
            let Some(update) = update else { continue };
            let s = &updates.before.slots[i];
            let mut record = PatchRecord {
                module: writer.strings.add(&s.module),
                slot: i as u32,
                kind: s.kind as u32,
                rows: s.rows as u32,
                cols: s.cols as u32,
                a: NONE,
                a_row: 0,
                b: NONE,
                gain: NONE,
                bias: NONE,
                values: NONE,
                index_start: 0,
                index_count: 0,
                reserved: [0; 2],
            };
            writer.write(&update, s, &stack, &mut record).with_context(|| s.module.clone())?;
            patches.push(record);
        }
        at = next;
    }
    Ok(patches)
}

fn same_input(a: &SlotSpec, b: &SlotSpec) -> bool {
    a.kind == SlotKind::Linear && a.input == b.input
}

/// Whatever the base's program reads and the adapter changes went into a patch or the head.
fn every_change_has_a_place(merged: &Merged<'_>, after: &Lowered, consumed: &BTreeSet<String>) -> Result<()> {
    let read: BTreeSet<&str> = after
        .tensors
        .iter()
        .flat_map(|t| &t.parts)
        .filter_map(|p| match &p.source {
            Source::Checkpoint { name, .. } | Source::Gather { name, .. } => Some(name.as_str()),
            Source::Product(_) | Source::Values(_) | Source::Zeros => None,
        })
        .collect();
    for change in changed_sources(merged) {
        if read.contains(change.as_str()) && !consumed.contains(&change) {
            bail!("{change}: the adapter changes it, and it has no place in unmerged mode; use `lora-pack merge`");
        }
    }
    Ok(())
}
