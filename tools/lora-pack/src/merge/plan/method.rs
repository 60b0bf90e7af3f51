//! Tensors of the methods that are not low-rank.

use std::collections::BTreeSet;

use serde_json::Value;

use super::super::MergeError;
use super::super::adapter::{Adapter, Group};
use super::super::factors::Region;
use super::super::keys::Part;
use super::super::method::Kind;
use super::super::method::LARGEST;
use super::super::method::dense::Dense;
use super::super::recipe::Step;
use super::super::targets::is_ending;
use super::Planner;
use super::lora::{expect, sides};
use crate::source::model::is_conv1d;
use crate::source::{SourceError, quote};

/// Plans all groups and returns the base's names of the modules that they adapt.
pub(super) fn plan(planner: &mut Planner, index: usize, adapter: &Adapter) -> Result<BTreeSet<String>, MergeError> {
    let mut seen = BTreeSet::new();
    for ((module, hops), group) in &adapter.groups {
        if group.parts.keys().all(|p| *p == Part::Tokens) {
            continue;
        }
        if *hops > 0 {
            return Err(MergeError::refused(&adapter.files.weights_path, quote(group.any()), "nested layers"));
        }
        if let Some(disk) = one(planner, index, adapter, module, group)? {
            seen.insert(disk);
        }
    }
    Ok(seen)
}

fn one(
    planner: &mut Planner,
    index: usize,
    adapter: &Adapter,
    module: &str,
    group: &Group,
) -> Result<Option<String>, MergeError> {
    let Some(disk) = planner.names.resolve_module(module) else {
        let error = planner.unknown(adapter, group.any(), &format!("{module}.weight"));
        planner.complain(adapter, error)?;
        return Ok(None);
    };
    if !adapter.targets.is_target(module, true)? && adapter.config.target_modules.is_some() {
        let error = adapter.bad(group.any(), format!("target_modules does not name {}", quote(module)));
        planner.complain(adapter, error)?;
        return Ok(None);
    }
    let param = format!("{disk}.weight");
    let shape = planner.shape(&param).unwrap_or_default().to_vec();
    let [rows, cols] = shape[..] else {
        let why = format!("{} on {} of shape {shape:?} is not merged here", adapter.method.name, quote(&param));
        return Err(MergeError::refused(&adapter.files.weights_path, quote(group.any()), why));
    };
    let region = Region { at: 0, rows, cols };
    let transposed = is_conv1d(planner.base.model_type(), &disk);
    if transposed && adapter.method.kind != Kind::Ia3 {
        let why = format!("{} on a Conv1D layer is not merged here", adapter.method.name);
        return Err(MergeError::refused(&adapter.files.weights_path, quote(group.any()), why));
    }
    let look = Look { adapter, group, module, rows, cols };
    let dense = look.dense(transposed)?;
    if adapter.weight != 1.0 && !dense.is_additive() {
        let problem = format!("{} multiplies weights, so it has no strength to scale", adapter.method.name);
        return Err(MergeError::Option { option: "--adapter =WEIGHT", problem });
    }
    let keys: Vec<&str> = group.parts.values().map(String::as_str).collect();
    // IA3 over outputs scales the bias too.
    if let Dense::Scale { by, .. } = &dense
        && !look.feeds_forward()?
        && let Some(bias) = planner.names.resolve(&format!("{disk}.bias"))
        && let Some(&[n]) = planner.shape(&bias)
    {
        let region = Region { at: 0, rows: n, cols: 1 };
        let dense = Dense::Scale { by: by.clone(), rows: true };
        planner.push(&bias, Step::Dense { adapter: index, dense, weight: 1.0, region }, index, &[by])?;
    }
    let step = Step::Dense { adapter: index, dense, weight: adapter.weight, region };
    planner.push(&param, step, index, &keys)?;
    Ok(Some(disk))
}

/// One module's tensors over its weight of rows × cols.
struct Look<'a> {
    adapter: &'a Adapter,
    group: &'a Group,
    module: &'a str,
    rows: usize,
    cols: usize,
}

impl<'a> Look<'a> {
    fn get(&self, name: &'static str) -> Result<String, MergeError> {
        self.maybe(name).ok_or_else(|| self.adapter.bad(self.group.any(), format!("its {name} is missing")))
    }

    fn maybe(&self, name: &'static str) -> Option<String> {
        self.group.parts.get(&Part::Of(name)).cloned()
    }

    fn flag(&self, name: &str, default: bool) -> bool {
        self.adapter.field(name).and_then(Value::as_bool).unwrap_or(default)
    }

    /// The group may hold these parts and no others.
    fn only(&self, names: &[&str]) -> Result<(), MergeError> {
        match self.group.parts.iter().find(|(p, _)| !matches!(p, Part::Of(n) if names.contains(n))) {
            None => Ok(()),
            Some((part, key)) => {
                let problem =
                    format!("unexpected {} in an adapter of peft_type {}", part.name(), self.adapter.method.name);
                Err(self.adapter.bad(key, problem))
            }
        }
    }

    fn shape(&self, key: &str, want: [usize; 2]) -> Result<(), MergeError> {
        let have = self.adapter.tensor(key)?.shape;
        if *have == want {
            return Ok(());
        }
        Err(self.adapter.bad(key, format!("shape {have:?} where {want:?} is needed")))
    }

    /// alpha / r, with the module's own.
    fn scale(&self, r: usize) -> Result<f64, MergeError> {
        let (alpha, _) = self.adapter.targets.alpha(self.module, self.adapter.config.alpha)?;
        Ok(alpha / r as f64)
    }

    fn rank(&self) -> Result<usize, MergeError> {
        Ok(self.adapter.targets.rank(self.module, self.adapter.config.r)?.0)
    }

    fn feeds_forward(&self) -> Result<bool, MergeError> {
        Ok(match self.adapter.field("feedforward_modules") {
            Some(Value::Array(list)) => {
                list.iter().filter_map(Value::as_str).any(|ending| is_ending(self.module, ending))
            }
            Some(Value::String(pattern)) => {
                self.adapter.targets.matches("feedforward_modules", pattern, self.module)?
            }
            _ => false,
        })
    }

    fn dense(&self, transposed: bool) -> Result<Dense, MergeError> {
        let (rows, cols) = (self.rows, self.cols);
        Ok(match self.adapter.method.kind {
            Kind::Ia3 => {
                self.only(&["ia3_l"])?;
                let by = self.get("ia3_l")?;
                let rows_scaled = self.feeds_forward()? == transposed;
                expect(self.adapter, &by, if rows_scaled { rows } else { cols })?;
                Dense::Scale { by, rows: rows_scaled }
            }
            Kind::LoHa => {
                self.only(&["hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b"])?;
                let [a1, b1, a2, b2] =
                    [self.get("hada_w1_a")?, self.get("hada_w1_b")?, self.get("hada_w2_a")?, self.get("hada_w2_b")?];
                let r = self.rank()?;
                for (key, want) in [(&a1, [rows, r]), (&b1, [r, cols]), (&a2, [rows, r]), (&b2, [r, cols])] {
                    self.shape(key, want)?;
                }
                Dense::Hadamard { factors: [a1, b1, a2, b2], scale: self.scale(r)? }
            }
            Kind::LoKr => {
                self.only(&["lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b"])?;
                let w1 = self.kronecker_side("lokr_w1", "lokr_w1_a", "lokr_w1_b")?;
                let w2 = self.kronecker_side("lokr_w2", "lokr_w2_a", "lokr_w2_b")?;
                let ((p1, q1), (p2, q2)) = (self.product_shape(&w1)?, self.product_shape(&w2)?);
                if (p1 * p2, q1 * q2) != (rows, cols) {
                    let problem = format!("shapes {p1}×{q1} and {p2}×{q2} do not multiply to {rows}×{cols}");
                    return Err(self.adapter.bad(&w1[0], problem));
                }
                Dense::Kronecker { w1, w2, scale: self.scale(self.rank()?)? }
            }
            Kind::Oft => {
                self.only(&["oft_R"])?;
                let skew = self.get("oft_R")?;
                let (blocks, per) = sides(self.adapter, &skew)?;
                // per = b·(b − 1)/2
                let block = ((1.0 + 8.0 * per as f64).sqrt() as usize).div_ceil(2);
                let shared = self.flag("block_share", false);
                let covers = if shared { cols.is_multiple_of(block) && blocks == 1 } else { blocks * block == cols };
                if block * (block - 1) / 2 != per || !covers {
                    let problem = format!("shape {blocks}×{per} holds no rotations of {cols} inputs");
                    return Err(self.adapter.bad(&skew, problem));
                }
                let series = self.flag("use_cayley_neumann", true).then(|| {
                    self.adapter.field("num_cayley_neumann_terms").and_then(Value::as_u64).unwrap_or(5).min(64) as usize
                });
                Dense::Rotate { skew, block, terms: series }
            }
            Kind::Boft => {
                self.only(&["boft_R", "boft_s"])?;
                let (blocks, gains) = (self.get("boft_R")?, self.get("boft_s")?);
                let shape = self.adapter.tensor(&blocks)?.shape;
                let &[factors, count, block, columns] = shape else {
                    return Err(self.adapter.bad(&blocks, format!("shape {shape:?} holds no blocks")));
                };
                if factors != 1 {
                    let why =
                        "more than one butterfly factor is not merged here; merge it with PEFT and its CUDA extension";
                    let what = format!("{} of shape {shape:?}", quote(&blocks));
                    return Err(MergeError::refused(&self.adapter.files.weights_path, what, why));
                }
                if block != columns || block == 0 || count.checked_mul(block) != Some(cols) {
                    return Err(self
                        .adapter
                        .bad(&blocks, format!("shape {shape:?} holds no rotations of {cols} inputs")));
                }
                expect(self.adapter, &gains, rows)?;
                Dense::RotateAndScale { blocks, gains, block }
            }
            Kind::FourierFt => {
                self.only(&["fourierft_spectrum"])?;
                let values = self.get("fourierft_spectrum")?;
                let count = self.adapter.tensor(&values)?.elements();
                if !(1..=rows * cols).contains(&count) || rows * cols >= LARGEST {
                    let problem = format!(
                        "{count} coefficients, where the spectrum of {rows}×{cols} has from 1 to {}",
                        (rows * cols).min(LARGEST)
                    );
                    return Err(self.adapter.bad(&values, problem));
                }
                let number = |name: &str| self.adapter.field(name).filter(|v| !v.is_null());
                let bad = |name: &str, problem: &str| SourceError::field(self.adapter.config_file(), name, problem);
                let seed = number("random_loc_seed").map_or(Some(777), Value::as_u64);
                let seed = seed.ok_or_else(|| bad("random_loc_seed", "not a number from 0 on"))?;
                let scale = number("scaling").map_or(Some(150.0), Value::as_f64);
                Dense::Spectrum { values, seed, scale: scale.ok_or_else(|| bad("scaling", "not a number"))? }
            }
            Kind::Hra => {
                self.only(&["hra_u"])?;
                let vectors = self.get("hra_u")?;
                let (inputs, r) = sides(self.adapter, &vectors)?;
                self.shape(&vectors, [cols, r])?;
                debug_assert_eq!(inputs, cols);
                Dense::Reflect { vectors, orthogonal: self.flag("apply_GS", false) }
            }
            Kind::Miss => {
                if let Some(Value::String(mode)) = self.adapter.field("init_weights") {
                    let what = format!("init_weights {}", quote(mode));
                    let why = "this form of MiSS is not merged here; merge it with PEFT";
                    return Err(MergeError::refused(self.adapter.config_file(), what, why));
                }
                self.only(&["miss_block"])?;
                let block = self.get("miss_block")?;
                let (r, _) = sides(self.adapter, &block)?;
                self.shape(&block, [r, rows])?;
                Dense::Repeat { block }
            }
            Kind::HiRa => {
                self.only(&["hira_A", "hira_B"])?;
                let (a, b) = (self.get("hira_A")?, self.get("hira_B")?);
                let (r, _) = sides(self.adapter, &a)?;
                self.shape(&a, [r, cols])?;
                self.shape(&b, [rows, r])?;
                Dense::Modulate { a, b }
            }
            Kind::Shira => {
                self.only(&["shira_weight", "shira_indices"])?;
                let (values, positions) = (self.get("shira_weight")?, self.get("shira_indices")?);
                let n = self.adapter.tensor(&values)?.elements();
                self.shape(&positions, [2, n])?;
                Dense::Sparse { values, positions }
            }
            _ => return Err(self.adapter.bad(self.group.any(), format!("unexpected in {}", self.adapter.method.name))),
        })
    }

    /// A side of a Kronecker product: one tensor, or two to be multiplied.
    fn kronecker_side(&self, whole: &'static str, a: &'static str, b: &'static str) -> Result<Vec<String>, MergeError> {
        Ok(match self.maybe(whole) {
            Some(key) => vec![key],
            None => vec![self.get(a)?, self.get(b)?],
        })
    }

    fn product_shape(&self, keys: &[String]) -> Result<(usize, usize), MergeError> {
        let first = sides(self.adapter, &keys[0])?;
        let Some(second) = keys.get(1) else { return Ok(first) };
        let other = sides(self.adapter, second)?;
        if first.1 != other.0 {
            let problem = format!("shape has {} columns, {} has {} rows", first.1, quote(second), other.0);
            return Err(self.adapter.bad(&keys[0], problem));
        }
        Ok((first.0, other.1))
    }
}
