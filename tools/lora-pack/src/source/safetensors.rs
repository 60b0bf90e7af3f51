//! The safetensors container: eight bytes of header length, a JSON header, the data.
//!
//! Stricter than the reference reader where a guess would be needed: names may not repeat, and every error says which
//! file and which tensor. What the format promises is checked here once: offsets ascend without holes or overlaps, the
//! last tensor ends at the last byte of the file, and every byte count follows from shape and dtype.

use std::collections::{BTreeMap, HashSet};
use std::fmt;
use std::ops::Range;
use std::path::Path;

use serde::de::{DeserializeSeed, Deserializer, Error as _, IgnoredAny, MapAccess, SeqAccess, Visitor};

use super::{Dtype, SourceError, quote};

/// The format allows 100 MB; a header of this size already describes some 300,000 tensors.
const MAX_HEADER: u64 = 32 << 20;
/// More dimensions than any weight has.
const MAX_DIMS: usize = 32;

/// A tensor's place in a file that was checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Name as stored.
    pub name: String,
    /// Element type.
    pub dtype: Dtype,
    /// Dimensions, outermost first; empty for a scalar.
    pub shape: Vec<usize>,
    /// Its bytes in the file.
    pub range: Range<usize>,
}

/// A checked header.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Header {
    /// The tensors in the header's order.
    pub tensors: Vec<Entry>,
    /// `__metadata__`, if any.
    pub metadata: BTreeMap<String, String>,
}

/// Parses and checks the header of a whole file in memory.
pub fn parse(file: &Path, bytes: &[u8]) -> Result<Header, SourceError> {
    let bad = |problem: String| SourceError::file(file, problem);
    let Some((length, rest)) = bytes.split_first_chunk::<8>() else {
        return Err(bad(format!("too short: {} bytes cannot hold the header length", bytes.len())));
    };
    let length = u64::from_le_bytes(*length);
    if length > MAX_HEADER {
        return Err(bad(format!("header length {length} is above the limit of {MAX_HEADER} bytes")));
    }
    // Fits: MAX_HEADER is far below any usize we build for.
    let length = length as usize;
    if length > rest.len() {
        return Err(bad(format!("truncated: header length {length}, but only {} bytes follow", rest.len())));
    }
    let (header, data) = rest.split_at(length);
    let header = std::str::from_utf8(header).map_err(|e| bad(format!("header is not UTF-8: {e}")))?;
    if !header.starts_with('{') {
        return Err(bad("header is not a JSON object (it has to start with '{')".into()));
    }
    let mut json = serde_json::Deserializer::from_str(header);
    let raw = HeaderSeed
        .deserialize(&mut json)
        .and_then(|raw| json.end().map(|()| raw))
        .map_err(|e| bad(format!("invalid JSON header: {e}")))?;

    let tensors = check(file, raw.tensors, data.len(), 8 + length)?;
    Ok(Header { tensors, metadata: raw.metadata })
}

/// Byte counts, then the order of the data: contiguous from 0 to the end of the file.
fn check(file: &Path, raw: Vec<RawEntry>, data_len: usize, data_start: usize) -> Result<Vec<Entry>, SourceError> {
    let mut entries = Vec::with_capacity(raw.len());
    for RawEntry { name, dtype, shape, offsets: [begin, end] } in raw {
        let bad = |problem: String| SourceError::tensor(file, name.as_str(), problem);
        let dtype = Dtype::from_name(&dtype).ok_or_else(|| bad(format!("unknown dtype {}", quote(&dtype))))?;
        if begin > end {
            return Err(bad(format!("data_offsets begin at {begin}, after their end {end}")));
        }
        let size = shape
            .iter()
            .try_fold(dtype.size() as u64, |n, &d| n.checked_mul(d))
            .ok_or_else(|| bad(format!("the size of shape {shape:?} overflows 64 bits")))?;
        if end > data_len as u64 {
            return Err(bad(format!(
                "data_offsets [{begin}, {end}] reach past the end of the file ({data_len} bytes of data); truncated?"
            )));
        }
        if size != end - begin {
            return Err(bad(format!(
                "shape {shape:?} of {} needs {size} bytes, its offsets span {}",
                dtype.name(),
                end - begin
            )));
        }
        // `end` is at most data_len, so both fit. A dimension only exceeds usize beside a zero one.
        let shape = shape.iter().map(|&d| usize::try_from(d)).collect::<Result<_, _>>();
        let shape = shape.map_err(|_| bad("a dimension overflows this machine's size".into()))?;
        entries.push(Entry { range: begin as usize..end as usize, dtype, shape, name });
    }

    let mut order: Vec<&Entry> = entries.iter().collect();
    order.sort_by_key(|e| (e.range.start, e.range.end));
    let mut at = 0;
    for e in order {
        let bad = |what: &str| {
            let problem = format!("{what}: its data_offsets begin at {}, the data before ends at {at}", e.range.start);
            Err(SourceError::tensor(file, e.name.as_str(), problem))
        };
        match e.range.start.cmp(&at) {
            std::cmp::Ordering::Less => return bad("overlaps another tensor"),
            std::cmp::Ordering::Greater => return bad("hole in the data"),
            std::cmp::Ordering::Equal => at = e.range.end,
        }
    }
    if at != data_len {
        return Err(SourceError::file(file, format!("{} trailing bytes belong to no tensor", data_len - at)));
    }
    for e in &mut entries {
        e.range = data_start + e.range.start..data_start + e.range.end;
    }
    Ok(entries)
}

struct RawEntry {
    name: String,
    dtype: String,
    shape: Vec<u64>,
    offsets: [u64; 2],
}

#[derive(Default)]
struct RawHeader {
    tensors: Vec<RawEntry>,
    metadata: BTreeMap<String, String>,
}

/// Reads the header into typed entries directly: a `serde_json::Value` of a hostile header could take fifty times its
/// size, and would swallow repeated names.
struct HeaderSeed;

impl<'de> DeserializeSeed<'de> for HeaderSeed {
    type Value = RawHeader;
    fn deserialize<D: Deserializer<'de>>(self, d: D) -> Result<RawHeader, D::Error> {
        d.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for HeaderSeed {
    type Value = RawHeader;
    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("an object of tensors")
    }
    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<RawHeader, A::Error> {
        let mut out = RawHeader::default();
        let mut seen = HashSet::new();
        while let Some(name) = map.next_key::<String>()? {
            if name == "__metadata__" {
                if !out.metadata.is_empty() {
                    return Err(A::Error::custom("duplicate __metadata__"));
                }
                out.metadata = map.next_value().map_err(|e| A::Error::custom(format_args!("__metadata__: {e}")))?;
                continue;
            }
            let entry = map
                .next_value_seed(EntrySeed(&name))
                .map_err(|e| A::Error::custom(format_args!("tensor {}: {e}", quote(&name))))?;
            if !seen.insert(name) {
                return Err(A::Error::custom(format_args!("duplicate tensor {}", quote(&entry.name))));
            }
            out.tensors.push(entry);
        }
        Ok(out)
    }
}

struct EntrySeed<'a>(&'a str);

impl<'de> DeserializeSeed<'de> for EntrySeed<'_> {
    type Value = RawEntry;
    fn deserialize<D: Deserializer<'de>>(self, d: D) -> Result<RawEntry, D::Error> {
        d.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for EntrySeed<'_> {
    type Value = RawEntry;
    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("an object with dtype, shape and data_offsets")
    }
    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<RawEntry, A::Error> {
        let (mut dtype, mut shape, mut offsets) = (None::<String>, None::<Vec<u64>>, None::<Vec<u64>>);
        while let Some(key) = map.next_key::<String>()? {
            let twice = match key.as_str() {
                "dtype" => dtype.replace(map.next_value()?).is_some(),
                "shape" => shape.replace(map.next_value_seed(Integers("shape", MAX_DIMS))?).is_some(),
                "data_offsets" => offsets.replace(map.next_value_seed(Integers("data_offsets", 2))?).is_some(),
                _ => {
                    map.next_value::<IgnoredAny>()?;
                    false
                }
            };
            if twice {
                return Err(A::Error::custom(format_args!("duplicate field {}", quote(&key))));
            }
        }
        let offsets = offsets.ok_or_else(|| A::Error::custom("data_offsets are missing"))?;
        Ok(RawEntry {
            name: self.0.to_owned(),
            dtype: dtype.ok_or_else(|| A::Error::custom("dtype is missing"))?,
            shape: shape.ok_or_else(|| A::Error::custom("shape is missing"))?,
            offsets: offsets.try_into().map_err(|_| A::Error::custom("data_offsets are not two numbers"))?,
        })
    }
}

/// A list of at most so many unsigned integers.
struct Integers(&'static str, usize);

impl<'de> DeserializeSeed<'de> for Integers {
    type Value = Vec<u64>;
    fn deserialize<D: Deserializer<'de>>(self, d: D) -> Result<Vec<u64>, D::Error> {
        d.deserialize_seq(self)
    }
}

impl<'de> Visitor<'de> for Integers {
    type Value = Vec<u64>;
    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "{} as a list of unsigned integers", self.0)
    }
    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Vec<u64>, A::Error> {
        let mut out = Vec::new();
        while let Some(n) = seq.next_element().map_err(|e| A::Error::custom(format_args!("invalid {}: {e}", self.0)))? {
            if out.len() == self.1 {
                return Err(A::Error::custom(format_args!("{} has more than {} entries", self.0, self.1)));
            }
            out.push(n);
        }
        Ok(out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(header: &str, data: usize) -> Vec<u8> {
        let mut out = (header.len() as u64).to_le_bytes().to_vec();
        out.extend(header.as_bytes());
        out.extend(std::iter::repeat_n(0, data));
        out
    }

    fn message(bytes: &[u8]) -> String {
        parse(Path::new("m.safetensors"), bytes).unwrap_err().to_string()
    }

    #[test]
    fn reads_tensors_in_any_data_order() {
        let header = r#"{"b":{"dtype":"F16","shape":[2],"data_offsets":[4,8]},"__metadata__":{"format":"pt"},
            "a":{"dtype":"F32","shape":[],"data_offsets":[0,4]},"z":{"dtype":"F32","shape":[0,9],"data_offsets":[8,8]}} "#;
        let h = parse(Path::new("m"), &file(header, 8)).unwrap();
        assert_eq!(h.metadata["format"], "pt");
        let start = 8 + header.len();
        let got: Vec<_> = h.tensors.iter().map(|t| (t.name.as_str(), t.shape.as_slice(), t.range.clone())).collect();
        assert_eq!(got[0], ("b", &[2][..], start + 4..start + 8));
        assert_eq!(got[1], ("a", &[][..], start..start + 4));
        assert_eq!(got[2], ("z", &[0, 9][..], start + 8..start + 8));
    }

    #[test]
    fn refuses_what_the_format_forbids() {
        let one = |dtype: &str, shape: &str, offsets: &str| {
            format!(r#"{{"t":{{"dtype":"{dtype}","shape":{shape},"data_offsets":{offsets}}}}}"#)
        };
        for (header, data, word) in [
            (one("F32", "[2]", "[0,8]"), 9, "trailing"),
            (one("F32", "[2]", "[4,12]"), 12, "hole"),
            (one("F32", "[3]", "[0,8]"), 8, "needs 12 bytes"),
            (one("F32", "[2]", "[0,8]"), 7, "past the end"),
            (one("F32", "[2]", "[8,0]"), 8, "after their end"),
            (one("F9", "[2]", "[0,8]"), 8, "unknown dtype"),
            (one("F32", "[-2]", "[0,8]"), 8, "invalid shape"),
            (one("F32", "[2.5]", "[0,8]"), 8, "invalid shape"),
            (one("F32", "[8589934592,8589934592]", "[0,8]"), 8, "overflows"),
            (one("F32", "[2]", "[0,8,9]"), 8, "more than 2"),
            (one("F32", "[2]", "[0]"), 8, "not two numbers"),
            (r#"{"t":{"dtype":"F32","shape":[2]}}"#.into(), 8, "data_offsets are missing"),
            (r#"[1]"#.into(), 0, "object"),
            (r#"{"t":1}"#.into(), 0, "invalid type"),
        ] {
            let m = message(&file(&header, data));
            assert!(m.contains("m.safetensors") && m.contains(word), "{header}: {m}");
        }
    }

    #[test]
    fn refuses_repeats_and_overlaps() {
        let t =
            |name: &str, offsets: &str| format!(r#""{name}":{{"dtype":"U8","shape":[4],"data_offsets":{offsets}}}"#);
        let m = message(&file(&format!("{{{},{}}}", t("x", "[0,4]"), t("x", "[4,8]")), 8));
        assert!(m.contains("duplicate tensor 'x'"), "{m}");
        let m = message(&file(&format!("{{{},{}}}", t("x", "[0,4]"), t("y", "[2,6]")), 8));
        assert!(m.contains("'y'") && m.contains("overlaps"), "{m}");
    }

    #[test]
    fn refuses_impossible_lengths() {
        for bytes in [&[][..], &[0; 7], &[0xff; 8], &[9, 0, 0, 0, 0, 0, 0, 0, b'{']] {
            let m = message(bytes);
            assert!(m.contains("header length"), "{m}");
        }
        assert!(message(&[0; 8]).contains("header"));
        assert!(message(&file(&"[".repeat(200_000), 0)).contains("header"));
        let deep = format!(r#"{{"t":{{"x":{}"#, "[".repeat(200_000));
        assert!(message(&file(&deep, 0)).contains("JSON header"));
    }
}
