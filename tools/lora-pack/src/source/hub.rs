//! Models by their names on the Hub: `org/name`, found in the local cache that Hugging Face's libraries share.
//!
//! A snapshot lies at `models--ORG--NAME/snapshots/COMMIT`; `refs/REVISION` holds the commit of a branch or tag. The
//! layout is Hugging Face's own (huggingface_hub: "Understand caching").

use std::path::{Path, PathBuf};

use super::SourceError;

/// The branch that is meant where no revision is given.
pub const MAIN: &str = "main";

/// A model's name on the Hub.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RepoId(String);

impl RepoId {
    /// `name` or `org/name`: letters, digits, `-`, `_` and `.`, as the Hub allows them.
    pub fn parse(text: &str) -> Option<Self> {
        let good = |part: &str| {
            let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
            let dots = part.contains("..") || part.starts_with('.') || part.ends_with('.');
            !part.is_empty() && part.len() <= 96 && part.chars().all(allowed) && !dots && !part.contains("--")
        };
        let parts: Vec<&str> = text.split('/').collect();
        (parts.len() <= 2 && parts.iter().all(|p| good(p))).then(|| Self(text.to_owned()))
    }

    /// As it is written: `org/name`.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    fn folder(&self) -> String {
        format!("models--{}", self.0.replace('/', "--"))
    }
}

/// Where a folder of the cache came from.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Snapshot {
    /// `org/name`.
    pub repo: String,
    /// The commit.
    pub commit: String,
}

/// The cache as Hugging Face's libraries choose it: `HF_HUB_CACHE`, else `hub` in `HF_HOME`, else below the user's cache
/// folder.
pub fn cache_dir() -> Option<PathBuf> {
    let var = |name: &str| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
    let home = || var("HOME").or_else(|| var("USERPROFILE")).map(|h| h.join(".cache"));
    let below = || var("XDG_CACHE_HOME").or_else(home).map(|c| c.join("huggingface"));
    var("HF_HUB_CACHE")
        .or_else(|| var("HUGGINGFACE_HUB_CACHE"))
        .or_else(|| Some(var("HF_HOME").or_else(below)?.join("hub")))
}

/// The snapshot of `repo` at `revision` (a branch, a tag or a commit) in `cache`, if it is there.
pub fn find(cache: &Path, repo: &RepoId, revision: &str) -> Option<PathBuf> {
    let folder = cache.join(repo.folder());
    let snapshot = |commit: &str| Some(folder.join("snapshots").join(commit)).filter(|p| p.is_dir());
    if is_commit(revision) {
        return snapshot(revision);
    }
    snapshot(&commit_of(&folder, revision)?)
}

/// Which model a folder is, where it lies in such a cache.
pub fn snapshot_of(dir: &Path) -> Option<Snapshot> {
    let dir = dir.canonicalize().ok()?;
    let commit = dir.file_name()?.to_str()?.to_owned();
    let snapshots = dir.parent().filter(|p| p.file_name().is_some_and(|n| n == "snapshots"))?;
    let repo = snapshots.parent()?.file_name()?.to_str()?.strip_prefix("models--")?.replacen("--", "/", 1);
    is_commit(&commit).then_some(Snapshot { repo, commit })
}

/// The commit that a branch or tag stands for in the cache that `dir`, a snapshot, lies in.
pub fn resolve_beside(dir: &Path, revision: &str) -> Option<String> {
    let dir = dir.canonicalize().ok()?;
    commit_of(dir.parent()?.parent()?, revision)
}

fn commit_of(folder: &Path, revision: &str) -> Option<String> {
    // A revision may hold slashes (refs/pr/1), but must not lead out of the folder.
    let plain = Path::new(revision).components().all(|c| matches!(c, std::path::Component::Normal(_)));
    let path =
        Some(folder.join("refs").join(revision)).filter(|p| plain && p.metadata().is_ok_and(|m| m.len() <= 64))?;
    let commit = std::fs::read_to_string(path).ok()?.trim().to_owned();
    is_commit(&commit).then_some(commit)
}

/// A full commit hash.
pub fn is_commit(revision: &str) -> bool {
    revision.len() == 40 && revision.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}

/// The folder that `arg` means: a path that exists, else the snapshot of the model of that name in the cache, else what is
/// downloaded. What neither is there nor could be a name is taken as a path, so that the error is about the path.
///
/// # Errors
/// A name that is not in the cache and cannot be fetched.
pub fn locate(arg: &Path, revision: Option<&str>) -> Result<PathBuf, SourceError> {
    let repo = arg.to_str().filter(|_| !arg.exists()).and_then(RepoId::parse).filter(|r| r.as_str().contains('/'));
    match repo {
        None => Ok(arg.to_owned()),
        Some(repo) => obtain(&repo, revision, false),
    }
}

/// The folder of a model: from the cache, else from the Hub. `refresh` asks the Hub in any case, since a branch may have
/// moved; a commit never does.
///
/// # Errors
/// It is not in the cache and cannot be fetched.
pub fn obtain(repo: &RepoId, revision: Option<&str>, refresh: bool) -> Result<PathBuf, SourceError> {
    let name = Path::new(repo.as_str());
    let cache = cache_dir().ok_or_else(|| {
        SourceError::file(name, "no folder for the Hugging Face cache is known: set HF_HOME, or pass a local folder")
    })?;
    let revision = revision.unwrap_or(MAIN);
    // A snapshot without a config is a download that was broken off, or of other files.
    let complete = |dir: &PathBuf| dir.join("config.json").exists() || dir.join("adapter_config.json").exists();
    let here = find(&cache, repo, revision).filter(complete);
    match here {
        Some(dir) if !(refresh && cfg!(feature = "hub")) || is_commit(revision) => Ok(dir),
        _ => download(&cache, repo, revision),
    }
}

#[cfg(feature = "hub")]
use super::fetch::fetch as download;

#[cfg(not(feature = "hub"))]
fn download(cache: &Path, repo: &RepoId, revision: &str) -> Result<PathBuf, SourceError> {
    let problem = format!(
        "neither a folder here nor, at revision {}, a model in the local Hugging Face cache ({}); this lora-pack was \
         built without downloads (feature `hub`)",
        super::quote(revision),
        cache.display()
    );
    Err(SourceError::file(Path::new(repo.as_str()), problem))
}

#[cfg(test)]
mod tests {
    use super::*;

    const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";
    const OTHER: &str = "89abcdef0123456789abcdef0123456789abcdef";

    #[test]
    fn names_of_the_hub() {
        for good in ["gpt2", "org/name", "Org-1/na_me.v2"] {
            assert_eq!(RepoId::parse(good).unwrap().as_str(), good);
        }
        for bad in ["", "/", "a/", "/a", "a/b/c", "../b", "a/..", "a b/c", "a/b\\c", "a/.b", "a--b/c", "./model"] {
            assert!(RepoId::parse(bad).is_none(), "{bad}");
        }
    }

    #[test]
    fn snapshots_by_branch_tag_and_commit() {
        let cache = tempfile::tempdir().unwrap();
        let folder = cache.path().join("models--org--name");
        for commit in [COMMIT, OTHER] {
            std::fs::create_dir_all(folder.join("snapshots").join(commit)).unwrap();
        }
        std::fs::create_dir_all(folder.join("refs/pr")).unwrap();
        std::fs::write(folder.join("refs/main"), COMMIT).unwrap();
        std::fs::write(folder.join("refs/pr/1"), format!("{OTHER}\n")).unwrap();
        std::fs::write(folder.join("refs/broken"), "../../..").unwrap();
        let repo = RepoId::parse("org/name").unwrap();
        let found = |revision| find(cache.path(), &repo, revision).and_then(|p| snapshot_of(&p));
        let want = |commit: &str| Some(Snapshot { repo: "org/name".into(), commit: commit.into() });
        assert_eq!(found("main"), want(COMMIT));
        assert_eq!(found("refs/pr/1"), None);
        assert_eq!(found("pr/1"), want(OTHER));
        assert_eq!(found(OTHER), want(OTHER));
        for absent in ["v2", "broken", "../refs/main", "/etc/passwd", &OTHER.replace('8', "0")] {
            assert_eq!(found(absent), None, "{absent}");
        }
        assert_eq!(resolve_beside(&folder.join("snapshots").join(OTHER), "main").as_deref(), Some(COMMIT));
        assert_eq!(snapshot_of(cache.path()), None);
    }
}
