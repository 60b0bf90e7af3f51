//! Statuses, messages, and the checks that every function makes with its pointers.

use core::ffi::c_char;
use core::fmt::Write;

use runtime::{Error, ErrorKind, Result};

/// `lora_status` of the header.
pub type CStatus = i32;

/// `lora_error` of the header.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct CError {
    status: CStatus,
    reserved: i32,
    index: u64,
    found: u64,
    expected: u64,
    what: *const c_char,
    what_len: usize,
}

/// Statuses that are not the runtime's.
const NULL: CStatus = 100;
#[cfg(feature = "std")]
const INTERNAL: CStatus = 101;

/// The number of a class of errors; the header's `LORA_…`.
fn status_of(kind: ErrorKind) -> CStatus {
    match kind {
        ErrorKind::NotLpk => 1,
        ErrorKind::TooNew => 2,
        ErrorKind::Truncated => 3,
        ErrorKind::OutOfBounds => 4,
        ErrorKind::Misaligned => 5,
        ErrorKind::Invalid => 6,
        ErrorKind::Hash => 7,
        ErrorKind::TooSmall => 8,
        ErrorKind::Capacity => 9,
        ErrorKind::Mismatch => 10,
        ErrorKind::Unsupported => 11,
        ErrorKind::Io => 12,
        _ => 99,
    }
}

/// What a function refuses before the runtime sees it.
pub enum Refusal {
    /// A pointer that must not be null is.
    Null(&'static str),
    /// The runtime's word.
    Runtime(Error),
}

impl From<Error> for Refusal {
    fn from(error: Error) -> Self {
        Self::Runtime(error)
    }
}

/// Result of a function's body.
pub type Checked<T = ()> = core::result::Result<T, Refusal>;

/// Runs a function's body: tells `error` (which may be null) what was wrong and returns the status.
pub fn run(error: *mut CError, body: impl FnOnce() -> Checked) -> CStatus {
    #[cfg(feature = "std")]
    let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(body));
    #[cfg(not(feature = "std"))]
    let result: core::result::Result<_, ()> = Ok(body());
    let (status, what, place) = match result {
        Ok(Ok(())) => (0, "", None),
        Ok(Err(Refusal::Null(what))) => (NULL, what, None),
        Ok(Err(Refusal::Runtime(e))) => (status_of(e.kind), e.what, Some(e)),
        #[cfg(feature = "std")]
        Err(_) => (INTERNAL, "a defect of the runtime: please report it", None),
        #[cfg(not(feature = "std"))]
        Err(()) => (0, "", None),
    };
    // SAFETY: null, or the caller's lora_error.
    if let Some(error) = unsafe { error.as_mut() } {
        *error = CError {
            status,
            reserved: 0,
            index: place.map_or(u64::MAX, |e| e.index),
            found: place.map_or(0, |e| e.found),
            expected: place.map_or(0, |e| e.expected),
            what: what.as_ptr().cast(),
            what_len: what.len(),
        };
    }
    status
}

/// The thing that a pointer to it names.
///
/// # Safety
/// Null, or valid for reads during `'a`.
pub unsafe fn reference<'a, T>(pointer: *const T, name: &'static str) -> Checked<&'a T> {
    // SAFETY: the caller's.
    unsafe { pointer.as_ref() }.ok_or(Refusal::Null(name))
}

/// As [`reference`], for writing.
///
/// # Safety
/// Null, or valid for reads and writes during `'a` and named by nothing else.
pub unsafe fn exclusive<'a, T>(pointer: *mut T, name: &'static str) -> Checked<&'a mut T> {
    // SAFETY: the caller's.
    unsafe { pointer.as_mut() }.ok_or(Refusal::Null(name))
}

/// Writes a result.
///
/// # Safety
/// Null, or valid for writes.
pub unsafe fn put<T>(pointer: *mut T, name: &'static str, value: T) -> Checked {
    if pointer.is_null() {
        return Err(Refusal::Null(name));
    }
    // SAFETY: the caller's; what lay there is plain C data.
    unsafe { pointer.write(value) };
    Ok(())
}

/// `len` things; null is an empty list if there are none.
///
/// # Safety
/// Null, or valid for reads of `len` things during `'a`.
pub unsafe fn list<'a, T>(pointer: *const T, len: usize, name: &'static str) -> Checked<&'a [T]> {
    if len == 0 {
        return Ok(&[]);
    }
    if pointer.is_null() {
        return Err(Refusal::Null(name));
    }
    // SAFETY: the caller's.
    Ok(unsafe { core::slice::from_raw_parts(pointer, len) })
}

/// As [`list`], for writing; the memory may be uninitialised: it is filled with `empty` first.
///
/// # Safety
/// Null, or valid for writes of `len` things during `'a` and named by nothing else.
pub unsafe fn list_mut<'a, T: Copy>(pointer: *mut T, len: usize, empty: T, name: &'static str) -> Checked<&'a mut [T]> {
    if len == 0 {
        return Ok(&mut []);
    }
    if pointer.is_null() {
        return Err(Refusal::Null(name));
    }
    for i in 0..len {
        // SAFETY: the caller's.
        unsafe { pointer.add(i).write(empty) };
    }
    // SAFETY: the caller's; initialised just now.
    Ok(unsafe { core::slice::from_raw_parts_mut(pointer, len) })
}

/// Text of `len` bytes.
///
/// # Safety
/// As [`list`].
pub unsafe fn text<'a>(pointer: *const c_char, len: usize, name: &'static str) -> Checked<&'a str> {
    // SAFETY: the caller's.
    let bytes = unsafe { list(pointer.cast::<u8>(), len, name) }?;
    core::str::from_utf8(bytes).map_err(|e| {
        let error = Error::new(ErrorKind::Invalid, "text: not UTF-8");
        error.values(e.valid_up_to() as u64, len as u64).into()
    })
}

/// Writes into a caller's memory as far as it goes, and counts everything.
pub struct Bounded<'b> {
    pub memory: &'b mut [u8],
    pub len: usize,
}

impl Write for Bounded<'_> {
    fn write_str(&mut self, text: &str) -> core::fmt::Result {
        for byte in text.bytes() {
            if let Some(place) = self.memory.get_mut(self.len) {
                *place = byte;
            }
            self.len += 1;
        }
        Ok(())
    }
}

/// Writes an error in words, ended by a zero, as far as `size` goes; returns the length of the whole text.
///
/// # Safety
/// `error`: null or a `lora_error` that a function filled in. `buffer`: null or `size` writable bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lora_error_message(error: *const CError, buffer: *mut c_char, size: usize) -> usize {
    let mut len = 0;
    run(core::ptr::null_mut(), || {
        // SAFETY: as documented; a room of one byte less leaves place for the final zero.
        let memory = unsafe { list_mut(buffer.cast::<u8>(), size, 0, "buffer") }?;
        let room = memory.len().saturating_sub(1);
        let mut out = Bounded { memory: &mut memory[..room], len: 0 };
        // SAFETY: as documented.
        let e = unsafe { reference(error, "error") }?;
        // SAFETY: `what` was set by `run` and names static text.
        let what = unsafe { text(e.what, e.what_len, "error") }?;
        let kind = KINDS.iter().find(|k| status_of(**k) == e.status);
        let _ = match (e.status, kind) {
            (0, _) => out.write_str("no error"),
            (NULL, _) => write!(out, "null pointer: {what}"),
            (_, Some(kind)) => {
                let error = Error { kind: *kind, what: "", index: e.index, found: e.found, expected: e.expected };
                write_error(&mut out, &error, what)
            }
            _ => out.write_str(what),
        };
        len = out.len;
        Ok(())
    });
    len
}

/// The runtime's own words, with `what` from the C side.
fn write_error(out: &mut impl Write, error: &Error, what: &'static str) -> core::fmt::Result {
    write!(out, "{}", Error { what, ..*error })
}

const KINDS: [ErrorKind; 12] = [
    ErrorKind::NotLpk,
    ErrorKind::TooNew,
    ErrorKind::Truncated,
    ErrorKind::OutOfBounds,
    ErrorKind::Misaligned,
    ErrorKind::Invalid,
    ErrorKind::Hash,
    ErrorKind::TooSmall,
    ErrorKind::Capacity,
    ErrorKind::Mismatch,
    ErrorKind::Unsupported,
    ErrorKind::Io,
];

/// Shortens `Result<T>` of the runtime to what `?` wants here.
pub fn checked<T>(result: Result<T>) -> Checked<T> {
    result.map_err(Refusal::Runtime)
}
