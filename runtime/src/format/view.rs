//! The checked view of a file: [`File::new_checked`] verifies the container (header, sections, strings,
//! tensors), after which no accessor fails. Programs are verified by [`crate::program::verify`].

use bytemuck::{Pod, Zeroable};

use super::record::{
    BufferRecord, CacheRecord, EntryRecord, FileKind, Header, Info, MAGIC, MetaRecord, NONE, OpRecord, OutputRecord,
    PatchRecord, SECTION_ALIGN, SectionId, SectionRecord, SlotKind, SlotRecord, StrRef, TensorKind, TensorRecord,
    VERSION, WEIGHTS_ALIGN,
};
use crate::error::{Error, ErrorKind, Result};
use crate::kernels::f16_to_f32;
use crate::weights::{LINE, PANEL_ROWS, WeightFormat};

/// Feature bits that this runtime knows.
pub const KNOWN_FEATURES: u64 = 0;
/// Most sections a file may have.
const MAX_SECTIONS: u32 = 64;

/// A verified file, borrowing its bytes. Cheap to copy.
#[derive(Clone, Copy)]
pub struct File<'a> {
    /// The whole file.
    pub bytes: &'a [u8],
    /// Header.
    pub header: &'a Header,
    /// Facts about the model.
    pub info: &'a Info,
    /// Metadata, sorted by key.
    pub meta: &'a [MetaRecord],
    /// Entry points.
    pub entries: &'a [EntryRecord],
    /// Ops of all entries.
    pub ops: &'a [OpRecord],
    /// Activation buffers.
    pub buffers: &'a [BufferRecord],
    /// KV caches.
    pub caches: &'a [CacheRecord],
    /// Outputs of all entries.
    pub outputs: &'a [OutputRecord],
    /// Tensors.
    pub tensors: &'a [TensorRecord],
    /// Slots, in program order.
    pub slots: &'a [SlotRecord],
    /// Patches of an adapter, sorted by slot.
    pub patches: &'a [PatchRecord],
    /// Row numbers that patches refer to.
    pub indices: &'a [u32],
    /// Label names.
    pub labels: &'a [StrRef],
    /// Compiled tokenizer, empty if none.
    pub tokenizer: &'a [u8],
    /// Weight data.
    pub weights: &'a [u8],
    strings: &'a str,
}

/// A tensor of a verified file.
#[derive(Clone, Copy)]
pub enum Tensor<'a> {
    /// Row panels.
    Panels {
        /// Format of the panels.
        format: WeightFormat,
        /// Outputs.
        rows: usize,
        /// Inputs.
        cols: usize,
        /// Panel bytes, 64-byte aligned.
        data: &'a [u8],
    },
    /// Plain f32, row-major.
    Vector {
        /// Rows.
        rows: usize,
        /// Columns.
        cols: usize,
        /// `rows · cols` values.
        data: &'a [f32],
    },
    /// Row panels without padded inputs.
    Thin(Thin<'a>),
}

/// Row panels without padded inputs: the narrow matrices of adapters.
#[derive(Clone, Copy)]
pub struct Thin<'a> {
    /// `F32` or `F16`.
    pub format: WeightFormat,
    /// Outputs.
    pub rows: usize,
    /// Inputs.
    pub cols: usize,
    /// Panels, 64-byte aligned.
    pub data: &'a [u8],
}

impl<'a> Thin<'a> {
    /// The value of a row and an input.
    #[must_use]
    pub fn value(&self, row: usize, col: usize) -> f32 {
        let bytes = self.format.thin_panel_bytes(1) / PANEL_ROWS;
        let at = ((row / PANEL_ROWS * self.cols + col) * PANEL_ROWS + row % PANEL_ROWS) * bytes;
        match self.data[at..at + bytes] {
            [a, b] => f16_to_f32(u16::from_le_bytes([a, b])),
            [a, b, c, d] => f32::from_le_bytes([a, b, c, d]),
            _ => 0.0,
        }
    }

    /// The inputs `cols` of panel `panel`, in a run.
    #[must_use]
    pub fn panel(&self, panel: usize, cols: core::ops::Range<usize>) -> &'a [u8] {
        let bytes = self.format.thin_panel_bytes(1);
        let first = panel * self.cols;
        &self.data[(first + cols.start) * bytes..(first + cols.end) * bytes]
    }

    /// The panels `range`, one after the other.
    #[must_use]
    pub fn panels(&self, range: core::ops::Range<usize>) -> &'a [u8] {
        let bytes = self.format.thin_panel_bytes(self.cols);
        &self.data[range.start * bytes..range.end * bytes]
    }
}

fn err(kind: ErrorKind, what: &'static str) -> Error {
    Error::new(kind, what)
}

impl<'a> File<'a> {
    /// Verifies the container. The cost does not depend on the size of the weights.
    ///
    /// # Errors
    /// A typed error naming the section or record: not an `.lpk` file, newer than this runtime,
    /// truncated, misaligned in memory, out of bounds, invalid.
    pub fn new_checked(bytes: &'a [u8]) -> Result<Self> {
        let header = check_header(bytes)?;
        let sections = Sections::new_checked(bytes, header)?;
        let strings = core::str::from_utf8(sections.blob(SectionId::Strings))
            .map_err(|e| err(ErrorKind::Invalid, "strings: not UTF-8").values(e.valid_up_to() as u64, 0))?;
        let info: &[Info] = sections.records(SectionId::Info)?;
        let [info] = info else {
            return Err(err(ErrorKind::Invalid, "info: not one record").values(info.len() as u64, 1));
        };
        let file = Self {
            bytes,
            header,
            info,
            meta: sections.records(SectionId::Meta)?,
            entries: sections.records(SectionId::Entries)?,
            ops: sections.records(SectionId::Ops)?,
            buffers: sections.records(SectionId::Buffers)?,
            caches: sections.records(SectionId::Caches)?,
            outputs: sections.records(SectionId::Outputs)?,
            tensors: sections.records(SectionId::Tensors)?,
            slots: sections.records(SectionId::Slots)?,
            patches: sections.records(SectionId::Patches)?,
            indices: sections.records(SectionId::Indices)?,
            labels: sections.records(SectionId::Labels)?,
            tokenizer: sections.blob(SectionId::Tokenizer),
            weights: sections.blob(SectionId::Weights),
            strings,
        };
        file.verify_strings()?;
        file.verify_tensors()?;
        Ok(file)
    }

    /// The text of a string reference of this file.
    #[must_use]
    pub fn str(&self, r: StrRef) -> &'a str {
        self.strings.get(r.offset as usize..r.offset as usize + r.len as usize).unwrap_or("")
    }

    /// A metadata value.
    #[must_use]
    pub fn meta_value(&self, key: &str) -> Option<&'a str> {
        let i = self.meta.binary_search_by(|m| self.str(m.key).cmp(key)).ok()?;
        Some(self.str(self.meta[i].value))
    }

    /// The name of label `i`.
    #[must_use]
    pub fn label(&self, i: usize) -> Option<&'a str> {
        self.labels.get(i).map(|r| self.str(*r))
    }

    /// Tensor `i`, which the verified program refers to.
    #[must_use]
    pub fn tensor(&self, i: u32) -> Option<Tensor<'a>> {
        let t = self.tensors.get(i as usize)?;
        let data = &self.weights[t.offset as usize..(t.offset + t.len) as usize];
        let (rows, cols) = (t.rows as usize, t.cols as usize);
        let format = WeightFormat::from_u16(t.format)?;
        Some(match t.kind {
            k if k == TensorKind::Vector as u16 => {
                Tensor::Vector { rows, cols, data: bytemuck::try_cast_slice(data).ok()? }
            }
            k if k == TensorKind::Thin as u16 => Tensor::Thin(Thin { format, rows, cols, data }),
            _ => Tensor::Panels { format, rows, cols, data },
        })
    }

    fn verify_str(&self, r: StrRef, what: &'static str, index: usize) -> Result<()> {
        let end = r.offset as usize + r.len as usize;
        if self.strings.get(r.offset as usize..end).is_none() {
            return Err(err(ErrorKind::OutOfBounds, what)
                .index(index as u64)
                .values(end as u64, self.strings.len() as u64));
        }
        Ok(())
    }

    fn verify_strings(&self) -> Result<()> {
        for (i, m) in self.meta.iter().enumerate() {
            self.verify_str(m.key, "meta.key", i)?;
            self.verify_str(m.value, "meta.value", i)?;
            if i > 0 && self.str(self.meta[i - 1].key) >= self.str(m.key) {
                return Err(err(ErrorKind::Invalid, "meta: keys not in order").index(i as u64));
            }
        }
        for (i, r) in self.labels.iter().enumerate() {
            self.verify_str(*r, "labels", i)?;
        }
        for (i, o) in self.outputs.iter().enumerate() {
            self.verify_str(o.name, "outputs.name", i)?;
        }
        for (i, t) in self.tensors.iter().enumerate() {
            self.verify_str(t.name, "tensors.name", i)?;
        }
        for (i, s) in self.slots.iter().enumerate() {
            self.verify_str(s.module, "slots.module", i)?;
            let t = self.tensors.get(s.tensor as usize);
            let fits = t.is_some_and(|t| {
                let vector = s.kind == SlotKind::Vector as u32;
                let kind = if vector { TensorKind::Vector } else { TensorKind::Panels };
                let whole = s.kind == SlotKind::Linear as u32 || (s.row_start == 0 && s.rows == t.rows);
                s.row_start.checked_add(s.rows).is_some_and(|end| end <= t.rows)
                    && s.cols == t.cols
                    && s.rows > 0
                    && s.kind <= SlotKind::Vector as u32
                    && t.kind == kind as u16
                    && whole
                    && (!vector || t.slot as usize == i)
            });
            if !fits || s.reserved != 0 {
                return Err(err(ErrorKind::OutOfBounds, "slots")
                    .index(i as u64)
                    .values(s.tensor.into(), s.rows.into()));
            }
        }
        for (i, p) in self.patches.iter().enumerate() {
            self.verify_str(p.module, "patches.module", i)?;
        }
        self.verify_str(self.info.architecture, "info.architecture", 0)?;
        self.verify_str(self.info.chat_template, "info.chat_template", 0)?;
        if self.info.labels as usize != self.labels.len() && !self.labels.is_empty() {
            return Err(
                err(ErrorKind::Invalid, "info.labels").values(self.info.labels.into(), self.labels.len() as u64)
            );
        }
        if self.info.eos_count as usize > self.info.eos.len() {
            return Err(err(ErrorKind::Invalid, "info.eos_count").values(self.info.eos_count.into(), 8));
        }
        for &id in self.info.eos[..self.info.eos_count as usize].iter().chain([
            &self.info.bos,
            &self.info.pad,
            &self.info.decoder_start,
        ]) {
            if id != NONE && id >= self.info.vocab {
                return Err(
                    err(ErrorKind::OutOfBounds, "info: special token").values(id.into(), self.info.vocab.into())
                );
            }
        }
        Ok(())
    }

    fn verify_tensors(&self) -> Result<()> {
        for (i, t) in self.tensors.iter().enumerate() {
            let fail = |kind, what| err(kind, what).index(i as u64);
            if t.offset % LINE as u64 != 0 {
                return Err(fail(ErrorKind::Misaligned, "tensors.offset").values(t.offset, LINE as u64));
            }
            let end = t.offset.checked_add(t.len).filter(|e| *e <= self.weights.len() as u64);
            if end.is_none() {
                return Err(fail(ErrorKind::OutOfBounds, "tensors.len").values(t.len, self.weights.len() as u64));
            }
            let format = WeightFormat::from_u16(t.format)
                .ok_or_else(|| fail(ErrorKind::Invalid, "tensors.format").values(t.format.into(), 0))?;
            let (rows, cols) = (t.rows as usize, t.cols as usize);
            if rows == 0 || cols == 0 {
                return Err(fail(ErrorKind::Invalid, "tensors: empty").values(rows as u64, cols as u64));
            }
            let need = match t.kind {
                k if k == TensorKind::Panels as u16 => format.checked_tensor_bytes(rows, cols),
                k if k == TensorKind::Vector as u16 && format == WeightFormat::F32 => {
                    rows.checked_mul(cols).and_then(|n| n.checked_mul(4))
                }
                k if k == TensorKind::Thin as u16 && format.is_float() => format.checked_thin_bytes(rows, cols),
                k => return Err(fail(ErrorKind::Invalid, "tensors.kind").values(k.into(), 0)),
            };
            if t.slot != NONE && self.slots.get(t.slot as usize).is_none_or(|s| s.tensor as usize != i) {
                return Err(fail(ErrorKind::OutOfBounds, "tensors.slot").values(t.slot.into(), self.slots.len() as u64));
            }
            if need.map(|n| n as u64) != Some(t.len) {
                return Err(fail(ErrorKind::Invalid, "tensors.len").values(t.len, need.unwrap_or(0) as u64));
            }
        }
        Ok(())
    }
}

/// Verifies the header of a file of any kind.
pub(super) fn check_header(bytes: &[u8]) -> Result<&Header> {
    if bytes.len() < size_of::<Header>() {
        let magic = bytes.len() >= 8 && bytes[..8] == MAGIC;
        return Err(err(if magic { ErrorKind::Truncated } else { ErrorKind::NotLpk }, "header")
            .values(bytes.len() as u64, size_of::<Header>() as u64));
    }
    if bytes[..8] != MAGIC {
        return Err(err(ErrorKind::NotLpk, "header.magic"));
    }
    if !(bytes.as_ptr() as usize).is_multiple_of(LINE) {
        return Err(err(ErrorKind::Misaligned, "address of the file in memory")
            .values((bytes.as_ptr() as usize % LINE) as u64, LINE as u64));
    }
    let header: &Header =
        bytemuck::try_from_bytes(&bytes[..size_of::<Header>()]).map_err(|_| err(ErrorKind::Misaligned, "header"))?;
    if header.version > VERSION {
        return Err(err(ErrorKind::TooNew, "header.version").values(header.version.into(), VERSION.into()));
    }
    if header.version == 0 || header.reserved != 0 {
        return Err(err(ErrorKind::Invalid, "header.version").values(header.version.into(), VERSION.into()));
    }
    if header.required & !KNOWN_FEATURES != 0 {
        return Err(err(ErrorKind::TooNew, "header.required").values(header.required, KNOWN_FEATURES));
    }
    if ![FileKind::Model as u32, FileKind::Adapter as u32, FileKind::Bundle as u32].contains(&header.kind) {
        return Err(err(ErrorKind::Invalid, "header.kind").values(header.kind.into(), 1));
    }
    if header.codebook.iter().any(|&c| c > 127) {
        return Err(err(ErrorKind::Invalid, "header.codebook"));
    }
    match header.file_len.cmp(&(bytes.len() as u64)) {
        core::cmp::Ordering::Equal => {}
        core::cmp::Ordering::Greater => {
            return Err(err(ErrorKind::Truncated, "header.file_len").values(bytes.len() as u64, header.file_len));
        }
        core::cmp::Ordering::Less => {
            return Err(
                err(ErrorKind::Invalid, "bytes after the end of the file").values(bytes.len() as u64, header.file_len)
            );
        }
    }
    Ok(header)
}

/// The verified section table.
pub(super) struct Sections<'a> {
    bytes: &'a [u8],
    table: &'a [SectionRecord],
}

impl<'a> Sections<'a> {
    pub(super) fn new_checked(bytes: &'a [u8], header: &Header) -> Result<Self> {
        let start = size_of::<Header>();
        if header.section_offset as usize != start || header.section_count > MAX_SECTIONS {
            return Err(err(ErrorKind::Invalid, "header.section_count")
                .values(header.section_count.into(), MAX_SECTIONS.into()));
        }
        let end = start + header.section_count as usize * size_of::<SectionRecord>();
        let table = bytes
            .get(start..end)
            .ok_or_else(|| err(ErrorKind::Truncated, "section table").values(bytes.len() as u64, end as u64))?;
        let table: &[SectionRecord] =
            bytemuck::try_cast_slice(table).map_err(|_| err(ErrorKind::Misaligned, "section table"))?;
        // Sections lie in ascending order without overlap, and the last one ends the file.
        let mut free_from = end as u64;
        for (i, s) in table.iter().enumerate() {
            let fail = |kind, what| err(kind, what).index(i as u64);
            let align = if s.id == SectionId::Weights as u32 { WEIGHTS_ALIGN } else { SECTION_ALIGN };
            if s.offset % align != 0 {
                return Err(fail(ErrorKind::Misaligned, "section.offset").values(s.offset, align));
            }
            let section_end = s.offset.checked_add(s.len);
            if s.offset < free_from
                || s.offset - free_from >= align
                || section_end.is_none_or(|e| e > bytes.len() as u64)
            {
                return Err(fail(ErrorKind::OutOfBounds, "section.offset").values(s.offset, free_from));
            }
            if s.record_size == 0 || s.count.checked_mul(s.record_size.into()) != Some(s.len) {
                return Err(fail(ErrorKind::Invalid, "section.len").values(s.len, s.count));
            }
            if table[..i].iter().any(|o| o.id == s.id) {
                return Err(fail(ErrorKind::Invalid, "section.id: twice").values(s.id.into(), 0));
            }
            if (s.id == 0 || s.id > SectionId::LAST as u32) && s.id < 0x8000_0000 {
                return Err(fail(ErrorKind::TooNew, "section.id").values(s.id.into(), SectionId::LAST as u64));
            }
            free_from = s.offset + s.len;
        }
        if free_from != bytes.len() as u64 {
            return Err(err(ErrorKind::Invalid, "header.file_len").values(bytes.len() as u64, free_from));
        }
        Ok(Self { bytes, table })
    }

    fn find(&self, id: SectionId) -> Option<&'a SectionRecord> {
        self.table.iter().find(|s| s.id == id as u32)
    }

    pub(super) fn blob(&self, id: SectionId) -> &'a [u8] {
        self.find(id).map_or(&[], |s| &self.bytes[s.offset as usize..(s.offset + s.len) as usize])
    }

    pub(super) fn records<T: Pod + Zeroable>(&self, id: SectionId) -> Result<&'a [T]> {
        let Some(bytes) = self.records_of(id, size_of::<T>())? else { return Ok(&[]) };
        bytemuck::try_cast_slice(bytes).map_err(|_| err(ErrorKind::Misaligned, "section").index(id as u64))
    }

    /// The bytes of a section of records of that size, where there is one: once for all kinds of records.
    #[inline(never)]
    fn records_of(&self, id: SectionId, size: usize) -> Result<Option<&'a [u8]>> {
        match self.find(id) {
            Some(s) if s.record_size as usize != size => Err(err(ErrorKind::Invalid, "section.record_size")
                .index(id as u64)
                .values(s.record_size.into(), size as u64)),
            found => Ok(found.map(|_| self.blob(id))),
        }
    }
}
