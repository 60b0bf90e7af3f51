//! The container's other direction: everything before the data.

use super::container::{ALIGNMENT, MAGIC, type_number};
use crate::source::Dtype;

/// A metadata value to write, by the type that GGUF's readers expect of it.
#[derive(Debug, Clone, PartialEq)]
pub enum Item {
    /// `u32`.
    Count(u32),
    /// `f32`.
    Number(f32),
    /// `bool`.
    Flag(bool),
    /// `string`.
    Text(String),
    /// Array of `string`.
    Texts(Vec<String>),
    /// Array of `i32`.
    Integers(Vec<i32>),
    /// Array of `f32`.
    Numbers(Vec<f32>),
    /// Array of `bool`.
    Flags(Vec<bool>),
    /// Array of `i8`, for bytes (as gguf-py writes character maps).
    Bytes(Vec<u8>),
}

/// A tensor to write: its name, type and shape, outermost dimension first.
#[derive(Debug, Clone, PartialEq)]
pub struct Planned {
    /// Name.
    pub name: String,
    /// A type that GGUF has a number for.
    pub dtype: Dtype,
    /// Dimensions, outermost first; the last a multiple of the type's block.
    pub shape: Vec<usize>,
}

impl Planned {
    /// Bytes of its data, without padding.
    pub fn bytes(&self) -> u64 {
        self.shape.iter().product::<usize>() as u64 / self.dtype.block() as u64 * self.dtype.size() as u64
    }
}

/// Bytes that pad data of that length to where the next begins.
pub fn padding(bytes: u64) -> usize {
    (bytes.next_multiple_of(ALIGNMENT) - bytes) as usize
}

/// Magic, metadata and tensor infos, padded to where the data begins. The data follows in the order of `tensors`, each
/// padded by [`padding`].
pub fn header(metadata: &[(String, Item)], tensors: &[Planned]) -> Vec<u8> {
    let mut out = Vec::new();
    out.extend(MAGIC);
    out.extend(3u32.to_le_bytes());
    out.extend((tensors.len() as u64).to_le_bytes());
    out.extend((metadata.len() as u64).to_le_bytes());
    for (key, item) in metadata {
        text(&mut out, key);
        value(&mut out, item);
    }
    let mut offset = 0u64;
    for t in tensors {
        text(&mut out, &t.name);
        out.extend((t.shape.len() as u32).to_le_bytes());
        for d in t.shape.iter().rev() {
            out.extend((*d as u64).to_le_bytes());
        }
        out.extend(type_number(t.dtype).unwrap_or(u32::MAX).to_le_bytes());
        out.extend(offset.to_le_bytes());
        offset = (offset + t.bytes()).next_multiple_of(ALIGNMENT);
    }
    out.resize(out.len() + padding(out.len() as u64), 0);
    out
}

fn text(out: &mut Vec<u8>, text: &str) {
    out.extend((text.len() as u64).to_le_bytes());
    out.extend(text.as_bytes());
}

fn value(out: &mut Vec<u8>, item: &Item) {
    let kind = |out: &mut Vec<u8>, kind: u32| out.extend(kind.to_le_bytes());
    let array = |out: &mut Vec<u8>, of: u32, len: usize| {
        out.extend(9u32.to_le_bytes());
        out.extend(of.to_le_bytes());
        out.extend((len as u64).to_le_bytes());
    };
    match item {
        Item::Count(n) => {
            kind(out, 4);
            out.extend(n.to_le_bytes());
        }
        Item::Number(x) => {
            kind(out, 6);
            out.extend(x.to_le_bytes());
        }
        Item::Flag(b) => {
            kind(out, 7);
            out.push((*b).into());
        }
        Item::Text(t) => {
            kind(out, 8);
            text(out, t);
        }
        Item::Texts(list) => {
            array(out, 8, list.len());
            list.iter().for_each(|t| text(out, t));
        }
        Item::Integers(list) => {
            array(out, 5, list.len());
            out.extend(list.iter().flat_map(|n| n.to_le_bytes()));
        }
        Item::Numbers(list) => {
            array(out, 6, list.len());
            out.extend(list.iter().flat_map(|x| x.to_le_bytes()));
        }
        Item::Flags(list) => {
            array(out, 7, list.len());
            out.extend(list.iter().map(|b| u8::from(*b)));
        }
        Item::Bytes(list) => {
            array(out, 1, list.len());
            out.extend(list);
        }
    }
}
