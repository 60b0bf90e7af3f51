//! Whole tasks: continue, classify, tag, embed; and choosing a token.

use core::ffi::c_void;

use runtime::format::EntryKind;
use runtime::sampler::{Rng, Sampling, choose};
use runtime::tasks::{Ending, Ids, classify, embed, generate, tag};
use runtime::{Error, ErrorKind, Session};

use crate::session::{CSession, with_input, with_session};
use crate::status::{CError, CStatus, Checked, checked, list_mut, put};

/// `lora_sampling` of the header.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct CSampling {
    temperature: f32,
    top_p: f32,
    min_p: f32,
    top_k: u32,
}

/// The caller's settings; null is greedy.
///
/// # Safety
/// Null or readable.
unsafe fn sampling_of(sampling: *const CSampling) -> Sampling {
    // SAFETY: the caller's.
    match unsafe { sampling.as_ref() } {
        None => Sampling::GREEDY,
        Some(s) => Sampling { temperature: s.temperature, top_k: s.top_k, top_p: s.top_p, min_p: s.min_p },
    }
}

/// Works with the random state in `seed`, which it advances; null is a state of its own.
///
/// # Safety
/// Null or writable.
unsafe fn with_rng<T>(seed: *mut u64, work: impl FnOnce(&mut Rng) -> Checked<T>) -> Checked<T> {
    // SAFETY: the caller's.
    let state = unsafe { seed.as_mut() };
    let mut rng = Rng::new(state.as_ref().map_or(0, |s| **s));
    let result = work(&mut rng);
    if let Some(state) = state {
        *state = rng.next_u64();
    }
    result
}

/// Chooses a token from the logits of the step that ran last; the logits are used up.
///
/// # Safety
/// `session`: null or open. `sampling`, `seed`: null, or readable and writable. `id`: null or writable.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lora_choose(
    session: *mut CSession,
    sampling: *const CSampling,
    seed: *mut u64,
    id: *mut u32,
    error: *mut CError,
) -> CStatus {
    let body = |session: &mut Session<'static>| {
        // SAFETY: as documented.
        let sampling = unsafe { sampling_of(sampling) };
        let kernels = session.kernels();
        let logits = checked(session.last_row_mut(EntryKind::Decode, "logits"))?;
        let bad = Error::new(ErrorKind::Invalid, "logits: not numbers; the weights are damaged");
        // SAFETY: as documented.
        let chosen = unsafe { with_rng(seed, |rng| Ok(choose(kernels, logits, &sampling, rng).ok_or(bad)?)) }?;
        // SAFETY: as documented.
        unsafe { put(id, "id", chosen) }
    };
    // SAFETY: as documented.
    unsafe { with_session(session, error, body) }
}

/// `lora_token_fn` of the header: gets each new token; other than 0 ends the continuation.
type TokenFn = unsafe extern "C" fn(user: *mut c_void, id: u32) -> i32;

/// Continues a prompt.
///
/// # Safety
/// `session`: null or open. `tokens`: null or `count` numbers. `sampling`, `seed`: null, or readable and writable. `each`:
/// null or a function that may be called with `user`. `ending`: null or writable.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lora_generate(
    session: *mut CSession,
    tokens: *const u32,
    count: usize,
    max_new: usize,
    sampling: *const CSampling,
    seed: *mut u64,
    each: Option<TokenFn>,
    user: *mut c_void,
    ending: *mut i32,
    error: *mut CError,
) -> CStatus {
    let body = |session: &mut Session<'static>, ids: Ids<'_>| {
        // SAFETY: as documented.
        let sampling = unsafe { sampling_of(sampling) };
        // SAFETY: as documented.
        let call = |id| each.is_none_or(|each| unsafe { each(user, id) } == 0);
        // SAFETY: as documented.
        let end = unsafe { with_rng(seed, |rng| checked(generate(session, ids, max_new, &sampling, rng, call))) }?;
        let end = match end {
            Ending::Eos => 0,
            Ending::Length => 1,
            Ending::Context => 2,
            Ending::Stopped => 3,
        };
        if ending.is_null() {
            return Ok(());
        }
        // SAFETY: as documented.
        unsafe { put(ending, "ending", end) }
    };
    // SAFETY: as documented.
    unsafe { with_input(session, (tokens, core::ptr::null(), count), error, body) }
}

/// Classifies an input.
///
/// # Safety
/// `session`: null or open. `tokens`, `types`: null or `count` numbers. `best`, `scores`, `score_count`: null or writable.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lora_classify(
    session: *mut CSession,
    tokens: *const u32,
    types: *const u32,
    count: usize,
    best: *mut u32,
    scores: *mut *const f32,
    score_count: *mut usize,
    error: *mut CError,
) -> CStatus {
    let body = |session: &mut Session<'static>, ids: Ids<'_>| {
        let (label, row) = checked(classify(session, ids))?;
        // SAFETY: as documented.
        unsafe {
            put(best, "best", label as u32)?;
            put(scores, "scores", row.as_ptr())?;
            put(score_count, "score_count", row.len())
        }
    };
    // SAFETY: as documented.
    unsafe { with_input(session, (tokens, types, count), error, body) }
}

/// Tags every token of an input.
///
/// # Safety
/// `session`: null or open. `tokens`, `types`: null or `count` numbers. `labels`, `probabilities`: null or writable for `count`
/// things.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lora_tag(
    session: *mut CSession,
    tokens: *const u32,
    types: *const u32,
    count: usize,
    labels: *mut u32,
    probabilities: *mut f32,
    error: *mut CError,
) -> CStatus {
    let body = |session: &mut Session<'static>, ids: Ids<'_>| {
        // SAFETY: as documented.
        let (labels, probabilities) =
            unsafe { (list_mut(labels, count, 0, "labels")?, list_mut(probabilities, count, 0.0, "probabilities")?) };
        checked(tag(session, ids, |i, label, p| (labels[i], probabilities[i]) = (label as u32, p)))
    };
    // SAFETY: as documented.
    unsafe { with_input(session, (tokens, types, count), error, body) }
}

/// Embeds an input.
///
/// # Safety
/// `session`: null or open. `tokens`, `types`: null or `count` numbers. `vector`, `width`: null or writable.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lora_embed(
    session: *mut CSession,
    tokens: *const u32,
    types: *const u32,
    count: usize,
    vector: *mut *const f32,
    width: *mut usize,
    error: *mut CError,
) -> CStatus {
    let body = |session: &mut Session<'static>, ids: Ids<'_>| {
        let found = checked(embed(session, ids))?;
        // SAFETY: as documented.
        unsafe {
            put(vector, "vector", found.as_ptr())?;
            put(width, "width", found.len())
        }
    };
    // SAFETY: as documented.
    unsafe { with_input(session, (tokens, types, count), error, body) }
}
