//! `fetch`: a model or adapter of the Hub, in the local cache.

use anyhow::{Result, anyhow};
use serde_json::json;

use crate::cli::FetchArgs;
use crate::source::hub::{self, RepoId};

/// Runs the verb.
///
/// # Errors
/// A name that the Hub could not have; a model that is not in the cache and cannot be fetched.
pub fn run(args: &FetchArgs) -> Result<()> {
    let repo = RepoId::parse(&args.model)
        .ok_or_else(|| anyhow!("{}: not a model's name on the Hub (org/name)", args.model))?;
    let folder = hub::obtain(&repo, args.revision.as_deref(), true)?;
    if args.json {
        let commit = hub::snapshot_of(&folder).map(|s| s.commit);
        println!("{}", json!({"model": repo.as_str(), "commit": commit, "folder": folder}));
    } else {
        println!("{}", folder.display());
    }
    Ok(())
}
