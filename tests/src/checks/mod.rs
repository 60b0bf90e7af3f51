//! What is asked of a case in each of its modes, through the command line only.
//!
//! | check | asks |
//! |---|---|
//! | `raw` | a merged f32 pack gives every recorded output of every run |
//! | `greedy`, `beam` | the same continuation, token by token |
//! | `task` | the task's own verb gives the recorded label, tags, answer or vector |
//! | `tokens` | the pack's tokenizer gives the recorded ids and text |
//! | `merged` | exported merged weights equal the recorded ones |
//! | `unmerged`, `unmerged greedy` | base pack plus adapter file computes the same |
//! | `adapter of the pack` | an adapter file made from the base's f32 pack is the same, byte by byte |
//! | `q8`, `q8 greedy`, `q4` | quantized packs stay near what the scheme can reach |
//! | `bits` | outputs are the same to the bit for any threads, chunking and instruction set |
//! | `verify` | `lora-pack verify` accepts the pack |

mod float;
mod merged;
mod quant;
mod task;
mod tokens;
mod unmerged;

use std::cell::OnceCell;
use std::path::{Path, PathBuf};

use anyhow::Result;

use crate::case::{Case, Expected, Mode, ModeKind, Run};
use crate::desk::{Checked, Desk, Ids, Report};
use crate::tensors::Archive;

/// A case being checked: its data and a desk.
struct Bench<'a> {
    case: &'a Case,
    expected: Archive,
    desk: Desk,
    base_pack: OnceCell<Checked<PathBuf>>,
}

/// Runs every check of every mode of the case in folder `dir`.
///
/// # Errors
/// If the case itself cannot be read.
pub fn case(dir: &Path) -> Result<Vec<(String, Report)>> {
    let case = Case::read(dir)?;
    let expected = Archive::read(&dir.join("expected.safetensors"))?;
    let bench = Bench { case: &case, expected, desk: Desk::new(dir)?, base_pack: OnceCell::new() };
    let wanted = std::env::var("CONFORMANCE_MODES").unwrap_or_default();
    let modes = case.modes.iter().enumerate().filter(|(_, m)| crate::ledger::selected(&wanted, &m.id));
    Ok(modes.map(|(i, mode)| (mode.id.clone(), bench.mode(mode, i == 0))).collect())
}

impl Bench<'_> {
    fn mode(&self, mode: &Mode, first: bool) -> Report {
        let mut report = Report::new();
        match self.pack(mode, "f32") {
            Err(miss) => report.push(("raw", Err(miss))),
            Ok(lpk) => {
                report.push(("raw", self.raw_outputs(mode, &lpk, &[])));
                report.push(("verify", self.verify(&lpk)));
                report.extend(self.greedy(mode, &lpk, &[]).map(|r| ("greedy", r)));
                report.extend(self.beam(mode, &lpk).map(|r| ("beam", r)));
                report.extend(self.task(mode, &lpk).map(|r| ("task", r)));
                if first {
                    report.push(("tokens", self.tokens(&lpk)));
                }
                if mode.kind != ModeKind::Base {
                    report.push(("bits", self.same_bits(mode, &lpk)));
                }
            }
        }
        if !mode.merged_changed.is_empty() {
            report.push(("merged", self.merged_weights(mode)));
        }
        if matches!(mode.kind, ModeKind::Adapter | ModeKind::Stack) {
            self.unmerged(mode, &mut report);
        }
        if let Some(sim) = self.case.quant_sim.as_ref().filter(|sim| sim.mode == mode.id) {
            self.quantized(mode, sim, &mut report);
        }
        report
    }

    /// Merges and packs a mode; the path of the file.
    fn pack(&self, mode: &Mode, quant: &str) -> Checked<PathBuf> {
        let out = self.desk.path(&format!("{}.{quant}.lpk", mode.id));
        self.desk.produce(self.desk.pack("merge").args(self.case.inputs(mode)).args(["--quant", quant]), &out)?;
        Ok(out)
    }

    /// The f32 pack of the base without an adapter, made once.
    fn base_pack(&self) -> Checked<PathBuf> {
        let pack = || {
            let out = self.desk.path("unmerged-base.lpk");
            let call = self.desk.pack("merge").arg("--base").arg(self.case.base_path());
            self.desk.produce(call.args(self.case.label_args()).args(["--quant", "f32"]), &out)?;
            Ok(out)
        };
        self.base_pack.get_or_init(pack).clone()
    }

    fn raw(&self, lpk: &Path, runs: &[&Run], extra: &[String]) -> Checked<Archive> {
        let inputs: Vec<Ids> = runs
            .iter()
            .map(|run| Ids {
                ids: run.input_ids.clone(),
                types: run.token_type_ids.clone(),
                decoder: run.decoder_input_ids.clone(),
            })
            .collect();
        self.desk.raw(lpk, &inputs, extra)
    }

    fn runs<'b>(&'b self, mode: &'b Mode) -> (Vec<&'b Run>, Vec<&'b Expected>) {
        self.case.expected(mode).unzip()
    }
}
