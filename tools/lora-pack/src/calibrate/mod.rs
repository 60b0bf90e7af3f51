//! Calibration: the merged float model runs over text in our own runtime, and each matrix is quantized for the inputs
//! that it really sees.
//!
//! [`text`] turns lines into documents, [`moments`] sums up inputs, [`factor`] holds the linear algebra, [`run`] walks
//! the program. Memory: activations of one layer for every calibration token (twice with two streams), the moments of
//! one linear, the packed matrices, and a temporary file of the model in f32 beside the output.

pub mod auto;
pub mod balance;
pub mod compare;
pub mod factor;
pub mod moments;
pub mod own;
pub mod run;
pub mod targets;
pub mod text;
pub mod weights;

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use lora_models::spec::Lowered;
use lora_runtime::Model;
use lora_runtime::format::Task;
use lora_runtime::map::Mapping;

pub use balance::Balance;
pub use factor::Factor;
pub use moments::Moments;
pub use run::{Calibrated, Job, Ready, calibrate};
pub use text::Document;

/// How much work goes into quantization.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Effort {
    /// Scale search alone; the model is not run.
    #[default]
    Fast,
    /// Error feedback for the float model's inputs.
    Normal,
    /// Also fitted to the float model's outputs, given the inputs of the quantized one; twice the text.
    Best,
}

impl Effort {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Fast, Self::Normal, Self::Best];

    /// Name on the command line.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Fast => "fast",
            Self::Normal => "normal",
            Self::Best => "best",
        }
    }

    /// Tokens of calibration text.
    const fn tokens(self) -> usize {
        match self {
            Self::Fast => 0,
            Self::Normal => 8192,
            Self::Best => 24576,
        }
    }
}

/// The float model of a merge, in a temporary file.
pub struct Twin {
    mapping: Mapping,
    _file: tempfile::TempPath,
}

impl Twin {
    /// Maps a temporary file, which goes away with this.
    ///
    /// # Errors
    /// It cannot be opened.
    pub fn open(file: tempfile::TempPath) -> Result<Self> {
        Ok(Self { mapping: Mapping::open(&file).context("cannot open the temporary float model")?, _file: file })
    }

    /// The model.
    ///
    /// # Errors
    /// The runtime refuses it.
    pub fn model(&self) -> Result<Model<'_>> {
        Ok(Model::open(&self.mapping)?)
    }
}

/// What was calibrated with, for the file's metadata.
#[derive(Clone, Debug)]
pub struct Summary {
    /// Effort.
    pub effort: Effort,
    /// Sequences.
    pub documents: usize,
    /// Their tokens.
    pub tokens: usize,
    /// Where the text came from.
    pub source: String,
}

/// Tokens of the documents that are kept apart to judge the result by.
const PROOF_TOKENS: usize = 1024;
/// One document in so many is kept apart, until there are enough.
const PROOF_SHARE: usize = 8;

/// Text by the model itself: documents that begin as the given ones do, and about how many tokens of them.
pub type OwnText<'o> = &'o dyn Fn(&[Document], usize) -> Result<Vec<Document>>;

/// The documents of a calibration and those kept apart to judge it by: the user's text, and general text: for language
/// models as much as of the user's, else where that is too little (encoder–decoders excepted: general text is not what
/// they read); general text alone where the user gives none.
///
/// # Errors
/// A file cannot be read or holds nothing; the model has no tokenizer.
pub fn documents(
    model: &Model<'_>,
    files: &[PathBuf],
    effort: Effort,
    own_text: OwnText<'_>,
) -> Result<(Vec<Document>, Vec<Document>, Summary)> {
    if model.tokenizer().is_err() {
        bail!("--effort {} needs text, and the base has no tokenizer: use --effort fast", effort.name());
    }
    let budget = effort.tokens();
    let mixed = files.is_empty() || matches!(model.task(), Task::CausalLm);
    let mut own = Vec::new();
    for file in files {
        own.extend(text::read(file, model)?);
    }
    let fills = mixed || !matches!(model.task(), Task::Seq2SeqLm);
    let mut general = if fills { text::documents(text::GENERAL, model)? } else { Vec::new() };
    let mut proof = apart(if own.is_empty() { &mut general } else { &mut own });
    let mut documents = text::sample(own, if mixed { budget / 2 } else { budget });
    let room = budget - count(&documents).min(budget);
    let starts = general.clone();
    let general = text::sample(general, room);
    let reads_general = !general.is_empty();
    documents.extend(general);
    let room = budget - count(&documents).min(budget);
    let writes = model.task() == Task::CausalLm && room > budget / 8;
    if writes {
        documents.extend(own_text(&starts, room)?);
    }
    if model.task() == Task::Seq2SeqLm {
        targets::fill(model, &mut documents)?;
        targets::fill(model, &mut proof)?;
    }
    let name = |p: &Path| p.file_name().map_or_else(String::new, |n| n.to_string_lossy().into_owned());
    let mut sources: Vec<String> = files.iter().map(|f| name(f)).collect();
    if reads_general {
        sources.push("general text".into());
    }
    if writes {
        sources.push("the model's own text".into());
    }
    let summary = Summary { effort, documents: documents.len(), tokens: count(&documents), source: sources.join(", ") };
    Ok((documents, proof, summary))
}

/// Takes every eighth document out of the list, up to some tokens.
fn apart(documents: &mut Vec<Document>) -> Vec<Document> {
    let mut taken = Vec::new();
    let mut kept = Vec::new();
    for (i, d) in documents.drain(..).enumerate() {
        let take = i % PROOF_SHARE == PROOF_SHARE - 1 && count(&taken) + d.tokens.len() <= PROOF_TOKENS;
        if take { taken.push(d) } else { kept.push(d) }
    }
    *documents = kept;
    taken
}

/// Tokens of all documents.
pub fn count(documents: &[Document]) -> usize {
    documents.iter().map(|d| d.tokens.len() + d.target.len()).sum()
}

/// Whether the twin's tensors are the target's, one by one.
///
/// # Errors
/// They are not: a fault of the lowering.
pub fn check_twin(twin: &Lowered, target: &Lowered) -> Result<()> {
    let alike = |(a, b): (&lora_models::spec::TensorSpec, &lora_models::spec::TensorSpec)| {
        a.name == b.name && (a.rows, a.cols) == (b.rows, b.cols)
    };
    if twin.tensors.len() != target.tensors.len() || !twin.tensors.iter().zip(&target.tensors).all(alike) {
        bail!("the float model's tensors are not those of the quantized one");
    }
    Ok(())
}
