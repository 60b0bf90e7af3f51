//! Unmerged mode: a base pack and adapter files, which are the same from the base's folder and from its pack.

use std::path::Path;

use super::Bench;
use crate::case::Mode;
use crate::desk::{Checked, Report, fail};

impl Bench<'_> {
    pub(super) fn unmerged(&self, mode: &Mode, report: &mut Report) {
        let files = self.base_pack().and_then(|base| Ok((base, self.adapter_files(mode)?)));
        match files {
            Err(miss) => report.push(("unmerged", Err(miss))),
            Ok((base, adapters)) => {
                report.push(("unmerged", self.raw_outputs(mode, &base, &adapters)));
                report.push(("adapter of the pack", self.same_from_pack(mode, &base)));
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
                self.adapter_file(name, &self.case.base_path(), &out)?;
            }
            args.extend(["--adapter".to_owned(), out.display().to_string()]);
        }
        Ok(args)
    }

    fn adapter_file(&self, name: &str, base: &Path, out: &Path) -> Checked<()> {
        let call = self.desk.pack("adapter").arg("--base").arg(base);
        let call = call.arg("--adapter").arg(self.case.adapter_path(name)).args(self.case.label_args());
        self.desk.produce(call.args(["--quant", "f32"]), out)?;
        Ok(())
    }

    /// Adapter files made from the f32 pack of the base are those made from its folder, byte by byte.
    fn same_from_pack(&self, mode: &Mode, base: &Path) -> Checked {
        for name in &mode.adapters {
            let (folder, pack) =
                (self.desk.path(&format!("{name}.adapter.lpk")), self.desk.path("of-pack.adapter.lpk"));
            self.adapter_file(name, base, &pack)?;
            if std::fs::read(&folder)? != std::fs::read(&pack)? {
                fail!("{name}: other bytes than from the folder of the base");
            }
        }
        Ok("same bytes".into())
    }
}
