//! Small JSON files, read whole: bounded in size by us and in depth by serde_json (128 levels).

use std::io::Read;
use std::path::Path;

use serde_json::Value;

use super::SourceError;

/// Configs are a few kilobytes; nobody needs more than this.
pub const MAX_CONFIG: u64 = 4 << 20;

/// Reads a regular file of at most `max` bytes.
pub fn read_bytes(path: &Path, max: u64) -> Result<Vec<u8>, SourceError> {
    let meta = std::fs::metadata(path).map_err(|e| SourceError::io(path, e))?;
    if !meta.is_file() {
        return Err(SourceError::file(path, "is not a regular file"));
    }
    if meta.len() > max {
        let problem = format!("{} bytes long; files of this kind may have {max}", meta.len());
        return Err(SourceError::file(path, problem));
    }
    let mut bytes = Vec::with_capacity(usize::try_from(meta.len()).unwrap_or(0));
    let file = std::fs::File::open(path).map_err(|e| SourceError::io(path, e))?;
    file.take(max).read_to_end(&mut bytes).map_err(|e| SourceError::io(path, e))?;
    Ok(bytes)
}

/// Like [`read_bytes`], `None` where there is no such file.
pub fn read_optional(path: &Path, max: u64) -> Result<Option<Vec<u8>>, SourceError> {
    match read_bytes(path, max) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(SourceError::Io { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(e),
    }
}

/// Parses JSON bytes that came from `path`. `NaN` and numbers out of range are refused, as JSON has neither.
pub fn parse(path: &Path, bytes: &[u8]) -> Result<Value, SourceError> {
    serde_json::from_slice(bytes).map_err(|e| SourceError::file(path, format!("not valid JSON: {e}")))
}

/// Reads and parses a small JSON file.
pub fn read(path: &Path) -> Result<Value, SourceError> {
    parse(path, &read_bytes(path, MAX_CONFIG)?)
}

/// Reads and parses a small JSON file that may be absent.
pub fn read_if_there(path: &Path) -> Result<Option<Value>, SourceError> {
    read_optional(path, MAX_CONFIG)?.map(|bytes| parse(path, &bytes)).transpose()
}
