//! The files that sentence-transformers keeps beside an embedding model: how the tokens' vectors become one.

use std::path::{Component, Path};

use serde_json::Value;

use super::{SourceError, json, quote};

/// How an embedding model pools, as numbered in a file's `info.pooling`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sentence {
    /// 1 mean, 2 first token, 3 last token.
    pub pooling: u32,
    /// Vectors are brought to length one.
    pub normalize: bool,
}

/// Reads `modules.json` and the pooling config that it names; `None` where there is none.
///
/// # Errors
/// A module or a kind of pooling that changes the vectors and is not supported.
pub fn read(dir: &Path) -> Result<Option<Sentence>, SourceError> {
    let path = dir.join("modules.json");
    // A base may be a single file.
    let modules = if dir.is_dir() { json::read_if_there(&path)? } else { None };
    let Some(modules) = modules else { return Ok(None) };
    let modules = modules.as_array().ok_or_else(|| SourceError::file(&path, "not a list of modules"))?;
    let (mut pooling, mut normalize) = (None, false);
    for (i, module) in modules.iter().enumerate() {
        let field = |name: &str| module.get(name).and_then(Value::as_str).unwrap_or_default();
        match field("type").rsplit('.').next().unwrap_or_default() {
            "Transformer" if i == 0 => {}
            "Pooling" => pooling = Some(read_pooling(dir, &path, field("path"))?),
            "Normalize" => normalize = true,
            "Dropout" => {}
            other => {
                let problem =
                    format!("the module {} is not supported; Transformer, Pooling and Normalize are", quote(other));
                return Err(SourceError::field(&path, format!("{i}.type"), problem));
            }
        }
    }
    Ok(pooling.map(|pooling| Sentence { pooling, normalize }))
}

fn read_pooling(dir: &Path, modules: &Path, folder: &str) -> Result<u32, SourceError> {
    let plain = |c: Component<'_>| matches!(c, Component::Normal(_) | Component::CurDir);
    if !Path::new(folder).components().all(plain) {
        return Err(SourceError::field(modules, "path", format!("{} leaves the model's folder", quote(folder))));
    }
    let path = dir.join(folder).join("config.json");
    let config = json::read(&path)?;
    let kinds = [
        ("pooling_mode_cls_token", Some(2)),
        ("pooling_mode_mean_tokens", Some(1)),
        ("pooling_mode_lasttoken", Some(3)),
        ("pooling_mode_max_tokens", None),
        ("pooling_mode_mean_sqrt_len_tokens", None),
        ("pooling_mode_weightedmean_tokens", None),
    ];
    let on: Vec<_> = kinds.iter().filter(|(k, _)| config.get(k).and_then(Value::as_bool) == Some(true)).collect();
    match on[..] {
        [(_, Some(pooling))] => Ok(*pooling),
        [] => Err(SourceError::field(&path, "pooling_mode_mean_tokens", "no kind of pooling is on")),
        _ => {
            let names: Vec<&str> = on.iter().map(|(name, _)| *name).collect();
            let problem = "not supported; one of cls_token, mean_tokens, lasttoken is";
            Err(SourceError::field(&path, names.join(", "), problem))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn model(modules: &str, pooling: &str) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("modules.json"), modules).unwrap();
        std::fs::create_dir(dir.path().join("1_Pooling")).unwrap();
        std::fs::write(dir.path().join("1_Pooling/config.json"), pooling).unwrap();
        dir
    }

    const TWO: &str = r#"[{"idx":0,"path":"","type":"sentence_transformers.models.Transformer"},
        {"idx":1,"path":"1_Pooling","type":"sentence_transformers.models.Pooling"}]"#;

    #[test]
    fn kinds_of_pooling() {
        let read_one = |pooling: &str| read(model(TWO, pooling).path());
        let cls = read_one(r#"{"pooling_mode_cls_token": true, "pooling_mode_mean_tokens": false}"#).unwrap();
        assert_eq!(cls, Some(Sentence { pooling: 2, normalize: false }));
        let last = read_one(r#"{"pooling_mode_lasttoken": true}"#).unwrap();
        assert_eq!(last.map(|s| s.pooling), Some(3));
        let two = read_one(r#"{"pooling_mode_max_tokens": true, "pooling_mode_mean_tokens": true}"#);
        assert!(two.unwrap_err().to_string().contains("pooling_mode_mean_tokens, pooling_mode_max_tokens"));
        assert!(read_one("{}").is_err());
        assert_eq!(read(tempfile::tempdir().unwrap().path()).unwrap(), None);
    }

    #[test]
    fn what_changes_the_vectors_is_refused() {
        let dense = TWO.replace("]", r#",{"idx":2,"path":"2_Dense","type":"sentence_transformers.models.Dense"}]"#);
        let pooling = r#"{"pooling_mode_mean_tokens": true}"#;
        assert!(read(model(&dense, pooling).path()).unwrap_err().to_string().contains("Dense"));
        let away = TWO.replace("1_Pooling", "../elsewhere");
        assert!(read(model(&away, pooling).path()).unwrap_err().to_string().contains("leaves"));
    }
}
