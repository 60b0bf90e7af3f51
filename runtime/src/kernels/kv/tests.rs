use std::vec::Vec;

use super::*;
use crate::kernels::cases::Random;

/// One position's row as it reads back: codes or values, and the scale (1 for floats), in plain loops.
fn kept(kv: KvType, x: &[f32]) -> (Vec<f32>, f32) {
    match kv {
        KvType::F32 => (x.to_vec(), 1.0),
        KvType::F16 => (x.iter().map(|x| half::f16::from_f32(*x).to_f32()).collect(), 1.0),
        KvType::I8 => {
            let largest = x.iter().fold(0f32, |m, x| if x.abs() > m { x.abs() } else { m });
            let scale = half::f16::from_f32((largest / 127.0).min(65_504.0)).to_f32();
            let code = |x: &f32| match x / scale {
                _ if scale == 0.0 => 0.0,
                v if v.is_nan() => -127.0,
                v => v.clamp(-127.0, 127.0).round_ties_even(),
            };
            (x.iter().map(code).collect(), scale)
        }
    }
}

fn element(kv: KvType, bytes: &[u8], i: usize) -> f32 {
    match kv {
        KvType::F32 => f32::from_le_bytes(bytes[4 * i..4 * i + 4].try_into().expect("four bytes")),
        KvType::F16 => half::f16::from_le_bytes([bytes[2 * i], bytes[2 * i + 1]]).to_f32(),
        KvType::I8 => f32::from(bytes[i] as i8),
    }
}

#[test]
fn positions_lie_where_the_layout_says() {
    let mut random = Random::new(31);
    for kv in [KvType::F32, KvType::F16, KvType::I8] {
        for (dk, dv) in [(64, 64), (17, 8), (1, 80), (80, 33)] {
            let layout = KvLayout::new(kv, dk, dv);
            let bytes = kv_head_bytes(kv, dk, dv, 35);
            assert_eq!(bytes, 3 * layout.block);
            assert_eq!((layout.block % KV_ALIGN, layout.values % KV_ALIGN), (0, 0));
            for kernels in Kernels::supported() {
                let mut region = std::vec![0xa5u8; bytes];
                let mut rows = Vec::new();
                for pos in 0..35 {
                    let (mut k, v) = (random.row(dk, 2.0), random.row(dv, 2.0));
                    if pos == 7 {
                        k.fill(0.0);
                    }
                    kernels.kv_store(kv, &mut region, pos, &k, &v);
                    rows.push((kept(kv, &k), kept(kv, &v)));
                }
                for (pos, ((k, k_scale), (v, v_scale))) in rows.iter().enumerate() {
                    let block = &region[pos / 16 * layout.block..][..layout.block];
                    let (keys, values) = block.split_at(layout.values);
                    for (d, k) in k.iter().enumerate() {
                        assert_eq!(element(kv, keys, d * 16 + pos % 16), *k, "{kernels:?} {kv:?} key {pos} {d}");
                    }
                    for d in 0..layout.row {
                        // Behind the row come zeros.
                        let want = v.get(d).copied().unwrap_or(0.0);
                        assert_eq!(
                            element(kv, values, pos % 16 * layout.row + d),
                            want,
                            "{kernels:?} {kv:?} {pos} {d}"
                        );
                    }
                    if kv == KvType::I8 {
                        assert_eq!(element(KvType::F16, &keys[dk * 16..], pos % 16), *k_scale);
                        assert_eq!(element(KvType::F16, &values[layout.row * 16..], pos % 16), *v_scale);
                    }
                }
            }
        }
    }
}

#[test]
fn wild_values_are_defined_and_equal_at_every_level() {
    let mut random = Random::new(32);
    for kv in [KvType::F32, KvType::F16, KvType::I8] {
        for n in [1, 8, 17, 64] {
            for _ in 0..20 {
                // A NaN's sign and payload are no part of the contract, and floats keep them; so no NaN there.
                let mut row = || {
                    let row = random.wild_row(n);
                    row.iter().map(|x| if x.is_nan() && kv != KvType::I8 { 1.0 } else { *x }).collect::<Vec<f32>>()
                };
                let (k, v) = (row(), row());
                let mut want = None;
                for kernels in Kernels::supported() {
                    let mut region = std::vec![0u8; kv_head_bytes(kv, n, n, 1)];
                    kernels.kv_store(kv, &mut region, 0, &k, &v);
                    if kv == KvType::I8 {
                        for (d, code) in kept(kv, &k).0.iter().enumerate() {
                            assert_eq!(element(kv, &region, d * 16), *code, "{kernels:?} {k:?}");
                        }
                    }
                    assert_eq!(want.get_or_insert(region.clone()), &region, "{kernels:?}");
                }
            }
        }
    }
}

#[test]
#[should_panic(expected = "out of range")]
fn positions_beyond_the_region_are_refused() {
    let mut region = std::vec![0u8; kv_head_bytes(KvType::F16, 8, 8, 16)];
    Kernels::best().kv_store(KvType::F16, &mut region, 16, &[0.0; 8], &[0.0; 8]);
}

#[test]
fn numbers_lead_back() {
    for kv in [KvType::F32, KvType::F16, KvType::I8] {
        assert_eq!(KvType::from_u16(kv as u16), Some(kv));
    }
    assert_eq!(KvType::from_u16(3), None);
}
