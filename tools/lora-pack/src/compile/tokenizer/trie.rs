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
    // The root's unit looks like a child with the label 0 of base 0.
    builder.taken_bases[0] = true;
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
        let base = builder.place(&children, value)?;
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
    ///
    /// A unit is told to be a child by its low byte alone, so no two nodes share a base, and the base of which a stored
    /// value would look like a child is kept from all nodes.
    fn place(&mut self, children: &[(u8, usize, usize)], value: Option<u32>) -> Option<usize> {
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
            let mistaken = value.map(|v| base ^ 256 ^ (v & 255) as usize);
            if self.units[slot] == FREE
                && !self.taken_bases[base]
                && children.iter().all(|c| free(usize::from(c.0)))
                && mistaken.is_none_or(|m| free(256) && !self.taken_bases[m])
            {
                self.taken_bases[base] = true;
                if let Some(mistaken) = mistaken {
                    self.taken_bases[mistaken] = true;
                }
                // Reserved until filled in: any value but FREE.
                for child in children {
                    self.units[base ^ usize::from(child.0)] = 0;
                }
                if value.is_some() {
                    self.units[base ^ 256] = 0;
                }
                return Some(base);
            }
            slot += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The value of `text`, by the definition of the layout.
    fn get(units: &[u32], text: &[u8]) -> Option<u32> {
        let mut unit = units[0];
        for &b in text {
            if unit & LEAF != 0 {
                return None;
            }
            unit = *units.get((unit >> SHIFT) as usize ^ usize::from(b))?;
            if unit as u8 != b || unit == FREE {
                return None;
            }
        }
        match unit {
            _ if unit & LEAF != 0 => Some(unit >> SHIFT),
            _ if unit & HAS_VALUE != 0 => Some(units[(unit >> SHIFT) as usize ^ 256]),
            _ => None,
        }
    }

    #[test]
    fn holds_its_strings_and_no_others() {
        let mut state = 1u64;
        let mut below = |n: u64| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) % n
        };
        for count in [1, 2, 30, 300, 3000] {
            // Few letters and values of few low bytes: values then often look like the labels of children.
            let mut strings: Vec<Vec<u8>> =
                (0..count).map(|_| (0..below(5)).map(|_| b'a' + below(8) as u8).collect()).collect();
            strings.sort();
            strings.dedup();
            let entries: Vec<(&[u8], u32)> =
                strings.iter().map(|s| (s.as_slice(), (below(9) * 256 + 97 + below(8)) as u32)).collect();
            let bytes = build(&entries).unwrap();
            let units: Vec<u32> = bytes.as_chunks().0.iter().map(|b| u32::from_le_bytes(*b)).collect();
            for length in 0..5u32 {
                for n in 0..9u64.pow(length) {
                    // Nine letters, the ninth in no string, and the zero byte in place of it at times.
                    let text: Vec<u8> = (0..length).map(|i| b'a' + (n / 9u64.pow(i) % 9) as u8).collect();
                    for text in [text.clone(), text.iter().map(|b| if *b == b'i' { 0 } else { *b }).collect()] {
                        let want = entries.binary_search_by(|(s, _)| (*s).cmp(&text)).ok().map(|i| entries[i].1);
                        assert_eq!(get(&units, &text), want, "{text:?} among {count}");
                    }
                }
            }
        }
    }
}
