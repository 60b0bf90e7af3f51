//! Writers of the blob's character tables and maps.

use std::collections::HashMap;

use lora_runtime::tokenizer::layout::{map, table};

use super::charset::CODE_POINTS;

/// A value per code point.
pub(super) struct Table {
    leaves: Vec<u16>,
    width: usize,
}

impl Table {
    /// All zero; leaves of `width` bytes.
    pub(super) fn new(width: usize) -> Self {
        Self { leaves: vec![0; CODE_POINTS as usize], width }
    }

    pub(super) fn fill(&mut self, from: u32, to: u32, value: u16) {
        self.leaves[from as usize..=to as usize].fill(value);
    }

    pub(super) fn set(&mut self, c: u32, value: u16) {
        self.leaves[c as usize] = value;
    }

    /// The table as the blob holds it; equal blocks are stored once.
    pub(super) fn bytes(&self, head: &[u32]) -> Vec<u8> {
        let (stage2, leaves) = share(&self.leaves);
        let (stage1, stage2) = share(&stage2);
        assert_eq!(stage1.len(), table::STAGE1, "one entry per 4096 code points");
        let sizes = [stage2.len() / table::BLOCK, leaves.len() / table::BLOCK, head.len(), 0];
        let mut out: Vec<u8> = Vec::new();
        out.extend(sizes.iter().flat_map(|n| u16::try_from(*n).expect("at most 17408 blocks").to_le_bytes()));
        out.extend(head.iter().flat_map(|w| w.to_le_bytes()));
        out.extend(stage1.iter().chain(&stage2).flat_map(|w| w.to_le_bytes()));
        match self.width {
            1 => out.extend(leaves.iter().map(|l| u8::try_from(*l).expect("leaf of one byte"))),
            _ => out.extend(leaves.iter().flat_map(|l| l.to_le_bytes())),
        }
        out
    }
}

/// Numbers of the distinct blocks of `values`, and those blocks.
fn share(values: &[u16]) -> (Vec<u16>, Vec<u16>) {
    let mut known: HashMap<&[u16], u16> = HashMap::new();
    let (mut index, mut blocks) = (Vec::new(), Vec::new());
    for block in values.chunks(table::BLOCK) {
        let n = *known.entry(block).or_insert_with(|| {
            blocks.extend_from_slice(block);
            (blocks.len() / table::BLOCK - 1) as u16
        });
        index.push(n);
    }
    (index, blocks)
}

/// What becomes of a character.
pub(super) type Mapping = Vec<char>;

/// A character map, from a function that gives `None` for characters that stay. `None` if the replacements are
/// too many for the format.
pub(super) fn map(of: impl Fn(char) -> Option<Mapping>) -> Option<Vec<u8>> {
    let mut pool: Vec<u32> = Vec::new();
    let mut known: HashMap<Vec<u32>, u16> = HashMap::new();
    let mut table = Table::new(2);
    for c in '\0'..=char::MAX {
        let Some(new) = of(c) else { continue };
        let mut words: Vec<u32> = new.iter().map(|n| if *n == c { map::SELF } else { u32::from(*n) }).collect();
        if words == [map::SELF] {
            continue;
        }
        if words.is_empty() {
            words.push(map::NOTHING);
        }
        *words.last_mut().expect("not empty") |= map::LAST;
        let leaf = match known.get(&words) {
            Some(leaf) => *leaf,
            None => {
                let leaf = u16::try_from(pool.len() + 1).ok()?;
                pool.extend(&words);
                known.insert(words, leaf);
                leaf
            }
        };
        table.set(c.into(), leaf);
    }
    u16::try_from(pool.len()).ok()?;
    Some(table.bytes(&pool))
}
