//! Choosing the next token from a row of logits.
//!
//! Everything works in place on one copy of the row, without heap and without a list of candidates: [`choose`] finds
//! the cut of top-k and of top-p as a *value*, by selecting on the bits of the floats from the top byte down
//! (`Cut`), and draws by walking the row once. Ties at the cut go to the lower token id. All sums run in token
//! order in f64 and the softmax is the kernels' own, so the same seed gives the same text on every machine.
//!
//! The order is the one that generation settings published with models mean:
//! repetition penalty, [`Rules`], temperature, top-k, top-p, min-p.

mod rules;

pub use self::rules::Rules;

use crate::kernels::Kernels;

/// A random number generator: SplitMix64 (Steele, Lea and Flood 2014), 64 bits of state, every seed as good as another.
#[derive(Clone, Debug)]
pub struct Rng {
    state: u64,
}

impl Rng {
    /// A generator that gives the same numbers for the same seed on every machine.
    #[must_use]
    pub const fn new(seed: u64) -> Self {
        Self { state: seed }
    }

    /// The next 64 random bits.
    pub const fn next_u64(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Uniform in `0 ≤ x < 1`, 53 bits.
    pub fn next_unit(&mut self) -> f64 {
        (self.next_u64() >> 11) as f64 / (1_u64 << 53) as f64
    }
}

/// How tokens are chosen.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sampling {
    /// Divides the logits; 0 takes the first largest one.
    pub temperature: f32,
    /// Only the `top_k` largest logits; 0 is off.
    pub top_k: u32,
    /// Only the most probable tokens, until they sum to this; 1 and more is off, 0 leaves one.
    pub top_p: f32,
    /// Only tokens at least this often as probable as the most probable one; 0 is off.
    pub min_p: f32,
}

impl Sampling {
    /// Always the first largest logit.
    pub const GREEDY: Self = Self { temperature: 0.0, top_k: 0, top_p: 1.0, min_p: 0.0 };

    /// Whether no random number is needed.
    #[must_use]
    pub fn is_greedy(&self) -> bool {
        self.temperature.is_nan() || self.temperature <= 0.0 || self.top_k == 1
    }
}

/// Makes tokens that have occurred less likely: positive logits are divided by `penalty`, others multiplied.
/// `tokens` must be distinct (see [`mark`]); ids beyond the row are passed over.
pub fn penalize(logits: &mut [f32], tokens: &[u32], penalty: f32) {
    for &id in tokens {
        if let Some(x) = logits.get_mut(id as usize) {
            *x = if *x > 0.0 { *x / penalty } else { *x * penalty };
        }
    }
}

/// Words of memory with which [`mark`] keeps ids below `vocab`.
#[must_use]
pub const fn mark_words(vocab: u32) -> usize {
    vocab.div_ceil(64) as usize
}

/// Marks an id in a set of bits (zeroed by the caller before the first one); whether it was not marked before. Ids
/// beyond the memory never are new. For keeping the list of distinct tokens that [`penalize`] takes.
pub fn mark(bits: &mut [u64], id: u32) -> bool {
    let Some(word) = bits.get_mut(id as usize / 64) else { return false };
    let bit = 1 << (id % 64);
    let new = *word & bit == 0;
    *word |= bit;
    new
}

/// Chooses a token; `logits` is used up. `None` where no logit is a number above −∞. NaN is never chosen; +∞ always.
pub fn choose(kernels: &Kernels, logits: &mut [f32], sampling: &Sampling, rng: &mut Rng) -> Option<u32> {
    let best = kernels.argmax(logits)?;
    let largest = logits[best];
    if largest.is_nan() || largest == f32::NEG_INFINITY {
        return None;
    }
    if sampling.is_greedy() || largest == f32::INFINITY {
        return Some(best as u32);
    }
    for x in logits.iter_mut() {
        // From the largest, so that a small temperature cannot overflow.
        *x = if x.is_nan() { f32::NEG_INFINITY } else { (*x - largest) / sampling.temperature };
    }
    if sampling.top_k > 0 && (sampling.top_k as usize) < logits.len() {
        Cut::find(logits, f64::from(sampling.top_k), |_| 1.0).apply(logits, f32::NEG_INFINITY);
    }
    kernels.softmax_in_place(logits);
    if sampling.top_p < 1.0 {
        // At least the most probable one stays, whatever the limit.
        let target = f64::from(sampling.top_p.max(f32::MIN_POSITIVE));
        Cut::find(logits, target, f64::from).apply(logits, 0.0);
    }
    if sampling.min_p > 0.0 {
        let least = logits[best] * sampling.min_p.min(1.0);
        for p in logits.iter_mut().filter(|p| **p < least) {
            *p = 0.0;
        }
    }
    Some(draw(logits, rng))
}

/// Draws an index in proportion to weights that are not all zero.
fn draw(weights: &[f32], rng: &mut Rng) -> u32 {
    let total: f64 = weights.iter().map(|w| f64::from(*w)).sum();
    let point = rng.next_unit() * total;
    let (mut sum, mut last) = (0.0, 0);
    for (i, w) in weights.iter().enumerate().filter(|(_, w)| **w > 0.0) {
        sum += f64::from(*w);
        last = i as u32;
        if sum > point {
            break;
        }
    }
    last
}

/// Where the largest values end: all above `key` stay, and of those equal to it the first `ties`.
struct Cut {
    key: u32,
    ties: u32,
}

/// The bits of a float so that greater floats have greater keys.
fn key(x: f32) -> u32 {
    let bits = x.to_bits();
    if bits >> 31 == 0 { bits | 1 << 31 } else { !bits }
}

impl Cut {
    /// The cut after which the weights of the largest values first sum to `target`.
    ///
    /// Byte by byte from the top: the weights of all values that share the bytes found so far are summed by
    /// their next byte, and walking those sums from above finds the byte in which the target is reached.
    fn find(values: &[f32], target: f64, weight: fn(f32) -> f64) -> Self {
        let (mut prefix, mut above) = (0, 0.0);
        for shift in [24, 16, 8, 0] {
            let mut sums = [0.0_f64; 256];
            let mut present = [false; 256];
            for &v in values {
                let k = key(v);
                if u64::from(k) >> (shift + 8) == prefix {
                    let byte = (k >> shift) as usize & 0xff;
                    sums[byte] += weight(v);
                    present[byte] = true;
                }
            }
            // Where rounding keeps the sum below the target, the lowest value that is there.
            let lowest = present.iter().position(|p| *p).unwrap_or(0);
            let mut byte = 255;
            while byte > lowest && above + sums[byte] < target {
                above += sums[byte];
                byte -= 1;
            }
            prefix = prefix << 8 | byte as u64;
        }
        let key = prefix as u32;
        let cut = f32::from_bits(if key >> 31 == 1 { key ^ 1 << 31 } else { !key });
        let each = weight(cut);
        // Weight 0 (a probability that vanished) has no end: all of them.
        let ties = if each > 0.0 { (target - above) / each } else { f64::MAX };
        // Casts saturate; rounded up by hand because `ceil` is not in core.
        let whole = ties as u32;
        Self { key, ties: if f64::from(whole) < ties { whole.saturating_add(1) } else { whole.max(1) } }
    }

    /// Replaces what lies beyond the cut.
    fn apply(mut self, values: &mut [f32], by: f32) {
        for v in values {
            let k = key(*v);
            if k == self.key && self.ties > 0 {
                self.ties -= 1;
            } else if k <= self.key {
                *v = by;
            }
        }
    }
}

#[cfg(test)]
mod tests;
