//! From the names that adapters use to the names that the base stores.
//!
//! An adapter was saved against the model classes of some transformers release and under some head; the base may have
//! been stored by another release or under another head. Three things differ: the backbone's prefix (`bert.`), names
//! that transformers 5 changed in memory but not on disk, and LayerNorm parameters of the oldest files. Each is a
//! spelling rule; a name is tried as it stands first, then under the rules, and what the base has decides.

use std::collections::BTreeMap;

/// What transformers calls `base_model_prefix`, over all families in scope.
const PREFIXES: &[&str] = &[
    "model.",
    "transformer.",
    "bert.",
    "roberta.",
    "distilbert.",
    "deberta.",
    "electra.",
    "albert.",
    "mpnet.",
    "gpt_neox.",
];

/// Spellings of the same name: (where, disk, memory). An empty `where` means any model type that contains the text.
const SPELLINGS: &[(&[&str], &str, &str)] = &[
    (&["gpt_neox"], "embed_out.", "lm_head."),
    (&["mixtral", "minimax", "phimoe"], ".block_sparse_moe.experts", ".mlp.experts"),
    (&["mixtral", "minimax"], ".block_sparse_moe.gate.", ".mlp.gate."),
    (&["phimoe"], ".block_sparse_moe.gate.", ".mlp.router."),
    (&["granitemoe"], ".block_sparse_moe.router.layer.", ".block_sparse_moe.router."),
    (&["granitemoe"], ".block_sparse_moe.input_linear.weight", ".block_sparse_moe.experts.gate_up_proj"),
    (&["granitemoe"], ".block_sparse_moe.output_linear.weight", ".block_sparse_moe.experts.down_proj"),
    (&["qwen3_5", "gemma3n", "gemma3", "llava", "qwen2_vl", "qwen2_5_vl"], "model.language_model.", "model."),
    (&["gemma3", "llava", "qwen2_vl", "qwen2_5_vl"], "language_model.model.", "model.language_model."),
    (&["gemma3", "llava"], "language_model.model.", "model."),
    (&["gemma3", "llava"], "language_model.lm_head.", "lm_head."),
];

/// The parameters that a merge may speak of: logical name → the base's tensor that it starts from. They are the same
/// but for replicated layers and tied copies.
#[derive(Debug, Clone)]
pub struct Names {
    model_type: String,
    params: BTreeMap<String, String>,
    /// How the adapter's prefix differs, once seen: (strip from the adapter's name, put before the disk's).
    prefix: Option<(String, String)>,
}

impl Names {
    /// Over the given parameters.
    pub fn new(model_type: &str, params: BTreeMap<String, String>) -> Self {
        Self { model_type: model_type.to_owned(), params, prefix: None }
    }

    /// Logical name → the base tensor it starts from.
    pub fn origin(&self, param: &str) -> Option<&str> {
        self.params.get(param).map(String::as_str)
    }

    /// All logical names, sorted.
    pub fn iter(&self) -> impl Iterator<Item = &str> {
        self.params.keys().map(String::as_str)
    }

    /// Adds a logical name, such as the head of a tied model.
    pub fn add(&mut self, param: &str, origin: &str) {
        self.params.insert(param.to_owned(), origin.to_owned());
    }

    /// Removes a logical name.
    pub fn remove(&mut self, param: &str) {
        self.params.remove(param);
    }

    /// The logical parameter that an adapter's parameter path means.
    pub fn resolve(&self, path: &str) -> Option<String> {
        self.spellings(path).into_iter().find(|c| self.params.contains_key(c))
    }

    /// The logical module (`X` of a parameter `X.weight`) that an adapter's module path means.
    pub fn resolve_module(&self, path: &str) -> Option<String> {
        let weight = self.resolve(&format!("{path}.weight"))?;
        weight.strip_suffix(".weight").map(str::to_owned)
    }

    /// Every spelling of a name that some release used, the name itself first.
    pub fn spellings(&self, name: &str) -> Vec<String> {
        let mut out = vec![name.to_owned()];
        let add = |out: &mut Vec<String>, candidate: String| {
            if !out.contains(&candidate) {
                out.push(candidate);
            }
        };
        // A dot at the end lets module paths match the spellings that end at a segment.
        for (types, disk, memory) in SPELLINGS {
            if !types.iter().any(|t| self.model_type.starts_with(t)) {
                continue;
            }
            for (from, to) in [(disk, memory), (memory, disk)] {
                for i in 0..out.len() {
                    if let Some(changed) = respell(&out[i], from, to) {
                        add(&mut out, changed);
                    }
                }
            }
        }
        for i in 0..out.len() {
            let bare = PREFIXES.iter().find_map(|p| out[i].strip_prefix(p)).map(str::to_owned);
            for stem in [Some(out[i].clone()), bare].into_iter().flatten() {
                add(&mut out, stem.clone());
                for prefix in PREFIXES {
                    add(&mut out, format!("{prefix}{stem}"));
                }
            }
        }
        for i in 0..out.len() {
            for (new, old) in [(".weight", ".gamma"), (".bias", ".beta")] {
                for (from, to) in [(new, old), (old, new)] {
                    let stem = out[i].strip_suffix(from).filter(|s| s.ends_with("Norm"));
                    if let Some(other) = stem.map(|s| format!("{s}{to}")) {
                        add(&mut out, other);
                    }
                }
            }
        }
        out
    }

    /// Learns the adapter's prefix from one of its names that was resolved.
    pub fn observe(&mut self, adapter: &str, disk: &str) {
        if self.prefix.is_some() {
            return;
        }
        let common = adapter.bytes().rev().zip(disk.bytes().rev()).take_while(|(a, b)| a == b).count();
        let (a, d) = (&adapter[..adapter.len() - common], &disk[..disk.len() - common]);
        let known = |p: &str| p.is_empty() || PREFIXES.contains(&p);
        if known(a) && known(d) {
            self.prefix = Some((a.to_owned(), d.to_owned()));
        }
    }

    /// Before the next adapter, which may be spelled otherwise.
    pub fn forget_prefix(&mut self) {
        self.prefix = None;
    }

    /// How this adapter may spell a module of the base.
    pub fn in_adapter(&self, module: &str) -> Vec<String> {
        let module = match &self.prefix {
            Some((adapter, disk)) => match module.strip_prefix(disk.as_str()) {
                Some(rest) if !disk.is_empty() || PREFIXES.iter().all(|p| !module.starts_with(p)) => {
                    format!("{adapter}{rest}")
                }
                _ => module.to_owned(),
            },
            None => module.to_owned(),
        };
        let mut out = vec![module];
        for (types, disk, memory) in SPELLINGS {
            if types.iter().any(|t| self.model_type.starts_with(t))
                && let Some(changed) = respell(&out[0], disk, memory)
                && !out.contains(&changed)
            {
                out.push(changed);
            }
        }
        out
    }

    /// The three stored names that look most like `path`.
    pub fn closest(&self, path: &str) -> Vec<&str> {
        let mut scored: Vec<(usize, &str)> = self.iter().map(|n| (distance(path, n), n)).collect();
        scored.sort_unstable();
        scored.into_iter().take(3).map(|(_, n)| n).collect()
    }
}

/// Replaces `from` in `name`, where a trailing dot of `from` may also be the end of the name.
fn respell(name: &str, from: &str, to: &str) -> Option<String> {
    let dotted = format!("{name}.");
    let at = dotted.find(from)?;
    // A rule that starts without a dot starts at a segment.
    if !from.starts_with('.') && at != 0 && !dotted[..at].ends_with('.') {
        return None;
    }
    let mut out = format!("{}{to}{}", &dotted[..at], &dotted[at + from.len()..]);
    if !out.ends_with('.') {
        return Some(out);
    }
    out.pop();
    Some(out)
}

/// A cheap likeness: segments of one that the other lacks, both ways.
fn distance(a: &str, b: &str) -> usize {
    let parts = |s: &str| s.split('.').map(str::to_owned).collect::<Vec<_>>();
    let (a, b) = (parts(a), parts(b));
    let lacks = |x: &[String], y: &[String]| x.iter().filter(|s| !y.contains(s)).count();
    lacks(&a, &b) * 2 + lacks(&b, &a) * 2 + a.len().abs_diff(b.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(model_type: &str, params: &[&str]) -> Names {
        Names::new(model_type, params.iter().map(|p| (p.to_string(), p.to_string())).collect())
    }

    #[test]
    fn prefixes_both_ways() {
        let bare = names("bert", &["encoder.layer.0.q.weight", "LayerNorm.gamma", "LayerNorm.beta"]);
        assert_eq!(bare.resolve("bert.encoder.layer.0.q.weight").unwrap(), "encoder.layer.0.q.weight");
        assert_eq!(bare.resolve("bert.LayerNorm.weight").unwrap(), "LayerNorm.gamma");
        assert_eq!(bare.resolve("LayerNorm.bias").unwrap(), "LayerNorm.beta");
        assert_eq!(bare.resolve_module("bert.encoder.layer.0.q").unwrap(), "encoder.layer.0.q");
        let full = names("bert", &["bert.encoder.layer.0.q.weight"]);
        assert_eq!(full.resolve("encoder.layer.0.q.weight").unwrap(), "bert.encoder.layer.0.q.weight");
        let llama = names("llama", &["model.layers.0.q.weight"]);
        assert_eq!(llama.resolve("transformer.layers.0.q.weight").unwrap(), "model.layers.0.q.weight");
        assert_eq!(llama.resolve("model.layers.7.q.weight"), None);
    }

    #[test]
    fn spellings_of_transformers_5() {
        for (model_type, disk, memory) in [
            ("gpt_neox", "embed_out.weight", "lm_head.weight"),
            ("mixtral", "model.layers.0.block_sparse_moe.gate.weight", "model.layers.0.mlp.gate.weight"),
            (
                "mixtral",
                "model.layers.0.block_sparse_moe.experts.0.w1.weight",
                "model.layers.0.mlp.experts.0.w1.weight",
            ),
            ("phimoe", "model.layers.0.block_sparse_moe.gate.weight", "model.layers.0.mlp.router.weight"),
            (
                "granitemoe",
                "model.layers.0.block_sparse_moe.input_linear.weight",
                "model.layers.0.block_sparse_moe.experts.gate_up_proj",
            ),
            ("gemma3", "language_model.model.layers.0.q.weight", "model.language_model.layers.0.q.weight"),
            ("gemma3", "language_model.lm_head.weight", "lm_head.weight"),
        ] {
            let n = names(model_type, &[disk]);
            assert_eq!(n.resolve(memory).as_deref(), Some(disk), "{memory}");
            assert_eq!(n.resolve(disk).as_deref(), Some(disk), "{disk}");
            // and the other way round
            let n = names(model_type, &[memory]);
            assert_eq!(n.resolve(disk).as_deref(), Some(memory), "{disk}");
        }
        assert_eq!(names("llama", &["embed_out.weight"]).resolve("lm_head.weight"), None);
    }

    #[test]
    fn the_adapters_own_spelling() {
        let mut n = names("gpt2", &["h.0.attn.c_attn.weight", "wte.weight"]);
        n.observe("transformer.h.0.attn.c_attn.weight", "h.0.attn.c_attn.weight");
        assert_eq!(n.in_adapter("h.1.mlp.c_fc"), ["transformer.h.1.mlp.c_fc"]);
        let mut n = names("bert", &["bert.encoder.layer.0.q.weight"]);
        n.observe("encoder.layer.0.q.weight", "bert.encoder.layer.0.q.weight");
        assert_eq!(n.in_adapter("bert.encoder.layer.1.q"), ["encoder.layer.1.q"]);
        let n = names("gpt_neox", &["embed_out.weight"]);
        assert_eq!(n.in_adapter("embed_out"), ["embed_out", "lm_head"]);
    }

    #[test]
    fn closest_names() {
        let n = names("llama", &["model.layers.0.self_attn.q_proj.weight", "model.norm.weight", "lm_head.weight"]);
        assert_eq!(n.closest("model.layers.7.self_attn.q_proj.weight")[0], "model.layers.0.self_attn.q_proj.weight");
    }
}
