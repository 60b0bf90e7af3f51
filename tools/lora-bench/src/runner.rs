//! What can be measured: a model that reads a prompt and continues it.

use anyhow::Result;

/// A loaded model with one sequence.
pub trait Runner {
    /// Forgets everything and reads a prompt of `n` tokens, as fast as it can.
    ///
    /// # Errors
    /// The runtime's.
    fn prefill(&mut self, n: u32) -> Result<()>;
    /// Forgets everything from position `depth` on and generates `n` tokens, one after the other.
    ///
    /// # Errors
    /// The runtime's.
    fn decode(&mut self, depth: u32, n: u32) -> Result<()>;
}

/// How a model is loaded.
#[derive(Clone, Copy, Debug)]
pub struct Setup {
    /// Positions of the KV cache.
    pub context: u32,
    /// Most tokens of one step.
    pub batch: u32,
    /// Threads.
    pub threads: usize,
}

/// Any tokens will do; these are spread over the vocabulary as text is.
pub fn token(position: u32, vocab: u32) -> u32 {
    (u64::from(position).wrapping_mul(2_654_435_761) % u64::from(vocab.max(1))) as u32
}
