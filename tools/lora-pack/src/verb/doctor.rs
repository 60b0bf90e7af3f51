//! `doctor`: what an adapter is, and whether it fits.

use anyhow::{Result, bail};

use super::merge::{basis_options, open_base};
use crate::cli::DoctorArgs;
use crate::merge::{AdapterSpec, MergeOptions, doctor};
use crate::source::hub;

/// Runs the verb.
///
/// # Errors
/// An adapter that cannot be understood, or one that does not fit the base.
pub fn run(args: &DoctorArgs) -> Result<()> {
    let base = args.base.as_deref().map(|base| open_base(base, &args.basis)).transpose()?;
    let options = MergeOptions { force: args.force, ..basis_options(&args.basis)? };
    let report = doctor::report(&AdapterSpec::new(hub::locate(&args.adapter, None)?), base.as_ref(), &options)?;
    if args.json {
        println!("{}", serde_json::to_string(&report)?);
    } else {
        // Names come from files.
        let text = report.to_string();
        print!("{}", text.chars().map(|c| if c.is_control() && c != '\n' { ' ' } else { c }).collect::<String>());
    }
    match report.fit {
        Some(fit) if !fit.merges && !fit.attaches => bail!("{}", fit.problem.unwrap_or_default()),
        _ => Ok(()),
    }
}
