//! Sets of characters, and their reduction to kinds.

use std::collections::BTreeMap;

use super::table::Table;
use lora_runtime::tokenizer::layout;

/// One more than the last code point.
pub(super) const CODE_POINTS: u32 = 0x11_0000;

/// A set of code points: sorted, disjoint, non-adjacent inclusive ranges.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct CharSet(Vec<(u32, u32)>);

impl CharSet {
    pub(super) fn new(mut ranges: Vec<(u32, u32)>) -> Self {
        ranges.sort_unstable();
        let mut out: Vec<(u32, u32)> = Vec::new();
        for (a, b) in ranges {
            match out.last_mut() {
                Some(last) if a <= last.1.saturating_add(1) => last.1 = last.1.max(b),
                _ => out.push((a, b)),
            }
        }
        Self(out)
    }

    pub(super) fn single(c: char) -> Self {
        Self(vec![(c.into(), c.into())])
    }

    /// The characters for which `is` holds.
    pub(super) fn from_fn(is: impl Fn(char) -> bool) -> Self {
        Self::new(('\0'..=char::MAX).filter(|c| is(*c)).map(|c| (c.into(), c.into())).collect())
    }

    pub(super) fn ranges(&self) -> &[(u32, u32)] {
        &self.0
    }

    /// The only member.
    pub(super) fn only(&self) -> Option<char> {
        match self.0[..] {
            [(a, b)] if a == b => char::from_u32(a),
            _ => None,
        }
    }

    pub(super) fn union(&self, other: &Self) -> Self {
        Self::new(self.0.iter().chain(&other.0).copied().collect())
    }

    pub(super) fn complement(&self) -> Self {
        let mut out = Vec::new();
        let mut from = 0;
        for &(a, b) in &self.0 {
            if a > from {
                out.push((from, a - 1));
            }
            from = b + 1;
        }
        if from < CODE_POINTS {
            out.push((from, CODE_POINTS - 1));
        }
        Self(out)
    }

    pub(super) fn intersects(&self, other: &Self) -> bool {
        let (mut i, mut j) = (0, 0);
        while let (Some(x), Some(y)) = (self.0.get(i), other.0.get(j)) {
            if x.1 < y.0 {
                i += 1;
            } else if y.1 < x.0 {
                j += 1;
            } else {
                return true;
            }
        }
        false
    }
}

/// The classes that a tokenizer asks about. Characters that are in the same classes are of one kind.
#[derive(Default)]
pub(super) struct Classes {
    sets: Vec<CharSet>,
}

/// Classes reduced to kinds.
pub(super) struct Kinds {
    /// Members of every kind.
    pub members: Vec<CharSet>,
    /// For the blob: kind of every character.
    pub table: Vec<u8>,
    /// For the blob: kinds of every class.
    pub sets: Vec<u8>,
}

impl Classes {
    /// Number of a class, which may be known already.
    pub(super) fn add(&mut self, set: CharSet) -> u32 {
        let known = self.sets.iter().position(|s| *s == set);
        known.unwrap_or_else(|| {
            self.sets.push(set);
            self.sets.len() - 1
        }) as u32
    }

    /// Kinds, unless there are too many to tell apart.
    pub(super) fn kinds(&self) -> Option<Kinds> {
        // Where membership changes, which class changes.
        let mut events: BTreeMap<u32, Vec<usize>> = BTreeMap::new();
        for (i, set) in self.sets.iter().enumerate() {
            for &(a, b) in set.ranges() {
                events.entry(a).or_default().push(i);
                events.entry(b + 1).or_default().push(i);
            }
        }
        events.entry(0).or_default();
        events.entry(CODE_POINTS).or_default();
        let mut inside = vec![false; self.sets.len()];
        // Of each kind: which classes its members are in, and their ranges.
        type Kind = (Vec<bool>, Vec<(u32, u32)>);
        let mut kinds: Vec<Kind> = Vec::new();
        let mut leaves = Table::new(1);
        let places: Vec<u32> = events.keys().copied().collect();
        for pair in places.windows(2) {
            for i in &events[&pair[0]] {
                inside[*i] = !inside[*i];
            }
            let kind = kinds.iter().position(|k| k.0 == inside).unwrap_or_else(|| {
                kinds.push((inside.clone(), Vec::new()));
                kinds.len() - 1
            });
            kinds[kind].1.push((pair[0], pair[1] - 1));
            leaves.fill(pair[0], pair[1] - 1, kind as u16);
        }
        if kinds.len() > layout::table::MAX_KINDS {
            return None;
        }
        let class_kinds = |i: usize| {
            let bits = kinds.iter().enumerate().filter(|(_, k)| k.0[i]).fold(0u64, |bits, (n, _)| bits | 1 << n);
            bits.to_le_bytes()
        };
        Some(Kinds {
            table: if self.sets.is_empty() { Vec::new() } else { leaves.bytes(&[]) },
            sets: (0..self.sets.len()).flat_map(class_kinds).collect(),
            members: kinds.into_iter().map(|k| CharSet::new(k.1)).collect(),
        })
    }
}
