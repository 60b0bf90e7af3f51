//! Whether a device computes what the packer computed: a few tokens, and a digest of every bit of the outputs.
//!
//! All levels, thread counts and step sizes give the same bits, so one number says it all. A packer runs the model it
//! has just written and keeps the [`Golden`] result in the file's metadata under [`KEY`]; a device runs the same
//! tokens and compares. Nothing here needs an allocator.

use core::fmt;

use crate::error::{Error, ErrorKind, Result};
use crate::format::{EntryKind, NONE};
use crate::kernels::KvType;
use crate::model::Model;
use crate::program::{AdapterNeeds, SessionConfig};
use crate::session::{Observer, Segment, Session, Step};

/// Metadata key of the golden result.
pub const KEY: &str = "selftest";
/// Most tokens of a golden result.
pub const MAX_TOKENS: usize = 64;

/// Tokens, and the digest of what the model makes of them.
///
/// As metadata it is one line of text: the type of the KV cache, sixteen hexadecimal digits, the token ids:
/// `i8 00c0ffee00c0ffee 1,2,3`.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Golden {
    /// Element type of the KV cache.
    pub kv: KvType,
    /// What [`digest`] gives.
    pub digest: u64,
    ids: [u32; MAX_TOKENS],
    len: usize,
}

impl Golden {
    /// A golden result.
    ///
    /// # Errors
    /// [`ErrorKind::Capacity`] unless there are 1 to [`MAX_TOKENS`] ids.
    pub fn new(kv: KvType, digest: u64, ids: &[u32]) -> Result<Self> {
        if ids.is_empty() || ids.len() > MAX_TOKENS {
            return Err(
                Error::new(ErrorKind::Capacity, "selftest: token ids").values(ids.len() as u64, MAX_TOKENS as u64)
            );
        }
        let mut all = [0; MAX_TOKENS];
        all[..ids.len()].copy_from_slice(ids);
        Ok(Self { kv, digest, ids: all, len: ids.len() })
    }

    /// The golden result of a model; `None` where the packer left none.
    ///
    /// # Errors
    /// [`ErrorKind::Invalid`] where it is not of the form that [`Golden`] describes.
    pub fn of(model: &Model<'_>) -> Option<Result<Self>> {
        model.file.meta_value(KEY).map(Self::parse)
    }

    /// Reads the text form.
    ///
    /// # Errors
    /// [`ErrorKind::Invalid`] for anything else.
    pub fn parse(text: &str) -> Result<Self> {
        let bad = || Error::new(ErrorKind::Invalid, "meta: selftest");
        let mut words = text.split(' ');
        let (Some(kv), Some(digest), Some(list), None) = (words.next(), words.next(), words.next(), words.next())
        else {
            return Err(bad());
        };
        let kv = KvType::from_name(kv).ok_or_else(bad)?;
        if digest.len() != 16 {
            return Err(bad());
        }
        let digest = u64::from_str_radix(digest, 16).map_err(|_| bad())?;
        let (mut ids, mut len) = ([0; MAX_TOKENS], 0);
        for id in list.split(',') {
            *ids.get_mut(len).ok_or_else(bad)? = id.parse().map_err(|_| bad())?;
            len += 1;
        }
        Self::new(kv, digest, &ids[..len])
    }

    /// The token ids.
    #[must_use]
    pub fn ids(&self) -> &[u32] {
        &self.ids[..self.len]
    }

    /// What a session needs for this test, reading at most `chunk` tokens a step where the model allows steps.
    #[must_use]
    pub fn config(&self, model: &Model<'_>, chunk: u32) -> SessionConfig {
        config(model, self.kv, self.len as u32, chunk)
    }
}

impl fmt::Display for Golden {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {:016x} ", self.kv.name(), self.digest)?;
        for (i, id) in self.ids().iter().enumerate() {
            write!(f, "{}{id}", if i > 0 { "," } else { "" })?;
        }
        Ok(())
    }
}

impl fmt::Debug for Golden {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Golden({self})")
    }
}

/// What a session needs for [`digest`] over `tokens` tokens.
#[must_use]
pub fn config(model: &Model<'_>, kv: KvType, tokens: u32, chunk: u32) -> SessionConfig {
    let (encode, decode) = (model.entry(EntryKind::Encode), model.entry(EntryKind::Decode));
    let whole = [encode, decode].iter().flatten().any(|e| model.needs_whole_input(e));
    SessionConfig {
        context: if decode.is_ok() { tokens } else { 0 },
        tokens: if whole { tokens } else { chunk.clamp(1, tokens.max(1)) },
        outputs: 1,
        source: if encode.is_ok() && decode.is_ok() { tokens } else { 0 },
        sequences: 1,
        kv,
        adapters: AdapterNeeds::NONE,
    }
}

/// Runs `ids` from the start of sequence 0 and digests the outputs: every token row, and the last output row. An
/// encoder–decoder then decodes from its first decoder token. The session is planned as [`config`] says.
///
/// # Errors
/// As [`Session::run`].
pub fn digest(session: &mut Session<'_>, ids: &[u32]) -> Result<u64> {
    digest_observed(session, ids, &mut |_, _| {})
}

/// [`digest`], with an observer of every op.
///
/// # Errors
/// As [`Session::run`].
pub fn digest_observed(session: &mut Session<'_>, ids: &[u32], observer: Observer<'_>) -> Result<u64> {
    let model = *session.model();
    let mut sum = Fnv::new();
    if model.entry(EntryKind::Encode).is_ok() {
        digest_entry(session, EntryKind::Encode, ids, ids.len(), observer, &mut sum)?;
        if model.entry(EntryKind::Decode).is_err() {
            return Ok(sum.0);
        }
        let start = model.file.info.decoder_start;
        let start = [if start == NONE { 0 } else { start }];
        digest_entry(session, EntryKind::Decode, &start, 1, observer, &mut sum)?;
        return Ok(sum.0);
    }
    let chunk = session.config().tokens as usize;
    digest_entry(session, EntryKind::Decode, ids, chunk, observer, &mut sum)?;
    Ok(sum.0)
}

fn digest_entry(
    session: &mut Session<'_>,
    entry: EntryKind,
    ids: &[u32],
    chunk: usize,
    observer: Observer<'_>,
    sum: &mut Fnv,
) -> Result<()> {
    let model = *session.model();
    let record = model.entry(entry)?;
    let outputs = model.outputs(record);
    let mut past = 0;
    for tokens in ids.chunks(chunk.max(1)) {
        let len = tokens.len() as u32;
        let segments = [Segment { sequence: 0, past, len }];
        let step = Step { tokens, token_types: &[], segments: &segments, outputs: &[len - 1] };
        session.run_observed(entry, &step, observer)?;
        past += len;
        // Row by row over all outputs: the same order however the tokens are cut into steps.
        for row in 0..tokens.len() {
            for output in outputs.iter().filter(|o| model.has_token_rows(record, o)) {
                sum.add(session.output(entry, model.file.str(output.name))?.row(row));
            }
        }
    }
    for output in outputs.iter().filter(|o| !model.has_token_rows(record, o)) {
        sum.add(session.output(entry, model.file.str(output.name))?.row(0));
    }
    Ok(())
}

/// FNV-1a, 64 bits.
struct Fnv(u64);

impl Fnv {
    const fn new() -> Self {
        Self(0xcbf2_9ce4_8422_2325)
    }

    fn add(&mut self, row: &[f32]) {
        for byte in row.iter().flat_map(|x| x.to_bits().to_le_bytes()) {
            self.0 = (self.0 ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::prelude::v1::*;

    use super::*;

    #[test]
    fn the_text_form_leads_back() {
        let golden = Golden::new(KvType::I8, 0xc0_ffee, &[1, 2, 30_000]).unwrap();
        assert_eq!(golden.to_string(), "i8 0000000000c0ffee 1,2,30000");
        assert_eq!(Golden::parse(&golden.to_string()), Ok(golden));
        let full: Vec<u32> = (0..MAX_TOKENS as u32).collect();
        let golden = Golden::new(KvType::F32, u64::MAX, &full).unwrap();
        assert_eq!(Golden::parse(&golden.to_string()), Ok(golden));
        assert!(Golden::new(KvType::I8, 0, &[]).is_err() && Golden::new(KvType::I8, 0, &[0; MAX_TOKENS + 1]).is_err());
    }

    #[test]
    fn other_texts_are_refused() {
        let long = format!("i8 0000000000c0ffee {}", vec!["1"; MAX_TOKENS + 1].join(","));
        let bad = [
            "",
            "i8",
            "i8 0000000000c0ffee",
            "i9 0000000000c0ffee 1",
            "i8 c0ffee 1",
            "i8 000000000000zzzz 1",
            "i8 0000000000c0ffee ",
            "i8 0000000000c0ffee 1,,2",
            "i8 0000000000c0ffee 1 2",
            "i8 0000000000c0ffee -1",
            &long,
        ];
        for text in bad {
            assert!(Golden::parse(text).is_err_and(|e| e.kind == ErrorKind::Invalid), "{text:?}");
        }
    }

    #[test]
    fn the_digest_is_fnv_1a() {
        // Of the bytes 0, 0, 128, 63 (the float 1): computed by hand with the published constants.
        let mut sum = Fnv::new();
        sum.add(&[1.0]);
        let by_hand = [0_u8, 0, 128, 63]
            .iter()
            .fold(14_695_981_039_346_656_037_u64, |h, b| (h ^ u64::from(*b)).wrapping_mul(1_099_511_628_211));
        assert_eq!(sum.0, by_hand);
    }
}
