//! How well each format represents the weights of real models, and how the default `q4` table is fitted.
//!
//! `cargo run --release -p lora-pack --example snr -- [--fit] model.safetensors…`
//!
//! Prints the signal-to-noise ratio of every format over all 2-D weights of blocks (embeddings left out), with equal
//! importance of all inputs and without any, next to the bits per weight. `--fit` runs Lloyd's algorithm for
//! the table over all files first, and prints tables and their ratios.

use std::fs::File;

use anyhow::{Context, Result, bail};
use lora_pack::quantize::{Grid, Group, Q4_TABLE, fit_group, quantize_rows};
use lora_runtime::weights::{GROUP, WeightFormat};
use memmap2::Mmap;
use rayon::prelude::*;
use safetensors::{Dtype, SafeTensors};

struct Weight {
    rows: usize,
    columns: usize,
    values: Vec<f32>,
}

fn main() -> Result<()> {
    let (flags, files): (Vec<String>, Vec<String>) = std::env::args().skip(1).partition(|a| a.starts_with("--"));
    let mut all = Vec::new();
    for file in &files {
        let weights = read(file)?;
        println!("{file}: {} weights, {} million numbers", weights.len(), numbers(&weights) / 1_000_000);
        report(&weights);
        all.push(weights);
    }
    if flags.iter().any(|flag| flag == "--fit") {
        fit(&all);
    }
    Ok(())
}

fn numbers(weights: &[Weight]) -> usize {
    weights.iter().map(|w| w.values.len()).sum()
}

fn read(path: &str) -> Result<Vec<Weight>> {
    let file = File::open(path).context(path.to_owned())?;
    // SAFETY: an example; nobody changes the file meanwhile.
    #[expect(unsafe_code, reason = "mapping a file")]
    let map = unsafe { Mmap::map(&file)? };
    let tensors = SafeTensors::deserialize(&map)?;
    let mut weights = Vec::new();
    for (name, view) in tensors.iter() {
        let &[rows, columns] = view.shape() else { continue };
        if name.contains("embed") {
            continue;
        }
        let values = match view.dtype() {
            Dtype::F32 => view.data().as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect(),
            Dtype::BF16 => view.data().as_chunks().0.iter().map(|b| half::bf16::from_le_bytes(*b).to_f32()).collect(),
            other => bail!("{name}: {other:?}"),
        };
        weights.push(Weight { rows, columns, values });
    }
    Ok(weights)
}

/// Energy of the weights and of the error.
fn energies(weights: &[Weight], format: WeightFormat, equal: bool, table: &[u8; 16]) -> (f64, f64) {
    let mut energies = (0f64, 0f64);
    for w in weights {
        let h = equal.then(|| vec![1.0; w.columns]);
        let q = quantize_rows(format, &w.values, w.rows, w.columns, h.as_deref(), table).expect("finite weights");
        for (a, b) in w.values.iter().zip(q.dequantize(table)) {
            energies.0 += f64::from(*a).powi(2);
            energies.1 += f64::from(a - b).powi(2);
        }
    }
    energies
}

fn decibels((signal, noise): (f64, f64)) -> f64 {
    10.0 * (signal / noise).log10()
}

fn report(weights: &[Weight]) {
    println!("format     bits   equal importance   none known");
    for format in WeightFormat::ALL.into_iter().filter(|format| !format.is_float() && !format.is_import()) {
        let bits = weights.iter().map(|w| format.tensor_bytes(w.rows, w.columns) * 8).sum::<usize>() as f64;
        println!(
            "{:6} {:8.3} {:15.2} dB {:9.2} dB",
            format.name(),
            bits / numbers(weights) as f64,
            decibels(energies(weights, format, true, &Q4_TABLE)),
            decibels(energies(weights, format, false, &Q4_TABLE)),
        );
    }
}

/// Lloyd's algorithm: groups are scaled as the search scales them, then every value moves to the mean of the weights
/// that it stands for. Models count equally.
fn fit(models: &[Vec<Weight>]) {
    let mut table = Q4_TABLE;
    for round in 0..12 {
        let grid = Grid::new(WeightFormat::Q4, &table);
        let mut totals = [(0f64, 0f64); 16];
        for model in models {
            let sums = model
                .par_iter()
                .map(|w| {
                    let mut sums = [(0f64, 0f64); 16];
                    for group in w.values.as_chunks::<GROUP>().0 {
                        let scale = fit_group(&grid, &Group::new(group, Some(&[1.0; GROUP])));
                        if scale == 0.0 {
                            continue;
                        }
                        for v in group {
                            let v = v / scale;
                            let weight = f64::from(scale).powi(2);
                            let sum = &mut sums[grid.code(v) as usize];
                            *sum = (sum.0 + weight * f64::from(v), sum.1 + weight);
                        }
                    }
                    sums
                })
                .reduce(|| [(0.0, 0.0); 16], |a, b| core::array::from_fn(|i| (a[i].0 + b[i].0, a[i].1 + b[i].1)));
            let weight: f64 = sums.iter().map(|s| s.1).sum();
            for (total, sum) in totals.iter_mut().zip(sums) {
                *total = (total.0 + sum.0 / weight, total.1 + sum.1 / weight);
            }
        }
        let means = totals.map(|(sum, weight)| sum / weight);
        let ratios: Vec<String> =
            models.iter().map(|m| format!("{:.3}", decibels(energies(m, WeightFormat::Q4, true, &table)))).collect();
        println!("round {round}: {table:?} {} dB; means {means:.1?}", ratios.join(" "));
        // The first value stays at −64, the end of 7 bits; scaling by it keeps the others' ratios.
        let next: [u8; 16] =
            core::array::from_fn(|i| (means[i] * (-64.0 / means[0])).round().clamp(-64.0, 63.0) as i8 as u8);
        let next = next.map(|v| (v as i8 as i32 + 64) as u8);
        if next == table {
            break;
        }
        table = next;
    }
}
