//! The merged model as a GGUF file, packed again: the same outputs and the same tokens.

use super::Bench;
use crate::case::Mode;
use crate::desk::Checked;

impl Bench<'_> {
    pub(super) fn gguf(&self, mode: &Mode, tokens: bool) -> Checked {
        let (out, lpk) = (self.desk.path("exported.gguf"), self.desk.path("exported.lpk"));
        let call = self.desk.pack("export").args(self.case.inputs(mode)).args(["--to", "gguf", "--type", "f32"]);
        // `--labels` is merge's alone; models with labels have no place in GGUF.
        self.desk.produce(call, &out)?;
        let call = self.desk.pack("merge").arg("--base").arg(&out).args(["--quant", "f32"]);
        self.desk.produce(call, &lpk)?;
        if tokens {
            self.tokens(&lpk)?;
        }
        self.raw_outputs(mode, &lpk, &[])
    }
}
