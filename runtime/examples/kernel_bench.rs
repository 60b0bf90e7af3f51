//! Speed of the linear kernels on one thread, for every level that this CPU runs and every weight format.
//!
//! `cargo run --release -p lora-runtime --features pack --example kernel_bench -- [--k 576] [--level avx2] [--format q4]`
//!
//! - **decode**: one token against weights that do not fit in the caches: gigabytes of weights per second.
//! - **cached**: one token against weights that fit in the second-level cache: what the instructions allow.
//! - **prefill**: 256 tokens: billions of multiply-adds per second.
//!
//! Every figure is the best of several runs, so that other work on the machine disturbs little.

use std::hint::black_box;
use std::time::{Duration, Instant};

use lora_runtime::kernels::{ActRows, Kernels, MAX_SHARING_PANELS, MAX_TOKENS, Sums, quant_row_bytes};
use lora_runtime::weights::{PANEL_ROWS, WeightFormat};

const TOKENS: usize = 256;
const LARGE: usize = 96 << 20;
const SMALL: usize = 256 << 10;

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let option = |name: &str| args.iter().position(|a| a == name).and_then(|i| args.get(i + 1));
    let k: usize = option("--k").map_or(576, |k| k.parse().expect("--k takes a number"));
    let chosen = |name: &str, value: &str| option(name).is_none_or(|wanted| wanted == value);

    println!(
        "K = {k}\n{:8} {:6} {:>12} {:>12} {:>16}",
        "level", "format", "decode GB/s", "cached GB/s", "prefill GMAC/s"
    );
    for kernels in Kernels::supported().filter(|kernels| chosen("--level", kernels.level().name())) {
        for format in WeightFormat::ALL.into_iter().filter(|format| chosen("--format", format.name())) {
            let bench = Bench::new(kernels, format, k);
            println!(
                "{:8} {:6} {:12.2} {:12.2} {:16.1}",
                kernels.level().name(),
                format.name(),
                bench.decode(LARGE),
                bench.decode(SMALL),
                bench.prefill()
            );
        }
    }
}

struct Bench {
    kernels: &'static Kernels,
    format: WeightFormat,
    k: usize,
    floats: Vec<f32>,
    quantized: Vec<u8>,
}

impl Bench {
    fn new(kernels: &'static Kernels, format: WeightFormat, k: usize) -> Self {
        let floats: Vec<f32> = (0..TOKENS * k).map(|i| (i * 37 % 101) as f32 / 50.0 - 1.0).collect();
        let mut quantized = vec![0; TOKENS * quant_row_bytes(k)];
        for (x, out) in floats.chunks(k).zip(quantized.chunks_mut(quant_row_bytes(k))) {
            kernels.quantize_row(x, out);
        }
        Self { kernels, format, k, floats, quantized }
    }

    fn rows(&self) -> ActRows<'_> {
        if self.format.is_float() {
            ActRows::floats(&self.floats, self.k)
        } else {
            ActRows::new(&self.quantized, quant_row_bytes(self.k))
        }
    }

    /// About `bytes` of panels with harmless contents: no NaN, no subnormals.
    fn panels(&self, bytes: usize) -> Vec<u8> {
        let panel = self.format.panel_bytes(self.k);
        // 64-byte alignment as in a file: a Vec this large is only 16-byte aligned, so keep spare room at the front.
        vec![0x31; bytes.div_ceil(panel) * panel + 64]
    }

    fn aligned<'a>(&self, panels: &'a [u8]) -> impl Iterator<Item = &'a [u8]> {
        let skip = panels.as_ptr().align_offset(64);
        panels[skip..panels.len() - 64 + skip].chunks_exact(self.format.panel_bytes(self.k))
    }

    fn decode(&self, bytes: usize) -> f64 {
        let codebook = core::array::from_fn(|i| (i * 8) as u8);
        let panels = self.panels(bytes);
        let mut out = [[0f32; PANEL_ROWS]; 1];
        let repeat = (LARGE / 4).div_ceil(bytes);
        let seconds = best(|| {
            for _ in 0..repeat {
                for panel in self.aligned(&panels) {
                    self.kernels.linear_panel(self.format, &codebook, panel, self.k, self.rows(), &mut out);
                    black_box(&out);
                }
            }
        });
        (repeat * (panels.len() - 64)) as f64 / seconds / 1e9
    }

    /// As the runtime cuts a prompt: blocks of tokens, in each all panels.
    fn prefill(&self) -> f64 {
        let codebook = core::array::from_fn(|i| (i * 8) as u8);
        let (panels, panel_bytes) = (self.panels(SMALL), self.format.panel_bytes(self.k));
        let skip = panels.as_ptr().align_offset(64);
        let panels = &panels[skip..panels.len() - 64 + skip];
        let (sharing, at_once) = (self.kernels.sharing_panels(), self.kernels.tokens_at_once());
        let mut out = Box::new(Sums::<{ MAX_TOKENS * MAX_SHARING_PANELS }>::ZEROS);
        let mut count = 0;
        let seconds = best(|| {
            count = 0;
            for t in (0..TOKENS).step_by(at_once) {
                let (n, rows) = (at_once.min(TOKENS - t), self.rows().skip(t));
                for data in panels.chunks(sharing * panel_bytes) {
                    let out = &mut out.0[..data.len() / panel_bytes * n];
                    self.kernels.linear_panels(self.format, &codebook, data, self.k, rows, n, out);
                    black_box(&out);
                    count += out.len() * PANEL_ROWS * self.k;
                }
            }
        });
        count as f64 / seconds / 1e9
    }
}

/// Seconds of the fastest of the runs that fit in about half a second, at least three.
fn best(mut run: impl FnMut()) -> f64 {
    run();
    let start = Instant::now();
    let mut best = f64::INFINITY;
    let mut runs = 0;
    while runs < 3 || start.elapsed() < Duration::from_millis(400) {
        let one = Instant::now();
        run();
        best = best.min(one.elapsed().as_secs_f64());
        runs += 1;
    }
    best
}
