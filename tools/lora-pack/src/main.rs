//! lora-pack: merge PEFT LoRA adapters, quantize, and write one memory-mapped `.lpk` file.

use std::process::ExitCode;

use clap::Parser;
use lora_pack::cli::{Cli, run};

fn main() -> ExitCode {
    // Wrong usage ends here with clap's exit code 2; `--help` and `--version` with 0.
    let cli = Cli::parse();
    match run(cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {}", lora_pack::cli::one_line(&error));
            ExitCode::FAILURE
        }
    }
}
