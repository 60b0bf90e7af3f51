//! Which modules an adapter's config names, by PEFT's rules.
//!
//! Patterns are Python regular expressions; they run in a backtracking engine (people ship look-aheads) with a step
//! limit, so that a pattern made to run for ever is an error within milliseconds.

use std::path::Path;

use fancy_regex::{Regex, RegexBuilder};

use super::MergeError;
use super::config::{AdapterConfig, Selection};
use crate::source::{SourceError, quote};

/// Backtracking steps per match. Real patterns need some hundred.
const STEPS: usize = 100_000;
/// Bytes that a compiled pattern may take.
const COMPILED: usize = 4 << 20;

/// A pattern with the field that it comes from.
#[derive(Debug)]
struct Pattern {
    field: String,
    regex: Regex,
}

impl Pattern {
    /// Compiles `wrapped`, which holds the author's `source`.
    fn new(file: &Path, field: String, source: &str, wrapped: &str) -> Result<Self, MergeError> {
        let regex = RegexBuilder::new(wrapped)
            .backtrack_limit(STEPS)
            .delegate_size_limit(COMPILED)
            .delegate_dfa_size_limit(COMPILED)
            .build()
            .map_err(|e| {
                SourceError::field(file, &*field, format!("{} is not a regex that can be used: {e}", quote(source)))
            })?;
        Ok(Self { field, regex })
    }

    fn is_match(&self, file: &Path, name: &str) -> Result<bool, MergeError> {
        self.regex.is_match(name).map_err(|e| self.gave_up(file, name, &e))
    }

    fn gave_up(&self, file: &Path, name: &str, e: &fancy_regex::Error) -> MergeError {
        let problem = format!("the regex gives no answer for {}: {e}", quote(name));
        SourceError::field(file, &*self.field, problem).into()
    }
}

#[derive(Debug)]
enum Rule {
    Endings(Vec<String>),
    Pattern(Pattern),
    AllLinear,
}

/// The compiled rules of one config.
#[derive(Debug)]
pub struct Targets {
    file: std::path::PathBuf,
    target: Option<Rule>,
    exclude: Option<Rule>,
    saved: Vec<Pattern>,
    layers: Option<Vec<usize>>,
    layer_patterns: Vec<Pattern>,
    ranks: Vec<(Pattern, usize)>,
    alphas: Vec<(Pattern, f64)>,
}

impl Targets {
    /// Compiles every pattern of the config, used or not.
    pub fn new(file: &Path, config: &AdapterConfig) -> Result<Self, MergeError> {
        let rule = |field: &str, selection: &Option<Selection>| {
            Ok::<_, MergeError>(match selection {
                None => None,
                Some(Selection::AllLinear) => Some(Rule::AllLinear),
                Some(Selection::Endings(list)) => Some(Rule::Endings(list.clone())),
                Some(Selection::Pattern(p)) => {
                    Some(Rule::Pattern(Pattern::new(file, field.into(), p, &format!(r"\A(?:{p})\z"))?))
                }
            })
        };
        let by_module = |field: &str, key: &str| {
            Pattern::new(file, format!("{field}.{}", quote(key)), key, &format!(r"\A(?:.*\.)?(?:{key})\z"))
        };
        // Saved modules are names, not patterns; PEFT puts them into a regex unescaped, which only matters for names
        // that no module has.
        let saved = config.modules_to_save.iter().map(|m| {
            let name = fancy_regex::escape(m);
            Pattern::new(file, "modules_to_save".into(), m, &format!(r"\A(?:.*\.)?{name}(?:\..*)?\z"))
        });
        let layers = config.layers_pattern.iter().map(|p| {
            Pattern::new(file, "layers_pattern".into(), p, &format!(r"\A(?:.*?\.)?(?:{p})\.(?P<index_>\d+)\."))
        });
        let mut layer_patterns = layers.collect::<Result<Vec<_>, _>>()?;
        if layer_patterns.is_empty() {
            let first = r"\A.*?\.[^.]*\.(?P<index_>\d+)\.";
            layer_patterns.push(Pattern::new(file, "layers_to_transform".into(), first, first)?);
        }
        Ok(Self {
            file: file.to_owned(),
            target: rule("target_modules", &config.target_modules)?,
            exclude: rule("exclude_modules", &config.exclude_modules)?,
            saved: saved.collect::<Result<_, _>>()?,
            layers: config.layers_to_transform.clone(),
            layer_patterns,
            ranks: (config.rank_pattern.iter())
                .map(|(k, r)| Ok((by_module("rank_pattern", k)?, *r)))
                .collect::<Result<_, MergeError>>()?,
            alphas: (config.alpha_pattern.iter())
                .map(|(k, a)| Ok((by_module("alpha_pattern", k)?, *a)))
                .collect::<Result<_, MergeError>>()?,
        })
    }

    /// Whether the config names this module. `linear` says whether it is one that `all-linear` means.
    pub fn is_target(&self, name: &str, linear: bool) -> Result<bool, MergeError> {
        let hits = |rule: &Rule| {
            Ok::<_, MergeError>(match rule {
                Rule::Endings(list) => list.iter().any(|e| is_ending(name, e)),
                Rule::Pattern(p) => p.is_match(&self.file, name)?,
                Rule::AllLinear => linear,
            })
        };
        if let Some(rule) = &self.exclude
            && hits(rule)?
        {
            return Ok(false);
        }
        if self.is_saved(name)? {
            return Ok(false);
        }
        let Some(rule) = &self.target else { return Ok(false) };
        if !hits(rule)? {
            return Ok(false);
        }
        match (rule, &self.layers) {
            (Rule::Endings(list), Some(layers)) if !list.iter().any(|e| e == name) => {
                Ok(self.layer_of(name)?.is_some_and(|l| layers.contains(&l)))
            }
            _ => Ok(true),
        }
    }

    /// Whether a pattern of another field matches the whole of a module's name.
    pub fn matches(&self, field: &str, pattern: &str, name: &str) -> Result<bool, MergeError> {
        let wrapped = format!(r"\A(?:{pattern})\z");
        Pattern::new(&self.file, field.into(), pattern, &wrapped)?.is_match(&self.file, name)
    }

    /// Whether the module is a saved one or lies in one.
    pub fn is_saved(&self, name: &str) -> Result<bool, MergeError> {
        for pattern in &self.saved {
            if pattern.is_match(&self.file, name)? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    fn layer_of(&self, name: &str) -> Result<Option<usize>, MergeError> {
        for pattern in &self.layer_patterns {
            let found = pattern.regex.captures(name).map_err(|e| pattern.gave_up(&self.file, name, &e))?;
            if let Some(index) = found.as_ref().and_then(|c| c.name("index_")) {
                return Ok(index.as_str().parse().ok());
            }
        }
        Ok(None)
    }

    /// The rank of a module and whether two patterns disagree about it.
    pub fn rank(&self, name: &str, default: usize) -> Result<(usize, bool), MergeError> {
        self.first(&self.ranks, name, default)
    }

    /// The alpha of a module and whether two patterns disagree about it.
    pub fn alpha(&self, name: &str, default: f64) -> Result<(f64, bool), MergeError> {
        self.first(&self.alphas, name, default)
    }

    fn first<T: Copy + PartialEq>(
        &self,
        patterns: &[(Pattern, T)],
        name: &str,
        default: T,
    ) -> Result<(T, bool), MergeError> {
        let mut found = None;
        let mut disagree = false;
        for (pattern, value) in patterns {
            if pattern.is_match(&self.file, name)? {
                disagree |= found.is_some_and(|f| f != *value);
                found = found.or(Some(*value));
            }
        }
        Ok((found.unwrap_or(default), disagree))
    }
}

/// `name` is `ending` or ends with it at a dot.
pub fn is_ending(name: &str, ending: &str) -> bool {
    name.strip_suffix(ending).is_some_and(|head| head.is_empty() || head.ends_with('.'))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::method;
    use super::*;

    fn targets(mut config: serde_json::Value) -> Targets {
        try_targets(&mut config).unwrap()
    }

    fn try_targets(config: &mut serde_json::Value) -> Result<Targets, MergeError> {
        let object = config.as_object_mut().unwrap();
        object.insert("r".into(), 8.into());
        object.insert("lora_alpha".into(), 16.into());
        let parsed =
            AdapterConfig::parse(Path::new("adapter_config.json"), object, method::find("LORA").unwrap(), "a", false)?;
        Targets::new(Path::new("adapter_config.json"), &parsed.config)
    }

    #[test]
    fn truth_table() {
        let q = "model.layers.0.self_attn.q_proj";
        let up = "model.layers.0.mlp.up_proj";
        for (config, name, want) in [
            (json!({"target_modules": ["q_proj"]}), "model.layers.0.self_attn.eq_proj", false),
            (json!({"target_modules": ["q_proj"]}), q, true),
            (json!({"target_modules": ["self_attn.q_proj"]}), q, true),
            (json!({"target_modules": [".*q_proj"]}), q, false),
            (json!({"target_modules": ".*q_proj"}), q, true),
            (json!({"target_modules": "q_proj"}), q, false),
            (json!({"target_modules": r"^model\.layers\.(?!0)\d+\..*q_proj$"}), q, false),
            (json!({"target_modules": r"^model\.layers\.(?!1)\d+\..*q_proj$"}), q, true),
            (json!({"target_modules": ["up_proj"]}), up, true),
            (json!({"target_modules": ["up_proj"], "exclude_modules": ["up_proj"]}), up, false),
            (json!({"target_modules": ["up_proj"], "exclude_modules": ".*layers.1.*"}), up, true),
            (json!({"target_modules": ["up_proj"], "modules_to_save": ["mlp"]}), up, false),
            (json!({"target_modules": ["dense"], "modules_to_save": ["score"]}), "model.myscore.dense", true),
            (json!({"target_modules": "all-linear"}), up, true),
        ] {
            assert_eq!(targets(config.clone()).is_target(name, true).unwrap(), want, "{config} {name}");
        }
    }

    #[test]
    fn layers_to_transform() {
        let list = targets(json!({"target_modules": ["q", "model.layers.5.q"], "layers_to_transform": [0, 1]}));
        for (name, want) in [
            ("model.layers.1.q", true),
            ("model.layers.2.q", false),
            ("model.layers.5.q", true), // an exact path
            ("layers.1.q", false),      // no two segments before the index
            ("model.layers.1.experts.7.q", true),
        ] {
            assert_eq!(list.is_target(name, true).unwrap(), want, "{name}");
        }
        let one = targets(json!({"target_modules": ["q"], "layers_to_transform": 3, "layers_pattern": "h"}));
        assert!(one.is_target("transformer.h.3.q", true).unwrap());
        assert!(one.is_target("h.3.q", true).unwrap());
        assert!(!one.is_target("transformer.layers.3.q", true).unwrap());
    }

    #[test]
    fn scale_patterns() {
        let t = targets(json!({"rank_pattern": {"a": 2, "m.a": 4}, "alpha_pattern": {"^m\\.b": 4}}));
        assert_eq!(t.rank("x.a", 8).unwrap(), (2, false));
        assert_eq!(t.rank("x.m.a", 8).unwrap(), (2, true)); // file order, and a disagreement
        assert_eq!(t.rank("x.ba", 8).unwrap(), (8, false));
        assert_eq!(t.alpha("m.b", 16.0).unwrap(), (4.0, false));
        assert_eq!(t.alpha("x.b", 16.0).unwrap(), (16.0, false));
        let dots = targets(json!({"rank_pattern": {"layers.0.x": 2, "model.layers.1.*": 3}}));
        assert_eq!(dots.rank("model.layers.10.x", 8).unwrap().0, 3);
        assert_eq!(dots.rank("model.layers.0.x", 8).unwrap().0, 2);
        assert_eq!(dots.rank("model.layers.20.x", 8).unwrap().0, 8);
    }

    #[test]
    fn hostile_patterns_end() {
        let t = targets(json!({"target_modules": r"(x+x+)+\1(?<!xz)zy"}));
        let e = t.is_target(&format!("{}zz", "x".repeat(64)), true).unwrap_err().to_string();
        assert!(e.contains("target_modules"), "{e}");
        for (field, bad) in [
            ("target_modules", json!("(unclosed")),
            ("target_modules", json!("(((a{1000}){1000}){1000}){1000}")),
            ("exclude_modules", json!("[z-a]")),
            ("rank_pattern", json!({"(": 4})),
            ("alpha_pattern", json!({"*": 4})),
        ] {
            let e = try_targets(&mut json!({ field: bad })).unwrap_err().to_string();
            assert!(e.contains(field) && e.contains("regex"), "{e}");
        }
    }
}
