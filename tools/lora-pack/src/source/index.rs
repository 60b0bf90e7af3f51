//! `model.safetensors.index.json`: which shard holds which tensor.

use std::collections::BTreeMap;
use std::path::{Component, Path};

use serde_json::Value;

use super::{SourceError, TensorIndex, json, quote};

/// Names of 300,000 tensors fit.
const MAX_INDEX: u64 = 64 << 20;

/// Opens every shard that the index at `path` names. A shard must be a plain file name: an index cannot reach outside
/// its folder. A tensor that the index promises must be in the shard that it says; tensors that it does not list are
/// taken as they are.
pub fn open(path: &Path) -> Result<TensorIndex, SourceError> {
    let folder = path.parent().unwrap_or(Path::new("."));
    let value = json::parse(path, &json::read_bytes(path, MAX_INDEX)?)?;
    let Some(map) = value.get("weight_map").and_then(Value::as_object) else {
        return Err(SourceError::field(path, "weight_map", "missing, or not an object of tensor name to file"));
    };
    let mut shards: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for (tensor, shard) in map {
        let shard = shard.as_str().ok_or_else(|| {
            SourceError::field(path, format!("weight_map.{}", quote(tensor)), "the file name is not a string")
        })?;
        shards.entry(shard).or_default().push(tensor);
    }
    if shards.is_empty() {
        return Err(SourceError::field(path, "weight_map", "names no tensor"));
    }
    for shard in shards.keys() {
        let mut parts = Path::new(shard).components();
        if !matches!((parts.next(), parts.next()), (Some(Component::Normal(_)), None)) || shard.contains('\\') {
            let problem = format!("path {} is not a plain file name: it may lead outside the folder", quote(shard));
            return Err(SourceError::field(path, "weight_map", problem));
        }
    }

    let mut index = TensorIndex::default();
    for (shard, tensors) in &shards {
        let file = folder.join(shard);
        // Another shard's tensor that lies here too (a stale copy) is not the one that the index means.
        let wanted = |name: &str| map.get(name).is_none_or(|s| s.as_str() == Some(shard));
        index.add_safetensors(&file, wanted)?;
        if let Some(missing) = tensors.iter().find(|t| !index.contains(t)) {
            return Err(SourceError::tensor(&file, *missing, "missing, though the index says that it is here"));
        }
    }
    Ok(index)
}
