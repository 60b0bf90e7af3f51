//! lora-bench: a model beside the same model in llama.cpp, and beside what this machine can do at most.
//!
//! ```text
//! compare   tokens per second of both, interleaved; ratios with their spread
//! memory    peak memory, loading time and first token, each side in a process of its own
//! threads   what more threads bring, alone and beside a busy CPU
//! roofline  read bandwidth and int8 peak of this machine, and the share of them that a step reaches
//! ops       where the time of a step goes, op by op
//! code      calls, spills and instruction counts of the kernels' machine code
//! adapter   what unmerged mode costs: opening, switching, memory, speed
//! report    all of it for several pairs of models, as docs/performance.md
//! quantize  a GGUF file, by llama.cpp's own quantizer
//! logits    of given tokens, as llama.cpp computes them
//! ```

mod adapter;
mod clock;
mod code;
mod compare;
#[cfg(feature = "llama-cpp")]
mod importance;
#[cfg(feature = "llama-cpp")]
mod llama;
mod lora;
mod memory;
mod ops;
mod peak;
mod report;
mod roofline;
mod runner;
mod stats;
mod threads;

use std::path::PathBuf;

use anyhow::Result;
use clap::{Parser, Subcommand};

/// Measure models beside llama.cpp and beside the machine's limits.
#[derive(Debug, Parser)]
#[command(name = "lora-bench", version, max_term_width = 110)]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Tokens per second beside llama.cpp, interleaved
    Compare(compare::Args),
    /// Peak memory, loading time, and the first token with the file in memory and not
    Memory(memory::Args),
    /// What more threads bring, alone and beside a busy CPU
    Threads(threads::Args),
    /// What this machine can do, and the share of it that a step reaches
    Roofline(roofline::Args),
    /// Time of a step, op by op
    Ops(ops::Args),
    /// Check the machine code of the kernels: no call, no spill; count its instructions
    Code(code::Args),
    /// What unmerged mode costs: opening, switching, memory, speed
    Adapter(adapter::Args),
    /// Everything for several pairs of models, as Markdown
    Report(report::Args),
    /// One side of `memory`, for which it starts processes
    #[command(hide = true)]
    Once(memory::OnceArgs),
    /// Quantize a GGUF file with llama.cpp's quantizer
    #[cfg(feature = "llama-cpp")]
    Quantize {
        /// The file to read
        from: PathBuf,
        /// The file to write
        to: PathBuf,
        /// Bits: 4 (Q4_0) or 8 (Q8_0), every matrix alike
        #[arg(long, default_value_t = 4)]
        bits: u8,
        /// One of llama.cpp's types with its own choice for each matrix: q4_0, q4_k_m, iq4_nl, q5_k_m, q6_k, q8_0
        #[arg(long = "type", value_name = "TYPE", conflicts_with = "bits")]
        kind: Option<String>,
        /// Text, a document a line, for an importance matrix
        #[arg(long, value_name = "FILE", requires = "kind")]
        importance: Option<PathBuf>,
    },
    /// Write what llama.cpp computes for given tokens: its own activations, an f16 KV cache
    #[cfg(feature = "llama-cpp")]
    Logits {
        /// A GGUF file
        model: PathBuf,
        /// Token ids: a JSON list of lists, each of which is run from the beginning
        #[arg(long, value_name = "FILE")]
        ids: PathBuf,
        /// The file to write: f32, little-endian, a row for each token
        #[arg(long, value_name = "FILE")]
        out: PathBuf,
    },
}

fn main() -> Result<()> {
    match Cli::parse().verb {
        Verb::Compare(args) => compare::run(&args),
        Verb::Memory(args) => memory::run(&args),
        Verb::Threads(args) => threads::run(&args),
        Verb::Roofline(args) => roofline::run(&args),
        Verb::Ops(args) => ops::run(&args),
        Verb::Code(args) => code::run(&args),
        Verb::Adapter(args) => adapter::run(&args),
        Verb::Report(args) => report::run(&args),
        Verb::Once(args) => memory::once(&args),
        #[cfg(feature = "llama-cpp")]
        Verb::Quantize { from, to, bits, kind, importance } => {
            let form = kind.map_or(llama::Form::Pure(bits), llama::Form::Mixture);
            llama::quantize(&from, &to, &form, importance.as_deref())
        }
        #[cfg(feature = "llama-cpp")]
        Verb::Logits { model, ids, out } => llama::logits(&model, &ids, &out),
    }
}

/// The path's last part, for tables.
fn file_name(path: &std::path::Path) -> String {
    path.file_name().map_or_else(|| PathBuf::from(path).display().to_string(), |n| n.to_string_lossy().into_owned())
}
