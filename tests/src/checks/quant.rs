//! Quantized packs against what a fake-quantized model of the same scheme reaches on the same case.

use std::path::Path;

use super::Bench;
use crate::case::{Mode, QuantSim, SimError};
use crate::desk::{Checked, Miss, Report, fail, parting};
use crate::score::{divergences, rms_error};

/// Added to every bar: room where the scheme itself is exact.
const FLOOR: f64 = 1e-4;

impl Bench<'_> {
    pub(super) fn quantized(&self, mode: &Mode, sim: &QuantSim, report: &mut Report) {
        match self.pack(mode, "q8") {
            Err(miss) => report.push(("q8", Err(miss))),
            Ok(lpk) => {
                report.push(("q8", self.near(mode, &lpk, &sim.w8a8, 2.0)));
                report.extend(self.clear_steps(mode, &lpk).map(|r| ("q8 greedy", r)));
            }
        }
        match self.pack(mode, "q4") {
            Err(miss) => report.push(("q4", Err(miss))),
            Ok(lpk) => {
                report.push(("q4", self.near(mode, &lpk, &sim.w4, 1.5)));
                report.push(("q4 bits", self.same_bits(mode, &lpk)));
            }
        }
    }

    /// Mean KL and RMS error at most `factor` times the scheme's.
    fn near(&self, mode: &Mode, lpk: &Path, scheme: &SimError, factor: f64) -> Checked {
        let (runs, results) = self.runs(mode);
        let got = self.raw(lpk, &runs, &[])?;
        let (mut errors, mut kl) = (Vec::new(), Vec::new());
        for (i, expected) in results.iter().enumerate() {
            for (output, key) in expected.tensors.iter().filter(|(o, _)| *o != "encoder_last_hidden_state") {
                let (a, b) = (self.expected.get(key)?, got.get(&format!("{i}.{output}"))?);
                errors.push(rms_error(a, b)?);
                if output == "logits" && scheme.kl_mean.is_some() {
                    kl.extend(divergences(a, b)?);
                }
            }
        }
        let rms = mean(&errors);
        let rms_bar = factor * scheme.rms_err_over_std + FLOOR;
        let (kl, kl_bar) = (mean(&kl), factor * scheme.kl_mean.unwrap_or(0.0) + FLOOR);
        // Written so that a NaN fails.
        if !(rms <= rms_bar && kl <= kl_bar) {
            fail!("rms {rms:.4} (at most {rms_bar:.4}), KL {kl:.2e} (at most {kl_bar:.2e})");
        }
        Ok(format!("{rms:.3}/{rms_bar:.3}"))
    }

    /// Greedy steps must agree as long as every margin so far was clear (above 0.3 standard deviations).
    fn clear_steps(&self, mode: &Mode, lpk: &Path) -> Option<Checked> {
        let recorded: Vec<_> =
            self.case.expected(mode).filter_map(|(run, e)| Some((run, e, e.greedy.as_ref()?))).collect();
        if recorded.is_empty() {
            return None;
        }
        let mut steps = 0;
        for (run, expected, greedy) in recorded {
            let clear = greedy.margins.iter().take_while(|m| **m > 0.3 * expected.std).count();
            match self.continuation(lpk, &run.input_ids, greedy.ids.len(), &[]) {
                Ok(ids) if ids.len() >= clear && ids[..clear] == greedy.ids[..clear] => steps += clear,
                Ok(ids) => {
                    let parting = parting(&greedy.ids[..clear], &ids);
                    return Some(Err(Miss::Failed(format!("{}: {clear} clear steps, {parting}", run.id))));
                }
                Err(miss) => return Some(Err(miss)),
            }
        }
        Some(Ok(format!("{steps}")))
    }
}

fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len().max(1) as f64
}
