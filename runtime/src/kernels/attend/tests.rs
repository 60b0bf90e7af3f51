use std::vec::Vec;

use super::*;
use crate::kernels::cases::{self, Guarded, Random, assert_same};
use crate::kernels::kv::kv_head_bytes;

/// A cache of `ctx` positions kept both ways: the region, and rows as they read back with their scales.
struct Cache {
    kv: KvType,
    keys: Vec<(Vec<f32>, f32)>,
    values: Vec<(Vec<f32>, f32)>,
    inputs: Vec<(Vec<f32>, Vec<f32>)>,
    bytes: usize,
}

fn kept(kv: KvType, x: &[f32]) -> (Vec<f32>, f32) {
    match kv {
        KvType::F32 => (x.to_vec(), 1.0),
        KvType::F16 => (x.iter().map(|x| half::f16::from_f32(*x).to_f32()).collect(), 1.0),
        KvType::I8 => {
            let largest = x.iter().fold(0f32, |m, x| m.max(x.abs()));
            let scale = half::f16::from_f32(largest / 127.0).to_f32();
            (x.iter().map(|x| (x / scale).clamp(-127.0, 127.0).round_ties_even()).collect(), scale)
        }
    }
}

impl Cache {
    fn new(random: &mut Random, kv: KvType, dk: usize, dv: usize, ctx: usize) -> Self {
        let inputs: Vec<_> = (0..ctx).map(|_| (random.row(dk, 1.0), random.row(dv, 1.0))).collect();
        let keys = inputs.iter().map(|(k, _)| kept(kv, k)).collect();
        let values = inputs.iter().map(|(_, v)| kept(kv, v)).collect();
        Self { kv, keys, values, inputs, bytes: kv_head_bytes(kv, dk, dv, ctx) }
    }
    /// A region full of NaN (as far as the type has any).
    fn empty(&self) -> Vec<u8> {
        std::vec![0xff; self.bytes]
    }
    fn store(&self, kernels: &Kernels, region: &mut [u8], positions: core::ops::Range<usize>) {
        for pos in positions {
            let (k, v) = &self.inputs[pos];
            kernels.kv_store(self.kv, region, pos, k, v);
        }
    }
}

/// The definition in plain loops, one query at a time.
fn naive(cache: &Cache, a: &Attend<'_>) -> Vec<f32> {
    let mut out = Vec::new();
    for t in 0..a.tokens {
        for h in 0..a.heads {
            let i = a.pos + t;
            let q = &a.q[t * a.q_stride + h * a.head_dim_k..][..a.head_dim_k];
            let (lo, hi) = (i.saturating_sub(a.back), i.saturating_add(a.ahead).saturating_add(1).min(a.len));
            let mut m = a.sinks.map_or(f32::NEG_INFINITY, |s| s[h]);
            let mut l = [0f32; 16];
            l[0] = if a.sinks.is_some() { 1.0 } else { 0.0 };
            let mut o = std::vec![0f32; a.head_dim_v];
            let mut at = lo;
            while at < hi {
                let end = ((at / STEP + 1) * STEP).min(hi);
                let scores: Vec<f32> = (at..end)
                    .map(|j| {
                        let (k, k_scale) = &cache.keys[j];
                        let sum = q.iter().zip(k).fold(0f32, |s, (q, k)| s + q * k);
                        let mut s = (sum * k_scale) * a.scale;
                        if a.softcap != 0.0 {
                            s = a.softcap * cases::tanh(s / a.softcap);
                        }
                        let distance = j as isize - i as isize;
                        match a.bias {
                            Bias::None => s,
                            Bias::Rows(r) => {
                                let at = (distance + r.offset as isize).clamp(0, r.entry.len() as isize - 1);
                                let entry = h * r.width + (r.entry[at as usize] as usize).min(r.width - 1);
                                s + (r.rows[i * r.stride + entry] + r.rows[j * r.stride + r.keys + entry])
                            }
                            Bias::Alibi(slopes) => s + slopes[h] * distance as f32,
                            Bias::Relative { tables, width, offset } => {
                                let at = (distance + offset as isize).clamp(0, width as isize - 1);
                                s + tables[h * width + at as usize]
                            }
                        }
                    })
                    .collect();
                let top = scores.iter().fold(m, |m, s| m.max(*s));
                let c = if top == m { 1.0 } else { cases::exp(m - top) };
                m = top;
                l = l.map(|l| l * c);
                o.iter_mut().for_each(|o| *o *= c);
                for (j, s) in (at..end).zip(&scores) {
                    let p = cases::exp(s - m);
                    l[j % 16] += p;
                    let (v, v_scale) = &cache.values[j];
                    let p = p * v_scale;
                    o.iter_mut().zip(v).for_each(|(o, v)| *o += p * v);
                }
                at = end;
            }
            let total = cases::row_sum(&l);
            out.extend(o.iter().map(|o| if total == 0.0 { 0.0 } else { o / total }));
        }
    }
    out
}

fn plain<'a>(cache: &Cache, region: &'a [u8], q: &'a [f32], (dk, dv): (usize, usize), heads: usize) -> Attend<'a> {
    Attend {
        kv: cache.kv,
        region,
        len: cache.keys.len(),
        head_dim_k: dk,
        head_dim_v: dv,
        q,
        q_stride: heads * dk,
        tokens: q.len() / (heads * dk),
        heads,
        pos: 0,
        back: usize::MAX,
        ahead: 0,
        scale: 1.0 / (dk as f32).sqrt(),
        softcap: 0.0,
        bias: Bias::None,
        sinks: None,
    }
}

/// One call at every level against the definition, with guard bands.
fn check(cache: &Cache, a: &Attend<'_>, what: &str) {
    let want = naive(cache, a);
    let width = a.heads * a.head_dim_v;
    for kernels in Kernels::supported() {
        let mut region = cache.empty();
        cache.store(kernels, &mut region, 0..a.len);
        let call = Attend { region: &region, ..*a };
        // A gap between the tokens must stay as it is.
        let gap = 3;
        let mut out = Guarded::new(&std::vec![5.0; a.tokens * (width + gap)], a.heads % 4);
        kernels.attend(&call, out.get(), width + gap);
        for (t, token) in out.check().chunks_exact(width + gap).enumerate() {
            assert_same(&token[..width], &want[t * width..][..width], &std::format!("{kernels:?}, {what}, token {t}"));
            assert_eq!(token[width..], [5.0; 3]);
        }
    }
}

const TYPES: [KvType; 3] = [KvType::F32, KvType::F16, KvType::I8];

#[test]
fn shapes_and_types_equal_the_plain_definition() {
    let mut random = Random::new(41);
    for kv in TYPES {
        for (heads, dk, dv) in [(1, 64, 64), (3, 64, 64), (4, 80, 72), (7, 17, 5), (2, 128, 128), (18, 8, 33)] {
            for tokens in [1, 2, 5, 37] {
                for extra in [0, 15, 16, 130] {
                    let len = tokens + extra;
                    let cache = Cache::new(&mut random, kv, dk, dv, len);
                    let q = random.row(tokens * heads * dk, 1.0);
                    let a = Attend { pos: extra, ..plain(&cache, &[], &q, (dk, dv), heads) };
                    check(&cache, &a, &std::format!("{kv:?} heads {heads}, {dk}/{dv}, {tokens} tokens after {extra}"));
                }
            }
        }
    }
}

#[test]
fn options_equal_the_plain_definition() {
    let mut random = Random::new(42);
    let (heads, dk, dv, len, tokens) = (3, 32, 48, 150, 21);
    let slopes = [0.25, 0.5, 0.0625];
    let tables = random.row(3 * 41, 1.0);
    let sinks = [1.5, -2.0, 40.0];
    let biases = [Bias::None, Bias::Alibi(&slopes), Bias::Relative { tables: &tables, width: 41, offset: 20 }];
    for kv in TYPES {
        let cache = Cache::new(&mut random, kv, dk, dv, len);
        let q = random.row(tokens * heads * dk, 1.0);
        let base = plain(&cache, &[], &q, (dk, dv), heads);
        for (back, ahead) in [(usize::MAX, 0), (usize::MAX, usize::MAX), (0, 0), (10, 0), (63, 0), (8, 8), (100, 70)] {
            for pos in [0, 5, 129] {
                for bias in biases {
                    for sinks in [None, Some(&sinks[..])] {
                        for softcap in [0.0, 2.5] {
                            let a = Attend { pos, back, ahead, bias, sinks, softcap, ..base };
                            check(
                                &cache,
                                &a,
                                &std::format!("{kv:?} {pos} −{back} +{ahead} {bias:?} {sinks:?} {softcap}"),
                            );
                        }
                    }
                }
            }
        }
    }
}

/// However the tokens are cut into calls, and whatever lies in the cache beyond them.
#[test]
fn chunks_do_not_matter() {
    let mut random = Random::new(43);
    let (heads, dk, dv, len) = (3, 32, 32, 300);
    for kv in TYPES {
        let cache = Cache::new(&mut random, kv, dk, dv, len);
        let q = random.row(len * heads * dk, 1.0);
        for back in [usize::MAX, 40] {
            let want = naive(&cache, &Attend { back, ..plain(&cache, &[], &q, (dk, dv), heads) });
            for kernels in Kernels::supported() {
                for largest in [1, 20, 100, 300] {
                    let mut region = cache.empty();
                    let mut got = std::vec![0.0; len * heads * dv];
                    let mut pos = 0;
                    while pos < len {
                        let tokens = (1 + random.below(largest)).min(len - pos);
                        cache.store(kernels, &mut region, pos..pos + tokens);
                        let q = &q[pos * heads * dk..][..tokens * heads * dk];
                        let call =
                            Attend { back, pos, len: pos + tokens, ..plain(&cache, &region, q, (dk, dv), heads) };
                        kernels.attend(&call, &mut got[pos * heads * dv..][..tokens * heads * dv], heads * dv);
                        pos += tokens;
                    }
                    assert_same(&got, &want, &std::format!("{kernels:?} {kv:?}, chunks up to {largest}"));
                }
            }
        }
    }
}

#[test]
fn nothing_visible_gives_zeros() {
    let mut random = Random::new(44);
    let cache = Cache::new(&mut random, KvType::F16, 16, 16, 20);
    let q = random.row(2 * 16, 1.0);
    let region = cache.empty();
    for kernels in Kernels::supported() {
        let mut out = [7.0; 32];
        // Nothing is stored; then: everything stored lies outside the window.
        for (len, pos, back) in [(0, 0, usize::MAX), (20, 40, 3)] {
            out.fill(7.0);
            let call = Attend { len, pos, back, ..plain(&cache, &region, &q, (16, 16), 2) };
            kernels.attend(&call, &mut out, 32);
            assert_eq!(out, [0.0; 32]);
        }
        kernels.attend(&Attend { tokens: 0, ..plain(&cache, &region, &[], (16, 16), 2) }, &mut [], 32);
        // With a sink, likewise.
        out.fill(7.0);
        kernels.attend(
            &Attend { len: 0, sinks: Some(&[1.0, 2.0]), ..plain(&cache, &region, &q, (16, 16), 2) },
            &mut out,
            32,
        );
        assert_eq!(out, [0.0; 32]);
    }
}

/// The definition itself against binary64 and an ordinary softmax.
#[test]
fn results_are_accurate() {
    let mut random = Random::new(45);
    let (dk, len) = (64, 500);
    let cache = Cache::new(&mut random, KvType::F32, dk, dk, len);
    let q = random.row(dk, 1.0);
    let a = Attend { pos: len - 1, ..plain(&cache, &[], &q, (dk, dk), 1) };
    let got = naive(&cache, &a);
    let dot = |k: &[f32]| q.iter().zip(k).map(|(q, k)| f64::from(*q) * f64::from(*k)).sum::<f64>() / 8.0;
    let weights: Vec<f64> = cache.keys.iter().map(|(k, _)| dot(k).exp()).collect();
    let total: f64 = weights.iter().sum();
    for d in 0..dk {
        let want: f64 = weights.iter().zip(&cache.values).map(|(w, (v, _))| w * f64::from(v[d])).sum::<f64>() / total;
        assert!((f64::from(got[d]) - want).abs() < 1e-5, "{d}: {} {want}", got[d]);
    }
}

/// Sums that overflow, infinite and NaN elements: defined, and the same at every level.
#[test]
fn wild_values_are_equal_at_every_level() {
    let mut random = Random::new(46);
    for kv in TYPES {
        for _ in 0..20 {
            let (dk, dv, len, heads) = (8, 8, 40, 3);
            let mut cache = Cache::new(&mut random, kv, dk, dv, len);
            for (k, v) in &mut cache.inputs {
                if random.below(10) == 0 {
                    (*k, *v) = (random.wild_row(dk), random.wild_row(dv));
                }
            }
            let q = random.row(len * heads * dk, 1e3);
            let mut want: Option<Vec<f32>> = None;
            for kernels in Kernels::supported() {
                let mut region = cache.empty();
                cache.store(kernels, &mut region, 0..len);
                let mut out = std::vec![0.0; len * heads * dv];
                kernels.attend(&plain(&cache, &region, &q, (dk, dv), heads), &mut out, heads * dv);
                assert_same(&out, want.get_or_insert(out.clone()), &std::format!("{kernels:?} {kv:?}"));
            }
        }
    }
}

#[test]
#[should_panic(expected = "the region ends")]
fn a_region_that_is_too_small_is_refused() {
    let q = [0.0; 16];
    let cache = Cache::new(&mut Random::new(47), KvType::F32, 16, 16, 17);
    let region = std::vec![0; cache.bytes - 1];
    Kernels::best().attend(&plain(&cache, &region, &q, (16, 16), 1), &mut [0.0; 16], 16);
}

#[test]
#[should_panic(expected = "the output is too short")]
fn an_output_that_is_too_short_is_refused() {
    let q = [0.0; 32];
    let cache = Cache::new(&mut Random::new(48), KvType::F32, 16, 16, 17);
    Kernels::best().attend(&plain(&cache, &cache.empty(), &q, (16, 16), 1), &mut [0.0; 31], 16);
}
