//! Nanoseconds per call of every float kernel at the shapes of a 135M-parameter Llama (hidden 576, feed-forward 1536,
//! 9 heads over 3 kv heads of 64, vocabulary 49152), at every level that this CPU runs.
//!
//! ```text
//! cargo run --release -p lora-runtime --example float_bench [-- <word in the kernel's name> [<level>]]
//! ```

use std::hint::black_box;
use std::time::{Duration, Instant};

use lora_runtime::kernels::{Act, Attend, Bias, Kernels, KvType, RotaryStyle, kv_head_bytes};

/// The fastest of a number of batches, in nanoseconds per call.
fn time(mut call: impl FnMut()) -> f64 {
    let start = Instant::now();
    call();
    let batch = (Duration::from_millis(3).as_nanos() / start.elapsed().as_nanos().max(1)).clamp(1, 100_000) as u32;
    (0..12)
        .map(|_| {
            let start = Instant::now();
            for _ in 0..batch {
                call();
            }
            start.elapsed().as_nanos() as f64 / f64::from(batch)
        })
        .fold(f64::INFINITY, f64::min)
}

/// Values in −1…1 that differ.
fn values(n: usize) -> Vec<f32> {
    (0..n as u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 8) as f32 / (1 << 23) as f32 - 1.0).collect()
}

struct Bench {
    filter: String,
    levels: Vec<&'static Kernels>,
    names: Vec<String>,
    rows: Vec<Vec<f64>>,
}

impl Bench {
    /// Times `make(kernels)()` at every level.
    fn row<'a, F: FnMut() + 'a>(&mut self, name: &str, make: impl Fn(&'static Kernels) -> F) {
        if name.contains(&self.filter) {
            self.names.push(name.to_owned());
            self.rows.push(self.levels.iter().map(|kernels| time(make(kernels))).collect());
        }
    }
}

fn main() {
    let filter = std::env::args().nth(1).unwrap_or_default();
    let level = std::env::args().nth(2);
    let levels =
        Kernels::supported().filter(|k| level.as_ref().is_none_or(|level| level == k.level().name())).collect();
    let mut bench = Bench { filter, levels, names: Vec::new(), rows: Vec::new() };
    let (x, y, w) = (values(49_152), values(49_152), values(49_152));

    for n in [576, 1536] {
        bench.row(&format!("rms_norm {n}"), |k| {
            let mut out = vec![0.0; n];
            let (x, w) = (&x, &w);
            move || k.rms_norm(black_box(&x[..n]), Some(&w[..n]), 1e-5, &mut out)
        });
        bench.row(&format!("layer_norm {n}"), |k| {
            let mut out = vec![0.0; n];
            let (x, y, w) = (&x, &y, &w);
            move || k.layer_norm(black_box(&x[..n]), Some(&w[..n]), Some(&y[..n]), 1e-5, &mut out)
        });
        bench.row(&format!("add {n}"), |k| {
            let mut out = vec![0.0; n];
            let (x, y) = (&x, &y);
            move || k.add(black_box(&x[..n]), black_box(&y[..n]), &mut out)
        });
    }
    for act in [Act::Silu, Act::Gelu, Act::GeluTanh, Act::Tanh] {
        bench.row(&format!("gated {act:?} 1536"), |k| {
            let mut out = vec![0.0; 1536];
            let (x, y) = (&x, &y);
            move || k.gated(act, black_box(&x[..1536]), black_box(&y[..1536]), &mut out)
        });
    }
    for style in [RotaryStyle::Half, RotaryStyle::Interleaved] {
        bench.row(&format!("rotary {style:?} 12 x 64"), |k| {
            let mut heads = vec![0.5; 12 * 64];
            let (x, y) = (&x, &y);
            move || k.rotary(style, black_box(&mut heads), 64, &x[..32], &y[..32])
        });
    }
    bench.row("softmax 49152", |k| {
        let mut row = vec![0.0; x.len()];
        let x = &x;
        move || {
            row.copy_from_slice(x);
            k.softmax_in_place(black_box(&mut row));
        }
    });
    bench.row("argmax 49152", |k| {
        let x = &x;
        move || _ = black_box(k.argmax(black_box(x)))
    });
    bench.row("top_k 40 of 49152", |k| {
        let x = &x;
        let (mut index, mut value) = ([0; 40], [0.0; 40]);
        move || _ = black_box(k.top_k(black_box(x), &mut index, &mut value))
    });

    let (dim, ctx) = (64, 1024);
    for kv in [KvType::F32, KvType::F16, KvType::I8] {
        bench.row(&format!("kv_store {kv:?}"), |k| {
            let mut region = vec![0u8; kv_head_bytes(kv, dim, dim, ctx)];
            let (x, y) = (&x, &y);
            let mut pos = 0;
            move || {
                k.kv_store(kv, &mut region, pos % ctx, black_box(&x[..dim]), &y[..dim]);
                pos += 1;
            }
        });
        for (name, heads, tokens, pos) in [
            ("decode, 3 heads at 1023", 3, 1, ctx - 1),
            ("decode, 1 head at 1023", 1, 1, ctx - 1),
            ("decode, 3 heads at 127", 3, 1, 127),
            ("prefill, 3 heads, 128 tokens at 0", 3, 128, 0),
            ("prefill, 3 heads, 128 tokens at 896", 3, 128, 896),
            ("prefill, 1 head, 128 tokens at 896", 1, 128, 896),
        ] {
            bench.row(&format!("attend {kv:?} {name}"), |k| {
                let mut region = vec![0u8; kv_head_bytes(kv, dim, dim, ctx)];
                for pos in 0..ctx {
                    k.kv_store(kv, &mut region, pos, &x[pos * 32..][..dim], &y[pos * 32..][..dim]);
                }
                let q = values(tokens * heads * dim);
                let mut out = vec![0.0; q.len()];
                move || {
                    let call = Attend {
                        kv,
                        region: &region,
                        len: pos + tokens,
                        head_dim_k: dim,
                        head_dim_v: dim,
                        q: black_box(&q),
                        q_stride: heads * dim,
                        tokens,
                        heads,
                        pos,
                        back: usize::MAX,
                        ahead: 0,
                        scale: 0.125,
                        softcap: 0.0,
                        bias: Bias::None,
                        sinks: None,
                    };
                    k.attend(&call, &mut out, heads * dim);
                }
            });
        }
    }

    let levels: Vec<_> = bench.levels.iter().map(|k| k.level().name()).collect();
    println!("{:<46}{}", "ns per call", levels.iter().map(|l| format!("{l:>12}")).collect::<String>());
    for (name, row) in bench.names.iter().zip(&bench.rows) {
        println!("{name:<46}{}", row.iter().map(|ns| format!("{ns:>12.0}")).collect::<String>());
    }
}
