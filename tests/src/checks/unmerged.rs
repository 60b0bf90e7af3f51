//! Unmerged mode: a base pack and adapter files.

use super::Bench;
use crate::case::Mode;
use crate::desk::{Checked, Report};

impl Bench<'_> {
    pub(super) fn unmerged(&self, mode: &Mode, report: &mut Report) {
        let files = self.base_pack().and_then(|base| Ok((base, self.adapter_files(mode)?)));
        match files {
            Err(miss) => report.push(("unmerged", Err(miss))),
            Ok((base, adapters)) => {
                report.push(("unmerged", self.raw_outputs(mode, &base, &adapters)));
                report.extend(self.greedy(mode, &base, &adapters).map(|r| ("unmerged greedy", r)));
            }
        }
    }

    /// Packs the mode's adapters; the `--adapter …` arguments that load them.
    fn adapter_files(&self, mode: &Mode) -> Checked<Vec<String>> {
        let mut args = Vec::new();
        for name in &mode.adapters {
            let out = self.desk.path(&format!("{name}.adapter.lpk"));
            if !out.exists() {
                let call = self.desk.pack("adapter").arg("--base").arg(self.case.base_path());
                let call = call.arg("--adapter").arg(self.case.adapter_path(name)).args(self.case.label_args());
                self.desk.produce(call.args(["--quant", "f32"]), &out)?;
            }
            args.extend(["--adapter".to_owned(), out.display().to_string()]);
        }
        Ok(args)
    }
}
