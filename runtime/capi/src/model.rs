//! Models: opening, facts, labels.

use core::ffi::{c_char, c_void};

use runtime::kernels::KvType;
use runtime::program::{AdapterNeeds, SessionConfig};
use runtime::{Error, ErrorKind, Model};

use crate::status::{CError, CStatus, Checked, checked, list, put, reference, run};

/// Bytes of a `lora_model`.
const MODEL_BYTES: usize = 2048;

/// What a `lora_model` holds.
pub struct Handle {
    pub model: Model<'static>,
    #[cfg(feature = "std")]
    #[expect(dead_code, reason = "kept for its end: it unmaps the file")]
    mapping: Option<runtime::map::Mapping>,
}

impl Handle {
    /// A model whose bytes somebody else keeps.
    pub const fn view(model: Model<'static>) -> Self {
        Self {
            model,
            #[cfg(feature = "std")]
            mapping: None,
        }
    }
}

const _: () = assert!(size_of::<Handle>() <= MODEL_BYTES && align_of::<Handle>() <= 8);

/// A `lora_model` of the header.
#[repr(C, align(8))]
pub struct CModel([u8; MODEL_BYTES]);

impl CModel {
    /// The handle in it.
    ///
    /// # Safety
    /// Null, or opened and not closed.
    pub unsafe fn handle<'a>(this: *const Self) -> Checked<&'a Handle> {
        // SAFETY: an open model begins with a handle.
        unsafe { reference(this.cast::<Handle>(), "model") }
    }
}

/// Runs a function's body with a model.
///
/// # Safety
/// `model`: null or open.
pub unsafe fn with_model(
    model: *const CModel,
    error: *mut CError,
    body: impl FnOnce(&Model<'static>) -> Checked,
) -> CStatus {
    // SAFETY: the caller's.
    run(error, || body(&unsafe { CModel::handle(model) }?.model))
}

/// `lora_text` of the header.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct CText {
    data: *const c_char,
    len: usize,
}

impl CText {
    pub fn new(text: &str) -> Self {
        Self { data: text.as_ptr().cast(), len: text.len() }
    }
}

/// `lora_info` of the header.
#[repr(C)]
pub struct CInfo {
    task: u32,
    problem: u32,
    vocab: u32,
    max_positions: u32,
    hidden: u32,
    labels: u32,
    token_types: u32,
    kv: u32,
    bos: u32,
    eos_count: u32,
    eos: [u32; 8],
    architecture: CText,
    chat_template: CText,
}

/// `lora_config` of the header.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct CConfig {
    context: u32,
    tokens: u32,
    outputs: u32,
    source: u32,
    sequences: u32,
    kv: u32,
    adapters: u32,
    adapter_rank: u32,
    adapter_token_bytes: u32,
    adapter_output_bytes: u32,
}

impl From<SessionConfig> for CConfig {
    fn from(c: SessionConfig) -> Self {
        Self {
            context: c.context,
            tokens: c.tokens,
            outputs: c.outputs,
            source: c.source,
            sequences: c.sequences,
            kv: c.kv as u32,
            adapters: c.adapters.used.into(),
            adapter_rank: c.adapters.rank,
            adapter_token_bytes: c.adapters.per_token,
            adapter_output_bytes: c.adapters.per_output,
        }
    }
}

/// The runtime's form of a configuration.
pub fn config_of(config: &CConfig) -> Checked<SessionConfig> {
    let kv = u16::try_from(config.kv).ok().and_then(KvType::from_u16);
    let unknown = Error::new(ErrorKind::Invalid, "config.kv").values(config.kv.into(), 0);
    // Every place in the arena is a multiple of a line.
    if !(config.adapter_rank.is_multiple_of(16)
        && (config.adapter_token_bytes | config.adapter_output_bytes).is_multiple_of(64))
    {
        return Err(Error::new(ErrorKind::Invalid, "config.adapter_rank")
            .values(config.adapter_rank.into(), 16)
            .into());
    }
    Ok(SessionConfig {
        context: config.context,
        tokens: config.tokens,
        outputs: config.outputs,
        source: config.source,
        sequences: config.sequences,
        kv: kv.ok_or(unknown)?,
        adapters: AdapterNeeds {
            used: config.adapters != 0,
            rank: config.adapter_rank,
            per_token: config.adapter_token_bytes,
            per_output: config.adapter_output_bytes,
        },
    })
}

/// Opens a model in memory.
///
/// # Safety
/// `model`: null or writable. `bytes`: null or `len` bytes that stay as they are until all use of the model has ended.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lora_model_open(
    model: *mut CModel,
    bytes: *const c_void,
    len: usize,
    error: *mut CError,
) -> CStatus {
    run(error, || {
        // SAFETY: as documented; 'static stands for "as long as the model is used".
        let bytes: &'static [u8] = unsafe { list(bytes.cast(), len, "bytes") }?;
        let handle = Handle::view(checked(Model::open(bytes))?);
        // SAFETY: as documented; the handle fits (asserted above).
        unsafe { put(model.cast::<Handle>(), "model", handle) }
    })
}

/// Maps a file. Its bytes live as long as the mapping, wherever that is moved.
///
/// # Safety
/// `path`: null or a string that ends with a zero. The bytes are not used after the mapping's end.
#[cfg(feature = "std")]
pub unsafe fn map_file(path: *const c_char) -> Checked<(runtime::map::Mapping, &'static [u8])> {
    // SAFETY: only whether it is null is asked.
    unsafe { reference(path, "path") }?;
    // SAFETY: as documented.
    let path = unsafe { core::ffi::CStr::from_ptr(path) };
    let unreadable = Error::new(ErrorKind::Io, "path: cannot be opened and mapped");
    let path = path.to_str().map_err(|_| Error::new(ErrorKind::Invalid, "path: not UTF-8"))?;
    let mapping = runtime::map::Mapping::open(std::path::Path::new(path)).map_err(|e| {
        // The system's error number, where it gave one.
        unreadable.values(e.raw_os_error().unwrap_or(0) as u64, 0)
    })?;
    let bytes: &[u8] = &mapping;
    // SAFETY: the mapped bytes do not move with the mapping's handle.
    let bytes: &'static [u8] = unsafe { core::slice::from_raw_parts(bytes.as_ptr(), bytes.len()) };
    Ok((mapping, bytes))
}

/// Maps a file and opens it as a model.
///
/// # Safety
/// `model`: null or writable. `path`: null or a string that ends with a zero.
#[cfg(feature = "std")]
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lora_model_open_file(model: *mut CModel, path: *const c_char, error: *mut CError) -> CStatus {
    run(error, || {
        // SAFETY: as documented.
        let (mapping, bytes) = unsafe { map_file(path) }?;
        let opened = checked(Model::open(bytes))?;
        // SAFETY: as documented; the handle fits (asserted above).
        unsafe { put(model.cast::<Handle>(), "model", Handle { model: opened, mapping: Some(mapping) }) }
    })
}

/// Ends a model; unmaps its file.
///
/// # Safety
/// `model`: null, or open and without sessions or decoders that are still used.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lora_model_close(model: *mut CModel) {
    if !model.is_null() {
        // SAFETY: as documented: an open model begins with a handle, and nobody uses it after this.
        unsafe { model.cast::<Handle>().drop_in_place() };
    }
}

/// Facts about a model.
///
/// # Safety
/// `model`: null or open. `info`: null or writable.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lora_model_info(model: *const CModel, info: *mut CInfo, error: *mut CError) -> CStatus {
    let facts_of = |model: &Model<'static>| {
        let facts = model.file.info;
        let value = CInfo {
            task: facts.task,
            problem: facts.problem,
            vocab: facts.vocab,
            max_positions: facts.max_positions,
            hidden: facts.hidden,
            labels: facts.labels,
            token_types: facts.token_types,
            kv: facts.kv_type,
            bos: facts.bos,
            eos_count: facts.eos_count,
            eos: facts.eos,
            architecture: CText::new(model.file.str(facts.architecture)),
            chat_template: CText::new(model.file.str(facts.chat_template)),
        };
        // SAFETY: as documented.
        unsafe { put(info, "info", value) }
    };
    // SAFETY: as documented.
    unsafe { with_model(model, error, facts_of) }
}

/// The name of a label; empty where the file names none.
///
/// # Safety
/// `model`: null or open. `name`: null or writable.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lora_model_label(
    model: *const CModel,
    label: u32,
    name: *mut CText,
    error: *mut CError,
) -> CStatus {
    // SAFETY: as documented.
    unsafe {
        with_model(model, error, |model| put(name, "name", CText::new(model.face.label(label as usize).unwrap_or(""))))
    }
}

/// What a session of one sequence needs.
///
/// # Safety
/// `model`: null or open. `config`: null or writable.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lora_config_init(
    model: *const CModel,
    positions: u32,
    step: u32,
    config: *mut CConfig,
    error: *mut CError,
) -> CStatus {
    // SAFETY: as documented.
    unsafe { with_model(model, error, |model| put(config, "config", model.config(positions, step).into())) }
}
