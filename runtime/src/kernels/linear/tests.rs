//! Every level against [`reference`], to the bit.

use std::vec;
use std::vec::Vec;

use super::*;
use crate::kernels::guarded::Guarded;
use crate::kernels::{QuantRow, quant_row_bytes, reference};
use crate::weights::GROUP;

const CODEBOOK: [u8; 16] = [0, 13, 23, 31, 39, 46, 52, 59, 64, 71, 78, 85, 92, 100, 109, 127];
/// The last is more than levels that prepare activations do in one run.
const KS: [usize; 10] = [0, 1, 31, 32, 33, 64, 96, 576, 1536, 4200];

struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }
    fn float(&mut self) -> f32 {
        (self.next() >> 40) as f32 / 8_388_608.0 - 1.0
    }
    fn below(&mut self, n: u64) -> u64 {
        (self.next() >> 20) % n
    }
}

/// How codes and activations are chosen.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Fill {
    Random,
    /// Lowest code, activations ±127 with the sign that makes every product positive.
    Lowest,
    /// Highest code, activations all −127.
    Highest,
    /// Lowest and highest codes in turns.
    Mixed,
}

fn weights(format: WeightFormat, k: usize, n: usize, fill: Fill, random: &mut Random) -> QuantizedRows {
    let range = QuantizedRows::code_range(format);
    let (low, high) = (*range.start(), *range.end());
    let span = (i32::from(high) - i32::from(low) + 1) as u64;
    let codes = (0..n * k)
        .map(|i| match fill {
            Fill::Random => (i32::from(low) + random.below(span) as i32) as i8,
            Fill::Lowest => low,
            Fill::Highest => high,
            Fill::Mixed => [low, high, high, low][i % 4],
        })
        .collect();
    let groups = n * k.div_ceil(GROUP);
    let multipliers = match format.multiplier_bytes() {
        0 => Multipliers::None,
        1 => Multipliers::Int(
            (0..groups)
                .map(|i| match fill {
                    Fill::Random => random.next() as i8,
                    _ => [-128, 127][i % 2],
                })
                .collect(),
        ),
        2 => Multipliers::Half((0..groups).map(|_| half::f16::from_f32(random.float() * 0.01).to_bits()).collect()),
        _ => Multipliers::HalfAndMinimum(
            (0..groups).map(|_| [0.01, 0.1].map(|by| half::f16::from_f32(random.float() * by).to_bits())).collect(),
        ),
    };
    let row_scales = if format.has_row_scale() { (0..n).map(|_| random.float() * 1e-3).collect() } else { vec![] };
    QuantizedRows { format, k, codes, multipliers, row_scales }
}

fn activations(k: usize, fill: Fill, t: usize, random: &mut Random) -> Vec<f32> {
    (0..k)
        .map(|i| match fill {
            Fill::Random => random.float() * (1 + t) as f32,
            Fill::Lowest => -127.0,
            Fill::Highest => 127.0 * if t.is_multiple_of(2) { 1.0 } else { -1.0 },
            Fill::Mixed => [-1.0, 1.0, -1.0, 1.0][(i + t) % 4],
        })
        .collect()
}

/// Runs one panel over `rows` on every level, at the end of a readable page and at odd addresses, and compares.
fn check(
    format: WeightFormat,
    panel: &[u8],
    k: usize,
    rows: &[u8],
    stride: usize,
    want: &[[f32; 16]],
    what: &str,
) -> usize {
    let tokens = want.len();
    let used = stride * (tokens - 1) + if format.is_float() { 4 * k } else { quant_row_used(k) };
    let mut cases = 0;
    for kernels in Kernels::supported() {
        for odd in [false, true] {
            // At the end of the page: a read or write beyond faults. At an odd address: guards see a stray write.
            let tail = usize::from(odd) * 3;
            let guarded = Guarded::new(panel, tail);
            let x = Guarded::new(&rows[..used], tail);
            let mut out = vec![[f32::from_bits(0xdead_beef); 16]; tokens + 2];
            let x = ActRows::new(x.bytes(), stride);
            kernels.linear_panel(format, &CODEBOOK, guarded.bytes(), k, x, &mut out[1..=tokens]);
            for (t, (got, want)) in out[1..=tokens].iter().zip(want).enumerate() {
                for r in 0..16 {
                    assert!(
                        got[r].to_bits() == want[r].to_bits(),
                        "{kernels:?} {format:?} {what} k={k} tokens={tokens}: row {r} of token {t} is {:e}, not {:e}",
                        got[r],
                        want[r],
                    );
                }
            }
            for guard in [out[0], out[tokens + 1]] {
                assert!(guard.iter().all(|v| v.to_bits() == 0xdead_beef), "wrote outside");
            }
            cases += 1;
        }
    }
    cases
}

#[test]
fn quantized_equals_the_reference_on_every_level() {
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    let mut cases = 0;
    for format in WeightFormat::ALL.into_iter().filter(|format| !format.is_float()) {
        for k in KS {
            for fill in [Fill::Random, Fill::Lowest, Fill::Highest, Fill::Mixed] {
                // The last panel of a weight is often not full.
                let n = if k == 33 { 5 } else { 16 };
                let w = weights(format, k, n, fill, &mut random);
                let panel = if k == 0 { vec![0; format.panel_bytes(0)] } else { w.pack() };
                let row = quant_row_bytes(k);
                let stride = row + if k == 64 { 64 } else { 0 };
                // Many tokens of long rows take long to check: once.
                let most = if k < 576 || k == 576 && matches!(fill, Fill::Random) { MAX_TOKENS } else { 16 };
                let mut rows = vec![0u8; stride * most];
                for (t, out) in rows.chunks_mut(stride.max(1)).enumerate() {
                    let x = activations(k, fill, t, &mut random);
                    Kernels::for_level(Level::Scalar).unwrap().quantize_row(&x, &mut out[..row]);
                }
                let want: Vec<[f32; 16]> = (0..most)
                    .map(|t| {
                        let x = QuantRow::new(&rows[t * stride..], k);
                        core::array::from_fn(|r| {
                            if r < n && k > 0 { reference::linear_quantized(&w, &CODEBOOK, r, &x) } else { 0.0 }
                        })
                    })
                    .collect();
                for tokens in (1..=8).chain([15, 16, 17, 33, 64]).filter(|tokens| *tokens <= most) {
                    if k >= 576 && ![1, 3, 16, 64].contains(&tokens) {
                        continue;
                    }
                    cases += check(format, &panel, k, &rows, stride, &want[..tokens], &std::format!("{fill:?}"));
                }
            }
        }
    }
    std::eprintln!("linear, quantized: {cases} cases");
    assert!(cases >= 3000);
}

#[test]
fn floats_equal_the_reference_on_every_level() {
    let mut random = Random(0x2545_f491_4f6c_dd1d);
    let mut cases = 0;
    for format in [WeightFormat::F32, WeightFormat::F16] {
        for k in KS {
            let n = if k == 33 { 5 } else { 16 };
            let w: Vec<f32> = (0..n * k)
                .map(|_| {
                    let v = random.float();
                    if format == WeightFormat::F16 { half::f16::from_f32(v).to_f32() } else { v }
                })
                .collect();
            let panel = if k == 0 { vec![] } else { pack_float(format, &w, n, k) };
            let stride = 4 * k + if k == 64 { 20 } else { 0 };
            let mut rows = vec![0u8; stride * MAX_TOKENS];
            let want: Vec<[f32; 16]> = (0..MAX_TOKENS)
                .map(|t| {
                    let x = activations(k, Fill::Random, t, &mut random);
                    for (i, v) in x.iter().enumerate() {
                        rows[t * stride + 4 * i..][..4].copy_from_slice(&v.to_le_bytes());
                    }
                    core::array::from_fn(|r| {
                        if r < n && k > 0 { reference::linear_float(&w[r * k..][..k], &x) } else { 0.0 }
                    })
                })
                .collect();
            for tokens in (1..=8).chain([15, MAX_TOKENS]) {
                cases += check(format, &panel, k, &rows, stride, &want[..tokens], "");
            }
        }
    }
    std::eprintln!("linear, floats: {cases} cases");
    assert!(cases >= 360);
}

/// Several panels, and several rows of activations: each product is added once, to its own sums.
#[test]
fn thin_panels_add_the_reference_on_every_level() {
    const PANELS: usize = 3;
    let mut random = Random(0x1357_9bdf_0246_8ace);
    let mut cases = 0;
    for format in [WeightFormat::F32, WeightFormat::F16] {
        let size = format.thin_panel_bytes(1) / PANEL_ROWS;
        for k in [0, 1, 3, 7, 8, 9, 16, 24, 31, 32, 33, 64, 65, 256] {
            let w: Vec<f32> = (0..PANELS * 16 * k).map(|_| half::f16::from_f32(random.float()).to_f32()).collect();
            // Panel by panel, for every input the 16 rows' values.
            let at = |row: usize, i: usize| ((row / 16 * k + i) * 16 + row % 16) * size;
            let mut panels = vec![0u8; PANELS * 16 * k * size];
            for (row, i) in (0..PANELS * 16).flat_map(|row| (0..k).map(move |i| (row, i))) {
                let v = w[row * k + i];
                match format {
                    WeightFormat::F32 => panels[at(row, i)..][..4].copy_from_slice(&v.to_le_bytes()),
                    _ => panels[at(row, i)..][..2].copy_from_slice(&half::f16::from_f32(v).to_le_bytes()),
                }
            }
            for (tokens, stride) in [(1, k), (2, k + 5), (4, k), (5, k), (16, k + 16)] {
                let x: Vec<f32> = (0..tokens * stride).map(|_| random.float()).collect();
                let start: Vec<[f32; 16]> =
                    (0..PANELS * tokens).map(|_| core::array::from_fn(|_| random.float())).collect();
                let rows = bytemuck::cast_slice(&x[..stride * (tokens - 1) + k]);
                for (kernels, tail) in Kernels::supported().flat_map(|kernels| [(kernels, 0), (kernels, 3)]) {
                    let (panels, rows) = (Guarded::new(&panels, tail), Guarded::new(rows, tail));
                    let mut out = start.clone();
                    let x_rows = ActRows::new(rows.bytes(), 4 * stride);
                    kernels.add_thin_panels(format, panels.bytes(), k, x_rows, tokens, &mut out);
                    for (i, (got, start)) in out.iter().zip(&start).enumerate() {
                        let (panel, t) = (i / tokens, i % tokens);
                        for r in 0..16 {
                            let w = &w[(panel * 16 + r) * k..][..k];
                            let want = start[r] + reference::linear_float(w, &x[t * stride..][..k]);
                            assert!(
                                got[r].to_bits() == want.to_bits(),
                                "{kernels:?} {format:?} k={k} tokens={tokens}: row {r} of panel {panel}, token {t}"
                            );
                        }
                    }
                    cases += 1;
                }
            }
        }
    }
    std::eprintln!("linear, thin: {cases} cases");
    assert!(cases >= 280);
}

#[test]
fn several_panels_are_each_what_it_is_alone() {
    let mut random = Random(0x5151);
    for format in WeightFormat::ALL {
        let (n, k) = (48, 610);
        let panels = if format.is_float() {
            let w: Vec<f32> = (0..n * k).map(|_| random.float()).collect();
            pack_float(format, &w, n, k)
        } else {
            weights(format, k, n, Fill::Random, &mut random).pack()
        };
        for tokens in [1, 3, 13, 16, MAX_TOKENS] {
            let row = if format.is_float() { 4 * k } else { quant_row_bytes(k) };
            let mut rows = vec![0u8; row * tokens];
            for (t, out) in rows.chunks_mut(row).enumerate() {
                let x = activations(k, Fill::Random, t, &mut random);
                if format.is_float() {
                    out.copy_from_slice(bytemuck::cast_slice(&x));
                } else {
                    Kernels::best().quantize_row(&x, out);
                }
            }
            let x = ActRows::new(&rows, row);
            for kernels in Kernels::supported() {
                let mut together = vec![[1f32; 16]; n / 16 * tokens];
                kernels.linear_panels(format, &CODEBOOK, &panels, k, x, tokens, &mut together);
                let mut alone = vec![[0f32; 16]; tokens];
                for (panel, together) in panels.chunks(format.panel_bytes(k)).zip(together.chunks(tokens)) {
                    kernels.linear_panel(format, &CODEBOOK, panel, k, x, &mut alone);
                    assert_eq!(together, &alone[..], "{kernels:?}, {format:?}, {tokens} tokens");
                }
            }
        }
    }
}

#[test]
fn packing_and_lookup_lead_back() {
    let mut random = Random(77);
    for format in WeightFormat::ALL.into_iter().filter(|format| !format.is_float()) {
        for (n, k) in [(1, 1), (16, 32), (17, 33), (40, 576)] {
            let w = weights(format, k, n, Fill::Random, &mut random);
            let panels = w.pack();
            assert_eq!(QuantizedRows::unpack(format, &panels, n, k), w, "{format:?} {n}×{k}");
            let want = w.dequantize(&CODEBOOK);
            let mut row = vec![0f32; k];
            for r in 0..n {
                let bytes = format.panel_bytes(k);
                let panel = &panels[r / 16 * bytes..][..bytes];
                dequant_row(format, &CODEBOOK, panel, r % 16, &mut row);
                let same = row.iter().zip(&want[r * k..]).all(|(a, b)| a.to_bits() == b.to_bits());
                assert!(same, "{format:?} {n}×{k} row {r}");
            }
        }
    }
    for format in [WeightFormat::F32, WeightFormat::F16] {
        let w: Vec<f32> = (0..17 * 33).map(|_| (random.next() as i16) as f32 / 64.0).collect();
        let panels = pack_float(format, &w, 17, 33);
        let mut row = [0f32; 33];
        for r in 0..17 {
            let bytes = format.panel_bytes(33);
            dequant_row(format, &CODEBOOK, &panels[r / 16 * bytes..][..bytes], r % 16, &mut row);
            let want = w[r * 33..][..33].iter().map(|&v| match format {
                WeightFormat::F16 => half::f16::from_f32(v).to_f32(),
                _ => v,
            });
            assert!(row.iter().copied().eq(want), "{format:?} row {r}");
        }
    }
}

#[test]
fn wrong_sizes_are_refused() {
    let kernels = Kernels::best();
    let panel = vec![0u8; WeightFormat::Q4.panel_bytes(64)];
    let rows = vec![0u8; 2 * quant_row_bytes(64)];
    let call = |panel: &[u8], rows: &[u8], tokens: usize| {
        let mut out = vec![[0f32; 16]; tokens];
        let x = ActRows::new(rows, quant_row_bytes(64));
        std::panic::catch_unwind(move || kernels.linear_panel(WeightFormat::Q4, &CODEBOOK, panel, 64, x, &mut out))
            .is_ok()
    };
    assert!(call(&panel, &rows, 2));
    assert!(!call(&panel, &rows, 0));
    assert!(!call(&panel, &rows, 3));
    assert!(!call(&panel, &rows, MAX_TOKENS + 1));
    assert!(!call(&panel[1..], &rows, 1));
    assert!(!call(&panel, &rows[..quant_row_used(64) - 1], 1));

    let x = [0u8; 4 * 8];
    let thin = |panels: &[u8], x: &[u8], tokens: usize, rows: usize| {
        let mut out = vec![[0f32; 16]; rows];
        let x = ActRows::new(x, 4 * 8);
        std::panic::catch_unwind(move || kernels.add_thin_panels(WeightFormat::F16, panels, 8, x, tokens, &mut out))
            .is_ok()
    };
    let panels = vec![0u8; 2 * WeightFormat::F16.thin_panel_bytes(8)];
    assert!(thin(&panels, &x, 1, 2));
    assert!(!thin(&panels, &x, 0, 0));
    assert!(!thin(&panels, &x, 1, 1));
    assert!(!thin(&panels, &x, 1, 3));
    assert!(!thin(&panels[1..], &x, 1, 2));
    assert!(!thin(&panels, &x, 2, 4), "one row of activations too few");
    assert!(!thin(&panels, &x, 2, 3), "the last panel has one row of sums too few");
    assert!(!thin(&panels, &x[1..], 1, 2));
}
