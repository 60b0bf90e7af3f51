//! The command line: arguments of every verb, and the dispatch to `verb/`.
//!
//! Exit codes: 0 success, 1 refused input or failed check, 2 wrong usage (clap).

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};
use lora_runtime::format::Task;
use lora_runtime::weights::WeightFormat;

use crate::verb;

/// Merge PEFT LoRA adapters into a base model, quantize, and write one .lpk file that lora-run runs in place.
#[derive(Debug, Parser)]
#[command(
    name = "lora-pack",
    version,
    max_term_width = 110,
    after_help = "\
Examples:
  lora-pack merge --base SmolLM2-135M-Instruct --adapter my-lora --quant q4 -o model.lpk
  lora-pack inspect model.lpk
  lora-pack plan model.lpk --ctx 2048
  lora-pack demo"
)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub verb: Verb,
}

/// The verbs.
#[derive(Debug, Subcommand)]
pub enum Verb {
    /// Merge adapters into a base, quantize, and pack into one file
    Merge(MergeArgs),
    /// Show what a file holds: header, metadata, program, tensors
    Inspect(InspectArgs),
    /// Check a file: content hash, structure, program
    Verify(VerifyArgs),
    /// Flash and RAM that a file needs, by context length
    Plan(PlanArgs),
    /// What an adapter holds, what each of its options means, and whether it fits a base
    Doctor(DoctorArgs),
    /// Write the merged weights as a Hugging Face folder, for other tools
    Export(ExportArgs),
    /// Get a model or adapter of the Hugging Face Hub into the local cache, and say where it is
    Fetch(FetchArgs),
    /// Pack the shipped demo model with its adapter and run it
    Demo(DemoArgs),
}

/// Arguments of `merge`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  lora-pack merge --base SmolLM2-135M-Instruct --adapter home-control --quant q4 -o home.lpk
  lora-pack merge --base base --adapter style=0.7 --adapter facts=1.2 --quant q8 -o both.lpk
  lora-pack merge --base bert-base --adapter intents --labels on,off,dim --quant q8 -o intents.lpk
  lora-pack merge --base base --quant f32 -o base.lpk          (no adapter: just pack)")]
pub struct MergeArgs {
    /// Base model: a Hugging Face folder, a .safetensors file with its config.json beside it, a .gguf file, or org/name on
    /// the Hub
    #[arg(long, value_name = "DIR|FILE|ORG/NAME")]
    pub base: PathBuf,
    /// PEFT adapter folder, LoRA .gguf file, or org/name on the Hub, optionally with a weight (repeatable)
    #[arg(long = "adapter", value_name = "DIR[=WEIGHT]")]
    pub adapters: Vec<String>,
    /// Combination.
    #[command(flatten)]
    pub combine: CombineArgs,
    /// Weight format: f32 f16 q8 q8r q6 q5 q4 q4l
    #[arg(long, value_name = "FORMAT", default_value = "q8", value_parser = parse_format)]
    pub quant: WeightFormat,
    /// Label names by index: a,b,c or a .json file (list, or id2label map)
    #[arg(long, value_name = "a,b,c|FILE.json")]
    pub labels: Option<String>,
    /// Task, where neither the adapter nor the base says: causal_lm, seq_cls, token_cls, …
    #[arg(long, value_name = "TASK", value_parser = parse_task)]
    pub task: Option<Task>,
    /// Accept unknown adapter settings (each is still reported)
    #[arg(long)]
    pub force: bool,
    /// Pack a base without tokenizer files: the file then takes and gives token ids only
    #[arg(long)]
    pub no_tokenizer: bool,
    /// Print one JSON object instead of the summary
    #[arg(long)]
    pub json: bool,
    /// File to write
    #[arg(short = 'o', long = "out", value_name = "OUT.lpk")]
    pub out: PathBuf,
}

/// How several adapters are combined.
#[derive(Debug, Args)]
pub struct CombineArgs {
    /// Combine adapters as PEFT's add_weighted_adapter does, instead of stacking their deltas:
    /// linear, cat, svd, ties, ties_svd, dare_linear, dare_ties, dare_linear_svd, dare_ties_svd,
    /// magnitude_prune, magnitude_prune_svd
    #[arg(long, value_name = "TYPE")]
    pub combine: Option<String>,
    /// Share of entries kept by ties, dare and magnitude_prune
    #[arg(long, value_name = "D")]
    pub density: Option<f64>,
    /// Rank of the svd combination types
    #[arg(long, value_name = "R")]
    pub svd_rank: Option<usize>,
    /// How ties elects signs
    #[arg(long, value_name = "total|frequency")]
    pub majority_sign: Option<String>,
    /// Seed of dare's random choice
    #[arg(long, value_name = "N")]
    pub seed: Option<u64>,
    /// Revision of the base on the Hub (branch, tag or commit): which one to take from the cache, and compared with the
    /// one that the adapter was trained on
    #[arg(long, value_name = "REVISION")]
    pub base_revision: Option<String>,
    /// Round every merged weight once to the type that the base stores, as PEFT's merge does, before anything else
    #[arg(long)]
    pub peft_exact: bool,
    /// Whether the base is the published model or, for adapters whose start changed it (pissa, olora, corda, …), the
    /// changed one
    #[arg(long, value_name = "original|residual")]
    pub init_base: Option<String>,
}

/// Arguments of `doctor`.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  lora-pack doctor my-lora\n  lora-pack doctor my-lora --base SmolLM2-135M --json\n  lora-pack doctor checkpoints#second"
)]
pub struct DoctorArgs {
    /// PEFT adapter folder, DIR#NAME for a named adapter in it, or LoRA .gguf file (with --base)
    pub adapter: PathBuf,
    /// Base model that it should fit
    #[arg(long, value_name = "DIR|FILE")]
    pub base: Option<PathBuf>,
    /// Accept unknown adapter settings (each is still reported)
    #[arg(long)]
    pub force: bool,
    /// Print one JSON object
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `export`.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  lora-pack export --base base --adapter my-lora --to safetensors -o merged\n  lora-pack export --base base --adapter a=0.7 --adapter b --combine ties --density 0.5 --dtype f32 -o merged"
)]
pub struct ExportArgs {
    /// Base model: a Hugging Face folder, a .safetensors file with its config.json beside it, a .gguf file, or org/name on
    /// the Hub
    #[arg(long, value_name = "DIR|FILE|ORG/NAME")]
    pub base: PathBuf,
    /// PEFT adapter folder, LoRA .gguf file, or org/name on the Hub, optionally with a weight (repeatable)
    #[arg(long = "adapter", value_name = "DIR[=WEIGHT]")]
    pub adapters: Vec<String>,
    /// Combination.
    #[command(flatten)]
    pub combine: CombineArgs,
    /// Format to write
    #[arg(long, value_name = "FORMAT", default_value = "safetensors", value_parser = ["safetensors"])]
    pub to: String,
    /// Type of the weights: f32 (exact merged values), f16, bf16, or base (each tensor as the base stores it, rounded once)
    #[arg(long, value_name = "TYPE", default_value = "f32", value_parser = ["f32", "f16", "bf16", "base"])]
    pub dtype: String,
    /// Label names by index, for the config: a,b,c or a .json file (list, or id2label map)
    #[arg(long, value_name = "a,b,c|FILE.json")]
    pub labels: Option<String>,
    /// Accept unknown adapter settings (each is still reported)
    #[arg(long)]
    pub force: bool,
    /// Print one JSON object
    #[arg(long)]
    pub json: bool,
    /// Folder to write; it must not exist
    #[arg(short = 'o', long = "out", value_name = "DIR")]
    pub out: PathBuf,
}

/// Arguments of `inspect`.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  lora-pack inspect model.lpk\n  lora-pack inspect model.lpk --ops\n  lora-pack inspect model.lpk --json"
)]
pub struct InspectArgs {
    /// The file
    pub file: PathBuf,
    /// List every tensor
    #[arg(long)]
    pub tensors: bool,
    /// List every op
    #[arg(long)]
    pub ops: bool,
    /// Print one JSON object
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `verify`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  lora-pack verify model.lpk\n  lora-pack verify model.lpk --json")]
pub struct VerifyArgs {
    /// The file
    pub file: PathBuf,
    /// Print one JSON object
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `plan`.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  lora-pack plan model.lpk --ctx 2048\n  lora-pack plan model.lpk --ctx 512 --batch 32 --json"
)]
pub struct PlanArgs {
    /// The file
    pub file: PathBuf,
    /// Positions of the KV cache (default: a table of several)
    #[arg(long, value_name = "N")]
    pub ctx: Option<u32>,
    /// Tokens per step: the prefill chunk; encoders need the whole sequence
    #[arg(long, value_name = "N", default_value_t = 64)]
    pub batch: u32,
    /// Element type of the KV cache: f32, f16, i8 (default: the file's)
    #[arg(long, value_name = "TYPE")]
    pub kv: Option<String>,
    /// Print one JSON object
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `fetch`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  lora-pack fetch org/name
  lora-pack fetch org/name --revision v1.1
  lora-pack merge --base org/name --adapter org/adapter -o model.lpk    (the same names work there)

The cache is that of Hugging Face's own libraries (HF_HOME, HF_HUB_CACHE). Downloads need a lora-pack built with the
feature `hub`; they honour HF_ENDPOINT, HF_TOKEN and HF_HUB_OFFLINE.")]
pub struct FetchArgs {
    /// The model's name on the Hub
    #[arg(value_name = "ORG/NAME")]
    pub model: String,
    /// Branch, tag or commit (default: main)
    #[arg(long, value_name = "REVISION")]
    pub revision: Option<String>,
    /// Print one JSON object: model, commit, folder
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `demo`.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  lora-pack demo\n  lora-pack demo --quant q4 -o demo.lpk \"switch off the kitchen lights\""
)]
pub struct DemoArgs {
    /// What to tell the smart home (default: a few examples)
    pub commands: Vec<String>,
    /// Weight format
    #[arg(long, value_name = "FORMAT", default_value = "q8", value_parser = parse_format)]
    pub quant: WeightFormat,
    /// Keep the packed file
    #[arg(short = 'o', long = "out", value_name = "OUT.lpk")]
    pub out: Option<PathBuf>,
    /// Folder of the demo model (default: models/demo, looked for upwards from here)
    #[arg(long, value_name = "DIR")]
    pub dir: Option<PathBuf>,
}

fn parse_format(s: &str) -> Result<WeightFormat, String> {
    let format = WeightFormat::from_name(s).filter(|format| !format.is_import());
    format.ok_or_else(|| "expected one of f32, f16, q8, q8r, q6, q5, q4, q4l".into())
}

fn parse_task(s: &str) -> Result<Task, String> {
    let wanted = s.to_ascii_uppercase();
    let wanted = if wanted == "QUESTION_ANS" { "QUESTION_ANSWERING" } else { &wanted };
    Task::ALL.into_iter().find(|t| t.name() == wanted).ok_or_else(|| {
        let names: Vec<&str> = Task::ALL.iter().map(|t| t.name()).collect();
        format!("expected one of {}", names.join(", "))
    })
}

/// Runs a verb.
///
/// # Errors
/// Refused input or a failed check, ready to print.
pub fn run(cli: Cli) -> anyhow::Result<()> {
    match cli.verb {
        Verb::Merge(a) => verb::merge::run(&a),
        Verb::Inspect(a) => verb::inspect::run(&a),
        Verb::Verify(a) => verb::verify::run(&a),
        Verb::Plan(a) => verb::plan::run(&a),
        Verb::Doctor(a) => verb::doctor::run(&a),
        Verb::Export(a) => verb::export::run(&a),
        Verb::Fetch(a) => verb::fetch::run(&a),
        Verb::Demo(a) => verb::demo::run(&a),
    }
}

/// An error and its causes in one printable line, control characters removed (names may come from files).
#[must_use]
pub fn one_line(error: &anyhow::Error) -> String {
    format!("{error:#}").chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}
