//! Building double-array tries.

use lora_runtime::tokenizer::layout::trie::{FREE, HAS_VALUE, LEAF, MAX_UNITS, SHIFT};

/// A trie as the blob holds it, for distinct strings in ascending order. `None` if it would be too large.
pub(super) fn build(entries: &[(&[u8], u32)]) -> Option<Vec<u8>> {
    if entries.is_empty() {
        return Some(Vec::new());
    }
    assert!(entries.is_sorted_by(|a, b| a.0 < b.0), "strings of a trie are distinct and in order");
    let mut builder = Builder { units: Vec::new(), taken_bases: Vec::new(), search_from: 0 };
    builder.grow();
    builder.units[0] = 0;
    // Depth first, so that the units of one word lie close together.
    let mut work = vec![(0usize, 0usize, entries.len(), 0usize)];
    while let Some((unit, lo, hi, depth)) = work.pop() {
        let value = (entries[lo].0.len() == depth).then_some(entries[lo].1);
        let first = lo + usize::from(value.is_some());
        if first == hi && unit != 0 {
            builder.units[unit] |= LEAF | value? << SHIFT;
            continue;
        }
        let mut children: Vec<(u8, usize, usize)> = Vec::new();
        for (i, entry) in entries[first..hi].iter().enumerate() {
            let label = entry.0[depth];
            match children.last_mut() {
                Some(child) if child.0 == label => child.2 = first + i + 1,
                _ => children.push((label, first + i, first + i + 1)),
            }
        }
        let base = builder.place(&children, value.is_some())?;
        builder.units[unit] |= (base as u32) << SHIFT;
        if let Some(value) = value {
            builder.units[unit] |= HAS_VALUE;
            builder.units[base ^ 256] = value;
        }
        for &(label, from, to) in children.iter().rev() {
            builder.units[base ^ usize::from(label)] = u32::from(label);
            work.push((base ^ usize::from(label), from, to, depth + 1));
        }
    }
    while builder.units.last() == Some(&FREE) {
        builder.units.pop();
    }
    Some(builder.units.iter().flat_map(|u| u.to_le_bytes()).collect())
}

struct Builder {
    units: Vec<u32>,
    taken_bases: Vec<bool>,
    search_from: usize,
}

impl Builder {
    /// Adds two blocks: bases and values of one block of 512 stay inside it.
    fn grow(&mut self) {
        self.units.resize(self.units.len() + 512, FREE);
        self.taken_bases.resize(self.units.len(), false);
    }

    /// A base at which all children (and the value) fit, now reserved.
    fn place(&mut self, children: &[(u8, usize, usize)], value: bool) -> Option<usize> {
        // Dense blocks far behind are not searched again.
        const WINDOW: usize = 16 * 512;
        let anchor = match children.first() {
            Some(child) => usize::from(child.0),
            None => 256,
        };
        self.search_from = self.search_from.max(self.units.len().saturating_sub(WINDOW));
        while self.units.get(self.search_from).is_some_and(|u| *u != FREE) {
            self.search_from += 1;
        }
        let mut slot = self.search_from;
        loop {
            if slot == self.units.len() {
                if self.units.len() >= MAX_UNITS {
                    return None;
                }
                self.grow();
            }
            let base = slot ^ anchor;
            let free = |offset: usize| self.units[base ^ offset] == FREE && (base ^ offset) != 0;
            if self.units[slot] == FREE
                && !self.taken_bases[base]
                && children.iter().all(|c| free(usize::from(c.0)))
                && (!value || free(256))
            {
                self.taken_bases[base] = true;
                // Reserved until filled in: any value but FREE.
                for child in children {
                    self.units[base ^ usize::from(child.0)] = 0;
                }
                if value {
                    self.units[base ^ 256] = 0;
                }
                return Some(base);
            }
            slot += 1;
        }
    }
}
