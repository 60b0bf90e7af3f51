//! lora-run: runs `.lpk` models on this machine; one verb per task.
//!
//! | module | holds |
//! |---|---|
//! | [`cli`] | arguments of every verb, and the dispatch |
//! | [`exit`] | exit codes, and errors in one line |
//! | [`load`] | from a path to a session: mapping, kernels, threads, arena |
//! | [`text`] | text to token ids and back |
//! | [`forward`] | a whole input through a model, chunk by chunk |
//! | [`generation`], [`beam`], [`stop`] | continuing a prompt |
//! | [`template`] | chat templates |
//! | [`requests`] | JSON lines in, JSON lines out |
//! | [`output`], [`stats`] | what is printed, and the numbers that are told |
//! | `verb` | one file per verb |

mod beam;
mod cli;
mod exit;
mod forward;
mod generation;
mod load;
mod output;
mod pin;
mod requests;
mod stats;
mod stop;
mod template;
mod text;
mod verb;

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    // Wrong usage ends here with clap's exit code 2; `--help` and `--version` with 0.
    let cli = cli::Cli::parse();
    exit::report(cli::run(cli))
}
