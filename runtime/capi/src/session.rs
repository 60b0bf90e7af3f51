//! Sessions in the caller's memory: a small head, then exactly the planned arena.

use core::ffi::{c_char, c_void};

use runtime::format::EntryKind;
use runtime::kernels::Kernels;
use runtime::selftest::{self, Golden};
use runtime::session::workers::Inline;
use runtime::tasks::{Ids, feed};
use runtime::{Error, ErrorKind, Model, Segment, Session, Set, Step};

use crate::adapter::CSet;
use crate::model::{CConfig, CModel, Handle, config_of, with_model};
use crate::status::{CError, CStatus, Checked, checked, exclusive, list, put, reference, run, text};

/// What lies at the start of a session's memory.
struct Head {
    session: Session<'static>,
    /// What it was opened with.
    model: &'static Handle,
    #[cfg(feature = "std")]
    #[expect(dead_code, reason = "kept for its end: it stops the threads")]
    pool: Option<Box<runtime::threads::Pool>>,
}

/// Bytes before the arena.
const HEAD_BYTES: usize = size_of::<Head>().next_multiple_of(64);

/// A `lora_session` of the header: only ever behind a pointer.
pub struct CSession(Head);

impl CSession {
    /// The model that the session was opened with.
    pub const fn opened(&self) -> Model<'static> {
        self.0.model.model
    }

    /// The session.
    pub const fn get(&mut self) -> &mut Session<'static> {
        &mut self.0.session
    }
}

/// Runs a function's body with a session.
///
/// # Safety
/// `session`: null, or open and used by one thread at a time.
pub unsafe fn with_session(
    session: *mut CSession,
    error: *mut CError,
    body: impl FnOnce(&mut Session<'static>) -> Checked,
) -> CStatus {
    // SAFETY: the caller's.
    run(error, || body(unsafe { exclusive(session, "session") }?.get()))
}

/// Tokens of the caller, their types (null: all zero), and how many they are.
pub type Given = (*const u32, *const u32, usize);

/// Runs a function's body with a session and its input.
///
/// # Safety
/// As [`with_session`]; `tokens`, `types`: null or `count` numbers.
pub unsafe fn with_input(
    session: *mut CSession,
    input: Given,
    error: *mut CError,
    body: impl FnOnce(&mut Session<'static>, Ids<'_>) -> Checked,
) -> CStatus {
    // SAFETY: the caller's.
    unsafe { with_session(session, error, |session| body(session, ids_of(input)?)) }
}

/// The entry of that number.
pub fn entry_of(entry: u32) -> Checked<EntryKind> {
    let known = [EntryKind::Decode, EntryKind::Encode].into_iter().find(|e| *e as u32 == entry);
    Ok(known.ok_or(Error::new(ErrorKind::Invalid, "entry").values(entry.into(), 0))?)
}

/// The exact bytes of a session.
///
/// # Safety
/// `model`: null or open. `config`: null or readable. `bytes`: null or writable.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lora_session_bytes(
    model: *const CModel,
    config: *const CConfig,
    bytes: *mut usize,
    error: *mut CError,
) -> CStatus {
    let plan = |model: &Model<'static>| {
        // SAFETY: as documented.
        let config = config_of(unsafe { reference(config, "config") }?)?;
        let arena = model.plan(&config).arena_bytes;
        let too_large = Error::new(ErrorKind::Capacity, "session: larger than the address space").values(arena, 0);
        let all = usize::try_from(arena).ok().and_then(|a| a.checked_add(HEAD_BYTES)).ok_or(too_large)?;
        // SAFETY: as documented.
        unsafe { put(bytes, "bytes", all) }
    };
    // SAFETY: as documented.
    unsafe { with_model(model, error, plan) }
}

/// Opens a session.
///
/// # Safety
/// `model`: null or open. `config`: null or readable. `memory`: null or `bytes` writable bytes that the session has alone
/// until it is closed. `session`: null or writable.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lora_session_open(
    model: *const CModel,
    config: *const CConfig,
    threads: u32,
    memory: *mut c_void,
    bytes: usize,
    session: *mut *mut CSession,
    error: *mut CError,
) -> CStatus {
    run(error, || {
        // SAFETY: as documented.
        let (handle, config) = unsafe { (CModel::handle(model)?, config_of(reference(config, "config")?)?) };
        let model = handle.model;
        // SAFETY: as documented.
        let place = unsafe { exclusive(session, "session") }?;
        *place = core::ptr::null_mut();
        let all = model.plan(&config).arena_bytes.saturating_add(HEAD_BYTES as u64);
        // SAFETY: only the address is looked at.
        unsafe { reference(memory.cast::<u8>(), "memory") }?;
        if (bytes as u64) < all {
            return Err(Error::new(ErrorKind::TooSmall, "memory").values(bytes as u64, all).into());
        }
        if !(memory as usize).is_multiple_of(64) {
            return Err(Error::new(ErrorKind::Misaligned, "memory").values((memory as usize % 64) as u64, 64).into());
        }
        let base = memory.cast::<u8>();
        // SAFETY: `bytes` bytes are the session's alone, and the arena lies behind the head; it is zeroed by `Session::new`,
        // and bytes of any value are bytes.
        let arena: &'static mut [u8] = unsafe {
            let len = (all as usize) - HEAD_BYTES;
            base.add(HEAD_BYTES).write_bytes(0, len);
            core::slice::from_raw_parts_mut(base.add(HEAD_BYTES), len)
        };
        #[cfg(feature = "std")]
        let pool = if threads > 1 {
            let refused = Error::new(ErrorKind::Io, "threads: the system starts no more").values(threads.into(), 0);
            Some(Box::new(runtime::threads::Pool::new(threads as usize).map_err(|_| refused)?))
        } else {
            None
        };
        #[cfg(not(feature = "std"))]
        if threads > 1 {
            let one = Error::new(ErrorKind::Unsupported, "threads: this build has one").values(threads.into(), 1);
            return Err(one.into());
        }
        #[cfg(feature = "std")]
        let workers: &'static dyn runtime::session::workers::Workers = match &pool {
            // SAFETY: the pool is boxed, so it stays where it is, and the head drops it after the session.
            Some(pool) => unsafe { &*core::ptr::from_ref(&**pool) },
            None => &Inline,
        };
        #[cfg(not(feature = "std"))]
        let workers = &Inline;
        let opened = checked(Session::new(model, config, Kernels::best(), workers, arena))?;
        let head = Head {
            session: opened,
            model: handle,
            #[cfg(feature = "std")]
            pool,
        };
        let at = base.cast::<CSession>();
        // SAFETY: aligned (checked) and large enough (checked) for the head.
        unsafe { at.write(CSession(head)) };
        *place = at;
        Ok(())
    })
}

/// Ends a session; its memory is the caller's again.
///
/// # Safety
/// `session`: null, or open and not used any more.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lora_session_close(session: *mut CSession) {
    if !session.is_null() {
        // SAFETY: as documented.
        unsafe { session.drop_in_place() };
    }
}

/// Reads tokens behind the first `past` positions of sequence 0.
///
/// # Safety
/// `session`: null or open. `tokens`: null or `count` numbers. `types`: null (all zero) or `count` numbers.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lora_session_feed(
    session: *mut CSession,
    entry: u32,
    tokens: *const u32,
    types: *const u32,
    count: usize,
    past: u32,
    error: *mut CError,
) -> CStatus {
    let body =
        |session: &mut Session<'static>, ids: Ids<'_>| checked(feed(session, entry_of(entry)?, ids, past)).map(|_| ());
    // SAFETY: as documented.
    unsafe { with_input(session, (tokens, types, count), error, body) }
}

/// Tokens and, where there are any, their types.
///
/// # Safety
/// As [`list`]; null `types` are all zero.
unsafe fn ids_of<'a>((tokens, types, count): Given) -> Checked<Ids<'a>> {
    // SAFETY: the caller's.
    let tokens = unsafe { list(tokens, count, "tokens") }?;
    // SAFETY: the caller's.
    let types = if types.is_null() { &[] } else { unsafe { list(types, count, "types") }? };
    Ok(Ids { tokens, types })
}

/// `lora_segment` of the header.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct CSegment {
    sequence: u32,
    past: u32,
    len: u32,
}

/// Sequences that one call of [`lora_session_run`] takes.
const MAX_SEGMENTS: usize = 64;

/// `lora_step` of the header.
#[repr(C)]
pub struct CStep {
    tokens: *const u32,
    types: *const u32,
    count: usize,
    segments: *const CSegment,
    sets: *const CSet,
    segment_count: usize,
    outputs: *const u32,
    output_count: usize,
}

/// Runs one step over tokens of several sequences.
///
/// # Safety
/// `session`: null or open. `step`: null or readable; its lists: null or as many things as their count says, each set as
/// [`CSet::set`] says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lora_session_run(
    session: *mut CSession,
    entry: u32,
    step: *const CStep,
    error: *mut CError,
) -> CStatus {
    let body = |session: &mut Session<'static>| {
        // SAFETY: as documented.
        let given = unsafe { reference(step, "step") }?;
        let entry = entry_of(entry)?;
        // SAFETY: as documented.
        let (ids, from, outputs) = unsafe {
            (
                ids_of((given.tokens, given.types, given.count))?,
                list(given.segments, given.segment_count, "step.segments")?,
                list(given.outputs, given.output_count, "step.outputs")?,
            )
        };
        let mut segments = [Segment { sequence: 0, past: 0, len: 0 }; MAX_SEGMENTS];
        let too_many = Error::new(ErrorKind::Capacity, "step.segments").values(from.len() as u64, MAX_SEGMENTS as u64);
        let segments = segments.get_mut(..from.len()).ok_or(too_many)?;
        for (to, from) in segments.iter_mut().zip(from) {
            *to = Segment { sequence: from.sequence, past: from.past, len: from.len };
        }
        let step = Step { tokens: ids.tokens, token_types: ids.types, segments, outputs };
        if given.sets.is_null() {
            return checked(session.run(entry, &step));
        }
        // SAFETY: as documented.
        let from = unsafe { list(given.sets, given.segment_count, "step.sets") }?;
        let mut sets = [Set::BASE; MAX_SEGMENTS];
        let sets = &mut sets[..from.len()];
        for (to, from) in sets.iter_mut().zip(from) {
            // SAFETY: as documented.
            *to = unsafe { from.set() }?;
        }
        checked(session.run_with(entry, &step, sets))
    };
    // SAFETY: as documented.
    unsafe { with_session(session, error, body) }
}

/// `lora_rows` of the header.
#[repr(C)]
pub struct CRows {
    data: *const f32,
    rows: usize,
    width: usize,
    stride: usize,
}

/// A named output of the step that ran last.
///
/// # Safety
/// `session`: null or open. `name`: null or a string that ends with a zero. `rows`: null or writable.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lora_session_output(
    session: *mut CSession,
    entry: u32,
    name: *const c_char,
    rows: *mut CRows,
    error: *mut CError,
) -> CStatus {
    let body = |session: &mut Session<'static>| {
        // SAFETY: as documented: `reference` refuses null, and the string ends with a zero.
        let name = unsafe {
            reference(name, "name")?;
            let bytes = core::ffi::CStr::from_ptr(name).to_bytes();
            text(bytes.as_ptr().cast(), bytes.len(), "name")?
        };
        let found = checked(session.output(entry_of(entry)?, name))?;
        let first = if found.is_empty() { &[][..] } else { found.row(0) };
        let value = CRows {
            data: first.as_ptr(),
            rows: found.len(),
            width: first.len(),
            stride: found.stride() / size_of::<f32>(),
        };
        // SAFETY: as documented.
        unsafe { put(rows, "rows", value) }
    };
    // SAFETY: as documented.
    unsafe { with_session(session, error, body) }
}

/// What [`lora_selftest`] needs.
///
/// # Safety
/// `model`: null or open. `config`: null or writable.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lora_config_selftest(
    model: *const CModel,
    step: u32,
    config: *mut CConfig,
    error: *mut CError,
) -> CStatus {
    // SAFETY: as documented.
    unsafe { with_model(model, error, |model| put(config, "config", golden(model)?.config(model, step).into())) }
}

/// Whether this processor computes what the packer's computed.
///
/// # Safety
/// `session`: null or open. `digest`: null or writable.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lora_selftest(session: *mut CSession, digest: *mut u64, error: *mut CError) -> CStatus {
    let body = |session: &mut Session<'static>| {
        let golden = golden(session.model())?;
        let seen = checked(selftest::digest(session, golden.ids()))?;
        // SAFETY: as documented.
        if let Some(place) = unsafe { digest.as_mut() } {
            *place = seen;
        }
        let differs = Error::new(ErrorKind::Mismatch, "selftest: other bits than the packer's");
        if seen == golden.digest { Ok(()) } else { Err(differs.values(seen, golden.digest).into()) }
    };
    // SAFETY: as documented.
    unsafe { with_session(session, error, body) }
}

/// The file's golden result.
fn golden(model: &Model<'_>) -> Checked<Golden> {
    let none = Error::new(ErrorKind::Unsupported, "selftest: the file holds no golden result");
    checked(Golden::of(model).unwrap_or(Err(none)))
}
