//! The side of llama.cpp, through the crates that vendor it.
#![expect(unsafe_code, reason = "two functions of llama.cpp have no safe wrapper")]

use std::collections::BTreeMap;
use std::ffi::{CStr, CString};
use std::io::Write as _;
use std::num::NonZeroU32;
use std::path::Path;
use std::ptr;

use anyhow::{Context, Result, bail};
use llama_cpp_2::context::LlamaContext;
use llama_cpp_2::context::params::LlamaContextParams;
use llama_cpp_2::llama_backend::LlamaBackend;
use llama_cpp_2::llama_batch::LlamaBatch;
use llama_cpp_2::model::LlamaModel;
use llama_cpp_2::model::params::LlamaModelParams;
use llama_cpp_2::token::LlamaToken;
use llama_cpp_sys_2 as sys;

use crate::importance;
use crate::runner::{Runner, Setup, token};

/// What llama.cpp says about its build: the instruction sets in use, repacking of weights.
pub fn system_info() -> String {
    // SAFETY: no arguments; the string lives in a static buffer of llama.cpp and is copied at once.
    unsafe { CStr::from_ptr(sys::llama_print_system_info()) }.to_string_lossy().trim().to_owned()
}

/// Starts llama.cpp, silently unless `LLAMA_LOG` is set.
///
/// # Errors
/// It is started already.
pub fn backend() -> Result<LlamaBackend> {
    let mut backend = LlamaBackend::init()?;
    if std::env::var_os("LLAMA_LOG").is_none() {
        backend.void_logs();
    }
    Ok(backend)
}

/// Loads a GGUF file: mapped, matrices repacked for the CPU where llama.cpp does so by default.
///
/// # Errors
/// llama.cpp's.
pub fn load(backend: &LlamaBackend, path: &Path) -> Result<LlamaModel> {
    LlamaModel::load_from_file(backend, path, &LlamaModelParams::default())
        .with_context(|| format!("llama.cpp cannot load {}", path.display()))
}

/// A context with one sequence.
pub struct Llama<'m> {
    context: LlamaContext<'m>,
    batch: LlamaBatch<'m>,
    vocab: u32,
    filled: u32,
    size: u32,
}

impl<'m> Llama<'m> {
    /// A context of the model; attention and KV cache as by default (flash attention where it decides so, f16).
    ///
    /// # Errors
    /// llama.cpp's.
    pub fn new(backend: &LlamaBackend, model: &'m LlamaModel, setup: Setup) -> Result<Self> {
        let threads = i32::try_from(setup.threads)?;
        let params = LlamaContextParams::default()
            .with_n_ctx(NonZeroU32::new(setup.context))
            .with_n_batch(setup.batch)
            .with_n_ubatch(setup.batch)
            .with_n_threads(threads)
            .with_n_threads_batch(threads);
        let context = model.new_context(backend, params)?;
        let batch = LlamaBatch::new(setup.batch as usize, 1);
        Ok(Self { context, batch, vocab: u32::try_from(model.n_vocab())?, filled: 0, size: setup.batch })
    }

    fn step(&mut self, past: u32, len: u32) -> Result<()> {
        self.batch.clear();
        for i in past..past + len {
            let id = LlamaToken::new(token(i, self.vocab) as i32);
            self.batch.add(id, i as i32, &[0], i + 1 == past + len)?;
        }
        self.context.decode(&mut self.batch)?;
        self.filled = past + len;
        Ok(())
    }

    fn forget(&mut self, from: u32) -> Result<()> {
        if self.filled > from {
            if !self.context.clear_kv_cache_seq(Some(0), Some(from), None)? {
                bail!("llama.cpp cannot cut its cache at {from}");
            }
            self.filled = from;
        }
        Ok(())
    }
}

impl Runner for Llama<'_> {
    fn prefill(&mut self, n: u32) -> Result<()> {
        self.forget(0)?;
        for past in (0..n).step_by(self.size as usize) {
            self.step(past, self.size.min(n - past))?;
        }
        Ok(())
    }

    fn decode(&mut self, depth: u32, n: u32) -> Result<()> {
        self.forget(depth)?;
        while self.filled < depth {
            self.step(self.filled, self.size.min(depth - self.filled))?;
        }
        for i in 0..n {
            self.step(depth + i, 1)?;
        }
        Ok(())
    }
}

/// Longest list of tokens for [`logits`].
const LONGEST: u32 = 512;

/// Writes the logits of every token of some lists, as llama.cpp computes them by default.
///
/// # Errors
/// A list that is too long or holds other ids than the model has, llama.cpp's, or the disk's.
pub fn logits(model: &Path, ids: &Path, out: &Path) -> Result<()> {
    let text = std::fs::read_to_string(ids).with_context(|| ids.display().to_string())?;
    let lists: Vec<Vec<i32>> = serde_json::from_str(&text).with_context(|| ids.display().to_string())?;
    let backend = backend()?;
    let model = load(&backend, model)?;
    let threads = i32::try_from(std::thread::available_parallelism()?.get())?;
    let params = LlamaContextParams::default()
        .with_n_ctx(NonZeroU32::new(LONGEST))
        .with_n_batch(LONGEST)
        .with_n_ubatch(LONGEST)
        .with_n_threads(threads)
        .with_n_threads_batch(threads);
    let mut context = model.new_context(&backend, params)?;
    let mut batch = LlamaBatch::new(LONGEST as usize, 1);
    let mut file = std::io::BufWriter::new(std::fs::File::create(out).with_context(|| out.display().to_string())?);
    for list in &lists {
        if list.len() > LONGEST as usize {
            bail!("{} tokens at once, {LONGEST} are possible", list.len());
        }
        if let Some(id) = list.iter().find(|id| !(0..model.n_vocab()).contains(*id)) {
            bail!("{id} is no token of this model");
        }
        context.clear_kv_cache();
        batch.clear();
        for (i, id) in list.iter().enumerate() {
            batch.add(LlamaToken::new(*id), i as i32, &[0], true)?;
        }
        context.decode(&mut batch)?;
        for i in 0..list.len() {
            for v in context.get_logits_ith(i as i32) {
                file.write_all(&v.to_le_bytes())?;
            }
        }
    }
    Ok(file.flush()?)
}

/// What llama.cpp's quantizer makes.
pub enum Form {
    /// Every matrix alike (`--pure` of llama.cpp's own program), at 4 or 8 bits.
    Pure(u8),
    /// A type by its name, with llama.cpp's choice for each matrix.
    Mixture(String),
}

/// Quantizes a GGUF file; `importance` is a text to take an importance matrix from.
///
/// # Errors
/// An unknown type, a text that cannot be read or run, or llama.cpp refuses; it has no words for it here.
pub fn quantize(from: &Path, to: &Path, form: &Form, importance: Option<&Path>) -> Result<()> {
    let _backend = backend()?;
    let name = |path: &Path| CString::new(path.to_string_lossy().as_bytes());
    let (from_name, to_name) = (name(from)?, name(to)?);
    let means = match importance {
        Some(text) => {
            let text = std::fs::read_to_string(text).with_context(|| text.display().to_string())?;
            importance::measure(from, &text)?
        }
        None => BTreeMap::new(),
    };
    let entry = |(name, values): (&CString, &Vec<f32>)| sys::llama_model_imatrix_data {
        name: name.as_ptr(),
        data: values.as_ptr(),
        size: values.len(),
    };
    let end = sys::llama_model_imatrix_data { name: ptr::null(), data: ptr::null(), size: 0 };
    let list: Vec<_> = means.iter().map(entry).chain([end]).collect();
    let kind = match form {
        Form::Pure(4) => sys::LLAMA_FTYPE_MOSTLY_Q4_0,
        Form::Pure(8) => sys::LLAMA_FTYPE_MOSTLY_Q8_0,
        Form::Pure(_) => bail!("4 or 8 bits"),
        Form::Mixture(name) => match name.to_lowercase().as_str() {
            "q4_0" => sys::LLAMA_FTYPE_MOSTLY_Q4_0,
            "q4_k_m" => sys::LLAMA_FTYPE_MOSTLY_Q4_K_M,
            "iq4_nl" => sys::LLAMA_FTYPE_MOSTLY_IQ4_NL,
            "q5_k_m" => sys::LLAMA_FTYPE_MOSTLY_Q5_K_M,
            "q6_k" => sys::LLAMA_FTYPE_MOSTLY_Q6_K,
            "q8_0" => sys::LLAMA_FTYPE_MOSTLY_Q8_0,
            _ => bail!("{name}: not a type that is known here"),
        },
    };
    // SAFETY: a plain struct of defaults, then two strings and a list with its end that outlive the call.
    let code = unsafe {
        let mut params = sys::llama_model_quantize_default_params();
        params.ftype = kind;
        params.pure_ = matches!(form, Form::Pure(_));
        // For speed alone the values do not matter; a file that is quantized already is as good a start.
        params.allow_requantize = true;
        if importance.is_some() {
            params.imatrix = list.as_ptr();
        }
        sys::llama_model_quantize(from_name.as_ptr(), to_name.as_ptr(), &raw const params)
    };
    if code != 0 {
        bail!("llama.cpp cannot quantize {}", from.display());
    }
    Ok(())
}
