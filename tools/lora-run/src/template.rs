//! Chat templates: the model's own Jinja text, run as transformers runs it.
//!
//! What transformers adds to plain Jinja is here too: `raise_exception`, `strftime_now`, a `tojson` that writes as
//! Python does, Python's methods on strings, lists and dicts, Python's way of printing values, trimmed blocks, and
//! the `{% generation %}` marks (which only matter for training and are passed over).

mod python;

use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Result, anyhow};
use lora_runtime::Model;
use lora_runtime::format::NONE;
use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Kwargs, Value, from_args};
use minijinja::{AutoEscape, Environment, Error, ErrorKind};
use serde_json::Value as Json;

/// Steps a template may take: some thousand times what the largest published ones need.
const FUEL: u64 = 20_000_000;
/// Metadata key under which a file names the texts of its special tokens, a JSON object.
const SPECIAL_TOKENS: &str = "tokenizer.special_tokens";

/// A model's chat template, compiled.
pub struct ChatTemplate {
    env: Environment<'static>,
    /// Names as in transformers (`bos_token`, …) and their texts.
    special: Vec<(String, String)>,
}

impl ChatTemplate {
    /// Compiles a template.
    ///
    /// # Errors
    /// The text is not a Jinja template.
    pub fn new(source: &str, special: Vec<(String, String)>) -> Result<Self> {
        let mut env = Environment::new();
        let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
        env.set_syntax(syntax.map_err(|e| anyhow!("chat template: {e}"))?);
        env.set_auto_escape_callback(|_| AutoEscape::None);
        env.set_fuel(Some(FUEL));
        env.set_unknown_method_callback(|state, value, method, args| match (method, value.as_str()) {
            ("rsplit", Some(text)) => rsplit(text, args),
            _ => minijinja_contrib::pycompat::unknown_method_callback(state, value, method, args),
        });
        env.set_formatter(|out, _, value| Ok(python::write_str(out, value)?));
        env.add_filter("tojson", tojson);
        env.add_filter("escape", python::escape);
        env.add_filter("e", python::escape);
        env.add_function("raise_exception", |message: String| -> Result<Value, Error> {
            Err(Error::new(ErrorKind::InvalidOperation, message))
        });
        env.add_function("strftime_now", |format: String| python::strftime(&format, now()));
        env.add_template_owned("chat", without_generation_marks(source)).map_err(|e| anyhow!("chat template: {e}"))?;
        Ok(Self { env, special })
    }

    /// The template of a model and the texts of its special tokens.
    ///
    /// # Errors
    /// The file has no template, or it does not compile.
    pub fn of(model: &Model<'_>) -> Result<Self> {
        let source = model.face.str(model.face.info.chat_template);
        if source.is_empty() {
            return Err(anyhow!(
                "the file has no chat template: use `lora-run generate -p` with the prompt as the model expects it"
            ));
        }
        Self::new(source, special_tokens(model))
    }

    /// The prompt of a conversation. `messages` is a JSON list of objects with `role` and `content`, `tools` a list of
    /// the functions that the model may call, as JSON schemas.
    ///
    /// # Errors
    /// What the template itself refuses (roles in the wrong order, …), or an error in it.
    pub fn render(&self, messages: &Json, tools: Option<&Json>, add_generation_prompt: bool) -> Result<String> {
        let template = self.env.get_template("chat").map_err(|e| anyhow!("chat template: {e}"))?;
        let special = self.special.iter().map(|(name, text)| (name.clone(), Value::from(text.as_str())));
        let context = [
            ("messages".to_owned(), python::value(messages)),
            ("add_generation_prompt".to_owned(), Value::from(add_generation_prompt)),
            ("tools".to_owned(), tools.map_or_else(|| Value::from(()), python::value)),
            ("documents".to_owned(), Value::from(())),
        ];
        template.render(Value::from_pairs(special.chain(context))).map_err(|e| match (e.kind(), e.detail()) {
            (ErrorKind::InvalidOperation, Some(detail)) => anyhow!("the model's chat template refuses this: {detail}"),
            _ => anyhow!("the model's chat template failed: {e}"),
        })
    }
}

/// The texts of the special tokens: as the file says, else of the ids that generation uses.
fn special_tokens(model: &Model<'_>) -> Vec<(String, String)> {
    if let Some(Ok(Json::Object(map))) = model.file.meta_value(SPECIAL_TOKENS).map(serde_json::from_str) {
        return map.into_iter().filter_map(|(k, v)| Some((k, v.as_str()?.to_owned()))).collect();
    }
    let info = model.face.info;
    let ids =
        [("bos_token", info.bos), ("eos_token", model.eos().first().copied().unwrap_or(NONE)), ("pad_token", info.pad)];
    let text = |id: u32| model.tokenizer().ok()?.token_text(id).map(|t| t.to_string());
    ids.into_iter().filter_map(|(name, id)| Some((name.to_owned(), text(id)?))).collect()
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs())
}

/// `tojson` with the options that templates give: `indent`, `ensure_ascii`, `sort_keys`, `separators`.
fn tojson(value: Value, kwargs: Kwargs) -> Result<Value, Error> {
    let separators: Option<Vec<String>> = kwargs.get("separators")?;
    let separators = match separators.as_deref() {
        Some([item, key]) => Some((item.clone(), key.clone())),
        Some(_) => return Err(Error::new(ErrorKind::InvalidOperation, "tojson: separators are two texts")),
        None => None,
    };
    let style = python::JsonStyle {
        indent: kwargs.get("indent")?,
        ensure_ascii: kwargs.get::<Option<bool>>("ensure_ascii")?.unwrap_or(false),
        sort_keys: kwargs.get::<Option<bool>>("sort_keys")?.unwrap_or(false),
        separators,
    };
    kwargs.assert_all_used()?;
    let mut out = String::new();
    python::write_json(&mut out, &value, &style, 0)?;
    Ok(Value::from_safe_string(out))
}

/// `str.rsplit(separator, maxsplit)`.
fn rsplit(text: &str, args: &[Value]) -> Result<Value, Error> {
    let (separator, most, kwargs): (Option<&str>, Option<i64>, Kwargs) = from_args(args)?;
    let most = most.map_or_else(|| kwargs.get::<Option<i64>>("maxsplit"), |m| Ok(Some(m)))?;
    kwargs.assert_all_used()?;
    let most = most.and_then(|m| usize::try_from(m).ok()).unwrap_or(usize::MAX - 1);
    Ok(Value::from(python::rsplit(text, separator, most)))
}

/// Turns `{% generation %}` … `{% endgeneration %}` into a condition that always holds; what trims blanks stays.
fn without_generation_marks(source: &str) -> String {
    let mut out = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(at) = rest.find("{%") {
        let (before, tag) = rest.split_at(at);
        out.push_str(before);
        let Some(end) = tag.find("%}") else { break };
        let inner = &tag[2..end];
        let word = inner.trim_matches(|c: char| c == '-' || c == '+' || c.is_whitespace());
        match word {
            "generation" => out.push_str(&tag[..end].replacen("generation", "if true", 1)),
            "endgeneration" => out.push_str(&tag[..end].replacen("endgeneration", "endif", 1)),
            _ => out.push_str(&tag[..end]),
        }
        out.push_str("%}");
        rest = &tag[end + 2..];
    }
    out.push_str(rest);
    out
}

#[cfg(test)]
mod tests;
