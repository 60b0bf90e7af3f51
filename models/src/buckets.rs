//! T5's buckets of relative positions (Raffel et al. 2020): one per distance while it is small, then ranges that grow
//! with it, the last one open.

/// The bucket of every distance `d` from `−max_distance` to `max_distance`, key position minus query position, as
/// `[d + max_distance]`. Distances beyond have the bucket of the outermost. With `both_ways`, half of the buckets are for keys
/// after the query; else these have the bucket of distance 0.
///
/// `None` where the sizes leave no room for the ranges.
#[must_use]
pub fn by_distance(buckets: usize, max_distance: usize, both_ways: bool) -> Option<Vec<usize>> {
    let side = if both_ways { buckets / 2 } else { buckets };
    let exact = side / 2;
    if exact == 0 || max_distance <= exact || (both_ways && !buckets.is_multiple_of(2)) {
        return None;
    }
    // Rounded as the framework rounds: binary32 throughout, the denominator from binary64.
    let span = (max_distance as f64 / exact as f64).ln() as f32;
    let bucket = |d: usize| {
        if d < exact {
            return d;
        }
        let large = (d as f32 / exact as f32).ln() / span * (side - exact) as f32;
        (exact + large as usize).min(side - 1)
    };
    let before = (0..=max_distance).rev().map(bucket);
    let after = (1..=max_distance).map(|d| if both_ways { side + bucket(d) } else { 0 });
    Some(before.chain(after).collect())
}

/// DeBERTa's rows of relative positions (He et al. 2021): one per distance up to half of the buckets on either side, then by
/// the logarithm. The row of every distance `d` from `−(positions − 1)` to `positions − 1`, key position minus query position.
/// Without `buckets`, one per distance up to `max_distance`.
///
/// `None` where the sizes leave no room for the ranges.
#[must_use]
pub fn disentangled(buckets: usize, max_distance: usize, positions: usize) -> Option<Vec<usize>> {
    let span = if buckets > 0 { buckets } else { max_distance } as i64;
    let mid = (buckets / 2) as i64;
    if span == 0 || positions == 0 || (buckets > 0 && (mid == 0 || max_distance as i64 - 1 <= mid)) {
        return None;
    }
    let bucket = |distance: i64| {
        let far = distance.abs();
        if buckets == 0 || far <= mid {
            return distance;
        }
        // Rounded as the framework rounds: binary32 throughout.
        let scale = ((max_distance - 1) as f32 / mid as f32).ln();
        let step = ((far as f32 / mid as f32).ln() / scale * (mid - 1) as f32).ceil() as i64;
        (step + mid) * distance.signum()
    };
    let last = positions as i64 - 1;
    // The framework counts from the key to the query.
    Some((-last..=last).map(|d| (bucket(-d) + span).clamp(0, 2 * span - 1) as usize).collect())
}

#[cfg(test)]
mod tests {
    use super::{by_distance, disentangled};

    #[test]
    fn disentangled_rows() {
        // 8 buckets: distances to 4 are exact, then three steps of the logarithm up to 15.
        let rows = disentangled(8, 16, 16).unwrap();
        assert_eq!(rows.len(), 31);
        assert_eq!(rows[15], 8);
        // Keys before the query: a positive distance from key to query.
        assert_eq!(rows[11..15], [12, 11, 10, 9]);
        assert_eq!([rows[10], rows[8], rows[7], rows[4], rows[0]], [13, 14, 14, 15, 15]);
        assert_eq!([rows[16], rows[19], rows[20], rows[30]], [7, 4, 3, 1]);
        assert_eq!(disentangled(0, 3, 6).unwrap(), [5, 5, 5, 5, 4, 3, 2, 1, 0, 0, 0]);
        assert!(disentangled(8, 4, 16).is_none());
    }

    #[test]
    fn both_ways() {
        // 8 buckets: 4 a side, distances 0 and 1 exact, then [2, 6) and everything beyond (√(2·20) ≈ 6.3).
        let b = by_distance(8, 20, true).unwrap();
        assert_eq!(b.len(), 41);
        assert_eq!(b[20], 0);
        assert_eq!([b[19], b[18], b[14], b[13], b[0]], [1, 2, 2, 3, 3]);
        assert_eq!([b[21], b[22], b[26], b[27], b[40]], [5, 6, 6, 7, 7]);
    }

    #[test]
    fn one_way() {
        let b = by_distance(32, 128, false).unwrap();
        assert_eq!(b[128..], [0; 129]);
        assert_eq!(b[128 - 15..128], [15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1]);
        assert_eq!([b[128 - 16], b[0]], [16, 31]);
    }

    #[test]
    fn impossible_sizes() {
        assert!(by_distance(1, 128, false).is_none());
        assert!(by_distance(7, 128, true).is_none());
        assert!(by_distance(32, 8, true).is_none());
    }
}
