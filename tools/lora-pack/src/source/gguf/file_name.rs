//! GGUF's naming convention: `<base>-<size>-<fine tune>-<version>-<encoding>.gguf`, after ggml's `docs/gguf.md`.

use ggml_rs::{GGUFComponents, parse_gguf_filename};

/// The parts that a name speaks of.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct FileName {
    /// What the model is called.
    pub base: String,
    /// Parameters: `135M`.
    pub size: String,
    /// What it was tuned for.
    pub fine_tune: Option<String>,
    /// Version, `v1.0` where nobody says.
    pub version: String,
}

impl FileName {
    /// The parts of a file's or a folder's name; `None` where it does not follow the convention.
    pub fn parse(name: &str) -> Option<Self> {
        let stem = name.strip_suffix(".gguf").unwrap_or(name);
        // Folders and older files say no version, or put a dot before the encoding.
        let stem = match stem.rsplit_once('.') {
            Some((before, encoding)) if encoding.starts_with(['Q', 'F', 'B', 'I']) => before,
            _ => stem,
        };
        let found = parse_gguf_filename(&format!("{stem}.gguf"));
        let GGUFComponents { base_name, size_label, fine_tune, version, .. } =
            found.or_else(|| parse_gguf_filename(&format!("{stem}-v1.0.gguf")))?;
        Some(Self { base: base_name?, size: size_label?, fine_tune, version })
    }

    /// Its name for weights of this encoding.
    pub fn file(&self, encoding: &str) -> String {
        let fine_tune = self.fine_tune.as_ref().map_or(String::new(), |f| format!("-{f}"));
        format!("{}-{}{fine_tune}-{}-{encoding}.gguf", self.base, self.size, self.version)
    }

    /// A name in plain words, for `general.name`.
    pub fn words(&self) -> String {
        let parts = [Some(&self.base), Some(&self.size), self.fine_tune.as_ref()];
        parts.into_iter().flatten().map(|p| p.replace('-', " ")).collect::<Vec<_>>().join(" ")
    }

    /// The parts of a model that is called `name` and has so many parameters: what the name says, else the name itself
    /// with everything replaced that the convention does not allow.
    pub fn of(name: &str, parameters: u64) -> Self {
        Self::parse(name).unwrap_or_else(|| {
            let plain = |c: char| if c.is_ascii_alphanumeric() { c } else { '-' };
            let words: String = name.strip_suffix(".gguf").unwrap_or(name).chars().map(plain).collect();
            let words: Vec<&str> = words.split('-').filter(|w| !w.is_empty()).collect();
            let base = if words.is_empty() { "model".into() } else { words.join("-") };
            Self { base, size: size_label(parameters), fine_tune: None, version: "v1.0".into() }
        })
    }
}

/// `135M`, `1.7B`: at most three digits.
pub fn size_label(parameters: u64) -> String {
    let (unit, suffix) = match parameters {
        0..1_000_000 => (1e3, "K"),
        1_000_000..1_000_000_000 => (1e6, "M"),
        1_000_000_000..1_000_000_000_000 => (1e9, "B"),
        _ => (1e12, "T"),
    };
    let n = parameters as f64 / unit;
    let digits = if n < 10.0 && (n * 10.0).round() % 10.0 != 0.0 { 1 } else { 0 };
    format!("{n:.digits$}{suffix}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_taken_apart_and_put_together() {
        let name = FileName::parse("SmolLM2-135M-Instruct.Q4_1.gguf").unwrap();
        assert_eq!(
            (name.base.as_str(), name.size.as_str(), name.fine_tune.as_deref()),
            ("SmolLM2", "135M", Some("Instruct"))
        );
        assert_eq!(name.file("Q8_0"), "SmolLM2-135M-Instruct-v1.0-Q8_0.gguf");
        assert_eq!(name.words(), "SmolLM2 135M Instruct");
        for file in
            ["Hermes-2-Pro-Llama-3-8B-v1.0-F16.gguf", "SmolLM2-135M-Instruct-v1.0-Q8_0.gguf", "tiny-5.8M-v1.0-F32.gguf"]
        {
            let encoding = file.rsplit_once('-').unwrap().1.trim_end_matches(".gguf");
            assert_eq!(FileName::parse(file).unwrap().file(encoding), file);
        }
    }

    #[test]
    fn other_names_are_made_to_follow() {
        let name = FileName::of("my model (v2)", 5_770_000);
        assert_eq!(name.file("F16"), "my-model-v2-5.8M-v1.0-F16.gguf");
        assert!(FileName::parse(&name.file("F16")).is_some());
        assert_eq!([999, 134_515_008, 1_711_376_384, 8_030_261_248].map(size_label), ["1K", "135M", "1.7B", "8B"]);
    }
}
