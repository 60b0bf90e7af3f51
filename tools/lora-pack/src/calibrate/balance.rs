//! Balanced channels: how far each channel of a value is rescaled ([`lora_models::balance`] says which values can be).
//!
//! A channel gets the power of two nearest to about the square root of its root mean square on the text, against the
//! others of its value: half of a large input's size moves into the weights that read it, so that neither the 8-bit
//! codes of activations nor the codes of weights have to span all of it. How much of it moves is chosen by site.

use std::collections::BTreeMap;

use anyhow::{Context, Result, bail};
use lora_models::balance::{Factors, Place, Site, biases, factors, sites};
use lora_models::spec::{Lowered, Storage};
use lora_runtime::format::{EntryKind, File};
use lora_runtime::kernels::Kernels;
use lora_runtime::program::Op;
use lora_runtime::session::workers::Inline;
use lora_runtime::threads::ArenaBox;
use lora_runtime::weights::{GROUP, WeightFormat};
use lora_runtime::{Model, Session};
use rayon::prelude::*;

use super::run::Sequence;
use super::{Document, text};

/// Metadata key of the exponents: by site a letter for each channel, `i` for 2⁰; nothing for a site that is left alone.
pub const KEY: &str = "quant.balance";

/// Tokens that are looked at.
const TOKENS: usize = 1024;
/// Largest exponent.
const MOST: i8 = 8;
/// Channels below this share of their value's root mean square count as that.
const FLOOR: f64 = 1e-3;
/// Fourth roots of a channel's root mean square that move, and fourth roots of its columns' that come back.
const STRENGTHS: [(i32, i32); 5] = [(2, 0), (2, 1), (2, 2), (1, 0), (1, 1)];
/// Codes from 0 to the largest input.
const INPUT_LEVELS: f64 = 127.0;
/// A site is left alone unless the noise falls below this share.
const LEAST_GAIN: f64 = 0.8;

/// The values of a tensor by its number.
type Values<'v> = &'v (dyn Fn(usize) -> Result<Vec<f32>> + Sync);

/// Exponents of two by site and channel: producers are divided, readers multiplied. Empty: nothing is rescaled.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Balance(Vec<Vec<i8>>);

impl Balance {
    /// These exponents, for the sites of a model in order.
    #[must_use]
    pub const fn new(exponents: Vec<Vec<i8>>) -> Self {
        Self(exponents)
    }

    /// Whether nothing is rescaled.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.iter().flatten().all(|e| *e == 0)
    }

    /// Values whose channels are rescaled.
    #[must_use]
    pub fn sites(&self) -> usize {
        self.0.iter().filter(|s| s.iter().any(|e| *e != 0)).count()
    }

    /// Finds the exponents by running the float `twin` of `target` over some of the text. Values that a float matrix
    /// reads are left alone. `values` gives those of a tensor.
    ///
    /// # Errors
    /// A document does not fit the model, or a tensor cannot be read.
    pub fn measure(twin: Model<'_>, target: &Lowered, documents: &[Document], values: Values<'_>) -> Result<Self> {
        let sites = sites(target);
        let tensor = |slot: &u32| target.slots[*slot as usize].tensor;
        let quantized = |slot: &u32| match target.tensors[tensor(slot) as usize].storage {
            Storage::Panels(format) => !format.is_float(),
            Storage::Vector => false,
        };
        let by_reader: BTreeMap<u32, usize> = sites
            .iter()
            .enumerate()
            .filter(|(_, s)| s.readers.iter().all(quantized))
            .map(|(i, s)| (tensor(&s.readers[0]), i))
            .collect();
        let documents = text::sample(documents.to_vec(), TOKENS);
        let of_each: Vec<Vec<Vec<f64>>> =
            documents.par_iter().map(|d| squares(twin, d, &sites, &by_reader)).collect::<Result<_>>()?;
        let mut sums: Vec<Vec<f64>> = sites.iter().map(|s| vec![0.0; s.channels]).collect();
        for one in &of_each {
            sums.iter_mut().flatten().zip(one.iter().flatten()).for_each(|(sum, v)| *sum += v);
        }
        let of_site = |(site, sums): (&Site, &Vec<f64>)| -> Result<Vec<i8>> {
            Ok(exponents(site, sums, &readers(site, target, values)?))
        };
        Ok(Self(sites.par_iter().zip(&sums).map(of_site).collect::<Result<_>>()?))
    }

    /// Puts the factors into the recipes of a lowering of the same model.
    pub fn apply(&self, plain: &Lowered, to: &mut Lowered) {
        let place = |slot: u32| {
            let s = &plain.slots[slot as usize];
            let t = &plain.tensors[s.tensor as usize];
            Some(Place { tensor: s.tensor, shape: (t.rows, t.cols), row: s.row_start })
        };
        let biases = biases(plain.entries.iter().flat_map(|e| e.ops.iter().copied()));
        for (tensor, factors) in factors(&sites(plain), &self.0, &place, &biases) {
            to.tensors[tensor as usize].factors = factors;
        }
    }

    /// As it stands in the metadata.
    #[must_use]
    pub fn encode(&self) -> String {
        let letter = |e: &i8| char::from((b'i' as i8 + e) as u8);
        let site = |s: &Vec<i8>| if s.iter().all(|e| *e == 0) { String::new() } else { s.iter().map(letter).collect() };
        self.0.iter().map(site).collect::<Vec<_>>().join(",")
    }

    fn decode(text: &str) -> Option<Self> {
        let exponent = |c: u8| (c as i8).checked_sub(b'i' as i8).filter(|e| e.abs() <= MOST);
        let site = |s: &str| s.bytes().map(exponent).collect::<Option<Vec<_>>>();
        text.split(',').map(site).collect::<Option<_>>().map(Self)
    }
}

/// What the tensors of a packed file were multiplied with, by tensor; `lowered` is the file's model in any formats.
///
/// # Errors
/// The metadata do not fit the model.
pub fn of_file(file: &File<'_>, lowered: &Lowered) -> Result<BTreeMap<u32, Factors>> {
    let Some(text) = file.meta_value(KEY) else { return Ok(BTreeMap::new()) };
    let balance = Balance::decode(text).with_context(|| format!("{KEY}: not exponents"))?;
    let sites = sites(lowered);
    let fits = |(s, e): (&Site, &Vec<i8>)| e.is_empty() || e.len() == s.channels;
    if sites.len() != balance.0.len() || !sites.iter().zip(&balance.0).all(fits) {
        bail!("{KEY}: exponents of another model");
    }
    let place = |slot: u32| {
        let s = file.slots.get(slot as usize)?;
        let t = file.tensors.get(s.tensor as usize)?;
        Some(Place { tensor: s.tensor, shape: (t.rows as usize, t.cols as usize), row: s.row_start as usize })
    };
    Ok(factors(&sites, &balance.0, &place, &biases(file.ops.iter().filter_map(|r| Op::parse(r).ok()))))
}

/// The fingerprint of a balanced model: adapters that were made for its base, whose is given, do not fit it.
#[must_use]
pub fn fingerprint(of_base: [u8; 32]) -> [u8; 32] {
    of_base.map(|b| !b)
}

/// Sums of squares by site and channel over one document.
fn squares(
    twin: Model<'_>,
    document: &Document,
    sites: &[Site],
    by_reader: &BTreeMap<u32, usize>,
) -> Result<Vec<Vec<f64>>> {
    let mut sums: Vec<Vec<f64>> = sites.iter().map(|s| vec![0.0; s.channels]).collect();
    let sequence = Sequence::new(&twin, document);
    let config = sequence.config();
    let mut arena = ArenaBox::new(twin.plan(&config).arena_bytes as usize);
    let mut session = Session::new(twin, config, Kernels::best(), &Inline, arena.as_mut_slice())?;
    for kind in [EntryKind::Encode, EntryKind::Decode] {
        let Some(step) = sequence.step(kind).filter(|_| twin.entry(kind).is_ok()) else { continue };
        let mut pass = session.start(kind, step)?;
        for index in pass.ops() {
            if let Op::Linear { a, weight, .. } = pass.op(index)?
                && let Some(i) = by_reader.get(&weight)
            {
                let (site, sums) = (&sites[*i], &mut sums[*i]);
                let columns = site.channels * site.shared;
                let rows = pass.rows(a, columns);
                for r in 0..rows.len() {
                    for (c, x) in rows.row(r).iter().enumerate() {
                        sums[site.channel(c)] += f64::from(*x) * f64::from(*x);
                    }
                }
            }
            pass.run(index, None)?;
        }
    }
    Ok(sums)
}

/// A matrix that reads a site: squares of its columns' weights by channel, and the codes from 0 to its largest weight.
struct Reader {
    energies: Vec<f64>,
    levels: f64,
}

fn readers(site: &Site, target: &Lowered, values: Values<'_>) -> Result<Vec<Reader>> {
    let mut matrices: Vec<usize> = site.readers.iter().map(|s| target.slots[*s as usize].tensor as usize).collect();
    matrices.dedup();
    let reader = |tensor: usize| -> Result<Reader> {
        let mut energies = vec![0.0; site.channels];
        for row in values(tensor)?.chunks_exact(site.channels * site.shared) {
            for (c, w) in row.iter().enumerate() {
                energies[site.channel(c)] += f64::from(*w) * f64::from(*w);
            }
        }
        let levels = match target.tensors[tensor].storage {
            Storage::Panels(WeightFormat::Q4 | WeightFormat::Q4L) => 8.0,
            Storage::Panels(WeightFormat::Q5) => 16.0,
            Storage::Panels(WeightFormat::Q6) => 32.0,
            _ => INPUT_LEVELS,
        };
        Ok(Reader { energies, levels })
    };
    matrices.into_iter().map(reader).collect()
}

/// The exponents of a site whose channels have these squares: those of the strength that promises the least noise.
fn exponents(site: &Site, squares: &[f64], readers: &[Reader]) -> Vec<i8> {
    let none = vec![0; site.channels];
    let mut energies = vec![0.0; site.channels];
    for r in readers {
        energies.iter_mut().zip(&r.energies).for_each(|(sum, e)| *sum += e);
    }
    let (Some(sizes), Some(energies)) = (relative(squares), relative(&energies)) else { return none };
    let mut best = (LEAST_GAIN * noise(site, squares, readers, &none), none);
    for (a, b) in STRENGTHS {
        // Roots are exact enough to be the same everywhere, a logarithm is not.
        let root = |v: f64| v.sqrt().sqrt().sqrt();
        let size = |(x, w): (&f64, &f64)| root(*x).powi(a) / root(*w).powi(b);
        let all: Vec<i32> = sizes.iter().zip(&energies).map(|v| nearest(size(v))).collect();
        let count = all.len() as i32;
        let middle = (2 * all.iter().sum::<i32>() + count).div_euclid(2 * count);
        let e: Vec<i8> = all.iter().map(|e| (e - middle).clamp(-i32::from(MOST), i32::from(MOST)) as i8).collect();
        let noise = noise(site, squares, readers, &e);
        if noise < best.0 {
            best = (noise, e);
        }
    }
    best.1
}

/// Against their mean, none of them next to nothing; nothing if they are no numbers above 0.
fn relative(v: &[f64]) -> Option<Vec<f64>> {
    let mean = v.iter().sum::<f64>() / v.len().max(1) as f64;
    (mean > 0.0 && mean.is_finite()).then(|| v.iter().map(|v| (v / mean).max(FLOOR * FLOOR)).collect())
}

/// The exponent of the nearest power of two.
fn nearest(size: f64) -> i32 {
    let mut e = 0;
    while size >= f64::from(e).exp2() * std::f64::consts::SQRT_2 {
        e += 1;
    }
    while size < f64::from(e).exp2() / std::f64::consts::SQRT_2 {
        e -= 1;
    }
    e
}

/// What rounding 32 neighbours to one scale costs, in the outputs: the square of the step that the largest of them
/// makes, for each of them, times what it is multiplied with; of the inputs and of the weights.
fn noise(site: &Site, squares: &[f64], readers: &[Reader], exponents: &[i8]) -> f64 {
    let columns: Vec<usize> = (0..site.channels * site.shared).map(|c| site.channel(c)).collect();
    let factor = |c: usize| f64::from(2 * exponents[c]).exp2();
    let mut sum = 0.0;
    for group in columns.chunks(GROUP) {
        let inputs = || group.iter().map(|c| squares[*c] / factor(*c));
        let (largest_input, all_inputs) = (inputs().fold(0.0, f64::max), inputs().sum::<f64>());
        for r in readers {
            let weights = || group.iter().map(|c| r.energies[*c] * factor(*c));
            let (largest, all) = (weights().fold(0.0, f64::max), weights().sum::<f64>());
            sum += largest_input * all / (INPUT_LEVELS * INPUT_LEVELS) + largest * all_inputs / (r.levels * r.levels);
        }
    }
    sum
}

#[cfg(test)]
mod tests {
    use super::*;

    fn site(channels: usize) -> Site {
        Site { channels, producers: vec![0], readers: vec![1], run: channels, shared: 1 }
    }

    #[test]
    fn large_channels_give_a_part_of_their_size_away() {
        // One channel of 64 is 64 times as large as the others.
        let site = site(64);
        let mut squares = vec![1.0; 64];
        squares[40] = 4096.0;
        let readers = |levels| [Reader { energies: vec![1.0; 64], levels }];
        let e = exponents(&site, &squares, &readers(127.0));
        assert_eq!(e[40] - e[0], 3, "{e:?}");
        assert!(e.iter().enumerate().all(|(c, v)| c == 40 || *v == e[0]), "{e:?}");
        let noise = |e: &[i8]| noise(&site, &squares, &readers(127.0), e);
        assert!(noise(&e) < 0.3 * noise(&[0; 64]), "{} {}", noise(&e), noise(&[0; 64]));
        // At 4 bits its columns would make the weights' codes coarser by more than that.
        assert_eq!(exponents(&site, &squares, &readers(8.0)), [0; 64]);
    }

    #[test]
    fn channels_that_promise_nothing_are_left_alone() {
        // Columns as unequal as the channels: every step would make the weights' codes coarser still.
        let unequal: Vec<f64> = (0..64).map(|c| if c % 2 == 0 { 4.0 } else { 1.0 }).collect();
        for (squares, energies) in [
            (vec![3.0; 64], vec![1.0; 64]),
            (vec![0.0; 64], vec![1.0; 64]),
            (vec![f64::NAN; 64], vec![1.0; 64]),
            (unequal.clone(), unequal),
        ] {
            let readers = [Reader { energies, levels: 8.0 }];
            assert_eq!(exponents(&site(64), &squares, &readers), [0; 64]);
        }
    }

    #[test]
    fn heads_that_share_values_are_seen_as_columns() {
        let site = Site { channels: 4, producers: vec![0], readers: vec![1], run: 2, shared: 3 };
        let channels: Vec<usize> = (0..12).map(|c| site.channel(c)).collect();
        assert_eq!(channels, [0, 1, 0, 1, 0, 1, 2, 3, 2, 3, 2, 3]);
    }

    #[test]
    fn metadata_come_back() {
        let balance = Balance(vec![vec![0, 1, -8, 8], vec![], vec![3]]);
        assert_eq!(balance.encode(), "ijaq,,l");
        assert_eq!(Balance::decode(&balance.encode()), Some(balance));
        for bad in ["ij r", "é", "ijz"] {
            assert_eq!(Balance::decode(bad), None, "{bad}");
        }
    }
}
