//! Several adapters made one, as PEFT's `add_weighted_adapter` does.
//!
//! `linear` and the pruning forms work on A and B separately, each with the square root of the weight: that is PEFT's
//! meaning of them, cross terms included, not the sum of the deltas. The `_svd` forms work on the deltas and keep the
//! leading singular triplets of the result.

use std::str::FromStr;

use super::MergeError;
use super::adapter::Adapter;
use super::factors::{Factors, Pair, Region};
use super::{matrix, svd};

/// How several adapters are combined.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize)]
#[serde(rename_all = "snake_case")]
#[allow(missing_docs, reason = "the names are PEFT's, and `docs/peft.md` gives the formulas")]
pub enum Combine {
    /// Every adapter's own delta times its weight, added: what running with several active adapters computes.
    #[default]
    Stack,
    Cat,
    Linear,
    Svd,
    Ties,
    TiesSvd,
    DareLinear,
    DareLinearSvd,
    DareTies,
    DareTiesSvd,
    MagnitudePrune,
    MagnitudePruneSvd,
}

impl Combine {
    /// Every way, with its name.
    pub const ALL: [(Combine, &'static str); 12] = [
        (Combine::Stack, "stack"),
        (Combine::Cat, "cat"),
        (Combine::Linear, "linear"),
        (Combine::Svd, "svd"),
        (Combine::Ties, "ties"),
        (Combine::TiesSvd, "ties_svd"),
        (Combine::DareLinear, "dare_linear"),
        (Combine::DareLinearSvd, "dare_linear_svd"),
        (Combine::DareTies, "dare_ties"),
        (Combine::DareTiesSvd, "dare_ties_svd"),
        (Combine::MagnitudePrune, "magnitude_prune"),
        (Combine::MagnitudePruneSvd, "magnitude_prune_svd"),
    ];

    /// Its name.
    pub fn name(self) -> &'static str {
        Self::ALL.iter().find(|(c, _)| *c == self).map_or("", |(_, n)| n)
    }

    /// Whether the deltas are simply added.
    pub(crate) fn is_sum(self) -> bool {
        matches!(self, Combine::Stack | Combine::Cat)
    }

    /// Whether it works on whole deltas.
    pub(crate) fn on_deltas(self) -> bool {
        use Combine::*;
        matches!(self, Svd | TiesSvd | DareLinearSvd | DareTiesSvd | MagnitudePruneSvd)
    }

    /// Whether it drops elements, and so needs a density.
    pub(crate) fn prunes(self) -> bool {
        !self.is_sum() && !matches!(self, Combine::Linear | Combine::Svd)
    }

    fn elects(self) -> bool {
        matches!(self, Combine::Ties | Combine::TiesSvd | Combine::DareTies | Combine::DareTiesSvd)
    }

    fn at_random(self) -> bool {
        use Combine::*;
        matches!(self, DareLinear | DareLinearSvd | DareTies | DareTiesSvd)
    }
}

impl FromStr for Combine {
    type Err = String;
    fn from_str(s: &str) -> Result<Self, String> {
        let known = || Self::ALL.map(|(_, n)| n).join(", ");
        Self::ALL.iter().find(|(_, n)| *n == s).map(|(c, _)| *c).ok_or_else(|| format!("one of {}", known()))
    }
}

/// How `ties` elects the sign of an element.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum MajoritySign {
    /// By the sum of the values.
    #[default]
    Total,
    /// By the number of values on each side.
    Frequency,
}

impl FromStr for MajoritySign {
    type Err = String;
    fn from_str(s: &str) -> Result<Self, String> {
        match s {
            "total" => Ok(Self::Total),
            "frequency" => Ok(Self::Frequency),
            _ => Err("one of total, frequency".into()),
        }
    }
}

/// A combination with its settings.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Recipe {
    pub how: Combine,
    pub density: f64,
    pub sign: MajoritySign,
    pub seed: u64,
    /// Rank of the `_svd` forms.
    pub rank: usize,
}

impl Recipe {
    /// The combined factors over one region. `tensor` names it, so that random choices differ between tensors.
    pub fn factors(
        &self,
        parts: &[(Pair, f64)],
        adapters: &[Adapter],
        region: Region,
        tensor: &str,
    ) -> Result<Factors, MergeError> {
        if self.how.on_deltas() {
            return self.of_deltas(parts, adapters, region, tensor);
        }
        let (mut a, mut b) = (Vec::new(), Vec::new());
        for (pair, _) in parts {
            let (x, y) = pair.plain(adapters)?;
            a.push(x);
            b.push(y);
        }
        let c: Vec<f64> = parts.iter().map(|(pair, weight)| weight * pair.scale).collect();
        let roots: Vec<f32> = c.iter().map(|c| c.abs().sqrt() as f32).collect();
        let signed: Vec<f32> = c.iter().zip(&roots).map(|(c, r)| if *c < 0.0 { -r } else { *r }).collect();
        let a = self.mix(a, &signed, &format!("{tensor} A"));
        let b = self.mix(b, &roots, &format!("{tensor} B"));
        let r = parts[0].0.r;
        Ok(match parts[0].0.transposed {
            true => {
                Factors { r, left: matrix::transpose(&a, r, a.len() / r), right: matrix::transpose(&b, b.len() / r, r) }
            }
            false => Factors { r, left: b, right: a },
        })
    }

    fn of_deltas(
        &self,
        parts: &[(Pair, f64)],
        adapters: &[Adapter],
        region: Region,
        tensor: &str,
    ) -> Result<Factors, MergeError> {
        let (rows, cols) = (region.rows, region.cols);
        let delta = if self.how == Combine::Svd {
            let mut sum = vec![0.0; rows * cols];
            for (pair, weight) in parts {
                let f = pair.load(adapters, *weight)?;
                matrix::add_product(&mut sum, cols, &f.left, &f.right, f.r);
            }
            sum
        } else {
            let mut deltas = Vec::new();
            for (pair, _) in parts {
                let f = pair.load(adapters, 1.0)?;
                let mut delta = vec![0.0; rows * cols];
                matrix::add_product(&mut delta, cols, &f.left, &f.right, f.r);
                deltas.push(delta);
            }
            let weights: Vec<f32> = parts.iter().map(|(_, w)| *w as f32).collect();
            self.mix(deltas, &weights, tensor)
        };
        let (left, right) = svd::leading(&delta, rows, cols, self.rank).factors(self.rank);
        Ok(Factors { r: right.len() / cols.max(1), left, right })
    }

    /// Prunes, then adds or lets the majority decide.
    fn mix(&self, mut tensors: Vec<Vec<f32>>, weights: &[f32], salt: &str) -> Vec<f32> {
        if self.how.prunes() && self.density < 1.0 {
            for (i, t) in tensors.iter_mut().enumerate() {
                match self.how.at_random() {
                    true => drop_at_random(t, self.density, stream(self.seed, salt, i)),
                    false => keep_largest(t, self.density),
                }
            }
        }
        let at = |i: usize| tensors.iter().map(move |t| t[i]);
        let elements = 0..tensors[0].len();
        if !self.how.elects() {
            return elements.map(|i| at(i).zip(weights).map(|(x, w)| w * x).sum()).collect();
        }
        let one = |i: usize| {
            let vote: f32 = match self.sign {
                MajoritySign::Total => at(i).sum(),
                MajoritySign::Frequency => at(i).map(sign).sum(),
            };
            let majority = if vote >= 0.0 { 1.0 } else { -1.0 };
            let (mut sum, mut count) = (0.0, 0.0);
            for (x, w) in at(i).zip(weights) {
                if sign(x) == majority {
                    sum += w * x;
                    count += 1.0;
                }
            }
            sum / f32::max(count, 1.0)
        };
        elements.map(one).collect()
    }
}

/// −1, 0 or 1, which `f32::signum` is not.
fn sign(x: f32) -> f32 {
    f32::from(i8::from(x > 0.0) - i8::from(x < 0.0))
}

/// Zeroes all but the ⌊density·n⌋ elements of largest magnitude; of equal ones the first stay.
fn keep_largest(t: &mut [f32], density: f64) {
    let keep = ((density * t.len() as f64) as usize).min(t.len());
    if keep == 0 {
        return t.fill(0.0);
    }
    let magnitude = |x: f32| x.abs().to_bits();
    let mut order: Vec<u32> = t.iter().map(|&x| magnitude(x)).collect();
    let (_, &mut least, _) = order.select_nth_unstable_by(keep - 1, |a, b| b.cmp(a));
    let above = t.iter().filter(|x| magnitude(**x) > least).count();
    let mut equal = keep - above;
    for x in t {
        match magnitude(*x).cmp(&least) {
            std::cmp::Ordering::Greater => {}
            std::cmp::Ordering::Equal if equal > 0 => equal -= 1,
            _ => *x = 0.0,
        }
    }
}

/// Keeps each element with probability `density` and divides the kept ones by it. Which stay depends on the element's
/// number and the stream alone, never on the order of work.
fn drop_at_random(t: &mut [f32], density: f64, stream: u64) {
    for (i, x) in t.iter_mut().enumerate() {
        let chance = (mix64(stream ^ mix64(i as u64)) >> 11) as f64 / (1u64 << 53) as f64;
        *x = if chance < density { (f64::from(*x) / density) as f32 } else { 0.0 };
    }
}

fn stream(seed: u64, salt: &str, part: usize) -> u64 {
    salt.bytes().fold(mix64(seed ^ (part as u64) << 32), |h, b| mix64(h ^ u64::from(b)))
}

fn mix64(x: u64) -> u64 {
    let z = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_go_both_ways() {
        for (how, name) in Combine::ALL {
            assert_eq!(name.parse::<Combine>().unwrap(), how);
            assert_eq!(how.name(), name);
        }
        assert!("lineal".parse::<Combine>().unwrap_err().contains("linear"));
    }

    #[test]
    fn pruning_keeps_the_largest_and_first() {
        let mut t = [1.0, -3.0, 2.0, -2.0, 0.5];
        keep_largest(&mut t, 0.4);
        assert_eq!(t, [0.0, -3.0, 2.0, 0.0, 0.0]);
        let mut t = [1.0; 4];
        keep_largest(&mut t, 0.6);
        assert_eq!(t, [1.0, 1.0, 0.0, 0.0]);
        keep_largest(&mut t, 0.1);
        assert_eq!(t, [0.0; 4]);
    }

    #[test]
    fn random_pruning_is_unbiased_and_seeded() {
        let run = |seed| {
            let mut t = vec![1.0f32; 100_000];
            drop_at_random(&mut t, 0.3, stream(seed, "w A", 0));
            t
        };
        let mean = run(1).iter().sum::<f32>() / 1e5;
        assert!((mean - 1.0).abs() < 0.02, "{mean}");
        assert_eq!(run(1), run(1));
        assert_ne!(run(1), run(2));
    }
}
