//! Balanced channels: how far each channel of a value is rescaled ([`lora_models::balance`] says which values can be).
//!
//! A channel gets the power of two nearest to about the square root of its root mean square on the text, against the
//! others of its value: half of a large input's size moves into the weights that read it, so that neither the 8-bit
//! codes of activations nor the codes of weights have to span all of it. How much of it moves is chosen by site.
//!
//! Keys share a scale with the other channels of their head in the cache; what makes them smaller makes the queries
//! larger, and costs nothing else, because every row of a matrix has scales of its own.

use std::collections::BTreeMap;

use anyhow::{Context, Result, bail};
use lora_models::balance::{Factors, Place, Site, biases, factors, sites};
use lora_models::spec::{Lowered, Storage};
use lora_runtime::format::{EntryKind, File, Operand};
use lora_runtime::kernels::Kernels;
use lora_runtime::program::Op;
use lora_runtime::session::workers::Inline;
use lora_runtime::threads::ArenaBox;
use lora_runtime::weights::{GROUP, WeightFormat};
use lora_runtime::{Model, Pass, Session};
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
/// Rounds over the channels of a head's keys, at most.
const ROUNDS: usize = 12;
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
        // Keys and queries are seen where they are made, everything else where it is read.
        let mut seen: BTreeMap<u32, Vec<Seen>> = BTreeMap::new();
        for (site, s) in sites.iter().enumerate() {
            if let Some(queries) = s.queries {
                for (slot, keys) in [(s.producers[0], true), (queries, false)] {
                    let row = target.slots[slot as usize].row_start as u32;
                    seen.entry(tensor(&slot)).or_default().push(Seen { site, made: Some(Made { row, keys }) });
                }
            } else if s.readers.iter().all(quantized) {
                seen.entry(tensor(&s.readers[0])).or_default().push(Seen { site, made: None });
            }
        }
        let documents = text::sample(documents.to_vec(), TOKENS);
        let of_each: Vec<Vec<Sums>> =
            documents.par_iter().map(|d| sums(twin, d, &sites, &seen)).collect::<Result<_>>()?;
        let mut sums: Vec<Sums> = sites.iter().map(Sums::new).collect();
        for one in &of_each {
            sums.iter_mut().zip(one).for_each(|(sum, v)| sum.add(v));
        }
        let of_site = |(site, sums): (&Site, &Sums)| -> Result<Vec<i8>> {
            Ok(match site.queries {
                Some(_) => of_keys(site, sums),
                None => exponents(site, &sums.squares, &readers(site, target, values)?),
            })
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
    // Files from before keys were balanced say nothing of them.
    if sites.len() < balance.0.len() || !sites.iter().zip(&balance.0).all(fits) {
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

/// Where a site is seen: in the inputs of a linear, or in its outputs.
struct Seen {
    site: usize,
    made: Option<Made>,
}

/// Keys or queries, made by a matrix from this row on.
struct Made {
    row: u32,
    keys: bool,
}

/// Sums over tokens, by channel of a site.
struct Sums {
    squares: Vec<f64>,
    /// Of keys: fourth powers.
    fourths: Vec<f64>,
    /// Of keys: squares of the queries that meet them.
    queries: Vec<f64>,
}

impl Sums {
    fn new(site: &Site) -> Self {
        let of_keys = || vec![0.0; if site.queries.is_some() { site.channels } else { 0 }];
        Self { squares: vec![0.0; site.channels], fourths: of_keys(), queries: of_keys() }
    }

    fn add(&mut self, other: &Self) {
        let lists = [
            (&mut self.squares, &other.squares),
            (&mut self.fourths, &other.fourths),
            (&mut self.queries, &other.queries),
        ];
        for (sums, other) in lists {
            sums.iter_mut().zip(other).for_each(|(sum, v)| *sum += v);
        }
    }

    /// Adds a row of keys. The channels of a pair are rotated into each other: each may be as large as both together.
    fn add_keys(&mut self, site: &Site, row: &[f32]) {
        let square = |c: usize| f64::from(row[c]) * f64::from(row[c]);
        for c in 0..row.len() {
            let partner = site.pairs.partner(c, site.run);
            let both = square(c) + if partner == c { 0.0 } else { square(partner) };
            self.squares[c] += both;
            self.fourths[c] += both * both;
        }
    }
}

/// The sums of one document, by site.
fn sums(twin: Model<'_>, document: &Document, sites: &[Site], seen: &BTreeMap<u32, Vec<Seen>>) -> Result<Vec<Sums>> {
    let mut sums: Vec<Sums> = sites.iter().map(Sums::new).collect();
    let sequence = Sequence::new(&twin, document);
    let config = sequence.config();
    let mut arena = ArenaBox::new(twin.plan(&config).arena_bytes as usize);
    let mut session = Session::new(twin, config, Kernels::best(), &Inline, arena.as_mut_slice())?;
    for kind in [EntryKind::Encode, EntryKind::Decode] {
        let Some(step) = sequence.step(kind).filter(|_| twin.entry(kind).is_ok()) else { continue };
        let mut pass = session.start(kind, step)?;
        for index in pass.ops() {
            let op = pass.op(index)?;
            let (input, output, seen) = match op {
                Op::Linear { a, out, weight, .. } => (a, out, seen.get(&weight).map_or(&[][..], Vec::as_slice)),
                _ => (Operand::NONE, Operand::NONE, &[][..]),
            };
            for s in seen.iter().filter(|s| s.made.is_none()) {
                add_squares(&pass, input, &sites[s.site], &mut sums[s.site].squares);
            }
            pass.run(index, None)?;
            for (s, made) in seen.iter().filter_map(|s| Some((s, s.made.as_ref()?))) {
                let (site, sums) = (&sites[s.site], &mut sums[s.site]);
                let at = Operand { col: output.col + made.row, ..output };
                if !made.keys {
                    add_squares(&pass, at, site, &mut sums.queries);
                    continue;
                }
                let rows = pass.rows(at, site.channels);
                (0..rows.len()).for_each(|r| sums.add_keys(site, rows.row(r)));
            }
        }
    }
    Ok(sums)
}

/// Adds the squares of columns that are a site's channels, or heads that share them.
fn add_squares(pass: &Pass<'_, '_>, at: Operand, site: &Site, sums: &mut [f64]) {
    let rows = pass.rows(at, site.channels * site.shared);
    for r in 0..rows.len() {
        for (c, x) in rows.row(r).iter().enumerate() {
            sums[site.channel(c)] += f64::from(*x) * f64::from(*x);
        }
    }
}

/// The exponents of keys, found one pair of channels after the other.
fn of_keys(site: &Site, sums: &Sums) -> Vec<i8> {
    let mut out = vec![0; site.channels];
    for (head, e) in out.chunks_mut(site.run).enumerate() {
        let of_head = |v: &'_ [f64]| v[head * site.run..][..site.run].to_vec();
        let (fourths, queries) = (of_head(&sums.fourths), of_head(&sums.queries));
        let none = key_noise(&fourths, &queries, e);
        let mut least = none;
        for _ in 0..ROUNDS {
            let before = least;
            for c in 0..site.run {
                let partner = site.pairs.partner(c, site.run);
                for step in [-1, 1] {
                    let old = e[c];
                    let new = (old + step).clamp(-MOST, MOST);
                    (e[c], e[partner]) = (new, new);
                    let noise = key_noise(&fourths, &queries, e);
                    if noise < least {
                        least = noise;
                        break;
                    }
                    (e[c], e[partner]) = (old, old);
                }
            }
            if least == before {
                break;
            }
        }
        if least >= LEAST_GAIN * none || least.is_nan() {
            e.fill(0);
        }
    }
    out
}

/// What rounding a head's keys to one scale costs in the scores: the square of the step, which the largest of them
/// makes, times the queries that it is multiplied with. The root of the fourth powers' sum stands for the largest
/// square: it is that of one channel that is large at all tokens, and counts one that seldom is.
fn key_noise(fourths: &[f64], queries: &[f64], exponents: &[i8]) -> f64 {
    let (mut largest, mut all) = (0.0, 0.0);
    for ((k, q), e) in fourths.iter().zip(queries).zip(exponents) {
        let square = f64::from(2 * e).exp2();
        largest += k / (square * square);
        all += q * square;
    }
    largest.sqrt() * all
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
    use lora_models::balance::Pairs;

    use super::*;

    fn site(channels: usize) -> Site {
        Site::of_columns(channels, vec![0], vec![1])
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
        let site = Site { run: 2, shared: 3, ..Site::of_columns(4, vec![0], vec![1]) };
        let channels: Vec<usize> = (0..12).map(|c| site.channel(c)).collect();
        assert_eq!(channels, [0, 1, 0, 1, 0, 1, 2, 3, 2, 3, 2, 3]);
    }

    #[test]
    fn keys_give_away_what_is_large_at_all_tokens() {
        let pairs = Pairs { half: 2, interleaved: false };
        let site = Site { run: 4, shared: 2, queries: Some(2), pairs, ..Site::of_columns(8, vec![0], Vec::new()) };
        // Channels 0 and 2 of the second head are a pair, 16 times as large as the others at each of two tokens.
        let mut sums = Sums::new(&site);
        for _ in 0..2 {
            sums.add_keys(&site, &[1.0, 1.0, 1.0, 1.0, 16.0, 1.0, 16.0, 1.0]);
            sums.queries.iter_mut().for_each(|q| *q += 2.0);
        }
        let e = of_keys(&site, &sums);
        assert_eq!(e[..4], [0; 4]);
        assert!(e[4] == e[6] && e[5] == e[7] && e[4] - e[5] >= 3, "{e:?}");
        // Where nothing is known, nothing is done.
        sums.fourths.fill(f64::NAN);
        assert_eq!(of_keys(&site, &sums), [0; 8]);
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
