use std::vec::Vec;

use super::Kernels;
use crate::kernels::cases::{Guarded, LENGTHS, Random, assert_same, exp, row_sum};

const SPECIAL: [f32; 6] = [f32::NAN, f32::NEG_INFINITY, -0.0, 0.0, f32::INFINITY, -1e-40];

/// Rows with many equal elements, NaN and infinities.
fn rows(random: &mut Random, n: usize) -> [Vec<f32>; 6] {
    [
        random.row(n, 3.0),
        (0..n).map(|_| random.below(5) as f32 - 2.0).collect(),
        (0..n).map(|_| SPECIAL[random.below(6)]).collect(),
        (0..n).map(|_| SPECIAL[random.below(2)]).collect(),
        std::vec![f32::NEG_INFINITY; n],
        std::vec![f32::NAN; n],
    ]
}

fn naive_softmax(x: &[f32]) -> Vec<f32> {
    let largest = x.iter().fold(f32::NEG_INFINITY, |m, x| if *x > m { *x } else { m });
    if largest == f32::NEG_INFINITY {
        return std::vec![0.0; x.len()];
    }
    let e: Vec<f32> = x.iter().map(|x| exp(x - largest)).collect();
    let total = row_sum(&e);
    e.iter().map(|e| e / total).collect()
}

#[test]
fn softmax_equals_the_plain_definition() {
    let mut random = Random::new(21);
    for n in LENGTHS {
        for row in rows(&mut random, n) {
            let want = naive_softmax(&row);
            for kernels in Kernels::supported() {
                for offset in [0, 1] {
                    let mut got = Guarded::new(&row, offset);
                    kernels.softmax_in_place(got.get());
                    assert_same(got.check(), &want, &std::format!("{kernels:?}, n {n}, {row:?}"));
                }
            }
        }
    }
}

#[test]
fn softmax_is_a_distribution() {
    let mut row = Random::new(22).row(49_152, 8.0);
    Kernels::best().softmax_in_place(&mut row);
    let total: f64 = row.iter().map(|p| f64::from(*p)).sum();
    assert!((total - 1.0).abs() < 1e-5, "{total}");
    assert!(row.iter().all(|p| (0.0..=1.0).contains(p)));
}

/// Indices by falling value, equal ones by index, NaN left out.
fn ranked(x: &[f32]) -> Vec<usize> {
    let mut order: Vec<usize> = (0..x.len()).filter(|i| !x[*i].is_nan()).collect();
    order.sort_by(|a, b| x[*b].partial_cmp(&x[*a]).expect("no NaN").then(a.cmp(b)));
    order
}

#[test]
fn largest_elements_are_found_in_order() {
    let mut random = Random::new(23);
    for n in LENGTHS.into_iter().chain([127, 128, 256, 300, 5_000]) {
        for row in rows(&mut random, n) {
            let order = ranked(&row);
            for kernels in Kernels::supported() {
                let best = if n == 0 { None } else { Some(order.first().copied().unwrap_or(0)) };
                assert_eq!(kernels.argmax(&row), best, "{kernels:?}, n {n}");
                for k in [0, 1, 2, 8, 40, 130] {
                    let (mut index, mut value) = (std::vec![u32::MAX; k], std::vec![7.0; k]);
                    let found = kernels.top_k(&row, &mut index, &mut value);
                    assert_eq!(found, k.min(order.len()), "{kernels:?}, n {n}, k {k}");
                    for i in 0..found {
                        assert_eq!(index[i] as usize, order[i], "{kernels:?}, n {n}, k {k}, place {i}");
                        assert_eq!(value[i], row[order[i]]);
                    }
                    assert!(value[found..].iter().all(|v| *v == 7.0));
                }
            }
        }
    }
}
