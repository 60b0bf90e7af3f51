//! As much of zip as `torch.save` writes: stored entries, one disk.
//!
//! Only the central directory is believed, and only after every offset in it was checked against the file.

use std::collections::HashMap;
use std::ops::Range;
use std::path::Path;

use byteorder::{ByteOrder, LittleEndian as LE};

use super::{SourceError, quote};

const END: u32 = 0x0605_4b50;
const CENTRAL: u32 = 0x0201_4b50;
const LOCAL: u32 = 0x0403_4b50;

/// Entry name → its bytes in the file.
pub fn entries(file: &Path, bytes: &[u8]) -> Result<HashMap<String, Range<usize>>, SourceError> {
    let bad = |problem: &str| SourceError::file(file, format!("not a zip archive that can be read: {problem}"));
    let part =
        |at: usize, len: usize| at.checked_add(len).and_then(|end| bytes.get(at..end)).ok_or_else(|| bad("truncated"));

    // The end record is 22 bytes and a comment of up to 65535.
    let first = bytes.len().saturating_sub(22 + 0xffff);
    let at = (first..=bytes.len().saturating_sub(22))
        .rev()
        .find(|&at| bytes.get(at..at + 4).is_some_and(|b| LE::read_u32(b) == END))
        .ok_or_else(|| bad("no end of central directory"))?;
    let end = part(at, 22)?;
    let (count, start) = (LE::read_u16(&end[10..]), LE::read_u32(&end[16..]));
    if count == 0xffff || start == u32::MAX {
        return Err(bad("zip64; convert the file to safetensors"));
    }

    let mut out = HashMap::new();
    let mut at = start as usize;
    for _ in 0..count {
        let central = part(at, 46)?;
        if LE::read_u32(central) != CENTRAL {
            return Err(bad("broken central directory"));
        }
        let (flags, method) = (LE::read_u16(&central[8..]), LE::read_u16(&central[10..]));
        let (packed, size) = (LE::read_u32(&central[20..]), LE::read_u32(&central[24..]));
        let lengths = [28, 30, 32].map(|o| LE::read_u16(&central[o..]) as usize);
        let local_at = LE::read_u32(&central[42..]);
        let name = part(at + 46, lengths[0])?;
        let name = std::str::from_utf8(name).map_err(|_| bad("an entry name is not UTF-8"))?;
        if method != 0 || packed != size || flags & 1 != 0 {
            return Err(bad(&format!("entry {} is compressed or encrypted", quote(name))));
        }
        if size == u32::MAX || local_at == u32::MAX {
            return Err(bad("zip64; convert the file to safetensors"));
        }
        let local = part(local_at as usize, 30)?;
        if LE::read_u32(local) != LOCAL {
            return Err(bad(&format!("entry {} has no local header", quote(name))));
        }
        let data = local_at as usize + 30 + LE::read_u16(&local[26..]) as usize + LE::read_u16(&local[28..]) as usize;
        part(data, size as usize)?;
        if out.insert(name.to_owned(), data..data + size as usize).is_some() {
            return Err(bad(&format!("entry {} is there twice", quote(name))));
        }
        at += 46 + lengths.iter().sum::<usize>();
    }
    Ok(out)
}
