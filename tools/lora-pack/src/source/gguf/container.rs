//! The GGUF container: magic, version, counts, metadata, tensor infos, then the data, aligned.
//!
//! After ggml's `docs/gguf.md`, versions 2 and 3, little-endian. Stricter than the format where a guess would be needed:
//! keys and tensor names may not repeat, and the data must be laid out as ggml's own loader wants it, one tensor after
//! the other, padded to the alignment. No count from the file decides how much memory is taken: everything counted takes
//! bytes of the file, and runs out with them.

use std::collections::HashMap;
use std::ops::Range;
use std::path::Path;

use crate::source::{Dtype, SourceError, quote};

/// The first four bytes of every GGUF file.
pub const MAGIC: [u8; 4] = *b"GGUF";
/// Where `general.alignment` does not say otherwise.
pub const ALIGNMENT: u64 = 32;
/// ggml's own limits are 64 bytes for tensor names and 2¹⁶ − 1 for keys; nobody needs more than this for either.
const MAX_NAME: usize = 256;

/// ggml's numbers of the types that can be read.
const TYPES: [(u32, Dtype); 16] = [
    (0, Dtype::F32),
    (1, Dtype::F16),
    (2, Dtype::Q4_0),
    (3, Dtype::Q4_1),
    (6, Dtype::Q5_0),
    (7, Dtype::Q5_1),
    (8, Dtype::Q8_0),
    (10, Dtype::Q2K),
    (11, Dtype::Q3K),
    (12, Dtype::Q4K),
    (13, Dtype::Q5K),
    (14, Dtype::Q6K),
    (20, Dtype::IQ4NL),
    (26, Dtype::I32),
    (28, Dtype::F64),
    (30, Dtype::BF16),
];

/// The number of a type in the file.
pub fn type_number(dtype: Dtype) -> Option<u32> {
    TYPES.iter().find(|(_, d)| *d == dtype).map(|(n, _)| *n)
}

/// A metadata value.
#[derive(Debug, Clone, PartialEq)]
pub enum Value<'a> {
    /// Any unsigned integer type.
    Unsigned(u64),
    /// Any signed integer type.
    Signed(i64),
    /// Either float type.
    Float(f64),
    /// A truth value.
    Bool(bool),
    /// Bytes that should be UTF-8.
    Text(&'a [u8]),
    /// Numbers of one kind.
    Numbers(Numbers<'a>),
    /// Texts.
    Texts(Vec<&'a [u8]>),
}

/// An array of numbers, still as stored.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Numbers<'a> {
    kind: u32,
    bytes: &'a [u8],
}

/// The numbers of the kinds of scalars, and their sizes.
mod kind {
    pub const BOOL: u32 = 7;
    pub const STRING: u32 = 8;
    pub const ARRAY: u32 = 9;
    pub fn size(kind: u32) -> Option<usize> {
        match kind {
            0 | 1 | BOOL => Some(1),
            2 | 3 => Some(2),
            4..=6 => Some(4),
            10..=12 => Some(8),
            _ => None,
        }
    }
}

impl Numbers<'_> {
    /// The numbers.
    pub fn iter(&self) -> impl Iterator<Item = f64> + '_ {
        let size = kind::size(self.kind).unwrap_or(1);
        self.bytes.chunks_exact(size).map(|b| match scalar(self.kind, b) {
            Value::Unsigned(n) => n as f64,
            Value::Signed(n) => n as f64,
            Value::Float(x) => x,
            Value::Bool(b) => f64::from(u8::from(b)),
            Value::Text(_) | Value::Numbers(_) | Value::Texts(_) => 0.0,
        })
    }

    /// How many.
    pub fn count(&self) -> usize {
        self.bytes.len() / kind::size(self.kind).unwrap_or(1)
    }
}

/// A scalar of a kind that has a size; `b` has that size.
fn scalar(kind: u32, b: &[u8]) -> Value<'static> {
    let mut wide = [0; 8];
    wide[..b.len()].copy_from_slice(b);
    let n = u64::from_le_bytes(wide);
    let shift = 64 - 8 * b.len() as u32;
    match kind {
        1 | 3 | 5 | 11 => Value::Signed((n << shift) as i64 >> shift),
        6 => Value::Float(f32::from_bits(n as u32).into()),
        12 => Value::Float(f64::from_bits(n)),
        kind::BOOL => Value::Bool(n != 0),
        _ => Value::Unsigned(n),
    }
}

/// A tensor's place in a file that was checked.
#[derive(Debug, Clone, PartialEq)]
pub struct Entry {
    /// Name as stored.
    pub name: String,
    /// Element or block type.
    pub dtype: Dtype,
    /// Dimensions, outermost first (the file has them innermost first).
    pub shape: Vec<usize>,
    /// Its bytes in the file.
    pub range: Range<usize>,
}

/// A checked file.
#[derive(Debug)]
pub struct Header<'a> {
    /// The metadata.
    pub metadata: HashMap<&'a str, Value<'a>>,
    /// The tensors in the file's order.
    pub tensors: Vec<Entry>,
}

/// What is left of the header.
struct Reader<'a> {
    file: &'a Path,
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    fn bad<T>(&self, problem: impl Into<String>) -> Result<T, SourceError> {
        Err(SourceError::file(self.file, problem))
    }

    fn take(&mut self, n: u64, what: &str) -> Result<&'a [u8], SourceError> {
        let left = &self.bytes[self.at..];
        match usize::try_from(n).ok().and_then(|n| left.get(..n)) {
            Some(taken) => {
                self.at += taken.len();
                Ok(taken)
            }
            None => self.bad(format!("truncated in {what}: {n} bytes at {} of {}", self.at, self.bytes.len())),
        }
    }

    fn u32(&mut self, what: &str) -> Result<u32, SourceError> {
        let b = self.take(4, what)?;
        Ok(u32::from_le_bytes([b[0], b[1], b[2], b[3]]))
    }

    fn u64(&mut self, what: &str) -> Result<u64, SourceError> {
        let b = self.take(8, what)?;
        Ok(u64::from_le_bytes([b[0], b[1], b[2], b[3], b[4], b[5], b[6], b[7]]))
    }

    fn bytes(&mut self, what: &str) -> Result<&'a [u8], SourceError> {
        let n = self.u64(what)?;
        self.take(n, what)
    }

    fn name(&mut self, what: &str) -> Result<&'a str, SourceError> {
        let bytes = self.bytes(what)?;
        match std::str::from_utf8(bytes) {
            Ok("") => self.bad(format!("{what} is empty")),
            Ok(name) if name.len() <= MAX_NAME => Ok(name),
            Ok(_) => self.bad(format!("{what} of {} bytes: at most {MAX_NAME} are allowed", bytes.len())),
            Err(_) => self.bad(format!("{what} is not UTF-8")),
        }
    }

    fn value(&mut self, key: &str) -> Result<Value<'a>, SourceError> {
        let kind = self.u32(key)?;
        match kind {
            kind::STRING => Ok(Value::Text(self.bytes(key)?)),
            kind::ARRAY => {
                let (kind, n) = (self.u32(key)?, self.u64(key)?);
                if kind == kind::STRING {
                    let mut texts = Vec::new();
                    for _ in 0..n {
                        texts.push(self.bytes(key)?);
                    }
                    return Ok(Value::Texts(texts));
                }
                let Some(size) = kind::size(kind) else {
                    let what = if kind == kind::ARRAY { "an array of arrays".into() } else { format!("type {kind}") };
                    return Err(SourceError::field(self.file, key, format!("{what} is not supported")));
                };
                let Some(length) = n.checked_mul(size as u64) else {
                    return Err(SourceError::field(self.file, key, format!("its length {n} overflows")));
                };
                Ok(Value::Numbers(Numbers { kind, bytes: self.take(length, key)? }))
            }
            _ => match kind::size(kind) {
                Some(size) => Ok(scalar(kind, self.take(size as u64, key)?)),
                None => Err(SourceError::field(self.file, key, format!("unknown value type {kind}"))),
            },
        }
    }
}

/// Parses and checks a whole file in memory.
pub fn parse<'a>(file: &'a Path, bytes: &'a [u8]) -> Result<Header<'a>, SourceError> {
    let mut r = Reader { file, bytes, at: 0 };
    if r.take(4, "the magic")? != MAGIC {
        return r.bad("not a GGUF file: it does not begin with GGUF");
    }
    match r.u32("the version")? {
        2 | 3 => {}
        1 => return r.bad("GGUF version 1 is not supported; versions 2 and 3 are"),
        v if matches!(v.swap_bytes(), 1..=3) => return r.bad("a big-endian GGUF file is not supported"),
        v => return r.bad(format!("GGUF version {v} is not supported; versions 2 and 3 are")),
    }
    let (tensors, pairs) = (r.u64("the tensor count")?, r.u64("the metadata count")?);
    let mut metadata = HashMap::new();
    for i in 0..pairs {
        let key = r.name(&format!("the name of metadata {i} of {pairs}"))?;
        let value = r.value(key)?;
        if metadata.insert(key, value).is_some() {
            return Err(SourceError::field(file, key, "duplicate key"));
        }
    }
    let alignment = match metadata.get("general.alignment") {
        None => ALIGNMENT,
        Some(Value::Unsigned(n)) if n.is_power_of_two() && (8..=1 << 20).contains(n) => *n,
        Some(other) => {
            let problem = format!("{other:?} is not a power of two from 8 to 1048576");
            return Err(SourceError::field(file, "general.alignment", problem));
        }
    };
    let mut infos = Vec::new();
    for i in 0..tensors {
        infos.push(info(&mut r, &format!("the info of tensor {i} of {tensors}"))?);
    }
    let start = (r.at as u64).next_multiple_of(alignment);
    let tensors = place(file, infos, bytes.len() as u64, start, alignment)?;
    Ok(Header { metadata, tensors })
}

struct Info {
    name: String,
    dtype: Dtype,
    shape: Vec<usize>,
    bytes: u64,
    offset: u64,
}

fn info(r: &mut Reader<'_>, what: &str) -> Result<Info, SourceError> {
    let file = r.file;
    let name = r.name(what)?.to_owned();
    let bad = |problem: String| SourceError::tensor(file, name.as_str(), problem);
    let dims = r.u32(what)?;
    if dims > 4 {
        return Err(bad(format!("{dims} dimensions; GGUF has at most 4")));
    }
    let mut shape = Vec::new();
    for _ in 0..dims {
        let d = r.u64(what)?;
        shape.push(usize::try_from(d).ok().filter(|d| *d > 0).ok_or_else(|| bad(format!("a dimension is {d}")))?);
    }
    let number = r.u32(what)?;
    let offset = r.u64(what)?;
    let dtype = TYPES.iter().find(|(n, _)| *n == number).map(|(_, d)| *d).ok_or_else(|| {
        let known: Vec<&str> = TYPES.iter().map(|(_, d)| d.name()).collect();
        bad(format!("ggml type {number} is not supported; supported are {}", known.join(", ")))
    })?;
    let row = shape.first().copied().unwrap_or(1);
    if !row.is_multiple_of(dtype.block()) {
        return Err(bad(format!("rows of {row} elements are no whole blocks of {} ({})", dtype.block(), dtype.name())));
    }
    let elements = shape.iter().try_fold(1u64, |n, d| n.checked_mul(*d as u64));
    let bytes = elements.and_then(|n| (n / dtype.block() as u64).checked_mul(dtype.size() as u64));
    let bytes = bytes.ok_or_else(|| bad(format!("the size of shape {shape:?} overflows 64 bits")))?;
    shape.reverse();
    Ok(Info { name, dtype, shape, bytes, offset })
}

/// Checks that the data lies one after the other, padded, and ends within the file.
fn place(file: &Path, infos: Vec<Info>, end: u64, start: u64, alignment: u64) -> Result<Vec<Entry>, SourceError> {
    let mut order: Vec<&Info> = infos.iter().collect();
    order.sort_by_key(|i| (i.offset, i.bytes));
    let mut at = 0u64;
    for i in &order {
        let bad = |problem: String| Err(SourceError::tensor(file, i.name.as_str(), problem));
        if i.offset != at {
            return bad(format!("its data begins at {}, where {at} is expected after the tensor before", i.offset));
        }
        let last = start.checked_add(i.offset).and_then(|s| s.checked_add(i.bytes));
        if last.is_none_or(|last| last > end) {
            let problem = format!("its {} bytes reach past the end of the file ({end} bytes); truncated?", i.bytes);
            return bad(problem);
        }
        // In range, so far from overflow.
        at = (i.offset + i.bytes).next_multiple_of(alignment);
    }
    if end > start.saturating_add(at) {
        let problem = format!("{} trailing bytes belong to no tensor", end - start - at);
        return Err(SourceError::file(file, problem));
    }
    let mut seen = std::collections::HashSet::new();
    if let Some(twice) = infos.iter().find(|i| !seen.insert(i.name.as_str())) {
        return Err(SourceError::tensor(file, twice.name.as_str(), "duplicate tensor"));
    }
    let entry = |i: Info| {
        let from = (start + i.offset) as usize;
        Entry { name: i.name, dtype: i.dtype, shape: i.shape, range: from..from + i.bytes as usize }
    };
    Ok(infos.into_iter().map(entry).collect())
}

/// Typed access to the metadata; every error names the key.
#[derive(Clone, Copy)]
pub struct Metadata<'a> {
    /// The file, for messages.
    pub file: &'a Path,
    /// What it holds.
    pub values: &'a HashMap<&'a str, Value<'a>>,
}

impl<'a> Metadata<'a> {
    fn bad<T>(&self, key: &str, problem: impl Into<String>) -> Result<T, SourceError> {
        Err(SourceError::field(self.file, key, problem))
    }

    /// The value of a key.
    pub fn get(&self, key: &str) -> Option<&'a Value<'a>> {
        self.values.get(key)
    }

    /// A text.
    pub fn text(&self, key: &str) -> Result<Option<&'a str>, SourceError> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Text(bytes)) => match std::str::from_utf8(bytes) {
                Ok(text) => Ok(Some(text)),
                Err(_) => self.bad(key, "not UTF-8"),
            },
            Some(_) => self.bad(key, "not a string"),
        }
    }

    /// A whole number from 0 to 2³² − 1.
    pub fn count(&self, key: &str) -> Result<Option<u32>, SourceError> {
        let n = match self.get(key) {
            None => return Ok(None),
            Some(Value::Unsigned(n)) => u32::try_from(*n).ok(),
            Some(Value::Signed(n)) => u32::try_from(*n).ok(),
            Some(_) => None,
        };
        n.map_or_else(|| self.bad(key, "not a whole number from 0 to 4294967295"), |n| Ok(Some(n)))
    }

    /// A finite number.
    pub fn number(&self, key: &str) -> Result<Option<f64>, SourceError> {
        let x = match self.get(key) {
            None => return Ok(None),
            Some(Value::Float(x)) => Some(*x).filter(|x| x.is_finite()),
            Some(Value::Unsigned(n)) => Some(*n as f64),
            Some(Value::Signed(n)) => Some(*n as f64),
            Some(_) => None,
        };
        x.map_or_else(|| self.bad(key, "not a finite number"), |x| Ok(Some(x)))
    }

    /// A truth value.
    pub fn flag(&self, key: &str) -> Result<Option<bool>, SourceError> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Bool(b)) => Ok(Some(*b)),
            Some(_) => self.bad(key, "not true or false"),
        }
    }

    /// An array of numbers.
    pub fn numbers(&self, key: &str) -> Result<Option<Numbers<'a>>, SourceError> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Numbers(n)) => Ok(Some(*n)),
            Some(_) => self.bad(key, "not an array of numbers"),
        }
    }

    /// An array of texts; each must be UTF-8.
    pub fn texts(&self, key: &str) -> Result<Option<Vec<&'a str>>, SourceError> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Texts(texts)) => {
                let one = |(i, bytes): (usize, &&'a [u8])| {
                    std::str::from_utf8(bytes)
                        .map_err(|_| SourceError::field(self.file, format!("{key}[{i}]"), "not UTF-8"))
                };
                texts.iter().enumerate().map(one).collect::<Result<_, _>>().map(Some)
            }
            Some(_) => self.bad(key, "not an array of strings"),
        }
    }

    /// The error for a value that this program cannot represent.
    pub fn refuse(&self, key: &str, problem: impl Into<String>) -> SourceError {
        SourceError::field(self.file, key, problem)
    }

    /// The error for a key that must be there.
    pub fn missing(&self, key: &str) -> SourceError {
        SourceError::field(self.file, key, format!("missing key {}", quote(key)))
    }
}
