//! Merged weights, exported for other tools.

use super::Bench;
use crate::case::Mode;
use crate::desk::{Checked, fail};
use crate::score::Digest;
use crate::tensors::Archive;

impl Bench<'_> {
    /// Every weight that merging changes: its digest, and some tensors whole.
    pub(super) fn merged_weights(&self, mode: &Mode) -> Checked {
        let out = self.desk.path(&format!("{}.merged", mode.id));
        let call = self.desk.pack("export").args(self.case.inputs(mode)).args(["--to", "safetensors"]);
        self.desk.produce(call, &out)?;
        let got = Archive::read(&out)?;
        let allowed = if self.case.goes_through_svd(mode) { 1e-4 } else { 1e-5 };
        let mut worst = (0.0, "");
        for (name, digest) in &mode.merged_changed {
            let error = digest.error(&Digest::of(got.get(name)?)).map_err(|e| e.context(name.clone()))?;
            if error > worst.0 {
                worst = (error, name);
            }
        }
        for (name, key) in &mode.merged_tensors {
            let (a, b) = (self.expected.get(key)?, got.get(name)?);
            let largest = a.data.iter().fold(0f32, |m, x| m.max(x.abs()));
            let off = a.data.iter().zip(&b.data).fold(0f32, |m, (x, y)| m.max((x - y).abs()));
            let error = f64::from(off) / f64::from(largest.max(f32::MIN_POSITIVE));
            if error.is_nan() || a.shape != b.shape {
                fail!("{name}: shape {:?} instead of {:?}, or not finite", b.shape, a.shape);
            }
            if error > worst.0 {
                worst = (error, name);
            }
        }
        if worst.0 > allowed {
            fail!("error {:.3e} in {} (at most {allowed:.0e})", worst.0, worst.1);
        }
        Ok(format!("{:.1e}", worst.0))
    }
}
