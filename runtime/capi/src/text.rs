//! The tokenizer: text to tokens, tokens to text.

use core::ffi::c_char;

use runtime::tokenizer::{Decoder, EncodeOptions, Token};
use runtime::{Error, ErrorKind, Model};

use crate::model::{CModel, with_model};
use crate::status::{Bounded, CError, CStatus, checked, exclusive, list_mut, put, run, text};

/// `lora_token` of the header.
#[derive(Clone, Copy, Default)]
#[repr(C)]
pub struct CToken {
    id: u32,
    start: u32,
    end: u32,
    word: u32,
    sequence: u8,
    type_id: u8,
    special: u8,
    reserved: u8,
}

/// Words of a token in scratch memory.
const TOKEN_WORDS: usize = size_of::<Token>() / 4;
const _: () = assert!(size_of::<Token>().is_multiple_of(4) && align_of::<Token>() == 4);

/// Scratch words that suffice to encode a text; 0 for a model without a tokenizer.
///
/// # Safety
/// `model`: null or open.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lora_encode_words(model: *const CModel, text_bytes: usize, capacity: usize) -> usize {
    let mut words = 0;
    let body = |model: &Model<'static>| {
        words = checked(model.tokenizer())?.scratch_len(text_bytes) + TOKEN_WORDS * capacity;
        Ok(())
    };
    // SAFETY: as documented.
    unsafe { with_model(model, core::ptr::null_mut(), body) };
    words
}

/// Encodes a text.
///
/// # Safety
/// `model`: null or open. `text_`: null or `len` bytes. `scratch`: null or `words` writable words. `ids`, `types`, `tokens`:
/// null, or writable for `capacity` things. `count`: null or writable.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lora_encode(
    model: *const CModel,
    text_: *const c_char,
    len: usize,
    flags: u32,
    scratch: *mut u32,
    words: usize,
    ids: *mut u32,
    types: *mut u32,
    tokens: *mut CToken,
    capacity: usize,
    count: *mut usize,
    error: *mut CError,
) -> CStatus {
    let body = |model: &Model<'static>| {
        // SAFETY: as documented.
        let (input, count) = unsafe { (text(text_, len, "text")?, exclusive(count, "count")?) };
        *count = 0;
        // SAFETY: as documented.
        let scratch = unsafe { list_mut(scratch, words, 0, "scratch") }?;
        let short = Error::new(ErrorKind::TooSmall, "tokenizer scratch");
        let (room, scratch) = scratch.split_at_mut_checked(TOKEN_WORDS * capacity).ok_or(short)?;
        // SAFETY: words of the caller's memory, aligned for tokens, as many as they need.
        let made = unsafe { list_mut(room.as_mut_ptr().cast::<Token>(), capacity, Token::default(), "scratch") }?;
        let options = EncodeOptions { add_special: flags & 1 == 0, parse_special: flags & 2 == 0 };
        let n = checked(checked(model.tokenizer())?.encode_into(input, options, scratch, made))?;
        for (i, t) in made[..n].iter().enumerate() {
            let all = CToken {
                id: t.id,
                start: t.start,
                end: t.end,
                word: t.word,
                sequence: t.sequence,
                type_id: t.type_id,
                special: t.special.into(),
                reserved: 0,
            };
            // SAFETY: as documented: i < n <= capacity; results that nobody wants have null pointers.
            unsafe {
                if !ids.is_null() {
                    ids.add(i).write(t.id);
                }
                if !types.is_null() {
                    types.add(i).write(t.type_id.into());
                }
                if !tokens.is_null() {
                    tokens.add(i).write(all);
                }
            }
        }
        *count = n;
        Ok(())
    };
    // SAFETY: as documented.
    unsafe { with_model(model, error, body) }
}

/// Bytes of a `lora_decoder`.
const DECODER_BYTES: usize = 1536;
const _: () = assert!(size_of::<Decoder<'static>>() <= DECODER_BYTES && align_of::<Decoder<'static>>() <= 8);

/// A `lora_decoder` of the header.
#[repr(C, align(8))]
pub struct CDecoder([u8; DECODER_BYTES]);

/// Starts a text.
///
/// # Safety
/// `decoder`: null or writable. `model`: null or open, and open as long as the decoder is used.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lora_decoder_init(
    decoder: *mut CDecoder,
    model: *const CModel,
    skip_special: i32,
    error: *mut CError,
) -> CStatus {
    let body = |model: &Model<'static>| {
        let value = checked(model.tokenizer())?.decoder(skip_special != 0);
        // SAFETY: as documented; it fits (asserted above).
        unsafe { put(decoder.cast::<Decoder<'static>>(), "decoder", value) }
    };
    // SAFETY: as documented.
    unsafe { with_model(model, error, body) }
}

/// Takes the next token and writes the text that is now certain.
///
/// # Safety
/// `decoder`: null or begun. `buffer`: null or `size` writable bytes. `len`: null or writable.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lora_decoder_push(
    decoder: *mut CDecoder,
    id: u32,
    buffer: *mut c_char,
    size: usize,
    len: *mut usize,
    error: *mut CError,
) -> CStatus {
    // SAFETY: as documented.
    unsafe { step(decoder, Some(id), buffer, size, len, error) }
}

/// Writes the text that was held back and starts over.
///
/// # Safety
/// As [`lora_decoder_push`].
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lora_decoder_finish(
    decoder: *mut CDecoder,
    buffer: *mut c_char,
    size: usize,
    len: *mut usize,
    error: *mut CError,
) -> CStatus {
    // SAFETY: as documented.
    unsafe { step(decoder, None, buffer, size, len, error) }
}

/// One step of a decoder, taken back where the text does not fit.
///
/// # Safety
/// As [`lora_decoder_push`].
unsafe fn step(
    decoder: *mut CDecoder,
    id: Option<u32>,
    buffer: *mut c_char,
    size: usize,
    len: *mut usize,
    error: *mut CError,
) -> CStatus {
    run(error, || {
        // SAFETY: as documented: a begun decoder holds the runtime's.
        let decoder = unsafe { exclusive(decoder.cast::<Decoder<'static>>(), "decoder") }?;
        // SAFETY: as documented.
        let (memory, len) = unsafe { (list_mut(buffer.cast::<u8>(), size, 0, "buffer")?, exclusive(len, "len")?) };
        let room = memory.len();
        let before = decoder.clone();
        let mut out = Bounded { memory, len: 0 };
        // Writing to memory cannot fail.
        let _ = match id {
            Some(id) => decoder.push(id, &mut out),
            None => decoder.finish(&mut out),
        };
        *len = out.len;
        if out.len > room {
            *decoder = before;
            return Err(Error::new(ErrorKind::TooSmall, "buffer").values(room as u64, out.len as u64).into());
        }
        Ok(())
    })
}
