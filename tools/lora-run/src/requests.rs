//! JSON lines in, JSON lines out: how the task verbs take requests.

use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;

use anyhow::{Context, Result, anyhow, bail};
use serde_json::Value as Json;

use crate::output::Out;

/// Longest line of a request file.
const MAX_LINE: u64 = 64 << 20;

/// Answers one request, or every line of a file; the answers come in order, each as soon as it is there.
///
/// # Errors
/// A line that is not a JSON object, or what `answer` returns, with the number of the line.
pub fn serve(
    file: Option<&Path>,
    single: impl FnOnce() -> Json,
    json: bool,
    mut answer: impl FnMut(&Json) -> Result<Json>,
    show: impl Fn(&Json) -> String,
) -> Result<()> {
    let mut out = Out::new();
    let mut print = |answer: &Json| if json { out.json(answer) } else { out.line(&show(answer)) };
    let Some(file) = file else {
        return print(&answer(&single())?);
    };
    for_each(file, |request| print(&answer(request)?))
}

/// Calls `each` with the object of every line of a file, `-` for standard input.
///
/// # Errors
/// As [`serve`].
pub fn for_each(file: &Path, mut each: impl FnMut(&Json) -> Result<()>) -> Result<()> {
    let name = if file == Path::new("-") { "standard input".into() } else { file.display().to_string() };
    let mut lines = open(file).with_context(|| format!("cannot open {name}"))?;
    let mut line = String::new();
    for number in 1_u64.. {
        line.clear();
        if (&mut lines).take(MAX_LINE).read_line(&mut line).with_context(|| format!("{name}, line {number}"))? == 0 {
            break;
        }
        if line.len() as u64 == MAX_LINE {
            bail!("{name}, line {number}: longer than {MAX_LINE} bytes");
        }
        if line.trim().is_empty() {
            continue;
        }
        let request: Json = serde_json::from_str(&line)
            .map_err(|e| anyhow!("not JSON: {e}"))
            .with_context(|| format!("{name}, line {number}"))?;
        if !request.is_object() {
            bail!("{name}, line {number}: not a JSON object");
        }
        each(&request).with_context(|| format!("{name}, line {number}"))?;
    }
    Ok(())
}

fn open(file: &Path) -> std::io::Result<Box<dyn BufRead>> {
    if file == Path::new("-") {
        return Ok(Box::new(BufReader::new(std::io::stdin())));
    }
    Ok(Box::new(BufReader::new(File::open(file)?)))
}

/// A text file as a whole, `-` for standard input.
///
/// # Errors
/// It cannot be read, or is not UTF-8.
pub fn read_text(file: &Path) -> Result<String> {
    let mut text = String::new();
    let mut from = open(file).with_context(|| format!("cannot open {}", file.display()))?;
    from.read_to_string(&mut text).with_context(|| format!("reading {}", file.display()))?;
    Ok(text)
}

/// A text of a request.
///
/// # Errors
/// It is not there, or not a text.
pub fn text<'r>(request: &'r Json, name: &str) -> Result<&'r str> {
    optional_text(request, name)?.with_context(|| format!("the request has no {name:?}"))
}

/// A text of a request that may be left out.
///
/// # Errors
/// It is not a text.
pub fn optional_text<'r>(request: &'r Json, name: &str) -> Result<Option<&'r str>> {
    match request.get(name) {
        None | Some(Json::Null) => Ok(None),
        Some(Json::String(s)) => Ok(Some(s)),
        Some(_) => bail!("{name:?} is not a text"),
    }
}

/// A list of texts of a request that may be left out.
///
/// # Errors
/// It is not a list of texts.
pub fn texts<'r>(request: &'r Json, name: &str) -> Result<Option<Vec<&'r str>>> {
    let Some(value) = request.get(name) else { return Ok(None) };
    let list: Option<Vec<&str>> = value.as_array().and_then(|a| a.iter().map(Json::as_str).collect());
    Ok(Some(list.with_context(|| format!("{name:?} is not a list of texts"))?))
}

/// A float with no more digits than it has, null where it is not a number.
pub fn number(x: f32) -> Json {
    let shortest: Option<f64> = x.to_string().parse().ok();
    shortest.and_then(serde_json::Number::from_f64).map_or(Json::Null, Json::Number)
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use serde_json::json;

    use super::*;

    fn collect(text: &str) -> Result<Vec<Json>> {
        let mut file = tempfile::NamedTempFile::new()?;
        file.write_all(text.as_bytes())?;
        let mut all = Vec::new();
        for_each(file.path(), |request| {
            all.push(request.clone());
            Ok(())
        })?;
        Ok(all)
    }

    #[test]
    fn lines() {
        assert_eq!(collect("{\"a\":1}\n\n {\"a\":2} ").unwrap(), [json!({"a": 1}), json!({"a": 2})]);
        assert!(collect("").unwrap().is_empty());
        for (bad, word) in [("{}\nx", "line 2: not JSON"), ("[1]", "not a JSON object")] {
            let error = format!("{:#}", collect(bad).unwrap_err());
            assert!(error.contains(word), "{error}");
        }
        assert!(for_each(Path::new("/nowhere/x.jsonl"), |_| Ok(())).is_err());
    }

    #[test]
    fn fields() {
        let request = json!({"text": "t", "n": 1, "tokens": ["a", "b"], "null": null});
        assert_eq!(text(&request, "text").unwrap(), "t");
        assert!(text(&request, "missing").is_err() && text(&request, "n").is_err());
        assert_eq!(optional_text(&request, "null").unwrap(), None);
        assert_eq!(texts(&request, "tokens").unwrap(), Some(vec!["a", "b"]));
        assert!(texts(&request, "text").is_err());
    }

    #[test]
    fn numbers_keep_their_digits() {
        assert_eq!(number(0.1).to_string(), "0.1");
        assert_eq!(number(f32::NAN), Json::Null);
    }
}
