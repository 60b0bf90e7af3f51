//! The files beside the weights that say how text becomes tokens. Only read here; compiled elsewhere.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::{SourceError, json};

/// The largest published `tokenizer.json` files have some 40 MB.
const MAX_TOKENIZER: u64 = 128 << 20;

/// Tokenizer and chat template as a folder holds them; every part may be absent.
#[derive(Debug, Clone, Default)]
pub struct TokenizerFiles {
    /// The folder, and before it those whose files it stands over.
    pub dirs: Vec<PathBuf>,
    /// `tokenizer.json`, not parsed.
    pub tokenizer_json: Option<Vec<u8>>,
    /// `tokenizer_config.json`.
    pub tokenizer_config: Option<Value>,
    /// `special_tokens_map.json`.
    pub special_tokens_map: Option<Value>,
    /// The chat template: `chat_template.jinja`, else `chat_template.json`, else the one in `tokenizer_config.json`
    /// (its `default` where there are several).
    pub chat_template: Option<String>,
    /// Why there is no `tokenizer_json` although the model has a tokenizer (GGUF).
    pub problem: Option<String>,
}

impl TokenizerFiles {
    /// Reads what `dir` has.
    pub fn read(dir: &Path) -> Result<Self, SourceError> {
        let tokenizer_json = json::read_optional(&dir.join("tokenizer.json"), MAX_TOKENIZER)?;
        let tokenizer_config = json::read_if_there(&dir.join("tokenizer_config.json"))?;
        let special_tokens_map = json::read_if_there(&dir.join("special_tokens_map.json"))?;
        let chat_template = chat_template(dir, tokenizer_config.as_ref())?;
        let dirs = vec![dir.to_owned()];
        Ok(Self { dirs, tokenizer_json, tokenizer_config, special_tokens_map, chat_template, problem: None })
    }

    /// Whether the folder has any of it.
    pub fn is_present(&self) -> bool {
        self.tokenizer_json.is_some() || self.tokenizer_config.is_some() || self.chat_template.is_some()
    }

    /// The texts of the special tokens under the names that chat templates use (`bos_token`, …): of
    /// `tokenizer_config.json`, else of `special_tokens_map.json`.
    pub fn special_tokens(&self) -> BTreeMap<String, String> {
        const NAMES: [&str; 7] =
            ["bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"];
        let text = |value: &Value| value.as_str().or_else(|| value.get("content")?.as_str()).map(str::to_owned);
        let mut found = BTreeMap::new();
        for file in [&self.special_tokens_map, &self.tokenizer_config].into_iter().flatten() {
            let own = NAMES.iter().filter_map(|n| Some(((*n).to_owned(), file.get(*n)?)));
            let extra = file.get("extra_special_tokens").and_then(Value::as_object).into_iter().flatten();
            let all = own.chain(extra.map(|(n, v)| (n.clone(), v)));
            found.extend(all.filter_map(|(name, value)| Some((name, text(value)?))));
        }
        found
    }

    /// These files, with those that `over` has in their place.
    pub fn with(&self, over: &Self) -> Self {
        Self {
            dirs: self.dirs.iter().chain(&over.dirs).cloned().collect(),
            tokenizer_json: over.tokenizer_json.clone().or_else(|| self.tokenizer_json.clone()),
            tokenizer_config: over.tokenizer_config.clone().or_else(|| self.tokenizer_config.clone()),
            special_tokens_map: over.special_tokens_map.clone().or_else(|| self.special_tokens_map.clone()),
            chat_template: over.chat_template.clone().or_else(|| self.chat_template.clone()),
            problem: over.problem.clone().or_else(|| self.problem.clone()),
        }
    }
}

fn chat_template(dir: &Path, config: Option<&Value>) -> Result<Option<String>, SourceError> {
    let jinja = dir.join("chat_template.jinja");
    if let Some(bytes) = json::read_optional(&jinja, json::MAX_CONFIG)? {
        let text = String::from_utf8(bytes).map_err(|_| SourceError::file(&jinja, "not UTF-8"))?;
        return Ok(Some(text));
    }
    let wrapped = json::read_if_there(&dir.join("chat_template.json"))?;
    let value = wrapped.as_ref().and_then(|v| v.get("chat_template")).or(config.and_then(|c| c.get("chat_template")));
    Ok(match value {
        Some(Value::String(text)) => Some(text.clone()),
        Some(Value::Array(named)) => {
            let is_default = |t: &&Value| t.get("name").and_then(Value::as_str) == Some("default");
            let chosen = named.iter().find(is_default).and_then(|t| t.get("template"));
            chosen.and_then(Value::as_str).map(str::to_owned)
        }
        _ => None,
    })
}
