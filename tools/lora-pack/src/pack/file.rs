//! A lowered model into a file, tensor after tensor.

use std::collections::BTreeMap;

use anyhow::{Context, Result};
use lora_models::spec::{Lowered, SlotSpec, Storage};
use lora_runtime::format::{
    EntryRecord, FileKind, NONE, OpRecord, OutputRecord, SlotKind, SlotRecord, StrRef, Task, TensorKind, TensorRecord,
};
use lora_runtime::kernels::KvType;
use lora_runtime::program::Op;
use lora_runtime::selftest::KEY as GOLDEN;
use lora_runtime::weights::WeightFormat;

use super::fill::{Values, fill};
use super::matrix::write_matrix;
use super::{PackOptions, PackReport, Progress, info, label_names, tokenizer};
use crate::calibrate::{Balance, Ready, balance};
use crate::golden;
use crate::keep;
use crate::merge::Merged;
use crate::quantize::Q4_TABLE;
use crate::source::{BaseModel, packed, sentence};
use crate::write::{LpkWriter, Strings, Tables};

/// A lowered model on its way into a file.
pub(super) struct Writing<'w, 'b> {
    pub base: &'w BaseModel,
    pub merged: &'w Merged<'b>,
    pub options: &'w PackOptions,
    pub lowered: &'w Lowered,
    /// Matrices that are quantized already.
    pub ready: &'w Ready,
    /// What `lowered` was rescaled by.
    pub balance: &'w Balance,
}

impl Writing<'_, '_> {
    pub fn write(
        &self,
        mut writer: LpkWriter,
        mut meta: BTreeMap<String, String>,
        progress: Progress<'_>,
    ) -> Result<PackReport> {
        let Self { base, merged, options, lowered, ready, balance } = *self;
        let config = merged.config();
        let tokenizer = tokenizer(base, merged, lowered.vocab, options)?;
        let sentence = match lowered.task {
            Task::FeatureExtraction | Task::Other => sentence::read(&base.dir)?,
            _ => None,
        };
        let codebook = Q4_TABLE;
        let mut strings = Strings::default();
        let total: u64 = lowered.tensors.iter().map(|t| (t.rows * t.cols * 4) as u64).sum();
        let mut done = 0;
        let mut records = Vec::with_capacity(lowered.tensors.len());
        let mut formats: BTreeMap<&'static str, (usize, u64, u64)> = BTreeMap::new();
        let mut carried = 0;
        for (index, spec) in lowered.tensors.iter().enumerate() {
            let blocks = match spec.storage {
                Storage::Panels(format) => keep::carried(spec, merged, format),
                Storage::Vector => None,
            };
            carried += usize::from(blocks.is_some());
            let about = || format!("tensor {}", spec.name);
            let (kind, format, (offset, len)) = match (spec.storage, ready.get(&index), blocks) {
                (Storage::Vector, ..) => {
                    let values = fill(spec, merged).with_context(about)?;
                    (TensorKind::Vector, WeightFormat::F32, writer.tensor(bytemuck::cast_slice(&values))?)
                }
                (Storage::Panels(format), _, Some(blocks)) => {
                    (TensorKind::Panels, format, writer.tensor(&blocks.pack())?)
                }
                (Storage::Panels(format), Some(c), _) => (TensorKind::Panels, format, writer.tensor(&c.bytes)?),
                (Storage::Panels(format), ..) => {
                    let values = Values::new(spec, merged).with_context(about)?;
                    let place = write_matrix(format, &values, &codebook, &mut writer, &|| base.tensors().release());
                    (TensorKind::Panels, format, place.with_context(about)?)
                }
            };
            if kind == TensorKind::Panels {
                let entry = formats.entry(format.name()).or_default();
                entry.0 += 1;
                entry.1 += (spec.rows * spec.cols) as u64;
                entry.2 += len;
            }
            records.push(TensorRecord {
                name: strings.add(&spec.name),
                kind: kind as u16,
                format: format as u16,
                rows: spec.rows as u32,
                cols: spec.cols as u32,
                slot: NONE,
                offset,
                len,
            });
            done += (spec.rows * spec.cols * 4) as u64;
            progress("packing", done, total);
            base.tensors().release();
        }
        let labels = label_names(config, options, lowered.labels as usize)?;
        let labels: Vec<StrRef> = labels.iter().map(|l| strings.add(l)).collect();
        let mut info = info(base, merged, lowered, &mut strings);
        if let Some(s) = sentence {
            (info.pooling, info.normalize) = (s.pooling, s.normalize.into());
        }
        meta.insert("format.blocks".into(), options.format.name().into());
        let shapes = merged.names().filter_map(|name| Some((name, merged.shape(name)?)));
        meta.insert(packed::TENSORS.into(), packed::encode(shapes).to_string());
        meta.insert(packed::CONFIG.into(), config.to_string());
        if let Some(generation) = &base.generation_config {
            meta.insert(packed::GENERATION.into(), generation.to_string());
        }
        let kv = KvType::from_u16(info.kv_type as u16).unwrap_or(KvType::F32);
        let positions = lowered.entries.iter().map(|e| e.max_positions).min().unwrap_or(0);
        meta.insert(GOLDEN.into(), golden::pending(kv, lowered.vocab, positions)?.to_string());
        let special = merged.tokenizer().special_tokens();
        if !special.is_empty() {
            meta.insert("tokenizer.special_tokens".into(), serde_json::to_string(&special)?);
        }
        let mut fingerprint = base.fingerprint();
        if !balance.is_empty() {
            meta.insert(balance::KEY.into(), balance.encode());
            fingerprint = balance::fingerprint(fingerprint);
        }
        let (entries, ops, outputs) = program(lowered, &mut strings);
        let slots = slots(lowered, &mut strings);
        // A vector's slot, or the first of a linear's.
        for (i, s) in slots.iter().enumerate().rev().filter(|(_, s)| s.kind != SlotKind::Embed as u32) {
            records[s.tensor as usize].slot = i as u32;
        }
        let tables = Tables {
            kind: FileKind::Model,
            fingerprint,
            codebook,
            info: Some(info),
            meta,
            strings,
            entries,
            ops,
            buffers: lowered.buffers.clone(),
            caches: lowered.caches.clone(),
            outputs,
            tensors: records,
            slots,
            patches: Vec::new(),
            indices: Vec::new(),
            members: Vec::new(),
            labels,
            tokenizer: tokenizer.map(|t| t.bytes).unwrap_or_default(),
        };
        let (file_bytes, hash) = writer.finish(tables)?;
        let (weights, packed) = formats.values().fold((0, 0), |(w, b), f| (w + f.1, b + f.2));
        Ok(PackReport {
            file_bytes,
            float_bytes: total,
            tensors: lowered.tensors.len(),
            bits_per_weight: packed as f64 * 8.0 / (weights as f64).max(1.0),
            hash,
            architecture: lowered.architecture,
            task: lowered.task,
            formats,
            carried,
            calibration: None,
            balanced: balance.sites(),
            distance: None,
            seconds: 0.0,
        })
    }
}

fn program(lowered: &Lowered, strings: &mut Strings) -> (Vec<EntryRecord>, Vec<OpRecord>, Vec<OutputRecord>) {
    let (mut entries, mut ops, mut outputs) = (Vec::new(), Vec::new(), Vec::new());
    for e in &lowered.entries {
        entries.push(EntryRecord {
            kind: e.kind as u32,
            op_start: ops.len() as u32,
            op_count: e.ops.len() as u32,
            output_start: outputs.len() as u32,
            output_count: e.outputs.len() as u32,
            max_positions: e.max_positions,
            head_op: (ops.len() + e.head.map_or(e.ops.len(), |h| h.op)) as u32,
            head_buffer: e.head.map_or(NONE, |h| h.hidden.buffer.into()),
        });
        ops.extend(e.ops.iter().map(Op::encode));
        outputs.extend(e.outputs.iter().map(|o| OutputRecord {
            name: strings.add(o.name),
            at: o.at,
            width: o.width,
            reserved: 0,
        }));
    }
    (entries, ops, outputs)
}

fn slots(lowered: &Lowered, strings: &mut Strings) -> Vec<SlotRecord> {
    let record = |s: &SlotSpec| SlotRecord {
        module: strings.add(&s.module),
        tensor: s.tensor,
        row_start: s.row_start as u32,
        rows: s.rows as u32,
        cols: s.cols as u32,
        kind: s.kind as u32,
        reserved: 0,
    };
    lowered.slots.iter().map(record).collect()
}
