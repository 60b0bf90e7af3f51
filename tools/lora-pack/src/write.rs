//! Writing an `.lpk`: atomic (temporary file, fsync, rename), deterministic, weights streamed tensor by tensor.
//!
//! The weights section comes first, so that everything known only after quantization (reports, hashes of
//! tensors) can follow it; the header is written last.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::{BufWriter, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use bytemuck::{Pod, Zeroable};
use lora_runtime::format::{
    BufferRecord, CacheRecord, EntryRecord, FileKind, Header, Info, MAGIC, MemberRecord, MetaRecord, OpRecord,
    OutputRecord, PatchRecord, SECTION_ALIGN, SectionId, SectionRecord, SlotRecord, StrRef, TensorRecord, VERSION,
    WEIGHTS_ALIGN,
};
use lora_runtime::selftest::KEY as GOLDEN;
use lora_runtime::weights::LINE;
use sha2::{Digest, Sha256};

/// Strings of the file, each stored once.
#[derive(Default)]
pub struct Strings {
    text: String,
    known: HashMap<String, StrRef>,
}

impl Strings {
    /// A reference to `s`.
    pub fn add(&mut self, s: &str) -> StrRef {
        if let Some(r) = self.known.get(s) {
            return *r;
        }
        let r = StrRef { offset: self.text.len() as u32, len: s.len() as u32 };
        self.text.push_str(s);
        self.known.insert(s.into(), r);
        r
    }
}

/// The tables of a file, everything but the weights.
pub struct Tables {
    /// What the file is.
    pub kind: FileKind,
    /// Fingerprint of the base.
    pub fingerprint: [u8; 32],
    /// Table of the `q4` format.
    pub codebook: [u8; 16],
    /// Facts; a bundle has none.
    pub info: Option<Info>,
    /// Metadata.
    pub meta: BTreeMap<String, String>,
    /// Strings.
    pub strings: Strings,
    /// Entry points.
    pub entries: Vec<EntryRecord>,
    /// Ops.
    pub ops: Vec<OpRecord>,
    /// Buffers.
    pub buffers: Vec<BufferRecord>,
    /// Caches.
    pub caches: Vec<CacheRecord>,
    /// Outputs.
    pub outputs: Vec<OutputRecord>,
    /// Tensors.
    pub tensors: Vec<TensorRecord>,
    /// Slots.
    pub slots: Vec<SlotRecord>,
    /// Patches of an adapter.
    pub patches: Vec<PatchRecord>,
    /// Row numbers that patches refer to.
    pub indices: Vec<u32>,
    /// Files of a bundle.
    pub members: Vec<MemberRecord>,
    /// Labels.
    pub labels: Vec<StrRef>,
    /// Compiled tokenizer.
    pub tokenizer: Vec<u8>,
}

/// A file under construction. Dropped without [`LpkWriter::finish`], it leaves nothing behind.
pub struct LpkWriter {
    out: BufWriter<tempfile::NamedTempFile>,
    target: PathBuf,
    weights_len: u64,
    scratch: bool,
    /// The last bytes of the weights, still to be written.
    pending: Vec<u8>,
    /// A buffer for the next ones.
    spare: Vec<u8>,
}

/// Bytes from which on a tensor is not copied together with its neighbours before it is written.
const LARGE: usize = 1 << 20;

/// Sections beside the weights, an upper bound used to place the weights.
const TABLE_BYTES: u64 = 128 + SectionId::LAST as u64 * 32;

impl LpkWriter {
    /// Starts a file that will appear as `target`.
    ///
    /// # Errors
    /// The folder cannot be written to.
    pub fn create(target: &Path) -> Result<Self> {
        if target.is_dir() {
            bail!("{} is a folder: -o needs a file name", target.display());
        }
        let dir = target.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let file = tempfile::Builder::new()
            .prefix(".lora-pack-")
            .suffix(".tmp")
            .tempfile_in(dir)
            .with_context(|| format!("cannot write to the folder {}", dir.display()))?;
        let mut out = BufWriter::with_capacity(1 << 20, file);
        out.seek(SeekFrom::Start(WEIGHTS_ALIGN))?;
        const { assert!(TABLE_BYTES <= WEIGHTS_ALIGN) };
        let (pending, spare) = (Vec::new(), Vec::new());
        Ok(Self { out, target: target.into(), weights_len: 0, scratch: false, pending, spare })
    }

    /// Starts a file that only this process will read: it gets no content hash and is not synced to disk.
    ///
    /// # Errors
    /// As [`LpkWriter::create`].
    pub fn scratch(target: &Path) -> Result<Self> {
        Ok(Self { scratch: true, ..Self::create(target)? })
    }

    /// Where the next tensor will stand in the weights section.
    pub fn position(&self) -> u64 {
        self.weights_len
    }

    /// Appends a tensor's bytes; gives its offset in the weights section, and its length.
    ///
    /// # Errors
    /// Writing fails (disk full …).
    pub fn tensor(&mut self, bytes: &[u8]) -> Result<(u64, u64)> {
        let offset = self.weights_len;
        debug_assert!(offset.is_multiple_of(LINE as u64));
        if bytes.len() < LARGE {
            self.pending.extend_from_slice(bytes);
        } else {
            self.flush()?;
            self.out.write_all(bytes).with_context(|| format!("cannot write {}", self.target.display()))?;
        }
        self.weights_len += bytes.len() as u64;
        self.pad(LINE as u64);
        Ok((offset, bytes.len() as u64))
    }

    /// Appends `len` bytes, whole lines, that `make` writes into a buffer of zeros, while what was appended before goes
    /// to the file. A tensor can be written in several pieces.
    ///
    /// # Errors
    /// Those of `make`; writing fails.
    pub fn piece(&mut self, len: usize, make: impl FnOnce(&mut [u8]) -> Result<()> + Send) -> Result<()> {
        debug_assert!(len.is_multiple_of(LINE));
        let mut next = std::mem::take(&mut self.spare);
        next.clear();
        next.resize(len, 0);
        let (written, made) = rayon::join(|| self.flush(), || make(&mut next));
        written.and(made)?;
        self.weights_len += len as u64;
        self.spare = std::mem::replace(&mut self.pending, next);
        Ok(())
    }

    /// Writes what is pending.
    fn flush(&mut self) -> Result<()> {
        self.out.write_all(&self.pending).with_context(|| format!("cannot write {}", self.target.display()))?;
        self.pending.clear();
        Ok(())
    }

    /// Appends a whole file at a page boundary; gives its offset in the weights section.
    ///
    /// # Errors
    /// Writing fails (disk full …).
    pub fn member(&mut self, file: &[u8]) -> Result<u64> {
        while !self.weights_len.is_multiple_of(WEIGHTS_ALIGN) {
            self.pending.extend_from_slice(&[0; LINE]);
            self.weights_len += LINE as u64;
        }
        Ok(self.tensor(file)?.0)
    }

    fn pad(&mut self, align: u64) {
        let gap = self.weights_len.next_multiple_of(align) - self.weights_len;
        self.pending.extend_from_slice(&[0; 64][..gap as usize]);
        self.weights_len += gap;
    }

    /// Writes the tables and the header, syncs, and renames into place. A golden result among the metadata is computed
    /// here, by running the file. Gives the file's length and content hash.
    ///
    /// # Errors
    /// Writing fails; nothing appears under the target's name then.
    pub fn finish(mut self, mut t: Tables) -> Result<(u64, [u8; 32])> {
        self.flush()?;
        let meta: Vec<MetaRecord> =
            t.meta.iter().map(|(k, v)| MetaRecord { key: t.strings.add(k), value: t.strings.add(v) }).collect();
        let golden = t.meta.get(GOLDEN).map(|text| t.strings.add(text).offset);
        let mut sections = vec![SectionRecord {
            id: SectionId::Weights as u32,
            record_size: 1,
            offset: WEIGHTS_ALIGN,
            len: self.weights_len,
            count: self.weights_len,
        }];
        let mut at = WEIGHTS_ALIGN + self.weights_len;
        let info: Vec<Info> = t.info.into_iter().collect();
        let blobs: [(SectionId, usize, &[u8]); 15] = [
            (SectionId::Meta, size_of::<MetaRecord>(), bytes(&meta)),
            (SectionId::Info, size_of::<Info>(), bytes(&info)),
            (SectionId::Entries, size_of::<EntryRecord>(), bytes(&t.entries)),
            (SectionId::Ops, size_of::<OpRecord>(), bytes(&t.ops)),
            (SectionId::Buffers, size_of::<BufferRecord>(), bytes(&t.buffers)),
            (SectionId::Caches, size_of::<CacheRecord>(), bytes(&t.caches)),
            (SectionId::Outputs, size_of::<OutputRecord>(), bytes(&t.outputs)),
            (SectionId::Tensors, size_of::<TensorRecord>(), bytes(&t.tensors)),
            (SectionId::Slots, size_of::<SlotRecord>(), bytes(&t.slots)),
            (SectionId::Patches, size_of::<PatchRecord>(), bytes(&t.patches)),
            (SectionId::Indices, 4, bytes(&t.indices)),
            (SectionId::Members, size_of::<MemberRecord>(), bytes(&t.members)),
            (SectionId::Labels, size_of::<StrRef>(), bytes(&t.labels)),
            (SectionId::Tokenizer, 1, &t.tokenizer),
            (SectionId::Strings, 1, t.strings.text.as_bytes()),
        ];
        for (id, record_size, data) in blobs.into_iter().filter(|(_, _, d)| !d.is_empty()) {
            let start = at.next_multiple_of(SECTION_ALIGN);
            self.out.write_all(&[0; SECTION_ALIGN as usize][..(start - at) as usize])?;
            self.out.write_all(data)?;
            sections.push(SectionRecord {
                id: id as u32,
                record_size: record_size as u32,
                offset: start,
                len: data.len() as u64,
                count: (data.len() / record_size) as u64,
            });
            at = start + data.len() as u64;
        }
        let mut header = Header {
            magic: MAGIC,
            version: VERSION,
            kind: t.kind as u32,
            required: 0,
            file_len: at,
            section_count: sections.len() as u32,
            section_offset: size_of::<Header>() as u32,
            hash: [0; 32],
            fingerprint: t.fingerprint,
            codebook: t.codebook,
            ..Zeroable::zeroed()
        };
        self.out.seek(SeekFrom::Start(0))?;
        self.out.write_all(bytemuck::bytes_of(&header))?;
        self.out.write_all(bytes(&sections))?;
        let gap = WEIGHTS_ALIGN as usize - size_of::<Header>() - size_of_val(sections.as_slice());
        self.out.write_all(&vec![0; gap])?;
        let mut file = self.out.into_inner().context("cannot write the file")?;
        if !self.scratch {
            if let Some(offset) = golden {
                // The strings are the last section; the text keeps its length.
                let text = crate::golden::compute(file.path()).context("running the packed model")?.to_string();
                file.seek(SeekFrom::Start(at - t.strings.text.len() as u64 + u64::from(offset)))?;
                file.write_all(text.as_bytes())?;
            }
            // Most of the bytes go to the disk while they are hashed.
            let disk = file.as_file().try_clone().context("cannot sync the file to disk")?;
            let (hash, synced) = rayon::join(|| hash_of(file.as_file_mut()), || disk.sync_data());
            header.hash = hash?;
            synced.context("cannot sync the file to disk")?;
            file.seek(SeekFrom::Start(0))?;
            file.write_all(bytemuck::bytes_of(&header))?;
            set_readable(file.as_file())?;
            file.as_file().sync_all().context("cannot sync the file to disk")?;
        }
        file.persist(&self.target).with_context(|| format!("cannot write {}", self.target.display()))?;
        Ok((header.file_len, header.hash))
    }
}

fn bytes<T: Pod>(records: &[T]) -> &[u8] {
    bytemuck::cast_slice(records)
}

/// The content hash of a file whose hash field is still zero, read in pieces (mapping it would count as memory in use).
fn hash_of(file: &mut File) -> Result<[u8; 32]> {
    let mut hasher = Sha256::new();
    file.seek(SeekFrom::Start(0))?;
    let mut buffer = vec![0; 1 << 20];
    loop {
        match file.read(&mut buffer).context("cannot read the written file back")? {
            0 => return Ok(hasher.finalize().into()),
            n => hasher.update(&buffer[..n]),
        }
    }
}

/// Temporary files are private; the result is an ordinary file.
///
/// # Errors
/// The system's.
#[cfg(unix)]
pub fn set_readable(file: &File) -> Result<()> {
    use std::os::unix::fs::PermissionsExt;
    file.set_permissions(std::fs::Permissions::from_mode(0o644)).context("cannot set the file's permissions")
}

/// As on Unix, where there is something to do.
///
/// # Errors
/// None.
#[cfg(not(unix))]
pub fn set_readable(_: &File) -> Result<()> {
    Ok(())
}
