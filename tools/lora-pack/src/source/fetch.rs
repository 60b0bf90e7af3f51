//! Downloads from the Hub into the local cache, through the Hub's own crate.
//!
//! Only what `lora-pack` reads is fetched: configs, tokenizer and template, safetensors weights. `HF_ENDPOINT` names
//! another server, `HF_TOKEN` a token, `HF_HUB_OFFLINE` forbids it.

use std::path::{Path, PathBuf};

use hf_hub::api::sync::{ApiBuilder, ApiError, ApiRepo};
use hf_hub::{Repo, RepoType};
use sha2::{Digest, Sha256};

use super::hub::{self, RepoId};
use super::{MappedFile, SourceError, quote};

/// Whether a file of a repository is one that `lora-pack` reads. Names come from the server: only plain ones, and those
/// in the folders of sentence-transformers' modules.
fn is_wanted(name: &str) -> bool {
    let plain = |part: &str| {
        !part.is_empty()
            && !part.starts_with('.')
            && part.chars().all(|c| c.is_ascii_alphanumeric() || "-_.+".contains(c))
    };
    let (folder, file) = name.rsplit_once('/').map_or((None, name), |(folder, file)| (Some(folder), file));
    let of_module = |f: &str| plain(f) && f.split_once('_').is_some_and(|(n, _)| n.parse::<u8>().is_ok());
    if !plain(file) || !folder.is_none_or(of_module) {
        return false;
    }
    let weights = |start: &str| file.starts_with(start) && file.ends_with(".safetensors");
    file.ends_with(".json")
        || file.ends_with(".jinja")
        || weights("model")
        || weights("adapter_model")
        || matches!(file, "merges.txt" | "vocab.txt" | "tokenizer.model" | "spiece.model" | "sentencepiece.bpe.model")
}

/// Downloads a model or an adapter at a revision into `cache`; the snapshot's folder. Files that are there already stay.
///
/// # Errors
/// The server cannot be reached or does not have it; it has no weights that can be read; a file is not what its hash
/// says; the disk.
pub fn fetch(cache: &Path, repo: &RepoId, revision: &str) -> Result<PathBuf, SourceError> {
    let at = Path::new(repo.as_str());
    if std::env::var("HF_HUB_OFFLINE").is_ok_and(|v| !matches!(v.as_str(), "" | "0")) {
        return Err(SourceError::file(at, "not in the local cache, and HF_HUB_OFFLINE forbids downloads"));
    }
    let failed = |what: &str, e: &ApiError| {
        SourceError::file(at, format!("{what} at revision {}: {}", quote(revision), reason(e)))
    };
    let mut api = ApiBuilder::from_env().with_cache_dir(cache.to_owned()).with_retries(3);
    api = api.with_progress(std::io::IsTerminal::is_terminal(&std::io::stderr()));
    if let Ok(token) = std::env::var("HF_TOKEN") {
        api = api.with_token(Some(token).filter(|t| !t.is_empty()));
    }
    let api = api.build().map_err(|e| failed("cannot be fetched", &e))?;
    let remote = api.repo(Repo::with_revision(repo.as_str().to_owned(), RepoType::Model, revision.to_owned()));
    let info = remote.info().map_err(|e| failed("cannot be found on the Hub", &e))?;
    let mut names: Vec<String> = info.siblings.into_iter().map(|s| s.rfilename).filter(|n| is_wanted(n)).collect();
    let has = |start: &str| names.iter().any(|n| n.starts_with(start) && n.ends_with(".safetensors"));
    if !has("model") && !has("adapter_model") {
        let problem = "has no weights in safetensors form on the Hub (model*.safetensors, adapter_model.safetensors)";
        return Err(SourceError::file(at, problem));
    }
    // The config comes last: a folder that has it is complete.
    names.sort_by_key(|n| matches!(n.as_str(), "config.json" | "adapter_config.json"));
    for name in &names {
        let path = get(&remote, name).map_err(|e| failed(&format!("{name} cannot be fetched"), &e))?;
        check(&path)?;
    }
    hub::find(cache, repo, revision).ok_or_else(|| SourceError::file(at, "the downloaded snapshot is not in the cache"))
}

fn get(remote: &ApiRepo, name: &str) -> Result<PathBuf, ApiError> {
    match remote.get(name) {
        // A download that broke off earlier and does not fit what is there now: from the start.
        Err(ApiError::InvalidResume) => remote.download(name),
        other => other,
    }
}

/// Large files are stored under their SHA-256: a download that gave other bytes is thrown away.
fn check(path: &Path) -> Result<(), SourceError> {
    let stored = path.canonicalize().map_err(|e| SourceError::io(path, e))?;
    let name = stored.file_name().and_then(|n| n.to_str()).unwrap_or_default();
    if name.len() != 64 || !name.bytes().all(|b| b.is_ascii_hexdigit()) {
        return Ok(());
    }
    let hash: String = Sha256::digest(MappedFile::open(&stored)?.bytes()).iter().map(|b| format!("{b:02x}")).collect();
    if hash == name {
        return Ok(());
    }
    // Best effort: the error that matters is the hash.
    let _ = std::fs::remove_file(&stored);
    let _ = std::fs::remove_file(path);
    Err(SourceError::file(path, format!("the download is damaged: its SHA-256 is {hash}, not {name}")))
}

/// What went wrong, and what to do where that is known.
fn reason(error: &ApiError) -> String {
    let text = error.to_string();
    let hint = match error {
        ApiError::RequestError(e) => match **e {
            ureq::Error::StatusCode(401 | 403) => " (private or gated: set HF_TOKEN)",
            ureq::Error::StatusCode(404) => " (no such model, revision or file)",
            ureq::Error::StatusCode(_) => "",
            _ => " (offline? a local folder or the cache works without a network)",
        },
        _ => "",
    };
    text + hint
}

#[cfg(test)]
mod tests {
    use super::is_wanted;

    #[test]
    fn only_what_is_read_is_fetched() {
        for name in [
            "config.json",
            "model.safetensors",
            "model-00001-of-00002.safetensors",
            "model.safetensors.index.json",
            "adapter_model.safetensors",
            "1_Pooling/config.json",
            "chat_template.jinja",
        ] {
            assert!(is_wanted(name), "{name}");
        }
        for name in [
            "README.md",
            "pytorch_model.bin",
            "onnx/model.json",
            "../config.json",
            "1_Pooling/../config.json",
            "/etc/passwd.json",
            ".git/config.json",
            "a\\b.json",
            "optimizer.safetensors",
        ] {
            assert!(!is_wanted(name), "{name}");
        }
    }
}
