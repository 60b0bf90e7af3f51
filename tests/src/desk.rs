//! A place to work: a temporary folder, the programs, and how their endings are read.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::process::{Call, Finished};
use crate::tensors::Archive;
use crate::tools::tools;

/// Why a check did not pass.
#[derive(Clone, Debug)]
pub enum Miss {
    /// The program says that it does not do this: exit code 1 with a message, or an unknown verb or flag.
    NotCovered(String),
    /// A wrong result, a crash, or an exit without a word.
    Failed(String),
}

impl From<anyhow::Error> for Miss {
    fn from(error: anyhow::Error) -> Self {
        Self::Failed(format!("{error:#}"))
    }
}

impl From<std::io::Error> for Miss {
    fn from(error: std::io::Error) -> Self {
        anyhow::Error::from(error).into()
    }
}

/// Fails a check with a formatted message.
macro_rules! fail {
    ($($message:tt)*) => { return Err($crate::desk::Miss::Failed(format!($($message)*))) };
}
pub(crate) use fail;

/// What a check measured, or why it did not pass.
pub type Checked<T = String> = Result<T, Miss>;

/// Results of one mode: check name and outcome.
pub type Report = Vec<(&'static str, Checked)>;

/// One input of `lora-run raw`.
#[derive(Clone, Debug, Default)]
pub struct Ids {
    /// Token ids.
    pub ids: Vec<u32>,
    /// Segment of each token.
    pub types: Option<Vec<u32>>,
    /// Forced decoder input.
    pub decoder: Option<Vec<u32>>,
}

/// A temporary folder and the programs.
#[derive(Debug)]
pub struct Desk {
    tmp: TempDir,
    input: PathBuf,
}

impl Desk {
    /// A desk for work on the inputs in folder `input`; messages name that folder by its last part only.
    ///
    /// # Errors
    /// If no temporary folder can be made.
    pub fn new(input: &Path) -> Result<Self> {
        Ok(Self { tmp: TempDir::new()?, input: input.to_path_buf() })
    }

    /// A path in the temporary folder.
    #[must_use]
    pub fn path(&self, name: &str) -> PathBuf {
        self.tmp.path().join(name)
    }

    /// A call of `lora-pack`.
    #[must_use]
    pub fn pack(&self, verb: &str) -> Call {
        tools().pack(verb, self.tmp.path())
    }

    /// A call of `lora-run` with a model.
    #[must_use]
    pub fn run(&self, verb: &str, lpk: &Path) -> Call {
        tools().run(verb, self.tmp.path()).arg(lpk)
    }

    /// Runs a call that must write `out`, named by `-o`.
    ///
    /// # Errors
    /// As [`Desk::succeed`], or if nothing was written.
    pub fn produce(&self, call: Call, out: &Path) -> Checked<Finished> {
        let done = self.succeed(&call.arg("-o").arg(out))?;
        if !out.exists() {
            fail!("exit code 0, but no output [{}]", self.shorten(&done.line));
        }
        Ok(done)
    }

    /// Runs a call that must succeed.
    ///
    /// # Errors
    /// [`Miss::NotCovered`] for a refusal in words, [`Miss::Failed`] for anything else.
    pub fn succeed(&self, call: &Call) -> Checked<Finished> {
        let done = call.run()?;
        if done.code == Some(0) {
            return Ok(done);
        }
        let message = self.shorten(done.message());
        let unknown = ["unrecognized subcommand", "unexpected argument", "invalid value"];
        let verb = done.line.split(' ').take(2).collect::<Vec<_>>().join(" ");
        match done.code {
            Some(1) if !message.is_empty() => Err(Miss::NotCovered(message)),
            Some(2) if unknown.iter().any(|u| done.stderr.contains(u)) => {
                Err(Miss::NotCovered(format!("{verb}: {message}")))
            }
            _ => fail!("{}: {message} [{}]", done.ending(), self.shorten(&done.line)),
        }
    }

    /// Runs a call that must print exactly one JSON object.
    ///
    /// # Errors
    /// As [`Desk::succeed`], or if it prints something else.
    pub fn json_object(&self, call: &Call) -> Checked<Value> {
        let mut values = self.json_lines(call)?;
        match (values.pop(), values.is_empty()) {
            (Some(value), true) if value.is_object() => Ok(value),
            _ => fail!("not exactly one JSON object on standard output [{}]", self.shorten(&call.line())),
        }
    }

    /// Feeds `requests` as JSON lines to a verb; one answer for each, in order.
    ///
    /// # Errors
    /// As [`Desk::succeed`], or if the answers are not JSON or their number differs.
    pub fn answers(&self, call: Call, requests: &[Value]) -> Checked<Vec<Value>> {
        let file = self.path("requests.jsonl");
        let text: String = requests.iter().map(|r| format!("{r}\n")).collect();
        std::fs::write(&file, text)?;
        let answers = self.json_lines(&call.arg("--file").arg(&file).arg("--json"))?;
        if answers.len() != requests.len() {
            fail!("{} answers to {} requests", answers.len(), requests.len());
        }
        Ok(answers)
    }

    fn json_lines(&self, call: &Call) -> Checked<Vec<Value>> {
        let done = self.succeed(call)?;
        let lines = done.stdout.lines().filter(|l| !l.trim().is_empty());
        match lines.map(serde_json::from_str).collect() {
            Ok(values) => Ok(values),
            Err(e) => fail!("not JSON ({e}): {:?} [{}]", head(&done.stdout), self.shorten(&done.line)),
        }
    }

    /// The outputs of `lora-run raw` for these inputs, named `0.logits` and so on.
    ///
    /// # Errors
    /// As [`Desk::succeed`], or if the outputs cannot be read.
    pub fn raw(&self, lpk: &Path, inputs: &[Ids], extra: &[String]) -> Checked<Archive> {
        let objects: Vec<Value> = inputs
            .iter()
            .map(|input| {
                let mut object = json!({ "ids": input.ids });
                for (key, ids) in [("token_type_ids", &input.types), ("decoder_ids", &input.decoder)] {
                    if let Some(ids) = ids {
                        object[key] = json!(ids);
                    }
                }
                object
            })
            .collect();
        let (ids, out) = (self.path("ids.json"), self.path("out.safetensors"));
        std::fs::write(&ids, Value::from(objects).to_string())?;
        if out.exists() {
            std::fs::remove_file(&out)?;
        }
        let call = self.run("raw", lpk).args(extra).arg("--ids-file").arg(&ids);
        let done = self.succeed(&call.arg("--out").arg(&out))?;
        if !out.exists() {
            fail!("exit code 0, but no output [{}]", self.shorten(&done.line));
        }
        Ok(Archive::read(&out)?)
    }

    /// A message for the ledger: one line, not long, no path of this machine.
    fn shorten(&self, text: &str) -> String {
        let mut text = text.lines().next().unwrap_or("").trim().to_owned();
        let parent = |p: &Path| p.parent().map_or(String::new(), |p| format!("{}/", p.display()));
        let known = [format!("{}/", self.tmp.path().display()), parent(&self.input), parent(&crate::data::workspace())];
        for prefix in known.iter().filter(|p| p.len() > 1) {
            text = text.replace(prefix.as_str(), "");
        }
        head(&text)
    }
}

/// The beginning of a text.
pub(crate) fn head(text: &str) -> String {
    let mut short: String = text.chars().take(240).collect();
    if short.len() < text.len() {
        short.push('…');
    }
    short
}

/// A token id list out of a JSON answer.
pub(crate) fn ids_of(answer: &Value, key: &str) -> Checked<Vec<u32>> {
    let ids: Option<Vec<u32>> =
        answer[key].as_array().and_then(|a| a.iter().map(|v| u32::try_from(v.as_u64()?).ok()).collect());
    Ok(ids.with_context(|| format!("no list of ids under {key:?} in {}", head(&answer.to_string())))?)
}

/// `1,2,3` as the command line takes it.
pub(crate) fn comma(ids: &[u32]) -> String {
    ids.iter().map(u32::to_string).collect::<Vec<_>>().join(",")
}

/// Where two id lists part, in words.
pub(crate) fn parting(expected: &[u32], got: &[u32]) -> String {
    let at = expected.iter().zip(got).take_while(|(a, b)| a == b).count();
    let (e, g) = (&expected[at..expected.len().min(at + 4)], &got[at..got.len().min(at + 4)]);
    format!("at {at}: {g:?} instead of {e:?}")
}
