//! Double-array tries, walked in place.

use super::layout::trie::{FREE, HAS_VALUE, LEAF, SHIFT};
use super::words::Words;

/// A trie over byte strings (layout: [`super::layout::trie`]).
#[derive(Clone, Copy)]
pub(crate) struct Trie<'a>(pub Words<'a>);

/// A place in a trie: the unit reached.
#[derive(Clone, Copy)]
pub(crate) struct Node(u32);

impl Trie<'_> {
    pub(crate) fn is_empty(self) -> bool {
        self.0.len() == 0
    }

    pub(crate) fn root(self) -> Node {
        Node(self.0.at(0))
    }

    /// The child of `node` for `byte`.
    #[inline]
    pub(crate) fn child(self, node: Node, byte: u8) -> Option<Node> {
        if node.0 & LEAF != 0 {
            return None;
        }
        let index = (node.0 >> SHIFT) ^ u32::from(byte);
        let unit = u32::from_le_bytes(*self.0.0.get(index as usize)?);
        (unit as u8 == byte && unit != FREE).then_some(Node(unit))
    }

    /// The value of the string that leads to `node`.
    #[inline]
    pub(crate) fn value(self, node: Node) -> Option<u32> {
        if node.0 & LEAF != 0 {
            return Some(node.0 >> SHIFT);
        }
        if node.0 & HAS_VALUE == 0 {
            return None;
        }
        Some(self.0.at(((node.0 >> SHIFT) ^ 256) as usize))
    }

    /// The node reached from `node` by all of `bytes`.
    pub(crate) fn walk(self, mut node: Node, bytes: &[u8]) -> Option<Node> {
        for &b in bytes {
            node = self.child(node, b)?;
        }
        Some(node)
    }

    /// Value of exactly `bytes`.
    pub(crate) fn get(self, bytes: &[u8]) -> Option<u32> {
        self.value(self.walk(self.root(), bytes)?)
    }

    /// Longest prefix of `bytes` in the trie: its length and value.
    pub(crate) fn longest(self, bytes: &[u8]) -> Option<(usize, u32)> {
        let mut node = self.root();
        let mut best = None;
        for (i, &b) in bytes.iter().enumerate() {
            let Some(next) = self.child(node, b) else { break };
            node = next;
            if let Some(v) = self.value(node) {
                best = Some((i + 1, v));
            }
        }
        best
    }
}
