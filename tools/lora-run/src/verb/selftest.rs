//! `selftest`: whether this machine computes what the packer computed.

use anyhow::{Result, bail};

use crate::cli::SelftestArgs;
use crate::load::Host;

/// Metadata key of the golden results.
const KEY: &str = "selftest";

/// Runs the verb.
///
/// # Errors
/// The file holds no golden results, or this machine computes others.
pub fn run(args: &SelftestArgs) -> Result<()> {
    let host = Host::open(&args.model)?;
    let model = host.model()?;
    let Some(_golden) = model.file.meta_value(KEY) else {
        bail!("the file holds no golden results (metadata {KEY:?}): pack it with a lora-pack that writes them");
    };
    bail!("the file's golden results are of a form that this lora-run does not know: update lora-run");
}
