//! Float packs: recorded outputs, continuations, the same bits everywhere.

use std::path::Path;

use super::Bench;
use crate::case::{Mode, Task};
use crate::desk::{Checked, Miss, comma, fail, ids_of, parting};
use crate::score::max_error;
use crate::tensors::Archive;

/// Largest allowed error of any output in float32, in standard deviations of that output.
const TOLERANCE: f64 = 1e-3;

impl Bench<'_> {
    /// Every recorded output of every run; `extra` are further arguments (adapters).
    pub(super) fn raw_outputs(&self, mode: &Mode, lpk: &Path, extra: &[String]) -> Checked {
        let (runs, _) = self.runs(mode);
        let got = self.raw(lpk, &runs, extra)?;
        self.compare(mode, &got)
    }

    fn compare(&self, mode: &Mode, got: &Archive) -> Checked {
        let (runs, results) = self.runs(mode);
        let mut worst = (0.0, String::new());
        let mut count = 0;
        for (i, (run, expected)) in runs.iter().zip(results).enumerate() {
            for (output, key) in &expected.tensors {
                let error = max_error(self.expected.get(key)?, got.get(&format!("{i}.{output}"))?)
                    .map_err(|e| e.context(format!("{}/{output}", run.id)))?;
                if error > worst.0 {
                    worst = (error, format!("{}/{output}", run.id));
                }
                count += 1;
            }
        }
        if count == 0 {
            fail!("the case has no results in this mode");
        }
        if worst.0 > TOLERANCE {
            fail!("error {:.3e} std in {} (at most {TOLERANCE:.0e})", worst.0, worst.1);
        }
        Ok(format!("{:.1e}", worst.0))
    }

    /// Greedy continuations; `None` where the case records none in this mode.
    pub(super) fn greedy(&self, mode: &Mode, lpk: &Path, extra: &[String]) -> Option<Checked> {
        let recorded: Vec<_> =
            self.case.expected(mode).filter_map(|(run, e)| Some((run, e.greedy.as_ref()?))).collect();
        if recorded.is_empty() {
            return None;
        }
        let mut steps = 0;
        for (run, greedy) in recorded {
            match self.continuation(lpk, &run.input_ids, greedy.ids.len(), extra) {
                Ok(ids) if ids == greedy.ids => steps += ids.len(),
                Ok(ids) => return Some(Err(Miss::Failed(format!("{} {}", run.id, parting(&greedy.ids, &ids))))),
                Err(miss) => return Some(Err(miss)),
            }
        }
        Some(Ok(format!("{steps}")))
    }

    /// Ids that follow a prompt greedily, past any end token.
    pub(super) fn continuation(&self, lpk: &Path, prompt: &[u32], n: usize, extra: &[String]) -> Checked<Vec<u32>> {
        let call = self.desk.run("generate", lpk).args(extra).args(["--ids", &comma(prompt), "-n", &n.to_string()]);
        let answer = self.desk.json_object(&call.args(["--temp", "0", "--ignore-eos", "--json"]))?;
        ids_of(&answer, "ids")
    }

    /// Beam search of an encoder–decoder: the best sequence.
    pub(super) fn beam(&self, mode: &Mode, lpk: &Path) -> Option<Checked> {
        let (run, beam) = self.case.expected(mode).find_map(|(run, e)| Some((run, e.beam4.as_ref()?)))?;
        let search = || {
            let call = self.desk.run("generate", lpk).args(["--ids", &comma(&run.input_ids)]);
            let call = call.args(["-n", &beam.params.max_new_tokens.to_string()]);
            let answer =
                self.desk.json_object(&call.args(["--beams", &beam.params.num_beams.to_string(), "--json"]))?;
            let ids = ids_of(&answer, "ids")?;
            // The end token may or may not be part of the answer.
            let Some(best) = beam.sequences.first() else { fail!("no recorded sequence") };
            if ids != *best && best.split_last().is_none_or(|(_, rest)| ids != rest) {
                fail!("{}", parting(best, &ids));
            }
            Ok(format!("{}", ids.len()))
        };
        Some(search())
    }

    /// The longest run again with other thread counts, chunk sizes and the scalar kernels: not one bit may change.
    pub(super) fn same_bits(&self, mode: &Mode, lpk: &Path) -> Checked {
        let (runs, _) = self.runs(mode);
        let Some(run) = runs.into_iter().max_by_key(|r| r.input_ids.len()) else { fail!("no run") };
        let reference = self.raw(lpk, &[run], &[])?;
        let mut variants = vec!["--threads 1", "--threads 2", "--threads 3", "--isa scalar"];
        if self.case.task == Task::CausalLm {
            variants.extend(["--chunk 1", "--chunk 5", "--isa scalar --chunk 3 --threads 2"]);
        }
        for variant in &variants {
            let args: Vec<String> = variant.split(' ').map(str::to_owned).collect();
            let got = self.raw(lpk, &[run], &args)?;
            for name in reference.names() {
                let (a, b) = (reference.get(name)?, got.get(name)?);
                let differ = a.data.iter().zip(&b.data).filter(|(x, y)| x.to_bits() != y.to_bits()).count();
                if a.shape != b.shape || differ > 0 {
                    fail!("{variant}: {differ} of {} values of {name} differ", a.data.len());
                }
            }
        }
        Ok(format!("{}", variants.len()))
    }

    /// `lora-pack verify` without a base: hash and structure.
    pub(super) fn verify(&self, lpk: &Path) -> Checked {
        self.desk.succeed(&self.desk.pack("verify").arg(lpk))?;
        Ok("ok".into())
    }
}
