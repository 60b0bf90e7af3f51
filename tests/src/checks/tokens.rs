//! The tokenizer in the pack, through the command line.

use std::path::Path;

use super::Bench;
use crate::desk::{Checked, comma, fail, ids_of, parting};

impl Bench<'_> {
    /// Recorded texts to ids, with and without special tokens, and ids back to text.
    pub(super) fn tokens(&self, lpk: &Path) -> Checked {
        let mut count = 0;
        for test in &self.case.tokenizer.tests {
            if self.ids(lpk, &test.text, &["--no-special"])? != test.ids_no_special {
                fail!("{:?} without special tokens is not {:?}", test.text, test.ids_no_special);
            }
            self.same_ids(lpk, &test.text, &[], &test.ids)?;
            if !test.ids.is_empty() {
                let call = self.desk.run("detokenize", lpk).args(["--ids", &comma(&test.ids)]);
                let text = self.desk.succeed(&call)?.stdout;
                // One line end is the program's own.
                let text = text.strip_suffix('\n').unwrap_or(&text);
                if text != test.decoded_skip_special {
                    fail!("{:?} comes back as {text:?}, not {:?}", test.text, test.decoded_skip_special);
                }
            }
            count += 1;
        }
        for run in &self.case.runs {
            let pair: Vec<&str> = run.text_pair.iter().flat_map(|p| ["--pair", p.as_str()]).collect();
            self.same_ids(lpk, &run.text, &pair, &run.input_ids)?;
            count += 1;
        }
        Ok(format!("{count}"))
    }

    fn same_ids(&self, lpk: &Path, text: &str, extra: &[&str], expected: &[u32]) -> Checked<()> {
        let got = self.ids(lpk, text, extra)?;
        if got != expected {
            fail!("{text:?}: {}", parting(expected, &got));
        }
        Ok(())
    }

    /// The text goes through a file: an argument cannot hold every character.
    fn ids(&self, lpk: &Path, text: &str, extra: &[&str]) -> Checked<Vec<u32>> {
        let file = self.desk.path("text.txt");
        std::fs::write(&file, text)?;
        let call = self.desk.run("tokenize", lpk).arg("--file").arg(&file).args(extra).arg("--json");
        ids_of(&self.desk.json_object(&call)?, "ids")
    }
}
