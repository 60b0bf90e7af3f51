//! Little-endian views that read in place, whatever the alignment.

/// A table of `u32`.
#[derive(Clone, Copy)]
pub(crate) struct Words<'a>(pub &'a [[u8; 4]]);

impl<'a> Words<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> Self {
        Self(bytes.as_chunks().0)
    }
    pub(crate) fn len(self) -> usize {
        self.0.len()
    }
    /// Entry `i`, 0 outside the table.
    #[inline]
    pub(crate) fn at(self, i: usize) -> u32 {
        match self.0.get(i) {
            Some(b) => u32::from_le_bytes(*b),
            None => 0,
        }
    }
    pub(crate) fn iter(self) -> impl Iterator<Item = u32> + 'a {
        self.0.iter().map(|b| u32::from_le_bytes(*b))
    }
    /// Record `i` of `N` words.
    pub(crate) fn record<const N: usize>(self, i: usize) -> Option<[u32; N]> {
        let words = self.0.get(i * N..i * N + N)?;
        let mut out = [0; N];
        for (o, w) in out.iter_mut().zip(words) {
            *o = u32::from_le_bytes(*w);
        }
        Some(out)
    }
}

/// A table of `u16`.
#[derive(Clone, Copy)]
pub(crate) struct Halves<'a>(pub &'a [[u8; 2]]);

impl<'a> Halves<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> Self {
        Self(bytes.as_chunks().0)
    }
    pub(crate) fn len(self) -> usize {
        self.0.len()
    }
    /// Entry `i`, 0 outside the table.
    #[inline]
    pub(crate) fn at(self, i: usize) -> u16 {
        match self.0.get(i) {
            Some(b) => u16::from_le_bytes(*b),
            None => 0,
        }
    }
    pub(crate) fn max(self) -> u16 {
        self.0.iter().map(|b| u16::from_le_bytes(*b)).fold(0, u16::max)
    }
}
