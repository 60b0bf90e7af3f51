//! llama.cpp's importance matrix: for every matrix, the mean square of each of its inputs over a text, taken by
//! llama.cpp itself while it runs the model.
#![expect(unsafe_code, reason = "the callback that sees every operation has no safe wrapper")]

use std::collections::BTreeMap;
use std::ffi::{CStr, CString, c_void};
use std::path::Path;
use std::ptr;

use anyhow::{Context, Result, bail};
use llama_cpp_sys_2 as sys;

/// Tokens of a step.
const STEP: usize = 512;

/// Sums of squares by matrix name, and the rows that they are of.
#[derive(Default)]
struct Sums {
    squares: BTreeMap<CString, (Vec<f64>, u64)>,
    /// An operation whose inputs are not rows of f32 in memory.
    unreadable: bool,
}

/// Mean squares of the inputs of every matrix of a GGUF file over the lines of a text, each from the beginning
/// (of a JSON object with a field `text`, that).
///
/// # Errors
/// llama.cpp cannot load or run the model.
pub fn measure(model: &Path, text: &str) -> Result<BTreeMap<CString, Vec<f32>>> {
    let path = CString::new(model.to_string_lossy().as_bytes())?;
    let mut sums = Sums::default();
    // SAFETY: llama.cpp's own structs of defaults; the model outlives its context, the sums outlive both, and
    // everything that was made is freed.
    unsafe {
        let loaded = sys::llama_model_load_from_file(path.as_ptr(), sys::llama_model_default_params());
        if loaded.is_null() {
            bail!("llama.cpp cannot load {}", model.display());
        }
        let mut params = sys::llama_context_default_params();
        (params.n_ctx, params.n_batch, params.n_ubatch) = (STEP as u32, STEP as u32, STEP as u32);
        params.cb_eval = Some(see);
        params.cb_eval_user_data = (&raw mut sums).cast();
        let context = sys::llama_init_from_model(loaded, params);
        let mut failed = context.is_null();
        for line in text.lines().filter(|l| !l.trim().is_empty()) {
            if failed {
                break;
            }
            let object: Option<serde_json::Value> = serde_json::from_str(line).ok();
            let line = object.as_ref().and_then(|o| o["text"].as_str()).unwrap_or(line);
            let mut tokens = tokenize(sys::llama_model_get_vocab(loaded), line)?;
            for step in tokens.chunks_mut(STEP) {
                sys::llama_memory_clear(sys::llama_get_memory(context), true);
                failed |=
                    sys::llama_decode(context, sys::llama_batch_get_one(step.as_mut_ptr(), step.len() as i32)) != 0;
            }
        }
        if !context.is_null() {
            sys::llama_free(context);
        }
        sys::llama_model_free(loaded);
        if failed || sums.unreadable || sums.squares.is_empty() {
            bail!("llama.cpp cannot run {}", model.display());
        }
    }
    let mean = |(squares, rows): (Vec<f64>, u64)| squares.iter().map(|s| (s / rows as f64) as f32).collect();
    Ok(sums.squares.into_iter().map(|(name, sum)| (name, mean(sum))).collect())
}

/// # Safety
/// `vocab` belongs to a model that is loaded.
unsafe fn tokenize(vocab: *const sys::llama_vocab, line: &str) -> Result<Vec<sys::llama_token>> {
    let mut tokens = vec![0; line.len() + 8];
    // SAFETY: both buffers are passed with their lengths.
    let n = unsafe {
        let (text, room) = (line.as_ptr().cast(), tokens.len() as i32);
        sys::llama_tokenize(vocab, text, line.len() as i32, tokens.as_mut_ptr(), room, true, true)
    };
    tokens.truncate(usize::try_from(n).context("llama.cpp cannot tokenize the text")?);
    Ok(tokens)
}

/// llama.cpp asks which operations are of interest, then shows each of those when it is done.
unsafe extern "C" fn see(tensor: *mut sys::ggml_tensor, ask: bool, sums: *mut c_void) -> bool {
    // SAFETY: llama.cpp passes an operation of its graph, whose inputs exist, and the pointer that it was given.
    unsafe {
        let tensor = &*tensor;
        if tensor.op != sys::GGML_OP_MUL_MAT {
            return false;
        }
        let name = CStr::from_ptr((*tensor.src[0]).name.as_ptr());
        if !name.to_bytes().ends_with(b".weight") {
            return false;
        }
        if !ask {
            add(&mut *sums.cast::<Sums>(), name, &*tensor.src[1]);
        }
    }
    true
}

/// # Safety
/// `x` is a tensor of llama.cpp's that has been computed.
unsafe fn add(sums: &mut Sums, name: &CStr, x: &sys::ggml_tensor) {
    let k = x.ne[0] as usize;
    // SAFETY: a tensor of its own buffer; nothing else is done to it.
    let (rows, bytes) = unsafe { (sys::ggml_nrows(x) as usize, sys::ggml_nbytes(x)) };
    if x.type_ != sys::GGML_TYPE_F32 || bytes != 4 * k * rows {
        sums.unreadable = true;
        return;
    }
    let mut values = vec![0f32; k * rows];
    // SAFETY: as many bytes as the tensor has, into a buffer of that size.
    unsafe { sys::ggml_backend_tensor_get(ptr::from_ref(x), values.as_mut_ptr().cast(), 0, bytes) };
    let (squares, seen) = sums.squares.entry(name.to_owned()).or_insert_with(|| (vec![0.0; k], 0));
    for row in values.chunks_exact(k) {
        for (s, v) in squares.iter_mut().zip(row) {
            *s += f64::from(*v) * f64::from(*v);
        }
    }
    *seen += rows as u64;
}
