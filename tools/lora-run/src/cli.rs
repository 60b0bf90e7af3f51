//! The command line: the verbs, what several of them take, and the dispatch. The arguments of one verb stand in its file.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};
use lora_runtime::kernels::{KvType, Level};

use crate::verb;

/// Run an .lpk model on this machine: generate, chat, classify, tag, answer, embed, measure.
#[derive(Debug, Parser)]
#[command(
    name = "lora-run",
    version,
    max_term_width = 110,
    after_help = "\
Examples:
  lora-run chat home.lpk
  lora-run generate home.lpk -p 'Once upon a time' -n 100 --temp 0.8
  lora-run classify intents.lpk 'turn on the light' --json
  lora-run bench home.lpk

`lora-run VERB --help` shows examples of each verb. Make .lpk files with lora-pack."
)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub verb: Verb,
}

/// The verbs.
#[derive(Debug, Subcommand)]
pub enum Verb {
    /// Continue a prompt
    Generate(verb::generate::Args),
    /// Talk with a model
    Chat(verb::chat::Args),
    /// Label texts
    Classify(verb::classify::Args),
    /// Label the words of texts (names, slots, …)
    Tag(verb::tag::Args),
    /// Find the answer to a question in a text
    Qa(verb::qa::Args),
    /// Turn texts into vectors
    Embed(verb::embed::Args),
    /// Order documents by how well they fit a query
    Rerank(verb::rerank::Args),
    /// Rewrite texts with an encoder-decoder model
    Seq2seq(verb::seq2seq::Args),
    /// Text to token ids
    Tokenize(verb::tokenize::Args),
    /// Token ids to text
    Detokenize(verb::detokenize::Args),
    /// Run exactly these token ids and write every output
    Raw(verb::raw::Args),
    /// Measure the speed of a model here
    Bench(verb::bench::Args),
    /// Check that this machine computes what the packer computed
    Selftest(verb::selftest::Args),
}

/// The model and how to run it.
#[derive(Debug, Args)]
pub struct ModelArgs {
    /// The model file
    pub model: PathBuf,
    /// An adapter file for this base, or the name of one in the bundle, optionally with a weight (repeatable: all act
    /// at once)
    #[arg(long = "adapter", value_name = "A.lpk[=W]")]
    pub adapters: Vec<String>,
    /// Threads to use (default: one for each CPU)
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=256), help_heading = "Running")]
    pub threads: Option<u16>,
    /// Processors for the threads to stay on, one each (default: where the system moves them; threads: as many as
    /// processors are named)
    #[arg(long, value_name = "CPU,CPU", value_delimiter = ',', help_heading = "Running")]
    pub pin: Vec<usize>,
    /// Instruction set of the kernels (default: the best that this CPU runs): scalar, sse41, avx2, avxvnni, avx512,
    /// amx, neon, dotprod, i8mm; all give the same bits
    #[arg(long, value_name = "NAME", value_parser = parse_level, help_heading = "Running")]
    pub isa: Option<Level>,
    /// Positions to plan memory for (default: what the request needs)
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..), help_heading = "Running")]
    pub ctx: Option<u32>,
    /// Tokens of one prefill step (default 64): more is faster and takes more memory, and gives the same bits
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=65536), help_heading = "Running")]
    pub chunk: Option<u32>,
    /// Element type of the KV cache: f32, f16, i8 (default: the file's)
    #[arg(long, value_name = "TYPE", value_parser = parse_kv, help_heading = "Running")]
    pub kv: Option<KvType>,
}

/// How tokens are chosen and when to stop.
#[derive(Debug, Args)]
pub struct SamplingArgs {
    /// Most tokens to generate
    #[arg(short = 'n', long = "max-tokens", value_name = "N", default_value_t = 256)]
    pub n: u32,
    /// Temperature; 0 always takes the likeliest token (default: the model's)
    #[arg(long, value_name = "T", value_parser = parse_at_least_zero, help_heading = "Choosing tokens")]
    pub temp: Option<f32>,
    /// Choose among the K likeliest tokens; 0 is off (default: the model's)
    #[arg(long, value_name = "K", help_heading = "Choosing tokens")]
    pub top_k: Option<u32>,
    /// Choose among the likeliest tokens that together have probability P; 1 is off (default: the model's)
    #[arg(long, value_name = "P", value_parser = parse_share, help_heading = "Choosing tokens")]
    pub top_p: Option<f32>,
    /// Leave out tokens less probable than P times the likeliest one; 0 is off
    #[arg(long, value_name = "P", value_parser = parse_share, help_heading = "Choosing tokens")]
    pub min_p: Option<f32>,
    /// Divide the logits of tokens that have occurred; 1 is off (default: the model's)
    #[arg(long, value_name = "R", value_parser = parse_penalty, help_heading = "Choosing tokens")]
    pub repeat_penalty: Option<f32>,
    /// Beam search: keep the B likeliest continuations at every step and answer with the best one
    #[arg(long, value_name = "B", value_parser = clap::value_parser!(u16).range(1..=64), help_heading = "Choosing tokens",
        conflicts_with_all = ["temp", "top_k", "top_p", "min_p", "seed", "stop"])]
    pub beams: Option<u16>,
    /// Beam search divides a continuation's log-probability by its length to the power of L: above 0 favours longer ones
    #[arg(long, value_name = "L", default_value_t = 1.0, value_parser = parse_finite, requires = "beams",
        help_heading = "Choosing tokens", allow_hyphen_values = true)]
    pub length_penalty: f32,
    /// When beam search ends: yes (as soon as B continuations have ended), no (when the running ones are unlikely to
    /// beat them), never (when they cannot)
    #[arg(long, value_name = "WHEN", default_value = "no", requires = "beams", help_heading = "Choosing tokens")]
    pub early_stopping: EarlyStopping,
    /// Token id that the answer begins with, such as a language's (default: the model's, if any)
    #[arg(long, value_name = "ID", help_heading = "Choosing tokens")]
    pub first: Option<u32>,
    /// Seed of the random choice: the same seed gives the same text on every machine (default: another each time)
    #[arg(long, value_name = "S", help_heading = "Choosing tokens")]
    pub seed: Option<u64>,
    /// Stop before this text (repeatable)
    #[arg(long, value_name = "TEXT", help_heading = "Choosing tokens", allow_hyphen_values = true)]
    pub stop: Vec<String>,
    /// Go on past the model's end tokens
    #[arg(long, help_heading = "Choosing tokens")]
    pub ignore_eos: bool,
}

/// When beam search ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum EarlyStopping {
    /// With as many ended continuations as there are beams.
    Yes,
    /// When the best running one, at its length, is behind the worst ended one.
    No,
    /// When no running one can catch up at any length.
    Never,
}

/// One text, or a file of requests.
#[derive(Debug, Args)]
pub struct TextArgs {
    /// The text
    #[arg(value_name = "TEXT", conflicts_with = "file", required_unless_present_any = ["file", "text_flag"])]
    pub text: Option<String>,
    /// The text, as a flag
    #[arg(short = 'p', long = "text", value_name = "TEXT", id = "text_flag", conflicts_with_all = ["text", "file"], allow_hyphen_values = true)]
    pub text_flag: Option<String>,
    #[command(flatten)]
    pub requests: RequestArgs,
}

impl TextArgs {
    /// The one text.
    pub fn text(&self) -> &str {
        self.text.as_deref().or(self.text_flag.as_deref()).unwrap_or("")
    }
}

/// Requests from a file, and the form of the answers.
#[derive(Debug, Args)]
pub struct RequestArgs {
    /// One request a line; `-` reads standard input
    #[arg(long, value_name = "F.jsonl")]
    pub file: Option<PathBuf>,
    /// Cut texts that are longer than the model's positions, instead of refusing them
    #[arg(long)]
    pub truncate: bool,
    /// Print one JSON object (with --file one a line)
    #[arg(long)]
    pub json: bool,
}

fn parse_level(s: &str) -> Result<Level, String> {
    let names: Vec<&str> = Level::ALL.iter().map(|l| l.name()).collect();
    Level::from_name(s).ok_or_else(|| format!("expected one of {}", names.join(", ")))
}

fn parse_kv(s: &str) -> Result<KvType, String> {
    KvType::from_name(s).ok_or_else(|| "expected f32, f16 or i8".into())
}

fn parse_number(s: &str, fits: impl Fn(f32) -> bool, expected: &str) -> Result<f32, String> {
    s.parse().ok().filter(|x| fits(*x)).ok_or_else(|| format!("expected {expected}"))
}

fn parse_finite(s: &str) -> Result<f32, String> {
    parse_number(s, f32::is_finite, "a number")
}

fn parse_at_least_zero(s: &str) -> Result<f32, String> {
    parse_number(s, |x| x.is_finite() && x >= 0.0, "a number of at least 0")
}

fn parse_share(s: &str) -> Result<f32, String> {
    parse_number(s, |x| (0.0..=1.0).contains(&x), "a number from 0 to 1")
}

fn parse_penalty(s: &str) -> Result<f32, String> {
    parse_number(s, |x| x.is_finite() && x > 0.0, "a number above 0")
}

/// Runs a verb.
pub fn run(cli: Cli) -> anyhow::Result<()> {
    match cli.verb {
        Verb::Generate(a) => verb::generate::run(&a),
        Verb::Chat(a) => verb::chat::run(&a),
        Verb::Classify(a) => verb::classify::run(&a),
        Verb::Tag(a) => verb::tag::run(&a),
        Verb::Qa(a) => verb::qa::run(&a),
        Verb::Embed(a) => verb::embed::run(&a),
        Verb::Rerank(a) => verb::rerank::run(&a),
        Verb::Seq2seq(a) => verb::seq2seq::run(&a),
        Verb::Tokenize(a) => verb::tokenize::run(&a),
        Verb::Detokenize(a) => verb::detokenize::run(&a),
        Verb::Raw(a) => verb::raw::run(&a),
        Verb::Bench(a) => verb::bench::run(&a),
        Verb::Selftest(a) => verb::selftest::run(&a),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_verb_teaches_by_example() {
        for verb in Cli::command().get_subcommands_mut() {
            let help = verb.render_long_help().to_string();
            assert!(help.contains(&format!("lora-run {} ", verb.get_name())), "{}", verb.get_name());
        }
    }

    #[test]
    fn calls_of_the_contract() {
        let calls = [
            "generate m.lpk --ids 1,2 -n 3 --temp 0 --ignore-eos --json",
            "generate m.lpk -p x -n 3 --top-k 5 --top-p 0.5 --min-p 0.1 --repeat-penalty 1.1 --seed 4 --stop a --stop b",
            "generate m.lpk --file f.jsonl --json -n 5 --temp 0 --chat --system s",
            "generate m.lpk --ids 1,2 -n 3 --beams 4 --json",
            "seq2seq m.lpk text --beams 4 --length-penalty 0.6 --early-stopping yes",
            "raw m.lpk --ids 1,2,3 --pair-ids 4 --chunk 3 --threads 2 --isa scalar --out o.safetensors",
            "raw m.lpk --ids-file f.json --out o.safetensors",
            "tokenize m.lpk text --pair b --no-special --json",
            "tokenize m.lpk --file f.txt --json",
            "detokenize m.lpk --ids 1,2",
            "classify m.lpk text --json --threads 1 --ctx 64",
            "tag m.lpk --file f.jsonl --json",
            "qa m.lpk --file f.jsonl --json",
            "embed m.lpk text",
            "seq2seq m.lpk --file f.jsonl --json",
            "bench m.lpk -p 128,512 -n 64 -t 1,2 -r 5 --json",
            "selftest m.lpk",
            "chat m.lpk --kv i8",
            "raw m.lpk --adapter a.lpk --adapter b.lpk=0.5 --ids 1 --out o.safetensors",
        ];
        for call in calls {
            let args = ["lora-run"].into_iter().chain(call.split(' '));
            if let Err(e) = Cli::try_parse_from(args) {
                panic!("{call}: {e}");
            }
        }
        let wrong = [
            "generate m.lpk",
            "generate m.lpk -p x --top-p 2",
            "generate m.lpk -p x --beams 4 --temp 1",
            "raw m.lpk --ids 1",
            "bench m.lpk -t 0",
            "qa m.lpk -q x",
        ];
        for call in wrong {
            assert!(Cli::try_parse_from(["lora-run"].into_iter().chain(call.split(' '))).is_err(), "{call}");
        }
    }
}
