//! How a stored tensor differs from the checkpoint tensor that it stands for: GGUF files keep some in another order.
//!
//! After the tensor conversions of llama.cpp's `convert_hf_to_gguf.py`. Everything is undone when a tensor is read, so that
//! the rest of the program, adapters included, sees the checkpoint's own rows; export does the same in reverse.

/// What was done to a tensor when it was stored.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Arrangement {
    /// Nothing.
    Same,
    /// Rows of every head in pairs, for rotary embeddings of neighbours (Llama): row `2j + s` of a head was row
    /// `s · head_dim / 2 + j`.
    Pairs {
        /// Rows of a head.
        head_dim: usize,
    },
    /// The rows of a fused query-key-value matrix as all queries, all keys, all values; they were one kv head after the
    /// other: its queries, its key, its value (GPT-NeoX, BLOOM, Falcon).
    Blocks {
        /// Query heads of a kv head.
        queries: usize,
        /// Rows of a head.
        head_dim: usize,
    },
    /// Rows and columns exchanged (GPT-2).
    Transposed,
    /// One was added to every element (Gemma's norms).
    PlusOne,
    /// The only row of a matrix, as a vector (the gate of a shared expert).
    Row,
}

impl Arrangement {
    /// Of a matrix of `rows` rows, the stored row that is the checkpoint's row `r`; `r` itself where rows stay.
    pub fn stored_row(self, r: usize, rows: usize) -> usize {
        match self {
            Self::Same | Self::Transposed | Self::PlusOne | Self::Row => r,
            Self::Pairs { head_dim } => {
                let (head, at) = (r / head_dim, r % head_dim);
                head * head_dim + 2 * (at % (head_dim / 2)) + at / (head_dim / 2)
            }
            Self::Blocks { queries, head_dim } => {
                let group = (queries + 2) * head_dim;
                let (groups, g, at) = (rows / group, r / group, r % group);
                match at / head_dim {
                    head if head < queries => g * queries * head_dim + at,
                    head => ((queries * groups + (head - queries) * groups) + g) * head_dim + at % head_dim,
                }
            }
        }
    }

    /// The shape that is stored for the checkpoint's.
    pub fn stored_shape(self, mut shape: Vec<usize>) -> Vec<usize> {
        match self {
            Self::Transposed => shape.reverse(),
            Self::Row => drop(shape.remove(0)),
            _ => {}
        }
        shape
    }

    /// The checkpoint's shape for the one that is stored.
    pub fn checkpoint_shape(self, mut shape: Vec<usize>) -> Vec<usize> {
        match self {
            Self::Transposed => shape.reverse(),
            Self::Row if shape.len() == 1 => shape.insert(0, 1),
            _ => {}
        }
        shape
    }

    /// Whether a tensor of this shape (the checkpoint's) can have been stored so.
    pub fn fits(self, shape: &[usize]) -> bool {
        let rows = shape.first().copied().unwrap_or(1);
        match self {
            Self::Same | Self::PlusOne => true,
            Self::Pairs { head_dim } => head_dim > 0 && head_dim.is_multiple_of(2) && rows.is_multiple_of(head_dim),
            Self::Blocks { queries, head_dim } => head_dim > 0 && rows.is_multiple_of((queries + 2) * head_dim),
            Self::Transposed => shape.len() == 2,
            Self::Row => shape.len() == 2 && rows == 1,
        }
    }

    /// The checkpoint's values out of the stored ones; `shape` is the checkpoint's.
    pub fn undo(self, stored: Vec<f32>, shape: &[usize]) -> Vec<f32> {
        self.turn(stored, shape, false)
    }

    /// The values to store for the checkpoint's; `shape` is the checkpoint's.
    pub fn make(self, values: Vec<f32>, shape: &[usize]) -> Vec<f32> {
        self.turn(values, shape, true)
    }

    fn turn(self, mut values: Vec<f32>, shape: &[usize], to_stored: bool) -> Vec<f32> {
        let rows = shape.first().copied().unwrap_or(1).max(1);
        let cols = values.len() / rows;
        match self {
            Self::Same | Self::Row => values,
            Self::PlusOne => {
                values.iter_mut().for_each(|v| *v += if to_stored { 1.0 } else { -1.0 });
                values
            }
            Self::Transposed => {
                let (rows, cols) = if to_stored { (rows, cols) } else { (cols, rows) };
                let mut out = vec![0.0; values.len()];
                for (r, row) in values.chunks_exact(cols.max(1)).enumerate() {
                    for (c, v) in row.iter().enumerate() {
                        out[c * rows + r] = *v;
                    }
                }
                out
            }
            Self::Pairs { .. } | Self::Blocks { .. } => {
                let mut out = vec![0.0; values.len()];
                for r in 0..rows {
                    let s = self.stored_row(r, rows);
                    let (to, from) = if to_stored { (s, r) } else { (r, s) };
                    out[to * cols..(to + 1) * cols].copy_from_slice(&values[from * cols..(from + 1) * cols]);
                }
                out
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pairs_are_the_two_halves_of_a_head() {
        let a = Arrangement::Pairs { head_dim: 4 };
        // Two heads of rows 0 1 2 3: stored as 0 2 1 3.
        let stored = a.make((0..8).map(|v| v as f32).collect(), &[8]);
        assert_eq!(stored, [0.0, 2.0, 1.0, 3.0, 4.0, 6.0, 5.0, 7.0]);
        assert!(!a.fits(&[6, 2]) && !Arrangement::Pairs { head_dim: 0 }.fits(&[6]));
    }

    #[test]
    fn blocks_gather_queries_keys_and_values() {
        // Two kv heads of two queries each, heads of one row: q0 q1 k0 v0 q2 q3 k1 v1.
        let a = Arrangement::Blocks { queries: 2, head_dim: 1 };
        let stored = a.make((0..8).map(|v| v as f32).collect(), &[8]);
        assert_eq!(stored, [0.0, 1.0, 4.0, 5.0, 2.0, 6.0, 3.0, 7.0]);
    }

    #[test]
    fn what_was_made_is_undone() {
        let values: Vec<f32> = (0..48).map(|v| v as f32 * 0.25).collect();
        for a in [
            Arrangement::Same,
            Arrangement::Pairs { head_dim: 4 },
            Arrangement::Blocks { queries: 1, head_dim: 4 },
            Arrangement::Blocks { queries: 2, head_dim: 3 },
            Arrangement::Transposed,
            Arrangement::PlusOne,
        ] {
            assert!(a.fits(&[12, 4]));
            assert_eq!(a.undo(a.make(values.clone(), &[12, 4]), &[12, 4]), values, "{a:?}");
            assert_eq!(a.make(a.undo(values.clone(), &[12, 4]), &[12, 4]), values, "{a:?}");
        }
        assert_eq!(
            Arrangement::Transposed.make(vec![1.0, 2.0, 3.0, 4.0, 5.0, 6.0], &[2, 3]),
            [1.0, 4.0, 2.0, 5.0, 3.0, 6.0]
        );
    }
}
