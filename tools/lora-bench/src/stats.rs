//! Medians and spreads.

/// Median and quartiles of some measurements.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Spread {
    /// A quarter of the values is below.
    pub low: f64,
    /// The middle value.
    pub median: f64,
    /// A quarter of the values is above.
    pub high: f64,
}

impl Spread {
    /// Of `values`, which are sorted here.
    ///
    /// # Panics
    /// When there are none.
    pub fn of(values: &mut [f64]) -> Self {
        values.sort_by(f64::total_cmp);
        Self { low: quantile(values, 0.25), median: quantile(values, 0.5), high: quantile(values, 0.75) }
    }
}

/// The value that a share `q` of the sorted values is below, interpolated.
fn quantile(sorted: &[f64], q: f64) -> f64 {
    let at = q * (sorted.len() - 1) as f64;
    let (below, above) = (sorted[at.floor() as usize], sorted[at.ceil() as usize]);
    below + (above - below) * at.fract()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quartiles() {
        let spread = Spread::of(&mut [4.0, 1.0, 3.0, 2.0, 5.0]);
        assert_eq!(spread, Spread { low: 2.0, median: 3.0, high: 4.0 });
        assert_eq!(Spread::of(&mut [1.0, 2.0]).median, 1.5);
        assert_eq!(Spread::of(&mut [7.0]), Spread { low: 7.0, median: 7.0, high: 7.0 });
    }
}
